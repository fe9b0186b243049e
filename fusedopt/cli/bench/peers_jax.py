"""The peer over jax arrays: optax under jax.jit, one call a step, everything that it replaces donated."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import numpy as np

from fusedopt.backends.threads import thread_count
from fusedopt.cli.bench.peers_way import OPTIMIZERS, Array, Peer


def jax_module() -> Any:
    """jax, with as many threads as fusedopt has, and without taking most of a GPU's memory for itself."""
    # The size of XLA's thread pool, read when the CPU device is made; without it, as many as the process has cores.
    os.environ.setdefault("PJRT_NPROC", str(thread_count()))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return importlib.import_module("jax")


# XLA compiles the whole step as one program: over ten thousand tensors it took 24 GB of memory.
MOST_TENSORS = 2_000


def jax_lacks(optimizer: str, device: str) -> str | None:
    if optimizer not in OPTIMIZERS:
        return f"compared for {', '.join(OPTIMIZERS)} alone"  # others' defaults and equations differ
    if device == "cuda":
        try:
            jax_module().devices("cuda")
        except RuntimeError as error:  # no plugin for CUDA, or one that finds no GPU
            first = str(error).partition("\n")[0]
            return f"jax finds no GPU here ({first}): pip install 'jax[cuda13]', or [cuda12]"
    return None


class OptaxStep:
    """What changes from step to step. jax's arrays never do: each step has new ones, in the old ones' memory."""

    def __init__(self, name: str, weights: list[Array], gradients: list[Array], device: str) -> None:
        jax, optax = jax_module(), importlib.import_module("optax")
        options = {("learning_rate" if key == "lr" else key): value for key, value in OPTIMIZERS[name][1].items()}
        transform = getattr(optax, name)(**options)
        place = jax.devices(device)[0]  # a jitted call runs where its arguments were put
        # Of copies: on the CPU jax takes over an aligned NumPy array as it is.
        self.p, self.g = ([jax.device_put(np.array(a), place) for a in arrays] for arrays in (weights, gradients))
        self.state = jax.device_put(transform.init(self.p), place)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def update(parameters: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
            updates, state = transform.update(gradients, state, parameters)
            return optax.apply_updates(parameters, updates), state

        self._update, self._jax = update, jax

    def step(self) -> None:
        self.p, self.state = self._update(self.p, self.state, self.g)

    def scale_gradients(self, factor: float) -> None:
        self.g = [gradient * factor for gradient in self.g]

    def finish(self) -> None:
        self._jax.block_until_ready((self.p, self.state))

    def kept(self) -> int:
        return sum(leaf.nbytes for leaf in self._jax.tree.leaves((self.p, self.g, self.state)))


def build(name: str, weights: list[Array], gradients: list[Array], device: str) -> Peer:
    if len(weights) > MOST_TENSORS:
        raise RuntimeError(
            f"XLA makes one program of the step, too large with {len(weights):,} > {MOST_TENSORS:,} tensors"
        )
    it = OptaxStep(name, weights, gradients, device)
    return Peer(
        it.step,
        parameters=lambda: [np.array(p) for p in it.p],
        kept=it.kept,
        library="jax",
        scale_gradients=it.scale_gradients,
        finish=it.finish,
        stream="own",
    )
