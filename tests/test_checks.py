import math

import pytest

from infill_aug.checks import is_integer, is_number


@pytest.mark.parametrize("value", [True, False, None, "1", [1], math.nan, math.inf, -math.inf, 1 + 0j])
def test_what_is_no_finite_number_is_refused_whatever_the_bounds(value):
    assert not is_number(value)
    assert not is_integer(value)


@pytest.mark.parametrize(
    ("value", "bounds", "within"),
    [
        (0, {"least": 0, "most": 1}, True),
        (1.0, {"least": 0, "most": 1}, True),
        (-1e-9, {"least": 0}, False),
        (1.0001, {"most": 1}, False),
        (0, {"above": 0, "most": 1}, False),
        (5e-324, {"above": 0}, True),
        (10**400, {"least": 1}, True),
    ],
)
def test_bounds_belong_to_the_range_and_above_does_not(value, bounds, within):
    assert is_number(value, **bounds) == within


@pytest.mark.parametrize(("value", "within"), [(0, False), (1, True), (3, True), (4, False), (2.0, False)])
def test_an_integer_is_an_int_within_bounds(value, within):
    assert is_integer(value, 1, 3) == within
