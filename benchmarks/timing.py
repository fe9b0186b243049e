"""A measured quantity and its bar. How a step is timed is known to `fusedopt.cli.bench`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured quantity and the bar that it has to pass, if any.

    Attributes:
        value: The median of the samples.
        low, high: Their quartiles.
        at_least, at_most: The bar.
    """

    name: str
    value: float
    unit: str
    low: float
    high: float
    samples: int
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is passed; None without one."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def bar(self) -> str:
        """The bar as a table shows it."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    def record(self) -> dict[str, object]:
        """The figure as JSON has it."""
        return {**dataclasses.asdict(self), "met": self.met}


def figure(name: str, unit: str, samples: Sequence[float], **bar: float | None) -> Figure:
    """The median and the quartiles of samples."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else 3 * samples[:1]
    return Figure(name, median, unit, low, high, len(samples), **bar)
