import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

from infill_aug.confidence.points import PointConfidence, point_discs
from infill_aug.confidence.sources import ConfidenceSource
from infill_aug.key import digest
from infill_aug.types import check_confidence

HEIGHT, WIDTH = 12, 16
IMAGE = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
SOURCE = PointConfidence(radius=2.1 / (HEIGHT * WIDTH) ** 0.5, falloff=0)


def disc(*points, radius=2.1):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return torch.from_numpy(np.any([(y - b) ** 2 + (x - a) ** 2 <= radius**2 for a, b in points], axis=0))[None]


@pytest.mark.parametrize(
    "points",
    [
        [[4, 5], [12, 2]],
        torch.tensor([[4.0, 5.0], [12.0, 2.0]]),
        torch.tensor([[4.9, 5.2], [12.5, 2.0]]),
        np.array([[4, 5], [12, 2]], np.uint8),
        tv_tensors.KeyPoints([[4, 5], [12, 2]], canvas_size=(HEIGHT, WIDTH)),
    ],
    ids=["list", "tensor", "fractions", "array", "KeyPoints"],
)
def test_points_of_any_type_are_discs_of_full_confidence(points):
    confidence = SOURCE(IMAGE, points)
    assert confidence.dtype == torch.float32
    assert torch.equal(confidence == 1, disc((4, 5), (12, 2)))
    assert set(confidence.unique().tolist()) == {0.0, 1.0}
    nested = dataclasses.replace(SOURCE, key=("objects", "clicks"))(IMAGE, {"objects": {"clicks": points}})
    assert torch.equal(nested, confidence)


def test_the_ring_falls_off_with_the_distance_and_never_reaches_the_disc():
    confidence = dataclasses.replace(SOURCE, falloff=0.3)(IMAGE, [[8, 6]])
    assert torch.equal(confidence == 1, disc((8, 6)))
    row = confidence[0, 6, 8:]
    assert (row.diff()[2:] < 0).all()
    assert row[3] < 0.9
    check_confidence(confidence)


def test_an_edge_of_the_picture_holds_the_ring_back():
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :, 24:] = 255
    free, held = (PointConfidence(edges=edges)(image, [[20, 20]])[0] for edges in (0.0, 30.0))
    assert held[20, 28] < 0.3 * free[20, 28]
    assert held[20, 12] > 0.7 * free[20, 12]
    assert held[20, 12] > 5 * held[20, 28]


@pytest.mark.parametrize("points", [torch.zeros(0, 2), [], np.zeros((0, 2)), torch.zeros(0)])
def test_an_image_without_points_is_protected_everywhere(points):
    confidence = PointConfidence()(IMAGE, points)
    assert confidence.shape == (1, HEIGHT, WIDTH)
    assert (confidence == 1).all()


def test_a_point_outside_counts_as_far_as_its_disc_reaches_in():
    assert torch.equal(SOURCE(IMAGE, [[-2, 5]]) == 1, disc((-2, 5)))
    assert disc((-2, 5)).any()
    assert torch.equal(SOURCE(IMAGE, [[-50, 5], [3, 3]]) == 1, disc((3, 3)))
    assert (SOURCE(IMAGE, [[-50, 5]]) == 1).all()


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.data())
def test_the_pixel_of_every_point_in_the_picture_has_full_confidence(height, width, radius, data):
    x, y = data.draw(st.floats(0, width, exclude_max=True)), data.draw(st.floats(0, height, exclude_max=True))
    x, y = (float(np.float32(v * 0.99)) for v in (x, y))
    confidence = PointConfidence(radius=radius)(torch.zeros(3, height, width, dtype=torch.uint8), [[x, y]])
    assert confidence[0, int(y), int(x)] == 1
    check_confidence(confidence)


@pytest.mark.parametrize("points", [torch.rand(4, 3), torch.rand(3), torch.rand(2, 4), torch.rand(2, 5, 2), 3.0])
def test_points_that_are_not_two_numbers_each_are_refused_with_their_shape(points):
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        PointConfidence()(IMAGE, points)


@pytest.mark.parametrize(
    ("target", "key", "error", "message"),
    [
        ({"label": 3}, "points", KeyError, "'points'.*label"),
        (None, None, ValueError, "NoneType"),
        ("points.json", None, ValueError, "str"),
        ([[1.0, float("nan")]], None, ValueError, "finite.*nan"),
    ],
)
def test_a_target_without_points_is_refused_by_what_it_is(target, key, error, message):
    with pytest.raises(error, match=message):
        PointConfidence(key=key)(IMAGE, target)


@pytest.mark.parametrize(
    ("field", "value"), [("radius", -0.1), ("radius", 5), ("radius", float("nan")), ("falloff", 3), ("edges", -1)]
)
def test_arguments_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        PointConfidence(**{field: value})


def test_configs_are_json_and_change_with_every_field():
    changes = {"key": ("target", "points"), "radius": 0.1, "falloff": 0.3, "edges": 20.0}
    source: ConfidenceSource = PointConfidence()
    assert set(changes) == {field.name for field in dataclasses.fields(source)}
    configs = [source.config()] + [dataclasses.replace(source, **{k: v}).config() for k, v in changes.items()]
    assert len({digest(config) for config in configs}) == len(configs)
    assert all(json.loads(json.dumps(config)) == config for config in configs)


def test_a_disc_of_no_radius_is_one_pixel():
    assert point_discs([[3, 2]], 0, HEIGHT, WIDTH).nonzero().tolist() == [[0, 2, 3]]


def test_points_need_no_library_of_any_teacher():
    code = "import sys, infill_aug.confidence.points; assert not {'cv2', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
