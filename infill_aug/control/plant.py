"""A simulated training, whose accuracy answers to the strength: to try a law before a real training depends on it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from infill_aug.control.law import Law


@dataclass(frozen=True)
class Plant:
    """A training run: clean accuracy follows a learning curve, accuracy on masked pictures falls with the strength.

    Args:
        best: clean accuracy in the end, 0..1.
        chance: accuracy that knowing nothing gives, 0..1.
        learning_time: intervals in which 63 % of the way is learned.
        jump: gain of clean accuracy when the learning rate drops, in mid-run.
        centre: strength at which half the accuracy is gone.
        width: of that fall; 0.03 is a cliff.
        drift: how far the centre moves in the run, as the model gets robust.
        lag: share of a new strength that the model adapts to per interval, 0..1.
        delay: intervals until a new strength has any effect.
        unreachable: first intervals in which the target is out of reach at any strength.
        slump: first and last interval of a time in which masked pictures are hard for a reason of their own.
        samples: that each accuracy is measured on.
    """

    best: float = 0.92
    chance: float = 0.1
    learning_time: float = 8.0
    jump: float = 0.0
    centre: float = 0.5
    width: float = 0.1
    drift: float = 0.0
    lag: float = 1.0
    delay: int = 0
    unreachable: int = 0
    slump: range = range(0)
    samples: int = 200

    def left(self, strength: float, centre: float) -> float:
        """Share of the accuracy above chance that a strength leaves."""

        def fall(at: float) -> float:
            return 1 / (1 + math.exp((centre - at) / self.width))

        return 1 - 0.95 * (fall(strength) - fall(0)) / (1 - fall(0))


# On which the constants of ProportionalLaw were chosen.
PLANTS: dict[str, Plant] = {
    "plain": Plant(),
    "slow learner": Plant(learning_time=20),
    "learning rate jump": Plant(best=0.85, jump=0.08),
    "robustness drift": Plant(centre=0.4, drift=0.2),
    "lag": Plant(lag=0.3),
    "delay": Plant(delay=2),
    "lag, delay and drift": Plant(lag=0.5, delay=2, drift=0.1),
    "cliff": Plant(width=0.03),
    "cliff and delay": Plant(width=0.03, delay=1, centre=0.6),
    "unreachable at first": Plant(unreachable=50),
}


def drawn_plant(seed: int) -> Plant:
    """A training that had no part in that choice.

    Example:
        >>> drawn_plant(0) == drawn_plant(0) != drawn_plant(1)
        True
    """
    rng = random.Random(1000 + seed)
    return Plant(
        best=rng.uniform(0.82, 0.97),
        chance=rng.uniform(0.01, 0.3),
        learning_time=rng.uniform(3, 25),
        jump=rng.choice([0, rng.uniform(0, 0.03)]),
        centre=rng.uniform(0.25, 0.75),
        width=rng.uniform(0.04, 0.2),
        drift=rng.choice([0, rng.uniform(-0.15, 0.2)]),
        lag=rng.choice([1, rng.uniform(0.2, 1)]),
        delay=rng.randint(0, 2),
        samples=rng.choice([100, 200, 400]),
    )


@dataclass(frozen=True)
class Run:
    """What a law did in a simulated training.

    Args:
        strengths: after each interval.
        retentions: true ones, which the law saw through noise.
    """

    strengths: list[float]
    retentions: list[float]

    def settled(self, target: float) -> int | None:
        """Start of the first 10 intervals of which 9 mask something and hold the target within 0.05, or ``None``."""
        pairs = zip(self.strengths, self.retentions, strict=True)
        good = [strength > 0.02 and abs(kept - target) <= 0.05 for strength, kept in pairs]
        return next((t for t in range(len(good) - 9) if sum(good[t : t + 10]) >= 9), None)

    def swing(self, tail: int = 30) -> float:
        """Largest less smallest strength of the last ``tail`` intervals."""
        return max(self.strengths[-tail:]) - min(self.strengths[-tail:])


def simulate(plant: Plant, law: Law, seed: int, intervals: int = 120, referenced: bool = True) -> Run:
    """Let a law steer a simulated training.

    Args:
        plant: the training.
        law: a fresh one; its memory changes.
        seed: of the measurements' noise.
        intervals: how many validations, at least 1.
        referenced: whether the law sees the clean accuracy beside the masked one.

    Example:
        >>> from infill_aug.control.proportional import ProportionalLaw
        >>> run = simulate(Plant(), ProportionalLaw(0.9), seed=0)
        >>> run.settled(0.9) < 45, run.swing() < 0.1
        (True, True)
    """

    def measured(accuracy: float) -> float:
        noisy = noise.gauss(accuracy, math.sqrt(accuracy * (1 - accuracy) / plant.samples))
        return min(max(noisy, 0.0), 1.0)

    noise = random.Random(seed)
    felt, best, strengths, retentions = 0.0, 0.0, [law.strength] * (plant.delay + 1), []
    for t in range(intervals):
        learned = 1 - math.exp(-(t + 1) / plant.learning_time)
        clean = plant.chance + (plant.best - plant.chance) * learned + plant.jump * (t >= intervals // 2)
        felt += plant.lag * (strengths[-1 - plant.delay] - felt)
        centre = plant.centre + plant.drift * t / intervals
        masked = plant.chance + (clean - plant.chance) * plant.left(felt, centre)
        masked *= 0.8 if t < plant.unreachable else 0.7 if t in plant.slump else 1.0
        strengths.append(law.observe(measured(masked), measured(clean) if referenced else None).strength)
        best = max(best, masked)
        retentions.append(masked / (clean if referenced else best))
    return Run(strengths[plant.delay + 1 :], retentions)
