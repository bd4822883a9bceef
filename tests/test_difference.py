"""Differences of colours as a person sees them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests_support import picture

from infill_aug.functional.difference import ciede2000, srgb_to_lab

# L, a, b twice, and their difference: table 1 of Sharma, Wu and Dalal (2005).
SHARMA = """
50.0000   2.6772 -79.7751  50.0000   0.0000 -82.7485   2.0425
50.0000   3.1571 -77.2803  50.0000   0.0000 -82.7485   2.8615
50.0000   2.8361 -74.0200  50.0000   0.0000 -82.7485   3.4412
50.0000  -1.3802 -84.2814  50.0000   0.0000 -82.7485   1.0000
50.0000  -1.1848 -84.8006  50.0000   0.0000 -82.7485   1.0000
50.0000  -0.9009 -85.5211  50.0000   0.0000 -82.7485   1.0000
50.0000   0.0000   0.0000  50.0000  -1.0000   2.0000   2.3669
50.0000  -1.0000   2.0000  50.0000   0.0000   0.0000   2.3669
50.0000   2.4900  -0.0010  50.0000  -2.4900   0.0009   7.1792
50.0000   2.4900  -0.0010  50.0000  -2.4900   0.0010   7.1792
50.0000   2.4900  -0.0010  50.0000  -2.4900   0.0011   7.2195
50.0000   2.4900  -0.0010  50.0000  -2.4900   0.0012   7.2195
50.0000  -0.0010   2.4900  50.0000   0.0009  -2.4900   4.8045
50.0000  -0.0010   2.4900  50.0000   0.0010  -2.4900   4.8045
50.0000  -0.0010   2.4900  50.0000   0.0011  -2.4900   4.7461
50.0000   2.5000   0.0000  50.0000   0.0000  -2.5000   4.3065
50.0000   2.5000   0.0000  73.0000  25.0000 -18.0000  27.1492
50.0000   2.5000   0.0000  61.0000  -5.0000  29.0000  22.8977
50.0000   2.5000   0.0000  56.0000 -27.0000  -3.0000  31.9030
50.0000   2.5000   0.0000  58.0000  24.0000  15.0000  19.4535
50.0000   2.5000   0.0000  50.0000   3.1736   0.5854   1.0000
50.0000   2.5000   0.0000  50.0000   3.2972   0.0000   1.0000
50.0000   2.5000   0.0000  50.0000   1.8634   0.5757   1.0000
50.0000   2.5000   0.0000  50.0000   3.2592   0.3350   1.0000
60.2574 -34.0099  36.2677  60.4626 -34.1751  39.4387   1.2644
63.0109 -31.0961  -5.8663  62.8187 -29.7946  -4.0864   1.2630
61.2901   3.7196  -5.3901  61.4292   2.2480  -4.9620   1.8731
35.0831 -44.1164   3.7933  35.0232 -40.0716   1.5901   1.8645
22.7233  20.0904 -46.6940  23.0331  14.9730 -42.5619   2.0373
36.4612  47.8580  18.3852  36.2715  50.5065  21.2231   1.4146
90.8027  -2.0831   1.4410  91.1528  -1.6435   0.0447   1.4441
90.9257  -0.5406  -0.9208  88.6381  -0.8985  -0.7239   1.5381
 6.7747  -0.2908  -2.4247   5.8714  -0.0985  -2.2286   0.6377
 2.0776   0.0795  -1.1350   0.9033  -0.0636  -0.5514   0.9082
"""
TABLE = [[float(v) for v in line.split()] for line in SHARMA.strip().splitlines()]
PAIRS = torch.tensor(TABLE, dtype=torch.float64)


def columns() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All pairs as two pictures ``(3, 34, 1)``, and their differences ``(1, 34, 1)``."""
    return PAIRS[:, :3].T[..., None], PAIRS[:, 3:6].T[..., None], PAIRS[:, 6][None, :, None]


@pytest.mark.parametrize("pair", range(34))
def test_every_pair_of_the_paper_has_the_difference_of_the_paper(pair):
    *colours, wanted = TABLE[pair]
    one, other = torch.tensor(colours, dtype=torch.float64).view(2, 3, 1, 1)
    assert ciede2000(one, other).item() == pytest.approx(wanted, abs=1e-4)


def test_the_table_is_complete():
    assert PAIRS.shape == (34, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_which_of_two_colours_comes_first_does_not_matter(dtype):
    one, other, _ = columns()
    lab = srgb_to_lab(torch.rand(2, 3, 40, 40, dtype=dtype))
    for first, second in ((one.to(dtype), other.to(dtype)), (lab[0], lab[1])):
        torch.testing.assert_close(ciede2000(first, second), ciede2000(second, first), rtol=0, atol=2e-4)


def test_a_whole_picture_gives_what_its_pixels_give():
    one, other, wanted = columns()
    torch.testing.assert_close(ciede2000(one, other), wanted, rtol=0, atol=1e-4)


def test_a_picture_has_the_same_difference_alone_and_in_a_batch():
    lab = srgb_to_lab(torch.rand(2, 2, 4, 3, 9, 7))
    together = ciede2000(lab[0], lab[1])
    assert together.shape == (2, 4, 1, 9, 7)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(ciede2000(lab[0, i, j], lab[1, i, j]), together[i, j], rtol=1e-5, atol=1e-5)


def test_one_colour_is_compared_with_a_whole_picture():
    lab = srgb_to_lab(torch.rand(3, 6, 5))
    assert torch.equal(ciede2000(lab, lab[:, :1, :1]), ciede2000(lab, lab[:, :1, :1].expand_as(lab)))


def test_a_colour_does_not_differ_from_itself():
    lab = srgb_to_lab(picture(0, 64, 64))
    assert float(ciede2000(lab, lab).abs().max()) == 0


@given(seed=st.integers(0, 10**6))
def test_a_difference_is_a_finite_number_of_0_or_more_up_to_the_corners_of_the_colours(seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randint(0, 2, (3, 8, 8), generator=generator).float() for _ in range(2))
    apart = ciede2000(srgb_to_lab(one), srgb_to_lab(other))
    assert apart.isfinite().all()
    assert (apart >= 0).all()
    assert (apart < 130).all()


def test_lab_and_differences_are_those_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    one, other = picture(1, 60, 80), picture(2, 60, 80)
    wanted = [color.rgb2lab(p.permute(1, 2, 0).numpy()) for p in (one, other)]
    for mine, theirs in zip((one, other), wanted, strict=True):
        away = srgb_to_lab(mine.double() / 255).permute(1, 2, 0) - torch.from_numpy(theirs)
        assert float(away.abs().max()) < 0.05
    labs = [torch.from_numpy(each).permute(2, 0, 1) for each in wanted]
    theirs = torch.from_numpy(color.deltaE_ciede2000(*wanted))
    torch.testing.assert_close(ciede2000(labs[0], labs[1])[0], theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float64_stays_and_the_rest_becomes_float32(dtype):
    lab = srgb_to_lab(torch.rand(3, 4, 4).to(dtype))
    assert lab.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ciede2000(lab, lab).dtype == lab.dtype


def test_bytes_give_what_their_floats_give():
    every = torch.stack(torch.meshgrid(*(torch.arange(0, 256, 15),) * 3, indexing="ij")).flatten(2).to(torch.uint8)
    torch.testing.assert_close(srgb_to_lab(every), srgb_to_lab(every.float() / 255), rtol=0, atol=1e-4)


def test_greys_have_no_colour_and_lightness_goes_from_0_to_100():
    grey = srgb_to_lab(torch.arange(256, dtype=torch.float64).div(255).expand(3, 1, 256))
    assert float(grey[1:].abs().max()) < 1e-3
    assert grey[0, 0, 0].item() == pytest.approx(0, abs=1e-6)
    assert grey[0, 0, -1].item() == pytest.approx(100, abs=1e-4)
    assert (grey[0, 0].diff() > 0).all()


def test_the_primaries_are_where_they_are_known_to_be():
    wanted = torch.tensor([[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]])
    primaries = torch.eye(3).view(3, 1, 3)  # a row of red, green and blue
    torch.testing.assert_close(srgb_to_lab(primaries)[:, 0].T, wanted, rtol=0, atol=0.05)


def test_the_pictures_are_left_as_they_are():
    one = torch.rand(3, 5, 5)
    lab, copy = srgb_to_lab(one), one.clone()
    kept = lab.clone()
    ciede2000(lab, lab.flip(2))
    assert one.equal(copy)
    assert lab.equal(kept)


def test_the_distance_of_black_and_white_is_100():
    ends = srgb_to_lab(torch.tensor([0.0, 1.0], dtype=torch.float64).expand(3, 1, 2))
    assert math.isclose(ciede2000(ends[..., :1], ends[..., 1:]).item(), 100, abs_tol=1e-3)
