import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from tiny_backends import PLAIN

from infill_aug.descriptor import TaskDescriptor
from infill_aug.dynamic_mask import generate_dynamic_mask
from infill_aug.functional.masks import masked_share
from infill_aug.infill import load_backend
from infill_aug.infill.backend import InfillBackend, PartialInfillError, PoolSample
from infill_aug.infill.donor import DonorBackend
from infill_aug.key import image_digest
from infill_aug.process import ProcessedImage, process_image
from infill_aug.samples import to_uint8_image
from infill_aug.variation import Variation

HAIR = {
    "task": "hair_color_classification",
    "object": "hair",
    "style": "photorealistic",
    "complexity": "medium",
    "seed": 12345,
}
HEIGHT, WIDTH = 24, 32


def picture(seed=0, height=HEIGHT, width=WIDTH):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def ready(name):
    """A backend that can fill at once."""
    if name == "telea":
        pytest.importorskip("cv2")
    backend = load_backend(name)
    if backend.pool_size:
        plain = torch.zeros(1, 16, 16, dtype=torch.uint8)
        backend.prepare(
            PoolSample(str(i), torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), plain) for i in range(3)
        )
    return backend


@pytest.mark.parametrize("backend", PLAIN)
def test_one_call_from_descriptor_to_composite(backend, tmp_path):
    """Image and JSON in, refilled image out, from whichever form the JSON has."""
    image, path = picture(), tmp_path / "hair.json"
    path.write_text(json.dumps(HAIR))
    results = [
        process_image(image, descriptor, "centre_prior", ready(backend), threshold=0.6)
        for descriptor in (json.dumps(HAIR), HAIR, path, TaskDescriptor.from_json(HAIR))
        for _ in [torch.manual_seed(0)]
    ]
    for result in results:
        assert isinstance(result, ProcessedImage)
        assert result.image.shape == result.infill.shape == (1, 3, HEIGHT, WIDTH)
        assert result.confidence.shape == result.mask.shape == (1, 1, HEIGHT, WIDTH)
        assert result.image.dtype == result.infill.dtype == result.confidence.dtype == torch.float32
        assert result.threshold == 0.6
        assert ((result.image >= 0) & (result.image <= 1)).all()
        kept = ~result.mask.expand_as(result.image)
        assert torch.equal(result.image[kept], image[None][kept])
        assert not torch.equal(result.image, image[None])
        assert torch.equal(result.image, results[0].image)


def nonsense(infill, mask):
    """A variation that breaks every pixel, in and out of the mask."""
    out = torch.full_like(infill, torch.nan)
    out[:, 1], out[:, 2] = torch.inf, 3.0
    return out


@settings(max_examples=40)
@given(
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float16, torch.bfloat16]),
    backend=st.sampled_from(["push_pull", "noise"]),
    variation=st.sampled_from([None, Variation(1.0, 1.0), nonsense]),
    threshold=st.floats(0, 0.8),  # so that enough is left for push-pull to continue
    feather=st.integers(0, 4),
    size=st.tuples(st.integers(8, 24), st.integers(8, 24)),
    seed=st.integers(0, 2**32 - 1),
)
def test_kept_pixels_are_bit_identical_to_the_input(dtype, backend, variation, threshold, feather, size, seed):
    torch.default_generator.manual_seed(seed)
    image = picture(seed, *size)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    result = process_image(image, HAIR, backend=backend, threshold=threshold, variation=variation, feather=feather)
    wanted = (image.float() / 255 if dtype == torch.uint8 else image.float())[None]
    kept = ~result.mask.expand_as(result.image)
    assert torch.equal(result.image[kept].view(torch.int32), wanted[kept].view(torch.int32))
    assert result.image.isfinite().all()
    assert ((result.image >= 0) & (result.image <= 1)).all()
    assert torch.equal(result.infill[kept], wanted[kept])


def test_floating_point_arrays_are_kept_bit_for_bit_too():
    array = np.random.default_rng(0).random((HEIGHT, WIDTH, 3)).astype(np.float32)
    result = process_image(array, HAIR, threshold=0.5)
    wanted = torch.from_numpy(array).permute(2, 0, 1)[None]
    kept = ~result.mask.expand_as(wanted)
    assert torch.equal(result.image[kept], wanted[kept])


def test_pictures_of_every_kind_give_the_same_result():
    array = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    wanted = process_image(tensor, HAIR, backend="noise").image
    for image in (array, PILImage.fromarray(array), tensor[None], tensor.float() / 255):
        assert torch.equal(process_image(image, HAIR, backend="noise").image, wanted)


@pytest.mark.parametrize("backend", PLAIN)
def test_a_batch_gives_what_its_images_give_alone(backend):
    images = torch.stack([picture(seed) for seed in range(4)])
    filler = ready(backend)
    together = process_image(images, HAIR, backend=filler)
    for i in range(4):
        alone = process_image(images[i], HAIR, backend=filler)
        for one, all_of_them in zip(alone[:4], together[:4], strict=True):
            assert torch.equal(one[0], all_of_them[i])


def test_masks_and_confidence_are_those_of_the_dynamic_mask():
    box = torch.tensor([[8.0, 6.0, 20.0, 18.0]])
    result = process_image(picture(), HAIR, "labelled_boxes", threshold=0.7, target=box)
    found = generate_dynamic_mask(picture(), "labelled_boxes", 0.7, target=box)
    assert torch.equal(result.mask, found.mask)
    assert torch.equal(result.confidence, found.confidence)
    assert torch.equal(result.image[..., 6:18, 8:20], picture()[None, ..., 6:18, 8:20])
    map_of_mine = torch.linspace(0, 1, HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH)
    assert torch.equal(process_image(picture(), HAIR, confidence=map_of_mine).confidence[0], map_of_mine)


def test_masked_pixels_come_from_the_infill_and_the_rim_is_a_blend():
    image = picture()
    hard = process_image(image, HAIR, backend="noise", threshold=0.7, feather=0)
    inside = hard.mask.expand_as(hard.image)
    assert torch.equal(hard.image[inside], hard.infill[inside])
    soft = process_image(image, HAIR, backend="noise", threshold=0.7, feather=4)
    assert torch.equal(soft.infill, hard.infill)
    assert not torch.equal(soft.image, hard.image)
    low, high = torch.minimum(image[None], hard.infill), torch.maximum(image[None], hard.infill)
    assert ((soft.image >= low - 1e-6) & (soft.image <= high + 1e-6)).all()


def test_the_seed_of_the_descriptor_decides_the_fill_and_the_global_seed_does_not():
    results = [process_image(picture(), {**HAIR, "seed": seed}, backend="noise").image for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    torch.manual_seed(99)
    assert torch.equal(process_image(picture(), {**HAIR, "seed": 1}, backend="noise").image, results[0])


def test_the_callers_backend_wins_over_the_descriptors_and_that_over_the_default():
    default = process_image(picture(), HAIR).image
    assert torch.equal(process_image(picture(), HAIR, backend="push_pull").image, default)
    noise = process_image(picture(), {**HAIR, "backend": "noise"}).image
    assert torch.equal(process_image(picture(), HAIR, backend="noise").image, noise)
    assert not torch.equal(noise, default)
    assert torch.equal(process_image(picture(), {**HAIR, "backend": "noise"}, backend="push_pull").image, default)


def test_nothing_is_masked_at_threshold_0_and_the_image_comes_back():
    result = process_image(picture(), HAIR, threshold=0.0)
    assert masked_share(result.mask).item() == 0
    assert torch.equal(result.image[0], picture())


def test_a_variation_changes_the_composite_and_neither_infill_nor_mask():
    plain = process_image(picture(), HAIR)
    varied = process_image(picture(), HAIR, variation=Variation(1.0, 0.5))
    assert torch.equal(plain.infill, varied.infill)
    assert torch.equal(plain.mask, varied.mask)
    assert not torch.equal(plain.image, varied.image)
    assert not process_image(picture().requires_grad_(), HAIR, variation=Variation()).image.requires_grad


def test_an_image_is_not_filled_from_itself():
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    backend = DonorBackend()
    backend.prepare([PoolSample(image_digest(to_uint8_image(image)), image, torch.zeros(1, HEIGHT, WIDTH).byte())])
    with pytest.raises(PartialInfillError, match="other than the image itself"):
        process_image(image, HAIR, backend=backend)


class Refusing(InfillBackend):
    """Refuses dark pictures."""

    name = "refusing"

    def __init__(self):
        super().__init__()

    def _generate(self, image, mask, config, samples):
        if (image.mean((1, 2, 3)) < 0.05).any():
            raise RuntimeError("too dark to fill")
        return torch.rand(image.shape)


def test_a_sample_that_cannot_be_filled_is_an_error_with_the_reason():
    images = torch.stack([picture(), picture() * 0.01, picture(2)])
    with pytest.raises(PartialInfillError, match=r"1 of 3.*sample 1.*too dark to fill") as caught:
        process_image(images, HAIR, backend=Refusing())
    assert caught.value.ok.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"descriptor": {**HAIR, "colour": 1}}, ValueError, "colour"),
        ({"descriptor": {"task": "pets"}}, ValueError, "object"),
        ({"descriptor": "no_such_file.json"}, FileNotFoundError, "no_such_file.json"),
        ({"descriptor": {**HAIR, "backend": "telia"}}, ValueError, "'telia'"),
        ({"descriptor": {**HAIR, "options": {"radius": 3}}}, ValueError, "'radius'.*'push_pull'"),
        ({"profile": "no_such_profile"}, FileNotFoundError, "no_such_profile"),
        ({"profile": "labelled_boxes", "target": {"label": 3}}, (KeyError, ValueError, TypeError), "boxes"),
        ({"backend": "telia"}, ValueError, "'telia'.*'telea'"),
        ({"threshold": 1.5}, ValueError, "1.5"),
        ({"feather": -1}, ValueError, "feather.*-1"),
        ({"variation": lambda infill, mask: infill[..., :-1]}, ValueError, "same shape"),
        ({"image": torch.full((3, 4, 4), 2.0)}, ValueError, "from 2 to 2"),
        ({"confidence": torch.rand(1, 1, 5, 6)}, ValueError, r"\(1, 1, 5, 6\)"),
    ],
)
def test_errors_name_the_value_and_what_would_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        process_image(**{"image": picture(), "descriptor": HAIR, **arguments})
