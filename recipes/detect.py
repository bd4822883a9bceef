"""A torchvision detector with infill augmentation: no pixel inside a labelled box is ever regenerated.

Without a COCO file it finds digits on photographs; ``--p 0`` trains without infill, to compare.

    python recipes/detect.py --limit 200
    python recipes/detect.py --images train2017 --annotations instances_train2017.json --size 224
"""

import argparse

import torch
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.ops import box_iou, masks_to_boxes
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
        picture, target = self.base[index]
        image, names = Image(picture), target["labels"] if "labels" in target else [str(target["label"])]
        boxes = masks_to_boxes(torch.as_tensor(target["mask"])) + torch.tensor([0, 0, 1, 1])  # to the far side
        boxes = BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:])
        labels = torch.tensor([1 + self.classes.index(name) for name in names], dtype=torch.int64)
        return image, {"boxes": boxes, "labels": labels}


def read_data(args):
    """Training and validation pictures with masks and names of their objects, and all names."""
    if args.annotations is None:
        data = digits_on_photos(args.size, limit=args.limit)
        return data.train.labelled(), data.val.labelled(), data.classes
    coco = CocoObjects(args.images, args.annotations)
    classes = sorted({part["name"] for _, parts in coco.rows for part in parts})
    some = Subset(coco, range(min(len(coco), args.limit or len(coco))))
    return *random_split(some, [0.8, 0.2], generator=torch.Generator().manual_seed(0)), classes


def augmented(sample, augment, device):
    """One picture with its infill, by itself since shapes differ; and a look that nothing in a box has changed."""
    batch = {key: sample[key][None].to(device) for key in ("image", "infill", "confidence")}
    before, after = augment.normalize(batch["image"])[0], augment(batch)["image"][0]
    y, x = (torch.arange(side, device=device) + 0.5 for side in after.shape[-2:])
    for left, top, right, bottom in sample["target"]["boxes"].tolist():
        inside = ((y > top) & (y < bottom))[:, None] & (x > left) & (x < right)
        assert torch.equal(before[:, inside], after[:, inside]), "a labelled pixel was regenerated"
    return after


@torch.inference_mode()
def evaluate(model, data, device):
    """Recall at an overlap of one half, of as many boxes as a picture has objects."""
    hits = []
    for image, target in data:
        (found,) = model.eval()([image.to(device) / 255])
        boxes, labels = (found[key][: len(target["labels"])].cpu() for key in ("boxes", "labels"))  # best come first
        right = (box_iou(boxes, target["boxes"]) >= 0.5) & (labels[:, None] == target["labels"])
        hits += right.any(dim=0).tolist()
    return sum(hits) / len(hits)


def main(args):
    """Build what is missing, train, and let the threshold follow the recall."""
    torch.manual_seed(args.seed)
    train, val, classes = read_data(args)
    train, val = Boxes(train, classes), Boxes(val, classes)
    print(ia.build_cache(train, args.store, source=ia.BoxConfidence("boxes"), backend="donor", protect="boxes"))
    steps = v2.Compose([v2.RandomHorizontalFlip(0.5 if args.annotations else 0.0), v2.Resize(args.size)])
    dataset = ia.InfillDataset(train, args.store, transforms=steps, protect="boxes")
    loader = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=list)  # shapes and numbers of boxes differ

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"num_classes": 1 + len(classes), "min_size": args.size, "max_size": 4 * args.size}
    options |= {"rpn_pre_nms_top_n_train": 300, "rpn_post_nms_top_n_train": 200, "box_batch_size_per_image": 64}  # CPU
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, **options).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    state = ia.ThresholdState.from_threshold(args.threshold)
    augment = ia.InfillAugment(state, p=args.p, variation=ia.Variation())  # the detector normalises
    controller = ia.ThresholdController(state, ia.ProportionalLaw(warmup=max(1, args.epochs // 3)))
    for epoch in range(args.epochs):
        total = 0.0
        for samples in loader:
            images = [augmented(sample, augment, device) for sample in samples]
            targets = [{key: value.to(device) for key, value in sample["target"].items()} for sample in samples]
            loss = sum(model.train()(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        recall = evaluate(model, val, device)
        moved = controller.observe(recall)
        print(f"epoch {epoch}: loss {total:.3f}, recall {recall:.3f}, threshold {moved.threshold:.3f}. {moved.reason}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a detector with infill augmentation, by hand.")
    parser.add_argument("--images", help="folder of pictures (default: digits on photographs)")
    parser.add_argument("--annotations", help="their COCO file of instances")
    parser.add_argument("--store", default="outputs/store/detect", help="folder of the infills (%(default)s)")
    parser.add_argument("--size", type=int, default=96, help="short side of the pictures in pixels (%(default)s)")
    parser.add_argument("--limit", type=int, help="at most so many pictures (of each split, for digits)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training pictures (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, help="start, 0..1; higher masks more (%(default)s)")
    parser.add_argument("--p", type=float, default=0.5, help="share of pictures with infill, 0..1 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (%(default)s)")
    main(parser.parse_args())
