"""torch.optim's optimizers by their own names, and all others of this library: most steps are one launch."""

from fusedopt.optimizers import PROCEDURES, RULES, classes
from fusedopt.torch import procedures
from fusedopt.torch.optimizer import Optimizer

globals().update(classes(Optimizer, __name__, procedures.BASES))

__all__ = [*RULES, *PROCEDURES]
