"""A small vision transformer trained on all patches, and on those that matter: accuracy and time of ``KeepTokens``.

    python recipes/train_tokens.py
    python recipes/train_tokens.py --keep 1 0.5 0.25 --seeds 0 1 2 --epochs 100

The arms train side by side on the same batches, with the same first weights, and are tested on all patches. "random"
keeps as many patches, but any: what dropping gives that does not know what matters.
"""

import argparse
import time
from statistics import mean, stdev

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer
from torchvision.transforms import v2

from infill_aug import InfillAugment, InfillDataset, MaskConfidence, build_cache
from infill_aug.demo.arms import NORMALIZE, accuracy, geometry
from infill_aug.demo.data import digits_on_photos
from infill_aug.keep_tokens import KeepTokens


class Arm:
    """A model with its optimiser, and the seconds that its steps took."""

    def __init__(self, keep: float, random: bool, seed: int, options: argparse.Namespace, classes: int, steps: int):
        torch.manual_seed(seed)
        size, patch = options.size, options.patch
        self.model = VisionTransformer(size, patch, 4, num_heads=4, hidden_dim=96, mlp_dim=192, num_classes=classes)
        self.tokens, self.random, self.seconds = KeepTokens(self.model, keep), random, 0.0
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, weight_decay=0.05)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 1e-3, total_steps=steps)

    def step(self, batch: dict) -> None:
        """Train on a batch."""
        started = time.perf_counter()
        # With nothing masked all patches are equal.
        mask = torch.zeros_like(batch["mask"]) if self.random else batch["mask"]
        loss = nn.functional.cross_entropy(self.tokens(batch["image"], mask), batch["target"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.seconds += time.perf_counter() - started


def main() -> None:
    """Train every arm with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", nargs="+", type=float, default=[1.0, 0.5], help="shares of the patches")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=48, help="side of the pictures in pixels")
    parser.add_argument("--patch", type=int, default=8, help="side of a patch in pixels")
    parser.add_argument("--limit", type=int, help="at most so many pictures of each split")
    parser.add_argument("--threshold", type=float, default=0.8, help="share of the pixels that is masked")
    parser.add_argument("--store", default="outputs/store/tokens", help="folder of the infills")
    options = parser.parse_args()
    data = digits_on_photos(options.size, limit=options.limit)
    # A feather, or the outermost pixels of the digits, would let the photograph through at this size.
    source = MaskConfidence(key="mask", inset=1)
    report = build_cache(data.train.labelled(), options.store, source=source, backend="donor")
    dataset = InfillDataset(data.train, options.store, transforms=v2.Compose(geometry(data)), recipe=report.recipe)
    augment = InfillAugment(options.threshold, p=1.0, feather=0, normalize=NORMALIZE)
    loader = DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True)
    steps = options.epochs * len(loader)
    print(f"{data.note}; {torch.get_num_threads()} threads; {steps} steps of {options.batch_size}", flush=True)

    kinds = {f"kept {keep:g}": (keep, False) for keep in options.keep}
    kinds |= {f"random {keep:g}": (keep, True) for keep in options.keep if keep < 1}
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in kinds}
    for seed in options.seeds:
        arms = {name: Arm(*kind, seed, options, len(data.classes), steps) for name, kind in kinds.items()}
        for _ in range(options.epochs):
            for batch in loader:
                augmented = augment(batch)
                for arm in arms.values():
                    arm.step(augmented)
        for name, arm in arms.items():
            tied, swapped = accuracy(arm.model, data.tied), accuracy(arm.model, data.swapped)
            results[name].append((tied, swapped, arm.seconds))
            print(f"seed {seed}, {name}: tied {tied:.1f}, swapped {swapped:.1f}, {arm.seconds:.0f} s", flush=True)
    print("\n| patches | tied, % | swapped, % | steps, s |\n| --- | --- | --- | --- |")
    for name, rows in results.items():
        cells = [
            f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
            for values in zip(*rows, strict=True)
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
