"""What the demo shows: one table, one picture grid, one curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from infill_aug.batch import InfillAugment
from infill_aug.datasets import InfillDataset
from infill_aug.demo.arms import ArmResult
from infill_aug.types import CONFIDENCE, IMAGE, INFILL, MASK


def table(results: Sequence[ArmResult]) -> str:
    """Accuracies of each arm as a Markdown table, mean and deviation over the seeds.

    Args:
        results: one or more for each arm, in the order of printing.

    Example:
        >>> print(table([ArmResult("plain", 0, 95.0, 5.0, None, 9.0, [])]))
        | arm | tied backgrounds | swapped backgrounds | threshold reached | seconds |
        | --- | --- | --- | --- | --- |
        | plain | 95.0 | 5.0 | - | 9 |
    """
    rows = [
        "| arm | tied backgrounds | swapped backgrounds | threshold reached | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm in dict.fromkeys(result.arm for result in results):
        own = [result for result in results if result.arm == arm]
        thresholds = [result.threshold for result in own if result.threshold is not None]
        cells = [
            arm,
            _spread([result.tied for result in own]),
            _spread([result.swapped for result in own]),
            f"{mean(thresholds):.2f}" if thresholds else "-",
            f"{mean(result.seconds for result in own):.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):.1f}"


def save_grid(dataset: InfillDataset, thresholds: Sequence[float], path: Path, columns: int = 10) -> None:
    """A PNG with rows of image, confidence and, for each threshold, mask, infill and composite.

    Args:
        dataset: without random transforms.
        thresholds: 0..1.
        path: file to write.
        columns: pictures in a row.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    indices = [round(i * (len(dataset) - 1) / max(1, columns - 1)) for i in range(columns)]
    rows: list[tuple[str, Tensor]] = []
    for threshold in sorted(thresholds, reverse=True):
        dataset.reader.threshold = threshold
        batch = torch.utils.data.default_collate([dataset[i] for i in indices])
        done = InfillAugment(threshold, p=1.0, feather=0)(batch)
        if not rows:
            rows += [("image", batch[IMAGE]), ("confidence", batch[CONFIDENCE])]
        rows += [
            (f"mask, threshold {threshold:.2f}", done[MASK]),
            ("infill", batch[INFILL]),
            ("composite", done[IMAGE]),
        ]
    figure, axes = pyplot.subplots(len(rows), columns, figsize=(columns * 1.1, len(rows) * 1.16), squeeze=False)
    for (name, pictures), line in zip(rows, axes, strict=True):
        for picture, axis in zip(pictures, line, strict=True):
            unit = picture.permute(1, 2, 0).float() / (255 if picture.dtype == torch.uint8 else 1)
            axis.imshow(unit.numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        line[0].set_title(name, fontsize=8, loc="left", pad=2)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.98, bottom=0.005, wspace=0.03, hspace=0.16)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def save_curve(results: Sequence[ArmResult], path: Path) -> None:
    """A PNG with threshold and validation accuracy of every epoch, one line a seed.

    Args:
        results: those with a threshold in their history are drawn with it.
        path: file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(7, 5.5), sharex=True)
    arms = list(dict.fromkeys(result.arm for result in results))
    for result in results:
        color = f"C{arms.index(result.arm)}"
        epochs = [record["epoch"] + 1 for record in result.history]
        label = result.arm if result.seed == min(r.seed for r in results) else None
        top.plot(epochs, [100 * record["val_acc"] for record in result.history], color=color, label=label, linewidth=1)
        if result.threshold is not None:
            bottom.plot(epochs, [record["threshold"] for record in result.history], color=color, linewidth=1)
    top.set_ylabel("validation accuracy, %")
    top.legend(fontsize=8)
    bottom.set_ylabel("threshold (share masked)")
    bottom.set_xlabel("epoch")
    bottom.set_ylim(0, 1)
    for axis in (top, bottom):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
