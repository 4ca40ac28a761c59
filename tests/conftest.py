"""What the tests share: fixed randomness, one thread, and each backend of the neuron in turn."""

import pytest
import torch
from hypothesis import settings

from hwsim.network import lif

# The same examples in every run; the first one may compile kernels.
settings.register_profile("hwsim", deadline=None, derandomize=True)
settings.load_profile("hwsim")


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """The same numbers, added in the same order, in every run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch) -> str:
    """The test runs on the plain-torch neuron and on the fast CPU one."""
    monkeypatch.setattr(lif, "forced", request.param)
    assert lif.choose("cpu").name == request.param
    return request.param
