"""Each rule as a pure call on arrays: `p, *states = functional.adam(p, g, *states, step=t, lr=1e-3)`.

A function for each rule of `fusedopt.rules`, by its name in lower case, and `apply` for a rule of one's own. Each call
makes ready what an optimizer makes ready once, which is some 0.3 ms of Python: in a training loop, take an optimizer.
"""

from typing import TYPE_CHECKING

from fusedopt.misspelling import unknown_name
from fusedopt.optimizers import PROCEDURES, RULES
from fusedopt.rule_functions import function_name, function_of
from fusedopt.single_step import apply, result_type

_FUNCTIONS = {function_name(rule): function_of(rule, __name__) for rule in RULES.values()}
_RESULTS = {result_type(rule).__name__: result_type(rule) for rule in RULES.values()}
for _result in _RESULTS.values():
    _result.__module__ = __name__  # where pickle finds it

globals().update(_FUNCTIONS | _RESULTS)

__all__ = ["apply", *_FUNCTIONS, *_RESULTS]

if not TYPE_CHECKING:  # for which a module with __getattr__ has every name

    def __getattr__(name):
        for procedure in PROCEDURES:
            if name.lower().replace("_", "") == procedure.lower():
                raise AttributeError(
                    f"{procedure} has no functional form: it is a procedure, whose step is no single update; use "
                    f"fusedopt.{procedure}."
                )
        raise unknown_name(__name__, name, ("apply", *_FUNCTIONS))


def __dir__() -> list[str]:
    return sorted(__all__)
