import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infill_aug.variation import Variation

STRENGTHS = [(0.5, 0.3), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.1, 0.1)]
WORDS = {2: torch.int16, 4: torch.int32}


def bits(tensor):
    return tensor.contiguous().view(WORDS[tensor.element_size()])


def scene(count=4, height=16, width=20, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    infill = torch.rand(count, 3, height, width, generator=generator).to(dtype)
    mask = torch.rand(count, 1, height, width, generator=generator) < 0.6
    return infill, mask


@settings(max_examples=25)
@given(
    strengths=st.sampled_from(STRENGTHS),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    mask_dtype=st.sampled_from([torch.bool, torch.float32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_outside_the_mask_nothing_changes_by_a_bit_whatever_is_drawn(strengths, dtype, mask_dtype, seed):
    torch.default_generator.manual_seed(seed)
    infill, mask = scene(dtype=dtype, seed=seed)
    varied = Variation(*strengths)(infill, mask.to(mask_dtype))
    assert varied.shape == infill.shape
    assert varied.dtype == dtype
    assert ((varied >= 0) & (varied <= 1)).all()
    kept = ~mask.expand_as(infill)
    assert torch.equal(bits(varied)[kept], bits(infill)[kept])


@pytest.mark.parametrize("strengths", [(0.5, 0.0), (1.0, 0.0), (0.5, 0.3)])
def test_the_infill_changes_and_each_sample_in_its_own_way(strengths):
    infill = torch.rand(1, 3, 16, 16).expand(6, -1, -1, -1).contiguous()
    varied = Variation(*strengths)(infill, torch.ones(6, 1, 16, 16))
    assert all(not torch.equal(one, infill[0]) for one in varied)
    assert all(not torch.equal(varied[i], varied[j]) for i in range(6) for j in range(i))


def test_texture_touches_some_samples_and_leaves_others():
    infill = torch.rand(1, 3, 8, 8).expand(200, -1, -1, -1).contiguous()
    varied = Variation(color=0.0, texture=0.5)(infill, torch.ones(200, 1, 8, 8))
    untouched = sum(torch.equal(one, infill[0]) for one in varied)
    assert 20 <= untouched <= 80  # a quarter is neither blurred nor made noisy


def test_more_strength_changes_more():
    infill, _ = scene(60, 16, 16)
    everywhere = torch.ones(60, 1, 16, 16)
    for name in ("color", "texture"):
        changes = []
        for strength in (0.1, 0.5, 1.0):
            torch.default_generator.manual_seed(0)
            variation = Variation(**{"color": 0.0, "texture": 0.0, name: strength})
            changes.append((variation(infill, everywhere) - infill).abs().mean())
        assert changes[0] < changes[1] < changes[2]


def test_the_same_seed_gives_the_same_variation_and_the_next_call_another():
    infill, mask = scene()
    variation = Variation()
    torch.manual_seed(5)
    first, second = variation(infill, mask), variation(infill, mask)
    torch.manual_seed(5)
    assert torch.equal(variation(infill, mask), first)
    assert not torch.equal(first, second)


def test_what_is_not_finite_in_one_infill_reaches_no_other_and_no_kept_pixel():
    infill, mask = scene()
    broken = infill.clone()
    broken[1] = torch.where(mask[1], torch.nan, infill[1])
    for seed in range(5):
        torch.manual_seed(seed)
        varied = Variation(1.0, 1.0)(broken, mask)
        assert varied[[0, 2, 3]].isfinite().all()
        kept = ~mask.expand_as(infill)
        assert torch.equal(varied[kept], infill[kept])


def test_an_empty_mask_leaves_everything_and_inputs_are_never_written_to():
    infill, mask = scene()
    before = infill.clone()
    assert torch.equal(Variation()(infill, torch.zeros_like(mask)), before)
    Variation(1.0, 1.0)(infill, mask)
    assert torch.equal(infill, before)


def test_no_gradient_is_kept():
    infill, mask = scene()
    assert not Variation()(infill.requires_grad_(), mask).requires_grad


@pytest.mark.parametrize("size", [(3, 3), (3, 9), (7, 33), (33, 7)])
def test_small_and_narrow_pictures_are_varied(size):
    infill, _ = scene(8, *size)
    varied = Variation(0.5, 1.0)(infill, torch.ones(8, 1, *size))
    assert varied.shape == infill.shape
    assert not torch.equal(varied, infill)


def test_a_variation_works_in_eval_mode_after_a_pickle_and_a_deepcopy():
    infill, mask = scene()
    variation = Variation()
    torch.manual_seed(3)
    wanted = variation(infill, mask)
    for twin in (pickle.loads(pickle.dumps(variation)), copy.deepcopy(variation), copy.deepcopy(variation).eval()):
        torch.manual_seed(3)
        assert torch.equal(twin(infill, mask), wanted)
    assert not list(variation.parameters())
    assert "color=0.5" in repr(variation)


@pytest.mark.parametrize(
    ("name", "value"), [("color", -0.1), ("color", 1.5), ("texture", 2), ("texture", float("nan"))]
)
def test_a_strength_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in 0..1, got {value}"):
        Variation(**{name: value})


def test_a_variation_that_changes_nothing_warns():
    with pytest.warns(UserWarning, match="changes nothing"):
        variation = Variation(color=0, texture=0)
    infill, mask = scene()
    assert torch.equal(variation(infill, mask), infill)
