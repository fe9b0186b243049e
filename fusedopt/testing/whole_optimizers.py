"""Checks of an optimizer made of the rule: state dicts, copies, missing gradients, schedules, and torch's tensors."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import pickle
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fusedopt import checkpoint
from fusedopt.backends import array_module
from fusedopt.optimizer import Optimizer
from fusedopt.parameter import Parameter
from fusedopt.rules.rule import Rule
from fusedopt.testing.report import Failure, Skip
from fusedopt.testing.subject import Array, Subject, first_difference, ordinary, shown

SHAPES = ((7, 5), (130,), (), (0, 3))
DTYPE = "float32"


def optimizer_class(rule: type[Rule], base: Any = Optimizer) -> Any:
    """The optimizer of a rule, of the core or of another base class."""
    return types.new_class(rule.__name__, (base,), {"rule": rule})


def options_of(rule: Rule) -> dict[str, Any]:
    """All of its options, as an optimizer takes them."""
    return {name: getattr(rule, name) for name, field in rule.options().items() if field.init}


def _arrays(seed: int) -> list[Array]:
    return [ordinary(int(np.prod(shape)), DTYPE, seed + i).reshape(shape) for i, shape in enumerate(SHAPES)]


def _optimizer(rule: Rule, seed: int = 0, **options: Any) -> Any:
    cls = optimizer_class(type(rule))
    return cls([_parameter(array) for array in _arrays(seed)], **options_of(rule) | options)


def _parameter(array: Array) -> Parameter:
    """On the GPU where one works, or is asked for."""
    return Parameter(array_module().asarray(array))


def on_host(array: Any) -> Array:
    """A copy on the host."""
    copied: Array = array.get() if hasattr(array, "get") else np.array(array)
    return copied


def _step(optimizer: Any, seed: int) -> None:
    for parameter, gradient in zip(optimizer.parameters(), _arrays(seed), strict=True):
        parameter.grad = array_module().asarray(gradient)
    optimizer.step()


def _values(optimizer: Any) -> dict[str, Any]:
    """Parameters and states by name, as host arrays."""
    values = {f"parameter {i}": on_host(p.data) for i, p in enumerate(optimizer.parameters())}
    for number, state in optimizer.state_dict()["state"].items():
        values |= {f"{name} of parameter {number}": value for name, value in state.items()}
    return values


def _of(optimizer: Any, number: int) -> dict[str, Any]:
    """Those of one parameter."""
    return {name: value for name, value in _values(optimizer).items() if name.endswith(f"parameter {number}")}


def _same(ours: Any, expected: Any, what: str) -> None:
    found, wanted = _values(ours), _values(expected)
    difference = first_difference(found, wanted) if found.keys() == wanted.keys() else "they keep different states"
    if difference:
        raise Failure(f"{what}: {difference}.")


def state_dict(subject: Subject) -> str:
    """A run that was saved to a file and resumed is the same run, to the bit."""
    for rule in subject.variants:
        _resumed(rule, _through_a_file, "resumed from a saved state dict, it takes another step")
    return "a run that is saved and resumed is the same to the bit"


def _through_a_file(optimizer: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "run.npz"))
        weights = [on_host(p.data) for p in optimizer.parameters()]
        checkpoint.save(path, {"weights": weights, "optimizer": optimizer.state_dict()})
        saved = checkpoint.load(path)
    other = type(optimizer)([_parameter(array) for array in saved["weights"]])
    other.load_state_dict(saved["optimizer"])
    return other


def copies(subject: Subject) -> str:
    """deepcopy and pickle keep everything."""
    for rule in subject.variants[:1]:
        _resumed(rule, copy.deepcopy, "its deepcopy takes another step")
        _resumed(rule, _pickled, "unpickled, it takes another step")
    return "deepcopy and pickle take the same steps to the bit"


def _pickled(optimizer: Any) -> Any:
    """As pickle does, which could not import a class that was made here."""
    other = object.__new__(type(optimizer))
    other.__setstate__(pickle.loads(pickle.dumps(optimizer.__getstate__())))
    return other


def _resumed(rule: Rule, resume: Callable[[Any], Any], what: str) -> None:
    optimizer = _optimizer(rule)
    for seed in (10, 20):
        _step(optimizer, seed)
    other = resume(optimizer)
    _same(other, optimizer, f"{shown(rule)}: {what}")
    for seed in (30, 40):
        _step(optimizer, seed)
        _step(other, seed)
    _same(other, optimizer, f"{shown(rule)}: {what}")


def no_gradient(subject: Subject) -> str:
    """A parameter without a gradient has no step: no decay, no state."""
    for rule in subject.variants:
        optimizer = _optimizer(rule)
        first, *others = optimizer.parameters()
        before = _of(optimizer, 0)
        gradients = _arrays(10)
        for parameter, gradient in zip(others, gradients[1:], strict=True):
            parameter.grad = array_module().asarray(gradient)
        optimizer.step()
        if first_difference(_of(optimizer, 0), before) or _of(optimizer, 0).keys() != before.keys():
            raise Failure(f"{shown(rule)}: a parameter without a gradient was changed.")
        optimizer.zero_grad()
        first.grad = array_module().asarray(gradients[0])
        optimizer.step()
        fresh = _optimizer(rule)
        next(iter(fresh.parameters())).grad = array_module().asarray(gradients[0])
        fresh.step()
        if difference := first_difference(_of(optimizer, 0), _of(fresh, 0)):
            raise Failure(f"{shown(rule)}: a gradient that comes later does not start afresh: {difference}.")
    return "a parameter without a gradient is left alone, and starts afresh later"


def schedule(subject: Subject) -> str:
    """`lr` may be a function of the step."""
    if "lr" not in subject.rule.options():
        raise Skip("the rule has no lr")
    lr = subject.telling.lr  # type: ignore[attr-defined]  # just asked for
    if isinstance(lr, tuple):
        raise Skip("lr is no single number")
    others = (rule.lr for rule in subject.others(subject.telling, "lr"))  # type: ignore[attr-defined]  # as above
    rates = [lr, *itertools.islice(others, 2), lr][:3]
    scheduled = _optimizer(subject.telling, lr=lambda step: rates[step % len(rates)])
    expected = _optimizer(subject.telling)
    for step in range(3):
        expected.param_groups[0]["lr"] = rates[step % len(rates)]
        _step(expected, 10 * step)
        _step(scheduled, 10 * step)
    _same(scheduled, expected, f"{shown(subject.telling)} with lr as a function of the step")
    return "lr as a function of the step is that number at each step"


def torch_adapter(subject: Subject) -> str:
    """Over torch's CPU tensors, in float32 and bfloat16, the bits are the core's."""
    if importlib.util.find_spec("torch") is None:
        raise Skip("torch is not installed: pip install 'fusedopt[torch]'")
    import torch

    import fusedopt.torch

    cls = optimizer_class(subject.rule, fusedopt.torch.Optimizer)
    for rule in subject.variants:
        for dtype in ("float32", "bfloat16"):
            tensors = [torch.nn.Parameter(torch.from_numpy(a.copy()).to(getattr(torch, dtype))) for a in _arrays(0)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own about what it is given
                optimizer = cls(tensors, **options_of(rule))
                for seed in (10, 20, 30):
                    for tensor, gradient in zip(tensors, _arrays(seed), strict=True):
                        tensor.grad = torch.from_numpy(gradient.copy()).to(tensor.dtype)
                    optimizer.step()
            found = {f"parameter {i}": tensor.detach().float().numpy() for i, tensor in enumerate(tensors)}
            if difference := first_difference(found, _of_core(rule, dtype)):
                raise Failure(
                    f"{shown(rule)} over torch's {dtype} tensors has other bits than over arrays: {difference}."
                )
    return "fusedopt.torch gives the core's bits, in float32 and bfloat16"


def _of_core(rule: Rule, dtype: str) -> dict[str, Array]:
    """The parameters after the same steps over arrays, in float32, which holds them exactly."""
    parameters = [Parameter(array.astype(dtype)) for array in _arrays(0)]
    optimizer = optimizer_class(type(rule))(parameters, **options_of(rule))
    for seed in (10, 20, 30):
        for parameter, gradient in zip(parameters, _arrays(seed), strict=True):
            parameter.grad = gradient.astype(dtype)
        optimizer.step()
    return {f"parameter {i}": np.asarray(p.data, np.float32) for i, p in enumerate(parameters)}
