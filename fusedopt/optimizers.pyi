# Written by fusedopt.stubs from the rules.
from typing import Any

from fusedopt.optimizer import Optimizer
from fusedopt.rules import Rule
from fusedopt.schedules.options import NumberOrSchedule

RULES: dict[str, type[Rule]]
PROCEDURES: dict[str, type[Rule]]

class Adadelta(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 1.0,
        rho: NumberOrSchedule = 0.9,
        eps: NumberOrSchedule = 1e-06,
        weight_decay: NumberOrSchedule = 0.0,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
    ) -> None: ...

class Adafactor(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.01,
        beta2_decay: NumberOrSchedule = -0.8,
        eps: tuple[float | None, float] = (None, 0.001),
        d: NumberOrSchedule = 1.0,
        weight_decay: NumberOrSchedule = 0.0,
        *,
        maximize: bool = False,
    ) -> None: ...

class Adagrad(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.01,
        lr_decay: NumberOrSchedule = 0.0,
        weight_decay: NumberOrSchedule = 0.0,
        initial_accumulator_value: NumberOrSchedule = 0.0,
        eps: NumberOrSchedule = 1e-10,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
        eps_inside_sqrt: bool = False,
        update_accumulator: bool = True,
    ) -> None: ...

class Adam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: NumberOrSchedule = 1e-08,
        weight_decay: NumberOrSchedule = 0.0,
        amsgrad: bool = False,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        corrected_eps: bool = True,
        bias_correction: bool = True,
        nesterov: bool = False,
    ) -> None: ...

class AdamW(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: NumberOrSchedule = 1e-08,
        weight_decay: NumberOrSchedule = 0.01,
        amsgrad: bool = False,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
        corrected_eps: bool = True,
        bias_correction: bool = True,
        nesterov: bool = False,
    ) -> None: ...

class Adamax(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: NumberOrSchedule = 1e-08,
        weight_decay: NumberOrSchedule = 0.0,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
        eps_in_denominator: bool = False,
    ) -> None: ...

class ASGD(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.01,
        lambd: NumberOrSchedule = 0.0001,
        alpha: NumberOrSchedule = 0.75,
        t0: NumberOrSchedule = 1000000.0,
        weight_decay: NumberOrSchedule = 0.0,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
    ) -> None: ...

class FTRL(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        lr_power: NumberOrSchedule = -0.5,
        l1: NumberOrSchedule = 0.0,
        l2: NumberOrSchedule = 0.0,
        initial_accumulator_value: NumberOrSchedule = 0.1,
        weight_decay: NumberOrSchedule = 0.0,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
        linear_init_from_param: bool = False,
    ) -> None: ...

class LAMB(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: NumberOrSchedule = 1e-06,
        weight_decay: NumberOrSchedule = 0.01,
        bias_correction: bool = True,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        always_adapt: bool = False,
        maximize: bool = False,
    ) -> None: ...

class LARS(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        momentum: NumberOrSchedule = 0.9,
        dampening: NumberOrSchedule = 0.0,
        weight_decay: NumberOrSchedule = 0.0,
        nesterov: bool = False,
        trust_coefficient: NumberOrSchedule = 0.001,
        eps: NumberOrSchedule = 0.0,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        trust_clip: bool = False,
        adapt: bool = True,
        maximize: bool = False,
    ) -> None: ...

class LBFGS(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: NumberOrSchedule = 1e-07,
        tolerance_change: NumberOrSchedule = 1e-09,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None: ...

class Lion(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: NumberOrSchedule = 0.0,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
    ) -> None: ...

class Momentum(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        momentum: NumberOrSchedule = 0.9,
        weight_decay: NumberOrSchedule = 0.0,
        nesterov: bool = False,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
    ) -> None: ...

class Muon(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        weight_decay: NumberOrSchedule = 0.1,
        momentum: NumberOrSchedule = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: NumberOrSchedule = 1e-07,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: str | None = None,
    ) -> None: ...

class NAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: NumberOrSchedule = 1e-08,
        weight_decay: NumberOrSchedule = 0.0,
        momentum_decay: NumberOrSchedule = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
    ) -> None: ...

class ProximalAdagrad(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        l1: NumberOrSchedule = 0.0,
        l2: NumberOrSchedule = 0.0,
        initial_accumulator_value: NumberOrSchedule = 0.1,
        weight_decay: NumberOrSchedule = 0.0,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
    ) -> None: ...

class RAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: NumberOrSchedule = 1e-08,
        weight_decay: NumberOrSchedule = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
    ) -> None: ...

class RMSprop(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.01,
        alpha: NumberOrSchedule = 0.99,
        eps: NumberOrSchedule = 1e-08,
        weight_decay: NumberOrSchedule = 0.0,
        momentum: NumberOrSchedule = 0.0,
        centered: bool = False,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
        square_avg_init: NumberOrSchedule = 0.0,
        eps_inside_sqrt: bool = False,
        lr_in_momentum: bool = False,
    ) -> None: ...

class Rprop(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.01,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-06, 50.0),
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
        weight_decay: NumberOrSchedule = 0.0,
    ) -> None: ...

class SGD(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        momentum: NumberOrSchedule = 0.0,
        dampening: NumberOrSchedule = 0.0,
        weight_decay: NumberOrSchedule = 0.0,
        nesterov: bool = False,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        maximize: bool = False,
        lr_in_momentum: bool = False,
    ) -> None: ...

class LazyAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: NumberOrSchedule = 1e-08,
        maximize: bool = False,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
        weight_decay: NumberOrSchedule = 0.0,
        nesterov: bool = False,
    ) -> None: ...

class SparseAdam(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: NumberOrSchedule = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: NumberOrSchedule = 1e-08,
        maximize: bool = False,
        *,
        loss_scale: NumberOrSchedule = 1.0,
        clip_value: NumberOrSchedule = 0.0,
        clip_norm: NumberOrSchedule = 0.0,
        grad_centralization: bool = False,
        master_weights: str | None = None,
        kahan: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        state_dtype: str | dict[str, str | None] | None = None,
    ) -> None: ...
