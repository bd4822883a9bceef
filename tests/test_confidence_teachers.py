import json
import os
import pickle
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
import transformers as hf
from torch import nn
from torchvision import tv_tensors
from torchvision.models import get_model

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.teachers import list_teachers, load_teacher
from infill_aug.confidence.teachers._shared import frame, prepare
from infill_aug.confidence.teachers.prompted import PromptedConfidence
from infill_aug.confidence.teachers.saliency import SaliencyConfidence
from infill_aug.confidence.teachers.semantic import SemanticConfidence
from infill_aug.confidence.teachers.text import TextConfidence
from infill_aug.confidence.teachers.torchvision import TorchvisionConfidence
from infill_aug.key import digest

SIDE = 64
GROUND, RED, GREEN = 0, 1, 2
FACE = [
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip",
    "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
]  # fmt: skip
NAMES = {"semantic": ("hair", "skin"), "torchvision": ("rectangle", "disc"), "text": ("red box", "green")}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def draw(count, height=SIDE, width=SIDE, seed=0):
    """A red rectangle and a green disc side by side on grey noise: pictures, and their labels."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    images = 110 + 12 * torch.randn(count, 3, height, width, generator=generator)
    labels = torch.zeros(count, height, width, dtype=torch.int64)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for i in range(count):
        high, wide = pick(height // 3, height // 2), pick(width // 4, width // 2 - 4)
        top, left = pick(0, height - high), pick(0, width // 2 - wide)
        short = min(height, width)
        radius = pick(short // 6, short // 4)
        centre_y, centre_x = pick(radius, height - radius), pick(width // 2 + radius, width - radius + 1)
        labels[i][(y >= top) & (y < top + high) & (x >= left) & (x < left + wide)] = RED
        labels[i][(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] = GREEN
        for kind, colour in ((RED, (100, -70, -70)), (GREEN, (-70, 100, -70))):
            images[i] += torch.tensor(colour)[:, None, None] * (labels[i] == kind)
        if pick(0, 2):
            images[i], labels[i] = images[i].flip(-1), labels[i].flip(-1)
    return images.clamp(0, 255).round().to(torch.uint8), labels


def fit(model, loss, steps, rate=3e-3):
    """Train until it tells red from green; ``loss`` takes normalised pictures and labels."""
    images, labels = draw(80, seed=1)
    optimiser = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    for step in range(steps):
        some = torch.arange(8) + 8 * (step % 10)
        value = loss(images[some].float() / 255, labels[some])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()


def widen(model):
    """Initial weights for narrow layers: those of transformers are for hundreds of channels."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0, 1)
            elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                ways = len(module.weight) if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
                module.weight.normal_(0, ways**-0.5)


def sized(logits):
    return nnf.interpolate(logits, size=(SIDE, SIDE), mode="bilinear")


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segformer")
    model = hf.SegformerForSemanticSegmentation(segformer_config())
    face = torch.tensor([FACE.index("background"), FACE.index("hair"), FACE.index("skin")])
    fit(model, lambda x, y: nnf.cross_entropy(sized(model((x - MEAN) / STD).logits), face[y]), 100)
    model.save_pretrained(folder)
    hf.SegformerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


def segformer_config():
    return hf.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[16, 16, 32, 32], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=32,
        drop_path_rate=0.0, classifier_dropout_prob=0.0,
        id2label=dict(enumerate(FACE)), label2id={name: i for i, name in enumerate(FACE)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def lraspp():
    torch.manual_seed(0)
    model = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.2  # its running statistics must catch up within few steps
    fit(model, lambda x, y: nnf.cross_entropy(model((x - MEAN) / STD)["out"], y), 36)
    return model  # in training mode, as a user may hand it over


class Salient(nn.Module):
    """Coarse and fine logits, as BiRefNet returns them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 1, 3, 1, 1))

    def forward(self, images):
        fine = self.body(images)
        return [torch.full_like(fine, -9.0)[..., ::2, ::2], fine]


@pytest.fixture(scope="module")
def salient():
    torch.manual_seed(0)
    model = Salient()

    def loss(x, y):
        return nnf.binary_cross_entropy_with_logits(sized(model((x - MEAN) / STD)[-1])[:, 0], (y != GROUND).float())

    fit(model, loss, 120, 1e-2)
    return model


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clipseg")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = hf.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = words.index("<|endoftext|>")
    model = hf.CLIPSegForImageSegmentation(
        hf.CLIPSegConfig(
            text_config={
                **sizes, "vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": end - 1,
                "eos_token_id": end, "pad_token_id": end,
            },
            vision_config={**sizes, "image_size": SIDE, "patch_size": 8},
            projection_dim=16, extract_layers=[0, 1], reduce_dim=16, decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
        )
    )  # fmt: skip
    widen(model)
    tokens = tokenizer(list(NAMES["text"]), padding=True, return_tensors="pt")

    def loss(x, y):
        texts = {key: tokens[key].repeat(len(x), 1) for key in ("input_ids", "attention_mask")}
        logits = model(pixel_values=((x - 0.5) / 0.5).repeat_interleave(2, dim=0), **texts).logits
        wanted = torch.stack([y == RED, y == GREEN], dim=1).flatten(0, 1)
        return nnf.binary_cross_entropy_with_logits(logits, wanted.float())

    fit(model, loss, 200, 1e-2)
    model.save_pretrained(folder)
    return str(folder)


def fit_boxes(model, steps=260, rate=3e-3):
    """Train a model of the SAM family to fill the box that prompts it."""
    widen(model.mask_decoder)
    with torch.no_grad():  # the frequencies of trained models; random ones are far too high for so small a model
        positions = model.shared_image_embedding.positional_embedding
        positions.normal_(0, 0.5)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(positions)
    optimiser = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    for _ in range(steps):
        middles, halves = torch.rand(1, 16, 2) * SIDE, SIDE * (0.12 + 0.22 * torch.rand(1, 16, 2))
        boxes = torch.cat([middles - halves, middles + halves], dim=-1).clamp(0, SIDE)
        picture = ((torch.rand(1, 3, 1, 1) - MEAN) / STD).repeat(1, 1, SIDE, SIDE)
        high, wide = torch.randint(20, SIDE + 1, (2,)).tolist()
        picture[..., high:, :] = 0  # as pictures are padded
        picture[..., wide:] = 0
        logits = model(pixel_values=picture, input_boxes=boxes).pred_masks
        at = (torch.arange(logits.shape[-1]) + 0.5) * SIDE / logits.shape[-1]
        left, top, right, bottom = boxes[..., None].unbind(2)
        inside = ((at >= top) & (at < bottom))[..., :, None] & ((at >= left) & (at < right))[..., None, :]
        loss = nnf.binary_cross_entropy_with_logits(logits, inside[:, :, None].float().expand_as(logits))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    with torch.no_grad():  # of its three masks only the middle one is left of any use, and it says so
        decoder = model.mask_decoder
        for useless in (1, 3):
            decoder.output_hypernetworks_mlps[useless].proj_out.weight.zero_()
            decoder.output_hypernetworks_mlps[useless].proj_out.bias.zero_()
        decoder.iou_prediction_head.proj_out.weight.zero_()
        decoder.iou_prediction_head.proj_out.bias.copy_(torch.tensor([0.9, 0.2, 0.6, 0.1]))


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam")
    common = {"hidden_size": 32, "image_size": SIDE, "patch_size": 8}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 64}
    model = hf.SamModel(
        hf.SamConfig(
            vision_config={
                **common, **heads, "output_channels": 32, "window_size": 4, "global_attn_indexes": [0],
                "num_pos_feats": 16,
            },
            prompt_encoder_config={**common, "mask_input_channels": 4},
            mask_decoder_config={
                **heads, "num_hidden_layers": 2, "hidden_size": 32, "iou_head_depth": 2, "iou_head_hidden_dim": 32,
            },
        )
    )  # fmt: skip
    fit_boxes(model)
    model.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    hf.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam2")
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [SIDE, SIDE],
        "patch_kernel_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 24, 32],
        "num_attention_heads_per_stage": [1, 1, 1, 2], "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    model = hf.Sam2Model(
        hf.Sam2Config(
            vision_config={
                "backbone_config": backbone, "backbone_channel_list": [32, 24, 16, 8], "fpn_hidden_size": 32,
                "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            },
            prompt_encoder_config={
                "hidden_size": 32, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4,
            },
            mask_decoder_config={
                "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_depth": 2,
                "iou_head_hidden_dim": 32,
            },
        )
    )  # fmt: skip
    fit_boxes(model)
    model.save_pretrained(folder)
    hf.Sam2ImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(request):
    """A teacher of any kind, on its tiny model."""

    def build(kind, **options):
        if kind == "torchvision":
            options = {"model": request.getfixturevalue("lraspp"), "classes": ["ground", "rectangle", "disc"]} | options
            return TorchvisionConfidence(**{"class_weights": {"rectangle": 1.0}, "input_size": SIDE, **options})
        if kind == "saliency":
            return SaliencyConfidence(model=request.getfixturevalue("salient"), **{"input_size": SIDE, **options})
        if kind in ("sam", "sam2"):
            return PromptedConfidence(request.getfixturevalue(kind), **options)
        cls, name = {"semantic": (SemanticConfidence, "segformer"), "text": (TextConfidence, "clipseg")}[kind]
        return cls(request.getfixturevalue(name), **{"class_weights": {NAMES[kind][0]: 1.0}, **options})

    return build


KINDS = ["semantic", "torchvision", "saliency", "text", "sam", "sam2"]


def assert_finds(maps, wanted, high=0.65, low=0.2):
    inside = torch.cat([one[0][where] for one, where in zip(maps, wanted, strict=True)]).mean()
    outside = torch.cat([one[0][~where] for one, where in zip(maps, wanted, strict=True)]).mean()
    assert inside > high, f"{inside:.3f} inside, {outside:.3f} outside"
    assert outside < low, f"{inside:.3f} inside, {outside:.3f} outside"


# --- the maps ---


@pytest.mark.parametrize("size", [(64, 64), (60, 90), (150, 110)])
@pytest.mark.parametrize("kind", ["semantic", "torchvision", "text"])
def test_confidence_is_high_where_the_weighted_class_is_and_low_on_the_others(make, kind, size):
    images, labels = draw(6, *size, seed=2)
    red, green = NAMES[kind]
    reds, greens = (make(kind, class_weights={name: 1.0}).maps(list(images)) for name in (red, green))
    assert_finds(reds, labels == RED, high=0.5)
    assert_finds(greens, labels == GREEN, high=0.5)
    for one, r, g in zip(
        make(kind, class_weights={red: 1.0, green: 0.5}).maps(list(images)), reds, greens, strict=True
    ):
        if kind != "text":
            assert torch.allclose(one, (r + g / 2).clamp(0, 1), atol=1e-5)
        elif size == (SIDE, SIDE):  # texts are joined before maps are resized: equal only where they are not
            assert torch.allclose(one, torch.maximum(r, g / 2), atol=1e-5)


def test_saliency_is_high_on_objects_and_reads_the_finest_of_several_outputs(make):
    images, labels = draw(6, 48, 96, seed=2)
    assert_finds(make("saliency").maps(list(images)), labels != GROUND)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
@pytest.mark.parametrize("size", [(64, 64), (40, 90), (200, 120)])
def test_a_box_makes_confidence_high_in_it_and_low_elsewhere_in_pictures_of_any_shape(make, kind, size):
    height, width = size
    images = list(torch.randint(0, 256, (4, 3, 1, 1), dtype=torch.uint8).expand(4, 3, height, width))
    shares = torch.tensor([[0.0, 0.2, 0.4, 0.9], [0.5, 0.2, 0.9, 0.8], [0.2, 0.0, 0.8, 0.6], [0.2, 0.4, 0.8, 1.0]])
    boxes = (shares * torch.tensor([width, height, width, height])).round()
    inside = torch.zeros(4, height, width, dtype=torch.bool)
    for one, (left, top, right, bottom) in zip(inside, boxes.int().tolist(), strict=True):
        one[top:bottom, left:right] = True
    source = make(kind)
    assert_finds(source.maps(images, [{"boxes": box[None]} for box in boxes]), inside, high=0.5, low=0.25)
    # Two boxes of a picture are two objects: together they are the union of what each is alone.
    alone = source.maps(images[:1] * 2, [{"boxes": boxes[:1]}, {"boxes": boxes[1:2]}])
    both = source(images[0], {"boxes": boxes[:2]})
    assert torch.allclose(both, torch.maximum(*alone), atol=1e-5)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
@pytest.mark.parametrize("prompts", ["boxes", "points"])
def test_prompted_maps_are_those_of_the_models_own_processor(make, request, kind, prompts):
    image = draw(1, 40, 90, seed=3)[0][0]
    values = {"boxes": [[5.0, 4.0, 40.0, 30.0], [50.0, 8.0, 85.0, 36.0]], "points": [[20.0, 10.0], [70.0, 30.0]]}[
        prompts
    ]
    folder = request.getfixturevalue(kind)
    processor = getattr(hf, {"sam": "SamProcessor", "sam2": "Sam2Processor"}[kind])(
        hf.AutoImageProcessor.from_pretrained(folder)
    )
    asked = {"input_boxes": [values]} if prompts == "boxes" else {"input_points": [[[v] for v in values]]}
    if kind == "sam2" and prompts == "points":
        asked["input_labels"] = [[[1], [1]]]
    inputs = processor(images=image, return_tensors="pt", **asked)
    sizes = [inputs.pop("original_sizes")] + ([inputs.pop("reshaped_input_sizes")] if kind == "sam" else [])
    with torch.no_grad():
        output = hf.AutoModelForMaskGeneration.from_pretrained(folder).eval()(**inputs)
    if kind == "sam":
        sizes.append(False)
        masks = processor.image_processor.post_process_masks(
            output.pred_masks, *sizes[:2], binarize=False, pad_size={"height": SIDE, "width": SIDE}
        )[0]
    else:
        masks = processor.post_process_masks(output.pred_masks, *sizes, binarize=False)[0]
    best = output.iou_scores[0].argmax(dim=-1)
    wanted = masks[torch.arange(2), best].amax(dim=0, keepdim=True).sigmoid()
    assert wanted.max() - wanted.min() > 0.3  # a map that says something, or the comparison would not
    # Their pictures are rounded to uint8 after the resize; ours are not.
    assert torch.allclose(make(kind)(image, {prompts: values}), wanted, atol=0.06)


@pytest.mark.parametrize("kind", ["semantic", "text", "sam", "sam2"])
def test_pictures_are_prepared_as_the_checkpoints_own_processor_does(request, kind):
    folder = request.getfixturevalue({"semantic": "segformer", "text": "clipseg"}.get(kind, kind))
    image = draw(1, 150, 90, seed=4)[0][0]
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    wanted = processor(image, return_tensors="pt")["pixel_values"]
    found = prepare(image[None].float() / 255, processor.to_dict())
    wanted = wanted[..., : found.shape[-2], : found.shape[-1]]
    assert found.shape[-2:] == frame(150, 90, processor.to_dict()["size"])
    assert torch.allclose(found, wanted, atol=1.1 / 255 / 0.224)  # they round to uint8


def test_channel_order_and_scale_of_a_processor_are_kept():
    image = torch.rand(1, 3, 4, 5)
    plain = {"do_resize": False, "do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 127.5}
    assert torch.allclose(prepare(image, plain), image * 2)
    assert torch.allclose(prepare(image, plain | {"do_flip_channel_order": True}), image.flip(1) * 2)
    assert torch.allclose(prepare(image, plain | {"do_rescale": False}), image * 255)


@pytest.mark.parametrize(
    ("picture", "size", "wanted"),
    [
        ((60, 80), {"height": 32, "width": 48}, (32, 48)),
        ((60, 80), {"shortest_edge": 30}, (30, 40)),
        ((60, 80), {"longest_edge": 40}, (30, 40)),
        ((60, 240), {"shortest_edge": 60, "longest_edge": 120}, (32, 120)),
        ((1, 3000), {"shortest_edge": 520}, (520, 2080)),
        ((3000, 1), {"longest_edge": 1024}, (1024, 1)),
        ((1, 1), {"shortest_edge": 520}, (520, 520)),
    ],
)
def test_no_picture_is_looked_at_in_a_size_that_is_out_of_proportion(picture, size, wanted):
    assert frame(*picture, size) == wanted


def targets_for(images):
    """A box, two points or nothing for each picture."""
    found = []
    for i, image in enumerate(images):
        height, width = image.shape[-2:]
        box, point = [[0.1 * width, 0.2 * height, 0.7 * width, 0.9 * height]], [[0.3 * width, 0.5 * height]] * 2
        found.append([{"boxes": box}, {"points": point}, {"boxes": []}][i % 3])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_tiny_and_grey_pictures_have_the_maps_that_each_has_alone(make, kind):
    images = [*draw(3, 40, 56, seed=5)[0], *draw(3, 64, 64, seed=6)[0]]
    images += [
        torch.full((3, *size), value, dtype=torch.uint8) for size in ((1, 1), (1, 90), (90, 1)) for value in (0, 128)
    ]
    images.append(draw(1, 40, 56, seed=7)[0][0].float().mean(0, keepdim=True).to(torch.uint8).expand(3, -1, -1))
    targets = targets_for(images)
    source = make(kind, batch_size=4)
    maps = source.maps(images, targets)
    for image, target, one in zip(images, targets, maps, strict=True):
        assert one.shape == (1, *image.shape[-2:])
        assert one.min() >= 0
        assert one.max() <= 1
        assert torch.allclose(source(image, target), one, atol=1e-5)
    assert len({float(one.mean()) for one in maps}) > 6


@pytest.mark.parametrize("kind", KINDS)
def test_falloff_and_edges_grade_the_maps_of_every_teacher(make, kind):
    image, target = draw(1, seed=8)[0][0], {"boxes": [[8.0, 8.0, 30.0, 30.0]]}
    plain, graded = make(kind)(image, target), make(kind, falloff=0.3, edges=4.0)(image, target)
    assert (graded >= plain - 1e-6).all()
    assert graded.mean() > plain.mean() + 0.02


# --- what a store knows them by ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_teacher_has_the_same_identity_before_and_after_it_is_used(make, kind):
    source = make(kind)
    before = source.config()
    assert digest(before) == digest(make(kind).config())
    source(draw(1)[0][0], {"boxes": [[1.0, 2.0, 30.0, 40.0]]})
    assert source.config() == before


def test_identity_names_checkpoint_revision_and_options_without_reading_anything():
    weights = {"hair": 1.0, "skin": 0.5}
    sources = [
        SemanticConfidence("no/such", class_weights=weights),
        SemanticConfidence("no/such", class_weights=weights, revision="abc"),
        SemanticConfidence("no/such", class_weights={"hair": 1.0, "skin": 0.6}),
        SemanticConfidence("no/such", class_weights=weights, input_size=512),
        SemanticConfidence("no/other", class_weights=weights),
        TextConfidence("no/such", class_weights=weights),
        TextConfidence("no/such", class_weights=weights, revision="abc"),
        PromptedConfidence("no/such"),
        PromptedConfidence("no/such", revision="abc"),
        SaliencyConfidence("no/such", trust_remote_code=True),
        SaliencyConfidence("no/such", trust_remote_code=True, revision="abc"),
        SaliencyConfidence("no/such", trust_remote_code=True, input_size=512),
        TorchvisionConfidence(class_weights={"dog": 1.0}),
        TorchvisionConfidence(class_weights={"cat": 1.0}),
        TorchvisionConfidence("fcn_resnet50", class_weights={"dog": 1.0}),
    ]
    assert len({digest(source.config()) for source in sources}) == len(sources)
    assert sources[1].identity() == {
        "checkpoint": "no/such", "revision": "abc", "class_weights": weights, "input_size": None,
    }  # fmt: skip
    assert sources[12].identity()["weights"] == "DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1"


def test_a_folder_is_known_by_its_content_and_not_by_its_path(segformer, tmp_path):
    def identity(folder):
        return SemanticConfidence(str(folder), class_weights={"hair": 1.0}).identity()

    copied = tmp_path / "copied"
    shutil.copytree(segformer, copied)
    assert identity(copied) == identity(segformer)
    (copied / "README.md").write_text("notes")
    assert identity(copied) == identity(segformer)
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(bytes(weights))
    assert identity(copied) != identity(segformer)


def test_a_module_is_known_by_its_weights_and_class_names(lraspp, salient, make):
    other = pickle.loads(pickle.dumps(salient))
    with torch.no_grad():
        other.body[0].weight[0, 0, 0, 0] += 1e-3
    assert SaliencyConfidence(model=other, input_size=SIDE).identity() != make("saliency").identity()
    swapped = make("torchvision", classes=["ground", "disc", "rectangle"])
    assert swapped.identity() != make("torchvision").identity()


# --- loading ---


@pytest.mark.parametrize("kind", ["semantic", "text", "sam"])
def test_weights_are_read_when_the_first_picture_is_scored_and_only_then(make, request, kind, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(request.getfixturevalue({"semantic": "segformer", "text": "clipseg"}.get(kind, kind)), folder)
    weights = (folder / "model.safetensors").rename(tmp_path / "away")
    image, target = draw(1)[0][0], {"boxes": [[1.0, 2.0, 30.0, 40.0]]}
    cls = {"semantic": SemanticConfidence, "text": TextConfidence, "sam": PromptedConfidence}[kind]
    options = {} if kind == "sam" else {"class_weights": {NAMES[kind][0]: 1.0}}
    source = cls(str(folder), **options)
    source.config()
    with pytest.raises(OSError, match="safetensors"):
        source(image, target)
    weights.rename(folder / "model.safetensors")
    first = source(image, target)
    shutil.rmtree(folder)
    assert torch.allclose(source(image, target), first, atol=1e-5)
    assert torch.allclose(first, make(kind)(image, target), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_used_teacher_pickles_and_gives_the_same_maps(make, kind):
    image, target = draw(1, seed=9)[0][0], {"boxes": [[1.0, 2.0, 30.0, 40.0]]}
    source = make(kind)
    wanted = source(image, target)
    again = pickle.loads(pickle.dumps(source))
    assert torch.allclose(again(image, target), wanted, atol=1e-5)
    assert again.config() == source.config()


def test_a_model_that_was_loaded_in_inference_mode_can_be_differentiated_through_later(make, tmp_path):
    model = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=21)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    options = {"class_weights": {"dog": 1.0}, "state_dict": tmp_path / "weights.pth", "input_size": SIDE}
    image = draw(1)[0][0]
    for source in (TorchvisionConfidence("lraspp_mobilenet_v3_large", **options), make("semantic")):
        with torch.inference_mode():  # as an evaluation loop may be
            source.maps([image])
        pixels = (image[None].float() / 255).requires_grad_()
        source.score(pixels, [None]).sum().backward()
        assert pixels.grad.abs().sum() > 0


def test_a_module_stays_as_the_user_left_it_and_runs_in_evaluation_mode(lraspp, make):
    image = draw(1)[0][0]
    lraspp.train()
    before = {name: value.clone() for name, value in lraspp.state_dict().items()}
    source = make("torchvision")
    assert torch.equal(source(image, None), source(image, None))
    assert lraspp.training
    assert all(p.requires_grad for p in lraspp.parameters())
    assert all(torch.equal(value, before[name]) for name, value in lraspp.state_dict().items())


def test_half_precision_weights_are_run_in_float32_and_keep_their_identity(salient, make):
    half = SaliencyConfidence(model=pickle.loads(pickle.dumps(salient)).half(), input_size=SIDE)
    image, before = draw(1)[0][0], half.identity()
    assert torch.allclose(half(image, None), make("saliency")(image, None), atol=5e-3)
    assert half.identity() == before


# --- classes ---


def test_a_class_that_a_checkpoint_does_not_have_is_refused_with_all_that_it_has(segformer):
    source = SemanticConfidence(segformer, class_weights={"hair": 1.0, "tail": 1.0, "wing": 0.5})
    with pytest.raises(ValueError, match=r"\['tail', 'wing'\].*'background', 'skin', .*'cloth'\]"):
        source(draw(1)[0][0], None)
    assert source.classes == FACE


def test_a_class_that_torchvision_does_not_have_is_refused_before_any_download():
    with pytest.raises(ValueError, match=r"\['hog'\].*'__background__', 'aeroplane', .*'tvmonitor'\]"):
        TorchvisionConfidence(class_weights={"dog": 1.0, "hog": 1.0})


@pytest.mark.parametrize("weights", [{}, {"hair": 1.5}, {"hair": -0.1}, {"hair": float("nan")}, {"hair": "1"}])
@pytest.mark.parametrize("cls", [SemanticConfidence, TextConfidence])
def test_class_weights_that_are_none_or_out_of_range_are_refused(cls, weights):
    with pytest.raises(ValueError, match=r"class_weights is empty|'hair' must lie in 0\.\.1"):
        cls("no/such", class_weights=weights)


def test_a_checkpoint_without_its_head_is_refused_and_not_filled_with_random_weights(tmp_path):
    hf.SegformerModel(segformer_config()).save_pretrained(tmp_path)
    hf.SegformerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights of SegformerForSemanticSegmentation.*decode_head"):
        SemanticConfidence(str(tmp_path), class_weights={"hair": 1.0})(draw(1)[0][0], None)


def test_queries_of_mask2former_are_put_together_to_classes(tmp_path):
    config = hf.Mask2FormerConfig(
        backbone_config=hf.SwinConfig(
            embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, image_size=SIDE,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, dim_feedforward=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=5,
        id2label={0: "road", 1: "car", 2: "sky"}, label2id={"road": 0, "car": 1, "sky": 2},
    )  # fmt: skip
    model = hf.Mask2FormerForUniversalSegmentation(config)
    image = draw(1, 48, 80)[0][0]
    found = {}
    for said in (1, 3):  # every query says "car", then every one says "nothing"
        with torch.no_grad():
            model.class_predictor.weight.zero_()
            model.class_predictor.bias.copy_(12.0 * nnf.one_hot(torch.tensor(said), 4))
        model.save_pretrained(tmp_path)
        hf.Mask2FormerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path)
        for name in ("road", "car", "sky"):
            found[said, name] = SemanticConfidence(str(tmp_path), class_weights={name: 1.0})(image, None)
    assert found[1, "car"].mean() > 0.5
    assert max(float(one.max()) for key, one in found.items() if key != (1, "car")) < 0.01
    # The car's share is the sum of all queries' masks, at most 1.
    prepared = prepare(image[None] / 255, hf.Mask2FormerImageProcessor(size={"height": SIDE, "width": SIDE}).to_dict())
    with torch.no_grad():
        masks = model.eval()(pixel_values=prepared).masks_queries_logits.sigmoid().sum(dim=1, keepdim=True).clamp(max=1)
    wanted = nnf.interpolate(masks, size=(48, 80), mode="bilinear")[0]
    assert torch.allclose(found[1, "car"], wanted, atol=1e-3)


def test_segmenters_that_need_more_than_a_picture_are_refused(sam):
    with pytest.raises(ValueError, match="SamConfig"):
        SemanticConfidence(sam, class_weights={"LABEL_0": 1.0})(draw(1)[0][0], None)


# --- torchvision ---


def test_a_named_model_takes_weights_from_a_file_and_from_the_hubs_cache(tmp_path):
    torch.manual_seed(5)
    model = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=21).eval()
    saved = tmp_path / "weights.pth"
    torch.save(model.state_dict() | {"aux_classifier.0.weight": torch.zeros(1)}, saved)
    image, weights = draw(1)[0][0], {"dog": 1.0, "person": 1.0}
    source = TorchvisionConfidence(
        "lraspp_mobilenet_v3_large", class_weights=weights, state_dict=saved, input_size=SIDE
    )
    with torch.no_grad():
        shares = model((image[None].float() / 255 - MEAN) / STD)["out"].softmax(dim=1)
    categories = source.classes
    wanted = shares[:, [categories.index("dog"), categories.index("person")]].sum(dim=1)
    assert torch.allclose(source(image, None), wanted, atol=1e-5)
    assert source.identity()["weights"] not in (str(saved), "DEFAULT")
    # By name alone: the file lies where torch.hub would have put it.
    hub = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    try:
        cached = tmp_path / "checkpoints" / source._weights.url.rpartition("/")[2]
        cached.parent.mkdir()
        torch.save(model.state_dict(), cached)
        named = TorchvisionConfidence("lraspp_mobilenet_v3_large", class_weights=weights, input_size=SIDE)
        assert torch.allclose(named(image, None), wanted, atol=1e-5)
    finally:
        torch.hub.set_dir(hub)


def test_weights_that_cannot_be_downloaded_are_asked_for_as_a_file(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = TorchvisionConfidence("lraspp_mobilenet_v3_large", class_weights={"dog": 1.0})
    with pytest.raises(OSError, match=r"https://download.*\.pth.*state_dict=PATH"):
        source(draw(1)[0][0], None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "unet"}, ValueError, "no segmenter 'unet'.*lraspp_mobilenet_v3_large"),
        ({"model": nn.Conv2d(3, 2, 1)}, ValueError, "classes must name the channels"),
        ({"classes": ["dog"]}, ValueError, "classes must name the channels"),
        ({"state_dict": "missing.pth"}, FileNotFoundError, "missing.pth"),
        ({"model": nn.Conv2d(3, 1, 1), "classes": ["dog"], "state_dict": "x"}, ValueError, "named model"),
        ({"input_size": 0}, ValueError, "input_size must be 1 or more, got 0"),
    ],
)
def test_arguments_of_torchvision_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        TorchvisionConfidence(**{"class_weights": {"dog": 1.0}, **options})


def test_a_module_with_other_channels_than_class_names_is_refused():
    source = TorchvisionConfidence(nn.Conv2d(3, 4, 1), classes=["a", "b"], class_weights={"a": 1.0}, input_size=8)
    with pytest.raises(ValueError, match="4 classes, but 2 are named"):
        source(draw(1)[0][0], None)


# --- saliency ---


@pytest.mark.parametrize(
    "wrap",
    [lambda y: y, lambda y: y[:, 0], lambda y: types.SimpleNamespace(logits=y), lambda y: {"out": y}, lambda y: (y, y)],
    ids=["tensor", "tensor without a channel", "logits", "out", "tuple"],
)
def test_a_saliency_module_may_return_its_logits_in_any_usual_way(wrap):
    class Red(nn.Module):
        def forward(self, images):
            return wrap(20 * (images[:, :1] - images[:, 1:2]) - 10)

    images, labels = draw(3, seed=3)
    source = SaliencyConfidence(model=Red(), mean=(0, 0, 0), std=(1, 1, 1), input_size=SIDE)
    assert_finds(source.maps(list(images)), labels == RED)


def test_a_checkpoint_with_its_own_code_runs_only_if_it_is_trusted(tmp_path, monkeypatch):
    folder = tmp_path / "salient"
    folder.mkdir()
    (folder / "modeling_salient.py").write_text(
        "import torch\n"
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class SalientConfig(PretrainedConfig):\n"
        "    model_type = 'salient'\n"
        "class SalientModel(PreTrainedModel):\n"
        "    config_class = SalientConfig\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.head = torch.nn.Conv2d(3, 1, 1)\n"
        "        self.post_init()\n"
        "    def forward(self, images):\n"
        "        return [self.head(images)]\n"
    )
    auto = {
        "AutoConfig": "modeling_salient.SalientConfig",
        "AutoModelForImageSegmentation": "modeling_salient.SalientModel",
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "salient", "auto_map": auto}))
    red = {"head.weight": torch.tensor([5.0, -5.0, 0.0]).reshape(1, 3, 1, 1), "head.bias": torch.tensor([-3.0])}
    torch.save({name: value.half() for name, value in red.items()}, folder / "pytorch_model.bin")
    # Its code is copied to a folder for such modules, which the tests must not leave behind.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match=r"Python code.*trust_remote_code=True"):
        SaliencyConfidence(str(folder))
    images, labels = draw(3, seed=3)
    source = SaliencyConfidence(str(folder), trust_remote_code=True, input_size=SIDE)
    assert_finds(source.maps(list(images)), labels == RED)


# --- prompts ---


@pytest.mark.parametrize(
    ("target", "options", "wanted"),
    [
        ({"boxes": torch.tensor([[1, 2, 5, 8]])}, {}, {"boxes": [[1.0, 2.0, 5.0, 8.0]]}),
        ({"boxes": np.array([[1, 2, 4, 6]])}, {"format": "xywh"}, {"boxes": [[1.0, 2.0, 5.0, 8.0]]}),
        ({"boxes": [[3, 5, 4, 6]]}, {"format": "cxcywh"}, {"boxes": [[1.0, 2.0, 5.0, 8.0]]}),
        (
            (3, {"any": tv_tensors.BoundingBoxes([[1, 2, 4, 6]], format="XYWH", canvas_size=(9, 9))}),
            {},
            {"boxes": [[1.0, 2.0, 5.0, 8.0]]},
        ),
        ({"points": [[4, 5], [6, 7]], "label": 1}, {}, {"points": [[4.0, 5.0], [6.0, 7.0]]}),
        ({"points": [[4, 5]], "boxes": [[1, 2, 5, 8]]}, {}, {"boxes": [[1.0, 2.0, 5.0, 8.0]]}),
        ({"clicks": [4, 5]}, {"key": "clicks"}, {"points": [[4.0, 5.0]]}),
        (({"at": [[1, 2, 5, 8]]},), {"key": (0, "at")}, {"boxes": [[1.0, 2.0, 5.0, 8.0]]}),
        (torch.tensor([[1, 2, 5, 8]]), {}, {"boxes": [[1.0, 2.0, 5.0, 8.0]]}),
        ({"boxes": torch.zeros(0, 4)}, {}, {}),
        ({"boxes": []}, {}, {}),
        ({"boxes": None}, {}, {}),
        ({"points": np.zeros((0, 2))}, {}, {}),
    ],
)
def test_boxes_and_points_are_read_as_json_from_wherever_they_are(target, options, wanted):
    source = PromptedConfidence("no/such", **options)
    assert source.prompt(target) == wanted
    assert json.loads(json.dumps(source.prompt(target))) == wanted
    assert source.reads_target


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ({"label": 3}, {}, KeyError, "no boxes and no points.*label.*key="),
        (None, {}, KeyError, "no boxes and no points"),
        (3, {}, ValueError, r"\(N, 4\) or points \(N, 2\), got int: 3"),
        ({"boxes": [[1, 2, 3]]}, {}, ValueError, r"\(N, 4\).*\[\[1, 2, 3\]\]"),
        ({"boxes": "cat"}, {}, ValueError, r"\(N, 4\).*str: 'cat'"),
        ({"boxes": [[1, 2, float("nan"), 4]]}, {}, ValueError, "finite"),
        ({"boxes": []}, {"key": "objects"}, KeyError, "objects.*boxes"),
    ],
)
def test_targets_without_readable_prompts_are_refused_by_what_they_are(target, options, error, message):
    with pytest.raises(error, match=message):
        PromptedConfidence("no/such", **options).prompt(target)


def test_a_picture_without_prompts_is_protected_everywhere_and_costs_no_model(make):
    images = list(draw(3)[0])
    maps = make("sam").maps(images, [{"boxes": []}, {"boxes": [[5, 5, 30, 30]]}, {"points": []}])
    assert (maps[0] == 1).all()
    assert (maps[2] == 1).all()
    assert maps[1].mean() < 0.8
    nothing = PromptedConfidence("no/such").maps(images, [{"boxes": []}] * 3)
    assert all((one == 1).all() for one in nothing)


def test_many_prompts_go_through_the_model_in_parts_with_the_same_result(make):
    image = draw(1)[0][0]
    corners = torch.rand(7, 2) * 30
    target = {"boxes": torch.cat([corners, corners + 20], dim=1)}
    assert torch.allclose(make("sam", batch_size=2)(image, target), make("sam")(image, target), atol=1e-5)


def test_a_prompted_teacher_without_targets_says_so(make):
    with pytest.raises(ValueError, match="give the targets"):
        make("sam").maps([draw(1)[0][0]])


def test_a_checkpoint_that_takes_no_prompts_is_refused(segformer):
    with pytest.raises(ValueError, match="SegformerConfig"):
        PromptedConfidence(segformer)(draw(1)[0][0], {"boxes": [[1, 2, 3, 4]]})
    with pytest.raises(ValueError, match="xyxy, xywh or cxcywh, got 'yxyx'"):
        PromptedConfidence("no/such", format="yxyx")


# --- texts ---


def test_several_texts_are_the_best_of_what_each_is_alone_whatever_their_lengths(make):
    image = draw(1, seed=4)[0][0]
    red, green = NAMES["text"]
    both = make("text", class_weights={red: 0.8, green: 1.0})(image, None)
    alone = make("text", class_weights={red: 0.8})(image, None), make("text", class_weights={green: 1.0})(image, None)
    assert torch.allclose(both, torch.maximum(*alone), atol=1e-5)


def test_texts_that_the_model_cannot_read_are_refused(make):
    with pytest.raises(ValueError, match=r"at most 16 tokens.*abcdefghijklmnopq"):
        make("text", class_weights={"abcdefghijklmnopq": 1.0})(draw(1)[0][0], None)
    with pytest.raises(ValueError, match="empty text"):
        make("text", class_weights={"red box": 1.0, " ": 1.0})


# --- by name ---


class Own(NetworkConfidence):
    """A teacher of the user's, with an option of its own."""

    def __init__(self, level=0.5, **grading):
        super().__init__(**grading)
        self.level = level

    def score(self, images, prompts):
        return torch.full((len(images), 1, 1, 1), self.level)

    def identity(self):
        return {"level": self.level}


def test_teachers_are_made_by_name_and_from_the_users_own_module(segformer):
    assert {"torchvision", "semantic", "saliency", "prompted", "text", "cam", "grabcut"} == set(list_teachers())
    made = load_teacher("semantic", class_weights={"hair": 1.0}, checkpoint=segformer, falloff=0.1, batch_size=2)
    assert isinstance(made, SemanticConfidence)
    assert (made.falloff, made.batch_size) == (0.1, 2)
    own = load_teacher(f"{__name__}:Own", level=0.25, class_weights={})
    assert (own(draw(1)[0][0], None) == 0.25).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sematic", {}, "unknown teacher 'sematic'.*'semantic'.*package.module:Class"),
        (
            "semantic",
            {"class_weights": {"a": 1.0}, "chekpoint": "x"},
            r"no options \['chekpoint'\].*'checkpoint'.*'falloff'",
        ),
        ("semantic", {"class_weights": {"a": 1.0}}, r"needs the options \['checkpoint'\]"),
        ("torchvision", {}, r"needs the options \['class_weights'\]"),
        ("text", {"class_weights": {}}, r"needs the options \['class_weights'\]"),
        ("saliency", {"class_weights": {"dog": 1.0}}, r"knows no classes.*\['dog'\]"),
        ("prompted", {"class_weights": {"dog": 1.0}}, r"knows no classes.*\['dog'\]"),
        (f"{__name__}:Own", {"class_weights": {"dog": 1.0}}, r"knows no classes"),
        (f"{__name__}:Own", {"deep": 1}, r"no options \['deep'\].*'batch_size'.*'level'"),
        (f"{__name__}:Salient", {}, "subclass of NetworkConfidence"),
        (f"{__name__}:Missing", {}, "subclass of NetworkConfidence"),
    ],
)
def test_names_and_options_that_do_not_fit_are_refused_with_those_that_do(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_teacher(name, **options)


def test_nothing_heavy_is_imported_before_a_picture_is_scored():
    code = (
        "import sys; from infill_aug.confidence.teachers import load_teacher\n"
        "assert not [m for m in sys.modules if m.startswith('infill_aug.confidence.teachers.')]\n"
        "w = {'dog': 1.0}\n"
        "made = [load_teacher(name, class_weights=w) for name in ('torchvision', 'text')]\n"
        "made += [load_teacher('semantic', checkpoint='a/b', class_weights=w), load_teacher('prompted')]\n"
        "made += [load_teacher('saliency', trust_remote_code=True)]\n"
        "[m.config() for m in made]\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    source = SemanticConfidence("no/such", class_weights={"hair": 1.0})
    with pytest.raises(ImportError, match=r"pip install 'infill-aug\[teachers\]'"):
        source(draw(1)[0][0], None)


def test_a_revision_of_the_hub_is_the_one_that_is_read(tmp_path):
    # The hub's cache as a download leaves it, in a process that may not go online.
    repository = tmp_path / "hub" / "models--some--faces"
    for revision, commit, name in (("main", "a" * 40, "hair"), ("v1", "b" * 40, "fur")):
        folder = repository / "snapshots" / commit
        folder.mkdir(parents=True)
        names = {0: "ground", 1: name}
        hf.SegformerConfig(id2label=names, label2id={v: k for k, v in names.items()}).save_pretrained(folder)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    code = (
        "from infill_aug.confidence.teachers.semantic import SemanticConfidence\n"
        "for revision in (None, 'main', 'v1'):\n"
        "    print(SemanticConfidence('some/faces', class_weights={'a': 1.0}, revision=revision).classes[1])\n"
        "try:\n"
        "    SemanticConfidence('some/faces', class_weights={'a': 1.0}, revision='v2').classes\n"
        "except OSError as error:\n"
        "    print(\"'some/faces', revision 'v2'\" in str(error) and 'folder that holds' in str(error))\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["hair", "hair", "fur", "True"]
