import pytest
import torch

from infill_aug.variation.sheet import variation_sheet


def test_a_sheet_has_a_row_an_operation_and_a_column_a_draw_and_leaves_kept_pixels():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    images, infills, masks = torch.rand(2, 3, 40, 40), torch.rand(2, 3, 40, 40), torch.ones(2, 1, 40, 40)
    masks[..., 10:20, 10:20] = 0
    torch.set_rng_state(before)
    sheet = variation_sheet(infills, masks, images, ["jitter", "night", "RandomInvert"], columns=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert sheet.shape == (3, 3 * 43, 130 + 5 * 43)
    assert sheet[:, :, :130].float().std() > 1  # the names
    wanted = (images * 255).round().to(torch.uint8)
    for row in range(3):
        for column in range(5):
            top, left = row * 43, 130 + column * 43 + 3
            tile = sheet[:, top + 3 : top + 43, left : left + 40]
            assert torch.equal(tile[:, 10:20, 10:20], wanted[row % 2, :, 10:20, 10:20])
    again = variation_sheet(infills, masks, images, ["jitter", "night", "RandomInvert"], columns=4)
    assert torch.equal(again, sheet)
    with pytest.raises(ValueError, match="no operation 'nigt'"):
        variation_sheet(infills, masks, operations=["nigt"])
