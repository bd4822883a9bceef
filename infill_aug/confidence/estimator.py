"""The confidence estimator: a network of under 0.2 M parameters that scores every pixel of a picture."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.key import digest
from infill_aug.profile import TaskProfile

# Raised whenever weights of an earlier version would be read to other scores.
_FORMAT = "infill_aug.confidence"
_VERSION = 1
_STRIDE = 16


class ConfidenceEstimator(nn.Module):
    """How much every pixel matters, from the picture alone: one shared trunk, one logit for each head.

    Pictures are looked at as squares of side ``input_size``, whatever their own size and shape, in training as in use;
    the logits come at a quarter of that and are brought to the picture's size last. Convolutions, batch normalisation,
    ReLU, hard sigmoid, average pooling, addition, product and nearest up-sampling are all that it uses, so that it
    exports anywhere.

    Convention:
        * images ``(B, 3, H, W)`` floating point in 0..1, any size from one pixel, not normalised
        * confidence ``(B, 1, H, W)`` in 0..1, same size, dtype and device, calibrated: of the pixels at 0.8, about
          80 % matter, in pictures like those that it was calibrated on
        * in half precision and in ``channels_last`` as in float32

    Args:
        heads: a name for each thing that it scores, usually names of task profiles.
        input_size: side in pixels of the square at which it looks, a multiple of 16.

    Raises:
        ValueError: no heads, a repeated one, or an ``input_size`` that is no multiple of 16.

    Example:
        >>> import torch
        >>> estimator = ConfidenceEstimator(("cats", "dogs"), input_size=64).eval()
        >>> estimator(torch.rand(2, 3, 50, 70)).shape
        torch.Size([2, 1, 50, 70])
    """

    temperature: Tensor

    def __init__(self, heads: Sequence[str] = ("confidence",), input_size: int = 128) -> None:
        super().__init__()
        if not heads or len(set(heads)) != len(heads):
            raise ValueError(f"heads must be one or more different names, got {list(heads)}")
        if input_size < 32 or input_size % _STRIDE:
            raise ValueError(f"input_size must be a multiple of {_STRIDE} and 32 or more, got {input_size}")
        self.heads, self.head, self.input_size = tuple(heads), heads[0], input_size
        self.quality: dict[str, Any] = {}
        self.trunk = _Trunk()
        self.logit = nn.Conv2d(_Trunk.WIDTH, len(heads), 1)
        # Few pixels matter: a start that knows it spares the first epoch.
        nn.init.constant_(self.logit.bias, -1.5)  # type: ignore[arg-type]
        self.register_buffer("temperature", torch.ones(len(heads)))

    @classmethod
    def from_profile(cls, profile: TaskProfile | str | Path | Mapping[str, Any]) -> ConfidenceEstimator:
        """The trained estimator of a task profile, in evaluation mode, on the CPU.

        Args:
            profile: task profile, its name, file or fields; its ``weights`` name the bundled or own weights.

        Raises:
            FileNotFoundError: the weights are not there.
            ValueError: the profile has no weights, or they are of another profile or version.
        """
        profile = TaskProfile.load(profile)
        if profile.weights is None:
            learn = f"infill-aug profiles train {profile.name} --data FOLDER"
            raise ValueError(
                f"profile {profile.name!r} has no weights; learn them from "
                + (f"its teacher {profile.teacher['name']!r}: {learn}" if profile.teacher else f"your masks: {learn}")
            )
        estimator = cls.load(weights_path(profile.weights))
        name = profile.source_options.get("head", profile.name)
        if name not in estimator.heads:
            raise ValueError(
                f"weights {profile.weights!r} are of another profile: profile {profile.name!r} needs a head {name!r}, "
                f"they have {list(estimator.heads)}; name one in source_options: {{head: ...}}"
            )
        estimator.head, estimator.input_size = name, profile.input_size
        return estimator

    def forward(self, images: Tensor) -> Tensor:
        """Calibrated confidence of ``self.head``.

        Args:
            images: ``(B, 3, H, W)`` floating point in 0..1.

        Returns:
            ``(B, 1, H, W)`` in 0..1, dtype and device of ``images``.

        Raises:
            ValueError: another shape or dtype, values outside 0..1, or NaN.
        """
        _check_images(images)
        head = self.heads.index(self.head)
        features = self.trunk(_resize(images, self.input_size).to(self.logit.weight.dtype))
        # One head alone: its scores do not depend, even in rounding, on how many others there are.
        weight, bias = self.logit.weight[head : head + 1], self.logit.bias[head : head + 1]  # type: ignore[index]
        logits = nnf.conv2d(features, weight, bias) / self.temperature[head]
        # Logits are up-sampled, not probabilities: the edge between two pixels then lies where they balance.
        logits = nnf.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return logits.sigmoid().to(images.dtype)

    def logits(self, images: Tensor) -> Tensor:
        """Raw logits of every head, at a quarter of the size: what training and export use.

        Args:
            images: ``(B, 3, h, w)`` floating point in 0..1; ``h`` and ``w`` multiples of 16.

        Returns:
            ``(B, len(heads), h / 4, w / 4)``, in the dtype of the weights.
        """
        return self.logit(self.trunk(images.to(self.logit.weight.dtype)))

    def with_heads(self, heads: Sequence[str]) -> ConfidenceEstimator:
        """A new estimator with this one's trunk: heads of the same name are kept, others start anew.

        Args:
            heads: names.

        Raises:
            ValueError: no or repeated heads, or this estimator came from ``fused()``.
        """
        self._check_not_fused()
        with torch.random.fork_rng(devices=[]):  # nearly all of it is overwritten: no reason to change others' draws
            other = ConfidenceEstimator(heads, self.input_size)
        other.trunk.load_state_dict(self.trunk.state_dict())
        with torch.no_grad():
            for to, name in enumerate(heads):
                if name in self.heads:
                    own = self.heads.index(name)
                    other.logit.weight[to] = self.logit.weight[own]
                    other.logit.bias[to] = self.logit.bias[own]  # type: ignore[index]
                    other.temperature[to] = self.temperature[own]
        other.quality = {name: value for name, value in self.quality.items() if name in heads}
        return other

    def fused(self) -> ConfidenceEstimator:
        """A copy for use alone: batch normalisation folded into the convolutions, weights in ``channels_last``.

        About a quarter faster for one picture on the CPU; confidence differs by rounding only. It runs, moves and
        exports like any estimator, in evaluation mode, but can be neither trained on, nor saved, nor given heads.

        Returns:
            A new estimator on the same device and in the same dtype; this one is left as it is.

        Example:
            >>> import torch
            >>> estimator, images = ConfidenceEstimator(input_size=32).eval(), torch.rand(1, 3, 20, 30)
            >>> torch.allclose(estimator.fused()(images), estimator(images), atol=1e-4)
            True
        """
        other = copy.deepcopy(self).eval().requires_grad_(False)
        for parent in list(other.modules()):
            for name, child in list(parent.named_children()):
                # Every normalisation follows its convolution in a pair that ``_conv`` made.
                if isinstance(child, nn.Sequential) and isinstance(child[-1], nn.BatchNorm2d):
                    pair: Any = child
                    parent.add_module(name, fuse_conv_bn_eval(pair[0], pair[1]).requires_grad_(False))
        return other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _check_not_fused(self) -> None:
        if not any(isinstance(module, nn.BatchNorm2d) for module in self.modules()):
            raise ValueError("this estimator came from fused() and only runs; use the one that was fused")

    def save(self, path: str | Path, **notes: Any) -> None:
        """Write the weights in half precision, with what is needed to read and judge them.

        Args:
            path: file ending in ``.safetensors``.
            notes: JSON values that are kept in the file: data, seed, date, hardware.

        Raises:
            ValueError: this estimator came from ``fused()``.
        """
        from safetensors.torch import save_file

        self._check_not_fused()
        tensors = {
            name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
            for name, value in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        metadata = {
            "format": _FORMAT,
            "version": str(_VERSION),
            "heads": json.dumps(self.heads),
            "input_size": str(self.input_size),
            "quality": json.dumps(self.quality),
            "notes": json.dumps(notes),
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> ConfidenceEstimator:
        """Read weights that ``save`` wrote; in evaluation mode, on the CPU, in float32.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no weights of an estimator, or of another version.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"no weights at {str(path)!r}; bundled: {list_weights()}")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is no safetensors file: {error}") from error
        if metadata.get("format") != _FORMAT or metadata.get("version") != str(_VERSION):
            raise ValueError(
                f"{str(path)!r} holds {metadata.get('format', 'unknown')} weights of version "
                f"{metadata.get('version', 'unknown')}, this package reads {_FORMAT} {_VERSION}; train them again, or "
                "use the version of infill_aug that wrote them"
            )
        with torch.random.fork_rng(devices=[]):  # reading a file must not change anybody's draws
            estimator = cls(json.loads(metadata["heads"]), int(metadata["input_size"]))
        wanted = {name for name in estimator.state_dict() if not name.endswith("num_batches_tracked")}
        if set(tensors) != wanted:
            raise ValueError(
                f"{str(path)!r} lacks {sorted(wanted - set(tensors))}, has extra {sorted(set(tensors) - wanted)}"
            )
        estimator.load_state_dict(tensors, strict=False)
        estimator.quality = json.loads(metadata["quality"])
        return estimator.eval()


class EstimatorConfidence(NetworkConfidence):
    """Confidence from the estimator: the source of profiles whose ``source`` is ``"estimator"``.

    Args:
        estimator: a trained estimator; a copy of it runs here, in evaluation mode, so that nothing trains it on.
        grading: arguments of ``NetworkConfidence``.

    Example:
        >>> import torch
        >>> source = EstimatorConfidence(ConfidenceEstimator(input_size=32), falloff=0.2)
        >>> source(torch.zeros(3, 20, 30, dtype=torch.uint8), None).shape
        torch.Size([1, 20, 30])
    """

    def __init__(self, estimator: ConfidenceEstimator, **grading: Any) -> None:
        super().__init__(**grading)
        frozen = estimator.with_heads(estimator.heads).to(self.device).eval().requires_grad_(False)
        frozen.head = estimator.head
        self.estimator = frozen
        # Folded weights score; the others name the maps in a store, and do not depend on how folding rounds.
        self._fused = frozen.fused()

    @property
    def quality(self) -> Mapping[str, Any]:
        """What was measured of the head when it was trained; empty where nothing was."""
        return self.estimator.quality.get(self.estimator.head, {})

    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Calibrated confidence."""
        return self._fused(images)

    def identity(self) -> dict[str, Any]:
        """Head, input size, and a hash of the weights."""
        return {
            "head": self.estimator.head,
            "input_size": self.estimator.input_size,
            "weights": weights_digest(self.estimator),
        }


def weights_digest(module: nn.Module) -> str:
    """32 hex digits that change with every weight of a module, and with its layers."""
    import hashlib

    content = hashlib.blake2b(digest([repr(module), sorted(module.state_dict())]).encode(), digest_size=16)
    for _, value in sorted(module.state_dict().items()):
        content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def weights_path(name: str) -> Path:
    """Where weights lie: a bundled name, or a path ending in ``.safetensors``.

    Raises:
        FileNotFoundError: no bundled weights of that name.
    """
    if name.endswith(".safetensors"):
        return Path(name)
    path = Path(str(resources.files("infill_aug") / "weights" / f"{name}.safetensors"))
    if not path.is_file():
        raise FileNotFoundError(
            f"no bundled weights {name!r}; bundled: {list_weights()}; your own are a path ending in .safetensors"
        )
    return path


def list_weights() -> list[str]:
    """Names of the bundled weights."""
    names = [entry.name for entry in (resources.files("infill_aug") / "weights").iterdir()]
    return sorted(name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors"))


def _resize(images: Tensor, side: int) -> Tensor:
    if images.shape[-2:] == (side, side):
        return images
    # Antialiasing has no half-precision kernel on the CPU.
    wide = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    return nnf.interpolate(wide, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be (B, 3, H, W) and not empty, got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in 0..1, got {images.dtype}; divide uint8 by 255")
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must lie in 0..1, got values from {low:.4g} to {high:.4g}; the estimator takes pictures that are "
            "not normalised and hold no NaN"
        )


def _conv(inside: int, outside: int, stride: int = 1, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outside)
    )


class _Block(nn.Module):
    """Inverted residual (Sandler et al., 2018) with a 5 x 5 depthwise kernel."""

    def __init__(self, inside: int, outside: int, stride: int = 1, expand: int = 3) -> None:
        super().__init__()
        middle = inside * expand
        self.expand = _conv(inside, middle, kernel=1)
        self.depthwise = _conv(middle, middle, stride, kernel=5, groups=middle)
        self.project = _conv(middle, outside, kernel=1)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(nnf.relu_(self.depthwise(nnf.relu_(self.expand(x)))))
        return x + y if self.residual else y


class _Trunk(nn.Module):
    """Dense convolutions down to 1/8, inverted residuals at 1/16, and an additive pyramid back to 1/4.

    Dense 3 x 3 convolutions are faster than depthwise ones where channels are few; depthwise ones reach further for
    their weights where pixels are few.
    """

    WIDTH = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 2), nn.ReLU(True), _conv(16, 24, 2), nn.ReLU(True))
        self.middle = nn.Sequential(_conv(24, 48, 2), nn.ReLU(True), _conv(48, 48), nn.ReLU(True))
        self.deep = nn.Sequential(_Block(48, 72, 2), _Block(72, 72), _Block(72, 72), _Block(72, 72))
        self.gate = nn.Conv2d(72, 72, 1)
        self.lateral = nn.ModuleList(nn.Conv2d(width, self.WIDTH, 1) for width in (24, 48, 72))
        self.smooth = nn.ModuleList(_conv(self.WIDTH, self.WIDTH, groups=self.WIDTH) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        quarter = self.stem((images - 0.45) * 4)
        eighth = self.middle(quarter)
        deep = self.deep(eighth)
        deep = deep * nnf.hardsigmoid(self.gate(nnf.adaptive_avg_pool2d(deep, 1)))
        up = self.lateral[2](deep)
        merges = zip((self.lateral[1], self.lateral[0]), self.smooth, (eighth, quarter), strict=True)
        for lateral, smooth, skip in merges:
            up = nnf.relu_(smooth(lateral(skip) + nnf.interpolate(up, scale_factor=2.0, mode="nearest")))
        return up
