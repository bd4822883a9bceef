"""A coarse mask at full size: along the edges of what changed, never outside of its reach, in any parts."""

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from infill_aug.smart_mask.outline import difference_of, fit_outline, outline_mask


def ellipse(height: int, width: int, grow: float = 1.0) -> torch.Tensor:
    """``(H, W)`` bool, of the same shape at any size."""
    y, x = ((torch.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return ((y / (0.27 * grow)) ** 2)[:, None] + ((x / (0.2 * grow)) ** 2)[None] < 1


def pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A plain picture and the same with an ellipse of another colour."""
    original = torch.full((3, height, width), 0.4)
    colour = torch.tensor([0.8, 0.3, 0.2]).view(3, 1, 1)
    return original, torch.where(ellipse(height, width), colour, original)


def full_mask(outline, original, edited):
    return outline_mask(outline, difference_of(original, edited), 0, 0, original.shape[-2:])


@pytest.mark.parametrize("grow", [0.93, 1.0, 1.07])
def test_the_outline_follows_the_edge_of_the_edit_at_full_size(grow):
    # The coarse mask is off by a few pixels of the full size; the difference says where the edge is.
    small, large = pair(60, 80), pair(360, 480)
    mask = full_mask(fit_outline(ellipse(60, 80, grow), *small), *large)
    truth = ellipse(360, 480)
    hard = mask[0] > 0.5
    assert float((hard & truth).sum() / (hard | truth).sum()) > 0.98
    coarse = nnf.interpolate(ellipse(60, 80, grow)[None, None].float(), size=(360, 480))[0, 0] > 0.5
    assert (hard != truth).sum() <= (coarse != truth).sum()


def test_a_mirrored_picture_has_a_mirrored_mask():
    small, large = pair(60, 80), pair(360, 480)
    inside = ellipse(60, 80)
    inside[:, 50:] = False
    mask = full_mask(fit_outline(inside, *small), *large)
    for axis in (1, 2):
        turned = fit_outline(inside.flip(axis - 1), *(p.flip(axis) for p in small))
        away = full_mask(turned, *(p.flip(axis) for p in large)).flip(axis) - mask
        assert float(away.abs().max()) < 1e-3


def test_far_outside_is_exactly_0_and_far_inside_exactly_1():
    small, large = pair(60, 80), pair(360, 480)
    mask = full_mask(fit_outline(ellipse(60, 80), *small), *large)[0]
    assert (mask[~ellipse(360, 480, 1.3)] == 0).all()
    assert (mask[ellipse(360, 480, 0.8)] == 1).all()


def test_a_difference_beyond_the_reach_is_never_taken():
    small, large = pair(60, 80), pair(360, 480)
    outline = fit_outline(ellipse(60, 80), *small)
    edited = large[1].clone()
    edited[:, 5:40, 5:60] = 1.0  # a strong change that the coarse mask does not have
    mask = full_mask(outline, large[0], edited)[0]
    assert (mask[:45, :65] == 0).all()


def test_the_inside_is_taken_where_it_kept_its_colour():
    small, large = pair(60, 80), pair(360, 480)
    for original, edited, rows, columns in ((*small, slice(24, 36), slice(34, 46)),
                                            (*large, slice(144, 216), slice(204, 276))):  # fmt: skip
        edited[:, rows, columns] = original[:, rows, columns]
    mask = full_mask(fit_outline(ellipse(60, 80), *small), *large)[0]
    assert (mask[130:230, 190:290] == 1).all()


def test_without_an_edge_the_mask_blends_about_the_coarse_outline():
    flat = torch.full((3, 60, 80), 0.5)
    inside = torch.zeros(60, 80, dtype=torch.bool)
    inside[:, 40:] = True
    mask = full_mask(fit_outline(inside, flat, flat), torch.full((3, 240, 320), 0.5), torch.full((3, 240, 320), 0.5))[0]
    assert (mask[:, 175:] == 1).all()
    assert (mask[:, :145] == 0).all()
    assert (mask[120].diff() >= -1e-6).all()


@given(
    rows=st.tuples(st.integers(0, 89), st.integers(1, 90)),
    columns=st.tuples(st.integers(0, 119), st.integers(1, 120)),
)
def test_a_part_is_that_part_of_the_whole_bit_for_bit(rows, columns):
    small, large = pair(30, 40), pair(90, 120)
    outline = fit_outline(ellipse(30, 40), *small)
    difference = difference_of(*large)
    top, bottom = rows[0], min(90, rows[0] + rows[1])
    left, right = columns[0], min(120, columns[0] + columns[1])
    part = outline_mask(outline, difference[:, top:bottom, left:right], top, left, (90, 120))
    whole = outline_mask(outline, difference, 0, 0, (90, 120))
    assert part.equal(whole[:, top:bottom, left:right])


@given(seed=st.integers(0, 10**6), height=st.integers(1, 20), width=st.integers(1, 20), factor=st.integers(1, 4))
def test_a_mask_of_any_size_lies_in_0_to_1(seed, height, width, factor):
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.rand(2, 3, height, width, generator=generator)
    inside = torch.rand(height, width, generator=generator) < 0.5
    outline = fit_outline(inside, one, other)
    large = [F.resize(p, [height * factor, width * factor]) for p in (one, other)]
    mask = full_mask(outline, *large)
    assert mask.shape == (1, height * factor, width * factor)
    assert mask.dtype == torch.float32
    assert ((mask >= 0) & (mask <= 1)).all()


@pytest.mark.parametrize("value", [False, True])
def test_nothing_and_everything_stay_so(value):
    one, other = torch.rand(2, 3, 20, 30)
    mask = full_mask(fit_outline(torch.full((20, 30), value), one, other), *torch.rand(2, 3, 60, 90))
    assert (mask == float(value)).all()


def test_the_difference_is_that_of_the_colours_a_little_smoothed():
    one = torch.zeros(3, 5, 5)
    other = one.clone()
    other[:, 2, 2] = 0.9
    apart = difference_of(one, other)
    assert apart.shape == (1, 5, 5)
    assert float(apart[0, 2, 2]) == pytest.approx(0.1)
    assert float(apart[0, 0, 0]) == 0
    assert difference_of(one, one + 0.5).eq(0.5).all()  # also at the rim
