"""What the two frameworks' pages name is here by its name, and what their pages and sources have wrong is not."""

import numpy as np
import pytest

import fusedopt.megengine as optim
import fusedopt.mindspore as nn

MEGENGINE = ["Optimizer", "SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "LAMB", "LRScheduler", "MultiStepLR"]
MEGENGINE += ["clip_grad_norm", "clip_grad_value"]
MINDSPORE = ["Adadelta", "Adagrad", "AdaFactor", "Adam", "AdaMax", "AdamOffload", "AdamWeightDecay", "ASGD", "FTRL"]
MINDSPORE += ["Lamb", "LARS", "LazyAdam", "Momentum", "ProximalAdagrad", "RMSProp", "Rprop", "SGD", "Optimizer"]
MINDSPORE += ["LearningRateSchedule", "CosineDecayLR", "ExponentialDecayLR", "InverseDecayLR", "NaturalExpDecayLR"]
MINDSPORE += ["PolynomialDecayLR", "WarmUpLR", "cosine_decay_lr", "exponential_decay_lr", "inverse_decay_lr"]
MINDSPORE += ["natural_exp_decay_lr", "piecewise_constant_lr", "polynomial_decay_lr", "warmup_lr", "trainable_params"]


@pytest.mark.parametrize(("module", "names"), [(optim, MEGENGINE), (nn, MINDSPORE)], ids=["MegEngine", "MindSpore"])
def test_names_are_importable_from_one_module(module, names):
    assert [name for name in names if not callable(getattr(module, name, None))] == []


def stepped(groups, gradient, **options):
    """Where two parameters are after two steps."""
    params = [nn.Parameter(np.full(3, value), name=f"fc{value}.weight") for value in (1.0, 2.0)]
    optimizer = nn.SGD([{"params": [p], **own} for p, own in zip(params, groups)] if groups else params, 0.1, **options)
    for _ in range(2):
        optimizer((np.full(3, gradient),) * 2)
    return [p.data.tolist() for p in params]


def test_a_loss_scale_leaves_the_decay_of_groups_as_it_is():
    """MindSpore's SGD multiplies the decay of groups by the loss scale, and not that of a plain list."""
    plain = stepped(None, 0.5, weight_decay=0.25)
    for groups in (None, [{"weight_decay": 0.25}, {"weight_decay": 0.25}], [{"lr": 0.1}, {}]):
        scaled = stepped(groups, 512.0, weight_decay=0.25, loss_scale=1024.0)
        np.testing.assert_allclose(scaled, plain, rtol=1e-15)


def test_a_parameter_that_is_frozen_later_is_left_out_of_the_next_optimizer():
    params = [nn.Parameter(np.ones(2), name=name) for name in ("conv.weight", "fc.weight")]
    assert nn.trainable_params(params) == params
    params[0].requires_grad = False
    optimizer = nn.Momentum(nn.trainable_params(params), 0.1, 0.9)
    optimizer((np.ones(2),))
    assert [p.data.tolist() for p in params] == [[1, 1], [0.9, 0.9]]


def test_megengines_step_returns_the_optimizer_and_clearing_takes_all_gradients():
    params = [optim.Parameter(np.ones(2)) for _ in range(2)]
    optimizer = optim.SGD(params, lr=0.5)
    params[0].grad = np.ones(2)
    assert optimizer.step() is optimizer
    optimizer.clear_grad()
    assert [p.grad for p in params] == [None, None]


def test_norms_of_no_gradients_are_zero():
    assert optim.clip_grad_norm([optim.Parameter(np.ones(2))], max_norm=1.0) == 0
