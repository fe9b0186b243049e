"""The command line: what it prints, with what status it ends, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedopt import compiler
from fusedopt.backends import numba_problem
from fusedopt.backends import numpy as numpy_backend
from fusedopt.cli import COMMANDS, doctor, main, self_check
from fusedopt.testing import CHECKS
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


@pytest.mark.parametrize("words", [["--help"], ["kernel", "--help"], ["kernel", "adam"], ["check", "--help"]])
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


@pytest.mark.parametrize("words", [["kernal"], ["kernel"], ["kernel", "adam", "--centered"]])
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


@pytest.mark.parametrize(
    "words",
    [["kernel", "muon"], ["kernel", "fusedopt:LBFGS"], ["bench", "--optimizer", "sparseadam", "--size", "9"]],
    ids=" ".join,
)
def test_a_procedure_is_said_to_have_no_single_kernel(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "is a procedure: its step is a series of array operations, and no single kernel" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["kernel", "--help"])
    assert "muon" not in capsys.readouterr().out


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


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_prints_a_report_and_says_by_its_status_whether_all_is_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_rules.py").write_text(OWN_RULE)
    options = ["--without", "numba bits", "torch"]
    assert main(["check", f"{tmp_path}/own_rules.py:Halve", "--lr", "0.5", "--no-twice", *options]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Halve(lr=0.5, twice=False)\n passed  declaration")
    assert "skipped  2 checks         left out by without=: numba bits, torch" in printed
    assert main(["check", f"{tmp_path}/own_rules.py:Branches", *options]) == 1
    printed = capsys.readouterr().out
    assert " FAILED  tracing          Branches.update branches on a value; use np.where" in printed
    assert f"\n1 of {len(CHECKS)} checks failed:\ntracing: Branches.update branches on a value; use np.where" in printed


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("(frozen=True)", "", "frozen one: decorate a rule with @dataclass(frozen=True) (own_rules.py:"),
        ("lr: float", "lr", "rule Halve: lr must have its type, which makes it a field; write lr: float = hyper"),
        ('"[0, inf)"', '">=0"', "rule Halve: lr: a range is written like '[0, 1)', with infinity as '[0, inf)'"),
    ],
)
def test_a_rule_that_is_declared_wrong_is_told_how_and_where(
    before: str,
    after: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert before in OWN_RULE
    (tmp_path / "own_rules.py").write_text(OWN_RULE.replace(before, after, 1))
    assert main(["kernel", f"{tmp_path}/own_rules.py:Halve"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert re.search(r" \(own_rules\.py:\d+\)$", told)
    assert main(["kernel", "own_rules:Halve"]) == 2  # as a module, from the folder that is in sys.path by now
    assert capsys.readouterr().err == told


def test_a_file_without_a_class_is_told_which_it_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "own_rules.py"
    path.write_text(OWN_RULE)
    assert main(["check", f"{path}"]) == 2
    classes = " or ".join(f"{path}:{name}" for name in ("Halve", "Halving", "Branches"))
    assert capsys.readouterr().err == f"check: {path} is a file; name the class in it: {classes}.\n"
    path.write_text("import fusedopt.rules\nfrom fusedopt import Adam\n")
    assert main(["check", f"{path}"]) == 2
    assert "has no rule: no class derived from fusedopt.rules.Rule." in capsys.readouterr().err


def test_options_are_taken_with_pythons_underscores_too(capsys: pytest.CaptureFixture[str]) -> None:
    everything = ["--without", *CHECKS]
    assert main(["check", "adamw", "--weight_decay=0.25", "--clip_value", "2", *everything]) == 0
    assert capsys.readouterr().out.startswith("AdamW(weight_decay=0.25, clip_value=2.0)\n")


def test_check_lists_the_options_of_a_rule_and_takes_tuples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["check", "adam", "--help"])
    assert "--betas NUMBER NUMBER" in capsys.readouterr().out
    assert main(["check", "lion", "--betas", "0.5", "0.75", "--without", *CHECKS]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Lion(betas=(0.5, 0.75), weight_decay=0.1)\n(weight_decay: 0 where nobody gives it")
    assert f"skipped  {len(CHECKS)} checks        left out by without=: declaration, tracing, " in printed
    assert main(["check", "lion", "--betas", "0.5", "1.75"]) == 2
    assert capsys.readouterr().err == "check: Lion: betas[1] must be in [0, 1), got 1.75.\n"


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
    assert examined(automatic)["backend"]["runs"] == ("numpy" if numba_problem() else "numba")
    assert "pip install 'fusedopt[cuda13]'" in examined(automatic)["cuda"]["missing"]
    asked = python("-c", WITHOUT_CUPY, "doctor", "--json", FUSEDOPT_BACKEND="cuda")
    assert asked.returncode == 1
    assert examined(asked)["backend"]["runs"] is None
    assert "pip install 'fusedopt[cuda13]'" in examined(asked)["backend"]["why"]


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"FUSEDOPT_BACKEND": "gpu"}, "FUSEDOPT_BACKEND must be auto, cuda, numba or numpy, got 'gpu'"),
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
    assert "SGD, num" in done.stdout
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
