"""Optimizers for torch whose step is more than one launch, by torch's own operations."""

from fusedopt.torch.optimizer import Optimizer
from fusedopt.torch.procedures.adafactor import Factoring
from fusedopt.torch.procedures.lbfgs import QuasiNewton
from fusedopt.torch.procedures.muon import Orthogonalizing
from fusedopt.torch.procedures.rows import RowWise

# The base of each one's class; all other rules have `Optimizer` itself.
BASES: dict[str, type[Optimizer]] = {
    "Adafactor": Factoring,
    "LBFGS": QuasiNewton,
    "LazyAdam": RowWise,
    "Muon": Orthogonalizing,
    "SparseAdam": RowWise,
}
