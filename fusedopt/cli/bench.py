"""`python -m fusedopt bench`: the fused step beside what one writes by hand, and beside torch where it is installed."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import fusedopt
from fusedopt.backends.threads import thread_count
from fusedopt.cli.contestants import OPTIMIZERS, contestants
from fusedopt.cli.doctor import gpu_names, versions
from fusedopt.cli.peak_memory import peak_of_arrays, peak_of_torch
from fusedopt.cli.side_by_side import TOGETHER, Contestant, allowed_difference, interleaved, warm_up

COPY = "copy"


def count(text: str) -> int:
    """`32M` as 32,000,000."""
    match = re.fullmatch(r"(\d+)([KM]?)", text.upper())
    number = int(match[1]) * {"": 1, "K": 1_000, "M": 1_000_000}[match[2]] if match else 0
    if number == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, such as 9, 500K or 32M, got {text!r}")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="default: %(default)s")
    parser.add_argument("--size", type=count, default="32M", metavar="N", help="float32 parameters (%(default)s)")
    parser.add_argument("--tensors", type=count, default="64", metavar="N", help="that they lie in (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where one works")
    parser.add_argument("--repeats", type=count, default="9", metavar="N", help="timings of each (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")


def run(arguments: argparse.Namespace) -> int:
    """0; 1 where one of them computes something else than fusedopt."""
    if arguments.tensors > arguments.size:
        raise ValueError(f"--tensors must be at most --size, {arguments.size}, got {arguments.tensors}.")
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        raise FileNotFoundError(f"--json {arguments.json}: its folder does not exist.")
    if arguments.device:
        os.environ["FUSEDOPT_BACKEND"] = {"cpu": "numpy", "cuda": "cuda"}[arguments.device]
    figures = measured(fusedopt.array_module(), arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    _print(Console(highlight=False), figures)
    for row in figures["rows"]:
        if not row["difference"] <= figures["allowed_difference"]:  # nor is NaN
            print(f"bench: {row['name']} computes something else: it differs by {row['difference']}.", file=sys.stderr)
            return 1
    return 0


def measured(xp: ModuleType, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, with what they were measured on."""
    size = arguments.size
    rng = np.random.default_rng(0)
    weights = np.array_split(np.float32(0.02) * rng.standard_normal(size, np.float32), arguments.tensors)
    gradients = np.array_split(rng.standard_normal(size, np.float32), arguments.tensors)
    taking_part = contestants(xp, arguments.optimizer, weights, gradients)
    differences = warm_up(taking_part)
    first = next(iter(taking_part))
    allowed = allowed_difference(taking_part[first].parameters())
    times = interleaved({**taking_part, COPY: _copy(xp, size)}, arguments.repeats)
    cls, options = OPTIMIZERS[arguments.optimizer]
    # The least that a step can move: read and write parameter and states, read the gradient.
    ideal = 4 * (3 + 2 * len(cls.rule(**options).kept_states))
    copy = float(np.median(times[COPY]))
    copied = size * 8 / copy  # read and written
    rows = []
    for name, contestant in taking_part.items():
        low, median, high = (float(q) for q in np.percentile(times[name], (25, 50, 75)))
        rows.append(
            {
                "name": name,
                "seconds": median,
                "seconds_middle_half": [low, high],
                "ratio": median / float(np.median(times[first])),
                "bytes_per_second": size * ideal / median,
                "share_of_copy": size * ideal / median / copied,
                "extra_bytes": _peak(contestant),
                "kept_bytes_a_parameter": _bytes(contestant.arrays()) / size,
                "difference": differences[name],
            }
        )
    return {
        "optimizer": arguments.optimizer,
        "options": options,
        "size": size,
        "tensors": arguments.tensors,
        "repeats": arguments.repeats,
        "device": "cpu" if xp is np else gpu_names()[xp.cuda.Device().id],
        "threads": thread_count(),
        "versions": versions(),
        "ideal_bytes_a_parameter": ideal,
        "copy_seconds": copy,
        "copy_bytes_per_second": copied,
        "allowed_difference": allowed,
        "rows": rows,
    }


def _copy(xp: ModuleType, size: int) -> Contestant:
    """A copy of as many floats, on the CPU by as many threads as the fused step has: the speed of the memory."""
    source, to = xp.ones(size, np.float32), xp.ones(size, np.float32)
    if xp is not np:
        return Contestant(xp, lambda: xp.copyto(to, source), list)
    pieces = [np.array_split(array, thread_count()) for array in (to, source)]
    pool = ThreadPoolExecutor(thread_count())
    return Contestant(xp, lambda: list(pool.map(np.copyto, *pieces)), list)


def _peak(contestant: Contestant) -> int | None:
    if contestant.of_torch:
        return peak_of_torch(contestant.xp is not np, contestant.step)
    return peak_of_arrays(contestant.xp, contestant.step)


def _bytes(arrays: Iterable[Any]) -> int:
    """Of arrays and lists of them; what is neither has none."""
    return sum(_bytes(array) if isinstance(array, list) else getattr(array, "nbytes", 0) for array in arrays)


def _print(console: Console, figures: dict[str, Any]) -> None:
    where = f"{figures['threads']} CPU threads" if figures["device"] == "cpu" else figures["device"]
    table = Table(title=f"{figures['size']:,} float32 parameters in {figures['tensors']} tensors, {where}", box=SIMPLE)
    table.add_column(no_wrap=True)
    for heading in ("ms", "±", "ratio", "GB/s", "of copy", "extra MB", "kept B"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in figures["rows"]:
        low, high = row["seconds_middle_half"]
        extra = row["extra_bytes"]
        table.add_row(
            row["name"],
            _three_digits(row["seconds"] * 1e3),
            f"{(high - low) / 2 / row['seconds']:.0%}",
            _three_digits(row["ratio"]),
            _three_digits(row["bytes_per_second"] / 1e9),
            f"{row['share_of_copy']:.0%}",
            "?" if extra is None else f"{extra / 1e6:,.1f}",
            f"{row['kept_bytes_a_parameter']:.1f}",
        )
    console.print(table)
    worst = max(row["difference"] for row in figures["rows"])
    torch_memory = (
        "its allocator's peak" if figures["device"] != "cpu" else "how far the process's resident memory rose"
    )
    console.print(
        f"One process, {figures['threads']} CPU threads for each; {TOGETHER} steps of warm-up, then"
        f" {figures['repeats']} rounds in which each is timed in turn: the median, ± half the span of the middle half"
        f" of them. GB/s counts the {figures['ideal_bytes_a_parameter']} bytes a parameter that a step must move,"
        f" whatever it does move; a copy by the same threads, timed in the same rounds, moved"
        f" {figures['copy_bytes_per_second'] / 1e9:,.3g} GB/s. Extra: the most memory that a step has beyond what is"
        f" kept; of torch {torch_memory}. Kept: bytes a parameter of parameters, gradients, states and scratch arrays."
        f" After the warm-up the parameters differ from fusedopt's by {worst:.1e} at most; allowed is"
        f" {figures['allowed_difference']:.1e}."
    )


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
