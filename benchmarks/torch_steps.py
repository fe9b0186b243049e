"""Steps over torch tensors: side by side with torch.optim's, and the host's time on the path to a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

import fusedopt.torch
from fusedopt.torch import places
from overhead import IdleSurface
from timing import Figure, Step, figure, interleaved, seconds

WAYS: dict[str, dict[str, bool]] = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
# How many times as fast as each of them Adam has to be: over one large tensor, and over 300 of 4,096.
LARGE_BARS = {"for-loop": 4.0, "foreach": 3.0, "fused": 0.6}
SMALL_BARS = {"for-loop": 1.2}
STILL_BAR, MOVED_BAR, EACH_BAR, FUSED_BAR = 300, 400, 1.0, 0.2  # microseconds, and a share of torch's fused step


class IdleTorchSurface(IdleSurface):
    """The idle device for torch tensors, which are the CPU's."""

    device = "cpu"

    def pointer(self, array: Any) -> int:
        if isinstance(array, int):
            return array
        return array.data_ptr() if isinstance(array, torch.Tensor) else super().pointer(array)


def optimizer_of(cls: Any, tensors: int, size: int, **options: Any) -> torch.optim.Optimizer:
    """An optimizer over parameters with gradients."""
    random = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(0.02 * torch.randn(size, generator=random)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.randn(size, generator=random)
    optimizer: torch.optim.Optimizer = cls(parameters, lr=1e-3, **options)
    return optimizer


def speed(size: int, rounds: int) -> Iterator[Figure]:
    """How many times as fast as each of torch's ways Adam is on the CPU."""
    for title, tensors, each, bars in (("one tensor", 1, size, LARGE_BARS), ("300 of 4,096", 300, 4096, SMALL_BARS)):
        ours = optimizer_of(fusedopt.torch.Adam, tensors, each).step
        for way, options in WAYS.items():
            theirs = optimizer_of(torch.optim.Adam, tensors, each, **options).step
            for step in (ours, theirs):
                step()
            ratios = [slow / fast for fast, slow in zip(*interleaved(ours, theirs, rounds))]
            yield figure(f"torch tensors, {title}: against {way}", "times as fast", ratios, at_least=bars.get(way))


def host_time(samples: int) -> Iterator[Figure]:
    """Microseconds of a step of AdamW up to the launch, beside torch's fused step over 300 CPU tensors of 1."""
    fused = optimizer_of(torch.optim.AdamW, 300, 1, fused=True)
    place = places.Gpu(IdleTorchSurface(), torch.device("cpu"))
    with mock.patch.object(places, "place_of", return_value=place):
        found: dict[tuple[int, bool], Figure] = {}
        for tensors in (300, 1_300):
            for moving in (False, True):
                ours = optimizer_of(fusedopt.torch.AdamW, tensors, 1)
                times, peers = _alternately(ours, moving, fused.step, samples)
                bar = (MOVED_BAR if moving else STILL_BAR) if tensors == 300 else None
                title = f"torch tensors, host time, {'gradients that move' if moving else 'nothing moved'}: {tensors:,}"
                found[tensors, moving] = figure(title, "us", [1e6 * t for t in times], at_most=bar)
                yield found[tensors, moving]
                if tensors == 300 and not moving:
                    shares = [own / theirs for own, theirs in zip(times, peers)]  # of neighbouring runs
                    yield figure(f"{title} against torch's fused step", "times", shares, at_most=FUSED_BAR)
        each = (found[1_300, True].value - found[300, True].value) / 1_000
        yield figure("torch tensors, host time, gradients that move: each further one", "us", [each], at_most=EACH_BAR)


def _alternately(ours: Any, moving: bool, theirs: Step, samples: int) -> tuple[list[float], list[float]]:
    """Seconds of our steps, between which gradients are made anew where they move, and of another's, by runs of 50."""
    parameters = ours.param_groups[0]["params"]
    pools = [[torch.ones(1) for _ in parameters] for _ in range(2)]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(10 + samples):
        if moving:
            for parameter, gradient in zip(parameters, pools[number % 2]):
                parameter.grad = gradient
        times[0].append(seconds(ours.step))
        if number % 50 == 49:
            times[1].extend(seconds(theirs) for _ in range(50))
    return times[0][10:], times[1][10:]
