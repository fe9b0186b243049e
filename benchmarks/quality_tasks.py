"""What the study of quality trains: three tasks, each a function from float32 weights to a loss and its gradients.

A task does not know how its weights are kept: it is given them widened to float32, and computes in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import nn

from fusedopt.cli.character_model import CharacterModel, Text
from fusedopt.cli.torch_demo import BATCH, CONTEXT, Transformer
from quality_glyphs import CLASSES, Convolutions, batch

Array: TypeAlias = np.ndarray[Any, Any]
Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]

HELD_OUT_WINDOWS, HELD_OUT_IMAGES = 1024, 16384  # so many that another choice of them would change little
CHUNK = 1024  # of them at a time
HELD_OUT_SEED = 2**32 - 1  # that no training has


class Task(Protocol):
    """A model, and the data that it learns.

    Attributes:
        title: What tables call it.
        steps: Of a whole training.
        unit: Of its loss.
    """

    title: str
    steps: int
    unit: str

    def start(self, seed: int) -> list[Array]:
        """Initial weights, float32."""

    def gradients(self, weights: list[Array], seed: int, step: int) -> list[Array]:
        """Of the mean loss over the batch of this step, float32."""

    def loss(self, weights: list[Array]) -> float:
        """The mean over data that no batch has, always the same."""


class Characters:
    """The demo's model over NumPy arrays, with its own backward pass: 136,382 parameters, batches of 256."""

    title, steps, unit = "characters", 1500, "nats a character"

    def __init__(self) -> None:
        self.text = Text()
        self.model = CharacterModel(len(self.text.vocabulary), 0)
        self.held_out = self.text.held_out_batch(8192)

    def start(self, seed: int) -> list[Array]:
        model = CharacterModel(len(self.text.vocabulary), seed)
        return [parameter.data for parameter in model.parameters]

    def gradients(self, weights: list[Array], seed: int, step: int) -> list[Array]:
        self._take(weights)
        contexts, targets = self.batch(seed, step)
        self.model.backward(self.model.forward(contexts), targets)
        return [parameter.grad for parameter in self.model.parameters]

    def loss(self, weights: list[Array]) -> float:
        self._take(weights)
        return self.model.loss(*self.held_out)

    def batch(self, seed: int, step: int) -> tuple[Array, Array]:
        return self.text.training_batch(seed, step)

    def _take(self, weights: list[Array]) -> None:
        for parameter, weight in zip(self.model.parameters, weights):
            parameter.data[...] = weight


class Network:
    """A torch module, with torch's gradients."""

    def __init__(self, make: Callable[[], nn.Module], batch: Callable[[int, int], Batch], held_out: Batch) -> None:
        self.make, self.batch, self.held_out = make, batch, held_out
        self.module = make()

    def start(self, seed: int) -> list[Array]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [parameter.detach().numpy() for parameter in self.make().parameters()]

    def gradients(self, weights: list[Array], seed: int, step: int) -> list[Array]:
        self._take(weights)
        self.module.zero_grad()
        self._mean_loss(self.batch(seed, step)).backward()  # type: ignore[no-untyped-call]
        return [np.asarray(parameter.grad) for parameter in self.module.parameters()]

    def loss(self, weights: list[Array]) -> float:
        self._take(weights)
        inputs, targets = self.held_out
        with torch.no_grad():
            chunks = zip(inputs.split(CHUNK), targets.split(CHUNK))
            return sum(self._mean_loss(chunk).item() * len(chunk[0]) for chunk in chunks) / len(inputs)

    def _mean_loss(self, data: Batch) -> torch.Tensor:
        inputs, targets = data
        return nn.functional.cross_entropy(self.module(inputs).flatten(0, -2), targets.flatten())

    def _take(self, weights: list[Array]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.module.parameters(), weights):
                parameter.copy_(torch.from_numpy(weight))


class Sentences(Network):
    """The torch demo's transformer: 115,166 parameters, batches of 32 windows of 48 characters."""

    title, steps, unit = "transformer", 600, "nats a character"

    def __init__(self) -> None:
        text = Text()

        def windows(tokens: Array, seed: tuple[int, ...], count: int) -> Batch:
            starts = np.random.default_rng(seed).integers(0, len(tokens) - CONTEXT, count)
            found = torch.from_numpy(tokens[starts[:, None] + np.arange(CONTEXT + 1)])
            return found[:, :-1], found[:, 1:]

        super().__init__(
            lambda: Transformer(len(text.vocabulary)),
            lambda seed, step: windows(text.training, (seed, step), BATCH),
            windows(text.held_out, (HELD_OUT_SEED,), HELD_OUT_WINDOWS),
        )


class Glyphs(Network):
    """Noisy pictures of letters and digits, for a convolutional network: 86,958 parameters, batches of 128."""

    title, steps, unit = "glyphs", 600, "nats a picture"

    def __init__(self) -> None:
        super().__init__(
            lambda: Convolutions(len(CLASSES)),
            lambda seed, step: batch((seed, step), 128),
            batch((HELD_OUT_SEED,), HELD_OUT_IMAGES),
        )


TASKS: dict[str, Callable[[], Task]] = {task.title: task for task in (Characters, Sentences, Glyphs)}
