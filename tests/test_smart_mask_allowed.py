"""Where an edit may be, in any form."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infill_aug.smart_mask.allowed import area_of

CPU = torch.device("cpu")
HEIGHT, WIDTH = 6, 9


def area(value, count=1, size=(HEIGHT, WIDTH)):
    return area_of(value, count, size, CPU, "protect")


def shape() -> torch.Tensor:
    """``(H, W)`` bool."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[1:4, 2:7] = True
    return mask


FORMS = {
    "bool": lambda m: m,
    "rows of channel": lambda m: m[None],
    "batch": lambda m: m[None, None],
    "uint8 of 0 and 1": lambda m: m.to(torch.uint8),
    "uint8 of 0 and 255": lambda m: m.to(torch.uint8) * 255,
    "int64": lambda m: m.long(),
    "float32": lambda m: m.float(),
    "float16": lambda m: m.half(),
    "float64 about one half": lambda m: 0.49 + 0.02 * m.double(),
    "array of bool": lambda m: m.numpy(),
    "array of bytes": lambda m: m.numpy().astype(np.uint8) * 255,
    "array of floats": lambda m: m.numpy().astype(np.float64),
    "PIL L": lambda m: Image.fromarray(m.numpy().astype(np.uint8) * 255),
    "PIL RGB": lambda m: Image.fromarray(m.numpy().astype(np.uint8) * 255).convert("RGB"),
    "PIL 1": lambda m: Image.fromarray(m.numpy().astype(np.uint8) * 255).convert("1"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_of_any_form_is_the_same_area(form):
    found = area(FORMS[form](shape()))
    assert found.dtype == torch.bool
    assert found.shape == (1, 1, HEIGHT, WIDTH)
    assert found[0, 0].equal(shape())


@pytest.mark.parametrize("as_text", [False, True])
def test_a_mask_is_read_from_a_file_upright(tmp_path, as_text):
    path = tmp_path / "mask.png"
    turned = Image.fromarray(shape().numpy().astype(np.uint8) * 255).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(path, exif=exif)
    assert area(str(path) if as_text else path)[0, 0].equal(shape())


def test_one_mask_goes_for_all_pictures_and_a_batch_has_one_each():
    assert area(shape(), count=3).shape == (3, 1, HEIGHT, WIDTH)
    batch = torch.stack([shape(), ~shape()])[:, None]
    assert area(batch, count=2).equal(batch)


def test_a_box_is_left_top_right_bottom_the_last_two_exclusive():
    assert area([(2, 1, 7, 4)])[0, 0].equal(shape())


def test_boxes_add_up():
    both = area([(2, 1, 7, 4), (0, 5, 9, 6)])[0, 0]
    assert both.equal(area([(2, 1, 7, 4)])[0, 0] | area([(0, 5, 9, 6)])[0, 0])
    assert not area([])[0].any()


@given(
    left=st.floats(-20, 20), top=st.floats(-20, 20), width=st.floats(0.01, 30), height=st.floats(0.01, 30),
    count=st.integers(1, 3),
)  # fmt: skip
def test_a_box_covers_every_pixel_that_it_touches_and_may_leave_the_picture(left, top, width, height, count):
    right, bottom = left + width, top + height
    y, x = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)[None]
    touched = (x + 1 > left) & (x < right) & (y + 1 > top) & (y < bottom)
    assert area([(left, top, right, bottom)], count).equal(touched.expand(count, 1, -1, -1))


def test_boxes_may_be_numbers_of_any_kind():
    assert area([np.array([2, 1, 7, 4])]).equal(area([torch.tensor([2.0, 1.0, 7.0, 4.0])]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([(1, 2, 3)], r"box of protect .*\(1, 2, 3\)"),
        ([(1, 2, 3, float("nan"))], "box of protect .*nan"),
        ([(1, 2, 3, float("inf"))], "box of protect .*inf"),
        ([(5, 1, 2, 4)], r"the last two larger, got \(5, 1, 2, 4\)"),
        ([(1, 4, 2, 4)], r"the last two larger, got \(1, 4, 2, 4\)"),
        (torch.zeros(WIDTH, HEIGHT), r"protect must be \(H, W\).*9x6.*\(1, 1, 9, 6\)"),
        (torch.zeros(3, HEIGHT, WIDTH), r"protect must be \(H, W\).*\(3, 6, 9\)"),
        (torch.zeros(2, 1, HEIGHT, WIDTH), r"1 picture.*\(2, 1, 6, 9\)"),
        (torch.zeros(HEIGHT), r"\(6,\)"),
        (torch.full((HEIGHT, WIDTH), 1.5), r"0\.\.1.*1\.5 to 1\.5"),
        (torch.full((HEIGHT, WIDTH), -0.1), r"0\.\.1.*-0\.1"),
        (torch.full((HEIGHT, WIDTH), float("nan")), r"0\.\.1.*nan"),
        (torch.full((HEIGHT, WIDTH), 300), r"0\.\.255.*300"),
        (np.full((HEIGHT, WIDTH), 255.0), r"0\.\.1.*255"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        area(value)
