import numpy as np
import pytest
import torch
from tests_support import picture

from infill_aug.smart_mask.difference import difference_mask

BARE = {"erosion": 0, "dilation": 0, "feather": 0}


def grey(height=60, width=60, level=100):
    return torch.full((3, height, width), level, dtype=torch.uint8)


def recoloured(original, *boxes, by=60):
    edited = original.clone()
    for left, top, right, bottom in boxes:
        edited[:, top:bottom, left:right] += by
    return edited


def hard(height, width, *boxes):
    mask = torch.zeros(1, height, width)
    for left, top, right, bottom in boxes:
        mask[:, top:bottom, left:right] = 1
    return mask


# --- threshold ---


def test_a_pixel_counts_as_changed_from_ten_percent_of_the_mean_over_the_colours():
    original = grey(1, 3)
    edited = original.clone()
    edited[:, 0, 0] += torch.tensor([76, 0, 0], dtype=torch.uint8)  # 9.93 %
    edited[:, 0, 2] -= torch.tensor([25, 26, 26], dtype=torch.uint8)  # 10.07 %
    mask, _ = difference_mask(original, edited, **BARE)
    assert mask[0, 0].tolist() == [0, 0, 1]


def test_the_threshold_itself_is_enough_in_8_bits_as_in_floating_point():
    original = torch.zeros(3, 1, 2, dtype=torch.uint8)
    edited = original.clone()
    edited[:, 0, 1] = 51  # a fifth of the range
    for pair in ((original, edited), (original / 255, edited / 255), (original.double() / 255, edited.double() / 255)):
        assert difference_mask(*pair, threshold=0.2, **BARE)[0][0, 0].tolist() == [0, 1]
        assert difference_mask(*pair, threshold=0.201, **BARE)[0].sum() == 0


def test_8_bits_and_floating_point_give_the_same_mask():
    original, edited = picture(0, 40, 50), picture(1, 40, 50)
    masks = [difference_mask(a, b)[0] for a, b in ((original, edited), (original / 255, edited / 255))]
    assert masks[0].any()
    assert torch.equal(*masks)


def test_a_pixel_that_is_not_finite_never_counts_as_changed():
    original = torch.zeros(3, 8, 8)
    edited = torch.full_like(original, torch.nan)
    assert difference_mask(original, edited) == (pytest.approx(torch.zeros(1, 8, 8)), ())


# --- regions ---


def test_the_largest_region_stays_and_every_one_above_three_percent():
    original = grey(100, 100)
    largest, above, at = (5, 5, 45, 45), (60, 60, 80, 76), (60, 10, 80, 25)  # 16, 3.2 and exactly 3 percent
    mask, regions = difference_mask(original, recoloured(original, largest, above, at), **BARE)
    assert torch.equal(mask, hard(100, 100, largest, above))
    assert [(region.box, region.area, region.taken) for region in regions] == [
        (largest, 1600, True),
        (above, 320, True),
        (at, 300, False),
    ]
    assert [region.evidence for region in regions] == pytest.approx([1600 / 2220, 320 / 2220, 300 / 2220])


def test_the_largest_region_stays_however_small_it_is():
    original = grey(100, 100)
    edited = recoloured(original, (20, 20, 26, 26), (70, 70, 75, 75))
    mask, regions = difference_mask(original, edited, **BARE)
    assert torch.equal(mask, hard(100, 100, (20, 20, 26, 26)))
    assert [region.taken for region in regions] == [True, False]


def test_pixels_that_touch_at_a_corner_are_one_region():
    original = grey()
    _, regions = difference_mask(original, recoloured(original, (10, 10, 20, 20), (20, 20, 30, 30)))
    assert [(region.box, region.area) for region in regions] == [((10, 10, 30, 30), 200)]


def test_strength_is_the_difference_that_a_person_sees():
    white, black = torch.full((3, 20, 20), 255, dtype=torch.uint8), torch.zeros(3, 20, 20, dtype=torch.uint8)
    assert difference_mask(white, black)[1][0].strength == pytest.approx(100, abs=0.01)
    original = grey(40, 80)
    edited = recoloured(recoloured(original, (0, 0, 30, 40), by=30), (50, 0, 80, 40), by=120)
    weak, strong = sorted(region.strength for region in difference_mask(original, edited)[1])
    assert 0 < weak < strong < 100


def test_of_very_many_regions_only_the_largest_are_reported():
    original = grey(100, 100)
    edited = original.clone()
    edited[:, ::2, ::2] = 255
    edited[:, 40:50, 40:50] = 255
    _, regions = difference_mask(original, edited)
    assert len(regions) == 16
    assert [region.taken for region in regions] == [True] + [False] * 15
    assert sum(region.evidence for region in regions) < 1


# --- shape: erosion, holes, dilation ---


def test_erosion_takes_two_pixels_and_dilation_gives_three():
    original = grey()
    edited = recoloured(original, (20, 22, 40, 45))
    assert torch.equal(difference_mask(original, edited, dilation=0, feather=0)[0], hard(60, 60, (22, 24, 38, 43)))
    assert torch.equal(difference_mask(original, edited, feather=0)[0], hard(60, 60, (19, 21, 41, 46)))


def test_a_hole_is_filled_after_the_erosion_and_a_bay_is_not():
    original = grey()
    edited = recoloured(original, (10, 10, 50, 50))
    edited[:, 15:25, 15:25] = original[:, 15:25, 15:25]  # enclosed
    edited[:, 30:45, 30:60] = original[:, 30:45, 30:60]  # open to the right
    mask = difference_mask(original, edited, dilation=0, feather=0)[0]
    assert torch.equal(mask, hard(60, 60, (12, 12, 48, 48)) * (1 - hard(60, 60, (28, 28, 60, 47))))


def test_what_the_border_of_the_picture_closes_is_no_hole():
    original = grey()
    edited = recoloured(original, (0, 0, 30, 30))
    edited[:, :20, :20] = original[:, :20, :20]
    mask = difference_mask(original, edited, **BARE)[0]
    assert torch.equal(mask, hard(60, 60, (0, 0, 30, 30)) - hard(60, 60, (0, 0, 20, 20)))


def test_regions_far_apart_are_shaped_each_on_its_own():
    original = grey(200, 100)
    edited = recoloured(original, (0, 0, 40, 40), (60, 160, 100, 200))
    mask = difference_mask(original, edited, feather=0)[0]
    assert torch.equal(mask, hard(200, 100, (0, 0, 41, 41), (59, 159, 100, 200)))


# --- feather ---


@pytest.mark.parametrize("side", [1050, 2100, 4200])
def test_the_feather_is_30_pixels_to_either_side_at_2100_and_grows_with_the_long_side(side):
    original = grey(2, side)
    edited = recoloured(original, (0, 0, side // 2, 2))
    alpha = difference_mask(original, edited, erosion=0, dilation=0)[0][0, 0]
    width = 30 * side // 2100
    edge = side // 2
    assert alpha[edge - 1] + alpha[edge] == pytest.approx(1)
    assert alpha[edge + width - 1 : edge + width + 1].mean() == pytest.approx(0.0228, abs=0.001)  # two sigma
    assert alpha[edge - width - 1 : edge - width + 1].mean() == pytest.approx(0.9772, abs=0.001)
    assert (alpha.diff() <= 0).all()
    assert (alpha[: edge - 2 * width - 2] == 1).all()
    assert (alpha[edge + 2 * width + 2 :] == 0).all()


def test_the_border_of_the_picture_is_no_edge():
    original = grey(500, 500)
    mask = difference_mask(original, recoloured(original, (0, 100, 500, 400)))[0]
    assert torch.allclose(mask, mask[..., :1].expand_as(mask), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_all_steps_give_what_scipy_gives(seed):
    ndimage = pytest.importorskip("scipy.ndimage")
    random = np.random.default_rng(seed)
    noise = sum(r * ndimage.gaussian_filter(random.standard_normal((311, 420)), r) for r in (2, 4, 15))
    first = random.integers(100, 156, (3, 311, 420))
    second = (first + 16 + 60 * noise / noise.std()).clip(0, 255).round().astype(int)
    original, edited = (torch.from_numpy(p.astype(np.uint8)) for p in (first, second))
    changed = abs(second - first).mean(0) / 255 >= 0.1
    labels, count = ndimage.label(changed, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    kept = np.isin(labels, [i for i in range(1, count + 1) if areas[i] > 0.03 * changed.size or i == areas.argmax()])
    shrunk = ndimage.binary_erosion(kept, np.ones((5, 5)), border_value=1)
    grown = ndimage.binary_dilation(ndimage.binary_fill_holes(shrunk), np.ones((7, 7)))
    alpha = ndimage.gaussian_filter(grown.astype(np.float32), 15 * 420 / 2100, mode="nearest")
    mask, regions = difference_mask(original, edited)
    assert 0.05 < mask.mean() < 0.95
    assert np.abs(mask[0].numpy() - alpha).max() < 1e-3
    assert sum(region.area for region in regions if region.taken) == kept.sum()


# --- what comes in ---


def test_identical_pictures_give_an_empty_mask_and_no_region():
    mask, regions = difference_mask(picture(0), picture(0))
    assert torch.equal(mask, torch.zeros(1, 24, 24))
    assert regions == ()


@pytest.mark.parametrize("size", [(50, 70), (1, 1), (1, 9), (9, 1)])
def test_a_picture_with_nothing_but_changed_pixels_gives_a_full_mask(size):
    mask, regions = difference_mask(grey(*size), grey(*size, level=200))
    assert torch.equal(mask, torch.ones(1, *size))
    assert [(region.area, region.evidence) for region in regions] == [(size[0] * size[1], 1)]


@pytest.mark.parametrize("turn", [False, True])
def test_pictures_one_pixel_wide_have_regions_too(turn):
    original = grey(1, 80)
    edited = recoloured(original, (20, 0, 50, 1))
    pair = [p.mT.contiguous() if turn else p for p in (original, edited)]
    mask, regions = difference_mask(*pair, feather=0)
    assert mask.flatten().nonzero().flatten().tolist() == list(range(19, 51))
    assert regions[0].box == ((0, 20, 1, 50) if turn else (20, 0, 50, 1))


def test_the_pictures_are_left_as_they_are_and_may_be_views():
    original = picture(3, 30, 40)
    edited = torch.where(torch.arange(40) < 25, 255 - original, original)
    wanted = difference_mask(original, edited)[0]
    turned = [p.permute(1, 2, 0).contiguous().permute(2, 0, 1) for p in (original, edited)]
    before = [p.clone() for p in turned]
    assert torch.equal(difference_mask(*turned)[0], wanted)
    assert all(torch.equal(a, b) for a, b in zip(before, turned, strict=True))


@pytest.mark.parametrize(
    ("original", "edited", "message"),
    [
        (grey(4, 5), grey(5, 4), r"\(3, 4, 5\).*\(3, 5, 4\).*resize"),
        (grey(4, 5), grey(4, 5) / 255, "uint8 and .* torch.float32"),
        (grey()[:1], grey()[:1], r"must both be \(3, H, W\)"),
        (grey(0, 5), grey(0, 5), r"\(3, 0, 5\)"),
        (grey().int(), grey().int(), "got torch.int32; convert"),
    ],
)
def test_pictures_that_do_not_fit_are_named(original, edited, message):
    with pytest.raises(ValueError, match=message):
        difference_mask(original, edited)


@pytest.mark.parametrize(
    "setting", [{"threshold": 0}, {"threshold": 10}, {"least_share": 3}, {"erosion": -1}, {"feather": float("nan")}]
)
def test_numbers_out_of_range_are_named(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name} must lie in 0.*, got {value}"):
        difference_mask(grey(), grey(), **setting)


# --- what the method is known not to do: the default is measured against this ---


def test_a_drift_of_twelve_percent_makes_everything_change():
    original = picture(0, 60, 60) // 2
    edited = recoloured(original + 31, (20, 20, 40, 40))
    assert (difference_mask(original, edited)[0] == 1).all()


def test_an_edit_that_leaves_a_band_of_the_old_colour_falls_apart_and_only_the_largest_part_stays():
    original = grey(200, 200)
    edited = recoloured(original, (60, 60, 90, 90), (95, 60, 120, 90))
    mask = difference_mask(original, edited)[0]
    assert mask[0, 75, 75] == 1
    assert mask[0, 75, 110] == 0


def test_what_is_thinner_than_the_erosion_is_lost():
    original = grey()
    mask, regions = difference_mask(original, recoloured(original, (0, 30, 60, 34)))
    assert regions[0].taken
    assert not mask.any()


def test_the_feather_takes_of_the_edit_beyond_its_edge():
    original = grey(600, 600)
    mask = difference_mask(original, recoloured(original, (200, 200, 400, 400)))[0]
    assert 0 < mask[0, 300, 405] < 0.5
