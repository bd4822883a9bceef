"""Looking into a store: what a recipe refers to, and some of it as a picture."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid

from infill_aug.cache.codec import decode_pixels
from infill_aug.cache.store import InfillStore
from infill_aug.infill.gate import kind_of


def entries(store: InfillStore) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and content of every entry: one an image and recipe."""
    for key in store:
        record = store.locate(key)
        payload = store.get(key) if record is not None and record.ext == "json" else None
        if payload is not None:
            yield key, json.loads(payload)


def keys_of_recipes(store: InfillStore, recipes: Iterable[str]) -> set[str]:
    """Keys of everything that some recipes refer to: entries, maps and infills.

    Args:
        store: an open store.
        recipes: fingerprints.

    Raises:
        ValueError: a recipe that the store does not have.
    """
    wanted = set(recipes)
    known = {name.removeprefix("recipe-") for name in store.documents("recipe-")}
    if wanted - known:
        raise ValueError(f"the store has no recipes {sorted(wanted - known)}; it has {sorted(known)}")
    keys: set[str] = set()
    for key, entry in entries(store):
        if entry["recipe"] in wanted:
            keys |= {key, entry["map"], *(k for level in entry["infills"] for k in level if k)}
            if "score" in entry:
                # The note, and the network's own map, which protection of labelled objects may have changed.
                note = store.get(entry["score"])
                keys |= {entry["score"]} | ({note.decode()} if note is not None else set())
    return keys


def verdicts(store: InfillStore) -> dict[str, tuple[Counter[str], Counter[str]]]:
    """What gates turned down and fallbacks filled, as the entries of the images note it.

    Args:
        store: an open store; all of its entries are read.

    Returns:
        For each recipe with such notes: fills rejected, by reason, and infills made, by fallback.
    """
    found: dict[str, tuple[Counter[str], Counter[str]]] = defaultdict(lambda: (Counter(), Counter()))
    for _, entry in entries(store):
        for reasons in entry.get("rejected", {}).values():
            found[entry["recipe"]][0].update(kind_of(reason) or reason for reason in reasons)
        for note in entry.get("fallback", {}).values():
            found[entry["recipe"]][1][note.partition(":")[0]] += 1
    return dict(found)


def save_contact_sheet(store: InfillStore, path: Path, count: int = 24, side: int = 128) -> int:
    """A PNG of some stored infills, one image a row, one level a column, kept pixels in grey.

    Args:
        store: an open store.
        path: file to write.
        count: most infills in the picture.
        side: pixels of each.

    Returns:
        How many infills it shows.

    Raises:
        ValueError: the store holds no infills.
    """
    tiles: list[Tensor] = []
    columns = 1
    for _, entry in entries(store):
        row = [store.get(next((key for key in level if key), "") or entry["map"]) for level in entry["infills"]]
        columns = len(row)
        if len(tiles) + columns > max(count, columns):
            break
        tiles += [_tile(payload, side) for payload in row if payload is not None]
    if not tiles:
        raise ValueError(f"the store at {store.path} holds no infills; run infill-aug build")
    grid = make_grid(torch.stack(tiles), nrow=columns * max(1, round(12 / columns)), padding=2, pad_value=255)
    PILImage.fromarray(grid.permute(1, 2, 0).numpy()).save(path)
    return len(tiles)


def widest_infills(store: InfillStore, count: int, side: int = 128) -> tuple[Tensor, Tensor]:
    """The middle of some stored infills at the widest level, with their masks.

    Args:
        store: an open store.
        count: most infills.
        side: pixels of each.

    Returns:
        ``(B, 3, side, side)`` float32 in 0..1, grey where the image was kept, and ``(B, 1, side, side)`` bool.

    Raises:
        ValueError: the store holds no infills.
    """
    found: list[Tensor] = []
    for _, entry in entries(store):
        payload = store.get(next((key for level in reversed(entry["infills"]) for key in level if key), ""))
        if payload is not None:
            found.append(_middle(decode_pixels(payload), side))
        if len(found) == count:
            break
    if not found:
        raise ValueError(f"the store at {store.path} holds no infills; run infill-aug build")
    together = torch.stack(found)
    return together[:, :3].float() / 255, together[:, 3:] > 127


def _middle(stored: Tensor, side: int) -> Tensor:
    mask = stored[3:] if stored.shape[0] == 4 else torch.full_like(stored[:1], 255)
    colour = torch.where(mask > 0, stored[:3], 128)
    square = F.center_crop(torch.cat([colour, mask]), [min(stored.shape[-2:])] * 2)
    return F.resize(square, [side, side], antialias=True)


def _tile(payload: bytes, side: int) -> Tensor:
    """The middle of a stored picture, what was kept in grey."""
    return _middle(decode_pixels(payload), side)[:3]
