"""What every optimizer for torch has: torch.optim's contract on the core's rules, plans and kernels."""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch

from fusedopt.backends import Plan
from fusedopt.groups import check_defaults, check_norm, of_group
from fusedopt.kept_bytes import KeptBytes
from fusedopt.rules.rule import Rule, check_declaration
from fusedopt.schedules.options import check_lengths
from fusedopt.storage import check_storage
from fusedopt.torch import places
from fusedopt.torch import state_dict as _state_dict
from fusedopt.torch.arguments import (
    FLAGS,
    by_name,
    check_flags,
    check_keys,
    check_params,
    described,
    docstring,
    signature,
)
from fusedopt.torch.binding import GRADIENT, Binding, Selection
from fusedopt.torch.candidate import Candidate, begun
from fusedopt.torch.groups import checked_rule, kept_as
from fusedopt.torch.kept_bytes import of_launched
from fusedopt.torch.reads import Reads
from fusedopt.torch.schedules import Schedules, found_in, rule_at
from fusedopt.torch.slots import Counter, Slot
from fusedopt.torch.storages import options_of, start_again, stated_options, stored_group
from fusedopt.torch.tensors import local, placements, untraced

Self = TypeVar("Self", bound="Optimizer")

HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class _UnscalesInside:
    """Whether a GradScaler may leave unscaling to the step: yes, with no wait for the device.

    Lightning refuses to clip the gradients of an optimizer that says so, and unscales them beforehand for one that does
    not. It is told no: gradients that are unscaled already are not unscaled again.
    """

    def __get__(self, optimizer: object, owner: type) -> bool:
        asking = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        return asking not in ("lightning", "lightning_fabric", "pytorch_lightning")


class Optimizer(torch.optim.Optimizer):
    """Base class: `class Lion(fusedopt.torch.Optimizer, rule=LionRule): pass` has all that torch's own have.

    Args:
        params: As torch.optim takes them: tensors, (name, tensor) pairs, or dicts with "params" and options.
        *args, **options: The rule's hyperparameters, as numbers or one-element tensors, and torch's flags. A number may
            be a schedule: a function of the step, from 0, or a sequence with a value for each (`fusedopt.schedules`).
        write_back_gradients: Under a GradScaler, leave gradients unscaled after a step, as torch.optim does; False
            saves that write.

    Raises:
        TypeError: `params` holds something else, or an option is unknown.
        ValueError: No parameters, one of them twice, or one that is no leaf; a hyperparameter out of range.
        RuntimeError: `differentiable=True`; or `foreach` and `fused` together.

    Source: `torch.optim.Optimizer`.
    """

    rule: ClassVar[type[Rule]]
    write_back_gradients = True
    _flags: ClassVar[tuple[str, ...]] = tuple(FLAGS)
    _step_supports_amp_scaling = _UnscalesInside()
    # What is derived from the groups and the state, made anew where it is not there, as after a copy.
    _binding: Binding | None = None
    _selection: Selection | None = None
    _kept_reads: Reads | None = None
    _captured: tuple[Any, ...] = ()
    _kept_schedules: Schedules | None = None

    def __init_subclass__(cls, *, rule: type[Rule] | None = None, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if rule is None:
            return
        check_declaration(rule)
        cls.rule, cls.__signature__ = rule, signature(rule)  # type: ignore[attr-defined]  # read by help() and inspect
        cls._flags = tuple(name for name in FLAGS if name in cls.__signature__.parameters)  # type: ignore[attr-defined]
        if cls.__doc__ is None:
            cls.__doc__ = docstring(rule, cls._flags)

    def __init__(self, params: Any, *args: Any, write_back_gradients: bool = True, **options: Any) -> None:
        if not hasattr(type(self), "rule"):
            raise TypeError("Optimizer has no rule of its own; subclass it: class Mine(Optimizer, rule=MyRule).")
        options |= by_name(type(self).__name__, inspect.signature(type(self)), args, options)
        flags = {name: options.pop(name, FLAGS[name]) for name in self._flags}
        known = self.rule.options()
        for name in options:
            if name not in known:
                raise TypeError(self.rule.unknown_option(name))
            if not known[name].init:
                raise TypeError(f"{type(self).__name__}: {name} is {known[name].default} by definition; leave it out.")
        check_flags(flags, options)
        schedules = found_in(self.rule, options)
        rule = rule_at(self.rule(), schedules, 0, self.rule.derived_options() | options)
        options |= schedules
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        given = {name: value for name, value in options.items() if value is not None}
        if "seed" in given:
            given["seed"] = rule.seed  # whole, as 3.0 is
        defaults = {name: given.get(name, getattr(rule, name)) for name in known}
        for name, default in self.rule.common_defaults().items():
            if not isinstance(defaults[name], torch.Tensor) and defaults[name] == default:
                del defaults[name]
        self.write_back_gradients = write_back_gradients
        super().__init__(params, defaults | flags)
        self._check_defaults([kept_as(self.rule(), group) for group in self.param_groups])
        if self.rule.eager_state:
            self._begin()

    def _check_defaults(self, rules: Sequence[Rule]) -> None:
        """Raise ValueError where an option of how arrays are kept is of no use to any group."""
        if any(any(options_of(rule).values()) for rule in rules):
            pairs = enumerate(zip(rules, self.param_groups))
            check_defaults([stored_group(rule, dict(described(group, number))) for number, (rule, group) in pairs])

    def _begin(self) -> None:
        """Make the state of all parameters now; those of groups that are added later begin at their first step."""
        for group in self.param_groups:
            rule = checked_rule(self.rule(), group)
            for p in group["params"]:
                counter = begun(p, self.state[p], rule)
                if counter is not None:
                    self._counters[p] = counter

    # --- groups

    @untraced
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a dict with "params" and options of its own, which is copied; unknown keys are kept, as torch does.

        Raises:
            TypeError, ValueError: As for the optimizer; nothing is added then.
        """
        schedules: dict[str, Any] = {}
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            number = len(self.param_groups)
            given = param_group.get("params")
            if isinstance(given, Iterable) and not isinstance(given, set):
                param_group["params"] = [given] if isinstance(given, torch.Tensor) else list(given)
                check_params(param_group["params"], number, {id(p) for g in self.param_groups for p in g["params"]})
            check_keys(self.rule, param_group)
            with of_group(number):
                entry = {**self.defaults, **param_group}
                schedules = found_in(self.rule, entry)
                rule = rule_at(self.rule(), schedules, 0, entry)
            params = dict(described(param_group, number))
            for what, p in params.items():
                if not torch.nn.parameter.is_lazy(p):
                    self._check_parameter(rule, what, p)
            with of_group(number):
                check_storage(stored_group(rule, params), stated_options(rule, self.defaults))
            check_lengths([*self.schedules, schedules])
            numbers = [*schedules, *({"seed"} & param_group.keys())]
            param_group |= {name: getattr(rule, name) for name in numbers}
        super().add_param_group(param_group)
        self._schedules.add(self.param_groups, schedules)

    @property
    def schedules(self) -> tuple[Mapping[str, Any], ...]:
        """For each param group the schedules that its options follow, by option.

        `group["lr"] = schedule` installs one, and a number that is written there ends it. The group holds the number in
        force, which the last step has used, and under `schedule_step` the step that schedules are asked for next.
        """
        self._schedules.take(self.param_groups)
        return tuple(MappingProxyType(schedules) for schedules, _ in self._schedules.saved(self.param_groups))

    @property
    def _schedules(self) -> Schedules:
        if self._kept_schedules is None:
            self._kept_schedules = Schedules(self.rule())
        return self._kept_schedules

    def _check_parameter(self, rule: Rule, what: str, p: torch.Tensor) -> None:
        """Raise ValueError for one that cannot be trained."""
        rule.check_shape(what, tuple(p.shape))

    @property
    def _reads(self) -> Reads:
        if self._kept_reads is None:
            self._kept_reads = Reads(self.rule())
        return self._kept_reads

    def _read_groups(self) -> None:
        """Read every param group, and forget the plans where they do not go with its flags any more."""
        changed, other = self._reads.again(self.param_groups, self.state, self._schedules, self._capturing)
        if other:
            self._binding = None
        elif changed and self._binding is not None:
            self._binding.version += 1

    def _capturing(self) -> bool:
        """Whether a graph is being captured, for which there were steps before."""
        return self._selection is not None and any(route.place.capturing() for route in self._selection.routes)

    @torch.no_grad()
    def sync(self: Self) -> Self:
        """Wait for the device, and let schedules go on from the steps that were really taken.

        Schedules count the calls of `step`, of which a GradScaler may have skipped some: only the device knows. Each
        group's count becomes the largest step of its parameters. An optimizer that counts no steps, as SGD, warns.
        """
        self._schedules.sync(self.param_groups, self.state)
        return self

    @torch.no_grad()
    def reload_masters(self: Self) -> Self:
        """Let masters, remainders and compensations start again from the parameters: after weights were written into
        these, which a master would undo at the next step."""
        for p, entry in self.state.items():
            if isinstance(p, torch.Tensor) and isinstance(entry, Mapping):
                start_again(p, entry)
        return self

    def upload_hyperparameters(self) -> None:
        """Send the groups' numbers to the device now: before each replay of a captured graph, where they change.

        An ordinary step does so itself. A hyperparameter that is a tensor on the device needs it neither. Once a graph
        is captured, schedules take each call for the step of the replay that follows.
        """
        self._read_groups()
        if self._binding is not None and self._selection is not None:
            self._selection.refresh(self._binding.version)
        for plan in {id(plan.origin): plan for plan in self._captured}.values():  # which share their numbers
            plan.refresh()
        if self._captured:
            self._schedules.count_step(self.param_groups)

    # --- step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient: one launch a device.

        Args:
            closure: Called first, with gradients enabled; it computes the gradients, and its value is returned.

        Returns:
            The closure's value, or None.

        Raises:
            RuntimeError, TypeError, ValueError: A gradient, a state or an option does not fit; nothing changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    @untraced
    @torch.no_grad()
    def _update(self) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        gradients = self._gradients(params)
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            if self._schedules.any:
                self._read_groups()
            self._schedules.count_step(self.param_groups)
            return
        absent = [] if len(present) == len(gradients) else [i for i, g in enumerate(gradients) if g is None]
        sizes = [len(group["params"]) for group in self.param_groups]
        self._read_groups()
        if self._binding is None or not self._binding.holds(self.state, sizes):
            self._binding, self._selection = Binding(sizes), None
        selection, moved = self._selection, True
        try:
            if selection is not None and selection.is_of(params, absent):
                moved = selection.moved(present)
            else:
                selection = None
        except LookupError:
            selection = None
        if selection is None:
            selection = self._select(params, gradients, absent)
            moved = not selection.copies and selection.moved(present)
        selection.refresh(self._binding.version)
        self._selection = selection
        if selection.copies:
            self._binding = self._selection = None  # good for this step alone
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        write_back = grad_scale is not None and self.write_back_gradients
        captured = selection.step(present, moved, grad_scale, found_inf, write_back)
        self._captured += captured
        if not captured:  # which is no step
            self._schedules.count_step(self.param_groups)

    def _gradients(self, params: list[Any]) -> list[Any]:
        """The gradients that the launch is for; None for a parameter that it leaves alone."""
        return list(map(GRADIENT, params))

    def _select(self, params: list[Any], gradients: list[Any], absent: list[int]) -> Selection:
        """The plans for the parameters that have gradients; those that are not bound as they are, are bound first."""
        binding = self._binding
        assert binding is not None
        pairs = [(p, gradient) for p, gradient in zip(params, gradients) if gradient is not None]
        if binding.sharded and any(placements(p) != placements(gradient) for p, gradient in pairs):
            # Each such gradient is redistributed once, by all processes, whatever else one of them has to read anew.
            self._binding = binding = Binding(binding.sizes)
        stepping: list[torch.Tensor] = []
        candidates: list[Candidate] = []
        following, first = iter(gradients), 0
        for number, (group, said) in enumerate(zip(self.param_groups, self._reads.groups)):
            names, before, known = group.get("param_names"), len(stepping), len(candidates)
            for i, (p, gradient) in enumerate(zip(group["params"], following)):
                if gradient is None:
                    continue
                stepping.append(p)
                if not binding.knows(p, gradient, said, first + i):
                    name = repr(names[i]) if names else f"{i} of group {number}"
                    candidates.append(Candidate(name, p, gradient, self.state.get(p), said, first + i))
            first += len(group["params"])
            if len(candidates) > known and any(options_of(said.rule).values()):
                with of_group(number):
                    check_storage(stored_group(said.rule, dict(described(group, number))), ())
            check_norm(said.rule, number, (str(p.device) for p in stepping[before:]))
        if candidates:
            self._check_defaults([said.rule for said in self._reads.groups])
        selection = None if candidates else binding.selection(stepping, params, absent)
        if selection is not None:
            return selection
        if any(places.place_of(device).capturing() for device in {local(p).device for p in stepping}):
            raise RuntimeError(
                "step() is captured before a step like it was taken: its state and tables would be made anew at every "
                "replay; take one step outside of the graph first, with the same parameters, gradients and flags (and "
                "with gradients whose elements lie as their parameters' do: others are copied anew at every step)."
            )
        slots, counters, current = [], self._counters, set(map(id, params))
        for gone in [p for p in counters if id(p) not in current]:
            del counters[gone]
        for candidate in candidates:
            keeps = candidate.group.rule.counts or candidate.storage.beside
            entry = self.state[candidate.parameter] if keeps else {}
            slots.append(candidate.made_ready(entry, counters.get(candidate.parameter)))
            counters[candidate.parameter] = slots[-1].counter
        if any(slot.copies for slot in slots) and len(slots) < len(stepping):
            self._binding = Binding(binding.sizes)  # copies are for one step, and all are taken at once
            return self._select(params, gradients, absent)
        binding.add(slots, self.state)
        present = [g for g in gradients if g is not None]
        return binding.new_selection(stepping, params, absent, present, self._plan)

    def _plan(self, place: places.Place, slots: Sequence[Slot]) -> Plan:
        """Parameters on one device made ready to be updated."""
        return place.backend.plan([slot.span for slot in slots])

    @property
    def _counters(self) -> dict[torch.Tensor, Counter]:
        """The counter of each parameter. (Not by weak references, with which torch.utils.swap_tensors refuses one.)"""
        counters: dict[torch.Tensor, Counter] = self.__dict__.setdefault("_counters_by_parameter", {})
        return counters

    # --- memory, state dicts and copies

    def memory(self) -> KeptBytes:
        """Bytes that are kept once every parameter that requires a gradient has stepped, by kind; needs no step.

        `print(optimizer.memory())` is a table, `optimizer.memory().per_parameter` has bytes an element. Of DTensors it
        is the part of this process, and of gradients that are not there yet as many as the parameters'.

        Raises:
            ValueError: A parameter has no shape yet, or a dtype that cannot be trained.
        """
        found = KeptBytes()
        for number, group in enumerate(self.param_groups):
            with of_group(number):
                rule = checked_rule(self.rule(), group)
            found = sum((self._kept(p, rule) for p in group["params"]), found)
        return found

    def _kept(self, p: torch.Tensor, rule: Rule) -> KeptBytes:
        """What is kept for a parameter."""
        return of_launched(p, self.state.get(p, {}), rule)

    def share_memory(self) -> None:
        """Move the state arrays that are there to memory that processes share, as `torch.optim.Adagrad` can."""
        for p, entry in self.state.items():
            for value in entry.values() if isinstance(p, torch.Tensor) else ():
                if isinstance(value, torch.Tensor) and not value._is_view():  # which counters are
                    value.share_memory_()  # type: ignore[no-untyped-call]  # torch's

    @untraced
    def state_dict(self) -> dict[str, Any]:
        """State and options in torch.optim's format, to load there or here; the state tensors are the live ones."""
        self._schedules.take(self.param_groups)
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = _state_dict.state_dict(self.state, self.param_groups, self._counters)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = post_hook(self, state_dict) or state_dict
        return state_dict

    @untraced
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any], convert: bool = False) -> None:
        """Take over a state dict of torch.optim or of this library: checked whole, then copied, and never cast.

        One of bitsandbytes, torchao, TransformerEngine, apex or DeepSpeed is read as what it holds: docs/torch.md.
        An option that follows a schedule here goes on to follow it, from the step that was saved.

        Args:
            convert: Whether state that was kept in another way is converted to how this optimizer keeps its own,
                rounded to the nearest; else it is refused. Masters are taken together with the parameters: load these
                first. A parameter of float32 that has their values, widened, becomes the master.

        Raises:
            ValueError: Counts of groups or parameters, shapes, or a value do not fit; or another storage.
            TypeError: A state is no tensor, or of another dtype than it is kept in.
            KeyError: A state is missing.
        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        schedules, groups = self._schedules, self.param_groups
        schedules.take(groups)
        schedules.count_from(groups, self._load(state_dict, convert))
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _load(self, state_dict: dict[str, Any], convert: bool) -> list[int]:
        """Take over a state dict; how many steps each group has had."""
        followed = self._schedules.of(self.param_groups)
        return _state_dict.load(state_dict, followed, self.rule(), self.state, self._counters, convert)

    def __getstate__(self) -> dict[str, Any]:
        self._schedules.take(self.param_groups)
        followed = self._schedules.saved(self.param_groups)
        written = _state_dict.written(self.state, self.param_groups, self._counters)
        kept = {name: getattr(self, name) for name in (*HOOKS, "write_back_gradients")}
        return {**super().__getstate__(), **kept, "state": defaultdict(dict, written), "followed": followed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({key: value for key, value in state.items() if key != "followed"})
        for number, (schedules, steps) in enumerate(state.get("followed", []), 1):
            self._schedules.add(self.param_groups[:number], schedules, steps)
