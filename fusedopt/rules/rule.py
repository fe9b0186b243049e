"""What a rule is: a frozen dataclass of hyperparameters, the names of its state, and two pure functions."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import numpy as np

from fusedopt.rules.arithmetic import smaller
from fusedopt.rules.declaration import Declaration
from fusedopt.rules.stages import (
    CENTERING,
    CLIPPING,
    GRADIENT_MEAN,
    GRADIENT_SQUARE,
    GROUP,
    OWN,
    ROW,
    TENSOR,
    Reduction,
    Stage,
)

Self = TypeVar("Self", bound="Rule")


class Values(SimpleNamespace):
    """Values by name: `Values(lr=0.1).lr`."""


@dataclasses.dataclass(frozen=True)
class Rule(Declaration):
    """Base class of update rules. A subclass is a frozen dataclass whose fields are `hyperparameter(...)`.

    A rule is written once, in NumPy, and is the reference, the CPU path and the CUDA kernel. What one writes is
    told here; all other methods and properties are what the library asks of a rule. Two are needed, and are pure:

    - `scalars(step, a)` computes, in float64, what depends on hyperparameters (`self.lr`, ...), the number of this
      update (`step`, 1.0 at the first) and scalar state (`a.name`) alone. It returns `Values(name=...)`; a value named
      like a scalar state is that state's new value. It may use + - * /, comparisons, `np.sqrt`, `np.where`, and
      `power`, `real_power`, `exp2`, `log2`, `larger`, `smaller` and `sign` of `fusedopt.rules`.
    - `update(p, g, s, c)` takes parameter, gradient, states (`s.name`) and the scalars (`c.name`), and returns the new
      parameter and `Values(state=...)`. It uses the same operations but `power`, on whole arrays, never writes in
      place, and branches on flags and switches alone (`if self.amsgrad:`).

    A rule with `reductions` has two more, also pure, and takes two launches a step:

    - `terms(p, g, s, c)` takes what `update` takes, and returns `Values(name=elements)` for each reduction.
    - `ratios(r, c)` computes, in float64, further values of `c` for `update` from the sums of these elements over the
      whole tensor (`r.name`), hyperparameters, and what `scalars` returned.

    Some rules have these too: `check()` raises ValueError where hyperparameters do not fit together,
    `check_shape(described, shape)` where a parameter cannot be trained; `coupled_decay` names the decay that `update`
    adds to the gradient, for `grad_centralization`.

    Class attributes:
        state: Names of the state arrays, or `State(name, when=flag)`, in the order in which they are kept.
        scalar_state: Initial values of the float64 scalars kept for each parameter, by name.
        reductions: What is summed over each tensor before the update, as `Reduction(name)`.
        step_key: The counter's key in state dicts. None: the counter is not in them; it is the age of the state, which
            starts from the gradient, so `step == 1` means that the state arrays hold nothing yet.
        eager_state: Whether the state is made with the optimizer, not at each parameter's first step. (In torch, that
            of param groups that are added later is not.)
        procedure: Whether steps are more than `update` over all elements, and so have no single kernel.
        no_storages: Why there is no choice of how arrays are kept, and what to choose instead; empty where there is.
    """

    reductions: ClassVar[tuple[Reduction, ...]] = ()

    def scalars(self, step: Any, a: Any) -> Values:
        """Numbers of this step, in float64, for `update`. Each rule has its own: without it, nothing can be traced.

        Args:
            step: The number of this update, 1.0 at the first.
            a: The scalar state by name, a number each.
        """
        # Of a rule that somebody forgot to finish; `Rule` itself updates nothing.
        raise NotImplementedError(f"rule {type(self).__name__} has no method scalars(self, step, a)")

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        """The new parameter and the new states. Each rule has its own: without it, nothing can be traced.

        Args:
            p, g: Parameter and gradient, arrays of one shape and of the arithmetic's dtype (float32 or float64).
            s: The state arrays by name, likewise.
            c: What `scalars` returned, rounded to that dtype.
        """
        # As in `scalars`.
        raise NotImplementedError(f"rule {type(self).__name__} has no method update(self, p, g, s, c)")

    def terms(self, p: Any, g: Any, s: Any, c: Any) -> Values:
        """The elements whose sums over the tensor `ratios` needs: an array for each of the rule's reductions.

        Args:
            p, g, s, c: As `update` has them, without what `ratios` adds to c.
        """
        # Asked of rules that declare reductions alone, and of such a one that is not finished.
        raise NotImplementedError(f"rule {type(self).__name__} has reductions and no method terms(self, p, g, s, c)")

    def ratios(self, r: Any, c: Any) -> Values:
        """Further numbers of this step for `update`, in float64, from what was summed over the tensor.

        Args:
            r: The sums by name.
            c: What `scalars` returned.
        """
        # As in `terms`.
        raise NotImplementedError(f"rule {type(self).__name__} has reductions and no method ratios(self, r, c)")

    @property
    def coupled_decay(self) -> str | None:
        """The name in c of what `update` multiplies parameters by and adds to the gradient; None where it adds none.

        The mean that `grad_centralization` subtracts is that of the gradient with this decay.
        """
        return None

    def check_shape(self, described: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError where the rule cannot train a parameter of this shape, which messages call `described`."""

    # What one does not write: what the rest of the library asks of a rule.

    def constants(self, step: Any, a: Any, grad_scale: Any, r: Values | None = None) -> Values:
        """`scalars`, `ratios`, and what `unscaled` and `prepared` need.

        Args:
            grad_scale: What the gradients are divided by, for this step alone.
            r: The sums of the stages so far, in float64.
        """
        values, sums = self.scalars(step, a), vars(r) if r is not None else {}
        if isinstance(values, Values):
            values.grad_scale = grad_scale * self.loss_scale
            if self.clip_value:
                values.clip_value = self.clip_value
            if GRADIENT_SQUARE in sums:  # of a norm of infinity 0, of NaN NaN, as torch.nn.utils.clip_grad_norm_
                values.norm_scale = smaller(self.clip_norm / (np.sqrt(sums[GRADIENT_SQUARE]) + 1e-6), 1.0)
            if self._own_names and all(name in sums for name in self._own_names):
                ratios = self.ratios(r, values)
                if not isinstance(ratios, Values):
                    name = type(self).__name__
                    raise TypeError(f"{name}.ratios must return Values(name=...), got {type(ratios).__name__}.")
                vars(values).update(vars(ratios))
        return values

    def unscaled(self, g: Any, c: Any) -> Any:
        """The gradient without loss scales."""
        return np.where(c.grad_scale != 1, g / c.grad_scale, g)

    def prepared(self, g: Any, c: Any) -> Any:
        """The unscaled gradient as `update` has it. NaN stays NaN."""
        if self.clip_norm:
            g = g * c.norm_scale
        if self.clip_value:
            g = np.where(g > c.clip_value, c.clip_value, np.where(g < -c.clip_value, -c.clip_value, g))
        if GRADIENT_MEAN in vars(c):  # of -g + decay p where an update takes -g
            g = g + c.gradient_mean if self._ascends else g - c.gradient_mean
        return g

    def summed(self, stage: Stage, p: Any, g: Any, s: Any, c: Any) -> Values:
        """The elements that a stage sums, by name; the gradient is unscaled."""
        if stage.slot == CLIPPING:
            return Values(**{GRADIENT_SQUARE: g * g})
        g = self.prepared(g, c)
        if stage.slot == OWN:
            return self.terms(p, g, s, c)
        g = -g if self._ascends else g
        if self.coupled_decay is not None:
            decay = getattr(c, self.coupled_decay)
            g = np.where(decay != 0, g + decay * p, g)
        return Values(**{GRADIENT_MEAN: g})

    @property
    def _ascends(self) -> bool:
        return bool(getattr(self, "maximize", False))

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """What is summed before the update, in order; each is a launch."""
        clipping = [Stage(CLIPPING, GROUP, (GRADIENT_SQUARE,))] if self.clip_norm else []
        centering = [Stage(CENTERING, ROW, (GRADIENT_MEAN,))] if self.grad_centralization else []
        own = [Stage(OWN, TENSOR, self._own_names)] if self._own_names else []
        return (*clipping, *centering, *own)

    @functools.cached_property
    def _own_names(self) -> tuple[str, ...]:
        return tuple(r.name for r in self.reductions if r.when is None or bool(getattr(self, r.when)))

    def form(self: Self, shape: tuple[int, ...]) -> Self:
        """The rule as it is for a parameter of this shape: of a vector, no gradient is centralized."""
        return self._of_vectors if self.grad_centralization and len(shape) < 2 else self

    @functools.cached_property
    def _of_vectors(self) -> Any:
        return dataclasses.replace(self, grad_centralization=False)


def check_declaration(rule: Any) -> None:
    """Raise TypeError, with the cure, for what is no rule: the first mistakes in one of one's own."""
    if not isinstance(rule, type) or not issubclass(rule, Rule):
        what = f"an instance, {rule!r}" if isinstance(rule, Rule) else repr(rule)
        raise TypeError(f"rule= takes a class derived from fusedopt.rules.Rule, got {what}.")
    if "__dataclass_fields__" not in vars(rule):
        raise TypeError(f"rule {rule.__name__} must be decorated with @dataclass(frozen=True).")
    for name, field in rule.options().items():
        if "doc" not in field.metadata:
            raise TypeError(
                f"rule {rule.__name__}: declare {name} with hyperparameter, as {name}: float = hyperparameter(0.1, "
                f"'[0, inf)', 'what it is') or {name}: bool = hyperparameter(False, 'what it is')."
            )
    if isinstance(rule.state, str):
        raise TypeError(f"rule {rule.__name__}: state must be a tuple of names, as ({rule.state!r},).")
