"""Objects of COCO annotation files as masks: instances with polygons, and panoptic maps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageDraw
from torch.utils.data import Dataset
from torchvision.ops import masks_to_boxes


class CocoObjects(Dataset[tuple[PILImage.Image, dict[str, Any]]]):
    """Pictures of a COCO annotation file with one mask for each object; needs no further library.

    Samples are ``(picture, {"mask": (N, H, W) array of 0 and 1, "boxes": (N, 4) tensor of the masks' extents as xyxy,
    "labels": N category names})``. Crowds, objects given
    as run lengths and what a panoptic file has for stuff are left out, and so are pictures without an object that is
    left.

    Args:
        images: folder of the pictures.
        annotations: JSON file, of instances or panoptic.
        panoptic: folder of the panoptic PNG files, for a panoptic file.
        licenses: keep pictures under these licence ids of the file only; ``None`` keeps all.
        min_area: smallest share of the picture that an object covers, 0..1.

    Raises:
        FileNotFoundError: no such file, or no object is left.

    Example:
        >>> CocoObjects("pictures", "nowhere.json")
        Traceback (most recent call last):
        FileNotFoundError: no annotation file 'nowhere.json'
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        panoptic: str | Path | None = None,
        *,
        licenses: Sequence[int] | None = None,
        min_area: float = 0.0,
    ) -> None:
        if not Path(annotations).is_file():
            raise FileNotFoundError(f"no annotation file {str(annotations)!r}")
        data = json.loads(Path(annotations).read_text(encoding="utf-8"))
        self.images, self.panoptic = Path(images), Path(panoptic) if panoptic is not None else None
        names = {row["id"]: row["name"] for row in data.get("categories", ())}
        things = {row["id"] for row in data.get("categories", ()) if row.get("isthing", 1)}
        objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in data["annotations"]:
            parts = (
                [{**part, "file": row["file_name"]} for part in row["segments_info"]]
                if "segments_info" in row
                else [row]
            )
            for part in parts:
                drawable = "file" in part or isinstance(part.get("segmentation"), list)
                if drawable and not part.get("iscrowd") and (part["category_id"] in things or not names):
                    objects[row["image_id"]].append({**part, "name": names.get(part["category_id"], "object")})
        self.rows: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        for row in data["images"]:
            least = min_area * row["height"] * row["width"]
            own = [part for part in objects[row["id"]] if part["area"] >= least]
            if own and (licenses is None or row.get("license") in licenses):
                self.rows.append((row, own))
        if not self.rows:
            raise FileNotFoundError(f"{str(annotations)!r} has no object of the wanted size and licences {licenses}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[PILImage.Image, dict[str, Any]]:
        """Picture and objects of one sample.

        Raises:
            ValueError: a picture that is not of the annotated size; a panoptic file without ``panoptic``.
        """
        row, objects = self.rows[index]
        with PILImage.open(self.images / row["file_name"]) as file:
            picture = file.convert("RGB")
        if picture.size != (row["width"], row["height"]):
            raise ValueError(
                f"picture {row['file_name']} has size {picture.size}, its annotations {(row['width'], row['height'])}; "
                "give the folder of the pictures that were annotated"
            )
        masks = [self._mask(part, picture.size) for part in objects]
        seen = [i for i, mask in enumerate(masks) if mask.any()]  # an object may be smaller than a pixel
        stack = np.stack([masks[i] for i in seen]) if seen else np.zeros((0, *picture.size[::-1]), np.uint8)
        boxes = masks_to_boxes(torch.from_numpy(stack))
        boxes[:, 2:] += 1  # to the far side of the last pixel
        return picture, {"mask": stack, "boxes": boxes, "labels": [objects[i]["name"] for i in seen]}

    def _mask(self, part: dict[str, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
        if "file" in part:
            if self.panoptic is None:
                raise ValueError("a panoptic annotation file needs panoptic=, the folder of its PNG files")
            colours = np.asarray(PILImage.open(self.panoptic / part["file"]).convert("RGB")).astype(np.int64)
            return (colours @ np.array([1, 256, 65536]) == part["id"]).astype(np.uint8)
        canvas = PILImage.new("1", size)
        for polygon in part["segmentation"]:
            ImageDraw.Draw(canvas).polygon(polygon, fill=1)
        return np.asarray(canvas).astype(np.uint8)
