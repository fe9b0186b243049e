"""How arrays are kept, on every device: NumPy's bits, whatever the dtypes, the sizes, the geometry and the values."""

from typing import Any
from unittest import mock

import numpy as np
import pytest

import fusedopt
from cases import CASES
from devices import CUDA
from emulated import new_device
from fusedopt.backends import device as device_module
from fusedopt.backends.device import CHUNK
from fusedopt.storage import BLOCK
from kept_checks import ADAM, FEW, SIZES, Steps, arrays_of, blocks, check_kept
from step_checks import GEOMETRIES, misaligned, same_results
from storages import Way, covering, every_way, uncentered

devices = pytest.mark.parametrize("device", ["emulated", CUDA], indirect=True)
OTHERS = [case for case in CASES if not case.rule.procedure and case.name not in ("Adam", "SGD")]
MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}


@pytest.fixture
def array() -> Any:
    """Arrays of an emulated device of the test's own."""
    return new_device()


def surface_of(array: Any) -> Any:
    return array.__fusedopt_backend__.surface


# --- which ways there are --------------------------------------------------------------------------------------------


def test_a_cover_has_every_pair_that_there_is():
    ways = every_way(fusedopt.Adam.rule)
    pairs = {(one.dtype, one.states) for one in ways} | {(one.finer, one.gradient) for one in ways}
    some = covering(ways)
    assert {(one.dtype, one.states) for one in some} | {(one.finer, one.gradient) for one in some} == pairs
    assert len(some) < len(ways) / 5


def test_blocks_are_not_all_poisoned():
    """Values that were all infinite or NaN would be equal on a device that computes nothing."""
    with np.errstate(all="ignore"):
        finite = np.isfinite(blocks(BLOCK * 500, "float32", 1)).reshape(-1, BLOCK).all(1).mean()
    assert 0.7 < finite < 0.95


# --- bits ------------------------------------------------------------------------------------------------------------


@devices
@pytest.mark.parametrize(
    ("optimizer", "options"), [(fusedopt.Adam, ADAM), (fusedopt.SGD, MOMENTUM)], ids=["Adam", "SGD"]
)
def test_three_values_together_have_numpy_s_bits(device, optimizer, options):
    ways = covering(every_way(optimizer.rule, **options), together=3)
    Steps(optimizer, ways, options, (5, 4097), ({}, {"grad_scale": 3.0})).check(device.array)


@devices
def test_sizes_around_lanes_blocks_and_chunks_have_numpy_s_bits(device):
    Steps(fusedopt.Adam, FEW, ADAM, (*SIZES, CHUNK + 5)).check(device.array)


@devices
@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_every_rule_kept_in_every_way_has_numpy_s_bits(device, case):
    options = uncentered(case.main)
    ways = covering(every_way(case.rule, **options))
    Steps(case.optimizer, ways, options, (3, (5, 1030)), ({}, {})).check(device.array)


@devices
def test_gradients_are_left_divided_by_the_scale(device):
    Steps(fusedopt.Adam, FEW, ADAM, scalars=({}, {"grad_scale": 3.0}), write_back=True).check(device.array)


@devices
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_values_of_half_precision_are_kept(device, dtype):
    every = np.arange(65536, dtype=np.uint16).view(dtype)
    ways = [way for way in every_way(fusedopt.Adam.rule) if way.dtype == way.gradient == dtype and way.states is None]
    steps = Steps(fusedopt.SGD, ways, {"lr": 1.0}, (65536,), ({}, {}), values=lambda *_: every)
    steps.check(device.array)


@pytest.mark.parametrize("threads", [32, 64, 256])
@pytest.mark.parametrize("chunk", [BLOCK, 1024, CHUNK])
def test_geometry_does_not_change_a_bit(array, threads, chunk):
    surface = surface_of(array)
    surface.threads, surface.grid, surface.order = threads, 3, 7
    with mock.patch.object(device_module, "CHUNK", chunk):
        check_kept(array)


def test_the_order_of_threads_and_blocks_does_not_change_a_bit(array):
    surface = surface_of(array)
    for surface.grid, surface.threads, surface.order in GEOMETRIES[::3]:
        check_kept(array)


@pytest.mark.parametrize("stream", range(7))
@pytest.mark.parametrize("way", FEW, ids=str)
def test_a_misaligned_buffer_does_not_change_a_bit(array, way, stream):
    steps = Steps(fusedopt.Adam, [way], ADAM, (4300,), scalars=({}, {}))
    expected = steps.expected()
    for elements in (1, 2, 3):
        with misaligned(array, stream, elements):
            same_results(steps.after(lambda values: values.view(array)), expected)


# --- launches --------------------------------------------------------------------------------------------------------


def test_all_ways_are_one_launch(array):
    steps = Steps(fusedopt.Adam, FEW, ADAM, (3, 4097))
    steps.after(lambda values: values.view(array))
    assert len(surface_of(array).launches) == len(steps.scalars)


@pytest.mark.parametrize("optimizer", [fusedopt.LAMB, fusedopt.LARS])
def test_norms_of_what_is_kept_are_one_launch_more(array, optimizer):
    steps = Steps(optimizer, FEW, {"weight_decay": 0.1}, (3, 4097, (7, 1300)))
    steps.check(lambda values: values.view(array))
    assert len(surface_of(array).launches) == 2 * len(steps.scalars)


def test_groups_and_rows_are_summed_of_what_is_kept(array):
    options = {**MOMENTUM, "clip_norm": 1.0, "grad_centralization": True}
    steps = Steps(fusedopt.SGD, FEW, options, ((3, 5), 4097, (7, 1301), (2, 4099)))
    steps.check(lambda values: values.view(array))


def test_each_replay_of_a_graph_draws_other_numbers(array):
    steps = Steps(fusedopt.Adam, FEW, ADAM, (129, 4097))
    optimizer, parameters = steps.optimizer_on(lambda values: values.view(array))
    surface = surface_of(array)
    for step in range(3):
        steps.give_gradients(parameters, 0, lambda values: values.view(array))
        if step == 0:
            optimizer.step()
            surface.host(np.zeros(1))
            surface.graph = graph = []
            optimizer.step()
            surface.graph = None
        else:
            for action in graph:
                action()
    found = arrays_of(optimizer, parameters)
    thrice = Steps(fusedopt.Adam, FEW, ADAM, (129, 4097), ({}, {}, {}), values=_the_first_gradients)
    same_results(found, thrice.expected())


def _the_first_gradients(size: int, dtype: str, seed: int) -> np.ndarray:
    return blocks(size, dtype, seed % 1000 + 1000 * (seed >= 1000))


def test_a_zeroed_number_is_zero_whatever_was_drawn(array):
    """Neither does random rounding move what is exact, nor does a code of zero have a sign or a scale."""
    way = Way("bfloat16", "bfloat16", None, "int8", True)
    steps = Steps(fusedopt.Adam, [way], {**ADAM, "weight_decay": 0.0}, (4096,), ({}, {}), values=_ones_then_zeros)
    found = steps.after(lambda values: values.view(array))
    same_results(found, steps.expected())
    assert (found["parameter 0"] == 1).all()
    assert not any(part.any() for what, part in found.items() if "exp_avg" in what)


def _ones_then_zeros(size: int, dtype: str, seed: int) -> np.ndarray:
    return np.full(size, 1.0 if seed < 1000 else -0.0, dtype)
