"""State dicts as other libraries write them, made by hand of NumPy arrays."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BETAS = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
NESTED = "__bnb_optimizer_quant_state__"


def a_map(signed: bool) -> Array:
    """256 values from -1 or 0 to 1, zero among them; unlike bitsandbytes' own, so that the stored one must be read."""
    values = np.random.default_rng(int(signed)).uniform(-1 if signed else 0, 1, 256).astype(np.float32)
    values[:2] = 0, 1
    return np.sort(values)


def quantized(values: Array, number: int, block: int | None) -> tuple[dict[str, Array], Array]:
    """bitsandbytes' entries for a state in 8 bits, a scale for each block or one for all; and what they stand for."""
    flat, qmap = values.reshape(-1), a_map(signed=number == 1)
    size = block or flat.size
    scales = np.array([np.abs(flat[i : i + size]).max() for i in range(0, flat.size, size)], np.float32)
    spread = np.repeat(scales, size)[: flat.size]
    codes = np.abs(flat[:, None] / spread[:, None] - qmap).argmin(axis=1).astype(np.uint8)
    stored = {f"absmax{number}": scales} if block else {f"max{number}": scales, f"new_max{number}": scales * 2}
    entry = {f"state{number}": codes.reshape(values.shape), f"qmap{number}": qmap, **stored}
    return entry, (qmap[codes] * spread).reshape(values.shape)


def moments(shape: tuple[int, ...], count: int = 2) -> list[Array]:
    """First moments, and second ones that are not negative."""
    random = np.random.default_rng(shape[0])
    first = random.standard_normal(shape).astype(np.float32)
    return [first, random.random(shape, np.float32)][:count]


def of_bitsandbytes(
    shapes: list[tuple[int, ...]], count: int = 2, block: int | None = 256, nested: bool = True
) -> tuple[dict[str, Any], list[list[Array]]]:
    """A state dict after 3 steps, in 8 bits from 4096 elements on; and each parameter's states as they load."""
    state: dict[int, Any] = {}
    decoded = []
    for index, shape in enumerate(shapes):
        states, entry = moments(shape, count), {"unorm_vec": np.ones(1, np.float32)}
        for i, values in enumerate(states):
            small = values.size < 4096
            found, states[i] = ({f"state{i + 1}": values}, values) if small else quantized(values, i + 1, block)
            entry |= found
        if count == 2 and not small:
            states[0][states[1] == 0] = 0  # m / eps of it would be the end
        state[index] = {"step": 3, NESTED: entry} if nested else {"step": 3, **entry}
        decoded.append(states)
    group = {"lr": 0.01, **BETAS, "alpha": 0.0, "t_alpha": None, "params": list(range(len(shapes)))}
    return {"state": state, "param_groups": [group]}, decoded


def of_apex(shapes: list[tuple[int, ...]], **options: Any) -> dict[str, Any]:
    """FusedAdam's: the step in the group. With its options, FusedLAMB's."""
    state = {i: dict(zip(("exp_avg", "exp_avg_sq"), moments(shape), strict=True)) for i, shape in enumerate(shapes)}
    group = {"lr": 0.01, "bias_correction": True, **BETAS, "step": 3, **options, "params": list(range(len(shapes)))}
    return {"state": state, "param_groups": [group]}
