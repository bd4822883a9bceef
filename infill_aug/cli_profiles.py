"""``infill-aug profiles``: look at task profiles, train their estimators, measure them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any


def add_profiles(commands: Any) -> None:
    """Put the command and its own commands under ``commands``."""
    text = "list, show, train and evaluate task profiles"
    parser = commands.add_parser("profiles", help=text, description=text[0].upper() + text[1:] + ".")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    _action(actions, "list", _list, "name every bundled profile, where its maps come from, and how good they are")

    show = _action(actions, "show", _show, "print a profile's fields, its quality, and the card of its weights")
    show.add_argument("profile", help="a name or a file")
    show.add_argument("--data", help="folder of pictures to draw its maps of")
    show.add_argument("--picture", default="profile.png", help="PNG that --data is drawn to (default: %(default)s)")

    train = _action(actions, "train", _train, "learn a profile's estimator from your pictures")
    train.add_argument("profile", help="a name or a file")
    train.add_argument("--data", required=True, help="folder of pictures")
    _labels(train)
    train.add_argument("--output", help="folder for weights, profile and report (default: outputs/profiles/NAME)")
    train.add_argument("--steps", type=int, default=1500, help="optimiser steps (default: %(default)s)")
    train.add_argument("--limit", type=int, default=4000, help="at most so many pictures (default: %(default)s)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--scratch", action="store_true", help="start from nothing, not from the bundled trunk")

    evaluate = _action(actions, "evaluate", _evaluate, "measure a profile against labelled masks and the centre prior")
    evaluate.add_argument("profile", help="a name or a file")
    evaluate.add_argument("--data", required=True, help="folder of pictures")
    _labels(evaluate, required=True)
    evaluate.add_argument("--limit", type=int, help="at most so many pictures, evenly spaced")
    evaluate.add_argument("--output", help="folder for a report with pictures")
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    for command in (show, train, evaluate):
        command.add_argument("--device", default="cpu", help="where networks run (default: %(default)s)")
    train.add_argument(
        "--teacher", default="{}", help="JSON of options that replace the profile's, such as a local checkpoint"
    )


def _action(actions: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    action.set_defaults(run=run)
    return action


def _labels(parser: argparse.ArgumentParser, required: bool = False) -> None:
    lacking = "" if required else "; without, the profile's teacher is learned from"
    parser.add_argument("--masks", required=required, help="folder of masks with the pictures' names" + lacking)
    parser.add_argument(
        "--foreground", nargs="+", type=int, help="values of the masks that matter (default: all but 0), such as 1 3"
    )


def _profile(options: Any) -> Any:
    """The profile, with the options of its teacher that the command line gives."""
    from infill_aug.profile import TaskProfile

    profile = TaskProfile.load(options.profile)
    if not hasattr(options, "teacher"):
        return profile
    try:
        changed = json.loads(options.teacher)
    except json.JSONDecodeError as error:
        raise ValueError(f"--teacher must be JSON, got {options.teacher!r}: {error}") from error
    if not isinstance(changed, dict):
        raise ValueError(f"--teacher must be a JSON object, such as '{{\"checkpoint\": ...}}', got {options.teacher!r}")
    if changed:
        profile = dataclasses.replace(profile, teacher={**(profile.teacher or {}), **changed})
    return profile


def _data(options: Any, profile: Any) -> tuple[Any, Any]:
    """Pictures, and the labels' source where there are labels."""
    from infill_aug.confidence.folders import MaskFolder, PictureFolder
    from infill_aug.confidence.sources import MaskConfidence

    if not options.masks:
        return PictureFolder(options.data), None
    dataset = MaskFolder(options.data, options.masks)
    weights = None
    if options.foreground is None and dataset.classes and profile.class_weights:
        weights = dataset.weights(profile.class_weights)
    elif options.foreground is None and not dataset.classes:
        _check_binary(dataset)
    return dataset, MaskConfidence("mask", options.foreground, weights, falloff=0.0)


def _check_binary(dataset: Any) -> None:
    """Refuse masks of several label values of which nobody said which matter: a background may have any of them."""
    import numpy as np

    values = sorted({int(v) for i in range(min(len(dataset), 8)) for v in np.unique(dataset[i][1]["mask"])})
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        shown = f"{values[:12]}{' and more' if len(values) > 12 else ''}"
        raise ValueError(
            f"the masks hold the values {shown}: name those that matter, such as --foreground {values[-1]}"
        )


def _list(options: Any) -> int:
    from infill_aug.confidence.estimator import ConfidenceEstimator
    from infill_aug.profile import TaskProfile, list_profiles

    for name in list_profiles():
        profile = TaskProfile.load(name)
        origin = profile.source
        if profile.source == "estimator":
            if profile.weights is None:
                teacher = (profile.teacher or {}).get("name", "your masks")
                origin = f"estimator, no weights: learns from {teacher}"
            else:
                estimator = ConfidenceEstimator.from_profile(profile)
                origin = f"estimator, {_quality(estimator.quality.get(estimator.head))}"
        print(f"{name:22} {origin:58} {profile.description}")
    return 0


def _quality(quality: dict[str, Any] | None) -> str:
    if not quality or "ap" not in quality["scores"]:
        return "not measured against masks"
    verdict = "" if quality["passes"] else ", NOT BETTER THAN THE CENTRE"
    return f"AP {quality['scores']['ap']:.2f} (centre {quality['centre']['ap']:.2f}{verdict})"


def _show(options: Any) -> int:
    import yaml

    from infill_aug.confidence.estimator import ConfidenceEstimator, weights_path

    profile = _profile(options)
    print(yaml.safe_dump(profile.to_dict(), sort_keys=False, allow_unicode=True).rstrip())
    if profile.source == "estimator" and profile.weights is not None:
        estimator = ConfidenceEstimator.from_profile(profile)
        quality = estimator.quality.get(estimator.head)
        print(f"\n{_quality(quality)}" + (f"\n{quality['verdict']}" if quality else ""))
        card = weights_path(profile.weights).with_suffix(".md")
        if card.is_file():
            print(f"model card: {card}")
    if options.data:
        from infill_aug.confidence.folders import PictureFolder
        from infill_aug.confidence.from_profile import source_from_profile
        from infill_aug.confidence.profile_report import save_maps

        source = source_from_profile(profile, options.device)
        count = save_maps(PictureFolder(options.data), source, profile, Path(options.picture))
        print(f"{count} pictures in {options.picture}")
    return 0


def _train(options: Any) -> int:
    try:
        from infill_aug.lit.learn import learn_profile
    except ImportError as error:
        raise ImportError(f"training needs {error.name}: pip install 'infill-aug[demo]'") from error

    profile = _profile(options)
    dataset, source = _data(options, profile)
    learned = learn_profile(
        profile,
        dataset,
        options.output or Path("outputs") / "profiles" / profile.name,
        source=source,
        steps=options.steps,
        limit=options.limit,
        seed=options.seed,
        device=options.device,
        start=None if options.scratch else "base",
    )
    print(f"{learned.quality}\n\n{learned.quality.verdict}")
    print(f"\n{learned.seconds:.0f} s; the profile is {learned.folder / profile.name}.yaml: use it as --profile, or in")
    print(f"build_cache(profile=...); pictures and figures are in {learned.folder / 'report.md'}")
    return 0


def _evaluate(options: Any) -> int:
    from infill_aug.confidence.evaluation import evaluate_confidence
    from infill_aug.confidence.from_profile import source_from_profile
    from infill_aug.confidence.network import NetworkConfidence

    profile = _profile(options)
    dataset, truth = _data(options, profile)
    source = source_from_profile(profile, options.device)
    # The network's own scores, as the quality in its weights: a ring is no claim about the pixels it lies on.
    measured = source.ungraded() if isinstance(source, NetworkConfidence) else source
    quality = evaluate_confidence(measured, dataset, truth, limit=options.limit, progress=not options.json)
    print(json.dumps(quality.to_dict(), indent=2) if options.json else f"{quality}\n\n{quality.verdict}")
    if options.output:
        from infill_aug.confidence.profile_report import save_report

        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        save_report(folder, profile, source, dataset, truth, quality, {"data": str(options.data)})
        # What is printed as JSON stays JSON.
        print(f"\nreport: {folder / 'report.md'}", file=sys.stderr if options.json else sys.stdout)
    return 0 if quality.passes else 1
