"""Schedules: known vectors, torch's schedulers run beside them, composition, and what is refused."""

import copy
import dataclasses
import math
import pickle
import sys
import threading
import time

import numpy as np
import pytest
import torch

from fusedopt import schedules
from fusedopt.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    InverseSqrt,
    Lambda,
    Linear,
    LinearWarmup,
    Multiplicative,
    MultiStep,
    OneCycle,
    Piecewise,
    Polynomial,
    Step,
    Table,
    WarmupStableDecay,
    mindspore,
)

torch_schedules = torch.optim.lr_scheduler


def third(step):
    return 1 / (1 + step / 3)


def values(schedule, count):
    found = [schedule(step) for step in range(count)]
    assert all(type(value) is float for value in found)
    return found


def vector(text):
    return [float(number) for number in text.split()]


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-17)


# --- known vectors

VECTORS = {
    "constant": (Constant(1, 1 / 3, 4), [1 / 3] * 4 + [1] * 3),
    "constant alone": (Constant(0.5), [0.5] * 3),
    "linear": (Linear(1 / 3, 1, 5), [1 / 3, 7 / 15, 0.6, 11 / 15, 13 / 15, 1, 1, 1]),
    "linear warmup": (LinearWarmup(1, 4), [0.25, 0.5, 0.75, 1, 1]),
    "step": (Step(1, 3, 0.1), [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),
    "multistep": (MultiStep(1, [2, 5], 0.1), [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),
    "piecewise": (Piecewise([1, 3], [0.1, 0.05, 0.01]), [0.1, 0.05, 0.05, 0.01, 0.01]),
    "exponential": (Exponential(1, 0.9), [1, 0.9, 0.81, 0.729, 0.6561, 0.59049]),
    "polynomial": (Polynomial(1, 5, 2), [1, 0.64, 0.36, 0.16, 0.04, 0, 0, 0]),
    "polynomial to an end": (Polynomial(1, 4, 1, 0.2), [1, 0.8, 0.6, 0.4, 0.2, 0.2]),
    "wsd": (WarmupStableDecay(1, 2, 3, 4), [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
    "wsd to a minimum": (WarmupStableDecay(1, 0, 1, 2, 0.2), [1, 0.6, 0.2, 0.2]),
    "wsd by square root": (
        WarmupStableDecay(1, 0, 1, 4, shape="sqrt"),
        [1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0, 0],
    ),
    "inverse sqrt": (InverseSqrt(1, 4), [0.25, 0.5, 0.75, 1, math.sqrt(0.8), math.sqrt(4 / 6)]),
    "cyclic": (Cyclic(0.1, 1, 4, 2), [0.1, 0.325, 0.55, 0.775, 1, 0.55, 0.1, 0.325]),
    "lambda": (Lambda(third, 2), [2, 1.5, 1.2, 1]),
    "multiplicative": (Multiplicative(third, 2), [2, 1.5, 0.9, 0.45]),
    "table": (Table([0.3, 0.2, 0.1]), [0.3, 0.2, 0.1]),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_schedule_has_its_known_values(name):
    schedule, expected = VECTORS[name]
    same(values(schedule, len(expected)), expected)


# Written with 13 significant digits, so compared with as many.
ROUNDED = {
    "cosine": (
        Cosine(1, 8, 0.1),
        vector(
            "1 0.9657457896301 0.8681980515339 0.7222075445643 0.55 0.3777924554357 0.2318019484661 0.1342542103699 "
            "0.1 0.1"
        ),
    ),
    "cosine that rises again": (Cosine(1, 8, 0.1, clamp=False), [1, *[None] * 7, 0.1, 0.1342542103699]),
    "restarts": (
        CosineRestarts(1, 4, 2, 0.1),
        vector(
            "1 0.8681980515339 0.55 0.2318019484661 1 0.9657457896301 0.8681980515339 0.7222075445643 0.55 "
            "0.3777924554357 0.2318019484661 0.1342542103699 1 0.9913533761815"
        ),
    ),
    "one cycle": (
        OneCycle(1, 10),
        vector(
            "0.04 0.52 1 0.9504846320135 0.8117456539498 0.6112620219363 0.3887419780637 0.1882583460502 "
            "0.04951936798653 4e-06 4e-06"
        ),
    ),
    "one cycle, straight": (
        OneCycle(1, 10, anneal="linear"),
        vector(
            "0.04 0.52 1 0.8571434285714 0.7142868571429 0.5714302857143 0.4285737142857 0.2857171428571 "
            "0.1428605714286 4.000000000004e-06"
        ),
    ),
    "one cycle, three phases": (
        OneCycle(1, 10, three_phase=True),
        [0.04, 0.52, 1, 0.52, 0.04, 0.03618072185351, 0.02618172185351, 0.01382227814649, 0.00382327814649, 4e-06],
    ),
    "one cycle's momentum": (
        OneCycle(1, 10).momentum(0.85, 0.95),
        vector(
            "0.95 0.9 0.85 0.8549515566049 0.8688255099071 0.8888739533022 0.9111260466978 0.9311744900929 "
            "0.9450484433951 0.95"
        ),
    ),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_a_schedule_has_its_known_rounded_values(name):
    schedule, expected = ROUNDED[name]
    for step, value in enumerate(expected):
        if value is not None:
            assert schedule(step) == pytest.approx(value, rel=5e-13)


# --- beside torch's

STEPS = 60
PAIRS = {
    "constant": (Constant(0.1, 1 / 3, 5), lambda o: torch_schedules.ConstantLR(o)),
    "linear": (Linear(0.1 / 3, 0.1, 5), lambda o: torch_schedules.LinearLR(o)),
    "linear down": (Linear(0.1, 0.02, 50), lambda o: torch_schedules.LinearLR(o, 1, 0.2, 50)),
    "step": (Step(0.1, 7, 0.5), lambda o: torch_schedules.StepLR(o, 7, 0.5)),
    "multistep": (MultiStep(0.1, [5, 20, 20, 40], 0.5), lambda o: torch_schedules.MultiStepLR(o, [5, 20, 20, 40], 0.5)),
    "exponential": (Exponential(0.1, 0.9), lambda o: torch_schedules.ExponentialLR(o, 0.9)),
    "polynomial": (Polynomial(0.1, 40, 2), lambda o: torch_schedules.PolynomialLR(o, 40, 2)),
    "cosine": (
        Cosine(0.1, 50, 0.01, clamp=False),
        lambda o: torch_schedules.CosineAnnealingLR(o, 50, 0.01),
    ),
    "restarts": (
        CosineRestarts(0.1, 5, 2, 0.01),
        lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 5, 2, 0.01),
    ),
    "equal restarts": (CosineRestarts(0.1, 7), lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 7)),
    "one cycle": (OneCycle(0.1, STEPS), lambda o: torch_schedules.OneCycleLR(o, 0.1, STEPS)),
    "one cycle with other ends": (
        OneCycle(0.1, STEPS, initial=0.1 / 5, final=0.1 / 5 / 20, rise=0.2, anneal="linear", three_phase=True),
        lambda o: torch_schedules.OneCycleLR(
            o, 0.1, STEPS, pct_start=0.2, anneal_strategy="linear", div_factor=5, final_div_factor=20, three_phase=True
        ),
    ),
    "cyclic": (Cyclic(0.01, 0.1, 4, 7), lambda o: torch_schedules.CyclicLR(o, 0.01, 0.1, 4, 7)),
    "triangular2": (
        Cyclic(0.01, 0.1, 5, mode="triangular2"),
        lambda o: torch_schedules.CyclicLR(o, 0.01, 0.1, 5, mode="triangular2"),
    ),
    "exp_range": (
        Cyclic(0.01, 0.1, 5, mode="exp_range", gamma=0.97),
        lambda o: torch_schedules.CyclicLR(o, 0.01, 0.1, 5, mode="exp_range", gamma=0.97),
    ),
    "lambda": (Lambda(third, 0.1), lambda o: torch_schedules.LambdaLR(o, third)),
    "multiplicative": (Multiplicative(third, 0.1), lambda o: torch_schedules.MultiplicativeLR(o, third)),
    "joined": (
        Linear(0.01, 0.1, 10).then(Cosine(0.1, 50), at=10).then(Exponential(0.1, 0.9), at=45),
        lambda o: torch_schedules.SequentialLR(
            o,
            [
                torch_schedules.LinearLR(o, 0.1, 1, 10),
                torch_schedules.CosineAnnealingLR(o, 50),
                torch_schedules.ExponentialLR(o, 0.9),
            ],
            [10, 45],
        ),
    ),
    "chained": (
        Linear(0.1, 1, 10) * Exponential(0.1, 0.9),
        lambda o: torch_schedules.ChainedScheduler(
            [torch_schedules.LinearLR(o, 0.1, 1, 10), torch_schedules.ExponentialLR(o, 0.9)]
        ),
    ),
}


def of_torch(make, key="lr"):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
    scheduler, found = make(optimizer), []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0][key])
        optimizer.step()
        if len(found) < STEPS:
            scheduler.step()
    return found


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # of torch's SequentialLR itself
@pytest.mark.parametrize("name", PAIRS)
def test_a_schedule_has_the_values_of_torchs(name):
    schedule, make = PAIRS[name]
    # torch multiplies from step to step: a rounding or two each, of values up to 0.1.
    np.testing.assert_allclose(values(schedule, STEPS), of_torch(make), rtol=1e-13, atol=STEPS * 2**-53 * 0.1)


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (
            OneCycle(0.1, STEPS).momentum(0.8, 0.9),
            lambda o: torch_schedules.OneCycleLR(o, 0.1, STEPS, base_momentum=0.8, max_momentum=0.9),
        ),
        (
            Cyclic(0.9, 0.8, 4, 7),
            lambda o: torch_schedules.CyclicLR(o, 0.01, 0.1, 4, 7, base_momentum=0.8, max_momentum=0.9),
        ),
    ],
    ids=["one cycle", "cyclic"],
)
def test_a_cycled_momentum_has_the_values_of_torchs(schedule, make):
    same(values(schedule, STEPS), of_torch(make, "momentum"))


# --- MindSpore's

CLASSES = {
    "exponential": (
        mindspore.ExponentialDecayLR(0.1, 0.9, 4),
        vector(
            "0.1 0.0974003746425297 0.0948683298050514 0.0924021086472307 0.09 0.0876603371782767 "
            "0.0853814968245463 0.0831618977825076 0.081"
        ),
    ),
    "exponential stair": (mindspore.ExponentialDecayLR(0.1, 0.9, 4, True), [0.1] * 4 + [0.09] * 4 + [0.081]),
    "natural": (
        mindspore.NaturalExpDecayLR(0.1, 0.9, 4),
        vector(
            "0.1 0.0406569659740599 0.0165298888221587 0.00672055127397498 0.00273237224472926 0.00111089965382423 "
            "0.000451658094261267 0.000183630477702891 7.4658580837668e-05"
        ),
    ),
    "natural stair": (
        mindspore.NaturalExpDecayLR(0.1, 0.9, 4, True),
        [0.1] * 4 + [0.00273237224472926] * 4 + [7.4658580837668e-05],
    ),
    "inverse": (
        mindspore.InverseDecayLR(0.1, 0.9, 4),
        vector(
            "0.1 0.0816326530612245 0.0689655172413793 0.0597014925373134 0.0526315789473684 0.0470588235294118 "
            "0.0425531914893617 0.0388349514563107 0.0357142857142857"
        ),
    ),
    "inverse stair": (
        mindspore.InverseDecayLR(0.1, 0.9, 4, True),
        [0.1] * 4 + [0.0526315789473684] * 4 + [0.0357142857142857],
    ),
    "cosine": (
        mindspore.CosineDecayLR(0.01, 0.1, 4),
        [0.1, 0.0868198051533946, 0.055, 0.0231801948466054, 0.01, 0.01, 0.01],
    ),
    "polynomial": (
        mindspore.PolynomialDecayLR(0.1, 0.01, 4, 0.5),
        [0.1, 0.0879422863405995, 0.0736396103067893, 0.055, 0.01, 0.01, 0.01, 0.01, 0.01],
    ),
    "polynomial with updates": (
        mindspore.PolynomialDecayLR(0.1, 0.01, 4, 0.5, True),
        vector(
            "0.1 0.0879422863405995 0.0736396103067893 0.055 0.01 0.0651135192126215 0.055 0.0418198051533946 "
            "0.01 0.055"
        ),
    ),
    "warm-up": (mindspore.WarmUpLR(0.1, 4), [0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1]),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_mindspores_has_its_known_values(name):
    schedule, expected = CLASSES[name]
    np.testing.assert_allclose(values(schedule, len(expected)), expected, rtol=2e-14)  # 15 digits were written


def test_dynamic_weight_decay_has_mindspores_values():
    decay = mindspore.ExponentialDecayLR(1e-4, 0.1, 10000)
    found = [decay(step) for step in (0, 1, 5000, 10000, 20000)]
    np.testing.assert_allclose(found, [1e-4, 9.99769767998157e-05, 3.16227766016838e-05, 1e-5, 1e-6], rtol=2e-14)


def each(count, *some):
    return [value for value in some for _ in range(count)]


LISTS = {
    "piecewise": (
        mindspore.piecewise_constant_lr([1, 3, 10], [0.1, 0.05, 0.01]),
        [0.1, 0.05, 0.05, *each(7, 0.01)],
    ),
    "exponential": (
        mindspore.exponential_decay_lr(0.1, 0.9, 8, 2, 2),
        each(2, 0.1, 0.0948683298050514, 0.09, 0.0853814968245463),
    ),
    "exponential stair": (mindspore.exponential_decay_lr(0.1, 0.9, 8, 2, 2, True), each(4, 0.1, 0.09)),
    "natural": (
        mindspore.natural_exp_decay_lr(0.1, 0.9, 8, 2, 2),
        each(2, 0.1, 0.0406569659740599, 0.0165298888221587, 0.00672055127397498),
    ),
    "natural stair": (mindspore.natural_exp_decay_lr(0.1, 0.9, 8, 2, 2, True), each(4, 0.1, 0.0165298888221587)),
    "inverse": (mindspore.inverse_decay_lr(0.1, 0.5, 8, 2, 2), each(2, 0.1, 0.08, 0.2 / 3, 0.4 / 7)),
    "inverse stair": (mindspore.inverse_decay_lr(0.1, 0.5, 8, 2, 2, True), each(4, 0.1, 0.2 / 3)),
    "cosine": (
        mindspore.cosine_decay_lr(0.01, 0.1, 10, 2, 4),
        each(2, 0.1, 0.0868198051533946, 0.055, 0.0231801948466054, 0.01),
    ),
    "polynomial": (
        mindspore.polynomial_decay_lr(0.1, 0.01, 12, 2, 2, 0.5),
        [*each(2, 0.1, 0.0736396103067893), *each(8, 0.01)],
    ),
    "polynomial with updates": (
        mindspore.polynomial_decay_lr(0.1, 0.01, 12, 2, 2, 0.5, True),
        each(2, 0.1, 0.0736396103067893, 0.01, 0.055, 0.01, 0.0467423461417477),
    ),
    "warm-up": (mindspore.warmup_lr(0.1, 8, 2, 3), each(2, 0, 0.1 / 3, 0.2 / 3, 0.1)),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_function_of_mindspores_returns_its_known_list(name):
    found, expected = LISTS[name]
    assert type(found) is list
    np.testing.assert_allclose(found, expected, rtol=2e-14)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mindspore.ExponentialDecayLR(1, 0.9, 4), TypeError, r"learning_rate must be a float, got 1 \(int\)"),
        (lambda: mindspore.ExponentialDecayLR(0.1, 0.0, 4), ValueError, r"decay_rate must be in \(0, inf\), got 0.0"),
        (lambda: mindspore.InverseDecayLR(0.1, 0.9, 4.0), TypeError, "decay_steps must be a whole number, got 4.0"),
        (lambda: mindspore.NaturalExpDecayLR(0.1, 0.9, 0), ValueError, r"decay_steps must be in \[1, inf\), got 0"),
        (lambda: mindspore.ExponentialDecayLR(0.1, 0.9, 4, 1), TypeError, "is_stair must be True or False, got 1"),
        (lambda: mindspore.CosineDecayLR(0.1, 0.1, 4), ValueError, "max_lr must be above min_lr, 0.1, got 0.1"),
        (lambda: mindspore.WarmUpLR(math.inf, 4), ValueError, r"learning_rate must be in \(0, inf\), got inf"),
        (lambda: mindspore.warmup_lr(0.1, True, 2, 3), TypeError, "total_step must be a whole number, got True"),
        (lambda: mindspore.cosine_decay_lr(0.2, 0.1, 8, 2, 2), ValueError, "max_lr must be above min_lr"),
        (lambda: mindspore.piecewise_constant_lr([3, 1], [0.1, 0.2]), ValueError, r"must not decrease, got \[3, 1\]"),
        (lambda: mindspore.piecewise_constant_lr([3], [0.1, 0.2]), ValueError, "1 milestones need as many"),
        (lambda: mindspore.piecewise_constant_lr([], []), TypeError, "milestone must be a list of at least one"),
    ],
)
def test_mindspores_refuse_what_mindspore_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- what all have

EVERY = [schedule for schedule, _ in (VECTORS | ROUNDED | PAIRS | CLASSES).values()]


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_a_schedule_is_a_value_without_state(schedule):
    before = values(schedule, 3)
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), dataclasses.replace(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert values(twin, 3) == before
    if "third" not in repr(schedule):
        assert eval(repr(schedule), vars(schedules) | vars(mindspore)) == schedule
    if not isinstance(schedule, Table):
        assert math.isfinite(schedule(10**5)), "there is a value for every step"
    assert values(schedule, 3) == before, "other steps were asked for between"
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.base = 0.5


@pytest.mark.parametrize("step", [-1, 0.5, "0", None])
def test_a_step_is_a_whole_number_from_0(step):
    with pytest.raises((TypeError, ValueError), match="Cosine: "):
        Cosine(1, 8)(step)


def test_a_step_may_be_numpys():
    assert Cosine(1, 8)(np.int64(3)) == Cosine(1, 8)(3)


def test_schedules_are_scaled_multiplied_and_joined():
    cosine = Cosine(1, 8)
    assert values(0.5 * cosine, 9) == values(cosine * 0.5, 9) == values(cosine.scaled(0.5), 9)
    same(values(0.5 * cosine, 9), [0.5 * cosine(step) for step in range(9)])
    assert values(cosine / 2, 9) == values(0.5 * cosine, 9)
    same(values(third * cosine, 9), [third(step) * cosine(step) for step in range(9)])
    joined = LinearWarmup(1, 3).then(cosine, at=3)
    assert values(joined, 6) == [1 / 3, 2 / 3, 1, cosine(0), cosine(1), cosine(2)]
    for wrong in ("a", None):
        with pytest.raises(TypeError):
            cosine * wrong
        with pytest.raises(TypeError):
            cosine / wrong


def test_a_table_says_where_it_ends():
    with pytest.raises(ValueError, match=r"the sequence has 3 values, for steps 0 to 2, and none for step 3; give"):
        Table(np.ones(3))(3)


def test_growth_without_bound_is_infinite_and_no_exception():
    assert Exponential(1, 2)(10**6) == math.inf
    assert Exponential(0, 2)(10**6) == 0
    assert Cyclic(0.1, 1, 4, mode="exp_range", gamma=2.0)(10**6 + 1) == math.inf


WRONG = {
    "a negative base": (lambda: Cosine(-1, 8), ValueError, r"Cosine: base must be in \[0, inf\), got -1"),
    "nan": (lambda: Cosine(math.nan, 8), ValueError, r"Cosine: base must be in \[0, inf\), got nan"),
    "inf": (lambda: Cosine(math.inf, 8), ValueError, r"Cosine: base must be in \[0, inf\), got inf"),
    "no steps": (lambda: Cosine(1, 0), ValueError, r"Cosine: total must be in \[1, inf\), got 0"),
    "half a step": (lambda: Step(1, 2.5), TypeError, r"Step: size must be a whole number in \[1, inf\), got 2.5"),
    "a text": (lambda: Cosine("1", 8), TypeError, r"Cosine: base must be a number in \[0, inf\), got '1' \(str\)"),
    "a truth value": (lambda: Cosine(1, True), TypeError, "Cosine: total must be a whole number"),
    "a number for a flag": (lambda: Cosine(1, 8, 0.0, 1), TypeError, "Cosine: clamp must be True or False, got 1"),
    "unsorted": (lambda: MultiStep(1, [5, 2]), ValueError, r"milestones must not decrease, got \(5, 2\); sort them"),
    "one number for several": (lambda: MultiStep(1, 5), TypeError, "milestones must be a sequence of numbers, got 5"),
    "a wrong one among several": (lambda: Table([1, None]), TypeError, r"values\[1\] must be a number"),
    "an empty table": (lambda: Table([]), ValueError, "values must be one for each step, got none"),
    "too few values": (lambda: Piecewise([1, 3], [1, 2]), ValueError, "2 boundaries need 3 values, got 2"),
    "an unknown word": (lambda: OneCycle(1, 8, anneal="log"), ValueError, "must be one of 'cos', 'linear', got 'log'"),
    "no function": (lambda: Lambda(3), TypeError, "function must be a function of the step, got 3"),
    "nothing to follow": (lambda: Cosine(1, 8).then(0.1, at=3), TypeError, "second must be a function of the step"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    make, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        make()


# --- the picture


def test_plot_draws_each_schedule_and_writes_the_file(tmp_path):
    figure = schedules.plot({"one": Cosine(1, 8), "other": LinearWarmup(1, 4)}, 12, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert lines == {"one": values(Cosine(1, 8), 12), "other": values(LinearWarmup(1, 4), 12)}
    (axes,) = schedules.plot(Cosine(1, 8), 3).axes
    assert axes.get_lines()[0].get_label() == str(Cosine(1, 8))
    assert len(schedules.plot([Cosine(1, 8), Cosine(2, 8)], 3).axes[0].get_lines()) == 2


@pytest.mark.parametrize("wrong", [[1, 0.5], 1, {"a": 0.5}, Cosine], ids=["values", "number", "named", "class"])
def test_plot_names_what_it_cannot_draw(wrong):
    with pytest.raises(TypeError, match=r"plot: schedules must be .*; a list of values is one as Table\(values\)"):
        schedules.plot(wrong, 3)


def test_plot_draws_whole_steps():
    with pytest.raises(TypeError, match=r"plot: steps must be a whole number, got 3.5"):
        schedules.plot(Cosine(1, 8), 3.5)


def test_plot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plot needs matplotlib .*pip install 'fusedopt\[plot\]'"):
        schedules.plot(Cosine(1, 8), 3)


def test_a_running_product_may_be_shared_by_threads():
    def slow(step):
        time.sleep(1e-5)
        return 1 - 1 / (step + 1)

    shared, found = Multiplicative(slow), []
    shared(1)
    threads = [threading.Thread(target=lambda: found.append(shared(60))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {Multiplicative(slow)(60)}
