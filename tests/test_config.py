import ast
import dataclasses
import inspect
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("lightning")

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import OmegaConf

import infill_aug as ia
from infill_aug.config import CONFIGS, MISSING, InfillAugmentConfig, ThresholdStateConfig, instantiate, register

PACKAGE = Path(ia.__file__).parent
PLAIN = (bool, int, float, str)

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=lambda config: config.__name__)


def parameters(config):
    """Of the target, without self or cls."""
    return inspect.signature(get_object(config._target_)).parameters


def fields(config):
    return {field.name: field for field in dataclasses.fields(config) if field.name != "_target_"}


def default(field):
    value = field.default_factory() if field.default is dataclasses.MISSING else field.default
    if isinstance(value, dict) and "_target_" in value:
        return instantiate(value)
    return inspect.Parameter.empty if value is MISSING else value


@every_config
def test_a_config_has_the_parameters_of_its_target_in_their_order(config):
    assert list(fields(config)) == list(parameters(config))


@every_config
def test_a_config_has_the_defaults_of_its_target(config):
    ours = {name: default(field) for name, field in fields(config).items()}
    assert ours == {name: parameter.default for name, parameter in parameters(config).items()}


@every_config
def test_numbers_and_strings_have_the_type_that_the_target_gives_them(config):
    hints = typing.get_type_hints(config)
    theirs = typing.get_type_hints(inspect.unwrap(getattr(target := get_object(config._target_), "__init__", target)))
    if not isinstance(target, type):
        theirs = typing.get_type_hints(target)
    for name in fields(config):
        choices = set(typing.get_args(theirs[name])) - {type(None)} or {theirs[name]}
        if choices <= set(PLAIN):
            assert hints[name] == theirs[name], name
        elif typing.get_origin(theirs[name]) is typing.Literal:
            assert hints[name] is str, name


@every_config
def test_targets_are_public_names(config):
    assert config._target_.removeprefix("infill_aug.").split(".")[0] in ia.__all__


def test_register_puts_every_config_into_its_group_and_can_be_repeated():
    register("somewhere/else")
    register("somewhere/else")
    store = ConfigStore.instance()
    found = {(g, n) for g in store.list("somewhere/else") for n in store.list(f"somewhere/else/{g}")}
    assert found == {(group, f"{name}.yaml") for group, name in CONFIGS}


def test_an_empty_prefix_registers_at_the_top():
    register("")
    assert "adaptive_threshold.yaml" in ConfigStore.instance().list("callback")
    for group in {group for group, _ in CONFIGS}:
        del ConfigStore.instance().repo[group]


# --- instantiate ---


def test_nested_configs_become_objects():
    state = ThresholdStateConfig(threshold=0.7)
    augment = instantiate(InfillAugmentConfig(threshold=state, variation={"_target_": "infill_aug.Variation"}))
    assert isinstance(augment, ia.InfillAugment)
    assert augment.threshold_state.threshold == pytest.approx(0.7)
    assert isinstance(augment.variation, ia.Variation)
    assert augment.dtype is torch.float32


def test_the_target_gets_plain_lists_and_dictionaries():
    got = instantiate(OmegaConf.create({"_target_": "builtins.dict", "a": [1, {"b": 2}], "c": {"d": "${..a}"}}))
    assert got == {"a": [1, {"b": 2}], "c": {"d": [1, {"b": 2}]}}
    assert type(got["a"]) is list
    assert type(got["c"]) is dict


def test_objects_given_by_keyword_arrive_as_they_are_dataclasses_too():
    descriptor = ia.TaskDescriptor("pets", "cat")
    got = instantiate({"_target_": "builtins.dict", "descriptor": "???", "a": 1}, descriptor=descriptor, a=2)
    assert got["descriptor"] is descriptor
    assert got["a"] == 2


def test_a_partial_config_becomes_a_callable():
    make = instantiate({"_target_": "infill_aug.Variation", "_partial_": True, "color": 0.1}, texture=0.2)
    assert (make().color.strength[1], make().texture.strength[1]) == (0.1, 0.2)


def test_several_configs_become_several_objects_and_nothing_stays_nothing():
    laws = instantiate({"first": {"_target_": "infill_aug.ProportionalLaw", "target": 0.8}})
    assert laws["first"].target == 0.8
    assert [law.target for law in instantiate([{"_target_": "infill_aug.ProportionalLaw"}])] == [0.8]
    assert instantiate(None) is None
    assert instantiate({}) == {}


def test_a_value_that_is_missing_is_named_with_its_place():
    config = OmegaConf.create({"run": {"threshold": ThresholdStateConfig()}})
    with pytest.raises(
        ValueError, match=r"from_threshold needs \['run.threshold.threshold'\].*run.threshold.threshold="
    ):
        instantiate(config.run.threshold)


def test_a_missing_value_of_a_nested_config_is_named_with_its_place():
    inner = {"_target_": "builtins.dict", "classifier": "???"}
    config = OmegaConf.create({"source": {"_target_": "builtins.dict", "source": inner}})
    with pytest.raises(ValueError, match=r"dict needs \['source.source.classifier'\].* source.source.classifier=VALUE"):
        instantiate(config.source)


def test_keywords_without_a_target_are_refused():
    with pytest.raises(TypeError, match=r"\['seed'\] need a config with a _target_"):
        instantiate({"a": 1}, seed=3)


def test_an_error_of_the_target_is_raised_as_it_is():
    with pytest.raises(ValueError, match=r"p must lie in 0\.\.1, got 2"):
        instantiate(InfillAugmentConfig(p=2.0))


# --- Hydra is optional, and lives in one place ---


def test_without_hydra_the_error_says_what_to_install(monkeypatch):
    for module in ("hydra.core.config_store", "hydra.utils"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (register, lambda: instantiate({})):
        with pytest.raises(ImportError, match=r"pip install 'infill-aug\[hydra\]'"):
            call()


def test_importing_the_configs_imports_neither_hydra_nor_torch():
    code = "import infill_aug.config, sys; sys.exit(bool({'hydra', 'omegaconf', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_no_other_file_calls_hydras_instantiate():
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "recipes").glob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            allowed = ["hydra"] if path.parent.name == "recipes" else []
            assert not [m for m in modules if m.split(".")[0] == "hydra" and m not in allowed], path


# --- in somebody else's application ---

STRANGER = """
defaults:
  - infill_aug/augment@augment: default
  - infill_aug/threshold@augment.threshold: state
  - infill_aug/variation@augment.variation: default
  - infill_aug/callback@callbacks.adaptive: adaptive_threshold
  - infill_aug/rule@callbacks.adaptive.rule: proportional
  - _self_
normalize: [[0.5, 0.5, 0.5], [0.2, 0.2, 0.2]]
augment:
  p: 0.3
  threshold:
    threshold: 0.4
  normalize: ${normalize}
callbacks:
  adaptive:
    monitor: val_f1
    rule:
      target: 0.8
"""

APP = """
import hydra
import torch
from infill_aug.config import instantiate, register

register()

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    augment = instantiate(cfg.augment)
    callbacks = instantiate(cfg.callbacks)
    law = callbacks["adaptive"].rule
    white = float(augment.normalize(torch.ones(1, 3, 1, 1)).mean())
    print(augment.p, augment.threshold_state.threshold, white, law.target)

main()
"""


@pytest.fixture
def stranger(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(STRANGER, encoding="utf-8")
    register()
    return tmp_path


def compose(folder, *overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder / "conf")):
        return hydra.compose("config", overrides=list(overrides))


def test_a_strangers_config_takes_the_groups_in(stranger):
    cfg = compose(stranger, "augment.threshold.threshold=0.6")
    augment, callback = instantiate(cfg.augment), instantiate(cfg.callbacks)["adaptive"]
    assert augment.threshold_state.threshold == pytest.approx(0.6)
    assert augment.p == 0.3
    white = augment.normalize(torch.ones(1, 3, 1, 1)).flatten().tolist()
    assert white == pytest.approx([(1 - 0.5) / 0.2] * 3)
    assert isinstance(callback, ia.AdaptiveThreshold)
    assert (callback.monitor, callback.rule.target) == ("val_f1", 0.8)


@pytest.mark.parametrize(
    "override", ["augment.p=often", "augment.feather=1.5", "augment.blur=2", "callbacks.adaptive.rule.warmup=x"]
)
def test_a_wrong_type_or_name_is_refused_before_anything_runs(stranger, override):
    with pytest.raises(ConfigCompositionException):
        compose(stranger, override)


def test_a_strangers_application_runs(stranger):
    (stranger / "app.py").write_text(textwrap.dedent(APP), encoding="utf-8")
    command = [sys.executable, "app.py", "augment.threshold.threshold=0.5", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=stranger, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    p, threshold, white, target = (float(word) for word in done.stdout.split())
    assert (p, round(threshold, 6), round(white, 5), target) == (0.3, 0.5, 2.5, 0.8)
