"""What a rule is: a frozen dataclass of hyperparameters, the names of its state, and two pure functions."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import numpy as np

from fusedopt.rules.arithmetic import smaller
from fusedopt.rules.common_options import CommonOptions
from fusedopt.rules.hyperparameter import check_hyperparameters, checked, is_flag
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
class State:
    """One state array of a rule, shaped like the parameter.

    Args:
        name: Its key in state dicts.
        when: The flag or switch that it depends on; None if it is always there.
        initial: What its elements are at first, when the parameter's first step begins: a number, or the name of a
            hyperparameter.
        codes: How it is kept in 8 bits where that is asked for: "signed", or "unsigned" where it is never below zero
            and what is not zero never becomes zero. None: it cannot be, since small differences of it decide.
    """

    name: str
    when: str | None = None
    initial: float | str = 0.0
    codes: str | None = "signed"


# The options that say how arrays are kept.
STORAGE_OPTIONS = tuple(field.name for field in dataclasses.fields(CommonOptions) if field.metadata["storage"])
# What other libraries call some options.
ELSEWHERE = {"learning_rate": "lr", "beta1": "betas", "beta2": "betas", "epsilon": "eps"}


@dataclasses.dataclass(frozen=True)
class Rule(CommonOptions):
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

    state: ClassVar[tuple[str | State, ...]] = ()
    scalar_state: ClassVar[Mapping[str, float]] = {}
    step_key: ClassVar[str | None] = "step"
    reductions: ClassVar[tuple[Reduction, ...]] = ()
    eager_state: ClassVar[bool] = False
    procedure: ClassVar[bool] = False
    no_storages: ClassVar[str] = ""

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

    def check(self) -> None:
        """Raise ValueError where hyperparameters do not fit together; each one's own range is checked before."""

    def check_shape(self, described: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError where the rule cannot train a parameter of this shape, which messages call `described`."""

    # What one does not write: how a rule is checked, and what the rest of the library asks of it.

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        check_hyperparameters(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(type(self).__name__, field, getattr(self, field.name)))
        self.check()
        self._check_storage()

    def _check_storage(self) -> None:
        """Raise ValueError where the options of how arrays are kept contradict each other, or the rule."""
        name, states = type(self).__name__, {state.name: state for state in self.all_states()}
        for option in STORAGE_OPTIONS if self.no_storages else ():
            if getattr(self, option):
                raise ValueError(f"{name}: {option} is not for {name}, {self.no_storages}.")
        if self.kahan and self.master_weights:
            raise ValueError(
                f"{name}: kahan=True and master_weights={self.master_weights!r} both keep what rounding loses; choose "
                f"master_weights='split', which keeps all of it in as many bytes."
            )
        names = [*states, *(state for state in self.state_dtypes if state not in states)]
        for state in self.state_dtype if isinstance(self.state_dtype, Mapping) else ():
            if state not in names:
                raise ValueError(f"{name}: state_dtype has {state!r}, and the states are {', '.join(names) or 'none'}.")
        lost = [state for state, dtype in self.state_dtypes.items() if dtype == "int8" and not states[state].codes]
        if lost:
            cure = {state: "float32" if state in lost else dtype for state, dtype in self.state_dtypes.items()}
            raise ValueError(f"{name}: int8 is too coarse for the state {lost[0]!r}; choose state_dtype={cure!r}.")

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

    def initial(self, state: State) -> float:
        """What a state's elements are at first."""
        return float(getattr(self, state.initial)) if isinstance(state.initial, str) else state.initial

    @classmethod
    def derived_options(cls) -> dict[str, None]:
        """The options that follow from others where they are not given, each of which is None until then."""
        return {name: None for name, field in cls.options().items() if field.default is None}

    @classmethod
    def common_defaults(cls) -> dict[str, Any]:
        """The options that every rule has, which param groups may leave out, with their defaults."""
        return {name: field.default for name, field in cls.options().items() if field.metadata["common"]}

    @classmethod
    def storage_options(cls) -> list[str]:
        """Names of the options that say how arrays are kept."""
        return [name for name in cls.options() if name in STORAGE_OPTIONS]

    def shown(self) -> dict[str, Any]:
        """The options by name, without the common ones that are at their default; with the seed of what is random."""
        return {
            name: getattr(self, name)
            for name, field in self.options().items()
            if not field.metadata["common"] or getattr(self, name) != field.default or (name == "seed" and self.draws)
        }

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """All hyperparameters and flags by name, in the order of the signature."""
        return _options(cls)  # type: ignore[arg-type]  # a class can be hashed

    @classmethod
    def all_states(cls) -> tuple[State, ...]:
        """Every state array that some variant of the rule keeps."""
        return tuple(State(entry) if isinstance(entry, str) else entry for entry in cls.state)

    def states(self) -> tuple[State, ...]:
        """The state arrays that the rule keeps with these flags."""
        return tuple(state for state in self.all_states() if state.when is None or bool(getattr(self, state.when)))

    @functools.cached_property
    def kept_states(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(state.name for state in self.states())

    @functools.cached_property
    def state_dtypes(self) -> dict[str, str | None]:
        """`state_dtype` for each kept state; None: as the parameter."""
        return {name: self.state_dtype_of(name) for name in self.kept_states}

    def state_dtype_of(self, state: str) -> str | None:
        """`state_dtype` for the state of this name."""
        return self.state_dtype.get(state) if isinstance(self.state_dtype, Mapping) else self.state_dtype

    @functools.cached_property
    def draws(self) -> bool:
        """Whether steps may round at random, for which they are counted."""
        return self.stochastic_rounding or "int8" in self.state_dtypes.values()

    @functools.cached_property
    def counter_key(self) -> str | None:
        """`step_key`, and "step" where random numbers are drawn for each step: another than the last one's."""
        return "step" if self.draws else self.step_key

    @property
    def counts(self) -> bool:
        """Whether an update advances the counter: where it is the age of state that this variant lacks, it does not."""
        return self.counter_key is not None or bool(self.kept_states) or bool(self.scalar_state)

    @property
    def flags(self) -> tuple[tuple[str, Any], ...]:
        """The flags, and whether each switch is on: what tells one kernel variant from another."""
        chosen = {name for name, field in self.options().items() if field.metadata["choices"]}
        values = ((name, getattr(self, name)) for name in self.switches())
        return tuple((name, value if name in chosen else bool(value)) for name, value in values)

    @classmethod
    def switches(cls) -> tuple[str, ...]:
        """Names of the flags, and of the numbers that are switches too."""
        options = cls.options().items()
        return tuple(n for n, f in options if f.metadata["switch"] or (is_flag(f) and not f.metadata["storage"]))

    @classmethod
    def number_names(cls) -> tuple[str, ...]:
        """The numbers of the hyperparameter table in order: `lr`, `betas[0]`, `betas[1]`, ..."""
        return _number_names(cls)  # type: ignore[arg-type]  # a class can be hashed

    def numbers(self) -> list[float]:
        """The values that go with `number_names`."""
        return [value for _, value in _numbers(type(self), lambda name: getattr(self, name))]

    def with_numbers(self: Self, values: Iterable[Any]) -> Self:
        """This rule with other things for its numbers, in the order of `number_names`: a tracer's symbols, say."""
        copy, new = object.__new__(type(self)), iter(values)
        for name, field in self.options().items():
            value = getattr(self, name)
            if not is_flag(field):
                value = tuple(next(new) for _ in value) if isinstance(value, tuple) else next(new)
            copy.__dict__[name] = value
        return copy

    def in_float64(self: Self) -> Self:
        """This rule with np.float64 numbers, with which `scalars` computes as CUDA does: 1/0 is inf."""
        return self.with_numbers(map(np.float64, self.numbers()))

    @classmethod
    def unknown_option(cls, name: object) -> str:
        """The sentence for an option that the rule does not have."""
        known = [option for option, field in cls.options().items() if field.init]
        near = difflib.get_close_matches(ELSEWHERE.get(str(name), str(name)), known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
        return f"{cls.__name__} has no option {name!r}; {hint}"


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


@functools.cache
def _options(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    fields = sorted(dataclasses.fields(cls), key=lambda field: bool(field.metadata.get("common")))  # own ones first
    return {field.name: field for field in fields}


@functools.cache
def _number_names(cls: Any) -> tuple[str, ...]:
    return tuple(name for name, _ in _numbers(cls, lambda name: cls.options()[name].default))


def _numbers(cls: type[Rule], value_of: Callable[[str], Any]) -> Iterator[tuple[str, float]]:
    for name, field in cls.options().items():
        value = value_of(name)
        if isinstance(field.default, tuple):
            yield from ((f"{name}[{i}]", x) for i, x in enumerate(value))
        elif not is_flag(field):
            yield name, value
