"""Random style of another picture: its frequencies, or the statistics of its bands or features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from infill_aug.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from infill_aug.variation.color import affine, opponent_matrices, pick
from infill_aug.variation.operation import Operation, column, uniform
from infill_aug.variation.style import colour_of
from infill_aug.variation.texture import enlarged, smaller

# Gains of a band's deviation: below, a picture turns to mush; above, its noise is all there is to see.
_GAINS = (0.4, 2.5)
# Style pictures that are kept of a folder, evenly spaced, and their side in pixels.
_MOST, _SIDE = 256, 256


class FourierMix(Operation):
    """Low frequencies as strong as in another picture, phase kept (Yang and Soatto, 2020; Xu et al., 2021)."""

    group = "style"
    mixes = needs_others = True

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """How far to go, in which band, cycles a pixel, and which donor."""
        # Of wide bands, amplitudes that do not fit the phase lie on the picture like clouds.
        band = 0.005 * (uniform(strength) * math.log(6)).exp()
        return {"weight": strength, "band": band, "donor": uniform(strength)}

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """Amplitudes change by at most 2 times, and ever less beyond the band: cut off at once they would ring."""
        height, width = image.shape[-2:]
        spectrum = torch.fft.rfft2(image)
        wanted = torch.fft.rfft2(pick(params["donors"], params["donor"])).abs()
        gain = (wanted / spectrum.abs().clamp(min=1e-6)).clamp(0.5, 2)
        down = torch.fft.fftfreq(height, device=image.device)[:, None]
        right = torch.fft.rfftfreq(width, device=image.device)
        window = (-0.5 * (down * down + right * right) / column(params["band"]).square()).exp()
        mixed = spectrum * (1 + column(params["weight"]) * window * (gain - 1))
        return torch.fft.irfft2(mixed, s=(height, width))


class StyleTransfer(Operation):
    """Statistics of a style picture moved onto the picture (Heeger and Bergen, 1995; Huang and Belongie, 2017).

    Of each band of a pyramid, and of each of lightness and two opponent colours, the deviation; of the last one the
    mean too. With an encoder, mean and deviation of the features of VGG-19's first convolution instead, taken back into
    a picture by least squares.

    Args:
        strength: 0..1, the range that each sample's strength is drawn from; a number s stands for s / 4 to s.
        folder: style pictures; ``None``: other pictures of the batch are the style.
        encoder: file of torchvision's weights of VGG-19; ``None``: the pyramid.
        p: probability of a sample to be changed, where the operation is used alone.
        same_on_batch: one draw for all samples.
        keepdim: whether a picture without batch dimension comes back without.

    Raises:
        FileNotFoundError: no such folder or file, or no picture in the folder.
        ValueError: a file without the weights of the first convolution.

    Example:
        >>> StyleTransfer(strength=0.5)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """

    group = "style"
    mixes = True

    def __init__(
        self,
        strength: float | Sequence[float] = (0.25, 1.0),
        folder: str | None = None,
        encoder: str | None = None,
        p: float = 1.0,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(strength, p=p, same_on_batch=same_on_batch, keepdim=keepdim)
        self.folder, self.encoder = folder, encoder
        self.needs_others = folder is None
        self._filters: tuple[Tensor, ...] | None = None if encoder is None else _first_convolution(encoder)
        # Plain tensors: they are no part of a checkpoint.
        self._pictures: Tensor | None = None
        self._measured: dict[Any, Tensor] = {}

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """How far to go, and which style picture."""
        return {"weight": strength, "donor": uniform(strength)}

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """Deviations change by at most 2.5 times."""
        if self._filters is not None:
            self._filters = tuple(each.to(image.device) for each in self._filters)
        if self.folder is None:
            wanted = self._measure(pick(params["donors"], params["donor"]))
        else:
            wanted = pick(self._styles(self.folder, image), params["donor"])
        weight = params["weight"][:, None, None]
        if self._filters is None:
            return _restyle_bands(image, wanted, weight)
        return _restyle_features(image, wanted, weight, *self._filters)

    def _measure(self, pictures: Tensor) -> Tensor:
        if self._filters is None:
            return _band_statistics(_bands(pictures))
        return _feature_statistics(_patches(pictures), *self._filters[:2])

    def _styles(self, folder: str, like: Tensor) -> Tensor:
        """Statistics of the folder's pictures at the size of these, measured once for a size and device."""
        key = ((like.shape[-2], like.shape[-1]), like.device)
        if key not in self._measured:
            if self._pictures is None:
                self._pictures = _read_styles(folder)
            measured = []
            for part in self._pictures.split(16):
                pictures = part.to(like.device) / 255
                measured.append(self._measure(F.interpolate(pictures, key[0], mode="bilinear", antialias=True)))
            self._measured[key] = torch.cat(measured)
        return self._measured[key]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is read and measured again where it is needed."""
        return {**self.__dict__, "_pictures": None, "_measured": {}}


def _read_styles(folder: str) -> Tensor:
    """Pictures of a folder, squashed into squares: ``(m, 3, 256, 256)`` uint8."""
    from infill_aug.confidence.folders import PictureFolder

    try:
        pictures = PictureFolder(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"style transfer reads its styles from a folder of pictures: {error}; name one that holds some, or leave "
            "folder out to take the style of other pictures of the batch"
        ) from error
    count = len(pictures)
    chosen = sorted({place * count // min(count, _MOST) for place in range(min(count, _MOST))})
    return torch.stack([pil_to_tensor(pictures[place].convert("RGB").resize((_SIDE, _SIDE))) for place in chosen])


def _toward(own: Tensor, wanted: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gain of deviations, and shift of means: from statistics ``(n, 2, C)`` some of the way to others."""
    gain = (wanted[:, 1] / own[:, 1].clamp(min=1e-3)).clamp(*_GAINS)
    return torch.lerp(torch.ones_like(gain), gain, weight[:, 0]), weight[:, 0] * (wanted[:, 0] - own[:, 0])


def _bands(image: Tensor) -> list[Tensor]:
    """Laplacian pyramid (Burt and Adelson, 1983) of lightness and opponent colours: what adds up to the picture."""
    image = affine(image, opponent_matrices(image)[0].expand(len(image), -1, -1), image.new_zeros(len(image), 3))
    bands: list[Tensor] = []
    while min(image.shape[-2:]) >= 8 and len(bands) < 4:
        small = smaller(image)
        bands.append(image - enlarged(small, image))
        image = small
    return [*bands, image]


def _band_statistics(bands: list[Tensor]) -> Tensor:
    """Mean and deviation of each channel of each band, ``(n, 2, 3 bands)``; only the last has a mean."""
    means = [band.mean(dim=(2, 3)) for band in bands]
    # Of sums, since var_mean takes fifty times as long: bands have means near 0, and the last one is small.
    centred = [*bands[:-1], bands[-1] - column(means[-1])]
    deviation = [torch.linalg.vector_norm(band, dim=(2, 3)) / math.sqrt(band[0, 0].numel()) for band in centred]
    mean = torch.cat([*(torch.zeros_like(each) for each in means[:-1]), means[-1]], dim=1)
    return torch.stack([mean, torch.cat(deviation, dim=1)], dim=1)


def _restyle_bands(image: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    bands = _bands(image)
    own = _band_statistics(bands)
    gain, shift = _toward(own, wanted, weight)
    # About its mean, so that the mean does not grow with the deviation.
    shift = shift + (1 - gain) * own[:, 0]
    total = torch.zeros_like(bands[-1])
    for band, factor, offset in zip(bands[::-1], gain.split(3, 1)[::-1], shift.split(3, 1)[::-1], strict=True):
        total = enlarged(total, band) + column(factor) * band + column(offset)
    return affine(total, opponent_matrices(image)[1].expand(len(image), -1, -1), image.new_zeros(len(image), 3))


def _first_convolution(path: str) -> tuple[Tensor, ...]:
    """VGG-19's first convolution as a matrix of patches ``(64, 27)``, its bias, and what takes features back."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path!r}; encoder is the file of torchvision's weights of VGG-19")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    names = ("features.0.weight", "features.0.bias")
    if not isinstance(weights, dict) or any(name not in weights for name in names):
        raise ValueError(f"{path!r} holds no {' and '.join(names)}: encoder is torchvision's weights of VGG-19")
    matrix, bias = (weights[name].float() for name in names)
    if matrix.shape[1:] != (3, 3, 3):
        raise ValueError(f"features.0.weight of {path!r} must be (64, 3, 3, 3), got {tuple(matrix.shape)}")
    matrix = matrix.flatten(1)
    # Patterns that hardly any filter sees are left alone: taken back they would be noise.
    return matrix, bias, torch.linalg.pinv(matrix, rtol=0.05)


def _patches(image: Tensor) -> Tensor:
    """3x3 patches as VGG-19 sees them, ``(n, 27, m)``; of pictures that are not small a quarter of them."""
    mean, deviation = colour_of(image, *IMAGENET_MEAN), colour_of(image, *IMAGENET_STD)
    height, width = image.shape[-2:]
    padded = F.pad((image - mean) / deviation, (1, 1, 1, 1), mode="replicate")
    step = 2 if min(height, width) >= 64 else 1
    shifted = [padded[..., y : y + height : step, x : x + width : step] for y in range(3) for x in range(3)]
    return torch.stack(shifted, dim=2).view(len(image), 27, -1)


def _feature_statistics(patches: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """Mean and deviation of the features, ``(n, 2, 64)``: those of patches say it all, since features are linear."""
    middle = patches.mean(dim=2)
    covariance = patches @ patches.transpose(1, 2) / patches.shape[2] - middle[:, :, None] * middle[:, None]
    deviation = ((matrix @ covariance) * matrix).sum(dim=2).clamp(min=0).sqrt()
    return torch.stack([middle @ matrix.T + bias, deviation], dim=1)


def _restyle_features(
    image: Tensor, wanted: Tensor, weight: Tensor, matrix: Tensor, bias: Tensor, back: Tensor
) -> Tensor:
    """Features normalised as in AdaIN, and the picture whose patches come closest to them."""
    patches = _patches(image)
    gain, shift = _toward(_feature_statistics(patches, matrix, bias), wanted, weight)
    # All of it is linear: of a patch, and of the mean of the nine patches that a pixel lies in, which fits them best.
    # So it is one convolution of 5x5, with each sample's own kernel.
    change = back @ ((gain - 1)[:, :, None] * matrix)
    offset = back @ shift[:, :, None] - change @ patches.mean(dim=2, keepdim=True)
    count = len(image)
    change = change.view(count, 3, 3, 3, 3, 3, 3)
    kernel = image.new_zeros(count, 3, 3, 5, 5)
    for y in range(3):
        for x in range(3):
            kernel[..., 2 - y : 5 - y, 2 - x : 5 - x] += change[:, :, y, x] / 9
    deviation = colour_of(image, *IMAGENET_STD)
    padded = F.pad((image - colour_of(image, *IMAGENET_MEAN)) / deviation, (2, 2, 2, 2), mode="replicate")
    moved = F.conv2d(padded.flatten(0, 1)[None], kernel.flatten(0, 1), groups=count).view(image.shape)
    return image + (moved + column(offset.view(count, 3, 9).mean(dim=2))) * deviation
