"""A measurement as one flat row, and files of them: JSON, or CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedopt.backends import cpu_backend
from fusedopt.cli.bench.machine import Machine
from fusedopt.cli.bench.streams import COPY, MIX, TRIAD

if TYPE_CHECKING:
    from fusedopt.cli.bench.measure import Measured, Task
    from fusedopt.cli.bench.peers import Way

QUARTILES = (25, 50, 75)


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to take one step. None: not defined here, or not to be found out.

    Attributes:
        date, version, backend, device, driver, threads, versions: When, of which fusedopt, on what.
        condition_before, condition_after: Load, clocks and throttling of the machine.
        title, model, layers, tensors, parameters, dtype, optimizer: What is stepped.
        peer: Who steps; fusedopt's own row is the first.
        cache: `cold`: cleared before each step, or much smaller than what a step touches; or `warm`.
        seconds, seconds_low, seconds_high, samples: Median and quartiles of the timings, and how many.
        graph_seconds: The median of a step in a CUDA graph.
        host_seconds: Until a step returns, with an idle device.
        launches: Kernels of a step; counted after all else, see `measure.launches`.
        bytes_a_step: The least that a step moves, in float32 or in a storage that is fusedopt's: parameter and states
            read and written, the gradient read, and what is read once more to be summed.
        bytes_per_second: `bytes_a_step / seconds`, whatever the way does move.
        share_of_stream, share_of_copy: Of the bytes per second of the streams in the same rounds.
        stream: What `share_of_stream` is of.
        stream_bytes_per_second, triad_bytes_per_second, copy_bytes_per_second: Theirs.
        kept_bytes_a_parameter: Of parameters, gradients, states and scratch memory.
        extra_bytes: The most that a step takes beside them.
        ratio, ratio_low, ratio_high: This way's time over fusedopt's: median and quartiles over the rounds.
        difference, allowed_difference: Of the parameters from fusedopt's after three steps, at most.
    """

    date: str
    version: str
    backend: str
    device: str
    driver: str
    threads: int
    versions: str
    condition_before: str
    condition_after: str
    title: str
    model: str
    layers: int | None
    tensors: int
    parameters: int
    dtype: str
    optimizer: str
    peer: str
    cache: str
    seconds: float
    seconds_low: float
    seconds_high: float
    samples: int
    graph_seconds: float | None
    host_seconds: float | None
    launches: int | None
    bytes_a_step: int
    bytes_per_second: float
    share_of_stream: float
    share_of_copy: float
    stream: str
    stream_bytes_per_second: float
    triad_bytes_per_second: float
    copy_bytes_per_second: float
    kept_bytes_a_parameter: float
    extra_bytes: int | None
    ratio: float
    ratio_low: float
    ratio_high: float
    difference: float | None
    allowed_difference: float

    @property
    def agrees(self) -> bool:
        """Whether it computes what fusedopt does, or is not meant to."""
        return self.difference is None or self.difference <= self.allowed_difference  # NaN is not


def rows(machine: Machine, task: Task, ways: Sequence[Way], found: Measured, about: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each way that was measured, fusedopt's first. `about`: date and version."""
    work = task.work
    speeds = {kind: stream.bytes / statistics.median(seconds) for kind, (stream, seconds) in found.streams.items()}
    floor = MIX if MIX in speeds else TRIAD
    facts = machine.facts()
    for way in (way for way in ways if way.title in found.figures):
        figures = found.figures[way.title]
        low, seconds, high = (float(q) for q in np.percentile(figures.seconds, QUARTILES))
        ratio_low, ratio, ratio_high = (float(q) for q in np.percentile(figures.ratios, QUARTILES))
        least = way.bytes_moved(task)
        # Both move bytes at their own rate: the share is that of the rates in the same round.
        shares = {
            kind: statistics.median(figures.floors[kind]) * least / found.streams[kind][0].bytes for kind in speeds
        }
        yield Row(
            **about,
            backend="cuda" if machine.kind == "cuda" else cpu_backend().name,
            **facts,
            versions=", ".join(map(" ".join, {"numpy": np.__version__, **way.versions()}.items())),
            condition_before=found.before,
            condition_after=found.after,
            title=work.title,
            model=work.model,
            layers=work.layers,
            tensors=len(work.shapes),
            parameters=work.parameters,
            dtype=way.dtype,
            optimizer=task.optimizer,
            peer=way.title,
            cache="warm" if task.warm and task.fits(machine) else "cold",
            seconds=seconds,
            seconds_low=low,
            seconds_high=high,
            samples=len(figures.seconds),
            graph_seconds=figures.graph_seconds,
            host_seconds=figures.host_seconds,
            launches=None,
            bytes_a_step=least,
            bytes_per_second=least / seconds,
            share_of_stream=shares[floor],
            share_of_copy=shares[COPY],
            stream=found.streams[floor][0].title,
            stream_bytes_per_second=speeds[floor],
            triad_bytes_per_second=speeds[TRIAD],
            copy_bytes_per_second=speeds[COPY],
            kept_bytes_a_parameter=figures.kept_bytes / work.parameters,
            extra_bytes=figures.extra_bytes,
            ratio=ratio,
            ratio_low=ratio_low,
            ratio_high=ratio_high,
            difference=figures.difference,
            allowed_difference=figures.allowed,
        )


def save(path: Path, rows: Sequence[Any]) -> None:
    """Write the rows, dataclasses of one type: as CSV where the file's name ends so, else as a JSON list of objects."""
    records = [dataclasses.asdict(row) for row in rows]
    if path.suffix.lower() != ".csv":
        path.write_text(json.dumps(records, indent=2) + "\n")
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(rows[0])])
        writer.writeheader()
        writer.writerows(records)
