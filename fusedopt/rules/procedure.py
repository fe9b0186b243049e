"""The base of hyperparameters whose step is a procedure: matrix products, line searches."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from fusedopt.rules.rule import Rule


@dataclasses.dataclass(frozen=True)
class Procedure(Rule):
    """Hyperparameters and state of an optimizer that is no elementwise rule: it has no traced update, and no kernel.

    What every rule has beside its own options, `loss_scale` and `clip_value`, is part of the launch: a procedure does
    not have it. The procedure itself is in `fusedopt.procedures`.
    """

    procedure: ClassVar[bool] = True

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """Its own hyperparameters by name, in the order of the signature."""
        return {name: field for name, field in super().options().items() if name not in Rule.__dataclass_fields__}

    @classmethod
    def unknown_option(cls, name: object) -> str:
        if name in Rule.__dataclass_fields__:
            kind = "optimizers whose step is one launch"
            return f"{cls.__name__} has no option {name!r}, which is for {kind}; leave it out."
        return super().unknown_option(name)
