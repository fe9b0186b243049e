"""The study of quality, small: what `benchmarks/quality.py` trains, and that its page is what it found."""

# ruff: noqa: E402  # the benchmarks are found once their folder is on the path

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import quality
import quality_glyphs
import quality_masters
import quality_moments
import quality_page
import quality_pictures
from fusedopt import eight_bits
from quality_runs import ALL, CHANCE, FLOAT32, PLAIN, RANDOM_INT8, RECIPES, SPLIT, SPLIT24_INT8, made_of, train
from quality_tasks import TASKS

CHARACTERS = RECIPES[0]
STEPS = 200


@pytest.fixture(autouse=True)
def numpy_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes with a thread each: threads of a busy machine wait for each other in every product."""
    with quality.processes(2) as found:
        yield found


def test_a_split_master_is_the_float32_one_to_the_bit_over_a_training(pool: ProcessPoolExecutor) -> None:
    found = pool.submit(quality_masters.compared, CHARACTERS, STEPS).result()
    assert found["unequal"] == {"float32": 0, "split": 0}
    # A weight is in the middle of two bfloat16 with a chance of 2^-16, and next to an even one in half of these cases.
    assert 0 < found["unequal_seen"] < 3 * found["elements"] / 2**17
    assert 0 < found["split24_distance"] < 1e-3  # up to 2^-17 of each weight is lost at each step


def test_few_bytes_train_as_float32_does_and_plain_bfloat16_does_not(pool: ProcessPoolExecutor) -> None:
    choices = FLOAT32, PLAIN, RANDOM_INT8, SPLIT24_INT8, SPLIT
    runs = pool.map(train, [CHARACTERS] * len(choices), choices, [0] * len(choices), [STEPS] * len(choices))
    best, stalled, *others = (run["losses"][-1] for run in runs)
    assert best < 0.6 * np.log(94)  # it has learned: a uniform guess costs the logarithm
    assert all(abs(loss / best - 1) < 0.005 for loss in others), others
    assert stalled > 1.01 * best


def test_a_second_moment_in_bfloat16_decays_where_it_is_rounded_at_random_and_not_to_the_nearest() -> None:
    found = quality_moments.compared(size=4096, steps=500)
    assert found["bfloat16"] > 1.1
    assert abs(found["bfloat16, stochastic"] - 1) < 0.01
    assert abs(found["int8"] - 1) < 0.01


@pytest.mark.parametrize("name", TASKS)
def test_the_gradients_of_a_task_are_those_of_its_loss(name: str) -> None:
    task: Any = TASKS[name]()
    weights = task.start(0)
    gradients = task.gradients(weights, 0, 0)
    assert [g.shape for g in gradients] == [w.shape for w in weights]
    again = task.gradients(task.start(0), 0, 0)
    assert all(np.array_equal(a, b) for a, b in zip(gradients, again))
    task.held_out = task.batch(0, 0)
    square = sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients)
    small = 2e-3 / square  # a step that lowers the loss by 2e-3, were it linear
    moved = [w - np.float32(small) * g for w, g in zip(weights, gradients)]
    assert task.loss(weights) - task.loss(moved) == pytest.approx(2e-3, rel=0.1)


def test_glyphs_are_moved_whole() -> None:
    drawn = quality_glyphs.typefaces().ink
    assert len(drawn) == 16  # as the page says
    images, classes = quality_glyphs.batch((1,), 500)
    assert images.shape == (500, 1, 16, 16)
    assert set(classes.tolist()) <= set(range(len(quality_glyphs.CLASSES)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_glyphs, "NOISE", 0.0)
        quiet = quality_glyphs.batch((1,), 500)[0]
    ink = {round(float(one.sum()), 2) for one in drawn.reshape(-1, 256)}
    assert {round(float(image.sum()), 2) for image in quiet} <= ink


def test_a_training_is_made_again_once_its_numbers_would_change(monkeypatch: pytest.MonkeyPatch) -> None:
    two = dataclasses.replace(CHARACTERS, choices=(SPLIT, SPLIT24_INT8))
    jobs = list(quality.jobs([two], 2))
    found = {quality.name_of(*job): {"made_of": made_of(*job[:2])} for job in jobs}
    assert quality.missing(found, jobs) == []
    del found["characters, AdamW, split, seed 1"]
    assert quality.missing(found, jobs) == [(two, SPLIT, 1)]
    coarser = dataclasses.replace(eight_bits.CODES["unsigned"], octaves=1)
    monkeypatch.setitem(eight_bits.CODES, "unsigned", coarser)
    assert quality.missing(found, jobs) == [(two, SPLIT24_INT8, 0), (two, SPLIT, 1), (two, SPLIT24_INT8, 1)]


def made_up(loss: float) -> dict[str, Any]:
    """Results in which 8-bit states end at this loss, and all else at 2."""
    runs = {
        quality.name_of(CHARACTERS, choice, seed): {
            "task": "characters",
            "optimizer": "AdamW",
            "choice": choice.title,
            "seed": seed,
            "seconds": 1.0,
            "steps": [0, 10],
            "losses": [4.0, loss if "int8" in choice.title else 2.0],
        }
        for choice in ALL
        for seed in (0, 1)
    }
    return {**quality.EMPTY, "runs": runs, "about": {"cpu": "a machine", "date": "2026-01-01"}}


def test_a_promise_that_is_missed_is_named_and_bold() -> None:
    assert quality_page.missed(made_up(2.019)) == []
    missed = quality_page.missed(made_up(2.1))
    assert missed[0] == "characters, AdamW: split, int8 is +5.00 % from float32"
    assert len(missed) == 3
    assert "| split, int8 | **+5.00 ± 0.00** |" in quality_page.table(made_up(2.1), RECIPES)
    assert f"| {CHANCE.title} | +0.00 ± 0.00 |" in quality_page.table(made_up(2.1), RECIPES)


def test_results_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_pictures, "IMAGES", tmp_path / "images")
    quality_pictures.draw(made_up(2.0))
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_the_program_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    program = re.search(r"```python\n(.*?)```", quality_page.PAGE.read_text(), re.DOTALL)
    assert program is not None
    exec(compile(program[1], "the page", "exec"), {})
    assert "'exp_avg_scale'" in capsys.readouterr().out


def test_the_page_is_what_was_found() -> None:
    found = json.loads(quality.RESULT.read_text())
    page = quality_page.PAGE.read_text()
    assert quality_page.page_with_tables(found) == page, "run python benchmarks/quality.py --draw"
    assert quality_page.missed(found) == []
