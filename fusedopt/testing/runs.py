"""Some steps of a rule: as the plain function that it is, and on a backend."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  # makes "bfloat16" a name that NumPy knows
import numpy as np

from fusedopt.backends import Backend
from fusedopt.backends.sums import spread_means, whole_sum
from fusedopt.plain import given
from fusedopt.rules.rule import Rule, Values
from fusedopt.single_step import execute
from fusedopt.testing.subject import Array


class Plain:
    """A parameter updated by calling its rule's functions on whole arrays: what every backend equals to the bit.

    Halves are widened before the update and rounded once after it.

    Attributes:
        parameter, states, scalar_state, step: As the steps so far have left them.
    """

    def __init__(self, rule: Rule, parameter: Array) -> None:
        self.rule, self.parameter, self.step = rule.form(parameter.shape), parameter.copy(), 0
        self.states = {state.name: np.full_like(parameter, rule.initial(state)) for state in rule.states()}
        self.scalar_state = {name: np.float64(value) for name, value in rule.scalar_state.items()}
        self.real = np.dtype(np.float64 if parameter.dtype == np.float64 else np.float32)

    def update(self, gradient: Array) -> None:
        """One step.

        Raises:
            TypeError: The rule computes in another dtype than it is given.
        """
        self.step += 1
        with np.errstate(all="ignore"):
            s = Values(**{name: array.astype(self.real) for name, array in self.states.items()})
            p, g = self.parameter.astype(self.real), gradient.astype(self.real)
            g, c, after = given(self.rule, self.step, self.scalar_state, p, g, s, whole_sum, spread_means)
            self.scalar_state |= after
            parameter, new = self.rule.update(p, g, s, c)
            self.parameter = self._stored("the parameter", parameter)
            self.states = {name: self._stored(name, getattr(new, name)) for name in self.states}

    def _stored(self, what: str, value: Any) -> Array:
        dtype = getattr(value, "dtype", self.real)
        if dtype != self.real:
            raise TypeError(
                f"{type(self.rule).__name__}.update computes {what} in {dtype} from arrays of {self.real}; write "
                f"constants as Python numbers, whose type follows the parameter's."
            )
        return np.broadcast_to(np.asarray(value, self.real), self.parameter.shape).astype(self.parameter.dtype)

    def after(self, gradients: Iterable[Array]) -> Plain:
        """A copy of this, some steps later."""
        later = copy.deepcopy(self)
        for gradient in gradients:
            later.update(gradient)
        return later

    @property
    def values(self) -> dict[str, Any]:
        """Parameter, states and scalar states by name."""
        return {"p": self.parameter, **self.states, **self.scalar_state}


def on_backend(backend: Backend, rule: Rule, start: Array, gradients: Sequence[Array]) -> dict[str, Any]:
    """`Plain.values` after a step for each gradient, as a backend has them."""
    p = backend.asarray(start.copy())
    arrays = {s.name: backend.asarray(np.full_like(start, rule.initial(s))) for s in rule.states()}
    counters = backend.asarray(np.array([0.0, *rule.scalar_state.values(), 0.0]))
    for gradient in gradients:
        execute(backend, rule, p, backend.asarray(gradient), list(arrays.values()), counters)
    scalars = dict(zip(rule.scalar_state, backend.host(counters)[1:]))
    return {"p": backend.host(p), **{name: backend.host(array) for name, array in arrays.items()}, **scalars}
