import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests_support import picture
from tests_support import run_recipe as launch
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from infill_aug.batch import InfillAugment
from infill_aug.cache.build import build_cache
from infill_aug.datasets import InfillDataset

RED, BLUE = torch.tensor([255, 0, 0], dtype=torch.uint8), torch.tensor([0, 0, 255], dtype=torch.uint8)
PICTURES = ("image", "infill", "confidence")


class Scenes:
    """Red rectangles on noise that has no red in it: boxes, labels and a mask of them; pictures of several sizes."""

    # Off the centre, which is all that the source of the store below holds for important.
    boxes = (
        ((1, 2, 9, 12), (30, 28, 37, 35)),
        ((0, 0, 12, 6),),
        (),
        ((24, 4, 36, 9), (2, 30, 6, 38), (28, 30, 35, 36)),
    )

    def __init__(self, sizes=((40, 44), (40, 44), (36, 48), (48, 40))):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        height, width = self.sizes[index]
        image = picture(index, height, width)
        image[0] = 0
        mask = torch.zeros(height, width, dtype=torch.uint8)
        for left, top, right, bottom in self.boxes[index]:
            image[:, top:bottom, left:right] = RED[:, None, None]
            mask[top:bottom, left:right] = 1
        boxes = torch.tensor(self.boxes[index], dtype=torch.float32).reshape(-1, 4)
        return image, {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.arange(1, 1 + len(boxes)),
            "mask": tv_tensors.Mask(mask),
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    build_cache(
        Scenes(), folder, profile="centre_prior", backend="noise", levels=(0.5, 1.0), protect="boxes", progress=False
    )
    return folder


def inside(boxes, height, width, margin=0.0):
    """Pixels whose centres are at least ``margin`` pixels inside a box."""
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    found = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in boxes.tolist():
        found |= (x - left > margin) & (right - x > margin) & (y - top > margin) & (bottom - y > margin)
    return found


def step(sample, threshold=1.0):
    """What a step makes of one sample: ``(1, 3, H, W)`` in 0..1, and the mask of what it regenerated."""
    augment = InfillAugment(threshold, p=1.0, variation=lambda infill, mask: 1 - infill)
    batch = augment({key: sample[key][None] for key in PICTURES})
    return batch["image"][0], batch["mask"][0, 0]


def labels_of(sample):
    return sample["target"]["labels"]


SHAPES = {
    "mirrored": v2.RandomHorizontalFlip(1.0),
    "upside down": v2.RandomVerticalFlip(1.0),
    "larger": v2.Resize((97, 131)),
    "smaller": v2.Resize(19),
    "not antialiased": v2.Resize(23, antialias=False),
    "cropped": v2.Compose([v2.RandomCrop(30), v2.ClampBoundingBoxes()]),
    "padded": v2.RandomZoomOut(p=1.0, side_range=(1.5, 1.5)),
    "cropped and enlarged": v2.Compose([v2.RandomResizedCrop(48, scale=(0.4, 0.8)), v2.ClampBoundingBoxes()]),
    "as SSD does": v2.Compose(
        [
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize(40),
            v2.SanitizeBoundingBoxes(labels_getter=labels_of),
        ]
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_in_a_box_is_regenerated_wherever_transforms_move_it(store, name):
    dataset = InfillDataset(Scenes(), store, transforms=SHAPES[name], protect="boxes")
    regenerated = 0
    for seed in range(5):
        torch.manual_seed(seed)
        for sample in (dataset[i] for i in range(4)):
            result, mask = step(sample)
            kept = inside(sample["target"]["boxes"], *mask.shape)
            assert torch.equal(result[:, kept], sample["image"][:, kept].float() / 255)
            regenerated += int(mask.sum())
    assert regenerated > 0


@pytest.mark.parametrize("name", SHAPES)
def test_boxes_and_masks_stay_on_their_objects(store, name):
    dataset = InfillDataset(Scenes(), store, transforms=SHAPES[name], protect="boxes")
    seen = 0
    for seed in range(5):
        torch.manual_seed(seed)
        for sample in (dataset[i] for i in range(4)):
            image, target = step(sample)[0], sample["target"]
            assert target["boxes"].canvas_size == tuple(image.shape[-2:])
            assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all() or "crop" in name
            # Interpolation mixes the colours of a rim, as wide as a pixel of the picture that was resized.
            rim = 2.0 if "larger" in name or "enlarged" in name or "SSD" in name else 1.0
            wholly = inside(target["boxes"], *image.shape[-2:], margin=rim)
            assert torch.allclose(image[:, wholly], RED[:, None] / 255, atol=0.02)
            seen += int(wholly.sum())
            outside = ~inside(target["boxes"], *image.shape[-2:], margin=-rim)
            mask = target["mask"].bool()
            assert len(labels_of(sample)) == len(target["boxes"])
            if "SSD" not in name:  # which drops the boxes of objects that it cuts, not their pixels
                assert not mask[outside].any()
                assert mask[wholly].all()
    assert seen > 40


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(6, 90), width=st.integers(6, 90), flip=st.booleans(), threshold=st.floats(0, 1),
    index=st.integers(0, 3), protect=st.sampled_from(["boxes", "masks"]),
)  # fmt: skip
def test_labelled_pixels_are_kept_at_any_size_and_threshold(store, height, width, flip, threshold, index, protect):
    steps = v2.Compose([v2.RandomHorizontalFlip(float(flip)), v2.Resize((height, width))])
    sample = InfillDataset(Scenes(), store, transforms=steps, protect=protect)[index]
    result, _ = step(sample, threshold)
    target = sample["target"]
    labelled = inside(target["boxes"], height, width) if protect == "boxes" else target["mask"].bool()
    assert torch.equal(result[:, labelled], sample["image"][:, labelled].float() / 255)


def test_a_store_that_protects_nothing_is_made_safe_by_the_dataset(tmp_path):
    scenes = Scenes()
    build_cache(scenes, tmp_path, profile="centre_prior", backend="noise", progress=False)
    unsafe = InfillDataset(scenes, tmp_path)[0]
    kept = inside(unsafe["target"]["boxes"], 40, 44)
    assert not torch.equal(step(unsafe)[0][:, kept], unsafe["image"][:, kept].float() / 255)
    for protect in ("boxes", "masks"):
        safe = InfillDataset(scenes, tmp_path, protect=protect)[0]
        assert torch.equal(step(safe)[0][:, kept], safe["image"][:, kept].float() / 255)


def test_a_picture_without_objects_keeps_its_empty_target(store):
    sample = InfillDataset(Scenes(), store, transforms=v2.Resize(20), protect="boxes")[2]
    assert sample["target"]["boxes"].shape == (0, 4)
    assert not sample["target"]["mask"].any()


def test_pictures_of_several_sizes_come_as_lists_and_masks_of_one_size_as_a_batch(store):
    lists = DataLoader(InfillDataset(Scenes(), store, protect="boxes"), batch_size=4, collate_fn=list)
    (samples,) = lists
    assert [len(sample["target"]["boxes"]) for sample in samples] == [2, 1, 0, 3]
    assert all(isinstance(sample["target"]["boxes"], tv_tensors.BoundingBoxes) for sample in samples)

    def masks_only(sample):
        return {**v2.Resize((32, 32))(sample), "target": v2.Resize((32, 32))(sample["target"]["mask"])}

    dataset = InfillDataset(Scenes(), store, transforms=masks_only, protect="masks")
    batch = InfillAugment(1.0, p=1.0)(default_collate([dataset[i] for i in range(4)]))
    labelled = batch["target"] != 0
    before = torch.stack([dataset[i]["image"] for i in range(4)]).float() / 255
    assert torch.equal(batch["image"].movedim(1, -1)[labelled], before.movedim(1, -1)[labelled])
    assert batch["mask"].any()
    assert not (batch["mask"][:, 0] & labelled).any()


# --- the recipes ---


def epochs(output, score):
    """Loss, score and threshold of every epoch, and the reason."""
    rows = re.findall(
        rf"^epoch \d+: loss ([\d.]+), {score} ([\d.]+), threshold ([\d.]+)\. (.+\.)$", output, re.MULTILINE
    )
    return [(float(loss), float(value), float(threshold), reason) for loss, value, threshold, reason in rows]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Ten pictures of three sizes, with one to three bright rectangles of two categories, and COCO's file of them."""
    root, random = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    images, annotations = [], []
    for i in range(10):
        height, width = ((48, 64), (64, 48), (56, 56))[i % 3]
        pixels = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for j in range(1 + i % 3):
            left, top = int(random.integers(0, 10)) + 14 * j, int(random.integers(0, 20))
            right, bottom = left + 12, top + 18
            pixels[top : bottom + 1, left : right + 1, j % 2] = 250
            polygon = [left, top, right, top, right, bottom, left, bottom]
            part = {"image_id": i, "category_id": 1 + j % 2, "segmentation": [polygon], "area": 240.0, "iscrowd": 0}
            annotations.append(part)
        Image.fromarray(pixels).save(root / f"{i}.png")
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    file = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(file), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Torchvision's layout of Oxford-IIIT Pet, of pictures of two sizes."""
    root, random = tmp_path_factory.mktemp("pets"), np.random.default_rng(0)
    folder = root / "oxford-iiit-pet"
    for name in ("images", "annotations/trimaps"):
        (folder / name).mkdir(parents=True)
    lines = []
    for i in range(20):
        height, width = ((40, 52), (44, 36))[i % 2]
        trimap = np.full((height, width), 2, dtype=np.uint8)
        trimap[8:32, 6:30], trimap[10:30, 8:28] = 3, 1
        pixels = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
        pixels[trimap == 1] += 150
        name = f"{'ab'[i % 2]}_{i}"
        Image.fromarray(pixels).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(trimap).save(folder / "annotations" / "trimaps" / f"{name}.png")
        lines.append(f"{name} {i % 2 + 1} 1 1\n")
    (folder / "annotations" / "trainval.txt").write_text("".join(lines), encoding="utf-8")
    return root


def test_a_detector_trains_on_a_coco_file_with_pictures_of_several_sizes(coco, tmp_path):
    arguments = ("--images", str(coco), "--annotations", str(coco / "instances.json"), "--size", "48")
    output = launch("detect.py", *arguments, "--epochs", "2", "--store", "store", folder=tmp_path)
    assert "8 images" in output
    rows = epochs(output, "recall")
    assert len(rows) == 2
    assert rows[-1][0] < rows[0][0]
    assert rows[0][2] == 0.5  # warm-up
    assert "Warm-up" in rows[0][3]
    assert (tmp_path / "store" / "STORE.json").is_file()


def test_a_segmenter_trains_on_pets(pets, tmp_path):
    arguments = ("--root", str(pets), "--size", "32", "--batch-size", "4", "--epochs", "4", "--store", "store")
    output = launch("segment.py", *arguments, folder=tmp_path)
    assert "16 images" in output
    rows = epochs(output, "IoU")
    assert len(rows) == 4
    assert rows[-1][0] < rows[0][0]
    assert rows[0][2] == 0.5  # warm-up
    assert rows[-1][2] != 0.5 or "Nothing is learned yet" in rows[-1][3]  # four epochs are few


@pytest.mark.parametrize("recipe", ["detect.py", "segment.py"])
def test_digits_on_photographs_are_the_default_and_a_mask_that_covers_a_label_is_seen(recipe, tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    careless = "import infill_aug as ia; ia.InfillAugment.make_mask = lambda self, confidence, *_: confidence >= 0"
    output = launch(recipe, "--limit", "8", "--size", "48", folder=tmp_path, code=1, prelude=careless)
    assert "8 images" in output
    assert "a labelled pixel was regenerated" in output
