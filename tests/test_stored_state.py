"""State of low-precision storages: resumed to the bit, told apart, converted where asked; masters that are reloaded."""

import copy
import itertools
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fusedopt
from cases import CASES
from devices import DEVICES
from fusedopt import SGD, Adam, Optimizer, Parameter, spare
from fusedopt.rules import Rule, Values, hyperparameter
from fusedopt.schedules import Linear
from fusedopt.storage import BLOCK, SMALL
from storages import uncentered
from test_state_dict import bits, contents

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = ((SMALL + 5,), (2, 3), (), (0, 4))
STORAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "split": {"master_weights": "split"},
    "float32 master": {"master_weights": "float32", "state_dtype": "float32"},
    "split24": {"master_weights": "split24"},
    "kahan": {"kahan": True},
    "stochastic": {"stochastic_rounding": True, "seed": 5},
    "int8": {"state_dtype": "int8"},
    "split24, stochastic, int8": {"master_weights": "split24", "stochastic_rounding": True, "state_dtype": "int8"},
}
each_storage = pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)
on_the_devices = pytest.mark.parametrize("device", DEVICES, indirect=True)


def parameters_of(device: Any, dtype: Any = BFLOAT16, grad_dtype: Any = None) -> list[Parameter]:
    random = np.random.default_rng(0)
    arrays = [device.array(random.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    return [Parameter(array, grad_dtype=grad_dtype) for array in arrays]


def give_gradients(device: Any, step: int, parameters: list[Parameter], leave_out: int | None = None) -> None:
    random = np.random.default_rng([step])
    for number, parameter in enumerate(parameters):
        values = random.standard_normal(parameter.shape).astype(parameter.grad_dtype)
        parameter.grad = None if number == leave_out else device.array(values)


def train(device: Any, parameters: list[Parameter], optimizer: Optimizer, steps: range) -> None:
    """Some steps: the second parameter has no gradient in every third, the third is frozen in every fourth."""
    for step in steps:
        give_gradients(device, step, parameters, leave_out=1 if step % 3 == 1 else None)
        parameters[2].requires_grad = step % 4 != 2
        optimizer.step()


def values_of(device: Any, parameters: list[Parameter]) -> Any:
    return bits([device.host(parameter.data) for parameter in parameters])


def takes(case: Any, storage: Any) -> bool:
    """Whether the rule's states can be kept so."""
    if storage.get("state_dtype") != "int8":
        return True
    return all(state.codes for state in case.rule(**uncentered(case.main)).states())


def resumed_from(device: Any, kind: Any, options: Any, parameters: list[Parameter], state: Any) -> Any:
    """New parameters of the same values, in a new optimizer with the state."""
    copies = [Parameter(device.array(device.host(p.data)), grad_dtype=p.grad_dtype) for p in parameters]
    optimizer = kind([{"params": copies[:2]}, {"params": copies[2:]}], **options)
    optimizer.load_state_dict(state)
    return copies, optimizer


# --- resumed to the bit ----------------------------------------------------------------------------------------------


def each_case_where() -> list[Any]:
    """Every rule on NumPy, two on the others: the bits of all are compared with NumPy's in other tests."""
    few = [pytest.param("emulated", case, id=f"emulated-{case.name}") for case in CASES if case.name in ("SGD", "Adam")]
    cuda = [pytest.param("cuda", case, id=f"cuda-{case.name}", marks=pytest.mark.gpu) for case in CASES]
    return [*(pytest.param("numpy", case, id=f"numpy-{case.name}") for case in CASES), *few, *cuda]


@each_storage
@pytest.mark.parametrize(("device", "case"), each_case_where(), indirect=["device"])
def test_a_resumed_run_is_the_same_run_with_every_storage(device, case, storage):
    if not takes(case, storage):
        with pytest.raises(ValueError, match=f"^{case.name}: int8 is too coarse for the state"):
            case.optimizer([Parameter(np.ones(2, BFLOAT16))], **case.main, **storage)
        return
    main = uncentered(case.main) if storage.get("state_dtype") == "int8" else case.main
    options = {**main, **storage, "lr": Linear(1.0, 0.1, 8)}
    parameters = parameters_of(device)
    optimizer = case.optimizer([{"params": parameters[:2]}, {"params": parameters[2:]}], **options)
    train(device, parameters, optimizer, range(3))
    copies, resumed = resumed_from(device, case.optimizer, options, parameters, optimizer.state_dict())
    assert bits(resumed.state_dict()) == bits(optimizer.state_dict())
    for some, of in ((parameters, optimizer), (copies, resumed)):
        train(device, some, of, range(3, 6))
    assert values_of(device, copies) == values_of(device, parameters)
    assert bits(resumed.state_dict()) == bits(optimizer.state_dict())


RESUME = """
import sys, numpy as np, fusedopt
path, kind = sys.argv[1], getattr(fusedopt, sys.argv[2])
saved = fusedopt.load(path)
parameters = [fusedopt.Parameter(data) for data in saved["data"]]
optimizer = kind([{"params": parameters[:2]}, {"params": parameters[2:]}], **saved["options"])
optimizer.load_state_dict(saved["optimizer"])
for row in saved["gradients"]:
    for parameter, gradient in zip(parameters, row):
        parameter.grad = gradient
    optimizer.step()
fusedopt.save(path, {"data": [p.data for p in parameters], "optimizer": optimizer.state_dict()})
"""


@pytest.mark.parametrize("device", ["numpy"], indirect=True)
@pytest.mark.parametrize("name", ["split24, stochastic, int8", "split"])
def test_a_run_resumed_in_a_new_process_is_the_same_run(device, name, tmp_path):
    options = {"lr": 0.1, **STORAGES[name]}
    parameters = parameters_of(device)
    optimizer = Adam([{"params": parameters[:2]}, {"params": parameters[2:]}], **options)
    train(device, parameters, optimizer, range(2))
    data, state, rows = [p.data.copy() for p in parameters], optimizer.state_dict(), []
    for step in range(2, 5):
        give_gradients(device, step, parameters)
        rows.append([p.grad.copy() for p in parameters])
        optimizer.step()
    path = str(tmp_path / "checkpoint")
    fusedopt.save(path, {"data": data, "optimizer": state, "gradients": rows, "options": options})
    command = [sys.executable, "-W", "error", "-c", RESUME, path, "Adam"]
    subprocess.run(command, check=True, cwd=Path(__file__).parent, timeout=100)
    resumed = fusedopt.load(path)
    assert bits(resumed["data"]) == bits([p.data for p in parameters])
    assert bits(resumed["optimizer"]) == bits(optimizer.state_dict())


@on_the_devices
@each_storage
def test_copies_and_pickles_go_on_as_the_optimizer_does(device, storage):
    parameters = parameters_of(device, grad_dtype="float32")
    optimizer = SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5, **storage)
    train(device, parameters, optimizer, range(2))
    some = [(parameters, optimizer), copy.deepcopy((parameters, optimizer))]
    if device.name == "numpy":
        some.append(pickle.loads(pickle.dumps((parameters, optimizer))))
    for of in some:
        train(device, *of, range(2, 5))
    for others, other in some[1:]:
        assert values_of(device, others) == values_of(device, parameters)
        assert bits(other.state_dict()) == bits(optimizer.state_dict())


@each_storage
def test_what_keeps_parameters_finer_is_saved_without_any_state(device, storage):
    parameters = parameters_of(device)
    optimizer = SGD([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=0.1, **storage)  # without momentum
    train(device, parameters, optimizer, range(2))
    copies, resumed = resumed_from(device, SGD, {"lr": 0.1, **storage}, parameters, optimizer.state_dict())
    copied = copy.deepcopy(optimizer)
    for some, of in ((parameters, optimizer), (copies, resumed), (list(copied.parameters()), copied)):
        for group in of.param_groups:
            group.update(momentum=0.9, dampening=0.5)
        train(device, some, of, range(2, 4))
    assert values_of(device, copies) == values_of(device, list(copied.parameters())) == values_of(device, parameters)
    assert bits(resumed.state_dict()["state"]) == bits(optimizer.state_dict()["state"])
    assert bits(copied.state_dict()["state"]) == bits(optimizer.state_dict()["state"])


def test_a_state_that_a_flag_turns_on_later_is_kept_as_if_it_had_been_on(device):
    later, before = (parameters_of(device, np.float32) for _ in range(2))
    optimizer = SGD(later, lr=0.1, state_dtype="int8")
    train(device, later, optimizer, range(1))
    optimizer.param_groups[0]["momentum"] = 0.9
    train(device, later, optimizer, range(2, 3))
    other = SGD(before, lr=0.1, momentum=0.9, state_dtype="int8").init_state()
    kept, like = (of.state_dict()["state"] for of in (optimizer, other))
    assert [array.dtype for array in kept[1].values()] == [array.dtype for array in like[1].values()]
    saved = optimizer.state_dict()
    assert "seed" in saved["param_groups"][0]
    assert bits(copy.deepcopy(optimizer).state_dict()) == bits(saved)


def test_a_group_that_is_added_draws_what_it_would_have_drawn_from_the_start(device):
    """Noise is drawn for a parameter's number over all groups, whenever its group came."""
    some = [parameters_of(device)[:2] for _ in range(2)]
    together = SGD(some[0], lr=0.1, stochastic_rounding=True)
    added = SGD(some[1][:1], lr=0.1, stochastic_rounding=True)
    added.add_param_group({"params": some[1][1:]})
    for parameters, optimizer in zip(some, (together, added)):
        give_gradients(device, 0, parameters)
        optimizer.step()
    assert values_of(device, some[0]) == values_of(device, some[1])


# --- what is saved ---------------------------------------------------------------------------------------------------


def test_state_dicts_hold_what_is_stored(device):
    parameters = parameters_of(device)
    optimizer = Adam(parameters, master_weights="split24", state_dtype={"exp_avg": "int8", "exp_avg_sq": "float16"})
    train(device, parameters, optimizer, range(2))
    large, small = (optimizer.state_dict()["state"][number] for number in (0, 3))
    assert {key: (array.dtype.name, array.shape) for key, array in large.items()} == {
        "step": ("float64", ()),
        "exp_avg": ("uint8", (SMALL + 5,)),
        "exp_avg_scale": ("float32", (33,)),
        "exp_avg_sq": ("float16", (SMALL + 5,)),
        "remainder": ("int8", (SMALL + 5,)),
    }
    assert {key: array.dtype.name for key, array in small.items()} == {
        "step": "float64",
        "exp_avg": "float32",  # of few elements, states are not in 8 bits
        "exp_avg_sq": "float16",
        "remainder": "int8",
    }
    assert list(optimizer.state[parameters[0]]) == list(large)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_no_number_shows_in_its_block_and_in_no_other(device, bad):
    p = Parameter(device.array(np.ones(SMALL, BFLOAT16)), grad_dtype="float32")
    optimizer = Adam([p], master_weights="split", state_dtype="int8")
    gradient = np.ones(SMALL, np.float32)
    for value in (bad, 1.0):
        gradient[BLOCK + 5] = value
        p.grad = device.array(gradient)
        with np.errstate(all="ignore"):
            state = optimizer.step().state_dict()["state"][0]
    for name in ("exp_avg_scale", "exp_avg_sq_scale"):
        assert np.flatnonzero(np.isnan(device.host(state[name]))).tolist() == [1]
    lost = np.isnan(device.host(p.data).astype(np.float32))
    assert np.flatnonzero(lost).tolist() == list(range(BLOCK, 2 * BLOCK))


@pytest.mark.parametrize(("options", "shown"), [({"state_dtype": "int8"}, True), ({"kahan": True}, False)])
def test_the_seed_is_saved_where_it_is_drawn_from(options, shown):
    optimizer = SGD([Parameter(np.ones(2, BFLOAT16))], momentum=0.9, **options)
    assert ("seed" in optimizer.state_dict()["param_groups"][0]) is shown
    other = SGD([Parameter(np.ones(2, BFLOAT16))], momentum=0.9, seed=7, **options)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["seed"] == (0 if shown else 7)


def test_sgd_counts_its_steps_where_it_draws_and_its_buffer_starts_from_the_gradient(device):
    p = Parameter(device.array(np.ones(2, BFLOAT16)))
    optimizer = SGD([p], lr=0.0, momentum=0.5, dampening=0.5, stochastic_rounding=True)
    p.grad = device.array(np.ones(2, BFLOAT16))
    optimizer.step()
    saved = optimizer.state_dict()["state"][0]
    assert float(saved["step"]) == 1
    assert device.host(saved["momentum_buffer"]).tolist() == [1, 1]
    again = SGD(
        [Parameter(device.array(np.ones(2, BFLOAT16)))], lr=0.0, momentum=0.5, dampening=0.5, state_dtype="int8"
    )
    again.init_state()  # zeros, which the first gradient is added to as any other
    (p,) = again.parameters()
    p.grad = device.array(np.ones(2, BFLOAT16))
    again.step()
    assert device.host(again.state[p]["momentum_buffer"]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("storage", [{}, {"stochastic_rounding": True}])
def test_a_buffer_that_is_turned_on_later_starts_from_the_gradient(device, storage):
    p = Parameter(device.array(np.ones(2, BFLOAT16)))
    optimizer = SGD([p], lr=0.0, dampening=0.5, **storage)
    for _ in range(3):
        p.grad = device.array(np.ones(2, BFLOAT16))
        optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.5
    assert device.host(optimizer.step().state[p]["momentum_buffer"]).tolist() == [1, 1]
    resumed = SGD([Parameter(device.array(device.host(p.data)))], lr=0.0, momentum=0.5, dampening=0.5, **storage)
    resumed.load_state_dict(optimizer.state_dict())
    (p,) = resumed.parameters()
    p.grad = device.array(np.ones(2, BFLOAT16))
    assert device.host(resumed.step().state[p]["momentum_buffer"]).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [(fusedopt.Adagrad, "sum", {"initial_accumulator_value": 0.3}), (fusedopt.Rprop, "step_size", {"lr": 0.3})],
)
def test_what_states_start_from_is_kept_in_8_bits(device, kind, key, value):
    p = Parameter(device.array(np.ones(SMALL, np.float32)))
    optimizer = kind([p], **value, state_dtype="int8").init_state()
    state = optimizer.state[p]
    codes, scales = (device.host(state[name]) for name in (key, f"{key}_scale"))
    assert len(set(codes.tolist())) == len(set(scales.tolist())) == 1
    plain = kind([Parameter(np.ones(SMALL, np.float32))], **value)
    state_dict = optimizer.state_dict()
    plain.load_state_dict(state_dict, convert=True)
    (found,) = {float(x) for x in plain.state_dict()["state"][0][key]}
    assert abs(found - 0.3) <= 0.3 * 2**-4  # half a unit of 3 bits after the point, at the most


@dataclass(frozen=True)
class Level(Rule):
    """A state that is the same number everywhere, made of no element."""

    lr: float = hyperparameter(0.5, "[0, inf)", "learning rate")
    state = ("level",)

    def scalars(self, step, a):
        return Values(lr=self.lr)

    def update(self, p, g, s, c):
        return p - c.lr * g * s.level, Values(level=c.lr)


class OfALevel(Optimizer, rule=Level):
    pass


@pytest.mark.parametrize("state_dtype", ["int8", "bfloat16"])
def test_a_state_that_is_one_number_is_kept_as_any_other(device, state_dtype):
    p = Parameter(device.array(np.ones(SMALL, BFLOAT16)))
    optimizer = OfALevel([p], state_dtype=state_dtype, stochastic_rounding=True)
    p.grad = device.array(np.ones(SMALL, BFLOAT16))
    state = optimizer.step().state_dict()
    float32 = OfALevel([Parameter(np.ones(SMALL, BFLOAT16))], state_dtype="float32")
    float32.load_state_dict(state, convert=True)
    assert set(float32.state_dict()["state"][0]["level"].tolist()) == {0.5}


def test_zero_sized_parameters_alone_have_every_storage(device):
    for options in STORAGES.values():
        p = Parameter(device.array(np.zeros((0, 3), BFLOAT16)))
        optimizer = Adam([p], **options).init_state()
        p.grad = device.array(np.zeros((0, 3), BFLOAT16))
        state = optimizer.step().state_dict()
        assert float(state["state"][0]["step"]) == 1
        optimizer.load_state_dict(state)


# --- another storage's -----------------------------------------------------------------------------------------------


def saved_with(options: dict[str, Any], dtype: Any = BFLOAT16) -> tuple[list[Any], dict[str, Any]]:
    """The parameters' values and the state of Adam after some steps on NumPy."""
    random = np.random.default_rng(0)
    parameters = [Parameter(random.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    optimizer = Adam(parameters, lr=0.01, **options)
    for step in range(3):
        for parameter in parameters:
            parameter.grad = np.random.default_rng(step).standard_normal(parameter.shape).astype(dtype)
        optimizer.step()
    return [parameter.data.copy() for parameter in parameters], optimizer.state_dict()


def unlike_pairs() -> list[Any]:
    names = ("plain", "split", "float32 master", "split24", "kahan", "stochastic", "int8")
    return [
        pytest.param(STORAGES[saved], STORAGES[ours], id=f"{saved} into {ours}")
        for saved, ours in itertools.permutations(names, 2)
        if not (saved == "plain" and ours in ("split", "split24", "kahan", "stochastic"))  # only begins what is missing
    ]


@pytest.mark.parametrize(("saved", "ours"), unlike_pairs())
def test_a_state_dict_of_another_storage_says_what_to_choose(saved, ours):
    data, state = saved_with(saved)
    optimizer = Adam([Parameter(array) for array in data], **ours)
    before = contents(optimizer)
    with pytest.raises(
        (TypeError, ValueError), match=r"load_state_dict\(.*convert=True\), or build (it|the optimizer) with"
    ):
        optimizer.load_state_dict(state)
    assert contents(optimizer) == before


@pytest.mark.parametrize("ours", ["split", "split24", "kahan", "float32 master"])
def test_what_a_plain_state_dict_lacks_starts_from_the_parameters(ours, device):
    data, state = saved_with({"state_dtype": STORAGES[ours].get("state_dtype")})
    parameters = [Parameter(device.array(array)) for array in data]
    optimizer = Adam(parameters, **STORAGES[ours])
    give_gradients(device, 9, parameters)
    optimizer.step()  # there is something to be forgotten
    for parameter, array in zip(parameters, data):
        parameter.data[...] = device.array(array)
    optimizer.load_state_dict(state)
    key = {"kahan": "compensation", "float32 master": "master_param"}.get(ours, "remainder")
    for number, array in enumerate(data):
        found = optimizer.state_dict()["state"][number][key]
        expected = array.astype(np.float32) if key == "master_param" else np.zeros_like(array)
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


def test_converting_what_is_kept_alike_changes_no_bit():
    for options in STORAGES.values():
        data, state = saved_with(options)
        optimizer = Adam([Parameter(array) for array in data], **options)
        optimizer.load_state_dict(state, convert=True)
        assert bits(optimizer.state_dict()) == bits(state)
        assert bits([p.data for p in optimizer.parameters()]) == bits(data)


def test_a_master_that_is_converted_is_what_its_parameter_becomes_the_rounding_of():
    data, state = saved_with(STORAGES["float32 master"])
    optimizer = Adam([Parameter(np.zeros_like(array)) for array in data], **STORAGES["float32 master"])
    optimizer.load_state_dict(state, convert=True)
    assert bits([p.data for p in optimizer.parameters()]) == bits(data)
    assert bits(optimizer.state_dict()) == bits(state)


def master_of(data: Any, entry: dict[str, Any]) -> Any:
    """The float32 parameter that is stored, by the formulas."""
    upper = data.view(np.uint16).astype(np.int64) << 16
    if "master_param" in entry:
        return entry["master_param"]
    if "remainder" in entry:
        low = entry["remainder"]
        return (upper + low.astype(np.int64) * (1 if low.dtype == np.int16 else 256)).astype(np.uint32).view(np.float32)
    return data.astype(np.float32) + entry["compensation"].astype(np.float32) if "compensation" in entry else None


MASTERS = ("float32 master", "split", "split24", "kahan")
# Units in the last place of a bfloat16, half of which a rounding to it loses at most: what a conversion loses of a
# master. kahan keeps 8 bits of the rest, split24 all to 2^-8 of a unit.
LOST = {"float32 master": 0.0, "split": 0.0, "split24": 2.0**-9, "kahan": 2.0**-9, "plain": 0.5}


@pytest.mark.parametrize("ours", [*MASTERS, "plain"])
@pytest.mark.parametrize("saved", MASTERS)
def test_masters_convert_into_each_other(saved, ours):
    data, state = saved_with(STORAGES[saved])
    optimizer = Adam([Parameter(array.copy()) for array in data], **STORAGES[ours])
    optimizer.load_state_dict(state, convert=True)
    for number, parameter in enumerate(optimizer.parameters()):
        truth = master_of(data[number], state["state"][number])
        found = master_of(parameter.data, optimizer.state_dict()["state"][number])
        found = parameter.data.astype(np.float32) if found is None else found
        unit = np.spacing(np.abs(truth)) * 2.0**16
        assert (np.abs(found - truth) <= LOST[ours] * unit * 1.01).all()
        np.testing.assert_allclose(parameter.data.astype(np.float32), truth, rtol=2.0**-8)  # it is its rounding


def test_states_convert_to_the_nearest_that_is_kept():
    data, state = saved_with({"state_dtype": "float32"})
    theirs = state["state"][0]["exp_avg"]
    optimizer = Adam([Parameter(array) for array in data], state_dtype="int8")
    optimizer.load_state_dict(state, convert=True)
    kept = optimizer.state_dict()
    back = Adam([Parameter(array) for array in data], state_dtype="float32")
    back.load_state_dict(kept, convert=True)
    found = back.state_dict()["state"][0]["exp_avg"]
    blocks = np.resize(np.abs(theirs), (33, 128)).max(1).repeat(128)[: len(theirs)]
    assert (np.abs(found - theirs) <= 2.0**-4 * blocks).all()
    assert (np.sign(found) * np.sign(theirs) >= 0).all()
    grown = np.abs(found).sum() / np.abs(theirs).sum() - 1
    assert abs(grown) < 0.003  # as often up as down; towards zero would be 0.01
    halves = Adam([Parameter(array) for array in data], state_dtype="bfloat16")
    halves.load_state_dict(state, convert=True)
    assert bits(halves.state_dict()["state"][0]["exp_avg"]) == bits(theirs.astype(BFLOAT16))


def test_a_conversion_leaves_no_memory_behind():
    saved = Adam([Parameter(np.ones(spare.PIECE + 1, BFLOAT16))], master_weights="split").init_state()
    ours = Adam([Parameter(p.data) for p in saved.parameters()], master_weights="split24", state_dtype="int8")
    ours.load_state_dict(saved.state_dict(), convert=True)
    assert max(words.size for words in vars(spare._kept).values()) <= spare.PIECE


def test_counts_come_and_go_with_random_rounding():
    plain, drawing = ({"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "dampening": 0.5, "state_dtype": "int8"})
    for saved, ours, has in ((plain, drawing, True), (drawing, plain, False)):
        p = Parameter(np.ones(SMALL, np.float32))
        optimizer = SGD([p], **saved)
        p.grad = np.ones(SMALL, np.float32)
        state = optimizer.step().state_dict()
        other = SGD([Parameter(p.data)], **ours)
        other.load_state_dict(state, convert=True)
        assert ("step" in other.state_dict()["state"][0]) is has
        (p,) = other.parameters()
        p.grad = np.zeros(SMALL, np.float32)
        other.step()  # a second step: the buffer is there, and is kept by nine tenths
        other_state = other.state_dict()
        back = SGD([Parameter(p.data)], **plain)
        back.load_state_dict(other_state, convert=True)
        np.testing.assert_allclose(back.state_dict()["state"][0]["momentum_buffer"], 0.9, rtol=2.0**-3)


WRONG: dict[str, tuple[dict[str, Any], Any, type[Exception], str]] = {
    "codes without scales": (
        {"state_dtype": "int8"},
        lambda entry: entry.pop("exp_avg_scale"),
        KeyError,
        "has 'exp_avg' and lacks 'exp_avg_scale'",
    ),
    "scales without codes": (
        {"state_dtype": "int8"},
        lambda entry: entry.pop("exp_avg"),
        KeyError,
        "has 'exp_avg_scale' and lacks 'exp_avg'",
    ),
    "scales of other blocks": (
        {"state_dtype": "int8"},
        lambda entry: entry.update(exp_avg_scale=np.ones(17, np.float32)),
        ValueError,
        rf"exp_avg_scale has shape \(17,\) and {SMALL + 5} elements need \(33,\)",
    ),
    "a remainder of another shape": (
        {"master_weights": "split"},
        lambda entry: entry.update(remainder=np.zeros(3, np.int16)),
        ValueError,
        r"remainder has shape \(3,\) and the parameter \(4101,\)",
    ),
    "a remainder of 8 bits": (
        {"master_weights": "split"},
        lambda entry: entry.update(remainder=entry["remainder"].astype(np.int8)),
        TypeError,
        "remainder has dtype int8 .* keeps int16; .*build the optimizer with master_weights='split24'",
    ),
    "a state of whole numbers": (
        {},
        lambda entry: entry.update(exp_avg=entry["exp_avg"].astype(np.int32)),
        TypeError,
        "exp_avg has dtype int32 and this optimizer keeps bfloat16",
    ),
}


@pytest.mark.parametrize(("options", "change", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_state_changes_nothing(options, change, error, message):
    data, state = saved_with(options)
    optimizer = Adam([Parameter(array) for array in data], **options)
    optimizer.load_state_dict(state)
    before = contents(optimizer)
    change(state["state"][0])
    state["state"][3]["step"][...] = 99
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(state)
    assert contents(optimizer) == before


@pytest.mark.parametrize("name", [*MASTERS, "float16 master", "float16 kahan"])
def test_a_float32_model_with_the_weights_of_a_checkpoint_takes_its_masters(name):
    of_float16 = {"float16 master": {"master_weights": "float32"}, "float16 kahan": {"kahan": True}}
    options, dtype = (of_float16[name], np.float16) if name in of_float16 else (STORAGES[name], BFLOAT16)
    data, state = saved_with(options, dtype)
    optimizer = Adam([Parameter(array.astype(np.float32)) for array in data])
    for _ in range(2):  # a second time they are there already
        optimizer.load_state_dict(state, convert=True)
        for number, parameter in enumerate(optimizer.parameters()):
            np.testing.assert_array_equal(parameter.data, master_of(data[number], state["state"][number]))
            assert not {"master_param", "remainder", "compensation"} & optimizer.state[parameter].keys()
    assert any((p.data != array.astype(np.float32)).any() for p, array in zip(optimizer.parameters(), data))


@pytest.mark.parametrize("name", MASTERS)
def test_a_master_of_other_weights_is_not_taken(name):
    """The first model was not loaded, the second one's last parameter was not."""
    data, state = saved_with(STORAGES[name])
    for others in (range(4), range(2, 3)):
        arrays = [array.astype(np.float32) for array in data]
        for number in others:
            arrays[number] += np.float32(2.0**-20)
        optimizer = Adam([Parameter(array) for array in arrays])
        before = contents(optimizer)
        with pytest.raises(
            ValueError, match=r"the parameter, of float32, is not what this state's masters round to; load the weights"
        ):
            optimizer.load_state_dict(state, convert=True)
        assert contents(optimizer) == before


def test_a_master_of_a_float32_model_is_converted_where_that_is_asked_for():
    data, state = saved_with({"master_weights": "split", "state_dtype": "float32"})
    optimizer = Adam([Parameter(array.astype(np.float32)) for array in data])
    with pytest.raises(
        ValueError, match=r"convert the state: load_state_dict\(state, convert=True\), or build it with"
    ):
        optimizer.load_state_dict(state)
    del state["param_groups"][0]["master_weights"]  # as of a dict that another library has written anew
    with pytest.raises(ValueError, match=r"convert it: .*convert=True\), or build .* with master_weights='split'"):
        optimizer.load_state_dict(state)


def test_the_rest_of_a_bfloat16_is_of_no_use_to_float16_parameters():
    data, state = saved_with(STORAGES["split"])
    optimizer = Adam([Parameter(array.astype("float16")) for array in data])
    with pytest.raises(TypeError, match="remainder is the rest of a bfloat16 parameter, and this one has float16"):
        optimizer.load_state_dict(state, convert=True)


# --- masters and what is written into parameters ---------------------------------------------------------------------


@on_the_devices
@pytest.mark.parametrize("name", MASTERS)
def test_masters_start_again_from_what_was_written_into_parameters(device, name):
    parameters = parameters_of(device)
    optimizer = Adam(parameters, lr=0.001, **STORAGES[name])
    train(device, parameters, optimizer, range(2))
    written = np.full(SHAPES[0], 3.0, BFLOAT16)
    parameters[0].data[...] = device.array(written)
    assert optimizer.reload_masters() is optimizer
    state = optimizer.state_dict()["state"][0]
    np.testing.assert_array_equal(master_of(written, state), np.full(SHAPES[0], 3, np.float32))
    give_gradients(device, 2, parameters)
    optimizer.step()
    found = device.host(parameters[0].data).astype(np.float32)
    np.testing.assert_allclose(found, 3, atol=0.02)  # a step of Adam moves by some lr, and rounding by 2^-7 at most


def test_gradients_of_half_precision_parameters_may_be_float32(device):
    """As main gradients are: their bits below half precision count."""
    p = Parameter(device.array(np.ones(3, BFLOAT16)), grad_dtype="float32")
    small = np.full(3, 2.0**-12 + 2.0**-20, np.float32)
    p.grad = device.array(small)
    assert p.grad.dtype == np.float32
    optimizer = SGD([p], lr=1.0, master_weights="float32")
    assert device.host(p.grad).tolist() == small.tolist()
    assert fusedopt.clip_grad_norm(p, 1.0) == pytest.approx(float(np.linalg.norm(small)))
    optimizer.step()
    np.testing.assert_array_equal(device.host(optimizer.state[p]["master_param"]), 1 - small)
    twin = copy.deepcopy(p)
    assert twin.grad_dtype == twin.grad.dtype == np.float32
    with pytest.raises(TypeError, match="has grad_dtype float32 and was given a gradient of bfloat16"):
        p.grad = p.data
