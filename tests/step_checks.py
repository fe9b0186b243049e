"""What a step on an emulated device must do, as functions that fail where it does not.

`test_emulated` runs them on the kernel's text, `test_mutants` on wrong texts, `sanitized_steps` under a sanitizer; so
neither torch nor pytest's fixtures are in here.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import ml_dtypes  # noqa: F401  # makes "bfloat16" a name that NumPy knows
import numpy as np

import fusedopt
from emulated import EmulatedArray
from emulator.build import build, launch
from fusedopt.backends import device
from fusedopt.backends.device import CHUNK, LAUNCH, Uploads, kernel_texts, span_dtype
from fusedopt.cuda_text import Variant, rule_text
from fusedopt.layout import chunks_of
from fusedopt.rules import Rule, State, Values, hyperparameter, power
from fusedopt.storage import storage_of
from fusedopt.tracing import trace

DTYPES = ("float32", "float64", "float16", "bfloat16")
SIZES = (0, 1, 3, 17, 4097, 0, 33)
EXTREMES = [0.0, -0.0, 5e-324, 1e-45, -1e-40, 6e-8, 1.0, -1e-5, 6e4, 3.4e38, -1e30, np.inf, -np.inf, np.nan]


@dataclass(frozen=True)
class NAdam(Rule):
    """A rule with scalar state, in NAdam's way but for the schedule of mu."""

    lr: float = hyperparameter(1e-2, "[0, inf)")
    beta: float = hyperparameter(0.9, "[0, 1)")

    state = ("exp_avg", State("exp_avg_sq"))
    scalar_state = {"mu_product": 1.0, "calls": 0.0, "untouched": 7.0}  # noqa: RUF012  # a rule's declaration

    def scalars(self, step: Any, a: Any) -> Values:
        mu_product = a.mu_product * (self.beta * (1 - 0.5 * power(0.96, step)))
        correction = self.lr / (1 - mu_product)
        return Values(mu_product=mu_product, calls=a.calls + 1, step_size=correction, mu=self.beta, old=a.mu_product)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        exp_avg = c.mu * s.exp_avg + (g - c.mu * g)
        exp_avg_sq = 0.5 * s.exp_avg_sq + 0.5 * (g * g)
        return p - c.step_size * c.old * (exp_avg / (np.sqrt(exp_avg_sq) + 1e-3)), Values(
            exp_avg=exp_avg, exp_avg_sq=exp_avg_sq
        )


class NAdamOptimizer(fusedopt.Optimizer, rule=NAdam): ...


def values(size: int, dtype: str, seed: int) -> np.ndarray:
    """Ordinary numbers, numbers of every magnitude, and extremes."""
    random = np.random.default_rng([seed, size])
    kinds = [
        random.standard_normal(size),
        random.standard_normal(size),
        random.standard_normal(size) * 10 ** random.uniform(-30, 30, size),
        random.choice(EXTREMES, size),
    ]
    with np.errstate(all="ignore"):
        return np.choose(random.integers(0, len(kinds), size), kinds).astype(dtype)


def same(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Every element has the same bits in both, or is NaN in both: a NaN's sign and payload differ by chip."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    actual, expected, kind = actual.ravel(), expected.ravel(), f"u{expected.itemsize}"
    with np.errstate(all="ignore"):
        equal = (actual.view(kind) == expected.view(kind)) | (np.isnan(actual) & np.isnan(expected))
    wrong = np.flatnonzero(~equal)
    if len(wrong):
        got, wanted = actual[wrong[0]], expected[wrong[0]]
        raise AssertionError(
            f"{what}: {len(wrong)} of {equal.size} differ, the first at {wrong[0]}: {got}, not {wanted}"
        )


def same_results(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        same(found[name], expected[name], name)


# --- whole steps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """Some steps of one optimizer.

    Attributes:
        groups: Each one's options and dtype; it has a parameter of each of `sizes`, which may be shapes.
        scalars: `grad_scale` and `found_inf` of each step, as keywords.
        without: Every so many steps each parameter in turn has no gradient; 0 is never.
        values: Makes parameters and gradients, of a size, a dtype and a seed.
    """

    optimizer: type[fusedopt.Optimizer]
    groups: tuple[tuple[Mapping[str, Any], str], ...]
    sizes: Sequence[int | tuple[int, ...]] = SIZES
    scalars: Sequence[Mapping[str, Any]] = ({}, {"grad_scale": 3.0}, {})
    without: int = 0
    values: Callable[[int, str, int], np.ndarray] = values

    def after(self, array: type[np.ndarray]) -> dict[str, np.ndarray]:
        """Every parameter, state and counter after the steps, by name, on the host."""
        entries, parameters = [], []
        for options, dtype in self.groups:
            arrays = [
                self.values(math.prod(np.atleast_1d(size)), dtype, seed).reshape(size)
                for seed, size in enumerate(self.sizes)
            ]
            some = [fusedopt.Parameter(values.view(array)) for values in arrays]
            entries.append({"params": some, **options})
            parameters += some
        optimizer = self.optimizer(entries)
        for number, scalars in enumerate(self.scalars):
            for i, parameter in enumerate(parameters):
                absent = self.without and (number + i) % self.without == 0
                gradient = self.values(parameter.size, parameter.dtype.name, 1000 * (number + 1) + i)
                parameter.grad = None if absent else gradient.reshape(parameter.shape).view(array)
            optimizer.step(**scalars)
        host = next(optimizer.arenas()).memory.host
        found = {f"parameter {i}": host(parameter.data) for i, parameter in enumerate(parameters)}
        for i, state in optimizer.state_dict()["state"].items():
            found |= {f"{name} of {i}": np.asarray(array) for name, array in state.items()}
        for i, arena in enumerate(optimizer.arenas()):
            found[f"counters of arena {i}"] = host(arena.counters)
        return found

    def check(self, array: type[np.ndarray]) -> None:
        """It is the same on this device as on NumPy, to the bit."""
        same_results(self.after(array), self.after(np.ndarray))


ADAM = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
ONE = Session(fusedopt.Adam, ((ADAM, "float32"),), sizes=(0, 5, 129, CHUNK + 5))
MIXED = Session(
    fusedopt.Adam,
    tuple(
        ({**ADAM, "lr": 0.01 * (1 + i), "amsgrad": dtype in ("float32", "bfloat16")}, dtype)
        for i, dtype in enumerate(DTYPES)
    ),
    sizes=(0, 1, 3, 3000, 0, 33),
    without=2,
)
SKIPPING = Session(
    fusedopt.Adam,
    ((ADAM, "float32"),),
    sizes=(5, 0),
    scalars=({}, {"found_inf": 2.0}, {"found_inf": 0.0}, {"found_inf": np.inf}, {"found_inf": -0.0}),
)
COUNTING = Session(NAdamOptimizer, (({}, "float32"), ({"beta": 0.5}, "float64")), (0, 7, 300), [{}] * 40, without=3)


def ordinary(size: int, dtype: str, seed: int) -> np.ndarray:
    """Numbers of which no norm is infinite, which would hide what a step does."""
    return np.random.default_rng([seed, size]).standard_normal(size).astype(dtype)


# Of SGD, which has the least beside them: all three stages of a step, over rows and tensors of more than a segment.
STAGED = Session(
    fusedopt.LARS,
    (
        ({"clip_norm": 1.0, "grad_centralization": True, "weight_decay": 0.1, "trust_coefficient": 0.1}, "float32"),
        ({"clip_norm": 0.5, "trust_coefficient": 0.5}, "float64"),
        ({"grad_centralization": True, "adapt": False}, "bfloat16"),
        ({"adapt": False}, "float32"),
    ),
    sizes=((3, 5), 0, 4097, (2, 4099), (0, 7), (40, 2, 3), 70_000, (1, 9000)),
    values=ordinary,
    without=5,
)


def check_stages(array: type[EmulatedArray]) -> None:
    """Sums over groups, rows and tensors, in three launches before the update."""
    array.__fusedopt_backend__.surface.launches.clear()
    STAGED.check(array)
    assert len(array.__fusedopt_backend__.surface.launches) == 4 * len(STAGED.scalars)


def check_one(array: type[EmulatedArray]) -> None:
    ONE.check(array)


def check_skipping(array: type[EmulatedArray]) -> None:
    SKIPPING.check(array)


def check_counting(array: type[EmulatedArray]) -> None:
    COUNTING.check(array)


GEOMETRIES = [  # grid, threads, order
    *((grid, 64, order) for grid in (1, 2, 3, 50) for order in (0, 1, 7)),
    *((3, threads, order) for threads in (32, 256) for order in (0, 1, 7)),
]


def check_mixed(array: type[EmulatedArray], geometry: tuple[int, int, int], chunk: int = 256) -> None:
    """Groups of all dtypes and of other flags, in chunks so small that a block walks over many spans."""
    surface = array.__fusedopt_backend__.surface
    surface.grid, surface.threads, surface.order = geometry
    surface.launches.clear()
    with mock.patch.object(device, "CHUNK", chunk):
        MIXED.check(array)
    assert len(surface.launches) == len(MIXED.scalars)


def check_backward(array: type[EmulatedArray]) -> None:
    check_mixed(array, (2, 64, 1))


def check_wide_blocks(array: type[EmulatedArray]) -> None:
    check_mixed(array, (3, 256, 0), chunk=2048)


@contextlib.contextmanager
def misaligned(array: type[EmulatedArray], stream: int, elements: int) -> Iterator[None]:
    """Within it one buffer of the one arena that is made starts so many elements off.

    Args:
        stream: 0 for the parameters, 1 for the gradients, 2 and more for the states.
    """
    backend = array.__fusedopt_backend__
    buffers = itertools.count()

    def zeros(count: int, dtype: np.dtype) -> Any:
        shift = elements if next(buffers) == stream else 0
        return backend.surface.zeros(count + shift, dtype)[shift:]

    with mock.patch.object(backend, "zeros", zeros):
        yield


def check_misaligned(array: type[EmulatedArray], dtype: str = "float32", stream: int = 2, elements: int = 1) -> None:
    session = Session(fusedopt.Adam, (({**ADAM, "amsgrad": True}, dtype),), sizes=(300,))
    with misaligned(array, stream, elements):
        session.check(array)


# --- parts of the kernel alone ----------------------------------------------------------------------------------------

CONVERT = """
#include "storage.cuh"
struct Launch {
  const float* floats; Half* halves; BFloat16* bfloats; unsigned long long count;
  const unsigned short* bits; float* of_halves; float* of_bfloats;
};
extern "C" __global__ void convert(const Launch launch) {
  for (unsigned long long i = threadIdx.x; i < launch.count; i += blockDim.x) {
    narrow(launch.floats[i], launch.halves[i]);
    narrow(launch.floats[i], launch.bfloats[i]);
  }
  for (unsigned i = threadIdx.x; i < 65536; i += blockDim.x) {
    widen(Half{launch.bits[i]}, launch.of_halves[i]);
    widen(BFloat16{launch.bits[i]}, launch.of_bfloats[i]);
  }
}
"""


def check_conversions(array: type[EmulatedArray]) -> None:
    """Every half widens, and floats around every half and every tie narrow, as NumPy and ml_dtypes have it."""
    every = np.arange(65536, dtype=np.uint16)
    of_halves, of_bfloats = (every.view(dtype).astype(np.float32) for dtype in ("float16", "bfloat16"))
    bits = np.concatenate([of_halves.view(np.uint32), every.astype(np.uint32) << 16])
    near = [bits + np.uint32(d) for d in (0, 1, 2, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    floats = np.concatenate(near).view(np.float32)
    with np.errstate(all="ignore"):
        expected = [floats.astype("float16"), floats.astype("bfloat16"), of_halves, of_bfloats]
    found = [np.zeros_like(array) for array in expected]
    pointers = [floats, found[0], found[1], len(floats), every, found[2], found[3]]
    arguments = np.array([x if isinstance(x, int) else x.ctypes.data for x in pointers], np.uint64)
    texts = array.__fusedopt_backend__.surface.edit(dict(kernel_texts()[1]))
    launch(build(CONVERT, texts), "convert", 1, 32, arguments.tobytes())
    for what, one, other in zip(("half", "bfloat16", "of half", "of bfloat16"), found, expected, strict=True):
        same(one, other, what)


BEYOND = 2**32 + 5  # elements
MARGIN = 8


def _reserved(count: int, dtype: np.dtype) -> np.ndarray:
    """Zeros that take no memory until they are written; raises OSError where the system refuses."""
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return np.frombuffer(memory, np.uint8).view(dtype)


def check_large_offsets(array: type[EmulatedArray], dtype: str = "float32") -> None:
    """Of a span of 2**32 + 5 elements the chunks at 0, 2**31 and 2**32, the last, alone change theirs and no others.

    Raises OSError where the system refuses so much address space.
    """
    kind, backend = np.dtype(dtype), array.__fusedopt_backend__
    rule = fusedopt.SGD.rule(lr=0.5, momentum=0.5)
    variant = Variant(trace(rule), storage_of(rule, kind.name, kind.name, 1))
    kernel = backend.kernel(rule_text([variant], rule.number_names(), 0, 1))
    parameter, gradient, momentum = (_reserved(BEYOND + MARGIN, kind) for _ in range(3))
    whole = chunks_of([BEYOND], CHUNK)
    chosen = whole[np.isin(whole["first"], [0, 2**31, 2**32])]
    assert chosen["count"].tolist() == [CHUNK, CHUNK, 5]
    counters = np.zeros(2)
    gradients = [2.0, 4.0, 8.0]
    for value, (first, count, _) in zip(gradients, chosen, strict=True):
        around = slice(max(0, int(first) - MARGIN), int(first) + int(count) + MARGIN)
        parameter[around], gradient[around] = 16.0, value  # what lies just around must not move
    span = np.zeros(1, span_dtype(1))
    span["parameter"], span["gradient"], span["state"] = (a.ctypes.data for a in (parameter, gradient, momentum))
    span["counter"], span["parameters"], span["chunks"] = counters.ctypes.data, 1, len(chosen)
    numbers = np.array(rule.numbers())
    arguments = np.zeros(1, LAUNCH)
    for name, table in (("chunks", chosen), ("spans", span), ("hyperparameters", numbers)):
        arguments[name] = table.ctypes.data
    arguments["count"] = len(chosen)
    backend.surface.launch(kernel, 2, arguments)
    for value, (first, count, _) in zip(gradients, chosen, strict=True):
        first, end = int(first), int(first) + int(count)
        inside = min(first, MARGIN)
        for what, found, before, after in (
            ("parameter", parameter, 16.0, 16 - value / 2),
            ("state", momentum, 0, value),
        ):
            around = found[first - inside : end + MARGIN].astype(np.float64)
            expected = np.full(len(around), before, np.float64)
            expected[inside : inside + end - first] = after
            same(around, expected, f"{what} at {first}")
    assert counters.tolist() == [1.0, 0.0]


def check_uploads(array: type[EmulatedArray]) -> None:
    """Tables arrive as they were when they were uploaded, however many come without a launch, whatever their sizes."""
    surface = array.__fusedopt_backend__.surface
    uploads = Uploads(surface)
    random = np.random.default_rng(0)
    sizes = [8, 4096, 4097, 16, *random.integers(1, 20_000, 60).tolist(), 100_000, 8]
    table = np.zeros(max(sizes), np.uint8)
    sent = []
    for size in sizes:
        table[:] = random.integers(0, 256, len(table))  # the caller's table is free again at once
        to = surface.zeros(size, np.dtype(np.uint8))
        uploads.upload(to, table[:size])
        sent.append((to, table[:size].copy()))
    for to, expected in sent:
        same(surface.host(to), expected, f"table of {len(expected)}")
