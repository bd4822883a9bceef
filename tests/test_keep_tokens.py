import copy
import io
import pickle
import re
import warnings

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import run_recipe as launch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from infill_aug.batch import InfillAugment
from infill_aug.keep_tokens import KeepTokens, kept_tokens

SIZE, PATCH, COUNT = 32, 8, 16
TINY = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}


def of_torchvision(**more):
    settings = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
    model = torchvision.models.VisionTransformer(SIZE, PATCH, **settings, **more)
    # It starts at zero, where every output is the same.
    nn.init.normal_(model.heads.head.weight)
    return model


def of_timm(name="vit_tiny_patch16_224", **more):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, **(TINY | more))


MODELS = {
    "torchvision": of_torchvision,
    "conv stem": lambda: of_torchvision(
        conv_stem_configs=[torchvision.models.vision_transformer.ConvStemConfig(8, 3, 2) for _ in range(3)]
    ),
    "timm vit": of_timm,
    "timm average pool": lambda: of_timm(class_token=False, global_pool="avg"),
    "timm registers": lambda: of_timm(reg_tokens=4, no_embed_class=True),
    "timm dynamic size": lambda: of_timm(dynamic_img_size=True),
    "timm distilled": lambda: of_timm("deit_tiny_distilled_patch16_224"),
    "timm deit3": lambda: of_timm("deit3_small_patch16_224"),
    "timm clip": lambda: of_timm("vit_base_patch16_clip_quickgelu_224"),
    "timm siglip": lambda: of_timm("vit_base_patch16_siglip_224"),
    "timm dinov2 with registers": lambda: of_timm("vit_small_patch14_reg4_dinov2"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def make(name, seed=0):
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm on weights that a name promises and that are not asked for
        return MODELS[name]().train()


def pictures(count=3, height=SIZE, width=SIZE):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def blocks(kept, patch=PATCH):
    """Masks whose patches are kept or masked as a whole: ``(B, rows, columns)`` of zeros and ones, 1 = kept."""
    return 1 - kept[:, None].float().repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def some_mask(count=3, share=0.4):
    kept = torch.rand(count, 4, 4, generator=torch.Generator().manual_seed(2)) < share
    return blocks(kept).bool()


def pixels_of(mask, patch):
    """Kept pixels of each patch, counted by hand."""
    cells = mask.unfold(2, patch, patch).unfold(3, patch, patch)
    return (cells == 0).flatten(4).sum(-1).flatten(1)


masks = st.builds(
    lambda seed, count, rows, columns, share, coarse: (
        blocks(torch.rand(count, rows, columns, generator=torch.Generator().manual_seed(seed)) < share, 4).bool()
        if coarse
        else torch.rand(count, 1, 4 * rows, 4 * columns, generator=torch.Generator().manual_seed(seed)) > share
    ),
    st.integers(0, 999),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 5),
    st.floats(0, 1),
    st.booleans(),
)


@given(masks, st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_no_dropped_patch_has_more_kept_pixels_than_a_kept_one(mask, keep):
    pixels, indices = pixels_of(mask, 4), kept_tokens(mask, 4, keep)
    assert indices.shape == (len(mask), max(1, round(keep * pixels.shape[1])))
    assert (indices.diff(dim=1) > 0).all()
    kept = torch.zeros_like(pixels, dtype=torch.bool).scatter(1, indices, True)
    least = pixels.masked_fill(~kept, 99).min(dim=1).values
    most = pixels.masked_fill(kept, -1).max(dim=1).values
    assert (most <= least).all()


@given(masks)
@settings(max_examples=60, deadline=None)
def test_without_a_share_every_changed_sample_keeps_all_patches_with_a_kept_pixel_and_the_fullest_keeps_no_other(mask):
    pixels, indices = pixels_of(mask, 4), kept_tokens(mask, 4, None)
    changed = mask.flatten(1).any(dim=1)
    kept = torch.zeros_like(pixels, dtype=torch.bool).scatter(1, indices, True)
    assert kept[changed][pixels[changed] > 0].all()
    counts = (pixels > 0).sum(dim=1)[changed]
    assert indices.shape[1] == (max(1, int(counts.max())) if changed.any() else pixels.shape[1])


def test_which_patches_fill_up_is_drawn_and_each_is_as_likely_as_the_others():
    kept = torch.zeros(2000, 4, 4)
    kept[:, 1, 2] = 1
    torch.manual_seed(0)
    shares = nn.functional.one_hot(kept_tokens(blocks(kept), PATCH, 0.25), COUNT).sum(dim=1).float().mean(dim=0)
    assert shares[6] == 1
    others = torch.cat([shares[:6], shares[7:]])
    assert others.sub(3 / 15).abs().max() < 0.04


def test_a_sample_with_nothing_masked_keeps_a_random_part():
    torch.manual_seed(0)
    shares = nn.functional.one_hot(kept_tokens(torch.zeros(2000, 1, 32, 32), PATCH, 0.5), COUNT).sum(dim=1).float()
    assert shares.mean(dim=0).sub(0.5).abs().max() < 0.05


@pytest.mark.parametrize("keep", [0, -0.5, 1.1, float("nan"), True, "half"])
def test_a_share_out_of_range_is_named(keep):
    with pytest.raises(ValueError, match=r"keep must be above 0 and up to 1, or None, got"):
        kept_tokens(torch.zeros(1, 1, 8, 8), 4, keep)
    with pytest.raises(ValueError, match=r"keep must be above 0 and up to 1, or None, got"):
        KeepTokens(of_torchvision(), keep)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 3, 8, 8), (1, 1, 8, 9), (1, 1, 7, 8)])
def test_a_mask_that_patches_do_not_fill_is_named(shape):
    with pytest.raises(ValueError, match=r"patches of 4 x 4 px fill, got"):
        kept_tokens(torch.zeros(shape), 4, 0.5)


@every_model
def test_with_all_patches_or_in_eval_mode_the_output_is_the_plain_models_bit_for_bit(name):
    model = make(name)
    images = pictures()
    plain = model(images)
    assert torch.equal(KeepTokens(model, 1.0)(images, some_mask()), plain)
    tokens = KeepTokens(model, 0.25)
    assert not torch.equal(tokens(images, some_mask()), plain)
    # The hook stays, and does nothing to a call that is not its own.
    assert torch.equal(model(images), plain)
    model.eval()
    expected = model(images)
    assert torch.equal(tokens(images, some_mask()), expected)
    assert torch.equal(tokens(images), expected)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "conv stem"])  # whose patches overlap
def test_gradients_reach_the_pixels_of_kept_patches_and_no_others(name):
    model, images, mask = make(name), pictures().requires_grad_(), some_mask()
    torch.manual_seed(5)
    indices = kept_tokens(mask, PATCH, 0.25)
    torch.manual_seed(5)
    KeepTokens(model, 0.25)(images, mask).square().sum().backward()
    reached = images.grad.abs().sum(dim=1, keepdim=True) > 0
    kept = torch.zeros(3, COUNT).scatter(1, indices, 1).view(3, 4, 4)
    assert torch.equal(reached, blocks(kept) == 0)


@every_model
def test_the_encoder_sees_class_and_register_tokens_and_the_kept_patches(name):
    model, images, mask = make(name), pictures(), some_mask()
    layers = model.encoder.layers if hasattr(model, "encoder") else model.norm_pre
    seen = []
    layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(images)
    torch.manual_seed(5)
    KeepTokens(model, 0.5)(images, mask)
    torch.manual_seed(5)
    rows = kept_tokens(mask, PATCH, 0.5)
    everything, kept = seen
    first = everything.shape[1] - COUNT
    assert first == getattr(model, "num_prefix_tokens", 1)
    by_hand = torch.stack(
        [torch.cat([all_of[:first], all_of[first:][i]]) for all_of, i in zip(everything, rows, strict=True)]
    )
    assert torch.equal(kept, by_hand)


def test_the_output_is_that_of_the_encoder_on_tokens_gathered_by_hand():
    model, images = make("torchvision"), pictures(2)
    kept = torch.zeros(2, 4, 4)
    kept[0, 0, 1] = kept[0, 3, 3] = kept[1, 2, 0] = kept[1, 2, 1] = 1
    patches = model.conv_proj(images).flatten(2).mT + model.encoder.pos_embedding[:, 1:]
    first = (model.class_token + model.encoder.pos_embedding[:, :1]).expand(2, -1, -1)
    by_hand = torch.stack([patches[0, [1, 15]], patches[1, [8, 9]]])
    encoded = model.encoder.ln(model.encoder.layers(torch.cat([first, by_hand], dim=1)))
    torch.testing.assert_close(KeepTokens(model, None)(images, blocks(kept)), model.heads(encoded[:, 0]))


@every_model
def test_a_checkpoint_fits_with_and_without(name):
    model = make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kind = type(model)
    KeepTokens(model, 0.5)(pictures(), some_mask()).sum().backward()
    assert type(model) is kind
    after = model.state_dict()
    assert list(after) == list(before)
    weights = [key for key in after if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(after[key], before[key]) for key in weights)
    make(name, seed=1).load_state_dict(after)


def test_pictures_need_not_be_square():
    model = of_timm(img_size=(16, 48), patch_size=(8, 16)).train()
    images = pictures(2, 16, 48).requires_grad_()
    mask = torch.ones(2, 1, 16, 48, dtype=torch.bool)
    mask[:, :, 3, 40] = False
    KeepTokens(model, 1 / 6)(images, mask).square().sum().backward()
    reached = images.grad.abs().sum(dim=1) > 0
    assert reached[:, :8, 32:].all()
    assert reached.sum() == 2 * 8 * 16


def test_the_size_may_change_from_batch_to_batch_where_the_model_allows_it():
    model = of_timm(dynamic_img_size=True).train()
    tokens = KeepTokens(model, 0.5)
    for side in (32, 48):
        assert tokens(pictures(2, side, 32), torch.rand(2, 1, side, 32) < 0.5).shape == (2, 5)


@pytest.mark.parametrize("name", ["torchvision", "timm vit"])
def test_half_precision_and_channels_last_choose_the_same_patches(name):
    tokens, images, mask = KeepTokens(make(name), 0.5), pictures(), some_mask(share=0.5)
    torch.manual_seed(5)
    expected = tokens(images, mask)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            half = tokens(images.to(memory_format=layout), mask)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", ["torchvision", "timm vit"])
def test_nothing_waits_for_the_device_with_a_share(name):
    # Tensors without values on a GPU that need not be there: whatever would wait for one, or mix devices, raises.
    model = make(name)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        for module in model.modules():
            for key, parameter in module.named_parameters(recurse=False):
                setattr(module, key, nn.Parameter(parameter.cuda()))
        tokens = KeepTokens(model, 0.5)
        out = tokens(torch.rand(3, 3, SIZE, SIZE), torch.rand(3, 1, SIZE, SIZE) < 0.5)
        assert (out.device.type, out.shape) == ("cuda", (3, 5))
        with pytest.raises(Exception, match=r"(?i)data.?dependent|_local_scalar_dense"):
            kept_tokens(torch.rand(3, 1, SIZE, SIZE), PATCH, None)


@pytest.mark.parametrize("name", ["torchvision", "timm vit"])
def test_compiled_inside_or_outside_it_gives_the_same_and_follows_the_mask(name):
    model, images = make(name), pictures()
    plain = KeepTokens(model, 0.25)
    graph = torch.compile(model, backend="eager", fullgraph=True)
    inside = KeepTokens(graph, 0.25)

    def step(images, mask):
        return plain(images, mask)

    outside = torch.compile(step, backend="eager", fullgraph=True)
    for _ in range(2):
        # As many as are asked for: a graph may draw other numbers.
        kept = torch.rand(3, COUNT).argsort(dim=1).argsort(dim=1).view(3, 4, 4) < 4
        results = [call(images, blocks(kept)) for call in (plain, inside, outside)]
        torch.testing.assert_close(results[1], results[0])
        torch.testing.assert_close(results[2], results[0])
    torch.testing.assert_close(graph(images), model(images))
    torch.compiler.reset()


def test_a_graph_that_was_made_before_is_refused_instead_of_ignored():
    model = make("torchvision")
    graph = torch.compile(model, backend="eager")
    graph(pictures())
    tokens = KeepTokens(graph, 0.5)
    with pytest.raises(RuntimeError, match=r"compiled and called before KeepTokens was made"):
        tokens(pictures(), some_mask())
    torch.compiler.reset()
    assert tokens(pictures(), some_mask()).shape == (3, 5)
    torch.compiler.reset()


def test_checkpointed_activations_give_the_same_gradients():
    model, images, mask = of_timm().train(), pictures(), some_mask()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(5)
        KeepTokens(model, 0.5)(images, mask).square().sum().backward()
        grads.append(model.pos_embed.grad.clone())
    torch.testing.assert_close(*grads)


def test_a_model_around_the_transformer_is_called_as_a_whole():
    model, images, mask = make("torchvision"), pictures(), some_mask()
    around = nn.Sequential(model, nn.Linear(5, 2))
    torch.manual_seed(5)
    expected = around[1](KeepTokens(model, 0.5)(images, mask))
    torch.manual_seed(5)
    assert torch.equal(KeepTokens(around, 0.5)(images, mask), expected)


def test_a_distributed_model_gets_the_same_gradients(tmp_path):
    model, images, mask = make("torchvision"), pictures(), some_mask()
    torch.manual_seed(5)
    KeepTokens(model, 0.5)(images, mask).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        around = nn.parallel.DistributedDataParallel(model)
        torch.manual_seed(5)
        KeepTokens(around, 0.5)(images, mask).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_handles_of_one_model_do_not_disturb_each_other_and_can_be_removed():
    model, images, mask = make("torchvision"), pictures(), some_mask()
    half, quarter = KeepTokens(model, 0.5), KeepTokens(model, 0.25)
    plain = model(images)
    outputs = [tokens(images, mask) for tokens in (half, quarter)]
    assert not torch.equal(*outputs)
    half.remove()
    quarter.remove()
    assert not model.encoder.dropout._forward_hooks
    assert torch.equal(model(images), plain)


@pytest.mark.parametrize("name", ["torchvision", "timm vit"])
def test_copies_are_whole_and_independent(name):
    tokens, images, mask = KeepTokens(make(name), 0.5), pictures(), some_mask()
    torch.manual_seed(5)
    expected = tokens(images, mask)
    buffer = io.BytesIO()
    torch.save(tokens.model, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(tokens), pickle.loads(pickle.dumps(tokens))):
        assert copied.model is not tokens.model
        torch.manual_seed(5)
        assert torch.equal(copied(images, mask), expected)
        torch.nn.init.zeros_(next(copied.model.parameters()))
    for model in (copy.deepcopy(tokens.model), torch.load(buffer, weights_only=False)):
        assert torch.equal(model(images), tokens.model(images))


def test_an_error_within_leaves_nothing_behind():
    model = make("torchvision")
    tokens, plain = KeepTokens(model, 0.5), model(pictures())
    handle = model.conv_proj.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokens(pictures(), some_mask())
    handle.remove()
    assert torch.equal(model(pictures()), plain)


def test_masks_that_are_missing_or_of_another_size_are_refused_in_training():
    tokens = KeepTokens(make("torchvision"), 0.5)
    with pytest.raises(ValueError, match=r"needs the mask of these images, \(3, 1, 32, 32\), got None"):
        tokens(pictures())
    for mask in (some_mask(2), some_mask()[..., :16], some_mask()[:, 0]):
        with pytest.raises(ValueError, match=r"InfillAugment returns it under 'mask'"):
            tokens(pictures(), mask)


@pytest.mark.parametrize("family", ["swin of torchvision", "resnet", "swin", "eva", "two of them"])
def test_what_cannot_drop_patches_is_refused(family):
    models = torchvision.models
    if family in ("swin", "eva"):
        name = {"swin": "swin_tiny_patch4_window7_224", "eva": "eva02_tiny_patch14_224"}[family]
        model = pytest.importorskip("timm").create_model(name)
    elif family == "two of them":
        model = nn.ModuleList([of_torchvision(), of_torchvision()])
    else:
        model = models.resnet18() if family == "resnet" else models.swin_t()
    found = 2 if family == "two of them" else 0
    with pytest.raises(TypeError, match=rf"one VisionTransformer of timm or torchvision, found {found} in"):
        KeepTokens(model, 0.5)


def test_a_model_that_drops_patches_itself_is_refused():
    tokens = KeepTokens(of_timm(patch_drop_rate=0.5).train(), 0.5)
    with pytest.raises(RuntimeError, match=r"9 tokens do not fit the 16 patches of the mask"):
        tokens(pictures(), some_mask())


def test_the_mask_of_a_step_is_what_it_takes():
    torch.manual_seed(0)
    batch = {key: torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8) for key in ("image", "infill")}
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    confidence = 255 - 8 * torch.maximum((y - 15).abs(), (x - 15).abs())
    batch["confidence"] = confidence.to(torch.uint8).expand(4, 1, -1, -1)
    augmented = InfillAugment(0.8, p=1.0)(batch)
    # A fifth of the pixels, in the middle.
    assert kept_tokens(augmented["mask"], PATCH, None).tolist() == 4 * [[5, 6, 9, 10]]
    model = make("torchvision")
    loss = KeepTokens(model, 0.25)(augmented["image"], augmented["mask"]).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_the_benchmark_prints_what_each_share_saves(tmp_path):
    pytest.importorskip("timm")
    printed = launch("bench_keep_tokens.py", "--size", "32", "--batch", "2", "--rounds", "1", folder=tmp_path)
    rows = re.findall(r"^\| (timm|torchvision) \| \d+ \(1\.00x\)((?: \| \d+ \([\d.]+x\)){3}) \|$", printed, re.M)
    assert [name for name, _ in rows] == ["timm", "torchvision"]


@pytest.mark.slow
def test_the_training_recipe_compares_kept_with_random_patches(tmp_path):
    for module in ("lightning", "skimage", "sklearn"):
        pytest.importorskip(module)
    tiny = ("--limit", "32", "--epochs", "1", "--seeds", "0", "1", "--keep", "1", "0.5")
    printed = launch("train_tokens.py", *tiny, folder=tmp_path)
    number = r"[\d.]+ ± [\d.]+"
    rows = re.findall(rf"^\| (\w+ [\d.]+) \| {number} \| {number} \| {number} \|$", printed, re.M)
    assert rows == ["kept 1", "kept 0.5", "random 0.5"]
