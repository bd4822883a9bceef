"""Pictures for the tests, and processes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from torchvision.transforms.v2 import functional as F


def launch(text: str, folder: Path, *arguments: str) -> int:
    """Run a script, which gets the folder, that of the tests, and the arguments; returns its exit code."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    here = os.path.dirname(__file__)
    search = os.pathsep.join([os.path.dirname(here), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), here, *arguments]
    return subprocess.run(command, env=environment, check=False, timeout=240).returncode


def launch_ranks(text: str, folder: Path) -> None:
    """Run a script that starts itself again for each rank; it gets the folder and that of the tests."""
    assert launch(text, folder) == 0


def run_recipe(recipe: str, *arguments: str, folder: Path, code: int = 0, prelude: str = "") -> str:
    """Run a recipe as its users do, in a folder of its own; ``prelude`` is executed before it."""
    path = str(Path(__file__).parents[1] / "recipes" / recipe)
    start = [path]
    if prelude:
        start = [
            "-c",
            f"{prelude}\nimport runpy, sys\nsys.argv[0] = {path!r}\nrunpy.run_path({path!r}, run_name='__main__')",
        ]
    # One thread each: the pictures are tiny, and threads that wait for each other cost more than they compute.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONWARNINGS", None)
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def picture(seed: int, height: int = 24, width: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def disc(size: int = 24) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - size // 2) ** 2 + (x - size // 2) ** 2) < (size // 4) ** 2


def scene(seed: int, height: int = 120, width: int = 160) -> torch.Tensor:
    """A smooth background, some ellipses and a fine texture, ``(3, H, W)`` float32, well inside of 0..1."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.25 + 0.5 * F.resize(torch.rand(3, 4, 5, generator=generator), [height, width])
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    for _ in range(8):
        row, column, size, ratio = torch.rand(4, generator=generator).tolist()
        inside = ((y - row) / (0.05 + 0.12 * size)) ** 2 + ((x - column) / (0.04 + 0.12 * ratio)) ** 2 < 1
        image = torch.where(inside, 0.2 + 0.6 * torch.rand(3, 1, 1, generator=generator), image)
    grain = F.gaussian_blur(torch.randn(1, height + 4, width + 4, generator=generator), [5, 5], [1.0, 1.0])
    return (image + 0.05 * grain[:, 2:-2, 2:-2]).clamp(0.1, 0.85)
