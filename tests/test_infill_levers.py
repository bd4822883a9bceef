import pytest
import torch

pytest.importorskip("diffusers")

from tiny_diffusers import _flux, _vae, tiny_pipeline

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import SampleContext
from infill_aug.infill.diffusers.backend import DiffusersBackend, run_pipeline
from infill_aug.infill.diffusers.levers import (
    compile_parts,
    remember_pictures,
    remember_texts,
    spare_latents,
)
from infill_aug.infill.diffusers.loading import Source, load_pipeline
from infill_aug.infill.push_pull import push_pull

# Euler's scheduler in diffusers hands tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAT = TaskDescriptor("pets", "cat", prompt="a beach", negative_prompt="cat")
DOG = TaskDescriptor("pets", "dog", prompt="a wood", negative_prompt="dog")
CPU = torch.device("cpu")
LOOKING = ["sd_inpaint", "sdxl_inpaint", "instruct_pix2pix", "flux_fill"]  # see more than latents
KINDS = [*LOOKING, "sd_text", "sd3", "flux", "qwen_image", "z_image"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tiny_pipeline(tmp_path_factory.mktemp("models") / kind, kind)
        return made[kind]

    return make


class Counter:
    """Counts the runs of a module."""

    def __init__(self, module):
        self.runs = 0
        module.register_forward_hook(self._count)

    def _count(self, *_):
        self.runs += 1


def variants(pictures, each, side=32):
    """Each picture several times, with a seed for each."""
    image = torch.rand(pictures, 3, side, side).repeat_interleave(each, 0)
    mask = torch.zeros(pictures * each, 1, side, side, dtype=torch.bool)
    mask[..., 8:] = True
    return image.masked_fill(mask, 0), mask, list(range(pictures * each))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_encoded_once_and_the_fills_are_those_of_the_plain_pipeline(kind, folder_of):
    backend = DiffusersBackend(folder_of(kind), size=32, steps=2)
    network = backend.network(CPU)
    texts = [Counter(part) for name, part in network.components.items() if name.startswith("text_encoder") and part]
    image, mask, seeds = variants(2, 1)
    samples = [SampleContext(str(seed), seed) for seed in seeds]
    first = backend.generate_infill(image, mask, CAT, samples=samples)
    runs = [counter.runs for counter in texts]
    assert min(runs) >= 1
    assert torch.equal(backend.generate_infill(image, mask, CAT, samples=samples), first)
    assert [counter.runs for counter in texts] == runs
    other = backend.generate_infill(image, mask, DOG, samples=samples)
    assert [counter.runs for counter in texts] == [2 * count for count in runs]
    assert not torch.equal(other, first)
    plain = load_pipeline(Source(folder_of(kind)), CPU)
    for descriptor, wanted in ((CAT, first), (DOG, other)):
        options = dict(backend.model_config(descriptor).options)
        fills = [run_pipeline(plain, image[i : i + 1], mask[i : i + 1], options, [i]) for i in (0, 1)]
        fill = (torch.cat(fills) * 255).round() / 255
        assert torch.equal(torch.where(mask, fill, image), wanted)


def test_only_the_latest_texts_are_kept(folder_of):
    pipeline = load_pipeline(Source(folder_of("sd_inpaint")), CPU)
    counter = Counter(pipeline.text_encoder)
    remember_texts(pipeline, most=2)
    for text, runs in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
        pipeline.encode_prompt([text], CPU, 1, False)
        assert counter.runs == runs


def test_what_is_no_text_is_encoded_each_time(folder_of):
    pipeline = load_pipeline(Source(folder_of("sd_inpaint")), CPU)
    remember_texts(pipeline)
    for value in (0.0, 1.0):
        embedding = torch.full((1, 77, 32), value)
        assert torch.equal(pipeline.encode_prompt(None, CPU, 1, False, prompt_embeds=embedding)[0], embedding)


@pytest.mark.parametrize("kind", ["sd_inpaint", "sdxl_inpaint", "flux_fill", "qwen_image"])
def test_variants_of_a_picture_are_encoded_once_and_filled_as_if_they_were_not(kind, folder_of):
    backend = DiffusersBackend(folder_of(kind), size=32, steps=2, strength=0.9)
    image, mask, seeds = variants(2, 3)
    samples = [SampleContext(str(seed), seed) for seed in seeds]
    plain = load_pipeline(Source(folder_of(kind)), CPU)
    options = dict(backend.model_config(CAT).options)
    counter = Counter(plain.vae.encoder)
    wanted = [run_pipeline(plain, image[i : i + 1], mask[i : i + 1], options, [i]) for i in range(6)]
    single = counter.runs // 6
    counter = Counter(backend.network(CPU).vae.encoder)
    fills = backend.generate_infill(image, mask, CAT, samples=samples)
    assert counter.runs == 2 * single
    assert torch.equal(fills, torch.where(mask, (torch.cat(wanted) * 255).round() / 255, image))
    assert not torch.equal(fills[0], fills[1])


@pytest.mark.parametrize("kind", ["sd_inpaint", "sd_text"])
def test_variants_in_one_call_are_encoded_once_and_filed_under_their_own_picture(kind, folder_of):
    """As on a GPU, where a call holds many."""
    options = dict(DiffusersBackend(folder_of(kind), size=32, steps=2).model_config(CAT).options)
    image, mask, seeds = variants(2, 3)
    plain, quick = (load_pipeline(Source(folder_of(kind)), CPU) for _ in range(2))
    counters = [Counter(pipeline.vae.encoder) for pipeline in (plain, quick)]
    remember_pictures(quick, most=16)
    wanted = torch.cat([run_pipeline(plain, image[i : i + 1], mask[i : i + 1], options, [i]) for i in range(6)])
    found = run_pipeline(quick, image, mask, options, seeds)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
    assert counters[1].runs * 3 == counters[0].runs


def test_the_encoding_of_another_picture_is_never_taken(folder_of):
    pipeline = load_pipeline(Source(folder_of("sd_inpaint")), CPU)
    plain = load_pipeline(Source(folder_of("sd_inpaint")), CPU)
    remember_pictures(pipeline, most=2)
    pictures = torch.rand(4, 1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        for i in (0, 1, 0, 2, 3, 0, 1):
            picture = pictures[i].clone()
            found = pipeline.vae.encode(picture).latent_dist.mean
            assert torch.equal(found, plain.vae.encode(pictures[i]).latent_dist.mean)
            picture.zero_()  # changing one's own picture afterwards does not matter


def test_a_masked_picture_that_the_network_does_not_look_at_is_not_encoded(folder_of):
    pipeline = load_pipeline(Source(folder_of("sd_text")), CPU)
    assert spare_latents(pipeline, 3, 32, 48)["masked_image_latents"].shape == (3, 4, 16, 24)
    counter = Counter(pipeline.vae.encoder)
    backend = DiffusersBackend(folder_of("sd_text"), size=32, steps=2)
    image, mask, _ = variants(1, 1)
    fill = run_pipeline(pipeline, image, mask, dict(backend.model_config(CAT).options), [7])
    assert counter.runs == 1
    arguments = {
        "prompt": ["a beach"], "negative_prompt": ["cat"], "image": push_pull(image, mask), "mask_image": mask.float(),
        "generator": [torch.Generator().manual_seed(7)], "height": 32, "width": 32, "strength": 0.9,
        "num_inference_steps": 3, "guidance_scale": 7.5, "output_type": "pt",
    }  # fmt: skip
    plain = pipeline(**arguments)
    assert counter.runs == 3
    assert torch.equal(plain.images, fill)


@pytest.mark.parametrize("kind", [*LOOKING, "qwen_image", "z_image"])
def test_a_masked_picture_that_is_looked_at_is_encoded(kind, folder_of):
    assert spare_latents(load_pipeline(Source(folder_of(kind)), CPU), 1, 32, 32) == {}


def test_flux_with_its_16_channels_is_spared_the_masked_picture_too(tmp_path):
    import diffusers

    pipeline = _flux(tmp_path, "FluxInpaintPipeline", channels=64)
    parts = {**pipeline.components, "vae": _vae(16, shift_factor=0.06, scaling_factor=1.5)}
    parts["transformer"] = diffusers.FluxTransformer2DModel(
        **{**dict(pipeline.transformer.config), "out_channels": None}
    )
    pipeline = diffusers.FluxInpaintPipeline(**{name: part for name, part in parts.items() if part is not None})
    pipeline.set_progress_bar_config(disable=True)
    counter = Counter(pipeline.vae.encoder)
    options = dict(DiffusersBackend("some/model", size=32, steps=2).model_config(CAT).options)
    image, mask, _ = variants(1, 1)
    assert run_pipeline(pipeline, image, mask, options, [0]).isfinite().all()
    assert counter.runs == 1


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # in torch's own compiler
@pytest.mark.parametrize("kind", ["sd_inpaint", "flux"])
def test_compiling_covers_what_runs_in_every_step_and_the_decoder(kind, folder_of):
    pipeline = load_pipeline(Source(folder_of(kind)), CPU)
    options = dict(DiffusersBackend("some/model", size=32, steps=2).model_config(CAT).options)
    image, mask, _ = variants(1, 1)
    wanted = run_pipeline(pipeline, image, mask, options, [0])
    compile_parts(pipeline)
    parts = [pipeline.vae.decoder]
    parts += [pipeline.unet] if kind == "sd_inpaint" else list(pipeline.transformer.transformer_blocks)
    assert all(part._compiled_call_impl is not None for part in parts)
    with torch.compiler.set_stance("force_eager"):  # compiling takes minutes
        assert torch.equal(run_pipeline(pipeline, image, mask, options, [0]), wanted)


def test_compiling_and_the_batch_size_are_not_part_of_the_fingerprint_and_the_autoencoder_is(tmp_path):
    import diffusers

    def fingerprint(**options):
        return DiffusersBackend("some/model", **options).model_config(CAT).fingerprint()

    prints = [fingerprint(), fingerprint(vae="a/b"), fingerprint(vae="a/c")]
    for seed in (0, 1):
        torch.manual_seed(seed)
        tiny_vae(diffusers).save_pretrained(tmp_path)
        prints.append(fingerprint(vae=str(tmp_path)))
    assert len(set(prints)) == len(prints)
    assert fingerprint(compile=True, max_batch=2, offload=True) == prints[0]


def tiny_vae(diffusers):
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sd_inpaint", "sd_text", "sdxl_inpaint"])
def test_a_tiny_autoencoder_takes_the_place_of_the_models(kind, folder_of, tmp_path):
    import diffusers

    tiny_vae(diffusers).save_pretrained(tmp_path / "vae")
    backend = DiffusersBackend(folder_of(kind), size=32, steps=2, vae=str(tmp_path / "vae"))
    image, mask, seeds = variants(2, 2)
    samples = [SampleContext(str(seed), seed) for seed in seeds]
    fills = backend.generate_infill(image, mask, CAT, samples=samples)
    assert isinstance(backend.network(CPU).vae, diffusers.AutoencoderTiny)
    for i in (3, 0):
        part = slice(i, i + 1)
        alone = backend.generate_infill(image[part], mask[part], CAT, samples=samples[part])
        assert torch.equal(alone[0], fills[i])
    kept = ~mask.expand_as(image)
    assert torch.equal(fills[kept], image[kept])
