"""Buffers that are used again: never two live tensors on one."""

import gc

import numpy as np
import pytest
import torch

from hwsim.network import workspace

MEGA = workspace.SMALLEST // 4


@pytest.fixture(autouse=True)
def _fresh():
    workspace.release()
    yield
    workspace.release()


def test_a_buffer_is_used_again_when_its_tensor_has_died():
    a = workspace.empty(2, MEGA, dtype=torch.float32)
    place = a.data_ptr()
    del a
    gc.collect()
    assert workspace.empty(MEGA, 2, dtype=torch.float32).data_ptr() == place


def test_live_tensors_never_share_a_buffer():
    tensors = [workspace.empty(MEGA, dtype=torch.float32).fill_(i) for i in range(5)]
    assert [float(t.min()) for t in tensors] == [float(t.max()) for t in tensors] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "hold", [lambda t: t[5:7], lambda t: t.view(2, -1).T, lambda t: t.detach(), lambda t: t.numpy()]
)
def test_a_view_keeps_its_buffer(hold):
    a = workspace.empty(MEGA, dtype=torch.float32).fill_(7)
    view = hold(a)
    del a
    gc.collect()
    workspace.empty(MEGA, dtype=torch.float32).fill_(0)
    assert float(np.asarray(view).min()) == 7


def test_a_graph_keeps_what_it_saved():
    x = torch.ones(MEGA, requires_grad=True)
    saved = workspace.empty(MEGA, dtype=torch.float32).fill_(3)
    y = (x * saved).sum()
    del saved
    gc.collect()
    workspace.empty(MEGA, dtype=torch.float32).fill_(0)
    y.backward()
    assert float(x.grad.min()) == 3


def test_types_shapes_and_small_tensors_are_as_torchs():
    a = workspace.empty(3, MEGA, dtype=torch.float64)
    assert (a.dtype, tuple(a.shape), a.is_contiguous()) == (torch.float64, (3, MEGA), True)
    assert workspace.empty(2, 3, dtype=torch.float32).shape == (2, 3)
    del a
    gc.collect()
    assert [len(b) for b in workspace._free] == [3 * MEGA * 8]


def test_release_gives_buffers_back():
    workspace.empty(MEGA, dtype=torch.float32)
    gc.collect()
    assert len(workspace._free) == 1
    workspace.release()
    assert len(workspace._free) == 0
