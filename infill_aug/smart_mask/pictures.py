"""Two pictures in any form, as planes that can be compared and mixed; and the way back to the original's form."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor
from torchvision import tv_tensors

_DTYPES = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ORIENTATION = 0x0112  # EXIF tag
_INFO = ("dpi", "exif", "icc_profile")  # what a composite keeps of ``PIL.Image.info``
# Modes whose pixels have the same values in another one, which has one plane a channel.
_LOSSLESS = {"1": "L", "P": "RGB", "PA": "RGBA", "RGBX": "RGB"}
_STRIP = 1 << 20  # pixels that are converted at a time, so that the workspace of a huge picture stays small
_ASPECT = 0.03  # a resize that changes the sides' ratio by more is worth a word


@dataclass(frozen=True, eq=False)
class Pair:
    """Two pictures as planes of one shape and dtype, on one device.

    The planes may share memory with what was passed to ``pair_of``: do not write into them.

    Args:
        original: ``(B, C, H, W)`` in the dtype it came in: ``uint8``, ``uint16``, or floating point in 0..1.
        edited: the same shape, dtype and device.
        colours: how many of the first channels are colours: 1 grey, 3 RGB (YCbCr where the original is), 4 CMYK. A
            channel more is alpha.
        batched: whether a batch came in; else B is 1.
        notes: sentences on what had to be converted, for people.
    """

    original: Tensor
    edited: Tensor
    colours: int
    batched: bool
    notes: tuple[str, ...] = ()
    _space: str = field(default="", repr=False)
    _pack: Callable[[Tensor], Any] = field(default=lambda planes: planes, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.original.shape[-2], self.original.shape[-1]

    @property
    def plain(self) -> bool:
        """Whether the colours are grey or RGB, and not of another space."""
        return not self._space

    def rgb(self, planes: Tensor) -> Tensor:
        """Planes of this pair, or any cut of them, as RGB; alpha is flattened over mid grey.

        Args:
            planes: ``(..., C, h, w)`` in the dtype of ``original``.

        Returns:
            ``(..., 3, h, w)``, ``uint8`` where the planes are, else float32 in 0..1. Plain RGB of these dtypes is
            returned as it is, without a copy.

        Example:
            >>> import torch
            >>> pair = pair_of(torch.zeros(1, 4, 5, dtype=torch.uint8), torch.zeros(1, 4, 5, dtype=torch.uint8))
            >>> pair.rgb(pair.original).shape
            torch.Size([1, 3, 4, 5])
        """
        if self._space:
            return _convert(planes, self._space, "RGB")
        colours, alpha = planes[..., : self.colours, :, :], planes[..., self.colours :, :, :]
        colours = colours.expand(*colours.shape[:-3], 3, *colours.shape[-2:])
        if planes.dtype == torch.uint8:
            return _lay(colours, alpha, 128) if _transparent(alpha) else colours
        colours = _change_depth(colours, torch.float32)
        return _lay(colours, _change_depth(alpha, torch.float32), 0.5) if _transparent(alpha) else colours

    def pack(self, planes: Tensor) -> Any:
        """A composite in the form that the original had, or in the richer one that ``notes`` tells of.

        Args:
            planes: ``(B, C, H, W)`` in the dtype of ``original``.

        Returns:
            A tensor, array or PIL picture; never the memory of what came in.

        Example:
            >>> import numpy as np
            >>> grey = np.zeros((4, 5), np.uint8)
            >>> pair = pair_of(grey, grey)
            >>> pair.pack(pair.original).shape
            (4, 5)
        """
        memory = planes.untyped_storage().data_ptr()
        if memory in (self.original.untyped_storage().data_ptr(), self.edited.untyped_storage().data_ptr()):
            planes = planes.clone()
        return self._pack(planes)


def pair_of(original: Any, edited: Any, *, resize: bool = False) -> Pair:
    """Read an original and its edited copy, in whatever forms they are, as planes of the original's kind.

    Nothing of the original is lost: ``pair.pack(pair.original)`` has its pixels bit for bit, and the edited picture is
    brought to its size, depth and channels. A grey original becomes RGB where the edited one has colours. Where the
    edited one is transparent and the original has no alpha, the original shows through; where only the original has
    alpha, it stays. PIL pictures are turned upright by their EXIF orientation, and keep profile, EXIF and resolution.
    Colour profiles are not applied.

    Args:
        original: tensor ``(H, W)``, ``(C, H, W)`` or ``(B, C, H, W)``; array ``(H, W)``, ``(H, W, C)`` or
            ``(B, H, W, C)``; PIL picture; or the path of a file. ``uint8``, ``uint16`` or floating point in 0..1; the
            channels are grey, grey and alpha, RGB or RGBA. Files come back as PIL pictures. Pillow has no mode for
            colours of more than 8 bits: a PNG file that has them is read in full and comes back as a ``uint16`` array
            ``(H, W, C)``; so does a PIL picture of 16-bit or floating point greys whose edited copy has colours.
        edited: any of these, independently of the original, on any device.
        resize: bring the edited picture to the size of the original instead of refusing another size.

    Returns:
        A ``Pair`` on the device of the original.

    Raises:
        TypeError: something that is no picture.
        ValueError: sizes or numbers of pictures that differ, empty pictures, and shapes, dtypes, modes or values
            that are no picture's; a file of which Pillow would read 8 of 16 bits.
        OSError: a file that is not there or is no picture.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> pair = pair_of(Image.new("L", (5, 4)), torch.rand(3, 4, 5))
        >>> pair.original.shape, pair.pack(pair.edited).mode
        (torch.Size([1, 3, 4, 5]), 'RGB')
    """
    first, second = _read(original, "original"), _read(edited, "edited picture")
    if len(first.planes) != len(second.planes):
        raise ValueError(
            f"the original is {first.count} and the edited picture {second.count}; pass as many of the one as of the "
            "other, or call once for each picture"
        )
    second.planes = second.planes.to(first.planes.device)
    notes = []
    if second.space and second.space != first.space:
        if second.space == "CMYK":
            notes.append("the edited picture is CMYK and the original is not: the edit is read without colour profiles")
        second.planes, second.colours, second.space = _convert(second.planes, second.space, "RGB"), 3, ""
    if first.size != second.size:
        notes.append(_resize_note(first.size, second.size, resize))
        second.planes = _resize(second.planes, second.colours, first.planes.shape[-2:])
    if second.planes.dtype != first.planes.dtype:
        dtype = first.planes.dtype
        second.planes = _in_strips(lambda part: _change_depth(part, dtype), dtype, second.planes)
    if first.space == second.space:
        _fit_channels(first, second, notes)
    else:
        _fit_space(first, second, notes)
    return Pair(first.planes, second.planes, first.colours, first.batched, tuple(notes), first.space, first.pack)


@dataclass
class _Picture:
    """One side of a pair: its planes, what they mean, and the way back to its form."""

    planes: Tensor
    pack: Callable[[Tensor], Any]
    colours: int
    batched: bool = False
    space: str = ""  # the PIL mode of the planes where they are neither grey nor RGB
    is_pil: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.planes.shape[-1], self.planes.shape[-2]

    @property
    def count(self) -> str:
        return f"a batch of {len(self.planes)}" if self.batched else "a single picture"

    @property
    def alpha(self) -> Tensor:
        return self.planes[:, self.colours :]


def _read(value: Any, role: str) -> _Picture:
    if isinstance(value, str | os.PathLike):
        value = _open(value)
    if isinstance(value, PILImage.Image):
        picture = _from_pil(value, role)
    elif isinstance(value, np.ndarray):
        picture = _from_array(value, role)
    elif isinstance(value, Tensor):
        picture = _from_tensor(value, role)
    else:
        raise TypeError(
            f"the {role} must be a tensor, an array, a PIL picture or the path of a file, got {type(value).__name__}"
        )
    planes = picture.planes
    if 0 in planes.shape:
        raise ValueError(
            f"the {role} is empty: {len(planes)} pictures of {planes.shape[-1]} x {planes.shape[-2]} pixels"
        )
    if planes.is_floating_point():
        low, high = (float(v) for v in planes.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"the {role} is floating point and must lie in 0..1, got values from {low:.6g} to {high:.6g}; "
                "divide by 255, undo Normalize, or clamp(0, 1) a little overshoot"
            )
    return picture


def _open(path: str | os.PathLike[str]) -> PILImage.Image | np.ndarray[Any, Any]:
    with warnings.catch_warnings():
        # The file was named by the user: 100 megapixels are no attack.
        warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
        file = PILImage.open(path)
    with file:
        # The decoder's arguments tell what the file holds, the mode what Pillow makes of it.
        if ";16" not in str(file.tile) or file.mode.startswith("I"):
            file.load()
            return file
        if file.format != "PNG":
            raise ValueError(
                f"{os.fspath(path)} has 16 bits a colour, of which Pillow reads 8; read it by tifffile or OpenCV and "
                "pass the array"
            )
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(os.fspath(path), ImageReadMode.UNCHANGED, True).permute(1, 2, 0).numpy()


def _from_tensor(value: Tensor, role: str) -> _Picture:
    planes = value.detach().as_subclass(Tensor)
    planes = planes[None] if planes.ndim == 2 else planes
    batched = planes.ndim == 4
    if planes.ndim not in (3, 4) or planes.shape[-3] not in (1, 2, 3, 4):
        raise ValueError(
            f"the {role} must be a tensor (H, W), (C, H, W) or (B, C, H, W) with C of 1 to 4, got shape "
            f"{tuple(value.shape)}; channels come first in tensors: permute(2, 0, 1)"
        )
    _check_dtype(planes.dtype in _DTYPES, value.dtype, role)

    def pack(planes: Tensor) -> Tensor:
        planes = planes if batched else planes[0]
        if value.ndim == 2 and len(planes) == 1:
            planes = planes[0]
        return tv_tensors.wrap(planes, like=value) if isinstance(value, tv_tensors.TVTensor) else planes

    planes = planes if batched else planes[None]
    return _Picture(planes, pack, 1 if planes.shape[1] < 3 else 3, batched)


def _from_array(value: np.ndarray[Any, Any], role: str) -> _Picture:
    array = value[..., None] if value.ndim == 2 else value
    batched = array.ndim == 4
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(
            f"the {role} must be an array (H, W), (H, W, C) or (B, H, W, C) with C of 1 to 4, got shape {value.shape}; "
            "channels come last in arrays: transpose(1, 2, 0)"
        )
    _check_dtype(value.dtype.name in ("uint8", "uint16", "float16", "float32", "float64"), value.dtype, role)

    def pack(planes: Tensor) -> np.ndarray[Any, Any]:
        packed = _channels_last(planes)
        packed = packed if batched else packed[0]
        packed = packed[..., 0] if value.ndim == 2 and packed.shape[-1] == 1 else packed
        return packed.astype(value.dtype, copy=False)

    # PyTorch has neither foreign byte orders, nor strides that are negative or broken, nor memory that is read only.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    planes = torch.from_numpy(array).movedim(-1, -3)
    planes = planes if batched else planes[None]
    return _Picture(planes, pack, 1 if planes.shape[1] < 3 else 3, batched)


def _check_dtype(known: bool, dtype: Any, role: str) -> None:
    if not known:
        raise ValueError(
            f"the {role} must be uint8, uint16 or floating point in 0..1, got {dtype}; convert it: 8-bit values to "
            "uint8, a mask of true and false to uint8 times 255"
        )


def _from_pil(picture: PILImage.Image, role: str) -> _Picture:
    picture.load()
    if picture.getexif().get(_ORIENTATION, 1) in range(2, 9):
        picture = ImageOps.exif_transpose(picture)
    mode = _LOSSLESS.get(picture.mode, picture.mode)
    if mode in ("L", "RGB") and picture.has_transparency_data:
        mode += "A"
    if mode in ("LAB", "HSV", "La", "RGBa"):
        if role == "original":
            raise ValueError(
                f"the original is a PIL picture of mode {mode}, whose pixels can not be mixed and kept bit for bit; "
                f"convert it: picture.convert({_plain_mode(mode)!r})"
            )
        mode = _plain_mode(mode)
    info = {key: picture.info[key] for key in _INFO if key in picture.info}
    array = np.array(picture if mode == picture.mode else picture.convert(mode))
    if mode == "I":
        low, high = (array.min(), array.max()) if array.size else (0, 0)
        if low < 0 or high > 65535:
            raise ValueError(
                f"the {role} is a PIL picture of mode I, which must lie in 0..65535, got values from {low} to {high}"
            )
    if mode.startswith("I"):
        array = array.astype(np.uint16)
    read = _from_array(array, role)
    space = mode if mode in ("CMYK", "YCbCr") else ""
    colours = 4 if mode == "CMYK" else read.colours

    def pack(planes: Tensor) -> Any:
        packed = _channels_last(planes)[0]
        channels = packed.shape[-1]
        if packed.dtype == np.uint8:
            result_mode = space or {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        elif channels == 1:
            result_mode = mode
            packed = packed.astype({"I": "i4", "I;16B": ">u2"}.get(mode, packed.dtype))
        else:
            return packed
        result = PILImage.frombytes(result_mode, (packed.shape[1], packed.shape[0]), packed.tobytes())
        result.info.update(info)
        if (channels < 3) != (colours < 3):
            result.info.pop("icc_profile", None)  # a profile of greys says nothing of colours
        return result

    return _Picture(read.planes, pack, colours, space=space, is_pil=True)


def _plain_mode(mode: str) -> str:
    return {"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")


def _channels_last(planes: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(planes.movedim(1, -1).cpu().numpy())


def _fit_channels(first: _Picture, second: _Picture, notes: list[str]) -> None:
    """Give both the same colours and alpha."""
    if first.colours < second.colours:
        form = "RGB"
        if first.is_pil and first.planes.dtype != torch.uint8:
            form = "an array (H, W, C), since Pillow has no mode for RGB of more than 8 bits"
        notes.append(f"the original is grey and the edited picture has colours: the composite is {form}")
        _repeat_grey(first)
    elif second.colours < first.colours:
        _repeat_grey(second)
    _fit_alpha(second, first.planes[:, : first.colours], first.alpha, notes)


def _fit_space(first: _Picture, second: _Picture, notes: list[str]) -> None:
    """Bring the edited picture, grey or RGB, to the CMYK or YCbCr of the original."""
    if second.colours == 1:
        _repeat_grey(second)
    _fit_alpha(second, _convert(first.planes, first.space, "RGB"), first.alpha, notes)
    if first.space == "CMYK":
        notes.append(
            "the original is CMYK and the edited picture is not: the edit is converted without colour profiles"
        )
        second.planes = _in_strips(_to_cmyk, torch.uint8, second.planes, first.planes)
    else:
        second.planes = _convert(second.planes, "RGB", first.space)
    second.colours, second.space = first.colours, first.space


def _repeat_grey(picture: _Picture) -> None:
    batch, _, height, width = picture.planes.shape
    colours = picture.planes[:, :1].expand(batch, 3, height, width)
    alpha = picture.alpha
    picture.planes, picture.colours = torch.cat([colours, alpha], dim=1) if alpha.shape[1] else colours, 3


def _fit_alpha(second: _Picture, colours: Tensor, alpha: Tensor, notes: list[str]) -> None:
    """Give the edited picture alpha where the original has it, and lay it over the original where it has none."""
    edit, edit_alpha = second.planes[:, : second.colours], second.alpha
    if alpha.shape[1]:
        second.planes = second.planes if edit_alpha.shape[1] else torch.cat([edit, alpha], dim=1)
    elif _transparent(edit_alpha):
        notes.append("the edited picture is transparent in places: the original, which has no alpha, shows there")
        second.planes = _in_strips(_lay, edit.dtype, edit, edit_alpha, colours)
    else:
        second.planes = edit


def _transparent(alpha: Tensor) -> bool:
    """Whether there is alpha that hides anything."""
    return alpha.shape[-3] > 0 and bool((alpha != _top(alpha.dtype)).any())


def _lay(colours: Tensor, alpha: Tensor, base: Tensor | float) -> Tensor:
    """Colours over a base by their alpha, in the dtype of the colours."""
    wide = torch.float64 if colours.dtype == torch.float64 else torch.float32
    share = _change_depth(alpha, wide)
    mixed = colours.to(wide) * share + (base.to(wide) if isinstance(base, Tensor) else base) * (1 - share)
    return (mixed if colours.is_floating_point() else mixed.round()).to(colours.dtype)


def _top(dtype: torch.dtype) -> int:
    return 1 if dtype.is_floating_point else int(torch.iinfo(dtype).max)


def _change_depth(planes: Tensor, dtype: torch.dtype) -> Tensor:
    source, target = _top(planes.dtype), _top(dtype)
    if source != target:
        # The products of 8 and 16 bits are whole numbers that float32 has.
        wide = planes.to(torch.float64 if torch.float64 in (planes.dtype, dtype) else torch.float32) * target
        planes = (wide if source == 1 else wide / source).round() if target > 1 else wide / source
    return planes.to(dtype)


def _convert(planes: Tensor, mode: str, wanted: str) -> Tensor:
    """Planes ``(..., C, h, w)`` of one PIL mode as those of another, by Pillow, so that both agree bit for bit."""
    pictures = []
    for one in planes.reshape(-1, *planes.shape[-3:]):
        array = np.ascontiguousarray(one.movedim(0, -1).cpu().numpy())
        picture = PILImage.frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes())
        pictures.append(torch.from_numpy(np.array(picture.convert(wanted))).movedim(-1, 0))
    joined = torch.stack(pictures) if len(pictures) > 1 else pictures[0][None]
    return joined.to(planes.device).reshape(*planes.shape[:-3], -1, *planes.shape[-2:])


def _to_cmyk(rgb: Tensor, like: Tensor) -> Tensor:
    """RGB as the CMYK that Pillow shows as just that, with as much black as ``like`` has where it can be.

    The same colour has many mixtures; with another black than the original's a soft seam would be darker or brighter
    than both sides.
    """
    wide = rgb.to(torch.int32)
    white = torch.maximum(255 - like[:, 3:].to(torch.int32), wide.amax(dim=1, keepdim=True))
    ink = 255 - (wide * 255 + white // 2) // white.clamp(min=1)
    cmyk = torch.cat([ink, 255 - white], dim=1).to(torch.uint8)
    return torch.where((rgb == _convert(like, "CMYK", "RGB")).all(dim=1, keepdim=True), like, cmyk)


def _in_strips(function: Callable[..., Tensor], dtype: torch.dtype, *planes: Tensor) -> Tensor:
    """A function of pixels, applied to some rows of ``(B, C, H, W)`` at a time."""
    rows = max(1, _STRIP // planes[0].shape[-1])
    height = planes[0].shape[-2]
    result: Tensor | None = None
    for top in range(0, height, rows):
        part = function(*(p[:, :, top : top + rows] for p in planes))
        if result is None:
            result = part.new_empty((*part.shape[:2], height, part.shape[-1]), dtype=dtype)
        result[:, :, top : top + rows] = part
    assert result is not None
    return result


def _resize_note(wanted: tuple[int, int], size: tuple[int, int], allowed: bool) -> str:
    """What a resize does, for people.

    Raises:
        ValueError: it was not asked for.
    """
    if not allowed:
        raise ValueError(
            f"the original is {wanted[0]} x {wanted[1]} pixels and the edited picture {size[0]} x {size[1]}; "
            "resize=True brings the edited picture to the size of the original"
        )
    stretch = (wanted[0] / wanted[1]) / (size[0] / size[1])
    note = f"the edited picture was resized from {size[0]} x {size[1]} to {wanted[0]} x {wanted[1]} pixels"
    if max(stretch, 1 / stretch) > 1 + _ASPECT:
        note += (
            f", which makes it {max(stretch, 1 / stretch) - 1:.0%} {'wider' if stretch > 1 else 'taller'} in proportion"
        )
    return note


def _resize(planes: Tensor, colours: int, size: Sequence[int]) -> Tensor:
    """Bicubic, antialiased, with colours weighted by their alpha."""
    height, width = size
    if planes.dtype == torch.uint8 and planes.device.type == "cpu" and planes.shape[1] == colours:
        return nnf.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    top = _top(planes.dtype)
    wide = planes.to(torch.float64 if planes.dtype == torch.float64 else torch.float32)
    alpha = wide[:, colours:]
    if alpha.shape[1]:
        wide = torch.cat([wide[:, :colours] * alpha / top, alpha], dim=1)
    wide = nnf.interpolate(wide, (height, width), mode="bicubic", antialias=True)
    alpha = wide[:, colours:]
    if alpha.shape[1]:  # before the range is cut: both overshoot alike
        wide = torch.cat([wide[:, :colours] * top / alpha.clamp(min=1e-6), alpha], dim=1)
    wide = wide.clamp(0, top)
    return (wide.round() if top > 1 else wide).to(planes.dtype)
