"""MindSpore's optimizers: its arguments and defaults on the rules of this library.

`thor` and the AdaSum wrappers are not here: they need a network's second-order information, and several machines.
"""

from __future__ import annotations

from typing import Any

from fusedopt import rules
from fusedopt.mindspore.arguments import ABOVE_ZERO, FROM_ZERO, a_flag, a_float, a_number
from fusedopt.mindspore.fused import Fused


class SGD(Fused, rule=rules.SGD):
    """`fusedopt.SGD`. Every parameter is decayed, whatever its name; the decay is a number.

    Source: `mindspore.nn.SGD`, without its decay that is loss_scale times too strong in groups.
    """

    filters_names = False
    dynamic_decay = False

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 0.1,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        loss_scale: float = 1.0,
    ) -> None:
        options = {"momentum": a_number("SGD: momentum", momentum), "dampening": a_number("SGD: dampening", dampening)}
        super().__init__(
            params, learning_rate, weight_decay, loss_scale, nesterov=a_flag("SGD: nesterov", nesterov), **options
        )


class Momentum(Fused, rule=rules.Momentum):
    """`fusedopt.Momentum`: a buffer that starts from zeros. Source: `mindspore.nn.Momentum`."""

    def __init__(
        self,
        params: Any,
        learning_rate: Any,
        momentum: float,
        weight_decay: Any = 0.0,
        loss_scale: float = 1.0,
        use_nesterov: bool = False,
    ) -> None:
        options = {
            "momentum": a_float("Momentum: momentum", momentum),
            "nesterov": a_flag("Momentum: use_nesterov", use_nesterov),
        }
        super().__init__(params, learning_rate, weight_decay, loss_scale, **options)


class Adagrad(Fused, rule=rules.Adagrad):
    """`fusedopt.Adagrad(eps=0)` from an accumulator of 0.1; `update_slots=False` leaves it as it is.

    Source: `mindspore.nn.Adagrad`.
    """

    def __init__(
        self,
        params: Any,
        accum: float = 0.1,
        learning_rate: Any = 1e-3,
        update_slots: bool = True,
        loss_scale: float = 1.0,
        weight_decay: Any = 0.0,
    ) -> None:
        options = {
            "initial_accumulator_value": a_float("Adagrad: accum", accum),
            "update_accumulator": a_flag("Adagrad: update_slots", update_slots),
        }
        super().__init__(params, learning_rate, weight_decay, loss_scale, eps=0.0, **options)


class Adadelta(Fused, rule=rules.Adadelta):
    """`fusedopt.Adadelta`. Source: `mindspore.nn.Adadelta`."""

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 1.0,
        rho: float = 0.9,
        epsilon: float = 1e-6,
        loss_scale: float = 1.0,
        weight_decay: Any = 0.0,
    ) -> None:
        options = {"rho": a_float("Adadelta: rho", rho), "eps": a_float("Adadelta: epsilon", epsilon)}
        super().__init__(params, learning_rate, weight_decay, loss_scale, **options)


class RMSProp(Fused, rule=rules.RMSprop):
    """`fusedopt.RMSprop`, whose mean square starts from 1, with epsilon under the root and lr in the momentum.

    Source: `mindspore.nn.RMSProp`, without the NaN of its centered CUDA kernel where rounding puts the variance below
    zero.
    """

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 0.1,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        use_locking: bool = False,
        centered: bool = False,
        loss_scale: float = 1.0,
        weight_decay: Any = 0.0,
    ) -> None:
        a_flag("RMSProp: use_locking", use_locking)
        options = {
            "alpha": a_float("RMSProp: decay", decay),
            "momentum": a_float("RMSProp: momentum", momentum),
            "eps": a_float("RMSProp: epsilon", epsilon, ABOVE_ZERO),
            "centered": a_flag("RMSProp: centered", centered),
        }
        of_mindspore = {"square_avg_init": 1.0, "eps_inside_sqrt": True, "lr_in_momentum": True}
        super().__init__(params, learning_rate, weight_decay, loss_scale, **options, **of_mindspore)


class Rprop(Fused, rule=rules.Rprop):
    """`fusedopt.Rprop`. The learning rate is the first step's size alone. Source: `mindspore.nn.Rprop`."""

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 0.1,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        weight_decay: Any = 0.0,
    ) -> None:
        super().__init__(params, learning_rate, weight_decay, etas=etas, step_sizes=step_sizes)


class ASGD(Fused, rule=rules.ASGD):
    """`fusedopt.ASGD`. Source: `mindspore.nn.ASGD`."""

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 0.1,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: Any = 0.0,
    ) -> None:
        options = {name: a_float(f"ASGD: {name}", value) for name, value in (("lambd", lambd), ("alpha", alpha))}
        super().__init__(params, learning_rate, weight_decay, t0=a_float("ASGD: t0", t0), **options)


class FTRL(Fused, rule=rules.FTRL):
    """`fusedopt.FTRL`. Every parameter is decayed, whatever its name; schedules and rates of groups are allowed here.

    Source: `mindspore.nn.FTRL`.
    """

    filters_names = False

    def __init__(
        self,
        params: Any,
        initial_accum: float = 0.1,
        learning_rate: Any = 1e-3,
        lr_power: float = -0.5,
        l1: float = 0.0,
        l2: float = 0.0,
        use_locking: bool = False,
        loss_scale: float = 1.0,
        weight_decay: Any = 0.0,
    ) -> None:
        a_flag("FTRL: use_locking", use_locking)
        options = {"initial_accumulator_value": a_float("FTRL: initial_accum", initial_accum), "lr_power": lr_power}
        options |= {"l1": a_float("FTRL: l1", l1), "l2": a_float("FTRL: l2", l2)}
        super().__init__(params, learning_rate, weight_decay, loss_scale, **options)


class ProximalAdagrad(Fused, rule=rules.ProximalAdagrad):
    """`fusedopt.ProximalAdagrad`. Source: `mindspore.nn.ProximalAdagrad`."""

    def __init__(
        self,
        params: Any,
        accum: float = 0.1,
        learning_rate: Any = 1e-3,
        l1: float = 0.0,
        l2: float = 0.0,
        use_locking: bool = False,
        loss_scale: float = 1.0,
        weight_decay: Any = 0.0,
    ) -> None:
        a_flag("ProximalAdagrad: use_locking", use_locking)
        options = {"initial_accumulator_value": a_float("ProximalAdagrad: accum", accum, FROM_ZERO)}
        options |= {"l1": a_float("ProximalAdagrad: l1", l1), "l2": a_float("ProximalAdagrad: l2", l2)}
        super().__init__(params, learning_rate, weight_decay, loss_scale, **options)
