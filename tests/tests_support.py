"""Pictures for the tests."""

import torch


def picture(seed: int, height: int = 24, width: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def disc(size: int = 24) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - size // 2) ** 2 + (x - size // 2) ** 2) < (size // 4) ** 2
