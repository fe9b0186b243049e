"""The optimizers: each rule that `fusedopt.rules` has, made into a class of its name."""

import inspect
import types
from typing import Any

from fusedopt import rules
from fusedopt.optimizer import Optimizer

_CLASSES = {name: value for name, value in vars(rules).items() if inspect.isclass(value)}
RULES = {name: cls for name, cls in _CLASSES.items() if issubclass(cls, rules.Rule) and cls is not rules.Rule}


def classes(base: Any, module: str) -> dict[str, Any]:
    """A class for each rule by its name, derived from a base class of optimizers; the module is where they live."""
    body = {"__module__": module}
    keywords = {name: {"rule": rule} for name, rule in RULES.items()}
    return {name: types.new_class(name, (base,), keywords[name], lambda it: it.update(body)) for name in RULES}


globals().update(classes(Optimizer, __name__))

__all__ = list(RULES)
