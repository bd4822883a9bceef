import itertools
import math

import pytest
import torch
from torch import nn

from infill_aug.batch import InfillAugment
from infill_aug.probe import ControlProbe
from infill_aug.threshold import ThresholdState

NORMALIZE = ((0.5,) * 3, (0.25,) * 3)
LABELS = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])


class Reads(nn.Module):
    """Knows the class by one pixel: bright is class 1."""

    def __init__(self, row, column):
        super().__init__()
        self.row, self.column = row, column
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        assert not self.training
        assert not torch.is_grad_enabled()
        bright = self.drop(images[:, 0, self.row, self.column]) * self.scale
        return torch.stack([-bright, bright], dim=1)


OBJECT, BACKGROUND = (lambda: Reads(4, 4)), (lambda: Reads(0, 0))


def batch(labels=LABELS, fill=0.5):
    """The class is written in the middle, which matters, and in the corners, which do not."""
    count = len(labels)
    shade = (labels.float() * 255).to(torch.uint8)[:, None, None, None]
    confidence = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    confidence[..., 2:6, 2:6] = 255
    infill = torch.full((count, 3, 8, 8), int(fill * 255), dtype=torch.uint8)
    infill[..., 2:6, 2:6] = shade.expand(-1, 3, 4, 4)  # as it is stored: the image where nothing was regenerated
    return {"image": shade.expand(-1, 3, 8, 8).clone(), "infill": infill, "confidence": confidence, "target": labels}


def probe(signal="retention", threshold=0.5, batches=None, **options):
    augment = InfillAugment(threshold, p=0.0, feather=0, normalize=NORMALIZE)  # what `p` leaves out is measured too
    return ControlProbe([batch()] if batches is None else batches, augment, signal, **options)


def test_a_model_that_reads_the_object_keeps_its_accuracy_and_one_that_reads_the_background_does_not():
    for signal in ("retention", "swapped"):
        reading = probe(signal)(OBJECT())
        assert (reading.metric, reading.clean, reading.samples, reading.chance) == (1.0, 1.0, 8, 0.5)
        assert probe(signal)(BACKGROUND()).metric == 0.5
    assert probe()(OBJECT()).reference == 1.0
    assert probe("swapped")(OBJECT()).reference is None


def test_swapped_backgrounds_come_from_another_class_and_bring_no_object_along():
    own = batch()
    corner = (own["target"].float() * 255).to(torch.uint8)[:, None, None, None]
    own["infill"][..., 0:2, 0:2] = corner.expand(-1, 3, 2, 2)  # fills that tell the class
    own["confidence"][::2, :, 2:4] = 0  # half of the objects are lower than the others
    assert probe("retention", batches=[own])(BACKGROUND()).metric == 1.0
    assert probe("swapped", batches=[own])(BACKGROUND()).metric == 0.0
    seen = []
    model = BACKGROUND()
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    probe("swapped", batches=[own])(model)
    upper = seen[0][::2, 0, 2:4, 2:6] * 0.25 + 0.5  # masked here, kept in the other
    assert torch.equal(upper, own["infill"][::2, 0, 2:4, 2:6] / 255)


def test_confidence_needs_no_labels_and_falls_where_the_model_looks_at_what_is_masked():
    unlabelled = batch() | {"target": torch.full((8,), -1)}
    kept, lost = (probe("confidence", batches=[unlabelled])(model()) for model in (OBJECT, BACKGROUND))
    assert kept.metric == kept.reference > 0.95
    assert lost.metric == pytest.approx(0.5, abs=0.01)
    assert lost.learned


def test_the_threshold_in_force_decides_what_is_masked():
    state = ThresholdState()
    measured = probe(threshold=state)
    assert measured(BACKGROUND()).metric == 1.0
    state.set(1.0)
    assert measured(BACKGROUND()).metric == 0.5


def test_nothing_is_left_behind_and_two_calls_read_the_same():
    class Noise(nn.Module):
        def forward(self, infill, mask):
            return torch.rand_like(infill)

    measured, model = probe(), BACKGROUND()
    measured.augment.variation = Noise()
    model.eval()
    model.drop.train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second = measured(model), measured(model)
    assert first == second
    assert torch.equal(torch.rand(2), expected)
    assert (model.training, model.drop.training) == (False, True)
    assert measured.augment.masked_share is None


def test_the_batches_are_read_once():
    def endless():
        return itertools.islice(iter([batch()] * 3), 3)

    measured = probe(batches=endless)
    assert measured(OBJECT()).samples == measured(OBJECT()).samples == 24
    once = probe(batches=iter([batch()]))
    assert once(OBJECT()) == once(OBJECT())


def test_a_model_has_learned_when_it_beats_the_most_frequent_class_by_more_than_noise():
    labels = torch.tensor([0] * 60 + [1] * 40)
    always_zero = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    nn.init.zeros_(always_zero[1].weight)
    with torch.no_grad():
        always_zero[1].bias.copy_(torch.tensor([1.0, 0.0]))
    reading = probe(batches=[batch(labels)])(always_zero)
    assert reading.chance == reading.clean == pytest.approx(0.6)
    assert not reading.learned
    assert probe(batches=[batch(labels)])(OBJECT()).learned


def test_with_a_threshold_for_each_class_there_is_a_metric_for_each():
    state = ThresholdState(0.0, mode="absolute", classes=3)
    state.set(0.0, [0.0, 0.5, 0.5])
    three = [batch(torch.tensor([0, 0, 0, 1])), batch(torch.tensor([1, 0]))]
    for one in three:
        one["confidence"][..., :2, :] = 100  # masked from 0.4 on: not by the first class's threshold
    reading = probe(threshold=state, batches=three)(BACKGROUND())
    assert reading.counts == [4, 2, 0]
    assert reading.metric == [1.0, 0.0, 1.0]  # grey is not bright; who has no pictures has nothing to say
    assert reading.reference == [1.0, 1.0, 1.0]


def test_other_tasks_bring_their_score():
    dense = [batch() | {"target": {"mask": torch.zeros(8, 8, 8, dtype=torch.int64)}}]
    with pytest.raises(KeyError, match=r"accuracy needs .* got dict; for another task pass score="):
        probe(batches=dense)(OBJECT())
    scored = probe(batches=dense, score=lambda output, target: (target["mask"] == 0).float().mean((1, 2)))
    assert scored(OBJECT()).metric == 1.0


def test_scores_that_are_no_accuracy_know_no_chance_and_a_diverged_model_is_not_taken_for_a_beginner():
    loss = probe(score=lambda output, target: -nn.functional.cross_entropy(output, target, reduction="none"))
    reading = loss(OBJECT())
    assert reading.chance is None
    assert reading.clean < 0
    assert reading.learned
    broken = OBJECT()
    nn.init.constant_(broken.scale, math.nan)
    assert math.isnan(probe("confidence")(broken).clean)
    assert probe("confidence")(broken).learned


class Output(dict):
    logits = property(lambda self: self["logits"])


def test_outputs_that_hold_logits_and_models_of_half_precision_are_read_too():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = OBJECT()

        def forward(self, images):
            assert images.dtype == torch.bfloat16
            return Output(logits=self.model(images))

    assert probe()(Wrapped().to(torch.bfloat16)).metric == 1.0


def test_a_wrong_signal_and_no_batches_are_refused():
    with pytest.raises(ValueError, match=r"signal must be one of \('retention', 'confidence', 'swapped'\), got 'loss'"):
        probe("loss")
    with pytest.raises(ValueError, match="the control split gave no batch"):
        probe(batches=[])(OBJECT())
