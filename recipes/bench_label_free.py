"""Confidence from nothing but class labels: a classifier, where it looks, and a student of that; measured on masks.

    python recipes/bench_label_free.py --pets FOLDER --more-pets FOLDER

Folders: Oxford-IIIT Pet with trimaps (``oxford-iiit-pet`` inside), whose trimaps only measure, and more of its breeds
for the classifier. Prints a Markdown table; the one in docs/benchmarks.md comes from this command.
"""

import argparse
import datetime
import os
import platform
import time

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import OxfordIIITPet
from torchvision.transforms.v2 import functional as F

from infill_aug.confidence import ConfidenceEstimator, EstimatorConfidence, MaskConfidence
from infill_aug.confidence.evaluation import evaluate_confidence
from infill_aug.confidence.teachers.cam import CamConfidence
from infill_aug.confidence.teachers.snapped import SnappedConfidence
from infill_aug.confidence.training import change_pairs, draw_pair_changes, read_training_set
from infill_aug.lit.estimator import fit_estimator
from infill_aug.samples import to_uint8_image

SIZE = 96
NORMALIZE = ((0.45, 0.45, 0.45), (0.25, 0.25, 0.25))


def layers(inside: int, outside: int, stride: int) -> list[nn.Module]:
    """One convolution with what belongs to it."""
    return [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]


def classifier_of(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    """A small convolutional classifier, trained from scratch on labels alone."""
    widths = ((3, 32, 2), (32, 64, 2), (64, 96, 1), (96, 128, 2), (128, 128, 1), (128, 192, 1))
    stages = [nn.Sequential(*layers(*width)) for width in widths]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(192, int(labels.max()) + 1)]
    network = nn.Sequential(*stages, *head).to(memory_format=torch.channels_last)
    steps = epochs * (len(images) // 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=5e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(32)[: len(images) // 32]:
            batch = images[rows].float() / 255
            batch, _ = change_pairs(batch, batch[:, :1], draw_pair_changes(len(rows)))
            loss = nn.functional.cross_entropy(network((batch - 0.45) * 4), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main() -> None:
    """Train the classifier, distil where it looks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pets", required=True)
    parser.add_argument("--more-pets", required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options, started = parser.parse_args(), time.perf_counter()
    torch.manual_seed(options.seed)
    pets = OxfordIIITPet(options.pets, "trainval", "category")
    test = OxfordIIITPet(options.pets, "test", ["category", "segmentation"])
    own = set(pets.classes)
    # Pictures of the tested breeds come from their own training split alone: the others' may hold test pictures.
    others = [
        Subset(part, [i for i, label in enumerate(part._labels) if part.classes[label] not in own])
        for part in (OxfordIIITPet(options.more_pets, split, "category") for split in ("trainval", "test"))
    ]
    offset = len(own)
    pictures = ConcatDataset([pets, *others])
    pairs = [(image, label if i < len(pets) else label + offset) for i, (image, label) in enumerate(pictures)]
    images = torch.stack([F.resize(to_uint8_image(image), [SIZE, SIZE], antialias=True) for image, _ in pairs])
    classes = {label: i for i, label in enumerate(sorted({label for _, label in pairs}))}
    labels = torch.tensor([classes[label] for _, label in pairs])
    classifier = classifier_of(images, labels, options.epochs)

    looks = CamConfidence(classifier, layer=("2", "4"), normalize=NORMALIZE, input_size=SIZE)
    snapped = SnappedConfidence(looks)
    data = read_training_set(list(images), snapped, SIZE)
    order = torch.randperm(len(data))
    start = ConfidenceEstimator(("pets",), SIZE)
    student = fit_estimator(
        start, data.take(order[100:]), data.take(order[:100]), steps=options.steps, seed=options.seed
    )

    truth = MaskConfidence(1, foreground=(1, 3), falloff=0.0)
    rows = {"LayerCAM of the classifier": looks, "the same, snapped": snapped, "student": EstimatorConfidence(student)}
    reports = {name: evaluate_confidence(source, test, truth, labels=False) for name, source in rows.items()}
    prior = reports["student"].centre
    print(
        f"\n{len(images)} pictures, {len(classes)} classes, no masks; {len(test)} to test, seed {options.seed}, "
        f"{time.perf_counter() - started:.0f} s; {os.cpu_count()} cores, {platform.machine()}, torch "
        f"{torch.__version__}, {datetime.date.today()}\n"
    )
    print("| map | AP | IoU at the true area | pointing |\n| --- | --- | --- | --- |")
    for name, scores in {"centre prior": prior, **{name: report.scores for name, report in reports.items()}}.items():
        print(f"| {name} | {scores['ap']:.3f} | {scores['iou_at_area']:.3f} | {scores['pointing']:.3f} |")


if __name__ == "__main__":
    main()
