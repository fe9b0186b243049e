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
        self._rates = [entry.get("lr", rate) for entry in entries]
        self._decays = [
            0.0 if not given.are_groups and not_decayed(p.name) else entry.get("weight_decay", decay)
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
        rates = [at_step(rate, self.global_step) for rate in self._rates]
        return tuple(rates) if self.is_group_lr else rates[0]

    def get_weight_decay(self) -> tuple[float, ...]:
        """The weight decay of this step, for each parameter."""
        return tuple(at_step(decay, self.global_step) for decay in self._decays)

    def decay_weight(self, gradients: Sequence[Any]) -> tuple[Any, ...]:
        """Gradients plus decay times parameter, and times loss_scale, which `scale_grad` takes out again."""
        decays = [decay * self.loss_scale for decay in self.get_weight_decay()]
        return tuple(g + p.data * d if d else g for g, p, d in zip(gradients, self.parameters, decays))

    def gradients_centralization(self, gradients: Sequence[Any]) -> tuple[Any, ...]:
        """Gradients without their mean over all axes but the first, in the groups that ask for it."""
        return tuple(
            g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True) if centralized and g.ndim > 1 else g
            for g, centralized in zip(gradients, self._centralized)
        )

    def scale_grad(self, gradients: Sequence[Any]) -> tuple[Any, ...]:
        """Gradients divided by loss_scale."""
        return tuple(gradients) if self.loss_scale == 1 else tuple(g / self.loss_scale for g in gradients)

    def state_dict(self) -> dict[str, Any]:
        """The step, and copies of all Parameters that the subclass has made, by name, on the host."""
        return {"global_step": self.global_step} | {
            name: backend_of(parameter.data).host(parameter.data) for name, parameter in self._states()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy what `state_dict` returned into the Parameters that are there; all is checked before."""
        states = dict(self._states())
        if set(state_dict) != {"global_step", *states}:
            raise KeyError(f"the state dict has {', '.join(state_dict)}; needed are global_step, {', '.join(states)}.")
        for name, parameter in states.items():
            if np.shape(state_dict[name]) != parameter.shape:
                raise ValueError(f"{name} has shape {np.shape(state_dict[name])} and not {parameter.shape}.")
        for name, parameter in states.items():
            with on_device_of(parameter.data):
                parameter.data[...] = backend_of(parameter.data).asarray(np.asarray(state_dict[name], parameter.dtype))
        self.global_step = int(state_dict["global_step"])

    def _states(self) -> Iterator[tuple[str, Parameter]]:
        own = [value for key, value in vars(self).items() if key != "parameters"]
        for value in own:
            for item in _parameters_in(value):
                yield str(item.name), item


def _parameters_in(value: Any) -> Iterator[Parameter]:
    """A Parameter, or those of a tuple, also of tuples."""
    if isinstance(value, Parameter):
        yield value
    elif isinstance(value, tuple):
        for item in value:
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
