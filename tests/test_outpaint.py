import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill import PartialInfillError, load_backend
from infill_aug.infill.backend import PoolSample
from infill_aug.infill.outpaint import outpaint
from infill_aug.key import image_digest

CAT = TaskDescriptor("pets", "cat", seed=3)
BACKENDS = ["donor", "noise", "push_pull"]


def ready(name):
    backend = load_backend(name)
    if backend.pool_size:
        pictures = [torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8) for _ in range(4)]
        plain = torch.zeros(1, 20, 30, dtype=torch.uint8)
        backend.prepare([PoolSample(image_digest(picture), picture, plain) for picture in pictures])
    return backend


@settings(max_examples=20)
@given(
    name=st.sampled_from(BACKENDS),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    picture=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    free=st.tuples(st.integers(0, 19), st.integers(0, 19)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_picture_lies_bit_for_bit_where_it_was_put_and_all_around_is_filled(name, dtype, picture, free, place):
    image = torch.rand(2, 3, *picture)
    image = (image * 255).to(torch.uint8) if dtype == torch.uint8 else image.to(dtype)
    offset = tuple(round(share * room) for share, room in zip(place, free, strict=True))
    size = tuple(side + room for side, room in zip(picture, free, strict=True))
    result = outpaint(image, size, ready(name), CAT, offset=offset)
    assert result.shape == (2, 3, *size)
    assert result.dtype == dtype
    (top, left), (height, width) = offset, picture
    assert torch.equal(result[..., top : top + height, left : left + width], image)
    assert result.double().isfinite().all()
    assert (result.double() <= (255 if dtype == torch.uint8 else 1)).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_around_the_picture_is_filled_and_not_left_black(name):
    result = outpaint(torch.full((3, 9, 11), 0.5), (31, 40), ready(name), CAT)
    around = torch.ones(31, 40, dtype=torch.bool)
    around[11:20, 14:25] = False
    assert (result[:, around] > 0.02).float().mean() > 0.95


@pytest.mark.parametrize(("size", "offset"), [((12, 17), (3, 3)), ((13, 18), (3, 4)), ((7, 10), (0, 0))])
def test_without_an_offset_the_picture_lies_in_the_middle(size, offset):
    image = torch.rand(3, 6, 10)
    backend = load_backend("push_pull")
    assert torch.equal(outpaint(image, size, backend, CAT), outpaint(image, size, backend, CAT, offset=offset))


def test_a_canvas_of_the_pictures_size_is_the_picture():
    image = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8)
    assert torch.equal(outpaint(image, (7, 9), load_backend("noise"), CAT), image)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_picture_is_outpainted_alike_alone_and_in_a_batch_and_the_input_stays(name):
    backend = ready(name)
    images = torch.rand(3, 3, 8, 8)
    before = images.clone()
    together = outpaint(images, (15, 12), backend, CAT)
    for image, wanted in zip(images, together, strict=True):
        assert torch.equal(outpaint(image, (15, 12), backend, CAT), wanted)
    assert torch.equal(images, before)


def test_another_seed_is_another_surrounding():
    image = torch.rand(3, 8, 8)
    fills = [outpaint(image, (20, 20), ready("noise"), dataclasses.replace(CAT, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(fills[0], fills[1])
    assert not torch.equal(fills[0], fills[2])


def test_a_picture_is_no_donor_of_its_own_surroundings():
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    backend = load_backend("donor")
    backend.prepare([PoolSample(image_digest(image), image, torch.zeros(1, 16, 16, dtype=torch.uint8))])
    for same in (image, image / 255):
        with pytest.raises(PartialInfillError, match="other than the image itself"):
            outpaint(same, (20, 20), backend, CAT)


@pytest.mark.parametrize(
    ("image", "size", "offset", "message"),
    [
        (torch.rand(3, 8, 8), (7, 12), None, r"at least the picture's \(8, 8\), got \(7, 12\); crop it first"),
        (torch.rand(3, 8, 8), (12, 7), (0, 0), r"\(12, 7\)"),
        (torch.rand(3, 8, 8), (12, 10), (5, 0), r"\(0, 0\)\.\.\(4, 2\).*got \(5, 0\)"),
        (torch.rand(3, 8, 8), (12, 10), (0, -1), r"got \(0, -1\)"),
        (torch.rand(4, 8, 8), (12, 12), None, r"\(4, 8, 8\)"),
        (torch.rand(8, 8), (12, 12), None, r"got \(8, 8\)"),
        (torch.zeros(3, 0, 8), (12, 12), None, r"\(3, 0, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), (12, 12), None, "int64"),
        (torch.full((3, 8, 8), 2.0), (12, 12), None, "0..1"),
    ],
)
def test_what_does_not_fit_is_refused_by_what_it_is(image, size, offset, message):
    with pytest.raises(ValueError, match=message):
        outpaint(image, size, load_backend("push_pull"), CAT, offset=offset)
