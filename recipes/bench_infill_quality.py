"""How real fills look, without downloaded networks: a classifier learns to tell filled pictures from real ones.

    python recipes/bench_infill_quality.py --pets FOLDER --images FOLDER --masks FOLDER --output outputs/quality

FOLDERs: one that holds ``oxford-iiit-pet`` (test split filled, half of the training split for donors), and pictures
with masks of objects (half of them filled, half for donors). All but the object is filled, with a hard edge, or with a
soft one, as ``InfillAugment`` makes it (``--feather 2``). Prints, for each backend, the area under the ROC curve (0.5:
not to be told apart), PSNR in the hole, and milliseconds a picture; saves a grid.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torchvision.datasets import OxfordIIITPet
from torchvision.utils import save_image

from infill_aug import MaskConfidence, TaskDescriptor, load_backend
from infill_aug.confidence.folders import MaskFolder
from infill_aug.functional.composite import composite
from infill_aug.functional.masks import dilate, feather_mask
from infill_aug.infill import SampleContext
from infill_aug.infill.backend import PoolSample
from infill_aug.infill.realism import two_sample_auc
from infill_aug.samples import split_sample

BACKENDS = ["push_pull", "telea", "noise", "donor", "diffusion"]
# The object; for donors, with the rim that trimaps leave open.
CORE, WHOLE = MaskConfidence(1, foreground=(1,), falloff=0.0), MaskConfidence(1, foreground=(1, 3), falloff=0.0)
MASK = MaskConfidence("mask", falloff=0.0)
# Pictures with more of a hole have next to nothing to go on, those with less are real.
SHARES = (0.3, 0.9)


def read(dataset, source, size, indices):
    """Pictures and maps as squares, ``uint8`` and 0..1."""
    images, maps = [], []
    for index in indices:
        image, target = split_sample(dataset[index], None)
        both = torch.cat([image.float() / 255, source(image, target)])[None]
        small = nnf.interpolate(both, size=size, mode="bilinear", antialias=True)[0]
        images.append((small[:3] * 255).round().to(torch.uint8))
        maps.append(small[3:])
    return torch.stack(images), torch.stack(maps)


def sets(options):
    """Pictures to fill with their holes, and donors."""
    kinds = ["category", "segmentation"]
    test, trained = (OxfordIIITPet(options.pets, split, kinds) for split in ("test", "trainval"))
    folder = MaskFolder(options.images, options.masks)
    filled = [
        read(test, CORE, options.size, range(len(test))),
        read(folder, MASK, options.size, range(0, len(folder), 2)),
    ]
    images, maps = (torch.cat(parts) for parts in zip(*filled, strict=True))
    # Only what is surely the object is kept, less its rim, which holds a trace of the background.
    holes = dilate(maps <= 0.9, max(1, options.size // 64))
    share = holes.float().mean(dim=(1, 2, 3))
    used = (share >= SHARES[0]) & (share <= SHARES[1])
    pool = []
    for dataset, source, first in ((trained, WHOLE, 0), (folder, MASK, 1)):
        for index in range(first, len(dataset), 2):
            image, target = split_sample(dataset[index], None)
            objects = (source(image, target) > 0.02).to(torch.uint8) * 255
            pool.append(PoolSample(f"donor {len(pool)}", image, objects))
    return images[used], holes[used], pool


def main() -> None:
    """Fill, tell apart, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pets", "images", "masks"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--options", type=json.loads, default={}, help='of backends: {"gan": {"weights": FILE}}')
    parser.add_argument("--seeds", type=int, default=3, help="classifiers for each half")
    parser.add_argument("--feather", type=int, default=0, help="pixels; 2 is the default of InfillAugment")
    parser.add_argument("--output", default="outputs/quality")
    options = parser.parse_args()
    images, holes, pool = sets(options)
    print(
        f"{len(images)} pictures of {options.size} px, {float(holes.float().mean()):.0%} filled, {len(pool)} donors; "
        f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads\n"
    )
    print("| backend | AUC | PSNR in the hole, dB | ms a picture |\n| --- | --- | --- | --- |")
    rows, every = [images[:: max(1, len(images) // 16)][:16]], max(1, len(images) // 16)
    for name in options.backends:
        backend = load_backend(name, **options.options.get(name, {}))
        if backend.pool_size:
            backend.prepare(pool)
        fills, started = [], time.perf_counter()
        for start in range(0, len(images), 16):
            image, hole = images[start : start + 16].float() / 255, holes[start : start + 16]
            samples = [SampleContext(f"picture {start + i}", start + i) for i in range(len(image))]
            fills.append(backend.generate_infill(image, hole, TaskDescriptor("quality", "object"), samples=samples))
        seconds, filled = time.perf_counter() - started, torch.cat(fills)
        error = (filled - images.float() / 255)[holes.expand_as(filled)].square().mean()
        eight = composite(images, (filled * 255).round().to(torch.uint8), feather_mask(holes, options.feather))
        found = two_sample_auc(images, eight, seeds=options.seeds)
        rows.append(eight[::every][:16])
        print(
            f"| {name} | {found.auc:.3f} ± {found.deviation:.3f} | {-10 * float(error.log10()):.1f} | "
            f"{1000 * seconds / len(images):.1f} |",
            flush=True,
        )
    grid = Path(options.output) / f"fills_{options.size}.png"
    grid.parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.cat(rows).float() / 255, grid, nrow=len(rows[0]))
    print(f"\nrows: real, {', '.join(options.backends)}: {grid}")


if __name__ == "__main__":
    main()
