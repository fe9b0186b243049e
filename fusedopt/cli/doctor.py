"""`python -m fusedopt doctor`: what is here, what is missing, which backend runs, whether its bits are right."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fusedopt
from fusedopt import compiler, storage_choices
from fusedopt.backends import CHOICES, chosen_backend, cpu_backend, cuda, numba_problem
from fusedopt.backends.threads import thread_count
from fusedopt.cli.self_check import self_check
from fusedopt.rules import AdamW

STORAGES = ("float32", "split", "split+random", "split+int8", "split24+int8")  # of which the memory is told
CUPY = ("cupy-cuda12x", "cupy-cuda13x", "cupy")  # the distributions that have a module `cupy`; one alone works


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=CHOICES, help="as if FUSEDOPT_BACKEND were this")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """0; 1 where the backend that is asked for cannot work, or computes other bits than the rules."""
    if arguments.backend:
        os.environ["FUSEDOPT_BACKEND"] = arguments.backend
    found = report()
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0 if found["healthy"] else 1


def report() -> dict[str, Any]:
    """Everything that `doctor` finds, section by section, as plain values; nothing that fails stops it."""
    backend = _backend()
    outcomes: list[dict[str, Any]] = []
    if backend["runs"]:
        # The CPU too, where it may run; FUSEDOPT_BACKEND=cuda refuses NumPy's arrays.
        modules = {cuda.module(): None} if backend["runs"] == "cuda" else {}
        modules |= {np: None} if backend["asked"] != "cuda" else {}
        try:
            outcomes = [dataclasses.asdict(outcome) for xp in modules for outcome in self_check(xp)]
        except Exception as error:  # whatever it is, it is what the doctor was called for
            backend |= {"runs": None, "why": f"its self-check ended in {type(error).__name__}: {error}"}
    return {
        "versions": versions(),
        "cuda": _cuda(),
        "cpu": {"numba": _version("numba"), "missing": _or_error(numba_problem)},
        "folders": _folders(),
        "settings": {
            "threads": _or_error(thread_count),
            **{name: value for name, value in sorted(os.environ.items()) if name.startswith("FUSEDOPT_")},
        },
        "backend": backend,
        "memory": memory(),
        "self_check": outcomes,
        "healthy": bool(backend["runs"]) and not any(outcome["unequal"] for outcome in outcomes),
    }


def memory() -> dict[str, str]:
    """What AdamW keeps for 1 G parameters and moves in a step, by storage; `bench --memory` has all of them."""
    rule, found = AdamW(), {}
    for choice in (storage_choices.CHOICES[name] for name in STORAGES):
        kept, moved = choice.in_all(rule), choice.moved(rule)
        options = ", ".join(filter(None, (choice.dtype, choice.written)))
        found[choice.name] = f"{kept:.3g} GB in all, {moved:.3g} GB a step for 1 G parameters: {options}"
    return found


def versions() -> dict[str, str | None]:
    """Of Python and the libraries, by name; None for one that is not installed. None of them is imported for it."""
    torch = _version("torch")
    return {
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "fusedopt": fusedopt.__version__,
        "numpy": np.__version__,
        "ml_dtypes": _version("ml_dtypes"),
        "cupy": ", ".join(f"{name} {version}" for name in CUPY if (version := _version(name))) or None,
        "torch": torch,
        "torch_build": torch and _torch_build(torch),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_build(version: str) -> str:
    """What the part behind the plus says: `2.11.0+cu130` is built for CUDA 13.0."""
    build = version.partition("+")[2]
    if match := re.fullmatch(r"cu(\d+)(\d)", build):
        return f"CUDA {match[1]}.{match[2]}"
    return {"cpu": "CPU only", "": "not in its version"}.get(build, build)


def gpu_names() -> list[str]:
    """Of the GPUs that CUDA can use, in its order."""
    if cuda.problem():
        return []
    runtime = cuda.module().cuda.runtime
    return [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]


def _cuda() -> dict[str, Any]:
    def dotted(name: str) -> str | None:
        number = getattr(cuda.module().cuda.runtime, name)()  # 13020, or 0 without a driver
        return f"{number // 1000}.{number % 1000 // 10}" if number else None

    return {
        "gpus": _or_error(gpu_names),
        "driver": _or_error(lambda: dotted("driverGetVersion")),
        "runtime": _or_error(lambda: dotted("runtimeGetVersion")),
        "nvrtc": _or_error(lambda: ".".join(map(str, compiler.nvrtc_version()))),
        "missing": _or_error(cuda.problem),
    }


def _or_error(value: Callable[[], Any]) -> Any:
    """The value, or the first line of the error that it ends in."""
    try:
        return value()
    except Exception as error:  # a doctor goes on
        return f"{type(error).__name__}: {error}".partition("\n")[0]


def _folders() -> dict[str, Any]:
    cache = compiler.cache_folder().absolute()
    sizes = [path.stat().st_size for path in cache.glob("*.cubin")] if cache.is_dir() else []
    there = next(path for path in (cache, *cache.parents) if path.exists())  # the folder is made when it is needed
    return {
        "cache": str(cache),
        "cache_writable": there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        "cache_entries": len(sizes),
        "cache_bytes": sum(sizes),
        "kernels": _or_error(lambda: str(compiler.kernels_folder())),
    }


def _backend() -> dict[str, Any]:
    """Which backend is asked for, which runs (None: what was asked for cannot), and why."""
    asked = os.environ.get("FUSEDOPT_BACKEND", "auto")
    try:
        asked = chosen_backend()
        runs = "cuda" if fusedopt.array_module() is not np else cpu_backend().name
    except Exception as error:  # a name that is none, or something that cannot work
        return {"asked": asked, "runs": None, "why": str(error)}
    if runs == "cuda":
        why = "there are a GPU, its driver, CuPy and NVRTC"
    elif asked == runs:
        why = "it is asked for"
    else:
        why = "CUDA cannot work here; above is what is missing"
        why += ". Of the CPU's two, numba is the faster" if runs == "numba" else ""
    return {"asked": asked, "runs": runs, "why": why}


def _print(found: dict[str, Any]) -> None:
    table = Table(show_header=False)
    for section in ("versions", "cuda", "cpu", "folders", "settings", "backend", "memory"):
        for name, value in found[section].items():
            label = Text(f"{section} " if name == next(iter(found[section])) else "", "bold")
            table.add_row(label, name.replace("_", " ") if name.islower() else name, _text(value))
        table.add_section()
    outcomes, runs = found["self_check"], found["backend"]["runs"]
    for backend, optimizer in dict.fromkeys((o["backend"], o["optimizer"]) for o in outcomes):
        these = [o for o in outcomes if (o["backend"], o["optimizer"]) == (backend, optimizer)]
        wrong = ", ".join(
            f"{o['unequal']:,} numbers of {o['dtype']} differ from the rule's" for o in these if o["unequal"]
        )
        right = f"{', '.join(o['dtype'] for o in these)}: the rule's bits"
        verdict = Text(wrong, "red") if wrong else Text(right, "green")
        table.add_row(Text("self-check" if these[0] is outcomes[0] else "", "bold"), f"{optimizer}, {backend}", verdict)
    console = Console(highlight=False)
    console.print(table)
    if found["healthy"]:
        console.print(f"All is well; fusedopt.array_module() is {'cupy' if runs == 'cuda' else 'numpy'}.")
    else:
        console.print("[red]fusedopt does not work here: see backend and self-check.[/red]")


def _text(value: Any) -> Text:
    if isinstance(value, list):
        value = ", ".join(value) or None
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return Text("-" if value is None else f"{value:,}" if isinstance(value, int) else value)
