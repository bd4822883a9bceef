"""Milliseconds a picture of each operation of ``Variation``, drawn and applied alone, at its middle strength.

python recipes/bench_operations.py
"""

import argparse
import platform
import statistics
import time

import torch

from infill_aug.variation.operation import GROUPS, find_operation, list_operations


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--batch", type=int, default=12, help="pictures that get the same operation")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"batch {options.batch}, {options.threads} threads, torch {torch.__version__}, {platform.machine()}\n")
    print("| group | operation | " + " | ".join(f"{size} px, ms" for size in options.sizes) + " |")
    print("| --- | --- |" + " --- |" * len(options.sizes))
    for group in GROUPS:
        for name in list_operations(group):
            cells, operation = [], find_operation(name)(strength=(0.6, 0.6))
            for size in options.sizes:
                batch, times = torch.rand(options.batch, 3, size, size), []
                for _ in range(options.rounds + 1):
                    started = time.perf_counter()
                    operation(batch)
                    times.append(time.perf_counter() - started)
                cells.append(f"{1000 * statistics.median(times[1:]) / options.batch:.2f}")
            print(f"| {group} | `{name}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
