"""Who takes part in `bench`: the fused step, what one writes by hand, and torch's three ways where it is installed."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

import fusedopt
from fusedopt.backends.threads import thread_count
from fusedopt.cli.character_model import Array
from fusedopt.cli.naive import NaiveAdam, NaiveSGD, PreallocatedAdam, PreallocatedSGD
from fusedopt.cli.side_by_side import Contestant

# What all of them compute; the ones by hand have these numbers in their text.
OPTIMIZERS: dict[str, tuple[type[fusedopt.Optimizer], dict[str, float]]] = {
    "sgd": (fusedopt.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "adam": (fusedopt.Adam, {"lr": 1e-3}),
    "adamw": (fusedopt.AdamW, {"lr": 1e-3, "weight_decay": 1e-2}),
}
BY_HAND: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sgd": (NaiveSGD, PreallocatedSGD),
    "adam": (NaiveAdam, PreallocatedAdam),
    "adamw": (functools.partial(NaiveAdam, decay=1e-2), functools.partial(PreallocatedAdam, decay=1e-2)),
}
TORCH: dict[str, dict[str, bool]] = {
    "torch for-loop": {"foreach": False, "fused": False},
    "torch foreach": {"foreach": True},
    "torch fused": {"fused": True},
}


def contestants(
    xp: ModuleType, name: str, weights: Sequence[Array], gradients: Sequence[Array]
) -> dict[str, Contestant]:
    """By title, fusedopt first, each with copies of the NumPy arrays."""
    cls, options = OPTIMIZERS[name]
    library = "NumPy" if xp is np else "CuPy"
    found = {f"fusedopt.{cls.__name__}": _fused(xp, cls, options, weights, gradients)}
    for how, by_hand in zip(("whole arrays", "out="), BY_HAND[name], strict=True):
        it = by_hand([xp.array(array) for array in weights], [xp.array(array) for array in gradients])
        found[f"{library} {how}"] = _by_hand(xp, it)
    if find_spec("torch"):
        # On a busy machine, threads that spin at a barrier slow torch tenfold, and take time from the others.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
        import torch  # takes seconds

        torch.set_num_threads(thread_count())
        if xp is np or torch.cuda.is_available():
            for title, way in TORCH.items():
                found[title] = _of_torch(xp, getattr(torch.optim, cls.__name__), options | way, weights, gradients)
    return found


def _fused(
    xp: ModuleType, cls: Any, options: dict[str, float], weights: Sequence[Array], gradients: Sequence[Array]
) -> Contestant:
    parameters = [fusedopt.Parameter(xp.array(array)) for array in weights]
    optimizer = cls(parameters, **options)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = xp.asarray(gradient)
    arenas = list(optimizer.arenas())
    return Contestant(
        xp,
        optimizer.step,
        parameters=lambda: [parameter.data for parameter in parameters],
        arrays=lambda: [[arena.data, arena.gradients, *arena.states.values()] for arena in arenas],
    )


def _by_hand(xp: ModuleType, it: Any) -> Contestant:
    return Contestant(xp, it.step, parameters=lambda: it.p, arrays=lambda: vars(it).values())


def _of_torch(
    xp: ModuleType, cls: Any, options: dict[str, Any], weights: Sequence[Array], gradients: Sequence[Array]
) -> Contestant:
    import torch

    device = "cpu" if xp is np else f"cuda:{xp.cuda.Device().id}"
    parameters = [torch.nn.Parameter(torch.tensor(array, device=device)) for array in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient, device=device)
    optimizer = cls(parameters, **options)
    return Contestant(
        xp,
        optimizer.step,
        parameters=lambda: [parameter.detach().cpu().numpy() for parameter in parameters],
        arrays=lambda: [[p, p.grad, *filter(torch.is_tensor, optimizer.state[p].values())] for p in parameters],
        of_torch=True,
    )
