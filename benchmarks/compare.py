"""Every CPU figure that has a bar, in one run: `python benchmarks/compare.py`. README.md says how each is measured."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import overhead
import torch_steps
from fusedopt.backends import numba_problem
from fusedopt.cli.bench import version
from fusedopt.cli.bench.machine import Cpu, Machine, wall_seconds
from fusedopt.cli.bench.measure import Task, measure, rounds
from fusedopt.cli.bench.peers import OPTIMIZERS, WAYS, Way, optimizer_named
from fusedopt.cli.bench.peers_arrays import chosen
from fusedopt.cli.bench.row import Row, rows
from fusedopt.cli.bench.work import Work, equal_pieces
from record import RESULTS, ROOT, figure_table
from timing import Figure, figure

# How many times as fast as each of them a step of Adam has to be, by backend; None: it is measured for information.
LARGE_BARS: dict[str, dict[str, float | None]] = {
    "fusedopt, NumPy": {
        "NumPy whole arrays": 6.0,
        "NumPy out=": 1.5,
        "torch for-loop": 4.0,
        "torch foreach": 3.0,
        "torch fused": 0.6,
    },
    "fusedopt, numba": {
        "NumPy whole arrays": None,
        "NumPy out=": None,
        "torch for-loop": None,
        "torch foreach": None,
        "torch fused": 0.9,
        "optax jit": 1.0,
    },
}
SMALL_BARS: dict[str, float | None] = {"torch for-loop": 1.2, "torch foreach": None, "torch fused": None}
MEMORY_BAR, PYTHON_BAR, IMPORT_BAR = 32, 20, 0.2  # MiB, microseconds, seconds
TENSORS = (10, 100, 1_000, 10_000)
FLAT = 2  # times the time of 10 tensors that a flat step may take with 10,000
SMALL = equal_pieces(300 * 4_096, 300)
BACKENDS = ("numpy", "numba")
WAY = {way.title: way for way in WAYS}


def rows_of(machine: Machine, work: Work, optimizer: str, ways: Sequence[Way], repeats: int) -> list[Row]:
    """What `python -m fusedopt bench` measures, the first way's row first. On stderr: who is next, and who is not here.

    Raises:
        RuntimeError: One of them computes something else.
    """
    cls, options = optimizer_named(optimizer)
    task = Task(work, optimizer, len(cls.rule(**options).kept_states), repeats)
    found = measure(machine, task, ways, lambda what: print(f"{work.title}, {optimizer}: {what} ...", file=sys.stderr))
    for title, why in found.absent.items():
        print(f"{work.title}, {optimizer}: {title}: {why}", file=sys.stderr)
    about = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "version": version()}
    made = list(rows(machine, task, ways, found, about))
    wrong = [row.peer for row in made if not row.agrees]
    if wrong:
        raise RuntimeError(
            f"{work.title}, {optimizer}: {', '.join(wrong)} computes something else than {ways[0].title}"
        )
    return made


def ratios(rows: Sequence[Row], title: str, bars: Mapping[str, float | None]) -> Iterator[Figure]:
    """The first way's time, and how many times as fast as each of the others it is."""
    ours, *others = rows
    yield Figure(title, 1e3 * ours.seconds, "ms", 1e3 * ours.seconds_low, 1e3 * ours.seconds_high, ours.samples)
    for row in others:
        spread = row.ratio_low, row.ratio_high
        name, bar = f"{title} against {row.peer}", bars.get(row.peer)
        yield Figure(name, row.ratio, "times as fast", *spread, row.samples, at_least=bar)


def speed(machine: Machine, size: int, repeats: int) -> Iterator[Figure]:
    """One large tensor, with each backend and each optimizer."""
    for ours, bars in LARGE_BARS.items():
        if why := WAY[ours].missing("adam", "cpu"):
            print(f"{ours}: {why}", file=sys.stderr)
            continue
        for optimizer in OPTIMIZERS:
            found = rows_of(machine, equal_pieces(size, 1), optimizer, [WAY[w] for w in (ours, *bars)], repeats)
            yield from ratios(found, f"{optimizer}: {ours}", bars if optimizer == "adam" else {})


def small_tensors(machine: Machine, repeats: int) -> Iterator[Figure]:
    """300 torch tensors of 4,096 elements."""
    for backend in backends():
        with chosen(backend):
            ways = [WAY[title] for title in ("fusedopt.torch", *SMALL_BARS)]
            found = rows_of(machine, SMALL, "adam", ways, repeats)
        yield from ratios(found, f"300 torch tensors of 4,096: fusedopt.torch, {backend}", SMALL_BARS)


def backends() -> list[str]:
    """Those that work here."""
    return [name for name in BACKENDS if name != "numba" or numba_problem() is None]


def memory(size: int) -> Iterator[Figure]:
    """Memory that a step takes beside parameters, gradients and states, in a fresh process for each kind of work."""
    kinds = ("one tensor", 1, "float32"), ("1,000 tensors", 1_000, "float32"), ("1,000 tensors", 1_000, "float16")
    for backend in backends():
        for title, tensors, dtype in kinds:
            with chosen(backend):
                output = fresh_python(str(ROOT / "benchmarks" / "memory.py"), str(size), str(tensors), dtype)
            for what, mebibytes in json.loads(output).items():
                name = f"extra memory, {backend}, {dtype} in {title}: {what}"
                bar = None if what == "the compiler" else MEMORY_BAR
                yield figure(name, "MiB", [mebibytes], at_most=bar)


def python_time(repeats: int) -> Iterator[Figure]:
    """The Python time of a step by the number of tensors, on each path through the code."""
    for path in overhead.PATHS:
        if path.backend == "numba" and "numba" not in backends():
            continue
        for case in (overhead.unchanged, overhead.changed, overhead.changed_cold):
            has_bar = not path.shared and case is not overhead.changed_cold
            title = f"Python time, {path.title}, {case.__name__.replace('_', ' ')}"
            found = []
            for tensors in TENSORS:
                samples = [1e6 * s for s in case(tensors, path, max(20, min(50 * repeats, 100_000 // tensors)))]
                bar = PYTHON_BAR if has_bar and tensors == 1_000 else None
                found.append(figure(f"{title}: {tensors:,} tensors", "us", samples, at_most=bar))
            yield from found
            growth = found[-1].value / found[0].value
            yield figure(f"{title}: 10,000 against 10", "times", [growth], at_most=FLAT if has_bar else None)


def imports(repeats: int) -> Iterator[Figure]:
    """What `import fusedopt` takes beyond `import numpy`, and numba's first step beyond both; in fresh processes."""
    heavy = "assert not {'cupy', 'torch', 'numba'} & set(sys.modules)"
    first = "p = fusedopt.Parameter(numpy.ones(1, numpy.float32)); a = fusedopt.Adam([p]); p.grad = p.data; a.step()"
    commands = {
        "numpy": "import numpy",
        "fusedopt": f"import sys; import numpy, fusedopt; {heavy}",
        "numba": f"import numpy, fusedopt; {first}",
    }
    kept = {name: commands[name] for name in ("numpy", "fusedopt", *(n for n in backends() if n == "numba"))}
    with chosen("auto"):
        times = rounds({name: _timer(command) for name, command in kept.items()}, repeats)
    beyond = [ours - numpy for ours, numpy in zip(times["fusedopt"], times["numpy"])]
    yield figure("import fusedopt beyond import numpy", "s", beyond, at_most=IMPORT_BAR)
    if "numba" in kept:
        beyond = [step - ours for step, ours in zip(times["numba"], times["fusedopt"])]
        yield figure("the first step of a process beyond import fusedopt, numba", "s", beyond)


def _timer(command: str) -> Any:
    return lambda: wall_seconds(lambda: fresh_python("-c", command), lambda: None, 1)


def fresh_python(*arguments: str) -> str:
    """The output of a fresh Python that finds this checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment["PYTHONDONTWRITEBYTECODE"] = ""  # an import is timed as of an installed package, which is compiled
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def circumstances(machine: Machine, size: int) -> dict[str, Any]:
    """What stands beside each figure."""
    versions = {"numpy": np.__version__}
    for way in WAYS:
        with contextlib.suppress(Exception):  # not here
            versions |= way.versions()
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": version(),
        **machine.facts(),
        "versions": ", ".join(map(" ".join, versions.items())),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "size": size,
    }


def write(path: Path, figures: Iterable[Figure], about: Mapping[str, Any]) -> None:
    """Keep the figures as a JSON list of flat objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{**about, **found.record()} for found in figures], indent=1) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32 * 2**20, help="float32 parameters (default: 32 Mi)")
    parser.add_argument("--threads", type=int, help="of all that is compared (default: as many as there are cores)")
    parser.add_argument("--repeats", type=int, default=9, help="timings of each (default: 9)")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu" / "bars.json", help="the result file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    arguments = parser.parse_args(words)
    if arguments.threads:
        os.environ["FUSEDOPT_NUM_THREADS"] = str(arguments.threads)
    machine = Cpu()
    before = machine.condition()
    figures = list(measured(machine, arguments.size, arguments.repeats))
    about = circumstances(machine, arguments.size)
    write(arguments.out, figures, {**about, "condition_before": before, "condition_after": machine.condition()})
    print(figure_table(figures))
    missed = [found for found in figures if found.met is False]
    print(f"\n{len(missed)} bars are missed." if missed else "\nAll bars are met.")
    return 1 if missed and arguments.check else 0


def measured(machine: Machine, size: int, repeats: int) -> Iterator[Figure]:
    """All figures."""
    yield from speed(machine, size, repeats)
    yield from small_tensors(machine, repeats)
    yield from torch_steps.host_time(20 * repeats)
    yield from memory(size)
    yield from python_time(repeats)
    yield from imports(repeats)


if __name__ == "__main__":
    sys.exit(main())
