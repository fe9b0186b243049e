"""The logic of a CUDA step: tables of spans, chunks and hyperparameters, what of them is stale, and the launch.

It runs against a `Surface`, which `cuda.py` implements with CuPy and the tests with g++: so all of it is tested where
there is no GPU.
"""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fusedopt import compiler
from fusedopt.backends.stages import Stages
from fusedopt.cuda_text import Variant, pointers_of, results_of, rule_text
from fusedopt.layout import Memory, Span, chunks_of, device_of
from fusedopt.tracing import trace

CHUNK = 16 * 1024  # elements: 448 KB of Adam's traffic, some 100 us of a block's share of an H200's memory
BLOCKS = 4  # a multiprocessor, as the kernel's launch bounds say
THREADS = 256
_TABLES = ("chunks", "spans", "hyperparameters", "sources")
_LAUNCH_FIELDS = (*_TABLES, "grad_scale", "found_inf", "count", "write_back", "reduced", "stage")
LAUNCH = np.dtype([(name, "u8") for name in _LAUNCH_FIELDS])
UPDATE, SUMS = "fused_step", "fused_sums"  # the kernels

Array = np.ndarray[Any, Any]


class Surface(Memory, Protocol):
    """What a device must do for us, on the stream that is current."""

    multiprocessors: int
    threads: int

    def pointer(self, array: Any) -> int:
        """An array's address on the device."""

    def pinned(self, nbytes: int) -> Array:
        """Host memory that the device can read while the host goes on, as bytes."""

    def copy(self, to: Any, source: Array) -> Any:
        """Start to copy pinned bytes to a device array; returns an event that passes when they are there."""

    def wait(self, event: Any) -> None:
        """Wait until an event has passed."""

    def kernel(self, source: str, headers: Mapping[str, str], name: str) -> Any:
        """Compile and load one of the source's kernels."""

    def launch(self, kernel: Any, blocks: int, arguments: Array) -> None:
        """Start a kernel; `arguments` is one `LAUNCH` record, passed by value."""

    def capturing(self) -> bool:
        """Whether copies and launches are being recorded into a graph, rather than carried out."""


def span_dtype(states: int) -> np.dtype[Any]:
    """The record that the kernel reads as `Span`."""
    pointers = [("parameter", "u8"), ("gradient", "u8"), ("state", "u8", (states,)), ("counter", "u8")]
    numbers = ("group", "variant", "parameters", "chunks", "number", "unused")
    return np.dtype([*pointers, *((name, "u4") for name in numbers)])


@functools.lru_cache(maxsize=1)
def kernel_texts() -> tuple[str, Mapping[str, str]]:
    """The kernel's source, and its headers by name, but for the generated `rule.cuh`."""
    folder = compiler.kernels_folder()
    headers = {path.name: path.read_text() for path in sorted(folder.glob("*.cuh"))}
    return (folder / "fused_step.cu").read_text(), headers


class Uploads:
    """A ring of pinned buffers: each is written again only after its copy to the device is done."""

    def __init__(self, surface: Surface, buffers: int = 4) -> None:
        self._surface = surface
        self._buffers: list[tuple[Array, Any] | None] = [None] * buffers
        self._next, self._lock = 0, threading.Lock()  # optimizers of several threads share a device
        self._of_graphs: list[Array] = []

    def upload(self, to: Any, table: Array, of_graph: Array | None = None) -> None:
        """Copy a host table into a device array of as many bytes, without waiting for the device.

        While a graph is captured the copy becomes part of it, and its buffer, which may be given, is never used again:
        each replay reads it.
        """
        source = table.reshape(-1).view(np.uint8)
        with self._lock:
            if self._surface.capturing():
                self._of_graphs.append(self._taken_out(len(source)) if of_graph is None else of_graph)
                self._of_graphs[-1][: len(source)] = source
                self._surface.copy(to, self._of_graphs[-1][: len(source)])
                return
            kept = self._buffers[self._next]
            if kept is not None:
                self._surface.wait(kept[1])
            if kept is None or len(kept[0]) < len(source):
                kept = (self._surface.pinned(max(4096, 2 * len(source))), None)
            pinned = kept[0]
            pinned[: len(source)] = source
            self._buffers[self._next] = (pinned, self._surface.copy(to, pinned[: len(source)]))
            self._next = (self._next + 1) % len(self._buffers)

    def _taken_out(self, nbytes: int) -> Array:
        """One of the ring's buffers: during a capture none can be made, and before it the device is idle."""
        for place, kept in enumerate(self._buffers):
            if kept is not None and len(kept[0]) >= nbytes:
                self._buffers[place] = None
                return kept[0]
        return self._surface.pinned(nbytes)


class DevicePlan:
    """Spans of one device, as the tables of one launch."""

    def __init__(self, backend: DeviceBackend, spans: Sequence[Span]) -> None:
        self._backend, self._surface = backend, backend.surface
        self._spans = spans  # the tables point into their memory
        self._groups = list({id(span.group): span.group for span in spans}.values())
        rules = [group.rule for group in self._groups]
        rows = {id(group): row for row, group in enumerate(self._groups)}
        groups = [rows[id(span.group)] for span in spans]
        forms = [span.group.rule.form(span.shape) for span in spans]
        traces = [trace(form) for form in {id(form): form for form in forms}.values()]
        variants: dict[Variant, int] = {}
        numbers: dict[Any, int] = {}  # of variants; a tuple is hashed faster than they are
        for form, span in zip(forms, spans):
            if (id(form), span.storage) not in numbers:
                variant = Variant(trace(form), span.storage)
                numbers[id(form), span.storage] = variants.setdefault(variant, len(variants))
        chunks = chunks_of([span.size for span in spans], CHUNK)
        pieces = np.bincount(chunks["span"], minlength=len(spans))
        address = self._surface.pointer
        addresses = [list(map(address, span.states)) for span in spans]
        states = pointers_of(variants)
        self._table = np.zeros(len(spans), span_dtype(states))
        self._table["parameter"] = [address(span.parameter) for span in spans]
        self._table["gradient"] = [address(span.gradient) for span in spans]
        self._table["state"] = [some + [0] * (states - len(some)) for some in addresses]
        self._table["counter"] = [address(span.counters) for span in spans]
        self._table["group"], self._table["parameters"] = groups, [span.parameters for span in spans]
        self._table["number"] = [span.number for span in spans]
        self._table["variant"] = [numbers[id(form), span.storage] for form, span in zip(forms, spans)]
        # 0 chunks: nobody counts, nobody advances.
        self._table["chunks"] = np.where([rules[row].counts for row in groups], pieces, 0)
        text = rule_text(list(variants), rules[0].number_names(), len(rules[0].scalar_state), states)
        self._kernel = backend.kernel(text)
        self._span_table, self._chunk_table = self._upload(self._table), self._upload(chunks)
        # A table of numbers, and one of the addresses that they are read from instead, where not 0.
        self._numbers = backend.memory_of(self, 2 * len(self._groups) * len(rules[0].number_names()) * 8)
        self.origin: DevicePlan | None = None  # of a captured one
        self._of_graph: Array | None = self._surface.pinned(self._table.nbytes)  # during a capture none can be made
        self._scalars: dict[str, Any] = {}
        self._blocks = min(len(chunks), BLOCKS * self._surface.multiprocessors)
        self._arguments = np.zeros(1, LAUNCH)
        self._arguments["spans"], self._arguments["chunks"] = address(self._span_table), address(self._chunk_table)
        self._arguments["hyperparameters"] = address(self._numbers)
        self._arguments["count"] = len(chunks)
        self._stages: Stages | None = None
        if any(traced.stages for traced in traces):
            each, results = [trace(form) for form in forms], results_of(traces)
            memory = functools.partial(backend.memory_of, self)
            self._stages = Stages(spans, each, results, memory, address, self._upload)
            self._arguments["reduced"] = address(self._stages.table)
            self._sums = backend.kernel(text, SUMS)
        self.refresh()

    def _upload(self, table: Array) -> Any:
        to = self._backend.memory_of(self, table.nbytes)
        self._backend.uploads.upload(to, table)
        return to

    def refresh(self) -> None:
        if self._surface.capturing():
            raise RuntimeError(
                "hyperparameters changed between the last step and the capture of a graph; call "
                "optimizer.upload_hyperparameters() before the capture."
            )
        numbers = np.array([group.rule.numbers() for group in self._groups], np.float64)
        sources = np.zeros(numbers.shape, np.uint64)
        for row, group in enumerate(self._groups):
            for column, source in group.sources.items():  # the lowest bit says that it is a double
                sources[row, column] = self._surface.pointer(source) | (source.dtype.itemsize == 8)
        if numbers.size:
            self._backend.uploads.upload(self._numbers, np.stack([numbers.view(np.uint64), sources]))
        self._arguments["sources"] = self._source_table if sources.any() else 0

    @property
    def _source_table(self) -> int:
        size = len(self._groups) * len(self._groups[0].rule.number_names()) * 8
        return self._surface.pointer(self._numbers) + size

    def move(self, addresses: Sequence[int]) -> None:
        self._table["gradient"] = addresses
        buffer = self._of_graph if self.origin is not None else None
        self._backend.uploads.upload(self._span_table, self._table, buffer)

    def captured(self) -> DevicePlan:
        """A copy for a graph, with a span table of its own, which `move` uploads as part of it; numbers are shared."""
        plan = copy.copy(self)
        plan.origin, self._of_graph = self, None  # it keeps the other tables, and has given its buffer away
        plan._table, plan._arguments, plan._scalars = self._table.copy(), self._arguments.copy(), {}
        plan._span_table = self._backend.memory_of(plan, self._table.nbytes)
        plan._arguments["spans"] = self._surface.pointer(plan._span_table)
        plan._arguments["sources"] = self._source_table  # a number may become a tensor after the capture
        return plan

    def step(self, grad_scale: Any, found_inf: Any, write_back: bool = False) -> None:
        arguments = self._arguments
        arguments["grad_scale"] = self._scalar("grad_scale", grad_scale)
        arguments["found_inf"] = self._scalar("found_inf", found_inf)
        arguments["write_back"] = write_back
        if self._stages is not None:
            self._take_stages(self._stages)
        self._surface.launch(self._kernel, self._blocks, arguments)

    def _take_stages(self, stages: Stages) -> None:
        """The launches before the update, one after the other."""
        for stage in stages.launches:
            arguments = self._arguments.copy()
            arguments["chunks"], arguments["count"] = self._surface.pointer(stage.chunks), stage.count
            arguments["stage"] = stage.slot
            self._surface.launch(self._sums, min(stage.count, BLOCKS * self._surface.multiprocessors), arguments)

    def _scalar(self, name: str, value: Any) -> int:
        """The device address of one float32, which the launch reads; 0 where there is none."""
        if value is None:
            return 0
        if device_of(value) == self._backend.device:
            self._scalars[name] = value  # kept until the launch has read it
            return self._surface.pointer(value)
        number = f"{name}, a number"
        if number not in self._scalars:
            self._scalars[number] = self._backend.memory_of(self, 4)
        self._backend.uploads.upload(self._scalars[number], np.array([value], np.float32))
        return self._surface.pointer(self._scalars[number])


class DeviceBackend:
    """One CUDA device behind its surface."""

    def __init__(self, surface: Surface) -> None:
        self.surface, self.device = surface, surface.device
        self.zeros, self.asarray, self.host, self.here = surface.zeros, surface.asarray, surface.host, surface.here
        self.uploads = Uploads(surface)
        self._kernels: dict[tuple[str, str], Any] = {}
        self._free: list[Any] = []  # memory of plans that are gone
        self._lock = threading.Lock()

    def memory_of(self, plan: DevicePlan, nbytes: int) -> Any:
        """Bytes on the device for a table of a plan.

        They go from plan to plan, and never back to the device's pool: there, another stream could take them while a
        launch still reads them.
        """
        memory = None
        with self._lock:  # optimizers of several threads share a device
            fitting = [place for place, free in enumerate(self._free) if free.nbytes >= nbytes]
            if fitting:
                memory = self._free.pop(min(fitting, key=lambda place: int(self._free[place].nbytes)))
        if memory is None:
            memory = self.surface.zeros(1 << max(8, (nbytes - 1).bit_length()), np.dtype(np.uint8))
        weakref.finalize(plan, self._free.append, memory).atexit = False
        return memory

    def plan(self, spans: Sequence[Span]) -> DevicePlan:
        return DevicePlan(self, spans)

    def kernel(self, text: str, name: str = UPDATE) -> Any:
        """A kernel with these bodies; compiled once."""
        if (text, name) not in self._kernels:
            source, headers = kernel_texts()
            self._kernels[text, name] = self.surface.kernel(source, {**headers, "rule.cuh": text}, name)
        return self._kernels[text, name]
