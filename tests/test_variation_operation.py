import kornia.augmentation as K
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from infill_aug.variation.operation import (
    GROUPS,
    Operation,
    constant,
    find_operation,
    list_operations,
    strength_range,
)


def test_every_operation_is_found_by_its_name_in_its_group():
    for group in GROUPS:
        names = list_operations(group)
        assert len(names) >= 7
        for name in names:
            kind = find_operation(name)
            assert issubclass(kind, Operation)
            assert kind.group == group
            assert kind.name == name
            assert kind.__doc__
            assert kind.__doc__ != Operation.__doc__
    assert sorted(name for group in GROUPS for name in list_operations(group)) == list_operations()
    assert find_operation("sharpen_the_cat") is None
    with pytest.raises(ValueError, match=r"'style', 'color', 'texture'.*'shape'"):
        list_operations("shape")


@pytest.mark.parametrize("strength", [-0.1, 1.5, (0.5, 0.2), (0.1,), "much", None, float("nan"), (0, 2), True])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength must be a number in 0..1 or two that rise"):
        strength_range(strength)


def test_an_operation_of_somebody_else_joins_no_default():
    class Jitter(Operation):
        group = "color"

    assert find_operation("jitter") is not Jitter
    assert Jitter.name == "jitter"


def test_strengths_lie_in_their_range_one_a_sample():
    seen = []

    class _Seen(Operation):
        def draw(self, strength, height, width):
            seen.append(strength)
            return {"strength": strength}

        def vary(self, image, **params):
            return image * params["strength"].view(-1, 1, 1, 1)

    image = torch.ones(500, 3, 2, 2)
    varied = _Seen(strength=(0.2, 0.6))(image)
    assert ((seen[0] >= 0.2) & (seen[0] <= 0.6)).all()
    assert seen[0].std() > 0.08
    assert torch.equal(varied[:, 0, 0, 0], seen[0])
    assert _Seen(strength=0.4).strength == (0.1, 0.4)
    half = _Seen(p=0.5)(image)
    assert 150 < int((half == 1).all(dim=(1, 2, 3)).sum()) < 350
    assert len(_Seen(same_on_batch=True)(image).unique()) == 1
    assert find_operation("_seen") is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_come_back_as_they_were(dtype):
    varied = find_operation("jitter")()(torch.rand(2, 3, 5, 7).to(dtype))
    assert varied.dtype == dtype
    assert ((varied >= 0) & (varied <= 1)).all()


@pytest.mark.parametrize("name", list_operations())
def test_an_operation_works_in_a_chain_of_kornia_beside_a_mask(name):
    image, mask = torch.rand(5, 3, 24, 32), torch.ones(5, 1, 24, 32)
    chain = K.AugmentationSequential(find_operation(name)(p=1.0), K.RandomHorizontalFlip(p=1.0), data_keys=None)
    out = chain({"image": image, "mask": mask})
    assert out["image"].shape == image.shape
    assert torch.equal(out["mask"], mask)


@pytest.mark.parametrize("name", list_operations())
def test_no_operation_looks_at_a_value_on_the_device_or_leaves_it(name):
    # Tensors without values on a GPU that need not be there: whatever would wait for one, or mix devices, raises.
    operation = find_operation(name)(strength=(0.5, 1.0))
    operation(torch.rand(3, 3, 40, 33))  # what is made once is made here
    constant.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        image = torch.rand(3, 3, 40, 33, device="cuda")
        more = {"donors": image} if operation.mixes else {}
        varied = operation.vary(image, **operation.draw(torch.rand(3, device="cuda"), 40, 33), **more)
        assert varied.shape == image.shape
        assert varied.device == image.device
    constant.cache_clear()


def test_a_constant_is_made_once_for_each_device():
    double = torch.ones(2, dtype=torch.float64)
    first = constant(double, torch.device("cpu"))
    assert first.dtype == torch.float32
    assert constant(double, torch.device("cpu")) is first
    assert constant(torch.zeros(2), torch.device("cpu")).sum() == 0
