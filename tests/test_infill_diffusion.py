import dataclasses

import pytest
import torch

pytest.importorskip("diffusers")

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill import BackendUnavailableError, SampleContext, load_backend
from infill_aug.infill.backend import PoolSample
from infill_aug.infill.diffusion import DiffusionBackend, add_detail, sizes
from infill_aug.infill.pipeline import InfillPipeline, new_infiller

CAT = TaskDescriptor("pets", "cat")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny untrained pipeline."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    torch.manual_seed(0)
    InfillPipeline(*new_infiller(size=16, channels=(8, 16))).save_pretrained(folder)
    return str(folder)


def pool(count=4, size=40):
    for i in range(count):
        image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        yield PoolSample(f"donor {i}", image, torch.zeros(1, size, size, dtype=torch.uint8))


def request(height=40, width=56):
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, height, width, dtype=torch.bool)
    mask[..., 4:-4, 4:-4] = True
    return image, mask, [SampleContext("a", 1), SampleContext("b", 2)]


@pytest.mark.parametrize(
    ("picture", "base", "wanted"),
    [
        ((64, 64), 64, [(64, 64)]),
        ((40, 40), 64, [(64, 64)]),
        ((224, 224), 64, [(64, 64), (128, 128)]),
        ((300, 224), 64, [(80, 64), (160, 128)]),
        ((10, 1000), 64, [(64, 128)]),
        ((1, 1), 64, [(64, 64)]),
    ],
)
def test_pictures_are_filled_at_the_networks_size_and_large_ones_at_twice_that_too(picture, base, wanted):
    assert sizes(*picture, base) == wanted


def test_detail_is_what_a_coarse_fill_cannot_hold():
    generator = torch.Generator().manual_seed(0)
    fill = torch.full((1, 3, 64, 64), 0.5)
    donors = torch.rand(1, 3, 64, 64, generator=generator)
    detailed = add_detail(fill, donors, (16, 16), 1.0)
    assert detailed.std() > 0.1
    assert torch.nn.functional.avg_pool2d(detailed, 8).std() < 0.03
    assert torch.equal(add_detail(fill, donors, (16, 16), 0.0), fill)
    assert torch.equal(add_detail(fill, donors, (64, 64), 1.0), fill)


def test_with_donors_a_fill_depends_on_them_and_without_them_it_begins_with_noise(weights):
    image, mask, samples = request()
    plain, filled = DiffusionBackend(weights), DiffusionBackend(weights)
    filled.prepare(pool())
    fills = [each.generate_infill(image, mask, CAT, samples=samples) for each in (plain, filled)]
    assert not torch.equal(*fills)
    assert plain.model_config(CAT).fingerprint() != filled.model_config(CAT).fingerprint()
    others = DiffusionBackend(weights)
    others.prepare(list(pool())[:2])
    assert others.model_config(CAT).fingerprint() != filled.model_config(CAT).fingerprint()


def test_a_picture_is_never_its_own_donor(weights):
    backend = DiffusionBackend(weights)
    backend.prepare(list(pool())[:1])
    image, mask, _ = request()
    samples = [SampleContext("donor 0", 1), SampleContext("else", 1)]
    with pytest.raises(Exception, match=r"sample 0: .*other than the image itself"):
        backend.generate_infill(image, mask, CAT, samples=samples)


def test_the_complexity_sets_the_steps_and_an_option_wins(weights):
    backend = DiffusionBackend(weights)
    steps = [
        dict(backend.model_config(dataclasses.replace(CAT, complexity=each)).options)["steps"]
        for each in ("low", "medium", "high")
    ]
    assert steps == [2, 4, 8]
    assert dict(backend.model_config(dataclasses.replace(CAT, options={"steps": 3})).options)["steps"] == 3


def test_other_weights_are_another_fingerprint(weights, tmp_path):
    torch.manual_seed(5)
    InfillPipeline(*new_infiller(size=16, channels=(8, 16))).save_pretrained(tmp_path)
    prints = {DiffusionBackend(each).model_config(CAT).fingerprint() for each in (weights, str(tmp_path))}
    assert len(prints) == 2


def test_a_folder_without_weights_says_how_to_make_some(tmp_path):
    image, mask, samples = request()
    with pytest.raises(BackendUnavailableError, match=r"holds no infiller.*recipes/train_infiller\.py"):
        DiffusionBackend(str(tmp_path)).generate_infill(image, mask, CAT, samples=samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer in 1..50 or null, got 0"),
        ({"steps": True}, "steps must be"),
        ({"strength": 0}, "strength must lie above 0 and up to 1, got 0"),
        ({"strength": 1.5}, "strength must lie"),
        ({"detail": -1}, "detail must lie in 0..1, got -1"),
        ({"pool_size": -1}, "pool_size must be an integer of 0 or more, got -1"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        load_backend("diffusion", **options)


def test_without_weights_the_error_says_that_none_are_bundled_yet():
    image, mask, samples = request()
    with pytest.raises(BackendUnavailableError, match=r"no bundled weights yet.*recipes/train_infiller\.py"):
        DiffusionBackend().generate_infill(image, mask, CAT, samples=samples)
