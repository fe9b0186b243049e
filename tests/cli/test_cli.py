"""The command line: what it prints, with what status it ends, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedopt import compiler
from fusedopt.backends import numpy as numpy_backend
from fusedopt.cli import COMMANDS, bench, doctor, main, naive, self_check
from fusedopt.cli.peak_memory import peak_of_arrays, peak_of_torch
from machine_code import missing

MAIN = "from fusedopt.cli import main; sys.exit(main(sys.argv[1:]))"
WITHOUT_CUPY = f"import sys; sys.modules['cupy'] = sys.modules['cupy_backends'] = None; {MAIN}"

OWN_RULE = """
from __future__ import annotations
from dataclasses import dataclass
import fusedopt
from fusedopt.rules import Rule, Values, hyperparameter

@dataclass(frozen=True)
class Halve(Rule):
    lr: float = hyperparameter(1.0, "[0, inf)")
    twice: bool = hyperparameter(True, doc="100 % more")

    def scalars(self, step, a):
        return Values(lr=self.lr)

    def update(self, p, g, s, c):
        return p - c.lr * (g * 0.25 if self.twice else g * 0.5), Values()

class Halving(fusedopt.Optimizer, rule=Halve): ...

@dataclass(frozen=True)
class Branches(Halve):
    def update(self, p, g, s, c):
        return (p if g > 0 else g), Values()
"""


def python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python, in which warnings are errors, without the FUSEDOPT_ variables of the test's own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FUSEDOPT_")}
    environment |= {"FORCE_COLOR": "", "COLUMNS": "200", **variables}
    command = [sys.executable, "-W", "error", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def cli(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "fusedopt", *words, **variables)


# --- main ------------------------------------------------------------------------------------------------------------


def test_without_a_command_the_help_names_all_of_them() -> None:
    for words in ((), ("--help",)):
        done = cli(*words)
        assert (done.returncode, done.stderr) == (0, "")
        for name, summary in COMMANDS.items():
            assert re.search(rf"^ +{name} +{summary[:20]}", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("words", [["--help"], ["kernel", "--help"], ["kernel", "adam"]])
def test_what_needs_no_gpu_no_torch_and_no_colour_imports_none(words: list[str]) -> None:
    text = (
        "import atexit, sys\n"
        "heavy = {'cupy', 'cupy_backends', 'torch', 'rich', 'matplotlib'}\n"
        "atexit.register(lambda: print('imported:', *sorted(heavy & set(sys.modules))))\n" + MAIN
    )
    assert python("-c", text, *words).stdout.endswith("imported:\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kernel", "adm"], "kernel: fusedopt.rules has no rule 'adm'; did you mean 'adam'?"),
        (["kernel", "fusedopt:adamw"], "kernel: fusedopt has no rule 'adamw'; did you mean 'AdamW'?"),
        (["kernel", "os:path"], "kernel: os has no rule 'path'; there are none."),
        (["kernel", "nowhere:Rule"], "kernel: No module named 'nowhere'"),
        (["kernel", "nowhere.py:Rule"], "kernel: [Errno 2] No such file or directory"),
        (["kernel", "sgd", "--nesterov"], "kernel: SGD: nesterov=True needs momentum > 0"),
        (["kernel", "sgd", "--momentum", "-1"], "kernel: SGD: momentum must be in [0, inf), got -1.0."),
        (["bench", "--size", "10", "--tensors", "11"], "bench: --tensors must be at most --size, 10, got 11."),
        (["bench", "--json", "nowhere/figures.json"], "bench: --json nowhere/figures.json: its folder does not exist."),
    ],
)
def test_what_the_user_must_change_is_one_line_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("words", [["kernal"], ["kernel"], ["kernel", "adam", "--nesterov"], ["bench", "--size", "2G"]])
def test_words_that_no_command_knows_are_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_error_keeps_its_traceback_in_development_mode() -> None:
    done = python("-X", "dev", "-m", "fusedopt", "kernel", "adm")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_reader_who_stops_reading_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedopt", "kernel", "adam"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait() == 0


# --- kernel ----------------------------------------------------------------------------------------------------------


def printed_kernel(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["kernel", *words]) == 0
    return capsys.readouterr().out


def test_each_flag_switch_and_dtype_is_in_the_kernel_text(capsys: pytest.CaptureFixture[str]) -> None:
    def title(*words: str) -> str:
        return next(
            line for line in printed_kernel(capsys, *words).splitlines() if line.startswith("// ") and "(" in line
        )

    flags = "amsgrad={}, maximize={}, decoupled_weight_decay={}"
    assert title("Adam") == f"// Adam({flags.format(False, False, False)}), float32"
    assert title("adam", "--amsgrad", "--dtype", "bfloat16") == f"// Adam({flags.format(True, False, False)}), bfloat16"
    assert title("--dtype", "float64", "ADAMW", "--maximize") == f"// AdamW({flags.format(False, True, True)}), float64"
    assert title("sgd", "--momentum", "0.9") == "// SGD(momentum=True, nesterov=False, maximize=False), float32"
    assert title("sgd", "--momentum", "0") == "// SGD(momentum=False, nesterov=False, maximize=False), float32"


def test_an_optimizer_stands_for_its_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_kernel(capsys, "fusedopt:AdamW") == printed_kernel(capsys, "adamw")


def test_a_rule_of_ones_own_is_found_in_a_file_and_in_a_module(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_RULE)
    in_file = cli("kernel", f"{tmp_path}/own.py:Halve")
    assert in_file.stderr == ""
    assert "real(0.25)" in in_file.stdout
    in_module = cli("kernel", "own:Halving", "--no-twice", PYTHONPATH=str(tmp_path))
    assert "real(0.5)" in in_module.stdout
    assert "100 % more" in cli("kernel", f"{tmp_path}/own.py:Halve", "--help").stdout
    refused = cli("kernel", f"{tmp_path}/own.py:Branches")
    assert refused.returncode == 2
    assert refused.stderr.startswith("kernel: Branches.update branches on a value")


def test_the_full_text_compiles_without_headers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    try:
        compiler.nvrtc_version()
    except compiler.CompilerMissingError as error:
        missing(f"NVRTC ({error})", "cupy-cuda13x nvidia-cuda-nvrtc")
    monkeypatch.setenv("FUSEDOPT_CACHE_DIR", str(tmp_path))
    text = printed_kernel(capsys, "sgd", "--momentum", "0.9", "--nesterov", "--full")
    assert printed_kernel(capsys, "sgd", "--momentum", "0.9", "--nesterov") in text
    assert compiler.compiled(text, {}, "sm_80").stat().st_size > 1000


# --- doctor ----------------------------------------------------------------------------------------------------------


def examined(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_doctor_finds_the_numpy_backend_healthy_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "one.cubin").write_bytes(bytes(1234))
    done = cli("doctor", "--json", "--backend", "numpy", FUSEDOPT_CACHE_DIR=str(tmp_path), FUSEDOPT_NUM_THREADS="3")
    assert (done.returncode, done.stderr) == (0, "")
    report = examined(done)
    assert report["healthy"] is True
    assert report["backend"] == {"asked": "numpy", "runs": "numpy", "why": "it is asked for"}
    assert report["versions"]["numpy"] == np.__version__
    assert report["settings"]["threads"] == 3
    assert report["settings"]["FUSEDOPT_NUM_THREADS"] == "3"
    folders = report["folders"]
    assert (folders["cache"], folders["cache_writable"]) == (str(tmp_path), True)
    assert (folders["cache_entries"], folders["cache_bytes"]) == (1, 1234)
    assert Path(folders["kernels"], "fused_step.cu").is_file()
    checked = {(outcome["optimizer"], outcome["dtype"]) for outcome in report["self_check"]}
    assert len(checked) == 3 * 4
    assert {(outcome["backend"], outcome["unequal"]) for outcome in report["self_check"]} == {("numpy", 0)}


def test_doctor_without_cupy_says_what_to_install() -> None:
    automatic = python("-c", WITHOUT_CUPY, "doctor", "--json")
    assert automatic.returncode == 0
    assert examined(automatic)["backend"]["runs"] == "numpy"
    assert "pip install 'fusedopt[cuda13]'" in examined(automatic)["cuda"]["missing"]
    asked = python("-c", WITHOUT_CUPY, "doctor", "--json", FUSEDOPT_BACKEND="cuda")
    assert asked.returncode == 1
    assert examined(asked)["backend"]["runs"] is None
    assert "pip install 'fusedopt[cuda13]'" in examined(asked)["backend"]["why"]


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"FUSEDOPT_BACKEND": "gpu"}, "FUSEDOPT_BACKEND must be auto, cuda or numpy, got 'gpu'"),
        ({"FUSEDOPT_NUM_THREADS": "many"}, "its self-check ended in ValueError: FUSEDOPT_NUM_THREADS must be"),
    ],
)
def test_doctor_names_a_variable_that_cannot_work(variables: dict[str, str], why: str) -> None:
    done = cli("doctor", "--json", **variables)
    assert done.returncode == 1
    assert examined(done)["healthy"] is False
    assert examined(done)["backend"]["why"].startswith(why)


def test_doctor_works_with_a_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o777)  # a file where a folder should be: permissions do not keep root out
    done = cli("doctor", FUSEDOPT_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert done.returncode == 0
    assert re.search(r"cache writable +│ no ", done.stdout)
    assert re.search(r"cache bytes +│ 0 ", done.stdout)
    assert "SGD, numpy" in done.stdout
    assert "All is well" in done.stdout


def test_doctor_sees_one_wrong_bit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    step = numpy_backend.NumpyPlan.step

    def off_by_a_bit(plan: Any, *arguments: Any) -> None:
        step(plan, *arguments)
        for job in plan.jobs:
            if job.memory[0].dtype == np.float32:
                job.memory[0].view(np.uint32)[-1] ^= 1

    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")
    monkeypatch.setattr(numpy_backend.NumpyPlan, "step", off_by_a_bit)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "numbers of float32 differ" in printed
    assert "numbers of float64 differ" not in printed
    assert "does not work here" in printed


def test_the_self_check_knows_signed_zeros_apart_and_no_nan_from_another() -> None:
    ours, expected = np.array([0.0, np.nan, 1.0], np.float32), np.array([-0.0, -np.nan, 1.0], np.float32)
    assert self_check._unequal(ours, expected) == 1


@pytest.mark.parametrize(
    ("version", "build"),
    [
        ("2.11.0+cu130", "CUDA 13.0"),
        ("2.13.0+cpu", "CPU only"),
        ("2.9.0", "not in its version"),
        ("2.9+rocm6", "rocm6"),
    ],
)
def test_torchs_build_is_read_from_its_version(version: str, build: str) -> None:
    assert doctor._torch_build(version) == build


# --- bench -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def benched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")  # which --device sets, and this takes back
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")

    def run(*words: str, status: int = 0) -> dict[str, Any]:
        file = tmp_path / "figures.json"
        assert main(["bench", "--device", "cpu", "--repeats", "2", "--json", str(file), *words]) == status
        figures: dict[str, Any] = json.loads(file.read_text())
        return figures

    return run


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_all_contestants_compute_the_same(
    optimizer: str, benched: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    figures = benched("--optimizer", optimizer, "--size", "20K", "--tensors", "3")
    names = [row["name"] for row in figures["rows"]]
    assert names[1:3] == ["NumPy whole arrays", "NumPy out="]
    assert all(row["difference"] <= figures["allowed_difference"] for row in figures["rows"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert f"GB/s counts the {20 if optimizer == 'sgd' else 28} bytes" in printed


def test_the_figures_are_those_of_the_arrays(benched: Callable[..., dict[str, Any]]) -> None:
    size = 320_000
    figures = benched("--optimizer", "adam", "--size", "320K", "--tensors", "1")
    fused, whole, out, *of_torch = figures["rows"]
    assert [row["kept_bytes_a_parameter"] for row in (fused, whole, out, *of_torch)] == pytest.approx(
        [16, 16, 20, *[16] * len(of_torch)], abs=0.01
    )
    # New m, v and p beside the old, and the two operands of the last division: not less than three arrays.
    assert 3 * 4 * size <= whole["extra_bytes"] <= 6 * 4 * size
    assert fused["extra_bytes"] < 0.1 * 4 * size
    assert out["extra_bytes"] < 0.1 * 4 * size
    assert figures["copy_bytes_per_second"] == pytest.approx(2 * 4 * size / figures["copy_seconds"])
    for row in figures["rows"]:
        assert row["bytes_per_second"] == pytest.approx(28 * size / row["seconds"])
        assert row["share_of_copy"] == pytest.approx(row["bytes_per_second"] / figures["copy_bytes_per_second"])
        assert row["ratio"] == pytest.approx(row["seconds"] / fused["seconds"])


def test_a_contestant_that_computes_something_else_is_found(
    benched: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = naive.NaiveSGD.step

    def off_in_one_place(self: naive.NaiveSGD) -> None:
        step(self)
        self.p[-1][-1] += 1e-6

    monkeypatch.setattr(naive.NaiveSGD, "step", off_in_one_place)
    benched("--optimizer", "sgd", "--size", "1K", "--tensors", "3", status=1)
    assert "bench: NumPy whole arrays computes something else" in capsys.readouterr().err


def test_a_bench_on_cuda_that_cannot_work_says_so() -> None:
    done = python("-c", WITHOUT_CUPY, "bench", "--device", "cuda")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bench: FUSEDOPT_BACKEND=cuda cannot work here: CuPy cannot be imported")


def test_counts_are_written_with_k_and_m() -> None:
    assert [bench.count(text) for text in ("7", "500K", "32m")] == [7, 500_000, 32_000_000]


def test_the_peak_leaves_out_what_takes_the_place_of_something_freed() -> None:
    kept = [np.zeros(1_000_000), np.zeros(1_000_000)]

    def replace() -> None:
        for i in range(2):
            kept[i] = kept[i] + 1.0

    # A new array of 8 MB beside the two, twice: the first old one is gone when the second new one is made.
    assert peak_of_arrays(np, replace) == pytest.approx(8e6, rel=0.01)


def test_the_peak_of_torch_is_how_far_resident_memory_rose() -> None:
    torch = pytest.importorskip("torch")
    kept = torch.zeros(8_000_000)
    peak = peak_of_torch(False, lambda: kept + 1)
    if peak is None:
        pytest.skip("the system does not tell a process's peak: it is Linux's /proc that does")
    assert peak == pytest.approx(32e6, rel=0.2)  # huge pages round it
