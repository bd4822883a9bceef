import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("lightning")

from infill_aug.infill.infiller_training import InfillerSet
from infill_aug.infill.pipeline import InfillPipeline, new_infiller
from infill_aug.lit.infiller import fit_infiller, sample_rows

CPU = {"accelerator": "cpu", "enable_progress_bar": False}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
]


def stripes(count=24, size=24):
    """Vertical stripes of two random colours: what is hidden follows from what is visible."""
    colours = torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(0))
    which = (torch.arange(size) // 4) % 2
    images = (colours[:, :, which][:, :, None].expand(-1, -1, size, -1) * 255).to(torch.uint8)
    return InfillerSet.of(images.contiguous(), torch.zeros(count, 1, size, size, dtype=torch.bool))


def new():
    torch.manual_seed(0)
    return InfillPipeline(*new_infiller(size=16, channels=(16, 32)))


def hole_error(pipeline, data):
    images = data.images[:8, :, :16, :16].float() / 255
    hole = torch.zeros(8, 1, 16, 16, dtype=torch.bool)
    hole[..., 4:12, 4:12] = True
    seeds = [torch.Generator().manual_seed(i) for i in range(8)]
    return float((pipeline(images, hole, seeds, steps=2) - images)[hole.expand_as(images)].abs().mean())


@pytest.mark.slow
def test_training_fills_stripes_better_than_before_and_draws_grids(tmp_path):
    data = stripes()
    before = hole_error(new(), data)
    trained = fit_infiller(
        new(), data, steps=150, batch_size=8, learning_rate=2e-3, width=8, held=data.take(list(range(4))),
        output=tmp_path, **CPU,
    )  # fmt: skip
    assert hole_error(trained, data) < 0.6 * before
    assert (tmp_path / "grids" / "000150.png").is_file()


def test_a_resumed_training_goes_on_where_it_stopped(tmp_path):
    options = {"batch_size": 8, "width": 8, "output": tmp_path, **CPU}
    fit_infiller(new(), stripes(), steps=6, max_steps=3, **options)
    assert 0 < done(tmp_path) < 6
    first = done(tmp_path)
    fit_infiller(new(), stripes(), steps=6, resume=True, **options)
    assert first < done(tmp_path) == 6


def done(folder):
    """Steps that the checkpoint has behind it."""
    return int(torch.load(folder / "last.ckpt", weights_only=False)["state_dict"]["average.n_averaged"])


def test_rows_show_pictures_holes_and_two_fills():
    data = stripes(6)
    rows = sample_rows(new(), data, 4)
    assert [tuple(row.shape) for row in rows] == [(4, 3, 16, 16)] * 4


def test_fewer_pictures_than_a_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="4 pictures are fewer than a batch of 16"):
        fit_infiller(new(), stripes(4), output=tmp_path, **CPU)
