"""What every optimizer does, whatever its rule: groups, options, gradients that come and go, copies, launches."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import fusedopt
from cases import each_case, ordinary
from fusedopt import SGD, Adam, AdamW, Optimizer, Parameter
from fusedopt.arena import ArenaSpan, spans_of
from test_state_dict import bits


def make(device: Any, *shapes: Any, dtype: str = "float32", names: str = "") -> list[Parameter]:
    """Parameters of ones."""
    arrays = [device.array(np.ones(shape, dtype)) for shape in shapes]
    return [Parameter(array, name) for array, name in zip(arrays, names or [None] * len(arrays), strict=True)]


def give_gradients(device: Any, parameters: list[Parameter], seed: int = 0) -> None:
    for number, parameter in enumerate(parameters):
        values = ordinary(parameter.size, parameter.dtype.name, 100 * seed + number)
        parameter.grad = device.array(values.reshape(parameter.shape))


def spans(optimizer: Optimizer) -> list[ArenaSpan]:
    """The spans of the last step."""
    return [
        span for arena in optimizer.arenas() for span in spans_of(arena, np.frombuffer(arena.presence.stepping, bool))
    ]


# --- construction


FORMS: dict[str, Callable[[Parameter, Parameter], Any]] = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "generator": lambda a, b: (p for p in (a, b)),
    "values of a dict": lambda a, b: {"a": a, "b": b}.values(),
    "one dict": lambda a, b: {"params": [a, b]},
    "one dict with a generator": lambda a, b: {"params": (p for p in (a, b))},
    "list of dicts": lambda a, b: [{"params": a}, {"params": [b]}],
    "generator of dicts": lambda a, b: ({"params": p} for p in (a, b)),
    "pairs": lambda a, b: [("a", a), ("b", b)],
    "items of a dict": lambda a, b: {"a": a, "b": b}.items(),
    "dict of pairs": lambda a, b: {"params": [("a", a), ("b", b)]},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_params_in_every_form_are_the_same_parameters_in_the_same_order(device, form):
    parameters = make(device, 2, 3)
    optimizer = SGD(form(*parameters), lr=0.5)
    assert list(optimizer.parameters()) == parameters
    assert all(parameter.owner is optimizer for parameter in parameters)
    give_gradients(device, parameters)
    optimizer.step()
    for parameter in parameters:
        expected = np.ones(parameter.shape, np.float32) - np.float32(0.5) * device.host(parameter.grad)
        np.testing.assert_array_equal(device.host(parameter.data), expected)


def test_one_parameter_may_be_given_bare(device):
    (parameter,) = make(device, 2)
    optimizer = SGD(parameter)
    assert list(optimizer.parameters()) == [parameter]
    assert list(SGD({"params": make(device, 2)[0]}).parameters()) != [parameter]


def test_names_in_pairs_become_the_parameters_names(device):
    first, second = make(device, 2, 3, names=["mine", None])
    optimizer = SGD([("a", first), ("b", second)])
    assert (first.name, second.name) == ("mine", "b")
    assert optimizer.param_groups[0]["param_names"] == ["a", "b"]


def test_a_group_of_no_parameters_is_accepted(device):
    (parameter,) = make(device, 2)
    optimizer = SGD([{"params": []}, {"params": [parameter]}], lr=1.0)
    parameter.grad = device.array(np.ones(2, np.float32))
    optimizer.step()
    np.testing.assert_array_equal(device.host(parameter.data), np.zeros(2, np.float32))


def test_only_groups_of_no_parameters_do_nothing():
    optimizer = SGD([{"params": []}])
    assert optimizer.step() is optimizer
    optimizer.load_state_dict(optimizer.state_dict())


@each_case
def test_defaults_are_torchs(case):
    parameter = Parameter(np.ones(1))
    defaults = case.optimizer([parameter]).defaults
    implementation = {"foreach", "capturable", "differentiable", "fused"}
    expected = {k: v for k, v in case.reference([torch.zeros(1)]).defaults.items() if k not in implementation}
    assert {key: defaults[key] for key in expected} == expected
    assert case.optimizer([Parameter(np.ones(1))], lr=0.5).defaults == {**defaults, "lr": 0.5}


def test_options_may_be_positional(device):
    optimizer = Adam(make(device, 1), 0.5, (0.1, 0.2), 0.25)
    assert [optimizer.defaults[name] for name in ("lr", "betas", "eps")] == [0.5, (0.1, 0.2), 0.25]


def test_a_groups_own_option_wins_and_the_outer_fills_the_gaps(device):
    first, second = make(device, 2, 3)
    optimizer = SGD([{"params": first}, {"params": second, "lr": 0.001}], lr=0.01, momentum=0.9)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.001]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]
    assert optimizer.defaults["lr"] == 0.01
    give_gradients(device, [first, second])
    optimizer.step()
    for parameter, lr in ((first, 0.01), (second, 0.001)):
        expected = np.float32(1) - np.float32(lr) * device.host(parameter.grad)
        np.testing.assert_array_equal(device.host(parameter.data), expected)


def test_the_callers_dicts_are_not_changed(device):
    first, second = make(device, 2, 3)
    entry = {"params": [("a", first)], "lr": 0.5}
    optimizer = SGD([entry])
    optimizer.add_param_group(another := {"params": second})
    optimizer.param_groups[0]["lr"] = 0.25
    assert entry == {"params": [("a", first)], "lr": 0.5}
    assert another == {"params": second}


def test_whole_numbers_and_scalars_are_hyperparameters(device):
    optimizer = Adam(make(device, 1), lr=1, betas=(0, np.float32(0.5)), eps=np.array(0.25))
    assert [optimizer.defaults[name] for name in ("lr", "betas", "eps")] == [1.0, (0.0, 0.5), 0.25]
    assert type(optimizer.param_groups[0]["lr"]) is float


def test_it_prints_its_groups(device):
    text = repr(SGD([{"params": make(device, 1, 2)}, {"params": make(device, 1), "lr": 0.5}]))
    assert text.startswith("SGD (")
    assert "Parameter Group 1: 1 parameters\n    lr: 0.5" in text


# --- groups added later


def test_a_group_added_in_training_starts_at_its_first_step(device):
    first, second = make(device, 2, 3)
    optimizer = Adam([first], lr=0.1)
    for seed in range(3):
        give_gradients(device, [first], seed)
        optimizer.step()
    data = first.data
    optimizer.add_param_group({"params": second, "lr": 0.01, "amsgrad": True})
    assert np.shares_memory(first.data, data) if device.name != "cuda" else first.data.data.ptr == data.data.ptr
    assert optimizer.state[second] == {}
    give_gradients(device, [first, second], 3)
    optimizer.step()
    assert float(optimizer.state[first]["step"]) == 4
    assert float(optimizer.state[second]["step"]) == 1
    assert list(optimizer.state[second]) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.999)


def test_a_changed_default_is_for_groups_added_later(device):
    optimizer = SGD(make(device, 2), lr=0.5)
    optimizer.defaults["lr"] = 0.25
    optimizer.add_param_group({"params": make(device, 2)})
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]


# --- gradients


def test_clear_grad_and_zero_grad_drop_gradients(device):
    parameters = make(device, 2, 3)
    optimizer = SGD(parameters)
    for clear in (optimizer.clear_grad, optimizer.zero_grad):
        give_gradients(device, parameters)
        clear()
        assert [parameter.grad for parameter in parameters] == [None, None]


def test_zero_grad_to_zeros_fills_only_what_is_there(device):
    first, second = make(device, 2, 3)
    optimizer = SGD([first, second], lr=1.0, weight_decay=0.5)
    give_gradients(device, [first])
    optimizer.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(device.host(first.grad), np.zeros(2, np.float32))
    assert second.grad is None
    optimizer.step()  # a gradient of zero still decays; no gradient does not
    np.testing.assert_array_equal(device.host(first.data), np.full(2, 0.5, np.float32))
    np.testing.assert_array_equal(device.host(second.data), np.ones(3, np.float32))


def test_gradients_accumulate_until_they_are_cleared(device):
    (parameter,) = make(device, 2)
    optimizer = SGD(parameter, lr=1.0)
    parameter.grad = device.array(np.ones(2, np.float32))
    parameter.grad += device.array(np.ones(2, np.float32))
    optimizer.step()
    optimizer.step().clear_grad().step()
    np.testing.assert_array_equal(device.host(parameter.data), np.full(2, -3, np.float32))


# --- step


def test_step_returns_the_optimizer_and_clear_grad_too(device):
    (parameter,) = make(device, 2)
    optimizer = SGD(parameter)
    assert optimizer.step() is optimizer
    assert optimizer.step().clear_grad() is optimizer


def test_step_with_a_closure_calls_it_once_before_the_update_and_returns_its_value(device):
    (parameter,) = make(device, 2)
    optimizer = SGD(parameter, lr=1.0)
    seen = []

    def closure() -> str:
        seen.append(device.host(parameter.data))
        parameter.grad = device.array(np.ones(2, np.float32))
        return "loss"

    assert optimizer.step(closure) == "loss"
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], np.ones(2, np.float32))
    np.testing.assert_array_equal(device.host(parameter.data), np.zeros(2, np.float32))
    assert optimizer.step(lambda: None) is None


@pytest.mark.parametrize("on_device", [False, True])
def test_a_step_sees_what_its_closure_writes_into_scale_and_flag(device, on_device):
    (parameter,) = make(device, 2)
    optimizer = SGD(parameter, lr=1.0)
    scale, flag = ((device.array if on_device else np.array)(np.ones(1, np.float32)) for _ in range(2))

    def closure(divided_by: float, found: float) -> None:
        parameter.grad = device.array(np.full(2, 4, np.float32))
        scale[...], flag[...] = divided_by, found

    for divided_by, found, expected in ((4, 0, 0), (2, 0, -2), (2, 1, -2), (1, 0, -6)):
        optimizer.step(partial(closure, divided_by, found), grad_scale=scale, found_inf=flag)
        np.testing.assert_array_equal(device.host(parameter.data), np.full(2, expected, np.float32))


@each_case
def test_a_parameter_without_gradient_is_left_alone(device, case):
    first, second, frozen = make(device, 5, 6, 7)
    optimizer = case.optimizer([first, second, frozen], **case.main)
    give_gradients(device, [first, frozen])
    frozen.requires_grad = False
    optimizer.step()
    if case.rule.eager_state:
        assert [float(entry["step"]) for entry in optimizer.state.values()] == [1, 0, 0]
    else:
        assert list(optimizer.state) == [first]
        assert optimizer.state[second] == optimizer.state[frozen] == {}
    for parameter in (second, frozen):
        np.testing.assert_array_equal(device.host(parameter.data), np.ones(parameter.shape, np.float32))
    assert (device.host(first.data) != 1).all()


def test_requires_grad_is_noticed_when_it_changes(device):
    (parameter,) = make(device, 2)
    parameter.requires_grad = False
    optimizer = SGD(parameter, lr=1.0)
    parameter.grad = device.array(np.ones(2, np.float32))
    for requires_grad, expected in ((False, 1), (True, 0), (False, 0), (True, -1)):
        parameter.requires_grad = requires_grad
        optimizer.step()
        np.testing.assert_array_equal(device.host(parameter.data), np.full(2, expected, np.float32))


def test_a_parameter_without_gradient_keeps_its_step(device):
    first, second = make(device, 2, 3)
    optimizer = Adam([first, second])
    for stepping in ([first, second], [first], [second], [first]):
        give_gradients(device, stepping)
        optimizer.step().clear_grad()
    assert [float(optimizer.state[p]["step"]) for p in (first, second)] == [3, 2]


def test_a_step_that_is_skipped_for_an_infinity_counts_nothing(device):
    parameters = make(device, 2, 3)
    optimizer = Adam(parameters)
    give_gradients(device, parameters)
    optimizer.step()
    before = bits(optimizer.state_dict()), [device.host(p.data).tobytes() for p in parameters]
    flag = device.array(np.array(2, np.float32))  # summed over two devices: what counts is that it is not zero
    optimizer.step(found_inf=flag)
    assert (bits(optimizer.state_dict()), [device.host(p.data).tobytes() for p in parameters]) == before
    flag[...] = 0
    optimizer.step(found_inf=flag)
    assert float(optimizer.state[parameters[0]]["step"]) == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("as_array", [False, True])
def test_gradients_are_divided_by_grad_scale(device, dtype, as_array):
    (parameter,) = make(device, 100, dtype=dtype)
    gradient = ordinary(100, dtype, 1)  # the product with 1 / 0.1 differs in some of a hundred
    parameter.grad = device.array(gradient)
    scale = device.array(np.array(0.1, np.float32)) if as_array else 0.1
    SGD(parameter, lr=1.0).step(grad_scale=scale)
    # One float32 on every backend, so that all give the same bits.
    expected = np.ones(100, dtype) - gradient / np.array(np.float32(0.1)).astype(dtype)
    assert bits(device.host(parameter.data)) == bits(expected)
    assert bits(device.host(parameter.grad)) == bits(gradient)


def test_empty_and_zero_dimensional_parameters_step(device):
    shapes = [(0,), (), (3, 0), (2,), (0,)]
    parameters = make(device, *shapes)
    optimizer = Adam(parameters, lr=0.5)
    give_gradients(device, parameters)
    optimizer.step().step()
    assert [parameter.data.shape for parameter in parameters] == shapes
    assert [float(optimizer.state[parameter]["step"]) for parameter in parameters] == [2] * 5
    assert float(parameters[1].data) != 1
    (alone,) = make(device, (0,))
    optimizer = Adam(alone)
    alone.grad = device.array(np.ones(0, np.float32))
    optimizer.step()
    assert float(optimizer.state[alone]["step"]) == 1


def test_state_is_live_views(device):
    parameters = make(device, 2, 3)
    optimizer = Adam(parameters)
    give_gradients(device, parameters)
    optimizer.step()
    entry = optimizer.state[parameters[1]]
    assert list(entry) == ["step", "exp_avg", "exp_avg_sq"]
    assert (len(optimizer.state), list(optimizer.state)) == (2, parameters)
    optimizer.step()
    assert float(entry["step"]) == 2
    entry["exp_avg"][...] = 0
    entry["exp_avg_sq"][...] = 0
    parameters[1].grad = device.array(np.zeros(3, np.float32))
    before = device.host(parameters[1].data)
    optimizer.step()
    np.testing.assert_array_equal(device.host(parameters[1].data), before)


def test_state_holds_a_parameter_from_its_first_step_on(device):
    first, second, foreign = make(device, 2, 3, 4)
    optimizer = SGD([first, second])  # without momentum: a step is not told by its arrays
    for stepping in ([], [second], [first, second]):
        give_gradients(device, stepping)
        optimizer.step().clear_grad()
        state = optimizer.state
        assert [parameter in state for parameter in (first, second)] == [p in stepping for p in (first, second)]
        assert (list(state), len(state)) == (stepping, len(stepping))
        assert foreign not in state
    with pytest.raises(KeyError):
        state[foreign]


# --- hyperparameters that change


def to_torch(device: Any, array: Any) -> torch.Tensor:
    return torch.from_numpy(device.host(array))


CHANGES: dict[str, tuple[type[Optimizer], dict[str, Any], list[dict[str, Any]]]] = {
    "lr": (SGD, {"lr": 0.1}, [{"lr": 0.5}, {"lr": 0.0}, {"lr": 0.1}]),
    "weight decay": (SGD, {"lr": 0.1}, [{"weight_decay": 0.5}, {"weight_decay": 0.0}, {"weight_decay": 0.1}]),
    "momentum": (SGD, {"lr": 0.1}, [{"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.5}]),
    "dampening": (SGD, {"lr": 0.1, "momentum": 0.9}, [{"dampening": 0.5}, {"dampening": 0.0}]),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9}, [{"nesterov": True}, {"nesterov": False}, {"nesterov": True}]),
    "maximize": (AdamW, {"lr": 0.1}, [{"maximize": True}, {"maximize": False}]),
    "betas": (Adam, {"lr": 0.1}, [{"betas": (0.5, 0.5)}, {"betas": (0.0, 0.0)}, {"betas": (0.9, 0.99)}]),
    "eps": (Adam, {"lr": 0.1}, [{"eps": 1.0}, {"eps": 1e-8}]),
    "amsgrad": (Adam, {"lr": 0.1, "amsgrad": True}, [{"amsgrad": False}, {"amsgrad": True}]),
    "decoupled": (Adam, {"lr": 0.1, "weight_decay": 0.5}, [{"decoupled_weight_decay": True}, {"eps": 0.1}]),
}


@pytest.mark.parametrize(("kind", "options", "changes"), CHANGES.values(), ids=CHANGES)
def test_a_changed_hyperparameter_takes_effect_at_the_next_step_as_in_torch(device, kind, options, changes):
    parameters = make(device, 3, 4, dtype="float64")
    theirs = [to_torch(device, parameter.data) for parameter in parameters]
    optimizer = kind([{"params": parameters[:1]}, {"params": parameters[1:]}], **options)
    reference = getattr(torch.optim, kind.__name__)([{"params": theirs[:1]}, {"params": theirs[1:]}], **options)
    for number, change in enumerate([{}, *changes]):
        optimizer.param_groups[1].update(change)
        reference.param_groups[1].update(change)
        for seed in range(2):
            give_gradients(device, parameters, 2 * number + seed)
            for parameter, tensor in zip(parameters, theirs, strict=True):
                tensor.grad = to_torch(device, parameter.grad)
            optimizer.step()
            reference.step()
            for parameter, tensor in zip(parameters, theirs, strict=True):
                np.testing.assert_allclose(device.host(parameter.data), tensor.numpy(), rtol=1e-12, atol=1e-12)


def test_amsgrad_turned_on_later_starts_from_zeros(device):
    (parameter,) = make(device, 3)
    optimizer = Adam(parameter)
    give_gradients(device, [parameter])
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step()  # torch: KeyError
    state = {name: device.host(array) for name, array in optimizer.state[parameter].items()}
    assert bits(state["max_exp_avg_sq"]) == bits(state["exp_avg_sq"])


@pytest.mark.parametrize("change", ["update", "|=", "setdefault", "item"])
def test_a_group_is_changed_as_dicts_are(device, change):
    optimizer = SGD(make(device, 1), lr=0.5)
    (group,) = optimizer.param_groups
    if change == "update":
        group.update({"lr": 0.25}, momentum=0.5)
    elif change == "|=":
        group |= {"lr": 0.25}
    elif change == "setdefault":
        assert group.setdefault("lr", 0.75) == 0.5
        group.update([("lr", 0.25)])
    else:
        group["lr"] = 0.25
    assert optimizer.param_groups[0]["lr"] == 0.25
    (parameter,) = optimizer.parameters()
    parameter.grad = device.array(np.ones(1, np.float32))
    optimizer.step()
    assert float(parameter.data[0]) == 0.75


def test_options_that_fit_together_only_may_be_changed_together(device):
    optimizer = SGD(make(device, 1), momentum=0.5, nesterov=True)
    optimizer.param_groups[0].update(momentum=0.0, nesterov=False)
    assert optimizer.param_groups[0]["momentum"] == 0


# --- gradients, flags and groups that come and go, against torch


class Training(RuleBasedStateMachine):
    """One of our optimizers and torch's of the same name, in float64, through whatever a program does to them."""

    device: Any
    kind: type[Optimizer]
    options: dict[str, Any]
    flag: tuple[str, Any, Any]  # one option, on and off: each combination of flags is a kernel to compile

    @initialize(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4))
    def build(self, sizes: list[int]) -> None:
        self.parameters = make(self.device, *sizes, dtype="float64")
        self.theirs = [to_torch(self.device, parameter.data) for parameter in self.parameters]
        self.optimizer = self.kind(self.parameters, **self.options)
        self.reference = getattr(torch.optim, self.kind.__name__)(self.theirs, **self.options)
        self.seed = 0

    def chosen(self, which: int) -> int:
        return which % len(self.parameters)

    @rule(which=st.sets(st.integers(0, 7)))
    def gradients_come(self, which: set[int]) -> None:
        self.seed += 1
        for number in {self.chosen(number) for number in which}:
            values = ordinary(self.parameters[number].size, "float64", 100 * self.seed + number)
            self.parameters[number].grad = self.device.array(values)
            self.theirs[number].grad = torch.from_numpy(values)

    @rule(which=st.integers(0, 7))
    def a_gradient_goes(self, which: int) -> None:
        number = self.chosen(which)
        self.parameters[number].grad = self.theirs[number].grad = None

    @rule(set_to_none=st.booleans())
    def gradients_are_cleared(self, set_to_none: bool) -> None:
        self.optimizer.zero_grad(set_to_none)
        self.reference.zero_grad(set_to_none)

    @rule(which=st.integers(0, 7), value=st.booleans())
    def a_parameter_is_frozen_or_thawed(self, which: int, value: bool) -> None:
        self.parameters[self.chosen(which)].requires_grad = value

    @rule(which=st.integers(0, 1), lr=st.sampled_from([0.1, 0.01, 0.0]))
    def lr_changes(self, which: int, lr: float) -> None:
        which %= len(self.optimizer.param_groups)
        self.optimizer.param_groups[which]["lr"] = self.reference.param_groups[which]["lr"] = lr

    @rule(which=st.integers(0, 1), on=st.booleans())
    def a_flag_changes(self, which: int, on: bool) -> None:
        which %= len(self.optimizer.param_groups)
        name, value_on, value_off = self.flag
        self.optimizer.param_groups[which][name] = value_on if on else value_off
        self.reference.param_groups[which][name] = value_on if on else value_off

    @precondition(lambda self: len(self.optimizer.param_groups) == 1)
    @rule(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3))
    def a_group_comes(self, sizes: list[int]) -> None:
        parameters = make(self.device, *sizes, dtype="float64")
        theirs = [to_torch(self.device, parameter.data) for parameter in parameters]
        self.optimizer.add_param_group({"params": parameters})
        self.reference.add_param_group({"params": theirs})
        self.parameters += parameters
        self.theirs += theirs

    @rule()
    def the_run_is_resumed(self) -> None:
        self.parameters, self.optimizer = copy.deepcopy((self.parameters, self.optimizer))

    @rule()
    def step(self) -> None:
        self.optimizer.step()
        kept = [tensor.grad for tensor in self.theirs]
        for parameter, tensor in zip(self.parameters, self.theirs, strict=True):
            if not parameter.requires_grad:
                tensor.grad = None
        for group in self.reference.param_groups:  # torch has a KeyError where amsgrad comes late; ours starts at zero
            for tensor in group["params"] if group.get("amsgrad") else ():
                if tensor.grad is not None and "exp_avg" in self.reference.state[tensor]:
                    self.reference.state[tensor].setdefault("max_exp_avg_sq", torch.zeros_like(tensor))
        self.reference.step()
        for tensor, gradient in zip(self.theirs, kept, strict=True):
            tensor.grad = gradient
        self.compare()

    def compare(self) -> None:
        for parameter, tensor in zip(self.parameters, self.theirs, strict=True):
            # Some thirty steps of a dozen roundings each, relative to parameters near 1.
            np.testing.assert_allclose(self.device.host(parameter.data), tensor.numpy(), rtol=1e-12, atol=1e-12)
            ours = {name: self.device.host(array) for name, array in self.optimizer.state[parameter].items()}
            theirs = {name: value for name, value in self.reference.state[tensor].items() if value is not None}
            assert set(theirs) <= set(ours)
            for name, value in theirs.items():
                np.testing.assert_allclose(ours[name], value.numpy(), rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "options", "flag"),
    [
        (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}, ("momentum", 0.9, 0.0)),
        (Adam, {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}, ("amsgrad", True, False)),
        (AdamW, {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}, ("maximize", True, False)),
    ],
    ids=["SGD", "Adam", "AdamW"],
)
def test_whatever_comes_and_goes_it_trains_as_torch_does(device, kind, options, flag):
    machine = type("Training", (Training,), {"device": device, "kind": kind, "options": options, "flag": flag})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=30, deadline=None))


# --- dtypes, memory orders


def test_groups_of_different_dtypes_and_flags_step_together_as_they_do_alone(device):
    entries = [("float32", {}), ("float64", {"amsgrad": True}), ("float16", {"maximize": True}), ("bfloat16", {})]

    def parameters() -> list[Parameter]:
        return [make(device, (2, 3), dtype=dtype)[0] for dtype, _ in entries]

    together, alone = parameters(), parameters()
    groups = [{"params": parameter, **options} for parameter, (_, options) in zip(together, entries, strict=True)]
    optimizers = [Adam(groups, lr=0.125)]
    optimizers += [Adam(parameter, lr=0.125, **options) for parameter, (_, options) in zip(alone, entries, strict=True)]
    for seed in range(3):
        give_gradients(device, together, seed)
        give_gradients(device, alone, seed)
        for optimizer in optimizers:
            optimizer.step()
    assert bits([device.host(p.data) for p in together]) == bits([device.host(p.data) for p in alone])


def test_one_group_may_have_parameters_of_several_dtypes(device):
    parameters = [make(device, 3, dtype=dtype)[0] for dtype in ("float32", "float64", "float32")]
    optimizer = SGD(parameters, lr=0.5)
    give_gradients(device, parameters)
    optimizer.step()
    for parameter in parameters:
        expected = np.ones(3, parameter.dtype) - parameter.dtype.type(0.5) * device.host(parameter.grad)
        assert bits(device.host(parameter.data)) == bits(expected)
    assert list(optimizer.parameters()) == parameters  # in the order that they were given in


# --- copies of the whole


DUPLICATES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


def trained(device: Any, case: Any) -> tuple[list[Parameter], Optimizer]:
    parameters = make(device, (2, 3), 5, (), names="abc")
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.5}]
    optimizer = case.optimizer(groups, **case.main)
    for seed in range(3):
        give_gradients(device, parameters[: seed + 1], seed)
        optimizer.step().clear_grad()
    give_gradients(device, parameters[1:], 7)
    parameters[0].requires_grad = False
    return parameters, optimizer


@each_case
@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_a_copy_of_model_and_optimizer_goes_on_to_the_bit(device, case, duplicate):
    parameters, optimizer = trained(device, case)
    model, twin = duplicate((dict(zip("abc", parameters, strict=True)), optimizer))
    twins = list(model.values())
    assert list(twin.parameters()) == twins  # the copy's parameters are those of the copied model
    assert all(parameter.owner is twin for parameter in twins)
    assert bits(twin.state_dict()) == bits(optimizer.state_dict())
    assert twin.defaults == optimizer.defaults
    for seed in (None, 8, 9):  # at first with the gradients that were there
        for some, of in ((parameters, optimizer), (twins, twin)):
            if seed is not None:
                some[0].requires_grad = True
                give_gradients(device, some, seed)
            of.step()
    assert bits([device.host(p.data) for p in twins]) == bits([device.host(p.data) for p in parameters])
    assert bits(twin.state_dict()) == bits(optimizer.state_dict())


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_a_copy_of_the_optimizer_alone_has_parameters_of_its_own(device, duplicate):
    parameters = make(device, 2, 3)
    optimizer = Adam(parameters, lr=0.5)
    give_gradients(device, parameters)
    optimizer.step()
    twin = duplicate(optimizer)
    assert not set(twin.parameters()) & set(parameters)
    before = bits(optimizer.state_dict()), bits([device.host(p.data) for p in parameters])
    twin.step()
    assert (bits(optimizer.state_dict()), bits([device.host(p.data) for p in parameters])) == before
    optimizer.step()
    assert bits(twin.state_dict()) == bits(optimizer.state_dict())
    assert bits([device.host(p.data) for p in twin.parameters()]) == bits([device.host(p.data) for p in parameters])


def test_a_copy_keeps_names_loaded_keys_and_attributes(device):
    optimizer = SGD([("a", make(device, 2)[0])])
    state = optimizer.state_dict()
    state["param_groups"][0]["initial_lr"] = 0.5
    optimizer.load_state_dict(state)
    optimizer.epoch = 7
    twin = copy.deepcopy(optimizer)
    assert twin.param_groups[0]["param_names"] == ["a"]
    assert twin.param_groups[0]["initial_lr"] == 0.5
    assert twin.epoch == 7


# --- the end


def test_a_deleted_optimizer_frees_its_parameters_for_another(device):
    parameters = make(device, 2, 3)
    optimizer = Adam(parameters)
    give_gradients(device, parameters)
    optimizer.step()
    before = [device.host(p.data) for p in parameters]
    del optimizer  # at once: nothing in it refers back to it
    assert [parameter.owner for parameter in parameters] == [None, None]
    another = SGD(parameters[::-1], lr=0.5)
    assert another.state_dict()["state"] == {}
    assert bits([device.host(p.data) for p in parameters]) == bits(before)
    another.step()  # the gradients came along
    for parameter, old in zip(parameters, before, strict=True):
        expected = old - np.float32(0.5) * device.host(parameter.grad)
        np.testing.assert_array_equal(device.host(parameter.data), expected)


def test_a_deleted_optimizer_gives_its_memory_back_without_the_garbage_collector(device):
    parameters = make(device, 2, 3)
    optimizer = Adam(parameters)
    give_gradients(device, parameters)
    optimizer.step()
    (arena,) = optimizer.arenas()
    gone = [weakref.ref(thing) for thing in (optimizer, arena, arena.counters, *arena.states.values())]
    before = [device.host(p.data) for p in parameters]
    gc.disable()
    try:
        del optimizer, arena
        assert [thing() for thing in gone] == [None] * 5
    finally:
        gc.enable()
    assert bits([device.host(p.data) for p in parameters]) == bits(before)
    another = SGD(parameters)
    assert [parameter.owner for parameter in parameters] == [another, another]


# --- launches and spans


@pytest.fixture
def surfaces(request: pytest.FixtureRequest) -> list[Any]:
    """The surfaces of both emulated devices, with no launches yet."""
    pytest.importorskip("emulated")
    from emulated import EmulatedArray, OtherArray
    from emulator.build import compiler, skip_or_fail

    if compiler() is None:
        skip_or_fail("no C++ compiler: set CXX, or install g++.")
    surfaces = [kind.__fusedopt_backend__.surface for kind in (EmulatedArray, OtherArray)]
    for surface in surfaces:
        surface.launches.clear()
    return surfaces


def test_a_step_is_one_launch_a_device(surfaces):
    from emulated import EmulatedArray, OtherArray

    def parameter(kind: type, dtype: str, size: int) -> Parameter:
        return Parameter(np.ones(size, dtype).view(kind))

    def some(kind: type, dtype: str) -> list[Parameter]:
        return [parameter(kind, dtype, size) for size in (3, 0, 70_000, 1)]

    groups = [
        {"params": some(EmulatedArray, "float32") + some(EmulatedArray, "bfloat16") + some(OtherArray, "float32")},
        {"params": some(EmulatedArray, "float64"), "amsgrad": True},
        {"params": some(OtherArray, "float16"), "maximize": True, "weight_decay": 0.5},
        {"params": some(EmulatedArray, "float32"), "lr": 0.5, "amsgrad": True},
    ]
    optimizer = Adam(groups, lr=0.125)
    for step in range(3):
        for number, each in enumerate(optimizer.parameters()):
            if (number + step) % 3:
                each.grad = np.ones(each.shape, each.dtype).view(type(each.data))
        optimizer.step().clear_grad()
        assert [len(surface.launches) for surface in surfaces] == [step + 1, step + 1]
    for each in optimizer.parameters():
        assert (np.asarray(each.data) != 1).all()  # and each was updated
    optimizer.step()  # nothing has a gradient
    assert [len(surface.launches) for surface in surfaces] == [3, 3]


def test_neighbours_with_one_history_are_one_span(device):
    parameters = make(device, *[3] * 200)
    optimizer = Adam([{"params": parameters[:100]}, {"params": parameters[100:]}])
    for _ in range(3):
        give_gradients(device, parameters)
        optimizer.step()
        assert len(spans(optimizer)) == 2
    parameters[50].grad = None
    optimizer.step()
    assert [(span.first, span.last) for span in spans(optimizer)] == [(0, 49), (51, 99), (0, 99)]
    give_gradients(device, parameters)
    optimizer.step()
    assert [(span.first, span.last) for span in spans(optimizer)] == [(0, 49), (50, 50), (51, 99), (0, 99)]


def test_loading_a_state_joins_what_has_parted(device):
    parameters = make(device, *[3] * 10)
    optimizer = Adam(parameters)
    for number in range(4):  # each parameter has two steps behind it, though not the same ones
        give_gradients(device, parameters[number % 2 :: 2])
        optimizer.step().clear_grad()
    give_gradients(device, parameters)
    optimizer.step()
    assert len(spans(optimizer)) == 10
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert len(spans(optimizer)) == 1
    assert [float(optimizer.state[parameter]["step"]) for parameter in parameters] == [4] * 10


def test_a_step_without_changes_plans_nothing(device, monkeypatch):
    parameters = make(device, 2, 3)
    optimizer = Adam(parameters)
    give_gradients(device, parameters)
    optimizer.step()
    monkeypatch.setattr(type(device.backend), "plan", lambda *_: pytest.fail("planned afresh"))
    optimizer.step()
    give_gradients(device, parameters)  # others, on the same parameters
    optimizer.step()
    optimizer.clear_grad()
    give_gradients(device, parameters)
    optimizer.param_groups[0]["lr"] = 0.5  # a number
    optimizer.step()
    assert float(optimizer.state[parameters[0]]["step"]) == 4


# --- a session that torch's documentation prints


def test_the_printed_session_of_fifty_steps(device, tmp_path):
    weight = Parameter(device.array(np.array([[-0.0947, 1.4217], [-1.3000, -1.0501]])))
    weight.grad = device.array(np.ones((2, 2)))
    optimizer = SGD([weight], lr=0.1, momentum=0.9)
    optimizer.step()
    printed = [[-0.1947, 1.3217], [-1.4000, -1.1501]]
    np.testing.assert_allclose(device.host(weight.data), printed, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(device.host(optimizer.state[weight]["momentum_buffer"]), np.ones((2, 2)))
    optimizer.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(device.host(weight.grad), np.zeros((2, 2)))

    weight2 = Parameter(device.array(np.ones((3, 3))))
    optimizer.add_param_group({"params": weight2, "lr": 0.0001, "nesterov": True})
    options = {key: value for key, value in optimizer.param_groups[1].items() if key != "params"}
    expected = {"lr": 0.0001, "nesterov": True, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "maximize": False}
    assert options == expected
    state = optimizer.state_dict()
    assert bits(state["state"]) == bits({0: {"momentum_buffer": np.ones((2, 2))}})
    assert [group["params"] for group in state["param_groups"]] == [[0], [1]]

    for _ in range(50):
        optimizer.step()
    buffer = device.host(optimizer.state[weight]["momentum_buffer"])
    np.testing.assert_allclose(buffer, np.full((2, 2), 0.00515377520732), rtol=1e-11)  # 0.9**50, as printed
    shift = device.host(weight.data) - np.array(printed)
    np.testing.assert_allclose(shift, np.full((2, 2), -0.895361602313), rtol=1e-11)
    printed = [[-1.0900, 0.4263], [-2.2953, -2.0455]]  # the start is known to four digits only
    np.testing.assert_allclose(device.host(weight.data), printed, rtol=0, atol=1.01e-4)
    np.testing.assert_array_equal(device.host(weight2.data), np.ones((3, 3)))
    assert optimizer.state[weight2] == {}

    path = tmp_path / "optimizer"
    fusedopt.save(path, optimizer.state_dict())
    assert bits(fusedopt.load(path)) == bits(optimizer.state_dict())


def test_after_fifty_steps_without_a_gradient_nothing_has_changed(device):
    weight = Parameter(device.array(np.ones((2, 2))))
    weight.grad = device.array(np.ones((2, 2)))
    optimizer = SGD([weight], lr=0.1, momentum=0.9)
    optimizer.step().zero_grad()
    before = device.host(weight.data)
    for _ in range(50):
        optimizer.step()
    np.testing.assert_array_equal(device.host(weight.data), before)
    np.testing.assert_array_equal(device.host(optimizer.state[weight]["momentum_buffer"]), np.ones((2, 2)))
