"""The training loop by hand, without Lightning and Hydra: what to add to a script that you have.

    python recipes/plain_torch.py                               # digits on photographs
    python recipes/plain_torch.py --folder FOLDER --workers 4   # one sub-folder of pictures for each class

Three things are added to an ordinary script, marked (1), (2) and (3).
"""

import argparse
from itertools import pairwise

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from infill_aug import InfillTransform, ProportionalLaw, ThresholdController, ThresholdState, Variation, build_cache
from infill_aug.demo.data import digits_on_photos


class Transformed(Dataset):
    """Training and validation pictures under different transforms."""

    def __init__(self, base, transform):
        self.base, self.transform = base, transform

    def __len__(self):
        return len(self.base)

    def __getitem__(self, index):
        image, label = self.base[index]
        return self.transform(image), label


def read_data(args):
    """Training and validation pictures, what infills are built from, how, and the number of classes."""
    if args.folder is None:
        data = digits_on_photos(args.size, limit=args.limit)
        # The masks say what matters; they are needed for building only.
        return data.train, data.val, {"dataset": data.train.labelled(), "source": data.source}, len(data.classes)
    folder = ImageFolder(args.folder)
    count = min(len(folder), args.limit or len(folder))
    some = Subset(folder, [i * len(folder) // count for i in range(count)])  # sorted by class: evenly spaced
    train, val = random_split(some, [0.8, 0.2], generator=torch.Generator().manual_seed(0))
    return train, val, {"dataset": train, "profile": "centre_prior"}, len(folder.classes)


def make_network(classes):
    """Four convolutions; stands for whatever network the script has."""
    layers = []
    for before, after in pairwise((3, 32, 64, 128, 128)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def evaluate(model, loader, device):
    """Share of validation pictures that are classified correctly."""
    model.eval()
    with torch.inference_mode():
        hits = [model(images.to(device)).argmax(dim=1).cpu() == labels for images, labels in loader]
    return torch.cat(hits).float().mean().item()


def main(args):
    """Build what is missing, train, and let the threshold follow the validation accuracy."""
    torch.manual_seed(args.seed)
    train, val, build, classes = read_data(args)

    # (1) Infills of the training pictures, made once; the next run finds them and goes straight on.
    report = build_cache(store=args.store, backend="donor", **build)
    print(report)
    if report.failed:
        raise SystemExit(f"{len(report.failed)} infills failed, the first: {report.failed[0]}")

    # (2) First in the Compose, before anything moves pixels: the picture is found by its pixels. Everything after it is
    # what the script had before. The state is shared memory, so that workers see it change.
    state = ThresholdState.from_threshold(args.threshold)
    infill = InfillTransform(args.store, threshold=state, variation=Variation(), recipe=report.recipe)
    resize = [v2.Resize(args.size), v2.CenterCrop(args.size)]
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.25,) * 3)]
    train_transform = v2.Compose([infill, *resize, v2.RandomCrop(args.size, padding=args.size // 12), *last])
    train_set, val_set = Transformed(train, train_transform), Transformed(val, v2.Compose([*resize, *last]))
    train_loader = DataLoader(train_set, args.batch_size, shuffle=True, num_workers=args.workers)
    val_loader = DataLoader(val_set, args.batch_size, num_workers=args.workers)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_network(classes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    rule = ProportionalLaw(args.target, samples=len(val), warmup=min(3, args.epochs // 2))
    controller = ThresholdController(state, rule)
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train_loader:
            loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy = evaluate(model, val_loader, device)

        # (3) After each validation the law says how strongly to mask from now on. Keep controller.state_dict() in your
        # checkpoints.
        decision = controller.observe(accuracy)
        print(f"epoch {epoch}: accuracy {accuracy:.3f}, threshold {decision.threshold:.3f}. {decision.reason}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a classifier with infill augmentation, by hand.")
    parser.add_argument("--folder", help="one sub-folder of pictures for each class (default: digits on photographs)")
    parser.add_argument("--store", default="outputs/store/plain_torch", help="folder of the infills (%(default)s)")
    parser.add_argument("--size", type=int, default=48, help="side of the network's input in pixels (%(default)s)")
    parser.add_argument("--limit", type=int, help="at most so many pictures (of each split, for digits)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training pictures (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures a step (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load pictures (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, help="start, 0..1; higher masks more (%(default)s)")
    parser.add_argument("--target", type=float, default=0.95, help="share of the best accuracy to hold (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (%(default)s)")
    main(parser.parse_args())
