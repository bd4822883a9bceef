import math

import pytest
import torch
from kornia.color import rgb_to_hsv, rgb_to_lab

from infill_aug.variation.color import Curves, Gamma, Greyscale, Illumination, Jitter, Palette, WhiteBalance
from infill_aug.variation.operation import find_operation, list_operations

NAMES = list_operations("color")
SIZES = [(1, 1), (7, 33), (33, 7), (64, 64)]


def pictures(count=5, height=24, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")


def grey_ramp(count=4):
    return torch.linspace(0.1, 0.9, 64).view(1, 1, 8, 8).expand(count, 3, -1, -1).contiguous()


def params_of(operation, strength, count=4, height=24, width=32):
    return operation.draw(torch.full((count,), strength), height, width)


@pytest.mark.parametrize("size", [*SIZES, (513, 5)])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_every_size_gives_a_finite_picture_of_that_size(name, count, size):
    image = torch.rand(count, 3, *size)
    varied = find_operation(name)(strength=(1.0, 1.0))(image)
    assert varied.shape == image.shape
    assert varied.isfinite().all()
    assert ((varied >= 0) & (varied <= 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_extremes_of_the_range_stay_finite(name):
    for value in (0.0, 1.0):
        image = torch.full((3, 3, 9, 9), value)
        assert find_operation(name)(strength=1.0)(image).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_strength_0_leaves_the_picture(name):
    image = pictures()
    torch.testing.assert_close(find_operation(name)(strength=(0.0, 0.0))(image), image, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_changes_in_its_own_way_and_a_draw_replays(name):
    image = pictures(1).expand(4, -1, -1, -1).contiguous()
    operation = find_operation(name)(strength=(0.8, 1.0))
    varied = operation(image)
    assert all(not torch.equal(varied[i], varied[j]) for i in range(4) for j in range(i))
    assert torch.equal(operation(image, params=operation._params), varied)
    together = find_operation(name)(strength=(0.8, 1.0), same_on_batch=True)(image)
    torch.testing.assert_close(together, together[:1].expand_as(together))


def test_a_turn_of_hue_keeps_lightness_better_than_one_in_hsv():
    image = pictures(8, seed=3) * 0.5 + 0.25
    params = params_of(Jitter(), 0.0, 8) | {"hue": torch.linspace(0.5, 3.0, 8)}
    turned = Jitter().vary(image, **params).clamp(0, 1)
    hsv = rgb_to_hsv(image)
    hsv[:, 0] = (hsv[:, 0] + params["hue"].view(-1, 1, 1)) % (2 * math.pi)
    from kornia.color import hsv_to_rgb

    known, ours, theirs = (rgb_to_lab(each)[:, 0] for each in (image, turned, hsv_to_rgb(hsv)))
    assert (ours - known).abs().mean() < 0.5 * (theirs - known).abs().mean()
    assert (turned - image).abs().mean() > 0.02


def test_jitter_turns_scales_and_shifts_what_it_says():
    image = pictures(4) * 0.4 + 0.3
    still = params_of(Jitter(), 0.0)
    grey = Jitter().vary(image, **still | {"chroma": torch.zeros(4)})
    assert (grey.amax(1) - grey.amin(1)).max() < 1e-3
    flat = Jitter().vary(image, **still | {"contrast": torch.full((4,), 0.01)})
    assert (flat.std(dim=(2, 3)) < 0.05 * image.std(dim=(2, 3))).all()
    lighter = Jitter().vary(image, **still | {"lightness": torch.full((4,), 0.1)})
    torch.testing.assert_close(lighter - image, torch.full_like(image, 0.1), atol=1e-5, rtol=0)


def test_white_balance_warms_or_cools_at_the_same_lightness():
    image = grey_ramp(200)
    varied = WhiteBalance(strength=(1.0, 1.0))(image)
    red, _, blue = varied.mean(dim=(2, 3)).T
    assert 0.3 < (red > blue).float().mean() < 0.7
    assert (red - blue).abs().min() > 0.01
    darker = varied.mean(dim=(1, 2, 3)) / image.mean()
    assert darker.min() > 0.75
    assert darker.max() < 1.25


def test_a_palette_brings_the_donors_colours():
    image, donors = pictures(4, seed=1), pictures(4, seed=2) * torch.tensor([1.0, 0.5, 0.3]).view(1, 3, 1, 1)
    params = params_of(Palette(), 1.0) | {"instead": torch.zeros(4, dtype=torch.bool), "donor": torch.full((4,), 0.3)}
    varied = Palette().vary(image, donors=donors, **params)
    torch.testing.assert_close(varied.mean(dim=(2, 3)), donors[1].mean(dim=(1, 2)).expand(4, -1), atol=2e-2, rtol=0)
    broken = donors.clone()
    broken[1] = torch.nan
    assert Palette().vary(image, donors=broken, **params).isfinite().all()


def test_curves_rise_everywhere_and_keep_black_and_white():
    ramp = torch.linspace(0, 1, 256).view(1, 1, 1, 256).expand(500, 3, -1, -1)
    varied = Curves().vary(ramp, **Curves().draw(torch.ones(500), 1, 256))
    assert (varied.diff(dim=-1) > -1e-6).all()
    torch.testing.assert_close(varied[..., 0], torch.zeros_like(varied[..., 0]))
    torch.testing.assert_close(varied[..., -1], torch.ones_like(varied[..., -1]))


def test_gamma_is_a_power():
    image = pictures(3)
    varied = Gamma().vary(image, gamma=torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(varied[0], image[0].sqrt(), atol=1e-3, rtol=0)
    torch.testing.assert_close(varied[2], image[2] ** 2, atol=1e-3, rtol=0)


def test_greyscale_at_full_strength_has_one_tone():
    varied = Greyscale().vary(pictures(50), **Greyscale().draw(torch.ones(50), 24, 32))
    tone = varied - varied.mean(dim=1, keepdim=True)
    assert tone.std(dim=(2, 3)).max() < 1e-4


def test_illumination_is_a_field_that_changes_over_the_picture():
    image = torch.full((40, 3, 32, 32), 0.5)
    field = Illumination().vary(image, **Illumination().draw(torch.ones(40), 32, 32))
    assert (field.std(dim=(2, 3)) > 0.02).all()
    step = torch.cat([field.diff(dim=2).flatten(), field.diff(dim=3).flatten()])
    assert step.abs().max() < 0.1
