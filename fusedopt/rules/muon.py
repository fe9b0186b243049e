"""Muon: momentum whose singular values are made equal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.procedure import Procedure


@dataclass(frozen=True)
class Muon(Procedure):
    """Momentum orthogonalized by Newton-Schulz iterations, for the matrices of hidden layers.

        b <- momentum b + (1 - momentum) g
        u <- momentum b + (1 - momentum) g             where nesterov, else b
        x <- u / max(|u|, eps)                         transposed where it has more rows than columns
        x <- c0 x + (c1 a + c2 a^2) x,  a = x x^T      ns_steps times; c: ns_coefficients
        p <- p - lr weight_decay p
        p <- p - lr sqrt(max(1, rows / columns)) x     'original'; 'match_rms_adamw': lr 0.2 sqrt(max(rows, columns))

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025,
    arXiv:2502.16982; `torch.optim.Muon`.
    """

    lr: float = hyperparameter(1e-3, "[0, inf)", "learning rate")
    weight_decay: float = hyperparameter(0.1, "[0, inf)", "decoupled decay of the parameters")
    momentum: float = hyperparameter(0.95, "[0, inf)", "decay of the momentum")
    nesterov: bool = hyperparameter(True, doc="look ahead along the momentum")
    ns_coefficients: tuple[float, float, float] = hyperparameter(
        (3.4445, -4.775, 2.0315), "(-inf, inf)", "of the polynomial that Newton-Schulz iterates"
    )
    eps: float = hyperparameter(1e-7, "[0, inf)", "the least that a matrix is divided by")
    ns_steps: int = hyperparameter(5, "[0, 100)", "iterations", whole=True)
    adjust_lr_fn: str | None = hyperparameter(
        None,
        doc="how lr goes with the shape: 'original', 'match_rms_adamw', None: 'original'",
        choices=(None, "original", "match_rms_adamw"),
    )
    ns_dtype: str | None = hyperparameter(
        None,
        doc="of the matrix products: 'bfloat16' (torch alone), 'float32', 'float64'; None: bfloat16 in torch, else "
        "float64 for float64 and float32 for all others",
        kw_only=True,
        common=True,
        choices=(None, "bfloat16", "float32", "float64"),
    )

    state = ("momentum_buffer",)
    step_key = None

    def check_shape(self, described: str, shape: tuple[int, ...]) -> None:
        if len(shape) != 2:
            raise ValueError(
                f"Muon only supports 2D parameters, {described} has {len(shape)} dimensions; give it to another "
                f"optimizer, such as AdamW."
            )

    def adjusted_lr(self, shape: tuple[int, ...]) -> float:
        """The learning rate of a matrix of this shape."""
        rows, columns = shape
        if self.adjust_lr_fn == "match_rms_adamw":
            return self.lr * (0.2 * math.sqrt(max(rows, columns)))
        return self.lr * math.sqrt(max(1.0, rows / columns)) if columns else self.lr
