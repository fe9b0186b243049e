"""The parts of the benchmarks that need no GPU and no quiet machine; the GPU's measurements run on an idle device."""

# ruff: noqa: E402  # the benchmarks are found once their folder is on the path

import functools
import json
import math
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu_bits
import gpu_speed
import overhead
import prove_on_gpu
import record
import verified
from fusedopt import compiler
from timing import Figure, figure, interleaved


class IdleGpu:
    """`gpu_device.Gpu` with arrays of the idle device, on which launches and kernels do nothing."""

    name, multiprocessors = "Idle GPU (80 GB)", 132
    surface = overhead.IdleArray.__fusedopt_backend__.surface

    def facts(self) -> dict[str, Any]:
        return {"device": self.name, "driver_cuda": 13000, "cupy": "none", "nvrtc": "13.0"}

    def stream(self) -> Any:
        return nullcontext()

    def array(self, values: np.ndarray) -> Any:
        return np.array(values).view(overhead.IdleArray)

    def host(self, array: Any) -> np.ndarray:
        return np.array(array)

    def noise(self, count: int) -> Any:
        return self.array(np.ones(count, np.float32))

    def copy(self, to: Any, source: Any) -> None:
        to[...] = source

    def kernel(self, source: str, name: str) -> Any:
        assert f"void __launch_bounds__(256) {name}(" in source

        declared = source.partition(f"{name}(")[2].partition(")")[0].split(",")

        def launch(blocks: int, threads: int, *arguments: Any) -> None:
            assert len(arguments) == len(declared)

        return launch

    def device_seconds(self, step: Any, repeats: int) -> float:
        step()
        return 1e-5

    def host_seconds(self, step: Any, repeats: int) -> float:
        step()
        return 1e-6

    def captured(self, step: Any, repeats: int) -> Any:
        if step.__name__ == "step":  # as where a capture is refused
            raise RuntimeError("not while capturing")
        return step

    def free_bytes(self) -> int:
        return 2**62


def test_a_figure_is_the_median_with_quartiles_and_meets_its_bar() -> None:
    found = figure("ratio", "times", [3.0, 1.0, 2.0, 4.0, 5.0], at_least=3)
    assert (found.low, found.value, found.high, found.met) == (2, 3, 4, True)
    assert figure("one", "us", [7.0], at_most=6).met is False
    assert figure("none", "us", [7.0]).met is None
    assert json.loads(json.dumps(found.record()))["met"] is True


def test_interleaved_calls_alternate_who_is_first() -> None:
    calls: list[str] = []
    ours, theirs = interleaved(lambda: calls.append("a"), lambda: calls.append("b"), 4)
    assert "".join(calls) == "baabbaab"
    assert len(ours) == len(theirs) == 4


def test_the_table_shows_a_missed_bar() -> None:
    text = record.figure_table(
        [Figure("slow", 1.0, "x", 1.0, 1.0, 3, at_least=2), Figure("free", 5.0, "us", 4.0, 6.0, 3)]
    )
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "MISSED" in text.splitlines()[1]
    assert "MISSED" not in text.splitlines()[2]


def test_results_say_where_they_come_from(tmp_path: Path) -> None:
    record.write(tmp_path / "new" / "result.json", record.circumstances())
    found = json.loads((tmp_path / "new" / "result.json").read_text())
    assert found["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert found["commit"]


def test_without_git_the_sources_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*_: str) -> str:
        raise FileNotFoundError("git")

    monkeypatch.setattr(record, "_git", no_git)
    assert record.commit().startswith("sources:")


def test_a_changed_kernel_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verified.json"
    assert verified.changed_since(path) == sorted(verified.kernel_hashes())
    record.write(path, {"kernels": verified.kernel_hashes()})
    assert verified.changed_since(path) == []
    source, headers = verified.kernel_texts()
    monkeypatch.setattr(verified, "kernel_texts", lambda: (source + "\n", headers))
    assert verified.changed_since(path) == ["fused_step.cu"]


@pytest.mark.parametrize("path", [overhead.CPU, overhead.TWO_THREADS, overhead.CUDA])
def test_the_python_time_of_a_step_has_no_arithmetic_in_it(path: str) -> None:
    steps = overhead.Steps(5, path)
    before = np.array(steps.parameters[0].data)
    assert 0 < steps.unchanged() < 1
    steps.change()
    assert 0 < steps.unchanged() < 1
    assert np.array_equal(before, steps.parameters[0].data)
    steps.parameters[2].grad = None
    with pytest.raises(RuntimeError, match="new plan"):
        steps.unchanged()


def test_bits_differ_but_for_two_nans() -> None:
    ours = np.array([0.0, 1.0, np.nan, np.nan], np.float32)
    theirs = np.array([-0.0, 1.0, np.copysign(np.nan, -1), 2.0], np.float32)
    assert gpu_bits.differing(ours, ours) == 0
    assert gpu_bits.differing(ours, theirs) == 2


@pytest.fixture
def few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bits, "CASES", gpu_bits.CASES[1:2])
    monkeypatch.setattr(gpu_bits, "DTYPES", (np.float32,))
    monkeypatch.setattr(gpu_bits, "SIZES", (3, 0, 17, 4_097))


@pytest.mark.usefixtures("few_bits")
def test_the_emulated_device_gives_numpys_bits() -> None:
    emulated = pytest.importorskip("emulated")
    from emulator import build

    if build.compiler() is None:
        build.skip_or_fail("no C++ compiler: set CXX, or install g++.")
    assert gpu_bits.compare(emulated.array, np.array) == {
        "passed": True,
        "cases": 1,
        "elements": 4_117,
        "different": {},
    }


@pytest.mark.usefixtures("few_bits")
def test_a_device_that_does_nothing_does_not_pass() -> None:
    gpu = IdleGpu()
    found = gpu_bits.compare(gpu.array, gpu.host)
    assert not found["passed"]
    assert len(found["different"]) == 1


def test_speed_is_measured_in_shares_of_the_stream() -> None:
    notes: list[str] = []
    work = gpu_speed.Work("Adam", 2**12, 4)
    figures = list(gpu_speed.speed(IdleGpu(), work, 2, notes))
    found = {f.name.removeprefix(work.title + ": "): f for f in figures}
    share = found["fusedopt, share of the best stream"].value
    assert math.isclose(share, 1 / work.repeats)  # the idle device takes as long for a graph as for one step
    assert math.isclose(found["fusedopt"].value, work.bytes / 1e-5 / 1e9)
    assert found["host time of a step, learning rate changed"].at_most == gpu_speed.HOST_BAR
    assert notes == [f"{work.title}: fusedopt cannot be captured: RuntimeError: not while capturing"]


def test_a_geometry_lasts_as_long_as_its_with() -> None:
    gpu, device = IdleGpu(), gpu_speed.device
    optimizer = gpu_speed.optimizer_of(gpu, gpu_speed.Work("Adam", 2**12, 1))
    before = device.CHUNK, device.BLOCKS, gpu.surface.threads, device.kernel_texts()
    with gpu_speed.geometry(gpu.surface, optimizer, 128, 1024, 2):
        optimizer.step()
        assert "__launch_bounds__(128, 8)" in device.kernel_texts()[0]
        assert (optimizer._plans[0]._arguments["count"], gpu.surface.threads) == (4, 128)
    assert (device.CHUNK, device.BLOCKS, gpu.surface.threads, device.kernel_texts()) == before


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
    assert prove_on_gpu.sanitizer_verdict(status, output) == verdict


def test_the_proof_runs_all_sections_and_records_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_on_gpu, "gpu_tests", lambda seconds: 1 / 0)
    monkeypatch.setattr(prove_on_gpu, "sanitizer_program", lambda: None)
    monkeypatch.setattr(gpu_bits, "compare", lambda *_: {"passed": True, "cases": 0})
    monkeypatch.setattr(gpu_speed, "MI", 4_000)
    assert prove_on_gpu.prove(IdleGpu(), tmp_path, quick=True) == 1
    (path,) = (tmp_path / "idle-gpu-80-gb").glob("*.json")
    found = json.loads(path.read_text())
    assert list(found) == ["environment", "bits", "speed", "tests", "sanitizer", "geometry", "figures"]
    assert [name for name, result in found.items() if not result.get("passed", True)] == ["tests"]
    assert found["tests"]["error"] == "ZeroDivisionError: division by zero"
    assert len(found["figures"]["speed"]) > 20
    assert len(found["figures"]["geometry"]) == 18
    assert not (tmp_path / "verified.json").exists()


def test_a_proof_that_passes_is_kept_as_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"passed": True, "tests": 5, "failures": 0, "errors": 0, "skipped": 1}
    monkeypatch.setattr(prove_on_gpu, "gpu_tests", lambda seconds: counts)
    monkeypatch.setattr(prove_on_gpu, "sanitizer_program", lambda: None)
    monkeypatch.setattr(gpu_bits, "compare", lambda *_: {"passed": True, "cases": 32})
    monkeypatch.setattr(gpu_speed, "MI", 1_000)
    monkeypatch.setattr(prove_on_gpu, "MINUTES", 0.5)  # so that some is left out
    assert prove_on_gpu.prove(IdleGpu(), tmp_path, quick=False) == 0
    kept = json.loads((tmp_path / "verified.json").read_text())
    assert (kept["device"], kept["tests"]["tests"], kept["bits"]) == (IdleGpu.name, 5, 32)
    assert kept["kernels"] == verified.kernel_hashes()
    assert verified.changed_since(tmp_path / "verified.json") == []


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    child = "import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', 'while 1: 0'])"
    started = time.monotonic()
    status, output = prove_on_gpu.finished([sys.executable, "-c", child], 1.0)
    assert (status, output) == (None, "started\n")
    assert time.monotonic() - started < 10
    assert prove_on_gpu.finished([sys.executable, "-c", "print(7); raise SystemExit(3)"], 10) == (3, "7\n")


def test_junit_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "tests.xml"
    assert prove_on_gpu.junit_counts(file) == {"tests": 0, "failing": []}
    case = '<testcase classname="tests.test_a" name="test_b[cuda]"><failure message="x"/></testcase>'
    suite = f'<testsuite tests="2" failures="1" errors="0" skipped="0">{case}<testcase name="ok"/></testsuite>'
    file.write_text(f"<testsuites>{suite}</testsuites>")
    found = prove_on_gpu.junit_counts(file)
    assert (found["tests"], found["failures"], found["failing"]) == (2, 1, ["tests.test_a::test_b[cuda]"])


@pytest.mark.parametrize("name", ["gpu_device.py", "gpu_sanitized.py"])
def test_all_that_is_asked_of_cupy_exists(name: str) -> None:
    cupy = pytest.importorskip("cupy")
    uses = set(re.findall(r"\b_?cupy((?:\.\w+)+)", (BENCHMARKS / name).read_text()))
    assert len(uses) >= 4
    for use in uses:
        functools.reduce(getattr, use.split(".")[1:], cupy)


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_the_stream_kernels_compile(written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    monkeypatch.setenv("FUSEDOPT_CACHE_DIR", str(tmp_path))
    assert compiler.compiled(gpu_speed.stream_text(written), {}, "sm_90").stat().st_size > 1_000


def test_there_is_a_bar_for_each_peer() -> None:
    compare = pytest.importorskip("compare")  # needs rich and torch, which a GPU machine may not have
    peers = compare.contestants_of("adam", 64)
    assert next(iter(peers)) == "fusedopt"
    assert set(peers) - {"fusedopt"} == set(compare.SPEED_BARS)


@pytest.mark.slow
def test_the_cpu_comparison_writes_figures_with_bars(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--size=100000", "--rounds=2", f"--out={path}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    found = json.loads(path.read_text())
    assert (found["about"]["size"], found["about"]["threads"]) == (100_000, 2)
    bars = [f["name"] for f in found["figures"] if f["met"] is not None]
    assert len(bars) >= 16
    assert all(name in output for name in bars)
