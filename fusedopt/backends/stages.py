"""The launches before a plan's update on a device: where each span's sums are kept, and the chunks of each stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusedopt.layout import SEGMENT, Span, chunks_of, row_length
from fusedopt.rules.stages import GROUP, ROW, SLOTS
from fusedopt.tracing import Traced

WARPS = 8  # of a block: its chunks are that many segments of a tensor, or about as many elements in whole rows

Array = np.ndarray[Any, Any]


def reduced_dtype(results: int) -> np.dtype[Any]:
    """The record that the kernel reads as `Reduced`."""
    return np.dtype([("size", "u8"), ("row", "u8"), *((name, "u8", (results,)) for name in ("to", "from", "runs"))])


@dataclasses.dataclass(frozen=True)
class StageLaunch:
    """One stage of all spans that have it: which it is, and its chunks."""

    slot: int
    chunks: Any
    count: int


class Stages:
    """Tables of the stages of some spans.

    Args:
        spans, traces: The spans, and what the update of each is.
        results: Places of a record, as `cuda_text.results_of` says.
        memory: Bytes on the device.
        pointer: Their address.
        upload: Brings a table there.

    Attributes:
        table: A `Reduced` record a span, on the device.
        launches: In order.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        traces: Sequence[Traced],
        results: int,
        memory: Callable[[int], Any],
        pointer: Callable[[Any], int],
        upload: Callable[[Array], Any],
    ) -> None:
        records = np.zeros(len(spans), reduced_dtype(results))
        records["size"] = [span.size for span in spans]
        records["row"] = [max(1, row_length(span.shape)) for span in spans]
        for place in range(results):
            over = [traced.found[place][1] if place < len(traced.found) else "" for traced in traces]
            records["runs"][:, place] = [_runs(span, one) for span, one in zip(spans, over)]
        ends = np.cumsum(records["runs"].T.ravel())  # of one result of all spans, then of the next
        self._memory = memory(8 * max(1, int(ends[-1])))
        starts = (ends - records["runs"].T.ravel()).reshape(results, -1).T
        records["to"] = records["from"] = starts * 8 + pointer(self._memory)
        _join_groups(records, spans, traces)
        self.table = upload(records)
        self.launches = []
        for slot in range(SLOTS):
            chunks = _chunks(spans, traces, slot)
            if len(chunks):
                self.launches.append(StageLaunch(slot, upload(chunks), len(chunks)))


def _runs(span: Span, over: str) -> int:
    """Into how many sums a span is divided."""
    if over == ROW:
        return span.size // max(1, row_length(span.shape))
    return -(-span.size // SEGMENT) if over else 0


def _join_groups(records: Array, spans: Sequence[Span], traces: Sequence[Traced]) -> None:
    """Let the spans of a group read the sums of all of them where a result is the group's. They lie side by side."""
    groups = np.array([id(span.group) for span in spans])
    for place in range(records["to"].shape[1]):
        joined = np.array([place < len(traced.found) and traced.found[place][1] == GROUP for traced in traces])
        for group in set(groups[joined].tolist()):
            members = joined & (groups == group)
            records["from"][members, place] = records["to"][members, place].min()
            records["runs"][members, place] = records["runs"][members, place].sum()


def _chunks(spans: Sequence[Span], traces: Sequence[Traced], slot: int) -> Array:
    """A table of runs, rather than of elements: blocks take some, and each warp one."""
    over = [next((s.stage.over for s in traced.stages if s.stage and s.stage.slot == slot), "") for traced in traces]
    runs = [_runs(span, one) for span, one in zip(spans, over)]
    some = [
        max(WARPS, WARPS * SEGMENT // max(1, row_length(span.shape))) if one == ROW else WARPS
        for span, one in zip(spans, over)
    ]
    chunks = chunks_of(runs, some)
    return chunks[chunks["count"] > 0]
