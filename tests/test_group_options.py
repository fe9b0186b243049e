"""What every rule can do with a gradient before it uses it: options of any param group, in the launch."""

import copy
import pickle

import numpy as np
import pytest

import fusedopt
from cases import Both, assert_same_bits, each_case, extreme, ordinary
from devices import DEVICES, NUMBA

DTYPES = ("float32", "float64", "float16", "bfloat16")
pytestmark = pytest.mark.parametrize("device", [*DEVICES, NUMBA], indirect=True)


def stepped(device, optimizer, gradient, **options):
    """A parameter after a step from ones."""
    p = fusedopt.Parameter(device.array(np.ones_like(gradient)))
    p.grad = device.array(gradient)
    optimizer([{"params": [p], **options}], lr=0.1).step()
    return device.host(p.data)


@each_case
@pytest.mark.parametrize("options", [{"loss_scale": 3.0}, {"clip_value": 0.5}, {"loss_scale": 0.1, "clip_value": 2.0}])
def test_every_rule_has_them_with_the_plain_rules_bits(device, case, options):
    sizes = (0, 5, 4097)
    groups = [({**case.main, **options}, [extreme(n, dtype, 1) for n in sizes]) for dtype in ("float32", "bfloat16")]
    both = Both(case.optimizer, *groups, array=device.array)
    for step in range(2):
        both.step([extreme(values.size, values.dtype.name, 2 + step) for _, some in groups for values in some], 7.0)
    both.compare(device.host)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_scale_divides_gradients_and_leaves_decay_alone(device, dtype):
    gradient = ordinary(100, dtype, 1)
    options = {"weight_decay": 0.5, "momentum": 0.9}
    scaled = stepped(device, fusedopt.SGD, (gradient * gradient.dtype.type(8)), loss_scale=8.0, **options)
    assert_same_bits(scaled, stepped(device, fusedopt.SGD, gradient, **options))


def test_the_loss_scale_multiplies_the_steps_own(device):
    p = fusedopt.Parameter(device.array(np.ones(3, np.float32)))
    p.grad = device.array(np.full(3, 24.0, np.float32))
    fusedopt.SGD([p], lr=1.0, loss_scale=2.0).step(grad_scale=4.0)
    np.testing.assert_array_equal(device.host(p.data), np.full(3, 1 - 3.0, np.float32))


def test_clip_value_cuts_unscaled_gradients_before_decay_and_keeps_nan(device):
    gradient = np.array([8.0, -8.0, 1.0, -1.0, 0.0, np.inf, -np.inf, np.nan], np.float32)
    got = stepped(device, fusedopt.SGD, gradient, loss_scale=2.0, clip_value=2.0, weight_decay=1.0)
    cut = np.array([2.0, -2.0, 0.5, -0.5, 0.0, 2.0, -2.0, np.nan], np.float32)
    np.testing.assert_array_equal(got, np.float32(1) - np.float32(0.1) * (cut + np.float32(1)))


def test_groups_differ_and_may_change_in_training(device):
    a, b = (fusedopt.Parameter(device.array(np.zeros(2, np.float32))) for _ in range(2))
    optimizer = fusedopt.SGD([{"params": [a], "clip_value": 1.0}, {"params": [b]}], lr=1.0)
    assert "clip_value" in optimizer.param_groups[0]
    assert "clip_value" not in optimizer.param_groups[1]  # shown where it was given
    for options in ({}, {"clip_value": 2.0}, {"clip_value": 0.0}):
        a.grad, b.grad = (device.array(np.full(2, 5.0, np.float32)) for _ in range(2))
        optimizer.param_groups[1].update(options)
        optimizer.step()
    np.testing.assert_array_equal(device.host(a.data), [-3.0, -3.0])
    np.testing.assert_array_equal(device.host(b.data), [-12.0, -12.0])


def test_they_are_saved_and_loaded_where_they_are_shown(device):
    def optimizer(**options):
        return fusedopt.Adam([fusedopt.Parameter(device.array(np.ones(2, np.float32)))], **options)

    assert not {"clip_value", "loss_scale"} & set(optimizer().state_dict()["param_groups"][0])
    saved = optimizer(clip_value=0.25, loss_scale=4.0).state_dict()
    assert saved["param_groups"][0]["clip_value"] == 0.25
    loaded = optimizer()
    loaded.load_state_dict(saved)
    assert (loaded.param_groups[0]["clip_value"], loaded.param_groups[0]["loss_scale"]) == (0.25, 4.0)
    loaded.load_state_dict(optimizer().state_dict())  # which says nothing of them
    assert loaded.param_groups[0]["clip_value"] == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_value": -1.0}, r"SGD: clip_value must be in \[0, inf\), got -1.0"),
        ({"clip_value": np.nan}, r"SGD: clip_value must be in \[0, inf\), got nan"),
        ({"loss_scale": 0.0}, r"SGD: loss_scale must be in \(0, inf\), got 0.0"),
        ({"loss_scale": np.inf}, r"SGD: loss_scale must be in \(0, inf\), got inf"),
    ],
)
def test_what_is_out_of_range_is_refused(device, options, message):
    p = fusedopt.Parameter(device.array(np.ones(2, np.float32)))
    with pytest.raises(ValueError, match=message):
        fusedopt.SGD([p], **options)
    optimizer = fusedopt.SGD([p])
    with pytest.raises(ValueError, match=message):
        optimizer.param_groups[0].update(options)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_group_that_overrides_one_with_its_default_goes_on_to_do_so(device, copied):
    def optimizer(**options):
        p, q = (fusedopt.Parameter(device.array(np.ones(3, np.float32))) for _ in range(2))
        return fusedopt.SGD([{"params": [p], **options}, {"params": [q]}], lr=1.0, clip_norm=0.5)

    overriding = optimizer(clip_norm=0.0)
    assert [group["clip_norm"] for group in overriding.param_groups] == [0.0, 0.5]
    assert [group.rule.clip_norm for group in copied(overriding).param_groups] == [0.0, 0.5]
    loaded = optimizer()
    loaded.load_state_dict(overriding.state_dict())
    assert [group["clip_norm"] for group in loaded.param_groups] == [0.0, 0.5]
    assert [group.rule.clip_norm for group in copied(loaded).param_groups] == [0.0, 0.5]
