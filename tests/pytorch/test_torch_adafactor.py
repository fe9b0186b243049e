"""Adafactor for torch over tensors of all dimensions and dtypes; what it has in common is with the other procedures."""

import copy
import pickle

import numpy as np
import pytest
import torch

import fusedopt
import fusedopt.torch as ours

SHAPES = [(), (4,), (3, 5), (2, 3, 4), (2, 1, 3, 2)]


def parameters(dtype=torch.float64, shapes=SHAPES):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def stepped(optimizer, steps, seed=1):
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=random, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    return optimizer


def assert_close(mine, theirs, **tolerance):
    for p, q in zip(mine.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, **tolerance)
    a, b = mine.state_dict()["state"], theirs.state_dict()["state"]
    assert a.keys() == b.keys()
    for key, entry in b.items():
        assert list(a[key]) == list(entry)
        for name, value in entry.items():
            assert (a[key][name].dtype, a[key][name].device) == (value.dtype, value.device)
            torch.testing.assert_close(a[key][name], value, **tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1, "foreach": True},
        {"maximize": True, "d": 2.0},
        {"lr": torch.tensor(0.5, dtype=torch.float64), "eps": (0.1, 0.9)},
    ],
    ids=str,
)
def test_thirty_steps_are_torchs(options):
    mine, theirs = ours.Adafactor(parameters(), **options), torch.optim.Adafactor(parameters(), **options)
    assert_close(stepped(mine, 30), stepped(theirs, 30), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "roundoff"), [(torch.float32, 2**-24), (torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=str
)
def test_other_dtypes_come_near_torchs_in_float64(dtype, roundoff):
    """Five steps, each of two roundings of p; an update is a hundredth of p, and its roundings as much less."""
    mine = stepped(ours.Adafactor(parameters(dtype)), 5)
    random = torch.Generator().manual_seed(1)
    wide = [p.detach().double().requires_grad_() for p in parameters(dtype)]
    theirs = torch.optim.Adafactor(wide, eps=(torch.finfo(dtype).eps, 1e-3))
    for _ in range(5):
        for p in wide:
            p.grad = torch.randn(p.shape, generator=random, dtype=torch.float64).to(dtype).double()
        theirs.step()
    for p, q in zip(mine.param_groups[0]["params"], wide, strict=True):
        assert mine.state[p]["step"].dtype == torch.float32
        assert {v.dtype for k, v in mine.state[p].items() if k != "step"} == {dtype}
        torch.testing.assert_close(p.double(), q, rtol=0, atol=10 * roundoff * float(q.detach().abs().max()))


def test_the_least_root_is_that_of_each_parameters_dtype():
    ends = []
    for kind in (ours, torch.optim):
        for first in ([], parameters(torch.bfloat16, [(3,)])):
            p = torch.ones(2, 2, requires_grad=True)
            for some in (*first, p):
                some.grad = torch.full_like(some, 1e-4)
            kind.Adafactor([*first, p]).step()
            ends.append(p.detach())
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-6, atol=0)
    assert not torch.allclose(ends[2], ends[3], rtol=1e-4)  # torch's, which takes bfloat16's eps for both


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_below_the_least_root_move_by_as_much_less(dtype):
    p = torch.ones(4, dtype=dtype, requires_grad=True)
    p.grad = torch.full_like(p, torch.finfo(dtype).eps / 4)
    ours.Adafactor([p], lr=1.0).step()
    assert (p == 0.75).all()


@pytest.mark.parametrize("kinds", [(torch.optim, ours, torch.optim), (ours, torch.optim, ours)], ids=["theirs", "ours"])
def test_a_run_goes_on_through_the_others_state_dict(kinds):
    whole, before = stepped(stepped(stepped(torch.optim.Adafactor(parameters()), 2, 1), 2, 2), 2, 3), None
    for seed, kind in enumerate(kinds, 1):
        params = parameters() if before is None else [p.detach().clone() for p in before.param_groups[0]["params"]]
        part = kind.Adafactor(params)
        if before is not None:
            part.load_state_dict(before.state_dict())
        before = stepped(part, 2, seed)
    assert_close(before, whole, rtol=1e-13, atol=1e-14)


def test_states_go_to_arrays_and_back():
    mine = stepped(ours.Adafactor(parameters()), 2)
    arrays = [fusedopt.Parameter(p.detach().numpy().copy()) for p in mine.param_groups[0]["params"]]
    core = fusedopt.Adafactor(arrays)
    saved = mine.state_dict()
    saved["state"] = {i: {k: v.numpy() for k, v in entry.items()} for i, entry in saved["state"].items()}
    core.load_state_dict(saved)
    back = core.state_dict()
    back["state"] = {i: {k: torch.from_numpy(v) for k, v in entry.items()} for i, entry in back["state"].items()}
    mine.load_state_dict(back)
    random = torch.Generator().manual_seed(5)
    for p, array in zip(mine.param_groups[0]["params"], arrays, strict=True):
        array.grad = torch.randn(p.shape, generator=random, dtype=torch.float64).numpy()
    core.step()
    stepped(mine, 1, 5)
    for p, array in zip(mine.param_groups[0]["params"], arrays, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), array.data, rtol=1e-14)


def test_copied_pickled_and_resumed_optimizers_go_on_to_the_bit():
    optimizer = stepped(ours.Adafactor(parameters()), 3)
    resumed = ours.Adafactor([p.detach().clone() for p in optimizer.param_groups[0]["params"]])
    resumed.load_state_dict(optimizer.state_dict())
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), resumed]
    stepped(optimizer, 3, 2)
    for other in others:
        assert_close(stepped(other, 3, 2), optimizer, rtol=0, atol=0)


def test_a_loaded_state_is_a_copy():
    one = stepped(ours.Adafactor(parameters()), 1)
    other = ours.Adafactor(parameters())
    other.load_state_dict(one.state_dict())
    before = str(one.state_dict())
    stepped(other, 1)
    assert str(one.state_dict()) == before


def test_empty_and_missing_gradients_and_gradients_of_zeros():
    empty, still, idle = (torch.ones(shape, requires_grad=True) for shape in ((0, 3), (3, 2), (3, 2)))
    optimizer = ours.Adafactor([empty, still, idle])
    empty.grad, still.grad = torch.ones(0, 3), torch.zeros(3, 2)
    optimizer.step()
    assert (still == 1).all()
    assert set(optimizer.state) == {empty, still}
    assert optimizer.state[empty]["col_var"].tolist() == [[0, 0, 0]]
    assert float(optimizer.state[empty]["step"]) == 1


def test_an_element_that_is_nan_spoils_no_others_of_a_vector():
    ends = []
    for kind in (ours, torch.optim):
        p = torch.ones(3, requires_grad=True)
        p.grad = torch.tensor([1.0, float("nan"), -2.0])
        kind.Adafactor([p]).step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends, equal_nan=True)
    assert ends[0].isnan().sum() == 1


WRONG_GRADIENTS = {
    "sparse": (torch.ones(3, 2).to_sparse(), "does not support sparse gradients"),
    "another shape": (torch.ones(2, 3), r"its gradient has shape \(2, 3\)"),
}


@pytest.mark.parametrize(("gradient", "message"), WRONG_GRADIENTS.values(), ids=WRONG_GRADIENTS)
def test_a_wrong_gradient_changes_nothing(gradient, message, monkeypatch):
    one, other = (torch.ones(3, 2, requires_grad=True) for _ in range(2))
    optimizer = ours.Adafactor([one, other])
    one.grad = torch.ones(3, 2)
    monkeypatch.setattr(torch.Tensor, "grad", property(lambda p: gradient if p is other else torch.ones(3, 2)))
    with pytest.raises(RuntimeError, match=f"parameter 1 of group 0 .*{message}"):
        optimizer.step()
    assert (one == 1).all()
    assert not optimizer.state


WRONG_STATES = {
    "another shape": ("row_var", torch.zeros(3), ValueError, r"row_var has shape \(3,\) and must have \(3, 1\)"),
    "another dtype": ("col_var", torch.zeros(1, 2).double(), TypeError, "nothing is cast silently"),
    "no tensor": ("col_var", [[0.0, 0.0]], TypeError, "must be a tensor, got list"),
    "missing": ("col_var", None, KeyError, "lacks 'col_var'"),
    "a vector's": ("variance", torch.zeros(3, 2), ValueError, "parameter 1 of group 0 .*has 'variance'"),
}


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG_STATES.values(), ids=WRONG_STATES)
def test_a_wrong_state_dict_changes_nothing(name, value, error, message):
    optimizer = stepped(ours.Adafactor(parameters(torch.float32, [(4,), (3, 2)])), 2)
    saved = copy.deepcopy(optimizer.state_dict())
    before = str(saved)
    saved["param_groups"][0]["lr"] = 0.5
    saved["state"][1][name] = value
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == before


def test_a_state_that_somebody_replaced_is_refused_before_anything_changes():
    optimizer = stepped(ours.Adafactor(parameters(shapes=[(4,), (3, 2)])), 1)
    one, other = optimizer.param_groups[0]["params"]
    before = one.detach().clone()
    optimizer.state[other]["row_var"] = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 .*row_var has shape \(3, 2\)"):
        optimizer.step()
    assert torch.equal(one, before)
