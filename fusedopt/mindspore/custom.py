"""Optimizers and schedules in MindSpore's form, a method `construct`: they run as they are written, on arrays."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

import fusedopt.parameter
from fusedopt.backends import backend_of
from fusedopt.layout import on_device_of
from fusedopt.mindspore.arguments import ABOVE_ZERO, a_decay, a_number, a_rate
from fusedopt.mindspore.groups import grouped, not_decayed
from fusedopt.schedules import mindspore as schedules
from fusedopt.schedules.options import checked_step


class Cell(ABC):
    """What MindSpore calls by `construct`: a subclass has that method, and its instances are called."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def construct(self, *inputs: Any) -> Any:
        """What the call returns."""

    def __call__(self, *inputs: Any) -> Any:
        return self.construct(*inputs)


class LearningRateSchedule(Cell):
    """Base class of schedules of one's own: `construct(global_step)` returns the value of a step, counted from 0."""


LearningRateSchedule.register(schedules.LearningRateSchedule)  # those that are here have their equations as `value`


class Parameter(fusedopt.parameter.Parameter):
    """A `fusedopt.Parameter` that computes like its array, as MindSpore's do: `parameter * 0.9 + gradient`."""

    __slots__ = ()
    # None, as NumPy's protocol has it: `array * parameter` is left to `__rmul__` here, by NumPy and by CuPy.
    __array_ufunc__ = None  # type: ignore[assignment]  # the base has a method

    def __neg__(self) -> Any:
        return -self.data

    def __getitem__(self, key: Any) -> Any:
        return self.data[key]


def _forward(operation: Callable[[Any, Any], Any]) -> Callable[[Parameter, Any], Any]:
    return lambda self, other: operation(self.data, value_of(other))


def _reflected(operation: Callable[[Any, Any], Any]) -> Callable[[Parameter, Any], Any]:
    return lambda self, other: operation(value_of(other), self.data)


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Parameter, f"__{_name}__", _forward(getattr(operator, _name)))
    setattr(Parameter, f"__r{_name}__", _reflected(getattr(operator, _name)))


def value_of(value: Any) -> Any:
    """The array of a parameter; anything else as it is."""
    return value.data if isinstance(value, fusedopt.parameter.Parameter) else value


class ParameterTuple(tuple[Parameter, ...]):
    """Parameters; `clone` makes states of their shapes."""

    def clone(self, prefix: str, init: Any = "same") -> ParameterTuple:
        """New Parameters named `prefix.name`: copies, or full of "zeros", "ones" or a number."""
        return ParameterTuple(_cloned(parameter, prefix, init) for parameter in self)


def _cloned(parameter: Parameter, prefix: str, init: Any) -> Parameter:
    with on_device_of(parameter.data):
        data = parameter.data.copy()
        if init != "same":
            data[...] = {"zeros": 0, "ones": 1}.get(init, init)
    return Parameter(data, f"{prefix}.{parameter.name}", parameter.requires_grad)


class Optimizer(Cell):
    """Base class of optimizers in MindSpore's form. Those of this module are kernels; a subclass is array code, as slow
    as it is written: `fusedopt.rules.Rule` is the form that becomes a kernel.

        class Plain(Optimizer):
            def construct(self, gradients):
                lr = self.get_lr()
                for parameter, gradient in zip(self.parameters, self.decay_weight(gradients)):
                    ops.assign(parameter, parameter - lr * gradient)
                return True

    Called with a tuple of gradients, or by `step()` with those that the parameters have; the step is counted when
    `construct` has returned. (MindSpore's `get_lr` counts it, so that a dynamic decay after it is a step ahead.)

    Args:
        learning_rate: A number, a list with one for each step, or a function of the step.
        parameters: Parameters, or dicts with "params", "lr", "weight_decay" and "grad_centralization".
        weight_decay: A number or a function of the step, for `decay_weight`.
        loss_scale: What `scale_grad` divides gradients by.

    Attributes:
        parameters: A `ParameterTuple`, in the order in which gradients are given.
        global_step: The number of steps taken.

    Source: `mindspore.nn.Optimizer`.
    """

    takes_rows: ClassVar[bool] = False  # no SparseGradient
    filters_names: ClassVar[bool] = True  # parameters without groups are not decayed where named beta or gamma

    def __init__(self, learning_rate: Any, parameters: Any, weight_decay: Any = 0.0, loss_scale: Any = 1.0) -> None:
        super().__init__()
        name = type(self).__name__
        rate, decay = a_rate(f"{name}: learning_rate", learning_rate), a_decay(f"{name}: weight_decay", weight_decay)
        self.loss_scale = a_number(f"{name}: loss_scale", loss_scale, ABOVE_ZERO)
        given = grouped(parameters, False, name)
        self.is_group, self.is_group_lr, self.global_step = given.are_groups, given.own_rates, 0
        places = {id(p): entry for entry in given.entries for p in entry["params"]}
        for parameter in given.order:
            if parameter.owner is not None:
                raise ValueError(f"{parameter.described} belongs to another optimizer; make a new Parameter of a copy.")
        for parameter in given.order:
            parameter.owner = self
        self._given = given.order
        self.parameters = ParameterTuple(map(_computing, given.order))
        entries = [places[id(parameter)] for parameter in given.order]
        self._learning_rate = rate
        self._rates = [entry.get("lr", rate) for entry in entries]
        filters = self.filters_names and not given.are_groups
        self._decays = [
            0.0 if filters and not_decayed(p.name) else entry.get("weight_decay", decay)
            for p, entry in zip(given.order, entries)
        ]
        self._centralized = [entry.get("grad_centralization", False) for entry in entries]

    def __call__(self, *inputs: Any) -> Any:
        """Take a step with these gradients, and return what `construct` does."""
        (gradients,) = inputs
        if len(gradients) != len(self.parameters):
            raise ValueError(
                f"{type(self).__name__} has {len(self.parameters)} parameters and was called with {len(gradients)} "
                f"gradients; give one for each, in the order of its parameters."
            )
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.check_gradient(gradient)
        result = self.construct(tuple(gradients))
        self.global_step += 1
        return result

    def step(self) -> Any:
        """Take a step with the gradients that the parameters have; none of them may lack one."""
        for parameter in self._given:
            if parameter.grad is None:
                raise ValueError(f"{parameter.described} has no gradient; construct needs one for each parameter.")
        return self(tuple(parameter.grad for parameter in self._given))

    def clear_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._given:
            parameter.grad = None

    def get_lr(self) -> Any:
        """The learning rate of this step; where groups have their own, a tuple with each parameter's."""
        if self.is_group_lr:
            return tuple(at_step(rate, self.global_step) for rate in self._rates)
        return at_step(self._learning_rate, self.global_step)

    def get_weight_decay(self) -> tuple[float, ...]:
        """The weight decay of this step, for each parameter."""
        return tuple(at_step(decay, self.global_step) for decay in self._decays)

    def decay_weight(self, gradients: Sequence[Any]) -> tuple[Any, ...]:
        """Gradients plus decay times parameter, and times loss_scale, which `scale_grad` takes out again."""
        decays = [decay * self.loss_scale for decay in self.get_weight_decay()]
        return tuple(_decayed(g, p, d) if d else g for g, p, d in zip(gradients, self.parameters, decays))

    def gradients_centralization(self, gradients: Sequence[Any]) -> tuple[Any, ...]:
        """Gradients without their mean over all axes but the first, in the groups that ask for it."""
        return tuple(
            g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True) if centralized and g.ndim > 1 else g
            for g, centralized in zip(gradients, self._centralized)
        )

    def scale_grad(self, gradients: Sequence[Any]) -> tuple[Any, ...]:
        """Gradients divided by loss_scale."""
        return tuple(gradients) if self.loss_scale == 1 else tuple(unscaled(g, self.loss_scale) for g in gradients)

    def state_dict(self) -> dict[str, Any]:
        """The step, and copies of all Parameters that the subclass has made, by name, on the host: attributes, and what
        is in their tuples, lists and dicts. The second of a name is `name.1`."""
        return {"global_step": self.global_step} | {
            name: backend_of(parameter.data).host(parameter.data) for name, parameter in self._states()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy what `state_dict` returned into the Parameters that are there; all is checked before."""
        states = dict(self._states())
        if set(state_dict) != {"global_step", *states}:
            raise KeyError(f"the state dict has {', '.join(state_dict)}; needed are global_step, {', '.join(states)}.")
        loaded = {name: _loaded(name, parameter, state_dict[name]) for name, parameter in states.items()}
        step = checked_step(state_dict["global_step"], "global_step")
        for name, parameter in states.items():
            with on_device_of(parameter.data):
                parameter.data[...] = loaded[name]
        self.global_step = step

    def _states(self) -> Iterator[tuple[str, Parameter]]:
        """Each Parameter of the subclass's own once, with a name that no other has."""
        seen = {id(parameter) for parameter in (*self.parameters, *self._given)}
        counts = {"global_step": 0}
        for item in _parameters_in(vars(self)):
            if id(item) in seen:
                continue
            seen.add(id(item))
            name = unique = str(item.name)
            while unique in counts:
                counts[name] += 1
                unique = f"{name}.{counts[name]}"
            counts[unique] = 0
            yield unique, item

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for computing, given in zip(self.parameters, self._given):
            given.owner = self
            if computing is not given:  # each was copied with its array; they have one again
                computing.__init__(given.data, given.name, given.requires_grad)  # type: ignore[misc]  # the same object


def real_of(array: Any) -> Any:
    """What arrays and parameters are computed in: half precision ends at 65,504, or has 8 bits."""
    return np.float64 if array.dtype == np.float64 else np.float32


def unscaled(gradient: Any, scale: float) -> Any:
    """A gradient divided by a scale, rounded once."""
    real = real_of(gradient)
    return (gradient.astype(real) / real(scale)).astype(gradient.dtype)


def _decayed(gradient: Any, parameter: Parameter, decay: float) -> Any:
    real = real_of(gradient)
    return (gradient.astype(real) + parameter.data.astype(real) * real(decay)).astype(gradient.dtype)


def _loaded(name: str, parameter: Parameter, value: Any) -> Any:
    """A saved array where the parameter is."""
    if np.shape(value) != parameter.shape:
        raise ValueError(f"{name} has shape {np.shape(value)} and not {parameter.shape}.")
    try:
        host = np.asarray(value, parameter.dtype)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of {parameter.dtype}, got {value!r}.") from None
    with on_device_of(parameter.data):
        return backend_of(parameter.data).asarray(host)


def _parameters_in(value: Any) -> Iterator[Parameter]:
    """A Parameter, or those of a tuple, a list or a dict, also of such in it."""
    if isinstance(value, Parameter):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _parameters_in(item)


def at_step(value: Any, step: int) -> Any:
    """A number, a list's item, or a function's value of a step."""
    if callable(value):
        return float(value(step))
    if not isinstance(value, list):
        return value
    if step >= len(value):
        raise ValueError(f"the list of learning rates has {len(value)} values, and none for step {step}; give more.")
    return value[step]


def _computing(parameter: fusedopt.parameter.Parameter) -> Parameter:
    """The parameter, or one that computes over the same array."""
    if isinstance(parameter, Parameter):
        return parameter
    return Parameter(parameter.data, parameter.name, parameter.requires_grad)
