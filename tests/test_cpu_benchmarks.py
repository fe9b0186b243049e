"""The parts of the CPU's benchmarks that need no quiet machine. No test asks how fast anything is, but the floor's."""

# ruff: noqa: E402  # the benchmarks are found once their folder is on the path

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import floor
import growth
import overhead
import tables
from fusedopt.cli.bench import condition, machine
from fusedopt.cli.bench.machine import Cpu
from grouped import dealt
from timing import Figure, figure

FIGURES = [Figure("slow", 1.0, "x", 1.0, 1.0, 3, at_least=2), Figure("free", 5.0, "us", 4.0, 6.0, 3)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small caches and no pauses."""
    monkeypatch.setattr(condition, "cpu_cache_bytes", lambda: 2**20)
    monkeypatch.setattr(machine, "PAUSE", 0.0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("FUSEDOPT_BACKEND", "auto")


def test_a_figure_is_the_median_with_quartiles_and_meets_its_bar() -> None:
    found = figure("ratio", "times", [3.0, 1.0, 2.0, 4.0, 5.0], at_least=3)
    assert (found.low, found.value, found.high, found.met) == (2, 3, 4, True)
    assert figure("one", "us", [7.0], at_most=6).met is False
    assert figure("none", "us", [7.0]).met is None
    assert json.loads(json.dumps(found.record()))["met"] is True


@pytest.mark.parametrize("path", overhead.PATHS, ids=lambda path: path.title)
def test_the_python_time_of_a_step_has_no_arithmetic_in_it(path: overhead.Path) -> None:
    if path.backend == "numba":
        pytest.importorskip("numba")
    steps = overhead.Steps(6, path, groups=2)
    before = np.array(steps.parameters[0].data)
    assert 0 < steps.unchanged() < 1
    steps.change()
    assert 0 < steps.unchanged() < 1
    assert np.array_equal(before, steps.parameters[0].data)
    steps.parameters[2].grad = None
    with pytest.raises(RuntimeError, match="new plan"):
        steps.unchanged()


@pytest.mark.parametrize("path", [overhead.NUMPY_SHARED, overhead.NUMBA_SHARED], ids=lambda path: path.title)
def test_empty_tasks_are_shared_where_a_path_says_so(path: overhead.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.backend == "numba":
        pytest.importorskip("numba")
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", "2")
    module = f"fusedopt.backends.{path.backend}.on_all_threads"
    pieces: list[int] = []
    monkeypatch.setattr(module, lambda work, count: pieces.append(count))
    overhead.Steps(5, path).unchanged()
    assert pieces[-1] == 2


def test_each_bar_is_of_a_way_that_there_is() -> None:
    compare = pytest.importorskip("compare")  # needs torch
    for ours, bars in compare.LARGE_BARS.items():
        assert {ours, *bars} <= set(compare.WAY)
    assert set(compare.SMALL_BARS) <= set(compare.WAY)
    assert {peer for bars in compare.LARGE_BARS.values() for peer in bars} == set(tables.PEERS)


def test_figures_of_rows_carry_the_bars_of_their_peers() -> None:
    compare = pytest.importorskip("compare")
    compared = SimpleNamespace(seconds=2e-3, seconds_low=1e-3, seconds_high=3e-3, samples=9)
    peer = SimpleNamespace(peer="torch fused", ratio=0.5, ratio_low=0.4, ratio_high=0.6, samples=9)
    ours, against = compare.ratios([compared, peer], "adam", {"torch fused": 0.6})
    assert (ours.name, ours.value, ours.unit, ours.met) == ("adam", 2.0, "ms", None)
    assert (against.name, against.value, against.met) == ("adam against torch fused", 0.5, False)


def test_a_peer_that_computes_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = pytest.importorskip("compare")
    naive = compare.WAY["NumPy whole arrays"]
    other = dataclasses.replace(naive, build=lambda name, *rest: naive.build("sgd", *rest))
    with pytest.raises(RuntimeError, match="NumPy whole arrays computes something else"):
        compare.rows_of(Cpu(), compare.equal_pieces(100, 1), "adam", [compare.WAY["fusedopt, NumPy"], other], 1)


@pytest.mark.slow
def test_the_comparison_writes_figures_with_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = pytest.importorskip("compare")
    monkeypatch.setattr(compare, "TENSORS", (10, 1_000, 10_000))
    path, threads = tmp_path / "cpu" / "bars.json", "FUSEDOPT_NUM_THREADS"
    monkeypatch.setenv(threads, "2")  # taken back, whatever the program sets
    assert compare.main(["--size=100000", "--repeats=1", "--threads=2", f"--out={path}"]) == 0
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert {"device", "driver", "versions", "version", "threads", "condition_before"} <= set(next(iter(rows.values())))
    assert sum(row["met"] is not None for row in rows.values()) >= 30
    section = tables.speed_section(rows)
    assert section.count(" x |") >= 5 * len(tables.OPTIMIZERS)


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    curves = tuple(dataclasses.replace(c, parameters=3_000, counts=c.counts[:3]) for c in growth.CURVES)
    monkeypatch.setattr(growth, "CURVES", tuple(dataclasses.replace(c, tensors=min(c.tensors, 10)) for c in curves))
    return


@pytest.mark.usefixtures("few_points")
def test_the_growth_has_a_point_for_each_way_that_is_here(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    left_out: list[str] = []
    found = list(growth.curves(Cpu(), 60, 100_000, repeats=1, say=left_out.append))
    assert {(p.curve, p.count) for p in found} >= {
        ("threads", 4),
        ("groups", 10),
        ("tensors", 10),
        ("parameters", 10_000),
    }
    assert all(p.seconds > 0 and p.floor_seconds > 0 for p in found)
    assert {p.curve for p in found if p.host_seconds} == {"tensors", "groups"}
    assert {p.threads for p in found if p.curve == "threads"} == {1, 2, 4}
    growth.save(tmp_path / "growth.json", found)
    assert len(json.loads((tmp_path / "growth.json").read_text())) == len(found)
    pytest.importorskip("matplotlib")
    from growth_picture import draw

    draw(tmp_path / "growth.png", found)
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.usefixtures("few_points")
def test_what_the_growth_leaves_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out: list[str] = []
    assert not list(growth.curves(Cpu(), 0.0, 100_000, repeats=1, say=left_out.append))
    assert len(left_out) == 12
    assert "0 seconds are over" in left_out[0]
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 17 * 3_000)
    work = dataclasses.replace(growth.CURVES[-1], ways=("fusedopt, NumPy", "fusedopt"))
    assert not list(growth.that_fit(Cpu(), work, left_out.append))
    assert "GB are free" in left_out[-1]


def test_numbers_of_the_growth_are_random_whatever_the_size() -> None:
    noise = np.arange(10.0)
    for size, expected in ((7, noise[:7]), (30, np.tile(noise, 3)), (15, np.resize(noise, 15))):
        assert np.array_equal(growth.repeated(noise, size).reshape(-1), expected)
    assert growth.repeated(noise, 30).base is not None  # a view: 4 GB are not there twice


def test_tensors_are_dealt_to_groups_of_neighbours() -> None:
    assert [group["params"] for group in dealt("abcdefg", 3)] == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


def test_the_tables_of_the_benchmarks_readme_are_the_committed_results() -> None:
    assert tables.own_readme() == tables.OWN_README.read_text(), "run python benchmarks/tables.py"


def test_what_could_not_be_measured_is_a_dash_in_the_tables() -> None:
    ours = {"curve": "tensors", "peer": "fusedopt", "tensors": 1, "seconds": 2e-3, "floor_seconds": 1e-3}
    points = [{**ours, "host_seconds": 2e-5}, {**ours, "tensors": 3, "host_seconds": None}]
    points.append({**points[0], "peer": "torch fused", "seconds": 0.25})
    assert tables.growth_table(points, "tensors").splitlines()[2:] == [
        "| 1 | 2 | 250 | 1 | 0.02 |",
        "| 3 | 2 | - | 1 | - |",
    ]
    section = tables.replaced("a\n<!-- x -->\nold\n<!-- /x -->\nb", "x", "new")
    assert section == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"


def test_the_limit_is_measured_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_limit = pytest.importorskip("cpu_limit")  # needs torch
    monkeypatch.setattr(
        sys, "argv", ["cpu_limit.py", "--size=100000", "--repeats=1", f"--out={tmp_path / 'limit.json'}"]
    )
    assert cpu_limit.main() == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "limit.json").read_text())}
    assert len(rows) >= 12 + 3 + 12 + 3
    assert tables.limit_table(rows).count("\n| the step, blocks of") == 6


def test_compilers_are_spared_models_of_many_tensors() -> None:
    models = pytest.importorskip("models")
    few, many = (models.equal_pieces(20_000, tensors) for tensors in (10, 10_000))
    titles = [{way.title for way in models.ways_for(work)} for work in (few, many)]
    assert titles[0] - titles[1] == {"torch compile", "optax jit"}
    assert "fusedopt, numba" not in titles[0]


def test_a_missed_floor_is_tried_again_and_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    values = iter([1.0, 1.0, 3.0])
    assert [f.value for f in floor.attempted(lambda: iter([floor.at_least("ratio", "x", next(values), 2.0)]))] == [3.0]
    monkeypatch.setattr(floor, "measured", lambda absent: absent.append("torch: not here") or FIGURES)
    assert floor.main() == 1
    printed = capsys.readouterr().out
    assert "Missed: slow." in printed
    assert "not measured: torch: not here" in printed
    monkeypatch.setattr(floor, "measured", lambda absent: FIGURES[1:])
    assert floor.main() == 0


@pytest.mark.slow
def test_a_step_that_takes_twice_as_long_falls_below_every_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    for_torch = pytest.importorskip("fusedopt.torch")
    pytest.importorskip("numba")
    for cls in (floor.fusedopt.Optimizer, for_torch.Adam, for_torch.AdamW):
        monkeypatch.setattr(cls, "step", _twice(cls.step))
    monkeypatch.setattr(floor, "ATTEMPTS", 1)
    monkeypatch.setattr(floor, "imports", lambda: iter(()))
    found = {f.name: f for f in floor.measured([]) if "memory" not in f.name}
    assert len(found) >= 8
    assert [name for name, f in found.items() if f.met] == []


def _twice(step: Any) -> Any:
    def both(self: Any, *arguments: Any, **options: Any) -> Any:
        step(self, *arguments, **options)
        return step(self, *arguments, **options)

    return both


def test_each_storage_is_measured_against_float32_with_the_bar_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    storage_speed = pytest.importorskip("storage_speed")  # needs torch
    monkeypatch.setattr(storage_speed, "backends", lambda: ["numpy"])
    found = {each.name: each for each in storage_speed.measured(Cpu(), 5_000, 2, ["master", "split+int8"])}
    for name, bar in (("master", 0.5), ("split+int8", 0.2)):
        assert found[f"{name}, numpy against fusedopt, NumPy"].at_least == bar
        assert found[f"{name}, numpy against fusedopt, NumPy"].value > 0
        assert found[f"{name}, numpy: extra memory of a step"].at_most == 0.01
    monkeypatch.setattr(storage_speed, "rows_of", lambda *_: [None])
    with pytest.raises(RuntimeError, match="some storages cannot step"):
        list(storage_speed.measured(Cpu(), 5_000, 2, ["master"]))


def test_a_storage_that_takes_longer_is_slower_by_as_much() -> None:
    storage_speed = pytest.importorskip("storage_speed")
    row = SimpleNamespace(ratio=4.0, ratio_low=2.0, ratio_high=5.0, samples=3)
    found = storage_speed.against(row, "a", 0.5, "numpy")
    assert (found.value, found.low, found.high, found.met) == (0.25, 0.2, 0.5, False)
    assert storage_speed.against(row, "a", 0.5, "numba").met is None  # the bar is that of float32 in NumPy
    row = SimpleNamespace(extra_bytes=30, kept_bytes_a_parameter=10.0, parameters=100)
    assert (storage_speed.extra(row, "b").value, storage_speed.extra(row, "b").met) == (0.03, False)
