"""Optimizer: param groups, step, gradients; what every optimizer has, whatever its rule."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, overload

import numpy as np

from fusedopt import state_dict as _state_dict
from fusedopt.arena import NO_HISTORY, Arena, ArenaSpan, arenas_of, spans_of
from fusedopt.backends import Backend, Steps, backend_of
from fusedopt.groups import Group, check_defaults, check_norm, groups_of, of_group, scheduled_rule
from fusedopt.kept_bytes import KeptBytes, of_arena
from fusedopt.layout import Changes, device_of
from fusedopt.loaded_state import load_state_dict
from fusedopt.parameter import Parameter, check_takes_rows
from fusedopt.rules.rule import Rule, check_declaration
from fusedopt.scheduled import count_taken, follow
from fusedopt.schedules.options import Function, check_lengths, schedules_in
from fusedopt.sparse_gradient import SparseGradient
from fusedopt.storage import FINER_OPTIONS, StoredGroup, check_storage
from fusedopt.tracing import Traced, trace

# Attributes that a copy makes anew: they hold buffers, or count what happened to them.
_REBUILT = (
    *("changes", "_seen", "_groups", "_arenas", "_backends", "_stepping", "_traced", "_plans"),
    *("_history", "_moments"),  # of procedures
)

Loss = TypeVar("Loss")
Self = TypeVar("Self", bound="Optimizer")


def _check_scalar(name: str, value: Any, devices: Iterable[str]) -> None:
    """Raise TypeError unless the value is one number of the host's, or one float32 on the parameters' device."""
    if isinstance(value, numbers.Real):
        return
    shape, dtype, device = getattr(value, "shape", None), getattr(value, "dtype", None), device_of(value)
    kind = getattr(dtype, "kind", "")
    right = kind in "fiub" if device == "cpu" else dtype == np.float32 and set(devices) == {device}
    if shape is None or not kind or value.size != 1 or not right:
        got = type(value).__name__ if shape is None else f"an array of {dtype} and shape {shape} on {device}"
        raise TypeError(f"{name} must be a number or an array of one float32 on the parameters' device, got {got}.")


def _scalar(value: Any) -> Any:
    """A number of the host's as the float32 that the kernel reads; a device's as it is."""
    if not isinstance(value, numbers.Real):
        if device_of(value) != "cpu":
            return value
        value = value.item()
    with np.errstate(all="ignore"):
        return np.float32(value)


def _stored_group(rule: Rule, parameters: Sequence[Parameter]) -> StoredGroup:
    return StoredGroup(rule, [p.dtype.name for p in parameters], [p.described for p in parameters])


class Optimizer:
    """Base class of optimizers. An optimizer of one's own is a rule and a class of one line:
    `class Mine(fusedopt.Optimizer, rule=MyRule): pass`.

    Args:
        params: A Parameter, an iterable of Parameters or of (name, Parameter) pairs, or of dicts with a key "params"
            and options for these alone. The optimizer moves the parameters' data into its flat buffers.
        *args, **options: The rule's hyperparameters; for groups that have none of their own. A number may be a
            schedule: a function of the step, from 0, or a sequence with a value for each (`fusedopt.schedules`).

    Attributes:
        defaults: The hyperparameters given here, or their default.
        param_groups: A tuple of dicts; `optimizer.param_groups[0]["lr"] = 1e-4` takes effect at the next step.
        state: For each parameter that has had a step: its step and its state arrays, as live views. (A rule with
            `eager_state`, as Adagrad's, has it for every trainable parameter at once.)

    Raises:
        TypeError: `params` holds something else, or an option is unknown.
        ValueError: No parameters; one of them twice, or in another optimizer; a hyperparameter out of range.

    Source: `torch.optim.Optimizer`, MegEngine's `Optimizer`.
    """

    rule: ClassVar[type[Rule]]
    takes_rows: ClassVar[bool] = False  # whether a gradient may be a SparseGradient

    def __init_subclass__(cls, *, rule: type[Rule] | None = None, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if rule is None:
            return
        check_declaration(rule)
        cls.rule = rule
        options = inspect.signature(rule, eval_str=True)
        params = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        own = [parameter for name, parameter in options.parameters.items() if name in rule.options()]
        cls.__signature__ = options.replace(  # type: ignore[attr-defined]  # read by help() and inspect
            parameters=[params, *own], return_annotation=inspect.Signature.empty
        )
        if cls.__doc__ is None:
            lines = [f"    {name}: {field.metadata['doc']}." for name, field in rule.options().items() if field.init]
            cls.__doc__ = "\n".join([inspect.getdoc(rule) or "", "", "Args:", "    params: What to train.", *lines])

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        if not hasattr(type(self), "rule"):
            raise TypeError("Optimizer has no rule of its own; subclass it: class Mine(Optimizer, rule=MyRule).")
        known = self.rule.options()
        for name in options:
            if name not in known:
                raise TypeError(self.rule.unknown_option(name))
        fixed = {name: options.pop(name) for name in list(options) if not known[name].init}
        given = inspect.signature(self.rule).bind(*args, **options).arguments | fixed
        schedules = schedules_in(self.rule, given)
        default = scheduled_rule(self.rule(), schedules, 0, self.rule.derived_options() | given)
        self.defaults: dict[str, Any] = default.shown() | schedules
        self._begin()
        self._add(groups_of(params))

    def __setattr__(self, name: str, value: Any) -> None:
        self._check_attribute(name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        self._check_attribute(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def _check_attribute(self, name: str) -> None:
        """Raise AttributeError for a hyperparameter, which a param group has and the optimizer not."""
        rule = getattr(type(self), "rule", None)
        if rule is not None and name in rule.options():
            raise AttributeError(
                f"{type(self).__name__} has {name} in each param group: optimizer.param_groups[0][{name!r}]."
            )

    def _begin(self) -> None:
        self._groups: list[Group] = []
        self._arenas: list[list[Arena]] = []  # of each group
        self._backends: dict[str, Backend] = {}  # by device
        self.changes = Changes()
        self._plans: list[Steps] = []
        self._forget_plans()

    def _forget_plans(self) -> None:
        """Plan afresh at the next step."""
        self._seen = Changes(-1, -1)
        self._stepping: list[bytes] = []  # of each arena, as planned
        self._traced: list[Traced | None] = []  # of each group, as planned

    # --- groups and parameters

    @property
    def param_groups(self) -> tuple[Group, ...]:
        return tuple(self._groups)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a dict with "params" and options of its own; what it leaves out is the optimizer's default.

        Raises:
            TypeError, ValueError: As for the optimizer; nothing is added then.
        """
        if not isinstance(param_group, Mapping):
            raise TypeError(f"add_param_group takes a dict with 'params', got {type(param_group).__name__}.")
        self._add(groups_of(param_group))

    def _add(self, entries: list[dict[str, Any]]) -> None:
        """Check all of the new groups and make their buffers; then take their parameters."""
        backends, added, count = dict(self._backends), [], sum(len(group["params"]) for group in self._groups)
        for entry, (rule, schedules) in zip(entries, self._checked_rules(entries)):
            extras = {"param_names": entry["param_names"]} if "param_names" in entry else {}
            extras |= {name: getattr(rule, name) for name in rule.common_defaults() if name in entry}  # defaults too
            group = Group(rule, tuple(entry["params"]), self.changes, extras, schedules)
            memories = [backend_of(parameter.data) for parameter in group["params"]]
            backends |= {memory.device: memory for memory in memories}
            arenas = arenas_of(group, memories, self.changes, count)
            count += len(group["params"])
            if rule.eager_state:
                for arena in arenas:
                    _state_dict.make_buffers(arena)
            added.append((group, arenas))
        for group, arenas in added:
            for name, parameter in zip(group.get("param_names", ()), group["params"]):
                parameter.name = parameter.name or name
            for arena in arenas:
                with arena.memory.here():
                    arena.take_parameters()
                if group.rule.eager_state:
                    _state_dict.make_state(arena)
            for parameter in group["params"]:
                parameter.owner = self
            self._groups.append(group)
            self._arenas.append(arenas)
        self._backends = backends
        self._forget_plans()

    def _checked_rules(self, entries: list[dict[str, Any]]) -> list[tuple[Rule, dict[str, Function]]]:
        """The rule of each new group, with its own options over the defaults, and its schedules."""
        taken = {id(parameter) for parameter in self.parameters()}
        rules: list[tuple[Rule, dict[str, Function]]] = []
        stored = [_stored_group(group.rule, group["params"]) for group in self._groups]
        for number, entry in enumerate(entries, len(self._groups)):
            for parameter in entry["params"]:
                if id(parameter) in taken:
                    raise ValueError(f"{parameter.described} appears twice in this optimizer; give each once.")
                if parameter.owner is not None:
                    raise ValueError(
                        f"{parameter.described} belongs to another optimizer; delete that one first, or make a new "
                        f"Parameter of a copy of its data."
                    )
                if isinstance(parameter.grad, SparseGradient):
                    check_takes_rows(parameter.described, type(self).__name__, self.takes_rows)
                taken.add(id(parameter))
            options = {key: value for key, value in entry.items() if key not in ("params", "param_names")}
            for key in options:
                if key not in self.rule.options():
                    raise KeyError(f"param group {number}: {self.rule.unknown_option(key)}")
            options = self.defaults | options
            with of_group(number):
                schedules = schedules_in(self.rule, options)
                rules.append((scheduled_rule(self.rule(), schedules, 0, options), schedules))
            rule = rules[-1][0]
            for parameter in entry["params"]:
                rule.check_shape(parameter.described, parameter.shape)
            with of_group(number):
                stored.append(_stored_group(rule, entry["params"]))
                check_storage(stored[-1], self._stated_options(rule))
            self._variant(rule)
        check_defaults(stored)
        check_lengths([*(group.schedules for group in self._groups), *(schedules for _, schedules in rules)])
        return rules

    def _stated_options(self, rule: Rule) -> list[str]:
        """Options that a group has for itself: other than the defaults, since copies of groups state all of theirs."""
        return [name for name in FINER_OPTIONS if getattr(rule, name) != self.defaults.get(name, getattr(Rule, name))]

    def _variant(self, rule: Rule) -> Traced | None:
        """What a plan is made for; None where it is a procedure, which reads its rule at every step."""
        return None if rule.procedure else trace(rule)

    def _plan(self, backend: Backend, spans: Sequence[ArenaSpan]) -> Steps:
        """Spans on one device made ready to be updated."""
        return backend.plan(spans)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, group by group."""
        return (parameter for group in self._groups for parameter in group["params"])

    def arenas(self) -> Iterator[Arena]:
        """All flat buffers, group by group."""
        return (arena for arenas in self._arenas for arena in arenas)

    # --- gradients

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients; or fill those that are there with zeros, with which a step still decays and moves.

        Backward passes add to gradients, or assign them, so a training loop clears them each step; to accumulate over
        several batches, leave it out between them.
        """
        for arena in self.arenas():
            if set_to_none:
                arena.presence.clear()
            else:
                with arena.memory.here():
                    arena.gradients.fill(0)

    def clear_grad(self: Self) -> Self:
        """Drop all gradients: `optimizer.step().clear_grad()`, as MegEngine has it."""
        self.zero_grad()
        return self

    # --- step

    @overload
    def step(self: Self, closure: None = None, *, grad_scale: Any = None, found_inf: Any = None) -> Self: ...

    @overload
    def step(self, closure: Callable[[], Loss], *, grad_scale: Any = None, found_inf: Any = None) -> Loss: ...

    def step(self, closure: Callable[[], Any] | None = None, *, grad_scale: Any = None, found_inf: Any = None) -> Any:
        """Update every parameter that has a gradient: one launch a device.

        Args:
            closure: Called first; it computes the gradients, and its value is returned.
            grad_scale: A number, or an array of one float32 on the parameters' device, that the gradients are divided
                by.
            found_inf: Likewise; where it is not zero, the step changes nothing and counts nothing, and nothing waits
                for the device to know.

        Returns:
            The closure's value; without one the optimizer itself.

        Raises:
            TypeError: `grad_scale` or `found_inf` is something else; or the closure cannot be called.
        """
        if closure is not None and not callable(closure):
            raise TypeError(f"step takes a closure that computes the gradients, got {closure!r}.")
        if grad_scale is not None:
            _check_scalar("grad_scale", grad_scale, self._backends)
        if found_inf is not None:
            _check_scalar("found_inf", found_inf, self._backends)
        value = self if closure is None else closure()  # which may write to both
        self._follow_schedules()
        self._update(
            None if grad_scale is None else _scalar(grad_scale), None if found_inf is None else _scalar(found_inf)
        )
        self._count_step()
        return value

    def _follow_schedules(self) -> None:
        """Put the numbers of the coming step in force."""
        if self.changes.schedules:
            follow(self._groups)

    def _count_step(self) -> None:
        """Note that a step was taken."""
        self.changes.steps += 1
        if self.changes.schedules:
            for group in self._groups:
                group.note_step()

    def _update(self, grad_scale: Any, found_inf: Any) -> None:
        """Take the step with the gradients that are there."""
        if self.changes != self._seen:
            self._replan()
        for plan in self._plans:
            plan.step(grad_scale, found_inf)

    def sync(self: Self) -> Self:
        """Wait for the device, and let schedules go on from the steps that were really taken.

        Schedules count the calls of `step`, of which some may have been skipped for an infinity: only the device knows.
        Each group's count becomes the largest step of its parameters. A rule that counts no steps, as SGD, warns.
        """
        taken = [[arena.memory.host(arena.counters)[:, 0] for arena in arenas] for arenas in self._arenas]
        count_taken(self._groups, taken)
        return self

    def _replan(self) -> None:
        """Follow what changed since the last step: gradients that came or went, numbers, flags."""
        changes, seen, traced, stepping = self.changes, self._seen, self._traced, self._stepping
        if changes.hyperparameters != seen.hyperparameters:
            traced = [self._variant(group.rule) for group in self._groups]
        if changes.gradients != seen.gradients:
            stepping = [arena.presence.stepping for arena in self.arenas()]
        self._check_norms(stepping)
        if stepping != self._stepping or traced != self._traced:
            spans: dict[str, list[ArenaSpan]] = {}
            before = [arena.cohorts.copy() for arena in self.arenas()]
            try:
                for arena, row in zip(self.arenas(), stepping):
                    arena.begin(np.frombuffer(row, bool))
                    arena.part_cohorts(np.frombuffer(row, bool))
                    spans.setdefault(arena.memory.device, []).extend(spans_of(arena, np.frombuffer(row, bool)))
                self._plans = [self._plan(self._backends[device], some) for device, some in spans.items() if some]
            except BaseException:  # no step was attempted
                for arena, cohorts in zip(self.arenas(), before):
                    arena.cohorts[:] = cohorts
                raise
            self._stepping, self._traced = stepping, traced
        elif changes.hyperparameters != seen.hyperparameters:
            for plan in self._plans:
                plan.refresh()
        self._seen = dataclasses.replace(changes)

    def _check_norms(self, stepping: list[bytes]) -> None:
        """Raise RuntimeError where the norm of a group would be that of gradients on several devices."""
        following = iter(stepping)
        for number, (group, arenas) in enumerate(zip(self._groups, self._arenas)):
            devices = [arena.memory.device for arena, row in zip(arenas, following) if any(row)]
            check_norm(group.rule, number, devices)

    # --- state

    @property
    def state(self) -> Mapping[Parameter, dict[str, Any]]:
        """For each parameter that has had a step: `step` (0-d float64) and its state arrays, as live views."""
        return _state_dict.LiveState(self.arenas())

    def init_state(self: Self) -> Self:
        """Make the state of all trainable parameters without a step now, rather than at their first step.

        As MegEngine does. A rule whose state starts from the gradient then starts from zeros: SGD's first gradient is
        dampened like the others.
        """
        for arena in self.arenas():
            _state_dict.make_state(arena)
        self._forget_plans()
        return self

    def reload_masters(self: Self) -> Self:
        """Start masters again from the parameters as they are, and what else keeps them finer from nothing.

        For those who write into parameters that have masters, remainders or compensations: a step goes on from these
        (from a float32 master alone), so that what was written would be lost, or be off by what was kept.
        """
        for arena in self.arenas():
            with arena.memory.here():
                arena.begin_masters(np.flatnonzero(arena.cohorts != NO_HISTORY).tolist())
        return self

    def memory(self) -> KeptBytes:
        """Bytes that are kept once every parameter that requires a gradient has stepped, by kind; needs no step.

        `print(optimizer.memory())` is a table, `optimizer.memory().per_parameter` has bytes an element.
        """
        return sum(map(of_arena, self.arenas()), KeptBytes())

    def state_dict(self) -> dict[str, Any]:
        """A copy of state and hyperparameters: NumPy arrays on the host, in torch's and MegEngine's structure.

        Returns:
            `{"state": {0: {"step": ..., "exp_avg": ...}, ...}, "param_groups": [{"lr": ..., "params": [0, ...]}]}`;
            parameters are numbered over all groups in order, those without a step yet are left out.
        """
        return _state_dict.state_dict(self._groups, self._arenas)

    def load_state_dict(self, state_dict: Mapping[str, Any], *, convert: bool = False) -> None:
        """Take over a state dict of this library, of torch (its tensors as NumPy arrays) or of MegEngine.

        Everything is checked before anything changes, and copied. Hyperparameters are taken over too; one that is
        missing keeps its value, with a warning; one that follows a schedule here goes on to follow it, from the step
        that was saved. Unknown keys are kept and written back. How arrays are kept (`master_weights`, `state_dtype` and
        so on) stays as it is here; masters and remainders that are missing start from the parameters.

        Args:
            convert: Whether state that was kept in another way is converted to ours, rounded to the nearest; else it is
                an error. A master that was saved is the truth then, which its parameter becomes the rounding of; what
                was saved beside parameters is taken together with their values, so load these first. A parameter of
                float32 that has these values, widened, becomes the master.

        Raises:
            ValueError: Counts of groups or parameters, shapes, or a value of a hyperparameter or step do not fit; or
                the state was kept in another way.
            TypeError: A state array has another dtype than ours.
            KeyError: A state array is missing.
        """
        load_state_dict(state_dict, self._groups, self._arenas, convert)
        self._forget_plans()

    def __getstate__(self) -> dict[str, Any]:
        kept = {key: value for key, value in self.__dict__.items() if key not in _REBUILT}
        known = self.rule.options()
        groups = [{name: value for name, value in group.items() if name in known} for group in self._groups]
        return {
            "kept": kept,
            "groups": [
                {"params": list(group["params"]), **options, **group.schedules}
                for group, options in zip(self._groups, groups)
            ],
            "steps": [group.steps for group in self._groups],
            "state_dict": self._copied_state(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["kept"])
        self._begin()
        self._add(state["groups"])
        self._take_copied(state["state_dict"])
        for group, steps in zip(self._groups, state["steps"]):
            group.count_from(steps)

    def _copied_state(self) -> dict[str, Any]:
        """The state that copies and pickles have, whatever form a subclass gives to its users."""
        return Optimizer.state_dict(self)

    def _take_copied(self, state: dict[str, Any]) -> None:
        Optimizer.load_state_dict(self, state)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self._groups):
            lines.append(f"Parameter Group {number}: {len(group['params'])} parameters")
            lines += [f"    {key}: {value}" for key, value in group.items() if key != "params"]
        return "\n".join([*lines, ")"])
