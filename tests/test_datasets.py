import multiprocessing
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import disc, picture
from torch.utils.data import DataLoader, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from infill_aug.batch import InfillAugment
from infill_aug.cache.build import build_cache
from infill_aug.cache.reader import InfillMissError, InfillReader
from infill_aug.cache.store import InfillStore
from infill_aug.confidence import MaskConfidence
from infill_aug.datasets import InfillDataset
from infill_aug.threshold import ThresholdState
from infill_aug.types import ConfidenceMap


class Pictures:
    """Map-style and picklable: what a user's dataset is."""

    def __init__(self, count=8, side=24, masks=False):
        self.count, self.side, self.masks = count, side, masks

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        image = Image.fromarray(picture(index, self.side, self.side).permute(1, 2, 0).numpy())
        return (image, {"label": index % 3, "mask": disc(self.side)}) if self.masks else (image, index % 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    build_cache(
        Pictures(masks=True), folder, source=MaskConfidence(key="mask"), backend="noise", variants=2, progress=False
    )
    return folder


def test_a_sample_carries_image_infill_confidence_and_target(store):
    sample = InfillDataset(Pictures(), store)[3]
    assert list(sample) == ["image", "infill", "confidence", "target"]
    assert isinstance(sample["image"], tv_tensors.Image)
    assert isinstance(sample["infill"], tv_tensors.Image)
    assert isinstance(sample["confidence"], ConfidenceMap)
    assert torch.equal(sample["image"].as_subclass(torch.Tensor), picture(3))
    assert sample["target"] == 0
    assert {v.dtype for v in list(sample.values())[:3]} == {torch.uint8}


def test_the_infill_differs_from_the_image_only_where_the_level_masked_it(store):
    sample = InfillDataset(Pictures(), store)[0]
    outside = disc()
    assert torch.equal(sample["infill"][:, outside], sample["image"][:, outside])
    assert (sample["infill"][:, ~outside] != sample["image"][:, ~outside]).any()


def test_infills_are_found_by_content_in_any_order_or_subset(store):
    reference = InfillDataset(Pictures(), store)[5]["confidence"]
    shuffled = InfillDataset(Subset(Pictures(), [7, 5]), store)[1]["confidence"]
    as_arrays = InfillDataset([(np.asarray(image), label) for image, label in Pictures()], store)[5]["confidence"]
    as_tensors = InfillDataset([{"image": picture(i), "label": i} for i in range(8)], store)[5]
    assert torch.equal(reference, shuffled)
    assert torch.equal(reference, as_arrays)
    assert torch.equal(reference, as_tensors["confidence"])
    assert as_tensors["target"] == {"label": 5}


def test_a_changed_image_is_never_given_the_old_infill(store):
    changed = picture(0)
    changed[0, 0, 0] ^= 1
    with pytest.raises(InfillMissError, match="infill-aug build"):
        InfillDataset([(changed, 0)], store)[0]


def test_on_miss_original_gives_a_sample_that_no_step_changes(store):
    dataset = InfillDataset([(picture(77), 0)], store, on_miss="original")
    batch = next(iter(DataLoader(dataset, batch_size=1)))
    out = InfillAugment(1.0, p=1.0)(batch)
    assert torch.equal(out["image"], picture(77)[None].float() / 255)
    assert not out["mask"].any()


def test_geometric_transforms_move_everything_in_lockstep(store):
    data = [(picture(i), 0) for i in range(8)]
    plain = InfillDataset(data, store)
    torch.manual_seed(0)
    mirrored = InfillDataset(data, store, transforms=v2.Compose([v2.RandomHorizontalFlip(1.0), v2.CenterCrop(16)]))
    for key in ("image", "confidence"):
        expected = v2.functional.center_crop(plain[2][key].flip(-1), [16, 16])
        assert torch.equal(mirrored[2][key].as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))
    sample = mirrored[2]
    kept = sample["confidence"][0] == 255
    assert torch.equal(sample["image"][:, kept], sample["infill"][:, kept])


def test_the_narrowest_level_that_covers_the_threshold_is_read(store):
    state = ThresholdState.from_threshold(0.3)
    reader = InfillReader(store, threshold=state)
    assert reader.recipe.levels == (0.5, 0.75, 1.0)
    assert reader.level() == 0
    state.set(0.3)  # masks 69 %
    assert reader.level() == 1
    state.set(1.0)
    assert reader.level() == 2
    assert InfillReader(store).level() == 2
    assert InfillReader(store, threshold=ThresholdState(mode="absolute")).level() == 2, "not comparable: the widest"


def test_every_pixel_that_a_threshold_masks_has_been_generated(store):
    threshold = 0.62
    augment = InfillAugment(threshold, p=1.0, feather=0)
    for transforms in (None, v2.CenterCrop(14), v2.RandomResizedCrop(24, scale=(0.2, 0.5), interpolation=0)):
        dataset = InfillDataset(Pictures(), store, threshold=threshold, transforms=transforms)
        batch = torch.utils.data.default_collate([dataset[i] for i in range(8)])
        mask = augment(batch)["mask"].expand(-1, 3, -1, -1)
        # Random pixels agree by chance once in 256.
        assert (batch["image"] == batch["infill"])[mask].float().mean() < 0.02
        assert mask.any()


def test_variants_are_drawn_at_random_and_follow_the_seed(store):
    dataset = InfillDataset(Pictures(), store)
    torch.manual_seed(3)
    first = [dataset[0]["infill"] for _ in range(8)]
    torch.manual_seed(3)
    second = [dataset[0]["infill"] for _ in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({a.numpy().tobytes() for a in first}) == 2


def test_a_sample_whose_infill_is_not_read_is_one_that_no_step_changes(store):
    dataset = InfillDataset(Pictures(), store, p=0.5, transforms=v2.RandomCrop(16))
    read = 0
    for i in range(64):
        sample = dataset[i % 8]
        assert sample["image"].shape == sample["infill"].shape == (3, 16, 16)
        if bool((sample["confidence"] == 255).all()):
            assert torch.equal(sample["image"], sample["infill"])
        else:
            read += 1
    assert 18 < read < 46
    with pytest.raises(ValueError, match=r"p must lie in 0..1, got 3"):
        InfillDataset(Pictures(), store, p=3)


def test_protected_objects_of_the_target_are_added_to_the_map(store):
    boxes = tv_tensors.BoundingBoxes([[0.0, 0.0, 6.0, 6.0]], format="XYXY", canvas_size=(24, 24))
    sample = InfillDataset([(picture(0), {"boxes": boxes})], store, protect="boxes")[0]
    assert (sample["confidence"][0, :6, :6] == 255).all()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_start_method_read_the_same(store, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    dataset = InfillDataset(Pictures(), store)
    dataset[0]  # the store is open and used in the parent
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=method, persistent_workers=True)
    for _ in range(2):
        confidence = torch.cat([batch["confidence"] for batch in loader])
        assert torch.equal(confidence, torch.stack([dataset[i]["confidence"] for i in range(8)]))


DYING_WORKER = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from torch.utils.data import DataLoader
from infill_aug.datasets import InfillDataset
from test_datasets import Pictures

class Dies(Pictures):
    def __getitem__(self, index):
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            os._exit(9)  # as when the system runs out of memory
        return super().__getitem__(index)

list(DataLoader(InfillDataset(Dies(), {store!r}), batch_size=2, num_workers=1))
"""


def test_a_worker_that_dies_is_an_error_and_leaves_the_store_whole(store):
    # In a process of its own: torch's signal handler may raise a second time, in the middle of anything.
    before = len(InfillStore(store))
    code = DYING_WORKER.format(tests=str(Path(__file__).parent), store=str(store))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    # The parent sees the death first, or the broken pipe.
    assert re.search(r"exited unexpectedly|ConnectionResetError|EOFError", done.stderr)
    assert len(InfillStore(store)) == before
    assert InfillStore(store).verify().corrupt == []


def test_a_dataset_pickles_small_and_works_again(store):
    dataset = InfillDataset(Pictures(), store, threshold=0.5)
    payload = pickle.dumps(dataset)
    assert len(payload) < 20_000
    assert torch.equal(pickle.loads(payload)[1]["confidence"], dataset[1]["confidence"])


def test_errors_name_what_is_wrong(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        InfillDataset(Pictures(), tmp_path / "nowhere")
    InfillStore(tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no build yet"):
        InfillDataset(Pictures(), tmp_path / "empty")
    with pytest.raises(ValueError, match="no recipe 'abc'"):
        InfillDataset(Pictures(), store, recipe="abc")
    with pytest.raises(ValueError, match=r"threshold must lie in 0..1, got 7"):
        InfillDataset(Pictures(), store, threshold=7)
    with pytest.raises(ValueError, match=r"on_miss must be one of .*'skip'"):
        InfillDataset(Pictures(), store, on_miss="skip")
    with pytest.raises(ValueError, match="protect must be None, 'boxes' or 'masks', got 'cats'"):
        InfillDataset(Pictures(), store, protect="cats")
    with pytest.raises(KeyError, match="no image under"):
        InfillDataset([{"picture": picture(0)}], store)[0]
