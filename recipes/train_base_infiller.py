"""Train the bundled weights of the backend ``diffusion``, on pictures whose licence allows it.

    python recipes/train_base_infiller.py --pets F --more-pets F --photographs F --coco F

Folders: Oxford-IIIT Pet with trimaps, the same without, CC0 photographs, COCO with annotations (its CC BY pictures are
used). Pictures of the test split are in none of them. Run it again to go on where it stopped.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from torchvision.datasets import OxfordIIITPet

from infill_aug import MaskConfidence, TaskProfile
from infill_aug.confidence.coco import CocoObjects
from infill_aug.confidence.composites import random_crops
from infill_aug.confidence.folders import PictureFolder
from infill_aug.confidence.from_profile import source_from_profile
from infill_aug.infill.infiller_training import InfillerSet, read_infiller_set, side_of
from infill_aug.infill.pipeline import new_infiller
from infill_aug.infill.single_pass import SinglePassInfiller, save_single_pass
from infill_aug.lit.infiller import fit_infiller

MASK = MaskConfidence(falloff=0.0)
INSIDE, RIM = MaskConfidence(1, foreground=(1,), falloff=0.0), MaskConfidence(1, foreground=(3,), falloff=0.0)
CC_BY = (4,)
# Crops of each photograph; times that pictures count of which people drew the objects.
CROPS, REPEAT = 10, 3


def trimap(image: torch.Tensor, target: object) -> torch.Tensor:
    """1 in the object, a half on its rim, which may be either."""
    return INSIDE(image, target) + RIM(image, target) / 2


def pets(options: argparse.Namespace) -> list[InfillerSet]:
    """Pets with trimaps, and those of other breeds with the maps of the bundled estimator."""
    kinds = ["category", "segmentation"]
    trained, test = (OxfordIIITPet(options.pets, split, kinds) for split in ("trainval", "test"))
    seen = {path.stem for path in trained._images + test._images}
    more = [
        (image, None)
        for split in ("trainval", "test")
        for part in [OxfordIIITPet(options.more_pets, split)]
        for path, (image, _) in zip(part._images, part, strict=True)
        if path.stem not in seen
    ]
    # No falloff: holes have to begin at the object, since fills do.
    estimator = source_from_profile(dataclasses.replace(TaskProfile.load("pets"), falloff=0.0))
    drawn = read_infiller_set(trained, trimap, options.size)
    return [drawn] * REPEAT + [read_infiller_set(more, estimator, options.size)]


def coco(folder: Path, size: int) -> list[InfillerSet]:
    """CC BY pictures without their objects."""
    files = folder / "annotations"
    wanted = {"licenses": CC_BY, "min_area": 0.02}
    sets = [
        CocoObjects(folder / "train2017", files / "instances_train2017.json", **wanted),
        CocoObjects(folder / "val2017", files / "panoptic_val2017.json", folder / "panoptic_val2017", **wanted),
    ]
    pictures = [(picture, target["mask"].max(axis=0)) for part in sets for picture, target in part]
    return [read_infiller_set(pictures, MASK, size)] * REPEAT


def read_all(options: argparse.Namespace) -> InfillerSet:
    """Every picture that may be used."""
    torch.manual_seed(0)
    photographs = random_crops(PictureFolder(options.photographs), side_of(options.size), CROPS)
    nothing = torch.zeros(len(photographs), 1, *photographs.shape[-2:], dtype=torch.bool)
    parts = [*pets(options), *coco(Path(options.coco), options.size), InfillerSet.of(photographs, nothing)]
    print("pictures:", ", ".join(str(len(part)) for part in parts))
    return InfillerSet.join(parts)


def main() -> None:
    """Read, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pets", "more-pets", "photographs", "coco"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--output", default="outputs/base_infiller")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--gan", action="store_true", help="a network of one pass for the backend gan, to compare")
    parser.add_argument("--precision", default="32-true", help="Lightning's; bf16-mixed where the CPU is made for it")
    options, started = parser.parse_args(), time.perf_counter()
    pictures = read_all(options)
    # 16 for the grids; of the sets that count several times, other copies are trained on.
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    trained = fit_infiller(
        SinglePassInfiller() if options.gan else new_infiller(options.size),
        pictures.take(order[16:]),
        steps=options.steps,
        held=pictures.take(order[:16]),
        output=options.output,
        resume=True,
        precision=options.precision,
    )
    saved = Path(options.output) / ("network.pt2" if options.gan else "pipeline")
    if isinstance(trained, SinglePassInfiller):
        save_single_pass(trained, saved)
    else:
        trained.unet.half()
        trained.save_pretrained(saved)
    print(f"{saved}: {len(pictures) - 16} pictures, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
