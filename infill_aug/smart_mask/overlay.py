"""Pictures for people: what was taken from an edited one and what was not; and files that keep every pixel."""

from __future__ import annotations

import os
import struct
import textwrap
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from infill_aug.functional.masks import dilate
from infill_aug.smart_mask.pictures import pair_of
from infill_aug.smart_mask.result import PictureReport, SmartMaskResult

_WIDTH, _HEIGHT = 1600, 800  # at most: of the whole, and of one panel
_GAP, _LINE, _FONT = 6, 22, 15
_NARROWEST, _TITLE = 24, 190  # pixels that the narrowest picture is stretched to, and that a title needs
_TAKEN, _LEFT = (0, 190, 255), (255, 140, 0)  # blue and orange: apart for colour-blind eyes too
_MOST_LEFT = 12  # boxes of regions that were not taken; noise makes them by the hundred
_TITLES = ("original", "edited", "taken", "composite")
# PIL modes that PNG holds without loss, and JPEG at all; arrays have none.
_PNG = ("1", "L", "LA", "RGB", "RGBA", "I;16", "")
_JPEG = ("L", "RGB", "CMYK")
# A third of the time of level 6 for files as small, on photographs.
_FAST, _DEFLATE, _FINE = {"compress_level": 3}, {"compression": "tiff_adobe_deflate"}, {"quality": 95, "subsampling": 0}
SUFFIXES: dict[str, dict[str, Any]] = {
    ".png": _FAST, ".tif": _DEFLATE, ".tiff": _DEFLATE, ".jpg": _FINE, ".jpeg": _FINE
}  # fmt: skip


def overlay(original: Any, result: SmartMaskResult, edited: Any = None) -> Image.Image:
    """Original, edited picture, what was taken, and the composite beside each other.

    In the third panel, what stays the original's is dark and grey, what is taken has its colours and a blue outline.
    Boxes are the regions that differ: blue those taken, orange the strongest of those not taken, with their mean
    difference (CIEDE2000). Below stand the confidence and what else a person should know.

    Args:
        original: what ``SmartMask`` was called with: file, PIL picture, array or tensor, of any size; or a batch.
        result: what it returned.
        edited: likewise what it was called with; without it, the panel is left out.

    Returns:
        RGB, at most 1600 pixels wide; small pictures are enlarged. One row or two for each picture of a batch.

    Raises:
        TypeError: something that is no picture.
        ValueError: pictures that are no pictures, or not as many as the result has.

    Example:
        >>> from infill_aug.smart_mask.result import PictureReport
        >>> picture = torch.zeros(3, 20, 30, dtype=torch.uint8)
        >>> report = PictureReport(threshold=5.0, unit="CIEDE2000", regions=(), confidence=1.0, share=0.0)
        >>> overlay(picture, SmartMaskResult(torch.zeros(1, 20, 30), picture, (report,))).size
        (978, 730)
    """
    masks = result.mask.detach().cpu().reshape(-1, 1, *result.mask.shape[-2:])
    shown = {"original": original, "edited": edited, "composite": result.composite}
    pictures = {name: small_rgb(one, _WIDTH)[0] for name, one in shown.items() if one is not None}
    for name, batch in pictures.items():
        if len(batch) != len(masks):
            raise ValueError(
                f"the result is of {len(masks)} pictures, {name} has {len(batch)}; pass what it was made of"
            )
    rows = [
        _sheet({name: batch[i] for name, batch in pictures.items()}, masks[i : i + 1], result.reports[i])
        for i in range(len(masks))
    ]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        sheet.paste(row, (0, sum(above.height for above in rows[:i])))
    return sheet


def small_rgb(picture: Any, side: int) -> tuple[Tensor, tuple[int, int]]:
    """Any picture as RGB in 8 bits, scaled down to be looked at.

    Args:
        picture: file, PIL picture, array or tensor as ``SmartMask`` takes them; upright by its EXIF orientation.
        side: pixels, that the longer side has at most.

    Returns:
        ``(B, 3, h, w)`` ``uint8`` on the CPU; and the picture's own height and width.

    Example:
        >>> small, size = small_rgb(Image.new("CMYK", (400, 100)), 40)
        >>> small.shape, size
        (torch.Size([1, 3, 10, 40]), (100, 400))
    """
    if isinstance(picture, str | os.PathLike):
        with _opened(picture) as picture:
            picture.load()
    pair = pair_of(picture, picture)
    height, width = pair.original.shape[-2:]
    step = max(1, max(height, width) // (2 * side))  # what is huge is never converted in full
    rgb = pair.rgb(pair.original[..., ::step, ::step]).cpu()
    scale = min(1.0, side / max(height, width))
    small = [max(1, round(height * scale)), max(1, round(width * scale))]
    return F.resize(F.to_dtype(rgb, torch.uint8, scale=True), small, antialias=True), (height, width)


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    with warnings.catch_warnings():  # whoever names a file means it
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def _sheet(pictures: dict[str, Tensor], mask: Tensor, report: PictureReport) -> Image.Image:
    """One picture's panels, two in a row, tall ones all in a row, with their titles and a text below."""
    full, titles = tuple(mask.shape[-2:]), [name for name in _TITLES if name in pictures or name == "taken"]
    columns = len(titles) if full[0] > 2 * full[1] else 2
    limit = (_WIDTH - (columns + 1) * _GAP) // columns
    scale = min(limit / full[1], _HEIGHT / full[0])
    if scale > 1:  # small ones by whole pixels, so that their pixels can be told
        scale = min(int(scale), max(1, round(480 / max(full))))
    size = [min(most, max(_NARROWEST, round(side * scale))) for side, most in zip(full, (_HEIGHT, limit), strict=True)]
    tiles = {name: _fit(picture[None], size) for name, picture in pictures.items()}
    tiles["taken"] = _taken(tiles["composite"], nnf.interpolate(mask.float(), size, mode="area"))

    cell = max(size[1], _TITLE)
    rows = -(-len(titles) // columns)
    lines = textwrap.wrap(_text(report), (columns * (cell + _GAP) - _GAP) // (_FONT // 2))
    extent = (columns * (cell + _GAP) + _GAP, rows * (size[0] + _LINE + _GAP) + len(lines) * _LINE + 2 * _GAP)
    sheet = Image.new("RGB", extent, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for i, name in enumerate(titles):
        left, top = _GAP + i % columns * (cell + _GAP), _GAP + i // columns * (size[0] + _LINE + _GAP)
        title = f"taken: {report.share:.1%} of the picture" if name == "taken" else name
        draw.text((left, top), title, fill="black", font=font)
        tile = F.to_pil_image(tiles[name][0])
        if name == "taken":
            _draw_regions(tile, report, size[1] / full[1], size[0] / full[0])
        sheet.paste(tile, (left, top + _LINE))
    left, top = _GAP, extent[1] - _GAP - len(lines) * _LINE
    draw.multiline_text((left, top), "\n".join(lines), fill="black", font=font, spacing=_LINE - _FONT)
    return sheet


def _fit(picture: Tensor, size: list[int]) -> Tensor:
    grows = size[0] >= picture.shape[-2] and size[1] >= picture.shape[-1]
    how = F.InterpolationMode.NEAREST if grows else F.InterpolationMode.BILINEAR
    return F.resize(picture, size, how, antialias=not grows)


def _taken(composite: Tensor, mask: Tensor) -> Tensor:
    colours = composite.float()
    kept = colours.mean(dim=1, keepdim=True) * 0.45 + 15
    view = torch.lerp(kept.expand_as(colours), colours, mask)
    edge = dilate(mask > 0, 2) & (mask <= 0)  # shows a speck, however far it is scaled down
    return torch.where(edge, torch.tensor(_TAKEN).float().reshape(1, 3, 1, 1), view).round().to(torch.uint8)


def _draw_regions(tile: Image.Image, report: PictureReport, across: float, down: float) -> None:
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(_FONT - 2)
    left_out = [region for region in report.regions if not region.taken][:_MOST_LEFT]
    for region in left_out + [region for region in report.regions if region.taken]:
        colour = _TAKEN if region.taken else _LEFT
        left, top, right, bottom = (round(v * f) for v, f in zip(region.box, (across, down) * 2, strict=True))
        right, bottom = max(left + 2, right - 1), max(top + 2, bottom - 1)
        draw.rectangle((left, top, right, bottom), outline=colour, width=1)
        label = f"{region.strength:.0f}" if region.strength >= 10 else f"{region.strength:.1f}"
        wide = draw.textlength(label, font=font) + 4
        x, y = max(0, min(left, tile.width - wide)), top - 16 if top >= 16 else min(bottom, tile.height - 16)
        draw.rectangle((x, y, x + wide, y + 15), fill=colour)
        draw.text((x + 2, y), label, fill="black", font=font)


def _text(report: PictureReport) -> str:
    taken = sum(region.taken for region in report.regions)
    return (
        f"confidence {report.confidence:.2f}; {taken} of {len(report.regions)} regions taken (blue; orange: not taken; "
        f"numbers: mean CIEDE2000 difference). {report.note}"
    ).strip()


def fitting_path(composite: Any, path: Path) -> Path:
    """The path, with another suffix where files of its own can't hold the pixels: ``.png``, or ``.tif`` for CMYK.

    Args:
        composite: PIL picture, or array ``(H, W)`` or ``(H, W, C)`` of ``uint16``.
        path: ends in one of ``SUFFIXES``.

    Example:
        >>> fitting_path(Image.new("CMYK", (2, 2)), Path("edit.png")).name
        'edit.tif'
    """
    mode = getattr(composite, "mode", "")
    modes = {".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG}.get(path.suffix.lower(), (mode,) if mode else ())
    return path if mode in modes else path.with_suffix(".png" if mode in _PNG else ".tif")


def save_lossless(composite: Any, path: Path, like: Path | None = None) -> None:
    """Write a composite so that every pixel comes back as it is, unless the path asks for JPEG.

    Args:
        composite: PIL picture, whose colour profile, EXIF and resolution are written too; or array ``(H, W)`` or
            ``(H, W, C)`` of ``uint16``, for which Pillow has no mode.
        path: as ``fitting_path`` returns it.
        like: picture file whose colour profile an array gets.

    Raises:
        OSError: the file can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_lossless(np.full((2, 3, 3), 40000, np.uint16), Path(folder) / "deep.png")
        ...     pair_of(Path(folder) / "deep.png", Path(folder) / "deep.png").original.unique().tolist()
        [40000]
    """
    if isinstance(composite, Image.Image):
        kept = {key: composite.info[key] for key in ("dpi", "exif", "icc_profile") if key in composite.info}
        # TIFF's compression turns YCbCr into RGB.
        how = {} if composite.mode == "YCbCr" else SUFFIXES[path.suffix.lower()]
        composite.save(path, **kept, **how)
        return
    profile = None
    if like is not None:
        with _opened(like) as file:
            profile = file.info.get("icc_profile")
    path.write_bytes(_png(composite, profile))


def _png(pixels: Any, profile: bytes | None) -> bytes:
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, -1)
    # Each row less the one above (filter 2), modulo 256.
    lines = np.concatenate((np.full((height, 1), 2, np.uint8), np.diff(rows, axis=0, prepend=rows[:1] * 0)), axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
    if profile:
        chunks.insert(1, (b"iCCP", b"profile\0\0" + zlib.compress(profile)))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
