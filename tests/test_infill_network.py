import pytest
import torch

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import BackendUnavailableError
from infill_aug.infill.network import NetworkBackend

CAT = TaskDescriptor("pets", "cat")


class Loading(NetworkBackend):
    """Fills with noise, once its load has gone well."""

    name = "loading"
    max_batch = 2

    def __init__(self, *failures):
        super().__init__()
        self.failures = list(failures)
        self.loads = 0

    def load(self, device):
        self.loads += 1
        if self.failures:
            raise self.failures.pop(0)
        return torch.nn.Identity()

    def _fill(self, network, image, mask, config, samples):
        return network(torch.rand(image.shape))


def request(count=4):
    mask = torch.zeros(count, 1, 16, 16, dtype=torch.bool)
    mask[..., 4:12, 4:12] = True
    return torch.rand(count, 3, 16, 16), mask, CAT


@pytest.mark.parametrize(
    "failure", [OSError("no such file"), ValueError("odd"), KeyError("key"), torch.OutOfMemoryError("out of memory")]
)
def test_weights_that_cannot_be_loaded_end_the_backend_at_the_first_try_and_not_sample_by_sample(failure):
    backend = Loading(failure)
    message = f"'loading' cannot be loaded on cpu: {type(failure).__name__}: .*Check the weights"
    with pytest.raises(BackendUnavailableError, match=message) as caught:
        backend.generate_infill(*request())
    assert caught.value.__cause__ is failure
    assert backend.loads == 1


@pytest.mark.parametrize("failure", [BackendUnavailableError("no weights yet"), ImportError("pip install it")])
def test_an_error_that_says_what_to_do_is_passed_on_as_it_is(failure):
    backend = Loading(failure)
    with pytest.raises(type(failure)) as caught:
        backend.generate_infill(*request())
    assert caught.value is failure
    assert backend.loads == 1


def test_a_load_that_failed_is_tried_again_by_the_next_batch_and_one_that_went_well_is_kept():
    backend = Loading(OSError("the disk was away"))
    with pytest.raises(BackendUnavailableError):
        backend.generate_infill(*request())
    for _ in range(2):
        image, mask, _ = request()
        assert not torch.equal(backend.generate_infill(image, mask, CAT), image)
    assert backend.loads == 2
