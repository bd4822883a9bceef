"""Pictures whose background gives the class away: digits on photographs, pets with trimaps, or any folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from infill_aug.confidence.sources import CentreConfidence, MaskConfidence
from infill_aug.functional.composite import composite
from infill_aug.functional.masks import feather_mask
from infill_aug.infill.donor_pool import make_plate
from infill_aug.samples import to_uint8_image
from infill_aug.types import quantise_confidence


@dataclass(frozen=True)
class Split(Dataset[tuple[Tensor, int]]):
    """Pictures of one size with labels and, where there are any, object masks.

    Args:
        images: ``(N, 3, S, S)`` ``uint8``.
        labels: ``(N,)`` int64.
        masks: ``(N, 1, S, S)`` bool, true on the object; or ``None``.
        with_masks: whether a sample is ``(image, {"label", "mask"})`` instead of ``(image, label)``.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None
    with_masks: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        label = int(self.labels[index])
        if self.with_masks and self.masks is not None:
            return self.images[index], {"label": label, "mask": self.masks[index]}
        return self.images[index], label

    def labelled(self) -> Split:
        """The same split with masks in its samples: what the cache is built from."""
        return replace(self, with_masks=True)

    def subset(self, indices: Sequence[int]) -> Split:
        """Some of the pictures."""
        index = torch.as_tensor(indices)
        masks = self.masks[index] if self.masks is not None else None
        return replace(self, images=self.images[index], labels=self.labels[index], masks=masks)


@dataclass(frozen=True)
class DemoData:
    """What the demo trains on and tests with.

    Args:
        name: what is printed.
        classes: class names.
        train: training pictures.
        val: pictures like the training's: the threshold follows the accuracy on them.
        tied: test pictures like the training's.
        swapped: the same objects on other classes' backgrounds.
        mirror: whether a mirrored picture is of the same class.
        note: a line on where the pictures come from.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    tied: Split
    swapped: Split
    mirror: bool
    note: str

    @property
    def source(self) -> MaskConfidence | CentreConfidence:
        """Where confidence comes from: the masks, or a centre prior where there are none."""
        return MaskConfidence(key="mask") if self.train.masks is not None else CentreConfidence()


def training_pictures(data: DemoData) -> Split:
    """The training pictures with what labels they have: what confidence is learned from."""
    return data.train.labelled()


def digits_on_photos(size: int = 48, seed: int = 0, limit: int | None = None, tie: float = 0.95) -> DemoData:
    """Handwritten digits of scikit-learn on crops of photographs of scikit-image and scikit-learn.

    Each digit has a photograph of its own; in training it stands on a crop of it most of the time.

    Args:
        size: side of the pictures in pixels, 32 or more.
        seed: of the drawing.
        limit: at most so many pictures of each split; by default all.
        tie: share of the training and tied test pictures that stand on their own digit's photograph, 0..1; with ten
            photographs, 0.1 ties nothing.

    Raises:
        ImportError: scikit-learn or scikit-image is missing; the message says what to install.
        ValueError: ``tie`` is out of range.
    """
    if not 0 <= tie <= 1:
        raise ValueError(f"tie must lie in 0..1, got {tie}")
    try:
        from skimage import data as photographs
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError("the demo needs scikit-learn and scikit-image: pip install 'infill-aug[demo]'") from error
    names = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
    photos = [getattr(photographs, name)() for name in names]
    photos += [photographs.stereo_motorcycle()[0], *load_sample_images().images]
    # Once to a common scale, so that a crop of any of them shows a piece of a scene and not of a texture.
    photos = [_resize_short(to_uint8_image(photo), 3 * size) for photo in photos]
    random = np.random.default_rng(seed)
    digits = load_digits()
    order = random.permutation(len(digits.images))
    glyphs, labels = digits.images[order] / 16.0, digits.target[order]
    parts = {"train": slice(0, 1100), "val": slice(1100, 1350), "test": slice(1350, None)}

    def draw(part: str, swapped: bool = False) -> Split:
        images, masks = [], []
        for glyph, label in zip(glyphs[parts[part]][:limit], labels[parts[part]][:limit], strict=True):
            others = [i for i in range(len(photos)) if i != label]
            tied = not swapped and random.random() < tie
            photo = photos[label if tied else int(random.choice(others))]
            image, mask = _draw_digit(glyph, photo, size, random)
            images.append(image)
            masks.append(mask)
        return Split(torch.stack(images), torch.as_tensor(labels[parts[part]][:limit]).long(), torch.stack(masks))

    return DemoData(
        name="digits on photographs",
        classes=tuple(str(i) for i in range(10)),
        train=draw("train"),
        val=draw("val"),
        tied=draw("test"),
        swapped=draw("test", swapped=True),
        mirror=False,
        note=f"scikit-learn digits on scikit-image and scikit-learn photographs, {size} px, {tie:.0%} tied",
    )


def _draw_digit(glyph: np.ndarray, photo: Tensor, size: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A digit with a contrasting outline at a random place on a random crop; and its mask."""
    height, width = photo.shape[-2:]
    side = int(random.integers(size, min(height, width) + 1))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    image = F.resize(photo[:, top : top + side, left : left + side], [size, size], antialias=True).float() / 255
    if random.random() < 0.5:
        image = image.flip(-1)
    extent = int(random.integers(round(0.6 * size), round(0.8 * size) + 1))
    stroke = torch.from_numpy(glyph).float()[None]
    stroke = F.resize(stroke, [extent, extent], antialias=True).clamp(0, 1)
    y, x = (int(random.integers(size - extent + 1)) for _ in range(2))
    alpha = torch.zeros(1, size, size)
    alpha[:, y : y + extent, x : x + extent] = ((stroke - 0.35) / 0.3).clamp(0, 1)
    rim = torch.nn.functional.max_pool2d(alpha[None], 3, 1, 1)[0]
    ink = torch.as_tensor(random.uniform(0.0, 1.0, 3), dtype=torch.float32)
    # Ink of any hue, light or dark, on a rim of its opposite: readable everywhere, and no clue to the class.
    ink = ink * 0.25 + 0.75
    image = torch.lerp(image, (1 - ink)[:, None, None].expand_as(image), rim)
    image = torch.lerp(image, ink[:, None, None].expand_as(image), alpha)
    return (image * 255).round().to(torch.uint8), rim > 0


def pets(root: str, size: int = 96, seed: int = 0, limit: int | None = None) -> DemoData:
    """Torchvision's Oxford-IIIT Pet with its trimaps, in the breeds that the folder holds.

    Args:
        root: folder that holds ``oxford-iiit-pet``.
        size: side of the pictures in pixels.
        seed: of the split and of the swapped backgrounds.
        limit: at most so many pictures of each of its two splits, evenly spaced; by default all.

    Raises:
        FileNotFoundError: no such dataset there.
    """
    from torchvision.datasets import OxfordIIITPet

    if not (Path(root) / "oxford-iiit-pet").is_dir():
        raise FileNotFoundError(f"no folder oxford-iiit-pet in {root!r}; pass data.root=FOLDER_THAT_HOLDS_IT")

    def read(split: str) -> tuple[Split, tuple[str, ...]]:
        kinds = ["category", "segmentation"]
        dataset = OxfordIIITPet(root, split=split, target_types=kinds, download=False)
        rows = [dataset[i] for i in _spaced(len(dataset), limit)]
        images = torch.stack([_square(to_uint8_image(image), size) for image, _ in rows])
        # The border class is the pet's fur: it is kept.
        masks = torch.stack([_square(torch.from_numpy(np.array(trimap))[None], size) != 2 for _, (_, trimap) in rows])
        return Split(images, torch.tensor([label for _, (label, _) in rows]), masks), tuple(dataset.classes)

    everything, classes = read("trainval")
    test, _ = read("test")
    train, val = _split(everything, 0.2, seed)
    return DemoData(
        name="pets",
        classes=classes,
        train=train,
        val=val,
        tied=test,
        swapped=swap_backgrounds(test, MaskConfidence(key="mask"), seed),
        mirror=True,
        note=f"Oxford-IIIT Pet, {len(classes)} breeds, {size} px; swapped: the pet on another breed's background",
    )


def image_folder(root: str, size: int = 96, seed: int = 0, limit: int | None = None) -> DemoData:
    """Any folder with a sub-folder of pictures for each class; no masks, so the centre is taken for the object.

    Args:
        root: the folder.
        size: side of the pictures in pixels.
        seed: of the split and of the swapped backgrounds.
        limit: at most so many pictures in all, evenly spaced; by default all.

    Raises:
        FileNotFoundError: no sub-folders with pictures.
        ValueError: fewer than two classes, or too few pictures.
    """
    from torchvision.datasets import ImageFolder

    if not Path(root).is_dir():
        raise FileNotFoundError(f"no folder {root!r}; pass data.root=FOLDER with one sub-folder of pictures a class")
    dataset = ImageFolder(root)
    if len(dataset.classes) < 2 or len(dataset) < 20:
        raise ValueError(
            f"{root!r} has {len(dataset.classes)} classes and {len(dataset)} pictures; the demo needs 2 and 20"
        )
    images, labels = [], []
    for path, label in (dataset.samples[i] for i in _spaced(len(dataset), limit)):
        try:
            images.append(_square(to_uint8_image(PILImage.open(path)), size))
        except OSError as error:
            raise ValueError(f"cannot read the picture {path!r}: {error}") from error
        labels.append(label)
    everything = Split(torch.stack(images), torch.tensor(labels))
    rest, test = _split(everything, 0.3, seed)
    train, val = _split(rest, 0.2, seed)
    return DemoData(
        name=Path(root).name,
        classes=tuple(dataset.classes),
        train=train,
        val=val,
        tied=test,
        swapped=swap_backgrounds(test, CentreConfidence(), seed),
        mirror=True,
        note=f"{root}, {size} px, no masks: centre prior; swapped: the centre on another class's background",
    )


def shifted_folders(root: str, size: int = 96, seed: int = 0, limit: int | None = None) -> DemoData:
    """A data set in the manner of Waterbirds: backgrounds go with the class in training and not in a second test.

    Args:
        root: folder that holds ``train_biased``, ``test_aligned`` and ``test_conflict``, each with one sub-folder of
            pictures for each class, and ``masks`` with ``NAME.png`` for each training picture, above 0 on the object.
        size: side of the pictures in pixels.
        seed: of the split into training and validation.
        limit: at most so many pictures of each folder, evenly spaced; by default all.

    Raises:
        FileNotFoundError: a folder or a mask is missing.
        ValueError: the folders have other classes.
    """
    from torchvision.datasets import ImageFolder

    folders = {name: Path(root) / name for name in ("train_biased", "test_aligned", "test_conflict")}
    missing = [str(path) for path in (*folders.values(), Path(root) / "masks") if not path.is_dir()]
    if missing:
        raise FileNotFoundError(f"no folder {missing[0]}; pass data.root=FOLDER with {[*folders, 'masks']}")
    sets = {name: ImageFolder(str(path)) for name, path in folders.items()}
    classes = sets["train_biased"].classes
    others = {name: found.classes for name, found in sets.items() if found.classes != classes}
    if others:
        raise ValueError(f"train_biased has the classes {classes}, but {others}; they must be the same")

    def read(name: str, masked: bool = False) -> Split:
        samples = [sets[name].samples[i] for i in _spaced(len(sets[name]), limit)]
        images = [_square(to_uint8_image(PILImage.open(path).convert("RGB")), size) for path, _ in samples]
        masks = None
        if masked:
            files = [Path(root) / "masks" / f"{Path(path).stem}.png" for path, _ in samples]
            arrays = [np.array(PILImage.open(file).convert("L")) for file in files]
            masks = torch.stack([_square(torch.from_numpy(array)[None], size) > 0 for array in arrays])
        return Split(torch.stack(images), torch.tensor([label for _, label in samples]), masks)

    train, val = _split(read("train_biased", masked=True), 0.2, seed)
    return DemoData(
        name=Path(root).name,
        classes=tuple(classes),
        train=train,
        val=val,
        tied=read("test_aligned"),
        swapped=read("test_conflict"),
        mirror=True,
        note=f"{root}, {len(classes)} classes, {size} px; swapped: on the backgrounds of other classes",
    )


def swap_backgrounds(split: Split, source: MaskConfidence | CentreConfidence, seed: int) -> Split:
    """Each picture's object on the background of a picture of another class.

    Args:
        split: the pictures.
        source: tells object from background, at confidence 0.5 and above.
        seed: of the choice of backgrounds.

    Raises:
        ValueError: no picture of another class has a background.
    """
    random = np.random.default_rng(seed)
    labelled = split.labelled()
    maps = torch.stack([quantise_confidence(source(*labelled[i])) for i in range(len(split))])
    plates = [make_plate(image, confidence) for image, confidence in zip(split.images, maps, strict=True)]
    solid = split.masks if split.masks is not None else maps > 127
    swapped = []
    for image, keep, label in zip(split.images, solid, split.labels, strict=True):
        others = [
            plate[0]
            for plate, its in zip(plates, split.labels, strict=True)
            if plate is not None and int(its) != int(label)
        ]
        if not others:
            raise ValueError("no picture of another class has a background to swap with")
        plate = F.resize(others[int(random.integers(len(others)))], list(image.shape[-2:]), antialias=True)
        swapped.append(composite(image[None], plate[None], feather_mask(~keep[None], 2))[0])
    return replace(split, images=torch.stack(swapped))


def _split(everything: Split, share: float, seed: int) -> tuple[Split, Split]:
    """The rest and a share of every class."""
    random = np.random.default_rng(seed)
    held: list[int] = []
    for label in everything.labels.unique():
        own = torch.nonzero(everything.labels == label).flatten().numpy()
        held += random.permutation(own)[: max(1, round(share * len(own)))].tolist()
    rest = sorted(set(range(len(everything))) - set(held))
    return everything.subset(rest), everything.subset(sorted(held))


def _spaced(count: int, limit: int | None) -> list[int]:
    """All indices, or as many as wanted, evenly spaced: pictures often lie sorted by class."""
    wanted = count if limit is None else min(limit, count)
    return [i * count // wanted for i in range(wanted)]


def _resize_short(image: Tensor, side: int) -> Tensor:
    return F.resize(image, [side], antialias=True)


def _square(image: Tensor, size: int) -> Tensor:
    """The middle square at the wanted size; labels (one channel) by nearest neighbour."""
    side = min(image.shape[-2:])
    nearest = image.shape[0] == 1
    mode = F.InterpolationMode.NEAREST if nearest else F.InterpolationMode.BILINEAR
    return F.resize(F.center_crop(image, [side, side]), [size, size], interpolation=mode, antialias=not nearest)
