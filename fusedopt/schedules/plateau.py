"""ReduceLROnPlateau: the one helper that has state, since it follows a metric and not the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_SAVED = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "min_lrs")
_CONFIGURATION = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps")


class ReduceLROnPlateau:
    """Multiplies the learning rates by a factor when a metric has not improved for some epochs.

    It writes `group["lr"]` of any optimizer that has `param_groups`.

    Args:
        optimizer: Of this library or of torch.
        mode: Whether a metric improves as it falls, "min", or as it rises, "max".
        factor: In [0, 1).
        patience: Epochs without improvement that are borne; the next one lowers the learning rates.
        threshold, threshold_mode: How much better is an improvement: by this share of the best one with "rel", by this
            amount with "abs".
        cooldown: Epochs after a reduction in which none is counted as bad.
        min_lr: A lower bound, or one for each group.
        eps: A reduction by no more than this is left out.

    Raises:
        ValueError: An argument is out of range; a group's learning rate follows a schedule, which would be lost.

    Source: `torch.optim.lr_scheduler.ReduceLROnPlateau`.
    """

    def __init__(
        self,
        optimizer: Any,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        _check_choice("mode", mode, ("min", "max"))
        _check_choice("threshold_mode", threshold_mode, ("rel", "abs"))
        if not 0 <= factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor must be in [0, 1), got {factor}.")
        for name, value in (("patience", patience), ("cooldown", cooldown), ("threshold", threshold), ("eps", eps)):
            if not value >= 0:
                raise ValueError(f"ReduceLROnPlateau: {name} must be in [0, inf), got {value}.")
        count = len(optimizer.param_groups)
        if isinstance(min_lr, Sequence) and len(min_lr) != count:
            raise ValueError(f"ReduceLROnPlateau: {count} param groups need as many min_lr, got {len(min_lr)}.")
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.threshold_mode, self.cooldown, self.eps = threshold, threshold_mode, cooldown, eps
        self.min_lrs = [float(bound) for bound in min_lr] if isinstance(min_lr, Sequence) else [float(min_lr)] * count
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs, self.cooldown_counter, self.last_epoch = 0, 0, 0
        self._check_schedules()

    def _check_schedules(self) -> None:
        for number, group in enumerate(self.optimizer.param_groups):
            followed = getattr(self.optimizer, "schedules", None)
            if "lr" in (getattr(group, "schedules", ()) if followed is None else followed[number]):
                raise ValueError(
                    f"ReduceLROnPlateau: the lr of param group {number} follows a schedule, which it would undo; "
                    f"assign group['lr'] a number first."
                )

    def step(self, metric: Any) -> None:
        """Take note of an epoch's metric, a number or a 0-d array, and lower the learning rates where it is time.

        Raises:
            ValueError: Groups were added, and `min_lr` was given for each group; or a learning rate follows a schedule.
        """
        self._check_schedules()
        current = float(metric)
        improved = self._improved(current)
        bad = 0 if improved or self.cooldown_counter > 0 else self.num_bad_epochs + 1
        if bad > self.patience:
            self._reduce()
        self.last_epoch += 1
        self.best = current if improved else self.best
        self.cooldown_counter = self.cooldown if bad > self.patience else max(0, self.cooldown_counter - 1)
        self.num_bad_epochs = 0 if bad > self.patience else bad

    def _improved(self, current: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        margin = self.best * (1 + sign * self.threshold) if self.threshold_mode == "rel" else self.best
        if self.threshold_mode == "abs":
            margin += sign * self.threshold
        return current < margin if self.mode == "min" else current > margin

    def _reduce(self) -> None:
        groups, bounds = self.optimizer.param_groups, self.min_lrs
        if len(groups) != len(bounds):
            if len(set(bounds)) > 1:
                raise ValueError(
                    f"ReduceLROnPlateau: min_lr was given for {len(bounds)} param groups, and there are {len(groups)}; "
                    f"set min_lrs to one for each."
                )
            bounds = bounds[:1] * len(groups)
        for group, bound in zip(groups, bounds):
            old = float(group["lr"])
            new = max(old * self.factor, bound)
            if old - new > self.eps:
                if hasattr(group["lr"], "fill_"):  # a tensor, which captured graphs read
                    group["lr"].fill_(new)
                else:
                    group["lr"] = new

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: its arguments and counts, as torch names them."""
        return {name: getattr(self, name) for name in (*_CONFIGURATION, *_SAVED)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another one was; keys of torch's that have no meaning here are left out.

        Raises:
            KeyError: A key is missing.
        """
        missing = [name for name in (*_CONFIGURATION, *_SAVED) if name not in state_dict]
        if missing:
            raise KeyError(f"ReduceLROnPlateau: the state dict lacks {', '.join(missing)}.")
        for name in (*_CONFIGURATION, *_SAVED):
            setattr(self, name, state_dict[name])


def _check_choice(name: str, value: str, choices: tuple[str, str]) -> None:
    if value not in choices:
        raise ValueError(f"ReduceLROnPlateau: {name} must be {choices[0]!r} or {choices[1]!r}, got {value!r}.")
