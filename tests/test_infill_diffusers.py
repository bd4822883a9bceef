import copy
import dataclasses
import inspect
import json
import pickle
import shutil

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from tiny_diffusers import tiny_pipeline

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill import load_backend
from infill_aug.infill.backend import BackendUnavailableError, PartialInfillError, SampleContext
from infill_aug.infill.diffusers.backend import run_pipeline
from infill_aug.infill.diffusers.families import family_of, schedule_length, working_size
from infill_aug.infill.push_pull import push_pull

# What numpy and the hub's client say of lines of the library.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning"),
]

CAT = TaskDescriptor("pets", "cat", prompt="a beach", negative_prompt="a cat")
# How each is stored, the class that is asked for, and the class that it has to be run by.
RUNS = {
    "sd_text": ("sd_text", None, "StableDiffusionInpaintPipeline"),
    "sd_inpaint": ("sd_inpaint", None, "StableDiffusionInpaintPipeline"),
    "sd_img2img": ("sd_img2img", "StableDiffusionImg2ImgPipeline", "StableDiffusionImg2ImgPipeline"),
    "instruct_pix2pix": ("instruct_pix2pix", None, "StableDiffusionInstructPix2PixPipeline"),
    "sdxl_inpaint": ("sdxl_inpaint", None, "StableDiffusionXLInpaintPipeline"),
    "sd3": ("sd3", None, "StableDiffusion3InpaintPipeline"),
    "flux": ("flux", None, "FluxInpaintPipeline"),
    "flux_schnell": ("flux_schnell", None, "FluxInpaintPipeline"),
    "flux_fill": ("flux_fill", None, "FluxFillPipeline"),
    "kontext_inpaint": ("flux_kontext", None, "FluxKontextInpaintPipeline"),
    "kontext_edit": ("flux_kontext", "FluxKontextPipeline", "FluxKontextPipeline"),
    "qwen_image": ("qwen_image", None, "QwenImageInpaintPipeline"),
    "z_image": ("z_image", None, "ZImageInpaintPipeline"),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folder of a tiny pipeline, made once."""
    root, made = tmp_path_factory.mktemp("pipelines"), {}

    def get(kind):
        if kind not in made:
            made[kind] = tiny_pipeline(root / kind, kind)
        return made[kind]

    return get


def make(stored, run="sd_inpaint", **options):
    kind, pipeline, _ = RUNS[run]
    return load_backend("diffusers", **{"model": stored(kind), "pipeline": pipeline, "steps": 2, "size": 32, **options})


def request(count, height, width):
    generator = torch.Generator().manual_seed(height + width)
    image, mask = torch.rand(count, 3, height, width, generator=generator), torch.zeros(count, 1, height, width)
    for i in range(count):
        mask[i, :, i : height // 2 + i + 1, i : width // 2 + i + 1] = 1
    mask[..., -1, -1] = 0
    return image, mask.bool(), [SampleContext(f"{i}", 2**63 - 1 - i) for i in range(count)]


# --- every family ---


@pytest.mark.parametrize("run", RUNS)
def test_every_family_fills_by_the_class_that_fits_its_own_mask_alike_alone_and_in_a_batch(run, stored):
    backend = make(stored, run)
    image, mask, samples = request(3, 33, 50)
    before = torch.get_rng_state()
    together = backend.generate_infill(image, mask, CAT, samples=samples)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(backend.network(torch.device("cpu")), getattr(diffusers, RUNS[run][2]))
    assert together.shape == image.shape
    kept = ~mask.expand_as(image)
    assert torch.equal(together[kept], image[kept])
    assert not torch.equal(together[~kept], image[~kept])
    for i in (2, 0, 1):
        alone = backend.generate_infill(image[i : i + 1], mask[i : i + 1], CAT, samples=samples[i : i + 1])
        assert torch.equal(alone[0], together[i])
    other = backend.generate_infill(image[:1], mask[:1], CAT, samples=[SampleContext("0", 1)])
    assert not torch.equal(other[0], together[0])


@pytest.mark.parametrize("run", ["sd_img2img", "instruct_pix2pix", "kontext_edit"])
def test_of_what_a_pipeline_without_masks_drew_only_the_hole_is_left(run, stored):
    backend = make(stored, run)
    image, mask, samples = request(2, 33, 50)
    options = dict(backend.model_config(CAT).options)
    with torch.no_grad():
        fills = run_pipeline(
            backend.network(torch.device("cpu")),
            image.masked_fill(mask, 0),
            mask,
            options,
            [each.seed for each in samples],
        )
    kept = ~mask.expand_as(image)
    assert torch.equal(fills[kept], image[kept])
    assert not torch.equal(fills[~kept], push_pull(image.masked_fill(mask, 0), mask)[~kept])


@pytest.mark.parametrize("run", RUNS)
def test_a_batch_of_several_in_one_call_is_filled_nearly_as_one_by_one(run, stored):
    """What happens on an accelerator: no picture, mask or seed ends up at another's place."""
    backend = make(stored, run)
    pipeline = backend.network(torch.device("cpu"))
    image, mask, samples = request(3, 32, 32)
    options = dict(backend.model_config(CAT).options)
    seeds = [sample.seed for sample in samples]
    with torch.no_grad():
        together = run_pipeline(pipeline, image.masked_fill(mask, 0), mask, options, seeds)
        for i in range(3):
            one = slice(i, i + 1)
            alone = run_pipeline(pipeline, image[one].masked_fill(mask[one], 0), mask[one], options, seeds[one])
            apart = [float((alone[0] - each).abs().max()) for each in together]
            assert apart[i] < 5e-3
            assert all(apart[j] > 5 * apart[i] + 1e-3 for j in range(3) if j != i)


@pytest.mark.parametrize("run", RUNS)
def test_another_prompt_gives_another_fill(run, stored):
    backend = make(stored, run)
    image, mask, samples = request(1, 32, 32)
    fills = [
        backend.generate_infill(image, mask, dataclasses.replace(CAT, prompt=prompt), samples=samples)
        for prompt in ("a beach", "dark woods at night")
    ]
    assert not torch.equal(*fills)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", [None, "QwenImageEditPipeline"])
def test_qwen_image_edit_fills_at_its_own_size(pipeline, stored):
    backend = load_backend("diffusers", model=stored("qwen_edit"), pipeline=pipeline, steps=1, guidance=1.0)
    image, mask, samples = request(1, 33, 50)
    fill = backend.generate_infill(image, mask, CAT, samples=samples)
    kept = ~mask.expand_as(image)
    assert torch.equal(fill[kept], image[kept])
    assert not torch.equal(fill, image)


@pytest.mark.parametrize("run", ["sd_inpaint", "flux", "instruct_pix2pix"])
@pytest.mark.parametrize("size", [(2, 2), (1, 9), (9, 1), (7, 133), (70, 31)])
def test_pictures_of_every_size_are_filled(size, run, stored):
    image, mask, samples = request(2, *size)
    fill = make(stored, run).generate_infill(image, mask, CAT, samples=samples)
    assert fill.shape == image.shape


def test_what_lies_under_the_mask_is_not_looked_at(stored):
    for run in ("sd_inpaint", "flux_fill", "instruct_pix2pix"):
        backend = make(stored, run)
        image, mask, samples = request(1, 30, 41)
        wanted = backend.generate_infill(image, mask, CAT, samples=samples)
        for hidden in (1.0, torch.nan, -7.0):
            assert torch.equal(
                backend.generate_infill(image.masked_fill(mask, hidden), mask, CAT, samples=samples), wanted
            )


# --- steps, guidance, strength, prompts ---


def called_with(backend, descriptor=CAT):
    """What the pipeline was really called with, for a fill."""
    pipeline, seen = backend.network(torch.device("cpu")), {}
    cls = type(pipeline)

    class Watched(cls):
        def __call__(self, *args, **kwargs):
            seen.update(kwargs)
            return super().__call__(*args, **kwargs)

    Watched.__call__.__signature__ = inspect.signature(cls.__call__)
    Watched.__name__ = cls.__name__
    pipeline.__class__ = Watched
    counted = []
    part = pipeline.unet if getattr(pipeline, "unet", None) is not None else pipeline.transformer
    hook = part.register_forward_hook(lambda *_: counted.append(1))
    image, mask, samples = request(1, 32, 32)
    backend.generate_infill(image, mask, descriptor, samples=samples)
    hook.remove()
    return seen, len(counted)


@pytest.mark.parametrize("run", ["sd_text", "sd_inpaint", "sd3", "flux", "flux_fill", "z_image", "qwen_image"])
@pytest.mark.parametrize("strength", [0.3, 0.9, 1.0])
def test_as_many_steps_are_run_as_asked_for_whatever_the_strength(run, strength, stored):
    _, count = called_with(make(stored, run, steps=3, strength=strength, guidance=1.0))
    assert count in (3, 4)  # of schedulers with a first step of their own, one more


def test_the_complexity_asks_for_more_steps_and_few_step_models_keep_theirs(stored):
    for run, steps in (("flux_fill", (20, 28, 50)), ("flux_schnell", (4, 4, 8))):
        for complexity, wanted in zip(("low", "medium", "high"), steps, strict=True):
            _, count = called_with(make(stored, run, steps=None), dataclasses.replace(CAT, complexity=complexity))
            assert count == wanted


def test_a_model_that_sees_the_mask_begins_with_noise_and_others_with_a_smooth_continuation(stored):
    for run, strength in (
        ("sd_inpaint", 1.0),
        ("sdxl_inpaint", 0.99),
        ("flux_fill", 1.0),
        ("sd_text", 0.9),
        ("sd3", 0.9),
    ):
        seen, _ = called_with(make(stored, run))
        assert seen["strength"] == strength
    for run in ("sd_inpaint", "sdxl_inpaint"):
        seen, count = called_with(make(stored, run, steps=None, scheduler="lcm"))
        assert (count, seen["strength"]) == (4, 1.0)


def test_lcm_is_few_steps_without_guidance(stored):
    seen, count = called_with(make(stored, "sd_inpaint", steps=None, scheduler="lcm"))
    assert (count, seen["guidance_scale"]) == (4, 1.0)


def test_an_instruction_is_made_of_a_prompt_that_is_not_the_users_own(stored):
    seen, _ = called_with(make(stored, "instruct_pix2pix"), TaskDescriptor("pets", "cat"))
    assert seen["prompt"][0].startswith("Replace the blurred area with: photorealistic empty background")
    seen, _ = called_with(make(stored, "instruct_pix2pix"), CAT)
    assert seen["prompt"] == ["a beach"]


def test_an_adapter_changes_the_fill_and_the_fingerprint(stored, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(stored("sd_inpaint"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    state = get_peft_model_state_dict(pipe.unet)
    diffusers.StableDiffusionInpaintPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
    image, mask, samples = request(1, 32, 32)
    plain, tuned = make(stored), make(stored, lora=str(tmp_path))
    by_file = make(stored, lora=str(tmp_path / "pytorch_lora_weights.safetensors"))
    fills = [b.generate_infill(image, mask, CAT, samples=samples) for b in (plain, tuned, by_file)]
    assert not torch.equal(fills[0], fills[1])
    assert torch.equal(fills[1], fills[2])
    assert plain.model_config(CAT).fingerprint() != tuned.model_config(CAT).fingerprint()


# --- identity ---


def test_the_fingerprint_changes_with_what_changes_the_fill_and_with_nothing_else():
    def of(descriptor=CAT, **options):
        return load_backend("diffusers", **{"model": "a/b", **options}).model_config(descriptor).fingerprint()

    changes = [
        of(), of(model="a/c"), of(revision="1"), of(variant="fp16"), of(pipeline="FluxFillPipeline"),
        of(dtype="float16"), of(lora="a/d"), of(scheduler="lcm"), of(steps=3), of(guidance=2.0), of(strength=0.5),
        of(size=256), *(of(dataclasses.replace(CAT, **c)) for c in (
            {"prompt": "a wood"}, {"negative_prompt": ""}, {"complexity": "low"}, {"options": {"steps": 4}})),
    ]  # fmt: skip
    assert len(set(changes)) == len(changes)
    assert {of(max_batch=1), of(offload=True), of(safety_checker=False)} == {of()}


def test_a_stored_model_is_known_by_its_files_and_not_by_its_place(stored, tmp_path):
    folder = stored("sd_inpaint")
    same = shutil.copytree(folder, tmp_path / "same")
    other = tiny_pipeline(tmp_path / "other", "sd_inpaint", seed=1)
    prints = [load_backend("diffusers", model=str(f)).model_config(CAT).fingerprint() for f in (folder, same, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda backend: pickle.loads(pickle.dumps(backend))])
def test_copies_leave_the_model_behind_and_fill_alike(twin, stored):
    backend = make(stored)
    image, mask, samples = request(1, 32, 32)
    wanted = backend.generate_infill(image, mask, CAT, samples=samples)
    other = twin(backend)
    assert other._network is None
    assert torch.equal(other.generate_infill(image, mask, CAT, samples=samples), wanted)


# --- what goes wrong ---


def refused(backend, message):
    image, mask, samples = request(1, 16, 16)
    with pytest.raises(BackendUnavailableError, match=message):
        backend.generate_infill(image, mask, CAT, samples=samples)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    refused(
        load_backend("diffusers", model=str(tmp_path)), r"no diffusers pipeline.*model_index\.json.*save_pretrained"
    )


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    refused(load_backend("diffusers", model=str(tmp_path / "x" / "y")), "neither a folder nor an id on the hub")


def test_a_model_that_is_not_cached_is_refused_without_a_network(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(load_backend("diffusers", model="nobody/nothing"), "hub cannot be reached.*hf download nobody/nothing")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_pipeline_without_a_part_is_refused(part, stored, tmp_path):
    folder = shutil.copytree(stored("sd_inpaint"), tmp_path / "copy")
    shutil.rmtree(folder / part)
    refused(load_backend("diffusers", model=str(folder)), rf"cannot be loaded, its parts \['{part}'\] are missing")


@pytest.mark.parametrize(
    ("option", "message"), [({}, "its parts \\['unet'\\] are missing"), ({"scheduler": "NoScheduler"}, "NoScheduler")]
)
def test_what_is_missing_is_said_before_anything_is_loaded(option, message, stored, tmp_path):
    folder = shutil.copytree(stored("sd_inpaint"), tmp_path / "copy")
    shutil.rmtree(folder / "unet")
    refused(load_backend("diffusers", model=str(folder), vae="/nowhere/vae", **option), message)


def test_weights_that_lack_a_layer_are_refused_and_not_drawn_at_random(stored, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(stored("sd_inpaint"), tmp_path / "copy")
    (file,) = (folder / "unet").glob("*.safetensors")
    weights = load_file(file)
    weights.pop("conv_out.weight")
    save_file(weights, file, metadata={"format": "pt"})
    refused(load_backend("diffusers", model=str(folder)), r"lacks weights of \['unet'\]")


def test_a_pipeline_without_weights_is_refused(stored, tmp_path):
    folder = shutil.copytree(stored("sd_inpaint"), tmp_path / "copy")
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    refused(load_backend("diffusers", model=str(folder)), "missing or broken")


def test_a_pipeline_that_cannot_fill_is_refused(stored, tmp_path):
    folder = shutil.copytree(stored("sd_inpaint"), tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "DDPMPipeline"}))
    refused(load_backend("diffusers", model=str(folder)), "is a DDPMPipeline, which cannot fill")


@pytest.mark.parametrize("option", [{"pipeline": "NoPipeline"}, {"scheduler": "NoScheduler"}, {"lora": "/nowhere/x"}])
def test_a_name_that_diffusers_does_not_have_is_refused(option, stored):
    refused(load_backend("diffusers", model=stored("sd_inpaint"), **option), next(iter(option.values())))


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"guidance": -1},
        {"strength": 0},
        {"strength": 1.1},
        {"size": 8},
        {"dtype": "int8"},
        {"max_batch": 0},
    ],
)
def test_options_out_of_range_are_refused_by_name(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        load_backend("diffusers", model="a/b", **option)


class Flags(torch.nn.Module):
    """Flags every second picture that it is asked about."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, images, clip_input=None):
        self.asked += 1
        return images, [self.asked % 2 == 0] * len(images)


def test_a_picture_that_the_safety_checker_flags_is_a_failure_and_the_others_are_filled(stored):
    backend = make(stored, "sd_inpaint")
    pipeline, flags = backend.network(torch.device("cpu")), Flags()
    pipeline.run_safety_checker = lambda image, device, dtype: flags(image)
    image, mask, samples = request(3, 32, 32)
    with pytest.raises(PartialInfillError, match=r"sample 1: .*safety checker.*safety_checker=False") as caught:
        backend.generate_infill(image, mask, CAT, samples=samples)
    assert caught.value.ok.tolist() == [True, False, True]
    assert torch.equal(caught.value.images[1], image[1].masked_fill(mask[1], 0))


# --- pure functions ---


@pytest.mark.parametrize("flow", [True, False])
def test_a_schedule_leaves_the_steps_that_were_asked_for(flow):
    for steps in (1, 2, 4, 8, 28, 50):
        for strength in (0.05, 0.3, 0.6, 0.9, 0.99, 1.0):
            asked = schedule_length(steps, strength, flow)
            left = min(asked * strength, asked)
            assert steps <= (asked - int(asked - left) if flow else int(left)) <= steps + 1


@pytest.mark.parametrize("size", [(512, 512), (300, 400), (1, 9), (2000, 31), (1, 1)])
def test_the_working_size_has_the_models_area_and_the_pictures_aspect(size):
    height, width = working_size(*size, 512, 16)
    assert height % 16 == width % 16 == 0
    assert 0.9 < height * width / 512**2 < 1.1
    assert width / height == pytest.approx(min(max(size[1] / size[0], 1 / 3), 3), rel=0.08)


def test_every_family_is_found_by_the_classes_of_diffusers():
    for name, prefix in {
        "FluxFillPipeline": "FluxFill", "FluxKontextInpaintPipeline": "FluxKontext", "FluxInpaintPipeline": "Flux",
        "StableDiffusion3InpaintPipeline": "StableDiffusion3", "QwenImageEditInpaintPipeline": "QwenImageEdit",
        "StableDiffusionXLInpaintPipeline": "StableDiffusionXL", "Flux2KleinInpaintPipeline": "Flux2Klein",
    }.items():  # fmt: skip
        assert family_of(name).prefix == prefix
        assert hasattr(diffusers, name)
