"""Motion and drift of colours together: found, and undone."""

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import scene
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as F

from infill_aug.functional.alignment import Alignment, align, aligned, aligned_part
from infill_aug.functional.drift import coloured, no_drift
from infill_aug.functional.motion import moved, no_motion

HEIGHT, WIDTH = 120, 160
SIDES = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)


def shifted(picture: torch.Tensor, right: float, down: float) -> torch.Tensor:
    height, width = picture.shape[-2:]
    theta = torch.tensor([[[1, 0, -2 * right / width], [0, 1, -2 * down / height]]])
    grid = nnf.affine_grid(theta, [1, 3, height, width], align_corners=False)
    return nnf.grid_sample(picture[None], grid, "bicubic", "border", align_corners=False)[0].clamp(0, 1)


def coloured_anew(picture: torch.Tensor) -> torch.Tensor:
    return (picture * torch.tensor([0.92, 0.88, 0.8]).view(3, 1, 1) + 0.05).clamp(0, 1)


def bytes_of(picture: torch.Tensor) -> torch.Tensor:
    return (picture * 255).round() / 255


def jpeg(picture: torch.Tensor, quality: int) -> torch.Tensor:
    return decode_jpeg(encode_jpeg((picture * 255).round().to(torch.uint8), quality)) / 255


def pixels(alignment: Alignment) -> list[float]:
    return (alignment.motion[:, 2] * SIDES).tolist()


INNER = (slice(None), slice(8, -8), slice(8, -8))


@pytest.mark.parametrize(("right", "down"), [(2, 0), (-3, 1), (1.4, -0.6), (0.5, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_motion_and_drift_together_are_both_undone(seed, right, down):
    picture = scene(seed)
    edited = bytes_of(coloured_anew(shifted(picture, right, down)))
    alignment = align(picture, edited)
    assert alignment.moves
    assert alignment.drifts
    assert pixels(alignment) == pytest.approx([right, down], abs=0.1)
    before, after = (float((p - picture)[INNER].abs().mean()) for p in (edited, aligned(edited, alignment)))
    assert after < 2.5 / 255
    assert after < before / 5


@pytest.mark.parametrize("seed", range(3))
def test_an_edit_of_a_third_of_the_picture_disturbs_neither(seed):
    picture = scene(seed)
    changed = picture.clone()
    changed[:, 20:100, 30:110] = scene(seed + 50)[:, 20:100, 30:110]
    edited = jpeg(coloured_anew(shifted(changed, 2, -1)), 85)
    alignment = align(picture, edited)
    assert pixels(alignment) == pytest.approx([2, -1], abs=0.1)
    outside = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    outside[16:104, 26:114] = False
    outside[:8], outside[-8:], outside[:, :8], outside[:, -8:] = False, False, False, False
    # What JPEG left cannot be undone: as good as the truth is all that can be.
    truth = Alignment(torch.tensor([[1, 0, 2 / WIDTH], [0, 1, -1 / HEIGHT]], dtype=torch.float64), no_drift())
    unmoved = ((aligned(edited, truth) - 0.05) / torch.tensor([0.92, 0.88, 0.8]).view(3, 1, 1)).clamp(0, 1)
    found, best = (float((p - picture)[:, outside].abs().mean()) for p in (aligned(edited, alignment), unmoved))
    assert found < 1.2 * best


@pytest.mark.parametrize("kind", ["same", "edit", "jpeg", "noise"])
def test_what_is_not_there_is_exactly_none(kind):
    picture = scene(3)
    edited = {"same": picture, "edit": picture.clone(), "jpeg": jpeg(picture, 80), "noise": picture.clone()}[kind]
    if kind == "edit":
        edited[:, 20:90, 30:110] = scene(4)[:, 20:90, 30:110]
    if kind == "noise":
        edited = (picture + 0.01 * torch.randn(picture.shape)).clamp(0, 1)
    alignment = align(picture, edited)
    assert not alignment.moves
    assert not alignment.drifts


def test_a_drift_alone_is_no_motion_and_a_motion_alone_no_drift():
    picture = scene(5)
    alignment = align(picture, bytes_of(coloured_anew(picture)))
    assert (alignment.moves, alignment.drifts) == (False, True)
    alignment = align(picture, shifted(picture, 3, 1))
    assert (alignment.moves, alignment.drifts) == (True, False)


def test_what_is_usable_alone_tells():
    picture = scene(6)
    edited = scene(7)
    edited[:, :, :70] = coloured_anew(shifted(picture, 2, 1))[:, :, :70]
    usable = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    usable[:, :, :66] = True
    alignment = align(picture, edited, usable)
    assert pixels(alignment) == pytest.approx([2, 1], abs=0.1)
    assert float((aligned(edited, alignment) - picture)[:, 8:-8, 8:60].abs().mean()) < 2.5 / 255


def test_what_was_found_on_small_copies_holds_for_the_pictures():
    picture = scene(8, 480, 640)
    edited = coloured_anew(shifted(picture, 8, -4))
    small = [F.resize(p, [HEIGHT, WIDTH], antialias=True) for p in (picture, edited)]
    alignment = align(*small, size=(480, 640))
    away = (aligned(edited, alignment) - picture)[:, 16:-16, 16:-16].abs().mean()
    assert float(away) < 2 / 255


def test_none_is_none():
    assert not Alignment.none().moves
    assert not Alignment.none().drifts
    picture = scene(9)
    assert aligned(picture, Alignment.none()).equal(picture)


@given(
    moves=st.booleans(),
    drifts=st.booleans(),
    rows=st.tuples(st.integers(0, 29), st.integers(1, 30)),
    columns=st.tuples(st.integers(0, 39), st.integers(1, 40)),
)
def test_a_part_is_that_part_of_the_whole(moves, drifts, rows, columns):
    picture = scene(10, 30, 40)
    motion, colours = no_motion(), no_drift()
    if moves:
        motion = torch.tensor([[1.01, 0.005, 0.03], [0, 0.99, -0.02]], dtype=torch.float64)
    if drifts:
        colours = torch.tensor([[0.9, 0, 0, 0.1, 0.01]] * 3, dtype=torch.float64)
    alignment = Alignment(motion, colours)
    top, bottom = rows[0], min(30, rows[0] + rows[1])
    left, right = columns[0], min(40, columns[0] + columns[1])
    part = aligned_part(lambda cut: picture[cut], (30, 40), alignment, top, bottom, left, right)
    whole = aligned(picture, alignment)[:, top:bottom, left:right]
    torch.testing.assert_close(part, whole, rtol=0, atol=2e-5)


def test_motion_is_undone_before_the_drift():
    picture = scene(11, 30, 40)
    motion = torch.tensor([[1, 0, 2 / 40], [0, 1, 0]], dtype=torch.float64)
    colours = torch.tensor([[0.9, 0, 0, 0.1, 0.01]] * 3, dtype=torch.float64)
    assert aligned(picture, Alignment(motion, colours)).equal(coloured(moved(picture, motion), colours))


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 36), width=st.integers(1, 36))
def test_pictures_of_any_size_and_content_stay_finite_and_in_range(seed, height, width):
    one, other = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    back = aligned(other, align(one, other))
    assert back.shape == other.shape
    assert ((back >= 0) & (back <= 1)).all()
