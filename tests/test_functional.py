"""Rules as calls on arrays: the bits of an optimizer's step, one launch, and nothing changed where a call is wrong."""

import ast
import inspect
import pickle
import re
from dataclasses import dataclass

import numpy as np
import pytest

import fusedopt
from cases import DTYPES, Plain, assert_same_bits, each_case, extreme, ordinary
from devices import CUDA, NUMBA
from fusedopt import functional, rule_functions, stubs
from fusedopt.optimizers import RULES
from fusedopt.rules import Rule, State, Values, hyperparameter
from step_checks import NAdam

W, G = np.ones(3, np.float32), np.full(3, 2.0, np.float32)


@pytest.mark.parametrize("device", ["numpy", NUMBA, "emulated", CUDA], indirect=True)
@pytest.mark.parametrize("in_place", [False, True])
@each_case
def test_three_steps_are_an_optimizers_to_the_bit(case, in_place, device):
    function = getattr(functional, rule_functions.function_name(case.rule))
    start = extreme(333, "float32", 1).reshape(9, 37)
    parameter = fusedopt.Parameter(device.array(start))
    optimizer = case.optimizer([parameter], **case.main)
    p, states = device.array(start), []
    for step in range(1, 4):
        gradient = device.array(extreme(333, "float32", 1 + step).reshape(9, 37))
        given = p
        p, *states = function(p, gradient, *states, step=step, in_place=in_place, **case.main)
        assert (p is given) is in_place
        parameter.grad = gradient
        optimizer.step()
    assert_same_bits(device.host(p).ravel(), device.host(parameter.data).ravel())
    named = dict(zip(function(p, p.copy(), *states, step=4, **case.main)._fields[1:], states, strict=True))
    for name, array in optimizer.state[parameter].items():
        if name != "step":
            assert_same_bits(device.host(named[name]).ravel(), device.host(array).ravel(), name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalar_state_and_every_dtype_are_the_plain_rules(dtype, device):
    plain = Plain(NAdam(lr=0.1), extreme(50, dtype, 1))
    p, states = device.array(plain.parameter), []
    for step in range(1, 4):
        gradient = extreme(50, dtype, 1 + step)
        plain.update(gradient)
        p, *states = functional.apply(NAdam(lr=0.1), p, device.array(gradient), *states, step=step)
        assert states[2:] == [plain.scalar_state[name] for name in ("mu_product", "calls", "untouched")]
    assert_same_bits(device.host(p), plain.parameter)
    assert_same_bits(device.host(states[0]), plain.states["exp_avg"])


@pytest.mark.parametrize("device", ["numpy", NUMBA, "emulated", CUDA], indirect=True)
@pytest.mark.parametrize(
    "dtypes",
    [("float16", "float32", "bfloat16"), ("bfloat16", "float16", "float32"), ("float64", "float32", "float32")],
)
def test_gradient_and_states_have_dtypes_of_their_own(device, dtypes):
    p, g, m = (device.array(ordinary(50, dtype, 1)) for dtype in dtypes)
    found = functional.lion(p, g, m, step=1)
    assert [found.p.dtype.name, found.exp_avg.dtype.name] == [dtypes[0], dtypes[2]]
    real = "float64" if dtypes[0] == "float64" else "float32"
    wide = functional.lion(*(device.array(device.host(array).astype(real)) for array in (p, g, m)), step=1)
    for ours, theirs in zip(found, wide, strict=True):
        assert_same_bits(device.host(ours), device.host(theirs).astype(ours.dtype))


@pytest.mark.parametrize("device", ["numpy", NUMBA, "emulated"], indirect=True)
@pytest.mark.parametrize(
    "dtypes", [("float32", "float64", "float32"), ("float16", "float16", "float64"), ("float64", "float64", "float16")]
)
def test_dtypes_that_no_backend_puts_together_are_refused_by_all(device, dtypes):
    p, g, m = (device.array(ordinary(50, dtype, 1)) for dtype in dtypes)
    with pytest.raises(TypeError, match=f"lion: .* and p {dtypes[0]}, which do not go together; convert it with "):
        functional.lion(p, g, m, step=1)


@pytest.mark.parametrize("device", ["emulated", CUDA], indirect=True)
def test_a_step_is_one_launch_and_changes_nothing_that_it_is_given(device):
    given = [device.array(ordinary(70, "float32", seed)) for seed in range(3)]
    before = [device.host(array) for array in given]
    surface = device.backend.surface
    launch, launches = surface.launch, []
    surface.launch = lambda *arguments: launches.append(launch(*arguments))
    try:
        functional.lion(*given, step=2)
    finally:
        del surface.launch
    assert len(launches) == 1
    for array, values in zip(given, before, strict=True):
        assert_same_bits(device.host(array), values)


def test_an_array_of_any_shape_and_order_is_taken():
    p, g = np.asfortranarray(ordinary(12, "float32", 1).reshape(3, 4)), ordinary(24, "float32", 2).reshape(3, 8)[:, ::2]
    found = functional.sgd(p, g, step=1, lr=0.5)
    assert_same_bits(found.p, p - np.float32(0.5) * g)
    assert functional.sgd(np.ones(()), np.ones(()), step=1, lr=0.5).p == 0.5
    assert functional.adam(np.ones((0, 3)), np.ones((0, 3)), step=1).exp_avg.shape == (0, 3)


@dataclass(frozen=True)
class Starts(Rule):
    """A state that starts from a hyperparameter."""

    begin: float = hyperparameter(3.0, "[0, inf)")
    state = (State("sum", initial="begin"),)

    def scalars(self, step, a):
        return Values()

    def update(self, p, g, s, c):
        return p - g, Values(sum=s.sum + g * g)


def test_a_state_starts_from_what_the_rule_says(device):
    found = functional.apply(Starts(begin=5.0), device.array(W), device.array(G), step=1)
    assert device.host(found.sum).tolist() == [9.0] * 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: functional.adam(W, G, step=2), TypeError, "adam: exp_avg is missing at step 2; give what the step"),
        (lambda: functional.adam(W, G), TypeError, "adam: missing a required argument: 'step'; it is"),
        (
            lambda: functional.adam(W, G, step=1, ler=0.1),
            TypeError,
            "adam: Adam has no option 'ler'; did you mean 'lr'",
        ),
        (lambda: functional.adam(W, G, step=1, lr=-1), ValueError, "Adam: lr must be in [0, inf), got -1.0."),
        (lambda: functional.adam(W, G, step=0), ValueError, "adam: step must be a whole number from 1"),
        (lambda: functional.adam(W, G, step=1.5), ValueError, "adam: step must be a whole number from 1"),
        (lambda: functional.adam(W, G, step=True), TypeError, "adam: step must be a number, got True (bool)."),
        (lambda: functional.adam(W, G[:2], step=1), ValueError, "adam: g has shape (2,) and p (3,); they must be"),
        (lambda: functional.adam([1.0], G, step=1), TypeError, "adam: p must be a NumPy or CuPy array of float32,"),
        (lambda: functional.adam(W, G.astype(int), step=1), TypeError, "adam: g must be a NumPy or CuPy array of"),
        (lambda: functional.adam(W, G, G, W[:1], step=1), ValueError, "adam: exp_avg_sq has shape (1,) and p (3,)"),
        (
            lambda: functional.adam(W, G, G, G, G, step=1),
            TypeError,
            "adam: Adam(amsgrad=False, maximize=False, decoupled_weight_decay=False) keeps no max_exp_avg_sq;",
        ),
        (
            lambda: functional.adam(W, G, G, G.astype("float16"), step=1),
            TypeError,
            "adam: the states must have one dtype, got float16 and float32; convert them.",
        ),
        (lambda: functional.sgd(W, W, step=1, in_place=True), ValueError, "sgd: p and g overlap in memory; copy one"),
        (
            lambda: functional.lion(W, G, W[:], step=1, in_place=True),
            ValueError,
            "lion: p and exp_avg overlap in memory; copy one of them.",
        ),
        (
            lambda: functional.sgd(np.ones((3, 4)).T, np.ones((4, 3)), step=1, in_place=True),
            ValueError,
            "sgd: p is not C-contiguous and is to be changed in place; use in_place=False.",
        ),
        (
            lambda: functional.sgd(np.broadcast_to(W, (1, 3))[0], G, step=1, in_place=True),
            ValueError,
            "sgd: p is read-only and is to be changed in place; use in_place=False.",
        ),
        (
            lambda: functional.apply(fusedopt.rules.Adam, W, G, step=1),
            TypeError,
            "apply takes a rule with its hyperparameters, such as MyRule(lr=0.1), got the class Adam; call it.",
        ),
        (
            lambda: functional.apply(fusedopt.rules.Lion(), W, G, step=1, lr=0.1),
            TypeError,
            "apply: Lion has no state 'lr'; hyperparameters belong to the rule: apply(MyRule(lr=0.1), ...)",
        ),
        (lambda: functional.apply(fusedopt.rules.Muon(), W, G, step=1), TypeError, "apply: Muon is a procedure, whose"),
        (lambda: functional.apply(fusedopt.rules.Lion(), W, G, G, G, step=1), TypeError, "apply: Lion has 1 states"),
        (
            lambda: functional.apply(fusedopt.rules.Lion(), W, G, G, exp_avg=G, step=1),
            TypeError,
            "apply: exp_avg is given twice, by place and by name.",
        ),
        (
            lambda: functional.apply(NAdam(), W, G, mu_product="1", step=1),
            TypeError,
            "NAdam: mu_product must be a number",
        ),
    ],
)
def test_a_wrong_call_names_the_thing_and_changes_nothing(call, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        call()
    assert (W == 1).all()
    assert (G == 2).all()


def test_arrays_on_two_devices_are_refused():
    emulated = pytest.importorskip("emulated")
    with pytest.raises(ValueError, match="sgd: g is on emulated:0 and p on cpu; move g there first"):
        functional.sgd(W, emulated.array(G), step=1)


def test_each_rule_has_its_function_with_a_signature_a_docstring_and_a_stub():
    assert stubs.functional_path().read_text() == stubs.functional_text(), "run python -m fusedopt.stubs"
    written = {node.name: node for node in ast.parse(stubs.functional_text()).body if hasattr(node, "args")}
    assert len(written) == len(RULES)
    for rule in RULES.values():
        name = rule_functions.function_name(rule)
        function = getattr(functional, name)
        arguments = [a.arg for a in (*written[name].args.args, *written[name].args.kwonlyargs)]
        assert list(inspect.signature(function).parameters) == arguments
        assert all(argument in inspect.getdoc(function) for argument in arguments)


@pytest.mark.parametrize(
    ("title", "name"),
    [("AdamW", "adamw"), ("RMSprop", "rmsprop"), ("NAdam", "nadam"), ("ProximalAdagrad", "proximal_adagrad")],
)
def test_a_functions_name_is_the_rules_in_lower_case(title, name):
    assert rule_functions.function_name(type(title, (Rule,), {})) == name


def test_a_result_can_be_pickled():
    found = functional.lion(W, G, step=1)
    assert pickle.loads(pickle.dumps(found))._fields == ("p", "exp_avg")
