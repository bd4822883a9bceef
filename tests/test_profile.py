import copy
import json
import pickle

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infill_aug.confidence.from_profile import source_from_profile
from infill_aug.profile import SOURCES, TaskProfile, list_profiles


def test_every_bundled_profile_loads_under_its_own_name_and_makes_its_source():
    assert {"centre_prior", "labelled_boxes", "labelled_masks"} <= set(list_profiles())
    for name in list_profiles():
        profile = TaskProfile.load(name)
        assert profile.name == name
        assert profile.description
        assert source_from_profile(profile).falloff == profile.falloff


def test_a_profile_loads_from_yaml_json_mapping_and_itself_alike(tmp_path):
    fields = {"source": "boxes", "source_options": {"key": ["target", "boxes"]}, "falloff": 0.1, "bounds": [0.1, 0.9]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(fields))
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    wanted = TaskProfile("mine", "boxes", {"key": ["target", "boxes"]}, 0.1, bounds=(0.1, 0.9))
    for source in (
        tmp_path / "mine.yaml",
        str(tmp_path / "mine.yml"),
        tmp_path / "mine.json",
        {"name": "mine"} | fields,
    ):
        assert TaskProfile.load(source) == wanted
    assert TaskProfile.load(wanted) is wanted


@given(
    source=st.sampled_from(SOURCES),
    falloff=st.floats(0, 2),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    position=st.floats(0, 1),
    mode=st.sampled_from(["quantile", "absolute"]),
    protect_above=st.floats(0, 1),
    clean=st.integers(0, 64),
)
def test_every_profile_survives_a_round_trip_through_json_and_yaml(
    source, falloff, bounds, position, mode, protect_above, clean
):
    low, high = bounds
    threshold = min(high, max(low, low + position * (high - low)))
    profile = TaskProfile(
        "p", source, {"key": "a"}, falloff, threshold, (low, high), mode, protect_above, clean, "text"
    )
    assert TaskProfile.load(json.loads(json.dumps(profile.to_dict()))) == profile
    assert TaskProfile.load(yaml.safe_load(yaml.safe_dump(profile.to_dict()))) == profile
    assert pickle.loads(pickle.dumps(profile)) == profile
    assert hash(TaskProfile.load(profile.to_dict())) == hash(profile)


@pytest.mark.parametrize(
    "options", [{"foreground": (1, 3)}, {"class_weights": {1: 0.5, 2: 1.0}}, {"key": ["target", 1]}, {}]
)
def test_source_options_survive_a_round_trip_through_json(options):
    profile = TaskProfile("p", "mask", options)
    plain = profile.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert TaskProfile.load(json.loads(json.dumps(plain))) == profile


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", None),
        ("source", "saliency"),
        ("source", None),
        ("source", ["mask"]),
        ("source_options", [1]),
        ("source_options", None),
        ("falloff", -0.1),
        ("falloff", 2.5),
        ("falloff", "wide"),
        ("falloff", float("nan")),
        ("threshold", 1.5),
        ("threshold", None),
        ("threshold", True),
        ("bounds", (0.9, 0.1)),
        ("bounds", (0.0, 1.5)),
        ("bounds", (-0.1, 1.0)),
        ("bounds", (0.0,)),
        ("bounds", 0.5),
        ("bounds", None),
        ("bounds", ("low", "high")),
        ("bounds", (float("nan"), 1.0)),
        ("mode", "relative"),
        ("mode", None),
        ("protect_above", -0.1),
        ("protect_above", 95),
        ("protect_above", None),
        ("clean", -1),
        ("clean", 65),
        ("clean", 1.5),
        ("clean", True),
    ],
)
def test_a_wrong_type_or_value_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ValueError, match=f"'{field}'"):
        TaskProfile.load({"name": "p", field: value})


def test_a_threshold_outside_the_profiles_own_bounds_is_refused():
    with pytest.raises(ValueError, match=r"'threshold' must lie in 0.2..0.4, got 0.5"):
        TaskProfile("p", threshold=0.5, bounds=(0.2, 0.4))


def test_unknown_fields_are_all_named_together_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['fall_off', 'treshold'\].*'threshold'"):
        TaskProfile.load({"name": "p", "treshold": 0.5, "fall_off": 0.1})


def test_a_mapping_without_a_name_is_refused_by_the_name_of_the_field():
    with pytest.raises(ValueError, match="name"):
        TaskProfile.load({"source": "centre"})


def test_a_profile_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'centre_prio'.*'centre_prior'"):
        TaskProfile.load("centre_prio")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
        TaskProfile.load(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "source: [centre", "does not parse"),
        ("a.json", "{", "does not parse"),
        ("a.yaml", "- centre", "mapping of fields, got list"),
        ("a.yaml", "", "mapping of fields, got NoneType"),
        ("a.json", "3", "mapping of fields, got int"),
        ("a.yaml", "falloff: -1", "'falloff'"),
    ],
)
def test_a_file_that_holds_no_profile_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        TaskProfile.load(tmp_path / name)


def test_a_profile_does_not_follow_a_mapping_that_was_passed_in():
    weights, key = {1: 1.0}, ["target", "mask"]
    options = {"class_weights": weights, "key": key}
    profile = TaskProfile("p", "mask", options)
    before = copy.deepcopy(profile)
    options["falloff"] = 0.5
    weights[1] = 0.2
    key.append("x")
    assert profile == before


def test_a_profile_does_not_follow_what_is_done_to_a_mapping_it_gave_out():
    profile = TaskProfile("p", "mask", {"class_weights": {1: 1.0}})
    before = copy.deepcopy(profile)
    profile.to_dict()["source_options"]["class_weights"].clear()
    assert profile == before
