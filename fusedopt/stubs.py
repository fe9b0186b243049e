"""The stubs of the optimizers and of `functional`, for tools that do not run code: `python -m fusedopt.stubs` rewrites
them.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from fusedopt.optimizers import RULES
from fusedopt.rule_functions import function_name, signature_of
from fusedopt.rules import Rule
from fusedopt.single_step import result_type, state_names

# Modules of optimizers, each with the type of its tensors, which a number may be given as.
MODULES = {"fusedopt": "", "fusedopt.torch": "Tensor"}
IMPORTS = ["from fusedopt.rules import Rule", "from fusedopt.schedules.options import NumberOrSchedule"]


def path(package: str) -> Path:
    """Where the stub of a package's optimizers is."""
    return Path(__file__).parent.joinpath(*package.split(".")[1:], "optimizers.pyi")


def stub_text(package: str) -> str:
    """The stub of a package's optimizers: each class with its constructor's arguments, types and defaults."""
    tensor = MODULES[package]
    module = importlib.import_module(f"{package}.optimizers")
    lines = ["# Written by fusedopt.stubs from the rules.", "from typing import Any", ""]
    lines += [f"from torch import {tensor}", ""] if tensor else []
    lines += [*sorted([f"from {package}.optimizer import Optimizer", *IMPORTS]), ""]
    lines += ["RULES: dict[str, type[Rule]]", "PROCEDURES: dict[str, type[Rule]]", ""]
    for name, cls in vars(module).items():
        if inspect.isclass(cls) and issubclass(cls, module.Optimizer) and cls is not module.Optimizer:
            lines += [f"class {name}(Optimizer):", "    def __init__(", "        self,", "        params: Any,"]
            keyword_only = False
            for option in list(inspect.signature(cls).parameters.values())[1:]:
                if option.kind is option.KEYWORD_ONLY and not keyword_only:
                    lines.append("        *,")
                    keyword_only = True
                lines.append(f"        {option.name}: {_of_optimizer(option, tensor)} = {option.default!r},")
            lines += ["    ) -> None: ...", ""]
    return "\n".join(lines[:-1]) + "\n"


def functional_path() -> Path:
    """Where the stub of the functions is."""
    return Path(__file__).parent / "functional.pyi"


def functional_text() -> str:
    """The stub of `functional`: a named tuple and a function for each rule."""
    lines = ["# Written by fusedopt.stubs from the rules.", "from typing import Any, NamedTuple", ""]
    lines += ["from fusedopt.single_step import apply as apply", ""]
    for rule in RULES.values():
        named = result_type(rule)
        lines += [f"class {named.__name__}(NamedTuple):"]
        lines += [f"    {field}: {_kept(rule, field)}" for field in ("p", *state_names(rule))]
        lines += ["", f"def {function_name(rule)}("]
        keyword_only = False
        for argument in signature_of(rule).parameters.values():
            if argument.kind is argument.KEYWORD_ONLY and not keyword_only:
                lines.append("    *,")
                keyword_only = True
            default = "" if argument.default is argument.empty else f" = {argument.default!r}"
            lines.append(f"    {argument.name}: {ARGUMENTS.get(argument.name) or _argument(rule, argument)}{default},")
        lines += [f") -> {named.__name__}: ...", ""]
    return "\n".join(lines[:-1]) + "\n"


ARGUMENTS = {"p": "Any", "g": "Any", "step": "int", "in_place": "bool"}


def _kept(rule: type[Rule], name: str) -> str:
    """The type of what is kept: an array of some library, or a number."""
    return "float" if name in rule.scalar_state else "Any"


def _argument(rule: type[Rule], argument: inspect.Parameter) -> str:
    if argument.name in rule.scalar_state:
        return "float | None"
    return "Any" if argument.name in state_names(rule) else _annotation(argument)


def _of_optimizer(option: inspect.Parameter, tensor: str) -> str:
    """The type of a constructor's argument: a number may be a schedule too, or a tensor."""
    name = _annotation(option)
    name = "NumberOrSchedule" if name == "float" else name
    return re.sub("float|NumberOrSchedule", rf"\g<0> | {tensor}", name) if tensor else name


def _annotation(option: inspect.Parameter) -> str:
    if option.annotation is option.empty:  # a flag
        return "bool | None" if option.default is None else "bool"
    name = getattr(option.annotation, "__name__", str(option.annotation))
    return str(option.annotation) if "[" in str(option.annotation) else name


if __name__ == "__main__":
    for package in MODULES:
        path(package).write_text(stub_text(package))
    functional_path().write_text(functional_text())
