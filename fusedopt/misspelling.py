"""What was meant by a name that nothing here has: options of constructors that are written out, names of modules."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def refusing_unknown(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor whose error for an unknown argument says which one was meant, or which there are.

    One that takes any argument is given back as it is.
    """
    parameters = inspect.signature(init).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][1:]
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return init

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        for name in options:
            if name not in known:
                raise TypeError(f"{type(self).__name__} has no option {name!r}; {hint(name, known)}")
        init(self, *args, **options)

    return checked


def hint(name: str, known: list[str]) -> str:
    """The end of a sentence on a name that is not known."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."


def unknown_name(module: str, name: str, known: Iterable[str]) -> AttributeError:
    """The error of `module.name`, for a module's `__getattr__` to raise."""
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.7)
    hint = f"; did you mean {lower[near[0]]!r}?" if near and not name.startswith("_") else "."
    return AttributeError(f"module {module!r} has no attribute {name!r}{hint}")
