# Written by fusedopt.stubs from the rules.
from typing import Any

from torch import Tensor

from fusedopt.rules import Rule
from fusedopt.torch.optimizer import Optimizer

RULES: dict[str, type[Rule]]

class Adam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        loss_scale: float | Tensor = 1.0,
        clip_value: float | Tensor = 0.0,
        clip_norm: float | Tensor = 0.0,
        grad_centralization: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class AdamW(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        loss_scale: float | Tensor = 1.0,
        clip_value: float | Tensor = 0.0,
        clip_norm: float | Tensor = 0.0,
        grad_centralization: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class LAMB(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0.01,
        bias_correction: bool = True,
        *,
        loss_scale: float | Tensor = 1.0,
        clip_value: float | Tensor = 0.0,
        clip_norm: float | Tensor = 0.0,
        grad_centralization: bool = False,
        always_adapt: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        write_back_gradients: bool = True,
    ) -> None: ...

class LARS(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.9,
        dampening: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        trust_coefficient: float | Tensor = 0.001,
        eps: float | Tensor = 0.0,
        *,
        loss_scale: float | Tensor = 1.0,
        clip_value: float | Tensor = 0.0,
        clip_norm: float | Tensor = 0.0,
        grad_centralization: bool = False,
        trust_clip: bool = False,
        adapt: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        write_back_gradients: bool = True,
    ) -> None: ...

class Lion(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.0001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float | Tensor = 0.0,
        *,
        loss_scale: float | Tensor = 1.0,
        clip_value: float | Tensor = 0.0,
        clip_norm: float | Tensor = 0.0,
        grad_centralization: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        write_back_gradients: bool = True,
    ) -> None: ...

class SGD(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.0,
        dampening: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        loss_scale: float | Tensor = 1.0,
        clip_value: float | Tensor = 0.0,
        clip_norm: float | Tensor = 0.0,
        grad_centralization: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...
