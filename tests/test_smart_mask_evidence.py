"""Evidence of change: about 1 where there is noise, several times that where there is an edit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as F

from infill_aug.smart_mask.evidence import change_evidence

EDIT = (slice(None), slice(30, 70), slice(40, 90))


def scene(seed: int, height: int = 100, width: int = 140) -> torch.Tensor:
    """A smooth background, some ellipses and a fine texture on the left half, ``(3, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 + 0.4 * F.resize(torch.rand(3, 4, 5, generator=generator), [height, width])
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    for _ in range(6):
        row, column, size = torch.rand(3, generator=generator).tolist()
        inside = (y - row) ** 2 + (x - column) ** 2 < (0.05 + 0.1 * size) ** 2
        image = torch.where(inside, 0.2 + 0.6 * torch.rand(3, 1, 1, generator=generator), image)
    return (image + 0.08 * torch.randn(1, height, width, generator=generator) * (x < 0.5)).clamp(0, 1)


def jpeg(picture: torch.Tensor, quality: int) -> torch.Tensor:
    return decode_jpeg(encode_jpeg((picture * 255).round().to(torch.uint8), quality)) / 255


def recoloured(picture: torch.Tensor) -> torch.Tensor:
    edited = picture.clone()
    edited[EDIT] = picture[EDIT].flip(0) * 0.7 + torch.tensor([0.25, 0.0, 0.1]).view(3, 1, 1)
    return edited


def split(ratio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inside of the edit, and well outside of it."""
    near = torch.zeros(ratio.shape, dtype=torch.bool)
    near[20:80, 30:100] = True
    return ratio[34:66, 44:86], ratio[~near]


@pytest.mark.parametrize("quality", [None, 90, 80, 70])
@pytest.mark.parametrize("seed", range(3))
def test_an_edit_is_several_times_the_noise_and_the_rest_is_noise(seed, quality):
    picture = scene(seed)
    edited = recoloured(picture) if quality is None else jpeg(recoloured(picture), quality)
    ratio, difference = change_evidence(picture, edited)
    inside, outside = split(ratio)
    assert float(inside.median()) > 3
    assert float(outside.median()) < 1.2
    assert float(outside.quantile(0.95)) < float(inside.median()) / 2
    assert float(difference[34:66, 44:86].median()) > 5


def test_noise_is_about_one_whatever_its_strength():
    picture = scene(3)
    for strength in (0.03, 0.06, 0.12):
        noise = strength * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
        median = float(change_evidence(picture, (picture + noise).clamp(0, 1))[0].median())
        assert 0.7 < median < 2


def test_noise_on_texture_is_measured_by_the_texture():
    # What moved by a third of a pixel differs where there is texture, by no more than the texture has.
    picture = scene(4)
    moved = 0.7 * picture + 0.3 * picture.roll(1, dims=2)
    ratio = change_evidence(picture, moved)[0][8:-8, 8:-8]
    textured, plain = ratio[:, :50], ratio[:, 75:]
    assert float(textured.quantile(0.9)) < 4
    assert float(textured.median()) < 4 * max(float(plain.median()), 0.5)


def test_nothing_is_no_evidence():
    picture = scene(5)
    ratio, difference = change_evidence(picture, picture)
    assert float(ratio.max()) < 0.01
    assert float(difference.max()) == 0


def test_what_nobody_sees_is_no_edit_however_little_noise_there_is():
    picture = torch.full((3, 60, 60), 0.5)
    edited = picture.clone()
    edited[:, 20:40, 20:40] += 1 / 255
    assert float(change_evidence(picture, edited)[0].max()) < 1.5


@pytest.mark.parametrize("share", [0.3, 0.5, 0.65])
def test_the_noise_is_not_read_from_the_edit_up_to_two_thirds_of_the_picture(share):
    picture = scene(6)
    edited = picture.flip(0) * 0.6 + torch.tensor([0.3, 0.0, 0.1]).view(3, 1, 1)
    rows = round(100 * share)
    mixed = jpeg(torch.cat([edited[:, :rows], picture[:, rows:]], dim=1), 85)
    ratio = change_evidence(picture, mixed)[0]
    inside, outside = ratio[: rows - 6], ratio[rows + 6 :]
    assert float(inside.median()) > 3
    assert float(outside.quantile(0.95)) < float(inside.quantile(0.1))


def test_the_noise_is_read_where_it_is_usable():
    picture = scene(7)
    edited = picture + 0.0
    edited[:, :80] = (picture + 0.3 * torch.rand(3, 1, 1)).clamp(0, 1)[:, :80]
    usable = torch.zeros(1, 100, 140, dtype=torch.bool)
    usable[:, 84:] = True
    ratio = change_evidence(picture, edited, usable)[0]
    assert float(ratio[90:].max()) < 1
    assert float(ratio[:74].median()) > 3


def test_too_little_that_is_usable_is_not_looked_at():
    picture = scene(8)
    usable = torch.zeros(1, 100, 140, dtype=torch.bool)
    usable[:, 0, :60] = True
    first, second = change_evidence(picture, jpeg(picture, 80), usable), change_evidence(picture, jpeg(picture, 80))
    assert first[0].equal(second[0])


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 24), width=st.integers(1, 24), flat=st.booleans())
def test_pictures_of_any_size_give_a_finite_number_for_each_pixel(seed, height, width, flat):
    one, other = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    if flat:
        one, other = one.mean(dim=(1, 2), keepdim=True).expand_as(one), torch.zeros_like(other)
    for each in change_evidence(one, other):
        assert each.shape == (height, width)
        assert each.dtype == torch.float32
        assert each.isfinite().all()
        assert (each >= 0).all()


def test_the_pictures_are_left_as_they_are():
    picture = scene(9)
    edited = recoloured(picture)
    kept = picture.clone(), edited.clone()
    change_evidence(picture, edited)
    assert picture.equal(kept[0])
    assert edited.equal(kept[1])
