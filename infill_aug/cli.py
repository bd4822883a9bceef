"""``infill-aug``: the package on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from infill_aug import __version__
from infill_aug.cli_profiles import add_profiles
from infill_aug.cli_smart_mask import add_smart_mask

# Before torch is loaded: OpenMP threads spin while they wait, and so keep a core from whoever has work, other programs
# and this one included. The caller's own choice stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; by default those of the process.

    Returns:
        Exit status: 0, 1 where the command failed or found faults, 2 for unusable arguments.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("stopped; what was stored stays stored, run the same command to go on", file=sys.stderr)
        return 130
    except (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # KeyError prints its message in quotes; the message itself is meant for people.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"infill-aug {options.command}: {message}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="infill-aug", description="Mask what does not matter, and refill it.")
    parser.add_argument("--version", action="version", version=f"infill-aug {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "train with and without infill on pictures whose background gives it away")
    demo.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="; ".join(_demo_settings()))

    build = _command(commands, "build", _build, "generate and store the infills of a dataset")
    build.add_argument("--data", required=True, help="folder of class folders; a torchvision dataset name with --root")
    build.add_argument("--root", help="root of a torchvision dataset, such as --data OxfordIIITPet --root FOLDER")
    build.add_argument("--split", help="split of a torchvision dataset")
    build.add_argument("--target-types", nargs="+", help="target types of a torchvision dataset, such as segmentation")
    build.add_argument("--store", required=True, help="folder of the store; made where it does not exist")
    build.add_argument(
        "--profile", default="salient_object", help="task profile: a name or a file (default: %(default)s)"
    )
    build.add_argument("--backend", help="infill backend (default: the descriptor's, else push_pull)")
    build.add_argument("--options", default="{}", help="options of the backend as JSON")
    build.add_argument("--descriptor", help="task descriptor: JSON text or a file")
    build.add_argument("--levels", nargs="+", type=float, help="rising thresholds in 0..1, one infill each")
    build.add_argument("--variants", type=int, default=1, help="fills of each mask (default: %(default)s)")
    build.add_argument("--protect", choices=("boxes", "masks"), help="labelled objects that are never regenerated")
    build.add_argument("--resume", default="if_possible", choices=("never", "if_possible", "always"))
    build.add_argument("--codec", default="webp", choices=("webp", "jpeg", "raw"), help="webp is lossless")
    build.add_argument("--batch-size", type=int, default=16, help="infills at once (default: %(default)s)")
    build.add_argument("--device", default="cpu", help="device of the networks (default: %(default)s)")
    build.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    build.add_argument(
        "--gate",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="turn down fills that are not fit to train on: black, flat, cut off, copied, the object drawn again",
    )
    build.add_argument("--retries", type=int, default=2, help="further tries of a rejected fill (default: %(default)s)")
    build.add_argument("--fallback", metavar="BACKEND", help="fills what the backend or the gate gave up")
    build.add_argument("--dry-run", action="store_true", help="measure a few images and estimate time and disk")

    inspect = _command(commands, "inspect", _inspect, "show what a store holds, and some of it as a picture")
    inspect.add_argument("store")
    inspect.add_argument("--picture", help="write a PNG of some stored infills to this file")
    inspect.add_argument("--count", type=int, default=24, help="infills in the picture (default: %(default)s)")
    inspect.add_argument(
        "--variations", nargs="*", metavar="OPERATION",
        help="the picture shows infills under these operations of Variation, by name (default: all of them)",
    )  # fmt: skip

    verify = _command(commands, "verify", _verify, "read every record of a store and check it")
    verify.add_argument("store")

    prune = _command(commands, "prune", _prune, "drop what no kept recipe refers to")
    prune.add_argument("store")
    prune.add_argument("--keep", nargs="+", metavar="RECIPE", help="recipes to keep (default: the one built last)")
    prune.add_argument("--yes", action="store_true", help="do it; without, only say what would be dropped")

    add_profiles(commands)

    add_smart_mask(commands)

    doctor = _command(commands, "doctor", _doctor, "say what is installed and what each missing part would bring")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _command(commands: Any, name: str, run: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _demo_settings() -> list[str]:
    from infill_aug.demo.config import DemoConfig

    return [f"{f.name}={getattr(DemoConfig(), f.name)}".replace("%", "%%") for f in dataclasses.fields(DemoConfig)]


def _demo(options: Any) -> int:
    from infill_aug.demo.config import parse_settings

    config = parse_settings(options.settings)
    try:
        from infill_aug.demo.run import run_demo
    except ImportError as error:
        raise ImportError(f"the demo needs {error.name}: pip install 'infill-aug[demo]'") from error
    run_demo(config)
    return 0


def _build(options: Any) -> int:
    from infill_aug.cache.build import BuildReport, build_cache
    from infill_aug.descriptor import TaskDescriptor
    from infill_aug.infill import choose_backend

    descriptor = TaskDescriptor.from_json(options.descriptor) if options.descriptor else None
    report = build_cache(
        _dataset(options),
        options.store,
        profile=options.profile,
        backend=choose_backend(options.backend, descriptor, **json.loads(options.options)),
        descriptor=descriptor,
        levels=options.levels,
        variants=options.variants,
        protect=options.protect,
        resume=options.resume,
        codec=options.codec,
        batch_size=options.batch_size,
        device=options.device,
        num_workers=options.workers,
        gate=options.gate,
        retries=options.retries,
        fallback=options.fallback,
        dry_run=options.dry_run,
    )
    print(report)
    if not isinstance(report, BuildReport):
        return 0
    for failure in report.failed[:10]:
        print(f"sample {failure['sample']}: {failure['reason']}", file=sys.stderr)
    return 1 if report.failed else 0


def _dataset(options: Any) -> Any:
    """An image folder, or a dataset of torchvision by name."""
    from torchvision import datasets

    if Path(options.data).is_dir():
        return datasets.ImageFolder(options.data)
    if not hasattr(datasets, options.data):
        raise FileNotFoundError(f"{options.data!r} is neither a folder nor a dataset of torchvision.datasets")
    extra = {"split": options.split, "target_types": options.target_types}
    return getattr(datasets, options.data)(
        options.root, download=False, **{name: value for name, value in extra.items() if value is not None}
    )


def _inspect(options: Any) -> int:
    from infill_aug.cache.inspect import verdicts
    from infill_aug.cache.store import InfillStore

    store = InfillStore(options.store, create=False)
    print(f"{store.path}: {len(store)} records, {store.size_bytes() / 1e6:.1f} MB")
    latest = store.read_document("latest")["recipe"] if "latest" in store.documents() else None
    checked = any(store.read_document(name).get("checks") for name in store.documents("recipe-"))
    found = verdicts(store) if checked else {}  # reads every entry
    for name in store.documents("recipe-"):
        recipe = store.read_document(name)
        mark = " (built last)" if name == f"recipe-{latest}" else ""
        print(
            f"{name}{mark}: backend {recipe['backend']}, levels {recipe['levels']} ({recipe['mode']}), "
            f"{recipe['variants']} variants, {recipe['source']['source']}, descriptor {recipe['descriptor']}"
        )
        if recipe.get("checks"):
            print(_checked(recipe["checks"], *found.get(name.removeprefix("recipe-"), ({}, {}))))
    # A build's summary of what its gate turned down is no failure.
    failures = [record for record in store.failures() if "sample" in record]
    print(f"{len(failures)} failures recorded")
    for failure in failures[-5:]:
        print(f"  sample {failure.get('sample')}: {failure.get('reason')}")
    if options.variations is not None:
        return _show_variations(store, options)
    if options.picture:
        from infill_aug.cache.inspect import save_contact_sheet

        print(f"{save_contact_sheet(store, Path(options.picture), options.count)} infills in {options.picture}")
    return 0


def _show_variations(store: Any, options: Any) -> int:
    from torchvision.io import write_png

    from infill_aug.cache.inspect import widest_infills
    from infill_aug.variation.sheet import variation_sheet

    if not options.picture:
        raise ValueError("--variations needs --picture FILE to draw into")
    write_png(variation_sheet(*widest_infills(store, 6), operations=options.variations or None), options.picture)
    print(f"{', '.join(options.variations) or 'every operation'} in {options.picture}")
    return 0


def _checked(checks: Mapping[str, Any], rejected: Mapping[str, int], by_fallback: Mapping[str, int]) -> str:
    """One line on what a recipe's gate and fallback did."""
    parts = []
    if "gate" in checks:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(rejected.items())) or "none"
        parts.append(f"fills rejected: {counts}; up to {checks['retries']} retries")
    if "fallback" in checks:
        name = checks["fallback"]["backend"]
        parts.append(f"{by_fallback.get(name, 0)} infills by the fallback {name}")
    return "  " + "; ".join(parts)


def _verify(options: Any) -> int:
    from infill_aug.cache.store import InfillStore

    report = InfillStore(options.store, create=False).verify(progress=True)
    print(report)
    return 1 if report.corrupt else 0


def _prune(options: Any) -> int:
    from infill_aug.cache.inspect import keys_of_recipes
    from infill_aug.cache.store import InfillStore

    store = InfillStore(options.store, create=False)
    keep = options.keep or [store.read_document("latest")["recipe"]]
    report = store.prune(keys_of_recipes(store, keep), dry_run=not options.yes)
    print(report if options.yes else f"{report}; nothing was dropped, add --yes to do it")
    return 0


def _doctor(options: Any) -> int:
    parts = {
        "torch": "everything",
        "torchvision": "everything",
        "kornia": "variation of the infill",
        "scipy": "smart mask",
        "cv2": "backend telea, learning from boxes or a classifier, faces of smart-mask (infill-aug[opencv])",
        "lightning": "InfillDataModule, AdaptiveThreshold, training of profiles (infill-aug[lightning])",
        "hydra": "recipes and configs (infill-aug[hydra])",
        "diffusers": "backends diffusion and diffusers (infill-aug[diffusers])",
        "accelerate": "loading and offloading large models (infill-aug[diffusers])",
        "peft": "few-step adapters of diffusers (infill-aug[diffusers])",
        "openai": "backend openai (infill-aug[cloud])",
        "huggingface_hub": "backend huggingface (infill-aug[cloud])",
        "requests": "backend http (infill-aug[cloud])",
        "transformers": "backend mae, teachers semantic, saliency, prompted, text (infill-aug[teachers])",
        "onnx": "export of the estimator (infill-aug[export])",
        "onnxscript": "export of the estimator (infill-aug[export])",
        "onnxruntime": "export and INT8 of the estimator (infill-aug[export])",
        "matplotlib": "pictures of the demo and of reports (infill-aug[demo])",
        "skimage": "photographs of the demo (infill-aug[demo])",
        "sklearn": "digits of the demo (infill-aug[demo])",
    }
    found: dict[str, str | None] = {"python": sys.version.split()[0], "infill_aug": __version__}
    for name in parts:
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            found[name] = None
    import torch

    found["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, version in found.items():
            lacking = "" if version else ": " + parts.get(name, "no GPU, everything runs on the CPU")
            print(f"{name:12} {version or 'missing'}{lacking}")
    return 0 if found["torch"] and found["torchvision"] else 1


if __name__ == "__main__":
    sys.exit(main())
