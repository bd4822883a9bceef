import pytest
import torch

from infill_aug.infill.realism import two_sample_auc


def pictures(count=48, size=32):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return ((0.8 * smooth + 0.2 * torch.rand(count, 3, size, size, generator=generator)) * 255).to(torch.uint8)


def test_what_is_blurred_is_told_from_what_is_not():
    real = pictures()
    blurred = torch.nn.functional.avg_pool2d(real.float(), 3, 1, 1).to(torch.uint8)
    result = two_sample_auc(real, blurred, seeds=1)
    assert result.auc > 0.95
    assert result.scores.shape == (len(real),)


def test_nothing_is_told_from_itself_and_little_from_other_pictures_of_the_kind():
    real = pictures()
    assert two_sample_auc(real, real, seeds=1).auc == pytest.approx(0.5)
    others = two_sample_auc(real, pictures(96)[48:], seeds=2)
    assert 0.3 < others.auc < 0.7


def test_the_same_pictures_give_the_same_figure_and_the_global_generator_is_left_alone():
    real, before = pictures(16), torch.get_rng_state()
    first, second = (two_sample_auc(real, real.flip(1), seeds=1) for _ in range(2))
    assert first.auc == second.auc
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("real", "filled", "message"),
    [
        (torch.zeros(8, 3, 32, 32), torch.zeros(8, 3, 32, 32), "must be uint8"),
        (torch.zeros(4, 3, 32, 32).byte(), torch.zeros(4, 3, 32, 32).byte(), "8 pictures or more"),
        (torch.zeros(8, 3, 32, 32).byte(), torch.zeros(9, 3, 32, 32).byte(), r"\(9, 3, 32, 32\)"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(real, filled, message):
    with pytest.raises(ValueError, match=message):
        two_sample_auc(real, filled)
