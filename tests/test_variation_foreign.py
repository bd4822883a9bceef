import kornia.augmentation as K
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from infill_aug.variation import Variation
from infill_aug.variation.foreign import ForeignOperation, make_operation

FOREIGN = [
    K.ColorJiggle(0.4, 0.4, 0.4, 0.4),
    K.RandomGaussianNoise(p=1.0),
    K.RandomAffine(30, p=1.0),
    v2.ColorJitter(0.5, 0.5, 0.5, 0.2),
    v2.GaussianNoise(),
    v2.RandomApply([v2.GaussianBlur(3), v2.RandomRotation(30)], p=1.0),
]


def test_a_draw_replays_and_the_next_is_another():
    for module in FOREIGN:
        operation = ForeignOperation(module)
        image = torch.rand(1, 3, 12, 16).expand(3, -1, -1, -1).contiguous()
        params = operation.draw(torch.ones(3), 12, 16)
        before = torch.get_rng_state()
        varied = operation.vary(image, **params)
        assert varied.shape == image.shape
        assert torch.equal(operation.vary(image, **params), varied), operation.name
        assert all(not torch.equal(varied[i], varied[j]) for i in range(3) for j in range(i)), operation.name
        if not operation.batched:
            assert torch.equal(torch.get_rng_state(), before)
        again = operation.draw(torch.ones(3), 12, 16)
        assert not torch.equal(operation.vary(image, **again), varied)


def test_what_moves_content_is_known_and_doubt_counts_as_moving():
    moves = {type(module).__name__: ForeignOperation(module).moves for module in FOREIGN}
    assert moves == {
        "ColorJiggle": False, "RandomGaussianNoise": False, "RandomAffine": True,
        "ColorJitter": False, "GaussianNoise": False, "RandomApply": True,
    }  # fmt: skip
    assert ForeignOperation(nn.Identity()).moves


def test_operations_are_found_by_name_in_this_package_then_kornia_then_torchvision_then_anywhere():
    assert make_operation("jitter", 0.5).group == "color"
    assert isinstance(make_operation("RandomInvert", 0.5).module, K.RandomInvert)
    assert isinstance(make_operation("RandomPhotometricDistort", 0.5).module, v2.RandomPhotometricDistort)
    assert isinstance(make_operation("torch.nn:Identity", 0.5).module, nn.Identity)
    assert make_operation("infill_aug.variation.color:Gamma", 0.5).name == "gamma"
    own = make_operation("gamma", 0.5)
    assert make_operation(own, 0.1) is own
    with pytest.raises(ValueError, match=r"no operation 'sharpen_the_cat'.*jitter.*kornia.augmentation"):
        make_operation("sharpen_the_cat", 0.5)
    with pytest.raises(TypeError, match="takes pictures, got 3"):
        make_operation(3, 0.5)


def test_by_name_an_operation_changes_every_sample_that_it_is_drawn_for():
    infill = torch.rand(200, 3, 4, 4)
    for name in ("RandomInvert", "RandomSolarize"):
        varied = Variation(style=None, color={"operations": [name], "p": 1.0}, texture=None)(
            infill, torch.ones(200, 1, 4, 4)
        )
        assert all(not torch.equal(one, other) for one, other in zip(varied, infill, strict=True))
    with pytest.raises(ValueError, match=r"RandomAffine cannot be made by its name alone.*pass an object"):
        make_operation("RandomAffine", 0.5)


def test_containers_of_kornia_and_transforms_in_8_bits_work():
    image = torch.rand(2, 3, 16, 16)
    for container in (K.ImageSequential(K.RandomInvert(p=1.0)), nn.Sequential(K.RandomInvert(p=1.0))):
        operation = ForeignOperation(container)
        torch.testing.assert_close(operation.vary(image, **operation.draw(torch.ones(2), 16, 16)), 1 - image)
    jpeg = ForeignOperation(v2.JPEG((5, 10)))
    assert (jpeg.vary(image, **jpeg.draw(torch.ones(2), 16, 16)) - image).abs().mean() > 0.01


def test_an_operation_that_changes_the_size_is_refused_by_name():
    variation = Variation(style=None, texture=None, color={"operations": [v2.Resize(4)], "p": 1.0})
    with pytest.raises(ValueError, match=r"Resize made \(1, 3, 4, 4\) of \(1, 3, 8, 8\)"):
        variation(torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8))


def test_kornia_s_are_computed_for_the_drawn_samples_only():
    seen = []

    class Counts(K.RandomInvert):
        def apply_transform(self, input, params, flags, transform=None):  # noqa: A002
            seen.append(len(input))
            return super().apply_transform(input, params, flags, transform)

    variation = Variation(style=None, texture=None, color={"operations": [Counts(p=1.0)], "p": 0.25})
    for _ in range(20):
        variation(torch.rand(40, 3, 4, 4), torch.ones(40, 1, 4, 4))
    assert 100 < sum(seen) < 300
