"""Optimizers whose step is one kernel launch: CuPy on CUDA, NumPy on the CPU, the same bits on both."""

from typing import TYPE_CHECKING

from fusedopt import functional, schedules
from fusedopt.backends import array_module
from fusedopt.checkpoint import load, save
from fusedopt.clipping import clip_grad_norm, clip_grad_value
from fusedopt.misspelling import unknown_name as _unknown_name
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

_APART = ("torch", "megengine", "mindspore", "testing")  # modules that `import fusedopt` does not import

if not TYPE_CHECKING:  # for which a module with __getattr__ has every name

    def __getattr__(name):
        if name in _APART:
            raise AttributeError(f"module 'fusedopt' has no attribute {name!r} yet; import fusedopt.{name} first.")
        raise _unknown_name(__name__, name, __all__)
