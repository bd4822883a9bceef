"""Train a classifier with infill augmentation, and test whether it looks at the object or at the background.

    python recipes/train.py experiment=quick
    python recipes/train.py experiment=digits augment=none
    python recipes/train.py -m augment.threshold=0.5,0.9 callbacks=fixed seed=0,1,2 experiment=digits
    python recipes/train.py -m rule@callbacks.adaptive.rule=proportional,sign,linear,constant experiment=feedback

Settings are in configs/train.yaml. The run's folder gets metrics.json; a sweep's value is the accuracy on swapped
backgrounds.
"""

import json
import time
import warnings
from pathlib import Path

import hydra
import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from torchvision.transforms import v2

from infill_aug import AdaptiveThreshold, InfillDataModule, ThresholdState
from infill_aug.config import instantiate, register
from infill_aug.demo.arms import DemoClassifier, DemoDataModule, accuracy, geometry
from infill_aug.demo.data import DemoData

# Before hydra.main, which composes: configs/ builds on these typed configs.
register()


def plain_module(cfg: DictConfig, data: DemoData) -> pl.LightningDataModule:
    """What there was before: pictures through a transform of torchvision."""
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*cfg.normalize)]
    return DemoDataModule(data, v2.Compose([*geometry(data), *last]), cfg.batch_size)


def infill_module(cfg: DictConfig, data: DemoData, state: ThresholdState) -> pl.LightningDataModule:
    """The same data module with infills: geometry moves picture, infill and map together, normalising comes last."""
    # Nothing is generated that is there already, so runs of a sweep pay for one build.
    report = instantiate(cfg.infills, dataset=data.train.labelled(), source=data.source)
    print(f"{cfg.store}: {report}")
    if report.failed:
        raise RuntimeError(f"{len(report.failed)} infills failed, the first: {report.failed[0]}")
    inner = DemoDataModule(data, None, cfg.batch_size)
    geometric = v2.Compose(geometry(data))
    augment = instantiate(cfg.augment, threshold=state)
    # The recipe by name: another run may build another one into the same store meanwhile.
    kept = {"recipe": report.recipe, "control_split": cfg.control_split}
    return InfillDataModule(inner, augment, cfg.store, transforms=geometric, **kept)


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> float:
    """Train and test once.

    Returns:
        Accuracy on swapped backgrounds in percent.
    """
    # Pictures of this size are faster without workers, and short epochs are meant to be short.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*")
    data = instantiate(cfg.data)
    cfg.num_classes, cfg.num_val = len(data.classes), len(data.val)
    print(f"{data.name}: {data.note}")

    state = None
    if cfg.augment:
        # One state, read by the augmentation and moved by the callback; with callbacks=fixed it stays where it is.
        state = ThresholdState.from_threshold(cfg.augment.threshold, mode=cfg.augment.mode)
        module = infill_module(cfg, data, state)
    else:
        module = plain_module(cfg, data)
    callbacks = [callback for callback in instantiate(cfg.callbacks).values() if callback is not None]
    adaptive = [callback for callback in callbacks if isinstance(callback, AdaptiveThreshold)]
    if state is None:  # plain training has nothing to move
        callbacks = [callback for callback in callbacks if callback not in adaptive]
    loggers = list(instantiate(cfg.logger).values())

    # Only now, so that building or not building infills changes nothing of the training.
    pl.seed_everything(cfg.seed, verbose=False)
    classifier = DemoClassifier(cfg.num_classes, cfg.model.learning_rate)
    classifier.model = instantiate(cfg.model.network)
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers or False)
    started = time.perf_counter()
    trainer.fit(classifier, datamodule=module)
    seconds = time.perf_counter() - started

    metrics = {
        "data": cfg.data_name,
        "seed": cfg.seed,
        "start": cfg.augment.threshold if state is not None else None,
        "threshold": state.threshold if state is not None else None,
        "tied": accuracy(classifier, data.tied),
        "swapped": accuracy(classifier, data.swapped),
        "seconds": seconds,
        "history": adaptive[0].history if adaptive else [],
    }
    folder = Path(cfg.output_dir)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    reached = f", threshold {metrics['threshold']:.3f}" if state is not None else ""
    print(f"tied {metrics['tied']:.1f} %, swapped {metrics['swapped']:.1f} %{reached}, in {folder}")
    return metrics["swapped"]


if __name__ == "__main__":
    main()
