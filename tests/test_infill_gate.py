import pytest
import torch

from infill_aug.confidence import CentreConfidence
from infill_aug.confidence.estimator import ConfidenceEstimator, EstimatorConfidence
from infill_aug.functional.masks import dilate
from infill_aug.infill import load_backend
from infill_aug.infill.gate import QualityGate, copy_correlation, kind_of, seam_jump
from infill_aug.infill.push_pull import push_pull

skimage_data = pytest.importorskip("skimage.data")


def photographs(size=64, count=6):
    """Crops of scikit-image's photographs, ``(N, 3, size, size)`` in 0..1."""
    crops = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        picture = torch.from_numpy(getattr(skimage_data, name)().copy()).permute(2, 0, 1).float() / 255
        generator = torch.Generator().manual_seed(len(crops))
        for _ in range(count):
            top, left = (int(torch.randint(picture.shape[axis] - 2 * size, (), generator=generator)) for axis in (1, 2))
            crops.append(torch.nn.functional.avg_pool2d(picture[:, top : top + 2 * size, left : left + 2 * size], 2))
    return torch.stack(crops)


def masks(count, size=64):
    """All but a disk of a random place and radius."""
    generator = torch.Generator().manual_seed(1)
    place = torch.arange(size)
    centre = torch.randint(16, size - 16, (count, 2), generator=generator)
    radius = torch.randint(8, 20, (count,), generator=generator)
    distance = (place[None, :, None] - centre[:, :1, None]) ** 2 + (place[None, None] - centre[:, 1:, None]) ** 2
    return (distance > radius[:, None, None] ** 2)[:, None]


IMAGES = photographs()
HOLES = masks(len(IMAGES))


def _red(pictures):
    return pictures[:, :1]


def words(reasons):
    return [reason.split(":")[0] if reason else None for reason in reasons]


def test_at_least_95_percent_of_real_pictures_pass():
    verdicts = QualityGate(copy=None)(IMAGES, IMAGES, HOLES)
    assert sum(verdict is None for verdict in verdicts) >= 0.95 * len(IMAGES)


def test_smooth_fills_pass():
    assert words(QualityGate()(IMAGES, push_pull(IMAGES, HOLES), HOLES)) == [None] * len(IMAGES)


def test_black_fills_are_found_and_dark_surroundings_excuse_them():
    assert words(QualityGate()(IMAGES, IMAGES.masked_fill(HOLES, 0.0), HOLES)).count("black") >= 0.9 * len(IMAGES)
    night = IMAGES * 0.05
    assert "black" not in words(QualityGate()(night, night.masked_fill(HOLES, 0.0), HOLES))


def test_fills_that_are_not_finite_are_found():
    for value in (torch.nan, torch.inf):
        broken = IMAGES.clone()
        broken[:, :, 0, 0] = value
        assert HOLES[:, 0, 0, 0].all()
        assert words(QualityGate()(IMAGES, broken, HOLES)) == ["not finite"] * len(IMAGES)


def test_one_flat_colour_is_found_unless_the_surroundings_have_it():
    flat = torch.where(HOLES, torch.tensor([0.9, 0.1, 0.9])[:, None, None], IMAGES)
    assert words(QualityGate(seam=None)(IMAGES, flat, HOLES)) == ["constant"] * len(IMAGES)
    wall = torch.full_like(IMAGES, 0.6)
    assert words(QualityGate()(wall, wall, HOLES)) == [None] * len(IMAGES)


def test_what_was_removed_is_found_when_it_is_pasted_back_brighter_or_compressed():
    gate = QualityGate(seam=None)
    textured = [i for i in range(len(IMAGES)) if copy_correlation(IMAGES[i], IMAGES[i], HOLES[i]) > 0]
    assert len(textured) >= len(IMAGES) // 3
    for copied in (IMAGES, (0.8 * IMAGES + 0.1), (IMAGES * 31).round() / 31):
        found = words(gate(IMAGES[textured], copied[textured], HOLES[textured]))
        assert found.count("copy") >= 0.9 * len(textured)
    assert "copy" not in words(gate(IMAGES, IMAGES.roll(1, dims=0), HOLES))


def test_a_hard_seam_is_found():
    far = torch.where(IMAGES.mean(dim=(2, 3), keepdim=True) > 0.5, 0.0, 1.0).expand_as(IMAGES)
    noisy = (far + 0.05 * torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(0)) - 0.025).clamp(0, 1)
    reasons = words(QualityGate(copy=None)(IMAGES, torch.where(HOLES, noisy, IMAGES), HOLES))
    assert sum(reason in ("seam", "black") for reason in reasons) >= 0.9 * len(IMAGES)
    paler = torch.where(IMAGES.mean(dim=(2, 3), keepdim=True) > 0.5, IMAGES - 0.3, IMAGES + 0.3).clamp(0, 1)
    assert words(QualityGate(copy=None)(IMAGES, paler, HOLES)).count("seam") >= 0.9 * len(IMAGES)


def test_the_contour_of_an_object_is_no_seam():
    image, mask = torch.full((3, 32, 32), 0.2), torch.ones(1, 32, 32, dtype=torch.bool)
    mask[:, 8:24, 8:24] = False
    image[:, 8:24, 8:24] = 0.9
    assert seam_jump(image, image, mask) <= 0
    assert seam_jump(image, 1 - image, mask) < 0.15
    assert seam_jump(torch.full_like(image, 0.9), image, mask) > 0.5, "the same jump, where the original has none"


def test_the_jump_at_the_rim_is_measured_beyond_the_roughness_beside_it():
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, :, 8:] = True
    calm, rough = torch.full((3, 16, 16), 0.3), torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert seam_jump(calm, calm + 0.5, mask) == pytest.approx(0.5)
    assert seam_jump(rough, rough.flip(0), mask) < 0
    assert seam_jump(calm, calm, torch.ones_like(mask)) == 0


def test_the_object_is_found_again_away_from_what_is_kept_and_not_in_its_halo():
    gate = QualityGate(seam=None, copy=None, finder=lambda pictures: pictures[:, :1], finder_name="red")
    image = torch.full((1, 3, 64, 64), 0.2)
    image[..., 24:40, 24:40] = 0.95
    hole = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    hole[..., 24:40, 24:40] = False
    empty = image + 0.02 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    second, halo = empty.clone(), torch.where(dilate(~hole, 4), 0.95, empty)
    second[..., 32:] = 0.9 + 0.1 * torch.rand(1, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    assert words(gate(image, empty, hole)) == [None]
    assert words(gate(image, second, hole)) == ["regrown"]
    assert words(gate(image, halo, hole)) == [None]


def test_a_finder_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 1, 64, 64\)"):
        QualityGate(finder=lambda pictures: pictures, finder_name="all")(
            IMAGES[:1], push_pull(IMAGES, HOLES)[:1], HOLES[:1]
        )


def test_verdicts_are_the_same_alone_in_a_batch_and_in_8_bits():
    fills = torch.cat([IMAGES[:4].masked_fill(HOLES[:4], 0.0), push_pull(IMAGES, HOLES)[4:8]])
    together = QualityGate()(IMAGES[:8], fills, HOLES[:8])
    alone = [QualityGate()(IMAGES[i : i + 1], fills[i : i + 1], HOLES[i : i + 1])[0] for i in range(8)]
    assert together == alone
    eight = [(part * 255).round().to(torch.uint8) for part in (IMAGES[:8], fills)]
    assert words(QualityGate()(*eight, HOLES[:8])) == words(together)


def test_an_empty_mask_passes():
    assert QualityGate()(IMAGES[:2], IMAGES[:2], torch.zeros_like(HOLES[:2])) == [None, None]


def test_the_identity_changes_with_every_setting():
    gates = [QualityGate(), QualityGate(seam=0.2), QualityGate(copy=None), QualityGate(finder=_red, finder_name="red")]
    gates += [QualityGate(found_above=0.5), QualityGate(found_share=0.5)]
    identities = [str(gate.identity()) for gate in gates]
    assert len(set(identities)) == len(gates)
    assert QualityGate().identity() == QualityGate().identity()


def test_a_classifier_that_sees_the_class_in_the_fill_alone_turns_it_down():
    def redness(pictures):
        """Class 1 is a red picture."""
        red = pictures[:, 0].mean(dim=(1, 2))
        return torch.stack([1 - red, red], dim=1) * 20

    gate = QualityGate(seam=None, copy=None, finder=redness, finder_name="redness")
    image, mask = torch.rand(4, 3, 32, 32), torch.ones(4, 1, 32, 32, dtype=torch.bool)
    mask[..., 8:24, 8:24] = False
    image[:, 0, 8:24, 8:24] = 1.0  # what is kept is red everywhere: only the fill counts
    fill = torch.where(mask, 0.3 * image, image)
    fill[1:, 0] = fill[1:, 0].masked_fill(mask[1:, 0], 0.9)
    assert words(gate(image, fill, mask, [1, 1, 0, None])) == [None, "regrown", None, None]
    with pytest.raises(ValueError, match="the finder has 2 classes: labels must be their numbers, got 'cat'"):
        gate(image[:1], fill[:1], mask[:1], ["cat"])


def test_a_classifier_looks_once_at_each_fill_whose_class_is_known():
    shown = []

    def classifier(pictures):
        shown.append(pictures)
        return torch.zeros(len(pictures), 2)

    gate = QualityGate(seam=None, copy=None, finder=classifier, finder_name="never sure")
    fills = push_pull(IMAGES[:4], HOLES[:4])
    gate(IMAGES[:1], fills[:1], HOLES[:1], [0])
    shown.clear()  # the first fill showed that it is a classifier
    assert gate(IMAGES[:4], fills, HOLES[:4], [0, 1, None, 1]) == [None] * 4
    assert len(shown) == 3
    assert torch.equal(torch.cat(shown), push_pull(fills, ~HOLES[:4])[[0, 1, 3]])


def test_an_object_on_a_flat_or_black_ground_may_have_its_ground_again():
    image, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 8:24, 8:24] = False
    for ground in (0.0, 1.0):
        studio = image.masked_fill(mask, ground)
        assert words(QualityGate()(studio, studio, mask)) == [None]


def test_finders_that_read_labels_or_have_no_name_are_refused():
    with pytest.raises(ValueError, match="CentreConfidence reads labels"):
        QualityGate(finder=CentreConfidence())
    with pytest.raises(ValueError, match="finder_name="):
        QualityGate(finder=_red).identity()


def test_a_gate_for_a_build_looks_for_no_seams_of_cut_outs_and_finds_with_networks():
    network = EstimatorConfidence(ConfidenceEstimator(input_size=32).eval())
    assert (
        QualityGate.of_build(load_backend("donor"), CentreConfidence()).identity() == QualityGate(seam=None).identity()
    )
    assert QualityGate.of_build(load_backend("push_pull"), network).identity() == QualityGate(finder=network).identity()
    assert QualityGate.of_build(load_backend("push_pull"), network).finder is network


def test_faults_that_backends_find_count_like_those_of_the_gate():
    assert kind_of("the fill is one constant colour [0, 0, 0] that its surroundings do not have") == "constant"
    assert kind_of("the model's safety checker flagged the fill; use another seed") == "flagged"
    assert kind_of("ConnectionError: copy failed") is None


@pytest.mark.parametrize("name", ["seam", "copy", "found_above", "found_share"])
def test_values_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must lie in 0..1, got 1.5"):
        QualityGate(**{name: 1.5})
