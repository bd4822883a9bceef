"""A loop in timm's style: its model, loaders, optimiser and schedule, with infills in the first transform.

    python recipes/timm_style.py                                        # digits on photographs
    python recipes/timm_style.py --folder FOLDER --model vit_tiny_patch16_224 --size 224 --workers 4

Needs `pip install timm`. What is added to a script of timm's is marked (1) to (3).
"""

import argparse

import torch
from timm import create_model
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import Compose
from torchvision.transforms.v2.functional import to_pil_image

import infill_aug as ia
from infill_aug.demo.data import digits_on_photos, image_folder


class Pictures(Dataset):
    """PIL pictures under the transform that timm's loader sets."""

    def __init__(self, split):
        self.split, self.transform = split, None

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        image, label = self.split[index]
        image = to_pil_image(image)
        return image if self.transform is None else self.transform(image), label


def evaluate(model, loader):
    """Accuracy in percent."""
    top = AverageMeter()
    model.eval()
    with torch.inference_mode():
        for images, labels in loader:
            top.update(accuracy(model(images), labels)[0].item(), len(labels))
    return top.avg


def main(args):
    """Build what is missing, train, and let the threshold follow the validation accuracy."""
    torch.manual_seed(args.seed)
    data = image_folder(args.folder, args.size) if args.folder else digits_on_photos(args.size, limit=args.limit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(args.model, num_classes=len(data.classes), pretrained=False).to(device)

    # (1) Infills of the training pictures, made once; the masks of digits say what matters, else the centre.
    report = ia.build_cache(data.train.labelled(), args.store, source=data.source, backend="donor")
    print(report)

    sizes = {
        "input_size": (3, args.size, args.size),
        "batch_size": min(args.batch_size, len(data.train)),
        "num_workers": args.workers,
    }
    common = {**sizes, "mean": (0.5,) * 3, "std": (0.25,) * 3, "device": device, "persistent_workers": args.workers > 0}
    train, val = Pictures(data.train), Pictures(data.val)
    # Digits are no digits when they are mirrored or cut.
    moves = {"scale": (0.8, 1.0), "ratio": (1.0, 1.0), "hflip": 0.5 if data.mirror else 0.0, "color_jitter": 0.0}
    train_loader = create_loader(train, **common, is_training=True, **moves)
    val_loader = create_loader(val, **common, is_training=False, crop_pct=1.0)

    # (2) First, before anything moves pixels: pictures are found by their pixels. All else stays as timm made it.
    state = ia.ThresholdState.from_threshold(args.threshold)
    infill = ia.InfillTransform(args.store, threshold=state, variation=ia.Variation(), recipe=report.recipe)
    train.transform = Compose([infill, train.transform])
    controller = ia.ThresholdController(state, ia.ProportionalLaw(args.target, samples=len(val)))

    optimizer = create_optimizer_v2(model, opt="adamw", lr=args.lr, weight_decay=0.01)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=args.epochs, warmup_epochs=1)
    for epoch in range(epochs):
        model.train()
        losses = AverageMeter()
        for images, labels in train_loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(labels))
        scheduler.step(epoch + 1)
        top1 = evaluate(model, val_loader)
        # (3) After each validation; controller.state_dict() belongs into the checkpoint.
        reason = controller.observe(top1).reason
        print(f"epoch {epoch}: loss {losses.avg:.3f}, top1 {top1:.1f}, threshold {state.threshold:.3f}. {reason}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a model of timm with infill augmentation.")
    parser.add_argument("--folder", help="one sub-folder of pictures for each class (default: digits on photographs)")
    parser.add_argument("--store", default="outputs/store/timm_style", help="folder of the infills (%(default)s)")
    parser.add_argument("--model", default="resnet10t", help="a name of timm's (%(default)s)")
    parser.add_argument("--size", type=int, default=48, help="side of the network's input in pixels (%(default)s)")
    parser.add_argument("--limit", type=int, help="at most so many digits of each split")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training pictures (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures a step (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load pictures (%(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak of the learning rate (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.8, help="start, 0..1; higher masks more (%(default)s)")
    parser.add_argument("--target", type=float, default=0.9, help="share of the best accuracy to hold (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (%(default)s)")
    main(parser.parse_args())
