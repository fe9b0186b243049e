"""A rule becomes a list of statements: its two functions run once on symbols, through NumPy's own protocols.

The statements have two consumers, `cuda_text` and `backends.numpy`. Nothing here knows either of them.
"""

from __future__ import annotations

import dataclasses
import functools
import keyword
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from fusedopt.rules import Reduction, Rule, State, Values, power
from fusedopt.rules.place import place_in
from fusedopt.rules.stages import GRADIENT_MEAN, GRADIENT_SQUARE, ROW, Stage

COMPARISONS = {np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal}
ARITHMETIC = {np.add, np.subtract, np.multiply, np.divide, np.negative, np.sqrt, np.absolute, np.floor}
OPERATIONS = ARITHMETIC | COMPARISONS
# Those that C++ and Python write alike.
OPERATORS = {
    np.add: "{} + {}",
    np.subtract: "{} - {}",
    np.multiply: "{} * {}",
    np.divide: "{} / {}",
    np.negative: "-{}",
    np.greater: "{} > {}",
    np.greater_equal: "{} >= {}",
    np.less: "{} < {}",
    np.less_equal: "{} <= {}",
    np.equal: "{} == {}",
    np.not_equal: "{} != {}",
}
WHERE, INPUT, CONSTANT = "where", "input", "constant"
# Names in c and r of what prepares the gradient.
PREPARING = ("grad_scale", "clip_value", "norm_scale", GRADIENT_SQUARE, GRADIENT_MEAN)


# What there is to sum over a tensor with, in NumPy.
SUMS = {
    "sum",
    "mean",
    "average",
    "norm",
    "dot",
    "vdot",
    "inner",
    "std",
    "var",
    "max",
    "min",
    "amax",
    "amin",
    "all",
    "any",
}
SUMMED = (
    "a rule sees one element at a time; sums over a tensor, and what is made of them, are declared: reductions, terms "
    "and ratios, as docs/custom_rules.md shows"
)


class TracingError(TypeError):
    """A rule does something that cannot become a kernel; the message names the rule, thing, cure and line."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """One operation on earlier statements.

    Attributes:
        operation: A ufunc of `OPERATIONS`; `power`, `exponent` or `scaled` of the rules; or where, input, constant.
        operands: Numbers of the statements it reads.
        value: An input's name, such as `p` or `s.exp_avg`; a constant's value.
        boolean: Whether it is a truth value rather than a number.
        uniform: Whether it is the same for all elements, as everything made from `c.` alone is.
    """

    operation: Any
    operands: tuple[int, ...] = ()
    value: Any = None
    boolean: bool = False
    uniform: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Statements in the order in which they can be executed, and the number of the statement that gives each result."""

    statements: tuple[Statement, ...]
    results: Mapping[str, int]

    @functools.cached_property
    def needed(self) -> frozenset[int]:
        """Numbers of the statements that some result is made of."""
        needed = set(self.results.values())
        for number in reversed(range(len(self.statements))):
            if number in needed:
                needed |= set(self.statements[number].operands)
        return frozenset(needed)

    @functools.cached_property
    def inputs(self) -> frozenset[str]:
        """Names of the inputs that some result is made of."""
        return frozenset(s.value for n, s in enumerate(self.statements) if s.operation == INPUT and n in self.needed)


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


class _Trace:
    """The statements so far; equal ones are one."""

    def __init__(self, what: str, elementwise: bool) -> None:
        self.what, self.elementwise = what, elementwise
        self.statements: list[Statement] = []
        self._numbers: dict[Statement, int] = {}

    def add(self, statement: Statement) -> Symbol:
        # A constant's key is its repr: 0.0 and -0.0 are equal to Python and not to a rule.
        key = dataclasses.replace(statement, value=repr(statement.value))
        if key not in self._numbers:
            self._numbers[key] = len(self.statements)
            self.statements.append(statement)
        return Symbol(self, self._numbers[key])

    def input(self, name: str, uniform: bool) -> Symbol:
        return self.add(Statement(INPUT, value=name, uniform=uniform))

    def apply(self, operation: Any, *operands: Any) -> Symbol:
        symbols = [self.symbol(operand) for operand in operands]
        statements = [self.statements[symbol.number] for symbol in symbols]
        if operation not in COMPARISONS and operation is not WHERE and any(s.boolean for s in statements):
            raise TracingError(f"{self.what} calculates with a truth value; choose between numbers with np.where.")
        boolean = operation in COMPARISONS
        if operation is WHERE and (statements[1].boolean or statements[2].boolean):
            raise TracingError(f"{self.what}: np.where must choose between numbers, not between truth values.")
        uniform = all(s.uniform for s in statements)
        return self.add(Statement(operation, tuple(s.number for s in symbols), boolean=boolean, uniform=uniform))

    def symbol(self, value: Any) -> Symbol:
        if isinstance(value, Symbol):
            if value.trace is not self:
                raise TracingError(f"{self.what} uses a value of another function; hand it over in the scalars.")
            return value
        if isinstance(value, Unavailable):
            value.refuse()
        if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
            return self.add(Statement(CONSTANT, value=float(value), uniform=True))
        raise TracingError(
            f"{self.what} uses {value!r} ({type(value).__name__}) as a constant; use a Python number, whose type "
            f"follows the parameter's."
        )


class Symbol(NDArrayOperatorsMixin):
    """Stands for an array or a scalar in a rule; every operation on it adds a statement."""

    __slots__ = ("number", "trace", "truth")

    def __init__(self, trace: _Trace, number: int, truth: bool | None = None) -> None:
        self.trace, self.number, self.truth = trace, number, truth

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Symbol:
        if method != "__call__" or keywords:
            what = f"np.{ufunc.__name__}" + (f".{method}" if method != "__call__" else f" with {', '.join(keywords)}=")
            cure = "operations are called plainly, and write nothing: p = p - x, not p -= x"
            raise TracingError(f"{self.trace.what} uses {what}; {SUMMED if method == 'reduce' else cure}.")
        if ufunc is np.square or (ufunc is np.power and _is_two(inputs[1])):
            return self.trace.apply(np.multiply, inputs[0], inputs[0])
        if ufunc not in OPERATIONS:
            raise self._unknown(ufunc.__name__)
        return self.trace.apply(ufunc, *inputs)

    def __array_function__(self, function: Any, types: Any, arguments: tuple[Any, ...], keywords: Any) -> Symbol:
        if function is not np.where or keywords or len(arguments) != 3:
            within = "linalg." if "linalg" in function.__module__ else ""
            raise self._unknown(within + function.__name__)
        return self.trace.apply(WHERE, *arguments)

    def traced(self, function: Any, *operands: Any) -> Symbol:
        """One of `fusedopt.rules.arithmetic` that is an operation of its own."""
        if function is power:
            count = operands[1]
            if self.trace.elementwise:
                raise TracingError(f"{self.trace.what} uses power; compute it in scalars, or multiply.")
            if isinstance(count, (int, float)) and not (0 <= count < 2**63 and count == int(count)):
                raise TracingError(
                    f"{self.trace.what} uses power with a count of {count}; it must be whole, from 0. For others there "
                    f"is fusedopt.rules.real_power."
                )
        return self.trace.apply(function, *operands)

    def __array__(self, *_: object, **__: object) -> Any:
        raise TracingError(
            f"{self.trace.what} makes a NumPy array or number of a value, as np.float64(x) does; leave it as it is: "
            f"scalars are float64, and elements of the parameter's type."
        )

    def __pow__(self, exponent: Any) -> Symbol:
        if not _is_two(exponent):
            raise self._no_power()
        return self.trace.apply(np.multiply, self, self)

    def __rpow__(self, _: object) -> Symbol:
        raise self._no_power()

    def _no_power(self) -> TracingError:
        cure = "write power(base, step) of fusedopt.rules for a whole count, real_power(base, x) for another"
        if self.trace.elementwise:
            cure = "multiply, as g * g * g, or write real_power(g, x) of fusedopt.rules; of the step, power in scalars"
        return TracingError(f"{self.trace.what} uses **, which has no kernel form; {cure}. A root is np.sqrt.")

    def _unknown(self, name: str) -> TracingError:
        if name.rpartition(".")[2] in SUMS:
            return TracingError(f"{self.trace.what} uses np.{name}; {SUMMED}.")
        instead = {
            "maximum": " Use fusedopt.rules.larger.",
            "minimum": " Use fusedopt.rules.smaller.",
            "sign": " Use fusedopt.rules.sign.",
            "power": " Use fusedopt.rules.power in scalars, real_power, or multiply; a root is np.sqrt.",
            "exp2": " Use fusedopt.rules.exp2.",
            "log2": " Use fusedopt.rules.log2.",
            "exp": " Use fusedopt.rules.exp2(x * 1.4426950408889634).",
            "log": " Use fusedopt.rules.log2(x) * 0.6931471805599453.",
            "clip": " Use fusedopt.rules.larger and smaller.",
            "float_power": " Use fusedopt.rules.power in scalars.",
        }.get(name, "")
        names = ", ".join(sorted(f"np.{u.__name__}" for u in OPERATIONS))
        return TracingError(
            f"{self.trace.what} uses np.{name}, which has no kernel form.{instead} There are {names}, np.where, and "
            f"larger, smaller, sign, exp2, log2, power and real_power of fusedopt.rules."
        )

    def __bool__(self) -> bool:
        if self.truth is None:
            raise TracingError(
                f"{self.trace.what} branches on a value; use np.where, or declare the hyperparameter a flag or "
                f"a switch."
            )
        return self.truth

    def __float__(self) -> float:
        raise TracingError(
            f"{self.trace.what} turns a value into a Python number; use NumPy's, as np.sqrt for math.sqrt."
        )

    __int__ = __index__ = __float__

    def __iter__(self) -> Any:
        raise TracingError(f"{self.trace.what} iterates over or indexes a value; a rule sees one element at a time.")

    def __getitem__(self, _: object) -> Any:
        return self.__iter__()

    def __setitem__(self, _: object, __: object) -> None:
        raise TracingError(f"{self.trace.what} writes into a value; return the new one instead.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy asks whether there is an __array_interface__, and the like
            raise AttributeError(name)
        cure = SUMMED if name in SUMS else "a rule sees one element at a time"
        raise TracingError(f"{self.trace.what} uses .{name} of a value; {cure}.")


def _is_two(exponent: object) -> bool:
    return isinstance(exponent, (int, float)) and exponent == 2


class Unavailable(NDArrayOperatorsMixin):
    """A hyperparameter inside `update`: it has no value there, but a switch still tells whether it is on."""

    def __init__(self, what: str, truth: bool | None) -> None:
        self.what, self.truth = what, truth

    def refuse(self) -> Any:
        cure = "compute it in scalars and read it from c, or declare it switch=True to branch on its being zero"
        raise TracingError(f"{self.what}; {cure}.")

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        self.refuse()

    __array_function__ = __float__ = __array_ufunc__

    def __bool__(self) -> bool:
        if self.truth is None:
            self.refuse()
        return bool(self.truth)


class _Inputs(Values):
    """What a function of a rule is given by name."""

    __slots__ = ("_of",)

    def __init__(self, trace: _Trace, of: str, names: Iterable[str], uniform: bool) -> None:
        super().__init__(**{name: trace.input(f"{of}.{name}", uniform) for name in names})
        self._of = f"{trace.what} reads {of}.%s; {of} has %s."

    def __getattr__(self, name: str) -> Any:
        raise TracingError(self._of % (name, ", ".join(vars(self)) or "nothing"))


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
    trace = _Trace(f"{cls.__name__}.scalars", elementwise=False)
    numbers: dict[str, Any] = {}
    for name in cls.number_names():
        numbers[name] = trace.input(f"h.{name}", uniform=True)
        numbers[name].truth = truths.get(name)
    a = _Inputs(trace, "a", cls.scalar_state, uniform=True)
    symbolic = rule.with_numbers(numbers.values())
    step, grad_scale = trace.input("step", uniform=True), trace.input("grad_scale", uniform=True)
    own = symbolic.scalars(step, a)
    if not isinstance(own, Values):
        raise TracingError(f"{trace.what} must return Values(name=...), got {type(own).__name__}.")
    scalars = symbolic.constants(step, a, grad_scale, _Inputs(trace, "r", sums, uniform=True))
    for name in set(vars(own)) & set(PREPARING):
        raise TracingError(f"{trace.what} returns {name}, which every rule has; choose another name.")
    results = {name: trace.symbol(value).number for name, value in vars(scalars).items()}
    return Program(tuple(trace.statements), results)


def _elements(rule: Rule, method: str, constants: Iterable[str], rows: Iterable[str]) -> tuple[Any, ...]:
    """A trace of elements; the rule without numbers; and p, the unscaled g, s and c."""
    cls, truths = type(rule), dict(rule.flags)
    trace = _Trace(f"{cls.__name__}.{method}", elementwise=True)
    p, g = trace.input("p", uniform=False), trace.input("g", uniform=False)
    s, c = _Inputs(trace, "s", rule.kept_states, uniform=False), _Inputs(trace, "c", constants, uniform=True)
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


def _program(trace: _Trace, results: Mapping[str, Any]) -> Program:
    numbers = {name: trace.symbol(value).number for name, value in results.items()}
    for name, number in numbers.items():
        if trace.statements[number].boolean:
            raise TracingError(f"{trace.what} returns a truth value for {name}; it must return numbers.")
    return Program(tuple(trace.statements), numbers)
