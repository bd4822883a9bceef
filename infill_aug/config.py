"""What this package offers to Hydra: typed configs, and one way to turn a config into an object.

Call ``register()`` before ``@hydra.main``; your own configs can then take the groups in, checked against their types::

    defaults:
      - infill_aug/augment@augment: default
      - infill_aug/threshold@augment.threshold: state
      - infill_aug/callback@callbacks.adaptive: adaptive_threshold

Each config has the parameters of its target, with the same names and defaults. Where the target takes an object, a law
or a data module say, the config takes another config with a ``_target_``, or the object is given to ``instantiate``.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass, field
from typing import Any

# OmegaConf's mark for a value that must be given; written out, so that the configs need no library to exist.
# Lists that may be None are typed Any: OmegaConf refuses ${...} for a typed one while it composes.
MISSING: Any = "???"


@dataclass
class ThresholdStateConfig:
    """``ThresholdState.from_threshold``: the threshold that a run shares."""

    _target_: str = "infill_aug.ThresholdState.from_threshold"
    threshold: float = MISSING
    mode: str = "quantile"
    bounds: tuple[float, float] = (0.0, 1.0)
    keep_min: float = 0.02
    classes: int = 0


@dataclass
class VariationConfig:
    """``Variation``: random style, colour and texture of the infill; each a number, names or a mapping."""

    _target_: str = "infill_aug.Variation"
    style: Any = 0.5
    color: Any = 0.5
    texture: Any = 0.3
    same_on_batch: bool = False


@dataclass
class InfillAugmentConfig:
    """``InfillAugment``: the batch step. ``threshold`` is a number or a ``ThresholdStateConfig``."""

    _target_: str = "infill_aug.InfillAugment"
    threshold: Any = 0.5
    mode: str = "quantile"
    p: float = 0.5
    jitter: float = 0.0
    feather: int = 2
    protect_above: float | None = 0.95
    variation: Any = None
    normalize: Any = None
    # OmegaConf knows no dtype, so a node that fetches one stands for it.
    dtype: Any = field(default_factory=lambda: {"_target_": "hydra.utils.get_object", "path": "torch.float32"})
    channels_last: bool = False


@dataclass
class ProportionalLawConfig:
    """``ProportionalLaw``: how a metric moves the threshold."""

    _target_: str = "infill_aug.ProportionalLaw"
    target: float = 0.8
    mode: str = "max"
    dead_band: float = 0.01
    samples: int | None = None
    warmup: int = 3
    patience: int = 0
    bounds: tuple[float, float] = (0.0, 0.95)
    gain: float = 1.0
    smoothing: float = 0.5
    slew: tuple[float, float] = (0.08, 0.05)


@dataclass
class SignLawConfig:
    """``SignLaw``: a fixed step towards the target."""

    _target_: str = "infill_aug.SignLaw"
    target: float = 0.8
    step: float = 0.01
    mode: str = "max"
    bounds: tuple[float, float] = (0.0, 0.95)


@dataclass
class ScheduleLawConfig:
    """``ScheduleLaw``: from one strength to another, whatever the metric."""

    _target_: str = "infill_aug.ScheduleLaw"
    end: float = MISSING
    intervals: int = MISSING
    start: float = 0.0
    shape: str = "linear"
    mode: str = "max"


@dataclass
class ConstantLawConfig:
    """``ConstantLaw``: always the same strength."""

    _target_: str = "infill_aug.ConstantLaw"
    constant: float = MISSING
    mode: str = "max"


@dataclass
class PerClassLawConfig:
    """``PerClassLaw``: ``rule`` is the config of the common law."""

    _target_: str = "infill_aug.PerClassLaw"
    rule: Any = MISSING
    classes: int = MISSING


@dataclass
class AdaptiveThresholdConfig:
    """``AdaptiveThreshold``: the Lightning callback. ``rule`` is the config of a law."""

    _target_: str = "infill_aug.AdaptiveThreshold"
    monitor: str = "infill/retention"
    mode: str = "max"
    target: float = 0.8
    reference: str | None = None
    min_delta: float = 0.01
    patience: int = 0
    bounds: Any = None
    rule: Any = None
    state: Any = None
    score: Any = None
    strict: bool = True
    check_finite: bool = True
    verbose: bool = False
    name: str = ""


@dataclass
class ImageLoggerConfig:
    """``ImageLogger``: the Lightning callback that shows what an epoch trains with."""

    _target_: str = "infill_aug.ImageLogger"
    every_n_epochs: int = 1
    max_images: int = 4
    folder: str | None = None


@dataclass
class InfillDataModuleConfig:
    """``InfillDataModule``: wraps your data module; ``inner`` and ``augment`` are configs or objects."""

    _target_: str = "infill_aug.InfillDataModule"
    inner: Any = MISSING
    augment: Any = MISSING
    store: Any = MISSING
    transforms: Any = None
    protect: str | None = None
    recipe: str | None = None
    on_miss: str = "error"
    image_key: str | int | None = None
    control_split: Any = 0
    with_mask: bool = False
    prefetch: bool = False


@dataclass
class BuildConfig:
    """``build_cache``: generates the infills of a dataset."""

    _target_: str = "infill_aug.build_cache"
    dataset: Any = MISSING
    store: Any = MISSING
    profile: Any = "labelled_masks"
    source: Any = None
    backend: Any = None
    descriptor: Any = None
    levels: Any = None
    variants: int = 1
    protect: str | None = None
    resume: str = "if_possible"
    codec: str = "webp"
    batch_size: int = 16
    device: str = "cpu"
    num_workers: int = 0
    image_key: str | int | None = None
    gate: Any = None
    retries: int = 2
    fallback: Any = None
    dry_run: bool = False
    progress: bool = True


# Group and option under which each is found.
CONFIGS: dict[tuple[str, str], type] = {
    ("augment", "default"): InfillAugmentConfig,
    ("build", "default"): BuildConfig,
    ("callback", "adaptive_threshold"): AdaptiveThresholdConfig,
    ("callback", "image_logger"): ImageLoggerConfig,
    ("datamodule", "default"): InfillDataModuleConfig,
    ("rule", "constant"): ConstantLawConfig,
    ("rule", "per_class"): PerClassLawConfig,
    ("rule", "proportional"): ProportionalLawConfig,
    ("rule", "schedule"): ScheduleLawConfig,
    ("rule", "sign"): SignLawConfig,
    ("threshold", "state"): ThresholdStateConfig,
    ("variation", "default"): VariationConfig,
}


def register(group_prefix: str = "infill_aug") -> None:
    """Put the configs into Hydra's store, as options of groups; a second call changes nothing.

    Args:
        group_prefix: folder that the groups lie in, so that they cannot meet your own; may be empty.

    Example:
        >>> register()
        >>> from hydra.core.config_store import ConfigStore
        >>> ConfigStore.instance().list("infill_aug/callback")
        ['adaptive_threshold.yaml', 'image_logger.yaml']
    """
    store = _load("hydra.core.config_store").ConfigStore.instance()
    for (group, name), node in CONFIGS.items():
        path = f"{group_prefix}/{group}" if group_prefix else group
        store.store(name=name, node=node, group=path, provider="infill_aug")


def instantiate(config: Any, /, **kwargs: Any) -> Any:
    """Turn a config into the object that it describes, its nested configs first.

    The only place that calls Hydra's function of this name, whose rules change between Hydra 1.3 and 1.4. What the
    target gets are plain dictionaries, lists and numbers; ``kwargs`` reach it as they are, dataclasses too, which Hydra
    itself would take for configs.

    Args:
        config: config, mapping or dataclass with a ``_target_``; a mapping or list of such; or ``None``.
        kwargs: parameters of the target that win over the config's.

    Raises:
        TypeError: ``kwargs`` with a config that has no ``_target_``.
        ValueError: a value of the config is missing and not among ``kwargs``.

    Example:
        >>> instantiate(ThresholdStateConfig(), threshold=0.5).threshold
        0.5
    """
    hydra_instantiate, OmegaConf = _load("hydra.utils").instantiate, _load("omegaconf").OmegaConf  # noqa: N806
    node = config if OmegaConf.is_config(config) or config is None else OmegaConf.structured(config)
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        if kwargs:
            raise TypeError(f"{sorted(kwargs)} need a config with a _target_ to go to, got {config!r}")
        return hydra_instantiate(node, _convert_="all")
    try:
        call = functools.partial(hydra_instantiate(node, _convert_="all", _partial_=True), **kwargs)
    except _load("omegaconf").MissingMandatoryValue as error:  # of a config inside of this one
        raise ValueError(
            f"{node._target_} needs [{error.full_key!r}]; on the command line: {error.full_key}=VALUE"
        ) from error
    if node.get("_partial_", False):
        return call
    missing = [node._get_full_key(key) for key in node if OmegaConf.is_missing(node, key) and key not in kwargs]
    if missing:
        raise ValueError(f"{node._target_} needs {missing}; on the command line: {missing[0]}=VALUE")
    return call()


def _load(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError("infill_aug.config needs Hydra: pip install 'infill-aug[hydra]'") from error
