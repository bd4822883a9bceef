"""Confidence from labelled boxes or points, each made a mask by a promptable segmenter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert

from infill_aug.checkpoint import Checkpoint
from infill_aug.confidence.sources import Key, _annotations
from infill_aug.confidence.teachers._shared import Teacher, frame, prepare
from infill_aug.samples import pick

_MODELS = ("SamModel", "Sam2Model")


class PromptedConfidence(Teacher):
    """Confidence from a segmenter that the target's boxes or points prompt: SAM and SAM 2.

    Each box or point is one object with a mask of its own, the best of the masks that the model offers; a pixel counts
    as its best object. A picture without boxes or points gets full confidence everywhere, as with ``BoxConfidence``:
    with nothing known of its object, nothing of it may be regenerated.

    Args:
        checkpoint: a SAM or SAM 2 checkpoint: id on the hub, or a folder.
        key: where the boxes ``(N, 4)`` or points ``(N, 2)`` are in the target; ``None``: a ``BoundingBoxes`` or what is
            under the key ``boxes``, else what is under ``points``, else the target itself.
        format: of the boxes: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``, absolute pixels; a ``BoundingBoxes`` brings its
            own. Points are ``(x, y)`` in pixels.
        revision: commit, tag or branch on the hub; pin a commit where stores shall outlive updates.
        grading: arguments of ``NetworkConfidence``; ``batch_size`` is also the number of prompts at once.

    Raises:
        ImportError: transformers is not installed; raised when the first picture is scored.
        ValueError: an unknown ``format``; when the first picture is scored, a checkpoint of another kind of model.

    Example:
        >>> source = PromptedConfidence("facebook/sam-vit-base")
        >>> source.prompt({"boxes": torch.tensor([[1, 2, 7, 9]])})
        {'boxes': [[1.0, 2.0, 7.0, 9.0]]}
        >>> image = torch.zeros(3, 20, 30, dtype=torch.uint8)
        >>> source(image, {"points": [[15, 10]]}).shape  # doctest: +SKIP
        torch.Size([1, 20, 30])
    """

    reads_target = True

    def __init__(
        self,
        checkpoint: str = "facebook/sam-vit-base",
        *,
        key: Key = None,
        format: str = "xyxy",  # noqa: A002
        revision: str | None = None,
        **grading: Any,
    ) -> None:
        super().__init__(**grading)
        if format not in ("xyxy", "xywh", "cxcywh"):
            raise ValueError(f"format must be xyxy, xywh or cxcywh, got {format!r}")
        self.checkpoint, self.key, self.format = Checkpoint(checkpoint, revision), key, format

    def prompt(self, target: Any) -> dict[str, list[list[float]]]:
        """Boxes as left, top, right, bottom, or points as x, y, in pixels of the picture.

        Returns:
            ``{"boxes": [...]}``, ``{"points": [...]}``, or ``{}`` where there are none.

        Raises:
            KeyError: the target has no place for boxes or points.
            ValueError: something that is neither ``(N, 4)`` nor ``(N, 2)``, or not finite.
        """
        found: dict[str, list[list[float]]] = {}
        for part in self._parts(target):
            values = _numbers(part)
            if not values.numel():
                continue
            if values.shape[1] == 4:
                own = part.format.value.lower() if isinstance(part, tv_tensors.BoundingBoxes) else self.format
                if own not in ("xyxy", "xywh", "cxcywh"):
                    raise ValueError(f"boxes must be in format xyxy, xywh or cxcywh, got {own}; convert them first")
                values = values if own == "xyxy" else box_convert(values, own, "xyxy")
            found.setdefault("boxes" if values.shape[1] == 4 else "points", []).extend(values.tolist())
        return found

    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Probability of the best object, at the picture's resolution.

        Raises:
            ValueError: no targets were given.
        """
        if None in prompts:
            raise ValueError(f"{type(self).__name__} reads boxes or points: give the targets with the images")
        asked = [i for i, prompt in enumerate(prompts) if prompt]
        if not asked:
            return images.new_ones(len(images), 1, 1, 1)
        model, processor = self.network
        size = frame(images.shape[-2], images.shape[-1], processor["size"])
        pad = processor.get("pad_size") if processor.get("do_pad") else None
        canvas = (pad["height"], pad["width"]) if pad else size
        pixels = prepare(images[asked], processor)
        pixels = nnf.pad(pixels, (0, canvas[1] - size[1], 0, canvas[0] - size[0]))
        # Once a picture, since the image encoder is nearly all of the cost.
        embedded = model.get_image_embeddings(pixels)
        # Prompts are told in pixels of the frame that the model sees, not of the picture.
        scale = images.new_tensor([size[1] / images.shape[-1], size[0] / images.shape[-2]])
        scores = images.new_ones(len(images), 1, *images.shape[-2:])
        for at, i in enumerate(asked):
            one = [e[at : at + 1] for e in embedded] if isinstance(embedded, list | tuple) else embedded[at : at + 1]
            best = scores.new_full(scores.shape[-2:], -torch.inf)
            for chunk in self._chunks(prompts[i], scale):
                for mask in self._masks(model, one, chunk):
                    # As the models' own post-processing does: logits are up-sampled, and the padding cut off.
                    if pad:
                        mask = _resize(mask, canvas)[: size[0], : size[1]]
                    best = torch.maximum(best, _resize(mask, best.shape))
            scores[i, 0] = best.sigmoid()
        return scores

    def identity(self) -> dict[str, Any]:
        """Checkpoint and revision; of a folder, a hash. What prompts the model is in each picture's own key."""
        return self.checkpoint.identity

    def _parts(self, target: Any) -> list[Any]:
        if self.key is not None:
            return [pick(target, self.key)]
        parts = list(_annotations(target, tv_tensors.BoundingBoxes, ("boxes",)))
        parts = parts or list(_annotations(target, tv_tensors.KeyPoints, ("points",)))
        if not parts and (target is None or isinstance(target, Mapping)):
            there = list(target) if isinstance(target, Mapping) else None
            raise KeyError(f"the target has no boxes and no points, there: {there}; say where they are with key=")
        return parts or [target]

    def _chunks(self, prompt: Mapping[str, list[list[float]]], scale: Tensor) -> list[dict[str, Tensor]]:
        """Arguments for the model, for ``batch_size`` prompts each, in pixels of its frame."""
        chunks: list[dict[str, Tensor]] = []
        for name, values in prompt.items():
            for some in (scale.new_tensor(values) * scale.repeat(2 if name == "boxes" else 1)).split(self.batch_size):
                if name == "boxes":
                    chunks.append({"input_boxes": some[None]})
                else:  # one point an object: a mask of its own
                    labels = torch.ones(1, len(some), 1, dtype=torch.int64, device=scale.device)
                    chunks.append({"input_points": some[None, :, None], "input_labels": labels})
        return chunks

    def _masks(self, model: Any, embedded: Any, prompts: Mapping[str, Tensor]) -> Tensor:
        """``(N, h, w)`` logits: of each prompt of one picture the mask that the model thinks best."""
        output = model(image_embeddings=embedded, multimask_output=True, **prompts)
        best = output.iou_scores[0].argmax(dim=-1)
        return output.pred_masks[0, torch.arange(len(best), device=best.device), best].float()

    def load(self) -> tuple[Any, dict[str, Any]]:
        """Model and image processor's values."""
        processor = self.checkpoint.read("AutoImageProcessor").to_dict()
        model = self.checkpoint.model("AutoModelForMaskGeneration", self.device)
        if type(model).__name__ not in _MODELS:
            raise ValueError(
                f"checkpoint {self.checkpoint.name!r} is of a {type(model).__name__}; it must be of one of {_MODELS}"
            )
        return model, processor


def _resize(mask: Tensor, size: Sequence[int]) -> Tensor:
    return nnf.interpolate(mask[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _numbers(part: Any) -> Tensor:
    """``(N, 4)`` or ``(N, 2)`` float32, or empty."""
    if part is None:
        return torch.empty(0)
    try:
        values = torch.as_tensor(part, dtype=torch.float32).as_subclass(Tensor).cpu()
    except (TypeError, ValueError, RuntimeError):
        values = torch.zeros(())
    if values.numel() == 0:
        return torch.empty(0)
    values = values[None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] not in (2, 4):
        raise ValueError(f"prompts must be boxes (N, 4) or points (N, 2), got {type(part).__name__}: {part!r:.80}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"prompts must be finite, got {values.tolist()}")
    return values
