import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from tests_support import disc, picture

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.sources import BoxConfidence, MaskConfidence
from infill_aug.confidence.training import (
    TrainingSet,
    change_pairs,
    confidence_loss,
    draw_pair_changes,
    fit_calibration,
    read_training_set,
)


class Brightness(NetworkConfidence):
    """What is bright matters."""

    def score(self, images, prompts):
        return images.mean(dim=1, keepdim=True)

    def identity(self):
        return {"what": "brightness"}


# --- reading ---


def test_label_maps_are_read_shrunk_to_the_square_and_teach_one_head():
    data = [(picture(i, 48, 48), {"mask": disc(48)}) for i in range(3)]
    read = read_training_set(data, MaskConfidence("mask", falloff=0), 24, progress=False)
    assert read.images.shape == (3, 3, 24, 24)
    assert read.targets.shape == (3, 1, 24, 24)
    assert read.images.dtype == read.targets.dtype == torch.uint8
    assert read.known.all()
    assert read.known.shape == (3, 1)
    wanted = nnf.avg_pool2d(disc(48)[None].float() * 255, 2)
    # An antialiased resize by two is not a mean of four, but a pixel inside or outside of the object is the same.
    plain = (nnf.max_pool2d(wanted, 3, 1, 1) == wanted) & (-nnf.max_pool2d(-wanted, 3, 1, 1) == wanted)
    assert torch.equal(read.targets[0][plain], wanted[plain].to(torch.uint8))
    image, target, known = read[1]
    assert torch.equal(image, read.images[1])
    assert torch.equal(target, read.targets[1])
    assert torch.equal(known, read.known[1])


@pytest.mark.parametrize("sizes", [[(40, 40)] * 3, [(40, 24), (17, 90), (40, 24), (1, 60), (60, 1), (1, 1)]])
def test_pictures_of_many_sizes_are_read_in_their_order(sizes):
    data = [torch.full((3, *size), 40 * i, dtype=torch.uint8) for i, size in enumerate(sizes)]
    read = read_training_set(data, Brightness(batch_size=2), 16, progress=False)
    assert read.images.flatten(1).float().mean(dim=1).tolist() == pytest.approx([40 * i for i in range(len(sizes))])
    assert read.targets.flatten(1).float().mean(dim=1).tolist() == pytest.approx([40 * i for i in range(len(sizes))])


def test_a_network_is_read_in_batches_and_gives_what_it_gives_one_by_one():
    data = [(picture(i, 20 + i % 3, 20), i) for i in range(70)]
    together = read_training_set(data, Brightness(batch_size=16, falloff=0.1), 16, progress=False)
    one_by_one = read_training_set(data, Brightness(batch_size=1, falloff=0.1), 16, progress=False)
    assert torch.equal(one_by_one.images, together.images)
    assert torch.equal(one_by_one.targets, together.targets)


def test_pil_pictures_dictionaries_and_chosen_indices_are_read():
    half = torch.zeros(10, 20)
    half[:, :10] = 1
    data = [{"photo": PILImage.new("RGB", (20, 10), (i, i, i)), "mask": half} for i in range(9)]
    read = read_training_set(
        data, MaskConfidence("mask", falloff=0), 8, indices=[7, 2], image_key="photo", progress=False
    )
    assert read.images[:, 0, 0, 0].tolist() == [7, 2]
    assert (read.targets[..., :3] == 255).all()
    assert (read.targets[..., 5:] == 0).all()


def test_a_picture_in_which_nothing_is_labelled_teaches_nothing():
    """Label sources give full confidence there, so that nothing is lost in a build; learned, it would be wrong."""
    data = [(picture(i), {"mask": disc() * (i != 1)}) for i in range(3)]
    read = read_training_set(data, MaskConfidence("mask", falloff=0), 16, progress=False)
    assert read.known.flatten().tolist() == [True, False, True]
    with pytest.raises(ValueError, match="none of the 1 maps says anything"):
        read_training_set(data[1:2], MaskConfidence("mask", falloff=0), 16, progress=False)


class Unreadable(list):
    def __getitem__(self, index):
        if index == 2:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


@pytest.mark.parametrize("source", [MaskConfidence("mask"), Brightness()], ids=["labels", "network"])
def test_an_unreadable_sample_is_named(source):
    data = Unreadable([(picture(i), {"mask": disc()}) for i in range(4)])
    with pytest.raises(ValueError, match="cannot read sample 2: OSError: image file is truncated"):
        read_training_set(data, source, 16, progress=False)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "cannot read sample 1: KeyError.*mask"),
        ({"mask": disc(12)}, r"cannot read sample 1.*\(12, 12\).*\(24, 24\)"),
    ],
)
def test_a_sample_whose_label_does_not_fit_is_named_too(target, message):
    data = [(picture(0), {"mask": disc()}), (picture(1), target)]
    with pytest.raises(ValueError, match=message):
        read_training_set(data, MaskConfidence("mask"), 16, progress=False)


@pytest.mark.parametrize(("data", "indices"), [([], None), ([picture(0)], [])])
def test_an_empty_dataset_is_refused(data, indices):
    with pytest.raises(ValueError, match="the dataset is empty"):
        read_training_set(data, BoxConfidence(), 16, indices=indices, progress=False)


def some(count, heads=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images, targets = (
        torch.randint(0, 256, (count, channels, 8, 8), dtype=torch.uint8, generator=generator)
        for channels in (3, heads)
    )
    return TrainingSet(images, targets, torch.rand(count, heads, generator=generator) < 0.7)


@pytest.mark.parametrize("head", [0, 1, 2])
def test_widened_sets_teach_their_own_head_and_no_other(head):
    one = some(9)
    wide = one.widen(3, head)
    assert torch.equal(wide.images, one.images)
    assert torch.equal(wide.targets[:, head], one.targets[:, 0])
    assert torch.equal(wide.known[:, head], one.known[:, 0])
    others = [h for h in range(3) if h != head]
    assert not wide.known[:, others].any()
    assert not wide.targets[:, others].any()


def test_joined_sets_hold_all_pictures_in_order():
    parts = [some(3).widen(2, 0), some(2, seed=1).widen(2, 1), some(1, 2, seed=2)]
    joined = TrainingSet.join(parts)
    assert len(joined) == 6
    for i, (part, row) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]):
        for mine, its in zip(joined[i], parts[part][row], strict=True):
            assert torch.equal(mine, its)


# --- changes ---


def squares(count, side=32, seed=0):
    """White squares on dark grey, and where they are."""
    targets = torch.zeros(count, 1, side, side)
    generator = torch.Generator().manual_seed(seed)
    for target in targets:
        y, x = torch.randint(4, side - 14, (2,), generator=generator).tolist()
        target[:, y : y + 10, x : x + 10] = 1
    return 0.2 + 0.8 * targets.expand(-1, 3, -1, -1), targets


def only(changes, *kept):
    """The changes with all but some of them neutral."""
    count = len(changes["affine"])
    neutral = {
        "affine": torch.eye(2, 3).expand(count, 2, 3),
        "gain": torch.ones(count, 3, 1, 1),
        "contrast": torch.ones(count, 1, 1, 1),
        "saturation": torch.ones(count, 1, 1, 1),
    }
    return {name: changes[name] if name in kept else value for name, value in neutral.items()}


def test_targets_move_with_their_pictures():
    images, targets = squares(200)
    changes = draw_pair_changes(200, torch.Generator().manual_seed(0))
    changed, moved = change_pairs(images, targets, changes)
    # Halfway between square and ground, whatever light and contrast did to both.
    low, high = changed.amin(dim=(1, 2, 3), keepdim=True), changed.amax(dim=(1, 2, 3), keepdim=True)
    bright = changed.mean(dim=1, keepdim=True) > (low + high) / 2
    inside = moved > 0.5
    seen = inside.flatten(1).any(dim=1)
    assert seen.float().mean() > 0.95, "the squares leave the picture too often to compare anything"
    both, either = ((op(bright, inside)).flatten(1).sum(dim=1) for op in (torch.logical_and, torch.logical_or))
    unclipped = seen & (high < 1)[:, 0, 0, 0]
    assert unclipped.sum() > 50
    assert (both[unclipped] / either[unclipped]).min() > 0.9
    geometry, same = change_pairs(images, targets, only(changes, "affine"))
    assert torch.equal(same, moved), "light has no effect on the targets"
    torch.testing.assert_close(geometry.mean(dim=1, keepdim=True), 0.2 + 0.8 * moved, atol=1e-5, rtol=0)


def test_changes_are_of_many_kinds():
    images, targets = squares(300)
    _, moved = change_pairs(images, targets, draw_pair_changes(300, torch.Generator().manual_seed(0)))
    area = moved.mean(dim=(1, 2, 3)) / targets.mean(dim=(1, 2, 3))
    assert area.min() < 0.8
    assert area.max() > 1.8
    changes = draw_pair_changes(300, torch.Generator().manual_seed(0))
    assert 0.4 < (changes["affine"][:, 0, 0] < 0).float().mean() < 0.6, "half of the pictures are mirrored"
    assert 0.03 < (changes["saturation"] == 0).float().mean() < 0.2, "some pictures are grey"


def test_pictures_and_targets_stay_as_they_are_where_nothing_changes():
    images, targets = torch.rand(4, 3, 17, 17), torch.rand(4, 2, 17, 17)
    changed, moved = change_pairs(images, targets, only(draw_pair_changes(4)))
    torch.testing.assert_close(changed, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved, targets, atol=1e-5, rtol=0)


def test_saturation_0_makes_pictures_grey_and_contrast_0_flat():
    images, targets = torch.rand(4, 3, 16, 16), torch.rand(4, 1, 16, 16)
    neutral = only(draw_pair_changes(4))
    grey, _ = change_pairs(images, targets, neutral | {"saturation": torch.zeros(4, 1, 1, 1)})
    assert (grey.amax(dim=1) - grey.amin(dim=1)).max() < 1e-6
    flat, _ = change_pairs(images, targets, neutral | {"contrast": torch.zeros(4, 1, 1, 1)})
    torch.testing.assert_close(flat, images.mean(dim=(1, 2, 3), keepdim=True).expand_as(flat), atol=1e-5, rtol=0)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5))
def test_a_seed_replays_its_changes_and_all_values_stay_in_range(seed, count):
    one, two = (draw_pair_changes(count, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    generator = torch.Generator().manual_seed(seed)
    images, targets = (
        torch.rand(count, 3, 12, 12, generator=generator),
        torch.rand(count, 2, 12, 12, generator=generator),
    )
    for values, before in zip(change_pairs(images, targets, one), (images, targets), strict=True):
        assert values.shape == before.shape
        assert values.min() >= 0
        assert values.max() <= 1


def test_a_generator_leaves_torchs_own_draws_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    draw_pair_changes(4, torch.Generator().manual_seed(1))
    assert torch.equal(torch.rand(3), wanted)


# --- loss ---


def test_heads_that_a_picture_does_not_teach_get_exactly_no_gradient():
    logits = torch.randn(4, 3, 4, 4, requires_grad=True)
    known = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]]) > 0
    confidence_loss(logits, torch.rand(4, 3, 16, 16), known).backward()
    taught = logits.grad.flatten(2).abs().sum(dim=2) > 0
    assert torch.equal(taught, known)


def test_targets_of_unknown_heads_mean_nothing():
    logits, targets, known = torch.randn(2, 2, 4, 4), torch.rand(2, 2, 8, 8), torch.tensor([[True, False]] * 2)
    other = targets.clone()
    other[:, 1] = 1 - other[:, 1]
    assert torch.equal(confidence_loss(logits, targets, known), confidence_loss(logits, other, known))


@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_a_right_answer_costs_less_than_none_and_none_less_than_a_wrong_one(seed, share):
    truth = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) < share).float()
    known = torch.ones(2, 1, dtype=torch.bool)
    right, none, wrong = (confidence_loss(slope * (truth * 2 - 1), truth, known) for slope in (6.0, 0.0, -6.0))
    assert right < none < wrong
    assert right >= 0


def test_a_missed_small_object_costs_much_more_than_its_pixels():
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 4:7, 4:7] = 1
    known = torch.ones(1, 1, dtype=torch.bool)
    missed, found = (confidence_loss(x, truth, known) for x in (torch.full_like(truth, -6.0), truth * 12 - 6))
    assert missed - found > 0.7


@pytest.mark.parametrize("count", [0, 3])
def test_the_loss_of_nothing_known_is_a_scalar_0_that_can_be_trained_on(count):
    logits = torch.randn(count, 2, 4, 4, requires_grad=True)
    loss = confidence_loss(logits, torch.rand(count, 2, 8, 8), torch.zeros(count, 2, dtype=torch.bool))
    assert loss.shape == ()
    assert loss == 0
    loss.backward()
    assert not logits.grad.any()


def test_half_precision_logits_have_the_loss_of_single_precision():
    logits, targets, known = torch.randn(2, 1, 4, 4).bfloat16(), torch.rand(2, 1, 16, 16), torch.ones(2, 1) > 0
    assert torch.equal(confidence_loss(logits, targets, known), confidence_loss(logits.float(), targets, known))


# --- calibration ---


@pytest.mark.parametrize("offset", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("planted", [0.2, 0.5, 1.0, 2.0, 5.0])
def test_a_planted_calibration_is_found(planted, offset):
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(200_000, generator=generator)
    truth = (torch.rand(200_000, generator=generator) < honest.sigmoid()).float()
    found = fit_calibration((honest - offset) * planted, truth)
    assert found == (pytest.approx(planted, rel=0.03), pytest.approx(offset, abs=0.03))


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 1e-4, 0.1, 1.0, 10.0, 1000.0]),
    kind=st.sampled_from(["soft", "hard", "right", "wrong", "empty", "full"]),
)
def test_a_fitted_calibration_is_never_worse_than_none_on_what_it_was_fitted_to(seed, scale, kind):
    generator = torch.Generator().manual_seed(seed)
    logits, noise = scale * torch.randn(2, 1, 9, 9, generator=generator), torch.rand(2, 1, 9, 9, generator=generator)
    truth = {
        "soft": noise,
        "hard": (noise > 0.5).float(),
        "right": (logits > 0).float(),
        "wrong": (logits < 0).float(),
        "empty": noise * 0,
        "full": noise * 0 + 1,
    }[kind]
    temperature, offset = fit_calibration(logits, truth)
    assert 0.0499 <= temperature <= 20.0001
    assert abs(offset) <= 10
    fitted, plain = (
        float(nnf.binary_cross_entropy_with_logits(logits / t + o, truth))
        for t, o in ((temperature, offset), (1.0, 0.0))
    )
    assert fitted <= plain + 1e-6 * max(1.0, plain)


def test_a_map_that_is_right_in_its_order_but_lies_under_a_half_is_lifted():
    """As an early checkpoint of a target that covers most of the picture."""
    logits = torch.linspace(-3, -1, 1000)
    truth = (logits > -2.6).float()
    temperature, offset = fit_calibration(logits, truth)
    found = (logits / temperature + offset).sigmoid() > 0.5
    assert (found == (truth > 0.5)).float().mean() > 0.98


def test_a_calibration_is_found_in_inference_mode_too():
    with torch.inference_mode():
        logits = torch.randn(1000)
        assert fit_calibration(logits, (logits > 0.2).float())[1] < 0
