"""Edits whose truth is known: only what was asked for happens to a picture, and the same in every run."""

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as F

from infill_aug.smart_mask.known_edits import ARTEFACTS, EDITS, known_edit


def scene(seed: int, height: int = 96, width: int = 128) -> torch.Tensor:
    """Colours that change slowly, with a fine texture, ``(3, H, W)`` uint8."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.2 + 0.6 * F.resize(torch.rand(3, 4, 5, generator=generator), [height, width])
    image = image + 0.04 * torch.randn(3, height, width, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def square(height: int = 96, width: int = 128) -> torch.Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = True
    return mask


PICTURE, DONOR, MASK = scene(0), scene(1, 70, 90), square()


def made(edit="replace", artefacts=(), seed=0, strength=1.0):
    return known_edit(PICTURE, MASK, DONOR, edit, artefacts, seed=seed, strength=strength)


def away(one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> float:
    """Mean difference inside of a mask, in steps of 8 bits."""
    return float((one.float() - other.float()).abs()[:, mask[0]].mean())


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("artefacts", [(), ARTEFACTS])
def test_the_same_seed_gives_the_same_pair_and_another_one_another(edit, artefacts):
    torch.manual_seed(1)
    first = made(edit, artefacts, seed=5)
    torch.manual_seed(2)  # of no account
    assert first.edited.equal(made(edit, artefacts, seed=5).edited)
    assert not first.edited.equal(made(edit, artefacts, seed=6).edited)


def test_the_generators_of_others_are_left_alone():
    before = torch.get_rng_state()
    made("retexture", ARTEFACTS)
    assert torch.get_rng_state().equal(before)


@settings(max_examples=40)
@given(edit=st.sampled_from(EDITS), seed=st.integers(0, 10**6))
def test_without_artefacts_nothing_changes_outside_of_the_mask_and_a_lot_inside(edit, seed):
    known = made(edit, seed=seed)
    assert known.original.equal(PICTURE)
    assert known.mask.equal(MASK)
    assert known.edited[:, ~MASK[0]].equal(PICTURE[:, ~MASK[0]])
    assert away(known.edited, PICTURE, MASK) > 6


@pytest.mark.parametrize("artefact", ARTEFACTS)
@pytest.mark.parametrize("seed", range(3))
def test_each_artefact_changes_the_picture_outside_of_the_edit(artefact, seed):
    known = made(artefacts=(artefact,), seed=seed)
    outside = nnf.max_pool2d(MASK.float(), 9, 1, 4) == 0
    assert away(known.edited, PICTURE, outside) > 0.1
    assert known.original.equal(PICTURE)
    assert known.mask.equal(MASK)


@pytest.mark.parametrize("artefact", ["decoder", "drift", "jpeg", "shift"])
def test_artefacts_are_small_against_the_edit(artefact):
    for seed in range(6):
        known = made(artefacts=(artefact,), seed=seed)
        assert away(known.edited, PICTURE, ~MASK) < 0.6 * away(known.edited, PICTURE, MASK)


def test_distractors_are_two_to_four_small_things_far_from_the_edit():
    from scipy import ndimage

    picture, mask = scene(2, 240, 320), square(240, 320)
    near = nnf.max_pool2d(mask.float(), 41, 1, 20)[0] > 0
    for seed in range(6):
        known = known_edit(picture, mask, DONOR, "replace", ("distractors",), seed=seed)
        changed = (known.edited != picture).any(dim=0)
        assert not (changed & near & ~mask[0]).any()
        share = float((changed & ~near).float().mean())
        assert 0.001 < share < 0.045
        _, count = ndimage.label(nnf.max_pool2d((changed & ~near).float()[None], 5, 1, 2)[0].numpy() > 0)
        assert 1 <= count <= 4  # two may touch


def test_no_distractor_where_there_is_no_room():
    everywhere = torch.ones_like(MASK)
    first = known_edit(PICTURE, everywhere, DONOR, "replace", ("distractors",))
    assert first.edited.equal(known_edit(PICTURE, everywhere, DONOR, "replace").edited)


@pytest.mark.parametrize("seed", range(3))
def test_jpeg_of_quality_70_to_95_is_last_whatever_the_order(seed):
    others = tuple(a for a in ARTEFACTS if a != "jpeg")
    once = made(artefacts=others, seed=seed).edited
    wanted = [decode_jpeg(encode_jpeg(once, quality)) for quality in range(70, 96)]
    for order in (("jpeg", *others), (*others, "jpeg"), ("shift", "jpeg", "drift", "distractors", "decoder")):
        stored = made(artefacts=order, seed=seed).edited
        assert any(stored.equal(each) for each in wanted)


@pytest.mark.parametrize("artefact", [a for a in ARTEFACTS if a != "distractors"])
def test_artefacts_grow_with_their_strength(artefact):
    grown = []
    for strength in (0.5, 1.0, 2.0):
        pairs = [made(artefacts=(artefact,), seed=seed, strength=strength) for seed in range(8)]
        grown.append(sum(away(each.edited, PICTURE, ~MASK) for each in pairs))
    assert grown[0] < grown[1] < grown[2]


@pytest.mark.parametrize("artefact", ["drift", "decoder", "shift"])
def test_no_strength_is_no_artefact(artefact):
    assert made(artefacts=(artefact,), strength=0.0).edited.equal(made().edited) or artefact == "shift"
    assert away(made(artefacts=(artefact,), strength=0.0).edited, PICTURE, ~MASK) < 0.5


@settings(max_examples=30)
@given(
    edit=st.sampled_from(EDITS),
    seed=st.integers(0, 10**6),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    data=st.data(),
)
def test_pictures_of_any_size_can_be_edited(edit, seed, height, width, data):
    artefacts = tuple(data.draw(st.lists(st.sampled_from(ARTEFACTS), unique=True)))
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, : height // 2 + 1, : width // 2 + 1] = True
    known = known_edit(scene(seed % 7, height, width), mask, DONOR, edit, artefacts, seed=seed)
    assert known.edited.shape == (3, height, width)
    assert known.edited.dtype == torch.uint8


def test_the_pictures_are_left_as_they_are():
    kept = PICTURE.clone(), MASK.clone(), DONOR.clone()
    for edit in EDITS:
        made(edit, ARTEFACTS)
    assert all(one.equal(other) for one, other in zip((PICTURE, MASK, DONOR), kept, strict=True))


@pytest.mark.parametrize(
    ("edit", "artefacts", "message"),
    [("blur", (), "got 'blur'"), ("replace", ("fog",), r"got 'replace' and \('fog',\)"),
     ("", ("jpeg",), "one of .*recolour.*retexture.*relight.*replace"), ("relight", ("jpeg", "rain"), "rain")],
)  # fmt: skip
def test_an_unknown_edit_or_artefact_is_named(edit, artefacts, message):
    with pytest.raises(ValueError, match=message):
        made(edit, artefacts)
