"""Where tensors are updated, and by how many threads."""

import pytest
import torch

import fusedopt.torch
from fusedopt.backends import numpy as numpy_backend


@pytest.mark.parametrize(("torch_threads", "variable", "expected"), [(1, None, 1), (3, None, 3), (1, "2", 2)])
def test_a_step_takes_as_many_threads_as_torch_may(torch_threads, variable, expected, monkeypatch):
    if variable is None:
        monkeypatch.delenv("FUSEDOPT_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("FUSEDOPT_NUM_THREADS", variable)
    asked = []
    monkeypatch.setattr(numpy_backend, "on_all_threads", lambda work, pieces: asked.append(pieces) or work())
    before = torch.get_num_threads()
    torch.set_num_threads(torch_threads)
    try:
        p = torch.zeros(8 * numpy_backend.BLOCK, requires_grad=True)
        p.grad = torch.ones_like(p)
        fusedopt.torch.SGD([p], lr=1.0).step()
    finally:
        torch.set_num_threads(before)
    assert asked == [expected]
    assert (p == -1).all()
