"""Launches before the update: what they sum, in which order, and what an update makes of it, on every device."""

from unittest import mock

import numpy as np
import pytest
import torch

import fusedopt
import plain_sums
from cases import Both, Plain, assert_same_bits, each_case, extreme, ordinary
from devices import DEVICES, NUMBA
from fusedopt import rules
from fusedopt.backends import jobs, sums
from fusedopt.layout import SEGMENT
from fusedopt.storage import plain
from fusedopt.tracing import trace

every_device = pytest.mark.parametrize("device", [*DEVICES, NUMBA], indirect=True)
SHAPES = ((3, 5), (0,), (4097,), (2, 4099), (0, 7), (40, 2, 3), (), (1,), (17,), (70_000,), (5, 1))
TRUST = {"trust_coefficient": 0.1, "weight_decay": 0.1}


def shaped(values, shapes, dtype, seed):
    return [values(int(np.prod(shape)), dtype, seed + i).reshape(shape) for i, shape in enumerate(shapes)]


# --- bits ------------------------------------------------------------------------------------------------------------


@every_device
@pytest.mark.parametrize("values", [ordinary, extreme])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (fusedopt.LAMB, {}),
        (fusedopt.LARS, TRUST),
        (fusedopt.Adam, {"clip_norm": 1.0}),
        (fusedopt.SGD, {"grad_centralization": True, "weight_decay": 0.1, "maximize": True, "clip_value": 0.5}),
        (fusedopt.LAMB, {"clip_norm": 1.0, "grad_centralization": True, "loss_scale": 2.0}),
    ],
    ids=["LAMB", "LARS", "clip_norm", "grad_centralization", "all"],
)
def test_sums_are_the_plain_functions_to_the_bit(device, optimizer, options, values):
    for dtype in ("float32", "float64", "bfloat16"):
        both = Both(optimizer, (options, shaped(values, SHAPES, dtype, 1)), array=device.array)
        for step in range(2):
            both.step(shaped(values, SHAPES, dtype, 20 + 20 * step), 3.0)
            both.compare(device.host)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("length", [1, 3, 128, 129, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 7])
def test_segments_are_summed_as_written_down(length, runs):
    for dtype in ("float32", "float64"):
        terms = ordinary(length * runs, dtype, 1).reshape(runs, length)
        expected = [plain_sums.segment_sums(run) for run in terms]
        assert_same_bits(sums.segment_sums(terms), np.array(expected))


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_a_tensors_segments_are_summed_as_written_down(count):
    segments = ordinary(count, "float64", 1)
    assert sums.tensor_sum(segments) == plain_sums.total(segments.tolist())


@every_device
def test_a_gradient_more_or_less_joins_and_leaves_the_groups_norm(device):
    parameters = [fusedopt.Parameter(device.array(np.zeros(n, np.float32))) for n in (3, 4, 5)]
    optimizer = fusedopt.SGD(parameters, lr=1.0, clip_norm=1.0)
    for present in ((0, 1, 2), (0, 2), (1,), (0, 1, 2)):
        before = [device.host(p.data) for p in parameters]
        for i, p in enumerate(parameters):
            p.grad = device.array(np.full(p.shape, 7.0, np.float32)) if i in present else None
        optimizer.step()
        moved = np.concatenate([b - device.host(p.data) for b, p in zip(before, parameters)])
        assert np.linalg.norm(moved) == pytest.approx(1, rel=1e-6)


# --- the group's norm ------------------------------------------------------------------------------------------------


def torch_clipped(optimizer, parameters, gradients, max_norm, **options):
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in parameters]
    theirs = optimizer(tensors, **options)
    for some in gradients:
        for tensor, gradient in zip(tensors, some):
            tensor.grad = torch.from_numpy(gradient.copy())
        torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        theirs.step()
    return [tensor.detach().numpy() for tensor in tensors]


@every_device
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_clip_norm_is_torchs_clip_grad_norm(device, name, max_norm):
    shapes = ((3, 5), (4097,), (2,))
    start = shaped(ordinary, shapes, "float64", 1)
    gradients = [shaped(ordinary, shapes, "float64", 10 * step) for step in (1, 2, 3)]
    theirs = torch_clipped(getattr(torch.optim, name), start, gradients, max_norm, lr=0.1, weight_decay=0.1)
    parameters = [fusedopt.Parameter(device.array(values)) for values in start]
    ours = getattr(fusedopt, name)(parameters, lr=0.1, weight_decay=0.1, clip_norm=max_norm)
    for some in gradients:
        for parameter, gradient in zip(parameters, some):
            parameter.grad = device.array(gradient)
        ours.step()
    for parameter, expected in zip(parameters, theirs):
        np.testing.assert_allclose(device.host(parameter.data), expected, rtol=1e-13, atol=1e-13)


@every_device
def test_a_norm_that_is_not_finite_does_as_torchs(device):
    """Of infinity: 0 for what is finite and NaN for the rest; of NaN: NaN."""
    for bad in (np.inf, np.nan):
        gradient = np.array([1.0, bad, 2.0])
        parameter = fusedopt.Parameter(device.array(np.ones(3)))
        parameter.grad = device.array(gradient)
        fusedopt.SGD([parameter], lr=1.0, clip_norm=1.0).step()
        [expected] = torch_clipped(torch.optim.SGD, [np.ones(3)], [[gradient]], 1.0, lr=1.0)
        np.testing.assert_array_equal(device.host(parameter.data), expected)


@every_device
def test_the_norm_is_of_unscaled_gradients_in_float64_of_float16(device):
    """(3, 4) and (0, 12, 0): 13. Times 2,000 the norm is beyond float16, in which torch's would be infinite."""
    some = [np.array(values, np.float16) * 2000 for values in ([3.0, 4.0], [0.0, 12.0, 0.0])]
    parameters = [fusedopt.Parameter(device.array(np.zeros_like(gradient))) for gradient in some]
    for parameter, gradient in zip(parameters, some):
        parameter.grad = device.array(gradient)
    fusedopt.SGD(parameters, lr=1.0, clip_norm=6.5).step(grad_scale=2000.0)
    np.testing.assert_array_equal(device.host(parameters[0].data), [-1.5, -2])
    np.testing.assert_array_equal(device.host(parameters[1].data), [0, -6, 0])


def test_a_negative_norm_is_refused():
    parameter = fusedopt.Parameter(np.ones(3))
    with pytest.raises(ValueError, match=r"SGD: clip_norm must be in \[0, inf\), got -1.0"):
        fusedopt.SGD([parameter], clip_norm=-1)


def test_a_group_on_two_devices_has_no_norm():
    from emulated import OtherArray, array

    some = [array(np.ones(3)), np.ones(3).view(OtherArray)]
    parameters = [fusedopt.Parameter(values) for values in some]
    optimizer = fusedopt.SGD(parameters, clip_norm=1.0)
    for parameter in parameters:
        parameter.grad = parameter.data
    with pytest.raises(RuntimeError, match=r"param group 0 .* emulated:0, emulated:1; .* a group of its own for each"):
        optimizer.step()
    assert all((np.array(parameter.data) == 1).all() for parameter in parameters)
    assert not optimizer.state


@pytest.mark.parametrize("options", [{"clip_norm": 1.0}, {"grad_centralization": True}])
@pytest.mark.parametrize("optimizer", [fusedopt.SparseAdam, fusedopt.LazyAdam])
def test_some_rows_alone_have_no_sums(optimizer, options):
    parameter = fusedopt.Parameter(np.ones((4, 2)))
    parameter.grad = fusedopt.SparseGradient(np.array([1]), np.ones((1, 2)))
    ours = optimizer([parameter], **options)
    with pytest.raises(RuntimeError, match=f"{next(iter(options))} is not for a SparseGradient"):
        ours.step()
    assert (parameter.data == 1).all()
    assert not ours.state


# --- centralized gradients -------------------------------------------------------------------------------------------


@every_device
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3), (2, 5000), (7,), ()])
def test_the_mean_of_each_slice_is_subtracted_with_its_decay(device, shape, maximize):
    p, g = shaped(ordinary, [shape, shape], "float64", 1)
    effective = (-g if maximize else g) + 0.5 * p
    if len(shape) > 1:
        effective = effective - effective.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    parameter = fusedopt.Parameter(device.array(p))
    parameter.grad = device.array(g)
    options = {"grad_centralization": True, "weight_decay": 0.5, "maximize": maximize}
    fusedopt.SGD([parameter], lr=0.1, **options).step()
    np.testing.assert_allclose(device.host(parameter.data), p - 0.1 * effective, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_decay_that_is_decoupled_is_not_in_the_mean(decoupled):
    p, g = shaped(ordinary, [(3, 5)] * 2, "float64", 1)
    plain = Plain(rules.Adam(grad_centralization=True, weight_decay=0.5, decoupled_weight_decay=decoupled), p)
    plain.update(g)
    decayed = g if decoupled else g + 0.5 * p
    centered = decayed - decayed.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(plain.states["exp_avg"], (1 - 0.9) * centered, rtol=1e-13, atol=1e-15)


@each_case
def test_every_rule_says_whether_its_decay_is_in_the_gradient(case):
    """If so, the decay may as well have been added before; if not, the states know nothing of it."""
    options = {name: value for name, value in case.main.items() if name != "weight_decay"}
    options |= {"adapt": False} if "adapt" in case.rule.options() else {}  # whose ratio is of the gradient alone
    if "weight_decay" not in case.rule.options():
        assert case.rule().coupled_decay is None
        return
    p, g = (0.1 + np.abs(ordinary(100, "float64", seed)) for seed in (1, 2))
    coupled = case.rule().coupled_decay is not None
    with_decay = Plain(case.rule(**options, weight_decay=0.5), p)
    without = Plain(case.rule(**options, weight_decay=0.0), p)
    with_decay.update(g)
    without.update(g + 0.5 * p if coupled else g)
    for name, values in without.states.items():
        np.testing.assert_allclose(with_decay.states[name], values, rtol=1e-12, err_msg=name)
    if coupled:
        np.testing.assert_allclose(with_decay.parameter, without.parameter, rtol=1e-12)


# --- LAMB and LARS ---------------------------------------------------------------------------------------------------


@every_device
@pytest.mark.parametrize(("optimizer", "options"), [(fusedopt.LAMB, {}), (fusedopt.LARS, TRUST)])
def test_small_parameters_have_a_norm(device, optimizer, options):
    """All below 1: a norm in whole numbers, as MegEngine's on the CPU, would be 0."""
    p, g = 0.1 * ordinary(5000, "float32", 1), ordinary(5000, "float32", 2)
    both = Both(optimizer, (options, [p]), array=device.array)
    both.step([g])
    both.compare(device.host)
    norm = np.linalg.norm(np.float64(p))
    if optimizer is fusedopt.LAMB:
        u = g / (np.abs(g) + 1e-6) + 0.01 * p
        expected = p - 1e-3 * norm / np.linalg.norm(np.float64(u)) * u
    else:
        expected = p - 1e-3 * 0.1 * norm / (np.linalg.norm(np.float64(g)) + 0.1 * norm) * (g + 0.1 * p)
    np.testing.assert_allclose(device.host(both.parameters[0].data), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("zero", ["parameter", "gradient"])
def test_without_a_norm_the_ratio_is_one(zero):
    p, g = (np.zeros(3) if zero == name else np.ones(3) for name in ("parameter", "gradient"))
    plain = Plain(rules.LARS(lr=0.1, weight_decay=0.5), p)
    plain.update(g)
    np.testing.assert_allclose(plain.parameter, p - 0.1 * (g + 0.5 * p), rtol=1e-15)


# --- launches and steps that are none --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "launches"),
    [({}, 1), ({"adapt": True}, 2), ({"clip_norm": 1.0}, 2), ({"grad_centralization": True, "adapt": True}, 3)],
)
def test_a_stage_is_a_launch_for_all_tensors_groups_and_dtypes(options, launches):
    from emulated import new_device

    array = new_device()
    parameters = [
        fusedopt.Parameter(np.ones(shape, dtype).view(array))
        for shape in ((3, 4), 0, 5000)
        for dtype in ("float32", "float64", "bfloat16")
    ]
    entries = [{"params": parameters[:4], **options}, {"params": parameters[4:], **options, "momentum": 0.0}]
    optimizer = fusedopt.LARS([*entries, {"params": []}], adapt=False)
    for parameter in parameters:
        parameter.grad = parameter.data
    optimizer.step().step()
    assert len(array.__fusedopt_backend__.surface.launches) == 2 * launches


@every_device
@each_case
def test_a_skipped_step_changes_nothing(device, case):
    options = {**case.main, "clip_norm": 1.0, "grad_centralization": True}
    both = Both(case.optimizer, (options, shaped(ordinary, SHAPES[:6], "float32", 1)), array=device.array)
    for step in range(2):
        both.step(shaped(ordinary, SHAPES[:6], "float32", 20 * (1 + step)))
        both.optimizer.step(found_inf=1.0)
        both.compare(device.host)


def test_sums_are_taken_in_blocks():
    """Of 2 Mi elements at a time; nothing as large as the parameter is made."""
    import tracemalloc

    p = fusedopt.Parameter(np.ones((64, 2**16), np.float32))
    optimizer = fusedopt.LAMB([p], clip_norm=1.0, grad_centralization=True)
    p.grad = np.ones((64, 2**16), np.float32)
    optimizer.step()
    tracemalloc.start()
    optimizer.step()
    assert tracemalloc.get_traced_memory()[1] < p.size * 4 / 4
    tracemalloc.stop()


# --- rules of one's own ----------------------------------------------------------------------------------------------


def own(**methods):
    """A rule that divides the gradient by its tensor's norm."""
    body = {
        "__annotations__": {"lr": "float"},
        "lr": rules.hyperparameter(0.5, "[0, inf)", "learning rate"),
        "reductions": (rules.Reduction("square"),),
        "scalars": lambda self, step, a: rules.Values(),
        "terms": lambda self, p, g, s, c: rules.Values(square=g * g),
        "ratios": lambda self, r, c: rules.Values(size=self.lr / np.sqrt(r.square)),
        "update": lambda self, p, g, s, c: (p - c.size * g, rules.Values()),
    }
    import dataclasses

    return dataclasses.dataclass(frozen=True)(type("Mine", (rules.Rule,), body | methods))


@every_device
def test_a_rule_of_ones_own_has_reductions(device):
    class Mine(fusedopt.Optimizer, rule=own()): ...

    both = Both(Mine, ({}, [np.zeros(2), np.zeros(5000)]), array=device.array)
    both.step([np.array([3.0, 4.0]), np.ones(5000)])
    both.compare(device.host)
    np.testing.assert_allclose(device.host(both.parameters[0].data), [-0.3, -0.4], rtol=1e-15)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"terms": lambda self, p, g, s, c: g}, r"^Mine\.terms must return Values of square, got Symbol"),
        (
            {"terms": lambda self, p, g, s, c: rules.Values(cube=g)},
            r"^Mine\.terms must return Values of square, got c",
        ),
        ({"terms": lambda self, p, g, s, c: rules.Values(square=g > 0)}, r"^Mine\.terms returns a truth value"),
        ({"ratios": lambda self, r, c: rules.Values(size=r.cube)}, r"reads r\.cube; r has square"),
        ({"ratios": lambda self, r, c: r.square}, r"^Mine\.ratios must return Values\(name=\.\.\.\), got Symbol"),
        ({"reductions": (rules.Reduction("square", when="no"),)}, r"'square' depends on 'no', no flag or switch"),
        ({"reductions": (rules.Reduction("clip_value"),)}, r"'clip_value', which is taken or no name"),
    ],
)
def test_mistakes_in_ones_own_are_named(methods, message):
    with pytest.raises(TypeError, match=message):
        trace(own(**methods)())


def test_a_job_spreads_means_over_the_elements_of_their_rows():
    job = object.__new__(jobs.Job)
    job.kind = mock.Mock(storage=plain("float32", "float32", ()))
    job.row, job.rows = 4, [np.array([1.0, 2.0, 3.0])]
    job._values, job._kept = [np.arange(12)], []
    traced = trace(rules.SGD(grad_centralization=True))
    for first in range(12):
        for last in range(first, 13):
            elements, means = job.slots(traced, first, last)
            assert_same_bits(means, 1.0 + elements // 4)
