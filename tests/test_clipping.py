"""Clipping gradients in place: against torch, by hand, and what is refused."""

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch

import fusedopt
from fusedopt import clip_grad_norm, clip_grad_value

DTYPES = ("float32", "float64", "float16", ml_dtypes.bfloat16)


def parameters(*gradients, dtype="float64"):
    made = [fusedopt.Parameter(np.zeros(np.shape(g), dtype)) for g in gradients]
    for parameter, gradient in zip(made, gradients):
        parameter.grad = np.asarray(gradient, dtype)
    return made


def test_gradients_are_scaled_by_the_norm_of_all_of_them():
    some = parameters([3.0, 4.0], [0.0, 12.0, 0.0])
    assert clip_grad_norm(some, 6.5) == 13.0
    assert some[0].grad[0] == pytest.approx(1.49999988461539, rel=1e-14)
    np.testing.assert_allclose(some[1].grad, [0, 12 * 6.5 / (13 + 1e-6), 0], rtol=1e-15)


@pytest.mark.parametrize("ord", [2.0, 1, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e3, 0.0])
def test_it_is_what_torch_does(ord, max_norm):
    random = np.random.default_rng(0)
    gradients = [random.standard_normal(shape) for shape in ((7, 3), (), (0,), (11,))]
    ours = parameters(*gradients)
    theirs = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in gradients]
    for tensor, gradient in zip(theirs, gradients):
        tensor.grad = torch.tensor(gradient)
    if ord == math.inf:  # torch takes no maximum of an empty tensor
        del ours[2], theirs[2]
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, ord)
    assert clip_grad_norm(ours, max_norm, ord) == pytest.approx(expected.item(), rel=1e-14)
    for parameter, tensor in zip(ours, theirs):
        np.testing.assert_allclose(parameter.grad, tensor.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_gradients_are_summed_in_float64(dtype):
    count = 70_000  # of 1s: the norm of 300 of them would be past float16's 65,504 in squares
    (parameter,) = parameters(np.full(count, 256.0), dtype=dtype)
    assert clip_grad_norm(parameter, 1.0) == pytest.approx(256 * math.sqrt(count), rel=1e-12)
    assert parameter.grad.dtype == dtype
    assert np.all(parameter.grad > 0)


def test_a_coefficient_that_float16_cannot_hold_zeroes_nothing():
    (parameter,) = parameters(np.full(400, 60000.0), dtype="float16")
    clip_grad_norm(parameter, 0.01)  # times 8e-9, where float16's least is 6e-8
    assert np.all(parameter.grad == np.float16(0.01 / 20))


def test_a_norm_past_float64_is_infinite():
    pieces = np.zeros(3 << 20)
    pieces[:: 1 << 20] = 1.3e154  # whose squares are finite, and their sum is not
    for gradients, ord in (([pieces], 2.0), ([np.ones(2000)], 0.01), ([[1.0]] * 2000, 0.01)):
        some = parameters(*gradients)
        assert clip_grad_norm(some, 1.0, ord) == math.inf
        assert np.array_equal(some[0].grad, gradients[0])


def test_gradients_below_the_norm_keep_their_bits_and_none_is_zero():
    (parameter,) = parameters([0.1, -0.2])
    before = parameter.grad.copy()
    assert clip_grad_norm([parameter], 1.0) == pytest.approx(math.sqrt(0.05))
    assert np.array_equal(parameter.grad, before)
    assert clip_grad_norm([fusedopt.Parameter(np.zeros(3))], 1.0) == 0.0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("ord", [2.0, math.inf])
def test_a_norm_that_is_not_finite_leaves_gradients_and_lets_the_step_be_skipped(value, ord):
    some = parameters([1.0, value], [5.0])
    optimizer = fusedopt.Adam(some)
    norm = clip_grad_norm(some, 1.0, ord)
    assert math.isnan(norm) if math.isnan(value) else norm == math.inf
    assert some[1].grad.tolist() == [5.0]
    optimizer.step(found_inf=not math.isfinite(norm))
    assert some[1].data.tolist() == [0.0]
    with pytest.raises(ValueError, match=r"norm of the gradients is (inf|nan); skip this step"):
        clip_grad_norm(some, 1.0, ord, error_if_nonfinite=True)


def test_wide_copies_are_pieces():
    (parameter,) = parameters(np.ones(1 << 22), dtype="float32")
    tracemalloc.start()
    clip_grad_norm(parameter, 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 28 * (1 << 20), "a float64 piece of 8 MiB, its magnitudes and their squares"


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_cut_to_two_bounds_and_nan_stays(dtype):
    some = parameters([-3.0, 0.25, 2.0, math.nan, math.inf], -7.0, dtype=dtype)
    clip_grad_value([*some, fusedopt.Parameter(np.zeros(1))], -1.0, 0.5)
    assert some[0].grad[:3].tolist() == [-1.0, 0.25, 0.5]
    assert np.isnan(some[0].grad[3])
    assert some[0].grad[4] == 0.5
    assert some[1].grad == -1.0


def test_clipped_gradients_are_those_of_the_step():
    some = parameters([30.0])
    optimizer = fusedopt.SGD(some, lr=1.0)
    clip_grad_value(some, -2, 2)
    optimizer.step()
    assert some[0].data.tolist() == [-2.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda some: clip_grad_norm(some, -1.0), ValueError, r"max_norm must be in \[0, inf\], got -1.0"),
        (lambda some: clip_grad_norm(some, math.nan), ValueError, "max_norm must be a number, got nan"),
        (lambda some: clip_grad_norm(some, 1.0, 0), ValueError, "ord must be above 0, or math.inf, got 0"),
        (lambda some: clip_grad_norm([np.ones(3)], 1.0), TypeError, "element 0 is a ndarray, not a fusedopt.Parameter"),
        (lambda some: clip_grad_value(some, 1.0, -1.0), ValueError, "got lower=1.0 and upper=-1.0"),
        (lambda some: clip_grad_value(some, "a", 1.0), ValueError, "lower must be a number, got 'a'"),
    ],
)
def test_what_is_refused_changes_nothing(call, error, message):
    some = parameters([3.0, 4.0])
    with pytest.raises(error, match=message):
        call(some)
    assert some[0].grad.tolist() == [3.0, 4.0]


def test_gradients_of_some_rows_are_refused():
    table = fusedopt.Parameter(np.zeros((3, 2)), name="table")
    table.grad = fusedopt.SparseGradient(np.array([1]), np.ones((1, 2)))
    with pytest.raises(TypeError, match=r"'table' .* has a SparseGradient; clip its values"):
        clip_grad_norm(table, 1.0)
