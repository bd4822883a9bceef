"""Pictures of how good confidence maps are: masked share, reliability, and the best, middle and worst maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infill_aug.functional.masks import masked_share, threshold_mask
from infill_aug.functional.quality import calibration_bins, calibration_error_from_bins

# Thresholds of the masked-share curve, and the long side in pixels at which it is measured: a share needs no more.
_THRESHOLDS, _SHARE_SIDE = 41, 128


def save_share_curve(
    maps: Sequence[Tensor], path: str | Path, *, mode: str = "quantile", protect_above: float | None = 0.95
) -> None:
    """A PNG with the masked share against the threshold: mean over the pictures, and the band of 10..90 % of them.

    A curve that rises evenly is one that a feedback can act on; a step in it is a threshold at which all goes at once.

    Args:
        maps: ``(1, H, W)`` each, floating point 0..1 or ``uint8``; sizes may differ.
        path: file to write.
        mode: the profile's own, ``"quantile"`` or ``"absolute"``, drawn strong; the other is drawn dashed.
        protect_above: the profile's own, see ``threshold_mask``.

    Raises:
        ImportError: no matplotlib.
        ValueError: no maps, or an unknown mode.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "share.png"
        >>> save_share_curve([torch.rand(1, 8, 8), torch.rand(1, 6, 9)], path)
        >>> path.exists()
        True
    """
    _some("maps", maps)
    if mode not in ("quantile", "absolute"):
        raise ValueError(f"mode must be 'quantile' or 'absolute', got {mode!r}")
    pyplot = _pyplot()
    thresholds = torch.linspace(0, 1, _THRESHOLDS)
    figure, axis = pyplot.subplots(figsize=(5.6, 4))
    other = "absolute" if mode == "quantile" else "quantile"
    for name, color, line, strength in ((other, "C7", "--", 0.12), (mode, "C0", "-", 0.25)):
        shares = torch.stack([_shares(one, thresholds, name, protect_above) for one in maps])
        low, high = shares.quantile(torch.tensor([0.1, 0.9]), dim=0).tolist()
        label = f"{name} mode" + (" (the profile's)" if name == mode else "")
        axis.fill_between(thresholds.tolist(), low, high, color=color, alpha=strength, linewidth=0)
        axis.plot(thresholds.tolist(), shares.mean(dim=0).tolist(), color=color, linestyle=line, label=label)
    axis.set_xlabel("threshold")
    axis.set_ylabel("masked share of the picture")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    protection = "nothing protected" if protect_above is None else f"protected above {protect_above:g}"
    axis.set_title(f"mean and 10–90 % of {len(maps)} pictures, {protection}", fontsize=9)
    axis.legend(fontsize=8, loc="upper left")
    _save(figure, path)


def save_reliability(maps: Sequence[Tensor], truths: Sequence[Tensor], path: str | Path, bins: int = 15) -> None:
    """A PNG with the true share of pixels against their confidence, and how many pixels have which confidence.

    On the diagonal a confidence means what it says. Each picture counts the same, whatever its size.

    Args:
        maps: ``(1, H, W)`` each, floating point in 0..1; sizes may differ.
        truths: ``(1, H, W)`` bool, one for each map.
        path: file to write.
        bins: of equal width, 1 or more.

    Raises:
        ImportError: no matplotlib.
        ValueError: no maps, or truths that do not fit them.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "reliability.png"
        >>> save_reliability([torch.rand(1, 8, 8)], [torch.rand(1, 8, 8) > 0.5], path)
        >>> path.exists()
        True
    """
    _some("maps", maps, truths=truths)
    pyplot = _pyplot()
    each = [calibration_bins(one[None], true[None], bins)[0] for one, true in zip(maps, truths, strict=True)]
    mean = torch.stack(each).mean(dim=0)
    share, confidence, true = mean.tolist()
    filled = [i for i in range(bins) if share[i] > 0]
    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(4.6, 5.4), sharex=True, gridspec_kw={"height_ratios": [3, 1], "hspace": 0.08}
    )
    top.plot([0, 1], [0, 1], color="C7", linestyle="--", linewidth=1, label="calibrated")
    points = ([column[i] / share[i] for i in filled] for column in (confidence, true))
    top.plot(*points, color="C0", marker="o", markersize=4, label="measured")
    top.set_ylabel("share of pixels that matter")
    top.set_ylim(0, 1)
    top.legend(fontsize=8, loc="upper left")
    error = calibration_error_from_bins(mean).item()
    top.set_title(f"{len(maps)} pictures, expected calibration error {error:.3f}", fontsize=9)
    bottom.bar([(i + 0.5) / bins for i in range(bins)], share, width=0.9 / bins, color="C0")
    bottom.set_yscale("log")
    bottom.set_ylim(1e-4, 1)
    bottom.set_ylabel("share")
    bottom.set_xlabel("confidence")
    bottom.set_xlim(0, 1)
    for axis in (top, bottom):
        axis.grid(alpha=0.3)
    _save(figure, path)


def save_case_grid(
    images: Sequence[Tensor],
    maps: Sequence[Tensor],
    truths: Sequence[Tensor],
    scores: Sequence[float],
    path: str | Path,
    names: Sequence[str] = ("good", "typical", "bad"),
    *,
    rows: int = 2,
    threshold: float = 0.5,
    mode: str = "quantile",
    protect_above: float | None = 0.95,
) -> None:
    """A PNG with some of the best, the middle and the worst maps: image, truth, confidence, and what a mask leaves.

    Args:
        images: ``(3, H, W)`` ``uint8`` each; sizes may differ.
        maps: ``(1, H, W)`` each, floating point 0..1 or ``uint8``.
        truths: ``(1, H, W)`` bool each.
        scores: IoU of each map, by which they are sorted; pictures whose score is NaN are left out.
        path: file to write.
        names: what the best, the middle and the worst are called.
        rows: pictures of each kind; fewer where there are not enough, and none twice.
        threshold: of the mask in the last column, 0..1; masked pixels are grey.
        mode: as in ``threshold_mask``.
        protect_above: as in ``threshold_mask``.

    Raises:
        ImportError: no matplotlib.
        ValueError: no pictures, lists of different lengths, or not one score that is a number.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "cases.png"
        >>> truth = torch.eye(8)[None] > 0
        >>> save_case_grid([torch.zeros(3, 8, 8, dtype=torch.uint8)], [truth.float()], [truth], [1.0], path)
        >>> path.exists()
        True
    """
    _some("images", images, maps=maps, truths=truths, scores=scores)
    if len(names) != 3 or rows < 1:
        raise ValueError(f"names must be three and rows 1 or more, got {list(names)} and {rows}")
    cases = _cases([float(score) for score in scores], names, rows)
    if not cases:
        raise ValueError("every score is NaN: no picture has a truth to be sorted by; check the truths")
    pyplot = _pyplot()
    heights = [images[i].shape[-2] / images[i].shape[-1] for _, i in cases]
    width = 1.75
    figure, axes = pyplot.subplots(
        len(cases), 4, figsize=(4 * width + 0.3, width * sum(heights) + 0.3), squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for (name, i), line in zip(cases, axes, strict=True):
        image = images[i].permute(1, 2, 0).float() / 255
        confidence = maps[i][0].float() / (255 if maps[i].dtype == torch.uint8 else 1)
        mask = threshold_mask(maps[i][None], threshold, mode=mode, protect_above=protect_above)[0, 0]
        line[0].imshow(image.numpy())
        line[1].imshow(truths[i][0].float().numpy(), cmap="gray", vmin=0, vmax=1)
        line[2].imshow(image.mean(dim=2).numpy(), cmap="gray", vmin=0, vmax=1)
        line[2].imshow(confidence.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.65)
        line[3].imshow(image.masked_fill(mask[:, :, None], 0.6).numpy())
        label = f"{name}, IoU {float(scores[i]):.2f}"
        line[0].text(-0.04, 0.5, label, transform=line[0].transAxes, rotation=90, fontsize=7, va="center", ha="right")
        for axis in line:
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("image", "truth", "confidence", f"kept at threshold {threshold:g}"), strict=True):
        axis.set_title(title, fontsize=8, pad=3)
    figure.subplots_adjust(left=0.045, right=0.995, top=1 - 0.25 / figure.get_figheight(), bottom=0.005,
                           wspace=0.03, hspace=0.03)  # fmt: skip
    _save(figure, path, tight=False)


def _cases(scores: Sequence[float], names: Sequence[str], rows: int) -> list[tuple[str, int]]:
    """Name and index of the pictures to show, best first: no picture twice, each group as full as it can be."""
    order = sorted((i for i, score in enumerate(scores) if not math.isnan(score)), key=lambda i: -scores[i])
    rows = min(rows, max(1, len(order) // 3))
    middle = (len(order) - rows) // 2
    picked = dict.fromkeys(order[:rows], names[0])
    for part, name in ((order[len(order) - rows :], names[2]), (order[middle : middle + rows], names[1])):
        for i in part:
            picked.setdefault(i, name)
    return [(picked[i], i) for i in order if i in picked]


def _shares(one: Tensor, thresholds: Tensor, mode: str, protect_above: float | None) -> Tensor:
    """``(T,)`` masked share of one map at each threshold."""
    skip = math.ceil(max(one.shape[-2:]) / _SHARE_SIDE)
    many = one[None, :, ::skip, ::skip].expand(len(thresholds), -1, -1, -1)
    return masked_share(threshold_mask(many, thresholds, mode=mode, protect_above=protect_above))


def _some(name: str, items: Sequence[Any], **others: Sequence[Any]) -> None:
    if not len(items):
        raise ValueError(f"there are no {name} to draw; give one or more")
    for other, values in others.items():
        if len(values) != len(items):
            raise ValueError(f"there are {len(items)} {name} and {len(values)} {other}; give one for each")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures of a report need matplotlib: pip install 'infill-aug[demo]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: str | Path, *, tight: bool = True) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110, bbox_inches="tight" if tight else None)
    pyplot.close(figure)
