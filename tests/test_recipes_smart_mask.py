import re
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from tests_support import run_recipe as launch


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six pictures of a disc on a slope of colours, with the masks of the discs, as ECSSD lays them out."""
    folder = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[:48, :64]
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(6):
        random = np.random.default_rng(i)
        inside = np.hypot(y - 24, x - 20 - 4 * i) < 10
        slope = 60 + 90 * np.stack([x / 64, y / 48, 1 - x / 64], axis=-1) + random.normal(0, 4, (48, 64, 3))
        picture = np.where(inside[..., None], random.uniform(40, 200, 3), slope)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i}.jpg", quality=95)
        Image.fromarray(inside).save(folder / "masks" / f"{i}.png")
    return folder


def measured(folder, data, *arguments):
    """The tables that the recipe prints: rows of cells, by the first cell without a number that it may have."""
    output, found = launch("bench_smart_mask.py", "--data", str(data), "--cases", "1", *arguments, folder=folder), {}
    for block in re.findall(r"(?:^\|.*\n)+", output, flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found[re.sub(r" \(.*", "", head[0])] = [head, *rows]
    return found


@pytest.fixture(scope="module")
def tables(pictures, tmp_path_factory):
    return measured(tmp_path_factory.mktemp("run"), pictures)


def test_both_arms_are_measured_by_edit_and_side_effect_and_the_default_beats_the_known_method(tables):
    for arm in ("difference", "default"):
        head, *rows = tables[f"{arm}: success % / IoU"]
        assert head[1:] == ["decoder", "drift", "jpeg", "distractors", "shift", "all five", "all"]
        assert [row[0] for row in rows] == ["recolour", "retexture", "relight", "replace", "all"]
        for row in rows:
            assert all(re.fullmatch(r"\d+ / [01]\.\d{3}", cell) for cell in row[1:])
    _, known, default = tables["arm"]
    assert known[:2] + default[:2] == ["difference", "24", "default", "24"]
    share, low, high = map(float, re.findall(r"[\d.]+", default[2]))
    assert low < share < high
    assert share > float(known[2].split()[0])
    assert float(default[3]) > float(known[3])


def test_every_case_is_in_one_bin_of_confidence_and_as_sure_as_the_least_sure(tables):
    head, *bins = tables["confidence"]
    assert re.fullmatch(r"confidence \(AUC [01]\.\d{3}\)", head[0])
    assert sum(int(row[1]) for row in bins) == 24
    assert float(bins[0][3]) == 100
    assert bins[0][4] == tables["arm"][2][2].split()[0]


def test_a_zip_in_the_layout_of_oxford_pets_gives_what_a_folder_in_that_of_ecssd_gives(pictures, tables, tmp_path):
    pets = tmp_path / "data" / "oxford-iiit-pet"
    shutil.copytree(pictures / "images", pets / "images")
    (pets / "annotations" / "trimaps").mkdir(parents=True)
    for path in (pictures / "masks").iterdir():
        inside = np.asarray(Image.open(path))
        trimap = np.where(inside, 1, 2).astype(np.uint8)
        trimap[:, 1:][inside[:, 1:] & ~inside[:, :-1]] = 3  # what is unsure is edited too
        Image.fromarray(trimap).save(pets / "annotations" / "trimaps" / path.name)
    data = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "data")
    assert measured(tmp_path, data) == tables


def test_the_curve_has_a_row_for_each_strength_and_the_test_split_other_pictures(pictures, tmp_path):
    for path in pictures.rglob("*.*"):  # with the pictures of the other split unreadable
        target = tmp_path / path.relative_to(pictures)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes() if int(path.stem) % 2 else b"no picture")
    found = measured(tmp_path, tmp_path, "--split", "test", "--curve", "curve.png", "--jobs", "2")
    _, *rows = found["default: success % / IoU"]
    assert [row[0] for row in rows] == ["0", "0.5", "1", "1.5", "2", "3", "4", "all"]
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.size == (900, 360)


def test_time_and_memory_are_printed_for_every_arm(tmp_path):
    output = launch("bench_smart_mask_time.py", "--size", "96", "128", "--rounds", "1", folder=tmp_path)
    assert "1 pairs, the first (3, 96, 128)" in output
    rows = re.findall(r"^\| (.+?) \| [\d.]+ \([\d.]+\) \| ([\d.]+) x \| (-?\d+) \| (\d+) \|$", output, re.MULTILINE)
    assert len(rows) == 4
    assert rows[0][1] == "1.0"
    assert all(int(whole) > int(more) for _, _, more, whole in rows)
