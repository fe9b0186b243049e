"""Optimizer in MegEngine's form: two methods over arrays, which run as they are written."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from fusedopt.backends import backend_of
from fusedopt.groups import groups_of
from fusedopt.layout import on_device_of
from fusedopt.megengine.state_dict import check_state_dict
from fusedopt.parameter import Parameter

Self = TypeVar("Self", bound="Optimizer")


class _Required:
    def __repr__(self) -> str:
        return "<required parameter>"


required: Any = _Required()  # a default that each group has to give


class Optimizer(ABC):
    """Base class of optimizers in MegEngine's form. Those of this module are kernels; a subclass is array code, as slow
    as it is written: `fusedopt.rules.Rule` is the form that becomes a kernel.

        class Plain(Optimizer):
            def __init__(self, params, lr=required):
                super().__init__(params, {"lr": lr})

            def _create_state(self, param_group):
                for param in param_group["params"]:
                    self._add_state(param, "step", 0.0)

            def _updates(self, param_group):
                for param in param_group["params"]:
                    if param.grad is not None:
                        self._state[param]["step"] += 1
                        param.data -= param_group["lr"] * param.grad

    Args:
        params: A Parameter, a dict with "params", or an iterable of one of these.
        defaults: Options of groups that have none of their own; `required`: each group has to.

    Attributes:
        param_groups: A list of dicts.

    Raises:
        TypeError: `params` holds something else.
        ValueError: No parameters, one of them twice, or a required option is missing.

    Source: `megengine.optimizer.Optimizer`.
    """

    takes_rows: ClassVar[bool] = False  # no SparseGradient

    def __init__(self, params: Any, defaults: Mapping[str, Any]) -> None:
        self._defaults = dict(defaults)
        self._state: dict[Parameter, dict[str, Any]] = {}
        self.param_groups: list[dict[str, Any]] = []
        self._add(groups_of(params))

    @abstractmethod
    def _create_state(self, param_group: dict[str, Any]) -> None:
        """Make the states of a new group's parameters with `_add_state`."""

    @abstractmethod
    def _updates(self, param_group: dict[str, Any]) -> None:
        """Update a group's parameters; `param.data -= ...` writes in place."""

    def _add_state(self, param: Parameter, name: str, value: Any = None, dtype: Any = np.float32) -> None:
        """Give a parameter a state: zeros of its shape, or a copy of a value, on its device."""
        of_parameter = self._state.setdefault(param, {})
        if name in of_parameter:
            raise ValueError(f"{param.described} has a state {name!r} already; give this one another name.")
        of_parameter[name] = _on_device(param, np.zeros(param.shape, dtype) if value is None else value, dtype)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a dict with "params"; its state is made now. (In MegEngine it has none, and its first step fails.)"""
        if not isinstance(param_group, Mapping):
            raise TypeError(f"add_param_group takes a dict with 'params', got {type(param_group).__name__}.")
        self._add(groups_of(param_group))

    def _add(self, entries: list[dict[str, Any]]) -> None:
        taken = {id(parameter) for parameter in self._parameters()}
        for number, entry in enumerate(entries, len(self.param_groups)):
            for name, default in self._defaults.items():
                if entry.setdefault(name, default) is required:
                    raise ValueError(f"param group {number} has no {name}, which is required; give it there or to all.")
            for parameter in entry["params"]:
                if id(parameter) in taken or parameter.owner is not None:
                    raise ValueError(f"{parameter.described} is in an optimizer already; give each once.")
                taken.add(id(parameter))
        before = len(self.param_groups)
        try:
            for entry in entries:
                entry["params"] = entry.pop("params")  # last, as MegEngine prints it
                for parameter in entry["params"]:
                    parameter.owner = self
                self.param_groups.append(entry)
                self._create_state(entry)
        except BaseException:
            self._remove(self.param_groups[before:])
            raise

    def _remove(self, groups: list[dict[str, Any]]) -> None:
        """Take the last groups out, whose states could not be made."""
        del self.param_groups[len(self.param_groups) - len(groups) :]
        for parameter in (parameter for group in groups for parameter in group["params"]):
            parameter.owner = None
            self._state.pop(parameter, None)

    def _parameters(self) -> Iterator[Parameter]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def step(self: Self) -> Self:
        """Update every group: `optimizer.step().clear_grad()`."""
        for group in self.param_groups:
            self._updates(group)
        return self

    def clear_grad(self: Self) -> Self:
        """Drop all gradients; backward passes add to those that are there."""
        for parameter in self._parameters():
            parameter.grad = None
        return self

    def zero_grad(self) -> None:
        """Fill the gradients that are there with zeros. Deprecated: `clear_grad`."""
        warn_of_zero_grad()
        for parameter in self._parameters():
            if parameter.grad is not None:
                with on_device_of(parameter.data):
                    parameter.grad[...] = 0

    def state_dict(self, keep_var: bool = False) -> dict[str, Any]:
        """Options and states; parameters are numbered over all groups in order.

        Args:
            keep_var: The states themselves, which later steps change, rather than NumPy copies.
        """
        numbers = {id(parameter): number for number, parameter in enumerate(self._parameters())}
        groups = [
            {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            | {"params": [numbers[id(parameter)] for parameter in group["params"]]}
            for group in self.param_groups
        ]
        state = {
            numbers[id(parameter)]: {
                name: value if keep_var else backend_of(parameter.data).host(value) for name, value in entry.items()
            }
            for parameter, entry in self._state.items()
        }
        return {"param_groups": groups, "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a state dict, its dtypes as they are; all is checked before anything changes.

        Raises:
            ValueError, KeyError: See `check_state_dict`; or another shape.
        """
        keys = [set(group) - {"params"} for group in self.param_groups]
        names = [[list(self._state.get(p, {})) for p in group["params"]] for group in self.param_groups]
        check_state_dict(state, keys, names)
        numbers = [number for entry in state["param_groups"] for number in entry["params"]]
        loaded = {
            parameter: {name: _loaded(parameter, own, name, state["state"][number]) for name, own in entry.items()}
            for number, parameter in zip(numbers, self._parameters())
            if (entry := self._state.get(parameter))
        }
        self._state.update(loaded)
        for group, entry in zip(self.param_groups, state["param_groups"]):
            group.update({key: copy.deepcopy(value) for key, value in entry.items() if key != "params"})


def _on_device(parameter: Parameter, value: Any, dtype: Any = None) -> Any:
    """A copy of a value where the parameter's data is."""
    if hasattr(value, "get"):  # a CuPy array
        return value.astype(dtype or value.dtype)
    return backend_of(parameter.data).asarray(np.array(value, dtype))


def _loaded(parameter: Parameter, own: Any, name: str, entry: Mapping[str, Any]) -> Any:
    if np.shape(entry[name]) != np.shape(own):
        raise ValueError(
            f"the state {name!r} of {parameter.described} has shape {np.shape(entry[name])} in the state dict and "
            f"{np.shape(own)} here."
        )
    return _on_device(parameter, entry[name])


def warn_of_zero_grad() -> None:
    """MegEngine's own warning, in the name of the line that called `zero_grad`."""
    warnings.warn("zero_grad is deprecated; use clear_grad.", DeprecationWarning, stacklevel=3)
