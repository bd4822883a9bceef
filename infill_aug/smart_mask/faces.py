"""Where faces are: what an edit must leave alone, by OpenCV's YuNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import nms
from torchvision.transforms.v2 import functional as F

from infill_aug.smart_mask.overlay import small_rgb

# The canvas that the model is given. The published file of 2023 has this size written into it, and not every engine of
# OpenCV 5 can change it; it suits the later file, which has no size, and OpenCV 4 as well.
_CANVAS = 640
# Sides that the picture is scaled down to. YuNet finds faces of about 10 to 300 pixels: at 640 those up to half of the
# picture, at 320 those that fill it.
_SIDES = (640, 320)
_OVERLAP = 0.3
# The model's boxes go from the hairline to the chin and from cheek to cheek, as the labels of WIDER FACE do. The skull
# is a quarter of that height taller, and hair stands off it; with ears it is a third wider. Below lies the neck, where
# an edit of clothes begins: a tenth covers the chin where a box is a little off.
_ABOVE, _BESIDE, _BELOW = 0.4, 0.2, 0.1


def face_boxes(picture: Any, model: str | Path, *, score: float = 0.7) -> tuple[tuple[int, int, int, int], ...]:
    """Boxes of the heads in a picture, for ``protect=`` of ``SmartMask``.

    A face's box is enlarged by 40 % of its height above, 10 % below and 20 % of its width at either side, so that hair,
    ears and chin are inside. Found are faces from about 1.5 % of the picture's longer side on.

    Args:
        picture: file, PIL picture, array ``(H, W, 3)`` or tensor ``(3, H, W)``, ``uint8`` or floating point in 0..1, of
            any size.
        model: the file ``face_detection_yunet_2023mar.onnx`` or ``face_detection_yunet_2026may.onnx``.
        score: 0..1, from which a face counts.

    Returns:
        Left, top, right and bottom in pixels of the picture, the last two exclusive; the surest face first. Empty where
        no face was found.

    Raises:
        FileNotFoundError: no model file.
        ImportError: OpenCV is not installed.
        ValueError: the file is no such model, or a score outside 0..1.

    Example:
        >>> face_boxes(torch.zeros(3, 8, 8), "nowhere.onnx")
        Traceback (most recent call last):
        FileNotFoundError: no face model 'nowhere.onnx': download face_detection_yunet_2023mar.onnx from ...
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score must lie in 0..1, got {score}")
    path = Path(model)
    if not path.is_file():
        raise FileNotFoundError(
            f"no face model {str(model)!r}: download face_detection_yunet_2023mar.onnx from OpenCV's model zoo "
            "(opencv/face_detection_yunet on the Hugging Face hub) and give its path"
        )
    try:
        import cv2
    except ImportError as error:
        raise ImportError("finding faces needs OpenCV: pip install 'infill-aug[opencv]'") from error

    pictures, (height, width) = small_rgb(picture, max(_SIDES))
    if len(pictures) != 1:
        raise ValueError(f"faces are looked for in one picture, got a batch of {len(pictures)}; call once for each")
    sizes = {tuple(max(1, round(v * min(1, side / max(height, width)))) for v in (height, width)) for side in _SIDES}
    found = []
    log = getattr(cv2.utils, "logging", cv2)  # where OpenCV 5 and 4 have it
    level = log.setLogLevel(0)  # nothing: OpenCV 5 warns of settings that it makes itself
    try:
        detector = cv2.FaceDetectorYN.create(str(path), "", (_CANVAS, _CANVAS), score)
        for high, wide in sizes:
            small = F.resize(pictures[0], [high, wide], antialias=True)
            canvas = np.zeros((_CANVAS, _CANVAS, 3), np.uint8)
            canvas[:high, :wide] = small.flip(0).permute(1, 2, 0).numpy()  # blue first, as OpenCV has it
            faces = detector.detect(canvas)[1]
            if faces is not None:
                full = torch.tensor([width / wide, height / high] * 2 + [1])
                found.append(torch.from_numpy(faces)[:, [0, 1, 2, 3, 14]] * full)
    except cv2.error as error:
        raise ValueError(
            f"OpenCV {cv2.__version__} can't run {str(model)!r} as a YuNet model ({path.stat().st_size} bytes; a clone "
            f"without Git LFS has a stub of some hundred): download it again. {error}"
        ) from error
    finally:
        log.setLogLevel(level)
    if not found:
        return ()
    x, y, across, down, scores = torch.cat(found).unbind(1)
    kept = nms(torch.stack((x, y, x + across, y + down), dim=1), scores, _OVERLAP)
    left, top = (x - _BESIDE * across).floor(), (y - _ABOVE * down).floor()
    right, bottom = (x + (1 + _BESIDE) * across).ceil(), (y + (1 + _BELOW) * down).ceil()
    boxes = torch.stack((left.clamp(0, width), top.clamp(0, height), right.clamp(0, width), bottom.clamp(0, height)), 1)
    return tuple((a, b, c, d) for a, b, c, d in boxes[kept].int().tolist() if a < c and b < d)
