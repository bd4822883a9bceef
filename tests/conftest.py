"""The same draws in every run, and one thread a process: tensors are small and workers many."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("suite")
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    torch.manual_seed(0)
