"""Where in a rule's own code an error was raised: `signum.py:27`, for messages that are read without a traceback."""

from __future__ import annotations

import inspect
import os
from types import TracebackType

from fusedopt.rules.rule import Rule


def place_in(rule: type[Rule], traceback: TracebackType | None) -> str:
    """File and line of the innermost call from the rule's own functions; "" where none of them was running."""
    own, place = _files(rule), ""
    while traceback is not None:
        path = traceback.tb_frame.f_code.co_filename
        if path in own:
            place = f"{os.path.basename(path)}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def _files(rule: type[Rule]) -> set[str]:
    """Those that the functions of the rule and of its own bases are in."""
    own = [cls for cls in rule.__mro__ if cls is not object and cls is not Rule]
    functions = [value for cls in own for value in vars(cls).values() if inspect.isfunction(value)]
    return {function.__code__.co_filename for function in functions}
