"""What a peer of the benchmark is: one way to take a step, before it is built and after; and what all compute."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import types
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

import fusedopt
from fusedopt.cli.rule_named import rule_named

Array = np.ndarray[Any, Any]

# What all of them compute. The texts by hand have the learning rate, the betas and eps of this in them.
OPTIMIZERS: dict[str, tuple[type[fusedopt.Optimizer], dict[str, Any]]] = {
    "sgd": (fusedopt.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "adam": (fusedopt.Adam, {"lr": 1e-3}),
    "adamw": (fusedopt.AdamW, {"lr": 1e-3, "weight_decay": 1e-2}),
}


@functools.cache
def optimizer_named(name: str) -> tuple[type[fusedopt.Optimizer], dict[str, Any]]:
    """The class and its options: one of `OPTIMIZERS`; any rule of fusedopt's, in any case, with its defaults; or one of
    the user's own, as `rule_named` takes it.

    Raises:
        ValueError, ImportError, OSError: There is none of that name.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    rule = rule_named(name)
    if rule.__module__.startswith("fusedopt.rules."):
        # RMSprop's first steps are ten times its learning rate: with its default, weights of a model grow fivefold.
        return getattr(fusedopt, rule.__name__), {"lr": LR} if getattr(rule(), "lr", 0) > LR else {}
    return types.new_class(rule.__name__, (fusedopt.Optimizer,), {"rule": rule}), {}


def is_own(name: str) -> bool:
    """Whether it is a rule of the user's own."""
    return not optimizer_named(name)[0].rule.__module__.startswith("fusedopt.rules.")


BUILD_APEX = "build github.com/NVIDIA/apex with its CUDA extensions"
# How to get a module that `pip install <its name>` does not give.
CURES = {
    "apex": BUILD_APEX,
    "amp_C": BUILD_APEX,
    "cupy": "pip install 'fusedopt[cuda13]', or [cuda12]",
    "numba": "pip install 'fusedopt[numba]'",
    "torch": "pip install 'fusedopt[torch]'",
}


LR = 1e-3  # at most, where it is not said


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """Distributions by the modules that they bring; reads the metadata of all that is installed."""
    return importlib.metadata.packages_distributions()


def nothing() -> None:
    """What there is to wait for where a step is queued on the current stream, or done when it returns."""


def leave_gradients(factor: float) -> None:
    """What scales no gradients, and so is not compared."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """One way to take a step, ready to take it.

    Attributes:
        step: Starts one step; on a GPU it returns as soon as the work is queued.
        parameters: The parameters as they are now: float32 copies on the host, in the shapes that were given.
        kept: Bytes kept from step to step: parameters, gradients, states, scratch arrays.
        library: Whose allocator its memory comes from: "numpy", "cupy", "torch" or "jax".
        scale_gradients: Multiplies all gradients by a number, where they are.
        finish: Waits for the library's own queue.
        stream: "current" where events on the current stream see the work (CuPy's and torch's are the same one unless
            somebody changes it), "own" for jax, whose streams nobody else sees.
    """

    step: Callable[[], object]
    parameters: Callable[[], list[Array]]
    kept: Callable[[], int]
    library: str
    scale_gradients: Callable[[float], object] = leave_gradients
    finish: Callable[[], object] = nothing
    stream: str = "current"


Build = Callable[[str, list[Array], list[Array], str], Peer]


def nothing_lacks(optimizer: str, device: str) -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to take the step, not yet built: no memory is taken, no library loaded.

    Attributes:
        title: As tables and `--peers` name it.
        needs: The modules that it imports beyond fusedopt's own dependencies.
        device: Where it runs, of "cpu" and "cuda".
        build: Makes it ready, from the optimizer's name, weights and gradients (float32, of any shape; it makes copies)
            and the device.
        exact: Whether it computes the same in float32; False for 8-bit states, whose results are not compared.
        slack: How much further off than rounding each of its steps may put a parameter.
        lacks: Why it cannot run here though the modules are installed: takes the optimizer's name and the device.
        any_rule: Whether it can step a rule of the user's own.
        dtype: Of its parameters and gradients.
        moved: Bytes a parameter that its step must move, of the optimizer's name; None: as many as in float32.
    """

    title: str
    needs: tuple[str, ...]
    device: tuple[str, ...]
    build: Build
    exact: bool = True
    slack: float = 0.0
    lacks: Callable[[str, str], str | None] = nothing_lacks
    any_rule: bool = False
    dtype: str = "float32"
    moved: Callable[[str], float] | None = None

    def bytes_moved(self, task: Any) -> int:
        """What its step of a `measure.Task` must move."""
        return int(task.bytes if self.moved is None else round(self.moved(task.optimizer) * task.work.parameters))

    def missing(self, optimizer: str, device: str) -> str | None:
        """One line on why it cannot run here, with the cure where there is one; None if it can."""
        if device not in self.device:
            return f"for {' and '.join({'cpu': 'the CPU', 'cuda': 'CUDA'}[name] for name in self.device)} alone"
        for module in self.needs:
            if find_spec(module) is None:
                return f"{module} is not installed: {CURES.get(module, f'pip install {module}')}"
        return self.lacks(optimizer, device)

    def versions(self) -> dict[str, str]:
        """Of the distributions that its modules come from, by their names."""
        names = {name for module in self.needs for name in _owners().get(module, ())}
        return {name: importlib.metadata.version(name) for name in sorted(names)}
