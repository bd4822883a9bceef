import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infill_aug.functional.grading import centre_prior, euclidean_distance, grade, spread
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


# --- soft maps ---


def blob(height=64, width=64, sharpness=0.08):
    """What a network gives for a round object: sure in the middle, soft at the rim."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.sigmoid((0.4 - (x.square() + y.square()).sqrt()) / sharpness)[None, None]


@st.composite
def soft_maps(draw):
    """A map of any size and kind, and a picture to it."""
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1, 1, 5]))  # with some above the grid that rings are computed on
    noise, images = (torch.rand(2, c, height * scale, width * scale, generator=generator) for c in (1, 3))
    kind = draw(st.sampled_from(["noise", "rare", "binary", "zero", "one"]))
    maps = {"noise": noise, "rare": noise**9, "binary": (noise > 0.8).float(), "zero": noise * 0, "one": noise * 0 + 1}
    return maps[kind], images


options = given(soft_maps(), st.sampled_from([0.0, 0.02, 0.2, 2.0]), st.sampled_from([0.0, 3.0, 30.0]))


@options
def test_spreading_only_adds_and_never_reaches_full_confidence(sample, falloff, edges):
    confidence, images = sample
    result = spread(confidence, falloff, images, edges)
    assert result.shape == confidence.shape
    assert result.dtype == torch.float32
    assert (result >= confidence).all()
    assert (result[result > confidence] <= 0.9 + 1e-6).all()
    if falloff == 0:
        assert torch.equal(result, confidence)


@options
def test_more_confidence_gives_nowhere_less(sample, falloff, edges):
    confidence, images = sample
    more = torch.maximum(confidence, confidence.roll(1, dims=-1))
    assert (spread(more, falloff, images, edges) >= spread(confidence, falloff, images, edges) - 1e-5).all()


@options
def test_spreading_is_the_same_alone_and_in_a_batch(sample, falloff, edges):
    confidence, images = sample
    together = spread(confidence, falloff, images, edges)
    for i in range(len(confidence)):
        alone = spread(confidence[i : i + 1], falloff, images[i : i + 1], edges)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (7, 5), (1, 50)])
@pytest.mark.parametrize("falloff", [0.05, 0.2, 1.0])
def test_a_binary_map_spreads_as_labels_are_graded(size, falloff):
    hard = object_weights(*size)
    hard[..., size[0] // 2, size[1] // 2] = 1
    torch.testing.assert_close(spread(hard, falloff), grade(hard, falloff), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(65, 65), (96, 128), (256, 256), (240, 320)])
@pytest.mark.parametrize("falloff", [0.1, 0.2, 1.0])
def test_a_large_binary_map_spreads_as_labels_are_graded_to_within_a_cell(size, falloff):
    hard = object_weights(*size)
    reach = falloff * math.sqrt(size[0] * size[1])
    cell = max(size) / 64
    assert (spread(hard, falloff) - grade(hard, falloff)).abs().max() <= cell / reach


@pytest.mark.parametrize("falloff", [0.1, 0.3])
def test_a_soft_map_has_the_ring_of_its_strongest_levels(falloff):
    confidence = blob()
    exact = torch.zeros_like(confidence)
    for level in torch.linspace(0.01, 1, 200).tolist():
        distance = euclidean_distance(confidence >= level)
        exact = torch.maximum(exact, level * torch.exp(-distance / (falloff * 64)))
    wanted = torch.maximum(confidence, 0.9 * exact)
    result = spread(confidence, falloff)
    assert (result <= wanted + 1e-2).all()
    # The ring is drawn from seven levels in place of all: it may lack what lies between two of them.
    assert (wanted - result).max() < 0.1


@given(soft_maps(), st.sampled_from([0.02, 0.2, 2.0]))
def test_without_a_weight_of_edges_the_picture_is_not_looked_at(sample, falloff):
    confidence, images = sample
    assert torch.equal(spread(confidence, falloff, images, 0.0), spread(confidence, falloff))
    assert torch.equal(spread(confidence, falloff, None, 9.0), spread(confidence, falloff))


def crossing(side=64):
    """An object left of the middle, on a picture that is red up to column 3/4 and blue from there."""
    confidence = torch.zeros(1, 1, side, side)
    middle = slice(side * 3 // 8, side * 5 // 8)
    confidence[..., middle, middle] = 1
    images = torch.zeros(1, 3, side, side)
    images[:, 0, :, : side * 3 // 4], images[:, 2, :, side * 3 // 4 :] = 1, 1
    return confidence, images


@pytest.mark.parametrize("side", [32, 64, 200])
def test_a_ring_stays_on_its_own_side_of_a_strong_edge(side):
    confidence, images = crossing(side)
    result = spread(confidence, 0.2, images, 30.0)[0, 0]
    row = result[side // 2]
    across, same = row[side * 3 // 4 + side // 32 :], row.flip(0)[side * 3 // 4 + side // 32 :]
    assert (across < 0.7 * same).all()
    without = spread(confidence, 0.2, images.mean(dim=1, keepdim=True) * 0, 30.0)[0, 0]
    torch.testing.assert_close(result[:, : side // 4], without[:, : side // 4], atol=1e-4, rtol=0)


def test_a_stronger_edge_and_a_larger_weight_hold_back_more():
    confidence, images = crossing()
    far = (..., slice(24, 40), slice(52, 64))
    weights = [spread(confidence, 0.2, images, edges)[far].mean() for edges in (1.0, 5.0, 30.0)]
    contrasts = [spread(confidence, 0.2, images * share, 10.0)[far].mean() for share in (0.1, 0.5, 1.0)]
    for values in (weights, contrasts):
        assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (128, 128)])
@pytest.mark.parametrize("falloff", [0.1, 0.3])
def test_geodesic_distances_on_a_constant_picture_are_nearly_euclidean(size, falloff):
    confidence = torch.zeros(1, 1, *size)
    confidence[..., size[0] // 2 - 4 : size[0] // 2 + 4, size[1] // 2 - 4 : size[1] // 2 + 4] = 1
    reach = falloff * math.sqrt(size[0] * size[1])
    distance = euclidean_distance(confidence > 0)
    geodesic = -(spread(confidence, falloff, torch.full((1, 3, *size), 0.4), 30.0) / 0.9).log() * reach
    # Far enough for a share of the distance to be more than a cell, near enough for more than nothing to be left.
    ring = (distance > 8 * max(size) / 64) & (distance < 6 * reach)
    ratio = geodesic[ring] / distance[ring]
    assert ratio.min() > 0.75
    assert ratio.max() < 1.25


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 300), (1, 2)])
@pytest.mark.parametrize("edges", [0.0, 30.0])
def test_pictures_of_one_row_or_column_have_rings_too(size, edges):
    confidence = torch.zeros(1, 1, *size)
    flat = confidence.view(-1)
    flat[: max(1, len(flat) // 10)] = 1
    result = spread(confidence, 0.5, torch.rand(1, 3, *size), edges)
    assert result.shape == confidence.shape
    assert torch.isfinite(result).all()
    assert (result[confidence > 0] == 1).all()
    if size == (1, 300):
        assert (result[0, 0, 0].diff() <= 1e-6).all()
        turned = spread(confidence.mT.contiguous(), 0.5)
        torch.testing.assert_close(turned, spread(confidence, 0.5).mT, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (224, 224)])
@pytest.mark.parametrize("edges", [0.0, 30.0])
def test_spreading_makes_the_masked_share_of_an_estimate_smooth_in_the_threshold(size, edges):
    def largest_jump(confidence):
        shares = [masked_share(threshold_mask(confidence, t / 20, mode="absolute")) for t in range(21)]
        return torch.cat([torch.zeros(1), *shares]).diff().max()

    soft = blob(*size, sharpness=0.01)
    hard = (soft > 0.5).float()
    flat = torch.full((1, 3, *size), 0.5)
    assert largest_jump(hard) > 0.8, "a hard map goes in one piece"
    assert largest_jump(soft) > 0.7, "and a network's map of an object of sharp outline nearly so"
    assert largest_jump(spread(soft, 0.2, flat, edges)) < 0.2
    assert largest_jump(spread(hard, 0.2, flat, edges)) < 0.2
