import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from infill_aug.cache.build import BuildEstimate, build_cache
from infill_aug.cache.codec import decode_pixels
from infill_aug.cache.inspect import entries, keys_of_recipes, save_contact_sheet, verdicts
from infill_aug.cache.recipe import Recipe, infill_key
from infill_aug.cache.store import InfillStore
from infill_aug.confidence import CallableConfidence, CentreConfidence, MaskConfidence
from infill_aug.confidence.estimator import ConfidenceEstimator, EstimatorConfidence
from infill_aug.infill import BackendUnavailableError, InfillBackend, load_backend
from infill_aug.infill.gate import QualityGate
from infill_aug.profile import TaskProfile

SIDE = 24


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def disc(size: int = SIDE) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - size // 2) ** 2 + (x - size // 2) ** 2) < (size // 4) ** 2


def samples(count: int) -> list:
    return [(picture(i), {"label": i % 3, "mask": disc()}) for i in range(count)]


def build(dataset, store, **options):
    options = {"source": MaskConfidence(key="mask"), "backend": "noise", "progress": False} | options
    return build_cache(dataset, store, **options)


def content(path) -> dict[str, bytes]:
    store = InfillStore(path, create=False)
    return {key: store.get(key) for key in store}


@pytest.mark.parametrize("backend", ["push_pull", "telea", "noise", "donor"])
def test_batch_size_order_and_workers_do_not_change_a_single_byte(tmp_path, backend):
    data = samples(9)
    build(data, tmp_path / "one", backend=backend, batch_size=1, variants=2)
    build(data, tmp_path / "seven", backend=backend, batch_size=7, variants=2)
    build(data, tmp_path / "workers", backend=backend, batch_size=4, variants=2, num_workers=2)
    reference = content(tmp_path / "one")
    assert content(tmp_path / "seven") == reference
    assert content(tmp_path / "workers") == reference
    if backend != "donor":  # a donor's pool is what it is given, in the order of the dataset
        build(data[::-1], tmp_path / "reversed", backend=backend, batch_size=4, variants=2)
        assert content(tmp_path / "reversed") == reference


def test_a_rerun_generates_nothing_and_changes_nothing(tmp_path):
    first = build(samples(5), tmp_path, variants=2)
    before = content(tmp_path)
    again = build(samples(5), tmp_path, variants=2)
    assert (first.generated, first.present) == (5 * 3 * 2, 0)
    assert (again.generated, again.present) == (0, 5 * 3 * 2)
    assert content(tmp_path) == before


def test_a_grown_dataset_generates_only_what_is_new(tmp_path):
    build(samples(4), tmp_path)
    assert build(samples(6), tmp_path).generated == 2 * 3


CHANGES = {
    "image": lambda: {"dataset": [(picture(99), {"label": 0, "mask": disc()})]},
    "mask": lambda: {"dataset": [(picture(0), {"label": 0, "mask": disc().roll(5, 0)})]},
    "size": lambda: {"dataset": [(picture(0, 48, 48), {"label": 0, "mask": disc(48)})]},
    "label": lambda: {"dataset": [(picture(0), {"label": 2, "mask": disc()})]},
    "descriptor": lambda: {"descriptor": {"task": "t", "object": "o", "style": "night"}},
    "seed": lambda: {"descriptor": {"task": "t", "object": "o", "seed": 1}},
    "complexity": lambda: {"descriptor": {"task": "t", "object": "o", "complexity": "high"}},
    "backend": lambda: {"backend": "push_pull"},
    "revision": lambda: {"backend": Revised()},
    "levels": lambda: {"levels": (0.3, 0.6)},
    "falloff": lambda: {"source": MaskConfidence(key="mask", falloff=0.9), "levels": (0.45, 0.71)},
}


class Revised(type(load_backend("noise"))):
    """The noise backend after its author changed what it gives."""

    version = 2


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_request_is_another_infill(tmp_path, change):
    base = {"dataset": samples(1), "descriptor": {"task": "t", "object": "o"}}
    build(**base, store=tmp_path)
    assert build(**(base | CHANGES[change]()), store=tmp_path).generated > 0


def test_levels_that_give_one_mask_share_one_infill(tmp_path):
    # The object fills a quarter of the picture and is protected: above that share, levels mask the same pixels.
    report = build(samples(1), tmp_path, levels=(0.5, 0.97, 1.0))
    (_, entry), *_ = entries(InfillStore(tmp_path))
    assert report.generated == 2
    assert entry["infills"][1] == entry["infills"][2]


def test_a_picture_that_occurs_twice_is_filled_once(tmp_path):
    data = [*samples(2), *samples(2)]
    assert build(data, tmp_path, batch_size=64).generated == 2 * 3
    assert InfillStore(tmp_path).verify().duplicates == 0
    assert build(data, tmp_path).generated == 0


def test_one_picture_with_two_masks_is_reported_and_the_first_counts(tmp_path):
    data = [(picture(0), {"label": 0, "mask": disc()}), (picture(0), {"label": 0, "mask": disc().roll(5, 0)})]
    with pytest.warns(UserWarning, match="sample 1 is the same picture as sample 0, with another mask or label"):
        report = build(data, tmp_path / "both")
    build(data[:1], tmp_path / "first")
    assert report.generated == 3
    assert content(tmp_path / "both") == content(tmp_path / "first")


def test_a_backend_without_randomness_makes_one_variant(tmp_path):
    assert build(samples(1), tmp_path, backend="push_pull", variants=5).generated == 3


def test_resume_modes_refuse_what_they_say(tmp_path):
    with pytest.raises(ValueError, match=r"resume='always'.*holds no build of this recipe"):
        build(samples(2), tmp_path, resume="always")
    build(samples(2), tmp_path, resume="never")
    with pytest.raises(ValueError, match=r"resume='never'.*already holds"):
        build(samples(2), tmp_path, resume="never")
    assert build(samples(2), tmp_path, resume="always").generated == 0


def test_a_dry_run_stores_nothing_and_estimates_within_reason(tmp_path):
    data = samples(40)
    estimate = build(data, tmp_path / "dry", dry_run=True)
    assert isinstance(estimate, BuildEstimate)
    assert len(InfillStore(tmp_path / "dry")) == 0
    report = build(data, tmp_path / "real")
    assert estimate.infills == report.generated
    assert 0.5 < estimate.bytes / report.bytes < 2
    assert estimate.free > 0


class Unreadable(list):
    """Raises for one index, as a truncated file does."""

    def __getitem__(self, index):
        if index == 2:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


def test_an_unreadable_image_is_reported_and_the_rest_is_built(tmp_path):
    report = build(Unreadable(samples(4)), tmp_path)
    assert report.generated == 3 * 3
    assert [(f["sample"], f["reason"]) for f in report.failed] == [(2, "OSError: image file is truncated")]
    assert InfillStore(tmp_path).failures()[0]["sample"] == 2
    assert build(samples(4), tmp_path).generated == 3, "the mended sample is tried again"


class FailsOnce(InfillBackend):
    """Gives NaN for dark pictures until it is mended."""

    name = "fails-once"
    broken = True

    def _generate(self, image, mask, config, samples):
        fill = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
        dark = image.flatten(1).amax(dim=1) < 0.3
        return torch.where(dark[:, None, None, None] & self.broken, torch.nan, fill)


def test_a_failed_infill_is_left_out_and_tried_again_on_the_next_run(tmp_path):
    data = samples(3)
    data[1] = (data[1][0] // 8, data[1][1])
    backend = FailsOnce()
    report = build(data, tmp_path, backend=backend)
    assert report.generated == 2 * 3
    assert {f["sample"] for f in report.failed} == {1}
    assert all("not finite" in f["reason"] for f in report.failed)
    backend.broken = False
    assert build(data, tmp_path, backend=backend).generated == 3
    assert all(key for _, entry in entries(InfillStore(tmp_path)) for level in entry["infills"] for key in level)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": 0}, "variants and batch_size must be 1 or more"),
        ({"levels": (0.9, 0.5)}, r"rising thresholds.*\(0.9, 0.5\)"),
        ({"levels": (0.5, 1.5)}, "rising thresholds"),
        ({"codec": "gif"}, "codec must be one of .*'gif'"),
        ({"resume": "maybe"}, "resume must be one of .*'maybe'"),
        ({"backend": "magic"}, "unknown backend 'magic'"),
        ({"protect": "faces"}, None),
        ({"dataset": []}, "the dataset is empty"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    if message is None:  # belongs to the samples: every one of them is reported
        assert "protect must be 'boxes' or 'masks'" in build(samples(1), tmp_path, **options).failed[0]["reason"]
        return
    with pytest.raises(ValueError, match=message):
        build(**({"dataset": samples(1)} | options), store=tmp_path)


def test_pictures_of_many_kinds_and_sizes_are_built_together(tmp_path):
    random = np.random.default_rng(0)
    array = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    data = [
        (Image.fromarray(array), 0),
        (Image.fromarray(array[..., 0]), 0),
        (Image.fromarray(array).convert("RGBA"), 0),
        (array, 0),
        {"image": torch.rand(3, 17, 33), "label": 1},
        (tv_tensors.Image(picture(3, 1, 1)), 0),
        (picture(4, 1, 40), 0),
    ]
    report = build(data, tmp_path, source=CentreConfidence(), backend="noise")
    assert report.failed == []
    assert report.samples == 7


def test_labelled_objects_are_in_no_mask(tmp_path):
    boxes = tv_tensors.BoundingBoxes([[2.0, 3.0, 9.5, 11.0]], format="XYXY", canvas_size=(SIDE, SIDE))
    data = [(picture(0), {"boxes": boxes})]
    build(data, tmp_path, source=CallableConfidence(lambda i, t: torch.zeros(SIDE, SIDE), "nothing"), protect="boxes")
    store = InfillStore(tmp_path)
    (_, entry), *_ = entries(store)
    for level in entry["infills"]:
        alpha = decode_pixels(store.get(level[0]))[3]
        assert alpha[3:11, 2:10].sum() == 0
        assert alpha.sum() > 0


def test_prune_keeps_what_a_recipe_refers_to_and_nothing_else(tmp_path):
    old = build(samples(3), tmp_path, backend="noise").recipe
    new = build(samples(3), tmp_path, backend="push_pull").recipe
    store = InfillStore(tmp_path)
    wanted = keys_of_recipes(store, [new])
    store.prune(wanted, dry_run=False)
    after = InfillStore(tmp_path)
    assert set(after) == wanted
    assert build(samples(3), tmp_path, backend="push_pull").generated == 0
    with pytest.raises(ValueError, match="no recipes"):
        keys_of_recipes(after, ["0" * 32])
    assert old != new


def test_a_contact_sheet_shows_the_infills(tmp_path):
    build(samples(3), tmp_path / "store")
    assert save_contact_sheet(InfillStore(tmp_path / "store"), tmp_path / "sheet.png", count=9) == 9
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10


def test_profile_bounds_set_the_default_levels(tmp_path):
    profile = TaskProfile(name="own", bounds=(0.0, 0.8), threshold=0.4)
    report = build_cache(samples(1), tmp_path, profile=profile, progress=False)
    recipe = InfillStore(tmp_path).read_document(f"recipe-{report.recipe}")
    assert recipe["levels"] == pytest.approx([0.4, 0.6, 0.8])


SLOW_BUILD = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_cache_build import build, samples, SlowNoise
print("ready", flush=True)
build(samples(24), {store!r}, backend=SlowNoise(), variants=2, batch_size=3)
"""


class SlowNoise(type(load_backend("noise"))):
    """Noise that takes its time, so that a kill lands in the middle; its name, and so its keys, are noise's."""

    def _generate(self, *arguments):
        time.sleep(0.02)
        return super()._generate(*arguments)


@pytest.mark.slow
def test_killed_at_ten_random_moments_a_build_ends_like_an_undisturbed_one(tmp_path):
    build(samples(24), tmp_path / "undisturbed", backend="noise", variants=2, batch_size=3)
    store = tmp_path / "killed"
    code = SLOW_BUILD.format(tests=str(Path(__file__).parent), store=str(store))
    moments = random.Random(0)
    survived = 0
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.02, 0.35))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        there = len(content(store)) if (store / "STORE.json").exists() else 0
        assert there >= survived, "a rerun deleted something"
        survived = there
    report = build(samples(24), store, backend="noise", variants=2, batch_size=3)
    assert report.failed == []
    assert content(store) == content(tmp_path / "undisturbed")
    counted = Counter(record for record, _ in entries(InfillStore(store)))
    assert set(counted.values()) == {1}
    assert survived > 0, "no run got far enough to be killed in the middle; make the moments later"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses new folders, to root too")
def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises((OSError, RuntimeError), match="/proc/self/store"):
        build(samples(1), "/proc/self/store")


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from test_cache_build import build, samples
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    build(samples(40), {store!r})
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_is_a_clear_error_and_what_was_stored_stays(tmp_path):
    store = tmp_path / "store"
    code = FULL_DISK.format(tests=str(Path(__file__).parent), store=str(store))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "InfillStoreError" in done.stdout, done.stdout + done.stderr
    assert str(store) in done.stdout
    kept = content(store)
    assert kept
    assert all(kept.values())
    report = build(samples(40), store)
    assert report.present > 0
    assert report.generated + report.present == 40 * 3


def test_the_recipe_is_readable_by_people(tmp_path):
    report = build(samples(1), tmp_path)
    text = (tmp_path / "documents" / f"recipe-{report.recipe}.json").read_text()
    assert json.loads(text)["backend"] == "noise"
    assert json.loads((tmp_path / "documents" / "latest.json").read_text()) == {"recipe": report.recipe}


# --- gate and fallback ---


class OftenBlack(type(load_backend("noise"))):
    """Noise whose fills are nearly black by the seed: two in three of all tries."""

    name = "often_black"

    def _generate(self, image, mask, config, samples):
        dark = torch.tensor([sample.seed % 3 > 0 for sample in samples])[:, None, None, None]
        fill = super()._generate(image, mask, config, samples)
        return torch.where(dark, 0.02 * fill, fill)


class Gone(type(load_backend("noise"))):
    """Works for some calls, then never again."""

    name = "gone"

    def __init__(self, calls=0):
        super().__init__()
        self.calls = calls

    def _generate(self, image, mask, config, samples):
        self.calls -= 1
        if self.calls < 0:
            raise BackendUnavailableError("no network; connect, then run the same command again")
        return super()._generate(image, mask, config, samples)


class Priced(type(load_backend("noise"))):
    name = "priced"

    def price(self, descriptor, height, width):
        return 0.02 * height * width / SIDE**2

    def _generate(self, image, mask, config, samples):
        raise AssertionError("an estimate must not call a paid service")


def is_black(store, key):
    pixels, _ = decode_pixels(store.get(key))
    return pixels.float().max() < 20


def test_rejected_fills_are_tried_again_with_other_seeds_and_counted(tmp_path):
    plain = build(samples(9), tmp_path / "plain", backend=OftenBlack())
    assert plain.rejected == {}
    report = build(samples(9), tmp_path / "gate", backend=OftenBlack(), gate=QualityGate(), retries=20)
    assert report.rejected["black"] > 9
    assert not report.failed
    assert f"{report.rejected['black']} black" in str(report)
    notes = [entry.get("rejected", {}) for _, entry in entries(InfillStore(tmp_path / "gate"))]
    assert sum(len(reasons) for note in notes for reasons in note.values()) == sum(report.rejected.values())


def test_a_fill_that_stays_rejected_is_a_failure_that_says_why(tmp_path):
    report = build(samples(9), tmp_path, backend=OftenBlack(), gate=QualityGate(), retries=0)
    assert 0 < len(report.failed) < 27
    assert all("rejected 1 times, at last black" in failure["reason"] for failure in report.failed)


@pytest.mark.parametrize("gate", [None, QualityGate()])
def test_gate_and_fallback_give_the_same_bytes_for_every_batch_size_and_a_rerun_changes_nothing(tmp_path, gate):
    options = {"backend": OftenBlack(), "gate": gate, "retries": 1, "fallback": "push_pull", "variants": 2}
    build(samples(7), tmp_path / "one", batch_size=1, **options)
    build(samples(7)[::-1], tmp_path / "five", batch_size=5, num_workers=2, **options)
    reference = content(tmp_path / "one")
    assert content(tmp_path / "five") == reference
    again = build(samples(7), tmp_path / "one", **options)
    assert again.generated == 0
    assert content(tmp_path / "one") == reference


def test_what_is_given_up_goes_to_the_fallback_and_is_marked(tmp_path):
    report = build(
        samples(9), tmp_path, backend=OftenBlack(), gate=QualityGate(), retries=0, fallback=load_backend("push_pull")
    )
    assert report.fell_back > 0
    assert not report.failed
    marked = [note for _, entry in entries(InfillStore(tmp_path)) for note in entry.get("fallback", {}).values()]
    assert len(marked) == report.fell_back
    assert all(note.startswith("push_pull: rejected 1 times, at last black") for note in marked)
    assert f"{report.fell_back} by the fallback" in str(report)


def test_a_backend_that_is_gone_ends_the_build_and_what_was_stored_stays(tmp_path):
    with pytest.raises(BackendUnavailableError, match="no network; connect"):
        build(samples(9), tmp_path, backend=Gone(calls=3), batch_size=3)
    kept = len(content(tmp_path))
    assert kept > 0
    report = build(samples(9), tmp_path, backend=Gone(calls=99), batch_size=3)
    assert report.present > 0
    assert not report.failed


def test_the_fallback_takes_over_where_the_backend_is_gone_with_one_warning(tmp_path):
    with pytest.warns(UserWarning, match="gone is unavailable, the fallback 'push_pull' fills the rest") as caught:
        report = build(samples(9), tmp_path, backend=Gone(calls=2), fallback="push_pull", batch_size=3)
    assert len(caught) == 1
    assert report.generated == 27
    assert report.fell_back == 21


def test_gate_retries_and_fallback_are_part_of_the_recipe_and_their_absence_is_not(tmp_path):
    stores = []
    for name, options in (
        ("plain", {}), ("gate", {"gate": QualityGate()}), ("other", {"gate": QualityGate(seam=0.9)}),
        ("fallback", {"fallback": "push_pull"}), ("retries", {"gate": QualityGate(), "retries": 5}),
    ):  # fmt: skip
        build(samples(2), tmp_path / name, **options)
        (recipe,) = InfillStore(tmp_path / name).documents("recipe-")
        stores.append(InfillStore(tmp_path / name).read_document(recipe))
    assert "checks" not in stores[0]
    assert len({json.dumps(each, sort_keys=True) for each in stores}) == 5


def test_keys_without_gate_and_fallback_are_those_of_stores_that_knew_neither():
    descriptor = {"task": "t", "object": "o"}
    recipe = Recipe({"source": "S"}, (0.5, 1.0), "quantile", 0.95, 0, None, descriptor, "noise", "f" * 32, 2)
    assert recipe.fingerprint() == "3af99e0dc2bc7c248adc6145d16ee35c"
    key = infill_key("a" * 32, "b" * 32, "c" * 32, descriptor, 1, "cat")
    assert key == "e1631c635aa22ba877e7f7dd79da9d5b"
    assert infill_key("a" * 32, "b" * 32, "c" * 32, descriptor, 1, "cat", QualityGate().identity()) != key


class Counted(OftenBlack):
    """Counts the fills that it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def _generate(self, image, mask, config, samples):
        self.asked += len(image)
        return super()._generate(image, mask, config, samples)


def test_with_a_fallback_or_more_retries_nothing_that_passed_is_made_again(tmp_path):
    first = build(samples(9), tmp_path, backend=Counted(), gate=QualityGate(), retries=0)
    failed = len(first.failed)
    backend = Counted()
    again = build(samples(9), tmp_path, backend=backend, gate=QualityGate(), retries=0, fallback="push_pull")
    assert (backend.asked, again.fell_back, again.present) == (failed, failed, 27 - failed)
    backend = Counted()
    more = build(samples(9), tmp_path, backend=backend, gate=QualityGate(), retries=20, fallback="push_pull")
    assert (more.generated, more.fell_back) == (failed, 0)
    assert InfillStore(tmp_path).verify().duplicates == 0


def test_what_the_gate_gave_up_is_not_asked_for_again(tmp_path):
    options = {"gate": QualityGate(), "retries": 1, "fallback": "push_pull"}
    assert build(samples(9), tmp_path, backend=Counted(), **options).fell_back > 0
    backend = Counted()
    again = build(samples(9), tmp_path, backend=backend, **options)
    assert (backend.asked, again.generated, again.present) == (0, 0, 27)


def test_a_fallback_s_infills_are_those_of_its_own_build(tmp_path):
    options = {"backend": OftenBlack(), "gate": QualityGate(), "retries": 0, "fallback": "push_pull", "variants": 2}
    report = build(samples(9), tmp_path, **options)
    stored = len(InfillStore(tmp_path))
    alone = build(samples(9), tmp_path, backend="push_pull")
    assert 0 < alone.present < 27
    assert alone.present <= report.fell_back
    assert len(InfillStore(tmp_path)) == stored + alone.generated + 9  # infills and entries; the maps are there
    store = InfillStore(tmp_path)
    assert store.verify().duplicates == 0
    assert set(store) >= keys_of_recipes(store, [report.recipe, alone.recipe])


def test_what_was_filled_while_the_backend_was_gone_is_asked_for_again(tmp_path):
    options = {"fallback": "push_pull", "batch_size": 3}
    with pytest.warns(UserWarning, match="gone is unavailable"):
        assert build(samples(9), tmp_path, backend=Gone(calls=2), **options).fell_back == 21
    again = build(samples(9), tmp_path, backend=Gone(calls=99), **options)
    assert (again.generated, again.fell_back, again.present) == (21, 0, 6)
    assert all("fallback" not in entry for _, entry in entries(InfillStore(tmp_path)))
    build(samples(9), tmp_path / "undisturbed", backend=Gone(calls=99), **options)
    undisturbed = content(tmp_path / "undisturbed")
    assert {key: payload for key, payload in content(tmp_path).items() if key in undisturbed} == undisturbed


def test_batches_made_before_the_backend_went_are_stored(tmp_path):
    with pytest.raises(BackendUnavailableError, match="what was stored stays stored"):
        build(samples(9), tmp_path, backend=Gone(calls=3), batch_size=3)
    assert build(samples(9), tmp_path, backend=Gone(calls=99), batch_size=3).present == 9


class Interrupted(type(load_backend("noise"))):
    """The user presses Ctrl-C in the third batch."""

    name = "interrupted"
    calls = 0

    def _generate(self, image, mask, config, samples):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super()._generate(image, mask, config, samples)


def test_an_interrupted_build_keeps_all_batches_but_the_one_in_the_making(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(samples(9), tmp_path, backend=Interrupted(), batch_size=4)
    assert build(samples(9), tmp_path, backend=Interrupted(), batch_size=27).present == 8


class OftenBroken(type(load_backend("noise"))):
    """Noise that is not finite by the seed, as in half precision."""

    name = "often_broken"

    def _generate(self, image, mask, config, samples):
        fill = super()._generate(image, mask, config, samples)
        broken = torch.tensor([sample.seed % 2 > 0 for sample in samples])[:, None, None, None]
        return torch.where(broken, torch.nan, fill)


def test_a_fault_that_the_backend_finds_itself_is_tried_again_where_there_is_a_gate(tmp_path):
    assert build(samples(9), tmp_path / "plain", backend=OftenBroken()).failed
    report = build(samples(9), tmp_path / "gate", backend=OftenBroken(), gate=QualityGate(), retries=20)
    assert not report.failed
    assert set(report.rejected) == {"not finite"}


class Lacking(type(load_backend("noise"))):
    name = "lacking"

    def _generate(self, image, mask, config, samples):
        raise ImportError("backend 'lacking' needs a library: pip install library")


def test_a_missing_library_ends_the_build_or_hands_over_to_the_fallback(tmp_path):
    with pytest.raises(BackendUnavailableError, match="pip install library"):
        build(samples(2), tmp_path, backend=Lacking())
    with pytest.warns(UserWarning, match="pip install library"):
        assert build(samples(2), tmp_path, backend=Lacking(), fallback="noise").fell_back == 6


def test_options_of_the_descriptor_are_for_the_backend_and_not_for_the_fallback(tmp_path):
    pytest.importorskip("cv2")
    descriptor = {"task": "t", "object": "o", "options": {"radius": 5}}
    report = build(samples(2), tmp_path, backend="telea", descriptor=descriptor, fallback="push_pull")
    assert (report.generated, report.failed) == (6, [])


def test_a_donor_as_fallback_gets_its_pool(tmp_path):
    with pytest.warns(UserWarning, match="the fallback 'donor'"):
        report = build(samples(4), tmp_path, backend=Gone(), fallback="donor")
    assert (report.fell_back, report.failed) == (12, [])


def test_what_was_rejected_is_summed_up_for_people_with_a_few_samples(tmp_path):
    report = build(samples(9), tmp_path, backend=OftenBlack(), gate=QualityGate(), retries=1, fallback="push_pull")
    assert 1 <= len(report.examples["black"]) <= 5
    (record,) = InfillStore(tmp_path).failures()
    assert record["rejected"] == report.rejected
    assert record["fell_back"] == report.fell_back
    assert record["reason"] in str(report)
    rejected, by_fallback = verdicts(InfillStore(tmp_path))[report.recipe]
    assert rejected == report.rejected
    assert by_fallback == {"push_pull": report.fell_back}


def test_gate_true_suits_backend_and_source(tmp_path):
    source = EstimatorConfidence(ConfidenceEstimator(input_size=32).eval())
    report = build(samples(2), tmp_path, source=source, gate=True)
    checks = InfillStore(tmp_path).read_document(f"recipe-{report.recipe}")["checks"]
    assert checks["gate"] == QualityGate(seam=None, finder=source).identity()
    plain = build(samples(2), tmp_path / "off", gate=False)
    assert "checks" not in InfillStore(tmp_path / "off").read_document(f"recipe-{plain.recipe}")


def test_the_descriptor_names_the_backend_where_the_caller_does_not(tmp_path):
    descriptor = {"task": "t", "object": "o", "backend": "noise"}
    report = build(samples(1), tmp_path, backend=None, descriptor=descriptor)
    assert InfillStore(tmp_path).read_document(f"recipe-{report.recipe}")["backend"] == "noise"


def test_a_dry_run_of_a_paid_service_says_the_price_and_calls_nobody(tmp_path):
    estimate = build(samples(10), tmp_path, backend=Priced(), dry_run=True, variants=2)
    assert math.isnan(estimate.seconds)
    assert estimate.dollars == pytest.approx(10 * 3 * 2 * 0.02)
    assert "about 1.20 US dollars" in str(estimate)
    assert "time is unknown" in str(estimate)


def test_retries_below_0_are_refused(tmp_path):
    with pytest.raises(ValueError, match="retries must be 0 or more, got -1"):
        build(samples(2), tmp_path, gate=QualityGate(), retries=-1)
