import copy
import json
import pickle
from functools import partial
from importlib import resources

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models import get_model_weights

from infill_aug.confidence.estimator import ConfidenceEstimator, EstimatorConfidence, list_weights
from infill_aug.confidence.from_profile import source_from_profile, teacher_from_profile
from infill_aug.confidence.teachers import list_teachers
from infill_aug.profile import SOURCES, TaskProfile, list_profiles

# What jonathandinu/face-parsing calls the classes of CelebAMask-HQ.
FACE = {
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip",
    "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
}  # fmt: skip
PROFILES = [TaskProfile.load(name) for name in list_profiles()]
TAUGHT = [profile for profile in PROFILES if profile.source == "estimator" and profile.weights is None]
TRAINED = [profile for profile in PROFILES if profile.weights is not None]


def names(profiles):
    return {profile.name for profile in profiles}


each = partial(pytest.mark.parametrize, "profile", ids=lambda profile: profile.name)


@each(PROFILES)
def test_every_bundled_profile_loads_under_its_own_name_and_says_what_it_is_for(profile):
    assert (resources.files("infill_aug") / "profiles" / f"{profile.name}.yaml").is_file()
    assert len(profile.description) > 10


@each([profile for profile in PROFILES if profile.source != "estimator"])
def test_a_bundled_profile_without_a_network_makes_its_source_at_once(profile):
    assert source_from_profile(profile).falloff == profile.falloff


@each(TRAINED)
def test_a_bundled_profile_with_weights_makes_its_estimator_of_one_of_their_heads(profile):
    assert profile.weights in list_weights()
    source = source_from_profile(profile)
    assert isinstance(source, EstimatorConfidence)
    assert source.falloff == profile.falloff
    assert source.estimator.input_size == profile.input_size
    assert source.estimator.head == profile.source_options.get("head", profile.name)


@each(TAUGHT)
def test_a_bundled_profile_without_weights_says_how_to_learn_them(profile):
    with pytest.raises(ValueError, match=f"infill-aug profiles train {profile.name} --data FOLDER"):
        source_from_profile(profile)


def test_there_is_a_profile_for_every_kind_of_label_and_every_task():
    assert {"centre_prior", "labelled_boxes", "labelled_masks"} <= names(PROFILES)
    assert names(TRAINED) == {"salient_object", "object_identification", "pets"}
    assert names(TAUGHT) == {"person", "hair_color", "facial_emotion"}


@each(TAUGHT + TRAINED)
def test_every_profile_of_an_estimator_names_a_teacher_that_there_is_and_its_classes(profile):
    assert profile.teacher["name"] in list_teachers()
    teacher = teacher_from_profile(profile)
    assert teacher.falloff == 0  # a student learns what matters; the ring comes later
    if profile.teacher["name"] == "saliency":
        assert not profile.class_weights
        return
    assert teacher.class_weights == profile.class_weights
    if profile.name in ("hair_color", "facial_emotion"):
        assert profile.teacher["checkpoint"] == "jonathandinu/face-parsing"
        assert set(profile.class_weights) <= FACE
    else:
        known = get_model_weights(profile.teacher["model"]).DEFAULT.meta["categories"]
        assert set(profile.class_weights) <= set(known)
    assert max(profile.class_weights.values()) == 1


def test_an_object_of_any_kind_is_every_class_but_the_background():
    weights = TaskProfile.load("object_identification").class_weights
    known = get_model_weights("deeplabv3_mobilenet_v3_large").DEFAULT.meta["categories"]
    assert {*weights, "__background__"} == set(known)


@each([profile for profile in PROFILES if profile.class_weights])
def test_what_matters_most_is_never_masked_and_what_matters_less_can_be(profile):
    assert all(weight >= profile.protect_above or weight < 0.9 for weight in profile.class_weights.values())


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


texts = st.text(max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
options = st.dictionaries(texts, plain | st.lists(plain, max_size=3) | st.dictionaries(texts, plain, max_size=2))
teachers = st.builds(lambda name, more: {**more, "name": name}, texts, options)
# A source and a teacher: the teacher as a source needs one, the others may have one.
origins = st.tuples(st.sampled_from(SOURCES), st.none() | teachers).filter(lambda pair: pair != ("teacher", None))


@given(
    origin=origins,
    source_options=options,
    weights=st.none() | st.text(min_size=1),
    input_size=st.integers(2, 32).map(lambda n: 16 * n),
    class_weights=st.dictionaries(texts, st.floats(0, 1), max_size=4),
    edges=st.floats(0, 1000) | st.integers(0, 1000),
    falloff=st.floats(0, 2),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    position=st.floats(0, 1),
    mode=st.sampled_from(["quantile", "absolute"]),
    protect_above=st.floats(0, 1),
    clean=st.integers(0, 64),
)
def test_every_profile_survives_a_round_trip_through_json_and_yaml(
    origin, source_options, falloff, bounds, position, mode, protect_above, clean, weights, input_size, class_weights,
    edges,
):  # fmt: skip
    (source, teacher), (low, high) = origin, bounds
    threshold = min(high, max(low, low + position * (high - low)))
    profile = TaskProfile(
        "p", source, source_options, falloff, threshold, (low, high), mode, protect_above, clean, "text",
        weights, input_size, class_weights, teacher, edges,
    )  # fmt: skip
    assert (profile.weights, profile.input_size, profile.edges) == (weights, input_size, edges)
    assert (profile.class_weights, profile.teacher, profile.source_options) == (class_weights, teacher, source_options)
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
        ("weights", ""),
        ("weights", 3),
        ("weights", ["base"]),
        ("input_size", 0),
        ("input_size", 16),
        ("input_size", 528),
        ("input_size", 100),
        ("input_size", 112.0),
        ("input_size", "112"),
        ("input_size", True),
        ("input_size", None),
        ("class_weights", None),
        ("class_weights", ["hair"]),
        ("class_weights", {"hair": 1.5}),
        ("class_weights", {"hair": -0.1}),
        ("class_weights", {"hair": float("nan")}),
        ("class_weights", {"hair": "much"}),
        ("class_weights", {"hair": None}),
        ("class_weights", {"hair": True}),
        ("class_weights", {"hair": object()}),
        ("teacher", "semantic"),
        ("teacher", ["semantic"]),
        ("teacher", {}),
        ("teacher", {"checkpoint": "a"}),
        ("teacher", {"name": None}),
        ("teacher", {"name": "semantic", "model": object()}),
        ("edges", -0.1),
        ("edges", 1001),
        ("edges", float("inf")),
        ("edges", float("nan")),
        ("edges", None),
        ("edges", True),
        ("edges", "sharp"),
    ],
)
def test_a_wrong_type_or_value_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ValueError, match=f"'{field}'"):
        TaskProfile.load({"name": "p", field: value})


def test_a_wrong_class_weight_is_named_with_its_class():
    with pytest.raises(ValueError, match=r"'class_weights' must lie in 0..1, got 2 for class 'hair'"):
        TaskProfile("p", class_weights={"skin": 0.5, "hair": 2})


def test_a_teacher_as_the_source_needs_the_teacher():
    with pytest.raises(ValueError, match="source 'teacher' needs the field 'teacher'"):
        TaskProfile("p", "teacher")
    assert TaskProfile("p", "teacher", teacher={"name": "saliency"}).teacher == {"name": "saliency"}


@pytest.mark.parametrize("size", [32, 112, 512])
def test_input_sizes_up_to_both_ends_are_taken(size):
    assert TaskProfile("p", input_size=size).input_size == size


@pytest.mark.parametrize("ending", ["yaml", "yml", "json"])
def test_own_weights_are_found_beside_the_profiles_file_wherever_it_is_used_from(ending, tmp_path, monkeypatch):
    (tmp_path / "profiles" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    places = {"beside.safetensors": "beside", "deep/below.safetensors": "below", "../above.safetensors": "above"}
    for weights, head in places.items():
        ConfidenceEstimator((head,), 32).save(tmp_path / "profiles" / weights)
        fields = {"source": "estimator", "weights": weights, "input_size": 32, "source_options": {"head": head}}
        (tmp_path / "profiles" / f"{head}.{ending}").write_text(json.dumps(fields), encoding="utf-8")
    for head in places.values():
        monkeypatch.chdir(tmp_path / "elsewhere")
        loaded = TaskProfile.load(tmp_path / "profiles" / f"{head}.{ending}")
        assert source_from_profile(loaded).estimator.heads == (head,)
        # And by a path that is relative itself.
        monkeypatch.chdir(tmp_path)
        loaded = TaskProfile.load(f"profiles/{head}.{ending}")
        assert source_from_profile(loaded).estimator.heads == (head,)


@pytest.mark.parametrize("weights", ["base", "/far/away.safetensors", None])
def test_names_of_bundled_weights_and_absolute_paths_stay_as_they_are(weights, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"weights": weights}), encoding="utf-8")
    assert TaskProfile.load(tmp_path / "p.json").weights == weights
    assert TaskProfile.load({"name": "p", "weights": "own.safetensors"}).weights == "own.safetensors"


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
    hair, teacher = {"hair": 1.0}, {"name": "semantic", "labels": [1]}
    profile = TaskProfile("p", "teacher", class_weights=hair, teacher=teacher)
    before = copy.deepcopy(profile)
    hair["skin"] = 0.5
    teacher["labels"].append(2)
    assert profile == before


def test_a_profile_does_not_follow_what_is_done_to_a_mapping_it_gave_out():
    profile = TaskProfile("p", "mask", {"class_weights": {1: 1.0}})
    before = copy.deepcopy(profile)
    profile.to_dict()["source_options"]["class_weights"].clear()
    assert profile == before
    profile = TaskProfile("p", "teacher", class_weights={"hair": 1.0}, teacher={"name": "semantic"})
    before = copy.deepcopy(profile)
    profile.to_dict()["class_weights"].clear()
    profile.to_dict()["teacher"].clear()
    assert profile == before
