import dataclasses
import json
import math

import pytest
import torch
from tests_support import picture
from torch import nn

from infill_aug.confidence.evaluation import QualityReport, evaluate_confidence
from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.sources import CallableConfidence, CentreConfidence, MaskConfidence
from infill_aug.functional.quality import average_precision, iou, max_f
from infill_aug.types import ConfidenceMap

TRUTH = MaskConfidence(key="mask", falloff=0)
SIZES = ((40, 40), (32, 48), (40, 40), (48, 32))


def samples(count=12, label=None):
    """Pictures of several sizes, each with a square of bright stripes away from the centre, and its mask."""
    found = []
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        image = picture(i, height, width) // 4
        mask = torch.zeros(height, width, dtype=torch.int64)
        top, left = (2 + i % 3, 3) if i % 2 else (height - 14, width - 15 - i % 3)
        mask[top : top + 12, left : left + 12] = 1
        stripes = (torch.arange(width) % 2 * 255).to(torch.uint8)
        image = torch.where(mask.bool(), stripes, image)
        found.append({"image": image, "mask": mask} | ({} if label is None else {"label": label(i)}))
    return found


def from_mask(change):
    return CallableConfidence(lambda image, target: change((target["mask"] != 0).float()[None]), name="from-mask")


class StripeClassifier(nn.Module):
    """Class 1 where there are bright stripes, class 0 where there are none."""

    def forward(self, images):
        energy = (images.diff(dim=3).abs() > 0.6).float().mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(energy), 200 * energy - 4], dim=1)


def quiet(*args, **options):
    return evaluate_confidence(*args, progress=False, **options)


def test_the_truth_itself_passes_and_has_every_best_score():
    report = quiet(TRUTH, samples(), TRUTH)
    assert report.passes
    assert report.verdict.startswith("passes: AP 1.000 on 12 pictures")
    best = {"iou": 1, "iou_at_area": 1, "ap": 1, "max_f": 1, "mae": 0, "pointing": 1, "calibration": 0}
    assert report.scores == pytest.approx(best, abs=1e-6)
    assert report.samples == report.truths == 12
    assert report.leak is None


def test_the_centre_prior_does_not_pass_and_is_its_own_yardstick():
    report = quiet(CentreConfidence(), central(), TRUTH)
    assert report.scores == report.centre
    assert not report.passes
    assert report.verdict.startswith("fails: AP ")


def central(count=12):
    """Samples whose square lies in the middle."""
    found = samples(count)
    for sample in found:
        height, width = sample["mask"].shape
        sample["mask"] = torch.zeros_like(sample["mask"])
        sample["mask"][height // 2 - 6 : height // 2 + 6, width // 2 - 6 : width // 2 + 6] = 1
    return found


def test_a_map_worse_than_the_centre_prior_is_reported_as_such():
    source = from_mask(lambda mask: (0.5 * mask + torch.rand(mask.shape)) / 2)
    report = quiet(source, central(), TRUTH)
    assert report.random["ap"] < report.scores["ap"] < report.centre["ap"]
    assert not report.passes
    assert "worse than the centre prior" in report.verdict
    assert "Use the centre prior instead" in report.verdict


def test_a_map_that_knows_nothing_does_not_pass_because_what_matters_avoids_the_centre():
    data = central()
    for sample in data:
        sample["mask"] = 1 - sample["mask"]
    report = quiet(CallableConfidence(lambda image, target: torch.rand(1, *image.shape[-2:]), "noise"), data, TRUTH)
    assert report.scores["ap"] > report.centre["ap"] + 0.02
    assert not report.passes
    assert "a random map has" in report.verdict
    assert QualityReport(5, 5, {"ap": 0.5}, {"ap": 0.3}, {"ap": 0.5}).needed == pytest.approx(0.6)


def test_random_maps_score_near_the_true_share_and_do_not_pass():
    data = samples(40)
    share = torch.stack([sample["mask"].float().mean() for sample in data]).mean().item()
    report = quiet(CallableConfidence(lambda image, target: torch.rand(1, *image.shape[-2:]), "noise"), data, TRUTH)
    assert report.scores["ap"] == pytest.approx(share, abs=0.03)
    assert report.random["ap"] == pytest.approx(share, abs=0.06)
    assert set(report.random) == {"iou_at_area", "ap", "max_f", "pointing"}
    assert not report.passes


@pytest.mark.parametrize(
    ("ap", "centre", "passes"),
    [
        (0.5, 0.4, True),
        (0.499, 0.4, False),
        (0.93, 0.9, False),
        (0.95, 0.9, True),
        (0.9, 0.79, True),
        (0.3, 0.5, False),
    ],
)
def test_the_gate_is_a_tenth_above_the_prior_or_half_of_what_is_left_to_one(ap, centre, passes):
    report = QualityReport(5, 5, {"ap": ap, "deletion": 0.9}, {"ap": centre}, {"deletion": 0.1})
    assert report.passes == passes
    assert report.verdict.startswith("passes" if passes else "fails")


@pytest.mark.parametrize(("deletion", "passes"), [(0.39, True), (0.41, False), (0.6, False), (math.nan, False)])
def test_without_masks_the_gate_is_a_deletion_a_fifth_below_the_random_maps(deletion, passes):
    report = QualityReport(5, 0, {"deletion": deletion}, {"deletion": 0.1}, {"deletion": 0.5})
    assert report.passes == passes
    assert ("worse than a random map" in report.verdict) == (deletion > 0.5)


def test_a_graded_ring_lowers_iou_and_not_average_precision():
    graded = MaskConfidence(key="mask", falloff=0.2)
    report = quiet(graded, samples(), TRUTH)
    assert report.scores["iou"] < 0.7
    assert report.scores["ap"] > 0.999


def test_scores_are_means_over_pictures_and_max_f_is_of_the_set():
    data = [sample for sample in samples() if sample["image"].shape[-2:] == (40, 40)]
    noise = torch.rand(1, 40, 40)
    source = from_mask(lambda mask: 0.5 * mask * noise.sqrt() + 0.5 * noise)
    confidence = torch.stack([source(sample["image"], sample) for sample in data])
    truth = torch.stack([sample["mask"] for sample in data])[:, None] > 0
    scores = quiet(source, data, TRUTH).scores
    assert scores["ap"] == pytest.approx(average_precision(confidence, truth).mean().item())
    assert scores["iou"] == pytest.approx(iou(confidence, truth).mean().item())
    assert scores["max_f"] == pytest.approx(max_f(confidence, truth))


def test_pictures_whose_mask_says_nothing_are_left_out_and_counted():
    data = samples()
    data[3]["mask"] = torch.zeros_like(data[3]["mask"])  # MaskConfidence: full confidence everywhere
    data[4]["mask"] = torch.ones_like(data[4]["mask"])
    report = quiet(TRUTH, data, TRUTH)
    assert (report.samples, report.truths) == (12, 10)
    inverse = quiet(from_mask(lambda mask: 1 - mask), data, TRUTH)
    alone = quiet(from_mask(lambda mask: 1 - mask), data[:3] + data[5:], TRUTH)
    assert inverse.scores == pytest.approx(alone.scores)
    nothing = quiet(TRUTH, data[3:5], TRUTH)
    assert nothing.truths == 0
    assert not nothing.passes
    assert "none of 2 masks says anything" in nothing.verdict


class Network(NetworkConfidence):
    """Bright pixels matter; counts its batches."""

    def __init__(self, **options):
        super().__init__(**options)
        self.batches = []

    def score(self, images, prompts):
        self.batches.append(len(images))
        return images.amax(dim=1, keepdim=True)

    def identity(self):
        return {}


def test_a_network_runs_in_batches_and_scores_as_one_picture_at_a_time_does():
    network = Network(batch_size=8)
    report = quiet(network, samples(), TRUTH)
    # 12 pictures are read 8 and 4 at a time; each group of one size is a batch.
    assert sorted(network.batches) == [1, 1, 2, 2, 2, 4]
    assert quiet(CallableConfidence(network, "one"), samples(), TRUTH) == report
    assert quiet(TRUTH, samples(), Network()).truths == 12, "a network may be the truth too"


def test_large_pictures_are_measured_small_and_score_the_same():
    mask = torch.zeros(600, 400, dtype=torch.int64)
    mask[:200, :150] = 1
    large = [{"image": picture(0, 600, 400), "mask": mask}]
    seen = []
    report = quiet(
        from_mask(lambda mask: (0.2 + 0.6 * mask)), large, TRUTH,
        classifier=lambda images: seen.append(images.shape[-2:]) or StripeClassifier()(images),
    )  # fmt: skip
    assert report.scores["iou"] == pytest.approx(1)
    assert report.scores["ap"] == pytest.approx(1)
    assert report.scores["mae"] == pytest.approx(0.2, abs=0.01)
    assert set(seen) == {(256, 171)}


def test_a_classifier_separates_right_from_random_and_wrong_without_masks():
    data = samples(6)
    right = quiet(TRUTH, data, classifier=StripeClassifier().eval())
    wrong = quiet(from_mask(lambda mask: 1 - mask), data, classifier=StripeClassifier().eval())
    assert right.passes
    assert right.truths == 0
    assert "deletion AUC" in right.verdict
    assert not wrong.passes
    assert "worse than a random map" in wrong.verdict
    assert list(right.scores) == ["deletion", "insertion", "kept_10", "kept_25", "kept_50", "kept_100"]
    assert right.scores["kept_25"] == right.scores["kept_100"] == 1
    assert wrong.scores["kept_25"] == 0
    assert right.random == wrong.random, "the yardstick depends on pictures and seed alone"


def test_labels_are_what_counts_as_right_unless_they_are_left_out():
    data, source = samples(4, label=lambda i: 0), from_mask(lambda mask: mask)
    classifier = StripeClassifier().eval()  # says 1
    assert quiet(source, data, classifier=classifier).scores["kept_100"] == 0
    assert quiet(source, data, classifier=classifier, labels=False).scores["kept_100"] == 1
    with pytest.raises(ValueError, match=r"sample 0: its label 7 .* 2 classes; pass labels=False"):
        quiet(source, samples(2, label=lambda i: 7), classifier=classifier)


def test_normalize_stands_between_the_pictures_and_the_classifier():
    data, seen = samples(2), []

    def normalize(images):
        assert images.min() >= 0
        assert images.max() <= 1
        return nn.functional.interpolate(images, (20, 20)) - 5

    def classifier(images):
        seen.append(images.shape[-2:])
        assert images.max() < 0
        return StripeClassifier()(images)

    assert "deletion" in quiet(TRUTH, data, classifier=classifier, normalize=normalize).scores
    assert set(seen) == {(20, 20)}


def test_maps_that_code_the_class_are_reported_and_still_pass_the_gate():
    coded = CallableConfidence(
        lambda image, target: (target["mask"] != 0).float()[None] * (0.4 + 0.6 * target["label"]), name="coded"
    )
    data = samples(40, label=lambda i: int(i % 4 < 2))
    report = quiet(coded, data, TRUTH)
    assert report.leak.leaks
    assert report.scores["leak"] == report.leak.accuracy > 0.8
    assert report.random["leak"] == 0.5
    assert report.passes
    assert "give the class away" in report.verdict
    assert quiet(coded, data, TRUTH, labels=False).leak is None


def test_a_report_is_a_table_and_json_and_comes_out_the_same_again():
    data = samples(6, label=str)
    report = quiet(Network(), data, TRUTH, classifier=StripeClassifier().eval(), seed=4)
    assert quiet(Network(), data, TRUTH, classifier=StripeClassifier().eval(), seed=4) == report
    assert quiet(Network(), data, TRUTH, classifier=StripeClassifier().eval(), seed=5) != report
    lines = str(report).splitlines()
    assert lines[0] == "| score | profile | centre prior | random |"
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(report.scores)
    assert lines[2].endswith("| - |"), "a random map has no IoU at a threshold"
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read["scores"] == report.scores
    assert read["passes"] is report.passes
    assert read["verdict"] == report.verdict
    broken = dataclasses.replace(report, scores={**report.scores, "ap": math.nan})
    assert broken.to_dict()["scores"]["ap"] is None
    assert not broken.passes


def test_a_limit_takes_samples_from_the_whole_dataset():
    asked = []

    class Counted(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    assert quiet(TRUTH, Counted(samples(11)), TRUTH, limit=3).samples == 3
    assert asked == [0, 5, 10]
    assert quiet(TRUTH, samples(2), TRUTH, limit=99).samples == 2


def test_confidence_maps_of_the_package_are_maps_too():
    source = CallableConfidence(lambda image, target: image[:1].float() / 255, "red")
    wrapped = [
        lambda image, target: ConfidenceMap(source(image, target)),
        lambda image, target: ConfidenceMap(source(image, target), dtype=torch.uint8),
    ]
    for one in wrapped:
        assert quiet(one, samples(3), TRUTH).scores == pytest.approx(quiet(source, samples(3), TRUTH).scores, abs=1e-3)


def test_what_cannot_be_evaluated_is_refused_and_named():
    data = samples(3)
    with pytest.raises(ValueError, match="nothing to measure against; give truth="):
        quiet(TRUTH, data)
    with pytest.raises(ValueError, match="the dataset is empty"):
        quiet(TRUTH, [], TRUTH)
    with pytest.raises(ValueError, match="limit must be 1 or more, got 0"):
        quiet(TRUTH, data, TRUTH, limit=0)
    with pytest.raises(ValueError, match=r"call classifier.eval\(\)"):
        quiet(TRUTH, data, classifier=StripeClassifier().train())
    with pytest.raises(ValueError, match="cannot read sample 1: KeyError"):
        quiet(TRUTH, [data[0], {"mask": 1}], TRUTH)
    with pytest.raises(ValueError, match="cannot read the truth of sample 0: KeyError"):
        quiet(CentreConfidence(), data, MaskConfidence(key="trimap"))
    with pytest.raises(ValueError, match=r"cannot score sample 0: ValueError: its map has shape \(1, 2, 2\)"):
        quiet(lambda image, target: torch.zeros(1, 2, 2), data, TRUTH)
    with pytest.raises(ValueError, match=r"cannot score sample 0: ValueError: confidence must lie in 0\.\.1"):
        quiet(lambda image, target: 2 + torch.zeros(1, *image.shape[-2:]), data, TRUTH)
