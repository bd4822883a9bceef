import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from tiny_backends import PLAIN
from torchvision import tv_tensors

from infill_aug.descriptor import TaskDescriptor
from infill_aug.dynamic_mask import DynamicMask, generate_dynamic_mask
from infill_aug.functional.masks import masked_share
from infill_aug.infill import load_backend
from infill_aug.infill.backend import PoolSample
from infill_aug.profile import TaskProfile, list_profiles
from infill_aug.types import ConfidenceMap

HAIR = TaskDescriptor.from_json(
    '{"task": "hair_color_classification", "object": "hair", "style": "photorealistic", "complexity": "medium", '
    '"seed": 12345}'
)
HEIGHT, WIDTH = 24, 32
BOX = torch.tensor([[8.0, 6.0, 20.0, 18.0]])
OBJECT = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
OBJECT[6:18, 8:20] = True
TARGETS = {"labelled_boxes": BOX, "labelled_masks": OBJECT, "centre_prior": None}
TARGETS |= dict.fromkeys(("salient_object", "object_identification", "pets"))
WITHOUT_WEIGHTS = {"person", "hair_color", "facial_emotion"}


def picture(seed=0, height=HEIGHT, width=WIDTH):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_the_bundled_profiles_are_all_tried():
    assert set(TARGETS) | WITHOUT_WEIGHTS == set(list_profiles())


@pytest.mark.parametrize("profile", sorted(WITHOUT_WEIGHTS))
def test_a_profile_that_has_to_learn_first_says_how(profile):
    with pytest.raises(ValueError, match=f"infill-aug profiles train {profile}"):
        generate_dynamic_mask(picture(), profile)


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("profile", TARGETS)
def test_a_mask_at_a_threshold_is_what_a_backend_fills(profile, backend):
    """Mask first, then fill: the two calls that everything else is made of."""
    if backend == "telea":
        pytest.importorskip("cv2")
    image = picture()
    found = generate_dynamic_mask(image, profile, threshold=0.6, target=TARGETS[profile])
    filler = load_backend(backend)
    if filler.pool_size:
        plain = torch.zeros(1, 16, 16, dtype=torch.uint8)
        filler.prepare([PoolSample("a", torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), plain)])
    fill = filler.generate_infill(found.masked_image, found.mask, HAIR)
    kept = ~found.mask.expand_as(fill)
    assert torch.equal(found.masked_image[kept], image[None][kept])
    assert torch.equal(fill[kept], image[None][kept])
    assert (found.masked_image[~kept] == 0).all()
    assert not torch.equal(fill[~kept], image[None][~kept])
    assert 0.3 < masked_share(found.mask).item() < 0.65
    assert found.threshold == 0.6


def test_the_result_has_the_documented_shapes_and_types():
    found = generate_dynamic_mask(picture(), "centre_prior")
    assert isinstance(found, DynamicMask)
    confidence, threshold, mask, masked_image = found
    assert confidence.shape == mask.shape == (1, 1, HEIGHT, WIDTH)
    assert masked_image.shape == (1, 3, HEIGHT, WIDTH)
    assert (confidence.dtype, mask.dtype, masked_image.dtype) == (torch.float32, torch.bool, torch.float32)
    assert confidence.min() >= 0
    assert confidence.max() <= 1
    assert threshold == TaskProfile.load("centre_prior").threshold


ARRAY = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        ARRAY,
        PILImage.fromarray(ARRAY),
        torch.from_numpy(ARRAY).permute(2, 0, 1),
        torch.from_numpy(ARRAY).permute(2, 0, 1)[None],
        tv_tensors.Image(torch.from_numpy(ARRAY).permute(2, 0, 1)),
        torch.from_numpy(ARRAY).permute(2, 0, 1).float() / 255,
    ],
    ids=["array", "PIL", "tensor", "batch", "Image", "float"],
)
def test_every_kind_of_picture_gives_the_same_result(image):
    wanted = generate_dynamic_mask(torch.from_numpy(ARRAY).permute(2, 0, 1), "centre_prior", 0.5)
    found = generate_dynamic_mask(image, "centre_prior", 0.5)
    assert torch.equal(found.mask, wanted.mask)
    assert torch.equal(found.masked_image, wanted.masked_image)


@settings(max_examples=40)
@given(
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    threshold=st.floats(0, 1),
    profile=st.builds(
        TaskProfile,
        name=st.just("p"),
        mode=st.sampled_from(["quantile", "absolute"]),
        clean=st.integers(0, 2),
        protect_above=st.sampled_from([0.0, 0.5, 0.95]),
        falloff=st.floats(0.05, 2),
    ),
    fill=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_kept_pixels_are_bit_identical_to_the_input_and_masked_ones_hold_the_fill(
    dtype, size, threshold, profile, fill, seed
):
    image = picture(seed, *size)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    found = generate_dynamic_mask(image, profile, threshold, fill)
    wanted = image.float() / 255 if dtype == torch.uint8 else image.float()
    kept = ~found.mask.expand(1, 3, -1, -1)
    assert torch.equal(found.masked_image[kept].view(torch.int32), wanted[None][kept].view(torch.int32))
    assert (found.masked_image[~kept] == fill).all()
    assert not found.mask[found.confidence > profile.protect_above + 0.5 / 255].any()


def test_a_higher_threshold_masks_more_and_a_lower_one_reveals_more():
    for profile, target in TARGETS.items():
        for mode in ("quantile", "absolute"):
            fields = {**TaskProfile.load(profile).to_dict(), "mode": mode}
            masks = [generate_dynamic_mask(picture(), fields, t / 10, target=target).mask for t in range(11)]
            for small, large in itertools.pairwise(masks):
                assert (small <= large).all()
            assert masked_share(masks[0]).item() == 0 or mode == "absolute"
            assert masked_share(masks[-1]).item() > 0.5


@pytest.mark.parametrize("profile", ["labelled_boxes", "labelled_masks"])
def test_the_labelled_object_is_kept_whole_at_every_threshold(profile):
    for threshold in (0.0, 0.5, 1.0):
        found = generate_dynamic_mask(picture(), profile, threshold, target=TARGETS[profile])
        assert not found.mask[..., OBJECT].any()
        assert (found.confidence[..., OBJECT] == 1).all()
    assert found.mask[..., ~OBJECT].float().mean() > 0.95


def test_a_batch_gives_what_its_images_give_alone():
    images = torch.stack([picture(seed) for seed in range(3)])
    for profile, target in TARGETS.items():
        targets = None if target is None else [target, target * 0, target]
        together = generate_dynamic_mask(images, profile, 0.5, target=targets)
        for i in range(3):
            alone = generate_dynamic_mask(images[i], profile, 0.5, target=targets and targets[i])
            for one, all_of_them in zip(
                (alone.confidence, alone.mask, alone.masked_image),
                (together.confidence, together.mask, together.masked_image),
                strict=True,
            ):
                assert torch.equal(one[0], all_of_them[i])


def test_masks_of_a_batch_may_come_as_one_tensor():
    images, masks = torch.stack([picture(), picture(1)]), torch.stack([OBJECT, OBJECT.roll(3, 0)])
    together = generate_dynamic_mask(images, "labelled_masks", 0.5, target=masks)
    alone = generate_dynamic_mask(images[1], "labelled_masks", 0.5, target=masks[1])
    assert torch.equal(together.mask[1], alone.mask[0])


@pytest.mark.parametrize(
    "confidence",
    [
        torch.linspace(0, 1, HEIGHT * WIDTH).reshape(1, 1, HEIGHT, WIDTH),
        torch.linspace(0, 1, HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH),
        torch.linspace(0, 255, HEIGHT * WIDTH).round().to(torch.uint8).reshape(1, 1, HEIGHT, WIDTH),
        ConfidenceMap(torch.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)),
    ],
    ids=["B1HW", "1HW", "uint8", "ConfidenceMap"],
)
def test_a_map_of_your_own_is_used_in_the_place_of_the_profiles_source(confidence):
    found = generate_dynamic_mask(picture(), "labelled_boxes", 0.5, confidence=confidence)
    assert type(found.confidence) is torch.Tensor
    torch.testing.assert_close(
        found.confidence.flatten(), torch.linspace(0, 1, HEIGHT * WIDTH), rtol=0, atol=0.5001 / 255
    )
    assert found.mask[0, 0, : HEIGHT // 2 - 1].all()
    assert not found.mask[0, 0, HEIGHT // 2 + 1 :].any()


def test_the_input_is_left_as_it_is():
    image, confidence = picture(), torch.rand(1, 1, HEIGHT, WIDTH)
    before = image.clone(), confidence.clone()
    generate_dynamic_mask(image, "centre_prior", 1.0, confidence=confidence)
    assert torch.equal(image, before[0])
    assert torch.equal(confidence, before[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": 1.5}, ValueError, "threshold must lie in 0..1, got 1.5"),
        ({"threshold": float("nan")}, ValueError, "nan"),
        ({"fill": 7.0}, ValueError, "fill.*7.0"),
        ({"confidence": torch.rand(1, 1, 5, 6)}, ValueError, r"\(1, 1, 5, 6\).*\(1, 1, 24, 32\)"),
        ({"confidence": torch.rand(2, 1, HEIGHT, WIDTH)}, ValueError, r"\(2, 1, 24, 32\).*\(1, 1, 24, 32\)"),
        ({"confidence": torch.full((1, HEIGHT, WIDTH), 2.0)}, ValueError, "from 2 to 2"),
        ({"confidence": torch.full((1, HEIGHT, WIDTH), torch.nan)}, ValueError, "NaN"),
        ({"profile": "no_such_profile"}, FileNotFoundError, "no_such_profile.*centre_prior"),
        ({"profile": {"name": "p", "falloff": -1}}, ValueError, "'falloff'"),
        ({"profile": {"name": "p", "source": "mask", "source_options": {"key": "mask"}}}, KeyError, "'mask'"),
        ({"image": torch.full((3, 4, 4), 2.0)}, ValueError, "from 2 to 2"),
        ({"image": "cat.png"}, TypeError, "str"),
        (
            {"image": torch.rand(3, 3, 4, 4), "profile": "labelled_boxes", "target": [BOX, BOX]},
            ValueError,
            "2 targets for 3 images",
        ),
    ],
)
def test_errors_name_the_value_and_what_would_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        generate_dynamic_mask(**{"image": picture(), "profile": "centre_prior", **arguments})


def test_an_empty_batch_is_refused_as_such():
    with pytest.raises(ValueError, match=r"empty|\(0, 3, 4, 4\)"):
        generate_dynamic_mask(torch.zeros(0, 3, 4, 4), "centre_prior")
