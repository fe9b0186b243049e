"""What MegEngine asks of a state dict before it loads one, of fused optimizers and of those written out alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def check_state_dict(saved: Any, groups: Sequence[Collection[str]], names: Sequence[Sequence[Collection[str]]]) -> None:
    """Raise unless a state dict has the same groups, keys, parameters and states as an optimizer.

    Args:
        saved: What is to be loaded.
        groups: The keys of each param group of the optimizer, without "params".
        names: For each of these groups, the names of the states of each parameter.

    Raises:
        TypeError: It is no state dict.
        ValueError: Other counts of groups, parameters or states, other keys of a group, or more states.
        KeyError: A state is missing.
    """
    if not isinstance(saved, Mapping) or not {"param_groups", "state"} <= set(saved):
        raise TypeError(
            f"load_state_dict takes what state_dict() returned, with 'param_groups' and 'state'; got "
            f"{', '.join(map(repr, saved)) if isinstance(saved, Mapping) else type(saved).__name__}."
        )
    if len(saved["param_groups"]) != len(groups):
        raise ValueError(
            f"the state dict has {len(saved['param_groups'])} param groups and the optimizer {len(groups)}; build it "
            f"with as many."
        )
    for number, (entry, keys, of_group) in enumerate(zip(saved["param_groups"], groups, names)):
        _check_group(f"param group {number}", entry, set(keys), len(of_group))
        for parameter, own in zip(entry["params"], of_group):
            _check_entry(f"the state of parameter {parameter!r}", saved["state"], parameter, own)
    count = sum(bool(own) for of_group in names for own in of_group)
    if len(saved["state"]) != count:
        raise ValueError(
            f"the state dict has states of {len(saved['state'])} parameters and the optimizer of {count}; load one of "
            f"the same optimizer."
        )


def _check_group(what: str, entry: Mapping[str, Any], keys: set[str], count: int) -> None:
    theirs = set(entry)
    if theirs != keys | {"params"}:
        missing, more = sorted((keys | {"params"}) - theirs), sorted(theirs - keys - {"params"})
        cure = "; make the scheduler before you load" if more == ["initial_lr"] else ""
        raise ValueError(
            f"{what} of the state dict has other keys than the optimizer's: it lacks {', '.join(missing) or 'none'} "
            f"and has {', '.join(more) or 'none'} beyond{cure}."
        )
    if len(entry["params"]) != count:
        raise ValueError(
            f"{what} of the state dict has {len(entry['params'])} parameters and the optimizer's has {count}; they "
            f"must be the same parameters in the same order."
        )


def _check_entry(what: str, state: Mapping[Any, Any], parameter: Any, names: Collection[str]) -> None:
    if not names:
        return
    entry = state.get(parameter, {})
    for name in names:
        if name not in entry:
            raise KeyError(f"{what} lacks {name!r}; it has {', '.join(map(repr, entry)) or 'nothing'}.")
    more = [repr(name) for name in entry if name not in names]
    if more:
        raise ValueError(f"{what} has {', '.join(more)} beyond {', '.join(names)}; load one of the same optimizer.")
