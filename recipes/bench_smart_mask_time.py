"""Time and memory of the smart mask beside the known method as people write it, in one run, picture by picture.

Prints the Markdown table of docs/benchmarks.md; at 800 px, the way down counts. Needs Linux, which tells the memory.
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torchvision.io import decode_image, decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as F

from infill_aug.smart_mask.known_edits import known_edit
from infill_aug.smart_mask.smart_mask import SmartMask


def known_method(original: torch.Tensor, edited: torch.Tensor) -> np.ndarray:
    """Two pictures to their composite ``(H, W, 3)``."""
    before, after = (np.moveaxis(picture.numpy(), 0, -1) for picture in (original, edited))
    difference = np.abs(before.astype(np.float32) - after.astype(np.float32)).mean(axis=2) * (100 / 255)
    labels, count = ndimage.label(difference >= 10, np.ones((3, 3)))
    if not count:
        return before.copy()
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    kept = areas > 0.03 * labels.size
    kept[areas.argmax()] = True
    mask = ndimage.binary_erosion(kept[labels], np.ones((3, 3)), iterations=2, border_value=1)
    mask = ndimage.binary_dilation(ndimage.binary_fill_holes(mask), np.ones((3, 3)), iterations=3)
    alpha = ndimage.gaussian_filter(mask.astype(np.float32), 15 * max(mask.shape) / 2100, mode="nearest")[..., None]
    return (alpha * after + (1 - alpha) * before).round().astype(np.uint8)


KNOWN, PRESET = "the known method, NumPy and SciPy", '`SmartMask.preset("difference")`'
ARMS: dict[str, Any] = {KNOWN: known_method, PRESET: lambda *pair: SmartMask.preset("difference")(*pair)}
ARMS["`SmartMask()`"] = lambda *pair: SmartMask()(*pair)
ARMS["`SmartMask()` at 800 px"] = lambda *pair: SmartMask()(*(F.resize(p, None, max_size=800) for p in pair))


def made_picture(height: int, width: int) -> torch.Tensor:
    """Like photographs: less contrast the finer the detail, as a power of its size, and things with edges in front."""
    random = torch.Generator().manual_seed(0)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None] * height, torch.fft.rfftfreq(width) * width).clamp(min=1)
    waves = torch.randn(4, *frequency.shape, dtype=torch.cfloat, generator=random) / frequency**1.3
    light = torch.fft.irfft2(waves, s=(height, width))
    picture = 0.45 + (0.13 * light[:1] + 0.03 * light[1:]) / light.std()
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    for left, top, size, *colour in torch.rand(12, 6, generator=random):
        inside = torch.hypot(x - left, y - top) < 0.02 + 0.15 * size
        picture = torch.where(inside, 0.5 * picture + 0.5 * torch.stack(colour)[:, None, None], picture)
    return (picture.clamp(0, 1) * 255).to(torch.uint8)


def edited_copy(picture: torch.Tensor, seed: int) -> torch.Tensor:
    """A blob of a tenth of the picture gets another colour; all of it drifts and goes through JPEG 85."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in picture.shape[1:]), indexing="ij")
    blob = (x + 0.2) ** 2 / 0.1 + (y - 0.1) ** 2 / 0.15 < 1 + 0.15 * torch.sin(7 * torch.atan2(y, x))
    edited = known_edit(picture, blob[None], picture, "recolour", ("drift",), seed=seed).edited
    return decode_jpeg(encode_jpeg(edited, quality=85))


def peak(name: str, pair: list[torch.Tensor]) -> tuple[float, float]:
    """In a process of its own, MB: what a call needs beyond the pictures and the imports, and the whole process."""

    def memory(field: str) -> float:  # ru_maxrss would begin at that of the process that started this one
        return int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024

    ARMS[name](*(picture[:, :64, :64].clone() for picture in pair))  # imports
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    ARMS[name](*pair)
    return memory("VmHWM") - before, memory("VmHWM")


def main() -> None:
    """Measure all arms in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder of photographs (default: a made one)")
    parser.add_argument("--size", type=int, nargs=2, default=(2100, 2800), help="height and width of the made one")
    parser.add_argument("--device", default="cpu", help="cuda: the first pair as a batch (default: %(default)s)")
    for name, value in {"rounds": 5, "threads": 2, "batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="(default: %(default)s)")
    options, times = parser.parse_args(), dict[str, list[float]]({name: [] for name in ARMS})
    torch.set_num_threads(options.threads)
    files = sorted(options.pictures.glob("*.jpg")) if options.pictures else []
    pictures = [decode_image(str(file), mode="RGB") for file in files] or [made_picture(*options.size)]
    pairs = [[picture, edited_copy(picture, seed)] for seed, picture in enumerate(pictures)]
    if options.device != "cpu":
        pairs = [[p.to(options.device).expand(options.batch, -1, -1, -1).contiguous() for p in pairs[0]]]
        times = {"`SmartMask()`": []}
    for turn, pair, name in itertools.product(range(options.rounds + 1), pairs, times):  # the machine's speed drifts
        started = time.perf_counter()
        ARMS[name](*pair)
        torch.cuda.synchronize() if pair[0].is_cuda else None
        times[name] += [time.perf_counter() - started] if turn else []  # the first round warms up
    print(f"{len(pairs)} pairs, the first {tuple(pairs[0][0].shape)}, {options.threads} threads, {torch.__version__}\n")
    if options.device != "cpu":
        return print(f"`SmartMask()`, {options.device}: {options.batch / median(*times.values()):.1f} pictures/s")
    print("| arm | s a picture (fastest) | faster than the known | MB a call | MB in all |\n" + "| --- " * 5 + "|")
    for name, row in times.items():
        lead = median(a / b for a, b in zip(times[KNOWN], row, strict=True))
        with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (options.threads,)) as fresh:
            more, whole = fresh.submit(peak, name, pairs[0]).result()
        print(f"| {name} | {median(row):.2f} ({min(row):.2f}) | {lead:.1f} x | {more:.0f} | {whole:.0f} |", flush=True)


if __name__ == "__main__":
    main()
