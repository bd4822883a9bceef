"""``infill-aug demo``: build the infills, train every arm with every seed, print and draw what came out."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from infill_aug.cache.build import BuildReport, build_cache
from infill_aug.cache.store import InfillStore
from infill_aug.confidence.sources import ConfidenceSource, MaskConfidence
from infill_aug.datasets import InfillDataset
from infill_aug.demo.arms import ARMS, INFILL_ARMS, ArmResult, train_arm
from infill_aug.demo.confidence import demo_confidence
from infill_aug.demo.config import DATA, DemoConfig
from infill_aug.demo.data import DemoData, digits_on_photos, image_folder, pets
from infill_aug.demo.report import save_curve, save_grid, table
from infill_aug.infill import load_backend


def load_data(config: DemoConfig) -> DemoData:
    """The pictures that a configuration names.

    Raises:
        ValueError: an unknown kind of data.
    """
    wanted = config.data
    if wanted.name == "digits":
        return digits_on_photos(wanted.size or 48, tie=wanted.tie)
    if wanted.name == "pets":
        return pets(wanted.root, wanted.size or 96)
    if wanted.name == "imagefolder":
        return image_folder(wanted.root, wanted.size or 96)
    raise ValueError(f"data must be one of {DATA}, got {wanted.name!r}")


def run_demo(config: DemoConfig) -> list[ArmResult]:
    """Run the whole demo.

    Args:
        config: settings.

    Returns:
        One result for each arm and seed.

    Raises:
        ValueError: a setting out of range; the message names it.
        FileNotFoundError: the pictures are not there.
    """
    unknown = sorted(set(config.arms) - set(ARMS))
    if unknown or not config.arms or not config.seeds:
        raise ValueError(f"arms must be some of {ARMS} and seeds not empty, got {config.arms} and {config.seeds}")
    # Lightning introduces itself at every training; twelve times is eleven too many.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    started = time.perf_counter()
    data = load_data(config)
    if data.train.masks is None and set(config.arms) == {"oracle"}:
        raise ValueError("arms=[oracle] needs pictures with masks, and these have none; add another arm")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    sizes = f"{len(data.train)} to train, {len(data.val)} to steer by, {len(data.tied)} and {len(data.swapped)} to test"
    print(f"{data.note}\n{sizes}\n")
    # Backgrounds of other classes: a fill from the own class would bring back what is to be unlearned.
    options: dict[str, Any] = {"other_class": True} if config.backend == "donor" else {}
    store = InfillStore(output / "store")
    profile = "labelled_masks" if data.train.masks is not None else "salient_object"
    recipes: dict[str, str] = {}
    for arm in (arm for arm in INFILL_ARMS if arm in config.arms):
        if arm == "oracle" and data.train.masks is None:
            continue
        source: ConfidenceSource = data.source
        if isinstance(data.source, MaskConfidence):
            source = dataclasses.replace(data.source, inset=config.inset)
        if arm == "infill_aug":
            source, line = demo_confidence(config, data, output / "confidence")
            print(f"confidence: {line}")
        report = build_cache(
            data.train.labelled(),
            store,
            source=source,
            profile=profile,
            backend=load_backend(config.backend, **options),
            variants=config.variants,
            batch_size=32,
        )
        assert isinstance(report, BuildReport)
        recipes[arm] = report.recipe
        print(f"{arm}: {report}")
    arms = [arm for arm in config.arms if arm not in INFILL_ARMS or arm in recipes]
    plan = [(seed, arm) for seed in config.seeds for arm in arms]
    results = []
    with tqdm(plan, unit="training") as bar:
        for seed, arm in bar:
            bar.set_description(f"{arm}, seed {seed}")
            result = train_arm(
                arm,
                data,
                store,
                seed=seed,
                epochs=config.epochs,
                batch_size=config.batch_size,
                start=config.start,
                target=config.target,
                p=config.p,
                feather=config.feather,
                recipe=recipes.get(arm),
            )
            results.append(result)
    results.sort(key=lambda result: (arms.index(result.arm), result.seed))
    reached = [result.threshold for result in results if result.threshold is not None]
    shown = sorted({0.5, config.start, *reached[:1]})
    if recipes:
        shown_recipe = recipes.get("infill_aug", next(iter(recipes.values())))
        save_grid(InfillDataset(data.train, store, recipe=shown_recipe), shown, output / "grid.png")
    save_curve(results, output / "curve.png")
    record = {
        "config": dataclasses.asdict(config),
        "data": data.note,
        "results": [dataclasses.asdict(result) for result in results],
        "seconds": time.perf_counter() - started,
    }
    (output / "results.json").write_text(json.dumps(record, indent=2, default=list), encoding="utf-8")
    print(f"\nAccuracy in percent, {len(config.seeds)} seeds, equal optimiser steps:\n\n{table(results)}\n")
    print(f"Pictures: {output / 'grid.png'} (image, confidence, mask, infill, composite)")
    print(f"Curve:    {output / 'curve.png'} (threshold and validation accuracy by epoch)")
    print(f"Figures:  {output / 'results.json'}; {time.perf_counter() - started:.0f} s in all")
    if data.train.masks is None:
        warnings.warn(
            "these pictures have no masks: the swap took the centre for the object",
            stacklevel=2,
        )
    return results
