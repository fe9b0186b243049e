"""`check_rule`: the library's rules pass, and each planted mistake is told with its name and its cure."""

import dataclasses
import re
from dataclasses import dataclass

import numpy as np
import pytest

import fusedopt
from cases import each_case
from fusedopt import testing
from fusedopt.backends import backend_of
from fusedopt.backends.numpy import NumpyPlan
from fusedopt.rules import Rule, State, Values, hyperparameter, power, sign
from fusedopt.statements import TracingError
from fusedopt.testing import CHECKS, check_rule, machines, subject
from step_checks import NAdam

WITHOUT_NUMBA = ("numba bits",)  # it compiles for seconds


@each_case
def test_the_librarys_rules_pass(case):
    report = check_rule(case.optimizer, results=("ax",) if case.name == "ASGD" else (), without=WITHOUT_NUMBA)
    assert report.passed
    left = {check.name for check in report.checks if check.outcome == "skipped"}
    assert left <= {"numba bits", "cuda bits"}


def test_every_backend_that_is_here_is_compared(monkeypatch):
    emulated = pytest.importorskip("emulated")
    monkeypatch.setattr(machines.cuda, "problem", lambda: None)
    monkeypatch.setattr(machines, "_current_gpu", lambda: backend_of(emulated.array(np.zeros(1))))
    monkeypatch.setattr(machines.cuda, "module", lambda: np)
    report = check_rule(fusedopt.Lion)
    for name in ("numpy bits", "numba bits", "cuda bits"):
        if name != "numba bits" or machines.numba_problem() is None:
            assert report[name].detail == "equal to the plain function: 4 variants, 4 dtypes, extreme values"


@dataclass(frozen=True)
class Good(Rule):
    """Momentum and a trace of squares: a rule without mistakes, from which each wrong one departs by one line."""

    lr: float = hyperparameter(0.1, "[0, inf)", "learning rate")
    beta: float = hyperparameter(0.9, "[0, 1)", "of the average")
    decay: float = hyperparameter(0.0, "[0, inf)", "decoupled decay")
    ascend: bool = hyperparameter(False, doc="add instead of subtract")

    state = ("exp_avg",)

    def scalars(self, step, a):
        return Values(lr=self.lr, beta=self.beta, decay=self.lr * self.decay)

    def update(self, p, g, s, c):
        if self.ascend:
            g = -g
        exp_avg = c.beta * s.exp_avg + g
        return np.where(c.decay != 0, p - c.decay * p, p) - c.lr * exp_avg, Values(exp_avg=exp_avg)


def test_a_rule_without_mistakes_passes_and_prints_what_was_seen():
    report = check_rule(Good, lr=0.01, without=WITHOUT_NUMBA)
    assert report.passed
    assert str(report).startswith(
        "Good(lr=0.01, decay=0.1)\n"
        "(decay: 0 where nobody gives it, which would hide a term; checked with another value.)\n"
        " passed  declaration "
    )
    assert str(report).endswith("\nNo check failed.")
    assert (
        "20 bytes a float32 parameter: reads p, g, exp_avg; writes p, exp_avg; keeps 4 beside p and g; 1 launch"
        in str(report)
    )


def wrong(**changed):
    """Good, but for some of its attributes, its class's name and its own hyperparameters."""
    return dataclass(frozen=True)(type("Wrong", (Good,), {"__module__": __name__, **changed}))


def update(function):
    """Good with a step of (p, g, exp_avg, c) -> (new p, new exp_avg)."""

    def whole(self, p, g, s, c):
        p, exp_avg = function(p, -g if self.ascend else g, s.exp_avg, c)
        return p - c.decay * p, Values(exp_avg=exp_avg)

    return wrong(update=whole)


def moved(p, g, m, c):
    m = c.beta * m + g
    return p - c.lr * m, m


def uphill(p, g, m, c):
    m = c.beta * m + g
    return p + c.lr * m, m


@dataclass(frozen=True)
class MaximizeIgnored(Good):
    maximize: bool = hyperparameter(False, "raise the objective; it is forgotten here")


def misspelt(p):
    return np_sqrt(p)  # noqa: F821


def in_place(p, g, m, c):
    p -= c.lr * g
    return p, c.beta * m + g


def of_two_kinds(p, g, m, c):
    return moved(p, g * 2 if isinstance(g, np.ndarray) else g, m, c)


def state_ignored(p, g, m, c):
    return p - c.lr * g, c.beta * m + g


def gradient_ignored(p, g, m, c):
    return moved(p, 0.1 * p, m, c)


def cancelling(p, g, m, c):
    m = c.beta * m + ((g + 1e6) - 1e6)
    return p - c.lr * m, m


def rooted(p, g, m, c):
    m = c.beta * m + np.sqrt(g)
    return p - c.lr * m, m


def without_nan(p, g, m, c):
    return moved(p, np.where(g == g, g, 0.0), m, c)


def two_states(self, p, g, s, c):
    p, m = moved(p, -g if self.ascend else g, s.exp_avg, c)
    return p - c.decay * p, Values(exp_avg=m, other=s.other)


def one_state_dropped(self, p, g, s, c):
    p, _ = moved(p, g, s.exp_avg, c)
    return p, Values()


def python_root(self, step, a):
    return Values(lr=float(self.lr), beta=self.beta, decay=self.decay)


def counting(self, step, a):
    values = Good.scalars(self, step, a)
    values.lr = values.lr * (1 - power(0.5, step))
    return values


@dataclass(frozen=True)
class Unused(Good):
    eps: float = hyperparameter(1e-8, "[0, inf)", "never read")


@dataclass(frozen=True)
class UnusedFlag(Good):
    nesterov: bool = hyperparameter(False, doc="never asked")


class NotDecorated(Good):
    momentum: float = hyperparameter(0.5, "[0, 1)")


@dataclass(frozen=True)
class UnusedOfTwo(Good):
    betas: tuple[float, float] = hyperparameter((0.9, 0.99), "[0, 1)", "the second is never read")

    def scalars(self, step, a):
        return Values(**vars(Good.scalars(self, step, a)) | {"beta": self.betas[0] * self.beta})


@dataclass(frozen=True)
class MaximizeOfAPart(Good):
    maximize: bool = hyperparameter(False, "raise the objective; it negates the average's share alone")

    def update(self, p, g, s, c):
        p, new = Good.update(self, p, -g if self.maximize else g, s, c)
        return p - 0.5 * c.lr * g, new


def of_zero_by_zero(p, g, m, c):
    m = c.beta * m + g
    return p - c.lr * m / np.absolute(m), m


def by_the_root_of_zero(p, g, m, c):
    m = c.beta * m + g * g
    return p - c.lr * g / np.sqrt(m), m


def imprecise_result(self, p, g, s, c):
    p, new = Good.update(self, p, g, s, c)
    return p, Values(slow=(p + 1e6) - 1e6, **vars(new))


def by_a_small_difference(self, p, g, s, c):
    """Two averages, of which the difference decides: each is right to some per cent in 8 bits."""
    slow, fast = 0.999 * s.slow + 0.001 * (g + 30), 0.99 * s.fast + 0.001 * (g + 30)
    return p - 100 * c.lr * c.beta * (slow - fast) - c.decay * p, Values(slow=slow, fast=fast)


def with_state_named(name):
    """Good whose state has another name."""

    def renamed(self, p, g, s, c):
        p, new = Good.update(self, p, g, Values(exp_avg=getattr(s, name)), c)
        return p, Values(**{name: new.exp_avg})

    return wrong(state=(name,), update=renamed)


PLANTED = [
    (NotDecorated, "declaration", "rule NotDecorated must be decorated with @dataclass(frozen=True)."),
    (
        update(in_place),
        "tracing",
        "uses np.subtract with out=; operations are called plainly, and write nothing: p = p",
    ),
    (
        update(lambda p, g, m, c: moved(p, np.maximum(g, 0), m, c)),
        "tracing",
        "np.maximum, which has no kernel form. Use",
    ),
    (update(lambda p, g, m, c: moved(p, g if g > 0 else p, m, c)), "tracing", "branches on a value; use np.where"),
    (update(lambda p, g, m, c: moved(p, g * np.float64(2), m, c)), "tracing", "as a constant; use a Python number"),
    (update(lambda p, g, m, c: moved(p, np.exp(g), m, c)), "tracing", "Use fusedopt.rules.exp2(x * 1.44"),
    (wrong(scalars=python_root), "tracing", "turns a value into a Python number; use NumPy's"),
    (wrong(update=one_state_dropped), "tracing", "must return exactly its states (exp_avg)"),
    (
        wrong(state=("exp_avg", "other"), update=two_states),
        "states",
        "'other' of Wrong never changes: update",
    ),
    (update(state_ignored), "states", "state 'exp_avg' of Wrong changes nothing: the parameter does not depend on it"),
    (wrong(scalar_state={"mu": 1.0}), "states", "state 'mu' of Wrong never changes: scalars returns it as it was"),
    (
        Unused,
        "hyperparameters",
        "hyperparameter 'eps' of Unused changes nothing in 12 steps, whatever its",
    ),
    (
        UnusedOfTwo,
        "hyperparameters",
        "hyperparameter 'betas[1]' of UnusedOfTwo changes nothing in 12 steps, whatever its value; use self.betas[1]",
    ),
    (MaximizeOfAPart, "maximize", "takes other steps than with maximize=False and the negative gradient: negate g"),
    (update(of_zero_by_zero), "zero gradient", "of a parameter whose first gradient is zero, as that of a word"),
    (update(by_the_root_of_zero), "zero gradient", "look for 0 / 0. Add to what divides, as np.sqrt(v) + c.eps"),
    (with_state_named("class"), "tracing", "a state is named 'class'; a name is no keyword and begins with no"),
    (with_state_named("_x"), "tracing", "a state is named '_x'; a name is no keyword and begins with no underscore"),
    (UnusedFlag, "hyperparameters", "flag 'nesterov' of UnusedFlag changes nothing in 12 steps"),
    (update(cancelling), "precision", "units in the last place from float64 after 5 steps, allowed are 80: move what"),
    (update(rooted), "precision", "makes infinity or NaN of ordinary numbers in float64 within 5 steps: look for"),
    (update(without_nan), "nan", "loses a NaN gradient: neither the parameter nor a state is NaN after it"),
    (update(of_two_kinds), "numpy bits", "in float32 has other bits by NumPy than as a plain function after 3 steps"),
    (update(gradient_ignored), "cost", "never reads the gradient; use g in update."),
    (update(uphill), "descends", "goes the wrong way: 11 steps along the gradient of |p|^2 / 2 take |p| from "),
    (MaximizeIgnored, "descends", "and it should get larger. Look for"),
    (
        wrong(state=("slow", "fast"), update=by_a_small_difference),
        "storages",
        "of 'slow' or 'fast' small differences decide; declare State(name, codes=None), for which int8 is refused.",
    ),
    (
        wrong(state=(State("exp_avg", codes="unsigned"),)),
        "storages",
        "is declared with codes='unsigned' and goes below zero; declare State('exp_avg', codes='signed').",
    ),
    (
        update(lambda p, g, m, c: misspelt(p)),
        "tracing",
        "NameError: name 'np_sqrt' is not defined (test_check_rule.py:",
    ),
]


@pytest.mark.parametrize(("rule", "check", "message"), PLANTED, ids=lambda it: it if isinstance(it, str) else "")
def test_a_planted_mistake_is_told_with_its_cure(rule, check, message):
    report = check_rule(rule, raise_on_failure=False, without=WITHOUT_NUMBA)
    assert check in [failure.name for failure in report.failures]
    assert message in report[check].detail
    assert not report.passed


def test_a_report_is_its_checks_and_tells_skips_once_and_failures_again_at_the_end():
    report = check_rule(update(in_place), raise_on_failure=False)
    assert [check.name for check in report] == list(CHECKS)
    assert len(report) == len(CHECKS)
    with pytest.raises(KeyError, match="the report has no check 'speed'; it has declaration, tracing, dtype"):
        report["speed"]
    lines = str(report).splitlines()
    assert [line[:8] for line in lines[1:4]] == [" passed ", " FAILED ", "skipped "]
    assert lines[3].startswith(f"skipped  {len(CHECKS) - 2} checks        tracing failed: dtype, states,")
    assert lines[4:] == [f"1 of {len(CHECKS)} checks failed:", f"tracing: {report['tracing'].detail}"]


def test_without_a_gpu_the_report_says_that_nothing_has_to_be_done(monkeypatch):
    monkeypatch.setattr(machines.cuda, "problem", lambda: "CUDA finds no usable GPU (x); install NVIDIA's driver.")
    outcome = testing._outcome("cuda bits", CHECKS["cuda bits"], subject.Subject(Good, {}))
    assert outcome.detail.startswith("CUDA finds no usable GPU (x). Without a GPU nothing has to be done; with one,")
    assert "install" not in outcome.detail


def test_a_rule_whose_default_keeps_the_parameter_at_rest_descends_with_another_lr():
    check_rule(Good, lr=0.0, without=[name for name in CHECKS if name != "descends"])


def test_the_first_failure_is_raised():
    with pytest.raises(
        AssertionError, match=r"^Unused\(decay=0\.1\) fails the check 'hyperparameters': hyperparameter 'eps'"
    ):
        check_rule(Unused, without=WITHOUT_NUMBA)


def test_after_a_mistake_in_tracing_nothing_else_is_tried():
    report = check_rule(update(in_place), raise_on_failure=False)
    assert {check.detail for check in report.checks[2:]} == {"tracing failed"}


def test_a_right_rule_with_a_counter_and_another_with_scalar_state_pass():
    check_rule(wrong(scalars=counting), without=WITHOUT_NUMBA)
    report = check_rule(NAdam, without=WITHOUT_NUMBA, raise_on_failure=False)
    assert [failure.name for failure in report.failures] == ["states"]
    assert "state 'calls' of NAdam changes nothing" in report["states"].detail
    assert "'untouched' of NAdam never changes" in report["states"].detail


@dataclass(frozen=True)
class Averaging(Good):
    """With a state that is a result."""

    state = ("exp_avg", State("average"))

    def update(self, p, g, s, c):
        p, new = Good.update(self, p, g, s, c)
        return p, Values(average=0.5 * s.average + 0.5 * p, **vars(new))


def test_a_state_that_is_a_result_is_named_so():
    assert "If it is a result" in check_rule(Averaging, raise_on_failure=False, without=WITHOUT_NUMBA)["states"].detail
    check_rule(Averaging, results=("average",), without=WITHOUT_NUMBA)


def test_the_precision_of_a_state_that_is_a_result_counts_too():
    rule = wrong(state=("exp_avg", "slow"), update=imprecise_result)
    report = check_rule(rule, results=("slow",), raise_on_failure=False, without=WITHOUT_NUMBA)
    assert [failure.name for failure in report.failures] == ["precision"]
    assert report["precision"].detail.startswith("'slow' of Wrong(decay=0.1) in float32 is ")


@pytest.mark.parametrize("name", ["class", "_x"])
def test_a_state_that_is_no_field_of_a_result_is_refused_by_a_call_too(name):
    with pytest.raises(TracingError, match=f"Wrong: a state is named '{name}'; a name is no keyword"):
        fusedopt.functional.apply(with_state_named(name)(), np.ones(2), np.ones(2), step=1)


@dataclass(frozen=True)
class Narrow(Rule):
    """Right, with ranges that hold few of the numbers which others have, and with a counter of outliers."""

    lr: float = hyperparameter(1e-3, "[1e-3, 1]", "learning rate")
    beta: float = hyperparameter(0.999, "[0.99, 1)", "of the average")
    t0: float = hyperparameter(1e5, "[1e4, inf)", "steps in which lr halves")
    limit: float = hyperparameter(100.0, "[10, inf)", "of what is no outlier")

    state = ("exp_avg", "outliers")

    def scalars(self, step, a):
        return Values(lr=self.lr / (1 + step / self.t0), beta=self.beta, rest=1 - self.beta, limit=self.limit)

    def update(self, p, g, s, c):
        out = np.absolute(g) > c.limit
        m = np.where(out, s.exp_avg, c.beta * s.exp_avg + c.rest * g)
        return p - c.lr * m, Values(exp_avg=m, outliers=np.where(out, s.outliers + 1, s.outliers))


def test_a_right_rule_of_narrow_ranges_and_rare_events_passes():
    report = check_rule(Narrow, results=("outliers",), without=WITHOUT_NUMBA)
    assert report["hyperparameters"].detail == "lr, beta, t0, limit: each counts"
    assert report["schedule"].outcome == "passed"


@dataclass(frozen=True)
class Restarts(Good):
    period: float = hyperparameter(50.0, "[20, 1000]", "steps before lr falls")

    def scalars(self, step, a):
        values = Good.scalars(self, step, a)
        values.lr = np.where(step > self.period, 0.1 * values.lr, values.lr)
        return values


@dataclass(frozen=True)
class Fixed(Good):
    rate: float = hyperparameter(0.25, "[0.25, 0.25]", "it has one value alone")


def test_a_hyperparameter_that_may_count_later_or_has_one_value_alone_is_a_note():
    for rule, words in ((Restarts, "'period' of Restarts changes nothing in 12 steps"), (Fixed, "no other value")):
        check = check_rule(rule, without=WITHOUT_NUMBA)["hyperparameters"]
        assert (check.outcome, words in check.detail) == ("note", True)


@dataclass(frozen=True)
class TwoRates(Good):
    lr: tuple[float, float] = hyperparameter((1e-3, 1e-2), "[0, inf)", "learning rates of both parts")

    def scalars(self, step, a):
        return Values(lr=self.lr[0], beta=self.beta, decay=self.lr[1] * self.decay)


def test_a_rule_with_several_learning_rates_has_none_to_schedule():
    assert check_rule(TwoRates, without=WITHOUT_NUMBA)["schedule"].detail == "lr is no single number"


def test_a_zero_gradient_that_the_callers_numbers_make_nan_is_a_note():
    check = check_rule(fusedopt.Adam, eps=0.0, without=WITHOUT_NUMBA)["zero gradient"]
    assert check.outcome == "note"
    assert re.match(r"Adam\(eps=0\.0\) makes NaN or infinity of a .* gradient is zero; Adam\(\) does not", check.detail)


@dataclass(frozen=True)
class Late(Good):
    """A state that a number keeps at rest for a long time, and one that is used from the sixth step on."""

    begin: float = hyperparameter(1e6, "[0, inf)", "the step after which the average begins")
    adapt: bool = hyperparameter(False, "what counts without decay alone")
    decay: float = hyperparameter(0.5, "[0, inf)", "decoupled decay")
    state = ("exp_avg", "late", "average")

    def scalars(self, step, a):
        return Values(**vars(Good.scalars(self, step, a)), begun=step > self.begin, late=step > 6)

    def update(self, p, g, s, c):
        p, new = Good.update(self, p, g, s, c)
        p = np.where(c.late, p - 0.1 * s.late, p)
        p = np.where(c.decay == 0, p - 1.0, p) if self.adapt else p
        return p, Values(late=0.5 * s.late + g, average=np.where(c.begun, p, s.average), **vars(new))


def test_what_begins_late_counts_too():
    assert check_rule(Late, results=("average",), without=WITHOUT_NUMBA).passed


@dataclass(frozen=True)
class SignDescent(Rule):
    """It forgets NaN, as a sign does; and 0 * inf is NaN in it."""

    lr: float = hyperparameter(0.1, "[0, inf)")
    decay: float = hyperparameter(0.0, "[0, inf)")

    def scalars(self, step, a):
        return Values(lr=self.lr, decay=self.decay)

    def update(self, p, g, s, c):
        return p - c.decay * p - c.lr * sign(g), Values()


def test_what_is_meant_is_left_out_by_name_and_what_may_be_is_a_note():
    report = check_rule(SignDescent, without=("nan", *WITHOUT_NUMBA))
    assert report["nan"].detail == "left out by without="
    assert report["infinity"].outcome == "note"
    assert "becomes NaN. If it is by the term of decay, which is 0: 0 * inf is NaN" in report["infinity"].detail


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"without": ("NaN",)}, ValueError, "check_rule: there is no check 'NaN'; there are declaration, tracing, "),
        ({"results": ("avg",)}, ValueError, "check_rule: Good has no state 'avg'; it has exp_avg."),
        ({"betta": 0.1}, TypeError, "check_rule: Good has no option 'betta'; did you mean 'beta'?"),
        ({"lr": -1.0}, ValueError, "Good: lr must be in [0, inf), got -1.0."),
    ],
)
def test_a_wrong_call_is_an_error_and_no_mistake_of_the_rule(words, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        check_rule(Good, raise_on_failure=False, **words)


def test_a_procedure_is_no_rule_to_be_checked():
    with pytest.raises(TypeError, match="check_rule: LBFGS is a procedure, and no rule that becomes one kernel"):
        check_rule(fusedopt.LBFGS)


def test_flags_that_go_only_with_some_numbers_are_combined_with_those():
    sgd = subject.Subject(fusedopt.rules.SGD, {})
    flags = [dict(rule.flags) for rule in sgd.variants]
    assert [flag for flag in ("momentum", "nesterov", "maximize") if not any(f[flag] for f in flags)] == []


@pytest.mark.parametrize("name", ["state dict", "copies", "no gradient", "torch", "elements"])
def test_a_broken_library_is_noticed(name, monkeypatch):
    """What no rule can do wrong: each check fails where the library does."""
    execute = NumpyPlan._execute
    last = dataclasses.make_dataclass("Last", [("calls", int, 0)])()

    def wrong_later(plan, begun, write_back):
        execute(plan, begun, write_back)
        last.calls += 1
        for job in plan.jobs:
            job.memory[0][:1] += 1e-3 * last.calls

    if name == "elements":
        monkeypatch.setattr(testing.mathematics.Plain, "update", spreading(testing.mathematics.Plain.update))
    else:
        monkeypatch.setattr(NumpyPlan, "_execute", wrong_later)
    outcome = testing._outcome(name, CHECKS[name], subject.Subject(Good, {}))
    assert outcome.outcome == "FAILED", outcome


def spreading(update):
    def spread(plain, gradient):
        update(plain, gradient)
        if not np.isfinite(gradient).all():
            plain.parameter += 1

    return spread
