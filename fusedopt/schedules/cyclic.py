"""Schedules that rise and fall. In the equations, s is the step, from 0."""

from __future__ import annotations

import dataclasses

from fusedopt.schedules.decay import annealed, powered
from fusedopt.schedules.schedule import Schedule, choice, number, whole


@dataclasses.dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Half waves from base to minimum, one after the other: the first of `first` steps, each next one `multiple` times
    as long.

    Args (steps are counted from 0):
        base: The value at the first step of each wave, and the largest.
        first: Steps of the first wave.
        multiple: How many times as long as the one before each wave is.
        minimum: What each wave falls to.

    Source: `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`; Loshchilov and Hutter 2017, arXiv:1608.03983.
    """

    base: float = number("[0, inf)")
    first: int = whole("[1, inf)")
    multiple: int = whole("[1, inf)", 1)
    minimum: float = number("[0, inf)", 0.0)

    def value(self, step: int) -> float:
        length = self.first
        if self.multiple == 1:
            step %= length
        while step >= length:
            step -= length
            length *= self.multiple
        return annealed(self.base, self.minimum, step / length)


@dataclasses.dataclass(frozen=True)
class OneCycle(Schedule):
    """From initial up to maximum in the first `rise * total - 1` steps, then down to final at step `total - 1`.

    With `three_phase` it is down to initial by step `2 * rise * total - 2`, and only then down to final.

    Args (steps are counted from 0):
        maximum: The value at the top: the learning rate that is meant.
        total: How many steps it takes: as a rule, those of the training.
        initial, final: maximum / 25 and initial / 10,000 where None, which torch gives as `div_factor` and
            `final_div_factor`.
        rise: The share of the steps that goes up.
        anneal: In half waves of a cosine, or straight.

    Source: `torch.optim.lr_scheduler.OneCycleLR`; Smith and Topin 2018, arXiv:1708.07120.
    """

    maximum: float = number("[0, inf)")
    total: int = whole("[1, inf)")
    initial: float | None = number("[0, inf)", None)
    final: float | None = number("[0, inf)", None)
    rise: float = number("[0, 1]", 0.3)
    anneal: str = choice("cos", "linear")
    three_phase: bool = False

    def value(self, step: int) -> float:
        initial = self.maximum / 25 if self.initial is None else self.initial
        final = initial / 1e4 if self.final is None else self.final
        top, end = float(self.rise * self.total) - 1, self.total - 1
        phases = [(top, initial, self.maximum), (end, self.maximum, final)]
        if self.three_phase:
            phases[1:] = [(2 * top, self.maximum, initial), (end, initial, final)]
        begun = 0.0
        for finished, start, stop in phases:
            if step <= finished and finished > begun:
                share = (step - begun) / (finished - begun)
                return annealed(start, stop, share) if self.anneal == "cos" else start + (stop - start) * share
            begun = max(begun, finished)
        return final

    def momentum(self, low: float = 0.85, high: float = 0.95) -> OneCycle:
        """The momentum that goes with this learning rate: low where that is high."""
        return dataclasses.replace(self, maximum=low, initial=high, final=high)


@dataclasses.dataclass(frozen=True)
class Cyclic(Schedule):
    """Triangles: from base to maximum in `up` steps, and back in `down`, without end.

    Args:
        base, maximum: The ends. For a momentum that is cycled against the learning rate, base is the larger one.
        up, down: Steps; `down` is as `up` where None.
        mode: `triangular2` halves the height with each cycle, `exp_range` multiplies it by gamma at each step.
        gamma: Of `exp_range`.

    Source: `torch.optim.lr_scheduler.CyclicLR`; Smith 2017, arXiv:1506.01186.
    """

    base: float = number("[0, inf)")
    maximum: float = number("[0, inf)")
    up: int = whole("[1, inf)", 2000)
    down: int | None = whole("[1, inf)", None)
    mode: str = choice("triangular", "triangular2", "exp_range")
    gamma: float = number("(0, inf)", 1.0)

    def value(self, step: int) -> float:
        down = self.up if self.down is None else self.down
        cycle, place = divmod(step, self.up + down)
        share = place / self.up if place <= self.up else (self.up + down - place) / down
        shrinking = {"triangular": (1.0, 0), "triangular2": (0.5, cycle), "exp_range": (self.gamma, step)}
        return self.base + powered((self.maximum - self.base) * share, *shrinking[self.mode])
