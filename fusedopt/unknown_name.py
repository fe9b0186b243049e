"""What a module of the package says of a name that it lacks: the nearest one that it has, in whatever case."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(module: str, name: str, known: Iterable[str]) -> AttributeError:
    """The error of `module.name`, for a module's `__getattr__` to raise."""
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.7)
    hint = f"; did you mean {lower[near[0]]!r}?" if near and not name.startswith("_") else "."
    return AttributeError(f"module {module!r} has no attribute {name!r}{hint}")
