"""Requests that are described by data: values put into a template, and one value taken out of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any


def render(template: Any, values: Mapping[str, Callable[[], Any]]) -> Any:
    """A JSON value with its placeholders replaced.

    Args:
        template: a JSON value; its strings may hold names of ``values`` in braces, other braces stay.
        values: what to put in, by name, made when it is needed.

    Returns:
        The JSON value. A string that is nothing but a placeholder becomes its value with its type.

    Example:
        >>> render({"seed": "{seed}", "text": ["a {thing}, {else}"]}, {"seed": lambda: 3, "thing": lambda: "cat"})
        {'seed': 3, 'text': ['a cat, {else}']}
    """
    if isinstance(template, Mapping):
        return {name: render(value, values) for name, value in template.items()}
    if isinstance(template, list | tuple):
        return [render(value, values) for value in template]
    if not isinstance(template, str):
        return template
    pattern = r"\{(" + "|".join(map(re.escape, values)) + r")\}"
    whole = re.fullmatch(pattern, template)
    if whole:
        return values[whole[1]]()
    return re.sub(pattern, lambda match: str(values[match[1]]()), template)


def look_up(data: Any, path: str) -> Any:
    """The value at a path of names and positions.

    Raises:
        KeyError: there is nothing at the path.

    Example:
        >>> look_up({"images": ["first", "second"]}, "images.1")
        'second'
    """
    for part in path.split("."):
        try:
            data = data[int(part)] if isinstance(data, list) else data[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(f"nothing at {path!r}") from None
    return data
