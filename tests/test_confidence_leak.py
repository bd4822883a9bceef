import pytest
import torch

from infill_aug.confidence.leak import LeakReport, leak_probe
from infill_aug.functional.grading import centre_prior


def blobs(radius, seed=0):
    """Soft discs at random places, one for each radius."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    centre = 8 + 16 * torch.rand(len(radius), 2, 1, 1, generator=torch.Generator().manual_seed(seed))
    squared = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2
    return torch.exp(-squared / (2 * radius[:, None, None] ** 2))[:, None]


LABELS = torch.arange(60) % 3
RADII = 4 + 2 * torch.rand(60, generator=torch.Generator().manual_seed(0))


def test_maps_that_code_the_class_by_size_leak():
    report = leak_probe(blobs(3 + 1.5 * LABELS), LABELS)
    assert report.leaks
    assert report.accuracy > 0.9
    assert report.chance == pytest.approx(1 / 3)
    assert report.margin == pytest.approx(report.accuracy - report.chance)


def test_a_faint_mark_in_one_place_leaks_in_pictures_of_any_size():
    maps = torch.nn.functional.interpolate(blobs(RADII), (40, 56), mode="bilinear")
    maps[LABELS == 1, :, -6:, -6:] = 0.6
    assert leak_probe(maps[LABELS < 2], LABELS[LABELS < 2]).leaks


def test_maps_that_do_not_know_the_class_do_not_leak_and_a_seed_gives_one_report():
    maps = blobs(RADII)
    state = torch.get_rng_state()
    report = leak_probe(maps, LABELS, seed=3)
    assert not report.leaks
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        inference = maps.clone()
        names = ["abc"[label] for label in LABELS.tolist()]
        assert leak_probe(inference, names, seed=3) == report


def test_the_same_map_for_all_is_at_chance_also_where_one_class_has_most_samples():
    labels = [0] * 40 + [1] * 6
    report = leak_probe(centre_prior(20, 30).expand(46, -1, -1, -1), labels)
    assert report == LeakReport(0.5, 0.5, 0.0, False), "answering the frequent class must not count as telling it"


def test_few_samples_raise_no_alarm_by_luck():
    labels = torch.arange(10) % 2
    for seed in range(2):
        report = leak_probe(torch.rand(10, 1, 8, 8), labels, seed=seed)
        assert report.leaks == (report.margin > 2 * (0.25 / 10) ** 0.5)


@pytest.mark.parametrize(
    ("maps", "labels", "options", "message"),
    [
        (torch.rand(9, 1, 8, 8), [0] * 5 + [1] * 4, {}, r"needs 5 samples or more, got \{1: 4\}"),
        (torch.rand(10, 1, 8, 8), [0] * 10, {}, r"two classes or more.*got \[0\]"),
        (torch.rand(9, 1, 8, 8), [0, 1] * 5, {}, "9 maps and 10 labels"),
        (torch.rand(10, 8, 8), [0, 1] * 5, {}, r"\(N, 1, H, W\) floating point"),
        (torch.rand(10, 1, 8, 8) * 2, [0, 1] * 5, {}, r"lie in 0\.\.1"),
        (torch.rand(10, 1, 8, 8), [0, 1] * 5, {"folds": 6}, r"folds must lie in 2\.\.5, got 6"),
    ],
)
def test_what_cannot_be_probed_is_refused_and_named(maps, labels, options, message):
    with pytest.raises(ValueError, match=message):
        leak_probe(maps, labels, **options)
