"""One command for a machine with a GPU: `python benchmarks/prove_on_gpu.py`, from a plain checkout, without network.

Runs the GPU tests, compares bits with NumPy, measures speed, tries launch geometries and lets compute-sanitizer watch,
in under 8 minutes; the result is JSON in `benchmarks/results/`. What fails or is refused is recorded as such.
Exit status: 0 all passed, 1 something failed, 2 fusedopt cannot be imported, 3 there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from record import RESULTS, ROOT, circumstances, figure_table, write
from timing import Figure

MODULES = ("numpy", "cupy", "ml_dtypes", "platformdirs", "torch", "pytest", "pytest_benchmark", "hypothesis", "rich")
TOOLS = ("memcheck", "racecheck", "initcheck")
MINUTES = 8

Result = dict[str, Any]


class Report:
    """The sections' results, written after each one, so that an end before the time leaves what was found."""

    def __init__(self, path: Path) -> None:
        self.path, self.sections = path, {}
        self.by_section: dict[str, list[Figure]] = {}

    def section(self, name: str, find: Callable[[], Result]) -> Result:
        """Run one section; an exception is its result."""
        print(f"--- {name}", flush=True)
        start = time.monotonic()
        try:
            result = find()
        except Exception as error:
            traceback.print_exc()
            result = {"passed": False, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        result["seconds"] = round(time.monotonic() - start, 1)
        self.sections[name] = result
        write(self.path, self.content())
        print(f"    {'passed' if result.get('passed', True) else 'FAILED'} in {result['seconds']} s", flush=True)
        return result

    def content(self) -> Result:
        figures = {name: [f.record() for f in found] for name, found in self.by_section.items()}
        return {**self.sections, "figures": figures}

    @property
    def failed(self) -> list[str]:
        return [name for name, result in self.sections.items() if not result.get("passed", True)]


def modules() -> dict[str, bool]:
    """Which modules are installed; none of them is imported."""
    return {name: importlib.util.find_spec(name) is not None for name in MODULES}


def environment(gpu: Any) -> Result:
    from gpu_device import nvidia_smi

    found = {**circumstances(), "modules": modules(), **gpu.facts()}
    found["nvidia_smi"] = nvidia_smi("name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,pstate")
    return found


def gpu_tests(seconds: float) -> Result:
    """The tests marked `gpu`, in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tests.xml")
        # addopts of pyproject.toml names options of pytest plugins, which may not be here.
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
        # A test module that needs a package which is not here keeps the others from nothing.
        command += ["--continue-on-collection-errors"]
        status, output = finished([*command, f"--junitxml={file}", "tests"], seconds)
        result: Result = {"status": status, **junit_counts(file)}
    passed = status == 0 and result.get("tests", 0) > 0
    return {"passed": passed, **result, "output": output[-20_000 if not passed else -500 :]}


def junit_counts(file: Path) -> Result:
    """How many tests a JUnit file has, and the names of those that failed."""
    if not file.exists():
        return {"tests": 0, "failing": []}
    suite = next(xml.etree.ElementTree.parse(file).iter("testsuite"))
    failing = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")} | {"failing": failing}


def sanitizer(tools: Sequence[str], until: float) -> Result:
    """compute-sanitizer's tools on a few small steps; one that is missing or refuses the device is recorded so."""
    program = sanitizer_program()
    if program is None:
        return {"found": None, "notes": ["compute-sanitizer is neither on PATH nor in a CUDA folder"]}
    result: Result = {"found": program, "passed": True, "notes": []}
    for tool in tools:
        left = until - time.monotonic()
        if left < 10:
            result[tool] = {"verdict": "left out, there is no time left"}
            continue
        command = [program, "--tool", tool, "--error-exitcode", "86", sys.executable]
        status, output = finished([*command, "benchmarks/gpu_sanitized.py"], min(90, left))
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
    if re.search(r"not supported|cuda_?error_?unknown|Failed to initialize|LibraryNotLoaded", output, re.IGNORECASE):
        return "refused"
    if status == 86 or (summary and summary[2] != "0"):
        return "errors"
    if status == 0 and summary and "the steps are done" in output:
        return "clean"
    return "could not run"


def sanitizer_program() -> str | None:
    """compute-sanitizer's path."""
    folders = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    folders += ["/usr/local/cuda", *sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True)]
    places = [os.path.join(folder, sub) for folder in folders if folder for sub in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def finished(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit status and output of a command in the checkout; None where it did not end in time."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the tool's own child too
            process.wait()
            status = None
        output.seek(0)
        return status, output.read()


def bits(gpu: Any) -> Result:
    """The device's results against NumPy's."""
    import gpu_bits

    return gpu_bits.compare(gpu.array, gpu.host)


def measurements(report: Report, what: str, gpu: Any, quick: bool, until: float) -> Result:
    """The figures of a function of `gpu_speed`, kept as they come, with the clocks before and after."""
    import gpu_speed
    from gpu_device import nvidia_smi

    clocks = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
    before, notes = nvidia_smi(clocks), []
    figures = report.by_section.setdefault({"all_speeds": "speed", "sweep": "geometry"}[what], [])
    for figure in getattr(gpu_speed, what)(gpu, quick, until, notes):
        figures.append(figure)
    throttling = nvidia_smi("clocks_event_reasons.active")
    return {"notes": notes, "clocks_before": before, "clocks_after": nvidia_smi(clocks), "throttling": throttling}


def slug(name: str) -> str:
    """A device's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def keep_verdict(report: Report, path: Path) -> Result:
    """Write which kernels passed, on what, and the figures that a bar or a share belongs to."""
    from verified import kernel_hashes

    about, tests = report.sections["environment"], report.sections["tests"]
    smi = about["nvidia_smi"]
    content = {
        "kernels": kernel_hashes(),
        **{key: about[key] for key in ("device", "date", "commit", "cupy", "nvrtc")},
        "driver": smi["driver_version"] if isinstance(smi, dict) else about["driver_cuda"],
        "tests": {key: tests[key] for key in ("tests", "failures", "errors", "skipped")},
        "bits": report.sections["bits"]["cases"],
        "sanitizer": {k: v["verdict"] for k, v in report.sections["sanitizer"].items() if k in TOOLS},
        "figures": [f.record() for f in report.by_section["speed"] if f.met is not None or "share" in f.name],
    }
    write(path, content)
    return {"file": str(path)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds, memcheck alone")
    arguments = parser.parse_args()
    missing = [name for name, here in modules().items() if not here]
    if missing:
        print(f"not installed here: {', '.join(missing)}", flush=True)
    try:
        from fusedopt.backends import cuda

        problem = cuda.problem()
    except ImportError as error:
        print(f"fusedopt cannot be imported: {error}.")
        return 2
    if problem is not None:
        print(f"There is no GPU to prove anything on: {problem}")
        return 3

    from gpu_device import Gpu

    return prove(Gpu(), arguments.out, arguments.quick)


def prove(gpu: Any, out: Path, quick: bool) -> int:
    """All sections, the ones that matter most first; the exit status."""
    end = time.monotonic() + 60 * (2 if quick else MINUTES) - 15
    report = Report(out / slug(gpu.name) / time.strftime("%Y-%m-%dT%H%M%SZ.json", time.gmtime()))

    def part(share: float) -> float:
        """The moment at which a section has used this share of the time that is left."""
        return time.monotonic() + share * (end - time.monotonic())

    report.section("environment", lambda: environment(gpu))
    report.section("bits", lambda: bits(gpu))
    report.section("speed", lambda: measurements(report, "all_speeds", gpu, quick, part(0.4)))
    report.section("tests", lambda: gpu_tests(part(0.5) - time.monotonic()))
    report.section("sanitizer", lambda: sanitizer(TOOLS[:1] if quick else TOOLS, part(0.7)))
    report.section("geometry", lambda: measurements(report, "sweep", gpu, quick, end))
    if not {"bits", "tests"} & set(report.failed) and not quick:
        report.section("verified", lambda: keep_verdict(report, out / "verified.json"))
    print(summary(report))
    return 1 if report.failed else 0


def summary(report: Report) -> str:
    """What a reader wants first: shares and ratios, the quickest geometries, what failed, what was left out."""
    sections = {"speed": [], "geometry": []} | report.by_section
    held = [f for f in sections["speed"] if f.met is not None or "share" in f.name or "against" in f.name]
    quickest = sorted(sections["geometry"], key=lambda f: f.value)
    works = dict.fromkeys(f.name.partition(": ")[0] for f in quickest)
    best = [f for work in works for f in [f for f in quickest if f.name.startswith(work)][:5]]
    lines = [figure_table(held), "", "The quickest geometries:", figure_table(best), ""]
    lines += [f"{name}: {note}" for name, result in report.sections.items() for note in result.get("notes", [])]
    for name in report.failed:
        found = {key: value for key, value in report.sections[name].items() if key != "traceback"}
        lines.append(f"FAILED: {name}: {json.dumps(found)}")
    missed = sum(f.met is False for f in held)
    lines.append(f"{missed} bars are missed." if missed else "All bars are met.")
    kept = "verified.json is written." if "verified" in report.sections else "verified.json stays as it was."
    return "\n".join([*lines, f"{report.path} is written; {kept}"])


if __name__ == "__main__":
    sys.exit(main())
