"""What a gradient of zeros does to parameters and states, rule by rule: it is a step, and not the lack of one."""

import numpy as np
import pytest

import fusedopt
from cases import Plain, ordinary
from fusedopt import rules

START, G = ordinary(100, "float64", 1), ordinary(100, "float64", 2)
LR, B1, B2, EPS = 0.01, 0.8, 0.95, 1e-3
ADAM = {"lr": LR, "betas": (B1, B2), "eps": EPS}
M, V = B1 * (1 - B1) * G, B2 * (1 - B2) * G**2  # Adam's moments after a gradient and zeros
ADAMS_MOVE = -LR * M / (1 - B1**2) / (np.sqrt(V / (1 - B2**2)) + EPS)
ADAMAX_NORM = np.maximum(B2 * (np.abs(G) + EPS), EPS)
AVERAGE = 0.9 * 0.1 * G**2  # of squares, where each counts 0.1
CHANGE = G * np.sqrt(EPS / (0.1 * G**2 + EPS))  # Adadelta's first

# After one gradient G, what a second one of zeros moves the parameter by, and the states that it leaves.
AFTER_ANOTHER = {
    "SGD": (rules.SGD(lr=LR), 0, {}),
    "SGD with momentum": (rules.SGD(lr=LR, momentum=0.9), -LR * 0.9 * G, {"momentum_buffer": 0.9 * G}),
    "SGD with dampening": (rules.SGD(lr=LR, momentum=0.9, dampening=0.5), -LR * 0.9 * G, {"momentum_buffer": 0.9 * G}),
    "SGD, Nesterov's": (rules.SGD(lr=LR, momentum=0.9, nesterov=True), -LR * 0.81 * G, {"momentum_buffer": 0.9 * G}),
    "Momentum": (rules.Momentum(lr=LR, momentum=0.9), -LR * 0.9 * G, {"moments": 0.9 * G}),
    "Adam": (rules.Adam(**ADAM), ADAMS_MOVE, {"exp_avg": M, "exp_avg_sq": V}),
    "AMSGrad": (
        rules.Adam(**ADAM, amsgrad=True),
        -LR * M / (1 - B1**2) / (np.sqrt((1 - B2) * G**2 / (1 - B2**2)) + EPS),
        {"exp_avg_sq": V, "max_exp_avg_sq": (1 - B2) * G**2},
    ),
    "Adagrad": (rules.Adagrad(lr=LR), 0, {"sum": G**2}),
    "Adadelta": (
        rules.Adadelta(lr=LR, rho=0.9, eps=EPS),
        0,
        {"square_avg": AVERAGE, "acc_delta": 0.9 * 0.1 * CHANGE**2},
    ),
    "Adamax": (rules.Adamax(**ADAM), -LR / (1 - B1**2) * M / ADAMAX_NORM, {"exp_avg": M, "exp_inf": ADAMAX_NORM}),
    "RAdam": (rules.RAdam(**ADAM), -LR * M / (1 - B1**2), {"exp_avg": M, "exp_avg_sq": V}),
    "RMSprop": (rules.RMSprop(lr=LR, alpha=0.9), 0, {"square_avg": AVERAGE}),
    "RMSprop with momentum": (
        rules.RMSprop(lr=LR, alpha=0.9, eps=EPS, momentum=0.5),
        -LR * 0.5 * G / (np.sqrt(0.1 * G**2) + EPS),
        {"momentum_buffer": 0.5 * G / (np.sqrt(0.1 * G**2) + EPS)},
    ),
    "Rprop": (rules.Rprop(lr=LR), 0, {"prev": 0 * G, "step_size": np.full(100, LR)}),
    "Lion": (rules.Lion(lr=LR, betas=(0.9, 0.99)), -LR * np.sign(G), {"exp_avg": 0.99 * 0.01 * G}),
}


@pytest.mark.parametrize(("rule", "move", "states"), AFTER_ANOTHER.values(), ids=AFTER_ANOTHER)
def test_zeros_after_a_gradient_move_on_and_age_the_states(rule, move, states):
    plain = Plain(rule, START)
    plain.update(G)
    before = plain.parameter
    plain.update(np.zeros(100))
    np.testing.assert_allclose(plain.parameter - before, np.broadcast_to(move, 100), rtol=1e-9, atol=1e-15)
    for name, expected in states.items():
        np.testing.assert_allclose(plain.states[name], expected, rtol=1e-12, atol=0, err_msg=name)


def test_asgd_decays_by_the_step_size_in_force():
    plain = Plain(rules.ASGD(lr=0.1, lambd=0.5), START)
    plain.update(np.zeros(100))
    eta = 0.1 / (1 + 0.5 * 0.1) ** 0.75
    plain.update(np.zeros(100))
    np.testing.assert_allclose(plain.parameter, START * (1 - 0.5 * 0.1) * (1 - 0.5 * eta), rtol=1e-12)


def test_rprop_neither_grows_nor_shrinks_its_step_after_zeros():
    plain = Plain(rules.Rprop(lr=LR), START)
    for gradient in (G, np.zeros(100), -G):
        before = plain.parameter
        plain.update(gradient)
    np.testing.assert_allclose(plain.parameter - before, LR * np.sign(G), rtol=1e-9)


def test_zeros_alone_are_a_first_gradient_to_sgd():
    """They make a buffer, so the next gradient is dampened; the lack of a gradient makes none."""
    parameters = [fusedopt.Parameter(np.ones(3)) for _ in range(2)]
    optimizer = fusedopt.SGD(parameters, lr=1.0, momentum=0.9, dampening=0.5)
    parameters[0].grad = np.zeros(3)
    optimizer.step()
    assert {i: entry["momentum_buffer"].tolist() for i, entry in optimizer.state_dict()["state"].items()} == {
        0: [0] * 3
    }
    for parameter in parameters:
        parameter.grad = np.ones(3)
    optimizer.step()
    assert [parameter.data.tolist() for parameter in parameters] == [[0.5] * 3, [0] * 3]


def test_lion_goes_on_at_full_length_until_its_momentum_has_vanished():
    plain = Plain(rules.Lion(lr=1.0, betas=(0.5, 0.5)), np.zeros(3))
    plain.update(np.array([1.0, -1.0, 0.0]))
    for _ in range(1100):  # at step k its direction is 2**-k; 2**-1074 is the least float64
        plain.update(np.zeros(3))
    np.testing.assert_array_equal(plain.parameter, [-1074, 1074, 0])


def test_muon_goes_on_at_full_length():
    """Its momentum is made orthogonal whatever its size; only a momentum of zeros leaves the matrix still."""
    parameter = fusedopt.Parameter(START.reshape(10, 10).copy())
    optimizer = fusedopt.Muon([parameter], lr=LR, weight_decay=0.0)
    lengths = []
    for gradient in (np.zeros(100), G, np.zeros(100)):
        before = parameter.data.copy()
        parameter.grad = gradient.reshape(10, 10)
        optimizer.step()
        lengths.append(np.linalg.norm(parameter.data - before))
    assert lengths[0] == 0
    assert lengths[2] == pytest.approx(lengths[1], rel=1e-4)
