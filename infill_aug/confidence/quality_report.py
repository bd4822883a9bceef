"""What was measured of a confidence source, and whether that is good enough to train with."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from infill_aug.confidence.leak import LeakReport

# By how much a map must beat the centre prior's average precision, and by which share a random map's deletion.
AP_MARGIN, DELETION_MARGIN = 0.10, 0.20


@dataclass(frozen=True)
class QualityReport:
    """What was measured of a confidence source, next to the centre prior and a random map on the same pictures.

    Scores, all 0..1 and means over pictures:
        * against masks: ``iou`` (at confidence 0.5), ``iou_at_area``, ``ap``, ``max_f``, ``mae`` (lower is better),
          ``pointing``, ``calibration`` (expected calibration error of all pictures together; lower is better)
        * against a classifier: ``deletion`` (lower is better), ``insertion``, and ``kept_10``, ``kept_25``, ``kept_50``
          and ``kept_100``: accuracy on that percentage of the pixels
        * against labels: ``leak``: accuracy of a probe that sees the maps alone; its chance is in ``random``

    Args:
        samples: pictures that were looked at.
        truths: those of them with a mask that is neither empty nor the whole picture; the others say nothing.
        scores: of the source, by name.
        centre: of the centre prior.
        random: of a random smooth map, where that has a score.
        leak: report of the leak probe; ``None`` without two classes of five pictures.
    """

    samples: int
    truths: int
    scores: dict[str, float]
    centre: dict[str, float]
    random: dict[str, float]
    leak: LeakReport | None = None

    @property
    def needed(self) -> float:
        """What the gate asks for: an ``ap`` to reach; without masks, a ``deletion`` to stay at or below.

        The ``ap`` is 0.10 above the centre prior's, or the random map's where that is better since what matters avoids
        the centre; or half-way from there to 1 where that is nearer. The ``deletion`` is 20 % below the random map's.
        NaN where neither was measured.
        """
        if self.truths:
            prior = self._yardstick[1]
            return prior + min(AP_MARGIN, (1 - prior) / 2)
        return (1 - DELETION_MARGIN) * self.random.get("deletion", math.nan)

    @property
    def _yardstick(self) -> tuple[str, float]:
        """Name and average precision of the better of the two maps that know nothing of the picture."""
        centre, random = self.centre["ap"], self.random.get("ap", 0.0)
        return ("a random map", random) if random > centre else ("the centre prior", centre)

    @property
    def passes(self) -> bool:
        """Whether the source is good enough to train with; a leak is a warning and no failure."""
        if self.truths:
            return self.scores["ap"] >= self.needed
        # Comparisons with NaN are false: what was not measured does not pass.
        return self.scores.get("deletion", math.nan) <= self.needed

    @property
    def verdict(self) -> str:
        """What to do with the source, in a sentence or two."""
        if self.truths:
            own, (yardstick, prior) = self.scores["ap"], self._yardstick
            worse, bound = own < prior, "more"
            found = f"AP {own:.3f} on {self.truths} pictures, where {yardstick} has {prior:.3f}"
        elif "deletion" in self.scores:
            own, prior, yardstick = self.scores["deletion"], self.random["deletion"], "a random map"
            worse, bound = own > prior, "less"
            found = f"deletion AUC {own:.3f} on {self.samples} pictures, where {yardstick} has {prior:.3f}"
        else:
            return (
                f"fails: none of {self.samples} masks says anything, each is empty or the whole picture; check the key "
                "and the values of the masks, or take more pictures."
            )
        found += f"; {self.needed:.3f} or {bound} is needed."
        if self.passes:
            text = f"passes: {found}"
        elif worse:
            text = f"fails: worse than {yardstick}: {found} Use {yardstick} instead, or check what it learned from."
        else:
            text = f"fails: {found} Train it on more pictures or on masks, or use {yardstick}."
        if self.leak is not None and self.leak.leaks:
            text += (
                f" The maps alone give the class away: a probe tells it with accuracy {self.leak.accuracy:.2f}, where "
                f"chance is {self.leak.chance:.2f}; see whether labelled masks do so too before you train on these."
            )
        return text

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; a score that is not finite is ``None``."""
        columns = {
            name: {key: value if math.isfinite(value) else None for key, value in getattr(self, name).items()}
            for name in ("scores", "centre", "random")
        }
        return {
            "samples": self.samples,
            "truths": self.truths,
            **columns,
            "leak": asdict(self.leak) if self.leak is not None else None,
            "needed": self.needed if math.isfinite(self.needed) else None,
            "passes": self.passes,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        rows = ["| score | profile | centre prior | random |", "| --- | --- | --- | --- |"]
        for name in self.scores:
            cells = (column.get(name) for column in (self.scores, self.centre, self.random))
            rows.append(f"| {name} | {' | '.join('-' if v is None else f'{v:.3f}' for v in cells)} |")
        return "\n".join(rows)
