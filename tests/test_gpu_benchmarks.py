"""The proof on a GPU, executed whole where there is none: the device is the emulated one, and CuPy a part of NumPy."""

# ruff: noqa: E402  # the benchmarks are found once their folder is on the path

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu_bars
import gpu_bits
import gpu_commands
import gpu_geometry
import gpu_profiles
import gpu_sanitized
import gpu_speed
import prove_on_gpu
import record
import verified
from fusedopt import compiler
from fusedopt.backends import cuda, device
from fusedopt.cli.bench import condition, measure, streams
from fusedopt.cli.bench import gpu as gpu_module
from fusedopt.cli.bench.gpu import Gpu, Kernel
from fusedopt.cli.bench.measure import Figures, Measured, Task
from fusedopt.cli.bench.work import equal_pieces
from timing import Figure

# All cases, but with few storages: g++ compiles a kernel for each.
STORED = ("fusedopt, split", "fusedopt, split24+int8")
FEW = tuple(dataclasses.replace(c, peers=STORED) if c.peers == gpu_speed.STORED else c for c in gpu_speed.CASES)
PROVE = gpu_commands.finished  # before a test puts something in its place


class HostCuPy:
    """What the proof asks of CuPy, in host memory: arrays are those of the emulated device, kernels do nothing."""

    class Stream:
        ptr = 17

        def __init__(self, non_blocking: bool = False) -> None:
            assert non_blocking

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def begin_capture(self) -> None: ...

        def end_capture(self) -> Any:
            return SimpleNamespace(launch=lambda: None)

    class Event:
        def record(self) -> None:
            self.time = time.perf_counter()

        def synchronize(self) -> None: ...

    class Pool:
        malloc = None

        def free_all_blocks(self) -> None: ...

        def total_bytes(self) -> int:
            return 0

    def __init__(self, emulated: Any) -> None:
        self.ndarray, self.array, self.asnumpy = emulated.EmulatedArray, emulated.array, np.array
        self.allocators: list[Any] = []
        self.runtime = SimpleNamespace(
            getDevice=lambda: 0,
            getDeviceProperties=lambda number: {
                "name": b"Emulated GPU (80 GB)",
                "l2CacheSize": 2**10,
                "multiProcessorCount": 4,
                "totalGlobalMem": 2**36,
                "major": 9,
                "minor": 0,
            },
            driverGetVersion=lambda: 13020,
            runtimeGetVersion=lambda: 13000,
            deviceGetPCIBusId=lambda number: "0000:01:00.0",
            deviceSynchronize=lambda: None,
            memGetInfo=lambda: (2**36, 2**36),
        )
        self.cuda = SimpleNamespace(
            Device=lambda: SimpleNamespace(id=0),
            Stream=self.Stream,
            Event=self.Event,
            MemoryPool=self.Pool,
            get_elapsed_time=lambda start, end: 1e3 * (end.time - start.time),
            using_allocator=lambda allocator: contextlib.nullcontext(),
            set_allocator=self.allocators.append,
            set_pinned_memory_allocator=self.allocators.append,
            runtime=self.runtime,
        )

    def empty(self, count: int, dtype: Any) -> Any:
        return np.empty(count, dtype).view(self.ndarray)

    def asarray(self, array: Any) -> Any:
        return np.asarray(array).view(self.ndarray)

    def copyto(self, to: Any, source: Any) -> None:
        np.copyto(to, source)

    def get_default_memory_pool(self) -> Any:
        return self.Pool()

    def RawModule(self, path: str) -> Any:
        return SimpleNamespace(get_function=lambda name: lambda grid, block, arguments: None)


class HostTorch:
    """torch, for which `cuda` is the host."""

    cuda = SimpleNamespace(is_available=lambda: True)

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def tensor(self, values: Any, device: str) -> Any:
        assert device == "cuda"
        return self._torch.tensor(np.asarray(values))


class TinyModel:
    """1,000 parameters in four tensors, or 1,100 in five."""

    layers = 2

    def __init__(self, name: str) -> None:
        self.name = self.title = name

    def shapes(self, layers: int | None = None) -> list[tuple[str, tuple[int, ...]]]:
        return [("embedding", (10, 90)), *self.block_shapes(layers or self.layers)]

    def block_shapes(self, layers: int) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"layer{i}", (10, 10)) for i in range(layers)]


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> HostCuPy:
    """All that the proof needs of a GPU, put in its place; sizes are small."""
    emulated = pytest.importorskip("emulated")
    torch = pytest.importorskip("torch")
    from emulator import build

    if build.compiler() is None:
        build.skip_or_fail("no C++ compiler: set CXX, or install g++.")
    cupy, place = HostCuPy(emulated), importlib.import_module("pytorch.conftest").emulated_place()
    monkeypatch.setenv("FUSEDOPT_BACKEND", "auto")
    monkeypatch.setattr(cuda, "module", lambda: cupy)
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "backend", lambda number: emulated.EmulatedArray.__fusedopt_backend__)
    monkeypatch.setattr(compiler, "compiled", lambda source, headers, architecture: Path("stream.cubin"))
    monkeypatch.setattr(compiler, "nvrtc_version", lambda: (13, 0))
    monkeypatch.setattr(importlib.import_module("fusedopt.torch.places"), "place_of", lambda device: place)
    peers_torch = importlib.import_module("fusedopt.cli.bench.peers_torch")
    monkeypatch.setattr(peers_torch, "torch_module", lambda: HostTorch(torch))
    monkeypatch.setattr(gpu_module, "_torch_with_cuda", lambda: None)
    monkeypatch.setattr(gpu_module, "TIMING", 1e-5)
    monkeypatch.setattr(gpu_module, "clearing_bytes", lambda cache: 2**12)
    monkeypatch.setattr(measure, "peak_of_step", lambda library, on_gpu, step: 0)
    monkeypatch.setattr(condition.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(gpu_speed, "MI", 40)
    monkeypatch.setattr(gpu_speed, "COMPARED", 128 * 40)
    monkeypatch.setattr(gpu_speed, "HOST_TENSORS", (1, 30))
    monkeypatch.setattr(gpu_speed, "QUICK", FEW)
    monkeypatch.setattr(gpu_speed, "MODELS", {name: TinyModel(name) for name in gpu_speed.MODELS})
    monkeypatch.setattr(gpu_geometry, "MI", 1_000)
    monkeypatch.setattr(gpu_profiles, "QUICK", FEW)
    few_bits(monkeypatch)
    return cupy


def few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bits, "CASES", gpu_bits.CASES[1:2])
    monkeypatch.setattr(gpu_bits, "DTYPES", (np.float32,))
    monkeypatch.setattr(gpu_bits, "STORED", ())
    monkeypatch.setattr(gpu_bits, "SHAPES", ((3,), (0,), (17,), (3, 1_001)))


# --- the whole script ------------------------------------------------------------------------------------------------

LOG = """collecting ... collected 20 items / 17 deselected / 3 selected

tests/test_a.py::test_b[cuda] PASSED                                     [ 33%]
tests/test_a.py::test_c[a b] PASSED                                      [ 66%]
tests/test_a.py::test_d SKIPPED (no NCCL here)                           [100%]
"""


def commands(tests: Callable[[str], tuple[int | None, str]]) -> Callable[..., tuple[int | None, str]]:
    """In place of `finished`: the proof's own processes are run in this one, and pytest is `tests`."""

    def finished(command: list[str], seconds: float) -> tuple[int | None, str]:
        assert seconds > 0
        if "pytest" in command:
            return tests(command[-1])
        assert Path(command[1]) == BENCHMARKS / "prove_on_gpu.py"
        return prove_on_gpu.main(command[2:]), ""

    return finished


class OneKernel:
    """torch's profiler, for which every step is one kernel of 5 us."""

    def __init__(self, activities: Any) -> None: ...

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None: ...

    def export_chrome_trace(self, path: str) -> None:
        events = [{"cat": "gpu_memset"}, {"cat": "kernel", "name": "fused_step", "dur": 5}]
        Path(path).write_text(json.dumps({"traceEvents": events}))


@pytest.mark.slow
def test_the_whole_proof_runs(
    on_the_host: HostCuPy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_commands, "finished", commands(lambda target: (0, LOG)))
    monkeypatch.setattr("torch.profiler.profile", OneKernel)
    assert prove_on_gpu.main(["--out", str(tmp_path), "--quick", "--minutes", "9"]) == 0
    folder = tmp_path / "emulated-gpu-80-gb"
    proof = json.loads((folder / "proof.json").read_text())
    assert list(proof["sections"]) == list(prove_on_gpu.SHARES)
    assert all(each["passed"] for each in proof["sections"].values())
    assert proof["environment"]["device"] == "Emulated GPU (80 GB)"
    assert proof["sections"]["bits"]["cases"] == 1
    assert proof["sections"]["ncu"]["notes"] == ["ncu is neither on PATH nor in a CUDA folder"]
    check_speed(folder, proof["sections"]["speed"])
    profiles = json.loads((folder / "profiles.json").read_text())
    assert {(each["launches"], each["device_seconds"]) for each in profiles} == {(1, 5e-6)}
    others = {*gpu_speed.TORCH, *STORED, "CuPy whole arrays"}
    assert {each["peer"] for each in profiles} == {"fusedopt", "fusedopt.torch", *others}
    geometry = json.loads((folder / "geometry.json").read_text())
    assert len(geometry) == len({each["name"] for each in geometry}) == 8
    assert not (tmp_path / "verified.json").exists()  # of a quick run
    printed = capsys.readouterr().out
    assert "host time" in printed
    assert "The quickest geometries:" in printed
    assert f"of {sum(each['met'] is not None for each in bars(folder))} bars are MISSED." in printed
    assert "verified.json stays as it was" in printed


def bars(folder: Path) -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = json.loads((folder / "bars.json").read_text())
    return figures


def check_speed(folder: Path, section: dict[str, Any]) -> None:
    """Every case, both styles, the same results, and a bar for whatever has one."""
    rows = {name: json.loads((folder / name).read_text()) for name in gpu_speed.FILES.values()}
    for ours, name in gpu_speed.FILES.items():
        cases = [case for case in gpu_speed.CASES if case.ours == ours]
        own = [row for row in rows[name] if row["peer"] == ours]
        assert len(own) == len(cases)
        assert {row["launches"] for row in own} == {1}
        assert all(row["host_seconds"] > 0 for row in own)
        assert any(row["difference"] is None for row in own)  # large ones are not compared
        assert any(row["difference"] is not None for row in rows[name] if row["peer"] == "torch fused")
        assert (folder / name).with_suffix(".png").exists() == (not any("no pictures" in n for n in section["notes"]))
    peers = {row["peer"] for row in rows["bench-arrays.json"]}
    assert set(STORED) <= peers
    assert {"fusedopt", "torch fused", "torch foreach", "CuPy whole arrays"} <= peers
    figures = bars(folder)
    barred = {each["name"].rpartition(": ")[2] for each in figures if each["met"] is not None}
    assert {"host time", "share of the stream", "against torch fused", "against CuPy whole arrays"} <= barred
    of_models = {each["name"]: each["at_least"] for each in figures if re.match(r"adamw, (moe|resnet)", each["name"])}
    assert of_models["adamw, moe, arrays: against torch fused"] == 5
    assert of_models["adamw, resnet-50, torch tensors: against torch fused"] == 3


def test_a_proof_that_passes_is_kept_as_verified(
    on_the_host: HostCuPy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_commands, "finished", commands(lambda target: (0, LOG)))
    words = ["--out", str(tmp_path), "--minutes", "9", "--sections"]
    assert prove_on_gpu.main([*words, "bits", "tests"]) == 0
    assert not (tmp_path / "verified.json").exists()
    record.write(tmp_path / "emulated-gpu-80-gb" / "bars.json", [Figure("a", 1, "", 1, 1, 1, 1).record()])
    assert prove_on_gpu.main([*words, "torch-tests"]) == 0  # the others' results are still there
    kept = json.loads((tmp_path / "verified.json").read_text())
    assert (kept["device"], kept["torch-tests"]["passed_tests"], kept["bits"]) == ("Emulated GPU (80 GB)", 2, 1)
    assert [each["name"] for each in kept["figures"]] == ["a"]
    assert verified.changed_since(tmp_path / "verified.json") == []
    assert "verified.json is written" in capsys.readouterr().out


def test_what_fails_is_recorded_and_the_others_still_run(
    on_the_host: HostCuPy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def finished(command: list[str], seconds: float) -> tuple[int | None, str]:
        name = command[command.index("--on-device") + 1] if "--on-device" in command else ""
        return {"bits": (-11, "Segmentation fault"), "speed": (None, "")}.get(name, (None, LOG[:180]))

    monkeypatch.setattr(gpu_commands, "finished", finished)
    monkeypatch.setattr(gpu_commands, "sanitizer", lambda tools, until: 1 / 0)
    words = ["--out", str(tmp_path), "--quick", "--sections", "sanitizer", "tests", "bits", "speed"]
    assert prove_on_gpu.main(words) == 1
    sections = json.loads((tmp_path / "emulated-gpu-80-gb" / "proof.json").read_text())["sections"]
    assert list(sections) == ["bits", "speed", "tests", "sanitizer"]
    assert sections["bits"]["error"] == "the section's process ended with -11"
    assert sections["speed"]["error"] == "the section's process was ended, since it took too long"
    assert sections["sanitizer"]["error"] == "ZeroDivisionError: division by zero"
    assert sections["tests"]["notes"] == ["ran out of time after 1 of 3 tests, none failed: not complete"]
    assert not any(each["passed"] for each in sections.values())
    assert not (tmp_path / "verified.json").exists()
    assert "NOT PASSED: bits: " in capsys.readouterr().out


def test_sections_of_other_sources_are_forgotten(tmp_path: Path) -> None:
    about = {"sources": "new", "date": "today"}
    proof = prove_on_gpu.Proof(tmp_path, {**about, "sources": "old"})
    proof.keep("bits", {"passed": True})
    assert prove_on_gpu.Proof(tmp_path, {**about, "sources": "old"}).passed("bits")
    proof = prove_on_gpu.Proof(tmp_path, about)
    assert not proof.passed("bits")
    proof.keep("speed", {"passed": True})
    assert list(json.loads((tmp_path / "proof.json").read_text())["sections"]) == ["speed"]


def test_without_a_gpu_one_line_says_why(tmp_path: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(BENCHMARKS / "prove_on_gpu.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=hidden, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines()[-1].startswith("There is no GPU to prove anything on: ")
    assert list(tmp_path.iterdir()) == []


# --- bits and sources ------------------------------------------------------------------------------------------------


def test_bits_differ_but_for_two_nans() -> None:
    ours = np.array([0.0, 1.0, np.nan, np.nan], np.float32)
    theirs = np.array([-0.0, 1.0, np.copysign(np.nan, -1), 2.0], np.float32)
    assert gpu_bits.differing(ours, ours) == 0
    assert gpu_bits.differing(ours, theirs) == 2


def test_a_device_that_does_nothing_does_not_pass(on_the_host: HostCuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    surface = Gpu().surface
    assert gpu_bits.compare(surface.asarray, surface.host)["passed"]
    monkeypatch.setattr(type(surface), "launch", lambda *_: None)
    found = gpu_bits.compare(surface.asarray, surface.host)
    assert not found["passed"]
    assert len(found["different"]) == 1


def test_bits_for_which_there_was_no_time_have_not_passed() -> None:
    found = gpu_bits.compare(np.array, np.array, until=0.0)
    assert (found["passed"], found["cases"]) == (False, 0)
    assert len(found["notes"]) == len(gpu_bits.CASES) * len(gpu_bits.DTYPES) + len(gpu_bits.STORED)


def test_a_changed_kernel_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verified.json"
    assert verified.changed_since(path) == sorted(verified.kernel_hashes())
    record.write(path, {"kernels": verified.kernel_hashes()})
    assert verified.changed_since(path) == []
    source, headers = verified.kernel_texts()
    monkeypatch.setattr(verified, "kernel_texts", lambda: (source + "\n", headers))
    assert verified.changed_since(path) == ["fused_step.cu"]


# --- speed -----------------------------------------------------------------------------------------------------------


def measured(seconds: dict[str, float], stream: float) -> tuple[Task, Measured]:
    """One round in which a stream of as many bytes as a step took `stream` seconds."""
    task = Task(equal_pieces(1_000, 1), "adam", 2, 1)
    ours = next(iter(seconds.values()))
    kinds = {kind: streams.Stream(kind, kind, lambda: None, task.bytes) for kind in ("copy", "mix")}
    figures = {
        title: Figures([t], [t / ours], {kind: [stream / t] for kind in kinds}, 0, 0, None, None, None, 0.0)
        for title, t in seconds.items()
    }
    return task, Measured(figures, {}, {kind: (each, [stream]) for kind, each in kinds.items()}, "", "")


@pytest.mark.parametrize(
    ("mi", "tensors", "model", "fused", "bars"),
    [
        (64, 1, "", 1.1, [0.95, None, 1.0]),  # torch fused at 0.9 of the stream
        (64, 1, "", 1.2, [0.95, None, 1.1]),  # at 0.83
        (64, 1_000, "", 1.2, [0.95, None, None]),
        (4, 1, "", 1.2, [None, None, None]),
        (0, 1, "moe", 6.0, [None, None, 5.0]),
        (0, 1, "gpt2", 6.0, [None, None, None]),
    ],
)
def test_bars_are_of_large_tensors_and_of_models(
    mi: int, tensors: int, model: str, fused: float, bars: list[float | None]
) -> None:
    case = gpu_speed.Case("adam", "fusedopt", ("torch fused",), model, mi=mi, tensors=tensors)
    found = measured({"fusedopt": 1.0, "torch fused": fused}, 0.99)
    figures = list(gpu_bars.figures_of(case, *found, gpu_speed.BY_TITLE))
    assert [figure.at_least for figure in figures] == bars
    assert [figure.value for figure in figures] == pytest.approx([0.99, 0.99, fused])


def test_a_storage_is_held_against_a_copy_of_its_own_bytes() -> None:
    case = gpu_speed.Case("adam", "fusedopt", gpu_speed.STORED, mi=64)
    task, found = measured({"fusedopt": 1.0, "fusedopt, split": 0.9, "fusedopt, split+int8": 0.6}, 0.95)
    for figures in found.figures.values():
        figures.kept_bytes, figures.extra_bytes = 1_000, 5
    stored = list(gpu_bars.figures_of(case, task, found, gpu_speed.BY_TITLE))[2:]
    titles = ["share of a copy", "extra memory of a step"]
    assert [figure.name.rpartition(": ")[2] for figure in stored] == 2 * titles
    assert [figure.value for figure in stored] == pytest.approx(
        [26 / 28 * 0.95 / 0.9, 0.005, 14.125 / 28 * 0.95 / 0.6, 0.005]
    )
    assert [figure.met for figure in stored] == [True, True, False, True]


def test_a_large_work_takes_no_memory_of_the_host(on_the_host: HostCuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    large = gpu_speed.Case("adam", "fusedopt", (), mi=129)
    small = gpu_speed.Case("adam", "fusedopt", (), mi=128)
    assert type(gpu_speed.work_of(Gpu(), small)).__name__ == "Work"
    work = gpu_speed.work_of(Gpu(), large)
    (array,) = work.arrays(0, 0.02)
    assert (type(array), array.shape, array.dtype) == (on_the_host.ndarray, (129 * 40,), np.float32)
    assert float(np.std(array)) == pytest.approx(0.02, rel=0.1)
    monkeypatch.setattr(on_the_host.runtime, "memGetInfo", lambda: (10**6, 10**6))
    with pytest.raises(MemoryError, match="GB of device memory"):
        gpu_speed.work_of(Gpu(), large)


def test_cases_that_fail_or_do_not_fit_are_told(
    on_the_host: HostCuPy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(ours: str, mi: int) -> gpu_speed.Case:
        return gpu_speed.Case("adam", ours, (), mi=mi)

    monkeypatch.setattr(gpu_speed, "QUICK", (of("fusedopt", 7), of("fusedopt", 8), of("fusedopt.torch", 9)))
    monkeypatch.setattr(on_the_host.runtime, "memGetInfo", lambda: (10**6, 10**6))
    monkeypatch.setattr(gpu_speed, "COMPARED", 7 * 40)
    monkeypatch.setattr(gpu_speed, "measured", lambda *_: 1 / 0)
    (peers,) = (way for way in gpu_speed.WAYS if way.title == "fusedopt.torch")
    monkeypatch.setattr(type(peers), "missing", lambda way, *_: "no torch" if "torch" in way.title else None)
    result = gpu_speed.prove(Gpu(), tmp_path, True, time.time() + 100)
    assert not result["passed"]
    assert result["failed"] == ["adam, 7 Mi in 1, fusedopt: ZeroDivisionError: division by zero"]
    left_out, absent = result["notes"][0], result["notes"][-1]
    assert left_out.startswith("adam, 8 Mi in 1, fusedopt: left out: needs")
    assert absent == "fusedopt.torch: no torch"
    monkeypatch.setattr(gpu_speed, "host_times", lambda gpu, samples: 1 / 0)
    result = gpu_speed.prove(Gpu(), tmp_path, True, time.time())
    assert result["failed"] == ["host time: ZeroDivisionError: division by zero"]
    assert "adam, 7 Mi in 1, fusedopt: left out, there is no time left" in result["notes"]


# --- geometry and profiles -------------------------------------------------------------------------------------------


def test_a_geometry_lasts_as_long_as_its_with(on_the_host: HostCuPy) -> None:
    gpu = Gpu()
    optimizer = gpu_geometry.adam(gpu, 4_096)
    before = device.CHUNK, device.BLOCKS, gpu.surface.threads, device.kernel_texts()
    with gpu_geometry.launched_in((128, 1_024, 2), gpu.surface, optimizer):
        optimizer.step()
        assert "__launch_bounds__(128, 8)" in device.kernel_texts()[0]
        assert (optimizer._plans[0]._arguments["count"], gpu.surface.threads) == (4, 128)
    assert (device.CHUNK, device.BLOCKS, gpu.surface.threads, device.kernel_texts()) == before


def test_the_geometry_in_use_is_the_first() -> None:
    found = list(gpu_geometry.geometries(quick=False))
    assert found[0] == (device.THREADS, device.CHUNK, device.BLOCKS)
    assert len(found) == len(set(found)) == 75


def test_a_profile_with_two_launches_has_not_passed(
    on_the_host: HostCuPy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [Kernel("fused_step", 2e-6), Kernel("fused_step", 3e-6)]
    monkeypatch.setattr(Gpu, "kernels", lambda self, step: two)
    monkeypatch.setattr(gpu_profiles, "QUICK", gpu_speed.CASES[:1])
    record.write(tmp_path / "bench-arrays.json", [])
    result = gpu_profiles.prove(Gpu(), tmp_path, True, time.time() + 100)
    assert not result["passed"]
    ours = json.loads((tmp_path / "profiles.json").read_text())[0]
    assert (ours["peer"], ours["launches"], ours["kernels"]) == ("fusedopt", 2, {"fused_step": 2})
    assert ours["bytes_per_second"] == pytest.approx(64 * 40 * 28 / 5e-6)


def test_a_profiler_that_sees_nothing_is_a_note(
    on_the_host: HostCuPy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gpu, "kernels", lambda self, step: [])
    monkeypatch.setattr(gpu_profiles, "QUICK", gpu_speed.CASES[:1])
    result = gpu_profiles.prove(Gpu(), tmp_path, True, time.time() + 100)
    assert (result["passed"], result["notes"][-1]) == (True, "torch's profiler saw no kernel")


def test_the_steps_that_tools_watch_are_taken(on_the_host: HostCuPy, capsys: pytest.CaptureFixture[str]) -> None:
    launches = Gpu().surface.launches
    before = len(launches)
    gpu_profiles.few_steps(Gpu(profiler=False), 5_000)
    assert len(launches) == before + 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_bits, "CASES", 5 * gpu_bits.CASES)
        gpu_sanitized.main()
    assert len(launches) > before + 4
    assert on_the_host.allocators == [None, None]
    assert capsys.readouterr().out == f"{gpu_sanitized.DONE}\n"


# --- other programs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "output", "verdict"),
    [
        (0, "the steps are done\n========= ERROR SUMMARY: 0 errors", "clean"),
        (86, "========= ERROR SUMMARY: 3 errors", "errors"),
        (0, "the steps are done\n= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", "errors"),
        (1, "========= Device not supported.", "refused"),
        (None, "", "ran out of time"),
        (1, "ModuleNotFoundError", "could not run"),
    ],
)
def test_what_the_sanitizer_says_is_understood(status: int | None, output: str, verdict: str) -> None:
    assert gpu_commands.sanitizer_verdict(status, output) == verdict


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_the_sanitizers_tools_are_started_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(
        tmp_path, "compute-sanitizer", 'echo "$2: the steps are done"; echo "ERROR SUMMARY: 0"; [ "$2" != memcheck ]'
    )
    found = gpu_commands.sanitizer(("memcheck", "racecheck"), time.time() + 100)
    assert found["notes"] == ["memcheck: could not run", "racecheck: clean"]
    assert found["passed"]
    program(tmp_path, "compute-sanitizer", "echo ERROR SUMMARY: 2; exit 86")
    assert not gpu_commands.sanitizer(("memcheck",), time.time() + 100)["passed"]
    assert gpu_commands.sanitizer(("memcheck",), time.time())["notes"] == ["memcheck: left out, there is no time left"]


def test_counters_are_read_and_a_refusal_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    first, _, last = gpu_commands.METRICS
    lines = ['"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    lines += [f'"0","fused_step","{first}","%","91.5"', f'"0","fused_step","{last}","","1,040"']
    program(tmp_path, "ncu", "echo ==PROF== Connected\ncat <<X\n" + "\n".join(lines) + "\nX\n")
    assert gpu_commands.counters(time.time() + 100)["metrics"] == {first: 91.5, last: 1040.0}
    program(tmp_path, "ncu", "echo '==ERROR== ERR_NVGPUCTRPERM'; exit 1")
    found = gpu_commands.counters(time.time() + 100)
    assert (found["passed"], found["notes"]) == (True, ["ncu: refused"])


def test_the_tests_marked_gpu_are_run_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    mark = "import pytest, time\npytestmark = pytest.mark.gpu\n"
    tests = "def test_a():\n    pass\n\n\n@pytest.mark.parametrize('x', ['a b'])\ndef test_b(x):\n    "
    file.write_text(mark + tests + "assert not x\n")
    found = gpu_commands.gpu_tests([str(file)], tmp_path / "logs" / "tests.log", 60)
    counts = {"selected": 2, "passed_tests": 1, "failed_tests": 1, "skipped_tests": 0}
    assert {key: found[key] for key in counts} == counts
    assert [name.rpartition(".")[2] for name in found["failing"]] == ["test_some::test_b[a b]"]  # behind its folder
    assert (found["passed"], found["complete"], found["notes"]) == (False, True, [])
    assert "test_b[a b] FAILED" in (tmp_path / "logs" / "tests.log").read_text()
    file.write_text(mark + tests + "time.sleep(60)\n")
    found = gpu_commands.gpu_tests([str(file)], tmp_path / "tests.log", gpu_commands.GRACE + 5)
    assert (found["passed"], found["complete"]) == (False, False)
    assert found["notes"] == ["ran out of time after 1 of 2 tests, none failed: not complete"]


def test_no_tests_at_all_have_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_commands, "finished", lambda command, seconds: (0, "collected 7 items / 7 deselected"))
    assert not gpu_commands.gpu_tests(["tests"], tmp_path / "tests.log", 60)["passed"]


def test_a_command_that_takes_too_long_is_ended_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_commands, "GRACE", 0.5)
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    child = "import subprocess, sys; print('started', flush=True); subprocess.run(['sleep', '30'])"
    started = time.monotonic()
    assert PROVE([sys.executable, "-c", deaf + child], 1.0) == (None, "started\n")
    assert time.monotonic() - started < 10
    assert PROVE([sys.executable, "-c", "print(7); raise SystemExit(3)"], 10) == (3, "7\n")


# --- what is asked of others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prove_on_gpu.py", "gpu_sanitized.py"])
def test_all_that_is_asked_of_cupy_exists(name: str) -> None:
    cupy = pytest.importorskip("cupy")
    text = (BENCHMARKS / name).read_text()
    uses = {f"cuda.runtime.{use}" for use in re.findall(r"\bruntime\.(\w+)\(", text)}
    uses |= {use[1:] for use in re.findall(r"\bcupy((?:\.\w+)+)", text)}
    assert len(uses) >= 5, uses
    for use in uses:
        functools.reduce(getattr, use.split("."), cupy)


def test_figures_are_printed_with_their_bars(tmp_path: Path) -> None:
    figures = [Figure("slow", 1.0, "x", 1.0, 1.0, 3, at_least=2), Figure("free", 5.0, "us", 4.0, 6.0, 3)]
    record.write(tmp_path / "bars.json", [figure.record() for figure in figures])
    assert prove_on_gpu.read_figures(tmp_path / "bars.json") == figures
    text = record.figure_table(figures)
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "MISSED" in text.splitlines()[1]
    assert "MISSED" not in text.splitlines()[2]
