import re
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

from infill_aug import AdaptiveThreshold, BuildEstimate, InfillAugment
from infill_aug.config import instantiate, register
from infill_aug.demo.data import DemoData

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))
GROUPS = ("augment", "callbacks", "data", "experiment", "infills", "logger", "model", "trainer")
MODES = ("train", "build")

every_file = pytest.mark.parametrize("file", FILES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny Oxford-IIIT Pet and a tiny image folder: two classes, and pictures enough for every split."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    pets = root / "pets" / "oxford-iiit-pet"
    for folder in (pets / "images", pets / "annotations" / "trimaps", root / "folder" / "a", root / "folder" / "b"):
        folder.mkdir(parents=True)
    lines = []
    for i in range(24):
        breed = "ab"[i % 2]
        picture = Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8))
        trimap = np.full((40, 36), 2, dtype=np.uint8)
        trimap[10:30, 10:26] = 1
        picture.save(pets / "images" / f"{breed}_{i}.jpg")
        picture.save(root / "folder" / breed / f"{i}.png")
        Image.fromarray(trimap).save(pets / "annotations" / "trimaps" / f"{breed}_{i}.png")
        lines.append(f"{breed}_{i} {i % 2 + 1} 1 1\n")
    for split in ("trainval", "test"):
        (pets / "annotations" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return {"pets": root / "pets", "imagefolder": root / "folder"}


def compose(name, overrides, tmp_path):
    register()
    overrides = [*overrides, f"store={tmp_path}/store"]
    if name == "train":
        # What Hydra and the recipe fill in.
        overrides += [f"output_dir={tmp_path}", "num_classes=2", "num_val=10"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return hydra.compose(name, overrides=overrides)


def small(cfg, folders):
    """Data of the config, made small."""
    OmegaConf.set_struct(cfg, False)
    cfg.data.size, cfg.data.limit = 32, 24
    if OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = str(folders[cfg.data_name])
    return cfg


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


def check_model(cfg, tmp_path):
    assert cfg.model.learning_rate > 0
    network = instantiate(cfg.model.network).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def check_augment(cfg, tmp_path):
    augment = instantiate(cfg.augment)
    assert augment == {} or isinstance(augment, InfillAugment)


def check_callbacks(cfg, tmp_path):
    callbacks = instantiate(cfg.callbacks)
    assert all(isinstance(callback, pl.Callback) for callback in callbacks.values())
    for callback in callbacks.values():
        if isinstance(callback, AdaptiveThreshold):
            assert callback.law.mode == callback.mode == "max"
            assert callback.law.target == cfg.callbacks.adaptive.target
            assert callback.law.dead_band > 0.01  # widened to the noise of `num_val` pictures


def check_trainer(cfg, tmp_path):
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        cfg.trainer.accelerator = "cpu"
    assert isinstance(instantiate(cfg.trainer, callbacks=[], logger=False), pl.Trainer)


def check_logger(cfg, tmp_path):
    for logger in instantiate(cfg.logger).values():
        assert isinstance(logger, pl.loggers.Logger)
        assert Path(logger.log_dir).is_relative_to(tmp_path)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def test_every_group_has_a_check_and_every_check_a_group():
    assert {path.name for path in CONFIGS.iterdir() if path.is_dir()} == set(GROUPS)
    assert set(CHECKS) == set(GROUPS) - {"experiment"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(MODES)


@every_file
def test_every_file_composes_and_gives_working_objects(file, folders, tmp_path):
    group, _, option = file.rpartition("/")
    name, overrides = (option, []) if not group else ("train", [f"{group}={option}"])
    cfg = small(compose(name, overrides, tmp_path), folders)
    assert not OmegaConf.missing_keys(cfg) - {"infills.dataset"}
    OmegaConf.to_container(cfg, resolve=True)
    # A file of a group is checked by its own objects; an experiment or a whole run by all of them.
    groups = [group] if group in CHECKS else [key for key in CHECKS if key in cfg]
    for key in groups:
        CHECKS[key](cfg, tmp_path)


def test_build_and_train_ask_for_the_same_infills(folders, tmp_path):
    build, train = (compose(name, [], tmp_path) for name in ("build", "train"))
    assert build.infills == train.infills
    assert build.store == train.store


def test_the_store_lies_outside_the_folders_of_runs_and_nothing_changes_directory():
    for name in MODES:
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        assert "store: outputs/store/${data_name}" in text
        assert "chdir: false" in text


@every_file
def test_every_key_says_what_it_is(file):
    lines = (CONFIGS / f"{file}.yaml").read_text(encoding="utf-8").splitlines()
    if "/" in file and file.split("/")[0] in ("data", "experiment"):
        assert lines.pop(0) == "# @package _global_"
    assert lines[0].startswith("# ")
    for line in lines:
        if line.strip() and not line.startswith("#") and line != "{}":
            assert re.search(r"\s# \w\S*", line), f"{file}: {line!r} has no comment"
        assert len(line) <= 120, f"{file}: {line!r} is longer than 120 characters"
