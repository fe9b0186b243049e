"""What the processes of `distributed_workers` do with a bfloat16 model whose arrays are kept in one way or another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from distributed_workers import WRAPPERS, Trained, Training, trained
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fusedopt.torch.tensors import local

STORAGES = {
    "master": {"master_weights": "float32", "state_dtype": "bfloat16"},
    "split": {"master_weights": "split", "state_dtype": "float32"},
    "kahan": {"kahan": True},
    "split24, int8": {"master_weights": "split24", "state_dtype": "int8", "seed": 3},
    "stochastic": {"stochastic_rounding": True},
}
DRAWS = ("split24, int8", "stochastic")
# Shared by rows of whole blocks, unevenly; by rows of others; with nothing for the second process; and small.
SHAPES = ((65, 128), (40, 130), (1, 4224), (7,))


class Shapes(nn.Module):
    """Parameters of `SHAPES`, which are given gradients by hand."""

    units = ()

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterList([filled(shape, 0).bfloat16() for shape in SHAPES])


def filled(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclasses.dataclass(frozen=True)
class Stored(Training):
    """Steps with gradients that all processes agree on, each of which takes its part of them."""

    model: Any = Shapes

    def run(self, model: nn.Module, optimizer: Any, steps: Iterable[int], halves: Sequence[int] = (), **_: Any) -> None:
        for step in steps:
            for number, p in enumerate(model.parameters()):
                gradient = filled(tuple(p.shape), 10 * (step + 1) + number).bfloat16()
                if isinstance(p, DTensor):
                    gradient = distribute_tensor(gradient, p.device_mesh, p.placements, src_data_rank=None)
                p.grad = gradient
            optimizer.step()


def steps_of(training: Training, wrapper: str, steps: Iterable[int]) -> Trained:
    """Train; notes for each parameter the types of what is here, and the tensors that are not shared as it is."""
    model = WRAPPERS[wrapper](training.model())
    optimizer = training.of(model.parameters())
    training.run(model, optimizer, steps)
    notes, there = [], 0
    for p in model.parameters():
        states = {key: state for key, state in optimizer.state[p].items() if key != "step"}
        wrong = [k for k, v in states.items() if getattr(v, "placements", None) != getattr(p, "placements", None)]
        there += sum(local(state).nbytes for state in states.values())
        notes.append(({key: state.dtype for key, state in states.items()}, wrong))
    memory = optimizer.memory()
    assert memory.masters + memory.states + memory.scales == there
    return trained(model, optimizer, notes)


def parts_by_themselves(training: Training, steps: Iterable[int], rank: int) -> list[torch.Tensor]:
    """The rows of the first parameter that one of two processes has, trained as a parameter of their own."""
    p = nn.Parameter(Shapes().all[0].detach().chunk(2)[rank].clone())
    optimizer = training.of([p])
    for step in steps:
        p.grad = filled(SHAPES[0], 10 * (step + 1)).bfloat16().chunk(2)[rank].clone()
        optimizer.step()
    return [p.detach(), *(v for k, v in optimizer.state[p].items() if k != "step")]
