import pytest
import torch

pytest.importorskip("diffusers")

from tiny_diffusers import tiny_pipeline

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import BackendUnavailableError, SampleContext
from infill_aug.infill.diffusers.backend import DiffusersBackend
from infill_aug.infill.diffusers.structure import ControlPictures, controlnet_classes, edges

# Euler's scheduler in diffusers hands tensors to numpy, and its ControlNet for Flux uses a name that moved.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning"),
]

CAT = TaskDescriptor("pets", "cat", prompt="a beach", negative_prompt="cat")
KINDS = ["sd_inpaint", "sd_text", "sdxl_inpaint", "flux"]


def request(count=2, side=32):
    """Pictures with a white square that can be seen, and a hole beside it."""
    image = torch.rand(count, 3, side, side) * 0.2
    image[..., 4:12, 4:12] = 1
    mask = torch.zeros(count, 1, side, side, dtype=torch.bool)
    mask[..., 16:, :] = True
    return image, mask, [SampleContext(str(i), 10 + i) for i in range(count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model and a ControlNet for it, whose weights are random throughout: as made, it would add nothing."""
    import diffusers

    made = {}

    def make(kind):
        if kind not in made:
            root = tmp_path_factory.mktemp("models")
            model = tiny_pipeline(root / kind, kind)
            pipeline = diffusers.DiffusionPipeline.from_pretrained(model)
            if kind == "flux":
                network = diffusers.FluxControlNetModel.from_transformer(
                    pipeline.transformer,
                    num_layers=1,
                    num_single_layers=1,
                    num_attention_heads=2,
                    attention_head_dim=16,
                )
            else:
                settings = {name: value for name, value in pipeline.unet.config.items() if not name.startswith("_")}
                network = diffusers.ControlNetModel.from_unet(
                    diffusers.UNet2DConditionModel(**{**settings, "in_channels": 4}),
                    conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False,
                )  # fmt: skip
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(1)
                for weight in network.parameters():
                    weight.normal_(0, 0.1)
            network.save_pretrained(root / "controlnet")
            made[kind] = model, str(root / "controlnet")
        return made[kind]

    return make


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory):
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    folder = tmp_path_factory.mktemp("depth")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DPTForDepthEstimation(
            DPTConfig(
                hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32,
                patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
                head_in_index=-1, is_hybrid=False,
            )
        )  # fmt: skip
        for weight in network.parameters():  # as made, nothing gets through its ReLUs
            weight.data.normal_(0, 0.3)
    network.save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


# --- what a ControlNet is shown ---


def test_edges_are_those_of_what_is_visible_and_none_is_drawn_in_the_hole_or_at_its_rim():
    picture = torch.zeros(2, 3, 32, 40)
    picture[0, :, 4:20, 6:30] = 1
    picture[1, :, :, 20:] = 1
    hole = torch.zeros(2, 1, 32, 40, dtype=torch.bool)
    hole[..., 16:, :] = True
    found = edges(picture, hole)
    assert found.shape == picture.shape
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert found[..., 14:, :].sum() == 0
    assert found[0, 0, 6:14, 4:8].amax(1).all()
    assert found[1, 0, 2:14, 18:22].amax(1).all()
    assert found[0, 0, 6:14, 10:26].sum() == 0


def test_a_blurred_and_a_flat_picture_have_no_edges():
    slope = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    hole = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    assert edges(slope, hole).sum() == 0
    assert edges(torch.full((1, 3, 64, 64), 0.4), hole).sum() == 0


def test_depth_spans_0_to_1_in_each_picture_and_does_not_depend_on_the_others(depth_model):
    shown = ControlPictures("depth", depth_model, torch.device("cpu"))
    picture = torch.rand(3, 3, 40, 48)
    hole = torch.zeros(3, 1, 40, 48, dtype=torch.bool)
    depth = shown(picture, hole)
    assert depth.shape == picture.shape
    torch.testing.assert_close(depth.amin((1, 2, 3)), torch.zeros(3))
    torch.testing.assert_close(depth.amax((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(shown(picture[1:2], hole[1:2]), depth[1:2], rtol=0, atol=1e-3)
    assert not torch.allclose(depth[0], depth[1])


@pytest.mark.parametrize("signed", [False, True])
def test_a_control_picture_is_minus_1_in_the_hole_and_the_picture_elsewhere(signed):
    shown = ControlPictures("picture", "", torch.device("cpu"), signed)
    picture, hole = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    hole[..., 4:] = True
    found = shown(picture, hole)
    assert (found[..., 4:] == -1).all()
    assert torch.equal(found[..., :4], 2 * picture[..., :4] - 1 if signed else picture[..., :4])


def test_a_depth_model_that_is_not_there_is_named():
    with pytest.raises(BackendUnavailableError, match=r"depth_model '/nowhere/depth' cannot be loaded"):
        ControlPictures("depth", "/nowhere/depth", torch.device("cpu"))


# --- in the backend ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_controlnet_steers_the_fill_by_what_is_visible(kind, folders):
    model, controlnet = folders(kind)
    image, mask, samples = request()
    fills = []
    for scale in (0.0, 1.0):
        backend = DiffusersBackend(model, size=32, steps=2, controlnet=controlnet, structure_scale=scale)
        assert "ControlNetInpaint" in type(backend.network(image.device)).__name__
        fills.append(backend.generate_infill(image, mask, CAT, samples=samples))
        kept = ~mask.expand_as(image)
        assert torch.equal(fills[-1][kept], image[kept])
    assert not torch.equal(*fills)


@pytest.mark.parametrize("kind", KINDS)
def test_a_steered_sample_is_filled_alike_alone_and_in_a_batch_and_hidden_pixels_do_not_matter(kind, folders):
    model, controlnet = folders(kind)
    backend = DiffusersBackend(model, size=32, steps=2, controlnet=controlnet)
    image, mask, samples = request(3)
    before = torch.get_rng_state()
    together = backend.generate_infill(image, mask, CAT, samples=samples)
    assert torch.equal(torch.get_rng_state(), before)
    for i in (2, 0, 1):
        part = slice(i, i + 1)
        hidden = image[part].masked_fill(mask[part], float(i))
        assert torch.equal(backend.generate_infill(hidden, mask[part], CAT, samples=samples[part])[0], together[i])


def test_every_structure_is_another_fill(folders, depth_model):
    model, controlnet = folders("sd_inpaint")
    image, mask, samples = request(1)
    fills = []
    for structure in ("edges", "depth", "picture"):
        backend = DiffusersBackend(
            model, size=32, steps=2, controlnet=controlnet, structure=structure, depth_model=depth_model,
            structure_scale=1.0,
        )  # fmt: skip
        fills.append(backend.generate_infill(image, mask, CAT, samples=samples))
    assert not torch.equal(fills[0], fills[1])
    assert not torch.equal(fills[0], fills[2])
    assert not torch.equal(fills[1], fills[2])


def test_a_steered_model_that_blends_latents_takes_soft_masks(folders):
    model, controlnet = folders("sd_text")
    backend = DiffusersBackend(model, size=32, steps=4, controlnet=controlnet)
    image, mask, samples = request(1)
    fills = [
        backend.generate_infill(image, torch.where(mask, 1.0, change), CAT, samples=samples) for change in (0.3, 0.6)
    ]
    assert not torch.equal(*fills)


def test_the_fingerprint_changes_with_the_structure_where_there_is_a_controlnet_and_only_there(folders, depth_model):
    def fingerprint(**options):
        return DiffusersBackend("some/model", **options).model_config(CAT).fingerprint()

    _, controlnet = folders("sd_inpaint")
    steered = [
        fingerprint(),
        fingerprint(controlnet=controlnet),
        fingerprint(controlnet=folders("sdxl_inpaint")[1]),
        fingerprint(controlnet=controlnet, structure_scale=0.5),
        fingerprint(controlnet=controlnet, structure="picture"),
        fingerprint(controlnet=controlnet, structure="depth"),
        fingerprint(controlnet=controlnet, structure="depth", depth_model=depth_model),
    ]
    assert len(set(steered)) == len(steered)
    assert fingerprint(structure="depth", structure_scale=0.5, depth_model="a/b") == steered[0]
    assert fingerprint(controlnet=controlnet, depth_model="a/b") == steered[1]


def test_families_without_a_usable_controlnet_say_why(tmp_path, folders):
    image, mask, samples = request(1)
    model = tiny_pipeline(tmp_path / "sd3", "sd3")
    backend = DiffusersBackend(model, controlnet=folders("sd_inpaint")[1])
    with pytest.raises(
        BackendUnavailableError, match=r"StableDiffusion3Pipeline.*global random state.*controlnet=None"
    ):
        backend.generate_infill(image, mask, CAT, samples=samples)
    with pytest.raises(BackendUnavailableError, match="diffusers has no inpainting pipeline for both"):
        controlnet_classes("KandinskyPipeline")


def test_a_controlnet_that_is_missing_or_of_another_kind_is_named(folders, tmp_path):
    image, mask, samples = request(1)
    model, _ = folders("sd_inpaint")
    for name in ("/nowhere/controlnet", str(tmp_path)):
        backend = DiffusersBackend(model, controlnet=name)
        with pytest.raises(BackendUnavailableError, match=rf"controlnet '{name}' cannot be loaded as ControlNetModel"):
            backend.generate_infill(image, mask, CAT, samples=samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "pose"}, r"one of \('depth', 'edges', 'picture'\), got 'pose'"),
        ({"structure_scale": -1}, "got -1"),
    ],
)
def test_structure_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusersBackend("some/model", **options)
