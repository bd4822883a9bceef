import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from test_confidence_cam import CLASSES, SIDE, assert_same, blobs, state, trained_cnn
from torch import nn

from infill_aug.functional.grading import centre_prior
from infill_aug.functional.masking import (
    MaskingLoss,
    area_loss,
    evaluating,
    frozen_logits,
    masking_loss,
    random_fill,
    total_variation,
)

IMAGES, LABELS, MASKS = blobs(24, seed=7)
TRUE = MASKS.float()
FILLS = [("blur",), ("noise",), ("other",), ("blur", "noise", "other")]


@pytest.fixture(scope="module")
def cnn():
    return trained_cnn()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def loss(cnn, confidence, seed=0, **options):
    return masking_loss(cnn, IMAGES, confidence, LABELS, **{"generator": generator(seed), **options})


def moved():
    """The true masks elsewhere: the same areas and shapes at places that do not matter."""
    return torch.stack([torch.roll(mask, (SIDE // 2, SIDE // 2), dims=(1, 2)) for mask in TRUE])


def precision(maps):
    return np.mean([average_precision_score(m.flatten(), c.flatten()) for m, c in zip(MASKS, maps, strict=True)])


# --- the whole ---


@pytest.mark.parametrize("fills", FILLS)
def test_the_true_mask_has_the_lowest_loss_whatever_replaces_the_rest(cnn, fills):
    options = {"area": TRUE.mean(dim=(1, 2, 3)), "fills": fills}
    scattered = (torch.rand(TRUE.shape, generator=generator(5)) < TRUE.mean()).float()
    true = loss(cnn, TRUE, **options)
    for other in (1 - TRUE, moved(), scattered):
        wrong = loss(cnn, other, **options)
        assert true.total < wrong.total - 1
        assert true.preserve < wrong.preserve
        assert true.destroy < wrong.destroy


def test_optimising_a_map_by_it_finds_the_object(cnn):
    logits = torch.zeros(len(IMAGES), 1, SIDE // 4, SIDE // 4, requires_grad=True)
    optimiser, draws = torch.optim.Adam([logits], 0.15), generator()
    before = precision([centre_prior(SIDE, SIDE)] * len(IMAGES))
    for _ in range(45):
        confidence = nnf.interpolate(logits, size=(SIDE, SIDE), mode="bilinear").sigmoid()
        optimiser.zero_grad()
        (len(IMAGES) * masking_loss(cnn, IMAGES, confidence, LABELS, generator=draws).total).backward()
        optimiser.step()
    assert precision(confidence.detach()) > 0.8 > before + 0.2


def test_the_total_is_the_weighted_sum_of_the_parts_and_all_are_scalars(cnn):
    confidence = torch.rand(TRUE.shape)
    weights = {"preserve": 0.3, "destroy": 0.7, "shape": 2.0, "smooth": 0.1}
    result = loss(cnn, confidence, **weights)
    assert isinstance(result, MaskingLoss)
    assert all(part.shape == () and torch.isfinite(part) for part in result)
    wanted = 0.3 * result.preserve + 0.7 * result.destroy + 2 * result.area + 0.1 * result.variation
    torch.testing.assert_close(result.total, wanted)
    assert torch.equal(loss(cnn, confidence).area, result.area)


def test_a_generator_fixes_every_draw(cnn):
    confidence = torch.rand(TRUE.shape)
    assert loss(cnn, confidence, seed=3) == loss(cnn, confidence, seed=3)
    torch.manual_seed(1)
    first = loss(cnn, confidence, seed=3)
    torch.manual_seed(2)
    assert loss(cnn, confidence, seed=3) == first
    assert loss(cnn, confidence, seed=4).total != first.total


def test_the_parts_are_those_of_the_published_terms(cnn):
    """By hand, for one kind of replacement."""
    result = loss(cnn, TRUE, fills=("blur",))
    fill = random_fill(IMAGES, ("blur",))
    model = copy.deepcopy(cnn).eval()
    kept = model(TRUE * IMAGES + (1 - TRUE) * fill)
    emptied = model(TRUE * fill + (1 - TRUE) * IMAGES).softmax(dim=1)
    torch.testing.assert_close(result.preserve, nnf.cross_entropy(kept, LABELS), rtol=1e-4, atol=1e-4)
    entropy = -(emptied * emptied.log()).sum(dim=1).mean()
    torch.testing.assert_close(result.destroy, np.log(CLASSES) - entropy, rtol=1e-3, atol=1e-4)
    assert 0 <= result.destroy <= np.log(CLASSES)


# --- gradients, and the classifier ---


def test_gradients_reach_the_confidence_alone_and_the_classifier_is_left_as_it_was(cnn):
    model = copy.deepcopy(cnn).train()
    model[1].eval()
    before = state(model)
    images, confidence = IMAGES.clone().requires_grad_(), torch.rand(TRUE.shape, requires_grad=True)
    masking_loss(model, images.detach(), confidence, LABELS).total.backward()
    assert (confidence.grad != 0).any(dim=(1, 2, 3)).all()
    assert_same(before, state(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_classifier_is_left_as_it_was_when_it_fails():
    class Broken(nn.Sequential):
        def forward(self, images):
            raise RuntimeError("broken")

    model = Broken(nn.Dropout(), nn.BatchNorm2d(3)).train()
    with pytest.raises(RuntimeError, match="broken"):
        frozen_logits(model, IMAGES)
    assert all(module.training for module in model.modules())


def test_evaluating_brings_mixed_modes_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()).eval())
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, False]


def test_weights_that_two_layers_share_stay_shared():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    inputs = torch.rand(2, 4, requires_grad=True)
    outputs = frozen_logits(model, inputs)
    torch.testing.assert_close(outputs, model(inputs))
    outputs.sum().backward()
    assert inputs.grad is not None
    assert layer.weight.grad is None


# --- area ---


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_area_is_zero_just_for_a_binary_mask_of_that_area(count, height, width, seed):
    mask = (torch.rand(count, 1, height, width, generator=generator(seed)) < 0.5).float()
    areas = mask.mean(dim=(1, 2, 3))
    assert area_loss(mask, areas) == 0
    assert area_loss(1 - mask, 1 - areas) == 0
    other = torch.where(areas < 0.5, areas + 1 / (height * width), areas - 1 / (height * width))
    assert area_loss(mask, other) > 0
    assert area_loss(mask * 0.9 + 0.05, areas) > 0


def test_the_area_pulls_the_highest_values_up_and_the_others_down():
    confidence = torch.tensor([[[[0.2, 0.4, 0.6, 0.8]]]], requires_grad=True)
    area_loss(confidence, torch.tensor([0.5])).backward()
    assert (confidence.grad.flatten().sign() == torch.tensor([1, 1, -1, -1])).all()


def test_areas_are_one_for_all_given_or_drawn_for_each_sample(cnn):
    mask = torch.zeros_like(TRUE)
    mask[..., : SIDE // 4, :] = 1
    assert loss(cnn, mask, area=0.25).area == 0
    assert loss(cnn, mask, area=(0.25, 0.25)).area == 0
    assert loss(cnn, mask, area=torch.full((len(TRUE),), 0.25)).area == 0
    drawn = {loss(cnn, mask, seed=seed).area.item() for seed in range(5)}
    assert len(drawn) == 5
    assert min(drawn) > 0


def test_total_variation_is_the_share_of_steps():
    board = (torch.arange(4)[:, None] + torch.arange(4)).remainder(2).float()[None, None]
    assert total_variation(board) == 2
    assert total_variation(torch.full((2, 1, 5, 5), 0.3)) == 0
    assert total_variation(torch.rand(1, 1, 1, 1)) == 0


# --- what replaces pixels ---


@pytest.mark.parametrize("fills", FILLS)
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 9, 5), (5, 3, 16, 16)])
def test_what_replaces_pixels_is_a_picture_of_the_same_size(fills, shape):
    fill = random_fill(torch.rand(shape, requires_grad=True), fills, generator())
    assert fill.shape == shape
    assert not fill.requires_grad
    assert 0 <= fill.min() <= fill.max() <= 1


def test_blurred_pictures_lose_their_class(cnn):
    model = copy.deepcopy(cnn).eval()
    share = (model(random_fill(IMAGES, ("blur",))).argmax(dim=1) == LABELS).float().mean()
    assert (model(IMAGES).argmax(dim=1) == LABELS).float().mean() > 0.9
    assert share < 0.5


def test_another_picture_is_never_the_own_one():
    colours = torch.arange(6.0)[:, None, None, None].expand(6, 3, 8, 8) / 5
    for seed in range(20):
        fill = random_fill(colours, ("other",), generator(seed)).mean(dim=(1, 2, 3))
        assert (fill - colours[:, 0, 0, 0]).abs().min() > 0.05


def test_each_sample_draws_its_own_kind():
    grey = torch.full((64, 3, 8, 8), 0.5)
    flat = random_fill(grey, ("blur", "noise"), generator()).std(dim=(1, 2, 3)) < 0.01
    assert 16 < flat.sum() < 48


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (IMAGES * 255).to(torch.uint8)}, "floating point.*uint8"),
        ({"confidence": TRUE[:, 0]}, r"\(24, 1, 48, 48\).*\(24, 48, 48\)"),
        ({"confidence": TRUE[..., ::4, ::4]}, "bring it to the size"),
        ({"confidence": TRUE * 3 - 1}, "0..1, got -1 to 2; take the sigmoid"),
        ({"confidence": TRUE * torch.nan}, "nan"),
        ({"labels": LABELS[:3]}, r"\(24,\).*\(3,\)"),
        ({"labels": LABELS.float()}, "float32"),
        ({"area": 1.5}, "area.*1.5"),
        ({"area": (0.5, 0.1)}, r"low <= high.*\(0.5, 0.1\)"),
        ({"area": torch.rand(3)}, r"\(24,\)"),
        ({"fills": ("black",)}, "'blur'.*black"),
        ({"fills": "blur"}, "sequence.*'blur'"),
        ({"fills": ()}, "one or more"),
        ({"classifier": nn.Conv2d(3, 2, 1)}, r"\(B, C\) logits.*\(48, 2, 48, 48\)"),
    ],
)
def test_what_does_not_fit_is_refused(cnn, change, message):
    arguments = {"classifier": cnn, "images": IMAGES, "confidence": TRUE, "labels": LABELS, **change}
    with pytest.raises(ValueError, match=message):
        masking_loss(**arguments)
