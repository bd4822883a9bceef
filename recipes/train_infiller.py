"""Train the small inpainting diffusion model on your own pictures.

    python recipes/train_infiller.py pictures.folder=FOLDER
    python recipes/train_infiller.py pictures=masks pictures.images=FOLDER pictures.masks=FOLDER objects=source
    python recipes/train_infiller.py pictures.folder=FOLDER start=FOLDER steps=2000 hardware.accelerator=gpu

Settings are in configs/infiller.yaml. Run it again to go on where it stopped. The finished pipeline lies in
``output``/pipeline: ``infill-aug build --backend diffusion --options '{"weights": "outputs/infiller/pipeline"}'``.
"""

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from infill_aug.config import instantiate, register

# Before hydra.main, which composes: configs/ builds on these typed configs.
register()


@hydra.main(version_base="1.3", config_path="../configs", config_name="infiller")
def main(cfg: DictConfig) -> None:
    """Read, train, save."""
    from infill_aug.confidence.from_profile import source_from_profile
    from infill_aug.infill.infiller_training import read_infiller_set
    from infill_aug.infill.pipeline import InfillPipeline, load_infiller, new_infiller
    from infill_aug.lit.infiller import fit_infiller

    sources = {"profile": lambda: source_from_profile(cfg.profile), "source": lambda: instantiate(cfg.source)}
    source = sources[cfg.objects]() if cfg.objects else None
    pictures = read_infiller_set(instantiate(cfg.pictures), source, cfg.size, limit=cfg.limit)
    if len(pictures) <= cfg.held:
        raise ValueError(f"{len(pictures)} pictures, of which {cfg.held} are kept aside: nothing is left to learn from")
    torch.manual_seed(cfg.seed)
    order = torch.randperm(len(pictures))
    if cfg.start is None:
        pipeline = InfillPipeline(*new_infiller(cfg.size))
    else:
        pipeline = load_infiller(cfg.start)
        pipeline.unet.requires_grad_(True)
    trained = fit_infiller(
        pipeline,
        pictures.take(order[cfg.held :]),
        steps=cfg.steps,
        batch_size=cfg.batch_size,
        learning_rate=cfg.learning_rate,
        held=pictures.take(order[: cfg.held]),
        output=cfg.output,
        resume=cfg.resume,
        seed=cfg.seed,
        **instantiate(cfg.hardware),
    )
    folder = Path(cfg.output) / "pipeline"
    trained.save_pretrained(folder)
    print(f"{folder}: trained on {len(pictures) - cfg.held} pictures; grids in {Path(cfg.output) / 'grids'}")


if __name__ == "__main__":
    main()
