"""What procedures that go parameter by parameter over arrays have in common."""

from __future__ import annotations

from typing import Any

from fusedopt.optimizer import Optimizer


class Procedure(Optimizer):
    """The base of steps by array operations and launches, which nothing is divided by or left out of."""

    def _update(self, grad_scale: Any, found_inf: Any) -> None:
        if grad_scale is not None or found_inf is not None:
            raise RuntimeError(
                f"{type(self).__name__}'s step is no launch by itself, which grad_scale and found_inf are for; divide "
                f"the gradients, and leave the step out where they are not finite."
            )
        super()._update(grad_scale, found_inf)
