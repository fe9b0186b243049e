"""Bad input gets an error of the right class that says thing, value, rule and cure; and nothing has changed."""

import contextlib
import copy
import dataclasses
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import fusedopt
from cases import CASES, assert_same_bits, each_case, ordinary
from fusedopt import SGD, Adam, AdamW, Optimizer, Parameter, rules
from fusedopt.backends import cuda
from fusedopt.rules import Rule, Values, hyperparameter
from test_state_dict import contents

Error = type[Exception] | tuple[type[Exception], ...]


def parameter(device: Any, shape: Any = (2, 3), name: str | None = None) -> Parameter:
    return Parameter(device.array(np.ones(shape, np.float32)), name=name)


def gradient(device: Any, some: Parameter, seed: int) -> Any:
    return device.array(ordinary(some.size, some.dtype.name, seed).reshape(some.shape))


def in_training(device: Any, kind: type[Optimizer], **options: Any) -> Optimizer:
    """An optimizer with two groups, some steps behind it and gradients at hand."""
    parameters = [parameter(device, shape) for shape in ((2, 3), 5, 0, 17)]
    optimizer = kind([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.25}], **options)
    for seed in range(3):
        for some in parameters[: 2 + seed]:
            some.grad = gradient(device, some, seed)
        if seed < 2:
            optimizer.step().clear_grad()
    return optimizer


@contextlib.contextmanager
def refused(optimizer: Optimizer, error: Error, message: str) -> Iterator[None]:
    """The body raises; the optimizer has changed in nothing, and its next step is what it would have been."""
    before, twin = contents(optimizer), copy.deepcopy(optimizer)
    with pytest.raises(error, match=message):
        yield
    assert contents(optimizer) == before
    assert contents(optimizer.step())[1][:3] == contents(twin.step())[1][:3]


# --- params


class Bad:
    """Something that is no array."""


# Each takes two free parameters, of which none may be taken.
WRONG_PARAMS: dict[str, tuple[Callable[[Parameter, Parameter], Any], Error, str]] = {
    "an empty list": (lambda a, b: [], ValueError, "empty parameter list; give at least one Parameter"),
    "an empty generator": (lambda a, b: (p for p in ()), ValueError, "empty parameter list"),
    "None": (lambda a, b: None, TypeError, "must be a Parameter, an iterable of them, .*got NoneType"),
    "a number": (lambda a, b: 3, TypeError, "got int"),
    "text": (lambda a, b: "ab", TypeError, "got str"),
    "an array": (lambda a, b: np.ones(2), TypeError, r"got ndarray; wrap arrays: fusedopt\.Parameter\(array\)"),
    "a tensor": (lambda a, b: torch.ones(2), TypeError, "got Tensor"),
    "a set": (lambda a, b: {a, b}, TypeError, "is a set, whose order changes from run to run; give a list"),
    "a frozen set": (lambda a, b: frozenset([a, b]), TypeError, "is a set"),
    "a list with an array": (
        lambda a, b: [a, np.ones(2)],
        TypeError,
        r"element 1 is a \S*ndarray, not a \S*Parameter; wrap",
    ),
    "a list with a list": (lambda a, b: [a, [1.0]], TypeError, "element 1 is a list"),
    "a list with None": (lambda a, b: [a, b, None], TypeError, "element 2 is a NoneType"),
    "torch's parameters": (
        lambda a, b: torch.nn.Linear(1, 1).parameters(),
        TypeError,
        r"element 0 is a torch\S*Parameter, not a fusedopt\.Parameter",
    ),
    "a dict without params": (lambda a, b: {"a": a}, ValueError, r"without 'params'; it has 'a'"),
    "an empty dict": (lambda a, b: [{"params": a}, {}], ValueError, r"params\[1\] .*without 'params'; it has no keys"),
    "a Parameter beside dicts": (
        lambda a, b: [{"params": a}, b],
        TypeError,
        r"params\[1\] is a Parameter beside dicts",
    ),
    "a dict beside Parameters": (
        lambda a, b: [a, {"params": b}],
        TypeError,
        r"params\[0\] is a Parameter beside dicts",
    ),
    "a group's set": (lambda a, b: [{"params": {a, b}}], TypeError, r"params\[0\]\['params'\] is a set"),
    "a group's array": (lambda a, b: [{"params": a}, {"params": np.ones(2)}], TypeError, r"params\[1\].*got ndarray"),
    "a group with an array": (
        lambda a, b: [{"params": a}, {"params": [b, np.ones(2)]}],
        TypeError,
        r"params\[1\]: elem",
    ),
    "some named": (lambda a, b: [("a", a), b], ValueError, "some parameters are .*pairs and some are not; name all"),
    "a named array": (lambda a, b: [("a", a), ("b", np.ones(2))], TypeError, r"element 1 is a \S*ndarray"),
    "twice in a list": (lambda a, b: [a, b, a], ValueError, r"parameter 'a' .*appears twice .*give each once"),
    "twice in groups": (lambda a, b: [{"params": a}, {"params": [b, a]}], ValueError, "parameter 'a' .*appears twice"),
    "a negative lr later": (lambda a, b: [{"params": a}, {"params": b, "lr": -1}], ValueError, "group 1: SGD: lr must"),
    "a misspelt key": (
        lambda a, b: [{"params": a}, {"params": b, "wieght_decay": 0.1}],
        KeyError,
        "param group 1: SGD has no option 'wieght_decay'; did you mean 'weight_decay'?",
    ),
    "nesterov alone in a group": (
        lambda a, b: [{"params": a}, {"params": b, "nesterov": True}],
        ValueError,
        "param group 1: SGD: nesterov=True needs momentum > 0 and dampening == 0, got momentum=0.0 and dampening=0.0",
    ),
}


@pytest.mark.parametrize(("params", "error", "message"), WRONG_PARAMS.values(), ids=WRONG_PARAMS)
def test_wrong_params_are_refused_and_none_is_taken(device, params, error, message):
    first, second = parameter(device, 2, "a"), parameter(device, 3, "b")
    arrays = first.data, second.data
    with pytest.raises(error, match=message):
        SGD(params(first, second))
    assert first.data is arrays[0]
    assert second.data is arrays[1]
    assert first.owner is second.owner is None
    SGD([first, second])  # another may have them


WRONG_GROUPS: dict[str, tuple[Callable[[Parameter, Parameter], Any], Error, str]] = {
    "no params": (lambda a, b: {"lr": 0.5}, ValueError, "without 'params'; it has 'lr'"),
    "nothing": (lambda a, b: {}, ValueError, "without 'params'; it has no keys"),
    "None": (lambda a, b: {"params": None}, TypeError, "got NoneType"),
    "an array": (lambda a, b: {"params": np.ones(2)}, TypeError, r"got ndarray; wrap arrays: fusedopt\.Parameter"),
    "a set": (lambda a, b: {"params": {a, b}}, TypeError, "is a set, whose order changes"),
    "an array in a list": (lambda a, b: {"params": [a, b, np.ones(2)]}, TypeError, r"element 2 is a \S*ndarray"),
    "an array in a generator": (lambda a, b: {"params": (p for p in (a, np.ones(2)))}, TypeError, "element 1"),
    "some named": (lambda a, b: {"params": [("a", a), b]}, ValueError, "some parameters are .*pairs and some are not"),
    "twice": (lambda a, b: {"params": [a, b, a]}, ValueError, "parameter 'a' .*appears twice .*give each once"),
    "a negative lr": (lambda a, b: {"params": [a, b], "lr": -1}, ValueError, "param group 2: SGD: lr must be in"),
    "a misspelt key": (
        lambda a, b: {"params": a, "momentun": 1},
        KeyError,
        "group 2: SGD has no option 'momentun'; did",
    ),
    "nesterov alone": (lambda a, b: {"params": a, "nesterov": True}, ValueError, "group 2: SGD: nesterov=True needs"),
}


@pytest.mark.parametrize(("group", "error", "message"), WRONG_GROUPS.values(), ids=WRONG_GROUPS)
def test_a_wrong_group_is_not_added(device, group, error, message):
    first, second = parameter(device, 2, "a"), parameter(device, 3, "b")
    optimizer = in_training(device, SGD)
    with refused(optimizer, error, message):
        optimizer.add_param_group(group(first, second))
    assert first.owner is second.owner is None


@pytest.mark.parametrize("group", [[], None, (1, 2)], ids=repr)
def test_a_group_is_a_dict(device, group):
    optimizer = in_training(device, SGD)
    with refused(optimizer, TypeError, f"add_param_group takes a dict with 'params', got {type(group).__name__}"):
        optimizer.add_param_group(group)


def test_a_parameter_of_another_optimizer_is_refused(device):
    optimizer = in_training(device, Adam)
    (taken, *_) = optimizer.parameters()
    free = parameter(device)
    message = "belongs to another optimizer; delete that one first, or make a new Parameter"
    with refused(optimizer, ValueError, message):
        Adam([free, taken])
    assert free.owner is None
    another = in_training(device, SGD)
    with refused(another, ValueError, message):
        another.add_param_group({"params": [free, taken]})
    assert free.owner is None
    with refused(optimizer, ValueError, "appears twice in this optimizer"):
        optimizer.add_param_group({"params": [free, taken]})
    assert free.owner is None


def test_a_shallow_copy_is_refused(device):
    optimizer = in_training(device, Adam)
    with refused(optimizer, ValueError, "belongs to another optimizer"):
        copy.copy(optimizer)


def test_an_optimizer_without_a_rule_is_refused(device):
    class Mine(Optimizer): ...

    for kind in (Optimizer, Mine):
        with pytest.raises(
            TypeError, match=r"has no rule of its own; subclass it: class Mine\(Optimizer, rule=MyRule\)"
        ):
            kind([parameter(device)])


def test_a_rule_that_is_no_dataclass_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Decorated(Rule):
        lr: float = hyperparameter(0.1, "[0, inf)")

    class Plain(Decorated):  # whose own hyperparameters would be left out
        momentum: float = hyperparameter(0.9, "[0, 1)")

    with pytest.raises(TypeError, match=r"rule Plain must be decorated with @dataclass\(frozen=True\)\."):
        type("Mine", (Optimizer,), {}, rule=Plain)


@pytest.mark.parametrize("made", range(4))
def test_where_memory_is_short_nothing_is_added(device, made):
    """Each of two dtypes needs a buffer of data and one of gradients; so many are made, and the next one is not."""
    optimizer, make = in_training(device, Adam), device.backend.zeros
    arrays = [device.array(np.ones(3, dtype)) for dtype in ("float32", "float64")]
    parameters = [Parameter(array) for array in arrays]
    named = list(zip("ab", parameters, strict=True))
    takes = (
        lambda: Adam([{"params": [pair]} for pair in named]),
        lambda: optimizer.add_param_group({"params": named}),
    )
    for take in takes:
        room = iter(range(made))

        def zeros(count: int, dtype: np.dtype, room: Iterator[int] = room) -> Any:
            if next(room, None) is None:
                raise MemoryError("no room")
            return make(count, dtype)

        with refused(optimizer, MemoryError, "no room"), mock.patch.object(device.backend, "zeros", zeros):
            take()
        assert next(room, None) is None
        for some, array in zip(parameters, arrays, strict=True):
            assert some.data is array
            assert some.owner is some.name is None
    SGD(parameters)


# --- hyperparameters


def outside(interval: str) -> list[float]:
    """Numbers outside an interval as rules write it, at its ends and beyond."""
    low, high = (float(end) for end in interval[1:-1].split(", "))
    below = [np.nextafter(low, -np.inf), low - 1] if np.isfinite(low) else []
    at_high = [high] if interval[-1] == ")" else []
    return [float("nan"), *below, *([low] if interval[0] == "(" else []), *at_high]


def wrong_hyperparameters() -> Iterator[Any]:
    """(case, option, value, error, message): every number of every rule out of its range, and of a wrong kind."""
    for case in CASES:
        for name, field in case.rule.options().items():
            tuples = isinstance(field.default, tuple)
            if isinstance(field.default, bool):
                for value in (1, None, "yes", 0.0) if field.init else (False, None, "yes"):
                    yield case, name, value, TypeError, f"{case.name}: {name} is a flag, True or False, got {value!r}"
                continue
            if field.metadata["choices"]:
                for value in ("float8", True, ["split"], np.ones(2)):
                    yield case, name, value, ValueError, f"{case.name}: {name} must be one of "
                continue
            ranges = field.metadata["interval"]
            for place, interval in enumerate(ranges if tuples else (ranges,)):
                for number in outside(interval.text):
                    value = number
                    if tuples:
                        value = tuple(number if i == place else old for i, old in enumerate(field.default))
                    where = f"{name}[{place}]" if tuples else name
                    message = re.escape(f"{case.name}: {where} must be in {interval.text}, got {number}")
                    yield case, name, value, ValueError, message
            kinds = (None, "fast", 1j, np.ones((2, 2))) if not tuples else (None, 0.9, (0.9,), (0.9, 0.9, 0.9), "ab")
            for value in kinds:
                yield case, name, value, (TypeError, ValueError), f"{case.name}: {name} must be "
            yield (
                case,
                name,
                (True,) * 2 if tuples else True,
                TypeError,
                rf"{case.name}: {name}\S* must be a number, got True",
            )


each_wrong_hyperparameter = pytest.mark.parametrize(
    ("case", "name", "value", "error", "message"),
    [pytest.param(*row, id=f"{row[0].name}-{row[1]}-{row[2]!r}") for row in wrong_hyperparameters()],
)


@each_wrong_hyperparameter
def test_a_wrong_hyperparameter_is_refused_wherever_it_is_given(case, name, value, error, message):
    first, second = (Parameter(np.ones(2, np.float32)) for _ in range(2))
    wrong = {name: value}
    if case.rule.options()[name].init:
        with pytest.raises(error, match=message):
            case.optimizer([first], **wrong)
    else:
        error, message = (TypeError, ValueError), f"{case.name}: {name} is .* by definition, got"
    with pytest.raises(error, match=f"param group 1: {message}"):
        case.optimizer([{"params": first}, {"params": second, **wrong}])
    assert first.owner is second.owner is None
    optimizer = case.optimizer([first], lr=0.5)
    before = contents(optimizer)
    with pytest.raises(error, match=f"param group 1: {message}"):
        optimizer.add_param_group({"params": second, "lr": 0.25, **wrong})
    (group,) = optimizer.param_groups
    for change in (
        group.__setitem__,
        lambda name, value: group.update({"lr": 0.25, "maximize": True, name: value}),
    ):
        with pytest.raises(error, match=message):
            change(name, value)
    assert contents(optimizer) == before
    assert second.owner is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wieght_decay", "did you mean 'weight_decay'"),
        ("learning_rate", "did you mean 'lr'"),
        ("beta2", "did you mean 'betas'"),
        ("epsilon", "did you mean 'eps'"),
        ("momentum", "it has lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay, "),
        ("Betas", "did you mean 'betas'"),
        ("grad_centralizaiton", "did you mean 'grad_centralization'"),  # as a guide of MindSpore's spells it
    ],
)
def test_an_unknown_option_is_refused_with_a_hint(device, name, hint):
    message = f"Adam has no option '{name}'; {hint}"
    free = parameter(device)
    with pytest.raises(TypeError, match=message):
        Adam([free], **{name: 0.5})
    with pytest.raises(KeyError, match=message):
        Adam([{"params": free, name: 0.5}])
    assert free.owner is None
    optimizer = in_training(device, Adam)
    group = optimizer.param_groups[1]
    changes: list[Callable[[], Any]] = [
        lambda: group.__setitem__(name, 0.5),
        lambda: group.update({"lr": 0.125, name: 0.5}),
        lambda: group.update(lr=0.125, **{name: 0.5}),
        lambda: group.__ior__({"lr": 0.125, name: 0.5}),
        lambda: group.setdefault(name, 0.5),
        lambda: optimizer.add_param_group({"params": free, name: 0.5}),
    ]
    for change in changes:
        with refused(optimizer, KeyError, message):
            change()
    assert free.owner is None


def test_what_an_optimizer_is_by_definition_cannot_be_changed(device):
    with pytest.raises(
        (TypeError, ValueError), match="decoupled_weight_decay is True by definition, got False; leave it out"
    ):
        AdamW([parameter(device)], decoupled_weight_decay=False)
    optimizer = in_training(device, AdamW)
    with refused(optimizer, ValueError, "decoupled_weight_decay is True by definition"):
        optimizer.param_groups[0]["decoupled_weight_decay"] = False


@pytest.mark.parametrize(
    "options",
    [{"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.5}, {"nesterov": True, "momentum": 0}],
    ids=repr,
)
def test_nesterov_needs_momentum_without_dampening(device, options):
    message = "nesterov=True needs momentum > 0 and dampening == 0, got momentum="
    free = parameter(device)
    with pytest.raises(ValueError, match=message):
        SGD([free], **options)
    with pytest.raises(ValueError, match=f"param group 0: SGD: {message}"):
        SGD([{"params": free, **options}])
    assert free.owner is None
    optimizer = in_training(device, SGD)
    with refused(optimizer, ValueError, message):
        optimizer.param_groups[1].update(options)
    with refused(optimizer, ValueError, message):
        optimizer.add_param_group({"params": free, **options})


@pytest.mark.parametrize(("name", "value"), [("momentum", 0.0), ("dampening", 0.5)])
def test_what_nesterov_needs_cannot_be_taken_away(device, name, value):
    optimizer = in_training(device, SGD, momentum=0.9, nesterov=True)
    with refused(optimizer, ValueError, "nesterov=True needs momentum > 0"):
        optimizer.param_groups[1][name] = value


def test_several_options_are_changed_all_or_none(device):
    optimizer = in_training(device, Adam)
    group = optimizer.param_groups[1]
    for wrong in ({"eps": -1.0}, {"betas": (0.9, 1.0)}, {"amsgrad": 1}, {"betas": 0.9}):
        with refused(optimizer, (TypeError, ValueError), "Adam: "):
            group.update({"lr": 0.125, "amsgrad": True, **wrong})


REMOVALS: dict[str, Callable[[Any], Any]] = {
    "del": lambda group: group.__delitem__("lr"),
    "pop": lambda group: group.pop("lr"),
    "popitem": lambda group: group.popitem(),
    "clear": lambda group: group.clear(),
}


@pytest.mark.parametrize("remove", REMOVALS.values(), ids=REMOVALS)
def test_a_group_keeps_its_options(device, remove):
    optimizer = in_training(device, Adam)
    with refused(optimizer, TypeError, "keeps all of its options; assign another value instead"):
        remove(optimizer.param_groups[0])


def test_a_groups_params_are_not_replaced(device):
    optimizer = in_training(device, Adam)
    free = parameter(device)
    with refused(optimizer, TypeError, "params cannot be replaced; use optimizer.add_param_group"):
        optimizer.param_groups[0]["params"] = [free]
    with refused(optimizer, TypeError, "params cannot be replaced"):
        optimizer.param_groups[0].update({"lr": 0.125, "params": [free]})
    with refused(optimizer, AttributeError, "append"):
        optimizer.param_groups[0]["params"].append(free)


# --- data and gradients


@pytest.mark.parametrize("taken", [False, True])
def test_data_is_not_replaced(device, taken):
    some = parameter(device, name="w")
    optimizer = SGD([some]) if taken else None
    before = some.data
    with pytest.raises(
        AttributeError, match=r"data of parameter 'w' .*cannot be replaced.*parameter\.data\[\.\.\.\] = value"
    ):
        some.data = device.array(np.zeros((2, 3), np.float32))
    assert some.data is before
    np.testing.assert_array_equal(device.host(some.data), np.ones((2, 3), np.float32))
    assert some.owner is optimizer


WRONG_GRADIENTS: dict[str, tuple[Callable[[Any], Any], Error, str]] = {
    "transposed": (lambda array: array(np.ones((3, 2), np.float32)), ValueError, r"\(3, 2\); transpose it"),
    "one row": (lambda array: array(np.ones((1, 3), np.float32)), ValueError, r"shape \(1, 3\); sum or reshape it"),
    "flat": (lambda array: array(np.ones(6, np.float32)), ValueError, r"shape \(6,\)"),
    "of a batch": (lambda array: array(np.ones((7, 2, 3), np.float32)), ValueError, r"shape \(7, 2, 3\)"),
    "a scalar": (lambda array: array(np.float32(1)), ValueError, r"shape \(\)"),
    "float64": (lambda array: array(np.ones((2, 3))), TypeError, r"float32 .*float64; .*gradient\.astype\('float32'\)"),
    "float16": (lambda array: array(np.ones((2, 3), np.float16)), TypeError, r"float16; .*\.astype\('float32'\)"),
    "integers": (lambda array: array(np.ones((2, 3), int)), TypeError, r"int64; .*\.astype\('float32'\)"),
    "a list": (lambda array: [[1.0] * 3] * 2, TypeError, "gradient of type list; give an array like its data"),
    "a number": (lambda array: 1.0, TypeError, "gradient of type float"),
    "a tensor": (lambda array: torch.ones(2, 3), TypeError, "gradient of type Tensor; give an array like its data"),
    "a Parameter": (lambda array: Parameter(array(np.ones((2, 3), np.float32))), TypeError, "of type Parameter"),
}


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_GRADIENTS.values(), ids=WRONG_GRADIENTS)
def test_a_wrong_gradient_is_refused(device, taken, present, wrong, error, message):
    some = parameter(device, name="w")
    optimizer = SGD([some]) if taken else None
    expected = ordinary(6, "float32", 0).reshape(2, 3)
    if present:
        some.grad = device.array(expected)
    with pytest.raises(error, match=rf"parameter 'w' \(shape \(2, 3\)\) .*{message}"):
        some.grad = wrong(device.array)
    if present:
        np.testing.assert_array_equal(device.host(some.grad), expected)
    else:
        assert some.grad is None
    assert some.owner is optimizer


@pytest.mark.parametrize("taken", [False, True])
def test_a_gradient_of_another_device_is_refused(taken):
    emulated = pytest.importorskip("emulated")
    host, device = np.ones(3, np.float32), emulated.array(np.ones(3, np.float32))
    for here, there in ((host, device), (device, host), (device, np.asarray(device).view(emulated.OtherArray))):
        some = Parameter(here, name="w")
        optimizer = SGD([some]) if taken else None
        message = rf"parameter 'w' .* is on {here.device} and was given a gradient on {there.device}; move"
        with pytest.raises(ValueError, match=message):
            some.grad = there
        assert some.grad is None
        assert some.owner is optimizer


# --- step


WRONG_SCALARS: dict[str, Callable[[Any], Any]] = {
    "text": lambda array: "yes",
    "a number in text": lambda array: "3",
    "complex": lambda array: 1j,
    "a list": lambda array: [1.0],
    "two values": lambda array: array(np.ones(2, np.float32)),
    "no value": lambda array: array(np.ones(0, np.float32)),
    "any object": lambda array: Bad(),
}


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
@pytest.mark.parametrize("wrong", WRONG_SCALARS.values(), ids=WRONG_SCALARS)
def test_a_wrong_scale_or_flag_is_refused_and_no_step_counted(device, name, wrong):
    optimizer = in_training(device, Adam)
    with refused(optimizer, (TypeError, ValueError), f"{name} must be a number or an array of one float32"):
        optimizer.step(**{name: wrong(device.array)})
    some = parameter(device)
    first = Adam([some])
    some.grad = device.array(np.ones((2, 3), np.float32))
    with refused(
        first, (TypeError, ValueError), f"{name} must be a number or an array of one float32"
    ):  # before the first step too
        first.step(**{name: wrong(device.array)})


def test_no_device_steps_where_a_flag_is_wrong_for_one():
    emulated = pytest.importorskip("emulated")
    parameters = [Parameter(np.ones(3, np.float32).view(k)) for k in (emulated.EmulatedArray, emulated.OtherArray)]
    optimizer = Adam(parameters)
    for some in parameters:
        some.grad = np.ones(3, np.float32).view(type(some.data))
    with refused(optimizer, TypeError, "found_inf must be a number or an array of one float32"):
        optimizer.step(found_inf=np.zeros((), np.float64).view(emulated.OtherArray))


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
@pytest.mark.parametrize("places", [(0,), (0, 1), (None,), (None, 1)], ids=["one", "two", "host", "host and one"])
def test_a_scale_or_flag_of_another_device_than_the_parameters_is_refused(name, places):
    emulated = pytest.importorskip("emulated")
    kinds = {None: np.ndarray, 0: emulated.EmulatedArray, 1: emulated.OtherArray}
    parameters = [Parameter(np.ones(3, np.float32).view(kinds[place])) for place in places]
    optimizer = Adam(parameters)
    for some in parameters:
        some.grad = np.ones(3, np.float32).view(type(some.data))
    there = np.ones((), np.float32).view(emulated.OtherArray)
    with refused(optimizer, TypeError, rf"{name} must be .* on the parameters' device, got .* on {there.device}"):
        optimizer.step(**{name: there})


def test_an_error_in_the_closure_comes_through(device):
    optimizer = in_training(device, Adam)

    def closure() -> None:
        raise ZeroDivisionError("in the closure")

    with refused(optimizer, ZeroDivisionError, "in the closure"):
        optimizer.step(closure)


@each_case
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_infinite_and_nan_gradients_do_what_the_mathematics_says_alike_everywhere(device, case, dtype):
    values = np.array([np.inf, -np.inf, np.nan, 1.0, 0.0, -1.0] * 3, dtype)
    ours, host = (Parameter(array(np.ones(18, dtype))) for array in (device.array, np.array))
    optimizers = [case.optimizer([some], **case.main) for some in (ours, host)]
    for gradients in (values, np.ones(18, dtype)):
        ours.grad, host.grad = device.array(gradients), gradients
        for optimizer in optimizers:
            optimizer.step()
    assert_same_bits(device.host(ours.data), host.data)
    finite, arrays = np.isfinite(values.astype(np.float64)), [host.data]
    for name, array in optimizers[1].state[host].items():
        assert_same_bits(device.host(optimizers[0].state[ours][name]), array, name)
        arrays += [array] if array.ndim else []
    kept = [np.isfinite(array.astype(np.float64)) for array in arrays]
    assert np.all(kept, axis=0)[finite].all()  # nobody else is touched
    if "infinities are remembered" not in case.unlike:
        assert not np.all(kept, axis=0)[~finite].any()  # and a rule that takes a sign remembers it


def test_an_infinite_gradient_moves_sgd_to_infinity(device):
    some = Parameter(device.array(np.ones(4, np.float32)))
    some.grad = device.array(np.array([np.inf, -np.inf, np.nan, 1], np.float32))
    SGD([some], lr=1.0).step()
    np.testing.assert_array_equal(device.host(some.data), np.array([-np.inf, np.inf, np.nan, 0], np.float32))


# --- rules of one's own


def rule_of(update: Any) -> type[Rule]:
    @dataclasses.dataclass(frozen=True)
    class Mine(Rule):
        lr: float = hyperparameter(0.1, "[0, inf)", "learning rate")

        def scalars(self, step: Any, a: Any) -> Values:
            return Values(lr=self.lr)

    Mine.update = update
    return Mine


def branching(self: Any, p: Any, g: Any, s: Any, c: Any) -> Any:
    if c.lr > 1:
        g = -g
    return p - c.lr * g, Values()


WRONG_RULES: dict[str, tuple[Any, str]] = {
    "an unknown operation": (
        lambda self, p, g, s, c: (p - np.exp(g), Values()),
        "uses np.exp, which has no kernel form",
    ),
    "a branch": (branching, "branches on a value; use np.where"),
    "a sum": (lambda self, p, g, s, c: (np.sum(p), Values()), "uses np.add.reduce|uses np.sum"),
    "an index": (lambda self, p, g, s, c: (p[:1], Values()), "a rule sees one element at a time"),
    "a shape": (lambda self, p, g, s, c: (np.ones(p.shape), Values()), "uses .shape of a value"),
    "an array": (lambda self, p, g, s, c: (p - np.ones(3), Values()), "as a constant; use a Python number"),
    "a state that it has not": (lambda self, p, g, s, c: (p, Values(m=g)), "must return exactly its states"),
    "a truth value": (lambda self, p, g, s, c: (g > 0, Values()), "returns a truth value for p"),
    "the parameter alone": (lambda self, p, g, s, c: p, "must return|iterates over"),
    "nothing": (lambda self, p, g, s, c: None, "must return"),
    "states as a dict": (lambda self, p, g, s, c: (p, {}), "must return"),
}


@pytest.mark.parametrize(("update", "message"), WRONG_RULES.values(), ids=WRONG_RULES)
def test_a_rule_that_cannot_be_a_kernel_is_refused_and_takes_no_parameter(device, update, message):
    class Wrong(Optimizer, rule=rule_of(update)): ...

    some = parameter(device)
    before = some.data
    with pytest.raises(TypeError, match=rf"Mine\.update.*({message})"):
        Wrong([some])
    assert some.data is before
    assert some.owner is None
    SGD([some])


# --- the environment


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv("FUSEDOPT_BACKEND", "nonsense")
    message = "FUSEDOPT_BACKEND must be auto, cuda, numba or numpy, got 'nonsense'; unset it for auto"
    some = Parameter(np.ones(2, np.float32))
    with pytest.raises(ValueError, match=message):
        SGD([some])
    assert some.owner is None
    with pytest.raises(ValueError, match=message):
        fusedopt.array_module()


@pytest.mark.parametrize("text", ["", " NumPy ", "auto"])
def test_a_backend_is_named_as_one_writes_it(monkeypatch, text):
    monkeypatch.setenv("FUSEDOPT_BACKEND", text)
    SGD([Parameter(np.ones(2, np.float32))]).step()


ASK_FOR_CUDA = """
import sys
if sys.argv[1] == "without cupy":
    sys.modules["cupy"] = None
import numpy, fusedopt
parameter = fusedopt.Parameter(numpy.ones(2))
for ask in (fusedopt.array_module, lambda: fusedopt.SGD([parameter])):
    try:
        ask()
    except RuntimeError as error:
        print(error)
assert parameter.owner is None
"""


@pytest.mark.parametrize("cupy", ["with cupy", "without cupy"])
def test_cuda_is_refused_where_it_cannot_work_and_the_message_says_what_is_missing(cupy):
    if cupy == "with cupy" and cuda.problem() is None:  # a GPU machine has the other half of this test, CI both
        pytest.skip("CUDA works here, so there is nothing to refuse; without CuPy, below, it is refused here too")
    environment = {**os.environ, "FUSEDOPT_BACKEND": "cuda"}
    command = [sys.executable, "-c", ASK_FOR_CUDA, cupy]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    lines = process.stdout.splitlines()
    assert len(lines) == 2
    assert all("FUSEDOPT_BACKEND=cuda" in line for line in lines)
    cure = (
        r"CuPy cannot be imported .*pip install 'fusedopt\[cuda1[23]\]'"
        if cupy == "without cupy"
        else "; (install|set|pip)"
    )
    assert all(re.search(cure, line) for line in lines)


class CudaError(RuntimeError):
    """CuPy's CUDARuntimeError."""


def cupy_with(count: Any, nvrtc: Any) -> dict[str, Any]:
    """Modules like CuPy's: what counts devices, and what gives NVRTC's version."""
    cupy, libraries = types.ModuleType("cupy"), types.ModuleType("cupy_backends.cuda.libs")
    cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CudaError))
    libraries.nvrtc = types.SimpleNamespace(getVersion=nvrtc)
    return {"cupy": cupy, "cupy_backends.cuda.libs": libraries}


NO_CUDA: dict[str, tuple[dict[str, Any], str | None]] = {
    "no CuPy": (
        {"cupy": None},
        r"CuPy cannot be imported \(.*\); pip install 'fusedopt\[cuda13\]' \(or fusedopt\[cuda12\]",
    ),
    "no device": (cupy_with(lambda: 0, None), "there is no CUDA device; set CUDA_VISIBLE_DEVICES or use FUSEDOPT_BACK"),
    "no driver": (
        cupy_with(mock.Mock(side_effect=CudaError("insufficient driver")), None),
        r"no usable GPU or driver \(insufficient driver\); install NVIDIA's driver, or use FUSEDOPT_BACKEND=numpy\.",
    ),
    "no NVRTC": (
        cupy_with(lambda: 1, mock.Mock(side_effect=RuntimeError("no libnvrtc.so"))),
        r"NVRTC, .* cannot be loaded \(no libnvrtc\.so\).*pip install 'fusedopt\[cuda1[23]\]'",
    ),
    "nothing": (cupy_with(lambda: 1, lambda: (13, 0)), None),
}


@pytest.fixture
def asked_afresh() -> Iterator[None]:
    """cuda.problem() looks again, and once more after the test."""
    cuda.problem.cache_clear()
    yield
    cuda.problem.cache_clear()


@pytest.mark.usefixtures("asked_afresh")
@pytest.mark.parametrize(("modules", "message"), NO_CUDA.values(), ids=NO_CUDA)
def test_what_cuda_lacks_is_said_with_its_cure(monkeypatch, modules, message):
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    if message is None:
        assert cuda.problem() is None
    else:
        assert re.search(message, cuda.problem())


@pytest.mark.usefixtures("asked_afresh")
@pytest.mark.parametrize("error", ["ImportError", "AttributeError", "OSError", "SystemError"])
def test_a_cupy_that_breaks_as_it_is_imported_is_none(monkeypatch, tmp_path, error):
    """A NumPy of another version, a library that does not load: what they raise is anybody's guess."""
    (tmp_path / "cupy.py").write_text(f"raise {error}('broken')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert cuda.problem().startswith("CuPy cannot be imported (broken); pip install 'fusedopt[cuda13]'")
    assert fusedopt.array_module() is np


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_threads_is_refused_and_no_step_counted(monkeypatch, text):
    some = Parameter(np.ones(200_000, np.float32))
    optimizer = Adam([some])
    some.grad = np.ones(200_000, np.float32)
    before = contents(optimizer)
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", text)
    message = f"FUSEDOPT_NUM_THREADS must be a whole number from 1, got '{text}'; unset it for all cores"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert contents(optimizer) == before
    monkeypatch.delenv("FUSEDOPT_NUM_THREADS")
    optimizer.step()
    assert float(optimizer.state[some]["step"]) == 1


def test_a_hyperparameter_is_not_an_attribute_of_the_optimizer():
    optimizer = Adam([Parameter(np.ones(3))], lr=0.5)
    for touch in (lambda: setattr(optimizer, "lr", 5.0), lambda: optimizer.lr):
        with pytest.raises(
            AttributeError, match=r"Adam has lr in each param group: optimizer.param_groups\[0\]\['lr'\]"
        ):
            touch()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert "lr" not in vars(optimizer)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = optimizer.nothing


def test_a_number_is_no_closure():
    with pytest.raises(TypeError, match=r"step takes a closure that computes the gradients, got 0\.1"):
        Adam([Parameter(np.ones(3))]).step(0.1)


def _rule(**members: Any) -> Any:
    return dataclasses.dataclass(frozen=True)(type("Mine", (Rule,), members))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (rules.Adam(), "takes a class derived from fusedopt.rules.Rule, got an instance, Adam"),
        (int, "takes a class derived from fusedopt.rules.Rule, got <class 'int'>"),
        (
            _rule(maximize=False, __annotations__={"maximize": "bool"}),
            "declare maximize with hyperparameter, as maximize: ",
        ),
        (_rule(state="sum"), r"state must be a tuple of names, as \('sum',\)"),
    ],
    ids=["instance", "no rule", "no hyperparameter", "text"],
)
def test_what_is_no_rule_is_refused_with_the_cure(rule, words):
    with pytest.raises(TypeError, match=words):
        type("Mine", (Optimizer,), {}, rule=rule)
