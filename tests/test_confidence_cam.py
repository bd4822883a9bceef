import copy
import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
import transformers as hf
from sklearn.metrics import average_precision_score
from torch import nn
from torchvision.models import VisionTransformer, mobilenet_v3_small, resnet18, resnet50, swin_t

from infill_aug.confidence.teachers import load_teacher
from infill_aug.confidence.teachers.cam import CamConfidence, attention_rollout, grad_cam, layer_cam
from infill_aug.functional.grading import centre_prior
from infill_aug.key import digest
from infill_aug.types import check_confidence

SIDE, CLASSES = 48, 5


def blobs(count, seed=0):
    """Pictures, labels and masks: one blob each, whose texture is the class, on noise with a photograph's spectrum."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.fft.fftfreq(SIDE)
    spectrum = (waves[:, None] ** 2 + waves**2).sqrt().clamp(min=1 / SIDE)

    def noise(power, channels):
        white = torch.randn(count, channels, SIDE, SIDE, generator=generator)
        field = torch.fft.ifft2(torch.fft.fft2(white) / spectrum**power).real
        return (field - field.mean((2, 3), keepdim=True)) / field.std((2, 3), keepdim=True)

    y, x = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")
    stripes = [x * 1.6, y * 1.6, (x + y) * 1.1, (x - y) * 1.1]
    textures = torch.stack([*(s.sin() for s in stripes), (x * 1.1).sin() * (y * 1.1).sin()])
    labels = torch.arange(count) % CLASSES
    centres = SIDE * (0.2 + 0.6 * torch.rand(count, 2, 1, 1, generator=generator))
    distance = ((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2).sqrt() / SIDE
    masks = (distance + 0.05 * noise(1.5, 1)[:, 0] < 0.21)[:, None]
    colour = 0.3 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
    grain = 0.05 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    front = colour + 0.2 * textures[labels][:, None] + grain
    return torch.where(masks, front, 0.5 + 0.17 * noise(1.2, 3)).clamp(0, 1), labels, masks


def small_cnn():
    def stage(inside, outside, stride):
        return [nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]

    stages = [*stage(3, 16, 1), *stage(16, 24, 2), *stage(24, 32, 2), *stage(32, 48, 1)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, CLASSES))


def trained_cnn(steps=130):
    torch.manual_seed(0)
    images, labels, _ = blobs(960, seed=1)
    model = small_cnn()
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(steps):
        some = torch.randint(0, len(images), (32,))
        optimiser.zero_grad()
        nnf.cross_entropy(model(images[some]), labels[some]).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model


def precision(masks, maps):
    return np.mean([average_precision_score(m.flatten(), c.flatten()) for m, c in zip(masks, maps, strict=True)])


def as_uint8(images):
    return list((images * 255).round().to(torch.uint8))


@pytest.fixture(scope="module")
def cnn():
    return trained_cnn()  # in training mode, as a user may hand it over


@pytest.fixture
def vit():
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )
    return sharpened(model)


@pytest.fixture
def hf_vit():
    torch.manual_seed(0)
    config = hf.ViTConfig(
        image_size=32, patch_size=8, num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=64
    )
    return sharpened(hf.ViTForImageClassification(config))


def sharpened(model):
    """Attention of fresh weights is nearly uniform, which would hide a wrong one."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if any(part in name for part in ("in_proj_weight", "q_proj.weight", "k_proj.weight")):
                value.copy_(torch.randn_like(value))
    return model


# --- the maps find what the classifier was trained to tell apart ---


@pytest.mark.parametrize("options", [{}, {"method": "gradcam"}, {"flip": False}, {"layer": ["5", "11"]}])
def test_the_map_beats_the_centre_prior_by_far(cnn, options):
    images, _, masks = blobs(60, seed=7)
    maps = CamConfidence(cnn, **options).maps(as_uint8(images))
    centre = precision(masks, [centre_prior(SIDE, SIDE)] * len(masks))
    assert precision(masks, maps) > 0.85 > centre + 0.3
    for one in maps:
        check_confidence(one)
        assert one.max() > 0.6


def test_a_label_asks_for_its_own_class(cnn):
    """Two blobs of two classes in one picture: each label lights up its own."""
    images, labels, _ = blobs(40, seed=8)
    left, right = images[0::2], images[1::2]
    pictures = as_uint8(torch.cat([left, right], dim=3))
    source = CamConfidence(cnn, use_labels=True)
    halves = []
    for which in (0, 1):
        targets = [{"label": int(label)} for label in labels[which::2]]
        maps = torch.stack(source.maps(pictures, targets)).flatten(1, 2)
        halves.append((maps[..., :SIDE].sum((1, 2)), maps[..., SIDE:].sum((1, 2))))
    assert (halves[0][0] > halves[0][1]).float().mean() > 0.9
    assert (halves[1][1] > halves[1][0]).float().mean() > 0.9


def test_without_labels_the_top_class_is_explained(cnn):
    images, _, _ = blobs(4, seed=9)
    top = copy.deepcopy(cnn).eval()(images).argmax(dim=1)
    pictures = as_uint8(images)
    free = CamConfidence(cnn, flip=False)
    asked = CamConfidence(cnn, use_labels=True)
    assert not free.reads_target
    assert asked.reads_target
    for i, picture in enumerate(pictures):
        assert torch.equal(free(picture, None), asked(picture, int(top[i])))
        assert torch.equal(free(picture, None), free(picture, {"label": "anything"}))
    other = asked(pictures[0], (int(top[0]) + 1) % CLASSES)
    assert not torch.equal(other, free(pictures[0], None))


# --- against a computation by hand ---


def test_the_maps_are_those_of_a_computation_by_hand(cnn):
    images, _, _ = blobs(3, seed=10)
    pictures = as_uint8(images)
    model = copy.deepcopy(cnn).eval()
    for method, by_hand in (
        ("layercam", lambda a, g: torch.einsum("bchw,bchw->bhw", g.clamp(min=0), a)),
        ("gradcam", lambda a, g: torch.einsum("bc,bchw->bhw", g.flatten(2).mean(-1), a)),
    ):
        feature = model[:12](torch.stack(pictures).float() / 255).detach().requires_grad_()
        model[12:](feature).amax(dim=1).sum().backward()
        raw = by_hand(feature, feature.grad).detach().clamp(min=0)
        wanted = torch.stack([(one / np.quantile(one, 0.9)).clamp(0, 1) for one in raw])[:, None]
        scores = CamConfidence(model, method=method, flip=False, percentile=0.9).score(
            torch.stack(pictures).float() / 255, [None] * 3
        )
        torch.testing.assert_close(scores, wanted.to(scores.dtype), rtol=1e-4, atol=1e-5)


def test_the_pure_functions_weigh_as_published():
    activations, gradients = torch.rand(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    cam, layer = grad_cam(activations, gradients), layer_cam(activations, gradients)
    assert cam.shape == layer.shape == (2, 1, 4, 5)
    weights = gradients[1].mean(dim=(1, 2))
    assert cam[1, 0, 2, 3] == pytest.approx(max(0, float((weights * activations[1, :, 2, 3]).sum())), abs=1e-6)
    wanted = sum(max(0, float(gradients[1, c, 2, 3])) * float(activations[1, c, 2, 3]) for c in range(3))
    assert layer[1, 0, 2, 3] == pytest.approx(wanted, abs=1e-6)


def test_a_mirrored_picture_has_the_mirrored_map_where_the_classifier_knows_no_sides():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image = as_uint8(torch.rand(1, 3, 32, 32))[0]
    with_flip, without = CamConfidence(model, flip=True), CamConfidence(model, flip=False)
    torch.testing.assert_close(with_flip(image.flip(-1), None).flip(-1), with_flip(image, None))
    torch.testing.assert_close(with_flip(image, None), without(image, None))


def test_a_batch_gives_the_maps_of_single_pictures_and_sizes_may_differ(cnn):
    pictures = as_uint8(blobs(5, seed=11)[0]) + as_uint8(torch.rand(2, 3, 40, 56))
    source = CamConfidence(cnn, batch_size=4)
    for picture, one in zip(pictures, source.maps(pictures), strict=True):
        assert one.shape == (1, *picture.shape[-2:])
        torch.testing.assert_close(source(picture, None), one, rtol=1e-4, atol=1e-4)


# --- which layer ---


def found_layer(model, size=64, **options):
    """Names of the layers whose maps a source uses."""
    source, seen = CamConfidence(model, flip=False, **options), {}
    pick = source._features

    def spy(calls, frame):
        features = pick(calls, frame)
        seen.update(features)
        return features

    source._features = spy
    source.score(torch.rand(1, 3, size, size), [None])
    return {name: tuple(feature.shape[-2:]) for name, feature in seen.items()}


def test_the_default_layer_is_the_last_of_stride_4_to_8(cnn):
    for model in (resnet18, resnet50):
        assert found_layer(model(weights=None, num_classes=CLASSES)) == {"layer2": (8, 8)}
    assert found_layer(mobilenet_v3_small(weights=None)) == {"features.3": (8, 8)}
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic")
    assert found_layer(hf.ResNetForImageClassification(config)) == {"resnet.encoder.stages.1": (8, 8)}
    assert found_layer(cnn, SIDE) == {"11": (SIDE // 4, SIDE // 4)}


def test_without_a_stride_of_4_to_8_the_last_map_is_taken():
    fine = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert found_layer(fine) == {"1": (64, 64)}
    assert set(found_layer(swin_t(weights=None, num_classes=CLASSES))) == {"permute"}


def test_layers_are_named_or_given_and_several_are_fused_by_maximum(cnn):
    image = as_uint8(blobs(1, seed=12)[0])[0]
    one, two = (CamConfidence(cnn, layer=layer, flip=False) for layer in ("5", cnn[11]))
    both = CamConfidence(cnn, layer=[cnn[5], "11"], flip=False)
    assert [source.identity()["layers"] for source in (one, two, both)] == [["5"], ["11"], ["5", "11"]]
    batch = image[None].float() / 255
    fine, coarse = one.score(batch, [None]), two.score(batch, [None])
    coarse = nnf.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(both.score(batch, [None]), torch.maximum(fine, coarse))


def test_a_model_with_residuals_and_inplace_activations_has_a_map():
    model = resnet18(weights=None, num_classes=CLASSES)
    check_confidence(CamConfidence(model)(as_uint8(torch.rand(1, 3, 64, 64))[0], None))


# --- rollout ---


def by_hand(attentions):
    rollout = np.eye(attentions[0].shape[-1])
    for attention in attentions:
        mixed = attention[0].double().mean(0).numpy() + np.eye(len(rollout))
        rollout = (mixed / mixed.sum(1, keepdims=True)) @ rollout
    return rollout


def test_rows_of_a_rollout_sum_to_one():
    attentions = [torch.randn(3, 2, 5, 5).softmax(-1) for _ in range(4)]
    rollout = attention_rollout(attentions)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(3, 5))
    np.testing.assert_allclose(rollout[0], by_hand([a[:1] for a in attentions]), atol=1e-6)
    with pytest.raises(ValueError, match="none"):
        attention_rollout([])


def expected(attentions, percentile=0.98):
    row = by_hand(attentions)[0, 1:].reshape(4, 4)
    row = row - row.min()
    return torch.from_numpy((row / np.quantile(row, percentile)).clip(0, 1)).float()


def test_a_rollout_of_torchvisions_transformer_is_that_of_a_computation_by_hand(vit):
    image = torch.rand(1, 3, 32, 32)
    tokens = vit.eval()._process_input(image)
    tokens = torch.cat([vit.class_token, tokens], dim=1) + vit.encoder.pos_embedding
    attentions = []
    for layer in vit.encoder.layers:
        query, key, _ = nnf.linear(
            layer.ln_1(tokens), layer.self_attention.in_proj_weight, layer.self_attention.in_proj_bias
        ).chunk(3, dim=-1)
        query, key = (part.reshape(1, -1, 2, 16).transpose(1, 2) for part in (query, key))
        attentions.append((query @ key.transpose(-1, -2) / 4).softmax(-1).detach())
        tokens = layer(tokens)
    scores = CamConfidence(vit, method="rollout", flip=False).score(image, [None])
    torch.testing.assert_close(scores[0, 0], expected(attentions), rtol=1e-3, atol=1e-4)
    assert scores.std() > 0.1


def test_a_rollout_of_a_model_of_transformers_is_that_of_its_own_attention(hf_vit):
    image = torch.rand(1, 3, 32, 32)
    eager = copy.deepcopy(hf_vit).eval()
    eager.set_attn_implementation("eager")
    attentions = [one.detach() for one in eager(image, output_attentions=True).attentions]
    assert hf_vit.config._attn_implementation == "sdpa"
    for model in (hf_vit, Logits(hf_vit)):
        scores = CamConfidence(model, method="rollout", flip=False, input_size=32).score(image, [None])
        torch.testing.assert_close(scores[0, 0], expected(attentions), rtol=1e-3, atol=1e-4)
        assert hf_vit.config._attn_implementation == "sdpa"


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits


def test_a_rollout_takes_pictures_of_any_size_by_the_size_that_the_model_names(vit, hf_vit):
    for model in (vit, hf_vit):
        source = CamConfidence(model, method="rollout", normalize=([0.5] * 3, [0.5] * 3))
        confidence = source(as_uint8(torch.rand(1, 3, 50, 70))[0], None)
        assert confidence.shape == (1, 50, 70)
        check_confidence(confidence)
        assert source.identity()["input_size"] == 32


def test_a_transformer_without_a_class_token_is_averaged_over_its_tokens():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.encoder, self.head = nn.Conv2d(3, 16, 8, 8), encoder, nn.Linear(16, 3)

        def forward(self, images):
            return self.head(self.encoder(self.patches(images).flatten(2).transpose(1, 2)).mean(dim=1))

    confidence = CamConfidence(Pooled(), method="rollout")(as_uint8(torch.rand(1, 3, 24, 40))[0], None)
    assert confidence.shape == (1, 24, 40)
    assert 0 < confidence.mean() < 1


# --- the classifier is left as it was ---


def state(model):
    return {
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad for parameter in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "values": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_same(before, after):
    for part in ("modes", "flags", "hooks"):
        assert before[part] == after[part], part
    assert all(a is b for a, b in zip(before["grads"], after["grads"], strict=True))
    assert all(torch.equal(value, after["values"][name]) for name, value in before["values"].items())


@pytest.mark.parametrize("method", ["layercam", "gradcam", "rollout"])
@pytest.mark.parametrize("wrong", [False, True], ids=["well", "with an error"])
def test_the_classifier_is_left_as_it_was(cnn, vit, hf_vit, method, wrong):
    for model in [vit, hf_vit] if method == "rollout" else [copy.deepcopy(cnn)]:
        model.train()
        next(model.children()).eval()  # a part of it may be frozen
        next(model.parameters()).requires_grad_(False)
        list(model.parameters())[-1].grad = torch.ones_like(list(model.parameters())[-1])
        if wrong:
            with torch.no_grad():
                list(model.parameters())[-1].fill_(torch.nan)
        before = state(model)
        source = CamConfidence(model, method=method)
        image = as_uint8(torch.rand(1, 3, SIDE, SIDE))[0]
        if wrong:
            with pytest.raises(ValueError, match="not finite"):
                source(image, None)
            after = state(model)
            before.pop("values"), after.pop("values")
            assert_same({**before, "values": {}}, {**after, "values": {}})
        else:
            source(image, None)
            assert_same(before, state(model))


def test_a_frozen_classifier_has_maps_too_and_still_trains_afterwards(cnn):
    model = copy.deepcopy(cnn).requires_grad_(False)
    image = as_uint8(blobs(1, seed=13)[0])[0]
    torch.testing.assert_close(CamConfidence(model)(image, None), CamConfidence(cnn)(image, None))
    trainable = copy.deepcopy(cnn)
    CamConfidence(trainable)(image, None)
    trainable(torch.rand(2, 3, SIDE, SIDE)).sum().backward()
    assert all(parameter.grad is not None for parameter in trainable.parameters())


def test_the_key_changes_with_the_weights_and_all_that_changes_a_map(cnn):
    model = copy.deepcopy(cnn)
    source = CamConfidence(model)
    named = CamConfidence(model, name="ema-v1")
    before, fixed = digest(source.config()), digest(named.config())
    changes = [
        {"method": "gradcam"}, {"layer": "5"}, {"normalize": ([0.5] * 3, [0.2] * 3)}, {"input_size": 32},
        {"percentile": 0.9}, {"use_labels": True}, {"flip": False}, {"falloff": 0.2}, {"edges": 5.0},
    ]  # fmt: skip
    configs = [source.config()] + [CamConfidence(model, **change).config() for change in changes]
    assert len({digest(config) for config in configs}) == len(configs)
    assert all(json.loads(json.dumps(config)) == config for config in configs)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1
    assert digest(source.config()) != before
    assert digest(named.config()) == fixed


def test_a_source_can_be_pickled_and_loaded_as_a_teacher(cnn):
    image = as_uint8(blobs(1, seed=14)[0])[0]
    source = load_teacher("cam", classifier=cnn, layer=cnn[11])
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again(image, None), source(image, None))
    assert again.config() == source.config()


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "scorecam"}, r"'layercam'.*'scorecam'"),
        ({"percentile": 0.0}, r"percentile.*0\.0"),
        ({"input_size": 0}, "input_size.*0"),
        ({"key": "label"}, "use_labels=True"),
        ({"layer": "layer9"}, r"no layer 'layer9'.*'0'"),
        ({"layer": nn.ReLU()}, "no layer ReLU"),
        ({"method": "gradcam", "layer": ["5", "8"]}, "one layer"),
        ({"method": "rollout", "use_labels": True}, "knows no classes"),
        ({"falloff": 9}, "falloff"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(cnn, options, message):
    with pytest.raises(ValueError, match=message):
        CamConfidence(cnn, **options)


def test_a_classifier_without_what_the_method_needs_is_told_what_to_use(cnn, vit, hf_vit):
    image = as_uint8(torch.rand(1, 3, 32, 32))[0]
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 2))
    for model in (mlp, vit, hf_vit):
        with pytest.raises(ValueError, match=r"rollout.*masks, boxes.*centre prior"):
            CamConfidence(model)(image, None)
    for model in (mlp, cnn):
        with pytest.raises(ValueError, match=r"vision transformer.*layercam"):
            CamConfidence(model, method="rollout")(image, None)
    with pytest.raises(ValueError, match=r"layer '15'.*\(1, 5\)|layer '14'.*\(1, 5\)"):
        CamConfidence(cnn, layer=f"{len(cnn) - 1}")(image, None)


@pytest.mark.parametrize(
    ("target", "message"),
    [(7, r"0\.\.4.*\[7\]"), (-1, r"0\.\.4.*\[-1\]"), ("cat", "integer.*'cat'"), (None, "None"), ({"mask": 3}, "key=")],
)
def test_labels_that_are_no_classes_are_refused(cnn, target, message):
    with pytest.raises(ValueError, match=message):
        CamConfidence(cnn, use_labels=True)(as_uint8(torch.rand(1, 3, SIDE, SIDE))[0], target)


def test_labels_are_read_where_they_are_said_to_be(cnn):
    source = CamConfidence(cnn, use_labels=True, key=("meta", 1))
    assert source.prompt({"meta": ["x", np.int64(3)]}) == 3
    assert CamConfidence(cnn, use_labels=True).prompt((torch.tensor(2), "trimap")) == 2
    with pytest.raises(KeyError, match="meta"):
        source.prompt({"label": 3})
    with pytest.raises(ValueError, match="give the targets"):
        source.maps([as_uint8(torch.rand(1, 3, SIDE, SIDE))[0]])


class Detached(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).detach()


def test_outputs_that_cannot_be_explained_are_refused(cnn):
    image = as_uint8(torch.rand(1, 3, SIDE, SIDE))[0]
    with pytest.raises(ValueError, match=r"\(B, C\) logits.*\(1, 2, 48, 48\)"):
        CamConfidence(nn.Conv2d(3, 2, 1))(image, None)
    with pytest.raises(ValueError, match="without gradients"):
        CamConfidence(Detached(cnn))(image, None)


def test_a_classifier_that_looks_nowhere_gives_a_map_of_zeros():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.constant_(model[0].bias, -100)
    assert (CamConfidence(model)(as_uint8(torch.rand(1, 3, 32, 32))[0], None) == 0).all()


def test_one_logit_is_explained_for_the_side_that_it_takes():
    model = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    with torch.no_grad():  # one channel speaks for red, the other against it for green
        model[0].weight.zero_()
        model[0].bias.zero_()
        model[0].weight[0, 0], model[0].weight[1, 1] = 1, 1
        model[4].weight.copy_(torch.tensor([[1.0, -1.0]]))
        model[4].bias.zero_()
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[0, :8, :8], image[1, 20:, 20:] = 255, 255  # more green than red
    green = CamConfidence(model, flip=False)(image, None)[0]
    assert green[26, 26] == 1
    assert green[2, 2] == 0
    red = CamConfidence(model, use_labels=True)(image, 1)[0]
    assert red[2, 2] == 1
    assert red[26, 26] == 0
