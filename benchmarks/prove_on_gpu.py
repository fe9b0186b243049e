"""One command for a machine with a GPU: `python benchmarks/prove_on_gpu.py`, from a plain checkout, without network.

In under 8 minutes it compares bits with NumPy, measures speed, runs the GPU tests, counts launches, lets NVIDIA's tools
watch and tries launch geometries. Sections, by importance, each in processes of its own, so that neither a crash nor a
hang of one touches the others:

    bits         parameters and states of every rule equal NumPy's to the bit
    speed        shares of a plain stream's speed, ratios to torch, jax and CuPy, time of the host
    tests        the tests marked gpu, but for those of torch tensors
    torch-tests  those
    profiles     kernels of a step and their bandwidth, by torch's profiler
    sanitizer    compute-sanitizer: memcheck, racecheck, initcheck
    ncu          Nsight Compute: memory's share of its peak, occupancy, registers
    geometry     Adam's time for other chunk sizes, blocks and threads; it decides nothing

In benchmarks/results/<device>/ are then, each written as soon as there is something in it:

    proof.json          the environment, and for each section whether it passed, its notes, its date and sources
    bars.json           figures, with the bar of those that have one, and whether it is met
    bench-arrays.json   rows of `python -m fusedopt bench`: each peer against fusedopt over CuPy arrays
    bench-tensors.json  the same against fusedopt.torch; both also as .png
    profiles.json, geometry.json, tests.log, torch-tests.log

`--sections` runs some alone, longer with `--minutes`, and the results of the others stay: where not everything fits
into one run, `--sections tests torch-tests` and then `--sections speed profiles`, say. Once bits and both kinds of
tests have passed on the same sources, benchmarks/results/verified.json says so. A tool that is missing or refuses the
device is a note, and a bar that is missed a figure; what fails or runs out of time has not passed.
Exit status: 0 all passed, 1 something did not, 2 fusedopt cannot be imported, 3 there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from record import RESULTS, Result, circumstances, figure_table, sources, write
from timing import Figure

MODULES = (
    *("numpy", "cupy", "ml_dtypes", "platformdirs", "torch", "pytest", "pytest_benchmark"),
    *("hypothesis", "expecttest", "rich", "matplotlib", "numba", "jax", "optax"),
)
# Each section's share of the time that is left when it begins.
SHARES = {
    "bits": 0.2,
    "speed": 0.4,
    "tests": 0.5,
    "torch-tests": 0.5,
    "profiles": 0.4,
    "sanitizer": 0.5,
    "ncu": 0.5,
    "geometry": 1.0,
}
ON_DEVICE = ("bits", "speed", "profiles", "geometry")  # those of this file's own processes
TARGETS = {"tests": ("tests", "--ignore=tests/pytorch"), "torch-tests": ("tests/pytorch",)}
VERIFIED_BY = ("bits", *TARGETS)
MINUTES, QUICK_MINUTES = 7.5, 2.0
LATE = 10  # seconds after which a section that should have ended is interrupted


class Proof:
    """What is known of this device, in `proof.json`; sections of other sources are forgotten."""

    def __init__(self, folder: Path, about: Result) -> None:
        self.folder, self._path = folder, folder / "proof.json"
        known = json.loads(self._path.read_text())["sections"] if self._path.exists() else {}
        self.sections: dict[str, Result] = {
            name: each for name, each in known.items() if each["sources"] == about["sources"]
        }
        self._about = about

    def keep(self, name: str, result: Result) -> None:
        stamp = {"date": self._about["date"], "sources": self._about["sources"]}
        self.sections[name] = {"passed": False, "notes": [], **result, **stamp}
        in_order = {each: self.sections[each] for each in SHARES if each in self.sections}
        write(self._path, {"environment": self._about, "sections": in_order})

    def passed(self, *names: str) -> bool:
        return all(self.sections.get(name, {}).get("passed") for name in names)


def environment() -> Result:
    """The machine, its device and what is installed; nothing is put on the device."""
    from fusedopt import compiler
    from fusedopt.backends import cuda
    from fusedopt.cli.bench.condition import nvidia_smi
    from gpu_commands import program_of

    runtime: Any = cuda.module().cuda.runtime
    number = runtime.getDevice()
    properties = runtime.getDeviceProperties(number)
    fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu,power.draw,pstate"
    return {
        **circumstances(),
        "sources": sources(),
        "device": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "l2_bytes": properties["l2CacheSize"],
        "memory_bytes": properties["totalGlobalMem"],
        "driver_cuda": runtime.driverGetVersion(),
        "runtime_cuda": runtime.runtimeGetVersion(),
        "nvrtc": ".".join(map(str, compiler.nvrtc_version())),
        "nvidia_smi": nvidia_smi(fields, runtime.deviceGetPCIBusId(number)),
        "modules": {name: importlib.util.find_spec(name) is not None for name in MODULES},
        "programs": {name: program_of(name, ("bin",)) for name in ("compute-sanitizer", "ncu", "nvcc")},
    }


def on_device(name: str, folder: Path, quick: bool, until: float) -> Result:
    """A section's work, in the process that has the device."""
    from fusedopt.cli.bench.gpu import Gpu

    gpu = Gpu(profiler=name == "profiles")
    if name == "bits":
        import gpu_bits

        return gpu_bits.compare(gpu.surface.asarray, gpu.surface.host, until)
    module = importlib.import_module(f"gpu_{name}")
    result: Result = module.prove(gpu, folder, quick, until)
    return result


def in_process(name: str, folder: Path, quick: bool, until: float) -> Result:
    """A section's work in a process of its own."""
    from gpu_commands import finished

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "result.json")
        command = [sys.executable, str(Path(__file__).resolve()), "--on-device", name, "--until", str(until)]
        command += ["--out", str(folder), "--result", str(file), *(["--quick"] if quick else [])]
        status, output = finished(command, until + LATE - time.time())
        if file.exists():
            result: Result = json.loads(file.read_text())
            return result
    error = "was ended, since it took too long" if status is None else f"ended with {status}"
    return {"passed": False, "error": f"the section's process {error}", "output": output[-3_000:]}


def section(name: str, folder: Path, quick: bool, until: float) -> Result:
    """The result of one section."""
    from gpu_commands import TOOLS, counters, gpu_tests, sanitizer

    if name in ON_DEVICE:
        return in_process(name, folder, quick, until)
    if name in TARGETS:
        return gpu_tests(TARGETS[name], folder / f"{name}.log", until - time.time())
    return sanitizer(TOOLS[:1] if quick else TOOLS, until) if name == "sanitizer" else counters(until)


def guarded(find: Callable[[], Result]) -> Result:
    """A result, which is the exception where there is one, with the seconds that it took."""
    start = time.monotonic()
    try:
        result = find()
    except Exception as error:
        traceback.print_exc()
        result = {"passed": False, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {**result, "seconds": round(time.monotonic() - start, 1)}


def prove(out: Path, names: Sequence[str], minutes: float, quick: bool) -> int:
    """The sections asked for, those that matter most first; the exit status."""
    end = time.time() + 60 * minutes
    about = environment()
    folder = out / re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    proof = Proof(folder, about)
    chosen = [name for name in SHARES if name in names]
    for name in chosen:
        print(f"--- {name}", flush=True)
        share = 1.0 if name == chosen[-1] else SHARES[name]
        until = time.time() + share * (end - time.time())
        result = guarded(lambda name=name, until=until: section(name, folder, quick, until))
        proof.keep(name, result)
        print(f"    {'passed' if proof.passed(name) else 'NOT PASSED'} in {result['seconds']} s", flush=True)
    verified = proof.passed(*VERIFIED_BY) and not quick
    if verified:
        keep_verdict(proof, about, out / "verified.json")
    print(summary(proof, chosen))
    print(f"{folder} has the results; verified.json {'is written' if verified else 'stays as it was'}.")
    return 0 if proof.passed(*chosen) else 1


def keep_verdict(proof: Proof, about: Result, path: Path) -> None:
    """Write which kernels passed, on what, and the figures that a bar belongs to."""
    from verified import kernel_hashes

    counts = ("passed_tests", "failed_tests", "skipped_tests")
    tools = proof.sections.get("sanitizer", {})
    content = {
        "kernels": kernel_hashes(),
        **{key: about[key] for key in ("device", "date", "commit", "nvrtc", "versions", "nvidia_smi")},
        "bits": proof.sections["bits"]["cases"],
        **{name: {key: proof.sections[name][key] for key in counts} for name in TARGETS},
        "sanitizer": {tool: each["verdict"] for tool, each in tools.items() if isinstance(each, dict)},
        "figures": [figure for figure in figures_in(proof.folder / "bars.json") if figure["met"] is not None],
    }
    write(path, content)


def figures_in(path: Path) -> list[Result]:
    """The figures of a file; none where it is not there."""
    found: list[Result] = json.loads(path.read_text()) if path.exists() else []
    return found


def summary(proof: Proof, names: Sequence[str]) -> str:
    """What a reader wants first: figures and bars, the quickest geometries, notes, what did not pass."""
    lines = []
    if "speed" in names:
        bars = read_figures(proof.folder / "bars.json")
        missed, all_of_them = (sum(figure.met in kinds for figure in bars) for kinds in ((False,), (False, True)))
        lines += [figure_table(bars), f"{missed} of {all_of_them} bars are MISSED.", ""]
    if "geometry" in names:
        quickest = sorted(read_figures(proof.folder / "geometry.json"), key=lambda figure: figure.value)
        sizes = dict.fromkeys(figure.name.partition(":")[0] for figure in quickest)
        best = [each for size in sizes for each in [f for f in quickest if f.name.startswith(f"{size}:")][:5]]
        lines += ["The quickest geometries:", figure_table(best), ""]
    for name in names:
        result = proof.sections[name]
        lines += [f"{name}: {note}" for note in result["notes"]]
        if not result["passed"]:
            found = {key: value for key, value in result.items() if key not in ("traceback", "notes")}
            lines.append(f"NOT PASSED: {name}: {json.dumps(found)}")
    return "\n".join(lines)


def read_figures(path: Path) -> list[Figure]:
    """As `figures_in`, to be printed."""
    return [Figure(**{key: value for key, value in each.items() if key != "met"}) for each in figures_in(path)]


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds, memcheck alone, in 2 minutes")
    parser.add_argument("--minutes", type=float, help=f"in all (default: {MINUTES:g})")
    parser.add_argument("--sections", nargs="+", choices=SHARES, default=list(SHARES), metavar="NAME")
    parser.add_argument("--on-device", choices=ON_DEVICE, help=argparse.SUPPRESS)  # a section's own process
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.out = arguments.out.resolve()  # the sections' processes run in the checkout
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = arguments_of(words)
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing and not arguments.on_device:
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
    if arguments.on_device:
        one = guarded(lambda: on_device(arguments.on_device, arguments.out, arguments.quick, arguments.until))
        write(arguments.result, one)
        return 0
    minutes = arguments.minutes or (QUICK_MINUTES if arguments.quick else MINUTES)
    return prove(arguments.out, arguments.sections, minutes, arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
