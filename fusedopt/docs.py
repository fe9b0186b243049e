"""The table of optimizers in docs/optimizers.md, written from the rules: `python -m fusedopt.docs` rewrites it."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
from pathlib import Path
from typing import Any

from fusedopt.optimizers import RULES
from fusedopt.rules.hyperparameter import is_flag
from fusedopt.rules.rule import Rule
from fusedopt.tracing import trace
from fusedopt.traffic import traffic

PAGE = Path(__file__).parents[1] / "docs" / "optimizers.md"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
COLUMNS = ("optimizer", "equations", "state", "bytes moved", "bytes kept", "launches", "semantics of")


def page_with_table(text: str) -> str:
    """The page with the table between its two marks replaced."""
    if not (BEGIN in text and END in text):
        raise ValueError(f"{PAGE} has no marks {BEGIN} and {END}; put them where the table belongs.")
    return text[: text.index(BEGIN) + len(BEGIN)] + f"\n{table()}\n" + text[text.index(END) :]


def table() -> str:
    """A row for each rule."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row(rule) for rule in RULES.values())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def row(rule: type[Rule]) -> tuple[str, ...]:
    """What the table says of one rule."""
    variants = _variants(rule)
    moved = {name: traffic(trace(variant)).bytes() for name, variant in variants.items()}
    kept = {name: 4 * len(variant.kept_states) for name, variant in variants.items()}
    equations = "<br>".join(f"`{line}`" for line in _equations(rule))
    return (
        f"`{rule.__name__}`",
        equations.replace("|", r"\|"),
        _states(rule),
        _by_variant(moved),
        _by_variant(kept),
        str(max(1 + len(variant.stages) for variant in variants.values())),
        _source(rule),
    )


def _variants(rule: type[Rule]) -> dict[str, Rule]:
    """The rule with its defaults, and with each combination of flags that adds a state, by their names."""
    default, options = rule(), rule.options()
    flags = list(
        dict.fromkeys(state.when for state in rule.all_states() if state.when and not getattr(default, state.when))
    )
    found = {"": default}
    for count in range(1, len(flags) + 1):
        for some in itertools.combinations(flags, count):
            on: dict[str, Any] = {name: True if is_flag(options[name]) else 0.9 for name in some}
            found[" and ".join(f"`{name}`" for name in some)] = dataclasses.replace(default, **on)
    return found


def _by_variant(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{number}{f' with {name}' if name else ''}" for name, number in numbers.items())


def _equations(rule: type[Rule]) -> list[str]:
    """The first indented block of the docstring."""
    lines = (inspect.getdoc(rule) or "").split("\n")
    indented = itertools.dropwhile(lambda line: not line.startswith("    "), lines)
    block = itertools.takewhile(lambda line: line.startswith("    "), indented)
    return [re.sub(r" {2,}", "  ", line.strip()) for line in block]


def _states(rule: type[Rule]) -> str:
    arrays = [f"`{s.name}`{f' ({s.when})' if s.when else ''}" for s in rule.all_states()]
    return ", ".join([*arrays, *(f"`{name}` (a number)" for name in rule.scalar_state)]) or "none"


def _source(rule: type[Rule]) -> str:
    text = (inspect.getdoc(rule) or "").partition("Source:")[2]
    return " ".join(text.split()).removesuffix(".").replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
