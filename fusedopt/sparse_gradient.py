"""SparseGradient: a gradient of some rows of a parameter."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedopt.layout import device_of, on_device_of


class SparseGradient:
    """The gradient of some rows (first indices) of a parameter; all others have none.

    `SparseAdam` and `LazyAdam` take it: `parameter.grad = fusedopt.SparseGradient(tokens, gradients)`. Rows that occur
    more than once are summed. `a + b` has the rows of both, so `parameter.grad += b` accumulates.

    Args:
        indices: Whole numbers, of shape (n,), on the values' device.
        values: Of shape (n, *parameter.shape[1:]) and of the parameter's dtype.

    Raises:
        TypeError: They are no arrays, or the indices no whole numbers.
        ValueError: Their shapes or their devices do not go together.
    """

    __slots__ = ("indices", "values")

    def __init__(self, indices: Any, values: Any) -> None:
        for name, array in (("indices", indices), ("values", values)):
            if not isinstance(getattr(array, "dtype", None), np.dtype) or not hasattr(array, "reshape"):
                raise TypeError(
                    f"SparseGradient: {name} must be a NumPy or CuPy array, got {type(array).__name__}; convert it: "
                    f"np.asarray(...)."
                )
        if indices.dtype.kind not in "iu":
            raise TypeError(f"SparseGradient: indices must be whole numbers, got {indices.dtype}; convert them.")
        if indices.ndim != 1 or values.ndim == 0 or len(values) != len(indices):
            raise ValueError(
                f"SparseGradient: {indices.shape} indices do not go with values of shape {values.shape}; give one "
                f"index for each row of the values."
            )
        if device_of(indices) != device_of(values):
            raise ValueError(
                f"SparseGradient: indices are on {device_of(indices)} and values on {device_of(values)}; move one."
            )
        self.indices, self.values = indices, values

    def copy(self) -> SparseGradient:
        """Arrays of its own."""
        with on_device_of(self.values):
            return SparseGradient(self.indices.copy(), self.values.copy())

    def check(self, described: str, data: Any) -> None:
        """Raise unless it is a gradient of this array, whose name is for messages. CuPy's indices are waited for."""
        if data.ndim == 0 or self.values.shape[1:] != data.shape[1:]:
            raise ValueError(
                f"{described} was given a SparseGradient with rows of shape {self.values.shape[1:]}; they must be like "
                f"the parameter's, {data.shape[1:]}."
            )
        if self.values.dtype != data.dtype:
            raise TypeError(
                f"{described} has dtype {data.dtype} and was given a SparseGradient of {self.values.dtype}; convert "
                f"its values with .astype({data.dtype.name!r})."
            )
        if device_of(self.values) != device_of(data):
            raise ValueError(
                f"{described} is on {device_of(data)} and was given a SparseGradient on {device_of(self.values)}; move "
                f"it there first."
            )
        with on_device_of(data):
            ends = (int(self.indices.min()), int(self.indices.max())) if len(self.indices) else (0, -1)
        if ends[0] < 0 or ends[1] >= len(data):
            raise ValueError(
                f"{described} has rows 0 to {len(data) - 1} and was given a SparseGradient of rows from {ends[0]} to "
                f"{ends[1]}; give indices of its rows."
            )

    def __add__(self, other: Any) -> SparseGradient:
        if not isinstance(other, SparseGradient):
            return NotImplemented
        with on_device_of(self.values):
            indices = np.concatenate([self.indices, other.indices])  # CuPy's, where the arrays are
            return SparseGradient(indices, np.concatenate([self.values, other.values]))

    def __repr__(self) -> str:
        return f"SparseGradient({len(self.indices)} rows of shape {self.values.shape[1:]}, {self.values.dtype})"
