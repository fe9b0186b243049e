"""What procedures that go parameter by parameter over arrays have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fusedopt.layout import Arena, ArenaSpan
from fusedopt.optimizer import Optimizer

StepSome = Callable[[Arena, range], None]


class SpanPlan:
    """Some spans, and what updates the parameters of these indices in an arena and counts their step."""

    def __init__(self, spans: Sequence[ArenaSpan], step_some: StepSome) -> None:
        self._spans, self._step_some = spans, step_some

    def refresh(self) -> None:
        """Nothing to do: rules are read at every step."""

    def step(self, grad_scale: Any, found_inf: Any, write_back: bool = False) -> None:
        """Update every parameter once; the optimizer has refused scales."""
        for span in self._spans:
            with span.arena.memory.here():
                self._step_some(span.arena, range(span.first, span.last + 1))


class Procedure(Optimizer):
    """The base of steps by array operations, which nothing is divided by or left out of."""

    def _update(self, grad_scale: Any, found_inf: Any) -> None:
        if grad_scale is not None or found_inf is not None:
            raise RuntimeError(
                f"{type(self).__name__} has no launch, which grad_scale and found_inf are for; divide the gradients, "
                f"and leave the step out where they are not finite."
            )
        super()._update(grad_scale, found_inf)
