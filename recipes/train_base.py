"""Train the bundled weights: one small trunk with the heads ``salient_object`` and ``pets``.

    python recipes/train_base.py --pets F --more-pets F --backgrounds F --coco F --salient-images F --salient-masks F

Folders: Oxford-IIIT Pet with trimaps, the same without, CC0 photographs without pets, COCO with annotations (its CC BY
pictures are used), and, only to measure, pictures with masks of salient objects.
"""

import argparse
import datetime
import time
from pathlib import Path

import torch
from torchvision.datasets import OxfordIIITPet

from infill_aug.confidence import EstimatorConfidence, MaskConfidence
from infill_aug.confidence.coco import CocoObjects
from infill_aug.confidence.composites import empty, paste_objects, paste_shapes, random_crops
from infill_aug.confidence.estimator import ConfidenceEstimator
from infill_aug.confidence.evaluation import evaluate_confidence
from infill_aug.confidence.folders import MaskFolder, PictureFolder
from infill_aug.confidence.training import TrainingSet, read_training_set
from infill_aug.lit.estimator import fit_estimator

HEADS = ("salient_object", "pets")
BOTH, PETS = torch.tensor([True, True]), torch.tensor([False, True])
TRIMAP = MaskConfidence(1, foreground=(1, 3), falloff=0.0)
CC_BY = (4,)


def both_heads(part: TrainingSet, is_pet: torch.Tensor) -> TrainingSet:
    """What matters to ``salient_object``, and to ``pets`` where it is a pet."""
    targets = torch.cat([part.targets, part.targets * is_pet[:, None, None, None].byte()], dim=1)
    return TrainingSet(part.images, targets, BOTH[None].expand(len(part), -1))


def split(part: TrainingSet, count: int, draw: torch.Generator) -> tuple[TrainingSet, TrainingSet]:
    """All but ``count`` pictures, and those."""
    order = torch.randperm(len(part), generator=draw)
    return part.take(order[count:]), part.take(order[:count])


def coco_objects(folder: Path, size: int) -> tuple[TrainingSet, TrainingSet]:
    """CC BY pictures with all their objects, and the same with one object each, to cut out."""
    files = folder / "annotations"
    wanted = {"licenses": CC_BY, "min_area": 0.02}
    sets = [
        CocoObjects(folder / "train2017", files / "instances_train2017.json", **wanted),
        CocoObjects(folder / "val2017", files / "panoptic_val2017.json", folder / "panoptic_val2017", **wanted),
    ]
    whole, single, pet, single_pet = [], [], [], []
    for picture, target in (sample for one in sets for sample in one):
        pets = torch.tensor([label in ("cat", "dog") for label in target["labels"]])
        whole.append((picture, target["mask"].max(axis=0)))
        pet.append(bool(pets.all()))
        single += [(picture, mask) for mask in target["mask"]]
        single_pet += pets.tolist()
    # A picture with pets and other things has no map for `pets` that one mask could give.
    read = [read_training_set(part, MaskConfidence(falloff=0.0), size) for part in (whole, single)]
    return both_heads(read[0], torch.tensor(pet)), both_heads(read[1], torch.tensor(single_pet))


def pets_sets(options: argparse.Namespace, size: int) -> tuple[TrainingSet, TrainingSet, OxfordIIITPet]:
    """Labelled pets, unlabelled ones with the maps of an estimator trained on the labelled, and the test split."""
    kinds = ["category", "segmentation"]
    trained, test = (OxfordIIITPet(options.pets, split, kinds) for split in ("trainval", "test"))
    labelled = read_training_set(trained, TRIMAP, size)
    parts = split(labelled, 40, torch.Generator().manual_seed(0))
    teacher = fit_estimator(ConfidenceEstimator(("pets",), size), *parts, steps=options.steps // 4)
    seen = {path.stem for path in test._images}
    more = [
        (image, None)
        for split in ("trainval", "test")
        for part in [OxfordIIITPet(options.more_pets, split)]
        for path, (image, _) in zip(part._images, part, strict=True)
        if path.stem not in seen
    ]
    return labelled, read_training_set(more, EstimatorConfidence(teacher), size), test


def main() -> None:
    """Make the sets, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pets", "more-pets", "backgrounds", "coco", "salient-images", "salient-masks"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--output", default="outputs/base.safetensors")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--steps", type=int, default=4000)
    options, started, _ = parser.parse_args(), time.perf_counter(), torch.manual_seed(0)
    draw, size = torch.Generator().manual_seed(0), options.size
    scenes = random_crops(PictureFolder(options.backgrounds), size, 40)
    labelled, more, test = pets_sets(options, size)
    coco, objects = coco_objects(Path(options.coco), size)
    pets, cats = (both_heads(part, torch.ones(len(part), dtype=torch.bool)) for part in (labelled, more))
    (pets, held_pets), (cats, held_cats), (coco, held_coco) = (
        split(part, count, draw) for part, count in ((pets, 40), (cats, 60), (coco, 5))
    )
    # Real pictures outweigh made-up ones: those teach that things differ from what is behind them, not how they look.
    training = TrainingSet.join(
        [pets] * 4 + [cats] + [coco] * 4
        + [paste_objects(pets, scenes, 400, draw), paste_objects(objects, scenes, 500, draw)]
        + [paste_shapes(scenes, 300, draw, BOTH), empty(scenes[::2], PETS)]
    )  # fmt: skip
    made = [paste_objects(held_pets, scenes, 40, draw), paste_shapes(scenes, 30, draw, BOTH)]
    held = TrainingSet.join([held_pets, held_cats, held_coco, *made])
    estimator = fit_estimator(ConfidenceEstimator(HEADS, size), training, held, steps=options.steps, batch_size=32)
    salient = MaskFolder(options.salient_images, options.salient_masks), MaskConfidence("mask", falloff=0.0)
    for head, (data, truth) in (("pets", (test, TRIMAP)), ("salient_object", salient)):
        estimator.head = head
        report = evaluate_confidence(EstimatorConfidence(estimator), data, truth)
        estimator.quality[head] = report.to_dict()
        print(f"\n{head}\n{report}")
    notes = {"seed": 0, "pictures": len(training), "date": str(datetime.date.today())}
    estimator.save(options.output, **notes, steps=options.steps, seconds=round(time.perf_counter() - started))


if __name__ == "__main__":
    main()
