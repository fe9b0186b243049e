"""`memory()` of optimizers over tensors: told before the first step, it is what is there after one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import fusedopt.torch as ours
from fusedopt.storage_choices import CHOICES

SHAPES = ((3, 50), (), (0,), (70, 71), (4097,))


def tensors(dtype=torch.float32, shapes=SHAPES):
    return [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]


def stepped(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad:
                p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


def arrays(optimizer):
    """State tensors but for steps and other numbers."""
    return [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor) and t.dim()]


def allocated(optimizer):
    """Bytes of parameters, gradients, states and counters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [*params, *(p.grad for p in params if p.grad is not None), *arrays(optimizer)]
    scalars = [t for p in params if p.dim() == 0 for t in optimizer.state[p].values() if t.dim() == 0]
    states = [t for t in scalars if t.untyped_storage().nbytes() == t.element_size()]  # others are views of counters
    counters = [counter.row for counter in optimizer._counters.values()]
    return sum(t.numel() * t.element_size() for t in [*tensors, *states, *counters])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cls", [ours.Adam, ours.SGD, ours.NAdam, ours.LazyAdam])
def test_it_is_what_a_step_allocates(cls, dtype):
    optimizer = cls(tensors(dtype))
    before = optimizer.memory()
    assert before.total == allocated(stepped(optimizer)) == optimizer.memory().total


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_it_is_what_a_step_allocates_with_each_storage(choice, monkeypatch):
    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")
    optimizer = ours.Adam(tensors(getattr(torch, choice.dtype)), **choice.options)
    before = optimizer.memory()
    assert before.total == allocated(stepped(optimizer)) == optimizer.memory().total


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_storages_are_counted_as_over_arrays(choice):
    dtype, large, small = getattr(torch, choice.dtype), 70 * 71, 150 + 1 + 0
    found = ours.Adam(tensors(dtype, SHAPES[:-1]), **choice.options).memory()
    rule = ours.Adam.rule()
    beyond = choice.kept(rule) * large + choice.kept(rule, 1) * small
    rounded = 2 * 4 * (39 - large / 128) if "int8" in choice.name else 0  # 38 blocks and a part of one
    assert found.masters + found.states + found.scales == pytest.approx(beyond + rounded, abs=0)


def test_frozen_tensors_have_no_gradient_and_no_state():
    optimizer = ours.Adam(tensors())
    optimizer.param_groups[0]["params"][3].requires_grad_(False)
    trained = 150 + 1 + 4097
    found = optimizer.memory()
    assert (found.gradients, found.states, found.counters) == (4 * trained, 8 * trained, 4 * 16)
    assert found.total == allocated(stepped(optimizer))


def test_gradients_and_states_that_are_there_are_counted_as_they_are():
    (p,) = tensors(torch.bfloat16, [(10, 10)])
    optimizer = ours.Adam([p])
    p.grad_dtype = None
    p.grad = torch.ones(10, 10)
    optimizer.state[p]["exp_avg"] = torch.zeros(10, 10)
    found = optimizer.memory()
    assert (found.parameters, found.gradients, found.states) == (200, 400, 400 + 400)  # the other becomes like it
    optimizer.step()
    assert [state.dtype for state in arrays(optimizer)] == [torch.float32] * 2


def test_muon_and_adafactor_keep_what_they_say():
    muon = ours.Muon(tensors(torch.bfloat16, [(8, 9), (20, 3)]))
    adafactor = ours.Adafactor(tensors(torch.bfloat16, [(8, 9), (70,)]))
    assert muon.memory().states == 2 * (72 + 60)
    assert (adafactor.memory().states, adafactor.memory().counters) == (2 * (8 + 9 + 70), 2 * 4)
    for optimizer in (muon, adafactor):
        told = optimizer.memory()
        assert told.total == allocated(stepped(optimizer)) + told.counters


def test_lbfgs_has_its_whole_history_in_it():
    p = torch.nn.Parameter(torch.linspace(1, 2, 40))
    optimizer = ours.LBFGS([p], history_size=3, max_iter=10)

    def loss():
        optimizer.zero_grad()
        value = (p**4 + p**2 / 2).sum()
        value.backward()
        return value

    told = optimizer.memory()
    optimizer.step(loss)
    (entry,) = optimizer.state.values()
    vectors = [entry["d"], entry["prev_flat_grad"], *entry["old_dirs"], *entry["old_stps"]]
    assert len(entry["old_dirs"]) == 3
    assert told.states == sum(t.numel() * 4 for t in vectors)


def test_sparse_gradients_need_the_same_states():
    table = torch.nn.Embedding(9, 4, sparse=True)
    optimizer = ours.SparseAdam(table.parameters())
    assert optimizer.memory().states == 8 * 36
    table(torch.tensor([1, 2])).sum().backward()
    assert optimizer.memory().gradients == 2 * 8 + 2 * 4 * 4  # indices and rows
    optimizer.step()
    assert optimizer.memory().states == sum(t.numel() * 4 for t in arrays(optimizer))


def sharded(part, mesh):
    """A parameter of which this process has one of two equal parts."""
    shape = (2 * len(part), *part.shape[1:])
    whole = DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=shape, stride=part.stride())
    return torch.nn.Parameter(whole)


def test_of_a_sharded_tensor_it_is_the_part_of_this_process():
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        mesh = DeviceMesh("cpu", [0, 1])
        for shape, states in (((40, 128), (2 * 2560, 2 * 4 * 20)), ((5120,), (8 * 2560, 0))):  # no blocks in a vector
            part, stride = torch.ones(shape[0] // 2, *shape[1:]), torch.ones(shape).stride()
            whole = DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
            found = ours.Adam([torch.nn.Parameter(whole)], state_dtype="int8").memory()
            assert (found.elements, found.parameters, found.gradients) == (2560, 10_240, 10_240)
            assert (found.states, found.scales) == states  # the whole parameter is not small
    finally:
        dist.destroy_process_group()


def test_what_cannot_be_counted_is_an_error_that_says_why():
    with pytest.raises(ValueError, match="no shape yet"):
        ours.Adam(torch.nn.LazyLinear(3).parameters()).memory()
    with pytest.raises(ValueError, match="complex64"):
        ours.Adam([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))]).memory()
