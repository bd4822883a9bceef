import ast
import csv
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("hydra")
pytest.importorskip("lightning")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from tests_support import run_recipe as launch

from infill_aug import TaskDescriptor, load_backend
from infill_aug.confidence import ConfidenceEstimator, EstimatorConfidence, source_from_profile
from infill_aug.profile import TaskProfile
from infill_aug.variation.operation import GROUPS, list_operations

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TINY = ("data.size=32", "data.limit=24", "backend=push_pull", "infills.progress=false")


def metrics(folder):
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("metrics.json"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_short_and_does_nothing_when_imported(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert 'if __name__ == "__main__":' in text
    assert ast.get_docstring(ast.parse(text))


def test_nothing_imports_recipes():
    assert not (ROOT / "recipes" / "__init__.py").exists()
    names = {path.stem for path in RECIPES} | {"recipes"}
    for path in [
        *(ROOT / "infill_aug").rglob("*.py"),
        *(ROOT / "recipes").glob("*.py"),
        *(ROOT / "tests").glob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not names & {name.split(".")[0] for name in imported}, path


# --- build_cache.py ---


def test_building_a_store_dry_then_real_then_again(tmp_path):
    dry = launch("build_cache.py", *TINY, "dry_run=true", folder=tmp_path)
    assert re.search(r"24 images, \d+ infills: about \d+ s and [\d.]+ MB", dry)
    assert not list(tmp_path.rglob("*.tar"))
    first = launch("build_cache.py", *TINY, folder=tmp_path)
    assert int(re.search(r"(\d+) infills generated, 0 already there, 0 failures", first)[1]) > 24
    assert list((tmp_path / "outputs" / "store" / "digits").rglob("*.tar"))
    again = launch("build_cache.py", *TINY, folder=tmp_path)
    assert "0 infills generated" in again


def test_a_failure_ends_the_build_with_exit_code_1_and_its_reason(tmp_path):
    backend = """
        from infill_aug.infill.push_pull import PushPullBackend, push_pull

        class HalfBroken(PushPullBackend):
            name = "half_broken"

            def _generate(self, image, mask, config, samples):
                fill = push_pull(image, mask)
                fill[::2] = float("nan")
                return fill
    """
    (tmp_path / "half_broken.py").write_text(textwrap.dedent(backend), encoding="utf-8")
    output = launch("build_cache.py", *TINY, "infills.backend=half_broken:HalfBroken", folder=tmp_path, code=1)
    assert re.search(r"[1-9]\d* failures", output)
    assert re.search(r"picture \d+: .*(NaN|finite)", output)


# --- train.py ---


def test_a_quick_training_leaves_its_numbers_and_configs_in_its_folder(tmp_path):
    output = launch("train.py", "experiment=quick", "hydra.run.dir=run", folder=tmp_path)
    (found,) = metrics(tmp_path / "run")
    assert set(found) == {"data", "seed", "start", "threshold", "tied", "swapped", "seconds", "history"}
    assert found["data"] == "digits"
    assert found["threshold"] != found["start"]  # it followed the validation accuracy
    assert 0 <= found["swapped"] <= 100
    assert f"swapped {found['swapped']:.1f} %" in output
    with open(tmp_path / "run" / "csv" / "metrics.csv", encoding="utf-8") as file:
        assert any(row["infill/threshold"] for row in csv.DictReader(file))
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()


def test_a_sweep_over_thresholds_shares_one_store(tmp_path):
    swept = ("augment.threshold=0.5,0.9", "callbacks=fixed", "trainer=debug", "hydra.sweep.dir=sweep")
    output = launch("train.py", "-m", "experiment=quick", *swept, folder=tmp_path)
    assert [run["threshold"] for run in metrics(tmp_path / "sweep")] == pytest.approx([0.5, 0.9])
    generated = [int(count) for count in re.findall(r"(\d+) infills generated", output)]
    assert generated[0] > 0
    assert generated[1] == 0
    assert [path.name for path in (tmp_path / "outputs" / "store").iterdir()] == ["digits"]


def test_a_plain_training_needs_no_infills(tmp_path):
    launch("train.py", "experiment=quick", "augment=none", "logger=none", "hydra.run.dir=run", folder=tmp_path)
    (found,) = metrics(tmp_path / "run")
    assert found["threshold"] is None
    assert found["start"] is None
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "run" / "csv").exists()


FEEDBACK = (
    "experiment=feedback", "data.size=32", "data.limit=96", "batch_size=8", "control_split=24",
    "callbacks.drop.epoch=3", "infills.progress=false", "trainer.enable_progress_bar=false",
)  # fmt: skip


def test_the_closed_loop_is_swept_over_control_laws_and_drawn(tmp_path):
    rules = "rule@callbacks.adaptive.rule=proportional,sign,linear,constant"
    settings = (rules, "trainer.max_epochs=5", "hydra.sweep.dir=sweep")
    output = launch("train.py", "-m", *FEEDBACK, *settings, folder=tmp_path)
    runs = metrics(tmp_path / "sweep")
    assert [len(run["history"]) for run in runs] == [5] * 4
    assert all({"metric", "reference", "clean", "reason"} <= set(run["history"][0]) for run in runs)
    assert [run["history"][-1]["strength"] for run in runs[2:]] == pytest.approx([0.9, 0.5])
    assert "infill/retention: " in output
    folders = sorted(str(path.parent) for path in (tmp_path / "sweep").rglob("metrics.json"))
    output = launch("draw_feedback.py", *folders, "--drop", "3", "--output", "drawn.png", folder=tmp_path)
    assert len(re.findall(r"^\| digits \| 0 \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", output, flags=re.MULTILINE)) == 4
    assert np.asarray(Image.open(tmp_path / "drawn.png")).std() > 10
    assert "no metrics.json" in launch("draw_feedback.py", "nowhere", folder=tmp_path, code=1)


def test_control_laws_are_compared_in_simulated_trainings(tmp_path):
    output = launch("simulate_feedback.py", "--seeds", "3", folder=tmp_path)
    rows = dict(re.findall(r"^\| ([\w., ()-]+) \| [\d-]+[\d, ]* \| (\d+)% \|", output, flags=re.MULTILINE))
    assert rows["proportional"] == "0"
    assert int(rows["sign, 0.1"]) > 50


def test_a_missing_folder_is_asked_for_by_its_name(tmp_path):
    output = launch("train.py", "experiment=pets", "hydra.run.dir=run", folder=tmp_path, code=1)
    assert "data.root=VALUE" in output


# --- train_confidence.py ---

LEARNING = ("pictures=digits", "pictures.data.limit=24", "pictures.data.size=32", "steps=20", "start=null")


def test_a_training_of_confidence_leaves_a_profile_with_its_weights_and_report(tmp_path):
    output = launch("train_confidence.py", *LEARNING, "logger=csv", "hydra.run.dir=run", folder=tmp_path)
    folder = tmp_path / "outputs" / "confidence" / "salient_object"
    estimator = ConfidenceEstimator.load(folder / "salient_object.safetensors")
    quality = estimator.quality["salient_object"]
    assert quality["samples"] == 2
    assert quality["verdict"] in output
    assert f"| ap | {quality['scores']['ap']:.3f} |" in output
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert quality["verdict"] in report
    for name in re.findall(r"!\[.*?\]\((.*?)\)", report):
        assert (folder / name).stat().st_size > 1000
    # The profile is the bundled one, with the new weights.
    profile, bundled = TaskProfile.load(folder / "salient_object.yaml"), TaskProfile.load("salient_object")
    assert (profile.input_size, profile.bounds, profile.teacher) == (112, bundled.bounds, bundled.teacher)
    source = source_from_profile(profile)
    assert isinstance(source, EstimatorConfidence)
    assert source.quality == quality
    with open(tmp_path / "run" / "csv" / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert any(row["train_loss"] for row in rows)
    assert any(row["val_ap"] for row in rows)
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()


def test_a_training_of_confidence_goes_on_from_a_file_of_weights_and_keeps_its_head(tmp_path):
    first, second = ("output=first", "steps=4"), ("output=second", "steps=1", "start=first/salient_object.safetensors")
    launch("train_confidence.py", *LEARNING, *first, folder=tmp_path)
    launch("train_confidence.py", *LEARNING, *second, "freeze_trunk=true", "profile=pets", folder=tmp_path)
    begun = ConfidenceEstimator.load(tmp_path / "first" / "salient_object.safetensors")
    kept = ConfidenceEstimator.load(tmp_path / "second" / "pets.safetensors")
    assert set(kept.heads) == {"salient_object", "pets"}
    for name, value in begun.trunk.state_dict().items():
        assert value.equal(kept.trunk.state_dict()[name]), name


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("source=cam", "source.source.classifier=VALUE"),
        ("profile=zebra", "no bundled profile 'zebra'"),
    ],
)
def test_mistakes_in_a_training_of_confidence_are_named(setting, message, tmp_path):
    assert message in launch("train_confidence.py", *LEARNING[:3], setting, folder=tmp_path, code=1)


# --- train_infiller.py ---

FILLING = (
    "pictures=digits", "pictures.data.limit=24", "pictures.data.size=32", "objects=source", "source=masks", "size=32",
    "steps=3", "batch_size=4", "held=2", "hardware.accelerator=cpu", "hardware.precision=32-true",
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "backend", "options"),
    [
        ((), "diffusion", {"weights": "outputs/infiller/pipeline"}),
        (("model=gan", "objects=profile"), "gan", {"weights": "outputs/infiller/network.pt2", "multiple": 4}),
    ],
)
def test_a_trained_infiller_fills_as_a_backend(settings, backend, options, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    output = launch("train_infiller.py", *FILLING, *settings, folder=tmp_path)
    assert f"{options['weights']}: trained on 22 pictures" in output
    assert (tmp_path / "outputs" / "infiller" / "grids" / "000003.png").is_file()
    monkeypatch.chdir(tmp_path)
    image, mask = torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 8:24, 8:24] = True
    fill = load_backend(backend, **options).generate_infill(image, mask, TaskDescriptor("demo", "digit"))
    assert torch.equal(fill[~mask.expand_as(fill)], image[~mask.expand_as(fill)])
    assert not torch.equal(fill, image)


def test_an_infiller_goes_on_from_a_trained_one_and_an_unknown_model_is_named(tmp_path):
    pytest.importorskip("diffusers")
    launch("train_infiller.py", *FILLING, "output=first", folder=tmp_path)
    launch("train_infiller.py", *FILLING, "output=second", "start=first/pipeline", folder=tmp_path)
    assert (tmp_path / "second" / "pipeline" / "model_index.json").is_file()
    assert "lama" in launch("train_infiller.py", *FILLING, "model=lama", folder=tmp_path, code=1)


# --- plain_torch.py ---

NEITHER = "import sys; sys.modules['lightning'] = sys.modules['hydra'] = None"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loop_by_hand_runs_without_lightning_and_hydra(workers, tmp_path):
    tiny = ("--epochs", "3", "--limit", "40", "--size", "32", "--workers", str(workers))
    output = launch("plain_torch.py", *tiny, folder=tmp_path, prelude=NEITHER)
    assert "0 failures" in output
    thresholds = [float(value) for value in re.findall(r"^epoch \d: .* threshold ([\d.]+)\.", output, re.MULTILINE)]
    assert len(thresholds) == 3
    assert thresholds[0] == 0.5  # warm-up
    assert thresholds[-1] != 0.5


def test_the_loop_by_hand_takes_a_folder_of_pictures(tmp_path):
    random = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (36 + i % 3, 40, 3), dtype=np.uint8)).save(path)
    arguments = ("--folder", "pictures", "--store", "store", "--size", "32", "--epochs", "1")
    assert "16 images" in launch("plain_torch.py", *arguments, folder=tmp_path)
    assert (tmp_path / "store" / "STORE.json").is_file()


@pytest.mark.parametrize("settings", [("--model", "test_vit", "--size", "160"), ("--workers", "1")])
def test_a_loop_in_timms_style_trains_with_a_threshold_that_moves(settings, tmp_path):
    pytest.importorskip("timm")
    output = launch("timm_style.py", "--limit", "16", "--epochs", "4", *settings, folder=tmp_path)
    rows = re.findall(r"^epoch \d: loss ([\d.]+), top1 [\d.]+, threshold ([\d.]+)\. ", output, flags=re.MULTILINE)
    assert [threshold for _, threshold in rows[:3]] == ["0.800"] * 3
    assert len(rows) == 4
    assert all(0 < float(loss) < 10 for loss, _ in rows)


def test_fills_are_drawn_side_by_side(tmp_path):
    pytest.importorskip("diffusers")
    for i in range(4):
        path = tmp_path / "pictures" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        picture = np.random.default_rng(i).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(picture).save(path)
    arguments = ("--data", "pictures", "--size", "64", "--count", "3", "--profile", "centre_prior")
    output = launch("draw_infills.py", *arguments, folder=tmp_path)
    assert "the pictures, their holes, push_pull, telea, noise, donor, diffusion" in output
    with Image.open(tmp_path / "outputs" / "infills.png") as drawn:
        assert drawn.size == (3 * 66 + 2, 7 * 66 + 2)


def test_the_cost_of_a_fill_is_printed_arm_by_arm_and_the_backend_beats_the_script(tmp_path):
    pytest.importorskip("diffusers")
    output = launch("bench_infill.py", "--pictures", "1", "--variants", "1", "--rounds", "1", folder=tmp_path)
    rows = re.findall(r"^\| (.+?) \| [\d.]+ \| [\d.]+ x \| ([\d.]+) x \|$", output, re.MULTILINE)
    assert [name for name, _ in rows][::6] == [
        "script: a picture a call, 50 steps, guidance, PIL, PNG",
        "all of it, through the backend",
    ]
    assert float(rows[-1][1]) > 3


# --- variation: benchmarks and pictures ---


def test_the_benchmarks_of_variation_print_a_row_for_everything_that_they_compare(tmp_path):
    tiny = ("--sizes", "16", "--batch", "3", "--rounds", "1")
    output = launch("bench_variation.py", *tiny, folder=tmp_path)
    assert re.search(r"\| Variation \| \d+ \(1\.00\) \|", output)
    assert len(re.findall(r"^\| (?:Variation|kornia|torchvision)", output, flags=re.MULTILINE)) == 4
    output = launch("bench_operations.py", *tiny, folder=tmp_path)
    assert [name for name in list_operations() if f"| `{name}` |" not in output] == []


def test_the_benchmarks_of_the_step_print_its_cost_and_its_parts(tmp_path):
    tiny = ("--size", "32", "--batch", "2", "--rounds", "1")
    output = launch("bench_step.py", *tiny, "--models", "resnet18", folder=tmp_path)
    assert re.search(
        r"\| resnet18 \| [\d.]+ \(\+0\.0%\) \| [\d.]+ \([+-][\d.]+%\) \| [\d.]+ \([+-][\d.]+%\) \|", output
    )
    output = launch("bench_step_parts.py", *tiny, folder=tmp_path)
    for part in ("draw", "mask", "variation"):
        assert re.search(rf"\| {part} \| [\d.]+ \|  \|", output), output
    assert re.search(r"\| composite and normalise \| [\d.]+ \| [\d.]+ \|", output)


def test_diversity_is_nothing_without_variation_and_grows_with_its_strength(tmp_path):
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((48, 48)).save(
            tmp_path / f"{i}.png"
        )
    tiny = ("--data", str(tmp_path), "--plates", "6", "--draws", "3", "--size", "48")
    output = launch("bench_diversity.py", *tiny, folder=tmp_path)
    rows = dict(re.findall(r"^\| ([\w, ]+) \| ([\d.]+) \|", output, flags=re.MULTILINE))
    assert float(rows["nothing"]) == 0
    assert 0 < float(rows["everything, as by default"]) < float(rows["everything, at full strength"])
    sizes = ("--size", "32", "--columns", "2", "--output", str(tmp_path / "drawn"))
    output = launch("draw_variations.py", "--data", str(tmp_path), *sizes, folder=tmp_path)
    for group in GROUPS:
        picture = np.asarray(Image.open(tmp_path / "drawn" / f"variation_{group}.jpg"))
        assert picture.shape == (35 * len(list_operations(group)), 130 + 3 * 35, 3)
