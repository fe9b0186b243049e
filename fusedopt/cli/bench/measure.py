"""The method: fusedopt and one peer at a time, side by side, in rounds. `row.py` makes medians and shares of them.

Both are built from the same values and take three steps with gradients of different size and sign, after which their
parameters are compared. From then on gradients stay as they are and where they are. Then there are
rounds: each times fusedopt, the peer and the streams of `streams.py`, and who comes first changes from round to round.
A ratio, and a share of a stream, is that of two timings of one round, and the figure is the median over the rounds: a
slow moment of the machine meets both. fusedopt is built again for each peer, and its own row pools the timings of all
pairs. So there is never more in memory than two ways to take the step.

Where all that a step touches is smaller than the caches, they are cleared before each timing, unless `--warm` says no.

Of each way there are also: the host's time (on a GPU), a graph's time (where it can be captured), the bytes kept from
step to step, and the most memory that one more step takes beside them. `launches` is for when all that is done.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedopt.cli.bench.machine import Machine, Timer
from fusedopt.cli.bench.streams import Stream, streams
from fusedopt.cli.bench.work import Work
from fusedopt.cli.peak_memory import peak_of_step
from fusedopt.cli.side_by_side import TOGETHER, allowed_difference

if TYPE_CHECKING:
    from fusedopt.cli.bench.peers import Peer, Way

PROBES = 3  # timings that decide which stream of a kind is the fastest
WEIGHT = 0.02  # deviation of the weights; that of the gradients is 1
# Of the gradients, between the steps that are compared: with one gradient alone Adam is the same for any betas. After
# the last they are as they were; powers of two are exact.
FACTORS = (-0.5, -4.0, 0.5)
assert len(FACTORS) == TOGETHER


@dataclasses.dataclass(frozen=True)
class Task:
    """A step to be compared.

    Attributes:
        work, optimizer: The tensors, and the optimizer's name.
        states: Arrays that it keeps for each parameter.
        repeats: Rounds.
        warm: Whether caches are left as the last step left them.
        summed: Arrays that a step reads once more, as LAMB's norms do.
    """

    work: Work
    optimizer: str
    states: int
    repeats: int
    warm: bool = False
    summed: int = 0

    @property
    def bytes(self) -> int:
        """The least that a step moves."""
        return 4 * self.work.parameters * (2 * (1 + self.states) + 1 + self.summed)

    def fits(self, machine: Machine) -> bool:
        """Whether the caches could keep all that a step touches until the next one."""
        return 4 * self.work.parameters * (2 + self.states) < machine.cache_bytes

    def cold(self, machine: Machine) -> bool:
        """Whether the caches have to be cleared."""
        return self.fits(machine) and not self.warm


@dataclasses.dataclass
class Figures:
    """What is measured of one way; lists have a value for each round.

    Attributes:
        seconds: Of a step.
        ratios: Its time over fusedopt's.
        floors: The time of each kind of stream over its own.
    """

    seconds: list[float]
    ratios: list[float]
    floors: dict[str, list[float]]
    kept_bytes: int
    extra_bytes: int | None
    graph_seconds: float | None
    host_seconds: float | None
    difference: float | None
    allowed: float

    def add(self, other: Figures) -> None:
        """Pool the timings with those of another pair."""
        self.seconds += other.seconds
        self.ratios += other.ratios
        for kind in self.floors:
            self.floors[kind] += other.floors[kind]


def rounds(timers: Mapping[str, Timer], repeats: int) -> dict[str, list[float]]:
    """A timing of each in every round; each is first in turn, and every second round goes backwards."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(repeats):
        start = number % len(timers)
        order = [*timers][start:] + [*timers][:start]
        for name in reversed(order) if number % 2 else order:
            times[name].append(timers[name]())
    return times


@dataclasses.dataclass
class Measured:
    """All that is known of a task: figures of each way that can run here, and why the others cannot, by title.

    Attributes:
        streams: By kind, with the seconds that they took in all rounds.
        before, after: The machine's condition.
    """

    figures: dict[str, Figures]
    absent: dict[str, str]
    streams: dict[str, tuple[Stream, list[float]]]
    before: str
    after: str


def measure(machine: Machine, task: Task, ways: Sequence[Way], say: Callable[[str], object]) -> Measured:
    """Measure fusedopt, the first of the ways, against each of the others.

    Args:
        say: Told what comes next.

    Raises:
        RuntimeError: The first way cannot run here. A peer that cannot is among the absent.
    """
    ours, *others = ways
    if reason := ours.missing(task.optimizer, machine.kind):
        raise RuntimeError(f"{ours.title}: {reason}")
    before = machine.condition()
    with machine.here():
        say("streams")
        floor = fastest_streams(machine, task)
        found = Measured({}, {}, {kind: (stream, []) for kind, (stream, _) in floor.items()}, before, before)
        timers = {kind: timer for kind, (_, timer) in floor.items()}
        for way in others:
            reason = way.missing(task.optimizer, machine.kind)
            if reason is None:
                say(way.title)
                reason = _compare(machine, task, (ours, way), timers, found)
            if reason is not None:
                found.absent[way.title] = reason
        if not found.figures:  # nobody to be compared with, or an error that is fusedopt's own
            say(ours.title)
            _take_up(found, _pair(machine, task, (ours,), timers))
        machine.release()
    found.after = machine.condition()
    return found


def fastest_streams(machine: Machine, task: Task) -> dict[str, tuple[Stream, Timer]]:
    """Of each kind, the fastest; as a graph where there are graphs, so that the host is not in it."""
    fastest: dict[str, tuple[float, Stream, Timer]] = {}
    cold = task.cold(machine)
    for stream in streams(machine, task.work.parameters, task.states):
        stream.step()
        timer = machine.replay_timer(stream.step, "cupy", cold=cold) or machine.timer(stream.step, cold=cold)
        rate = stream.bytes / statistics.median(timer() for _ in range(PROBES))
        if stream.kind not in fastest or rate > fastest[stream.kind][0]:
            fastest[stream.kind] = rate, stream, timer
    return {kind: (stream, timer) for kind, (_, stream, timer) in fastest.items()}


def _compare(
    machine: Machine, task: Task, pair: tuple[Way, Way], timers: Mapping[str, Timer], found: Measured
) -> str | None:
    """Measure a pair; why the peer cannot be measured, if it cannot."""
    try:
        _take_up(found, _pair(machine, task, pair, timers))
        return None
    except Exception as error:  # a peer fails as it likes: no compiler, no memory, a missing symbol
        return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
    finally:
        gc.collect()
        machine.release()


def _take_up(found: Measured, pair: tuple[dict[str, Figures], dict[str, list[float]]]) -> None:
    figures, times = pair
    for title, of_way in figures.items():
        if title in found.figures:
            found.figures[title].add(of_way)
        else:
            found.figures[title] = of_way
    for kind, (_, seconds) in found.streams.items():
        seconds += times[kind]


def _pair(
    machine: Machine, task: Task, ways: Sequence[Way], floor: Mapping[str, Timer]
) -> tuple[dict[str, Figures], dict[str, list[float]]]:
    """Figures of the ways by title, the first one's first, and the seconds of each round."""
    weights, gradients = task.work.arrays(0, WEIGHT), task.work.arrays(1, 1.0)
    built = {way: way.build(task.optimizer, weights, gradients, machine.kind) for way in ways}
    differences = _after_warm_up(machine, task, built)
    timers = {
        way.title: machine.timer(peer.step, peer.finish, own_stream=peer.stream == "own", cold=task.cold(machine))
        for way, peer in built.items()
    }
    times = rounds({**timers, **floor}, task.repeats)
    figures: dict[str, Figures] = {}
    for way, peer in built.items():
        seconds, ours = times[way.title], times[ways[0].title]
        figures[way.title] = Figures(
            seconds=seconds,
            ratios=[theirs / own for theirs, own in zip(seconds, ours, strict=True)],
            floors={kind: [f / t for f, t in zip(times[kind], seconds, strict=True)] for kind in floor},
            kept_bytes=peer.kept(),
            difference=differences[way][0],
            allowed=differences[way][1],
            **_one_by_one(machine, task, peer),
        )
    return figures, times


def _after_warm_up(machine: Machine, task: Task, built: Mapping[Way, Peer]) -> dict[Way, tuple[float | None, float]]:
    """After a few steps, how far each one's parameters are from the first one's (None: not meant to be), and may be."""
    for peer in built.values():
        for factor in FACTORS:
            peer.step()
            peer.scale_gradients(factor)
        peer.finish()
    machine.wait()
    expected = next(iter(built.values())).parameters()
    rounding = allowed_difference(expected)
    return {
        way: (_difference(peer, expected) if way.exact else None, rounding + TOGETHER * way.slack)
        for way, peer in built.items()
    }


def _difference(peer: Peer, expected: Sequence[np.ndarray[Any, Any]]) -> float:
    """Of a parameter from what is expected, at most; NaN where one of them is."""
    pairs = zip(peer.parameters(), expected, strict=True)
    return float(np.max([np.abs(found.reshape(-1) - wanted.reshape(-1)).max() for found, wanted in pairs]))


def launches(machine: Machine, task: Task, way: Way) -> int | None:
    """Kernels of a step, counted by a profiler; to be asked after all is timed, since that slows what comes later."""
    with machine.here():
        weights, gradients = task.work.arrays(0, WEIGHT), task.work.arrays(1, 1.0)
        peer = way.build(task.optimizer, weights, gradients, machine.kind)
        step = _whole(machine, peer)
        step()
        found = machine.launches(step)
        del peer, step
        gc.collect()
        machine.release()
    return found


def _whole(machine: Machine, peer: Peer) -> Callable[[], None]:
    """A step, until it is done."""

    def whole() -> None:
        peer.step()
        peer.finish()
        machine.wait()

    return whole


def _one_by_one(machine: Machine, task: Task, peer: Peer) -> dict[str, Any]:
    """What is measured outside of the rounds; the graph last, since a refused capture may leave something behind."""
    found = {
        "host_seconds": machine.host_seconds(peer.step, peer.finish),
        "extra_bytes": peak_of_step(peer.library, machine.kind == "cuda", _whole(machine, peer)),
    }
    replay = None
    if peer.stream == "current":
        replay = machine.replay_timer(peer.step, peer.library, cold=task.cold(machine))
    graph = statistics.median(replay() for _ in range(task.repeats)) if replay else None
    return {**found, "graph_seconds": graph}
