import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tests_support import picture

from infill_aug import __version__
from infill_aug.cli import main

# The default profile wants trained weights; these pictures are noise.
BUILD = ("build", "--profile", "centre_prior", "--data")


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    for i in range(6):
        (root / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i, 32, 32).permute(1, 2, 0).numpy()).save(root / f"class{i % 2}" / f"{i}.png")
    return root


def run(*arguments, capsys):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_build_inspect_verify_and_prune_go_together(pictures, tmp_path, capsys):
    store = tmp_path / "store"
    status, out, _ = run(*BUILD, pictures, "--store", store, "--backend", "noise", capsys=capsys)
    assert status == 0
    assert "6 images: 18 infills generated, 0 already there, 0 failures" in out
    status, out, _ = run(*BUILD, pictures, "--store", store, "--backend", "noise", capsys=capsys)
    assert "0 infills generated, 18 already there" in out
    status, out, _ = run("inspect", store, "--picture", tmp_path / "sheet.png", capsys=capsys)
    assert status == 0
    assert "backend noise" in out
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10
    sheet = tmp_path / "variations.png"
    status, out, _ = run("inspect", store, "--picture", sheet, "--variations", "night", "blur", capsys=capsys)
    assert status == 0
    assert "night, blur in" in out
    assert np.asarray(Image.open(sheet)).shape == (2 * 131, 130 + 7 * 131, 3)
    status, _, error = run("inspect", store, "--variations", "night", capsys=capsys)
    assert status != 0
    assert "--picture FILE" in error
    assert run("verify", store, capsys=capsys)[0] == 0
    run(*BUILD, pictures, "--store", store, "--backend", "push_pull", capsys=capsys)
    status, out, _ = run("prune", store, capsys=capsys)
    assert "nothing was dropped" in out
    status, out, _ = run("prune", store, "--yes", capsys=capsys)
    assert status == 0
    assert "dropped=24" in out  # 18 infills and 6 entries of the old recipe; the maps are shared


def test_what_the_gate_rejects_and_the_fallback_fills_is_said_by_build_and_inspect(pictures, tmp_path, capsys):
    store = tmp_path / "store"
    command = (*BUILD, pictures, "--store", store, "--backend", "test_cache_build:OftenBlack")
    status, out, _ = run(*command, "--gate", "--retries", 0, "--fallback", "push_pull", capsys=capsys)
    assert status == 0
    black, filled = re.search(r"fills rejected: (\d+) black \(samples [\d, ]+\); (\d+) by the fallback", out).groups()
    assert black == filled
    status, out, _ = run("inspect", store, capsys=capsys)
    assert f"fills rejected: {black} black; up to 0 retries; {filled} infills by the fallback push_pull" in out
    assert "0 failures recorded" in out
    status, _, err = run(*command, "--gate", "--retries", 0, capsys=capsys)
    assert status == 1
    assert "rejected 1 times, at last black" in err
    status, out, _ = run(*command, "--no-gate", capsys=capsys)
    assert status == 0
    assert "rejected" not in out


def test_the_backend_of_the_descriptor_is_taken_unless_another_is_named(pictures, tmp_path, capsys):
    descriptor = json.dumps({"task": "t", "object": "o", "backend": "noise"})
    command = (*BUILD, pictures, "--descriptor", descriptor, "--store")
    run(*command, tmp_path / "its", capsys=capsys)
    run(*command, tmp_path / "mine", "--backend", "push_pull", capsys=capsys)
    assert "backend noise" in run("inspect", tmp_path / "its", capsys=capsys)[1]
    assert "backend push_pull" in run("inspect", tmp_path / "mine", capsys=capsys)[1]


def test_a_damaged_store_fails_verification(pictures, tmp_path, capsys):
    store = tmp_path / "store"
    run(*BUILD, pictures, "--store", store, capsys=capsys)
    shard = next((store / "shards").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[600] ^= 255
    shard.write_bytes(content)
    assert run("verify", store, capsys=capsys)[0] == 1


def test_a_dry_run_prints_an_estimate_and_stores_nothing(pictures, tmp_path, capsys):
    status, out, _ = run(*BUILD, pictures, "--store", tmp_path / "s", "--dry-run", capsys=capsys)
    assert status == 0
    assert "6 images, 18 infills: about" in out
    assert list((tmp_path / "s" / "shards").glob("*.tar")) == []


def test_a_failure_in_the_build_is_a_failing_exit(pictures, tmp_path, capsys):
    (pictures / "class0" / "0.png").write_bytes(b"not a picture")
    status, out, err = run(*BUILD, pictures, "--store", tmp_path / "s", capsys=capsys)
    assert status == 1
    assert "15 infills generated" in out
    assert "sample 0" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--data", "/nowhere", "--store", "s"], "'/nowhere' is neither a folder nor a dataset"),
        (["inspect", "/nowhere"], "/nowhere"),
        (["verify", "/nowhere"], "/nowhere"),
        (["demo", "epoch=3"], "Key 'epoch' not in 'DemoConfig'"),
        (["demo", "epochs=many"], "'many'"),
        (["demo", "data=zebras"], "data must be one of ('digits', 'pets', 'imagefolder'), got 'zebras'"),
        (["demo", "data=imagefolder", "data.root=/nowhere"], "no folder '/nowhere'"),
        (["demo", "data=pets", "data.root=/nowhere"], "no folder oxford-iiit-pet in '/nowhere'"),
    ],
)
def test_mistakes_are_one_clear_line_and_a_failing_exit(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*arguments, capsys=capsys)
    assert status == 1
    assert message in err
    assert err.count("\n") == 1


def test_without_a_command_it_prints_help(capsys):
    assert main([]) == 2
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["demo", "build", "inspect", "verify", "prune", "profiles", "smart-mask", "doctor"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_the_doctor_lists_what_is_installed(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["infill_aug"] == __version__
    assert found["torch"]
    assert {"diffusers", "accelerate", "peft", "openai", "huggingface_hub", "requests", "transformers"} <= set(found)


def test_the_command_is_installed():
    done = subprocess.run([sys.executable, "-m", "infill_aug.cli", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"infill-aug {__version__}"
