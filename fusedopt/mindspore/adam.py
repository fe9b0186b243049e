"""MindSpore's Adam and what is derived from it: its arguments and defaults on the rules of this library."""

from __future__ import annotations

from typing import Any

from fusedopt import rules
from fusedopt.mindspore.arguments import ABOVE_ZERO, a_flag, a_float, betas
from fusedopt.mindspore.fused import Fused
from fusedopt.procedures.rows import RowWise


class Adam(Fused, rule=rules.Adam):
    """`fusedopt.Adam(corrected_eps=False)`: eps is added before the bias correction. `use_locking` is of no effect.

    Source: `mindspore.nn.Adam`, whose CUDA kernel ignores use_nesterov.
    """

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        use_locking: bool = False,
        use_nesterov: bool = False,
        weight_decay: Any = 0.0,
        loss_scale: float = 1.0,
        use_amsgrad: bool = False,
    ) -> None:
        name = type(self).__name__
        a_flag(f"{name}: use_locking", use_locking)
        super().__init__(
            params,
            learning_rate,
            weight_decay,
            loss_scale,
            betas=betas(name, beta1, beta2),
            eps=a_float(f"{name}: eps", eps, ABOVE_ZERO),
            nesterov=a_flag(f"{name}: use_nesterov", use_nesterov),
            amsgrad=a_flag(f"{name}: use_amsgrad", use_amsgrad),
            corrected_eps=False,
        )


class AdamOffload(Adam):
    """`Adam` here: states are where the parameters are. Source: `mindspore.nn.AdamOffload`."""


class LazyAdam(Fused, RowWise, rule=rules.LazyAdam):
    """`fusedopt.LazyAdam`: a `fusedopt.SparseGradient` changes its rows alone. `use_locking` is of no effect.

    Source: `mindspore.nn.LazyAdam`.
    """

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        use_locking: bool = False,
        use_nesterov: bool = False,
        weight_decay: Any = 0.0,
        loss_scale: float = 1.0,
    ) -> None:
        a_flag("LazyAdam: use_locking", use_locking)
        options = {"betas": betas("LazyAdam", beta1, beta2), "eps": a_float("LazyAdam: eps", eps, ABOVE_ZERO)}
        nesterov = a_flag("LazyAdam: use_nesterov", use_nesterov)
        super().__init__(params, learning_rate, weight_decay, loss_scale, nesterov=nesterov, **options)


class AdamWeightDecay(Fused, rule=rules.AdamW):
    """`fusedopt.AdamW(bias_correction=False)`: decoupled decay and no bias correction at all.

    Source: `mindspore.nn.AdamWeightDecay`.
    """

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: Any = 0.0,
    ) -> None:
        options = {
            "betas": betas("AdamWeightDecay", beta1, beta2),
            "eps": a_float("AdamWeightDecay: eps", eps, ABOVE_ZERO),
        }
        super().__init__(params, learning_rate, weight_decay, bias_correction=False, **options)


class AdaMax(Fused, rule=rules.Adamax):
    """`fusedopt.Adamax(eps_in_denominator=True)`. Source: `mindspore.nn.AdaMax`."""

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: Any = 0.0,
        loss_scale: float = 1.0,
    ) -> None:
        options = {"betas": betas("AdaMax", beta1, beta2), "eps": a_float("AdaMax: eps", eps, ABOVE_ZERO)}
        super().__init__(params, learning_rate, weight_decay, loss_scale, eps_in_denominator=True, **options)


class Lamb(Fused, rule=rules.LAMB):
    """`fusedopt.LAMB(always_adapt=True)`, without weight decay unless it is given. Source: `mindspore.nn.Lamb`."""

    def __init__(
        self,
        params: Any,
        learning_rate: Any,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: Any = 0.0,
    ) -> None:
        options = {"betas": betas("Lamb", beta1, beta2), "eps": a_float("Lamb: eps", eps, ABOVE_ZERO)}
        super().__init__(params, learning_rate, weight_decay, always_adapt=True, **options)
