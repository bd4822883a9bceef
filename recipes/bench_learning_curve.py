"""Learning curve of the estimator: quality on held-out pictures against the number of masks it was trained from.

    python recipes/bench_learning_curve.py --images FOLDER --masks FOLDER

Prints a Markdown table; the one in docs/benchmarks.md comes from this command, on 600 pictures of ECSSD. The pictures
are split once; each training takes the first ones of the training part, so that a larger set holds a smaller one.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.utils.data import Subset

from infill_aug.confidence import EstimatorConfidence, MaskConfidence
from infill_aug.confidence.estimator import ConfidenceEstimator, weights_path
from infill_aug.confidence.evaluation import evaluate_confidence
from infill_aug.confidence.folders import MaskFolder
from infill_aug.confidence.training import read_training_set
from infill_aug.lit.estimator import fit_estimator

METRICS = ("iou", "ap", "max_f", "mae")
TRUTH = MaskConfidence("mask", falloff=0.0)


def main() -> None:
    """Train with every number of masks and seed, from scratch and from the bundled trunk; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--masks", required=True)
    parser.add_argument("--counts", nargs="+", type=int, default=[50, 100, 200, 400])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", default=["scratch", "base"], help="scratch, or names of weights")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--json", help="write every figure to this file")
    options = parser.parse_args()
    dataset = MaskFolder(options.images, options.masks)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    most = max(options.counts)
    test = Subset(dataset, order[most:])
    training = read_training_set(dataset, TRUTH, options.size, indices=order[:most])
    results = []
    for start in options.starts:
        for count in options.counts:
            for seed in options.seeds:
                begin = ConfidenceEstimator(("salient_object",), options.size)
                if start != "scratch":
                    begin = ConfidenceEstimator.load(weights_path(start)).with_heads(begin.heads)
                    begin.input_size = options.size
                # A tenth of the masks chooses the checkpoint and the temperature, and is not trained with.
                held = max(8, count // 10)
                started = time.perf_counter()
                parts = (training.take(slice(held, count)), training.take(slice(held)))
                estimator = fit_estimator(begin, *parts, steps=options.steps, seed=seed, progress=False)
                seconds = time.perf_counter() - started
                report = evaluate_confidence(EstimatorConfidence(estimator), test, TRUTH, progress=False)
                row = {"start": start, "masks": count, "seed": seed, "seconds": seconds, **report.scores}
                results.append(row)
                print(
                    " ".join(f"{key}={value:.3g}" if key != "start" else start for key, value in row.items()),
                    flush=True,
                )
    print(
        f"\n{len(test)} pictures to test, {options.steps} steps of 16 at {options.size} px, seeds {options.seeds}; "
        f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {datetime.date.today()}\n"
    )
    print("| start | masks | IoU | AP | max F | MAE | seconds |\n| --- | --- | --- | --- | --- | --- | --- |")
    print(f"| centre prior | 0 | {' | '.join(f'{report.centre[metric]:.3f}' for metric in METRICS)} | - |")
    for start in options.starts:
        for count in options.counts:
            own = [row for row in results if row["start"] == start and row["masks"] == count]
            cells = [
                f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"
                for values in ([row[metric] for row in own] for metric in METRICS)
            ]
            print(f"| {start} | {count} | {' | '.join(cells)} | {statistics.mean(row['seconds'] for row in own):.0f} |")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
