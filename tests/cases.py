"""The table of optimizers that the tests run over, the values and sizes they are tried on, and the plain rule."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  # makes "bfloat16" a name that NumPy knows
import numpy as np
import pytest
import torch

import fusedopt
import plain_sums
import references
from fusedopt.backends.device import CHUNK
from fusedopt.rules import Rule, Values

Options = Mapping[str, Any]


# --- the table -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Golden:
    """Where `GOLDEN_PARAMETER` is after some steps with `GOLDEN_GRADIENTS`, in float64.

    Attributes:
        options: What is not the optimizer's default.
        parameter: The four values, with twelve significant digits.
        steps: The gradients come round again after three.
        lrs: A learning rate a step, where it changes.
        states: Some of its state arrays, likewise.
    """

    options: Options
    parameter: tuple[float, ...]
    steps: int = 3
    lrs: tuple[float, ...] = ()
    states: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


GOLDEN_PARAMETER = np.array([1, -2, 0.5, 0.25])
GOLDEN_GRADIENTS = np.array([[0.1, -0.2, 0.3, 0], [-0.05, 0.4, 0.3, 0], [0.2, 0, -0.6, 1]])


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer.

    Attributes:
        optimizer: Ours.
        reference: torch's, or the equations written out in `references`; it takes the same options.
        main: Options none of which hides a term of the equations: weight decay is not zero, eps is large.
        choices: For each option that changes the equations, the values that are combined with those of the others.
        first_move: (gradient, options) -> the parameter's change at the first step without weight decay.
        coasts: options -> whether a zero gradient, after others, still moves the parameter without weight decay.
        golden: Known results.
        unlike: Why something that holds for other optimizers does not for this one, by a name that `each_combination`
            is given.
        also: Options that change the equations, each set tried once over `main`.
        own: Likewise, options that the reference does not have.
        wider: A reference that has `own` too.
        bytes_moved: What a step must load and store for a parameter in float32, with `main`; 0: not said.
    """

    optimizer: type[fusedopt.Optimizer]
    reference: type[torch.optim.Optimizer]
    main: Options
    choices: Mapping[str, tuple[Any, ...]]
    first_move: Callable[[np.ndarray, Options], np.ndarray]
    coasts: Callable[[Options], bool]
    golden: tuple[Golden, ...]
    unlike: Mapping[str, str] = dataclasses.field(default_factory=dict)
    also: tuple[Options, ...] = ()
    own: tuple[Options, ...] = ()
    wider: type[torch.optim.Optimizer] | None = None
    bytes_moved: int = 0

    @property
    def rule(self) -> type[Rule]:
        return self.optimizer.rule

    @property
    def name(self) -> str:
        return self.optimizer.__name__

    def combinations(self) -> Iterator[Options]:
        """`main` with every combination of the choices, with each of `also`, and of `own` where there is `wider`."""
        for values in itertools.product(*self.choices.values()):
            yield {**self.main, **dict(zip(self.choices, values, strict=True))}
        for options in (*self.also, *(self.own if self.wider is not None else ())):
            yield {**self.main, **options}

    def valid(self) -> list[Options]:
        """The combinations that torch accepts."""
        return [options for options in self.combinations() if self.accepts(options)]

    def variants(self) -> list[Options]:
        """The valid combinations, and those that only ours has."""
        return [*self.valid(), *({**self.main, **options} for options in self.own if self.wider is None)]

    def accepts(self, options: Options) -> bool:
        """Whether torch does."""
        try:
            self.reference_of(options)([torch.zeros(1)], **options)
        except ValueError:
            return False
        return True

    def reference_of(self, options: Options) -> type[torch.optim.Optimizer]:
        """The reference that knows these options."""
        own = options.keys() & self.rule.common_defaults().keys()
        return self.wider if own and self.wider is not None else self.reference


def _adam_first_move(gradient: np.ndarray, options: Options) -> np.ndarray:
    (beta1, beta2), eps = options["betas"], options["eps"]
    if options.get("bias_correction", True):
        move, eps = gradient, eps if options.get("corrected_eps", True) else eps / np.sqrt(1 - beta2)
    else:
        move, eps = gradient * (1 - beta1) / np.sqrt(1 - beta2), eps / np.sqrt(1 - beta2)
    return -options["lr"] * (1 + (beta1 if options.get("nesterov") else 0)) * move / (np.abs(gradient) + eps)


def _adagrad_first_move(gradient: np.ndarray, options: Options) -> np.ndarray:
    total = options["initial_accumulator_value"] + gradient**2 * options.get("update_accumulator", True)
    inside = options["eps"] * options.get("eps_inside_sqrt", False)
    return -options["lr"] * gradient / (np.sqrt(total + inside) + options["eps"] - inside)


def _adadelta_first_move(gradient: np.ndarray, options: Options) -> np.ndarray:
    eps, rho = options["eps"], options["rho"]
    return -options["lr"] * gradient * np.sqrt(eps / ((1 - rho) * gradient**2 + eps))


def _nadam_first_move(gradient: np.ndarray, options: Options) -> np.ndarray:
    beta1 = options["betas"][0]
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (step * options["momentum_decay"])) for step in (1, 2))
    return _adam_first_move(gradient, options) * (1 + mu_next * (1 - beta1) / (1 - mu * mu_next))


def _rmsprop_first_move(gradient: np.ndarray, options: Options) -> np.ndarray:
    alpha, eps = options["alpha"], options["eps"]
    variance = alpha * options.get("square_avg_init", 0.0) + (1 - alpha) * gradient**2
    if options["centered"]:
        variance -= ((1 - alpha) * gradient) ** 2
    root = np.sqrt(variance + eps) if options.get("eps_inside_sqrt") else np.sqrt(variance) + eps
    return -options["lr"] * gradient / root


def _ftrl_first_move(gradient: np.ndarray, options: Options) -> np.ndarray:
    """Of a parameter of zero."""
    divisor = (options["initial_accumulator_value"] + gradient**2) ** -options["lr_power"] / options["lr"]
    return -_shrunk(gradient, options["l1"]) / (divisor + 2 * options["l2"])


def _proximal_adagrad_first_move(gradient: np.ndarray, options: Options) -> np.ndarray:
    """Of a parameter of zero."""
    lr = options["lr"]
    move = -lr * gradient / np.sqrt(options["initial_accumulator_value"] + gradient**2)
    return _shrunk(move, lr * options["l1"]) / (1 + lr * options["l2"])


def _shrunk(values: np.ndarray, by: float) -> np.ndarray:
    return np.sign(values) * np.maximum(np.abs(values) - by, 0)


MINDSPORE_RMSPROP = {
    "lr": 0.01,
    "alpha": 0.9,
    "momentum": 0.9,
    "eps": 1e-10,
    "square_avg_init": 1.0,
    "eps_inside_sqrt": True,
    "lr_in_momentum": True,
}
ADAMS_OWN = (
    {"corrected_eps": False},
    {"bias_correction": False},
    {"nesterov": True},
    {"corrected_eps": False, "nesterov": True},
)

INFINITE_NORM = "an infinite parameter makes the norm infinite, and with it every step"
OF_THE_TENSOR = "what happens to an element depends on its tensor's others"

CASES = (
    Case(
        fusedopt.SGD,
        torch.optim.SGD,
        main={"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
        choices={
            "momentum": (0.9, 0.0),
            "dampening": (0.5, 0.0),
            "weight_decay": (0.01, 0.0),
            "nesterov": (False, True),
            "maximize": (False, True),
        },
        first_move=lambda g, options: (
            -options["lr"] * (1 + (options["momentum"] if options.get("nesterov") else 0)) * g
        ),
        coasts=lambda options: options["momentum"] != 0,
        golden=(
            Golden({"lr": 0.1}, (0.975, -2.02, 0.5, 0.15)),
            Golden({"lr": 0.1, "weight_decay": 0.01}, (0.972017989, -2.014005978, 0.4985914695, 0.14925074975)),
            Golden({"lr": 0.1, "momentum": 0.9}, (0.9624, -2.0218, 0.4217, 0.15)),
            Golden(
                {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
                (0.96350989725, -1.9755122945, 0.418185567375, 0.198960537437),
            ),
            Golden(
                {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
                (0.933209762551, -2.0236112251, 0.4259294848, 0.0579912252853),
            ),
            Golden(
                {"lr": 0.1, "momentum": 0.9, "maximize": True, "weight_decay": 0.01},
                (1.031961809, -1.966953618, 0.5753534295, 0.34859869975),
            ),
            Golden({"momentum": 0.9}, (0.9408, -2.0306, 0.4589, 0.05), lrs=(0.1, 0.05, 0.2)),
            Golden({"momentum": 0.9, "lr_in_momentum": True}, (0.93765, -1.9838, 0.5102, 0.05), lrs=(0.1, 0.05, 0.2)),
        ),
        own=({"lr_in_momentum": True}, {"lr_in_momentum": True, "dampening": 0.0, "nesterov": True}),
        wider=references.SGD,
        bytes_moved=20,
    ),
    Case(
        fusedopt.Adam,
        torch.optim.Adam,
        main={"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
        choices={
            "weight_decay": (0.1, 0.0),
            "amsgrad": (False, True),
            "maximize": (False, True),
            "decoupled_weight_decay": (False, True),
        },
        first_move=_adam_first_move,
        coasts=lambda options: True,
        golden=(
            Golden({"lr": 0.01}, (0.980755515435, -1.99649102642, 0.480756493956, 0.243611864117)),
            Golden({"lr": 0.01}, (0.943021498125, -2.00919026919, 0.474676242052, 0.210683114225), steps=9),
            Golden({"lr": 0.01, "weight_decay": 0.1}, (0.972827847297, -1.98289417491, 0.479607481305, 0.223367064869)),
            Golden({"lr": 0.01, "eps": 1e-3}, (0.980937158196, -1.99651831909, 0.480821160055, 0.243622903938)),
            Golden(
                {"lr": 0.01, "betas": (0.9, 0.5), "amsgrad": True},
                (0.951369374358, -2.00621411969, 0.475759158114, 0.221785181606),
                steps=9,
            ),
            Golden(  # MindSpore's, as the next
                {"lr": 0.01, "eps": 1e-3, "corrected_eps": False},
                (0.984543729067, -1.99742749626, 0.482372666905, 0.243807682286),
            ),
            Golden(
                {"lr": 0.01, "corrected_eps": False, "nesterov": True},
                (0.970432031606, -1.9934983725, 0.472634909429, 0.23786254545),
            ),
        ),
        own=ADAMS_OWN,
        wider=references.Adam,
        bytes_moved=28,
    ),
    Case(
        fusedopt.AdamW,
        torch.optim.AdamW,
        main={"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
        choices={"weight_decay": (0.1, 0.0), "amsgrad": (False, True), "maximize": (False, True)},
        first_move=_adam_first_move,
        coasts=lambda options: True,
        golden=(
            Golden({"lr": 0.01, "weight_decay": 0.1}, (0.977781167803, -1.99051335338, 0.479287983455, 0.242862613867)),
            Golden(  # MindSpore's AdamWeightDecay
                {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-6, "bias_correction": False},
                (0.921576116658, -1.99200080239, 0.428239665758, 0.217628973117),
            ),
        ),
        own=ADAMS_OWN,
        wider=references.AdamW,
        bytes_moved=28,
    ),
    Case(
        fusedopt.Lion,
        references.Lion,
        main={"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1},
        choices={"weight_decay": (0.1, 0.0), "maximize": (False, True)},
        first_move=lambda g, options: -options["lr"] * np.sign(g),
        coasts=lambda options: True,
        golden=(Golden({"lr": 0.01, "weight_decay": 0.1}, (0.987012989, -2.004015988, 0.4885314895, 0.23925074975)),),
        bytes_moved=20,
    ),
    Case(
        fusedopt.Adagrad,
        torch.optim.Adagrad,
        main={"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-3},
        choices={"weight_decay": (0.1, 0.0), "maximize": (False, True)},
        first_move=_adagrad_first_move,
        coasts=lambda options: False,
        golden=(
            Golden(
                {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.01, "initial_accumulator_value": 0.1},
                (0.934000376122, -2.00369513315, 0.44086814562, 0.169020416929),
            ),
            Golden(  # MegEngine's
                {"lr": 0.1, "lr_decay": 0.1, "eps_inside_sqrt": True},
                (0.86791648507, -1.98131156292, 0.403758947158, 0.166666666671),
            ),
            Golden(  # MindSpore's, and with its update_slots=False
                {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 0.0},
                (0.933541233419, -2.01957742595, 0.449480608887, 0.154653741075),
            ),
            Golden(
                {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-10, "update_accumulator": False},
                (0.920943058521, -2.06324555318, 0.5, -0.0662277659168),
            ),
        ),
        own=({"eps_inside_sqrt": True}, {"update_accumulator": False}),
        bytes_moved=20,
    ),
    Case(
        fusedopt.Adadelta,
        torch.optim.Adadelta,
        main={"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1},
        choices={"weight_decay": (0.1, 0.0), "maximize": (False, True)},
        first_move=_adadelta_first_move,
        coasts=lambda options: False,
        golden=(Golden({}, (0.994618037428, -2.00087837218, 0.498141400188, 0.246837738151)),),
        bytes_moved=28,
    ),
    Case(
        fusedopt.Adamax,
        torch.optim.Adamax,
        main={"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
        choices={"weight_decay": (0.1, 0.0), "maximize": (False, True)},
        first_move=_adam_first_move,
        coasts=lambda options: True,
        golden=(
            Golden({"lr": 0.01}, (0.983538387358, -1.99472313389, 0.480535056008, 0.246309963137)),
            Golden(  # MindSpore's
                {"lr": 0.01, "eps": 1e-3, "eps_in_denominator": True},
                (0.983679944467, -1.99476110181, 0.480600610258, 0.24631364945),
            ),
        ),
        own=({"eps_in_denominator": True},),
        bytes_moved=28,
    ),
    Case(
        fusedopt.NAdam,
        torch.optim.NAdam,
        main={"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "momentum_decay": 0.1},
        choices={"weight_decay": (0.1, 0.0), "decoupled_weight_decay": (False, True)},
        first_move=_nadam_first_move,
        coasts=lambda options: True,
        golden=(
            Golden({"lr": 0.01}, (0.98356555964, -1.99886119199, 0.490248204103, 0.238714081099)),
            Golden(
                {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
                (0.980585566012, -1.99287924289, 0.488778658917, 0.237964830849),
            ),
        ),
        also=({"maximize": True},),
        bytes_moved=28,
    ),
    Case(
        fusedopt.RAdam,
        torch.optim.RAdam,
        main={"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
        choices={"weight_decay": (0.1, 0.0), "decoupled_weight_decay": (False, True)},
        first_move=lambda g, options: -options["lr"] * g,
        coasts=lambda options: True,
        golden=(
            Golden({"lr": 0.01}, (0.997918624976, -1.99988852204, 0.49432103321, 0.2463099631)),
            Golden({"lr": 0.01}, (0.995548871665, -2.0011024446, 0.492407369534, 0.240895094116), steps=9),
        ),
        also=({"maximize": True},),
        bytes_moved=28,
    ),
    Case(
        fusedopt.ASGD,
        torch.optim.ASGD,
        main={"lr": 0.05, "lambd": 0.1, "alpha": 0.6, "t0": 2.0, "weight_decay": 0.1},
        choices={"weight_decay": (0.1, 0.0), "maximize": (False, True)},
        first_move=lambda g, options: -options["lr"] * g,
        coasts=lambda options: False,
        golden=(
            Golden(
                {"lr": 0.1, "lambd": 0.01, "t0": 1.0},
                (0.944238974511, -2.02788798131, 0.497057897113, 0.0493279971095),
                steps=6,
                states={"ax": (0.960627553964, -2.01594869561, 0.475349000478, 0.124271051159)},
            ),
        ),
        unlike={
            "every state counts": "ax is an average of the parameters, which nothing reads",
            "states stay finite": "ax is as infinite as the parameter",
            "no result is a copy": "ax is the new parameter while mu is 1",
            "every state is loaded": "ax is not read while mu is 1",
        },
        bytes_moved=20,
    ),
    Case(
        fusedopt.RMSprop,
        torch.optim.RMSprop,
        main={"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "centered": True},
        choices={},
        also=(
            {"momentum": 0.0},
            {"centered": False},
            {"momentum": 0.0, "centered": False},
            {"weight_decay": 0.0},
            {"maximize": True},
        ),
        own=({"square_avg_init": 1.0}, {"eps_inside_sqrt": True}, {"lr_in_momentum": True}),
        wider=references.RMSprop,
        first_move=_rmsprop_first_move,
        coasts=lambda options: options["momentum"] != 0,
        golden=(
            Golden({"lr": 0.01}, (0.857427456741, -1.98953232617, 0.410965783783, 0.15000001)),
            Golden(
                {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.01},
                (0.706490203167, -1.88816011925, 0.173150668727, -0.221662571797),
            ),
            Golden(MINDSPORE_RMSPROP, (0.995865421582, -2.00264356678, 0.491997200433, 0.239016955716)),
            Golden(
                {**MINDSPORE_RMSPROP, "centered": True},
                (0.995864387409, -2.00264474028, 0.491980958917, 0.238950107598),
            ),
        ),
        unlike={"float32 is near float64": "a small gradient, with weight decay's error, is divided by a small root"},
        bytes_moved=36,
    ),
    Case(
        fusedopt.Rprop,
        torch.optim.Rprop,
        main={"lr": 0.1, "etas": (0.4, 1.3), "step_sizes": (0.05, 0.15)},
        choices={"maximize": (False, True)},
        first_move=lambda g, options: -np.clip(options["lr"], *options["step_sizes"]) * np.sign(g),
        coasts=lambda options: False,
        golden=(Golden({"lr": 0.1}, (0.85, -1.9, 0.28, 0.15)),),
        own=({"weight_decay": 0.5},),
        wider=references.Rprop,
        unlike={
            "lr of zero moves nothing": "no step is below step_sizes[0]",
            "lr counts after the first step": "it is what the step sizes start from",
            "float32 is near float64": "a sign is right or wrong",
            "infinities are remembered": "only the last gradient's sign is",
        },
        bytes_moved=28,
    ),
    Case(
        fusedopt.FTRL,
        references.FTRL,
        main={"lr": 0.1, "lr_power": -0.5, "l1": 0.01, "l2": 0.02, "weight_decay": 0.1},
        choices={},
        also=(
            {"lr_power": -0.7},
            {"l1": 0.0},
            {"weight_decay": 0.0},
            {"maximize": True},
            {"linear_init_from_param": True},
        ),
        first_move=lambda g, options: _ftrl_first_move(g, {"initial_accumulator_value": 0.1, **options}),
        coasts=lambda options: False,
        golden=(
            Golden(
                {"lr": 0.1, "l1": 0.01, "l2": 0.02},
                (-0.0176826731226, -0.323384768646, 0.0838990977207, -0.094034164105),
            ),
        ),
        unlike={
            "a zero gradient leaves the parameter": "it is made anew from z, which starts from zero",
            "infinity stays": "the parameter is made anew from z",
            "lr of zero moves nothing": "lr is above zero",
            "float32 is near float64": "real powers have an accuracy of their own",
            "the first step starts from the parameter": "the parameter is made anew from z",
        },
        bytes_moved=28,
    ),
    Case(
        fusedopt.ProximalAdagrad,
        references.ProximalAdagrad,
        main={"lr": 0.1, "l1": 0.01, "l2": 0.02, "weight_decay": 0.1},
        choices={},
        also=({"l1": 0.0}, {"weight_decay": 0.0}, {"maximize": True}),
        first_move=lambda g, options: _proximal_adagrad_first_move(g, {"initial_accumulator_value": 0.1, **options}),
        coasts=lambda options: True,
        golden=(
            Golden(
                {"lr": 0.1, "l1": 0.01, "l2": 0.02}, (0.924800074346, -2.00466541678, 0.443992230703, 0.150361993149)
            ),
        ),
        unlike={"a zero gradient leaves the parameter": "l1 and l2 shrink it"},
        bytes_moved=20,
    ),
    Case(
        fusedopt.Momentum,
        references.Momentum,
        main={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        choices={},
        also=({"weight_decay": 0.0}, {"nesterov": True}, {"maximize": True}),
        first_move=lambda g, options: (
            -options["lr"] * (1 + (options["momentum"] if options.get("nesterov") else 0)) * g
        ),
        coasts=lambda options: True,
        golden=(
            Golden({"lr": 0.1}, (0.9624, -2.0218, 0.4217, 0.15)),
            Golden(
                {"lr": 0.1, "nesterov": True, "weight_decay": 0.01},
                (0.933209762551, -2.0236112251, 0.4259294848, 0.0579912252853),
            ),
        ),
        bytes_moved=20,
    ),
    Case(
        fusedopt.LAMB,
        references.LAMB,
        main={"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
        choices={"weight_decay": (0.1, 0.0), "always_adapt": (False, True), "maximize": (False, True)},
        first_move=_adam_first_move,
        coasts=lambda options: True,
        golden=(
            Golden(
                {"lr": 0.01, "weight_decay": 0.01},
                (0.965163224935, -2.00001168104, 0.467554894528, 0.234739145843),
            ),
        ),
        unlike={"infinity stays": INFINITE_NORM, "float32 is near float64": OF_THE_TENSOR},
    ),
    Case(
        fusedopt.LARS,
        references.LARS,
        main={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.1, "eps": 0.01},
        choices={
            "momentum": (0.9, 0.0),
            "weight_decay": (0.01, 0.0),
            "nesterov": (False, True),
            "trust_clip": (False, True),
            "adapt": (True, False),
        },
        first_move=lambda g, options: (
            -options["lr"] * (1 + (options["momentum"] if options.get("nesterov") else 0)) * g
        ),
        coasts=lambda options: options["momentum"] != 0,
        golden=(
            Golden(
                {"lr": 0.1, "weight_decay": 0.01},
                (0.999820231263, -1.99996685389, 0.499379932575, 0.249802449072),
            ),
        ),
        unlike={"infinity stays": INFINITE_NORM, "float32 is near float64": OF_THE_TENSOR},
    ),
)


def _title(case: Case, options: Options) -> str:
    named = [n for n in options if n in case.choices or options[n] != case.main.get(n)]
    return "-".join([case.name, *(f"{name}={options[name]}" for name in named)])


each_case = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
# torch's contract is kept by the adapter, which sees a rule's states and steps, not its equations. So one rule of each
# kind will do: a state that starts from the gradient, flags, a state that is there before the first step. (Scalar state
# is tried with rules of the tests' own: torch keeps its in float32.)
ONE_OF_EACH_KIND = [case for case in CASES if case.name in ("SGD", "Adam", "AdamW", "Adagrad")]
each_kind = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ONE_OF_EACH_KIND])
each_lazy_kind = pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name) for case in ONE_OF_EACH_KIND if not case.rule.eager_state]
)
TORCHS_OWN = [case for case in CASES if case.reference.__module__.startswith("torch.optim")]
each_of_torchs = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in TORCHS_OWN])


def each_case_with(*holds: str) -> Any:
    """Each case, without those of which `unlike` says that one of these does not hold."""
    cases = [pytest.param(case, id=case.name) for case in CASES if not case.unlike.keys() & set(holds)]
    return pytest.mark.parametrize("case", cases)


def each_combination(*holds: str, own: bool = False) -> Any:
    """Each case with its valid options; without those of which `unlike` says that one of these does not hold.

    Args:
        own: Also with those options that the reference does not have.
    """
    cases = [case for case in CASES if not case.unlike.keys() & set(holds)]
    options = {case.name: case.variants() if own else case.valid() for case in cases}
    combinations = [pytest.param(case, o, id=_title(case, o)) for case in cases for o in options[case.name]]
    return pytest.mark.parametrize(("case", "options"), combinations)


each_golden = pytest.mark.parametrize(
    ("case", "golden"),
    [pytest.param(case, golden, id=f"{case.name}{i}") for case in CASES for i, golden in enumerate(case.golden)],
)


# --- values and sizes ------------------------------------------------------------------------------------------------

DTYPES = ("float32", "float64", "float16", "bfloat16")
SIZES = (0, 1, 3, 17, 4097, CHUNK + 5)

EXTREMES = np.array(
    [
        *(0.0, -0.0, 1.0, -1.0),
        *(5e-324, 1e-310, 1e-45, -1e-40, 6e-8, -1e-5),  # denormals of float64, float32 and float16
        *(1e-30, -1e-30, 1e-8, 1e8, 1e30, -1e30, 6e4, 3.4e38, -3.4e38, 1e308),
        *(np.inf, -np.inf, np.nan),
    ]
)


def extreme(size: int, dtype: str, seed: int) -> np.ndarray:
    """A third each of `EXTREMES`, of numbers of any magnitude from 1e-30 to 1e30, and of ordinary ones."""
    random = np.random.default_rng([seed, size])
    kinds = [
        random.choice(EXTREMES, size),
        random.choice([-1, 1], size) * 10 ** random.uniform(-30, 30, size),
        random.standard_normal(size),
    ]
    with np.errstate(all="ignore"):
        return np.choose(random.integers(0, 3, size), kinds).astype(dtype)


def ordinary(size: int, dtype: str, seed: int) -> np.ndarray:
    """Numbers from the standard normal distribution."""
    return np.random.default_rng([seed, size]).standard_normal(size).astype(dtype)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    """Every element has the same bits in both, or is NaN in both: a NaN's sign and payload differ by chip."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    kind = f"u{expected.itemsize}"
    same = actual.view(kind) == expected.view(kind)
    same |= np.isnan(actual) & np.isnan(expected)
    if not same.all():
        where = np.flatnonzero(~same)
        first = where[0]
        pytest.fail(
            f"{what}: {len(where)} of {same.size} elements differ, the first at {first}: "
            f"{actual.flat[first]!r}, expected {expected.flat[first]!r}"
        )


# --- the plain rule --------------------------------------------------------------------------------------------------


class Plain:
    """A parameter updated by calling its rule's functions on whole arrays: what every backend equals to the bit.

    Halves are widened before the update and rounded once after it.
    """

    def __init__(self, rule: Rule, parameter: np.ndarray) -> None:
        self.rule, self.parameter, self.step = rule.form(parameter.shape), parameter.copy(), 0
        initial = {state.name: rule.initial(state) for state in rule.all_states()}
        self.states = {name: np.full_like(parameter, initial[name]) for name in rule.kept_states}
        self.scalar_state = {name: np.float64(value) for name, value in rule.scalar_state.items()}
        self.real = np.float64 if parameter.dtype == np.float64 else np.float32

    def update(self, gradient: np.ndarray, grad_scale: float = 1.0, group_square: np.float64 | None = None) -> None:
        """One step; `group_square` is the sum of the squares of its group's gradients where that is not its own."""
        real, dtype = self.real, self.parameter.dtype
        self.step += 1
        with np.errstate(all="ignore"):
            scale = np.float64(np.float32(grad_scale))  # as the kernel reads it
            p, states = self.parameter.astype(real), {name: array.astype(real) for name, array in self.states.items()}
            sums, means = {}, {}
            for stage in self.rule.stages:
                constants, _ = self._constants(scale, sums, means)
                unscaled = self.rule.unscaled(gradient.astype(real), constants)
                terms = self.rule.summed(stage, p, unscaled, Values(**states), constants)
                for name, elements in vars(terms).items():
                    assert elements.dtype == real, f"{name} is of {elements.dtype}"
                    if stage.over == "row":
                        means[name] = plain_sums.row_means(elements)
                    else:
                        sums[name] = plain_sums.total(plain_sums.segment_sums(elements.ravel()))
                if stage.over == "group" and group_square is not None:
                    sums |= dict.fromkeys(stage.names, group_square)
            constants, scalars = self._constants(scale, sums, means)
            self.scalar_state |= {name: scalars[name] for name in self.scalar_state if name in scalars}
            gradient = self.rule.prepared(self.rule.unscaled(gradient.astype(real), constants), constants)
            parameter, new = self.rule.update(p, gradient, Values(**states), constants)
            self.parameter = self._stored(parameter, dtype)
            self.states = {name: self._stored(getattr(new, name), dtype) for name in self.states}

    def squares(self, gradient: np.ndarray, grad_scale: float = 1.0) -> list[float]:
        """Sums of the squares of the unscaled gradient, one a segment."""
        with np.errstate(all="ignore"):
            scale = Values(grad_scale=self.real(np.float64(np.float32(grad_scale)) * self.rule.loss_scale))
            unscaled = self.rule.unscaled(gradient.astype(self.real), scale)
            return plain_sums.segment_sums((unscaled * unscaled).ravel())

    def _constants(self, scale: float, sums: Mapping[str, Any], means: Mapping[str, Any]) -> tuple[Values, Any]:
        """c as `update` has it, and the same numbers in float64."""
        rule, a = self.rule.in_float64(), Values(**self.scalar_state)
        scalars = vars(rule.constants(np.float64(self.step), a, scale, Values(**sums)))
        rounded = {name: self.real(value) for name, value in scalars.items() if name not in self.scalar_state}
        return Values(**rounded, **means), scalars

    def _stored(self, value: Any, dtype: np.dtype) -> np.ndarray:
        if not isinstance(value, (int, float)) or isinstance(value, np.generic):
            assert value.dtype == self.real, f"the rule computed in {value.dtype}"
        return np.broadcast_to(np.asarray(value, self.real), self.parameter.shape).astype(dtype)


class Both:
    """One optimizer with groups of (options, arrays), and beside it the plain rule of each of its parameters."""

    def __init__(self, optimizer, *groups, array=np.array):
        self.array = array
        ours = [[fusedopt.Parameter(array(values)) for values in arrays] for _, arrays in groups]
        self.parameters = [parameter for some in ours for parameter in some]
        self.groups = [[Plain(optimizer.rule(**options), values) for values in arrays] for options, arrays in groups]
        self.plains = [plain for some in self.groups for plain in some]
        entries = zip(ours, groups, strict=True)
        self.optimizer = optimizer([{"params": some, **options} for some, (options, _) in entries])

    def step(self, gradients, grad_scale=None):
        scale, following = 1.0 if grad_scale is None else grad_scale, iter(gradients)
        for group in self.groups:
            some = list(zip(group, following))
            clips = any(plain.rule.clip_norm for plain in group)
            squares = [square for plain, g in some for square in plain.squares(g, scale)] if clips else []
            for plain, gradient in some:
                plain.update(gradient, scale, plain_sums.total(squares) if clips else None)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = self.array(gradient)
        self.optimizer.step(grad_scale=grad_scale)

    def replace_states(self, seed, values=extreme):
        """Other values in all states, behind the optimizer's back."""
        for parameter, plain in zip(self.parameters, self.plains, strict=True):
            for number, (name, array) in enumerate(plain.states.items()):
                array[...] = values(array.size, array.dtype.name, seed + number)
                self.optimizer.state[parameter][name][...] = self.array(array)

    def compare(self, host=np.array):
        for parameter, plain in zip(self.parameters, self.plains, strict=True):
            assert_same_bits(host(parameter.data), plain.parameter, f"parameter of {parameter.size}")
            for name, array in plain.states.items():
                assert_same_bits(host(self.optimizer.state[parameter][name]), array, f"{name} of {parameter.size}")
