"""Schedules in fusedopt.torch: groups stay dicts of numbers, state dicts torch's, and torch's own schedulers work."""

import copy
import functools
import io
import pickle
import warnings

import numpy as np
import pytest
import torch

from fusedopt.schedules import Constant, Cosine, ReduceLROnPlateau, Table
from fusedopt.torch import SGD, Adam, AdamW

COSINE = Cosine(0.1, 8)


def halves(step):
    return 0.5 ** (step + 1)


def poisoned(value, at=2):
    return lambda step: value if step == at else 0.5


def parameters(count=2):
    return [torch.nn.Parameter(torch.linspace(-1, 1, 5) + number) for number in range(count)]


def give(optimizer, seed):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.from_numpy(np.random.default_rng(seed).standard_normal(5).astype(np.float32))


def train(optimizer, steps, first=0):
    for seed in range(first, first + steps):
        give(optimizer, seed)
        optimizer.step()
    return optimizer


def values(optimizer):
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def assert_same(one, other):
    assert all(map(torch.equal, values(one), values(other)))


def everything(optimizer):
    buffer = io.BytesIO()
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    torch.save([values(optimizer), optimizer.state_dict(), groups], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "schedule",
    [COSINE, halves, [halves(step) for step in range(9)], np.array([halves(step) for step in range(9)])],
    ids=["schedule", "function", "list", "array"],
)
def test_each_step_uses_its_number(schedule):
    value = schedule if callable(schedule) else schedule.__getitem__
    scheduled, by_hand = AdamW(parameters(), lr=schedule), AdamW(parameters())
    (group,) = scheduled.param_groups
    assert group["lr"] == value(0)
    for step in range(9):
        by_hand.param_groups[0]["lr"] = float(value(step))
        train(scheduled, 1, step)
        train(by_hand, 1, step)
        assert (type(group["lr"]), group["lr"], group["schedule_step"]) == (float, value(step), step + 1)
    assert_same(scheduled, by_hand)


def test_groups_are_dicts_with_torchs_keys():
    one, other = parameters()
    groups = [{"params": one, "lr": COSINE, "weight_decay": halves}, {"params": other}]
    optimizer = train(AdamW(groups, lr=0.25), 2)
    first, second = optimizer.param_groups
    assert set(second) == set(AdamW([other]).param_groups[0])
    assert set(first) - set(second) == {"schedule_step"}
    assert [dict(schedules) for schedules in optimizer.schedules] == [{"lr": COSINE, "weight_decay": halves}, {}]
    assert (first["lr"], first["weight_decay"], second["lr"]) == (COSINE(1), halves(1), 0.25)
    assert groups[0]["lr"] is COSINE, "the caller's dicts are not written to"
    theirs = torch.optim.AdamW([{"params": p} for p in parameters()])
    theirs.load_state_dict(optimizer.state_dict())
    assert theirs.param_groups[0]["lr"] == COSINE(1)


def test_a_schedule_is_installed_and_ended_by_assignment():
    optimizer = train(Adam(parameters(), lr=0.25), 3)
    (group,) = optimizer.param_groups
    assert "schedule_step" not in group
    group["lr"] = halves
    assert dict(optimizer.schedules[0]) == {"lr": halves}
    assert (group["lr"], group["schedule_step"]) == (halves(3), 3)
    group["weight_decay"] = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    train(optimizer, 1)
    assert (group["lr"], group["weight_decay"], group["schedule_step"]) == (halves(3), 0.4, 4)
    group["lr"] = 0.5
    train(optimizer, 1)
    assert group["lr"] == 0.5
    assert set(optimizer.schedules[0]) == {"weight_decay"}
    group["weight_decay"] = 0.0
    train(optimizer, 1)
    assert "schedule_step" not in group
    assert group["lr"] == 0.5


def test_the_same_number_written_by_hand_wins_too():
    optimizer = Adam(parameters(), lr=Constant(0.5))
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.schedules == ({},)


def test_what_is_installed_and_saved_at_once_is_a_number():
    optimizer = Adam(parameters())
    optimizer.param_groups[0]["lr"] = halves
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.5
    optimizer.param_groups[0]["weight_decay"] = halves
    assert set(copy.deepcopy(optimizer).schedules[0]) == {"lr", "weight_decay"}


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 1.0),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, 10),
    ],
    ids=["StepLR", "LambdaLR", "OneCycleLR"],
)
def test_torchs_schedulers_take_over(make):
    optimizer, plain = Adam(parameters(), lr=halves), Adam(parameters(), lr=0.5)
    optimizer.param_groups[0]["lr"] = 0.5  # StepLR writes back the very number that it finds, at first
    for some in (optimizer, plain):
        scheduler = make(some)
        for seed in range(5):
            train(some, 1, seed)
            scheduler.step()
    assert_same(optimizer, plain)
    assert optimizer.schedules == ({},)


def test_what_a_scheduler_of_torchs_writes_wins():
    optimizer = Adam(parameters(), lr=halves)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    assert optimizer.schedules == ({},)
    said = (
        r"param group 0: lr followed halves, and a torch.optim.lr_scheduler .* written 0.5: .* make lr a number first"
    )
    with pytest.warns(UserWarning, match=said) as seen:
        train(optimizer, 2)
    assert (len(seen), optimizer.param_groups[0]["lr"]) == (1, 0.5)


def test_a_scheduler_of_torchs_that_waits_is_noticed_when_it_writes():
    optimizer = Adam(parameters(), lr=halves)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)  # writes back what it finds until its second step
    train(optimizer, 1)
    scheduler.step()
    train(optimizer, 1)
    scheduler.step()
    with pytest.warns(UserWarning, match="the schedule is over"):
        train(optimizer, 1)


def test_a_number_that_comes_back_goes_on_to_be_followed():
    """torch.distributed.checkpoint sets lr to 0, steps, and puts back what was there."""
    optimizer = Adam(parameters(), lr=halves)
    (group,) = optimizer.param_groups
    kept, group["lr"] = group["lr"], 0.0
    train(optimizer, 1)
    group["lr"] = kept
    assert dict(optimizer.schedules[0]) == {"lr": halves}
    train(optimizer, 1)
    assert group["lr"] == halves(1)


def test_groups_may_be_added_removed_and_reordered():
    one, other, third = parameters(3)
    optimizer = train(Adam([{"params": one, "lr": halves}, {"params": other, "lr": COSINE}]), 2)
    optimizer.param_groups.reverse()
    optimizer.add_param_group({"params": third, "lr": Table([0.3, 0.2])})
    train(optimizer, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [COSINE(2), halves(2), 0.3]
    del optimizer.param_groups[0]
    train(optimizer, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [halves(3), 0.2]


# --- resuming


def reloaded(optimizer, **options):
    fresh = type(optimizer)(copy.deepcopy([p for group in optimizer.param_groups for p in group["params"]]), **options)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer))
    return fresh


@pytest.mark.parametrize("kind", [functools.partial(SGD, momentum=0.9), Adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), lambda o: reloaded(o, lr=halves)],
    ids=["deepcopy", "pickle", "state dict"],
)
def test_a_resumed_run_is_the_same_run(kind, copied):
    optimizer = train(kind(parameters(), lr=halves), 3)
    resumed = copied(optimizer)
    (group,) = resumed.param_groups
    assert (group["lr"], group["schedule_step"]) == (halves(2), 3)
    train(optimizer, 3, 3)
    train(resumed, 3, 3)
    assert_same(optimizer, resumed)
    assert group["lr"] == halves(5)


def test_a_state_dict_of_torch_says_the_step_where_parameters_count():
    theirs = torch.optim.Adam(parameters())
    train(theirs, 3)
    ours = Adam(parameters(), lr=halves)
    ours.load_state_dict(theirs.state_dict())
    assert (ours.param_groups[0]["lr"], ours.param_groups[0]["schedule_step"]) == (halves(2), 3)
    theirs = torch.optim.SGD(parameters(), momentum=0.9)
    train(theirs, 3)
    ours = SGD(parameters(), lr=halves)
    with pytest.warns(UserWarning, match="lacks 'schedule_step': SGD counts no steps"):
        ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["schedule_step"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SGD(parameters()).load_state_dict(theirs.state_dict())


def test_a_saved_step_does_not_stay_in_a_group_that_follows_nothing():
    followed = train(Adam(parameters(), lr=halves), 3)
    said = (
        r"param group 0 of the state dict was saved with a schedule \(schedule_step 3\), .*: lr stays 0.125; build it"
    )
    with pytest.warns(UserWarning, match=said):
        plain = reloaded(followed, lr=0.75)
    assert plain.param_groups[0]["lr"] == halves(2)
    assert "schedule_step" not in plain.param_groups[0]
    plain.param_groups[0]["lr"] = halves
    train(plain, 1)
    assert plain.param_groups[0]["lr"] == halves(3)


def test_the_step_may_be_set():
    optimizer = Adam(parameters(), lr=halves)
    optimizer.param_groups[0]["schedule_step"] = 5
    train(optimizer, 1)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["schedule_step"]) == (halves(5), 6)


def test_skipped_steps_count_until_sync():
    optimizer = train(Adam(parameters(), lr=halves), 2)
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())
    train(optimizer, 3, 2)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["schedule_step"]) == (halves(4), 5)
    assert optimizer.sync() is optimizer
    optimizer.found_inf = torch.zeros(())
    train(optimizer, 1)
    assert (group["lr"], group["schedule_step"]) == (halves(2), 3)


def test_sync_warns_where_nobody_counts():
    optimizer = train(SGD(parameters(), lr=halves), 2)
    with pytest.warns(UserWarning, match="param group 0: SGD counts no steps, .* go on from step 2"):
        optimizer.sync()


def test_a_step_without_gradients_counts():
    optimizer = Adam(parameters(), lr=halves)
    optimizer.step()
    optimizer.step()
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["schedule_step"]) == (halves(1), 2)


# --- errors


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (float("nan"), ValueError, r"lr must be in \[0, inf\), got nan"),
        (-0.5, ValueError, r"lr must be in \[0, inf\), got -0.5"),
        (None, TypeError, "lr must be a number, got None"),
        (torch.ones(2), ValueError, "lr as a tensor must have one element"),
    ],
)
def test_a_wrong_number_of_a_schedule_changes_nothing(value, error, message):
    one, other = parameters()
    optimizer = train(Adam([{"params": one, "lr": halves}, {"params": other, "lr": poisoned(value)}]), 2)
    give(optimizer, 2)
    before = everything(optimizer)
    with pytest.raises(error, match=f"param group 1: Adam: {message}.* At step 2, where lr follows poisoned"):
        optimizer.step()
    assert everything(optimizer) == before
    with pytest.raises(error, match=f"param group 1: Adam: {message}"):
        Adam([{"params": parameters(1)}, {"params": parameters(1), "lr": poisoned(value, 0)}])
    optimizer.param_groups[1]["lr"] = 0.5
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == halves(2)


def test_a_wrong_schedule_that_is_assigned_changes_nothing():
    optimizer = train(Adam(parameters(), lr=halves), 2)
    (group,) = optimizer.param_groups
    group["eps"] = poisoned(-1.0)
    before = values(optimizer)
    with pytest.raises(ValueError, match=r"param group 0: Adam: eps must be in \[0, inf\), got -1.0. At step 2"):
        train(optimizer, 1)
    assert all(map(torch.equal, before, values(optimizer)))
    assert (group["lr"], group["schedule_step"]) == (halves(1), 2)
    group["eps"] = 1e-8
    train(optimizer, 1)
    assert group["lr"] == halves(2)


def test_sequences_end_and_are_of_one_length():
    one, other = parameters()
    optimizer = train(Adam([one], lr=[0.3, 0.2]), 2)
    with pytest.raises(ValueError, match="param group 0: Adam: lr at step 2: the sequence has 2 values"):
        train(optimizer, 1)
    with pytest.raises(ValueError, match="of one length; lr of param group 0 has 2, lr of param group 1 has 3"):
        optimizer.add_param_group({"params": other, "lr": [0.1] * 3})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("weight_decy", "weight_decay"),
        ("wieght_decay", "weight_decay"),
        ("beta", "betas"),
        ("maximise", "maximize"),
        ("grad_centralizaiton", "grad_centralization"),
    ],
)
def test_a_misspelt_option_of_a_group_is_refused(key, near):
    message = f"AdamW has no option {key!r}; did you mean {near!r}?"
    with pytest.raises(KeyError, match=message):
        AdamW([{"params": parameters(), key: 0.5}])
    optimizer = AdamW(parameters(1))
    with pytest.raises(KeyError, match=message):
        optimizer.add_param_group({"params": parameters(1), key: 0.5})
    assert len(optimizer.param_groups) == 1
    train(optimizer, 1)
    before = values(optimizer)
    optimizer.param_groups[0][key] = 0.5
    for _ in range(2):
        with pytest.raises(KeyError, match=f"param group 0: {message}"):
            train(optimizer, 1)
    assert all(map(torch.equal, values(optimizer), before))
    del optimizer.param_groups[0][key]
    train(optimizer, 1)


OWN = ["name", "initial_lr", "param_names", "layer", "lr_scale", "lr_mult", "base_momentum", "max_momentum", "max_lr"]
OWN += ["min_lr", "swa_lr", "apply_decay", "no_weight_decay", "weight_decay_scale", "is_expert", "wd", "tag", "beta1"]


@pytest.mark.parametrize("key", OWN)
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_group_may_have_keys_of_its_owners(key, kind):
    optimizer = kind([{"params": parameters(1), key: ["a"]}])
    train(optimizer, 1)
    assert optimizer.param_groups[0][key] == ["a"]
    type(optimizer)(optimizer.param_groups)


def test_reduce_on_plateau_works_with_torchs_groups():
    optimizer, plain = Adam(parameters(), lr=0.5), Adam(parameters(), lr=torch.tensor(0.5))
    with pytest.raises(ValueError, match="the lr of param group 0 follows a schedule"):
        ReduceLROnPlateau(Adam(parameters(), lr=halves))
    for some in (optimizer, plain, torch.optim.Adam(parameters(), lr=0.5)):
        scheduler = ReduceLROnPlateau(some, patience=0)
        for _ in range(3):
            scheduler.step(torch.tensor(1.0))
        assert float(some.param_groups[0]["lr"]) == pytest.approx(0.005)


def test_a_step_that_is_written_together_with_a_schedule_counts():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = SGD([p], lr=0.1)
    optimizer.param_groups[0].update(lr=COSINE, schedule_step=5)
    p.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == COSINE(5)
    assert optimizer.param_groups[0]["schedule_step"] == 6
