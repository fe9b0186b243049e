# Written by fusedopt.stubs from the rules.
from typing import Any

from torch import Tensor

from fusedopt.rules import Rule
from fusedopt.schedules.options import NumberOrSchedule
from fusedopt.torch.optimizer import Optimizer

RULES: dict[str, type[Rule]]
PROCEDURES: dict[str, type[Rule]]

class Adadelta(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 1.0,
        rho: NumberOrSchedule | Tensor = 0.9,
        eps: NumberOrSchedule | Tensor = 1e-06,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class Adafactor(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.01,
        beta2_decay: NumberOrSchedule | Tensor = -0.8,
        eps: tuple[float | Tensor | None, float | Tensor] = (None, 0.001),
        d: NumberOrSchedule | Tensor = 1.0,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None: ...

class Adagrad(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.01,
        lr_decay: NumberOrSchedule | Tensor = 0.0,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        initial_accumulator_value: NumberOrSchedule | Tensor = 0.0,
        eps: NumberOrSchedule | Tensor = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        eps_inside_sqrt: bool = False,
        update_accumulator: bool = True,
        write_back_gradients: bool = True,
    ) -> None: ...

class Adam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: NumberOrSchedule | Tensor = 1e-08,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        corrected_eps: bool = True,
        bias_correction: bool = True,
        nesterov: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class AdamW(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: NumberOrSchedule | Tensor = 1e-08,
        weight_decay: NumberOrSchedule | Tensor = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        corrected_eps: bool = True,
        bias_correction: bool = True,
        nesterov: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class Adamax(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.002,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: NumberOrSchedule | Tensor = 1e-08,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        eps_in_denominator: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class ASGD(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.01,
        lambd: NumberOrSchedule | Tensor = 0.0001,
        alpha: NumberOrSchedule | Tensor = 0.75,
        t0: NumberOrSchedule | Tensor = 1000000.0,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class FTRL(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.001,
        lr_power: NumberOrSchedule | Tensor = -0.5,
        l1: NumberOrSchedule | Tensor = 0.0,
        l2: NumberOrSchedule | Tensor = 0.0,
        initial_accumulator_value: NumberOrSchedule | Tensor = 0.1,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        maximize: bool = False,
        linear_init_from_param: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        write_back_gradients: bool = True,
    ) -> None: ...

class LAMB(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: NumberOrSchedule | Tensor = 1e-06,
        weight_decay: NumberOrSchedule | Tensor = 0.01,
        bias_correction: bool = True,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
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
        lr: NumberOrSchedule | Tensor = 0.001,
        momentum: NumberOrSchedule | Tensor = 0.9,
        dampening: NumberOrSchedule | Tensor = 0.0,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        nesterov: bool = False,
        trust_coefficient: NumberOrSchedule | Tensor = 0.001,
        eps: NumberOrSchedule | Tensor = 0.0,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
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

class LBFGS(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: NumberOrSchedule | Tensor = 1e-07,
        tolerance_change: NumberOrSchedule | Tensor = 1e-09,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None: ...

class Lion(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.0001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        write_back_gradients: bool = True,
    ) -> None: ...

class Momentum(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.001,
        momentum: NumberOrSchedule | Tensor = 0.9,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        nesterov: bool = False,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
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
        lr: NumberOrSchedule | Tensor = 0.001,
        weight_decay: NumberOrSchedule | Tensor = 0.1,
        momentum: NumberOrSchedule | Tensor = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float | Tensor, float | Tensor, float | Tensor] = (3.4445, -4.775, 2.0315),
        eps: NumberOrSchedule | Tensor = 1e-07,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: str | None = None,
    ) -> None: ...

class NAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.002,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: NumberOrSchedule | Tensor = 1e-08,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        momentum_decay: NumberOrSchedule | Tensor = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class ProximalAdagrad(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.001,
        l1: NumberOrSchedule | Tensor = 0.0,
        l2: NumberOrSchedule | Tensor = 0.0,
        initial_accumulator_value: NumberOrSchedule | Tensor = 0.1,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        write_back_gradients: bool = True,
    ) -> None: ...

class RAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: NumberOrSchedule | Tensor = 1e-08,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class RMSprop(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.01,
        alpha: NumberOrSchedule | Tensor = 0.99,
        eps: NumberOrSchedule | Tensor = 1e-08,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        momentum: NumberOrSchedule | Tensor = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        square_avg_init: NumberOrSchedule | Tensor = 0.0,
        eps_inside_sqrt: bool = False,
        lr_in_momentum: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class Rprop(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.01,
        etas: tuple[float | Tensor, float | Tensor] = (0.5, 1.2),
        step_sizes: tuple[float | Tensor, float | Tensor] = (1e-06, 50.0),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        write_back_gradients: bool = True,
    ) -> None: ...

class SGD(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.001,
        momentum: NumberOrSchedule | Tensor = 0.0,
        dampening: NumberOrSchedule | Tensor = 0.0,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        lr_in_momentum: bool = False,
        write_back_gradients: bool = True,
    ) -> None: ...

class LazyAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: NumberOrSchedule | Tensor = 1e-08,
        maximize: bool = False,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
        weight_decay: NumberOrSchedule | Tensor = 0.0,
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
        lr: NumberOrSchedule | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: NumberOrSchedule | Tensor = 1e-08,
        maximize: bool = False,
        *,
        loss_scale: NumberOrSchedule | Tensor = 1.0,
        clip_value: NumberOrSchedule | Tensor = 0.0,
        clip_norm: NumberOrSchedule | Tensor = 0.0,
        grad_centralization: bool = False,
    ) -> None: ...
