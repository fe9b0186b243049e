"""A rule becomes programs: its functions run once on symbols, and what is left are the statements of each launch."""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Iterable, Mapping
from typing import Any

from fusedopt.rules import Reduction, Rule, State, Values
from fusedopt.rules.place import place_in
from fusedopt.rules.stages import GRADIENT_MEAN, GRADIENT_SQUARE, ROW, Stage
from fusedopt.statements import Program, TracingError
from fusedopt.symbols import Inputs, Trace, Unavailable

# Names in c and r of what prepares the gradient.
PREPARING = ("grad_scale", "clip_value", "norm_scale", GRADIENT_SQUARE, GRADIENT_MEAN)


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """One launch of a rule with its flags fixed, as two programs: the update, or one of the stages before it.

    Attributes:
        title: The rule and its flags, as one writes them.
        prologue: `constants`: inputs `h.lr`, `h.betas[0]`, ..., `step`, `grad_scale`, `a.name`, and `r.name`, the sums
            that earlier stages took; results by name.
        body: `update`: inputs `p`, `g`, `s.name`, `c.name`, and `r.name`, the means that earlier stages took of the
            rows; results `p`, the unscaled `g`, and each state by name. Of a stage: the terms by name.
        constants: Names of the numbers that the prologue hands to the body.
        states: Names of the state arrays, in order.
        scalar_state: Names of the scalar states, in order.
        advanced: Those of them that the prologue gives a new value.
        stage: What it is, where it is a stage.
        stages: Of an update, those before it.
        found: The results of earlier stages in order: name, and over what.
    """

    title: str
    prologue: Program
    body: Program
    constants: tuple[str, ...]
    states: tuple[str, ...]
    scalar_state: tuple[str, ...]
    advanced: tuple[str, ...]
    stage: Stage | None = None
    stages: tuple[Traced, ...] = ()
    found: tuple[tuple[str, str], ...] = ()

    @property
    def terms(self) -> tuple[str, ...]:
        """What a stage sums."""
        return () if self.stage is None else self.stage.names

    @property
    def rows(self) -> tuple[str, ...]:
        """The means of rows that the body may read."""
        return tuple(name for name, over in self.found if over == ROW)

    @property
    def arrays(self) -> list[str]:
        """What the body reads and makes of elements: the inputs by their names, then the terms of a stage."""
        states, rows, terms = ([f"{of}.{name}" for name in names] for of, names in self._named)
        return ["p", "g", *states, *rows, *terms]

    @property
    def _named(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return ("s", self.states), ("r", self.rows), ("t", self.terms)

    @property
    def results(self) -> dict[str, int]:
        """The results of the body by their places in `arrays`' names."""
        kind = "s" if self.stage is None else "t"
        return {name if name in ("p", "g") else f"{kind}.{name}": n for name, n in self.body.results.items()}


_traced: dict[tuple[type[Rule], tuple[tuple[str, bool], ...]], Traced] = {}


def trace(rule: Rule) -> Traced:
    """The two programs of a rule with its flags; made once for each combination of them.

    Raises:
        TracingError: The rule uses an operation that has no kernel form, branches on a value, returns something of
            another shape, or does not return its states.
    """
    key = (type(rule), rule.flags)
    if key not in _traced:
        once, again = _placed(rule), _placed(rule)
        if repr(once) != repr(again):
            raise TracingError(
                f"{type(rule).__name__} is not the same twice; it is run once and made into a kernel: it can neither "
                f"draw random numbers nor count its calls."
            )
        _traced[key] = once
    return _traced[key]


def _placed(rule: Rule) -> Traced:
    """`_trace`, whose errors say where in the rule's file they come from."""
    try:
        return _trace(rule)
    except TracingError as error:
        place = place_in(type(rule), error.__traceback__)
        if place:
            error.args = (f"{error} ({place})",)
        raise


def _kinds(value: Any) -> str:
    """Type names of what was returned."""
    return f"({', '.join(type(v).__name__ for v in value)})" if isinstance(value, tuple) else type(value).__name__


def _check_names(cls: type[Rule]) -> None:
    """Raise TracingError unless each state and scalar state has a name of its own, and hangs on a flag that exists."""
    kinds = {**{state.name: "state" for state in cls.all_states()}, **dict.fromkeys(cls.scalar_state, "state")}
    names = [*(state.name for state in cls.all_states()), *cls.scalar_state, *(sum.name for sum in cls.reductions)]
    for name in names:
        if keyword.iskeyword(name) or name.startswith("_"):  # neither is a field of what a step returns
            raise TracingError(
                f"{cls.__name__}: a {kinds.get(name, 'reduction')} is named {name!r}; a name is no keyword and begins "
                f"with no underscore: choose another."
            )
        if not name.isidentifier() or names.count(name) > 1 or name in ("p", "g", *PREPARING, cls.step_key):
            kind = kinds.get(name, "reduction")
            raise TracingError(
                f"{cls.__name__}: a {kind} is named {name!r}, which is taken or no name; choose another."
            )
    conditional: list[State | Reduction] = [*cls.all_states(), *cls.reductions]
    for one in conditional:
        if one.when is not None and one.when not in cls.switches():
            raise TracingError(
                f"{cls.__name__}: {type(one).__name__.lower()} {one.name!r} depends on {one.when!r}, no flag or switch "
                f"of the rule."
            )
    for state in cls.all_states():
        if isinstance(state.initial, str) and state.initial not in cls.number_names():
            raise TracingError(
                f"{cls.__name__}: state {state.name!r} starts from {state.initial!r}, no number of the rule's."
            )


def _trace(rule: Rule) -> Traced:
    cls = type(rule)
    _check_names(cls)
    shown = rule.shown()
    title = f"{cls.__name__}({', '.join(f'{name}={value}' for name, value in rule.flags if name in shown)})"
    found: list[tuple[str, str]] = []
    stages: list[Traced] = []
    for stage in rule.stages:
        stages.append(_launch(rule, title, tuple(found), stage))
        found += [(name, stage.over) for name in stage.names]
    return dataclasses.replace(_launch(rule, title, tuple(found), None), stages=tuple(stages))


def _launch(rule: Rule, title: str, found: tuple[tuple[str, str], ...], stage: Stage | None) -> Traced:
    """A stage, or the update."""
    names = type(rule).scalar_state
    prologue = _prologue(rule, [name for name, over in found if over != ROW])
    constants = tuple(name for name in prologue.results if name not in names)
    rows = [name for name, over in found if over == ROW]
    body = _update(rule, title, constants, rows) if stage is None else _terms(rule, constants, rows, stage)
    advanced = tuple(name for name in prologue.results if name in names and stage is None)
    return Traced(title, prologue, body, constants, rule.kept_states, tuple(names), advanced, stage=stage, found=found)


def _prologue(rule: Rule, sums: Iterable[str]) -> Program:
    cls, truths = type(rule), dict(rule.flags)
    trace = Trace(f"{cls.__name__}.scalars", elementwise=False)
    numbers: dict[str, Any] = {}
    for name in cls.number_names():
        numbers[name] = trace.input(f"h.{name}", uniform=True)
        numbers[name].truth = truths.get(name)
    a = Inputs(trace, "a", cls.scalar_state, uniform=True)
    symbolic = rule.with_numbers(numbers.values())
    step, grad_scale = trace.input("step", uniform=True), trace.input("grad_scale", uniform=True)
    own = symbolic.scalars(step, a)
    if not isinstance(own, Values):
        raise TracingError(f"{trace.what} must return Values(name=...), got {type(own).__name__}.")
    scalars = symbolic.constants(step, a, grad_scale, Inputs(trace, "r", sums, uniform=True))
    for name in set(vars(own)) & set(PREPARING):
        raise TracingError(f"{trace.what} returns {name}, which every rule has; choose another name.")
    results = {name: trace.symbol(value).number for name, value in vars(scalars).items()}
    return Program(tuple(trace.statements), results)


def _elements(rule: Rule, method: str, constants: Iterable[str], rows: Iterable[str]) -> tuple[Any, ...]:
    """A trace of elements; the rule without numbers; and p, the unscaled g, s and c."""
    cls, truths = type(rule), dict(rule.flags)
    trace = Trace(f"{cls.__name__}.{method}", elementwise=True)
    p, g = trace.input("p", uniform=False), trace.input("g", uniform=False)
    s, c = Inputs(trace, "s", rule.kept_states, uniform=False), Inputs(trace, "c", constants, uniform=True)
    vars(c).update({name: trace.input(f"r.{name}", uniform=False) for name in rows})
    hidden = [
        Unavailable(f"{trace.what} reads the hyperparameter {name}", truths.get(name)) for name in cls.number_names()
    ]
    symbolic = rule.with_numbers(hidden)
    return trace, symbolic, p, symbolic.unscaled(g, c), s, c


def _update(rule: Rule, title: str, constants: Iterable[str], rows: Iterable[str]) -> Program:
    trace, symbolic, p, unscaled, s, c = _elements(rule, "update", constants, rows)
    states = rule.kept_states
    returned = symbolic.update(p, symbolic.prepared(unscaled, c), s, c)
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Values):
        raise TracingError(f"{trace.what} must return the new parameter and Values(state=...), got {_kinds(returned)}.")
    p, new = returned
    if set(vars(new)) != set(states):
        raise TracingError(
            f"{trace.what} must return exactly its states ({', '.join(states) or 'none'}) for {title}, "
            f"got {', '.join(vars(new)) or 'none'}."
        )
    return _program(trace, {"p": p, "g": unscaled} | {name: getattr(new, name) for name in states})


def _terms(rule: Rule, constants: Iterable[str], rows: Iterable[str], stage: Stage) -> Program:
    trace, symbolic, p, unscaled, s, c = _elements(rule, "terms", constants, rows)
    terms = symbolic.summed(stage, p, unscaled, s, c)
    if not isinstance(terms, Values) or set(vars(terms)) != set(stage.names):
        kind = ", ".join(vars(terms)) if isinstance(terms, Values) else _kinds(terms)
        raise TracingError(f"{trace.what} must return Values of {', '.join(stage.names)}, got {kind or 'none'}.")
    return _program(trace, {name: getattr(terms, name) for name in stage.names})


def _program(trace: Trace, results: Mapping[str, Any]) -> Program:
    numbers = {name: trace.symbol(value).number for name, value in results.items()}
    for name, number in numbers.items():
        if trace.statements[number].boolean:
            raise TracingError(f"{trace.what} returns a truth value for {name}; it must return numbers.")
    return Program(tuple(trace.statements), numbers)
