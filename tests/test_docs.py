import re
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from hydra.utils import instantiate
from nbclient import NotebookClient

import infill_aug as ia
from infill_aug.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# A kernel that is killed in the middle of a run leaves sockets behind; that is jupyter's matter.
NOTEBOOK_NOISE = pytest.mark.filterwarnings("ignore:.*")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_python_of_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["image"].shape == (3, 56, 56)
    assert set(names["batch"]) == {"image", "mask", "target"}
    assert names["result"].mask.any()
    assert "16 images: 96 infills generated" in capsys.readouterr().out


def test_the_python_and_the_yaml_of_the_variation_page_run():
    page, names = ROOT / "docs" / "variation.md", {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    infill, mask = torch.rand(4, 3, 16, 16), torch.ones(4, 1, 16, 16)
    assert names["chain"](infill).shape == infill.shape
    (text,) = blocks(page, "yaml")
    variation = instantiate({"_target_": "infill_aug.Variation", **yaml.safe_load(text)["variation"]})
    assert variation.style is None
    assert [each.name for each in variation.texture.operations] == ["blur", "RandomMotionBlur", "JPEG"]
    assert variation(infill, mask).shape == infill.shape


def test_the_python_of_the_smart_mask_page_runs():
    page, names = ROOT / "docs" / "smart_mask.md", {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    assert names["result"].confidence > 0.9


def test_the_python_of_the_feedback_page_runs():
    page, names = ROOT / "docs" / "feedback.md", {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    assert names["decision"].threshold == names["state"].threshold
    assert names["logits"].shape == (2, 3)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} points at {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text()
    for name in re.findall(r"`((?:recipes|configs|docs|infill_aug|tests)/[\w./]*\w)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
    for command in re.findall(r"python (recipes/\w+\.py)", text):
        assert (ROOT / command).exists(), f"{page.name} runs {command}"


def test_every_name_of_the_architecture_page_is_public():
    (names,) = [block for block in blocks(ROOT / "docs" / "architecture.md", "python") if "import infill_aug" in block]
    for name in set(re.findall(r"ia\.(\w+)", names)):
        assert hasattr(ia, name), f"docs/architecture.md promises ia.{name}"


def test_every_command_that_the_docs_name_exists(capsys):
    for page in PAGES:
        there = re.sub(r"\*Planned\*:.*?\n\n", "", page.read_text(), flags=re.DOTALL)
        for command in re.findall(r"infill-aug (\w[\w-]*)", there):
            with pytest.raises(SystemExit) as stop:
                main([command, "--help"])
            assert stop.value.code == 0, f"{page.name} names infill-aug {command}"
    capsys.readouterr()


def test_make_targets_named_in_the_docs_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in re.findall(r"^make ([a-z ]+)", block, flags=re.MULTILINE):
                assert set(line.split()) <= targets


@pytest.mark.slow
@NOTEBOOK_NOISE
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_runs_and_is_committed_without_outputs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code")
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
