# Written by fusedopt.stubs from the rules.
from typing import Any

from fusedopt.optimizer import Optimizer
from fusedopt.rules import Rule

RULES: dict[str, type[Rule]]

class Adam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        loss_scale: float = 1.0,
        clip_value: float = 0.0,
        clip_norm: float = 0.0,
        grad_centralization: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None: ...

class AdamW(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        loss_scale: float = 1.0,
        clip_value: float = 0.0,
        clip_norm: float = 0.0,
        grad_centralization: bool = False,
        maximize: bool = False,
    ) -> None: ...

class LAMB(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        *,
        loss_scale: float = 1.0,
        clip_value: float = 0.0,
        clip_norm: float = 0.0,
        grad_centralization: bool = False,
        always_adapt: bool = False,
        maximize: bool = False,
    ) -> None: ...

class LARS(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        *,
        loss_scale: float = 1.0,
        clip_value: float = 0.0,
        clip_norm: float = 0.0,
        grad_centralization: bool = False,
        trust_clip: bool = False,
        adapt: bool = True,
        maximize: bool = False,
    ) -> None: ...

class Lion(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        loss_scale: float = 1.0,
        clip_value: float = 0.0,
        clip_norm: float = 0.0,
        grad_centralization: bool = False,
        maximize: bool = False,
    ) -> None: ...

class SGD(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        loss_scale: float = 1.0,
        clip_value: float = 0.0,
        clip_norm: float = 0.0,
        grad_centralization: bool = False,
        maximize: bool = False,
    ) -> None: ...
