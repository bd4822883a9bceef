"""Moving averages of weights in training."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of a network that follows its weights: slowly after many steps, faster before, to leave the start behind.

    Args:
        network: what is trained; call ``update_parameters`` of the result with it after each step.
        decay: 0..1, how much of the average a step keeps in the long run.

    Example:
        >>> len(list(averaged(nn.Linear(2, 2), 0.99).parameters()))
        2
    """
    return AveragedModel(network, multi_avg_fn=partial(_follow, decay), use_buffers=True)


def _follow(decay: float, averages: Any, values: Any, steps: Any) -> None:
    get_ema_multi_avg_fn(min(decay, (1 + float(steps)) / (10 + float(steps))))(averages, values, steps)
