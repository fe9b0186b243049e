"""L-BFGS: dot products over all parameters as one vector, and a loop that the host decides on.

Each decision (a direction's slope, a loss, a norm) is read from the device, so every iteration waits for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fusedopt.procedures.line_search import Line, Point, strong_wolfe
from fusedopt.rules.hyperparameter import Interval
from fusedopt.rules.lbfgs import LBFGS

LEAST_CURVATURE = 1e-10  # of a pair, s.y: below, the inverse Hessian would not stay positive


_COUNTS = ("func_evals", "n_iter")
_VECTORS, _LISTS = ("d", "prev_flat_grad"), ("old_dirs", "old_stps")


class Objective(Protocol):
    """A loss over parameters that are seen as one flat vector, of NumPy, CuPy or torch."""

    def evaluate(self) -> tuple[float, Any]:
        """The loss and its gradient where the parameters are."""

    def move(self, t: float, direction: Any) -> None:
        """Add t times a vector to the parameters."""

    def position(self) -> Any:
        """A copy of the parameters, for `put_back`."""

    def put_back(self, position: Any) -> None:
        """Move the parameters to where they were."""


def checked_loss(value: Any) -> float:
    """What a closure returned, as a number.

    Raises:
        TypeError: It is None, as of a closure without `return`.
    """
    if value is None:
        raise TypeError("LBFGS: the closure must return the loss, got None.")
    return float(value)


@dataclasses.dataclass
class History:
    """What is known from earlier iterations, and kept from step to step. Names are torch's, as in its state dicts.

    Attributes:
        func_evals, n_iter: Closures called and iterations made, ever.
        d, t: The last direction, and how far it was followed.
        old_dirs, old_stps, ro: Changes of the gradient, changes of the parameters, and 1 / y.s, oldest first.
        H_diag: The scale of the inverse Hessian.
        prev_flat_grad, prev_loss: At the start of the last iteration.
        al: Factors of the last two-loop recursion; nothing is read from them.
    """

    func_evals: int = 0
    n_iter: int = 0
    d: Any = None
    t: float = 0.0
    old_dirs: list[Any] = dataclasses.field(default_factory=list)
    old_stps: list[Any] = dataclasses.field(default_factory=list)
    ro: list[float] = dataclasses.field(default_factory=list)
    H_diag: float = 1.0
    prev_flat_grad: Any = None
    prev_loss: float | None = None
    al: list[float] = dataclasses.field(default_factory=list)

    @staticmethod
    def full_bytes(elements: int, itemsize: int, history_size: int) -> int:
        """Of its vectors once it has all pairs, for so many parameters of so many bytes."""
        return elements * itemsize * (len(_VECTORS) + len(_LISTS) * history_size)

    def forget(self) -> None:
        """Drop all pairs."""
        self.old_dirs, self.old_stps, self.ro, self.H_diag = [], [], [], 1.0

    def entry(self, history_size: int) -> dict[str, Any]:
        """It as `state` and state dicts have it: empty before the first step, counts alone before the first move."""
        if self.func_evals == 0:
            return {}
        entry = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.d is None:
            return {name: entry[name] for name in _COUNTS}
        entry["al"] = [*self.al, *[None] * (history_size - len(self.al))]  # torch's is always so long
        return entry

    def learn(self, gradient: Any, most: int) -> None:
        """Take in the last iteration's pair, unless its curvature is too small, or not finite."""
        y, s = gradient - self.prev_flat_grad, self.d * self.t
        ys, yy = float(y.dot(s)), float(y.dot(y))
        if not (ys > LEAST_CURVATURE and yy > 0 and 0 < ys / yy < math.inf):
            return
        drop = max(0, len(self.ro) + 1 - most)
        for kept, new in ((self.old_dirs, y), (self.old_stps, s), (self.ro, 1.0 / ys)):
            kept.append(new)
            del kept[:drop]
        self.H_diag = ys / yy

    def direction(self, gradient: Any) -> Any:
        """The two-loop recursion: minus the inverse Hessian times the gradient."""
        pairs = list(zip(self.old_dirs, self.old_stps, self.ro))
        d, factors = -gradient, []
        for y, s, ro in reversed(pairs):
            factors.append(float(s.dot(d)) * ro)
            d = d - factors[-1] * y
        d = d * self.H_diag
        self.al = factors[::-1]
        for (y, s, ro), factor in zip(pairs, self.al):
            d = d + (factor - float(y.dot(d)) * ro) * s
        return d


def minimize(objective: Objective, history: History, rule: LBFGS) -> None:
    """One step: iterations until the loss is at rest or the counts are used up. The history goes along.

    A direction that is not finite drops all pairs; where the gradient itself is not, the parameters stay.

    Source: `torch.optim.LBFGS`.
    """
    assert rule.max_eval is not None
    loss, gradient = objective.evaluate()
    history.func_evals += 1
    evaluations = 1
    if not len(gradient) or _largest(gradient) <= rule.tolerance_grad:
        return
    for iteration in range(1, rule.max_iter + 1):
        d, slope, t = _next_direction(history, gradient, rule)
        history.prev_flat_grad, history.prev_loss, history.d, history.t = gradient, loss, d, t
        if not (slope <= -rule.tolerance_change and t >= 0):
            return
        last = iteration == rule.max_iter
        if rule.line_search_fn is None:
            objective.move(t, d)
            count = 0
            if not last:  # what is there after the last one, nobody asks
                loss, gradient = objective.evaluate()
                count = 1
        else:
            start = Point(0.0, loss, gradient, slope)
            point, count = _search(objective, start, d, t, rule, rule.max_eval - evaluations)
            loss, gradient, history.t = point.loss, point.gradient, point.t
            objective.move(point.t, d)
        evaluations += count
        history.func_evals += count
        if last or evaluations >= rule.max_eval or _largest(gradient) <= rule.tolerance_grad:
            return
        if _largest(d) * history.t <= rule.tolerance_change:
            return
        if abs(loss - history.prev_loss) < rule.tolerance_change:
            return


@np.errstate(all="ignore")  # what overflows is looked at
def _next_direction(history: History, gradient: Any, rule: LBFGS) -> tuple[Any, float, float]:
    """Where to go from here, the slope there, and how far at first: NaN where the gradient is not finite."""
    history.n_iter += 1
    first = history.n_iter == 1 or history.prev_flat_grad is None
    if first:
        history.forget()
        d = -gradient
    else:
        history.learn(gradient, rule.history_size)
        d = history.direction(gradient)
    slope = float(gradient.dot(d))
    if not math.isfinite(slope):
        history.forget()
        d = -gradient
        slope, first = float(gradient.dot(d)), True
    if not first:
        return d, slope, rule.lr
    length = float(abs(gradient).sum())
    return d, slope, min(1.0, 1.0 / length) * rule.lr if length < math.inf else math.nan


def _search(objective: Objective, start: Point, d: Any, t: float, rule: LBFGS, most: int) -> tuple[Point, int]:
    """The line search; the parameters are where they were after it, whatever the closure raises."""
    position = objective.position()

    def at(t: float) -> Point:
        objective.move(t, d)
        try:
            loss, gradient = objective.evaluate()
        finally:
            objective.put_back(position)
        return Point(t, loss, gradient, float(gradient.dot(d)))

    return strong_wolfe(Line(start, at, _largest(d)), t, rule.tolerance_change, most)


@np.errstate(all="ignore")
def _largest(vector: Any) -> float:
    return float(abs(vector).max())


def history_of(entry: Mapping[str, Any], what: str, vector: Callable[[str, Any], Any]) -> History:
    """What `History.entry` gave, checked.

    Args:
        entry: Of this library or of torch.
        what: Whose it is, for messages.
        vector: (what it is, value) -> one of its own, or an error where it is no vector of all parameters.

    Raises:
        KeyError: Something is missing.
        ValueError, TypeError: Something is unknown, no number of its range, or no pairs go together.
    """
    if not entry:
        return History()
    known = [field.name for field in dataclasses.fields(History)]
    for name in entry:
        if name not in known:
            raise ValueError(f"{what} has {name!r}; LBFGS keeps {', '.join(known)}.")
    for name in _COUNTS if set(entry) <= {*_COUNTS} else (name for name in known if name != "al"):
        if name not in entry:
            raise KeyError(f"{what} lacks {name!r}; it has {', '.join(map(repr, entry))}.")
    history = History()
    for name in _COUNTS:
        setattr(history, name, _count(f"{what}: {name}", entry[name]))
    if "d" not in entry:
        return history
    for name in _VECTORS:
        setattr(history, name, vector(f"{what}: {name}", entry[name]))
    for name in _LISTS:
        items = enumerate(_items(f"{what}: {name}", entry[name]))
        setattr(history, name, [vector(f"{what}: {name}[{i}]", item) for i, item in items])
    ro = enumerate(_items(f"{what}: ro", entry["ro"]))
    history.ro = [_number(f"{what}: ro[{i}]", value, Interval("[0, inf)")) for i, value in ro]
    if not len(history.ro) == len(history.old_dirs) == len(history.old_stps):
        raise ValueError(f"{what} has old_dirs, old_stps and ro of different lengths; they are pairs.")
    history.t, history.prev_loss = (_number(f"{what}: {name}", entry[name]) for name in ("t", "prev_loss"))
    history.H_diag = _number(f"{what}: H_diag", entry["H_diag"], Interval("(0, inf)"))
    al = [value for value in _items(f"{what}: al", entry.get("al", ())) if value is not None]
    history.al = [_number(f"{what}: al", value) for value in al][: len(history.ro)]
    return history


def first_entry(saved: Any) -> Mapping[str, Any]:
    """What a state dict has for the first parameter; nothing where it is no state dict, which is refused later."""
    try:
        entry = saved["state"].get(saved["param_groups"][0]["params"][0], {})
    except (AttributeError, IndexError, KeyError, TypeError):
        return {}
    return entry if isinstance(entry, Mapping) else {}


def _items(what: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{what} must be a list, got {value!r}; load what state_dict() returned.")
    return value


def _number(what: str, value: Any, interval: Interval | None = None) -> float:
    """A number, or an array of one; of any value where there is no interval: a loss may have been NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{what} must be a number, got {value!r}.") from None
    if interval is not None and number not in interval:
        raise ValueError(f"{what} must be in {interval.text}, got {number}.")
    return number


def _count(what: str, value: Any) -> int:
    number = _number(what, value)
    if not (number >= 0 and number % 1 == 0):
        raise ValueError(f"{what} must be a whole number from 0, got {value!r}.")
    return int(number)
