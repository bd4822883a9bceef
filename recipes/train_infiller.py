"""Train a small inpainting model on your own pictures: a diffusion model, or a network of one pass.

    python recipes/train_infiller.py pictures.folder=FOLDER
    python recipes/train_infiller.py pictures=masks pictures.images=FOLDER pictures.masks=FOLDER objects=source
    python recipes/train_infiller.py pictures.folder=FOLDER start=PIPELINE steps=2000 output=outputs/finetuned
    python recipes/train_infiller.py pictures.folder=FOLDER model=gan output=outputs/gan

Settings are in configs/infiller.yaml. Run it again to go on where it stopped. Then ``infill-aug build`` with
``--backend diffusion --options '{"weights": "outputs/infiller/pipeline"}'``, or with
``--backend gan --options '{"weights": "outputs/gan/network.pt2", "multiple": 4}'``.
"""

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from infill_aug import TaskProfile
from infill_aug.config import instantiate, register

# Before hydra.main, which composes: configs/ builds on these typed configs.
register()


@hydra.main(version_base="1.3", config_path="../configs", config_name="infiller")
def main(cfg: DictConfig) -> None:
    """Read, train, save."""
    from infill_aug.confidence.from_profile import source_from_profile
    from infill_aug.infill.infiller_training import read_infiller_set
    from infill_aug.infill.pipeline import InfillPipeline, load_infiller
    from infill_aug.infill.single_pass import save_single_pass
    from infill_aug.lit.infiller import fit_infiller

    sources = {
        "profile": lambda: source_from_profile(TaskProfile.load(cfg.profile)),
        "source": lambda: instantiate(cfg.source),
    }
    source = sources[cfg.objects]() if cfg.objects else None
    pictures = read_infiller_set(instantiate(cfg.pictures), source, cfg.size, limit=cfg.limit)
    if len(pictures) <= cfg.held:
        raise ValueError(f"{len(pictures)} pictures, of which {cfg.held} are kept aside: nothing is left to learn from")
    torch.manual_seed(cfg.seed)
    order = torch.randperm(len(pictures))
    if cfg.start is None:
        model = instantiate(cfg.model.network)
    else:
        model = load_infiller(cfg.start)
        if not isinstance(model, InfillPipeline):
            raise ValueError(f"start={cfg.start} holds no pipeline of this recipe; it can fill, but not be trained on")
        model.unet.requires_grad_(True)
    trained = fit_infiller(
        model,
        pictures.take(order[cfg.held :]),
        steps=cfg.steps,
        batch_size=cfg.batch_size,
        learning_rate=cfg.model.learning_rate,
        held=pictures.take(order[: cfg.held]),
        output=cfg.output,
        resume=cfg.resume,
        seed=cfg.seed,
        **instantiate(cfg.hardware),
    )
    if isinstance(trained, InfillPipeline):
        place = Path(cfg.output) / "pipeline"
        trained.save_pretrained(place)
    else:
        place = Path(cfg.output) / "network.pt2"
        save_single_pass(trained, place)
    print(f"{place}: trained on {len(pictures) - cfg.held} pictures; grids in {Path(cfg.output) / 'grids'}")


if __name__ == "__main__":
    main()
