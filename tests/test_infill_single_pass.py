import copy

import pytest
import torch

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill import SampleContext, load_backend
from infill_aug.infill.single_pass import SinglePassInfiller, save_single_pass


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SinglePassInfiller(16).eval()


def request(height, width, count=2):
    image = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(count, 1, height, width)
    mask[..., height // 4 : -height // 4, width // 4 : -width // 4] = 1
    return image, mask


@torch.no_grad()
def test_what_lies_in_the_hole_is_not_looked_at(network):
    image, mask = request(16, 24)
    fills = [network(torch.where(mask > 0, value, image), mask) for value in (0.0, 1.0)]
    assert torch.equal(*fills)


def test_every_visible_pixel_reaches_the_far_end_of_a_hole(network):
    image, mask = request(64, 64, 1)
    image.requires_grad_()
    network(image, mask)[..., 32, 32].sum().backward()
    assert image.grad[0, :, 0, 0].abs().sum() > 0
    assert image.grad[0, :, 63, 63].abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize(("height", "width", "count"), [(32, 48, 2), (64, 64, 1), (20, 36, 5)])
def test_the_file_of_a_network_fills_as_the_network_does_through_the_backend(network, tmp_path, height, width, count):
    save_single_pass(network, tmp_path / "net.pt2")
    image, mask = request(height, width, count)
    backend = load_backend("gan", weights=str(tmp_path / "net.pt2"), multiple=4)
    samples = [SampleContext(str(i), i) for i in range(count)]
    fill = backend.generate_infill(image, mask, TaskDescriptor("demo", "cat"), samples=samples)
    wanted = torch.where(mask > 0, network(image * (1 - mask), mask).clamp(0, 1), image)
    assert (fill - wanted).abs().max() < 0.01  # 8 bits


@torch.no_grad()
def test_a_network_that_shoots_over_still_fills(network, tmp_path):
    wild = copy.deepcopy(network)
    wild.last[-1].weight.mul_(40)
    assert wild.train()(*request(32, 32)).abs().max() > 1.5
    save_single_pass(wild, tmp_path / "net.pt2")
    fill = load_backend("gan", weights=str(tmp_path / "net.pt2"), multiple=4).generate_infill(
        *request(32, 32), TaskDescriptor("demo", "cat"), samples=[SampleContext(str(i), i) for i in range(2)]
    )
    assert fill.min() >= 0
    assert fill.max() <= 1


def test_another_ending_is_refused(network, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.pt2, got .*net\.pt'"):
        save_single_pass(network, tmp_path / "net.pt")
