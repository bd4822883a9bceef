"""Keep the edit, undo the rest: what a smart mask promises, on pictures that are drawn here."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests_support import launch, scene
from torchvision import tv_tensors
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as F

from infill_aug.smart_mask.result import PictureReport, SmartMaskResult
from infill_aug.smart_mask.smart_mask import SmartMask

HEIGHT, WIDTH = 120, 160


# Pictures


def bytes_of(picture: torch.Tensor) -> torch.Tensor:
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def ellipse(row=62.0, column=70.0, tall=30.0, wide=36.0, size=(HEIGHT, WIDTH)) -> torch.Tensor:
    """``(H, W)`` bool; all numbers are pixels of a picture of 120 rows."""
    scale = size[0] / HEIGHT
    y, x = (torch.arange(side) / scale for side in size)
    return ((y - row) / tall)[:, None] ** 2 + ((x - column) / wide)[None] ** 2 < 1


def recoloured(picture: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    return torch.where(area, picture.flip(0) * 0.7 + torch.tensor([0.28, 0.0, 0.12]).view(3, 1, 1), picture)


def drifted(picture: torch.Tensor) -> torch.Tensor:
    return (picture * torch.tensor([0.95, 0.92, 0.88]).view(3, 1, 1) + 0.03).clamp(0, 1)


def jpeg(picture: torch.Tensor, quality: int = 80) -> torch.Tensor:
    return decode_jpeg(encode_jpeg(bytes_of(picture), quality)) / 255


def shifted(picture: torch.Tensor, right: float = 2.0, down: float = 0.0) -> torch.Tensor:
    height, width = picture.shape[-2:]
    theta = torch.tensor([[[1, 0, -2 * right / width], [0, 1, -2 * down / height]]])
    grid = nnf.affine_grid(theta, [1, 3, height, width], align_corners=False)
    return nnf.grid_sample(picture[None], grid, "bicubic", "border", align_corners=False)[0].clamp(0, 1)


def grown(area: torch.Tensor, pixels: int) -> torch.Tensor:
    """``(H, W)`` bool, wider by so many pixels, or narrower."""
    if pixels < 0:
        return ~grown(~area, -pixels)
    return nnf.max_pool2d(area.float()[None], 2 * pixels + 1, 1, pixels)[0] > 0


ARTEFACTS = {
    "nothing": lambda p: p,
    "drift": drifted,
    "jpeg 80": jpeg,
    "shift": shifted,
    "shift of parts of a pixel": lambda p: shifted(p, 1.4, -0.7),
    "drift and jpeg": lambda p: jpeg(drifted(p)),
    "all": lambda p: jpeg(drifted(shifted(p))),
}
EDIT = ellipse()


def pair(seed: int = 0, artefact: str = "nothing", area: torch.Tensor = EDIT) -> tuple[torch.Tensor, torch.Tensor]:
    """``(3, H, W)`` uint8 twice."""
    original = bytes_of(scene(seed, *area.shape))
    return original, bytes_of(ARTEFACTS[artefact](recoloured(original / 255, area)))


def iou(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one > 0.5, other > 0.5
    return float((one & other).sum() / (one | other).sum())


# Forms


def _pil(mode: str):
    def make(unit: torch.Tensor) -> Image.Image:
        values = unit.movedim(0, -1).numpy()
        if mode == "I;16":
            return Image.fromarray((values[..., 0] * 65535).round().astype(np.uint16))
        eight = np.ascontiguousarray((values * 255).round().astype(np.uint8))
        return Image.frombytes(mode, (eight.shape[1], eight.shape[0]), eight.tobytes())

    return make


def _array(scale: int, dtype: str):
    def make(unit: torch.Tensor) -> np.ndarray:
        values = unit.movedim(0, -1).double().numpy() * scale
        return (values.round() if scale > 1 else values).astype(dtype)

    return make


# Channels, and how the form is made of ``(C, H, W)`` float64 in 0..1.
FORMS = {
    "uint8": (3, bytes_of),
    "uint8 grey": (1, bytes_of),
    "uint8 (H, W)": (1, lambda u: bytes_of(u)[0]),
    "uint8 alpha": (4, bytes_of),
    "uint8 grey and alpha": (2, bytes_of),
    "uint16": (3, lambda u: (u * 65535).round().int().to(torch.uint16)),
    "float16": (3, lambda u: u.half()),
    "bfloat16": (3, lambda u: u.bfloat16()),
    "float32": (3, lambda u: u.float()),
    "float32 alpha": (4, lambda u: u.float()),
    "float64": (3, lambda u: u),
    "array uint8": (3, _array(255, "u1")),
    "array uint16": (3, _array(65535, "u2")),
    "array float32": (3, _array(1, "f4")),
    "array float64 grey": (1, _array(1, "f8")),
    "array (H, W)": (1, lambda u: _array(255, "u1")(u)[..., 0]),
    "PIL L": (1, _pil("L")),
    "PIL LA": (2, _pil("LA")),
    "PIL RGB": (3, _pil("RGB")),
    "PIL RGBA": (4, _pil("RGBA")),
    "PIL CMYK": (4, _pil("CMYK")),
    "PIL YCbCr": (3, _pil("YCbCr")),
    "PIL I;16": (1, _pil("I;16")),
}
BATCHES = {
    "batch uint8": (3, lambda us: torch.stack([bytes_of(u) for u in us])),
    "batch float32": (3, lambda us: torch.stack(us).float()),
    "batch array": (3, lambda us: np.stack([_array(255, "u1")(u) for u in us])),
}


def planes(value) -> torch.Tensor:
    """Any form as ``(B, C, H, W)``, its values as they are."""
    if isinstance(value, torch.Tensor):
        value = value.int() if value.dtype == torch.uint16 else value
        return value.reshape(-1, *((1,) * (3 - value.ndim)), *value.shape[-3:])
    array = np.array(value)
    array = array.astype(np.int32) if array.dtype.kind in "ui" else array
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array.reshape(-1, *array.shape[-3:])).movedim(-1, 1)


def kept_pixels_are_the_originals(result: SmartMaskResult, original) -> bool:
    before, after = planes(original), planes(result.composite)
    mask = result.mask.reshape(-1, 1, *result.mask.shape[-2:])
    assert before.shape == after.shape
    assert mask.shape == (len(before), 1, *before.shape[-2:])
    assert mask.dtype == torch.float32
    assert ((mask >= 0) & (mask <= 1)).all()
    return before.dtype == after.dtype and bool((before == after)[(mask == 0).expand_as(before)].all())


def random_pair(seed: int, channels: int, height: int, width: int, artefacts: list[str]):
    """An original and an edited copy, float64 in 0..1, of any size, content and disturbance."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    original = (
        0.2 + 0.6 * F.resize(draw(channels, 3, 3), [height, width]).clamp(0, 1) + 0.1 * draw(channels, height, width)
    )
    edited = original.clone()
    top, left = (int(draw(1) * side) for side in (height, width))
    edited[:, top : top + height // 2 + 1, left : left + width // 2 + 1] = draw(channels, 1, 1)
    if "drift" in artefacts:
        edited = edited * (0.85 + 0.2 * draw(channels, 1, 1)) + 0.05 * draw(channels, 1, 1)
    if "shift" in artefacts:
        edited = edited.roll((int(3 * draw(1)), int(3 * draw(1))), (1, 2))
    if "noise" in artefacts:
        edited = edited + 0.05 * (draw(channels, height, width) - 0.5)
    if "other" in artefacts:
        edited = draw(channels, height, width)
    return original.clamp(0, 1), edited.clamp(0, 1)


SIDES = st.integers(1, 64)
DISTURBED = st.lists(st.sampled_from(["drift", "shift", "noise", "other"]), unique=True, max_size=3)


# Kept pixels


@settings(max_examples=30)
@given(form=st.sampled_from(sorted(FORMS)), seed=st.integers(0, 10**6), height=SIDES, width=SIDES, artefacts=DISTURBED,
       harmonize=st.booleans())  # fmt: skip
def test_kept_pixels_are_the_originals_bit_for_bit(form, seed, height, width, artefacts, harmonize):
    channels, make = FORMS[form]
    original, edited = (make(u) for u in random_pair(seed, channels, height, width, artefacts))
    result = SmartMask(harmonize=harmonize)(original, edited)
    assert type(result.composite) is type(original)
    assert kept_pixels_are_the_originals(result, original)
    if isinstance(original, Image.Image):
        assert result.composite.mode == original.mode


@settings(max_examples=15)
@given(form=st.sampled_from(sorted(BATCHES)), seed=st.integers(0, 10**6), height=SIDES, width=SIDES,
       count=st.integers(1, 3), artefacts=DISTURBED)  # fmt: skip
def test_kept_pixels_of_a_batch_are_the_originals_bit_for_bit(form, seed, height, width, count, artefacts):
    channels, make = BATCHES[form]
    pairs = [random_pair(seed + i, channels, height, width, artefacts) for i in range(count)]
    original, edited = (make([each[i] for each in pairs]) for i in range(2))
    result = SmartMask()(original, edited)
    assert result.mask.shape == (count, 1, height, width)
    assert kept_pixels_are_the_originals(result, original)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), height=SIDES, width=SIDES, artefacts=DISTURBED, whole=st.booleans(),
       protected=st.booleans(), share=st.floats(0, 1))  # fmt: skip
def test_kept_pixels_are_the_originals_whatever_is_hinted_and_protected(
    seed, height, width, artefacts, whole, protected, share
):
    original, edited = (bytes_of(u) for u in random_pair(seed, 3, height, width, artefacts))
    generator = torch.Generator().manual_seed(seed)
    hint = F.resize(torch.rand(1, 5, 5, generator=generator), [height, width]) < share
    protect = F.resize(torch.rand(1, 4, 4, generator=generator), [height, width]) < 0.3 if protected else None
    result = SmartMask(whole_hint=whole)(original, edited, mask_hint=hint, protect=protect)
    assert kept_pixels_are_the_originals(result, original)
    assert (result.mask[~hint] == 0).all()
    if protected:
        assert (result.mask[protect] == 0).all()
    if whole:
        assert result.mask.equal((hint if protect is None else hint & ~protect).float())


# The edit


@pytest.mark.parametrize("artefact", ARTEFACTS)
@pytest.mark.parametrize("seed", range(3))
def test_the_edit_is_taken_and_98_percent_of_what_is_8_pixels_away_stays_bit_for_bit(seed, artefact):
    original, edited = pair(seed, artefact)
    result = SmartMask()(original, edited)
    mask = result.mask[0]
    assert (mask[grown(EDIT, -6)] == 1).all()
    assert float(mask[EDIT].mean()) > 0.95
    assert iou(mask, EDIT) > 0.85
    assert result.reports[0].share == pytest.approx(float(mask.mean()), abs=1e-5)
    same = (result.composite == original).all(dim=0)
    assert float(same[~grown(EDIT, 8)].float().mean()) >= 0.98
    # What is taken is the edit that fits here: motion and drift undone.
    wanted = recoloured(original / 255, EDIT)
    assert float((result.composite / 255 - wanted)[:, grown(EDIT, -4)].abs().mean()) < 6 / 255


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.6])
@pytest.mark.parametrize("artefact", ["nothing", "drift and jpeg"])
def test_small_and_large_edits_are_taken(share, artefact):
    half = math.sqrt(share * HEIGHT * WIDTH / math.pi / 1.2)
    area = ellipse(60, 80, half, 1.2 * half)
    original, edited = pair(4, artefact, area)
    mask = SmartMask()(original, edited).mask[0]
    assert float(mask[area].mean()) > 0.95
    assert (mask[~grown(area, 8)] == 0).all()
    assert iou(mask, area) > (0.8 if share >= 0.1 else 0.7)  # of a small area a rim of a pixel is a large share


@pytest.mark.parametrize("artefact", ["nothing", "drift", "jpeg 80", "shift", "all"])
def test_without_harmonizing_what_is_taken_is_the_edited_picture_bit_for_bit(artefact):
    original, edited = pair(1, artefact)
    result = SmartMask(harmonize=False)(original, edited)
    taken = result.mask[0] == 1
    assert taken.any()
    assert (result.composite == edited)[:, taken].all()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_of_a_picture_that_did_not_drift_the_edit_is_taken_bit_for_bit(form):
    channels, make = FORMS[form]
    for seed in range(3):
        original, edited = (make(u) for u in random_pair(seed, channels, 48, 64, []))
        result = SmartMask()(original, edited)
        taken = result.mask[0] == 1
        assert taken.any()
        assert (planes(result.composite) == planes(edited))[0][:, taken].all()


def test_between_the_two_is_a_blend():
    original, edited = pair(2)
    result = SmartMask()(original, edited)
    low, high = torch.minimum(original, edited), torch.maximum(original, edited)
    assert ((result.composite >= low) & (result.composite <= high)).all()


def test_a_hole_that_kept_its_colour_is_filled():
    for artefact in ("nothing", "all"):
        original = bytes_of(scene(3))
        area = EDIT & ~ellipse(62, 70, 6, 7)
        edited = bytes_of(ARTEFACTS[artefact](recoloured(original / 255, area)))
        mask = SmartMask()(original, edited).mask[0]
        assert (mask[grown(EDIT, -6)] == 1).all()


def test_two_regions_are_both_taken_and_one_where_one_is_asked_for():
    large, small = ellipse(50, 45, 32, 30), ellipse(70, 120, 24, 22)
    original, edited = pair(5, "jpeg 80", large | small)
    both, one = SmartMask()(original, edited), SmartMask(regions=1)(original, edited)
    assert sum(region.taken for region in both.regions) == 2
    assert iou(both.mask[0], large | small) > 0.85
    assert sum(region.taken for region in one.regions) == 1
    assert iou(one.mask[0], large) > 0.85
    assert (one.mask[0][grown(small, 8)] == 0).all()


def test_a_small_distractor_far_off_is_left():
    speck = ellipse(108, 148, 5, 5)
    for artefact in ("nothing", "all"):
        original, edited = pair(6, artefact, EDIT | speck)
        result = SmartMask()(original, edited)
        assert (result.mask[0][grown(speck, 4)] == 0).all()
        assert (result.mask[0][grown(EDIT, -6)] == 1).all()
        assert result.regions[0].taken


def test_a_region_says_where_it_is_and_how_strong():
    original, edited = pair(7)
    (region,) = SmartMask()(original, edited).regions
    left, top, right, bottom = region.box
    assert (left, top, right, bottom) == pytest.approx((34, 32, 107, 93), abs=4)
    assert region.area == pytest.approx(int(EDIT.sum()), rel=0.1)
    assert region.strength > 5
    assert region.evidence == pytest.approx(1, abs=0.05)


def test_the_report_says_what_the_editor_did_to_all_of_the_picture():
    original, edited = pair(8, "drift")
    report = SmartMask()(original, edited).reports[0]
    assert report.gain == pytest.approx((0.95, 0.92, 0.88), abs=0.03)
    assert report.offset == pytest.approx((0.03,) * 3, abs=0.02)
    assert report.shift == (0.0, 0.0)
    report = SmartMask()(*pair(8, "shift")).reports[0]
    assert report.shift == pytest.approx((2.0, 0.0), abs=0.1)
    assert report.gain == (1.0, 1.0, 1.0)
    json.loads(json.dumps(report.as_dict(), allow_nan=False))


# Hints and protection


SPLIT = ellipse(50, 45, 30, 28), ellipse(70, 120, 28, 24)


@pytest.mark.parametrize("artefact", ["nothing", "all"])
def test_the_mask_never_leaves_the_hint(artefact):
    original, edited = pair(9, artefact, SPLIT[0] | SPLIT[1])
    hint = grown(SPLIT[0], 5)
    result = SmartMask()(original, edited, mask_hint=hint)
    assert (result.mask[0][~hint] == 0).all()
    assert (result.mask[0][grown(SPLIT[0], -6)] == 1).all()


@pytest.mark.parametrize("artefact", ["nothing", "all"])
def test_the_mask_never_enters_what_is_protected(artefact):
    original, edited = pair(9, artefact, SPLIT[0] | SPLIT[1])
    boxes = [(90, 30, 150.5, 110), (0, 0, 40, 60)]
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[30:110, 90:151], mask[:60, :40] = True, True
    by_box, by_mask = (SmartMask()(original, edited, protect=each) for each in (boxes, mask))
    assert (by_box.mask[0][mask] == 0).all()
    assert by_box.mask.equal(by_mask.mask)
    assert (by_box.mask[0][55:65, 48:62] == 1).all()
    assert by_box.composite[:, mask].equal(original[:, mask])


def test_an_edit_cut_by_what_is_protected_has_a_soft_edge_on_its_own_side():
    original, edited = pair(10)
    protect = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    protect[:, 70:] = True
    row = SmartMask()(original, edited, protect=protect).mask[0, 62]
    assert (row[70:] == 0).all()
    assert row[50] == 1
    assert 0 < row[69] < 1


@pytest.mark.parametrize("artefact", ["nothing", "drift and jpeg"])
def test_a_whole_hint_takes_exactly_the_hint(artefact):
    original, edited = pair(11, artefact)
    hint = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    hint[31:97, 33:111] = True
    result = SmartMask(whole_hint=True)(original, edited, mask_hint=hint)
    assert result.mask[0].equal(hint.float())
    assert result.composite[:, ~hint].equal(original[:, ~hint])
    assert result.confidence > 0.7
    protect = [(60, 40, 70, 50)]
    mask = SmartMask(whole_hint=True)(original, edited, mask_hint=hint, protect=protect).mask[0]
    hint[40:50, 60:70] = False
    assert mask.equal(hint.float())


def test_a_whole_hint_of_pictures_that_differ_elsewhere_is_less_sure():
    original, edited = pair(12)
    hint = ellipse(20, 140, 12, 12)  # the edit is somewhere else
    wrong = SmartMask(whole_hint=True)(original, edited, mask_hint=hint).confidence
    assert wrong < SmartMask(whole_hint=True)(original, edited, mask_hint=grown(EDIT, 4)).confidence - 0.1


def test_hints_and_protection_can_differ_in_a_batch():
    original, edited = (torch.stack([each, each]) for each in pair(9, "nothing", SPLIT[0] | SPLIT[1]))
    hints = torch.stack([grown(each, 5) for each in SPLIT])[:, None]
    mask = SmartMask()(original, edited, mask_hint=hints).mask
    for i in range(2):
        assert (mask[i][~hints[i]] == 0).all()
        assert (mask[i, 0][grown(SPLIT[i], -6)] == 1).all()


# Alone, together, and again


@pytest.mark.parametrize("artefact", ["nothing", "all"])
def test_a_picture_is_treated_in_a_batch_as_it_is_alone(artefact):
    pairs = [pair(seed, artefact, EDIT if seed % 2 else SPLIT[0]) for seed in range(3)]
    together = SmartMask()(*(torch.stack([each[i] for each in pairs]) for i in range(2)))
    for i, (original, edited) in enumerate(pairs):
        alone = SmartMask()(original, edited)
        assert together.mask[i].equal(alone.mask)
        assert together.composite[i].equal(alone.composite)
        assert together.reports[i] == alone.reports[0]
        assert together.confidence[i] == alone.confidence
        assert together.regions[i] == alone.regions


def test_the_same_pictures_give_the_same_bytes_again():
    original, edited = pair(13, "all")
    first = SmartMask()(original, edited)
    torch.manual_seed(5)
    again = SmartMask()(original, edited)
    assert first.mask.equal(again.mask)
    assert first.reports == again.reports


def test_the_number_of_threads_does_not_change_a_byte(tmp_path):
    script = """
        import sys
        sys.path.insert(0, sys.argv[2])
        import torch
        from test_smart_mask import ellipse, pair
        from infill_aug.smart_mask.smart_mask import SmartMask

        original, edited = pair(14, "all", ellipse(size=(210, 280)))
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.get_num_threads() == threads
            results.append(SmartMask()(original, edited))
        assert results[0].mask.equal(results[1].mask)
        assert results[0].composite.equal(results[1].composite)
        assert results[0].reports == results[1].reports
    """
    assert launch(script, tmp_path) == 0


def test_what_comes_in_is_left_as_it_is_and_shares_no_memory():
    original, edited = pair(15, "all")
    hint = grown(EDIT, 8)
    kept = [each.clone() for each in (original, edited, hint)]
    result = SmartMask()(original, edited, mask_hint=hint)
    result.composite.zero_()
    result.mask.zero_()
    assert all(one.equal(other) for one, other in zip((original, edited, hint), kept, strict=True))
    same = SmartMask()(original, original)
    same.composite.zero_()
    assert original.equal(kept[0])


# A preview


BIG = ellipse(size=(480, 640))


@pytest.mark.parametrize("side", [160, 333])
@pytest.mark.parametrize("artefact", ["nothing", "all"])
def test_what_a_preview_showed_is_had_at_full_size(artefact, side):
    original, edited = pair(16, artefact, BIG)
    preview = SmartMask().preview(original, edited, side=side)
    assert max(preview.mask.shape) == side
    assert preview.composite.shape[-2:] == preview.mask.shape[-2:]
    full = SmartMask()(original, edited, decision=preview.decision)
    assert full.mask.shape == (1, 480, 640)
    assert iou(F.resize(full.mask, list(preview.mask.shape[-2:]), antialias=True), preview.mask) > 0.95
    assert iou(full.mask[0], BIG) > 0.85
    assert full.threshold == preview.threshold
    assert full.confidence == preview.confidence
    assert [(r.evidence, r.strength, r.taken) for r in full.regions] == [
        (r.evidence, r.strength, r.taken) for r in preview.regions
    ]
    assert kept_pixels_are_the_originals(full, original)


def test_regions_and_shift_are_in_pixels_of_the_pictures_also_where_a_preview_decided():
    original, edited = pair(16, "shift", BIG)
    preview = SmartMask().preview(original, edited, side=160)
    full = SmartMask()(original, edited, decision=preview.decision)
    assert full.regions[0].box == pytest.approx((136, 128, 424, 368), abs=16)
    assert full.regions[0].area == pytest.approx(int(BIG.sum()), rel=0.1)
    assert full.reports[0].shift == pytest.approx((2.0, 0.0), abs=0.5)


def test_a_preview_has_800_pixels_unless_the_picture_has_fewer():
    original, edited = pair(17, "nothing", ellipse(size=(600, 900)))
    assert SmartMask().preview(original, edited).mask.shape == (1, 533, 800)
    original, edited = pair(17)
    assert SmartMask().preview(original, edited).mask.shape == (1, HEIGHT, WIDTH)
    assert SmartMask().preview(original, edited).mask.equal(SmartMask()(original, edited).mask)


@pytest.mark.parametrize("side", [97, 160])
def test_a_decision_of_another_size_keeps_to_its_hint_and_protection(side):
    area = ellipse(50, 45, 30, 28, size=(480, 640)) | ellipse(70, 120, 28, 24, size=(480, 640))
    original, edited = pair(18, "nothing", area)
    hint = torch.zeros(480, 640, dtype=torch.bool)
    hint[61:367, 57:303] = True
    protect = [(101, 103, 151, 157), (401, 99, 633, 471)]
    kept = torch.zeros_like(hint)
    kept[103:157, 101:151], kept[99:471, 401:633] = True, True
    preview = SmartMask().preview(original, edited, mask_hint=hint, protect=protect, side=side)
    full = SmartMask()(original, edited, decision=preview.decision)
    assert full.mask.any()
    assert (full.mask[0][kept] == 0).all()
    assert (full.mask[0][~hint] == 0).all()
    again = SmartMask()(original, edited, mask_hint=hint, protect=protect, decision=preview.decision)
    assert (again.mask[0][kept | ~hint] == 0).all()


def test_decisions_of_a_batch_are_used_each_for_its_picture():
    pairs = [pair(19, "nothing", SPLIT[i]) for i in range(2)]
    original, edited = (torch.stack([each[i] for each in pairs]) for i in range(2))
    preview = SmartMask().preview(original, edited, side=100)
    full = SmartMask()(original, edited, decision=preview.decision)
    for i in range(2):
        assert iou(full.mask[i, 0], SPLIT[i]) > 0.8


# Bad and odd input


FOUND = ("uint8", "uint8 grey", "uint8 alpha", "uint16", "float16", "float32", "float64", "array uint8", "array uint16",
         "PIL L", "PIL RGB", "PIL RGBA", "PIL CMYK", "PIL I;16")  # fmt: skip


@pytest.mark.parametrize("form", FOUND)
def test_an_edit_is_found_in_every_form(form):
    channels, make = FORMS[form]
    picture = scene(20).double()
    picture = torch.cat([picture, torch.full_like(picture[:1], 0.2 if form == "PIL CMYK" else 1.0)])[:channels]
    edited = picture.clone()
    edited[: min(channels, 3), EDIT] = 1 - 0.8 * picture[: min(channels, 3), EDIT]
    original = make(picture)
    result = SmartMask()(original, make(edited))
    assert (result.mask[0][grown(EDIT, -6)] == 1).all()
    assert iou(result.mask[0], EDIT) > 0.85
    assert kept_pixels_are_the_originals(result, original)


def test_alpha_of_the_original_stays_where_the_original_is_kept():
    original, edited = pair(21)
    alpha = torch.linspace(0, 255, WIDTH).expand(1, HEIGHT, -1).round().to(torch.uint8)
    with_alpha = torch.cat([original, alpha])
    result = SmartMask()(with_alpha, edited)
    assert result.composite.shape == (4, HEIGHT, WIDTH)
    assert result.composite[3:].equal(alpha)


def test_a_grey_original_with_colours_in_its_edit_says_so():
    grey = F.rgb_to_grayscale(bytes_of(scene(22)))
    edited = bytes_of(recoloured(grey.expand(3, -1, -1) / 255, EDIT))
    result = SmartMask()(grey, edited)
    assert "grey" in result.note
    assert result.composite[:, result.mask[0] == 0].equal(grey.expand(3, -1, -1)[:, result.mask[0] == 0])


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_pictures_are_compared_upright(tmp_path, orientation):
    original, edited = (Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pair(23))
    way = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    original.transpose(way).save(path, exif=exif)
    for turned in (path, str(path), Image.open(path)):
        result = SmartMask()(turned, edited)
        assert result.composite.size == original.size
        assert iou(result.mask[0], EDIT) > 0.85
        assert kept_pixels_are_the_originals(result, original)


def test_a_tensor_type_of_torchvision_comes_back():
    original, edited = pair(24)
    result = SmartMask()(tv_tensors.Image(original), tv_tensors.Image(edited))
    assert isinstance(result.composite, tv_tensors.Image)


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 1)])
def test_identical_pictures_give_the_original_and_say_so(form, size):
    channels, make = FORMS[form]
    original = make(torch.rand(channels, *size, dtype=torch.float64))
    result = SmartMask()(original, original)
    assert not result.mask.any()
    assert (planes(result.composite) == planes(original)).all()
    assert "identical" in result.note
    assert result.regions == ()
    assert result.confidence == 1.0


@pytest.mark.parametrize("how", ["another picture", "inverted", "noise"])
def test_a_picture_that_was_changed_everywhere_is_told_and_unsure(how):
    for seed in range(3):
        original = bytes_of(scene(seed))
        other = {"another picture": bytes_of(scene(seed + 60)), "inverted": 255 - original,
                 "noise": bytes_of(torch.rand(3, HEIGHT, WIDTH))}[how]  # fmt: skip
        result = SmartMask()(original, other)
        assert result.confidence < 0.5
        assert "whole picture" in result.note
        assert kept_pixels_are_the_originals(result, original)


@pytest.mark.parametrize("artefact", ["drift", "shift", "shift of parts of a pixel"])
@pytest.mark.parametrize("seed", [0, 1, 4])
def test_where_only_the_whole_picture_changed_the_original_comes_back_and_it_is_told(artefact, seed):
    original = bytes_of(scene(seed))
    result = SmartMask()(original, bytes_of(ARTEFACTS[artefact](original / 255)))
    assert not result.mask.any()
    assert result.composite.equal(original)
    assert "no local edit was found" in result.note
    assert "whole picture" in result.note
    assert result.confidence > 0.5


@pytest.mark.parametrize("artefact", ["jpeg 80", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_what_compression_alone_leaves_is_next_to_nothing_and_less_sure_than_an_edit(artefact, seed):
    original, edited = pair(seed, artefact)
    result = SmartMask()(original, bytes_of(ARTEFACTS[artefact](original / 255)))
    assert float(result.mask.mean()) < 0.05
    assert result.confidence < SmartMask()(original, edited).confidence


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (2, 150), (150, 3), (1, 2), (2, 2)])
@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_thin_pictures_are_pictures_too(size, form):
    original = FORMS[form][1](scene(25, max(size), max(size))[:, : size[0], : size[1]].double())
    edited = original.clone()
    long = 1 if size[1] > size[0] else 2
    middle = edited.narrow(3 - long, max(size) // 3, max(1, max(size) // 3))
    middle.copy_(FORMS[form][1](torch.tensor([0.9, 0.1, 0.05], dtype=torch.float64).view(3, 1, 1)))
    result = SmartMask()(original, edited)
    assert result.mask.shape == (1, *size)
    assert kept_pixels_are_the_originals(result, original)
    if max(size) >= 100:
        taken = result.mask.narrow(3 - long, max(size) // 3 + 6, max(size) // 3 - 12)
        assert (taken == 1).all()


def test_sizes_that_differ_are_an_error_that_names_both_and_a_resize_that_is_allowed():
    original, edited = pair(26)
    larger = bytes_of(F.resize(edited / 255, [180, 240], antialias=True))
    with pytest.raises(ValueError, match=r"160 x 120.*240 x 180.*resize=True"):
        SmartMask()(original, larger)
    result = SmartMask(resize=True)(original, larger)
    assert "resized from 240 x 180 to 160 x 120" in result.note
    assert (result.mask[0][grown(EDIT, -6)] == 1).all()
    assert kept_pixels_are_the_originals(result, original)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, 1.5])
@pytest.mark.parametrize("which", [0, 1])
def test_floating_point_out_of_range_is_an_error(bad, which):
    pictures = [scene(27), recoloured(scene(27), EDIT)]
    pictures[which][1, 5, 6] = bad
    with pytest.raises(ValueError, match=["the original is floating point", "the edited picture is floating"][which]):
        SmartMask()(*pictures)


@pytest.mark.parametrize("regions", [0, -1, 1.5, "two", True])
def test_a_number_of_regions_that_is_none_is_an_error(regions):
    with pytest.raises(ValueError, match=f"regions must be an integer of 1 or more.*{regions}"):
        SmartMask(regions=regions)


def test_an_unknown_preset_is_an_error():
    with pytest.raises(ValueError, match=r"default.*difference.*'magic'"):
        SmartMask.preset("magic")


def test_a_whole_hint_without_a_hint_is_an_error():
    with pytest.raises(ValueError, match="mask_hint"):
        SmartMask(whole_hint=True)(*pair(28))


def test_a_number_of_decisions_that_is_not_that_of_the_pictures_is_an_error():
    original, edited = pair(28)
    decision = SmartMask()(original, edited).decision
    with pytest.raises(ValueError, match=r"2 decision.* for 1 picture"):
        SmartMask()(original, edited, decision=[decision, decision])
    with pytest.raises(ValueError, match=r"1 decision.* for 2 picture"):
        SmartMask()(torch.stack([original] * 2), torch.stack([edited] * 2), decision=decision)


@pytest.mark.parametrize("name", ["mask_hint", "protect"])
def test_a_mask_of_another_size_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=rf"{name} must be .*160x120.*\(1, 1, 160, 120\)"):
        SmartMask()(*pair(28), **{name: torch.zeros(WIDTH, HEIGHT)})


def test_what_is_no_picture_is_an_error():
    with pytest.raises(TypeError, match=r"edited picture.*got int"):
        SmartMask()(pair(28)[0], 5)


# Confidence


@pytest.mark.parametrize("artefact", ["nothing", "jpeg 80", "all"])
def test_a_clear_edit_is_sure_and_noise_everywhere_is_not(artefact):
    original, edited = pair(29, artefact)
    clear = SmartMask()(original, edited).confidence
    assert clear > 0.7
    noise = 0.25 * torch.randn(edited.shape, generator=torch.Generator().manual_seed(0))
    hopeless = SmartMask()(original, bytes_of(edited / 255 + noise)).confidence
    assert hopeless < clear


def test_confidence_falls_as_noise_grows():
    original, edited = pair(30)
    found = []
    for strength in (0.0, 0.15, 0.6):
        noise = strength * torch.randn(edited.shape, generator=torch.Generator().manual_seed(1))
        found.append(SmartMask()(original, bytes_of(edited / 255 + noise)).confidence)
    assert found[0] > found[1] > found[2]
    assert all(0 <= each <= 1 for each in found)


# Presets


def test_the_default_preset_is_the_default():
    original, edited = pair(31, "all")
    assert type(SmartMask.preset("default")) is SmartMask
    assert SmartMask.preset("default")(original, edited).mask.equal(SmartMask()(original, edited).mask)
    assert SmartMask.preset("default", regions=2).regions == 2


def test_the_known_method_is_a_preset_and_has_no_confidence():
    original, edited = pair(31)
    result = SmartMask.preset("difference")(original, edited, protect=[(0, 0, 60, HEIGHT)])
    assert (result.threshold, result.reports[0].unit) == (10.0, "%")
    assert math.isnan(result.confidence)
    assert (result.mask[0][:, :60] == 0).all()
    assert (result.mask[0][55:70, 75:90] == 1).all()
    assert kept_pixels_are_the_originals(result, original)


def test_the_default_beats_the_known_method_where_colours_drift():
    original = bytes_of(scene(32))
    edited = bytes_of(0.8 * recoloured(original / 255, EDIT) + 0.02)
    known, mine = (SmartMask.preset(name)(original, edited).mask[0] for name in ("difference", "default"))
    assert iou(mine, EDIT) > 0.85 > iou(known, EDIT) + 0.2


# Results


def test_of_a_single_picture_values_come_alone_and_of_a_batch_in_a_tuple():
    original, edited = pair(33)
    alone, batch = SmartMask()(original, edited), SmartMask()(original[None], edited[None])
    assert isinstance(alone.reports[0], PictureReport)
    for name in ("threshold", "regions", "confidence", "note", "decision"):
        if name != "decision":
            assert getattr(batch, name) == (getattr(alone, name),)
        assert isinstance(getattr(batch, name), tuple)
    assert alone.mask.shape == (1, HEIGHT, WIDTH)
    assert dataclasses.replace(alone, decisions=()).decisions == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives():
    original, edited = pair(34, "all")
    here, there = SmartMask()(original, edited), SmartMask()(original.cuda(), edited.cuda())
    assert there.mask.is_cuda
    assert there.composite.is_cuda
    assert iou(here.mask, there.mask.cpu()) > 0.99
    back = dataclasses.replace(there, mask=there.mask.cpu(), composite=there.composite.cpu())
    assert kept_pixels_are_the_originals(back, original)


@pytest.mark.slow
def test_a_hundred_megapixels_need_less_than_a_gigabyte_beyond_the_pictures(tmp_path):
    script = """
        import os, resource, sys
        import torch
        from infill_aug.smart_mask.smart_mask import SmartMask

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        side = 10_000
        SmartMask()(*torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))  # what is loaded once
        ready = peak()
        original = torch.empty(3, side, side, dtype=torch.uint8)
        slope = (torch.arange(side) * 200 // side).to(torch.uint8)
        original[:] = slope
        original[1] = slope[:, None]
        edited = original.clone()
        edited[0, 3000:6000, 4000:7000] = 255
        pictures = 2 * original.numel()
        before = peak()
        assert before - ready - pictures < 50e6, before - ready  # nothing that would hide what comes
        result = SmartMask()(original, edited)
        extra = peak() - before
        print(f"{extra / 1e6:.0f} MB beyond the pictures")
        assert result.mask[0, 4500, 5500] == 1 and result.mask[0, :2900].sum() == 0
        assert result.composite[:, :2900].equal(original[:, :2900])
        assert extra < 1e9, extra
    """
    assert launch(script, tmp_path) == 0


def test_a_shift_seen_in_a_preview_is_measured_again_at_full_size():
    generator = torch.Generator().manual_seed(5)
    original = torch.nn.functional.interpolate(torch.rand(1, 3, 60, 80, generator=generator), scale_factor=16.0)[0]
    original = (original * 200 + 20).to(torch.uint8)
    edited = original.roll((2, 3), dims=(1, 2))
    edited[:, 300:600, 400:800] = edited[:, 300:600, 400:800] // 2
    smart = SmartMask()
    seen = smart.preview(original, edited, side=400)
    full = smart(original, edited, decision=seen.decision)
    assert full.reports[0].shift == (3.0, 2.0)
    assert full.composite[:, :200].equal(original[:, :200])
    inside = slice(350, 550), slice(450, 750)
    assert full.composite[:, *inside].equal(edited[:, 352:552, 453:753])


def test_a_hint_costs_nothing_of_the_edit_on_a_picture_larger_than_the_copy():
    original = scene(7, 900, 1200)
    area = ellipse(size=(900, 1200))
    edited = recoloured(original, area)
    mask = SmartMask()(original, edited, mask_hint=area).mask[0]
    assert (mask[area] >= 0.5).float().mean() > 0.995
    assert mask[~area].max() == 0


@pytest.mark.parametrize("gain", [(0.85, 0.85, 0.85), (0.95, 0.9, 0.8)])
def test_the_drift_of_a_grey_picture_does_not_colour_the_edit(gain):
    original = scene(8).mean(dim=0, keepdim=True).expand(3, -1, -1)
    wanted = torch.where(ellipse(), torch.tensor([0.2, 0.3, 0.8]).view(3, 1, 1), original)
    result = SmartMask()(original, wanted * torch.tensor(gain).view(3, 1, 1) + 0.04)
    assert (result.composite[:, 62, 70] - wanted[:, 62, 70]).abs().max() < 6 / 255


def test_a_service_that_gives_another_picture_is_not_trusted_whatever_the_hint():
    original, hint = scene(9), ellipse()
    smart = SmartMask(whole_hint=True)
    result = smart(original, 1 - original, mask_hint=hint)
    assert result.confidence < 0.5
    assert "outside of the hint" in result.note
    assert smart(original, recoloured(original, hint), mask_hint=hint).confidence > 0.9


def test_an_edit_that_lies_where_it_may_not_be_is_said_so():
    original, edited = pair(10)
    result = SmartMask()(original, edited, protect=grown(EDIT, 6))
    assert result.mask.max() == 0
    assert result.confidence < 0.5
    assert "protected" in result.note


def test_notes_are_said_once_also_with_a_reused_decision():
    original, edited = scene(11).mean(dim=0, keepdim=True), scene(11)
    smart = SmartMask()
    full = smart(original, edited, decision=smart.preview(original, edited, side=80).decision)
    assert full.note.count("grey") == 1


def test_decisions_and_options_of_another_kind_are_refused():
    original, edited = pair(12)
    known = SmartMask.preset("difference")
    with pytest.raises(ValueError, match="another kind"):
        SmartMask()(original, edited, decision=known(original, edited).decision)
    with pytest.raises(ValueError, match="another kind"):
        SmartMask()(original, edited, decision=SmartMask(whole_hint=True)(original, edited, mask_hint=EDIT).decision)
    with pytest.raises(ValueError, match="takes no decision"):
        known(original, edited, decision=SmartMask()(original, edited).decision)
    with pytest.raises(ValueError, match=r"takes resize only, got \['regions'\]"):
        SmartMask.preset("difference", regions=1)
    with pytest.raises(ValueError, match="side must be an integer of 1 or more"):
        SmartMask().preview(original, edited, side=0)
