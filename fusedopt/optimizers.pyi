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
        maximize: bool = False,
    ) -> None: ...

class LBFGS(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-07,
        tolerance_change: float = 1e-09,
        history_size: int = 100,
        line_search_fn: str | None = None,
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
        maximize: bool = False,
    ) -> None: ...

class Muon(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-07,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: str | None = None,
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
        maximize: bool = False,
    ) -> None: ...

class LazyAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        maximize: bool = False,
        *,
        loss_scale: float = 1.0,
        clip_value: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None: ...

class SparseAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        maximize: bool = False,
        *,
        loss_scale: float = 1.0,
        clip_value: float = 0.0,
    ) -> None: ...
