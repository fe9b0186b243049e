"""The base of hyperparameters whose step is a procedure: matrix products, line searches."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from fusedopt.rules.declaration import STORAGE_OPTIONS
from fusedopt.rules.rule import Rule


@dataclasses.dataclass(frozen=True)
class Procedure(Rule):
    """Hyperparameters and state of an optimizer that is no elementwise rule: it has no traced update, and no kernel.

    What every rule does to the gradient, `loss_scale` and `clip_value`, is part of the launch: a procedure does not
    have it. How arrays are kept can be chosen where launches write them. The procedure itself is in
    `fusedopt.procedures`.
    """

    procedure: ClassVar[bool] = True

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """Its own hyperparameters by name, in the order of the signature, and those of storages where it has some."""
        shared = Rule.__dataclass_fields__.keys() - (() if cls.no_storages else {*STORAGE_OPTIONS, "seed"})
        return {name: field for name, field in super().options().items() if name not in shared}

    @classmethod
    def unknown_option(cls, name: object) -> str:
        if name in STORAGE_OPTIONS and cls.no_storages:
            return f"{cls.__name__}: {name} is not for {cls.__name__}, {cls.no_storages}."
        if name in Rule.__dataclass_fields__ and name not in cls.options():
            kind = "optimizers whose step is one launch"
            return f"{cls.__name__} has no option {name!r}, which is for {kind}; leave it out."
        return super().unknown_option(name)
