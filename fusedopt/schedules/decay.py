"""Schedules that go from one value to another and stay there. In the equations, s is the step, from 0."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math

from fusedopt.schedules.schedule import Schedule, choice, number, whole


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """`factor * base` while `s < total`, then `base`; without the two, `base` always.

    Args (steps are counted from 0):
        base: The value from step `total` on.
        factor: What it is multiplied by before.
        total: For so many steps.

    Source: `torch.optim.lr_scheduler.ConstantLR`.
    """

    base: float = number("[0, inf)")
    factor: float = number("[0, inf)", 1.0)
    total: int = whole("[0, inf)", 0)

    def value(self, step: int) -> float:
        return self.base * self.factor if step < self.total else self.base


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """`start + (end - start) * min(s, total) / total`.

    Args (steps are counted from 0):
        start: The value at step 0.
        end: That at step `total`, and from there on.
        total: How many steps it takes.

    Source: `torch.optim.lr_scheduler.LinearLR`, whose factors are start/base and end/base.
    """

    start: float = number("[0, inf)")
    end: float = number("[0, inf)")
    total: int = whole("[1, inf)")

    def value(self, step: int) -> float:
        if step >= self.total:
            return self.end
        return self.start + (self.end - self.start) * step / self.total


@dataclasses.dataclass(frozen=True)
class LinearWarmup(Schedule):
    """`base * min(1, (s + 1) / warmup)`: the first step is no step of size 0, and the last of the warm-up is whole.

    Args (steps are counted from 0):
        base: The value at step `warmup - 1`, and from there on.
        warmup: How many steps it takes.
    """

    base: float = number("[0, inf)")
    warmup: int = whole("[1, inf)")

    def value(self, step: int) -> float:
        return self.base * min(1.0, (step + 1) / self.warmup)


@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """`base * gamma ** floor(s / size)`.

    Args (steps are counted from 0):
        base: The value at step 0.
        size: Steps between two changes.
        gamma: What the value is multiplied by at each of them.

    Source: `torch.optim.lr_scheduler.StepLR`.
    """

    base: float = number("[0, inf)")
    size: int = whole("[1, inf)")
    gamma: float = number("[0, inf)", 0.1)

    def value(self, step: int) -> float:
        return powered(self.base, self.gamma, step // self.size)


@dataclasses.dataclass(frozen=True)
class MultiStep(Schedule):
    """`base * gamma ** n`, n of the milestones being at most s.

    Args (steps are counted from 0):
        base: The value at step 0.
        milestones: The steps at which it changes, in order.
        gamma: What it is multiplied by at each of them.

    Source: `torch.optim.lr_scheduler.MultiStepLR`; MegEngine's, with epochs for steps.
    """

    base: float = number("[0, inf)")
    milestones: tuple[int, ...] = whole("[0, inf)")
    gamma: float = number("[0, inf)", 0.1)

    def check(self) -> None:
        _check_order("MultiStep: milestones", self.milestones)

    def value(self, step: int) -> float:
        return powered(self.base, self.gamma, bisect.bisect_right(self.milestones, step))


@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """`values[n]`, n of the boundaries being at most s: one value more than there are boundaries.

    Args (steps are counted from 0):
        boundaries: The steps at which the value changes, in order.
        values: Before the first of them, from it on, and so forth.
    """

    boundaries: tuple[int, ...] = whole("[0, inf)")
    values: tuple[float, ...] = number("[0, inf)")

    def check(self) -> None:
        _check_order("Piecewise: boundaries", self.boundaries)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"Piecewise: {len(self.boundaries)} boundaries need {len(self.boundaries) + 1} values, got "
                f"{len(self.values)}."
            )

    def value(self, step: int) -> float:
        return self.values[bisect.bisect_right(self.boundaries, step)]


@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """`base * gamma ** s`.

    Args (steps are counted from 0):
        base: The value at step 0.
        gamma: What it is multiplied by at each step.

    Source: `torch.optim.lr_scheduler.ExponentialLR`.
    """

    base: float = number("[0, inf)")
    gamma: float = number("[0, inf)")

    def value(self, step: int) -> float:
        return powered(self.base, self.gamma, step)


@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """`end + (base - end) * (1 - min(s, total) / total) ** power`.

    Args (steps are counted from 0):
        base: The value at step 0.
        total: How many steps it takes to the end.
        power: 1: a straight line.
        end: The value at step `total`, and from there on.

    Source: `torch.optim.lr_scheduler.PolynomialLR`.
    """

    base: float = number("[0, inf)")
    total: int = whole("[1, inf)")
    power: float = number("(0, inf)", 1.0)
    end: float = number("[0, inf)", 0.0)

    def value(self, step: int) -> float:
        left: float = 1 - min(step, self.total) / self.total
        return self.end + (self.base - self.end) * math.pow(left, self.power)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """`minimum + (base - minimum) * (1 + cos(pi * s / total)) / 2`, which from `total` on stays at the minimum.

    Args (steps are counted from 0):
        base: The value at step 0, and the largest: the learning rate that is meant.
        total: How many steps it takes to the minimum: as a rule, those of the training.
        minimum: The value at step `total`, and from there on.
        clamp: False: it rises again there, and falls, without end.

    Source: `torch.optim.lr_scheduler.CosineAnnealingLR`, which rises again after `total`, as `clamp=False` does.
    """

    base: float = number("[0, inf)")
    total: int = whole("[1, inf)")
    minimum: float = number("[0, inf)", 0.0)
    clamp: bool = True

    def value(self, step: int) -> float:
        share = (min(step, self.total) if self.clamp else step % (2 * self.total)) / self.total
        return annealed(self.base, self.minimum, share)


@dataclasses.dataclass(frozen=True)
class InverseSqrt(Schedule):
    """`base * min((s + 1) / warmup, sqrt(warmup / (s + 1)))`: linear warm-up, then decay.

    Args (steps are counted from 0):
        base: The value at step `warmup - 1`, and the largest.
        warmup: Steps of warm-up.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    base: float = number("[0, inf)")
    warmup: int = whole("[1, inf)", 1)

    def value(self, step: int) -> float:
        done = (step + 1) / self.warmup
        return self.base * (done if done < 1 else math.sqrt(1 / done))


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """`base * (s + 1) / warmup`, then `base` for `stable` steps, then within `decay` steps down to the minimum:
    `base - (base - minimum) * x`, x being `(s - warmup - stable + 1) / decay`, or its square root.

    Args (steps are counted from 0):
        base: The value of the level part, and the largest.
        warmup, stable, decay: Steps of each part.
        minimum: The value at the last step of the decay, and from there on.
        shape: "linear" or "sqrt".

    Source: Hu et al. 2024 (MiniCPM), arXiv:2404.06395; the square root: Hägele et al. 2024, arXiv:2405.18392.
    """

    base: float = number("[0, inf)")
    warmup: int = whole("[0, inf)")
    stable: int = whole("[0, inf)")
    decay: int = whole("[1, inf)")
    minimum: float = number("[0, inf)", 0.0)
    shape: str = choice("linear", "sqrt")

    def value(self, step: int) -> float:
        if step < self.warmup:
            return self.base * (step + 1) / self.warmup
        done = min(1.0, max(0, step - self.warmup - self.stable + 1) / self.decay)
        return self.base - (self.base - self.minimum) * (math.sqrt(done) if self.shape == "sqrt" else done)


def annealed(start: float, end: float, share: float) -> float:
    """Half a wave of a cosine from one value to another."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def powered(base: float, gamma: float, exponent: int) -> float:
    """`base * gamma ** exponent`; infinite where Python would raise OverflowError."""
    try:
        return base * gamma**exponent
    except OverflowError:
        return math.inf if base else 0.0


def _check_order(what: str, steps: tuple[int, ...]) -> None:
    if any(later < earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"{what} must not decrease, got {steps}; sort them.")
