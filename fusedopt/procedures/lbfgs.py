"""LBFGS over NumPy and CuPy arrays: its parameters as one vector, its closure, its state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fusedopt.backends import module_of
from fusedopt.kept_bytes import KeptBytes
from fusedopt.layout import device_of
from fusedopt.optimizer import Optimizer
from fusedopt.parameter import Parameter
from fusedopt.procedures.quasi_newton import History, checked_loss, first_entry, history_of, minimize
from fusedopt.rules.lbfgs import LBFGS


def real_of(parameters: Sequence[Parameter]) -> type[np.floating[Any]]:
    """What one vector of all parameters is computed in."""
    return np.float64 if any(parameter.dtype == np.float64 for parameter in parameters) else np.float32


class FlatParameters:
    """Parameters over NumPy or CuPy arrays, and a closure, as an objective.

    Attributes:
        value: What the closure returned at first.
    """

    def __init__(self, parameters: Sequence[Parameter], closure: Callable[[], Any]) -> None:
        self._parameters, self._closure, self._calls = parameters, closure, 0
        self._xp = module_of(parameters[0].data) if parameters else np
        self._real = real_of(parameters)
        self.value: Any = None

    def evaluate(self) -> tuple[float, Any]:
        value = self._closure()
        self.value, self._calls = value if not self._calls else self.value, self._calls + 1
        parts = [
            p.grad.reshape(-1).astype(self._real)
            if p.grad is not None and p.requires_grad
            else self._xp.zeros(p.size, self._real)
            for p in self._parameters
        ]
        return checked_loss(value), self._xp.concatenate(parts or [self._xp.zeros(0, self._real)])

    @np.errstate(all="ignore")
    def move(self, t: float, direction: Any) -> None:
        start = 0
        for p in self._parameters:
            part = direction[start : start + p.size].reshape(p.shape)
            start += p.size
            if p.requires_grad:
                p.data[...] = (p.data.astype(self._real) + t * part).astype(p.dtype)

    def position(self) -> list[Any]:
        return [p.data.copy() for p in self._parameters]

    def put_back(self, position: list[Any]) -> None:
        for p, data in zip(self._parameters, position):
            p.data[...] = data


class QuasiNewton(Optimizer):
    """The base of LBFGS over NumPy and CuPy arrays."""

    def _begin(self) -> None:
        super()._begin()
        self._history = History()

    def _add(self, entries: list[dict[str, Any]]) -> None:
        if len(self._groups) + len(entries) != 1:
            raise ValueError("LBFGS has one param group alone: its steps are those of one vector; give one list.")
        devices = {device_of(parameter.data) for parameter in entries[0]["params"]}
        if len(devices) > 1:
            raise ValueError(f"LBFGS: all parameters must be on one device, got {', '.join(sorted(devices))}.")
        super()._add(entries)

    def step(self, closure: Callable[[], Any] | None = None, *, grad_scale: Any = None, found_inf: Any = None) -> Any:
        """Minimize, with up to `max_iter` iterations.

        Args:
            closure: Computes the loss, which it returns, and the gradients; it is called several times.
            grad_scale, found_inf: Not for LBFGS: losses and gradients belong together.

        Returns:
            The loss that the closure returned at first.

        Raises:
            TypeError: There is no closure, or it returns no loss; or there is a scale.
        """
        if closure is None or not callable(closure):
            raise TypeError(f"LBFGS.step takes a closure that computes loss and gradients, got {closure!r}.")
        if grad_scale is not None or found_inf is not None:
            raise TypeError("LBFGS.step takes no grad_scale and no found_inf; let the closure return unscaled ones.")
        flat = FlatParameters(self._params, closure)
        self._follow_schedules()
        with self._here():
            minimize(flat, self._history, self._options)
        self._count_step()
        return flat.value

    @property
    def _params(self) -> tuple[Parameter, ...]:
        params: tuple[Parameter, ...] = self._groups[0]["params"]
        return params

    @property
    def _options(self) -> LBFGS:
        rule = self._groups[0].rule
        assert isinstance(rule, LBFGS)
        return rule

    def _here(self) -> AbstractContextManager[Any]:
        return next((arena.memory.here() for arena in self.arenas()), contextlib.nullcontext())

    @property
    def state(self) -> Mapping[Parameter, dict[str, Any]]:
        """The history, under the first parameter, as torch has it; empty before the first step, or without any."""
        entry = self._history.entry(self._options.history_size)
        return {self._params[0]: entry} if entry and self._params else {}

    def memory(self) -> KeptBytes:
        """Bytes that are kept once the history has all its pairs, by kind."""
        count, itemsize = sum(p.size for p in self._params), np.dtype(real_of(self._params)).itemsize
        return super().memory() + KeptBytes(states=History.full_bytes(count, itemsize, self._options.history_size))

    def state_dict(self) -> dict[str, Any]:
        """A copy of history and hyperparameters: NumPy arrays on the host, in torch's structure."""
        saved = super().state_dict()
        saved["state"] = {
            number: {name: self._on_host(value) for name, value in entry.items()}
            for number, entry in enumerate(self.state.values())  # of the first parameter alone
        }
        return saved

    def _on_host(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._on_host(item) for item in value]
        host: Callable[[Any], Any] = next(self.arenas()).memory.host
        return host(value) if hasattr(value, "dtype") else value

    def load_state_dict(  # type: ignore[override]  # its state has one form: there is nothing to convert
        self, state_dict: Mapping[str, Any]
    ) -> None:
        """Take over a state dict of this library, or of torch with its tensors as NumPy arrays, checked and copied.

        Raises:
            ValueError, TypeError, KeyError: As every optimizer's; nothing has changed then.
        """
        history = history_of(first_entry(state_dict), "the state of LBFGS", self._vector)
        super().load_state_dict({**state_dict, "state": {}})
        self._history = history

    def _copied_state(self) -> dict[str, Any]:
        return QuasiNewton.state_dict(self)

    def _take_copied(self, state: dict[str, Any]) -> None:
        QuasiNewton.load_state_dict(self, state)

    def _vector(self, what: str, value: Any) -> Any:
        size, memory = sum(p.size for p in self._params), next(self.arenas()).memory
        if not isinstance(getattr(value, "dtype", None), np.dtype) or value.shape != (size,):
            got = f"an array of shape {value.shape}" if hasattr(value, "shape") else type(value).__name__
            raise ValueError(f"{what} must be an array of shape ({size},), all parameters in a row, got {got}.")
        with memory.here():
            return memory.asarray(np.array(value.get() if hasattr(value, "get") else value, real_of(self._params)))
