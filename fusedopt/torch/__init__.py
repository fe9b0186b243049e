"""Optimizers for PyTorch: `from fusedopt.torch import AdamW` in place of `from torch.optim import AdamW`."""

from typing import TYPE_CHECKING

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"fusedopt.torch needs PyTorch ({error}); pip install torch, or 'fusedopt[torch]'.") from None

from fusedopt.misspelling import unknown_name as _unknown_name
from fusedopt.torch.optimizer import Optimizer
from fusedopt.torch.optimizers import *  # noqa: F403  # one class for each rule of fusedopt.rules
from fusedopt.torch.optimizers import PROCEDURES, RULES

__all__ = ["Optimizer", *RULES, *PROCEDURES]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # for which a module with __getattr__ has every name

    def __getattr__(name):
        raise _unknown_name(__name__, name, __all__)
