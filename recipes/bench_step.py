"""What ``InfillAugment`` adds to a training step, where its time goes, and how near it is to the memory's speed.

    python recipes/bench_step.py --batch 16                                                      # a CPU
    python recipes/bench_step.py --models resnet50 resnet18 vit_s --batch 256 --device cuda --compile
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torchvision import models

from infill_aug import InfillAugment, Variation

NORMALIZE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def vit_s(size: int) -> torch.nn.Module:
    """ViT-S/16 (Touvron et al., 2021) from torchvision's parts."""
    return models.VisionTransformer(size, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)


def network(name: str, size: int) -> torch.nn.Module:
    """By name."""
    return vit_s(size) if name == "vit_s" else models.get_model(name)


def batch_of(count: int, size: int, device: str) -> dict[str, torch.Tensor]:
    """Pictures, infills and maps in 8 bits, and labels."""
    return {
        "image": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device),
        "infill": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device),
        "confidence": torch.randint(0, 240, (count, 1, size, size), dtype=torch.uint8, device=device),
        "target": torch.randint(0, 100, (count,), device=device),
    }


def timed(run: Callable, device: str) -> float:
    """Seconds, of the device too."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(arms: dict[str, Callable], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every arm, in turn, so that what else the machine does meets all of them; two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 2):
        for name, run in arms.items():
            took = timed(run, device)
            if turn >= 2:
                times[name].append(took)
    return times


def training_step(model: torch.nn.Module, augment: InfillAugment, batch: dict, device: str) -> Callable:
    """Augment, forward, backward, optimiser."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def run() -> None:
        image = augment(batch)["image"]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = torch.nn.functional.cross_entropy(model(image), batch["target"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def steps(options: argparse.Namespace, batch: dict) -> None:
    """The table of whole steps."""
    common = {"normalize": NORMALIZE, "dtype": torch.float16 if options.device == "cuda" else torch.float32}
    augments = {
        "normalise only": InfillAugment(0.7, **common).eval(),
        "composite": InfillAugment(0.7, **common),
        "composite and Variation": InfillAugment(0.7, variation=Variation(), **common).to(options.device),
    }
    if options.compile:
        for augment in augments.values():
            augment.compile(dynamic=False)
    print("| model | " + " | ".join(f"{name}, ms" for name in augments) + " |\n| --- | --- | --- | --- |")
    for name in options.models:
        model = network(name, options.size).to(options.device)
        arms = {each: training_step(model, augment, batch, options.device) for each, augment in augments.items()}
        times = in_turn(arms, options.rounds, options.device)
        plain = times["normalise only"]
        cells = []
        for values in times.values():
            more = statistics.median(a / b - 1 for a, b in zip(values, plain, strict=True))
            cells.append(f"{1000 * statistics.median(values):.1f} ({more:+.1%})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def profile(options: argparse.Namespace, batch: dict) -> None:
    """Where the batch step's time goes, and how near composite and normalisation are to a plain copy."""
    augment = InfillAugment(0.7, p=0.5, normalize=NORMALIZE, dtype=torch.float16, variation=Variation())
    augment = augment.to(options.device)
    hard = InfillAugment(0.7, feather=0, normalize=NORMALIZE, dtype=torch.float16)
    if options.compile:
        augment.compile(dynamic=False)
        hard.compile(dynamic=False)
    image, infill, confidence = batch["image"], batch["infill"], batch["confidence"]
    params = augment.make_params(len(image), image.device)
    mask = augment.make_mask(confidence, params.threshold, params.changed)
    source = torch.empty(2**28 if options.device == "cuda" else 2**26, dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    with torch.no_grad():
        arms = {
            "draw": lambda: augment.make_params(len(image), image.device),
            "mask": lambda: augment.make_mask(confidence, params.threshold, params.changed),
            "variation": lambda: augment.vary(infill, mask, params.rows),
            "composite and normalise": lambda: augment.mix(image, infill, mask),
            "the same, hard edge": lambda: hard.mix(image, infill, mask),
            "copy": lambda: target.copy_(source),
        }
        times = {name: statistics.median(each) for name, each in in_turn(arms, options.rounds, options.device).items()}
    speed = 2 * source.numel() / times.pop("copy")
    # Read: image and infill 3 bytes each, mask 1; written: 6 in half precision.
    least = 13 * mask.numel() / speed
    print("\n| part of the batch step | ms | times a copy of its bytes |\n| --- | --- | --- |")
    for name, took in times.items():
        ratio = f"{took / least:.1f}" if "edge" in name or "composite" in name else ""
        print(f"| {name} | {1000 * took:.2f} | {ratio} |")
    print(f"\ncopy: {speed / 1e9:.0f} GB/s read and written")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit_s"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="InfillAugment.compile()")
    options = parser.parse_args()
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{options.batch} pictures of {options.size} px, {where}, {platform.machine()}, torch {torch.__version__}\n")
    batch = batch_of(options.batch, options.size, options.device)
    steps(options, batch)
    profile(options, batch)


if __name__ == "__main__":
    main()
