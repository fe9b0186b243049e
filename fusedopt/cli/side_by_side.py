"""The demo's table: steps timed side by side in one process, with the same gradients, in interleaved rounds."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

import fusedopt
from fusedopt.cli.character_model import Array
from fusedopt.cli.naive import NaiveAdam

if TYPE_CHECKING:
    from rich.console import Console

TOGETHER = 3  # steps that all take before they are timed: the warm-up, and what their results are compared after
LAUNCHES = 20  # steps of one timing on a GPU, so that the host waits once for many


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to take a step.

    Attributes:
        xp: numpy or cupy: where it runs.
        step: Takes one step.
        parameters: The parameters as they are now.
    """

    xp: ModuleType
    step: Callable[[], object]
    parameters: Callable[[], Sequence[Array]]


def warm_up(contestants: Mapping[str, Contestant]) -> dict[str, float]:
    """Let all take `TOGETHER` steps; how far each one's parameters are from the first one's."""
    for contestant in contestants.values():
        for _ in range(TOGETHER):
            contestant.step()
    first = [on_host(p) for p in next(iter(contestants.values())).parameters()]
    return {
        name: max(float(np.abs(on_host(p) - q).max()) for p, q in zip(contestant.parameters(), first, strict=True))
        for name, contestant in contestants.items()
    }


def allowed_difference(parameters: Sequence[Array]) -> float:
    """A unit in the last place of the largest weight for each step: room for steps that round differently."""
    return TOGETHER * float(np.spacing(max(np.abs(on_host(p)).max() for p in parameters)))


def interleaved(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, a number each round; a round is one timing of each, so that a slow moment is shared."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            times[name].append(_seconds(contestant))
    return times


def _seconds(contestant: Contestant) -> float:
    """Time of one step; on a GPU the mean of `LAUNCHES`, from an idle device to an idle device."""
    count = 1 if contestant.xp is np else LAUNCHES
    synchronize(contestant.xp)
    start = time.perf_counter()
    for _ in range(count):
        contestant.step()
    synchronize(contestant.xp)
    return (time.perf_counter() - start) / count


def synchronize(xp: ModuleType) -> None:
    """Wait for all streams of the device, torch's too."""
    if xp is not np:
        xp.cuda.runtime.deviceSynchronize()


def on_host(array: Array) -> Any:
    return array.get() if hasattr(array, "get") else array


def compare_with_naive(console: Console, size: int, rounds: int = 7) -> bool:
    """Print a table of Adam's step on `size` float32 parameters, fused and naive; whether the results agree."""
    from rich.table import Table

    xp = fusedopt.array_module()
    rng = np.random.default_rng(0)
    weights = 0.02 * rng.standard_normal(size, np.float32)
    gradient = rng.standard_normal(size, np.float32)
    parameter = fusedopt.Parameter(xp.asarray(weights), name="weights")
    adam = fusedopt.Adam([parameter], lr=1e-3)
    parameter.grad = xp.asarray(gradient)
    contestants = {"fusedopt.Adam": Contestant(xp, adam.step, lambda: [parameter.data])}
    # The least that a step can move: read and write the parameter and two averages, read the gradient.
    moved = {"fusedopt.Adam": 7 * 4}
    for module in (xp,) if xp is np else (xp, np):
        naive = NaiveAdam([module.asarray(weights)], [module.asarray(gradient)])
        name = f"{'NumPy' if module is np else 'CuPy'}, as one writes it"
        contestants[name] = Contestant(module, naive.step, lambda naive=naive: naive.p)  # type: ignore[misc]  # a default
        moved[name] = NaiveAdam.bytes_a_parameter
    differences = warm_up(contestants)
    allowed = allowed_difference([parameter.data])
    times = interleaved(contestants, rounds)

    table = Table(title=f"A step of Adam, {size:,} float32 parameters")
    table.add_column()
    for heading in ("time", "bytes a parameter", "GB/s", "speed"):
        table.add_column(heading, justify="right")
    medians = {name: statistics.median(times[name]) for name in contestants}
    slowest = max(medians.values())
    for name in reversed(list(contestants)):  # the slowest first
        seconds = medians[name]
        rate = size * moved[name] / seconds / 1e9
        table.add_row(name, f"{seconds * 1e3:.3g} ms", str(moved[name]), f"{rate:,.3g}", f"{slowest / seconds:.1f} x")
    console.print(table)
    worst = max(differences.values())
    console.print(
        f"Median of {rounds} interleaved rounds, the same gradient. After {TOGETHER} steps the results differ by"
        f" {worst:.1e} at most; allowed is {allowed:.1e}, a unit in the last place of the largest weight for each step."
    )
    return all(difference <= allowed for difference in differences.values())
