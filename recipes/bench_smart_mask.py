"""The smart mask beside the known method, on edits whose true mask is known, with the side effects that editors have.

``--data``: folder or zip with ``images/<id>.jpg`` and ``masks/<id>.png`` (ECSSD), or Oxford pets. A case succeeds when
98 % of what is farther than 8 pixels from the edit is the original's, bit for bit, and 95 % of the edit is taken.
"""

import argparse
import functools
import itertools
import random
import zipfile
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torchvision.io import decode_image

from infill_aug.functional.masks import dilate
from infill_aug.smart_mask.known_edits import ARTEFACTS, EDITS, known_edit
from infill_aug.smart_mask.smart_mask import SmartMask

KINDS, ARMS = {**{name: (name,) for name in ARTEFACTS}, "all five": ARTEFACTS}, ("difference", "default")
STRENGTHS, BINS = (0, 0.5, 1, 1.5, 2, 3, 4), (0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)


def read(path, mode):
    """A picture of a folder or a zip."""
    return decode_image(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), mode)


@functools.cache
def opened(data, split):
    """Folder of pictures, and by name the masks of 2 to 45 % of the picture; a split has every other picture."""
    root = zipfile.Path(data) if Path(data).is_file() else Path(data)
    pets = (root / "oxford-iiit-pet").is_dir()
    parts = ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations/trimaps") if pets else ("images", "masks")
    names = sorted(path.name[:-4] for path in (root / parts[0]).iterdir() if path.name.endswith(".jpg"))
    # What is edited is odd: 255 beside 0, and 1 and 3, the unsure border, of a trimap.
    masks = {name: read(root / parts[1] / f"{name}.png", "GRAY") % 2 == 1 for name in names[split == "test" :: 2]}
    return root / parts[0], {name: mask for name, mask in masks.items() if 0.02 < mask.float().mean() < 0.45}


def measured(case):
    """For each arm: share of the far pixels kept, share of the edit taken, IoU, confidence."""
    strength, edit, kind, number, options = case
    (folder, masks), values = opened(options.data, options.split), []
    draw = random.Random(f"{options.split} {options.seed} {edit} {kind} {number}")  # the same at every strength
    name, other = draw.choices([*masks], k=2)
    (one, donor), mask = (read(folder / f"{each}.jpg", "RGB") for each in (name, other)), masks[name]
    known = known_edit(one, mask, donor, edit, KINDS[kind], strength=strength, seed=draw.randrange(2**31))
    for arm in ARMS:
        result = SmartMask.preset(arm)(known.original, known.edited)
        same, hard = (result.composite == known.original).all(dim=0), result.mask >= 0.5
        kept, taken = same[~dilate(mask[None], 8)[0, 0]].float().mean().nan_to_num(1), hard[mask].float().mean()
        values.append([kept, taken, (hard & mask).sum() / (hard | mask).sum(), result.confidence])
    return np.array(values, float)


def compare(title, names, good, iou):
    """Success and IoU, arrays (row, side effect, case), and after the last row and column those of all."""
    lines = [[f"{title}: success % / IoU", *KINDS, "all"]]
    for name, a, b in zip([*names, "all"], [*good, np.hstack(good)], [*iou, np.hstack(iou)], strict=True):
        lines.append([name, *(f"{100 * x.mean():.0f} / {y.mean():.3f}" for x, y in zip([*a, a], [*b, b], strict=True))])
    return lines


def report(good, values):
    """All cases together, and what the confidence of the default is worth; arrays (case, arm)."""
    arms = [["arm", "cases", "success % (95 % interval)", "IoU", "kept too little", "took too little"]]
    for arm, ok, (kept, taken, iou, _) in zip(ARMS, good.T, values.transpose(1, 2, 0), strict=True):
        ends = binomtest(int(ok.sum()), len(ok)).proportion_ci(method="wilson")
        share = f"{100 * ok.mean():.1f} ({100 * ends.low:.1f} to {100 * ends.high:.1f})"
        arms.append([arm, len(ok), share, f"{iou.mean():.3f}", sum(kept < 0.98), sum(taken < 0.95)])
    sure = values[:, -1, 3]
    pairs = torch.tensor(sure[ok][:, None] - sure[~ok]).sign()  # of a success and a failure: which is surer
    bins = [[f"confidence (AUC {0.5 + pairs.mean() / 2:.3f})", "cases", "success %", "% this sure", "their success %"]]
    for low, high in itertools.pairwise(BINS):
        if len(here := ok[(sure >= low) & (sure < high)]):
            shares = (f"{100 * part.mean():.1f}" for part in (here, sure >= low, ok[sure >= low]))
            bins.append([f"from {low}", len(here), *shares])
    return arms, bins


def main():
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"data": "", "cases": 10, "seed": 1000, "strength": 1.0, "jobs": 1}.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="(default: %(default)s)")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--curve", metavar="PNG", help="print and draw what comes of strengths from 0 to 4")
    options = parser.parse_args()
    steps = STRENGTHS if options.curve else (options.strength,)
    cases = [(*case, options) for case in itertools.product(steps, EDITS, KINDS, range(options.cases))]
    with Pool(options.jobs, torch.set_num_threads, (1,)) as pool:
        values = np.array(pool.map(measured, cases, 4))
    good = (values[..., :2] >= (0.98, 0.95)).all(axis=-1)
    parts = [part.reshape(len(steps), len(EDITS), len(KINDS), -1, 2) for part in (good, values[..., 2])]
    parts = [np.concatenate([*part.swapaxes(0, 1)], axis=2) if options.curve else part[0] for part in parts]
    tables = [
        compare(arm, steps if options.curve else EDITS, *(p[..., i] for p in parts)) for i, arm in enumerate(ARMS)
    ]
    print(f"{vars(options)}, torch {torch.__version__}")
    for first, *rest in tables if options.curve else (*tables, *report(good, values)):
        print("", *(f"| {' | '.join(map(str, row))} |" for row in (first, ["---"] * len(first), *rest)), sep="\n")
    if options.curve:
        figure = Figure((10, 4), layout="constrained")
        for axis, part, label in zip(figure.subplots(1, 2), parts, ("success", "IoU"), strict=True):
            axis.plot(STRENGTHS, part.mean(axis=2)[..., 1], marker=".", label=[*KINDS])
            axis.plot(STRENGTHS, part.mean(axis=2)[:, -1, 0], "k:", label="all five, the known method")
            axis.set(xlabel="strength of the side effects", ylabel=label, ylim=(0, 1.02))
        axis.legend(fontsize=8)
        figure.savefig(options.curve, dpi=90)


if __name__ == "__main__":
    main()
