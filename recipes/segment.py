"""A torchvision segmenter with infill augmentation: no labelled pixel is ever regenerated.

Without pets it finds digits on photographs; ``--p 0`` trains without infill, to compare.

    python recipes/segment.py
    python recipes/segment.py --root FOLDER --size 112      # FOLDER holds torchvision's oxford-iiit-pet
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchvision.datasets import OxfordIIITPet
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.transforms import v2
from torchvision.tv_tensors import Image, Mask

import infill_aug as ia
from infill_aug.demo.data import digits_on_photos

IGNORED = 255  # where nobody knows: neither learned nor scored, and kept like an object
TRIMAP = torch.tensor([0, 1, 0, IGNORED], dtype=torch.uint8)  # of Oxford-IIIT Pet: 1 pet, 2 background, 3 border


class Masks(Dataset):
    """Pictures with ``{"mask": Mask}`` of 0 for background, 1 for what is looked for, and ``IGNORED``."""

    def __init__(self, base, transforms=None):
        self.base, self.transforms = base, transforms

    def __len__(self):
        return len(self.base)

    def __getitem__(self, index):
        picture, target = self.base[index]
        mask = (
            target["mask"][0].byte() if isinstance(target, dict) else TRIMAP[torch.from_numpy(np.array(target)).int()]
        )
        sample = Image(picture), {"mask": Mask(mask)}
        return self.transforms(*sample) if self.transforms else sample


def read_data(args):
    """Training and validation pictures with their masks."""
    if args.root is None:
        data = digits_on_photos(args.size, limit=args.limit)
        return data.train.labelled(), data.val.labelled()
    pets = OxfordIIITPet(args.root, target_types="segmentation")
    count = min(len(pets), args.limit or len(pets))
    some = Subset(pets, [i * len(pets) // count for i in range(count)])  # sorted by breed: evenly spaced
    return random_split(some, [0.8, 0.2], generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def evaluate(model, loader, augment, device):
    """Intersection over union of all that is looked for, over the whole set at once."""
    augment.eval()  # normalises only
    both = either = 0
    for images, target in loader:
        masks = target["mask"].to(device)
        found = model.eval()(augment({"image": images.to(device)})["image"])["out"].argmax(dim=1).bool()
        both += int((found & (masks == 1)).sum())
        either += int(((found | (masks == 1)) & (masks != IGNORED)).sum())
    return both / either


def main(args):
    """Build what is missing, train, and let the threshold follow the intersection over union."""
    torch.manual_seed(args.seed)
    train, val = read_data(args)
    base = Masks(train)
    print(ia.build_cache(base, args.store, source=ia.MaskConfidence("mask"), backend="donor", protect="masks"))
    steps = v2.Compose([v2.RandomResizedCrop(args.size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()])
    dataset = ia.InfillDataset(base, args.store, transforms=steps, protect="masks")
    val_set = Masks(val, v2.Compose([v2.Resize(args.size), v2.CenterCrop(args.size)]))
    loader, val_loader = DataLoader(dataset, args.batch_size, shuffle=True), DataLoader(val_set, args.batch_size)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2).to(device)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.1  # torchvision's 0.01 takes hundreds of steps to get to a new network's statistics
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    state = ia.ThresholdState.from_threshold(args.threshold)
    statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    augment = ia.InfillAugment(state, p=args.p, variation=ia.Variation(), normalize=statistics)
    controller = ia.ThresholdController(state, ia.ProportionalLaw(warmup=max(1, args.epochs // 3)))
    for epoch in range(args.epochs):
        total = 0.0
        augment.train()
        for batch in loader:
            masks = batch.pop("target")["mask"].to(device)
            batch = {key: value.to(device) for key, value in batch.items()}
            before, images = augment.normalize(batch["image"]), augment(batch)["image"]
            same = (before == images).all(dim=1)
            assert same[masks != 0].all(), "a labelled pixel was regenerated"
            loss = nn.functional.cross_entropy(model.train()(images)["out"], masks.long(), ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        score = evaluate(model, val_loader, augment, device)
        decision = controller.observe(score)
        print(f"epoch {epoch}: loss {total:.3f}, IoU {score:.3f}, threshold {state.threshold:.3f}. {decision.reason}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a segmenter with infill augmentation, by hand.")
    parser.add_argument("--root", help="folder that holds oxford-iiit-pet (default: digits on photographs)")
    parser.add_argument("--store", default="outputs/store/segment", help="folder of the infills (%(default)s)")
    parser.add_argument("--size", type=int, default=96, help="side of the network's input in pixels (%(default)s)")
    parser.add_argument("--limit", type=int, help="at most so many pictures (of each split, for digits)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training pictures (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures a step (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, help="start, 0..1; higher masks more (%(default)s)")
    parser.add_argument("--p", type=float, default=0.5, help="share of pictures with infill, 0..1 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (%(default)s)")
    main(parser.parse_args())
