"""The tables of the pages that are written from the code: `python -m fusedopt.docs` rewrites them.

In docs/optimizers.md it is that of the optimizers, in docs/low_precision.md and README.md that of bytes by storage.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fusedopt.optimizers import RULES
from fusedopt.rules.hyperparameter import is_flag
from fusedopt.rules.rule import Rule
from fusedopt.storage import SMALL
from fusedopt.storage_choices import CHOICES
from fusedopt.tracing import trace
from fusedopt.traffic import traffic

ROOT = Path(__file__).parents[1]
PAGE, LOW_PRECISION, README = ROOT / "docs" / "optimizers.md", ROOT / "docs" / "low_precision.md", ROOT / "README.md"
COLUMNS = ("optimizer", "equations", "state", "bytes moved", "bytes kept", "launches", "semantics of")
BYTES, BYTES_RULER = ("moved", "kept beside", "in all"), "| --- | --- | ---: | ---: | ---: |"
BYTES_ABOUT = f"""\
Of each parameter: moved by a step, as counted from the traced rule; kept beside parameter and gradient; and with both,
which are bf16 where it is not said. Tensors of fewer than {SMALL:,} elements have float32 states in place of 8-bit
ones. `optimizer.memory()` tells an optimizer's bytes by kind, `python -m fusedopt bench --memory` those of a model. The
other libraries' are computed, not measured."""
SHOWN = ("float32", "split", "split+random", "split+int8", "split24+int8")  # in README.md


def pages() -> dict[Path, str]:
    """The pages as they have to be."""
    sections = {
        PAGE: ("table", table()),
        LOW_PRECISION: ("bytes", "\n\n".join((BYTES_ABOUT, bytes_table(CHOICES), others_table()))),
        README: ("bytes", bytes_table(SHOWN)),
    }
    return {page: with_section(page.read_text(), *section, page) for page, section in sections.items()}


def with_section(text: str, mark: str, section: str, page: Path = PAGE) -> str:
    """The page with what is between its two marks replaced."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if not (begin in text and end in text):
        raise ValueError(f"{page} has no marks {begin} and {end}; put them where the table belongs.")
    return text[: text.index(begin) + len(begin)] + f"\n{section}\n" + text[text.index(end) :]


def bytes_table(names: Iterable[str]) -> str:
    """A row for each of these storages of Adam: bytes that a step moves, and that are kept."""
    adam, lines = RULES["Adam"](), [_bytes_line("storage of Adam", "options", *BYTES), BYTES_RULER]
    for choice in (CHOICES[name] for name in names):
        written = f"`{choice.written}`" if choice.options else "none"
        lines.append(_bytes_line(choice.title, written, choice.moved(adam), choice.kept(adam), choice.in_all(adam)))
    return "\n".join(lines)


def others_table() -> str:
    """A row for each other library, by the layout of its Adam."""
    from fusedopt.cli.bench.memory import LAYOUTS

    lines = [_bytes_line("others, by their layouts", "source", *BYTES), BYTES_RULER]
    for layout in LAYOUTS:
        beside = layout.masters + layout.states + layout.scales
        in_all = layout.parameters + layout.gradients + beside
        lines.append(_bytes_line(layout.title, layout.source, layout.moved, beside, in_all))
    return "\n".join(lines)


def _bytes_line(*cells: str | float) -> str:
    return f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:.4g}' for cell in cells)} |"


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
    for page, text in pages().items():
        page.write_text(text)
