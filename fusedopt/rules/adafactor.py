"""Adafactor: second moments of matrices as a row and a column."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.procedure import Procedure

MOMENTS = "variance", "row_var", "col_var"


@dataclass(frozen=True)
class Adafactor(Procedure):
    """Steps relative to the parameter's size, with a second moment of n + m numbers for a matrix of n rows, m columns.

        b <- t^beta2_decay                                     t: the step, from 1
        a <- min(lr, 1 / sqrt(t)) max(eps[1], rms(p))
        p <- p - lr weight_decay p
        R <- R + b (mean(g^2 over columns) - R)                R: row_var (..., n, 1)
        C <- C + b (mean(g^2 over rows) - C)                   C: col_var (..., 1, m)
        V <- R C / max(mean(R over rows), eps[0])
        V <- V + b (g^2 - V)                                   instead, where p has fewer than two axes: variance
        u <- g / max(sqrt(V), eps[0])
        p <- p - a u / max(1, rms(u) / d)

    Of more than two axes the last two are the matrix's. `eps[0]` of None is the distance from 1 to the next number in
    the dtype of each parameter; torch takes that of a group's first parameter for all of them.

    Source: Shazeer & Stern 2018, arXiv:1804.04235; `torch.optim.Adafactor`, whose lr and eps differ from the paper's.
    """

    lr: float = hyperparameter(1e-2, "[0, inf)", "learning rate: the most that a step is of the parameter's size")
    beta2_decay: float = hyperparameter(-0.8, "(-inf, 0]", "the exponent by which second moments come to rest")
    eps: tuple[float | None, float] = hyperparameter(
        (None, 1e-3),
        "[0, inf)",
        "the least root of a second moment, None: of the parameter's dtype; and the least size of a parameter",
    )
    d: float = hyperparameter(1.0, "[1, inf)", "the root mean square that updates are scaled down to")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "decoupled decay of the parameters")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    def check(self) -> None:
        if "int8" in self.state_dtypes.values():
            raise ValueError(
                "Adafactor: int8 is too coarse for its second moments, which are few already: a row and a column of "
                "each matrix; choose state_dtype='bfloat16' or 'float32'."
            )

    @functools.cached_property
    def state_dtypes(self) -> dict[str, str | None]:
        """`state_dtype` for each second moment, of which a parameter has some; None: as the parameter."""
        return {name: self.state_dtype_of(name) for name in MOMENTS}

    @staticmethod
    def moment_shapes(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the second moments of a parameter of this shape."""
        if len(shape) < 2:
            return {"variance": shape}
        return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}
