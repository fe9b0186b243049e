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
from fusedopt.conversion import CONVERT, choice_for
from fusedopt.layout import Arena, ArenaSpan
from fusedopt.parameter import DTYPES, Parameter
from fusedopt.procedures.launched_rules import Movement, Replacement
from fusedopt.procedures.launches import LaunchPlan, Tensor, TensorSpan, real_of
from fusedopt.procedures.procedure import Procedure
from fusedopt.rules.adafactor import MOMENTS, Adafactor
from fusedopt.state_dict import LiveState, check_array
from fusedopt.storage import BESIDE_PARAMETER, HALVES, Kept, storage

Moments = dict[str, Any]
BESIDE = frozenset(key for key, _ in BESIDE_PARAMETER.values())
# Random numbers for moments are those of parameters with these numbers, two for each: no optimizer has as many.
FIRST_MOMENT = 2**30


def learned(
    xp: Any, p: Any, g: Any, moments: Moments, rule: Adafactor, weight: Any, rate: Any, eps: float
) -> tuple[Any, Moments]:
    """The update of a step, which the parameter moves by after its decay, and the second moments, in new arrays.

    Args:
        xp: The module of the arrays: numpy, cupy or torch. Of p, the root mean square is taken.
        p, g, moments: Not empty, of the dtype that is computed in.
        weight, rate: Of this step: what a square counts in the moments, and the bound of lr. Numbers, or arrays of no
            axes and of that dtype.
        eps: What `rule.eps[0]` is for this parameter.
    """
    g = -g if rule.maximize else g
    moments = _averaged(g, moments, weight)
    u = g / _second_moment(moments, eps).clip(eps * eps, None) ** 0.5
    length = rate * _larger(xp, _rms(xp, p), rule.eps[1])
    u *= length / _larger(xp, _rms(xp, u) / rule.d, 1.0)
    return u, moments


def _averaged(g: Any, moments: Moments, weight: Any) -> Moments:
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
    entry: Mapping[str, Any], shape: tuple[int, ...], what: str, array: Callable[[str, str, Any], Any]
) -> Moments:
    """The second moments in what a state dict has for a parameter of this shape.

    Args:
        what: Whose it is, for messages.
        array: (what it is, its name, value) -> one of its own, or an error where it is no array that fits.

    Raises:
        KeyError: Something is missing.
        ValueError: Something is unknown, or has another shape.
    """
    shapes = Adafactor.moment_shapes(shape)
    for name in entry:
        if name not in ("step", *shapes, *BESIDE):
            raise ValueError(f"{what} has {name!r}; Adafactor keeps step, {', '.join(shapes)} of this shape.")
    for name in ("step", *shapes):
        if name not in entry:
            raise KeyError(f"{what} lacks {name!r}; it has {', '.join(map(repr, entry))}.")
    for name, expected in shapes.items():
        found = getattr(entry[name], "shape", None)
        if found is not None and tuple(found) != expected:
            raise ValueError(f"{what}: {name} has shape {tuple(found)} and must have {expected}.")
    return {name: array(f"{what}: {name}", name, entry[name]) for name in shapes}


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
            number: {name: value for name, value in entry.items() if name not in MOMENTS}
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
            name: arena.memory.zeros(math.prod(shape), _dtype_of(arena, name)).reshape(shape)
            for name, shape in shapes.items()
        }
    return kept[parameter]


def _dtype_of(arena: Arena, name: str) -> np.dtype[Any]:
    return np.dtype(arena.group.rule.state_dtype_of(name) or arena.dtype)


def _epsilon(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]  # which NumPy's has not of bfloat16


class _Plan(LaunchPlan):
    """Updates are made of whole tensors at once; a launch keeps the moments, and another moves the parameters.

    Args:
        kept: The moments of parameters.
    """

    def __init__(self, backend: Backend, spans: Sequence[ArenaSpan], kept: dict[Parameter, Moments]) -> None:
        self._kept = kept
        self._computed: dict[Parameter, Moments] = {}  # before they are kept
        super().__init__(backend, spans)

    def movement(self, rule: Adafactor) -> Movement:
        return Movement(rule.lr * rule.weight_decay, seed=rule.seed)

    def after(self, tensor: Tensor) -> list[TensorSpan]:
        arena, moments = tensor.arena, _moments_of(self._kept, tensor.arena, tensor.index)
        computed = {n: arena.memory.zeros(m.size, real_of(m.dtype)).reshape(m.shape) for n, m in moments.items()}
        self._computed[arena.parameters[tensor.index]] = computed
        group, stochastic = self.group(tensor, replacement), arena.group.rule.stochastic_rounding
        spans = []
        for place, (name, moment) in enumerate(moments.items(), FIRST_MOMENT + 2 * tensor.number):
            kept = Kept(moment.dtype.name, stochastic=stochastic and moment.dtype.name in HALVES)
            how, new = storage(kept, Kept(computed[name].dtype.name), ()), computed[name].reshape(-1)
            arrays = how, moment.reshape(-1), new, ()
            spans.append(TensorSpan(group, moment.size, moment.shape, *arrays, tensor.counters, place))
        return spans

    @np.errstate(all="ignore")
    def compute(self, tensor: Tensor) -> None:
        arena, parameter = tensor.arena, tensor.arena.parameters[tensor.index]
        rule, real = arena.group.rule, tensor.update.dtype
        assert isinstance(rule, Adafactor)
        if not parameter.size:
            return
        xp, step = module_of(arena.data), tensor.counters[0, 0] + 1
        update, moments = learned(
            xp,
            tensor.data.astype(real, copy=False),
            tensor.gradient.astype(real, copy=False),
            {name: moment.astype(real, copy=False) for name, moment in self._kept[parameter].items()},
            rule,
            (step**rule.beta2_decay).astype(real),
            xp.minimum(step**-0.5, rule.lr).astype(real),
            _epsilon(arena.dtype) if rule.eps[0] is None else rule.eps[0],
        )
        tensor.update[...] = update.reshape(-1)
        for name, moment in moments.items():
            self._computed[parameter][name][...] = moment


def replacement(rule: Adafactor) -> Replacement:
    """What launches keep moments with."""
    return Replacement(seed=rule.seed)


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
