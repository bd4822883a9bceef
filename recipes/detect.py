"""A torchvision detector with infill augmentation: no pixel inside a labelled box is ever regenerated.

python recipes/detect.py --limit 600  # digits on photographs; with --p 0 without infill, to compare
python recipes/detect.py --images train2017 --annotations instances_train2017.json --size 224
"""

import argparse
from itertools import pairwise
from math import ceil

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import Conv2dNormActivation, box_iou, masks_to_boxes
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Image

import infill_aug as ia
from infill_aug.confidence.coco import CocoObjects
from infill_aug.demo.data import digits_on_photos


class Boxes(Dataset):
    """Pictures with boxes around their masks and numbers of classes, as torchvision's detectors take them."""

    def __init__(self, base, classes):
        self.base, self.classes = base, classes

    def __len__(self):
        return len(self.base)

    def __getitem__(self, index):
        image, target = self.base[index]
        boxes = masks_to_boxes(torch.as_tensor(target["mask"])) + torch.tensor([0, 0, 1, 1])  # to the far side
        names = target.get("labels", [str(target.get("label"))])
        labels = torch.tensor([1 + self.classes.index(name) for name in names], dtype=torch.int64)
        boxes = BoundingBoxes(boxes, format="XYXY", canvas_size=Image(image).shape[-2:])
        return Image(image), {"boxes": boxes, "labels": labels}


def read_data(args):
    """Training and validation pictures with boxes of their objects."""
    if args.annotations is None:
        data = digits_on_photos(args.size, limit=args.limit)
        return Boxes(data.train.labelled(), data.classes), Boxes(data.val.labelled(), data.classes)
    coco = CocoObjects(args.images, args.annotations)
    classes = sorted({part["name"] for _, parts in coco.rows for part in parts})
    parts = random_split(coco, [0.8, 0.2], generator=torch.Generator().manual_seed(0))
    return [Boxes(part, classes) for part in parts]


def make_detector(classes, size):
    """FCOS of torchvision on five convolutions; stands for whatever detector the script has."""
    widths = pairwise((3, 32, 64, 64, 128, 128))  # a stride of 2 where they grow
    backbone = nn.Sequential(*(Conv2dNormActivation(a, b, stride=1 + (a < b)) for a, b in widths))
    backbone.out_channels = 128
    return FCOS(backbone, classes, size, 4 * size, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)))


def augmented(sample, augment, device):
    """One picture with its infill, by itself since shapes differ; and a look that nothing in a box has changed."""
    batch = {key: sample[key][None].to(device) for key in ("image", "infill", "confidence")}
    before, after = augment.normalize(batch["image"])[0], augment(batch)["image"][0]
    for left, top, right, bottom in sample["target"]["boxes"].tolist():
        inside = ..., slice(ceil(top), int(bottom)), slice(ceil(left), int(right))
        assert torch.equal(before[inside], after[inside]), "a labelled pixel was regenerated"
    return after


@torch.inference_mode()
def evaluate(model, data, device):
    """Recall at an overlap of one half, of as many boxes as a picture has objects."""
    hits = []
    for image, target in data:
        found = model.eval()([image.to(device) / 255])[0]
        boxes, labels = (found[key][: len(target["labels"])].cpu() for key in ("boxes", "labels"))  # best come first
        hits += ((box_iou(boxes, target["boxes"]) >= 0.5) & (labels[:, None] == target["labels"])).any(dim=0).tolist()
    return sum(hits) / len(hits)


def main(args):
    """Build what is missing, train, and let the threshold follow the recall."""
    torch.manual_seed(0)
    train, val = read_data(args)
    print(ia.build_cache(train, args.store, source=ia.BoxConfidence("boxes"), backend="donor", protect="boxes"))
    steps = v2.Compose([v2.RandomHorizontalFlip(0.5 if args.annotations else 0.0), v2.Resize(args.size)])
    dataset = ia.InfillDataset(train, args.store, transforms=steps, protect="boxes")
    loader = DataLoader(dataset, 8, shuffle=True, collate_fn=list)  # shapes and numbers of boxes differ
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_detector(1 + len(train.classes), args.size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = ia.ThresholdState.from_threshold(0.5)
    augment = ia.InfillAugment(state, p=args.p, variation=ia.Variation())  # the detector normalises
    controller = ia.ThresholdController(state, ia.ProportionalLaw(warmup=max(1, args.epochs // 3)))
    for epoch in range(args.epochs):
        for samples in loader:
            images = [augmented(sample, augment, device) for sample in samples]
            targets = [{key: value.to(device) for key, value in sample["target"].items()} for sample in samples]
            loss = sum(model.train()(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        recall = evaluate(model, val, device)
        reason = controller.observe(recall).reason
        print(f"epoch {epoch}: loss {loss:.3f}, recall {recall:.3f}, threshold {state.threshold:.3f}. {reason}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a detector with infill augmentation, by hand.")
    parser.add_argument("--images", help="folder of pictures, with --annotations, their COCO file (default: digits)")
    parser.add_argument("--annotations", help="COCO file of instances")
    parser.add_argument("--store", default="outputs/store/detect", help="folder of the infills (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="short side of the pictures in pixels (%(default)s)")
    parser.add_argument("--limit", type=int, help="at most so many digits of each split")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training pictures (%(default)s)")
    parser.add_argument("--p", type=float, default=0.5, help="share of pictures with infill, 0..1 (%(default)s)")
    main(parser.parse_args())
