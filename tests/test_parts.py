import torch

from infill_aug.functional.parts import PART_BYTES, parts_of


def test_parts_cover_a_batch_once_and_are_no_larger_than_they_should_be():
    for count, side in ((1, 8), (64, 224), (7, 900), (5, 1), (100, 64)):
        images = torch.empty(count, 3, side, side, device="meta")
        assert parts_of(images) == [slice(0, count)]  # another device
        images = torch.empty(1, 3, side, side).expand(count, -1, -1, -1)
        parts = parts_of(images)
        assert sum(len(images[part]) for part in parts) == count
        assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
        most = max(len(images[part]) for part in parts)
        assert most == 1 or 4 * 3 * side * side * most <= PART_BYTES
    assert parts_of(torch.empty(0, 3, 4, 4)) == [slice(0, 1)]
