import copy
import json
import pickle

import pytest
import torch
import transformers as hf
from tiny_networks import tiny_vitmae

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill import BackendUnavailableError, PartialInfillError, load_backend
from infill_aug.infill.mae import draw_hidden_patches, hidden_patches

CAT = TaskDescriptor("pets", "cat", seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vitmae(tmp_path_factory.mktemp("mae"))


def request(count, height, width, seed=0):
    """Pictures with a block to fill, another one in each."""
    generator = torch.Generator().manual_seed(seed)
    image, mask = torch.rand(count, 3, height, width, generator=generator), torch.zeros(count, 1, height, width)
    for i in range(count):
        mask[i, :, height // 4 : height // 4 + 1 + i * height // 10, width // 4 : width // 4 + 1 + i * width // 8] = 1
    return image, mask.bool()


def stripes(count):
    """Red rises to the right, green to the bottom, blue to the top, each with stripes across; levels differ."""
    line = torch.linspace(0, 0.4, 32) + 0.3 * (torch.arange(32) % 8 < 3)
    level = 0.3 * torch.rand(count, 1, 1, 1)
    return level + torch.stack(
        [line.expand(32, 32), line[:, None].expand(32, 32), line.flip(0)[:, None].expand(32, 32)]
    )


# --- the picture ---


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_a_trained_model_fills_far_better_than_the_mean_colour_and_than_a_smooth_continuation(norm_pix_loss, tmp_path):
    """Fails for a wrong order of rows, columns or channels, a wrong normalisation, and patches in wrong places."""
    weights = tiny_vitmae(tmp_path, steps=150, draw=stripes, norm_pix_loss=norm_pix_loss, mask_ratio=0.4)
    image, mask = stripes(12), torch.zeros(12, 1, 32, 32, dtype=torch.bool)
    mask[:6, :, 8:24, 8:24] = True
    mask[6:, :, :, 8:16] = True
    inside = mask.expand_as(image)

    def error(fill):
        return float((fill - image)[inside].abs().mean())

    visible = (image * ~mask).sum((2, 3), keepdim=True) / (~mask).sum((2, 3), keepdim=True)
    fill = load_backend("mae", checkpoint=weights).generate_infill(image, mask, CAT)
    assert error(fill) < 0.35 * error(visible.expand_as(image))
    assert error(fill) < 0.35 * error(load_backend("push_pull").generate_infill(image, mask, CAT))


def test_the_fill_is_what_the_model_itself_predicts_for_the_hidden_patches(folder):
    image, mask = torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 8:16, 16:32] = True  # patches 6 and 7 of 16
    model = hf.ViTMAEForPreTraining.from_pretrained(folder, mask_ratio=2 / 16).eval()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    order = torch.zeros(1, 16)
    order[0, 6:8] = 1
    with torch.no_grad():
        result = model(pixel_values=(image.masked_fill(mask, 0.4) - mean) / std, noise=order)
    assert result.mask[0].tolist() == order[0].tolist()
    wanted = (model.unpatchify(result.logits) * std + mean).clamp(0, 1)
    fill = load_backend("mae", checkpoint=folder).generate_infill(image, mask, CAT)
    torch.testing.assert_close(fill[mask.expand_as(image)], wanted[mask.expand_as(image)], rtol=0, atol=3e-3)


@pytest.mark.parametrize("size", [(32, 32), (1, 9), (9, 1), (2, 2), (7, 33), (70, 130)])
def test_pictures_of_every_size_are_filled_and_keep_what_is_visible(size, folder):
    image, mask = request(3, *size)
    mask[..., -1, -1] = False
    fill = load_backend("mae", checkpoint=folder).generate_infill(image, mask, CAT)
    assert fill.shape == image.shape
    assert fill.dtype == torch.float32
    assert ((fill >= 0) & (fill <= 1)).all()
    assert torch.equal(fill[~mask.expand_as(image)], image[~mask.expand_as(image)])
    assert not torch.equal(fill[mask.expand_as(image)], image[mask.expand_as(image)])


def test_a_patch_is_hidden_where_one_pixel_of_it_is():
    for row, column in ((0, 0), (7, 8), (15, 31), (31, 31)):
        mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
        mask[..., row, column] = True
        assert hidden_patches(mask, 4)[0, 0].nonzero().tolist() == [[row // 8, column // 8]]
    mask = torch.zeros(1, 1, 64, 128, dtype=torch.bool)
    mask[..., 16:48, 32:64] = True  # a block of two patches of a larger picture, and nothing around
    assert hidden_patches(mask, 4)[0, 0].nonzero().tolist() == [[1, 1], [2, 1]]


def test_where_no_patch_is_free_of_holes_the_clearest_quarter_is_shown_but_none_that_is_all_hole(folder):
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 3:5, ::2] = False
    mask[..., 20, 5] = False
    hidden = hidden_patches(mask, 4)[0, 0]
    assert (~hidden).nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    mask[..., 3:5, :] = True
    assert (~hidden_patches(mask, 4)[0, 0]).nonzero().tolist() == [[2, 0]]
    image = torch.rand(1, 3, 32, 32)
    fill = load_backend("mae", checkpoint=folder).generate_infill(image, mask, CAT)
    assert torch.equal(fill[..., 20, 5], image[..., 20, 5])


def test_scattered_holes_in_shown_patches_are_continued_smoothly(folder):
    image, mask = torch.full((1, 3, 32, 32), 0.6), torch.rand(1, 1, 32, 32) < 0.4
    fill = load_backend("mae", checkpoint=folder).generate_infill(image, mask, CAT)
    shown = (~hidden_patches(mask, 4)[0, 0]).nonzero().tolist()
    assert len(shown) == 4
    for row, column in shown:
        patch = fill[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert (patch - 0.6).abs().max() < 0.003


def test_patches_without_brightness_get_that_of_the_visible_patches_around(tmp_path):
    """Predictions of 0 stand for the mean: that of the surroundings, and not grey."""
    folder = tiny_vitmae(tmp_path, norm_pix_loss=True)
    model = hf.ViTMAEForPreTraining.from_pretrained(folder).eval()
    torch.nn.init.zeros_(model.decoder.decoder_pred.weight)
    torch.nn.init.zeros_(model.decoder.decoder_pred.bias)
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 8:24, 8:24] = True
    plain = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    for value in (0.2, 0.9):
        with torch.no_grad():
            fill = draw_hidden_patches(model, torch.full((1, 3, 32, 32), value).masked_fill(mask, 0.0), mask, *plain)
        assert (fill - value).abs().max() < 2e-3


# --- what every fill depends on ---


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_a_picture_is_filled_alike_alone_and_in_a_batch_of_other_holes(size, norm_pix_loss, tmp_path):
    backend = load_backend("mae", checkpoint=tiny_vitmae(tmp_path, norm_pix_loss=norm_pix_loss))
    image, mask = request(6, *size)
    assert len({int(hidden_patches(mask[i : i + 1], 4).sum()) for i in range(6)}) >= 3
    assert backend.model_config(CAT).max_batch == 1  # on a GPU too: calls of several need equally many visible patches
    together = backend.generate_infill(image, mask, CAT)
    for i in (3, 0, 5, 1, 4, 2):
        assert torch.equal(backend.generate_infill(image[i : i + 1], mask[i : i + 1], CAT)[0], together[i])


@pytest.mark.parametrize("size", [(32, 32), (45, 70), (20, 12)])
def test_what_lies_under_the_mask_is_not_looked_at(size, folder):
    backend = load_backend("mae", checkpoint=folder)
    image, mask = request(3, *size)
    wanted = backend.generate_infill(image, mask, CAT)
    for hidden in (0.0, 1.0, torch.nan, -7.0):
        assert torch.equal(backend.generate_infill(image.masked_fill(mask, hidden), mask, CAT), wanted)


def test_the_seed_does_not_change_the_fill_and_the_global_generator_is_left_alone(folder):
    backend = load_backend("mae", checkpoint=folder)
    assert not backend.model_config(CAT).stochastic
    image, mask = request(2, 40, 40)
    before = torch.get_rng_state()
    wanted = backend.generate_infill(image, mask, CAT)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(backend.generate_infill(image, mask, TaskDescriptor("pets", "cat", seed=5)), wanted)


def test_a_picture_without_visible_pixels_is_refused_and_the_others_are_filled(folder):
    image, mask = request(3, 32, 32)
    mask[1] = True
    with pytest.raises(PartialInfillError, match="sample 1: nothing is visible for 'mae'") as caught:
        load_backend("mae", checkpoint=folder).generate_infill(image, mask, CAT)
    assert caught.value.ok.tolist() == [True, False, True]


# --- identity and loading ---


def test_the_fingerprint_changes_with_the_weights_and_the_revision_and_not_with_the_place(folder, tmp_path):
    def config(checkpoint, **options):
        return load_backend("mae", checkpoint=checkpoint, **options).model_config(CAT)

    same, other = tiny_vitmae(tmp_path / "same"), tiny_vitmae(tmp_path / "other", seed=1)
    assert config(folder).fingerprint() == config(same).fingerprint() != config(other).fingerprint()
    hub = [config("facebook/vit-mae-base"), config("facebook/vit-mae-large"), config("facebook/vit-mae-base")]
    assert hub[0] == hub[2] != hub[1]
    assert hub[0].model == "facebook/vit-mae-base"
    assert config("facebook/vit-mae-base", revision="25b184b").fingerprint() != hub[0].fingerprint()
    assert config("facebook/vit-mae-base", revision="25b184b").revision == "25b184b"


def test_the_config_is_made_without_loading_the_model(folder):
    backend = load_backend("mae", checkpoint=folder)
    backend.model_config(CAT)
    assert backend._network is None


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda backend: pickle.loads(pickle.dumps(backend))])
def test_copies_leave_the_model_behind_and_fill_alike(twin, folder):
    backend = load_backend("mae", checkpoint=folder)
    image, mask = request(1, 32, 32)
    wanted = backend.generate_infill(image, mask, CAT)
    other = twin(backend)
    assert backend._network is not None
    assert other._network is None
    assert torch.equal(other.generate_infill(image, mask, CAT), wanted)


def test_the_normalisation_of_the_checkpoint_is_used_and_imagenets_where_there_is_none(tmp_path):
    folder = tiny_vitmae(tmp_path)
    network = load_backend("mae", checkpoint=folder).network(torch.device("cpu"))
    assert network[1].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert network[2].flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    hf.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    network = load_backend("mae", checkpoint=folder).network(torch.device("cpu"))
    assert network[1].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert network[2].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    hf.ViTImageProcessor(do_normalize=False).save_pretrained(folder)
    network = load_backend("mae", checkpoint=folder).network(torch.device("cpu"))
    assert (network[1].unique().tolist(), network[2].unique().tolist()) == ([0.0], [1.0])


def test_a_checkpoint_without_its_decoder_is_refused(folder, tmp_path):
    hf.ViTMAEModel.from_pretrained(folder).save_pretrained(tmp_path)
    backend = load_backend("mae", checkpoint=str(tmp_path))
    with pytest.raises(BackendUnavailableError, match=r"'mae'.*lacks weights.*decoder.*facebook/vit-mae-base"):
        backend.generate_infill(*request(1, 32, 32), CAT)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    with pytest.raises(
        BackendUnavailableError, match=r"'mae' .*: checkpoint '.*Where there is no network, name a folder"
    ):
        load_backend("mae", checkpoint=str(tmp_path)).generate_infill(*request(1, 32, 32), CAT)


def test_options_of_a_descriptor_are_refused_since_there_are_none(folder):
    with pytest.raises(ValueError, match="steps"):
        load_backend("mae", checkpoint=folder).model_config(TaskDescriptor("pets", "cat", options={"steps": 3}))
