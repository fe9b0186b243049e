"""MegEngine's optimizers by its names, arguments and state dicts, over NumPy and CuPy arrays.

Its GradManager is not here: gradients are assigned (`parameter.grad = ...`).
"""

from fusedopt.clipping import clip_grad_norm as clip_grad_norm
from fusedopt.clipping import clip_grad_value as clip_grad_value
from fusedopt.megengine.custom import Optimizer as Optimizer
from fusedopt.megengine.custom import required as required
from fusedopt.megengine.optimizers import LAMB as LAMB
from fusedopt.megengine.optimizers import SGD as SGD
from fusedopt.megengine.optimizers import Adadelta as Adadelta
from fusedopt.megengine.optimizers import Adagrad as Adagrad
from fusedopt.megengine.optimizers import Adam as Adam
from fusedopt.megengine.optimizers import AdamW as AdamW
from fusedopt.megengine.schedulers import LRScheduler as LRScheduler
from fusedopt.megengine.schedulers import MultiStepLR as MultiStepLR
from fusedopt.parameter import Parameter as Parameter

__all__ = [
    "LAMB",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "LRScheduler",
    "MultiStepLR",
    "Optimizer",
    "Parameter",
    "clip_grad_norm",
    "clip_grad_value",
    "required",
]


def __dir__() -> list[str]:
    return sorted(__all__)
