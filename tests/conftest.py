"""The devices that one test body runs on: the CPU by NumPy and by numba, the emulated GPU, CUDA where there is one."""

import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices import DEVICES, backend_for
from fusedopt.backends import Backend, backend_of, cuda

os.environ["FUSEDOPT_BACKEND"] = "numpy"  # while tests are collected

# A machine with a GPU may have numpy, cupy, torch and pytest alone: the tests that need more run on the others.
HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))
MISSING = [
    name
    for name in ("hypothesis", "expecttest", "rich", "transformers", "accelerate", "lightning")
    if importlib.util.find_spec(name) is None
]
MISSING_FRAMEWORKS = [name for name in MISSING if name in ("transformers", "accelerate", "lightning")]
if "hypothesis" not in MISSING:
    import hypothesis

    hypothesis.settings.register_profile("untimed", deadline=None)  # of a machine that others use, seconds say nothing
    hypothesis.settings.load_profile("untimed")
# test_state_dict.py needs hypothesis, and the test modules of fusedopt's command line need rich.
NEEDED_BY = {
    "hypothesis": r"^from (hypothesis|test_state_dict) import",
    "expecttest": r"_internal\.common_optimizers import",
    "rich": r"^from (rich|fusedopt\.cli import .*\bmain\b)",
}
collect_ignore = [
    str(path.relative_to(HERE))
    for name, line in NEEDED_BY.items()
    if name in MISSING
    for path in sorted(HERE.rglob("test_*.py"))
    if re.search(line, path.read_text(), re.MULTILINE)
]


@dataclasses.dataclass(frozen=True)
class Device:
    """Where arrays are and steps are executed.

    Attributes:
        name: numpy, numba, emulated or cuda.
        array: Copies values to the device, with `np.array`'s dtype.
        host: Copies a device's array to a NumPy array.
        backend: fusedopt's, of these arrays.
    """

    name: str
    array: Callable[[Any], Any]
    host: Callable[[Any], np.ndarray]
    backend: Backend


def _array_function(name: str) -> Callable[[Any], Any]:
    if name in ("numpy", "numba"):
        return np.array
    if name == "emulated":
        import emulated  # not where only numpy, cupy, torch and pytest are installed
        from emulator.build import compiler, skip_or_fail

        if compiler() is None:
            skip_or_fail("no C++ compiler: set CXX, or install g++.")
        return emulated.array
    return cuda.module().array


@pytest.fixture(params=DEVICES, scope="module")
def device(request: pytest.FixtureRequest) -> Device:
    """Each device in turn; of a module's scope, so that property tests can use it."""
    array = _array_function(request.param)
    backend = backend_of(array(np.zeros(1, np.float32)))
    return Device(request.param, array, backend.host, backend)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test does not say itself about where it runs."""
    os.environ["FUSEDOPT_BACKEND"] = backend_for(item)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU or frameworks where there are none, so that a plain run is right everywhere."""
    lacking = {"gpu": cuda.problem() is not None, "frameworks": bool(MISSING_FRAMEWORKS)}
    for marker in (marker for marker, lacks in lacking.items() if lacks):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(marker)])
        items[:] = [item for item in items if not item.get_closest_marker(marker)]


def pytest_report_header() -> str:
    left_out = f"; left out without {', '.join(MISSING)}: " if MISSING else ""
    left_out += ", ".join([*collect_ignore, *(["the tests marked frameworks"] if MISSING_FRAMEWORKS else [])])
    from verified import changed_since  # in benchmarks/

    changed = ", ".join(changed_since()) or "none"
    return (
        f"CUDA: {cuda.problem() or 'works here'}{left_out}\nkernels changed since they were proven on a GPU: {changed}"
    )
