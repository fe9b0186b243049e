"""MegEngine's optimizers: its arguments and defaults on the rules of this library."""

from __future__ import annotations

from typing import Any, ClassVar

from fusedopt import rules
from fusedopt.megengine.fused import Fused


class SGD(Fused, rule=rules.SGD):
    """`fusedopt.SGD` without dampening, from zeros as momentum, and with a learning rate that has to be given.

    Args:
        params: What to train.
        lr: Learning rate.
        momentum: Share of the buffer that is kept; 0: no buffer.
        nesterov: Look ahead by one step of momentum. It is not in state dicts.
        weight_decay: Coupled (L2) decay.

    Source: `megengine.optimizer.SGD`.
    """

    keys = ("lr", "momentum", "weight_decay")

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


class Adam(Fused, rule=rules.Adam):
    """`fusedopt.Adam`, with a learning rate that has to be given; no amsgrad.

    Args:
        params: What to train.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Coupled (L2) decay.

    Source: `megengine.optimizer.Adam`.
    """

    keys = ("lr", "weight_decay", "betas", "eps")

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


class AdamW(Fused, rule=rules.AdamW):
    """`fusedopt.AdamW`, with a learning rate that has to be given. MegEngine adds the decay to the update: the same.

    Args:
        params: What to train.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay.

    Source: `megengine.optimizer.AdamW`.
    """

    keys = ("lr", "weight_decay", "betas", "eps")

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


class Adagrad(Fused, rule=rules.Adagrad):
    """`fusedopt.Adagrad(eps_inside_sqrt=True)`, whose sum of squares MegEngine calls `square_avg`.

    Args:
        params: What to train.
        lr: Learning rate.
        lr_decay: How fast it falls with the step.
        eps: Added to the sum of squares.
        weight_decay: Coupled (L2) decay.

    Source: `megengine.optimizer.Adagrad`.
    """

    keys = ("lr", "lr_decay", "eps", "weight_decay")
    names: ClassVar[dict[str, str]] = {"sum": "square_avg"}

    def __init__(
        self, params: Any, lr: float = 1e-2, lr_decay: float = 0.0, eps: float = 1e-10, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, lr_decay=lr_decay, eps=eps, weight_decay=weight_decay, eps_inside_sqrt=True)


class Adadelta(Fused, rule=rules.Adadelta):
    """`fusedopt.Adadelta`.

    Args:
        params: What to train.
        lr: What the change is multiplied by.
        rho: Decay of both averages.
        eps: Added to both averages inside their roots.
        weight_decay: Coupled (L2) decay.

    Source: `megengine.optimizer.Adadelta`.
    """

    keys = ("lr", "rho", "eps", "weight_decay")

    def __init__(
        self, params: Any, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)


class LAMB(Fused, rule=rules.LAMB):
    """`fusedopt.LAMB`, with a learning rate that has to be given, eps of 1e-8, and no decay unless it is given.

    Args:
        params: What to train.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        bias_correction: Divide the moments by 1 - beta^t. It is not in state dicts.
        weight_decay: Decay of the parameters, part of the step that is scaled.
        always_adapt: Scale steps without weight decay too. It is not in state dicts.

    Source: `megengine.optimizer.LAMB`, whose kernel for CPUs takes norms of whole numbers alone.
    """

    keys = ("lr", "weight_decay", "betas", "eps")

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        bias_correction: bool = True,
        weight_decay: float = 0.0,
        always_adapt: bool = False,
    ) -> None:
        options = {"bias_correction": bias_correction, "always_adapt": always_adapt}
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)
