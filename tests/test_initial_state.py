"""States that start from a value, and states that are there before the first step."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import fusedopt
from fusedopt import Adagrad, Parameter
from fusedopt.rules import Rule, State, Values, hyperparameter
from fusedopt.tracing import TracingError, trace


@dataclasses.dataclass(frozen=True)
class Totals(Rule):
    """Sums of gradients that start from a hyperparameter, and from a number where a flag is on."""

    lr: float = hyperparameter(1.0, "[0, inf)")
    start: float = hyperparameter(0.5, "(-inf, inf)")
    twice: bool = hyperparameter(False)

    state = (State("total", initial="start"), State("other", when="twice", initial=-2.0))

    def scalars(self, step, a):
        return Values(lr=self.lr)

    def update(self, p, g, s, c):
        new = Values(total=s.total + g)
        if self.twice:
            new.other = s.other + g
        return p - c.lr * g, new


class Totalling(fusedopt.Optimizer, rule=Totals):
    pass


def make(device, *sizes, dtype=np.float32):
    return [Parameter(device.array(np.zeros(size, dtype))) for size in sizes]


def step(device, optimizer, *parameters):
    optimizer.clear_grad()
    for parameter in parameters:
        parameter.grad = device.array(np.ones(parameter.shape, parameter.dtype))
    optimizer.step()


def values(device, optimizer, parameter):
    """The one value that each state array is full of."""
    entry = {name: np.unique(device.host(array)) for name, array in optimizer.state[parameter].items() if array.ndim}
    assert all(found.size == 1 for found in entry.values())
    return {name: found.item() for name, found in entry.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_state_starts_from_a_hyperparameter_or_a_number(device, dtype):
    one, other = make(device, 3, 5000, dtype=dtype)
    optimizer = Totalling([one, other], start=4.0, twice=True)
    step(device, optimizer, one, other)
    assert values(device, optimizer, one) == values(device, optimizer, other) == {"total": 5, "other": -1}


def test_a_parameter_that_starts_later_starts_from_what_the_hyperparameter_is_then(device):
    first, second, third = make(device, 3, 4, 5)
    optimizer = Totalling([first, second, third])
    step(device, optimizer, first)
    optimizer.param_groups[0]["start"] = 10.0
    step(device, optimizer, first, third)
    optimizer.param_groups[0]["start"] = 20.0
    step(device, optimizer, first, second, third)
    found = [values(device, optimizer, p)["total"] for p in (first, second, third)]
    assert found == [3.5, 21, 12]


def test_a_parameter_that_starts_later_may_start_from_zero(device):
    first, second = make(device, 3, 4)
    optimizer = Totalling([first, second], start=10.0)
    step(device, optimizer, first)
    optimizer.param_groups[0]["start"] = 0.0
    step(device, optimizer, second)
    assert values(device, optimizer, second)["total"] == 1


def test_each_group_has_its_own_start(device):
    first, second = make(device, 3, 4)
    optimizer = Totalling([{"params": [first]}, {"params": [second], "start": 7.0}])
    step(device, optimizer, first, second)
    assert [values(device, optimizer, p)["total"] for p in (first, second)] == [1.5, 8]


def test_init_state_starts_it_now(device):
    first, second = make(device, 3, 4)
    optimizer = Totalling([first, second], start=3.0)
    step(device, optimizer, first)
    optimizer.param_groups[0]["start"] = 9.0
    optimizer.init_state()
    assert [values(device, optimizer, p)["total"] for p in (first, second)] == [4, 9]
    optimizer.param_groups[0]["start"] = 100.0
    step(device, optimizer, first, second)
    assert [values(device, optimizer, p)["total"] for p in (first, second)] == [5, 10]


def test_a_state_that_a_flag_brings_later_starts_then(device):
    first, second = make(device, 3, 4)
    optimizer = Totalling([first, second])
    step(device, optimizer, first)
    optimizer.param_groups[0]["twice"] = True
    step(device, optimizer, first, second)
    assert values(device, optimizer, first) == {"total": 2.5, "other": -1}
    assert values(device, optimizer, second) == {"total": 1.5, "other": -1}


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_what_a_state_dict_lacks_starts_from_its_value(device, used):
    """A parameter without a step yet, and a state whose flag came after the last one."""
    first, second = make(device, 3, 4)
    optimizer = Totalling([first, second])
    step(device, optimizer, first)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["twice"] = True
    first, second = make(device, 3, 4)
    optimizer = Totalling([first, second], start=50.0, twice=True)
    if used:  # the buffers hold other values then
        step(device, optimizer, first, second)
    optimizer.load_state_dict(saved)
    step(device, optimizer, first, second)
    assert values(device, optimizer, first) == {"total": 2.5, "other": -1}
    assert values(device, optimizer, second) == {"total": 1.5, "other": -1}


def test_a_state_starts_from_a_number_that_there_is():
    wrong = type("Wrong", (Totals,), {"state": (State("total", initial="typo"), State("other", when="twice"))})
    with pytest.raises(TracingError, match=r"^Wrong: state 'total' starts from 'typo', no number of the rule's\.$"):
        trace(dataclasses.dataclass(frozen=True)(wrong)())


# --- states that are there before the first step


def test_adagrad_has_its_state_before_the_first_step(device):
    first, frozen = make(device, 3, 4)
    frozen.requires_grad = False
    optimizer = Adagrad([first, frozen], initial_accumulator_value=0.25)
    saved = optimizer.state_dict()["state"]
    assert list(saved) == [0]
    assert list(saved[0]) == ["step", "sum"]
    assert float(saved[0]["step"]) == 0
    assert (saved[0]["sum"] == 0.25).all()
    (added,) = make(device, 5)
    optimizer.add_param_group({"params": added, "initial_accumulator_value": 2.0})
    assert values(device, optimizer, added) == {"sum": 2}
    frozen.requires_grad = True
    step(device, optimizer, first, frozen, added)
    assert [values(device, optimizer, p)["sum"] for p in (first, frozen, added)] == [1.25, 1.25, 3]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_a_state_of_step_0_is_copied_and_loaded_as_it_is(device, duplicate):
    optimizer = Adagrad(make(device, 3), initial_accumulator_value=0.25)
    optimizer.state[next(optimizer.parameters())]["sum"][...] = 7.0
    saved = optimizer.state_dict()
    loaded = Adagrad(make(device, 3), initial_accumulator_value=0.5)
    loaded.load_state_dict(saved)
    for other in (duplicate(optimizer), loaded):
        (parameter,) = other.parameters()
        assert values(device, other, parameter) == {"sum": 7}
        step(device, other, parameter)
        assert values(device, other, parameter) == {"sum": 8}


# --- options with more than two values


@dataclasses.dataclass(frozen=True)
class Moving(Rule):
    """A rule with three bodies."""

    lr: float = hyperparameter(1.0, "[0, inf)")
    way: str | None = hyperparameter(None, choices=(None, "down", "up"))

    def scalars(self, step, a):
        return Values(lr=self.lr)

    def update(self, p, g, s, c):
        change = {None: 0.0 * g, "down": -g, "up": g}[self.way]
        return p + c.lr * change, Values()


class Mover(fusedopt.Optimizer, rule=Moving):
    pass


def test_a_choice_is_a_flag_of_several_values(device):
    parameters = make(device, 3, 4, 5)
    groups = [{"params": p, "way": way} for p, way in zip(parameters, (None, "down", "up"), strict=True)]
    optimizer = Mover(groups)
    step(device, optimizer, *parameters)
    assert [device.host(p.data)[0] for p in parameters] == [0, -1, 1]
    optimizer.param_groups[0]["way"] = "up"
    step(device, optimizer, *parameters)
    assert [device.host(p.data)[0] for p in parameters] == [1, -2, 2]
    resumed = Mover([{"params": p} for p in make(device, 3, 4, 5)])
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["way"] for group in resumed.param_groups] == ["up", "down", "up"]


def test_a_choice_is_one_of_its_values():
    assert len({id(trace(Moving(way=way))) for way in (None, "down", "up")}) == 3
    words = r"^Moving: way must be one of None, 'down', 'up', got 'left'\.$"
    with pytest.raises(ValueError, match=words):
        Moving(way="left")
    optimizer = Mover(Parameter(np.zeros(3)))
    with pytest.raises(ValueError, match="way must be one of"):
        optimizer.param_groups[0]["way"] = False
    assert optimizer.param_groups[0]["way"] is None
