"""The host's time of a step over torch tensors, on the path to a GPU: all up to the launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

import fusedopt.torch
from fusedopt.cli.bench.machine import Step, nothing, wall_seconds
from fusedopt.torch import places
from overhead import IdleSurface
from timing import Figure, figure

STILL_BAR, MOVED_BAR, EACH_BAR, FUSED_BAR = 300, 400, 1.0, 0.2  # microseconds, and a share of torch's fused step
RUN = 50  # of our steps, then as many of torch's


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


@contextlib.contextmanager
def idle_and_fused(tensors: int) -> Iterator[tuple[Any, Any]]:
    """Our AdamW over so many one-element tensors on the idle device; torch's fused one over 300 on the CPU."""
    place = places.Gpu(IdleTorchSurface(), torch.device("cpu"))
    with mock.patch.object(places, "place_of", return_value=place):
        ours, fused = (
            optimizer_of(fusedopt.torch.AdamW, tensors, 1),
            optimizer_of(torch.optim.AdamW, 300, 1, fused=True),
        )
        ours.step()
        yield ours, fused


def host_time(samples: int) -> Iterator[Figure]:
    """Microseconds of a step of AdamW up to the launch, beside torch's fused step over 300 CPU tensors of 1."""
    found: dict[tuple[int, bool], Figure] = {}
    for tensors in (300, 1_300):
        for moving in (False, True):
            with idle_and_fused(tensors) as (ours, fused):
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
    """Seconds of our steps, between which gradients are made anew where they move, and of another's; by runs."""
    parameters = ours.param_groups[0]["params"]
    pools = [[torch.ones(1) for _ in parameters] for _ in range(2)]
    times: tuple[list[float], list[float]] = ([], [])
    run = min(RUN, samples)
    for number in range(10 + samples):
        if moving:
            for parameter, gradient in zip(parameters, pools[number % 2]):
                parameter.grad = gradient
        times[0].append(wall_seconds(ours.step, nothing, 1))
        if number % run == run - 1:
            times[1].extend(wall_seconds(theirs, nothing, 1) for _ in range(run))
    return times[0][10:], times[1][10:]
