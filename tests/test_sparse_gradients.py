"""SparseAdam and LazyAdam over arrays: rows that a gradient has, and no others."""

import copy
import pickle

import numpy as np
import pytest
import torch

import fusedopt
from cases import GOLDEN_GRADIENTS, GOLDEN_PARAMETER, assert_same_bits
from fusedopt import SparseGradient
from fusedopt.backends import module_of

KINDS = [fusedopt.SparseAdam, fusedopt.LazyAdam]
each_kind = pytest.mark.parametrize("kind", KINDS)


def rows(indices, values, dtype="float64"):
    return SparseGradient(np.array(indices, np.int64), np.array(values, dtype))


def random_rows(seed, count, shape, dtype="float64"):
    """Some rows of a parameter of this shape, among them the same ones again."""
    random = np.random.default_rng(seed)
    return rows(random.integers(0, shape[0], count), random.standard_normal((count, *shape[1:])), dtype)


@each_kind
def test_three_steps_are_where_they_are_known_to_be(kind, device):
    parameter = fusedopt.Parameter(device.array(GOLDEN_PARAMETER))
    optimizer = kind([parameter], lr=0.01)
    for gradient, touched in zip(GOLDEN_GRADIENTS, ([0, 2], [2, 3], [0, 1]), strict=True):
        parameter.grad = SparseGradient(device.array(np.array(touched)), device.array(gradient[touched]))
        assert optimizer.step() is optimizer
    expected = [0.981714317055, -2, 0.480000017996, 0.25]
    np.testing.assert_allclose(device.host(parameter.data), expected, rtol=1e-11)
    assert float(optimizer.state_dict()["state"][0]["step"]) == 3


# As MindSpore's Adam has it, which a dense gradient stands for.
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"eps": 1e-3}, (0.984543729067, -1.99742749626, 0.482372666905, 0.243807682286)),
        ({"nesterov": True}, (0.970432031606, -1.9934983725, 0.472634909429, 0.23786254545)),
    ],
)
@pytest.mark.parametrize("dense", [True, False])
def test_lazy_adam_is_mindspores_adam(options, expected, dense, device):
    parameter = fusedopt.Parameter(device.array(GOLDEN_PARAMETER))
    optimizer = fusedopt.LazyAdam([parameter], lr=0.01, **options)
    for gradient in map(device.array, GOLDEN_GRADIENTS):
        parameter.grad = gradient if dense else SparseGradient(device.array(np.arange(4)), gradient)
        optimizer.step()
    np.testing.assert_allclose(device.host(parameter.data), expected, rtol=1e-11)


@pytest.mark.parametrize("maximize", [False, True])
def test_steps_are_torchs(maximize):
    start = np.random.default_rng(0).standard_normal((7, 3))
    ours, theirs = fusedopt.Parameter(start.copy()), torch.from_numpy(start.copy()).requires_grad_()
    options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "maximize": maximize}
    mine, torchs = fusedopt.SparseAdam([ours], **options), torch.optim.SparseAdam([theirs], **options)
    for step in range(6):
        ours.grad = gradient = random_rows(step, step, (7, 3))  # none at first
        indices, values = torch.from_numpy(gradient.indices)[None], torch.from_numpy(gradient.values)
        theirs.grad = torch.sparse_coo_tensor(indices, values, (7, 3), check_invariants=True)
        mine.step()
        torchs.step()
        np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-13, atol=1e-15)
        for name in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_allclose(mine.state[ours][name], torchs.state[theirs][name].numpy(), rtol=1e-13)
        assert mine.state[ours]["step"] == torchs.state[theirs]["step"] == step + 1


@each_kind
def test_rows_that_are_not_touched_keep_their_bits_and_duplicates_are_summed(kind):
    one, other = (fusedopt.Parameter(np.ones((5, 2), np.float32)) for _ in range(2))
    optimizer = kind([one, other], lr=0.1, **({"weight_decay": 0.1} if kind is fusedopt.LazyAdam else {}))
    for _ in range(3):
        one.grad = rows([3, 1, 3], [[1, 2], [3, 4], [5, 6]], "float32")
        other.grad = rows([1, 3], [[3, 4], [6, 8]], "float32")
        optimizer.step()
    assert_same_bits(one.data, other.data)
    for name in ("exp_avg", "exp_avg_sq"):
        assert (optimizer.state[one][name][[0, 2, 4]] == 0).all()
    assert (one.data[[0, 2, 4]] == 1).all()
    assert (one.data[[1, 3]] < 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"nesterov": True, "weight_decay": 0.1, "maximize": True, "clip_value": 0.5}])
def test_all_rows_are_a_dense_gradient_to_the_bit(dtype, options):
    start = np.random.default_rng(0).standard_normal((6, 3)).astype(dtype)
    sparse, dense = fusedopt.Parameter(start.copy()), fusedopt.Parameter(start.copy())
    optimizers = [fusedopt.LazyAdam([parameter], lr=0.1, **options) for parameter in (sparse, dense)]
    for step in range(4):
        gradient = np.random.default_rng(step + 1).standard_normal((6, 3)).astype(dtype)
        sparse.grad, dense.grad = SparseGradient(np.arange(6), gradient), gradient
        for optimizer in optimizers:
            optimizer.step()
        assert_same_bits(sparse.data, dense.data)


def test_dense_gradients_and_rows_come_and_go_with_each_parameters_own_step():
    """Neighbours whose gradients change kind: one optimizer over all is one for each."""
    together = [fusedopt.Parameter(np.ones((4, 2))) for _ in range(3)]
    apart = [fusedopt.Parameter(np.ones((4, 2))) for _ in range(3)]
    optimizer = fusedopt.LazyAdam(together, lr=0.1)
    optimizers = [fusedopt.LazyAdam([parameter], lr=0.1) for parameter in apart]
    kinds = ["ddd", "drd", "rrd", "-rr", "ddd", "r-d", "rr-", "ddd"]
    for step, row in enumerate(kinds):
        for i, kind in enumerate(row):
            gradient = {
                "d": np.full((4, 2), 0.5 + step),
                "r": rows([step % 4, i], [[1.0, step], [2.0, 1.0]]),
                "-": None,
            }[kind]
            together[i].grad = apart[i].grad = gradient
            optimizers[i].step()
        optimizer.step()
    for one, other, single in zip(together, apart, optimizers, strict=True):
        assert_same_bits(one.data, other.data)
        assert optimizer.state[one]["step"] == single.state[other]["step"]


@each_kind
def test_an_empty_gradient_is_a_step_that_changes_nothing_else(kind):
    parameter = fusedopt.Parameter(np.ones((4, 2)))
    optimizer = kind([parameter])
    parameter.grad = rows([], np.zeros((0, 2)))
    optimizer.step()
    assert (parameter.data == 1).all()
    assert optimizer.state[parameter]["step"] == 1


@each_kind
def test_gradients_are_copied_accumulated_and_dropped(kind):
    parameter = fusedopt.Parameter(np.ones((4, 2)))
    before = rows([0], [[1, 2]])
    parameter.grad = before  # an optimizer takes it over
    optimizer = kind([parameter])
    before.values[...] = 7
    parameter.grad += rows([0, 2], [[3, 4], [5, 6]])
    assert parameter.grad.indices.tolist() == [0, 0, 2]
    assert parameter.grad.values.tolist() == [[1, 2], [3, 4], [5, 6]]
    optimizer.zero_grad(set_to_none=False)
    assert len(parameter.grad.indices) == 0
    assert parameter.grad.values.shape == (0, 2)
    later = rows([3], [[1, 2]])
    parameter.grad = later
    later.values[...] = 7
    assert parameter.grad.values.tolist() == [[1, 2]]
    optimizer.clear_grad().step()
    assert parameter.grad is None
    assert parameter not in optimizer.state
    parameter.grad = rows([1], [[1, 1]])
    parameter.requires_grad = False
    optimizer.step()
    assert parameter not in optimizer.state
    parameter.grad = None
    assert parameter.grad is None


@each_kind
def test_a_resumed_copied_or_pickled_optimizer_goes_on_to_the_bit(kind):
    def started():
        parameter = fusedopt.Parameter(np.ones((5, 2), np.float32))
        return parameter, kind([parameter], lr=0.1)

    parameter, optimizer = started()
    for step in range(2):
        parameter.grad = random_rows(step, 4, (5, 2), "float32")
        optimizer.step()
    others = [copy.deepcopy((parameter, optimizer)), pickle.loads(pickle.dumps((parameter, optimizer))), started()]
    others[-1][0].data[...] = parameter.data
    others[-1][0].grad = parameter.grad
    others[-1][1].load_state_dict(optimizer.state_dict())
    optimizer.step()
    for other, resumed in others:
        resumed.step()  # with the gradient that was there
        assert_same_bits(other.data, parameter.data)


# --- bad input


def test_sparse_adam_refuses_dense_gradients_and_changes_nothing():
    dense, sparse = fusedopt.Parameter(np.ones((4, 2))), fusedopt.Parameter(np.ones((4, 2)))
    optimizer = fusedopt.SparseAdam([dense, sparse])
    dense.grad, sparse.grad = np.ones((4, 2)), rows([0], [[1, 2]])
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients; use Adam"):
        optimizer.step()
    assert (sparse.data == 1).all()
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("kind", [fusedopt.Adam, fusedopt.SGD, fusedopt.Muon, fusedopt.LBFGS])
def test_others_refuse_rows_with_the_cure(kind):
    parameter = fusedopt.Parameter(np.ones((4, 2)), name="table")
    optimizer = kind([parameter])
    message = f"parameter 'table' .* SparseGradient, which {kind.__name__} does not take.*SparseAdam or LazyAdam"
    with pytest.raises(TypeError, match=message):
        parameter.grad = rows([0], [[1, 2]])
    assert parameter.grad is None
    del optimizer
    parameter = fusedopt.Parameter(np.ones((4, 2)), name="table")
    parameter.grad = rows([0], [[1, 2]])
    with pytest.raises(TypeError, match=message):
        kind([parameter])
    assert parameter.owner is None
    parameter.grad = np.ones((4, 2))  # and now it is dense
    kind([parameter])


WRONG_GRADIENTS = {
    "indices": (lambda: SparseGradient([0], np.ones((1, 2))), TypeError, "indices must be a NumPy or CuPy array"),
    "floats": (lambda: SparseGradient(np.ones(1), np.ones((1, 2))), TypeError, "must be whole numbers, got float64"),
    "counts": (lambda: rows([0, 1], [[1, 2]]), ValueError, "one index for each row"),
    "matrix": (lambda: rows([[0]], [[1, 2]]), ValueError, "one index for each row"),
    "row shape": (lambda: rows([0], [[1, 2, 3]]), ValueError, r"rows of shape \(3,\); they must be like"),
    "dtype": (lambda: rows([0], [[1, 2]], "float32"), TypeError, "has dtype float64 and was given a SparseGradient of"),
    "below": (lambda: rows([-1], [[1, 2]]), ValueError, "rows 0 to 3 and was given .* from -1 to -1"),
    "above": (lambda: rows([0, 4], [[1, 2], [3, 4]]), ValueError, "rows 0 to 3 and was given .* from 0 to 4"),
}


@pytest.mark.parametrize(("make", "error", "message"), WRONG_GRADIENTS.values(), ids=WRONG_GRADIENTS)
def test_a_wrong_gradient_is_an_error_that_changes_nothing(make, error, message):
    parameter = fusedopt.Parameter(np.ones((4, 2)), name="table")
    optimizer = fusedopt.LazyAdam([parameter])
    with pytest.raises(error, match=message):
        parameter.grad = make()
    assert parameter.grad is None
    assert len(optimizer.step().state) == 0


@each_kind
def test_scales_are_for_dense_gradients(kind):
    parameter = fusedopt.Parameter(np.ones((4, 2)))
    optimizer = kind([parameter])
    parameter.grad = rows([0], [[1, 2]])
    for scale in ({"grad_scale": 2.0}, {"found_inf": 0.0}):
        with pytest.raises(RuntimeError, match="divide its values"):
            optimizer.step(**scale)
    assert (parameter.data == 1).all()


def test_a_parameter_without_rows_takes_none():
    parameter = fusedopt.Parameter(np.ones(()))
    with pytest.raises(ValueError, match="SparseGradient"):
        parameter.grad = rows([0], [1])


def test_the_array_module_is_that_of_the_array():
    cupy = pytest.importorskip("cupy")
    assert module_of(np.ones(1)) is np
    assert module_of(type("ndarray", (), {"__module__": "cupy"})()) is cupy


def test_lazyadam_centralizes_a_dense_gradient_with_its_decay_as_adam_does():
    values = np.random.default_rng(0).standard_normal((2, 3, 5))
    made = []
    for kind, options in ((fusedopt.LazyAdam, {}), (fusedopt.Adam, {"corrected_eps": False})):
        p = fusedopt.Parameter(values[0].copy())
        p.grad = values[1]
        kind([p], lr=0.1, weight_decay=0.5, grad_centralization=True, **options).step()
        made.append(p.data)
    np.testing.assert_allclose(*made, rtol=1e-12)
