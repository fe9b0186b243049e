"""The demo: its model's gradients, its curve, and what it claims of itself."""

from __future__ import annotations

import argparse
import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import fusedopt
from fusedopt.cli import demo, main, side_by_side, torch_demo
from fusedopt.cli.character_model import CONTEXT, CharacterModel, Text, english_text
from fusedopt.cli.loss_curve import text_curve


@pytest.fixture(scope="module")
def text() -> Text:
    return Text()


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(words)


def test_gradients_are_those_of_finite_differences() -> None:
    xp = fusedopt.array_module()
    rng = np.random.default_rng(5)
    model = CharacterModel(vocabulary=7, seed=3, hidden=5, dtype=np.float64)
    contexts, targets = xp.asarray(rng.integers(0, 7, (4, CONTEXT))), xp.asarray(rng.integers(0, 7, 4))
    model.backward(model.forward(contexts), targets)
    gap = 1e-6
    for parameter in model.parameters:
        expected = np.empty(parameter.shape)
        for index in np.ndindex(parameter.shape):
            value = float(parameter.data[index])
            losses = []
            for moved in (value - gap, value + gap):
                parameter.data[index] = moved
                losses.append(model.loss(contexts, targets))
            parameter.data[index] = value
            expected[index] = (losses[1] - losses[0]) / (2 * gap)
        # A loss near 2 is rounded by 4e-16, over a gap of 2e-6: some 2e-10 each. The curvature adds 1e-12.
        np.testing.assert_allclose(
            side_by_side.on_host(parameter.grad), expected, atol=2e-9, rtol=0, err_msg=parameter.name
        )


def test_an_untrained_model_guesses_uniformly(text: Text) -> None:
    model = CharacterModel(len(text.vocabulary), seed=0)
    assert model.loss(*text.held_out_batch()) == pytest.approx(math.log(len(text.vocabulary)), rel=0.1)


def test_no_paragraph_is_in_both_parts_of_the_text() -> None:
    paragraphs = english_text().split("\n")
    assert len(set(paragraphs)) == len(paragraphs)


@pytest.mark.parametrize("optimizer", demo.LEARNING_RATES)
def test_a_resumed_training_continues_to_the_bit(text: Text, tmp_path: Path, optimizer: str) -> None:
    training = demo.Training(text, optimizer, steps=8, seed=1)
    for step in range(4):
        training.take(step)
    fusedopt.save(tmp_path / "state", training.state())
    twin = training.resumed(tmp_path / "state")
    assert demo.differences(training.state(), twin.state()) == []
    for step in range(4, 8):
        training.take(step)
        twin.take(step)
    assert demo.differences(training.state(), twin.state()) == []

    twin.take(7)
    assert "model.embedding" in demo.differences(training.state(), twin.state())


def test_a_seed_repeats_a_training_and_another_does_not(text: Text) -> None:
    first, again, other = (demo.Training(text, "adamw", steps=3, seed=seed) for seed in (1, 1, 2))
    for step in range(3):
        for training in (first, again, other):
            training.take(step)
    assert demo.differences(first.state(), again.state()) == []
    assert demo.differences(first.state(), other.state()) != []


def test_differences_names_a_single_changed_bit() -> None:
    def nest(last: float) -> dict[str, object]:
        return {"model": {"w": np.array([0.0, last], np.float32)}, "groups": [{"lr": 0.1}, {"lr": 0.2}]}

    assert demo.differences(nest(0.0), nest(0.0)) == []
    assert demo.differences(nest(0.0), nest(-0.0)) == ["model.w"]
    assert demo.differences(nest(0.0), {**nest(0.0), "groups": [{"lr": 0.1}, {"lr": 0.3}]}) == ["groups[1].lr"]


def test_a_quick_run_learns_and_prints_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert demo.run(parsed("--quick", "--plot", str(tmp_path / "curve.png"))) == 0
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"held-out loss (\d+\.\d+)", printed)]
    assert losses[0] > 4
    assert losses[-1] < 3, "100 steps bring it to 2.7"
    assert "are equal to the bit" in printed
    assert all(character == "\n" or character.isprintable() for character in printed), "no control characters"
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_place_named_the_picture_is_a_new_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "QUICK_STEPS", 2)
    monkeypatch.setattr(demo, "compare_with_naive", lambda *_: True)
    monkeypatch.setattr(demo.tempfile, "tempdir", str(tmp_path))
    assert demo.run(parsed("--quick")) == 0
    (picture,) = tmp_path.glob("fusedopt-demo-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.name in capsys.readouterr().out.replace("\n", "")


def test_a_step_that_disagrees_with_the_naive_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Console(quiet=True)
    assert side_by_side.compare_with_naive(quiet, size=1000, rounds=1)
    adam = fusedopt.Adam
    monkeypatch.setattr(fusedopt, "Adam", lambda parameters, lr: adam(parameters, lr=1.0001 * lr))
    assert not side_by_side.compare_with_naive(quiet, size=1000, rounds=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--plot", "nowhere/curve.png"], "its folder does not exist"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main(["demo", "--plot", "curve.png"]) == 2
    assert "pip install 'fusedopt[plot]'" in capsys.readouterr().err


def test_the_text_curve_falls_from_its_upper_label_to_its_lower() -> None:
    lines = text_curve([0, 50, 100], [4.5, 2.0, 1.5], width=20, height=4, ascii_only=True).split("\n")
    assert len(lines) == 6, "four of the curve, the axis, its labels"
    assert lines[0].startswith("  4.50 |*")
    assert lines[3].startswith("  1.50 |")
    assert lines[3].rstrip()[-1] == "*"
    assert len(lines[3]) == len("  1.50 |") + 20
    assert lines[5].split() == ["0", "step", "100"]
    drawn = [line[8:].ljust(20) for line in lines[:4]]
    assert all(any(line[column] == "*" for line in drawn) for column in range(20)), "the curve has no gap"


def test_a_steep_text_curve_is_drawn_through_every_line() -> None:
    lines = text_curve([0, 1, 100], [4.5, 1.5, 1.5], width=20, height=6, ascii_only=True).split("\n")
    assert all("*" in line for line in lines[:6])


def test_the_text_curve_of_one_loss_is_flat() -> None:
    assert "⠉" * 5 in text_curve([0], [2.0], width=5, height=2)


def test_the_torch_demo_trains_the_same_with_both_imports(capsys):
    assert main(["demo", "--torch", "--quick"]) == 0
    assert "one training" in capsys.readouterr().out


def test_the_torch_demo_sees_another_optimizer(monkeypatch, capsys):
    wrong = functools.partial(torch.optim.AdamW, betas=(0.5, 0.9))
    monkeypatch.setitem(torch_demo.OPTIMIZERS, "fusedopt.torch", wrong)
    assert main(["demo", "--torch", "--quick"]) == 1
    assert "two different trainings" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--optimizer", "sgd"], ["--plot", "curve.png"]])
def test_the_torch_demo_refuses_what_it_does_not_do(words, capsys):
    assert main(["demo", "--torch", *words]) == 2
    assert "leave --optimizer and --plot out" in capsys.readouterr().err
