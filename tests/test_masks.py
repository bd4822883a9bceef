import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infill_aug.functional.grading import centre_prior, grade
from infill_aug.functional.masks import (
    check_levels,
    clean_mask,
    dilate,
    erode,
    feather_mask,
    level_masks,
    masked_share,
    threshold_mask,
)
from infill_aug.types import quantise_confidence

MODES = st.sampled_from(["quantile", "absolute"])
SHARES = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1, width=32)
PROTECT = st.none() | st.sampled_from([0.0, 0.3, 0.95, 1.0]) | SHARES


@st.composite
def maps(draw, largest=24, batch=2):
    """Batches of maps of every kind: flat, binary, few values, noise, 8 bits; from one pixel up, any aspect."""
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    noise = torch.rand(batch, 1, height, width, generator=generator)
    kind = draw(st.sampled_from(["flat", "binary", "few values", "noise", "8 bits", "full"]))
    if kind == "flat":
        return torch.full_like(noise, draw(SHARES))
    if kind == "binary":
        return (noise < draw(SHARES)).float()
    if kind == "few values":
        return (noise * 3).round() / 3
    if kind == "8 bits":
        return (noise * 255).round().to(torch.uint8)
    return noise if kind == "noise" else torch.ones_like(noise)


def bool_masks(largest=16):
    return maps(largest).map(lambda m: m > (127 if m.dtype == torch.uint8 else 0.5))


def subset(small, large):
    return bool((small <= large).all())


@given(maps(), SHARES, SHARES, MODES, PROTECT, st.integers(0, 3))
def test_masks_are_nested_for_any_map_any_thresholds_and_after_cleaning(confidence, a, b, mode, protect_above, clean):
    a, b = sorted((a, b))
    small, large = (threshold_mask(confidence, t, mode=mode, protect_above=protect_above) for t in (a, b))
    assert subset(small, large)
    assert subset(clean_mask(small, clean), clean_mask(large, clean))


@given(st.integers(60, 140), st.integers(1, 140), st.integers(0, 2**32 - 1), st.lists(SHARES, min_size=2, max_size=5))
def test_masks_are_nested_where_the_quantile_is_read_off_a_grid(height, width, seed, thresholds):
    noise = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))
    for confidence in (noise, torch.full_like(noise, 0.5), (noise < 0.4).float()):
        masks = [threshold_mask(confidence, t) for t in sorted(thresholds)]
        assert all(subset(small, large) for small, large in itertools.pairwise(masks))
        assert not threshold_mask(confidence, 0.0).any()
        assert threshold_mask(confidence, 1.0).all()


@given(maps(), st.lists(st.floats(0.01, 1), min_size=1, max_size=4, unique=True), MODES, PROTECT, st.integers(0, 2))
def test_levels_are_nested_and_protect_after_cleaning_too(confidence, levels, mode, protect_above, clean):
    masks = level_masks(confidence, sorted(levels), mode=mode, protect_above=protect_above, clean=clean)
    assert masks.shape == (confidence.shape[0], len(levels), *confidence.shape[2:])
    assert masks.dtype == torch.bool
    assert subset(masks[:, :-1], masks[:, 1:])
    if protect_above is not None:
        unit = confidence / 255 if confidence.dtype == torch.uint8 else confidence
        assert not (masks & (unit > protect_above + 0.5 / 255)).any()


@given(maps(largest=16), SHARES, MODES, PROTECT)
def test_a_mask_is_the_same_alone_and_in_a_batch_and_for_numbers_and_tensors(
    confidence, threshold, mode, protect_above
):
    options = {"mode": mode, "protect_above": protect_above}
    together = threshold_mask(confidence, threshold, **options)
    assert together.shape == confidence.shape
    assert together.dtype == torch.bool
    each = torch.full((len(confidence),), threshold)
    assert torch.equal(threshold_mask(confidence, each, **options), together)
    assert torch.equal(threshold_mask(confidence, torch.tensor(threshold), **options), together)
    alone = torch.cat([threshold_mask(one[None], threshold, **options) for one in confidence])
    assert torch.equal(alone, together)


def test_each_sample_of_a_batch_is_cut_at_its_own_threshold():
    confidence = torch.rand(1, 1, 16, 16).expand(5, -1, -1, -1)
    thresholds = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    for mode in ("quantile", "absolute"):
        together = threshold_mask(confidence, thresholds, mode=mode)
        for one, mask in zip(thresholds.tolist(), together, strict=True):
            assert torch.equal(threshold_mask(confidence[:1], one, mode=mode)[0], mask)
    torch.testing.assert_close(masked_share(threshold_mask(confidence, thresholds)), thresholds, rtol=0, atol=0.02)


@pytest.mark.parametrize("mode", ["quantile", "absolute"])
def test_a_tensor_of_thresholds_beyond_the_range_masks_all_or_nothing(mode):
    mask = threshold_mask(torch.rand(2, 1, 8, 8), torch.tensor([-0.5, 1.5]), mode=mode)
    assert masked_share(mask).tolist() == [0.0, 1.0]


def object_map(height, width):
    weights = torch.zeros(1, 1, height, width)
    weights[..., height // 3 : height * 2 // 3 + 1, width // 4 : width * 3 // 4 + 1] = 1
    return weights


SMOOTH = {
    "flat": lambda h, w: torch.full((1, 1, h, w), 0.3),
    "all zero": lambda h, w: torch.zeros(1, 1, h, w),
    "all full": lambda h, w: torch.ones(1, 1, h, w),
    "binary": object_map,
    "graded": lambda h, w: grade(object_map(h, w), 0.2),
    "centre prior": centre_prior,
}


@pytest.mark.parametrize(
    "size", [(4, 4), (7, 33), (32, 32), (64, 64), (65, 65), (96, 100), (127, 65), (128, 128), (193, 193), (224, 320)]
)
@pytest.mark.parametrize("kind", SMOOTH)
def test_the_share_that_is_asked_for_is_the_share_that_is_masked(kind, size):
    confidence = SMOOTH[kind](*size)
    # Pixels that lie symmetrically about the centre of a flat map are told apart by nothing: up to a dozen of them.
    tolerance = 0.02 + 12 / (size[0] * size[1])
    for share in torch.linspace(0, 1, 21).tolist():
        assert abs(masked_share(threshold_mask(confidence, share)).item() - share) <= tolerance


@pytest.mark.parametrize("size", [(32, 32), (65, 65), (100, 75), (224, 224)])
def test_the_share_of_a_map_of_noise_is_right_but_for_sampling(size):
    confidence = torch.rand(1, 1, *size)
    for share in torch.linspace(0, 1, 21).tolist():
        assert abs(masked_share(threshold_mask(confidence, share)).item() - share) <= 0.04


@given(maps(largest=12), SHARES)
def test_no_share_asked_masks_nothing_and_all_asked_masks_all(confidence, threshold):
    assert not threshold_mask(confidence, 0.0).any()
    assert threshold_mask(confidence, 1.0).all()


@given(maps(largest=12), SHARES)
def test_a_masked_pixel_never_matters_more_than_a_kept_one(confidence, threshold):
    levels = quantise_confidence(confidence)
    for mode in ("quantile", "absolute"):
        for one, mask in zip(levels, threshold_mask(confidence, threshold, mode=mode), strict=True):
            if mask.any() and not mask.all():
                assert one[mask].max() <= one[~mask].min()


def test_the_least_difference_in_confidence_outweighs_the_place_in_the_picture():
    confidence = torch.full((1, 1, 21, 21), 101, dtype=torch.uint8)
    confidence[..., 7:14, 7:14] = 100
    for share in torch.linspace(0, 1, 41).tolist():
        mask = threshold_mask(confidence, share)
        if mask.any() and not mask.all():
            assert confidence[mask].max() <= confidence[~mask].min()


def test_cleaning_closes_no_hole_that_is_protected():
    confidence = torch.zeros(1, 1, 15, 15)
    confidence[..., 7, 7], confidence[..., 3, 11] = 1, 0.5
    (protected,) = level_masks(confidence, [1.0], protect_above=0.95, clean=2)[0]
    assert not protected[7, 7]
    assert protected.sum() == 15 * 15 - 1
    (both,) = level_masks(confidence, [1.0], protect_above=0.3, clean=2)[0]
    assert both.sum() == 15 * 15 - 2


def test_equal_confidence_goes_from_the_border_inwards_in_one_piece():
    mask = threshold_mask(torch.full((1, 1, 33, 33), 0.5), 0.6)[0, 0]
    y, x = torch.meshgrid(torch.arange(33) - 16, torch.arange(33) - 16, indexing="ij")
    radius = (y**2 + x**2).float()
    assert radius[mask].min() > radius[~mask].max()


@pytest.mark.parametrize("level", range(0, 256, 15))
def test_an_absolute_threshold_is_exact_in_steps_of_eight_bits(level):
    confidence = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for threshold in (level / 255, min(1.0, (level + 0.5) / 255)):
        for given_as in (threshold, torch.tensor([threshold]), torch.tensor([threshold], dtype=torch.float64)):
            mask = threshold_mask(confidence, given_as, mode="absolute")
            assert torch.equal(mask, confidence <= level)
    assert torch.equal(threshold_mask(confidence.float() / 255, level / 255, mode="absolute"), confidence <= level)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_every_dtype_are_read(dtype):
    confidence = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).to(dtype)
    assert torch.equal(threshold_mask(confidence, 0.5), threshold_mask(confidence.float(), 0.5))
    assert masked_share(threshold_mask(confidence, 0.5)).item() == pytest.approx(0.5, abs=0.05)


@given(maps(), SHARES, MODES, SHARES)
def test_what_lies_above_the_protection_is_never_masked(confidence, threshold, mode, protect_above):
    mask = threshold_mask(confidence, threshold, mode=mode, protect_above=protect_above)
    unit = confidence / 255 if confidence.dtype == torch.uint8 else confidence
    assert not mask[unit > protect_above + 0.5 / 255].any()
    assert torch.equal(mask, mask & threshold_mask(confidence, threshold, mode=mode))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "0..1, got 1.5"),
        ({"threshold": -0.1}, "0..1, got -0.1"),
        ({"threshold": float("nan")}, "nan"),
        ({"threshold": 0.5, "mode": "relative"}, "'quantile' or 'absolute', got 'relative'"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        threshold_mask(torch.rand(1, 1, 4, 4), **arguments)


@pytest.mark.parametrize("levels", [(), (0.0, 0.5), (0.5, 0.25), (0.5, 0.5), (0.5, 1.5), (float("nan"),)])
def test_levels_that_do_not_rise_within_the_range_are_refused(levels):
    with pytest.raises(ValueError, match="rising thresholds"):
        check_levels(levels)
    with pytest.raises(ValueError, match="rising thresholds"):
        level_masks(torch.rand(1, 1, 4, 4), levels)


@given(bool_masks(), st.integers(0, 4))
def test_growing_and_shrinking_are_the_square_neighbourhood_by_brute_force(mask, radius):
    height, width = mask.shape[-2:]
    grown, shrunk = dilate(mask, radius), erode(mask, radius)
    for y in range(height):
        for x in range(width):
            around = mask[..., max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            assert torch.equal(grown[..., y, x], around.flatten(2).any(2))
            assert torch.equal(shrunk[..., y, x], around.flatten(2).all(2))


@given(bool_masks(), st.integers(1, 3))
def test_cleaning_is_the_same_for_bool_and_floating_point_and_a_second_time(mask, radius):
    cleaned = clean_mask(mask, radius)
    assert torch.equal(clean_mask(mask.float(), radius), cleaned.float())
    assert torch.equal(clean_mask(cleaned, radius), cleaned)


def test_cleaning_removes_masked_and_kept_specks_and_leaves_what_is_larger():
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 16:, :] = True
    speckled = mask.clone()
    speckled[..., 4:6, 7:9] = True
    speckled[..., 24:26, 20:22] = False
    assert torch.equal(clean_mask(speckled, 1), mask)
    assert clean_mask(torch.ones_like(mask), 3).all()
    assert not clean_mask(torch.zeros_like(mask), 3).any()


@given(bool_masks(largest=20), st.integers(0, 6))
def test_a_feather_is_exactly_0_on_the_kept_side_and_lies_in_0_to_1(mask, radius):
    soft = feather_mask(mask, radius)
    assert soft.dtype == torch.float32
    assert soft.shape == mask.shape
    assert (soft[~mask] == 0).all()
    assert ((soft >= 0) & (soft <= 1)).all()
    if radius == 0:
        assert torch.equal(soft, mask.float())


@given(bool_masks(largest=20), SHARES, st.integers(1, 4))
def test_a_wider_mask_has_nowhere_a_thinner_feather(mask, share, radius):
    wider = mask | (torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < share)
    assert (feather_mask(mask, radius) <= feather_mask(wider, radius) + 1e-5).all()


@pytest.mark.parametrize("radius", [1, 2, 3, 5, 8])
def test_a_feather_rises_from_the_edge_inwards_and_reaches_1(radius):
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    mask[..., 15:] = True
    for soft in (feather_mask(mask, radius), feather_mask(mask.mT, radius).mT):
        row = soft[0, 0, 20]
        assert (row[:15] == 0).all()
        assert (row[15:].diff() >= -1e-6).all()
        assert (row[15 + 2 * radius :] == 1).all()
        assert 0 < row[15] < 1 or radius < 2
        torch.testing.assert_close(soft[0, 0], row.expand(40, -1), rtol=0, atol=1e-6)


def test_the_border_of_the_picture_is_no_kept_side():
    assert (feather_mask(torch.ones(1, 1, 9, 5), 4) == 1).all()
    assert (feather_mask(torch.ones(1, 1, 1, 1), 3) == 1).all()


@given(bool_masks(), st.integers(1, 4))
def test_a_feather_is_the_same_alone_and_in_a_batch(mask, radius):
    alone = torch.cat([feather_mask(one[None], radius) for one in mask])
    assert torch.equal(feather_mask(mask, radius), alone)


def test_masked_shares_are_means_by_sample():
    mask = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    mask[1, :, :2], mask[2] = True, True
    assert masked_share(mask).tolist() == [0.0, 0.5, 1.0]
    assert masked_share(mask.float() / 2).tolist() == [0.0, 0.25, 0.5]
