"""Pictures a second of ``Variation`` beside kornia, torchvision v2 and Albumentations, at equal work.

    python recipes/bench_variation.py                # the table of the libraries
    python recipes/bench_variation.py --operations   # milliseconds a picture of each operation

Work: from a batch in 8 bits to floating point in 0..1, colour jitter for 80 % of the pictures, Gaussian blur for half,
Gaussian noise for half, drawn for each picture, except where a library draws once a batch. Albumentations is timed if
it is installed (``pip install albumentations==2.0.8``, the last release under the MIT licence).
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import kornia
import kornia.augmentation as K
import numpy as np
import torch
import torchvision
from torchvision.transforms import v2

from infill_aug import Variation
from infill_aug.variation.operation import find_operation, list_operations

JITTER, BLUR, NOISE = (0.8, 1.2), (0.1, 1.0), 0.05


def ours() -> Callable:
    """One operation for each part, as the work says."""
    parts = {"color": ("jitter", 0.8), "texture": ("blur", 0.5), "style": ("gaussian_noise", 0.5)}
    variation = Variation(**{part: {"operations": [name], "p": p} for part, (name, p) in parts.items()})
    return lambda batch: variation(batch.float() / 255, torch.ones_like(batch[:, :1], dtype=torch.bool))


def with_kornia() -> Callable:
    """Its chain."""
    chain = K.AugmentationSequential(
        K.ColorJiggle(JITTER, JITTER, JITTER, (-0.1, 0.1), p=0.8),
        K.RandomGaussianBlur((5, 5), BLUR, p=0.5),
        K.RandomGaussianNoise(std=NOISE, p=0.5),
    )
    return lambda batch: chain(batch.float() / 255)


def torchvision_chain() -> Callable:
    """Its chain, in 8 bits until the end, which is its fastest way."""
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(JITTER, JITTER, JITTER, (-0.1, 0.1))], p=0.8),
            v2.RandomApply([v2.GaussianBlur(5, BLUR)], p=0.5),
            v2.RandomApply([v2.GaussianNoise(sigma=NOISE)], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def with_albumentations() -> Callable:
    """Its chain on arrays, made a batch of tensors."""
    import albumentations as A
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    chain = A.Compose(
        [
            A.ColorJitter(JITTER, JITTER, JITTER, (-0.1, 0.1), p=0.8),
            A.GaussianBlur(blur_limit=(5, 5), sigma_limit=BLUR, p=0.5),
            A.GaussNoise(std_range=(NOISE, NOISE), p=0.5),
        ]
    )

    def run(batch: torch.Tensor) -> torch.Tensor:
        pictures = np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy())
        varied = np.stack([chain(image=picture)["image"] for picture in pictures])
        return torch.from_numpy(varied).permute(0, 3, 1, 2).float() / 255

    return run


def contestants() -> dict[str, Callable]:
    """Everything that is installed."""
    found = {"Variation": ours(), "kornia AugmentationSequential": with_kornia()}
    chain, each = torchvision_chain(), torchvision_chain()
    found["torchvision v2, one draw a batch"] = chain
    found["torchvision v2, each picture"] = lambda batch: torch.stack([each(picture) for picture in batch])
    try:
        found["Albumentations"] = with_albumentations()
    except ImportError:
        print("Albumentations is not installed")
    return found


def seconds(run: Callable, batch: torch.Tensor) -> float:
    """Of one batch."""
    started = time.perf_counter()
    run(batch)
    return time.perf_counter() - started


def operations(options: argparse.Namespace) -> None:
    """Milliseconds a picture of each operation, drawing and applying, at its middle strength."""
    print("| group | operation | " + " | ".join(f"{size} px" for size in options.sizes) + " |")
    print("| --- | --- |" + " --- |" * len(options.sizes))
    for group in ("color", "texture", "style"):
        for name in list_operations(group):
            cells, operation = [], find_operation(name)(strength=(0.6, 0.6))
            for size in options.sizes:
                batch = torch.rand(options.batch, 3, size, size)
                operation(batch)
                took = statistics.median(seconds(operation, batch) for _ in range(options.rounds))
                cells.append(f"{1000 * took / options.batch:.2f}")
            print(f"| {group} | `{name}` | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Time them in turn, in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="as in a worker of a data loader")
    parser.add_argument("--operations", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"batch {options.batch}, {options.threads} threads, {platform.machine()}; torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, kornia {kornia.__version__}\n"
    )
    if options.operations:
        return operations(options)
    found = contestants()
    print("| library | " + " | ".join(f"{size} px, pictures/s (ratio)" for size in options.sizes) + " |")
    print("| --- |" + " --- |" * len(options.sizes))
    times: dict[tuple[str, int], list[float]] = {}
    for size in options.sizes:
        smooth = torch.rand(options.batch, 3, size // 8, size // 8)
        batch = (torch.nn.functional.interpolate(smooth, size=size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
        # In turn, so that what else the machine does meets all of them.
        for turn in range(options.rounds + 2):
            for name, run in found.items():
                took = seconds(run, batch)
                if turn >= 2:
                    times.setdefault((name, size), []).append(took)
    for name in found:
        cells = []
        for size in options.sizes:
            pairs = zip(times[name, size], times["Variation", size], strict=True)
            ratio = statistics.median(theirs / mine for theirs, mine in pairs)
            cells.append(f"{options.batch / statistics.median(times[name, size]):.0f} ({ratio:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\nratio: how many times as long as Variation takes, median over the rounds")


if __name__ == "__main__":
    main()
