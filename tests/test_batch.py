import copy
import gc
import pickle
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from infill_aug.batch import InfillAugment
from infill_aug.cache.build import build_cache
from infill_aug.datasets import InfillDataset
from infill_aug.functional import parts
from infill_aug.functional.masks import masked_share, threshold_mask
from infill_aug.infill.backend import InfillBackend
from infill_aug.threshold import ThresholdState
from infill_aug.types import ConfidenceMap
from infill_aug.variation import Variation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    return tensor.contiguous().view(WORDS[tensor.element_size()])


def batch(count=4, height=12, width=16, dtype=torch.uint8, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    image, infill = (
        torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator) for _ in range(2)
    )
    confidence = torch.randint(0, 240, (count, 1, height, width), dtype=torch.uint8, generator=generator)
    confidence[..., 4:7, 5:9] = 255
    if dtype != torch.uint8:
        image, infill = ((each.double() / 255).to(dtype) for each in (image, infill))
    return {"image": image, "infill": infill, "confidence": confidence, **more}


def reference(image, dtype=torch.float32):
    """The normalised original, computed here and not by the module."""
    unit = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    return ((unit - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)).to(dtype)


def constant_infill(infill, mask):
    return torch.full_like(infill, 0.25)


def broken_infill(infill, mask):
    return torch.full_like(infill, torch.nan)


VARIATIONS = {
    "none": None,
    "varied": Variation(style=1.0, color=1.0, texture=1.0),
    "constant": constant_infill,
    "NaN": broken_infill,
}


# --- what matters is kept bit for bit ---


@settings(max_examples=80)
@given(
    dtype_in=st.sampled_from([torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    variation=st.sampled_from(sorted(VARIATIONS)),
    threshold=st.sampled_from([0.5, 1.0]) | st.floats(0, 1),
    mode=st.sampled_from(["quantile", "absolute"]),
    p=st.sampled_from([0.5, 1.0]),
    feather=st.integers(0, 4),
    protect_above=st.none() | st.sampled_from([0.0, 0.5, 0.95]),
    seed=st.integers(0, 2**32 - 1),
)
def test_kept_pixels_equal_the_normalised_original_bit_for_bit(
    dtype_in, dtype, variation, threshold, mode, p, feather, protect_above, seed
):
    torch.default_generator.manual_seed(seed)
    given_batch = batch(dtype=dtype_in, seed=seed)
    if dtype_in.is_floating_point:
        given_batch["infill"][:, :, 1] = torch.nan
        given_batch["infill"][:, :, 2] = torch.inf
    augment = InfillAugment(
        threshold, mode=mode, p=p, jitter=0.1, feather=feather, protect_above=protect_above,
        variation=VARIATIONS[variation], normalize=(MEAN, STD), dtype=dtype,
    )  # fmt: skip
    out = augment(given_batch)
    wanted = reference(given_batch["image"], dtype)
    assert out["image"].dtype == dtype
    assert out["mask"].dtype == torch.bool
    assert out["mask"].shape == given_batch["confidence"].shape
    kept = ~out["mask"].expand_as(wanted)
    assert torch.equal(bits(out["image"])[kept], bits(wanted)[kept])
    assert out["image"].isfinite().all()
    if protect_above is not None:
        assert not out["mask"][given_batch["confidence"] > protect_above * 255].any()


def test_normalisation_is_that_of_torchvision():
    image = batch()["image"]
    augment = InfillAugment(p=0.0, normalize=(MEAN, STD))
    out = augment({**batch(), "image": image})["image"]
    assert torch.equal(out, F.normalize(image.float() / 255, MEAN, STD))
    plain = InfillAugment(p=0.0)({**batch(), "image": image})["image"]
    assert torch.equal(plain, image.float() / 255)


def test_masked_pixels_are_the_infill_and_soft_ones_a_blend():
    given_batch = batch()
    given_batch["image"].zero_()
    given_batch["infill"].fill_(255)
    given_batch["confidence"] = torch.arange(16, dtype=torch.uint8).expand(4, 1, 12, 16).contiguous()
    hard, soft = (InfillAugment(0.5, p=1.0, feather=feather)(given_batch)["image"][0, 0, 5] for feather in (0, 3))
    assert hard.tolist() == [1.0] * 8 + [0.0] * 8
    assert (soft[:4] == 1).all()
    assert 1 > soft[6] > soft[7] > 0
    assert (soft[8:] == 0).all()


def test_protected_pixels_never_change_at_any_threshold():
    given_batch = batch(variation=None)
    given_batch["confidence"][:2] = 255
    wanted = reference(given_batch["image"])
    for threshold in (0.0, 0.3, 0.9, 1.0):
        for mode in ("quantile", "absolute"):
            augment = InfillAugment(
                threshold, mode=mode, p=1.0, jitter=0.5, variation=Variation(), normalize=(MEAN, STD)
            )
            out = augment(given_batch)["image"]
            full = (given_batch["confidence"] == 255).expand_as(out)
            assert torch.equal(out[full], wanted[full])
            assert torch.equal(out[:2], wanted[:2])


def test_inputs_are_left_as_they_are():
    given_batch = batch()
    before = {key: value.clone() for key, value in given_batch.items()}
    InfillAugment(0.7, p=1.0, variation=Variation(), normalize=(MEAN, STD))(given_batch)
    assert given_batch.keys() == before.keys()
    assert all(torch.equal(given_batch[key], before[key]) for key in before)


# --- who is changed ---


@pytest.mark.parametrize(("p", "share"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_a_share_of_p_of_the_samples_is_changed(p, share):
    out = InfillAugment(0.5, p=p)(batch(2000, 4, 4))
    changed = out["mask"].flatten(1).any(1).float().mean()
    assert abs(changed - share) <= (0.04 if 0 < p < 1 else 0)


def test_being_filled_is_no_clue_to_the_class_or_the_confidence():
    given_batch = batch(4000, 4, 4, target=torch.arange(4000) % 2)
    given_batch["confidence"] = torch.where(
        (given_batch["target"] == 0).view(-1, 1, 1, 1), torch.tensor(10, dtype=torch.uint8), 200
    ).expand(-1, -1, 4, 4)
    out = InfillAugment(0.5, p=0.4, jitter=0.2)(given_batch)
    changed = out["mask"].flatten(1).any(1).float()
    by_class = [changed[given_batch["target"] == label].mean() for label in (0, 1)]
    assert abs(by_class[0] - by_class[1]) < 0.05
    assert all(abs(share - 0.4) < 0.04 for share in by_class)
    shares = masked_share(out["mask"])[changed.bool()]
    labels = given_batch["target"][changed.bool()]
    assert abs(shares[labels == 0].mean() - shares[labels == 1].mean()) < 0.03


def test_draws_do_not_look_at_the_batch_and_follow_the_seed():
    augment = InfillAugment(0.5, p=0.5, jitter=0.3)
    outs = []
    for seed in (0, 1):
        torch.manual_seed(7)
        given_batch = batch(64, seed=seed)
        given_batch["confidence"] = torch.full_like(given_batch["confidence"], 100)
        outs.append(augment(given_batch)["mask"])
    assert torch.equal(*outs)
    assert not torch.equal(augment(given_batch)["mask"], outs[0])


@settings(max_examples=30)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_thresholds_under_jitter_stay_within_0_and_1_and_within_the_jitter(threshold, jitter, seed):
    torch.default_generator.manual_seed(seed)
    drawn, changed, rows = InfillAugment(threshold, jitter=jitter).make_params(200, torch.device("cpu"))
    assert drawn.shape == changed.shape == (200,)
    assert sorted(rows.tolist()) == changed.nonzero().flatten().tolist()
    assert changed.dtype == torch.bool
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert ((drawn - threshold).abs() <= jitter + 1e-6).all()
    if jitter > 0.01 and 0.1 < threshold < 0.9:
        assert drawn.std() > 0.1 * min(jitter, 0.1)
        assert drawn.min() < threshold < drawn.max()


def test_each_sample_is_cut_at_its_own_threshold():
    given_batch = batch(6)
    augment = InfillAugment(0.5, p=1.0, jitter=0.4, protect_above=None)
    torch.manual_seed(1)
    thresholds, *_ = augment.make_params(6, torch.device("cpu"))
    torch.manual_seed(1)
    assert torch.equal(augment(given_batch)["mask"], threshold_mask(given_batch["confidence"], thresholds))
    assert len(thresholds.unique()) == 6


def test_a_sample_is_composed_alike_alone_and_in_a_batch():
    given_batch = batch(5)
    augment = InfillAugment(0.6, p=1.0, normalize=(MEAN, STD))
    together = augment(given_batch)
    for i in range(5):
        alone = augment({key: value[i : i + 1] for key, value in given_batch.items()})
        assert torch.equal(alone["image"][0], together["image"][i])
        assert torch.equal(alone["mask"][0], together["mask"][i])


def test_the_masked_share_of_the_last_batch_is_that_of_its_changed_samples():
    augment = InfillAugment(0.5, p=0.5, protect_above=None)
    out = augment(batch(200, 16, 16))
    shares = masked_share(out["mask"])
    assert 0 < (shares > 0).float().mean() < 1
    torch.testing.assert_close(augment.masked_share, shares[shares > 0].mean())
    none = InfillAugment(0.5, p=0.0)
    none(batch())
    assert none.masked_share == 0
    given_batch = batch()
    given_batch["confidence"][..., :8] = 255
    protected = InfillAugment(1.0, p=1.0)
    protected(given_batch)
    assert protected.masked_share <= 0.5


# --- the shared threshold ---


def test_a_change_of_the_threshold_state_takes_effect_in_the_next_call():
    state = ThresholdState.from_threshold(0.2)
    augment = InfillAugment(state, p=1.0, protect_above=None)
    assert augment.threshold_state is state
    twin = copy.deepcopy(augment)
    given_batch, shares = batch(2, 32, 32), []
    given_batch["confidence"] = torch.rand(2, 1, 32, 32).mul(255).to(torch.uint8)
    for threshold in (0.2, 0.7, 0.4):
        state.set(ThresholdState.from_threshold(threshold).strength)
        shares.append(masked_share(augment(given_batch)["mask"]).mean().item())
        assert torch.equal(twin(given_batch)["mask"], augment(given_batch)["mask"])
    assert shares == pytest.approx([0.2, 0.7, 0.4], abs=0.02)


def test_a_threshold_state_brings_its_own_mode():
    state = ThresholdState.from_threshold(100 / 255, mode="absolute")
    given_batch = batch()
    out = InfillAugment(state, mode="quantile", p=1.0)(given_batch)
    assert torch.equal(out["mask"], given_batch["confidence"] <= 100)
    assert InfillAugment(0.5).threshold_state is None


@pytest.mark.parametrize("reads", ["the widest level", "the narrowest level"])
@pytest.mark.parametrize(
    "crop", [v2.Identity(), v2.CenterCrop(20), v2.RandomResizedCrop(24, (0.2, 0.4), antialias=True)], ids=repr
)
def test_what_is_masked_was_generated_also_after_a_crop_that_cuts_the_background_off(crop, reads, tmp_path):
    pictures = [(torch.randint(0, 128, (3, 32, 32), dtype=torch.uint8), 0) for _ in range(4)]
    build_cache(
        pictures, tmp_path, profile="centre_prior", backend=f"{__name__}:White", levels=(0.25, 0.5, 1.0), progress=False
    )
    threshold = 0.5 if reads == "the narrowest level" else None
    dataset = InfillDataset(pictures, tmp_path, threshold=threshold, transforms=crop)
    out = InfillAugment(0.5, p=1.0, feather=0)(default_collate([dataset[i] for i in range(4)]))
    assert masked_share(out["mask"]).mean() > 0.3
    inside = out["image"][out["mask"].expand_as(out["image"])]
    assert (inside > 0.8).float().mean() > 0.9


class White(InfillBackend):
    """Nearly white, so that what was generated can be told from what was there."""

    name = "white"

    def _generate(self, image, mask, config, samples):
        return 0.9 + 0.1 * torch.rand(image.shape)


# --- modes of running ---


def test_eval_mode_only_normalises_and_needs_nothing_but_an_image():
    given_batch = batch(target=torch.arange(4))
    augment = InfillAugment(1.0, p=1.0, normalize=(MEAN, STD)).eval()
    out = augment(given_batch)
    assert set(out) == {"image", "target"}
    assert torch.equal(out["image"], reference(given_batch["image"]))
    assert torch.equal(augment({"image": given_batch["image"]})["image"], out["image"])
    before = torch.get_rng_state()
    augment(given_batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_keys_pass_through_untouched():
    target = {"boxes": [torch.rand(2, 4)], "name": ["a", "b", "c", "d"]}
    out = InfillAugment()(batch(target=target, index=torch.arange(4)))
    assert set(out) == {"image", "mask", "target", "index"}
    assert out["target"] is target


def test_collated_samples_of_tv_tensors_are_a_batch():
    given_batch = batch(3)
    samples = [
        {
            "image": tv_tensors.Image(given_batch["image"][i]),
            "infill": tv_tensors.Image(given_batch["infill"][i]),
            "confidence": ConfidenceMap(given_batch["confidence"][i]),
        }
        for i in range(3)
    ]
    augment = InfillAugment(0.5, p=1.0)
    assert torch.equal(augment(default_collate(samples))["image"], augment(given_batch)["image"])


@pytest.mark.parametrize(
    "variation", [None, Variation(style=1.0, color=1.0, texture=1.0)], ids=["plain", "with variation"]
)
def test_autocast_changes_no_kept_pixel_and_no_dtype(variation):
    given_batch = batch()
    augment = InfillAugment(0.6, p=1.0, variation=variation, normalize=(MEAN, STD))
    for seed in range(5):
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            out = augment(given_batch)
        assert out["image"].dtype == torch.float32
        kept = ~out["mask"].expand_as(out["image"])
        assert torch.equal(out["image"][kept], reference(given_batch["image"])[kept])
        if variation is None:
            assert torch.equal(out["image"], augment(given_batch)["image"])


def compiled(augment, backend):
    torch._dynamo.reset()
    try:
        twin = copy.deepcopy(augment)
        twin.compile(backend=backend, fullgraph=True)
        for seed, threshold in ((0, 0.3), (1, 0.8)):
            given_batch = batch(seed=seed)
            image, infill, confidence = (given_batch[key] for key in ("image", "infill", "confidence"))
            params = torch.full((4,), threshold), torch.tensor([True, True, False, True])
            pairs = []
            for each in (twin, augment):
                mask = each.make_mask(confidence, *params)
                pairs.append((each.mix(image, infill, mask), mask))
            yield image, *pairs
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("mode", ["quantile", "absolute"])
@pytest.mark.parametrize("feather", [0, 2])
def test_the_step_compiles_without_a_graph_break_and_gives_the_same(feather, mode):
    augment = InfillAugment(p=1.0, feather=feather, mode=mode, normalize=(MEAN, STD))
    for _, (image, mask), (wanted_image, wanted_mask) in compiled(augment, "eager"):
        assert torch.equal(mask, wanted_mask)
        assert torch.equal(image, wanted_image)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own import
def test_the_step_runs_in_inductor_with_the_same_masks_and_pixels():
    augment = InfillAugment(p=1.0, normalize=(MEAN, STD))
    for original, (image, mask), (wanted_image, wanted_mask) in compiled(augment, "inductor"):
        assert torch.equal(mask, wanted_mask)
        torch.testing.assert_close(image, wanted_image, rtol=1e-5, atol=1e-5)
        kept = ~mask.expand_as(image)
        assert torch.equal(image[kept], reference(original)[kept])


@pytest.mark.parametrize("mode", ["quantile", "absolute"])
def test_no_part_of_the_step_looks_at_a_value_on_the_device_or_leaves_it(mode):
    # Tensors without values on a GPU that need not be there: whatever would wait for one, or mix devices, raises.
    augment = InfillAugment(p=1.0, mode=mode, variation=lambda infill, mask: infill * mask, dtype=torch.float16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        given_batch = {key: value.to("cuda") for key, value in batch().items()}
        image, infill, confidence = (given_batch[key] for key in ("image", "infill", "confidence"))
        threshold, rows = torch.rand(4, device="cuda"), torch.rand(4, device="cuda").argsort()[:2]
        mask = augment.make_mask(confidence, threshold, threshold > 0.5)
        out = augment.mix(image, augment.vary(infill, mask, rows), mask)
    assert (out.device.type, out.dtype, out.shape) == ("cuda", torch.float16, image.shape)


def test_nothing_grows_over_the_steps():
    parts = {"style": ["night", "sepia"], "color": ["jitter", "palette"], "texture": ["gaussian_noise", "blur"]}
    variation = Variation(**{group: {"operations": names, "p": 1.0} for group, names in parts.items()})
    augment = InfillAugment(0.6, p=0.9, variation=variation, normalize=(MEAN, STD))
    given_batch, counts = batch(16), []
    for _ in range(30):
        augment(given_batch)
        gc.collect()
        counts.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
    # What operations keep, once each, comes in the first steps.
    assert max(counts[10:]) <= counts[10]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_image_comes_with_channels_last_where_that_is_asked_for(dtype):
    given_batch = batch()
    plain, last = (
        InfillAugment(p=0.0, normalize=(MEAN, STD), dtype=dtype, channels_last=each) for each in (False, True)
    )
    out = last(given_batch)["image"]
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert plain(given_batch)["image"].is_contiguous()
    assert torch.equal(out, plain(given_batch)["image"])


def test_a_batch_in_parts_is_the_batch_as_a_whole(monkeypatch):
    given_batch, augment = batch(7), InfillAugment(0.6, p=1.0, normalize=(MEAN, STD), channels_last=True)
    whole = augment(given_batch)
    monkeypatch.setattr(parts, "PART_BYTES", 2 * 4 * 3 * 12 * 16)
    assert len(parts.parts_of(given_batch["image"])) == 4
    out = augment(given_batch)
    assert torch.equal(out["image"], whole["image"])
    assert out["image"].is_contiguous(memory_format=torch.channels_last)


def test_only_changed_samples_are_varied():
    seen = []

    def counts(infill, mask):
        seen.append(len(infill))
        assert mask.flatten(1).any(1).all()
        return infill

    augment = InfillAugment(0.8, p=0.3, variation=counts, protect_above=None)
    out = augment(batch(100))
    assert seen == [int(out["mask"].flatten(1).any(1).sum())]


def test_pickles_and_deepcopies_do_the_same():
    given_batch = batch()
    augment = InfillAugment(0.6, p=0.7, jitter=0.1, variation=Variation(), normalize=(MEAN, STD))
    torch.manual_seed(0)
    wanted = augment(given_batch)
    for twin in (pickle.loads(pickle.dumps(augment)), copy.deepcopy(augment)):
        torch.manual_seed(0)
        out = twin(given_batch)
        assert torch.equal(out["image"], wanted["image"])
        assert torch.equal(out["mask"], wanted["mask"])


def test_a_checkpoint_of_the_model_holds_nothing_of_the_augmentation():
    augment = InfillAugment(ThresholdState.from_threshold(0.4), variation=Variation(), normalize=(MEAN, STD))
    assert not augment.state_dict()
    assert not list(augment.parameters())
    nn.Module.load_state_dict(augment, {})
    assert "threshold" in repr(augment)


def test_no_gradient_is_kept():
    given_batch = batch(dtype=torch.float32)
    given_batch["image"].requires_grad_()
    assert not InfillAugment(p=1.0)(given_batch)["image"].requires_grad


def test_numbers_stay_those_of_float32_when_a_model_is_moved_to_half_precision():
    given_batch = batch()
    augment = InfillAugment(p=1.0, normalize=(MEAN, STD)).to(torch.bfloat16)
    out = augment(given_batch)
    kept = ~out["mask"].expand_as(out["image"])
    assert torch.equal(out["image"][kept], reference(given_batch["image"])[kept])


# --- errors ---


@pytest.mark.parametrize("missing", ["image", "infill", "confidence"])
def test_a_missing_key_is_named_with_those_there_are(missing):
    given_batch = batch(target=torch.zeros(4))
    del given_batch[missing]
    with pytest.raises(KeyError, match=rf"{missing}.*target.*InfillDataset"):
        InfillAugment()(given_batch)
    if missing == "image":
        with pytest.raises(KeyError, match="image"):
            InfillAugment().eval()(given_batch)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("infill", torch.zeros(4, 3, 12, 15, dtype=torch.uint8)),
        ("infill", torch.zeros(3, 3, 12, 16, dtype=torch.uint8)),
        ("confidence", torch.zeros(4, 1, 12, 15, dtype=torch.uint8)),
        ("confidence", torch.zeros(4, 12, 16, dtype=torch.uint8)),
        ("confidence", torch.zeros(1, 1, 12, 16, dtype=torch.uint8)),
        ("confidence", torch.zeros(4, 3, 12, 16, dtype=torch.uint8)),
        ("image", torch.zeros(4, 3, 12, 15, dtype=torch.uint8)),
    ],
)
def test_sizes_that_do_not_fit_are_all_named(key, value):
    given_batch = {**batch(), key: value}
    with pytest.raises(ValueError, match="do not fit") as caught:
        InfillAugment()(given_batch)
    for each in ("image", "infill", "confidence"):
        assert str(tuple(given_batch[each].shape)) in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (2, 4, 8, 8)], ids=["grey", "no batch", "alpha"])
def test_images_of_another_shape_are_refused_in_training_and_in_eval_mode(shape):
    image = torch.zeros(shape, dtype=torch.uint8)
    given_batch = {"image": image, "infill": image, "confidence": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}
    for augment in (InfillAugment(), InfillAugment().eval()):
        with pytest.raises(ValueError, match=re.escape(str(shape))):
            augment(given_batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold must lie in 0..1, got 1.5"),
        ({"threshold": float("nan")}, "threshold.*nan"),
        ({"p": -0.1}, "p must lie in 0..1, got -0.1"),
        ({"jitter": 2}, "jitter must lie in 0..1, got 2"),
        ({"protect_above": 95}, "protect_above must lie in 0..1, got 95"),
        ({"mode": "relative"}, "'quantile' or 'absolute', got 'relative'"),
        ({"feather": -1}, "feather.*-1"),
        ({"dtype": torch.uint8}, "floating point, got torch.uint8"),
        ({"normalize": ((0.5,), (0.5,))}, "normalize.*three numbers"),
        ({"normalize": (MEAN, (0.2, 0.0, 0.2))}, "std above 0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        InfillAugment(**arguments)


# A threshold for each class


def test_samples_are_masked_by_the_threshold_of_their_class():
    state = ThresholdState(0.5, mode="absolute", classes=2)
    state.set(0.5, [-0.3, 0.3])
    augment = InfillAugment(state, p=1.0, feather=0)
    confidence = torch.arange(16, dtype=torch.uint8).mul(16).reshape(1, 1, 4, 4).expand(3, -1, -1, -1)
    shared = {"image": torch.zeros(3, 3, 4, 4), "infill": torch.ones(3, 3, 4, 4), "confidence": confidence}
    labels = torch.tensor([0, 1, 0])
    for target in (labels, [labels, torch.rand(3)], {"label": labels}):
        share = augment({**shared, "target": target})["mask"].float().mean((1, 2, 3))
        assert share.tolist() == pytest.approx([0.25, 0.8125, 0.25])
    with pytest.raises(KeyError, match=r"needs \(B,\) integer labels under 'target'.*the ThresholdState no classes"):
        augment({**shared, "target": torch.rand(3)})


def test_everything_changes_every_sample_at_the_threshold_in_force():
    params = InfillAugment(ThresholdState.from_threshold(0.4), p=0.0, jitter=0.3).everything(3, torch.device("cpu"))
    assert params.threshold.tolist() == pytest.approx([0.4] * 3)
    assert params.changed.all()
    assert params.rows.tolist() == [0, 1, 2]
