"""The rules of launches that procedures consist of, which are no optimizers by themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclasses.dataclass(frozen=True)
class Movement(Rule):
    """Move parameters by whole updates, which stand where gradients do: p <- p - decay p - g."""

    decay: float = hyperparameter(0.0, "[0, inf)", "the share of itself that the parameter loses")

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(decay=self.decay)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        p = np.where(c.decay != 0, p - c.decay * p, p)  # below 3e-8, 1 - decay would be 1 in float32
        return p - g, Values()


@dataclasses.dataclass(frozen=True)
class Uncounted(Rule):
    """The base of what is launched before the movement, which counts the step."""

    @property
    def counts(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class Replacement(Uncounted):
    """Keep values, which stand where gradients do, as the parameter is kept: p <- g."""

    def scalars(self, step: Any, a: Any) -> Values:
        return Values()

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        return g, Values()


@dataclasses.dataclass(frozen=True)
class Blend(Uncounted):
    """Learn a momentum, and write where parameters do the direction that it gives.

    b <- b + (1 - momentum) (g - b)
    p <- g + momentum (b - g) where nesterov, else b
    """

    momentum: float = hyperparameter(0.95, "[0, inf)", "decay of the momentum")
    nesterov: bool = hyperparameter(True, doc="look ahead along the momentum")

    state = ("momentum_buffer",)

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(momentum=self.momentum, rest=1 - self.momentum)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        b = s.momentum_buffer + c.rest * (g - s.momentum_buffer)
        return g + c.momentum * (b - g) if self.nesterov else b, Values(momentum_buffer=b)
