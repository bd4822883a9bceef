import json

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st
from tests_support import picture

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.functional.grading import spread
from infill_aug.key import digest
from infill_aug.types import check_confidence


class Brightness(NetworkConfidence):
    """What is bright matters; looks at the picture at a quarter of its size, and notes how many it saw at once."""

    def __init__(self, exponent=1.0, **options):
        super().__init__(**options)
        self.exponent, self.batches = exponent, []

    def score(self, images, prompts):
        self.batches.append(len(images))
        return nnf.adaptive_avg_pool2d(
            images.mean(dim=1, keepdim=True) ** self.exponent, [max(1, s // 4) for s in images.shape[-2:]]
        )

    def identity(self):
        return {"exponent": self.exponent}


class Gives(NetworkConfidence):
    """Gives what it is told to."""

    def __init__(self, scores, **options):
        super().__init__(**options)
        self.scores = scores

    def score(self, images, prompts):
        return self.scores

    def identity(self):
        return {}


class Prompted(NetworkConfidence):
    """As confident everywhere as the target says."""

    reads_target = True

    def prompt(self, target):
        return target["confidence"]

    def score(self, images, prompts):
        return torch.tensor(prompts)[:, None, None, None]

    def identity(self):
        return {}


IMAGE = picture(0, 12, 16)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused_by_the_networks_name(bad):
    scores = torch.full((1, 1, 12, 16), 0.5)
    scores[..., 3, 4] = bad
    with pytest.raises(ValueError, match="Gives gave scores that are not finite"):
        Gives(scores)(IMAGE, None)


@pytest.mark.parametrize("shape", [(12, 16), (1, 12, 16), (1, 3, 12, 16), (2, 1, 12, 16), (1, 1, 1, 12, 16)])
def test_scores_of_a_wrong_shape_are_refused_with_it(shape):
    with pytest.raises(ValueError, match=rf"Gives gave scores of shape \({', '.join(map(str, shape))}\) for 1 images"):
        Gives(torch.zeros(shape))(IMAGE, None)


@pytest.mark.parametrize("scores", [torch.tensor([-4.0, 0.5]), torch.tensor([0.0, 1.5]), torch.tensor([0, 255])])
def test_scores_out_of_range_such_as_logits_are_refused_with_their_range(scores):
    low, high = scores.tolist()
    with pytest.raises(ValueError, match=f"Gives gave scores from {low:.4g} to {high:.4g}.*sigmoid"):
        Gives(scores.reshape(1, 1, 1, 2))(IMAGE, None)


def test_what_rounding_adds_to_full_confidence_is_cut_off():
    confidence = Gives(torch.tensor([-0.003, 1.003], dtype=torch.bfloat16).reshape(1, 1, 1, 2))(IMAGE, None)
    assert confidence.min() == 0
    assert confidence.max() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.uint8])
def test_scores_of_every_dtype_and_size_become_float32_maps_of_the_pictures_size(dtype):
    confidence = Gives(torch.ones(1, 1, 5, 3, dtype=dtype))(IMAGE, None)
    assert confidence.dtype == torch.float32
    assert confidence.shape == (1, 12, 16)
    assert (confidence == 1).all()


def test_a_map_is_a_plain_tensor_that_can_be_changed_and_learned_from():
    confidence = Brightness()(IMAGE, None)
    confidence += 0
    weight = torch.ones(1, requires_grad=True)
    (weight * confidence).sum().backward()
    assert weight.grad == confidence.sum()


def test_a_network_that_is_trained_keeps_no_graph_of_its_maps():
    scores = torch.rand(1, 1, 12, 16, requires_grad=True)
    assert not Gives(scores, falloff=0.2)(IMAGE, None).requires_grad


@pytest.mark.parametrize("sizes", [[(12, 16)] * 5, [(12, 16), (20, 8), (12, 16), (1, 9), (9, 1), (20, 8), (1, 1)]])
@pytest.mark.parametrize(
    "options", [{}, {"falloff": 0.2}, {"falloff": 0.2, "edges": 20.0}], ids=["plain", "ring", "edges"]
)
def test_maps_of_mixed_sizes_keep_their_order_and_are_the_same_one_by_one(sizes, options):
    images = [picture(i, *size) for i, size in enumerate(sizes)]
    alone = [Brightness(**options)(image, None) for image in images]
    for batch_size in (1, 2, 16):
        together = Brightness(batch_size=batch_size, **options).maps(images)
        for image, one, other in zip(images, alone, together, strict=True):
            assert one.shape == (1, *image.shape[-2:])
            assert torch.equal(one, other)


def test_pictures_of_one_size_go_through_the_network_together_up_to_the_batch_size():
    network = Brightness(batch_size=4)
    network.maps([picture(i, 8, 8 + 8 * (i % 2)) for i in range(13)])
    assert sorted(network.batches) == [2, 3, 4, 4]
    assert network.maps([]) == []


def test_a_map_is_what_spread_makes_of_the_scores():
    scores = torch.rand(1, 1, 12, 16)
    picture = IMAGE[None].float() / 255
    assert torch.equal(Gives(scores)(IMAGE, None)[None], scores)
    assert torch.equal(Gives(scores, falloff=0.3)(IMAGE, None)[None], spread(scores, 0.3))
    edged = Gives(scores, falloff=0.3, edges=30.0)(IMAGE, None)[None]
    assert torch.equal(edged, spread(scores, 0.3, picture, 30.0))
    assert not torch.equal(edged, spread(scores, 0.3))


def test_prompts_reach_the_picture_that_they_are_for():
    images = [picture(i, 8, 8 + 4 * (i % 2)) for i in range(6)]
    targets = [{"confidence": i / 10} for i in range(6)]
    maps = Prompted(batch_size=2).maps(images, targets)
    assert [float(one.mean()) for one in maps] == pytest.approx([i / 10 for i in range(6)])
    with pytest.raises(KeyError, match="confidence"):
        Prompted().maps(images[:1], [{}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"falloff": -0.1}, r"falloff must lie in 0\.\.2, got -0\.1"),
        ({"falloff": 2.1}, r"falloff must lie in 0\.\.2, got 2\.1"),
        ({"falloff": float("nan")}, "falloff.*nan"),
        ({"edges": -1}, "edges must be 0 or more, and finite, got -1"),
        ({"edges": float("nan")}, "edges.*nan"),
        ({"edges": float("inf")}, "edges.*inf"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Brightness(**options)


def test_a_config_is_json_with_the_identity_and_changes_with_all_that_changes_a_map():
    networks = [
        Brightness(), Brightness(falloff=0.2), Brightness(edges=3), Brightness(2.0), Brightness(2.0, falloff=0.2),
        Gives(None), Prompted(),
    ]  # fmt: skip
    configs = [network.config() for network in networks]
    assert len({digest(config) for config in configs}) == len(configs)
    assert configs[0] == {"source": f"{__name__}.Brightness", "falloff": 0.0, "edges": 0.0, "exponent": 1.0}
    assert all(json.loads(json.dumps(config)) == config for config in configs)
    assert Brightness(falloff=1).config() == Brightness(falloff=1.0).config()


def test_what_changes_no_map_is_not_part_of_the_config():
    assert Brightness(batch_size=3, device=torch.device("cpu")).config() == Brightness().config()


@given(seed=st.integers(0, 2**32 - 1), falloff=st.sampled_from([0.0, 0.2]), full=st.booleans())
def test_quantised_maps_are_255_where_confidence_is_full_and_nowhere_else(seed, falloff, full):
    scores = 0.99 + 0.01 * torch.rand(1, 1, 12, 16, generator=torch.Generator().manual_seed(seed))
    scores[..., 2:4, 2:4] = 1.0 if full else 0.9999999
    network = Gives(scores, falloff=falloff)
    confidence, (quantised,) = network(IMAGE, None), network.quantised([IMAGE])
    check_confidence(confidence)
    assert quantised.dtype == torch.uint8
    assert torch.equal(quantised == 255, confidence >= 1)
    assert (quantised == 255).any() == full
