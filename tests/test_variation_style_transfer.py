import pytest
import torch
from torchvision.io import write_png
from torchvision.models import vgg19

from infill_aug.variation.style_transfer import FourierMix, StyleTransfer


def pictures(count=5, height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")


def test_fourier_mix_keeps_phase_and_takes_low_amplitudes():
    image, other = pictures(1), 0.3 * pictures(1, seed=1)
    params = {"weight": torch.ones(1), "band": torch.full((1,), 0.05), "donor": torch.zeros(1)}
    mixed = FourierMix().vary(image, **params, donors=other)
    before, after, wanted = (torch.fft.rfft2(each) for each in (image, mixed, other))
    torch.testing.assert_close(after * before.abs(), before * after.abs(), atol=0.05, rtol=1e-3)
    low, high = (..., slice(0, 3), slice(0, 3)), (..., slice(24, 40), slice(24, None))
    gap = ((after.abs()[low] - wanted.abs()[low]).abs().mean(), (before.abs()[low] - wanted.abs()[low]).abs().mean())
    assert gap[0] < 0.6 * gap[1]
    torch.testing.assert_close(after.abs()[high], before.abs()[high], atol=1e-2, rtol=1e-3)


def statistics(image):
    return torch.cat([image.mean(dim=(0, 2, 3)), image.std(dim=(0, 2, 3))])


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    layer = vgg19().features[0]
    path = tmp_path / "vgg19.pth"
    torch.save({"features.0.weight": layer.weight.data, "features.0.bias": layer.bias.data}, path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    styles = (pictures(1, seed=3) * torch.tensor([0.9, 0.5, 0.2]).view(3, 1, 1) * 255).byte()
    (tmp_path / "styles").mkdir()
    write_png(styles[0], str(tmp_path / "styles" / "style.png"))
    return str(tmp_path / "styles")


@pytest.mark.parametrize("features", [False, True])
def test_style_transfer_moves_mean_and_deviation_to_the_style(features, folder, encoder):
    image = pictures(4)
    operation = StyleTransfer((1.0, 1.0), folder=folder, encoder=encoder if features else None)
    wanted = statistics(pictures(1, seed=3) * torch.tensor([0.9, 0.5, 0.2]).view(3, 1, 1))
    assert (statistics(operation(image)) - wanted).abs().max() < 0.1
    assert (statistics(image) - wanted).abs().max() > 0.25
    assert operation(image[..., :33, :7]).shape == (4, 3, 33, 7)
    assert not operation.state_dict()


@pytest.mark.parametrize("features", [False, True])
def test_style_transfer_without_a_folder_takes_the_style_of_another_picture(features, encoder):
    image, other = pictures(2), 0.4 * pictures(1, seed=4)
    operation = StyleTransfer(encoder=encoder if features else None)
    params = {"weight": torch.tensor([0.0, 1.0]), "donor": torch.zeros(2)}
    moved = operation.vary(image, **params, donors=other)
    torch.testing.assert_close(moved[0], image[0], atol=1e-4, rtol=0)
    assert (statistics(moved[1:]) - statistics(other)).abs().max() < 0.05
    assert (statistics(image[1:]) - statistics(other)).abs().max() > 0.2


def test_style_transfer_says_what_it_lacks(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{place.name}.*leave folder out"):
            StyleTransfer(folder=str(place))(pictures())
    with pytest.raises(FileNotFoundError, match=r"nowhere.*VGG-19"):
        StyleTransfer(encoder=str(tmp_path / "nowhere"))
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"features\.0\.weight"):
        StyleTransfer(encoder=str(tmp_path / "other.pth"))
