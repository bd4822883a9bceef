"""Whatever form two pictures have: nothing of the original is lost on the way in and out."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tests_support import picture
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image

from infill_aug.smart_mask.pictures import Pair, pair_of

INTEGERS = (torch.uint8, torch.uint16)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EIGHT_BITS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3}
DEPTHS = {"I;16": "<u2", "I;16B": ">u2", "I;16L": "<u2", "I": "<i4", "F": "<f4"}
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def noise(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, torch.iinfo(dtype).max + 1, shape, generator=generator, dtype=torch.int32).to(dtype)


def pil(mode: str, width: int = 7, height: int = 5, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    if mode in EIGHT_BITS:
        return Image.frombytes(mode, (width, height), draw.bytes(width * height * EIGHT_BITS[mode]))
    if mode in DEPTHS:
        values = draw.random((height, width)) if mode == "F" else draw.integers(0, 65536, (height, width))
        return Image.frombytes(mode, (width, height), values.astype(DEPTHS[mode]).tobytes())
    if mode == "PA":
        palette = pil("P", width, height, seed)
        palette.putalpha(pil("L", width, height, seed + 1))
        return palette
    return pil("RGB", width, height, seed).convert(mode)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def write_png16(path: Path, array: np.ndarray, exif: bytes = b"") -> None:
    """A PNG file of 16 bits a channel, which Pillow can not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    extra = chunk(b"eXIf", exif) if exif else b""
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


# Pack of the original's planes is the original


@given(SIZES, st.sampled_from(INTEGERS + FLOATS), st.sampled_from([(), (1,), (2,), (3,), (4,), (1, 3), (3, 1), (2, 4)]))
def test_a_tensor_comes_back_bit_for_bit(size, dtype, channels):
    original = noise(dtype, *channels, *size)
    pair = pair_of(original, original)
    assert same(pair.pack(pair.original), original)
    assert pair.batched == (len(channels) == 2)
    assert pair.notes == ()


@given(
    SIZES,
    st.sampled_from(["u1", "<u2", ">u2", "f2", "<f4", ">f4", "f8"]),
    st.sampled_from(["H W", "H W 1", "H W 2", "H W 3", "H W 4", "B H W 3", "B H W 1"]),
    st.sampled_from(["plain", "reversed", "transposed", "read only", "field"]),
)
def test_an_array_comes_back_bit_for_bit_however_it_lies_in_memory(size, dtype, shape, layout):
    names = {"B": 2, "H": size[0], "W": size[1]}
    draw = np.random.default_rng(1)
    full = [names.get(name) or int(name) for name in shape.split()]
    original = (draw.random(full) * (1 if "f" in dtype else np.iinfo(dtype).max)).astype(dtype)
    if layout == "reversed":
        original = original[..., ::-1]
    elif layout == "transposed":
        original = np.asfortranarray(original)
    elif layout == "read only":
        original.setflags(write=False)
    elif layout == "field":
        padded = np.zeros(original.shape, [("x", dtype), ("odd", "u1")])
        padded["x"] = original
        original = padded["x"]
    pair = pair_of(original, original)
    back = pair.pack(pair.original)
    assert back.dtype == original.dtype
    assert np.array_equal(back, original)
    assert back.flags.c_contiguous


@given(SIZES, st.sampled_from([*EIGHT_BITS, *DEPTHS]))
def test_a_pil_picture_comes_back_in_its_mode_bit_for_bit(size, mode):
    original = pil(mode, *size)
    pair = pair_of(original, original)
    back = pair.pack(pair.original)
    assert (back.mode, back.size, back.tobytes()) == (mode, original.size, original.tobytes())


@pytest.mark.parametrize(("mode", "wanted"), [("1", "L"), ("P", "RGB"), ("PA", "RGBA"), ("RGBX", "RGB")])
def test_a_mode_without_planes_comes_back_in_one_that_has_the_same_values(mode, wanted):
    original = pil(mode)
    pair = pair_of(original, original)
    back = pair.pack(pair.original)
    assert back.mode == wanted
    assert back.tobytes() == original.convert(wanted).tobytes()


@pytest.mark.parametrize(("mode", "key", "wanted"), [("P", 3, "RGBA"), ("L", 3, "LA"), ("RGB", (1, 2, 3), "RGBA")])
def test_a_transparent_colour_becomes_alpha(mode, key, wanted):
    original = Image.new("RGB", (4, 3), (1, 2, 3)).convert(mode)
    if mode != "RGB":
        original.putpixel((0, 0), 3)
    original.info["transparency"] = key
    pair = pair_of(original, original)
    back = pair.pack(pair.original)
    assert back.mode == wanted
    assert back.tobytes() == original.convert(wanted).tobytes()
    assert 0 in pair.original[:, -1]


def test_a_tensor_type_of_torchvision_comes_back():
    pair = pair_of(tv_tensors.Image(picture(0)), picture(1))
    assert type(pair.original) is type(pair.edited) is torch.Tensor
    assert type(pair.pack(pair.edited)) is tv_tensors.Image


def test_what_is_packed_never_shares_memory_with_what_came_in():
    for original in (picture(0), picture(0).permute(1, 2, 0).contiguous().numpy()):
        pair = pair_of(original, original)
        back, before = pair.pack(pair.original), original[0, 0, 0].item()
        back[0, 0, 0] = before ^ 1
        assert original[0, 0, 0].item() == before


def test_plain_rgb_is_not_copied():
    tensor, array = picture(0), picture(0).permute(1, 2, 0).contiguous().numpy()
    for pair, pointer in (
        (pair_of(tensor, tensor), tensor.data_ptr()),
        (pair_of(array, array), array.__array_interface__["data"][0]),
    ):
        assert pair.original.data_ptr() == pair.rgb(pair.original).data_ptr() == pointer


def test_gradients_are_left_behind():
    assert not pair_of(torch.rand(3, 4, 5, requires_grad=True), torch.rand(3, 4, 5)).original.requires_grad


# Files and metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_files_are_read_upright_whatever_the_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = pil("RGB", 16, 8)
    turned.save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as file:
        upright = ImageOps.exif_transpose(file)
    pair = pair_of(str(tmp_path / f"a.{suffix}"), upright)
    back = pair.pack(pair.original)
    assert same(pair.original, pair.edited)
    assert back.tobytes() == upright.tobytes()
    assert back.size == ((16, 8) if orientation < 5 else (8, 16))
    assert back.getexif().get(0x0112, 1) == 1


def test_the_edited_picture_is_turned_upright_too():
    turned = pil("RGB", 6, 4)
    turned.getexif()[0x0112] = 6
    assert pair_of(pil("RGB", 4, 6), turned).edited.shape == (1, 3, 6, 4)


def test_profile_resolution_and_camera_survive(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 6
    pil("RGB", 16, 8).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300), icc_profile=b"a profile")
    pair = pair_of(tmp_path / "a.jpg", tmp_path / "a.jpg")
    back = pair.pack(pair.original)
    assert back.info["icc_profile"] == b"a profile"
    assert back.info["dpi"] == (300, 300)
    assert dict(back.getexif()) == {0x010F: "a camera"}


def test_a_profile_of_greys_is_not_kept_for_colours():
    grey = pil("L")
    grey.info.update(icc_profile=b"grey", dpi=(72, 72))
    pair = pair_of(grey, pil("RGB"))
    assert pair.pack(pair.edited).info == {"dpi": (72, 72)}
    assert pair_of(grey, pil("L")).pack(pair.edited[:, :1]).info["icc_profile"] == b"grey"


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_png_file_of_16_bit_colours_is_read_in_full_and_comes_back_as_an_array(tmp_path, channels):
    array = np.random.default_rng(0).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    write_png16(tmp_path / "a.png", array)
    pair = pair_of(tmp_path / "a.png", array)
    assert same(pair.original, pair.edited)
    back = pair.pack(pair.original)
    assert back.dtype == np.uint16
    assert np.array_equal(back, array)


def test_a_png_file_of_16_bit_greys_comes_back_as_a_pil_picture(tmp_path):
    array = np.random.default_rng(0).integers(0, 65536, (5, 7, 1), dtype=np.uint16)
    write_png16(tmp_path / "a.png", array)
    pair = pair_of(tmp_path / "a.png", array)
    back = pair.pack(pair.original)
    assert back.mode == "I;16"
    assert np.array_equal(np.asarray(back), array[..., 0])


def test_a_png_file_of_16_bit_colours_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    array = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    write_png16(tmp_path / "a.png", array, exif.tobytes().removeprefix(b"Exif\0\0"))
    assert decode_image(str(tmp_path / "a.png"), ImageReadMode.UNCHANGED).dtype == torch.uint16
    pair = pair_of(tmp_path / "a.png", np.rot90(array, -1))
    assert same(pair.original, pair.edited)


def test_a_huge_file_is_no_attack(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    pil("L").save(tmp_path / "a.png")
    assert pair_of(tmp_path / "a.png", pil("L")).original.shape == (1, 1, 5, 7)


# Colours and alpha


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_rgb_is_what_pillow_makes_of_8_bits(mode):
    one = pil(mode, 64, 64)
    pair = pair_of(one, one)
    assert pair.colours == {"L": 1, "CMYK": 4}.get(mode, 3)
    wanted = torch.from_numpy(np.array(one.convert("RGB"))).permute(2, 0, 1)
    assert same(pair.rgb(pair.original), wanted[None])
    assert same(pair.rgb(pair.original[0, :, 3:9, 2:7]), wanted[:, 3:9, 2:7])


@pytest.mark.parametrize("dtype", INTEGERS[1:] + FLOATS)
def test_rgb_of_other_depths_is_float32(dtype):
    one = noise(dtype, 1, 4, 5)
    rgb = pair_of(one, one).rgb(one[None])
    assert rgb.dtype == torch.float32
    assert torch.equal(rgb, (one.float() / (65535 if dtype == torch.uint16 else 1)).expand(1, 3, 4, 5))


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_rgb_shows_alpha_over_mid_grey(dtype):
    top = 1 if dtype.is_floating_point else torch.iinfo(dtype).max
    one = torch.tensor([[top, 0, 0, top], [top, 0, 0, 0]], dtype=torch.float64).to(dtype).reshape(2, 4, 1, 1)
    pair = pair_of(one, one)
    opaque, clear = pair.rgb(pair.original)
    assert opaque.flatten().tolist() == ([255, 0, 0] if dtype == torch.uint8 else [1, 0, 0])
    assert clear.flatten().tolist() == ([128] * 3 if dtype == torch.uint8 else [0.5] * 3)


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_grey_original_gets_the_colours_of_the_edit_exactly(dtype, channels):
    original, edited = noise(dtype, channels, 4, 5), noise(dtype, 3, 4, 5, seed=1)
    pair = pair_of(original, edited)
    assert same(pair.original[:, :3], original[:1].expand(1, 3, 4, 5))
    assert same(pair.edited[0, :3], edited)
    assert pair.pack(pair.original).shape == (2 + channels, 4, 5)
    assert pair.notes == ("the original is grey and the edited picture has colours: the composite is RGB",)


def test_16_bit_greys_with_colours_come_back_as_an_array_and_say_so():
    pair = pair_of(pil("I;16"), pil("RGB"))
    assert "an array (H, W, C)" in pair.notes[0]
    assert pair.pack(pair.edited).shape == (5, 7, 3)
    wanted = torch.from_numpy(np.array(pil("RGB")).astype(np.uint16) * 257)
    assert same(pair.edited[0], wanted.permute(2, 0, 1))


def test_a_grey_edit_of_a_colour_original_is_repeated():
    pair = pair_of(pil("RGB"), pil("L"))
    assert pair.colours == 3
    assert same(pair.edited[:, 0], pair.edited[:, 2])


def test_the_alpha_of_the_original_stays_where_the_edit_has_none():
    original = noise(torch.uint8, 4, 4, 5)
    pair = pair_of(original, picture(1, 4, 5))
    assert same(pair.edited[0], torch.cat([picture(1, 4, 5), original[3:]]))


def test_the_alpha_of_both_is_kept():
    original, edited = noise(torch.uint8, 4, 4, 5), noise(torch.uint8, 4, 4, 5, seed=1)
    assert same(pair_of(original, edited).edited[0], edited)


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_original_shows_where_an_edit_is_transparent(dtype, channels):
    original, edited = noise(dtype, channels, 4, 6), noise(dtype, channels + 1, 4, 6, seed=1)
    top = 1 if dtype.is_floating_point else torch.iinfo(dtype).max
    edited[-1] = torch.tensor([0, 0, 0, top, top, top]).to(dtype)
    pair = pair_of(original, edited)
    assert same(pair.edited[0], torch.cat([original[..., :3], edited[:-1, :, 3:]], dim=-1))
    assert pair.notes[0].startswith("the edited picture is transparent in places")


def test_an_opaque_alpha_is_dropped_without_a_word():
    edited = pil("RGB")
    edited.putalpha(255)
    pair = pair_of(pil("RGB", seed=1), edited)
    assert same(pair.edited[0], torch.from_numpy(np.array(pil("RGB"))).permute(2, 0, 1))
    assert pair.notes == ()


def test_an_rgb_edit_of_a_cmyk_original_is_shown_as_it_was_and_keeps_the_inks():
    original, edited = pil("CMYK", 64, 64), pil("RGB", 64, 64, seed=1)
    pair = pair_of(original, edited)
    assert same(pair.rgb(pair.edited)[0], torch.from_numpy(np.array(edited)).permute(2, 0, 1))
    assert pair.pack(pair.original).tobytes() == original.tobytes()
    assert "CMYK" in pair.notes[0]
    unchanged = pair_of(original, original.convert("RGB"))
    assert same(unchanged.edited, unchanged.original)


def test_a_seam_between_cmyk_and_its_edit_is_neither_darker_nor_brighter():
    original = Image.new("CMYK", (4, 4), (20, 30, 40, 120))
    near = Image.eval(original.convert("RGB"), lambda v: v + 2)
    pair = pair_of(original, near)
    mixed = torch.lerp(pair.original.float(), pair.edited.float(), 0.5).round().to(torch.uint8)
    low, high = pair.rgb(pair.original).int(), pair.rgb(pair.edited).int()
    assert ((pair.rgb(mixed) >= low) & (pair.rgb(mixed) <= high)).all()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "P", "RGBa", "RGBX"])
def test_an_edit_of_another_mode_is_read_as_rgb(mode):
    edited = pil("RGB").convert("RGBA").convert(mode) if mode == "RGBa" else pil("RGB").convert(mode)
    pair = pair_of(pil("RGB", seed=1), edited)
    assert same(pair.edited[0], torch.from_numpy(np.array(edited.convert("RGBA").convert("RGB"))).permute(2, 0, 1))
    assert bool(pair.notes) == (mode == "CMYK")


def test_a_ycbcr_original_gets_its_edit_in_ycbcr():
    pair = pair_of(pil("YCbCr"), pil("RGBA"))
    assert pair.pack(pair.edited).mode == "YCbCr"


def test_a_grey_edit_of_a_cmyk_original_is_grey():
    pair = pair_of(pil("CMYK"), pil("L"))
    assert same(pair.rgb(pair.edited)[0, 1], torch.from_numpy(np.array(pil("L"))))


# Depths and forms


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("other", INTEGERS + FLOATS)
def test_the_edit_gets_the_depth_of_the_original_to_the_nearest_step(dtype, other):
    levels = torch.arange(256, dtype=torch.int32).reshape(1, 16, 16)
    edited = {torch.uint8: levels.to(torch.uint8), torch.uint16: (levels * 257).to(torch.uint16)}.get(
        other, (levels.double() / 255).to(other)
    )
    pair = pair_of(noise(dtype, 1, 16, 16), edited)
    assert pair.edited.dtype == dtype
    top = 1 if dtype.is_floating_point else torch.iinfo(dtype).max
    step = max(torch.finfo(t).eps if t.is_floating_point else 0 for t in (dtype, other))
    assert (pair.edited[0].double() / top - levels / 255).abs().max() <= step + 1e-6
    if not other.is_floating_point and not dtype.is_floating_point:
        assert same(pair.edited[0], (levels * (top // 255)).to(dtype))


def test_16_bits_are_rounded_to_8():
    pair = pair_of(
        torch.zeros(1, 256, 256, dtype=torch.uint8), torch.arange(65536).to(torch.uint16).reshape(1, 256, 256)
    )
    assert torch.equal(pair.edited.flatten().double(), (torch.arange(65536).double() / 257).round())


FORMS = {
    "pil": lambda: pil("RGB"),
    "array": lambda: np.array(pil("RGB", seed=1)),
    "array of floats": lambda: np.array(pil("RGB", seed=1)) / np.float32(255),
    "tensor": lambda: picture(2, 5, 7),
    "tensor of 16 bits": lambda: noise(torch.uint16, 3, 5, 7),
    "grey": lambda: noise(torch.float32, 1, 5, 7),
    "batch of one": lambda: picture(3, 5, 7)[None],
    "tv tensor": lambda: tv_tensors.Image(picture(2, 5, 7)),
    "cmyk": lambda: pil("CMYK"),
    "rgba": lambda: pil("RGBA"),
}


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_any_form_goes_with_any_other_and_the_composite_has_that_of_the_original(first, second):
    original = FORMS[first]()
    pair = pair_of(original, FORMS[second]())
    assert isinstance(pair, Pair)
    assert pair.original.shape == pair.edited.shape
    assert pair.original.dtype == pair.edited.dtype
    assert pair.rgb(pair.edited).shape == (1, 3, 5, 7)
    assert type(pair.pack(pair.edited)) is type(original)


def test_strips_are_joined_without_a_seam(monkeypatch):
    whole = pair_of(noise(torch.uint16, 3, 9, 4), noise(torch.uint8, 4, 9, 4)).edited
    monkeypatch.setattr("infill_aug.smart_mask.pictures._STRIP", 8)
    assert same(pair_of(noise(torch.uint16, 3, 9, 4), noise(torch.uint8, 4, 9, 4)).edited, whole)


# Sizes


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("size", [(20, 30), (5, 8), (10, 1), (1, 1)])
def test_a_resize_keeps_flat_colours_and_the_range(dtype, size):
    flat = noise(dtype, 3, 1, 1).expand(3, 11, 13)
    wide = pair_of(noise(dtype, 3, *size), flat, resize=True).edited
    assert torch.allclose(wide.double(), flat[:, :1, :1].double().expand(1, 3, *size), rtol=2e-3)
    top = 1 if dtype.is_floating_point else torch.iinfo(dtype).max
    checks = (torch.arange(143).reshape(1, 11, 13) % 2 * top).to(dtype)
    resized = pair_of(noise(dtype, 1, *size), checks, resize=True).edited.double()
    assert 0 <= resized.min() <= resized.max() <= top


def test_a_resize_does_not_draw_hidden_colours_into_the_seen_ones():
    edited = torch.zeros(4, 8, 8, dtype=torch.uint8)
    edited[0, :, 4:], edited[1, :, :4], edited[3, :, :4] = 255, 200, 255  # green beside a red that nobody sees
    pair = pair_of(torch.zeros(4, 16, 16, dtype=torch.uint8), edited, resize=True)
    seen = pair.edited[0, 3] > 0
    assert pair.edited[0, 0][seen].max() == 0
    assert (pair.edited[0, 1][seen].int() - 200).abs().max() <= 1


def test_a_resize_is_told_of_and_a_stretch_too():
    near = pair_of(picture(0, 20, 30), picture(0, 10, 15), resize=True)
    far = pair_of(picture(0, 20, 30), picture(0, 15, 15), resize=True)
    assert near.notes == ("the edited picture was resized from 15 x 10 to 30 x 20 pixels",)
    assert far.notes == (
        "the edited picture was resized from 15 x 15 to 30 x 20 pixels, which makes it 50% wider in proportion",
    )


# Bad input


@pytest.mark.parametrize(
    ("original", "edited", "message"),
    [
        (picture(0, 4, 6), picture(0, 5, 7), "original is 6 x 4 pixels and the edited picture 7 x 5; resize=True"),
        (picture(0), picture(0).expand(2, -1, -1, -1), "original is a single picture and the edited .* batch of 2"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(2, 1, 2, 2), "original is a batch of 3 and the edited .* batch of 2"),
        (torch.zeros(3, 0, 4), picture(0), "original is empty: 1 pictures of 4 x 0 pixels"),
        (torch.zeros(0, 3, 4, 4), picture(0), "original is empty: 0 pictures"),
        (Image.new("RGB", (0, 4)), picture(0), "original is empty"),
        (torch.full((3, 4, 4), 1.5), picture(0), r"original is floating point .* from 1\.5 to 1\.5"),
        (picture(0, 4, 4), torch.full((3, 4, 4), torch.nan), "edited picture is floating point .* from nan to nan"),
        (picture(0, 4, 4), np.full((4, 4), -1e-3), r"edited picture .* from -0\.001 to -0\.001"),
        (pil("L").convert("F"), pil("L"), "original is floating point and must lie in 0..1"),
        (Image.new("I", (4, 4), 70000), pil("L"), "mode I, which must lie in 0..65535, got values from 70000"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), picture(0), r"original must be uint8, .* got torch\.int64"),
        (picture(0), np.zeros((4, 4), bool), "edited picture must be uint8, .* got bool"),
        (torch.zeros(4, 5, 3, 1, 1), picture(0), r"original must be a tensor .* got shape \(4, 5, 3, 1, 1\)"),
        (torch.zeros(24, 24, 3), picture(0), r"got shape \(24, 24, 3\); channels come first"),
        (np.zeros((3, 24, 24)), picture(0), r"got shape \(3, 24, 24\); channels come last"),
        (pil("RGB").convert("LAB"), pil("RGB"), r"mode LAB, .*convert\('RGB'\)"),
        (pil("RGBA").convert("RGBa"), pil("RGB"), r"mode RGBa, .*convert\('RGBA'\)"),
    ],
)
def test_what_does_not_fit_is_named(original, edited, message):
    with pytest.raises(ValueError, match=message):
        pair_of(original, edited)


@pytest.mark.parametrize("thing", [None, 3, [picture(0)], b"a"])
def test_what_is_no_picture_is_named(thing):
    with pytest.raises(TypeError, match=f"edited picture must be .* got {type(thing).__name__}"):
        pair_of(picture(0), thing)


def test_a_file_that_pillow_would_cut_to_8_bits_is_refused(tmp_path):
    # The smallest TIFF of 16-bit RGB: one pixel, one strip.
    tags = [
        (256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 6), (284, 3, 1, 1),
    ]  # fmt: skip
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    data += b"\0" * 4 + struct.pack("<HHH", 16, 16, 16) + struct.pack("<HHH", 1, 2, 3)
    (tmp_path / "a.tiff").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tiff has 16 bits a colour, of which Pillow reads 8"):
        pair_of(tmp_path / "a.tiff", picture(0, 1, 1))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pair_of(tmp_path / "nowhere.png", picture(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_the_edit_goes_to_the_device_of_the_original(dtype):
    original = noise(dtype, 4, 6, 8)
    on_gpu = pair_of(original.cuda(), pil("RGBA", 5, 7), resize=True)
    on_cpu = pair_of(original, pil("RGBA", 5, 7), resize=True)
    assert on_gpu.edited.device.type == on_gpu.pack(on_gpu.edited).device.type == "cuda"
    assert torch.allclose(on_gpu.edited.cpu().double(), on_cpu.edited.double(), rtol=1e-2, atol=1)
    assert on_gpu.rgb(on_gpu.edited).shape == (1, 3, 6, 8)
