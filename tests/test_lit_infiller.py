from typing import ClassVar

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("lightning")

from tests_support import launch_ranks

from infill_aug.infill.infiller_training import InfillerSet
from infill_aug.infill.pipeline import new_infiller
from infill_aug.infill.single_pass import SinglePassInfiller
from infill_aug.lit.infiller import InfillerModule, fit_infiller, sample_rows

CPU = {"accelerator": "cpu", "enable_progress_bar": False}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
]


def walls(count=24, size=24):
    """Pictures of one random colour each: what is hidden follows from what is visible."""
    colours = torch.randint(0, 256, (count, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = colours.expand(-1, -1, size, size).contiguous()
    return InfillerSet.of(images, torch.zeros(count, 1, size, size, dtype=torch.bool))


class Dies(InfillerSet):
    """Breaks after some samples, as a machine does."""

    left: ClassVar[int] = 500

    def __getitem__(self, index):
        type(self).left -= 1
        if type(self).left < 0:
            raise OSError("the machine is gone")
        return super().__getitem__(index)


def new():
    torch.manual_seed(0)
    return new_infiller(size=16, channels=(16, 32))


def hole_error(pipeline, data):
    images = data.images[:8, :, :16, :16].float() / 255
    hole = torch.zeros(8, 1, 16, 16, dtype=torch.bool)
    hole[..., 4:12, 4:12] = True
    seeds = [torch.Generator().manual_seed(i) for i in range(8)]
    return float((pipeline(images, hole, seeds, steps=2) - images)[hole.expand_as(images)].abs().mean())


@pytest.mark.slow
def test_training_fills_walls_better_than_before_and_draws_grids(tmp_path):
    data = walls()
    before = hole_error(new(), data)
    trained = fit_infiller(
        new(), data, steps=200, batch_size=8, learning_rate=2e-3, width=8, held=data.take(list(range(4))),
        output=tmp_path, **CPU,
    )  # fmt: skip
    assert hole_error(trained, data) < 0.93 * before
    assert (tmp_path / "grids" / "000200.png").is_file()


def test_a_training_that_died_goes_on_where_it_was_saved(tmp_path):
    options = {"batch_size": 8, "width": 8, "output": tmp_path, "steps": 100, **CPU}
    data = walls()
    with pytest.raises(OSError, match="the machine is gone"):
        fit_infiller(new(), Dies(data.images, data.objects, data.cores, data.plates), **options)
    assert done(tmp_path) in (40, 60)
    fit_infiller(new(), data, resume=True, **options)
    assert done(tmp_path) == 100


TWO_RANKS = """
    import os, pathlib, sys, torch
    sys.path.insert(0, sys.argv[2])
    from test_lit_infiller import fit_infiller, new, walls

    trained = fit_infiller(
        new(), walls(), steps=6, batch_size=4, width=8, output=sys.argv[1], accelerator="cpu", devices=2,
        enable_progress_bar=False,
    )
    torch.save(trained.unet.state_dict(), pathlib.Path(sys.argv[1], f"rank{os.environ.get('LOCAL_RANK', 0)}.pt"))
    # Lightning leaves the group to the end of the process, where gloo's threads have been seen to abort it.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    launch_ranks(TWO_RANKS, tmp_path)
    assert done(tmp_path) == 6
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["conv_out.weight"].abs().max() > 0


def test_a_pipeline_of_another_size_than_the_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="read for 32 px, and the pipeline fills 16"):
        fit_infiller(new(), walls(size=48), output=tmp_path, **CPU)


def done(folder):
    """Steps that the checkpoint has behind it."""
    return int(torch.load(folder / "last.ckpt", weights_only=False)["state_dict"]["average.n_averaged"])


def test_rows_show_pictures_holes_and_three_fills():
    data = walls(6)
    rows = sample_rows(InfillerModule(new(), steps=1, size=16, width=8), data, 4)
    assert [tuple(row.shape) for row in rows] == [(4, 3, 16, 16)] * 5
    assert 0.2 < float((rows[0] == rows[1]).float().mean()) < 0.9  # without objects there is something visible too


def test_a_network_of_one_pass_learns_to_fill_walls_too(tmp_path):
    data = walls()
    torch.manual_seed(0)
    network = SinglePassInfiller(16)
    images, hole = data.images[:8, :, :16, :16].float() / 255, torch.zeros(8, 1, 16, 16)
    hole[..., 4:12, 4:12] = 1
    errors = []
    for _ in range(2):
        with torch.no_grad():
            fill = network(images, hole)
        errors.append(float((fill - images)[hole.expand_as(images) > 0].abs().mean()))
        network = fit_infiller(
            network, data, steps=100, batch_size=8, learning_rate=2e-3, width=8, output=tmp_path, **CPU
        )
    assert errors[1] < 0.6 * errors[0]


def test_fewer_pictures_than_a_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="4 pictures are fewer than a batch of 16"):
        fit_infiller(new(), walls(4), output=tmp_path, **CPU)
