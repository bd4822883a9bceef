import shutil

import pytest
import torch
import transformers as hf
from tiny_networks import tiny_vitmae

from infill_aug.checkpoint import Checkpoint, file_digest, frozen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vitmae(tmp_path_factory.mktemp("checkpoint") / "model")


def identity(folder):
    return Checkpoint(str(folder)).identity


def test_a_hub_name_is_identified_by_name_and_revision_without_a_network():
    assert Checkpoint("some/model").identity == {"checkpoint": "some/model", "revision": None}
    assert Checkpoint("some/model", "abc").identity == {"checkpoint": "some/model", "revision": "abc"}


def test_a_folder_is_identified_by_its_files_wherever_it_lies_and_whatever_revision_is_asked_for(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert identity(folder) == identity(tmp_path / "copy") == Checkpoint(folder, "abc").identity
    assert len(identity(folder)["checkpoint"]) == 32
    assert identity(folder)["revision"] is None


def test_other_weights_in_the_same_folder_are_another_checkpoint(tmp_path):
    before = identity(tiny_vitmae(tmp_path))
    assert identity(tiny_vitmae(tmp_path, seed=1)) != before
    assert identity(tiny_vitmae(tmp_path)) == before


def test_files_in_folders_below_count_by_place_and_content(tmp_path):
    (tmp_path / "unet").mkdir()
    seen = [identity(tmp_path)]
    for name, text in (("unet/config.json", "a"), ("unet/config.json", "b"), ("config.json", "b")):
        (tmp_path / name).write_text(text)
        seen.append(identity(tmp_path))
    (tmp_path / "config.json").rename(tmp_path / "unet" / "other.json")
    seen.append(identity(tmp_path))
    assert len({each["checkpoint"] for each in seen}) == len(seen)


def test_files_that_no_result_depends_on_do_not_count(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a card")
    (tmp_path / "copy" / "figure.png").write_bytes(b"a figure")
    assert identity(tmp_path / "copy") == identity(folder)


def test_a_digest_of_a_file_changes_with_its_content_only(tmp_path):
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_digest(tmp_path / name) for name in "abc")
    assert a == b != c
    assert len(a) == 32


def test_a_model_comes_frozen_in_float32_even_in_inference_mode(folder, tmp_path):
    hf.ViTMAEForPreTraining.from_pretrained(folder).half().save_pretrained(tmp_path)
    with torch.inference_mode():
        model = Checkpoint(str(tmp_path)).model("ViTMAEForPreTraining", CPU)
    assert not model.training
    for weight in model.parameters():
        assert weight.dtype == torch.float32
        assert not weight.requires_grad
        assert not weight.is_inference()


def test_options_reach_the_class_that_reads(folder):
    assert Checkpoint(folder).read("AutoConfig", mask_ratio=0.3).mask_ratio == 0.3


def test_what_is_not_there_is_an_error_that_names_it_and_the_next_step(tmp_path):
    with pytest.raises(OSError, match=rf"checkpoint '{tmp_path}', revision 'abc'.*name a folder"):
        Checkpoint(str(tmp_path), "abc").read("ViTMAEForPreTraining")


def test_a_model_whose_head_is_not_in_the_checkpoint_is_refused(folder, tmp_path):
    hf.ViTMAEModel.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights of ViTMAEForPreTraining.*decoder.*trained for this task"):
        Checkpoint(str(tmp_path)).model("ViTMAEForPreTraining", CPU)


def test_freezing_takes_any_module():
    layer = frozen(lambda: torch.nn.Linear(2, 2).double(), CPU)
    assert layer.weight.dtype == torch.float32
    assert not layer.weight.requires_grad
