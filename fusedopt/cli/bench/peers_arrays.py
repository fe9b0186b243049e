"""Peers over arrays: fusedopt's own optimizers, and the same step by hand in NumPy and in CuPy."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

import fusedopt
from fusedopt.backends import cuda, numba_problem
from fusedopt.cli.bench.peers_way import OPTIMIZERS, Array, Build, Peer, leave_gradients, optimizer_named
from fusedopt.cli.naive import NaiveAdam, NaiveSGD, PreallocatedAdam, PreallocatedSGD
from fusedopt.plain import given
from fusedopt.rules import Rule, Values
from fusedopt.storage_choices import CHOICES, Choice

# By the optimizer's name, something with a method `step`, made of parameters and gradients.
ByHand = dict[str, Callable[[Sequence[Any], Sequence[Any]], Any]]

DECAY = OPTIMIZERS["adamw"][1]["weight_decay"]
WHOLE_ARRAYS: ByHand = {"sgd": NaiveSGD, "adam": NaiveAdam, "adamw": functools.partial(NaiveAdam, decay=DECAY)}
PREALLOCATED: ByHand = {
    "sgd": PreallocatedSGD,
    "adam": PreallocatedAdam,
    "adamw": functools.partial(PreallocatedAdam, decay=DECAY),
}


def module_of(device: str) -> ModuleType:
    return cuda.module() if device == "cuda" else np


def library_of(device: str) -> str:
    return "cupy" if device == "cuda" else "numpy"


def gpu_lacks(optimizer: str, device: str) -> str | None:
    return cuda.problem() if device == "cuda" else None


def text_lacks(texts: ByHand) -> Callable[[str, str], str | None]:
    """What there is to say of an optimizer that nobody has written by hand."""

    def lacks(optimizer: str, device: str) -> str | None:
        if optimizer not in texts:
            return f"written for {', '.join(texts)} alone"
        return gpu_lacks(optimizer, device)

    return lacks


def numba_lacks(optimizer: str, device: str) -> str | None:
    return numba_problem()


@contextlib.contextmanager
def chosen(backend: str | None) -> Iterator[None]:
    """`FUSEDOPT_BACKEND` for the optimizers that are built meanwhile, which keep it; None leaves it as it is."""
    if backend is None:
        yield
        return
    before = os.environ.get("FUSEDOPT_BACKEND")
    os.environ["FUSEDOPT_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["FUSEDOPT_BACKEND"]
        else:
            os.environ["FUSEDOPT_BACKEND"] = before


def fused(backend: str | None = None, choice: Choice = CHOICES["float32"]) -> Build:
    """fusedopt's own step, with that value of `FUSEDOPT_BACKEND`, or with the one that there is, and a storage."""

    def build(name: str, weights: list[Array], gradients: list[Array], device: str) -> Peer:
        cls, options = optimizer_named(name)
        xp = module_of(device)
        with chosen(backend):
            dtype = np.dtype(choice.dtype)
            parameters = [fusedopt.Parameter(xp.array(array.astype(dtype))) for array in weights]
            make: Any = cls  # each optimizer has options of its own
            optimizer = make(parameters, **options, **choice.options)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = xp.asarray(gradient.astype(dtype))
        arenas = list(optimizer.arenas())
        scale = functools.partial(multiply, [arena.gradients for arena in arenas])
        return Peer(
            optimizer.step,
            parameters=lambda: [np.array(on_host(parameter.data), np.float32) for parameter in parameters],
            kept=lambda: bytes_of([[arena.data, arena.gradients, *arena.states.values()] for arena in arenas]),
            library=library_of(device),
            scale_gradients=scale if choice.dtype == "float32" else leave_gradients,  # CuPy multiplies no bf16
        )

    return build


def by_hand(texts: ByHand) -> Build:
    """A step that somebody wrote for lists of arrays, which are flat here: neither their time nor their bits change."""

    def build(name: str, weights: list[Array], gradients: list[Array], device: str) -> Peer:
        xp = module_of(device)
        it = texts[name](*([xp.array(array).reshape(-1) for array in arrays] for arrays in (weights, gradients)))
        shapes = [array.shape for array in weights]
        return Peer(
            it.step,
            parameters=lambda: [np.array(on_host(p)).reshape(s) for p, s in zip(it.p, shapes, strict=True)],
            kept=lambda: bytes_of(vars(it).values()),
            library=library_of(device),
            scale_gradients=functools.partial(multiply, it.g),
        )

    return build


class UnfusedRule:
    """fusedopt's rule called as the plain function that it is: every operation goes through memory."""

    def __init__(self, rule: Rule, parameters: Sequence[Any], gradients: Sequence[Any]) -> None:
        self.p, self.g, self.t = list(parameters), list(gradients), 0
        initial = {state.name: rule.initial(state) for state in rule.states()}
        self.states = [{name: 0 * p + np.float32(value) for name, value in initial.items()} for p in parameters]
        self.scalar_state = {name: np.float64(value) for name, value in rule.scalar_state.items()}
        self._rule = rule

    def step(self) -> None:
        self.t += 1
        before = dict(self.scalar_state)
        for i, g in enumerate(self.g):
            s = Values(**self.states[i])
            g, c, after = given(self._rule, self.t, before, self.p[i], g, s, _total, _row_means)
            self.scalar_state |= after
            self.p[i], new = self._rule.update(self.p[i], g, s, c)
            self.states[i] = vars(new)


def _total(elements: Any) -> Any:
    return np.float64(elements.sum(dtype=np.float64))


def _row_means(elements: Any) -> Any:
    return elements.mean(axis=tuple(range(1, elements.ndim)), keepdims=True)


def unfused(name: str, weights: list[Array], gradients: list[Array], device: str) -> Peer:
    """Any rule, `UnfusedRule`."""
    cls, options = optimizer_named(name)
    return by_hand({name: functools.partial(UnfusedRule, cls.rule(**options))})(name, weights, gradients, device)


class ElementwiseSGD:
    """SGD with momentum as one `cupy.ElementwiseKernel` for each tensor."""

    def __init__(self, parameters: Sequence[Any], gradients: Sequence[Any]) -> None:
        self.p, self.g = list(parameters), list(gradients)
        self.b = [0 * p for p in parameters]
        self._kernel = cuda.module().ElementwiseKernel(
            "float32 g, float32 momentum, float32 lr",
            "float32 p, float32 b",
            "b = momentum * b + g; p = p - lr * b",
            "sgd",
        )

    def step(self) -> None:
        for p, g, b in zip(self.p, self.g, self.b, strict=True):
            self._kernel(g, 0.9, 1e-3, p, b)


class ElementwiseAdam:
    """Adam, or AdamW with a `decay`, as one `cupy.ElementwiseKernel` for each tensor."""

    def __init__(self, parameters: Sequence[Any], gradients: Sequence[Any], decay: float = 0.0) -> None:
        self.p, self.g, self.decay, self.t = list(parameters), list(gradients), decay, 0
        self.m, self.v = [0 * p for p in parameters], [0 * p for p in parameters]
        self._kernel = cuda.module().ElementwiseKernel(
            "float32 g, float32 rest1, float32 rest2, float32 step_size, float32 eps, float32 decay",
            "float32 p, float32 m, float32 v",
            "m = m + rest1 * (g - m); v = v + rest2 * (g * g - v); p = p - decay * p - step_size * m / (sqrt(v) + eps)",
            "adam",
        )

    def step(self) -> None:
        self.t += 1
        root = (1 - 0.999**self.t) ** 0.5  # the root's bias correction goes into step size and eps
        step_size = 1e-3 * root / (1 - 0.9**self.t)
        for p, g, m, v in zip(self.p, self.g, self.m, self.v, strict=True):
            self._kernel(g, 1 - 0.9, 1 - 0.999, step_size, 1e-8 * root, 1e-3 * self.decay, p, m, v)


ELEMENTWISE: ByHand = {
    "sgd": ElementwiseSGD,
    "adam": ElementwiseAdam,
    "adamw": functools.partial(ElementwiseAdam, decay=DECAY),
}


def multiply(arrays: Sequence[Any], factor: float) -> None:
    for array in arrays:
        array *= factor


def on_host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


def bytes_of(things: Any) -> int:
    """Of arrays, and of lists and dicts of them; what is neither has none."""
    if hasattr(things, "nbytes"):
        return int(things.nbytes)
    if isinstance(things, dict):
        things = things.values()
    elif isinstance(things, (str, bytes)) or not hasattr(things, "__iter__"):
        return 0
    return sum(map(bytes_of, things))
