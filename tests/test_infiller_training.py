import dataclasses

import pytest
import torch

from infill_aug.confidence import MaskConfidence
from infill_aug.infill.infiller_training import (
    Discriminator,
    InfillerSet,
    answer,
    detail_loss,
    draw_batch,
    feature_loss,
    hinge,
    patch_weights,
    read_infiller_set,
    reconstruction_loss,
    side_of,
    size_of,
    square,
)


def objects(count=6, size=48):
    mask = torch.zeros(count, 1, size, size, dtype=torch.bool)
    mask[..., size // 3 : 2 * size // 3, size // 3 : 2 * size // 3] = True
    return mask


def pictures(count=6, size=48):
    """A red square on green."""
    image = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    image[:, 1] = 200
    found = objects(count, size)[:, 0]
    image[:, 0][found], image[:, 1][found] = 255, 0
    return image


def test_plates_have_nothing_of_the_object_left():
    made = InfillerSet.of(pictures(), objects())
    assert made.plates[:, 0].max() == 0
    assert made.plates[:, 1].min() == 200


def test_a_drawn_batch_teaches_holes_and_never_objects():
    made = InfillerSet.of(pictures(32), objects(32))
    drawn = draw_batch(made.images, made.objects, made.cores, made.plates, 32, torch.Generator().manual_seed(0))
    assert drawn.image.shape == drawn.start.shape == (32, 3, 32, 32)
    assert (drawn.mask | ~drawn.taught).all()
    red = drawn.image[:, :1] > -0.9
    assert not (drawn.taught & red).any()
    assert ((drawn.times >= 0) & (drawn.times <= 999)).all()
    unpaired = ~drawn.paired
    assert unpaired.any()
    assert drawn.paired.any()
    assert drawn.start[unpaired][:, 0].max() < -0.99  # donors are plates


def test_holes_begin_at_the_core_and_nothing_is_taught_up_to_the_objects_rim():
    cores = objects(32) & ~objects(32).roll(4, dims=-1)
    made = InfillerSet.of(pictures(32), objects(32), cores)
    drawn = draw_batch(made.images, made.objects, made.cores, made.plates, 32, torch.Generator().manual_seed(0))
    red = drawn.image[:, :1] > 0.9
    assert (drawn.mask & red).any()
    assert not (drawn.taught & red).any()


def test_of_the_donors_the_one_with_the_least_paint_is_chosen():
    images = torch.cat([pictures(7), torch.full((1, 3, 48, 48), 90, dtype=torch.uint8)])
    whole = torch.cat([torch.ones(7, 1, 48, 48, dtype=torch.bool), torch.zeros(1, 1, 48, 48, dtype=torch.bool)])
    made = InfillerSet(images, whole, whole, images)
    drawn = draw_batch(made.images, made.objects, made.cores, made.plates, 32, torch.Generator().manual_seed(0))
    # The last picture, which has no object, is among the few that the first four look at.
    looked = ~drawn.paired[:4]
    assert looked.any()
    assert not drawn.painted[:4][looked].any()


def test_light_may_change_more_cheaply_than_things():
    generator = torch.Generator().manual_seed(0)
    donor, where = torch.rand(1, 3, 32, 32, generator=generator), torch.ones(1, 1, 32, 32)
    lighter, other = donor + 0.2, donor + 0.2 * torch.randn(donor.shape, generator=generator).sign()
    assert detail_loss(donor, donor, where) == 0
    assert 0 < detail_loss(lighter, donor, where) < 0.2 * detail_loss(other, donor, where)
    assert detail_loss(other, donor, torch.zeros_like(where)) == 0


def test_the_same_generator_draws_the_same_batch():
    made = InfillerSet.of(pictures(), objects())
    first, second = (
        draw_batch(made.images, made.objects, made.cores, made.plates, 32, torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first.start, second.start)
    assert torch.equal(first.mask, second.mask)


def test_errors_outside_of_where_it_looks_cost_nothing():
    where = torch.zeros(1, 1, 8, 8)
    where[..., :4] = 1
    image = torch.zeros(1, 3, 8, 8)
    outside, inside = image.clone(), image.clone()
    outside[..., 4:], inside[..., :4] = 1, 1
    assert reconstruction_loss(outside, image, where) == 0
    assert reconstruction_loss(inside, image, where, 1.0, 0.0) == pytest.approx(1.0)
    assert reconstruction_loss(inside, image, where, 0.0, 1.0) == pytest.approx(1.0)


def test_a_discriminator_learns_to_tell_noise_from_flat_and_the_hinge_rewards_it():
    torch.manual_seed(0)
    network = Discriminator(8)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    mask = torch.ones(4, 1, 32, 32)
    losses = []
    for _ in range(60):
        real, _ = network(torch.rand(4, 3, 32, 32), mask)
        fake, _ = network(torch.full((4, 3, 32, 32), 0.5), mask)
        weights = patch_weights(mask, real)
        loss = hinge(real, weights, True) + hinge(fake, weights, False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_behind_an_object_the_fill_itself_is_the_answer():
    made = InfillerSet.of(pictures(16), objects(16))
    parts = made.objects, made.cores, made.plates
    drawn = draw_batch(made.images, *parts, 32, torch.Generator().manual_seed(0))
    other = dataclasses.replace(drawn, image=torch.where(drawn.mask & ~drawn.taught, 0.5, drawn.image))
    fill = torch.rand(drawn.image.shape)
    assert not torch.equal(other.image, drawn.image)
    assert torch.equal(answer(other, fill), answer(drawn, fill))
    assert torch.equal(answer(drawn, fill)[drawn.taught.expand_as(fill)], drawn.image[drawn.taught.expand_as(fill)])


def test_features_of_unpaired_samples_do_not_count():
    fake, real = [torch.tensor([[[[1.0]]], [[[5.0]]]])], [torch.tensor([[[[0.0]]], [[[0.0]]]])]
    assert feature_loss(fake, real, torch.tensor([True, False])) == 1
    assert feature_loss(fake, real, torch.tensor([False, False])) == 0


def test_pictures_are_read_as_centre_squares_with_their_objects():
    found = objects(1, 60)[0]
    data = [(pictures(1, 60)[0][:, :, 5:55], {"mask": found[:, :, 5:55]})] * 3
    made = read_infiller_set(data, MaskConfidence("mask", falloff=0.0), 32, progress=False)
    assert made.images.shape == (3, 3, side_of(32), side_of(32))
    assert size_of(side_of(32)) == 32
    assert made.objects.any()
    assert made.plates[:, 0].max() < 60
    plain = read_infiller_set(data, None, 32, limit=2, progress=False)
    assert len(plain) == 2
    assert not plain.objects.any()


def test_a_square_is_cut_from_the_middle():
    picture = torch.zeros(3, 10, 30, dtype=torch.uint8)
    picture[:, :, 10:20] = 255
    assert (square(picture, 5) == 255).all()


def test_an_empty_dataset_and_an_unreadable_sample_are_named():
    with pytest.raises(ValueError, match="the dataset is empty"):
        read_infiller_set([], None, 32, progress=False)
    with pytest.raises(ValueError, match="cannot read sample 0"):
        read_infiller_set(["nothing"], None, 32, progress=False)


def test_sets_join_and_take():
    made = InfillerSet.of(pictures(), objects())
    both = InfillerSet.join([made, made.take([0, 1])])
    assert len(both) == 8
    assert torch.equal(both[6][0], made[0][0])
