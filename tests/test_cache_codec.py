import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infill_aug.cache.codec import decode_infill, decode_map, decode_pixels, encode_infill, encode_map


def draw(seed: int, height: int, width: int):
    generator = torch.Generator().manual_seed(seed)
    image, infill = (
        torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in range(2)
    )
    return image, infill, torch.rand(1, height, width, generator=generator) > 0.5


@pytest.mark.parametrize("codec", ["webp", "raw"])
@given(seed=st.integers(0, 2**16), height=st.integers(1, 40), width=st.integers(1, 40))
def test_lossless_codecs_give_back_the_exact_composite(codec, seed, height, width):
    image, infill, mask = draw(seed, height, width)
    payload, _ = encode_infill(infill, mask, image, codec)
    laid, generated = decode_infill(payload, image)
    assert torch.equal(laid, torch.where(mask, infill, image))
    assert torch.equal(generated, mask * 255)


def test_jpeg_is_close_and_exact_outside_the_mask():
    y, x = np.mgrid[:64, :64]
    smooth = torch.from_numpy(np.stack([y * 3, x * 3, y + x]).astype(np.uint8))
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[..., :31] = False
    payload, extension = encode_infill(255 - smooth, mask, smooth, "jpeg")
    assert extension == "jpg"
    laid, generated = decode_infill(payload, smooth)
    assert torch.equal(generated, mask * 255)
    assert torch.equal(laid[..., :31], smooth[..., :31])
    assert (laid.float() - torch.where(mask, 255 - smooth, smooth).float()).abs().max() < 40
    assert Image.open(io.BytesIO(payload)).size == (64, 64)


def test_an_infill_opens_in_any_viewer_with_the_mask_as_alpha():
    image, infill, mask = draw(0, 8, 9)
    opened = np.asarray(Image.open(io.BytesIO(encode_infill(infill, mask, image)[0])))
    assert opened.shape == (8, 9, 4)
    assert np.array_equal(opened[..., 3] > 0, mask[0].numpy())


@given(seed=st.integers(0, 2**16), height=st.integers(1, 40), width=st.integers(1, 40))
def test_maps_survive_exactly(seed, height, width):
    confidence = draw(seed, height, width)[0][:1]
    assert torch.equal(decode_map(encode_map(confidence)[0]), confidence)


def test_sides_beyond_what_webp_can_hold_are_stored_all_the_same():
    image, infill, mask = draw(0, 2, 16400)
    payload, extension = encode_infill(infill, mask, image)
    assert extension == "png"
    assert torch.equal(decode_infill(payload, image)[0], torch.where(mask, infill, image))
    assert encode_map(image[:1])[1] == "png"
    assert torch.equal(decode_map(encode_map(image[:1])[0]), image[:1])


def test_an_infill_of_another_size_is_refused():
    image, infill, mask = draw(0, 8, 9)
    payload, _ = encode_infill(infill, mask, image)
    with pytest.raises(ValueError, match=r"stored infill is \(8, 9\), its image \(9, 8\)"):
        decode_infill(payload, image.transpose(1, 2))
    assert decode_pixels(payload).shape == (4, 8, 9)


def test_an_unknown_codec_is_named():
    with pytest.raises(ValueError, match=r"codec must be one of .* got 'bmp'"):
        encode_infill(*draw(0, 2, 2)[1::-1], torch.zeros(1), "bmp")
