"""MegEngine's learning rate schedulers, which write to param groups. `fusedopt.schedules` has functions of the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

from fusedopt.groups import Group
from fusedopt.megengine.custom import Optimizer


class LRScheduler(ABC):
    """Base class: a subclass says what `get_lr()` is at `self.current_epoch`; `step()` writes it to the groups.

    Args:
        optimizer: One of this module. Each group's `lr` is kept as its `initial_lr`, where it has none.
        current_epoch: -1 at the start; the constructor calls `step()`, so epoch 0 begins. To go on with a run, the last
            epoch that was finished: then each group must have `initial_lr`.

    Raises:
        TypeError: `optimizer` is none.
        KeyError: A run goes on and a group has no `initial_lr`.

    Source: `megengine.optimizer.LRScheduler`.
    """

    def __init__(self, optimizer: Any, current_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"a scheduler takes an optimizer of fusedopt.megengine, got {type(optimizer).__name__}.")
        for number, group in enumerate(optimizer.param_groups):
            if "initial_lr" not in group and current_epoch != -1:
                raise KeyError(
                    f"param group {number} has no 'initial_lr', which a run that goes on after epoch {current_epoch} "
                    f"needs; load the optimizer's state dict of that run first, or give the group initial_lr."
                )
        for group in optimizer.param_groups:
            if "initial_lr" not in group:
                _keep_initial(group)
        self.optimizer = optimizer
        self.current_epoch = current_epoch
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.step()

    @abstractmethod
    def get_lr(self) -> list[float]:
        """The learning rate of each group at `self.current_epoch`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: not the learning rates, which are the optimizer's."""

    @abstractmethod
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned. The groups' learning rates change at the next `step` alone."""

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next epoch, or to this one, and write its learning rates to the groups."""
        self.current_epoch = self.current_epoch + 1 if epoch is None else epoch
        for group, lr in zip(self.optimizer.param_groups, self.get_lr()):
            group["lr"] = lr


class MultiStepLR(LRScheduler):
    """lr <- initial_lr gamma^(number of milestones that are not after the epoch).

    Args:
        optimizer, current_epoch: As for `LRScheduler`.
        milestones: Epochs, none before the one in front of it.
        gamma: What each of them multiplies the learning rates by.

    Raises:
        ValueError: The milestones are not in order.

    Source: `megengine.optimizer.MultiStepLR`.
    """

    def __init__(self, optimizer: Any, milestones: Iterable[int], gamma: float = 0.1, current_epoch: int = -1) -> None:
        self.milestones = list(milestones)
        if self.milestones != sorted(self.milestones):
            raise ValueError(f"MultiStepLR: milestones must be in increasing order, got {self.milestones}; sort them.")
        self.gamma = gamma
        super().__init__(optimizer, current_epoch)

    def get_lr(self) -> list[float]:
        factor = self.gamma ** bisect_right(self.milestones, self.current_epoch)
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {"milestones": list(self.milestones), "gamma": self.gamma, "current_epoch": self.current_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for key in self.state_dict():
            if key not in state_dict:
                raise KeyError(f"the scheduler's state dict lacks {key!r}; it has {', '.join(map(repr, state_dict))}.")
        self.milestones = list(state_dict["milestones"])
        self.gamma, self.current_epoch = state_dict["gamma"], state_dict["current_epoch"]


def _keep_initial(group: Any) -> None:
    keep = group.keep if isinstance(group, Group) else group.update  # ours takes no key that it does not know otherwise
    keep({"initial_lr": group["lr"]})
