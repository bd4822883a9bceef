"""Curves of threshold and performance, from the metrics.json of runs of recipes/train.py.

    python recipes/train.py -m experiment=feedback seed=0,1,2 hydra.sweep.dir=outputs/feedback
    python recipes/draw_feedback.py outputs/feedback/* --output outputs/feedback.png

Prints what a planted drop did: how deep the threshold fell, and when it was back.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def answer(history, drop):
    """Threshold before a drop, lowest after it, validations until it fell, and until it was back; None: never."""
    thresholds = [entry["threshold"] for entry in history]
    before, after = thresholds[drop - 1], thresholds[drop:]
    fell = next((i + 1 for i, value in enumerate(after) if value < before), None)
    low = min(range(len(after)), key=after.__getitem__)
    back = next((i + 1 for i, value in enumerate(after) if i > low and value >= before), None)
    return {"before": before, "lowest": after[low], "fell_after": fell, "back_after": back}


def draw(runs, drop, output):
    """One column for each data set, thresholds above performance."""
    names = list(dict.fromkeys(run["data"] for run in runs))
    figure, axes = plt.subplots(2, len(names), figsize=(5 * len(names), 5), sharex="col", squeeze=False)
    for run in runs:
        column = names.index(run["data"])
        history, colour = run["history"], f"C{run['seed']}"
        epochs = [entry["epoch"] for entry in history]
        axes[0][column].plot(epochs, [entry["threshold"] for entry in history], colour, label=f"seed {run['seed']}")
        axes[1][column].plot(epochs, [entry["metric"] for entry in history], colour)
        if "clean" in history[0]:
            axes[1][column].plot(epochs, [entry["clean"] for entry in history], colour, alpha=0.4, linestyle="--")
    for column, name in enumerate(names):
        axes[0][column].set(title=name, ylabel="threshold", ylim=(0, 1))
        axes[1][column].set(xlabel="epoch", ylabel="accuracy on the control split", ylim=(0, 1))
        for axis in axes[:, column]:
            if drop is not None:
                axis.axvline(drop, color="black", linewidth=0.8, linestyle=":")
        axes[0][column].legend(loc="lower right", fontsize=8)
    axes[1][0].plot([], [], "grey", label="masked")
    axes[1][0].plot([], [], "grey", linestyle="--", alpha=0.6, label="as they are")
    axes[1][0].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=90)


def main(args):
    """Read the runs, print, draw."""
    paths = [Path(run) / "metrics.json" for run in args.runs if (Path(run) / "metrics.json").is_file()]
    if not paths:
        raise SystemExit(f"no metrics.json in {args.runs}; pass folders of runs of recipes/train.py")
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    print("| data | seed | swapped | threshold before the drop | lowest | fell after | back after |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for run in runs:
        seen = answer(run["history"], args.drop)
        row = f"| {run['data']} | {run['seed']} | {run['swapped']:.1f} | {seen['before']:.3f} | {seen['lowest']:.3f}"
        print(f"{row} | {seen['fell_after']} | {seen['back_after']} |")
    draw(runs, args.drop, args.output)
    print(f"drawn: {args.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the closed loop.")
    parser.add_argument("runs", nargs="+", help="folders of runs, each with a metrics.json")
    parser.add_argument("--drop", type=int, default=20, help="epoch of the planted drop (%(default)s)")
    parser.add_argument("--output", default="outputs/feedback.png", help="the picture (%(default)s)")
    main(parser.parse_args())
