"""Muon over arrays: known results, the paper's equations, and which parameters it takes."""

import copy
import math
import pickle

import numpy as np
import pytest

import fusedopt
from cases import GOLDEN_GRADIENTS, GOLDEN_PARAMETER
from fusedopt.procedures.muon import orthogonalized
from fusedopt.rules import Muon

COEFFICIENTS = (3.4445, -4.775, 2.0315)


def stepped(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()


def test_three_steps_are_where_they_are_known_to_be(device):
    parameter = fusedopt.Parameter(device.array(GOLDEN_PARAMETER.reshape(2, 2)))
    optimizer = fusedopt.Muon([parameter], lr=0.1)
    stepped(optimizer, parameter, [device.array(g.reshape(2, 2)) for g in GOLDEN_GRADIENTS])
    expected = [0.886601279758, -1.95347958369, 0.316170256119, 0.15895498018]
    np.testing.assert_allclose(device.host(parameter.data).ravel(), expected, rtol=1e-11)


def test_singular_values_come_near_one():
    np.testing.assert_allclose(orthogonalized(np.eye(2), Muon()), 1.10811111568 * np.eye(2), rtol=1e-11)
    random = np.random.default_rng(0)
    for shape in ((5, 3), (3, 5), (16, 16)):
        values = np.linalg.svd(orthogonalized(random.standard_normal(shape), Muon(ns_steps=9)), compute_uv=False)
        assert values.min() > 0.6
        assert values.max() < 1.3


def written_out(p, gradients, lr, momentum, nesterov, decay, adjust):
    """The equations, with a singular value decomposition: the iterations change the singular values alone."""
    b = np.zeros_like(p)
    for g in gradients:
        b = momentum * b + (1 - momentum) * g
        u = momentum * b + (1 - momentum) * g if nesterov else b
        left, values, right = np.linalg.svd(u, full_matrices=False)
        values = values / max(np.sqrt((values**2).sum()), 1e-7)
        for _ in range(5):
            values = COEFFICIENTS[0] * values + COEFFICIENTS[1] * values**3 + COEFFICIENTS[2] * values**5
        rows, columns = p.shape
        ratio = (
            0.2 * math.sqrt(max(rows, columns)) if adjust == "match_rms_adamw" else math.sqrt(max(1, rows / columns))
        )
        p = p * (1 - lr * decay) - lr * ratio * (left * values) @ right
    return p


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (4, 1)])
@pytest.mark.parametrize(("nesterov", "adjust"), [(True, None), (False, "original"), (True, "match_rms_adamw")])
def test_steps_are_the_equations(shape, nesterov, adjust):
    random = np.random.default_rng(0)
    start, gradients = random.standard_normal(shape), random.standard_normal((4, *shape))
    parameter = fusedopt.Parameter(start.copy())
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.3, "adjust_lr_fn": adjust}
    stepped(fusedopt.Muon([parameter], **options), parameter, gradients)
    expected = written_out(start, gradients, 0.1, 0.9, nesterov, 0.3, adjust)
    np.testing.assert_allclose(parameter.data, expected, rtol=1e-11, atol=1e-12)


# Four rounded stores; the iterations, of degree 5^5, magnify float32's roundings by some hundred.
@pytest.mark.parametrize(
    ("dtype", "options", "tolerance"),
    [
        ("float32", {}, 1e-4),
        ("float32", {"ns_dtype": "float64"}, 1e-6),
        ("float16", {}, 1e-2),
        ("bfloat16", {}, 5e-2),
    ],
)
def test_other_dtypes_are_computed_in_float32_and_stored_rounded(dtype, options, tolerance):
    random = np.random.default_rng(0)
    start, gradients = random.standard_normal((6, 4)), random.standard_normal((3, 6, 4))
    parameter = fusedopt.Parameter(start.astype(dtype))
    optimizer = fusedopt.Muon([parameter], lr=0.1, **options)
    stepped(optimizer, parameter, gradients.astype(dtype))
    expected = written_out(start, gradients, 0.1, 0.95, True, 0.1, None)
    assert optimizer.state[parameter]["momentum_buffer"].dtype == dtype
    np.testing.assert_allclose(parameter.data.astype(float), expected, atol=tolerance)


def test_the_scale_of_a_first_gradient_makes_no_difference_and_zeros_stay():
    ends = []
    for scale in (1.0, 2.0**20):
        parameter = fusedopt.Parameter(np.zeros((2, 2)))
        stepped(fusedopt.Muon([parameter], lr=0.1), parameter, [scale * GOLDEN_GRADIENTS[0].reshape(2, 2)])
        ends.append(parameter.data.copy())
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)
    parameter = fusedopt.Parameter(np.ones((2, 2)))
    stepped(fusedopt.Muon([parameter], weight_decay=0.0), parameter, [np.zeros((2, 2))])
    assert (parameter.data == 1).all()


def test_a_parameter_without_gradient_is_left_alone_and_empty_ones_step():
    some, idle, empty = (fusedopt.Parameter(np.ones(shape)) for shape in ((2, 2), (2, 2), (0, 3)))
    optimizer = fusedopt.Muon([some, idle, empty])
    some.grad, empty.grad = np.eye(2), np.ones((0, 3))
    assert optimizer.step() is optimizer
    assert (idle.data == 1).all()
    assert idle not in optimizer.state
    assert optimizer.state[some].keys() == {"momentum_buffer"}
    assert optimizer.state_dict()["state"].keys() == {0, 2}
    optimizer.clear_grad()
    assert some.grad is None
    assert optimizer.step(lambda: 2.5) == 2.5


def test_a_resumed_copied_or_pickled_optimizer_goes_on_to_the_bit():
    def started():
        parameter = fusedopt.Parameter(GOLDEN_PARAMETER.reshape(2, 2).copy())
        return parameter, fusedopt.Muon([parameter], lr=0.1, ns_steps=3)

    gradients = GOLDEN_GRADIENTS.reshape(3, 2, 2)
    parameter, optimizer = started()
    stepped(optimizer, parameter, gradients[:2])
    others = [copy.deepcopy((parameter, optimizer)), pickle.loads(pickle.dumps((parameter, optimizer))), started()]
    others[-1][0].data[...] = parameter.data
    others[-1][1].load_state_dict(optimizer.state_dict())
    stepped(optimizer, parameter, gradients[2:])
    for other, resumed in others:
        stepped(resumed, other, gradients[2:])
        assert np.array_equal(other.data, parameter.data)
        assert type(resumed.param_groups[0]["ns_steps"]) is int


def test_groups_have_their_own_options_read_at_every_step():
    one, two = fusedopt.Parameter(np.zeros((2, 2))), fusedopt.Parameter(np.zeros((2, 2)))
    optimizer = fusedopt.Muon([{"params": [one]}, {"params": [two], "lr": 0.5}], lr=0.25, weight_decay=0.0)
    for _ in range(2):
        before = one.data.copy(), two.data.copy()
        one.grad = two.grad = np.eye(2)
        optimizer.step()
        moves = one.data - before[0], two.data - before[1]
        ratio = optimizer.param_groups[1]["lr"] / optimizer.param_groups[0]["lr"]
        np.testing.assert_allclose(moves[1], ratio * moves[0], rtol=1e-14)
        optimizer.param_groups[0]["lr"] = 1.0


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_a_parameter_that_is_no_matrix_is_refused_by_name(shape):
    matrix, other = fusedopt.Parameter(np.zeros((2, 2))), fusedopt.Parameter(np.zeros(shape), name="bias")
    with pytest.raises(ValueError, match="Muon only supports 2D parameters, parameter 'bias'"):
        fusedopt.Muon([matrix, other])
    assert matrix.owner is None
    optimizer = fusedopt.Muon([matrix])
    with pytest.raises(ValueError, match="AdamW"):
        optimizer.add_param_group({"params": [other]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("decay", [0.0, 1e-8, 6e-8, 1e-6])
def test_a_small_decay_is_rounded_once(decay):
    """A factor 1 - lr weight_decay is 1 in float32 below 3e-8, and moves nothing; without decay infinity stays.

    fusedopt.torch.Muon has torch's bits, and so torch's factor.
    """
    start = np.random.default_rng(1).standard_normal((40, 25)).astype(np.float32)
    if not decay:
        start[0, 0] = np.inf
    parameter = fusedopt.Parameter(start.copy())
    parameter.grad = np.zeros_like(start)
    fusedopt.Muon([parameter], lr=1.0, weight_decay=decay).step()
    exact = start * (1 - np.float64(decay))
    assert parameter.data[0, 0] == exact[0, 0] or decay
    error = np.abs(parameter.data[1:] - exact[1:])
    assert (error <= 0.501 * np.spacing(np.abs(exact[1:]).astype(np.float32))).all()


WRONG = {
    "adjust_lr_fn": ({"adjust_lr_fn": "arbitrary"}, ValueError, "must be one of None, 'original', 'match_rms_adamw'"),
    "ns_steps": ({"ns_steps": 100}, ValueError, r"ns_steps must be in \[0, 100\)"),
    "half a step": ({"ns_steps": 1.5}, ValueError, "whole number"),
    "coefficients": ({"ns_coefficients": (1.0, 2.0)}, ValueError, "must be 3 numbers"),
    "bfloat16": ({"ns_dtype": "bfloat16"}, ValueError, "for torch tensors"),
    "clip_value": ({"clip_value": 1.0}, TypeError, "Muon has no option 'clip_value'"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_an_error(options, error, message):
    with pytest.raises(error, match=message):
        fusedopt.Muon([fusedopt.Parameter(np.zeros((2, 2)))], **options)


def test_a_dtype_of_torchs_alone_is_refused_at_the_step_and_changes_nothing():
    x = fusedopt.Parameter(np.ones((2, 2)))
    optimizer = fusedopt.Muon([x])
    x.grad = np.eye(2)
    optimizer.param_groups[0]["ns_dtype"] = "bfloat16"
    for _ in range(2):
        with pytest.raises(ValueError, match="ns_dtype='bfloat16' is for torch tensors"):
            optimizer.step()
    assert (x.data == 1).all()
    assert optimizer.state == {}


@pytest.mark.parametrize("scale", [{"grad_scale": 2.0}, {"found_inf": 0.0}])
def test_scales_are_refused_before_anything_changes(scale):
    parameter = fusedopt.Parameter(np.ones((2, 2)))
    optimizer = fusedopt.Muon([parameter])
    parameter.grad = np.eye(2)
    with pytest.raises(RuntimeError, match="is no launch by itself"):
        optimizer.step(**scale)
    assert (parameter.data == 1).all()
    assert len(optimizer.state) == 0
