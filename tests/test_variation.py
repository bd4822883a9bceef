import copy
import pickle

import kornia.augmentation as K
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from infill_aug.descriptor import TaskDescriptor
from infill_aug.functional import parts
from infill_aug.variation import Variation
from infill_aug.variation.operation import GROUPS, find_operation, list_operations
from infill_aug.variation.style_transfer import FourierMix, StyleTransfer

STRENGTHS = [(0.5, 0.5, 0.3), (1.0, 1.0, 1.0), (0, 1.0, 0), (0, 0, 1.0), (1.0, 0, 0), (0.1, 0.1, 0.1)]
WORDS = {2: torch.int16, 4: torch.int32}
NAMES = list_operations()
COVERED = ["nothing", "a part", "everything"]


def bits(tensor):
    return tensor.contiguous().view(WORDS[tensor.element_size()])


def scene(count=4, height=16, width=20, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    infill = torch.rand(count, 3, height, width, generator=generator).to(dtype)
    mask = torch.rand(count, 1, height, width, generator=generator) < 0.6
    return infill, mask


def full(infill):
    return torch.ones_like(infill[:, :1])


def cover(mask, covered):
    return {"nothing": torch.zeros_like(mask), "a part": mask, "everything": torch.ones_like(mask)}[covered]


def check_kept(variation, infill, mask):
    varied = variation(infill, mask)
    assert varied.shape == infill.shape
    assert varied.dtype == infill.dtype
    assert ((varied >= 0) & (varied <= 1)).all()
    kept = ~(mask > 0).expand_as(infill)
    assert torch.equal(bits(varied)[kept], bits(infill)[kept])


def only(name, strength=1.0):
    """Every sample gets this operation and no other."""
    wanted = {"operations": [name], "strength": (strength, strength), "p": 1.0}
    return Variation(**{group: wanted if group == find_operation(name).group else None for group in GROUPS})


def strongest():
    return Variation(**{group: {"strength": 1.0, "p": 1.0} for group in GROUPS})


# --- what is kept ---


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    mask_dtype=st.sampled_from([torch.bool, torch.float32]),
    size=st.sampled_from([(1, 1), (7, 33), (16, 20), (1, 12)]),
    count=st.sampled_from([1, 3]),
    covered=st.sampled_from(COVERED),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 2**32 - 1),
)
def test_outside_the_mask_no_operation_changes_a_bit(name, dtype, mask_dtype, size, count, covered, layout, seed):
    torch.default_generator.manual_seed(seed)
    infill, mask = scene(count, *size, dtype=dtype, seed=seed)
    check_kept(only(name), infill.contiguous(memory_format=layout), cover(mask, covered).to(mask_dtype))


@pytest.mark.parametrize("covered", COVERED)
@pytest.mark.parametrize("name", NAMES)
def test_a_large_picture_of_an_odd_size_is_varied_in_half_precision_too(name, covered):
    infill, mask = scene(1, 513, 33, dtype=torch.float16)
    check_kept(only(name), infill, cover(mask, covered))


@settings(max_examples=25, deadline=None)
@given(
    strengths=st.sampled_from(STRENGTHS),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_outside_the_mask_nothing_changes_by_a_bit_whatever_is_drawn(strengths, dtype, seed):
    torch.default_generator.manual_seed(seed)
    infill, mask = scene(dtype=dtype, seed=seed)
    check_kept(Variation(*strengths), infill, mask)


@pytest.mark.parametrize("name", [name for name in NAMES if find_operation(name).moves])
def test_what_moves_content_never_moves_the_object_into_the_fill(name):
    infill = torch.rand(4, 3, 32, 32)
    mask = torch.ones(4, 1, 32, 32)
    mask[..., 8:24, 8:24] = 0
    other = torch.where(mask > 0, infill, 1 - infill)  # the same fill around another object
    variation = only(name)
    for _ in range(4):
        params = variation.make_params(4, 32, 32)
        inside = mask.expand_as(infill) > 0
        assert torch.equal(variation(infill, mask, params)[inside], variation(other, mask, params)[inside])


def test_what_is_not_finite_in_one_infill_reaches_no_other_and_no_kept_pixel():
    infill, mask = scene()
    broken = infill.clone()
    broken[1] = torch.where(mask[1], torch.nan, infill[1])
    for name in NAMES:
        varied = only(name)(broken, mask)
        assert varied[[0, 2, 3]].isfinite().all(), name
        kept = ~mask.expand_as(infill)
        assert torch.equal(varied[kept], infill[kept]), name


def test_an_empty_mask_or_batch_leaves_everything_and_inputs_are_never_written_to():
    infill, mask = scene()
    before = infill.clone()
    assert torch.equal(strongest()(infill, torch.zeros_like(mask)), before)
    assert strongest()(infill[:0], mask[:0]).shape == (0, 3, 16, 20)
    for name in NAMES:
        only(name)(infill, mask)
    assert torch.equal(infill, before)


# --- who is changed, and how ---


@pytest.mark.parametrize("group", GROUPS)
def test_samples_change_each_in_its_own_way(group):
    infill = torch.rand(1, 3, 16, 16).expand(6, -1, -1, -1).contiguous()
    variation = Variation(**{each: {"p": 1.0, "strength": (0.6, 0.8)} if each == group else None for each in GROUPS})
    varied = variation(infill, full(infill))
    assert all(not torch.equal(one, infill[0]) for one in varied)
    assert all(not torch.equal(varied[i], varied[j]) for i in range(6) for j in range(i))


def test_each_part_touches_its_share_of_the_samples():
    infill = torch.rand(1, 3, 8, 8).expand(400, -1, -1, -1).contiguous()
    for group, name, share in (("style", "night", 0.25), ("color", "jitter", 0.8), ("texture", "gaussian_noise", 0.5)):
        variation = Variation(**{each: [name] if each == group else None for each in GROUPS})
        varied = variation(infill, full(infill))
        touched = sum(not torch.equal(one, infill[0]) for one in varied)
        assert touched / 400 == pytest.approx(share, abs=0.09)


@pytest.mark.parametrize("group", GROUPS)
def test_more_strength_changes_more(group):
    infill = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4), size=24, mode="bilinear")
    changes = []
    for strength in (0.1, 0.4, 1.0):
        variation = Variation(**{each: {"strength": (strength, strength), "p": 1.0} if each == group else None
                                 for each in GROUPS})  # fmt: skip
        changes.append(torch.stack([(variation(infill, full(infill)) - infill).abs().mean() for _ in range(12)]).mean())
    assert changes[0] < changes[1] < changes[2]


def test_operations_of_two_parts_are_independent_of_each_other():
    variation = Variation(style=None, color={"operations": ["jitter"], "p": 0.5},
                          texture={"operations": ["gaussian_noise"], "p": 0.5})  # fmt: skip
    both = torch.zeros(2, 2)
    for _ in range(300):
        params = variation.make_params(8, 4, 4)
        hit = torch.zeros(8, 2, dtype=torch.bool)
        for part, changes in enumerate(params):
            for change in changes:
                hit[change.start : change.stop, part] = True
        for first, second in hit.long().tolist():
            both[first, second] += 1
    assert (both / both.sum() - 0.25).abs().max() < 0.04


def test_the_same_seed_gives_the_same_variation_and_the_next_call_another():
    infill, mask = scene()
    variation = strongest()
    torch.manual_seed(5)
    first, second = variation(infill, mask), variation(infill, mask)
    torch.manual_seed(5)
    assert torch.equal(variation(infill, mask), first)
    assert not torch.equal(first, second)


def test_a_draw_replays():
    infill, mask = scene(6)
    variation = strongest()
    params = variation.make_params(6, 16, 20)
    first = variation(infill, mask, params)
    assert torch.equal(variation(infill, mask, params), first)
    assert not torch.equal(variation(infill, mask), first)


def test_on_the_same_batch_every_sample_gets_the_same():
    infill = torch.rand(1, 3, 16, 16).expand(4, -1, -1, -1).contiguous()
    variation = Variation(style=None, color={"p": 1.0}, texture={"p": 1.0}, same_on_batch=True)
    for _ in range(10):
        varied = variation(infill, full(infill))
        torch.testing.assert_close(varied, varied[:1].expand_as(varied))


def test_in_8_bits_the_result_is_that_in_floating_point_rounded():
    infill, mask = scene(6)
    eight = (infill * 255).round().to(torch.uint8)
    variation = strongest()
    params = variation.make_params(6, 16, 20)
    varied, wanted = variation(eight, mask, params), variation(eight.float() / 255, mask, params)
    assert varied.dtype == torch.uint8
    assert torch.equal(varied, (wanted * 255).round().to(torch.uint8))
    kept = ~mask.expand_as(eight)
    assert torch.equal(varied[kept], eight[kept])
    assert torch.equal(variation(eight, mask, params, dtype=torch.float32), wanted)
    assert torch.equal(variation(eight.float() / 255, mask, params, dtype=torch.uint8), varied)


def test_a_batch_that_is_varied_in_parts_is_varied_throughout(monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 3 * 4 * 3 * 16 * 20)
    infill, mask = scene(11)
    counts = []
    variation = Variation(style=None, color={"operations": ["jitter"], "p": 1.0}, texture=None)
    operation = variation.color.operations[0]
    vary = operation.vary
    monkeypatch.setattr(operation, "vary", lambda image, **params: counts.append(len(image)) or vary(image, **params))
    varied = variation(infill, mask)
    assert sum(counts) == 11
    assert max(counts) <= 3
    assert all(not torch.equal(one, other) for one, other in zip(varied, infill, strict=True))
    kept = ~mask.expand_as(infill)
    assert torch.equal(varied[kept], infill[kept])


@pytest.mark.parametrize("operation", ["jitter", "gaussian_noise", K.RandomInvert(p=1.0), K.ColorJiggle(0.5, 0.5, 0.5)])
def test_the_same_on_batch_holds_in_a_large_batch_and_for_operations_of_kornia(operation, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    infill = torch.rand(1, 3, 16, 16).expand(9, -1, -1, -1).contiguous()
    color = {"operations": [operation], "p": 1.0}
    varied = Variation(style=None, color=color, texture=None, same_on_batch=True)(infill, full(infill))
    torch.testing.assert_close(varied, varied[:1].expand_as(varied))
    assert not torch.equal(varied, infill)


def test_alone_a_sample_gets_no_operation_that_mixes_with_others():
    variation = Variation(style=["fourier_mix", "style_transfer", "sepia"], color=None, texture=None)
    for _ in range(40):
        assert all(change.operation == 2 for change in variation.make_params(1, 8, 8)[0])
    with_folder = Variation(style=[FourierMix(), StyleTransfer(folder="styles")], color=None, texture=None)
    for _ in range(40):
        assert all(change.operation == 1 for change in with_folder.make_params(1, 8, 8)[0])


# --- how it is asked for ---


def test_a_descriptor_s_style_picks_styles_and_its_complexity_the_texture():
    plain = Variation.from_descriptor(TaskDescriptor("demo", "cat"))
    assert plain.style is None
    assert plain.texture.strength == (0.075, 0.3)
    painted = Variation.from_descriptor(
        TaskDescriptor("demo", "cat", style="watercolour of a foggy night", complexity="high"), color=None
    )
    assert {operation.name for operation in painted.style.operations} == {"watercolour", "fog", "night"}
    assert painted.style.strength == (0.5, 1.0)
    assert painted.texture.strength == (0.15, 0.6)
    assert painted.color is None


def test_parts_are_given_as_numbers_names_mappings_or_objects():
    variation = Variation(style="night, fog", color=["jitter"], texture={"operations": {"blur": 1}, "p": 0.1})
    assert [operation.name for operation in variation.style.operations] == ["night", "fog"]
    assert variation.texture.p == 0.1
    twin = Variation(style=variation.style, color=0.0, texture=None)
    assert twin.style is variation.style
    assert twin.color is twin.texture is None


@pytest.mark.parametrize(
    ("name", "value"), [("color", -0.1), ("style", 1.5), ("texture", 2), ("texture", float("nan")), ("color", True)]
)
def test_a_strength_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in 0..1.*got {value}"):
        Variation(**{name: value})


@pytest.mark.parametrize(
    ("infill", "mask", "message"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), torch.ones(2, 1, 4, 4), r"floating point in 0..1 or uint8.*int64"),
        (torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4), r"infill must be \(B, 3, H, W\).*\(2, 1, 4, 4\)"),
        (torch.rand(3, 3, 4, 4), torch.ones(3, 4, 4), r"mask must be \(3, 1, 4, 4\) to fit, got \(3, 4, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(infill, mask, message):
    with pytest.raises(ValueError, match=message):
        Variation()(infill, mask)


def test_a_draw_for_more_pictures_and_a_mistyped_key_are_refused():
    params = strongest().make_params(6, 16, 20)
    with pytest.raises(ValueError, match="drawn for 6 pictures or more, and there are 4"):
        strongest()(*scene(4), params)
    with pytest.raises(ValueError, match=r"color has no \['operation'\]; allowed: .*Weights go under"):
        Variation(color={"operation": ["jitter"]})


def test_a_variation_that_changes_nothing_warns():
    with pytest.warns(UserWarning, match="changes nothing"):
        variation = Variation(style=0, color={"p": 0.0}, texture=None)
    infill, mask = scene()
    assert torch.equal(variation(infill, mask), infill)


# --- how it runs ---


def test_no_gradient_is_kept_and_autocast_changes_nothing():
    infill, mask = scene()
    assert not strongest()(infill.clone().requires_grad_(), mask).requires_grad
    variation = strongest()
    params = variation.make_params(4, 16, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(variation(infill, mask, params), variation(infill, mask, params))
        inside = variation(infill, mask, params)
    assert torch.equal(inside, variation(infill, mask, params))


def test_a_variation_works_in_eval_mode_after_a_pickle_and_a_deepcopy():
    infill, mask = scene()
    variation = Variation()
    torch.manual_seed(3)
    wanted = variation(infill, mask)
    for twin in (pickle.loads(pickle.dumps(variation)), copy.deepcopy(variation), copy.deepcopy(variation).eval()):
        torch.manual_seed(3)
        assert torch.equal(twin(infill, mask), wanted)
    assert not list(variation.parameters())
    assert not variation.state_dict()
    assert "group='color'" in repr(nn.Sequential(variation))
