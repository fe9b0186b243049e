"""A floor under speed, for CI: `python benchmarks/floor.py` ends with 1 and says what has become slower, in a minute.

Everything is a ratio of two things timed in turn in this process, so that it is the same on a slow machine. It is that
of the best times of each, and on one thread: what else runs on the machine makes times longer, but seldom all of them.
Each bar lies about in the middle, by logarithm, between what is usual and a step that takes twice as long.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import fusedopt
import overhead
from fusedopt.backends import numba_problem
from fusedopt.cli.bench.machine import Step, Timer, nothing, wall_seconds
from fusedopt.cli.bench.measure import WEIGHT, rounds
from fusedopt.cli.bench.peers import WAYS
from fusedopt.cli.bench.peers_arrays import chosen
from fusedopt.cli.bench.work import Work, equal_pieces
from fusedopt.cli.naive import NaiveAdam
from fusedopt.cli.peak_memory import peak_of_step
from record import ROOT, figure_table
from timing import Figure

ROUNDS = 100
ATTEMPTS = 3  # at a section, each of which a busy moment may spoil
LARGE, SMALL = equal_pieces(2**20, 1), equal_pieces(300 * 4_096, 300)


class Race(NamedTuple):
    """A step of Adam on one backend, and how many times as fast as each of the others it has to be."""

    title: str
    work: Work
    backend: str
    ours: str
    floors: dict[str, float]


RACES = (
    Race(
        "1 Mi in one tensor, NumPy",
        LARGE,
        "numpy",
        "fusedopt, NumPy",
        {"NumPy whole arrays": 1.55, "torch foreach": 0.78},
    ),
    Race("1 Mi in one tensor, numba", LARGE, "numba", "fusedopt, numba", {"torch fused": 0.8}),
    Race("300 torch tensors of 4,096, NumPy", SMALL, "numpy", "fusedopt.torch", {"torch for-loop": 1.2}),
    Race("300 torch tensors of 4,096, numba", SMALL, "numba", "fusedopt.torch", {"torch for-loop": 3.4}),
)
MEMORY = 8.0  # MiB that a step takes beside what is kept
# Times the Python time of the same step by hand for one element; and times torch's fused step over 300 of them.
NUMPY_TIME, CUDA_TIME, TORCH_TIME = 3.5, 0.31, 0.56
IMPORT = 1.7  # times that of NumPy, beyond it: 24 rules and 20 schedules are made into classes
WAY = {way.title: way for way in WAYS}


def race(it: Race, absent: list[str]) -> Iterator[Figure]:
    """Speed and memory of fusedopt's step, beside peers. Who is not here is told to `absent`."""
    missing = {name: why for name in (it.ours, *it.floors) if (why := WAY[name].missing("adam", "cpu"))}
    if it.backend == "numba" and (problem := numba_problem()):
        missing[it.ours] = problem
    absent += [line for name, why in missing.items() if (line := f"{it.title}: {name}: {why}") not in absent]
    if it.ours in missing:
        return
    names = [name for name in (it.ours, *it.floors) if name not in missing]
    weights, gradients = it.work.arrays(0, WEIGHT), it.work.arrays(1, 1.0)
    with chosen(it.backend):
        built = {name: WAY[name].build("adam", weights, gradients, "cpu") for name in names}
        best = best_seconds({name: timer(peer.step) for name, peer in built.items()})
    ours = built[it.ours]
    for name in names[1:]:
        yield at_least(f"{it.title} against {name}", "times as fast", best[name] / best[it.ours], it.floors[name])
    extra = peak_of_step(ours.library, False, ours.step)
    if extra is not None:
        yield at_most(f"{it.title}, memory of a step", "MiB", extra / 2**20, MEMORY)


def best_seconds(timers: Mapping[str, Timer], repeats: int = ROUNDS) -> dict[str, float]:
    """The shortest timing of each, in rounds."""
    return {name: min(times) for name, times in rounds(timers, repeats).items()}


def python_time() -> Iterator[Figure]:
    """The Python time of a step over 1,000 tensors where nothing changed, on NumPy's path and on that to a GPU."""
    naive = NaiveAdam([np.ones(1, np.float32)], [np.ones(1, np.float32)])
    for path, bar in ((overhead.NUMPY, NUMPY_TIME), (overhead.CUDA, CUDA_TIME)):
        steps = overhead.Steps(1_000, path)
        best = best_seconds({"ours": steps.unchanged, "by hand": timer(naive.step)}, 5 * ROUNDS)
        title = f"Python time, {path.title}, 1,000 tensors"
        yield at_most(title, "of a step by hand", best["ours"] / best["by hand"], bar)


def torch_time(absent: list[str]) -> Iterator[Figure]:
    """The same over 300 torch tensors, on the path to a GPU."""
    if find_spec("torch") is None:
        absent.append("Python time, torch tensors: torch is not installed: pip install 'fusedopt[torch]'")
        return
    from torch_steps import idle_and_fused

    with idle_and_fused(300) as (ours, fused):
        best = best_seconds({"ours": timer(ours.step), "fused": timer(fused.step)}, 3 * ROUNDS)
    title = "Python time, 300 torch tensors but for the launch"
    yield at_most(title, "of torch's fused step", best["ours"] / best["fused"], TORCH_TIME)


def imports() -> Iterator[Figure]:
    """What `import fusedopt` takes beyond `import numpy`, in fresh processes."""
    from compare import fresh_python

    commands = {"numpy": "import numpy", "fusedopt": "import numpy, fusedopt"}
    best = best_seconds({name: timer(lambda text=text: fresh_python("-c", text)) for name, text in commands.items()}, 9)
    beyond = best["fusedopt"] / best["numpy"] - 1
    yield at_most("import fusedopt beyond import numpy", "of import numpy", beyond, IMPORT)


def launches(absent: list[str]) -> Iterator[Figure]:
    """Of a step of three groups of two dtypes, counted on the device that g++ emulates."""
    sys.path.append(str(ROOT / "tests"))
    from emulator.build import compiler

    if compiler() is None:
        absent.append("launches: there is no C++ compiler: set CXX, or install g++")
        return
    import emulated

    dtypes = (np.float32, np.float16)
    groups = [[fusedopt.Parameter(emulated.array(np.ones(9, dtype))) for dtype in dtypes] for _ in range(3)]
    optimizer = fusedopt.AdamW([{"params": group} for group in groups])
    for parameter in optimizer.parameters():
        parameter.grad = parameter.data
    found = emulated.EmulatedArray.__fusedopt_backend__.surface.launches
    before = len(found)
    optimizer.step()
    yield at_most("launches of a step of three groups, two dtypes", "", len(found) - before, 1)


def timer(step: Step) -> Timer:
    return lambda: wall_seconds(step, nothing, 1)


def at_least(name: str, unit: str, value: float, bar: float) -> Figure:
    return Figure(name, value, unit, value, value, 1, at_least=bar)


def at_most(name: str, unit: str, value: float, bar: float) -> Figure:
    return Figure(name, value, unit, value, value, 1, at_most=bar)


def measured(absent: list[str]) -> list[Figure]:
    """All figures, on one thread."""
    sections: list[Callable[[], Iterator[Figure]]] = [
        *(functools.partial(race, it, absent) for it in RACES),
        python_time,
        functools.partial(torch_time, absent),
        imports,
        functools.partial(launches, absent),
    ]
    with mock.patch.dict(os.environ, FUSEDOPT_NUM_THREADS="1", FUSEDOPT_BACKEND="auto"):
        return [figure for section in sections for figure in attempted(section)]


def attempted(section: Callable[[], Iterator[Figure]]) -> list[Figure]:
    """The figures of the first attempt at which all floors hold, or of the last one."""
    for _ in range(ATTEMPTS):
        found = list(section())
        if all(figure.met for figure in found):
            break
    return found


def main() -> int:
    absent: list[str] = []
    found = measured(absent)
    print(figure_table(found))
    for line in absent:
        print(f"not measured: {line}")
    missed = [figure.name for figure in found if figure.met is False]
    print(f"\nMissed: {'; '.join(missed)}." if missed else "\nEvery floor holds.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
