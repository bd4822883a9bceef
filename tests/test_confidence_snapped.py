import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from sklearn.metrics import average_precision_score
from test_confidence_grabcut import objects

from infill_aug.confidence.estimator import ConfidenceEstimator, EstimatorConfidence
from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.teachers.grabcut import GrabCutConfidence
from infill_aug.confidence.teachers.snapped import SnappedConfidence
from infill_aug.functional.grading import centre_prior
from infill_aug.key import digest
from infill_aug.types import check_confidence

IMAGES, MASKS, BOXES, _ = objects(10, seed=3)


class Coarse(NetworkConfidence):
    """Blobs of 12 x 12 cells beside the objects: shifted, noisy, and of no sharp border."""

    def __init__(self, shift=8, noise=0.5, cells=12, **grading):
        super().__init__(**grading)
        self.shift, self.noise, self.cells = shift, noise, cells

    def score(self, images, prompts):
        return torch.stack([self.one(image) for image in images])

    def one(self, image):
        index = int((IMAGES.float() / 255 - image).abs().mean((1, 2, 3)).argmin())
        coarse = nnf.adaptive_avg_pool2d(MASKS[index][None].float().roll(self.shift, -1), self.cells)
        return (coarse + self.noise * torch.randn(coarse.shape, generator=torch.manual_seed(index))).clamp(0, 1)

    def identity(self):
        return {"shift": self.shift}


class Level(NetworkConfidence):
    """The same map for every picture."""

    def __init__(self, one, **grading):
        super().__init__(**grading)
        self.one = one

    def score(self, images, prompts):
        return self.one.expand(len(images), 1, *self.one.shape[-2:])

    def identity(self):
        return {"sum": float(self.one.sum())}


def precision(maps, masks=MASKS):
    each = [average_precision_score(m.flatten(), c.flatten()) for m, c in zip(masks, maps, strict=True)]
    return float(np.mean(each))


@pytest.mark.parametrize("shift", [0, 8, -8])  # pixels, where the objects' radii are 12 to 24
def test_a_coarse_and_shifted_map_is_brought_to_the_outlines(shift):
    coarse = Coarse(shift)
    snapped = SnappedConfidence(coarse).maps(list(IMAGES))
    assert precision(snapped) > 0.65
    assert precision(snapped) > precision(coarse.maps(list(IMAGES))) + 0.15
    for one in snapped:
        check_confidence(one)
        assert one.shape == (1, 96, 96)


def test_nearly_every_picture_gains():
    coarse = Coarse().maps(list(IMAGES))
    snapped = SnappedConfidence(Coarse()).maps(list(IMAGES))
    gains = [
        precision([after], [mask]) - precision([before], [mask])
        for before, after, mask in zip(coarse, snapped, MASKS, strict=True)
    ]
    assert sum(gain > 0 for gain in gains) >= 8


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_flat_map_without_the_centre_is_handed_on(level):
    """It says nothing, so that nothing can be cut out by it."""
    source = SnappedConfidence(Level(torch.full((1, 1, 5, 5), level)), centre=0)
    for one in source.maps(list(IMAGES[:2])):
        torch.testing.assert_close(one, torch.full((1, 96, 96), max(level, 1e-4)))


def test_without_the_centre_the_map_alone_says_where_to_cut_and_with_it_alone_the_map_says_nothing():
    left, right = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    left[..., 3:5, 1], right[..., 3:5, 6] = 1, 1
    image = torch.full((3, 96, 96), 90, dtype=torch.uint8)
    image[:, 34:62, 4:32], image[0, 34:62, 66:94] = 220, 220  # a white square on the left, a red one on the right
    alone = [SnappedConfidence(Level(one), centre=0)(image, None)[0] for one in (left, right)]
    for here, there in ((alone[0], alone[1]), (alone[1].flip(-1), alone[0].flip(-1))):
        assert here[38:58, 8:28].mean() > 0.9
        assert there[38:58, 8:28].mean() < 0.1
    only = [SnappedConfidence(Level(one), centre=1)(image, None) for one in (left, right)]
    assert torch.equal(*only)


def test_a_map_of_two_values_has_seeds_on_both_sides():
    """What a saturated network gives: quantiles fall on the values themselves."""
    for index in range(3):
        share = MASKS[index].float().mean()
        binary = nnf.interpolate(MASKS[index][None, None].float(), size=(96, 96))
        if share < 0.45:  # grown until the object is more than the cut's guess of it
            binary = nnf.max_pool2d(binary, 33, 1, 16)
        found = SnappedConfidence(Level(binary), centre=0)(IMAGES[index], None)
        assert precision([found], MASKS[index : index + 1]) > 0.8
    halves = torch.zeros(1, 1, 96, 96)
    halves[..., :48] = 1
    image = torch.full((3, 96, 96), 60, dtype=torch.uint8)
    image[..., :48] = 200
    found = SnappedConfidence(Level(halves), centre=0)(image, None)[0]
    assert found[:, :40].mean() > 0.9
    assert found[:, 56:].mean() < 0.1


def test_pictures_of_any_size_have_maps_of_their_own_size_alone_as_in_a_batch():
    sizes = [(96, 96), (40, 70), (200, 120), (1, 1), (3, 50)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    source = SnappedConfidence(Level(centre_prior(9, 9).roll(2, -1)), batch_size=3)
    for image, one in zip(images, source.maps(images), strict=True):
        check_confidence(one)
        assert one.shape == (1, *image.shape[-2:])
        assert torch.equal(one, source(image, None))


def test_the_key_holds_the_sources_own_and_all_that_changes_a_map():
    estimators = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        estimators.append(EstimatorConfidence(ConfidenceEstimator(input_size=32)))
    source = SnappedConfidence(estimators[0])
    assert source.identity()["of"] == estimators[0].config()
    assert json.loads(json.dumps(source.config())) == source.config()
    others = [
        SnappedConfidence(estimators[0], centre=0.4), SnappedConfidence(estimators[0], falloff=0.1),
        SnappedConfidence(estimators[1]), estimators[0],
    ]  # fmt: skip
    assert len({digest(one.config()) for one in (source, *others)}) == 5
    again = pickle.loads(pickle.dumps(source))
    assert again.config() == source.config()
    assert torch.equal(again(IMAGES[0], None), source(IMAGES[0], None))


def test_prompts_pass_through_to_the_source():
    boxes = GrabCutConfidence(format="xywh", batch_size=5)
    source = SnappedConfidence(boxes)
    assert source.reads_target
    assert not SnappedConfidence(Coarse()).reads_target
    assert source.batch_size == 5
    target = {"boxes": [[1, 2, 3, 4]]}
    assert source.prompt(target) == boxes.prompt(target) == {"boxes": [[1.0, 2.0, 4.0, 6.0]]}
    with pytest.raises(ValueError, match="give the targets"):
        source.maps([IMAGES[0]])
    prompted = SnappedConfidence(GrabCutConfidence())
    maps = prompted.maps(list(IMAGES), [{"boxes": box} for box in BOXES])
    assert precision(maps) > 0.9
    elsewhere = prompted(IMAGES[0], {"boxes": [[0, 0, 20, 20]]})
    assert not torch.equal(maps[0], elsewhere)


def test_arguments_out_of_range_are_refused():
    for centre in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"centre must lie in 0\.\.1, got"):
            SnappedConfidence(Coarse(), centre=centre)
    with pytest.raises(ValueError, match="batch_size"):
        SnappedConfidence(Coarse(), batch_size=0)


def test_a_missing_opencv_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    source = SnappedConfidence(Coarse())
    with pytest.raises(ImportError, match=r"pip install 'infill-aug\[opencv\]'"):
        source(IMAGES[0], None)
