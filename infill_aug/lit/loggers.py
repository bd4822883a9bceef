"""Pictures and text for the loggers that take them: TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def log_image(loggers: Iterable[Logger], tag: str, image: Tensor, step: int, caption: str) -> bool:
    """Give a picture to every logger that takes pictures.

    Args:
        loggers: ``trainer.loggers``; those of other kinds are left out.
        tag: name of the picture, the same at every step.
        image: ``(3, H, W)`` ``uint8``.
        step: ``trainer.global_step``.
        caption: what the picture shows; TensorBoard has it as a text of the same name.

    Returns:
        Whether any logger took it.

    Example:
        >>> import tempfile, torch
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> log_image([CSVLogger(tempfile.mkdtemp())], "picture", torch.zeros(3, 4, 4, dtype=torch.uint8), 0, "black")
        False
    """
    taken = False
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image, step)
            logger.experiment.add_text(tag, caption, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [F.to_pil_image(image)], step, caption=[caption])
        else:
            continue
        taken = True
    return taken


def log_text(loggers: Iterable[Logger], tag: str, text: str, step: int) -> None:
    """Give a line of text to every logger that takes text.

    Args:
        loggers: ``trainer.loggers``; those of other kinds are left out.
        tag: name of the text, the same at every step.
        text: Markdown in TensorBoard, a table of one cell in Weights & Biases.
        step: ``trainer.global_step``.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> log_text([CSVLogger(tempfile.mkdtemp())], "infill/reason", "Warm-up: hold.", step=0)
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, text, step)
        elif isinstance(logger, WandbLogger):
            logger.log_text(tag, columns=["text"], data=[[text]], step=step)
