"""`bench --memory`: what each storage keeps and moves, beside other libraries by their layouts. Nothing is measured."""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusedopt.cli.bench.peers_way import optimizer_named
from fusedopt.cli.bench.row import save
from fusedopt.cli.bench.work import Shape, equal_pieces
from fusedopt.rules import Rule
from fusedopt.storage import SMALL, memory_of
from fusedopt.storage_choices import CHOICES, Choice

if TYPE_CHECKING:
    from fusedopt.cli.bench.models import Model

MIB, GIB = 2**20, 2**30
HOW_TO_READ = (
    "In all: parameters, gradients and what is kept beside them. Bytes are those of one parameter: kept beside it and "
    "its gradient, and moved by a step. --json FILE saves each kind."
)
MODEL = "llama-3-8b"  # where none is asked for
TENSORS = 64  # that sizes are told of, where it is not said


@dataclasses.dataclass(frozen=True)
class Layout:
    """How another library keeps parameters, for an optimizer with two states: bytes of an element.

    Attributes:
        title: As the table has it.
        source: Where the layout is from.
        parameters, gradients, masters, states, scales: Kept, by kind.
        moved: By a step, and by the copies that a training step makes of parameters beside it.
        small: Of both states, for tensors with fewer than `SMALL` elements.
    """

    title: str
    source: str
    parameters: float
    gradients: float
    masters: float
    states: float
    scales: float
    moved: float
    small: float | None = None


# A state in 8 bits is read and written, and so is its scale: 4 (1 + 4 / 256) bytes for two of bitsandbytes.
LAYOUTS = (
    Layout("torch, float32", "torch.optim.AdamW, fused", 4, 4, 0, 8, 0, 28),
    Layout("torch, bf16 alone (small updates are lost)", "torch.optim.AdamW over a bf16 model", 2, 2, 0, 4, 0, 14),
    Layout(
        "torch AMP, float32 with bf16 copies",
        "torch.autocast: a bf16 copy of each float32 parameter, made anew in every forward pass, 6 bytes of traffic",
        *(2, 4, 4, 8, 0, 28 + 6),
    ),
    Layout("apex, float32 masters", "apex FusedAdam(master_weights=True, capturable=True)", 2, 2, 4, 8, 0, 28),
    Layout(
        "bitsandbytes, 8-bit states",
        "AdamW8bit over a bf16 model: a byte and a float32 scale for each 256 elements (since 0.44); no master",
        *(2, 2, 0, 2, 2 * 4 / 256, 4 + 2 + 4 * (1 + 4 / 256)),
        small=8,
    ),
    Layout(
        "FlashOptim, 24-bit master, 8-bit states",
        "arXiv:2602.23349: a byte of correction; a byte and a float16 scale for each 32 elements",
        *(2, 2, 1, 2, 2 * 2 / 32, 4 + 2 + 2 + 4 * (1 + 2 / 32)),
    ),
)


@dataclasses.dataclass(frozen=True)
class MemoryRow:
    """What one way keeps and moves for all tensors together, in bytes.

    Attributes:
        model, optimizer, elements: Of what: the model or sizes, the rule, and how many elements.
        way, source: Whose storage, and where its layout is from; fusedopt's are counted from the traced rule.
        parameters, gradients, masters, states, scales: Kept, by kind.
        moved: By a step.
    """

    model: str
    optimizer: str
    elements: int
    way: str
    source: str
    parameters: float
    gradients: float
    masters: float
    states: float
    scales: float
    moved: float

    @property
    def beside(self) -> float:
        """What is kept beside parameters and gradients."""
        return self.masters + self.states + self.scales

    @property
    def kept(self) -> float:
        """All that is kept."""
        return self.parameters + self.gradients + self.beside


def memory_rows(model: str, shapes: Sequence[Shape], optimizer: str, choices: Sequence[Choice]) -> Iterator[MemoryRow]:
    """fusedopt's storages, then the others, where they have such an optimizer."""
    cls, options = optimizer_named(optimizer)
    rule, sizes = cls.rule(**options), collections.Counter(map(prod, shapes))
    elements = sum(size * count for size, count in sizes.items())
    for choice in choices:
        kinds = {"parameters": 0.0, "gradients": 0.0, "masters": 0.0, "states": 0.0, "scales": 0.0, "moved": 0.0}
        for size, count in sizes.items():
            for kind, number in _of_tensor(choice, rule, size).items():
                kinds[kind] += count * number
        yield MemoryRow(model, optimizer, elements, choice.title, "counted", **kinds)
    for layout in LAYOUTS if len(rule.kept_states) == 2 and optimizer in ("adam", "adamw") else ():
        yield _of_layout(layout, model, optimizer, sizes)


def _of_tensor(choice: Choice, rule: Rule, size: int) -> dict[str, float]:
    return {**memory_of(choice.storage(rule, size), size), "moved": size * choice.moved(rule, size)}


def _of_layout(layout: Layout, model: str, optimizer: str, sizes: collections.Counter[int]) -> MemoryRow:
    elements = sum(size * count for size, count in sizes.items())
    small = sum(size * count for size, count in sizes.items() if size < SMALL) if layout.small is not None else 0
    exact, states = elements - small, layout.states * (elements - small) + (layout.small or 0) * small
    more = 2 * (states - layout.states * elements) - 2 * layout.scales * small  # each is read and written
    return MemoryRow(
        *(model, optimizer, elements, layout.title, layout.source),
        parameters=layout.parameters * elements,
        gradients=layout.gradients * elements,
        masters=layout.masters * elements,
        states=states,
        scales=layout.scales * exact,
        moved=layout.moved * elements + more,
    )


def memory_table(rows: Sequence[MemoryRow]) -> Table:
    """The rows of one model and one optimizer; 80 columns, of which names give way first, and numbers never."""
    first = rows[0]
    title = f"{first.optimizer}, {first.model}: {first.elements:,} parameters"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("storage", min_width=10)
    unit, size = ("GiB", GIB) if max(row.kept for row in rows) >= GIB else ("MiB", MIB)
    for heading in (f"{unit}\nin all", "bytes\nbeside", "bytes\nmoved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        each = (number / row.elements for number in (row.beside, row.moved))
        cells = (f"{row.kept / size:,.2f}", *(f"{number:.4g}" for number in each))
        table.add_row(Text(row.way, "" if row.source == "counted" else "dim"), *cells)
    return table


def sources(rows: Sequence[MemoryRow]) -> str:
    """Where the others' layouts are from."""
    found = {row.way: row.source for row in rows if row.source != "counted"}
    lines = [f"  {way}: {source}" for way, source in found.items()]
    return "\n".join(["Computed from the layouts of others, not measured:", *lines]) if lines else ""


def chosen_choices(names: Sequence[str] | None) -> list[Choice]:
    """Those of these names; all without any.

    Raises:
        ValueError: There is none of that name.
    """
    for name in names or ():
        if name not in CHOICES:
            raise ValueError(f"--storage: there is no {name!r}; there are {', '.join(CHOICES)}.")
    return [CHOICES[name] for name in names] if names else list(CHOICES.values())


def split_by_rule(choices: Sequence[Choice], optimizer: str) -> tuple[list[Choice], dict[str, list[str]]]:
    """The storages that a rule can be kept in, and the names of the others by why it cannot.

    Raises:
        ValueError: It can be kept in none of these.
    """
    cls, options = optimizer_named(optimizer)
    rule, refused = cls.rule(**options), dict[str, list[str]]()
    why = {choice.name: _refusal(choice, rule) for choice in choices}
    taken = [choice for choice in choices if not why[choice.name]]
    for name, refusal in why.items():
        if refusal:
            refused.setdefault(refusal, []).append(name)
    if not taken:
        raise ValueError(f"--storage {' '.join(choice.name for choice in choices)}: {next(iter(refused))}")
    return taken, refused


def _refusal(choice: Choice, rule: Rule) -> str:
    """Why a rule cannot be kept so; "" where it can."""
    try:
        choice.rule(rule)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def tell(arguments: argparse.Namespace, models: Mapping[str, Model]) -> int:
    """Print, and save, what storages keep and move."""
    names = arguments.model or ([] if arguments.sizes else [MODEL])
    pieces = [equal_pieces(size, arguments.tensors or min(TENSORS, size)) for size in arguments.sizes or ()]
    some = {models[name].title: [shape for _, shape in models[name].shapes(arguments.layers)] for name in names}
    some |= {work.title: list(work.shapes) for work in pieces}
    console, rows = Console(highlight=False), list[MemoryRow]()
    for title, shapes in some.items():
        for optimizer in arguments.optimizer:
            choices, refused = split_by_rule(chosen_choices(arguments.storage), optimizer)
            new = list(memory_rows(title, shapes, optimizer, choices))
            console.print(memory_table(new))
            for why, without in refused.items():
                console.print(f"Without {', '.join(without)}. {why}\n", soft_wrap=True)
            rows += new
    console.print("\n".join(filter(None, (HOW_TO_READ, sources(rows)))), soft_wrap=True)
    if arguments.json:
        save(arguments.json, rows)
    return 0
