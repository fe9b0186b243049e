"""The surface of a CUDA device against a CuPy that is none: on which device and after which stream things are done."""

import types
from pathlib import Path

import numpy as np
import pytest

from fusedopt.backends import cuda


class Stream:
    """CuPy's stream, which notes what waits for what."""

    def __init__(self, ptr, notes, capturing=False):
        self.ptr, self.notes, self.capturing = ptr, notes, capturing

    def record(self, event=None):
        return event or f"event of {self.ptr}"

    def wait_event(self, event):
        self.notes.append(f"{self.ptr} waits for {event}")

    def is_capturing(self):
        return self.capturing

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Cupy:
    """As much of CuPy as the surface asks for.

    Attributes:
        stream: The current one.
        done: What was done, and the device that was current.
        waits: What waited for what.
    """

    def __init__(self):
        self.done, self.waits, self.entered = [], [], [0]
        self.stream = Stream(1, self.waits)
        self.zeros = self.does("zeros", np.zeros)
        self.asarray = self.does("asarray", np.array)
        self.asnumpy = self.does("asnumpy", np.array)
        kernel = types.SimpleNamespace(get_function=lambda name: self.does(name))
        self.RawModule = self.does("RawModule", lambda path: kernel)
        self.cuda = types.SimpleNamespace(
            Device=lambda number: Device(self, number),
            Event=lambda disable_timing: "event of a copy",
            get_current_stream=lambda: self.stream,
            alloc_pinned_memory=self.does("alloc_pinned_memory", bytearray),
            runtime=types.SimpleNamespace(memcpyAsync=self.does("memcpyAsync"), memcpyHostToDevice=1),
        )

    def does(self, name, function=lambda *arguments: None):
        def noted(*arguments, **keywords):
            self.done.append((name, self.entered[-1]))
            return function(*arguments, **keywords)

        return noted


class Device:
    attributes, compute_capability = {"MultiProcessorCount": 132}, "90"

    def __init__(self, cupy, number):
        self.cupy, self.number = cupy, number

    def __enter__(self):
        self.cupy.entered.append(self.number)

    def __exit__(self, *_):
        self.cupy.entered.pop()


@pytest.fixture
def cupy(monkeypatch):
    cupy = Cupy()
    monkeypatch.setattr(cuda, "module", lambda: cupy)
    monkeypatch.setattr(cuda.compiler, "architecture_of", lambda *capability: "sm_90")
    monkeypatch.setattr(cuda.compiler, "compiled", lambda *key: Path("kernel.cubin"))
    return cupy


def test_everything_is_done_while_the_device_is_current(cupy):
    surface = cuda.CudaSurface(3)
    to = types.SimpleNamespace(data=types.SimpleNamespace(ptr=7))
    surface.zeros(4, np.dtype(np.float32))
    surface.host(surface.asarray(np.ones(2)))
    assert surface.copy(to, surface.pinned(16)) == "event of a copy"
    surface.launch(surface.kernel("", {}, "fused_step"), 2, np.zeros(1, np.uint8))
    with surface.here() as stream:
        assert (stream, cupy.entered[-1]) == (cupy.stream, 3)
    names = ["zeros", "asarray", "asnumpy", "alloc_pinned_memory", "memcpyAsync", "RawModule", "fused_step"]
    assert cupy.done == [(name, 3) for name in names]
    assert cupy.entered == [0]
    assert cupy.waits == []  # one stream


WORK = {
    "zeros": lambda surface: surface.zeros(4, np.dtype(np.float32)),
    "asarray": lambda surface: surface.asarray(np.ones(2)),
    "host": lambda surface: surface.host(np.ones(2)),
    "launch": lambda surface: surface.launch(lambda *_: None, 1, np.zeros(1, np.uint8)),
    "copy": lambda surface: surface.copy(
        types.SimpleNamespace(data=types.SimpleNamespace(ptr=7)), np.zeros(4, np.uint8)
    ),
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_another_stream_waits_for_the_one_before(cupy, work):
    surface = cuda.CudaSurface(0)
    for ptr in (1, 1, 2, 2, 1):  # the same one may come as another object
        cupy.stream = Stream(ptr, cupy.waits)
        work(surface)
    assert cupy.waits == ["2 waits for event of 1", "1 waits for event of 2"]


def test_a_capture_waits_for_nothing_outside_of_it(cupy):
    surface = cuda.CudaSurface(0)
    work = WORK["launch"]
    work(surface)
    cupy.stream = Stream(2, cupy.waits, capturing=True)
    work(surface)
    assert cupy.waits == []
