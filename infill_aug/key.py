"""Content addressing: the same request is the same key, on any machine, in any process.

Keys are hashes of *declared* values, never of pickles, `repr`, paths or modification times, all of which change while
the content does not. The golden values in the tests are part of the store's format: changing what these functions
return orphans every store on disk.
"""

import hashlib
import json
import math
from typing import Any

import numpy as np


def canonical_json(obj: Any) -> bytes:
    """Write a JSON-like object as bytes, the same bytes for the same value everywhere.

    Keys are sorted, separators compact, and a float is the string `float:` + `float.hex()`, which is exact. A string
    that begins with `float:` or `str:` gets `str:` in front, so that a float equals no string and no integer. Lists and
    tuples are the same.

    Args:
        obj: None, bool, int, finite float, str, and lists, tuples and dictionaries (with str keys) of these.

    Returns:
        ASCII bytes of valid JSON.

    Raises:
        TypeError: if a value or a dictionary key is of another type; names where it is and its type.
        ValueError: if a float is NaN or infinite; names where it is.

    Example:
        >>> canonical_json({"b": (1, True), "a": 1.5})
        b'{"a":"float:0x1.8000000000000p+0","b":[1,true]}'
    """
    return json.dumps(_plain(obj, "obj"), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def digest(obj: Any) -> str:
    """Hash a JSON-like object.

    Args:
        obj: what `canonical_json` accepts.

    Returns:
        32 lowercase hexadecimal characters (blake2b, 128 bits).

    Raises:
        TypeError: as `canonical_json`.
        ValueError: as `canonical_json`.

    Example:
        >>> digest({"level": 2, "variant": 0}) == digest({"variant": 0, "level": 2})
        True
    """
    return hashlib.blake2b(canonical_json(obj), digest_size=16).hexdigest()


def image_digest(image: Any) -> str:
    """Hash the shape, dtype and values of an image.

    An array and a tensor of the same shape and values have the same digest, whatever their strides. Another layout
    (channels first or last) is another digest.

    Args:
        image: uint8 numpy array or CPU tensor of any shape.

    Returns:
        32 lowercase hexadecimal characters (blake2b, 128 bits).

    Raises:
        TypeError: if `image` is no array, not uint8, or not on the CPU.

    Example:
        >>> image = np.zeros((3, 4, 4), np.uint8)
        >>> image_digest(image) == image_digest(image.copy(order="F"))
        True
    """
    dtype = getattr(image, "dtype", None)
    if dtype is None:
        raise TypeError(f"image_digest needs a uint8 array or tensor, got {_type(image)}: pass np.asarray(image)")
    if str(dtype).removeprefix("torch.") != "uint8":
        raise TypeError(f"image_digest needs uint8, got {dtype}: scale to 0..255, round, and convert to uint8")
    if str(getattr(image, "device", "cpu")) != "cpu":
        raise TypeError(f"image_digest needs a tensor on the CPU, got one on {image.device}: pass image.cpu()")
    array = np.asarray(image)
    tagged = hashlib.blake2b(canonical_json(["image", list(array.shape), "uint8"]), digest_size=16)
    tagged.update(np.ascontiguousarray(array).data)
    return tagged.hexdigest()


def seed_from(*parts: Any) -> int:
    """Derive a random seed from what a draw belongs to, so that it depends on nothing else.

    Args:
        *parts: what `canonical_json` accepts, e.g. a global seed, an image digest, a level and a variant.

    Returns:
        An integer in [0, 2**63), fit for `torch.Generator.manual_seed` and `numpy.random.default_rng`.

    Raises:
        TypeError: as `canonical_json`.
        ValueError: as `canonical_json`.

    Example:
        >>> seed_from(0, "a", 1) == seed_from(0, "a", 1), seed_from(0, "a", 1) == seed_from(0, "a", 2)
        (True, False)
    """
    return int(digest(parts)[:16], 16) >> 1


def _plain(obj: Any, path: str) -> Any:
    if obj is None or isinstance(obj, (bool, int)):
        return obj
    if isinstance(obj, str):
        return "str:" + obj if obj.startswith(("float:", "str:")) else obj
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise ValueError(f"{path} is {float(obj)}: only finite numbers have a key; use None or a string for it")
        return "float:" + float.hex(obj)
    if isinstance(obj, (list, tuple)):
        return [_plain(value, f"{path}[{i}]") for i, value in enumerate(obj)]
    if isinstance(obj, dict):
        for key in obj:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r} of type {_type(key)}: dictionary keys must be str")
        return {key: _plain(value, f"{path}[{key!r}]") for key, value in obj.items()}
    raise TypeError(
        f"{path} is of type {_type(obj)}: allowed are None, bool, int, float, str, list, tuple and dict; "
        "convert it first, for instance with int(), float(), str() or .tolist()"
    )


def _type(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}".removeprefix("builtins.")
