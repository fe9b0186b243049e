"""Parameter: an array to train, its gradient, its name, and whether it is trained."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from fusedopt.layout import Presence, device_of, on_device_of
from fusedopt.sparse_gradient import SparseGradient

DTYPES = ("float32", "float64", "float16", "bfloat16")


class Parameter:
    """An array that an optimizer updates.

    Args:
        data: A NumPy or CuPy array of float32, float64, float16 or bfloat16 (`ml_dtypes.bfloat16`), of any shape. It is
            not copied until an optimizer takes the parameter: that moves `data` into a flat buffer, and an array that
            was taken from `data` before is stale from then on. Read `parameter.data` afresh each time.
        name: For error messages and `param_names`.
        requires_grad: False leaves the parameter alone: no state, no step, no decay.
        grad_dtype: Of its gradients, where they have another than its own: float32 for parameters of half precision,
            say. float64 goes with float64 and float32 alone.

    Raises:
        TypeError: `data` is not an array of one of these dtypes, or `grad_dtype` does not go with it.

    Source: `torch.nn.Parameter`, MegEngine's `Parameter`.
    """

    # fmt: off
    __slots__ = (
        "__weakref__", "_data", "_grad", "_grad_dtype", "_index", "_owner", "_presence", "_requires_grad", "name",
    )
    # fmt: on

    def __init__(self, data: Any, name: str | None = None, requires_grad: bool = True, grad_dtype: Any = None) -> None:
        if isinstance(data, Parameter):
            raise TypeError(f"{data.described} is a Parameter already; give its data.")
        array = hasattr(data, "reshape") and not isinstance(data, np.generic)  # which has no storage to write to
        if not array or str(getattr(data, "dtype", None)) not in DTYPES:
            kind = f"an array of {data.dtype}" if hasattr(data, "dtype") else repr(data)[:60]
            raise TypeError(
                f"Parameter: data must be a NumPy or CuPy array of {', '.join(DTYPES)}, got {kind} "
                f"({type(data).__name__}); convert it: np.asarray(data, 'float32'), or tensor.detach().numpy()."
            )
        self._data, self.name, self._requires_grad = data, name, bool(requires_grad)
        self._grad_dtype = data.dtype if grad_dtype is None else self._checked_grad_dtype(grad_dtype)
        self._presence: Presence | None = None
        self._index = -1
        self._owner: weakref.ref[Any] | None = None
        self._grad: Any = None  # before an optimizer takes the parameter: its own copy; after: the view of its buffer

    def __array_ufunc__(self, ufunc: np.ufunc, *_: object, **__: object) -> Any:
        """NumPy would make an array of one object of it, and complain of its dimensions."""
        raise TypeError(f"np.{ufunc.__name__}: {self.described} is no array; compute with its values, parameter.data.")

    @property
    def data(self) -> Any:
        """The values: after an optimizer took the parameter, a view of its flat buffer. Write with `data[...] = x`.

        Where the optimizer keeps masters, remainders or compensations, call its `reload_masters` after that: steps go
        on from these.
        """
        return self._data

    @data.setter
    def data(self, value: object) -> None:
        if value is self._data:  # as after `data += x`, which has written in place
            return
        raise AttributeError(
            f"the data of {self.described} cannot be replaced; write into it: parameter.data[...] = value, or make a "
            f"new Parameter."
        )

    @property
    def grad(self) -> Any:
        """The gradient, of `data`'s shape and `grad_dtype`, or None. It is copied when assigned; `grad += x` in place.

        Another dtype is refused where it is assigned, but not in `grad += x`: that is NumPy's own addition, rounded to
        the dtype that is there. Some optimizers take a `fusedopt.SparseGradient`, of some rows.

        Raises (on assignment):
            ValueError: Another shape or device.
            TypeError: Another dtype, or no array.
        """
        if self._presence is not None and not self._presence.present[self._index]:
            return self._presence.rows.get(self._index)
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if isinstance(value, SparseGradient):
            self._take_rows(value)
            return
        if value is not None and value is not self.grad:
            self.check_gradient(value)
            with on_device_of(self._data):
                if self._grad is None or isinstance(self._grad, SparseGradient):
                    # An array even where the gradient is a NumPy scalar.
                    self._grad = self._data.astype(self._grad_dtype)
                self._grad[...] = value
        if self._presence is not None:
            self._presence.mark(self._index, value is not None)
        elif value is None:
            self._grad = None

    def _take_rows(self, value: SparseGradient) -> None:
        self._check_rows(value)
        if self._presence is None:
            self._grad = value.copy()
        else:
            self._presence.mark(self._index, False, value.copy())

    def _check_rows(self, value: SparseGradient) -> None:
        value.check(self.described, self._data)
        if self.owner is not None:
            check_takes_rows(self.described, type(self.owner).__name__, self.owner.takes_rows)

    def check_gradient(self, value: Any) -> None:
        """Raise, as on assignment, for what is no gradient of this parameter."""
        if isinstance(value, SparseGradient):
            self._check_rows(value)
            return
        data = self._data
        if not isinstance(getattr(value, "dtype", None), np.dtype) or not hasattr(value, "device"):
            raise TypeError(
                f"{self.described} was given a gradient of type {type(value).__name__}; give an array like its data, "
                f"as np.asarray(gradient, {data.dtype.name!r})."
            )
        if device_of(value) != device_of(data):
            raise ValueError(
                f"{self.described} is on {device_of(data)} and was given a gradient on {device_of(value)}; move the "
                f"gradient there first."
            )
        if value.shape != data.shape:
            cure = "transpose it" if value.shape == data.shape[::-1] else "sum or reshape it"
            raise ValueError(
                f"{self.described} was given a gradient of shape {value.shape}; {cure} to the parameter's shape."
            )
        if value.dtype != self._grad_dtype:
            what = f"dtype {data.dtype}" if data.dtype == self._grad_dtype else f"grad_dtype {self._grad_dtype}"
            raise TypeError(
                f"{self.described} has {what} and was given a gradient of {value.dtype}; convert it with "
                f"gradient.astype({self._grad_dtype.name!r}), or make it with grad_dtype={value.dtype.name!r}."
            )

    @property
    def requires_grad(self) -> bool:
        """Whether the parameter is trained. Can be changed at any time."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._requires_grad = bool(value)
        if self._presence is not None:
            self._presence.train(self._index, self._requires_grad)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._data.dtype
        return dtype

    @property
    def grad_dtype(self) -> np.dtype[Any]:
        """Of its gradients."""
        grad_dtype: np.dtype[Any] = self._grad_dtype
        return grad_dtype

    def _checked_grad_dtype(self, grad_dtype: Any) -> np.dtype[Any]:
        dtype: np.dtype[Any]
        try:
            dtype = np.dtype(grad_dtype)
        except TypeError:
            dtype = np.dtype(object)
        taken = ("float64", "float32") if self._data.dtype == np.float64 else ("float32", "float16", "bfloat16")
        if dtype.name not in taken:
            raise TypeError(
                f"Parameter: grad_dtype of {self._data.dtype} data must be {' or '.join(taken)}, got {grad_dtype!r}."
            )
        return np.dtype(dtype)

    @property
    def size(self) -> int:
        return int(self._data.size)

    @property
    def ndim(self) -> int:
        return int(self._data.ndim)

    @property
    def described(self) -> str:
        """The parameter as error messages name it."""
        return f"parameter {self.name!r} (shape {self.shape})" if self.name else f"parameter (shape {self.shape})"

    @property
    def owner(self) -> Any:
        """The optimizer that has the parameter, or None; a deleted one has none."""
        return None if self._owner is None else self._owner()

    @owner.setter
    def owner(self, optimizer: Any) -> None:
        self._owner = None if optimizer is None else weakref.ref(optimizer)

    def move_to(self, presence: Presence, index: int, data: Any, gradient: Any) -> None:
        """Copy values and gradient into an optimizer's buffers, and live there from now on. For optimizers."""
        had = self.grad
        rows = had if isinstance(had, SparseGradient) else None
        data[...] = self._data
        if had is not None and rows is None:
            gradient[...] = had
        self._data, self._grad, self._presence, self._index = data, gradient, presence, index
        presence.train(index, self._requires_grad)
        presence.mark(index, had is not None and rows is None, rows)

    def __repr__(self) -> str:
        name = f"name={self.name!r}, " if self.name else ""
        return f"Parameter({name}shape={self.shape}, dtype={self.dtype}, requires_grad={self.requires_grad})"

    def __getstate__(self) -> dict[str, Any]:
        with on_device_of(self._data):
            data, grad = self._data.copy(), None if self.grad is None else self.grad.copy()
        kept = {"data": data, "name": self.name, "requires_grad": self._requires_grad, "grad": grad}
        return kept | {"grad_dtype": self._grad_dtype.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]  # a fresh parameter
            state["data"], state["name"], state["requires_grad"], state["grad_dtype"]
        )
        self._grad = state["grad"]


def check_takes_rows(described: str, optimizer: str, takes_rows: bool) -> None:
    """Raise TypeError where an optimizer is given a gradient of some rows that it has no use for."""
    if not takes_rows:
        raise TypeError(
            f"{described} was given a SparseGradient, which {optimizer} does not take; give a dense gradient, or use "
            f"SparseAdam or LazyAdam."
        )
