import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import picture
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from infill_aug.cache.build import build_cache
from infill_aug.cache.reader import InfillMissError
from infill_aug.threshold import ThresholdState
from infill_aug.transforms import InfillTransform
from infill_aug.variation import Variation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder and a store of its infills."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        (root / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(picture(i, 32, 32).permute(1, 2, 0).numpy()).save(root / f"class{i % 2}" / f"{i}.png")
    store = tmp_path_factory.mktemp("store")
    build_cache(datasets.ImageFolder(root), store, profile="centre_prior", backend="noise", progress=False)
    return root, store


def reference_transform(store, **options):
    """A torchvision reference-style transform with one line more."""
    return v2.Compose(
        [
            InfillTransform(store, **options),
            v2.RandomResizedCrop(16, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )


def train_one_epoch(model, loader):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = 0
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(labels)
    assert torch.isfinite(loss)
    return seen


@pytest.mark.parametrize(
    ("workers", "method", "persistent"),
    [(0, None, False), (2, "fork", True), (2, "spawn", False), (2, "spawn", True)],
)
def test_an_unchanged_reference_training_loop_works(folder, workers, method, persistent):
    root, store = folder
    if method and method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    dataset = datasets.ImageFolder(root, transform=reference_transform(store, variation=Variation()))
    loader = DataLoader(
        dataset, batch_size=4, num_workers=workers, multiprocessing_context=method, persistent_workers=persistent
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.LazyLinear(2))
    assert [train_one_epoch(model, loader) for _ in range(2)] == [12, 12]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_persistent_workers_follow_the_threshold(folder, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    root, store = folder
    state = ThresholdState(0.0)
    transform = v2.Compose([InfillTransform(store, threshold=state, p=1.0, feather=0), v2.PILToTensor()])
    dataset = datasets.ImageFolder(root, transform=transform)
    original = torch.stack([v2.functional.pil_to_tensor(datasets.ImageFolder(root)[i][0]) for i in range(12)])
    loader = DataLoader(
        dataset, batch_size=6, num_workers=1, multiprocessing_context=method, persistent_workers=True, prefetch_factor=1
    )
    assert torch.equal(torch.cat([images for images, _ in loader]), original)
    state.set(0.3)
    changed = torch.cat([images for images, _ in loader]) != original
    assert 0.4 < changed.any(dim=1).float().mean() < 0.75


def test_kept_pixels_stay_and_types_come_back(folder):
    _, store = folder
    transform = InfillTransform(store, threshold=0.5, p=1.0, feather=0)
    image = picture(3, 32, 32)
    forms = {
        "tensor": (image, lambda out: out),
        "image": (tv_tensors.Image(image), lambda out: out.as_subclass(torch.Tensor)),
        "pil": (Image.fromarray(image.permute(1, 2, 0).numpy()), v2.functional.pil_to_tensor),
        "float": (image.float() / 255, lambda out: (out * 255).round().to(torch.uint8)),
    }
    results = {}
    for name, (form, back) in forms.items():
        out = transform(form)
        assert type(out) is type(form) or isinstance(out, Image.Image)
        results[name] = back(out)
        kept = (results[name] == image).all(dim=0).float().mean()
        assert 0.45 < kept < 0.6
    assert all(torch.equal(results["tensor"], other) for other in results.values())


def test_other_parts_of_the_sample_pass_through(folder):
    _, store = folder
    mask = tv_tensors.Mask(torch.ones(1, 32, 32, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes([[4.0, 4.0, 9.0, 9.0]], format="XYXY", canvas_size=(32, 32))
    image = tv_tensors.Image(picture(2, 32, 32))
    out, target = InfillTransform(store, threshold=0.9, p=1.0)(image, {"mask": mask, "boxes": boxes, "label": 3})
    assert torch.equal(target["mask"], mask)
    assert torch.equal(target["boxes"], boxes)
    assert target["label"] == 3
    assert not torch.equal(out, image)


def test_protected_boxes_are_never_changed(folder):
    _, store = folder
    boxes = tv_tensors.BoundingBoxes([[0.0, 20.0, 12.0, 32.0]], format="XYXY", canvas_size=(32, 32))
    image = tv_tensors.Image(picture(2, 32, 32))
    out, _ = InfillTransform(store, threshold=1.0, p=1.0, protect="boxes")(image, {"boxes": boxes})
    assert torch.equal(out[:, 20:32, 0:12], image[:, 20:32, 0:12])
    assert not torch.equal(out[:, :12, :12], image[:, :12, :12])


def test_p_is_the_share_of_changed_images(folder):
    _, store = folder
    transform = InfillTransform(store, threshold=0.8, p=0.3)
    image = picture(1, 32, 32)
    changed = sum(not torch.equal(transform(image), image) for _ in range(300))
    assert 60 < changed < 120
    assert torch.equal(InfillTransform(store, p=0.0)(image), image)


def test_it_pickles_and_says_what_it_is(folder):
    _, store = folder
    transform = InfillTransform(store, threshold=0.5, p=1.0)
    torch.manual_seed(0)
    first = transform(picture(0, 32, 32))
    torch.manual_seed(0)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(picture(0, 32, 32)), first)
    assert "threshold=0.5" in repr(transform)


def test_errors_name_what_is_wrong(folder):
    _, store = folder
    with pytest.raises(InfillMissError, match="before every other transform"):
        v2.Compose([v2.Resize(20), InfillTransform(store, p=1.0)])(picture(0, 32, 32))
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="exactly one image in a sample, got 2"):
        InfillTransform(store)(image, image)
    with pytest.raises(ValueError, match=r"p must lie in 0..1, got 2"):
        InfillTransform(store, p=2)
    with pytest.raises(ValueError, match="feather must be 0 pixels or more, got -1"):
        InfillTransform(store, feather=-1)
