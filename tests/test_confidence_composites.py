import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infill_aug.confidence.composites import empty, paste_objects, paste_shapes
from infill_aug.confidence.training import TrainingSet

SIDE = 48
RED = torch.tensor([250, 20, 20], dtype=torch.uint8)[:, None, None]


def objects(count=4, heads=1, side=SIDE):
    """A red rectangle on black each, the target of head 0; a part of it is head 1's."""
    images = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    targets = torch.zeros(count, heads, side, side, dtype=torch.uint8)
    for i in range(count):
        rows, columns = slice(8 + 3 * i, 22 + 3 * i), slice(20 - 2 * i, 32)
        targets[i, 0, rows, columns] = 255
        targets[i, 1:, rows.start : rows.start + 7, columns] = 255
        images[i] = RED * (targets[i, :1] > 0)
    return TrainingSet(images, targets, torch.ones(count, heads, dtype=torch.bool))


def scenes(count, side=SIDE, seed=0):
    """Noise without any red: of each picture one can tell what is object and what is ground."""
    noise = torch.randint(60, 200, (count, 3, side, side), generator=torch.Generator().manual_seed(seed))
    noise[:, 0] = 0
    return noise.to(torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_pixels_without_the_object_are_the_backgrounds_exactly():
    backgrounds = scenes(1)
    for seed in range(8):
        made = paste_objects(objects(), backgrounds, 16, generator(seed))
        ground = (made.targets == 0).expand(-1, 3, -1, -1)
        assert ground.float().mean() > 0.3
        assert torch.equal(made.images[ground], backgrounds.expand(16, -1, -1, -1)[ground])


def test_every_picture_has_one_of_the_backgrounds():
    backgrounds = scenes(5)
    made = paste_objects(objects(), backgrounds, 40, generator())
    ground = made.targets == 0
    same = ((made.images[:, None] == backgrounds[None]) | ~ground[:, None]).flatten(2).all(dim=2)
    assert same.any(dim=1).all()
    assert same.any(dim=0).all(), "each background is used"


def test_objects_are_where_their_targets_are():
    made = paste_objects(objects(), scenes(3), 64, generator())
    full, none = made.targets[:, 0] == 255, made.targets[:, 0] == 0
    red = made.images[:, 0]
    assert (red[full] >= 249).all()
    assert (red[none] == 0).all()
    # On the soft rim as much of the object shows as the target says; both were cut out with the same softness, so that
    # the object's own dark surroundings come through at most that much.
    rim = ~(full | none)
    soft = made.targets[:, 0][rim].float() / 255
    assert (red[rim] <= 250 * soft + 1).all()
    assert (red[rim] >= 250 * soft.square() - 3).all()


def test_objects_are_kept_in_sight_at_many_sizes_and_places():
    made = paste_objects(objects(), scenes(3), 300, generator())
    area = made.targets.float().mean(dim=(1, 2, 3)) / 255
    assert area.min() > 0.005, "an object left the picture"
    side = area.sqrt()
    assert side.min() < 0.3
    assert side.max() > 0.5
    assert side.std() > 0.08
    weight = made.targets[:, 0].float() / made.targets[:, 0].float().sum(dim=(1, 2), keepdim=True)
    columns = (weight.sum(dim=1) * torch.linspace(-1, 1, SIDE)).sum(dim=1)
    assert columns.min() < -0.3
    assert columns.max() > 0.3
    assert abs(columns.mean()) < 0.1


def test_all_targets_move_with_the_object_and_known_heads_stay_known():
    data = objects(heads=2)
    data.known[1] = torch.tensor([True, False])
    made = paste_objects(data, scenes(2), 64, generator())
    assert (made.targets[:, 1] <= made.targets[:, 0]).all(), "the part stays in its object"
    share = made.targets[:, 1].float().sum(dim=(1, 2)) / made.targets[:, 0].float().sum(dim=(1, 2))
    assert (share - 0.5).abs().max() < 0.2
    assert set(map(tuple, made.known.tolist())) == {(True, True), (True, False)}
    cut = paste_objects(data, scenes(2), 64, generator(), head=1)
    outside = (cut.targets[:, 1:] == 0).expand(-1, 3, -1, -1)
    assert (cut.images[:, :1][outside[:, :1]] == 0).all(), "the object is cut out by the head that was asked for"


def test_objects_are_seen_from_both_sides():
    data = objects(1)
    data.targets[..., :26] = 0  # what is left of the object...
    data.images[..., 28:] = 255  # ...is white on its right
    made = paste_objects(data, scenes(2) * 0, 64, generator())
    inside = made.targets[:, 0] == 255
    white = inside & (made.images[:, 1] == 255)
    x = torch.arange(SIDE).expand_as(white)
    right = torch.stack([x[i][white[i]].float().mean() > x[i][inside[i]].float().mean() for i in range(64)])
    assert 0.25 < right.float().mean() < 0.75


def test_an_object_that_is_not_there_leaves_the_background():
    data = objects(1)
    made = paste_objects(TrainingSet(data.images, data.targets * 0, data.known), scenes(1), 3, generator())
    assert torch.equal(made.images, scenes(1).expand(3, -1, -1, -1))
    assert not made.targets.any()


MAKERS = {
    "objects": lambda seed, count: paste_objects(objects(side=16), scenes(3, 16), count, generator(seed)),
    "shapes": lambda seed, count: paste_shapes(scenes(3, 16), count, generator(seed), torch.tensor([True, False])),
}


@settings(max_examples=20)
@given(st.sampled_from(sorted(MAKERS)), st.integers(0, 2**32 - 1), st.integers(1, 70))
def test_a_generator_replays_its_pictures(kind, seed, count):
    one, two = MAKERS[kind](seed, count), MAKERS[kind](seed, count)
    assert len(one) == count
    for mine, its in ((one.images, two.images), (one.targets, two.targets), (one.known, two.known)):
        assert torch.equal(mine, its)
        assert len(mine) == count
    assert one.images.dtype == one.targets.dtype == torch.uint8


@pytest.mark.parametrize("kind", MAKERS)
def test_another_seed_makes_other_pictures_and_torchs_own_draws_are_left_alone(kind):
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    assert not torch.equal(MAKERS[kind](0, 8).images, MAKERS[kind](1, 8).images)
    assert torch.equal(torch.rand(2), wanted)


# --- shapes ---


@pytest.mark.parametrize("known", [[True], [True, False, True], [False, True]])
def test_shapes_teach_the_heads_that_are_known_and_only_one_of_them_has_a_target(known):
    head = len(known) - 1
    made = paste_shapes(scenes(4), 20, generator(), torch.tensor(known), head=head)
    assert made.known.tolist() == [known] * 20
    assert made.targets[:, head].flatten(1).any(dim=1).all()
    assert not made.targets[:, :head].any()


def test_a_shape_shows_one_picture_and_its_surroundings_another():
    textures = (torch.arange(4) * 60)[:, None, None, None].expand(4, 3, SIDE, SIDE).to(torch.uint8)
    made = paste_shapes(textures, 200, generator(), torch.tensor([True]))
    pairs = set()
    for image, target in zip(made.images, made.targets[:, 0], strict=True):
        inside, outside = image[:, target == 255].unique(), image[:, target == 0].unique()
        assert len(inside) == len(outside) == 1
        assert inside != outside
        pairs.add((int(inside), int(outside)))
    assert len(pairs) == 4 * 3, "every picture shows on every other"


def test_shapes_are_of_many_sizes_in_one_piece_and_smooth():
    made = paste_shapes(scenes(2, 96), 200, generator(), torch.tensor([True]))
    area = made.targets.float().mean(dim=(1, 2, 3)) / 255
    assert area.min() < 0.08
    assert area.max() > 0.25
    rim = (made.targets > 0) & (made.targets < 255)
    assert (rim.flatten(1).sum(dim=1) > 8).all(), "the cut is soft"


def test_shapes_join_with_objects_and_empty_pictures():
    parts = [
        paste_objects(objects(), scenes(2), 3, generator()).widen(2, 0),
        paste_shapes(scenes(2), 3, generator(), torch.tensor([True, False])),
        empty(scenes(2), torch.tensor([True, True])),
    ]
    joined = TrainingSet.join(parts)
    assert len(joined) == 8
    assert joined.known.tolist() == [[True, False]] * 6 + [[True, True]] * 2


def test_empty_pictures_are_themselves_and_teach_that_nothing_matters():
    images = scenes(3)
    made = empty(images, torch.tensor([False, True]))
    assert torch.equal(made.images, images)
    assert made.targets.shape == (3, 2, SIDE, SIDE)
    assert not made.targets.any()
    assert made.known.tolist() == [[False, True]] * 3
