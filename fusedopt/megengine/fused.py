"""What MegEngine's optimizers have in common, as kernels: its groups, state dicts and ways to clear gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

import fusedopt.optimizer
from fusedopt.groups import groups_of
from fusedopt.megengine.custom import Optimizer, warn_of_zero_grad
from fusedopt.megengine.state_dict import check_state_dict
from fusedopt.misspelling import refusing_unknown
from fusedopt.parameter import Parameter
from fusedopt.rules.rule import Rule

LARGEST_FLOAT32_COUNT = 2**24  # up to which float32 counts by one


class Fused(fusedopt.optimizer.Optimizer):
    """What MegEngine's optimizers have in common, as kernels.

    States are there before the first step. They have the parameter's dtype, and are float32 in groups with float16 or
    bfloat16 parameters, as MegEngine's are everywhere. There are no options of how else arrays are kept.

    Class attributes:
        keys: The options that its param groups have, in its order; others are the whole optimizer's, and not saved.
        names: Its names of our states, where they differ.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__signature__" in vars(cls):  # the rule's; these classes have constructors of their own
            del cls.__signature__  # type: ignore[attr-defined]
        if "__init__" in vars(cls):
            cls.__init__ = refusing_unknown(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(self._checked(groups_of(params)), **options)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a dict with "params"; its state is made now. (In MegEngine it has none, and its first step fails.)"""
        if not isinstance(param_group, Mapping):
            raise TypeError(f"add_param_group takes a dict with 'params', got {type(param_group).__name__}.")
        self._add(self._checked(groups_of(param_group)))

    def _checked(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """New groups, none of which has an option that MegEngine keeps for the whole optimizer."""
        refused = self._refused()
        for number, entry in enumerate(entries):
            for key in refused.keys() & set(entry):
                raise KeyError(f"param group {number}: {refused[key]}")
        return entries

    def _refused(self) -> dict[str, str]:
        """The rule's options that no group has, and what is said of each."""
        arguments = inspect.signature(type(self).__init__).parameters
        others = set(self.rule.options()) - {*self.keys, *Rule.options()} | set(self.rule.storage_options())
        return {
            key: f"{key!r} is no option of a group of {type(self).__name__}, which has {', '.join(self.keys)}; "
            + ("it holds for the whole optimizer." if key in arguments else "the optimizer has none, as in MegEngine.")
            for key in sorted(others)
        }

    def _add(self, entries: list[dict[str, Any]]) -> None:
        """Groups may have what a scheduler keeps in them; and have their states from now on."""
        for entry in entries:
            if any(parameter.dtype.itemsize == 2 for parameter in entry["params"]):
                entry["state_dtype"] = "float32"
        kept = [{key: entry.pop(key) for key in ("initial_lr",) if key in entry} for entry in entries]
        super()._add(entries)
        for group, extras in zip(self._groups[-len(entries) :], kept):
            group.keep(extras)
            group.refused = self._refused()
        self.init_state()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Fill the gradients that are there with zeros. Deprecated: `clear_grad`."""
        warn_of_zero_grad()
        super().zero_grad(set_to_none)

    def clear_grad(self) -> Any:
        """Drop all gradients; backward passes add to those that are there. Returns the optimizer."""
        super().zero_grad()
        return self

    def state_dict(self, keep_var: bool = False) -> dict[str, Any]:
        """Options and states, as MegEngine has them: every parameter's, before any step too.

        Args:
            keep_var: Live views of the states, which later steps change, rather than NumPy copies.
        """
        saved = super().state_dict()
        state = {}
        for number, (parameter, names) in enumerate(self._states()):
            entry = self.state[parameter] if keep_var else saved["state"].get(number, {})
            of_parameter = {
                self.names.get(name, name): entry[name]
                if keep_var and name in entry
                else self._saved(parameter, name, entry)
                for name in names
            }
            if of_parameter:
                state[number] = of_parameter
        groups = [
            {key: entry[key] for key in self._group_keys(entry)} | {"params": entry["params"]}
            for entry in saved["param_groups"]
        ]
        return {"param_groups": groups, "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # type: ignore[override]  # MegEngine has no storages
        """Take over a state dict of MegEngine's form; all is checked before anything changes.

        Raises:
            TypeError, ValueError, KeyError: Keys, counts, names, shapes or dtypes are not the optimizer's own.
        """
        own = [
            [[self.names.get(n, n) for n in state_names(group.rule)]] * len(group["params"]) for group in self._groups
        ]
        check_state_dict(state, [self._group_keys(group) for group in self._groups], own)
        groups = [
            {key: value for key, value in group.items() if key != "params"} | dict(entry)
            for group, entry in zip(self._groups, state["param_groups"])
        ]
        numbers = [number for entry in groups for number in entry["params"]]
        entries = {
            number: {name: state["state"][number][self.names.get(name, name)] for name in names}
            for number, (_, names) in zip(numbers, self._states())
            if names
        }
        super().load_state_dict({"state": entries, "param_groups": groups})

    def _states(self) -> Iterator[tuple[Parameter, list[str]]]:
        """Every parameter with the names of its states, ours."""
        return ((parameter, state_names(group.rule)) for group in self._groups for parameter in group["params"])

    def _group_keys(self, group: Mapping[str, Any]) -> list[str]:
        """The keys of a group in state dicts but "params": MegEngine's, then what was added to them."""
        common = set(Rule.options()) - set(Rule.storage_options())
        whole = {"params", *self.keys, *self.rule.options()} - common
        return [*self.keys, *(key for key in group if key not in whole)]

    def _saved(self, parameter: Parameter, name: str, entry: Mapping[str, Any]) -> Any:
        """A state as MegEngine saves it; zeros for a parameter that is not trained, and has none."""
        if name == self.rule.step_key:
            count = entry.get(name, 0.0)
            return np.array(count, np.float32 if count <= LARGEST_FLOAT32_COUNT else np.float64)
        half = parameter.dtype.itemsize == 2
        return entry[name] if name in entry else np.zeros(parameter.shape, np.float32 if half else parameter.dtype)


def state_names(rule: Rule) -> list[str]:
    """Our names of the states that a rule keeps; the step is last, as in MegEngine."""
    return [*rule.kept_states, *([rule.step_key] if rule.step_key else [])]


Optimizer.register(Fused)
