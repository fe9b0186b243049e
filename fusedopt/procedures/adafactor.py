"""Adafactor: row and column means of squares, and norms of whole tensors, before any element can move.

Nothing waits for the device: means, norms and steps over CuPy arrays stay arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from fusedopt.backends import Backend, Steps, module_of
from fusedopt.layout import Arena, ArenaSpan
from fusedopt.parameter import Parameter
from fusedopt.procedures.procedure import Procedure, SpanPlan
from fusedopt.rules.adafactor import Adafactor
from fusedopt.state_dict import LiveState, checked_array

Moments = dict[str, Any]
NAMES = {*Adafactor.moment_shapes((1,)), *Adafactor.moment_shapes((1, 1))}


def stepped(
    xp: Any, p: Any, g: Any, moments: Moments, rule: Adafactor, weight: Any, rate: Any, eps: float
) -> tuple[Any, Moments]:
    """The parameter and its second moments after a step, in new arrays.

    Args:
        xp: The module of the arrays: numpy, cupy or torch.
        p, g, moments: Not empty, of the dtype that is computed in.
        weight, rate: Of this step: what a square counts in the moments, and the bound of lr. Numbers, or arrays of no
            axes and of that dtype.
        eps: What `rule.eps[0]` is for this parameter.
    """
    g = -g if rule.maximize else g
    moments = _learned(g, moments, weight)
    u = g / _second_moment(moments, eps).clip(eps * eps, None) ** 0.5
    length = rate * _larger(xp, _rms(xp, p), rule.eps[1])
    u *= length / _larger(xp, _rms(xp, u) / rule.d, 1.0)
    return p * (1 - rule.lr * rule.weight_decay) - u, moments


def _learned(g: Any, moments: Moments, weight: Any) -> Moments:
    square = g * g
    if "variance" in moments:
        means = {"variance": square}
    else:
        means = {name: square.mean(axis=axis, keepdims=True) for name, axis in (("row_var", -1), ("col_var", -2))}
    return {name: moments[name] + weight * (mean - moments[name]) for name, mean in means.items()}


def _second_moment(moments: Moments, eps: float) -> Any:
    if "variance" in moments:
        return moments["variance"]
    row = moments["row_var"]
    return row / row.mean(axis=-2, keepdims=True).clip(eps, None) * moments["col_var"]


def _rms(xp: Any, x: Any) -> Any:
    return xp.linalg.norm(x) / math.sqrt(math.prod(x.shape))


def _larger(xp: Any, x: Any, least: float) -> Any:
    """The larger one; of NaN the other, as in torch: an element that is NaN spoils no others of a vector."""
    return xp.where(x > least, x, least)


def checked_moments(
    entry: Mapping[str, Any], shape: tuple[int, ...], what: str, array: Callable[[str, Any], Any]
) -> Moments:
    """The second moments in what a state dict has for a parameter of this shape.

    Args:
        what: Whose it is, for messages.
        array: (what it is, value) -> one of its own, or an error where it is no array that fits.

    Raises:
        KeyError: Something is missing.
        ValueError: Something is unknown, or has another shape.
    """
    shapes = Adafactor.moment_shapes(shape)
    for name in entry:
        if name not in ("step", *shapes):
            raise ValueError(f"{what} has {name!r}; Adafactor keeps step, {', '.join(shapes)} of this shape.")
    for name in ("step", *shapes):
        if name not in entry:
            raise KeyError(f"{what} lacks {name!r}; it has {', '.join(map(repr, entry))}.")
    for name, expected in shapes.items():
        found = getattr(entry[name], "shape", None)
        if found is not None and tuple(found) != expected:
            raise ValueError(f"{what}: {name} has shape {tuple(found)} and must have {expected}.")
    return {name: array(f"{what}: {name}", entry[name]) for name in shapes}


def entries_in(saved: Any, parameters: Iterable[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Each parameter with state and what a state dict has for it; none where it is no state dict, refused later."""
    try:
        ids = [number for group in saved["param_groups"] for number in group["params"]]
        entries = [saved["state"].get(number, {}) for number in ids]
        kept = [{name: value for name, value in entry.items() if value is not None} for entry in entries]
    except (AttributeError, KeyError, TypeError):
        return []
    return [(parameter, entry) for parameter, entry in zip(parameters, kept) if entry]


def without_moments(saved: Any) -> Any:
    """A state dict whose state is the steps alone; itself where it is none."""
    try:
        state = {
            number: {name: value for name, value in entry.items() if name not in NAMES}
            for number, entry in saved["state"].items()
        }
    except (AttributeError, KeyError, TypeError):
        return saved
    return {**saved, "state": state}


def _moments_of(kept: dict[Parameter, Moments], arena: Arena, index: int) -> Moments:
    """The moments that are kept for a parameter; zeros at first."""
    parameter = arena.parameters[index]
    if parameter not in kept:
        shapes = Adafactor.moment_shapes(parameter.shape)
        kept[parameter] = {
            name: arena.memory.zeros(math.prod(shape), arena.dtype).reshape(shape) for name, shape in shapes.items()
        }
    return kept[parameter]


def _epsilon(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]  # which NumPy's has not of bfloat16


@np.errstate(all="ignore")
def _step_some(kept: dict[Parameter, Moments], arena: Arena, indices: range) -> None:
    rule = arena.group.rule
    assert isinstance(rule, Adafactor)
    xp, real = module_of(arena.data), np.float64 if arena.dtype == np.float64 else np.float32
    eps = _epsilon(arena.dtype) if rule.eps[0] is None else rule.eps[0]
    arena.counters[indices.start : indices.stop, 0] += 1
    for index in indices:
        moments, step = _moments_of(kept, arena, index), arena.counters[index, 0]
        if not arena.sizes[index]:
            continue
        parameter = arena.view(arena.data, index)
        p, new = stepped(
            xp,
            parameter.astype(real, copy=False),
            arena.view(arena.gradients, index).astype(real, copy=False),
            {name: moment.astype(real, copy=False) for name, moment in moments.items()},
            rule,
            (step**rule.beta2_decay).astype(real),
            xp.minimum(step**-0.5, rule.lr).astype(real),
            eps,
        )
        for name, moment in moments.items():
            moment[...] = new[name].astype(moment.dtype)
        parameter[...] = p.astype(parameter.dtype)


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
        return SpanPlan(spans, partial(_step_some, self._moments))

    @property
    def state(self) -> Mapping[Parameter, dict[str, Any]]:
        """For each parameter that has had a step: `step` (0-d float64) and its second moments, as live views."""
        return _State(list(self.arenas()), self._moments)

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

    def load_state_dict(  # type: ignore[override]  # its state has one form: there is nothing to convert
        self, state_dict: Mapping[str, Any]
    ) -> None:
        """Take over a state dict of this library, or of torch with its tensors as NumPy arrays, checked and copied.

        Raises:
            ValueError, TypeError, KeyError: As every optimizer's; nothing has changed then.
        """
        memories = {p: arena.memory for arena in self.arenas() for p in arena.parameters}
        moments = {
            p: checked_moments(entry, p.shape, f"the state of {p.described}", partial(_copied, memories[p], p.dtype))
            for p, entry in entries_in(state_dict, self.parameters())
        }
        super().load_state_dict(without_moments(state_dict))
        self._moments = moments

    def _copied_state(self) -> dict[str, Any]:
        return Factoring.state_dict(self)

    def _take_copied(self, state: dict[str, Any]) -> None:
        Factoring.load_state_dict(self, state)


def _copied(memory: Any, dtype: np.dtype[Any], what: str, value: Any) -> Any:
    array = checked_array(what, value, dtype)
    with memory.here():
        return memory.asarray(np.array(array.get() if hasattr(array, "get") else array))
