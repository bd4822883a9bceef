import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from infill_aug.functional.quality import (
    average_precision,
    calibration_bins,
    calibration_error,
    calibration_error_from_bins,
    iou,
    iou_at_area,
    max_f,
    max_f_from_curve,
    mean_absolute_error,
    pointing_game,
    precision_recall_curve,
)

PER_PICTURE = (iou, iou_at_area, average_precision, mean_absolute_error, pointing_game, calibration_error)
NEED_A_TRUTH = (iou, iou_at_area, average_precision, pointing_game)
ORDER = (iou_at_area, average_precision, pointing_game)


@st.composite
def pairs(draw):
    """Maps, with many ties where there are few levels, and truths with some true and some false pixels."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 3)), 1, draw(st.integers(1, 9)), draw(st.integers(2, 9)))
    levels = draw(st.sampled_from([1, 2, 5, 100000]))
    confidence = (torch.rand(shape, generator=generator) * levels).round() / levels
    truth = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    truth.flatten(1)[:, 0], truth.flatten(1)[:, 1] = True, False
    return confidence, truth


@given(pair=pairs())
def test_average_precision_is_that_of_sklearn_also_with_ties(pair):
    confidence, truth = pair
    wanted = [
        average_precision_score(true.flatten().numpy(), one.flatten().numpy())
        for one, true in zip(confidence, truth, strict=True)
    ]
    torch.testing.assert_close(average_precision(confidence, truth), torch.tensor(wanted, dtype=torch.float32))


def test_average_precision_is_that_of_sklearn_on_a_large_picture():
    confidence = torch.rand(1, 1, 200, 300)
    truth = torch.rand(1, 1, 200, 300) < confidence**3
    wanted = average_precision_score(truth.flatten().numpy(), confidence.flatten().numpy())
    assert average_precision(confidence, truth).item() == pytest.approx(wanted, abs=1e-5)


@given(pair=pairs())
def test_the_truth_itself_has_every_best_score_and_its_inverse_the_worst(pair):
    truth = pair[1]
    perfect, inverse = truth.float(), (~truth).float()
    for metric in (iou, iou_at_area, average_precision, pointing_game):
        assert (metric(perfect, truth) == 1).all(), metric
    for metric in (mean_absolute_error, calibration_error):
        assert (metric(perfect, truth) == 0).all(), metric
        assert torch.allclose(metric(inverse, truth), torch.ones(len(truth))), metric
    assert max_f(perfect, truth) == pytest.approx(1)
    assert (iou(inverse, truth) == 0).all()
    assert (pointing_game(inverse, truth) == 0).all()
    # All true pixels come last, in one tie: precision is then the true share.
    share = truth.float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(average_precision(inverse, truth), share)


@given(pair=pairs())
def test_scores_lie_in_their_range_and_are_the_same_alone_and_in_a_batch(pair):
    confidence, truth = pair
    for metric in PER_PICTURE:
        together = metric(confidence, truth)
        alone = [metric(one[None], true[None]) for one, true in zip(confidence, truth, strict=True)]
        assert together.shape == (len(confidence),)
        assert together.dtype == torch.float32
        assert ((together >= 0) & (together <= 1 + 1e-6)).all(), metric
        torch.testing.assert_close(together, torch.cat(alone))


@given(pair=pairs(), power=st.sampled_from([0.5, 2.0, 3.0]))
def test_a_rising_transform_of_the_map_leaves_scores_of_order_as_they_are(pair, power):
    confidence, truth = pair
    changed = (0.1 + 0.8 * confidence.double() ** power).float()
    if changed.unique().numel() == confidence.unique().numel():
        for metric in ORDER:
            torch.testing.assert_close(metric(changed, truth), metric(confidence, truth))


@given(pair=pairs(), seed=st.integers(0, 2**32 - 1))
def test_scores_do_not_depend_on_where_the_pixels_are(pair, seed):
    confidence, truth = pair
    order = torch.randperm(truth[0].numel(), generator=torch.Generator().manual_seed(seed))
    moved = [one.flatten(1)[:, order].reshape(one.shape) for one in pair]
    for metric in PER_PICTURE:
        torch.testing.assert_close(metric(*moved), metric(confidence, truth))


def test_a_flat_map_scores_what_guessing_scores():
    truth = torch.zeros(1, 1, 10, 10, dtype=torch.bool)
    truth[..., :2] = True
    flat = torch.full((1, 1, 10, 10), 0.2)
    assert average_precision(flat, truth).item() == pytest.approx(0.2)
    assert pointing_game(flat, truth).item() == pytest.approx(0.2)
    assert iou_at_area(flat, truth).item() == pytest.approx(4 / 36)
    assert calibration_error(flat, truth).item() == pytest.approx(0, abs=1e-6)


def test_iou_counts_what_is_above_the_threshold_and_not_what_is_at_it():
    confidence = torch.tensor([0.2, 0.5, 0.6, 0.9]).reshape(1, 1, 1, 4)
    truth = torch.tensor([False, True, True, True]).reshape(1, 1, 1, 4)
    found = [iou(confidence, truth, threshold).item() for threshold in (0.5, 0.49, 0.0, 0.95)]
    assert found == pytest.approx([2 / 3, 1, 3 / 4, 0])


def test_iou_at_area_finds_as_many_pixels_as_are_true():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.1]).reshape(1, 1, 1, 4)
    truth = torch.tensor([True, False, True, False]).reshape(1, 1, 1, 4)
    assert iou_at_area(confidence, truth).item() == pytest.approx(1 / 3)


def test_pictures_without_a_true_pixel_have_no_score_where_one_is_needed():
    confidence, empty = torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    empty[1, 0, 0, 0] = True
    for metric in NEED_A_TRUTH:
        assert torch.isnan(metric(confidence, empty)).tolist() == [True, False], metric
    torch.testing.assert_close(mean_absolute_error(confidence, empty)[0], confidence[0].mean())
    torch.testing.assert_close(calibration_error(confidence, empty)[0], confidence[0].mean())
    assert max_f(confidence, empty) == max_f(confidence[1:], empty[1:])
    assert math.isnan(max_f(confidence[:1], empty[:1]))


def test_any_map_orders_the_pixels_of_an_entirely_true_picture_right():
    full = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    for metric in ORDER:
        torch.testing.assert_close(metric(torch.rand(2, 1, 4, 4), full), torch.ones(2))


@given(pair=pairs())
def test_precision_and_recall_equal_a_count_at_every_threshold(pair):
    confidence, truth = pair
    precision, recall = precision_recall_curve(confidence, truth)
    level = (confidence * 255).round()
    for t in (0, 1, 51, 128, 254, 255):
        found = level >= t
        hits = (found & truth).sum(dim=(1, 2, 3))
        torch.testing.assert_close(precision[:, t], hits / found.sum(dim=(1, 2, 3)).clamp(min=1))
        torch.testing.assert_close(recall[:, t], hits / truth.sum(dim=(1, 2, 3)))
    assert (recall.diff(dim=1) <= 0).all()


def test_the_f_measure_averages_curves_before_it_takes_the_highest():
    truth = torch.zeros(2, 1, 1, 10, dtype=torch.bool)
    truth[..., :2] = True
    # Each map is perfect at a threshold of its own, and no threshold serves both.
    confidence = torch.stack([truth[0] * 0.2 + 0.0, truth[1] * 0.2 + 0.7])
    assert max_f(confidence[:1], truth[:1]) == pytest.approx(1)
    assert max_f(confidence[1:], truth[1:]) == pytest.approx(1)
    together = max_f(confidence, truth)
    precision, recall = (1 + 0.2) / 2, 1.0
    assert together == pytest.approx(max(1.3 * precision * recall / (0.3 * precision + recall), 1.3 * 0.25 / 0.65))
    curves = [precision_recall_curve(one[None], true[None]) for one, true in zip(confidence, truth, strict=True)]
    assert max_f_from_curve(*(torch.cat(part) for part in zip(*curves, strict=True))) == together


def test_calibration_of_a_set_is_of_all_its_pictures_together():
    confidence = torch.full((2, 1, 1, 4), 0.5)
    truth = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 4)
    assert calibration_error(confidence, truth).tolist() == [0.5, 0.5]
    assert calibration_error_from_bins(calibration_bins(confidence, truth).mean(dim=0)).item() == 0


@given(pair=pairs(), bins=st.integers(1, 20))
def test_calibration_bins_hold_every_pixel_once(pair, bins):
    confidence, truth = pair
    count, sums, true = calibration_bins(confidence, truth, bins).unbind(dim=1)
    ones = torch.ones(len(truth))
    torch.testing.assert_close(count.sum(dim=1), ones)
    torch.testing.assert_close(sums.sum(dim=1), confidence.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(true.sum(dim=1), truth.float().mean(dim=(1, 2, 3)))
    centres = (torch.arange(bins) + 0.5) / bins
    assert (((sums / count - centres).abs() <= 0.5 / bins + 1e-5) | (count == 0)).all()


def test_pixels_that_matter_as_often_as_their_confidence_says_are_calibrated():
    confidence = torch.rand(1, 1, 300, 300)
    drawn = torch.rand(1, 1, 300, 300) < confidence
    assert calibration_error(confidence, drawn) < 0.01
    assert calibration_error(confidence.sqrt(), drawn) > 0.1


def test_half_precision_maps_are_measured_too():
    confidence, truth = torch.rand(1, 1, 8, 8).bfloat16(), torch.rand(1, 1, 8, 8) > 0.5
    for metric in PER_PICTURE:
        torch.testing.assert_close(metric(confidence, truth), metric(confidence.float(), truth))


@pytest.mark.parametrize(
    ("confidence", "truth", "message"),
    [
        (torch.rand(1, 4, 4), torch.ones(1, 4, 4) > 0, r"must be \(B, 1, H, W\).*got shape \(1, 4, 4\)"),
        (torch.rand(1, 2, 4, 4), torch.ones(1, 2, 4, 4) > 0, r"must be \(B, 1, H, W\)"),
        (torch.ones(1, 1, 4, 4, dtype=torch.uint8), torch.ones(1, 1, 4, 4) > 0, "divide uint8 by 255"),
        (torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 5) > 0, r"truth has shape \(1, 1, 4, 5\)"),
        (torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4), "truth must be bool, got torch.float32"),
        (torch.rand(1, 1, 4, 4) + 1, torch.ones(1, 1, 4, 4) > 0, r"lie in 0\.\.1"),
        (torch.full((1, 1, 4, 4), torch.nan), torch.ones(1, 1, 4, 4) > 0, "NaN"),
    ],
)
def test_what_is_no_map_or_no_truth_is_refused_and_named(confidence, truth, message):
    for metric in (*PER_PICTURE, max_f):
        with pytest.raises(ValueError, match=message):
            metric(confidence, truth)


def test_parameters_out_of_range_are_refused():
    confidence, truth = torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4) > 0
    with pytest.raises(ValueError, match=r"below 1, got 1\.0"):
        iou(confidence, truth, 1.0)
    with pytest.raises(ValueError, match="1 or more, got 0"):
        calibration_error(confidence, truth, 0)
    with pytest.raises(ValueError, match="above 0, got 0"):
        max_f(confidence, truth, 0)
    with pytest.raises(ValueError, match=r"both be \(B, T\)"):
        max_f_from_curve(torch.rand(2, 3), torch.rand(2, 4))
