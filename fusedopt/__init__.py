"""Optimizers whose step is one kernel launch: CuPy on CUDA, NumPy on the CPU, the same bits on both."""

from fusedopt import functional, schedules
from fusedopt.backends import array_module
from fusedopt.checkpoint import load, save
from fusedopt.clipping import clip_grad_norm, clip_grad_value
from fusedopt.optimizer import Optimizer
from fusedopt.optimizers import *  # noqa: F403  # one class for each rule of fusedopt.rules
from fusedopt.optimizers import PROCEDURES, RULES
from fusedopt.parameter import Parameter
from fusedopt.sparse_gradient import SparseGradient
from fusedopt.version import __version__

__all__ = [
    "Optimizer",
    "Parameter",
    "SparseGradient",
    "__version__",
    "array_module",
    "clip_grad_norm",
    "clip_grad_value",
    "functional",
    "load",
    "save",
    "schedules",
    *RULES,
    *PROCEDURES,
]
