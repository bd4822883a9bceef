import builtins
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchvision import tv_tensors

from infill_aug.confidence.sources import BoxConfidence
from infill_aug.confidence.teachers import load_teacher
from infill_aug.confidence.teachers.grabcut import GrabCutConfidence, grab_cut
from infill_aug.functional.grading import centre_prior
from infill_aug.key import digest
from infill_aug.types import check_confidence

SIDE = 96


def objects(count, seed=0, side=SIDE):
    """Ellipses of one colour on smooth noise of another: pictures, masks, and their boxes and centres."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale):
        coarse = torch.randn(count, 3, 8, 8, generator=generator)
        fine = torch.randn(count, 3, side, side, generator=generator)
        return scale * (torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") + 0.5 * fine)

    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = side * (0.3 + 0.4 * torch.rand(count, 2, 1, 1, generator=generator))
    axes = side * (0.12 + 0.13 * torch.rand(count, 2, 1, 1, generator=generator))
    masks = ((x - centres[:, 0]) / axes[:, 0]) ** 2 + ((y - centres[:, 1]) / axes[:, 1]) ** 2 < 1
    back = 0.35 + 0.3 * torch.rand(count, 3, 1, 1, generator=generator)
    shift = torch.nn.functional.normalize(torch.randn(count, 3, 1, 1, generator=generator), dim=1)
    images = torch.where(masks[:, None], back + 0.4 * shift + noise(0.05), back + noise(0.08))
    boxes = [[int(m.any(0).nonzero()[0]), int(m.any(1).nonzero()[0]), int(m.any(0).nonzero()[-1]) + 1,
              int(m.any(1).nonzero()[-1]) + 1] for m in masks]  # fmt: skip
    points = [[centre.flatten().tolist()] for centre in centres]
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), masks, [[box] for box in boxes], points


IMAGES, MASKS, BOXES, POINTS = objects(12)


def precision(maps):
    return np.mean([average_precision_score(m.flatten(), c.flatten()) for m, c in zip(MASKS, maps, strict=True)])


def test_boxes_become_the_shape_of_the_object():
    maps = GrabCutConfidence().maps(list(IMAGES), [{"boxes": box} for box in BOXES])
    boxes = [BoxConfidence(falloff=0)(image, torch.tensor(box)) for image, box in zip(IMAGES, BOXES, strict=True)]
    assert precision(maps) > 0.97 > 0.85 > precision(boxes)
    for one, box in zip(maps, boxes, strict=True):
        check_confidence(one)
        assert (one[box == 0] == 0).all()


def test_points_grow_to_the_shape_of_the_object():
    source = GrabCutConfidence()
    maps = source.maps(list(IMAGES), [{"points": point} for point in POINTS])
    assert precision(maps) > 0.9
    for one, ((x, y),) in zip(maps, POINTS, strict=True):
        assert one[0, int(y), int(x)] == 1


def test_the_map_is_the_same_alone_in_a_batch_and_after_other_cuts():
    targets = [{"boxes": BOXES[i]} if i % 2 else {"points": POINTS[i]} for i in range(6)]
    source = GrabCutConfidence(batch_size=4)
    together = source.maps(list(IMAGES[:6]), targets)
    for i in reversed(range(6)):
        assert torch.equal(source(IMAGES[i], targets[i]), together[i])


def test_the_map_is_the_same_in_another_process():
    code = f"""
import hashlib, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {__file__.rpartition("/")[0]!r})
from test_confidence_grabcut import BOXES, IMAGES, GrabCutConfidence
print(hashlib.sha256(GrabCutConfidence()(IMAGES[0], {{"boxes": BOXES[0]}}).numpy().tobytes()).hexdigest())
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    here = GrabCutConfidence()(IMAGES[0], {"boxes": BOXES[0]})
    assert run.stdout.strip() == hashlib.sha256(here.numpy().tobytes()).hexdigest()


def test_large_pictures_are_cut_small_and_give_maps_of_their_own_size():
    image = torch.nn.functional.interpolate(IMAGES[:1].float(), size=(300, 600), mode="bilinear").to(torch.uint8)[0]
    left, top, right, bottom = BOXES[0][0]
    box = torch.tensor([[left * 600 / SIDE, top * 300 / SIDE, right * 600 / SIDE, bottom * 300 / SIDE]])
    confidence = GrabCutConfidence(side=64)(image, tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(300, 600)))
    mask = torch.nn.functional.interpolate(MASKS[:1, None].float(), size=(300, 600))[0] > 0
    assert confidence.shape == (1, 300, 600)
    assert average_precision_score(mask.flatten(), confidence.flatten()) > 0.95


@pytest.mark.parametrize(
    "target",
    [{"boxes": torch.zeros(0, 4)}, {"points": []}, [], {"boxes": [[200, 200, 210, 210]]}, {"points": [[-900, 5]]}],
)
def test_an_image_with_nothing_labelled_in_it_is_protected_everywhere(target):
    assert (GrabCutConfidence()(IMAGES[0], target) == 1).all()


def test_boxes_that_cover_the_picture_get_the_centre_prior():
    confidence = GrabCutConfidence()(IMAGES[0], {"boxes": [[0, 0, SIDE, SIDE]]})
    torch.testing.assert_close(confidence, centre_prior(SIDE, SIDE)[0])


def test_a_box_in_which_no_object_is_found_counts_as_a_whole():
    grey = torch.full((3, SIDE, SIDE), 128, dtype=torch.uint8)
    grey[:, :, SIDE // 2 :] = 200
    target = {"boxes": [[10, 10, 30, 40]]}
    assert torch.equal(GrabCutConfidence()(grey, target), BoxConfidence(key="boxes", falloff=0)(grey, target))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 2), (3, 90), (5, 5)])
@pytest.mark.parametrize("target", [{"boxes": [[0, 0, 1, 1]]}, {"points": [[0, 0]]}, {"boxes": [[0.2, 0.2, 0.3, 0.3]]}])
def test_tiny_pictures_and_boxes_have_a_map(size, target):
    confidence = GrabCutConfidence()(torch.randint(0, 255, (3, *size), dtype=torch.uint8), target)
    assert confidence.shape == (1, *size)
    check_confidence(confidence)
    assert confidence[0, 0, 0] > 0


def test_boxes_and_points_are_read_as_json_values():
    source = GrabCutConfidence(format="xywh")
    prompt = source.prompt({"boxes": torch.tensor([[1, 2, 3, 4]])})
    assert prompt == {"boxes": [[1.0, 2.0, 4.0, 6.0]]}
    assert json.loads(json.dumps(prompt)) == prompt
    assert source.prompt({"points": np.array([[3, 4]])}) == {"points": [[3.0, 4.0]]}
    assert GrabCutConfidence.reads_target
    with pytest.raises(KeyError, match="label"):
        source.prompt({"label": 3})
    with pytest.raises(ValueError, match="give the targets"):
        source.maps([IMAGES[0]])


def test_the_config_is_json_and_changes_with_what_changes_a_map():
    sources = [GrabCutConfidence(), GrabCutConfidence(side=128), GrabCutConfidence(iterations=2)]
    sources += [GrabCutConfidence(falloff=0.2), GrabCutConfidence(edges=3)]
    configs = [source.config() for source in sources]
    assert len({digest(config) for config in configs}) == len(configs)
    assert all(json.loads(json.dumps(config)) == config for config in configs)
    assert load_teacher("grabcut", side=128).config() == configs[1]


@pytest.mark.parametrize(("field", "value"), [("side", 4), ("iterations", 0), ("format", "yolo"), ("falloff", -1)])
def test_arguments_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        GrabCutConfidence(**{field: value})


def test_without_opencv_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"infill-aug\[opencv\]"):
        GrabCutConfidence()


def test_what_cannot_be_cut_is_the_first_guess():
    likely = torch.zeros(20, 20, dtype=torch.bool)
    likely[4:9, 4:9] = True
    everything = torch.ones(20, 20, dtype=torch.bool)
    assert (grab_cut(torch.rand(3, 20, 20), likely=everything) == 1).all()
    assert (grab_cut(torch.rand(3, 20, 20), background=everything, likely=likely) == 0).all()


def test_seeds_are_kept_whatever_their_colour():
    background, foreground = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    background[:5], foreground[-5:] = True, True
    cut = grab_cut(IMAGES[0].float() / 255, background=background, foreground=foreground, likely=MASKS[0])
    assert (cut[background] == 0).all()
    assert (cut[foreground] == 1).all()
