"""Masters side by side: given the same gradients, one in two halves is the float32 one to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fusedopt.rounding import joined
from quality_runs import BFLOAT16, Arrays, Choice, Recipe, Tensors, rounded, weights
from quality_tasks import TASKS, Array

REFERENCE = Choice("float32", half=False)
MASTERS = {
    name: Choice(name, {"master_weights": name, "state_dtype": "float32"}) for name in ("float32", "split", "split24")
}


def compared(recipe: Recipe, steps: int, seed: int = 0) -> dict[str, Any]:
    """Train with a float32 master, and give its gradients to float32 weights and to the other masters, too.

    Returns:
        unequal: Elements that are not those of the float32 weights, over all steps, of the float32 master and of the
            split one. 0 is right.
        unequal_seen: Elements of what the model sees that differ between these two masters, over all steps: in the
            middle of two bfloat16, one is rounded to even, the other away from zero.
        elements: Steps times the model's.
        split24_distance: The largest distance of a weight of the 24-bit master from float32's at the end, as a share of
            the largest weight.
    """
    task = TASKS[recipe.task]()
    start = task.start(seed)
    truth = weights(recipe, REFERENCE, start, seed, steps)
    kept = {name: weights(recipe, choice, start, seed, steps) for name, choice in MASTERS.items()}
    unequal, unequal_seen, exact = {"float32": 0, "split": 0}, 0, start
    for step in range(steps):
        gradients = task.gradients(kept["float32"].values(), seed, step)
        truth.step(rounded(gradients))
        exact = truth.values()
        for trained in kept.values():
            trained.step(gradients)
        for name in unequal:
            unequal[name] += differences(masters(kept[name]), exact)
        unequal_seen += differences(kept["float32"].values(), kept["split"].values())
    largest = max(float(np.abs(value).max()) for value in exact)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(masters(kept["split24"]), exact))
    return {
        "task": recipe.task,
        "optimizer": recipe.optimizer,
        "steps": steps,
        "elements": steps * sum(value.size for value in exact),
        "unequal": unequal,
        "unequal_seen": unequal_seen,
        "split24_distance": apart / largest,
    }


def masters(trained: Arrays | Tensors) -> list[Array]:
    """The finer values beside each parameter, as float32."""
    return [_master(trained.optimizer.state[parameter], parameter) for parameter in trained.parameters]


def _master(state: Any, parameter: Any) -> Array:
    if "master_param" in state:
        return _array(state["master_param"])
    seen, remainder = _array(parameter.data), _array(state["remainder"])
    found = np.empty(seen.shape, np.float32)
    joined(seen.reshape(-1), remainder.reshape(-1), found.reshape(-1))
    return found


def _array(data: Any) -> Array:
    if not isinstance(data, torch.Tensor):
        return np.asarray(data)
    if data.dtype == torch.bfloat16:  # which NumPy has not
        return data.detach().view(torch.int16).numpy().view(BFLOAT16)
    return data.detach().numpy()


def differences(ours: list[Array], theirs: list[Array]) -> int:
    """Elements of float32 whose bits differ."""
    pairs = zip(ours, theirs)
    return sum(int((a.view(np.uint32) != b.view(np.uint32)).sum()) for a, b in pairs)
