import json
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests_support import launch_ranks

from infill_aug.control.controller import ThresholdController
from infill_aug.control.per_class import PerClassLaw
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.control.schedule import ConstantLaw
from infill_aug.threshold import ThresholdState


@dataclass
class Reading:
    metric: float | list
    learned: bool
    reference: float | list = 0.8
    clean: float = 0.8
    chance: float = 0.5
    counts: list | None = None


def test_the_state_goes_where_the_law_says_and_the_decision_has_its_threshold():
    state = ThresholdState()
    controller = ThresholdController(state, ProportionalLaw(0.9, warmup=0))
    rising = [controller.observe(0.8) for _ in range(6)]
    assert [decision.threshold for decision in rising] == sorted({decision.threshold for decision in rising})
    assert rising[-1].threshold == state.threshold
    assert controller.observe(0.2).threshold < rising[-1].threshold
    assert controller.seen == (0.2, None)
    assert "reveal more" in controller.last.reason


def test_a_bound_of_the_state_is_where_the_law_goes_on_from():
    state = ThresholdState(bounds=(0.0, 0.3))
    controller = ThresholdController(state, ProportionalLaw(0.9, warmup=0))
    for _ in range(40):
        held = controller.observe(0.8)
    assert held.threshold == pytest.approx(0.3)
    assert controller.observe(0.6).threshold < 0.3  # nothing was wound up


def test_a_metric_that_is_not_finite_is_an_error_or_sat_out():
    with pytest.raises(ValueError, match="metric is nan: find out why, or pass check_finite=False"):
        ThresholdController(ThresholdState()).observe(math.nan)
    with pytest.raises(ValueError, match="reference is inf"):
        ThresholdController(ThresholdState()).observe(0.5, math.inf)
    patient = ThresholdController(ThresholdState(0.4), check_finite=False)
    decision = patient.observe(math.nan)
    assert (decision.strength, decision.reason, decision.changed) == (0.4, "metric is nan: hold.", False)
    assert patient.rule.intervals == 0


def test_numbers_of_torch_and_numpy_are_numbers_and_lists_are_checked_one_by_one():
    values = [0.8, torch.tensor(0.8, dtype=torch.float64), np.float64(0.8), torch.tensor([0.8], dtype=torch.float64)[0]]
    decisions = [ThresholdController(ThresholdState(), ProportionalLaw(warmup=0)).observe(value) for value in values]
    assert decisions == [decisions[0]] * 4
    apart = ThresholdController(ThresholdState(0.3, classes=2), PerClassLaw(ConstantLaw(0.3), 2), check_finite=False)
    assert apart.observe(torch.tensor([0.5, math.nan]), [1.0, 1.0], [9, 9]).reason.endswith("nan]: hold.")
    assert apart.observe(torch.tensor([0.5, 0.7]), [1.0, 1.0], [9, 9]).offsets[0] < 0


def test_a_decision_says_what_came_of_it_where_a_bound_stopped_the_law():
    state = ThresholdState(bounds=(0.0, 0.5))
    controller = ThresholdController(state, ConstantLaw(0.9))
    first, second = controller.observe(0.8), controller.observe(0.8)
    assert first.strength == second.strength == state.strength < 0.9
    assert (first.changed, second.changed) == (True, False)


def test_a_checkpoint_of_another_law_is_refused_by_name():
    saved = ThresholdController(ThresholdState(), ConstantLaw(0.5)).state_dict()
    with pytest.raises(ValueError, match="saved with ConstantLaw, and this is ProportionalLaw; use the saved law"):
        ThresholdController(ThresholdState()).load_state_dict(saved)


def test_a_law_for_all_follows_the_mean_of_the_classes():
    reading = Reading([1.0, 0.0], True, [1.0, 1.0], counts=[30, 10])
    controller = ThresholdController(ThresholdState(classes=2), ConstantLaw(0.5))
    controller.follow(reading)
    assert controller.seen == (0.75, 1.0)


def test_an_interval_can_be_held():
    controller = ThresholdController(ThresholdState(0.4), ConstantLaw(0.9))
    assert controller.hold("Not yet").reason == "Not yet: hold."
    assert controller.state.strength == 0.4
    assert controller.rule.intervals == 0


def test_a_reading_is_followed_once_the_model_has_learned_and_ever_after():
    controller = ThresholdController(ThresholdState(0.4), ProportionalLaw(0.9, warmup=0))
    assert (
        controller.follow(Reading(0.8, learned=False)).reason == "Accuracy 0.800 is not above chance, 0.500, yet: hold."
    )
    assert controller.follow(Reading(0.8, learned=True)).strength > 0.4
    resumed = ThresholdController(ThresholdState(0.4), ProportionalLaw(0.9, warmup=0))
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert resumed.follow(Reading(0.1, learned=False)).strength < controller.state.strength
    scheduled = ThresholdController(ThresholdState(), ConstantLaw(0.7))
    assert scheduled.follow(Reading(0.1, learned=False)).strength == 0.7


@pytest.mark.parametrize("stop", [0, 3, 11])
def test_resumed_through_json_it_decides_as_it_would_have(stop):
    def fresh():
        return ThresholdController(ThresholdState(0.1), ProportionalLaw(0.9, samples=100))

    rng = random.Random(1)
    metrics = [(rng.uniform(0.6, 0.9), 0.85) for _ in range(30)]
    whole = fresh()
    before = [whole.observe(*metric) for metric in metrics[:stop]]
    saved = json.dumps(whole.state_dict())
    after = [whole.observe(*metric) for metric in metrics[stop:]]
    resumed = fresh()
    resumed.load_state_dict(json.loads(saved))
    assert [resumed.observe(*metric) for metric in metrics[stop:]] == after
    assert len(before) == stop


def test_it_explains_where_it_stands_and_why():
    quantile = ThresholdController(ThresholdState.from_threshold(0.4), ProportionalLaw(0.9))
    quantile.observe(0.8)
    text = quantile.explain()
    assert text.startswith("Threshold 0.400: 40% of each picture's pixels are masked, protected ones aside.")
    assert text.endswith("holds a retention of 0.900, give or take 0.010. After 1 intervals: " + quantile.last.reason)
    absolute = ThresholdController(ThresholdState(0.4, mode="absolute"), ConstantLaw(0.2))
    assert "0.400 is the confidence to exceed" in absolute.explain()


TWO_RANKS = """
    import json, os, pathlib, sys
    import torch.distributed as dist
    from infill_aug.control.controller import ThresholdController
    from infill_aug.control.proportional import ProportionalLaw
    from infill_aug.threshold import ThresholdState

    def rank(index, folder):
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=2)
        state = ThresholdState(0.1 * index)  # ranks that started elsewhere
        controller = ThresholdController(state, ProportionalLaw(0.9, warmup=0))
        decisions = [controller.observe(metric + 0.1 * index, 1.0) for metric in (0.9, 0.95, 0.9, 0.4, 0.5, 0.9)]
        pathlib.Path(folder, f"rank{index}.json").write_text(json.dumps([d.threshold for d in decisions]))
        dist.barrier()
        dist.destroy_process_group()

    if __name__ == "__main__":
        import torch.multiprocessing as mp
        mp.spawn(rank, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_ranks_that_measured_different_metrics_end_with_the_same_threshold(tmp_path):
    launch_ranks(TWO_RANKS, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[2] > first[4]
