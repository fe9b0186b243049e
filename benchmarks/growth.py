"""How the cost of a step grows with parameters, tensors, groups and threads: `python benchmarks/growth.py`.

Adam, float32, caches left as the last step left them. At each point all ways that fit in memory together are timed in
rounds. Host time is that until a step returns on a GPU; on a CPU it is fusedopt's own, as `overhead.py` measures it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import overhead
from fusedopt.backends import numba_problem
from fusedopt.backends.threads import thread_count
from fusedopt.cli.bench import version
from fusedopt.cli.bench.machine import Machine
from fusedopt.cli.bench.measure import WEIGHT, Task, fastest_streams, rounds
from fusedopt.cli.bench.peers import WAYS, Peer, Way
from fusedopt.cli.bench.streams import MIX, TRIAD
from fusedopt.cli.bench.work import equal_pieces
from grouped import in_groups

RESULTS = Path(__file__).parent / "results" / "cpu"
WAY = {way.title: way for way in WAYS}
OURS, NUMPY, OURS_TORCH, FUSED, FOREACH = (
    "fusedopt",
    "fusedopt, NumPy",
    "fusedopt.torch",
    "torch fused",
    "torch foreach",
)
BYTES = 28  # that Adam's step moves for each parameter
FREE_SHARE = 0.95  # of the memory that is free
NEED = {FOREACH: 28}  # bytes a parameter, with temporary arrays
USUAL_NEED = {"cpu": 17, "cuda": 28}
WARM_UP = 3  # steps
NOISE = 1_000_000  # random numbers, repeated
STREAMED = 64 * 2**20  # parameters of the step whose bytes the floor's streams move


@dataclasses.dataclass(frozen=True)
class Curve:
    """What grows, and what stays.

    Attributes:
        name: Of `parameters`, `tensors`, `groups` and `threads`, the one that grows.
        counts: Its values.
        ways: Who steps.
        parameters, tensors, groups: What they are where they do not grow.
    """

    name: str
    counts: Sequence[int]
    ways: Sequence[str]
    parameters: int = 10_000_000
    tensors: int = 1
    groups: int = 1


def half_decades(last: int) -> list[int]:
    """1, 3, 10, 30 ... up to the last."""
    return [n for power in range(10) for n in (10**power, 3 * 10**power) if n <= last]


CURVES = (
    Curve("threads", (1, 2, 4, 8, 16), (OURS, NUMPY, FUSED), parameters=30_000_000),
    Curve("groups", half_decades(10**3), (OURS, OURS_TORCH, FUSED), tensors=10**3),
    Curve("tensors", half_decades(10**5), (OURS, OURS_TORCH, FUSED, FOREACH)),
    Curve("parameters", [n for n in half_decades(10**9) if n >= 1_000], (OURS, NUMPY, FUSED, FOREACH)),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """One way's step.

    Attributes:
        curve, parameters, tensors, groups, threads: What grows, and what there is.
        seconds, seconds_low, seconds_high, samples: Median and quartiles of the timings, and how many.
        host_seconds: Of that the host's, where it is known.
        floor_seconds: Of a stream over the bytes that the step must move, at its speed far beyond the caches.
        date, version, device, driver, condition: When, of what, on what.
    """

    curve: str
    peer: str
    parameters: int
    tensors: int
    groups: int
    threads: int
    seconds: float
    seconds_low: float
    seconds_high: float
    samples: int
    host_seconds: float | None
    floor_seconds: float
    date: str
    version: str
    device: str
    driver: str
    versions: str
    condition: str

    @property
    def count(self) -> int:
        """Of what grows."""
        return int(getattr(self, self.curve))


def curves(
    machine: Machine,
    limit_seconds: float,
    most: int = 10**9,
    repeats: int = 7,
    say: Callable[[str], object] = print,
) -> Iterator[Point]:
    """The points of all curves that a machine has, the small ones of each first.

    Args:
        limit_seconds: Past it no further point is begun.
        most: Parameters.
        repeats: Timings of each way at each point.
        say: Told in one line what is left out, and why.
    """
    end = time.monotonic() + limit_seconds
    with machine.here():
        rate = stream_rate(machine, min(STREAMED, most))
        for curve in CURVES:
            if curve.name == "threads" and machine.kind == "cuda":
                continue  # its threads are the kernel's own
            for count in curve.counts:
                work = dataclasses.replace(curve, **({} if curve.name == "threads" else {curve.name: count}))
                if work.parameters > most:
                    say(f"{curve.name}, {count:,}: more than {most:,} parameters were not asked for")
                elif time.monotonic() > end:
                    say(f"{curve.name}, {count:,}: {limit_seconds:,.0f} seconds are over")
                else:
                    with threads(count if curve.name == "threads" else thread_count()):
                        yield from points(machine, work, rate, repeats, say)
                gc.collect()
                machine.release()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many for whatever is built meanwhile."""
    before = os.environ.get("FUSEDOPT_NUM_THREADS")
    os.environ["FUSEDOPT_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        del os.environ["FUSEDOPT_NUM_THREADS"]
        if before is not None:
            os.environ["FUSEDOPT_NUM_THREADS"] = before


def stream_rate(machine: Machine, parameters: int) -> float:
    """Bytes a second of the fastest stream with the step's mix of loads and stores."""
    found = fastest_streams(machine, Task(equal_pieces(parameters, 1), "adam", 2, 1))
    stream, timer = found[MIX] if MIX in found else found[TRIAD]
    return stream.bytes / statistics.median(timer() for _ in range(7))


def points(machine: Machine, work: Curve, rate: float, repeats: int, say: Callable[[str], object]) -> Iterator[Point]:
    """A point for each way that is here and fits."""
    title = f"{work.name}, {work.parameters:,} in {work.tensors:,} tensors and {work.groups:,} groups"
    built = {way: build(way, machine, work) for way in that_fit(machine, work, lambda why: say(f"{title}: {why}"))}
    for peer in built.values():
        for _ in range(WARM_UP):
            peer.step()
    timers = {way: machine.timer(peer.step, peer.finish) for way, peer in built.items()}
    for title, times in rounds({way.title: timer for way, timer in timers.items()}, repeats).items():
        low, median, high = (float(q) for q in np.percentile(times, (25, 50, 75)))
        yield Point(
            curve=work.name,
            peer=title,
            parameters=work.parameters,
            tensors=work.tensors,
            groups=work.groups,
            threads=thread_count(),
            seconds=median,
            seconds_low=low,
            seconds_high=high,
            samples=len(times),
            host_seconds=host_seconds(machine, work, title, built[WAY[title]]),
            floor_seconds=BYTES * work.parameters / rate,
            **circumstances(machine, WAY[title]),
        )


def that_fit(machine: Machine, work: Curve, say: Callable[[str], object]) -> Iterator[Way]:
    """The ways of a curve that can run here, as long as there is memory for all of them together."""
    free, need = machine.free_bytes(), 0
    for way in (WAY[title] for title in work.ways):
        if why := way.missing("adam", machine.kind):
            say(f"{way.title}: {why}")
            continue
        need += NEED.get(way.title, USUAL_NEED[machine.kind]) * work.parameters
        if free is not None and need > FREE_SHARE * free:
            say(f"{way.title}: needs {need / 1e9:.1f} GB with those before it, and {free / 1e9:.1f} GB are free")
            return
        yield way


def build(way: Way, machine: Machine, work: Curve) -> Peer:
    """A way over equal tensors of random numbers, which take no memory before they are copied."""
    shapes = equal_pieces(work.parameters, work.tensors).shapes
    noise = np.random.default_rng(0).standard_normal(NOISE, np.float32)
    gradients = [repeated(noise, size) for (size,) in shapes]
    small = np.float32(WEIGHT) * noise[::-1]
    weights = [repeated(small, size) for (size,) in shapes]
    if work.groups > 1:
        return in_groups(way.title, weights, gradients, machine.kind, work.groups)
    return way.build("adam", weights, gradients, machine.kind)


def repeated(noise: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """So many of the numbers; a view, and of two dimensions, where there are many times as many."""
    if size <= len(noise):
        return noise[:size]
    times, rest = divmod(size, len(noise))
    return np.resize(noise, size) if rest else np.broadcast_to(noise, (times, len(noise)))


def host_seconds(machine: Machine, work: Curve, title: str, peer: Peer) -> float | None:
    """Of a step; None for what is not known."""
    if machine.kind == "cuda":
        return machine.host_seconds(peer.step, peer.finish)
    if title != OURS or work.name not in ("tensors", "groups"):
        return None
    path = overhead.NUMPY if numba_problem() else overhead.NUMBA
    return statistics.median(overhead.unchanged(work.tensors, path, 20, work.groups))


def circumstances(machine: Machine, way: Way) -> dict[str, str]:
    """What stands beside each point."""
    facts = machine.facts()
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": version(),
        "device": facts["device"],
        "driver": facts["driver"],
        "versions": ", ".join(map(" ".join, {"numpy": np.__version__, **way.versions()}.items())),
        "condition": machine.condition(),
    }


def save(path: Path, found: Sequence[Point]) -> None:
    """Keep the points as a JSON list of flat objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([dataclasses.asdict(point) for point in found], indent=1) + "\n")


def main() -> int:
    from fusedopt.cli.bench.machine import Cpu
    from growth_picture import draw

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=400, help="seconds past which no further point is begun (400)")
    parser.add_argument("--most", type=int, default=10**9, help="parameters (10^9)")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each (7)")
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json", help="the picture's name ends in .png")
    arguments = parser.parse_args()
    found: list[Point] = []
    for point in curves(Cpu(), arguments.limit, arguments.most, arguments.repeats):
        host = f", host {1e6 * point.host_seconds:,.0f} us" if point.host_seconds else ""
        print(f"{point.curve:10} {point.count:13,} {point.peer:16} {1e3 * point.seconds:12,.3f} ms{host}", flush=True)
        found.append(point)
        save(arguments.out, found)  # now: what is measured is not lost where a later one fails
    draw(arguments.out.with_suffix(".png"), found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
