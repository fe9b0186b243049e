"""The optimizers: each is a rule, made into a class."""

from fusedopt import rules
from fusedopt.optimizer import Optimizer


class SGD(Optimizer, rule=rules.SGD): ...


class Adam(Optimizer, rule=rules.Adam): ...


class AdamW(Optimizer, rule=rules.AdamW): ...
