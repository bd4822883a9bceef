"""What the control laws do in simulated trainings: how fast they settle, how still they hold, what they cost.

    python recipes/simulate_feedback.py
    python recipes/simulate_feedback.py --seeds 40 --target 0.8

A simulated training's accuracy on masked pictures falls with the strength, is measured with the noise of 100 to 400
pictures, and answers late, drifts, or falls off a cliff, as infill_aug/control/plant.py says.
"""

import argparse
import statistics

from infill_aug.control.plant import PLANTS, drawn_plant, simulate
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.control.schedule import ConstantLaw, ScheduleLaw
from infill_aug.control.sign import SignLaw

INTERVALS = 120


def percentile(values, share):
    """The value that a share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(args):
    """Print the table."""
    laws = {
        "proportional": lambda: ProportionalLaw(args.target, samples=200),
        "sign, 0.01 (StyleGAN2-ADA)": lambda: SignLaw(args.target, 0.01),
        "sign, 0.03": lambda: SignLaw(args.target, 0.03),
        "sign, 0.1": lambda: SignLaw(args.target, 0.1),
        "linear schedule": lambda: ScheduleLaw(0.9, INTERVALS),
        "constant 0.4": lambda: ConstantLaw(0.4),
    }
    trainings = [(plant, seed) for plant in PLANTS.values() for seed in range(args.seeds)]
    trainings += [(drawn_plant(seed), seed) for seed in range(args.seeds)]
    print(f"{len(trainings)} simulated trainings of {INTERVALS} validations, target {args.target}\n")
    print("| law | settles after: median, 95 % | never | swing of the tail, 90 % | move a validation | under target |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, law in laws.items():
        runs = [simulate(plant, law(), seed, INTERVALS) for plant, seed in trainings]
        times = [run.settled(args.target) for run in runs]
        reached = [time for time in times if time is not None]
        when = f"{statistics.median(reached):.0f}, {percentile(reached, 0.95)}" if reached else "-"
        never = (len(times) - len(reached)) / len(times)
        swing = percentile([run.swing() for run in runs], 0.9)
        steps = [abs(b - a) for run in runs for a, b in zip(run.strengths, run.strengths[1:], strict=False)]
        under = [kept < args.target - 0.05 for run in runs for kept in run.retentions[20:]]
        moved, short = statistics.fmean(steps), statistics.fmean(under)
        print(f"| {name} | {when} | {never:.0%} | {swing:.3f} | {moved:.4f} | {short:.1%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare control laws in simulated trainings.")
    parser.add_argument("--seeds", type=int, default=200, help="trainings of each kind (%(default)s)")
    parser.add_argument("--target", type=float, default=0.9, help="share of the accuracy to hold (%(default)s)")
    main(parser.parse_args())
