"""What MegEngine's users do, with arrays in place of tensors; its guide's examples as they are printed."""

import copy
import inspect
import pickle

import ml_dtypes
import numpy as np
import pytest

import fusedopt
import fusedopt.megengine as optim
from cases import CASES, GOLDEN_GRADIENTS, GOLDEN_PARAMETER
from fusedopt.megengine import Parameter


def linear(dtype="float32"):
    """`Linear(3, 2)`: MegEngine orders a module's parameters by name."""
    random = np.random.default_rng(0)
    weight = Parameter(random.standard_normal((2, 3)).astype(dtype), name="weight")
    return [Parameter(np.zeros(2, dtype), name="bias"), weight]


def gradients_of(parameters, seed=0):
    random = np.random.default_rng(seed)
    for parameter in parameters:
        parameter.grad = np.asarray(random.standard_normal(parameter.shape), parameter.dtype)


def trained(optimizer, steps, seed=0):
    for step in range(steps):
        gradients_of(optimizer_parameters(optimizer), [seed, step])
        optimizer.step().clear_grad()
    return [parameter.data.copy() for parameter in optimizer_parameters(optimizer)]


def optimizer_parameters(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def same(first, second):
    """Whether two structures of dicts, lists and arrays are equal, dtypes and order of keys included."""
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    return type(first) is type(second) and first == second


class Momentum(optim.Optimizer):
    """An optimizer of a user, in the two methods of MegEngine's."""

    def __init__(self, params, lr=optim.required, momentum=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _create_state(self, param_group):
        for param in param_group["params"]:
            self._add_state(param, "momentum_buffer")
            self._add_state(param, "step", 0.0)

    def _updates(self, param_group):
        lr, momentum = param_group["lr"], param_group["momentum"]
        for param in param_group["params"]:
            if param.grad is None:
                continue
            grad = param.grad + param.data * param_group["weight_decay"]
            states = self._state[param]
            states["step"] += 1.0
            buffer = states["momentum_buffer"]
            buffer *= momentum
            buffer += grad
            param.data -= lr * buffer


FUSED = {
    "SGD": lambda params, **options: optim.SGD(
        params, **{"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, **options}
    ),
    "Adam": lambda params, **options: optim.Adam(params, **{"lr": 0.01, "weight_decay": 0.1, **options}),
    "AdamW": lambda params, **options: optim.AdamW(params, **{"lr": 0.01, **options}),
    "Adagrad": lambda params, **options: optim.Adagrad(params, **{"lr_decay": 0.1, **options}),
    "Adadelta": optim.Adadelta,
    "LAMB": lambda params, **options: optim.LAMB(params, **{"lr": 0.01, "weight_decay": 0.1, **options}),
}
each_fused = pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
each = pytest.mark.parametrize("make", [*FUSED.values(), Momentum], ids=[*FUSED, "custom"])


def with_lr(make, params, **options):
    return make(params, **{"lr": 0.01, **options})


# --- the guide


def test_the_guides_training_loop():
    parameters = linear()
    optimizer = optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
    before = [p.data.copy() for p in parameters]
    for step in range(3):
        gradients_of(parameters, step)
        assert optimizer.step().clear_grad() is optimizer
        assert all(p.grad is None for p in parameters)
    assert all((p.data != b).any() for p, b in zip(parameters, before))


def test_the_guides_printed_state_dict_before_any_step():
    optimizer = optim.SGD(linear(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    zeros = np.zeros(2, np.float32), np.zeros((2, 3), np.float32)
    printed = {
        "param_groups": [{"lr": 0.001, "momentum": 0.9, "weight_decay": 0.0001, "params": [0, 1]}],
        "state": {0: {"momentum_buffer": zeros[0]}, 1: {"momentum_buffer": zeros[1]}},
    }
    assert same(optimizer.state_dict(), printed)
    text = repr(optimizer.state_dict()).replace("\n", "")
    assert text.startswith(
        "{'param_groups': [{'lr': 0.001, 'momentum': 0.9, 'weight_decay': 0.0001, 'params': [0, 1]}]"
    )
    assert "{0: {'momentum_buffer': array([0., 0.], dtype=float32)}" in text


def test_adams_printed_state_dict_has_a_step_of_no_dimensions():
    state = optim.Adam(linear(), lr=1e-3).state_dict()
    assert list(state["param_groups"][0]) == ["lr", "weight_decay", "betas", "eps", "params"]
    assert list(state["state"][0]) == ["exp_avg", "exp_avg_sq", "step"]
    assert same(state["state"][0]["step"], np.array(0, np.float32))


def test_sgd_without_a_learning_rate_is_an_error():
    with pytest.raises(TypeError, match="'lr'"):
        optim.SGD(linear())


def test_a_momentum_of_zero_keeps_no_state():
    assert optim.SGD(linear(), lr=0.1).state_dict()["state"] == {}


def test_accumulating_gradients_is_leaving_out_clear_grad():
    (parameter,) = parameters = [Parameter(np.zeros(2, np.float32))]
    optimizer = optim.SGD(parameters, lr=1.0)
    parameter.grad = np.ones(2, np.float32)
    parameter.grad += np.ones(2, np.float32)
    optimizer.step()
    assert parameter.data.tolist() == [-2, -2]


@each
def test_zero_grad_is_a_deprecated_name_that_zeroes_in_place(make):
    parameters = linear()
    optimizer = with_lr(make, parameters)
    gradients_of(parameters[:1])
    with pytest.warns(DeprecationWarning, match="use clear_grad") as warnings:
        optimizer.zero_grad()
    assert warnings[0].filename == __file__
    assert not parameters[0].grad.any()
    assert parameters[1].grad is None


# --- what may be given as params


@each
def test_a_parameter_or_a_dict_may_come_alone(make):
    for params in (Parameter(np.ones(2)), {"params": [Parameter(np.ones(2))]}, {"params": Parameter(np.ones(2))}):
        (group,) = with_lr(make, params).param_groups
        assert len(group["params"]) == 1


@each
@pytest.mark.parametrize(
    ("params", "error"),
    [
        (lambda: 3, TypeError),
        (list, ValueError),
        (lambda: [Parameter(np.ones(2)), {"params": [Parameter(np.ones(2))]}], TypeError),
        (lambda: [np.ones(2)], TypeError),
        (lambda: {"params": [np.ones(2)]}, TypeError),
        (lambda: {Parameter(np.ones(2))}, TypeError),
        (lambda: [{"params": [p := Parameter(np.ones(2))]}, {"params": [p]}], ValueError),
    ],
)
def test_what_is_no_params_is_refused(make, params, error):
    with pytest.raises(error):
        with_lr(make, params())


@each
def test_a_groups_own_options_win(make):
    first, second = linear()
    optimizer = make([{"params": [first], "lr": 0.5}, {"params": [second], "weight_decay": 0.25}], lr=0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.125]
    assert optimizer.param_groups[1]["weight_decay"] == 0.25


def test_the_callers_dicts_stay_as_they_are():
    groups = [{"params": linear()}]
    Momentum(groups, lr=0.1)
    assert set(groups[0]) == {"params"}


@each
def test_a_group_added_later_has_state_and_steps(make):
    first, second = linear()
    optimizer = make([first], lr=0.1)
    trained(optimizer, 1)
    optimizer.add_param_group({"params": second, "lr": 0.25})
    assert list(optimizer.state_dict()["state"]) == [0, 1]
    before = second.data.copy()
    trained(optimizer, 1)
    assert (second.data != before).all()
    with pytest.raises(TypeError):
        optimizer.add_param_group({"params": [np.ones(3)]})
    with pytest.raises(TypeError):
        optimizer.add_param_group([second])
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [first]})
    assert len(optimizer.param_groups) == 2


def test_what_holds_for_the_whole_optimizer_does_not_change_in_a_group():
    optimizer = optim.Adam(linear(), lr=0.1)
    for changed in (optimizer, copy.deepcopy(optimizer)):
        group = changed.param_groups[0]
        with pytest.raises(KeyError, match="'amsgrad' is no option of a group of Adam"):
            group["amsgrad"] = True
        group.update(dict(group), lr=0.2)  # what is there may be put back
        assert (group["lr"], group["amsgrad"]) == (0.2, False)


def test_what_holds_for_the_whole_optimizer_is_no_option_of_a_group():
    with pytest.raises(KeyError, match=r"group 0: 'nesterov' is no option .* lr, momentum, weight_decay; it holds"):
        optim.SGD([{"params": linear(), "nesterov": True}], lr=0.1, momentum=0.9)
    with pytest.raises(KeyError, match=r"group 0: 'dampening' is no option .* weight_decay; the optimizer has none"):
        optim.SGD([{"params": linear(), "dampening": 0.5}], lr=0.1, momentum=0.9)
    with pytest.raises(TypeError, match=r"^SGD has no option 'momentm'; did you mean 'momentum'\?$"):
        optim.SGD(linear(), lr=0.1, momentm=0.9)
    with pytest.raises(KeyError, match="did you mean 'momentum'"):
        optim.SGD([{"params": linear(), "momentun": 0.5}], lr=0.1)


@pytest.mark.parametrize(
    "options", [{"lr": -1}, {"momentum": -1}, {"weight_decay": -1}, {"nesterov": True, "momentum": 0}, {"lr": np.nan}]
)
def test_megengines_assertions_are_value_errors(options):
    with pytest.raises(ValueError):
        optim.SGD(linear(), **{"lr": 0.1, "momentum": 0.9, **options})


def test_constructors_have_megengines_arguments():
    assert str(inspect.signature(optim.SGD)).startswith(
        "(params: 'Any', lr: 'float', momentum: 'float' = 0.0, nesterov"
    )
    assert issubclass(optim.SGD, optim.Optimizer)


# --- results


def golden(optimizer, make, index=0, rtol=1e-11):
    (case,) = (case for case in CASES if case.optimizer is optimizer)
    row = case.golden[index]
    parameter = Parameter(GOLDEN_PARAMETER.copy())
    ours = make([parameter], **row.options)
    for gradient in GOLDEN_GRADIENTS[: row.steps]:
        parameter.grad = gradient
        ours.step()
    np.testing.assert_allclose(parameter.data, row.parameter, rtol=rtol)


def test_golden_vectors():
    golden(fusedopt.SGD, optim.SGD, 2)
    golden(fusedopt.SGD, optim.SGD, 4)
    golden(fusedopt.SGD, Momentum, 2, rtol=1e-7)  # its buffer is float32, as MegEngine's states are
    golden(fusedopt.Adam, optim.Adam, 2)
    golden(fusedopt.AdamW, optim.AdamW)


def test_golden_vector_of_adadelta():
    parameter = Parameter(GOLDEN_PARAMETER.copy())
    optimizer = optim.Adadelta([parameter])
    for gradient in GOLDEN_GRADIENTS:
        parameter.grad = gradient
        optimizer.step()
    expected = (0.994618037428, -2.00087837218, 0.498141400188, 0.246837738151)
    np.testing.assert_allclose(parameter.data, expected, rtol=1e-11)


def test_golden_vector_of_adagrad_with_eps_under_the_root():
    parameter = Parameter(GOLDEN_PARAMETER.copy())
    optimizer = optim.Adagrad([parameter], lr=0.1, lr_decay=0.1)
    for gradient in GOLDEN_GRADIENTS:
        parameter.grad = gradient
        optimizer.step()
    expected = (0.86791648507, -1.98131156292, 0.403758947158, 0.166666666671)
    np.testing.assert_allclose(parameter.data, expected, rtol=1e-11)
    saved = optimizer.state_dict()
    assert list(saved["param_groups"][0]) == ["lr", "lr_decay", "eps", "weight_decay", "params"]
    assert list(saved["state"][0]) == ["square_avg", "step"]


@pytest.mark.parametrize(
    ("options", "ratio"), [({"weight_decay": 0.1}, True), ({}, False), ({"always_adapt": True}, True)]
)
@pytest.mark.parametrize("correct", [True, False])
def test_lamb_scales_where_there_is_decay_or_always(options, ratio, correct):
    p, m, v = GOLDEN_PARAMETER / 8, 0.0, 0.0  # all below 1: MegEngine's CPU kernel takes such norms for 0
    decay = options.get("weight_decay", 0.0)
    for step, g in enumerate(GOLDEN_GRADIENTS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        first, second = (1 - 0.9**step, 1 - 0.999**step) if correct else (1, 1)
        u = m / first / (np.sqrt(v / second) + 1e-8) + decay * p
        p = p - 0.01 * (np.linalg.norm(p) / np.linalg.norm(u) if ratio else 1) * u
    parameter = Parameter(GOLDEN_PARAMETER / 8)
    optimizer = optim.LAMB([parameter], 0.01, bias_correction=correct, **options)
    for gradient in GOLDEN_GRADIENTS:
        parameter.grad = gradient
        optimizer.step()
    np.testing.assert_allclose(parameter.data, p, rtol=1e-12)
    assert list(optimizer.state_dict()["param_groups"][0]) == ["lr", "weight_decay", "betas", "eps", "params"]


@each_fused
def test_a_parameter_without_gradient_is_left_alone(make):
    parameters = linear()
    optimizer = make(parameters)
    before = parameters[1].data.copy()
    gradients_of(parameters[:1])
    optimizer.step()
    assert np.array_equal(parameters[1].data, before)
    assert not any(np.any(value) for value in optimizer.state_dict()["state"][1].values())


@each
def test_it_is_the_same_on_every_device(make, device):
    results = []
    for array, host in ((np.array, np.array), (device.array, device.host)):
        parameters = [Parameter(array(p.data)) for p in linear()]
        optimizer = with_lr(make, parameters)
        for step in range(2):
            random = np.random.default_rng(step)
            for parameter in parameters:
                parameter.grad = array(random.standard_normal(parameter.shape).astype(np.float32))
            optim.clip_grad_norm(parameters, 1.0)
            optim.clip_grad_value(parameters, -0.5, 0.5)
            optimizer.step().clear_grad()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        assert same(optimizer.state_dict(), saved)
        results.append([host(p.data) for p in parameters] + [v for e in saved["state"].values() for v in e.values()])
    assert all(map(np.array_equal, *results))


# --- state dicts


@each
def test_a_loaded_run_is_the_same_run(make):
    optimizer, resumed = with_lr(make, linear()), with_lr(make, linear())
    trained(optimizer, 3)
    for own, other in zip(optimizer_parameters(optimizer), optimizer_parameters(resumed)):
        other.data[...] = own.data
    resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    assert same(resumed.state_dict(), optimizer.state_dict())
    assert all(map(np.array_equal, trained(optimizer, 2, 1), trained(resumed, 2, 1)))


@each
def test_a_state_dict_is_a_copy_and_its_own_variables_are_not(make):
    optimizer = with_lr(make, linear())
    saved, live = optimizer.state_dict(), optimizer.state_dict(keep_var=True)
    names = [name for name in saved["state"][1] if name != "step"]
    trained(optimizer, 1)
    assert not any(saved["state"][1][name].any() for name in names)
    assert all(live["state"][1][name].any() for name in names)
    assert live["state"][1].get("step", 1) == 1


@each
@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16], ids=str)
def test_states_of_half_parameters_are_float32(make, dtype):
    """As in MegEngine; its state dicts have no option of it, and its own load."""
    optimizer, resumed = (with_lr(make, linear(dtype)) for _ in range(2))
    for _ in range(3):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = np.full(parameter.shape, 3e-5, dtype)  # 9e-10 squared: below all of float16
        optimizer.step()
    saved, live = optimizer.state_dict(), optimizer.state_dict(keep_var=True)
    for entries in (saved["state"], live["state"]):
        kept = [value for entry in entries.values() for name, value in entry.items() if name != "step"]
        assert {value.dtype.name for value in kept} == {"float32"}
        assert all(value.all() for value in kept)
    assert "state_dtype" not in saved["param_groups"][0]
    resumed.load_state_dict(saved)
    assert same(resumed.state_dict(), saved)
    again = copy.deepcopy(resumed)
    assert same(again.state_dict(), saved)


def test_there_are_no_options_of_how_arrays_are_kept():
    with pytest.raises(KeyError, match=r"'master_weights' is no option of a group of Adam, .* the optimizer has none"):
        optim.Adam([{"params": linear(ml_dtypes.bfloat16), "master_weights": "split"}], lr=0.01)


def test_a_parameter_that_is_not_trained_is_in_the_state_dict():
    parameters = linear()
    parameters[0].requires_grad = False
    optimizer = optim.Adam(parameters, lr=0.01)
    assert list(optimizer.state_dict()["state"]) == [0, 1]
    assert same(optimizer.state_dict(keep_var=True)["state"][0]["step"], np.array(0, np.float32))
    resumed = optim.Adam(linear(), lr=0.01)
    resumed.load_state_dict(optimizer.state_dict())


@each
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda s: s["param_groups"].append(s["param_groups"][0]),
            ValueError,
            "has 2 param groups and the optimizer 1",
        ),
        (lambda s: s["param_groups"][0]["params"].pop(), ValueError, "has 1 parameters and the optimizer's has 2"),
        (lambda s: s["param_groups"][0].update(maximize=False), ValueError, "has maximize beyond"),
        (lambda s: s["param_groups"][0].pop("lr"), ValueError, "it lacks lr"),
        (lambda s: s["param_groups"][0].update(initial_lr=0.1), ValueError, "make the scheduler before you load"),
        (lambda s: s["state"][1].update(more=0), ValueError, "parameter 1 has 'more' beyond"),
        (lambda s: s["state"].update({2: {}}), ValueError, "states of 3 parameters and the optimizer of 2"),
        (lambda s: s["state"].pop(1), KeyError, "parameter 1 lacks .* it has nothing"),
        (lambda s: s["state"][1].popitem(), KeyError, "parameter 1 lacks"),
        (lambda s: s["state"][1].update({next(iter(s["state"][1])): np.zeros(5)}), ValueError, r"shape \(5,\)"),
        (lambda s: s.pop("state"), TypeError, "with 'param_groups' and 'state'; got 'param_groups'"),
    ],
)
def test_a_state_dict_of_another_optimizer_changes_nothing(make, change, error, message):
    optimizer = with_lr(make, linear())
    trained(optimizer, 1)
    before, wrong = optimizer.state_dict(), optimizer.state_dict()
    change(wrong)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(wrong)
    assert same(optimizer.state_dict(), before)


@each_fused
def test_copies_go_on_as_the_original(make):
    optimizer = make(linear(), **({"nesterov": True} if make is FUSED["SGD"] else {}))
    trained(optimizer, 2)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert same(copied.state_dict(), optimizer.state_dict())
        original = copy.deepcopy(optimizer)
        assert all(map(np.array_equal, trained(copied, 2), trained(original, 2)))


# --- schedulers


@each
def test_multi_step_lr_multiplies_at_its_milestones(make):
    optimizer = make([{"params": [p], **lr} for p, lr in zip(linear(), ({}, {"lr": 0.5}))], lr=1.0)
    scheduler = optim.MultiStepLR(optimizer, [2, 3, 5], gamma=0.5)
    seen = []
    for _ in range(6):
        seen.append([group["lr"] for group in optimizer.param_groups])
        trained(optimizer, 1)
        scheduler.step()
    assert seen == [[lr, lr / 2] for lr in (1.0, 1.0, 0.5, 0.25, 0.25, 0.125)]
    assert scheduler.state_dict() == {"milestones": [2, 3, 5], "gamma": 0.5, "current_epoch": 6}
    scheduler.step(2)
    assert optimizer.param_groups[0]["lr"] == 0.5


@each
def test_a_run_with_a_scheduler_is_resumed(make):
    optimizer = make(linear(), lr=1.0)
    scheduler = optim.MultiStepLR(optimizer, (2, 4))
    for _ in range(3):
        scheduler.step()
    assert optimizer.state_dict()["param_groups"][0]["initial_lr"] == 1.0
    resumed = make(linear(), lr=1.0)
    again = optim.MultiStepLR(resumed, (2, 4))
    resumed.load_state_dict(optimizer.state_dict())
    again.load_state_dict(scheduler.state_dict())
    assert resumed.param_groups[0]["lr"] == 0.1
    for one in (scheduler, again):
        one.step()
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 1.0 * 0.1**2


@each
def test_going_on_at_an_epoch_needs_the_initial_learning_rate(make):
    with pytest.raises(KeyError, match="group 0 has no 'initial_lr'"):
        optim.MultiStepLR(make(linear(), lr=0.1), [2], current_epoch=3)
    optimizer = make([{"params": linear(), "initial_lr": 1.0}], lr=0.1)
    optim.MultiStepLR(optimizer, [2], current_epoch=3)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_what_a_scheduler_refuses():
    optimizer = optim.SGD(linear(), lr=0.1)
    with pytest.raises(ValueError, match=r"increasing order, got \[3, 2\]"):
        optim.MultiStepLR(optimizer, [3, 2])
    with pytest.raises(TypeError, match="got dict"):
        optim.MultiStepLR({}, [3])
    scheduler = optim.MultiStepLR(optimizer, [3])
    with pytest.raises(KeyError, match="lacks 'gamma'"):
        scheduler.load_state_dict({"milestones": [1], "current_epoch": 0})
    assert scheduler.milestones == [3]


def test_a_scheduler_of_ones_own():
    class Halves(optim.LRScheduler):
        def get_lr(self):
            return [base / 2**self.current_epoch for base in self.base_lrs]

        def state_dict(self):
            return {"current_epoch": self.current_epoch}

        def load_state_dict(self, state_dict):
            self.current_epoch = state_dict["current_epoch"]

    optimizer = optim.Adam(linear(), lr=1.0)
    Halves(optimizer).step()
    assert optimizer.param_groups[0]["lr"] == 0.5


# --- an optimizer of one's own


def test_a_required_option_has_to_be_given():
    with pytest.raises(ValueError, match="group 1 has no lr, which is required"):
        Momentum([{"params": p, **lr} for p, lr in zip(linear(), ({"lr": 0.1}, {}))])
    parameters = linear()
    with pytest.raises(ValueError):
        Momentum(parameters)
    optimizer = Momentum(parameters, lr=0.1)  # nothing has taken them
    for make in (Momentum, optim.SGD):
        with pytest.raises(ValueError, match=r"optimizer already|another optimizer"):
            make(parameters, lr=0.1)
    del optimizer
    assert repr(optim.required) == "<required parameter>"


def test_it_goes_as_the_kernel_does():
    ours, theirs = optim.SGD(linear(), lr=0.01, momentum=0.9, weight_decay=0.5), Momentum(linear(), 0.01, 0.9, 0.5)
    for fused, written in zip(trained(ours, 5), trained(theirs, 5)):
        np.testing.assert_allclose(fused, written, rtol=1e-5, atol=1e-6)


def test_a_group_whose_states_cannot_be_made_is_not_added():
    class Fails(Momentum):
        def _create_state(self, param_group):
            super()._create_state(param_group)
            if param_group["momentum"] == 0:
                raise ZeroDivisionError

    first, second = linear()
    optimizer = Fails([first], lr=0.1, momentum=0.9)
    before = optimizer.state_dict()
    with pytest.raises(ZeroDivisionError):
        optimizer.add_param_group({"params": [second], "momentum": 0})
    assert same(optimizer.state_dict(), before)
    optimizer.add_param_group({"params": [second]})  # nothing has taken it
    assert second.owner is optimizer


def test_its_states_are_loaded_with_their_dtypes():
    optimizer = Momentum(linear(), lr=0.1)
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = np.array(3, np.float64)
    optimizer.load_state_dict(saved)
    assert same(optimizer.state_dict()["state"][0]["step"], np.array(3, np.float64))


def test_a_state_has_a_name_of_its_own_and_any_value():
    optimizer = Momentum(linear("float64"), lr=0.1)
    (parameter, _) = optimizer_parameters(optimizer)
    with pytest.raises(ValueError, match="has a state 'step' already"):
        optimizer._add_state(parameter, "step")
    optimizer._add_state(parameter, "largest", np.array([1.0, 2.0]))
    assert same(optimizer._state[parameter]["largest"], np.array([1, 2], np.float32))


def test_gradients_are_clipped_between_backward_and_step():
    parameters = linear()
    optimizer = optim.SGD(parameters, lr=1.0)
    gradients_of(parameters)
    assert optim.clip_grad_norm(parameters, max_norm=1.0, ord=2.0) > 1
    assert optim.clip_grad_norm(parameters, max_norm=1.0) == pytest.approx(1, abs=1e-5)
    optim.clip_grad_value(parameters, lower=-0.1, upper=0.1)
    assert max(np.abs(p.grad).max() for p in parameters) == np.float32(0.1)
    optimizer.step()
