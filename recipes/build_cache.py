"""Generate the infills of a dataset, or go on where an earlier run stopped.

    python recipes/build_cache.py data=digits
    python recipes/build_cache.py data=pets data.root=FOLDER backend=push_pull dry_run=true

Settings are in configs/build.yaml. Ends with exit code 1 where a picture failed; the next run tries those again.
"""

import sys

import hydra
from omegaconf import DictConfig

from infill_aug.config import instantiate, register

# Before hydra.main, which composes: configs/ builds on these typed configs.
register()


@hydra.main(version_base="1.3", config_path="../configs", config_name="build")
def main(cfg: DictConfig) -> None:
    """Make the pictures, then their infills."""
    data = instantiate(cfg.data)
    print(f"{data.name}: {data.note}")
    # Training pictures only: nothing else is ever augmented. `labelled` adds the masks that confidence is read from.
    report = instantiate(cfg.infills, dataset=data.train.labelled(), source=data.source, dry_run=cfg.dry_run)
    print(f"{cfg.store}: {report}")
    if cfg.dry_run:
        return
    for failure in report.failed[:5]:
        print(f"picture {failure['sample']}: {failure['reason']}", file=sys.stderr)
    if report.failed:
        # A job of a cluster or a Makefile must not go on to train on a store with holes.
        sys.exit(1)


if __name__ == "__main__":
    main()
