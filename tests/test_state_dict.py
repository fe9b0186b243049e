"""State dicts: torch's and MegEngine's structure, exact, copied; and everything checked before anything changes."""

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedopt
from cases import CASES, DTYPES, each_kind
from fusedopt import SGD, Adam, AdamW, Optimizer, Parameter

SHAPES = [(2, 3), (), (0, 4), (17,)]
SETTINGS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    **{case.name: (case.optimizer, dict(case.main)) for case in CASES},
    "SGD without momentum": (SGD, {"lr": 0.1, "weight_decay": 0.01}),
    "SGD with nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam with amsgrad": (Adam, {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.01, "amsgrad": True}),
}
REFERENCES = {case.optimizer: case.reference for case in CASES}
each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS.values(), ids=SETTINGS)
TORCHS_OWN = {name: setting for name, setting in SETTINGS.items() if hasattr(torch.optim, setting[0].__name__)}
each_setting_of_torch = pytest.mark.parametrize(("kind", "options"), TORCHS_OWN.values(), ids=TORCHS_OWN)


def bits(value: Any) -> Any:
    """Something that is equal for equal types, dtypes, shapes and bits, all the way down."""
    if isinstance(value, Mapping):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [bits(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, value.tobytes()
    return type(value).__name__, repr(value)


def contents(optimizer: Optimizer) -> Any:
    """All that a failed call must leave as it was, to the bit."""
    host = [(p.data, p.grad) for p in optimizer.parameters()]
    host = [tuple(None if a is None else np.array(a.get() if hasattr(a, "get") else a) for a in pair) for pair in host]
    members = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    return bits([optimizer.state_dict(), optimizer.defaults, host, members])


def gradients(device: Any, step: int, parameters: list[Parameter]) -> None:
    random = np.random.default_rng(step)
    for parameter in parameters:
        parameter.grad = device.array(random.standard_normal(parameter.shape).astype(parameter.dtype))


def parameters_of(device: Any, dtype: str = "float32") -> list[Parameter]:
    random = np.random.default_rng(0)
    return [Parameter(device.array(random.standard_normal(shape).astype(dtype))) for shape in SHAPES]


def trained(device: Any, kind: type[Optimizer], options: dict[str, Any], dtype: str = "float32", steps: int = 3) -> Any:
    """Two groups after some steps; the last parameter has taken part in the last one alone."""
    parameters = parameters_of(device, dtype)
    optimizer = kind([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.05}], **options)
    for step in range(steps):
        gradients(device, step, parameters if step == steps - 1 else parameters[:-1])
        optimizer.step()
    return parameters, optimizer


# --- structure


def test_the_structure_is_torchs(device):
    _, optimizer = trained(device, Adam, {"amsgrad": True})
    state = optimizer.state_dict()
    theirs = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    reference = torch.optim.Adam([{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.05}], amsgrad=True)
    for parameter in theirs:
        parameter.grad = torch.ones_like(parameter)
    reference.step()
    expected = reference.state_dict()
    assert list(state) == list(expected)
    assert list(state["state"]) == list(expected["state"]) == [0, 1, 2, 3]
    for entry, torchs in zip(state["state"].values(), expected["state"].values(), strict=True):
        assert list(entry) == list(torchs)
        assert all(type(array) is np.ndarray for array in entry.values())
        assert [array.shape for array in entry.values()] == [tuple(tensor.shape) for tensor in torchs.values()]
    implementation = {"foreach", "capturable", "differentiable", "fused"}  # the best one is always chosen
    for group, torchs in zip(state["param_groups"], expected["param_groups"], strict=True):
        assert set(group) == set(torchs) - implementation
        assert list(group)[-1] == "params"
        assert group["params"] == torchs["params"]
    assert [group["lr"] for group in state["param_groups"]] == [0.001, 0.05]


def test_a_parameter_without_a_step_has_no_entry(device):
    first, second = Parameter(device.array(np.zeros(2))), Parameter(device.array(np.zeros(2)))
    optimizer = Adam([first, second])
    assert optimizer.state_dict()["state"] == {}
    second.grad = device.array(np.ones(2))
    optimizer.step()
    assert list(optimizer.state_dict()["state"]) == [1]


def test_sgd_without_momentum_has_no_state(device):
    _, optimizer = trained(device, SGD, {})
    assert optimizer.state_dict()["state"] == {}


MEGENGINE = {
    "param_groups": [{"lr": 0.001, "momentum": 0.9, "weight_decay": 0.0001, "params": [0, 1]}],
    "state": {
        0: {"momentum_buffer": np.zeros(2, np.float32)},
        1: {"momentum_buffer": np.zeros((2, 3), np.float32)},
    },
}


def test_megengines_structure_before_the_first_step(device):
    bias, weight = (Parameter(device.array(np.ones(shape, np.float32))) for shape in [(2,), (2, 3)])
    optimizer = SGD([bias, weight], lr=1e-3, momentum=0.9, weight_decay=1e-4)
    assert optimizer.init_state() is optimizer
    state = optimizer.state_dict()
    assert bits(state["state"]) == bits(MEGENGINE["state"])
    (group,) = state["param_groups"]
    (expected,) = MEGENGINE["param_groups"]
    assert bits({key: group[key] for key in expected}) == bits(expected)
    assert set(group) - set(expected) == {"dampening", "nesterov", "maximize"}


def test_megengines_state_dict_loads(device):
    parameters = [Parameter(device.array(np.ones(shape, np.float32))) for shape in [(2,), (2, 3)]]
    optimizer = SGD(parameters, lr=1, dampening=0.25)
    with pytest.warns(
        UserWarning, match=r"lacks dampening=0.25, nesterov=False, maximize=False; these values are kept"
    ):
        optimizer.load_state_dict(MEGENGINE)
    assert optimizer.param_groups[0]["lr"] == 0.001
    assert optimizer.param_groups[0]["dampening"] == 0.25
    assert bits(optimizer.state_dict()["state"]) == bits(MEGENGINE["state"])
    gradients(device, 1, parameters)
    optimizer.step()  # the buffer is there, so its first gradient is dampened
    expected = 0.75 * (parameters[0].grad + np.float32(1e-4))
    buffer = device.host(optimizer.state[parameters[0]]["momentum_buffer"])
    np.testing.assert_allclose(buffer, device.host(expected), rtol=3e-7)  # three roundings of float32


def test_megengines_adam_loads(device):
    parameter = Parameter(device.array(np.ones(2, np.float32)))
    moments = {"exp_avg": np.full(2, 0.5, np.float32), "exp_avg_sq": np.full(2, 0.25, np.float32)}
    group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    optimizer = Adam(parameter)
    with pytest.warns(UserWarning, match="amsgrad=False"):
        optimizer.load_state_dict({"param_groups": [group], "state": {0: {**moments, "step": np.array(3, np.float32)}}})
    assert bits(optimizer.state_dict()["state"][0]) == bits({"step": np.array(3.0), **moments})


def test_init_state_keeps_what_steps_have_made(device):
    _, optimizer = trained(device, Adam, {})
    before = contents(optimizer)
    optimizer.init_state()
    assert contents(optimizer) == before


def test_init_state_is_for_trainable_parameters_without_a_step(device):
    """The others' buffers start from their first gradient, as in torch; also beside one that shared their history."""
    stepped, parted, frozen, untouched = (Parameter(device.array(np.ones(2, np.float32))) for _ in range(4))
    frozen.requires_grad = False
    optimizer = SGD([stepped, parted, frozen, untouched], lr=0.5, dampening=0.75)
    gradients(device, 0, [stepped, parted])
    optimizer.step().clear_grad()
    parted.requires_grad = False
    optimizer.param_groups[0]["momentum"] = 0.5
    optimizer.init_state()
    assert bits(optimizer.state_dict()["state"]) == bits({3: {"momentum_buffer": np.zeros(2, np.float32)}})
    assert frozen not in optimizer.state
    for parameter in optimizer.parameters():
        parameter.requires_grad = True
        parameter.grad = device.array(np.ones(2, np.float32))
    optimizer.step()
    buffers = [float(optimizer.state[p]["momentum_buffer"][0]) for p in optimizer.parameters()]
    assert buffers == [1, 1, 1, 0.25]


def test_names_are_in_param_names(device):
    optimizer = SGD([("a", Parameter(device.array(np.zeros(1)))), ("b", Parameter(device.array(np.zeros(1))))])
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["a", "b"]


# --- exact


def fresh(device: Any, kind: type[Optimizer], parameters: list[Parameter]) -> Any:
    """New parameters with the same values, in an optimizer with the same groups and other hyperparameters."""
    copies = copy.deepcopy(parameters)
    return copies, kind([{"params": copies[:2]}, {"params": copies[2:]}], lr=7.0)


@each_setting
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_resumed_run_is_the_same_run(device, kind, options, dtype):
    parameters, optimizer = trained(device, kind, options, dtype)
    copies, resumed = fresh(device, kind, parameters)
    resumed.load_state_dict(optimizer.state_dict())
    assert contents(resumed)[1][0] == contents(optimizer)[1][0]
    for step in range(3, 6):
        for some, of in ((parameters, optimizer), (copies, resumed)):
            gradients(device, step, some)
            of.step()
    ours, theirs = ([device.host(p.data) for p in some] for some in (parameters, copies))
    assert bits(ours) == bits(theirs)
    assert bits(resumed.state_dict()) == bits(optimizer.state_dict())


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_survive_the_round_trip(device, dtype):
    parameters, optimizer = trained(device, Adam, {}, dtype)
    tiny = ml_dtypes.finfo(dtype).smallest_subnormal
    special = np.resize(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny, 1.0], dtype), 17)
    optimizer.state[parameters[3]]["exp_avg"][...] = device.array(special)
    _, resumed = fresh(device, Adam, parameters)
    saved = optimizer.state_dict()
    assert bits(saved["state"][3]["exp_avg"]) == bits(special)
    resumed.load_state_dict(saved)
    assert bits(resumed.state_dict()) == bits(saved)


RESUME = """
import sys, numpy as np, fusedopt
path, array, kind = sys.argv[1], np.array, getattr(fusedopt, sys.argv[3])
if sys.argv[2] == "emulated":
    from emulated import array
if sys.argv[2] == "cuda":
    from cupy import array
saved = fusedopt.load(path)
parameters = [fusedopt.Parameter(array(data)) for data in saved["data"]]
optimizer = kind([{"params": parameters[:2]}, {"params": parameters[2:]}])
optimizer.load_state_dict(saved["optimizer"])
for row in saved["gradients"]:
    for parameter, gradient in zip(parameters, row):
        parameter.grad = array(gradient)
    optimizer.step()
host = fusedopt.backends.backend_of(parameters[0].data).host
fusedopt.save(path, {"data": [host(p.data) for p in parameters], "optimizer": optimizer.state_dict()})
"""


@each_kind
def test_a_run_resumed_in_a_new_process_is_the_same_run(device, case, tmp_path):
    kind, options = case.optimizer, case.main
    parameters, optimizer = trained(device, kind, options)
    data, state = [device.host(p.data) for p in parameters], optimizer.state_dict()
    rows = []
    for step in range(3, 6):
        gradients(device, step, parameters)
        rows.append([device.host(p.grad) for p in parameters])
        optimizer.step()
    path = str(tmp_path / "checkpoint")
    fusedopt.save(path, {"data": data, "optimizer": state, "gradients": rows})
    command = [sys.executable, "-W", "error", "-c", RESUME, path, device.name, kind.__name__]
    subprocess.run(command, check=True, cwd=Path(__file__).parent, timeout=100)
    resumed = fusedopt.load(path)
    assert bits(resumed["data"]) == bits([device.host(p.data) for p in parameters])
    assert bits(resumed["optimizer"]) == bits(optimizer.state_dict())


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=6),
    cut=st.integers(0, 6),
    kind=st.sampled_from([SETTINGS["SGD"], SETTINGS["Adam"]]),
)
def test_any_run_can_be_cut_anywhere(device, steps, cut, kind):
    parameters = [Parameter(device.array(np.ones(n, np.float32))) for n in (3, 0, 65)]
    optimizer = kind[0](parameters, **kind[1])
    whole = copy.deepcopy((parameters, optimizer))
    for number, row in enumerate(steps):
        if number == cut:  # go on with a new optimizer
            state = optimizer.state_dict()
            parameters = [Parameter(device.array(device.host(p.data))) for p in parameters]
            optimizer = kind[0](parameters)
            optimizer.load_state_dict(state)
        for some, of in ((parameters, optimizer), whole):
            gradients(device, number, some)
            for parameter, stepping in zip(some, row):
                if not stepping:
                    parameter.grad = None
            of.step()
    assert bits(optimizer.state_dict()) == bits(whole[1].state_dict())
    assert bits([device.host(p.data) for p in parameters]) == bits([device.host(p.data) for p in whole[0]])


def test_a_buffer_that_was_never_used_stays_absent(device):
    first, second = (Parameter(device.array(np.zeros(2))) for _ in range(2))
    optimizer = SGD([first, second], momentum=0.9, dampening=0.5)
    first.grad = device.array(np.ones(2))
    optimizer.step().clear_grad()
    second.grad = device.array(np.ones(2))
    optimizer.step(found_inf=1.0)
    state = optimizer.state_dict()
    assert list(state["state"]) == [0]
    optimizer.load_state_dict(state)
    optimizer.step()  # the first gradient is not dampened
    np.testing.assert_array_equal(device.host(optimizer.state[second]["momentum_buffer"]), np.ones(2))


# --- copies


def test_a_saved_state_does_not_follow_the_optimizer(device):
    parameters, optimizer = trained(device, Adam, {})
    saved = optimizer.state_dict()
    before = bits(saved)
    gradients(device, 9, parameters)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 3.0
    assert bits(saved) == before


def mutate(state: dict[str, Any]) -> None:
    for entry in state["state"].values():
        for array in entry.values():
            array[...] = 77
    for group in state["param_groups"]:
        group["lr"] = 77
        group["params"].append(77)
        group["param_names"].append("x")


def test_an_optimizer_does_not_follow_its_saved_state(device):
    pairs = [(str(number), parameter) for number, parameter in enumerate(parameters_of(device))]
    optimizer = Adam(pairs)
    gradients(device, 0, [parameter for _, parameter in pairs])
    optimizer.step()
    before = contents(optimizer)
    mutate(optimizer.state_dict())
    assert contents(optimizer) == before


def test_an_optimizer_does_not_follow_the_state_it_loaded(device):
    pairs = [(str(number), parameter) for number, parameter in enumerate(parameters_of(device))]
    optimizer = Adam(pairs)
    gradients(device, 0, [parameter for _, parameter in pairs])
    optimizer.step()
    loaded = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(loaded)
    before = contents(optimizer)
    mutate(loaded)
    assert contents(optimizer) == before


def test_one_state_dict_serves_two_optimizers(device):
    parameters, optimizer = trained(device, Adam, {})
    saved = optimizer.state_dict()
    pairs = [fresh(device, Adam, parameters) for _ in range(2)]
    for _, of in pairs:
        of.load_state_dict(saved)
    before = contents(pairs[0][1])
    gradients(device, 9, pairs[1][0])
    pairs[1][1].step()
    assert contents(pairs[0][1]) == before


def test_loading_fills_the_buffers_that_are_there(device):
    parameters, optimizer = trained(device, Adam, {})
    views = optimizer.state[parameters[3]]
    saved = optimizer.state_dict()
    saved["state"][3]["exp_avg"][...] = 5
    saved["state"][3]["step"][...] = 9
    optimizer.load_state_dict(saved)  # a captured graph or a table that points there sees the loaded values
    assert float(views["step"]) == 9
    np.testing.assert_array_equal(device.host(views["exp_avg"]), np.full(17, 5, np.float32))


# --- torch


def to_numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, dict):
        return {key: to_numpy(item) for key, item in value.items()}
    return [to_numpy(item) for item in value] if isinstance(value, list) else value


def to_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: to_torch(item) for key, item in value.items()}
    return [to_torch(item) for item in value] if isinstance(value, list) else value


def torch_step(
    reference: torch.optim.Optimizer, theirs: list[torch.Tensor], parameters: list[Parameter], device: Any
) -> None:
    for tensor, parameter in zip(theirs, parameters, strict=True):
        tensor.grad = torch.from_numpy(device.host(parameter.grad))
    reference.step()


def assert_close_to_torch(device: Any, parameters: list[Parameter], theirs: list[torch.Tensor]) -> None:
    for parameter, tensor in zip(parameters, theirs, strict=True):
        # A step's dozen roundings, over ten steps: some 1e-14; 1e-12 leaves room for cancellation.
        np.testing.assert_allclose(device.host(parameter.data), tensor.numpy(), rtol=1e-12, atol=1e-12)


def torch_groups(kind: type[Optimizer], options: dict[str, Any], parameters: list[Parameter], device: Any) -> Any:
    theirs = [torch.from_numpy(device.host(p.data)) for p in parameters]
    groups = [{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.05}]
    return theirs, REFERENCES[kind](groups, **options)


@pytest.fixture
def _torch_in_float64():
    """Where that is its default, torch keeps numbers as NAdam's mu_product in float64; else in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@each_setting_of_torch
@pytest.mark.usefixtures("_torch_in_float64")
def test_torchs_state_dict_continues_here(device, kind, options):
    parameters = parameters_of(device, "float64")
    theirs, reference = torch_groups(kind, options, parameters, device)
    for step in range(5):
        gradients(device, step, parameters)
        torch_step(reference, theirs, parameters, device)
    optimizer = kind([{"params": parameters[:2]}, {"params": parameters[2:]}])
    for parameter, tensor in zip(parameters, theirs, strict=True):
        parameter.data[...] = device.array(tensor.numpy())
    optimizer.load_state_dict(to_numpy(reference.state_dict()))
    for step in range(5, 10):
        gradients(device, step, parameters)
        torch_step(reference, theirs, parameters, device)
        optimizer.step()
    assert_close_to_torch(device, parameters, theirs)


@each_setting_of_torch
@pytest.mark.usefixtures("_torch_in_float64")
def test_our_state_dict_continues_in_torch(device, kind, options):
    parameters, optimizer = trained(device, kind, options, "float64")
    theirs, reference = torch_groups(kind, {}, parameters, device)
    reference.load_state_dict(to_torch(optimizer.state_dict()))
    for step in range(5, 10):
        gradients(device, step, parameters)
        torch_step(reference, theirs, parameters, device)
        optimizer.step()
    assert_close_to_torch(device, parameters, theirs)


def test_torchs_keys_are_kept_and_written_back(device):
    parameters = parameters_of(device, "float64")
    _, reference = torch_groups(Adam, {"foreach": True}, parameters, device)
    torch.optim.lr_scheduler.StepLR(reference, 10)
    optimizer = Adam([{"params": parameters[:2]}, {"params": parameters[2:]}])
    optimizer.load_state_dict(reference.state_dict())
    for saved, torchs in zip(
        optimizer.state_dict()["param_groups"], reference.state_dict()["param_groups"], strict=True
    ):
        assert {key: saved[key] for key in torchs} == torchs
        assert saved["foreach"] is True
        assert list(saved)[-1] == "params"


def test_adamw_stays_decoupled(device):
    _, adam = trained(device, Adam, {"weight_decay": 0.5})
    parameters = parameters_of(device)
    optimizer = AdamW([{"params": parameters[:2]}, {"params": parameters[2:]}])
    optimizer.load_state_dict(adam.state_dict())
    assert all(group["decoupled_weight_decay"] is True for group in optimizer.param_groups)
    assert all(group["weight_decay"] == 0.5 for group in optimizer.param_groups)


def test_a_buffer_saved_as_none_is_absent(device):
    parameter = Parameter(device.array(np.zeros(2, np.float32)))
    optimizer = SGD(parameter, momentum=0.9)
    state = optimizer.state_dict()
    optimizer.load_state_dict({**state, "state": {0: {"momentum_buffer": None}}})  # torch before 2.0
    assert optimizer.state_dict()["state"] == {}


# --- lenient


STEPS = {
    "int": 7,
    "float": 7.0,
    "NumPy int": np.int64(7),
    "0-d float32": np.array(7, np.float32),
    "0-d float64": np.array(7.0),
    "0-d int": np.array(7),
    "one element": np.array([7.0], np.float32),
    "tensor": torch.tensor(7.0),
    "integer tensor": torch.tensor([7]),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_step_is_any_one_whole_number(device, step):
    _, optimizer = trained(device, Adam, {})
    state = optimizer.state_dict()
    state["state"][1]["step"] = step
    optimizer.load_state_dict(state)
    assert bits(optimizer.state_dict()["state"][1]["step"]) == bits(np.array(7.0))


def test_a_step_that_is_saved_once_for_a_group_is_that_of_its_parameters(device):
    """As apex and TransformerEngine have it: beside the options, and not at all before the first step."""
    _, optimizer = trained(device, Adam, {})
    expected = optimizer.state_dict()
    for entry in expected["state"].values():
        entry["step"] = np.array(7.0)
    saved = copy.deepcopy(expected)
    for entry in saved["state"].values():
        del entry["step"]
    del saved["state"][3]
    saved["param_groups"][0] |= {"step": 7, "bias_correction": True}
    saved["param_groups"][1] |= {"step": np.array([7], np.int32)}
    del expected["state"][3]
    optimizer.load_state_dict(saved)
    assert bits(optimizer.state_dict()) == bits(expected)
    for wrong in (-1, 0.5, "7"):
        with pytest.raises((TypeError, ValueError), match=r"step must be a .*number"):
            optimizer.load_state_dict({**saved, "param_groups": [{**g, "step": wrong} for g in saved["param_groups"]]})
    assert bits(optimizer.state_dict()) == bits(expected)


def test_steps_are_counted_beyond_what_float32_can(device):
    """torch's counter stops at 2**24, since 2**24 + 1 is no float32; and in bfloat16 at 256."""
    for start in (2.0**8, 2.0**24, 2.0**40):
        _, optimizer = trained(device, Adam, {})
        state = optimizer.state_dict()
        for entry in state["state"].values():
            entry["step"] = np.array(start)
        optimizer.load_state_dict(state)
        gradients(device, 9, list(optimizer.parameters()))
        optimizer.step().step().step()
        again = copy.deepcopy(optimizer)
        again.load_state_dict(optimizer.state_dict())
        assert {float(entry["step"]) for entry in again.state_dict()["state"].values()} == {start + 3}


def test_a_group_without_parameters_is_saved_and_loaded_as_it_is(device):
    def optimizer(**options):
        return Adam([{"params": []}, {"params": parameters_of(device)}, {"params": [], **options}], lr=0.5)

    source, other = optimizer(lr=0.25, betas=(0.5, 0.75)), optimizer()
    gradients(device, 1, source.param_groups[1]["params"])
    source.step()
    other.load_state_dict(source.state_dict())
    assert bits(other.state_dict()) == bits(source.state_dict())
    assert (other.param_groups[2]["lr"], other.param_groups[2]["betas"]) == (0.25, (0.5, 0.75))


def test_ids_are_labels_and_order_is_what_counts(device):
    _, optimizer = trained(device, Adam, {})
    state = optimizer.state_dict()
    before = bits(state)
    names = ["w", 40, 3, 0]
    renamed = {
        "state": {names[number]: entry for number, entry in state["state"].items()},
        "param_groups": [{**g, "params": [names[number] for number in g["params"]]} for g in state["param_groups"]],
    }
    optimizer.load_state_dict(renamed)
    assert bits(optimizer.state_dict()) == before


def test_state_of_no_parameter_is_left_out_with_a_warning(device):
    _, optimizer = trained(device, Adam, {})
    state = optimizer.state_dict()
    before = bits(state)
    with pytest.warns(UserWarning, match=r"state of \['99'\] belongs to no param group"):
        optimizer.load_state_dict({**state, "state": {**state["state"], 99: state["state"][0]}})
    assert bits(optimizer.state_dict()) == before


def test_a_missing_hyperparameter_is_kept_with_a_warning(device):
    _, optimizer = trained(device, Adam, {"eps": 1e-3})
    state = optimizer.state_dict()
    before = bits(state)
    del state["param_groups"][1]["eps"]
    with pytest.warns(UserWarning, match=r"param group 1 of the state dict lacks eps=0.001; these values are kept"):
        optimizer.load_state_dict(state)
    assert bits(optimizer.state_dict()) == before


def test_a_state_dict_without_warnings_loads_without_warnings(device):
    _, optimizer = trained(device, Adam, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(optimizer.state_dict())


def test_a_flags_state_that_is_not_there_starts_from_zeros(device):
    parameters, optimizer = trained(device, Adam, {})
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["amsgrad"] = True  # after these steps: torch has a KeyError at the next
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may say so
        optimizer.load_state_dict(state)
    gradients(device, 9, parameters)
    optimizer.step()
    for entry in optimizer.state_dict()["state"].values():
        assert bits(entry["max_exp_avg_sq"]) == bits(entry["exp_avg_sq"])


# --- refused, with nothing changed


def set_in(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = to

    return change


def delete(*path: Any) -> Callable[[Any], None]:
    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


# Each is wrong in the last group or parameter: what came before it must be as it was.
WRONG: dict[str, tuple[Callable[[Any], None], type[Exception], str]] = {
    "no groups": (delete("param_groups"), ValueError, "keys 'state' and 'param_groups'"),
    "no state": (delete("state"), ValueError, "keys 'state' and 'param_groups'"),
    "state is a list": (set_in("state", to=[]), (TypeError, ValueError), "state.*list"),
    "group count": (delete("param_groups", 1), ValueError, "has 1 param groups and the optimizer 2; build it"),
    "group is a list": (set_in("param_groups", 1, to=[2, 3]), (TypeError, ValueError), "param group 1.*list"),
    "group without params": (delete("param_groups", 1, "params"), (KeyError, ValueError), "param group 1.*'params'"),
    "too few parameters": (set_in("param_groups", 1, "params", to=[2]), ValueError, "has 1 parameters .* has 2; they"),
    "too many parameters": (set_in("param_groups", 1, "params", to=[2, 3, 4]), ValueError, "has 3 parameters"),
    "shape": (set_in("state", 3, "exp_avg", to=np.zeros(18, np.float32)), ValueError, r"exp_avg has shape \(18,\).*17"),
    "transposed": (set_in("state", 0, "exp_avg", to=np.zeros((3, 2), np.float32)), ValueError, r"\(3, 2\) .*\(2, 3\)"),
    "shape that broadcasts": (set_in("state", 3, "exp_avg", to=np.zeros((), np.float32)), ValueError, r"shape \(\)"),
    "dtype": (set_in("state", 3, "exp_avg", to=np.zeros(17)), TypeError, "float64 and .* float32; .*: convert it: "),
    "not an array": (set_in("state", 3, "exp_avg", to=[0.0] * 17), TypeError, "must be a NumPy array, got list"),
    "tensor": (set_in("state", 3, "exp_avg", to=torch.zeros(17)), TypeError, r"got Tensor; .*tensor\.numpy\(\)"),
    "missing state": (delete("state", 3, "exp_avg_sq"), KeyError, "lacks 'exp_avg_sq'; it has 'step', 'exp_avg'"),
    "missing step": (delete("state", 3, "step"), KeyError, "lacks 'step'"),
    "unknown state": (set_in("state", 3, "momentum", to=np.zeros(17)), ValueError, "has 'momentum'; Adam keeps step"),
    "entry is an array": (set_in("state", 3, to=np.zeros(3)), (TypeError, ValueError), "state of parameter.*ndarray"),
    "negative step": (set_in("state", 3, "step", to=-1), ValueError, "step must be a whole number from 0, got -1"),
    "fractional step": (set_in("state", 3, "step", to=np.array(0.5)), ValueError, "whole number"),
    "infinite step": (set_in("state", 3, "step", to=np.inf), ValueError, "whole number"),
    "step is NaN": (set_in("state", 3, "step", to=np.nan), ValueError, "whole number"),
    "step beyond float64": (set_in("state", 3, "step", to=2**53 + 1), ValueError, "whole number"),
    "two steps": (set_in("state", 3, "step", to=np.ones(2)), ValueError, r"must be one number, got an array of shape"),
    "step is text": (set_in("state", 3, "step", to="3"), TypeError, "must be a number, got '3'"),
    "negative lr": (set_in("param_groups", 1, "lr", to=-1), ValueError, r"param group 1 .*lr must be in \[0, inf\)"),
    "lr is NaN": (set_in("param_groups", 1, "lr", to=np.nan), ValueError, r"lr must be in \[0, inf\), got nan"),
    "lr is text": (set_in("param_groups", 1, "lr", to="fast"), TypeError, "param group 1 .*lr must be a number"),
    "betas": (set_in("param_groups", 1, "betas", to=(0.9, 1.0)), ValueError, r"betas\[1\] must be in \[0, 1\), got 1"),
    "flag": (set_in("param_groups", 1, "amsgrad", to=1), TypeError, "amsgrad is a flag"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_state_dict_changes_nothing(device, change, error, message):
    parameters, optimizer = trained(device, Adam, {})
    other = optimizer.state_dict()
    gradients(device, 8, parameters)
    optimizer.step()
    before = contents(optimizer)
    other["param_groups"][0]["lr"] = 0.5
    change(other)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(other)
    assert contents(optimizer) == before
    twins, twin = copy.deepcopy((parameters, optimizer))  # and the next step is what it would have been
    for some, of in ((parameters, optimizer), (twins, twin)):
        gradients(device, 9, some)
        of.step()
    assert bits(twin.state_dict()) == bits(optimizer.state_dict())


@pytest.mark.parametrize("state", [None, [], "state", {}], ids=repr)
def test_what_is_no_state_dict_is_refused(device, state):
    _, optimizer = trained(device, Adam, {})
    before = contents(optimizer)
    with pytest.raises(ValueError, match="give what state_dict"):
        optimizer.load_state_dict(state)
    assert contents(optimizer) == before


def test_another_optimizers_state_is_refused(device):
    _, adam = trained(device, Adam, {})
    _, sgd = trained(device, SGD, {"momentum": 0.9})
    before = contents(sgd)
    lacks = pytest.warns(UserWarning, match="lacks momentum=0.9")
    with lacks, pytest.raises(ValueError, match="has 'exp_avg'; SGD keeps momentum_buffer"):
        sgd.load_state_dict(adam.state_dict())
    assert contents(sgd) == before
