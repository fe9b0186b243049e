"""torch's own database of optimizers: each configuration in it gives torch's trajectory, state and state dicts."""

import copy
import inspect
import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from torch.testing._internal.common_optimizers import optim_db

import fusedopt.torch
from cases import TORCHS_OWN
from devices import CUDA, DEVICES, NUMBA
from fusedopt.procedures import BASES

# Of the others, test_torch_procedures.py.
INFOS = [info for info in optim_db if info.name in set(fusedopt.torch.__all__) - set(BASES)]
# In every dtype, and on every device. Of the other rules the mathematics is compared here, in float64: dtypes and
# devices are compared to the bit by the tests of the core.
THOROUGHLY = ("SGD", "Adam", "AdamW")
HALVES = (torch.float16, torch.bfloat16)
STEPS = 30
# A moment remembers up to twenty roundings, of half an ulp each, of numbers as large as the gradient.
STATE_ULPS = 10
# Adadelta's keeps squares, which double what a change of five roundings is off by; RMSprop's what was divided by the
# root of a difference, where centered.
ULPS_OF = {"acc_delta": 20, "momentum_buffer": 20}


@dataclass(frozen=True)
class Configuration:
    """One entry of the database.

    Attributes:
        info: torch's record of the optimizer.
        kwargs: What both constructors are given.
        title: The database's description.
    """

    info: Any
    kwargs: dict[str, Any]
    title: str = ""

    @property
    def name(self):
        return self.info.name

    def ours(self, params, **more):
        return getattr(fusedopt.torch, self.info.name)(params, **copy.deepcopy(self.kwargs), **more)

    def theirs(self, params, dtype, **more):
        return self.info.optim_cls(params, **for_torch(self.info, copy.deepcopy(self.kwargs), dtype), **more)


def for_torch(info, options, dtype):
    """The options, of a constructor or a param group, with which torch on the CPU computes what ours shall equal."""
    # On the CPU, torch asserts that nothing is capturable; it means the same update.
    options.pop("capturable", None)
    if dtype == torch.float64:
        # torch would compute bias corrections and decay in the float32 of a hyperparameter that is a tensor.
        for name in options.keys() & {"lr", "betas", "weight_decay"}:
            options[name] = number(options[name])
    # The for-loop in fp16 gives NaN, where eps rounds to zero. SGD has no eps, and its fused form on the CPU is wrong
    # in half types: from 16 elements on, it differs from its own loop by more than 0.1.
    if dtype in HALVES and "cpu" in info.supports_fused_on and info.name != "SGD":
        options |= {"fused": True, "foreach": None}
    elif "foreach" in inspect.signature(info.optim_cls).parameters:
        options |= {"foreach": False}
    return options


def number(value):
    """A hyperparameter without tensors."""
    if isinstance(value, (tuple, list)):
        return tuple(map(number, value))
    return value.item() if isinstance(value, torch.Tensor) else value


def _configurations():
    """Those for the CPU, and those that torch has on CUDA alone: capturable, and betas that are tensors."""
    for info in INFOS:
        # Those for float32 in every dtype: in fp16, torch's would have an eps of 0.1, which only its loop needs.
        inputs = {entry.desc: entry for device in ("cpu", "cuda") for entry in info.optim_inputs_func(device)}
        for description, entry in inputs.items():
            yield Configuration(info, entry.kwargs, f"{info.name}-{description}")


def each_of(argument, some, dtypes=(torch.float64,)):
    """Marks a test with `argument`, `dtype` and `torch_device`.

    Args:
        some: (name of the optimizer, title, value of the argument)
    """
    rows = []
    for name, title, value in some:
        for device in [*DEVICES, NUMBA] if name in THOROUGHLY else ["numpy", CUDA]:
            (device_name,), marks = (device.values, device.marks) if hasattr(device, "values") else ((device,), ())
            for dtype in dtypes if name in THOROUGHLY else (torch.float64,):
                row_id = f"{title}-{name_of(dtype)}-{device_name}"
                rows.append(pytest.param(value, dtype, device_name, id=row_id, marks=marks))
    return pytest.mark.parametrize((argument, "dtype", "torch_device"), rows, indirect=["torch_device"])


def each_configuration(*dtypes):
    return each_of("configuration", [(c.info.name, c.title, c) for c in _configurations()], dtypes or (torch.float64,))


@pytest.fixture(autouse=True)
def _scalar_state_in_float64(request):
    """torch keeps NAdam's mu_product and ASGD's eta and mu in its default dtype, and rounds them; ours are float64."""
    before = torch.get_default_dtype()
    names = request.node.name.partition("[")[2].split("-")
    if any(case.rule.scalar_state for case in TORCHS_OWN if case.name in names):
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """So many small steps: the threads of torch's fused class would wait for one another most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def scale_of(dtype):
    """How large parameters are: in half types small, so that a step is an ulp of them or more."""
    return 2.0**-4 if dtype in HALVES else 1.0


def parameters(dtype, device="cpu"):
    """Tensors of all kinds, the same wherever they are."""
    random = torch.Generator().manual_seed(0)
    shapes = ((), (3, 5), (4097,), (0, 3), (2, 3, 4, 5), (5, 7))
    values = [torch.randn(shape, generator=random, dtype=torch.float64) * scale_of(dtype) for shape in shapes]
    values[4] = values[4].to(memory_format=torch.channels_last)
    values[5] = values[5].t()
    return [value.to(device, dtype).requires_grad_() for value in values]


def give_gradients(params, step, present=lambda i: True):
    """Normal numbers, the same wherever they are used; times 0.1, but not in half types, where their squares vanish."""
    random = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        values = torch.randn(p.shape, generator=random, dtype=torch.float64) * (1.0 if p.dtype in HALVES else 0.1)
        p.grad = torch.empty_like(p).copy_(values) if present(i) else None


class Run:
    """An optimizer of torch's and one of ours, over equal parameters with equal gradients."""

    def __init__(self, theirs, ours, dtype, device):
        self.theirs, self.ours, self.dtype, self.device = theirs, ours, dtype, device
        self.steps = 0

    def take(self, steps, present=lambda i, step: True):
        for step in range(self.steps, self.steps + steps):
            for optimizer in (self.theirs, self.ours):
                give_gradients(params_of(optimizer), step, lambda i, step=step: present(i, step))
                optimizer.step()
        self.steps += steps

    def change(self, **options):
        for optimizer in (self.theirs, self.ours):
            for group in optimizer.param_groups:
                group.update(copy.deepcopy(options))

    def compare(self):
        self.compare_parameters()
        compare_state_dicts(self.ours.state_dict(), self.theirs.state_dict(), self.dtype, self.device)

    def compare_parameters(self):
        bound = self._bound()
        for i, (p, expected) in enumerate(zip(params_of(self.ours), params_of(self.theirs), strict=True)):
            expected = expected.detach().double()
            error = (p.detach().cpu().double() - expected).abs() / expected.abs().clamp_min(scale_of(self.dtype))
            assert bool((error <= bound).all()), f"parameter {i} after {self.steps} steps: {error.max()} > {bound}"

    def _bound(self):
        """How far a parameter p may be from torch's, in units of max(|p|, how large parameters are)."""
        if self.dtype == torch.float64:
            return 1e-14 * max(self.steps, 1)  # a few of its roundings a step
        if self.dtype in HALVES:
            # Three roundings that fell the other way. torch's loop rounds after every operation: a random walk.
            fused = any(group.get("fused") for group in self.theirs.param_groups)
            return torch.finfo(self.dtype).eps * (3 if fused or self.steps <= 1 else 2 + self.steps**0.5)
        if self.steps <= 1:
            return 2.5e-7
        # As torch's loop differs from float64, measured: its AdamW multiplies p by 1 - lr weight_decay, rounded.
        return 5.5e-6 if any(group.get("decoupled_weight_decay") for group in self.theirs.param_groups) else 2e-6


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def compare_state_dicts(ours, theirs, dtype, device):
    """The same parameters have state, with the same keys in the same order, shapes, strides, dtypes and values."""
    assert list(ours) == list(theirs)
    assert list(ours["state"]) == list(theirs["state"])
    capturable = {i for group in ours["param_groups"] if group.get("capturable") for i in group["params"]}
    for index, expected in theirs["state"].items():
        entry = ours["state"][index]
        assert list(entry) == list(expected)
        for key, value in expected.items():
            what = f"{key} of parameter {index}"
            assert (entry[key].dtype, entry[key].shape) == (value.dtype, value.shape), what
            assert entry[key].stride() == value.stride(), what
            on_device = value.shape != () or key != "step" or index in capturable
            assert entry[key].device.type == (device if on_device else "cpu"), what
            if key == "step":
                assert entry[key].item() == value.item(), what
                continue
            others = [entry[key] for entry in theirs["state"].values() if key in entry]
            largest = max(float(other.abs().max()) for other in others if other.numel())
            error = (entry[key].cpu().double() - value.double()).abs() / (largest or 1.0)
            ulps = float(error.max()) / torch.finfo(dtype).eps if value.numel() else 0.0
            assert ulps <= ULPS_OF.get(key, STATE_ULPS), f"{what}: {ulps} ulps of the largest"
    for group, expected in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert set(group) == set(expected)
        for key in group.keys() - {"foreach", "fused", "capturable"}:
            assert number(group[key]) == number(expected[key]), key


def run_of(configuration, dtype, torch_device):
    return Run(
        configuration.theirs(parameters(dtype), dtype),
        configuration.ours(parameters(dtype, torch_device.device)),
        dtype,
        torch_device.device,
    )


def run_of_case(case, options, torch_device, dtype=torch.float64):
    return Run(
        case.reference(parameters(dtype), **options, foreach=False),
        getattr(fusedopt.torch, case.name)(parameters(dtype, torch_device.device), **options),
        dtype,
        torch_device.device,
    )


def test_the_database_has_every_optimizer_whose_name_is_torchs():
    names = set(fusedopt.torch.__all__) - {"Optimizer", *BASES}  # of these, test_torch_procedures.py
    shared = {name for name in names if hasattr(torch.optim, name)}
    assert {info.name for info in INFOS} == shared != set()


# --- trajectories


@each_configuration(torch.float32, torch.float64, *HALVES)
def test_every_configuration_follows_torch(configuration, dtype, torch_device):
    run = run_of(configuration, dtype, torch_device)
    run.compare()
    run.take(1)
    run.compare()
    run.take(STEPS - 1)
    run.compare()


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1)


def cyclic(optimizer):
    return lr_scheduler.CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=4)


def _schedules():
    """The database's, and those that write momentum or betas as well."""
    for info in [info for info in INFOS if info.name in THOROUGHLY]:
        for i, makers in enumerate([*info.scheduler_inputs, [one_cycle], [cyclic]]):
            yield pytest.param(info, makers, id=f"{info.name}-{i}")


@pytest.mark.parametrize(("info", "makers"), list(_schedules()))
@pytest.mark.parametrize(("lr", "dtype"), [(0.1, torch.float64), (torch.tensor(0.1), torch.float32)], ids=str)
def test_torchs_schedulers_drive_both_alike(info, makers, lr, dtype, torch_device):
    kwargs = {"lr": lr, "momentum": 0.9} if "momentum" in inspect.signature(info.optim_cls).parameters else {"lr": lr}
    run = run_of(Configuration(info, kwargs), dtype, torch_device)
    schedulers = [make(optimizer) for make in makers for optimizer in (run.theirs, run.ours)]
    seen = set()
    for _ in range(STEPS):
        run.take(1)
        for scheduler in schedulers:
            # A loss that does not fall: a plateau.
            scheduler.step(*[1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else [])
        seen.add(float(run.ours.param_groups[0]["lr"]))
        assert isinstance(run.ours.param_groups[0]["lr"], torch.Tensor) == isinstance(lr, torch.Tensor)
    assert len(seen) > 1
    run.compare()


# --- changes in training


def another(value):
    """Another value that a hyperparameter may have wherever it may have the first."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(0.9 * x + 0.1 for x in value)  # nearer to 1, on the same side
    return 0.5 * value if value else 0.5


def tensors_of(optimizer):
    """Parameters and states."""
    params = params_of(optimizer)
    return [*params, *(value for p in params for value in optimizer.state[p].values() if value is not None)]


ALONG = {"nesterov": {"dampening": 0.0}}  # what an option needs to be changed beside it


def _changes():
    for case in TORCHS_OWN:
        for name, field in case.rule.options().items():
            if field.init and name not in case.rule.common_defaults() and name != "initial_accumulator_value":
                yield case.name, f"{case.name}-{name}", (case, name)


@each_of("change", list(_changes()))
def test_every_option_may_change_in_training(change, dtype, torch_device):
    case, name = change
    kept_when = {state.when for state in case.rule.all_states()}
    options = dict(case.main)
    if name in kept_when:  # a flag: torch makes its state at the first step or never
        options[name] = options.get(name, True)
    before = {key: options.get(key, case.rule.options()[key].default) for key in [name, *ALONG.get(name, ())]}
    run, unchanged = (run_of_case(case, options, torch_device, dtype) for _ in range(2))
    for now in ({}, {name: another(before[name]), **ALONG.get(name, {})}, before):
        run.change(**now)
        run.take(3)
        unchanged.take(3)
        run.compare()
    changed, others = (tensors_of(some.theirs) for some in (run, unchanged))
    differs = any(bool((a != b).any()) for a, b in zip(changed, others, strict=True))
    assert differs != (f"{name} counts after the first step" in case.unlike), f"{name} makes a difference: {differs}"


def _flags_with_state():
    """(case, what turns the flag off, what turns it on, the state that goes with it)"""
    for case in TORCHS_OWN:
        if "amsgrad" in case.rule.options():
            yield case, {"amsgrad": False}, {"amsgrad": True}, "max_exp_avg_sq"
        if case.name == "RMSprop":
            yield case, {"momentum": 0.0}, {"momentum": 0.9}, "momentum_buffer"
            yield case, {"centered": False}, {"centered": True}, "grad_avg"


@pytest.mark.parametrize(
    ("case", "off", "on", "key"),
    [pytest.param(*row, id=f"{row[0].name}-{row[3]}") for row in _flags_with_state()],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_flag_turned_on_in_training_has_a_state_that_starts_from_zero(case, off, on, key, steps, torch_device):
    run = run_of_case(case, {**case.main, **off}, torch_device)
    run.take(steps)
    run.change(**on)
    for p in params_of(run.theirs) if steps else ():
        give_gradients(params_of(run.theirs), 0)
        with pytest.raises(KeyError, match=key):
            run.theirs.step()
        run.theirs.state[p][key] = torch.zeros_like(p)
    run.take(5)
    run.compare()
    run.change(**off)
    run.take(2)
    run.change(**on)
    run.take(2)
    run.compare()


def _orders():
    """Momentum in the order in which it is set; torch's RMSprop makes its buffer at the first step or never."""
    for case in [case for case in TORCHS_OWN if "momentum" in case.rule.options()]:
        for order in ((0.9, 0.0, 0.9), (0.0, 0.9, 0.0), (0.9, 0.0, 0.5, 0.0, 0.9)):
            if order[0] or case.name == "SGD":
                yield pytest.param(case, order, id=f"{order}-{case.name}")


@pytest.mark.parametrize(("case", "order"), list(_orders()))
def test_momentum_goes_off_and_on_as_in_torch(case, order, torch_device):
    run = run_of_case(case, {**case.main, "momentum": order[0]}, torch_device)
    for momentum in order:
        run.change(momentum=momentum)
        run.take(3)
        run.compare()


@each_configuration()
def test_parameters_start_and_stop_having_gradients(configuration, dtype, torch_device):
    def present(i, step):
        starts, stops, pauses = step >= 2, step < 4, step % 3 != 1
        return step != 6 and (starts, stops, pauses)[i % 3]

    run = run_of(configuration, dtype, torch_device)
    for _ in range(10):
        run.take(1, present)
        run.compare()


# --- groups


@each_of("info", [(info.name, info.name, info) for info in INFOS], (torch.float32, torch.float64))
def test_each_group_has_its_own_options(info, dtype, torch_device):
    kwargs = [dict(configuration.kwargs) for configuration in _configurations() if configuration.info is info]
    for options in kwargs:
        options.pop("initial_accumulator_value", None)  # torch has one for all groups, whatever they say
    ours = [{"params": parameters(dtype, torch_device.device), **copy.deepcopy(options)} for options in kwargs]
    theirs = [{"params": parameters(dtype), **for_torch(info, copy.deepcopy(options), dtype)} for options in kwargs]
    outer = {"lr": 0.01, "weight_decay": 0.05}  # for the groups without
    outer = {name: value for name, value in outer.items() if name in inspect.signature(info.optim_cls).parameters}
    run = Run(
        info.optim_cls(theirs, **outer, foreach=False),
        getattr(fusedopt.torch, info.name)(ours, **outer),
        dtype,
        torch_device.device,
    )
    run.take(1)
    run.compare()
    run.take(9)
    run.compare()


# --- state dicts


def through_a_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True, map_location="cpu")


@each_configuration(torch.float64, torch.bfloat16)
@pytest.mark.parametrize("kinds", [("torch", "ours", "torch"), ("ours", "torch", "ours")], ids="-".join)
def test_a_run_goes_on_through_the_others_state_dict(configuration, dtype, kinds, torch_device):
    """A third of the run each, and equal to torch's alone all along; the last third in an optimizer used before."""
    whole, before = configuration.theirs(parameters(dtype), dtype), None
    for part, kind in enumerate(kinds):
        device = torch_device.device if kind == "ours" else "cpu"
        values = parameters(dtype, device)
        part_of_run = configuration.ours(values) if kind == "ours" else configuration.theirs(values, dtype)
        if part == 2:
            give_gradients(values, 0)
            part_of_run.step()
        if before is not None:
            with torch.no_grad():
                for p, q in zip(values, params_of(before)):
                    p.copy_(q)
            saved = through_a_file(before.state_dict())
            for group in saved["param_groups"] if kind == "torch" else ():
                group |= {"capturable": False} if "capturable" in group else {}  # which would make the step float32
            part_of_run.load_state_dict(saved)
        if kind == "torch":
            for group in part_of_run.param_groups:
                group.update(for_torch(configuration.info, dict(group), dtype))
        run = Run(whole, part_of_run, dtype, device)
        run.steps = 6 * part
        run.take(6)
        run.compare()
        before = part_of_run


@each_of("info", [(info.name, info.name, info) for info in INFOS])
def test_state_dicts_have_the_keys_that_names_and_schedulers_add(info, dtype, torch_device):
    runs = []
    for kind, device in ((info.optim_cls, "cpu"), (getattr(fusedopt.torch, info.name), torch_device.device)):
        named = [(f"layer.{i}", p) for i, p in enumerate(parameters(dtype, device))]
        optimizer = kind([{"params": named[:2]}, {"params": named[2:], "lr": 0.5, "note": "kept"}], lr=0.1)
        lr_scheduler.StepLR(optimizer, 2)
        runs.append(optimizer)
    run = Run(*runs, dtype, torch_device.device)
    run.compare()
    run.take(2)
    run.compare()
    group = run.ours.state_dict()["param_groups"][1]
    assert group["param_names"] == ["layer.2", "layer.3", "layer.4", "layer.5"]
    assert (group["initial_lr"], group["note"], group["params"]) == (0.5, "kept", [2, 3, 4, 5])


@each_of("info", [(info.name, info.name, info) for info in INFOS])
def test_steps_are_float64_where_that_is_torchs_default(info, dtype, torch_device):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        run = run_of(Configuration(info, {"lr": 0.01}), dtype, torch_device)
        run.take(3)
        run.compare()
    finally:
        torch.set_default_dtype(before)
