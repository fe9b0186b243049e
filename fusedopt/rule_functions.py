"""A rule as a function of arrays, with its hyperparameters among the arguments: what `functional.py` is filled with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from fusedopt.rules import Rule
from fusedopt.single_step import FOR_OPTIMIZERS, state_names, updated


def function_name(rule: type[Rule]) -> str:
    """`ProximalAdagrad` as `proximal_adagrad`, `RMSprop` as `rmsprop`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", rule.__name__).lower()


def signature_of(rule: type[Rule]) -> inspect.Signature:
    """(p, g, each state, *, step, in_place, each hyperparameter)."""
    kinds = inspect.Parameter
    places = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in ("p", "g")]
    states = [kinds(name, kinds.POSITIONAL_OR_KEYWORD, default=None) for name in state_names(rule)]
    named = [kinds("step", kinds.KEYWORD_ONLY), kinds("in_place", kinds.KEYWORD_ONLY, default=False)]
    known = _options(rule)
    options = [o for name, o in inspect.signature(rule, eval_str=True).parameters.items() if name in known]
    return inspect.Signature([*places, *states, *named, *(o.replace(kind=kinds.KEYWORD_ONLY) for o in options)])


def function_of(rule: type[Rule], module: str) -> Callable[..., Any]:
    """`apply` for one rule, with its hyperparameters among the arguments."""
    name, signature = function_name(rule), signature_of(rule)
    states, options = state_names(rule), set(_options(rule))

    def function(*arguments: Any, **named: Any) -> Any:
        for key in named:
            if key in (*rule.storage_options(), "seed"):
                raise TypeError(f"{name}: {key} {FOR_OPTIMIZERS}.")
            if key not in signature.parameters:
                raise TypeError(f"{name}: {rule.unknown_option(key)}")
        try:
            bound = signature.bind(*arguments, **named).arguments
        except TypeError as error:
            raise TypeError(f"{name}: {error}; it is called as {name}{_short(rule)}.") from None
        made = rule(**{key: value for key, value in bound.items() if key in options})
        given = {key: bound.get(key) for key in states}
        return updated(made, name, bound["p"], bound["g"], given, bound["step"], bound.get("in_place", False))

    function.__name__, function.__qualname__, function.__module__ = name, name, module
    function.__doc__ = _documentation(rule)
    function.__signature__ = signature  # type: ignore[attr-defined]  # read by help() and inspect
    return function


def _options(rule: type[Rule]) -> dict[str, Any]:
    """The fields of what a call may say: not how arrays are kept, which is the caller's."""
    others = {*rule.storage_options(), "seed"}
    return {name: field for name, field in rule.options().items() if field.init and name not in others}


def _short(rule: type[Rule]) -> str:
    return f"({', '.join(['p', 'g', *state_names(rule)])}, step=1, ...)"


def _documentation(rule: type[Rule]) -> str:
    lines = [f"    {name}: {field.metadata['doc']}." for name, field in _options(rule).items()]
    states = ", ".join(state_names(rule))
    state_lines = [f"    {states}: What the step before returned; None at step 1, and for what is not kept."]
    return "\n".join(
        [
            inspect.getdoc(rule) or "",
            "",
            "Args:",
            "    p, g: Parameter and gradient, NumPy or CuPy arrays of one shape.",
            *(state_lines if states else []),
            "    step: The number of this update, 1 at the first.",
            "    in_place: Write into p and the states, rather than return new arrays.",
            *lines,
            "",
            f"Returns: A named tuple ({', '.join(['p', *state_names(rule)])}). `apply` says what is raised.",
        ]
    )
