"""What a build did, or would take, for people and programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Args:
        recipe: fingerprint of the recipe, the name under which the infills are read.
        samples: images of the dataset.
        generated: infills made by this run.
        present: infills that were already there.
        failed: what went wrong, one record a sample or infill; also in the store's ``failures``.
        seconds: wall clock.
        bytes: size of the store on disk after the run.
        rejected: how many fills the gate turned down, by the first words of the reason.
        examples: a few samples for each of these reasons.
        fell_back: infills made by the fallback.
    """

    recipe: str
    samples: int
    generated: int
    present: int
    failed: list[dict[str, Any]] = field(repr=False)
    seconds: float
    bytes: int
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[int]] = field(default_factory=dict, repr=False)
    fell_back: int = 0

    def __str__(self) -> str:
        checked = summary(self.rejected, self.examples, self.fell_back)
        return (
            f"{self.samples} images: {self.generated} infills generated, {self.present} already there, "
            f"{len(self.failed)} failures, {self.seconds:.1f} s, store {self.bytes / 1e6:.1f} MB"
            + (f"; {checked}" if checked else "")
        )


@dataclass(frozen=True)
class BuildEstimate:
    """What a build would take, measured on a few samples and extrapolated.

    Args:
        samples: images of the dataset.
        infills: infills of the whole build, those already there included.
        seconds: estimated wall clock of the whole build from nothing; NaN for a paid service, which is not tried.
        bytes: estimated size on disk.
        free: free bytes on the store's disk.
        probed: samples that the estimate rests on.
        dollars: estimated price in US dollars of the infills that are not there yet, retries not counted.
    """

    samples: int
    infills: int
    seconds: float
    bytes: int
    free: int
    probed: int
    dollars: float = 0.0

    def __str__(self) -> str:
        if math.isnan(self.seconds):
            known = not math.isnan(self.dollars)
            price = f"about {self.dollars:.2f} US dollars" if known else "a price unknown (set price_per_image)"
            return (
                f"{self.samples} images, {self.infills} infills: {price} and "
                f"{self.bytes / 1e6:.1f} MB at most ({self.free / 1e6:.0f} MB free); nothing was sent, so the time is "
                "unknown"
            )
        return (
            f"{self.samples} images, {self.infills} infills: about {self.seconds:.0f} s and {self.bytes / 1e6:.1f} MB "
            f"({self.free / 1e6:.0f} MB free), from {self.probed} samples"
        )


def summary(rejected: Mapping[str, int], examples: Mapping[str, Sequence[int]], fell_back: int) -> str:
    """What the gate turned down and the fallback filled, for people; empty where nothing was."""
    parts = []
    for kind, count in sorted(rejected.items()):
        some = ", ".join(str(index) for index in examples.get(kind, ()))
        parts.append(f"{count} {kind} (samples {some})")
    text = [f"fills rejected: {', '.join(parts)}"] if parts else []
    return "; ".join(text + ([f"{fell_back} by the fallback"] if fell_back else []))
