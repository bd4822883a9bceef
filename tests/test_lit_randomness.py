import io
import random

import numpy as np
import torch

from infill_aug.lit.randomness import random_state, set_random_state


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.random(), random.gauss(0, 1)


def test_after_a_trip_through_a_checkpoint_every_generator_goes_on_where_it_was():
    np.random.randn()  # leaves a second number waiting
    random.gauss(0, 1)
    file = io.BytesIO()
    torch.save(random_state(), file)
    expected = draws()
    draws()
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True))
    assert draws() == expected


def test_streams_of_another_number_of_gpus_are_left_alone():
    state = random_state()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    expected = torch.rand(1)
    set_random_state(state)
    assert torch.equal(torch.rand(1), expected)
