import math

import pytest
import torch
from PIL import Image
from tests_support import picture

from infill_aug.confidence import report
from infill_aug.confidence.report import save_case_grid, save_reliability, save_share_curve
from infill_aug.functional.grading import centre_prior


def maps(count=9):
    return [centre_prior(20 + i % 3, 30)[0] for i in range(count)]


def drawn(path):
    """Size and number of colours of a PNG that is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        colours = len(image.convert("RGB").getcolors(1 << 24))
    assert colours > 20
    return image.size


@pytest.mark.parametrize("mode", ["quantile", "absolute"])
@pytest.mark.parametrize("protect_above", [None, 0.5])
def test_share_curves_are_drawn_for_maps_of_several_sizes(tmp_path, mode, protect_above):
    mixed = [*maps(3), (maps(1)[0] * 255).to(torch.uint8), torch.rand(1, 300, 500)]
    save_share_curve(mixed, tmp_path / "share.png", mode=mode, protect_above=protect_above)
    drawn(tmp_path / "share.png")


def test_the_share_that_is_drawn_is_the_threshold_in_quantile_mode_up_to_what_is_protected():
    thresholds = torch.linspace(0, 1, 11)
    for shape in ((1, 20, 30), (1, 300, 500)):
        one = torch.rand(shape) * 0.98
        torch.testing.assert_close(report._shares(one, thresholds, "quantile", None), thresholds, rtol=0, atol=0.03)
        free = report._shares(one, thresholds, "quantile", 0.49)
        torch.testing.assert_close(free, thresholds.clamp(max=0.5), rtol=0, atol=0.04)


def test_reliability_is_drawn_also_with_empty_bins(tmp_path):
    truths = [one > 0.5 for one in maps()]
    save_reliability(maps(), truths, tmp_path / "a.png")
    save_reliability([true.float() for true in truths], truths, str(tmp_path / "b.png"), bins=4)
    assert drawn(tmp_path / "a.png")
    assert drawn(tmp_path / "b.png")


def test_cases_are_the_best_the_middle_and_the_worst_in_order():
    scores = [0.1 * i for i in range(10)]
    names = ("good", "typical", "bad")
    assert report._cases(scores, names, 2) == [
        ("good", 9), ("good", 8), ("typical", 5), ("typical", 4), ("bad", 1), ("bad", 0),
    ]  # fmt: skip
    assert report._cases([0.3, math.nan, 0.9, 0.5], names, 2) == [("good", 2), ("typical", 3), ("bad", 0)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 30])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_no_picture_is_shown_twice_however_few_there_are(count, rows):
    cases = report._cases([0.5] * count, ("good", "typical", "bad"), rows)
    assert len({i for _, i in cases}) == len(cases) == min(count, 3 * min(rows, max(1, count // 3)))
    assert cases[0][0] == "good"
    if count > 1:
        assert cases[-1][0] == "bad"


def test_the_grid_has_a_line_for_each_case_and_grows_with_the_pictures(tmp_path):
    found = maps()
    images = [picture(i, *one.shape[-2:]) for i, one in enumerate(found)]
    truths = [one > 0.5 for one in found]
    scores = [i / 10 for i in range(9)]
    save_case_grid(images, found, truths, scores, tmp_path / "a.png", rows=1)
    save_case_grid(images, found, truths, scores, tmp_path / "b.png", rows=3, mode="absolute", threshold=0.2)
    (width, one), (wider, three) = drawn(tmp_path / "a.png"), drawn(tmp_path / "b.png")
    assert width == wider
    assert three > 2 * one


def test_figures_are_closed(tmp_path):
    from matplotlib import pyplot

    save_share_curve(maps(2), tmp_path / "share.png")
    save_reliability(maps(2), [one > 0.5 for one in maps(2)], tmp_path / "reliability.png")
    assert pyplot.get_fignums() == []


def test_what_cannot_be_drawn_is_refused_and_named(tmp_path):
    path, one = tmp_path / "x.png", torch.rand(1, 8, 8)
    with pytest.raises(ValueError, match="no maps to draw"):
        save_share_curve([], path)
    with pytest.raises(ValueError, match="mode must be 'quantile' or 'absolute', got 'share'"):
        save_share_curve([one], path, mode="share")
    with pytest.raises(ValueError, match="1 maps and 0 truths"):
        save_reliability([one], [], path)
    with pytest.raises(ValueError, match="truth must be bool"):
        save_reliability([one], [one], path)
    with pytest.raises(ValueError, match="1 images and 2 scores"):
        save_case_grid([picture(0)], [one], [one > 0], [1, 2], path)
    with pytest.raises(ValueError, match="every score is NaN"):
        save_case_grid([picture(0)], [one], [one > 0], [math.nan], path)
    with pytest.raises(ValueError, match="names must be three and rows 1 or more"):
        save_case_grid([picture(0)], [one], [one > 0], [1], path, names=("a", "b"))
    assert not path.exists()
