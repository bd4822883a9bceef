"""What ``InfillAugment`` adds to a training step; ``bench_step_parts.py`` says where its time goes.

python recipes/bench_step.py                                                  # a CPU
python recipes/bench_step.py --models resnet50 vit_s --batch 256 --device cuda --compile
"""

import argparse
import platform
import time
from collections.abc import Callable
from statistics import mean

import torch
from torchvision import models

from infill_aug import InfillAugment, Variation

NORMALIZE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def network(name: str, size: int) -> torch.nn.Module:
    """By name; ViT-S/16 (Touvron et al., 2021) from torchvision's parts."""
    if name == "vit_s":
        return models.VisionTransformer(size, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)
    return models.get_model(name)


def batch_of(count: int, size: int, device: str) -> dict[str, torch.Tensor]:
    """Pictures, infills and maps in 8 bits, and labels."""
    return {
        "image": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device),
        "infill": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device),
        "confidence": torch.randint(0, 240, (count, 1, size, size), dtype=torch.uint8, device=device),
        "target": torch.randint(0, 100, (count,), device=device),
    }


def in_turn(arms: dict[str, Callable], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every arm, in turn, so that what else the machine does meets all of them; two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 2):
        for name, run in arms.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                times[name].append(time.perf_counter() - started)
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
        "composite": InfillAugment(0.7, p=0.9, **common),
        "composite and Variation": InfillAugment(0.7, p=0.9, variation=Variation(), **common).to(options.device),
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
            # Means: one draw costs more than another.
            cells.append(f"{1000 * mean(values):.1f} ({mean(values) / mean(plain) - 1:+.1%})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the table."""
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


if __name__ == "__main__":
    main()
