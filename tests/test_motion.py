"""A motion of a whole picture is found where there is one, and there is none where nothing tells of one."""

import math

import pytest
import tests_support
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as F

from infill_aug.functional.motion import fit_motion, moved, moved_part, no_motion

HEIGHT, WIDTH = 150, 200
SIDES = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)
NONE = no_motion()


def scene(seed: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    return tests_support.scene(seed, height, width)


def warped(picture: torch.Tensor, matrix: list[list[float]]) -> torch.Tensor:
    """The picture with what was at ``p`` brought to ``matrix @ (p, 1)``, pixels from the centre; drawn by PyTorch."""
    height, width = picture.shape[-2:]
    forward = torch.tensor([*matrix, [0, 0, 1]], dtype=torch.float64)
    back = torch.linalg.inv(forward)
    half = torch.tensor([width / 2, height / 2, 1.0], dtype=torch.float64)
    theta = (back * half[None] / half[:, None])[:2].float()
    grid = nnf.affine_grid(theta[None], [1, 3, height, width], align_corners=False)
    return nnf.grid_sample(picture[None], grid, "bicubic", "border", align_corners=False)[0].clamp(0, 1)


def shifted(picture: torch.Tensor, right: float, down: float) -> torch.Tensor:
    return warped(picture, [[1, 0, right], [0, 1, down]])


def pixels(motion: torch.Tensor, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[float]:
    return (motion[:, 2] * torch.tensor([size[1], size[0]], dtype=torch.float64)).tolist()


def corner_error(motion: torch.Tensor, matrix: list[list[float]]) -> float:
    """By how many pixels the farthest corner of the picture is off."""
    corners = torch.tensor([[-0.5, 0.5, -0.5, 0.5], [-0.5, -0.5, 0.5, 0.5], [1, 1, 1, 1]], dtype=torch.float64)
    found = (motion @ corners) * SIDES[:, None]
    in_pixels = corners.clone()
    in_pixels[:2] *= SIDES[:, None]
    return float((found - torch.tensor(matrix, dtype=torch.float64) @ in_pixels).norm(dim=0).max())


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("way", [(1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1)])
def test_a_shift_of_whole_pixels_is_found_exactly(length, way):
    right, down = length * way[0], length * way[1]
    picture = scene(length)
    motion = fit_motion(picture, shifted(picture, right, down), None, (HEIGHT, WIDTH))
    assert pixels(motion) == pytest.approx([right, down], abs=1e-9)
    assert motion[:, :2].equal(NONE[:, :2])


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), length=st.floats(0.4, 8), angle=st.floats(0, 2 * math.pi))
def test_a_shift_of_any_length_is_found_within_a_tenth_of_a_pixel(seed, length, angle):
    right, down = length * math.cos(angle), length * math.sin(angle)
    picture = scene(seed)
    motion = fit_motion(picture, shifted(picture, right, down), None, (HEIGHT, WIDTH))
    # What lies within 0.12 of a whole pixel may be taken for whole.
    away = [abs(a - b) for a, b in zip(pixels(motion), (right, down), strict=True)]
    whole = [abs(v - round(v)) < 0.13 for v in (right, down)]
    assert all(a < (0.15 if w else 0.1) for a, w in zip(away, whole, strict=True)), (right, down, pixels(motion))


@pytest.mark.parametrize("right", [0.25, 0.5, 1.5, 2.3, 7.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_of_a_pixel_are_found_within_a_tenth(right, seed):
    picture = scene(seed)
    motion = fit_motion(picture, shifted(picture, right, -0.4), None, (HEIGHT, WIDTH))
    assert pixels(motion) == pytest.approx([right, -0.4], abs=0.1)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.01, 0, 0], [0, 1.01, 0]],
        [[0.985, 0, 1.5], [0, 0.985, -2.0]],
        [[math.cos(0.01), -math.sin(0.01), 0], [math.sin(0.01), math.cos(0.01), 0]],
        [[math.cos(-0.015), -math.sin(-0.015), 2.4], [math.sin(-0.015), math.cos(-0.015), 1.0]],
        [[1.012, 0.004, -1.0], [0.0, 0.995, 0.7]],
    ],
)
def test_a_little_scale_and_rotation_are_found_to_a_fifth_of_a_pixel_at_the_corners(matrix):
    picture = scene(3)
    motion = fit_motion(picture, warped(picture, matrix), None, (HEIGHT, WIDTH))
    assert corner_error(motion, matrix) < 0.2


@pytest.mark.parametrize("seed", range(4))
def test_an_edit_of_a_quarter_of_the_picture_does_not_disturb_the_fit(seed):
    picture = scene(seed)
    edited = shifted(picture, 2.4, -1.0)
    edited[:, 30:105, 40:140] = scene(seed + 100)[:, 30:105, 40:140]
    assert pixels(fit_motion(picture, edited, None, (HEIGHT, WIDTH))) == pytest.approx([2.4, -1.0], abs=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_an_edit_of_a_still_picture_is_no_motion(seed):
    picture = scene(seed)
    edited = picture.clone()
    edited[:, 30:105, 40:140] = shifted(picture, 4, 3)[:, 30:105, 40:140]
    assert fit_motion(picture, edited, None, (HEIGHT, WIDTH)).equal(NONE)


def test_what_is_usable_alone_tells():
    picture = scene(5)
    edited = shifted(scene(6), 5, 5)  # another picture, but for a strip
    edited[:, :, :70] = shifted(picture, 2, 1)[:, :, :70]
    usable = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    usable[:, :, :68] = True
    assert pixels(fit_motion(picture, edited, usable, (HEIGHT, WIDTH))) == pytest.approx([2, 1], abs=0.1)
    assert fit_motion(picture, edited, torch.zeros_like(usable), (HEIGHT, WIDTH)).equal(NONE)


def test_a_motion_of_small_copies_is_one_of_the_pictures():
    picture = scene(7, 450, 600)
    moved_by = shifted(picture, 6, -3)
    small = [F.resize(p, [HEIGHT, WIDTH], antialias=True) for p in (picture, moved_by)]
    assert pixels(fit_motion(*small, None, (450, 600)), (450, 600)) == pytest.approx([6, -3], abs=1e-9)


@pytest.mark.parametrize("quality", [60, 80])
def test_a_shift_survives_jpeg(quality):
    picture = scene(8)
    edited = decode_jpeg(encode_jpeg((shifted(picture, 2, 1) * 255).round().to(torch.uint8), quality)) / 255
    assert pixels(fit_motion(picture, edited, None, (HEIGHT, WIDTH))) == pytest.approx([2, 1], abs=0.1)


@pytest.mark.parametrize("size", [(150, 200), (60, 33), (32, 32), (31, 200), (200, 31), (1, 300), (300, 1), (1, 1)])
@pytest.mark.parametrize("kind", ["same", "flat", "black", "noise", "jpeg"])
def test_there_is_exactly_no_motion_where_nothing_moved_or_nothing_tells(size, kind):
    generator = torch.Generator().manual_seed(0)
    picture = scene(9, *size) if kind in ("same", "noise", "jpeg") else torch.full((3, *size), 0.5 * (kind == "flat"))
    edited = picture
    if kind == "noise":
        edited = (picture + 0.01 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
    if kind == "jpeg":
        edited = decode_jpeg(encode_jpeg((picture * 255).round().to(torch.uint8), 40)) / 255
    assert fit_motion(picture, edited, None, size).equal(NONE)


def test_pictures_too_small_to_tell_do_not_move():
    picture = scene(10, 31, 200)
    assert fit_motion(picture, picture.roll(2, dims=2), None, (31, 200)).equal(NONE)


@pytest.mark.parametrize("other", ["another picture", "far", "flat"])
def test_there_is_exactly_no_motion_between_two_pictures(other):
    picture = scene(11)
    edited = {"another picture": scene(12), "far": shifted(picture, 16, 0), "flat": torch.full_like(picture, 0.4)}
    assert fit_motion(picture, edited[other], None, (HEIGHT, WIDTH)).equal(NONE)


def test_the_motion_is_known_to_the_cpu_in_float64_and_the_pictures_stay():
    picture = scene(13)
    edited = shifted(picture, 1, 1)
    kept = picture.clone(), edited.clone()
    motion = fit_motion(picture, edited, None, (HEIGHT, WIDTH))
    assert motion.dtype == torch.float64
    assert motion.shape == (2, 3)
    assert picture.equal(kept[0])
    assert edited.equal(kept[1])


MOTIONS = {
    "none": [[1, 0, 0], [0, 1, 0]],
    "whole": [[1, 0, 3 / 40], [0, 1, -2 / 30]],
    "whole, out of the picture": [[1, 0, 39 / 40], [0, 1, -29 / 30]],
    "sub-pixel": [[1, 0, 1.37 / 40], [0, 1, 0.61 / 30]],
    "affine": [[1.02, 0.015, 0.03], [-0.01, 0.97, -0.02]],
}


@given(
    name=st.sampled_from(sorted(MOTIONS)),
    rows=st.tuples(st.integers(0, 29), st.integers(1, 30)),
    columns=st.tuples(st.integers(0, 39), st.integers(1, 40)),
)
def test_a_part_is_that_part_of_the_whole(name, rows, columns):
    picture = scene(14, 30, 40)
    motion = torch.tensor(MOTIONS[name], dtype=torch.float64)
    top, bottom = rows[0], min(30, rows[0] + rows[1])
    left, right = columns[0], min(40, columns[0] + columns[1])
    whole = moved(picture, motion)[:, top:bottom, left:right]
    part = moved_part(lambda cut: picture[cut], (30, 40), motion, top, bottom, left, right)
    assert part.shape == whole.shape
    torch.testing.assert_close(part, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("right", "down"), [(3, -2), (0, 7), (-39, 0), (60, 60)])
def test_whole_pixels_are_copied_bit_for_bit_and_the_rim_repeats(right, down):
    picture = scene(15, 30, 40)
    motion = torch.tensor([[1, 0, right / 40], [0, 1, down / 30]], dtype=torch.float64)
    rows = (torch.arange(30) + down).clamp(0, 29)
    columns = (torch.arange(40) + right).clamp(0, 39)
    assert moved(picture, motion).equal(picture[:, rows][:, :, columns])


def test_no_motion_leaves_every_bit():
    picture = scene(16, 30, 40)
    assert moved(picture, NONE).equal(picture)


def test_a_part_asks_for_little_more_than_itself():
    asked = []
    picture = scene(17)

    def look(cut):
        asked.append(cut)
        return picture[cut]

    motion = torch.tensor([[1, 0, 2.4 / WIDTH], [0, 1, 0.3 / HEIGHT]], dtype=torch.float64)
    moved_part(look, (HEIGHT, WIDTH), motion, 50, 60, 80, 100)
    assert len(asked) == 1
    assert asked[0][1].stop - asked[0][1].start <= 10 + 10
    assert asked[0][2].stop - asked[0][2].start <= 20 + 10


@pytest.mark.parametrize("matrix", [[[1, 0, 2.4], [0, 1, -1.3]], [[1.01, 0, 1], [0, 1.01, 0.5]]])
def test_a_motion_that_was_found_is_undone(matrix):
    picture = F.gaussian_blur(scene(18), [5, 5], [1.0, 1.0])
    edited = warped(picture, matrix)
    motion = fit_motion(picture, edited, None, (HEIGHT, WIDTH))
    inner = (slice(None), slice(10, -10), slice(10, -10))
    before, after = (float((p - picture)[inner].abs().mean()) for p in (edited, moved(edited, motion)))
    assert after < before / 4
