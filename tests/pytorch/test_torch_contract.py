"""What every program expects of a torch optimizer: hooks, closures, state, storages that move, copies, loading."""

import contextlib
import copy
import gc
import io
import pickle
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fusedopt.torch
from cases import CASES, Plain, assert_same_bits, each_kind, each_lazy_kind
from fusedopt.rules import Rule, Values, hyperparameter, sign
from step_checks import NAdam

SHAPES = ((3, 5), (), (4099,))
SGD, ADAM, ADAMW = CASES[:3]
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)


def random(shape, seed, dtype=torch.float64):
    """Normal numbers, the same wherever they are used."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def ours_of(case):
    return getattr(fusedopt.torch, case.name)


def params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def leaves(device="cpu", dtype=torch.float64, shapes=SHAPES):
    return [random(shape, i, dtype).to(device).requires_grad_() for i, shape in enumerate(shapes)]


def give_gradients(optimizer, seed):
    for i, p in enumerate(params(optimizer)):
        p.grad = random(p.shape, 1000 * seed + i, p.dtype).to(p.device)


def everything(optimizer):
    """Copies of all that a step changes."""
    found = {f"parameter {i}": p.detach().clone() for i, p in enumerate(params(optimizer))}
    for i, p in enumerate(params(optimizer)):
        if p in optimizer.state:
            found |= {f"{name} of {i}": value.clone() for name, value in optimizer.state[p].items()}
    return found


def assert_equal(actual, expected):
    """The same keys, dtypes, layouts and bits, or NaN in both."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=0, equal_nan=True, check_stride=True, msg=name)


class Pair:
    """Ours on a device, and torch's for-loop on the CPU, over equal parameters in float64."""

    def __init__(self, case, device="cpu", shapes=SHAPES, **options):
        options = {**case.main, **options}
        self.ours = ours_of(case)(leaves(device, shapes=shapes), **copy.deepcopy(options))
        self.theirs = case.reference(leaves(shapes=shapes), foreach=False, **copy.deepcopy(options))
        self.steps = 0

    def __iter__(self):
        return iter((self.ours, self.theirs))

    def step(self, count=1, without=()):
        """Some steps with new gradients, which the parameters of these numbers do not get."""
        for _ in range(count):
            self.steps += 1
            for optimizer in self:
                give_gradients(optimizer, self.steps)
                for i in without:
                    params(optimizer)[i].grad = None
                optimizer.step()

    def compare(self):
        """Parameters and state are torch's: ten roundings of 1.1e-16 a step, relative to numbers of order one."""
        tolerance = 1e-14 * self.steps
        for p, q in zip(params(self.ours), params(self.theirs), strict=True):
            torch.testing.assert_close(p.cpu(), q, rtol=tolerance, atol=tolerance)
            ours, theirs = self.ours.state.get(p, {}), self.theirs.state.get(q, {})
            assert list(ours) == list(theirs)
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name].cpu().to(value.dtype), value, rtol=tolerance, atol=tolerance)


def widened_step(case, optimizer, p):
    """A parameter and its state after torch's next step in float32, or float64 where the parameter has it."""
    real = torch.float64 if p.dtype == torch.float64 else torch.float32
    wide = p.detach().cpu().to(real, copy=True).requires_grad_()
    wide.grad = p.grad.cpu().to(real, copy=True)
    group = {name: value for name, value in optimizer.param_groups[0].items() if name in case.main}
    reference = case.reference([wide], foreach=False, **group)
    for name, value in optimizer.state.get(p, {}).items():
        reference.state[wide][name] = value.cpu().to(torch.float32 if name == "step" else real, copy=True)
    reference.step()
    return {"parameter": wide.detach(), **reference.state[wide]}


def assert_steps_as_widened(case, optimizer):
    """Step, and compare with `widened_step`; float32 may differ by 2.5e-7 before it is rounded, float64 by 1e-14."""
    expected = [widened_step(case, optimizer, p) for p in params(optimizer)]
    optimizer.step()
    for p, wide in zip(params(optimizer), expected, strict=True):
        for name, value in {"parameter": p, **optimizer.state[p]}.items():
            tolerance = 1e-14 if value.dtype == p.dtype == torch.float64 else 2.5e-7
            value = value.detach().cpu()
            torch.testing.assert_close(
                value, wide[name].to(value.dtype), rtol=torch.finfo(value.dtype).eps + tolerance, atol=tolerance
            )


# --- hooks -----------------------------------------------------------------------------------------------------------


def events_of_a_step(optimizer):
    events = []

    def noting(name):
        return lambda optimizer, args, kwargs: events.append((name, len(args), list(kwargs)))

    with contextlib.ExitStack() as stack:
        for handle in (
            optimizer.register_step_post_hook(noting("own post")),
            register_optimizer_step_post_hook(noting("global post")),
            optimizer.register_step_pre_hook(noting("own pre")),
            register_optimizer_step_pre_hook(noting("global pre")),
            optimizer.register_step_pre_hook(noting("own pre, the second")),
        ):
            stack.callback(handle.remove)
        optimizer.step(closure=lambda: events.append("step"))
        optimizer.step()
    optimizer.step()  # without hooks
    return events


def test_step_hooks_run_in_torchs_order_and_no_more_once_removed():
    ours, theirs = map(events_of_a_step, Pair(ADAMW))
    assert ours == theirs
    names = [event if event == "step" else event[0] for event in ours]
    assert names[:6] == ["global pre", "own pre", "own pre, the second", "step", "own post", "global post"]
    assert len(names) == 11


def test_step_hooks_see_the_parameters_before_and_after():
    optimizer = fusedopt.torch.AdamW(leaves())
    give_gradients(optimizer, 1)
    seen = []
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: seen.append(everything(optimizer)))
    optimizer.register_step_post_hook(lambda optimizer, args, kwargs: seen.append(everything(optimizer)))
    before = everything(optimizer)
    optimizer.step()
    assert_equal(seen[0], before)
    assert_equal(seen[1], everything(optimizer))
    assert len(seen[1]) > len(seen[0])


def test_gradients_that_a_pre_hook_sets_count():
    pair = Pair(ADAMW)
    for optimizer in pair:
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: give_gradients(optimizer, 1))
        optimizer.step()
        optimizer.step()
    pair.steps = 2
    pair.compare()


def test_a_step_pre_hook_may_replace_the_arguments():
    for optimizer in Pair(ADAMW):
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: ((optimizer, lambda: "replaced"), {}))
        assert optimizer.step(closure=lambda: "given") == "replaced"


def test_a_step_pre_hook_that_returns_anything_else_is_an_error_and_changes_nothing():
    for optimizer in Pair(ADAMW):
        give_gradients(optimizer, 1)
        before = everything(optimizer)
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: "arguments")
        with pytest.raises(RuntimeError, match="must return None or a tuple"):
            optimizer.step()
        assert_equal(everything(optimizer), before)


def events_of_state_dicts(optimizer):
    """Hooks before and after state_dict and load_state_dict, those of the higher number registered later."""
    events = []

    def saving(number):
        return lambda optimizer: events.append(f"before saving {number}")

    def saved(number):
        def hook(optimizer, state_dict):
            events.append(f"after saving {number}")
            return {**state_dict, "by": [*state_dict.get("by", []), number]}

        return hook

    def loading(number):
        def hook(optimizer, state_dict):
            events.append(f"before loading {number}, {state_dict['by']}")
            return {**state_dict, "by": [*state_dict["by"], number]}

        return hook

    def loaded(number):
        return lambda optimizer: events.append(f"after loading {number}")

    handles = []
    for number, prepend in enumerate((False, False, True)):
        handles += [
            optimizer.register_state_dict_pre_hook(saving(number), prepend=prepend),
            optimizer.register_state_dict_post_hook(saved(number), prepend=prepend),
            optimizer.register_load_state_dict_pre_hook(loading(number), prepend=prepend),
            optimizer.register_load_state_dict_post_hook(loaded(number), prepend=prepend),
        ]
    state_dict = optimizer.state_dict()
    optimizer.load_state_dict(state_dict)
    assert state_dict["by"] == [2, 0, 1]  # as the hooks made it, and the loader's hooks have a copy
    for handle in handles:
        handle.remove()
    assert "by" not in optimizer.state_dict()
    return events


def test_state_dict_hooks_run_in_torchs_order_and_replace_the_dict():
    pair = Pair(ADAMW)
    pair.step()
    ours, theirs = map(events_of_state_dicts, pair)
    assert ours == theirs
    assert len(ours) == 12
    pair.step()
    pair.compare()


def test_state_dict_hooks_that_return_nothing_change_nothing():
    optimizer = fusedopt.torch.AdamW(leaves())
    optimizer.register_state_dict_post_hook(lambda optimizer, state_dict: None)
    optimizer.register_load_state_dict_pre_hook(lambda optimizer, state_dict: None)
    state_dict = optimizer.state_dict()
    assert list(state_dict) == ["state", "param_groups"]
    optimizer.load_state_dict(state_dict)


class Derived(fusedopt.torch.AdamW):
    pass


@pytest.mark.parametrize(
    "kind", [fusedopt.torch.SGD, fusedopt.torch.Adam, fusedopt.torch.AdamW, Derived], ids=lambda kind: kind.__name__
)
def test_the_profiler_sees_each_step_once_by_torchs_name(kind):
    optimizer = kind(leaves())
    give_gradients(optimizer, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = [event.name for event in profile.events() if event.name.startswith("Optimizer.")]
    assert names == [f"Optimizer.step#{kind.__name__}.step", f"Optimizer.zero_grad#{kind.__name__}.zero_grad"]


# --- closures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad])
def test_a_closure_computes_the_gradients_with_gradients_enabled_once(outside):
    pair, values = Pair(ADAMW), []
    for optimizer in pair:
        calls = []

        def closure(optimizer=optimizer, calls=calls):
            calls.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = sum((p**2).sum() for p in params(optimizer))
            loss.backward()
            return loss

        with outside():
            for _ in range(3):
                values.append(optimizer.step(closure))
                assert torch.is_grad_enabled() == (outside is torch.enable_grad)
        assert calls == [True] * 3
    pair.steps = 3
    pair.compare()
    torch.testing.assert_close(values[:3], values[3:], rtol=1e-13, atol=1e-13)  # sums of 4,000 squares
    assert all(value.requires_grad for value in values)


def test_step_returns_nothing_without_a_closure_and_any_value_of_one():
    optimizer = fusedopt.torch.AdamW(leaves())
    assert optimizer.step() is None
    assert optimizer.step(None) is None
    value = object()
    assert optimizer.step(lambda: value) is value
    assert optimizer.step(closure=lambda: value) is value


def test_hyperparameters_and_groups_that_a_closure_changes_count_in_this_step():
    pair = Pair(SGD)
    for optimizer in pair:

        def closure(optimizer=optimizer):
            if len(optimizer.param_groups) == 1:
                optimizer.add_param_group({"params": leaves(shapes=((7,),))})
            optimizer.param_groups[0]["lr"] *= 0.5
            give_gradients(optimizer, 1)

        for _ in range(3):
            optimizer.step(closure)
    pair.steps = 3
    pair.compare()
    assert len(params(pair.ours)) == len(SHAPES) + 1


def test_a_closure_that_fails_leaves_all_as_it_was():
    optimizer = fusedopt.torch.AdamW(leaves())
    give_gradients(optimizer, 1)
    optimizer.step()
    before = everything(optimizer)

    def closure():
        raise KeyError("no batch")

    with torch.no_grad():
        with pytest.raises(KeyError, match="no batch"):
            optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert_equal(everything(optimizer), before)


# --- state -----------------------------------------------------------------------------------------------------------


@each_lazy_kind
def test_state_is_made_at_the_first_step_with_torchs_keys_in_torchs_order(case, torch_device):
    pair = Pair(case, torch_device.device)
    for optimizer in pair:
        assert len(optimizer.state) == 0
        optimizer.step()  # without a gradient
        assert len(optimizer.state) == 0
        assert optimizer.state_dict()["state"] == {}
    pair.step(without=[1])
    ours, theirs = pair.ours.state, pair.theirs.state
    assert [params(pair.ours)[i] for i in (0, 2)] == [*ours]
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        assert list(mine) == list(other)
        for name, value in other.items():
            assert (type(mine[name]), mine[name].shape) == (torch.Tensor, value.shape)
            assert not mine[name].requires_grad
            if name != "step":
                assert (mine[name].dtype, mine[name].stride()) == (value.dtype, value.stride())
    pair.step()
    assert list(pair.ours.state) == [params(pair.ours)[i] for i in (0, 2, 1)]
    pair.compare()


@each_kind
@each_dtype
def test_state_arrays_have_the_parameters_dtype_and_a_storage_each(case, dtype, torch_device):
    optimizer = ours_of(case)(leaves(torch_device.device, dtype), **case.main)
    for number in range(2):
        give_gradients(optimizer, number)
        optimizer.step()
    tensors = [(name, value) for entry in optimizer.state.values() for name, value in entry.items()]
    for name, value in tensors:
        if name == "step":
            assert value.untyped_storage().nbytes() <= 64
        else:
            assert value.dtype == dtype
            assert value.untyped_storage().nbytes() == value.nbytes
    addresses = [t.untyped_storage().data_ptr() for t in [*params(optimizer), *(value for _, value in tensors)]]
    assert len(set(addresses)) == len(addresses)


def test_amsgrads_maximum_is_torchs(torch_device):
    pair = Pair(ADAM, torch_device.device, amsgrad=True)
    pair.step(3)
    pair.compare()
    assert "max_exp_avg_sq" in pair.ours.state[params(pair.ours)[0]]


def test_step_is_live(torch_device):
    optimizer = fusedopt.torch.AdamW(leaves(torch_device.device))
    give_gradients(optimizer, 1)
    optimizer.step()
    steps = [entry["step"] for entry in optimizer.state.values()]
    for number in range(2, 5):
        give_gradients(optimizer, number)
        if number > 2:
            params(optimizer)[0].grad = None
        optimizer.step()
        assert [step.item() for step in steps] == [2, number, number]
        assert all(step.shape == () and step is entry["step"] for step, entry in zip(steps, optimizer.state.values()))


def test_a_step_that_is_written_counts_on_from_there(torch_device):
    pair = Pair(ADAMW, torch_device.device)
    pair.step()
    for optimizer in pair:
        optimizer.state[params(optimizer)[0]]["step"].fill_(10)
    pair.step(2)
    pair.compare()
    assert pair.ours.state[params(pair.ours)[0]]["step"] == 12


def other(tensor, seed):
    """Other values for a state, none of them negative, so that they suit a second moment too."""
    return random(tensor.shape, seed).abs().to(tensor)


def replace_tensors(optimizer):
    for entry in optimizer.state.values():
        entry.update({name: other(value, 7) for name, value in entry.items() if name != "step"})


def replace_last_tensor(optimizer):
    entry = list(optimizer.state.values())[-1]
    name = list(entry)[-1]
    entry[name] = other(entry[name], 7)


def replace_data(optimizer):
    for entry in optimizer.state.values():
        for name, value in entry.items():
            if name != "step":
                value.data = other(value, 7)


def replace_steps(optimizer):
    for entry in optimizer.state.values():
        entry["step"] = torch.tensor(41.0, dtype=torch.float32)


def replace_steps_data(optimizer):
    for entry in optimizer.state.values():
        entry["step"].data = torch.tensor(41.0, dtype=entry["step"].dtype)


def replace_entries(optimizer):
    for p, entry in list(optimizer.state.items()):
        optimizer.state[p] = {name: other(value, 7).mul(3).ceil() for name, value in entry.items()}


def replace_by_copies(optimizer):
    for p, entry in list(optimizer.state.items()):
        optimizer.state[p] = {name: value.to("cpu", copy=True).to(value.device) for name, value in entry.items()}


def write_in_place(optimizer):
    for entry in optimizer.state.values():
        for value in entry.values():
            value.copy_(other(value, 7).mul(3).ceil())


def delete_entries(optimizer):
    for p in params(optimizer)[1:]:
        del optimizer.state[p]


def clear_state(optimizer):
    optimizer.state.clear()


def replace_state_itself(optimizer):
    kept = {p: {name: other(value, 7).mul(3).ceil() for name, value in e.items()} for p, e in optimizer.state.items()}
    optimizer.state = defaultdict(dict, kept)


def transpose_state(optimizer):
    for entry in optimizer.state.values():
        entry.update({name: value.transpose(0, 1) for name, value in entry.items() if value.dim() == 2})


OF_STEPS = (replace_steps, replace_steps_data)
REPLACEMENTS = (
    replace_tensors,
    replace_last_tensor,
    replace_data,
    *OF_STEPS,
    replace_entries,
    replace_by_copies,
    write_in_place,
    delete_entries,
    clear_state,
    replace_state_itself,
    transpose_state,
)


@pytest.mark.parametrize("old", ["kept", "dropped"])
@pytest.mark.parametrize(
    ("case", "replace"),
    [
        pytest.param(case, replace, id=f"{case.name}-{replace.__name__}")
        for case in (SGD, ADAMW)
        for replace in REPLACEMENTS
        if case is not SGD or replace not in OF_STEPS
    ],
)
def test_state_that_somebody_replaced_is_what_the_next_step_uses(case, replace, old, torch_device):
    pair = Pair(case, torch_device.device, shapes=((4, 4), (), (4099,)))
    pair.step(3)
    kept = [(entry, list(entry.values())) for optimizer in pair for entry in optimizer.state.values()]
    if old == "dropped":
        kept.clear()
    for optimizer in pair:
        replace(optimizer)
    del kept
    pair.step(2)
    pair.compare()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_kind
def test_state_changed_to_float32_under_a_half_parameter_stays_so(case, dtype, torch_device):
    optimizer = ours_of(case)(leaves(torch_device.device, dtype), **case.main)
    for number in range(4):
        give_gradients(optimizer, number)
        if number == 2:
            for entry in optimizer.state.values():
                entry.update({name: value.float() for name, value in entry.items() if name != "step"})
        if number:
            assert_steps_as_widened(case, optimizer)
        else:
            optimizer.step()
    kept = [value for entry in optimizer.state.values() for name, value in entry.items() if name != "step"]
    assert {value.dtype for value in kept} == {torch.float32}


@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}], ids=str
)
def test_momentum_turned_on_and_off_mid_training_is_torchs(options, torch_device):
    pair = Pair(SGD, torch_device.device, momentum=0.0, dampening=0.0)
    for changes in ({}, options, {"momentum": 0.0, "nesterov": False}, options):
        for optimizer in pair:
            optimizer.param_groups[0].update(changes)
        pair.step(2)
        pair.compare()


def test_amsgrad_turned_on_mid_training_starts_from_a_maximum_of_zero(torch_device):
    pair = Pair(ADAM, torch_device.device)
    pair.step(2)
    for optimizer in pair:
        optimizer.param_groups[0]["amsgrad"] = True
    for entry in pair.theirs.state.values():  # torch raises KeyError without it
        entry["max_exp_avg_sq"] = torch.zeros_like(entry["exp_avg_sq"])
    pair.step(2)
    pair.compare()


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_garbage_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def storages(tensors):
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]


def stepped(device, case=ADAMW, count=3):
    optimizer = ours_of(case)(leaves(device), **case.main)
    for number in range(count):
        give_gradients(optimizer, number)
        optimizer.step()
    return optimizer


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("layout", ["own", "transposed"])
def test_a_gradient_that_its_owner_drops_is_free_at_once(layout, torch_device):
    optimizer = fusedopt.torch.AdamW(leaves(torch_device.device, shapes=((4, 4), (5, 3))))
    for number in range(3):
        give_gradients(optimizer, number)
        if layout == "transposed":
            for p in params(optimizer):
                p.grad = p.grad.t().contiguous().t()
        optimizer.step()
        watched = storages(p.grad for p in params(optimizer))
        optimizer.zero_grad()
        assert all(storage.expired() for storage in watched)


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("drop", [replace_tensors, replace_data, replace_entries, delete_entries, clear_state])
def test_state_that_its_owner_drops_is_free_at_once(drop, torch_device):
    optimizer = stepped(torch_device.device)
    kept = params(optimizer)[:1] if drop is delete_entries else []
    entries = [entry for p, entry in optimizer.state.items() if not any(p is k for k in kept)]
    watched = storages(value for entry in entries for name, value in entry.items() if name != "step")
    assert len(watched) >= 4
    del entries
    drop(optimizer)
    assert all(storage.expired() for storage in watched)


@pytest.mark.usefixtures("no_garbage_collection")
@each_kind
def test_state_goes_with_its_optimizer(case, torch_device):
    optimizer = stepped(torch_device.device, case)
    kept = params(optimizer)
    watched = storages(value for entry in optimizer.state.values() for value in entry.values())
    del optimizer
    assert all(storage.expired() for storage in watched)
    assert len(kept) == len(SHAPES)


@pytest.mark.usefixtures("no_garbage_collection")
def test_a_parameter_taken_out_of_its_group_is_free_by_the_next_step(torch_device):
    optimizer = stepped(torch_device.device)
    (watched,) = storages([params(optimizer)[2].detach()])
    optimizer.state.pop(optimizer.param_groups[0]["params"].pop())
    give_gradients(optimizer, 9)
    optimizer.step()
    assert watched.expired()


# --- parameters stay where they are ----------------------------------------------------------------------------------


@each_kind
def test_a_step_moves_and_replaces_no_parameter_and_no_gradient(case, torch_device):
    model = torch.nn.Linear(5, 3).to(torch_device.device)
    optimizer = ours_of(case)(model.parameters(), **case.main)
    calls = []
    for p in model.parameters():
        p.register_hook(lambda gradient: calls.append("gradient"))
        p.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    before = list(model.parameters())
    addresses = [p.data_ptr() for p in before]
    for _ in range(3):
        model(torch.ones(2, 5, device=torch_device.device)).sum().backward()
        gradients = [(p.grad, p.grad.data_ptr(), p.grad.clone()) for p in before]
        optimizer.step()
        for p, (gradient, address, values) in zip(before, gradients):
            assert p.grad is gradient
            assert gradient.data_ptr() == address
            assert torch.equal(gradient, values)
    assert all(p is q for p, q in zip(model.parameters(), before, strict=True))
    assert all(p is q for p, q in zip(params(optimizer), before, strict=True))
    assert [p.data_ptr() for p in before] == addresses
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in before)
    assert calls == ["gradient", "accumulated"] * 6


def test_a_step_is_seen_by_autograd(torch_device):
    p, unused = leaves(torch_device.device, shapes=((3,), (3,)))
    optimizer = fusedopt.torch.AdamW([p, unused])
    for _ in range(3):  # planned anew at first, and as it was from then on
        loss = (p**2).sum()
        loss.backward(retain_graph=True)
        before = p._version, unused._version
        optimizer.step()
        assert p._version > before[0]
        assert unused._version == before[1]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("empty", [[0], [1], [2], [0, 1, 2], [3]], ids=str)
@each_kind
def test_parameters_without_elements_count_their_steps_as_torchs(case, empty, torch_device):
    shapes = [(0, 3) if i in empty else (4099,) for i in range(3)]
    pair = Pair(case, torch_device.device, shapes=shapes)
    pair.step(2)
    pair.step(without=[1])
    pair.compare()


# --- storages that change between steps ------------------------------------------------------------------------------


def clone_data(optimizer):
    for p in params(optimizer):
        p.data = p.data.clone()


def other_data(optimizer):
    for i, p in enumerate(params(optimizer)):
        p.data = random(p.shape, 50 + i).to(p.device)


def strided_data(optimizer):
    for p in params(optimizer):
        p.data = p.data.repeat_interleave(2, dim=-1)[..., ::2]


def transposed_data(optimizer):
    for p in params(optimizer):
        p.data = p.data.t()


def transposed_layout(optimizer):
    for p in params(optimizer):
        p.data = p.data.t().contiguous().t()


def transposed_in_place(optimizer):
    for p in params(optimizer):
        p.data.t_()
        with torch.no_grad():
            p.t_()


def swapped_gradients(optimizer):
    for p in params(optimizer):
        p.grad.data = p.grad.data.t()


def transposed_gradients(optimizer):
    for p in params(optimizer):
        p.grad = p.grad.t()


def written_gradients(optimizer):
    for p in params(optimizer):
        p.grad.mul_(-3)


def exchanged_parameters(optimizer):
    group = optimizer.param_groups[0]["params"]
    a, b = group[:2]
    a.data, b.data = b.data, a.data


SWAPS = (
    clone_data,
    other_data,
    strided_data,
    transposed_data,
    transposed_layout,
    transposed_in_place,
    swapped_gradients,
    transposed_gradients,
    written_gradients,
    exchanged_parameters,
)


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
@each_kind
def test_storages_swapped_between_steps_are_the_next_steps(case, swap, torch_device):
    pair = Pair(case, torch_device.device, shapes=((6, 6), (6, 6), (65, 65)))
    pair.step(3)
    for optimizer in pair:
        swap(optimizer)
        optimizer.step()  # with the gradient tensors of the step before
    pair.steps += 1
    pair.compare()
    pair.step(2)
    pair.compare()


def test_a_permuted_parameter_that_is_permuted_again_is_noticed(torch_device):
    pair = Pair(ADAM, torch_device.device, shapes=((4, 4, 4),))
    for optimizer in pair:
        (p,) = params(optimizer)
        p.data = p.data.permute(1, 2, 0)
    for number in range(4):
        for optimizer in pair:
            (p,) = params(optimizer)
            if number == 3:
                p.data = p.data.permute(1, 2, 0)  # as little contiguous as before, beside the gradient tensor of before
            else:
                p.grad = random(p.shape, number).to(p.device).permute(1, 2, 0)
            optimizer.step()
        pair.steps += 1
        pair.compare()


def cut(p):
    p.data = p.data[:2]


def reshaped(p):
    p.data = p.data.view(4, 6)


def reshaped_with_gradient(p):
    p.data = p.data.view(4, 6)
    p.grad = p.grad.view(4, 6).clone()


def cut_with_gradient(p):
    p.data = p.data[:2]
    p.grad = p.grad[:2].clone()


@pytest.mark.parametrize("change", [cut, reshaped, reshaped_with_gradient, cut_with_gradient])
def test_a_swapped_storage_of_another_shape_than_gradient_or_state_is_an_error(change, torch_device):
    pair = Pair(ADAM, torch_device.device, shapes=((5,), (6, 4)))
    pair.step(3)
    for optimizer in pair:
        change(params(optimizer)[1])
        before = everything(optimizer)
        with pytest.raises(RuntimeError, match=r"shape|size") as error:
            optimizer.step()
        if optimizer is pair.ours:
            assert "parameter 1 of group 0" in str(error.value)
            assert_equal(everything(optimizer), before)


@pytest.mark.parametrize("swapping", [False, True], ids=["set_data", "swap_tensors"])
@pytest.mark.parametrize(
    ("dtype", "convert"),
    [
        (torch.float32, "double"),
        (torch.float32, "half"),
        (torch.float32, "bfloat16"),
        (torch.float16, "float"),
        (torch.bfloat16, "half"),
        (torch.float64, "double"),
    ],
    ids=str,
)
@each_kind
def test_a_converted_module_trains_on_with_its_state_as_it_was(case, dtype, convert, swapping, torch_device):
    model = torch.nn.Linear(65, 64, dtype=dtype)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(random(p.shape, i))
    model.to(torch_device.device)
    optimizer = ours_of(case)(model.parameters(), **case.main)
    for number in range(2):
        give_gradients(optimizer, number)
        optimizer.step()
    before = [{name: value.clone() for name, value in entry.items()} for entry in optimizer.state.values()]
    was = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swapping)
    try:
        getattr(model, convert)()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(was)
    for entry, kept in zip(optimizer.state.values(), before, strict=True):
        assert_equal(entry, kept)
    for number in range(2, 4):
        give_gradients(optimizer, number)
        assert_steps_as_widened(case, optimizer)
    arrays = [value for entry in optimizer.state.values() for name, value in entry.items() if name != "step"]
    assert {value.dtype for value in arrays} == {dtype}


def test_float64_state_under_a_float32_parameter_is_an_error_that_changes_nothing(torch_device):
    model = torch.nn.Linear(5, 3, dtype=torch.float64).to(torch_device.device)
    optimizer = fusedopt.torch.AdamW(model.named_parameters())
    give_gradients(optimizer, 1)
    optimizer.step()
    model.float()
    give_gradients(optimizer, 2)
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=r"'weight'.*float32.*float64"):
        optimizer.step()
    assert_equal(everything(optimizer), before)


def test_parameters_assigned_to_the_module_and_to_the_group_train_on(torch_device):
    pair = Pair(ADAMW, shapes=((1,),))
    models = [torch.nn.Linear(5, 3, dtype=torch.float64) for _ in pair]
    for device, model, optimizer in zip((torch_device.device, "cpu"), models, pair):
        model.load_state_dict({"weight": random((3, 5), 1), "bias": random((3,), 2)})
        model.to(device)
        optimizer.param_groups[0]["params"] = list(model.parameters())
    pair.step(2)
    for model, optimizer in zip(models, pair):
        old = list(model.parameters())
        loaded = {name: value.clone() + 1 for name, value in model.state_dict().items()}
        model.load_state_dict(loaded, assign=True)
        assert model.weight.data_ptr() == loaded["weight"].data_ptr()
        optimizer.param_groups[0]["params"] = list(model.parameters())
        for p, q in zip(old, model.parameters(), strict=True):
            optimizer.state[q] = optimizer.state.pop(p)
    pair.step(2)
    pair.compare()
    assert torch.equal(models[0].weight, params(pair.ours)[0])


# --- layouts and dtypes of gradients ---------------------------------------------------------------------------------

SHAPE = (2, 3, 4, 5)


def contiguous(values):
    return values.clone(memory_format=torch.contiguous_format)


def channels_last(values):
    return values.clone(memory_format=torch.channels_last)


def transposed(values):
    return values.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)


def with_gaps(values):
    return values.repeat_interleave(2, dim=-1)[..., ::2]


def with_leading_gaps(values):
    return values.repeat_interleave(3, dim=0)[::3]


def at_an_odd_offset(values):
    buffer = torch.full((values.numel() + 2,), 7.0, dtype=values.dtype, device=values.device)
    return buffer[1:-1].view(values.shape).copy_(values)


def expanded(values):
    return values[..., :1].expand(values.shape)


def all_one_element(values):
    return values.flatten()[0].expand(values.shape)


LAYOUTS = (contiguous, channels_last, transposed, with_gaps, with_leading_gaps, at_an_odd_offset)


@pytest.mark.parametrize("gradient", [*LAYOUTS, expanded, all_one_element], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("parameter", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_layout_of_parameter_and_gradient_is_right(parameter, gradient, torch_device):
    pair = Pair(ADAMW)
    for device, optimizer in zip((torch_device.device, "cpu"), pair):
        values = random(SHAPE, 1).to(device)
        optimizer.param_groups[0]["params"] = [parameter(values).requires_grad_()]
    assert params(pair.ours)[0].stride() == parameter(values).stride()
    for number in range(4):
        for optimizer in pair:
            (p,) = params(optimizer)
            if number != 2 or gradient in (expanded, all_one_element):
                p.grad = gradient(random(SHAPE, 10 + number).to(p.device))
            else:
                p.grad.copy_(random(SHAPE, 12))  # the same tensor as before
            kept = p.grad.clone()
            optimizer.step()
            assert torch.equal(p.grad, kept)
        pair.steps += 1
        pair.compare()
    ours, theirs = (optimizer.state[params(optimizer)[0]]["exp_avg"] for optimizer in pair)
    assert ours.stride() == theirs.stride()
    assert params(pair.ours)[0].stride() == params(pair.theirs)[0].stride()


@pytest.mark.parametrize("layout", [with_gaps, with_leading_gaps, at_an_odd_offset])
def test_what_lies_around_a_parameter_is_left_alone(layout, torch_device):
    p = layout(random(SHAPE, 1).to(torch_device.device)).requires_grad_()
    optimizer = fusedopt.torch.SGD([p], lr=1.0)

    def around():
        """The whole storage, with zeros for the parameter."""
        whole = torch.empty(0, dtype=p.dtype, device=p.device).set_(p.untyped_storage()).clone()
        whole.as_strided(p.shape, p.stride(), p.storage_offset()).zero_()
        return whole

    before = around()
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert torch.equal(around(), before)
    assert before.count_nonzero() > 0


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
@each_dtype
@each_kind
def test_gradients_in_one_flat_buffer_give_the_same_bits_as_ones_of_their_own(case, dtype, offset, torch_device):
    shapes = ((3,), (17,), (4099,), (), (2, 9))
    apart, together = (ours_of(case)(leaves(torch_device.device, dtype, shapes), **case.main) for _ in range(2))
    buffers = []
    for number in range(3):
        give_gradients(apart, number)
        if number != 1:  # the second step has the first one's buffer
            buffers.append(torch.zeros(offset + number + 4200, dtype=dtype, device=torch_device.device))
            start = offset + number
            for p in params(together):
                p.grad = buffers[-1][start : start + p.numel()].view(p.shape)
                start += p.numel()
        for p, q in zip(params(apart), params(together), strict=True):
            q.grad.copy_(p.grad)
        apart.step()
        together.step()
        assert_equal(everything(together), everything(apart))


def test_parameters_in_one_flat_buffer_are_updated_there(torch_device):
    pair = Pair(ADAMW, torch_device.device)
    for optimizer in pair:
        flat, start = torch.zeros(4200, dtype=torch.float64, device=params(optimizer)[0].device), 1
        for p in params(optimizer):
            p.data = flat[start : start + p.numel()].view(p.shape).copy_(p.data)
            start += p.numel()
    pair.step(3)
    pair.compare()
    assert {p.untyped_storage().data_ptr() for p in params(pair.ours)} == {
        params(pair.ours)[0].untyped_storage().data_ptr()
    }


@pytest.mark.parametrize(
    ("dtype", "gradient"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float64, torch.float32),
    ],
    ids=str,
)
@each_kind
def test_a_gradient_of_another_dtype_is_widened(case, dtype, gradient, torch_device):
    some = leaves(torch_device.device, dtype)
    optimizer = ours_of(case)(some, **case.main)
    for p in some:
        p.grad_dtype = None
    for number in range(4):
        give_gradients(optimizer, number)
        if number:  # the first gradient has the parameter's dtype
            for p in some:
                p.grad = p.grad.to(gradient)
        assert_steps_as_widened(case, optimizer)


# --- copies and pickles ----------------------------------------------------------------------------------------------


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


CALLS = []


def note_a_step(optimizer, args, kwargs):
    CALLS.append(id(optimizer))


def note_a_state_dict(optimizer):
    CALLS.append(id(optimizer))


each_copy = pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved], ids=lambda copied: copied.__name__)


def assert_go_on_equally_and_apart(first, second):
    """Each takes two steps with the same gradients, in turn, which change nothing of the other one."""
    for number in range(2):
        for optimizer, resting in ((first, second), (second, first)):
            before = everything(resting)
            give_gradients(optimizer, 70 + number)
            optimizer.step()
            assert_equal(everything(resting), before)
        assert_equal(everything(second), everything(first))


@each_copy
@pytest.mark.parametrize("steps", [0, 3])
@each_kind
def test_a_copy_of_an_optimizer_goes_on_equally_and_apart(case, steps, copied, torch_device):
    optimizer = stepped(torch_device.device, case, steps)
    other = copied(optimizer)
    assert type(other) is type(optimizer)
    assert not any(p is q for p, q in zip(params(optimizer), params(other), strict=True))
    assert other.defaults == optimizer.defaults
    if steps == 0:
        assert len(other.state) == (len(SHAPES) if case.rule.eager_state else 0)
    assert_go_on_equally_and_apart(optimizer, other)


@each_copy
@each_kind
def test_a_copy_beside_its_module_updates_the_copied_module(case, copied, torch_device):
    model = torch.nn.Linear(5, 3, dtype=torch.float64).to(torch_device.device)
    optimizer = ours_of(case)(model.named_parameters(), **case.main)
    for number in range(2):
        give_gradients(optimizer, number)
        optimizer.step()
    other_model, other = copied((model, optimizer))
    assert all(p is q for p, q in zip(params(other), other_model.parameters(), strict=True))
    assert all(p is q for p, q in zip(other.state, other_model.parameters(), strict=True))
    assert_go_on_equally_and_apart(optimizer, other)
    for p, q in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(p, q)


@each_copy
def test_a_copy_keeps_hooks_and_write_back_gradients(copied):
    optimizer = fusedopt.torch.AdamW(leaves(), write_back_gradients=False)
    optimizer.register_step_pre_hook(note_a_step)
    optimizer.register_step_post_hook(note_a_step)
    optimizer.register_state_dict_pre_hook(note_a_state_dict)
    optimizer.register_load_state_dict_post_hook(note_a_state_dict)
    other = copied(optimizer)
    assert other.write_back_gradients is False
    CALLS.clear()
    other.step()
    other.load_state_dict(other.state_dict())
    assert len(CALLS) == 4
    assert set(CALLS) == {id(other)}
    CALLS.clear()
    optimizer.step()
    assert len(CALLS) == 2
    assert set(CALLS) == {id(optimizer)}


@each_copy
def test_a_copy_of_a_copy_with_replaced_state_goes_on(copied, torch_device):
    optimizer = stepped(torch_device.device)
    replace_entries(optimizer)
    other = copied(copied(optimizer))
    assert_go_on_equally_and_apart(optimizer, other)


# --- saving and loading ----------------------------------------------------------------------------------------------


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_kind
def test_a_saved_state_dict_goes_both_ways_with_torch(case, torch_device):
    pair = Pair(case, torch_device.device)
    pair.step(3, without=[1])
    exchanged = Pair(case, torch_device.device, lr=0.5, weight_decay=0.9)
    for optimizer, source, parameters in (
        (exchanged.ours, pair.theirs, params(pair.theirs)),
        (exchanged.theirs, pair.ours, params(pair.ours)),
    ):
        loaded = through_a_file(source.state_dict())
        if optimizer is exchanged.theirs:
            loaded["state"] = {i: {k: v.cpu() for k, v in entry.items()} for i, entry in loaded["state"].items()}
        optimizer.load_state_dict(loaded)
        with torch.no_grad():
            for p, q in zip(params(optimizer), parameters, strict=True):
                p.copy_(q)
    for some in (pair, exchanged):
        some.steps = 3
        some.step(3)
        some.compare()
    for p, q in zip(params(exchanged.ours), params(pair.theirs), strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=6e-14, atol=6e-14)


@each_kind
@each_dtype
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(case, dtype, torch_device):
    optimizer = ours_of(case)(leaves(torch_device.device, dtype), **case.main)
    for number in range(3):
        give_gradients(optimizer, number)
        optimizer.step()
    resumed = ours_of(case)([p.detach().clone().requires_grad_() for p in params(optimizer)], lr=0.0)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert resumed.param_groups[0]["lr"] == case.main["lr"]
    assert_go_on_equally_and_apart(optimizer, resumed)


def test_a_state_dict_has_steps_as_torch_writes_them(torch_device):
    pair = Pair(ADAMW, torch_device.device)
    pair.step(3)
    ours, theirs = (optimizer.state_dict() for optimizer in pair)
    for i, entry in theirs["state"].items():
        step = ours["state"][i]["step"]
        torch.testing.assert_close(step, entry["step"], rtol=0, atol=0)  # with dtype, shape and device
    assert ours["param_groups"][0].keys() - {"params"} == theirs["param_groups"][0].keys() - {"params"}
    assert ours["param_groups"][0]["params"] == theirs["param_groups"][0]["params"]


@pytest.mark.parametrize("start", [2.0**8, 2.0**24, 2.0**40])
def test_steps_are_counted_beyond_what_float32_can(start, torch_device):
    """torch's counter stops at 2**24, since 2**24 + 1 is no float32; and in bfloat16 at 256."""
    optimizer = stepped(torch_device.device)
    for entry in optimizer.state.values():
        entry["step"].fill_(start)
    give_gradients(optimizer, 5)
    for _ in range(3):
        optimizer.step()
    assert {entry["step"].item() for entry in optimizer.state.values()} == {start + 3}
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert {entry["step"].item() for entry in optimizer.state.values()} == {start + 3}


@each_kind
def test_a_state_dict_that_was_loaded_is_saved_as_it_was(case):
    saved, again = (ours_of(case)(leaves(), **case.main) for _ in range(2))
    give_gradients(saved, 1)
    saved.step()
    again.load_state_dict(saved.state_dict())
    pairs = zip(again.state_dict()["state"].values(), saved.state_dict()["state"].values(), strict=True)
    for entry, expected in pairs:
        assert {name: value.dtype for name, value in entry.items()} == {n: v.dtype for n, v in expected.items()}


STEPS = {
    "an int": 7,  # torch before 1.12
    "int64": torch.tensor(7),
    "int32 of one element": torch.tensor([7], dtype=torch.int32),
    "bfloat16": torch.tensor(7, dtype=torch.bfloat16),
    "float64": torch.tensor(7.0, dtype=torch.float64),
}


@pytest.mark.parametrize("in_group", [False, True])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_of_any_kind_is_loaded_from_a_parameters_state_or_from_its_group(step, in_group, torch_device):
    """The group's is how apex and TransformerEngine save it."""
    pair = Pair(ADAMW, torch_device.device)
    pair.step(2)
    state_dict = pair.ours.state_dict()
    for entry in state_dict["state"].values():
        del entry["step"]
        if not in_group:
            entry["step"] = step
    for group in state_dict["param_groups"] if in_group else ():
        group |= {"step": step, "bias_correction": True}
    pair.ours.load_state_dict(state_dict)
    assert "step" not in pair.ours.param_groups[0]
    for entry in pair.theirs.state.values():
        entry["step"].fill_(7)
    pair.step(2)
    pair.compare()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@each_kind
def test_loaded_state_is_never_cast(case, dtype, torch_device):
    source = ours_of(case)(leaves(torch_device.device, torch.float32), **case.main)
    give_gradients(source, 1)
    source.step()
    optimizer = ours_of(case)(leaves(torch_device.device, dtype), **case.main)
    give_gradients(optimizer, 1)
    optimizer.step()
    optimizer.load_state_dict(source.state_dict())
    for p, q in zip(params(optimizer), params(source), strict=True):
        for name, value in source.state[q].items():
            torch.testing.assert_close(optimizer.state[p][name], value, rtol=0, atol=0)  # with its dtype
    give_gradients(optimizer, 2)
    assert_steps_as_widened(case, optimizer)


@each_kind
def test_loaded_state_is_never_aliased(case, torch_device):
    source = stepped(torch_device.device, case)
    state_dict = source.state_dict()
    optimizer = ours_of(case)([p.detach().clone().requires_grad_() for p in params(source)], **case.main)
    for _ in range(2):  # into new tensors, and into those that are there
        optimizer.load_state_dict(state_dict)
        kept = copy.deepcopy(state_dict["state"])
        give_gradients(optimizer, 5)
        before = everything(source)
        optimizer.step()
        assert_equal(everything(source), before)
        for i, entry in kept.items():
            assert_equal(state_dict["state"][i], entry)


@each_kind
def test_state_is_loaded_into_the_tensors_that_are_there(case, torch_device):
    source, optimizer = stepped(torch_device.device, case, 4), stepped(torch_device.device, case, 2)
    kept = [(p, dict(entry)) for p, entry in optimizer.state.items()]
    addresses = [value.data_ptr() for _, entry in kept for value in entry.values()]
    optimizer.load_state_dict(source.state_dict())
    for p, entry in kept:
        assert list(optimizer.state[p]) == list(entry)
        assert all(optimizer.state[p][name] is value for name, value in entry.items())
    assert [value.data_ptr() for _, entry in kept for value in entry.values()] == addresses
    with torch.no_grad():
        for p, q in zip(params(optimizer), params(source), strict=True):
            p.copy_(q)
    assert_go_on_equally_and_apart(source, optimizer)


def _wrong_shape(state_dict):
    state_dict["state"][2]["exp_avg_sq"] = torch.zeros(4098, dtype=torch.float64)


def _transposed(state_dict):
    state_dict["state"][0]["exp_avg"] = state_dict["state"][0]["exp_avg"].t()


def _broadcast(state_dict):
    state_dict["state"][2]["exp_avg"] = torch.zeros((), dtype=torch.float64)


def _one_more_group(state_dict):
    state_dict["param_groups"].append({**state_dict["param_groups"][0], "params": [3]})


def _one_parameter_less(state_dict):
    state_dict["param_groups"][0]["params"].pop()


def _wrong_step(state_dict):
    state_dict["state"][2]["step"] = torch.tensor(-1.0)


def _wrong_option(state_dict):
    state_dict["param_groups"][0]["betas"] = (0.9, 1.0)


@pytest.mark.parametrize(
    "spoil",
    [_wrong_shape, _transposed, _broadcast, _one_more_group, _one_parameter_less, _wrong_step, _wrong_option],
    ids=lambda spoil: spoil.__name__[1:],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_state_dict_that_does_not_fit_raises_and_changes_nothing(spoil, steps, torch_device):
    state_dict = copy.deepcopy(stepped(torch_device.device, count=3).state_dict())
    state_dict["param_groups"][0]["lr"] = 0.7
    spoil(state_dict)
    optimizer = stepped(torch_device.device, count=steps)
    before = everything(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError):
        optimizer.load_state_dict(state_dict)
    assert_equal(everything(optimizer), before[0])
    assert optimizer.state_dict()["param_groups"] == before[1]
    unspoilt = stepped(torch_device.device, count=steps)
    assert_go_on_equally_and_apart(optimizer, unspoilt)


def test_a_state_that_is_no_tensor_is_not_loaded():
    optimizer = stepped("cpu")
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][2]["exp_avg"] = np.zeros(4099)
    before = everything(optimizer)
    with pytest.raises(TypeError, match=r"exp_avg.*must be a tensor"):
        optimizer.load_state_dict(state_dict)
    assert_equal(everything(optimizer), before)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AdamW", {"clip_norm": 1.0, "loss_scale": 2.0, "nesterov": True, "corrected_eps": False}),
        ("SGD", {"clip_value": 1.0, "grad_centralization": True, "lr_in_momentum": True}),
        ("Adagrad", {"eps_inside_sqrt": True}),
        ("Muon", {"ns_dtype": "float32"}),
    ],
)
def test_options_that_a_group_did_not_show_are_loaded(kind, options):
    cls = getattr(fusedopt.torch, kind)
    given, plain = (cls([torch.ones(2, 2, requires_grad=True)], **some) for some in (options, {}))
    plain.load_state_dict(given.state_dict())
    assert {name: plain.param_groups[0][name] for name in options} == options
    given.load_state_dict(cls([torch.ones(2, 2, requires_grad=True)]).state_dict())  # which says nothing of them
    assert {name: given.param_groups[0][name] for name in options} == options


def test_loading_a_state_dict_without_state_forgets_what_was(torch_device):
    pair = Pair(ADAMW, torch_device.device)
    empty = [copy.deepcopy(optimizer.state_dict()) for optimizer in pair]
    pair.step(2)
    for optimizer, state_dict in zip(pair, empty):
        optimizer.load_state_dict(state_dict)
        assert len(optimizer.state) == 0
    pair.step(2)
    pair.compare()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgds_buffers_are_in_state_dicts_where_there_was_a_gradient(momentum, torch_device):
    pair = Pair(SGD, torch_device.device, momentum=momentum)
    pair.step(2, without=[1])
    ours, theirs = (optimizer.state_dict()["state"] for optimizer in pair)
    assert {i: list(entry) for i, entry in ours.items()} == {i: list(entry) for i, entry in theirs.items()}
    assert list(ours) == ([0, 2] if momentum else [])
    for optimizer in pair:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    pair.step(2)  # the second parameter's first gradient enters its buffer undampened, the others' do not
    pair.compare()


def test_a_buffer_that_no_gradient_has_entered_yet_is_in_no_state_dict(torch_device):
    pair = Pair(SGD, torch_device.device)
    give_gradients(pair.ours, 9)
    pair.ours.grad_scale = torch.ones((), device=torch_device.device)
    pair.ours.found_inf = torch.ones((), device=torch_device.device)
    pair.ours.step()  # which is skipped
    del pair.ours.grad_scale, pair.ours.found_inf
    assert pair.ours.state_dict()["state"].get(0, {}) == {}
    pair.ours.load_state_dict(copy.deepcopy(pair.ours.state_dict()))
    pair.step(2)  # the first gradient enters the buffer undampened
    pair.compare()


# --- groups ----------------------------------------------------------------------------------------------------------


@each_kind
def test_a_group_added_mid_training_joins_in(case, torch_device):
    pair = Pair(case, torch_device.device)
    pair.step(2)
    for device, optimizer in zip((torch_device.device, "cpu"), pair):
        optimizer.add_param_group({"params": leaves(device, shapes=((2, 3), (4097,))), "lr": 0.3, "maximize": True})
    pair.step(2)
    pair.compare()
    assert pair.ours.param_groups[1]["weight_decay"] == case.main["weight_decay"]
    for optimizer in pair:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    pair.step(without=[0, 4])
    pair.compare()


def test_a_parameter_moved_to_another_group_takes_its_options(torch_device):
    pair = Pair(ADAMW, torch_device.device)
    for device, optimizer in zip((torch_device.device, "cpu"), pair):
        optimizer.add_param_group({"params": leaves(device, shapes=((2, 3), (4097,))), "lr": 0.3})
    pair.step(2)
    for optimizer in pair:
        first, second = (group["params"] for group in optimizer.param_groups)
        first[2], second[1] = second[1], first[2]
    pair.step(2)
    pair.compare()
    for optimizer in pair:
        first, second = (group["params"] for group in optimizer.param_groups)
        second.insert(0, first.pop())  # the order of all parameters is as it was
    pair.step(2)
    pair.compare()


@pytest.mark.parametrize(
    ("group", "error"),
    [
        ({"params": [torch.zeros(2)], "lr": -1.0}, ValueError),
        ({"params": [torch.zeros(2)], "betas": (0.9, 1.0)}, ValueError),
        ({"params": ["weight"]}, TypeError),
        ({"params": {torch.zeros(2)}}, TypeError),
        ({"params": [torch.zeros(2, requires_grad=True) * 2]}, ValueError),
        ([torch.zeros(2)], TypeError),
    ],
    ids=str,
)
def test_a_group_that_does_not_fit_is_not_added(group, error):
    optimizer = stepped("cpu")
    with pytest.raises(error):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert_go_on_equally_and_apart(optimizer, stepped("cpu"))


def test_a_parameter_is_in_one_group_only():
    optimizer = stepped("cpu")
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params(optimizer)[:1]})
    assert len(optimizer.param_groups) == 1


def test_the_callers_group_dicts_stay_as_they_are_and_unknown_keys_are_kept():
    some = leaves()
    given = [{"params": some[:2], "lr": 0.3, "name": "body"}, {"params": some[2:]}]
    added = {"params": leaves(shapes=((2,),)), "name": "head"}
    copies = [dict(group) for group in (*given, added)]
    optimizer = fusedopt.torch.AdamW(given)
    optimizer.add_param_group(added)
    lr_scheduler.LambdaLR(optimizer, lambda number: 0.5)
    give_gradients(optimizer, 1)
    optimizer.step()
    for group, kept in zip((*given, added), copies, strict=True):
        assert list(group) == list(kept)
        assert all(group[key] is value for key, value in kept.items())
    assert optimizer.param_groups[0]["name"] == "body"
    state_dict = optimizer.state_dict()
    assert [group.get("name") for group in state_dict["param_groups"]] == ["body", None, "head"]
    state_dict["param_groups"][1]["name"] = "neck"
    optimizer.load_state_dict(state_dict)
    assert [group.get("name") for group in optimizer.param_groups] == ["body", "neck", "head"]


# --- learning rates --------------------------------------------------------------------------------------------------


@each_kind
def test_a_learning_rate_that_is_a_tensor_is_read_at_every_step(case, torch_device):
    lrs = [torch.tensor(0.01, dtype=torch.float64, device=device) for device in (torch_device.device, "cpu")]
    pair = Pair(case, torch_device.device)
    for lr, optimizer in zip(lrs, pair):
        optimizer.param_groups[0]["lr"] = lr
    for factor in (1.0, 3.0, 0.25, 0.0):
        for lr in lrs:
            lr.mul_(factor)
        pair.step(2)
        pair.compare()
    assert pair.ours.param_groups[0]["lr"] is lrs[0]


def test_a_learning_rate_tensor_given_to_the_constructor_is_the_groups_own():
    lr = torch.tensor(0.01, dtype=torch.float64)
    pair = Pair(ADAMW)
    ours = fusedopt.torch.AdamW(params(pair.ours), lr=lr, **{k: v for k, v in ADAMW.main.items() if k != "lr"})
    pair.ours = ours
    pair.step(2)
    lr.fill_(0.3)
    pair.theirs.param_groups[0]["lr"] = 0.3
    pair.step(2)
    pair.compare()


def has_momentum(optimizer):
    """Whether there is something that torch's schedulers can drive against the learning rate."""
    return bool(optimizer.defaults.keys() & {"momentum", "betas"})


SCHEDULERS = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda number: 0.8**number),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=14, cycle_momentum=has_momentum(optimizer)
    ),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(
        optimizer, 0.01, 0.1, step_size_up=3, cycle_momentum=has_momentum(optimizer)
    ),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=5),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, 6)],
        milestones=[3],
    ),
    "LinearLR to 0": lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=5),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@each_kind
def test_torchs_schedulers_drive_both_alike(case, scheduler):
    pair = Pair(case)
    schedulers = [SCHEDULERS[scheduler](optimizer) for optimizer in pair]
    lrs = set()
    for _ in range(12):
        pair.step()
        pair.compare()
        for one in schedulers:
            one.step(*[1.0] * (scheduler == "ReduceLROnPlateau"))
        ours, theirs = ({k: v for k, v in o.param_groups[0].items() if k != "params"} for o in pair)
        assert ours == {**theirs, "foreach": None}
        lrs.add(ours["lr"])
    assert len(lrs) > 2


@each_kind
def test_a_schedule_that_rounding_takes_below_zero_ends_at_zero(case):
    pair = Pair(case)
    pair.step()
    for optimizer in pair:
        optimizer.param_groups[0]["lr"] = -1e-17
    pair.step(2)
    pair.compare()
    pair.ours.param_groups[0]["lr"] = -1e-3
    before = everything(pair.ours)
    with pytest.raises(ValueError, match="lr must be in"):
        pair.ours.step()
    assert_equal(everything(pair.ours), before)


# --- subclasses ------------------------------------------------------------------------------------------------------


def calls_of_hooks(kind):
    """How often a hook is called in a step of a class derived from this one, whose `step` calls its parent's."""

    class Mine(kind):
        def __init__(self, params, factor, **options):
            super().__init__(params, **options)
            self.factor = factor

        def step(self, closure=None):
            for p in params(self):
                p.grad.mul_(self.factor)
            return super().step(closure)

    kind(leaves())  # torch wraps a class's step when its first instance is made
    optimizer = Mine(leaves(), 0.5, lr=0.1, weight_decay=0.1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for number in range(2):
        give_gradients(optimizer, number)
        assert optimizer.step(lambda: "loss") == "loss"
    return len(calls), everything(optimizer)


@each_kind
def test_a_subclass_with_a_step_of_its_own_is_as_with_torch(case):
    (calls, ours), (their_calls, theirs) = calls_of_hooks(ours_of(case)), calls_of_hooks(case.reference)
    assert calls == their_calls == 4
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].to(value.dtype), value, rtol=2e-14, atol=2e-14)


@dataclass(frozen=True)
class LionRule(Rule):
    lr: float = hyperparameter(1e-4, "[0, inf)", "learning rate")
    betas: tuple[float, float] = hyperparameter((0.9, 0.99), "[0, 1)", "shares of the average that are kept")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "decoupled decay")

    state = ("exp_avg",)

    def scalars(self, step, a):
        beta1, beta2 = self.betas
        return Values(lr=self.lr, beta1=beta1, beta2=beta2, decay=self.lr * self.weight_decay)

    def update(self, p, g, s, c):
        direction = c.beta1 * s.exp_avg + (1 - c.beta1) * g
        exp_avg = c.beta2 * s.exp_avg + (1 - c.beta2) * g
        sign = np.where(direction > 0, 1.0, np.where(direction < 0, -1.0, 0.0))
        return p - c.decay * p - c.lr * sign, Values(exp_avg=exp_avg)


class Lion(fusedopt.torch.Optimizer, rule=LionRule):
    """A rule of one's own."""


class NAdamOptimizer(fusedopt.torch.Optimizer, rule=NAdam):
    """A rule with scalar state."""


def test_a_rule_of_ones_own_has_all_that_torchs_have(torch_device):
    optimizer = Lion(leaves(torch_device.device), 0.01, weight_decay=0.1)
    expected = [(p.detach().cpu().clone(), torch.zeros_like(p, device="cpu")) for p in params(optimizer)]
    for number in range(3):
        give_gradients(optimizer, number)
        optimizer.step()
        for p, (q, exp_avg) in zip(params(optimizer), expected, strict=True):
            gradient = p.grad.cpu()
            sign = torch.sign(0.9 * exp_avg + 0.1 * gradient)
            q.sub_(0.01 * (sign + 0.1 * q))
            exp_avg.mul_(0.99).add_(0.01 * gradient)
            torch.testing.assert_close(p.detach().cpu(), q, rtol=3e-14, atol=3e-14)
            torch.testing.assert_close(optimizer.state[p]["exp_avg"].cpu(), exp_avg, rtol=3e-14, atol=3e-14)
            assert list(optimizer.state[p]) == ["step", "exp_avg"]
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert repr(optimizer).startswith("Lion (")
    assert_go_on_equally_and_apart(optimizer, pickled(optimizer))


@each_dtype
def test_scalar_state_is_in_state_live_and_saved(dtype, torch_device):
    if dtype == torch.bfloat16:
        start = random((33,), 1).float().numpy().astype("bfloat16")
    else:
        start = random((33,), 1, dtype).numpy()
    optimizer = NAdamOptimizer([random((33,), 1, dtype).to(torch_device.device).requires_grad_()])
    plain = Plain(NAdam(), start)
    (p,) = params(optimizer)
    for number in range(6):
        give_gradients(optimizer, number)
        plain.update(p.grad.cpu().double().numpy().astype(start.dtype))
        if number == 3:
            resumed = NAdamOptimizer([p.detach().clone().requires_grad_()])
            resumed.load_state_dict(through_a_file(optimizer.state_dict()))
            (q,) = params(resumed)
            q.grad, optimizer, p = p.grad, resumed, q
        optimizer.step()
        state = optimizer.state[p]
        assert list(state) == ["step", "mu_product", "calls", "untouched", "exp_avg", "exp_avg_sq"]
        assert state["step"] == state["calls"] == number + 1
        assert {name: value.item() for name, value in state.items() if name in plain.scalar_state} == plain.scalar_state
        found = p.detach().cpu().double().numpy().astype(start.dtype)
        assert_same_bits(found, plain.parameter)


def test_the_base_class_has_no_rule_and_says_so():
    with pytest.raises(TypeError, match="has no rule of its own"):
        fusedopt.torch.Optimizer(leaves())


def test_flags_changed_before_a_state_dict_is_loaded_are_in_force_after_it(torch_device):
    pair = Pair(ADAMW, torch_device.device)
    pair.step(2)
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in (pair.ours, pair.theirs)]
    for optimizer, state_dict in zip((pair.ours, pair.theirs), saved, strict=True):
        for group in (*optimizer.param_groups, *state_dict["param_groups"]):
            group["maximize"] = True
        optimizer.load_state_dict(state_dict)
    pair.step(2)
    pair.compare()


@dataclass(frozen=True)
class SignRule(Rule):
    """One hyperparameter alone."""

    lr: float = hyperparameter(0.5, "[0, inf)", "learning rate")

    def scalars(self, step, a):
        return Values(lr=self.lr)

    def update(self, p, g, s, c):
        return p - c.lr * sign(g), Values()


def test_a_rule_may_have_one_hyperparameter_alone(torch_device):
    class Sign(fusedopt.torch.Optimizer, rule=SignRule):
        pass

    p = torch.zeros(3, device=torch_device.device, requires_grad=True)
    p.grad = torch.tensor([2.0, -3.0, 0.0], device=torch_device.device)
    Sign([p]).step()
    assert p.tolist() == [-0.5, 0.5, 0.0]
