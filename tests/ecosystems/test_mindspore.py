"""What MindSpore's users do, with arrays in place of tensors; its guide's examples as they are printed."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch

import fusedopt
import fusedopt.mindspore as nn
from cases import GOLDEN_GRADIENTS, GOLDEN_PARAMETER
from fusedopt.mindspore import Cell, Parameter, ops

NAMES = ("conv1.weight", "bn1.gamma", "bn1.beta", "fc.weight", "fc.bias")
SHAPES = ((4, 3, 2), (4,), (4,), (2, 4), (2,))


def net():
    """The parameters of a small network, two of which belong to a BatchNorm."""
    random = np.random.default_rng(0)
    return [Parameter(random.standard_normal(shape), name=name) for name, shape in zip(NAMES, SHAPES)]


def gradients_of(parameters, seed=0):
    random = np.random.default_rng([1, seed])
    return tuple(random.standard_normal(parameter.shape) for parameter in parameters)


def values_of(parameters):
    return [parameter.data.copy() for parameter in parameters]


def golden(make, expected, parameter=GOLDEN_PARAMETER, rtol=1e-11):
    """Three steps of the specification's; `make` is given the list of parameters."""
    one = Parameter(parameter.copy(), name="weight")
    optimizer = make([one])
    for gradient in GOLDEN_GRADIENTS:
        assert optimizer((gradient.reshape(parameter.shape),)) is True
    np.testing.assert_allclose(one.data.ravel(), expected, rtol=rtol)


MAKE = {
    "SGD": lambda params, **o: nn.SGD(params, **{"learning_rate": 0.1, "momentum": 0.9, **o}),
    "Momentum": lambda params, **o: nn.Momentum(params, **{"learning_rate": 0.1, "momentum": 0.9, **o}),
    "Adam": lambda params, **o: nn.Adam(params, **{"learning_rate": 0.1, **o}),
    "LazyAdam": lambda params, **o: nn.LazyAdam(params, **{"learning_rate": 0.1, **o}),
    "AdamWeightDecay": lambda params, **o: nn.AdamWeightDecay(params, **{"learning_rate": 0.1, **o}),
    "AdaMax": lambda params, **o: nn.AdaMax(params, **{"learning_rate": 0.1, **o}),
    "Adagrad": lambda params, **o: nn.Adagrad(params, **{"learning_rate": 0.1, **o}),
    "Adadelta": lambda params, **o: nn.Adadelta(params, **{"learning_rate": 0.1, **o}),
    "RMSProp": lambda params, **o: nn.RMSProp(params, **{"learning_rate": 0.1, **o}),
    "Rprop": lambda params, **o: nn.Rprop(params, **{"learning_rate": 0.1, **o}),
    "ASGD": lambda params, **o: nn.ASGD(params, **{"learning_rate": 0.1, **o}),
    "FTRL": lambda params, **o: nn.FTRL(params, **{"learning_rate": 0.1, **o}),
    "ProximalAdagrad": lambda params, **o: nn.ProximalAdagrad(params, **{"learning_rate": 0.1, **o}),
    "Lamb": lambda params, **o: nn.Lamb(params, **{"learning_rate": 0.1, **o}),
}
each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def signature_of(make):
    return inspect.signature(type(make(net()))).parameters


# --- results


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: nn.SGD(p, 0.1, weight_decay=0.01), (0.972017989, -2.014005978, 0.4985914695, 0.14925074975)),
        (
            lambda p: nn.SGD(p, 0.1, momentum=0.9, dampening=0.5, weight_decay=0.01),
            (0.96350989725, -1.9755122945, 0.418185567375, 0.198960537437),
        ),
        (lambda p: nn.Momentum(p, 0.1, 0.9), (0.9624, -2.0218, 0.4217, 0.15)),
        (
            lambda p: nn.Momentum(p, 0.1, 0.9, weight_decay=0.01, use_nesterov=True),
            (0.933209762551, -2.0236112251, 0.4259294848, 0.0579912252853),
        ),
        (
            lambda p: nn.Adam(p, 0.01, eps=1e-3),
            (0.984543729067, -1.99742749626, 0.482372666905, 0.243807682286),
        ),
        (
            lambda p: nn.Adam(p, 0.01, use_nesterov=True),
            (0.970432031606, -1.9934983725, 0.472634909429, 0.23786254545),
        ),
        (
            lambda p: nn.LazyAdam(p, 0.01, eps=1e-3),
            (0.984543729067, -1.99742749626, 0.482372666905, 0.243807682286),
        ),
        (
            lambda p: nn.AdamWeightDecay(p, 0.01, weight_decay=0.1),
            (0.921576116658, -1.99200080239, 0.428239665758, 0.217628973117),
        ),
        (lambda p: nn.Adagrad(p, learning_rate=0.1), (0.933541233419, -2.01957742595, 0.449480608887, 0.154653741075)),
        (
            lambda p: nn.Lamb(p, 0.01, weight_decay=0.01),
            (0.965163224935, -2.00001168104, 0.467554894528, 0.234739145843),
        ),
        (lambda p: nn.Adadelta(p), (0.994618037428, -2.00087837218, 0.498141400188, 0.246837738151)),
        (
            lambda p: nn.RMSProp(p, 0.01, momentum=0.9),
            (0.995865421582, -2.00264356678, 0.491997200433, 0.239016955716),
        ),
        (
            lambda p: nn.RMSProp(p, 0.01, momentum=0.9, centered=True),
            (0.995864387409, -2.00264474028, 0.491980958917, 0.238950107598),
        ),
        (lambda p: nn.Rprop(p), (0.85, -1.9, 0.28, 0.15)),
        (
            lambda p: nn.FTRL(p, 0.1, 0.1, l1=0.01, l2=0.02),
            (-0.0176826731226, -0.323384768646, 0.0838990977207, -0.094034164105),
        ),
        (
            lambda p: nn.ProximalAdagrad(p, 0.1, 0.1, l1=0.01, l2=0.02),
            (0.924800074346, -2.00466541678, 0.443992230703, 0.150361993149),
        ),
    ],
)
def test_golden_vectors(make, expected):
    golden(make, expected)


def test_golden_vectors_of_asgd():
    one = Parameter(GOLDEN_PARAMETER.copy())
    optimizer = nn.ASGD([one], 0.1, lambd=0.01, t0=1.0)
    for gradient in [*GOLDEN_GRADIENTS, *GOLDEN_GRADIENTS]:
        optimizer((gradient,))
    np.testing.assert_allclose(one.data, [0.944238974511, -2.02788798131, 0.497057897113, 0.0493279971095], rtol=1e-11)


def test_adamax_divides_by_the_norm_plus_eps():
    beta1, beta2, eps, lr = 0.9, 0.999, 1e-2, 0.1
    p, m, u = GOLDEN_PARAMETER.copy(), 0.0, 0.0
    for step, g in enumerate(GOLDEN_GRADIENTS, 1):
        m, u = beta1 * m + (1 - beta1) * g, np.maximum(beta2 * u, np.abs(g))
        p = p - lr / (1 - beta1**step) * m / (u + eps)
    golden(lambda some: nn.AdaMax(some, lr, beta1, beta2, eps), p)


def test_adam_offload_is_adam_here():
    ours, offloaded = ([Parameter(GOLDEN_PARAMETER.copy())] for _ in range(2))
    nn.Adam(ours)((GOLDEN_GRADIENTS[0],))
    nn.AdamOffload(offloaded)((GOLDEN_GRADIENTS[0],))
    assert np.array_equal(ours[0].data, offloaded[0].data)


def test_lazy_adam_changes_the_rows_of_a_sparse_gradient_alone():
    (table,) = params = [Parameter(np.ones((3, 2)), name="table")]
    optimizer = nn.LazyAdam(params, learning_rate=0.5)
    optimizer((fusedopt.SparseGradient(np.array([1]), np.full((1, 2), 4.0)),))
    np.testing.assert_allclose(table.data, [[1, 1], [0.5, 0.5], [1, 1]], rtol=1e-6)
    for make in (lambda p: nn.Adam(p), lambda p: Momentum(p, 0.1)):
        with pytest.raises(TypeError, match="was given a SparseGradient"):
            make([Parameter(np.ones((3, 2)))])((fusedopt.SparseGradient(np.array([1]), np.ones((1, 2))),))


def test_the_accumulator_of_adagrad_is_left_where_update_slots_is_false():
    (one,) = params = [Parameter(np.zeros(2))]
    optimizer = nn.Adagrad(params, accum=4.0, learning_rate=1.0, update_slots=False)
    optimizer((np.array([2.0, 6.0]),))
    assert one.data.tolist() == [-1.0, -3.0]


# --- calling an optimizer, and its order of parameters


@each
def test_called_with_gradients_it_does_what_step_does(make):
    ours, stepped = net(), net()
    called, stepping = make(ours), make(stepped)
    for seed in range(2):
        gradients = gradients_of(ours, seed)
        assert called(gradients) is True
        for parameter, gradient in zip(stepped, gradients):
            parameter.grad = gradient
        stepping.step()
    assert all(map(np.array_equal, values_of(ours), values_of(stepped)))
    assert called.global_step == stepping.global_step == 2


@pytest.mark.parametrize("make", [MAKE["Momentum"], MAKE["FTRL"], nn.AdaFactor, lambda p: MomentumOpt(p, 0.1, 0.9)])
def test_it_is_the_same_on_every_device(make, device):
    results = []
    for array, host in ((np.array, np.array), (device.array, device.host)):
        parameters = [Parameter(array(p.data), p.name) for p in net()]
        optimizer = make(parameters)
        for seed in range(2):
            optimizer(tuple(map(array, gradients_of(parameters, seed))))
        results.append([host(parameter.data) for parameter in parameters])
    assert all(map(np.array_equal, *results))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda g: g[:-1], ValueError, "has 5 parameters and was given 4 gradients"),
        (
            lambda g: (*g[:-1], np.ones(3)),
            ValueError,
            r"'fc.bias' \(shape \(2,\)\) was given a gradient of shape \(3,\)",
        ),
        (lambda g: (*g[:-1], np.ones(2, np.float32)), TypeError, "was given a gradient of float32"),
    ],
)
def test_gradients_that_do_not_fit_change_nothing(change, error, message):
    parameters = net()
    optimizer = MAKE["Momentum"](parameters)
    before = values_of(parameters)
    with pytest.raises(error, match=message):
        optimizer(change(gradients_of(parameters)))
    assert all(map(np.array_equal, values_of(parameters), before))
    assert all(p.grad is None for p in parameters)


def test_no_gradient_leaves_a_parameter_alone():
    parameters = net()
    optimizer = MAKE["Momentum"](parameters, weight_decay=0.1)
    before = values_of(parameters)
    gradients = gradients_of(parameters)
    optimizer((*gradients[:-1], None))
    assert [np.array_equal(p.data, b) for p, b in zip(parameters, before)] == [False] * 4 + [True]


# --- parameters: selection, names, groups


def test_trainable_params_are_those_that_require_a_gradient():
    parameters = net()
    parameters[1].requires_grad = False
    assert nn.trainable_params(parameters) == [parameters[0], *parameters[2:]]
    optimizer = nn.Momentum(nn.trainable_params(parameters), 0.1, 0.9)
    assert len(optimizer.parameters_in_order) == 4


@each
def test_parameters_of_a_batch_norm_are_not_decayed_where_there_are_no_groups(make):
    decayed, plain = net(), net()
    optimizer, without = make(decayed, weight_decay=8.0), make(plain)
    for seed in range(2):
        optimizer(gradients_of(decayed, seed))
        without(gradients_of(plain, seed))
    same = [np.array_equal(p.data, q.data) for p, q in zip(decayed, plain)]
    filtered = not isinstance(optimizer, (nn.SGD, nn.FTRL))
    assert same == [False, filtered, filtered, False, False]
    assert (
        "Not decayed, since their names have beta or gamma: bn1.gamma, bn1.beta" in optimizer.describe()
    ) is filtered


def test_what_a_group_lacks_is_the_optimizers():
    first, *rest = net()
    optimizer = nn.Momentum([{"params": [first], "lr": 0.5}, {"params": rest}], 0.1, 0.9, weight_decay=0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_a_group_may_have_a_learning_rate_of_any_kind():
    first, *rest = net()
    rates = (rate for rate in (0.5, 0.25))
    optimizer = nn.Momentum([{"params": [first], "lr": rates}, {"params": rest, "lr": np.array([0.1, 0.2])}], 0.1, 0.9)
    optimizer(gradients_of([first, *rest]))
    assert optimizer.get_lr() == (0.25, 0.2, 0.2, 0.2, 0.2)


def test_only_undecayed_parameters_are_one_group():
    optimizer = nn.Momentum(net()[1:3], 0.1, 0.9, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


def test_in_groups_names_do_not_matter():
    parameters = net()
    optimizer = nn.Momentum([{"params": parameters}], 0.1, 0.9, weight_decay=0.25)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25]
    assert "Not decayed" not in optimizer.describe()


def test_states_and_gradients_keep_the_order_in_which_parameters_came():
    parameters = net()
    optimizer = nn.Momentum(parameters, 0.1, 0.9, weight_decay=0.1)
    gradients = gradients_of(parameters)
    optimizer(gradients)
    state = optimizer.state_dict()
    assert list(state["state"]) == [0, 1, 2, 3, 4]
    assert [group["params"] for group in state["param_groups"]] == [[0, 3, 4], [1, 2]]
    assert np.array_equal(state["state"][1]["moments"], gradients[1])
    resumed = nn.Momentum(net(), 0.1, 0.9, weight_decay=0.1)
    resumed.load_state_dict(state)
    assert np.array_equal(resumed.state_dict()["state"][3]["moments"], state["state"][3]["moments"])


def guide_groups(parameters):
    """The guide's example of groups; its prose says 0.001 for conv's learning rate, and its code 0.01."""
    conv = [p for p in parameters if "conv" in p.name]
    rest = [p for p in parameters if "conv" not in p.name]
    fixed, dynamic = 0.01, nn.PolynomialDecayLR(learning_rate=0.1, end_learning_rate=0.01, decay_steps=4, power=0.5)
    return [{"params": conv, "weight_decay": 0.01, "lr": fixed}, {"params": rest, "lr": dynamic}]


def test_the_guides_groups():
    parameters = net()
    optimizer = nn.Momentum(guide_groups(parameters), learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    seen = []
    for _ in range(6):
        seen.append(optimizer.get_lr())
        optimizer(gradients_of(parameters))
    assert [rates[0] for rates in seen] == [0.01] * 6
    np.testing.assert_allclose(
        [rates[1] for rates in seen], [0.1, 0.0879422863405995, 0.0736396103067893, 0.055, 0.01, 0.01], rtol=1e-13
    )
    assert len(seen[0]) == 5


def test_order_params_sets_the_order_of_gradients_and_states():
    parameters = net()
    groups = [*guide_groups(parameters), {"order_params": parameters[::-1]}]
    optimizer = nn.Momentum(groups, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    plain = nn.Momentum(guide_groups(others := net()), learning_rate=0.1, momentum=0.9)
    assert [p.name for p in optimizer.parameters_in_order] == list(NAMES[::-1])
    gradients = gradients_of(parameters)
    optimizer(gradients[::-1])
    plain(gradients)
    assert all(map(np.array_equal, values_of(parameters), values_of(others)))
    state = optimizer.state_dict()
    assert [group["params"] for group in state["param_groups"]] == [[4], [3, 2, 1, 0]]
    assert np.array_equal(state["state"][0]["moments"], gradients[4])
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert [p.name for p in copied.parameters_in_order] == list(NAMES[::-1])
        assert copied.global_step == 1


def test_a_group_added_later_comes_last():
    parameters = net()
    optimizer = nn.Momentum(parameters[1:], 0.1, 0.9, weight_decay=0.1)
    optimizer.add_param_group({"params": parameters[0], "lr": 0.5})
    assert [p.name for p in optimizer.parameters_in_order] == [*NAMES[1:], NAMES[0]]
    assert optimizer.get_lr() == (0.1, 0.1, 0.1, 0.1, 0.5)
    with pytest.raises(KeyError, match="did you mean 'weight_decay'"):
        optimizer.add_param_group({"params": Parameter(np.ones(2)), "weigth_decay": 0.5})


def test_names_may_come_with_the_parameters():
    named = [(name, Parameter(p.data)) for name, p in zip(NAMES, net())]
    optimizer = nn.Momentum(named, 0.1, 0.9, weight_decay=0.1)
    assert [p.name for p in optimizer.parameters_in_order] == list(NAMES)
    assert optimizer.describe().endswith("bn1.gamma, bn1.beta")


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (lambda p: [{"params": p, "grad_centralizaiton": True}], KeyError, "did you mean 'grad_centralization'"),
        (lambda p: [{"params": p, "beta1": 0.9}], KeyError, "it may have params, lr, weight_decay"),
        (lambda p: [{"params": p}, {"order_params": p[1:]}], ValueError, "each parameter of the groups once, 5 in all"),
        (lambda p: [{"params": p}, {"order_params": [*p[1:], p[1]]}], ValueError, "each parameter of the groups once"),
        (lambda p: [{"params": p}, {"order_params": p}, {"order_params": p}], ValueError, "in 2 of them"),
        (lambda p: [{"params": p}, {"order_params": p, "lr": 0.1}], ValueError, "has no other key, got 'lr'"),
        (lambda p: [{"params": p}, {"order_params": 3}], TypeError, "must be a list of Parameters, got int"),
        (lambda p: [{"order_params": p}], ValueError, "empty parameter list"),
        (lambda p: [{"params": p}, {"order_param": p}], KeyError, r"params\[1\] has a key 'order_param'; did you mean"),
        (lambda p: [{"params": p}, {"params": p[:1]}], ValueError, "appears twice"),
        (lambda p: [{"params": p}, p[0]], TypeError, "beside dicts"),
        (lambda p: [{"params": p, "grad_centralization": 1}], TypeError, "True or False"),
        (lambda p: [{"params": p, "lr": -0.1}], ValueError, r"group 0: lr must be in \[0, inf\), got -0.1"),
        (lambda p: [{"lr": 0.1}], ValueError, "without 'params'"),
        (lambda p: [], ValueError, "empty parameter list"),
        (lambda p: None, TypeError, "NoneType"),
        (lambda p: set(p), TypeError, "a set"),
        (lambda p: p[0].data, TypeError, "ndarray"),
    ],
)
def test_groups_that_are_refused(groups, error, message):
    parameters = net()
    with pytest.raises(error, match=message):
        nn.Momentum(groups(parameters), 0.1, 0.9)
    nn.Momentum(parameters, 0.1, 0.9)  # nothing has taken them


def test_a_misspelt_argument_says_what_was_meant():
    with pytest.raises(TypeError, match=r"^Momentum has no option 'wieght_decay'; did you mean 'weight_decay'\?$"):
        nn.Momentum(net(), 0.1, 0.9, wieght_decay=0.1)
    with pytest.raises(TypeError, match="Momentum has no option 'colour'; it has params, learning_rate, momentum, "):
        nn.Momentum(net(), 0.1, 0.9, colour=0.1)


@pytest.mark.parametrize(("name", "numpys"), [("sqrt", "np.sqrt"), ("select", "np.where"), ("Topology", "NumPy's op")])
def test_operations_that_are_not_here_are_numpys(name, numpys):
    with pytest.raises(AttributeError, match=f"has ApplyCen.*, assign, pow, and no '{name}'; take {numpys}"):
        getattr(nn.ops, name)


def test_members_of_mindspores_optimizers_are_there_or_say_where():
    parameters = net()
    groups = [{"params": parameters[1:], "weight_decay": lambda step: 0.5 + step}, {"params": parameters[:1]}]
    optimizer = nn.Momentum([*groups, {"order_params": parameters}], 0.1, 0.9, weight_decay=0.25)
    assert optimizer.get_weight_decay() == (0.25, 0.5, 0.5, 0.5, 0.5)
    optimizer(gradients_of(parameters))
    assert optimizer.get_weight_decay() == (0.25, 1.5, 1.5, 1.5, 1.5)
    for name in ("learning_rate", "get_lr_parameter"):
        with pytest.raises(AttributeError, match=r"param_groups\[0\]\['lr'\], which may be assigned"):
            getattr(optimizer, name)


def test_centralization_takes_the_mean_of_gradient_and_decay_out():
    parameters = net()
    before = values_of(parameters)
    groups = [{"params": parameters, "grad_centralization": True, "weight_decay": 0.5}]
    gradients = gradients_of(parameters)
    nn.SGD(groups, 1.0)(gradients)
    for parameter, p, g in zip(parameters, before, gradients):
        g = g + 0.5 * p
        if p.ndim > 1:
            g = g - g.mean(axis=tuple(range(1, p.ndim)), keepdims=True)
        np.testing.assert_allclose(parameter.data, p - g, rtol=1e-12, atol=1e-12)


# --- learning rates


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.5, [0.5, 0.5, 0.5]),
        (1, [1.0, 1.0, 1.0]),
        (np.float32(0.5), [0.5, 0.5, 0.5]),
        (np.array(0.5), [0.5, 0.5, 0.5]),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
        ((x for x in (0.1, 0.2, 0.3)), [0.1, 0.2, 0.3]),
        (np.array([0.1, 0.2, 0.3]), [0.1, 0.2, 0.3]),
        (lambda step: 0.1 * (step + 1), [0.1, 0.2, 0.1 * 3]),
        (nn.ExponentialDecayLR(0.1, 0.9, 4), [0.1, 0.0974003746425297, 0.0948683298050514]),
        (nn.piecewise_constant_lr([1, 3], [0.1, 0.05]), [0.1, 0.05, 0.05]),
    ],
    ids=str,
)
def test_a_learning_rate_of_any_kind(rate, expected):
    (one,) = params = [Parameter(np.zeros(1))]
    optimizer = nn.SGD(params, rate)
    moved, before = [], 0.0
    for step in range(3):
        assert optimizer.get_lr() == pytest.approx(expected[step], rel=1e-12)
        assert optimizer.global_step == step
        optimizer((np.ones(1),))
        moved.append(before - one.data[0])
        before = one.data[0]
    np.testing.assert_allclose(moved, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("rate", "error"),
    [
        (-0.1, ValueError),
        ([0.1, -0.1], ValueError),
        (np.ones((2, 2)), ValueError),
        (math.nan, ValueError),
        ("0.1", TypeError),
        (None, TypeError),
        (True, TypeError),
        ([0.1, "a"], TypeError),
    ],
)
@pytest.mark.parametrize("make", [lambda p, rate: nn.Momentum(p, rate, 0.9), lambda p, rate: Momentum(p, rate)])
def test_what_is_no_learning_rate(rate, error, make):
    parameters = net()
    with pytest.raises(error, match=r"learning_rate(\[1\])? must"):
        make(parameters, rate)
    nn.Momentum(parameters, 0.1, 0.9)  # nothing has taken them


def test_a_list_that_is_too_short_is_an_error_that_changes_nothing():
    parameters = net()
    optimizer = nn.Momentum(parameters, [0.1, 0.2], 0.9)
    for _ in range(2):
        optimizer(gradients_of(parameters))
    before = values_of(parameters)
    with pytest.raises(ValueError, match="2 values"):
        optimizer(gradients_of(parameters))
    assert all(map(np.array_equal, values_of(parameters), before))


def test_lists_of_several_groups_have_one_length():
    first, *rest = net()
    with pytest.raises(ValueError, match="one length"):
        nn.Momentum([{"params": [first], "lr": [0.1, 0.2]}, {"params": rest}], [0.1, 0.2, 0.3], 0.9)


def test_the_guides_piecewise_list():
    rates = nn.piecewise_constant_lr([1, 3, 10], [0.1, 0.05, 0.01])
    assert rates == [0.1, 0.05, 0.05, *[0.01] * 7]
    optimizer = nn.Momentum(net(), learning_rate=rates, momentum=0.9, weight_decay=0.0)
    assert optimizer.get_lr() == 0.1


@pytest.mark.parametrize("name", ["cosine_decay_lr", "exponential_decay_lr", "inverse_decay_lr", "natural_exp_decay_lr",
                                  "polynomial_decay_lr", "warmup_lr", "CosineDecayLR", "ExponentialDecayLR",
                                  "InverseDecayLR", "NaturalExpDecayLR", "PolynomialDecayLR"])  # fmt: skip
def test_schedules_are_here_by_their_names(name):
    assert callable(getattr(nn, name))


class Halved(nn.LearningRateSchedule):
    """A schedule of a user."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def construct(self, global_step):
        return self.rate / 2**global_step


def test_a_schedule_of_ones_own_has_construct():
    optimizer = nn.Momentum([Parameter(np.zeros(1))], Halved(1.0), 0.9)
    for step in range(3):
        assert optimizer.get_lr() == 0.5**step
        optimizer((np.ones(1),))
    assert isinstance(nn.WarmUpLR(0.1, 2), nn.LearningRateSchedule)
    with pytest.raises(TypeError):
        nn.LearningRateSchedule()


def test_a_resumed_run_goes_on_at_its_global_step():
    parameters, others = net(), net()
    optimizer = nn.Adam(parameters, nn.CosineDecayLR(0.01, 0.1, 10), weight_decay=0.1)
    for seed in range(3):
        optimizer(gradients_of(parameters, seed))
    for own, other in zip(parameters, others):
        other.data[...] = own.data
    resumed = nn.Adam(others, nn.CosineDecayLR(0.01, 0.1, 10), weight_decay=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.global_step == 3
    for each in (optimizer, resumed):
        each(gradients_of(parameters, 9))
    assert all(map(np.array_equal, values_of(parameters), values_of(others)))


# --- weight decay


class ExponentialWeightDecay(Cell):
    """The guide's example of a dynamic weight decay."""

    def __init__(self, weight_decay, decay_rate, decay_steps):
        super().__init__()
        self.weight_decay = weight_decay
        self.decay_rate = decay_rate
        self.decay_steps = decay_steps

    def construct(self, global_step):
        p = global_step / self.decay_steps
        return self.weight_decay * ops.pow(self.decay_rate, p)


def test_the_guides_dynamic_weight_decay():
    decay = ExponentialWeightDecay(weight_decay=0.0001, decay_rate=0.1, decay_steps=10000)
    expected = [1e-4, 9.99769767998157e-05, 3.16227766016838e-05, 1e-5, 1e-6]
    np.testing.assert_allclose([decay(step) for step in (0, 1, 5000, 10000, 20000)], expected, rtol=1e-13)
    parameters = net()
    optimizer = nn.Momentum(parameters, 0.1, 0.9, weight_decay=decay)
    for _ in range(2):
        optimizer(gradients_of(parameters))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(expected[1]), 0.0]


def test_sgd_takes_no_dynamic_weight_decay():
    for params in (net(), [{"params": net(), "weight_decay": lambda step: 0.1}]):
        decay = 0.0 if isinstance(params[0], dict) else ExponentialWeightDecay(1e-4, 0.1, 10)
        with pytest.raises(TypeError, match="weight_decay must be a number for this optimizer"):
            nn.SGD(params, 0.1, weight_decay=decay)


@pytest.mark.parametrize("make", [make for make in MAKE.values() if "loss_scale" in signature_of(make)])
def test_a_loss_scale_divides_gradients_and_not_the_decay(make):
    plain, scaled = net(), net()
    optimizer, with_scale = make(plain, weight_decay=0.1), make(scaled, weight_decay=0.1, loss_scale=1024)
    for seed in range(2):
        gradients = gradients_of(plain, seed)
        optimizer(gradients)
        with_scale(tuple(1024 * gradient for gradient in gradients))
    for own, other in zip(plain, scaled):
        np.testing.assert_allclose(own.data, other.data, rtol=1e-14)


# --- what constructors refuse


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: nn.Momentum(p, 0.1, 1), TypeError, "Momentum: momentum must be a float, got 1"),
        (lambda p: nn.Momentum(p, 0.1, -0.1), ValueError, r"momentum must be in \[0, inf\), got -0.1"),
        (lambda p: nn.Momentum(p, 0.1), TypeError, "momentum"),
        (lambda p: nn.Adam(p, beta1=0.0), ValueError, r"Adam: beta1 must be in \(0, 1\), got 0.0"),
        (lambda p: nn.Adam(p, beta2=1), TypeError, "beta2 must be a float, got 1"),
        (lambda p: nn.Adam(p, eps=0.0), ValueError, r"eps must be in \(0, inf\)"),
        (lambda p: nn.Adam(p, use_nesterov=1), TypeError, "use_nesterov must be True or False"),
        (lambda p: nn.Adam(p, use_locking="no"), TypeError, "use_locking must be True or False"),
        (lambda p: nn.AdaMax(p, beta1=1.0), ValueError, "AdaMax: beta1"),
        (lambda p: nn.AdamWeightDecay(p, weight_decay=-1), ValueError, r"weight_decay must be in \[0, inf\), got -1"),
        (lambda p: nn.AdamWeightDecay(p, weight_decay="a"), TypeError, "weight_decay must be a number"),
        (lambda p: nn.Momentum(p, 0.1, 0.9, loss_scale=0.0), ValueError, r"loss_scale must be in \(0, inf\)"),
        (lambda p: nn.Momentum(p, 0.1, 0.9, loss_scale="1"), TypeError, "loss_scale must be a number"),
        (lambda p: nn.Momentum(p, 0.1, 0.9, loss_scale=math.nan), ValueError, "got nan"),
        (lambda p: nn.SGD(p, nesterov=True), ValueError, "nesterov=True needs momentum > 0"),
        (lambda p: nn.RMSProp(p, momentum=1), TypeError, "RMSProp: momentum must be a float"),
        (lambda p: nn.RMSProp(p, epsilon=0.0), ValueError, "epsilon"),
        (lambda p: nn.FTRL(p, learning_rate=0.0), ValueError, r"\(0, inf\)"),
        (lambda p: nn.FTRL(p, lr_power=0.5), ValueError, "lr_power"),
        (lambda p: nn.Rprop(p, etas=(1.5, 1.2)), ValueError, "etas"),
    ],
)
def test_arguments_that_are_refused(make, error, message):
    parameters = net()
    with pytest.raises(error, match=message):
        make(parameters)
    nn.Momentum(parameters, 0.1, 0.9)  # nothing has taken them


def test_constructors_have_mindspores_arguments():
    arguments = list(inspect.signature(nn.RMSProp).parameters)
    assert arguments == ["params", "learning_rate", "decay", "momentum", "epsilon", "use_locking", "centered",
                         "loss_scale", "weight_decay"]  # fmt: skip
    assert issubclass(nn.RMSProp, nn.Optimizer)
    assert issubclass(nn.RMSProp, fusedopt.Optimizer)


# --- AdaFactor


@pytest.mark.parametrize("shape", [(4,), (2, 2), (3, 2, 4), ()])
def test_adafactor_is_torchs_where_both_say_the_same(shape):
    start = np.random.default_rng(3).standard_normal(shape)
    ours, theirs = Parameter(start.copy(), name="weight"), torch.tensor(start, requires_grad=True)
    optimizer = nn.AdaFactor([ours], beta1=None)
    reference = torch.optim.Adafactor([theirs], lr=1e-2, eps=(1e-30, 1e-3))
    for step in range(4):
        gradient = np.random.default_rng([4, step]).standard_normal(shape)
        optimizer((np.array(gradient),))
        theirs.grad = torch.tensor(gradient)
        reference.step()
    np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-12)


def test_adafactor_with_all_that_torchs_has_not():
    eps, rate, beta1, decay = 1e-3, 0.5, 0.9, 0.1
    p, m, v = GOLDEN_PARAMETER.copy(), 0.0, 0.0
    for step, g in enumerate(GOLDEN_GRADIENTS / 4, 1):
        kept = 1 - step**-0.8
        v = kept * v + (1 - kept) * (g * g + 1e-30)
        u = g / np.sqrt(v)
        u = rate / 2 ** (step - 1) * u / max(1, np.sqrt(np.mean(u * u)) / 2)
        m = beta1 * m + (1 - beta1) * u
        p = p - rate / 2 ** (step - 1) * decay * p - m
    make = lambda some: nn.AdaFactor(  # noqa: E731
        some, Halved(rate), (1e-30, eps), 2.0, 0.8, beta1, decay, False, False, loss_scale=4.0
    )
    golden(make, p)


@pytest.mark.parametrize(
    ("options", "step", "value", "rate"),
    [
        ({}, 1, 2.0, 1e-2 * 2),
        ({}, 40_000, 2.0, 0.005 * 2),
        ({}, 1, 1e-5, 1e-2 * 1e-3),
        ({"eps": (1e-30, 0.5)}, 1, 1e-5, 1e-2 * 0.5),
        ({"scale_parameter": False}, 1, 2.0, 1e-2),
        ({"warmup_init": True}, 300, 2.0, 3e-4 * 2),
    ],
)
def test_adafactors_step_size(options, step, value, rate):
    (one,) = params = [Parameter(np.full(3, value))]
    optimizer = nn.AdaFactor(params, beta1=None, **options)
    optimizer.global_step = step - 1
    optimizer((np.array([0.5, -0.5, 0.5]),))  # of one magnitude: u has an rms of 1 after it is cut
    np.testing.assert_allclose(one.data, value - rate * np.array([1, -1, 1]), rtol=1e-12)


def test_adafactor_is_resumed_and_keeps_a_first_moment_of_half_the_size():
    parameters = net()
    optimizer = nn.AdaFactor(parameters, warmup_init=True, compression=True)
    optimizer(gradients_of(parameters))
    saved = optimizer.state_dict()
    assert saved["exp_avg.fc.weight"].dtype == np.float16
    assert saved["exp_avg_sq_row.conv1.weight"].shape == (4, 3)
    assert saved["exp_avg_sq_col.conv1.weight"].shape == (4, 2)
    others = net()
    for own, other in zip(parameters, others):
        other.data[...] = own.data
    resumed = nn.AdaFactor(others, warmup_init=True, compression=True)
    resumed.load_state_dict(saved)
    for one in (optimizer, resumed):
        one(gradients_of(parameters, 1))
    assert all(map(np.array_equal, values_of(parameters), values_of(others)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_adafactors_second_moments_do_not_underflow(dtype):
    small = Parameter(np.zeros((2, 3), dtype), name="matrix"), Parameter(np.zeros(3, dtype), name="vector")
    optimizer = nn.AdaFactor(small, relative_step=False, learning_rate=0.5, scale_parameter=False, beta1=None)
    optimizer(tuple(np.full(p.shape, 1e-5, p.dtype) for p in small))  # whose square is 1e-10, and float16's least 6e-8
    for parameter in small:
        np.testing.assert_allclose(parameter.data.astype(float), -0.5, rtol=1e-2)
    kept = "float64" if dtype == "float64" else "float32"
    states = optimizer.state_dict()
    assert {str(states[name].dtype) for name in states if name.startswith("exp_avg_sq")} == {kept}


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,)])
def test_adafactor_steps_over_what_is_empty(shape):
    empty, one = Parameter(np.zeros(shape)), Parameter(np.ones(2))
    optimizer = nn.AdaFactor([empty, one])
    optimizer((np.zeros(shape), np.ones(2)))
    assert (one.data < 1).all()
    assert not any(np.isnan(value).any() for value in optimizer.state_dict().values())


def test_adafactor_decays_every_parameter():
    parameters = net()
    nn.AdaFactor(parameters, weight_decay=0.5, beta1=None)(tuple(np.zeros(p.shape) for p in parameters))
    changed = [not np.array_equal(p.data, q.data) for p, q in zip(parameters, net())]
    assert changed == [True] * 5


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"learning_rate": 0.1}, ValueError),
        ({"relative_step": False}, ValueError),
        ({"learning_rate": 0.1, "relative_step": False, "warmup_init": True}, ValueError),
        ({"eps": (1e-3,)}, ValueError),
        ({"eps": (1, 1e-3)}, TypeError),
        ({"decay_rate": 1.0}, ValueError),
        ({"weight_decay": 1.0}, ValueError),
        ({"beta1": 1.0}, ValueError),
        ({"compression": 1}, TypeError),
    ],
)
def test_what_adafactor_refuses(options, error):
    parameters = net()
    with pytest.raises(error, match="AdaFactor"):
        nn.AdaFactor(parameters, **options)
    nn.AdaFactor(parameters)  # nothing has taken them


# --- LARS


def test_lars_scales_the_gradients_of_another_optimizer():
    random = np.random.default_rng(1)
    p, g = random.standard_normal((3, 4)), random.standard_normal((3, 4))
    weight, bias = Parameter(p.copy(), name="weight"), Parameter(np.ones(2), name="bias")
    inner = nn.Momentum([weight, bias], 0.1, 0.9, weight_decay=0.01, loss_scale=8.0)
    optimizer = nn.LARS(inner, epsilon=1e-3, coefficient=0.02)
    assert [group["weight_decay"] for group in inner.param_groups] == [0.0]
    optimizer((8 * g, np.full(2, 8.0)))
    norm = np.linalg.norm
    ratio = 0.02 * norm(p) / (norm(g) + 0.01 * norm(p) + 1e-3)
    np.testing.assert_allclose(weight.data, p - 0.1 * ratio * (g + 0.01 * p), rtol=1e-13)
    np.testing.assert_allclose(bias.data, np.full(2, 0.9), rtol=1e-13)
    assert optimizer.global_step == 1
    optimizer.clear_grad()
    assert weight.grad is None


def test_golden_vector_of_lars():
    golden(
        lambda some: nn.LARS(nn.Momentum(some, 0.1, 0.9, weight_decay=0.01), epsilon=0.0),
        (0.999820231263, -1.99996685389, 0.499379932575, 0.249802449072),
    )


def test_lars_clips_to_the_learning_rate_in_force_and_lets_zeros_be():
    p = np.full(4, 2.0)
    one, zero = Parameter(p.copy(), name="weight"), Parameter(np.zeros(2), name="other")
    inner = nn.SGD([one, zero], [0.5, 0.25, 0.125])
    optimizer = nn.LARS(inner, epsilon=0.0, coefficient=0.125, use_clip=True)
    optimizer((np.ones(4), np.ones(2)))
    np.testing.assert_allclose(one.data, p - 0.5 * (0.25 / 0.5), rtol=1e-12)
    np.testing.assert_allclose(zero.data, [-0.5, -0.5])
    optimizer((np.ones(4), np.ones(2)))
    np.testing.assert_allclose(one.data, p - 0.25 - 0.25 * (0.125 * 1.75 / 0.25), rtol=1e-12)
    one.data[...] = 100.0
    optimizer((np.ones(4), np.ones(2)))
    np.testing.assert_allclose(one.data, np.full(4, 99.875), rtol=1e-12)  # 12.5 / 0.125 is cut to 1


def test_lars_divides_by_a_scale_past_float16():
    one = Parameter(np.zeros(2, np.float16), name="bias")
    nn.LARS(nn.SGD([one], 1.0, loss_scale=2.0**20))((np.full(2, 2.0**15, np.float16),))
    assert one.data.tolist() == [-(2.0**-5)] * 2


def test_lars_clips_at_a_rate_of_zero():
    one = Parameter(np.ones(2), name="weight")
    optimizer = nn.LARS(nn.SGD([one], [0.0, 0.5], loss_scale=2.0), coefficient=0.125, use_clip=True)
    optimizer((np.ones(2),))
    assert one.data.tolist() == [1, 1]
    assert one.grad.tolist() == [0.5, 0.5]


def test_lars_takes_over_groups_that_are_added_and_what_is_loaded():
    ours, theirs = net(), net()
    first = nn.LARS(nn.Momentum(ours[:1], 0.1, 0.9, weight_decay=0.5, loss_scale=2.0), coefficient=0.5)
    first.add_param_group({"params": ours[1:], "weight_decay": 0.25})
    groups = [{"params": theirs[:1], "weight_decay": 0.5}, {"params": theirs[1:], "weight_decay": 0.25}]
    inner = nn.Momentum(groups, 0.1, 0.9, loss_scale=2.0)
    bare = inner.state_dict()
    second = nn.LARS(inner, coefficient=0.5)
    second.load_state_dict(bare)
    assert [(group["weight_decay"], group.rule.loss_scale) for group in inner.param_groups] == [(0.0, 1.0)] * 2
    for optimizer in (first, second):
        optimizer(gradients_of(ours))
    assert all(map(np.array_equal, values_of(ours), values_of(theirs)))


def test_copies_of_lars_go_on_as_the_original():
    parameters = net()
    optimizer = nn.LARS(nn.Momentum(parameters, 0.1, 0.9, weight_decay=0.5), coefficient=0.5)
    assert isinstance(optimizer, nn.Optimizer)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        original = copy.deepcopy(optimizer)
        copied(gradients_of(parameters))
        original(gradients_of(parameters))
        first, second = (values_of(each.parameters_in_order) for each in (copied, original))
        assert all(map(np.array_equal, first, second))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        optimizer.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda p: nn.LARS(p), TypeError),
        (lambda p: nn.LARS(nn.LazyAdam(p)), TypeError),
        (lambda p: nn.LARS(nn.SGD(p), epsilon=1), TypeError),
        (lambda p: nn.LARS(nn.SGD(p), coefficient=-1.0), ValueError),
        (lambda p: nn.LARS(nn.SGD(p), use_clip=1), TypeError),
    ],
)
def test_what_lars_refuses(make, error):
    with pytest.raises(error, match="LARS"):
        make(net())


# --- operations


def test_apply_momentum():
    p, accum, g = np.array([1.0, 2.0]), np.array([0.5, -0.5]), np.array([0.25, 0.5])
    for nesterov, expected in ((False, 0.1 * (0.9 * accum + g)), (True, 0.1 * g + 0.1 * 0.9 * (0.9 * accum + g))):
        variable, buffer = p.copy(), accum.copy()
        assert (
            ops.ApplyMomentum(use_nesterov=nesterov, gradient_scale=2.0)(variable, buffer, 0.1, 2 * g, 0.9) is variable
        )
        np.testing.assert_allclose(variable, p - expected, rtol=1e-15)
        np.testing.assert_allclose(buffer, 0.9 * accum + g, rtol=1e-15)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("centered", [False, True])
def test_apply_rmsprop_and_its_centered_form_with_its_own_order(centered, momentum):
    random = np.random.default_rng(2)
    p, g, m = random.standard_normal((3, 5))
    a, lr, decay, eps = np.full(5, 0.1), 0.1, 0.9, 1e-3
    s = np.full(5, 2.0)
    new_s, new_a = decay * s + (1 - decay) * g * g, decay * a + (1 - decay) * g
    new_m = momentum * m + lr * g / np.sqrt(new_s - (new_a * new_a if centered else 0) + eps)
    var, mean, square, moment = Parameter(p.copy()), Parameter(a.copy()), s.copy(), m.copy()
    if centered:
        ops.ApplyCenteredRMSProp()(var, mean, square, moment, g, lr, decay, momentum, eps)
        np.testing.assert_allclose(mean.data, new_a, rtol=1e-14)
    else:
        ops.ApplyRMSProp()(var, square, moment, lr, g, decay, momentum, eps)
    np.testing.assert_allclose(var.data, p - new_m, rtol=1e-13)
    np.testing.assert_allclose(moment, new_m, rtol=1e-13)
    np.testing.assert_allclose(square, new_s, rtol=1e-14)


@pytest.mark.parametrize("centered", [False, True])
def test_refused_arguments_of_apply_rmsprop_change_no_moment(centered):
    p, s, m, a, g = np.ones((5, 3))
    arrays = (p, a, s, m, g[:2], 0.1) if centered else (p, s, m, 0.1, g[:2])
    apply = ops.ApplyCenteredRMSProp() if centered else ops.ApplyRMSProp()
    with pytest.raises(ValueError):
        apply(*arrays, 0.9, 0.0, 1e-3)
    assert m.tolist() == [1, 1, 1]


# --- an optimizer of one's own


class Momentum(nn.Optimizer):
    """The guide's example of an optimizer of one's own."""

    def __init__(self, params, learning_rate, momentum=0.9):
        super().__init__(learning_rate, params)
        self.momentum = Parameter(np.array(momentum, np.float64), name="momentum")
        self.moments = self.parameters.clone(prefix="moments", init="zeros")

    def construct(self, gradients):
        lr = self.get_lr()
        params = self.parameters
        for i in range(len(params)):
            ops.assign(self.moments[i], self.moments[i] * self.momentum + gradients[i])
            update = params[i] - self.moments[i] * lr
            ops.assign(params[i], update)
        return params


class MomentumOpt(nn.Optimizer):
    """The same by the operation, as the guide has it."""

    def __init__(self, params, learning_rate, momentum, weight_decay=0.0, loss_scale=1.0, use_nesterov=False):
        super().__init__(learning_rate, params, weight_decay, loss_scale)
        self.momentum = Parameter(np.array(momentum, np.float64), name="momentum")
        self.moments = self.parameters.clone(prefix="moments", init="zeros")
        self.opt = ops.ApplyMomentum(use_nesterov=use_nesterov)

    def construct(self, gradients):
        params = self.parameters
        lr = self.get_lr()
        gradients = self.decay_weight(gradients)
        gradients = self.gradients_centralization(gradients)
        gradients = self.scale_grad(gradients)
        success = None
        for param, mom, grad in zip(params, self.moments, gradients):
            success = self.opt(param, mom, lr, grad, self.momentum)
        return success


@pytest.mark.parametrize("make", [Momentum, MomentumOpt])
@pytest.mark.parametrize("plain", [True, False])
def test_the_guides_own_optimizers_go_as_the_kernel_does(make, plain):
    ours, theirs = net(), net()
    written = make([fusedopt.Parameter(p.data, p.name) for p in theirs] if plain else theirs, nn.WarmUpLR(0.1, 3), 0.9)
    fused = nn.Momentum(ours, nn.WarmUpLR(0.1, 3), 0.9)
    for seed in range(4):
        gradients = gradients_of(ours, seed)
        written(gradients)
        fused(gradients)
    for own, other in zip(ours, theirs):
        np.testing.assert_allclose(own.data, other.data, rtol=1e-13)
    assert written.global_step == 4


def test_decay_scale_and_centralization_of_ones_own_optimizer_are_the_kernels():
    ours, theirs = net(), net()
    written = MomentumOpt(theirs, 0.1, 0.9, weight_decay=0.5, loss_scale=8.0)
    fused = nn.Momentum(ours, 0.1, 0.9, weight_decay=0.5, loss_scale=8.0)
    for seed in range(2):
        for optimizer in (written, fused):
            optimizer(gradients_of(ours, seed))
    for own, other in zip(ours, theirs):
        np.testing.assert_allclose(own.data, other.data, rtol=1e-13)
    grouped = MomentumOpt([{"params": [p := Parameter(np.ones((2, 3)))], "grad_centralization": True}], 0.1, 0.9)
    grouped((np.arange(6.0).reshape(2, 3),))
    np.testing.assert_allclose(p.data, 1 - 0.1 * np.array([[-1, 0, 1], [-1, 0, 1]]))


def test_ones_own_optimizer_sees_the_decay_of_this_step():
    class Seen(nn.Optimizer):
        def construct(self, gradients):
            self.get_lr()  # which in MindSpore counts the step already
            return self.get_weight_decay()

    optimizer = Seen(0.1, [Parameter(np.zeros(2), name="w")], weight_decay=lambda step: 0.5**step)
    assert [optimizer((np.ones(2),)) for _ in range(2)] == [(1.0,), (0.5,)]


def test_ones_own_optimizer_takes_steps_and_is_resumed():
    parameters = net()
    optimizer = Momentum(parameters, 0.1)
    with pytest.raises(ValueError, match=r"'conv1.weight' .* has no gradient"):
        optimizer.step()
    for parameter, gradient in zip(parameters, gradients_of(parameters)):
        parameter.grad = gradient
    optimizer.step()
    optimizer.clear_grad()
    assert parameters[0].grad is None
    saved = optimizer.state_dict()
    assert saved["global_step"] == 1
    assert list(saved) == ["global_step", "momentum", *(f"moments.{name}" for name in NAMES)]
    resumed = Momentum(net(), 0.1)
    resumed.load_state_dict(saved)
    assert np.array_equal(resumed.moments[3].data, optimizer.moments[3].data)
    assert resumed.global_step == 1
    with pytest.raises(KeyError, match="needed are global_step, momentum"):
        resumed.load_state_dict({"global_step": 1})
    with pytest.raises(ValueError, match=r"moments\.fc\.bias has shape"):
        resumed.load_state_dict({**saved, "moments.fc.bias": np.zeros(3)})


def test_states_of_one_name_or_none_are_told_apart():
    class Kept(nn.Optimizer):
        def __init__(self, params):
            super().__init__(0.1, params)
            self.own = self.parameters  # not its own
            self.moments = list(self.parameters.clone("m", "zeros"))
            self.again = tuple(self.moments)
            self.by_name = {"count": Parameter(np.zeros(()), name="global_step")}

        def construct(self, gradients):
            for moment, gradient in zip(self.moments, gradients):
                ops.assign(moment, gradient)

    optimizer = Kept([Parameter(np.zeros(2)) for _ in range(3)])
    optimizer(tuple(np.full(2, i + 1.0) for i in range(3)))
    saved = optimizer.state_dict()
    assert list(saved) == ["global_step", "m.None", "m.None.1", "m.None.2", "global_step.1"]
    resumed = Kept([Parameter(np.zeros(2)) for _ in range(3)])
    resumed.load_state_dict(saved)
    assert [moment.data.tolist() for moment in resumed.moments] == [[1, 1], [2, 2], [3, 3]]
    assert resumed.global_step == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"global_step": "two"}, TypeError, "global_step must be a whole number from 0"),
        ({"global_step": 0.5}, ValueError, "global_step must be a whole number from 0"),
        ({"moments.fc.bias": np.zeros(3)}, ValueError, r"moments\.fc\.bias has shape"),
        ({"moments.fc.bias": ["a", "b"]}, TypeError, r"moments\.fc\.bias must be an array of float64"),
    ],
)
def test_a_wrong_state_of_ones_own_optimizer_changes_nothing(change, error, message):
    optimizer = Momentum(net(), 0.1)
    before = optimizer.state_dict()
    ones = {name: np.ones_like(value) for name, value in before.items() if name != "global_step"}
    with pytest.raises(error, match=message):
        optimizer.load_state_dict({"global_step": 7, **ones, **change})
    after = optimizer.state_dict()
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def test_copies_of_ones_own_optimizer_train_their_model():
    optimizer = Momentum([fusedopt.Parameter(p.data, p.name) for p in net()], 0.1)
    optimizer.first = optimizer.parameters[0]
    gradients = gradients_of(net())
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        model = copied._given
        copied(gradients)
        assert all(own.data is given.data for own, given in zip(copied.parameters, model))
        assert copied.first is copied.parameters[0]
        assert not np.array_equal(model[0].data, net()[0].data)
        with pytest.raises(ValueError, match="another optimizer"):
            nn.SGD(model)


def test_half_gradients_of_ones_own_optimizer_survive_large_scales():
    one = Parameter(np.full(2, 0.25, np.float16))
    optimizer = MomentumOpt([one], 0.1, 0.9, weight_decay=1.0, loss_scale=2.0**17)
    (decayed,) = optimizer.decay_weight((np.zeros(2, np.float16),))
    assert decayed.tolist() == [2.0**15] * 2
    (scaled,) = optimizer.scale_grad((decayed,))
    assert scaled.tolist() == [0.25] * 2
    assert scaled.dtype == np.float16


@pytest.mark.parametrize("make", [nn.SGD, lambda p: Momentum(p, 0.1)])
def test_the_learning_rate_of_no_parameters(make):
    assert make([{"params": []}]).get_lr() == 0.1


def test_ones_own_optimizer_refuses_what_does_not_fit():
    parameters = net()
    optimizer = Momentum(parameters, 0.1)
    with pytest.raises(ValueError, match="was called with 2 gradients"):
        optimizer(gradients_of(parameters)[:2])
    with pytest.raises(ValueError, match="reshape it"):
        optimizer(tuple(np.ones(7) for _ in parameters))
    with pytest.raises(ValueError, match="another optimizer"):
        Momentum(parameters, 0.1)
    with pytest.raises(ValueError, match="another optimizer"):
        nn.Momentum(parameters, 0.1, 0.9)
    assert optimizer.global_step == 0


def test_parameters_compute_like_their_arrays_and_are_cloned():
    two = Parameter(np.array([2.0, 4.0], np.float32), name="two")
    array = np.array([1.0, 3.0], np.float32)
    for value in (two + array, array + two, two + two - two.data + array):
        assert value.tolist() == [3, 7]
        assert value.dtype == np.float32
    assert (array / two).tolist() == [0.5, 0.75]
    assert (1 - two).tolist() == [-1, -3]
    assert (-two).tolist() == [-2, -4]
    assert (two**2).tolist() == [4, 16]
    assert two[1] == 4
    (same,) = nn.ParameterTuple([two]).clone("copy")
    assert same.name == "copy.two"
    assert same.data.tolist() == [2, 4]
    assert same.data is not two.data
    assert nn.ParameterTuple([two]).clone("ones", init="ones")[0].data.tolist() == [1, 1]
    assert nn.ParameterTuple([two]).clone("some", init=0.5)[0].data.tolist() == [0.5, 0.5]
