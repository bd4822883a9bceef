"""Where the time of ``InfillAugment`` goes, and how near composite and normalisation are to the speed of the memory.

python recipes/bench_step_parts.py                                            # a CPU
python recipes/bench_step_parts.py --batch 256 --device cuda --compile
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from infill_aug import InfillAugment, Variation
from infill_aug.functional.parts import parts_of

NORMALIZE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def batch_of(count: int, size: int, device: str) -> dict[str, torch.Tensor]:
    """Pictures, infills and maps in 8 bits."""
    return {
        "image": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device),
        "infill": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device),
        "confidence": torch.randint(0, 240, (count, 1, size, size), dtype=torch.uint8, device=device),
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


def main() -> None:
    """Time the parts in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="InfillAugment.compile()")
    options = parser.parse_args()
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{options.batch} pictures of {options.size} px, {where}, {platform.machine()}, torch {torch.__version__}")
    batch = batch_of(options.batch, options.size, options.device)
    augment = InfillAugment(0.7, p=0.9, normalize=NORMALIZE, dtype=torch.float16, variation=Variation())
    augment = augment.to(options.device)
    hard = InfillAugment(0.7, feather=0, normalize=NORMALIZE, dtype=torch.float16)
    if options.compile:
        augment.compile(dynamic=False)
        hard.compile(dynamic=False)
    image, infill, confidence = batch["image"], batch["infill"], batch["confidence"]
    params = augment.make_params(len(image), image.device)
    mask = augment.make_mask(confidence, params.threshold, params.changed)
    parts = parts_of(image)
    source = torch.empty(2**28 if options.device == "cuda" else 2**26, dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    with torch.no_grad():
        arms = {
            "draw": lambda: augment.make_params(len(image), image.device),
            "mask": lambda: augment.make_mask(confidence, params.threshold, params.changed),
            "variation": lambda: augment.vary(infill, mask, params.rows),
            "composite and normalise": lambda: [augment.mix(image[p], infill[p], mask[p]) for p in parts],
            "the same, hard edge": lambda: [hard.mix(image[p], infill[p], mask[p]) for p in parts],
            "copy": lambda: target.copy_(source),
        }
        times = {name: statistics.mean(each) for name, each in in_turn(arms, options.rounds, options.device).items()}
    speed = 2 * source.numel() / times.pop("copy")
    # Read: image and infill 3 bytes each, mask 1; written: 6 in half precision.
    least = 13 * mask.numel() / speed
    print("\n| part of the batch step | ms | times a copy of its bytes |\n| --- | --- | --- |")
    for name, took in times.items():
        ratio = f"{took / least:.1f}" if "edge" in name or "composite" in name else ""
        print(f"| {name} | {1000 * took:.2f} | {ratio} |")
    print(f"\ncopy: {speed / 1e9:.0f} GB/s read and written")


if __name__ == "__main__":
    main()
