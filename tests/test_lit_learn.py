import copy
import dataclasses
import itertools
import json
import shutil

import pytest
import test_confidence_teachers as teachers
import torch
import torch.nn.functional as nnf
import transformers as hf
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from test_confidence_teachers import FACE, MEAN, RED, STD, draw, segformer_config
from test_lit_estimator import QUICK, SIDE, discs, loss, maps, weights
from test_lit_estimator import classifier as colours_told  # a fixture under another name

from infill_aug.confidence.estimator import ConfidenceEstimator, EstimatorConfidence
from infill_aug.confidence.from_profile import source_from_profile
from infill_aug.confidence.sources import CallableConfidence, MaskConfidence
from infill_aug.confidence.teachers.cam import CamConfidence
from infill_aug.confidence.teachers.grabcut import GrabCutConfidence
from infill_aug.confidence.training import fit_calibration, read_training_set
from infill_aug.functional.masks import masked_share, threshold_mask
from infill_aug.functional.quality import average_precision
from infill_aug.lit.estimator import fit_estimator
from infill_aug.lit.learn import learn_profile, split_indices
from infill_aug.profile import TaskProfile

# Lightning's own advice and its use of a deprecated torch function; neither is ours to act on.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
]
# The tiny models of the teachers' own tests, trained anew for this file.
make, segformer, lraspp, clipseg, sam = (
    getattr(teachers, name) for name in ("make", "segformer", "lraspp", "clipseg", "sam")
)
classifier = colours_told
MASKS = MaskConfidence("mask", falloff=0.0)
DISC = {"name": "disc", "input_size": SIDE, "description": "a disc of any colour"}


def drawings(count, seed, height=SIDE, width=SIDE):
    images, masks, labels = discs(count, seed, height, width)
    return [(i, {"mask": m, "label": int(c)}) for i, m, c in zip(images, masks, labels, strict=True)]


DATA = [*drawings(40, 1), *drawings(24, 2, 60, 80)]
HELD = drawings(12, 3, 70, 60)


def learn(output, profile=DISC, data=DATA, **options):
    quick = {name: value for name, value in QUICK.items() if name != "accelerator"}  # follows the device
    return learn_profile(profile, data, output, **{"source": MASKS, "start": None, "steps": 100, **quick, **options})


def colours(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return len(image.convert("RGB").getcolors(1 << 24))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return learn(tmp_path_factory.mktemp("learned") / "new" / "folder")


# --- what is made ---


def test_weights_profile_report_and_pictures_are_written_and_no_picture_is_blank(learned):
    pictures = {"share_curve.png", "reliability.png", "cases.png"}
    assert {path.name for path in learned.folder.iterdir()} == {
        "disc.safetensors", "disc.yaml", "report.md", *pictures
    }  # fmt: skip
    assert all(colours(learned.folder / name) > 20 for name in pictures)
    text = (learned.folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# disc\n\na disc of any colour\n\npasses: AP")
    assert str(learned.quality) in text
    assert all(f"({name})" in text for name in pictures)
    assert learned.seconds > 0


def test_the_profile_passes_and_finds_what_it_was_taught(learned):
    assert learned.quality.passes
    assert learned.quality.samples == 6
    assert learned.quality.scores["ap"] > 0.9 > 0.6 > learned.quality.centre["ap"]
    source = source_from_profile(dataclasses.replace(learned.profile, falloff=0.0))
    for image, target in HELD:
        found = source(image, None)[0]
        assert found[target["mask"]].mean() > 0.6 > 0.2 > found[~target["mask"]].mean()


def test_the_written_profile_loads_from_elsewhere_and_gives_the_estimators_maps(learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # weights are named relative to the profile, not to where one works
    profile = TaskProfile.load(learned.folder / "disc.yaml")
    assert profile == learned.profile
    assert profile.source == "estimator"
    assert yaml.safe_load((learned.folder / "disc.yaml").read_text())["weights"] == "disc.safetensors"
    written = source_from_profile(profile)
    own = EstimatorConfidence(learned.estimator, falloff=profile.falloff, edges=profile.edges)
    images = [image for image, _ in HELD]
    for one, other in zip(written.maps(images), own.maps(images), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.05)  # weights are kept in half precision
    assert written.quality["verdict"] == learned.quality.verdict


def test_a_folder_can_be_moved_as_a_whole(learned, tmp_path):
    moved = shutil.copytree(learned.folder, tmp_path / "moved")
    here, there = (source_from_profile(TaskProfile.load(f / "disc.yaml")) for f in (learned.folder, moved))
    assert torch.equal(here(HELD[0][0], None), there(HELD[0][0], None))


def test_the_file_says_how_the_weights_were_made(learned):
    with safe_open(str(learned.folder / "disc.safetensors"), framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
    assert notes.pop("date")[:2] == "20"
    assert notes == {
        "seed": 0, "steps": 100, "pictures": 51, "pictures to choose by": 7, "pictures to measure on": 6,
        "learned from": MASKS.config(),        "torch": str(torch.__version__),
    }  # fmt: skip
    assert learned.estimator.quality["disc"] == json.loads(json.dumps(learned.quality.to_dict()))


def test_a_seed_makes_the_same_profile_whatever_was_drawn_before(tmp_path):
    made = []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(100 + number)
        made.append(learn(tmp_path / str(number), steps=4, seed=seed).estimator)
    assert all(torch.equal(value, weights(made[1])[name]) for name, value in weights(made[0]).items())
    assert not torch.equal(made[0].logit.weight, made[2].logit.weight)


# --- where it starts ---


def test_trained_weights_are_a_better_start_than_none(learned, tmp_path):
    weight = str(learned.folder / "disc.safetensors")
    again = learn(tmp_path / "again", {**DISC, "name": "reds"}, steps=5, start=weight, seed=5)
    anew = learn(tmp_path / "anew", {**DISC, "name": "reds"}, steps=5, seed=5)
    assert again.estimator.heads == anew.estimator.heads == ("reds",)
    assert again.quality.scores["ap"] > anew.quality.scores["ap"] + 0.1


def test_a_start_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no bundled weights 'bass'"):
        learn(tmp_path, start="bass")
    with pytest.raises(FileNotFoundError, match=r"no weights at '/no/such\.safetensors'"):
        learn(tmp_path, start="/no/such.safetensors")


def second_profile(learned, output, **options):
    """Everything but the disc, on the trunk that found discs."""
    ground = CallableConfidence(lambda _, target: (~target["mask"]).float(), "ground")
    start = learned.folder / "disc.safetensors"
    return learn(output, {**DISC, "name": "ground"}, start=start, freeze_trunk=True, source=ground, **options)


@pytest.mark.parametrize("asked", [False, True], ids=["masks alone", "with a classifier"])
def test_a_second_profile_on_a_frozen_trunk_keeps_the_first_ones_maps_bit_for_bit(learned, tmp_path, asked, request):
    told = copy.deepcopy(request.getfixturevalue("classifier")).eval() if asked else None
    second = second_profile(learned, tmp_path, steps=20, classifier=told)
    assert second.estimator.heads == ("disc", "ground")
    assert second.profile.source_options == {"head": "ground"}
    first = ConfidenceEstimator.load(learned.folder / "disc.safetensors")
    kept = ConfidenceEstimator.load(tmp_path / "ground.safetensors")
    pictures = torch.stack([image for image, _ in HELD]).float() / 255
    kept.head = "disc"
    assert torch.equal(kept(pictures), first(pictures))
    assert kept.quality["disc"] == first.quality["disc"]
    assert ("deletion" in second.quality.scores) == asked


def test_a_second_profile_on_a_frozen_trunk_learns_something_else(learned, tmp_path):
    second = second_profile(learned, tmp_path, steps=120)
    ground = source_from_profile(dataclasses.replace(second.profile, falloff=0.0))
    for image, target in HELD:
        found = ground(image, None)[0]
        assert found[~target["mask"]].mean() > 0.65 > 0.4 > found[target["mask"]].mean()


def test_a_frozen_trunk_without_another_head_learns_one_head(learned, tmp_path):
    start = learned.folder / "disc.safetensors"
    again = learn(tmp_path, start=start, freeze_trunk=True, steps=4)
    assert again.estimator.heads == ("disc",)
    with safe_open(str(start), framework="pt") as old, safe_open(str(tmp_path / "disc.safetensors"), "pt") as new:
        names = [name for name in old.keys() if name.startswith("trunk.")]  # noqa: SIM118
        assert all(torch.equal(old.get_tensor(name), new.get_tensor(name)) for name in names)


# --- the split ---


@given(st.integers(4, 5000), st.integers(4, 600), st.integers(0, 9))
def test_a_split_is_disjoint_evenly_spaced_and_within_the_limit(count, limit, seed):
    training, held = split_indices(count, limit, seed)
    both = sorted(training + held)
    assert len(set(both)) == len(both) == min(count, limit)
    assert both[0] == 0
    assert both[-1] < count
    steps = {b - a for a, b in itertools.pairwise(both)}
    assert max(steps) - min(steps) <= 1
    assert len(held) >= 2
    assert len(held) == max(2, round(0.2 * len(both)))
    assert (training, held) == (sorted(training), sorted(held))
    assert split_indices(count, limit, seed) == (training, held)


def test_another_seed_holds_out_others():
    assert split_indices(100, 100, 0)[1] != split_indices(100, 100, 1)[1]


def test_only_so_many_pictures_are_read(tmp_path):
    read = set()

    class Counted(list):
        def __getitem__(self, index):
            read.add(index)
            return super().__getitem__(index)

    made = learn(tmp_path, data=Counted(DATA), limit=8, steps=2)
    assert read == {0, 8, 16, 24, 32, 40, 48, 56}
    assert made.quality.samples == 1


# --- what is refused ---


@pytest.mark.parametrize("count", [0, 3])
def test_fewer_than_four_pictures_are_refused(tmp_path, count):
    with pytest.raises(ValueError, match=f"dataset has {count} pictures, and limit is 4000; four are the least"):
        learn(tmp_path / "x", data=DATA[:count])
    with pytest.raises(ValueError, match=f"dataset has 64 pictures, and limit is {count}; four are the least"):
        learn(tmp_path / "x", limit=count)
    assert not (tmp_path / "x").exists()


def test_a_classifier_in_training_mode_is_refused_before_anything_is_read(classifier, tmp_path):
    with pytest.raises(ValueError, match=r"training mode; call classifier\.eval\(\) first"):
        learn(tmp_path / "x", data=[None] * 9, classifier=copy.deepcopy(classifier).train())


def test_four_pictures_are_enough_to_go_through(tmp_path):
    assert learn(tmp_path, data=DATA[:4], steps=2).quality.samples == 1


def test_pictures_whose_held_out_masks_are_empty_go_through_and_fail(tmp_path):
    data = [(image, {"mask": torch.zeros(image.shape[-2:], dtype=torch.bool)}) for image, _ in DATA[:12]]
    made = learn(tmp_path, data=data, source=CallableConfidence(lambda _, t: t["mask"].float(), "none"), steps=2)
    assert not made.quality.passes
    assert "none of 1 masks says anything" in (tmp_path / "report.md").read_text()


def test_a_profile_without_a_teacher_needs_a_source(tmp_path):
    with pytest.raises(ValueError, match="profile 'disc' names no teacher; give it one, or labels"):
        learn(tmp_path, source=None)
    with pytest.raises(FileNotFoundError, match="no bundled profile 'hair_colour'"):
        learn(tmp_path, "hair_colour")


# --- every kind of teacher ---


def red_drawings(count, seed):
    """Red rectangles and green discs, with the box of the rectangle."""
    images, labels = draw(count, seed=seed)
    return [(image, {"boxes": [box_of(label == RED)]}) for image, label in zip(images, labels, strict=True)]


def disc_drawings(count, seed):
    images, masks, _ = discs(count, seed)
    return [(image, {"boxes": [box_of(mask)]}) for image, mask in zip(images, masks, strict=True)]


def box_of(mask):
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("kind", ["torchvision", "semantic", "sam", "text", "cam", "grabcut"])
def test_a_student_learns_a_teachers_maps_and_needs_neither_it_nor_its_prompts(kind, make, request):
    if kind in ("cam", "grabcut"):
        drawn = disc_drawings
        teacher = GrabCutConfidence() if kind == "grabcut" else CamConfidence(request.getfixturevalue("classifier"))
    else:
        drawn, teacher = red_drawings, make(kind)
    training, validation, test = (
        read_training_set(drawn(count, seed), teacher, SIDE, progress=False)
        for count, seed in ((96, 21), (16, 22), (24, 23))
    )
    torch.manual_seed(0)
    start = ConfidenceEstimator((kind,), SIDE)
    student = fit_estimator(start, training, validation, steps=100, **QUICK)
    wanted, found = test.targets.float() / 255, maps(student, test)
    precision = average_precision(found, wanted > 0.5).nanmean().item()
    share = (wanted > 0.5).float().mean().item()
    distance = (found - wanted).abs().mean().item()
    assert loss(student, test) < 0.65 * loss(start, test)
    assert precision > 0.85 > 0.5 > share
    assert distance < 0.15


# --- drawn faces ---

FEATURES = ("l_eye", "r_eye", "l_brow", "r_brow", "mouth")


def faces(count, seed, side=64):
    """Drawn faces in random colours and places: pictures, and the 19 classes of each pixel."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return low + (high - low) * float(torch.rand((), generator=generator))

    def ellipse(right, low, wide, high):
        return ((grid[0] - right) / wide) ** 2 + ((grid[1] - low) / high) ** 2 < 1

    def colour(*near, spread=25.0):
        return torch.tensor(near) + spread * (2 * torch.rand(3, generator=generator) - 1)

    hairs = [(35.0, 25, 20), (110.0, 70, 35), (205.0, 170, 90), (150.0, 60, 30)]
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    images, labels = [], torch.zeros(count, side, side, dtype=torch.int64)
    for i in range(count):
        across, down, size = pick(0.4, 0.6), pick(0.48, 0.58), pick(0.85, 1.1)
        grid = (x - across) / size, (y - down) / size
        skin, light = colour(205.0, 160, 130), pick(0.6, 1.05)
        hair = colour(*hairs[int(pick(0, 4))], spread=15)
        eyes, brows, mouth = pick(-0.08, -0.02), pick(0.12, 0.15), pick(0.14, 0.2)
        parts = [
            ("hair", ellipse(0, -0.1, 0.33, 0.38), hair),
            ("neck", ellipse(0, 0.42, 0.12, 0.2), skin * 0.85),
            ("skin", ellipse(0, 0, 0.25, 0.33), skin),
            ("mouth", ellipse(0, mouth, pick(0.08, 0.12), pick(0.035, 0.06)), colour(185.0, 60, 70, spread=20)),
        ]
        for left, right in (("l_eye", "l_brow"), ("r_eye", "r_brow")):
            place = -0.11 if left == "l_eye" else 0.11
            parts.append((right, ellipse(place, eyes - brows + 0.03, 0.075, 0.02), hair * 0.7))
            parts.append((left, ellipse(place, eyes, 0.06, 0.035), torch.tensor([245.0, 245, 245])))
            parts.append((left, ellipse(place, eyes, 0.025, 0.03), colour(50.0, 60, 70)))
        picture = colour(110.0, 120, 125, spread=90)[:, None, None].expand(3, side, side).clone()
        for name, where, paint in parts:
            picture[:, where] = paint[:, None] * light
            labels[i][where] = FACE.index(name)
        images.append(picture + 10 * torch.randn(3, side, side, generator=generator))
    return torch.stack(images).clamp(0, 255).round().to(torch.uint8), labels


def fit_faces(model, images, labels, steps, rate=4e-3):
    weight = torch.ones(len(FACE))
    weight[[FACE.index(name) for name in FEATURES]] = 2.0
    optimiser = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    for step in range(steps):
        some = (torch.arange(8) + 8 * step) % len(images)
        logits = model((images[some].float() / 255 - MEAN) / STD).logits
        logits = nnf.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        optimiser.zero_grad()
        nnf.cross_entropy(logits, labels[some], weight).backward()
        optimiser.step()
        schedule.step()


@pytest.fixture(scope="module")
def face_parser(tmp_path_factory):
    """A folder as a download of jonathandinu/face-parsing would be, with a tiny network trained on drawn faces."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parser")
    model = hf.SegformerForSemanticSegmentation(segformer_config())
    fit_faces(model, *faces(120, 1), 280)
    model.save_pretrained(folder)
    hf.SegformerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


def regions(profile, names):
    """Mean confidence of a profile's ungraded maps on named classes of faces that no one was trained on."""
    images, labels = faces(32, 7)
    source = source_from_profile(dataclasses.replace(profile, falloff=0.0))
    found = torch.cat(source.maps(list(images)))
    kinds = [torch.isin(labels, torch.tensor([FACE.index(name) for name in some])) for some in names]
    return [found[where].mean().item() for where in kinds]


@pytest.fixture(scope="module")
def face_profiles(face_parser, tmp_path_factory):
    made = {}
    for name in ("hair_color", "facial_emotion"):
        bundled = TaskProfile.load(name)
        teacher = {"name": "semantic", "checkpoint": face_parser}
        assert bundled.teacher["name"] == "semantic"
        profile = dataclasses.replace(bundled, teacher=teacher, input_size=SIDE)
        # Pictures alone: no labels, no masks.
        made[name] = learn(
            tmp_path_factory.mktemp(name), profile, list(faces(96, 2)[0]), source=None, steps=130
        )  # fmt: skip
    return made


@pytest.mark.slow
def test_hair_color_learns_hair_over_skin_over_background_from_pictures_alone(face_profiles):
    learned = face_profiles["hair_color"]
    hair, skin, ground = regions(learned.profile, [("hair",), ("skin",), ("background",)])
    assert hair > skin + 0.2
    assert skin > ground + 0.1
    assert learned.quality.passes


@pytest.mark.slow
def test_facial_emotion_learns_eyes_and_mouth_over_the_face_over_all_else_from_pictures_alone(face_profiles):
    learned = face_profiles["facial_emotion"]
    marks, skin, ground = regions(learned.profile, [("l_eye", "r_eye", "mouth"), ("skin",), ("background",)])
    assert marks > skin + 0.1
    assert skin > ground + 0.3


# --- calibration ---


def cones(count, seed):
    """Discs that matter most in their middle: maps in which every threshold cuts elsewhere."""
    images, masks, _ = discs(count, seed)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    data = []
    for image, mask in zip(images, masks, strict=True):
        middle = torch.stack([y[mask].float().mean(), x[mask].float().mean()])
        distance = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2).sqrt()
        data.append((image, (1 - distance / 28).clamp(min=0)))
    return data


CONE = CallableConfidence(lambda _, target: target, "cone")
THRESHOLDS = (0.25, 0.5, 0.75)


def shares(source, images):
    """``(N, 3)``: masked share of each picture at each absolute threshold."""
    found = torch.stack(source.maps(images))
    masks = [threshold_mask(found, t, mode="absolute", protect_above=None) for t in THRESHOLDS]
    return torch.stack([masked_share(mask) for mask in masks], dim=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two profiles of the same drawings, learned in different ways."""
    data = cones(96, 31)
    ways = {"short": {"steps": 120, "seed": 0}, "long": {"steps": 240, "seed": 8, "batch_size": 12}}
    return {
        name: learn(tmp_path_factory.mktemp(name), {**DISC, "name": name, "falloff": 0.0}, data, source=CONE, **way)
        for name, way in ways.items()
    }


@pytest.mark.slow
def test_profiles_learned_in_different_ways_mask_the_same_share_at_the_same_threshold(pair):
    images = [image for image, _ in cones(16, 32)]
    short, long = (shares(source_from_profile(one.profile), images) for one in pair.values())
    assert ((short - long).abs() < 0.05).all()
    spread = short.mean(dim=0)
    assert spread[1] > spread[0] + 0.05
    assert spread[2] > spread[1] + 0.02


@pytest.mark.slow
def test_without_calibration_they_would_not_and_with_it_anew_they_do_again(pair, tmp_path):
    """Scores four times as sure of themselves, as another training might leave them."""
    images = [image for image, _ in cones(16, 32)]
    wanted = shares(source_from_profile(pair["short"].profile), images)
    sure = ConfidenceEstimator.load(pair["long"].folder / "long.safetensors")
    with torch.no_grad():
        sure.logit.weight *= 4
        sure.logit.bias *= 4
        sure.temperature.fill_(1.0)
    before = shares(EstimatorConfidence(sure), images)
    assert ((before - wanted).abs().amax(dim=1) > 0.05).all()
    held = read_training_set(cones(24, 33), CONE, SIDE, progress=False)
    with torch.no_grad():
        logits = sure.logits(held.images.float() / 255)
    targets = nnf.adaptive_avg_pool2d(held.targets.float() / 255, logits.shape[-2:])
    temperature, offset = fit_calibration(logits, targets)
    assert temperature > 2
    with torch.no_grad():
        sure.temperature.fill_(temperature)
        sure.logit.bias += offset * temperature
    after = shares(EstimatorConfidence(sure), images)
    assert ((after - wanted).abs() < 0.05).all()
