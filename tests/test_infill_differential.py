import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("diffusers")

from tiny_diffusers import FACTORIES, _unet, sdxl_inpaint, tiny_pipeline

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import InfillError, SampleContext
from infill_aug.infill.diffusers.backend import DiffusersBackend, run_pipeline
from infill_aug.infill.diffusers.differential import (
    DifferentialDiffusion,
    change_of_latents,
    held,
    sees_latents_only,
    soft_mask_trouble,
)

# Euler's scheduler in diffusers hands tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAT = TaskDescriptor("pets", "cat", prompt="a beach", negative_prompt="cat")
# Families that blend latents; the rest sees the mask as channels. Qwen-Image-Edit works at 1024, which takes too long.
BLENDING = ["sd_text", "sdxl_text", "sd3", "flux", "flux_schnell", "flux_kontext", "qwen_image", "z_image"]
MASKED = ["sd_inpaint", "sdxl_inpaint", "flux_fill", "instruct_pix2pix"]


def sdxl_text(folder):
    """SDXL that was not trained to fill: its network sees four channels."""
    pipeline = sdxl_inpaint(folder)
    config = pipeline.unet.config
    options = {name: value for name, value in config.items() if not name.startswith("_") and name != "in_channels"}
    pipeline.register_modules(unet=_unet(4, **options))
    return pipeline


@pytest.fixture(scope="module", autouse=True)
def _registered():
    FACTORIES["sdxl_text"] = sdxl_text
    yield
    del FACTORIES["sdxl_text"]


@pytest.fixture(scope="module")
def backend_of(tmp_path_factory):
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("models") / kind
            made[kind] = DiffusersBackend(tiny_pipeline(folder, kind), size=32, steps=4)
        return made[kind]

    return make


def request(count=3, height=24, width=40):
    """Pictures and masks: left kept, then a ramp, right hidden."""
    image = torch.rand(count, 3, height, width)
    ramp = ((torch.arange(width) - 5) / 20).clamp(0, 1)
    mask = ramp.expand(count, 1, height, width).clone()
    return image, mask, [SampleContext(str(i), 100 + i) for i in range(count)]


# --- which cells are held ---


@given(change=st.floats(0, 1, width=32), steps=st.integers(1, 60))
def test_a_cell_is_free_for_its_share_of_the_steps_and_once_free_stays_so(change, steps):
    holding = [bool(held(torch.tensor(change), step, steps)) for step in range(steps)]
    assert holding == sorted(holding, reverse=True)
    assert change * steps - 1e-3 <= holding.count(False) <= change * steps + 1


@given(steps=st.integers(1, 60))
def test_nothing_of_1_is_ever_held_and_all_of_0_always_is(steps):
    for step in range(steps):
        assert held(torch.tensor([0.0, 1.0]), step, steps).tolist() == [True, False]


@given(steps=st.integers(1, 30), step=st.integers(0, 29))
def test_what_may_change_more_is_never_held_longer(steps, step):
    holding = held(torch.linspace(0, 1, 50), min(step, steps - 1), steps)
    assert not (holding[1:] & ~holding[:-1]).any()


def test_a_cell_may_change_as_much_as_the_pixel_in_it_that_may_change_most():
    change = torch.zeros(2, 1, 16, 24)
    change[0, 0, 3, 9], change[1, 0, 15, 23] = 0.3, 1.0
    cells = change_of_latents(change, torch.zeros(2, 4, 2, 3))
    assert cells.shape == (2, 1, 2, 3)
    torch.testing.assert_close(cells[0, 0], torch.tensor([[0, 0.3, 0], [0, 0, 0]]))
    torch.testing.assert_close(cells[1, 0], torch.tensor([[0, 0, 0], [0, 0, 1.0]]))


@pytest.mark.parametrize("size", [(4, 6), (8, 2), (2, 2), (6, 10)])
def test_packed_cells_come_in_the_order_in_which_the_library_packs_them(size):
    from diffusers import FluxInpaintPipeline

    cells = torch.rand(2, 1, *size)
    packed = FluxInpaintPipeline._pack_latents(cells, 2, 1, *size)
    pixels = cells.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(change_of_latents(pixels, packed)[..., 0], packed.amax(2))


@pytest.mark.parametrize("shape", [(1, 7, 16), (1, 0, 16), (1, 16), (1, 4, 1, 2, 2)])
def test_latents_of_another_form_are_refused_by_their_shape(shape):
    with pytest.raises(ValueError, match=rf"got \({shape[0]}, {shape[1]}"):
        change_of_latents(torch.rand(1, 1, 32, 32), torch.zeros(shape))


# --- in the pipelines ---


def recorded(pipeline, image, mask, soft=None):
    """Latents after each step of one call."""
    seen = []

    def callback(pipeline, step, timestep, tensors):
        result = soft(pipeline, step, timestep, tensors) if soft else tensors
        seen.append(result["latents"].clone())
        return dict(result)

    arguments = {
        "prompt": ["a beach"], "image": image, "mask_image": mask, "num_inference_steps": 5, "strength": 0.8,
        "generator": [torch.Generator().manual_seed(3)], "callback_on_step_end": callback, "height": 32, "width": 32,
        "max_area": 1024, "_auto_resize": False, "output_type": "latent",
    }  # fmt: skip
    names = inspect.signature(pipeline.__call__).parameters
    arguments = {name: value for name, value in arguments.items() if name in names}
    if soft:
        with soft.watching(pipeline):
            pipeline(**arguments)
    else:
        pipeline(**arguments)
    return seen


@pytest.mark.parametrize("kind", BLENDING)
def test_what_is_held_is_what_the_pipeline_itself_puts_under_kept_pixels(kind, backend_of):
    pipeline = backend_of(kind).network(torch.device("cpu"))
    image = torch.rand(1, 3, 32, 32)
    kept = torch.ones(1, 1, 32, 32)
    kept[..., :16, :] = 0
    wanted = recorded(pipeline, image, kept)
    soft = DifferentialDiffusion(torch.where(kept > 0, 1.0, 0.3))
    found = recorded(pipeline, image, torch.ones_like(kept), soft)
    assert len(wanted) == len(found) == 4

    def upper(latents):  # half of the picture, in either layout
        return latents[:, :, : latents.shape[2] // 2] if latents.ndim == 4 else latents[:, : latents.shape[1] // 2]

    for step in (0, 1):  # 0.3 of 4 steps: free in the last two
        assert torch.equal(upper(found[step]), upper(wanted[step]))
        assert torch.equal(found[step], wanted[step])
    for step in (2, 3):
        assert not torch.equal(upper(found[step]), upper(wanted[step]))


@pytest.mark.parametrize("kind", BLENDING)
def test_a_soft_mask_of_ones_fills_as_the_hard_mask_does(kind, backend_of):
    backend = backend_of(kind)
    image = torch.zeros(1, 3, 32, 32)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    image[..., :8], mask[..., :8] = torch.rand(1, 3, 32, 8), False
    pipeline, options = backend.network(image.device), dict(backend.model_config(CAT).options)
    hard, soft = (run_pipeline(pipeline, image, each, options, [5]) for each in (mask, mask.float()))
    assert torch.equal(hard, soft)


@pytest.mark.parametrize("kind", BLENDING)
def test_a_soft_mask_changes_the_fill_and_keeps_what_is_kept(kind, backend_of):
    backend = backend_of(kind)
    image, mask, samples = request()
    before = torch.get_rng_state()
    fill = backend.generate_infill(image, mask, CAT, samples=samples)
    assert torch.equal(torch.get_rng_state(), before)
    kept = (mask == 0).expand_as(image)
    assert torch.equal(fill[kept], image[kept])
    hard = backend.generate_infill(image, (mask > 0).float(), CAT, samples=samples)
    assert not torch.equal(fill, hard)


@pytest.mark.parametrize("kind", BLENDING)
def test_a_sample_with_a_soft_mask_is_filled_alike_alone_and_in_a_batch(kind, backend_of):
    backend = backend_of(kind)
    image, mask, samples = request()
    mask[1] = mask[1].flip(-1)
    together = backend.generate_infill(image, mask, CAT, samples=samples)
    for i in (2, 0, 1):
        part = slice(i, i + 1)
        alone = backend.generate_infill(image[part], mask[part], CAT, samples=samples[part])
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("kind", ["sd_text", "flux"])
def test_hidden_pixels_are_not_looked_at_and_those_that_may_change_a_little_are(kind, backend_of):
    backend = backend_of(kind)
    image, mask, samples = request(1)
    fill = backend.generate_infill(image, mask, CAT, samples=samples)
    hidden = image.masked_fill(mask == 1, 0.7)
    assert torch.equal(backend.generate_infill(hidden, mask, CAT, samples=samples), fill)
    seen = image.masked_fill((mask > 0) & (mask < 0.5), 0.7)
    assert not torch.equal(backend.generate_infill(seen, mask, CAT, samples=samples), fill)


@pytest.mark.parametrize("kind", MASKED)
def test_models_that_see_the_mask_refuse_a_soft_one_and_say_why(kind, backend_of):
    backend = backend_of(kind)
    image, mask, samples = request(1)
    with pytest.raises(ValueError, match=r"sees the mask as input channels.*cut the mask at 0\.5"):
        backend.generate_infill(image, mask, CAT, samples=samples)
    assert not sees_latents_only(backend.network(image.device))
    backend.generate_infill(image, (mask > 0.5).float(), CAT, samples=samples)


def test_pipelines_without_a_mask_or_without_callbacks_refuse_a_soft_one(backend_of):
    import diffusers

    network = backend_of("sd_text").network(torch.device("cpu"))
    parts = {name: part for name, part in network.components.items() if name != "image_encoder"}
    plain = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    assert "takes no mask" in soft_mask_trouble(plain)
    with (
        pytest.raises(ValueError, match="takes no mask"),
        DifferentialDiffusion(torch.rand(1, 1, 8, 8)).watching(plain),
    ):
        pass
    assert soft_mask_trouble(network) is None


def test_the_pipeline_is_as_before_after_a_call_and_after_a_failure(backend_of):
    pipeline = backend_of("sd_text").network(torch.device("cpu"))
    soft = DifferentialDiffusion(torch.full((1, 1, 32, 32), 0.5))
    with pytest.raises(RuntimeError, match="stopped"), soft.watching(pipeline):
        raise RuntimeError("stopped")
    assert "prepare_latents" not in vars(pipeline)
    recorded(pipeline, torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32), soft)
    assert "prepare_latents" not in vars(pipeline)
    with pytest.raises(InfillError, match="watching"):
        soft(pipeline, 0, 0, {"latents": torch.zeros(1, 4, 16, 16)})
