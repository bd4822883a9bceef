import pytest
import torch

pytest.importorskip("diffusers")

from tiny_networks import tiny_infiller

from infill_aug.infill.pipeline import load_infiller, new_infiller, patch_of, predict


@pytest.fixture(scope="module")
def pipeline():
    return tiny_infiller()


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


def request(count=3, height=16, width=24):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, height, width, generator=generator)
    hole = torch.zeros(count, 1, height, width, dtype=torch.bool)
    hole[..., 4:12, 4:12] = True
    return image, hole


def test_visible_pixels_stay_and_the_hole_is_filled_in_range(pipeline):
    image, hole = request()
    fill = pipeline(image, hole, seeds(0, 1, 2))
    assert torch.equal(fill[~hole.expand_as(fill)], image[~hole.expand_as(fill)])
    assert ((fill >= 0) & (fill <= 1)).all()
    assert not torch.equal(fill, image)


def test_what_lies_in_the_hole_is_not_looked_at(pipeline):
    image, hole = request()
    fills = [pipeline(image.masked_fill(hole, value), hole, seeds(0, 1, 2)) for value in (0.0, 1.0)]
    assert torch.equal(*fills)


def test_each_sample_has_its_own_seed(pipeline):
    image, hole = request(1)
    image, hole = image.expand(3, -1, -1, -1), hole.expand(3, -1, -1, -1)
    first, second, again = pipeline(image, hole, seeds(5, 6, 5))
    assert torch.allclose(first, again, atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-2)


def test_a_weak_departure_stays_near_its_start_and_a_full_one_does_not():
    # A new network changes nothing: what is left of the start shows the strength alone.
    pipeline = new_infiller(size=16, channels=(8, 16))
    image, hole = request()
    start = torch.rand(image.shape, generator=torch.Generator().manual_seed(9))
    likeness = []
    for strength in (0.0, 0.2, 1.0):
        fill = pipeline(image, hole, seeds(0, 1, 2), steps=10, start=start, strength=strength)
        inside = torch.stack([part[hole.expand_as(part)] for part in (fill, start)])
        likeness.append(float(torch.corrcoef(inside)[0, 1]))
    assert likeness[0] > 0.99
    assert 0.7 < likeness[1] < likeness[0]
    assert abs(likeness[2]) < 0.2


def test_a_start_is_mended_where_it_has_structure_and_left_alone_where_it_is_smooth(pipeline):
    image, hole = request(1, 32, 64)
    start = torch.full_like(image, 0.5)
    start[..., 32:] += 0.3 * (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) - 0.5)
    hole = torch.ones_like(hole)
    change = (pipeline(image, hole, seeds(0), start=start, strength=0.0) - start).abs()
    assert change[..., :24].max() == 0
    assert change[..., 40:].mean() > 0.01


def test_without_a_change_the_best_guess_shrinks_noise_away():
    torch.manual_seed(0)
    clean, noise = 0.5 * torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)

    class NoChange:
        config = type("Config", (), {"out_channels": 12})

        def __call__(self, seen, times):
            return type("Output", (), {"sample": torch.zeros(4, 12, 8, 8)})

    mask = torch.ones(4, 1, 16, 16, dtype=torch.bool)
    for share in (0.99, 0.5, 0.01):
        state = share**0.5 * clean + (1 - share) ** 0.5 * noise
        guess = predict(NoChange(), state, clean, mask, torch.arange(4), torch.full((4,), share))
        errors = [float((scale * guess - clean).square().mean()) for scale in (0.8, 1.0, 1.2)]
        assert errors[1] <= min(errors) + 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_pipeline_fills_as_before(tmp_path, dtype):
    pipeline = tiny_infiller(seed=1)
    image, hole = request()
    wanted = pipeline(image, hole, seeds(0, 1, 2))
    pipeline.to(dtype=dtype).save_pretrained(tmp_path)
    loaded = load_infiller(tmp_path)
    assert loaded.size == 16
    assert patch_of(loaded.unet) == 2
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())
    assert torch.allclose(loaded(image, hole, seeds(0, 1, 2)), wanted, atol=1e-4 if dtype == torch.float32 else 2e-2)


def test_folders_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(OSError, match=r"no model_index\.json"):
        load_infiller(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="is a StableDiffusionPipeline, not an InfillPipeline"):
        load_infiller(tmp_path)
