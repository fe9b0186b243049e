"""L-BFGS: a quasi-Newton direction from the last changes of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.procedure import Procedure


@dataclass(frozen=True)
class LBFGS(Procedure):
    """Limited-memory BFGS over all parameters as one vector x, several iterations a step.

        d <- -H g                H: the inverse Hessian that the last pairs (s, y) tell of; at first d <- -g
        x <- x + t d             t: lr, or what a search for the strong Wolfe conditions finds
        s <- t d,  y <- g(x) - g          kept where y.s > 1e-10

    The closure computes loss and gradients, and is called several times. One param group only.

    Source: Nocedal & Wright 2006, algorithms 7.5 and 3.5; minFunc; `torch.optim.LBFGS`.
    """

    lr: float = hyperparameter(1.0, "[0, inf)", "learning rate: the step's length, or the first one that is tried")
    max_iter: int = hyperparameter(20, "[1, inf)", "iterations of a step at most", whole=True)
    max_eval: int | None = hyperparameter(
        None, "[1, inf)", "calls of the closure in a step at most; None: 1.25 max_iter", whole=True
    )
    tolerance_grad: float = hyperparameter(1e-7, "[0, inf)", "ends the step where no gradient is larger")
    tolerance_change: float = hyperparameter(1e-9, "[0, inf)", "ends it where loss or parameters change by less")
    history_size: int = hyperparameter(100, "[1, inf)", "pairs that are kept", whole=True)
    line_search_fn: str | None = hyperparameter(None, doc="None, or 'strong_wolfe'", choices=(None, "strong_wolfe"))

    step_key = None
    no_storages = (
        "whose parameters and history are vectors of one dtype; leave it out and train in float32, or train half "
        "precision with AdamW or Muon"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_eval is None:
            object.__setattr__(self, "max_eval", self.max_iter * 5 // 4)
