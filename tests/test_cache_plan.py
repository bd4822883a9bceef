from collections import Counter

import pytest
import torch
from tests_support import disc, picture

from infill_aug.cache.build import BuildEstimate, build_cache
from infill_aug.cache.codec import decode_map, decode_pixels
from infill_aug.cache.inspect import entries, keys_of_recipes
from infill_aug.cache.plan import Planner, Scorer, pool
from infill_aug.cache.store import InfillStore
from infill_aug.confidence import (
    CallableConfidence,
    ConfidenceEstimator,
    EstimatorConfidence,
    MaskConfidence,
    NetworkConfidence,
)
from infill_aug.infill import load_backend
from infill_aug.infill.backend import InfillError
from infill_aug.key import image_digest
from infill_aug.profile import TaskProfile
from infill_aug.samples import spread
from infill_aug.types import quantise_confidence


class Redness(NetworkConfidence):
    """What is red matters. Counts the pictures that it is shown."""

    def __init__(self, version=1, **options):
        super().__init__(**{"falloff": 0.2, "batch_size": 4} | options)
        self.version, self.seen = version, []

    def score(self, images, prompts):
        self.seen += [image_digest((image * 255).round().to(torch.uint8)) for image in images]
        return images[:, :1] / self.version

    def identity(self):
        return {"version": self.version}


class Prompted(Redness):
    """As confident as the target says."""

    reads_target = True

    def prompt(self, target):
        return target["share"]

    def score(self, images, prompts):
        return super().score(images, prompts) * torch.tensor(prompts)[:, None, None, None]


class Fails(Redness):
    """Gives no map of dark pictures, or of any."""

    def __init__(self, error=None, always=False, **options):
        super().__init__(**options)
        self.error, self.always = error, always

    def score(self, images, prompts):
        if self.always or (images.flatten(1).amax(dim=1) < 0.3).any():
            if self.error is not None:
                raise self.error
            return super().score(images, prompts) * torch.nan
        return super().score(images, prompts)


def samples(count):
    return [(picture(i), {"label": i % 3, "mask": disc(), "share": (1 + i % 4) / 4}) for i in range(count)]


def build(dataset, store, source, **options):
    return build_cache(dataset, store, source=source, **{"backend": "noise", "progress": False} | options)


def content(path):
    store = InfillStore(path, create=False)
    return {key: store.get(key) for key in store}


def maps(path):
    """Quantised map of each entry by picture, as the store has it."""
    store = InfillStore(path, create=False)
    return sorted(image_digest(decode_map(store.get(entry["map"]))) for _, entry in entries(store))


# --- maps are computed once ---


def test_a_rebuild_computes_no_map_and_changes_nothing(tmp_path):
    first, second = Redness(), Redness()
    build(samples(9), tmp_path, first, variants=2)
    before = content(tmp_path)
    report = build(samples(9), tmp_path, second, variants=2)
    assert len(first.seen) == 9
    assert second.seen == []
    assert (report.generated, report.present, report.failed) == (0, 9 * 3 * 2, [])
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "options", [{"backend": "push_pull"}, {"levels": (0.3, 0.7)}, {"protect": "masks"}, {"codec": "raw", "variants": 3}]
)
def test_another_recipe_of_the_same_network_computes_no_map(tmp_path, options):
    build(samples(5), tmp_path, Redness())
    again = Redness()
    report = build(samples(5), tmp_path, again, **options)
    assert again.seen == []
    assert report.generated > 0


@pytest.mark.parametrize(
    "other",
    [Redness(falloff=0.3), Redness(edges=5.0), Redness(version=2), Fails()],
    ids=["falloff", "edges", "identity", "class"],
)
def test_another_network_computes_its_own_maps(tmp_path, other):
    build(samples(5), tmp_path, Redness())
    build(samples(5), tmp_path, other)
    assert len(other.seen) == 5


def test_another_prompt_of_the_same_picture_is_another_map(tmp_path):
    build(samples(5), tmp_path, Prompted())
    again, other = Prompted(), Prompted()
    build(samples(5), tmp_path, again)
    build([(image, target | {"share": 0.9}) for image, target in samples(5)], tmp_path, other)
    assert again.seen == []
    assert len(other.seen) == 5


def test_a_grown_dataset_computes_the_new_maps_only(tmp_path):
    build(samples(5), tmp_path, Redness())
    grown = Redness()
    build(samples(8), tmp_path, grown)
    assert sorted(grown.seen) == sorted(image_digest(picture(i)) for i in (5, 6, 7))


@pytest.mark.parametrize("network_batch", [1, 2, 4, 64])
def test_a_picture_that_occurs_twice_is_scored_once_and_stored_once(tmp_path, network_batch):
    network = Redness(batch_size=network_batch)
    report = build([*samples(5), *samples(5), *samples(2)], tmp_path, network)
    assert Counter(Counter(network.seen).values()) == {1: 5}
    assert report.generated == 5 * 3
    assert InfillStore(tmp_path).verify().duplicates == 0


def test_a_build_stores_each_map_and_each_note_once(tmp_path):
    flat = [(torch.full((3, 24, 24), i, dtype=torch.uint8), {"label": 0}) for i in (0, 1, 2)]
    # Black pictures whose blue differs have one map, and a note each.
    blue = [(torch.zeros(3, 24, 24, dtype=torch.uint8).index_fill_(0, torch.tensor([2]), 9 * i), 0) for i in (1, 2, 3)]
    report = build([*flat, *blue], tmp_path, Redness(falloff=0.0), backend="noise")
    assert report.failed == []
    report = InfillStore(tmp_path).verify()
    assert report.duplicates == 0
    assert not report.corrupt
    kinds = Counter(InfillStore(tmp_path).locate(key).ext for key in InfillStore(tmp_path))
    stored = {entry["map"] for _, entry in entries(InfillStore(tmp_path))}
    assert kinds["map"] == 6
    assert kinds["json"] == 6
    assert len(stored) == 3


def test_a_map_that_was_lost_is_computed_again(tmp_path):
    build(samples(3), tmp_path, Redness())
    store = InfillStore(tmp_path)
    lost = next(entry["map"] for _, entry in entries(store))
    store.prune(set(store) - {lost}, dry_run=False)
    again = Redness()
    build(samples(3), tmp_path, again)
    assert len(again.seen) == 1
    assert InfillStore(tmp_path).get(lost) is not None
    assert InfillStore(tmp_path).verify().duplicates == 0, "the note that names it was still there"


# --- the same maps, however they are computed ---


@pytest.mark.parametrize("source", [Redness, Prompted])
@pytest.mark.parametrize("backend", ["noise", "donor"])
def test_batch_sizes_and_workers_do_not_change_a_single_byte(tmp_path, source, backend):
    data = samples(10)
    build(data, tmp_path / "one", source(batch_size=1), backend=backend, batch_size=1, variants=2)
    build(data, tmp_path / "seven", source(batch_size=7), backend=backend, batch_size=7, variants=2)
    build(data, tmp_path / "workers", source(batch_size=3), backend=backend, batch_size=4, variants=2, num_workers=2)
    reference = content(tmp_path / "one")
    assert content(tmp_path / "seven") == reference
    assert content(tmp_path / "workers") == reference


def test_a_build_has_the_maps_that_the_network_gives(tmp_path):
    data = [(picture(i, 20 + i % 2, 24), i) for i in range(7)]
    build(data, tmp_path, Redness())
    assert maps(tmp_path) == sorted(image_digest(one) for one in Redness().quantised([image for image, _ in data]))


def test_a_network_has_the_infills_of_its_maps_given_by_hand(tmp_path):
    data = samples(4)
    build(data, tmp_path / "network", Redness())
    build(data, tmp_path / "by hand", CallableConfidence(lambda image, target: Redness()(image, target), "redness"))
    one, two = ({payload for key, payload in content(tmp_path / name).items()} for name in ("network", "by hand"))
    infills = {payload for payload in one & two if decodes_to_channels(payload, 4)}
    assert len(infills) == 4 * 3


def decodes_to_channels(payload, channels):
    try:
        return decode_pixels(payload).shape[0] == channels
    except RuntimeError:
        return False


def test_labelled_objects_are_in_no_mask_of_a_network(tmp_path):
    build(samples(4), tmp_path, Redness(), protect="masks")
    store = InfillStore(tmp_path)
    found = list(entries(store))
    assert len(found) == 4
    for _, entry in found:
        assert (decode_map(store.get(entry["map"]))[0][disc()] == 255).all()
        own = store.get(entry["score"]).decode()
        assert own != entry["map"], "the network's own map is kept beside the protected one"
        assert (decode_map(store.get(own)) < 255).any()
        for level in entry["infills"]:
            alpha = decode_pixels(store.get(level[0]))[3]
            assert alpha[disc()].sum() == 0
            assert alpha.sum() > 0


# --- pruning ---


@pytest.mark.parametrize("protect", [None, "masks"])
def test_prune_keeps_the_notes_and_maps_of_a_kept_recipe(tmp_path, protect):
    kept = build(samples(4), tmp_path, Redness(), protect=protect).recipe
    build(samples(4), tmp_path, Redness(falloff=0.5), backend="push_pull")
    store = InfillStore(tmp_path)
    wanted = keys_of_recipes(store, [kept])
    store.prune(wanted, dry_run=False)
    assert set(InfillStore(tmp_path)) == wanted
    again = Redness()
    report = build(samples(4), tmp_path, again, protect=protect)
    assert again.seen == []
    assert (report.generated, report.present) == (0, 4 * 3)
    gone = Redness(falloff=0.5)
    build(samples(4), tmp_path, gone, backend="push_pull")
    assert len(gone.seen) == 4, "what only the other recipe needed is gone"


# --- failures ---


class Unreadable(list):
    def __getitem__(self, index):
        if index == 2:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_sample_is_reported_and_the_rest_is_scored(tmp_path, num_workers):
    network = Redness()
    report = build(Unreadable(samples(6)), tmp_path, network, num_workers=num_workers)
    assert [(f["sample"], f["reason"]) for f in report.failed] == [(2, "OSError: image file is truncated")]
    assert report.generated == 5 * 3
    assert len(network.seen) == 5
    mended = Redness()
    assert build(samples(6), tmp_path, mended).generated == 3
    assert mended.seen == [image_digest(picture(2))]


def test_a_target_that_the_network_cannot_be_prompted_with_is_reported(tmp_path):
    data = samples(6)
    del data[3][1]["share"]
    report = build(data, tmp_path, Prompted())
    assert [(f["sample"], f["reason"]) for f in report.failed] == [(3, "KeyError: 'share'")]
    assert report.generated == 5 * 3


def test_a_target_without_the_objects_to_protect_is_reported(tmp_path):
    data = samples(6)
    del data[1][1]["mask"]
    report = build(data, tmp_path, Redness(), protect="masks")
    assert [f["sample"] for f in report.failed] == [1]
    assert "KeyError: \"protect='masks'" in report.failed[0]["reason"]
    assert report.generated == 5 * 3


def with_dark(count, *dark):
    data = samples(count)
    for index in dark:
        data[index] = (data[index][0] // 8, data[index][1])
    return data


@pytest.mark.parametrize(
    ("error", "reason"),
    [(None, "ValueError: Fails gave scores that are not finite"), (RuntimeError("odd"), "RuntimeError: odd")],
)
@pytest.mark.parametrize("network_batch", [1, 4, 64])
def test_a_picture_that_the_network_gives_no_map_of_is_reported_and_the_rest_is_built(
    tmp_path, network_batch, error, reason
):
    data = with_dark(10, 2, 9)
    report = build([*data, data[2]], tmp_path, Fails(error, batch_size=network_batch))
    assert [f["sample"] for f in report.failed if f["reason"].startswith(reason)] == [2, 9, 10]
    assert len(report.failed) == 3
    assert report.generated == 8 * 3
    again = Fails(error)
    report = build(data, tmp_path, again)
    assert [f["sample"] for f in report.failed] == [2, 9], "a build that has only these left gets past them too"
    assert report.present == 8 * 3


def test_a_network_that_gives_no_map_at_all_ends_the_build_soon(tmp_path):
    network = Fails(always=True)
    with pytest.raises(ValueError, match="Fails gave scores that are not finite"):
        build(samples(20), tmp_path, network)
    assert len(network.seen) == 4


def test_the_estimator_gives_a_build_the_same_maps_in_any_order(tmp_path):
    """Convolutions over a batch differ in the last bits from those over one picture; stored maps must not."""
    torch.manual_seed(0)
    data = [(picture(i, 40, 30), {"label": 0}) for i in range(12)]
    source = EstimatorConfidence(ConfidenceEstimator(input_size=64).eval(), falloff=0.2, batch_size=7)
    for name, own in (("there", data), ("back", data[::-1])):
        build(own, tmp_path / name, source)
    assert maps(tmp_path / "there") == maps(tmp_path / "back")


@pytest.mark.parametrize("error", [ImportError("needs transformers"), FileNotFoundError("no weights")])
def test_missing_libraries_and_weights_end_the_build_at_once(tmp_path, error):
    with pytest.raises(type(error), match=str(error)):
        build(with_dark(20, 7), tmp_path, Fails(error))


# --- dry runs, donors, quality ---


@pytest.mark.parametrize("backend", ["noise", "donor"])
def test_a_dry_run_with_a_network_stores_nothing(tmp_path, backend):
    estimate = build(samples(20), tmp_path, Redness(), dry_run=True, backend=backend)
    assert isinstance(estimate, BuildEstimate)
    assert estimate.infills == 20 * 3
    assert estimate.bytes > 0
    assert len(InfillStore(tmp_path)) == 0
    assert InfillStore(tmp_path).documents() == []


def test_a_dry_run_over_a_store_uses_its_maps(tmp_path):
    build(samples(20), tmp_path, Redness())
    again = Redness()
    build(samples(20), tmp_path, again, dry_run=True)
    assert again.seen == []


@pytest.mark.parametrize("pool_size", [3, 256])
def test_donors_of_a_network_are_scored_once_and_their_maps_are_stored(tmp_path, pool_size):
    network, again = Redness(), Redness()
    report = build(samples(10), tmp_path, network, backend=load_backend("donor", pool_size=pool_size))
    assert report.failed == []
    assert report.generated == 10 * 3
    assert Counter(Counter(network.seen).values()) == {1: 10}, "the pool is not scored a second time"
    assert InfillStore(tmp_path).verify().duplicates == 0
    assert build(samples(10), tmp_path, again, backend=load_backend("donor", pool_size=pool_size)).generated == 0
    assert again.seen == []


def test_donors_are_cut_out_by_the_networks_maps(tmp_path):
    white = [(torch.full((3, 24, 24), 255, dtype=torch.uint8), 0)] * 3
    with pytest.raises(InfillError, match="its maps protect every pixel"):
        build(white, tmp_path, Redness(), backend="donor")


class Measured(Redness):
    """A network that was measured."""

    def __init__(self, quality):
        super().__init__()
        self.quality = quality


def test_a_network_that_failed_its_measurement_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"Misses half of the objects\. The infills will show it"):
        report = build(samples(2), tmp_path, Measured({"passes": False, "verdict": "Misses half of the objects."}))
    assert report.generated == 2 * 3


@pytest.mark.parametrize("quality", [{}, {"passes": True, "verdict": "Finds them."}])
def test_a_network_that_passed_or_was_not_measured_is_not_warned_of(tmp_path, quality):
    assert build(samples(2), tmp_path, Measured(quality)).generated == 2 * 3  # warnings are errors


# --- the parts by themselves ---

PROFILE = TaskProfile("p", "mask")


def test_a_planner_completes_samples_of_labels_and_leaves_those_of_networks_open():
    labels = Planner(samples(2), MaskConfidence("mask"), PROFILE, (0.5, 1.0), None, None)[1]
    assert labels.masks.shape == (2, 24, 24)
    assert labels.target is None
    assert labels.label == 1
    plan = Planner(samples(2), Redness(), PROFILE, (0.5, 1.0), None, None)
    opened = plan[1]
    assert opened.masks.numel() == 0
    assert opened.target["label"] == 1
    done = plan.complete(opened, torch.rand(1, 24, 24))
    assert done.masks.shape == (2, 24, 24)
    assert done.target is None
    assert (done.masks[1] | ~done.masks[0]).all(), "masks are nested"


def test_a_scorer_counts_what_it_computes_and_keeps_the_order(tmp_path):
    store = InfillStore(tmp_path)
    data = samples(11)
    plan = Planner(Unreadable(data), Redness(), PROFILE, (0.5,), None, None)
    scorer = Scorer(plan, Redness(batch_size=3), store)
    with store.writer() as writer:
        done = list(scorer((plan[i] for i in range(11)), writer))
    assert [sample.index for sample in done] == list(range(11))
    assert [bool(sample.error) for sample in done] == [i == 2 for i in range(11)]
    assert scorer.computed == 10
    for i in (0, 5, 10):
        assert torch.equal(done[i].confidence, quantise_confidence(Redness()(*data[i])))
    store.refresh()
    again = Scorer(plan, Redness(batch_size=5), store)
    repeated = list(again(plan[i] for i in range(11)))
    assert again.computed == 0
    assert all(torch.equal(a.confidence, b.confidence) for a, b in zip(done, repeated, strict=True))


def test_a_scorer_of_labels_hands_everything_through(tmp_path):
    source = MaskConfidence("mask")
    plan = Planner(samples(3), source, PROFILE, (0.5,), None, None)
    scorer = Scorer(plan, source, InfillStore(tmp_path))
    planned = [plan[i] for i in range(3)]
    assert all(one is other for one, other in zip(scorer(planned), planned, strict=True))
    assert scorer.computed == 0


@pytest.mark.parametrize(("count", "wanted"), [(1, 8), (5, 8), (8, 8), (100, 8), (100, 1), (7, 2)])
def test_indices_are_spread_from_first_to_last_without_repetition(count, wanted):
    indices = spread(count, wanted)
    assert len(indices) == len(set(indices)) == min(count, wanted)
    assert indices[0] == 0
    assert indices == sorted(indices)
    assert wanted == 1 or indices[-1] == count - 1


@pytest.mark.parametrize("source", [MaskConfidence("mask"), Redness()], ids=["labels", "network"])
def test_a_pool_has_evenly_spaced_readable_samples_with_their_maps(tmp_path, source):
    data = samples(9)
    plan = Planner(Unreadable(data), source, PROFILE, (0.5,), None, None)
    chosen = list(pool(plan, Scorer(plan, source, InfillStore(tmp_path)), 5))
    assert [sample.key for sample in chosen] == [image_digest(data[i][0]) for i in (0, 4, 6, 8)]
    assert [sample.label for sample in chosen] == [i % 3 for i in (0, 4, 6, 8)]
    for sample, i in zip(chosen, (0, 4, 6, 8), strict=True):
        assert torch.equal(sample.confidence, quantise_confidence(source(*data[i])))
