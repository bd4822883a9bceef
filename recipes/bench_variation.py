"""Pictures a second of ``Variation`` beside kornia, torchvision v2 and Albumentations, at equal work.

    python recipes/bench_variation.py

Work: from a batch in 8 bits to floating point in 0..1, colour jitter for 80 % of the pictures, Gaussian blur for half,
Gaussian noise for half, drawn for each picture, except where a library draws once a batch. Albumentations is timed if
it is installed (``pip install albumentations==2.0.8``, the last release under the MIT licence).
"""

import argparse
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import kornia
import kornia.augmentation as K
import numpy as np
import torch
import torchvision
from torchvision.transforms import v2

from infill_aug import Variation
from infill_aug.variation.texture import Blur, GaussianNoise

JITTER, HUE, BLUR, NOISE = (0.8, 1.2), (-0.1, 0.1), (0.1, 1.0), 0.05


def albumentations_chain() -> Callable:
    """Its chain on arrays, made a batch of tensors."""
    import albumentations as A
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    jitter = A.ColorJitter(JITTER, JITTER, JITTER, HUE, p=0.8)
    noise = A.GaussNoise(std_range=(NOISE, NOISE), p=0.5)
    chain = A.Compose([jitter, A.GaussianBlur(blur_limit=(5, 5), sigma_limit=BLUR, p=0.5), noise])

    def run(batch: torch.Tensor) -> torch.Tensor:
        pictures = np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy())
        varied = np.stack([chain(image=picture)["image"] for picture in pictures])
        return torch.from_numpy(varied).permute(0, 3, 1, 2).float() / 255

    return run


def contestants(size: int) -> dict[str, Callable]:
    """Everything that is installed, by name."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    # Blur up to one pixel, and noise of .05 in the mean, as the others'.
    own = {"color": ("jitter", 0.8), "texture": (Blur((0.0, min(1.0, 1 / (0.02 * size)))), 0.5)}
    own["style"] = GaussianNoise((0.3, 0.4)), 0.5
    variation = Variation(**{part: {"operations": [each], "p": p} for part, (each, p) in own.items()})
    kornias = K.AugmentationSequential(
        K.ColorJiggle(JITTER, JITTER, JITTER, HUE, p=0.8),
        K.RandomGaussianBlur((5, 5), BLUR, p=0.5),
        K.RandomGaussianNoise(std=NOISE, p=0.5),
    )
    jitter, noise = v2.ColorJitter(JITTER, JITTER, JITTER, HUE), v2.GaussianNoise(sigma=NOISE)
    chances = ((jitter, 0.8), (v2.GaussianBlur(5, BLUR), 0.5), (noise, 0.5))
    # In 8 bits until the end, which is its fastest way.
    torchvisions = v2.Compose([*(v2.RandomApply([each], p) for each, p in chances), to_float])
    found: dict[str, Callable] = {
        "Variation": lambda batch: variation(batch, torch.ones_like(batch[:, :1]) > 0, dtype=torch.float32),
        "kornia AugmentationSequential": lambda batch: kornias(to_float(batch)),
        "torchvision v2, one draw a batch": torchvisions,
        "torchvision v2, each picture": lambda batch: torch.stack([torchvisions(picture) for picture in batch]),
    }
    try:
        found["Albumentations"] = albumentations_chain()
    except ImportError:
        print("Albumentations is not installed")
    return found


def main() -> None:
    """Time them in turn, in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="as in a worker of a data loader")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"batch {options.batch}, {options.threads} threads, {platform.machine()}; torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, kornia {kornia.__version__}\n"
    )
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for size in options.sizes:
        found = contestants(size)
        coarse = torch.rand(options.batch, 3, size // 8, size // 8)
        batch = (torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
        # In turn, so that what else the machine does meets all of them; two rounds to warm up.
        for turn in range(options.rounds + 2):
            for name, run in found.items():
                started = time.perf_counter()
                run(batch)
                if turn >= 2:
                    times[name, size].append(time.perf_counter() - started)
    print("| library | " + " | ".join(f"{size} px, pictures/s (ratio)" for size in options.sizes) + " |")
    print("| --- |" + " --- |" * len(options.sizes))
    for name in found:
        cells = []
        for size in options.sizes:
            took, mine = statistics.mean(times[name, size]), statistics.mean(times["Variation", size])
            cells.append(f"{options.batch / took:.0f} ({took / mine:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\nratio: how many times as long as Variation it takes; means, since one draw costs more than another")


if __name__ == "__main__":
    main()
