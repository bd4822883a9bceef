import copy
import json
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from infill_aug.threshold import ThresholdState, strength_to_threshold, threshold_to_strength

MODES = ("quantile", "absolute")
share = st.floats(0, 1)
finite = st.floats(allow_nan=False, allow_infinity=False)


class ReadsThreshold(Dataset):
    def __init__(self, state):
        self.state = state

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.state.threshold


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings(  # Python 3.12 and later say so of any fork; torch has its threads
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
def test_persistent_workers_see_a_new_threshold_even_through_a_deepcopy(method):
    state = ThresholdState.from_threshold(0.25)
    loader = DataLoader(
        copy.deepcopy(ReadsThreshold(state)), num_workers=1, persistent_workers=True, multiprocessing_context=method
    )
    assert {batch.item() for batch in loader} == {state.threshold}
    state.set(0.75)
    assert {batch.item() for batch in loader} == {state.threshold}


def test_deepcopy_keeps_the_link_and_a_plain_pickle_cuts_it():
    state = ThresholdState(0.2)
    linked, detached = copy.deepcopy({"inside": state})["inside"], pickle.loads(pickle.dumps(state))
    state.set(0.6)
    assert linked.strength == 0.6
    assert detached.strength == 0.2
    detached.set(0.9)
    assert state.strength == 0.6
    assert detached._shared.is_shared()


@given(share, share, st.sampled_from(MODES), st.floats(0.001, 0.5))
def test_threshold_rises_with_strength_within_0_and_1(one, other, mode, keep_min):
    low, high = (strength_to_threshold(strength, mode, keep_min) for strength in sorted((one, other)))
    assert 0 <= low <= high <= 1


@given(share, st.sampled_from(MODES), st.floats(0.001, 0.5))
def test_strength_to_threshold_and_back_is_the_same_strength(strength, mode, keep_min):
    there = strength_to_threshold(strength, mode, keep_min)
    assert threshold_to_strength(there, mode, keep_min) == pytest.approx(strength, abs=1e-9)


def test_no_strength_masks_nothing_and_full_strength_keeps_keep_min():
    assert ThresholdState(0.0).threshold == 0.0
    assert ThresholdState(1.0, keep_min=0.05).threshold == pytest.approx(0.95)


@given(finite, st.tuples(share, share).map(sorted), st.sampled_from(MODES))
def test_whatever_is_set_the_threshold_stays_in_its_bounds(strength, bounds, mode):
    state = ThresholdState(mode=mode, bounds=bounds)
    state.set(strength)
    assert bounds[0] <= state.threshold <= bounds[1]
    assert 0 <= state.strength <= 1


@pytest.mark.parametrize("mode", MODES)
def test_from_threshold_starts_at_that_threshold(mode):
    state = ThresholdState.from_threshold(0.4, mode=mode, bounds=(0.1, 0.9))
    assert state.threshold == pytest.approx(0.4)
    assert "0.4" in repr(state)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ThresholdState(1.2), r"strength must lie in 0\.\.1, got 1\.2; .*from_threshold"),
        (lambda: ThresholdState(math.nan), "strength must lie in"),
        (lambda: ThresholdState(mode="relative"), "mode must be 'quantile' or 'absolute', got 'relative'"),
        (lambda: ThresholdState(bounds=(0.7, 0.3)), r"bounds must be \(low, high\).*got \(0\.7, 0\.3\)"),
        (lambda: ThresholdState(keep_min=0.0), r"keep_min must lie in .*got 0\.0; 0\.02 is the default"),
        (lambda: ThresholdState.from_threshold(0.99), r"threshold must lie in 0\.\.0\.98, got 0\.99; .*lower keep_min"),
        (lambda: ThresholdState().set(math.inf), "strength must be a finite number"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_state_survives_json_and_refuses_another_unit():
    saved = json.loads(json.dumps(ThresholdState(0.123456789).state_dict()))
    state = ThresholdState()
    state.load_state_dict(saved)
    assert state.strength == 0.123456789
    with pytest.raises(ValueError, match="build it with the saved ones"):
        ThresholdState(mode="absolute").load_state_dict(saved)


def test_a_class_has_its_offset_to_the_common_strength_within_the_bounds():
    state = ThresholdState(0.5, mode="absolute", bounds=(0.1, 0.6), classes=3)
    assert state.of_classes(torch.tensor([0, 2])).tolist() == pytest.approx([0.5, 0.5])
    state.set(0.5, [0.0, -0.2, 0.3])
    assert state.of_classes(torch.tensor([1, 2, 0, 1])).tolist() == pytest.approx([0.3, 0.6, 0.5, 0.3])
    assert state.threshold == 0.5
    state.set(0.0)
    assert state.of_classes(torch.tensor([1, 2])).tolist() == pytest.approx([0.1, 0.4])


def test_offsets_are_shared_and_survive_json():
    state = ThresholdState(0.5, classes=2)
    linked = copy.deepcopy(state)
    state.set(0.5, [0.1, -0.1])
    assert linked.offsets == (0.1, -0.1)
    again = ThresholdState(classes=2)
    again.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert again.offsets == (0.1, -0.1)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: ThresholdState(classes=-1), "classes must lie in"),
        (lambda: ThresholdState(classes=2).set(0.5, [0.1]), "has 2 classes, got 1 offsets"),
        (lambda: ThresholdState(classes=2).set(0.5, [0.1, math.nan]), "must be a finite number"),
        (lambda: ThresholdState().of_classes(torch.tensor([0])), r"0 classes; ThresholdState\(classes="),
        (lambda: ThresholdState(classes=2).of_classes(torch.zeros(2)), "integer labels"),
    ],
)
def test_what_is_wrong_with_classes_is_said(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
