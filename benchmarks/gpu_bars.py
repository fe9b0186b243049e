"""What a GPU measurement is held against: shares of a plain stream's speed, and ratios to what one could take instead.

A share is fusedopt's bytes a second over those of the plain stream with the same mix of loads and stores, or of a copy,
in the same round; a ratio is the peer's time over fusedopt's in the same round.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from fusedopt.cli.bench.measure import Figures, Measured, Task
from fusedopt.cli.bench.peers import Way
from fusedopt.cli.bench.streams import COPY, MIX
from timing import Figure, figure

SHARE = 0.95  # of the stream, from 64 Mi parameters on
HALVES, EIGHT_BITS = 0.9, 0.8  # of a copy, with bf16 parameters: states of 16 or 32 bits, and of 8
EXTRA = 0.01  # memory of a step beyond what is kept, as a share of that
HOST_MICROSECONDS = 30  # launch included
LARGE = {"torch foreach": 2.5, "optax jit": 1.0, "CuPy whole arrays": 6.0}  # ratios for one large tensor
NEVER_SLOWER, FASTER, ROOM = 1.0, 1.1, 0.86  # than torch fused; FASTER where its share of the stream is below ROOM
MODELS = {"moe": 5.0, "resnet-50": 3.0}  # ratios to torch fused
FUSED = "torch fused"


def figures_of(case: Any, task: Task, found: Measured, ways: Mapping[str, Way]) -> Iterator[Figure]:
    """Shares of fusedopt's step and ratios to each peer, of one case of `gpu_speed`; `ways` are by their titles."""
    style = "torch tensors" if case.ours.endswith("torch") else "arrays"
    name = f"{task.optimizer}, {task.work.title}, {style}"
    ours = found.figures[case.ours]
    for kind, bar in ((MIX, SHARE if case.large else None), (COPY, None)):
        title = "the stream" if kind == MIX else "a copy"
        yield figure(f"{name}: share of {title}", "", shares(ours, task.bytes, found, kind), at_least=bar)
    for peer, figures in found.figures.items():
        if peer == case.ours:
            continue
        if ways[peer].moved is not None:
            yield from of_storage(f"{name}, {peer.rpartition(' ')[2]}", figures, ways[peer], task, found)
            continue
        bar = ratio_bar(case, peer, shares(figures, task.bytes, found, MIX))
        yield figure(f"{name}: against {peer}", "times as fast", figures.ratios, at_least=bar)


def of_storage(name: str, figures: Figures, way: Way, task: Task, found: Measured) -> Iterator[Figure]:
    """The share of a copy's bandwidth that a storage reaches with the bytes that are its own, and a step's memory."""
    bar = EIGHT_BITS if "int8" in way.title else HALVES
    copied = shares(figures, way.bytes_moved(task), found, COPY)
    yield figure(f"{name}: share of a copy", "", copied, at_least=bar)
    if figures.extra_bytes is not None:
        share = figures.extra_bytes / figures.kept_bytes
        yield figure(f"{name}: extra memory of a step", "of what is kept", [share], at_most=EXTRA)


def shares(figures: Figures, moved: int, found: Measured, kind: str) -> list[float]:
    """Of the bytes a second of a kind of stream, round by round, where a step moves so many bytes."""
    stream, _ = found.streams[kind]
    return [ratio * moved / stream.bytes for ratio in figures.floors[kind]]


def ratio_bar(case: Any, peer: str, peers_shares: list[float]) -> float | None:
    """How many times as fast as a peer a step has to be; None where nobody asks."""
    if peer == FUSED and case.model:
        return MODELS.get(case.model)
    if not case.large or case.tensors > 1:
        return None
    if peer == FUSED:
        return FASTER if statistics.median(peers_shares) < ROOM else NEVER_SLOWER
    return LARGE.get(peer)
