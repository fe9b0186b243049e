"""What the pages say of the speed of storages, from the bytes that are counted and the speed that was measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fusedopt.rules import Adam
from fusedopt.storage_choices import CHOICES, Choice

COLUMNS = {
    "NumPy, ms": "{}, numpy",
    "of float32's speed": "{}, numpy against fusedopt, NumPy",
    "numba, ms": "{}, numba",
    "of NumPy's float32": "{}, numba against fusedopt, NumPy",
    "of numba's float32": "{}, numba against fusedopt, numba",
}

Rows = Mapping[str, Mapping[str, Any]]  # of storages.json, by their names


def storage_table(rows: Rows) -> str:
    """A row for each storage that was measured."""
    about = next(iter(rows.values()))
    extra = max(row["value"] for name, row in rows.items() if name.endswith("extra memory of a step"))
    lines = [
        f"| storage | moved | beside | {' | '.join(COLUMNS)} |",
        "| --- |" + " ---: |" * (2 + len(COLUMNS)),
        *(_line(rows, choice) for choice in CHOICES.values() if f"{choice.name}, numpy" in rows),
        "",
        f"Adam, {about['size'] // 2**20} Mi parameters in one tensor, {about['threads']} threads of {about['device']},",
        f"{about['date'][:10]}. A step takes {extra:.1%} of what is kept at most for itself.",
    ]
    return "\n".join(lines)


def cpu_table(rows: Rows) -> str:
    """Each storage's time on a CPU as a multiple of float32's, for the page on low precision."""
    about = next(iter(rows.values()))
    lines = ["| a step on a CPU, float32's being 1 | numba | NumPy |", "| --- | ---: | ---: |"]
    lines += [f"| {choice.title} | {' | '.join(_times(rows, choice.name))} |" for choice in CHOICES.values()]
    where = f"{about['threads']} threads of {about['device']}, {about['date'][:10]}"
    return "\n".join([*lines, "", f"Adam, {about['size'] // 2**20} Mi parameters in one tensor, {where}."])


def cpu_line(rows: Rows) -> str:
    """The same of the two storages that are recommended, in a sentence."""
    (split, slow_split), (codes, slow_codes) = (_times(rows, name) for name in ("split", "split+int8"))
    return (
        f"- A split master with float32 states takes {split} x float32's time with numba, {slow_split} x in NumPy;\n"
        f"  with 8-bit states {codes} x and {slow_codes} x: on a CPU 8 bits save memory, not time."
    )


def _times(rows: Rows, name: str) -> tuple[str, str]:
    """Of float32's time, with numba and in NumPy; each is measured beside it in the same rounds."""
    found = (rows.get(f"{name}, {way}") for way in ("numba against fusedopt, numba", "numpy against fusedopt, NumPy"))
    numba, numpy = ("-" if row is None else f"{1 / row['value']:.2g}" for row in found)
    return numba, numpy


def _line(rows: Rows, choice: Choice) -> str:
    measured = (rows.get(name.format(choice.name)) for name in COLUMNS.values())
    cells = ["-" if row is None else f"{row['value']:.3g}{'' if row['unit'] == 'ms' else ' x'}" for row in measured]
    counted = f"{choice.moved(Adam()):.4g}", f"{choice.kept(Adam()):.4g}"
    return f"| {' | '.join((choice.title, *counted, *cells))} |"
