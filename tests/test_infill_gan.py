import copy
import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from tiny_networks import TinyInpainter, save_script, tiny_exported, tiny_inpainter
from torch import nn

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill import BackendUnavailableError, PartialInfillError, load_backend
from infill_aug.infill.visible import resize_visible

CAT = TaskDescriptor("pets", "cat", seed=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_inpainter(tmp_path_factory.mktemp("gan") / "tiny.pt")


def request(count, height, width, share=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 3, height, width, generator=generator)
    mask = torch.rand(count, 1, height, width, generator=generator) < share
    mask[..., 0, 0], mask[..., -1, -1] = True, False
    return image, mask


def expected(image, mask, module):
    """What the network itself says, put into the hole, in 8 bits."""
    with torch.no_grad():
        answer = module(image.masked_fill(mask, 0.0), mask.float())
    return torch.where(mask, (answer * 255).round() / 255, image)


# --- what the network is given ---


def test_the_network_gets_the_picture_and_a_mask_that_is_1_in_the_hole_and_its_answer_is_the_fill(weights):
    image, mask = request(3, 16, 24)
    fill = load_backend("gan", weights=weights).generate_infill(image, mask, CAT)
    torch.testing.assert_close(fill, expected(image, mask, TinyInpainter()), rtol=0, atol=1e-3)


class Seen(nn.Module):
    """Draws into each picture how large the one that it sees is, and whether it is what the convention promises."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if image.dtype != torch.float32 or mask.dtype != torch.float32 or mask.shape[1] != 1:
            raise RuntimeError("not what the convention says")
        result = torch.rand_like(image) * 0.0 + 0.5
        result[:, 0] = image.shape[2] / 256.0
        result[:, 1] = image.shape[3] / 256.0
        result[:, 2] = (image * mask).abs().amax() + torch.linspace(0, 0.02, image.shape[3], device=image.device)
        return result


@pytest.mark.parametrize(
    ("size", "options", "seen"),
    [
        ((16, 24), {}, (16, 24)),
        ((17, 23), {}, (24, 24)),
        ((7, 33), {"multiple": 16}, (16, 48)),
        ((1, 9), {"multiple": 1}, (1, 9)),
        ((40, 80), {"size": 20}, (16, 24)),
        ((40, 80), {"size": 20, "multiple": 1}, (10, 20)),
        ((40, 80), {"size": 20, "multiple": 20}, (20, 20)),
        ((12, 16), {"size": 64}, (16, 16)),
    ],
)
def test_the_network_sees_pictures_of_the_size_that_the_options_ask_for_and_no_hidden_pixel(
    size, options, seen, tmp_path
):
    backend = load_backend("gan", weights=save_script(Seen(), tmp_path / "seen.pt"), **options)
    image, mask = request(2, *size)
    fill = backend.generate_infill(image, mask, CAT)
    red, green, blue = (fill[:, i][mask[:, 0]] for i in range(3))
    assert (red - seen[0] / 256).abs().max() < 3e-3
    assert (green - seen[1] / 256).abs().max() < 3e-3
    assert blue.max() < 0.03


class Position(nn.Module):
    """Each pixel's row and column: shows where the fill was cut out of the padded picture."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(image.shape[2]).float()[:, None] / 255
        columns = torch.arange(image.shape[3]).float()[None, :] / 255
        last = image[:, 2, -1, -1][:, None, None]  # of the padding, where there is some
        rows, columns = rows.expand_as(image[0, 0]), columns.expand_as(image[0, 0])
        return torch.stack([rows, columns, last[0].expand_as(rows)])[None].repeat(image.shape[0], 1, 1, 1)


def test_padding_is_a_mirror_at_the_right_and_the_bottom_and_is_cut_off_again(tmp_path):
    backend = load_backend("gan", weights=save_script(Position(), tmp_path / "position.pt"))
    image, mask = torch.zeros(1, 3, 13, 21), torch.zeros(1, 1, 13, 21, dtype=torch.bool)
    mask[..., :6, :6] = True
    image[..., 10, 18] = 0.8  # row 15 of 16 mirrors row 10 of 13, column 23 of 24 column 18 of 21
    fill = backend.generate_infill(image, mask, CAT)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    torch.testing.assert_close(fill[0, 0, :6, :6] * 255, rows)
    torch.testing.assert_close(fill[0, 1, :6, :6] * 255, columns)
    torch.testing.assert_close(fill[0, 2, :6, :6], torch.full((6, 6), 204 / 255))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 33), (16, 16), (70, 130)])
@pytest.mark.parametrize("options", [{}, {"size": 16}, {"multiple": 32}])
def test_pictures_of_every_size_are_filled_and_keep_what_is_visible(size, options, weights):
    image, mask = request(2, *size)
    if size == (1, 1):
        mask[:] = False
    fill = load_backend("gan", weights=weights, **options).generate_infill(image, mask, CAT)
    assert fill.shape == image.shape
    assert torch.equal(fill[~mask.expand_as(image)], image[~mask.expand_as(image)])
    assert ((fill >= 0) & (fill <= 1)).all()


def test_a_shrunk_picture_has_no_dark_rim_around_its_hole(weights):
    image, mask = torch.full((1, 3, 90, 120), 0.6), torch.zeros(1, 1, 90, 120, dtype=torch.bool)
    mask[..., 21:66, 34:81] = True
    small, hole = resize_visible(image.masked_fill(mask, 0.0), mask, (30, 40))
    assert (small.masked_select(~hole) - 0.6).abs().max() < 1e-6
    assert 0 < hole.float().mean() <= mask.float().mean()
    fill = load_backend("gan", weights=weights, size=40).generate_infill(image, mask, CAT)
    assert fill.min() > 0.45


# --- what every fill depends on ---


@pytest.mark.parametrize("options", [{}, {"size": 16}])
def test_a_picture_is_filled_alike_alone_and_in_a_batch_of_other_holes(options, weights):
    backend = load_backend("gan", weights=weights, **options)
    image, mask = request(11, 20, 30)
    for i in range(11):
        mask[i, :, :, i : i + 2 * i] = True
    together = backend.generate_infill(image, mask, CAT)
    for i in range(11):
        assert torch.equal(backend.generate_infill(image[i : i + 1], mask[i : i + 1], CAT)[0], together[i])


def test_what_lies_under_the_mask_is_not_looked_at(weights):
    backend = load_backend("gan", weights=weights, size=16)
    image, mask = request(2, 20, 30)
    wanted = backend.generate_infill(image, mask, CAT)
    for hidden in (0.0, 1.0, torch.nan, -7.0):
        assert torch.equal(backend.generate_infill(image.masked_fill(mask, hidden), mask, CAT), wanted)


def test_a_picture_without_visible_pixels_is_refused(weights):
    with pytest.raises(PartialInfillError, match="nothing is visible for 'gan'"):
        load_backend("gan", weights=weights).generate_infill(
            torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool), CAT
        )


def test_the_global_generator_is_left_alone(weights):
    image, mask = request(1, 16, 16)
    before = torch.get_rng_state()
    load_backend("gan", weights=weights).generate_infill(image, mask, CAT)
    assert torch.equal(torch.get_rng_state(), before)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([image, mask], dim=1)).sigmoid()


def test_autocast_of_the_caller_does_not_reach_the_network(tmp_path):
    image, mask = request(1, 16, 16)
    backend = load_backend("gan", weights=save_script(Convolution(), tmp_path / "layer.pt"))
    wanted = backend.generate_infill(image, mask, CAT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(backend.generate_infill(image, mask, CAT), wanted)


def test_a_file_in_half_precision_is_run_in_full(tmp_path):
    image, mask = request(1, 16, 16)
    module = Convolution()
    full, half = save_script(module, tmp_path / "full.pt"), save_script(module.half(), tmp_path / "half.pt")
    fills = [load_backend("gan", weights=path).generate_infill(image, mask, CAT) for path in (full, half)]
    torch.testing.assert_close(*fills, rtol=0, atol=1.1 / 255)


# --- identity ---


def test_the_fingerprint_changes_with_the_files_content_and_not_with_its_place(tmp_path, weights):
    same, other = tmp_path / "same.pt", tiny_inpainter(tmp_path / "other.pt", strength=0.2)
    same.write_bytes(Path(weights).read_bytes())
    prints = [load_backend("gan", weights=str(path)).model_config(CAT).fingerprint() for path in (weights, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_options_change_the_fingerprint_however_they_are_given_and_the_fill_too(weights):
    backend = load_backend("gan", weights=weights)
    prints = {backend.model_config(CAT).fingerprint()}
    for options in ({"multiple": 16}, {"size": 20}, {"scale": 255}):
        by_argument = load_backend("gan", weights=weights, **options).model_config(CAT)
        by_descriptor = backend.model_config(dataclasses.replace(CAT, options=options))
        assert by_argument == by_descriptor
        prints.add(by_argument.fingerprint())
    assert len(prints) == 4
    image, mask = request(1, 40, 40)
    small = dataclasses.replace(CAT, options={"size": 20})
    assert not torch.equal(backend.generate_infill(image, mask, small), backend.generate_infill(image, mask, CAT))


def test_the_config_is_made_without_loading_the_network(weights):
    backend = load_backend("gan", weights=weights)
    backend.model_config(CAT)
    assert backend._network is None


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda backend: pickle.loads(pickle.dumps(backend))])
def test_copies_leave_the_network_behind_and_fill_alike(twin, weights):
    backend = load_backend("gan", weights=weights)
    image, mask = request(1, 16, 16)
    wanted = backend.generate_infill(image, mask, CAT)
    other = twin(backend)
    assert backend._network is not None
    assert other._network is None
    assert torch.equal(other.generate_infill(image, mask, CAT), wanted)


# --- other files and other ranges ---


def test_a_file_of_torch_export_gives_the_same_fill(tmp_path, weights):
    exported = load_backend("gan", weights=tiny_exported(tmp_path / "tiny.pt2"))
    for size in ((16, 24), (9, 31)):
        image, mask = request(3, *size)
        wanted = load_backend("gan", weights=weights).generate_infill(image, mask, CAT)
        torch.testing.assert_close(exported.generate_infill(image, mask, CAT), wanted, rtol=0, atol=1.1 / 255)


def test_a_network_of_fixed_size_is_fed_by_size_and_multiple(tmp_path):
    images = torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    path = str(tmp_path / "fixed.pt2")
    torch.export.save(torch.export.export(TinyInpainter(), images), path)
    image, mask = request(2, 40, 70)
    fill = load_backend("gan", weights=path, size=32, multiple=32).generate_infill(image, mask, CAT)
    assert torch.equal(fill[~mask.expand_as(image)], image[~mask.expand_as(image)])
    with pytest.raises(BackendUnavailableError, match=r"failed on a picture of 64 x 64.*multiple=8"):
        load_backend("gan", weights=path).generate_infill(image, mask, CAT)


def test_outputs_of_0_to_255_are_scaled_and_a_wrong_scale_is_an_error_and_no_black_picture(tmp_path, weights):
    image, mask = request(2, 16, 24)
    bytes_file = tiny_inpainter(tmp_path / "bytes.pt", scale=255.0)
    fill = load_backend("gan", weights=bytes_file, scale=255).generate_infill(image, mask, CAT)
    torch.testing.assert_close(fill, expected(image, mask, TinyInpainter()), rtol=0, atol=1e-3)
    with pytest.raises(BackendUnavailableError, match=r"scale=1, but .* up to 15\d.* set scale=255"):
        load_backend("gan", weights=bytes_file).generate_infill(image, mask, CAT)
    with pytest.raises(BackendUnavailableError, match=r"scale=255, but .* up to 0\.\d+ .* set scale=1"):
        load_backend("gan", weights=weights, scale=255).generate_infill(image, mask, CAT)


# --- errors ---


class OneInput(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


class Small(nn.Module):
    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return image[..., ::2, ::2]


class Several(nn.Module):
    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image, mask


class FourChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 3, 1)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(image)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (OneInput, "expected at most 2"),
        (Small, r"returned \(1, 3, 32, 32\) for a picture of shape \(1, 3, 64, 64\)"),
        (Several, "returned tuple"),
        (FourChannels, "4 channels"),
    ],
)
def test_a_network_that_is_called_otherwise_is_refused_with_the_convention(module, message, tmp_path):
    backend = load_backend("gan", weights=save_script(module(), tmp_path / "other.pt"))
    image, mask = request(3, 16, 16)
    with pytest.raises(BackendUnavailableError, match=rf"{message}[\s\S]*1 = hole\) -> \(B, 3, H, W\)"):
        backend.generate_infill(image, mask, CAT)


def test_a_file_that_is_not_there_is_named_with_what_to_do(tmp_path):
    backend = load_backend("gan", weights=str(tmp_path / "nothing.pt"))
    for ask in (lambda: backend.model_config(CAT), lambda: backend.generate_infill(*request(1, 8, 8), CAT)):
        with pytest.raises(BackendUnavailableError, match=r"nothing\.pt'.*No such file.*TorchScript"):
            ask()


@pytest.mark.parametrize("name", ["text.pt", "state.pt", "text.pt2", "state.pt2"])
def test_a_file_of_another_kind_is_refused_with_what_to_do(name, tmp_path):
    if name.startswith("state"):
        torch.save(TinyInpainter().state_dict(), tmp_path / name)
    else:
        (tmp_path / name).write_text("no network")
    backend = load_backend("gan", weights=str(tmp_path / name))
    with pytest.raises(BackendUnavailableError, match=rf"{name}' cannot be loaded.*torch\.jit\.save"):
        backend.generate_infill(*request(1, 8, 8), CAT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiple": 0}, "multiple.*got 0"),
        ({"multiple": None}, "multiple.*got None"),
        ({"size": 0}, "size.*got 0"),
        ({"size": 2.5}, "size.*got 2.5"),
        ({"scale": 2}, "scale.*got 2"),
        ({"scale": True}, "scale.*got True"),
    ],
)
def test_options_out_of_range_are_refused_by_name_as_arguments_and_in_a_descriptor(options, message, weights):
    with pytest.raises(ValueError, match=message):
        load_backend("gan", weights=weights, **options)
    with pytest.raises(ValueError, match=message):
        load_backend("gan", weights=weights).model_config(dataclasses.replace(CAT, options=options))
