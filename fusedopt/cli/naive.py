"""SGD and Adam as one writes them, on lists of NumPy or CuPy arrays: what the fused step is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusedopt.cli.character_model import Array

# CuPy answers NumPy's functions for its own arrays, so one text is for both.


class NaiveSGD:
    """SGD with momentum 0.9, as whole-array expressions, each making a temporary array."""

    def __init__(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        self.p, self.g = list(parameters), list(gradients)
        self.b = [0 * p for p in parameters]

    def step(self) -> None:
        for i, g in enumerate(self.g):
            self.b[i] = 0.9 * self.b[i] + g
            self.p[i] = self.p[i] - 1e-3 * self.b[i]


class NaiveAdam:
    """Adam, or AdamW with a `decay`, as whole-array expressions, each making a temporary array."""

    # Each operation reads one or two arrays and writes one: 14 of them, 4 with two inputs, 4 bytes an element.
    bytes_a_parameter = 10 * 8 + 4 * 12

    def __init__(self, parameters: Sequence[Array], gradients: Sequence[Array], decay: float = 0.0) -> None:
        self.p, self.g, self.decay, self.t = list(parameters), list(gradients), decay, 0
        self.m, self.v = [0 * p for p in parameters], [0 * p for p in parameters]

    def step(self) -> None:
        self.t += 1
        for i, g in enumerate(self.g):
            p = self.p[i] - 1e-3 * self.decay * self.p[i] if self.decay else self.p[i]
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g**2
            m_hat = self.m[i] / (1 - 0.9**self.t)
            v_hat = self.v[i] / (1 - 0.999**self.t)
            self.p[i] = p - 1e-3 * m_hat / (np.sqrt(v_hat) + 1e-8)


class PreallocatedSGD(NaiveSGD):
    """The same without temporary arrays: results go where they belong, or into a scratch array of the largest size."""

    def __init__(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        super().__init__(parameters, gradients)
        self.scratch = max(self.p, key=len).copy()

    def step(self) -> None:
        for p, g, b in zip(self.p, self.g, self.b, strict=True):
            x = self.scratch[: len(p)]
            np.multiply(b, 0.9, out=b)
            np.add(b, g, out=b)
            np.multiply(b, 1e-3, out=x)
            np.subtract(p, x, out=p)


class PreallocatedAdam(NaiveAdam):
    """The same without temporary arrays: results go where they belong, or into a scratch array of the largest size."""

    def __init__(self, parameters: Sequence[Array], gradients: Sequence[Array], decay: float = 0.0) -> None:
        super().__init__(parameters, gradients, decay)
        self.scratch = max(self.p, key=len).copy()

    def step(self) -> None:
        self.t += 1
        correction, root = 1 - 0.9**self.t, (1 - 0.999**self.t) ** 0.5
        for p, g, m, v in zip(self.p, self.g, self.m, self.v, strict=True):
            x = self.scratch[: len(p)]
            if self.decay:
                np.multiply(p, 1e-3 * self.decay, out=x)
                np.subtract(p, x, out=p)
            np.multiply(g, 0.1, out=x)
            np.multiply(m, 0.9, out=m)
            np.add(m, x, out=m)
            np.multiply(g, g, out=x)
            np.multiply(x, 0.001, out=x)
            np.multiply(v, 0.999, out=v)
            np.add(v, x, out=v)
            np.sqrt(v, out=x)
            np.divide(x, root, out=x)
            np.add(x, 1e-8, out=x)
            np.divide(m, x, out=x)
            np.multiply(x, 1e-3 / correction, out=x)
            np.subtract(p, x, out=p)
