"""A threshold between two kinds of pixels, and the outline that costs least."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infill_aug.smart_mask.segmentation import LEAST, change_threshold, cheapest_outline, outline_ease


def energy(area: torch.Tensor, cost: torch.Tensor, ease: torch.Tensor) -> float:
    """What the outline minimises: costs inside, and ease for every side between two pixels of different kind."""
    area = area.double()
    across = (area[:, 1:] - area[:, :-1]).abs() * ease[:, :-1]
    down = (area[1:] - area[:-1]).abs() * ease[:-1]
    return float((cost * area).sum() + across.sum() + down.sum())


def two_modes(low: float, high: float, share: float, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(100, 100, generator=generator) < share
    middle = torch.where(kind, math.log(high), math.log(low))
    return (middle + spread * torch.randn(100, 100, generator=generator)).exp(), kind


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 0.7])
@pytest.mark.parametrize("high", [4.0, 8.0, 30.0])
def test_a_threshold_parts_two_kinds_of_pixels(high, share):
    ratio, kind = two_modes(0.7, high, share, 0.15)
    threshold = change_threshold(ratio)
    assert threshold >= LEAST
    assert float(((ratio > threshold) == kind).float().mean()) > 0.99


def test_no_other_threshold_explains_more_of_the_variance():
    ratio, _ = two_modes(0.7, 8.0, 0.3, 0.3)
    values = ratio.log().double().flatten()

    def left(limit):
        above = values > math.log(limit)
        parts = (values[above], values[~above])
        return sum(float(((part - part.mean()) ** 2).sum()) for part in parts if len(part))

    assert left(change_threshold(ratio)) <= 1.001 * min(left(limit) for limit in torch.linspace(1.6, 20, 60).tolist())


def test_a_threshold_lies_between_the_two_kinds_wherever_they_are():
    ratio, kind = two_modes(2.5, 20.0, 0.3, 0.2)
    threshold = change_threshold(ratio)
    assert 4 < threshold < 12
    assert float(((ratio > threshold) == kind).float().mean()) > 0.99


def test_noise_alone_is_not_cut_in_two():
    ratio, _ = two_modes(0.8, 0.8, 0.5, 0.2)
    threshold = change_threshold(ratio)
    assert threshold >= LEAST
    assert float((ratio > threshold).float().mean()) < 0.01


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 20.0])
def test_a_ratio_that_is_the_same_everywhere_has_the_least_threshold(value):
    assert change_threshold(torch.full((20, 20), value)) == LEAST


def test_the_least_threshold_can_be_raised():
    ratio, _ = two_modes(0.7, 4.0, 0.3, 0.15)
    assert change_threshold(ratio, 3.0) >= 3.0


@given(seed=st.integers(0, 10**6), height=st.integers(1, 20), width=st.integers(1, 20))
def test_any_ratio_has_a_finite_threshold(seed, height, width):
    ratio = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)).mul(8).exp2()
    threshold = change_threshold(ratio)
    assert LEAST <= threshold <= 257


def block(inside: float = -1.0, outside: float = 1.0, size: int = 24) -> torch.Tensor:
    cost = torch.full((size, size), outside)
    cost[6:18, 6:18] = inside
    return cost


def test_a_gap_is_filled():
    cost = block()
    cost[11:13, 10:13] = 1.0
    area = cheapest_outline(cost, torch.full_like(cost, 2.0)) > 0.5
    assert area[6:18, 6:18].float().mean() > 0.95  # a corner may be cut
    assert area[8:16, 8:16].all()


def test_a_speck_is_removed():
    cost = block()
    cost[2, 2] = cost[20, 20] = cost[20, 21] = -1.0
    area = cheapest_outline(cost, torch.full_like(cost, 1.0)) > 0.5
    assert not area[:5].any()
    assert not area[19:].any()
    assert area[8:16, 8:16].all()


def test_a_free_outline_takes_every_pixel_at_its_word():
    cost = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    assert (cheapest_outline(cost, torch.zeros_like(cost)) > 0.5).equal(cost < 0)


def test_a_dear_outline_takes_all_or_nothing():
    cost = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    for shift, wanted in ((-0.5, True), (0.5, False)):
        area = cheapest_outline(cost + shift, torch.full_like(cost, 50.0)) > 0.5
        assert (area == wanted).all()


def test_an_outline_runs_where_it_is_cheap():
    # Nothing is known between the columns 8 and 16; an edge lies behind column 11.
    cost = torch.zeros(24, 24)
    cost[:, :8], cost[:, 16:] = -1.0, 1.0
    ease = torch.full_like(cost, 2.0)
    ease[:, 11] = 0.1
    area = cheapest_outline(cost, ease) > 0.5
    assert area[:, :12].all()
    assert not area[:, 12:].any()


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(3, 3), (3, 4), (2, 5), (1, 9), (9, 1), (1, 1)]),
       price=st.floats(0.0, 2.0))  # fmt: skip
def test_no_area_of_a_tiny_grid_costs_less(seed, shape, price):
    generator = torch.Generator().manual_seed(seed)
    cost = torch.randn(shape, generator=generator)
    ease = price * torch.rand(shape, generator=generator)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=cost.numel()))).view(-1, *shape)
    best = min(energy(area, cost, ease) for area in every)
    mine = energy(cheapest_outline(cost, ease) > 0.5, cost, ease)
    # A hundred rounds of the method come this close.
    assert mine <= best + 0.02 * float(cost.abs().sum())


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (17, 5)])
def test_grids_of_any_size_have_an_outline(shape):
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    kept = cost.clone()
    inside = cheapest_outline(cost, torch.full_like(cost, 0.3))
    assert inside.shape == shape
    assert ((inside >= 0) & (inside <= 1)).all()
    assert cost.equal(kept)


def test_what_must_stay_outside_stays_outside():
    cost = block()
    cost[10:14, 10:14] = -10.0
    cost[6:18, 12:14] = 10.0
    area = cheapest_outline(cost, torch.full_like(cost, 0.5)) > 0.5
    assert not area[6:18, 12:14].any()


def test_an_outline_costs_less_at_an_edge_of_either_picture():
    plain = torch.full((3, 20, 20), 0.4)
    edge = plain.clone()
    edge[:, :, 10:] = 0.8
    for pair in ((plain, edge), (edge, plain), (edge, edge)):
        ease = outline_ease(*pair, 4.0)
        assert ease.shape == (20, 20)
        assert ease[:, 9].max() < 2.0
        assert ease[:, :6].min() > 3.99
        assert ease[:, 14:].min() > 3.99
        assert ease.min() > 0


def test_a_stronger_edge_is_cheaper_and_never_free():
    costs = []
    for step in (0.05, 0.2, 0.6):
        picture = torch.full((3, 8, 8), 0.2)
        picture[:, :, 4:] += step
        costs.append(float(outline_ease(picture, picture, 1.0).min()))
    assert costs[0] > costs[1] > costs[2] >= 0.05


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_the_ease_of_thin_pictures_is_finite(shape):
    ease = outline_ease(torch.rand(3, *shape), torch.rand(3, *shape), 5.0)
    assert ease.shape == shape
    assert ease.isfinite().all()
