"""Traced rules as CUDA: one struct a variant, with the prologue in double and the body in the variant's own type."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fusedopt.rules.arithmetic import exponent, power, scaled
from fusedopt.tracing import CONSTANT, INPUT, OPERATORS, WHERE, Program, Traced

EXPRESSIONS = OPERATORS | {
    np.sqrt: "square_root({})",
    np.absolute: "magnitude({})",
    WHERE: "{} ? {} : {}",
    np.floor: "whole_below({})",
    power: "power({}, {})",
    exponent: "exponent({})",
    scaled: "scaled({}, {})",
}
STORED = {"float32": "float", "float64": "double", "float16": "Half", "bfloat16": "BFloat16"}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A traced rule and how its arrays are stored: what one struct of the kernel is made for.

    Args:
        traced: The rule with its flags.
        parameter: dtype name of the parameter: float32, float64, float16 or bfloat16.
        gradient: dtype name of the gradient.
        state: dtype name of the states.
    """

    traced: Traced
    parameter: str
    gradient: str
    state: str

    @property
    def real(self) -> str:
        """dtype name of the arithmetic: float64 for float64 parameters, else float32."""
        return "float64" if self.parameter == "float64" else "float32"

    @property
    def title(self) -> str:
        stored = (self.parameter, self.gradient, self.state)
        return f"{self.traced.title}, {', '.join(stored if len(set(stored)) > 1 else stored[:1])}"


def rule_text(variants: Sequence[Variant], hyperparameters: Sequence[str], scalars: int, states: int) -> str:
    """The generated part of the kernel, `rule.cuh`.

    Args:
        variants: The bodies that the kernel shall have; a span names one by its place.
        hyperparameters: Names of the columns of the hyperparameter table.
        scalars: How many scalar states a counter holds beside the step.
        states: How many state pointers a span holds.
    """
    constants = max(len(variant.traced.constants) for variant in variants)
    lines = [
        "// Written by fusedopt from the rules' own Python; see fusedopt/rules.",
        f"constexpr int HYPERPARAMETERS = {len(hyperparameters)};  // {', '.join(hyperparameters)}",
        f"constexpr int SCALARS = {scalars};",
        f"constexpr int STATES = {states};",
        f"constexpr int CONSTANTS = {constants};",
        "",
    ]
    for number, variant in enumerate(variants):
        lines += _struct(f"Variant{number}", variant, hyperparameters)
    cases = "".join(f" \\\n  case {number}: FUNCTION(Variant{number}); break;" for number in range(len(variants)))
    lines += [f"#define EACH_VARIANT(FUNCTION){cases}"]
    return "\n".join(lines) + "\n"


def _struct(name: str, variant: Variant, hyperparameters: Sequence[str]) -> list[str]:
    traced = variant.traced
    prologue = {f"h.{h}": f"h[{i}]" for i, h in enumerate(hyperparameters)}
    prologue |= {"step": "step", "grad_scale": "grad_scale"}
    prologue |= {f"a.{a}": f"a[{i}]" for i, a in enumerate(traced.scalar_state)}
    body = {"p": "p", "g": "g"} | {f"s.{s}": f"s[{i}]" for i, s in enumerate(traced.states)}
    body |= {f"c.{c}": f"c.{c}" for c in traced.constants}
    targets = {c: f"c.{c} = real({{}});" for c in traced.constants}
    targets |= {a: f"next[{i}] = {{}};" for i, a in enumerate(traced.scalar_state) if a in traced.advanced}
    results = {s: f"s[{i}] = {{}};" for i, s in enumerate(traced.states)} | {"p": "p = {};", "g": "g = {};"}
    return [
        f"// {variant.title}",
        f"struct {name} {{",
        f"  typedef {STORED[variant.real]} real;",
        f"  typedef {STORED[variant.parameter]} Parameter;",
        f"  typedef {STORED[variant.gradient]} Gradient;",
        f"  typedef {STORED[variant.state]} State;",
        f"  static constexpr int states = {len(traced.states)};  // {', '.join(traced.states) or 'none'}",
        f"  struct Constants {{ real {', '.join(traced.constants)}; }};",
        "  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,",
        "                                 Constants& c, double* next) {",
        *_lines(traced.prologue, prologue, targets, "double"),
        "  }",
        "  static __device__ void update(const Constants& c, real& p, real& g, real* s) {",
        *_lines(traced.body, body, results, "real"),
        "  }",
        "};",
        "",
    ]


def _lines(program: Program, names: Mapping[str, str], targets: Mapping[str, str], kind: str) -> list[str]:
    """The statements as C++, inputs by their own name, unused ones left out."""
    used = set(program.results.values())
    for number in reversed(range(len(program.statements))):
        if number in used:
            used |= set(program.statements[number].operands)
    texts: dict[int, str] = {}
    lines = []
    for number, statement in enumerate(program.statements):
        if number not in used:
            continue
        if statement.operation == INPUT:
            texts[number] = names[statement.value]
        elif statement.operation == CONSTANT:
            texts[number] = f"{kind}({_literal(statement.value)})"
        else:
            texts[number] = f"t{number}"
            expression = EXPRESSIONS[statement.operation].format(*(texts[o] for o in statement.operands))
            lines.append(f"    const {'bool' if statement.boolean else kind} t{number} = {expression};")
    # Results are written after all reads: an update may return one state in another's place.
    lines += [f"    const {kind} new_{name} = {texts[number]};" for name, number in program.results.items()]
    return lines + [f"    {targets[name].format(f'new_{name}')}" for name in program.results]


def _literal(value: float) -> str:
    """A constant to the bit; infinity and NaN have functions of their own, since C++ has no literals for them."""
    if math.isnan(value):
        return "not_a_number()"
    return repr(value) if math.isfinite(value) else "-infinity()" if value < 0 else "infinity()"
