import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infill_aug.control.law import Law, retention
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.control.schedule import ConstantLaw, ScheduleLaw
from infill_aug.control.sign import SignLaw

share = st.floats(0, 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
FRESH = {
    "proportional": ProportionalLaw,
    "patient": lambda: ProportionalLaw(patience=2),
    "sign": SignLaw,
    "schedule": lambda: ScheduleLaw(0.9, 40, shape="cosine"),
    "constant": lambda: ConstantLaw(0.3),
}
every_law = pytest.mark.parametrize("build", FRESH.values(), ids=FRESH)


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
            patience=st.integers(0, 2),
            gain=st.floats(0.1, 3),
            smoothing=st.floats(0, 0.9),
        )
        | st.builds(SignLaw, step=st.floats(0.01, 0.2), mode=st.just(mode))
        | st.builds(ConstantLaw, share, mode=st.just(mode))
        | st.builds(ScheduleLaw, share, st.integers(1, 20), start=share, mode=st.just(mode))
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
        assert 0 <= decision.strength <= (1 if isinstance(law, ConstantLaw | ScheduleLaw) else 0.95)
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
    assert "above the target 0.800: mask more" in decisions[2].reason


def test_an_error_within_the_noise_of_the_samples_changes_nothing():
    assert ProportionalLaw(samples=100_000).dead_band == 0.01
    law = ProportionalLaw(0.9, samples=100, warmup=0)
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


@every_law
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_is_refused_by_name_and_not_remembered(build, bad):
    law: Law = build()
    before = law.state_dict()
    with pytest.raises(ValueError, match=f"metric must be finite, got {bad}"):
        law.observe(bad)
    with pytest.raises(ValueError, match=f"reference must be finite, got {bad}"):
        law.observe(0.5, bad)
    assert law.state_dict() == before


@every_law
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


def test_a_reference_that_falls_too_does_not_hide_a_collapse():
    law = ProportionalLaw(0.9, warmup=0)
    rising = [law.observe(0.78, 0.8).strength for _ in range(10)]
    fallen = law.observe(0.3, 0.3)  # all of what is left on clean pictures is left on masked ones
    assert fallen.retention < 0.75
    assert fallen.strength <= 0.75 * rising[-1]


def test_patience_waits_before_it_masks_more_and_never_to_reveal():
    law = ProportionalLaw(0.9, warmup=0, patience=2, smoothing=0)
    law.strength = 0.5
    decisions = [law.observe(metric, 1.0) for metric in (1.0, 1.0, 1.0, 0.85, 1.0, 1.0, 1.0)]
    assert [decision.changed for decision in decisions] == [False, False, True, True, False, False, True]
    assert decisions[3].strength < decisions[2].strength
    assert "above the target 0.900, for 2 of more than 2 intervals: hold" in decisions[1].reason


@pytest.mark.parametrize("reference", [None, 0.0])
def test_a_metric_that_is_still_nothing_masks_no_more(reference):
    law = ProportionalLaw(warmup=1)
    law.observe(0.0, reference)
    for _ in range(5):
        assert law.observe(0.0, reference).reason == "Nothing is learned yet: hold, strength 0.000."
    assert law.observe(0.3, reference and 0.3).changed


def test_a_step_against_the_side_of_the_target_says_why():
    law = ProportionalLaw(0.9, warmup=0, smoothing=0)
    law.strength = 0.5
    reasons = [law.observe(metric, 1.0).reason for metric in (1.0, 0.92, 0.5, 0.85)]
    assert "0.920 is above the target 0.900, but falling: reveal more" in reasons[1]
    assert "0.850 is below the target 0.900, but rising: mask more" in reasons[3]


def test_slew_and_smoothing_are_the_users():
    quick = ProportionalLaw(0.5, warmup=0, smoothing=0, slew=(1.0, 0.2))
    assert quick.observe(1.0, 1.0).strength == pytest.approx(0.2)
    assert ProportionalLaw(0.5, warmup=0, slew=(1.0, 0.01)).observe(1.0, 1.0).strength == pytest.approx(0.01)
    rough, smooth = (ProportionalLaw(0.9, smoothing=smoothing) for smoothing in (0.0, 0.9))
    for law in (rough, smooth):
        law.observe(1.0, 1.0)
    assert rough.observe(0.5, 1.0).retention == 0.5
    assert smooth.observe(0.5, 1.0).retention > 0.7


@pytest.mark.parametrize(("shape", "expected"), [("linear", 0.25), ("cosine", 0.1464), ("curriculum", 0.5)])
def test_a_schedule_goes_from_start_to_end_in_its_intervals_in_its_shape_and_stays(shape, expected):
    law = ScheduleLaw(1.0, 8, shape=shape)
    strengths = [law.observe(0.5).strength for _ in range(10)]
    assert strengths == sorted(strengths)
    assert strengths[1] == pytest.approx(expected, abs=1e-4)
    assert strengths[7:] == [1.0] * 3
    falling = ScheduleLaw(0.2, 4, start=0.6, shape=shape)
    strengths = [falling.observe(0.5).strength for _ in range(4)]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[-1] == pytest.approx(0.2)


@every_law
def test_every_law_explains_what_it_is_after_and_what_it_did(build):
    law = build()
    assert "Nothing was observed yet." in law.explain()
    decision = law.observe(0.8)
    assert law.explain().startswith(type(law).__name__)
    assert law.explain().endswith(decision.reason)


def test_the_explanation_says_that_steps_are_halved():
    law = ProportionalLaw(0.9, warmup=0, smoothing=0)
    for metric in (1.0, 0.8):
        law.observe(metric, 1.0)
    assert "with steps at 50% since the error changed its sign" in law.explain()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ProportionalLaw(target=1.5), r"target must lie in 0\.\.1, got 1\.5"),
        (lambda: ProportionalLaw(mode="up"), "mode must be 'max' .* or 'min' .*got 'up'"),
        (lambda: ProportionalLaw(samples=0), "samples must lie in"),
        (lambda: ProportionalLaw(smoothing=1.0), "smoothing must lie in"),
        (lambda: ProportionalLaw(patience=-1), "patience must lie in"),
        (lambda: ProportionalLaw(slew=(2, 0)), "slew must lie in"),
        (lambda: SignLaw(step=2), "step must lie in"),
        (lambda: ConstantLaw(-0.1), "constant must lie in"),
        (lambda: ScheduleLaw(0.5, 0), "intervals must lie in .*ConstantLaw"),
        (lambda: ScheduleLaw(0.5, 5, shape="steps"), r"shape must be one of \['linear', 'cosine', 'curriculum'\]"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(build, message):
    with pytest.raises(ValueError, match=message):
        build()
