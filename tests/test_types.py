import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image as PILImage
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from infill_aug.types import CONFIDENCE, IMAGE, ConfidenceMap, check_confidence, quantise_confidence

BILINEAR = InterpolationMode.BILINEAR
DTYPES = (torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16)

# fill=None where torchvision would else blend the picture's own rim with its fill a second time.
INTERPOLATING = {
    "shrink": v2.Resize((11, 14)),
    "grow": v2.Resize((50, 33)),
    "shrink without antialias": v2.Resize((11, 14), antialias=False),
    "random resized crop": v2.RandomResizedCrop((16, 20)),
    "affine": v2.RandomAffine(30, (0.2, 0.2), (0.7, 1.5), 15, interpolation=BILINEAR, fill=None),
    "rotation": v2.RandomRotation(45, interpolation=BILINEAR, fill=None),
    "rotation that expands": v2.RandomRotation(45, interpolation=BILINEAR, expand=True, fill=None),
    "perspective": v2.RandomPerspective(0.4, p=1.0, fill=None),
    "elastic": v2.ElasticTransform(30.0, 2.0, fill=None),
    "scale jitter": v2.ScaleJitter((24, 30)),
    "random shortest size": v2.RandomShortestSize([12, 17, 31]),
    "random resize": v2.RandomResize(10, 40),
}
MOVING = {
    "horizontal flip": v2.RandomHorizontalFlip(p=1.0),
    "vertical flip": v2.RandomVerticalFlip(p=1.0),
    "crop": v2.RandomCrop((9, 13)),
    "crop with reflected margin": v2.RandomCrop((30, 30), padding=8, padding_mode="reflect"),
    "crop that pads": v2.RandomCrop((40, 44), pad_if_needed=True),
    "centre crop": v2.CenterCrop((10, 15)),
    "centre crop that pads": v2.CenterCrop((40, 44)),
    "pad": v2.Pad((1, 2, 3, 4)),
    "pad with the edge": v2.Pad(5, padding_mode="edge"),
    "zoom out": v2.RandomZoomOut(p=1.0),
    "compose": v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(16), v2.Pad(2), v2.RandomVerticalFlip()]),
}


def together(transform, confidence):
    """The same map as image and as confidence map, through one call of ``transform``."""
    image = tv_tensors.Image(torch.as_tensor(confidence).as_subclass(torch.Tensor).expand(3, -1, -1))
    out = transform({IMAGE: image, CONFIDENCE: ConfidenceMap(confidence), "label": 3})
    assert isinstance(out[CONFIDENCE], ConfidenceMap)
    assert out[CONFIDENCE].shape == (1, *out[IMAGE].shape[1:])
    assert out[CONFIDENCE].dtype == confidence.dtype
    return out[IMAGE].as_subclass(torch.Tensor)[:1], out[CONFIDENCE].as_subclass(torch.Tensor)


def smooth_map(height=24, width=30):
    """Rises from 0 to 0.9 in both directions, so that every misplaced pixel shows."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None, :]
    return (0.9 * (0.3 * y + 0.7 * x**2))[None]


@pytest.mark.parametrize("trial", range(3))
@pytest.mark.parametrize("name", INTERPOLATING)
def test_a_map_moves_in_lockstep_with_its_image_where_pixels_are_interpolated(name, trial):
    torch.manual_seed(trial)
    image, confidence = together(INTERPOLATING[name], smooth_map())
    torch.testing.assert_close(confidence, image, rtol=0, atol=1e-5)
    assert len(confidence.unique()) > 50


@pytest.mark.parametrize("trial", range(3))
@pytest.mark.parametrize("name", INTERPOLATING)
def test_an_eight_bit_map_moves_in_lockstep_with_its_image(name, trial):
    torch.manual_seed(trial)
    image, confidence = together(INTERPOLATING[name], quantise_confidence(smooth_map()))
    assert (confidence.int() - image.int()).abs().max() <= 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MOVING)
def test_a_map_moves_bit_for_bit_with_its_image_where_pixels_only_move(name, dtype):
    noise = torch.randint(0, 256, (1, 24, 30), dtype=torch.uint8)
    image, confidence = together(MOVING[name], noise if dtype == torch.uint8 else (noise.double() / 255).to(dtype))
    assert torch.equal(confidence, image)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", INTERPOLATING)
def test_every_dtype_is_kept_and_stays_in_range(name, dtype):
    confidence = ConfidenceMap(torch.ones(1, 24, 30, dtype=dtype) * (255 if dtype == torch.uint8 else 1))
    out = INTERPOLATING[name](tv_tensors.Image(torch.rand(3, 24, 30)), confidence)[1]
    assert out.dtype == dtype
    check_confidence(out)
    assert out.max() == confidence.max()


@pytest.mark.parametrize("crop", [v2.FiveCrop((9, 13)), v2.TenCrop((9, 13))], ids=["five", "ten"])
def test_five_and_ten_crops_of_a_map_are_those_of_its_image(crop):
    noise = torch.rand(1, 24, 30)
    out = crop({IMAGE: tv_tensors.Image(noise.expand(3, -1, -1)), CONFIDENCE: ConfidenceMap(noise)})
    assert len(out[CONFIDENCE]) == len(out[IMAGE]) in (5, 10)
    for image, confidence in zip(out[IMAGE], out[CONFIDENCE], strict=True):
        assert isinstance(confidence, ConfidenceMap)
        assert torch.equal(confidence.as_subclass(torch.Tensor), image.as_subclass(torch.Tensor)[:1])


def test_a_crop_by_boxes_takes_the_map_along():
    noise = torch.rand(1, 24, 30)
    boxes = tv_tensors.BoundingBoxes([[4, 4, 20, 20]], format="XYXY", canvas_size=(24, 30))
    for trial in range(5):
        torch.manual_seed(trial)
        sample = {IMAGE: tv_tensors.Image(noise.expand(3, -1, -1)), CONFIDENCE: ConfidenceMap(noise), "boxes": boxes}
        out = v2.RandomIoUCrop()({**sample, "labels": torch.zeros(1)})
        assert torch.equal(out[CONFIDENCE].as_subclass(torch.Tensor), out[IMAGE].as_subclass(torch.Tensor)[:1])


def test_batches_of_maps_move_like_single_ones():
    maps = torch.rand(4, 1, 12, 15)
    for kernel in (
        lambda m: F.resize(m, [7, 9]),
        lambda m: F.rotate(m, 30.0),
        lambda m: F.horizontal_flip(m),
        lambda m: F.resized_crop(m, 2, 3, 6, 7, [9, 9]),
        lambda m: F.pad(m, [1, 2]),
    ):
        alone = torch.stack([kernel(ConfidenceMap(one)).as_subclass(torch.Tensor) for one in maps])
        torch.testing.assert_close(kernel(ConfidenceMap(maps)).as_subclass(torch.Tensor), alone, rtol=0, atol=1e-6)


def test_a_ramp_stays_a_ramp_and_is_not_read_by_nearest_neighbour():
    ramp = ConfidenceMap(torch.linspace(0, 0.99, 40).expand(1, 8, 40))
    for width in (20, 80, 200):
        row = F.resize(ramp, [8, width], interpolation=InterpolationMode.NEAREST)[0, 4]
        assert len(row.unique()) >= 0.95 * width
        assert (row.diff() >= -1e-6).all()
        assert row.diff().max() < 2.1 * 0.99 / width + 1e-3


@given(
    scale=st.sampled_from([0.125, 0.3, 0.5, 0.77, 1.0, 1.4, 3.0]),
    angle=st.floats(-180, 180),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.003, 0.05, 0.5]),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
def test_every_pixel_an_object_contributes_to_noticeably_has_full_confidence(scale, angle, seed, share, dtype):
    generator = torch.Generator().manual_seed(seed)
    inside = torch.rand(1, 48, 64, generator=generator) < share
    inside[0, 20, 30] = True
    full = 255 if dtype == torch.uint8 else 1
    size = [round(48 * scale), round(64 * scale)]
    moves = {
        "resize": lambda x: F.resize(x, size),
        "rotate": lambda x: F.rotate(x, angle, interpolation=BILINEAR, expand=True),
        "affine": lambda x: F.affine(x, angle, [3, 2], max(scale, 0.3), [10.0, 0.0], interpolation=BILINEAR),
        "resized crop": lambda x: F.resized_crop(x, 5, 7, 30, 40, size),
    }
    for name, move in moves.items():
        contribution = move(tv_tensors.Image(inside.float()))
        moved = move(ConfidenceMap((inside * full).to(dtype)))
        assert (moved[contribution > 1 / 256] == full).all(), name
        assert (moved[contribution < 1e-6] < full).all(), f"{name} spread full confidence"


@given(
    size=st.tuples(st.integers(3, 70), st.integers(3, 70)),
    interpolation=st.sampled_from(
        [InterpolationMode.NEAREST, InterpolationMode.NEAREST_EXACT, InterpolationMode.BILINEAR]
    ),
    antialias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example((10, 67), InterpolationMode.BILINEAR, False, 2)  # one axis shrinks, the other grows a little
def test_an_object_pixel_is_protected_whichever_way_its_image_is_resized(size, interpolation, antialias, seed):
    inside = torch.rand(1, 48, 64, generator=torch.Generator().manual_seed(seed)) < 0.1
    transform = v2.Resize(size, interpolation=interpolation, antialias=antialias)
    image, confidence = transform(tv_tensors.Image(inside.float()), ConfidenceMap(inside.float()))
    assert (confidence[image > 1 / 256] == 1).all()


@given(seed=st.integers(0, 2**32 - 1))
def test_an_object_pixel_is_protected_where_its_image_is_turned_by_nearest_neighbour(seed):
    torch.default_generator.manual_seed(seed)
    inside = torch.rand(1, 24, 30) < 0.1
    for transform in (v2.RandomAffine(180, (0.3, 0.3), (0.5, 2.0), 20), v2.RandomRotation(180, expand=True)):
        image, confidence = transform(tv_tensors.Image(inside.float()), ConfidenceMap(inside.float()))
        assert (confidence[image > 0] == 1).all()


def test_protection_survives_a_chain_of_transforms():
    confidence = torch.zeros(1, 96, 96, dtype=torch.uint8)
    confidence[:, 40:56, 40:56] = 255
    chain = v2.Compose([v2.Resize(64), v2.RandomRotation(30, BILINEAR), v2.RandomResizedCrop(48, (0.6, 1.0))])
    for trial in range(5):
        torch.manual_seed(trial)
        image, moved = chain(tv_tensors.Image(confidence.expand(3, -1, -1) > 0).float(), ConfidenceMap(confidence))
        assert (image[:1] > 0.05).any()
        assert (moved[image[:1] > 0.05] == 255).all()


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomAffine(40, (0.3, 0.3), (0.5, 0.9), 10, interpolation=BILINEAR, fill=127),
        v2.RandomAffine(40, (0.3, 0.3), (0.5, 0.9), fill=(1, 2, 255)),
        v2.RandomRotation((40, 50), interpolation=BILINEAR, expand=True, fill=127),
        v2.RandomPerspective(0.8, p=1.0, fill=127),
        v2.ElasticTransform(200.0, 3.0, fill=127),
        v2.Pad(9, fill=127),
        v2.RandomZoomOut(fill=127, p=1.0),
        v2.RandomCrop(44, pad_if_needed=True, fill=127),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_the_fill_of_an_image_does_not_leak_into_its_map(transform):
    image = tv_tensors.Image(torch.zeros(3, 24, 30, dtype=torch.uint8))
    seen, confidence = transform(image, ConfidenceMap(torch.full((1, 24, 30), 40, dtype=torch.uint8)))
    assert confidence.max() <= 40
    assert (confidence == 0).any()
    assert (confidence[seen[-1:] > 100] <= 40).all()
    assert (seen > 100).any(), "the transform filled nothing: it shows nothing"


@pytest.mark.parametrize(
    "transform",
    [
        v2.ColorJitter(0.5, 0.5, 0.5, 0.5),
        v2.RandomGrayscale(p=1.0),
        v2.RandomPhotometricDistort(p=1.0),
        v2.RandomInvert(p=1.0),
        v2.RandomSolarize(0.5, p=1.0),
        v2.RandomAutocontrast(p=1.0),
        v2.RandomAdjustSharpness(2.0, p=1.0),
        v2.GaussianBlur(3),
        v2.GaussianNoise(),
        v2.Normalize([0.5] * 3, [0.2] * 3),
        v2.ToDtype(torch.float64, scale=True),
        v2.RandomErasing(p=1.0),
    ],
    ids=lambda transform: type(transform).__name__,
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_photometric_transforms_leave_a_map_alone(transform, dtype):
    noise = torch.randint(0, 256, (1, 16, 16), dtype=torch.uint8)
    confidence = ConfidenceMap(noise if dtype == torch.uint8 else noise / 255)
    image = tv_tensors.Image(torch.rand(3, 16, 16))
    seen, out = transform(image, confidence)
    assert isinstance(out, ConfidenceMap)
    assert out.dtype == dtype
    assert torch.equal(out, confidence)
    assert seen.dtype != image.dtype or not torch.equal(seen, image) or isinstance(transform, v2.ToDtype)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.full((1, 2, 2), torch.nan), "NaN"),
        (torch.tensor([[[0.0, torch.nan]]], dtype=torch.bfloat16), "NaN"),
        (torch.tensor([[0.0, 1.5]]), "from 0 to 1.5"),
        (torch.tensor([[-0.25, 1.0]]), "from -0.25 to 1"),
        (torch.full((1, 2, 2), torch.inf), "inf"),
        (torch.zeros(3, 4, 5), r"\(3, 4, 5\)"),
        (torch.zeros(7), r"\(7,\)"),
        (torch.zeros(2, 2, dtype=torch.int64), "int64"),
        (torch.zeros(2, 2, dtype=torch.bool), "bool"),
    ],
)
def test_errors_name_what_keeps_a_tensor_from_being_a_map(data, message):
    with pytest.raises(ValueError, match=message):
        ConfidenceMap(data)


@pytest.mark.parametrize(
    "data",
    [
        torch.rand(4, 5),
        torch.rand(1, 4, 5),
        torch.rand(2, 1, 4, 5),
        torch.randint(0, 256, (1, 4, 5), dtype=torch.uint8),
        np.random.default_rng(0).random((4, 5)),
        np.full((1, 4, 5), 200, np.uint8),
        [[0.0, 0.5], [1.0, 0.25]],
        PILImage.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)),
    ],
    ids=["HW", "1HW", "B1HW", "uint8", "array", "uint8 array", "list", "PIL"],
)
def test_everything_that_is_a_map_is_wrapped_with_its_values(data):
    confidence = ConfidenceMap(data)
    wanted = F.pil_to_tensor(data) if isinstance(data, PILImage.Image) else torch.as_tensor(data)
    assert confidence.shape[-3] == 1
    assert confidence.dtype == wanted.dtype
    assert torch.equal(confidence.as_subclass(torch.Tensor).reshape(wanted.shape), wanted)


def test_an_empty_batch_of_maps_is_no_error():
    assert ConfidenceMap(torch.zeros(0, 1, 4, 4)).shape == (0, 1, 4, 4)


def test_asking_for_eight_bits_keeps_what_the_values_mean():
    confidence = ConfidenceMap(torch.tensor([[0.0, 0.5, 1.0]]), dtype=torch.uint8)
    assert confidence.flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_and_pickles_are_maps_with_the_same_values(dtype):
    confidence = ConfidenceMap((torch.rand(1, 4, 5) * (255 if dtype == torch.uint8 else 1)).to(dtype))
    for twin in (copy.deepcopy(confidence), copy.copy(confidence), pickle.loads(pickle.dumps(confidence))):
        assert isinstance(twin, ConfidenceMap)
        assert twin.dtype == dtype
        assert torch.equal(twin, confidence)
    deep = copy.deepcopy(confidence)
    deep += 0 * deep
    deep[...] = 0
    assert confidence.as_subclass(torch.Tensor).any()


def test_default_collate_stacks_maps_into_a_plain_eight_bit_batch():
    maps = [ConfidenceMap(torch.full((1, 3, 4), i, dtype=torch.uint8)) for i in range(5)]
    batch = default_collate([{CONFIDENCE: one, "label": i} for i, one in enumerate(maps)])[CONFIDENCE]
    assert batch.shape == (5, 1, 3, 4)
    assert batch.dtype == torch.uint8
    assert batch[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_only_full_confidence_becomes_255_and_order_and_value_survive_eight_bits(values):
    values = torch.tensor(sorted(values))
    levels = quantise_confidence(values)
    assert levels.dtype == torch.uint8
    assert ((levels == 255) == (values == 1)).all()
    assert (levels.int().diff() >= 0).all()
    assert ((levels.float() / 255 - values).abs() <= 1.001 / 255).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_eight_bits_of_every_dtype_keep_full_confidence_apart(dtype):
    below = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    assert quantise_confidence(torch.stack([below, torch.ones((), dtype=dtype)])).tolist()[1] == 255
    assert quantise_confidence(below) < 255


def test_eight_bit_confidence_is_returned_as_it_is():
    levels = torch.arange(256, dtype=torch.uint8)
    assert quantise_confidence(levels) is levels
    assert torch.equal(quantise_confidence(levels / 255), levels)
