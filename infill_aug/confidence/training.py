"""What the estimator learns from: pictures and maps of one size in memory, augmented in batches; and its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F
from tqdm.auto import tqdm

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.sources import ConfidenceSource
from infill_aug.samples import split_sample

# Bounds of a calibration: beyond them a map is flat, or was already.
_LOG_MOST, _MOST_OFFSET = math.log(20), 10.0

# Pictures are read, shrunk and scored in groups of this many.
_READ = 64


@dataclass(frozen=True)
class TrainingSet(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Pictures with what of them matters, for one or more heads.

    Args:
        images: ``(N, 3, S, S)`` ``uint8``.
        targets: ``(N, P, S, S)`` ``uint8``, 255 = matters; one channel for each head.
        known: ``(N, P)`` bool: which heads a picture teaches; the others' targets mean nothing.
    """

    images: Tensor
    targets: Tensor
    known: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.images[index], self.targets[index], self.known[index]

    def take(self, indices: Sequence[int] | Tensor | slice) -> TrainingSet:
        """Some of the pictures."""
        return TrainingSet(self.images[indices], self.targets[indices], self.known[indices])

    def widen(self, heads: int, head: int) -> TrainingSet:
        """The same pictures for an estimator with more heads: this set's one head becomes ``head`` of ``heads``.

        Example:
            >>> import torch
            >>> one = TrainingSet(*(torch.zeros(2, c, 4, 4, dtype=torch.uint8) for c in (3, 1)), torch.ones(2, 1) > 0)
            >>> one.widen(3, 1).known.int().tolist()
            [[0, 1, 0], [0, 1, 0]]
        """
        targets = self.targets.new_zeros(len(self), heads, *self.targets.shape[2:])
        known = self.known.new_zeros(len(self), heads)
        targets[:, head], known[:, head] = self.targets[:, 0], self.known[:, 0]
        return TrainingSet(self.images, targets, known)

    @staticmethod
    def join(parts: Sequence[TrainingSet]) -> TrainingSet:
        """All the pictures of several sets of equally many heads."""
        fields = ("images", "targets", "known")
        return TrainingSet(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))


def read_training_set(
    dataset: Any,
    source: ConfidenceSource,
    size: int,
    *,
    indices: Sequence[int] | None = None,
    image_key: str | int | None = None,
    progress: bool = True,
) -> TrainingSet:
    """Every picture and its map, shrunk to the square that the estimator looks at.

    Args:
        dataset: map-style, with samples as ``build_cache`` takes them.
        source: confidence source: labels, a teacher, or a classifier's maps.
        size: side of the square in pixels.
        indices: which samples; by default all.
        image_key: key or position of the image in a sample.
        progress: show a progress bar.

    Returns:
        A ``TrainingSet`` with one head; a picture whose map is full everywhere, as where nothing is labelled, teaches
        nothing.

    Raises:
        ValueError: an empty dataset, or a sample that cannot be read, which is named.

    Example:
        >>> from infill_aug.confidence import CentreConfidence
        >>> read_training_set([torch.zeros(3, 8, 8)], CentreConfidence(), 32, progress=False).images.shape
        torch.Size([1, 3, 32, 32])
    """
    order = range(len(dataset)) if indices is None else indices
    network = source if isinstance(source, NetworkConfidence) else None
    if not len(order):
        raise ValueError("there is no picture to learn from: the dataset is empty; check its root and split")
    images, targets = [], []
    with tqdm(total=len(order), unit="picture", desc="reading", disable=not progress) as bar:
        for start in range(0, len(order), _READ):
            chunk: list[tuple[Tensor, Any]] = []
            maps: list[Tensor] = []
            for index in order[start : start + _READ]:
                try:
                    chunk.append(split_sample(dataset[index], image_key))
                    if network is None:
                        maps.append(source(*chunk[-1]))
                except Exception as error:
                    raise ValueError(f"cannot read sample {index}: {type(error).__name__}: {error}") from error
            if network is not None:
                maps = network.maps(*zip(*chunk, strict=True))
            for (image, _), confidence in zip(chunk, maps, strict=True):
                images.append(F.resize(image, [size, size], antialias=True))
                targets.append(F.resize((confidence * 255).round().to(torch.uint8), [size, size], antialias=True))
            bar.update(len(chunk))
    read = torch.stack(targets)
    # Sources give full confidence where nothing is labelled, so that nothing is lost: that is no lesson.
    known = ~(read == 255).flatten(1).all(dim=1, keepdim=True)
    if not known.any():
        raise ValueError(
            f"none of the {len(read)} maps says anything: full confidence everywhere. Check the key and the values of "
            "the labels"
        )
    return TrainingSet(torch.stack(images), read, known)


def draw_pair_changes(count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Random geometry and colour for each of ``count`` pictures: flip, zoom, stretch, shift, rotation, light.

    Args:
        count: pictures.
        generator: source of the draws; by default torch's own.

    Returns:
        ``affine`` ``(B, 2, 3)``, as ``torch.nn.functional.affine_grid`` takes it, and ``gain`` ``(B, 3, 1, 1)``,
        ``contrast`` and ``saturation`` ``(B, 1, 1, 1)``.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zoom, stretch = uniform(0.6, 1.15), uniform(-0.125, 0.125).exp()
    wide, high = zoom * stretch, zoom / stretch
    right, down = (uniform(-1, 1) * (1 - side).clamp(min=0) for side in (wide, high))
    angle = uniform(-0.26, 0.26)
    across = (wide * angle.cos() * flip, -wide * angle.sin(), right)
    along = (high * angle.sin() * flip, high * angle.cos(), down)
    gray = uniform(0, 1, 1, 1, 1) < 0.1
    return {
        "affine": torch.stack([torch.stack(row, dim=1) for row in (across, along)], dim=1),
        "gain": uniform(0.7, 1.3, 1, 1, 1) * uniform(0.88, 1.12, 3, 1, 1),
        "contrast": uniform(0.7, 1.3, 1, 1, 1),
        "saturation": uniform(0.55, 1.45, 1, 1, 1).masked_fill(gray, 0.0),
    }


def change_pairs(images: Tensor, targets: Tensor, changes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pictures with drawn geometry and colour, and their maps with the same geometry.

    Written out, and not put together from kornia's operations: one warp in place of three is faster, and contrast is
    changed around each picture's own mean.

    Args:
        images: ``(B, 3, S, S)`` floating point in 0..1.
        targets: ``(B, P, S, S)`` floating point in 0..1.
        changes: from ``draw_pair_changes``.

    Returns:
        Both changed, same shapes and ranges.

    Example:
        >>> import torch
        >>> images, targets = change_pairs(torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8), draw_pair_changes(2))
        >>> images.shape, targets.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2, 1, 8, 8]))
    """
    changes = {name: value.to(images.device) for name, value in changes.items()}
    grid = nnf.affine_grid(changes["affine"], list(images.shape), align_corners=False)
    both = nnf.grid_sample(torch.cat([images, targets], dim=1), grid, padding_mode="reflection", align_corners=False)
    images, targets = both[:, :3] * changes["gain"], both[:, 3:]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * changes["contrast"] + mean
    gray = images.mean(dim=1, keepdim=True)
    return ((images - gray) * changes["saturation"] + gray).clamp(0, 1), targets.clamp(0, 1)


def confidence_loss(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Binary cross entropy and soft Jaccard loss of the heads that each picture teaches.

    Cross entropy makes the values probabilities, the Jaccard term (Rahman and Wang, 2016) makes small objects count.

    Args:
        logits: ``(B, P, h, w)``.
        targets: ``(B, P, S, S)`` floating point in 0..1, ``S`` a multiple of ``h``.
        known: ``(B, P)`` bool.

    Returns:
        Scalar; 0 where nothing is known.

    Example:
        >>> import torch
        >>> truth = torch.ones(1, 1, 8, 8)
        >>> good, bad = (confidence_loss(x * torch.ones(1, 1, 2, 2), truth, torch.tensor([[True]])) for x in (9, -9))
        >>> bool(good < bad)
        True
    """
    logits = logits.float()
    targets = nnf.adaptive_avg_pool2d(targets.float(), (logits.shape[-2], logits.shape[-1]))
    entropy = nnf.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=(2, 3))
    found = logits.sigmoid()
    both = (found * targets).sum(dim=(2, 3))
    jaccard = 1 - (both + 1) / (found.sum(dim=(2, 3)) + targets.sum(dim=(2, 3)) - both + 1)
    weight = known.float()
    return ((entropy + jaccard) * weight).sum() / weight.sum().clamp(min=1)


def fit_calibration(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """The temperature and the offset that make held-out confidence fit what matters (Platt, 1999).

    ``sigmoid(logits / temperature + offset)`` is fitted by minimising the cross entropy. A temperature alone
    (Guo et al., 2017) cannot mend a checkpoint that orders pixels well and puts them all on one side of a half.

    Args:
        logits: any shape, of pictures that were not trained on.
        targets: same shape, 0..1.

    Returns:
        Divisor of the logits, 0.05..20: above 1 where they were too sure of themselves; and what is added after it.

    Example:
        >>> logits = torch.tensor([-4.0, 0.0, 4.0]).repeat(1000)
        >>> truth = (torch.rand(3000, generator=torch.Generator().manual_seed(0)) < (logits / 2 + 1).sigmoid()).float()
        >>> [round(value) for value in fit_calibration(logits, truth)]
        [2, 1]
    """
    # In double precision, and enabled also in inference mode, where maps are made.
    with torch.inference_mode(False), torch.enable_grad():
        flat, wanted = (part.detach().double().flatten().clone() for part in (logits, targets))
        unknown = torch.zeros(2, dtype=torch.float64, requires_grad=True)

        def parameters() -> tuple[Tensor, Tensor]:
            return unknown[0].clamp(-_LOG_MOST, _LOG_MOST).exp(), unknown[1].clamp(-_MOST_OFFSET, _MOST_OFFSET)

        def cost() -> Tensor:
            optimizer.zero_grad()
            temperature, offset = parameters()
            loss = nnf.binary_cross_entropy_with_logits(flat / temperature + offset, wanted)
            loss.backward()
            return loss

        optimizer = torch.optim.LBFGS([unknown], max_iter=100, line_search_fn="strong_wolfe")
        optimizer.step(cost)
        temperature, offset = parameters()
    return temperature.item(), offset.item()
