"""The Python of the README and of docs/ runs as it is printed, block after block in one program."""

import re
import runpy
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

import fusedopt
import fusedopt.torch
from fusedopt import schedules

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LOW_PRECISION = (ROOT / "docs" / "low_precision.md").read_text()


def run_blocks(text: str) -> dict[str, Any]:
    """What the program has defined at its end."""
    program: dict[str, Any] = {"__name__": "readme"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "a block", "exec"), program)
    return program


def test_every_block_of_the_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program = run_blocks(README)
    loss = abs(program["x"] @ program["w"].data + program["b"].data - program["y"]).mean()
    assert loss < 0.19, "ten steps of Adam have not learned anything"  # zeros start at 0.1 * 1 + 0.9 * 0.1... = 0.1


def test_state_dicts_of_torch_load_over_arrays_and_back_in_bfloat16_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program = run_blocks(README)
    converted, to_numpy, to_torch = (program[name] for name in ("converted", "to_numpy", "to_torch"))
    layer, low = torch.nn.Linear(96, 64).bfloat16(), {"master_weights": "split", "state_dtype": {"exp_avg": "bfloat16"}}
    theirs = fusedopt.torch.AdamW(layer.parameters(), **low)
    layer(torch.ones(8, 96, dtype=torch.bfloat16)).square().mean().backward()
    theirs.step()
    ours = fusedopt.AdamW([fusedopt.Parameter(to_numpy(p)) for p in layer.parameters()], **low)
    ours.load_state_dict(converted(theirs.state_dict(), to_numpy))
    again = fusedopt.torch.AdamW(layer.parameters(), **low)
    again.load_state_dict(converted(ours.state_dict(), to_torch))
    for p in layer.parameters():
        assert theirs.state[p]["remainder"].any()
        assert all(torch.equal(value, again.state[p][key]) for key, value in theirs.state[p].items())


def test_every_block_of_the_page_on_torch_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program = run_blocks((ROOT / "docs" / "torch.md").read_text())
    assert (tmp_path / "optimizer.pt").exists()
    assert all(p.grad is None for p in program["released"])
    low = program["optimizer"]
    for p, wide, again in zip(*(program[name].parameters() for name in ("narrow", "trained", "wide"))):
        assert low.state[p]["remainder"].any()
        assert torch.equal(wide, again)  # float32 as bfloat16 and a remainder, and back
        assert torch.equal(program["theirs"].state[p]["exp_avg"], low.state[p]["exp_avg"].bfloat16())
        assert all("master_param" not in entry for entry in program["before"].state.values())


def test_every_block_of_the_page_on_low_precision_runs(capsys):
    run_blocks(LOW_PRECISION)
    kept = ["exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale", "remainder", "step"]
    assert capsys.readouterr().out == f"{kept}\n"


def test_the_page_on_low_precision_names_all_that_refuse_a_storage():
    line = re.search(r"all of it by (.*?); `.int8.`(.*?), which live by", LOW_PRECISION, re.DOTALL)
    everything, codes = (set(re.findall(r"`(\w+)`", part)) - {"RMSprop"} for part in line.groups())
    optimizers = {
        name: each for name, each in vars(fusedopt).items() if isinstance(each, type) and hasattr(each, "rule")
    }
    assert {name for name, each in optimizers.items() if refuses(each, kahan=True)} == everything
    assert {name for name, each in optimizers.items() if refuses(each, state_dtype="int8")} == everything | codes
    assert refuses(fusedopt.RMSprop, state_dtype="int8", centered=True)


def refuses(optimizer: type[fusedopt.Optimizer], **options: Any) -> bool:
    try:
        optimizer([fusedopt.Parameter(np.zeros((64, 128), ml_dtypes.bfloat16))], **options)
    except (TypeError, ValueError):
        return True
    return False


def test_every_block_of_the_page_on_megengine_runs():
    program = run_blocks((ROOT / "docs" / "megengine.md").read_text())
    assert program["optimizer"].param_groups[0]["lr"] == program["resumed"].param_groups[0]["lr"] == 0.01 * 0.1**2


def test_every_block_of_the_page_on_mindspore_runs():
    program = run_blocks((ROOT / "docs" / "mindspore.md").read_text())
    assert program["own"].global_step == 1


def test_every_block_of_the_page_on_optimizers_runs():
    program = run_blocks((ROOT / "docs" / "optimizers.md").read_text())
    assert abs(program["x"].data - 1).max() < 1e-6, "Rosenbrock's function is lowest at (1, 1)"
    assert program["table"].grad is None


def test_every_block_of_the_page_on_schedules_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "schedules.md").read_text()
    run_blocks(text)
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", text, re.MULTILINE)
    assert (tmp_path / "schedules.png").exists()


def test_the_page_on_schedules_has_each_of_them():
    text = (ROOT / "docs" / "schedules.md").read_text()
    derived = {"Schedule", "Scaled", "Product", "Then"}  # made by operators and `then`
    assert [name for name in schedules.__all__ if name not in derived and f"{name}(" not in text] == []


def test_every_test_that_the_readme_names_is_there():
    for path in re.findall(r"`((?:tests|benchmarks)/\S+\.py)`", README):
        assert (ROOT / path).exists(), path


def test_the_table_of_speed_is_the_committed_result():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    assert tables["readme_with_table"]() == README, "run python benchmarks/tables.py"
    assert tables["low_precision"]() == tables["LOW_PRECISION"].read_text(), "run python benchmarks/tables.py"
