import logging
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch

from infill_aug import __version__
from infill_aug.confidence.estimator import ConfidenceEstimator
from infill_aug.confidence.export import OPSET, export_onnx, export_program, quantise_onnx
from infill_aug.confidence.training import confidence_loss

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIDE = 64
SHAPES = [(1, 3, 64, 96), (3, 3, 128, 128), (2, 3, 32, 48)]


def drawings(count, seed):
    """Red, green and blue discs and boxes on coloured noise: pictures, and where the shapes are."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    noise = uniform(0.2, 0.6, 3, 1, 1) + 0.08 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centre_y, centre_x = uniform(16, 48, 1, 1, 1), uniform(16, 48, 1, 1, 1)
    down = (y - centre_y).abs() / uniform(8, 20, 1, 1, 1)
    right = (x - centre_x).abs() / uniform(8, 20, 1, 1, 1)
    box = uniform(0, 1, 1, 1, 1) < 0.5
    inside = torch.where(box, torch.maximum(down, right), down.square() + right.square()) < 1
    colours = torch.eye(3)[torch.randint(3, (count,), generator=generator)][:, :, None, None]
    return torch.where(inside, noise * 0.5 + 0.6 * colours - 0.1, noise).clamp(0, 1), inside.float()


def iou(confidence, truth):
    found, wanted = confidence > 0.5, truth > 0.5
    return float(((found & wanted).sum((1, 2, 3)) / (found | wanted).sum((1, 2, 3))).mean())


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    estimator = ConfidenceEstimator(("shapes", "nothing"), input_size=SIDE).to(memory_format=torch.channels_last)
    images, truth = drawings(512, seed=0)
    known = torch.ones(16, 2, dtype=torch.bool)
    optimizer = torch.optim.AdamW(estimator.parameters(), 3e-3)
    for _ in range(200):
        chosen = torch.randint(len(images), (16,))
        wanted = torch.cat([truth[chosen], torch.zeros_like(truth[chosen])], dim=1)
        optimizer.zero_grad()
        confidence_loss(estimator.logits(images[chosen]), wanted, known).backward()
        optimizer.step()
    estimator.temperature.copy_(torch.tensor([1.7, 0.6]))
    return estimator.eval()


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return export_onnx(trained, tmp_path_factory.mktemp("onnx") / "new folder" / "float.onnx")


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, images):
    return torch.from_numpy(session(path).run(["confidence"], {"image": images.numpy()})[0])


def expected(estimator, images, head=None):
    """Confidence at full working size, from the estimator's logits."""
    index = estimator.heads.index(head or estimator.head)
    with torch.no_grad():
        logits = estimator.logits(images)[:, [index]] / estimator.temperature[index]
        size = images.shape[-2:]
        return torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).sigmoid()


@pytest.fixture(scope="module")
def program(trained):
    return export_program(trained)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_program_gives_the_estimators_confidence_at_any_batch_and_size(trained, program, shape):
    images = torch.rand(shape)
    torch.testing.assert_close(program.module()(images), expected(trained, images), atol=1e-5, rtol=0)


def test_at_the_working_size_the_program_is_the_estimator(trained, program):
    images, _ = drawings(4, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), trained(images), atol=1e-5, rtol=0)


def test_a_size_that_is_no_multiple_of_sixteen_is_refused_by_the_program(program):
    with pytest.raises((AssertionError, RuntimeError)):
        program.module()(torch.rand(1, 3, 40, 64))


def test_the_program_holds_neither_antialiasing_nor_batch_normalisation_nor_checks(program):
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "_aa" in name or "norm" in name or "aminmax" in name or "assert" in name]


def test_the_chosen_head_is_exported_with_its_own_temperature(trained, tmp_path):
    images = torch.rand(2, 3, 64, 64)
    path = export_onnx(trained, tmp_path / "nothing.onnx", head="nothing")
    torch.testing.assert_close(run(path, images), expected(trained, images, "nothing"), atol=1e-4, rtol=0)
    assert session(path).get_modelmeta().custom_metadata_map["head"] == "nothing"
    assert trained.head == "shapes"


@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_runtime_gives_the_estimators_confidence_at_any_batch_and_size(trained, exported, shape):
    images = torch.rand(shape)
    torch.testing.assert_close(run(exported, images), expected(trained, images), atol=1e-4, rtol=0)


def test_the_onnx_file_stands_alone_and_says_what_it_is(exported):
    assert [path.name for path in exported.parent.iterdir()] == ["float.onnx"]
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    (image,), (confidence,) = session(exported).get_inputs(), session(exported).get_outputs()
    assert (image.name, image.shape) == ("image", ["batch", 3, "height", "width"])
    assert (confidence.name, confidence.shape) == ("confidence", ["batch", 1, "height", "width"])
    metadata = session(exported).get_modelmeta().custom_metadata_map
    assert metadata == {"head": "shapes", "input_size": str(SIDE), "version": __version__}


def test_the_onnx_file_tells_no_paths_of_the_machine_that_wrote_it(exported):
    content = exported.read_bytes()
    assert b"infill_aug/" not in content
    assert b"site-packages" not in content


def test_export_leaves_the_estimator_as_it_is_in_training_and_in_half_precision(trained):
    images = torch.rand(1, 3, 64, 64)
    other = trained.with_heads(trained.heads).to(torch.bfloat16).train()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    program = export_program(other)
    assert other.training
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert all(value.requires_grad for value in other.parameters())
    torch.testing.assert_close(program.module()(images), expected(trained, images), atol=0.05, rtol=0)


def test_eight_bits_cost_at_most_a_hundredth_of_iou_and_a_third_of_the_file(trained, exported, tmp_path):
    small = quantise_onnx(exported, drawings(64, seed=1)[0], tmp_path / "new folder" / "int8.onnx")
    images, truth = drawings(200, seed=2)
    exact = iou(run(exported, images), truth)
    assert exact > 0.8  # otherwise there is nothing to lose
    found = run(small, images)
    assert iou(found, truth) >= exact - 0.01
    assert float((found - run(exported, images)).abs().mean()) < 0.01
    assert small.stat().st_size < 0.4 * exported.stat().st_size
    assert [path.name for path in small.parent.iterdir()] == ["int8.onnx"]
    # Another batch and size than those of the calibration, and the file still says what it is.
    torch.testing.assert_close(run(small, torch.rand(1, 3, 64, 96)).shape, torch.Size([1, 1, 64, 96]))
    assert session(small).get_modelmeta().custom_metadata_map["head"] == "shapes"


def test_convolutions_run_in_eight_bits_but_for_the_one_that_gives_the_logits(exported, tmp_path):
    small = quantise_onnx(exported, drawings(8, seed=1)[0], tmp_path / "int8.onnx")
    graph = onnx.load(small).graph
    maker = {name: node.op_type for node in graph.node for name in node.output}
    fed = [[maker.get(name) for name in node.input[:2]] for node in graph.node if node.op_type == "Conv"]
    assert fed.count(["DequantizeLinear"] * 2) == len(fed) - 1
    scales = [value for value in graph.initializer if value.name.endswith("_scale") and len(value.dims) == 1]
    assert any(value.dims[0] > 1 for value in scales)  # one for each channel


def test_quantisation_leaves_logging_and_warnings_as_they_were(exported, tmp_path):
    level, filters = logging.getLogger().level, list(warnings.filters)
    quantise_onnx(exported, torch.rand(2, 3, 32, 32).numpy(), tmp_path / "int8.onnx")
    assert (logging.getLogger().level, list(warnings.filters)) == (level, filters)


@pytest.mark.parametrize("export", [export_program, lambda e, head: export_onnx(e, "never.onnx", head=head)])
def test_an_unknown_head_lists_the_heads(trained, export):
    with pytest.raises(ValueError, match=r"no head 'cats'; it has \['shapes', 'nothing'\]"):
        export(trained, head="cats")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 64, 64), r"must be \(N, 3, S, S\).*got shape \(3, 64, 64\)"),
        (torch.rand(0, 3, 64, 64), "not empty"),
        (torch.rand(2, 3, 40, 64), "multiple of 16"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "uint8; divide uint8 by 255"),
        (torch.full((2, 3, 64, 64), 2.0), "from 2 to 2"),
        (torch.full((2, 3, 64, 64), torch.nan), "nan"),
    ],
)
def test_wrong_calibration_pictures_are_named(exported, tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        quantise_onnx(exported, images, tmp_path / "int8.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_and_an_output_in_place_are_refused(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="export_onnx"):
        quantise_onnx(tmp_path / "none.onnx", torch.rand(1, 3, 32, 32), tmp_path / "int8.onnx")
    with pytest.raises(ValueError, match="another file"):
        quantise_onnx(exported, torch.rand(1, 3, 32, 32), exported)


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_the_extra_that_brings_it(exported, tmp_path, library, monkeypatch):
    for name in [name for name in sys.modules if name == library or name.startswith(library + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    call = partial(export_onnx, ConfidenceEstimator(input_size=32), tmp_path / "float.onnx")
    if library == "onnxruntime":
        call = partial(quantise_onnx, exported, torch.rand(1, 3, 32, 32), tmp_path / "int8.onnx")
    with pytest.raises(ImportError, match=rf"needs {library}: pip install 'infill-aug\[export\]'"):
        call()


def test_the_module_imports_without_the_libraries_of_the_extra():
    code = (
        "import sys\n"
        "import infill_aug.confidence.export\n"
        "print([name for name in ('onnx', 'onnxruntime', 'onnxscript') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
