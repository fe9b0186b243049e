# Written by fusedopt.stubs from the rules.
from typing import Any, NamedTuple

from fusedopt.single_step import apply as apply

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
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
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
    maximize: bool = False,
) -> AdamWStep: ...

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
    maximize: bool = False,
) -> LionStep: ...

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
    maximize: bool = False,
) -> SGDStep: ...
