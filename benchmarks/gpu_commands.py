"""What the proof has other programs do, each for a limited time: pytest, compute-sanitizer and Nsight Compute."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path

from gpu_sanitized import DONE
from record import ROOT, Result

TOOLS = ("memcheck", "racecheck", "initcheck")
METRICS = (
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)
LEAST = 20  # seconds without which a tool is not worth to be started
GRACE = 15  # seconds in which an interrupted pytest writes what it has
OUTCOMES = ("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS")
REFUSALS = (
    r"not supported|cuda_?error_?unknown|Failed to initialize|LibraryNotLoaded|ERR_NVGPUCTRPERM|==ERROR== .*permission"
)


def finished(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit status and output of a command in the checkout; None where it did not end in time.

    First it is interrupted, as by Ctrl-C, and after `GRACE` seconds it is killed with its children.
    """
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            status = None
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            with contextlib.suppress(ProcessLookupError):  # the command's own children too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return status, output.read()


def gpu_tests(targets: Sequence[str], log: Path, seconds: float) -> Result:
    """The tests marked `gpu`, in a process of their own; what was run is known from its log, should time run out."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tests.xml")
        # addopts of pyproject.toml names options of pytest plugins, which may not be here.
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-o", "addopts=", "-p", "no:cacheprovider"]
        # What other versions of the libraries warn of is in the log, and fails no test.
        command += ["-W", "default"]
        # A test module that needs a package which is not here keeps the others from nothing.
        command += ["--continue-on-collection-errors", "--durations=10", f"--junitxml={file}", *targets]
        status, output = finished(command, seconds - GRACE)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(output)
        result = {"status": status, "complete": status is not None, **log_counts(output), **junit_failing(file)}
    result["passed"] = status == 0 and result["passed_tests"] > 0
    result["notes"] = [] if status is not None else [out_of_time(result)]
    return {**result, "log": log.name, "output": output[-500 if result["passed"] else -6_000 :]}


def out_of_time(counts: Result) -> str:
    """How far the tests came."""
    ran = sum(counts[key] for key in ("passed_tests", "failed_tests", "skipped_tests"))
    how = "none failed" if not counts["failed_tests"] else f"{counts['failed_tests']} failed"
    return f"ran out of time after {ran} of {counts['selected'] or '?'} tests, {how}: not complete"


def log_counts(output: str) -> Result:
    """How many tests were selected, passed, failed and skipped, by the lines of a `pytest -v`."""
    found = re.findall(rf"^\S.*::.* ({'|'.join(OUTCOMES)})\b.*\[ *\d+%\]$", output, re.MULTILINE)
    collected = re.search(r"collected (\d+) items?.*?(?:/ (\d+) selected)?$", output, re.MULTILINE)
    return {
        "selected": int(collected[2] or collected[1]) if collected else 0,
        "passed_tests": sum(outcome in ("PASSED", "XPASS") for outcome in found),
        "failed_tests": sum(outcome in ("FAILED", "ERROR") for outcome in found),
        "skipped_tests": sum(outcome in ("SKIPPED", "XFAIL") for outcome in found),
    }


def junit_failing(file: Path) -> Result:
    """The names of the tests that a JUnit file calls failed; none where pytest has not come to write it."""
    try:
        cases = list(xml.etree.ElementTree.parse(file).iter("testcase"))
    except (FileNotFoundError, xml.etree.ElementTree.ParseError):
        return {"failing": []}
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return {"failing": [f"{case.get('classname')}::{case.get('name')}" for case in bad]}


def sanitizer(tools: Sequence[str], until: float) -> Result:
    """compute-sanitizer's tools on a few small steps; one that is missing or refuses the device is recorded so."""
    program = program_of("compute-sanitizer", ("bin", "compute-sanitizer"))
    if program is None:
        return {"passed": True, "notes": ["compute-sanitizer is neither on PATH nor in a CUDA folder"]}
    result: Result = {"program": program, "passed": True, "notes": []}
    for place, tool in enumerate(tools):
        seconds = (until - time.time()) / (len(tools) - place)
        if seconds < LEAST:
            result["notes"].append(f"{tool}: left out, there is no time left")
            continue
        command = [program, "--tool", tool, "--error-exitcode", "86", sys.executable]
        status, output = finished([*command, str(ROOT / "benchmarks" / "gpu_sanitized.py")], seconds - GRACE / 2)
        verdict = sanitizer_verdict(status, output)
        result[tool] = {"verdict": verdict, "status": status, "output": output[-3_000:]}
        result["notes"].append(f"{tool}: {verdict}")
        result["passed"] &= verdict != "errors"
    return result


def sanitizer_verdict(status: int | None, output: str) -> str:
    """`clean`, `errors`, or what kept the tool from telling."""
    summary = re.search(r"(ERROR|RACECHECK) SUMMARY: (\d+)", output)
    if status is None:
        return "ran out of time"
    if re.search(REFUSALS, output, re.IGNORECASE):
        return "refused"
    if status == 86 or (summary and summary[2] != "0"):
        return "errors"
    if status == 0 and summary and DONE in output:
        return "clean"
    return "could not run"


def counters(until: float) -> Result:
    """Nsight Compute's hardware counters of one launch of the fused Adam; a refusal is recorded, and no error."""
    program = program_of("ncu", ("bin",), "/opt/nvidia/nsight-compute/*")
    if program is None:
        return {"passed": True, "notes": ["ncu is neither on PATH nor in a CUDA folder"]}
    if until - time.time() < LEAST + GRACE:
        return {"passed": True, "program": program, "notes": ["ncu: left out, there is no time left"]}
    command = [program, "--clock-control", "none", "--csv", "--metrics", ",".join(METRICS)]
    command += ["--kernel-name", "fused_step", "--launch-skip", "1", "--launch-count", "1"]
    script = str(ROOT / "benchmarks" / "gpu_profiles.py")
    status, output = finished([*command, sys.executable, script], until - time.time() - GRACE)
    found = ncu_metrics(output)
    result: Result = {"passed": True, "program": program, "status": status, "metrics": found, "notes": []}
    if not found:
        refused = "refused" if re.search(REFUSALS, output, re.IGNORECASE) else "could not run"
        result["notes"].append(f"ncu: {'ran out of time' if status is None else refused}")
        result["output"] = output[-3_000:]
    return result


def ncu_metrics(output: str) -> dict[str, float]:
    """The metrics in what `ncu --csv` prints between other lines."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    rows = csv.DictReader(lines)
    found = {row.get("Metric Name"): row.get("Metric Value") for row in rows}
    return {name: float(str(found[name]).replace(",", "")) for name in METRICS if found.get(name)}


def program_of(name: str, subfolders: Sequence[str], *others: str) -> str | None:
    """A program's path: on PATH, in a CUDA folder, or in others."""
    folders = [os.environ.get(variable, "") for variable in ("CUDA_HOME", "CUDA_PATH")]
    folders += ["/usr/local/cuda", *sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True)]
    places = [os.path.join(folder, sub) for folder in folders if folder for sub in subfolders]
    for pattern in others:
        places += sorted(map(str, Path("/").glob(pattern.lstrip("/"))), reverse=True)
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
