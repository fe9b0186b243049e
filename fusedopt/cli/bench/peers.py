"""Everything that one would take instead of fusedopt, each run the way that is best for it.

`WAYS` has them all, whatever is installed: `Way.missing` says in one line why one cannot run here, `Way.build` makes it
ready on copies of the same arrays. fusedopt's own come first. Whatever has threads on the CPU is given as many as
fusedopt has, `FUSEDOPT_NUM_THREADS` or one for each core.
"""

from __future__ import annotations

from typing import Any

from fusedopt.cli.bench.peers_arrays import (
    ELEMENTWISE,
    PREALLOCATED,
    WHOLE_ARRAYS,
    by_hand,
    fused,
    gpu_lacks,
    numba_lacks,
    text_lacks,
    unfused,
)
from fusedopt.cli.bench.peers_jax import build as optax_jit
from fusedopt.cli.bench.peers_jax import jax_lacks
from fusedopt.cli.bench.peers_torch import (
    APEX,
    BITSANDBYTES,
    COMPILED,
    DEEPSPEED,
    DEEPSPEED_CPU,
    FLASHOPTIM,
    FOR_LOOP,
    FOREACH,
    FUSED,
    OURS,
    TORCHAO,
    TorchOptimizers,
)
from fusedopt.cli.bench.peers_way import OPTIMIZERS, Peer, Way, is_own, optimizer_named
from fusedopt.storage_choices import CHOICES, Choice

__all__ = ["OPTIMIZERS", "WAYS", "Peer", "Way", "is_own", "optimizer_named", "stored_way", "stored_ways"]

CPU, CUDA, BOTH = ("cpu",), ("cuda",), ("cpu", "cuda")

# torch.compile and optax compute 1 - beta2**t in float32. There beta2 is off by 2**-25, 3e-5 of 1 - beta2; each factor
# of the power rounds by as much, and the root halves both: 3e-5 of an update, which is lr at most.
FLOAT32_CORRECTIONS = 1e-3 * 2**-25 / (1 - 0.999)


def _torch(title: str, optimizers: TorchOptimizers, device: tuple[str, ...], *modules: str, **told: Any) -> Way:
    return Way(title, ("torch", *modules), device, optimizers.build, lacks=optimizers.lacks, **told)


def stored_way(choice: Choice, backend: str | None = None) -> Way:
    """fusedopt's own step with another storage, and with that value of `FUSEDOPT_BACKEND`, or the one that there is."""

    def moved(optimizer: str) -> float:
        cls, options = optimizer_named(optimizer)
        return choice.moved(cls.rule(**options))

    return Way(
        ", ".join(filter(None, ("fusedopt", backend, choice.name))),
        ("numba",) if backend == "numba" else (),
        CPU if backend else BOTH,
        fused(backend, choice),
        exact=choice.dtype == "float32",
        lacks=numba_lacks if backend == "numba" else gpu_lacks,
        any_rule=True,
        dtype=choice.dtype,
        moved=moved,
    )


def stored_ways() -> tuple[Way, ...]:
    """One for each storage that is not float32's."""
    return tuple(stored_way(choice) for choice in CHOICES.values() if choice.options)


WAYS: tuple[Way, ...] = (
    Way("fusedopt", (), BOTH, fused(), lacks=gpu_lacks, any_rule=True),
    Way("fusedopt, numba", ("numba",), CPU, fused("numba"), lacks=numba_lacks, any_rule=True),
    Way("fusedopt, NumPy", (), CPU, fused("numpy"), any_rule=True),
    _torch("fusedopt.torch", OURS, BOTH, any_rule=True),
    _torch("torch for-loop", FOR_LOOP, BOTH),
    _torch("torch foreach", FOREACH, BOTH),
    _torch("torch fused", FUSED, BOTH),
    _torch("torch compile", COMPILED, BOTH, slack=FLOAT32_CORRECTIONS),
    Way("optax jit", ("jax", "jaxlib", "optax"), BOTH, optax_jit, slack=FLOAT32_CORRECTIONS, lacks=jax_lacks),
    _torch("apex fused", APEX, CUDA, "apex", "amp_C"),
    _torch("DeepSpeed FusedAdam", DEEPSPEED, CUDA, "deepspeed"),
    _torch("DeepSpeed CPUAdam", DEEPSPEED_CPU, CPU, "deepspeed"),
    _torch("bitsandbytes 8-bit", BITSANDBYTES, BOTH, "bitsandbytes", exact=False),
    _torch("torchao 8-bit", TORCHAO, BOTH, "torchao", exact=False),
    _torch("FlashOptim 8-bit", FLASHOPTIM, CUDA, "triton", "flashoptim", exact=False),
    Way("NumPy whole arrays", (), CPU, by_hand(WHOLE_ARRAYS), lacks=text_lacks(WHOLE_ARRAYS)),
    Way("NumPy out=", (), CPU, by_hand(PREALLOCATED), lacks=text_lacks(PREALLOCATED)),
    Way("CuPy whole arrays", ("cupy",), CUDA, by_hand(WHOLE_ARRAYS), lacks=text_lacks(WHOLE_ARRAYS)),
    Way("CuPy ElementwiseKernel", ("cupy",), CUDA, by_hand(ELEMENTWISE), lacks=text_lacks(ELEMENTWISE)),
    Way("the rule, unfused", (), BOTH, unfused, lacks=gpu_lacks, any_rule=True),
)
