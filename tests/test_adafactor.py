"""Adafactor over arrays: known results, torch's own steps, and state of other shapes than the parameter's."""

import copy
import pickle

import numpy as np
import pytest
import torch

import fusedopt
from cases import GOLDEN_GRADIENTS, GOLDEN_PARAMETER

SHAPES = [(), (4,), (3, 5), (2, 3, 4), (2, 1, 3, 2)]
EMPTY = [(0,), (0, 3), (3, 0)]


def stepped(optimizer, steps, seed=0):
    """Random gradients for all parameters, of numbers drawn for this seed."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        for parameter in optimizer.parameters():
            parameter.grad = random.standard_normal(parameter.shape).astype(parameter.dtype)
        optimizer.step()
    return optimizer


def starts(shapes, dtype="float64"):
    random = np.random.default_rng(1)
    return [random.standard_normal(shape).astype(dtype).reshape(shape) for shape in shapes]


def wrapped(arrays):
    return [fusedopt.Parameter(array.copy()) for array in arrays]


def torchs(arrays, steps, options, rounding=None):
    """torch's parameters in float64 after as many steps with the same gradients, which are rounded first."""
    params = [torch.from_numpy(array.astype(float)).requires_grad_() for array in arrays]
    optimizer, random = torch.optim.Adafactor(params, **options), np.random.default_rng(0)
    for _ in range(steps):
        for p in params:
            gradient = random.standard_normal(tuple(p.shape))
            p.grad = torch.from_numpy(np.asarray(gradient, rounding).astype(float))
        optimizer.step()
    return [p.detach().numpy() for p in params], optimizer


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((4,), {}, [0.982965111893, -2.00233724389, 0.489372485756, 0.235658338482]),
        ((2, 2), {"weight_decay": 0.1}, [0.981724922264, -1.99265459697, 0.483440575851, 0.234499141392]),
    ],
)
def test_three_steps_are_where_they_are_known_to_be(device, shape, options, expected):
    parameter = fusedopt.Parameter(device.array(GOLDEN_PARAMETER.reshape(shape)))
    optimizer = fusedopt.Adafactor([parameter], lr=0.01, **options)
    for gradient in GOLDEN_GRADIENTS:
        parameter.grad = device.array(gradient.reshape(shape))
        optimizer.step()
    np.testing.assert_allclose(device.host(parameter.data).ravel(), expected, rtol=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1, "lr": 0.3},
        {"maximize": True, "d": 1.5},
        {"beta2_decay": -0.5, "eps": (0.5, 0.9)},
        {"beta2_decay": 0.0, "eps": (0.0, 0.0)},
    ],
    ids=str,
)
def test_thirty_steps_are_torchs(options):
    parameters = wrapped(starts(SHAPES))
    optimizer = stepped(fusedopt.Adafactor(parameters, **options), 30)
    expected, theirs = torchs(starts(SHAPES), 30, options)
    for number, (parameter, p) in enumerate(zip(parameters, expected, strict=True)):
        np.testing.assert_allclose(parameter.data, p, rtol=1e-12, atol=1e-13)
        for name, value in theirs.state_dict()["state"][number].items():
            assert optimizer.state[parameter][name].shape == tuple(value.shape)
            np.testing.assert_allclose(optimizer.state[parameter][name], value.numpy(), rtol=1e-12)


@pytest.mark.parametrize(("dtype", "roundoff"), [("float32", 2**-24), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_other_dtypes_are_computed_in_float32_and_stored_rounded(dtype, roundoff):
    """Five steps, each of two roundings of p; an update is a hundredth of p, and its roundings as much less."""
    shapes = [(6, 4), (5,)]
    rounded = starts(shapes, dtype)
    parameters = wrapped(rounded)
    optimizer = stepped(fusedopt.Adafactor(parameters, weight_decay=0.1), 5)
    finest = {"eps": (2 * roundoff, 1e-3), "weight_decay": 0.1}
    expected, _ = torchs(rounded, 5, finest, rounded[0].dtype)
    for parameter, p in zip(parameters, expected, strict=True):
        assert {str(v.dtype) for k, v in optimizer.state[parameter].items() if k != "step"} == {dtype}
        np.testing.assert_allclose(parameter.data.astype(float), p, rtol=0, atol=10 * roundoff * np.abs(p).max())


def test_the_least_root_is_that_of_each_parameters_dtype():
    """torch takes the dtype of a group's first parameter for all of them."""
    ends = []
    for first in ([], wrapped(starts([(3,)], "bfloat16"))):
        parameter = fusedopt.Parameter(np.ones((2, 2), np.float32))
        optimizer = fusedopt.Adafactor([*first, parameter])
        for some in optimizer.parameters():
            some.grad = np.full(some.shape, 1e-4, some.dtype)
        optimizer.step()
        ends.append(parameter.data.copy())
    assert np.array_equal(*ends)
    np.testing.assert_allclose(ends[0], 0.99, rtol=1e-6)  # a whole step, as 1e-4 is above float32's eps of 1.2e-7


EPSILONS = {"float64": 2**-52, "float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}


@pytest.mark.parametrize("dtype", EPSILONS)
@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_gradients_below_the_least_root_move_by_as_much_less(dtype, shape):
    parameter = fusedopt.Parameter(np.ones(shape, dtype))
    parameter.grad = np.full(shape, EPSILONS[dtype] / 4, dtype)
    fusedopt.Adafactor([parameter], lr=1.0).step()
    assert (parameter.data == 0.75).all()


def test_empty_parameters_step_and_keep_their_shapes():
    """torch divides by their number of elements, and raises."""
    parameters = wrapped([np.zeros(shape) for shape in EMPTY])
    optimizer = stepped(fusedopt.Adafactor(parameters), 2)
    entries = optimizer.state_dict()["state"]
    assert [{name: value.shape for name, value in entry.items()} for entry in entries.values()] == [
        {"step": (), "variance": (0,)},
        {"step": (), "row_var": (0, 1), "col_var": (1, 3)},
        {"step": (), "row_var": (3, 1), "col_var": (1, 0)},
    ]
    assert all(entry["step"] == 2 for entry in entries.values())
    assert (entries[1]["col_var"] == 0).all()
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_parameter_without_gradient_is_left_alone():
    some, idle = wrapped([np.ones((2, 2)), np.ones((2, 2))])
    optimizer = fusedopt.Adafactor([some, idle], weight_decay=0.5)
    some.grad = np.eye(2)
    assert optimizer.step() is optimizer
    assert (idle.data == 1).all()
    assert idle not in optimizer.state
    assert optimizer.state[idle] == {}
    assert optimizer.state_dict()["state"].keys() == {0}
    idle.grad = np.eye(2)
    assert optimizer.step(lambda: 2.5) == 2.5
    assert [optimizer.state[p]["step"] for p in (some, idle)] == [2, 1]


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_gradients_of_zeros_move_nothing_and_shrink_the_moments(shape):
    still, moved = wrapped([np.ones(shape), np.ones(shape)])
    optimizer = fusedopt.Adafactor([still, moved])
    still.grad, moved.grad = np.zeros(shape), np.ones(shape)
    optimizer.step()
    place, before = moved.data.copy(), {k: v.copy() for k, v in optimizer.state[moved].items() if k != "step"}
    moved.grad = np.zeros(shape)
    optimizer.step()
    assert (still.data == 1).all()
    assert np.array_equal(moved.data, place)
    assert all((optimizer.state[moved][name] < value).all() for name, value in before.items())


def test_an_element_that_is_nan_spoils_no_others_of_a_vector_as_in_torch():
    parameter, p = fusedopt.Parameter(np.ones(3)), torch.ones(3, dtype=torch.float64, requires_grad=True)
    gradient = np.array([1.0, np.nan, -2.0])
    parameter.grad, p.grad = gradient, torch.from_numpy(gradient)
    fusedopt.Adafactor([parameter]).step()
    torch.optim.Adafactor([p]).step()
    np.testing.assert_allclose(parameter.data, p.detach().numpy(), rtol=1e-15)
    assert np.isnan(parameter.data).sum() == 1


def test_a_resumed_copied_or_pickled_optimizer_goes_on_to_the_bit(tmp_path):
    def started():
        parameters = wrapped([*starts(SHAPES), *starts([(3, 2)], "float32"), np.zeros((0, 3))])
        return fusedopt.Adafactor([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.1}], eps=(None, 1e-2))

    optimizer = stepped(started(), 3)
    fusedopt.save(tmp_path / "run.npz", optimizer.state_dict())
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for saved in (optimizer.state_dict(), fusedopt.load(tmp_path / "run.npz")):
        others.append(started())
        for mine, theirs in zip(others[-1].parameters(), optimizer.parameters(), strict=True):
            mine.data[...] = theirs.data
        others[-1].load_state_dict(saved)
    stepped(optimizer, 3, seed=1)
    for other in others:
        stepped(other, 3, seed=1)
        for mine, theirs in zip(other.parameters(), optimizer.parameters(), strict=True):
            assert np.array_equal(mine.data, theirs.data)
            assert all(np.array_equal(v, optimizer.state[theirs][k]) for k, v in other.state[mine].items())


def test_the_state_is_live_and_its_dict_a_copy():
    optimizer = fusedopt.Adafactor(wrapped(starts([(2, 2)])))
    assert optimizer.state_dict()["state"] == {}
    (parameter,) = optimizer.init_state().parameters()
    saved, row = optimizer.state_dict(), optimizer.state[parameter]["row_var"]
    assert saved["state"][0].keys() == {"step", "row_var", "col_var"}
    stepped(optimizer, 1)
    assert (row > 0).all()
    assert (saved["state"][0]["row_var"] == 0).all()
    row[...] = 7
    assert (optimizer.state_dict()["state"][0]["row_var"] == 7).all()


def test_schedules_and_written_rates_are_the_same():
    rates, ends = [0.1, 0.05, 0.0], []
    for scheduled in (True, False):
        optimizer = fusedopt.Adafactor(wrapped(starts([(3, 2)])), lr=rates if scheduled else 1.0)
        for seed, rate in enumerate(rates):
            if not scheduled:
                optimizer.param_groups[0]["lr"] = rate
            stepped(optimizer, 1, seed)
        ends.append(next(optimizer.parameters()).data)
    assert np.array_equal(*ends)


WRONG = {
    "lr": ({"lr": -0.1}, ValueError, r"lr must be in \[0, inf\)"),
    "beta2_decay": ({"beta2_decay": 0.8}, ValueError, r"beta2_decay must be in \(-inf, 0\]"),
    "the first eps": ({"eps": (-1e-30, 1e-3)}, ValueError, r"eps\[0\] must be in \[0, inf\)"),
    "the second eps": ({"eps": (None, -1e-3)}, ValueError, r"eps\[1\] must be in \[0, inf\)"),
    "None for a number": ({"eps": (None, None)}, TypeError, r"eps\[1\] must be a number, got None"),
    "one eps": ({"eps": 1e-3}, ValueError, r"eps must be 2 numbers such as \(None, 0.001\)"),
    "d": ({"d": 0.5}, ValueError, r"d must be in \[1, inf\)"),
    "weight_decay": ({"weight_decay": -1.0}, ValueError, "weight_decay must be in"),
    "clip_value": ({"clip_value": 1.0}, TypeError, "Adafactor has no option 'clip_value'"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_an_error(options, error, message):
    parameter = fusedopt.Parameter(np.zeros((2, 2)))
    with pytest.raises(error, match=message):
        fusedopt.Adafactor([parameter], **options)
    assert parameter.owner is None


@pytest.mark.parametrize("scale", [{"grad_scale": 2.0}, {"found_inf": 0.0}])
def test_scales_are_refused_before_anything_changes(scale):
    parameter = fusedopt.Parameter(np.ones((2, 2)))
    optimizer = fusedopt.Adafactor([parameter])
    parameter.grad = np.eye(2)
    with pytest.raises(RuntimeError, match="is no launch by itself"):
        optimizer.step(**scale)
    assert (parameter.data == 1).all()
    assert len(optimizer.state) == 0


WRONG_STATES = {
    "another shape": ("row_var", np.zeros(3), ValueError, r"row_var has shape \(3,\) and must have \(3, 1\)"),
    "another dtype": ("col_var", np.zeros((1, 2), np.float32), TypeError, "nothing is cast silently"),
    "no array": ("col_var", [[0.0, 0.0]], TypeError, "must be a NumPy array, got list"),
    "missing": ("col_var", None, KeyError, "lacks 'col_var'"),
    "no step": ("step", None, KeyError, "lacks 'step'"),
    "half a step": ("step", 0.5, ValueError, "step must be a whole number"),
    "a vector's": ("variance", np.zeros((3, 2)), ValueError, "has 'variance'; Adafactor keeps step, row_var, col_var"),
}


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG_STATES.values(), ids=WRONG_STATES)
def test_a_wrong_state_dict_changes_nothing(name, value, error, message):
    optimizer = stepped(fusedopt.Adafactor(wrapped(starts([(4,), (3, 2)]))), 2)
    before, saved = str(optimizer.state_dict()), optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    saved["state"][0]["step"] = 7.0
    saved["state"][1][name] = value
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == before


@pytest.mark.parametrize("saved", [None, {}, {"state": {}}, {"state": 3, "param_groups": [{"params": [0, 1]}]}])
def test_what_is_no_state_dict_is_refused(saved):
    optimizer = stepped(fusedopt.Adafactor(wrapped(starts([(4,), (3, 2)]))), 1)
    before = str(optimizer.state_dict())
    with pytest.raises((TypeError, ValueError)):
        optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == before
