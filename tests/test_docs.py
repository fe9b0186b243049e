"""docs/custom_rules.md runs as printed, and its rules are their papers' mathematics; docs/optimizers.md is current."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fusedopt
from cases import Plain, ordinary
from fusedopt import docs
from fusedopt.cli import main
from fusedopt.rules import Rule, State, Values, hyperparameter

ROOT = Path(__file__).parents[1]
CUSTOM = (ROOT / "docs" / "custom_rules.md").read_text()
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", CUSTOM, re.DOTALL)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where the page's files are: a program finds them as modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("momentum", "adan"):
        sys.modules.pop(name, None)


def written(folder, block):
    """Whether a block is a file, which is written then."""
    name = re.match(r"# (\w+\.py)\n", block)
    if name:
        (folder / name[1]).write_text(block)
    return bool(name)


@pytest.mark.slow
def test_every_block_of_the_page_on_custom_rules_runs(folder, capsys):
    program = {"__name__": "page"}
    commands = []
    for language, block in BLOCKS:
        if language == "sh":
            commands += [line.removeprefix("python -m fusedopt ") for line in block.splitlines()]
        elif not written(folder, block):
            exec(compile(block, "a block", "exec"), program)
    printed = capsys.readouterr().out
    assert printed.startswith(
        "20 bytes a float32 parameter: reads p, g, moments; writes p, moments; keeps 4 beside p and g"
    )
    assert "44 bytes a float32 parameter" in printed
    close, momentum, closer = (float(line) for line in printed.splitlines() if re.fullmatch(r"[\d.e-]+", line))
    assert close < 1e-6
    assert momentum == 0.89
    assert closer < 0.05
    assert program["torch_optimizer"].param_groups[0]["lr"] == 1e-4
    assert program["report"].passed
    np.testing.assert_allclose(program["p"], 1 - 0.1 * (1 + 1.9), rtol=1e-6)
    assert len(commands) == 4
    for command in commands:
        assert main(re.findall(r'"[^"]*"|\S+', command.replace('"the rule"', "the"))) == 0
        assert "momentum" in command or "AdanRule" in capsys.readouterr().out


def rule_of(folder, name):
    for language, block in BLOCKS:
        if language == "python":
            written(folder, block)
    program = {"__name__": name}
    exec(compile((folder / f"{name}.py").read_text(), name, "exec"), program)
    return program[f"{name.capitalize()}Rule"]


def test_momentum_is_the_guides(folder):
    plain = Plain(rule_of(folder, "momentum")(lr=0.1, momentum=0.8), ordinary(50, "float64", 1))
    p, v = plain.parameter, 0
    for step in range(4):
        g = ordinary(50, "float64", 2 + step)
        plain.update(g)
        v = v * 0.8 + g
        p = p - 0.1 * v
    np.testing.assert_allclose(plain.parameter, p, rtol=1e-14)


def test_a_normalized_step_has_its_length(folder):
    rule = rule_of(folder, "normalized")
    stepped = fusedopt.functional.apply(rule(lr=0.5), np.zeros(2), np.array([30.0, 40.0]), step=1)
    np.testing.assert_allclose(stepped.p, [-0.3, -0.4], rtol=1e-15)
    assert not fusedopt.functional.apply(rule(), np.zeros(2), np.zeros(2), step=1).p.any()


def test_adan_is_the_papers_algorithm(folder):
    rule = rule_of(folder, "adan")(lr=0.1, betas=(0.1, 0.3, 0.2), eps=1e-3, weight_decay=0.5)
    plain = Plain(rule, ordinary(50, "float64", 1))
    theta, gradients = plain.parameter, [ordinary(50, "float64", 2 + step) for step in range(5)]
    for k, g in enumerate(gradients):  # the paper's k, from 0
        if k == 0:
            m, v, n = g, 0 * g, g**2
        else:
            before = gradients[k - 1]
            m = (1 - 0.1) * m + 0.1 * g
            v = g - before if k == 1 else (1 - 0.3) * v + 0.3 * (g - before)
            n = (1 - 0.2) * n + 0.2 * (g + (1 - 0.3) * (g - before)) ** 2
        eta = 0.1 / (np.sqrt(n) + 1e-3)
        theta = (1 + 0.5 * 0.1) ** -1 * (theta - eta * (m + (1 - 0.3) * v))
        plain.update(g)
        np.testing.assert_allclose(plain.parameter, theta, rtol=1e-13, err_msg=str(k))


def test_the_tables_of_the_pages_are_the_generated_ones():
    for page, text in docs.pages().items():
        assert page.read_text() == text, f"{page.name}: run python -m fusedopt.docs"


@dataclasses.dataclass(frozen=True)
class Two(Rule):
    """Two states, each with a flag of its own.

        p <- p - g | a    where a

    Source: nobody;
    at all.
    """

    momentum: float = hyperparameter(0.0, "[0, 1)", switch=True)
    centered: bool = hyperparameter(False)

    state = (State("buffer", when="momentum"), State("average", when="centered"))

    def scalars(self, step, a):
        return Values(momentum=self.momentum)

    def update(self, p, g, s, c):
        new = Values()
        if self.momentum:
            new.buffer = c.momentum * s.buffer + g
        if self.centered:
            new.average = g  # written, and never read
        return p - g, new


def test_a_row_says_what_each_flag_moves_and_keeps():
    assert docs.row(Two) == (
        "`Two`",
        r"`p <- p - g \| a  where a`",
        "`buffer` (momentum), `average` (centered)",
        "12, 20 with `momentum`, 16 with `centered`, 24 with `momentum` and `centered`",
        "0, 4 with `momentum`, 4 with `centered`, 8 with `momentum` and `centered`",
        "1",
        "nobody; at all",
    )


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="has no marks <!-- table --> and <!-- /table -->"):
        docs.with_section("# Optimizers", "table", "")


PAGES = [page for pattern in ("*.md", "docs/*.md", "benchmarks/*.md") for page in sorted(ROOT.glob(pattern))]


def anchors_of(page):
    """What a link may end with, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To files of this repository, pictures among them, and to their headings."""
    links = re.findall(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*))?\)", page.read_text())
    for path, anchor in links:
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors_of(target), f"{path}#{anchor}"
