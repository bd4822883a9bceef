"""Which areas are the edit: by evidence, and however they are shaped."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infill_aug.smart_mask.regions import select_regions


def areas(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (60, 80)) -> torch.Tensor:
    """``(H, W)`` bool, true in boxes of (top, left, bottom, right)."""
    inside = torch.zeros(size, dtype=torch.bool)
    for top, left, bottom, right in boxes:
        inside[top:bottom, left:right] = True
    return inside


BIG, SECOND, SPECK = (5, 5, 25, 25), (35, 50, 53, 70), (50, 5, 53, 8)


def test_the_strongest_is_first_and_what_is_small_and_elsewhere_is_left():
    inside = areas(BIG, SPECK)
    chosen = select_regions(inside, inside.float())
    assert chosen.taken == (True, False)
    assert chosen.mask.equal(areas(BIG))
    assert chosen.evidence == pytest.approx((400 / 409, 9 / 409))


def test_two_regions_of_like_evidence_are_both_taken():
    inside = areas(BIG, SECOND, SPECK)
    chosen = select_regions(inside, inside.float())
    assert chosen.taken == (True, True, False)
    assert chosen.mask.equal(areas(BIG, SECOND))


def test_evidence_is_size_times_strength():
    inside = areas(BIG, SPECK)
    weight = inside.float()
    weight[50:53, 5:8] = 100.0  # small, and far stronger
    chosen = select_regions(inside, weight)
    assert chosen.mask[51, 6]
    assert chosen.labels[51, 6] == 1
    assert chosen.taken == (True, True)
    weight[50:53, 5:8] = 1000.0
    assert select_regions(inside, weight).mask.equal(areas(SPECK))


def test_a_small_part_beside_the_edit_belongs_to_it():
    near, far = (8, 26, 14, 30), (50, 5, 56, 9)  # 24 pixels of 400 each, the one behind a gap of a pixel
    inside = areas(BIG, near, far)
    chosen = select_regions(inside, inside.float())
    assert chosen.mask.equal(areas(BIG, near))


@pytest.mark.parametrize(("most", "wanted"), [(1, (BIG,)), (2, (BIG, SECOND)), (3, (BIG, SECOND, SPECK)),
                                              (9, (BIG, SECOND, SPECK))])  # fmt: skip
def test_a_number_that_was_asked_for_counts_more_than_evidence(most, wanted):
    inside = areas(BIG, SECOND, SPECK)
    assert select_regions(inside, inside.float(), most).mask.equal(areas(*wanted))


def test_a_small_hole_is_filled_and_a_large_one_stays():
    small, large = areas((5, 5, 45, 45)), areas((5, 5, 45, 45))
    small[20:26, 20:26] = False
    large[10:40, 10:40] = False
    assert select_regions(small, small.float()).mask.equal(areas((5, 5, 45, 45)))
    assert select_regions(large, large.float()).mask.equal(large)


def test_a_hole_is_measured_by_the_area_around_it():
    inside = areas((2, 2, 40, 60), (45, 65, 53, 73))
    inside[47:51, 67:71] = False  # a quarter of the small area, next to nothing of the large one
    mask = select_regions(inside, inside.float(), 2).mask
    assert not mask[47:51, 67:71].any()


def test_what_the_border_of_the_picture_closes_is_no_hole():
    inside = areas((0, 0, 20, 40))
    inside[0:4, 10:14] = False
    assert select_regions(inside, inside.float()).mask.equal(inside)


def test_areas_that_touch_at_a_corner_are_one():
    inside = areas((5, 5, 10, 10), (10, 10, 15, 15))
    chosen = select_regions(inside, inside.float())
    assert len(chosen.taken) == 1


def test_nothing_gives_nothing():
    inside = areas()
    chosen = select_regions(inside, torch.ones(60, 80))
    assert chosen.taken == ()
    assert chosen.evidence == ()
    assert not chosen.mask.any()
    assert not chosen.labels.any()


def test_areas_without_evidence_are_not_taken():
    inside = areas(BIG, SECOND)
    for most in (None, 2):
        chosen = select_regions(inside, torch.zeros(60, 80), most)
        assert chosen.taken == (False, False)
        assert not chosen.mask.any()


@given(seed=st.integers(0, 10**6), height=st.integers(1, 30), width=st.integers(1, 30), most=st.integers(0, 4))
def test_labels_evidence_and_mask_agree(seed, height, width, most):
    generator = torch.Generator().manual_seed(seed)
    inside = torch.rand(height, width, generator=generator) < 0.4
    chosen = select_regions(inside, torch.rand(height, width, generator=generator), most or None)
    count = len(chosen.taken)
    assert len(chosen.evidence) == count == int(chosen.labels.max())
    assert list(chosen.evidence) == sorted(chosen.evidence, reverse=True)
    assert sum(chosen.evidence) == pytest.approx(1 if count else 0)
    members = torch.zeros(height, width, dtype=torch.bool)
    for place, taken in enumerate(chosen.taken, start=1):
        assert (chosen.labels == place).any()
        members |= (chosen.labels == place) & taken
    assert members.equal(chosen.mask)
    assert ((chosen.labels > 0) | ~inside).all()  # holes are filled, nothing is lost
    if most:
        assert sum(chosen.taken) <= most


def test_what_comes_in_is_left_as_it_is():
    inside = areas((5, 5, 45, 45))
    inside[20:23, 20:23] = False
    kept = inside.clone()
    select_regions(inside, inside.float())
    assert inside.equal(kept)
