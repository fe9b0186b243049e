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
    """

    options: Options
    parameter: tuple[float, ...]
    steps: int = 3
    lrs: tuple[float, ...] = ()


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
            weight_decay is among them, if the optimizer has it.
        first_move: (gradient, options) -> the parameter's change at the first step without weight decay.
        coasts: options -> whether a zero gradient, after others, still moves the parameter without weight decay.
        golden: Known results.
        unlike: Why something that holds for other optimizers does not for this one, by a name that `each_combination`
            is given.
    """

    optimizer: type[fusedopt.Optimizer]
    reference: type[torch.optim.Optimizer]
    main: Options
    choices: Mapping[str, tuple[Any, ...]]
    first_move: Callable[[np.ndarray, Options], np.ndarray]
    coasts: Callable[[Options], bool]
    golden: tuple[Golden, ...]
    unlike: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def rule(self) -> type[Rule]:
        return self.optimizer.rule

    @property
    def name(self) -> str:
        return self.optimizer.__name__

    @property
    def of_torch(self) -> bool:
        """Whether torch has the optimizer."""
        return self.reference.__module__.startswith("torch.optim")

    def combinations(self) -> Iterator[Options]:
        """`main` with every combination of the choices."""
        for values in itertools.product(*self.choices.values()):
            yield {**self.main, **dict(zip(self.choices, values, strict=True))}

    def valid(self) -> list[Options]:
        """The combinations that torch accepts."""
        return [options for options in self.combinations() if self.accepts(options)]

    def accepts(self, options: Options) -> bool:
        """Whether torch does."""
        try:
            self.reference([torch.zeros(1)], **options)
        except ValueError:
            return False
        return True


def _adam_first_move(gradient: np.ndarray, options: Options) -> np.ndarray:
    return -options["lr"] * gradient / (np.abs(gradient) + options["eps"])


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
        ),
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
        ),
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
        ),
    ),
    Case(
        fusedopt.Lion,
        references.Lion,
        main={"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1},
        choices={"weight_decay": (0.1, 0.0), "maximize": (False, True)},
        first_move=lambda g, options: -options["lr"] * np.sign(g),
        coasts=lambda options: True,
        golden=(Golden({"lr": 0.01, "weight_decay": 0.1}, (0.987012989, -2.004015988, 0.4885314895, 0.23925074975)),),
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
        unlike={"infinity stays": INFINITE_NORM, "elements are alone": OF_THE_TENSOR},
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
        unlike={"infinity stays": INFINITE_NORM, "elements are alone": OF_THE_TENSOR},
    ),
)


# What is no matter of the mathematics is tested on these: state from the gradient, state with a step, a fixed option.
REPRESENTATIVE = CASES[:3]


def _title(case: Case, options: Options) -> str:
    return "-".join([case.name, *(f"{name}={options[name]}" for name in case.choices)])


each_case = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
each_representative = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in REPRESENTATIVE])


def each_combination(*holds: str) -> Any:
    """Each case with its valid options; without those of which `unlike` says that one of these does not hold."""
    cases = [case for case in CASES if not case.unlike.keys() & set(holds)]
    combinations = [pytest.param(case, o, id=_title(case, o)) for case in cases for o in case.valid()]
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
