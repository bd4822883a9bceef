"""``infill-aug smart-mask``: keep an edit, undo the rest, for a pair of files or for two folders."""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

_KINDS = ("smart", "mask", "overlay")  # what is written, and how it is named: NAME_smart.png


def add_smart_mask(commands: Any) -> None:
    """Put the command under ``commands``."""
    text = "keep what an editor was asked to change, and the original's pixels everywhere else"
    parser = commands.add_parser("smart-mask", help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=_run)
    parser.add_argument("original", help="picture, or folder of pictures")
    parser.add_argument("edited", help="its edited copy, or a folder of them with the same names; suffixes may differ")
    parser.add_argument(
        "-o", "--output",
        help="file (.png and .tif are lossless), or folder that NAME_smart.png is written to (default: beside "
        "the edited picture); CMYK becomes .tif",
    )  # fmt: skip
    parser.add_argument("--mask", metavar="FILE", help="also write the mask as grey PNG, white = edit; or a folder")
    parser.add_argument("--overlay", metavar="FILE", help="also write a picture of what was taken; or a folder")
    parser.add_argument("--json", action="store_true", help="print JSON: of folders, a list")
    parser.add_argument("--hint", metavar="FILE", help="mask that the editor was given, white = edit; or a folder")
    parser.add_argument(
        "--protect", action="append", default=[], type=_mask_or_box, metavar="FILE|L,T,R,B",
        help="what stays the original's: a mask (white = stays), a folder of masks, or a box in pixels; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--faces", metavar="MODEL", help="protect faces: face_detection_yunet_2023mar.onnx of OpenCV's model zoo"
    )
    parser.add_argument("--regions", type=int, metavar="N", help="how many regions the edit has (default: as found)")
    parser.add_argument("--resize", action="store_true", help="allow another size of the edited picture")
    parser.add_argument("--preset", default="default", choices=("default", "difference"), help="difference: a baseline")
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, metavar="X",
        help="write nothing for pairs below, and fail; 0..1 (default: %(default)s)",
    )  # fmt: skip


def _mask_or_box(text: str) -> str | tuple[int, ...]:
    if not re.fullmatch(r"-?\d+(,-?\d+){3}", text):
        return text
    left, top, right, bottom = box = tuple(int(part) for part in text.split(","))
    if not (left < right and top < bottom):
        raise argparse.ArgumentTypeError(f"a box is left,top,right,bottom, the last two larger, got {text!r}")
    return box


def _run(options: Any) -> int:
    from tqdm import tqdm

    from infill_aug.smart_mask.smart_mask import SmartMask

    if not 0 <= options.min_confidence <= 1:
        raise ValueError(f"--min-confidence must lie in 0..1, got {options.min_confidence}")
    pairs, failures = _pairs(Path(options.original), Path(options.edited))
    many = Path(options.original).is_dir()
    jobs = [(pair, _targets(options, pair[1], many)) for pair in pairs]
    used = [options.hint, options.faces, *(each for each in options.protect if isinstance(each, str))]
    inputs = {Path(each).resolve() for each in (*(path for pair in pairs for path in pair), *used) if each}
    for _, targets in jobs:
        _check_targets(targets, inputs)
    if options.faces:  # a missing model is one failure, not one for each pair
        import torch

        from infill_aug.smart_mask.faces import face_boxes

        face_boxes(torch.zeros(3, 32, 32), options.faces)
    smart = SmartMask.preset(options.preset, resize=options.resize, regions=options.regions)
    records = [{"error": failure} for failure in failures]
    for failure in failures:
        print(failure, file=sys.stderr)
    for (original, edited), targets in tqdm(jobs, unit="pair", disable=not many):
        record: dict[str, Any] = {"original": str(original), "edited": str(edited)}
        records.append(record)
        try:
            _process(smart, options, original, edited, targets, inputs, record)
        except Exception as error:  # decoders raise all kinds; the other pairs are still to be done
            record["error"] = str(error) or type(error).__name__
            tqdm.write(f"{edited}: {record['error']}", file=sys.stderr)
        else:
            if not options.json:
                tqdm.write(_line(record), file=sys.stdout)
    if options.json:
        print(json.dumps(_finite(records if many else records[0]), indent=2, allow_nan=False))
    return 1 if any("error" in record for record in records) else 0


def _pairs(original: Path, edited: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Files that belong together, and what is wrong with others."""
    for path in (original, edited):
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {str(path)!r}")
    if original.is_dir() != edited.is_dir():
        raise ValueError(f"pass two files or two folders, got {str(original)!r} and {str(edited)!r}")
    if not original.is_dir():
        return [(original, edited)], []
    if original.resolve() == edited.resolve():
        raise ValueError(f"originals and edited pictures must lie in two folders, both are {str(original)!r}")
    first, second = _by_stem(original), _by_stem(edited)
    pairs, failures = [], []
    for stem in sorted({*first, *second}):
        here, there = first.get(stem, []), second.get(stem, [])
        if not here and any(stem.removesuffix(f"_{kind}") in {*second} - {stem} for kind in _KINDS):
            continue  # an earlier run has written it
        if not here or not there:
            print(f"no {'original' if there else 'edited picture'} for {(here or there)[0]}", file=sys.stderr)
        elif len(here) > 1 or len(there) > 1:
            failures.append(f"more than one picture {stem!r}: {', '.join(map(str, here + there))}")
        else:
            pairs.append((here[0], there[0]))
    if not pairs and not failures:
        raise FileNotFoundError(f"no picture of {str(original)!r} has a namesake in {str(edited)!r}")
    return pairs, failures


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Pictures of a folder by name without suffix."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMG_EXTENSIONS and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found


def _targets(options: Any, edited: Path, many: bool) -> dict[str, Path]:
    """What is written where, by kind."""
    targets = {}
    for kind, option in zip(_KINDS, (options.output or edited.parent, options.mask, options.overlay), strict=True):
        if option:
            folder = many or Path(option).is_dir()
            targets[kind] = Path(option) / f"{edited.stem}_{kind}.png" if folder else Path(option)
    return targets


def _check_targets(targets: dict[str, Path], inputs: set[Path]) -> None:
    from infill_aug.smart_mask.overlay import SUFFIXES

    for kind, path in targets.items():
        allowed = (".png",) if kind == "mask" else SUFFIXES
        if path.suffix.lower() not in allowed:
            raise ValueError(f"the name of the {kind} picture must end in {' '.join(allowed)}, got {str(path)!r}")
        _check_free(path, inputs)
    if len({path.resolve() for path in targets.values()}) < len(targets):
        raise ValueError(f"each picture needs a file of its own, got {', '.join(map(str, targets.values()))}")
    path = targets["smart"]
    if path.suffix.lower() in (".jpg", ".jpeg"):
        print(f"{path}: JPEG changes every pixel, also those that are kept; .png does not", file=sys.stderr)


def _check_free(path: Path, inputs: set[Path]) -> None:
    if path.resolve() in inputs:
        raise ValueError(f"{str(path)!r} is read by this command and is not overwritten; name another file")


def _process(
    smart: Any, options: Any, original: Path, edited: Path, targets: dict[str, Path], inputs: set[Path], record: Any
) -> None:
    """One pair: write its pictures, and enter into the record what there is to say, as far as it comes."""
    from PIL import Image
    from tqdm import tqdm

    from infill_aug.smart_mask.overlay import fitting_path, overlay, save_lossless

    began = time.perf_counter()
    hint, protect = _named(options.hint, original.stem), _protected(options, original)
    result = smart(original, edited, mask_hint=hint, protect=protect)
    height, width = result.mask.shape[-2:]
    report = result.reports[0]
    record.update(width=width, height=height, **report.as_dict(), seconds=time.perf_counter() - began)
    if options.min_confidence and not report.confidence >= options.min_confidence:
        raise ValueError(f"confidence {report.confidence:.2f} is below {options.min_confidence}: nothing was written")
    for path in targets.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    path = fitting_path(result.composite, targets["smart"])
    if path != targets["smart"]:
        _check_free(path, inputs)
        tqdm.write(f"{targets['smart']} can't hold these pixels without loss: written is {path}", file=sys.stderr)
    save_lossless(result.composite, path, like=original)
    if "mask" in targets:
        Image.fromarray((result.mask[0] * 255).round().byte().cpu().numpy()).save(targets["mask"])
    if "overlay" in targets:
        overlay(original, result, edited).save(targets["overlay"])
    record.update({"output": str(path)}, **{kind: str(targets[kind]) for kind in _KINDS[1:] if kind in targets})


def _named(name: str | None, stem: str) -> str | None:
    """A file, or the one of a folder that has the picture's name."""
    if name is None or not Path(name).is_dir():
        return name
    found = _by_stem(Path(name)).get(stem, [])
    if len(found) != 1:
        raise ValueError(f"there must be one mask {stem!r} in {name!r}, there are {len(found)}")
    return str(found[0])


def _protected(options: Any, original: Path) -> Any:
    """What stays: ``None``, a file, boxes, or where there are several, one mask of all."""
    from PIL import Image, ImageChops, ImageDraw, ImageOps

    files = [_named(each, original.stem) for each in options.protect if isinstance(each, str)]
    boxes = [each for each in options.protect if not isinstance(each, str)]
    if options.faces:
        from infill_aug.smart_mask.faces import face_boxes

        boxes += face_boxes(original, options.faces)
    if not files:
        return boxes or None
    if len(files) == 1 and not boxes:
        return files[0]
    masks = [ImageOps.exif_transpose(Image.open(file)).convert("L") for file in files if file]
    if len({mask.size for mask in masks}) > 1:
        raise ValueError(f"masks to protect by must have one size, got {[mask.size for mask in masks]}")
    together = functools.reduce(ImageChops.lighter, masks)
    draw = ImageDraw.Draw(together)
    for left, top, right, bottom in boxes:
        draw.rectangle((left, top, right - 1, bottom - 1), fill=255)
    return together


def _line(record: dict[str, Any]) -> str:
    taken = sum(region["taken"] for region in record["regions"])
    line = (
        f"{record['output']}: {record['share']:.1%} taken in {taken} region{'' if taken == 1 else 's'}, "
        f"confidence {record['confidence']:.2f}, {record['seconds']:.1f} s"
    )
    return f"{line}; {record['note']}" if record["note"] else line


def _finite(value: Any) -> Any:
    """The same without infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
