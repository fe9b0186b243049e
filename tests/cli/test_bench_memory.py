"""`bench --memory` and `--storage`, and what `doctor` says of memory: nothing is timed here but on a few elements."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusedopt.cli import doctor, main
from fusedopt.cli.bench import condition, machine
from fusedopt.cli.bench.memory import LAYOUTS
from fusedopt.cli.bench.models import MODELS, parameters
from fusedopt.storage_choices import CHOICES

Told = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """The rows of a command."""

    def run(*words: str) -> list[dict[str, Any]]:
        file = tmp_path / "rows.json"
        assert main(["bench", "--memory", *words, "--json", str(file)]) == 0
        found: list[dict[str, Any]] = json.loads(file.read_text())
        return found

    return run


def a_parameter(row: dict[str, Any]) -> tuple[float, float]:
    """Bytes moved and kept."""
    kinds = ("parameters", "gradients", "masters", "states", "scales")
    return row["moved"] / row["elements"], sum(row[kind] for kind in kinds) / row["elements"]


def test_each_storage_and_each_other_library_has_a_row(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    rows = told("--model", "gpt2")
    assert [row["way"] for row in rows] == [*(c.title for c in CHOICES.values()), *(each.title for each in LAYOUTS)]
    assert {row["elements"] for row in rows} == {parameters(MODELS["gpt2"].shapes())}
    moved, kept = a_parameter(rows[0])
    assert (moved, kept) == (28, 16)
    printed = capsys.readouterr().out
    assert "adamw, GPT-2 124M: 124,439,808 parameters" in printed
    assert "Computed from the layouts of others, not measured" in printed
    assert "arXiv:2602.23349" in printed


def test_large_tensors_have_the_bytes_that_are_promised(told: Told) -> None:
    found = {row["way"]: a_parameter(row) for row in told("--sizes", "524288", "--tensors", "1", "--optimizer", "adam")}
    assert found["split24 master, int8 states"] == (12.125, 7.0625)
    assert found["torch, float32"] == found["float32 everything"] == (28, 16)
    assert found["apex, float32 masters"] == found["float32 master, float32 states"] == (28, 16)
    assert found["FlashOptim, 24-bit master, 8-bit states"] == (12.25, 7.125)  # its paper's 7 bytes, with scales
    assert found["bitsandbytes, 8-bit states"] == (6 + 4 * (1 + 4 / 256), 6 + 2 * 4 / 256)


def test_small_tensors_are_told_as_they_are_kept(told: Told) -> None:
    rows = told("--sizes", "4000", "--tensors", "4", "--storage", "split+int8")
    found = {row["way"]: a_parameter(row) for row in rows}
    assert found["split master, int8 states"] == (8 + 2 + 16, 6 + 8)
    assert found["bitsandbytes, 8-bit states"] == (6 + 16, 4 + 8)


def test_an_optimizer_that_others_have_not_is_told_alone(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    rows = told("--sizes", "524288", "--tensors", "1", "--optimizer", "lion", "sgd", "--storage", "float32")
    assert [(row["optimizer"], *a_parameter(row)) for row in rows] == [("lion", 20, 12), ("sgd", 20, 12)]
    assert "Computed from" not in capsys.readouterr().out


def test_figures_are_never_cut(told: Told, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (80, 50):
        monkeypatch.setenv("COLUMNS", str(columns))
        told("--model", "llama-3-8b")
        printed, _, notes = capsys.readouterr().out.partition("In all: ")
        assert "\u2026" not in printed
        assert max(map(len, printed.splitlines())) <= columns
        assert re.search(r"^ torch AMP, .* 134\.62 +12 +34 *$", printed, re.MULTILINE)
        assert "--json FILE saves each kind" in notes
    told("--sizes", "1M", "--storage", "float32")
    assert re.search(r"float32 everything +15\.26 +8 +28", capsys.readouterr().out)  # MiB


def test_storages_that_a_rule_cannot_have_are_left_out_and_said(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    rows = told("--sizes", "1M", "--optimizer", "asgd")
    assert [row["way"] for row in rows] == [choice.title for choice in CHOICES.values() if "int8" not in choice.name]
    why = "Without split+int8, split24+int8, random+int8. ASGD: int8 is too coarse for the state 'ax'; choose"
    assert why in capsys.readouterr().out


def test_memory_is_saved_as_csv_too(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    assert main(["bench", "--memory", "--sizes", "1K", "--json", str(file)]) == 0
    with file.open() as lines:
        assert len(list(csv.DictReader(lines))) == len(CHOICES) + len(LAYOUTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "--storage", "split8"], "--storage: there is no 'split8'; there are float32, master, split"),
        (["--memory", "--plot", "a.png"], "--memory times nothing, which --plot is for; leave it out."),
        (["--memory", "--peers", "torch"], "--memory times nothing, which --peers is for; leave it out."),
        (
            ["--memory", "--optimizer", "ftrl", "--storage", "random+int8"],
            "--storage random+int8: FTRL: int8 is too coarse",
        ),
        (["--storage", "kahn"], "--storage: there is no 'kahn'"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_storages_are_timed_beside_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(condition, "cpu_cache_bytes", lambda: 2**20)
    monkeypatch.setattr(machine, "PAUSE", 0.0)
    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")
    file = tmp_path / "rows.json"
    words = ["--device", "cpu", "--size", "10K", "--tensors", "2", "--repeats", "1", "--peers", "NumPy out"]
    assert main(["bench", *words, "--storage", "float32", "split+int8", "--json", str(file)]) == 0
    ours, _, same, stored = json.loads(file.read_text())
    assert (same["peer"], same["dtype"], same["difference"]) == ("fusedopt, float32", "float32", 0)
    assert (stored["peer"], stored["dtype"], stored["difference"]) == ("fusedopt, split+int8", "bfloat16", None)
    assert stored["bytes_a_step"] == round(14.125 * 10_000)
    assert stored["kept_bytes_a_parameter"] == pytest.approx(4 + 2 + 2.0625, abs=0.3)  # and padding
    assert ours["bytes_a_step"] == 280_000
    printed = " ".join(capsys.readouterr().out.split())
    assert "Moved: what a step with that storage must move" in printed
    assert "float32 but for the storages; " in printed


def test_doctor_says_what_storages_keep() -> None:
    found = doctor.memory()
    assert list(found) == list(doctor.STORAGES)
    assert found["float32"] == "16 GB in all, 28 GB a step for 1 G parameters: float32"
    assert found["split24+int8"].startswith(
        "7.06 GB in all, 12.1 GB a step for 1 G parameters: bfloat16, master_weights="
    )
