"""Optimizers whose step is one kernel launch: CuPy on CUDA, NumPy on the CPU, the same bits on both."""

from fusedopt.backends import array_module
from fusedopt.checkpoint import load, save
from fusedopt.optimizer import Optimizer
from fusedopt.optimizers import SGD, Adam, AdamW
from fusedopt.parameter import Parameter
from fusedopt.version import __version__

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "Parameter", "__version__", "array_module", "load", "save"]
