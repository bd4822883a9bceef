import json
import math
import random

import pytest

from infill_aug.control.controller import ThresholdController
from infill_aug.control.per_class import REACH, PerClassLaw
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.control.schedule import ConstantLaw
from infill_aug.threshold import ThresholdState

CENTRES = (0.3, 0.5, 0.7)  # strength at which half of a class's accuracy is gone


def train(law, seed, intervals=200, samples=256):
    """Strengths and true retentions of three classes, whose accuracies fall with their own strengths."""
    rng, state = random.Random(seed), ThresholdState(classes=3)
    controller, kept = ThresholdController(state, law), []
    for _ in range(intervals):
        strengths = [min(max(state.strength + offset, 0.0), 1.0) for offset in state.offsets]
        left = [1 / (1 + math.exp((u - centre) / 0.1)) for u, centre in zip(strengths, CENTRES, strict=True)]
        noisy = [min(1.0, max(0.0, rng.gauss(share, math.sqrt(share * (1 - share) / samples)))) for share in left]
        controller.observe(noisy, [1.0] * 3, [samples] * 3)
        kept.append(left)
    return state, kept


def spread(kept):
    tail = [sum(column) / 50 for column in zip(*kept[-50:], strict=True)]
    return max(tail) - min(tail)


@pytest.mark.parametrize("seed", range(10))
def test_classes_that_bear_more_masking_get_more_and_all_come_closer_to_the_target(seed):
    state, kept = train(PerClassLaw(ProportionalLaw(0.9, samples=768), 3), seed)
    low, middle, high = state.offsets
    assert -REACH <= low < middle < high <= REACH
    together = PerClassLaw(ProportionalLaw(0.9, samples=768), 3)
    together_rule = together.rule

    class OneForAll(PerClassLaw):
        def observe(self, metric, reference, counts=None):
            return together_rule.observe(sum(metric) / 3, sum(reference) / 3)

    _, alike = train(OneForAll(together_rule, 3), seed)
    assert spread(kept) < spread(alike) / 2
    assert sum(map(sum, kept[-50:])) / 150 == pytest.approx(0.9, abs=0.05)


def test_a_class_of_few_samples_moves_less_and_one_without_any_not_at_all():
    law = PerClassLaw(ConstantLaw(0.5), 3)
    offsets = law.observe([0.5, 1.0, 1.0], [1.0] * 3, [1000, 64, 0]).offsets
    assert offsets[1] > offsets[0] > -0.01
    assert offsets[2] == 0


def test_nothing_moves_apart_while_nothing_is_masked():
    law = PerClassLaw(ProportionalLaw(0.9, warmup=3), 2)
    for _ in range(3):
        assert law.observe([0.4, 0.9], [0.5, 1.0], [100, 100]).offsets == (0.0, 0.0)


def test_no_sequence_leaves_the_reach():
    law, rng = PerClassLaw(ConstantLaw(0.5), 2), random.Random(0)
    for _ in range(300):
        offsets = law.observe([rng.random() * 0.1, 1.0], [1.0, 1.0], [10_000] * 2).offsets
    assert offsets == (-REACH, REACH)


def test_resumed_through_json_it_decides_as_it_would_have():
    rng = random.Random(0)
    metrics = [[rng.uniform(0.7, 1.0) for _ in range(3)] for _ in range(30)]
    whole = PerClassLaw(ProportionalLaw(0.9, warmup=0), 3)
    for metric in metrics[:12]:
        whole.observe(metric, [1.0] * 3)
    resumed = PerClassLaw(ProportionalLaw(0.9, warmup=0), 3)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for metric in metrics[12:]:
        assert resumed.observe(metric, [1.0] * 3) == whole.observe(metric, [1.0] * 3)
    assert "On top of it each class has an offset: " in whole.explain()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PerClassLaw(ConstantLaw(0.5), 1), "classes must lie in"),
        (lambda: PerClassLaw(ConstantLaw(0.5), 2).observe([1, 1], None), "needs a reference for each class"),
        (
            lambda: PerClassLaw(ConstantLaw(0.5), 2).observe([1, 1, 1], [1, 1, 1]),
            r"must have 2 numbers each, got \{3\}",
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
