"""The optimizers: each rule that `fusedopt.rules` has, made into a class of its name."""

import inspect
import types
from collections.abc import Mapping
from typing import Any

from fusedopt import procedures, rules
from fusedopt.optimizer import Optimizer

_CLASSES = {name: value for name, value in vars(rules).items() if inspect.isclass(value)}
_ALL = {name: cls for name, cls in _CLASSES.items() if issubclass(cls, rules.Rule) and cls is not rules.Rule}
RULES = {name: rule for name, rule in _ALL.items() if not rule.procedure}
PROCEDURES = {name: rule for name, rule in _ALL.items() if rule.procedure}


def classes(base: Any, module: str, bases: Mapping[str, Any]) -> dict[str, Any]:
    """A class for each rule by its name.

    Args:
        base: A base class of optimizers, which they are derived from.
        module: Where they live.
        bases: Of procedures, by name: what they are derived from instead.
    """
    body = {"__module__": module}
    keywords = {name: {"rule": rule} for name, rule in _ALL.items()}
    return {
        name: types.new_class(name, (bases.get(name, base),), keywords[name], lambda it: it.update(body))
        for name in _ALL
    }


globals().update(classes(Optimizer, __name__, procedures.BASES))

__all__ = list(_ALL)
