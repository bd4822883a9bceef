import collections

import pytest
import torch
from omegaconf import OmegaConf

from infill_aug.variation.choice import OperationChoice
from infill_aug.variation.color import Gamma, Jitter

CPU = torch.device("cpu")


def touched(choice, count):
    names = [None] * count
    for change in choice.make_params(count, 4, 4, CPU):
        for place in range(change.start, change.stop):
            assert names[place] is None, "a sample got two operations"
            names[place] = change.operation
    return names


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 5, 64])
def test_a_share_of_p_gets_one_operation_by_weight_and_every_place_is_as_likely(p, count):
    choice = OperationChoice("color", {"jitter": 3, "gamma": 1}, p=p)
    rounds = 6000 // count
    names = [touched(choice, count) for _ in range(rounds)]
    counts = collections.Counter(name for each in names for name in each)
    total = rounds * count
    assert counts[None] / total == pytest.approx(1 - p, abs=0.03 if 0 < p < 1 else 0)
    if p:
        # Samples of one call share operations, so that calls are what is counted.
        spread = 4 * (0.1875 / (rounds * p)) ** 0.5
        assert counts[0] / (counts[0] + counts[1]) == pytest.approx(0.75, abs=spread)
    if 0 < p < 1 and count > 1:
        by_place = torch.tensor([[name is not None for name in each] for each in names]).float().mean(0)
        assert (by_place - p).abs().max() < 5 * (p * (1 - p) / rounds) ** 0.5


def test_each_run_of_samples_has_parameters_of_its_own():
    choice = OperationChoice("color", ["jitter"], p=1.0)
    assert [len(choice.make_params(count, 4, 4, CPU)) for count in (1, 4, 5, 12, 64)] == [1, 1, 2, 3, 4]
    changes = choice.make_params(64, 4, 4, CPU)
    hues = torch.cat([change.params["hue"] for change in changes])
    assert len(hues.unique()) == 64


def test_on_the_same_batch_everything_is_the_same():
    choice = OperationChoice("color", same_on_batch=True, p=0.5)
    seen = set()
    for _ in range(60):
        changes = choice.make_params(8, 4, 4, CPU)
        seen.add(len(changes))
        for change in changes:
            assert (change.start, change.stop) == (0, 8)
            assert all(torch.equal(value, value[:1].expand_as(value)) for value in change.params.values())
    assert seen == {0, 1}


def test_operations_are_named_in_every_way_that_a_config_has():
    for given in ("jitter, gamma", ["jitter", "gamma"], {"jitter": 1, "gamma": 2}, [("jitter", 1), Gamma()]):
        choice = OperationChoice("color", given)
        assert [operation.name for operation in choice.operations] == ["jitter", "gamma"]
    assert OperationChoice("color", ["jitter", "gamma"]).weights == (1, 1)
    assert OperationChoice("color", [("jitter", 1), (Gamma(), 2)]).weights == (1, 2)
    assert OperationChoice("color", OmegaConf.create([["jitter", 3], "gamma"])).weights == (3, 1)
    assert OperationChoice("color", (name for name in ("jitter", "gamma"))).weights == (1, 1)
    assert OperationChoice("color", {"jitter": 0, "gamma": 1}).weights == (1,)
    assert OperationChoice("color", ["jitter"], strength=(0.2, 0.3)).operations[0].strength == (0.2, 0.3)
    assert OperationChoice("color", [Jitter(0.8)], strength=0.1).operations[0].strength == (0.2, 0.8)
    assert OperationChoice("texture", p=0.0).idle
    assert OperationChoice("texture", strength=0.0).idle
    assert not OperationChoice("texture").idle


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "shape"}, "'style', 'color', 'texture'.*'shape'"),
        ({"p": 1.5}, "p must lie in 0..1, got 1.5"),
        ({"strength": 2}, "strength must be a number in 0..1"),
        ({"operations": {"jitter": -1}}, "weight of 'jitter'.*got -1"),
        ({"operations": {"jitter": 0}}, "no operation with a weight above 0"),
        ({"operations": []}, "no operation with a weight above 0"),
        ({"operations": ["jiter"]}, "no operation 'jiter'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        OperationChoice(**{"group": "color", **arguments})
