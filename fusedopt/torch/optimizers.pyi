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
        write_back_gradients: bool = True,
    ) -> None: ...

class LBFGS(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float | Tensor = 1e-07,
        tolerance_change: float | Tensor = 1e-09,
        history_size: int = 100,
        line_search_fn: str | None = None,
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
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        write_back_gradients: bool = True,
    ) -> None: ...

class Muon(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float | Tensor = 0.1,
        momentum: float | Tensor = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float | Tensor, float | Tensor, float | Tensor] = (3.4445, -4.775, 2.0315),
        eps: float | Tensor = 1e-07,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: str | None = None,
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
        write_back_gradients: bool = True,
    ) -> None: ...

class LazyAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        maximize: bool = False,
        *,
        loss_scale: float | Tensor = 1.0,
        clip_value: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        write_back_gradients: bool = True,
    ) -> None: ...

class SparseAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        maximize: bool = False,
        *,
        loss_scale: float | Tensor = 1.0,
        clip_value: float | Tensor = 0.0,
    ) -> None: ...
