import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infill_aug.functional.composite import composite
from infill_aug.functional.masks import feather_mask

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = (*FLOATS, torch.uint8)
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    """The bits, so that -0.0 is not 0.0 and a NaN equals itself."""
    return tensor.contiguous().view(WORDS[tensor.element_size()])


def pictures(dtype, seed, height=9, width=7, batch=3):
    """An image with -0.0 in it, and an infill full of what must never get out."""
    generator = torch.Generator().manual_seed(seed)
    image, infill = (torch.rand(batch, 3, height, width, generator=generator) for _ in range(2))
    if dtype == torch.uint8:
        return (image * 255).to(dtype), (infill * 255).to(dtype)
    image[torch.rand(image.shape, generator=generator) < 0.1] = -0.0
    for value in (torch.nan, torch.inf, -torch.inf, 6e4):
        infill[torch.rand(image.shape, generator=generator) < 0.2] = value
    return image.to(dtype), infill.to(dtype)


@given(
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    feather=st.sampled_from(["bool", 0, 1, 2, 5]),
)
def test_kept_pixels_are_bit_identical_in_every_dtype_whatever_the_infill_holds(dtype, seed, share, feather):
    image, infill = pictures(dtype, seed)
    mask = torch.rand(3, 1, 9, 7, generator=torch.Generator().manual_seed(seed + 1)) < share
    result = composite(image, infill, mask if feather == "bool" else feather_mask(mask, feather))
    kept = ~mask.expand_as(image)
    assert result.dtype == dtype
    assert torch.equal(bits(result)[kept], bits(image)[kept])
    assert not dtype.is_floating_point or result.isfinite().all()


@given(st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_masked_pixels_are_the_infills_where_it_is_finite(dtype, seed):
    image, infill = pictures(dtype, seed)
    for mask in (torch.ones(3, 1, 9, 7, dtype=torch.bool), torch.ones(3, 1, 9, 7)):
        result = composite(image, infill, mask)
        finite = infill.isfinite()
        expected = torch.where(finite, infill, image)
        if dtype == torch.float64 and mask.dtype != torch.bool:
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)  # blends are computed in float32
        else:
            assert torch.equal(bits(result), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_masks_blend_between_image_and_infill(dtype):
    full = 255 if dtype == torch.uint8 else 1
    image, infill = torch.zeros(3, 1, 101, dtype=dtype), torch.full((3, 1, 101), full, dtype=dtype)
    weight = torch.linspace(0, 1, 101).expand(1, 1, 101)
    result = composite(image, infill, weight).double() / full
    torch.testing.assert_close(result, weight.double().expand(3, 1, 101), rtol=0, atol=4e-3)
    assert (result.diff() >= 0).all()


def test_bytes_are_rounded_not_cut():
    image, infill = torch.zeros(3, 1, 1, dtype=torch.uint8), torch.full((3, 1, 1), 255, dtype=torch.uint8)
    assert composite(image, infill, torch.full((1, 1, 1), 0.999)).unique().tolist() == [255]


@given(st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.booleans())
def test_a_composite_is_the_same_alone_and_in_a_batch(dtype, seed, soft):
    image, infill = pictures(dtype, seed, batch=5)
    mask = torch.rand(5, 1, 9, 7, generator=torch.Generator().manual_seed(seed))
    mask = mask if soft else mask < 0.5
    together = composite(image, infill, mask)
    for i in range(5):
        assert torch.equal(bits(composite(image[i], infill[i], mask[i])), bits(together[i]))
        assert torch.equal(bits(composite(image[i : i + 1], infill[i : i + 1], mask[i : i + 1])[0]), bits(together[i]))


def test_inputs_are_left_as_they_are():
    image, infill = pictures(torch.float32, 0)
    mask = torch.rand(3, 1, 9, 7)
    before = image.clone(), infill.clone(), mask.clone()
    composite(image, infill, mask)
    for now, was in zip((image, infill, mask), before, strict=True):
        assert torch.equal(bits(now), bits(was))


@pytest.mark.parametrize(
    ("image", "infill", "mask", "message"),
    [
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 5), torch.zeros(1, 4, 4), r"\(3, 4, 4\).*\(3, 4, 5\)"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4).half(), torch.zeros(1, 4, 4), "float32.*float16"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), torch.zeros(1, 4, 5), r"\(1, 4, 4\).*\(1, 4, 5\)"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), r"\(1, 4, 4\).*\(3, 4, 4\)"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), torch.zeros(4, 4), r"\(1, 4, 4\).*\(4, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4), r"\(2, 1, 4, 4\).*\(1, 4, 4\)"),
        (torch.zeros(3, 3, 4, 4), torch.zeros(3, 3, 4, 4), torch.zeros(2, 1, 4, 4), r"\(3, 1, 4, 4\).*\(2, 1, 4, 4\)"),
    ],
)
def test_shapes_and_dtypes_that_do_not_fit_are_refused_with_both(image, infill, mask, message):
    with pytest.raises(ValueError, match=message):
        composite(image, infill, mask)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_mask_of_integers_is_refused_since_255_would_not_mean_1(dtype):
    with pytest.raises(ValueError, match="mask"):
        composite(torch.zeros(3, 2, 2), torch.ones(3, 2, 2), torch.full((1, 2, 2), 255, dtype=dtype))
