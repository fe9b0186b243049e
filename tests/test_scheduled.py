"""Param groups that follow schedules: each step's number, what ends one, resuming, skipped steps, and errors."""

import contextlib
import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest

from cases import assert_same_bits, ordinary
from fusedopt import SGD, Adam, AdamW, Parameter
from fusedopt.schedules import (
    Cosine,
    Exponential,
    Lambda,
    LinearWarmup,
    OneCycle,
    ReduceLROnPlateau,
    Step,
    Table,
    mindspore,
)
from test_state_dict import bits, contents

COSINE = Cosine(0.1, 8)


def halves(step):
    return 0.5 ** (step + 1)


def poisoned(value, at=2):
    return lambda step: value if step == at else 0.5


def parameters(device, count=2):
    return [Parameter(device.array(ordinary(5, "float32", seed))) for seed in range(count)]


def give(device, optimizer, seed):
    for number, parameter in enumerate(optimizer.parameters()):
        parameter.grad = device.array(ordinary(parameter.size, "float32", 100 * seed + number))


def train(device, optimizer, steps, first=0):
    for seed in range(first, first + steps):
        give(device, optimizer, seed)
        optimizer.step()
    return optimizer


def assert_same(device, one, other):
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert_same_bits(device.host(p.data), device.host(q.data))


# What a number may follow, with its value at each step.
KINDS = {
    "schedule": COSINE,
    "function": halves,
    "list": [halves(step) for step in range(9)],
    "array": np.array([halves(step) for step in range(9)], np.float32),
    "whole numbers": lambda step: step % 2,
    "a number of numpy's": lambda step: np.float32(halves(step)),
    "MindSpore's list": mindspore.exponential_decay_lr(0.1, 0.9, 9, 2, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_uses_its_number(device, kind):
    schedule = KINDS[kind]
    value = schedule if callable(schedule) else schedule.__getitem__
    scheduled, by_hand = AdamW(parameters(device), lr=schedule), AdamW(parameters(device))
    assert scheduled.param_groups[0]["lr"] == value(0)
    for step in range(9):
        by_hand.param_groups[0]["lr"] = float(value(step))
        train(device, scheduled, 1, step)
        train(device, by_hand, 1, step)
        assert scheduled.param_groups[0]["lr"] == value(step), "the number that the step has used"
        assert type(scheduled.param_groups[0]["lr"]) is float
    assert_same(device, scheduled, by_hand)


def test_groups_follow_schedules_of_their_own_and_any_number_may():
    device = CPU
    one, other = parameters(device)
    optimizer = SGD(
        [{"params": one}, {"params": other, "lr": halves, "clip_value": Step(1, 2)}],
        lr=COSINE,
        momentum=OneCycle(0.85, 6, 0.95, 0.95),
        weight_decay=mindspore.ExponentialDecayLR(1e-4, 0.1, 10000),
    )
    by_hand = SGD([{"params": p} for p in parameters(device)], lr=0.1)
    for step in range(6):
        momentum, decay = OneCycle(0.85, 6, 0.95, 0.95)(step), 1e-4 * 0.1 ** (step / 10000)
        for group, lr, clip in zip(by_hand.param_groups, (COSINE, halves), (0.0, Step(1, 2)(step)), strict=True):
            group.update(lr=lr(step), momentum=momentum, weight_decay=decay, clip_value=clip)
        train(device, optimizer, 1, step)
        train(device, by_hand, 1, step)
    assert_same(device, optimizer, by_hand)
    assert set(optimizer.param_groups[0].schedules) == {"lr", "momentum", "weight_decay"}
    assert optimizer.param_groups[1].schedules["lr"] is halves


def test_a_switch_that_a_schedule_turns_on_and_off_is_another_variant(device):
    schedule = [0.0, 0.9, 0.9, 0.0, 0.5]
    scheduled, by_hand = SGD(parameters(device), momentum=schedule), SGD(parameters(device))
    for step, momentum in enumerate(schedule):
        by_hand.param_groups[0]["momentum"] = momentum
        train(device, scheduled, 1, step)
        train(device, by_hand, 1, step)
    assert_same(device, scheduled, by_hand)


class CPU:
    """The CPU, for what no device matters to."""

    array, host = np.array, np.asarray


# --- what installs one, and what ends it


def test_a_schedule_is_installed_and_ended_by_assignment():
    optimizer = train(CPU, Adam(parameters(CPU), lr=0.25), 3)
    (group,) = optimizer.param_groups
    assert "schedule_step" not in group
    assert dict(group.schedules) == {}
    group["lr"] = halves
    assert (group["lr"], group["schedule_step"]) == (halves(3), 3), "steps before it count"
    train(CPU, optimizer, 1)
    assert (group["lr"], group["schedule_step"]) == (halves(3), 4)
    group.update(weight_decay=COSINE, eps=1e-6)
    assert dict(group.schedules) == {"lr": halves, "weight_decay": COSINE}
    group["lr"] = 0.5
    train(CPU, optimizer, 1)
    assert group["lr"] == 0.5
    assert dict(group.schedules) == {"weight_decay": COSINE}
    group["weight_decay"] = 0.0
    assert "schedule_step" not in group
    with pytest.raises(TypeError):
        group.schedules["lr"] = halves


def test_the_step_of_a_group_may_be_set():
    optimizer = Adam(parameters(CPU), lr=halves)
    (group,) = optimizer.param_groups
    group["schedule_step"] = 5
    train(CPU, optimizer, 1)
    assert (group["lr"], group["schedule_step"]) == (halves(5), 6)
    for wrong in (-1, 0.5, "3", None, True):
        with pytest.raises((TypeError, ValueError), match="schedule_step must be a whole number from 0"):
            group["schedule_step"] = wrong
    with pytest.raises(KeyError, match="schedule_step"):
        Adam(parameters(CPU)).param_groups[0]["schedule_step"] = 5


def test_a_group_that_is_added_starts_at_0_and_follows_the_default():
    optimizer = train(CPU, Adam(parameters(CPU), lr=halves), 3)
    optimizer.add_param_group({"params": parameters(CPU, 1)})
    train(CPU, optimizer, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [halves(3), halves(0)]
    assert optimizer.defaults["lr"] is halves


def test_by_position_is_as_by_name():
    one, other = Adam(parameters(CPU), halves), Adam(parameters(CPU), lr=halves)
    assert one.param_groups[0]["lr"] == other.param_groups[0]["lr"] == 0.5
    assert one.param_groups[0].schedules["lr"] is halves


# --- resuming


def saved_and_loaded(optimizer, **options):
    fresh = type(optimizer)(parameters(CPU), **options)
    for p, q in zip(fresh.parameters(), optimizer.parameters(), strict=True):
        p.data[...] = q.data
    fresh.load_state_dict(optimizer.state_dict())
    return fresh


@pytest.mark.parametrize("kind", [SGD, Adam])
@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
        lambda optimizer: saved_and_loaded(optimizer, lr=halves),
    ],
    ids=["deepcopy", "pickle", "state dict"],
)
def test_a_resumed_run_is_the_same_run(kind, copied):
    optimizer = train(CPU, kind(parameters(CPU), lr=halves), 3)
    resumed = copied(optimizer)
    assert dict(resumed.param_groups[0].schedules) == {"lr": halves}
    assert bits(resumed.state_dict()) == bits(optimizer.state_dict())
    for some in (optimizer, resumed):
        train(CPU, some, 3, 3)
    assert_same(CPU, optimizer, resumed)
    assert resumed.param_groups[0]["lr"] == halves(5)


def test_the_number_that_was_saved_is_not_taken_where_a_schedule_is():
    optimizer = train(CPU, Adam(parameters(CPU), lr=halves), 3)
    other = saved_and_loaded(optimizer, lr=COSINE)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["schedule_step"]) == (COSINE(2), 3)
    said = (
        r"param group 0 of the state dict was saved with a schedule \(schedule_step 3\), .*: lr stays 0.125; build it"
    )
    with pytest.warns(UserWarning, match=said) as seen:
        number = saved_and_loaded(optimizer, lr=0.75)
    assert [record.filename for record in seen] == [__file__]
    assert number.param_groups[0]["lr"] == halves(2)
    assert "schedule_step" not in number.state_dict()["param_groups"][0]
    number.param_groups[0]["lr"] = halves
    assert number.param_groups[0]["schedule_step"] == 3


def test_a_copy_follows_what_the_group_follows_and_not_the_default():
    optimizer = train(CPU, SGD(parameters(CPU), lr=halves), 2)
    optimizer.param_groups[0]["lr"] = 0.75
    for resumed in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        train(CPU, resumed, 1)
        assert resumed.param_groups[0]["lr"] == 0.75
        resumed.param_groups[0]["lr"] = halves
        assert resumed.param_groups[0]["schedule_step"] == 3


def test_a_state_dict_need_not_have_what_a_schedule_says():
    optimizer = train(CPU, Adam(parameters(CPU), lr=halves), 3)
    state_dict = optimizer.state_dict()
    del state_dict["param_groups"][0]["lr"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["lr"] == halves(2)


def test_without_a_saved_step_the_parameters_say_it_or_a_warning():
    plain = train(CPU, Adam(parameters(CPU)), 3)
    resumed = saved_and_loaded(plain, lr=halves)
    assert (resumed.param_groups[0]["lr"], resumed.param_groups[0]["schedule_step"]) == (halves(2), 3)
    plain = train(CPU, SGD(parameters(CPU), momentum=0.9), 3)
    with pytest.warns(
        UserWarning, match="lacks 'schedule_step': SGD counts no steps, .* from step 0; set group"
    ) as seen:
        resumed = saved_and_loaded(plain, lr=halves)
    assert [record.filename for record in seen] == [__file__]
    assert resumed.param_groups[0]["schedule_step"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved_and_loaded(plain)


def test_steps_that_another_library_has_taken_are_told():
    """torch keeps the key of a dict that it loads, and writes it back as it was."""
    optimizer = train(CPU, Adam(parameters(CPU), lr=halves), 3)
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0]["schedule_step"] = 1
    with pytest.warns(UserWarning, match="has schedule_step 1, and its parameters have had 3 steps") as seen:
        optimizer.load_state_dict(state_dict)
    assert [record.filename for record in seen] == [__file__]
    assert optimizer.param_groups[0]["schedule_step"] == 1


def test_groups_without_schedules_are_printed_and_saved_as_before():
    optimizer = train(CPU, SGD(parameters(CPU), lr=0.1), 2)
    assert "schedule" not in repr(optimizer) + repr(optimizer.state_dict())
    assert list(SGD(parameters(CPU), lr=halves).state_dict()["param_groups"][0])[-2:] == ["schedule_step", "params"]


# --- skipped steps


def test_skipped_steps_count_until_sync(device):
    optimizer = train(device, Adam(parameters(device), lr=halves), 2)
    give(device, optimizer, 2)
    for _ in range(3):
        optimizer.step(found_inf=1.0)
    group = optimizer.param_groups[0]
    assert (group["schedule_step"], group["lr"]) == (5, halves(4))
    assert optimizer.sync() is optimizer
    assert group["schedule_step"] == 2
    optimizer.step()
    assert group["lr"] == halves(2)


def test_sync_warns_where_nobody_counts():
    optimizer = train(CPU, SGD(parameters(CPU), lr=halves, momentum=0.9), 2)
    with pytest.warns(UserWarning, match="param group 0: SGD counts no steps, .* go on from step 2") as seen:
        optimizer.sync()
    assert [record.filename for record in seen] == [__file__]
    assert optimizer.param_groups[0]["schedule_step"] == 2
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.sync()


def test_a_step_without_gradients_counts():
    optimizer = Adam(parameters(CPU), lr=halves)
    optimizer.step().step()
    assert optimizer.param_groups[0]["schedule_step"] == 2


# --- errors


@contextlib.contextmanager
def nothing_changed(optimizer):
    before = contents(optimizer)
    yield
    assert contents(optimizer) == before


WRONG = {
    "nan": (np.nan, ValueError, r"Adam: lr must be in \[0, inf\), got nan"),
    "negative": (-0.5, ValueError, r"Adam: lr must be in \[0, inf\), got -0.5"),
    "None": (None, TypeError, r"Adam: lr must be a number, got None"),
    "a truth value": (True, TypeError, r"Adam: lr must be a number, got True"),
    "an array": (np.ones(2), TypeError, r"Adam: lr must be a number, got array"),
    "a text": ("0.1", TypeError, r"Adam: lr must be a number, got '0.1'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_number_of_a_schedule_changes_nothing(device, name):
    value, error, message = WRONG[name]
    one, other = parameters(device)
    optimizer = Adam([{"params": one, "lr": halves}, {"params": other, "lr": poisoned(value)}])
    train(device, optimizer, 2)
    with (
        nothing_changed(optimizer),
        pytest.raises(error, match=rf"param group 1: {message}.* At step 2, where lr follows poisoned"),
    ):
        optimizer.step()
    optimizer.param_groups[1]["schedule_step"] = 3
    train(device, optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == halves(2)


def test_a_sequence_that_ends_says_at_which_step():
    optimizer = train(CPU, Adam(parameters(CPU), lr=[0.3, 0.2, 0.1]), 3)
    with (
        nothing_changed(optimizer),
        pytest.raises(
            ValueError, match="param group 0: Adam: lr at step 3: the sequence has 3 values, for steps 0 to 2"
        ),
    ):
        optimizer.step()
    with (
        nothing_changed(optimizer),
        pytest.raises(ValueError, match="weight_decay at step 3: the sequence has 2"),
    ):
        optimizer.param_groups[0]["weight_decay"] = [0.1, 0.2]


def test_a_function_that_raises_changes_nothing():
    optimizer = train(CPU, Adam(parameters(CPU), lr={0: 0.5, 1: 0.5}.__getitem__), 2)
    with nothing_changed(optimizer), pytest.raises(KeyError):
        optimizer.step()


BAD = {
    "first value": ({"lr": poisoned(-1.0, 0)}, ValueError, r"lr must be in \[0, inf\), got -1.0. At step 0"),
    "empty": ({"lr": []}, ValueError, "Adam: lr as a sequence .* values must be one for each step, got none"),
    "texts": (
        {"lr": ["a"]},
        TypeError,
        r"Adam: lr as a sequence with a value for each step: Table: values\[0\] must be",
    ),
    "two dimensions": ({"lr": np.ones((2, 2))}, TypeError, "Adam: lr must be a number"),
    "a class": (
        {"lr": Cosine},
        TypeError,
        r"Adam: lr must be a number, a schedule \(an instance.*got the class Cosine",
    ),
    "a flag": ({"amsgrad": halves}, TypeError, "Adam: amsgrad is a flag"),
    "a tuple": ({"betas": halves}, ValueError, "Adam: betas must be 2 numbers .*; tuples follow no"),
    "in a tuple": ({"betas": (0.9, halves)}, ValueError, "Adam: betas must be 2 numbers .*; tuples follow no schedule"),
    "a combination": ({"amsgrad": [True]}, TypeError, "Adam: amsgrad is a flag"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_followed_is_refused_wherever_it_is_given(name):
    options, error, message = BAD[name]
    one, other = parameters(CPU)
    with pytest.raises(error, match=message):
        Adam([one], **options)
    with pytest.raises(error, match=f"param group 1: .*{message}"):
        Adam([{"params": one}, {"params": other, **options}])
    assert one.owner is other.owner is None
    optimizer = Adam([one])
    with nothing_changed(optimizer), pytest.raises(error, match=message):
        optimizer.param_groups[0].update(options, eps=0.5)
    with nothing_changed(optimizer), pytest.raises(error, match=message):
        optimizer.add_param_group({"params": other, **options})


def test_sequences_of_groups_must_be_of_one_length():
    one, other = parameters(CPU)
    message = "must be of one length; lr of param group 0 has 2, lr of param group 1 has 3"
    with pytest.raises(ValueError, match=message):
        Adam([{"params": one}, {"params": other, "lr": [0.1] * 3}], lr=[0.1] * 2)
    assert one.owner is None
    optimizer = Adam([one], lr=[0.1] * 2)
    with nothing_changed(optimizer), pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": other, "lr": [0.1] * 3})


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"schedule_step": -1}, "param group 0 of the state dict: schedule_step must be a whole number from 0, got -1"),
        ({"schedule_step": 9}, "param group 0: Adam: lr at step 8: the sequence has 3 values"),
    ],
)
def test_a_wrong_step_in_a_state_dict_changes_nothing(saved, message):
    optimizer = train(CPU, Adam(parameters(CPU), lr=[0.3, 0.2, 0.1]), 2)
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0].update(saved)
    with nothing_changed(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state_dict)


# --- what it costs


def uploads(monkeypatch, optimizer):
    found = []
    (backend,) = optimizer._backends.values()
    upload = backend.uploads.upload
    monkeypatch.setattr(backend.uploads, "upload", lambda *args: (found.append(args[1].nbytes), upload(*args)))
    return found


@pytest.mark.parametrize("device", ["emulated"], indirect=True)
def test_a_number_that_stays_is_not_sent_again(device, monkeypatch):
    optimizer = train(device, Adam(parameters(device), lr=Step(0.5, 3), weight_decay=lambda step: 1), 1)
    found = uploads(monkeypatch, optimizer)
    counts = []
    for _ in range(6):
        optimizer.step()
        counts.append(len(found))
    assert counts == [0, 0, 1, 1, 1, 2], "at steps 3 and 6"


# --- the plateau


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 1},
        {"patience": 0, "mode": "max", "threshold": 0.3},
        {"patience": 0, "threshold_mode": "abs", "threshold": 0.2, "cooldown": 2},
        {"patience": 0, "mode": "max", "threshold_mode": "abs", "factor": 0.5, "min_lr": [0.03, 0.0]},
        {"patience": 0, "eps": 0.2},
    ],
    ids=str,
)
def test_reduce_on_plateau_is_torchs(options):
    import torch

    optimizer = Adam([{"params": p, "lr": lr} for p, lr in zip(parameters(CPU), (0.1, 0.4), strict=True)])
    theirs = torch.optim.Adam([{"params": torch.zeros(1), "lr": lr} for lr in (0.1, 0.4)])
    scheduler = ReduceLROnPlateau(optimizer, **options)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    metrics = [3, 2, 2, 2.1, 1.95, 1.5, 1.5, float("nan"), 1.4, 1.0, 1.0, 2, 1, 3, 0.5, 0.5]
    for number, metric in enumerate(metrics):
        scheduler.step(np.float64(metric))
        reference.step(metric)
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([group["lr"] for group in theirs.param_groups], rel=1e-15)
        saved, expected = scheduler.state_dict(), reference.state_dict()
        assert saved == {name: expected[name] for name in saved}
        if number == 7:
            scheduler = ReduceLROnPlateau(optimizer)
            scheduler.load_state_dict(expected if options["patience"] else saved)


def test_reduce_on_plateau_does_not_undo_a_schedule():
    optimizer = Adam(parameters(CPU), lr=halves)
    message = "the lr of param group 0 follows a schedule, which it would undo; assign"
    with pytest.raises(ValueError, match=message):
        ReduceLROnPlateau(optimizer)
    optimizer.param_groups[0]["lr"] = 0.5
    scheduler = ReduceLROnPlateau(optimizer)
    optimizer.param_groups[0]["lr"] = halves
    with pytest.raises(ValueError, match=message):
        scheduler.step(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, r"factor must be in \[0, 1\), got 1.0"),
        ({"mode": "least"}, "mode must be 'min' or 'max', got 'least'"),
        ({"threshold_mode": "share"}, "threshold_mode must be 'rel' or 'abs', got 'share'"),
        ({"patience": -1}, r"patience must be in \[0, inf\), got -1"),
        ({"min_lr": [0.1, 0.1]}, "1 param groups need as many min_lr, got 2"),
    ],
)
def test_reduce_on_plateau_refuses_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ReduceLROnPlateau(Adam(parameters(CPU)), **options)


def test_a_warm_up_and_then_a_cosine():
    schedule = LinearWarmup(0.1, 3).then(COSINE, at=3)
    optimizer, found = Adam(parameters(CPU), lr=schedule), []
    for step in range(6):
        train(CPU, optimizer, 1, step)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [schedule(step) for step in range(6)]
    assert all(a <= b for a, b in itertools.pairwise(found[:4]))
    assert Table(found)(3) == Exponential(0.1, 1)(0) == Lambda(lambda step: 0.1)(0)
