"""Optimizers for PyTorch: `from fusedopt.torch import AdamW` in place of `from torch.optim import AdamW`."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"fusedopt.torch needs PyTorch ({error}); pip install torch, or 'fusedopt[torch]'.") from None

from fusedopt.torch.optimizer import Optimizer
from fusedopt.torch.optimizers import *  # noqa: F403  # one class for each rule of fusedopt.rules
from fusedopt.torch.optimizers import PROCEDURES, RULES

__all__ = ["Optimizer", *RULES, *PROCEDURES]
