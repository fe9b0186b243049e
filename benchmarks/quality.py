"""Whether models train as well with fewer bits as in float32: `python benchmarks/quality.py`, half an hour on 2 cores.

Three tasks, some optimizers, every way of keeping weights and states, three seeds; and the masters beside each other
over one training. Each result is kept as soon as it is there, and measured anew only where its numbers would be others,
so a run that was broken off goes on. Then the pictures and the tables of docs/low_precision.md are written.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import quality_moments
import quality_page
import quality_pictures
from quality_masters import compared
from quality_runs import RECIPES, Choice, Recipe, made_of, train
from quality_tasks import TASKS
from record import RESULTS, circumstances

RESULT = RESULTS / "cpu" / "quality.json"
SEEDS = 3
MASTER_STEPS = ((RECIPES[0], 3000), (RECIPES[1], 600))  # of the comparisons of masters: of arrays, and of tensors
# Of processes that train side by side, which is faster than threads in each. Libraries read it when they begin.
ENVIRONMENT = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "FUSEDOPT_NUM_THREADS"), "1"),
    "FUSEDOPT_BACKEND": "numpy",  # the others have its bits
}
EMPTY: dict[str, Any] = {"about": {}, "moments": {}, "masters": [], "runs": {}}
Job = tuple[Recipe, Choice, int]


def jobs(recipes: Sequence[Recipe], seeds: int) -> Iterator[Job]:
    """All trainings, those of one seed together."""
    for seed in range(seeds):
        for recipe in recipes:
            for choice in recipe.choices:
                yield recipe, choice, seed


def name_of(recipe: Recipe, choice: Choice, seed: int) -> str:
    """Of a training, in the result file."""
    return f"{recipe.title}, {choice.title}, seed {seed}"


def missing(found: dict[str, Any], wanted: Sequence[Job]) -> list[Job]:
    """The trainings that are not there, or were made of something else."""
    hashes = {name_of(*job[:2], 0): made_of(*job[:2]) for job in wanted if job[2] == 0}
    return [job for job in wanted if found.get(name_of(*job), {}).get("made_of") != hashes[name_of(*job[:2], 0)]]


def write(path: Path, found: dict[str, Any]) -> None:
    """A line for each training."""
    runs = ",\n".join(f"    {json.dumps(name)}: {json.dumps(run)}" for name, run in sorted(found["runs"].items()))
    masters = ",\n".join(f"    {json.dumps(one)}" for one in found["masters"])
    about, moments = json.dumps(found["about"]), json.dumps(found["moments"])
    head = f'{{\n  "about": {about},\n  "moments": {moments},\n  "masters": [\n{masters}\n  ],\n'
    text = f'{head}  "runs": {{\n{runs}\n  }}\n}}\n'
    scratch = path.with_suffix(".part")
    scratch.write_text(text)
    scratch.replace(path)


def main(words: Sequence[str] | None = None) -> int:
    """0; 1 where a promised loss is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    parser.add_argument("--draw", action="store_true", help="train nothing: pictures and tables of what is there")
    arguments = parser.parse_args(words)
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else copy.deepcopy(EMPTY)
    recipes = [recipe for recipe in RECIPES if recipe.task in arguments.tasks]
    if not arguments.draw:
        measure(found, recipes, arguments)
    quality_pictures.draw(found)
    quality_page.PAGE.write_text(quality_page.page_with_tables(found))
    missed = quality_page.missed(found)
    absent = sum(name_of(*job) not in found["runs"] for job in jobs(RECIPES, SEEDS))
    print("\n".join(missed) or "every promised loss is within 1 % of float32's", f"({absent} trainings are not there)")
    return 1 if missed else 0


def measure(found: dict[str, Any], recipes: Sequence[Recipe], arguments: argparse.Namespace) -> None:
    """Add to what was found what is missing, and write it down each time."""
    with processes(arguments.jobs) as pool:
        todo = missing(found["runs"], list(jobs(recipes, arguments.seeds)))
        running = {pool.submit(train, *job): name_of(*job) for job in todo}
        masters = [pool.submit(compared, *each) for each in MASTER_STEPS]
        moments = pool.submit(quality_moments.compared)
        for number, done in enumerate(as_completed(running), 1):
            name, run = running[done], done.result()
            found["runs"][name] = run
            print(f"{number}/{len(todo)}  {name}: {run['losses'][-1]:.4f}, {run['seconds']:.0f} s", flush=True)
            write(arguments.out, found)
        found["masters"], found["moments"] = [one.result() for one in masters], moments.result()
    found["about"] = circumstances()
    write(arguments.out, found)


@contextlib.contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """So many, in `ENVIRONMENT`, which is this process's as long."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            yield pool
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


if __name__ == "__main__":
    sys.exit(main())
