import copy
import json
import math
import pickle
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

import infill_aug.threshold as threshold_module
from infill_aug.threshold import (
    ConstantLaw,
    Law,
    ProportionalLaw,
    SignLaw,
    ThresholdState,
    retention,
    strength_to_threshold,
    threshold_to_strength,
)

MODES = ("quantile", "absolute")
share = st.floats(0, 1)
finite = st.floats(allow_nan=False, allow_infinity=False)


# ThresholdState


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
        (lambda: ProportionalLaw(target=1.5), r"target must lie in 0\.\.1, got 1\.5"),
        (lambda: ProportionalLaw(mode="up"), "mode must be 'max' .* or 'min' .*got 'up'"),
        (lambda: ProportionalLaw(samples=0), "samples must lie in"),
        (lambda: SignLaw(step=2), "step must lie in"),
        (lambda: ConstantLaw(-0.1), "constant must lie in"),
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


# Laws, one step at a time


@given(finite, finite, finite, st.sampled_from(["max", "min"]))
def test_retention_never_falls_when_the_metric_improves(one, other, reference, mode):
    worse, better = sorted((one, other), reverse=mode == "min")
    assert 0 <= retention(worse, reference, mode) <= retention(better, reference, mode) <= 2


def test_retention_of_positive_metrics_is_the_plain_ratio():
    assert retention(0.6, 0.8) == pytest.approx(0.6 / 0.8)
    assert retention(0.8, 0.6, "min") == pytest.approx(0.6 / 0.8)
    assert retention(0.0, 0.0) == 1.0
    assert retention(-3.0, -2.0) == pytest.approx(2 / 3)


@st.composite
def laws_with_a_past(draw):
    mode = draw(st.sampled_from(["max", "min"]))
    metric = draw(st.sampled_from([finite, st.floats(0, 1), st.floats(0.6, 0.8)]))
    reference = draw(st.sampled_from([st.none(), metric, st.just(1.0)]))
    law = draw(
        st.builds(
            ProportionalLaw,
            target=st.floats(0.5, 1),
            mode=st.just(mode),
            samples=st.none() | st.integers(1, 1000),
            warmup=st.integers(0, 3),
            gain=st.floats(0.1, 3),
        )
        | st.builds(SignLaw, step=st.floats(0.01, 0.2), mode=st.just(mode))
        | st.builds(ConstantLaw, share, mode=st.just(mode))
    )
    law.strength = draw(st.floats(0, 0.95))
    for past in draw(st.lists(st.tuples(metric, reference), max_size=12)):
        law.observe(*past)
    return law, draw(reference)


@given(laws_with_a_past(), st.lists(finite, max_size=10))
@settings(max_examples=300, deadline=None)
def test_from_any_state_lower_performance_never_gives_a_higher_strength(case, metrics):
    law, reference = case
    state = law.state_dict()

    def answer(metric):
        law.load_state_dict(state)
        return law.observe(metric, reference).strength

    worst_to_best = sorted([*metrics, *(i / 50 for i in range(61))], reverse=law.mode == "min")
    answers = [answer(metric) for metric in worst_to_best]
    assert answers == sorted(answers)


@given(laws_with_a_past(), st.lists(finite, max_size=30))
@settings(deadline=None)
def test_no_sequence_of_metrics_leaves_the_bounds(case, metrics):
    law = case[0]
    for metric in metrics:
        decision = law.observe(metric)
        assert 0 <= decision.strength <= (1 if isinstance(law, ConstantLaw) else 0.95)
        assert 0 <= decision.retention <= 2
        assert decision.strength == law.strength


@pytest.mark.parametrize(
    ("mode", "good", "bad"), [("max", 0.9, 0.5), ("min", 0.3, 0.9), ("min", -3.0, -1.0), ("max", -1.0, -3.0)]
)
def test_full_performance_masks_more_and_a_drop_reveals_more_with_or_without_a_reference(mode, good, bad):
    for reference in (None, good):
        law = ProportionalLaw(mode=mode, warmup=0)
        rising = [law.observe(good, reference).strength for _ in range(8)]
        falling = [law.observe(bad, reference).strength for _ in range(8)]
        assert rising == sorted(rising)
        assert rising[-1] > 0.2
        assert falling == sorted(falling, reverse=True)
        assert falling[0] < rising[-1]
        assert falling[-1] < rising[-1] / 2


def test_the_first_metric_without_a_reference_counts_as_full_performance():
    assert ProportionalLaw(warmup=0).observe(0.1).retention == 1.0


def test_the_best_so_far_is_smoothed_so_that_one_lucky_draw_does_not_set_the_bar():
    law = ProportionalLaw()
    for metric in (0.5, 0.5, 0.5, 1.0, 0.5):
        law.observe(metric)
    assert 0.5 < law.best < 0.8


def test_warm_up_holds_and_says_so():
    law = ProportionalLaw(warmup=2)
    decisions = [law.observe(0.9, 0.9) for _ in range(3)]
    assert [decision.changed for decision in decisions] == [False, False, True]
    assert decisions[1].reason == "Warm-up interval 2 of 2: hold, strength 0.000."
    assert "above the target 0.900: mask more" in decisions[2].reason


def test_an_error_within_the_noise_of_the_samples_changes_nothing():
    assert ProportionalLaw(samples=100_000).dead_band == 0.01
    law = ProportionalLaw(samples=100, warmup=0)
    assert law.dead_band == pytest.approx(0.031, abs=0.001)
    law.strength = 0.5
    assert not law.observe(0.92, 1.0).changed


def test_it_reveals_faster_than_it_masks():
    def step(metric):
        law = ProportionalLaw(0.9, warmup=0)
        law.strength = 0.5
        return law.observe(metric, 1.0).strength - 0.5

    assert -step(0.86) == pytest.approx(1.5 * step(0.94))


def test_a_collapse_takes_at_least_a_quarter_of_the_strength_at_once():
    law = ProportionalLaw(warmup=0, gain=0.01)
    law.strength = 0.8
    assert law.observe(0.1, 1.0).strength == pytest.approx(0.6)


@pytest.mark.parametrize("law", [ProportionalLaw(), SignLaw(), ConstantLaw(0.3)], ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_is_refused_by_name_and_not_remembered(law: Law, bad):
    before = law.state_dict()
    with pytest.raises(ValueError, match=f"metric must be finite, got {bad}"):
        law.observe(bad)
    with pytest.raises(ValueError, match=f"reference must be finite, got {bad}"):
        law.observe(0.5, bad)
    assert law.state_dict() == before


@pytest.mark.parametrize("build", [ProportionalLaw, SignLaw, lambda: ConstantLaw(0.3)])
@pytest.mark.parametrize("reference", [None, 0.9])
def test_resume_through_json_at_37_or_any_other_interval_is_bitwise_the_undisturbed_run(build, reference):
    rng = random.Random(0)
    metrics = [rng.uniform(0.6, 0.95) for _ in range(80)]
    law, whole, saved = build(), [], []
    for metric in metrics:
        saved.append(json.dumps(law.state_dict()))
        whole.append(law.observe(metric, reference))
    for t in range(len(metrics)):
        resumed = build()
        resumed.load_state_dict(json.loads(saved[t]))
        assert [resumed.observe(metric, reference) for metric in metrics[t:]] == whole[t:]


# Laws in a closed loop: a simulated training whose accuracy answers to the strength


@dataclass(frozen=True)
class Plant:
    """A training run: clean accuracy follows a learning curve, accuracy on masked pictures falls with the strength."""

    best: float = 0.92
    chance: float = 0.1
    learning_time: float = 8.0
    jump: float = 0.0  # gain of clean accuracy when the learning rate drops, in mid-run
    centre: float = 0.5  # strength at which half the accuracy is gone
    width: float = 0.1  # 0.03 is a cliff
    drift: float = 0.0  # how far the centre moves in the run, as the model gets robust
    lag: float = 1.0  # share of a new strength that the model adapts to per interval
    delay: int = 0  # intervals until a new strength has any effect
    unreachable: int = 0  # first intervals in which the target is out of reach at any strength
    slump: range = range(0)  # intervals in which performance is down for a reason of its own
    samples: int = 200  # that each accuracy is measured on


INTERVALS, SEEDS, TARGET = 120, range(40), 0.9

PLANTS: dict[str, Plant] = {
    "plain": Plant(),
    "slow learner": Plant(learning_time=20),
    "learning rate jump": Plant(best=0.85, jump=0.08),
    "robustness drift": Plant(centre=0.4, drift=0.2),
    "lag": Plant(lag=0.3),
    "delay": Plant(delay=2),
    "lag, delay and drift": Plant(lag=0.5, delay=2, drift=0.1),
    "cliff": Plant(width=0.03),
    "cliff and delay": Plant(width=0.03, delay=1, centre=0.6),
    "unreachable at first": Plant(unreachable=50),
}


def _drawn(rng: random.Random) -> Plant:
    return Plant(
        best=rng.uniform(0.82, 0.97),
        learning_time=rng.uniform(3, 25),
        centre=rng.uniform(0.25, 0.75),
        width=rng.uniform(0.04, 0.2),
        samples=rng.choice([100, 200, 400]),
    )


HELD_OUT: dict[str, Callable[[random.Random], Plant]] = {
    "drawn, drifting": lambda rng: replace(_drawn(rng), drift=rng.uniform(-0.15, 0.2)),
    "drawn, sluggish": lambda rng: replace(_drawn(rng), lag=rng.uniform(0.2, 1), delay=rng.randint(0, 2)),
    "drawn, jumping": lambda rng: replace(_drawn(rng), jump=rng.uniform(0, 0.03), chance=rng.uniform(0.01, 0.3)),
}


def simulate(plant: Plant, law: Law, seed: int, referenced: bool = True) -> tuple[list[float], list[float]]:
    """Strength and true retention after each interval, with noisy accuracies in between."""

    def left(strength: float, centre: float) -> float:
        def fall(at: float) -> float:
            return 1 / (1 + math.exp((centre - at) / plant.width))

        return 1 - 0.95 * (fall(strength) - fall(0)) / (1 - fall(0))

    def measured(accuracy: float) -> float:
        noisy = rng.gauss(accuracy, math.sqrt(accuracy * (1 - accuracy) / plant.samples))
        return min(max(noisy, 0.0), 1.0)

    rng = random.Random(seed)
    felt, strengths, retentions = 0.0, [0.0] * (plant.delay + 1), []
    for t in range(INTERVALS):
        learned = 1 - math.exp(-(t + 1) / plant.learning_time)
        clean = plant.chance + (plant.best - plant.chance) * learned + plant.jump * (t >= INTERVALS // 2)
        felt += plant.lag * (strengths[-1 - plant.delay] - felt)
        masked = plant.chance + (clean - plant.chance) * left(felt, plant.centre + plant.drift * t / INTERVALS)
        masked *= 0.8 if t < plant.unreachable else 0.7 if t in plant.slump else 1.0
        strengths.append(law.observe(measured(masked), measured(clean) if referenced else None).strength)
        retentions.append(masked / (clean if referenced else law.best))
    return strengths[plant.delay + 1 :], retentions


def settled(strengths: list[float], retentions: list[float]) -> int:
    """Start of the first 10 intervals of which 9 mask something and hold the target within 0.05."""
    good = [abs(kept - TARGET) <= 0.05 and u > 0.02 for u, kept in zip(strengths, retentions, strict=True)]
    return next((t for t in range(INTERVALS - 9) if sum(good[t : t + 10]) >= 9), INTERVALS)


def closed_loop(name: str, law: Callable[[], Law], referenced: bool = True) -> tuple[float, float]:
    """Median settling time, and 90th percentile of the strength's peak to peak over the last 30 intervals."""
    times, swings = [], []
    for seed in SEEDS:
        plant = PLANTS[name] if name in PLANTS else HELD_OUT[name](random.Random(1000 + seed))
        strengths, retentions = simulate(plant, law(), seed, referenced)
        assert all(0 <= strength <= 0.95 for strength in strengths)
        times.append(settled(strengths, retentions) - plant.unreachable)
        swings.append(max(strengths[-30:]) - min(strengths[-30:]))
    return statistics.median(times), statistics.quantiles(swings, n=10)[-1]


def accepted(outcome: tuple[float, float]) -> bool:
    settling, swing = outcome
    return settling <= 45 and swing <= 0.10


@pytest.mark.parametrize("samples", [200, None])
@pytest.mark.parametrize("name", [*PLANTS, *HELD_OUT])
def test_the_loop_settles_within_45_intervals_and_then_holds_still(name, samples):
    outcome = closed_loop(name, lambda: ProportionalLaw(TARGET, samples=samples))
    assert accepted(outcome), outcome


def test_held_back_by_an_unreachable_target_the_loop_winds_nothing_up():
    settling, _ = closed_loop("unreachable at first", lambda: ProportionalLaw(TARGET, samples=200))
    assert settling <= 15


@pytest.mark.parametrize("name", [*PLANTS, *HELD_OUT])
def test_without_a_reference_the_loop_settles_too_if_more_slowly(name):
    settling, swing = closed_loop(name, lambda: ProportionalLaw(TARGET, samples=200), referenced=False)
    assert settling <= 60, settling
    assert swing <= 0.10, swing


@pytest.mark.parametrize("name", [*PLANTS, *HELD_OUT])
def test_a_large_sign_step_fails_the_same_acceptance_so_the_acceptance_can_fail(name):
    assert not accepted(closed_loop(name, lambda: SignLaw(TARGET, step=0.1)))


def test_without_halving_after_a_reversal_a_delayed_cliff_is_not_accepted(monkeypatch):
    monkeypatch.setattr(threshold_module, "TRUST_AFTER_REVERSAL", 1.0)
    assert not accepted(closed_loop("cliff and delay", lambda: ProportionalLaw(TARGET, samples=200)))


def test_a_drop_of_performance_reveals_within_2_intervals_and_masking_returns_within_20_of_recovery():
    slump = range(60, 75)
    for seed in SEEDS:
        strengths, _ = simulate(Plant(slump=slump), ProportionalLaw(TARGET, samples=200), seed)
        before = strengths[slump.start - 1]
        assert strengths[slump.start + 1] < before
        assert strengths[slump.stop - 1] < before / 2
        assert max(strengths[slump.stop : slump.stop + 20]) > before - 0.1
