"""A rule as the command line names it, one of a user's own too, and its hyperparameters as options."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from fusedopt import rules
from fusedopt.rules.hyperparameter import is_flag


def _rules_in(module: ModuleType) -> dict[str, type[rules.Rule]]:
    found = {name: getattr(thing, "rule", thing) for name, thing in vars(module).items()}  # an Optimizer has its rule
    return {
        name: rule
        for name, rule in found.items()
        if isinstance(rule, type) and issubclass(rule, rules.Rule) and rule is not rules.Rule
    }


_NAMED = {name.lower(): rule for name, rule in _rules_in(rules).items()}
OURS = {name: rule for name, rule in _NAMED.items() if not rule.procedure}


def rule_named(text: str) -> type[rules.Rule]:
    """The rule class `adam` (any case), `module:Class` or `path/to/file.py:Class`; an optimizer stands for its rule.

    Raises:
        ValueError: There is none of that name, or it is a procedure.
        ImportError, OSError: The module or the file cannot be read.
    """
    place, colon, name = text.rpartition(":")
    if text.endswith(".py"):
        _name_rules_of(text)
    if not colon:
        place, name, known = "fusedopt.rules", text.lower(), _NAMED
    else:
        known = _rules_in(_module(place))
    if name in known:
        rule = known[name]
        if rule.procedure:
            raise ValueError(
                f"{rule.__name__} is a procedure: its step is a series of array operations, and no single kernel; the "
                f"rules with one are {', '.join(OURS)}."
            )
        return rule
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]!r}?" if near else f"there are {', '.join(known) or 'none'}."
    raise ValueError(f"{place} has no rule {name!r}; {hint} One of your own is module:Class or path/to/file.py:Class.")


def _name_rules_of(path: str) -> NoReturn:
    """Raise ValueError for a file of which no class is named, with those that it has."""
    own = [name for name, rule in _rules_in(_module(path)).items() if not rule.__module__.startswith("fusedopt.")]
    if not own:
        raise ValueError(f"{path} has no rule: no class derived from fusedopt.rules.Rule.")
    raise ValueError(f"{path} is a file; name the class in it: {' or '.join(f'{path}:{name}' for name in own)}.")


def _module(place: str) -> ModuleType:
    """The module or file, executed.

    Raises:
        ImportError, OSError: It cannot be read.
        TypeError, ValueError: A rule in it is declared wrong; the message says in which line.
    """
    sys.path.insert(0, str(Path(place).parent.resolve()))  # as `python file.py` and `python -m module` do
    try:
        return _of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_told(error)) from error


def _of_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]  # half of it would be what `import` finds next
        raise
    return module


def _told(error: Exception) -> str:
    """The message, with the file and line that was being executed, and a cure where dataclasses have none."""
    traceback, place = error.__traceback__, ""
    while traceback is not None:
        code, package = traceback.tb_frame.f_code, str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if package not in ("fusedopt", "importlib", "dataclasses"):
            place = f" ({Path(code.co_filename).name}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    cure = ": decorate a rule with @dataclass(frozen=True)" if "cannot inherit non-frozen" in str(error) else ""
    return f"{error}{cure}{place}"


def dashed(words: Iterable[str]) -> list[str]:
    """Options as `add_options` names them: `--weight_decay=0.1`, which is Python's name, as `--weight-decay=0.1`."""
    options = [word.partition("=") if word.startswith("--") else (word, "", "") for word in words]
    return [(name.replace("_", "-") if name.startswith("--") else name) + sign + value for name, sign, value in options]


def add_options(parser: argparse.ArgumentParser, cls: type[rules.Rule], names: Iterable[str]) -> None:
    """An option for each of these hyperparameters."""
    for name in names:
        field = cls.options()[name]
        option, doc = f"--{name.replace('_', '-')}", field.metadata["doc"].replace("%", "%%")
        told: dict[str, Any] = {"dest": f"rule.{name}", "help": doc}
        if isinstance(field.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, **told)
        elif is_flag(field):
            parser.add_argument(option, metavar="CHOICE", type=_choice(field.metadata["choices"]), **told)
        elif isinstance(field.default, tuple):
            parser.add_argument(option, type=float, nargs=len(field.default), metavar="NUMBER", **told)
        else:
            parser.add_argument(option, type=float, metavar="NUMBER", **told)


def _choice(choices: tuple[Any, ...]) -> Any:
    def choice(text: str) -> Any:
        """One of the choices by its name; an unknown one is the rule's to refuse."""
        return next((each for each in choices if str(each) == text), text)

    return choice


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of `add_options` that were given."""
    values = {name: value for name, value in vars(arguments).items() if name.startswith("rule.") and value is not None}
    return {name.removeprefix("rule."): value for name, value in values.items()}
