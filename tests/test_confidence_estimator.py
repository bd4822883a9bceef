import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests_support import picture
from torch import nn

from infill_aug.confidence.estimator import (
    ConfidenceEstimator,
    EstimatorConfidence,
    list_weights,
    weights_digest,
    weights_path,
)
from infill_aug.profile import TaskProfile

SIDE = 64
SIZES = [(1, 1), (1, 300), (500, 20), (224, 224), (64, 64), (65, 63)]


@pytest.fixture(scope="module")
def estimator():
    """As after training: weights, statistics and temperatures that are not those of the start."""
    torch.manual_seed(7)
    made = ConfidenceEstimator(("cats", "dogs", "hair"), input_size=SIDE)
    with torch.no_grad():
        for _ in range(4):
            made.train().logits(torch.rand(4, 3, SIDE, SIDE))
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.7, 1.3)
                module.bias.uniform_(-0.2, 0.2)
    made.temperature.copy_(torch.tensor([1.5, 0.8, 2.0]))
    made.quality = {"cats": {"iou": 0.8}, "hair": {"iou": 0.6}}
    return made.eval()


@pytest.fixture(scope="module")
def saved(estimator, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "new folder" / "pets.safetensors"
    estimator.save(path, seed=3)
    return path


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 80, 100, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def scores(estimator, images, head=None):
    own = estimator.head
    estimator.head = head or own
    found = estimator(images)
    estimator.head = own
    return found


def rewritten(path, folder, drop=(), **changes):
    """The weights in ``path`` with other metadata, or with tensors left out."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = {**file.metadata(), **changes}
    tensors = {name: value for name, value in load_file(path).items() if name not in drop}
    save_file(tensors, str(folder / "changed.safetensors"), metadata=metadata)
    return folder / "changed.safetensors"


def test_it_is_small():
    count = sum(value.numel() for value in ConfidenceEstimator().parameters())
    assert 100_000 < count < 250_000


def test_a_saved_file_is_smaller_than_half_a_megabyte(saved):
    assert saved.stat().st_size < 500_000


@pytest.mark.parametrize("size", SIZES)
def test_confidence_has_the_pictures_size_whatever_it_is(estimator, size):
    for batch in (1, 3):
        found = scores(estimator, torch.rand(batch, 3, *size))
        assert found.shape == (batch, 1, *size)
        assert found.dtype == torch.float32
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_pictures_have_finite_confidence(estimator, value):
    assert torch.isfinite(scores(estimator, torch.full((1, 3, 40, 40), value))).all()


def test_a_very_wide_picture_has_confidence(estimator):
    found = scores(estimator, torch.rand(1, 3, 64, 7680))
    assert found.shape == (1, 1, 64, 7680)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cast", ["pictures alone", "network too"])
def test_other_precision_gives_the_same_confidence_within_its_own(estimator, pictures, dtype, cast):
    network = estimator if cast == "pictures alone" else ConfidenceEstimator(estimator.heads, SIDE).eval()
    if network is not estimator:
        network.load_state_dict(estimator.state_dict())
        network.to(dtype)
    for size in ((80, 100), (SIDE, SIDE)):
        images = pictures[..., : size[0], : size[1]]
        found = scores(network, images.to(dtype))
        assert found.dtype == dtype
        tolerance = {torch.bfloat16: 0.04, torch.float16: 0.01, torch.float64: 1e-5}[dtype]
        torch.testing.assert_close(found.float(), scores(estimator, images), atol=tolerance, rtol=0)


def test_channels_last_gives_the_same_confidence(estimator, pictures):
    wanted = scores(estimator, pictures)
    last = pictures.contiguous(memory_format=torch.channels_last)
    other = estimator.with_heads(estimator.heads).eval().to(memory_format=torch.channels_last)
    for network, images in ((estimator, last), (other, pictures), (other, last)):
        torch.testing.assert_close(scores(network, images), wanted, atol=1e-5, rtol=0)


def test_a_batch_is_scored_like_its_pictures_one_by_one(estimator):
    images = torch.rand(5, 3, 50, 70)
    alone = torch.cat([scores(estimator, image[None]) for image in images])
    torch.testing.assert_close(scores(estimator, images), alone, atol=1e-5, rtol=0)


def test_a_large_batch_is_scored_the_same_twice_and_a_picture_the_same_at_each_place(estimator):
    image = torch.rand(1, 3, 40, 60)
    images = torch.cat([torch.rand(63, 3, 40, 60), image, torch.rand(63, 3, 40, 60), image])
    found = scores(estimator, images)
    assert torch.equal(found, scores(estimator, images))
    torch.testing.assert_close(found[63], found[127], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"\(B, 3, H, W\).*got shape \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), r"got shape \(1, 1, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"not empty.*\(0, 3, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), r"not empty.*\(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8; divide uint8 by 255"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "floating point in 0..1, got torch.int64"),
        (torch.full((1, 3, 8, 8), 1.5), "from 1.5 to 1.5"),
        (torch.full((1, 3, 8, 8), -0.25), "from -0.25 to -0.25.*not normalised"),
        (torch.full((1, 3, 8, 8), torch.inf), "to inf"),
        (torch.cat([torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), torch.nan)]), "hold no NaN"),
    ],
)
def test_pictures_of_a_wrong_kind_are_refused_by_name_of_the_fault(estimator, images, message):
    with pytest.raises(ValueError, match=message):
        estimator(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": ()}, r"one or more different names, got \[\]"),
        ({"heads": ("a", "a")}, r"different names, got \['a', 'a'\]"),
        ({"input_size": 100}, "multiple of 16.*got 100"),
        ({"input_size": 16}, "32 or more, got 16"),
    ],
)
def test_wrong_heads_and_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConfidenceEstimator(**arguments)


def test_temperature_divides_logits(estimator):
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        logits = estimator.logits(images)[:, 1:2] / 0.8
    wanted = nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False).sigmoid()
    torch.testing.assert_close(scores(estimator, images, "dogs"), wanted, atol=1e-6, rtol=0)


def test_a_higher_temperature_brings_confidence_nearer_to_one_half(estimator, pictures):
    hot = estimator.with_heads(estimator.heads).eval()
    hot.temperature.mul_(4)
    before, after = scores(estimator, pictures), scores(hot, pictures)
    assert ((after - 0.5).abs() <= (before - 0.5).abs() + 1e-6).all()
    assert float((after - before).abs().max()) > 0.01


def test_with_heads_keeps_the_scores_of_the_others_bit_for_bit(estimator, pictures):
    other = estimator.with_heads(("hair", "birds", "cats")).eval()
    assert (other.heads, other.head, other.input_size) == (("hair", "birds", "cats"), "hair", SIDE)
    for head in ("hair", "cats"):
        assert torch.equal(scores(other, pictures, head), scores(estimator, pictures, head))
    for heads in (("hair",), ("hair", *"abcdefgh")):
        assert torch.equal(scores(estimator.with_heads(heads).eval(), pictures), scores(estimator, pictures, "hair"))
    assert other.quality == estimator.quality
    assert float(other.temperature[1]) == 1
    with torch.no_grad():
        other.logit.weight.zero_()
    assert bool(estimator.logit.weight.any())


def test_saved_weights_load_to_the_same_within_half_precision(estimator, saved, pictures):
    loaded = ConfidenceEstimator.load(saved)
    assert not loaded.training
    assert (loaded.heads, loaded.head, loaded.input_size) == (estimator.heads, "cats", SIDE)
    assert loaded.quality == estimator.quality
    torch.testing.assert_close(loaded.temperature, estimator.temperature, rtol=1e-3, atol=0)
    for name, value in loaded.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert value.dtype == torch.float32
            assert torch.equal(value, estimator.state_dict()[name].half().float())
    for head in estimator.heads:
        torch.testing.assert_close(scores(loaded, pictures, head), scores(estimator, pictures, head), atol=0.01, rtol=0)


def test_weights_saved_again_are_the_same_and_notes_are_kept(saved, tmp_path):
    from safetensors import safe_open

    again = tmp_path / "again.safetensors"
    ConfidenceEstimator.load(saved).save(again, seed=3)
    assert weights_digest(ConfidenceEstimator.load(again)) == weights_digest(ConfidenceEstimator.load(saved))
    with safe_open(str(again), framework="pt") as file:
        assert json.loads(file.metadata()["notes"]) == {"seed": 3}


def test_files_that_are_no_weights_of_this_version_are_refused(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.safetensors"):
        ConfidenceEstimator.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="other weights of version 1, this package reads"):
        ConfidenceEstimator.load(rewritten(saved, tmp_path, format="other"))
    with pytest.raises(ValueError, match=r"version 99.*train them again"):
        ConfidenceEstimator.load(rewritten(saved, tmp_path, version="99"))
    with pytest.raises(ValueError, match=r"lacks \['logit.bias'\]"):
        ConfidenceEstimator.load(rewritten(saved, tmp_path, drop=("logit.bias",)))
    save_file({"weight": torch.zeros(2)}, str(tmp_path / "plain.safetensors"))
    with pytest.raises(ValueError, match="holds unknown weights of version unknown"):
        ConfidenceEstimator.load(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 1000, -10])
def test_a_truncated_file_is_named(saved, tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut\.safetensors' is no safetensors file"):
        ConfidenceEstimator.load(path)


def test_bundled_weights_load_and_unknown_ones_list_them():
    for name in list_weights():
        assert not ConfidenceEstimator.load(weights_path(name)).training
    with pytest.raises(FileNotFoundError, match=r"no bundled weights 'nowhere'; bundled: \["):
        weights_path("nowhere")


def test_a_profile_without_weights_names_the_command_that_learns_them():
    with pytest.raises(ValueError, match=r"infill-aug profiles train person --data FOLDER"):
        ConfidenceEstimator.from_profile("person")
    with pytest.raises(ValueError, match=r"from your masks: infill-aug profiles train own"):
        ConfidenceEstimator.from_profile({"name": "own", "source": "estimator"})


def test_a_profile_with_weights_of_another_lists_their_heads(saved):
    with pytest.raises(ValueError, match=r"'birds' needs a head 'birds', they have \['cats', 'dogs', 'hair'\]"):
        ConfidenceEstimator.from_profile({"name": "birds", "source": "estimator", "weights": str(saved)})


def test_a_profile_picks_its_head_by_name_or_by_option_and_its_input_size(saved):
    fields = {"source": "estimator", "weights": str(saved), "input_size": 96}
    assert ConfidenceEstimator.from_profile({"name": "dogs", **fields}).head == "dogs"
    found = ConfidenceEstimator.from_profile({"name": "mine", "source_options": {"head": "hair"}, **fields})
    assert (found.head, found.input_size, found.training) == ("hair", 96, False)


def test_weights_in_a_profile_file_lie_beside_it(saved, monkeypatch, tmp_path):
    fields = {"source": "estimator", "weights": saved.name, "input_size": SIDE}
    path = saved.parent / "dogs.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = ConfidenceEstimator.from_profile(path)
    assert found.head == "dogs"
    assert weights_digest(found) == weights_digest(ConfidenceEstimator.load(saved))
    assert weights_digest(ConfidenceEstimator.from_profile(TaskProfile.load(path))) == weights_digest(found)


def test_fused_confidence_differs_by_rounding_only(estimator, pictures):
    fused = estimator.fused()
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert (fused.heads, fused.head, fused.input_size, fused.training) == (estimator.heads, "cats", SIDE, False)
    for head in estimator.heads:
        torch.testing.assert_close(scores(fused, pictures, head), scores(estimator, pictures, head), atol=1e-4, rtol=0)
    half = scores(estimator.with_heads(estimator.heads).to(torch.bfloat16).fused(), pictures)
    torch.testing.assert_close(half, scores(estimator, pictures), atol=0.05, rtol=0)


def test_fusing_leaves_the_estimator_as_it_is(estimator):
    training = estimator.with_heads(estimator.heads).train()
    before = weights_digest(training)
    fused = training.fused()
    assert training.training
    assert all(value.requires_grad for value in training.parameters())
    assert not any(value.requires_grad for value in fused.parameters())
    assert weights_digest(training) == before


def test_a_fused_estimator_is_neither_saved_nor_given_heads(estimator, tmp_path):
    fused = estimator.fused()
    with pytest.raises(ValueError, match="came from fused"):
        fused.save(tmp_path / "fused.safetensors")
    with pytest.raises(ValueError, match="came from fused"):
        fused.with_heads(("cats",))
    assert not list(tmp_path.iterdir())


def test_a_source_is_not_changed_by_training_the_estimator_it_was_made_from(estimator):
    original = estimator.with_heads(estimator.heads).train()
    source = EstimatorConfidence(original)
    image = picture(0, 40, 50)
    before, config = source(image, None), source.config()
    optimizer = torch.optim.SGD(original.parameters(), 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        original.logits(torch.rand(2, 3, SIDE, SIDE)).square().mean().backward()
        optimizer.step()
    original.head = "dogs"
    assert torch.equal(source(image, None), before)
    assert source.config() == config
    assert not torch.equal(EstimatorConfidence(original)(image, None), before)


def test_a_source_gives_the_estimators_confidence_of_its_head(estimator):
    image = picture(1, 40, 50)
    other = estimator.with_heads(estimator.heads).eval()
    other.head = "hair"
    wanted = scores(other, image[None] / 255)[0]
    torch.testing.assert_close(EstimatorConfidence(other)(image, None), wanted, atol=1e-4, rtol=0)
    assert EstimatorConfidence(other).quality == {"iou": 0.6}
    other.head = "dogs"
    assert EstimatorConfidence(other).quality == {}


def test_the_config_names_the_unfused_weights_and_changes_with_all_that_changes_maps(estimator):
    def config(change=lambda e: None, **grading):
        other = estimator.with_heads(estimator.heads)
        change(other)
        return EstimatorConfidence(other, **grading).config()

    def warmer(other):
        other.temperature[0] += 0.1

    def nudge(other):
        with torch.no_grad():
            next(other.trunk.parameters()).view(-1)[0] += 1e-3

    configs = [
        config(),
        config(nudge),
        config(warmer),
        config(lambda other: setattr(other, "head", "dogs")),
        config(lambda other: setattr(other, "input_size", 96)),
        config(falloff=0.2),
        config(edges=1.0),
    ]
    assert len({json.dumps(one, sort_keys=True) for one in configs}) == len(configs)
    assert config() == config(batch_size=2)
    assert config()["weights"] == weights_digest(estimator)


def test_a_source_made_of_anothers_estimator_is_the_same_source(estimator):
    source = EstimatorConfidence(estimator)
    assert EstimatorConfidence(source.estimator).config() == source.config()


def test_maps_of_pictures_of_mixed_sizes_come_in_order_and_as_one_by_one(estimator):
    source = EstimatorConfidence(estimator, batch_size=2)
    images = [picture(i, *size) for i, size in enumerate([(20, 30), (50, 20), (20, 30), (1, 1), (20, 30), (64, 64)])]
    found = source.maps(images)
    for image, one in zip(images, found, strict=True):
        assert one.shape == (1, *image.shape[1:])
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, source(image, None), atol=1e-5, rtol=0)
    assert source.maps([]) == []
