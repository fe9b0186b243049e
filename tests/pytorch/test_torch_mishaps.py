"""What goes wrong half-way, or comes in an unusual form, and must not show in the result."""

import copy

import numpy as np
import pytest
import torch

import fusedopt.torch


def leaf(device: str, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, device=device, requires_grad=True)


def test_a_failed_step_with_a_copied_gradient_leaves_nothing_of_it_behind(torch_device):
    p = leaf(torch_device.device, 2, 3)
    optimizer = fusedopt.torch.SGD([p], lr=1.0)
    p.grad = torch.arange(6.0, device=torch_device.device).reshape(3, 2).t()  # which is copied for the kernel
    optimizer.grad_scale = "no number"
    with pytest.raises((ValueError, TypeError)):
        optimizer.step()
    del optimizer.grad_scale
    assert not p.any()
    optimizer.step()
    assert p.tolist() == [[0, -2, -4], [-1, -3, -5]]


@pytest.mark.parametrize("betas", [[0.9, 0.99], (0.9, 0.99)], ids=["list", "tuple"])
def test_options_in_lists_and_arrays_are_read_as_they_are_now(betas, torch_device):
    p, q = leaf(torch_device.device, 3), leaf("cpu", 3)
    ours = fusedopt.torch.Adam([{"params": [p], "betas": copy.copy(betas), "lr": np.array(0.1)}])
    theirs = torch.optim.Adam([{"params": [q], "betas": (0.9, 0.99), "lr": 0.1}], foreach=False)
    for step in range(4):
        for tensor in (p, q):
            tensor.grad = torch.full((3,), 1.0 + step, device=tensor.device)
        ours.step()
        theirs.step()
        if step == 1:
            if isinstance(betas, list):
                ours.param_groups[0]["betas"][0] = 0.5
                theirs.param_groups[0]["betas"] = (0.5, 0.99)
            ours.param_groups[0]["lr"][...] = 0.2
            theirs.param_groups[0]["lr"] = 0.2
    torch.testing.assert_close(p.cpu(), q, rtol=0, atol=2e-6)


def test_a_learning_rate_whose_memory_was_swapped_is_read_where_it_is(torch_device):
    p, lr = leaf(torch_device.device, 3), torch.tensor(1.0, device=torch_device.device)
    optimizer = fusedopt.torch.SGD([p], lr=lr)
    p.grad = torch.ones_like(p)
    optimizer.step()
    old = lr.data
    lr.data = torch.tensor(100.0, device=torch_device.device)
    optimizer.step()
    assert p.tolist() == [-101.0] * 3
    assert old == 1


def test_parameters_whose_shape_is_not_known_yet_are_taken():
    layer = torch.nn.LazyLinear(2)
    optimizer = fusedopt.torch.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(layer.weight, before - 0.1, rtol=0, atol=1e-7)


def test_a_good_state_dict_cures_a_bad_group():
    p = leaf("cpu", 3)
    optimizer = fusedopt.torch.SGD([p], lr=0.1)
    good = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = float("nan")
    optimizer.load_state_dict(good)
    p.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(p.detach(), torch.full((3,), -0.1))


def test_a_gradient_that_stands_for_its_negative_is_read_with_its_sign(torch_device):
    p = leaf(torch_device.device, 3)
    p.grad = torch.tensor([1 + 2j, 3 + 4j, 5 + 6j], device=torch_device.device).conj().imag
    assert p.grad.is_neg()
    fusedopt.torch.SGD([p], lr=1.0).step()
    assert p.tolist() == [2, 4, 6]


def test_what_others_keep_in_the_state_is_saved_and_copied():
    p = leaf("cpu", 3)
    optimizer = fusedopt.torch.AdamW([p])
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state["seen"] = 5
    assert optimizer.state_dict()["state"]["seen"] == 5
    assert copy.deepcopy(optimizer).state["seen"] == 5
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


def test_a_state_dict_loads_after_the_momentum_was_turned_off(torch_device):
    """The buffer stays, and no longer is a state of the rule."""
    p = leaf(torch_device.device, 3)
    optimizer = fusedopt.torch.SGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.0
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    torch.testing.assert_close(p, torch.full_like(p, -0.6))
