"""Folders of pictures, and of pictures with label masks as segmentation sets are published."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

_PICTURES = {*IMG_EXTENSIONS, ".pbm"}
# What names of pictures and of their masks carry besides what they share, as in Frame00001-org.jpg, Frame00001-gt.pbm.
_MARK = re.compile(r"[-_](org|img|image|gt|mask|masks|seg|label|labels|segmentation|trimap)$", re.IGNORECASE)


class PictureFolder(Dataset[PILImage.Image]):
    """All pictures of a folder and its sub-folders, without labels.

    Args:
        folder: the folder.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.

    Example:
        >>> PictureFolder("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: no folder 'nowhere'
    """

    def __init__(self, folder: str | Path) -> None:
        self.paths = _files(folder)
        if not self.paths:
            raise FileNotFoundError(f"no pictures in {str(folder)!r}; read are {sorted(_PICTURES)}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> PILImage.Image:
        """One picture, as it is meant to be seen."""
        with PILImage.open(self.paths[index]) as file:
            return ImageOps.exif_transpose(file)


class MaskFolder(Dataset[tuple[PILImage.Image, dict[str, Any]]]):
    """Pictures of one folder with masks of another, matched by name, sub-folders included.

    Three layouts are read: one mask of the picture's name (ECSSD, DUTS, LaPa, Oxford-IIIT Pet); the same with a mark
    (``Frame00001-org.jpg`` and ``Frame00001-gt.pbm``, Figaro1k); and one file for each part, ``NAME_PART.png``
    (CelebAMask-HQ, whose ``00000_hair.png`` belongs to ``0.jpg``). Samples are ``(picture, {"mask": mask})``: read
    them with ``MaskConfidence("mask", ...)``. Pictures without a mask are left out, and counted in ``without``. Where
    a name occurs in several sub-folders, a mask belongs to the picture in the sub-folder of the same name.

    Args:
        images: folder of pictures.
        masks: folder of masks: indexed or grey pictures of label values, or one binary picture for each part.

    Attributes:
        classes: names of the parts; empty where a mask holds label values. The mask of part ``i`` has value ``i + 1``.
        without: how many pictures have no mask.

    Raises:
        FileNotFoundError: a folder is not there, or no picture has a mask.
        ValueError: pictures or masks that cannot be told apart by sub-folder and name.

    Example:
        >>> MaskFolder("pictures", "nowhere")
        Traceback (most recent call last):
        FileNotFoundError: no folder 'pictures'
    """

    def __init__(self, images: str | Path, masks: str | Path) -> None:
        pictures, labels = _files(images), _files(masks)
        found, twins = _match(pictures, labels)
        if twins:  # names alone do not tell which mask is whose
            found, twins = _match(pictures, labels, Path(images), Path(masks))
        if twins:
            raise ValueError(
                f"files of one name, of which it is not clear what belongs to what: {twins[0][:3]}; part them"
            )
        if not found:
            raise FileNotFoundError(
                f"none of the {len(pictures)} pictures in {str(images)!r} has a mask of its name among the "
                f"{len(labels)} files in {str(masks)!r}; such as {[p.name for p in pictures[:2]]} and "
                f"{[p.name for p in labels[:2]]}"
            )
        # A whole mask, where there is one, is the mask; parts of the same name belong to other pictures then.
        whole = any("" in its for _, its in found)
        self.samples = [(path, its) for path, its in found if not whole or "" in its]
        self.classes = () if whole else tuple(sorted({part for _, its in self.samples for part in its}))
        self.without = len(pictures) - len(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[PILImage.Image, dict[str, Any]]:
        """Picture and mask of one sample.

        Raises:
            ValueError: a mask whose shape is not the picture's.
        """
        path, parts = self.samples[index]
        with PILImage.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
        if not self.classes:
            return picture, {"mask": _mask(parts[""], picture)}
        empty = np.zeros(picture.size[::-1], np.uint8)
        stack = [
            (_mask(parts[name], picture) != 0).astype(np.uint8) * (value + 1) if name in parts else empty
            for value, name in enumerate(self.classes)
        ]
        return picture, {"mask": np.stack(stack)}

    def weights(self, class_weights: Mapping[str, float]) -> dict[int, float]:
        """Class weights by value of the mask, from those by name of a part.

        Args:
            class_weights: confidence 0..1 by name; names of label values are those values.

        Raises:
            ValueError: a name that there is not; the message lists those there are.

        Example:
            >>> MaskFolder.weights(type("Some", (), {"classes": ("hair", "skin")})(), {"skin": 0.3})
            {2: 0.3}
        """
        unknown = [name for name in class_weights if not (name in self.classes if self.classes else name.isdigit())]
        if unknown:
            there = list(self.classes) or "label values, such as '1'"
            raise ValueError(f"the masks have no classes {unknown}; they have {there}")
        return {
            self.classes.index(name) + 1 if self.classes else int(name): float(weight)
            for name, weight in class_weights.items()
        }


def _files(folder: str | Path) -> list[Path]:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}")
    # Hidden files, of which archives packed on a Mac are full, bear a picture's suffix and are none.
    paths = (path for path in Path(folder).rglob("*") if not path.name.startswith("."))
    return sorted(path for path in paths if path.suffix.lower() in _PICTURES)


def _match(
    pictures: list[Path], labels: list[Path], images: Path | None = None, masks: Path | None = None
) -> tuple[list[tuple[Path, dict[str, Path]]], list[list[str]]]:
    """Pictures with their masks by part, and files that share a name; with the folders' roots, a sub-folder too."""
    own: dict[tuple[str, str], list[Path]] = defaultdict(list)
    parts: dict[tuple[str, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in pictures:
        own[_place(path, images), _plain(path.stem)].append(path)
    for path in labels:
        for name, part in _readings(path.stem):
            parts[_place(path, masks), name][part].append(path)
    both = [(own[name], parts[name]) for name in own if name in parts]
    twins = [[*map(str, same)] for mine, its in both for same in (mine, *its.values()) if len(same) > 1]
    return [(mine[0], {part: paths[0] for part, paths in its.items()}) for mine, its in both], twins


def _place(path: Path, root: Path | None) -> str:
    return "" if root is None else path.parent.relative_to(root).as_posix()


def _plain(stem: str) -> str:
    """What a picture and its mask have in common: without marks, and a number without its zeros."""
    name = _MARK.sub("", stem)
    return str(int(name)) if name.isdigit() else name


def _readings(stem: str) -> list[tuple[str, str]]:
    """``(name of the picture, part)`` that a mask's name may mean."""
    readings = [(_plain(stem), "")]
    name, _, part = stem.partition("_")
    if part and not _MARK.search(stem):
        readings.append((_plain(name), part))
    return readings


def _mask(path: Path, picture: PILImage.Image) -> np.ndarray[Any, Any]:
    with PILImage.open(path) as file:
        mask = file.copy() if file.mode in ("1", "L", "P", "I", "I;16") else file.convert("L")
    if mask.size != picture.size:
        # Some sets keep their masks smaller: of the same shape they fit all the same, of another they don't.
        if abs(mask.width * picture.height / (mask.height * picture.width) - 1) > 0.02:
            raise ValueError(f"mask {path.name} has size {mask.size}, its picture {picture.size}: not the same shape")
        mask = mask.resize(picture.size, PILImage.Resampling.NEAREST)
    return np.asarray(mask).astype(np.int32 if mask.mode.startswith("I") else np.uint8)
