import json

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from infill_aug.cli import main
from infill_aug.smart_mask.overlay import save_lossless

HEIGHT, WIDTH = 120, 160
LEFT, TOP, RIGHT, BOTTOM = BOX = (60, 40, 110, 90)


def photo(seed, height=HEIGHT, width=WIDTH):
    """Smooth shapes with a little grain."""
    generator = torch.Generator().manual_seed(seed)
    shapes = nnf.interpolate(torch.rand(1, 3, 8, 10, generator=generator), (height, width), mode="bicubic")[0]
    grain = torch.randn(3, height, width, generator=generator) * 0.01
    return ((shapes * 0.6 + 0.2 + grain).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()


def edit(array, box=BOX):
    """The same with other colours in a box, each half of the range away."""
    left, top, right, bottom = box
    edited = array.copy()
    edited[top:bottom, left:right] += 128  # 200 becomes 72
    return edited


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def load(path):
    with Image.open(path) as file:
        return np.array(file)


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = main(["smart-mask", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def pair(tmp_path):
    """An original and its edited copy, both without loss."""
    return save(tmp_path / "in" / "cat.png", photo(0)), save(tmp_path / "out" / "cat_edit.png", edit(photo(0)))


@pytest.fixture
def folders(tmp_path):
    """Three pairs whose suffixes differ; in each folder one picture without a counterpart, and what is no picture."""
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", photo(i))
        save(tmp_path / "out" / f"{i}.tif", edit(photo(i)))
    save(tmp_path / "in" / "lonely.png", photo(7))
    save(tmp_path / "out" / "stranger.png", photo(8))
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    (tmp_path / "out" / "0.json").write_text("{}")
    return tmp_path / "in", tmp_path / "out"


def far(box=BOX, reach=12):
    """What lies well off the edit."""
    left, top, right, bottom = box
    away = np.ones((HEIGHT, WIDTH), bool)
    away[max(0, top - reach) : bottom + reach, max(0, left - reach) : right + reach] = False
    return away


def check(composite, original, edited, box=BOX):
    """Kept pixels are the original's, and the inside of the edit is the edited picture's."""
    left, top, right, bottom = box
    assert composite.dtype == original.dtype
    assert (composite == original)[far(box)].all()
    inner = slice(top + 8, bottom - 8), slice(left + 8, right - 8)
    assert (composite == edited)[inner].mean() > 0.95


# --- a pair ---


def test_a_pair_is_written_beside_the_edited_picture_and_told_in_a_line(run, pair):
    status, out, err = run(*pair)
    assert status == 0
    path = pair[1].with_name("cat_edit_smart.png")
    check(load(path), photo(0), edit(photo(0)))
    assert out.startswith(f"{path}: ")
    assert "% taken in 1 region, confidence " in out
    assert (out.count("\n"), err) == (1, "")
    assert sorted(each.name for each in path.parent.iterdir()) == ["cat_edit.png", "cat_edit_smart.png"]


def test_mask_and_overlay_are_written_where_they_are_asked_for(run, pair, tmp_path):
    names = [tmp_path / "new" / name for name in ("smart.png", "mask.png", "overlay.jpg")]
    assert run(*pair, "-o", names[0], "--mask", names[1], "--overlay", names[2])[0] == 0
    composite, mask = load(names[0]), load(names[1])
    assert mask.dtype == np.uint8
    assert mask.shape == (HEIGHT, WIDTH)
    assert mask[TOP + 8 : BOTTOM - 8, LEFT + 8 : RIGHT - 8].mean() > 240
    assert (composite == photo(0))[mask == 0].all()
    assert (composite == edit(photo(0)))[mask == 255].all()
    assert load(names[2]).shape[1] > 2 * WIDTH


def test_a_folder_as_output_of_a_pair_gets_the_names_of_the_picture(run, pair, tmp_path):
    (tmp_path / "new").mkdir()
    assert run(*pair, "-o", tmp_path / "new", "--mask", tmp_path / "new", "--overlay", tmp_path / "new")[0] == 0
    found = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert found == ["cat_edit_mask.png", "cat_edit_overlay.png", "cat_edit_smart.png"]


def test_json_is_json_and_nothing_else(run, pair, tmp_path):
    status, out, err = run(*pair, "--json", "--mask", tmp_path / "mask.png")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert (found["original"], found["edited"]) == (str(pair[0]), str(pair[1]))
    assert found["output"] == str(pair[1].with_name("cat_edit_smart.png"))
    assert found["mask"] == str(tmp_path / "mask.png")
    assert (found["width"], found["height"]) == (WIDTH, HEIGHT)
    assert 0 < found["confidence"] <= 1
    assert found["share"] == pytest.approx(load(tmp_path / "mask.png").mean() / 255, abs=0.01)
    taken = [region for region in found["regions"] if region["taken"]]
    assert np.abs(np.array(taken[0]["box"]) - BOX).max() <= 8
    assert found["seconds"] > 0
    assert {"threshold", "unit", "gain", "offset", "shift", "note"} <= set(found)


def test_identical_pictures_give_the_original_and_valid_json(run, pair):
    status, out, _ = run(pair[0], save(pair[1], photo(0)), "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert status == 0
    assert found["share"] == 0
    assert found["note"]
    assert (load(found["output"]) == photo(0)).all()


def test_jpeg_is_warned_of(run, pair, tmp_path):
    status, _, err = run(*pair, "-o", tmp_path / "a.jpg")
    assert status == 0
    assert "JPEG changes every pixel" in err
    assert np.abs(load(tmp_path / "a.jpg").astype(int) - photo(0))[far()].mean() < 5


def test_an_earlier_output_is_overwritten(run, pair, tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    assert run(*pair, "-o", tmp_path / "a.png")[0] == 0
    check(load(tmp_path / "a.png"), photo(0), edit(photo(0)))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("option", ["--output", "--mask", "--overlay"])
def test_inputs_are_never_overwritten(which, option, run, pair):
    before = pair[which].read_bytes()
    status, out, err = run(*pair, option, pair[which])
    assert (status, out) == (1, "")
    assert "is read by this command and is not overwritten" in err
    assert pair[which].read_bytes() == before
    assert not pair[1].with_name("cat_edit_smart.png").exists()


def test_a_mask_that_is_read_is_not_overwritten_either(run, pair, tmp_path):
    hint = save(tmp_path / "hint.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    assert run(*pair, "--hint", hint, "--mask", hint)[0] == 1
    assert (load(hint) == 255).all()


# --- what stays, and what was meant ---


def test_a_protected_box_stays_the_originals(run, pair):
    box = (LEFT, TOP, LEFT + 20, BOTTOM)
    assert run(*pair, "--protect", ",".join(map(str, box)))[0] == 0
    composite = load(pair[1].with_name("cat_edit_smart.png"))
    assert (composite == photo(0))[TOP:BOTTOM, LEFT : LEFT + 20].all()
    assert (composite == edit(photo(0)))[TOP + 8 : BOTTOM - 8, LEFT + 28 : RIGHT - 8].mean() > 0.9


def test_masks_and_boxes_protect_together(run, pair, tmp_path):
    masks = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    masks[0, TOP : TOP + 12], masks[1, :, RIGHT - 12 : RIGHT] = 255, 255
    names = [save(tmp_path / f"mask{i}.png", masks[i]) for i in range(2)]
    path = pair[1].with_name("cat_edit_smart.png")
    stays = masks[0] > 0
    assert run(*pair, "--protect", names[0])[0] == 0
    assert (load(path) == photo(0))[stays].all()
    box = (LEFT, BOTTOM - 16, RIGHT - 20, BOTTOM - 4)
    command = (*pair, "--protect", names[0], "--protect", ",".join(map(str, box)), "--protect", names[1])
    assert run(*command)[0] == 0
    stays = stays | (masks[1] > 0)
    stays[box[1] : box[3], box[0] : box[2]] = True
    assert (load(path) == photo(0))[stays].all()
    assert (load(path) == edit(photo(0)))[TOP + 20 : BOTTOM - 20, LEFT + 8 : RIGHT - 20].mean() > 0.9
    small = save(tmp_path / "small.png", masks[0, ::2, ::2])
    status, _, err = run(*pair, "--protect", names[0], "--protect", small)
    assert status == 1
    assert "masks to protect by must have one size" in err


def test_a_hint_says_which_of_two_changes_was_meant(run, tmp_path):
    other = (10, 10, 40, 34)
    both = save(tmp_path / "b" / "a.png", edit(edit(photo(0)), other))
    original = save(tmp_path / "a" / "a.png", photo(0))
    hint = np.zeros((HEIGHT, WIDTH), np.uint8)
    hint[TOP - 4 : BOTTOM + 4, LEFT - 4 : RIGHT + 4] = 255
    assert run(original, both, "--hint", save(tmp_path / "hint.png", hint))[0] == 0
    check(load(tmp_path / "b" / "a_smart.png"), photo(0), edit(photo(0)))


def test_faces_stay_the_originals(run, tmp_path):
    pytest.importorskip("cv2")
    pytest.importorskip("onnx")
    from test_smart_mask_faces import save_model, with_face

    model = save_model(tmp_path / "yunet.onnx", 640, 640)
    face = with_face(320, 320, 80, 112).permute(1, 2, 0).numpy()
    edited = face.copy()
    edited[100:240, 60:260] = np.array((40, 90, 200))
    pair = save(tmp_path / "a.png", face), save(tmp_path / "b.png", edited)
    assert run(*pair, "--faces", model)[0] == 0
    composite = load(tmp_path / "b_smart.png")
    assert (composite == face)[86:183, 67:157].all()
    assert (composite == edited)[190:230, 70:250].mean() > 0.9


# --- folders ---


def test_folders_are_paired_by_name_and_what_is_left_over_is_named(run, folders):
    status, out, err = run(*folders)
    assert status == 0
    for i in range(3):
        check(load(folders[1] / f"{i}_smart.png"), photo(i), edit(photo(i)))
    assert out.count("\n") == 3
    assert f"no edited picture for {folders[0] / 'lonely.png'}" in err
    assert f"no original for {folders[1] / 'stranger.png'}" in err
    assert "notes" not in err
    assert "3/3" in err  # the progress bar


def test_a_second_run_does_not_take_the_first_ones_pictures_for_edits(run, folders):
    command = (*folders, "--mask", folders[1], "--overlay", folders[1])
    run(*command)
    names = sorted(path.name for path in folders[1].iterdir())
    status, _, err = run(*command)
    assert status == 0
    assert "_smart" not in err
    assert sorted(path.name for path in folders[1].iterdir()) == names


def test_folders_of_outputs_are_made_and_json_is_a_list(run, folders, tmp_path):
    status, out, _ = run(
        *folders, "-o", tmp_path / "x" / "y", "--mask", tmp_path / "m", "--overlay", tmp_path / "z", "--json"
    )
    found = json.loads(out)
    assert status == 0
    assert [record["output"] for record in found] == [str(tmp_path / "x" / "y" / f"{i}_smart.png") for i in range(3)]
    for i, record in enumerate(found):
        assert load(record["mask"]).shape == (HEIGHT, WIDTH)
        assert record["overlay"] == str(tmp_path / "z" / f"{i}_overlay.png")
        assert (tmp_path / "z" / f"{i}_overlay.png").is_file()
    assert not (folders[1] / "0_smart.png").exists()


def test_bad_pairs_are_named_and_the_others_done(run, folders):
    (folders[1] / "0.tif").write_bytes(b"not a picture")
    save(folders[0] / "1.png", photo(1)[:50])
    status, out, err = run(*folders)
    assert status == 1
    assert f"{folders[1] / '0.tif'}: cannot identify image file" in err
    assert f"{folders[1] / '1.tif'}: the original is 160 x 50 pixels and the edited picture 160 x 120" in err
    check(load(folders[1] / "2_smart.png"), photo(2), edit(photo(2)))
    assert out.count("\n") == 1
    status, out, _ = run(*folders, "--json")
    assert status == 1
    assert ["error" in record for record in json.loads(out)] == [True, True, False]


def test_of_two_pictures_of_one_name_none_is_guessed(run, folders):
    save(folders[1] / "0.png", photo(3))
    status, _, err = run(*folders)
    assert status == 1
    assert f"more than one picture '0': {folders[0] / '0.png'}, {folders[1] / '0.png'}, {folders[1] / '0.tif'}" in err
    assert not (folders[1] / "0_smart.png").exists()
    assert (folders[1] / "1_smart.png").exists()


def test_a_folder_of_masks_has_one_for_each(run, folders, tmp_path):
    for i in range(2):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[:, : LEFT + 10 * (i + 1)] = 255
        save(tmp_path / "masks" / f"{i}.png", mask)
    status, _, err = run(*folders, "--protect", tmp_path / "masks")
    assert status == 1
    assert f"2.tif: there must be one mask '2' in '{tmp_path / 'masks'}', there are 0" in err
    for i in range(2):
        composite = load(folders[1] / f"{i}_smart.png")
        assert (composite == photo(i))[:, : LEFT + 10 * (i + 1)].all()
        assert (composite == edit(photo(i)))[TOP + 8 : BOTTOM - 8, LEFT + 28 : RIGHT - 8].mean() > 0.9


def test_unsure_pairs_are_not_written_and_fail(run, folders):
    save(folders[1] / "0.tif", photo(0))  # unchanged: nothing to be sure of, or all
    found = json.loads(run(*folders, "--json")[1])
    for path in folders[1].glob("*_smart.png"):
        path.unlink()
    least = max(record["confidence"] for record in found)
    unsure = [i for i, record in enumerate(found) if record["confidence"] < least]
    status, out, err = run(*folders, "--min-confidence", least, "--json")
    assert status == (1 if unsure else 0)
    for i, record in enumerate(json.loads(out)):
        assert (folders[1] / f"{i}_smart.png").exists() == (i not in unsure)
        assert ("error" in record) == (i in unsure)
        assert record["confidence"] == pytest.approx(found[i]["confidence"])
    assert err.count("nothing was written") == len(unsure)


# --- kinds of pictures ---


def test_cmyk_becomes_tiff_bit_for_bit(run, tmp_path):
    random = np.random.default_rng(0)
    ink = np.concatenate([photo(0), random.integers(0, 60, (HEIGHT, WIDTH, 1), dtype=np.uint8)], axis=2)
    original = Image.fromarray(ink, "CMYK")
    original.save(tmp_path / "a.tif")
    save(tmp_path / "b.png", edit(np.array(original.convert("RGB"))))
    status, out, err = run(tmp_path / "a.tif", tmp_path / "b.png")
    assert status == 0
    assert "b_smart.tif: " in out
    assert f"written is {tmp_path / 'b_smart.tif'}" in err
    with Image.open(tmp_path / "b_smart.tif") as file:
        assert file.mode == "CMYK"
        assert (np.array(file) == ink)[far()].all()


def test_cmyk_as_tiff_does_not_overwrite_an_input_either(run, tmp_path):
    Image.new("CMYK", (WIDTH, HEIGHT)).save(tmp_path / "a.tif")
    before = (tmp_path / "a.tif").read_bytes()
    save(tmp_path / "b.png", photo(0))
    status, _, err = run(tmp_path / "a.tif", tmp_path / "b.png", "-o", tmp_path / "a.png")
    assert status == 1
    assert "a.tif' is read by this command" in err
    assert (tmp_path / "a.tif").read_bytes() == before


def test_16_bits_stay_16_bits(run, tmp_path):
    deep = photo(0).astype(np.uint16) * 256 + np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint16)
    save_lossless(deep, tmp_path / "a.png")
    save(tmp_path / "b.jpg", edit(photo(0)), quality=95)
    assert run(tmp_path / "a.png", tmp_path / "b.jpg", "--overlay", tmp_path / "look.png")[0] == 0
    back = decode_image(str(tmp_path / "b_smart.png"), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    assert back.dtype == np.uint16
    assert (back == deep)[far()].all()
    grey = save(tmp_path / "grey.png", deep[..., 0])
    assert run(grey, save(tmp_path / "grey_edit.png", edit(photo(0)[..., 0])))[0] == 0
    back = load(tmp_path / "grey_edit_smart.png")
    assert back.dtype == np.uint16
    assert (back == deep[..., 0])[far()].all()


def test_pictures_are_upright_and_keep_their_profile(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    exif[0x010E] = "a cat"
    save(tmp_path / "a.png", np.rot90(photo(0)).copy(), exif=exif)
    save(tmp_path / "b.png", edit(photo(0)))
    assert run(tmp_path / "a.png", tmp_path / "b.png")[0] == 0
    check(load(tmp_path / "b_smart.png"), photo(0), edit(photo(0)))
    with Image.open(tmp_path / "b_smart.png") as file:
        assert file.getexif().get(0x0112, 1) == 1
        assert file.getexif()[0x010E] == "a cat"


def test_another_size_is_an_error_that_resize_allows(run, tmp_path):
    original = save(tmp_path / "a.png", photo(0))
    edited = save(tmp_path / "b.png", np.array(Image.fromarray(edit(photo(0))).resize((2 * WIDTH, 2 * HEIGHT))))
    status, _, err = run(original, edited)
    assert status == 1
    assert "160 x 120" in err
    assert "320 x 240" in err
    assert run(original, edited, "--resize")[0] == 0
    assert (load(tmp_path / "b_smart.png") == photo(0))[far()].all()


def test_the_baseline_and_a_number_of_regions_can_be_asked_for(run, pair):
    status, out, _ = run(*pair, "--preset", "difference", "--json")
    assert status == 0
    assert json.loads(out)["share"] > 0
    status, out, _ = run(*pair, "--regions", 1, "--json")
    assert status == 0
    assert sum(region["taken"] for region in json.loads(out)["regions"]) == 1


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "out/cat_edit.png"], "no file or folder 'nowhere.png'"),
        (["in/cat.png", "out"], "pass two files or two folders"),
        (["in", "in"], "originals and edited pictures must lie in two folders"),
        (["in", "out"], "no picture of 'in' has a namesake in 'out'"),
        (["in/cat.png", "out/cat_edit.png", "-o", "a.gif"], "must end in .png .tif .tiff .jpg .jpeg, got 'a.gif'"),
        (["in/cat.png", "out/cat_edit.png", "--mask", "a.jpg"], "the mask picture must end in .png, got 'a.jpg'"),
        (["in/cat.png", "out/cat_edit.png", "-o", "a.png", "--mask", "a.png"], "needs a file of its own"),
        (["in/cat.png", "out/cat_edit.png", "--faces", "nowhere.onnx"], "no face model 'nowhere.onnx': download"),
        (["in/cat.png", "out/cat_edit.png", "--hint", "nowhere.png"], "nowhere.png"),
        (["in/cat.png", "out/cat_edit.png", "--min-confidence", "50"], "--min-confidence must lie in 0..1, got 50.0"),
        (["in/cat.png", "out/cat_edit.png", "--regions", "0"], "regions must be"),
    ],
)
def test_mistakes_are_clear_and_a_failing_exit(arguments, message, run, pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("option", [("--protect", "9,9,5,20"), ("--regions", "many"), ("--preset", "best")])
def test_unusable_arguments_exit_with_2(option, run, pair, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*pair, *option)
    assert stop.value.code == 2
    assert option[1] in capsys.readouterr().err
