import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import infill_aug

PACKAGE = Path(infill_aug.__file__).parent
HEAVY = ("diffusers", "transformers", "lightning", "hydra", "gradio", "ray", "openai", "cv2", "matplotlib", "sklearn")
HEAVY += ("accelerate", "huggingface_hub", "onnx", "onnxruntime", "peft", "requests", "scipy")

# Each block may import from itself and from the blocks above it.
ORDER = [
    ["key", "types", "samples", "checkpoint", "checks"],
    ["descriptor", "profile"],
    ["functional"],
    ["smart_mask"],
    ["threshold"],
    ["control"],
    ["confidence", "dynamic_mask"],
    ["infill"],
    ["cache"],
    ["variation"],
    ["process", "datasets", "transforms", "batch", "prefetch", "probe", "keep_tokens"],
    ["lit", "huggingface"],
    ["config", "demo"],
    ["cli", "cli_profiles", "cli_smart_mask"],
]
RANK = {name: rank for rank, block in enumerate(ORDER) for name in block}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_no_library_at_all():
    assert loaded_by("import infill_aug") & {*HEAVY, "torch", "torchvision", "kornia", "numpy"} == set()


@pytest.mark.parametrize("module", ["datasets", "transforms", "batch", "prefetch", "cache.build", "process"])
def test_what_workers_import_loads_torch_and_torchvision_only(module):
    assert loaded_by(f"import infill_aug.{module}") & {*HEAVY, "kornia"} == set()


def test_every_public_name_is_there_and_listed_for_type_checkers():
    for name in infill_aug.__all__:
        assert getattr(infill_aug, name) is not None
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("infill_aug")
        for alias in node.names
    }
    assert typed == set(infill_aug._CONTENTS)
    assert set(dir(infill_aug)) == set(infill_aug.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Magic'"):
        infill_aug.Magic


def imports_of(path: Path) -> set[str]:
    """First parts of the package's own modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("infill_aug.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_block_imports_only_blocks_above_it(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no place in the order yet"
    below = {name for name in imports_of(path) if RANK[name] > RANK[own]}
    assert below == set(), f"{path.name} imports {below}, which lie below it"
