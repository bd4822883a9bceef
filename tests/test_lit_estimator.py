import copy
import csv

import pytest
import torch
import torch.nn.functional as nnf
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from infill_aug.confidence.estimator import ConfidenceEstimator
from infill_aug.confidence.training import TrainingSet, confidence_loss
from infill_aug.functional.quality import average_precision, calibration_bins, calibration_error_from_bins, iou
from infill_aug.lit.estimator import EstimatorModule, fit_estimator

# Lightning's own advice and its use of a deprecated torch function; neither is ours to act on.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
]
SIDE = 64
COLOURS = torch.tensor([[200.0, 60, 60], [60, 200, 60], [60, 60, 200]])


def discs(count, seed=0, height=SIDE, width=SIDE):
    """A red, green or blue disc on grey noise: pictures, masks, and which colour each has."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    sides = torch.tensor([height, width]).reshape(2, 1, 1)
    centres = sides * (0.25 + 0.5 * torch.rand(count, 2, 1, 1, generator=generator))
    radii = min(height, width) * (0.12 + 0.13 * torch.rand(count, 1, 1, generator=generator))
    masks = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < radii**2
    labels = torch.randint(0, 3, (count,), generator=generator)
    noise = torch.randn(count, 3, height, width, generator=generator)
    front = COLOURS[labels][:, :, None, None] + 15 * noise
    images = torch.where(masks[:, None], front, 115 + 30 * noise)
    return images.clamp(0, 255).round().to(torch.uint8), masks, labels


def training_set(count, seed=0):
    images, masks, _ = discs(count, seed)
    return TrainingSet(images, masks[:, None].to(torch.uint8) * 255, torch.ones(count, 1, dtype=torch.bool))


TRAIN, VALID, TEST = training_set(64, 1), training_set(16, 2), training_set(32, 3)
QUICK = {"batch_size": 16, "accelerator": "cpu", "progress": False}


def started(heads=("disc",), seed=0):
    torch.manual_seed(seed)
    return ConfidenceEstimator(heads, SIDE)


def fitted(estimator=None, training=TRAIN, validation=VALID, **options):
    return fit_estimator(estimator or started(), training, validation, **{"steps": 120, **QUICK, **options})


@torch.no_grad()
def maps(estimator, data, head=None):
    own, estimator.head = estimator.head, head or estimator.head
    found = copy.deepcopy(estimator).eval()(data.images.float() / 255)
    estimator.head = own
    return found


@torch.no_grad()
def loss(estimator, data):
    logits = copy.deepcopy(estimator).eval().logits(data.images.float() / 255)
    return confidence_loss(logits, data.targets.float() / 255, data.known).item()


def overlap(estimator, data, head=None, channel=0):
    return iou(maps(estimator, data, head), data.targets[:, channel : channel + 1] > 127).nanmean().item()


def weights(estimator):
    return {name: value.clone() for name, value in estimator.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def trained():
    return fitted()


@pytest.fixture(scope="module")
def classifier():
    """Tells the colours of discs; handed over in training mode, as a user may."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    images, _, labels = discs(96, 9)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(60):
        some = torch.arange(16) + 16 * (step % 6)
        optimiser.zero_grad()
        nnf.cross_entropy(model(images[some].float() / 255), labels[some]).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model


# --- it learns ---


def test_a_short_training_finds_discs_in_pictures_that_it_did_not_see(trained):
    start = started()
    assert overlap(trained, TEST) > 0.8 > 0.2 > overlap(start, TEST)
    assert loss(trained, TEST) < 0.5 * loss(start, TEST)


def test_the_averaged_weights_leave_the_start_behind_within_few_steps():
    """An average that held on to the start would be worse than it for as long as a short training lasts."""
    assert overlap(fitted(steps=60), TEST) > 0.5


def test_what_comes_back_is_ready_for_use(trained):
    assert not any(module.training for module in trained.modules())
    assert all(value.device.type == "cpu" for value in trained.state_dict().values())
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert (trained.heads, trained.input_size) == (("disc",), SIDE)
    assert all(torch.isfinite(value).all() for value in trained.state_dict().values())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    start = started()
    torch.manual_seed(1)
    one = fitted(start, steps=12, seed=4)
    torch.manual_seed(2)
    again, other = fitted(start, steps=12, seed=4), fitted(start, steps=12, seed=5)
    assert same(weights(one), weights(again))
    assert not torch.equal(one.logit.weight, other.logit.weight)


def test_the_given_estimator_is_left_as_it_was():
    start = started().train()
    start.temperature.fill_(3.0)
    start.quality = {"disc": {"ap": 0.5}}
    before = weights(start)
    result = fitted(start, steps=6)
    assert same(before, weights(start))
    assert start.training
    assert start.quality == {"disc": {"ap": 0.5}}
    assert all(p.requires_grad and p.grad is None for p in start.parameters())
    assert not torch.equal(result.trunk.stem[0][0].weight, start.trunk.stem[0][0].weight)


# --- heads ---


def test_a_frozen_trunk_keeps_itself_and_the_scores_of_other_heads_bit_for_bit(trained):
    start = trained.with_heads(("disc", "corner"))
    start.temperature.copy_(torch.tensor([1.7, 1.0]))
    before = {name: value for name, value in weights(start.trunk).items() if "num_batches" not in name}
    scores = maps(start, TEST, "disc")
    corners = torch.zeros_like(TRAIN.targets)
    corners[..., :32, :32] = 255
    data = TrainingSet(TRAIN.images, corners, TRAIN.known).widen(2, 1)
    result = fitted(start, data, data.take(slice(16)), steps=30, freeze_trunk=True)
    after = weights(result.trunk)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert result.temperature[0] == start.temperature[0]
    assert torch.equal(maps(result, TEST, "disc"), scores)
    assert not torch.equal(maps(result, TEST, "corner"), maps(start, TEST, "corner"))


def test_two_heads_learn_together_from_pictures_that_each_teach_one():
    images, masks, labels = discs(96, 11)
    everything = masks[:, None].to(torch.uint8) * 255
    reds = everything * (labels == 0)[:, None, None, None]
    targets = torch.cat([everything, reds], dim=1)
    known = torch.ones(96, 2, dtype=torch.bool)
    known[::2, 1] = False
    known[1::2, 0] = False
    # What is not known means nothing: wrong on purpose.
    targets = torch.where(known[:, :, None, None], targets, 255 - targets)
    data = TrainingSet(images, targets, known)
    result = fitted(started(("disc", "red")), data.take(slice(72)), data.take(slice(72, 96)), steps=150)
    held, _, colours = discs(32, 3)
    assert overlap(result, TEST, "disc") > 0.7
    found = maps(result, TrainingSet(held, TEST.targets, TEST.known), "red")
    inside = (found * (TEST.targets > 127)).sum((1, 2, 3)) / (TEST.targets > 127).sum((1, 2, 3))
    assert inside[colours == 0].mean() > 0.6 > 0.25 > inside[colours != 0].mean()


def test_the_head_in_use_stays_in_use():
    start = started(("disc", "corner"))
    start.head = "corner"
    assert fitted(start, TRAIN.widen(2, 1), VALID.widen(2, 1), steps=2).head == "corner"


# --- calibration ---


def error(confidence, data):
    bins = calibration_bins(confidence, data.targets > 127)
    return calibration_error_from_bins(bins.mean(dim=0)).item()


def test_the_temperature_makes_held_out_confidence_no_worse(trained):
    assert trained.temperature.item() > 0
    plain = copy.deepcopy(trained)
    plain.temperature.fill_(1.0)
    assert trained.temperature.item() != pytest.approx(1.0, abs=0.02)
    # The probabilities' fit, which the temperature is chosen by, and the calibration error, which follows from it.
    entropy = [
        nnf.binary_cross_entropy(maps(one, VALID), VALID.targets.float() / 255).item() for one in (trained, plain)
    ]
    assert entropy[0] < entropy[1]
    assert error(maps(trained, VALID), VALID) <= error(maps(plain, VALID), VALID) + 0.005
    assert error(maps(trained, TEST), TEST) < 0.05


def test_a_head_that_no_validation_picture_knows_keeps_its_temperature():
    start = started(("disc", "other"))
    start.temperature.copy_(torch.tensor([1.0, 2.5]))
    result = fitted(start, TRAIN.widen(2, 0), VALID.widen(2, 0), steps=4)
    assert result.temperature[1] == 2.5
    assert result.temperature[0] != 1.0


# --- the best checkpoint ---


def test_the_precision_of_the_averaged_weights_is_logged_and_the_best_is_kept(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0)
    result = fitted(steps=60, logger=logger)
    with open(tmp_path / "run" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    values = [float(row["val_ap"]) for row in rows if row.get("val_ap")]
    losses = [float(row["train_loss"]) for row in rows if row.get("train_loss")]
    assert len(values) == 12
    assert all(0 <= value <= 1 for value in values)
    assert losses[-1] < losses[0]
    assert average_precision(maps(result, VALID), VALID.targets > 127).mean().item() == pytest.approx(
        max(values), abs=1e-4
    )


def test_a_validation_set_that_shows_nothing_leaves_the_last_weights(tmp_path, monkeypatch):
    """A soft teacher's maps may nowhere reach a half: there is no precision to choose by."""
    monkeypatch.chdir(tmp_path)
    for level in (0, 100):
        dim = TrainingSet(VALID.images, (VALID.targets > 127).to(torch.uint8) * level, VALID.known)
        result = fitted(validation=dim, steps=60)
        found = nnf.interpolate(result.logits(TEST.images.float() / 255).detach(), size=(SIDE, SIDE), mode="bilinear")
        assert average_precision(found.sigmoid(), TEST.targets > 127).mean() > 0.9
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_beside_and_nothing_is_printed_without_a_progress_bar(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    fitted(steps=4)
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""
    assert list(tmp_path.iterdir()) == []
    fitted(steps=4, progress=True)
    shown = capfd.readouterr()
    assert "train_loss" in shown.out + shown.err


# --- the masking-model objective ---


def test_a_classifier_takes_part_and_is_left_as_it_was(classifier):
    next(classifier.children()).eval()
    modes = [module.training for module in classifier.modules()]
    before = weights(classifier)
    with_it, without = fitted(steps=20, classifier=classifier), fitted(steps=20)
    assert same(before, weights(classifier))
    assert [module.training for module in classifier.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in classifier.parameters())
    assert not torch.equal(with_it.logit.weight, without.logit.weight)
    assert not any("classifier" in name for name in EstimatorModule(started(), 1, classifier=classifier).state_dict())


def test_a_classifier_teaches_the_head_in_use_and_no_other(classifier):
    start = started(("old", "disc"))
    start.head = "disc"
    before = maps(start, TEST, "old")
    result = fitted(
        start, TRAIN.widen(2, 1), VALID.widen(2, 1), steps=6, freeze_trunk=True, classifier=classifier
    )  # fmt: skip
    assert torch.equal(maps(result, TEST, "old"), before)


# --- what is refused ---


def test_sets_that_do_not_fit_are_refused_and_named():
    empty = TRAIN.take(slice(0))
    with pytest.raises(ValueError, match="the training set is empty"):
        fitted(training=empty)
    with pytest.raises(ValueError, match="the validation set is empty"):
        fitted(validation=empty)
    with pytest.raises(ValueError, match="2 heads, but the training targets have 1 channels"):
        fitted(started(("disc", "other")))
    with pytest.raises(ValueError, match="1 heads, but the validation targets have 3 channels"):
        fitted(validation=VALID.widen(3, 0))
