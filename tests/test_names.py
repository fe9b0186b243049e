"""What the modules say of names that they lack, and which names they show to tab completion."""

import subprocess
import sys

import numpy as np
import pytest

import fusedopt
import fusedopt.functional
import fusedopt.megengine
import fusedopt.mindspore
import fusedopt.torch
from fusedopt.schedules import LinearWarmup


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (fusedopt, "Lamb", r"^module 'fusedopt' has no attribute 'Lamb'; did you mean 'LAMB'\?$"),
        (fusedopt, "SPARSEADAM", r"; did you mean 'SparseAdam'\?$"),
        (fusedopt, "nothing", r"^module 'fusedopt' has no attribute 'nothing'\.$"),
        (fusedopt.torch, "Lamb", r"^module 'fusedopt\.torch' has no attribute 'Lamb'; did you mean 'LAMB'\?$"),
        (
            fusedopt.functional,
            "Adam",
            r"^module 'fusedopt\.functional' has no attribute 'Adam'; did you mean 'adam'\?$",
        ),
        (fusedopt.functional, "muon", r"^Muon has no functional form: it is a procedure, .*; use fusedopt\.Muon\.$"),
        (fusedopt.functional, "sparse_adam", r"^SparseAdam has no functional form: it is a procedure"),
    ],
)
def test_a_name_that_is_not_there_is_told_the_nearest(module, name, message):
    with pytest.raises(AttributeError, match=message):
        getattr(module, name)
    assert not hasattr(module, name)


def test_a_module_that_is_imported_apart_is_said_to_be():
    text = "import fusedopt\ntry: fusedopt.torch\nexcept AttributeError as e: print(e)\nfrom fusedopt import testing"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'fusedopt' has no attribute 'torch' yet; import fusedopt.torch first.\n"


@pytest.mark.parametrize(
    "module",
    [fusedopt.torch, fusedopt.functional, fusedopt.megengine, fusedopt.mindspore, fusedopt.mindspore.ops],
    ids=lambda module: module.__name__,
)
def test_completion_shows_the_public_names_alone(module):
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_a_schedule_given_to_a_function_is_said_to_be_called_first():
    with pytest.raises(
        TypeError, match=r"^Adam: lr must be a number, got Lin.*; .* first, .*: schedule\(step - 1\)\.$"
    ):
        fusedopt.functional.adam(np.ones(3), np.ones(3), step=1, lr=LinearWarmup(1e-3, warmup=3))


def test_numpys_operations_on_a_parameter_say_to_take_its_values():
    w = fusedopt.Parameter(np.ones((3, 2)), name="w")
    for operation, name in ((lambda: np.ones((4, 3)) @ w, "matmul"), (lambda: np.sqrt(w), "sqrt")):
        with pytest.raises(TypeError, match=rf"^np\.{name}: parameter 'w' \(shape \(3, 2\)\) is no array; .*\.data\.$"):
            operation()
