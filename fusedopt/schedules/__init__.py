"""Schedules: what a learning rate, a weight decay or any other number is at each step, as functions of the step."""

from fusedopt.schedules.cyclic import CosineRestarts, Cyclic, OneCycle
from fusedopt.schedules.decay import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    LinearWarmup,
    MultiStep,
    Piecewise,
    Polynomial,
    Step,
    WarmupStableDecay,
)
from fusedopt.schedules.picture import plot
from fusedopt.schedules.plateau import ReduceLROnPlateau
from fusedopt.schedules.schedule import Lambda, Multiplicative, Product, Scaled, Schedule, Table, Then

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Cyclic",
    "Exponential",
    "InverseSqrt",
    "Lambda",
    "Linear",
    "LinearWarmup",
    "MultiStep",
    "Multiplicative",
    "OneCycle",
    "Piecewise",
    "Polynomial",
    "Product",
    "ReduceLROnPlateau",
    "Scaled",
    "Schedule",
    "Step",
    "Table",
    "Then",
    "WarmupStableDecay",
    "plot",
]
