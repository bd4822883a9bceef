import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infill_aug.functional.grading import centre_prior, euclidean_distance, grade
from infill_aug.functional.masks import masked_share, threshold_mask


def brute_force_distance(mask):
    out = torch.full(mask.shape, torch.inf)
    for sample, distance in zip(mask[:, 0], out[:, 0], strict=True):
        points = sample.nonzero().float()
        if len(points):
            y, x = torch.meshgrid(*(torch.arange(float(s)) for s in sample.shape), indexing="ij")
            grid = torch.stack([y, x], -1)[:, :, None]
            distance.copy_((grid - points).square().sum(-1).sqrt().amin(-1))
    return out


@given(
    height=st.integers(1, 18),
    width=st.integers(1, 18),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
)
def test_distances_equal_brute_force(height, width, seed, share):
    mask = torch.rand(3, 1, height, width, generator=torch.Generator().manual_seed(seed)) < share
    torch.testing.assert_close(euclidean_distance(mask), brute_force_distance(mask), rtol=1e-6, atol=0)


@pytest.mark.parametrize("at", [(0, 0), (159, 199), (80, 7)])
def test_distances_are_exact_in_large_pictures(at):
    mask = torch.zeros(1, 1, 160, 200, dtype=torch.bool)
    mask[0, 0, at[0], at[1]] = True
    y, x = torch.meshgrid(torch.arange(160) - at[0], torch.arange(200) - at[1], indexing="ij")
    torch.testing.assert_close(euclidean_distance(mask)[0, 0], (y**2 + x**2).float().sqrt(), rtol=1e-6, atol=0)


def test_distances_are_the_same_alone_and_in_a_batch_and_infinite_without_an_object():
    mask = torch.rand(4, 1, 20, 30) < 0.02
    mask[2] = False
    mask[3] = True
    together = euclidean_distance(mask)
    assert torch.equal(together, torch.cat([euclidean_distance(one[None]) for one in mask]))
    assert together[2].isinf().all()
    assert not together[3].any()


def object_weights(height=64, width=64, weight=1.0):
    weights = torch.zeros(1, 1, height, width)
    weights[..., height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = weight
    return weights


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (200, 300), (500, 40), (1, 300), (1, 1), (7, 5)])
@pytest.mark.parametrize("falloff", [0.05, 0.2, 1.0])
def test_an_object_keeps_its_weight_and_its_ring_stays_under_the_protection(size, falloff):
    for weight in (1.0, 0.6):
        weights = object_weights(*size, weight)
        weights[..., size[0] // 2, size[1] // 2] = weight
        confidence = grade(weights, falloff)
        inside = weights > 0
        assert confidence.shape == weights.shape
        assert (confidence[inside] == weight).all()
        assert (confidence[~inside] <= 0.9 * weight + 1e-6).all()
        assert (confidence >= 0).all()


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (256, 256), (240, 320)])
def test_confidence_falls_off_with_the_distance_as_documented(size):
    weights, falloff = object_weights(*size), 0.2
    reach = falloff * math.sqrt(size[0] * size[1])
    expected = 0.9 * torch.exp(-euclidean_distance(weights > 0) / reach)
    # Above a grid of 128 pixels distances are interpolated: off by a cell of the grid at most.
    tolerance = 1e-5 if max(size) <= 128 else max(size) / 128 / reach
    assert (grade(weights, falloff) - torch.where(weights > 0, 1.0, expected)).abs().max() <= tolerance


def test_the_map_is_smooth_far_from_the_object_also_where_it_is_interpolated():
    for side in (100, 128, 129, 256, 400):
        confidence = grade(object_weights(side, side), 0.2)[0, 0]
        row = confidence[side // 2, side * 5 // 8 :]
        assert (row.diff() <= 1e-6).all()
        assert row.diff().abs().max() < 0.9 / (0.2 * side) * 1.5
        assert len(row.unique()) > 0.9 * len(row)


def test_the_strongest_of_several_objects_wins_everywhere():
    one, two = torch.zeros(1, 1, 40, 40), torch.zeros(1, 1, 40, 40)
    one[..., 5:10, 5:10], two[..., 25:30, 20:30] = 1.0, 0.5
    both = grade(torch.maximum(one, two), 0.3)
    torch.testing.assert_close(both, torch.maximum(grade(one, 0.3), grade(two, 0.3)))


def test_grading_is_the_same_alone_and_in_a_batch():
    weights = torch.stack([object_weights(48, 150)[0], torch.zeros(1, 48, 150), object_weights(48, 150, 0.5)[0]])
    weights[0, 0, 2, 3] = 0.25
    together = grade(weights, 0.2)
    for one, confidence in zip(weights, together, strict=True):
        assert torch.equal(grade(one[None], 0.2)[0], confidence)
    assert not together[1].any()


@pytest.mark.parametrize("size", [(96, 128), (200, 300)])
def test_a_map_does_not_depend_on_the_number_of_threads(size):
    wanted = grade(object_weights(*size), 0.2)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        again = grade(object_weights(*size), 0.2)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, wanted)


def test_a_thin_object_does_not_vanish_on_a_coarse_grid():
    weights = torch.zeros(1, 1, 400, 400)
    weights[..., 123, 77] = 1
    confidence = grade(weights, 0.2)
    assert confidence[..., 123, 77] == 1
    assert confidence[..., 120:127, 74:81].min() > 0.8
    assert confidence[..., 390, 390] < 0.05


def test_no_falloff_is_a_hard_edge():
    weights = torch.rand(2, 1, 8, 8)
    assert torch.equal(grade(weights, 0.0), weights)


def masked_shares(confidence, mode):
    """Masked share at 201 thresholds, after the 0 of no mask at all."""
    shares = [masked_share(threshold_mask(confidence, t / 200, mode=mode)) for t in range(201)]
    return torch.cat([torch.zeros(1), *shares])


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (96, 160), (224, 224)])
@pytest.mark.parametrize("falloff", [0.1, 0.2, 0.5])
def test_grading_makes_the_masked_share_a_smooth_function_of_the_threshold(falloff, size):
    hard = object_weights(*size)
    graded = grade(hard, falloff)
    assert masked_shares(hard, "absolute").diff().max() > 0.9, "without grading every threshold is the same mask"
    # In absolute mode the object itself goes in one piece, 1/16 of the picture, at threshold 1 only.
    assert masked_shares(graded, "absolute").diff().max() < 0.12
    assert masked_shares(graded, "quantile").diff().max() < 0.03


def test_the_far_background_goes_first_and_the_objects_surroundings_last():
    weights = object_weights()
    distance = euclidean_distance(weights > 0)
    for mode in ("quantile", "absolute"):
        for threshold in (0.2, 0.4, 0.6, 0.8):
            mask = threshold_mask(grade(weights, 0.3), threshold, mode=mode, protect_above=0.95)
            if mask.any():
                assert distance[mask].min() >= distance[~mask].max() - 2


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 33), (32, 48)])
@pytest.mark.parametrize("falloff", [0.1, 0.3, 2.0])
def test_a_centre_prior_is_highest_in_the_middle_and_symmetric(size, falloff):
    prior = centre_prior(*size, falloff)
    assert prior.shape == (1, 1, *size)
    assert prior[..., size[0] // 2, size[1] // 2] == prior.max() <= 1
    assert (prior >= 0).all()
    torch.testing.assert_close(prior, prior.flip(-1))
    torch.testing.assert_close(prior, prior.flip(-2))
    deviation = falloff * math.sqrt(size[0] * size[1])
    edge = math.exp(-((size[1] - 1) ** 2) / 4 / (2 * deviation**2))
    assert prior[0, 0, (size[0] - 1) // 2, 0].item() == pytest.approx(edge, rel=0.2, abs=1e-6)


@pytest.mark.parametrize("falloff", [0.0, -1.0])
def test_a_centre_prior_without_a_width_is_refused(falloff):
    with pytest.raises(ValueError, match=f"above 0, got {falloff}"):
        centre_prior(4, 4, falloff)
