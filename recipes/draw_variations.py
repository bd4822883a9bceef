"""Draw what every operation of ``Variation`` does to the surroundings of objects: one picture a group, to look at.

    python recipes/draw_variations.py --data FOLDER --output outputs

The profile finds the object, which stays as it is; its surroundings are the photograph's own, so that it shows what an
operation changes. Rows: operations; columns: the photograph, then draws at strengths that rise to 1.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from infill_aug import generate_dynamic_mask
from infill_aug.confidence.folders import PictureFolder
from infill_aug.infill.infiller_training import square
from infill_aug.samples import to_uint8_image
from infill_aug.variation.operation import GROUPS, list_operations
from infill_aug.variation.sheet import variation_sheet


def main() -> None:
    """Read, vary, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of photographs")
    parser.add_argument("--output", default="outputs")
    parser.add_argument("--profile", default="salient_object")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--size", type=int, default=144)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = PictureFolder(options.data)
    images = torch.stack([square(to_uint8_image(folder[i]), options.size) for i in range(len(folder))])
    masks = generate_dynamic_mask(images, options.profile, options.threshold).mask
    Path(options.output).mkdir(parents=True, exist_ok=True)
    for group in GROUPS:
        sheet = variation_sheet(
            images.float() / 255, masks, operations=list_operations(group), columns=options.columns, seed=options.seed
        )
        file = Path(options.output) / f"variation_{group}.jpg"
        Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(file, quality=88)
        print(f"{file}: {', '.join(list_operations(group))}")


if __name__ == "__main__":
    main()
