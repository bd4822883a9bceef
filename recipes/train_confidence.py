"""Train the confidence estimator of a task profile, and report how good it is.

    python recipes/train_confidence.py
    python recipes/train_confidence.py pictures=masks pictures.images=FOLDER pictures.masks=FOLDER profile=pets
    python recipes/train_confidence.py pictures=folder pictures.folder=FOLDER source=teacher profile=hair_color

Settings are in configs/confidence.yaml. Weights, profile, report and pictures go to ``output``.
"""

import hydra
from omegaconf import DictConfig

from infill_aug.config import instantiate, register

# Before hydra.main, which composes: configs/ builds on these typed configs.
register()


@hydra.main(version_base="1.3", config_path="../configs", config_name="confidence")
def main(cfg: DictConfig) -> float:
    """Read, train, measure.

    Returns:
        Average precision on held-out pictures, for sweeps.
    """
    from infill_aug.lit.learn import learn_profile

    loggers = list(instantiate(cfg.logger).values())
    learned = learn_profile(
        cfg.profile,
        instantiate(cfg.pictures),
        cfg.output,
        source=instantiate(cfg.source) or None,
        start=cfg.start,
        steps=cfg.steps,
        batch_size=cfg.batch_size,
        limit=cfg.limit,
        seed=cfg.seed,
        freeze_trunk=cfg.freeze_trunk,
        classifier=instantiate(cfg.classifier),
        device=cfg.device,
        logger=loggers or False,
    )
    print(f"\n{learned.quality}\n\n{learned.quality.verdict}\n{learned.seconds:.0f} s; {learned.folder / 'report.md'}")
    return learned.quality.scores.get("ap", float("nan"))


if __name__ == "__main__":
    main()
