"""What ``KeepTokens`` saves of a training step of ViT-S/16: forward, backward and AdamW, side by side.

python recipes/bench_keep_tokens.py                                # a CPU
python recipes/bench_keep_tokens.py --batch 256 --device cuda
"""

import argparse
import platform
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torchvision.models import VisionTransformer

from infill_aug.keep_tokens import KeepTokens


def network(name: str, size: int) -> nn.Module:
    """ViT-S/16 (Touvron et al., 2021) of timm or torchvision, with random weights."""
    if name == "timm":
        import timm

        return timm.create_model("vit_small_patch16_224", img_size=size)
    return VisionTransformer(size, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)


def training_step(model: nn.Module, forward: Callable, labels: torch.Tensor, device: str) -> Callable:
    """Forward, backward, optimiser."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = nn.functional.cross_entropy(forward(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def in_turn(arms: dict[str, Callable], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every arm, in turn, so that what else the machine does meets all of them; one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, run in arms.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["timm", "torchvision"], choices=["timm", "torchvision"])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.75, 0.5, 0.25], help="shares of the tokens")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{options.batch} pictures of {options.size} px, {where}, {platform.machine()}, torch {torch.__version__}")
    print(f"Median of {options.rounds} steps, ms; in brackets times the throughput of all tokens\n")
    images = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    labels = torch.randint(0, 1000, (options.batch,), device=options.device)
    # Half of each picture is masked. Only how many tokens are kept makes a difference to the time.
    mask = torch.zeros(options.batch, 1, options.size, options.size, dtype=torch.bool, device=options.device)
    mask[..., options.size // 2 :] = True
    print("| model | all tokens | " + " | ".join(f"keep={keep}" for keep in options.keep) + " |")
    print("| --- " * (2 + len(options.keep)) + "|")
    for name in options.models:
        model = network(name, options.size).to(options.device).train()
        arms = {"all": training_step(model, lambda model=model: model(images), labels, options.device)}
        for keep in options.keep:
            tokens = KeepTokens(model, keep)
            arms[str(keep)] = training_step(model, lambda t=tokens: t(images, mask), labels, options.device)
        times = {arm: median(values) for arm, values in in_turn(arms, options.rounds, options.device).items()}
        cells = [f"{1000 * seconds:.0f} ({times['all'] / seconds:.2f}x)" for seconds in times.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
