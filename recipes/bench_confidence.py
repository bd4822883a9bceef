"""Cost of the confidence estimator beside a ResNet-18 and torchvision's LR-ASPP: milliseconds a picture, in one run.

Prints a Markdown table; the one in docs/benchmarks.md comes from ``python recipes/bench_confidence.py``. Pictures are
224 px; the estimator's time holds the check of its input, the way down to its square and the way back up.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torchvision import models

from infill_aug.confidence import ConfidenceEstimator

PRIMARY, RIVAL, OWN = "ResNet-18", "LR-ASPP MobileNetV3-L", "estimator"


def settled(network: nn.Module, size: int) -> nn.Module:
    """Give batch normalisation the statistics of noise: untrained networks otherwise shrink their values to nothing."""
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.rand(4, 3, size, size))
    return network.eval()


def cpu_name() -> str:
    """Model of the processor, where the system says it."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return (re.findall(r"model name\s*: (.*)", info) or [platform.processor()])[0]


def onnx_arms(estimator: Any, folder: Path, threads: int) -> dict[str, Any]:
    """ONNX Runtime in float and in 8-bit integers; the way down to the square, and back, counts here too."""
    import onnxruntime

    from infill_aug.confidence.export import export_onnx, quantise_onnx

    size = (estimator.input_size,) * 2
    if not (folder / "int8.onnx").exists():
        path = export_onnx(estimator, folder / "float.onnx")
        quantise_onnx(path, torch.rand(16, 3, *size), folder / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow the arm that comes next

    def arm(name: str) -> Any:
        session = onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])

        def run(images: torch.Tensor) -> torch.Tensor:
            square = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
            found = torch.from_numpy(session.run(None, {"image": square.numpy()})[0])
            return nn.functional.interpolate(found, images.shape[-2:], mode="bilinear")

        return run

    return {f"{OWN}, ONNX Runtime": arm("float.onnx"), f"{OWN}, ONNX Runtime INT8": arm("int8.onnx")}


def measure(run: Any, images: torch.Tensor, repeats: int) -> float:
    """Milliseconds a picture."""
    started = time.perf_counter()
    for _ in range(repeats):
        run(images)
    torch.cuda.synchronize() if images.is_cuda else None
    return 1000 * (time.perf_counter() - started) / repeats / len(images)


def main() -> None:
    """Measure all arms in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--onnx", action="store_true", help="rows for ONNX Runtime, float and INT8")
    options = parser.parse_args()
    # Values under 1e-38, frequent where weights are random, cost a processor many times what others do.
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    rival, own = models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None), ConfidenceEstimator()
    networks = {PRIMARY: settled(models.resnet18(), options.size), RIVAL: settled(rival, options.size)}
    networks[OWN] = settled(own, options.size).fused()
    print(f"Pictures of {options.size} px, median (fastest) of {options.rounds} rounds in turn, ratios of each round;")
    print(f"torch {torch.__version__}, {cpu_name()}, {datetime.date.today()}\n\n| threads | batch | network | ", end="")
    print("ms a picture | share of ResNet-18 | LR-ASPP takes | pictures/s |\n" + "| --- " * 7 + "|")
    cases = [(threads, batch) for threads in options.threads for batch in options.batch_sizes]
    cases += [(0, 256)] * torch.cuda.is_available()  # no threads: on the GPU
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        for threads, batch in cases:
            torch.set_num_threads(threads or 1)
            device = "cpu" if threads else "cuda"
            images = torch.rand(batch, 3, options.size, options.size, device=device)
            arms = {name: network.to(device) for name, network in networks.items()}
            arms |= onnx_arms(own, Path(scratch), threads) if options.onnx and threads else {}
            times: dict[str, list[float]] = {name: [] for name in arms}
            for turn in range(options.rounds + 1):  # in turn: the machine's speed drifts; the first one warms up
                for name, run in arms.items():
                    spent = measure(run, images, 1 if batch > 1 else 5)
                    times[name] += [spent] if turn else []
            for name, row in times.items():
                share = median(a / b for a, b in zip(row, times[PRIMARY], strict=True))
                lead = median(b / a for a, b in zip(row, times[RIVAL], strict=True))
                print(f"| {threads or device} | {batch} | {name} | {median(row):.2f} ({min(row):.2f}) | ", end="")
                print(f"{share:.1%} | {lead:.1f} x | {1000 / median(row):.0f} |", flush=True)


if __name__ == "__main__":
    main()
