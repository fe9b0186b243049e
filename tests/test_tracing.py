"""What a rule may do and what it is told where it may not; the programs and the CUDA text that it becomes."""

import dataclasses
import math
import os
import re
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest

import fusedopt
from cases import CASES, DTYPES, EXTREMES, Both, Plain, assert_same_bits, each_combination
from fusedopt import rules
from fusedopt.cuda_text import Variant, rule_text
from fusedopt.rules import Rule, State, Values, exp2, hyperparameter, larger, log2, power, sign, smaller
from fusedopt.statements import COMPARISONS, INPUT, OPERATIONS, WHERE, TracingError
from fusedopt.storage import storage_of
from fusedopt.tracing import trace

SNAPSHOTS = Path(__file__).parent / "snapshots"


def rule_with(update=None, scalars=None, state=("m",)):
    """A rule named Mine, its functions as given; update(p, g, s, c) -> (p, m)."""

    class Base(Rule):
        def scalars(self, step, a):
            return scalars(self, step, a) if scalars else Values(lr=self.lr, zero=self.weight_decay, first=step == 1)

        def update(self, p, g, s, c):
            if update is None:
                return p - g, s
            new_p, m = update(p, g, s, c)
            return new_p, Values(m=m)

    @dataclasses.dataclass(frozen=True)
    class Mine(Base):
        lr: float = hyperparameter(0.5, "[0, inf)")
        betas: tuple[float, float] = hyperparameter((0.9, 0.99), "[0, 1)")
        weight_decay: float = hyperparameter(0.0, "[0, inf)")
        momentum: float = hyperparameter(0.9, "[0, 1)", switch=True)
        fast: bool = hyperparameter(False)

    Mine.state = state
    return Mine


# --- errors

REFUSED_IN_UPDATE = {
    # what a rule does: (how it does it, what the message says)
    "np.maximum": (lambda p, g, s, c: np.maximum(p, g), "np.maximum, .*Use fusedopt.rules.larger"),
    "np.minimum": (lambda p, g, s, c: np.minimum(p, 0.0), "np.minimum, .*Use fusedopt.rules.smaller"),
    "np.sign": (lambda p, g, s, c: np.sign(p), "np.sign, .*Use fusedopt.rules.sign"),
    "cube": (lambda p, g, s, c: p**3, r"uses \*\*, .*; multiply, as g"),
    "np.power": (lambda p, g, s, c: np.power(p, 0.5), "np.power, .*multiply"),
    "np.float_power": (
        lambda p, g, s, c: np.float_power(p, 2),
        "np.float_power, .*Use fusedopt.rules.power in scalars",
    ),
    "np.exp": (
        lambda p, g, s, c: np.exp(p),
        "np.exp, .* Use fusedopt.rules.exp2.* There are np.absolute, ",
    ),
    "remainder": (lambda p, g, s, c: p % 2, "np.remainder"),
    "floor division": (lambda p, g, s, c: p // 2, "np.floor_divide"),
    "matrix product": (lambda p, g, s, c: p @ g, "np.matmul"),
    "and": (lambda p, g, s, c: np.where((p > 0) & (g > 0), p, g), "np.bitwise_and"),
    "not": (lambda p, g, s, c: np.where(~(p > 0), p, g), "np.invert"),
    "np.logical_or": (lambda p, g, s, c: np.where(np.logical_or(p, g), p, g), "np.logical_or"),
    "np.isnan": (lambda p, g, s, c: np.where(np.isnan(p), p, g), "np.isnan"),
    "branch": (lambda p, g, s, c: p if p > 0 else g, "branches on a value; use np.where"),
    "branch on a scalar": (lambda p, g, s, c: p if c.lr else g, "branches on a value; use np.where"),
    "and of truths": (lambda p, g, s, c: np.where(p > 0 and g > 0, p, g), "branches on a value; use np.where"),
    "max": (lambda p, g, s, c: max(p, g), "branches on a value; use np.where"),
    "float": (lambda p, g, s, c: p * float(c.lr), "turns a value into a Python number"),
    "math.sqrt": (lambda p, g, s, c: p * math.sqrt(c.lr), "turns a value into a Python number"),
    "float64 of a value": (lambda p, g, s, c: p * np.float64(c.lr), "makes a NumPy array or number of a value"),
    "asarray": (lambda p, g, s, c: np.asarray(p), "makes a NumPy array or number of a value, as np.float64"),
    "int": (lambda p, g, s, c: p * int(c.lr), "turns a value into a Python number"),
    "sum": (lambda p, g, s, c: p / p.sum(), r"uses \.sum of a value; .* declared: reductions, terms and ratios"),
    "np.sum": (lambda p, g, s, c: p / np.sum(p), "np.sum; .* declared: reductions, terms and ratios"),
    "np.linalg.norm": (lambda p, g, s, c: p / np.linalg.norm(p), "np.linalg.norm; .* declared: reductions"),
    "np.clip": (lambda p, g, s, c: np.clip(p, -1, 1), "np.clip"),
    "shape": (lambda p, g, s, c: p * p.shape[0], r"uses \.shape of a value"),
    "astype": (lambda p, g, s, c: p.astype("float64"), r"uses \.astype of a value"),
    "np.zeros_like": (lambda p, g, s, c: np.zeros_like(p), "np.zeros_like"),
    "index": (lambda p, g, s, c: p[0], "iterates over or indexes a value"),
    "mask": (lambda p, g, s, c: p[p > 0], "iterates over or indexes a value"),
    "unpacking": (lambda p, g, s, c: max(*p), "iterates over or indexes a value"),
    "np.float64": (lambda p, g, s, c: p * np.float64(2), r"uses .*\(float64\) as a constant; use a Python number"),
    "np.float32": (lambda p, g, s, c: np.float32(2) * p, r"uses .*\(float32\) as a constant; use a Python number"),
    "array": (lambda p, g, s, c: p + np.ones(3), r"uses .*\(ndarray\) as a constant"),
    "complex": (lambda p, g, s, c: p * 1j, r"uses 1j \(complex\) as a constant"),
    "string": (lambda p, g, s, c: p + "1", r"uses '1' \(str\) as a constant"),
    "None": (lambda p, g, s, c: np.where(p > 0, p, None), r"uses None \(NoneType\) as a constant"),
    "out": (lambda p, g, s, c: np.add(p, g, out=p), "np.add with out=; operations are called plainly"),
    "where=": (lambda p, g, s, c: np.add(p, g, where=p > 0), "np.add with where="),
    "dtype=": (lambda p, g, s, c: np.add(p, g, dtype="float64"), "np.add with dtype="),
    "reduce": (lambda p, g, s, c: np.add.reduce(p), r"np\.add\.reduce; .* declared: reductions"),
    "outer": (lambda p, g, s, c: np.multiply.outer(p, g), r"np.multiply\.outer"),
    "truth in arithmetic": (lambda p, g, s, c: p * (g > 0), "calculates with a truth value; choose .* with np.where"),
    "negated truth": (lambda p, g, s, c: -(g > 0), "calculates with a truth value"),
    "where of truths": (lambda p, g, s, c: np.where(np.where(p > 0, p > 1, p > 2), p, g), "choose between numbers"),
    "truth as result": (lambda p, g, s, c: p > 0, "returns a truth value for p; it must return numbers"),
    "string as result": (lambda p, g, s, c: "p", "as a constant"),
    "where of one": (lambda p, g, s, c: np.where(p > 0), "np.where"),
    "power of arrays": (lambda p, g, s, c: p**g, r"uses \*\*, .*; multiply, as g"),
    "power of two": (lambda p, g, s, c: 2**p, r"uses \*\*, .*; multiply, as g"),
    "power in update": (lambda p, g, s, c: p * power(c.lr, c.zero), "power.*scalars"),
    "power of p": (lambda p, g, s, c: power(p, 3), "power.*scalars"),
    "missing constant": (lambda p, g, s, c: p * c.missing, r"reads [cs]\.missing; [cs] has "),
    "missing state": (lambda p, g, s, c: p * s.missing, r"reads [cs]\.missing; [cs] has "),
}


@pytest.mark.parametrize("what", REFUSED_IN_UPDATE)
def test_what_cannot_become_a_kernel_is_refused_with_a_cure(what):
    function, words = REFUSED_IN_UPDATE[what]
    rule = rule_with(lambda p, g, s, c: (function(p, g, s, c), s.m))()
    with pytest.raises(TracingError, match=f"^Mine.update.*{words}"):
        trace(rule)


def test_a_refusal_names_the_file_and_the_line_of_the_rule_that_did_it():
    def inner(p):
        return np.exp(p)

    line = inner.__code__.co_firstlineno + 1
    with pytest.raises(TracingError, match=rf" \(test_tracing\.py:{line}\)$"):
        trace(rule_with(lambda p, g, s, c: (inner(p), s.m))())


def test_a_rule_is_refused_when_the_optimizer_is_built():
    class Mine(fusedopt.Optimizer, rule=rule_with(lambda p, g, s, c: (np.exp(p), s.m))):
        pass

    parameter = fusedopt.Parameter(np.ones(3))
    with pytest.raises(TracingError, match=r"np\.exp"):
        Mine([parameter])
    assert parameter.owner is None


def _in_place(p, g, s, c):
    p += g
    return p, s.m


def _in_place_on_a_state(p, g, s, c):
    s.m *= 0.5
    return p, s.m


@pytest.mark.parametrize("update", [_in_place, _in_place_on_a_state])
def test_writing_in_place_is_refused(update):
    """On the arrays of the plain function it would change what the caller handed over."""
    with pytest.raises(TracingError, match=r"^Mine.update uses np\.\w+ with out=; operations are called plainly"):
        trace(rule_with(update)())


@pytest.mark.parametrize(
    "read",
    [
        lambda rule, p: p * rule.lr,
        lambda rule, p: rule.lr * p,
        lambda rule, p: p - rule.betas[0],
        lambda rule, p: np.where(rule.lr, p, 0.0),
        lambda rule, p: np.where(p > 0, rule.weight_decay, p),
        lambda rule, p: p * float(rule.lr),
        lambda rule, p: p if rule.lr else -p,
        lambda rule, p: p if rule.lr > 0 else -p,
        lambda rule, p: rule.lr,
        lambda rule, p: p * np.sqrt(rule.lr),
        lambda rule, p: p * rule.momentum,  # a switch tells whether it is on, and no more
    ],
)
def test_a_hyperparameter_is_not_read_in_update(read):
    mine = rule_with()
    mine.update = lambda self, p, g, s, c: (read(self, p), s)
    with pytest.raises(
        TracingError, match=r"reads the hyperparameter \S+; compute it in scalars and read it from c, or "
    ):
        trace(mine())


def test_a_switch_and_a_flag_are_read_in_update():
    mine = rule_with()
    mine.update = lambda self, p, g, s, c: ((p if self.momentum else g) * (2.0 if self.fast else 1.0), s)
    operations = [len(trace(mine(momentum=m, fast=f)).body.statements) for m in (0, 0.5) for f in (False, True)]
    assert len(operations) == 4
    both = Plain(mine(momentum=0.5, fast=True), np.ones(1))
    both.update(np.full(1, 7.0))
    assert both.parameter == 2


@pytest.mark.parametrize(
    ("new", "got"),
    [(Values(), "none"), (Values(m=0.0, n=0.0), "m, n"), (Values(n=0.0), "n"), (Values(p=0.0), "p")],
)
def test_update_returns_exactly_its_states(new, got):
    mine = rule_with()
    mine.update = lambda self, p, g, s, c: (p, new)
    words = rf"^Mine.update must return exactly its states \(m\) for Mine\(momentum=True, fast=False\), got {got}\.$"
    with pytest.raises(TracingError, match=words):
        trace(mine())


def test_a_state_that_a_flag_removes_is_not_returned():
    mine = rule_with(state=(State("m", when="fast"),))
    assert trace(mine(fast=True)).states == ("m",)
    mine.update = lambda self, p, g, s, c: (p, Values(m=p))
    with pytest.raises(TracingError, match=r"must return exactly its states \(none\) .* got m"):
        trace(mine(fast=False))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda h, step, a: Values(x=np.exp(h.lr)), "np.exp"),
        (lambda h, step, a: Values(x=h.betas[0] ** step), r"uses \*\*, .* form; write power\(base, step\) of "),
        (lambda h, step, a: Values(x=math.sqrt(h.lr)), "turns a value into a Python number"),
        (lambda h, step, a: Values(x=1.0 if step == 1 else 0.0), "branches on a value"),
        (lambda h, step, a: Values(x=1.0 if h.lr else 0.0), "branches on a value"),
        (lambda h, step, a: Values(x=max(h.lr, 1.0)), "branches on a value"),
        (lambda h, step, a: Values(x=np.float64(2) * h.lr), "as a constant"),
        (lambda h, step, a: {"x": h.lr}, r"must return Values\(name=...\), got dict"),
        (lambda h, step, a: None, r"must return Values\(name=...\), got NoneType"),
        (lambda h, step, a: Values(x=[h.lr]), r"\(list\) as a constant"),
    ],
)
def test_what_scalars_cannot_do_is_refused(function, words):
    with pytest.raises(TracingError, match=f"^Mine.scalars .*{words}"):
        trace(rule_with(lambda p, g, s, c: (p, s.m), function)())


def test_a_value_of_scalars_is_not_smuggled_into_update():
    kept = []

    def scalars(rule, step, a):
        kept.append(step)
        return Values()

    mine = rule_with(lambda p, g, s, c: (p * kept[-1], s.m), scalars)
    with pytest.raises(TracingError, match="uses a value of another function; hand it over in the scalars"):
        trace(mine())


def test_a_scalar_does_not_take_the_gradient_scales_name():
    with pytest.raises(TracingError, match="grad_scale"):
        trace(rule_with(lambda p, g, s, c: (p * c.grad_scale, s.m), lambda h, step, a: Values(grad_scale=h.lr))())


@pytest.mark.parametrize("as_scalar", [False, True])
@pytest.mark.parametrize("name", ["p", "g", "grad_scale", "count", "two words", ""])
def test_a_state_does_not_take_a_name_that_is_taken(name, as_scalar):
    mine = rule_with(state=() if as_scalar else (name,))
    mine.step_key = "count"
    mine.scalar_state = {name: 1.0} if as_scalar else {}
    with pytest.raises(TracingError, match=f"^Mine: a state is named '{name}', which is taken or no name; choose"):
        trace(mine())


@pytest.mark.parametrize(("state", "scalar_state"), [(("m", State("m", when="fast")), {}), (("m",), {"m": 1.0})])
def test_two_states_do_not_share_a_name(state, scalar_state):
    mine = rule_with(state=state)
    mine.scalar_state = scalar_state
    with pytest.raises(TracingError, match=r"^Mine: a state is named 'm', which is taken"):
        trace(mine())


@pytest.mark.parametrize("when", ["typo", "lr"])  # lr is a number, and no switch
def test_a_state_depends_on_a_flag_or_switch_that_there_is(when):
    words = f"^Mine: state 'm' depends on '{when}', no flag or switch of the rule"
    with pytest.raises(TracingError, match=words):
        trace(rule_with(state=(State("m", when=when),))())


# --- programs


def test_equal_statements_are_one():
    mine = rule_with(lambda p, g, s, c: (p - c.lr * (g * g), s.m + c.lr * (g * g)))
    operations = [s.operation for s in trace(mine()).body.statements if s.operation not in (INPUT, WHERE)]
    assert operations.count(np.multiply) == 2  # g * g, and c.lr times that


def test_zeros_of_either_sign_are_two_constants():
    mine = rule_with(lambda p, g, s, c: (np.where(g > 0, 0.0, np.where(g < 0, -0.0, p)), s.m))
    plain, traced = Plain(mine(), np.ones(2, np.float32)), fusedopt_step(mine, np.ones(2, np.float32), [1.0, -1.0])
    plain.update(np.array([1, -1], np.float32))
    assert_same_bits(traced, np.array([0.0, -0.0], np.float32))


def fusedopt_step(rule, values, gradient):
    class Mine(fusedopt.Optimizer, rule=rule):
        pass

    parameter = fusedopt.Parameter(values)
    optimizer = Mine([parameter])
    parameter.grad = np.asarray(gradient, values.dtype)
    optimizer.step()
    return parameter.data


def test_a_rule_is_traced_once_for_its_flags_and_not_for_its_numbers():
    assert trace(rules.Adam(lr=1.0)) is trace(rules.Adam(lr=2.0, betas=(0.5, 0.5)))
    assert trace(rules.SGD(momentum=0.1)) is trace(rules.SGD(momentum=0.9))
    different = [rules.SGD(), rules.SGD(momentum=0.1), rules.Adam(), rules.Adam(amsgrad=True), rules.AdamW()]
    assert len({id(trace(rule)) for rule in different}) == 5


@each_combination(own=True)
def test_a_trace_says_what_it_reads_and_returns(case, options):
    rule = case.rule(**options)
    traced = trace(rule)
    assert traced.states == rule.kept_states
    assert set(traced.body.results) == {"p", "g", *traced.states}
    assert set(traced.prologue.results) == {*traced.constants, *traced.advanced}
    for program in (traced.prologue, traced.body):
        for number, statement in enumerate(program.statements):
            assert all(operand < number for operand in statement.operands)
            assert statement.boolean == (statement.operation in COMPARISONS)
            if statement.operands:
                assert statement.uniform == all(program.statements[o].uniform for o in statement.operands)
    assert all(s.uniform for s in traced.prologue.statements)
    assert power not in [s.operation for s in traced.body.statements]
    assert all(f"{name}=" in traced.title for name, _ in rule.flags if name in rule.shown())


@pytest.mark.parametrize("case", [case for case in CASES if case.bytes_moved], ids=lambda case: case.name)
def test_a_step_moves_the_bytes_that_the_equations_need(case):
    """In float32: each stream that some result reads, and each result that is not what was there before."""
    body = trace(case.rule(**case.main)).body
    changed = [name for name in body.results if name != "g"]  # the gradient is stored where it is asked for alone
    needed, left = set(), [body.results[name] for name in changed]
    while left:
        number = left.pop()
        if number not in needed:
            needed.add(number)
            left += body.statements[number].operands
    inputs = {body.statements[number].value: number for number in needed if body.statements[number].operation is INPUT}
    loads = [name for name in inputs if not name.startswith("c.")]
    stores = [name for name in changed if body.results[name] != inputs.get(name if name == "p" else f"s.{name}")]
    assert 4 * (len(loads) + len(stores)) == case.bytes_moved


# --- the vocabulary beyond operators


SOME = np.array([-np.inf, -2.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3.0, np.inf, np.nan], np.float32)


@pytest.mark.parametrize(("ours", "numpys"), [(larger, np.maximum), (smaller, np.minimum)])
def test_larger_and_smaller_keep_nan(ours, numpys):
    a, b = (x.ravel() for x in np.meshgrid(SOME, SOME))
    np.testing.assert_array_equal(ours(a, b), numpys(a, b))
    assert ours(a, b).dtype == np.float32


def test_sign_is_zero_for_nan():
    np.testing.assert_array_equal(sign(SOME), [-1, -1, -1, 0, 0, 1, 1, 1, 1, 0])


def test_sign_keeps_the_type():
    assert sign(SOME).dtype == np.float32


@pytest.mark.parametrize("base", [0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0, 0.0, 1e-3])
def test_power_is_within_64_ulp_of_the_exact_power(base):
    """count - 1 factors are multiplied into it, each time with a rounding by half an ulp: 64 ulp at step 129. Later
    base^count matters less and less to 1 - base^count, which it is for.
    """
    unit = Decimal(2) ** -53
    with localcontext() as context:
        context.prec = 60
        for count in [*range(1, 130), 255, 1000, 4095, 10_000, 123_456]:
            exact = Decimal(base) ** count
            error = abs(Decimal(float(power(np.float64(base), np.float64(count)))) - exact)
            assert error <= Decimal("1.0001") * (count - 1) * unit * exact + Decimal("5e-324")
            assert count > 129 or error <= 128 * unit * exact + Decimal("5e-324")


@pytest.mark.parametrize("kind", [int, float, np.float64, np.int64])
def test_power_takes_whole_numbers_of_any_kind(kind):
    assert power(np.float64(3), kind(5)) == 243
    assert power(np.float64(3), kind(0)) == 1


def test_power_takes_a_python_exponent_in_a_rule():
    mine = rule_with(lambda p, g, s, c: (p * c.cube, s.m), lambda h, step, a: Values(cube=power(h.lr, 3)))
    assert fusedopt_step(mine, np.ones(1), [1.0]) == 0.125


@pytest.mark.parametrize("count", [0.5, -1, -2.0, np.float64(2.5)])
def test_power_takes_no_fraction_and_nothing_negative(count):
    with pytest.raises(ValueError, match=rf"^power takes a whole count from 0, got {count}\.$"):
        power(np.float64(3), count)
    with pytest.raises(TracingError, match=rf"^Mine.scalars uses power with a count of {count}; it must be whole"):
        trace(rule_with(scalars=lambda h, step, a: Values(x=power(h.lr, count)))())


def test_power_is_the_same_on_every_device(device):
    """Counters are loaded, so that one step sees many exponents."""
    counts = [0, 1, 2, 3, 4, 7, 8, 99, 100, 1023, 1024, 65535, 10**6 + 1, 2**31, 2**32 + 5, 2**52]
    mine = rule_with(lambda p, g, s, c: (c.power + 0 * g, s.m), lambda h, step, a: Values(power=power(h.lr, step)))

    class Mine(fusedopt.Optimizer, rule=mine):
        pass

    bases = [0.9, 0.999, 0.5, 1.0, 1.0000001, 0.0, 1 - 2**-53]
    groups = [{"params": [fusedopt.Parameter(device.array(np.ones(1))) for _ in counts], "lr": b} for b in bases]
    optimizer = Mine(groups)
    saved = optimizer.state_dict()
    entries = [{"step": float(count), "m": np.zeros(1)} for _ in bases for count in counts]
    optimizer.load_state_dict({**saved, "state": dict(enumerate(entries))})
    for parameter in optimizer.parameters():
        parameter.grad = device.array(np.zeros(1))
    optimizer.step()
    with np.errstate(all="ignore"):
        expected = [power(np.float64(base), count + 1) for base in bases for count in counts]
    actual = [device.host(parameter.data)[0] for parameter in optimizer.parameters()]
    assert_same_bits(np.array(actual), np.array(expected))


# --- on every device


@pytest.mark.parametrize("options", [{"grad_scale": 0.1}, {"grad_scale": 1e39}, {"found_inf": 1e-50}])
def test_a_scale_is_the_same_number_on_every_device(device, options):
    """A device keeps it in float32."""
    moved = []
    for array, host in ((np.array, np.array), (device.array, device.host)):
        parameter = fusedopt.Parameter(array(np.zeros(1)))
        parameter.grad = array(np.ones(1))
        fusedopt.SGD([parameter], lr=1.0).step(**options)
        moved.append(host(parameter.data))
    assert_same_bits(*moved)


NAMED = {ufunc.__name__: ufunc for ufunc in sorted(OPERATIONS, key=lambda ufunc: ufunc.__name__)}


@dataclasses.dataclass(frozen=True)
class EachOperation(Rule):
    """A state for each operation's result."""

    state = (*NAMED, "larger", "smaller", "where")

    def scalars(self, step, a):
        return Values(step=step)

    def update(self, p, g, s, c):
        new = Values(larger=larger(p, g), smaller=smaller(p, g), where=np.where(g, p, c.step))
        for name, ufunc in NAMED.items():
            result = ufunc(p, g) if ufunc.nin == 2 else ufunc(g)
            setattr(new, name, np.where(result, p, g) if ufunc in COMPARISONS else result)
        return p - c.step * g, new


class EachOptimizer(fusedopt.Optimizer, rule=EachOperation):
    pass


def test_a_rule_need_not_use_all_that_it_is_given(device):

    class Mine(fusedopt.Optimizer, rule=rule_with(lambda p, g, s, c: (p * 0.5, s.m), lambda h, step, a: Values())):
        pass

    parameter = fusedopt.Parameter(device.array(np.ones(3)))
    parameter.grad = device.array(np.ones(3))
    Mine([parameter]).step()
    assert (device.host(parameter.data) == 0.5).all()


def test_every_operation_has_the_same_bits_on_every_device(device):
    with np.errstate(over="ignore"):
        pairs = [[x.ravel().astype(dtype) for x in np.meshgrid(EXTREMES, EXTREMES)] for dtype in DTYPES]
    both = Both(EachOptimizer, ({}, [parameter for parameter, _ in pairs]), array=device.array)
    for _ in range(2):
        both.step([gradient for _, gradient in pairs])
        both.compare(device.host)


# --- CUDA text


@pytest.mark.parametrize(
    ("name", "rule", "dtypes"),
    [
        ("sgd", rules.SGD(momentum=0.9), ["float32"]),
        ("adam", rules.Adam(), ["float32", "float64", "bfloat16"]),
    ],
)
def test_the_cuda_text_is_the_one_that_was_read(name, rule, dtypes):
    """A change of the text is a change to be seen in a review: FUSEDOPT_REWRITE_SNAPSHOTS=1 writes it down."""
    variants = [Variant(trace(rule), storage_of(rule, dtype, dtype, 1)) for dtype in dtypes]
    text = rule_text(variants, rule.number_names(), len(rule.scalar_state), len(rule.all_states()))
    path = SNAPSHOTS / f"{name}.cuh"
    if os.environ.get("FUSEDOPT_REWRITE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def body_text(rule):
    """The lines of `update` in the kernel's text."""
    text = rule_text(
        [Variant(trace(rule), storage_of(rule, "float32", "float32", 1))],
        rule.number_names(),
        0,
        len(rule.all_states()),
    )
    return text[text.index("void update(") : text.index("#define")]


def test_what_is_long_is_computed_in_the_branch_that_a_uniform_condition_takes():
    """Outside of them, both of FTRL's root and its real power would be computed for every element."""
    text = body_text(rules.FTRL())
    found = [text.count(what) for what in ("if (c.is_root) {", "} else {", "square_root(", "exponent(")]
    assert found == [2, 4, 2, 2]  # in each real power there is one more branch: of an exponent of zero
    outside = re.sub(r"if \(.*?\n    \}\n", "", text, flags=re.DOTALL)
    assert "square_root(" not in outside
    assert "exponent(" not in outside
    assert "if (" not in body_text(rules.AdamW(weight_decay=0.1))  # a jump for one product would cost more


def test_what_is_read_outside_of_a_branch_too_is_computed_before_it():
    def update(p, g, s, c):
        shared = log2(g)
        return np.where(c.zero != 0, exp2(shared), exp2(-p)) + shared, s.m

    text = body_text(rule_with(update)())
    (branches,) = re.findall(r"if \(.*?\n    \}\n", text, flags=re.DOTALL)
    assert text.count("scaled(") == 3  # of the logarithm, and of each exponential
    assert branches.count("scaled(") == 2


@pytest.mark.parametrize("constant", [math.inf, -math.inf, math.nan, 1e300, 5e-324, -0.0, 10**20])
def test_constants_reach_the_kernel_as_they_are(constant, device):
    mine = rule_with(lambda p, g, s, c: (np.where(g > 0, constant, p), s.m))

    class Mine(fusedopt.Optimizer, rule=mine):
        pass

    parameter = fusedopt.Parameter(device.array(np.ones(2)))
    parameter.grad = device.array(np.array([1.0, -1.0]))
    Mine([parameter]).step()
    assert_same_bits(device.host(parameter.data), np.array([float(constant), 1.0]))


def test_a_rule_that_is_not_the_same_twice_is_refused():
    numbers = iter(range(100))
    with pytest.raises(TracingError, match=r"Mine is not the same twice; .*draw random numbers nor count its calls"):
        trace(rule_with(lambda p, g, s, c: (p * float(next(numbers)), s.m))())


def test_writing_into_a_value_names_the_cure():
    def update(p, g, s, c):
        p[...] = g
        return p, s.m

    with pytest.raises(TracingError, match=r"^Mine\.update writes into a value; return the new one instead"):
        trace(rule_with(update)())
