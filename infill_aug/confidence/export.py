"""Export of a trained estimator: ``torch.export``, ONNX, and ONNX in 8-bit integers."""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from infill_aug.confidence.estimator import ConfidenceEstimator

# The lowest opset that the exporter of torch writes without conversion, and that holds all that the network needs.
OPSET = 18

# Pictures that are scored at once while ranges are measured: memory, not results, depends on it.
_CALIBRATED_AT_ONCE = 8


class _Confidence(nn.Module):
    """One head, its temperature folded into its weights, and the up-sampling to the size of the input."""

    def __init__(self, estimator: ConfidenceEstimator, head: str) -> None:
        super().__init__()
        estimator._check_not_fused()
        fused = estimator.fused().float().cpu()
        index = fused.heads.index(head)
        self.trunk, self.logit = fused.trunk, nn.Conv2d(fused.logit.in_channels, 1, 1)
        with torch.no_grad():
            self.logit.weight[0] = fused.logit.weight[index] / fused.temperature[index]
            self.logit.bias[0] = fused.logit.bias[index] / fused.temperature[index]  # type: ignore[index]
        # In channels_last, pooling is traced to strides, which are no graph of tensor operations.
        self.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        logits = self.logit(self.trunk(image))
        return nnf.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False).sigmoid()


def export_program(estimator: ConfidenceEstimator, head: str | None = None) -> torch.export.ExportedProgram:
    """The estimator as a graph of tensor operations, in float32 on the CPU.

    The graph takes the square that the estimator looks at: bring pictures to ``input_size`` first, with antialiasing,
    and the confidence back to their size, as ``ConfidenceEstimator.forward`` does. Neither that resize nor a check of
    the values is in the graph.

    Convention:
        * input ``image`` ``(B, 3, H, W)`` float32 in 0..1; ``B`` from 1, ``H`` and ``W`` multiples of 16 from 32;
          the estimator was trained at ``input_size``
        * output ``(B, 1, H, W)`` float32 in 0..1, calibrated

    Args:
        estimator: a trained estimator; it is left as it is.
        head: which of its heads; by default ``estimator.head``.

    Raises:
        ValueError: no such head, or the estimator came from ``fused()``.

    Example:
        >>> import torch
        >>> program = export_program(ConfidenceEstimator(input_size=32))
        >>> program.module()(torch.rand(3, 3, 48, 64)).shape
        torch.Size([3, 1, 48, 64])
    """
    network = _Confidence(estimator, _head(estimator, head))
    # At least 2 x 16: torch.export sets sizes of one step, and only those, apart.
    steps = [torch.export.Dim(name, min=2) for name in ("height", "width")]
    shapes = ({0: torch.export.Dim("batch"), 2: 16 * steps[0], 3: 16 * steps[1]},)
    return torch.export.export(network, (torch.full((2, 3, 64, 96), 0.5),), dynamic_shapes=shapes)


def export_onnx(estimator: ConfidenceEstimator, path: str | Path, head: str | None = None) -> Path:
    """Write the graph of ``export_program`` as one ONNX file, with the weights in it.

    Input ``image``, output ``confidence``, axes ``batch``, ``height`` and ``width``; opset 18. The file's metadata
    hold ``head``, ``input_size`` and ``version``, that of ``infill_aug``.

    Args:
        estimator: a trained estimator; it is left as it is.
        path: file to write, ending in ``.onnx``; its folder is made.
        head: which of its heads; by default ``estimator.head``.

    Returns:
        ``path``.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: no such head, or the estimator came from ``fused()``.

    Example:
        >>> import onnxruntime
        >>> path = export_onnx(ConfidenceEstimator(("cats",), input_size=32), getfixture("tmp_path") / "cats.onnx")
        >>> session = onnxruntime.InferenceSession(path)
        >>> session.run(["confidence"], {"image": np.zeros((1, 3, 32, 64), np.float32)})[0].shape
        (1, 1, 32, 64)
        >>> session.get_modelmeta().custom_metadata_map["head"]
        'cats'
    """
    from infill_aug import __version__

    head = _head(estimator, head)
    onnx, _ = _needed("onnx"), _needed("onnxscript")
    program = export_program(estimator, head)
    with warnings.catch_warnings():
        # torch's own use of its own deprecated name.
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
        found = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["confidence"],
            verbose=False,
        )
    assert found is not None
    model = found.model_proto
    _strip(model)
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    model.doc_string = (
        f"Confidence of {head!r}: image (B, 3, H, W) in 0..1, H and W multiples of 16 from 32, "
        f"best at {estimator.input_size}."
    )
    metadata = {"head": head, "input_size": str(estimator.input_size), "version": __version__}
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def quantise_onnx(path: str | Path, calibration_images: Tensor | np.ndarray, output: str | Path) -> Path:
    """Static quantisation after training: convolutions in 8-bit integers, for ONNX Runtime and what else reads QDQ.

    Weights are symmetric with a scale for each channel, activations have the smallest and largest values that the
    calibration pictures gave. The logits, their up-sampling and the sigmoid stay in float, where steps of 1/255 of
    their range would show. Check the result on pictures with masks before you use it.

    Args:
        path: what ``export_onnx`` wrote.
        calibration_images: ``(N, 3, S, S)`` floating point in 0..1, as the graph gets them in use: some 100 pictures.
        output: file to write, ending in ``.onnx``; not ``path``.

    Returns:
        ``output``.

    Raises:
        FileNotFoundError: nothing at ``path``.
        ImportError: onnx or onnxruntime is missing.
        ValueError: calibration pictures of another shape or dtype, with values outside 0..1 or NaN; or ``output`` is
            ``path``.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> path = export_onnx(ConfidenceEstimator(input_size=32), folder / "float.onnx")
        >>> quantise_onnx(path, torch.rand(4, 3, 32, 32), folder / "int8.onnx").name
        'int8.onnx'
    """
    path, output = Path(path), Path(output)
    if not path.is_file():
        raise FileNotFoundError(f"no ONNX file at {str(path)!r}; write one with export_onnx")
    if path.resolve() == output.resolve():
        raise ValueError(f"output must be another file than path, got {str(output)!r} for both")
    images = _calibration(calibration_images)
    onnx, tools = _needed("onnx"), _needed("onnxruntime.quantization")
    prepare = _needed("onnxruntime.quantization.shape_inference").quant_pre_process
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, _Quiet():
        prepared = Path(scratch) / "prepared.onnx"
        prepare(str(path), str(prepared), skip_symbolic_shape=True)
        tools.quantize_static(
            str(prepared),
            str(output),
            _reader(tools.CalibrationDataReader, images),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "Mul", "Relu", "Resize", "ReduceMean"],
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=_kept_in_float(onnx.load(str(prepared)).graph),
            calibrate_method=tools.CalibrationMethod.MinMax,
        )
    return output


def _head(estimator: ConfidenceEstimator, head: str | None) -> str:
    name = estimator.head if head is None else head
    if name not in estimator.heads:
        raise ValueError(f"the estimator has no head {name!r}; it has {list(estimator.heads)}")
    return name


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise ImportError(f"ONNX export needs {library}: pip install 'infill-aug[export]'") from error


def _strip(model: Any) -> None:
    """Drop what the exporter notes of each node: traces with paths of this machine, a third of the file."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    # Shapes between the nodes bear other names of the axes; readers infer them anew.
    graph.ClearField("value_info")


def _kept_in_float(graph: Any) -> list[str]:
    """Names of the nodes from the output back to the convolution that gives the logits."""
    maker = {name: node for node in graph.node for name in node.output}
    node, names = maker[graph.output[0].name], []
    while node.op_type != "Conv":
        names.append(node.name)
        node = maker[node.input[0]]
    return [*names, node.name]


def _calibration(images: Tensor | np.ndarray) -> np.ndarray:
    # bfloat16 has no numpy counterpart.
    tensor = images.detach().cpu() if isinstance(images, Tensor) else torch.as_tensor(images)
    if tensor.ndim != 4 or tensor.shape[1] != 3 or not len(tensor) or any(n < 32 or n % 16 for n in tensor.shape[2:]):
        raise ValueError(
            "calibration_images must be (N, 3, S, S), not empty, with S a multiple of 16 from 32, "
            f"got shape {tuple(tensor.shape)}"
        )
    if not tensor.is_floating_point():
        raise ValueError(f"calibration_images must be floating point in 0..1, got {tensor.dtype}; divide uint8 by 255")
    low, high = (float(v) for v in tensor.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"calibration_images must lie in 0..1 without NaN, got values from {low:.4g} to {high:.4g}")
    return tensor.float().numpy()


def _reader(base: type, images: np.ndarray) -> Any:
    class Reader(base):
        def __init__(self) -> None:
            self.chunks: Iterator[np.ndarray] = iter(
                images[start : start + _CALIBRATED_AT_ONCE] for start in range(0, len(images), _CALIBRATED_AT_ONCE)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            chunk = next(self.chunks, None)
            return None if chunk is None else {"image": chunk}

    return Reader()


class _Quiet:
    """The quantiser logs advice to the root logger that is followed here."""

    def __enter__(self) -> None:
        self.level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().setLevel(self.level)
