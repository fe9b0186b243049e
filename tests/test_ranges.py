"""Each optimizer's defaults and ranges, written down once more: what the rules declare is not what it is tested by."""

import inspect
import math

import numpy as np
import pytest
import torch

import fusedopt.torch
from fusedopt import Parameter
from fusedopt.rules.hyperparameter import is_flag

# Option: its default, and the numbers that it may be; of a tuple, those of each place.
LR_OF_ADAM, BETAS = (1e-3, "[0, inf)"), ((0.9, 0.999), "[0, 1)")
DECAY, ALL = (0.0, "[0, inf)"), "(-inf, inf)"
ADAM = {"lr": LR_OF_ADAM, "betas": BETAS, "eps": (1e-8, "[0, inf)"), "weight_decay": DECAY}
PROXIMAL = {
    "lr": (1e-3, "[0, inf)"),
    "l1": (0.0, "[0, inf)"),
    "l2": (0.0, "[0, inf)"),
    "initial_accumulator_value": (0.1, "[0, inf)"),
    "weight_decay": DECAY,
}
SPARSE = {"lr": (1e-3, "[0, inf)"), "betas": BETAS, "eps": (1e-8, "(0, inf)")}  # lr 0: where a schedule ends
RANGES = {
    "SGD": {
        "lr": (1e-3, "[0, inf)"),
        "momentum": (0.0, "[0, inf)"),
        "dampening": (0.0, ALL),
        "weight_decay": DECAY,
    },
    "Momentum": {"lr": (1e-3, "[0, inf)"), "momentum": (0.9, "[0, inf)"), "weight_decay": DECAY},
    "Adam": ADAM,
    "AdamW": ADAM | {"weight_decay": (1e-2, "[0, inf)")},
    "Adagrad": {
        "lr": (1e-2, "[0, inf)"),
        "lr_decay": (0.0, "[0, inf)"),
        "weight_decay": DECAY,
        "initial_accumulator_value": (0.0, "[0, inf)"),
        "eps": (1e-10, "[0, inf)"),
    },
    "Adadelta": {"lr": (1.0, "[0, inf)"), "rho": (0.9, "[0, 1]"), "eps": (1e-6, "[0, inf)"), "weight_decay": DECAY},
    "Adamax": ADAM | {"lr": (2e-3, "[0, inf)")},
    "NAdam": ADAM | {"lr": (2e-3, "[0, inf)"), "momentum_decay": (4e-3, "[0, inf)")},
    "RAdam": ADAM,
    "ASGD": {
        "lr": (1e-2, "[0, inf)"),
        "lambd": (1e-4, "[0, inf)"),
        "alpha": (0.75, ALL),
        "t0": (1e6, ALL),
        "weight_decay": DECAY,
    },
    "RMSprop": {
        "lr": (1e-2, "[0, inf)"),
        "alpha": (0.99, "[0, 1]"),
        "eps": (1e-8, "[0, inf)"),
        "weight_decay": DECAY,
        "momentum": (0.0, "[0, inf)"),
        "square_avg_init": (0.0, "[0, inf)"),
    },
    "Rprop": {
        "lr": (1e-2, "[0, inf)"),
        "etas": ((0.5, 1.2), "(0, 1)", "(1, inf)"),
        "step_sizes": ((1e-6, 50.0), "[0, inf)"),
        "weight_decay": DECAY,
    },
    "Lion": {"lr": (1e-4, "[0, inf)"), "betas": ((0.9, 0.99), "[0, 1)"), "weight_decay": DECAY},
    "FTRL": PROXIMAL | {"lr": (1e-3, "(0, inf)"), "lr_power": (-0.5, "(-inf, 0]")},
    "ProximalAdagrad": PROXIMAL,
    "LAMB": ADAM | {"eps": (1e-6, "[0, inf)"), "weight_decay": (0.01, "[0, inf)")},
    "LARS": {
        "lr": (1e-3, "[0, inf)"),
        "momentum": (0.9, "[0, inf)"),
        "dampening": (0.0, ALL),
        "weight_decay": DECAY,
        "trust_coefficient": (1e-3, "[0, inf)"),
        "eps": (0.0, "[0, inf)"),
    },
    "LBFGS": {
        "lr": (1.0, "[0, inf)"),
        "max_iter": (20, "[1, inf)"),
        "max_eval": (25, "[1, inf)"),
        "tolerance_grad": (1e-7, "[0, inf)"),
        "tolerance_change": (1e-9, "[0, inf)"),
        "history_size": (100, "[1, inf)"),
    },
    "Muon": {
        "lr": (1e-3, "[0, inf)"),
        "weight_decay": (0.1, "[0, inf)"),
        "momentum": (0.95, "[0, inf)"),
        "ns_coefficients": ((3.4445, -4.775, 2.0315), ALL),
        "eps": (1e-7, "[0, inf)"),
        "ns_steps": (5, "[0, 100)"),
    },
    "Adafactor": {
        "lr": (1e-2, "[0, inf)"),
        "beta2_decay": (-0.8, "(-inf, 0]"),
        "eps": ((None, 1e-3), "[0, inf)"),
        "d": (1.0, "[1, inf)"),
        "weight_decay": DECAY,
    },
    "SparseAdam": SPARSE,
    "LazyAdam": SPARSE | {"weight_decay": DECAY},
    "of every rule": {
        "loss_scale": (1.0, "(0, inf)"),
        "clip_value": (0.0, "[0, inf)"),
        "clip_norm": (0.0, "[0, inf)"),
        "seed": (0, "[0, 9007199254740992)"),
    },
}
KINDS = {
    name: kind
    for name, kind in vars(fusedopt).items()
    if inspect.isclass(kind) and issubclass(kind, fusedopt.Optimizer) and kind is not fusedopt.Optimizer
}
each_row = pytest.mark.parametrize(
    ("kind", "option", "row"),
    [
        pytest.param(KINDS.get(name, fusedopt.SGD), option, row, id=f"{name}-{option}")
        for name, table in RANGES.items()
        for option, row in table.items()
    ],
)


def numeric_options(kind):
    return {option for option, field in kind.rule.options().items() if field.init and not is_flag(field)}


def test_every_number_of_every_optimizer_is_in_the_table():
    assert KINDS.keys() == RANGES.keys() - {"of every rule"}
    for name, kind in KINDS.items():
        assert numeric_options(kind) - RANGES["of every rule"].keys() == RANGES[name].keys(), name


def near(interval, whole):
    """The numbers at both ends of an interval that are in it, and those next to them that are not."""
    low, high = (float(end) for end in interval[1:-1].split(", "))

    def after(number, towards):
        return number + math.copysign(1, towards) if whole else math.nextafter(number, towards)

    first = low if interval[0] == "[" else after(low, math.inf)
    last = high if interval[-1] == "]" else after(1e6 if whole and high == math.inf else high, -math.inf)
    beyond = (after(last, math.inf),) if high < math.inf else ()
    return (first, last), (after(first, -math.inf), *beyond, -math.inf, math.inf, math.nan)


@each_row
def test_an_option_has_its_default_and_its_range_and_no_other(kind, option, row):
    default, *intervals = row
    whole = kind.rule.options()[option].metadata["whole"]
    matrix = Parameter(np.ones((2, 2)))
    assert kind([Parameter(np.ones((2, 2)))]).defaults.get(option, default) == default
    places = range(len(default)) if isinstance(default, tuple) else (0,)
    for place, interval in zip(places, intervals * len(places)):
        taken, refused = near(interval, whole)
        for number in taken:
            kind([Parameter(np.ones((2, 2)))], **{option: put(default, place, number)})
        for number in refused:
            with pytest.raises(ValueError, match=rf"^{kind.__name__}: {option}.* must be .*, got {number}"):
                kind([matrix], **{option: put(default, place, number)})
    assert matrix.owner is None


def put(default, place, number):
    return (*default[:place], number, *default[place + 1 :]) if isinstance(default, tuple) else number


@each_row
def test_over_torchs_tensors_they_are_the_same(kind, option, row):
    kind = getattr(fusedopt.torch, kind.__name__)
    default, *intervals = row
    places = range(len(default)) if isinstance(default, tuple) else (0,)
    assert kind([torch.ones(2, 2, requires_grad=True)]).defaults.get(option, default) == default
    for place, interval in zip(places, intervals * len(places)):
        low, high = (float(end) for end in interval[1:-1].split(", "))
        for number in (low - 1, high + 1, math.nan, *([low] if interval[0] == "(" else [])):
            with pytest.raises(ValueError, match=rf"{kind.__name__}: {option}.* must be .*, got {number}"):
                kind([torch.ones(2, 2, requires_grad=True)], **{option: put(default, place, number)})
