"""One training of the study of quality: an optimizer, a choice of how weights and states are kept, a task, a seed.

Weights are widened to float32 for the task, which computes in float32; its gradients are rounded to the weights' dtype,
as those of a model in that dtype are. So what differs between two choices is the optimizer's storage alone.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import ml_dtypes
import numpy as np
import torch

import fusedopt
import fusedopt.torch
from fusedopt.schedules import Cosine, LinearWarmup, Schedule
from quality_tasks import TASKS, Array
from record import ROOT, digest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WARM_UP = 20  # a training has so many times as many steps as its warm-up
POINTS = 15  # of a curve
# What decides a task's numbers, beside the optimizer, whose own numbers `made_of` tries out.
TEXT = ("benchmarks/quality_tasks.py", "fusedopt/cli/character_model.py")
SOURCES = {
    "characters": TEXT,
    "transformer": (*TEXT, "fusedopt/cli/torch_demo.py"),
    "glyphs": ("benchmarks/quality_tasks.py", "benchmarks/quality_glyphs.py"),
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """How weights and states are kept.

    Attributes:
        title: What tables call it.
        options: Of the optimizer.
        half: Whether weights and gradients are bfloat16; else float32.
        exact: Whether the training starts from weights that are not rounded to bfloat16.
        promised: Whether its loss is to be float32's; others show what goes wrong.
    """

    title: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    half: bool = True
    exact: bool = False
    promised: bool = True

    @property
    def draws(self) -> bool:
        """Whether something is rounded at random."""
        return "stochastic_rounding" in self.options or self.options.get("state_dtype") == "int8"


FLOAT32 = Choice("float32", half=False)
CHANCE = Choice("float32, another start", half=False, exact=True)
PLAIN = Choice("bfloat16", promised=False)
SPLIT = Choice("split", {"master_weights": "split", "state_dtype": "float32"})
RANDOM = Choice("stochastic", {"stochastic_rounding": True, "state_dtype": "float32"})
SPLIT24_INT8 = Choice("split24, int8", {"master_weights": "split24", "state_dtype": "int8"})
RANDOM_INT8 = Choice("stochastic, int8", {"stochastic_rounding": True, "state_dtype": "int8"})
FEW = (FLOAT32, CHANCE, PLAIN, SPLIT, RANDOM, SPLIT24_INT8, RANDOM_INT8)
ALL = (
    *(FLOAT32, CHANCE, PLAIN),
    Choice("bfloat16, float32 states", {"state_dtype": "float32"}, promised=False),
    Choice("float32 master", {"master_weights": "float32", "state_dtype": "float32"}),
    SPLIT,
    Choice("split24", {"master_weights": "split24", "state_dtype": "float32"}),
    Choice("kahan", {"kahan": True, "state_dtype": "float32"}),
    RANDOM,
    Choice("split, bfloat16 states to the nearest", {"master_weights": "split"}, promised=False),
    Choice("split, bfloat16 states, stochastic", {"master_weights": "split", "stochastic_rounding": True}),
    Choice("split, int8", {"master_weights": "split", "state_dtype": "int8"}),
    *(SPLIT24_INT8, RANDOM_INT8),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A task, and how it is trained.

    Attributes:
        optimizer: A class of fusedopt, and of fusedopt.torch.
        lr: The largest, after the warm-up; from there it falls to 0 as a cosine.
        options: Others of the optimizer.
        tensors: Whether the weights are torch tensors, and the optimizer that of fusedopt.torch.
        choices: What is compared, the reference first.
    """

    task: str
    optimizer: str
    lr: float
    options: dict[str, Any]
    tensors: bool = False
    choices: tuple[Choice, ...] = ALL

    @property
    def title(self) -> str:
        return f"{self.task}, {self.optimizer}"

    def schedule(self, steps: int) -> Schedule:
        """The learning rate of a training of so many steps."""
        warm_up = max(1, steps // WARM_UP)
        return LinearWarmup(self.lr, warm_up).then(Cosine(self.lr, steps - warm_up), at=warm_up)


RECIPES = (
    Recipe("characters", "AdamW", 4e-3, {"weight_decay": 0.1}),
    Recipe("transformer", "AdamW", 6e-3, {"weight_decay": 0.1}, tensors=True),
    Recipe("glyphs", "AdamW", 6e-3, {"weight_decay": 0.1}),
    Recipe("glyphs", "SGD", 0.1, {"momentum": 0.9, "weight_decay": 1e-4}, choices=FEW),
    Recipe("characters", "Lion", 5e-4, {"weight_decay": 0.1}, choices=FEW),
)


class Arrays:
    """Weights as NumPy arrays, and an optimizer of fusedopt.

    Args:
        values: float32.
        half: Whether they are kept in bfloat16.
        name, options: The optimizer and its arguments.
    """

    def __init__(self, values: list[Array], half: bool, name: str, options: dict[str, Any]) -> None:
        self.dtype = BFLOAT16 if half else np.dtype(np.float32)
        self.parameters = [fusedopt.Parameter(value.astype(self.dtype)) for value in values]
        self.optimizer = getattr(fusedopt, name)(self.parameters, **options)

    def values(self) -> list[Array]:
        """The weights as the model sees them, widened to float32."""
        return [parameter.data.astype(np.float32) for parameter in self.parameters]

    def step(self, gradients: list[Array]) -> None:
        """Update the weights with float32 gradients, rounded to the weights' dtype."""
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient.astype(self.dtype)
        self.optimizer.step()


class Tensors:
    """The same of torch tensors, and an optimizer of fusedopt.torch."""

    def __init__(self, values: list[Array], half: bool, name: str, options: dict[str, Any]) -> None:
        self.dtype = torch.bfloat16 if half else torch.float32
        self.parameters = [torch.nn.Parameter(torch.from_numpy(value.copy()).to(self.dtype)) for value in values]
        self.optimizer = getattr(fusedopt.torch, name)(self.parameters, **options)

    def values(self) -> list[Array]:
        return [parameter.detach().float().numpy() for parameter in self.parameters]

    def step(self, gradients: list[Array]) -> None:
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = torch.from_numpy(gradient).to(self.dtype)
        self.optimizer.step()


def weights(recipe: Recipe, choice: Choice, start: list[Array], seed: int, steps: int) -> Arrays | Tensors:
    """What a training of so many steps begins with."""
    options = {"lr": recipe.schedule(steps), **recipe.options, **choice.options}
    if choice.draws:
        options["seed"] = seed
    start = start if choice.exact else rounded(start)
    return (Tensors if recipe.tensors else Arrays)(start, choice.half, recipe.optimizer, options)


def rounded(values: list[Array]) -> list[Array]:
    """float32 values, rounded to bfloat16."""
    return [value.astype(BFLOAT16).astype(np.float32) for value in values]


def train(recipe: Recipe, choice: Choice, seed: int, steps: int = 0) -> dict[str, Any]:
    """A training; its curve of held-out losses.

    Args:
        seed: Of the first weights, the batches and random rounding.
        steps: In place of the task's.
    """
    task = TASKS[recipe.task]()
    steps = steps or task.steps
    trained = weights(recipe, choice, task.start(seed), seed, steps)
    begin, curve = time.perf_counter(), {}
    for step in range(steps):
        values = trained.values()
        if step % max(1, steps // POINTS) == 0:
            curve[step] = task.loss(values)
        trained.step(task.gradients(values, seed, step))
    curve[steps] = task.loss(trained.values())
    return {
        "task": recipe.task,
        "optimizer": recipe.optimizer,
        "choice": choice.title,
        "seed": seed,
        "made_of": made_of(recipe, choice),
        "seconds": round(time.perf_counter() - begin, 1),
        "steps": list(curve),
        "losses": [round(loss, 5) for loss in curve.values()],
    }


def made_of(recipe: Recipe, choice: Choice) -> str:
    """A hash of all that decides a training's numbers, so that a result is measured anew once one of them changes.

    Of the optimizer it is the weights after 20 steps on made gradients: its text may change without changing them.
    """
    random = np.random.default_rng(0)
    tried = weights(recipe, choice, [random.standard_normal(8192).astype(np.float32)], 0, 20)
    for step in range(20):
        tried.step([(random.standard_normal(8192) * 10.0 ** (step % 3)).astype(np.float32)])
    texts = [(name, (ROOT / name).read_text()) for name in SOURCES[recipe.task]]
    about = repr((recipe.lr, recipe.options, recipe.tensors, choice, WARM_UP, POINTS))
    return digest([*texts, ("about", about), ("tried", tried.values()[0].tobytes().hex())])[:16]
