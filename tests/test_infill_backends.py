import copy
import dataclasses
import pickle
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_backends import CLOUD, tiny_options

from infill_aug.descriptor import TaskDescriptor
from infill_aug.functional.masks import dilate
from infill_aug.infill import list_backends, load_backend
from infill_aug.infill.backend import (
    InfillBackend,
    InfillError,
    ModelConfig,
    PartialInfillError,
    PoolSample,
    SampleContext,
)
from infill_aug.infill.donor import DonorBackend, match_colors
from infill_aug.infill.donor_pool import DonorPool, make_plate
from infill_aug.infill.noise import fractal_noise
from infill_aug.infill.push_pull import push_pull
from infill_aug.key import image_digest

CAT = TaskDescriptor("pets", "cat", seed=1)
BACKENDS = [name for name in list_backends() if name not in CLOUD]
SIZES = [(16, 16), (7, 33), (33, 7), (1, 9), (9, 1), (2, 2), (40, 24)]


def pool(count=6, height=20, width=24):
    """Donors: noise around a different colour each, nothing of an object in them."""
    for i in range(count):
        generator = torch.Generator().manual_seed(1000 + i)
        image = torch.randint(20 * i, 20 * i + 100, (3, height, width), dtype=torch.uint8, generator=generator)
        yield PoolSample(image_digest(image), image, torch.zeros(1, height, width, dtype=torch.uint8), label=i % 2)


def make(name, **options):
    """A backend that is ready to fill."""
    if name == "telea":
        pytest.importorskip("cv2")
    if name in ("diffusers", "diffusion", "mae"):
        pytest.importorskip({"mae": "transformers"}.get(name, "diffusers"))
    backend = load_backend(name, **tiny_options(name) | options)
    if backend.pool_size:
        backend.prepare(pool())
    return backend


def request(count, height, width, seed=0, share=0.4):
    """Images, masks that leave something to see, and a context each."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 3, height, width, generator=generator)
    mask = torch.rand(count, 1, height, width, generator=generator) < share
    mask[..., 0, 0] = True
    mask[..., -1, -1] = False
    return image, mask, [SampleContext(f"sample {i}", 77 * seed + i, i % 2) for i in range(count)]


# --- what every backend promises ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BACKENDS)
def test_fills_have_the_shape_and_range_of_images_and_keep_what_is_visible(name, size):
    image, mask, samples = request(3, *size)
    for given_mask in (mask, mask.float(), mask.to(torch.uint8)):
        fill = make(name).generate_infill(image, given_mask, CAT, samples=samples)
        assert fill.shape == image.shape
        assert fill.dtype == torch.float32
        assert fill.isfinite().all()
        assert ((fill >= 0) & (fill <= 1)).all()
        kept = ~mask.expand_as(image)
        assert torch.equal(fill[kept], image[kept])
        assert not fill.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", BACKENDS)
def test_images_of_every_floating_point_dtype_are_filled_in_float32(name, dtype):
    image, mask, samples = request(2, 12, 10)
    fill = make(name).generate_infill(image.to(dtype), mask, CAT, samples=samples)
    assert fill.dtype == torch.float32
    kept = ~mask.expand_as(image)
    assert torch.equal(fill[kept], image.to(dtype).float()[kept])


@pytest.mark.parametrize("size", [(16, 16), (7, 33), (70, 130)])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_sample_is_filled_alike_alone_in_a_batch_at_any_position_and_beside_any_other(name, size):
    backend = make(name)
    image, mask, samples = request(7, *size)
    mask[3] = False
    together = backend.generate_infill(image, mask, CAT, samples=samples)
    order = [4, 2, 6, 0, 3, 5, 1]
    shuffled = backend.generate_infill(image[order], mask[order], CAT, samples=[samples[i] for i in order])
    assert torch.equal(shuffled, together[order])
    for i in range(7):
        alone = backend.generate_infill(image[i : i + 1], mask[i : i + 1], CAT, samples=samples[i : i + 1])
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_fill_does_not_depend_on_the_memory_layout(name):
    backend = make(name)
    image, mask, samples = request(2, 70, 130)
    wanted = backend.generate_infill(image, mask, CAT, samples=samples)
    flipped = image.flip(-1).contiguous().flip(-1)
    for other in (image.to(memory_format=torch.channels_last), image.mT.contiguous().mT, flipped):
        assert torch.equal(backend.generate_infill(other, mask, CAT, samples=samples), wanted)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_fill_does_not_depend_on_the_number_of_threads(name):
    backend = make(name)
    image, mask, samples = request(2, 70, 130)
    wanted = backend.generate_infill(image, mask, CAT, samples=samples)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        again = make(name).generate_infill(image, mask, CAT, samples=samples)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, wanted)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_sample_without_a_context_is_filled_alike_alone_and_in_a_batch(name):
    backend = make(name)
    image, mask, _ = request(5, 12, 14)
    together = backend.generate_infill(image, mask, CAT)
    for i in range(5):
        assert torch.equal(backend.generate_infill(image[i : i + 1], mask[i : i + 1], CAT)[0], together[i])


@pytest.mark.parametrize("name", BACKENDS)
def test_what_lies_under_the_mask_is_not_looked_at(name):
    backend = make(name)
    image, mask, samples = request(3, 15, 18)
    for contexts in (samples, None):
        wanted = backend.generate_infill(image, mask, CAT, samples=contexts)
        for hidden in (0.0, 1.0, 0.3, torch.nan, torch.inf, -7.0):
            other = image.masked_fill(mask, hidden)
            assert torch.equal(backend.generate_infill(other, mask, CAT, samples=contexts), wanted)


@pytest.mark.parametrize("name", BACKENDS)
def test_inputs_are_left_as_they_are(name):
    image, mask, samples = request(3, 9, 9)
    before = image.clone(), mask.clone()
    make(name).generate_infill(image, mask, CAT, samples=samples)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


@pytest.mark.parametrize("name", BACKENDS)
def test_samples_with_an_empty_mask_come_back_as_they_are(name):
    image, mask, samples = request(4, 12, 12)
    mask[1], mask[2] = False, False
    fill = make(name).generate_infill(image, mask, CAT, samples=samples)
    assert torch.equal(fill[1:3], image[1:3])
    assert not torch.equal(fill[0], image[0])
    assert torch.equal(make(name).generate_infill(image, torch.zeros_like(mask), CAT, samples=samples), image)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_empty_batch_is_no_error(name):
    fill = make(name).generate_infill(torch.zeros(0, 3, 4, 4), torch.zeros(0, 1, 4, 4), CAT)
    assert fill.shape == (0, 3, 4, 4)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_seed_changes_the_fill_where_the_backend_says_so_and_nowhere_else(name):
    backend = make(name)
    image, mask, _ = request(1, 32, 40)
    fills = [
        backend.generate_infill(image, mask, CAT, samples=[SampleContext("a", seed)])
        for seed in (0, 1, 2, 3, 2**63 - 1)
    ]
    different = sum(not torch.equal(fill, fills[0]) for fill in fills)
    assert backend.model_config(CAT).stochastic == (different > 0)
    assert different >= 3 or not backend.stochastic
    other = dataclasses.replace(CAT, seed=2)
    same = torch.equal(backend.generate_infill(image, mask, CAT), backend.generate_infill(image, mask, other))
    assert same == (not backend.stochastic)
    again = backend.generate_infill(image, mask, CAT, samples=[SampleContext("a", 3)])
    assert torch.equal(again, fills[3])


@pytest.mark.parametrize("name", BACKENDS)
def test_fills_do_not_touch_the_global_generators(name):
    backend = make(name)
    image, mask, samples = request(2, 16, 16)
    before = torch.get_rng_state()
    wanted = backend.generate_infill(image, mask, CAT, samples=samples)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(backend.generate_infill(image, mask, CAT, samples=samples), wanted)


@pytest.mark.parametrize("size", [(12, 10), (1, 1)])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_picture_of_which_nothing_is_visible_is_filled_or_refused_by_the_backends_name(name, size):
    backend = make(name)
    image, mask, samples = request(3, *size)
    mask[:] = False
    mask[1] = True
    if not backend.needs_visible:
        fill = backend.generate_infill(image, mask, CAT, samples=samples)
        assert fill.isfinite().all()
        return
    with pytest.raises(PartialInfillError, match=rf"sample 1: nothing is visible for '{name}'") as caught:
        backend.generate_infill(image, mask, CAT, samples=samples)
    assert caught.value.ok.tolist() == [True, False, True]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_is_the_same_after_a_deepcopy(name):
    backend = make(name)
    image, mask, samples = request(2, 16, 16)
    twin = copy.deepcopy(backend)
    assert twin.model_config(CAT) == backend.model_config(CAT)
    fills = [each.generate_infill(image, mask, CAT, samples=samples) for each in (backend, twin)]
    assert torch.equal(*fills)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (torch.rand(3, 8, 8), torch.zeros(1, 1, 8, 8), r"\(3, 8, 8\)"),
        (torch.rand(2, 4, 8, 8), torch.zeros(2, 1, 8, 8), r"\(2, 4, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), "uint8"),
        (torch.rand(2, 3, 8, 8), torch.zeros(2, 1, 8, 9), r"\(2, 1, 8, 8\).*\(2, 1, 8, 9\)"),
        (torch.rand(2, 3, 8, 8), torch.zeros(1, 1, 8, 8), r"\(2, 1, 8, 8\).*\(1, 1, 8, 8\)"),
        (torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8), r"\(2, 1, 8, 8\).*\(2, 8, 8\)"),
        (torch.rand(2, 3, 8, 8), torch.full((2, 1, 8, 8), 0.5), "0 and 1 only"),
        (torch.rand(2, 3, 8, 8), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8), "0 and 1 only"),
        (torch.rand(2, 3, 8, 8), torch.full((2, 1, 8, 8), torch.nan), "0 and 1 only"),
        (torch.full((2, 3, 8, 8), 255.0), torch.zeros(2, 1, 8, 8), "from 255 to 255"),
        (torch.full((2, 3, 8, 8), torch.nan), torch.zeros(2, 1, 8, 8), "nan"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_what_they_are(image, mask, message):
    with pytest.raises(ValueError, match=message):
        load_backend("push_pull").generate_infill(image, mask, CAT)


def test_another_number_of_contexts_than_samples_is_refused():
    image, mask, samples = request(3, 8, 8)
    with pytest.raises(ValueError, match="2 sample contexts for a batch of 3"):
        load_backend("push_pull").generate_infill(image, mask, CAT, samples=samples[:2])


# --- configs ---

OPTIONS = {
    "diffusers": [{"steps": 2}, {"guidance": 3.0}, {"strength": 0.5}, {"size": 24}],
    "diffusion": [{"steps": 3}, {"strength": 0.5}, {"detail": 0.5}],
    "gan": [{"multiple": 16}, {"size": 32}, {"scale": 255}],
    "mae": [],
    "donor": [{"other_class": True}, {"color_match": 0.7}],
    "noise": [],
    "push_pull": [],
    "telea": [{"radius": 5.0}],
}


def test_every_option_of_every_backend_is_tried():
    for name in BACKENDS:
        assert {key for options in OPTIONS[name] for key in options} == set(make(name).options)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_config_is_hashable_and_its_fingerprint_changes_with_every_option_however_it_is_given(name):
    config = make(name).model_config(CAT)
    assert config.backend == name
    assert config == make(name).model_config(CAT)
    assert len({config, make(name).model_config(CAT)}) == 1
    assert len(config.fingerprint()) == 32
    prints = [config.fingerprint()]
    for options in OPTIONS[name]:
        by_argument = make(name, **options).model_config(CAT)
        by_descriptor = make(name).model_config(dataclasses.replace(CAT, options=options))
        assert by_argument == by_descriptor
        prints.append(by_argument.fingerprint())
    assert len(set(prints)) == len(prints)


def test_a_fingerprint_changes_with_all_that_changes_the_result_and_not_with_the_batch_size():
    config = ModelConfig("mine", options=(("steps", 20),))
    same = [dataclasses.replace(config, max_batch=1), ModelConfig("mine", options=(("steps", 20),))]
    other = [
        dataclasses.replace(config, **change)
        for change in (
            {"backend": "yours"}, {"version": 2}, {"options": (("steps", 21),)}, {"options": (("stops", 20),)},
            {"options": ()}, {"model": "sd"}, {"revision": "abc"},
        )
    ]  # fmt: skip
    assert {each.fingerprint() for each in same} == {config.fingerprint()}
    assert len({each.fingerprint() for each in [config, *other]}) == len(other) + 1


def test_the_complexity_changes_the_noise_and_its_fingerprint():
    backend = load_backend("noise")
    low, medium, high = (dataclasses.replace(CAT, complexity=c) for c in ("low", "medium", "high"))
    assert len({backend.model_config(each).fingerprint() for each in (low, medium, high)}) == 3
    image, mask, samples = request(1, 64, 64)
    rough = [
        backend.generate_infill(image, mask, each, samples=samples).diff(dim=-1)[:, :, mask[0, 0, :, 1:]].abs().mean()
        for each in (low, medium, high)
    ]
    assert rough[0] < rough[1] < rough[2]


def test_what_does_not_change_the_fill_does_not_change_the_fingerprint():
    """The seed enters the key of a sample, not that of the backend."""
    for name in BACKENDS:
        one, two = (make(name).model_config(dataclasses.replace(CAT, seed=seed)) for seed in (1, 2))
        assert one == two


@pytest.mark.parametrize("name", BACKENDS)
def test_unknown_options_are_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match="'stepps'"):
        make(name).model_config(dataclasses.replace(CAT, options={"stepps": 3}))
    with pytest.raises(ValueError, match=rf"'{name}'.*'stepps'"):
        load_backend(name, **tiny_options(name), stepps=3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("telea", {"radius": 0.0}, "radius.*0.0"),
        ("telea", {"radius": float("nan")}, "radius.*nan"),
        ("donor", {"color_match": 1.5}, "color_match.*1.5"),
        ("donor", {"object_above": -1}, "object_above.*-1"),
        ("donor", {"pool_size": 0}, "pool_size.*0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_backend(name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("telea", {"radius": -1}),
        ("telea", {"radius": "wide"}),
        ("donor", {"color_match": 7}),
    ],
)
def test_options_of_a_descriptor_are_checked_like_arguments_before_anything_is_filled(name, options):
    image, mask, samples = request(1, 8, 8)
    with pytest.raises(ValueError, match=next(iter(options))):
        make(name).generate_infill(image, mask, dataclasses.replace(CAT, options=options), samples=samples)


# --- loading ---


class Constant(InfillBackend):
    """One colour: the simplest backend of one's own."""

    name = "constant"

    def __init__(self, colour=0.5, palette=()):
        super().__init__(colour=colour, palette=list(palette))

    def _generate(self, image, mask, config, samples):
        fill = torch.full_like(image, dict(config.options)["colour"])
        fill[..., 0, 0] += 1e-3
        return fill


def test_your_own_backend_is_loaded_by_module_and_class():
    backend = load_backend(f"{__name__}:Constant", colour=0.25)
    image, mask, _ = request(2, 8, 8)
    fill = backend.generate_infill(image, mask, CAT)
    assert ((fill - 0.25).abs()[mask.expand_as(fill)] < 2e-3).all()


def test_a_config_is_hashable_also_where_an_option_is_a_list():
    config = Constant(palette=[1, 2]).model_config(CAT)
    assert hash(config) == hash(Constant(palette=[1, 2]).model_config(CAT))
    assert config.fingerprint() != Constant(palette=[1, 3]).model_config(CAT).fingerprint()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("telia", ValueError, "'telia'.*'telea'"),
        ("", ValueError, "unknown backend ''"),
        ("some_module:", ValueError, "some_module:"),
        ("no_such_module_here:Backend", ImportError, "no_such_module_here"),
        ("infill_aug.infill.donor:NoSuchBackend", ValueError, "NoSuchBackend"),
    ],
)
def test_a_backend_that_is_not_there_is_refused_by_name(name, error, message):
    with pytest.raises(error, match=message):
        load_backend(name)


@pytest.mark.parametrize("name", ["json:JSONDecoder", "json:dumps", "infill_aug.infill.push_pull:push_pull"])
def test_what_is_no_backend_is_not_loaded_as_one(name):
    with pytest.raises(ValueError, match="InfillBackend"):
        load_backend(name)


def test_listing_backends_loads_none_of_them():
    code = """
        import sys
        from infill_aug.infill import list_backends
        assert list_backends() == sorted(list_backends()) and "push_pull" in list_backends()
        loaded = [m for m in sys.modules if m.startswith("infill_aug.infill.") and not m.endswith(".backend")]
        assert not loaded and "cv2" not in sys.modules, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


# --- donor ---


def donor_request(height=20, width=24):
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    mask[..., 4:16, 4:20] = True
    return torch.full((1, 3, height, width), 0.5), mask


def test_a_donor_is_never_the_image_itself():
    donors = list(pool(2))
    backend = DonorBackend()
    backend.prepare(donors)
    image, mask = donor_request()
    inside = mask.expand_as(image)
    for seed in range(20):
        fill = backend.generate_infill(image, mask, CAT, samples=[SampleContext(donors[0].key, seed)])
        assert (fill[inside].min() * 255).round() >= donors[1].image.min()
    backend.prepare(donors[:1])
    with pytest.raises(PartialInfillError, match=r"other than the image itself.*pool_size"):
        backend.generate_infill(image, mask, CAT, samples=[SampleContext(donors[0].key, 0)])


def test_all_other_donors_are_used():
    backend = DonorBackend()
    backend.prepare(pool(4))
    image, mask = donor_request()
    means = [
        backend.generate_infill(image, mask, CAT, samples=[SampleContext("x", s)])[mask.expand_as(image)].mean()
        for s in range(40)
    ]
    assert {round((float(mean) * 255 - 49.5) / 20) for mean in means} == {0, 1, 2, 3}


def test_of_the_crops_the_one_with_the_least_paint_is_taken():
    grey, clean = torch.full((3, 8, 8), 90, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.bool)
    pool = DonorPool((("a", None, grey * 0, ~clean), ("b", None, grey, clean)))
    draws = [pool.draw(np.random.default_rng(i), SampleContext("c", i), 8, 8) for i in range(20)]
    assert sum(float(each.mean()) > 0.3 for each in draws) >= 18  # half of them with one try


def test_other_class_takes_donors_of_another_class_only_and_says_what_is_missing():
    backend = DonorBackend(other_class=True)
    dark, bright = (torch.randint(low, low + 50, (3, 20, 24), dtype=torch.uint8) for low in (0, 200))
    plain = torch.zeros(1, 20, 24, dtype=torch.uint8)
    backend.prepare([PoolSample("a", dark, plain, "night"), PoolSample("b", bright, plain, "day")])
    image, mask = donor_request()
    inside = mask.expand_as(image)
    for seed in range(10):
        by_night = backend.generate_infill(image, mask, CAT, samples=[SampleContext("x", seed, "night")])
        by_day = backend.generate_infill(image, mask, CAT, samples=[SampleContext("x", seed, "day")])
        assert by_night[inside].min() > 0.5 > by_day[inside].max()
    with pytest.raises(PartialInfillError, match="needs a label"):
        backend.generate_infill(image, mask, CAT, samples=[SampleContext("x", 0)])
    backend.prepare([PoolSample("a", dark, plain, "night")])
    with pytest.raises(PartialInfillError, match="of another class than 'night'"):
        backend.generate_infill(image, mask, CAT, samples=[SampleContext("x", 0, "night")])


def test_colour_match_moves_mean_and_deviation_towards_the_surroundings():
    torch.manual_seed(1)
    picture = 0.8 + 0.02 * torch.randn(3, 40, 40).clamp(-2, 2)
    fill = 0.2 + 0.15 * torch.randn(3, 40, 40).clamp(-1, 1)
    hole = torch.zeros(1, 40, 40, dtype=torch.bool)
    hole[:, 10:30, 10:30] = True
    gaps, spreads = [], []
    for strength in (0.0, 0.5, 1.0):
        matched = match_colors(fill, picture, hole, strength)[:, hole[0]]
        gaps.append((matched.mean(1) - 0.8).abs().max())
        spreads.append(matched.std(1).mean())
        assert ((matched >= 0) & (matched <= 1)).all()
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.02
    assert spreads[0] > spreads[1] > spreads[2] >= spreads[0] * 0.45
    assert torch.equal(match_colors(fill, picture, hole, 0.0), fill)


def test_colour_match_does_not_look_under_the_mask_or_fail_without_surroundings():
    fill, picture = torch.rand(3, 12, 12), torch.rand(3, 12, 12)
    hole = torch.zeros(1, 12, 12, dtype=torch.bool)
    hole[:, 3:9, 3:9] = True
    other = torch.where(hole, 0.0, picture)
    assert torch.equal(match_colors(fill, picture, hole, 1.0), match_colors(fill, other, hole, 1.0))
    assert torch.equal(match_colors(fill, picture, torch.ones_like(hole), 1.0), fill)


def test_a_plate_has_no_object_in_it_and_a_picture_that_is_all_object_has_no_plate():
    image = torch.full((3, 40, 60), 30, dtype=torch.uint8)
    confidence = torch.zeros(1, 40, 60, dtype=torch.uint8)
    image[:, 10:25, 20:45], confidence[:, 10:25, 20:45] = 255, 255
    plate, painted = make_plate(image, confidence)
    assert (plate.int() - 30).abs().max() <= 1
    assert torch.equal(painted, dilate(confidence[None] > 0, 1)[0])
    assert make_plate(image, torch.full_like(confidence, 255)) is None
    large, _ = make_plate(torch.zeros(3, 800, 400, dtype=torch.uint8), torch.zeros(1, 800, 400, dtype=torch.uint8))
    assert large.shape == (3, 512, 256)


def test_of_two_donors_the_one_that_need_not_be_enlarged_comes_first():
    small, large = torch.full((3, 24, 24), 10, dtype=torch.uint8), torch.full((3, 200, 200), 250, dtype=torch.uint8)
    nothing = [torch.zeros_like(each[:1]) for each in (small, large)]
    samples = [PoolSample(key, *each) for key, *each in zip("ab", (small, large), nothing, strict=True)]
    pool = DonorPool.of(samples)
    means = [pool.draw(np.random.default_rng(seed), SampleContext("c", 0), 96, 96).mean() for seed in range(30)]
    assert sum(mean > 0.5 for mean in means) >= 29
    tiny = [pool.draw(np.random.default_rng(seed), SampleContext("c", 0), 8, 8).mean() for seed in range(60)]
    assert 15 < sum(mean > 0.5 for mean in tiny) < 45  # both are large enough


def test_a_donor_without_a_pool_says_what_to_do():
    image, mask = donor_request()
    with pytest.raises(PartialInfillError, match=r"no donors; call prepare\(\)"):
        DonorBackend().generate_infill(image, mask, CAT)
    full = [PoolSample("a", torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((1, 8, 8), 255, dtype=torch.uint8))]
    with pytest.raises(InfillError, match="protect every pixel"):
        DonorBackend().prepare(full)


def test_another_pool_is_another_fingerprint():
    donors = list(pool(3))

    def fingerprint(samples, **options):
        backend = DonorBackend(**options)
        backend.prepare(samples)
        return backend.model_config(CAT).fingerprint()

    relabelled = [dataclasses.replace(donors[0], label="x"), *donors[1:]]
    prints = [
        fingerprint(donors),
        fingerprint(donors[:2]),
        fingerprint(donors[::-1]),
        fingerprint(relabelled),
        fingerprint(donors, object_above=0.5),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(list(pool(3))) == prints[0]


def test_the_same_pictures_with_other_objects_cut_out_are_another_pool():
    donors = list(pool(3))
    confidence = torch.zeros(1, 20, 24, dtype=torch.uint8)
    confidence[:, 5:15, 5:15] = 255
    cut = [dataclasses.replace(donor, confidence=confidence) for donor in donors]
    backends = [DonorBackend(), DonorBackend()]
    for backend, samples in zip(backends, (donors, cut), strict=True):
        backend.prepare(samples)
    image, mask = donor_request()
    fills = [backend.generate_infill(image, mask, CAT) for backend in backends]
    assert not torch.equal(*fills)
    assert backends[0].model_config(CAT).fingerprint() != backends[1].model_config(CAT).fingerprint()


# --- push-pull and noise ---


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.1, 0.5, 0.9, 0.99]),
)
def test_push_pull_stays_within_the_visible_colours(height, width, seed, share):
    image, mask, _ = request(2, height, width, seed, share)
    mask[..., -1, -1] = False
    filled = push_pull(image, mask)
    for one, hole, fill in zip(image, mask, filled, strict=True):
        seen = one[:, ~hole[0]]
        assert torch.equal(fill[:, ~hole[0]], seen)
        assert (fill.amax((1, 2)) <= seen.amax(1) + 1e-5).all()
        assert (fill.amin((1, 2)) >= seen.amin(1) - 1e-5).all()


def test_push_pull_continues_a_slope():
    slope = torch.linspace(0.1, 0.9, 64).expand(1, 3, 64, 64).contiguous()
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 24:40, 24:40] = True
    assert (push_pull(slope, mask) - slope).abs().max() < 0.12
    assert (push_pull(slope, mask)[0, 0, 32, 24:40].diff() > 0).all()


@pytest.mark.parametrize("finest", [1, 4, 16])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (7, 33), (33, 90), (1, 40)])
def test_noise_has_mean_0_and_deviation_1_and_differs_by_seed_at_every_size(size, finest):
    noise = fractal_noise(*size, seed=3, finest=finest)
    assert noise.shape == (3, *size)
    torch.testing.assert_close(noise.mean((1, 2)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(noise.std((1, 2), correction=0), torch.ones(3), rtol=1e-3, atol=0)
    assert torch.equal(noise, fractal_noise(*size, seed=3, finest=finest))
    assert not torch.equal(noise, fractal_noise(*size, seed=4, finest=finest))


@pytest.mark.parametrize("complexity", ["low", "medium", "high"])
@pytest.mark.parametrize("side", [8, 16, 24, 28, 32, 64])
def test_noise_fills_small_pictures_at_every_complexity(side, complexity):
    image, mask, samples = request(2, side, side, share=0.0)
    mask[..., 1 : side - 1, 1 : side - 1] = True
    fill = load_backend("noise").generate_infill(
        image, mask, dataclasses.replace(CAT, complexity=complexity), samples=samples
    )
    assert fill[..., 1 : side - 1, 1 : side - 1].std((2, 3)).min() > 0.02


def test_noise_has_the_colours_of_what_is_visible():
    image = torch.tensor([0.2, 0.5, 0.8]).reshape(1, 3, 1, 1) + 0.05 * torch.randn(1, 3, 64, 64).clamp(-2, 2)
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 16:48, 16:48] = True
    inside = load_backend("noise").generate_infill(image, mask, CAT)[:, :, mask[0, 0]]
    assert (inside.mean((0, 2)) - torch.tensor([0.2, 0.5, 0.8])).abs().max() < 0.1


# --- the checks around every backend ---


class Faulty(InfillBackend):
    """Fills with noise, and does what a sample's label says."""

    name = "faulty"
    needs_visible = False

    def __init__(self, limit=10**6, at_a_time=64):
        super().__init__()
        self.limit = limit
        self.max_batch = at_a_time
        self.calls = []

    def _generate(self, image, mask, config, samples):
        labels = [sample.label for sample in samples]
        self.calls.append(len(labels))
        if len(labels) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if "raise" in labels:
            raise RuntimeError("the service refused this picture")
        fill = torch.stack([fractal_noise(*image.shape[-2:], sample.seed) for sample in samples])
        fill = (0.5 + 0.1 * fill).clamp(0, 1)
        for one, hole, label in zip(fill, mask, labels, strict=True):
            if label in VALUES:
                one.masked_fill_(hole, VALUES[label])
            elif label == "one NaN":
                one[1, 5, 5] = torch.nan
        if "wrong size" in labels:
            return fill[..., :-1]
        if "too few" in labels:
            return fill[:-1]
        return None if "nothing" in labels else fill


VALUES = {"NaN": torch.nan, "infinite": torch.inf, "black": 0.0, "white": 1.0, "bytes": 200.0, "negative": -0.5}
REASONS = {
    "NaN": "not finite",
    "one NaN": "not finite",
    "infinite": "not finite",
    "black": "one constant colour",
    "white": "one constant colour",
    "bytes": "0..1, got values from 200",
    "negative": "0..1, got values from -0.5",
    "raise": "the service refused this picture",
    "wrong size": r"\(1, 3, 16, 15\)",
    "too few": r"\(0, 3, 16, 16\)",
    "nothing": "None",
}


def faulty_request(labels):
    image, mask, _ = request(len(labels), 16, 16)
    mask[:] = False
    mask[..., 3:13, 3:13] = True
    return image, mask, [SampleContext(str(i), i, label) for i, label in enumerate(labels)]


@pytest.mark.parametrize("fault", REASONS)
@pytest.mark.parametrize("failing", [[0], [3], [6], [1, 2, 5], list(range(7))])
def test_exactly_the_failing_samples_are_reported_and_the_others_are_filled(fault, failing):
    image, mask, samples = faulty_request([fault if i in failing else None for i in range(7)])
    wanted = Faulty().generate_infill(image, mask, CAT, samples=faulty_request([None] * 7)[2])
    with pytest.raises(PartialInfillError, match=rf"{len(failing)} of 7 samples.*{REASONS[fault]}") as caught:
        Faulty().generate_infill(image, mask, CAT, samples=samples)
    assert sorted(caught.value.reasons) == failing
    assert caught.value.ok.tolist() == [i not in failing for i in range(7)]
    assert caught.value.images.shape == image.shape
    for i in range(7):
        shown = image[i].masked_fill(mask[i], 0.0) if i in failing else wanted[i]
        assert torch.equal(caught.value.images[i], shown)


def test_different_faults_of_one_batch_are_told_apart():
    labels = ["NaN", None, "raise", "black", None, "bytes", "wrong size"]
    image, mask, samples = faulty_request(labels)
    with pytest.raises(PartialInfillError) as caught:
        Faulty().generate_infill(image, mask, CAT, samples=samples)
    assert sorted(caught.value.reasons) == [0, 2, 3, 5, 6]
    for i, reason in caught.value.reasons.items():
        assert re.search(REASONS[labels[i]], reason)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_a_batch_that_does_not_fit_in_memory_is_halved_until_it_does(limit):
    image, mask, samples = faulty_request([None] * 7)
    wanted = Faulty().generate_infill(image, mask, CAT, samples=samples)
    backend = Faulty(limit)
    with pytest.warns(ResourceWarning, match="does not fit in memory; halving"):
        fill = backend.generate_infill(image, mask, CAT, samples=samples)
    assert torch.equal(fill, wanted)
    assert sum(count for count in backend.calls if count <= limit) == 7


def test_a_sample_that_does_not_fit_in_memory_alone_is_reported():
    image, mask, samples = faulty_request([None] * 3)
    with (
        pytest.warns(ResourceWarning, match="halving"),
        pytest.raises(PartialInfillError, match=r"3 of 3.*OutOfMemoryError.*out of memory"),
    ):
        Faulty(limit=0).generate_infill(image, mask, CAT, samples=samples)


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 9))
def test_no_call_is_larger_than_the_backend_allows_and_none_changes_the_fill(count, at_a_time):
    image, mask, samples = faulty_request([None] * count)
    backend = Faulty(at_a_time=at_a_time)
    fill = backend.generate_infill(image, mask, CAT, samples=samples)
    assert max(backend.calls) <= at_a_time
    assert sum(backend.calls) == count
    assert torch.equal(fill, Faulty().generate_infill(image, mask, CAT, samples=samples))


def test_one_flat_colour_is_right_where_the_surroundings_have_it():
    _, mask, samples = faulty_request(["black"])
    flat = torch.zeros(1, 3, 16, 16)
    assert torch.equal(Faulty().generate_infill(flat, mask, CAT, samples=samples), flat)


def test_one_flat_colour_is_refused_where_nothing_tells_that_it_is_right():
    image, mask, samples = faulty_request([None, "white", None])
    mask[1] = True
    with pytest.raises(PartialInfillError, match="sample 1: the fill is one constant colour"):
        Faulty().generate_infill(image, mask, CAT, samples=samples)


def test_what_a_backend_draws_outside_the_mask_reaches_no_kept_pixel():
    class Careless(InfillBackend):
        name = "careless"

        def _generate(self, image, mask, config, samples):
            return torch.where(mask, image.new_tensor([0.1, 0.5] * 8).expand_as(image), torch.nan)

    image, mask, samples = faulty_request([None] * 3)
    fill = Careless().generate_infill(image, mask, CAT, samples=samples)
    kept = ~mask.expand_as(image)
    assert torch.equal(fill[kept], image[kept])


def test_a_model_with_weights_leaves_no_graph_behind():
    class Learned(InfillBackend):
        name = "learned"

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

        def _generate(self, image, mask, config, samples):
            return self.layer(image).sigmoid()

    image, mask, samples = faulty_request([None] * 2)
    assert not Learned().generate_infill(image, mask, CAT, samples=samples).requires_grad


def test_an_error_survives_the_way_from_a_worker_process():
    error = PartialInfillError(torch.rand(3, 3, 2, 2), {1: "too dark"})
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.reasons == {1: "too dark"}
    assert torch.equal(again.images, error.images)
    assert again.ok.tolist() == [True, False, True]


def test_interrupting_a_build_is_not_taken_for_a_failing_sample():
    class Interrupted(InfillBackend):
        name = "interrupted"

        def _generate(self, image, mask, config, samples):
            raise KeyboardInterrupt

    image, mask, samples = faulty_request([None] * 2)
    with pytest.raises(KeyboardInterrupt):
        Interrupted().generate_infill(image, mask, CAT, samples=samples)
