"""Confidence from torchvision's segmenters, or from a segmenter of your own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infill_aug.checkpoint import IMAGENET_MEAN, IMAGENET_STD, file_digest, frozen
from infill_aug.confidence.estimator import weights_digest
from infill_aug.confidence.teachers._shared import Teacher, check_weights, logits_of, prepare, weigh


class TorchvisionConfidence(Teacher):
    """Confidence from classes: each pixel's class probabilities, summed by what the classes are worth.

    Args:
        model: name of a segmenter of torchvision, whose weights are downloaded when it first scores a picture, or a
            module that maps ``(B, 3, h, w)`` to logits ``(B, C, h', w')``, bare, as ``.logits`` or under ``"out"``. A
            copy of a module runs here, in evaluation mode, so that nothing trains it on.
        class_weights: confidence 0..1 by class name; classes that are left out do not matter.
        classes: names of a module's classes, in the order of its channels; a named model brings its own.
        state_dict: file with the weights of a named model, where they cannot be downloaded.
        input_size: the shorter side in pixels at which pictures are looked at; longer sides end at four times that.
        mean: of the pictures that the model was trained on, by channel, for values in 0..1.
        std: their standard deviation.
        grading: arguments of ``NetworkConfidence``.

    Raises:
        FileNotFoundError: no such ``state_dict``.
        ValueError: an unknown model, a class that the model does not have, a weight outside 0..1, or a module without
            ``classes``.

    Example:
        >>> import torch
        >>> reddest = torch.nn.Conv2d(3, 2, 1)
        >>> source = TorchvisionConfidence(reddest, classes=["red", "other"], class_weights={"red": 1}, input_size=32)
        >>> source(torch.zeros(3, 20, 30, dtype=torch.uint8), None).shape
        torch.Size([1, 20, 30])
    """

    def __init__(
        self,
        model: str | nn.Module = "deeplabv3_mobilenet_v3_large",
        *,
        class_weights: Mapping[str, float],
        classes: Sequence[str] | None = None,
        state_dict: str | Path | None = None,
        input_size: int = 520,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        **grading: Any,
    ) -> None:
        super().__init__(**grading)
        if input_size < 1:
            raise ValueError(f"input_size must be 1 or more, got {input_size}")
        self._weights = _weights(model) if isinstance(model, str) else None
        if (self._weights is None) != (classes is not None):
            raise ValueError(
                "classes must name the channels of a module, and only of a module: a named model has its own"
            )
        if state_dict is not None and (self._weights is None or not Path(state_dict).is_file()):
            if self._weights is None:
                raise ValueError("state_dict is for a named model; load the weights into your module yourself")
            raise FileNotFoundError(f"no file of weights at {str(state_dict)!r}")
        self.classes = list(classes if self._weights is None else self._weights.meta["categories"])  # type: ignore[arg-type]
        self.class_weights = check_weights(class_weights, self.classes)
        own = model if isinstance(model, str) else frozen(lambda: copy.deepcopy(model), self.device)
        self.model, self.state_dict = own, state_dict
        self.input_size, self.mean, self.std = input_size, list(mean), list(std)

    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Weighted class probabilities, at the model's resolution."""
        look = {"size": {"shortest_edge": self.input_size}, "image_mean": self.mean, "image_std": self.std}
        logits = logits_of(self.network(prepare(images, look)))
        return weigh(logits.float().softmax(dim=1), self.classes, self.class_weights)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        if not isinstance(self.model, str):
            weights = weights_digest(self.model)
            return {"model": type(self.model).__name__, "weights": weights, "classes": self.classes}
        return {
            "model": self.model,
            "weights": str(self._weights) if self.state_dict is None else file_digest(self.state_dict),
        }

    def identity(self) -> dict[str, Any]:
        """Model, its weights by name or hash, class weights, and how it looks at pictures."""
        look = {"input_size": self.input_size, "mean": self.mean, "std": self.std}
        return {**self._identity, "class_weights": self.class_weights, **look}

    def load(self) -> Any:
        """The module, or the named model."""
        return frozen(self._load, self.device) if isinstance(self.model, str) else self.model

    def _load(self) -> nn.Module:
        from torchvision.models import get_model

        if self.state_dict is None:
            try:
                return get_model(self.model, weights=self._weights)
            except OSError as error:
                raise OSError(
                    f"the weights of {self.model!r} could not be downloaded ({error}); fetch {self._weights.url} where "  # type: ignore[union-attr]
                    "there is a network, and pass state_dict=PATH"
                ) from error
        model = get_model(self.model, weights=None, weights_backbone=None, num_classes=len(self.classes))
        tensors = torch.load(self.state_dict, map_location="cpu", weights_only=True)
        # The auxiliary head serves training only.
        model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("aux_classifier.")})
        return model


def _weights(name: str) -> Any:
    """Default weights of a segmenter of torchvision: an enum member, which holds no tensors."""
    from torchvision.models import get_model_weights, list_models, segmentation

    if name not in list_models(module=segmentation):
        raise ValueError(
            f"torchvision has no segmenter {name!r}; it has {list_models(module=segmentation)}, or pass a module"
        )
    return get_model_weights(name).DEFAULT
