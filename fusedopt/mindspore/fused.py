"""What MindSpore's optimizers have in common, as kernels: its groups, its order of parameters, its way to be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import fusedopt.optimizer
from fusedopt.mindspore.arguments import ABOVE_ZERO, a_decay, a_number, a_rate
from fusedopt.mindspore.custom import Optimizer
from fusedopt.mindspore.groups import grouped
from fusedopt.misspelling import refusing_unknown
from fusedopt.parameter import Parameter


class Fused(fusedopt.optimizer.Optimizer):
    """Base class of MindSpore's optimizers. They are called with a tuple of gradients, as there, or take a `step()`.

    Class attributes:
        filters_names: Parameters without groups are not decayed where their names have `beta` or `gamma`.
        dynamic_decay: The weight decay may be a function of the step.
    """

    filters_names: ClassVar[bool] = True
    dynamic_decay: ClassVar[bool] = True

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__signature__" in vars(cls):  # the rule's; these classes have constructors of their own
            del cls.__signature__  # type: ignore[attr-defined]
        if "__init__" in vars(cls):
            cls.__init__ = refusing_unknown(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self, params: Any, learning_rate: Any, weight_decay: Any = 0.0, loss_scale: Any = 1.0, **options: Any
    ) -> None:
        name = type(self).__name__
        decay = a_decay(f"{name}: weight_decay", weight_decay, self.dynamic_decay)
        given = grouped(params, self.filters_names and decay != 0, name, self.dynamic_decay)
        self._order, self._undecayed, self.is_group_lr = given.order, given.undecayed, given.own_rates
        super().__init__(
            given.entries,
            lr=a_rate(f"{name}: learning_rate", learning_rate),
            weight_decay=decay,
            loss_scale=a_number(f"{name}: loss_scale", loss_scale, ABOVE_ZERO),
            **options,
        )

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a dict with "params" and options of its own; its parameters come after the others."""
        given = grouped([param_group], False, type(self).__name__, self.dynamic_decay)
        self._add(given.entries)
        self.is_group_lr |= given.own_rates

    @property
    def parameters_in_order(self) -> tuple[Parameter, ...]:
        """All parameters as gradients are given and states are numbered: as they came, or as order_params says."""
        known = set(map(id, self._order))
        return (*self._order, *(parameter for parameter in self.parameters() if id(parameter) not in known))

    def __call__(self, gradients: Sequence[Any]) -> bool:
        """Take a step with these gradients, one for each parameter; they stay with the parameters until cleared.

        Raises:
            ValueError, TypeError: Too many or few, or one does not fit its parameter; nothing is changed then.
        """
        self.assign_gradients(gradients)
        self.step()
        return True

    def assign_gradients(self, gradients: Sequence[Any]) -> None:
        """Give each parameter its gradient; None is none, and leaves the parameter alone."""
        parameters = self.parameters_in_order
        if len(gradients) != len(parameters):
            raise ValueError(
                f"{type(self).__name__} has {len(parameters)} parameters and was given {len(gradients)} gradients; "
                f"give one for each, in the order of its parameters."
            )
        for parameter, gradient in zip(parameters, gradients):
            if gradient is not None:
                parameter.check_gradient(gradient)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient

    def get_lr(self) -> Any:
        """The learning rate of the coming step; where groups have their own, a tuple with each parameter's."""
        rates = {id(p): rate for group, rate in zip(self._groups, self.group_rates()) for p in group["params"]}
        if self.is_group_lr:
            return tuple(rates[id(parameter)] for parameter in self.parameters_in_order)
        return rates[id(self._order[0])] if self._order else self.group_rates()[0]

    def get_weight_decay(self) -> tuple[float, ...]:
        """The weight decay of the coming step, for each parameter."""
        rules: list[Any] = [group.rule_at(group.steps) for group in self._groups]
        decays = {id(p): rule.weight_decay for group, rule in zip(self._groups, rules) for p in group["params"]}
        return tuple(decays[id(parameter)] for parameter in self.parameters_in_order)

    def group_rates(self) -> list[float]:
        """Each group's learning rate of the coming step."""
        rules: list[Any] = [group.rule_at(group.steps) for group in self._groups]
        return [rule.lr for rule in rules]

    def __getattr__(self, name: str) -> Any:
        if name in ("learning_rate", "get_lr_parameter"):
            raise AttributeError(
                f"{type(self).__name__} has its learning rate in each param group: optimizer.param_groups[0]['lr'], "
                f"which may be assigned; get_lr() is that of the coming step."
            )
        return super().__getattr__(name)

    @property
    def global_step(self) -> int:
        """How many steps were taken, or as was loaded: what schedules are asked for next."""
        return self._groups[0].steps

    def describe(self) -> str:
        """The groups with their parameters' names, and which are not decayed because of them."""
        lines = [repr(self)]
        if self._undecayed:
            names = ", ".join(str(parameter.name) for parameter in self._undecayed)
            lines.append(f"Not decayed, since their names have beta or gamma: {names}")
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """As the core's, with parameters numbered in their order here."""
        saved = super().state_dict()
        places = {id(parameter): place for place, parameter in enumerate(self.parameters_in_order)}
        numbers = [places[id(parameter)] for parameter in self.parameters()]
        for entry in saved["param_groups"]:
            entry["params"] = [numbers[number] for number in entry["params"]]
        saved["state"] = {numbers[number]: entry for number, entry in saved["state"].items()}
        return saved | {"state": dict(sorted(saved["state"].items()))}


Optimizer.register(Fused)
