"""Confidence from where an image classifier looks: class activation maps and attention rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from infill_aug.confidence.estimator import weights_digest
from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.sources import Key
from infill_aug.confidence.teachers._record import Call, attention_weights, recorded_calls
from infill_aug.confidence.teachers._shared import logits_of
from infill_aug.functional.masking import evaluating
from infill_aug.samples import label_of, pick

_METHODS = ("layercam", "gradcam", "rollout")
# Pixels of the picture for one of the feature map: finer maps are noise, coarser ones miss the shape.
_STRIDES = (4, 8)


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM (Jiang et al., 2021): every activation weighted by its own positive gradient.

    Args:
        activations: ``(B, C, h, w)`` floating point.
        gradients: of the class's score with respect to them, same shape.

    Returns:
        ``(B, 1, h, w)``, 0 or more, of no particular scale.

    Example:
        >>> import torch
        >>> layer_cam(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, -1.0]]]])).tolist()
        [[[[3.0, 0.0]]]]
    """
    return (gradients.relu() * activations).sum(dim=1, keepdim=True).relu()


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017): every channel weighted by its mean gradient.

    Args:
        activations: ``(B, C, h, w)`` floating point.
        gradients: of the class's score with respect to them, same shape.

    Returns:
        ``(B, 1, h, w)``, 0 or more, of no particular scale.

    Example:
        >>> import torch
        >>> grad_cam(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, -1.0]]]])).tolist()
        [[[[1.0, 2.0]]]]
    """
    return (gradients.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1, keepdim=True).relu()


def attention_rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Attention rollout (Abnar and Zuidema, 2020): how much of each input token reaches each output token.

    The heads are averaged, the residual connection is half of each layer, and the layers are multiplied.

    Args:
        attentions: ``(B, heads, N, N)`` for each layer, first layer first; rows sum to 1.

    Returns:
        ``(B, N, N)``; rows sum to 1.

    Raises:
        ValueError: no layers.

    Example:
        >>> import torch
        >>> attention_rollout([torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])]).tolist()
        [[[0.5, 0.5], [0.0, 1.0]]]
    """
    if not attentions:
        raise ValueError("attention_rollout needs the attention of one layer or more, got none")
    eye = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    rollout = eye.expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        mixed = (attention.float().mean(dim=1) + eye) / 2
        rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
    return rollout


class CamConfidence(NetworkConfidence):
    """Confidence from where an image classifier looks: no labels of where things are.

    By default the classifier's own top class is explained, so that the map can be had of any picture. The classifier
    is used as it is when a map is made, on the device where it is, and is left as it was: mode, gradients, statistics,
    hooks. Maps are blobs, good to learn an estimator from rather than to mask by.

    Args:
        classifier: maps ``(B, 3, h, w)`` to ``(B, C)`` logits, bare or as ``.logits``. One logit alone is that of class
            1, against class 0.
        method: ``"layercam"`` (best, for classifiers that convolve), ``"gradcam"``, or ``"rollout"`` for vision
            transformers: torchvision's, transformers' and others of ``nn.MultiheadAttention``; it knows no classes.
        layer: module of the classifier, or its dotted name, whose output is the feature map; by default the last whose
            map has a stride of 4 to 8, else the last that has a map. LayerCAM takes several, fused by maximum. Of a
            module that is called several times, the last call counts.
        normalize: mean and standard deviation by channel, for values in 0..1; ``None``: the classifier takes 0..1.
        input_size: side in pixels of the square at which pictures are looked at; by default the ``image_size`` that
            the classifier names, else the picture's own size.
        percentile: the share of a map's pixels that lie below full confidence, above 0, at most 1.
        key: where the label is in the target; by default where ``infill_aug.samples.label_of`` finds it.
        use_labels: explain the target's label instead of the top class, as a teacher may.
        flip: average with the map of the mirrored picture, at twice the cost. By default so unless labels are used: of
            what is told by left and right, a mirrored picture has another label.
        name: enters the cache key in place of the hash of the weights: change it whenever they change.
        grading: arguments of ``NetworkConfidence``.

    Raises:
        ValueError: an argument out of range, or a ``layer`` that is not in the classifier; when a picture is scored, a
            classifier without feature maps (or without attention), outputs that are no logits or not finite, or a label
            that is no class of it.

    Example:
        >>> import torch
        >>> classifier = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> source = CamConfidence(classifier)
        >>> source(torch.zeros(3, 20, 30, dtype=torch.uint8), None).shape
        torch.Size([1, 20, 30])
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        method: str = "layercam",
        layer: nn.Module | str | Sequence[nn.Module | str] | None = None,
        normalize: tuple[Sequence[float], Sequence[float]] | None = None,
        input_size: int | None = None,
        percentile: float = 0.98,
        key: Key = None,
        use_labels: bool = False,
        flip: bool | None = None,
        name: str | None = None,
        **grading: Any,
    ) -> None:
        super().__init__(**grading)
        if method not in _METHODS:
            raise ValueError(f"method must be one of {_METHODS}, got {method!r}")
        if not 0 < percentile <= 1:
            raise ValueError(f"percentile must lie above 0 and be at most 1, got {percentile}")
        if input_size is not None and input_size < 1:
            raise ValueError(f"input_size must be 1 or more, got {input_size}")
        if key is not None and not use_labels:
            raise ValueError(f"key={key!r} says where the label is, but labels are not read; pass use_labels=True")
        if method == "rollout" and (use_labels or layer is not None):
            raise ValueError(
                "method='rollout' goes through all layers and knows no classes; leave out layer, use_labels"
            )
        self.classifier, self.method, self.layers = classifier, method, _names(classifier, layer)
        if method == "gradcam" and len(self.layers) > 1:
            raise ValueError(f"method='gradcam' takes one layer, got {self.layers}; fuse several with 'layercam'")
        self.normalize = None if normalize is None else tuple([float(v) for v in part] for part in normalize)
        self.input_size, self.percentile = (
            _own_size(classifier) if input_size is None else input_size,
            float(percentile),
        )
        self.key, self.use_labels, self.name = key, use_labels, name
        self.flip = not use_labels if flip is None else flip
        self.reads_target = use_labels

    def prompt(self, target: Any) -> int | None:
        """The label, where labels are used.

        Raises:
            KeyError: nothing at ``key``.
            ValueError: no label in the target, or one that is no integer.
        """
        if not self.use_labels:
            return None
        label = label_of(target if self.key is None else pick(target, self.key))
        if not isinstance(label, int):
            raise ValueError(
                f"a label must be an integer, the position of its class in the logits, got {label!r} from a target of "
                f"type {type(target).__name__}; say where it is with key=, or pass use_labels=False"
            )
        return int(label)

    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Maps at the resolution of the feature map."""
        some = next(self.classifier.parameters(), images)
        # Gradients are needed, and maps are made in inference mode: its tensors have none, their copies do.
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.classifier):
            looked = self._prepare(images.clone()).to(some.device, some.dtype)
            maps = self._maps(looked, prompts)
            if self.flip:
                maps = (maps + self._maps(looked.flip(-1), prompts).flip(-1)) / 2
        return maps.to(images.device)

    def identity(self) -> dict[str, Any]:
        """Method, layers, a hash of the weights as they are now, and how pictures are looked at."""
        return {
            "method": self.method,
            "classifier": type(self.classifier).__name__,
            "weights": weights_digest(self.classifier) if self.name is None else self.name,
            "layers": self.layers,
            "normalize": self.normalize and list(self.normalize),
            "input_size": self.input_size,
            "percentile": self.percentile,
            "use_labels": self.use_labels,
            "flip": self.flip,
        }

    def _prepare(self, images: Tensor) -> Tensor:
        size = (self.input_size, self.input_size)
        if self.input_size is not None and images.shape[-2:] != size:
            images = nnf.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)  # type: ignore[arg-type]
        if self.normalize is not None:
            mean, std = (images.new_tensor(part)[:, None, None] for part in self.normalize)
            images = (images - mean) / std
        return images

    def _maps(self, images: Tensor, labels: Sequence[Any]) -> Tensor:
        """Scaled ``(B, 1, h, w)`` maps."""
        if self.method == "rollout":
            return _scale(self._rollout(images), self.percentile)
        function = layer_cam if self.method == "layercam" else grad_cam
        with recorded_calls(self.classifier) as calls:
            logits = self._logits(images.detach().requires_grad_())
            features = self._features(calls, images.shape[-2:])
        if self.use_labels and None in labels:
            raise ValueError("use_labels=True reads labels: give the targets with the images")
        classes = labels if self.use_labels else logits.argmax(dim=1).tolist()
        wrong = sorted({label for label in classes if not 0 <= label < logits.shape[1]})
        if wrong:
            raise ValueError(f"labels must be classes 0..{logits.shape[1] - 1} of the classifier, got {wrong}")
        top = logits.gather(1, torch.tensor(classes, device=logits.device)[:, None]).sum()
        gradients = torch.autograd.grad(top, list(features.values()), allow_unused=True)
        maps = []
        for (name, feature), gradient in zip(features.items(), gradients, strict=True):
            if gradient is None:
                raise ValueError(f"the logits do not depend on layer {name!r}; name a layer on the way to them")
            found = function(feature.detach().float(), gradient.detach().float())
            maps.append(_scale(found, self.percentile))
        finest = max((one.shape[-2:] for one in maps), key=lambda size: size[0] * size[1])
        maps = [nnf.interpolate(one, size=finest, mode="bilinear", align_corners=False) for one in maps]
        return torch.stack(maps).amax(dim=0)

    def _logits(self, images: Tensor) -> Tensor:
        logits = logits_of(self.classifier(images))
        if logits.ndim != 2 or logits.shape[0] != len(images):
            raise ValueError(
                f"the classifier must give (B, C) logits, got {tuple(logits.shape)} for {len(images)} pictures; wrap "
                "it in a module that returns its logits alone"
            )
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("the classifier gave logits that are not finite; run it in float32, or mend its weights")
        if self.method != "rollout" and not logits.requires_grad:
            raise ValueError("the classifier gave logits without gradients; take no_grad and detach out of its forward")
        return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits

    def _features(self, calls: Sequence[Call], size: torch.Size) -> dict[str, Tensor]:
        """Feature maps of the wanted layers by name."""
        if not self.layers:
            return _default(calls, size)
        features = {}
        for name in self.layers:
            output = next((call.output for call in reversed(calls) if call.name == name), None)
            if not isinstance(output, Tensor) or output.ndim != 4:
                what = tuple(output.shape) if isinstance(output, Tensor) else "none that is a tensor"
                raise ValueError(f"layer {name!r} must give a (B, C, h, w) feature map, its output is: {what}")
            features[name] = output
        return features

    def _rollout(self, images: Tensor) -> Tensor:
        """``(B, 1, h, w)``: what of each patch reaches the class token, or all tokens where there is none."""
        with torch.no_grad(), attention_weights(self.classifier), recorded_calls(self.classifier) as calls:
            self._logits(images)
        attentions: list[Tensor] = []
        for call in calls:
            found = call.output[1] if isinstance(call.output, tuple | list) and len(call.output) > 1 else None
            if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[-1] != found.shape[-2]:
                continue
            # A module that hands on what the one within it returned is no further layer.
            if not any(found is one for one in attentions):
                attentions.append(found)
        if not attentions or len({one.shape[-1] for one in attentions}) > 1:
            raise ValueError(
                "method='rollout' needs a vision transformer whose layers attend to all of the picture, and found none "
                f"in {type(self.classifier).__name__}: torchvision's VisionTransformer, ViT models of transformers and "
                "others of nn.MultiheadAttention have them; for classifiers that convolve use 'layercam'"
            )
        rollout = attention_rollout(attentions)
        grid = next((tuple(call.output.shape[-2:]) for call in calls if _is_patches(call.module)), None)
        high, wide = grid or (int((rollout.shape[-1]) ** 0.5),) * 2
        extra = rollout.shape[-1] - high * wide
        if extra < 0:
            raise ValueError(f"{rollout.shape[-1]} tokens are too few for patches of {high} x {wide}")
        row = rollout[:, 0] if extra else rollout.mean(dim=1)
        shares = row[:, extra:].reshape(-1, 1, high, wide)
        # Every patch keeps a share through the residual connections: what all have says nothing.
        return shares - shares.amin(dim=(2, 3), keepdim=True)


def _default(calls: Sequence[Call], size: torch.Size) -> dict[str, Tensor]:
    """The last feature map of stride 4 to 8, else the last one."""
    times = Counter(call.name for call in calls)
    strides = [(_stride(call.inside, size), _stride(call.output, size)) for call in calls]
    # What is within a block that goes from a fitting stride to a coarser one is a part of its branches only; what
    # goes into the block is the whole.
    beyond = tuple(
        f"{call.name}."
        for call, (before, after) in zip(calls, strides, strict=True)
        if _fits(before) and after is not None and after > _STRIDES[1]
    )
    maps, fine = {}, {}
    for call, (_, after) in zip(calls, strides, strict=True):
        # A vision transformer's patches have not been looked at yet, and its attention is no map.
        if call.inside is None or after is None or _is_patches(call.module) or isinstance(call.module, nn.Dropout):
            continue
        if times[call.name] == 1 and call.output.requires_grad:
            maps = {call.name: call.output}
            if _fits(after) and not call.name.startswith(beyond):
                fine = {call.name: call.output}
    if not maps:
        raise ValueError(
            "the classifier has no convolutional feature map to explain; for a vision transformer use "
            "method='rollout', for others a source that needs no classifier: masks, boxes, points or the centre prior"
        )
    return fine or maps


def _stride(value: Any, size: torch.Size) -> int | None:
    """Pixels of the picture for one of a feature map, rounded; ``None`` for what is no feature map."""
    if not isinstance(value, Tensor) or value.ndim != 4:
        return None
    high, wide = value.shape[-2:]
    # Channels-last tensors have other sides than the picture; what is pooled to one place has none.
    if high * wide == 1 or abs(size[0] * wide / size[1] - high) > 1 or abs(size[1] * high / size[0] - wide) > 1:
        return None
    # Rounded down: unpadded convolutions lose a few pixels at the rim.
    return int(max(size[0] / high, size[1] / wide))


def _fits(stride: int | None) -> bool:
    return stride is not None and _STRIDES[0] <= stride <= _STRIDES[1]


def _is_patches(module: nn.Module) -> bool:
    """Whether a convolution cuts a picture into patches that do not overlap."""
    return isinstance(module, nn.Conv2d) and module.kernel_size == module.stride and module.stride != (1, 1)


def _names(classifier: nn.Module, layer: Any) -> list[str]:
    """Dotted names of layers, which stay right when the classifier is copied."""
    layers = [] if layer is None else [layer] if isinstance(layer, nn.Module | str) else list(layer)
    known = dict(classifier.named_modules())
    names: list[str] = []
    for one in layers:
        name = one if isinstance(one, str) else next((name for name, module in known.items() if module is one), None)
        if name is None or name not in known:
            there = [name for name in known if name]
            raise ValueError(f"the classifier has no layer {one!r:.80}; some that it has: {there[:12]}")
        names.append(name)
    return names


def _own_size(classifier: nn.Module) -> int | None:
    """Side of the only pictures that a classifier takes, where it names one."""
    size = getattr(classifier, "image_size", getattr(getattr(classifier, "config", None), "image_size", None))
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _scale(maps: Tensor, percentile: float) -> Tensor:
    """Each map divided by its own percentile, within 0..1; a map of zeros stays one."""
    values = maps.flatten(1)
    top = values.quantile(percentile, dim=1, keepdim=True)
    # A map that is zero nearly everywhere has only its maximum to be measured by.
    top = torch.where(top > 0, top, values.amax(dim=1, keepdim=True))
    return torch.where(top > 0, values / top, 0.0).clamp(0, 1).reshape(maps.shape)
