import pytest
import torch
from torch import nn

from infill_aug.functional.faithfulness import deletion_auc, insertion_auc, kept_accuracy, substrate_of

SIDE = 24


class CornerTexture(nn.Module):
    """Tells which channel of the upper left quarter has stripes: 0, 1, 2, or 3 for none."""

    def forward(self, images):
        stripes = images[:, :, : SIDE // 2, : SIDE // 2].diff(dim=3).abs().mean(dim=(2, 3))
        return 12 * torch.cat([stripes, torch.full_like(stripes[:, :1], 0.5)], dim=1)


CLASSIFIER = CornerTexture().eval()


def pictures():
    """Grey pictures with stripes in a corner of one channel; its number; and the map of that corner."""
    labels = torch.tensor([0, 1, 2, 0])
    images = torch.full((4, 3, SIDE, SIDE), 0.3) + 0.05 * torch.rand(4, 3, SIDE, SIDE)
    for image, label in zip(images, labels, strict=True):
        image[label, : SIDE // 2, : SIDE // 2] = torch.arange(SIDE // 2) % 2.0
    corner = torch.zeros(4, 1, SIDE, SIDE)
    corner[..., : SIDE // 2, : SIDE // 2] = 1
    return images, labels, corner


@pytest.mark.parametrize("substrate", ["blur", "mean"])
def test_the_right_map_beats_random_and_random_beats_the_inverse(substrate):
    images, _, corner = pictures()
    maps = (corner, torch.rand(4, 1, SIDE, SIDE), 1 - corner)
    deleted = [deletion_auc(CLASSIFIER, images, one, substrate=substrate).mean().item() for one in maps]
    inserted = [insertion_auc(CLASSIFIER, images, one, substrate=substrate).mean().item() for one in maps]
    assert deleted[0] < deleted[1] - 0.05 < deleted[2] - 0.1
    assert inserted[0] > inserted[1] + 0.05 > inserted[2] + 0.1


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_insertion_is_the_deletion_of_the_reversed_order_read_backwards(steps):
    images, labels, _ = pictures()
    confidence = torch.rand(4, 1, SIDE, SIDE)  # no ties: the order is the map's alone
    inserted = insertion_auc(CLASSIFIER, images, confidence, labels, steps=steps)
    torch.testing.assert_close(inserted, deletion_auc(CLASSIFIER, images, 1 - confidence, labels, steps=steps))


def test_the_curve_goes_from_the_whole_picture_to_the_substrate_in_equal_shares():
    seen = []

    def spy(images):
        seen.append(images.clone())
        return CLASSIFIER(images)

    images, labels, _ = pictures()
    confidence = torch.rand(4, 1, SIDE, SIDE)
    deletion_auc(spy, images, confidence, labels, steps=4, substrate="mean", batch_size=3)
    assert max(len(batch) for batch in seen) == 3
    seen = torch.cat(seen).reshape(5, 4, 3, SIDE, SIDE)
    assert torch.equal(seen[0], images)
    assert torch.equal(seen[4], images.mean(dim=(2, 3), keepdim=True).expand_as(images))
    changed = (seen != images).any(dim=2).float().mean(dim=(2, 3))
    torch.testing.assert_close(changed, torch.arange(5)[:, None].expand(5, 4) / 4)
    gone = (seen[1] != images).any(dim=1)
    assert confidence[:, 0][gone].min() > 0.6, "the pixels of highest confidence go first"
    for picture, lost in zip(confidence[:, 0], gone, strict=True):
        assert picture[lost].min() >= picture[~lost].max()


def test_a_score_is_the_area_by_the_trapezoid_rule():
    def brightness(images):
        return torch.stack([images.mean(dim=(1, 2, 3)), torch.zeros(len(images))], dim=1)

    images = torch.zeros(1, 3, 2, 2)
    images[..., 0, 0] = 1
    confidence = torch.tensor([[[[0.9, 0.5], [0.3, 0.1]]]])
    found = deletion_auc(brightness, images, confidence, torch.tensor([0]), steps=2, substrate="mean")
    curve = torch.tensor([0.25, (0.25 + 0.25) / 4, 0.25]).sigmoid()
    torch.testing.assert_close(found[0], (curve[0] / 2 + curve[1] + curve[2] / 2) / 2)


def test_scores_are_the_same_in_batches_of_any_size_and_without_labels_follow_the_prediction():
    images, labels, corner = pictures()
    wanted = deletion_auc(CLASSIFIER, images, corner, labels)
    torch.testing.assert_close(deletion_auc(CLASSIFIER, images, corner, labels, batch_size=1), wanted)
    torch.testing.assert_close(deletion_auc(CLASSIFIER, images, corner, labels, batch_size=1000), wanted)
    torch.testing.assert_close(deletion_auc(CLASSIFIER, images, corner), wanted)
    assert (deletion_auc(CLASSIFIER, images, corner, (labels + 1) % 3) < wanted).all()


def test_ties_are_broken_by_the_generator_and_global_draws_are_left_alone():
    images, labels, _ = pictures()
    flat = torch.full((4, 1, SIDE, SIDE), 0.5)

    def score(seed):
        generator = torch.Generator().manual_seed(seed)
        return insertion_auc(CLASSIFIER, images, flat, labels, steps=4, generator=generator)

    state = torch.get_rng_state()
    assert torch.equal(score(1), score(1))
    assert not torch.equal(score(1), score(2))
    assert torch.equal(insertion_auc(CLASSIFIER, images, flat, labels), insertion_auc(CLASSIFIER, images, flat, labels))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_classifier_is_right_on_what_it_needs_and_wrong_on_the_rest():
    images, labels, corner = pictures()
    for substrate in ("blur", "mean"):
        for keep, wanted in ((0.0, 0), (0.1, 0), (0.25, 1), (0.5, 1), (1.0, 1)):
            found = kept_accuracy(CLASSIFIER, images, labels, corner, keep, substrate=substrate)
            assert found.tolist() == [wanted] * 4, (substrate, keep)
        for keep, wanted in ((0.25, 0), (0.75, 0), (1.0, 1)):
            found = kept_accuracy(CLASSIFIER, images, labels, 1 - corner, keep, substrate=substrate)
            assert found.tolist() == [wanted] * 4, (substrate, keep)
    assert kept_accuracy(CLASSIFIER, images, (labels + 1) % 3, corner, batch_size=3).tolist() == [0] * 4


def test_the_blur_keeps_means_and_takes_detail():
    images = torch.rand(2, 3, 64, 48)
    blurred = substrate_of(images)
    assert blurred.shape == images.shape
    assert (blurred.mean(dim=(2, 3)) - images.mean(dim=(2, 3))).abs().max() < 0.02
    assert blurred.std(dim=(2, 3)).max() < 0.2 * images.std(dim=(2, 3)).min()
    flat = torch.full((1, 3, 5, 300), 0.4)
    torch.testing.assert_close(substrate_of(flat), flat)


def test_what_cannot_be_measured_is_refused_and_named():
    images, labels, corner = pictures()
    for auc in (deletion_auc, insertion_auc):
        with pytest.raises(ValueError, match=r"call classifier.eval\(\)"):
            auc(CornerTexture().train(), images, corner)
        with pytest.raises(ValueError, match=r"substrate must be one of .* got 'noise'"):
            auc(CLASSIFIER, images, corner, substrate="noise")
        with pytest.raises(ValueError, match="1 or more, got 0"):
            auc(CLASSIFIER, images, corner, steps=0)
        with pytest.raises(ValueError, match=r"images need \(4, 1, 24, 24\)"):
            auc(CLASSIFIER, images, corner[:2])
        with pytest.raises(ValueError, match="no order"):
            auc(CLASSIFIER, images, corner * torch.nan)
        with pytest.raises(ValueError, match=r"labels must be one integer class.*float32"):
            auc(CLASSIFIER, images, corner, labels.float())
        with pytest.raises(ValueError, match=r"\(B, K\) logits are needed"):
            auc(lambda x: x, images, corner)
        with pytest.raises(ValueError, match="logits that are not finite"):
            auc(lambda x: x.mean((2, 3)) * torch.inf, images, corner)
    with pytest.raises(ValueError, match=r"uint8 \(4, 3, 24, 24\)"):
        kept_accuracy(CLASSIFIER, images.to(torch.uint8), labels, corner)
    with pytest.raises(ValueError, match=r"keep must lie in 0\.\.1, got 2"):
        kept_accuracy(CLASSIFIER, images, labels, corner, 2)
