"""A drift of colours is found and undone, whatever an edit did to a part of the picture."""

import pytest
import tests_support
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as F

from infill_aug.functional.drift import coloured, fit_drift, no_drift

STEP = 1 / 255
NONE = no_drift()


def scene(seed: int, height: int = 90, width: int = 120) -> torch.Tensor:
    return tests_support.scene(seed, height, width)


def bytes_of(picture: torch.Tensor) -> torch.Tensor:
    """Rounded to 8 bits, as what an editor stores."""
    return (picture.clamp(0, 1) * 255).round() / 255


def jpeg(picture: torch.Tensor, quality: int) -> torch.Tensor:
    return decode_jpeg(encode_jpeg((picture.clamp(0, 1) * 255).round().to(torch.uint8), quality)) / 255


def saturated(picture: torch.Tensor, factor: float) -> torch.Tensor:
    luma = (picture * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=0, keepdim=True)
    return luma + factor * (picture - luma)


def left_over(original: torch.Tensor, edited: torch.Tensor, colours: torch.Tensor) -> float:
    return float((coloured(edited, colours) - original).abs().mean())


def rgb(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(3, 1, 1)


DRIFTS = {
    "brighter": lambda p: p + 0.06,
    "darker": lambda p: p - 0.06,
    "contrast": lambda p: 1.15 * p - 0.05,
    "flat": lambda p: 0.75 * p + 0.1,
    "warm": lambda p: p * rgb(1.08, 1.0, 0.92) + rgb(0.01, 0.0, -0.01),
    "gamma up": lambda p: p.clamp(min=0) ** 1.15,
    "gamma down": lambda p: p.clamp(min=0) ** 0.85,
    "vivid": lambda p: saturated(p, 1.15),
    "pale": lambda p: saturated(p, 0.8),
    "all": lambda p: saturated(p, 0.9).clamp(min=0) ** 1.08 * rgb(1.05, 1.0, 0.97) + 0.02,
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", DRIFTS)
def test_gain_offset_gamma_and_saturation_are_undone_to_a_step_of_8_bits(name, seed):
    picture = scene(seed)
    edited = bytes_of(DRIFTS[name](picture))
    colours = fit_drift(picture, edited)
    assert left_over(picture, edited, colours) < STEP
    assert left_over(picture, edited, NONE) > 3 * STEP


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    gains=st.tuples(*[st.floats(0.8, 1.15)] * 3),
    offset=st.floats(-0.08, 0.08),
)
def test_any_small_drift_is_undone(seed, gains, offset):
    picture = scene(seed)
    edited = bytes_of(picture * rgb(*gains) + offset)
    assert left_over(picture, edited, fit_drift(picture, edited)) < 1.5 * STEP


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["contrast", "warm", "gamma up", "all"])
@pytest.mark.parametrize("kind", ["replaced", "one colour", "brighter"])
def test_an_edit_of_45_percent_of_the_picture_does_not_pull_the_fit(name, seed, kind):
    picture = scene(seed)
    other = {"replaced": scene(seed + 50), "one colour": torch.full_like(picture, 0.8) * rgb(1, 0.4, 0.2),
             "brighter": (0.7 * picture + 0.25).clamp(0, 1)}[kind]  # fmt: skip
    edit = torch.zeros(90, 120, dtype=torch.bool)
    edit[:60, :81] = True
    assert 0.44 < float(edit.float().mean()) < 0.46
    edited = bytes_of(DRIFTS[name](torch.where(edit, other, picture)))
    back = coloured(edited, fit_drift(picture, edited))
    assert float((back - picture)[:, ~edit].abs().mean()) < 1.5 * STEP


@pytest.mark.parametrize("seed", range(3))
def test_an_edit_of_45_percent_without_a_drift_is_no_drift(seed):
    picture = bytes_of(scene(seed))
    edited = picture.clone()
    edited[:, :60, :81] = bytes_of(saturated(scene(seed), 0.3) * rgb(1.2, 0.8, 0.7))[:, :60, :81]
    assert fit_drift(picture, edited).equal(NONE)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_three_in_ten_pixels_that_were_redrawn_here_and_there_do_not_pull_the_fit(share):
    picture = scene(4)
    # A mean over some pixels is what the fit sees; so what is redrawn comes in blocks.
    redrawn = F.resize((torch.rand(1, 9, 12) < share).float(), [90, 120], F.InterpolationMode.NEAREST)[0] > 0
    edited = bytes_of(torch.where(redrawn, torch.rand(3, 90, 120), 0.85 * picture + 0.05))
    back = coloured(edited, fit_drift(picture, edited))
    assert float((back - picture)[:, ~redrawn].abs().mean()) < 1.5 * STEP


def test_what_is_usable_alone_tells():
    picture = scene(5)
    edited = scene(6)
    edited[:, :, :50] = (0.9 * picture + 0.06)[:, :, :50]
    usable = torch.zeros(1, 90, 120, dtype=torch.bool)
    usable[:, :, :50] = True
    back = coloured(edited, fit_drift(picture, edited, usable))
    assert float((back - picture)[:, :, :50].abs().mean()) < STEP


@pytest.mark.parametrize("columns", [0, 1])
def test_too_few_usable_pixels_tell_nothing(columns):
    picture = scene(7)
    usable = torch.zeros(1, 90, 120, dtype=torch.bool)
    usable[:, :, :columns] = True
    assert fit_drift(picture, 0.8 * picture, usable).equal(NONE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["brighter", "contrast", "darker", "gamma down"])
def test_colours_that_were_cut_off_do_not_pull_the_fit(name, seed):
    middle = 0.7 if name in ("brighter", "gamma down") else 0.35
    picture = bytes_of((scene(seed) - 0.5) * 1.6 + middle)
    drifted = DRIFTS[name](1.1 * picture - 0.05 if name == "gamma down" else picture)
    whole = ((drifted > 0.01) & (drifted < 0.99)).all(dim=0)
    assert 0.05 < 1 - float(whole.float().mean()) < 0.8
    edited = bytes_of(drifted)
    back = coloured(edited, fit_drift(picture, edited))
    assert float((back - picture)[:, whole].abs().mean()) < 1.5 * STEP


def test_a_start_that_is_about_right_is_refined():
    picture = scene(9)
    edited = bytes_of(0.88 * picture + 0.07)
    first = fit_drift(picture, edited)
    again = fit_drift(picture, edited, start=first)
    assert left_over(picture, edited, again) < STEP
    near = NONE.clone()
    near[:, 4] = -0.03
    assert left_over(picture, edited, fit_drift(picture, edited, start=near)) < STEP


@pytest.mark.parametrize("kind", ["same", "noise", "rounded", "jpeg 80", "jpeg 50", "sharpened", "smoothed"])
@pytest.mark.parametrize("seed", range(3))
def test_there_is_exactly_no_drift_where_only_detail_changed(kind, seed):
    picture = scene(seed)
    noise = 0.02 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    smooth = F.gaussian_blur(picture, [5, 5], [1.0, 1.0])
    edited = {
        "same": picture,
        "noise": picture + noise,
        "rounded": bytes_of(picture),
        "jpeg 80": jpeg(picture, 80),
        "jpeg 50": jpeg(picture, 50),
        "sharpened": (1.5 * picture - 0.5 * smooth).clamp(0, 1),
        "smoothed": smooth,
    }[kind]
    assert fit_drift(picture, edited).equal(NONE)


def test_texture_that_is_drawn_anew_everywhere_does_not_raise_the_contrast():
    generator = torch.Generator().manual_seed(3)
    smooth = F.gaussian_blur(scene(1), [9, 9], [3.0, 3.0])
    one, two = ((smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1) for _ in range(2))
    assert abs(float(coloured(two, fit_drift(one, two)).std() / two.std()) - 1) < 0.1


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_a_flat_picture_that_stays_has_no_drift(value):
    flat = torch.full((3, 40, 50), value)
    assert fit_drift(flat, flat).equal(NONE)


def test_a_flat_picture_is_shifted_back():
    flat = torch.full((3, 40, 50), 0.5)
    edited = torch.full((3, 40, 50), 0.6)
    assert float((coloured(edited, fit_drift(flat, edited)) - flat).abs().max()) < STEP


@pytest.mark.parametrize(("before", "after"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.3), (0.3, 0.0)])
def test_pictures_without_any_common_ground_come_back_in_range(before, after):
    one, other = torch.full((3, 40, 50), before), torch.full((3, 40, 50), after)
    back = coloured(other, fit_drift(one, other))
    assert back.isfinite().all()
    assert ((back >= 0) & (back <= 1)).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 40), width=st.integers(1, 40))
def test_any_pictures_give_numbers_that_are_finite(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.rand(2, 3, height, width, generator=generator)
    colours = fit_drift(one, other)
    assert colours.shape == (3, 5)
    assert colours.dtype == torch.float64
    assert colours.isfinite().all()
    back = coloured(other, colours)
    assert back.shape == other.shape
    assert ((back >= 0) & (back <= 1)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 63), (7, 9)])
def test_a_picture_of_too_few_pixels_tells_nothing(size):
    picture = torch.rand(3, *size)
    assert fit_drift(picture, 0.7 * picture + 0.2).equal(NONE)


def test_another_picture_is_no_drift_of_this_one():
    one, other = scene(20), scene(21)
    back = coloured(other, fit_drift(one, other))
    assert float((back - other).abs().mean()) < 0.15


def test_channels_that_changed_places_are_no_drift():
    picture = scene(22)
    assert left_over(picture, picture.flip(0), fit_drift(picture, picture.flip(0))) > 5 * STEP


def test_colours_are_what_the_matrix_says():
    picture = torch.rand(3, 4, 5)
    colours = torch.tensor(
        [[0.5, 0.1, 0.0, 0.2, 0.05], [0.0, 0.7, 0.1, -0.1, 0.1], [0.1, 0.0, 0.6, 0.0, 0.0]], dtype=torch.float64
    )
    r, g, b = picture
    wanted = torch.stack(
        [0.5 * r + 0.1 * g + 0.2 * r**2 + 0.05, 0.7 * g + 0.1 * b - 0.1 * g**2 + 0.1, 0.1 * r + 0.6 * b]
    )
    torch.testing.assert_close(coloured(picture, colours), wanted.clamp(0, 1))


def test_no_drift_leaves_every_colour():
    picture = torch.rand(3, 20, 20)
    torch.testing.assert_close(coloured(picture, NONE), picture, rtol=0, atol=1e-7)


def test_the_pictures_are_left_as_they_are():
    picture = scene(23)
    edited = 0.9 * picture
    kept = picture.clone(), edited.clone()
    coloured(edited, fit_drift(picture, edited))
    assert picture.equal(kept[0])
    assert edited.equal(kept[1])


def test_a_large_picture_gives_the_drift_of_a_small_one():
    picture = scene(24, 600, 800)
    edited = bytes_of(0.9 * picture + 0.06)
    assert left_over(picture, edited, fit_drift(picture, edited)) < STEP
