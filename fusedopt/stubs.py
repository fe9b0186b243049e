"""`optimizers.pyi`, written from the rules, for tools that do not run code: `python -m fusedopt.stubs` rewrites it."""

from __future__ import annotations

import inspect
from pathlib import Path

from fusedopt import optimizers
from fusedopt.optimizer import Optimizer

PATH = Path(__file__).with_name("optimizers.pyi")


def stub_text() -> str:
    """The stub of `fusedopt.optimizers`: each class with its constructor's arguments, types and defaults."""
    lines = ["# Written by fusedopt.stubs from the rules.", "from typing import Any", ""]
    lines += ["from fusedopt.optimizer import Optimizer", ""]
    for name, cls in vars(optimizers).items():
        if inspect.isclass(cls) and issubclass(cls, Optimizer) and cls is not Optimizer:
            lines += [f"class {name}(Optimizer):", "    def __init__(", "        self,", "        params: Any,"]
            keyword_only = False
            for option in list(inspect.signature(cls.rule).parameters.values()):
                if option.kind is option.KEYWORD_ONLY and not keyword_only:
                    lines.append("        *,")
                    keyword_only = True
                lines.append(f"        {option.name}: {str(option.annotation).strip(chr(39))} = {option.default!r},")
            lines += ["    ) -> None: ...", ""]
    return "\n".join(lines[:-1]) + "\n"


if __name__ == "__main__":
    PATH.write_text(stub_text())
