"""`python -m fusedopt bench`: the fused step beside what one writes by hand, and beside torch where it is installed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import fusedopt
from fusedopt.backends.numpy import thread_count
from fusedopt.cli.character_model import Array
from fusedopt.cli.naive import NaiveAdam, NaiveSGD, PreallocatedAdam, PreallocatedSGD
from fusedopt.cli.peak_memory import peak_of_arrays, peak_of_torch
from fusedopt.cli.side_by_side import TOGETHER, Contestant, allowed_difference, interleaved, warm_up

OURS = {
    "sgd": (fusedopt.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "adam": (fusedopt.Adam, {"lr": 1e-3}),
    "adamw": (fusedopt.AdamW, {"lr": 1e-3, "weight_decay": 1e-2}),
}
BY_HAND: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, float]]] = {
    "sgd": (NaiveSGD, PreallocatedSGD, {}),
    "adam": (NaiveAdam, PreallocatedAdam, {}),
    "adamw": (NaiveAdam, PreallocatedAdam, {"decay": 1e-2}),
}
TORCH = {
    "torch, for-loop": {"foreach": False, "fused": False},
    "torch, foreach": {"foreach": True},
    "torch, fused": {"fused": True},
}
COPY = "a copy"


def count(text: str) -> int:
    """`32M` as 32,000,000."""
    match = re.fullmatch(r"(\d+)([KM]?)", text.upper())
    number = int(match[1]) * {"": 1, "K": 1_000, "M": 1_000_000}[match[2]] if match else 0
    if number == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, such as 500K or 32M, got {text!r}")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--optimizer", choices=OURS, default="adamw", help="default: %(default)s")
    parser.add_argument("--size", type=count, default="32M", help="parameters, float32 (default: %(default)s)")
    parser.add_argument("--tensors", type=count, default="64", help="that they are in (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where one works")
    parser.add_argument("--repeats", type=count, default="9", help="timings of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")


def run(arguments: argparse.Namespace) -> int:
    """0; 1 where a contestant computes something else than fusedopt."""
    if arguments.tensors > arguments.size:
        raise ValueError(f"--tensors must be at most --size, {arguments.size}, got {arguments.tensors}.")
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        raise FileNotFoundError(f"--json {arguments.json}: its folder does not exist.")
    if arguments.device:
        os.environ["FUSEDOPT_BACKEND"] = {"cpu": "numpy", "cuda": "cuda"}[arguments.device]
    xp = fusedopt.array_module()
    contestants = dict(_contestants(xp, arguments.optimizer, *_arrays(arguments.size, arguments.tensors)))
    figures = measured(xp, arguments, contestants)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    _print(Console(highlight=False), figures)
    return 0 if all(row["difference"] <= figures["allowed_difference"] for row in figures["contestants"]) else 1


def _arrays(size: int, tensors: int) -> tuple[list[Array], list[Array]]:
    """Weights and gradients, in tensors of nearly the same size."""
    rng = np.random.default_rng(0)
    weights = (0.02 * rng.standard_normal(size, np.float32)).astype(np.float32, copy=False)
    return np.array_split(weights, tensors), np.array_split(rng.standard_normal(size, np.float32), tensors)


@dataclasses.dataclass(frozen=True)
class Measured(Contestant):
    """A contestant that also tells its memory.

    Attributes:
        kept: Bytes of the arrays that it has between two steps.
        peak: The most that a step has beyond them; None where nobody can tell.
    """

    kept: Callable[[], int]
    peak: Callable[[], int | None]


def _contestants(
    xp: ModuleType, name: str, weights: list[Array], gradients: list[Array]
) -> Iterator[tuple[str, Measured]]:
    """Each with arrays of its own."""

    def of_arrays(step: Callable[[], object], parameters: Callable[[], Any], arrays: Callable[[], Any]) -> Measured:
        return Measured(xp, step, parameters, lambda: _bytes(arrays()), lambda: peak_of_arrays(xp, step))

    cls, options = OURS[name]
    ours = [fusedopt.Parameter(xp.array(array)) for array in weights]
    optimizer = cls(ours, **options)
    for parameter, gradient in zip(ours, gradients, strict=True):
        parameter.grad = xp.asarray(gradient)
    arenas = list(optimizer.arenas())
    yield (
        f"fusedopt.{cls.__name__}",
        of_arrays(
            optimizer.step,
            lambda: [p.data for p in ours],
            lambda: [a for arena in arenas for a in (arena.data, arena.gradients, *arena.states.values())],
        ),
    )
    library = "NumPy" if xp is np else "CuPy"
    *classes, keywords = BY_HAND[name]
    for title, by_hand in zip((f"{library}, whole arrays", f"{library}, out="), classes, strict=True):
        it = by_hand([xp.array(array) for array in weights], [xp.array(array) for array in gradients], **keywords)
        yield title, of_arrays(it.step, lambda it=it: it.p, lambda it=it: vars(it).values())
    if find_spec("torch"):
        yield from _torch_contestants(xp, cls.__name__, options, weights, gradients)


def _bytes(arrays: Any) -> int:
    """Of arrays and lists of them; other things have none."""
    return sum(_bytes(array) if isinstance(array, list) else getattr(array, "nbytes", 0) for array in arrays)
