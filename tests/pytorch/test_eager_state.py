"""Adagrad, whose state is there before the first step, as torch's is; and scalar state beside torch's float32."""

import copy
import io
import pickle

import pytest
import torch

import fusedopt.torch
from cases import CASES

ADAGRAD = next(case for case in CASES if case.name == "Adagrad")
SHAPES = ((3, 5), (), (4099,))


def leaves(device="cpu", dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in SHAPES]
    return [value.to(device, dtype).requires_grad_() for value in values]


def params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def step(optimizer, seed=0, number=1):
    for i in range(number):
        random = torch.Generator().manual_seed(100 * seed + i)
        for p in params(optimizer):
            p.grad = torch.randn(p.shape, generator=random, dtype=torch.float64).to(p.device, p.dtype)
        optimizer.step()


def assert_alike(ours, theirs, tolerance=1e-13):
    for p, q in zip(params(ours), params(theirs), strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach().cpu(), rtol=tolerance, atol=tolerance)
    found, expected = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert list(found) == list(expected)
    for index, entry in expected.items():
        assert list(found[index]) == list(entry)
        for key, value in entry.items():
            actual, value = found[index][key].cpu().double(), value.cpu().double()
            torch.testing.assert_close(actual, value, rtol=tolerance, atol=tolerance)


def both(device, **options):
    options = {**ADAGRAD.main, **options}
    return fusedopt.torch.Adagrad(leaves(device), **options), torch.optim.Adagrad(leaves(), foreach=False, **options)


def test_state_is_there_before_the_first_step_as_torchs_is(torch_device):
    ours, theirs = both(torch_device.device, initial_accumulator_value=0.25)
    assert_alike(ours, theirs, 0)
    for entry, expected in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert {key: (value.shape, value.stride()) for key, value in entry.items()} == {
            key: (value.shape, value.stride()) for key, value in expected.items()
        }
        assert not entry["sum"].requires_grad
    for saved, expected in zip(ours.state_dict()["state"].values(), theirs.state_dict()["state"].values()):
        assert {key: value.dtype for key, value in saved.items()} == {k: value.dtype for k, value in expected.items()}
    step(ours, number=3)
    step(theirs, number=3)
    assert_alike(ours, theirs)


def test_a_group_that_is_added_later_has_state_at_its_first_step_as_in_torch(torch_device):
    ours, theirs = both(torch_device.device)
    ours.add_param_group({"params": leaves(torch_device.device)})
    theirs.add_param_group({"params": leaves()})
    assert_alike(ours, theirs, 0)
    assert len(ours.state) == len(SHAPES)
    step(ours, number=2)
    step(theirs, number=2)
    assert_alike(ours, theirs)


def test_each_group_has_its_own_start(torch_device):
    groups = [{"params": p, "initial_accumulator_value": i} for i, p in enumerate(leaves(torch_device.device))]
    optimizer = fusedopt.torch.Adagrad(groups)
    assert [set(entry["sum"].flatten().tolist()) for entry in optimizer.state.values()] == [{0.0}, {1.0}, {2.0}]


def through_a_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "state dict": lambda optimizer: loaded(fusedopt.torch.Adagrad(leaves(params(optimizer)[0].device)), optimizer),
    "torch and back": lambda optimizer: loaded(
        fusedopt.torch.Adagrad(leaves(params(optimizer)[0].device)), loaded(torch.optim.Adagrad(leaves()), optimizer)
    ),
}


def loaded(optimizer, other):
    optimizer.load_state_dict(through_a_file(other.state_dict()))
    return optimizer


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_state_of_step_0_is_copied_as_it_is(copied, torch_device):
    """Not started again from what the hyperparameter says."""
    ours, theirs = both(torch_device.device, initial_accumulator_value=0.25)
    for optimizer in (ours, theirs):
        for entry in optimizer.state.values():
            entry["sum"].fill_(7.0)
        optimizer.param_groups[0]["initial_accumulator_value"] = 100.0
    other = copied(ours)
    assert_alike(other, theirs, 0)
    step(other, number=2)
    step(theirs, number=2)
    assert_alike(other, theirs)


def test_sums_can_be_shared_among_processes():
    ours, theirs = both("cpu")
    for optimizer in (ours, theirs):
        optimizer.share_memory()
        assert all(entry["sum"].is_shared() for entry in optimizer.state.values())
        shared = [entry["sum"] for entry in optimizer.state.values()]
        step(optimizer, number=2)
        assert all(entry["sum"] is tensor for entry, tensor in zip(optimizer.state.values(), shared, strict=True))
    assert_alike(ours, theirs)


def test_what_has_no_memory_yet_has_state_at_its_first_step():
    with torch.device("meta"):
        later = torch.nn.Linear(3, 2)
    lazy = torch.nn.LazyLinear(2)
    optimizer = fusedopt.torch.Adagrad([*later.parameters(), *lazy.parameters()], initial_accumulator_value=0.5)
    assert not any(optimizer.state.values())
    lazy(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert [entry["sum"].tolist() for entry in optimizer.state.values() if entry] == [[[1.5] * 3] * 2, [1.5] * 2]


# --- scalar state


@pytest.mark.parametrize("name", ["NAdam", "ASGD"])
def test_scalar_state_is_torchs_but_for_the_rounding_to_float32(name, torch_device):
    """torch rounds mu_product, eta and mu to float32 at each step, by 6e-8; ours are float64, in a file too."""
    case = next(case for case in CASES if case.name == name)
    ours = getattr(fusedopt.torch, name)(leaves(torch_device.device), **case.main)
    theirs = case.reference(leaves(), foreach=False, **case.main)
    step(ours, number=6)
    step(theirs, number=6)
    assert_alike(ours, theirs, 2e-6)
    # ours goes on in torch, and torch's in ours
    for here, there in ((ours, case.reference(leaves())), (theirs, getattr(fusedopt.torch, name)(leaves()))):
        loaded(there, here)
        with torch.no_grad():
            for p, q in zip(params(there), params(here), strict=True):
                p.copy_(q)
        step(here, 7, number=3)
        step(there, 7, number=3)
        assert_alike(here, there, 2e-6)
