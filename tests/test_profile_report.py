import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import disc, picture
from torch import nn

from infill_aug.confidence.estimator import ConfidenceEstimator, EstimatorConfidence
from infill_aug.confidence.evaluation import evaluate_confidence
from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.profile_report import save_maps, save_report
from infill_aug.confidence.sources import CentreConfidence, MaskConfidence
from infill_aug.profile import TaskProfile

TRUTH = MaskConfidence("mask", falloff=0.0)
FIGURES = ("share_curve.png", "reliability.png", "cases.png")
SIZES = [(24, 24), (30, 50), (300, 200), (24, 24), (64, 17), (40, 40)]


def sample(seed, height, width, empty=False):
    side = min(height, width)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:side, :side] = disc(side)
    image = picture(seed, height, width) // 2
    image[:, mask] += 120
    return image, {"mask": mask & (not empty)}


MIXED = [sample(i, *size) for i, size in enumerate(SIZES)]
ALIKE = [sample(i, 32, 48) for i in range(5)]
EMPTY = [sample(i, 32, 48, empty=True) for i in range(3)]


class Bright(NetworkConfidence):
    """What is bright matters; it counts how often it is asked, and with which reach."""

    def __init__(self, **grading):
        super().__init__(**grading)
        self.asked = []

    def score(self, images, prompts):
        self.asked += [self.falloff] * len(images)
        return nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 3, 1, 1).clamp(0, 1)

    def identity(self):
        return {}


class Prompted(Bright):
    """As segmenters that are prompted: nothing without a target."""

    reads_target = True

    def prompt(self, target):
        return int(target["mask"].sum())

    def score(self, images, prompts):
        assert None not in prompts
        return super().score(images, prompts)


def small_estimator():
    torch.manual_seed(3)
    return EstimatorConfidence(ConfidenceEstimator(("disc",), 32), falloff=0.2)


SOURCES = {
    "mask": lambda: MaskConfidence("mask", falloff=0.2),
    "centre": CentreConfidence,
    "network": lambda: Bright(falloff=0.2, batch_size=2),
    "prompted": lambda: Prompted(falloff=0.2),
    "estimator": small_estimator,
}


def colours(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return len(image.convert("RGB").getcolors(1 << 24))


def report(folder, source, data, truth=TRUTH, notes=None, **fields):
    folder.mkdir(exist_ok=True)
    profile = TaskProfile.load({"name": "disc", "description": "a disc, drawn", **fields})
    quality = evaluate_confidence(source, data, truth, progress=False)
    save_report(folder, profile, source, data, truth, quality, {"seed": 3, "von": "Mühe"} if notes is None else notes)
    return quality, (folder / "report.md").read_text(encoding="utf-8")


# --- the report ---


@pytest.mark.parametrize("data", [MIXED, ALIKE], ids=["mixed sizes", "one size"])
@pytest.mark.parametrize("kind", SOURCES)
def test_the_report_has_verdict_table_and_pictures_that_are_not_blank(tmp_path, kind, data):
    quality, text = report(tmp_path, SOURCES[kind](), data)
    assert {path.name for path in tmp_path.iterdir()} == {*FIGURES, "report.md"}
    assert all(colours(tmp_path / name) > 20 for name in FIGURES)
    assert text.startswith("# disc\n\na disc, drawn\n\n")
    assert quality.verdict in text
    assert str(quality) in text
    assert "| ap |" in text
    assert all(f"]({name})" in text for name in FIGURES)


def test_notes_stand_in_the_report_as_json(tmp_path):
    notes = {"seed": 3, "learned from": {"source": "MaskConfidence", "key": None}, "pictures": 12}
    _, text = report(tmp_path, CentreConfidence(), ALIKE, notes=notes)
    assert json.loads(text.split("```json\n")[1].split("```")[0]) == notes


def test_a_good_source_passes_and_a_bad_one_is_told_so_in_the_report(tmp_path):
    assert "passes: AP" in report(tmp_path / "good", MaskConfidence("mask", falloff=0.1), ALIKE)[1]
    assert "fails" in report(tmp_path / "bad", CentreConfidence(), ALIKE)[1]


@pytest.mark.parametrize("kind", SOURCES)
def test_masks_that_are_all_empty_leave_the_cases_out_and_say_that_nothing_was_measured(tmp_path, kind):
    if kind == "mask":  # full confidence without a labelled pixel, so that the truth is the whole picture
        kind = "centre"
    truth = Nothing()
    quality, text = report(tmp_path, SOURCES[kind](), EMPTY, truth)
    assert math.isnan(quality.needed)
    assert "none of 3 masks says anything" in text
    assert "cases.png" not in text
    assert not (tmp_path / "cases.png").exists()
    assert all(colours(tmp_path / name) > 5 for name in FIGURES[:2])


class Nothing:
    """Truth of pictures in which nothing matters."""

    def __call__(self, image, target):
        return torch.zeros(1, *image.shape[-2:])

    def config(self):
        return {}


def test_pictures_with_and_without_an_object_are_reported_together(tmp_path):
    class Own(Nothing):
        def __call__(self, image, target):
            return target["mask"][None].float()

    quality, text = report(tmp_path, Bright(), [*ALIKE, *EMPTY], Own())
    assert (quality.samples, quality.truths) == (8, 5)
    assert "cases.png" in text


def test_reliability_is_that_of_the_scores_and_the_reach_is_put_back(tmp_path):
    source = Bright(falloff=0.3)
    profile = TaskProfile.load({"name": "disc", "falloff": 0.3})
    quality = evaluate_confidence(source, ALIKE, TRUTH, progress=False)
    source.asked.clear()
    save_report(tmp_path, profile, source, ALIKE, TRUTH, quality, {})
    assert source.asked == [0.3] * 5 + [0.0] * 5
    assert source.falloff == 0.3


def test_of_many_pictures_some_are_drawn_from_first_to_last(tmp_path):
    class Counted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index % 5)

        def __len__(self):
            return 600

    read = []
    source, data = Bright(), Counted(ALIKE)
    quality = evaluate_confidence(source, ALIKE, TRUTH, progress=False)
    save_report(tmp_path, TaskProfile.load({"name": "disc"}), source, data, TRUTH, quality, {})
    assert read == list(range(0, 600, 10))


def test_the_image_is_read_where_it_is_said_to_be(tmp_path):
    data = [{"photo": image, **target} for image, target in ALIKE]
    quality = evaluate_confidence(CentreConfidence(), data, TRUTH, image_key="photo", progress=False)
    profile = TaskProfile.load({"name": "disc"})
    save_report(tmp_path, profile, CentreConfidence(), data, TRUTH, quality, {}, image_key="photo")
    assert colours(tmp_path / "cases.png") > 20


# --- the maps ---

TILE, PAD = 144, 2


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("mode", ["quantile", "absolute"])
def test_the_maps_of_pictures_of_any_size_are_drawn(tmp_path, kind, mode):
    profile = TaskProfile.load({"name": "disc", "mode": mode})
    assert save_maps(MIXED, SOURCES[kind](), profile, tmp_path / "maps.png") == 6
    assert colours(tmp_path / "maps.png") > 50
    with Image.open(tmp_path / "maps.png") as image:
        assert image.size == (6 * (TILE + PAD) + PAD, 3 * (TILE + PAD) + PAD)


def test_rows_are_the_picture_its_map_and_what_the_threshold_keeps(tmp_path):
    image = torch.full((3, 72, 72), 200, dtype=torch.uint8)
    mask = torch.zeros(72, 72, dtype=torch.bool)
    mask[18:54, 18:54] = True
    profile = TaskProfile.load({"name": "square", "threshold": 0.5, "mode": "absolute"})
    save_maps([(image, {"mask": mask})], TRUTH, profile, tmp_path / "maps.png")
    with Image.open(tmp_path / "maps.png") as drawn:
        pixels = torch.from_numpy(np.array(drawn.convert("L")))
    rows = [pixels[PAD + r * (TILE + PAD) :][:TILE, PAD : PAD + TILE] for r in range(3)]
    inner, rim = (slice(42, 102), slice(42, 102)), (slice(0, 30), slice(0, TILE))
    assert [(int(row[inner].unique()), int(row[rim].unique())) for row in rows] == [(200, 200), (255, 0), (200, 128)]


def test_labels_are_not_needed_by_a_source_that_reads_none_and_only_so_many_are_drawn(tmp_path):
    bare = [image for image, _ in MIXED]
    profile = TaskProfile.load("centre_prior")
    assert save_maps(bare, CentreConfidence(), profile, tmp_path / "few.png", count=4) == 4
    assert save_maps(bare, small_estimator(), profile, tmp_path / "all.png", count=60) == 6
    with Image.open(tmp_path / "few.png") as few, Image.open(tmp_path / "all.png") as every:
        assert few.size[0] < every.size[0]


def test_no_pictures_at_all_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no picture to draw"):
        save_maps([], CentreConfidence(), TaskProfile.load("centre_prior"), tmp_path / "maps.png")
    with pytest.raises(ValueError, match="no picture to draw: the dataset has 6, and count is 0"):
        save_maps(MIXED, CentreConfidence(), TaskProfile.load("centre_prior"), tmp_path / "maps.png", count=0)
    assert not (tmp_path / "maps.png").exists()
