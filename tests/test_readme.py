"""The README's Python runs as it is printed, block after block in one program."""

import re
import runpy
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_every_block_of_the_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    program: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), program)
    loss = abs(program["x"] @ program["w"].data + program["b"].data - program["y"]).mean()
    assert loss < 0.19, "ten steps of Adam have not learned anything"  # zeros start at 0.1 * 1 + 0.9 * 0.1... = 0.1


def test_every_test_that_the_readme_names_is_there():
    for path in re.findall(r"`((?:tests|benchmarks)/\S+\.py)`", README):
        assert (Path(__file__).parents[1] / path).exists(), path


def test_the_table_of_speed_is_the_committed_result():
    tables = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "tables.py"))
    assert tables["readme_with_table"]() == README, "run python benchmarks/tables.py"
