"""MindSpore's LARS: an optimizer around another, whose gradients it scales for each parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fusedopt.clipping import norm_of
from fusedopt.groups import Group
from fusedopt.layout import on_device_of
from fusedopt.mindspore.arguments import a_flag, a_float
from fusedopt.mindspore.custom import Optimizer, at_step, real_of, unscaled
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
        optimizer: One of this module, but LazyAdam, whose gradients of some rows have no norm here.
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
        if optimizer.takes_rows:
            raise TypeError(f"LARS takes dense gradients, got {type(optimizer).__name__}, which takes rows; wrap Adam.")
        self.epsilon, self.coefficient = a_float("LARS: epsilon", epsilon), a_float("LARS: coefficient", coefficient)
        self.use_clip, self.optimizer = a_flag("LARS: use_clip", use_clip), optimizer
        self._filter = lars_filter
        self._adapted: set[Parameter] = set()
        self._scales: list[float] = []  # of each group
        self._decays: list[Any] = []
        self._take_over(optimizer.param_groups)

    def _take_over(self, groups: Iterable[Group]) -> None:
        """Adapt their parameters, and have their loss scales and weight decays here."""
        self._adapted |= {parameter for group in groups for parameter in group["params"] if self._filter(parameter)}
        for group in groups:
            self._scales.append(group.rule.loss_scale)
            self._decays.append(group.schedules.get("weight_decay", group["weight_decay"]))
            group.update(weight_decay=0.0, loss_scale=1.0)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group to the other optimizer; its parameters are adapted and its weight decay is taken over."""
        self.optimizer.add_param_group(param_group)
        self._take_over(self.optimizer.param_groups[-1:])

    def load_state_dict(self, state_dict: Mapping[str, Any], *, convert: bool = False) -> None:
        """As the other optimizer does; weight decays and loss scales stay those that were taken over."""
        self.optimizer.load_state_dict(state_dict, convert=convert)
        for group in self.optimizer.param_groups:
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
                            parameter.grad[...] = unscaled(parameter.grad, scale)
                        if parameter in self._adapted:
                            self._adapt(parameter, decay, rate)
        self.optimizer.step()
        return self

    def _adapt(self, parameter: Parameter, decay: float, rate: float) -> None:
        of_data, of_gradient = norm_of(parameter.data), norm_of(parameter.grad)
        ratio = 1.0
        if of_data > 0 and of_gradient > 0:
            ratio = self.coefficient * of_data / (of_gradient + decay * of_data + self.epsilon)
            if self.use_clip:
                ratio = min(ratio / rate, 1.0) if rate > 0 else 1.0
        real = real_of(parameter)
        decayed = parameter.grad.astype(real) + real(decay) * parameter.data.astype(real)
        parameter.grad[...] = decayed * real(ratio)


Optimizer.register(LARS)
