"""Adafactor: row and column means of squares, and norms of whole tensors, before any element can move.

Nothing waits for the device: means, norms and steps over CuPy arrays stay arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from fusedopt.arena import Arena, ArenaSpan
from fusedopt.backends import Backend, Steps, module_of
from fusedopt.conversion import CONVERT, choice_for
from fusedopt.kept_bytes import KeptBytes
from fusedopt.parameter import DTYPES, Parameter
from fusedopt.procedures.factored_moments import (
    AdafactorPlan,
    Moment,
    Moments,
    checked_moments,
    entries_in,
    learned,
    moment_bytes,
    real_of,
    without_moments,
)
from fusedopt.procedures.launches import ArenaTask, arena_tasks
from fusedopt.procedures.procedure import Procedure
from fusedopt.rules.adafactor import Adafactor
from fusedopt.state_dict import LiveState, check_array


def _moments_of(kept: dict[Parameter, Moments], arena: Arena, index: int) -> Moments:
    """The moments that are kept for a parameter; zeros at first."""
    parameter = arena.parameters[index]
    if parameter not in kept:
        shapes = Adafactor.moment_shapes(parameter.shape)
        kept[parameter] = {
            name: arena.memory.zeros(math.prod(shape), _dtype_of(arena, name)).reshape(shape)
            for name, shape in shapes.items()
        }
    return kept[parameter]


def _dtype_of(arena: Arena, name: str) -> np.dtype[Any]:
    return np.dtype(arena.group.rule.state_dtype_of(name) or arena.dtype)


def _epsilon(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]  # which NumPy's has not of bfloat16


class _Plan(AdafactorPlan[ArenaTask]):
    """Over arrays.

    Args:
        kept: The moments of parameters.
    """

    def __init__(self, backend: Backend, spans: Sequence[ArenaSpan], kept: dict[Parameter, Moments]) -> None:
        self._kept = kept
        self._computed: dict[Parameter, Moments] = {}
        super().__init__(backend, arena_tasks(backend, spans))

    def moments(self, task: ArenaTask) -> list[Moment]:
        arena, index = task.span.arena, task.span.first
        kept, memory = _moments_of(self._kept, arena, index), arena.memory
        computed = {
            name: memory.zeros(moment.size, np.dtype(real_of(moment.dtype.name))).reshape(moment.shape)
            for name, moment in kept.items()
        }
        self._computed[arena.parameters[index]] = computed
        return [
            Moment(moment.size, moment.dtype.name, moment.reshape(-1), computed[name].reshape(-1))
            for name, moment in kept.items()
        ]

    @np.errstate(all="ignore")
    def compute(self, task: ArenaTask) -> None:
        rule, parameter, real = task.span.group.rule, task.parameter, task.update.dtype
        assert isinstance(rule, Adafactor)
        if not parameter.size:
            return
        xp, step = module_of(task.update), task.span.counters[0, 0] + 1
        update, moments = learned(
            xp,
            task.data.astype(real, copy=False),
            task.gradient.astype(real, copy=False),
            {name: moment.astype(real, copy=False) for name, moment in self._kept[parameter].items()},
            rule,
            (step**rule.beta2_decay).astype(real),
            xp.minimum(step**-0.5, rule.lr).astype(real),
            _epsilon(parameter.dtype) if rule.eps[0] is None else rule.eps[0],
        )
        task.update[...] = update.reshape(-1)
        for name, moment in moments.items():
            self._computed[parameter][name][...] = moment


class _State(LiveState):
    """Steps, and moments beside them."""

    def __init__(self, arenas: Sequence[Arena], kept: dict[Parameter, Moments]) -> None:
        super().__init__(iter(arenas))
        self._kept = kept

    def __getitem__(self, parameter: Parameter) -> dict[str, Any]:
        entry = super().__getitem__(parameter)
        return entry | _moments_of(self._kept, *self._places[parameter]) if entry else entry


class Factoring(Procedure):
    """The base of Adafactor over NumPy and CuPy arrays."""

    def _begin(self) -> None:
        super()._begin()
        self._moments: dict[Parameter, Moments] = {}

    def _plan(self, backend: Backend, spans: Sequence[ArenaSpan]) -> Steps:
        return _Plan(backend, spans, self._moments)

    @property
    def state(self) -> Mapping[Parameter, dict[str, Any]]:
        """For each parameter that has had a step: `step` (0-d float64) and its second moments, as live views."""
        return _State(list(self.arenas()), self._moments)

    def memory(self) -> KeptBytes:
        """Bytes that are kept once every parameter that requires a gradient has stepped, by kind."""
        trained = ((group.rule, p) for group in self._groups for p in group["params"] if p.requires_grad)
        states = sum(moment_bytes(rule, p.shape, p.dtype.name) for rule, p in trained)
        return super().memory() + KeptBytes(states=states)

    def state_dict(self) -> dict[str, Any]:
        """A copy of state and hyperparameters: NumPy arrays on the host, in torch's structure."""
        saved = super().state_dict()
        hosts = {p: arena.memory.host for arena in self.arenas() for p in arena.parameters}
        state = self.state
        for number, parameter in enumerate(self.parameters()):
            if number in saved["state"]:
                moments = {name: state[parameter][name] for name in Adafactor.moment_shapes(parameter.shape)}
                saved["state"][number] |= {name: hosts[parameter](moment) for name, moment in moments.items()}
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any], *, convert: bool = False) -> None:
        """Take over a state dict of this library, or of torch with its tensors as NumPy arrays, checked and copied.

        Args:
            convert: Whether what was kept in another way is converted.

        Raises:
            ValueError, TypeError, KeyError: As every optimizer's; nothing has changed then.
        """
        arenas = {p: arena for arena in self.arenas() for p in arena.parameters}
        moments = {
            p: checked_moments(entry, p.shape, f"the state of {p.described}", partial(_copied, arenas[p], convert))
            for p, entry in entries_in(state_dict, self.parameters())
        }
        super().load_state_dict(without_moments(state_dict), convert=convert)
        self._moments = moments

    def _copied_state(self) -> dict[str, Any]:
        return Factoring.state_dict(self)

    def _take_copied(self, state: dict[str, Any]) -> None:
        Factoring.load_state_dict(self, state)


def _copied(arena: Arena, convert: bool, what: str, name: str, value: Any) -> Any:
    """A saved moment as it is kept here."""
    check_array(what, value)
    dtype = _dtype_of(arena, name)
    if value.dtype != dtype and (not convert or value.dtype.name not in DTYPES):
        raise TypeError(
            f"{what} has dtype {value.dtype} and this optimizer keeps {dtype}; nothing is cast silently: build the "
            f"optimizer with {choice_for(name, value.dtype.name)}, or convert it: {CONVERT}."
        )
    host = np.array(value.get() if hasattr(value, "get") else value)
    with arena.memory.here():
        return arena.memory.asarray(host.astype(dtype))
