import copy
import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infill_aug.descriptor import COMPLEXITIES, TaskDescriptor

HAIR = {
    "task": "hair_color_classification",
    "object": "hair",
    "style": "photorealistic",
    "complexity": "medium",
    "seed": 12345,
}
NAMES = st.text(min_size=1).filter(str.strip)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_descriptor_loads_from_text_file_and_mapping_alike(tmp_path):
    path = tmp_path / "task.json"
    path.write_text(json.dumps(HAIR))
    wanted = TaskDescriptor("hair_color_classification", "hair", "photorealistic", "medium", 12345)
    for source in (json.dumps(HAIR), " \n" + json.dumps(HAIR, indent=2), path, str(path), HAIR):
        assert TaskDescriptor.from_json(source) == wanted
    assert json.loads(wanted.to_json()) == HAIR


def test_only_task_and_object_are_required():
    descriptor = TaskDescriptor.from_json({"task": "pets", "object": "cat"})
    assert descriptor.to_dict() == {
        "task": "pets", "object": "cat", "style": "photorealistic", "complexity": "medium", "seed": 0
    }  # fmt: skip
    for missing in ("task", "object"):
        with pytest.raises(ValueError, match=rf"missing.*'{missing}'"):
            TaskDescriptor.from_json({key: value for key, value in HAIR.items() if key != missing})


@given(
    st.builds(
        TaskDescriptor,
        task=NAMES,
        object=NAMES,
        style=NAMES,
        complexity=st.sampled_from(COMPLEXITIES),
        seed=st.integers(0, 2**70),
        prompt=st.none() | st.text(),
        negative_prompt=st.none() | st.text(),
        backend=st.none() | st.text(),
        options=st.dictionaries(st.text(), JSON_VALUES, max_size=3),
    )
)
def test_every_descriptor_survives_a_round_trip_through_json(descriptor):
    again = TaskDescriptor.from_json(descriptor.to_json())
    assert again == descriptor
    assert hash(again) == hash(descriptor)
    assert TaskDescriptor.from_json(descriptor.to_dict()) == descriptor
    assert pickle.loads(pickle.dumps(descriptor)) == copy.deepcopy(descriptor) == descriptor


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", ""),
        ("task", "  "),
        ("task", None),
        ("object", 3),
        ("style", []),
        ("complexity", "extreme"),
        ("complexity", 1),
        ("complexity", ["low"]),
        ("seed", -1),
        ("seed", 1.0),
        ("seed", "12345"),
        ("seed", True),
        ("seed", None),
        ("prompt", 5),
        ("negative_prompt", ["blurry"]),
        ("backend", 7),
        ("options", None),
        ("options", [1]),
        ("options", {1: 2}),
        ("options", {"a": object()}),
        ("options", {"a": {1, 2}}),
        ("options", {"a": float("nan")}),
        ("options", {"a": [float("inf")]}),
    ],
)
def test_a_wrong_type_or_value_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ValueError, match=f"'{field}'"):
        TaskDescriptor.from_json({**HAIR, field: value})


@pytest.mark.parametrize("value", ["extreme", 1])
def test_an_error_names_the_value_and_what_is_allowed(value):
    with pytest.raises(ValueError, match=rf"low.*medium.*high.*{value!r}"):
        TaskDescriptor.from_json({**HAIR, "complexity": value})


def test_unknown_fields_are_all_named_together_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['colour', 'sede'\].*'complexity'.*'seed'"):
        TaskDescriptor.from_json({**HAIR, "sede": 1, "colour": "red"})
    with pytest.raises(ValueError, match="5"):
        TaskDescriptor.from_json({**HAIR, 5: 1})


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"task": "a", ', ValueError, "not valid JSON"),
        ("{}", ValueError, "missing.*task.*object"),
        ('{"task": "a", "object": "b", "options": {"x": NaN}}', ValueError, "'options'"),
        ("no_such_file.json", FileNotFoundError, "no_such_file.json"),
        ("", FileNotFoundError, "no descriptor file"),
    ],
)
def test_text_that_is_no_descriptor_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        TaskDescriptor.from_json(text)


def test_a_file_that_holds_no_object_is_refused(tmp_path):
    path = tmp_path / "list.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="JSON object, got list"):
        TaskDescriptor.from_json(path)


def test_long_text_that_is_no_object_is_refused_as_text_not_as_a_system_error():
    with pytest.raises((ValueError, FileNotFoundError), match="descriptor"):
        TaskDescriptor.from_json("remove the hair and keep the face " * 300)


def test_a_descriptor_does_not_follow_a_mapping_that_was_passed_in():
    options = {"strength": 0.5, "steps": [1, 2]}
    descriptor = TaskDescriptor("pets", "cat", options=options)
    options["strength"] = 0.9
    options["steps"].append(3)
    assert descriptor.options == {"strength": 0.5, "steps": [1, 2]}


def test_a_descriptor_does_not_follow_what_is_done_to_a_mapping_it_gave_out():
    descriptor = TaskDescriptor("pets", "cat", options={"strength": 0.5})
    descriptor.to_dict()["options"]["strength"] = 0.9
    assert descriptor.options == {"strength": 0.5}


def test_fields_cannot_be_set():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskDescriptor("pets", "cat").seed = 1


def test_descriptors_that_differ_are_unequal_and_equal_ones_are_one_key():
    one = TaskDescriptor("pets", "cat", options={"a": 1})
    others = [
        dataclasses.replace(one, **{field: value})
        for field, value in {
            "task": "birds", "object": "dog", "style": "anime", "complexity": "low", "seed": 1, "prompt": "a lawn",
            "negative_prompt": "blur", "backend": "noise", "options": {"a": 2},
        }.items()
    ]  # fmt: skip
    assert len({one, *others, TaskDescriptor("pets", "cat", options={"a": 1})}) == 1 + len(others)
