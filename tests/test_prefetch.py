import multiprocessing
import weakref
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from infill_aug.batch import InfillAugment
from infill_aug.prefetch import Prefetcher, look_ahead, prefetch
from infill_aug.threshold import ThresholdState

CPU = torch.device("cpu")
Pair = namedtuple("Pair", ["image", "label"])
# On a CPU streams do nothing, so looking ahead there shows the order of the work, not that it runs side by side.
both_ways = pytest.mark.parametrize("ahead", [False, True], ids=["in_order", "ahead"])
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


class Samples:
    """What ``InfillDataset`` gives; ``broken`` is the sample that cannot be read."""

    def __init__(self, count=12, side=8, broken=None):
        generator = torch.Generator().manual_seed(0)
        self.pictures = torch.randint(0, 256, (count, 2, 3, side, side), dtype=torch.uint8, generator=generator)
        self.confidence = torch.randint(0, 240, (count, 1, side, side), dtype=torch.uint8, generator=generator)
        self.broken = broken

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError(f"sample {index} cannot be read")
        image, infill = self.pictures[index]
        return {"image": image, "infill": infill, "confidence": self.confidence[index], "target": index}


def make_augment(threshold=0.5, **options):
    return InfillAugment(threshold, **{"p": 0.5, "jitter": 0.2, "feather": 1, **options})


def prefetched(loader, augment, ahead):
    return prefetch(iter(loader), augment, CPU, augment, ahead=ahead)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


# --- the same batches ---


@both_ways
@pytest.mark.parametrize("workers", [0, 1])
def test_a_seed_gives_the_batches_that_it_gives_without(ahead, workers):
    loader = DataLoader(Samples(), batch_size=3, shuffle=True, num_workers=workers)
    augment = make_augment()
    torch.manual_seed(3)
    wanted = [augment(batch) for _ in range(2) for batch in loader]
    torch.manual_seed(3)
    got = [batch for _ in range(2) for batch in prefetched(loader, augment, ahead)]
    assert len(got) == len(wanted) == 8
    assert all(same(*pair) for pair in zip(got, wanted, strict=True))
    assert not same(got[0], got[4])


def test_a_prefetcher_can_be_iterated_again_and_has_the_length_of_its_loader():
    batches = Prefetcher(DataLoader(Samples(), batch_size=5), make_augment(), "cpu")
    assert len(batches) == 3
    for _ in range(2):
        assert [batch["target"].tolist() for batch in batches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


def test_tensors_go_to_the_device_in_whatever_they_are_nested():
    batch = {"a": [torch.zeros(1), "name"], "b": Pair(torch.zeros(2), (torch.zeros(3),)), "c": OrderedDict(d=None)}
    (got,) = Prefetcher([batch], lambda batch: batch, "meta")
    assert got["a"][0].is_meta
    assert got["a"][1] == "name"
    assert isinstance(got["b"], Pair)
    assert got["b"].image.is_meta
    assert got["b"].label[0].is_meta
    assert got["c"] == OrderedDict(d=None)
    assert not batch["a"][0].is_meta


def test_a_module_is_moved_to_the_device():
    layer = nn.Linear(2, 2)
    Prefetcher([], layer, "meta")
    assert layer.weight.is_meta


# --- ahead ---


def test_a_batch_is_handed_out_when_the_next_was_started_and_no_more():
    events = []

    def batches():
        for i in range(3):
            events.append(f"load {i}")
            yield i

    for batch in prefetch(batches(), lambda i: events.append(f"prepare {i}") or i, CPU, ahead=True):
        events.append(f"train {batch}")
    first, second, third = ([f"load {i}", f"prepare {i}"] for i in range(3))
    assert events == [*first, *second, "train 0", *third, "train 1", "train 2"]


def test_without_a_gpu_the_work_is_done_in_order():
    events = []
    for batch in Prefetcher([0, 1], lambda i: events.append(f"prepare {i}") or i, "cpu"):
        events.append(f"train {batch}")
    assert events == ["prepare 0", "train 0", "prepare 1", "train 1"]


def test_batches_are_prepared_on_a_stream_of_their_own_and_used_on_that_of_the_training():
    seen = []
    for _ in prefetch(iter(range(3)), lambda _: seen.append(torch.cpu.current_stream()), CPU, ahead=True):
        assert torch.cpu.current_stream() not in seen
    assert len(set(map(id, seen))) == 1


@both_ways
def test_a_threshold_set_between_epochs_is_that_of_the_first_batch(ahead):
    state = ThresholdState.from_threshold(0.0)
    loader = DataLoader(Samples(), batch_size=3)
    augment = make_augment(state, p=1.0, jitter=0.0, feather=0)
    assert not any(batch["mask"].any() for batch in prefetched(loader, augment, ahead))
    state.set(1.0)
    assert all(batch["mask"].float().mean() > 0.9 for batch in prefetched(loader, augment, ahead))


@both_ways
def test_a_threshold_set_within_an_epoch_comes_a_batch_later_where_one_is_ahead(ahead):
    state = ThresholdState.from_threshold(0.0)
    masked = []
    for batch in prefetched(
        DataLoader(Samples(), batch_size=3), make_augment(state, p=1.0, jitter=0.0, feather=0), ahead
    ):
        masked.append(bool(batch["mask"].any()))
        state.set(1.0)
    assert masked == ([False, False, True, True] if ahead else [False, True, True, True])


@both_ways
def test_the_masked_share_is_that_of_the_batch_in_use(ahead):
    augment = make_augment(p=1.0)
    for batch in prefetched(DataLoader(Samples(), batch_size=3), augment, ahead):
        assert torch.isclose(augment.masked_share, batch["mask"].float().mean())


def test_no_batch_but_the_one_in_use_and_the_one_ahead_is_kept():
    alive, most = weakref.WeakSet(), []

    class Batch:
        pass

    def prepare(_):
        most.append(len(alive))
        alive.add(made := Batch())
        return made

    batches = prefetch(iter(range(6)), prepare, CPU, ahead=True)
    for _ in range(6):
        next(batches)  # and let go
    assert max(most) == 1


# --- how it ends ---


@both_ways
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_loader_is_raised_at_its_batch(ahead, workers):
    loader = DataLoader(Samples(broken=7), batch_size=3, num_workers=workers)
    seen = []
    with pytest.raises(OSError, match="sample 7 cannot be read"):
        seen.extend(batch["target"].tolist() for batch in prefetched(loader, make_augment(), ahead))
    assert seen == [[0, 1, 2], [3, 4, 5]]


@both_ways
def test_an_error_of_the_augmentation_is_raised_at_its_batch(ahead):
    good = next(iter(DataLoader(Samples(), batch_size=2)))
    batches = prefetched([good, good, {"image": good["image"]}, good], make_augment(), ahead)
    assert next(batches).keys() == next(batches).keys()
    with pytest.raises(KeyError, match="the batch lacks"):
        next(batches)


def test_an_error_at_the_first_item_and_no_item_at_all():
    assert list(look_ahead(iter([]))) == []
    with pytest.raises(ZeroDivisionError):
        next(look_ahead(1 / i for i in [0]))
    assert list(look_ahead(iter([None, 0]))) == [None, 0]


@both_ways
def test_a_break_leaves_no_worker_behind(ahead):
    before = set(multiprocessing.active_children())
    loader = DataLoader(Samples(), batch_size=2, num_workers=1)
    batches = prefetched(loader, make_augment(), ahead)
    for _ in batches:
        assert set(multiprocessing.active_children()) - before
        break
    del batches
    assert set(multiprocessing.active_children()) - before == set()
    assert len(list(prefetched(loader, make_augment(), ahead))) == 6


def test_what_cannot_be_a_loader_an_augmentation_or_a_device_is_named():
    with pytest.raises(TypeError, match=r"loader must be an iterable of batches.*got int"):
        Prefetcher(3, make_augment(), "cpu")
    with pytest.raises(TypeError, match=r"augment must be callable.*got str"):
        Prefetcher([], "infill", "cpu")
    with pytest.raises(ValueError, match=r"there is no cuda:99: torch sees \d+ CUDA GPUs"):
        Prefetcher([], make_augment(), "cuda:99")
    with pytest.raises(TypeError, match="has no len"):
        len(Prefetcher(iter([]), make_augment(), "cpu"))


# --- on a GPU ---


class TestOnAGPU:
    pytestmark = on_gpu

    def busy(self, images):
        """Work that the GPU is long at, so that a batch that is used too early or overwritten shows."""
        weights = torch.ones(2048, 2048, device="cuda")
        for _ in range(20):
            weights = weights @ weights / 2048
        return (images * weights.mean()).sum(dim=(1, 2, 3))

    @pytest.mark.parametrize("pinned", [False, True])
    def test_a_seed_gives_the_batches_that_it_gives_without(self, pinned):
        loader = DataLoader(Samples(count=256, side=64), batch_size=16, shuffle=True, pin_memory=pinned)
        augment = make_augment()
        results = []
        for ahead in (False, True):
            torch.manual_seed(3)
            batches = Prefetcher(loader, augment, "cuda")
            found = prefetch(iter(loader), batches._prepare, batches.device, augment, ahead=ahead)
            results.append(torch.stack([self.busy(batch["image"]) for batch in found]).cpu())
        assert torch.equal(*results)

    def test_nothing_grows_over_the_epochs(self):
        batches = Prefetcher(DataLoader(Samples(count=128, side=128), batch_size=16), make_augment(), "cuda")
        held = []
        for _ in range(6):
            for batch in batches:
                self.busy(batch["image"])
            torch.cuda.synchronize()
            held.append(torch.cuda.memory_allocated())
        assert held[-1] == held[1]

    def test_tensors_that_the_loader_has_on_the_gpu_may_be_let_go(self):
        def batches():
            for i in range(8):
                yield {"x": torch.full((1 << 20,), float(i), device="cuda")}

        for i, batch in enumerate(Prefetcher(batches(), lambda batch: batch["x"] * 2, "cuda")):
            assert (batch == 2 * i).all()
