"""The devices that a test body runs on, as parameters of fixtures, and the backend that a test asks for."""

import pytest

from fusedopt.backends import numba_problem

NUMBA = pytest.param("numba", marks=pytest.mark.skipif(numba_problem() is not None, reason=str(numba_problem())))
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["numpy", "emulated", CUDA]


def backend_for(item: pytest.Item) -> str:
    """FUSEDOPT_BACKEND for a test: numba only where it is meant, since it would compile thousands of loops."""
    if item.get_closest_marker("gpu"):
        return "auto"
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return "numba" if any(isinstance(value, str) and value == "numba" for value in parameters) else "numpy"
