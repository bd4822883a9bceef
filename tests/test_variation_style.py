import copy

import pytest
import torch
from kornia.color import rgb_to_grayscale

from infill_aug.variation.operation import find_operation, list_operations
from infill_aug.variation.style import STYLE_WORDS, kuwahara, styles_in

NAMES = list_operations("style")
ALONE = [name for name in NAMES if not find_operation(name).mixes]


def pictures(count=5, height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")


def flat(value, count=4, size=64):
    return torch.full((count, 3, size, size), value)


def styled(name, image, **more):
    """The style at its fullest, not clamped."""
    operation = find_operation(name)()
    torch.manual_seed(0)
    params = operation.draw(torch.ones(len(image)), *image.shape[-2:])
    return operation.vary(image, **params, **more)


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (33, 7), (64, 64), (513, 20)])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_every_size_gives_a_picture_of_that_size_neither_black_nor_white(name, count, size):
    image = torch.rand(count, 3, *size) * 0.6 + 0.3
    operation = find_operation(name)(strength=(1.0, 1.0))
    varied = operation(image)
    assert varied.shape == image.shape
    assert varied.isfinite().all()
    assert 0.02 < varied.mean() < 0.98
    assert operation(torch.cat([torch.zeros_like(image), torch.ones_like(image)])).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_strength_0_leaves_the_picture_and_more_of_it_changes_more(name):
    image = pictures()
    changes = []
    for strength in (0.0, 0.25, 1.0):
        torch.manual_seed(1)
        changes.append((find_operation(name)(strength=(strength, strength))(image) - image).abs().mean())
    assert changes[0] < 1e-5
    assert 1e-3 < changes[1] < 0.6 * changes[2]


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_changes_in_its_own_way_and_a_draw_replays(name):
    image = pictures(1).expand(4, -1, -1, -1).contiguous()
    image[2:] = image[2:] * 0.5  # so that those that mix find something else
    operation = find_operation(name)(strength=(0.5, 1.0))
    varied = operation(image)
    if not operation.mixes:
        assert not torch.equal(varied[0], varied[1])
    assert torch.equal(operation(image, params=operation._params), varied)
    twin = copy.deepcopy(operation)
    assert torch.equal(twin(image, params=operation._params), varied)


@pytest.mark.parametrize("name", ALONE)
def test_a_broken_sample_breaks_no_other(name):
    image = pictures(3)
    broken = image.clone()
    broken[1] = torch.nan
    torch.testing.assert_close(styled(name, broken)[[0, 2]], styled(name, image)[[0, 2]])


def test_a_kuwahara_filter_keeps_an_edge_and_takes_the_noise_beside_it():
    image = flat(0.2, 1)
    image[..., 32:] = 0.8
    noisy = image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    smooth = kuwahara(noisy, 3)
    assert (smooth - image).abs().max() < 0.1
    assert (smooth - image).std() < 0.5 * (noisy - image).std()
    assert kuwahara(noisy[..., :1, :1], 3).shape == (1, 3, 1, 1)


def test_oil_and_watercolour_flatten_small_detail():
    noise = torch.rand(4, 3, 64, 64)
    for name in ("oil", "watercolour"):
        assert styled(name, noise).std(dim=(2, 3)).mean() < 0.75 * noise.std(dim=(2, 3)).mean()
    assert styled("watercolour", flat(0.0)).mean() > 0.15  # pale: no pigment is black


def test_a_sketch_has_lines_and_no_colour():
    image = flat(0.6)
    image[..., 32:] = 0.3
    sketch = styled("pencil_sketch", image)
    assert torch.equal(sketch[:, 0], sketch[:, 2])
    columns = sketch.mean(dim=(0, 1, 2))
    assert columns[32:34].mean() < columns[50:60].mean() - 0.1
    assert columns[4:20].mean() > 0.7


def test_a_poster_has_few_levels():
    poster = styled("poster", pictures())
    assert all(4 <= len(each.unique()) <= 6 for each in poster)


def test_a_comic_draws_edges_in_ink_and_puts_dots_into_shades():
    image = flat(0.9)
    image[..., 32:] = 0.4
    comic = rgb_to_grayscale(styled("comic", image)).mean(dim=(0, 1, 2))
    assert comic[32:34].min() < 0.7 * comic[50:60].min()
    assert styled("comic", flat(0.1)).std(dim=(2, 3)).min() > 0.02
    assert styled("comic", flat(0.9)).std(dim=(2, 3)).max() < 1e-3


def test_a_mosaic_is_constant_within_its_tiles():
    image = torch.rand(3, 3, 224, 224)
    mosaic = styled("mosaic", image)
    still = (mosaic.diff(dim=3).abs() < 1e-4).float().mean()
    assert 0.6 < still < 0.95
    assert (image.diff(dim=3).abs() < 1e-4).float().mean() < 0.01


def test_an_embossed_plain_is_plain_grey_and_an_edge_is_lit():
    plain = styled("emboss", flat(0.5))
    torch.testing.assert_close(plain, torch.full_like(plain, 0.52))
    image = flat(0.2)
    image[..., 32:, 32:] = 0.8
    assert styled("emboss", image).std(dim=(1, 2, 3)).min() > 0.01


def test_night_is_dark_and_blue_with_less_colour():
    image = pictures()
    night = styled("night", image)
    assert (night.mean(dim=(1, 2, 3)) < 0.6 * image.mean(dim=(1, 2, 3))).all()
    red, green, blue = styled("night", flat(0.5)).mean(dim=(0, 2, 3))
    assert red < green < blue


def test_fog_takes_contrast_and_lies_thicker_above():
    image = pictures()
    fog = styled("fog", image)
    assert (fog.std(dim=(2, 3)) < image.std(dim=(2, 3))).all()
    black = styled("fog", flat(0.0))
    assert black[..., :16, :].mean() > black[..., -16:, :].mean() + 0.1
    assert black.max() < 0.95


def test_snow_and_rain_fall_as_bright_specks_each_sample_with_its_own():
    for name in ("snow", "rain"):
        drawn = styled(name, flat(0.2, size=224))
        ground = drawn.flatten(1).median(dim=1).values
        bright = (drawn.mean(dim=1).flatten(1) > ground[:, None] + 0.1).float().mean(dim=1)
        assert (bright > 0.005).all()
        assert (bright < 0.5).all()
        assert not torch.equal(drawn[0], drawn[1])
    # The last one was rain: its streaks are longer than wide.
    assert drawn.diff(dim=3).abs().mean() > 2 * drawn.diff(dim=2).abs().mean()


def test_sunset_is_warm_at_the_horizon_and_violet_away_from_it():
    sunset = styled("sunset", flat(0.5))
    warmth = (sunset[:, 0] - sunset[:, 2]).mean(dim=2)
    assert (warmth.amax(dim=1) > 0.2).all()
    assert (warmth.amin(dim=1) < 0.5 * warmth.amax(dim=1)).all()


def test_film_lifts_black_dims_white_and_darkens_corners():
    black, white = styled("film", flat(0.0)), styled("film", flat(1.0))
    assert black.mean() > 0.06
    assert white.mean() < 0.95
    assert white[..., :8, :8].mean() < white[..., 28:36, 28:36].mean() - 0.1


def test_sepia_is_brown_whatever_the_colour_was():
    for image in (flat(0.5), pictures()):
        red, green, blue = styled("sepia", image).unbind(1)
        assert (red > green).all()
        assert (green > blue).all()


def test_thermal_colours_rise_with_lightness_from_violet_to_white():
    ends = [styled("thermal", flat(value)).mean(dim=(0, 2, 3)) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    lightness = rgb_to_grayscale(torch.stack(ends)[:, :, None, None]).flatten()
    assert (lightness.diff() > 0.02).all()
    torch.testing.assert_close(ends[0], torch.tensor([0.03, 0.02, 0.16]))
    torch.testing.assert_close(ends[-1], torch.tensor([1.0, 1.0, 0.92]))


def test_neon_glows_at_edges_on_dark():
    image = flat(0.3)
    image[..., 32:] = 0.7
    neon = styled("neon", image)
    assert neon[..., 31:33].mean() > 0.5
    assert neon[..., 8:16].mean() < 0.2
    assert (neon.amax(1) - neon.amin(1))[..., 31:33].mean() > 0.3  # in colour


def test_every_style_has_words_and_every_word_a_style():
    assert set(STYLE_WORDS) == set(ALONE) | {"photorealistic"}
    for style in ALONE:
        assert style in styles_in(" ".join(STYLE_WORDS[style]))


def test_words_pick_styles_and_shared_words_go_to_those_that_are_named():
    assert styles_in("photorealistic") == styles_in("") == styles_in("boiled filmstar") == {}
    assert styles_in("An OIL painting, with impasto; foggy") == {"oil": 3.0, "fog": 1.0}
    assert styles_in("watercolour painting") == {"watercolour": 2.0}
    assert styles_in("painting") == {"oil": 1.0, "watercolour": 1.0}
