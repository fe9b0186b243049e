"""`python -m fusedopt bench`: a step of fusedopt beside everything one could take instead, on the machine at hand."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import fusedopt
from fusedopt.backends import chosen_backend, cpu_backend
from fusedopt.storage_choices import CHOICES
from fusedopt.tracing import trace

if TYPE_CHECKING:
    from fusedopt.cli.bench.machine import Machine
    from fusedopt.cli.bench.models import Model
    from fusedopt.cli.bench.peers import Way

SIZE, TENSORS = 32_000_000, 64
PICTURES = (".png", ".svg", ".pdf")


def count(text: str) -> int:
    """`32M` as 32,000,000."""
    match = re.fullmatch(r"(\d+)([KM]?)", text.upper())
    number = int(match[1]) * {"": 1, "K": 1_000, "M": 1_000_000}[match[2]] if match else 0
    if number == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, such as 9, 500K or 32M, got {text!r}")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fusedopt.cli.bench.models import MODELS
    from fusedopt.cli.bench.peers import WAYS
    from fusedopt.cli.rule_named import OURS

    titles = "; ".join(way.title for way in WAYS[1:])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where one works")
    parser.add_argument(
        "--model", nargs="+", metavar="NAME", default=[], help=f"{', '.join(MODELS)}, or FILE.json: {{name: [lengths]}}"
    )
    parser.add_argument("--layers", type=count, metavar="N", help="of the models; default: all that fit in memory")
    parser.add_argument(
        "--sizes", "--size", nargs="+", type=count, metavar="N", help="float32 parameters in equal tensors (32M)"
    )
    parser.add_argument("--tensors", type=count, metavar="N", help=f"that they lie in ({TENSORS})")
    parser.add_argument(
        "--optimizer",
        nargs="+",
        metavar="RULE",
        default=["adamw"],
        help=f"{', '.join(OURS)}, module:Class or path/to/file.py:Class; default: adamw",
    )
    parser.add_argument(
        "--storage",
        nargs="+",
        metavar="NAME",
        help=f"time fusedopt with these storages too, or tell the memory of these alone: {', '.join(CHOICES)}",
    )
    parser.add_argument(
        "--memory", action="store_true", help="bytes kept and moved by each storage, and by others; times nothing"
    )
    parser.add_argument("--peers", nargs="+", metavar="TITLE", help=f"beginnings of: {titles}; default: all")
    parser.add_argument("--repeats", type=count, default="9", metavar="N", help="timings of each (%(default)s)")
    parser.add_argument("--warm", action="store_true", help="leave small tensors in the caches between two steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures; as CSV where FILE ends in .csv")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them")


def run(arguments: argparse.Namespace) -> int:
    """0; 1 where one of the peers computes something else than fusedopt."""
    from fusedopt.cli.bench import memory
    from fusedopt.cli.bench.models import MODELS, from_file
    from fusedopt.cli.bench.peers import WAYS, stored_way

    models = {name: from_file(Path(name)) for name in arguments.model if name.lower().endswith(".json")} | MODELS
    check(arguments, models)
    if arguments.memory:
        return memory.tell(arguments, models)
    ways = chosen_ways(WAYS, arguments.peers)
    machine = chosen_machine(arguments.device)
    if arguments.peers is None and machine.kind == "cpu":  # the first way is one of the CPU's two
        ways = [way for way in ways if way.title.lower() != f"fusedopt, {cpu_backend().name}"]
    ways += [stored_way(CHOICES[name]) for name in arguments.storage or ()]
    return compare(arguments, machine, [models[name] for name in arguments.model], ways)


def check(arguments: argparse.Namespace, models: Mapping[str, Model]) -> None:
    """Raise for what cannot work, before anything is measured."""
    from fusedopt.cli.bench.memory import chosen_choices
    from fusedopt.cli.bench.peers import optimizer_named

    chosen_backend()
    for name in arguments.optimizer:
        cls, options = optimizer_named(name)
        trace(cls.rule(**options))
    for name in arguments.model:
        if name not in models:
            raise ValueError(f"--model: there is no {name!r}; there are {', '.join(models)}, or a FILE.json of yours.")
        if arguments.layers is not None and arguments.layers > models[name].layers:
            raise ValueError(f"--layers must be at most {name}'s {models[name].layers}, got {arguments.layers}.")
    if arguments.layers is not None and not arguments.model:
        raise ValueError(f"--layers {arguments.layers} is of a model; give one with --model.")
    chosen_choices(arguments.storage)
    for option in ("plot", "peers", "warm"):
        if arguments.memory and getattr(arguments, option):
            raise ValueError(f"--memory times nothing, which --{option} is for; leave it out.")
    if arguments.model and (arguments.sizes or arguments.tensors):
        raise ValueError("--model has tensors of its own; leave --sizes and --tensors out.")
    smallest = min(arguments.sizes or [SIZE])
    if (arguments.tensors or 1) > smallest:
        raise ValueError(f"--tensors must be at most --sizes, {smallest}, got {arguments.tensors}.")
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if path and not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"{option} {path}: its folder does not exist.")
    if arguments.plot and arguments.plot.suffix.lower() not in PICTURES:
        raise ValueError(f"--plot {arguments.plot}: must end in .png, .svg or .pdf.")
    if arguments.plot and not find_spec("matplotlib"):
        raise ImportError("--plot needs matplotlib: pip install 'fusedopt[plot]'")


def chosen_ways(ways: Sequence[Way], beginnings: Sequence[str] | None) -> list[Way]:
    """fusedopt, and the ways whose titles begin so, in whatever case; all without beginnings."""
    ours, *others = ways
    if beginnings is None:
        return [ours, *others]
    for beginning in beginnings:
        if not any(way.title.lower().startswith(beginning.lower()) for way in ways):
            raise ValueError(
                f"--peers: none is called {beginning!r}; there are {'; '.join(way.title for way in others)}."
            )
    return [ours, *(way for way in others if way.title.lower().startswith(tuple(b.lower() for b in beginnings)))]


def chosen_machine(device: str | None) -> Machine:
    """The one to be measured. `FUSEDOPT_BACKEND` is changed where it says something else than `device`.

    Raises:
        RuntimeError: `device` is cuda, and CUDA cannot work here.
    """
    from fusedopt.cli.bench.gpu import Gpu
    from fusedopt.cli.bench.machine import Cpu

    if device == "cuda":
        os.environ["FUSEDOPT_BACKEND"] = "cuda"
    elif device == "cpu" and os.environ.get("FUSEDOPT_BACKEND", "").strip().lower() == "cuda":
        del os.environ["FUSEDOPT_BACKEND"]
    return Cpu() if device == "cpu" or fusedopt.array_module() is np else Gpu(profiler=False)


def compare(arguments: argparse.Namespace, machine: Machine, models: Sequence[Model], ways: Sequence[Way]) -> int:
    """Measure, print, save and draw."""
    from rich.console import Console

    from fusedopt.cli.bench import table
    from fusedopt.cli.bench.gpu import Gpu
    from fusedopt.cli.bench.measure import Task, launches, measure
    from fusedopt.cli.bench.peers import optimizer_named
    from fusedopt.cli.bench.row import Row, rows, save
    from fusedopt.cli.bench.work import works
    from fusedopt.tracing import trace
    from fusedopt.traffic import summed

    console = Console(highlight=False)
    tasks: list[Task] = []
    about = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "version": version()}
    sizes = arguments.sizes or ([] if models else [SIZE])
    tensors = arguments.tensors or min([TENSORS, *sizes])
    all_rows: list[Row] = []
    told: set[str] = set()
    for work in works(machine, models, arguments.layers, sizes, tensors):
        for optimizer in arguments.optimizer:
            cls, options = optimizer_named(optimizer)
            rule = cls.rule(**options)
            once_more = len(summed(trace(rule)))
            task = Task(work, optimizer, len(rule.kept_states), arguments.repeats, arguments.warm, once_more)
            with table.progress(f"{work.title}, {optimizer}") as say:
                found = measure(machine, task, ways, say)
            new = list(rows(machine, task, ways, found, about))
            absent = why_absent(found.absent, optimizer, ways)
            table.show(console, new, {title: why for title, why in absent.items() if title not in told})
            told |= set(absent)
            all_rows += new
            tasks += [task] * len(new)
            if arguments.json:
                save(arguments.json, all_rows)  # now: what is measured is not lost where a later one fails
    if machine.kind == "cuda":
        machine, by_title = Gpu(), {way.title: way for way in ways}  # with a profiler, which slows all that comes after
        counts = [launches(machine, task, by_title[row.peer]) for task, row in zip(tasks, all_rows, strict=True)]
        all_rows = [dataclasses.replace(row, launches=count) for row, count in zip(all_rows, counts, strict=True)]
        if arguments.json:
            save(arguments.json, all_rows)
        console.print(table.launches(all_rows))
    console.print(table.method(all_rows))
    if busy := table.warning(all_rows[0]):
        console.print(busy, style="bold")
    if arguments.plot:
        from fusedopt.cli.bench.picture import draw

        draw(arguments.plot, all_rows)
    wrong = [row for row in all_rows if not row.agrees]
    for row in wrong:
        print(
            f"bench: {row.peer} computes something else: {row.optimizer} differs by {row.difference}.", file=sys.stderr
        )
    return 1 if wrong else 0


def why_absent(absent: Mapping[str, str], optimizer: str, ways: Sequence[Way]) -> dict[str, str]:
    """Why ways are absent, by title; those that can never step a rule of the user's own are one entry."""
    from fusedopt.cli.bench.peers import is_own

    never = [way.title for way in ways if way.title in absent and is_own(optimizer) and not way.any_rule]
    others = {title: why for title, why in absent.items() if title not in never}
    return others | ({"; ".join(never): "none of these can step a rule of one's own"} if never else {})


def version() -> str:
    """fusedopt's, and the commit where this is a checkout; with "+changes" where files are not as in the commit."""
    checkout = Path(fusedopt.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return fusedopt.__version__
    try:
        head = _git(checkout, "rev-parse", "--short=12", "HEAD")
        changes = "+changes" if _git(checkout, "status", "--porcelain", "fusedopt", "kernels") else ""
    except (OSError, subprocess.SubprocessError):
        return fusedopt.__version__
    return f"{fusedopt.__version__} ({head}{changes})"


def _git(checkout: Path, *words: str) -> str:
    command = ["git", "-C", str(checkout), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
