import inspect
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("hydra")
pytest.importorskip("lightning")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")

import hydra
import lightning.pytorch as pl
from omegaconf import OmegaConf

from infill_aug import AdaptiveThreshold, BuildEstimate, InfillAugment, TaskProfile, types
from infill_aug.confidence.from_profile import teacher_from_profile
from infill_aug.confidence.network import NetworkConfidence
from infill_aug.config import instantiate, register
from infill_aug.demo.data import DemoData
from infill_aug.infill import InfillBackend
from infill_aug.infill.diffusers.backend import DiffusersBackend
from infill_aug.infill.pipeline import InfillPipeline
from infill_aug.infill.single_pass import SinglePassInfiller
from infill_aug.samples import split_sample

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))
GROUPS = (
    "augment", "backend", "callbacks", "data", "experiment", "infills", "logger", "model", "pictures", "rule", "source",
    "trainer",
)  # fmt: skip
# Groups whose files do not go where their folder says.
PLACES = {"rule": "rule@callbacks.adaptive.rule"}
PACKAGES = {"backend": "infills.backend", "data": "_global_", "experiment": "_global_"}
MODES = ("build", "confidence", "train", "infiller")
# Models that are no classifiers.
INFILLERS = ("model/diffusion", "model/gan")
# What a file leaves to its users, as they give it on the command line.
GIVEN = {
    "backend/diffusers": ["infills.backend.model=folder"],
    "backend/gan": ["infills.backend.weights=lama.pt"],
    "pictures/coco": ["pictures.images={imagefolder}/a", "pictures.annotations={coco}"],
    "pictures/folder": ["pictures.folder={imagefolder}"],
    "pictures/masks": ["pictures.images={imagefolder}", "pictures.masks={masks}"],
    "pictures/pets": ["pictures.root={pets}"],
    "source/cam": ["source.source.classifier={{_target_: infill_aug.demo.arms.SmallConvNet, classes: 2}}"],
}

every_file = pytest.mark.parametrize("file", FILES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny Oxford-IIIT Pet and a tiny image folder with masks and COCO's annotations: two classes, and pictures
    enough for every split.
    """
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    pets = root / "pets" / "oxford-iiit-pet"
    for folder in (pets / "images", pets / "annotations" / "trimaps", root / "folder" / "a", root / "folder" / "b"):
        folder.mkdir(parents=True)
    (root / "masks").mkdir()
    lines, images, annotations = [], [], []
    for i in range(24):
        breed = "ab"[i % 2]
        picture = Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8))
        trimap = np.full((40, 36), 2, dtype=np.uint8)
        trimap[10:30, 10:26] = 1
        picture.save(pets / "images" / f"{breed}_{i}.jpg")
        picture.save(root / "folder" / breed / f"{i}.png")
        Image.fromarray(trimap).save(pets / "annotations" / "trimaps" / f"{breed}_{i}.png")
        Image.fromarray((trimap == 1).astype(np.uint8)).save(root / "masks" / f"{i}.png")
        lines.append(f"{breed}_{i} {i % 2 + 1} 1 1\n")
        if breed == "a":
            images.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 36})
            polygon = [10, 10, 25, 10, 25, 29, 10, 29]
            annotations.append(
                {"image_id": i, "category_id": 1, "segmentation": [polygon], "area": 320.0, "iscrowd": 0}
            )
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "coco.json").write_text(json.dumps(coco), encoding="utf-8")
    for split in ("trainval", "test"):
        (pets / "annotations" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    shifted = root / "shifted"
    for name in ("train_biased", "test_aligned", "test_conflict"):
        shutil.copytree(root / "folder", shifted / name)
    shutil.copytree(root / "masks", shifted / "masks")
    return {
        "pets": root / "pets", "imagefolder": root / "folder", "masks": root / "masks", "coco": root / "coco.json",
        "bgshift": shifted,
    }  # fmt: skip


def compose(name, overrides, tmp_path):
    register()
    # What Hydra and the recipes fill in, and a place for what is stored.
    filled = {
        "build": [f"store={tmp_path}/store"],
        "confidence": [f"output={tmp_path}/output", f"output_dir={tmp_path}"],
        "infiller": [f"output={tmp_path}/output", "pictures=digits"],
        "train": [f"store={tmp_path}/store", f"output_dir={tmp_path}", "num_classes=2", "num_val=10"],
    }
    overrides = [*overrides, *filled[name]]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return hydra.compose(name, overrides=overrides)


def small(cfg, folders):
    """Data of the config, made small."""
    OmegaConf.set_struct(cfg, False)
    if "pictures" in cfg:
        if "data" in cfg.pictures:
            cfg.pictures.data.size, cfg.pictures.data.limit = 32, 24
        return cfg
    cfg.data.size, cfg.data.limit = 32, 24
    if OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = str(folders[cfg.data_name])
    return cfg


def given(group, option, folders):
    """What chooses a file, and gives what it needs."""
    needed = GIVEN.get(f"{group}/{option}", ())
    return [f"{PLACES.get(group, group)}={option}", *(text.format(**folders) for text in needed)]


def check_data(cfg, tmp_path):
    data = instantiate(cfg.data)
    assert isinstance(data, DemoData)
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert 0 < len(data.train) <= 24
    return data


def check_infills(cfg, tmp_path):
    data = instantiate(cfg.data)
    estimate = instantiate(cfg.infills, dataset=data.train.labelled(), source=data.source, dry_run=True)
    assert isinstance(estimate, BuildEstimate)
    assert estimate.infills > 0


def check_backend(cfg, tmp_path):
    """A network is loaded by its first fill: here it is only made, and asked what its fills depend on."""
    backend = instantiate(cfg.infills.backend)
    assert isinstance(backend, InfillBackend)
    assert backend.name == cfg.infills.backend.name
    assert getattr(backend, "_network", None) is None


def check_model(cfg, tmp_path):
    assert cfg.model.learning_rate > 0
    network = instantiate(cfg.model.network)
    if "num_classes" not in cfg:  # an infiller, not a classifier
        assert isinstance(network, InfillPipeline | SinglePassInfiller)
        return
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def check_augment(cfg, tmp_path):
    augment = instantiate(cfg.augment)
    assert augment == {} or isinstance(augment, InfillAugment)


def check_callbacks(cfg, tmp_path):
    callbacks = instantiate(cfg.callbacks)
    assert all(isinstance(callback, pl.Callback) for callback in callbacks.values())
    for callback in callbacks.values():
        if isinstance(callback, AdaptiveThreshold):
            assert callback.rule.mode == callback.mode == "max"
            assert callback.rule.target == callback.target
            if cfg.callbacks.adaptive.rule.samples:
                assert callback.rule.dead_band > 0.01  # widened to the noise of that many pictures


def check_rule(cfg, tmp_path):
    rule = instantiate(cfg.callbacks).get("adaptive", AdaptiveThreshold()).rule
    strengths = [rule.observe(0.9, 1.0).strength for _ in range(5)] if rule is not None else []
    assert all(0 <= strength <= 1 for strength in strengths)


def check_trainer(cfg, tmp_path):
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        cfg.trainer.accelerator = "cpu"
    assert isinstance(instantiate(cfg.trainer, callbacks=[], logger=False), pl.Trainer)


def check_logger(cfg, tmp_path):
    for logger in instantiate(cfg.logger).values():
        assert isinstance(logger, pl.loggers.Logger)
        assert Path(logger.log_dir).is_relative_to(tmp_path)


def check_pictures(cfg, tmp_path):
    pictures = instantiate(cfg.pictures)
    assert 12 <= len(pictures) <= 24
    for sample in (pictures[0], pictures[len(pictures) - 1]):
        image, target = split_sample(sample)
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        for part in target if isinstance(target, tuple) else ():
            np.asarray(part)  # torchvision's trimaps stay open until they are read


def check_source(cfg, tmp_path):
    source = instantiate(cfg.source)
    if not source:  # the profile's teacher it is
        assert isinstance(teacher_from_profile(TaskProfile.load(cfg.profile)), NetworkConfidence)
        return
    image = torch.randint(90, 130, (3, 40, 48), dtype=torch.uint8)
    mask = torch.zeros(40, 48, dtype=torch.bool)
    mask[12:28, 14:34] = True
    image[0, mask] = 250
    target = {"mask": mask, "boxes": torch.tensor([[14, 12, 34, 28]]), "points": torch.tensor([[24, 20]])}
    confidence = source(image, target)
    types.check_confidence(confidence)
    assert confidence.shape == (1, 40, 48)
    if "classifier" not in cfg.source.get("source", {}):  # a classifier that was not trained looks anywhere
        assert confidence[0, mask].mean() > confidence[0, ~mask].mean() + 0.2


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def test_every_group_has_a_check_and_every_check_a_group():
    assert {path.name for path in CONFIGS.iterdir() if path.is_dir()} == set(GROUPS)
    assert set(CHECKS) == set(GROUPS) - {"experiment"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(MODES)


@every_file
def test_every_file_composes_and_gives_working_objects(file, folders, tmp_path):
    group, _, option = file.rpartition("/")
    mode = "infiller" if file in INFILLERS else "confidence" if group in ("pictures", "source") else "train"
    name, overrides = (option, []) if not group else (mode, given(group, option, folders))
    cfg = small(compose(name, overrides, tmp_path), folders)
    assert not OmegaConf.missing_keys(cfg) - {"infills.dataset"}
    OmegaConf.to_container(cfg, resolve=True)
    # A file of a group is checked by its own objects; an experiment or a whole run by all of them.
    groups = (
        [group] if group in CHECKS else [key for key in CHECKS if key in cfg or (key == "backend" and "infills" in cfg)]
    )
    for key in groups:
        CHECKS[key](cfg, tmp_path)


def test_build_and_train_ask_for_the_same_infills(folders, tmp_path):
    build, train = (compose(name, [], tmp_path) for name in ("build", "train"))
    assert build.infills == train.infills
    assert build.store == train.store


def test_the_backend_is_chosen_by_name_and_nothing_of_the_other_stays(tmp_path):
    for name in MODES[::2]:
        cfg = compose(name, ["backend=push_pull"], tmp_path)
        assert cfg.infills.backend == {"_target_": "infill_aug.load_backend", "name": "push_pull"}


def test_every_option_of_a_diffusers_backend_stands_in_its_file_with_the_default_that_it_has_in_python(tmp_path):
    cfg = compose("build", ["backend=diffusers"], tmp_path)
    options = {name: value for name, value in cfg.infills.backend.items_ex(False) if name not in ("_target_", "name")}
    parameters = inspect.signature(DiffusersBackend).parameters.values()
    assert options.pop("model") == "???"
    assert options == {each.name: each.default for each in parameters if each.name != "model"}


@pytest.mark.parametrize("option", ["coco", "digits", "masks"])
def test_the_default_source_reads_the_masks_of_pictures_that_have_some(option, folders, tmp_path):
    cfg = small(compose("confidence", given("pictures", option, folders), tmp_path), folders)
    pictures, source = instantiate(cfg.pictures), instantiate(cfg.source)
    for i in range(4):
        confidence = source(*split_sample(pictures[i]))
        assert 0.05 < confidence.mean() < 0.5
        assert set(confidence.unique().tolist()) == {0.0, 1.0}


def test_the_trimaps_of_pets_are_read_as_their_file_says(folders, tmp_path):
    text = (CONFIGS / "pictures" / "pets.yaml").read_text(encoding="utf-8")
    settings = re.findall(r"source\.\S+=[\w,\[\]]+", text.splitlines()[0])
    assert len(settings) == 2
    cfg = compose("confidence", [*given("pictures", "pets", folders), *settings], tmp_path)
    image, target = split_sample(instantiate(cfg.pictures)[0])
    confidence = instantiate(cfg.source)(image, target)
    assert torch.equal(confidence[0] == 1, torch.from_numpy(np.array(target[1]) == 1))
    assert 0 < confidence.mean() < 1


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["pictures=folder"], "pictures.folder"),
        (["pictures=masks", "pictures.images=x"], "pictures.masks"),
        (["pictures=coco", "pictures.images=x"], "pictures.annotations"),
        (["pictures=pets"], "pictures.root"),
        (["source=cam"], "source.source.classifier"),
    ],
)
def test_what_a_training_of_confidence_lacks_is_asked_for_by_its_name(overrides, key, tmp_path):
    cfg = compose("confidence", overrides, tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"on the command line: {key}=VALUE")):
        instantiate(cfg[key.split(".")[0]])


def test_what_is_kept_lies_outside_the_folders_of_runs_and_nothing_changes_directory():
    kept = {"confidence": "output: outputs/confidence/${profile}", "infiller": "output: outputs/infiller"}
    for name in MODES:
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        assert kept.get(name, "store: outputs/store/${data_name}") in text
        assert "chdir: false" in text


@every_file
def test_every_key_says_what_it_is(file):
    lines = (CONFIGS / f"{file}.yaml").read_text(encoding="utf-8").splitlines()
    if "/" in file and file.split("/")[0] in PACKAGES:
        assert lines.pop(0) == f"# @package {PACKAGES[file.split('/')[0]]}"
    assert lines[0].startswith("# ")
    for line in lines:
        if line.strip() and not line.startswith("#") and line != "{}":
            assert re.search(r"\s# \w\S*", line), f"{file}: {line!r} has no comment"
        assert len(line) <= 120, f"{file}: {line!r} is longer than 120 characters"
