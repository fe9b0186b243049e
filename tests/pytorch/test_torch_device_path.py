"""The GPU's path under torch: one launch a step, what is sent to the device, graphs, and torch's memory and streams.

It runs on the emulated GPU; the tests at the end run on a real one.
"""

import contextlib
import copy
import functools
import gc
import itertools
import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import fusedopt.torch as ours
from cases import CASES, ONE_OF_EACH_KIND, SIZES, assert_same_bits, each_kind, extreme, ordinary
from emulated import EmulatedArray
from fusedopt.backends import cuda
from fusedopt.backends.device import CHUNK, span_dtype
from fusedopt.procedures import BASES
from fusedopt.torch import optimizer as optimizer_module
from fusedopt.torch import places
from fusedopt.torch.candidate import Candidate
from fusedopt.torch.storages import TYPES
from fusedopt.torch.tensors import DTYPES, storable
from test_cuda_backend import Cupy, Stream

HOST = places.Host()
NAMES = {dtype: name for name, dtype in TYPES.items()}
TRIPLES = [t for t in itertools.product(DTYPES, repeat=3) if storable(t[1], t[0]) and storable(t[2], t[0])]


# --- one optimizer, twice --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def numpy_path():
    """CPU tensors are updated by NumPy once more, as they are outside of these tests."""
    kept = places.place_of
    places.place_of = lambda device: HOST
    try:
        yield
    finally:
        places.place_of = kept


def tensor(values, dtype=torch.float32, offset=0):
    """Values in memory of their own, which begins so many elements after an aligned address."""
    memory = torch.zeros(values.size + offset, dtype=dtype)
    with np.errstate(all="ignore"):
        source = np.ascontiguousarray(values.reshape(-1).astype(DTYPES[dtype]))
    memory[offset:].view(torch.uint8).copy_(torch.from_numpy(source.view(np.uint8)))
    return memory[offset:].reshape(values.shape)


def array(tensor):
    # A copy: torch resizes no storage that NumPy has seen.
    return tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8).numpy().view(NAMES[tensor.dtype])


def parameter(values, dtype=torch.float32, offset=0):
    made = torch.nn.Parameter(tensor(values, dtype, offset))
    made.grad_dtype = None  # a gradient of any type
    return made


class Twins:
    """An optimizer on the emulated GPU, and the same one on the NumPy path, which has the same bits.

    Args:
        name: The class.
        groups: Pairs of options and of what makes parameters, each time the same ones anew.
    """

    def __init__(self, name, *groups, **options):
        self.optimizers, self.given = [], []
        for path in (contextlib.nullcontext, numpy_path):
            with path():
                some = [{"params": [make() for make in makers], **own} for own, makers in groups]
                self.optimizers.append(getattr(ours, name)(some, **options))

    @property
    def device(self):
        return self.optimizers[0]

    @property
    def host(self):
        return self.optimizers[1]

    def params(self, optimizer):
        return [p for group in optimizer.param_groups for p in group["params"]]

    def pairs(self):
        return zip(*map(self.params, self.optimizers), strict=True)

    def give(self, seed, values=ordinary, dtype=None, offset=0, into_place=False):
        """New gradients: elsewhere, or into the memory of those that are there."""
        for number, (p, q) in enumerate(self.pairs()):
            new = values(p.numel(), "float64", 1000 * seed + number).reshape(p.shape)
            for each in (p, q):
                made = tensor(new, dtype or p.dtype, offset)
                if into_place:
                    each.grad.copy_(made)
                else:
                    each.grad = made
                    self.given.append(made)  # alive: a launch that reads the wrong gradient fails, and does not crash

    def host_step(self):
        with numpy_path():
            self.host.step()

    def step(self):
        self.device.step()
        self.host_step()

    def both(self, change):
        """The same change to both."""
        for optimizer, path in zip(self.optimizers, (contextlib.nullcontext, numpy_path)):
            with path():
                change(optimizer)

    def compare(self):
        for number, (p, q) in enumerate(self.pairs()):
            what = f"of {number}, {tuple(p.shape)}"
            assert_same_bits(array(p), array(q), f"parameter {what}")
            if p.grad is not None:
                assert_same_bits(array(p.grad), array(q.grad), f"gradient {what}")
            mine, theirs = (o.state.get(x, {}) for o, x in zip(self.optimizers, (p, q)))
            assert mine.keys() == theirs.keys()
            for key in mine:
                assert_same_bits(array(mine[key]), array(theirs[key]), f"{key} {what}")


def makers(*sizes, dtype=torch.float32, seed=0, offset=0):
    return [functools.partial(_made, size, dtype, seed + number, offset) for number, size in enumerate(sizes)]


def _made(size, dtype, seed, offset):
    return parameter(ordinary(size, "float64", seed), dtype, offset)


@pytest.fixture
def surface(emulated_gpu, monkeypatch):
    """The emulated GPU's surface, which notes in `sent` and `made` the bytes of each copy and of each allocation."""
    surface = emulated_gpu.surface
    surface.sent, surface.made = [], []
    copy_to, zeros = surface.copy, surface.zeros

    def noted_copy(to, source):
        surface.sent.append(source.nbytes)
        return copy_to(to, source)

    def noted_zeros(count, dtype):
        surface.made.append(count * dtype.itemsize)
        return zeros(count, dtype)

    monkeypatch.setattr(surface, "copy", noted_copy)
    monkeypatch.setattr(surface, "zeros", noted_zeros)
    return surface


@contextlib.contextmanager
def nothing_waits(surface):
    """Whatever would make the host wait for a device raises."""

    def waits(*_, **__):
        raise AssertionError("the host waited for the device")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "tolist", "numpy", "cpu", "__float__", "__bool__", "__int__"):
            patch.setattr(torch.Tensor, name, waits)
        patch.setattr(surface, "host", waits)
        yield


# --- a launch --------------------------------------------------------------------------------------------------------


FLAGS = {
    "SGD": [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "maximize": True}, {"weight_decay": 0.1}],
    "Adam": [{}, {"amsgrad": True, "weight_decay": 0.1}, {"maximize": True, "decoupled_weight_decay": True}],
    "AdamW": [{}, {"amsgrad": True}, {"maximize": True, "weight_decay": 0.0}],
    "Adagrad": [{}, {"initial_accumulator_value": 0.1, "weight_decay": 0.1}, {"maximize": True}],
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_step_is_one_launch_for_groups_with_other_flags_and_parameters_of_all_types(surface, name):
    groups = [
        (options | {"lr": 0.01 * (row + 1)}, [make for dtype in DTYPES for make in makers(3, 700, 0, dtype=dtype)])
        for row, options in enumerate(FLAGS[name])
    ]
    twins = Twins(name, *groups)
    for step in range(4):
        twins.give(step)
        twins.step()
        assert len(surface.launches) == step + 1
    twins.compare()


def test_parameters_without_gradients_are_in_no_launch_and_keep_all(surface):
    twins = Twins("AdamW", ({}, makers(5, 6, 7)))
    patterns = [(0, 1, 2), (0, 2), (1,), (), (0, 2), (0, 1, 2), (1,)]
    for step, pattern in enumerate(patterns):
        twins.give(step)
        for number, (p, q) in enumerate(twins.pairs()):
            if number not in pattern:
                p.grad = q.grad = None
        twins.step()
    assert len(surface.launches) == sum(map(bool, patterns))
    twins.compare()
    assert [twins.device.state[p]["step"].item() for p, _ in twins.pairs()] == [4, 4, 4]


def test_an_optimizer_of_empty_tensors_alone_steps(surface):
    twins = Twins("AdamW", ({}, makers(0, 0)))
    twins.give(0)
    twins.step()
    twins.compare()
    assert [twins.device.state[p]["step"].item() for p, _ in twins.pairs()] == [1, 1]


# --- a steady step ---------------------------------------------------------------------------------------------------


def forget(surface):
    surface.sent.clear()
    surface.made.clear()


def test_a_step_where_nothing_moved_sends_nothing_makes_nothing_and_waits_for_nothing(surface):
    twins = Twins("AdamW", ({}, makers(5, 4097)), ({"lr": 0.1}, makers(3)))
    twins.give(0)
    twins.step()
    forget(surface)
    for step in range(1, 6):
        twins.give(step, into_place=True)
        with nothing_waits(surface):
            twins.device.step()
        twins.host_step()
    assert (surface.sent, surface.made) == ([], [])
    twins.compare()


@pytest.mark.parametrize("steps", [0, 2])
def test_steps_that_were_loaded_from_the_cpu_are_waited_for_no_more(surface, steps):
    """A loaded step that lay on the device would be read back for each parameter at each step, as it was in torch."""
    saved = started(steps=2).device.state_dict()
    twins = started(steps=steps)
    for optimizer, path in zip(twins.optimizers, (contextlib.nullcontext, numpy_path)):
        with path():
            optimizer.load_state_dict(saved)
    twins.give(0)
    if not steps:
        twins.step()  # which makes the counters on the device
        twins.give(1, into_place=True)
    forget(surface)
    with nothing_waits(surface):
        twins.device.step()
    twins.host_step()
    assert surface.made == []
    assert {float(entry["step"]) for entry in twins.device.state.values()} == {3.0 if steps else 4.0}


def test_gradients_that_moved_cost_one_copy_of_the_table_of_spans(surface):
    twins = Twins("AdamW", ({}, makers(5, 4097)), ({"lr": 0.1}, makers(3)))
    for step in range(5):
        twins.give(step)
        if step == 1:
            forget(surface)
        with nothing_waits(surface):
            twins.device.step()
        twins.host_step()
    assert surface.sent == [3 * span_dtype(len(twins.device.rule().kept_states)).itemsize] * 4
    assert surface.made == []
    twins.compare()


def test_a_new_number_costs_one_copy_of_the_table_of_numbers(surface):
    twins = Twins("AdamW", ({}, makers(5)), ({"lr": 0.1}, makers(3)))
    twins.give(0)
    twins.step()
    forget(surface)
    for step in range(1, 5):
        twins.give(step, into_place=True)
        twins.both(lambda optimizer, step=step: optimizer.param_groups[1].update(lr=0.1 / step))
        twins.step()
    assert len(surface.sent) == 3  # at the first of them, 0.1 is what it was
    assert len(set(surface.sent)) == 1
    assert surface.made == []
    twins.compare()


def test_parameters_that_come_and_go_take_no_new_memory_of_the_device(surface):
    twins = Twins("AdamW", ({}, makers(*range(3, 43))))
    for step in range(130):
        twins.give(step % 3)
        for number, (p, q) in enumerate(twins.pairs()):
            if number == step % 40:
                p.grad = q.grad = None
        twins.step()
        if step == 60:
            forget(surface)
    assert surface.made == []
    twins.compare()


# --- bits ------------------------------------------------------------------------------------------------------------


def with_states(optimizer, params, dtypes, seed, values, offset):
    """The optimizer's states in other dtypes, with other values."""
    for number, (p, dtype) in enumerate(zip(params, dtypes, strict=True)):
        for place, key in enumerate(k for k in optimizer.state[p] if k != "step"):
            new = values(p.numel(), "float64", seed + 100 * number + place)
            optimizer.state[p][key] = tensor(abs(new) if "sq" in key else new, dtype, offset).reshape(p.shape)


@pytest.mark.slow  # a kernel of 31 variants
@pytest.mark.parametrize("how", ["replaced", "loaded"])
@pytest.mark.parametrize("grad_scale", [None, 3.0])
@each_kind
def test_every_choice_of_storage_has_the_bits_of_the_numpy_path(surface, case, grad_scale, how):
    many = [(triple, size) for triple in TRIPLES for size in SIZES]
    groups = ({}, [make for triple, size in many for make in makers(size, dtype=triple[0], seed=size)])
    twins = Twins(case.name, groups, **case.main)
    state_dtypes = [triple[2] for triple, _ in many]

    def give(seed, offset):
        for number, ((p, q), (triple, _)) in enumerate(zip(twins.pairs(), many, strict=True)):
            gradient = tensor(extreme(p.numel(), "float64", seed + number), triple[1], offset)
            p.grad, q.grad = gradient.clone(), gradient.clone()
            if offset:
                p.grad = tensor(array(gradient), triple[1], offset)

    give(0, 0)
    twins.step()
    twins.both(lambda o: with_states(o, twins.params(o), state_dtypes, 7, extreme, 0))
    if how == "loaded":
        twins.both(lambda o: o.load_state_dict(o.state_dict()))
        for optimizer in twins.optimizers:  # into another one
            fresh = type(optimizer)(twins.params(optimizer), **case.main)
            fresh.load_state_dict(optimizer.state_dict())
            twins.optimizers[twins.optimizers.index(optimizer)] = fresh
    for step in range(1, 3):
        give(10_000 * step, step)
        for optimizer in twins.optimizers:
            optimizer.grad_scale = grad_scale
        twins.step()
    twins.compare()
    for (p, _), dtype in zip(twins.pairs(), state_dtypes, strict=True):
        assert all(v.dtype == dtype for k, v in twins.device.state[p].items() if k != "step")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_memory_at_any_address_has_the_same_bits(surface, dtype, offset):
    sizes = (1, 3, 4, 17, 1025, CHUNK + 5)
    twins = Twins("AdamW", ({}, makers(*sizes, dtype=dtype, offset=offset)), amsgrad=True)
    for step, (gradients, states) in enumerate([(0, 0), (offset, 0), (0, 3), (offset, offset)]):
        twins.give(step, extreme if step else ordinary, offset=gradients)
        if step:
            twins.both(lambda o: with_states(o, twins.params(o), [dtype] * len(sizes), 50, ordinary, states))  # noqa: B023
        twins.both(lambda o: setattr(o, "grad_scale", 3.0))
        twins.step()
    twins.compare()


# --- hyperparameters on the device -----------------------------------------------------------------------------------


def on_device(rule, values, dtype):
    """Options whose numbers are tensors, but for those that choose the kernel: these the host has to know."""
    values = {name: value for name, value in values.items() if name not in rule.switches()}
    return {
        name: value
        if isinstance(value, bool)
        else tuple(torch.tensor(v, dtype=dtype) for v in value)
        if isinstance(value, tuple)
        else torch.tensor(value, dtype=dtype)
        for name, value in values.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_kind
def test_hyperparameters_that_are_tensors_are_read_by_the_launch(surface, case, dtype):
    twins = Twins(case.name, ({}, makers(5)), ({}, makers(700)), **case.main)
    first = [optimizer.param_groups[0] for optimizer in twins.optimizers]
    for group in first:
        group.update(on_device(case.rule, case.main, dtype))
    for step in range(4):
        twins.give(step, into_place=step > 0)
        for group in first:
            group["lr"].copy_(0.1 / (step + 1))
            if "betas" in group:
                group["betas"][0].fill_(0.5 + 0.1 * step)
        if step == 1:
            forget(surface)
        with nothing_waits(surface) if step else contextlib.nullcontext():
            twins.device.step()
        twins.host_step()
        assert surface.launches[-1]["sources"] != 0
    assert (surface.sent, surface.made) == ([], [])
    twins.compare()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_number_that_chooses_the_kernel_may_be_a_tensor(surface, momentum):
    twins = Twins("SGD", ({}, makers(5)), ({}, makers(700)), lr=0.1)
    for optimizer in twins.optimizers:
        optimizer.param_groups[1]["momentum"] = torch.tensor(momentum, dtype=torch.float64)
    for step in range(4):
        twins.give(step)
        twins.step()
        twins.compare()
    for optimizer in twins.optimizers:
        optimizer.param_groups[1]["momentum"].fill_(0.9 - momentum)
    twins.give(5)
    twins.step()
    twins.compare()


def test_a_tensor_may_take_the_place_of_a_number_and_back(surface):
    twins = Twins("AdamW", ({}, makers(5)), ({}, makers(7)))
    lrs = [0.1, torch.tensor(0.2), torch.tensor(0.3, dtype=torch.float64), 0.4, torch.tensor([0.5]), 0.4]
    for step, lr in enumerate(lrs):
        twins.give(step)
        twins.both(lambda o, lr=lr: o.param_groups[1].update(lr=lr.clone() if isinstance(lr, torch.Tensor) else lr))
        twins.step()
        twins.compare()


def test_torchs_schedulers_drive_a_tensor_without_sending_anything(surface):
    twins = Twins("SGD", ({"lr": 0.1}, makers(5)), ({"lr": 0.2}, makers(7)))
    for optimizer in twins.optimizers:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1, dtype=torch.float64)
        optimizer.param_groups[1]["lr"] = torch.tensor(0.2, dtype=torch.float64)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in twins.optimizers]
    for step in range(4):
        twins.give(step, into_place=step > 0)
        twins.step()
        for scheduler in schedulers:
            scheduler.step()
        if step == 0:
            forget(surface)
    assert surface.sent == []
    twins.compare()
    assert twins.device.param_groups[0]["lr"].item() == pytest.approx(0.1 * 0.5**4)


# --- captured graphs -------------------------------------------------------------------------------------------------


def captured(surface, *works):
    """What these do, as a graph: nothing of it is done now."""
    surface.host(np.zeros(1))  # torch.cuda.graph waits for the device before it captures
    surface.graph = []
    try:
        for work in works:
            work()
        return surface.graph
    finally:
        surface.graph = None


def replay(graph):
    for action in graph:
        action()


def started(name="AdamW", *, steps=1, sizes=(5, 4097), **options):
    """Twins that have taken some steps."""
    twins = Twins(name, ({}, makers(*sizes)), ({}, makers(3)), **options)
    for step in range(steps):
        twins.give(900 + step)
        twins.step()
    return twins


def everything(optimizer):
    """The bits of all that a step may write, and where all state is."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [(k, v.data_ptr(), array(v).tobytes()) for p in params for k, v in optimizer.state.get(p, {}).items()]
    return [array(p).tobytes() for p in params], states, [None if p.grad is None else array(p.grad) for p in params]


def assert_unchanged(optimizer, before):
    now = everything(optimizer)
    assert now[:2] == before[:2]
    for gradient, was in zip(now[2], before[2], strict=True):
        assert (gradient is None) == (was is None)
        if was is not None:
            assert_same_bits(gradient, was)


@each_kind
def test_a_replay_is_a_step(surface, case):
    twins = started(case.name, **case.main)
    twins.give(1)
    before = everything(twins.device)
    graph = captured(surface, twins.device.step)
    assert_unchanged(twins.device, before)
    for step in range(4):
        twins.give(step, into_place=True)
        replay(graph)
        twins.host_step()
        twins.compare()
    assert len(surface.launches) == 1 + 4


def test_a_capture_moves_nothing_of_the_eager_steps(surface):
    """The capture may be the first to see its gradients; a step outside of it is for the same ones then."""
    twins = started()
    old = [p.grad for p, _ in twins.pairs()]
    twins.give(1)
    graph = captured(surface, twins.device.step)
    for gradient in old:
        gradient.fill_(torch.nan)
    twins.step()
    twins.compare()
    replay(graph)
    twins.host_step()
    twins.compare()


def test_a_replay_follows_a_learning_rate_on_the_device(surface):
    twins = started("SGD", lr=0.5, momentum=0.9)
    for optimizer in twins.optimizers:
        for row, group in enumerate(optimizer.param_groups):
            group["lr"] = torch.tensor(0.5, dtype=(torch.float32, torch.float64)[row])
    twins.give(1)
    twins.step()
    graph = captured(surface, twins.device.step)
    forget(surface)
    for step in range(4):
        twins.give(step, into_place=True)
        twins.both(lambda o, step=step: [group["lr"].fill_(0.3 / (step + 1)) for group in o.param_groups])
        replay(graph)
        twins.host_step()
        twins.compare()


def test_a_replay_follows_numbers_that_were_uploaded(surface):
    twins = started()
    twins.give(1)
    graph = captured(surface, twins.device.step)
    for step in range(4):
        twins.give(step, into_place=True)
        twins.both(lambda o, step=step: o.param_groups[1].update(lr=0.3 / (step + 1), weight_decay=0.1 * step))
        twins.device.upload_hyperparameters()
        replay(graph)
        twins.host_step()
        twins.compare()


def test_a_scheduler_drives_replays(surface):
    twins = started("SGD", lr=0.5)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6) for optimizer in twins.optimizers]
    twins.give(1)
    twins.device.upload_hyperparameters()
    graph = captured(surface, twins.device.step)
    for step in range(6):
        twins.give(step, into_place=True)
        twins.device.upload_hyperparameters()
        replay(graph)
        twins.host_step()
        for scheduler in schedulers:
            scheduler.step()
        twins.compare()


def test_a_schedule_drives_replays(surface):
    """A call of `upload_hyperparameters` stands for the step of the replay that follows; a capture is no step."""
    twins = started("SGD", lr=lambda step: 0.5 ** (step + 1), momentum=0.9)
    lrs = lambda: [group["lr"] for optimizer in twins.optimizers for group in optimizer.param_groups]  # noqa: E731
    count = twins.host.param_groups[0]["schedule_step"]
    twins.give(1)
    graph = captured(surface, twins.device.step)
    assert twins.device.param_groups[0]["schedule_step"] == count
    for step in range(4):
        twins.give(step, into_place=True)
        twins.device.upload_hyperparameters()
        replay(graph)
        twins.host_step()
        twins.compare()
        assert set(lrs()) == {0.5 ** (count + step + 1)}
    twins.give(5)
    twins.step()
    twins.compare()
    assert set(lrs()) == {0.5 ** (count + 5)}


def test_eager_steps_between_replays_may_have_other_gradients(surface):
    twins = started()
    twins.give(1)
    static = [(p.grad, q.grad) for p, q in twins.pairs()]
    graph = captured(surface, twins.device.step)
    for step in range(5):
        twins.give(step)  # elsewhere
        twins.step()
        for number, ((p, q), gradients) in enumerate(zip(twins.pairs(), static, strict=True)):
            p.grad, q.grad = gradients
            for gradient in gradients:
                gradient.copy_(tensor(ordinary(p.numel(), "float64", 77 * step + number)))
        replay(graph)
        twins.host_step()
        twins.compare()


def test_an_eager_step_after_a_replay_reads_its_own_gradients_though_they_have_not_moved(surface):
    twins = started()
    own = [p.grad for p, _ in twins.pairs()]
    twins.give(1)
    static = [(p.grad, q.grad) for p, q in twins.pairs()]
    graph = captured(surface, twins.device.step)
    for step in range(3):
        for (p, q), gradient in zip(twins.pairs(), own, strict=True):
            p.grad, q.grad = gradient, gradient.clone()
        twins.step()
        for (_, q), (_, gradient) in zip(twins.pairs(), static, strict=True):
            q.grad = gradient
        replay(graph)
        twins.host_step()
        for p, q in twins.pairs():
            assert_same_bits(array(p), array(q), f"step {step}")


def test_eager_steps_between_replays_may_be_for_other_parameters(surface):
    twins = started()
    twins.give(1)
    static = [(p.grad, q.grad) for p, q in twins.pairs()]
    graph = captured(surface, twins.device.step)
    for step in range(4):
        twins.give(step)
        for number, (p, q) in enumerate(twins.pairs()):
            if number == step % 3:
                p.grad = q.grad = None
        twins.both(lambda o, step=step: o.param_groups[0].update(lr=0.3 / (step + 1)))
        twins.step()
        gc.collect()
        for (p, q), gradients in zip(twins.pairs(), static, strict=True):
            p.grad, q.grad = gradients
        twins.device.upload_hyperparameters()
        replay(graph)
        twins.host_step()
        twins.compare()


@each_kind
def test_a_state_dict_is_loaded_into_the_memory_that_a_graph_knows(surface, case):
    twins = started(case.name, steps=3, **case.main)
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in twins.optimizers]
    twins.give(1)
    graph = captured(surface, twins.device.step)
    for step in range(3):
        twins.give(step, into_place=True)
        replay(graph)
        twins.host_step()
    addresses = [value.data_ptr() for entry in twins.device.state.values() for value in entry.values()]
    for optimizer, state_dict, path in zip(twins.optimizers, saved, (contextlib.nullcontext, numpy_path), strict=True):
        with path():
            optimizer.load_state_dict(state_dict)
    assert [value.data_ptr() for entry in twins.device.state.values() for value in entry.values()] == addresses
    for step in range(3):
        twins.give(10 + step, into_place=True)
        replay(graph)
        twins.host_step()
        twins.compare()


def test_numbers_that_were_loaded_reach_a_replay_when_they_are_uploaded(surface):
    twins = started()
    saved = [optimizer.state_dict() for optimizer in twins.optimizers]
    for state_dict in saved:
        state_dict["param_groups"][0]["lr"] = 0.25
    twins.give(1)
    graph = captured(surface, twins.device.step)
    for optimizer, state_dict, path in zip(twins.optimizers, saved, (contextlib.nullcontext, numpy_path), strict=True):
        with path():
            optimizer.load_state_dict(state_dict)
    twins.device.upload_hyperparameters()
    replay(graph)
    twins.host_step()
    twins.compare()


def test_two_graphs_of_one_optimizer_each_have_their_gradients(surface):
    twins = started()
    graphs = []
    for seed in range(2):
        twins.give(seed)
        graphs.append((captured(surface, twins.device.step), [(p.grad, q.grad) for p, q in twins.pairs()]))
    for step in range(6):
        graph, gradients = graphs[step * step % 2]
        twins.both(lambda o, step=step: o.param_groups[0].update(lr=0.3 / (step + 1)))
        twins.device.upload_hyperparameters()
        replay(graph)
        for (_, q), (_, gradient) in zip(twins.pairs(), gradients, strict=True):
            q.grad = gradient
        twins.host_step()
        for p, q in twins.pairs():
            assert_same_bits(array(p), array(q))


def test_a_graph_of_several_steps_takes_them_all(surface):
    twins = started("SGD", lr=0.5, momentum=0.9)
    twins.give(1)
    graph = captured(surface, twins.device.step, twins.device.step, twins.device.step)
    for _ in range(2):
        replay(graph)
        for _ in range(3):
            twins.host_step()
    twins.compare()


def test_a_replay_reads_found_inf_and_the_scale_as_they_are_then(surface):
    twins = started()
    scale, found = torch.tensor(2.0), torch.tensor(0.0)
    for optimizer in twins.optimizers:
        optimizer.grad_scale, optimizer.found_inf = scale, found
    twins.give(1)
    graph = captured(surface, twins.device.step)
    for step, bad in enumerate([0.0, 1.0, 2.0, 0.0, math.nan, 0.0]):
        scale.fill_(2.0 + step)
        found.fill_(bad)
        twins.give(step, into_place=True)
        before = everything(twins.device)
        replay(graph)
        if bad:
            assert_unchanged(twins.device, before)
        twins.host_step()
        twins.compare()
    assert [twins.device.state[p]["step"].item() for p, _ in twins.pairs()] == [1 + 3] * 3


def test_a_graph_keeps_a_scale_that_is_a_number(surface):
    twins = started()
    for optimizer in twins.optimizers:
        optimizer.grad_scale = 2.0
    twins.give(1)
    graph = captured(surface, twins.device.step)
    for number in range(5):  # other numbers in the same ring of buffers
        twins.device.grad_scale = 16.0 * (number + 1)
        twins.host.grad_scale = 16.0 * (number + 1)
        twins.step()
    for optimizer in twins.optimizers:
        optimizer.grad_scale = 2.0
    for _ in range(2):
        replay(graph)
        twins.host_step()
        twins.compare()


def test_a_graph_goes_on_after_a_group_was_added(surface):
    twins = started()
    twins.give(1)
    graph = captured(surface, twins.device.step)
    gradients = [(p.grad, q.grad) for p, q in twins.pairs()]
    twins.both(lambda o: o.add_param_group({"params": [make() for make in makers(9, seed=5)], "lr": 0.2}))
    twins.give(2)
    twins.step()
    twins.both(lambda o: o.param_groups[0].update(lr=0.3))
    twins.device.upload_hyperparameters()
    replay(graph)
    for (_, q), (_, gradient) in itertools.zip_longest(twins.pairs(), gradients, fillvalue=(None, None)):
        q.grad = gradient
    twins.host_step()
    for p, q in twins.pairs():
        assert_same_bits(array(p), array(q))


def test_a_graph_keeps_the_flags_that_it_was_captured_with(surface):
    twins = started("SGD", lr=0.5, momentum=0.9)
    twins.give(1)
    graph = captured(surface, twins.device.step)
    for step in range(3):
        for group in twins.device.param_groups:
            group.update(lr=0.5 / (step + 1), maximize=True)
        twins.device.upload_hyperparameters()
        replay(graph)
        for group in twins.host.param_groups:
            group.update(lr=0.5 / (step + 1))
        twins.host_step()
        twins.compare()
    twins.both(lambda o: [group.update(maximize=True) for group in o.param_groups])
    twins.step()
    twins.compare()


@pytest.mark.parametrize(("first", "then"), [("tensor", "number"), ("number", "tensor"), ("tensor", "other tensor")])
def test_a_replay_follows_a_learning_rate_that_became_something_else(surface, first, then):
    kinds = {"tensor": torch.tensor, "other tensor": lambda lr: torch.tensor(lr, dtype=torch.float64), "number": float}
    twins = started("SGD", lr=0.5)
    twins.both(lambda o: o.param_groups[0].update(lr=kinds[first](0.5)))
    twins.give(1)
    twins.step()
    graph = captured(surface, twins.device.step)
    before = twins.device.param_groups[0]["lr"]
    twins.both(lambda o: o.param_groups[0].update(lr=kinds[then](0.125)))
    if first == "tensor":
        before.fill_(1e6)  # its memory is somebody else's now
    twins.device.upload_hyperparameters()
    replay(graph)
    twins.host_step()
    twins.compare()


# --- captures that cannot work ---------------------------------------------------------------------------------------


def change_flag(optimizer):
    optimizer.param_groups[0]["amsgrad"] = True


def move_parameter(optimizer):
    p = optimizer.param_groups[0]["params"][0]
    p.data = p.data.clone()


def replace_state(optimizer):
    entry = optimizer.state[optimizer.param_groups[0]["params"][1]]
    entry["exp_avg"] = entry["exp_avg"].clone()


def other_gradient_dtype(optimizer):
    p = optimizer.param_groups[0]["params"][0]
    p.grad = p.grad.half()


def drop_state(optimizer):
    del optimizer.state[optimizer.param_groups[0]["params"][0]]


def add_group(optimizer):
    optimizer.add_param_group({"params": [make() for make in makers(9, seed=5)]})
    p = optimizer.param_groups[-1]["params"][0]
    p.grad = torch.ones_like(p)


def other_layout(optimizer):
    p = optimizer.param_groups[0]["params"][1]
    p.grad = torch.stack([p.grad, p.grad], 1)[:, 0]


CHANGES = (change_flag, move_parameter, replace_state, other_gradient_dtype, drop_state, add_group, other_layout)


def test_a_capture_before_any_step_says_what_to_do(surface):
    twins = Twins("AdamW", ({}, makers(5, 7)))
    twins.give(0)
    before = everything(twins.device)
    surface.graph = []
    with pytest.raises(RuntimeError, match=r"take one step outside of the graph first"):
        twins.device.step()
    assert surface.graph == []
    surface.graph = None
    assert_unchanged(twins.device, before)
    assert not twins.device.state
    twins.step()
    graph = captured(surface, twins.device.step)
    replay(graph)
    twins.host_step()
    twins.compare()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("uploaded", [False, True])
def test_a_capture_of_another_step_than_the_last_says_what_to_do_and_changes_nothing(surface, change, uploaded):
    twins = started()
    twins.give(1)
    twins.both(change)
    if uploaded:
        twins.device.upload_hyperparameters()
    before = everything(twins.device)
    surface.graph = []
    with pytest.raises(RuntimeError, match=r"take one step outside of the graph first"):
        twins.device.step()
    assert surface.graph == []
    surface.graph = None
    assert_unchanged(twins.device, before)
    for step in range(2):
        if step:
            twins.give(step)
        twins.step()
        twins.compare()
    graph = captured(surface, twins.device.step)
    replay(graph)
    twins.host_step()
    twins.compare()


@pytest.mark.parametrize("moved", [False, True])
def test_numbers_that_changed_before_a_capture_must_be_uploaded(surface, moved):
    twins = started()
    twins.give(1, into_place=not moved)
    twins.both(lambda o: o.param_groups[0].update(lr=0.25))
    before = everything(twins.device)
    surface.graph = []
    with pytest.raises(RuntimeError, match=r"call optimizer\.upload_hyperparameters\(\) before the capture"):
        twins.device.step()
    assert surface.graph == []
    surface.graph = None
    assert_unchanged(twins.device, before)
    twins.step()  # with the new number, and the new gradients
    twins.compare()
    twins.both(lambda o: o.param_groups[0].update(lr=0.125))
    twins.device.upload_hyperparameters()
    graph = captured(surface, twins.device.step)
    replay(graph)
    twins.host_step()
    twins.compare()


def test_upload_before_any_step_does_nothing(surface):
    twins = Twins("AdamW", ({}, makers(5)))
    twins.device.upload_hyperparameters()
    twins.give(0)
    twins.step()
    twins.compare()


# --- rings of buffers ------------------------------------------------------------------------------------------------


def test_many_captures_and_many_eager_steps_do_not_write_into_each_others_buffers(surface):
    twins = started("SGD", lr=0.5, momentum=0.9, sizes=(5, 70))
    graphs = []
    for step in range(40):
        if step % 4 == 0:
            twins.give(step)
            kept = [(p.grad, q.grad) for p, q in twins.pairs()]
            graphs.append((captured(surface, twins.device.step), kept))
        twins.give(step)
        twins.both(lambda o, step=step: o.param_groups[0].update(lr=0.5 / (1 + step % 7)))
        twins.step()
        graph, kept = graphs[step * step % len(graphs)]
        replay(graph)
        for (p, q), (gradient, twin) in zip(twins.pairs(), kept, strict=True):
            p.grad, q.grad = gradient, twin
        twins.host_step()
        twins.compare()


def test_steps_that_the_device_is_late_with_all_get_their_own_tables(surface):
    """Copies to the emulated GPU are carried out as late as a GPU may: no buffer is written again before that."""
    first, second = started("SGD", lr=0.5), started("AdamW")
    for step in range(4):
        first.give(step)
        first.both(lambda o, step=step: o.param_groups[1].update(lr=0.5 / (step + 2)))
        first.device.upload_hyperparameters()
        second.give(step)
        for number in range(6):  # more than there are buffers, before the device has read any
            second.both(lambda o, n=number: o.param_groups[1].update(lr=0.5 / (n + 2)))
            second.device.upload_hyperparameters()
        first.step()
        second.step()
    first.compare()
    second.compare()


# --- memory that somebody else swaps ---------------------------------------------------------------------------------


def through_data(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        for key, value in optimizer.state[p].items():
            if key != "step":
                old, value.data = value.data, value.data.clone()
                old.fill_(torch.nan)


def by_replacing(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        entry = optimizer.state[p]
        for key in list(entry):
            entry[key], old = entry[key].clone(), entry[key]
            old.fill_(torch.nan)


def by_counting_anew(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        if "step" in optimizer.state[p]:
            optimizer.state[p]["step"] = torch.tensor(10.0)


def by_freeing(optimizer):
    """As FSDP does with what it offloads: the storage is given away, and comes back elsewhere."""
    for p in optimizer.param_groups[0]["params"]:
        for tensor_ in (p.data, *(v for k, v in optimizer.state[p].items() if k != "step")):
            kept, storage = tensor_.clone(), tensor_.untyped_storage()
            nbytes = storage.nbytes()
            storage.resize_(0)
            storage.resize_(nbytes)
            tensor_.copy_(kept)


def parameters_data(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        old, p.data = p.data, p.data.clone()
        old.fill_(torch.nan)


SWAPS = (through_data, by_replacing, by_counting_anew, by_freeing, parameters_data)


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_memory_that_was_swapped_between_steps_is_noticed(surface, name, swap):
    twins = started(name, **({"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {"amsgrad": True}))
    for step in range(4):
        twins.both(swap)
        twins.give(step)
        twins.step()
        twins.compare()
    assert len(surface.launches) == 5


def test_steps_leave_the_memory_of_dropped_gradients_and_states_alone(surface):
    twins = started()
    p = twins.params(twins.device)[1]
    gradient, state = p.grad, twins.device.state[p]["exp_avg"]
    twins.both(by_replacing)
    twins.give(1)
    gradient.fill_(5.0)
    state.fill_(6.0)
    twins.step()
    assert torch.equal(gradient, torch.full_like(gradient, 5.0))
    assert torch.equal(state, torch.full_like(state, 6.0))
    twins.compare()


# --- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.fixture
def dynamo():
    """torch's compiler without what it compiled before; a second compilation of anything is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.filterwarnings("error")
def test_torch_compile_breaks_its_graph_at_a_step_and_compiles_once(torch_device, dynamo, name):
    def train(compiler):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        model.to(torch_device.device)
        optimizer = getattr(ours, name)(model.parameters(), lr=0.05)
        x = torch.linspace(-1, 1, 32, device=torch_device.device).reshape(8, 4)

        @compiler
        def step():
            loss = (model(x) - 0.5).square().mean()
            value = loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return value

        losses = []
        for number in range(6):
            optimizer.param_groups[0]["lr"] = 0.05 / (number + 1)
            losses.append(step().item())
        return losses, [p.detach().clone() for p in model.parameters()]

    losses, expected = train(lambda function: function)
    compiled_losses, actual = train(functools.partial(torch.compile, backend="eager"))
    assert compiled_losses == losses
    for p, q in zip(actual, expected, strict=True):
        assert torch.equal(p, q)


def test_a_compiled_step_by_itself_is_a_step(torch_device, dynamo):
    params = [torch.ones(5, device=torch_device.device, requires_grad=True) for _ in range(2)]
    optimizers = [ours.AdamW([p]) for p in params]
    step = torch.compile(optimizers[0].step, backend="eager")
    for number in range(4):
        for p in params:
            p.grad = torch.full_like(p, number + 1.0)
        step()
        optimizers[1].step()
    assert torch.equal(*params)
    assert optimizers[0].state[params[0]]["step"].item() == 4


# --- places ----------------------------------------------------------------------------------------------------------


def second_gpu(emulated_gpu):
    return places.Gpu(type(emulated_gpu.surface)("cpu", EmulatedArray), torch.device("cpu"))


@pytest.mark.parametrize("kinds", [("gpu", "gpu"), ("gpu", "host")])
def test_a_model_on_two_devices_is_one_launch_on_each(emulated_gpu, monkeypatch, kinds):
    """All tensors here are the CPU's, so parameters of odd sizes are said to be elsewhere."""
    other = second_gpu(emulated_gpu) if kinds[1] == "gpu" else HOST
    here, launches = places.place_of, [emulated_gpu.surface.launches]
    if kinds[1] == "gpu":
        launches.append(other.backend.surface.launches)

    class OnOneOfTwo(Candidate):
        def _slot(self, counter):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(places, "place_of", (lambda _: other) if self.local.numel() % 2 else here)
                return super()._slot(counter)

    twins = Twins("AdamW", ({}, makers(5, 6, 7, 8)), ({"lr": 0.1}, makers(9, 10)))
    monkeypatch.setattr(optimizer_module, "Candidate", OnOneOfTwo)
    for step in range(4):
        twins.give(step, into_place=step == 2)
        twins.device.grad_scale = twins.host.grad_scale = torch.tensor(4.0)
        twins.device.step()
        with numpy_path(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizer_module, "Candidate", Candidate)
            twins.host.step()
        twins.compare()
        assert [len(some) for some in launches] == [step + 1] * len(launches)


class External(Stream):
    """CuPy's object for a stream of torch's."""

    def __init__(self, stream, cupy):
        super().__init__(stream.cuda_stream, cupy.waits)
        self.cupy = cupy

    def __enter__(self):
        self.cupy.streams.append(self.ptr)
        return self

    def __exit__(self, *_):
        self.cupy.streams.pop()


class TorchCupy(Cupy):
    """CuPy beside a torch that has streams: it notes on which of them things are done."""

    def __init__(self):
        self.streams = [None]
        super().__init__()
        self.cuda.Stream = types.SimpleNamespace(from_external=lambda stream: External(stream, self))
        self.cuda.get_current_stream = self.never
        self.zeros = self.never

    def never(self, *_):
        raise AssertionError("CuPy was asked for what is torch's")

    def does(self, name, function=lambda *arguments: None):
        def noted(*arguments, **keywords):
            self.done.append((name, self.entered[-1], self.streams[-1]))
            return function(*arguments, **keywords)

        return noted


@pytest.fixture
def cupy(monkeypatch):
    cupy = TorchCupy()
    monkeypatch.setattr(cuda, "module", lambda: cupy)
    monkeypatch.setattr(cuda.compiler, "architecture_of", lambda *capability: "sm_90")
    monkeypatch.setattr(cuda.compiler, "compiled", lambda *key: Path("kernel.cubin"))
    cupy.current = {torch.device("cuda", 3): 7}
    stream_of = lambda device: types.SimpleNamespace(cuda_stream=cupy.current[device])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_stream", stream_of)
    return cupy


def test_launches_and_copies_are_on_the_stream_that_is_torchs_current_one_on_that_device(cupy):
    surface = places.Surface(3)
    kernel = surface.kernel("", {}, "fused_step")
    surface.launch(kernel, 2, np.zeros(1, np.uint8))
    cupy.current[torch.device("cuda", 3)] = 8
    surface.copy(torch.zeros(4), np.zeros(16, np.uint8))
    surface.launch(kernel, 2, np.zeros(1, np.uint8))
    assert cupy.done[1:] == [("fused_step", 3, 7), ("memcpyAsync", 3, 8), ("fused_step", 3, 8)]
    assert cupy.waits == ["8 waits for event of 7"]  # the tables are the surface's own, and order their own streams
    assert (cupy.entered, cupy.streams) == ([0], [None])


def test_tables_are_torchs_memory_on_that_device(cupy, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "zeros", lambda count, *, dtype, device: asked.append((count, dtype, device)))
    places.Surface(3).zeros(256, np.dtype(np.uint8))
    assert asked == [(256, torch.uint8, torch.device("cuda", 3))]


def test_an_address_is_a_tensors_or_a_number(cupy):
    surface, made = places.Surface(3), torch.zeros(8)[2:]
    assert surface.pointer(made) == made.data_ptr()
    assert surface.pointer(12345) == 12345


@pytest.mark.parametrize("capturing", [True, False])
def test_a_capture_is_torchs(cupy, monkeypatch, capturing):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    surface = places.Surface(3)
    assert surface.capturing() is capturing
    assert places.Gpu(surface, torch.device("cuda", 3)).capturing() is capturing


def test_a_gpu_takes_addresses_and_scalars_of_its_own_as_they_are(emulated_gpu):
    place = second_gpu(emulated_gpu)
    assert place.memories([1, 2], [3, 4], ["float32", "float16"]) == [1, 2]
    scale = torch.tensor(3.0)
    assert place.scalar(scale) is scale
    assert place.scalar(torch.tensor(3.0, dtype=torch.float64)).dtype == torch.float32
    assert place.scalar(None) is None
    assert place.scalar(2.5) == 2.5


def test_the_cpus_arrays_are_the_tensors_memory_and_keep_nothing_alive():
    values = torch.arange(6, dtype=torch.bfloat16)
    some, empty = HOST.memories([values.data_ptr() + 4, 0], [3, 0], ["bfloat16", "float32"])
    some[0] = 9
    assert values.tolist() == [0, 1, 9, 3, 4, 5]
    assert (some.dtype.name, some.tolist()) == ("bfloat16", [9, 3, 4])
    assert (empty.size, empty.dtype) == (0, np.float32)


def test_a_device_that_has_no_kernel_is_refused():
    with pytest.raises(RuntimeError, match="on cpu and cuda devices, got meta"):
        places.place_of(torch.device("meta"))


def test_a_gpu_that_cannot_work_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(cuda, "problem", lambda: "CuPy cannot be imported; pip install it.")
    with pytest.raises(RuntimeError, match="a parameter is on cuda:77, and CUDA cannot work here: CuPy cannot be"):
        places.place_of(torch.device("cuda", 77))


def test_a_device_has_one_place():
    assert places.place_of(torch.device("cpu")) is places.place_of(torch.device("cpu"))
    assert isinstance(places.place_of(torch.device("cpu")), places.Host)


# --- a real GPU ------------------------------------------------------------------------------------------------------


class OnGpu:
    """An optimizer on the GPU, and the same one on the CPU, which has the same bits."""

    def __init__(self, name, sizes=(5, 4097, CHUNK + 5), **options):
        self.theirs = [parameter(ordinary(size, "float64", seed)) for seed, size in enumerate(sizes)]
        self.mine = [torch.nn.Parameter(p.detach().cuda()) for p in self.theirs]
        self.gpu, self.cpu = (getattr(ours, name)(params, **options) for params in (self.mine, self.theirs))

    def give(self, seed, into_place=False):
        for number, (p, q) in enumerate(zip(self.mine, self.theirs, strict=True)):
            q.grad = tensor(ordinary(q.numel(), "float64", 1000 * seed + number))
            if into_place:
                p.grad.copy_(q.grad)
            else:
                p.grad = q.grad.cuda()

    def step(self):
        self.gpu.step()
        self.cpu.step()

    def compare(self):
        torch.cuda.synchronize()
        for p, q in zip(self.mine, self.theirs, strict=True):
            assert_same_bits(array(p.cpu()), array(q))
            for key, value in self.cpu.state[q].items():
                assert_same_bits(array(self.gpu.state[p][key].cpu()), array(value), key)


@pytest.mark.gpu
@each_kind
def test_gpu_a_replay_of_torchs_graph_is_a_step(case):
    both = OnGpu(case.name, **case.main)
    both.give(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both.gpu.step()
    torch.cuda.current_stream().wait_stream(side)
    both.cpu.step()
    both.give(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        both.gpu.step()
    for step in range(5):
        both.give(step, into_place=True)
        for optimizer in (both.gpu, both.cpu):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        both.gpu.upload_hyperparameters()
        graph.replay()
        both.cpu.step()
        both.compare()
    kept = [p.grad for p in both.mine]
    both.give(7)
    both.step()  # an eager step between, with other gradients
    both.compare()
    for p, gradient in zip(both.mine, kept, strict=True):
        p.grad = gradient
    both.give(8, into_place=True)
    graph.replay()
    both.cpu.step()
    both.compare()


@pytest.mark.gpu
def test_gpu_a_replay_follows_a_learning_rate_on_the_device():
    both = OnGpu("AdamW")
    lr = torch.tensor(0.1, device="cuda", dtype=torch.float64)
    both.gpu.param_groups[0]["lr"] = lr
    both.cpu.param_groups[0]["lr"] = 0.1
    both.give(0)
    both.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        both.gpu.step()
    for step in range(4):
        lr.fill_(0.1 / (step + 2))
        both.cpu.param_groups[0]["lr"] = 0.1 / (step + 2)
        both.give(step, into_place=True)
        graph.replay()
        both.cpu.step()
        both.compare()


@pytest.mark.gpu
def test_gpu_a_capture_before_any_step_says_what_to_do():
    both = OnGpu("AdamW")
    both.give(0)
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match="take one step outside of the graph first"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        both.gpu.step()
    assert not both.gpu.state
    both.step()
    both.compare()


@pytest.mark.gpu
def test_gpu_steps_follow_torchs_current_stream():
    both = OnGpu("AdamW", sizes=(1 << 20,))
    streams = [torch.cuda.Stream() for _ in range(2)]
    for step in range(6):
        with torch.cuda.stream(streams[step % 2]):
            streams[step % 2].wait_stream(streams[1 - step % 2])
            torch.cuda._sleep(2_000_000)  # cycles: a millisecond, in which a launch elsewhere would have been done
            both.give(step)
            both.gpu.step()
        both.cpu.step()
    both.compare()


@pytest.mark.gpu
def test_gpu_states_go_to_the_cpu_and_back():
    both = OnGpu("AdamW", amsgrad=True)
    for step in range(4):
        both.give(step)
        both.step()
        for entry in both.gpu.state.values():
            for key, value in entry.items():
                if step % 2:
                    value.data = value.data.cpu()
                else:
                    entry[key] = value.cpu()
        for p, entry in both.gpu.state.items():
            for key, value in entry.items():
                if step % 2:
                    value.data = value.data.to(p.device)
                else:
                    entry[key] = value.to(p.device)
    both.compare()


@pytest.mark.gpu
def test_gpu_a_steady_step_allocates_nothing_and_waits_for_nothing():
    both = OnGpu("AdamW")
    both.gpu.grad_scale = torch.tensor(2.0, device="cuda")
    both.gpu.found_inf = torch.tensor(0.0, device="cuda")
    both.cpu.grad_scale = 2.0
    both.give(0)
    both.step()
    static = [[p.grad for p in both.mine]]
    both.give(0)
    static.append([p.grad for p in both.mine])  # which move at each step
    both.step()
    torch.cuda.synchronize()
    for step in range(4):
        both.give(step)
        for p, q, gradient in zip(both.mine, both.theirs, static[step % 2], strict=True):
            gradient.copy_(q.grad)
            p.grad = gradient
        torch.cuda.synchronize()
        gc.collect()
        allocated, count = torch.cuda.memory_allocated(), torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            both.gpu.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.memory_allocated() == allocated
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == count
        both.cpu.step()
    both.compare()


def test_the_table_has_every_optimizer():
    assert {case.name for case in CASES} == set(ours.__all__) - {"Optimizer", *BASES}
    assert {case.name for case in ONE_OF_EACH_KIND} == set(FLAGS)


@pytest.mark.parametrize(
    ("name", "option", "state"),
    [
        ("Rprop", "lr", "step_size"),
        ("RMSprop", "square_avg_init", "square_avg"),
        ("FTRL", "initial_accumulator_value", "moments"),
    ],
)
def test_a_state_starts_from_a_number_that_is_a_tensor_on_the_device(surface, name, option, state):
    p, q = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    made = getattr(ours, name)([p], **{option: torch.tensor(0.75)})
    other = getattr(ours, name)([q], **{option: 0.75})
    for parameter, optimizer in ((p, made), (q, other)):
        parameter.grad = torch.ones(5)
        optimizer.step()
    assert torch.equal(made.state[p][state], other.state[q][state])
    assert torch.equal(p, q)
