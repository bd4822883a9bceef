"""Texture: each sample by its own draw, at any size, and each operation what its name says."""

from __future__ import annotations

import io
import math

import pytest
import torch
import torch.nn.functional as F
from kornia.augmentation import AugmentationSequential
from kornia.filters import gaussian_blur2d, median_blur
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from infill_aug.variation import texture
from infill_aug.variation.operation import Operation, find_operation, list_operations

NAMES = list_operations("texture")
SIZES = [(1, 1, 5), (7, 33, 5), (33, 7, 1), (64, 64, 5), (513, 40, 1)]


def picture(height: int = 64, width: int = 64, count: int = 1) -> Tensor:
    """Shapes of several sizes with edges, in colour, neither black nor white anywhere."""
    generator = torch.Generator().manual_seed(height * width)
    coarse, fine = (torch.rand(count, 3, side, side, generator=generator) for side in (3, 12))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
    return 0.2 + 0.4 * smooth + 0.2 * F.interpolate(fine, size=(height, width), mode="nearest").round()


def operation(name: str, low: float = 0.5, high: float = 1.0) -> Operation:
    kind = find_operation(name)
    assert kind is not None
    return kind(strength=(low, high))


def vary(name: str, image: Tensor, strength: float = 1.0, seed: int = 0, **instead: Tensor) -> Tensor:
    """Not clamped."""
    torch.manual_seed(seed)
    one = operation(name)
    drawn = one.draw(torch.full((len(image),), strength), *image.shape[-2:])
    return one.vary(image, **{**drawn, **instead})


def gradient(image: Tensor) -> float:
    return float(image.diff(dim=-1).abs().mean() + image.diff(dim=-2).abs().mean())


# --- all of them ---


def test_the_family_is_complete() -> None:
    expected = (
        "blur detail elastic fractal_noise gaussian_noise jpeg median motion_blur patch_shuffle random_convolution"
    )
    assert set(NAMES) >= {*expected.split(), "sharpen", "shot_noise", "tile"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width", "count"), SIZES)
def test_any_size_comes_back_finite_and_in_range(name: str, height: int, width: int, count: int) -> None:
    for image in (torch.rand(count, 3, height, width), torch.zeros(count, 3, height, width)):
        varied = operation(name, 1, 1)(image)
        assert varied.shape == image.shape
        assert varied.isfinite().all()
        assert torch.equal(varied, varied.clamp(0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_no_strength_leaves_the_picture(name: str) -> None:
    image = picture(count=4)
    assert (operation(name, 0, 0)(image) - image).abs().mean() < 0.005


@pytest.mark.parametrize("name", NAMES)
def test_strength_shows(name: str) -> None:
    image = picture(count=16)
    weak, strong = ((operation(name, one, one)(image) - image).abs().mean() for one in (0.2, 1.0))
    assert 0 < 1.5 * weak < strong


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_changes_in_its_own_way_and_depends_on_no_other(name: str) -> None:
    image = picture().expand(4, -1, -1, -1)
    torch.manual_seed(3)
    drawn = operation(name).draw(torch.full((4,), 0.8), 64, 64)
    varied = operation(name).vary(image, **drawn)
    assert torch.pdist(varied.flatten(1)).min() > 0
    for index in range(4):
        alone = operation(name).vary(image[:1], **{key: value[index : index + 1] for key, value in drawn.items()})
        assert torch.allclose(alone[0], varied[index], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_drawn_parameters_replay_exactly_and_the_picture_is_not_written_to(name: str) -> None:
    image, one = picture(count=3), operation(name)
    before = image.clone()
    assert torch.equal(one(image), one(image, params=one._params))
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", NAMES)
def test_works_in_a_sequence_of_kornia(name: str) -> None:
    image = picture(count=2)
    sequence = AugmentationSequential(operation(name, 1, 1), data_keys=["input"])
    varied = sequence(image)
    assert varied.shape == image.shape
    assert not torch.equal(varied, image)
    assert torch.equal(sequence(image, params=sequence._params), varied)


def test_only_what_moves_content_says_so() -> None:
    assert {name for name in NAMES if operation(name).moves} == {"elastic", "patch_shuffle", "tile"}


# --- noise ---


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise"])
def test_noise_has_no_mean_and_a_deviation_that_follows_strength(name: str) -> None:
    image = picture(128, 128, 8)
    weak, strong = (vary(name, image, strength) - image for strength in (0.25, 1.0))
    assert strong.mean().abs() < 0.002
    assert torch.allclose(strong.std(dim=(1, 2, 3)), 4 * weak.std(dim=(1, 2, 3)), rtol=1e-3)


def test_noise_is_grey_for_some_samples_and_coloured_for_others() -> None:
    image = picture(count=32)
    noise = vary("gaussian_noise", image) - image
    grey = (noise - noise[:, :1]).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 5 < grey.sum() < 27


def test_shot_noise_grows_with_the_root_of_the_light() -> None:
    bright, dark = (vary("shot_noise", torch.full((4, 3, 64, 64), light)) - light for light in (0.9, 0.1))
    assert torch.allclose(bright.std(), 3 * dark.std(), rtol=1e-3)


def test_fractal_noise_has_as_much_detail_in_large_as_in_small() -> None:
    field = operation("fractal_noise").draw(torch.ones(8), 128, 128)["field"]
    assert torch.allclose(field.mean(dim=(2, 3)), torch.zeros(8, 1), atol=1e-4)
    assert torch.allclose(field.std(dim=(2, 3)), torch.ones(8, 1), atol=1e-2)
    near, middle, far = (float((field[..., step:] - field[..., :-step]).square().mean()) for step in (1, 8, 48))
    assert 2.25 * near < 1.5 * middle < far


# --- sharpness ---


@pytest.mark.parametrize("sigma", [1.5, 3.0])
def test_blur_is_that_of_kornia(sigma: float) -> None:
    image = picture(96, 130, 2)
    expected = gaussian_blur2d(image, 6 * math.ceil(sigma) + 1, torch.full((2, 2), sigma), "replicate")
    difference = texture.blur(image, torch.full((2,), sigma), sigma) - expected
    assert difference.abs().mean() < 0.1 * (image - expected).abs().mean()


@pytest.mark.parametrize("name", ["blur", "motion_blur", "median"])
def test_smoothing_lowers_the_gradient(name: str) -> None:
    image = picture(128, 128, 4)
    assert gradient(vary(name, image)) < gradient(vary(name, image, 0.1)) < gradient(image)


@pytest.mark.parametrize("name", ["sharpen", "detail"])
def test_sharpening_raises_the_gradient_and_keeps_means_and_flat_areas(name: str) -> None:
    image, flat = picture(128, 128, 4), torch.full((4, 3, 128, 128), 0.4)
    sharp = vary(name, image)
    assert gradient(sharp) > gradient(vary(name, image, 0.4)) > gradient(image)
    assert torch.allclose(sharp.mean(dim=(2, 3)), image.mean(dim=(2, 3)), atol=0.01)
    assert torch.allclose(vary(name, flat), flat, atol=1e-4)


def test_detail_of_each_size_has_a_gain_of_its_own() -> None:
    fine = (torch.arange(64) % 2).float().expand(1, 3, 64, 64) - 0.5
    coarse = (torch.arange(64) // 4 % 2).float().expand(1, 3, 64, 64) - 0.5
    gains = torch.tensor([[1.0, 0.0]])
    of_fine, of_coarse = ((vary("detail", one, gains=gains) - one).abs().mean() for one in (fine, coarse))
    assert of_fine > 0.4
    assert of_fine > 2 * of_coarse


def test_motion_blur_smears_along_its_line_only() -> None:
    point = torch.zeros(1, 3, 64, 64)
    point[..., 32, 32] = 1
    smeared = vary("motion_blur", point, line=torch.tensor([[0.0, 5.0]]))
    assert smeared[0, 0].sum() == pytest.approx(1, abs=1e-3)
    assert smeared[0, 0, 31:34].sum() > 0.98
    assert smeared[0, 0, 32, 30:35].min() > 0.1


def test_median_is_that_of_kornia_in_small_pictures() -> None:
    image = torch.rand(2, 3, 40, 50)
    expected = median_blur(image, 3, "replicate")
    assert torch.allclose(vary("median", image, weight=torch.ones(2)), expected, atol=0.5 / 255 + 1e-6)


def test_median_removes_points_and_keeps_edges() -> None:
    edge = torch.full((1, 3, 224, 224), 0.2)
    edge[..., 100:] = 0.8
    points = edge.clone()
    points[..., 20::20, 20::20] = 1
    assert torch.allclose(vary("median", points, weight=torch.ones(1)), edge)


# --- file and surface ---


@pytest.mark.parametrize("quality", [10, 30])
def test_jpeg_is_that_of_libjpeg(quality: int) -> None:
    image = (picture(100, 75)[0] * 255).round() / 255
    file = io.BytesIO()
    to_pil_image(image).save(file, "jpeg", quality=quality, subsampling=2)
    expected = pil_to_tensor(Image.open(file)).float() / 255
    result = vary("jpeg", image[None], coarse=torch.tensor([50 / quality]), weight=torch.ones(1))[0].clamp(0, 1)
    assert (result - expected).abs().mean() < 0.3 * (image - expected).abs().mean()


def test_jpeg_leaves_blocks_of_eight() -> None:
    image = F.interpolate(picture(6, 6), size=(64, 64), mode="bicubic")
    steps = vary("jpeg", image).diff(dim=-1).abs().mean(dim=(0, 1, 2))
    edges = torch.arange(63) % 8 == 7
    assert steps[edges].mean() > 3 * steps[~edges].mean()


def test_elastic_moves_without_folding() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    bent = vary("elastic", torch.stack([y, x, x]).expand(8, -1, -1, -1), 0.5)[..., 8:-8, 8:-8]  # the border mirrors
    assert (bent[:, 0] - y[8:-8, 8:-8]).abs().amax(dim=(1, 2)).min() > 1
    down, right = (bent[:, :2].diff(dim=dim)[..., :47, :47] for dim in (2, 3))
    assert (down[:, 0] * right[:, 1] - down[:, 1] * right[:, 0]).min() > 0


def test_random_convolution_keeps_mean_deviation_and_place_of_edges() -> None:
    image = picture(count=8)
    mixed = vary("random_convolution", image)
    assert torch.allclose(mixed.mean(dim=(2, 3)), image.mean(dim=(2, 3)), atol=1e-4)
    assert torch.allclose(mixed.std(dim=(2, 3)), image.std(dim=(2, 3)), rtol=0.01)
    flat, edges = (F.max_pool2d(one.diff(dim=-1).abs().mean(dim=1), 5, 1, 2) for one in (mixed, image))
    assert flat[edges < edges.mean()].mean() < 0.7 * flat[edges >= edges.mean()].mean()


@pytest.mark.parametrize("side", [4, 8])
def test_patch_shuffle_keeps_every_pixel_where_tiles_divide_the_picture(side: int) -> None:
    image, order = torch.rand(2, 3, 64, 64), torch.stack([torch.randperm(side**2) for _ in range(2)])
    shuffled = vary("patch_shuffle", image, side=torch.full((2,), side), order=order)
    tiles, moved = (F.pixel_unshuffle(one, 64 // side).flatten(2) for one in (image, shuffled))
    assert torch.equal(moved, tiles.gather(2, order[:, None].expand(-1, tiles.shape[1], -1)))
    assert torch.equal(shuffled.flatten(2).sort().values, image.flatten(2).sort().values)


def test_tile_mirrors_a_part_that_stays_where_it_is() -> None:
    image = torch.rand(1, 3, 64, 64)
    tiled = vary("tile", image, start=torch.full((1, 2), 0.25), size=torch.full((1, 2), 0.5))
    assert torch.equal(tiled[..., 16:48, 16:48], image[..., 16:48, 16:48])
    assert torch.equal(tiled[..., 48:], tiled[..., 32:48].flip(-1))
    assert torch.equal(tiled[..., :16, :], tiled[..., 16:32, :].flip(-2))


@pytest.mark.parametrize("name", ["blur", "motion_blur"])
def test_lengths_scale_with_the_picture(name: str) -> None:
    lengths = []
    for side in (64, 256):
        torch.manual_seed(0)
        lengths.append(next(iter(operation(name).draw(torch.ones(4), side, side).values())))
    assert torch.allclose(4 * lengths[0], lengths[1])
