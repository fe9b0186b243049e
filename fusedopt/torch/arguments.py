"""What a constructor takes: a rule's hyperparameters and torch's flags; its signature, its docstring, its checks."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from fusedopt.rules.rule import Rule

# torch's choices of an algorithm. There is one here, which does what each of them is for.
FLAGS = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}


def signature(rule: type[Rule]) -> inspect.Signature:
    """`params`, hyperparameters and flags: as torch's class of that name has them, then what it has not, by name."""
    own = {name: p for name, p in inspect.signature(rule, eval_str=True).parameters.items() if name in rule.options()}
    cls = getattr(torch.optim, rule.__name__, None) if rule.__module__.startswith("fusedopt.rules.") else None
    theirs = dict(inspect.signature(cls).parameters) if cls is not None else {}
    by_name = {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=FLAGS[name]) for name in FLAGS}
    flags = {name: flag for name, flag in by_name.items() if cls is None or name in theirs}
    known = own if rule.procedure and cls is None else own | flags
    parameters = [known.pop(name).replace(kind=there.kind) for name, there in theirs.items() if name in known]
    others = known.values() if cls is None else [p.replace(kind=p.KEYWORD_ONLY) for p in known.values()]
    last = [inspect.Parameter("write_back_gradients", inspect.Parameter.KEYWORD_ONLY, default=True)]
    ordered = sorted(
        [*parameters, *others, *(last if not rule.procedure else [])], key=lambda parameter: parameter.kind
    )
    return inspect.Signature([inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD), *ordered])


def docstring(rule: type[Rule], flags: Sequence[str]) -> str:
    """The rule's, with a line for each argument."""
    own = [f"    {name}: {field.metadata['doc']}." for name, field in rule.options().items() if field.init]
    accepted = ", ".join(name for name in flags if name != "differentiable")
    lines = [
        inspect.getdoc(rule) or "",
        "",
        "Args:",
        "    params: As torch.optim takes them.",
        *own,
    ]
    lines += [f"    {accepted}: Accepted, and of no effect: there is one algorithm."] if accepted else []
    if rule.procedure:
        return "\n".join(lines)
    lines += [
        "    differentiable: Accepted where False: a fused step cannot be differentiated through.",
        "    write_back_gradients: Under a GradScaler, leave gradients unscaled after a step, as torch does.",
    ]
    return "\n".join(lines)


def by_name(title: str, known: inspect.Signature, args: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Positional arguments behind `params` by their names.

    Raises:
        TypeError: There are too many, or one is among the options too.
    """
    names = [name for name, p in known.parameters.items() if p.kind == p.POSITIONAL_OR_KEYWORD and name != "params"]
    if len(args) > len(names):
        raise TypeError(f"{title} takes params and at most {len(names)} positional options, got {len(args)}.")
    given = dict(zip(names, args))
    for name in given.keys() & options.keys():
        raise TypeError(f"{title} got {name} twice, by position and by name.")
    return given


def check_flags(flags: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise what torch does for flags that exclude each other."""
    if flags.get("differentiable"):
        raise RuntimeError(
            "differentiable=True is not supported: a fused step is no chain of differentiable operations; use "
            "torch.optim, or torch.func, to differentiate through a step."
        )
    if flags.get("fused") and flags.get("foreach"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together; leave both out, they change nothing here.")
    if flags.get("foreach") and not flags.get("capturable"):
        for name, value in options.items():
            if any(isinstance(v, torch.Tensor) for v in (value if isinstance(value, (tuple, list)) else (value,))):
                raise ValueError(
                    f"{name} as a tensor needs capturable=True beside foreach=True, as in torch; leave foreach out."
                )


def check_keys(rule: type[Rule], group: Mapping[str, Any], where: str = "") -> None:
    """Raise KeyError for a key that is an option misspelt; other unknown keys are the user's own, as in torch."""
    known = [*(name for name, field in rule.options().items() if field.init), *FLAGS, "params"]
    for key in group:
        if key in rule.options() or key in known or not isinstance(key, str):
            continue
        # 0.85: one letter wrong or two swapped in an option of seven. "max_momentum" and "initial_lr" are others' own.
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near and near[0] not in key:
            raise KeyError(f"{where}{rule.__name__} has no option {key!r}; did you mean {near[0]!r}?")


def check_params(params: list[Any], number: int, others: set[int]) -> None:
    """Raise ValueError, by name, for what torch refuses without one, or takes twice."""
    seen: set[int] = set()
    for what, p in described({"params": params}, number):
        if not (p.is_leaf or p.retains_grad):
            raise ValueError(
                f"{what}: can't optimize a non-leaf tensor; give the one that it was computed from, or detach it."
            )
        if id(p) in seen:
            raise ValueError(f"{what} appears twice in its group; give each once.")
        if id(p) in others:
            raise ValueError(f"{what} appears in more than one parameter group; give each once.")
        seen.add(id(p))


def described(group: Mapping[str, Any], number: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the group of this number, each with what messages call it; torch refuses what is none.

    Args:
        group: As it is, or as it was given: with (name, tensor) pairs.
    """
    names, params = group.get("param_names"), group.get("params")
    for i, entry in enumerate(params if isinstance(params, list) else ()):
        pair = entry if isinstance(entry, tuple) and len(entry) == 2 else (names[i] if names else None, entry)
        if isinstance(pair[1], torch.Tensor):
            yield title_of(pair[0], i, number, pair[1]), pair[1]


def title_of(name: str | None, place: int, number: int, p: torch.Tensor) -> str:
    """What messages call a parameter: by its name, or by its place in the group of this number."""
    shape = "not known yet" if torch.nn.parameter.is_lazy(p) else tuple(p.shape)
    return f"parameter {f'{place} of group {number}' if name is None else repr(name)} (shape {shape})"
