"""A parameter: its gradient in every form that one assigns it in, its data before and after an optimizer took it."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fusedopt
from cases import DTYPES
from fusedopt import Parameter

VALUES = np.array([[1, -2, 3], [0.5, 0, -0.25]], np.float32)
# The same values, seldom as they come from np.array: a gradient is often a transpose, data often a slice.
MEMORY_ORDERS: dict[str, Callable[[Any], Any]] = {
    "C": lambda array: array,
    "Fortran": lambda array: array.copy(order="F"),
    "transposed": lambda array: array.T.copy().T,
    "strided": lambda array: array.repeat(2, 0).repeat(3, 1)[::2, ::3],
    "reversed": lambda array: array[::-1, ::-1].copy()[::-1, ::-1],
}


@pytest.fixture(params=["free", "in an optimizer"])
def taken(request: pytest.FixtureRequest) -> bool:
    """Whether an optimizer has taken the parameter: gradients are assigned alike before and after."""
    return request.param == "in an optimizer"


@pytest.fixture
def parameter(device, taken):
    parameter = Parameter(device.array(np.zeros_like(VALUES)), name="w")
    optimizer = fusedopt.SGD([parameter]) if taken else None
    yield parameter
    assert parameter.owner is optimizer


# --- gradients


def test_an_assigned_gradient_is_copied(device, parameter):
    given = device.array(VALUES)
    parameter.grad = given
    given[...] = 7
    np.testing.assert_array_equal(device.host(parameter.grad), VALUES)


def test_a_gradient_is_accumulated_in_place(device, parameter):
    parameter.grad = device.array(VALUES)
    before = parameter.grad
    parameter.grad += device.array(VALUES)
    assert parameter.grad is before
    np.testing.assert_array_equal(device.host(before), 2 * VALUES)


def test_a_gradient_is_written_by_index(device, parameter):
    parameter.grad = device.array(VALUES)
    parameter.grad[...] = device.array(3 * VALUES)
    parameter.grad[1, 2] = 5
    expected = 3 * VALUES
    expected[1, 2] = 5
    np.testing.assert_array_equal(device.host(parameter.grad), expected)


def test_the_same_array_is_assigned_twice_and_read_twice(device, parameter):
    given = device.array(VALUES)
    parameter.grad = given
    given *= 2
    parameter.grad = given
    np.testing.assert_array_equal(device.host(parameter.grad), 2 * VALUES)


def test_its_own_gradient_may_be_assigned(device, parameter):
    parameter.grad = device.array(VALUES)
    parameter.grad = parameter.grad
    np.testing.assert_array_equal(device.host(parameter.grad), VALUES)


def test_part_of_its_own_gradient_may_be_assigned(device, parameter):
    parameter.grad = device.array(VALUES)
    parameter.grad = parameter.grad[::-1]  # overlaps with where it goes
    np.testing.assert_array_equal(device.host(parameter.grad), VALUES[::-1])


def test_none_is_no_gradient(device, parameter):
    parameter.grad = None
    assert parameter.grad is None
    parameter.grad = device.array(VALUES)
    parameter.grad = None
    assert parameter.grad is None


@pytest.mark.parametrize("order", MEMORY_ORDERS)
def test_a_gradient_may_lie_in_any_order(device, parameter, order):
    parameter.grad = MEMORY_ORDERS[order](device.array(VALUES))
    np.testing.assert_array_equal(device.host(parameter.grad), VALUES)


def test_a_zero_dimensional_gradient_keeps_its_storage(device, taken):
    parameter = Parameter(device.array(np.zeros((), np.float32)))
    optimizer = fusedopt.SGD([parameter], lr=1.0) if taken else None
    # NumPy makes scalars of zero-dimensional arrays: a sum over everything is one.
    parameter.grad = device.array(VALUES).sum()
    parameter.grad += 1
    parameter.grad[...] += 1
    assert float(parameter.grad) == VALUES.sum() + 2
    if optimizer is not None:
        optimizer.step()
        assert float(parameter.data) == -VALUES.sum() - 2


def test_a_gradient_from_before_the_optimizer_is_used(device):
    parameter = Parameter(device.array(VALUES))
    parameter.grad = device.array(VALUES)
    fusedopt.SGD([parameter], lr=1.0).step()
    np.testing.assert_array_equal(device.host(parameter.data), 0 * VALUES)


# --- data


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_describes_its_array(device, dtype):
    parameter = Parameter(device.array(VALUES.astype(dtype)), name="w", requires_grad=False)
    assert (parameter.shape, parameter.dtype, parameter.size, parameter.ndim) == ((2, 3), np.dtype(dtype), 6, 2)
    assert repr(parameter) == (f"Parameter(name='w', shape=(2, 3), dtype={dtype}, requires_grad=False)")


@pytest.mark.parametrize(
    "data",
    [
        [1.0, 2.0],
        1.0,
        None,
        np.float32(1),  # has no storage to write to
        np.zeros(2, np.int64),
        np.zeros(2, np.complex64),
        np.zeros(2, ">f4"),
        torch.zeros(2),
        Parameter(np.zeros(2)),
    ],
    ids=["list", "number", "None", "scalar", "integers", "complex", "big-endian", "tensor", "Parameter"],
)
def test_it_takes_arrays_of_four_dtypes_alone(data):
    with pytest.raises(TypeError, match=r"array of float32, float64, float16, bfloat16|is a Parameter already"):
        Parameter(data)


def test_data_is_not_copied_before_an_optimizer_takes_it(device):
    data = device.array(VALUES)
    assert Parameter(data).data is data


@pytest.mark.parametrize("order", MEMORY_ORDERS)
def test_data_may_lie_in_any_order(device, order):
    parameter = Parameter(MEMORY_ORDERS[order](device.array(VALUES)))
    optimizer = fusedopt.SGD([parameter], lr=1.0)
    np.testing.assert_array_equal(device.host(parameter.data), VALUES)
    parameter.grad = device.array(VALUES)
    optimizer.step()
    np.testing.assert_array_equal(device.host(parameter.data), 0 * VALUES)


def test_an_array_taken_from_data_before_the_optimizer_is_stale(device):
    stale = device.array(VALUES)
    parameter = Parameter(stale)
    optimizer = fusedopt.SGD([parameter], lr=1.0)
    parameter.grad = device.array(VALUES)
    optimizer.step()
    np.testing.assert_array_equal(device.host(stale), VALUES)
    stale[...] = 7
    np.testing.assert_array_equal(device.host(parameter.data), 0 * VALUES)
    assert "stale" in Parameter.__doc__


def test_an_array_taken_from_data_after_the_optimizer_follows_the_steps(device):
    parameter = Parameter(device.array(VALUES))
    optimizer = fusedopt.SGD([parameter], lr=1.0)
    live = parameter.data
    parameter.grad = device.array(VALUES)
    optimizer.step()
    np.testing.assert_array_equal(device.host(live), 0 * VALUES)


def test_data_is_written_in_place(device, parameter):
    parameter.data[...] = device.array(VALUES)
    parameter.data += 1
    parameter.data *= 2
    np.testing.assert_array_equal(device.host(parameter.data), 2 * (VALUES + 1))


def test_what_is_written_into_data_is_what_the_next_step_starts_from(device):
    parameter = Parameter(device.array(VALUES))
    optimizer = fusedopt.SGD([parameter], lr=1.0)
    parameter.data[...] = 10
    parameter.grad = device.array(np.ones_like(VALUES))
    optimizer.step()
    np.testing.assert_array_equal(device.host(parameter.data), np.full_like(VALUES, 9))


# --- copies


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_is_the_same_and_free(device, taken, duplicate, with_gradient, dtype):
    parameter = Parameter(device.array(VALUES.astype(dtype)), name="w", requires_grad=False)
    optimizer = fusedopt.SGD([parameter]) if taken else None
    if with_gradient:
        parameter.grad = device.array((2 * VALUES).astype(dtype))
    twin = duplicate(parameter)
    assert (twin.name, twin.requires_grad, twin.dtype, twin.owner) == ("w", False, np.dtype(dtype), None)
    parameter.data[...] = 7
    if with_gradient:
        parameter.grad[...] = 7
        np.testing.assert_array_equal(device.host(twin.grad), (2 * VALUES).astype(dtype))
    else:
        assert twin.grad is None
    np.testing.assert_array_equal(device.host(twin.data), VALUES.astype(dtype))
    fusedopt.SGD([twin])  # which another optimizer may take
    assert parameter.owner is optimizer


class FarDevice:
    """Like CuPy's second one: not current, but inside of `with`."""

    id, current = 1, False

    def __enter__(self):
        FarDevice.current = True

    def __exit__(self, *_):
        FarDevice.current = False


class FarArray(np.ndarray):
    """An array of it, which notes whether it is current when it is copied or written to."""

    device, notes = FarDevice(), []

    def copy(self, order="C"):
        self.notes.append(("copied", self.device.current))
        return super().copy(order)

    def astype(self, dtype):
        self.notes.append(("copied", self.device.current))
        return super().astype(dtype)

    def __setitem__(self, key, value):
        self.notes.append(("written", self.device.current))
        super().__setitem__(key, value)


def test_a_free_parameter_is_copied_and_given_gradients_on_its_own_device():
    far = VALUES.copy().view(FarArray)
    parameter = Parameter(far)
    assert parameter.data is far
    FarArray.notes.clear()
    parameter.grad = far
    parameter.grad = far
    assert FarArray.notes == [("copied", True), ("written", True), ("written", True)]
    for duplicate in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        FarArray.notes.clear()
        twin = duplicate(parameter)
        assert FarArray.notes == [("copied", True), ("copied", True)]  # data and gradient
        np.testing.assert_array_equal(twin.grad, VALUES)
    assert not FarDevice.current


def test_a_copy_of_a_transposed_parameter_has_its_values(device):
    parameter = Parameter(device.array(VALUES).T)
    np.testing.assert_array_equal(device.host(copy.deepcopy(parameter).data), VALUES.T)
