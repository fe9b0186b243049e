"""Sums before the update over torch tensors, which lie as they like and are never moved."""

import itertools

import numpy as np
import pytest
import torch

import fusedopt
import fusedopt.torch as ours
from cases import assert_same_bits, ordinary

SHAPES = ((3, 5), (4097,), (0, 4), (2, 4099), (4, 2, 3, 3), (), (17,), (1, 70_000))
ALL = {"clip_norm": 1.0, "grad_centralization": True}
each_kind = pytest.mark.parametrize(
    ("name", "options"),
    [("LAMB", {}), ("LARS", {"momentum": 0.9, "weight_decay": 0.1}), ("Adam", ALL), ("SGD", ALL), ("LAMB", ALL)],
    ids=["LAMB", "LARS", "Adam", "SGD", "all"],
)


def tensor(values, device, offset=0):
    """Values in memory that begins so many elements after an aligned address."""
    memory = torch.zeros(values.size + offset, dtype=torch.from_numpy(values).dtype, device=device)
    memory[offset:] = torch.from_numpy(values.ravel())
    return memory[offset:].reshape(values.shape)


def values(seed):
    return [ordinary(int(np.prod(shape)), "float32", seed + i).reshape(shape) for i, shape in enumerate(SHAPES)]


def array_results(name, options, steps):
    """The parameters after the same steps over NumPy arrays."""
    parameters = [fusedopt.Parameter(one) for one in values(1)]
    optimizer = getattr(fusedopt, name)(parameters, lr=0.01, **options)
    for step in range(steps):
        for parameter, gradient in zip(parameters, values(20 + 20 * step)):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.data for parameter in parameters]


@each_kind
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_tensors_have_the_bits_of_arrays_wherever_they_begin(torch_device, name, options, offset):
    device = torch_device.device
    params = [torch.nn.Parameter(tensor(one, device, offset)) for one in values(1)]
    optimizer = getattr(ours, name)(params, lr=0.01, **options)
    for step in range(2):  # with new gradients each time, elsewhere
        for p, gradient in zip(params, values(20 + 20 * step)):
            p.grad = tensor(gradient, device, offset)
        optimizer.step()
    for p, expected in zip(params, array_results(name, options, 2)):
        assert_same_bits(p.detach().cpu().numpy(), expected)


def laid_out(kind, device):
    """Two parameters that differ in their memory's order alone."""
    plain = torch.arange(4 * 3 * 2 * 5.0, device=device).reshape(4, 3, 2, 5)
    if kind == "transposed":
        plain = plain.reshape(12, 10)
        return plain.clone(), plain.t().contiguous().t()
    return plain.clone(), plain.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["transposed", "channels_last"])
@pytest.mark.parametrize("name", ["SGD", "LAMB"])
def test_rows_are_those_of_the_shape_whatever_the_memorys_order(torch_device, kind, name):
    results = []
    for p in laid_out(kind, torch_device.device):
        strides, p = p.stride(), torch.nn.Parameter(p)
        optimizer = getattr(ours, name)([p], lr=0.1, **ALL)
        for step in (1, 2):
            p.grad = torch.empty_like(p).copy_(torch.cos(step * p.detach()))
            pointer = p.data_ptr()
            optimizer.step()
            assert (p.data_ptr(), p.stride()) == (pointer, strides)
        results.append(p.detach().cpu().numpy())
    # The order of summation is the memory's.
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)


def test_clip_norm_is_in_force_from_the_step_on_that_it_is_set_before(torch_device):
    p = torch.nn.Parameter(torch.zeros(4, device=torch_device.device))
    optimizer = ours.SGD([p], lr=1.0)
    found = []
    for max_norm in (0.0, 1.0, 2.0, 0.0):
        optimizer.param_groups[0]["clip_norm"] = max_norm
        before = p.detach().clone()
        p.grad = torch.full_like(p, 5.0)
        optimizer.step()
        found.append(float((before - p.detach()).norm()))
    assert found == pytest.approx([10, 1, 2, 10], rel=1e-6)
    optimizer.param_groups[0]["clip_norm"] = -1.0
    with pytest.raises(ValueError, match=r"clip_norm must be in \[0, inf\), got -1.0"):
        optimizer.step()


def test_under_a_scaler_the_norm_is_of_unscaled_gradients_which_are_left_unclipped(torch_device):
    p = torch.nn.Parameter(torch.zeros(2, device=torch_device.device))
    optimizer = ours.SGD([p], lr=1.0, clip_norm=2.5)
    p.grad = torch.tensor([24.0, 32.0], device=torch_device.device)
    optimizer.grad_scale = torch.tensor(8.0, device=torch_device.device)
    optimizer.found_inf = torch.tensor(1.0, device=torch_device.device)
    optimizer.step()
    assert p.tolist() == [0, 0]
    optimizer.found_inf = torch.tensor(0.0, device=torch_device.device)
    optimizer.step()
    assert p.tolist() == pytest.approx([-1.5, -2.0], rel=1e-6)
    assert p.grad.tolist() == [3, 4]


def test_in_a_captured_graph_all_launches_are_replayed(emulated_gpu):
    surface = emulated_gpu.surface
    p = torch.nn.Parameter(torch.ones(5))
    optimizer = ours.LARS([p], lr=0.5, clip_norm=1.0)
    p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    q = torch.nn.Parameter(p.detach().clone())
    surface.graph = []
    optimizer.step()
    surface.graph, recorded = None, surface.graph
    assert torch.equal(p, q)
    for _ in range(2):
        for action in recorded:
            action()
    other = torch.nn.Parameter(torch.ones(5))
    same = ours.LARS([other], lr=0.5, clip_norm=1.0)
    for _ in range(3):
        other.grad = torch.full_like(other, 2.0)
        same.step()
    assert torch.equal(p, other)


def test_a_part_of_a_parameter_is_refused():
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for name, options in (("LAMB", {}), ("SGD", {"clip_norm": 1.0})):
            p = torch.nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Replicate()], run_check=False))
            p.grad = DTensor.from_local(torch.ones(4), mesh, [Replicate()], run_check=False)
            optimizer = getattr(ours, name)([p], **options)
            with pytest.raises(
                RuntimeError, match=rf"parameter 0 of group 0 .* DTensor, .* and {name} here needs sums"
            ):
                optimizer.step()
            assert not optimizer.state
    finally:
        torch.distributed.destroy_process_group()


def test_the_cpus_threads_change_no_bit(monkeypatch):
    found = []
    for threads, name in itertools.product((1, 2), ("numpy", "numba")):
        monkeypatch.setenv("FUSEDOPT_BACKEND", name)
        monkeypatch.setenv("FUSEDOPT_NUM_THREADS", str(threads))
        p = torch.nn.Parameter(torch.linspace(-1, 1, 300_000).reshape(3, -1))
        optimizer = ours.LAMB([p], **ALL)
        p.grad = p.detach().cos()
        optimizer.step()
        found.append(p.detach().numpy())
    for other in found[1:]:
        assert_same_bits(other, found[0])
