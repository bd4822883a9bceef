"""Is a confidence source good enough to train with? Its maps against masks, a classifier and two yardsticks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from tqdm.auto import tqdm

from infill_aug.confidence.leak import LEAK_SAMPLES, LEAK_SIDE, LeakReport, leak_probe
from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.quality_report import QualityReport
from infill_aug.confidence.sources import ConfidenceSource
from infill_aug.functional.faithfulness import (
    Classifier,
    check_classifier,
    deletion_auc,
    insertion_auc,
    kept_accuracy,
)
from infill_aug.functional.grading import centre_prior
from infill_aug.functional.quality import (
    average_precision,
    calibration_bins,
    calibration_error_from_bins,
    iou,
    iou_at_area,
    max_f_from_curve,
    mean_absolute_error,
    pointing_game,
    precision_recall_curve,
)
from infill_aug.samples import label_of, split_sample, spread
from infill_aug.types import check_confidence

# Long side in pixels above which pictures are shrunk: metrics sort every pixel, and gain nothing from more of them.
_SIDE = 256
# Pictures read at once where the source does not say how many it takes.
_READ = 16
# Side of the noise that a random map is made of. Lone pixels, thinly spread, would be no yardstick: they take the
# picture apart as no map does. RISE's random masks are coarse in the same way.
_NOISE = 8
_KEPT = (0.1, 0.25, 0.5)

# The order of the table.
_SCORES = (
    *("iou", "iou_at_area", "ap", "max_f", "mae", "pointing", "calibration", "deletion", "insertion"),
    *(f"kept_{round(100 * share)}" for share in (*_KEPT, 1)),
)
# Scores that say something about the level of a map, which a random map, an order of pixels, does not have.
_LEVEL = ("iou", "mae", "calibration")


def evaluate_confidence(
    source: ConfidenceSource,
    dataset: Any,
    truth: ConfidenceSource | None = None,
    *,
    classifier: Classifier | None = None,
    normalize: Callable[[Tensor], Tensor] | None = None,
    labels: bool = True,
    image_key: str | int | None = None,
    limit: int | None = None,
    seed: int = 0,
    substrate: str = "blur",
    progress: bool = True,
) -> QualityReport:
    """Measure a confidence source on pictures that it was not trained on.

    Maps are measured as the source gives them. A graded ring around the object (``falloff``) lowers ``iou`` and
    ``calibration`` and leaves the order of pixels, and with it ``ap``, nearly as it is; for the network's own figures
    evaluate a source with ``falloff=0``. Pictures may differ in size: each is measured at its own, or with its long
    side brought down to 256 pixels.

    Args:
        source: what is measured.
        dataset: map-style, with samples as ``build_cache`` takes them.
        truth: what is true, as a source whose map is above 0.5 there, such as ``MaskConfidence(key=..., falloff=0)``.
        classifier: ``(B, 3, H, W) -> (B, K)`` logits, for what is measured without masks; a module in evaluation mode,
            which runs where its parameters are. It gets pictures of one size at a time, and that of the dataset.
        normalize: from ``(B, 3, H, W)`` float32 in 0..1 to what the classifier takes: normalisation, and a resize where
            it takes one size only.
        labels: samples carry their class: for the leak probe and, where they are integers, which are the classifier's
            classes, for its accuracy. Otherwise the classifier's own class for the whole picture counts as right.
        image_key: key or position of the image in a sample.
        limit: at most so many samples, evenly spaced over the dataset; ``None`` takes all.
        seed: of the random map, of ties, and of the leak probe; the same seed gives the same report.
        substrate: what the classifier sees in place of what is taken out, ``"blur"`` or ``"mean"``.
        progress: show a progress bar.

    Returns:
        A ``QualityReport``; print it, and ask it whether the source ``passes``.

    Raises:
        ValueError: neither ``truth`` nor ``classifier``; an empty dataset; a sample that cannot be read or scored,
            which is named; a classifier in training mode.

    Example:
        >>> import torch
        >>> from infill_aug.confidence import CentreConfidence, MaskConfidence
        >>> mask = torch.zeros(20, 20, dtype=torch.int64)
        >>> mask[:6, :6] = 1
        >>> masks = MaskConfidence(falloff=0)
        >>> dataset = [(torch.zeros(3, 20, 20), mask)]
        >>> evaluate_confidence(masks, dataset, masks, progress=False).passes
        True
        >>> evaluate_confidence(CentreConfidence(), dataset, masks, progress=False).passes
        False
    """
    if truth is None and classifier is None:
        raise ValueError(
            "there is nothing to measure against; give truth=MaskConfidence(key=..., falloff=0) where the dataset has "
            "masks, or a classifier"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, got {limit}; None takes every sample")
    if not len(dataset):
        raise ValueError("there is no picture to measure on: the dataset is empty; check its root and split")
    faithful = _Faithfulness(classifier, normalize, substrate, seed) if classifier is not None else None
    columns = {"scores": _Column(), "centre": _Column(), "random": _Column()}
    noise = torch.Generator().manual_seed(seed)
    small: list[Tensor] = []
    classes: list[Hashable | None] = []
    order = spread(len(dataset), len(dataset) if limit is None else limit)
    bar = tqdm(
        _scored(source, dataset, truth, order, image_key), total=len(order), disable=not progress, unit="picture"
    )
    for index, image, label, own, true in bar:
        small.append(_shrunk(own, [LEAK_SIDE, LEAK_SIDE]))
        classes.append(label if labels else None)
        maps = {
            "scores": own,
            "centre": centre_prior(own.shape[-2], own.shape[-1]),
            "random": _random_map(own.shape[-2], own.shape[-1], noise),
        }
        if true is not None and true.any() and not true.all():
            for name, one in maps.items():
                columns[name].compare(one, true)
        if faithful is not None:
            try:
                for name, found in faithful(image, label if labels else None, maps).items():
                    columns[name].add(found)
            except Exception as error:
                raise ValueError(f"the classifier cannot be asked about sample {index}: {error}") from error
    scores, centre, random = (column.means() for column in columns.values())
    random = {name: value for name, value in random.items() if name not in _LEVEL}
    leak = _leak(torch.cat(small), classes, seed)
    if leak is not None:
        scores["leak"], random["leak"] = leak.accuracy, leak.chance
    return QualityReport(len(order), columns["scores"].truths, scores, centre, random, leak)


class _Column:
    """Scores of one kind of map, picture after picture."""

    def __init__(self) -> None:
        self.truths = 0
        self._each: dict[str, list[float]] = defaultdict(list)
        self._curves: list[tuple[Tensor, Tensor]] = []
        self._bins: list[Tensor] = []

    def compare(self, confidence: Tensor, true: Tensor) -> None:
        self.truths += 1
        self._each["iou"].append(iou(confidence, true).item())
        self._each["iou_at_area"].append(iou_at_area(confidence, true).item())
        self._each["ap"].append(average_precision(confidence, true).item())
        self._each["mae"].append(mean_absolute_error(confidence, true).item())
        self._each["pointing"].append(pointing_game(confidence, true).item())
        # These belong to the set: they are no mean of the pictures' own.
        self._curves.append(precision_recall_curve(confidence, true))
        self._bins.append(calibration_bins(confidence, true))

    def add(self, found: dict[str, float]) -> None:
        for name, value in found.items():
            self._each[name].append(value)

    def means(self) -> dict[str, float]:
        found = {name: sum(values) / len(values) for name, values in self._each.items()}
        if self.truths:
            precision, recall = (torch.cat(part) for part in zip(*self._curves, strict=True))
            found["max_f"] = max_f_from_curve(precision, recall)
            found["calibration"] = calibration_error_from_bins(torch.cat(self._bins).mean(dim=0)).item()
        return {name: found[name] for name in sorted(found, key=_SCORES.index)}


class _Faithfulness:
    """What a classifier says about the maps of one picture."""

    def __init__(
        self, classifier: Classifier, normalize: Callable[[Tensor], Tensor] | None, substrate: str, seed: int
    ) -> None:
        check_classifier(classifier)
        parameter = next(classifier.parameters(), None) if isinstance(classifier, nn.Module) else None
        self.device = parameter.device if parameter is not None else torch.device("cpu")
        self.classifier, self.normalize, self.substrate = classifier, normalize, substrate
        self.ties = torch.Generator().manual_seed(seed)

    @torch.inference_mode()
    def __call__(self, image: Tensor, label: Hashable | None, maps: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        image = image.to(self.device)
        # Pixels are taken out of the picture, not of what normalize makes of it, which may have another size.
        classify = self._classify
        logits = classify(image)
        right = logits.argmax(dim=1)
        if isinstance(label, int):
            if not 0 <= label < logits.shape[1]:
                raise ValueError(
                    f"its label {label} is none of the classifier's {logits.shape[1]} classes; pass labels=False if "
                    "the dataset's classes are others"
                )
            right = torch.tensor([int(label)], device=self.device)
        shared: dict[str, Any] = {"substrate": self.substrate, "generator": self.ties}
        found = {}
        for name, one in maps.items():
            confidence = one.to(self.device)
            found[name] = {
                "deletion": deletion_auc(classify, image, confidence, **shared).item(),
                "insertion": insertion_auc(classify, image, confidence, **shared).item(),
                **{
                    f"kept_{round(100 * share)}": kept_accuracy(
                        classify, image, right, confidence, share, **shared
                    ).item()
                    for share in _KEPT
                },
                "kept_100": float(logits.argmax(dim=1) == right),
            }
        return found

    def _classify(self, images: Tensor) -> Tensor:
        return self.classifier(images if self.normalize is None else self.normalize(images))


def _scored(
    source: ConfidenceSource, dataset: Any, truth: ConfidenceSource | None, order: Sequence[int],
    image_key: str | int | None,
) -> Iterator[tuple[int, Tensor, Hashable | None, Tensor, Tensor | None]]:  # fmt: skip
    """Index, ``(1, 3, H, W)`` image in 0..1, label, ``(1, 1, H, W)`` map and bool truth of each sample."""
    size = source.batch_size if isinstance(source, NetworkConfidence) else _READ
    for start in range(0, len(order), size):
        indices, samples = order[start : start + size], []
        for index in indices:
            try:
                samples.append(split_sample(dataset[index], image_key))
            except Exception as error:
                raise ValueError(f"cannot read sample {index}: {type(error).__name__}: {error}") from error
        maps = _maps("score", source, indices, samples)
        trues = [None] * len(samples) if truth is None else _maps("read the truth of", truth, indices, samples)
        for index, (image, target), own, level in zip(indices, samples, maps, trues, strict=True):
            picture, true = image[None].float() / 255, None if level is None else level > 0.5
            scale = _SIDE / max(image.shape[-2:])
            if scale < 1:
                shape = [max(1, round(edge * scale)) for edge in image.shape[-2:]]
                picture, own = _shrunk(picture, shape), _shrunk(own, shape)
                # Nearest, so that no border is made up.
                true = None if true is None else nnf.interpolate(true.float(), shape, mode="nearest-exact") > 0.5
            yield index, picture, label_of(target), own, true


def _maps(
    what: str, source: ConfidenceSource, indices: Sequence[int], samples: Sequence[tuple[Tensor, Any]]
) -> list[Tensor]:
    """``(1, 1, H, W)`` float32 map of each sample; ``what`` is for the message of an error."""
    found: list[Tensor] = []
    if isinstance(source, NetworkConfidence):
        try:
            found = source.maps(*zip(*samples, strict=True))
        except Exception as error:
            where = f"{indices[0]}..{indices[-1]}"
            raise ValueError(f"cannot {what} one of samples {where}: {type(error).__name__}: {error}") from error
    checked = []
    for i, (image, target) in enumerate(samples):
        try:
            checked.append(_checked(found[i] if found else source(image, target), image))
        except Exception as error:
            raise ValueError(f"cannot {what} sample {indices[i]}: {type(error).__name__}: {error}") from error
    return checked


def _shrunk(picture: Tensor, shape: list[int]) -> Tensor:
    return nnf.interpolate(picture, shape, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _checked(found: Tensor, image: Tensor) -> Tensor:
    """A source's ``(1, 1, H, W)`` float32 map, checked."""
    check_confidence(found)
    if found.shape != (1, *image.shape[-2:]):
        raise ValueError(f"its map has shape {tuple(found.shape)}, its image needs {(1, *image.shape[-2:])}")
    # A plain tensor of its own: a network's map comes from inference mode, and a ConfidenceMap has rules of its own.
    plain = found.detach().as_subclass(Tensor).cpu().clone()
    return (plain.float() / 255 if plain.dtype == torch.uint8 else plain.float())[None]


def _random_map(height: int, width: int, generator: torch.Generator) -> Tensor:
    """``(1, 1, H, W)`` smooth noise in 0..1."""
    coarse = torch.rand(1, 1, _NOISE, _NOISE, generator=generator)
    return nnf.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)


def _leak(maps: Tensor, classes: Sequence[Hashable | None], seed: int) -> LeakReport | None:
    """The leak probe on the classes that have samples enough; ``None`` with fewer than two of them."""
    counts = Counter(name for name in classes if name is not None)
    common = {name for name, count in counts.items() if count >= LEAK_SAMPLES}
    rows = [i for i, name in enumerate(classes) if name in common]
    return leak_probe(maps[rows], [classes[i] for i in rows], seed=seed) if len(common) > 1 else None
