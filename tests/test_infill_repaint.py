import json
import shutil

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, EDMEulerScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill import BackendUnavailableError, SampleContext
from infill_aug.infill.diffusion import DiffusionBackend
from infill_aug.infill.pipeline import load_infiller
from infill_aug.infill.repaint import RePaint

CAT = TaskDescriptor("pets", "cat")
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def tiny_unet(levels=2, cls=UNet2DModel, **options):
    torch.manual_seed(0)
    settings = {
        "sample_size": 16, "block_out_channels": (8,) * levels, "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
    }  # fmt: skip
    return cls(**{**settings, **options}).eval()


def saved(folder, prediction="epsilon", kind=DDPMPipeline, unet=None):
    schedulers = {DDPMPipeline: DDPMScheduler, DDIMPipeline: DDIMScheduler}
    kind(unet or tiny_unet(), schedulers[kind](prediction_type=prediction)).save_pretrained(folder)
    return str(folder)


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


def request(count=3, height=16, width=16):
    image = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    hole = torch.zeros(count, 1, height, width, dtype=torch.bool)
    hole[..., 4:-4, 4:-4] = True
    return image, hole


class Opposites(UNet2DModel):
    """The exact answer for pictures with one colour on the left and its opposite on the right.

    Colours are normal in -1..1, so that the best guess of them is a mean over all pixels, drawn to 0.
    """

    spread = 0.5

    def forward(self, sample, timestep):
        share = self.schedule.alphas_cumprod[timestep]
        side = torch.ones(sample.shape[-1])
        side[sample.shape[-1] // 2 :] = -1
        pixels = sample.shape[-1] * sample.shape[-2]
        colour = (sample * side).mean(dim=(2, 3), keepdim=True) * share.sqrt() * self.spread**2
        clean = side * colour / (share * self.spread**2 + (1 - share) / pixels)
        noise = (sample - share.sqrt() * clean) / (1 - share).sqrt()
        velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
        wanted = {"epsilon": noise, "sample": clean.expand_as(sample), "v_prediction": velocity}
        return UNet2DOutput(wanted[self.schedule.config.prediction_type])


def opposites(prediction, schedule):
    unet = tiny_unet(cls=Opposites)
    unet.schedule = DDPMScheduler(beta_schedule=schedule, prediction_type=prediction)
    return RePaint(unet, unet.schedule)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_visible_half_tells_what_the_model_puts_into_the_other(prediction, schedule):
    colours = 0.5 + 0.25 * torch.randn(32, 3, 1, 1, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    image = colours.repeat(1, 1, 16, 16)
    hole = torch.zeros(32, 1, 16, 16, dtype=torch.bool)
    hole[..., 8:] = True
    fill = opposites(prediction, schedule)(image.masked_fill(hole, 0), hole, seeds(*range(32)), steps=4)
    assert torch.equal(fill[..., :8], image[..., :8])
    assert float((fill[..., 8:] - (1 - image[..., 8:])).square().mean().sqrt()) < 0.04


@pytest.mark.parametrize(("strength", "levels"), [(1.0, 4), (0.5, 2)])
def test_at_each_visit_the_network_sees_as_much_noise_as_it_was_trained_with(strength, levels):
    network = opposites("epsilon", "linear")
    seen = []
    network.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    hole = torch.zeros(32, 1, 16, 16, dtype=torch.bool)
    hole[..., 8:] = True
    image = torch.full((32, 3, 16, 16), 0.4)
    start = None if strength == 1 else torch.where(hole, 1 - image, image)
    network(image, hole, seeds(*range(32)), steps=4, start=start, strength=strength)
    assert len(seen) == 3 * len({int(time) for _, time in seen}) == 3 * levels
    for state, time in seen:
        noise = (1 - network.scheduler.alphas_cumprod[time]).sqrt()
        for half in state.split(8, dim=-1):
            assert float(half.std(dim=(2, 3)).mean() / noise) == pytest.approx(1, abs=0.03)


def test_a_weak_departure_stays_nearer_to_its_start():
    start = torch.full((8, 3, 16, 16), 0.2)
    start[..., 8:] = 0.8
    everything = torch.ones(8, 1, 16, 16, dtype=torch.bool)
    network = opposites("epsilon", "linear")
    far = [
        float((network(start, everything, seeds(*range(8)), steps=10, start=start, strength=each) - start).abs().mean())
        for each in (0.1, 0.4, 1.0)
    ]
    assert far[0] < 0.03
    assert far == sorted(far)


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_saved_model_fills_pictures_of_any_size_as_a_backend(tmp_path, prediction, kind):
    backend = DiffusionBackend(saved(tmp_path, prediction, kind), steps=2)
    image, hole = request(2, 41, 57)
    samples = [SampleContext("a", 1), SampleContext("b", 2)]
    fill = backend.generate_infill(image, hole, CAT, samples=samples)
    assert fill.shape == image.shape
    assert ((fill >= 0) & (fill <= 1)).all()
    assert torch.equal(fill[~hole.expand_as(fill)], image[~hole.expand_as(fill)])
    assert torch.equal(fill[1:], backend.generate_infill(image[1:], hole[1:], CAT, samples=samples[1:]))
    other = backend.generate_infill(image, hole, CAT, samples=[SampleContext("a", 3), SampleContext("b", 2)])
    assert torch.equal(fill[1], other[1])
    assert (fill[0] - other[0]).abs().max() > 0.05


def test_weights_and_kind_of_prediction_are_those_that_were_saved(tmp_path):
    unet = tiny_unet()
    with torch.no_grad():
        unet.conv_out.weight.zero_()
        unet.conv_out.bias.copy_(torch.tensor([-0.5, 0.0, 0.5]))  # every picture is of this colour
    backend = DiffusionBackend(saved(tmp_path, "sample", unet=unet), steps=1)
    image, hole = request(1, 64, 64)
    fill = backend.generate_infill(image, hole, CAT, samples=[SampleContext("a", 1)])
    inside = fill[0, :, 16:-16, 16:-16]  # where no visible pixel is mixed in by enlarging
    assert torch.allclose(inside, torch.tensor([0.25, 0.5, 0.75])[:, None, None].expand_as(inside), atol=0.01)


def test_a_sample_gets_the_same_fill_alone_and_in_a_batch():
    network = RePaint(tiny_unet(), DDPMScheduler())
    image, hole = request()
    together = network(image, hole, seeds(5, 6, 7))
    for i in range(3):
        alone = network(image[i : i + 1], hole[i : i + 1], seeds(5 + i))
        assert torch.allclose(alone[0], together[i], atol=1e-4)


def test_what_lies_in_the_hole_is_not_looked_at_even_where_cells_reach_beyond_the_border():
    network = RePaint(tiny_unet(levels=5), DDPMScheduler())
    image, hole = request(3, 16, 24)
    hole[..., 12:] = True
    assert torch.equal(*(network(image.masked_fill(hole, each), hole, seeds(0, 1, 2)) for each in (0.0, 1.0)))


def test_a_network_of_larger_cells_fills_sizes_that_they_do_not_divide():
    network = RePaint(tiny_unet(levels=6, sample_size=(32, 64)), DDPMScheduler())
    assert network.size == 32
    image, hole = request(2, 48, 80)
    fill = network(image, hole, seeds(0, 1), start=image, strength=0.6)
    assert fill.shape == image.shape
    assert torch.equal(fill[~hole.expand_as(fill)], image[~hole.expand_as(fill)])


@pytest.mark.parametrize(("trained", "steps"), [(10, 50), (1000, 1)])
def test_steps_are_not_more_than_the_noise_levels_of_the_model(trained, steps):
    network = RePaint(tiny_unet(), DDPMScheduler(num_train_timesteps=trained, beta_end=0.9))
    image, hole = request(1)
    assert network(image, hole, seeds(0), steps=steps).isfinite().all()
    assert 1 <= len(network.scheduler.timesteps) <= min(trained, steps)


def test_a_folder_with_all_files_at_the_top_is_read_like_one_with_a_folder_for_each_part(tmp_path):
    deep, flat = tmp_path / "deep", tmp_path / "flat"
    saved(deep)
    flat.mkdir()
    for file in (file for file in deep.rglob("*") if file.is_file()):
        shutil.copy(file, flat / file.name)
    image, hole = request()
    assert torch.equal(*(load_infiller(each)(image, hole, seeds(0, 1, 2)) for each in (deep, flat)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 4, "out_channels": 4}, "takes 4 and gives 4 channels; only 3 and 3 are allowed"),
        ({"out_channels": 6}, "takes 3 and gives 6 channels"),
        ({"num_class_embeds": 10}, "wants a class for each picture; only models without classes"),
        ({"class_embed_type": "timestep"}, "wants a class for each picture"),
        ({"sample_size": None}, "config has no sample_size"),
    ],
)
def test_networks_of_another_kind_are_refused(tmp_path, options, message):
    folder = saved(tmp_path, unet=tiny_unet(**options))
    with pytest.raises(ValueError, match=message):
        load_infiller(folder)
    image, hole = request(1)
    with pytest.raises(BackendUnavailableError, match=message):
        DiffusionBackend(folder).generate_infill(image, hole, CAT, samples=[SampleContext("a", 1)])


def test_another_kind_of_scheduler_or_prediction_is_refused_by_name(tmp_path):
    DDPMPipeline(tiny_unet(), EDMEulerScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="scheduler is a EDMEulerScheduler, which has no betas; allowed are DDPMSched"):
        load_infiller(tmp_path)
    with pytest.raises(ValueError, match=r"prediction_type must be one of .*got 'flow'"):
        RePaint(tiny_unet(), DDPMScheduler(prediction_type="flow"))


def test_weights_that_are_missing_do_not_become_random_ones(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "unet/config.json").read_text())
    (tmp_path / "unet/config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    with pytest.raises(ValueError, match=r"weights of its network are missing.*down_blocks"):
        load_infiller(tmp_path)


def test_a_pipeline_that_is_not_allowed_is_told_which_are(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "ScoreSdeVePipeline"}')
    with pytest.raises(ValueError, match="is a ScoreSdeVePipeline, not an InfillPipeline, DDPMPipeline or DDIMPip"):
        load_infiller(tmp_path)
