"""Each rule in float64, as a plain function, against torch's optimizer in float64 and against known results."""

import copy
import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from cases import (
    GOLDEN_GRADIENTS,
    GOLDEN_PARAMETER,
    Plain,
    assert_same_bits,
    each_case,
    each_combination,
    each_golden,
    extreme,
    ordinary,
)
from fusedopt import rules
from fusedopt.rules.hyperparameter import is_flag
from fusedopt.tracing import trace


@pytest.fixture(autouse=True, scope="module")
def _torch_in_float64():
    """Where that is its default, torch keeps numbers as NAdam's mu_product in float64; else in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def torch_steps(case, options, parameter, gradients):
    """The parameter and the optimizer's state of it, after each step."""
    tensor = torch.nn.Parameter(torch.from_numpy(parameter.copy()))
    optimizer = case.reference_of(options)([tensor], **options)
    for gradient in gradients:
        tensor.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        yield tensor.detach().numpy(), optimizer.state[tensor]


@each_combination()
def test_twelve_random_steps_are_torchs(case, options):
    plain = Plain(case.rule(**options), ordinary(1000, "float64", 1))
    gradients = [ordinary(1000, "float64", 2 + step) for step in range(12)]
    theirs = torch_steps(case, options, plain.parameter, gradients)
    for step, (gradient, (parameter, state)) in enumerate(zip(gradients, theirs, strict=True), 1):
        plain.update(gradient)
        # Both round some ten times a step, each by 1.1e-16 of numbers of order one; 1e-14 leaves as much again for
        # 1 - beta2^t, which keeps fewer digits the closer beta2^t is to 1.
        tolerance = 1e-14 * step
        np.testing.assert_allclose(plain.parameter, parameter, rtol=tolerance, atol=tolerance)
        ours = plain.states | plain.scalar_state
        assert {name for name in state if name != "step" and state[name] is not None} == set(ours)
        for name, values in ours.items():
            np.testing.assert_allclose(values, state[name].numpy(), rtol=tolerance, atol=tolerance, err_msg=name)


@each_golden
def test_known_results(case, golden):
    plain = Plain(case.rule(**golden.options), GOLDEN_PARAMETER)
    for step in range(golden.steps):
        if golden.lrs:
            plain.rule = dataclasses.replace(plain.rule, lr=golden.lrs[step])
        plain.update(GOLDEN_GRADIENTS[step % 3])
    np.testing.assert_allclose(plain.parameter, golden.parameter, rtol=0, atol=1e-11)  # written with 12 digits
    for name, expected in golden.states.items():
        np.testing.assert_allclose(plain.states[name], expected, rtol=0, atol=1e-11)


@each_combination("every state counts", own=True)
def test_every_state_counts(case, options):
    plain = Plain(case.rule(**options), ordinary(100, "float64", 1))
    for step in range(6):  # RAdam reads its second moment from the sixth step on
        plain.update(ordinary(100, "float64", 10 + step))
    for name in plain.states:
        results = []
        for kept in (1, 0):
            other = copy.deepcopy(plain)
            other.states[name] *= kept
            other.update(ordinary(100, "float64", 3))
            results.append(other.parameter)
        assert (results[0] != results[1]).any(), name


def without_decay(case, options):
    return {**options, **{name: 0.0 for name in ("weight_decay", "lambd") if name in case.rule.options()}}


@each_combination(own=True)
def test_the_first_step_is_what_the_equations_reduce_to(case, options):
    options = without_decay(case, options)
    gradient = ordinary(100, "float64", 1)
    plain = Plain(case.rule(**options), np.zeros(100))
    plain.update(gradient)
    expected = case.first_move(-gradient if options.get("maximize") else gradient, options)
    np.testing.assert_allclose(plain.parameter, expected, rtol=1e-13)


@each_combination("a zero gradient leaves the parameter", own=True)
def test_a_zero_gradient_from_the_start_leaves_only_decay(case, options):
    start = ordinary(100, "float64", 1)
    plain = Plain(case.rule(**without_decay(case, options)), start)
    for _ in range(3):
        plain.update(np.zeros(100))
    assert_same_bits(plain.parameter, start)
    if "weight_decay" not in case.rule.options():
        return
    decaying = Plain(case.rule(**{**options, "weight_decay": 0.1}), start)
    decaying.update(np.zeros(100))
    assert (decaying.parameter != start).all()


@each_combination("a zero gradient leaves the parameter", own=True)
def test_a_zero_gradient_later_moves_on_where_there_is_momentum(case, options):
    plain = Plain(case.rule(**without_decay(case, options)), ordinary(100, "float64", 1))
    plain.update(ordinary(100, "float64", 2))
    before = plain.parameter
    plain.update(np.zeros(100))
    moved = plain.parameter != before
    assert moved.all() if case.coasts(options) else not moved.any()


@each_combination("infinity stays", own=True)
def test_without_decay_an_infinite_parameter_stays_infinite(case, options):
    """0 * inf is NaN, so a decay of zero must leave its term out, as torch does."""
    start = np.array([np.inf, -np.inf, 1.0])
    plain = Plain(case.rule(**without_decay(case, options)), start)
    for _ in range(2):
        plain.update(np.array([0.1, 0.2, 0.3]))
    assert_same_bits(plain.parameter[:2], start[:2])
    assert np.isfinite(plain.parameter[2])
    if "states stay finite" not in case.unlike:
        assert all(np.isfinite(array).all() for array in plain.states.values())


@each_combination("lr of zero moves nothing", own=True)
def test_a_learning_rate_of_zero_moves_nothing_and_makes_no_nan(case, options):
    start = ordinary(100, "float64", 1)
    plain = Plain(case.rule(**{**options, "lr": 0.0}), start)
    for _ in range(2):
        plain.update(np.where(np.arange(100) % 2, ordinary(100, "float64", 2), 0.0))
    assert_same_bits(plain.parameter, start)


@each_combination(own=True)
def test_a_rule_writes_into_nothing_that_it_is_given(case, options):
    plain = Plain(case.rule(**options), extreme(1000, "float32", 1))
    for step in range(2):  # float32 arrays are handed to the rule's update as they are
        gradient = extreme(1000, "float32", 2 + step)
        given = [plain.parameter, gradient, *plain.states.values()]
        for array in given:
            array.flags.writeable = False
        plain.update(gradient)


# --- SGD's buffer


@pytest.mark.parametrize("dampening", [0.0, 0.5, 1.0])
def test_sgds_first_gradient_enters_the_buffer_undampened(dampening):
    plain = Plain(rules.SGD(lr=1.0, momentum=0.9, dampening=dampening), np.zeros(3))
    first, second = np.array([1.0, -2.0, 3.0]), np.array([4.0, 4.0, 4.0])
    plain.update(first)
    assert_same_bits(plain.states["momentum_buffer"], first)
    plain.update(second)
    assert_same_bits(plain.states["momentum_buffer"], 0.9 * first + (1 - dampening) * second)


@pytest.mark.parametrize("old", [np.nan, np.inf, 7.0])
def test_sgds_first_gradient_ignores_what_the_buffer_holds(old):
    plain = Plain(rules.SGD(momentum=0.9), np.zeros(1))
    plain.states["momentum_buffer"][...] = old
    plain.update(np.array([1.0]))
    assert plain.states["momentum_buffer"] == 1


def test_sgd_counts_only_where_the_counter_is_the_buffers_age():
    assert rules.SGD(momentum=0.9).counts
    assert not rules.SGD().counts
    assert rules.Adam().counts


# --- Adam's details


@pytest.mark.parametrize("rule", [rules.Adam(lr=0.01, amsgrad=True), rules.AdamW(lr=0.01, amsgrad=True)])
def test_amsgrad_keeps_the_largest_uncorrected_moment_and_nan(rule):
    plain = Plain(rule, np.zeros(3))
    plain.update(np.array([10.0, 1.0, np.nan]))
    largest = plain.states["max_exp_avg_sq"].copy()
    assert_same_bits(largest, plain.states["exp_avg_sq"])
    plain.update(np.array([0.0, 10.0, 1.0]))
    assert plain.states["max_exp_avg_sq"][0] == largest[0] > plain.states["exp_avg_sq"][0]
    assert plain.states["max_exp_avg_sq"][1] == plain.states["exp_avg_sq"][1] > largest[1]
    assert np.isnan(plain.states["max_exp_avg_sq"][2])


DECOUPLED = {"AdamW": {}, "Lion": {}, **{name: {"decoupled_weight_decay": True} for name in ("NAdam", "RAdam")}}


@pytest.mark.parametrize("decay", [1e-8, 6e-8, 2e-7, 1e-6, 1e-4])
@pytest.mark.parametrize("name", DECOUPLED)
def test_a_small_decay_is_rounded_once(name, decay):
    """At most half an ulp from the exact result; a factor 1 - lr weight_decay in float32 would cost up to one more."""
    rule = getattr(rules, name)(lr=1.0, weight_decay=decay, **DECOUPLED[name])
    plain = Plain(rule, ordinary(1000, "float32", 1))
    exact = plain.parameter * (1 - np.float64(decay))
    plain.update(np.zeros(1000, np.float32))
    assert (np.abs(plain.parameter - exact) <= 0.501 * np.spacing(np.abs(exact).astype(np.float32))).all()


def test_adam_with_large_eps_differs_from_small():
    results = []
    for eps in (1e-8, 1e-3):
        plain = Plain(rules.Adam(lr=0.01, eps=eps), np.zeros(10))
        plain.update(0.01 * ordinary(10, "float64", 1))
        results.append(plain.parameter)
    assert (np.abs(results[0]) > np.abs(results[1])).all()


# --- bytes


def bytes_moved(rule):
    """What a step must load and store for a parameter in float32."""
    body = trace(rule).body
    stored = {name: number for name, number in body.results.items() if name != "g"}
    needed = set(stored.values())
    for number in reversed(range(len(body.statements))):
        if number in needed:
            needed |= set(body.statements[number].operands)
    arrays = {f"s.{name}": name for name in rule.kept_states} | {"p": "p", "g": "g"}
    loaded = {number: arrays[s.value] for number, s in enumerate(body.statements) if s.value in arrays}
    loads = [name for number, name in loaded.items() if number in needed]
    stores = [name for name, number in stored.items() if loaded.get(number) != name]
    return 4 * (len(loads) + len(stores))


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (rules.RMSprop(), 20),
        (rules.RMSprop(momentum=0.9), 28),
        (rules.RMSprop(centered=True), 28),
        (rules.RMSprop(centered=True, momentum=0.9), 36),
        (rules.Rprop(), 28),
        (rules.FTRL(), 28),
        (rules.ProximalAdagrad(), 20),
        (rules.Momentum(), 20),
    ],
    ids=repr,
)
def test_a_step_moves_no_byte_more_than_the_equations_need(rule, count):
    assert bytes_moved(rule) == count


# --- RMSprop, Rprop, FTRL and ProximalAdagrad in detail


def updated(rule, parameter, *gradients, dtype="float64"):
    """A parameter after steps of a rule, with its states."""
    plain = Plain(rule, np.array(parameter, dtype))
    for gradient in gradients:
        plain.update(np.array(gradient, dtype))
    return plain


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_a_variance_that_rounding_makes_negative_is_zero_in_rmsprop(eps):
    """Of equal gradients the variance is soon zero, or an ulp beside it; torch's parameter is NaN then."""
    gradients = ordinary(1000, "float32", 1)
    plain = updated(rules.RMSprop(alpha=0.5, centered=True, eps=eps), gradients, *[gradients] * 60, dtype="float32")
    variance = plain.states["square_avg"] - plain.states["grad_avg"] ** 2
    assert (variance < 0).any()
    assert not np.isnan(plain.parameter).any()
    assert np.isfinite(plain.parameter).all() == (eps > 0)
    tensor = torch.nn.Parameter(torch.from_numpy(gradients.copy()))
    theirs = torch.optim.RMSprop([tensor], alpha=0.5, centered=True, foreach=False)
    for _ in range(60):
        tensor.grad = torch.from_numpy(gradients.copy())
        theirs.step()
    assert tensor.isnan().any()


def test_a_variance_of_nan_stays_nan_in_rmsprop():
    plain = updated(rules.RMSprop(centered=True), [1.0], [np.nan])
    plain.parameter[...] = 1.0
    plain.update(np.array([1.0]))
    assert np.isnan(plain.parameter).all()


def test_rprop_compares_signs_where_a_product_of_gradients_would_vanish():
    """1e-4 squared is zero in float16, and 1e-30 squared in float32: torch's step sizes stay as they are then."""
    for small, dtype in ((1e-4, "float16"), (1e-30, "float32")):
        gradients = np.array([[small, small, 0.0], [small, -small, small]])
        plain = updated(rules.Rprop(lr=1.0, etas=(0.5, 2.0)), [0.0, 0.0, 0.0], *gradients, dtype=dtype)
        assert plain.states["step_size"].tolist() == [2.0, 0.5, 1.0]
        assert plain.parameter.tolist() == [-3.0, -1.0, -1.0]


def test_rprop_steps_at_its_size_again_after_a_turn():
    """The gradient that turned is forgotten: it moves nothing, and the next one changes no size."""
    plain = updated(rules.Rprop(lr=1.0, etas=(0.5, 2.0)), [0.0], [1.0], [-1.0])
    assert (plain.parameter, plain.states["prev"], plain.states["step_size"]) == (-1.0, 0.0, 0.5)
    plain.update(np.array([-1.0]))
    assert (plain.parameter, plain.states["prev"], plain.states["step_size"]) == (-0.5, -1.0, 0.5)


def test_the_two_etas_have_ranges_of_their_own():
    for etas, place, interval in (((1.0, 1.2), 0, "(0, 1)"), ((0.5, 1.0), 1, "(1, inf)"), ((1.2, 0.5), 0, "(0, 1)")):
        message = re.escape(f"Rprop: etas[{place}] must be in {interval}, got {etas[place]}.")
        with pytest.raises(ValueError, match=f"^{message}$"):
            rules.Rprop(etas=etas)


ANNOTATED = {"__annotations__": {"etas": "float"}}


def test_a_hyperparameter_without_a_type_and_a_range_that_cannot_be_read_are_named():
    """dataclasses would say "'lr' is a field but has no type annotation", and of which rule, not at all."""
    with pytest.raises(
        TypeError, match=r"^rule Mine: lr must have its type.*; write lr: float = hyperparameter\(0\.1, "
    ):

        class Mine(rules.Rule):
            lr = rules.hyperparameter(0.1, "[0, inf)", "learning rate")

    with pytest.raises(ValueError, match=r"^rule Other: etas: a range is written like '\[0, 1\)'.*, got '>=0'\.$"):
        type("Other", (rules.Rule,), {"etas": rules.hyperparameter(0.1, ">=0"), **ANNOTATED})


@pytest.mark.parametrize("default", [(0.5, 0.9, 1.2), 0.5])
def test_ranges_of_two_numbers_are_those_of_two_numbers(default):
    with pytest.raises(ValueError, match=r"^rule Mine: etas: .*(has one range|have one range or 3)"):
        type("Mine", (rules.Rule,), {"etas": rules.hyperparameter(default, ("(0, 1)", "(1, inf)")), **ANNOTATED})


def test_ftrl_stays_where_it_is_while_gradients_are_zero():
    plain = updated(rules.FTRL(lr=0.1, l1=0.01, l2=0.02), [1.0, -2.0], [0.3, -0.4])
    before = plain.parameter
    assert (before != 0).all()
    plain.update(np.zeros(2))
    assert_same_bits(plain.parameter, before)


@pytest.mark.parametrize("lr_power", [-0.5, -0.7, 0.0])
def test_ftrl_starts_from_zero_or_from_the_parameter(lr_power):
    options = {"lr": 0.1, "lr_power": lr_power, "l1": 0.01, "l2": 0.02}
    start = [1.0, -2.0, 0.0]
    assert (updated(rules.FTRL(**options), start, np.zeros(3)).parameter == 0).all()
    kept = updated(rules.FTRL(**options, linear_init_from_param=True), start, np.zeros(3), np.zeros(3)).parameter
    np.testing.assert_allclose(kept, start, rtol=1e-14)


def test_ftrl_makes_small_parameters_zero_and_keeps_nan():
    plain = updated(rules.FTRL(lr=0.1, l1=0.5), [0.0, 0.0, 0.0], [0.4, 0.6, np.nan])
    assert plain.parameter[0] == 0
    assert plain.parameter[1] < 0
    assert np.isnan(plain.parameter[2])


@pytest.mark.parametrize("rule", [rules.ProximalAdagrad, rules.FTRL])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_accumulator_of_zero_makes_no_nan(rule, dtype):
    plain = updated(rule(lr=0.1, initial_accumulator_value=0.0), [0.5, 0.5], [0.0, 1.0], dtype=dtype)
    assert np.isfinite(plain.parameter).all()
    assert plain.parameter[0] == (0.5 if rule is rules.ProximalAdagrad else 0.0)


def test_proximal_adagrad_makes_small_parameters_zero():
    plain = updated(rules.ProximalAdagrad(lr=0.1, l1=1.0), [0.05, -0.05, 0.2, -0.2], np.zeros(4))
    np.testing.assert_allclose(plain.parameter, [0.0, 0.0, 0.1, -0.1], rtol=1e-15)


def test_momentum_is_sgd_without_dampening():
    for nesterov in (False, True):
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov}
        gradients = [ordinary(100, "float64", seed) for seed in range(5)]
        one, other = (updated(rule(**options), gradients[0], *gradients) for rule in (rules.Momentum, rules.SGD))
        np.testing.assert_allclose(one.parameter, other.parameter, rtol=1e-14, atol=1e-14)


# --- hyperparameters


OUTSIDE = {
    "[0, inf)": (-1e-9, -1.0, np.inf, -np.inf),
    "(0, inf)": (0.0, -0.0, -1.0, np.inf),
    "[0, 1)": (-1e-9, 1.0, 2.0, np.inf),
    "[0, 1]": (-1e-9, np.nextafter(1, 2), np.inf),
    "(-inf, 0]": (1e-9, -np.inf),
    "[1, inf)": (np.nextafter(1, 0), np.inf),
    "(0, 1)": (0.0, 1.0, -1.0),
    "(1, inf)": (1.0, np.inf),
    "(-inf, inf)": (np.inf,),
    "[0, 9007199254740992)": (-1.0, 2.0**53, np.inf),
}
EDGE = {
    "[0, inf)": (0.0, -0.0, 1e300),
    "(0, inf)": (5e-324, 1e300),
    "[0, 1)": (0.0, np.nextafter(1, 0)),
    "[0, 1]": (0.0, 1.0),
    "(-inf, 0]": (0.0, -1e300),
    "[1, inf)": (1.0, 1e300),
    "(0, 1)": (5e-324, np.nextafter(1, 0)),
    "(1, inf)": (np.nextafter(1, 2), 1e300),
    "(-inf, inf)": (-1e300, 1e300),
    "[0, 9007199254740992)": (0, 2**53 - 1),
}


def numeric_options(case):
    """Name, default and ranges of each hyperparameter that is a number or a tuple of them."""
    for name, field in case.rule.options().items():
        if field.init and not is_flag(field):
            ranges = field.metadata["interval"]
            yield name, field.default, ranges if isinstance(ranges, tuple) else (ranges,)


def with_number(default, value, place):
    """The value where the default is a number; in one place of it where it is a tuple."""
    return (*default[:place], value, *default[place + 1 :]) if isinstance(default, tuple) else value


@each_case
def test_numbers_out_of_range_are_refused_by_name_value_and_range(case):
    for name, default, ranges in numeric_options(case):
        for place, interval in enumerate(ranges):
            for value in (*OUTSIDE[interval.text], np.nan):
                with pytest.raises(ValueError) as error:
                    case.rule(**{name: with_number(default, value, place)})
                what = f"{name}[{place}]" if isinstance(default, tuple) else name
                assert str(error.value) == f"{case.name}: {what} must be in {interval.text}, got {value}."


@each_case
def test_numbers_at_the_edge_of_their_range_are_taken(case):
    for name, default, ranges in numeric_options(case):
        for place, interval in enumerate(ranges):
            for value in EDGE[interval.text]:
                options = with_number(default, value, place)
                assert getattr(case.rule(**{name: options}), name) == options


@each_case
def test_what_torch_refuses_is_refused(case):
    for options in case.combinations():
        if options not in case.valid():
            with pytest.raises(ValueError, match=f"^{case.name}: "):
                case.rule(**options)
        else:
            case.rule(**options)


@each_case
@pytest.mark.parametrize("value", [-1.0, -1e-9, 1.0, 2.0, np.nan])
def test_numbers_that_torch_refuses_are_refused(case, value):
    for name, default, ranges in numeric_options(case):
        for options in (with_number(default, value, place) for place in range(len(ranges))):
            if name not in case.rule.common_defaults() and not case.accepts({name: options}):
                with pytest.raises(ValueError, match=f"^{case.name}: "):
                    case.rule(**{name: options})


@each_case
@pytest.mark.parametrize("value", ["0.1", None, [0.1], 1j, True, np.True_, np.ones(2)])
def test_what_is_no_number_is_refused(case, value):
    for name, default, ranges in numeric_options(case):
        for options in (with_number(default, value, place) for place in range(len(ranges))):
            with pytest.raises((TypeError, ValueError), match=f"^{case.name}: {name}"):
                case.rule(**{name: options})


@each_case
@pytest.mark.parametrize("kind", [int, np.float32, np.int64, np.array, Fraction])
def test_numbers_of_any_kind_become_floats(case, kind):
    """And whole ones ints."""
    for name, default, ranges in numeric_options(case):
        taken = [(number, place) for place, interval in enumerate(ranges) for number in (0, 1, 2) if number in interval]
        for options in [with_number(default, kind(number), place) for number, place in taken]:
            value = getattr(case.rule(**{name: options}), name)
            parts = value if isinstance(value, tuple) else (value,)
            becomes = int if case.rule.options()[name].metadata["whole"] else float
            assert all(type(part) is becomes for part in parts)
            assert hash(case.rule(**{name: options})) == hash(case.rule(**{name: value}))


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.99, 0.999), 0.9, "ab", {0.9: 1, 0.99: 2}, None])
def test_betas_are_two_numbers(betas):
    with pytest.raises((TypeError, ValueError), match=r"^Adam: betas must be 2 numbers such as \(0.9, 0.999\), got "):
        rules.Adam(betas=betas)


def test_betas_may_be_ints_and_a_list():
    assert rules.Adam(betas=[0, 0]).betas == (0.0, 0.0)


@each_case
def test_flags_are_true_or_false(case):
    for name, field in case.rule.options().items():
        if isinstance(field.default, bool) and field.init:
            for value in (1, 0, None, "yes", 1.0):
                with pytest.raises(TypeError, match=f"^{case.name}: {name} is a flag, True or False, got {value!r}"):
                    case.rule(**{name: value})


def test_adamw_is_decoupled_by_definition():
    assert rules.AdamW().decoupled_weight_decay
    with pytest.raises(TypeError):
        rules.AdamW(decoupled_weight_decay=False)


@each_case
def test_defaults_are_torchs(case):
    theirs = case.reference([torch.zeros(1)]).defaults
    for name, default in case.rule().shown().items():
        assert default == theirs[name], name
