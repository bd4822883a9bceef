import enum
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import infill_aug.key as key_module
from infill_aug.key import canonical_json, digest, image_digest, seed_from

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON_LIKE = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def restored(value):
    """Undo `canonical_json`, given what `json.loads` makes of it."""
    if isinstance(value, str) and value.startswith("float:"):
        return float.fromhex(value.removeprefix("float:"))
    if isinstance(value, str):
        return value.removeprefix("str:")
    if isinstance(value, list):
        return [restored(item) for item in value]
    if isinstance(value, dict):
        return {key: restored(item) for key, item in value.items()}
    return value


@given(JSON_LIKE)
def test_canonical_json_can_be_undone_so_no_two_values_share_a_key(obj):
    assert repr(restored(json.loads(canonical_json(obj)))) == repr(_sorted(obj))


def _sorted(obj):
    if isinstance(obj, dict):
        return {key: _sorted(obj[key]) for key in sorted(obj)}
    return [_sorted(item) for item in obj] if isinstance(obj, list) else obj


def test_canonical_json_bytes_never_change():
    obj = {"é": ["😀", (), {}], "a": [1, 1.0, "1", True, None, -0.0, 0.1, 10**20], "b": ["float:1", "str:x", "x"]}
    assert canonical_json(obj) == (
        b'{"a":[1,"float:0x1.0000000000000p+0","1",true,null,"float:-0x0.0p+0","float:0x1.999999999999ap-4",'
        b'100000000000000000000],"b":["str:float:1","str:str:x","x"],"\\u00e9":["\\ud83d\\ude00",[],{}]}'
    )


def test_digests_and_seeds_never_change():
    assert digest(None) == "941dffce4e4308ceb33e87326003257d"
    assert digest({"level": 2, "variant": 0, "x": [1, 1.0, "1"]}) == "e615929fb7cc705690c07fe18a6f0d1f"
    assert seed_from() == 4565979586705479889
    assert seed_from(0, "a", 1) == 7174685544028397518
    assert image_digest(np.arange(12, dtype=np.uint8).reshape(3, 4)) == "ce675bccd14d568d382cc1707d789de4"
    assert image_digest(np.zeros((0, 3), np.uint8)) == "d678dd30020de3d213cebeb4d3c027c3"


def test_another_process_with_another_hash_seed_gives_the_same_digest():
    code = "from infill_aug.key import digest; print(digest({'b': {'x': 1.5}, 'a': [1, 'y']}))"
    for hash_seed in ("1", "2"):
        root = str(Path(key_module.__file__).parents[2])
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": root}
        out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
        assert out.strip() == digest({"a": [1, "y"], "b": {"x": 1.5}})


def test_values_that_compare_equal_but_differ_in_type_have_different_digests():
    values = [
        1,
        1.0,
        True,
        "1",
        "1.0",
        "true",
        [1],
        {"1": 1},
        (1.0).hex(),
        "float:" + (1.0).hex(),
        0.0,
        -0.0,
        False,
        None,
    ]
    assert len({digest(value) for value in values}) == len(values)


def test_lists_and_tuples_and_orders_of_keys_do_not_matter():
    assert digest([1, [2, 3]]) == digest((1, (2, 3)))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_string_and_number_subclasses_count_as_their_value():
    class Name(enum.StrEnum):
        A = "float:a"

    assert digest(Name.A) == digest("float:a")
    assert digest(np.float64(0.1)) == digest(0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_their_place(value):
    with pytest.raises(ValueError, match=r"^obj\['a'\]\[1\] is (nan|-?inf): .* use None or a string"):
        canonical_json({"a": [0, value]})


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.int64(1), "numpy.int64"),
        (np.float32(1), "numpy.float32"),
        (np.zeros(2), "numpy.ndarray"),
        (torch.zeros(2), "torch.Tensor"),
        ({1}, "set"),
        (b"x", "bytes"),
        (1j, "complex"),
        (Path("x"), r"pathlib\.\S*PosixPath"),
    ],
)
def test_other_types_are_refused_with_place_type_and_next_step(value, named):
    with pytest.raises(TypeError, match=rf"^obj\['a'\]\[0\] is of type {named}: .* convert it first"):
        digest({"a": [value]})


def test_dictionary_keys_must_be_strings():
    with pytest.raises(TypeError, match=r"^obj\['a'\] has the key 1 of type int"):
        digest({"a": {1: 2}})


def test_array_and_tensor_of_any_strides_have_one_digest():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    same = [
        array,
        torch.from_numpy(array),
        torch.from_numpy(array).contiguous(memory_format=torch.contiguous_format).permute(2, 0, 1).permute(1, 2, 0),
        np.asfortranarray(array),
        np.repeat(array, 2, axis=2)[:, :, ::2],
        array[::-1][::-1],
    ]
    assert len({image_digest(image) for image in same}) == 1


def test_shape_layout_and_every_value_enter_the_image_digest():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    images = [array, array.reshape(3, 2, 4), array.reshape(-1), array.transpose(1, 0, 2)]
    for i in range(array.size):
        other = array.copy()
        other.flat[i] += 1
        images.append(other)
    images += [np.uint8(3), np.full(1, 3, np.uint8), np.zeros((0, 3), np.uint8), np.zeros((3, 0), np.uint8)]
    assert len({image_digest(image) for image in images}) == len(images)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([[0]], "got list: pass np.asarray"),
        (np.zeros((2, 2), np.float32), "needs uint8, got float32: scale to 0..255"),
        (torch.zeros(2, 2), "needs uint8, got torch.float32"),
        (torch.zeros(2, 2, dtype=torch.bfloat16), "got torch.bfloat16"),
        (np.zeros((2, 2), bool), "got bool"),
        (torch.zeros(2, 2, dtype=torch.uint8, device="meta"), r"one on meta: pass image.cpu\(\)"),
    ],
)
def test_images_of_other_kinds_are_refused_with_the_next_step(image, message):
    with pytest.raises(TypeError, match=message):
        image_digest(image)


@given(st.lists(SCALARS, max_size=4))
def test_seeds_fit_every_generator_and_depend_on_the_parts_alone(parts):
    seed = seed_from(*parts)
    assert 0 <= seed < 2**63
    assert seed == seed_from(*parts)
    assert seed != seed_from(*parts, 0)
    torch.Generator().manual_seed(seed)
    np.random.default_rng(seed)
