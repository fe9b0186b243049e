"""LBFGS over arrays: torch's iterations, and what torch's lacks."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.optim.lbfgs import _strong_wolfe

import fusedopt
from fusedopt.procedures.line_search import Line, Point, strong_wolfe
from fusedopt.rules import Rule, Values, hyperparameter

A, B = np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([1.0, -1.0])
SEARCHES = [None, "strong_wolfe"]
each_search = pytest.mark.parametrize("search", SEARCHES)


def quadratic(parameter, a=A, b=B):
    """A closure: x.Ax / 2 - b.x, and its gradient."""

    def closure():
        x = parameter.data
        parameter.grad = a @ x - b
        return 0.5 * x @ a @ x - b @ x

    return closure


@each_search
def test_the_quadratic_is_where_it_is_known_to_be(search, device):
    x = fusedopt.Parameter(device.array(np.zeros(2)))
    optimizer = fusedopt.LBFGS([x], max_iter=4, line_search_fn=search)
    assert optimizer.step(quadratic(x, device.array(A), device.array(B))) == 0  # the loss at first
    np.testing.assert_allclose(device.host(x.data), [0.600020548722, -0.80002179565], rtol=1e-11)
    assert optimizer.state[x]["func_evals"] == {None: 4, "strong_wolfe": 5}[search]
    assert optimizer.state[x]["n_iter"] == 4


# --- beside torch's

H = np.random.default_rng(0).standard_normal((6, 6))
POINTS = np.random.default_rng(1).standard_normal((50, 6))
LABELS = np.random.default_rng(2).random(50) > 0.5


def rosenbrock(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def bowl(x):
    return 0.5 * x @ torch.from_numpy(H @ H.T + np.eye(6)) @ x - x.sum()


def logistic(x):
    scores = torch.from_numpy(POINTS) @ x
    labels = torch.from_numpy(LABELS).double()
    return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels) + 1e-3 * (x * x).sum()


def evaluated(loss, parts):
    """The loss and its gradients, where the parameter vector is in two parts."""
    tensors = [torch.from_numpy(np.array(part)).requires_grad_() for part in parts]
    value = loss(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    value.backward()
    return value.item(), [tensor.grad.numpy() for tensor in tensors]


@each_search
@pytest.mark.parametrize(
    ("loss", "history_size"), [(rosenbrock, 100), (bowl, 100), (bowl, 3), (logistic, 100), (logistic, 3)]
)
def test_steps_are_torchs_to_1e_10(loss, history_size, search):
    start = np.linspace(-0.5, 1, 6)
    options = {"history_size": history_size, "line_search_fn": search, "max_iter": 7}
    options["lr"] = 0.01 if loss is rosenbrock and search is None else 1.0
    ours = [fusedopt.Parameter(start[:2].copy()), fusedopt.Parameter(start[2:].reshape(2, 2).copy())]
    theirs = [torch.from_numpy(parameter.data.copy()).requires_grad_() for parameter in ours]
    mine, torchs = fusedopt.LBFGS(ours, **options), torch.optim.LBFGS(theirs, **options)

    def closure():
        value, gradients = evaluated(loss, [parameter.data for parameter in ours])
        for parameter, gradient in zip(ours, gradients, strict=True):
            parameter.grad = gradient
        return value

    def their_closure():
        torchs.zero_grad()
        value = loss(torch.cat([tensor.reshape(-1) for tensor in theirs]))
        value.backward()
        return value

    for _ in range(4):
        returned, expected = mine.step(closure), torchs.step(their_closure).item()
        assert returned == pytest.approx(expected, rel=1e-10, abs=1e-10)
        for parameter, tensor in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(parameter.data, tensor.detach().numpy(), rtol=0, atol=1e-10)
        state, their_state = mine.state_dict()["state"][0], torchs.state_dict()["state"][0]
        assert state.keys() == their_state.keys()
        assert [state[name] for name in ("func_evals", "n_iter")] == [
            their_state[name] for name in ("func_evals", "n_iter")
        ]
        for name in ("old_dirs", "old_stps", "ro", "al"):
            assert len(state[name]) == len(their_state[name])


def curve(kind, seed):
    """t -> a function and its slope, falling at 0; some wiggle, some are steep."""
    a, b, c, d = np.random.default_rng([kind, seed]).uniform(0.2, 3, 4)
    functions = (
        (lambda t: a * (t - b) ** 2 + c * np.sin(d * t), lambda t: 2 * a * (t - b) + c * d * np.cos(d * t)),
        (lambda t: a * (t - b) ** 4 - c * t, lambda t: 4 * a * (t - b) ** 3 - c),
        (lambda t: np.exp(a * t) - 9 * b * t, lambda t: a * np.exp(a * t) - 9 * b),
        (lambda t: -t / (t * t + a) + 0.01 * b * t, lambda t: (t * t - a) / (t * t + a) ** 2 + 0.01 * b),
        (lambda t: b * np.cos(4 * d * t) - 0.2 * a * t, lambda t: -4 * b * d * np.sin(4 * d * t) - 0.2 * a),
    )
    return functions[kind]


RARE = (124, 255, 387, 602, 2609, 5651)  # of the last kind: the bracket's second point is above its first


@pytest.mark.parametrize("kind", range(5))
def test_the_line_search_is_torchs(kind):
    """To 1e-9: a search makes the same choices, and its cubics are solved in float64."""
    compared = 0
    for seed in (*range(100), *RARE):
        function, slope = curve(kind, seed)
        first = float(10 ** np.random.default_rng(seed).uniform(-2, 1))
        if not slope(0.0) < -1e-3:
            continue

        def at(t, function=function, slope=slope):
            return Point(t, float(function(t)), np.array([slope(t)]), float(slope(t)))

        def evaluate(x, t, d, function=function, slope=slope):
            return float(function(float(t))), torch.tensor([slope(float(t))], dtype=torch.float64)

        point, count = strong_wolfe(Line(at(0.0), at, 1.0), first, 1e-9, 25)
        start = evaluate(None, 0.0, None)
        loss, _, t, expected = _strong_wolfe(
            evaluate, None, first, torch.ones(1, dtype=torch.float64), *start, start[1][0], max_ls=25
        )
        assert count == expected
        assert point.t == pytest.approx(float(t), rel=1e-9)
        assert point.loss == pytest.approx(float(loss), rel=1e-9)
        compared += 1
    assert compared > 20


# --- history


def test_a_resumed_copied_or_pickled_optimizer_goes_on_to_the_bit(tmp_path):
    def started():
        x = fusedopt.Parameter(np.zeros(2))
        return x, fusedopt.LBFGS([x], max_iter=2, max_eval=20, line_search_fn="strong_wolfe")

    a, b = np.array([[30.0, 1.0], [1.0, 0.2]]), np.array([1.0, -1.0])
    x, optimizer = started()
    optimizer.step(quadratic(x, a, b))
    state, place = optimizer.state_dict(), x.data.copy()
    copies = [copy.deepcopy((x, optimizer)), pickle.loads(pickle.dumps((x, optimizer)))]
    for saved in (state, fusedopt.load(_saved(tmp_path / "run.npz", state))):
        y, resumed = started()
        y.data[...] = place
        resumed.load_state_dict(saved)
        copies.append((y, resumed))
    optimizer.step(quadratic(x, a, b))
    fresh, forgetful = started()
    fresh.data[...] = place
    forgetful.step(quadratic(fresh, a, b))
    assert not np.array_equal(fresh.data, x.data)  # the history matters
    for y, other in copies:
        other.step(quadratic(y, a, b))
        assert np.array_equal(y.data, x.data)
        assert other.state[y]["n_iter"] == optimizer.state[x]["n_iter"] > 2


def _saved(path, state):
    fusedopt.save(path, state)
    return path


def test_the_state_dict_is_a_copy():
    x = fusedopt.Parameter(np.zeros(2))
    optimizer = fusedopt.LBFGS([x], max_iter=3)
    assert optimizer.state == {}
    assert optimizer.state_dict()["state"] == {}
    optimizer.step(quadratic(x))
    saved = optimizer.state_dict()
    saved["state"][0]["d"][...] = 7
    saved["state"][0]["old_dirs"][0][...] = 7
    assert not (optimizer.state[x]["d"] == 7).any()
    other = fusedopt.LBFGS([fusedopt.Parameter(np.zeros(2))])
    other.load_state_dict(saved)
    saved["state"][0]["d"][...] = 8
    assert (next(iter(other.state.values()))["d"] == 7).all()
    assert other.param_groups[0]["max_iter"] == 3


# --- gradients that are missing, tiny or not finite


def test_a_parameter_without_gradient_counts_as_zeros():
    x, idle = fusedopt.Parameter(np.zeros(2)), fusedopt.Parameter(np.full(2, 3.0))
    optimizer = fusedopt.LBFGS([x, idle], max_iter=4)
    optimizer.step(quadratic(x))
    np.testing.assert_allclose(x.data, [0.600020548722, -0.80002179565], rtol=1e-11)
    assert (idle.data == 3).all()


def test_a_frozen_parameter_stays_whatever_the_history_says():
    one, two = fusedopt.Parameter(np.zeros(1)), fusedopt.Parameter(np.zeros(1))
    optimizer = fusedopt.LBFGS([one, two], max_iter=3)

    def closure():
        x = np.concatenate([one.data, two.data])
        one.grad, two.grad = (A @ x - B)[:1], (A @ x - B)[1:]
        return 0.5 * x @ A @ x - B @ x

    optimizer.step(closure)
    two.requires_grad = False
    before = one.data.copy(), two.data.copy()
    optimizer.step(closure)
    assert np.array_equal(two.data, before[1])
    assert not np.array_equal(one.data, before[0])


@each_search
def test_a_pair_without_curvature_is_left_out(search):
    x = fusedopt.Parameter(np.zeros(3))
    optimizer = fusedopt.LBFGS([x], lr=0.1, max_iter=5, line_search_fn=search)

    def slope():
        x.grad = np.array([1.0, 2.0, -1.0])  # the same everywhere: y is 0
        return float(x.grad @ x.data)

    optimizer.step(slope)
    assert np.isfinite(x.data).all()
    assert x.data[1] < 0
    assert optimizer.state[x]["old_dirs"] == []


@pytest.mark.parametrize(("curvature", "kept"), [(-0.5, 0), (1e-12, 0), (1e-3, 1)])
def test_a_pair_of_negative_or_tiny_curvature_is_left_out(curvature, kept):
    """From 0 the first step goes to -1, so y.s is the curvature; 1 / 1e-12 would be a step of that length."""
    x = fusedopt.Parameter(np.zeros(1))
    optimizer = fusedopt.LBFGS([x], max_iter=2, max_eval=9)

    def bent():
        x.grad = 1 + curvature * x.data
        return float(x.data[0] + 0.5 * curvature * x.data[0] ** 2)

    optimizer.step(bent)
    assert len(optimizer.state[x]["old_dirs"]) == kept
    if not kept:
        assert -3 < x.data[0] < -1


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_direction_that_is_not_finite_drops_the_history(bad):
    x = fusedopt.Parameter(np.zeros(2))
    optimizer = fusedopt.LBFGS([x], max_iter=3)
    optimizer.step(quadratic(x))
    assert optimizer.state[x]["old_dirs"]
    before = x.data.copy()

    def broken():
        x.grad = np.array([bad, 1.0])
        return 1.0

    optimizer.step(broken)
    assert optimizer.state[x]["old_dirs"] == []
    assert np.array_equal(x.data, before) == (bad != 1e300)  # whose square alone is not finite
    assert np.isfinite(x.data).all()
    for _ in range(4):
        optimizer.step(quadratic(x))
    np.testing.assert_allclose(x.data, np.linalg.solve(A, B), rtol=1e-6)


def test_the_search_keeps_out_of_where_the_loss_is_not_finite():
    x = fusedopt.Parameter(np.array([4.0]))
    optimizer = fusedopt.LBFGS([x], lr=20.0, max_iter=20, line_search_fn="strong_wolfe")

    def barrier():  # x - 2 sqrt(x), lowest at 1; loss and gradient are NaN below 0
        with np.errstate(all="ignore"):
            x.grad = 1 - 1 / np.sqrt(x.data)
            return float(x.data[0] - 2 * np.sqrt(x.data[0]))

    for _ in range(3):
        optimizer.step(barrier)
    np.testing.assert_allclose(x.data, [1], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_other_dtypes_are_computed_in_float32(dtype):
    x = fusedopt.Parameter(np.zeros(2, dtype))
    optimizer = fusedopt.LBFGS([x], line_search_fn="strong_wolfe")

    def closure():
        p = x.data.astype(np.float64)
        x.grad = (A @ p - B).astype(dtype)
        return 0.5 * p @ A @ p - B @ p

    optimizer.step(closure)
    assert optimizer.state[x]["d"].dtype == np.float32
    np.testing.assert_allclose(x.data.astype(float), [0.6, -0.8], rtol=2 * 2.0**-8)  # bfloat16's half ulp, some times


def test_nothing_to_train_calls_the_closure_once():
    optimizer, calls = fusedopt.LBFGS([{"params": []}]), []
    assert optimizer.step(lambda: calls.append(1) or 2.5) == 2.5
    assert calls == [1]
    assert optimizer.state == {}
    assert optimizer.state_dict()["state"] == {}
    optimizer.load_state_dict(optimizer.state_dict())
    assert copy.deepcopy(optimizer).state == {}


# --- options and bad input


def test_whole_numbers_stay_ints_and_max_eval_follows_max_iter_once():
    x = fusedopt.Parameter(np.zeros(2))
    optimizer = fusedopt.LBFGS([x], max_iter=np.int64(9))
    assert optimizer.defaults["max_iter"] == 9
    assert optimizer.defaults["max_eval"] == 11
    for name in ("max_iter", "max_eval", "history_size"):
        assert type(optimizer.defaults[name]) is int
        assert type(optimizer.param_groups[0][name]) is int
    optimizer.param_groups[0]["max_iter"] = 100
    assert optimizer.param_groups[0]["max_eval"] == 11  # as in torch
    optimizer.param_groups[0]["max_eval"] = 3
    calls = []
    optimizer.step(lambda: calls.append(1) or quadratic(x)())
    assert len(calls) == 3


WRONG = {
    "max_iter of a half": ({"max_iter": 2.5}, ValueError, "max_iter must be a whole number, got 2.5"),
    "no max_iter": ({"max_iter": None}, TypeError, "max_iter must be a number"),
    "max_iter of 0": ({"max_iter": 0}, ValueError, r"max_iter must be in \[1, inf\)"),
    "history_size": ({"history_size": 0}, ValueError, "history_size must be in"),
    "line_search_fn": ({"line_search_fn": "armijo"}, ValueError, "line_search_fn must be one of None, 'strong_wolfe'"),
    "loss_scale": ({"loss_scale": 2.0}, TypeError, "LBFGS has no option 'loss_scale'"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_an_error(options, error, message):
    with pytest.raises(error, match=message):
        fusedopt.LBFGS([fusedopt.Parameter(np.zeros(2))], **options)


def test_there_is_one_group_alone():
    x, y = fusedopt.Parameter(np.zeros(2)), fusedopt.Parameter(np.zeros(2))
    with pytest.raises(ValueError, match="one param group alone"):
        fusedopt.LBFGS([{"params": [x]}, {"params": [y]}])
    optimizer = fusedopt.LBFGS([x])
    with pytest.raises(ValueError, match="one param group alone"):
        optimizer.add_param_group({"params": [y]})
    assert len(optimizer.param_groups) == 1
    assert y.owner is None


def test_a_step_takes_a_closure_and_no_scales():
    x = fusedopt.Parameter(np.zeros(2))
    optimizer = fusedopt.LBFGS([x])
    for closure in (None, 3.0):
        with pytest.raises(TypeError, match="takes a closure"):
            optimizer.step(closure)
    with pytest.raises(TypeError, match=r"^LBFGS: the closure must return the loss, got None.$"):
        optimizer.step(lambda: None)
    for scale in ({"grad_scale": 2.0}, {"found_inf": 0.0}):
        with pytest.raises(TypeError, match="no grad_scale"):
            optimizer.step(quadratic(x), **scale)
    assert optimizer.state == {}


LOADED = {
    "a short vector": ({"d": np.zeros(1)}, ValueError, r"d must be an array of shape \(2,\)"),
    "no array": ({"old_dirs": [None]}, ValueError, r"old_dirs\[0\] must be an array"),
    "pairs": ({"ro": []}, ValueError, "different lengths"),
    "unknown": ({"exp_avg": 1}, ValueError, "LBFGS keeps func_evals"),
    "half a step": ({"n_iter": 0.5}, ValueError, "n_iter must be a whole number"),
    "no scale": ({"H_diag": np.nan}, ValueError, r"LBFGS: H_diag must be in \(0, inf\), got nan"),
    "a negative scale": ({"H_diag": -1.0}, ValueError, "LBFGS: H_diag must be in"),
    "no length": ({"t": "abc"}, TypeError, "LBFGS: t must be a number, got 'abc'"),
    "no ro": ({"ro": None}, TypeError, "LBFGS: ro must be a list, got None"),
    "a ro": ({"ro": [np.nan]}, ValueError, r"LBFGS: ro\[0\] must be in"),
    "no al": ({"al": ["a"]}, TypeError, "LBFGS: al must be a number, got 'a'"),
    "no pairs": ({"old_stps": 3}, TypeError, "LBFGS: old_stps must be a list, got 3"),
    "no loss": ({"prev_loss": None}, TypeError, "LBFGS: prev_loss must be a number, got None"),
    "no count": ({"func_evals": None}, TypeError, "LBFGS: func_evals must be a number, got None"),
    "missing": ({"prev_loss": ...}, KeyError, "lacks 'prev_loss'"),
}


@pytest.mark.parametrize(("change", "error", "message"), LOADED.values(), ids=LOADED)
def test_a_wrong_state_dict_changes_nothing(change, error, message):
    x = fusedopt.Parameter(np.zeros(2))
    optimizer = fusedopt.LBFGS([x], max_iter=3)
    optimizer.step(quadratic(x))
    saved, before = optimizer.state_dict(), optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    for name, value in change.items():
        saved["state"][0][name] = value
        if value is ...:
            del saved["state"][0][name]
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 1
    assert str(optimizer.state_dict()) == str(before)


def test_a_closure_that_raises_in_a_search_leaves_the_parameters_where_they_were():
    x = fusedopt.Parameter(np.zeros(2))
    optimizer = fusedopt.LBFGS([x], line_search_fn="strong_wolfe")
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return quadratic(x)()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert (x.data == 0).all()


def test_a_rule_of_ones_own_may_have_whole_numbers_and_choices():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Own(Rule):
        every: int = hyperparameter(3, "[1, inf)", "how often", whole=True)

        def scalars(self, step, a):
            return Values(every=self.every)

        def update(self, p, g, s, c):
            return p - g / c.every, Values()

    assert type(Own(every=4.0).every) is int
    with pytest.raises(ValueError, match="every must be a whole number"):
        Own(every=0.5 + 1)
    optimizer = type("Mine", (fusedopt.Optimizer,), {}, rule=Own)
    parameter = fusedopt.Parameter(np.ones(2))
    mine = optimizer([parameter])
    parameter.grad = np.ones(2)
    mine.step()
    np.testing.assert_array_equal(parameter.data, 1 - np.ones(2) / 3)
