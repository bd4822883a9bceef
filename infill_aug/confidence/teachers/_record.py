"""What the submodules of a model did in a forward pass, without changing the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn


class Call(NamedTuple):
    """One call of a submodule: ``inside`` is its first input of four axes, where it has one."""

    name: str
    module: nn.Module
    inside: Tensor | None
    output: Any


@contextmanager
def recorded_calls(module: nn.Module) -> Iterator[list[Call]]:
    """All calls of submodules, in the order of their ends."""
    calls: list[Call] = []

    def note(own: nn.Module, args: Any, kwargs: Any, output: Any, name: str) -> None:
        inside = (one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.ndim == 4)
        calls.append(Call(name, own, next(inside, None), output))

    handles = [
        each.register_forward_hook(partial(note, name=name), with_kwargs=True) for name, each in module.named_modules()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def attention_weights(classifier: nn.Module) -> Iterator[None]:
    """Attention weights among the outputs of attention modules, which fused kernels leave out."""

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    own = [each for each in classifier.modules() if isinstance(each, nn.MultiheadAttention)]
    handles = [each.register_forward_pre_hook(ask, with_kwargs=True) for each in own]
    # Outermost first, and only it: its submodels follow.
    switch: Any = next((each for each in classifier.modules() if hasattr(each, "set_attn_implementation")), None)
    before = None if switch is None else switch.config._attn_implementation
    try:
        if switch is not None:
            switch.set_attn_implementation("eager")
        yield
    finally:
        if switch is not None:
            switch.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
