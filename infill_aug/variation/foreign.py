"""Operations of kornia and torchvision, with the two calls that ``Variation`` makes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import kornia.augmentation as K
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from infill_aug.variation.operation import Operation, find_operation, list_operations

# Where torchvision keeps what moves nothing.
_STILL = ("torchvision.transforms.v2._color", "torchvision.transforms.v2._misc", "torchvision.transforms.v2._meta")


class ForeignOperation(nn.Module):
    """An augmentation of kornia, a transform of torchvision v2, or any module on a picture, as an operation.

    Args:
        module: kornia's draw their own parameters, one for each sample; everything else is called for one picture
            ``(3, H, W)`` after the other, torchvision's in ``uint8``, others in floating point, each with a seed of its
            own, so that its draws replay.

    Raises:
        TypeError: nothing that can be called.

    Example:
        >>> operation = ForeignOperation(v2.RandomInvert(p=1.0))
        >>> operation.vary(torch.zeros(1, 3, 2, 2), **operation.draw(torch.ones(1), 2, 2)).mean()
        tensor(1.)
    """

    mixes = needs_others = False

    def __init__(self, module: Any) -> None:
        super().__init__()
        if not callable(module):
            raise TypeError(f"an operation must be a module that takes pictures, got {module!r}")
        self.module = module
        self.name = type(module).__name__
        self.batched = isinstance(module, K.AugmentationBase2D)
        self.eight = isinstance(module, v2.Transform)
        # Where in doubt, content moves: then no operation sees what lies outside of its region.
        self.moves = (
            not isinstance(module, K.IntensityAugmentationBase2D)
            if self.batched
            else type(module).__module__ not in _STILL
        )

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Any]:
        """Kornia's parameters, or a seed for each picture."""
        if self.batched:
            return {"kornia": self.module.forward_parameters(torch.Size([len(strength), 3, height, width]))}
        return {"seed": torch.randint(2**62, (len(strength),))}

    def vary(self, image: Tensor, **params: Any) -> Tensor:
        """Apply what was drawn.

        Raises:
            ValueError: the result has another shape.
        """
        if self.batched:
            result = self.module(image, params=params["kornia"])
        else:
            devices = [image.device] if image.is_cuda else []
            with torch.random.fork_rng(devices):
                parts = []
                # Some of torchvision's take 8 bits only, all are faster there.
                pictures = v2.functional.to_dtype(image, torch.uint8, scale=True) if self.eight else image
                for picture, seed in zip(pictures, params["seed"].tolist(), strict=True):
                    torch.manual_seed(seed)
                    varied = v2.functional.to_dtype(self.module(picture), torch.float32, scale=True)
                    # Containers of kornia make a batch of one.
                    parts.append(varied[0] if varied.ndim == 4 and len(varied) == 1 else varied)
            result = torch.stack(parts)
        if result.shape != image.shape:
            raise ValueError(
                f"{self.name} made {tuple(result.shape)} of {tuple(image.shape)}; a variation keeps the size: set the "
                "operation's, or leave it out"
            )
        return result


def make_operation(what: Any, strength: float | Sequence[float]) -> Operation | ForeignOperation:
    """An operation from its name or from an object.

    Args:
        what: name of an operation of this package; of a class of ``kornia.augmentation`` or ``torchvision.transforms.
            v2`` that needs a picture alone and no arguments, and is made with ``p=1``; or ``"module:Name"``; or an
            object of any of these kinds.
        strength: 0..1, or a range, for those of this package that come by name.

    Raises:
        ValueError: no such name.
        TypeError: something else.

    Example:
        >>> make_operation("jitter", 0.5).strength
        (0.125, 0.5)
        >>> make_operation("RandomInvert", 0.5).name
        'RandomInvert'
    """
    if isinstance(what, Operation | ForeignOperation):
        return what
    if not isinstance(what, str):
        return ForeignOperation(what)
    known = find_operation(what)
    if known is not None:
        return known(strength)
    made = _foreign(what)
    if made is None:
        raise ValueError(
            f"no operation {what!r}; known: {list_operations()}, classes of kornia.augmentation and "
            "torchvision.transforms.v2 that need no arguments, and 'module:Name'; or pass an object"
        )
    return made if isinstance(made, Operation | ForeignOperation) else ForeignOperation(made)


def _foreign(name: str) -> Any:
    if ":" in name:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)()
    for library in (K, v2):
        kind = getattr(library, name, None)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            # The share of the samples is the group's to say, not the operation's.
            given = {"p": 1.0} if "p" in inspect.signature(kind).parameters else {}
            try:
                return kind(**given)
            except TypeError as error:
                raise ValueError(f"{name} cannot be made by its name alone: {error}; pass an object") from error
    return None
