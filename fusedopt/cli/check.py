"""`python -m fusedopt check my_rules.py:MyRule`: the checks of `fusedopt.testing` on a rule of one's own."""

from __future__ import annotations

import argparse

from fusedopt.cli.rule_named import OURS, add_options, dashed, given_options, rule_named
from fusedopt.testing import CHECKS, check_rule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rule", metavar="RULE", help=f"path/to/file.py:Class, module:Class, or {', '.join(OURS)}")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="...", help="hyperparameters; `check RULE --help` lists them"
    )


def run(arguments: argparse.Namespace) -> int:
    """0; 1 where a check fails."""
    cls = rule_named(arguments.rule)
    parser = argparse.ArgumentParser(
        f"python -m fusedopt check {arguments.rule}",
        description=f"The hyperparameters that {cls.__name__} is checked with.",
        conflict_handler="resolve",
    )
    parser.add_argument("--without", nargs="+", metavar="CHECK", default=(), help=f"leave out, of: {', '.join(CHECKS)}")
    parser.add_argument(
        "--results", nargs="+", metavar="STATE", default=(), help="states that nothing is computed from, as an average"
    )
    add_options(parser, cls, (name for name, field in cls.options().items() if field.init))
    parser.parse_args(dashed(arguments.options), arguments)
    report = check_rule(
        cls,
        results=arguments.results,
        without=arguments.without,
        raise_on_failure=False,
        **given_options(arguments),
    )
    print(report)
    return 0 if report.passed else 1
