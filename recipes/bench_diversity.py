"""How many plates a varied plate looks like: distances of varied fills of one plate beside those of different plates.

    python recipes/bench_diversity.py --data FOLDER

FOLDER: pictures, which stand for plates. Two distances: of pixels (root of the mean square), and of what the trunk of
the bundled estimator sees (means and deviations of its channels, in units of their deviations over the plates).
100 %: a plate varied anew is as far from itself as it is from another plate.
"""

import argparse
import platform

import torch

from infill_aug import ConfidenceEstimator, Variation
from infill_aug.confidence.folders import PictureFolder
from infill_aug.infill.infiller_training import square
from infill_aug.samples import spread, to_uint8_image
from infill_aug.variation.operation import GROUPS


def features(images: torch.Tensor, estimator: ConfidenceEstimator) -> torch.Tensor:
    """Means and deviations of the trunk's channels, ``(B, 2 C)``."""
    with torch.no_grad():
        seen = estimator.trunk(torch.nn.functional.interpolate(images, size=estimator.input_size, mode="bilinear"))
    return torch.cat([seen.mean(dim=(2, 3)), seen.std(dim=(2, 3))], dim=1)


def spread_of(points: torch.Tensor) -> float:
    """Mean distance between two different points."""
    distances = torch.cdist(points, points)
    return float(distances.sum() / (len(points) * (len(points) - 1)))


def main() -> None:
    """Vary, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--plates", type=int, default=64)
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    folder = PictureFolder(options.data)
    chosen = spread(len(folder), options.plates)
    plates = torch.stack([square(to_uint8_image(folder[i]), options.size) for i in chosen]).float() / 255
    estimator = ConfidenceEstimator.from_profile("salient_object").eval()
    of_plates = features(plates, estimator)
    unit = of_plates.std(dim=0).clamp(min=1e-6)
    scale = (3 * options.size**2) ** 0.5
    between = spread_of(plates.flatten(1)) / scale, spread_of(of_plates / unit)
    print(
        f"{len(plates)} plates of {options.size} px, {options.draws} draws of each, seed {options.seed}; "
        f"torch {torch.__version__}, {platform.machine()}\n"
    )
    print("| what varies | distance of pixels | of different plates | distance of features | of different plates |")
    print("| --- | --- | --- | --- | --- |")
    arms = {"nothing": None, "everything, as by default": Variation()}
    arms |= {group: Variation(**{each: 0.5 if each == group else None for each in GROUPS}) for group in GROUPS}
    arms["everything, at full strength"] = Variation(**{each: {"strength": 1.0, "p": 1.0} for each in GROUPS})
    mask = torch.ones(len(plates), 1, options.size, options.size)
    for name, variation in arms.items():
        # All plates at once, and again: so draws of one plate come from different calls, and donors are other plates.
        fills = [plates if variation is None else variation(plates, mask) for _ in range(options.draws)]
        seen = [features(each, estimator) / unit for each in fills]
        found = []
        for points, unit_of in ((fills, scale), (seen, 1)):
            of_each = torch.stack(points).flatten(2).transpose(0, 1)
            found.append(sum(spread_of(each) for each in of_each) / len(plates) / unit_of)
        cells = " | ".join(f"{each:.3f} | {each / most:.0%}" for each, most in zip(found, between, strict=True))
        print(f"| {name} | {cells} |", flush=True)
    print(f"| different plates, as they are | {between[0]:.3f} | 100% | {between[1]:.3f} | 100% |")


if __name__ == "__main__":
    main()
