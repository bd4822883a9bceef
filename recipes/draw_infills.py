"""Draw the same holes filled by several backends, to look at: one column a picture, one row a backend.

    python recipes/draw_infills.py --data FOLDER --output outputs/infills.png
    python recipes/draw_infills.py --data FOLDER --profile pets --backends donor diffusion "my_module:MyBackend"

The profile finds the object; everything under the threshold is filled. Donors are the folder's other pictures.
"""

import argparse
from pathlib import Path

import torch
from torchvision.utils import save_image

from infill_aug import TaskDescriptor, generate_dynamic_mask, load_backend
from infill_aug.confidence.folders import PictureFolder
from infill_aug.infill import SampleContext
from infill_aug.infill.backend import PoolSample
from infill_aug.infill.infiller_training import square
from infill_aug.samples import spread, to_uint8_image

BACKENDS = ["push_pull", "telea", "noise", "donor", "diffusion"]


def main() -> None:
    """Read, fill, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", default="outputs/infills.png")
    parser.add_argument("--profile", default="salient_object")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--count", type=int, default=8, help="pictures to draw; all of them are donors")
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = PictureFolder(options.data)
    images = torch.stack([square(to_uint8_image(folder[i]), options.size) for i in range(len(folder))])
    found = generate_dynamic_mask(images, options.profile, options.threshold)
    pool = [
        PoolSample(f"picture {i}", image, (255 * confidence).round().to(torch.uint8))
        for i, (image, confidence) in enumerate(zip(images, found.confidence, strict=True))
    ]
    drawn = spread(len(images), options.count)
    pictures, holes = images[drawn].float() / 255, found.mask[drawn]
    samples = [SampleContext(f"picture {i}", options.seed + i) for i in drawn]
    rows = [pictures, pictures.masked_fill(holes, 0.5)]
    for name in options.backends:
        backend = load_backend(name)
        if backend.pool_size:
            backend.prepare(pool)
        rows.append(backend.generate_infill(pictures, holes, TaskDescriptor("grid", "object"), samples=samples))
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.cat(rows), options.output, nrow=len(drawn))
    print(f"{options.output}: the pictures, their holes, {', '.join(options.backends)}")


if __name__ == "__main__":
    main()
