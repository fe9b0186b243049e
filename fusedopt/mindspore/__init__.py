"""MindSpore's optimizers by the names, arguments and defaults of `mindspore.nn`, over NumPy and CuPy arrays.

Its networks, cells and tensors are not here: parameters are `Parameter`s, gradients and states are arrays.
"""

from fusedopt.mindspore import ops as ops
from fusedopt.mindspore.adafactor import AdaFactor as AdaFactor
from fusedopt.mindspore.adam import Adam as Adam
from fusedopt.mindspore.adam import AdaMax as AdaMax
from fusedopt.mindspore.adam import AdamOffload as AdamOffload
from fusedopt.mindspore.adam import AdamWeightDecay as AdamWeightDecay
from fusedopt.mindspore.adam import Lamb as Lamb
from fusedopt.mindspore.adam import LazyAdam as LazyAdam
from fusedopt.mindspore.custom import Cell as Cell
from fusedopt.mindspore.custom import LearningRateSchedule as LearningRateSchedule
from fusedopt.mindspore.custom import Optimizer as Optimizer
from fusedopt.mindspore.custom import Parameter as Parameter
from fusedopt.mindspore.custom import ParameterTuple as ParameterTuple
from fusedopt.mindspore.groups import trainable_params as trainable_params
from fusedopt.mindspore.lars import LARS as LARS
from fusedopt.mindspore.optimizers import ASGD as ASGD
from fusedopt.mindspore.optimizers import FTRL as FTRL
from fusedopt.mindspore.optimizers import SGD as SGD
from fusedopt.mindspore.optimizers import Adadelta as Adadelta
from fusedopt.mindspore.optimizers import Adagrad as Adagrad
from fusedopt.mindspore.optimizers import Momentum as Momentum
from fusedopt.mindspore.optimizers import ProximalAdagrad as ProximalAdagrad
from fusedopt.mindspore.optimizers import RMSProp as RMSProp
from fusedopt.mindspore.optimizers import Rprop as Rprop
from fusedopt.schedules.mindspore import CosineDecayLR as CosineDecayLR
from fusedopt.schedules.mindspore import ExponentialDecayLR as ExponentialDecayLR
from fusedopt.schedules.mindspore import InverseDecayLR as InverseDecayLR
from fusedopt.schedules.mindspore import NaturalExpDecayLR as NaturalExpDecayLR
from fusedopt.schedules.mindspore import PolynomialDecayLR as PolynomialDecayLR
from fusedopt.schedules.mindspore import WarmUpLR as WarmUpLR
from fusedopt.schedules.mindspore import cosine_decay_lr as cosine_decay_lr
from fusedopt.schedules.mindspore import exponential_decay_lr as exponential_decay_lr
from fusedopt.schedules.mindspore import inverse_decay_lr as inverse_decay_lr
from fusedopt.schedules.mindspore import natural_exp_decay_lr as natural_exp_decay_lr
from fusedopt.schedules.mindspore import piecewise_constant_lr as piecewise_constant_lr
from fusedopt.schedules.mindspore import polynomial_decay_lr as polynomial_decay_lr
from fusedopt.schedules.mindspore import warmup_lr as warmup_lr

__all__ = [
    "ASGD",
    "FTRL",
    "LARS",
    "SGD",
    "AdaFactor",
    "AdaMax",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamOffload",
    "AdamWeightDecay",
    "Cell",
    "CosineDecayLR",
    "ExponentialDecayLR",
    "InverseDecayLR",
    "Lamb",
    "LazyAdam",
    "LearningRateSchedule",
    "Momentum",
    "NaturalExpDecayLR",
    "Optimizer",
    "Parameter",
    "ParameterTuple",
    "PolynomialDecayLR",
    "ProximalAdagrad",
    "RMSProp",
    "Rprop",
    "WarmUpLR",
    "cosine_decay_lr",
    "exponential_decay_lr",
    "inverse_decay_lr",
    "natural_exp_decay_lr",
    "ops",
    "piecewise_constant_lr",
    "polynomial_decay_lr",
    "trainable_params",
    "warmup_lr",
]


def __dir__() -> list[str]:
    return sorted(__all__)
