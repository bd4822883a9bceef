import csv
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("hydra")
pytest.importorskip("lightning")

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))
CLI, HYDRA, TORCHVISION, TIMM, TRAINER = (name for name in SECTIONS if not name.startswith("First"))

# Loops of torchvision's and timm's shape, with the lines that the page's diffs hold on to; all else is ours, and short.
TORCHVISION_LOOP = """
    import argparse
    import os

    import torch
    import torchvision
    import torchvision.transforms
    from torch import nn
    from torchvision.transforms.functional import InterpolationMode


    def train_one_epoch(model, criterion, optimizer, data_loader):
        model.train()
        for image, target in data_loader:
            optimizer.zero_grad()
            criterion(model(image), target).backward()
            optimizer.step()


    def evaluate(model, criterion, data_loader, device):
        model.eval()
        with torch.inference_mode():
            hits = [model(image).argmax(dim=1) == target for image, target in data_loader]
        return 100 * torch.cat(hits).float().mean().item()


    def load_data(traindir, valdir, args):
        last = [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize([0.5] * 3, [0.25] * 3)]
        crop = torchvision.transforms.RandomResizedCrop(24, interpolation=InterpolationMode.BICUBIC)
        train = torchvision.transforms.Compose([crop, *last])
        val = torchvision.transforms.Compose([torchvision.transforms.CenterCrop(24), *last])
        dataset = torchvision.datasets.ImageFolder(traindir, train)
        dataset_test = torchvision.datasets.ImageFolder(valdir, val)
        return dataset, dataset_test, torch.utils.data.RandomSampler(dataset), None


    def main(args):
        device = torch.device("cpu")
        train_dir = os.path.join(args.data_path, "train")
        val_dir = os.path.join(args.data_path, "val")
        dataset, dataset_test, train_sampler, test_sampler = load_data(train_dir, val_dir, args)
        data_loader = torch.utils.data.DataLoader(dataset, 8, sampler=train_sampler, num_workers=args.workers)
        data_loader_test = torch.utils.data.DataLoader(dataset_test, 8)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 2))
        criterion = nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        if args.resume:
            checkpoint = torch.load(args.resume)
            model.load_state_dict(checkpoint["model"])
            args.start_epoch = checkpoint["epoch"] + 1
        for epoch in range(args.start_epoch, args.epochs):
            train_one_epoch(model, criterion, optimizer, data_loader)
            lr_scheduler.step()
            evaluate(model, criterion, data_loader_test, device=device)
            if args.output_dir:
                checkpoint = {
                    "model": model.state_dict(),
                    "lr_scheduler": lr_scheduler.state_dict(),
                    "epoch": epoch,
                }
                torch.save(checkpoint, os.path.join(args.output_dir, "checkpoint.pth"))


    if __name__ == "__main__":
        parser = argparse.ArgumentParser()
        parser.add_argument("--data-path")
        parser.add_argument("--epochs", type=int)
        parser.add_argument("--workers", type=int, default=0)
        parser.add_argument("--start-epoch", type=int, default=0)
        parser.add_argument("--resume", default="")
        parser.add_argument("--output-dir", default=".")
        main(parser.parse_args())
"""
TIMM_LOOP = """
    import argparse
    import logging
    import os

    import torch
    from timm import utils
    from timm.data import create_dataset, create_loader
    from timm.models import create_model
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    _logger = logging.getLogger('train')


    def train_one_epoch(model, loader, optimizer, loss_fn):
        model.train()
        losses = utils.AverageMeter()
        for input, target in loader:
            loss = loss_fn(model(input), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(input))
        return {'loss': losses.avg}


    def validate(model, loader):
        model.eval()
        top1 = utils.AverageMeter()
        with torch.inference_mode():
            for input, target in loader:
                top1.update(utils.accuracy(model(input), target)[0].item(), len(input))
        return {'top1': top1.avg}


    def main():
        logging.basicConfig(level=logging.INFO)
        parser = argparse.ArgumentParser()
        parser.add_argument('--data-dir')
        parser.add_argument('--output', default='')
        parser.add_argument('--epochs', type=int)
        parser.add_argument('--resume', default='')
        args = parser.parse_args()
        device = torch.device('cpu')
        model = create_model('test_vit', num_classes=2, img_size=32)
        optimizer = create_optimizer_v2(model, 'adamw', lr=1e-3)
        lr_scheduler, num_epochs = create_scheduler_v2(optimizer, 'cosine', num_epochs=args.epochs)
        dataset_train = create_dataset('', root=args.data_dir, split='train', is_training=True)
        dataset_eval = create_dataset('', root=args.data_dir, split='val', is_training=False)
        common = {'input_size': (3, 32, 32), 'batch_size': 8, 'num_workers': 1, 'device': device}
        loader_train = create_loader(dataset_train, is_training=True, re_prob=0.25, **common)
        loader_eval = create_loader(dataset_eval, **common)
        # setup loss function
        loss_fn = torch.nn.CrossEntropyLoss()
        output_dir = utils.get_outdir(args.output)
        start_epoch = 0
        try:
            for epoch in range(start_epoch, args.epochs):
                train_metrics = train_one_epoch(model, loader_train, optimizer, loss_fn)
                eval_metrics = validate(model, loader_eval)
                if output_dir is not None:
                    summary = os.path.join(output_dir, 'summary.csv')
                    utils.update_summary(epoch, train_metrics, eval_metrics, summary, write_header=epoch == 0)
                lr_scheduler.step(epoch + 1)
        except KeyboardInterrupt:
            pass


    if __name__ == '__main__':
        main()
"""


def blocks(section, language):
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], flags=re.DOTALL)


def write_files(section, folder):
    """Every block that begins with the name of its file, into the folder."""
    for text in blocks(section, "python") + blocks(section, "yaml"):
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def apply_diff(diff, folder):
    """Change files by a diff without line numbers, as its reader would: each part has to fit in exactly one place."""
    for name, body in re.findall(r"^--- (\S+)\n\+\+\+ \S+\n(.*?)(?=^--- |\Z)", diff, flags=re.MULTILINE | re.DOTALL):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        for part in body.split("@@\n")[1:]:
            changes = part.splitlines()
            old = [line[1:] for line in changes if line[:1] != "+"]
            new = [line[1:] for line in changes if line[:1] != "-"]
            places = [i for i in range(len(lines)) if lines[i : i + len(old)] == old]
            assert len(places) == 1, f"{name} has {len(places)} places for:\n{part}"
            lines[places[0] : places[0] + len(old)] = new
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Environment of a process that finds the wheel, before the checkout that is installed for development."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "--wheel-dir", str(folder)], check=True, timeout=240)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=240)
    search = os.pathsep.join([str(site / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    # One thread each: the pictures are tiny, and threads that wait for each other cost more than they compute.
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
        "PATH": search, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


@pytest.fixture(scope="session")
def data(environment, tmp_path_factory):
    """Folder with ``pictures`` of two classes and their ``store``, built by the page's own command."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 12), ("val", 4)):
        for label, colour in enumerate(((220, 40, 40), (40, 40, 220))):
            for i in range(count):
                pixels = np.random.default_rng([label, i, count]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
                pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)
                pixels[10:22, 10:22] = colour
                path = folder / "pictures" / split / f"class{label}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (section,) = (name for name in SECTIONS if name.startswith("First"))
    (command,) = blocks(section, "bash")
    assert re.search(r"24 images: \d+ infills generated", run(command, folder, environment))
    return folder


@pytest.fixture
def folder(data, tmp_path):
    for name in ("pictures", "store"):
        (tmp_path / name).symlink_to(data / name)
    return tmp_path


def run(command, folder, environment, code=0):
    shell = ["bash", "-e", "-c", command]
    done = subprocess.run(
        shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )  # fmt: skip
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def column(path, name):
    with open(path, encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_what_runs_here_is_the_wheel_and_not_the_checkout(environment, tmp_path):
    command = 'python -c "import infill_aug; print(infill_aug.__file__)" && which infill-aug'
    module, script = run(command, tmp_path, environment).split()
    site = Path(environment["PYTHONPATH"])
    assert Path(module) == site / "infill_aug" / "__init__.py"
    assert Path(script) == site / "bin" / "infill-aug"


@pytest.mark.parametrize("section", [CLI, HYDRA, TORCHVISION, TIMM, TRAINER])
def test_an_integration_is_less_than_40_lines_of_change(section):
    diffs = blocks(section, "diff")[:1] if section == TRAINER else blocks(section, "diff")
    added = [line for diff in diffs for line in diff.splitlines() if re.match(r"\+(?!\+\+ )", line)]
    config = [line for text in blocks(section, "yaml") if section == CLI for line in text.splitlines()]
    assert 5 < len(added + config) < 40


@pytest.mark.slow
def test_a_lightning_cli_app_trains_with_a_threshold_that_moves(folder, environment):
    write_files(CLI, folder)
    apply_diff(*blocks(CLI, "diff"), folder)
    run(*blocks(CLI, "bash"), folder, environment)
    (log,) = folder.glob("logs/*/*/metrics.csv")
    thresholds = column(log, "infill/threshold")
    assert thresholds[0] == pytest.approx(0.3)
    assert len(set(thresholds)) > 1
    assert len(list(folder.rglob("epoch_*.png"))) == 4


@pytest.mark.slow
def test_a_hydra_app_of_another_layout_sweeps_over_laws(folder, environment):
    write_files(CLI, folder)
    apply_diff(*blocks(CLI, "diff"), folder)
    write_files(HYDRA, folder)
    apply_diff(*blocks(HYDRA, "diff"), folder)
    run(*blocks(HYDRA, "bash"), folder, environment)
    configs = [path.read_text() for path in sorted(folder.glob("multirun/*/*/*/.hydra/config.yaml"))]
    assert [re.search(r"_target_: infill_aug\.(\w+Law)", text)[1] for text in configs] == ["ProportionalLaw", "SignLaw"]
    assert all("target: 0.8" in text for text in configs)
    saved = [torch.load(path, weights_only=False) for path in sorted(folder.glob("multirun/**/*.ckpt"))]
    kept = [state for checkpoint in saved for state in checkpoint["callbacks"].values()]
    assert [len(state["history"]) for state in kept if "history" in state] == [2, 2]
    wrong = "python run.py callbacks.adaptive.rule.taget=0.8"
    assert "taget" in run(wrong, folder, environment, code=1)


def loop(text, section, folder, data):
    """A loop that the page's diff was applied to, and ``DATA`` as it wants it."""
    (folder / "train.py").write_text(textwrap.dedent(text), encoding="utf-8")
    apply_diff(*blocks(section, "diff"), folder)
    (folder / "DATA").mkdir()
    for name in ("train", "val"):
        (folder / "DATA" / name).symlink_to(data / "pictures" / name)
    (folder / "DATA" / "store").symlink_to(data / "store")


@pytest.mark.slow
def test_a_loop_of_torchvisions_shape_trains_and_goes_on_from_its_checkpoint(tmp_path, data, environment):
    loop(TORCHVISION_LOOP, TORCHVISION, tmp_path, data)
    command = "python train.py --data-path DATA --workers 1"
    output = run(f"{command} --epochs 2", tmp_path, environment)
    assert "Warm-up interval 2 of 3" in output
    assert torch.load(tmp_path / "checkpoint.pth")["threshold"]["rule"]["intervals"] == 2
    output = run(f"{command} --epochs 4 --resume checkpoint.pth", tmp_path, environment)
    assert "Warm-up interval 3 of 3" in output
    assert "Retention" in output


@pytest.mark.slow
def test_a_loop_of_timms_shape_trains_and_goes_on_from_its_checkpoint(tmp_path, data, environment):
    pytest.importorskip("timm")
    loop(TIMM_LOOP, TIMM, tmp_path, data)
    command = "python train.py --data-dir DATA --output outputs"
    output = run(f"{command} --epochs 2", tmp_path, environment)
    assert "Warm-up interval 2 of 3" in output
    assert column(tmp_path / "outputs" / "summary.csv", "train_threshold") == pytest.approx([0.3, 0.3])
    output = run(f"{command} --epochs 1 --resume outputs/last.pth.tar", tmp_path, environment)
    assert "Warm-up interval 3 of 3" in output


@pytest.mark.slow
def test_a_trainer_of_hugging_face_trains_with_a_threshold_that_moves(folder, environment):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    write_files(TRAINER, folder)
    at_first, on_device = blocks(TRAINER, "diff")
    apply_diff(at_first, folder)
    output = run("python finetune.py", folder, environment)
    reached = [float(value) for value in re.findall(r"'infill_threshold': '([\d.]+)'", output)]
    assert len(reached) == 3
    assert reached[0] != pytest.approx(0.3)
    states = sorted(folder.glob("outputs/checkpoint-*/trainer_state.json"))
    assert len(states) == 3
    assert all('"infill_threshold"' in path.read_text(encoding="utf-8") for path in states)
    apply_diff(on_device, folder)
    *_, probe = blocks(TRAINER, "python")
    script = (folder / "finetune.py").read_text(encoding="utf-8")
    before, after = script.split("ThresholdCallback(Thresh")
    setup = 'held_out = ImageFolder("pictures/train")\ncontroller = ThresholdController(state)\n'
    last = "callback.attach(trainer)\n" + after.split("\n", 1)[1]
    (folder / "finetune.py").write_text(f"{before}{setup}{probe}{last}", encoding="utf-8")
    assert len(re.findall("'infill_threshold'", run("python finetune.py", folder, environment))) == 3
