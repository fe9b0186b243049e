"""`python -m fusedopt kernel adam --amsgrad`: the CUDA text that a rule becomes, a user's own rule too."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping

from fusedopt import rules
from fusedopt.backends.device import kernel_texts
from fusedopt.cli.rule_named import OURS, add_options, dashed, given_options, rule_named
from fusedopt.cuda_text import STORED, Variant, pointers_of, rule_text
from fusedopt.storage import SMALL, storage_of
from fusedopt.tracing import trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rule", metavar="RULE", help=f"{', '.join(OURS)}, module:Class or path/to/file.py:Class")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="...", help="flags of the rule; `kernel RULE --help` lists them"
    )
    _add_output_options(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=STORED, default="float32", help="of the arrays (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="the whole source, with its headers in it")


def run(arguments: argparse.Namespace) -> int:
    rule = _rule(rule_named(arguments.rule), arguments)
    text = kernel_text(rule, arguments.dtype, arguments.full)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax("", "cuda", theme="ansi_dark").highlight(text), soft_wrap=True, end="")
    else:
        sys.stdout.write(text)
    return 0


def _rule(cls: type[rules.Rule], arguments: argparse.Namespace) -> rules.Rule:
    """The rule with the flags and switches among the options: what tells one kernel text from another."""
    parser = argparse.ArgumentParser(
        f"python -m fusedopt kernel {arguments.rule}",
        description=f"The flags of {cls.__name__}.",
        conflict_handler="resolve",
    )
    _add_output_options(parser)
    add_options(parser, cls, (name for name in cls.switches() if cls.options()[name].init))
    return cls(**given_options(parser.parse_args(dashed(arguments.options), arguments)))


def kernel_text(rule: rules.Rule, dtype: str, full: bool) -> str:
    """The generated `rule.cuh` of one variant; `full`: the source that NVRTC compiles, headers in place."""
    variant = Variant(trace(rule), storage_of(rule, dtype, dtype, SMALL))
    text = rule_text([variant], rule.number_names(), len(rule.scalar_state), pointers_of([variant]))
    if not full:
        return text
    source, headers = kernel_texts()
    return _inlined(source, {**headers, "rule.cuh": text})


def _inlined(source: str, headers: Mapping[str, str]) -> str:
    waiting = dict(headers)

    def included(match: re.Match[str]) -> str:
        name = match[1]
        if name in headers:
            text = waiting.pop(name, "").replace("#pragma once\n", "")
            return f"// {name}\n{inlined(text)}" if text else ""
        return match[0]

    def inlined(text: str) -> str:
        return re.sub(r'^#include "(.+)".*$', included, text, flags=re.MULTILINE)

    return inlined(source)
