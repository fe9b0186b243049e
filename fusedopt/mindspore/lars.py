"""MindSpore's LARS: an optimizer around another, whose gradients it scales for each parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusedopt.clipping import norm_of
from fusedopt.layout import on_device_of
from fusedopt.mindspore.arguments import a_flag, a_float
from fusedopt.mindspore.custom import Optimizer, at_step
from fusedopt.mindspore.fused import Fused
from fusedopt.parameter import Parameter


def adapted_by_name(parameter: Parameter) -> bool:
    """MindSpore's filter: normalization and biases keep their gradients as they are."""
    return not any(word in (parameter.name or "") for word in ("LayerNorm", "bias"))


class LARS:
    """Gradients times r = coefficient |p| / (|g| + weight_decay |p| + epsilon), after g <- g + weight_decay p; where
    use_clip, times min(r / lr, 1). Where a norm is 0, r is 1. Then the other optimizer's step, whose own weight decay
    is taken over and set to 0, as in MindSpore.

    It is array code around a kernel: `fusedopt.LARS` is all of it, with momentum, as kernels.

    Args:
        optimizer: One of this module.
        epsilon: Added to the divisor.
        coefficient: Trust coefficient.
        use_clip: See above.
        lars_filter: Parameter -> whether it is adapted; others are not decayed either.

    Source: You et al. 2017, arXiv:1708.03888; `mindspore.nn.LARS`.
    """

    def __init__(
        self,
        optimizer: Fused,
        epsilon: float = 1e-05,
        coefficient: float = 0.001,
        use_clip: bool = False,
        lars_filter: Callable[[Parameter], bool] = adapted_by_name,
    ) -> None:
        if not isinstance(optimizer, Fused):
            raise TypeError(f"LARS wraps an optimizer of fusedopt.mindspore, got {type(optimizer).__name__}.")
        self.epsilon, self.coefficient = a_float("LARS: epsilon", epsilon), a_float("LARS: coefficient", coefficient)
        self.use_clip, self.optimizer = a_flag("LARS: use_clip", use_clip), optimizer
        self._adapted = {parameter for parameter in optimizer.parameters() if lars_filter(parameter)}
        self._scales = [group.rule.loss_scale for group in optimizer.param_groups]
        self._decays = [group.schedules.get("weight_decay", group["weight_decay"]) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group.update(weight_decay=0.0, loss_scale=1.0)

    def __getattr__(self, name: str) -> Any:
        """Groups, state dicts and whatever else are the other optimizer's."""
        if name.startswith("__") or "optimizer" not in self.__dict__:  # as while it is copied
            raise AttributeError(f"LARS has no attribute {name!r}.")
        return getattr(self.optimizer, name)

    def __call__(self, gradients: Sequence[Any]) -> bool:
        """Take a step with these gradients, one for each parameter."""
        self.optimizer.assign_gradients(gradients)
        self.step()
        return True

    def step(self) -> LARS:
        """Scale the gradients in place, then take the other optimizer's step."""
        rates, step = self.optimizer.group_rates(), self.optimizer.global_step
        decays = [at_step(decay, step) for decay in self._decays]
        for group, scale, decay, rate in zip(self.optimizer.param_groups, self._scales, decays, rates):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    with on_device_of(parameter.data):
                        if scale != 1:
                            parameter.grad[...] = parameter.grad / parameter.dtype.type(scale)
                        if parameter in self._adapted:
                            self._adapt(parameter, decay, rate)
        self.optimizer.step()
        return self

    def _adapt(self, parameter: Parameter, decay: float, rate: float) -> None:
        of_data, of_gradient = norm_of(parameter.data), norm_of(parameter.grad)
        ratio = 1.0
        if of_data > 0 and of_gradient > 0:
            ratio = self.coefficient * of_data / (of_gradient + decay * of_data + self.epsilon)
            ratio = min(ratio / rate, 1.0) if self.use_clip else ratio
        real = np.float64 if parameter.dtype == np.float64 else np.float32
        decayed = parameter.grad.astype(real) + real(decay) * parameter.data.astype(real)
        parameter.grad[...] = decayed * real(ratio)


Optimizer.register(LARS)
