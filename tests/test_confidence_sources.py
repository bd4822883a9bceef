import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from torchvision import tv_tensors

from infill_aug.confidence.estimator import ConfidenceEstimator, EstimatorConfidence
from infill_aug.confidence.from_profile import source_from_profile, teacher_from_profile
from infill_aug.confidence.points import PointConfidence
from infill_aug.confidence.sources import (
    BoxConfidence,
    CallableConfidence,
    CentreConfidence,
    MaskConfidence,
    protect_labelled,
)
from infill_aug.confidence.teachers.torchvision import TorchvisionConfidence
from infill_aug.functional.grading import grade
from infill_aug.functional.masks import level_masks, threshold_mask
from infill_aug.key import digest
from infill_aug.profile import TaskProfile
from infill_aug.types import check_confidence, quantise_confidence

HEIGHT, WIDTH = 12, 16
IMAGE = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
TRIMAP = np.full((HEIGHT, WIDTH), 2, np.uint8)  # 1 = object, 2 = background, 3 = rim
TRIMAP[3:9, 4:12] = 3
TRIMAP[4:8, 5:11] = 1
OBJECT = torch.from_numpy((TRIMAP != 2)[None])


# --- masks ---


@pytest.mark.parametrize(
    "mask",
    [
        TRIMAP,
        TRIMAP.astype(np.int64),
        TRIMAP.astype(np.uint16),
        TRIMAP[None],
        torch.from_numpy(TRIMAP),
        torch.from_numpy(TRIMAP)[None].long(),
        tv_tensors.Mask(TRIMAP),
        PILImage.fromarray(TRIMAP),
        PILImage.fromarray(TRIMAP).convert("I"),
        PILImage.fromarray(TRIMAP).convert("RGB"),
        PILImage.fromarray(TRIMAP.astype(np.uint16)),
        torch.from_numpy(TRIMAP).float(),
        TRIMAP.astype(np.float32),
    ],
    ids=[
        "array", "int64 array", "uint16 array", "array with a channel", "tensor", "tensor with a channel", "Mask", "L",
        "I", "RGB", "I;16", "float tensor", "float array",
    ],
)  # fmt: skip
def test_a_label_map_of_any_type_gives_the_same_map(mask):
    wanted = grade(OBJECT[None].float(), 0.2)[0]
    assert torch.equal(MaskConfidence(foreground=(1, 3))(IMAGE, mask), wanted)
    assert torch.equal(MaskConfidence(class_weights={1: 1.0, 3: 1.0})(IMAGE, mask), wanted)


def test_palette_pictures_are_read_by_index_not_by_colour():
    picture = PILImage.fromarray(TRIMAP)
    picture.putpalette([0, 0, 0, 255, 255, 255, 0, 0, 0, 9, 9, 9])
    assert picture.mode == "P"
    assert torch.equal(MaskConfidence(foreground=(1, 3), falloff=0)(IMAGE, picture) == 1, OBJECT)


@pytest.mark.parametrize(
    "mask",
    [
        OBJECT[0],
        OBJECT[0].long(),
        OBJECT[0].to(torch.uint8) * 255,
        OBJECT[0].float(),
        OBJECT[0].float() * 0.9,
        OBJECT[0].numpy(),
        OBJECT[0].numpy().astype(np.float64),
        OBJECT[0].numpy() * 0.9,
        PILImage.fromarray(OBJECT[0].numpy()),
        PILImage.fromarray(OBJECT[0].numpy().astype(np.uint8) * 255),
    ],
    ids=["bool", "int", "0/255", "float", "soft", "bool array", "float array", "soft array", "PIL 1", "PIL 0/255"],
)
def test_a_binary_mask_of_any_type_gives_the_same_map(mask):
    assert torch.equal(MaskConfidence(falloff=0)(IMAGE, mask) == 1, OBJECT)


def test_instance_masks_are_put_together():
    instances = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    instances[0, :4, :4], instances[1, 2:8, 2:8], instances[2, 9:, 12:] = True, True, True
    confidence = MaskConfidence(falloff=0)(IMAGE, tv_tensors.Mask(instances))
    assert torch.equal(confidence[0] == 1, instances.any(0))


def test_class_weights_are_the_confidence_of_each_class_and_the_rest_falls_off():
    source = MaskConfidence(class_weights={1: 1.0, "3": 0.5}, falloff=0)
    confidence = source(IMAGE, TRIMAP)
    assert (confidence[0][TRIMAP == 1] == 1).all()
    assert (confidence[0][TRIMAP == 3] == 0.5).all()
    assert (confidence[0][TRIMAP == 2] == 0).all()
    graded = dataclasses.replace(source, falloff=0.3)(IMAGE, TRIMAP)
    assert (graded >= confidence).all()
    assert (graded[0][TRIMAP == 2] > 0).all()
    assert (graded[0][TRIMAP == 2] < 0.9).all()


@pytest.mark.parametrize("weight", [1.5, 5.0, -0.5, float("nan")])
def test_class_weights_outside_0_to_1_are_refused_and_never_wrap_around(weight):
    with pytest.raises(ValueError, match=rf"class_weights.*{weight}"):
        MaskConfidence(class_weights={1: weight})(IMAGE, TRIMAP)


@pytest.mark.parametrize(
    "empty",
    [
        torch.zeros(HEIGHT, WIDTH),
        torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool),
        tv_tensors.Mask(torch.zeros(0, HEIGHT, WIDTH, dtype=torch.uint8)),
        np.zeros((HEIGHT, WIDTH), np.uint8),
        np.zeros((0, HEIGHT, WIDTH), bool),
        PILImage.new("L", (WIDTH, HEIGHT)),
    ],
    ids=["tensor", "no instances", "Mask without instances", "array", "array without instances", "PIL"],
)
def test_an_image_without_a_labelled_pixel_is_protected_everywhere(empty):
    for falloff in (0.0, 0.2):
        confidence = MaskConfidence(falloff=falloff)(IMAGE, empty)
        assert confidence.shape == (1, HEIGHT, WIDTH)
        assert (confidence == 1).all()
    assert not threshold_mask(quantise_confidence(confidence)[None], 1.0, protect_above=0.95).any()


@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), [], np.zeros((0, 4)), torch.zeros(0)])
def test_an_image_without_boxes_is_protected_everywhere(boxes):
    assert (BoxConfidence()(IMAGE, boxes) == 1).all()
    assert BoxConfidence()(IMAGE, boxes).shape == (1, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "mask", [torch.ones(9, 16), torch.ones(2, 9, 16), np.ones((9, 16)), PILImage.new("L", (16, 9))]
)
def test_a_mask_of_another_size_is_refused_with_both_sizes(mask):
    with pytest.raises(ValueError, match=r"\(9, 16\).*\(12, 16\)"):
        MaskConfidence(key="mask")(IMAGE, {"mask": mask})
    with pytest.raises(ValueError, match=r"\(9, 16\).*\(12, 16\)"):
        protect_labelled(torch.zeros(1, 12, 16, dtype=torch.uint8), {"mask": mask}, "masks")


@pytest.mark.parametrize(
    ("target", "key", "error", "message"),
    [
        ({"label": 3}, "mask", KeyError, "'mask'.*label"),
        (None, None, TypeError, "NoneType"),
        ("mask.png", None, TypeError, "str"),
        (torch.zeros(2, 3, 4, 5), None, ValueError, r"\(2, 3, 4, 5\)"),
        (torch.zeros(5), None, ValueError, r"\(5,\)"),
    ],
)
def test_a_target_without_a_mask_is_refused_by_what_it_is(target, key, error, message):
    with pytest.raises(error, match=message):
        MaskConfidence(key=key)(IMAGE, target)


# --- boxes ---


def inside(left, top, right, bottom):
    wanted = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    wanted[:, top:bottom, left:right] = True
    return wanted


@pytest.mark.parametrize(
    ("boxes", "box_format"),
    [
        ([[2, 3, 7, 9]], "xyxy"),
        (torch.tensor([[2.2, 3.9, 6.5, 8.1]]), "xyxy"),
        (np.array([[2, 3, 5, 6]]), "xywh"),
        (torch.tensor([[4.5, 6.0, 5.0, 6.0]]), "cxcywh"),
        (tv_tensors.BoundingBoxes([[2, 3, 7, 9]], format="XYXY", canvas_size=(HEIGHT, WIDTH)), "cxcywh"),
        (tv_tensors.BoundingBoxes([[2, 3, 5, 6]], format="XYWH", canvas_size=(HEIGHT, WIDTH)), "xyxy"),
        (tv_tensors.BoundingBoxes([[4.5, 6.0, 5.0, 6.0]], format="CXCYWH", canvas_size=(HEIGHT, WIDTH)), "xyxy"),
    ],
)
def test_boxes_of_every_format_cover_the_same_pixels_rounded_outwards(boxes, box_format):
    confidence = BoxConfidence(format=box_format, falloff=0)(IMAGE, boxes)
    assert torch.equal(confidence == 1, inside(2, 3, 7, 9))
    graded = BoxConfidence(format=box_format, falloff=0.2)(IMAGE, boxes)
    assert torch.equal(graded == 1, inside(2, 3, 7, 9))
    assert graded.min() > 0


def test_boxes_that_reach_over_the_border_and_several_boxes_are_put_together():
    boxes = torch.tensor([[-5.0, -5.0, 3.0, 2.0], [10.0, 8.0, 99.0, 99.0]])
    confidence = BoxConfidence(key=("objects", "boxes"), falloff=0)(IMAGE, {"objects": {"boxes": boxes}})
    assert torch.equal(confidence == 1, inside(0, 0, 3, 2) | inside(10, 8, WIDTH, HEIGHT))


@pytest.mark.parametrize("boxes", [torch.rand(4, 5), torch.rand(3), torch.rand(2, 3), torch.rand(8), torch.rand(1, 8)])
def test_boxes_that_are_not_four_numbers_each_are_refused_with_their_shape(boxes):
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        BoxConfidence()(IMAGE, boxes)
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        protect_labelled(torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8), {"boxes": boxes}, "boxes")


@pytest.mark.parametrize("target", [None, {"label": 3}, "boxes.json"])
def test_a_target_without_boxes_is_refused_by_what_it_is(target):
    with pytest.raises((TypeError, ValueError), match="boxes"):
        BoxConfidence()(IMAGE, target)
    with pytest.raises(KeyError, match=r"'boxes'"):
        BoxConfidence(key="boxes")(IMAGE, target)


def test_rotated_boxes_are_refused_by_their_format_not_read_as_something_else():
    corners = torch.tensor([[2.0, 3.0, 7.0, 3.0, 7.0, 9.0, 2.0, 9.0]])
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXYXYXY", canvas_size=(HEIGHT, WIDTH))
    with pytest.raises((ValueError, NotImplementedError), match=r"(?i)xyxyxyxy"):
        BoxConfidence()(IMAGE, boxes)


def test_an_unknown_box_format_is_refused_by_name():
    with pytest.raises(ValueError, match="yolo"):
        BoxConfidence(format="yolo")(IMAGE, torch.rand(2, 4))


# --- centre and your own ---


def test_a_centre_map_needs_no_target_and_its_width_is_the_falloff():
    wide, narrow = CentreConfidence(0.5)(IMAGE, None), CentreConfidence(0.1)(IMAGE, "anything")
    assert wide.shape == narrow.shape == (1, HEIGHT, WIDTH)
    assert (wide >= narrow).all()
    check_confidence(wide)
    with pytest.raises(ValueError, match="above 0"):
        CentreConfidence(0.0)(IMAGE, None)


@pytest.mark.parametrize(
    "result",
    [
        torch.full((HEIGHT, WIDTH), 0.4),
        torch.full((1, HEIGHT, WIDTH), 0.4, dtype=torch.float64),
        np.full((HEIGHT, WIDTH), 0.4, np.float32),
        torch.full((HEIGHT, WIDTH), 102, dtype=torch.uint8),
    ],
    ids=["HW", "1HW float64", "array", "uint8"],
)
def test_your_own_function_sees_image_and_target_and_its_map_is_used(result):
    seen = []
    confidence = CallableConfidence(lambda image, target: seen.append((image, target)) or result, "mine")(IMAGE, 7)
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence, torch.full((1, HEIGHT, WIDTH), 0.4))
    assert seen[0][0] is IMAGE
    assert seen[0][1] == 7


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(4, 5), r"mine.*\(1, 4, 5\).*\(1, 12, 16\)"),
        (torch.zeros(3, HEIGHT, WIDTH), r"mine.*\(3, 12, 16\)"),
        (torch.full((HEIGHT, WIDTH), 2.0), "mine(.|\n)*from 2 to 2|from 2 to 2(.|\n)*mine"),
        (torch.full((HEIGHT, WIDTH), torch.nan), "mine(.|\n)*NaN|NaN(.|\n)*mine"),
        (torch.zeros(HEIGHT, WIDTH, dtype=torch.int64), "mine(.|\n)*int64|int64(.|\n)*mine"),
    ],
)
def test_a_wrong_map_of_your_own_function_is_refused_by_the_functions_name(result, message):
    with pytest.raises(ValueError, match=message):
        CallableConfidence(lambda image, target: result, "mine")(IMAGE, None)


# --- configs ---

SOURCES = {
    "mask": (
        MaskConfidence(),
        {
            "key": ("target", 1),
            "foreground": (1, 3),
            "class_weights": {1: 0.5},
            "falloff": 0.3,
            "edges": 5.0,
            "inset": 1,
        },
    ),
    "boxes": (BoxConfidence(), {"key": "boxes", "format": "xywh", "falloff": 0.3, "edges": 5.0}),
    "centre": (CentreConfidence(), {"falloff": 0.4}),
    "callable": (CallableConfidence(lambda image, target: image, "a"), {"name": "b"}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_configs_are_json_and_change_with_every_field(kind):
    source, changes = SOURCES[kind]
    assert set(changes) == {f.name for f in dataclasses.fields(source)} - {"function"}
    configs = [source.config()] + [dataclasses.replace(source, **{k: v}).config() for k, v in changes.items()]
    assert len({digest(config) for config in configs}) == len(configs)
    for config in configs:
        assert json.loads(json.dumps(config)) == config


def test_configs_of_different_sources_differ():
    configs = [source.config() for source, _ in SOURCES.values()]
    assert len({digest(config) for config in configs}) == len(configs)


def test_the_weight_of_each_class_is_part_of_the_config():
    weights = [{1: 0.5}, {1: 0.6}, {2: 0.5}, {1: 0.5, 2: 0.5}]
    assert len({digest(MaskConfidence(class_weights=each).config()) for each in weights}) == len(weights)


@pytest.mark.parametrize("foreground", [(1, 2), [1, 2], range(1, 3)], ids=["tuple", "list", "range"])
def test_every_sequence_of_foreground_values_has_the_same_config(foreground):
    assert digest(MaskConfidence(foreground=foreground).config()) == digest(MaskConfidence(foreground=[1, 2]).config())


def test_a_profile_makes_its_source_with_its_falloff_and_options():
    profile = TaskProfile("p", "mask", {"foreground": [1, 3], "key": "mask"}, 0.3)
    assert source_from_profile(profile) == MaskConfidence("mask", [1, 3], None, 0.3)
    assert source_from_profile(TaskProfile("p", "boxes", {"format": "xywh"})) == BoxConfidence(None, "xywh", 0.2)
    assert source_from_profile(TaskProfile("p", "centre", {"falloff": 0.7})) == CentreConfidence(0.7)
    with pytest.raises(ValueError, match=r"'boxes'.*\['foreground'\].*'format'"):
        source_from_profile(TaskProfile("p", "boxes", {"foreground": [1]}))


def test_a_profile_of_points_reads_them_with_its_edges():
    profile = TaskProfile("p", "points", {"key": "clicks", "radius": 0.1}, 0.3, edges=20.0)
    assert source_from_profile(profile) == PointConfidence("clicks", 0.1, 0.3, 20.0)
    assert source_from_profile(dataclasses.replace(profile, source_options={"edges": 5.0})).edges == 5.0
    with pytest.raises(ValueError, match=r"'points' has no options \['foreground'\]; it has .*'radius'"):
        source_from_profile(TaskProfile("p", "points", {"foreground": [1]}))


@pytest.mark.parametrize("source", ["mask", "boxes"])
def test_a_profile_of_labels_reads_them_with_its_edges(source):
    assert source_from_profile(TaskProfile("p", source, edges=9.0)).edges == 9.0


def test_a_centre_prior_knows_no_edges():
    with pytest.raises(ValueError, match="profile 'p': source 'centre' knows no edges, got 9"):
        source_from_profile(TaskProfile("p", "centre", edges=9.0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of two heads, for pictures of side 64."""
    path = tmp_path_factory.mktemp("weights") / "two.safetensors"
    ConfidenceEstimator(("cats", "dogs"), 64).save(path)
    return str(path)


def test_a_profile_of_an_estimator_makes_it_with_its_head_size_falloff_and_edges(weights):
    profile = TaskProfile("dogs", "estimator", {"batch_size": 3}, 0.3, weights=weights, input_size=96, edges=20.0)
    source = source_from_profile(profile)
    assert isinstance(source, EstimatorConfidence)
    assert (source.estimator.head, source.estimator.input_size) == ("dogs", 96)
    assert (source.falloff, source.edges, source.batch_size) == (0.3, 20.0, 3)
    cats = source_from_profile(dataclasses.replace(profile, source_options={"head": "cats", "edges": 0, "falloff": 0}))
    assert (cats.estimator.head, cats.falloff, cats.edges) == ("cats", 0, 0)
    image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8)
    alone = ConfidenceEstimator.load(weights)
    alone.head, alone.input_size = "cats", 96
    torch.testing.assert_close(cats(image, None), alone(image[None].float() / 255)[0], atol=1e-4, rtol=0)


def test_the_fields_of_an_estimators_profile_that_change_its_maps_change_its_config(weights):
    profile = TaskProfile("dogs", "estimator", weights=weights)
    changes = ({}, {"input_size": 96}, {"edges": 5.0}, {"falloff": 0.1}, {"source_options": {"head": "cats"}})
    configs = [source_from_profile(dataclasses.replace(profile, **change)).config() for change in changes]
    assert len({digest(config) for config in configs}) == len(changes)
    # What says how a network is taught does not change what it sees.
    taught = dataclasses.replace(profile, teacher={"name": "saliency"}, class_weights={"dog": 1.0}, description="dogs")
    assert source_from_profile(taught).config() == configs[0]


def test_a_profile_whose_estimator_cannot_be_made_is_refused(weights):
    with pytest.raises(ValueError, match=r"'estimator' has no options \['radius'\]; it has .*'head'"):
        source_from_profile(TaskProfile("dogs", "estimator", {"radius": 1}, weights=weights))
    with pytest.raises(ValueError, match=r"another profile.* needs a head 'birds', they have \['cats', 'dogs'\]"):
        source_from_profile(TaskProfile("birds", "estimator", weights=weights))
    with pytest.raises(ValueError, match=r"no weights; learn them from your masks: infill-aug profiles train dogs"):
        source_from_profile(TaskProfile("dogs", "estimator"))
    with pytest.raises(FileNotFoundError, match=r"no weights at 'gone.safetensors'"):
        source_from_profile(TaskProfile("dogs", "estimator", weights="gone.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"no bundled weights 'gone'"):
        source_from_profile(TaskProfile("dogs", "estimator", weights="gone"))


TEACHER = {"name": "torchvision", "model": "lraspp_mobilenet_v3_large", "input_size": 64}


def test_a_teacher_as_a_source_is_graded_and_as_a_teacher_is_not():
    profile = TaskProfile("dogs", "teacher", {}, 0.3, teacher=TEACHER, class_weights={"dog": 1.0}, edges=20.0)
    source, teacher = source_from_profile(profile), teacher_from_profile(profile)
    assert type(source) is type(teacher) is TorchvisionConfidence
    assert (source.falloff, source.edges, source.input_size) == (0.3, 20.0, 64)
    assert (teacher.falloff, teacher.edges) == (0.0, 0.0)
    assert source.class_weights == teacher.class_weights == {"dog": 1.0}
    other = source_from_profile(dataclasses.replace(profile, source_options={"edges": 5.0, "batch_size": 2}))
    assert (other.falloff, other.edges, other.batch_size) == (0.3, 5.0, 2)


def test_a_profile_whose_teacher_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match=r"'p' names no teacher; give it one, or labels"):
        teacher_from_profile(TaskProfile("p"))
    with pytest.raises(ValueError, match=r"unknown teacher 'oracle'; there are \['cam'"):
        teacher_from_profile(TaskProfile("p", teacher={"name": "oracle"}))
    with pytest.raises(ValueError, match=r"'torchvision' has no options \['checkpoint'\]"):
        teacher_from_profile(TaskProfile("p", teacher={"name": "torchvision", "checkpoint": "x"}))
    with pytest.raises(ValueError, match=r"'torchvision' has no options \['radius'\]"):
        source_from_profile(TaskProfile("p", "teacher", {"radius": 1}, teacher=TEACHER, class_weights={"dog": 1}))
    with pytest.raises(ValueError, match=r"'torchvision' needs the options \['class_weights'\]"):
        teacher_from_profile(TaskProfile("p", teacher=TEACHER))
    with pytest.raises(ValueError, match=r"'saliency' knows no classes, got class_weights for \['dog'\]"):
        teacher_from_profile(TaskProfile("p", teacher={"name": "saliency"}, class_weights={"dog": 1.0}))
    with pytest.raises(ValueError, match=r"class_weights names \['unicorn'\]"):
        teacher_from_profile(TaskProfile("p", teacher=TEACHER, class_weights={"unicorn": 1.0}))


# --- protection: no pixel of a labelled object is ever regenerated ---


@st.composite
def labelled(draw):
    """A target with boxes and instance masks of the same objects, nested somewhere, and where the objects are."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    boxes, covered = [], torch.zeros(1, height, width, dtype=torch.bool)
    instances = torch.zeros(draw(st.integers(0, 3)), height, width, dtype=torch.bool)
    for instance in instances:
        (left, right), (top, bottom) = (
            sorted(draw(st.tuples(*[st.integers(0, 8 * side)] * 2)))  # in eighths of a pixel
            for side in (width, height)
        )
        left, top, right, bottom = left / 8, top / 8, right / 8, bottom / 8
        boxes.append([left, top, right, bottom])
        instance[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    covered |= instances.any(dim=0)
    plain = torch.tensor(boxes).reshape(-1, 4)
    wrapped = tv_tensors.BoundingBoxes(plain, format="XYXY", canvas_size=(height, width))
    shape = draw(st.sampled_from(["mapping", "wrapped", "nested"]))
    target = {
        "mapping": {"boxes": plain, "masks": instances, "labels": torch.ones(len(plain))},
        "wrapped": (7, wrapped, tv_tensors.Mask(instances)),
        "nested": ({"info": [{"boxes": plain, "masks": instances}]}, "text"),
    }[shape]
    kind = draw(st.sampled_from(["noise", "zero", "binary"]))
    noise = torch.rand(1, height, width, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1))))
    confidence = {"noise": noise, "zero": noise * 0, "binary": (noise > 0.5).float()}[kind]
    return quantise_confidence(confidence), target, covered


@settings(max_examples=200)
@given(
    labelled(),
    st.sampled_from(["boxes", "masks"]),
    st.sampled_from([0.5, 1.0]) | st.floats(0, 1),
    st.sampled_from(["quantile", "absolute"]),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    st.integers(0, 2),
)
def test_no_pixel_of_a_labelled_object_is_ever_in_a_mask(sample, protect, threshold, mode, protect_above, clean):
    confidence, target, covered = sample
    protected = protect_labelled(confidence, target, protect)
    assert protected.dtype == torch.uint8
    assert (protected[covered] == 255).all()
    mask = threshold_mask(protected[None], threshold, mode=mode, protect_above=protect_above)
    assert not mask[0][covered].any()
    levels = level_masks(protected[None], (max(threshold, 0.01),), mode=mode, protect_above=protect_above, clean=clean)
    assert not levels[0][covered].any()


def test_protection_changes_only_the_labelled_pixels_of_a_new_map():
    confidence = torch.full((1, HEIGHT, WIDTH), 9, dtype=torch.uint8)
    protected = protect_labelled(confidence, {"boxes": torch.tensor([[2.0, 3.0, 7.0, 9.0]])}, "boxes")
    assert (confidence == 9).all()
    assert torch.equal(protected == 255, inside(2, 3, 7, 9))
    assert (protected[~inside(2, 3, 7, 9)] == 9).all()


@pytest.mark.parametrize("mask", [TRIMAP == 1, torch.from_numpy(TRIMAP == 1), PILImage.fromarray(TRIMAP == 1)])
def test_masks_of_every_type_protect(mask):
    protected = protect_labelled(torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8), {"mask": mask}, "masks")
    assert torch.equal(protected[0] == 255, torch.from_numpy(TRIMAP == 1))


@pytest.mark.parametrize(
    ("target", "protect", "error", "message"),
    [
        ({"boxes": torch.zeros(0, 4)}, "box", ValueError, "'boxes' or 'masks', got 'box'"),
        ({"label": 3}, "boxes", KeyError, "BoundingBoxes.*boxes"),
        ((3, {"boxes": torch.zeros(1, 4)}), "masks", KeyError, "Mask.*masks"),
        (7, "boxes", KeyError, "BoundingBoxes"),
        (None, "masks", KeyError, "Mask"),
    ],
)
def test_a_target_with_nothing_to_protect_is_refused(target, protect, error, message):
    with pytest.raises(error, match=message):
        protect_labelled(torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8), target, protect)


# --- edges and inset ---


def test_an_inset_takes_the_rim_off_and_leaves_what_would_vanish():
    labels = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.int64)
    labels[0, 3:9, 4:12] = 1
    labels[1, 10, 2] = 1  # one pixel
    tight = MaskConfidence(falloff=0, inset=1)(IMAGE, labels)[0] > 0
    wanted = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    wanted[4:8, 5:11] = True
    wanted[10, 2] = True
    assert torch.equal(tight, wanted)
    with pytest.raises(ValueError, match="inset must be 0 pixels or more, got -1"):
        MaskConfidence(inset=-1)


@pytest.mark.parametrize("source", [MaskConfidence(edges=50.0), BoxConfidence(edges=50.0)], ids=["mask", "boxes"])
def test_with_edges_the_ring_of_labels_stays_on_its_own_side(source):
    image = torch.zeros(3, 24, 24, dtype=torch.uint8)
    image[:, :, 15:] = 255
    mask = torch.zeros(24, 24, dtype=torch.int64)
    mask[10:14, 10:14] = 1
    target = mask if isinstance(source, MaskConfidence) else torch.tensor([[10.0, 10.0, 14.0, 14.0]])
    confidence = source(image, target)[0]
    same, beyond = confidence[12, 7], confidence[12, 16]  # three pixels from the object, each
    assert same > 2 * beyond
    plain = dataclasses.replace(source, edges=0.0)(image, target)[0]
    assert plain[12, 7] == pytest.approx(plain[12, 16].item(), abs=1e-5)
    with pytest.raises(ValueError, match="edges must be 0 or more"):
        dataclasses.replace(source, edges=-1.0)
