import dataclasses

import pytest
import torch

pytest.importorskip("diffusers")

from tiny_networks import tiny_infiller

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill import BackendUnavailableError, SampleContext, load_backend
from infill_aug.infill.backend import PoolSample
from infill_aug.infill.diffusion import BUNDLED, DiffusionBackend, add_detail, sizes

CAT = TaskDescriptor("pets", "cat")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny untrained pipeline."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    tiny_infiller().save_pretrained(folder)
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


def test_with_donors_a_fill_depends_on_them_and_without_them_it_continues_what_is_visible(weights):
    image, mask, samples = request()
    plain, filled = DiffusionBackend(weights), DiffusionBackend(weights)
    filled.prepare(pool())
    fills = [each.generate_infill(image, mask, CAT, samples=samples) for each in (plain, filled)]
    assert not torch.equal(*fills)
    dark = plain.generate_infill(image * 0.2, mask, CAT, samples=samples)
    inside = mask.expand_as(image)
    assert dark[inside].mean() < 0.7 * fills[0][inside].mean()
    assert plain.model_config(CAT).fingerprint() != filled.model_config(CAT).fingerprint()
    others = DiffusionBackend(weights)
    others.prepare(list(pool())[:2])
    assert others.model_config(CAT).fingerprint() != filled.model_config(CAT).fingerprint()


def test_a_picture_is_never_its_own_donor(weights):
    backend = DiffusionBackend(weights)
    own, other = list(pool(2))
    bright, dark = (dataclasses.replace(each, image=each.image // 8 + up) for each, up in ((own, 200), (other, 0)))
    backend.prepare([bright, dark])
    for seed in range(6):
        draws = backend._donors([SampleContext("donor 0", seed)], 40, 40, torch.device("cpu"))
        assert draws.max() < 0.2


def test_a_build_of_one_picture_has_no_donors_and_still_fills(weights):
    backend = DiffusionBackend(weights)
    backend.prepare(list(pool())[:1])
    image, mask, _ = request()
    fill = backend.generate_infill(image, mask, CAT, samples=[SampleContext("donor 0", i) for i in range(2)])
    assert not torch.equal(fill, image)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_hole_too_thin_for_the_networks_size_is_filled_like_what_is_around_it(weights, strength):
    image = torch.full((1, 3, 112, 112), 0.5)
    mask = torch.zeros(1, 1, 112, 112, dtype=torch.bool)
    mask[..., 50:52] = True
    fill = DiffusionBackend(weights, strength=strength).generate_infill(image, mask, CAT)
    assert (fill[mask.expand_as(fill)] - 0.5).abs().max() < 0.1


def test_the_complexity_sets_the_steps_and_an_option_wins(weights):
    backend = DiffusionBackend(weights)
    steps = [
        dict(backend.model_config(dataclasses.replace(CAT, complexity=each)).options)["steps"]
        for each in ("low", "medium", "high")
    ]
    assert steps == [2, 4, 8]
    assert dict(backend.model_config(dataclasses.replace(CAT, options={"steps": 3})).options)["steps"] == 3


def test_other_weights_are_another_fingerprint(weights, tmp_path):
    tiny_infiller(seed=5).save_pretrained(tmp_path)
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
        ({"strength": -0.1}, "strength must lie in 0..1 or be null, got -0.1"),
        ({"strength": 1.5}, "strength must lie"),
        ({"detail": -1}, "detail must lie in 0..1, got -1"),
        ({"pool_size": -1}, "pool_size must be an integer of 0 or more, got -1"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        load_backend("diffusion", **options)


def test_an_untouched_network_gives_the_donor_and_all_of_its_detail(weights, tmp_path):
    from infill_aug.infill.pipeline import new_infiller

    # What is not yet trained changes nothing, so each level has to hand the donor on as it is.
    new_infiller(size=16, channels=(8, 16)).save_pretrained(tmp_path)
    image, mask, samples = request(48, 48)
    smooth = [dataclasses.replace(each, image=each.image // 8 + 100) for each in pool()]
    fills = []
    for backend in (DiffusionBackend(str(tmp_path)), load_backend("donor")):
        backend.prepare(smooth)
        fills.append(backend.generate_infill(image, mask, CAT, samples=samples))
    assert (fills[0] - fills[1]).abs().max() < 0.1
    assert (fills[0] - fills[1]).abs().mean() < 0.02


def test_the_bundled_weights_fill_within_the_limit_of_their_size():
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*")) < 20e6
    image, mask, samples = request(64, 64)
    backend = DiffusionBackend()
    backend.prepare(pool(size=64))
    fill = backend.generate_infill(image, mask, CAT, samples=samples)
    assert torch.equal(fill[~mask.expand_as(fill)], image[~mask.expand_as(fill)])
    assert fill[mask.expand_as(fill)].std() > 0.05
