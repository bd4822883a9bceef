from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tests_support import picture
from torch.utils._pytree import tree_leaves
from torchvision import tv_tensors

from infill_aug.samples import (
    image_place,
    join_sample,
    label_of,
    label_of_batch,
    pick,
    split_sample,
    to_batch,
    to_uint8_image,
)

RGB = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
CHANNELS_FIRST = torch.from_numpy(RGB).permute(2, 0, 1)


@pytest.mark.parametrize(
    "image",
    [
        RGB,
        PILImage.fromarray(RGB),
        CHANNELS_FIRST,
        tv_tensors.Image(CHANNELS_FIRST),
        np.dstack([RGB, np.zeros((4, 5), np.uint8)]),
        PILImage.fromarray(np.dstack([RGB, np.zeros((4, 5), np.uint8)])),
        torch.cat([CHANNELS_FIRST, torch.zeros(1, 4, 5, dtype=torch.uint8)]),
        CHANNELS_FIRST.float() / 255,
        CHANNELS_FIRST.double() / 255,
        RGB.astype(np.float32) / 255,
        RGB.astype(np.uint16) * 256 + 99,
        RGB[::-1].copy()[::-1],
        np.asfortranarray(RGB),
    ],
    ids=[
        "array", "PIL", "tensor", "Image", "RGBA array", "RGBA PIL", "RGBA tensor", "float32", "float64",
        "float array", "16 bit array", "flipped view", "Fortran order",
    ],
)  # fmt: skip
def test_every_kind_of_colour_picture_gives_the_same_pixels(image):
    pixels = to_uint8_image(image)
    assert type(pixels) is torch.Tensor
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, CHANNELS_FIRST)


@pytest.mark.parametrize(
    "image",
    [
        RGB[..., 0],
        RGB[..., :1],
        PILImage.fromarray(RGB[..., 0]),
        CHANNELS_FIRST[0],
        CHANNELS_FIRST[:1],
        PILImage.fromarray(RGB[..., 0].astype(np.uint16) * 256 + 99),
        PILImage.fromarray(RGB[..., 0].astype(np.int32) * 256 + 99),
    ],
    ids=["array", "one channel array", "PIL", "tensor", "one channel tensor", "16 bit PIL", "32 bit PIL"],
)
def test_grey_pictures_get_three_equal_channels(image):
    pixels = to_uint8_image(image)
    assert torch.equal(pixels, CHANNELS_FIRST[:1].expand(3, -1, -1))


def test_palette_and_black_and_white_pictures_become_colour():
    palette = PILImage.fromarray(np.full((4, 5, 3), (200, 10, 30), np.uint8)).convert("P", palette=PILImage.ADAPTIVE)
    assert (to_uint8_image(palette).float().mean((1, 2)) - torch.tensor([200.0, 10, 30])).abs().max() < 5
    black_and_white = PILImage.fromarray(RGB[..., 0] > 127)
    assert set(to_uint8_image(black_and_white).unique().tolist()) == {0, 255}


def test_a_16_bit_tensor_is_read_like_a_16_bit_array():
    deep = RGB.astype(np.uint16) * 256 + 99
    assert torch.equal(to_uint8_image(torch.from_numpy(deep).permute(2, 0, 1)), CHANNELS_FIRST)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.full((3, 2, 2), 2.0), ValueError, "from 2 to 2.*Normalize"),
        (torch.full((3, 2, 2), -0.5), ValueError, "from -0.5 to -0.5"),
        (torch.full((3, 2, 2), torch.nan), ValueError, "nan"),
        (torch.zeros(2, 2, 2), ValueError, r"\(2, 2, 2\)"),
        (torch.zeros(3, 0, 2), ValueError, r"\(3, 0, 2\)"),
        (torch.zeros(1, 3, 2, 2), ValueError, r"\(1, 3, 2, 2\)"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), ValueError, "int64"),
        (np.zeros((3, 8, 9), np.uint8), ValueError, r"\(3, 8, 9\)"),
        (np.zeros((2, 2, 3), np.int32), ValueError, "int32"),
        ("cat.png", TypeError, "str"),
        (None, TypeError, "NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(image, error, message):
    with pytest.raises(error, match=message):
        to_uint8_image(image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_batch_keeps_the_callers_floating_point_pixels(dtype):
    images = torch.rand(4, 3, 5, 6).to(dtype)
    pictures, unit = to_batch(images)
    assert torch.equal(unit, images.float())
    assert torch.equal(pictures, (images.float() * 255).round().to(torch.uint8))
    assert torch.equal(to_batch(images[2])[1][0], unit[2])


def test_a_batch_of_bytes_is_scaled_exactly():
    images = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    pictures, unit = to_batch(images)
    assert torch.equal(pictures, images)
    assert torch.equal(unit, images.float() / 255)
    assert to_batch(PILImage.fromarray(RGB))[0].shape == (1, 3, 4, 5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_batch_keeps_the_floating_point_pixels_of_arrays_and_of_any_channel_count(channels):
    array = np.random.default_rng(0).random((4, 5, channels)).astype(np.float32)
    colour = array[..., :3] if channels > 1 else array.repeat(3, axis=-1)
    wanted = torch.from_numpy(np.ascontiguousarray(colour)).permute(2, 0, 1)[None]
    assert torch.equal(to_batch(torch.from_numpy(array).permute(2, 0, 1))[1], wanted)
    assert torch.equal(to_batch(array)[1], wanted)


Pair = namedtuple("Pair", "image target")


@pytest.mark.parametrize(
    ("sample", "key", "target"),
    [
        ((RGB, 7), None, 7),
        ([RGB, 7], None, 7),
        (Pair(RGB, 7), None, 7),
        ((RGB, 7, "trimap"), None, (7, "trimap")),
        ((RGB,), None, None),
        ((7, RGB), 1, 7),
        ((7, RGB), -1, 7),
        ({"image": RGB, "label": 7}, None, {"label": 7}),
        ({"img": RGB, "label": 7}, None, {"label": 7}),
        ({"pixel_values": RGB, "labels": 7}, None, {"labels": 7}),
        ({"photo": RGB, "image": "a note"}, "photo", {"image": "a note"}),
        (RGB, None, None),
        (CHANNELS_FIRST, None, None),
        (PILImage.fromarray(RGB), None, None),
    ],
)
def test_image_and_target_of_every_kind_of_sample_are_told_apart(sample, key, target):
    image, rest = split_sample(sample, key)
    assert torch.equal(image, CHANNELS_FIRST)
    assert rest == target
    assert type(rest) is type(target)


def test_a_mapping_without_an_image_is_refused_with_its_keys():
    with pytest.raises(KeyError, match=r"photo.*label"):
        split_sample({"photo": RGB, "label": 7})
    with pytest.raises(KeyError, match=r"scan.*photo"):
        split_sample({"photo": RGB, "label": 7}, "scan")


@pytest.mark.parametrize("position", [2, -3])
def test_a_position_that_a_sample_does_not_have_is_refused(position):
    with pytest.raises((KeyError, IndexError)):
        split_sample((7, RGB), position)


def test_a_target_is_picked_by_key_position_or_path():
    target = (7, {"boxes": [[1, 2, 3, 4]], "ids": torch.tensor([5, 6])})
    assert pick(target, None) is target
    assert pick(target, ()) is target
    assert pick(target, 0) == 7
    assert pick(target, (1, "boxes", 0)) == [1, 2, 3, 4]
    assert pick(target, [1, "ids", -1]) == 6


@pytest.mark.parametrize(
    ("key", "message"), [((1, "masks"), "masks.*boxes"), (2, "2.*tuple"), ((0, "x"), "x.*int"), ("a", "a.*tuple")]
)
def test_a_path_that_leads_nowhere_is_refused_with_what_is_there(key, message):
    with pytest.raises(KeyError, match=message):
        pick((7, {"boxes": []}), key)


@pytest.mark.parametrize(
    ("target", "label"),
    [
        (3, 3),
        ("cat", "cat"),
        (True, True),
        (np.int64(4), 4),
        (np.array(4), 4),
        (torch.tensor(5), 5),
        (torch.tensor(5.0), 5),
        (torch.tensor(5.5), None),
        (torch.tensor(torch.nan), None),
        ((6, "trimap"), 6),
        ([torch.tensor(6), 1], 6),
        ({"label": 5}, 5),
        ({"labels": torch.tensor(2), "boxes": []}, 2),
        ({"label": {"category": "dog"}}, "dog"),
        ({"boxes": []}, None),
        ({"labels": torch.tensor([1, 2])}, None),
        (torch.tensor([1, 2]), None),
        (2.5, None),
        (None, None),
        ((), None),
    ],
)
def test_the_label_of_a_target_is_found_where_there_is_one(target, label):
    found = label_of(target)
    assert found == label
    assert type(found) is type(label)
    hash(found)


def test_labels_of_a_batch_are_its_integers_alone_first_or_by_name_or_none():
    labels = torch.tensor([3, 1])
    for target in (labels, [labels, ["a", "b"]], {"boxes": torch.rand(2, 4), "labels": labels}, ({"label": labels},)):
        assert label_of_batch(target) is labels
    plane = torch.zeros(2, 2, dtype=torch.int64)
    for target in (torch.rand(2), torch.tensor(3), plane, {"mask": labels}, [], "a", None):
        assert label_of_batch(target) is None


@pytest.mark.parametrize(
    ("sample", "image_key"),
    [
        (picture(0), None),
        ([picture(0), 3], None),
        ([3, picture(0)], 1),
        ([3, picture(0), "a"], -2),
        ([picture(0), {"boxes": 2}], None),
        ([picture(0)], None),
        ({"label": 3, "img": picture(0)}, None),
        ({"label": 3, "photo": picture(0)}, "photo"),
    ],
)
def test_what_was_split_is_joined_to_what_it_was(sample, image_key):
    image, target = split_sample(sample, image_key)
    joined = join_sample(image, target, image_place(sample, image_key))
    assert type(joined) is type(sample)
    parts, expected = (tree_leaves(value) for value in (joined, sample))
    assert all(a is b if isinstance(a, str | int) else torch.equal(a, b) for a, b in zip(parts, expected, strict=True))
