import dataclasses
import json
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import picture

from infill_aug.confidence import CentreConfidence, ConfidenceEstimator, EstimatorConfidence, MaskConfidence
from infill_aug.demo import confidence as demo_confidence_module
from infill_aug.demo.arms import ARMS, ArmResult, DemoClassifier, DemoDataModule, SmallConvNet, train_arm
from infill_aug.demo.confidence import demo_confidence
from infill_aug.demo.config import DemoConfig, DemoDataConfig, parse_settings
from infill_aug.demo.data import digits_on_photos, image_folder, pets, shifted_folders
from infill_aug.demo.drop import PlantedDrop
from infill_aug.demo.report import table
from infill_aug.demo.run import load_data, run_demo

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),  # Lightning calls a deprecated torch function
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
]


@pytest.fixture(scope="module")
def digits():
    return digits_on_photos(32)


def background_tells(train, test) -> float:
    """Accuracy of naming the class from the background's mean colours alone: nearest neighbour on masked pictures."""

    def colours(split):
        keep = (~split.masks).float()
        images = split.images.float()
        mean = (images * keep).sum((2, 3)) / keep.sum((2, 3))
        square = (images.square() * keep).sum((2, 3)) / keep.sum((2, 3))
        return torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt()], dim=1)

    nearest = torch.cdist(colours(test), colours(train)).argmin(dim=1)
    return float((train.labels[nearest] == test.labels).float().mean())


def test_backgrounds_give_the_digit_away_in_training_and_not_in_the_swapped_test(digits):
    assert background_tells(digits.train, digits.tied) > 0.6
    assert background_tells(digits.train, digits.swapped) < 0.1
    assert background_tells(digits.train, digits_on_photos(32, tie=0.1).tied) < 0.3


def test_splits_share_no_digit_and_the_tests_share_all(digits):
    assert len(digits.train) + len(digits.val) + len(digits.tied) == 1797
    assert torch.equal(digits.tied.labels, digits.swapped.labels)
    assert 0.05 < digits.train.masks.float().mean() < 0.4


def test_the_drawing_follows_its_seed():
    a, b, c = digits_on_photos(32), digits_on_photos(32), digits_on_photos(32, seed=1)
    assert torch.equal(a.train.images, b.train.images)
    assert not torch.equal(a.train.images, c.train.images)


@pytest.mark.slow
def test_the_whole_demo_runs_on_few_pictures_and_writes_what_it_says(tmp_path, capsys):
    config = DemoConfig(
        data=DemoDataConfig(size=32),
        seeds=[0],
        epochs=1,
        variants=1,
        output=str(tmp_path),
        arms=["plain", "infill_aug"],
    )
    results = run_demo(config)
    out = capsys.readouterr().out
    assert "| plain |" in out
    assert "| infill_aug |" in out
    for name in ("grid.png", "curve.png"):
        assert str(tmp_path / name) in out
        assert np.asarray(Image.open(tmp_path / name)).std() > 10
    record = json.loads((tmp_path / "results.json").read_text())
    assert [r["arm"] for r in record["results"]] == ["plain", "infill_aug"]
    assert results[1].threshold is not None
    assert results[0].threshold is None


@pytest.mark.slow
def test_infill_beats_plain_training_on_swapped_backgrounds(tmp_path):
    config = DemoConfig(
        data=DemoDataConfig(size=32),
        seeds=[0],
        epochs=12,
        variants=1,
        output=str(tmp_path),
        arms=["plain", "infill_aug"],
    )
    plain, infill = run_demo(config)
    assert infill.swapped > plain.swapped + 10


@pytest.fixture
def folder(tmp_path):
    """Settings for a folder of pictures without masks."""
    for i in range(40):
        folder = tmp_path / "pictures" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i, 40, 50).permute(1, 2, 0).numpy()).save(folder / f"{i}.jpg")
    settings = ["data=imagefolder", f"data.root={tmp_path / 'pictures'}", "data.size=32", "seeds=[0]", "epochs=1"]
    return [*settings, f"output={tmp_path / 'out'}"]


@pytest.fixture
def own_profile(tmp_path):
    """A profile file with an estimator of its own."""
    ConfidenceEstimator(("mine",), 32).save(tmp_path / "mine.safetensors")
    fields = {"source": "estimator", "weights": "mine.safetensors", "input_size": 32, "falloff": 0.1}
    (tmp_path / "mine.json").write_text(json.dumps(fields), encoding="utf-8")
    return str(tmp_path / "mine.json")


def test_it_runs_on_any_folder_of_pictures_and_leaves_out_the_oracle(folder, own_profile, recwarn, capsys):
    config = parse_settings([*folder, "arms=[oracle,infill_aug]", f"confidence={own_profile}"])
    (result,) = run_demo(config)
    assert result.arm == "infill_aug"
    assert 0 <= result.swapped <= 100
    assert any("no masks" in str(w.message) for w in recwarn)
    out = capsys.readouterr().out
    assert f"confidence: profile {own_profile}" in out
    assert "oracle" not in out


def test_the_oracle_alone_needs_masks(folder):
    with pytest.raises(ValueError, match=r"arms=\[oracle\] needs pictures with masks"):
        run_demo(parse_settings([*folder, "arms=[oracle]"]))


# --- confidence ---


@pytest.fixture(scope="module")
def few():
    return digits_on_photos(32, limit=24)


@pytest.fixture
def without_masks(few):
    return dataclasses.replace(few, train=dataclasses.replace(few.train, masks=None))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(demo_confidence_module, "_STEPS", 40)


def tiny(confidence):
    return DemoConfig(confidence=confidence, masks=12, epochs=1, batch_size=8)


@pytest.mark.parametrize("kind", ["masks", "auto"])
def test_masks_teach_an_estimator_with_as_many_as_it_may_have(kind, few, quick, tmp_path):
    source, line = demo_confidence(tiny(kind), few, tmp_path)
    assert isinstance(source, EstimatorConfidence)
    assert source.falloff == 0.2
    assert "learned from 12 masks" in line
    notes = json.loads((tmp_path / "report.md").read_text(encoding="utf-8").split("```json\n")[1].split("```")[0])
    assert notes["pictures"] + notes["pictures to choose by"] + notes["pictures to measure on"] == 12
    assert notes["steps"] == 40
    assert source.quality["verdict"] in line
    # A digit that it never saw is found by the picture alone.
    inside, outside = [], []
    for i in range(8):
        (confidence,) = source.maps([few.tied.images[i]])
        inside.append(float(confidence[few.tied.masks[i]].mean()))
        outside.append(float(confidence[~few.tied.masks[i]].mean()))
    assert np.mean(inside) > np.mean(outside) + 0.1


def test_where_a_classifier_looks_teaches_an_estimator_without_masks(few, without_masks, quick, tmp_path):
    source, line = demo_confidence(tiny("cam"), few, tmp_path)
    assert isinstance(source, EstimatorConfidence)
    assert "without masks from where a plain classifier looks" in line
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert '"source": "SnappedConfidence"' in report
    assert '"pictures": 19' in report
    # Masks, where there are some, only measure: what is learned is the same without.
    other, _ = demo_confidence(tiny("cam"), without_masks, tmp_path / "other")
    assert torch.equal(source(few.tied.images[0], None), other(few.tied.images[0], None))


def test_the_centre_and_profiles_are_taken_as_they_are(few, without_masks, own_profile, tmp_path):
    assert demo_confidence(tiny("centre"), few, tmp_path / "none") == (CentreConfidence(), "centre prior")
    source, line = demo_confidence(tiny("centre_prior"), few, tmp_path / "none")
    assert (source, line) == (CentreConfidence(0.3), "profile centre_prior")
    source, line = demo_confidence(tiny(own_profile), few, tmp_path / "none")
    assert source.identity()["head"] == "mine"
    assert source.falloff == 0.1
    source, line = demo_confidence(tiny("auto"), without_masks, tmp_path / "none")
    assert (source.estimator.head, line) == ("salient_object", "profile salient_object")
    assert not (tmp_path / "none").exists()


def test_a_confidence_that_cannot_be_had_is_refused_with_what_can(few, without_masks, tmp_path):
    with pytest.raises(ValueError, match=r"'auto', 'masks', 'cam', 'centre'.*profile, got 'zebra'.*'salient_object'"):
        demo_confidence(tiny("zebra"), few, tmp_path)
    with pytest.raises(ValueError, match=r"confidence=masks needs pictures with masks; use confidence=cam"):
        demo_confidence(tiny("masks"), without_masks, tmp_path)
    with pytest.raises(ValueError, match=r"infill-aug profiles train person"):
        demo_confidence(tiny("person"), few, tmp_path)
    (tmp_path / "gone.yaml").write_text("{source: estimator, weights: gone.safetensors}", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*gone\.safetensors"):
        demo_confidence(tiny(str(tmp_path / "gone.yaml")), few, tmp_path)


def test_the_oracle_reads_the_masks_of_all_pictures(few, without_masks):
    assert few.source == MaskConfidence(key="mask")
    assert without_masks.source == CentreConfidence()


def fake_pets(root):
    """Two breeds in the layout of Oxford-IIIT Pet."""
    base = root / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations" / "trimaps").mkdir(parents=True)
    lines = []
    for i in range(20):
        name, breed = f"{'Abyssinian' if i % 2 else 'beagle'}_{i}", 1 + i % 2
        Image.fromarray(picture(i, 40, 48).permute(1, 2, 0).numpy()).save(base / "images" / f"{name}.jpg")
        trimap = np.full((40, 48), 2, np.uint8)
        trimap[10:30, 12:36] = 3
        trimap[12:28, 14:34] = 1
        Image.fromarray(trimap).save(base / "annotations" / "trimaps" / f"{name}.png")
        lines.append(f"{name} {breed} 1 1\n")
    (base / "annotations" / "trainval.txt").write_text("".join(lines[:12]))
    (base / "annotations" / "test.txt").write_text("".join(lines[12:]))


def test_pets_come_with_their_trimaps_and_on_other_backgrounds(tmp_path):
    fake_pets(tmp_path)
    data = load_data(DemoConfig(data=DemoDataConfig("pets", str(tmp_path), 32)))
    assert data.train.masks is not None
    assert torch.equal(data.tied.masks, data.swapped.masks)
    kept = data.tied.masks.expand(-1, 3, -1, -1)
    assert torch.equal(data.swapped.images[kept], data.tied.images[kept])
    assert not torch.equal(data.swapped.images, data.tied.images)


@pytest.fixture
def shifted(tmp_path):
    """Three folders of two classes, dark and light, and masks in the middle."""
    (tmp_path / "masks").mkdir()
    for folder, count in (("train_biased", 20), ("test_aligned", 4), ("test_conflict", 6)):
        for i in range(count):
            path = tmp_path / folder / ("dark", "light")[i % 2] / f"{folder[5:]}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.full((40, 48, 3), 200 * (i % 2), np.uint8)
            image[12:28, 16:32] = 100
            Image.fromarray(image).save(path)
            if folder == "train_biased":
                Image.fromarray((image == 100).all(-1)).save(tmp_path / "masks" / f"{path.stem}.png")
    return tmp_path


def test_shifted_folders_come_with_their_masks_and_both_tests(shifted):
    data = shifted_folders(str(shifted), 32)
    assert (len(data.train), len(data.val), len(data.tied), len(data.swapped)) == (16, 4, 4, 6)
    assert data.classes == ("dark", "light")
    inside = data.train.images.amin(1, keepdim=True)[data.train.masks]
    assert (inside.float() - 100).abs().float().mean() < 15
    assert torch.equal(data.train.images[:, 0, 0, 0] > 100, data.train.labels.bool())
    assert len(shifted_folders(str(shifted), 32, limit=10).train) == 8


def test_what_shifted_folders_lack_is_named(shifted):
    (shifted / "test_conflict" / "dark").rename(shifted / "test_conflict" / "black")
    with pytest.raises(ValueError, match=r"the classes \['dark', 'light'\], but .*'black'"):
        shifted_folders(str(shifted), 32)
    with pytest.raises(FileNotFoundError, match=r"no folder .*train_biased; pass data\.root="):
        shifted_folders(str(shifted / "masks"))


def test_a_planted_drop_forgets_the_last_layers_and_no_others():
    model = SmallConvNet(3)
    before = [parameter.clone() for parameter in model.parameters()]
    PlantedDrop(epoch=0, layers=2).forget(model)
    changed = [not torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True)]
    assert changed[-2:] == [True, True]  # the linear layer; the batch norm before it was still at its start
    assert not any(changed[:-4])
    again = SmallConvNet(3)
    PlantedDrop(epoch=0, layers=2).forget(again)
    assert torch.equal(again[-1].weight, model[-1].weight)  # the same on every rank
    with pytest.raises(ValueError, match="layers must be 1 or more, got 0"):
        PlantedDrop(epoch=0, layers=0)


def test_a_planted_drop_comes_once_in_a_training_and_never_in_a_validation(digits):
    class Counts(PlantedDrop):
        times = 0

        def forget(self, model):
            self.times += 1

    drop = Counts(epoch=1)
    model, data = DemoClassifier(10), DemoDataModule(digits, None, 1100)
    data.train_dataloader = data.val_dataloader
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, val_check_interval=1.0, callbacks=[drop], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=data)
        assert drop.times == 1
        trainer.validate(model, datamodule=data, verbose=False)
    assert drop.times == 1


def test_mistakes_are_named(tmp_path, digits):
    with pytest.raises(ValueError, match=r"tie must lie in 0..1, got 2"):
        digits_on_photos(tie=2)
    with pytest.raises(FileNotFoundError, match="oxford-iiit-pet"):
        pets(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="one sub-folder of pictures a class"):
        image_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"arms must be some of .*'magic'"):
        run_demo(DemoConfig(arms=["magic"]))
    with pytest.raises(ValueError, match="got 'magic'"):
        train_arm("magic", digits, None, seed=0, epochs=1, batch_size=4, start=0.5, target=0.9, p=1)
    with pytest.raises(ValueError, match=r"NAME=VALUE, got \['epochs'\]"):
        parse_settings(["epochs"])


def test_an_unreadable_picture_is_named(tmp_path):
    for i in range(20):
        folder = tmp_path / f"class{i % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "class0" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read the picture .*0\.png"):
        image_folder(str(tmp_path))


def test_the_table_gives_mean_and_deviation():
    results = [ArmResult("plain", s, 90.0 + s, 10.0, None, 3.0, []) for s in (0, 2)]
    results.append(ArmResult("infill_aug", 0, 91.0, 50.0, 0.9, 4.0, []))
    lines = table(results).splitlines()
    assert lines[2] == "| plain | 91.0 ± 1.4 | 10.0 ± 0.0 | - | 3 |"
    assert lines[3] == "| infill_aug | 91.0 | 50.0 | 0.90 | 4 |"
    assert set(ARMS) >= {"plain", "infill_aug"}
