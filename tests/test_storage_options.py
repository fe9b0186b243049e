"""The options of how arrays are kept: what does not go together is refused, with its cure, before anything changes."""

import copy
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fusedopt
from fusedopt import Adam, Parameter, SparseGradient, rules
from fusedopt.functional import adam, apply
from test_state_dict import contents

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def some(dtype: Any, name: str = "w") -> Parameter:
    return Parameter(np.ones((2, 3), dtype), name=name)


Row = tuple[str, str, dict[str, Any], type[Exception], str]
# Optimizer, the parameters' dtype, options, and what is said of them.
WRONG: tuple[Row, ...] = (
    (
        *("Adam", "float32", {"master_weights": "float32"}, ValueError),
        r"^param group 0: Adam: master_weights='float32' keeps what float16 and bfloat16 parameters cannot hold, and "
        r"parameter 'w' \(shape \(2, 3\)\) has float32, which holds it; leave it out, or convert",
    ),
    ("Adam", "float64", {"master_weights": "split"}, ValueError, "has float64, which holds it; leave it out"),
    ("SGD", "float32", {"kahan": True}, ValueError, "SGD: kahan=True keeps what .* has float32, which holds it"),
    (
        *("Adam", "float16", {"master_weights": "split"}, ValueError),
        "keeps a float32 as bfloat16 and a remainder, and parameter 'w' .* has float16; choose .*='float32'",
    ),
    ("Adam", "float16", {"master_weights": "split24"}, ValueError, "has float16; choose master_weights='float32'"),
    (
        *("Adam", "bfloat16", {"kahan": True, "master_weights": "float32"}, ValueError),
        "^Adam: kahan=True and master_weights='float32' both keep what rounding loses; choose master_weights='split'",
    ),
    (
        *("Adam", "float32", {"stochastic_rounding": True}, ValueError),
        "=True is for float16 and bfloat16 parameters and states, and parameter 'w' .* has float32; leave it",
    ),
    (
        *("Adam", "float64", {"state_dtype": "bfloat16"}, ValueError),
        "state_dtype='bfloat16' does not go with parameter 'w' .*, which has float64; choose state_dtype='float32'",
    ),
    ("Adam", "float64", {"state_dtype": {"exp_avg": "int8"}}, ValueError, "does not go with .* has float64"),
    ("Adam", "float64", {"state_dtype": {"max_exp_avg_sq": "int8"}}, ValueError, "does not go with .* has float64"),
    ("SGD", "float64", {"state_dtype": "bfloat16"}, ValueError, "does not go with .* has float64"),  # without momentum
    (
        *("Adam", "float32", {"state_dtype": "bf16"}, ValueError),
        "^Adam: state_dtype must be one of None, 'float32', 'bfloat16', 'float16', 'int8', got 'bf16'",
    ),
    ("Adam", "float32", {"state_dtype": np.float32}, ValueError, "^Adam: state_dtype must be one of"),
    ("Adam", "float32", {"state_dtype": ["int8"]}, ValueError, "^Adam: state_dtype must be one of"),
    (
        *("Adam", "float32", {"state_dtype": {"exp_avg": "uint8"}}, ValueError),
        r"^Adam: state_dtype\['exp_avg'\] must be one of None, 'float32'.* got 'uint8'",
    ),
    (
        *("Adam", "float32", {"state_dtype": {"exp_av": "int8"}}, ValueError),
        "^Adam: state_dtype has 'exp_av', and the states are exp_avg, exp_avg_sq, max_exp_avg_sq",
    ),
    (
        *("ASGD", "float32", {"state_dtype": "int8"}, ValueError),
        "^ASGD: int8 is too coarse for the state 'ax'; choose state_dtype={'ax': 'float32'}",
    ),
    ("FTRL", "float32", {"state_dtype": "int8"}, ValueError, "^FTRL: int8 is too coarse for the state 'moments'"),
    (
        *("RMSprop", "float32", {"state_dtype": "int8", "centered": True}, ValueError),
        "^RMSprop: int8 is too coarse for the state 'square_avg' with centered=True",
    ),
    (
        *("RMSprop", "float32", {"state_dtype": {"grad_avg": "int8"}, "centered": True}, ValueError),
        "^RMSprop: int8 is too coarse for the state 'grad_avg'",
    ),
    (
        *("SparseAdam", "bfloat16", {"state_dtype": "int8"}, ValueError),
        "^SparseAdam: state_dtype is not for SparseAdam, which updates rows without a launch",
    ),
    ("Adam", "bfloat16", {"seed": -1}, ValueError, r"seed must be in \[0, 9007199254740992\), got -1"),
    ("Adam", "bfloat16", {"seed": 0.5}, ValueError, "seed must be a whole number, got 0.5"),
    ("Adam", "bfloat16", {"seed": [1, 2]}, TypeError, r"seed must be a whole number, got \[1, 2\]; it follows no"),
    ("Adam", "bfloat16", {"seed": int}, TypeError, "seed must be a whole number, got .*; it follows no schedule"),
)
each_wrong = pytest.mark.parametrize(
    ("kind", "dtype", "options", "error", "message"), WRONG, ids=[f"{row[0]}-{row[1]}-{row[2]}" for row in WRONG]
)


@each_wrong
def test_what_does_not_go_together_is_refused(kind, dtype, options, error, message):
    p = some(dtype)
    array = p.data
    with pytest.raises(error, match=message):
        getattr(fusedopt, kind)([p], **options)
    assert p.owner is None
    assert p.data is array
    optimizer = getattr(fusedopt, kind)([some(dtype)])
    before = contents(optimizer)
    with pytest.raises(error, match=f"param group 1: .*{message.removeprefix('^').removeprefix('param group 0: ')}"):
        optimizer.add_param_group({"params": p, **options})
    assert contents(optimizer) == before
    assert p.owner is None


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        ("Muon", "clip_value", "has no option 'clip_value', which is for optimizers whose step is one launch"),
        ("LBFGS", "master_weights", "master_weights is not for LBFGS, whose .* AdamW or Muon"),
    ],
)
def test_what_is_no_launch_has_no_such_options(kind, option, message):
    with pytest.raises(TypeError, match=message):
        getattr(fusedopt, kind)([some(BFLOAT16)], **{option: "split"})


def test_a_group_of_half_and_float32_parameters_has_masters_for_the_half_ones_alone():
    half, full = some(BFLOAT16), some("float32")
    optimizer = Adam([half, full], master_weights="split", stochastic_rounding=True, state_dtype="float32")
    for p in (half, full):
        p.grad = np.ones((2, 3), p.dtype)
    state = optimizer.step().state_dict()["state"]
    assert [sorted(entry) for entry in state.values()] == [
        ["exp_avg", "exp_avg_sq", "remainder", "step"],
        ["exp_avg", "exp_avg_sq", "step"],
    ]


def test_half_precision_states_of_float32_parameters_may_be_rounded_at_random():
    optimizer = Adam([some("float32")], state_dtype="bfloat16", stochastic_rounding=True)
    assert optimizer.defaults["seed"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"master_weights": None},
        {"kahan": True, "master_weights": None},
        {"state_dtype": "int8"},
        {"lr": 9, "state_dtype": {}},
    ],
    ids=str,
)
def test_how_arrays_are_kept_does_not_change_in_a_group(change):
    optimizer = Adam([some(BFLOAT16)], master_weights="split")
    before = contents(optimizer)
    with pytest.raises(ValueError, match=r"says how the arrays are kept that are there; make a new optimizer with .*"):
        optimizer.param_groups[0].update(change)
    assert contents(optimizer) == before
    optimizer.param_groups[0].update({"master_weights": "split", "lr": 0.5})  # what it is already may be said


def test_a_dict_of_dtypes_is_not_the_callers():
    given = {"exp_avg": "int8"}
    optimizer = Adam([some("float32")], state_dtype=given)
    given["exp_avg"] = "float16"
    assert optimizer.param_groups[0]["state_dtype"] == {"exp_avg": "int8"}
    assert hash(rules.Adam(state_dtype=given)) is not None
    assert rules.Adam(state_dtype=given) != rules.Adam(state_dtype={"exp_avg": "int8"})


CALLS: dict[str, Callable[[Any], Any]] = {
    "adam": lambda p: adam(p, p, step=1, master_weights="split"),
    "adam's seed": lambda p: adam(p, p, step=1, seed=3),
    "apply": lambda p: apply(rules.Adam(state_dtype="float32"), p, p, step=1),
    "apply with kahan": lambda p: apply(rules.SGD(kahan=True), p, p, step=1, in_place=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_single_steps_leave_storage_to_their_caller(call):
    p = np.ones(3, BFLOAT16)
    with pytest.raises(TypeError, match="says how an optimizer keeps arrays, and here the caller does; leave it out"):
        call(p)
    assert p.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "options", [{"master_weights": "split"}, {"stochastic_rounding": True}, {"kahan": True}], ids=str
)
def test_rows_are_refused_where_arrays_are_not_kept_as_values(options):
    table, other = some(BFLOAT16), some(BFLOAT16, "b")
    optimizer = fusedopt.LazyAdam([table, other], **options)
    other.grad = np.ones((2, 3), BFLOAT16)
    optimizer.step()  # dense gradients are as for every rule
    table.grad = SparseGradient(np.array([0]), np.ones((1, 3), BFLOAT16))
    before = contents(optimizer)[0]
    with pytest.raises(
        RuntimeError, match="is not for a SparseGradient, whose step is no launch; leave it out, or give"
    ):
        optimizer.step()
    assert contents(optimizer)[0] == before


@pytest.mark.parametrize("option", [{"master_weights": "split"}, {"kahan": True}, {"stochastic_rounding": True}])
def test_a_default_is_for_the_groups_that_have_a_use_for_it(option):
    """float32 norms beside a bfloat16 body are kept as they are."""
    (name,) = option
    body, norms = some(BFLOAT16, "body"), some(np.float32, "norms")
    optimizer = fusedopt.AdamW([{"params": [norms]}, {"params": [body]}], **option)
    optimizer.add_param_group({"params": [some(np.float32)]})
    norms.grad = np.ones_like(norms.data)
    optimizer.step()
    assert optimizer.state[norms].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert copy.deepcopy(optimizer).param_groups[0][name] == option[name]
    with pytest.raises(ValueError, match=f"^param group 1: AdamW: {name}=.* has float32"):
        fusedopt.AdamW([{"params": [some(BFLOAT16)]}, {"params": [some(np.float32)], **option}])
    with pytest.raises(ValueError, match=f"^param group 0: AdamW: {name}=.* has float32"):
        fusedopt.AdamW([{"params": [some(np.float32)]}, {"params": [some(np.float32)]}], **option)


def test_states_of_half_precision_are_rounded_at_random_beside_float32_parameters():
    groups = [{"params": [some(np.float32)]}, {"params": [some(np.float32)], "state_dtype": "bfloat16"}]
    fusedopt.AdamW(groups, stochastic_rounding=True)
    with pytest.raises(
        ValueError, match=r"parameters and states, .* has float32; 8-bit states are rounded at random anyway"
    ):
        fusedopt.AdamW([some(np.float32)], stochastic_rounding=True, state_dtype="int8")
