import copy
import dataclasses
import io
import itertools
import json
import logging
import math
import pickle
import socket
import threading
import time
import traceback
import zlib
from email.utils import formatdate

import numpy as np
import pytest
import torch
from local_services import GAIN, LocalServices, stripes_like
from PIL import Image
from tests_support import picture

pytest.importorskip("openai")
pytest.importorskip("huggingface_hub")
pytest.importorskip("requests")

from huggingface_hub.utils import close_session
from hypothesis import given
from hypothesis import strategies as st

from infill_aug.cache.build import build_cache
from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill import load_backend
from infill_aug.infill.backend import BackendUnavailableError, PartialInfillError, SampleContext
from infill_aug.infill.cloud import base
from infill_aug.infill.cloud.failure import failure_of, status_failure
from infill_aug.infill.cloud.openai import openai_size

CAT = TaskDescriptor("pets", "cat", seed=1, prompt="a meadow", negative_prompt="")
KEY = "sk-planted-0123456789-secret"
A1111 = {
    "init_images": ["{image}"],
    "mask": "{mask}",
    "prompt": "{prompt}",
    "negative_prompt": "{negative_prompt}",
    "seed": "{seed}",
    "width": "{width}",
    "height": "{height}",
    "denoising_strength": 0.9,
}
STABILITY = {name: "{" + name + "}" for name in ("image", "mask", "prompt", "negative_prompt", "seed")}
FLUX = {name: "{" + name + "}" for name in ("image", "mask", "prompt", "seed")}
POLL = {"url": "polling_url", "status": "status", "done": ["Ready"], "refused": ["Request Moderated"]}
SERVICES = ["openai", "huggingface", "automatic", "stability", "flux"]


@pytest.fixture
def service(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(base, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("SOME_KEY", KEY)
    close_session()  # of before, with the proxies of then
    with LocalServices() as local:
        local.key = KEY
        yield local
    close_session()


def make(name, service, **options):
    """A backend that asks the local service."""
    if name == "openai":
        named = {"model": "gpt-image-1.5", "base_url": f"{service.url}/v1", "api_key_env": "SOME_KEY"}
        named["size"] = "128x96"  # a small one, for speed
    elif name == "huggingface":
        parameters = {"seed": "{seed}", "mask_image": "{mask}"}
        named = {"base_url": f"{service.url}/hf", "api_key_env": "SOME_KEY", "parameters": parameters, "min_side": 64}
    else:
        named = {
            "automatic": {"url": "/sdapi/v1/img2img", "body": A1111, "result": "images.0"},
            "stability": {
                "url": "/v2beta/stable-image/edit/inpaint",
                "body": STABILITY,
                "encoding": "multipart",
                "headers": {"authorization": "Bearer $SOME_KEY", "accept": "image/*"},
            },
            "flux": {
                "url": "/v1/flux-pro-1.0-fill",
                "body": FLUX,
                "result": "result.sample",
                "poll": POLL,
                "poll_interval": 0.01,
                "headers": {"x-key": "${SOME_KEY}"},
            },
        }[name]
        named = {"headers": {"Authorization": "Bearer $SOME_KEY"}, "min_side": 64, **named}
        named["url"] = service.url + named["url"]
        name = "http"
    return load_backend(name, **{"retries": 1, "timeout": 20.0, **named, **options})


def request(count, height=64, width=80, seed=0):
    """Smooth pictures, each with a hole of its own, and a context each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 6, generator=generator)
    image = 0.25 + 0.5 * torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    mask = torch.zeros(count, 1, height, width, dtype=torch.bool)
    for i in range(count):
        mask[i, :, 6 + 2 * i : height // 2 + 2 * i, 8 : 30 + 3 * i] = True
    return image, mask, [SampleContext(f"sample {i}", 1000 + i) for i in range(count)]


def fill(backend, count=1, descriptor=CAT, **size):
    image, mask, samples = request(count, **size)
    return backend.generate_infill(image, mask, descriptor, samples=samples)


# --- what a service gets, and what becomes of its answer ---


@pytest.mark.parametrize("name", SERVICES)
def test_a_batch_is_filled_with_what_the_service_drew_and_without_its_shift_of_colours(name, service):
    image, mask, samples = request(5)
    filled = make(name, service).generate_infill(image, mask, CAT, samples=samples)
    kept = ~mask.expand_as(image)
    assert torch.equal(filled[kept], image[kept])
    assert len(service.seen) == 5
    for i in range(5):
        seen = next(each for each in service.seen if same_hole(each.hole, mask[i]))
        drawn = torch.from_numpy(drawn_stripes(seen)).permute(2, 0, 1).float()[None]
        wanted = torch.nn.functional.interpolate(drawn, size=image.shape[-2:], mode="bilinear", antialias=True)[0]
        core = inner(mask[i])
        # As drawn before the service moved all colours by as much as GAIN and OFFSET say.
        assert (filled[i] - wanted)[:, core].abs().mean() < 2 / 255
        assert (1 - GAIN) * 0.5 > 10 / 255


def test_a_service_that_moves_the_whole_picture_is_moved_back(service):
    service.moves = (2, -3)
    image, mask, samples = request(2, height=96, width=128)
    filled = make("automatic", service).generate_infill(image, mask, CAT, samples=samples)
    kept = ~mask.expand_as(image)
    assert torch.equal(filled[kept], image[kept])
    for i in range(2):
        seen = next(each for each in service.seen if same_hole(each.hole, mask[i]))
        wanted, moved = (
            torch.nn.functional.interpolate(
                torch.from_numpy(drawn).permute(2, 0, 1).float()[None], size=(96, 128), mode="bilinear", antialias=True
            )[0][:, inner(mask[i])]
            for drawn in (drawn_stripes(seen), np.roll(drawn_stripes(seen), service.moves, (0, 1)))
        )
        off = (filled[i][:, inner(mask[i])] - wanted).abs().mean()
        assert off < 3 / 255
        assert off < 0.5 * (moved - wanted).abs().mean()


def drawn_stripes(seen):
    return stripes_like(seen.image.shape, zlib.crc32(f"{seen.fields.get('seed')} {seen.fields.get('prompt')}".encode()))


def inner(mask):
    """The hole without its rim, where the resizing mixes."""
    return ~torch.nn.functional.max_pool2d((~mask).float(), 7, 1, 3).bool()[0]


def same_hole(hole, mask):
    shrunk = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(hole).float()[None], mask.shape[-2:])
    return torch.equal(shrunk > 0.5, mask)


@pytest.mark.parametrize("name", SERVICES)
def test_what_lies_under_the_mask_is_never_sent(name, service):
    image, mask, samples = request(3)
    for hidden in (1.0, 0.0, torch.nan):
        secret = image.masked_fill(mask, hidden)
        make(name, service).generate_infill(secret, mask, CAT, samples=samples)
    sent = [seen.image for seen in service.seen]
    for i in range(3):
        holes = [seen.hole for seen in service.seen]
        alike = [j for j in range(9) if same_hole(holes[j], mask[i])]
        assert len(alike) == 3
        assert (sent[alike[0]] == sent[alike[1]]).all()
        assert (sent[alike[0]] == sent[alike[2]]).all()
        inside = sent[alike[0]][holes[alike[0]]]
        assert inside.max() < 0.8 * 255  # colours of the surroundings, neither the planted white nor black
        assert inside.min() > 0.2 * 255


@pytest.mark.parametrize("name", SERVICES)
def test_a_sample_gets_the_same_fill_alone_and_in_a_batch_from_a_service_that_draws_the_same(name, service):
    image, mask, samples = request(4)
    backend = make(name, service, concurrency=3)
    together = backend.generate_infill(image, mask, CAT, samples=samples)
    for i in (0, 3):
        alone = backend.generate_infill(image[i : i + 1], mask[i : i + 1], CAT, samples=samples[i : i + 1])
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (7, 33), (90, 200)])
@pytest.mark.parametrize("name", ["openai", "huggingface", "automatic"])
def test_pictures_of_every_size_and_shape_come_back_in_theirs(name, size, service):
    image = torch.rand(1, 3, *size)
    mask = torch.zeros(1, 1, *size, dtype=torch.bool)
    mask[..., : max(1, size[0] // 2), : max(1, size[1] // 2)] = True
    options = {"size": None} if name == "openai" else {}
    filled = make(name, service, **options).generate_infill(image, mask, CAT)
    assert filled.shape == image.shape
    assert torch.equal(filled[~mask.expand_as(image)], image[~mask.expand_as(image)])


@pytest.mark.parametrize("name", ["openai", "huggingface", "stability"])
def test_an_answer_of_another_size_is_resized(name, service):
    wanted = fill(make(name, service))
    service.output_size = (300, 200)
    filled = fill(make(name, service))
    assert filled.shape == wanted.shape
    assert (filled - wanted).abs().mean() < 0.02


@pytest.mark.parametrize("name", SERVICES)
def test_requests_go_out_at_once_as_many_as_allowed(name, service):
    service.delay = 0.05
    fill(make(name, service, concurrency=3), 6)
    assert service.busiest == 3
    service.busiest = 0
    fill(make(name, service, concurrency=1), 2)
    assert service.busiest == 1


@pytest.mark.parametrize("name", ["huggingface", "automatic", "stability", "flux"])
def test_each_sample_sends_a_seed_of_its_own_that_every_service_takes(name, service):
    image, mask, _ = request(4)
    seeds = [0, 1, 2**31 - 2, 2**63 - 1]
    make(name, service).generate_infill(image, mask, CAT, samples=[SampleContext("a", seed) for seed in seeds])
    sent = [int(seen.fields["seed"]) for seen in service.seen]
    assert all(1 <= seed < 2**31 for seed in sent)
    assert len(set(sent)) >= 3


def test_a_service_without_a_mask_gets_none_and_its_picture_is_used_in_the_hole_alone(service):
    filled = fill(make("huggingface", service, parameters={"guidance_scale": 2.5}))
    assert service.seen[0].hole is None
    assert service.seen[0].fields["guidance_scale"] == 2.5
    assert "seed" not in service.seen[0].fields
    image, mask, _ = request(1)
    kept = ~mask.expand_as(image)
    assert torch.equal(filled[kept], image[kept])


@pytest.mark.parametrize("convention", ["white", "black", "alpha"])
def test_masks_are_sent_as_the_service_wants_them(convention):
    hole = torch.zeros(1, 4, 6, dtype=torch.bool)
    hole[:, 1:3, 2:4] = True
    picture = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    png = base.FillRequest(picture, hole, "", "", 1, {}).mask_png(convention)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png))))
    if convention == "alpha":
        assert torch.equal(pixels[..., 3] == 0, hole[0])
        assert torch.equal(pixels[..., :3].permute(2, 0, 1), picture)
    else:
        assert torch.equal(pixels == (255 if convention == "white" else 0), hole[0])


def test_a_service_that_takes_transparency_for_the_mask_needs_no_other_picture(service):
    backend = load_backend(
        "http", url=f"{service.url}/alpha", body={"picture": "{mask}", "prompt": "{prompt}"}, mask="alpha",
        headers={"x-key": "$SOME_KEY"},
    )  # fmt: skip
    image, mask, samples = request(1, 256, 256)
    backend.generate_infill(image, mask, CAT, samples=samples)
    assert same_hole(service.seen[0].hole, mask[0])


def test_the_text_says_what_to_draw_and_what_not(service):
    plain = TaskDescriptor("pets", "cat", style="watercolour", complexity="high")
    for name in ("openai", "huggingface", "stability"):
        fill(make(name, service), descriptor=plain)
        fill(make(name, service), descriptor=dataclasses.replace(plain, prompt="a beach", negative_prompt="dog"))
    drawn, unwanted = ([seen.fields.get(name, "") for seen in service.seen] for name in ("prompt", "negative_prompt"))
    assert "watercolour" in drawn[0]
    assert "Do not draw: cat" in drawn[0]
    assert drawn[1] == "a beach Do not draw: dog."
    for i in (2, 4):
        assert "watercolour" in drawn[i]
        assert "cat" not in drawn[i]
        assert unwanted[i].startswith("cat")
        assert (drawn[i + 1], unwanted[i + 1]) == ("a beach", "dog")


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), model=st.sampled_from(["gpt-image-2", "gpt-image-1.5"]))
def test_every_picture_has_a_size_that_the_model_takes(height, width, model):
    tall, wide = openai_size(model, height, width)
    if model == "gpt-image-1.5":
        assert (tall, wide) in ((1024, 1024), (1024, 1536), (1536, 1024))
        return
    assert tall % 16 == wide % 16 == 0
    assert 655_360 <= tall * wide <= 8_294_400
    assert max(tall, wide) <= min(3840, 3 * min(tall, wide))
    if 1 / 2.9 < height / width < 2.9 and height * width > 10_000:
        assert abs(math.log(tall / wide) - math.log(height / width)) < 0.06


# --- faults ---


@pytest.mark.parametrize("fault", [(429, {"Retry-After": "0.2"}), 500, 503, "truncated", "drop"])
@pytest.mark.parametrize("name", SERVICES)
def test_what_may_go_better_next_time_is_tried_again(name, fault, service):
    wanted = fill(make(name, service))
    count = len(service.seen)
    service.faults = [fault]
    assert torch.equal(fill(make(name, service, retries=2)), wanted)
    assert len(service.seen) == count + 2
    if isinstance(fault, tuple):
        assert service.seen[-1].time - service.seen[-2].time >= 0.2


@pytest.mark.parametrize("name", ["huggingface", "automatic", "stability", "flux"])
@pytest.mark.parametrize("fault", ["half", "text"])
def test_what_is_no_whole_picture_is_asked_for_again_and_never_used(name, fault, service):
    wanted = fill(make(name, service))
    service.faults = [fault]
    assert torch.equal(fill(make(name, service)), wanted)
    service.faults = [fault, fault]
    with pytest.raises(PartialInfillError, match=r"no (whole )?picture"):
        fill(make(name, service))


def test_half_a_picture_from_openai_is_refused_and_not_paid_for_again(service):
    service.faults = ["half"]
    with pytest.raises(PartialInfillError, match="no whole picture"):
        fill(make("openai", service, retries=3))
    assert len(service.seen) == 1


@pytest.mark.parametrize("fault", [500, (429, {"Retry-After": "0.01"}), "truncated", "slow"])
@pytest.mark.parametrize("name", SERVICES)
def test_a_sample_that_fails_for_good_is_reported_and_the_others_are_filled(name, fault, service):
    image, mask, samples = request(4)
    wanted = make(name, service).generate_infill(image, mask, CAT, samples=samples)
    service.fault_for = lambda seen: fault if same_hole(seen.hole, mask[2]) else None
    retries = 0 if fault == "slow" else 1
    backend = make(name, service, retries=retries, timeout=1.0 if fault == "slow" else 20.0)
    service.seen.clear()
    with pytest.raises(PartialInfillError) as caught:
        backend.generate_infill(image, mask, CAT, samples=samples)
    assert sorted(caught.value.reasons) == [2]
    says = {500: "HTTP 500", "truncated": "no complete answer", "slow": "Time"}
    assert says.get(fault if not isinstance(fault, tuple) else 0, "HTTP 429") in caught.value.reasons[2]
    for i in (0, 1, 3):
        assert torch.equal(caught.value.images[i], wanted[i])
    assert torch.equal(caught.value.images[2], image[2].masked_fill(mask[2], 0.0))
    assert len(service.seen) == 4 + retries


@pytest.mark.parametrize("fault", ["refused", "moderated"])
@pytest.mark.parametrize("name", SERVICES)
def test_a_refused_picture_fails_alone_with_the_reason_and_is_not_tried_again(name, fault, service):
    image, mask, samples = request(6)
    service.fault_for = lambda seen: None if same_hole(seen.hole, mask[1]) else fault
    backend = make(name, service, retries=3)
    with pytest.raises(PartialInfillError, match=r"5 of 6.*refused the picture or its text") as caught:
        backend.generate_infill(image, mask, CAT, samples=samples)
    assert sorted(caught.value.reasons) == [0, 2, 3, 4, 5]
    assert len(service.seen) == 6


def test_a_picture_that_is_refused_or_breaks_while_it_is_drawn_fails_alone(service):
    for prompt, reason in (("moderate", "refused.*Request Moderated"), ("break", "failed.*Error")):
        with pytest.raises(PartialInfillError, match=reason):
            fill(make("flux", service, retries=0), descriptor=dataclasses.replace(CAT, prompt=prompt))


@pytest.mark.parametrize(
    ("fault", "says"),
    [(401, "key is wrong"), (402, "no credit"), (403, "may not"), (404, "no such"), ("quota", "credit")],
)
@pytest.mark.parametrize("name", SERVICES)
def test_what_no_other_sample_would_change_ends_the_backend_after_a_few_requests(name, fault, says, service):
    service.fault_for = lambda seen: fault
    backend = make(name, service, concurrency=2, retries=0)
    with pytest.raises(BackendUnavailableError, match=says):
        fill(backend, 12)
    assert len(service.seen) < 8


def test_what_was_filled_before_the_end_is_kept_and_the_rest_says_why(service):
    service.faults = [None, None, None, 402]
    service.fault_for = lambda seen: 402
    with pytest.raises(PartialInfillError, match="not sent: the account has no credit") as caught:
        fill(make("automatic", service, concurrency=1), 8)
    assert int(caught.value.ok.sum()) == 3
    with pytest.raises(BackendUnavailableError, match="no credit"):
        fill(make("automatic", service, concurrency=1), 8)


@pytest.mark.parametrize("name", SERVICES)
def test_without_a_network_the_backend_gives_up_after_a_few_requests(name, service):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        service.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        backend = make(name, service, retries=0, concurrency=2)
        with pytest.raises(BackendUnavailableError, match=r"cannot be reached.*[45] requests in a row.*network"):
            fill(backend, 9)
        with pytest.raises(BackendUnavailableError):  # also one at a time, as a build may ask
            fill(backend)
        alone = make(name, service, retries=0)
        for _ in range(3):
            with pytest.raises(PartialInfillError, match="cannot be reached"):
                fill(alone)
        with pytest.raises(BackendUnavailableError):
            fill(alone)


def test_requests_that_the_service_calls_wrong_end_the_backend_too(service):
    service.fault_for = lambda seen: 422
    with pytest.raises(BackendUnavailableError, match=r"calls the request wrong.*options"):
        fill(make("automatic", service, concurrency=1), 9)
    assert len(service.seen) == 4
    service.faults, service.fault_for = [422, 422, None, 422, 422, None, 422, 422], lambda seen: None
    with pytest.raises(PartialInfillError, match="6 of 9"):
        fill(make("automatic", service, concurrency=1), 9)


def test_a_service_that_wants_a_long_pause_has_failed(service):
    for name in ("openai", "huggingface", "automatic"):
        service.faults = [(429, {"Retry-After": "3600"})]
        started = time.monotonic()
        with pytest.raises(PartialInfillError, match="HTTP 429"):
            fill(make(name, service, retries=3))
        assert time.monotonic() - started < 5


def test_no_more_requests_go_out_than_a_minute_may_have(service):
    fill(make("automatic", service, requests_per_minute=600), 5)
    times = sorted(seen.time for seen in service.seen)
    assert times[-1] - times[0] > 0.36
    assert min(b - a for a, b in itertools.pairwise(times)) > 0.05


def test_a_redirect_is_not_followed_since_it_would_take_the_key_along(service):
    service.faults = ["redirect"]
    with pytest.raises(PartialInfillError, match="HTTP 302"):
        fill(make("stability", service))


def test_a_key_goes_to_its_own_service_only(service):
    fill(make("flux", service))
    assert KEY not in str(service.results["headers"])
    with pytest.raises(BackendUnavailableError, match=r"elsewhere\.example, which is not its own"):
        fill(make("flux", service), descriptor=dataclasses.replace(CAT, prompt="abroad"))


def test_an_answer_without_a_picture_where_it_should_be_is_named(service):
    with pytest.raises(PartialInfillError, match=r"nothing at 'pictures\.0'"):
        fill(make("automatic", service, result="pictures.0"))


def test_an_interruption_ends_the_batch_and_sends_nothing_more(service, monkeypatch):
    service.delay = 0.2

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "SmartMask", lambda **_: interrupt)
    with pytest.raises(KeyboardInterrupt):
        fill(make("automatic", service, concurrency=1), 8)
    assert len(service.seen) <= 3


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "content_policy_violation", "refused"), (403, '{"name": "content_moderation"}', "refused"),
        (403, "forbidden", "gone"), (401, "moderation", "gone"), (429, "insufficient_quota", "gone"),
        (429, "too many", "busy"), (409, "", "busy"), (503, "", "busy"), (413, "too large", "invalid"),
    ],
)  # fmt: skip
def test_statuses_mean_what_services_mean_by_them(status, text, kind):
    assert status_failure(status, text, {}).kind == kind


def test_a_pause_is_read_as_seconds_or_as_a_date():
    assert status_failure(429, "", {"retry-after": "2.5"}).wait == 2.5
    assert 50 < status_failure(429, "", {"retry-after": formatdate(time.time() + 60, usegmt=True)}).wait <= 60
    assert status_failure(429, "", {"retry-after": "soon"}).wait is None
    assert failure_of(RuntimeError("odd")).kind == "invalid"


# --- money ---


def test_the_price_of_a_fill_is_known_or_given():
    def price(name, size=(512, 512), **options):
        return load_backend(name, **options).price(CAT, *size)

    assert price("openai", (1024, 1024), model="gpt-image-1.5", quality="high") == pytest.approx(0.133, abs=1e-3)
    assert price("openai", (1024, 1536), model="gpt-image-1.5") == pytest.approx(0.013, abs=1e-3)
    assert price("openai") < price("openai", quality="medium") < price("openai", quality="max")
    assert price("openai", quality="max") == price("openai", quality="auto")
    assert price("openai", model="gpt-image-2.5-flare-2026-09-08") == price("openai")
    assert price("openai", price_per_image=0.5) == 0.5
    assert math.isnan(price("openai", model="gpt-image-99"))
    assert math.isnan(price("openai", base_url="http://127.0.0.1:1"))
    assert math.isnan(price("huggingface"))
    assert price("http", url="http://a/b", body={"i": "{image}"}, price_per_image=0) == 0
    by_descriptor = dataclasses.replace(CAT, options={"quality": "high"})
    assert load_backend("openai").price(by_descriptor, 512, 512) == price("openai", quality="high")


@pytest.mark.parametrize("name", SERVICES)
def test_no_more_is_spent_than_the_budget_has(name, service):
    backend = make(name, service, budget=0.1, price_per_image=0.03, concurrency=4)
    with pytest.raises(PartialInfillError, match=r"budget of 0\.10 US dollars is spent: 0\.0900") as caught:
        fill(backend, 7)
    assert int(caught.value.ok.sum()) == 3
    assert len(service.seen) == 3
    assert backend.spent == pytest.approx(0.09)
    with pytest.raises(BackendUnavailableError, match=r"raise budget and run again to go on"):
        fill(backend)
    assert len(service.seen) == 3


def test_what_the_service_does_not_charge_does_not_count(service):
    service.faults = [500, "refused", 503]
    backend = make("automatic", service, budget=0.1, price_per_image=0.05, concurrency=1)
    with pytest.raises(PartialInfillError, match="refused"):
        fill(backend, 3)
    assert backend.spent == pytest.approx(0.1)
    service.faults = ["half", "half"]
    lost = make("automatic", service, price_per_image=0.05)
    with pytest.raises(PartialInfillError):
        fill(lost)
    assert lost.spent == pytest.approx(0.1)  # drawn twice, and of no use


def test_an_answer_that_tells_its_tokens_costs_what_they_cost(service, monkeypatch):
    backend = make("openai", service, budget=1.0, model="gpt-image-2.5-flare", base_url=None)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{service.url}/v1")  # as for a gateway: prices are OpenAI's
    fill(backend, 2)
    assert backend.spent == pytest.approx(2 * (100 * 5 + 1000 * 8 + 300 * 30) / 1e6)


def test_threads_together_keep_to_the_budget(service):
    backend = make("automatic", service, budget=0.1, price_per_image=0.01, concurrency=8)
    done = []

    def work(seed):
        image, mask, samples = request(4, seed=seed)
        try:
            backend.generate_infill(image, mask, CAT, samples=samples)
            done.append(4)
        except PartialInfillError as error:
            done.append(int(error.ok.sum()))
        except BackendUnavailableError:
            done.append(0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == len(service.seen) == 10


def test_a_budget_without_a_price_is_refused_before_anything_is_sent(service):
    with pytest.raises(ValueError, match=r"budget needs a price.*price_per_image"):
        fill(make("huggingface", service, budget=1.0))
    assert service.seen == []


# --- keys ---


@pytest.mark.parametrize("name", SERVICES)
def test_a_key_appears_nowhere(name, service, caplog, capsys, tmp_path):
    """Not in what is printed, logged, raised, pickled or stored, also where the service sends it back."""
    caplog.set_level(logging.DEBUG)
    service.faults = [500]
    backend = make(name, service)
    config = backend.model_config(CAT)
    fill(backend, 2)
    texts = [repr(backend), str(vars(backend)), repr(config), json.dumps(config.options), config.fingerprint()]
    service.key = "another key"
    for count in (1, 2):
        with pytest.raises(BackendUnavailableError, match="key is wrong") as caught:
            fill(backend, count)
        texts += [repr(caught.value), *traceback.format_exception(caught.value)]
        assert "<SOME_KEY>" in str(caught.value)
    service.key = KEY
    service.faults = ["refused"]
    with pytest.raises(PartialInfillError) as partial:
        fill(backend)
    blobs = [pickle.dumps(backend), pickle.dumps(partial.value), pickle.dumps(config)]
    out = capsys.readouterr()
    texts += [out.out, out.err, caplog.text, *(str(record.__dict__) for record in caplog.records)]
    assert caplog.records  # the clients did log
    assert all(KEY not in text for text in texts)
    assert all(KEY.encode() not in blob for blob in blobs)
    again = pickle.loads(blobs[0])
    assert torch.equal(fill(again), fill(copy.deepcopy(backend)))
    assert again.model_config(CAT) == config


@pytest.mark.parametrize("name", SERVICES)
def test_a_missing_key_is_named_and_nothing_is_sent(name, service, monkeypatch):
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(BackendUnavailableError, match="environment variable SOME_KEY"):
        fill(make(name, service), 2)
    assert service.seen == []


def test_a_key_in_the_place_of_a_name_is_refused_without_repeating_it():
    for make_it in (
        lambda: load_backend("openai", api_key_env=KEY),
        lambda: load_backend("http", url="http://a/b", body={"i": "{image}"}, headers={"x-key": KEY}),
    ):
        with pytest.raises(ValueError, match="environment variable") as caught:
            make_it()
        assert KEY not in str(caught.value)
    with pytest.raises(ValueError, match="belong into headers"):
        load_backend("http", url="http://a/b?key=$SOME_KEY", body={"i": "{image}"})


# --- configuration ---


@pytest.mark.parametrize("name", SERVICES)
def test_a_fingerprint_does_not_depend_on_how_the_service_is_asked(name, service, monkeypatch):
    wanted = make(name, service).model_config(CAT)
    limits = {"concurrency": 9, "timeout": 3.0, "retries": 7, "requests_per_minute": 9, "budget": 9.0}
    other = make(name, service, **limits, price_per_image=0.5)
    monkeypatch.setenv("SOME_KEY", "another")
    assert other.model_config(CAT) == wanted
    assert wanted.stochastic
    assert dict(wanted.options)["prompt"].startswith("a meadow")
    assert hash(wanted) == hash(other.model_config(CAT))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("openai", {"model": "gpt-image-2", "quality": "high", "size": "1024x1024", "base_url": "http://127.0.0.1:1/v1"}),
        ("huggingface", {
            "model": "some/model", "provider": "fal-ai", "base_url": "http://127.0.0.1:1/hf", "parameters": {"a": [1]},
            "multiple": 32, "min_side": 100,
        }),
        ("automatic", {
            "url": "http://127.0.0.1:1/b", "body": {"a": ["{image}", {"b": "{mask}"}]}, "result": "a.b",
            "method": "PUT", "encoding": "multipart", "mask": "black", "poll": POLL, "multiple": 64, "min_side": 512,
        }),
    ],
)  # fmt: skip
def test_a_fingerprint_changes_with_every_option_and_text_however_it_is_given(name, changes, service):
    first = make(name, service)
    assert set(changes) == set(first.options)
    prints = [first.model_config(CAT).fingerprint()]
    for option, value in changes.items():
        by_argument = make(name, service, **{option: value}).model_config(CAT)
        assert by_argument == first.model_config(dataclasses.replace(CAT, options={option: value}))
        prints.append(by_argument.fingerprint())
    for text in ({"prompt": "a beach"}, {"negative_prompt": "dogs"}, {"prompt": None}):
        prints.append(first.model_config(dataclasses.replace(CAT, **text)).fingerprint())
    assert len(set(prints)) == len(prints)
    assert first.model_config(dataclasses.replace(CAT, seed=9)) == first.model_config(CAT)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("openai", {"quality": "best"}, "quality.*'low'.*'best'"),
        ("openai", {"size": "big"}, "size.*WIDTHxHEIGHT.*'big'"),
        ("openai", {"size": "0x16"}, "size.*'0x16'"),
        ("openai", {"base_url": "host"}, "base_url.*'host'"),
        ("openai", {"model": ""}, "model.*''"),
        ("openai", {"concurrency": 0}, "concurrency.*0"),
        ("openai", {"retries": -1}, "retries.*-1"),
        ("openai", {"timeout": 0}, "timeout.*0"),
        ("openai", {"requests_per_minute": 0}, "requests_per_minute.*0"),
        ("openai", {"budget": -1.0}, "budget.*-1.0"),
        ("openai", {"price_per_image": float("nan")}, "price_per_image.*nan"),
        ("openai", {"stile": 1}, "'openai'.*'stile'"),
        ("huggingface", {"model": None}, "base_url"),
        ("huggingface", {"parameters": {"a": 1}, "multiple": 0}, "multiple.*0"),
        ("huggingface", {"min_side": True}, "min_side.*True"),
        ("http", {"url": "ftp://a/b"}, "url.*'ftp://a/b'"),
        ("http", {"body": {"a": 1}}, r"\{image\}"),
        ("http", {"mask": "grey"}, "mask.*'white'.*'grey'"),
        ("http", {"method": "GET"}, "method.*'GET'"),
        ("http", {"encoding": "xml"}, "encoding.*'xml'"),
        ("http", {"poll": {"url": "a"}}, "poll.*'status'"),
        ("http", {"poll": POLL, "result": None}, "poll needs result"),
        ("http", {"poll_interval": 0}, "poll_interval.*0"),
        ("http", {"headers": {"accept": 1}}, "header 'accept'"),
    ],
)
def test_options_out_of_range_are_refused_by_name(name, options, message):
    given = {"url": "http://a/b", "body": {"i": "{image}"}, "result": "x"} if name == "http" else {}
    with pytest.raises(ValueError, match=message):
        load_backend(name, **{**given, **options})


def test_a_model_that_no_provider_has_ends_the_backend(service, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", service.url)
    backend = load_backend("huggingface", provider="no-such-provider", api_key_env="SOME_KEY", retries=0)
    with pytest.raises(BackendUnavailableError, match="no-such-provider"):
        fill(backend, 2)


# --- what the interface promises of every backend ---


@pytest.mark.parametrize("name", SERVICES)
def test_inputs_and_the_global_generator_are_left_alone_and_empty_masks_cost_nothing(name, service):
    image, mask, samples = request(3)
    mask[1] = False
    before, state = (image.clone(), mask.clone()), torch.get_rng_state()
    filled = make(name, service).generate_infill(image, mask, CAT, samples=samples)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])
    assert torch.equal(filled[1], image[1])
    assert len(service.seen) == 2
    assert not filled.requires_grad


def test_a_picture_of_which_nothing_is_visible_is_refused_unsent(service):
    image, mask, samples = request(2)
    mask[1] = True
    with pytest.raises(PartialInfillError, match="sample 1: nothing is visible"):
        make("automatic", service).generate_infill(image, mask, CAT, samples=samples)
    assert len(service.seen) == 1


# --- a build ---


def build(service, store, count=6, **options):
    data = [(picture(i, 48, 48), 0) for i in range(count)]
    given = {"profile": "centre_prior", "descriptor": CAT, "levels": [0.6], "progress": False, "batch_size": 2}
    dry = {"dry_run": options.pop("dry_run", False)}
    return build_cache(data, store, backend=make("openai", service, **options), **given, **dry)


def test_a_dry_run_tells_the_price_and_sends_nothing(service, tmp_path):
    estimate = build(service, tmp_path, dry_run=True, price_per_image=0.25)
    assert estimate.dollars == pytest.approx(6 * 0.25)
    assert "1.50 US dollars" in str(estimate)
    known = build(service, tmp_path, dry_run=True, base_url=None)
    assert 0 < known.dollars < 1
    assert service.seen == []


def test_a_build_whose_budget_is_spent_goes_on_later_and_pays_for_nothing_twice(service, tmp_path):
    money = {"price_per_image": 0.01, "budget": 0.03}
    with pytest.raises(BackendUnavailableError, match="budget"):
        build(service, tmp_path, **money)
    assert len(service.seen) == 3
    report = build(service, tmp_path, **(money | {"budget": 0.05}))
    assert report.generated == 3
    assert len(service.seen) == 6
    assert build(service, tmp_path, **money).generated == 0
    assert len(service.seen) == 6
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
