"""torch.optim's optimizers by their own names: change the import, and a step is one launch."""

from __future__ import annotations

from fusedopt import rules
from fusedopt.torch.optimizer import Optimizer


class SGD(Optimizer, rule=rules.SGD, flags=("foreach", "differentiable", "fused")): ...


class Adam(Optimizer, rule=rules.Adam): ...


class AdamW(Optimizer, rule=rules.AdamW): ...
