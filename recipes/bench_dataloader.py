"""Reading cost: samples/s of a DataLoader with InfillDataset over without, side by side in one run.

Prints a Markdown table; the one in docs/benchmarks.md comes from ``python recipes/bench_dataloader.py``.
Without ``--data`` it cuts its pictures from scikit-image's and scikit-learn's bundled photographs.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import infill_aug as ia


def cut_pictures(folder: Path, count: int, height: int, width: int) -> None:
    """JPEG crops of bundled photographs in two class folders."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
    photos = [getattr(data, name)() for name in names] + list(load_sample_images().images)
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        photo = v2.functional.to_image(photos[i % len(photos)])
        scale = max(height / photo.shape[1], width / photo.shape[2]) * (1 + float(torch.rand((), generator=generator)))
        photo = v2.functional.resize(photo, [round(side * scale + 0.5) for side in photo.shape[1:]], antialias=True)
        top = int(torch.randint(photo.shape[1] - height + 1, (), generator=generator))
        left = int(torch.randint(photo.shape[2] - width + 1, (), generator=generator))
        path = folder / f"class{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop = photo[:, top : top + height, left : left + width]
        Image.fromarray(crop.permute(1, 2, 0).numpy()).save(path, quality=90)


def measure(dataset: torch.utils.data.Dataset, workers: int, batch_size: int) -> tuple[float, float]:
    """Samples a second, and CPU milliseconds a sample in the workers, over one epoch; worker start-up not counted."""
    loader = DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, shuffle=True, persistent_workers=workers > 0
    )
    next(iter(loader))  # the workers start, and every file is in the page cache from the build
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for _ in loader:
        pass
    seconds = time.perf_counter() - started
    del loader  # ends the workers: only then are their times counted
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return len(dataset) / seconds, 1000 * cpu / len(dataset)


def main() -> None:
    """Build the stores, measure all arms in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of class folders; by default bundled photographs")
    parser.add_argument("--count", type=int, default=768, help="pictures that are cut (default: %(default)s)")
    parser.add_argument("--height", type=int, default=224, help="of the pictures that are cut (default: %(default)s)")
    parser.add_argument("--width", type=int, default=224, help="of the pictures that are cut (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side after RandomResizedCrop (default: %(default)s)")
    parser.add_argument("--backend", default="donor", help="infill backend (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(options.data or Path(scratch) / "pictures")
        if not options.data:
            cut_pictures(root, options.count, options.height, options.width)
        geometry = [v2.RandomResizedCrop(options.size, antialias=True), v2.RandomHorizontalFlip()]
        base = ImageFolder(root)
        arms: dict[str, torch.utils.data.Dataset] = {
            "without": ImageFolder(root, transform=v2.Compose([v2.ToImage(), *geometry]))
        }
        for codec in ("webp", "jpeg", "raw"):
            store = Path(scratch) / codec
            report = ia.build_cache(
                base, store, profile="centre_prior", backend=options.backend, levels=[0.8], codec=codec, batch_size=32
            )
            print(f"{codec}: {report}")
            arms[f"InfillDataset, {codec}"] = ia.InfillDataset(base, store, transforms=v2.Compose(geometry))
        arms["InfillDataset, webp, p=0.5"] = ia.InfillDataset(
            base, Path(scratch) / "webp", transforms=v2.Compose(geometry), p=0.5
        )
        transform = ia.InfillTransform(Path(scratch) / "webp", threshold=0.8, p=1.0, feather=0)
        arms["InfillTransform, webp, p=1"] = ImageFolder(
            root, transform=v2.Compose([transform, v2.ToImage(), *geometry])
        )
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for _ in range(options.rounds):  # in turn: the machine's speed drifts, a ratio within a round does not
            for name, dataset in arms.items():
                results[name].append(measure(dataset, options.workers, options.batch_size))
    print(
        f"\n{len(base)} JPEG pictures of {options.height} x {options.width}, {options.workers} workers, batch "
        f"{options.batch_size}, median of {options.rounds} rounds; {os.cpu_count()} cores, {platform.machine()}, "
        f"torch {torch.__version__}\n"
    )
    print("| arm | samples/s | ratio | CPU ms a sample |\n| --- | --- | --- | --- |")
    for name, rounds in results.items():
        ratio = statistics.median(own[0] / plain[0] for own, plain in zip(rounds, results["without"], strict=True))
        speed, cpu = (statistics.median(row[i] for row in rounds) for i in (0, 1))
        print(f"| {name} | {speed:.0f} | {ratio:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
