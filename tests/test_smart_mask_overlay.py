from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from tests_support import picture
from torchvision.io import ImageReadMode, decode_image

from infill_aug.smart_mask.overlay import SUFFIXES, fitting_path, overlay, save_lossless, small_rgb
from infill_aug.smart_mask.pictures import pair_of
from infill_aug.smart_mask.result import PictureReport, Region, SmartMaskResult

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BLUE, ORANGE = (0, 190, 255), (255, 140, 0)


def result_of(original, edited, boxes=(), left_out=(), note=""):
    """A result that takes some boxes."""
    height, width = pair_of(original, original).original.shape[-2:]
    mask = torch.zeros(1, height, width)
    for left, top, right, bottom in boxes:
        mask[:, top:bottom, left:right] = 1
    regions = [Region(box, 1, 23.4, 0.5, box in boxes) for box in (*boxes, *left_out)]
    report = PictureReport(10.0, "CIEDE2000", tuple(regions), 0.93, float(mask.mean()), note=note)
    pair = pair_of(original, edited)
    taken = mask.bool()[None].numpy()
    composite = pair.pack(torch.from_numpy(np.where(taken, pair.edited.numpy(), pair.original.numpy())))
    return SmartMaskResult(mask, composite, (report,))


def pixels(sheet, colour):
    return (np.asarray(sheet) == np.array(colour)).all(-1)


def greys(height, width, level=100):
    return torch.full((3, height, width), level, dtype=torch.uint8)


def test_the_original_the_edited_picture_what_was_taken_and_the_composite_are_shown():
    original, edited = greys(60, 80), torch.stack([torch.full((60, 80), v, dtype=torch.uint8) for v in (200, 40, 90)])
    box = (20, 10, 50, 40)
    sheet = overlay(original, result_of(original, edited, [box]), edited)
    scale = 6
    whole, part = 60 * 80 * scale**2, 30 * 30 * scale**2
    assert pixels(sheet, (100, 100, 100)).sum() == pytest.approx(2 * whole - part, rel=0.001)  # some of a letter
    # The label, the region's frame and what is left of the panel's part hide little of the edit.
    assert pixels(sheet, (200, 40, 90)).sum() == pytest.approx(whole + 2 * part, rel=0.02)
    assert pixels(sheet, (60, 60, 60)).sum() == pytest.approx(whole - part, rel=0.02)  # dark, where nothing is taken


def test_without_the_edited_picture_its_panel_is_left_out():
    original, edited = greys(60, 80), picture(0, 60, 80)
    result = result_of(original, edited, [(20, 10, 50, 40)])
    with_it, without = overlay(original, result, edited), overlay(original, result)
    tile = np.asarray(small_rgb(edited, 80)[0][0].permute(1, 2, 0)).repeat(6, 0).repeat(6, 1)
    assert (np.asarray(with_it)[28 : 28 + 360, 492 : 492 + 480] == tile).all()
    assert not pixels(without, (255, 255, 255))[28 : 28 + 360, 492 : 492 + 480].any()  # what was taken stands there
    assert pixels(without, (60, 60, 60))[28 : 28 + 360, 492 : 492 + 480].mean() > 0.5


def test_taken_regions_are_blue_and_others_orange():
    original, edited = greys(200, 300), greys(200, 300, 180)
    taken, other = (30, 40, 120, 160), (200, 100, 260, 180)
    sheet = np.asarray(overlay(original, result_of(original, edited, [taken], [other]), edited))
    panel = sheet[-(400 + 6 + 22 + 6) :][:400, 6:606]  # above the gaps and a line of text
    for colour, (left, top, right, bottom) in ((BLUE, taken), (ORANGE, other)):
        y, x = pixels(panel, colour).nonzero()
        frame = [x.min() / 2, y.min() / 2, x.max() / 2, y.max() / 2]
        assert np.abs(np.array(frame) - (left, top - 8, right, bottom)).max() <= 2


def test_a_hundred_rejected_regions_do_not_cover_the_picture():
    original, edited = greys(200, 300), greys(200, 300, 180)
    noise = [(x, y, x + 8, y + 8) for x in range(0, 300, 10) for y in range(0, 200, 10)]
    many, few = (
        pixels(overlay(original, result_of(original, edited, (), n)), ORANGE).sum() for n in (noise, noise[:12])
    )
    assert many == few > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (2, 3), (7, 5000), (33, 64), (1200, 1300), (2000, 500)])
def test_any_size_gives_a_picture_that_fits_a_screen(size):
    original, edited = picture(0, *size), picture(1, *size)
    height, width = size
    boxes = [(0, 0, max(1, width // 2), max(1, height // 2))]
    result = result_of(original, edited, boxes, note="a word " * 60)
    for panels in (overlay(original, result), overlay(original, result, edited)):
        assert 190 <= panels.width <= 1600
        assert 60 <= panels.height <= 2200
        assert pixels(panels, BLUE).any()


def test_a_taken_speck_of_a_large_picture_is_still_seen():
    original, edited = greys(2000, 2400), greys(2000, 2400, 200)
    result = result_of(original, edited, [(1111, 777, 1112, 778)])
    bare = SmartMaskResult(result.mask, result.composite, (PictureReport(1.0, "", (), 1.0, 0.0),))
    assert 8 <= pixels(overlay(original, bare), BLUE).sum() <= 40


def test_files_grey_cmyk_alpha_16_bits_and_floats_are_shown(tmp_path):
    rgb = picture(0, 30, 40)
    image = Image.fromarray(rgb.permute(1, 2, 0).numpy())
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    image.save(tmp_path / "a.jpg")
    for original in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), image.convert("L"), image.convert("CMYK"),
                     image.convert("RGBA"), deep, rgb / 255, image.convert("1")):  # fmt: skip
        sheet = overlay(original, result_of(original, original, [(0, 0, 9, 9)]), original)
        assert sheet.mode == "RGB"
        assert np.asarray(sheet).std() > 20


def test_pictures_are_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, 30, 50).permute(1, 2, 0).numpy()).save(tmp_path / "a.png", exif=exif)
    assert small_rgb(tmp_path / "a.png", 100)[1] == (50, 30)


def test_a_batch_is_shown_below_each_other():
    originals, edited = (
        torch.stack([picture(i, 40, 60) for i in range(3)]),
        torch.zeros(3, 3, 40, 60, dtype=torch.uint8),
    )
    ones = [result_of(originals[i], edited[i], [(i, i, 30, 30)]) for i in range(3)]
    batch = SmartMaskResult(
        torch.stack([one.mask for one in ones]),
        torch.stack([one.composite for one in ones]),
        tuple(one.reports[0] for one in ones),
    )
    wanted = np.concatenate([np.asarray(overlay(originals[i], ones[i], edited[i])) for i in range(3)])
    assert (np.asarray(overlay(originals, batch, edited)) == wanted).all()
    with pytest.raises(ValueError, match="the result is of 3 pictures, original has 2"):
        overlay(originals[:2], batch)


# --- files ---


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "F"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_every_mode_comes_back_bit_for_bit(mode, suffix, tmp_path):
    if mode == "I;16":
        image = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    else:
        image = Image.fromarray(picture(0, 20, 30).permute(1, 2, 0).numpy()).convert(mode)
    path = fitting_path(image, tmp_path / f"a{suffix}")
    assert path.suffix == (".tif" if suffix == ".png" and mode in ("CMYK", "YCbCr", "F") else suffix)
    save_lossless(image, path)
    with Image.open(path) as back:
        assert back.mode == mode
        assert back.tobytes() == image.tobytes()


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
def test_16_bits_a_colour_come_back_bit_for_bit_with_the_colour_profile_of_the_original(channels, tmp_path):
    shape = (21, 34, channels) if channels else (21, 34)
    array = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    Image.new("RGB", (1, 1)).save(tmp_path / "original.tif", icc_profile=PROFILE)
    path = fitting_path(array, tmp_path / "deep.tif")
    assert path == tmp_path / "deep.png"
    save_lossless(array, path, like=tmp_path / "original.tif")
    with Image.open(path) as file:
        assert file.info["icc_profile"] == PROFILE
    back = decode_image(str(path), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    assert (back == array.reshape(back.shape)).all()


def test_profile_exif_and_resolution_are_written(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    image = Image.new("RGB", (4, 4))
    image.info.update(icc_profile=PROFILE, exif=exif.tobytes(), dpi=(300, 300))
    for suffix in SUFFIXES:
        save_lossless(image, tmp_path / f"a{suffix}")
        with Image.open(tmp_path / f"a{suffix}") as back:
            assert back.info["icc_profile"] == PROFILE
            assert back.getexif()[0x010E] == "a cat"
            assert back.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_jpeg_takes_what_it_can_hold():
    assert fitting_path(Image.new("CMYK", (2, 2)), Path("a.jpg")) == Path("a.jpg")
    assert fitting_path(Image.new("RGBA", (2, 2)), Path("a.jpg")) == Path("a.png")
