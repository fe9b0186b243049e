"""A line search for the strong Wolfe conditions: how far to go along a direction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

DECREASE, CURVATURE = 1e-4, 0.9  # c1 and c2 of the Wolfe conditions, as for quasi-Newton directions


@dataclasses.dataclass(frozen=True)
class Point:
    """A point on the line.

    Attributes:
        t: How far along the direction it is.
        loss, gradient: There.
        slope: Of the loss along the direction.
    """

    t: float
    loss: float
    gradient: Any
    slope: float


@dataclasses.dataclass(frozen=True)
class Line:
    """A search's line, from a point downwards.

    Attributes:
        start: Where t is 0.
        at: t -> the point there, for which loss and gradients are computed.
        width: The direction's largest element, by magnitude.
    """

    start: Point
    at: Callable[[float], Point]
    width: float

    def too_high(self, point: Point) -> bool:
        """Whether the loss has not decreased enough; one that is not finite has not."""
        return not point.loss <= self.start.loss + DECREASE * point.t * self.start.slope

    def flat(self, point: Point) -> bool:
        """Whether the slope there is small beside the one at the start."""
        return abs(point.slope) <= -CURVATURE * self.start.slope


def strong_wolfe(line: Line, t: float, tolerance: float, most: int) -> tuple[Point, int]:
    """A point that fulfils the strong Wolfe conditions, or the best one when the search has to end.

    Args:
        line: What to search on.
        t: Where to begin.
        tolerance: The search ends where the bracket is so narrow, in parameters.
        most: How many further points may be evaluated beside the first.

    Returns:
        The point, and how many were evaluated.

    Source: Nocedal & Wright 2006, algorithms 3.5 and 3.6; minFunc's WolfeLineSearch, as in `torch.optim.LBFGS`.
    """
    bracket, evaluated = _bracket(line, t, most)
    if len(bracket) == 1:
        return bracket[0], evaluated
    return _zoom(line, bracket, tolerance, most, evaluated)


def _bracket(line: Line, t: float, most: int) -> tuple[list[Point], int]:
    """A point that fulfils the conditions, or two with such a one between them."""
    before, here = line.start, line.at(t)
    for tried in range(most):
        if line.too_high(here) or (tried > 1 and here.loss >= before.loss):
            return [before, here], tried + 1
        if line.flat(here):
            return [here], tried + 1
        if here.slope >= 0:
            return [before, here], tried + 1
        low, high = here.t + 0.01 * (here.t - before.t), here.t * 10
        before, here = here, line.at(_lowest(before, here, low, high))
    return [line.start, here], most + 1


def _zoom(line: Line, bracket: list[Point], tolerance: float, most: int, evaluated: int) -> tuple[Point, int]:
    low, high = _ordered(bracket)
    cramped = False  # whether the point before was close to an end of the bracket
    while evaluated <= most:
        a, b = bracket
        if abs(b.t - a.t) * line.width < tolerance:
            break
        t, cramped = _inside(_lowest(a, b, min(a.t, b.t), max(a.t, b.t)), a.t, b.t, cramped)
        here = line.at(t)
        evaluated += 1
        if line.too_high(here) or here.loss >= bracket[low].loss:
            bracket[high] = here
            low, high = _ordered(bracket)
            continue
        done = line.flat(here)
        if not done and here.slope * (bracket[high].t - bracket[low].t) >= 0:
            bracket[high] = bracket[low]
        bracket[low] = here
        if done:
            break
    return bracket[low], evaluated


def _ordered(bracket: list[Point]) -> tuple[int, int]:
    """Which end of the bracket is the lower one, and which the other. An end that is not finite is not the lower."""
    first, last = bracket
    return (0, 1) if first.loss <= last.loss or math.isnan(last.loss) else (1, 0)


def _inside(t: float, a: float, b: float, cramped: bool) -> tuple[float, bool]:
    """t, kept a tenth of the bracket away from its ends where it comes close to one for the second time."""
    low, high = min(a, b), max(a, b)
    margin = 0.1 * (high - low)
    if min(high - t, t - low) >= margin:
        return t, False
    if cramped or t >= high or t <= low:
        return (high - margin if abs(t - high) < abs(t - low) else low + margin), False
    return t, True


def _lowest(a: Point, b: Point, low: float, high: float) -> float:
    """Where between two bounds the cubic through two points, with their slopes, is lowest; the middle if nowhere."""
    if a.t > b.t:
        a, b = b, a
    with np.errstate(all="ignore"):
        rise = a.slope + b.slope - 3 * (a.loss - b.loss) / np.float64(a.t - b.t)
        square = rise * rise - a.slope * b.slope
        if square >= 0:
            root = np.sqrt(square)
            t = b.t - (b.t - a.t) * ((b.slope + root - rise) / (b.slope - a.slope + 2 * root))
            if np.isfinite(t):
                return min(max(float(t), low), high)
    return (low + high) / 2
