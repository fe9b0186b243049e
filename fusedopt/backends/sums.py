"""What a stage sums, on the CPU, in the kernel's order and so with its bits: for NumPy's steps and for numba's.

A run is a tensor, or a row of one. It goes by segments of 4,096 elements. In a segment each of 128 columns is added up
in the arithmetic's type, down 32 tiles; then they are added in float64: four neighbours, and a tree over the 32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fusedopt.backends.jobs import Array, Begun, Job
from fusedopt.backends.schedule import schedule
from fusedopt.backends.scratch import scratch_slots
from fusedopt.backends.threads import on_all_threads
from fusedopt.layout import SEGMENT
from fusedopt.rules.stages import CENTERING, CLIPPING, GROUP, OWN, ROW
from fusedopt.tracing import Traced

TILE = 128
LANES = 256  # in which the segments of a tensor are added up, then a tree over them
BLOCK = 16 * SEGMENT  # elements that are done at a time, as backends.numpy.BLOCK


def segment_sums(terms: Array) -> Array:
    """float64 sums (runs, segments) of terms (runs, elements of a run) of the arithmetic's type."""
    runs, length = terms.shape
    segments = -(-length // SEGMENT)
    tiles = -(-length // TILE) if segments == 1 else SEGMENT // TILE
    padded = segments * tiles * TILE
    if padded != length:  # a zero more changes no sum that starts from zero
        terms = np.concatenate([terms, np.zeros((runs, padded - length), terms.dtype)], axis=1)
    tiled = terms.reshape(runs, segments, tiles, TILE)
    # NumPy adds pairs of pairs along the last axis alone: here it adds tile after tile, to zeros.
    columns = np.add.reduce(tiled, axis=2, initial=terms.dtype.type(0))
    four = columns.astype(np.float64).reshape(runs, segments, TILE // 4, 4)
    return _tree((four[..., 0] + four[..., 1]) + (four[..., 2] + four[..., 3]))


def _tree(values: Array) -> Array:
    """Sums over the last axis: of its halves, again and again."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    first: Array = values[..., 0]
    return first


def tensor_sum(segments: Array) -> np.float64:
    """The sum of a tensor, or of a group of them, of those of its segments."""
    lanes = np.zeros(LANES)
    for first in range(0, len(segments), LANES):
        some = segments[first : first + LANES]
        lanes[: len(some)] += some
    total: np.float64 = np.float64(_tree(lanes))
    return total


def row_means(segments: Array, length: int, real: type) -> Array:
    """The means of rows of that length, of the sums (rows, segments) of their segments."""
    sums = np.zeros(len(segments))
    for column in segments.T:
        sums += column
    means: Array = (sums / length).astype(real)
    return means


def whole_sum(elements: Array) -> np.float64:
    """The sum of an array."""
    return tensor_sum(segment_sums(elements.reshape(1, -1))[0]) if elements.size else np.float64(0)


def spread_means(elements: Array) -> Array:
    """For each element the mean of its slice along the first axis."""
    if not elements.size:
        return elements
    rows = elements.reshape(len(elements), -1)
    means = row_means(segment_sums(rows), rows.shape[1], elements.dtype.type)
    spread: Array = np.broadcast_to(means[:, None], rows.shape).reshape(elements.shape)
    return spread


class Pass:
    """A stage of one span: what it starts from, and the sums of its segments."""

    def __init__(self, job: Job, stage: Traced, begun: Begun) -> None:
        assert stage.stage is not None
        self.job, self.stage, self._traced, self._begun = job, stage.stage, stage, begun
        self.length = job.row if self.stage.over == ROW else job.size
        runs = job.size // self.length if job.size else 0
        self.found = np.zeros((len(stage.terms), runs, -(-self.length // SEGMENT)))
        self._terms = range(len(stage.arrays) - len(stage.terms), len(stage.arrays))
        self._schedule = schedule(stage, begun.conditions, job.kind.converted)

    def pieces(self) -> Iterator[tuple[int, int, int, int]]:
        """First and last run, and which elements of them: some whole runs, or segments of one."""
        runs = self.found.shape[1]
        some = max(1, BLOCK // max(1, self.length))
        for first in range(0, runs, some):
            for start in range(0, self.length, BLOCK):
                yield first, min(first + some, runs), start, min(start + BLOCK, self.length)

    def take(self, first: int, last: int, start: int, stop: int) -> None:
        """The sums of one piece."""
        begin, end = first * self.length + start, (last - 1) * self.length + stop
        layout = (False,) * len(self._terms) + self._schedule.scratch
        scratch = scratch_slots(layout, self.job.kind.real, end - begin)
        slots = self.job.slots(self._traced, begin, end) + scratch + self._begun.values
        for function, arguments in self._schedule.calls:
            function(*arguments(slots))
        where = slice(start // SEGMENT, -(-stop // SEGMENT))
        for number, slot in enumerate(self._terms):
            self.found[number, first:last, where] = segment_sums(slots[slot].reshape(last - first, -1))


def take_stages(jobs: Sequence[Job], scale: float, threads: Callable[[], int]) -> None:
    """Take all sums that the updates of these spans start from; they are left in `Job.sums` and `Job.rows`."""
    for job in jobs:
        job.sums.clear()
    for slot in (CLIPPING, CENTERING, OWN):
        with np.errstate(all="ignore"):
            passes = [
                Pass(job, stage, job.kind.begin(job.counter, scale, job.sums, stage))
                for job in jobs
                for stage in job.kind.traced.stages
                if stage.stage is not None and stage.stage.slot == slot
            ]
            _take(passes, threads)
            groups: dict[int, list[Pass]] = {}
            for one in passes:
                by = one.job.kind.group if one.stage.over == GROUP else one
                groups.setdefault(id(by), []).append(one)
            for some in groups.values():
                _keep(some)


def _take(passes: Sequence[Pass], threads: Callable[[], int]) -> None:
    pieces = [(one, piece) for one in passes for piece in one.pieces()]
    queue = iter(pieces)

    def work() -> None:
        with np.errstate(all="ignore"):  # errstate belongs to a thread
            for one, piece in queue:
                one.take(*piece)

    large = sum(one.job.size for one in passes) >= len(pieces) * BLOCK // 2  # as NumpyPlan.threaded
    on_all_threads(work, min(len(pieces), threads()) if large else 1)


def _keep(passes: Sequence[Pass]) -> None:
    """Leave the results of a stage, of one span or of all of a group's, where their later launches read them."""
    for number, name in enumerate(passes[0].stage.names):
        if passes[0].stage.over == ROW:
            [one] = passes
            one.job.rows[0][:] = row_means(one.found[number], max(1, one.length), one.job.kind.real)
        else:
            total = tensor_sum(np.concatenate([one.found[number].ravel() for one in passes]))
            for one in passes:
                one.job.sums[name] = total
