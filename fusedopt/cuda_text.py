"""Traced rules as CUDA: one struct a variant, with the prologue in double and the body in the variant's own type."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fusedopt.eight_bits import CODES
from fusedopt.rules.arithmetic import exponent, power, scaled
from fusedopt.rules.stages import ROW, SLOTS
from fusedopt.statements import CONSTANT, INPUT, OPERATORS, WHERE, Program
from fusedopt.storage import Kept, Storage
from fusedopt.tracing import Traced

EXPRESSIONS = OPERATORS | {
    np.sqrt: "square_root({})",
    np.absolute: "magnitude({})",
    WHERE: "{} ? {} : {}",
    np.floor: "whole_below({})",
    power: "power({}, {})",
    exponent: "exponent({})",
    scaled: "scaled({}, {})",
}
# A value of so many operations, which a uniform condition may not choose, is computed only where it is chosen; of a
# shorter one, a jump costs as much. H200 issues some 200 instructions for an element while 28 bytes of it move: FTRL
# has 390 (sm_90) with both of its root and its real power, and 120 with the root alone.
LONG_BRANCH = 16
STORED = {"float32": "float", "float64": "double", "float16": "Half", "bfloat16": "BFloat16"}
SPLIT = {"split": 16, "split24": 8}  # bits beside those of bfloat16


@dataclasses.dataclass(frozen=True)
class Variant:
    """A traced rule and how its arrays are stored: what one struct of the kernel is made for.

    Args:
        traced: The rule with its flags.
        storage: How its arrays are kept.
    """

    traced: Traced
    storage: Storage

    @property
    def title(self) -> str:
        return f"{self.traced.title}, {self.storage.title}"

    @property
    def pointers(self) -> int:
        """How many arrays a span has beside the parameter and the gradient."""
        return len(self.storage.states) + len(self.storage.beside)


def pointers_of(variants: Iterable[Variant]) -> int:
    """How many pointers to states, and to what lies beside, the spans of these have a place for."""
    return max([1, *(variant.pointers for variant in variants)])


def rule_text(variants: Sequence[Variant], hyperparameters: Sequence[str], scalars: int, states: int) -> str:
    """The generated part of the kernel, `rule.cuh`.

    Args:
        variants: The bodies that the kernel shall have; a span names one by its place.
        hyperparameters: Names of the columns of the hyperparameter table.
        scalars: How many scalar states a counter holds beside the step.
        states: How many pointers to states, and to what lies beside, a span holds.
    """
    stages = {
        number * SLOTS + stage.stage.slot: dataclasses.replace(variant, traced=stage)
        for number, variant in enumerate(variants)
        for stage in variant.traced.stages
        if stage.stage is not None
    }
    launches = [*variants, *stages.values()]
    lines = [
        "// Written by fusedopt from the rules' own Python; see fusedopt/rules.",
        f"constexpr int HYPERPARAMETERS = {len(hyperparameters)};  // {', '.join(hyperparameters)}",
        f"constexpr int SCALARS = {scalars};",
        f"constexpr int STATES = {states};",
        *(
            ["constexpr int SEED = {};".format(list(hyperparameters).index("seed"))]
            if "seed" in hyperparameters
            else []
        ),
        f"constexpr int CONSTANTS = {max(len(launch.traced.constants) for launch in launches)};",
        f"constexpr int STAGES = {SLOTS if stages else 0};",
        f"constexpr int RESULTS = {results_of([variant.traced for variant in variants])};",
        "",
    ]
    for number, variant in enumerate(variants):
        lines += _struct(f"Variant{number}", variant, hyperparameters)
    for case, stage in stages.items():
        lines += _struct(f"Stage{case}", stage, hyperparameters)
    lines.append(_switch("EACH_VARIANT", "Variant", range(len(variants))))
    if stages:
        lines.append(_switch("EACH_STAGE", "Stage", stages))
    return "\n".join(lines) + "\n"


def results_of(launches: Sequence[Traced]) -> int:
    """How many results of stages a span has a place for: one at least, since C++ knows no arrays of none."""
    return max([1, *(len(traced.found) for traced in launches)])


def _switch(macro: str, struct: str, cases: Iterable[int]) -> str:
    return f"#define {macro}(FUNCTION)" + "".join(
        f" \\\n  case {case}: FUNCTION({struct}{case}); break;" for case in cases
    )


def _struct(name: str, variant: Variant, hyperparameters: Sequence[str]) -> list[str]:
    traced = variant.traced
    prologue = {f"h.{h}": f"h[{i}]" for i, h in enumerate(hyperparameters)}
    prologue |= {"step": "step", "grad_scale": "grad_scale"}
    prologue |= {f"a.{a}": f"a[{i}]" for i, a in enumerate(traced.scalar_state)}
    prologue |= {f"r.{r}": f"r[{i}]" for i, (r, _) in enumerate(traced.found)}
    targets = {c: f"c.{c} = real({{}});" for c in traced.constants}
    targets |= {a: f"next[{i}] = {{}};" for i, a in enumerate(traced.scalar_state) if a in traced.advanced}
    scalars = dataclasses.replace(
        traced.prologue, results={n: r for n, r in traced.prologue.results.items() if n in targets}
    )
    return [
        f"// {variant.title}",
        f"struct {name} {{",
        f"  typedef {STORED[variant.storage.real]} real;",
        f"  typedef Streams<{', '.join(map(kept_type, variant.storage.streams))}> Kept;",
        f"  static constexpr int states = {len(traced.states)};  // {', '.join(traced.states) or 'none'}",
        *_masks(traced),
        f"  struct Constants {{ real {', '.join(traced.constants)}; }};",
        "  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,",
        "                                 const double* r, Constants& c, double* next) {",
        *_lines(scalars, prologue, targets, "double"),
        "  }",
        *_body(traced),
        "};",
        "",
    ]


def kept_type(kept: Kept) -> str:
    """The type in `kept.cuh` of a stream that is kept so."""
    if kept.codes:
        code = CODES[kept.codes]
        return f"Codes<{str(code.signed).lower()}, {code.octaves}, {code.dropped}>"
    if kept.finer in SPLIT:
        return f"Split<{SPLIT[kept.finer]}{', true' if kept.stochastic else ''}>"
    around = {"float32": "Master", "kahan": "Compensated", "": "Rounded" if kept.stochastic else "Plain"}[kept.finer]
    return f"{around}<{STORED[kept.dtype]}>"


def _masks(traced: Traced) -> list[str]:
    """What a launch reads and writes: bits, and the place of a stage's first result."""
    inputs, sums = traced.body.inputs, traced.prologue.inputs
    summed = [i for i, (name, _) in enumerate(traced.found) if f"r.{name}" in sums]
    spread = [i for i, (name, _) in enumerate(traced.found) if f"r.{name}" in inputs]
    streams = ["p", "g", *(f"s.{name}" for name in traced.states)]
    read = range(len(streams)) if traced.stage is None else [i for i, s in enumerate(streams) if s in inputs]
    lines = [
        f"  static constexpr unsigned reads = {_bits(read)};  // p, g, the states",
        f"  static constexpr unsigned summed = {_bits(summed)};  // results of stages that scalars reads",
        f"  static constexpr unsigned spread = {_bits(spread)};  // and those of which an element has its row's",
    ]
    if traced.stage is None:
        return lines
    return [
        *lines,
        f"  static constexpr int terms = {len(traced.terms)};  // {', '.join(traced.terms)}",
        f"  static constexpr int streams = {len(read)};",
        f"  static constexpr int first = {len(traced.found)};  // the place of their results",
        f"  static constexpr bool rows = {str(traced.stage.over == ROW).lower()};",
    ]


def _bits(places: Iterable[int]) -> str:
    return f"{sum(1 << place for place in places):#x}"


def _body(traced: Traced) -> list[str]:
    names = {"p": "p", "g": "g"} | {f"s.{s}": f"s[{i}]" for i, s in enumerate(traced.states)}
    names |= {f"c.{c}": f"c.{c}" for c in traced.constants}
    names |= {f"r.{r}": f"r[{i}]" for i, (r, _) in enumerate(traced.found)}
    results = {s: f"s[{i}] = {{}};" for i, s in enumerate(traced.states)} | {"p": "p = {};", "g": "g = {};"}
    signature = "void update(const Constants& c, real& p, real& g, real* s, const real* r)"
    if traced.stage is not None:
        results = {t: f"t[{i}] = {{}};" for i, t in enumerate(traced.terms)}
        signature = "void terms_of(const Constants& c, real p, real g, const real* s, const real* r, real* t)"
    return [f"  static __device__ {signature} {{", *_lines(traced.body, names, results, "real"), "  }"]


def _lines(program: Program, names: Mapping[str, str], targets: Mapping[str, str], kind: str) -> list[str]:
    """The statements as C++, inputs by their own name, unused ones left out."""
    body = _Body(program, names, kind)
    body.write(range(len(program.statements)), "    ")
    texts, lines = body.texts, body.lines
    # Results are written after all reads: an update may return one state in another's place.
    lines += [f"    const {kind} new_{name} = {texts[number]};" for name, number in program.results.items()]
    return lines + [f"    {targets[name].format(f'new_{name}')}" for name in program.results]


class _Body:
    """Lines of C++ for a program, and the text by which each statement's value is known."""

    def __init__(self, program: Program, names: Mapping[str, str], kind: str) -> None:
        self.statements, self.names, self.kind = program.statements, names, kind
        self.texts: dict[int, str] = {}
        self.lines: list[str] = []
        self._readers = _readers(program)

    def write(self, numbers: Iterable[int], indent: str) -> None:
        """The statements of these numbers, in order, with those that only one of two branches needs inside of it."""
        numbers = [number for number in numbers if number in self._readers]
        branches = {number: self._branches(number) for number in numbers}
        inside = set().union(*(branch for pair in branches.values() for branch in pair))
        for number in numbers:
            if number not in inside:
                self._write(number, branches[number], indent)

    def _write(self, number: int, branches: Sequence[set[int]], indent: str) -> None:
        statement = self.statements[number]
        if statement.operation == INPUT:
            self.texts[number] = self.names[statement.value]
        elif statement.operation == CONSTANT:
            self.texts[number] = f"{self.kind}({_literal(statement.value)})"
        elif any(branches):
            condition, *values = statement.operands
            self.texts[number] = f"t{number}"
            self.lines.append(f"{indent}{self.kind} t{number};")
            for opening, branch, value in zip((f"if ({self.texts[condition]}) {{", "} else {"), branches, values):
                self.lines.append(f"{indent}{opening}")
                self.write(sorted(branch), f"{indent}  ")
                self.lines.append(f"{indent}  t{number} = {self.texts[value]};")
            self.lines.append(f"{indent}}}")
        else:
            self.texts[number] = f"t{number}"
            expression = EXPRESSIONS[statement.operation].format(*(self.texts[o] for o in statement.operands))
            kind = "bool" if statement.boolean else self.kind
            self.lines.append(f"{indent}const {kind} t{number} = {expression};")

    def _branches(self, number: int) -> tuple[set[int], set[int]]:
        """What nothing but the one and the other value of a uniform `where` reads; nothing where that is little."""
        statement, nothing = self.statements[number], (set[int](), set[int]())
        if statement.operation != WHERE or not self.statements[statement.operands[0]].uniform or statement.uniform:
            return nothing
        then, otherwise = (self._only_for(number, value) for value in statement.operands[1:])
        return (then, otherwise) if max(len(then), len(otherwise)) >= LONG_BRANCH else nothing

    def _only_for(self, reader: int, value: int) -> set[int]:
        """The operations that make a value which one statement alone reads, and that are for nothing else."""
        found: set[int] = set()
        if self._readers[value] != [reader]:
            return found
        for number in range(value, -1, -1):
            is_operation = self.statements[number].operation not in (INPUT, CONSTANT)
            if number == value or (number in self._readers and found.issuperset(self._readers[number])):
                found |= {number} if is_operation else set()
        return found


def _readers(program: Program) -> dict[int, list[int]]:
    """For each statement that is needed, those that read it, once for each operand; -1 is a result."""
    readers: dict[int, list[int]] = {}
    for number in program.results.values():
        readers.setdefault(number, []).append(-1)
    for number in range(len(program.statements) - 1, -1, -1):
        for operand in program.statements[number].operands if number in readers else ():
            readers.setdefault(operand, []).append(number)
    return readers


def _literal(value: float) -> str:
    """A constant to the bit; infinity and NaN have functions of their own, since C++ has no literals for them."""
    if math.isnan(value):
        return "not_a_number()"
    return repr(value) if math.isfinite(value) else "-infinity()" if value < 0 else "infinity()"
