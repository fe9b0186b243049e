"""`bench`: what it measures and how, what it prints, saves and draws, and what it refuses. No test asks how fast."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import fusedopt
from devices import NUMBA
from emulator.build import skip_or_fail
from fusedopt import compiler
from fusedopt.backends import cuda
from fusedopt.cli import bench, main, naive
from fusedopt.cli.bench import condition, machine, measure, peers_arrays, row, streams, table
from fusedopt.cli.bench import gpu as gpu_module
from fusedopt.cli.bench import work as work_module
from fusedopt.cli.bench.gpu import Gpu
from fusedopt.cli.bench.machine import Cpu
from fusedopt.cli.bench.measure import Task
from fusedopt.cli.bench.peers import WAYS, Peer, Way
from fusedopt.cli.bench.work import Work, equal_pieces
from fusedopt.cli.peak_memory import peak_of_arrays, peak_of_step, peak_of_torch

WITHOUT_CUPY = (
    "import sys; sys.modules['cupy'] = sys.modules['cupy_backends'] = None;"
    " from fusedopt.cli import main; sys.exit(main(sys.argv[1:]))"
)
BOTH = ("cpu", "cuda")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small caches and no pauses; the variables that `--device` and torch's ways set are taken back."""
    monkeypatch.setattr(condition, "cpu_cache_bytes", lambda: 2**20)
    monkeypatch.setattr(machine, "PAUSE", 0.0)
    monkeypatch.setenv("FUSEDOPT_BACKEND", "auto")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def benched(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    def run(*words: str, status: int = 0) -> list[dict[str, Any]]:
        file = tmp_path / "figures.json"
        assert main(["bench", "--device", "cpu", "--repeats", "2", "--json", str(file), *words]) == status
        rows: list[dict[str, Any]] = json.loads(file.read_text())
        return rows

    return run


def by_hand(step_of: Callable[[naive.NaiveAdam], Callable[[], object]], **about: Any) -> Callable[..., Peer]:
    """Builds Adam by hand, with another step."""

    def build(optimizer: str, weights: Any, gradients: Any, device: str) -> Peer:
        it = naive.NaiveAdam([w.ravel().copy() for w in weights], [g.ravel().copy() for g in gradients])
        kept = 16 * sum(p.size for p in it.p)
        return Peer(step_of(it), lambda: list(it.p), lambda: kept, **{"library": "numpy", **about})

    return build


SAME = by_hand(lambda it: it.step)
OURS = Way("ours", (), BOTH, SAME)


def task(size: int = 3_000, tensors: int = 3, repeats: int = 2, warm: bool = False) -> Task:
    return Task(equal_pieces(size, tensors), "adam", 2, repeats, warm)


def rows_of(machine: Any, task: Task, *ways: Way) -> tuple[list[row.Row], dict[str, str]]:
    found = measure.measure(machine, task, ways, lambda what: None)
    return list(row.rows(machine, task, ways, found, {"date": "2026-01-02T03:04", "version": "1.2"})), found.absent


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_counts_are_written_with_k_and_m() -> None:
    assert [bench.count(text) for text in ("7", "500K", "32m")] == [7, 500_000, 32_000_000]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "10", "--tensors", "11"], "--tensors must be at most --sizes, 10, got 11."),
        (["--sizes", "20", "10", "--tensors", "11"], "--tensors must be at most --sizes, 10, got 11."),
        (["--json", "nowhere/figures.json"], "--json nowhere/figures.json: its folder does not exist."),
        (["--plot", "nowhere/figures.png"], "--plot nowhere/figures.png: its folder does not exist."),
        (["--plot", "figures.doc"], "--plot figures.doc: must end in .png, .svg or .pdf."),
        (["--model", "gtp2"], "--model: there is no 'gtp2'; there are resnet-50, gpt2"),
        (["--layers", "2"], "--layers 2 is of a model; give one with --model."),
        (["--model", "gpt2", "--layers", "13"], "--layers must be at most gpt2's 12, got 13."),
        (["--model", "gpt2", "--size", "9"], "--model has tensors of its own; leave --sizes and --tensors out."),
        (["--optimizer", "lyon"], "fusedopt.rules has no rule 'lyon'; did you mean 'lion'?"),
        (["--peers", "touch"], "--peers: none is called 'touch'; there are fusedopt, numba;"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_measured(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "chosen_machine", lambda device: pytest.fail("it went on"))
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"bench: {message}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--size", "2G"], ["--layers", "0"], ["--device", "tpu"]])
def test_words_that_bench_does_not_know_are_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words])
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_picture_without_matplotlib_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert main(["bench", "--plot", str(tmp_path / "figures.png")]) == 2
    assert capsys.readouterr().err == "bench: --plot needs matplotlib: pip install 'fusedopt[plot]'\n"


def test_a_bench_on_cuda_that_cannot_work_says_so() -> None:
    words = [sys.executable, "-W", "error", "-c", WITHOUT_CUPY, "bench", "--device", "cuda"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bench: FUSEDOPT_BACKEND=cuda cannot work here: CuPy cannot be imported")


def test_the_cpu_is_measured_though_the_variable_asks_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDOPT_BACKEND", "cuda")
    assert isinstance(bench.chosen_machine("cpu"), Cpu)
    assert os.environ.get("FUSEDOPT_BACKEND") is None
    monkeypatch.setenv("FUSEDOPT_BACKEND", "numpy")
    assert isinstance(bench.chosen_machine(None), Cpu)
    assert os.environ["FUSEDOPT_BACKEND"] == "numpy"


def test_peers_are_chosen_by_the_beginnings_of_their_titles() -> None:
    def titles(*beginnings: str) -> list[str]:
        return [way.title for way in bench.chosen_ways(WAYS, beginnings)]

    assert titles("numpy out", "TORCH FU") == ["fusedopt", "torch fused", "NumPy out="]
    assert titles("fusedopt,") == ["fusedopt", "fusedopt, numba", "fusedopt, NumPy"]
    assert bench.chosen_ways(WAYS, None) == list(WAYS)


# --- what is stepped -------------------------------------------------------------------------------------------------


def test_equal_pieces_differ_by_one_at_most() -> None:
    work = equal_pieces(11, 4)
    assert (work.shapes, work.parameters) == ([(3,), (3,), (3,), (2,)], 11)


def test_arrays_are_noise_of_the_shapes_in_the_memory_of_the_largest() -> None:
    shapes = [(300, 7), (5,), (2_000,)]
    arrays = Work("", "", None, shapes).arrays(0, 0.02)
    assert [array.shape for array in arrays] == shapes
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert len({id(array.base) for array in arrays}) == 1
    assert not np.array_equal(arrays[0].ravel()[:2_000], arrays[2])
    assert np.std(np.concatenate([array.ravel() for array in arrays])) == pytest.approx(0.02, rel=0.1)


class TinyModel:
    """1,000 parameters, and 100 more in each of three layers."""

    name, title, layers = "tiny", "Tiny", 3

    def shapes(self, layers: int | None = None) -> list[tuple[str, tuple[int, ...]]]:
        return [("embedding", (10, 100)), *self.block_shapes(layers or self.layers)]

    def block_shapes(self, layers: int) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"layer{i}", (10, 10)) for i in range(layers)]


def test_a_model_is_cut_to_the_layers_that_fit_and_the_title_says_so() -> None:
    model: Any = TinyModel()
    need = [work_module.need_bytes([shape for _, shape in model.shapes(layers)]) for layers in (1, 2, 3)]
    whole, cut, asked = (
        work_module.slice_of(model, layers, free) for layers, free in ((None, need[2]), (None, need[2] - 1), (1, None))
    )
    assert (whole.title, whole.layers, whole.parameters) == ("Tiny", 3, 1_300)
    assert (cut.title, cut.layers, cut.parameters) == ("Tiny, 2 of 3 layers", 2, 1_200)
    assert (asked.title, asked.layers) == ("Tiny, 1 of 3 layers", 1)
    layers_alone = work_module.slice_of(model, None, need[0] - 1)
    assert (layers_alone.title, layers_alone.parameters) == ("Tiny, 3 of 3 layers alone", 300)
    with pytest.raises(MemoryError, match=r"^tiny: a comparison needs .* GB of memory, .* GB are free"):
        work_module.slice_of(model, None, work_module.need_bytes([(10, 10)]) - 1)


def test_a_size_that_does_not_fit_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condition, "free_host_bytes", lambda: 10**9)
    assert main(["bench", "--device", "cpu", "--size", "900M"]) == 2
    assert capsys.readouterr().err.startswith("bench: --sizes 900000000: a comparison needs 44.3 GB of memory, 1.0 GB")


# --- the method ------------------------------------------------------------------------------------------------------


def test_each_is_first_in_turn_and_every_second_round_goes_backwards() -> None:
    calls: list[str] = []
    timers: dict[str, Any] = {name: lambda name=name: calls.append(name) or 1.0 for name in "abc"}
    assert measure.rounds(timers, 4) == {name: [1.0] * 4 for name in "abc"}
    assert "".join(calls) == "abc" + "acb" + "cab" + "cba"


def test_ratios_are_of_the_same_round_and_our_timings_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine gets twice as slow from round to round: medians of each would say nothing of the ratio.
    def rounds(timers: dict[str, Any], repeats: int) -> dict[str, list[float]]:
        slowness = {"ours": 1.0, "slow": 3.0, "slower": 5.0}
        return {name: [slowness.get(name, 0.5) * 2.0**number for number in range(3)] for name in timers}

    monkeypatch.setattr(measure, "rounds", rounds)
    ways = OURS, Way("slow", (), BOTH, SAME), Way("slower", (), BOTH, SAME)
    found, absent = rows_of(Cpu(), task(), *ways)
    assert absent == {}
    assert [(each.peer, each.ratio, each.seconds, each.samples) for each in found] == [
        ("ours", 1.0, 2.0, 6),
        ("slow", 3.0, 6.0, 3),
        ("slower", 5.0, 10.0, 3),
    ]
    assert (found[1].seconds_low, found[1].seconds_high) == (4.5, 9.0)
    # The copy moves 8 bytes an element in half the time in which ours moves 28.
    assert found[0].share_of_copy == pytest.approx(28 / 8 * 0.5)
    assert found[1].share_of_copy == pytest.approx(28 / 8 * 0.5 / 3)
    assert found[0].copy_bytes_per_second == pytest.approx(3_000 * 8 / 1.0)


def test_a_peer_that_fails_is_absent_with_the_first_line_of_why() -> None:
    def fails(*_: Any) -> Peer:
        raise OSError("no compiler\nand much more")

    broken, away = Way("broken", (), BOTH, fails), Way("away", (), ("cuda",), SAME)
    found, absent = rows_of(Cpu(), task(), OURS, broken, away)
    assert [each.peer for each in found] == ["ours"]
    assert absent == {"broken": "OSError: no compiler", "away": "for CUDA alone"}
    with pytest.raises(OSError, match="no compiler"):  # an error of fusedopt's own is none of the peers'
        rows_of(Cpu(), task(), Way("ours", (), BOTH, fails), Way("same", (), BOTH, SAME))


@pytest.mark.parametrize(("exact", "slack", "agrees"), [(True, 0.0, False), (True, 1e-5, True), (False, 0.0, True)])
def test_a_difference_is_seen_unless_the_way_has_slack_or_is_not_exact(exact: bool, slack: float, agrees: bool) -> None:
    def off(it: naive.NaiveAdam) -> Callable[[], None]:
        def step() -> None:
            it.step()
            it.p[-1][-1] += 1e-6

        return step

    found, _ = rows_of(Cpu(), task(), OURS, Way("off", (), BOTH, by_hand(off), exact, slack))
    assert found[1].agrees is agrees
    assert found[0].agrees
    assert found[1].difference == (pytest.approx(3e-6, rel=0.05) if exact else None)


def test_a_nan_is_a_difference() -> None:
    def nan(it: naive.NaiveAdam) -> Callable[[], None]:
        def step() -> None:
            it.step()
            it.p[1][5] = np.nan

        return step

    found, _ = rows_of(Cpu(), task(), OURS, Way("nan", (), BOTH, by_hand(nan)))
    assert not found[1].agrees


@pytest.mark.parametrize(
    ("size", "warm", "cleared", "cache"),
    [(3_000, False, True, "cold"), (3_000, True, False, "warm"), (100_000, False, False, "cold")],
)
def test_caches_are_cleared_where_a_step_fits_in_them(
    size: int, warm: bool, cleared: bool, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(Cpu, "_clear_caches", lambda self: calls.append(1))
    found, _ = rows_of(Cpu(), task(size, warm=warm), OURS)
    assert bool(calls) is cleared
    assert found[0].cache == cache


def test_clearing_writes_all_of_a_memory_larger_than_the_caches() -> None:
    cpu = Cpu()
    cpu._clear_caches()
    cpu._clear_caches()
    assert cpu._other is not None
    assert (cpu._other == 2).all()
    assert cpu._other.nbytes >= 64 * 2**20
    assert [machine.clearing_bytes(mib * 2**20) // 2**20 for mib in (1, 100, 1_000)] == [64, 200, 2_000]


def test_a_timing_of_a_short_step_is_of_many() -> None:
    calls: list[str] = []
    seconds = Cpu().timer(lambda: calls.append("step"), lambda: calls.append("finish"))
    calls.clear()
    assert 0 < seconds() < 1e-3
    assert calls.count("step") > 100
    assert calls[-1:] == ["finish"]
    assert calls.count("finish") == 1
    calls.clear()
    Cpu().timer(lambda: calls.append("step"), cold=True)()
    assert calls == ["step"]


def test_the_streams_move_what_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PIECE", 100)
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", "2")
    made = streams.streams(Cpu(), 1_000, 2)
    kinds = {"copy": 8, "triad": 12} | ({"mix": 28} if importlib.util.find_spec("numba") else {})
    assert {stream.kind: stream.bytes for stream in made} == {kind: 1_000 * size for kind, size in kinds.items()}
    assert len(made) == 2 * len(kinds)
    for stream in made:
        stream.step()


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("loads", [2, 3, 4, 6])
def test_the_mix_adds_the_last_array_to_all_others(loads: int, pieces: int) -> None:
    pytest.importorskip("numba")
    arrays = [np.full(1_000, number, np.float32) for number in range(loads)]
    streams._in_pieces(streams._compiled(loads), arrays, pieces)()
    assert [set(array.tolist()) for array in arrays] == [*({n + loads - 1} for n in range(loads - 1)), {loads - 1}]


def test_without_numba_triad_stands_in_for_the_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "numba_problem", lambda: "numba is not installed")
    (found,), _ = rows_of(Cpu(), task(), OURS)
    assert found.stream == "triad (2 loads, 1 store, NumPy)"
    assert found.stream_bytes_per_second == found.triad_bytes_per_second


# --- the whole command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_all_ways_compute_the_same(
    optimizer: str, benched: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = benched("--optimizer", optimizer, "--size", "20K", "--tensors", "3", "--peers", "NumPy", "fusedopt, NumPy")
    assert [each["peer"] for each in rows] == ["fusedopt", "fusedopt, NumPy", "NumPy whole arrays", "NumPy out="]
    assert all(each["difference"] <= each["allowed_difference"] for each in rows)
    assert {(each["optimizer"], each["tensors"], each["parameters"]) for each in rows} == {(optimizer, 3, 20_000)}
    printed = capsys.readouterr().out
    assert all(f"  {each['peer']} " in printed for each in rows)
    assert f"{optimizer}, 20,000 parameters in 3 tensors, float32" in printed
    assert f"GB/s: of the {20 if optimizer == 'sgd' else 28} bytes" in printed


OWN = """
from dataclasses import dataclass
from fusedopt.rules import Rule, Values, hyperparameter

@dataclass(frozen=True)
class Plain(Rule):
    lr: float = hyperparameter(1e-3, "[0, inf)")

    def scalars(self, step, a):
        return Values(lr=self.lr)

    def update(self, p, g, s, c):
        return p - c.lr * g, Values()
"""


def test_every_rule_and_one_of_ones_own_can_be_measured(
    benched: Callable[..., list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path}/own.py:Plain"
    rows = benched(
        "--optimizer", "Lion", own, "LAMB", "--size", "2K", "--tensors", "2", "--peers", "fusedopt", "the", "torch for"
    )
    ways = ("fusedopt", "fusedopt, numba", "fusedopt, NumPy", "fusedopt.torch", "the rule, unfused")
    here = [way for way in ways if way != "fusedopt, numba" or importlib.util.find_spec("numba")]
    for optimizer, size in (("Lion", 20), (own, 12), ("LAMB", 28 + 16)):
        found = [row for row in rows if row["optimizer"] == optimizer]
        assert [row["peer"] for row in found] == here
        assert {row["bytes_a_step"] for row in found} == {size * 2_000}
    printed = capsys.readouterr().out
    assert "torch for-loop: torch.optim has no Lion of this kind" in printed


def test_what_can_never_step_a_rule_of_ones_own_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    absent = {"apex fused": "for CUDA alone", "NumPy out=": "written for adam alone", "fusedopt, numba": "no numba"}
    told = bench.why_absent(absent, f"{tmp_path}/own.py:Plain", WAYS)
    assert told == {
        "fusedopt, numba": "no numba",
        "apex fused; NumPy out=": "none of these can step a rule of one's own",
    }
    assert bench.why_absent(absent, "lion", WAYS) == absent


def test_the_table_tells_the_bytes_kept_as_check_does_beside_parameter_and_gradient() -> None:
    found, _ = rows_of(Cpu(), task(), OURS)
    assert table.COLUMNS["beside\nB"](dataclasses.replace(found[0], kept_bytes_a_parameter=12.0)) == "4.0"


def test_the_figures_are_those_of_the_arrays(benched: Callable[..., list[dict[str, Any]]]) -> None:
    size = 320_000
    words = ("--optimizer", "adam", "--size", "320K", "--tensors", "1", "--peers", "fusedopt, NumPy", "NumPy", "--warm")
    fused, numpy, whole, out = benched(*words)
    kept = [each["kept_bytes_a_parameter"] for each in (fused, numpy, whole, out)]
    assert kept == pytest.approx([16, 16, 16, 20], abs=0.5)
    # New m, v and p beside the old, and the two operands of the last division: not less than three arrays.
    assert 3 * 4 * size <= whole["extra_bytes"] <= 6 * 4 * size
    assert fused["extra_bytes"] < 0.1 * 4 * size
    assert out["extra_bytes"] < 0.1 * 4 * size
    for each in (fused, numpy, whole, out):
        assert each["bytes_a_step"] == 28 * size
        assert each["bytes_per_second"] == pytest.approx(28 * size / each["seconds"])
        assert each["seconds_low"] <= each["seconds"] <= each["seconds_high"]
        assert (each["host_seconds"], each["launches"], each["graph_seconds"]) == (None, None, None)
    assert (fused["ratio"], fused["samples"], out["samples"]) == (1.0, 6, 2)


def test_a_way_that_computes_something_else_is_status_1(
    benched: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = naive.NaiveSGD.step

    def off_in_one_place(self: naive.NaiveSGD) -> None:
        step(self)
        self.p[-1][-1] += 1e-6

    monkeypatch.setattr(naive.NaiveSGD, "step", off_in_one_place)
    benched("--optimizer", "sgd", "--size", "1K", "--tensors", "3", "--peers", "NumPy whole", status=1)
    assert "bench: NumPy whole arrays computes something else: sgd differs by" in capsys.readouterr().err


def test_what_is_missing_has_a_line_each_once(
    benched: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = benched("--sizes", "100", "200", "--peers", "CuPy", "apex", "--optimizer", "adam", "adamw")
    assert [(each["parameters"], each["optimizer"], each["tensors"]) for each in rows] == [
        (size, optimizer, 64) for size in (100, 200) for optimizer in ("adam", "adamw")
    ]
    printed = capsys.readouterr().out
    for title in ("CuPy whole arrays", "CuPy ElementwiseKernel", "apex fused"):
        assert printed.count(f"{title}: for CUDA alone") == 1


def test_rows_are_flat_in_json_and_in_csv(benched: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    words = ("--device", "cpu", "--repeats", "1", "--size", "100", "--peers", "NumPy out", "--optimizer", "adam")
    file = tmp_path / "figures.csv"
    assert main(["bench", *words, "--json", str(file)]) == 0
    with file.open(newline="") as lines:
        in_csv = list(csv.DictReader(lines))
    in_json = benched(*words)
    assert list(in_csv[0]) == list(in_json[0])
    assert [each["peer"] for each in in_csv] == [each["peer"] for each in in_json] == ["fusedopt", "NumPy out="]
    assert all(not isinstance(value, (list, dict)) for value in in_json[0].values())
    assert in_json[0]["versions"].startswith(f"numpy {np.__version__}")
    assert in_json[0]["version"].startswith(fusedopt.__version__)


def test_a_models_tensors_are_stepped(
    benched: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.import_module("fusedopt.cli.bench.models"), "MODELS", {"tiny": TinyModel()})
    (ours, _) = benched("--model", "tiny", "--layers", "2", "--peers", "NumPy out", "--optimizer", "adam")
    assert (ours["model"], ours["layers"], ours["tensors"], ours["parameters"]) == ("tiny", 2, 3, 1_200)
    assert "adam, Tiny, 2 of 3 layers: 1,200 parameters in 3 tensors, float32" in capsys.readouterr().out


def test_a_narrow_terminal_cuts_no_figure() -> None:
    rows, _ = rows_of(Cpu(), task(), OURS, Way("a way with a rather long title", (), BOTH, SAME))

    def printed(width: int) -> str:
        console = Console(width=width, highlight=False)
        with console.capture() as capture:
            table.show(console, rows, {"away": "for CUDA alone"})
        return capture.get()

    assert printed(30) == printed(300)
    assert "…" not in printed(30)
    assert "launches" not in printed(30)  # of which there are none on a CPU


def test_pictures_show_all_ways_sizes_and_models(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    ways = OURS, Way("other", (), BOTH, SAME)
    sizes = [each for size in (300, 3_000) for each in rows_of(Cpu(), task(size), *ways)[0]]
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # words stay words
        for name, rows in (("sizes", sizes), ("bars", sizes[:2])):
            importlib.import_module("fusedopt.cli.bench.picture").draw(tmp_path / f"{name}.svg", rows)
    for name in ("sizes", "bars"):
        text = (tmp_path / f"{name}.svg").read_text()
        for word in ("ours", "other", "ms", "time of a step", "2026-01-02", sizes[0].device, "#d55e00"):
            assert word in text, word
    assert "parameters" in (tmp_path / "sizes.svg").read_text()
    assert re.search(r"[\d.]+ x, [\d.]+ ms", (tmp_path / "bars.svg").read_text())


# --- a GPU that does nothing -----------------------------------------------------------------------------------------


class IdleStream:
    ptr = 17

    def __init__(self, non_blocking: bool = False) -> None:
        assert non_blocking
        self.capturing = False

    def __enter__(self) -> IdleStream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin_capture(self) -> None:
        self.capturing = True

    def end_capture(self) -> Any:
        self.capturing = False
        return SimpleNamespace(launch=lambda: None)


class IdleEvent:
    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass


class IdlePool:
    malloc = None

    def free_all_blocks(self) -> None:
        pass

    def total_bytes(self) -> int:
        return 0


class IdleCuPy:
    """What `Gpu` asks of CuPy, on NumPy arrays: copies work, kernels count."""

    empty, array, copyto = staticmethod(np.empty), staticmethod(np.array), staticmethod(np.copyto)

    def __init__(self) -> None:
        self.pool, self.kernels = IdlePool(), 0
        properties = {"name": b"Idle GPU", "l2CacheSize": 2**20, "multiProcessorCount": 4, "major": 9, "minor": 0}
        self.cuda = SimpleNamespace(
            Device=lambda: SimpleNamespace(id=0),
            Stream=IdleStream,
            Event=IdleEvent,
            MemoryPool=IdlePool,
            get_elapsed_time=lambda start, end: 1e3 * (end.time - start.time),
            using_allocator=lambda allocator: contextlib.nullcontext(),
            runtime=SimpleNamespace(
                getDeviceProperties=lambda number: properties,
                driverGetVersion=lambda: 13020,
                deviceGetPCIBusId=lambda number: "0000:01:00.0",
                deviceSynchronize=lambda: None,
                memGetInfo=lambda: (10**9, 2 * 10**9),
            ),
        )

    def get_default_memory_pool(self) -> IdlePool:
        return self.pool

    def RawModule(self, path: str) -> Any:
        def kernel(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            assert block == (256,)
            assert all(isinstance(array, np.ndarray) for array in arguments[:-1])
            assert arguments[-1].dtype == np.uint64
            self.kernels += 1

        return SimpleNamespace(get_function=lambda name: kernel)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[IdleCuPy]:
    cupy = IdleCuPy()
    monkeypatch.setattr(cuda, "module", lambda: cupy)
    monkeypatch.setattr(compiler, "compiled", lambda source, headers, architecture: Path("stream.cubin"))
    monkeypatch.setattr(gpu_module, "TIMING", 1e-4)
    monkeypatch.setattr(gpu_module, "_torch_with_cuda", lambda: None)
    monkeypatch.setattr(condition.shutil, "which", lambda name: None)
    return cupy


@pytest.mark.parametrize("size", [3_000, 300_000])
def test_a_gpu_is_measured_with_graphs_host_time_and_launches(
    size: int, idle: IdleCuPy, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Any] = []
    gpu = Gpu()

    class Surface:
        def launch(self, *arguments: Any) -> None:
            launched.append(arguments)

    on_surface = Surface()
    monkeypatch.setattr(cuda, "backend", lambda number: SimpleNamespace(surface=on_surface))

    def one_launch(it: naive.NaiveAdam) -> Callable[[], None]:
        def step() -> None:
            on_surface.launch("kernel", 1, "arguments")
            it.step()

        return step

    def refuses(it: naive.NaiveAdam) -> Callable[[], None]:
        def step() -> None:
            if gpu._stream.capturing:
                raise RuntimeError("not while capturing")
            it.step()

        return step

    finished: list[int] = []
    ours = Way("ours", (), BOTH, by_hand(one_launch, library="cupy"))
    refusing = Way("refusing", (), BOTH, by_hand(refuses, library="cupy"))
    jax = by_hand(lambda it: it.step, library="jax", stream="own", finish=lambda: finished.append(1))
    ways = ours, refusing, Way("jax", (), BOTH, jax)
    found, absent = rows_of(gpu, task(size), *ways)
    assert absent == {}
    of = {each.peer: each for each in found}
    assert [measure.launches(gpu, task(size), way) for way in ways] == [1, None, None]
    assert of["ours"].graph_seconds is not None
    assert of["refusing"].graph_seconds is None
    assert not gpu._stream.capturing
    assert of["jax"].graph_seconds is None
    assert finished
    assert all(each.host_seconds is not None and each.host_seconds > 0 for each in found)
    assert (of["ours"].extra_bytes, of["jax"].extra_bytes) == (0, None)
    assert of["ours"].device == "Idle GPU"
    assert of["ours"].driver == "nvidia-smi is not here, CUDA 13020"
    assert idle.kernels > 0
    assert "launch" not in vars(on_surface)
    console = Console(width=200)
    with console.capture() as capture:
        table.show(console, found, absent)
        console.print(table.method(found))
    assert "Graph: a step in a CUDA graph." in capture.get()


def test_on_a_gpu_launches_are_counted_when_all_is_timed(
    idle: IdleCuPy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []
    monkeypatch.setattr(Gpu, "launches", lambda gpu, step: order.append("launches") or step() or 7)
    monkeypatch.setattr(Gpu, "host_seconds", lambda gpu, step, finish: order.append("host") or 1e-6)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    words = f"--sizes 2K 3K --tensors 2 --repeats 1 --optimizer adam --json {tmp_path / 'rows.json'}"
    ways = [Way(name, (), BOTH, by_hand(lambda it: it.step, library="cupy")) for name in ("fusedopt", "other")]
    assert bench.compare(parser.parse_args(words.split()), Gpu(profiler=False), [], ways) == 0
    assert "".join(word[0] for word in order) == "hhhhllll"
    assert {each["launches"] for each in json.loads((tmp_path / "rows.json").read_text())} == {7}
    assert "adam, 2,000 parameters in 2 tensors, float32: fusedopt 7, other 7" in capsys.readouterr().out


def test_events_of_a_cold_timing_stand_behind_the_writing(idle: IdleCuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    gpu = Gpu()
    monkeypatch.setattr(gpu, "_clear_cache", lambda: order.append("clear"))
    monkeypatch.setattr(gpu, "wait", lambda: order.append("wait"))
    monkeypatch.setattr(IdleEvent, "record", lambda self: order.append("event") or setattr(self, "time", 0.0))
    for own_stream, expected in (
        (False, ["clear", "event", "step", "event"]),
        (True, ["clear", "wait", "step", "finish", "wait"]),
    ):
        seconds = gpu.timer(
            lambda: order.append("step"), lambda: order.append("finish"), own_stream=own_stream, cold=True
        )
        order.clear()
        seconds()
        assert order[: len(expected)] == expected
        assert order == expected * order.count("clear")
        assert 1 <= order.count("clear") <= gpu_module.COLD_STEPS


def test_the_cache_is_cleared_by_writing_all_of_a_larger_memory(idle: IdleCuPy) -> None:
    gpu = Gpu()
    gpu._clear_cache()
    assert gpu._other.nbytes == 64 * 2**20
    assert (gpu._other == 1).all()
    assert gpu.free_bytes() == 10**9
    assert gpu._other is None


def test_launches_are_the_kernels_in_the_profilers_trace(idle: IdleCuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    events = [{"cat": "kernel"}, {"cat": "kernel"}, {"cat": "gpu_memcpy"}, {"cat": "gpu_user_annotation"}, {"ph": "M"}]

    class Profile:
        def __init__(self, activities: Sequence[Any]) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def export_chrome_trace(self, path: str) -> None:
            Path(path).write_text(json.dumps({"traceEvents": events}))

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(gpu_module, "_torch_with_cuda", lambda: torch)
    stepped: list[int] = []
    assert Gpu().launches(lambda: stepped.append(1)) == 2
    assert stepped == [1]
    events.clear()
    assert Gpu().launches(lambda: None) is None

    def refuse(self: Profile) -> None:
        raise RuntimeError("the profiler is taken")

    monkeypatch.setattr(Profile, "__enter__", refuse)
    assert Gpu().launches(lambda: None) is None


def test_torchs_steps_are_captured_by_torch_and_run_on_our_stream(
    idle: IdleCuPy, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    @contextlib.contextmanager
    def logged(name: str) -> Iterator[None]:
        log.append(f"{name} begins")
        yield
        log.append(f"{name} ends")

    torch = SimpleNamespace(
        cuda=SimpleNamespace(
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: log.append("replay")),
            graph=lambda graph: logged("capture"),
            stream=lambda stream: logged(f"stream {stream}"),
            ExternalStream=lambda pointer: pointer,
        )
    )
    monkeypatch.setattr(gpu_module, "_torch_with_cuda", lambda: torch)
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    gpu = Gpu()
    with gpu.here():
        assert gpu.replay_timer(lambda: log.append("step"), "torch", cold=True) is not None
    assert log[0] == "stream 17 begins"
    assert log[log.index("capture begins") :][:4] == ["capture begins", "step", "capture ends", "replay"]
    assert log[-1] == "stream 17 ends"


@pytest.mark.parametrize(("library", "least"), [("cupy", 12), ("torch", 6)])
def test_all_that_is_asked_of_a_library_exists(library: str, least: int) -> None:
    module = pytest.importorskip(library)
    text = Path(gpu_module.__file__).read_text()
    uses = set(re.findall(rf"\b_?{library}((?:\.\w+)+)", text.partition('"""\n\n')[2]))
    uses -= {".profiler"} if library == "torch" else set()
    assert len(uses) >= least, uses
    for use in uses:
        functools.reduce(getattr, use.split(".")[1:], module)


def test_all_that_is_asked_of_cupys_objects_exists() -> None:
    cupy = pytest.importorskip("cupy")
    for cls, names in (
        (cupy.cuda.Stream, ("ptr", "begin_capture", "end_capture", "__enter__")),
        (cupy.cuda.Event, ("record", "synchronize")),
        (cupy.cuda.Graph, ("launch",)),
        (cupy.cuda.MemoryPool, ("malloc", "free_all_blocks", "total_bytes")),
        (cupy.ndarray, ("fill",)),
        (cupy.RawModule, ("get_function",)),
    ):
        # A stream's pointer is set when it is made, which needs a GPU.
        missing = [name for name in names if not hasattr(cls, name) and name != "ptr"]
        assert not missing, (cls, missing)


@pytest.mark.parametrize(("kind", "arrays"), [("copy", 2), ("triad", 3), ("mix", 3), ("mix", 4)])
def test_the_stream_kernels_compile(kind: str, arrays: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        compiler.nvrtc_version()
    except compiler.CompilerMissingError as error:
        skip_or_fail(f"NVRTC: {error}")  # fails under CI, which has it
    monkeypatch.setenv("FUSEDOPT_CACHE_DIR", str(tmp_path))
    text = streams.cuda_text(kind, arrays)
    assert compiler.compiled(text, {}, "sm_90").stat().st_size > 1_000
    stores = re.findall(r"a(\d)\[i\] = x(\d);", text)
    assert stores == ([(str(n), str(n)) for n in range(arrays - 1)] if kind == "mix" else [("0", "1")])
    assert len(re.findall(r"= a\d\[i\];", text)) == {"copy": 1, "triad": 2, "mix": arrays}[kind]


# --- what the system tells -------------------------------------------------------------------------------------------


def test_a_cache_that_cores_share_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for core in (0, 1):
        for level, cores, size in (("1", f"{core}", "48K"), ("2", f"{core}", "2048K"), ("3", "0-1", "32768K")):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{level}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("shared_cpu_list", cores), ("size", size)):
                (folder / name).write_text(text + "\n")
    assert condition.cpu_cache_bytes(tmp_path) == (2 * 2_048 + 32_768) * 1024
    assert condition.cpu_cache_bytes(tmp_path / "nowhere") == condition.UNKNOWN_CACHE


def test_nvidia_smi_is_asked_for_one_gpu_and_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    assert condition.nvidia_smi("clocks.sm", "01:0") == "--query-gpu=clocks.sm --format=csv,noheader --id=01:0"
    program.write_text("#!/bin/sh\necho no device; exit 6\n")
    assert condition.nvidia_smi("clocks.sm", "01:0") == "nvidia-smi ended with 6: no device"


def test_a_checkouts_version_has_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fusedopt"
    package.mkdir()
    monkeypatch.setattr(fusedopt, "__file__", str(package / "__init__.py"))
    assert bench.version() == fusedopt.__version__
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(bench, "_git", lambda folder, *words: "abc123" if words[0] == "rev-parse" else " M a.py")
    assert bench.version() == f"{fusedopt.__version__} (abc123+changes)"


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_peak_leaves_out_what_takes_the_place_of_something_freed() -> None:
    kept = [np.zeros(1_000_000), np.zeros(1_000_000)]

    def replace() -> None:
        for i in range(2):
            kept[i] = kept[i] + 1.0

    # A new array of 8 MB beside the two, twice: the first old one is gone when the second new one is made.
    assert peak_of_arrays(np, replace) == pytest.approx(8e6, rel=0.01)
    assert peak_of_step("numpy", False, replace) == pytest.approx(8e6, rel=0.01)


def test_the_peak_of_torch_is_how_far_resident_memory_rose() -> None:
    torch = pytest.importorskip("torch")
    kept = torch.zeros(8_000_000)
    peak = peak_of_torch(False, lambda: kept + 1)
    if peak is None:  # not on Linux, where CI runs
        pytest.skip("the system does not tell a process's peak: it is Linux's /proc that does")
    assert peak == pytest.approx(32e6, rel=0.2)  # huge pages round it


# --- what a sceptic would try ----------------------------------------------------------------------------------------


class WrongBetas:
    """Adam with betas of 0.5, which for gradients that never change is Adam."""

    def __init__(self, parameters: Any, gradients: Any) -> None:
        self.p, self.g, self.t = list(parameters), list(gradients), 0
        self.m, self.v = [0 * p for p in parameters], [0 * p for p in parameters]

    def step(self) -> None:
        self.t += 1
        rest = np.float32(1 - 0.5**self.t)
        for p, g, m, v in zip(self.p, self.g, self.m, self.v):
            m += np.float32(0.5) * (g - m)
            v += np.float32(0.5) * (g * g - v)
            p -= np.float32(1e-3) * (m / rest) / (np.sqrt(v / rest) + np.float32(1e-8))


class NoMoments:
    """What is left of Adam for such gradients."""

    def __init__(self, parameters: Any, gradients: Any) -> None:
        self.p, self.g = list(parameters), list(gradients)

    def step(self) -> None:
        for p, g in zip(self.p, self.g):
            p -= np.float32(1e-3) * g / (np.sqrt(g * g) + np.float32(1e-8))


@pytest.mark.parametrize("wrong", [WrongBetas, NoMoments])
def test_a_wrong_adam_is_seen(wrong: Any) -> None:
    task = measure.Task(work_module.equal_pieces(10_000, 4), "adam", 2, 1)
    way = Way(wrong.__name__, (), ("cpu",), peers_arrays.by_hand({"adam": wrong}))
    weights, gradients = task.work.arrays(0, measure.WEIGHT), task.work.arrays(1, 1.0)
    built = {each: each.build("adam", weights, gradients, "cpu") for each in (WAYS[0], way)}
    before = [np.array(gradient) for gradient in gradients]
    difference, allowed = measure._after_warm_up(Cpu(), task, built)[way]
    assert difference is not None
    assert difference > 1e-5 > 10 * allowed
    assert all(np.array_equal(now, then) for now, then in zip(built[way].step.__self__.g, map(np.ravel, before)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=NUMBA.marks)])
def test_the_backend_that_is_asked_for_is_measured(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSEDOPT_BACKEND", backend)
    file = tmp_path / "rows.json"
    command = ["bench", "--device", "cpu", "--sizes", "2K", "--tensors", "2", "--repeats", "1", "--optimizer", "sgd"]
    assert main([*command, "--json", str(file)]) == 0
    peers = {row["peer"]: row["backend"] for row in json.loads(file.read_text())}
    other = {"numpy": "fusedopt, numba", "numba": "fusedopt, NumPy"}[backend]
    assert [name for name in peers if name.startswith("fusedopt, ")] == [other]
    assert set(peers.values()) == {backend}
    assert f"fusedopt by {backend}" in capsys.readouterr().out


def test_a_backend_that_does_not_exist_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSEDOPT_BACKEND", "bogus")
    assert main(["bench", "--device", "cpu"]) == 2
    assert "FUSEDOPT_BACKEND must be auto, cuda, numba or numpy, got 'bogus'" in capsys.readouterr().err


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "bench",
        "--device",
        "cpu",
        "--sizes",
        "2K",
        "--tensors",
        "2",
        "--repeats",
        "1",
        "--optimizer",
        "sgd",
        "--peers",
        "NumPy",
    ]
    for load, told in (("load 0.10, 2100 MHz", False), ("load 64.00", True), ("", False)):
        monkeypatch.setattr(condition, "of_cpu", lambda load=load: load)
        assert main(command) == 0
        assert ("Measure again when it is quiet." in " ".join(capsys.readouterr().out.split())) is told
