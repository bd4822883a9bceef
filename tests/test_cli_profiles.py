import json

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
import yaml
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from infill_aug.cli import main
from infill_aug.confidence.estimator import ConfidenceEstimator, weights_path
from infill_aug.confidence.from_profile import source_from_profile
from infill_aug.profile import TaskProfile, list_profiles

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),  # Lightning calls a deprecated torch function
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
]

SIDE, COUNT = 48, 24
SCORES = ("iou", "iou_at_area", "ap", "max_f", "mae", "pointing", "calibration")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
FACE = [
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip",
    "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
]  # fmt: skip


def drawing(random):
    """A red disc somewhere on noise, and where it is."""
    y, x = np.mgrid[:SIDE, :SIDE]
    (top, left), radius = random.integers(10, SIDE - 10, 2), random.integers(7, 11)
    mask = (y - top) ** 2 + (x - left) ** 2 < radius**2
    image = random.integers(60, 190, (SIDE, SIDE, 3))
    image[mask] = np.array([230, 40, 40]) + random.integers(-20, 21, (mask.sum(), 3))
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Drawings, their masks with the disc at 255, the same with the disc at 1 and 2 beside it, and nobody's masks."""
    root, random = tmp_path_factory.mktemp("drawings"), np.random.default_rng(0)
    for name in ("images", "masks", "labels", "strangers"):
        (root / name).mkdir()
    for i in range(COUNT):
        image, mask = drawing(random)
        Image.fromarray(image).save(root / "images" / f"{i:02}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / f"{i:02}.png")
        labels = mask.astype(np.uint8)
        labels[:6] = np.where(mask[:6], 1, 2)
        Image.fromarray(labels).save(root / "labels" / f"{i:02}.png")
        Image.fromarray(labels).save(root / "strangers" / f"other{i:02}.png")
    return root


@pytest.fixture(scope="module")
def labels(folders):
    return "--data", folders / "images", "--masks", folders / "masks"


@pytest.fixture(scope="module")
def quick():
    return "--scratch", "--steps", 30


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A profile of one's own, without a teacher."""
    path = tmp_path_factory.mktemp("own") / "disc.yaml"
    path.write_text("source: estimator\ninput_size: 64\nfalloff: 0.1\ndescription: red discs\n", encoding="utf-8")
    return path


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = main(["profiles", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def trained(run, own, labels, quick, tmp_path):
    status, out, _ = run("train", own, *labels, *quick, "--output", tmp_path / "trained")
    assert status == 0
    return tmp_path / "trained", out


def table(out):
    """Rows of the printed table."""
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert rows[0] == ["score", "profile", "centre prior", "random"]
    return {name: values for name, *values in rows[2:]}


def levels(path, images):
    """Mean confidence inside and outside of masks, by a profile's file."""
    source = source_from_profile(TaskProfile.load(path))
    maps = source.maps([torch.from_numpy(image).permute(2, 0, 1) for image, _ in images])
    inside = np.mean([one[0].numpy()[mask].mean() for one, (_, mask) in zip(maps, images, strict=True)])
    outside = np.mean([one[0].numpy()[~mask].mean() for one, (_, mask) in zip(maps, images, strict=True)])
    return inside, outside


# --- train ---


def test_training_from_masks_writes_weights_profile_and_report_and_prints_what_it_measured(trained):
    folder, out = trained
    assert {path.name for path in folder.iterdir()} == {
        "disc.safetensors", "disc.yaml", "report.md", "cases.png", "reliability.png", "share_curve.png",
    }  # fmt: skip
    estimator = ConfidenceEstimator.load(folder / "disc.safetensors")
    quality = estimator.quality["disc"]
    assert estimator.heads == ("disc",)
    assert quality["samples"] == 2  # of 24: 19 to train with, 3 to choose by
    printed = table(out)
    assert tuple(printed) == SCORES
    assert printed["ap"][:2] == [f"{quality['scores']['ap']:.3f}", f"{quality['centre']['ap']:.3f}"]
    assert quality["verdict"] in out
    assert str(folder / "disc.yaml") in out
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert quality["verdict"] in report
    assert '"pictures": 19' in report


def test_the_trained_profile_keeps_its_fields_and_finds_discs_in_new_drawings(trained):
    folder, _ = trained
    profile = TaskProfile.load(folder / "disc.yaml")
    assert (profile.name, profile.falloff, profile.input_size) == ("disc", 0.1, 64)
    assert profile.weights == str(folder / "disc.safetensors")
    random = np.random.default_rng(7)
    inside, outside = levels(folder / "disc.yaml", [drawing(random) for _ in range(8)])
    assert inside > outside + 0.3


def test_values_of_the_masks_that_do_not_matter_are_not_learned(run, own, folders, quick, tmp_path):
    arguments = ("train", own, "--data", folders / "images", "--masks", folders / "labels", *quick)
    assert run(*arguments, "--foreground", 1, "--output", tmp_path / "disc")[0] == 0
    assert run(*arguments, "--foreground", 1, 2, "--output", tmp_path / "both")[0] == 0
    images = [drawing(np.random.default_rng(i)) for i in range(8)]
    top = [(image, np.arange(SIDE)[:, None].repeat(SIDE, 1) < 6) for image, _ in images]
    disc, both = (levels(tmp_path / name / "disc.yaml", top)[0] for name in ("disc", "both"))
    assert both > disc + 0.1


def parts(folder, folders, **values):
    """Masks as one file for each part, such as ``00_disc.png``, from the label values."""
    folder.mkdir()
    for path in (folders / "labels").iterdir():
        mask = np.asarray(Image.open(path))
        for name, value in values.items():
            Image.fromarray((mask == value).astype(np.uint8) * 255).save(folder / f"{path.stem}_{name}.png")
    return folder


def test_masks_of_parts_are_weighted_by_the_profiles_class_weights(run, folders, quick, tmp_path):
    masks = parts(tmp_path / "parts", folders, disc=1, top=2)
    fields = {"source": "estimator", "input_size": 64}
    for name, weights in (("disc", {"disc": 1.0}), ("both", {"disc": 1.0, "top": 1.0}), ("hat", {"hat": 1.0})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(fields | {"class_weights": weights}), encoding="utf-8")
    arguments = ("--data", folders / "images", "--masks", masks, *quick)
    for name in ("disc", "both"):
        assert run("train", tmp_path / f"{name}.yaml", *arguments, "--output", tmp_path / name)[0] == 0
    top = [(drawing(np.random.default_rng(i))[0], np.arange(SIDE)[:, None].repeat(SIDE, 1) < 6) for i in range(8)]
    disc, both = (levels(tmp_path / name / f"{name}.yaml", top)[0] for name in ("disc", "both"))
    assert both > disc + 0.1
    status, _, err = run("train", tmp_path / "hat.yaml", *arguments)
    assert status == 1
    assert "the masks have no classes ['hat']; they have ['disc', 'top']" in err


def test_training_starts_from_the_bundled_trunk_unless_it_is_from_scratch(run, own, labels, tmp_path):
    base, likeness = ConfidenceEstimator.load(weights_path("base")), {}
    for name, more in (("bundled", []), ("scratch", ["--scratch"])):
        assert run("train", own, *labels, "--steps", 1, *more, "--output", tmp_path / name)[0] == 0
        trunk = ConfidenceEstimator.load(tmp_path / name / "disc.safetensors").trunk.state_dict()
        likeness[name] = [
            float(torch.cosine_similarity(trunk[key].flatten(), value.flatten(), dim=0))
            for key, value in base.trunk.state_dict().items()
            if value.ndim == 4
        ]
    assert min(likeness["bundled"]) > 0.95
    assert np.mean(likeness["scratch"]) < 0.5


def test_at_most_limit_pictures_are_looked_at(run, own, labels, tmp_path):
    arguments = ("train", own, *labels, "--scratch", "--steps", 2, "--limit", 8, "--output", tmp_path)
    assert run(*arguments)[0] == 0
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert '"pictures": 6' in report
    assert '"pictures to measure on": 1' in report


def test_the_default_output_is_named_after_the_profile(run, own, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", own, *labels, "--scratch", "--steps", 2)[0] == 0
    assert (tmp_path / "outputs" / "profiles" / "disc" / "disc.yaml").is_file()


def test_without_masks_a_local_checkpoint_teaches_the_bundled_profile(run, folders, quick, segformer, tmp_path):
    teacher = json.dumps({"checkpoint": segformer})
    arguments = ("train", "hair_color", "--data", folders / "images", *quick)
    status, out, _ = run(*arguments, "--teacher", teacher, "--output", tmp_path)
    assert status == 0
    assert "ap" in table(out)
    profile = TaskProfile.load(tmp_path / "hair_color.yaml")
    assert profile.teacher == {"name": "semantic", "checkpoint": segformer}
    assert profile.class_weights == TaskProfile.load("hair_color").class_weights
    random = np.random.default_rng(7)
    inside, outside = levels(tmp_path / "hair_color.yaml", [drawing(random) for _ in range(8)])
    assert inside > outside + 0.3  # discs are this checkpoint's hair
    assert '"source": "SemanticConfidence"' in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    """A tiny face parser that takes red discs for hair, in a folder as ``save_pretrained`` leaves it."""
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder, random = tmp_path_factory.mktemp("segformer"), np.random.default_rng(1)
    model = hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(
            depths=[1] * 4, hidden_sizes=[16, 16, 32, 32], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=32,
            drop_path_rate=0.0, classifier_dropout_prob=0.0,
            id2label=dict(enumerate(FACE)), label2id={name: i for i, name in enumerate(FACE)},
        )
    )  # fmt: skip
    images, masks = zip(*(drawing(random) for _ in range(64)), strict=True)
    pictures = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    classes = torch.from_numpy(np.stack(masks)).long() * FACE.index("hair")
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, 80)
    for step in range(80):
        some = torch.arange(8) + 8 * (step % 8)
        logits = nnf.interpolate(model(pictures[some]).logits, size=(SIDE, SIDE), mode="bilinear")
        optimiser.zero_grad()
        nnf.cross_entropy(logits, classes[some]).backward()
        optimiser.step()
        schedule.step()
    model.save_pretrained(folder)
    hf.SegformerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


# --- evaluate ---


def test_evaluating_a_trained_profile_prints_its_figures_and_passes(run, trained, labels):
    folder, _ = trained
    status, out, _ = run("evaluate", folder / "disc.yaml", *labels)
    assert status == 0
    assert tuple(table(out)) == SCORES
    assert float(table(out)["ap"][0]) > float(table(out)["ap"][1]) + 0.1
    assert "\npasses: AP" in out


def test_the_centre_prior_fails_against_discs_that_are_anywhere(run, labels):
    status, out, _ = run("evaluate", "centre_prior", *labels)
    assert status == 1
    assert "\nfails: AP" in out


def test_labels_that_are_read_right_are_perfect(run, folders, tmp_path):
    profile = {"source": "mask", "source_options": {"key": "mask", "foreground": [1]}, "falloff": 0}
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    arguments = ("--data", folders / "images", "--masks", folders / "labels", "--json")
    status, out, _ = run("evaluate", tmp_path / "labels.yaml", *arguments, "--foreground", 1)
    assert status == 0
    assert json.loads(out)["scores"]["iou"] == 1
    both = run("evaluate", tmp_path / "labels.yaml", *arguments, "--foreground", 1, 2)[1]
    assert json.loads(both)["scores"]["iou"] < 0.9


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_masks_of_several_values_are_not_guessed_at(run, own, folders, command):
    """A background may have any value: it is 2 in the trimaps of Oxford-IIIT Pet."""
    status, _, err = run(command, own, "--data", folders / "images", "--masks", folders / "labels")
    assert status == 1
    assert "the masks hold the values [0, 1, 2]" in err
    assert "--foreground" in err


def test_json_is_json_and_nothing_else_even_with_a_report(run, labels, tmp_path):
    status, out, err = run("evaluate", "centre_prior", *labels, "--limit", 6, "--json", "--output", tmp_path / "report")
    found = json.loads(out)
    assert status == 1
    assert not found["passes"]
    assert found["samples"] == 6
    assert set(found["scores"]) == set(SCORES)
    assert str(tmp_path / "report" / "report.md") in err
    assert found["verdict"] in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


# --- show and list ---


def test_show_prints_the_profile_as_yaml_that_loads_again(run):
    status, out, _ = run("show", "hair_color")
    assert status == 0
    assert TaskProfile.load(yaml.safe_load(out)) == TaskProfile.load("hair_color")


def test_show_prints_how_good_trained_weights_are(run, trained):
    folder, _ = trained
    status, out, _ = run("show", folder / "disc.yaml")
    quality = ConfidenceEstimator.load(folder / "disc.safetensors").quality["disc"]
    assert status == 0
    assert f"AP {quality['scores']['ap']:.2f} (centre {quality['centre']['ap']:.2f})" in out
    assert quality["verdict"] in out
    assert "model card" not in out
    (folder / "disc.md").write_text("# A card\n", encoding="utf-8")
    assert f"model card: {folder / 'disc.md'}" in run("show", folder / "disc.yaml")[1]


def test_show_draws_pictures_maps_and_what_is_kept(run, trained, folders, tmp_path):
    folder, _ = trained
    sheets = {}
    for name, profile in (("disc", folder / "disc.yaml"), ("centre", "centre_prior")):
        status, out, _ = run("show", profile, "--data", folders / "images", "--picture", tmp_path / f"{name}.png")
        assert status == 0
        assert f"8 pictures in {tmp_path / f'{name}.png'}" in out
        sheets[name] = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int)
        assert all(row.std() > 10 for row in np.array_split(sheets[name], 3))
    first, second = (np.array_split(sheet, 3) for sheet in sheets.values())
    assert np.abs(first[0] - second[0]).mean() < 1  # the same pictures
    assert np.abs(first[1] - second[1]).mean() > 10  # other maps


def test_list_names_every_bundled_profile_and_where_its_maps_come_from(run):
    status, out, _ = run("list")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert sorted(lines) == list_profiles()
    assert "no weights: learns from semantic" in lines["hair_color"]
    assert "no weights: learns from torchvision" in lines["person"]
    assert lines["centre_prior"].split()[1] == "centre"
    for name in ("salient_object", "pets"):
        quality = source_from_profile(TaskProfile.load(name)).quality
        wanted = f"AP {quality['scores']['ap']:.2f}" if quality else "not measured"
        assert f"estimator, {wanted}" in lines[name]
    assert all(TaskProfile.load(name).description in line for name, line in lines.items())


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "zebra"], "no bundled profile 'zebra'; bundled: ['centre_prior'"),
        (["show", "zebra.yaml"], "no profile file at 'zebra.yaml'"),
        (["show", "centre_prior", "--data", "nowhere"], "no folder 'nowhere'"),
        (["train", "hair_color", "--data", "nowhere"], "no folder 'nowhere'"),
        (["train", "hair_color", "--data", "IMAGES", "--masks", "nowhere"], "no folder 'nowhere'"),
        (["train", "hair_color", "--data", "EMPTY"], "no pictures in"),
        (["train", "hair_color", "--data", "IMAGES", "--masks", "STRANGERS"], "none of the 24 pictures in"),
        (["train", "OWN", "--data", "IMAGES"], "profile 'disc' names no teacher; give it one, or labels to learn from"),
        (["train", "OWN", "--data", "IMAGES", "--teacher", '{"checkpoint": "x"}'], "'teacher' must say its 'name'"),
        (["train", "hair_color", "--data", "IMAGES", "--teacher", "{checkpoint}"], "--teacher must be JSON, got"),
        (["train", "hair_color", "--data", "IMAGES", "--teacher", "[1]"], "--teacher must be a JSON object, such as"),
        (["train", "hair_color", "--data", "IMAGES", "--teacher", "0"], "--teacher must be a JSON object, such as"),
        (
            ["train", "hair_color", "--data", "IMAGES", "--teacher", '{"name": "oracle"}'],
            "unknown teacher 'oracle'; there are ['cam'",
        ),
        (
            ["train", "hair_color", "--data", "IMAGES", "--teacher", '{"chekpoint": "x"}'],
            "teacher 'semantic' has no options ['chekpoint']",
        ),
        (["train", "OWN", "--data", "IMAGES", "--masks", "MASKS", "--limit", "0"], "limit is 0"),
        (["train", "OWN", "--data", "IMAGES", "--masks", "MASKS", "--steps", "-1"], "steps must be 1 or more, got -1"),
        (["evaluate", "centre_prior", "--data", "IMAGES", "--masks", "MASKS", "--limit", "0"], "limit must be 1"),
        (
            ["evaluate", "hair_color", "--data", "IMAGES", "--masks", "MASKS"],
            "learn them from its teacher 'semantic': infill-aug profiles train hair_color --data FOLDER",
        ),
        (
            ["evaluate", "OWN", "--data", "IMAGES", "--masks", "MASKS"],
            "learn them from your masks: infill-aug profiles train disc --data FOLDER",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_line_and_a_failing_exit(arguments, message, run, own, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"OWN": own, "IMAGES": folders / "images", "MASKS": folders / "masks", "STRANGERS": folders / "strangers"}
    places["EMPTY"] = tmp_path / "empty"
    status, out, err = run(*(places.get(argument, argument) for argument in arguments))
    assert status == 1
    assert message in err
    assert err.startswith("infill-aug profiles: ")
    assert err.count("\n") == 1
    assert "|" not in out
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("arguments", [[], ["teach"], ["show"], ["train", "pets"], ["evaluate", "pets", "--data", "x"]])
def test_unusable_arguments_print_the_usage_and_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["profiles", *arguments])
    assert stop.value.code == 2
    assert "usage: infill-aug profiles" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["list", "show", "train", "evaluate"])
def test_every_action_has_help(action, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["profiles", action, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 100
