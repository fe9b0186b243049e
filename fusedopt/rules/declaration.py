"""What a rule declares, options and states, and what the library asks of that; `rule.py` has the mathematics."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from fusedopt.rules.common_options import CommonOptions
from fusedopt.rules.hyperparameter import check_hyperparameters, checked, is_flag

Self = TypeVar("Self", bound="Declaration")


@dataclasses.dataclass(frozen=True)
class State:
    """One state array of a rule, shaped like the parameter.

    Args:
        name: Its key in state dicts.
        when: The flag or switch that it depends on; None if it is always there.
        initial: What its elements are at first, when the parameter's first step begins: a number, or the name of a
            hyperparameter.
        codes: How it is kept in 8 bits where that is asked for: "signed"; or, where it is never below zero and what is
            not zero never becomes zero, "unsigned" if it is made of squares and "magnitude" if of gradients as they
            are. None: it cannot be, since small differences of it decide.
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
class Declaration(CommonOptions):
    """Hyperparameters as fields, and states; how they are checked, and read. See `Rule` for the class attributes."""

    state: ClassVar[tuple[str | State, ...]] = ()
    scalar_state: ClassVar[Mapping[str, float]] = {}
    step_key: ClassVar[str | None] = "step"
    eager_state: ClassVar[bool] = False
    procedure: ClassVar[bool] = False
    no_storages: ClassVar[str] = ""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        check_hyperparameters(cls)

    def __post_init__(self) -> None:
        for name, field in self.options().items():
            value = getattr(self, name)
            if value is not field.default or not field.metadata["common"]:  # a new rule with each lr: 9 us less
                object.__setattr__(self, name, checked(type(self).__name__, field, value))
        self.check()
        self._check_storage()

    def check(self) -> None:
        """Raise ValueError where hyperparameters do not fit together; each one's own range is checked before."""

    def _check_storage(self) -> None:
        """Raise ValueError where the options of how arrays are kept contradict each other, or the rule."""
        given = [option for option in STORAGE_OPTIONS if getattr(self, option)]
        if not given:
            return
        name, states = type(self).__name__, {state.name: state for state in self.all_states()}
        if self.no_storages:
            raise ValueError(f"{name}: {given[0]} is not for {name}, {self.no_storages}.")
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

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """All hyperparameters and flags by name, in the order of the signature."""
        return _options(cls)  # type: ignore[arg-type]  # a class can be hashed

    @classmethod
    def derived_options(cls) -> dict[str, None]:
        """The options that follow from others where they are not given, each of which is None until then."""
        return {
            name: None
            for name, field in cls.options().items()
            if field.default is None and not field.metadata["common"]
        }

    @classmethod
    def common_defaults(cls) -> dict[str, Any]:
        """The options that every rule has, which param groups may leave out, with their defaults."""
        return {name: field.default for name, field in cls.options().items() if field.metadata["common"]}

    @classmethod
    def storage_options(cls) -> tuple[str, ...]:
        """Names of the options that say how arrays are kept."""
        return _storage_options(cls)  # type: ignore[arg-type]  # as above

    def shown(self) -> dict[str, Any]:
        """The options by name, without the common ones that are at their default; with the seed of what is random."""
        return {
            name: getattr(self, name)
            for name, field in self.options().items()
            if not field.metadata["common"] or getattr(self, name) != field.default or (name == "seed" and self.draws)
        }

    @classmethod
    def unknown_option(cls, name: object) -> str:
        """The sentence for an option that the rule does not have."""
        known = [option for option, field in cls.options().items() if field.init]
        near = difflib.get_close_matches(ELSEWHERE.get(str(name), str(name)), known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
        return f"{cls.__name__} has no option {name!r}; {hint}"

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
        counts = _number_fields(type(self))  # type: ignore[arg-type]  # a class can be hashed
        fields = [(getattr(self, name), count) for name, count in counts]
        return [number for value, count in fields for number in ((value,) if count is None else value)]

    def with_numbers(self: Self, values: Iterable[Any]) -> Self:
        """This rule with other things for its numbers, in the order of `number_names`: a tracer's symbols, say."""
        copy, new = object.__new__(type(self)), iter(values)
        copy.__dict__.update({name: getattr(self, name) for name in self.options()})
        for name, count in _number_fields(type(self)):  # type: ignore[arg-type]  # a class can be hashed
            copy.__dict__[name] = next(new) if count is None else tuple(itertools.islice(new, count))
        return copy

    def in_float64(self: Self) -> Self:
        """This rule with np.float64 numbers, with which `scalars` computes as CUDA does: 1/0 is inf."""
        return self.with_numbers(map(np.float64, self.numbers()))

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

    def initial(self, state: State) -> float:
        """What a state's elements are at first."""
        return float(getattr(self, state.initial)) if isinstance(state.initial, str) else state.initial

    def state_dtype_of(self, state: str) -> str | None:
        """`state_dtype` for the state of this name."""
        return self.state_dtype.get(state) if isinstance(self.state_dtype, Mapping) else self.state_dtype

    @functools.cached_property
    def state_dtypes(self) -> dict[str, str | None]:
        """`state_dtype` for each kept state; None: as the parameter."""
        return {name: self.state_dtype_of(name) for name in self.kept_states}

    @property
    def draws(self) -> bool:
        """Whether steps may round at random, for which they are counted."""
        return self.stochastic_rounding or (self.state_dtype is not None and "int8" in self.state_dtypes.values())

    @property
    def counter_key(self) -> str | None:
        """`step_key`, and "step" where random numbers are drawn for each step: another than the last one's."""
        return "step" if self.draws else self.step_key

    @property
    def counts(self) -> bool:
        """Whether an update advances the counter: where it is the age of state that this variant lacks, it does not."""
        return self.counter_key is not None or bool(self.kept_states) or bool(self.scalar_state)


@functools.cache
def _options(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    fields = sorted(dataclasses.fields(cls), key=lambda field: bool(field.metadata.get("common")))  # own ones first
    return {field.name: field for field in fields}


@functools.cache
def _storage_options(cls: Any) -> tuple[str, ...]:
    return tuple(name for name, field in cls.options().items() if field.metadata["storage"])


@functools.cache
def _number_names(cls: Any) -> tuple[str, ...]:
    fields = _number_fields(cls)
    parts = ([name] if count is None else [f"{name}[{i}]" for i in range(count)] for name, count in fields)
    return tuple(itertools.chain.from_iterable(parts))


@functools.cache
def _number_fields(cls: Any) -> tuple[tuple[str, int | None], ...]:
    """The options that are numbers, and of those that are tuples how many they have."""
    numbers = [(name, field.default) for name, field in cls.options().items() if not is_flag(field)]
    return tuple((name, len(default) if isinstance(default, tuple) else None) for name, default in numbers)
