"""`python -m fusedopt kernel adam --amsgrad`: the CUDA text that a rule becomes, a user's own rule too."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from fusedopt import rules
from fusedopt.backends.device import kernel_texts
from fusedopt.cuda_text import STORED, Variant, rule_text
from fusedopt.tracing import trace


def _rules_in(module: ModuleType) -> dict[str, type[rules.Rule]]:
    found = {name: getattr(thing, "rule", thing) for name, thing in vars(module).items()}  # an Optimizer has its rule
    return {
        name: rule
        for name, rule in found.items()
        if isinstance(rule, type) and issubclass(rule, rules.Rule) and rule is not rules.Rule
    }


OURS = {name.lower(): rule for name, rule in _rules_in(rules).items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = [name for name, rule in OURS.items() if not rule.procedure]
    parser.add_argument("rule", metavar="RULE", help=f"{', '.join(known)}, module:Class or path/to/file.py:Class")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="...", help="flags of the rule; `kernel RULE --help` lists them"
    )
    _add_output_options(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=STORED, default="float32", help="of the arrays (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="the whole source, with its headers in it")


def run(arguments: argparse.Namespace) -> int:
    cls = rule_named(arguments.rule)
    if cls.procedure:
        raise ValueError(
            f"{cls.__name__} is a procedure: its step is a series of array operations, and no single kernel; those of "
            f"the other rules can be shown, such as `kernel adam`."
        )
    rule = _rule(cls, arguments)
    text = kernel_text(rule, arguments.dtype, arguments.full)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax("", "cuda", theme="ansi_dark").highlight(text), soft_wrap=True, end="")
    else:
        sys.stdout.write(text)
    return 0


def rule_named(text: str) -> type[rules.Rule]:
    """The rule class `adam` (any case), `module:Class` or `path/to/file.py:Class`; an optimizer stands for its rule.

    Raises:
        ValueError: There is none of that name.
        ImportError, OSError: The module or the file cannot be read.
    """
    place, colon, name = text.rpartition(":")
    if not colon:
        place, name, known = "fusedopt.rules", text.lower(), OURS
    else:
        known = _rules_in(_module(place))
    if name in known:
        return known[name]
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]!r}?" if near else f"there are {', '.join(known) or 'none'}."
    raise ValueError(f"{place} has no rule {name!r}; {hint} One of your own is module:Class or path/to/file.py:Class.")


def _module(place: str) -> ModuleType:
    path = Path(place)
    sys.path.insert(0, str(path.parent.resolve()))  # as `python file.py` and `python -m module` do
    if path.suffix != ".py":
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _rule(cls: type[rules.Rule], arguments: argparse.Namespace) -> rules.Rule:
    """The rule with the flags and switches among the options: what tells one kernel text from another."""
    parser = argparse.ArgumentParser(
        f"python -m fusedopt kernel {arguments.rule}",
        description=f"The flags of {cls.__name__}.",
        conflict_handler="resolve",
    )
    _add_output_options(parser)
    chosen = [name for name, _ in cls().flags if cls.options()[name].init]
    for name in chosen:
        field = cls.options()[name]
        option, doc = f"--{name.replace('_', '-')}", field.metadata["doc"].replace("%", "%%")
        if isinstance(field.default, bool):
            parser.add_argument(option, dest=f"rule.{name}", action=argparse.BooleanOptionalAction, help=doc)
        else:
            parser.add_argument(option, dest=f"rule.{name}", type=float, metavar="NUMBER", help=doc)
    parser.parse_args(arguments.options, arguments)
    given = {name: getattr(arguments, f"rule.{name}") for name in chosen}
    return cls(**{name: value for name, value in given.items() if value is not None})


def kernel_text(rule: rules.Rule, dtype: str, full: bool) -> str:
    """The generated `rule.cuh` of one variant; `full`: the source that NVRTC compiles, headers in place."""
    variant = Variant(trace(rule), dtype, dtype, dtype)
    text = rule_text([variant], rule.number_names(), len(rule.scalar_state), max(1, len(rule.all_states())))
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
