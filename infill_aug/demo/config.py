"""Settings of the demo, and how they are read from a command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

DATA = ("digits", "pets", "imagefolder")
CONFIDENCE = ("auto", "masks", "cam", "centre")


@dataclass
class DemoDataConfig:
    """Which pictures.

    Args:
        name: ``digits``, ``pets`` or ``imagefolder``; ``data=pets`` is short for ``data.name=pets``.
        root: folder of the pictures, for ``pets`` and ``imagefolder``.
        size: side of the pictures in pixels; 0 takes what suits the data.
        tie: share of the ``digits`` that stand on their own photograph, 0..1; 0.1 ties nothing.
    """

    name: str = "digits"
    root: str = ""
    size: int = 0
    tie: float = 0.95


@dataclass
class DemoConfig:
    """Settings of the demo.

    Args:
        data: which pictures.
        arms: which ways of training to compare; ``oracle`` is ``infill_aug`` with every labelled mask.
        confidence: what ``infill_aug`` knows of the pictures: ``masks`` learns an estimator from a few of the masks,
            ``cam`` from where a classifier looks, which needs no masks; ``centre``, or a task profile by name or file;
            ``auto`` is ``masks`` where there are masks, else the profile ``salient_object``.
        masks: how many labelled masks ``confidence=masks`` learns from.
        seeds: one training of each arm a seed.
        epochs: passes over the training pictures, for all arms.
        batch_size: pictures a step.
        backend: infill backend.
        variants: fills of each mask.
        inset: pixels by which ``oracle`` makes the labelled masks smaller all around.
        start: threshold at the start.
        target: share of the best validation accuracy that the threshold must not cost.
        p: share of pictures that the infill arms change.
        feather: width in pixels of the soft rim; at the size of the digits it lets the background through.
        output: folder for the store, the pictures and ``results.json``.
    """

    data: DemoDataConfig = field(default_factory=DemoDataConfig)
    arms: list[str] = field(default_factory=lambda: ["plain", "RandomErasing", "RandAugment", "infill_aug", "oracle"])
    confidence: str = "auto"
    masks: int = 48
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    epochs: int = 24
    batch_size: int = 64
    backend: str = "donor"
    variants: int = 2
    inset: int = 0
    start: float = 0.8
    target: float = 0.85
    p: float = 0.9
    feather: int = 0
    output: str = "outputs/demo"


def parse_settings(settings: Sequence[str]) -> DemoConfig:
    """Settings as they stand on a command line, ``name=value``, over the defaults.

    Args:
        settings: such as ``data=pets``, ``data.root=FOLDER``, ``seeds=[0,1]``.

    Raises:
        ImportError: OmegaConf is missing; the message says what to install.
        ValueError: an unknown name, or a value of the wrong type.

    Example:
        >>> parse_settings(["data=pets", "data.root=there", "seeds=[7]"]).data
        DemoDataConfig(name='pets', root='there', size=0, tie=0.95)
    """
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise ImportError("the demo's settings need OmegaConf: pip install 'infill-aug[demo]'") from error
    wrong = [setting for setting in settings if "=" not in setting]
    if wrong:
        raise ValueError(f"settings are NAME=VALUE, got {wrong}; see infill-aug demo --help")
    dotted = [f"data.name={s.removeprefix('data=')}" if s.startswith("data=") else s for s in settings]
    try:
        merged: Any = OmegaConf.merge(OmegaConf.structured(DemoConfig), OmegaConf.from_dotlist(dotted))
        return cast(DemoConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(f"{str(error).splitlines()[0]}; see infill-aug demo --help") from error
