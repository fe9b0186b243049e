"""torch.optim's optimizers by their own names, and all others of this library: a step is one launch."""

from fusedopt.optimizers import RULES, classes
from fusedopt.torch.optimizer import Optimizer

globals().update(classes(Optimizer, __name__))

__all__ = list(RULES)
