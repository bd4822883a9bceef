"""Vision transformers train on the patches that matter: what holds infill only is dropped before the encoder."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from infill_aug.checks import is_number


def kept_tokens(mask: Tensor, patch_size: int | tuple[int, int], keep: float | None) -> Tensor:
    """Which patches of each sample are kept: those with the most kept pixels, at random among equals.

    A patch without a kept pixel only fills up what is left over. A sample with nothing masked has equal patches, and
    keeps a random part of them, as in PatchDropout (Liu et al., WACV 2023, https://arxiv.org/abs/2208.07220).

    Args:
        mask: ``(B, 1, H, W)`` bool or number; 0 is a kept pixel, all else a regenerated one.
        patch_size: side of a patch in pixels, or height and width; they divide those of the mask.
        keep: share of the patches, above 0 and up to 1. ``None``: as many as have a kept pixel in the fullest of the
            samples that have anything masked, which waits for the device.

    Returns:
        ``(B, K)`` int64, rising, in the order of rows, on the device of ``mask``. ``K`` is one or more, the same for
        all samples.

    Raises:
        ValueError: a share out of range, or sizes that do not fit.

    Example:
        >>> import torch
        >>> mask = torch.ones(1, 1, 4, 8)
        >>> mask[..., 2:, 1:3] = 0
        >>> kept_tokens(mask, 2, keep=0.25).tolist(), kept_tokens(mask, 4, keep=None).tolist()
        ([[4, 5]], [[0]])
    """
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    _check(keep)
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2] % height or mask.shape[3] % width:
        raise ValueError(
            f"mask must be (B, 1, H, W) with sides that patches of {height} x {width} px fill, got {tuple(mask.shape)}"
        )
    pixels = nnf.avg_pool2d((mask == 0).float(), (height, width), divisor_override=1).flatten(1)
    if keep is None:
        changed = (pixels < height * width).any(dim=1)
        count = int(((pixels > 0).sum(dim=1).clamp(min=1) * changed).max()) or pixels.shape[1]
    else:
        count = max(1, round(keep * pixels.shape[1]))
    # Half a pixel decides among equals, and cannot be rounded up to a whole one.
    return (pixels + 0.5 * torch.rand_like(pixels)).topk(count, dim=1).indices.sort(dim=1).values


class KeepTokens:
    """Calls a vision transformer that trains on a part of its patches: masking then saves work instead of adding it.

    The patches are chosen by ``kept_tokens`` and dropped after the positions were added, as in MAE (He et al., CVPR
    2022, https://arxiv.org/abs/2111.06377); class and register tokens stay. The model's class, weights and
    ``state_dict`` are what they were, and called by itself it sees all patches.

    Convention:
        * for timm's ``VisionTransformer`` (ViT, DeiT with and without distillation, DeiT-3, DINOv2, CLIP, SigLIP, with
          or without registers) and torchvision's; alone, or somewhere within the model: ``DistributedDataParallel``,
          a ``Sequential``
        * in training mode only; in ``eval`` mode the mask is ignored and the output is the plain model's
        * all samples keep equally many patches; with a share given nothing waits for the device
        * draws come from the device's global generator
        * ``torch.compile(model)`` is fine, unless the model was called before ``KeepTokens`` was made

    Args:
        model: what is called with the images.
        keep: share of the patches, above 0 and up to 1; or ``None``, see ``kept_tokens``. A share below that of the
            patches with kept pixels loses some of them.

    Attributes:
        model: the same.
        keep: the same, and may be changed at any time.

    Raises:
        TypeError: there is none of these transformers in ``model``, or more than one.
        ValueError: ``keep`` is out of range.

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> model = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3)
        >>> tokens = KeepTokens(model, keep=0.5)
        >>> mask = torch.rand(2, 1, 32, 32) < 0.5  # what InfillAugment returns under "mask"
        >>> tokens(torch.rand(2, 3, 32, 32), mask).shape  # the encoder saw 8 of 16 patches
        torch.Size([2, 3])
    """

    def __init__(self, model: nn.Module, keep: float | None = 0.5) -> None:
        _check(keep)
        self.model, self.keep = model, keep
        self._transformer, entry = _find(model)
        self._indices: Tensor | None = None
        self._patches = 0
        # Once and for good: a graph that torch.compile has made does not look for new hooks.
        self._hook = entry.register_forward_hook(self._drop)

    def __call__(self, images: Tensor, mask: Tensor | None = None) -> Any:
        """The model's output; in training mode from the patches that are kept.

        Args:
            images: ``(B, 3, H, W)``, as the model takes them.
            mask: ``(B, 1, H, W)`` on the same device, 0 where a pixel is kept; needed in training mode only.

        Raises:
            RuntimeError: the model has not let its patches be dropped.
            ValueError: no mask in training mode, or sizes that do not fit.
        """
        if not self._transformer.training:
            return self.model(images)
        if mask is None or mask.shape != (images.shape[0], 1, *images.shape[2:]):
            raise ValueError(
                f"in training mode KeepTokens needs the mask of these images, {(len(images), 1, *images.shape[2:])}, "
                f"got {None if mask is None else tuple(mask.shape)}; InfillAugment returns it under 'mask'"
            )
        height, width = _patch_size(self._transformer)
        self._indices = kept_tokens(mask, (height, width), self.keep)
        self._patches = (mask.shape[2] // height) * (mask.shape[3] // width)
        try:
            output = self.model(images)
            if self._indices is not None:
                raise RuntimeError(
                    "the model was compiled and called before KeepTokens was made, or did not run its transformer; "
                    "make KeepTokens first, or call torch.compiler.reset() now"
                )
            return output
        finally:
            self._indices = None

    def remove(self) -> None:
        """Take the hook off the model, for example before ``torch.jit.script``."""
        self._hook.remove()

    def _drop(self, module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        """Hook behind the last module before the encoder."""
        if self._indices is None:
            return tokens
        indices, self._indices = self._indices, None
        first = tokens.shape[1] - self._patches
        if first != getattr(self._transformer, "num_prefix_tokens", 1):
            raise RuntimeError(
                f"{tokens.shape[1]} tokens do not fit the {self._patches} patches of the mask; KeepTokens needs a model"
                " that neither resizes its images nor drops patches itself (timm's patch_drop_rate)"
            )
        if indices.shape[1] == self._patches:
            return tokens
        rest = tokens[:, first:]
        kept = rest.gather(1, indices.unsqueeze(-1).expand(-1, -1, rest.shape[-1]))
        return torch.cat([tokens[:, :first], kept], dim=1)


def _check(keep: float | None) -> None:
    if keep is not None and not is_number(keep, most=1, above=0):
        raise ValueError(f"keep must be above 0 and up to 1, or None, got {keep!r}")


def _patch_size(transformer: Any) -> tuple[int, int]:
    if hasattr(transformer, "patch_embed"):
        height, width = transformer.patch_embed.feat_ratio(as_scalar=False)
        return height, width
    return transformer.patch_size, transformer.patch_size


def _find(model: nn.Module) -> tuple[Any, nn.Module]:
    """The vision transformer in a model, and its last module before the encoder: positions are added by then."""
    from torchvision.models import VisionTransformer

    # Whoever has a model of timm has imported it.
    timm = sys.modules.get("timm.models.vision_transformer")
    entries: list[tuple[Any, nn.Module]] = []
    for module in model.modules():
        if isinstance(module, VisionTransformer):
            entries.append((module, module.encoder.dropout))
        elif timm is not None and isinstance(module, timm.VisionTransformer):
            entries.append((module, module.patch_drop))
    if len(entries) != 1:
        raise TypeError(
            f"KeepTokens needs one VisionTransformer of timm or torchvision, found {len(entries)} in "
            f"{type(model).__name__}; models with windows, stages or rotary positions (Swin, Hiera, EVA, DINOv3) "
            "need all of their patches"
        )
    return entries[0]
