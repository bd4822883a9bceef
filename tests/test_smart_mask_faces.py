import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("cv2")
pytest.importorskip("onnx")

import cv2
import onnx

from infill_aug.smart_mask.faces import face_boxes

FACE = 64  # pixels of the model's canvas


def save_model(path, height, width):
    """A detector with the inputs and outputs of YuNet, to which a face is a red square of 64 pixels on black.

    For each stride OpenCV reads the scores ``cls`` and ``obj`` of every cell, row by row, ``bbox`` (the centre in cells
    from the cell's corner, and the logarithms of the sides in cells), and ``kps`` (five points).
    """
    helper, weights, nodes, outputs = onnx.helper, [], [], []

    def constant(name, values, kind=np.float32):
        weights.append(onnx.numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    for stride in (8, 16, 32):
        side = np.log(FACE / stride)
        for kind, bias in {"cls": [0], "obj": [0], "bbox": [0.5, 0.5, side, side], "kps": [0] * 10}.items():
            kernel, pad, name = np.zeros((len(bias), 3, stride, stride)), 0, f"{kind}_{stride}"
            if stride == 32 and kind in ("cls", "obj"):
                # Red (the third of OpenCV's channels) inside counts for it, whatever is bright around it against it.
                pad = FACE - stride // 2
                kernel = np.full((1, 3, 2 * FACE, 2 * FACE), -4 / 255 / FACE**2)
                kernel[..., FACE // 2 : -FACE // 2, FACE // 2 : -FACE // 2] = 0
                kernel[:, 2, FACE // 2 : -FACE // 2, FACE // 2 : -FACE // 2] = 1 / 255 / FACE**2
            given = ["input", constant(f"{name}_kernel", kernel), constant(f"{name}_bias", bias)]
            size = {"kernel_shape": kernel.shape[2:], "strides": [stride] * 2, "pads": [pad] * 4}
            nodes += [
                helper.make_node("Conv", given, [f"{name}_planes"], **size),
                helper.make_node("Transpose", [f"{name}_planes"], [f"{name}_cells"], perm=[0, 2, 3, 1]),
                helper.make_node(
                    "Reshape", [f"{name}_cells", constant(f"{name}_shape", [1, -1, len(bias)], np.int64)], [name]
                ),
            ]
            outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, None, len(bias)]))
    picture = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, height, width])
    graph = helper.make_graph(nodes, "faces", [picture], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture(scope="module", params=[(640, 640), ("height", "width")], ids=["2023mar", "2026may"])
def model(request, tmp_path_factory):
    """As the files that are published: one with a size of 640 written into it, one without a size."""
    return save_model(tmp_path_factory.mktemp("model") / "yunet.onnx", *request.param)


def with_face(height, width, left, top, side=FACE, colour=(255, 0, 0)):
    """A face whose middle lies in the middle of a cell, where ``left`` and ``top`` are 16 and a multiple of 32 more."""
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    picture[:, top : top + side, left : left + side] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return picture


def test_a_face_is_found_with_hair_ears_and_chin(model):
    assert face_boxes(with_face(320, 320, 80, 112), model) == ((67, 86, 157, 183),)


def test_colours_are_not_mixed_up_and_nothing_is_found_where_there_is_none(model):
    assert face_boxes(with_face(320, 320, 80, 112, colour=(0, 0, 255)), model) == ()
    assert face_boxes(torch.zeros(3, 50, 70, dtype=torch.uint8), model) == ()


def test_the_margin_ends_at_the_pictures_border(model):
    assert face_boxes(with_face(100, 320, 16, 16), model) == ((3, 0, 93, 87),)


@pytest.mark.parametrize(("side", "left", "top"), [(128, 160, 224), (256, 320, 448)])
def test_faces_of_large_pictures_are_found_by_a_small_one_and_lie_in_the_large(side, left, top, model):
    """Of 1280 pixels, the one is 64 on the canvas where the picture is scaled to 640, the other where it is to 320."""
    (box,) = face_boxes(with_face(1000, 1280, left, top, side), model)
    wanted = (left - 0.2 * side, top - 0.4 * side, left + 1.2 * side, top + 1.1 * side)
    assert torch.tensor(box).sub(torch.tensor(wanted)).abs().max() <= 3


def test_several_faces_are_found_and_each_once(model):
    picture = with_face(640, 640, 16, 80) + with_face(640, 640, 400, 464)
    assert sorted(face_boxes(picture, model)) == [(3, 54, 93, 151), (387, 438, 477, 535)]


def test_the_score_from_which_a_face_counts_is_ones_own(model):
    faint = with_face(320, 320, 80, 112, colour=(140, 0, 0))
    assert face_boxes(faint, model) == ()
    assert len(face_boxes(faint, model, score=0.5)) == 1


def test_files_arrays_pil_pictures_grey_and_16_bits_are_read(model, tmp_path):
    picture = with_face(320, 320, 80, 112)
    array = picture.permute(1, 2, 0).numpy()
    turned = Image.fromarray(np.rot90(array).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    forms = [array, Image.fromarray(array), array.astype(np.uint16) * 257, picture / 255, tmp_path / "turned.png"]
    assert {face_boxes(form, model) for form in forms} == {((67, 86, 157, 183),)}
    assert face_boxes(Image.fromarray(array[..., 0]), model) == face_boxes(picture.amax(0), model)


@pytest.mark.parametrize("size", [(1, 1), (900, 1), (1, 900)])
def test_pictures_of_one_pixel_across_have_no_faces(size, model):
    assert face_boxes(torch.full((3, *size), 255, dtype=torch.uint8), model) == ()


def test_opencvs_log_is_left_as_it_was(model):
    log = getattr(cv2.utils, "logging", cv2)
    level = log.getLogLevel()
    assert face_boxes(with_face(320, 320, 80, 112), model)
    assert log.getLogLevel() == level > 0


def test_mistakes_say_what_to_do(model, tmp_path):
    picture = torch.zeros(3, 8, 8)
    with pytest.raises(FileNotFoundError, match=r"nowhere.onnx.*face_detection_yunet_2023mar.onnx.*OpenCV's model zoo"):
        face_boxes(picture, "nowhere.onnx")
    stub = tmp_path / "stub.onnx"
    stub.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 232589\n")
    with pytest.raises(ValueError, match=r"stub.onnx' as a YuNet model \(\d+ bytes; a clone without Git LFS"):
        face_boxes(picture, stub)
    with pytest.raises(ValueError, match=r"score must lie in 0\.\.1, got 70"):
        face_boxes(picture, model, score=70)
    with pytest.raises(ValueError, match="one picture, got a batch of 2"):
        face_boxes(picture.expand(2, 3, 8, 8), model)


def test_without_opencv_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'infill-aug\[opencv\]'"):
        face_boxes(torch.zeros(3, 8, 8), model)
