"""Optimizers whose step is more than one launch: matrix products, line searches, gradients of some rows."""

from fusedopt.optimizer import Optimizer
from fusedopt.procedures.adafactor import Factoring
from fusedopt.procedures.lbfgs import QuasiNewton
from fusedopt.procedures.muon import Orthogonalizing
from fusedopt.procedures.rows import RowWise

# The base of each one's class; all other rules have `Optimizer` itself.
BASES: dict[str, type[Optimizer]] = {
    "Adafactor": Factoring,
    "LBFGS": QuasiNewton,
    "LazyAdam": RowWise,
    "Muon": Orthogonalizing,
    "SparseAdam": RowWise,
}
