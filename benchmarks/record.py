"""What stands beside every figure: the machine, the versions, the commit; and how figures are printed and kept."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timing import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Result = dict[str, Any]  # as JSON has it
PACKAGES = (
    *("numpy", "ml_dtypes", "torch", "cupy-cuda13x", "cupy-cuda12x", "jax", "optax", "numba"),
    *("pytest", "pytest-benchmark"),
)


def source_files() -> list[Path]:
    """All files that a step is made of."""
    return sorted([*(ROOT / "fusedopt").rglob("*.py"), *(ROOT / "kernels").glob("*.cu*")])


def digest(texts: Iterable[tuple[str, str]]) -> str:
    """One hash over named texts."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def sources() -> str:
    """A hash of all that a step is made of: results with the same one belong together."""
    return digest((str(path.relative_to(ROOT)), path.read_text()) for path in source_files())[:16]


def commit() -> str:
    """The commit, with "+changes" where the tree is not the commit's; a hash of the sources where git is not there."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "fusedopt", "kernels") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"sources:{sources()}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def circumstances() -> dict[str, Any]:
    """When, where and of what: the first part of every result file."""
    found = (distribution for name in PACKAGES for distribution in importlib.metadata.distributions(name=name))
    versions = {distribution.name: distribution.version for distribution in found}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": _cpu_name(),
        "cores": cores,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(path: Path, content: Any) -> None:
    """Keep a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Text in columns, the first one flush left."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(line) for line in aligned)


def figure_table(figures: Iterable[Figure]) -> str:
    """Figures with their spread, and with their bar where they have one."""
    verdicts = {True: "met", False: "MISSED", None: ""}
    return table(
        ("", "median", "quartiles", "unit", "bar", ""),
        [(f.name, f"{f.value:.3g}", f"{f.low:.3g} to {f.high:.3g}", f.unit, f.bar, verdicts[f.met]) for f in figures],
    )
