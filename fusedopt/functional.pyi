# Written by fusedopt.stubs from the rules.
from typing import Any, NamedTuple

from fusedopt.single_step import apply as apply

class AdadeltaStep(NamedTuple):
    p: Any
    square_avg: Any
    acc_delta: Any

def adadelta(
    p: Any,
    g: Any,
    square_avg: Any = None,
    acc_delta: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-06,
    weight_decay: float = 0.0,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
) -> AdadeltaStep: ...

class AdagradStep(NamedTuple):
    p: Any
    sum: Any

def adagrad(
    p: Any,
    g: Any,
    sum: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.01,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
    eps_inside_sqrt: bool = False,
    update_accumulator: bool = True,
) -> AdagradStep: ...

class AdamStep(NamedTuple):
    p: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any

def adam(
    p: Any,
    g: Any,
    exp_avg: Any = None,
    exp_avg_sq: Any = None,
    max_exp_avg_sq: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    corrected_eps: bool = True,
    bias_correction: bool = True,
    nesterov: bool = False,
) -> AdamStep: ...

class AdamWStep(NamedTuple):
    p: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any

def adamw(
    p: Any,
    g: Any,
    exp_avg: Any = None,
    exp_avg_sq: Any = None,
    max_exp_avg_sq: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.01,
    amsgrad: bool = False,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
    corrected_eps: bool = True,
    bias_correction: bool = True,
    nesterov: bool = False,
) -> AdamWStep: ...

class AdamaxStep(NamedTuple):
    p: Any
    exp_avg: Any
    exp_inf: Any

def adamax(
    p: Any,
    g: Any,
    exp_avg: Any = None,
    exp_inf: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.002,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
    eps_in_denominator: bool = False,
) -> AdamaxStep: ...

class ASGDStep(NamedTuple):
    p: Any
    ax: Any
    eta: float
    mu: float

def asgd(
    p: Any,
    g: Any,
    ax: Any = None,
    eta: float | None = None,
    mu: float | None = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.01,
    lambd: float = 0.0001,
    alpha: float = 0.75,
    t0: float = 1000000.0,
    weight_decay: float = 0.0,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
) -> ASGDStep: ...

class FTRLStep(NamedTuple):
    p: Any
    moments: Any
    linear: Any

def ftrl(
    p: Any,
    g: Any,
    moments: Any = None,
    linear: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    lr_power: float = -0.5,
    l1: float = 0.0,
    l2: float = 0.0,
    initial_accumulator_value: float = 0.1,
    weight_decay: float = 0.0,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
    linear_init_from_param: bool = False,
) -> FTRLStep: ...

class LAMBStep(NamedTuple):
    p: Any
    exp_avg: Any
    exp_avg_sq: Any

def lamb(
    p: Any,
    g: Any,
    exp_avg: Any = None,
    exp_avg_sq: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-06,
    weight_decay: float = 0.01,
    bias_correction: bool = True,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    always_adapt: bool = False,
    maximize: bool = False,
) -> LAMBStep: ...

class LARSStep(NamedTuple):
    p: Any
    momentum_buffer: Any

def lars(
    p: Any,
    g: Any,
    momentum_buffer: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    momentum: float = 0.9,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    trust_clip: bool = False,
    adapt: bool = True,
    maximize: bool = False,
) -> LARSStep: ...

class LionStep(NamedTuple):
    p: Any
    exp_avg: Any

def lion(
    p: Any,
    g: Any,
    exp_avg: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.0001,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
) -> LionStep: ...

class MomentumStep(NamedTuple):
    p: Any
    moments: Any

def momentum(
    p: Any,
    g: Any,
    moments: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
) -> MomentumStep: ...

class NAdamStep(NamedTuple):
    p: Any
    exp_avg: Any
    exp_avg_sq: Any
    mu_product: float

def nadam(
    p: Any,
    g: Any,
    exp_avg: Any = None,
    exp_avg_sq: Any = None,
    mu_product: float | None = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.002,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    momentum_decay: float = 0.004,
    decoupled_weight_decay: bool = False,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
) -> NAdamStep: ...

class ProximalAdagradStep(NamedTuple):
    p: Any
    accum: Any

def proximal_adagrad(
    p: Any,
    g: Any,
    accum: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    l1: float = 0.0,
    l2: float = 0.0,
    initial_accumulator_value: float = 0.1,
    weight_decay: float = 0.0,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
) -> ProximalAdagradStep: ...

class RAdamStep(NamedTuple):
    p: Any
    exp_avg: Any
    exp_avg_sq: Any

def radam(
    p: Any,
    g: Any,
    exp_avg: Any = None,
    exp_avg_sq: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
) -> RAdamStep: ...

class RMSpropStep(NamedTuple):
    p: Any
    square_avg: Any
    momentum_buffer: Any
    grad_avg: Any

def rmsprop(
    p: Any,
    g: Any,
    square_avg: Any = None,
    momentum_buffer: Any = None,
    grad_avg: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
    square_avg_init: float = 0.0,
    eps_inside_sqrt: bool = False,
    lr_in_momentum: bool = False,
) -> RMSpropStep: ...

class RpropStep(NamedTuple):
    p: Any
    prev: Any
    step_size: Any

def rprop(
    p: Any,
    g: Any,
    prev: Any = None,
    step_size: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.01,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-06, 50.0),
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
    weight_decay: float = 0.0,
) -> RpropStep: ...

class SGDStep(NamedTuple):
    p: Any
    momentum_buffer: Any

def sgd(
    p: Any,
    g: Any,
    momentum_buffer: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    maximize: bool = False,
    lr_in_momentum: bool = False,
) -> SGDStep: ...

class LazyAdamStep(NamedTuple):
    p: Any
    exp_avg: Any
    exp_avg_sq: Any

def lazy_adam(
    p: Any,
    g: Any,
    exp_avg: Any = None,
    exp_avg_sq: Any = None,
    *,
    step: int,
    in_place: bool = False,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    maximize: bool = False,
    loss_scale: float = 1.0,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    grad_centralization: bool = False,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> LazyAdamStep: ...
