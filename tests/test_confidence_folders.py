import re

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from infill_aug.confidence.folders import MaskFolder, PictureFolder
from infill_aug.confidence.sources import MaskConfidence
from infill_aug.confidence.training import read_training_set
from infill_aug.samples import split_sample

WIDTH, HEIGHT = 12, 8


def save(path, array=None, **options):
    """A picture of an array, or a grey one; folders are made on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((HEIGHT, WIDTH, 3), 120, np.uint8) if array is None else array
    PILImage.fromarray(array).save(path, **options)
    return path


def region(value=255, height=HEIGHT, width=WIDTH, top=True):
    """A mask that is ``value`` in its upper, or lower, half."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = value
    return mask if top else mask[::-1].copy()


def pairs(folder):
    return [(path.name, {part: mask.name for part, mask in masks.items()}) for path, masks in folder.samples]


# --- layouts ---


def test_one_mask_of_the_pictures_name(tmp_path):
    for name in ("b", "a"):
        save(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "masks" / f"{name}.png", region())
    folder = MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert pairs(folder) == [("a.jpg", {"": "a.png"}), ("b.jpg", {"": "b.png"})]
    assert (len(folder), folder.classes, folder.without) == (2, (), 0)
    picture, target = folder[0]
    assert picture.mode == "RGB"
    assert picture.size == (WIDTH, HEIGHT)
    assert np.array_equal(target["mask"], region())


def test_figaro_marks_pictures_and_masks_in_sub_folders(tmp_path):
    for split, name in (("Training", "Frame00001"), ("Training", "Frame00002"), ("Testing", "Frame00061")):
        save(tmp_path / "Original" / split / f"{name}-org.jpg")
        save(tmp_path / "GT" / split / f"{name}-gt.pbm", region(1) > 0)
    folder = MaskFolder(str(tmp_path / "Original"), str(tmp_path / "GT"))
    assert [path.name for path, _ in folder.samples] == [
        "Frame00061-org.jpg",
        "Frame00001-org.jpg",
        "Frame00002-org.jpg",
    ]
    assert folder.without == 0
    assert folder.classes == ()
    confidence = MaskConfidence("mask", falloff=0)(*split_sample(folder[1]))
    assert torch.equal(confidence[0] == 1, torch.from_numpy(region() > 0))


def celeb(root, picture_side=16, mask_side=8):
    """CelebAMask-HQ with pictures twice as large as their masks, as published."""
    save(root / "CelebA-HQ-img" / "0.jpg", np.zeros((picture_side, picture_side, 3), np.uint8))
    save(root / "CelebA-HQ-img" / "2000.jpg", np.zeros((picture_side, picture_side, 3), np.uint8))
    for name, part, top in (
        ("0/00000", "hair", True), ("0/00000", "l_brow", False), ("1/02000", "hair", False), ("1/02000", "skin", True),
    ):  # fmt: skip
        mask = np.repeat(region(255, mask_side, mask_side, top)[..., None], 3, axis=-1)
        save(root / "CelebAMask-HQ-mask-anno" / f"{name}_{part}.png", mask)
    return MaskFolder(root / "CelebA-HQ-img", root / "CelebAMask-HQ-mask-anno")


def test_celebamask_parts_are_one_file_each_smaller_than_their_pictures_and_numbered_with_zeros(tmp_path):
    folder = celeb(tmp_path)
    assert folder.classes == ("hair", "l_brow", "skin")
    assert folder.without == 0
    assert pairs(folder) == [
        ("0.jpg", {"hair": "00000_hair.png", "l_brow": "00000_l_brow.png"}),
        ("2000.jpg", {"hair": "02000_hair.png", "skin": "02000_skin.png"}),
    ]
    mask = folder[0][1]["mask"]
    assert mask.shape == (3, 16, 16)
    assert np.array_equal(mask[0], region(1, 16, 16))
    assert np.array_equal(mask[1], region(2, 16, 16, top=False))
    assert not mask[2].any()


def test_celebamask_parts_get_the_weights_of_their_names(tmp_path):
    folder = celeb(tmp_path)
    weights = folder.weights({"hair": 1, "l_brow": 0.25})
    assert weights == {1: 1.0, 2: 0.25}
    source = MaskConfidence("mask", class_weights=weights, falloff=0)
    upper = torch.from_numpy(region(1, 16, 16) > 0)
    assert torch.equal(source(*split_sample(folder[0]))[0], torch.where(upper, 1.0, 0.25))
    assert torch.equal(source(*split_sample(folder[1]))[0], torch.where(upper, 0.0, 1.0))


def test_where_parts_overlap_the_heavier_one_counts(tmp_path):
    save(tmp_path / "images" / "7.jpg")
    save(tmp_path / "masks" / "00007_skin.png", region() * 0 + 255)
    save(tmp_path / "masks" / "00007_hair.png", region())
    folder = MaskFolder(tmp_path / "images", tmp_path / "masks")
    for weights in ({"hair": 0.9, "skin": 0.3}, {"hair": 0.3, "skin": 0.9}):
        source = MaskConfidence("mask", class_weights=folder.weights(weights), falloff=0)
        upper = torch.from_numpy(region() > 0)
        wanted = torch.where(upper, max(weights.values()), weights["skin"])
        torch.testing.assert_close(source(*split_sample(folder[0]))[0], wanted)


def test_lapa_masks_hold_label_values(tmp_path):
    labels = region(10)
    labels[-1] = 7
    save(tmp_path / "images" / "1002_0.jpg")
    save(tmp_path / "labels" / "1002_0.png", labels)
    folder = MaskFolder(tmp_path / "images", tmp_path / "labels")
    assert folder.classes == ()
    weights = folder.weights({"10": 1.0, "7": 0.5})
    confidence = MaskConfidence("mask", class_weights=weights, falloff=0)(*split_sample(folder[0]))
    assert torch.equal(confidence[0], torch.from_numpy(labels == 10).float() + torch.from_numpy(labels == 7) * 0.5)


def test_pets_whose_names_have_underscores_and_digits_are_no_parts_of_one_another(tmp_path):
    trimap = region(1) + 2 * region(1, top=False)
    names = ["american_bulldog_1", "american_bulldog_10", "american_pit_bull_terrier_1", "Bombay_1"]
    for name in names:
        save(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "trimaps" / f"{name}.png", trimap)
        (tmp_path / "trimaps" / f"._{name}.png").write_bytes(b"\0\5\26\7 what a Mac leaves in an archive")
    folder = MaskFolder(tmp_path / "images", tmp_path / "trimaps")
    assert sorted(pairs(folder)) == sorted((f"{name}.jpg", {"": f"{name}.png"}) for name in names)
    assert set(np.unique(folder[0][1]["mask"])) == {1, 2}


@pytest.mark.parametrize("mark", ["_mask", "-seg", "_GT", "_label", "_segmentation", "-trimap"])
def test_marks_of_masks_are_no_parts(tmp_path, mark):
    save(tmp_path / "images" / "cat_3.jpg")
    save(tmp_path / "masks" / f"cat_3{mark}.png", region())
    folder = MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert pairs(folder) == [("cat_3.jpg", {"": f"cat_3{mark}.png"})]


def test_palette_and_16_bit_masks_are_read_by_value(tmp_path):
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "images" / "b.jpg")
    indexed = PILImage.fromarray(region(3)).convert("P")
    indexed.putpalette([0, 0, 0, 5, 5, 5, 9, 9, 9, 200, 100, 0])
    (tmp_path / "masks").mkdir()
    indexed.save(tmp_path / "masks" / "a.png")
    save(tmp_path / "masks" / "b.png", region(1).astype(np.uint16) * 700)
    folder = MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert np.array_equal(folder[0][1]["mask"], region(3))
    assert np.array_equal(folder[1][1]["mask"], region(1).astype(np.int32) * 700)


# --- which mask is whose ---


@pytest.mark.parametrize("mask", ["{0}/0001.png", "{0}/0001_mask.png", "{0}/0001_hair.png"])
def test_pictures_of_one_name_in_several_sub_folders_get_the_masks_of_their_own(tmp_path, mask):
    for i, kind in enumerate(("cat", "dog")):
        save(tmp_path / "images" / kind / "0001.jpg", np.full((HEIGHT, WIDTH, 3), 100 * i, np.uint8))
        save(tmp_path / "masks" / mask.format(kind), region(1, top=not i))
    folder = MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert len(folder) == 2
    assert folder.without == 0
    for i in range(2):
        picture, target = folder[i]
        kind = round(np.asarray(picture).mean() / 100)
        assert np.array_equal(target["mask"].reshape(HEIGHT, WIDTH), region(1, top=not kind))


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [(["1.jpg", "001.jpg"], ["1.png"]), (["1.jpg", "1.webp"], ["1.png"]), (["1.jpg"], ["1.png", "1_mask.png"])],
)
def test_files_that_cannot_be_told_apart_are_named_and_not_guessed(tmp_path, pictures, masks):
    for name in pictures:
        save(tmp_path / "images" / name)
    for name in masks:
        save(tmp_path / "masks" / name, region())
    names = pictures if len(pictures) > 1 else masks
    with pytest.raises(ValueError, match="not clear what belongs to what") as error:
        MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert all(name in str(error.value) for name in names)


def test_pictures_without_a_mask_are_left_out_and_counted(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / "images" / f"{name}.jpg")
    save(tmp_path / "masks" / "b.png", region())
    save(tmp_path / "masks" / "z.png", region())
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    folder = MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert pairs(folder) == [("b.jpg", {"": "b.png"})]
    assert folder.without == 2


def test_no_match_is_an_error_with_examples_of_both_names(tmp_path):
    save(tmp_path / "images" / "photo-1.jpg")
    save(tmp_path / "masks" / "scan-1.png", region())
    with pytest.raises(FileNotFoundError, match=r"none of the 1 pictures.*photo-1\.jpg.*scan-1\.png"):
        MaskFolder(tmp_path / "images", tmp_path / "masks")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    save(tmp_path / "images" / "a.jpg")
    for images, masks in (("images", "nowhere"), ("nowhere", "images")):
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
            MaskFolder(tmp_path / images, tmp_path / masks)


@pytest.mark.parametrize("part", ["", "_hair"])
def test_a_mask_of_another_shape_is_refused_with_both_sizes(tmp_path, part):
    save(tmp_path / "images" / "1.jpg")
    save(tmp_path / "masks" / f"1{part}.png", region(255, WIDTH, WIDTH))
    folder = MaskFolder(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(ValueError, match=rf"1{part}\.png has size \(12, 12\), its picture \(12, 8\)"):
        folder[0]


def test_a_larger_mask_of_the_same_shape_fits(tmp_path):
    save(tmp_path / "images" / "1.jpg")
    save(tmp_path / "masks" / "1.png", region(255, 3 * HEIGHT, 3 * WIDTH))
    assert np.array_equal(MaskFolder(tmp_path / "images", tmp_path / "masks")[0][1]["mask"], region())


# --- weights ---


def test_weights_of_unknown_names_are_refused_with_the_names_there_are(tmp_path):
    folder = celeb(tmp_path)
    with pytest.raises(ValueError, match=re.escape("no classes ['beard']; they have ['hair', 'l_brow', 'skin']")):
        folder.weights({"hair": 1.0, "beard": 1.0})
    with pytest.raises(ValueError, match=re.escape("no classes ['1']")):
        folder.weights({"1": 1.0})


def test_weights_of_label_values_are_by_value(tmp_path):
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "a.png", region(10))
    folder = MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert folder.weights({"10": 1, "3": 0.5}) == {10: 1.0, 3: 0.5}
    with pytest.raises(ValueError, match=r"no classes \['hair'\]; they have label values, such as '1'"):
        folder.weights({"hair": 1.0})


# --- pictures as they are meant to be seen ---

ROTATED = 6  # the EXIF orientation of a camera held upright: rows are columns, from the right


def rotated(path, array):
    exif = PILImage.Exif()
    exif[0x0112] = ROTATED
    save(path, array, exif=exif, quality=95)


def test_pictures_are_turned_as_cameras_say_and_masks_fit_the_turned_picture(tmp_path):
    bright_top = np.repeat(region(255)[..., None], 3, axis=-1)
    rotated(tmp_path / "images" / "a.jpg", np.rot90(bright_top).copy())
    save(tmp_path / "masks" / "a.png", region())
    picture, target = MaskFolder(tmp_path / "images", tmp_path / "masks")[0]
    assert picture.size == (WIDTH, HEIGHT)
    assert np.array_equal(np.asarray(picture)[..., 0] > 128, target["mask"] > 0)
    alone = PictureFolder(tmp_path / "images")[0]
    assert np.array_equal(np.asarray(alone), np.asarray(picture))


def test_a_folder_of_pictures_holds_those_of_all_sub_folders_in_order(tmp_path):
    for i, name in enumerate(("b/x.png", "a.JPG", "b/c/y.webp", "z.tiff")):
        save(tmp_path / name, np.full((HEIGHT, WIDTH, 3), 60 * i, np.uint8))
    save(tmp_path / "grey.png", region())
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._a.jpg").write_bytes(b"what a Mac leaves in an archive")
    folder = PictureFolder(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in folder.paths] == [
        "a.JPG", "b/c/y.webp", "b/x.png", "grey.png", "z.tiff",
    ]  # fmt: skip
    assert len(folder) == 5
    read = [split_sample(picture) for picture in folder]
    assert [round(image[0].float().mean().item() / 60) for image, _ in read] == [1, 2, 0, 2, 3]
    assert all(target is None for _, target in read)


def test_a_folder_without_pictures_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(FileNotFoundError, match=rf"no pictures in .*{tmp_path.name}.*\.png"):
        PictureFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        PictureFolder(tmp_path / "notes.txt")


def test_a_folder_of_masks_is_read_for_training(tmp_path):
    folder = celeb(tmp_path)
    source = MaskConfidence("mask", class_weights=folder.weights({"hair": 1.0}), falloff=0)
    read = read_training_set(folder, source, 8, progress=False)
    # Row 3 and 4 are mixed by the resize.
    for target, hair in zip(read.targets[:, 0], (slice(0, 3), slice(5, 8)), strict=True):
        assert (target[hair] == 255).all()
        assert (target == 255).sum() + (target == 0).sum() >= 6 * 8
