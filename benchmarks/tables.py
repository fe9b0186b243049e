"""What the READMEs say of speed, written from the committed results: `python benchmarks/tables.py` rewrites them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storage_table import cpu_line, cpu_table, storage_table

HERE = Path(__file__).parent
README, OWN_README, RESULTS = HERE.parent / "README.md", HERE / "README.md", HERE / "results" / "cpu"
LOW_PRECISION = HERE.parent / "docs" / "low_precision.md"
PICTURE = "benchmarks/results/cpu/models.png"
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
BACKENDS, CUDA, NONE = ("numba", "NumPy"), "CUDA but for the launch", "-"
PEERS = {
    "NumPy whole arrays": "whole-array NumPy, as one writes it",
    "NumPy out=": "NumPy with every result in a preallocated `out=`",
    "torch for-loop": "`torch.optim`, for-loop",
    "torch foreach": "`torch.optim`, foreach",
    "torch fused": "`torch.optim`, fused (C++)",
    "optax jit": "`optax` under `jax.jit`",
}

Rows = Mapping[str, Mapping[str, Any]]  # by their names


def speed_section(rows: Rows) -> str:
    """What stands between the README's `speed` marks."""
    first = next(iter(rows.values()))
    columns = [(backend, rule) for backend in BACKENDS for rule in OPTIMIZERS]
    cells = {title: [cell(rows, *column, peer) for column in columns] for peer, title in PEERS.items()}
    lines = [
        "On a CPU a step is a loop that numba compiles, where that is installed (`pip install 'fusedopt[numba]'`), and",
        "NumPy's calls elsewhere, with the same bits. How many times as fast as others it is, one tensor of",
        f"{first['size'] // 2**20} Mi float32 parameters, {first['threads']} threads ({first['device']},"
        f" {first['date'][:10]}), the median of ratios taken in turn:",
        "",
        "| fusedopt against | " + " | ".join(f"{OPTIMIZERS[rule]}, {backend}" for backend, rule in columns) + " |",
        "| --- |" + " --- |" * len(columns),
        *(f"| {title} | " + " | ".join(found) + " |" for title, found in cells.items() if set(found) != {NONE}),
        "",
        "That is the best case against whole arrays, whose temporary ones are as large. Over the tensors of six models",
        f"AdamW is {whole_arrays()} x as fast as they are with numba:",
        "",
        f"![A step of AdamW over the tensors of six models, beside its peers]({PICTURE})",
        "",
        *figures(rows),
        cpu_line(by_name("storages.json")),
        "",
        "`benchmarks/README.md` says how all this is measured, how the cost grows and what bounds it.",
        "`python benchmarks/compare.py` measures it on your machine, `python -m fusedopt bench --model gpt2` a model.",
    ]
    return "\n".join(lines)


def cell(rows: Rows, backend: str, optimizer: str, peer: str) -> str:
    """How many times as fast."""
    row = rows.get(f"{optimizer}: fusedopt, {backend} against {peer}")
    return f"{row['value']:.2g} x" if row else NONE


def figures(rows: Rows) -> list[str]:
    """What a user pays beside the arithmetic."""

    def value(name: str) -> float:
        return float(rows[name]["value"])

    small = {
        (backend, way): value(f"300 torch tensors of 4,096: fusedopt.torch, {backend} against torch {way}")
        for backend in ("numba", "numpy")
        for way in ("for-loop", "fused")
    }
    extra = {
        dtype: max(row["value"] for name, row in rows.items() if dtype in name and name.endswith("resident set"))
        for dtype in ("float32", "float16")
    }
    compiler = value("extra memory, numba, float32 in one tensor: the compiler")
    python, still = (
        {path: value(f"Python time, {path}, {case}: 1,000 tensors") for path in (*BACKENDS, CUDA)}
        for case in ("changed", "unchanged")
    )
    host = value("torch tensors, host time, gradients that move: 300")
    beyond = value("import fusedopt beyond import numpy")
    step = value("the first step of a process beyond import fusedopt, numba")
    return [
        f"- `fusedopt.torch.Adam` over 300 tensors of 4,096: {small['numba', 'for-loop']:.2g} x as fast as torch's"
        f" for-loop and {small['numba', 'fused']:.2g} x as fused with numba,",
        f"  {small['numpy', 'for-loop']:.2g} x and {small['numpy', 'fused']:.2g} x in NumPy.",
        f"- A step needs {extra['float32']:.1f} MiB at most beside a float32 model, {extra['float16']:.1f} MiB beside a"
        f" float16 one; numba itself takes {compiler:.0f} MiB.",
        f"- Of a step over 1,000 tensors with new gradients and a new learning rate {python['numba']:.0f} µs are Python"
        f" with numba, {python['NumPy']:.0f} µs in",
        f"  NumPy and {python[CUDA]:.0f} µs on the path to a GPU, launch apart; where nothing changed,"
        f" {still['numba']:.0f}, {still['NumPy']:.0f} and {still[CUDA]:.1f}. For 300 torch tensors",
        f"  with new gradients they are {host:.0f} µs there.",
        "- In one tensor of {:,} parameters torch's fused step takes {:.2g} of our time: a second thread is slow to"
        " wake.".format(*small_point()),
        f"- `import fusedopt` takes {1e3 * beyond:.0f} ms beyond NumPy's, the first step with numba {step:.1f} s.",
    ]


def whole_arrays() -> str:
    """The range of ratios over the models."""
    found = [row["ratio"] for row in read("models.json") if row["peer"] == "NumPy whole arrays"]
    return f"{min(found):.0f} to {max(found):.0f}"


def small_point() -> tuple[int, float]:
    """The number of parameters at which torch's fused step is furthest ahead, and the share of our time it takes."""
    times = {(p["peer"], p["parameters"]): p["seconds"] for p in read("growth.json") if p["curve"] == "parameters"}
    counts = [count for peer, count in times if peer == "torch fused"]
    shares = {count: times["torch fused", count] / times["fusedopt", count] for count in counts}
    count = min(shares, key=lambda count: shares[count])
    return count, shares[count]


def missed_table(rows: Rows) -> str:
    """The bars that are missed."""
    found = [(name, row) for name, row in rows.items() if row["met"] is False]
    lines = ["| bar | asked | measured |", "| --- | --- | --- |"]
    for name, row in found:
        asked = f"{row['at_least']:g} at least" if row["at_least"] is not None else f"{row['at_most']:g} at most"
        lines.append(f"| {name} | {asked} | {row['value']:.3g} {row['unit']} |")
    return "\n".join(lines)


def growth_table(points: Sequence[Mapping[str, Any]], curve: str) -> str:
    """Milliseconds of a step by what grows, a column for each way and one for the host's part of fusedopt's."""
    times = {(p["peer"], p[curve]): p["seconds"] for p in points if p["curve"] == curve}
    ours = {p[curve]: p for p in points if p["curve"] == curve and p["peer"] == "fusedopt"}
    peers = list(dict.fromkeys(peer for peer, _ in times))
    hosts = any(point["host_seconds"] for point in ours.values())
    lines = [
        f"| {curve} | " + " | ".join(peers) + " | memory's floor |" + " fusedopt's Python |" * hosts,
        "| ---: |" + " ---: |" * (len(peers) + 1 + hosts),
    ]
    for count, point in ours.items():
        found = [times.get((peer, count)) for peer in peers] + [point["floor_seconds"]]
        found += [point["host_seconds"]] * hosts
        lines.append(f"| {count:,} | " + " | ".join(map(milliseconds, found)) + " |")
    return "\n".join(lines)


def milliseconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def limit_table(rows: Rows) -> str:
    """Milliseconds of NumPy's step on one thread and on two, and of its parts alone."""
    passes = {name: row["value"] for name, row in rows.items() if name.startswith("pass ")}
    size = next(iter(rows.values()))["size"]
    lines = ["| milliseconds | one thread | two threads |", "| --- | ---: | ---: |"]
    parts = {
        f"its {len(passes)} passes, on blocks that stay in the cache": "all passes, in the cache, {} thread{}",
        "a stream over the bytes that it must move": "stream over as many bytes, {} thread{}",
        **{
            f"the step, blocks of {kibi} Ki elements": f"step, blocks of {kibi} Ki elements, {{}} thread{{}}"
            for kibi in (8, 16, 32, 64, 128, 256)
        },
    }
    for title, name in parts.items():
        both = (
            next(rows[key]["value"] for key in (name.format(digit, s), name.format(word, s)) if key in rows)
            for digit, word, s in ((1, "one", ""), (2, "two", "s"))
        )
        lines.append(f"| {title} | " + " | ".join(f"{value:.0f}" for value in both) + " |")
    tiny = rows["all passes, on blocks of one element, one thread"]["value"]
    lines.append(f"| Python and the calls' own: the passes on blocks of one element | {tiny:.1f} | |")
    each = ", ".join(f"{name.split(', ')[1]} {value:.2f}" for name, value in passes.items())
    return "\n".join([*lines, "", f"{size // 2**20} Mi parameters. The passes in the cache, ns an element: {each}."])


def family_table(rows: Rows) -> str:
    """How many times as fast as torch's for-loop each rule is."""
    names = list(dict.fromkeys(name.partition(":")[0] for name in rows))
    lines = ["| against torch's for-loop | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for backend in BACKENDS:
        found = [rows[f"{name}: fusedopt, {backend} against torch for-loop"]["value"] for name in names]
        lines.append(f"| {backend} | " + " | ".join(f"{value:.2g} x" for value in found) + " |")
    about = next(iter(rows.values()))
    return "\n".join(
        [*lines, "", f"{about['size'] // 2**20} Mi float32 parameters in one tensor, {about['date'][:10]}."]
    )


def readme_with_table() -> str:
    """The README with its section as the results have it."""
    return replaced(README.read_text(), "speed", speed_section(by_name("bars.json")))


def low_precision() -> str:
    """The page on low precision likewise."""
    return replaced(LOW_PRECISION.read_text(), "cpu", cpu_table(by_name("storages.json")))


def own_readme() -> str:
    """This folder's README likewise."""
    text, points = OWN_README.read_text(), read("growth.json")
    for curve in ("parameters", "tensors", "groups", "threads"):
        text = replaced(text, curve, growth_table(points, curve))
    text = replaced(text, "missed", missed_table(by_name("bars.json")))
    text = replaced(text, "family", family_table(by_name("family.json")))
    text = replaced(text, "storages", storage_table(by_name("storages.json")))
    return replaced(text, "limit", limit_table(by_name("limit.json")))


def replaced(text: str, mark: str, section: str) -> str:
    """The text with another section between two marks."""
    between = rf"(?<=<!-- {mark} -->\n).*?(?=<!-- /{mark} -->)"
    return re.sub(between, lambda _: section + "\n", text, count=1, flags=re.DOTALL)


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def by_name(name: str) -> Rows:
    return {row["name"]: row for row in read(name)}


if __name__ == "__main__":
    README.write_text(readme_with_table())
    OWN_README.write_text(own_readme())
    LOW_PRECISION.write_text(low_precision())
