import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infill_aug.functional.drift import remove_drift

STEP = 1 / 255


def pictures(seed, count=2, height=48, width=40):
    """Smooth pictures with some noise on them, well inside of the range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (0.2 + 0.6 * (0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator))), generator


@given(
    seed=st.integers(0, 10**6),
    gain=st.floats(0.75, 1.2),
    offset=st.floats(-0.08, 0.08),
    one_sided=st.booleans(),
    share=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_a_planted_shift_is_taken_back_though_three_in_ten_kept_pixels_were_redrawn(
    seed, gain, offset, one_sided, share
):
    picture, generator = pictures(seed)
    gains = gain + 0.05 * torch.rand(2, 3, 1, 1, generator=generator)
    edited = gains * picture + offset
    redrawn = torch.rand(2, 1, 48, 40, generator=generator) < share
    other = 0.7 + 0.3 * torch.rand(edited.shape, generator=generator) if one_sided else torch.rand(edited.shape)
    keep = torch.rand(2, 1, 48, 40, generator=generator) < 0.6
    seen = torch.where(redrawn | ~keep, other, edited).clamp(0, 1)
    seen = (seen * 255).round() / 255
    back = remove_drift(picture, seen, keep)
    same = (keep & ~redrawn & ((edited > 0) & (edited < 1)).all(dim=1, keepdim=True)).expand_as(picture)
    assert (back - picture)[same].abs().mean() < STEP
    assert (seen - picture)[same].abs().mean() > (back - picture)[same].abs().mean() - STEP / 2
    # What was drawn into the hole is moved in the same way.
    hole = (~keep).expand_as(picture)
    assert ((back - ((seen - offset) / gains).clamp(0, 1))[hole]).abs().mean() < STEP


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.2, 0.7]))
def test_a_picture_without_a_shift_stays_as_it_is(seed, share):
    picture, generator = pictures(seed)
    keep = torch.rand(2, 1, 48, 40, generator=generator) < share
    edited = torch.where(keep, picture, torch.rand(picture.shape, generator=generator))
    assert (remove_drift(picture, edited, keep) - edited).abs().max() < 1e-5
    rounded = (edited * 255).round() / 255
    assert (remove_drift(picture, rounded, keep) - rounded).abs().mean() < STEP / 4


def test_texture_that_is_drawn_anew_everywhere_does_not_raise_the_contrast():
    generator = torch.Generator().manual_seed(3)
    smooth = pictures(1, count=1, height=96, width=96)[0]
    one, two = ((smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1) for _ in range(2))
    keep = torch.ones(1, 1, 96, 96, dtype=torch.bool)
    back = remove_drift(one, two, keep)
    assert abs(float(back.std() / two.std()) - 1) < 0.1


def test_a_fill_does_not_depend_on_what_is_beside_it_in_the_batch():
    picture, generator = pictures(5, count=4)
    edited = torch.rand(4, 3, 1, 1, generator=generator) * 0.2 + 0.8 * picture
    keep = torch.rand(4, 1, 48, 40, generator=generator) < 0.5
    together = remove_drift(picture, edited, keep)
    for i in range(4):
        assert torch.allclose(remove_drift(picture[i : i + 1], edited[i : i + 1], keep[i : i + 1])[0], together[i])


@pytest.mark.parametrize("kept", [0, 1, 63])
def test_too_few_kept_pixels_tell_nothing(kept):
    picture, _ = pictures(7, count=1)
    keep = torch.zeros(1, 1, 48, 40, dtype=torch.bool)
    keep.flatten()[:kept] = True
    edited = 0.7 * picture + 0.2
    assert torch.equal(remove_drift(picture, edited, keep), edited)


def test_a_flat_picture_is_shifted_back_without_a_gain():
    keep = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    keep[..., 5:15, 5:15] = False
    edited = torch.full((1, 3, 20, 20), 0.6)
    edited[..., 5:15, 5:15] = torch.rand(1, 3, 10, 10) * 0.5 + 0.3
    back = remove_drift(torch.full_like(edited, 0.5), edited, keep)
    assert torch.allclose(back, edited - 0.1, atol=1e-5)


def test_a_picture_that_has_nothing_to_do_with_the_original_comes_back_in_range():
    for original, edited in ((0.0, 1.0), (1.0, 0.0), (0.1, 0.9)):
        keep = torch.ones(1, 1, 16, 16, dtype=torch.bool)
        noise = 0.02 * torch.rand(1, 3, 16, 16)
        back = remove_drift((original - noise).clamp(0, 1), (edited + noise).clamp(0, 1), keep)
        assert back.isfinite().all()
        assert ((back >= 0) & (back <= 1)).all()
    random = torch.rand(1, 3, 32, 32)
    back = remove_drift(torch.rand(1, 3, 32, 32), random, torch.ones(1, 1, 32, 32, dtype=torch.bool))
    assert (back - random).abs().mean() < 0.15


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dtype_stays(dtype):
    picture, _ = pictures(2)
    keep = torch.ones(2, 1, 48, 40, dtype=torch.bool)
    assert remove_drift(picture.to(dtype), picture.to(dtype), keep).dtype == dtype


def test_shapes_that_do_not_fit_are_named():
    picture = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\).*\(2, 3, 8, 7\).*\(2, 1, 8, 8\)"):
        remove_drift(picture, picture[..., :-1], torch.ones(2, 1, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="keep"):
        remove_drift(picture, picture, torch.ones(1, 1, 8, 8, dtype=torch.bool))
