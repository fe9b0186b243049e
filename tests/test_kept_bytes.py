"""`optimizer.memory()`: what will be kept, told before the first step, is what is allocated after one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import fusedopt
from fusedopt import Parameter, SparseGradient
from fusedopt.kept_bytes import KeptBytes
from fusedopt.storage_choices import CHOICES

SHAPES = ((3, 50), (), (0,), (70, 71), (4097,))


def parameters(dtype: str = "float32", shapes: Any = SHAPES) -> list[Parameter]:
    return [Parameter(np.ones(shape, dtype)) for shape in shapes]


def stepped(optimizer: Any) -> Any:
    for parameter in optimizer.parameters():
        if parameter.requires_grad:
            parameter.grad = np.ones(parameter.shape, parameter.grad_dtype)
    optimizer.step()
    return optimizer


def allocated(optimizer: Any) -> int:
    """Bytes of all arrays that there are."""
    arrays = [[a.data, a.gradients, a.counters, *a.states.values()] for a in optimizer.arenas()]
    return sum(array.nbytes for some in arrays for array in some)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("cls", [fusedopt.Adam, fusedopt.SGD, fusedopt.NAdam])
def test_it_is_what_a_step_allocates(cls, choice, monkeypatch):
    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")
    optimizer = cls(parameters(choice.dtype), **choice.options)
    before = optimizer.memory()
    assert before.total == allocated(stepped(optimizer)) == optimizer.memory().total
    assert before.elements == sum(parameter.size for parameter in optimizer.parameters())


def test_each_kind_is_counted(monkeypatch):
    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")
    optimizer = fusedopt.Adam(parameters("bfloat16", [(32, 129), (9,)]), **CHOICES["split24+int8"].options)
    found, large = optimizer.memory(), 32 * 129
    assert (found.parameters, found.gradients) == (2 * (large + 9), 2 * (large + 9))
    assert (found.masters, found.states) == (large + 9, 2 * large + 2 * 4 * 9)
    assert found.scales == 2 * 4 * -(-large // 128)
    assert found.counters == 2 * 2 * 8  # a float64 of the step and one of the kernel's, for each
    assert found.total == sum(found.by_kind.values())


def test_groups_and_dtypes_are_added_up(monkeypatch):
    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")
    wide, half = parameters("float64"), parameters("bfloat16")
    groups = [{"params": wide, "amsgrad": True}, {"params": half, "master_weights": "float32"}]
    optimizer = fusedopt.Adam(groups)
    found = optimizer.memory()
    assert found.states == sum(3 * 8 * p.size for p in wide) + sum(2 * 2 * p.size for p in half)
    assert found.masters == sum(4 * p.size for p in half)
    assert found.total == allocated(stepped(optimizer))


@pytest.mark.parametrize("frozen", [[1, 3], [0, 1, 2, 3, 4]], ids=["some", "all"])
def test_a_frozen_parameter_has_no_gradient_and_no_state(frozen):
    optimizer = fusedopt.Adam(parameters())
    some = list(optimizer.parameters())
    for index in frozen:
        some[index].requires_grad = False
    trained = sum(p.size for p in some if p.requires_grad)
    found = optimizer.memory()
    assert (found.gradients, found.states) == (4 * trained, 8 * trained)
    assert found.parameters == 4 * sum(p.size for p in some)
    assert found.total == allocated(stepped(optimizer))


def test_muon_and_adafactor_keep_what_they_say():
    muon = fusedopt.Muon(parameters(shapes=[(8, 9), (20, 3)]))
    assert muon.memory().states == 4 * (72 + 60)
    assert muon.memory().total == allocated(stepped(muon))
    adafactor = fusedopt.Adafactor(parameters("bfloat16", shapes=[(8, 9), (70,)]))
    assert adafactor.memory().states == 2 * (8 + 9 + 70)
    moments = adafactor.memory().states
    assert adafactor.memory().total == allocated(stepped(adafactor)) + moments
    kept = [entry[name] for entry in adafactor.state.values() for name in entry if name != "step"]
    assert moments == sum(array.nbytes for array in kept)


def test_lbfgs_has_its_whole_history_in_it():
    p = Parameter(np.linspace(1, 2, 40, dtype=np.float32))
    optimizer = fusedopt.LBFGS([p], history_size=3, max_iter=10)

    def loss():
        p.grad = 4 * p.data**3 + p.data
        return float((p.data**4 + p.data**2 / 2).sum())

    told = optimizer.memory()
    optimizer.step(loss)
    entry = optimizer.state[p]
    vectors = [entry["d"], entry["prev_flat_grad"], *entry["old_dirs"], *entry["old_stps"]]
    assert len(entry["old_dirs"]) == 3
    assert told.states == sum(vector.nbytes for vector in vectors)


def test_sparse_gradients_need_the_same_states():
    optimizer = fusedopt.SparseAdam(parameters(shapes=[(9, 4)]))
    told = optimizer.memory()
    (p,) = optimizer.parameters()
    p.grad = SparseGradient(np.array([1, 2]), np.ones((2, 4), np.float32))
    optimizer.step()
    assert told.states == 8 * 36
    assert told.total == allocated(optimizer)


def test_a_state_that_is_no_longer_needed_counts_as_long_as_it_is_there():
    optimizer = stepped(fusedopt.Adam(parameters(), amsgrad=True))
    optimizer.param_groups[0]["amsgrad"] = False
    assert optimizer.memory().total == allocated(optimizer)


def test_bytes_are_printed_in_columns():
    found = KeptBytes(elements=1000, parameters=4000, states=8000, padding=96) + KeptBytes(elements=24, parameters=96)
    assert str(found).splitlines() == [
        "             bytes  a parameter",
        "parameters   4,096            4",
        "states       8,000        7.812",
        "padding         96      0.09375",
        "total       12,192        11.91",
    ]
    assert found.per_parameter["parameters"] == 4
    assert KeptBytes().per_parameter["total"] == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.states = 0  # type: ignore[misc]
