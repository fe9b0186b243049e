"""What users have reported against torch's optimizers and others', beyond what the contract's own tests hold."""

import contextlib
import copy
import gc
import pickle
import weakref

import pytest
import torch
from test_torch_contract import ADAMW, Pair, assert_equal, everything, give_gradients, leaves, params, through_a_file
from torch.optim import lr_scheduler

import fusedopt.torch
from cases import CASES
from fusedopt.schedules import Cosine, Cyclic, MultiStep


def twins(count=2, device="cpu", **options):
    return [fusedopt.torch.AdamW(leaves(device), **{**ADAMW.main, **options}) for _ in range(count)]


def step(*optimizers, seed):
    for optimizer in optimizers:
        give_gradients(optimizer, seed)
        optimizer.step()


# --- a session that a tutorial prints --------------------------------------------------------------------------------


def test_the_printed_session_of_fifty_steps(tmp_path, torch_device):
    start = [[-0.0947, 1.4217], [-1.3000, -1.0501]]
    weight = torch.tensor(start, device=torch_device.device, requires_grad=True)
    weight.grad = torch.ones_like(weight)
    optimizer = fusedopt.torch.SGD([weight], lr=0.1, momentum=0.9)
    assert optimizer.defaults.items() >= {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0}.items()
    optimizer.step()
    first = torch.tensor([[-0.1947, 1.3217], [-1.4000, -1.1501]])
    torch.testing.assert_close(weight.detach().cpu(), first, rtol=0, atol=1e-6)
    optimizer.zero_grad(set_to_none=False)
    assert weight.grad.tolist() == [[0, 0], [0, 0]]

    weight2 = torch.randn(3, 3, device=torch_device.device, requires_grad=True)
    before = weight2.detach().clone()
    optimizer.add_param_group({"params": weight2, "lr": 0.0001, "nesterov": True})
    added = optimizer.param_groups[1]
    assert list(added)[:6] == ["params", "lr", "nesterov", "momentum", "dampening", "weight_decay"]
    assert [added[key] for key in list(added)[1:6]] == [0.0001, True, 0.9, 0, 0]
    state_dict = optimizer.state_dict()
    assert {i: entry["momentum_buffer"].tolist() for i, entry in state_dict["state"].items()} == {0: [[1, 1], [1, 1]]}
    assert [group["params"] for group in state_dict["param_groups"]] == [[0], [1]]

    for _ in range(50):
        optimizer.step()
    buffer = optimizer.state[weight]["momentum_buffer"]
    torch.testing.assert_close(buffer, torch.full_like(buffer, 0.00515377520732), rtol=1e-5, atol=0)
    printed = torch.tensor([[-1.0900, 0.4263], [-2.2953, -2.0455]])  # the start is known to four digits only
    torch.testing.assert_close(weight.detach().cpu(), printed, rtol=0, atol=1.02e-4)
    assert torch.equal(weight2, before)
    assert weight2 not in optimizer.state

    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    loaded = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert loaded["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(loaded["state"][0]["momentum_buffer"], buffer)


def test_defaults_state_and_groups_are_live_as_torchs():
    p, q = leaves(shapes=((3,), (3,)))
    optimizer = fusedopt.torch.SGD([("first", p)], lr=0.5, momentum=0.5)
    theirs = torch.optim.SGD([("first", p)], lr=0.5, momentum=0.5)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert {key: optimizer.defaults[key] for key in theirs.defaults} == theirs.defaults
    assert [list(group) for group in optimizer.param_groups] == [list(group) for group in theirs.param_groups]
    assert (type(optimizer.state), type(optimizer.param_groups)) == (type(theirs.state), list)
    optimizer.defaults["lr"] = 0.25
    optimizer.add_param_group({"params": [("second", q)]})
    optimizer.param_groups[0]["lr"] = 0.125
    for _ in range(2):
        for tensor in (p, q):
            tensor.data.zero_()
            tensor.grad = torch.ones_like(tensor)
        optimizer.step()
        assert [tensor[0].item() for tensor in (p, q)] == [-0.125, -0.25]
        optimizer.state.clear()


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("capturable", [True, False])
def test_a_run_resumes_whatever_capturable_was_and_wherever_its_steps_lay(capturable, there, torch_device):
    """torch asserts that steps are on the GPU where capturable is set, and not where it is not."""
    source, other = twins(device=torch_device.device, capturable=capturable)
    other.param_groups[0]["capturable"] = not capturable
    step(source, seed=1)
    state_dict = source.state_dict()
    for entry in state_dict["state"].values():
        entry["step"] = entry["step"].to(torch_device.device if there else "cpu")
    other.load_state_dict(state_dict)
    for p, q in zip(params(other), params(source), strict=True):
        p.data.copy_(q.data)
    step(source, other, seed=2)
    assert_equal(everything(other), everything(source))


def test_one_group_alone_may_be_capturable(torch_device):
    first, *rest = leaves(torch_device.device)
    optimizer = fusedopt.torch.AdamW([{"params": [first], "capturable": True}, {"params": rest}], **ADAMW.main)
    (plain,) = twins(1, torch_device.device)
    for seed in (1, 2):
        step(optimizer, plain, seed=seed)
    assert_equal(everything(optimizer), everything(plain))


def test_a_group_without_parameters_is_saved_and_loaded_as_it_is(torch_device):
    def optimizer(**options):
        return fusedopt.torch.AdamW(
            [{"params": []}, {"params": leaves(torch_device.device)}, {"params": [], **options}]
        )

    source, other = optimizer(lr=0.25, betas=(0.5, 0.75)), optimizer()
    step(source, seed=1)
    other.load_state_dict(through_a_file(source.state_dict()))
    assert (other.param_groups[2]["lr"], other.param_groups[2]["betas"]) == (0.25, (0.5, 0.75))
    saved = other.state_dict()
    assert saved["param_groups"] == source.state_dict()["param_groups"]
    assert all(entry["step"] == 1 for entry in saved["state"].values())


def test_offloading_makes_no_state_and_loading_ends_it(torch_device):
    """State goes to the CPU and back, asked for by parameter: that enters empty dicts for those that have none."""
    optimizer, plain = twins(device=torch_device.device)
    for each in (optimizer, plain):
        give_gradients(each, 1)
        params(each)[1].grad = None
        each.step()
    saved = copy.deepcopy(plain.state_dict())
    for device in ("cpu", torch_device.device):
        for p in params(optimizer):
            for key, value in optimizer.state[p].items():
                optimizer.state[p][key] = value.to(device, copy=True)
    assert not optimizer.state[params(optimizer)[1]]
    step(optimizer, plain, seed=2)
    assert optimizer.state[params(optimizer)[1]]["step"] == 1
    for each in (optimizer, plain):
        each.load_state_dict(saved)
    step(optimizer, plain, seed=3)
    assert_equal(everything(optimizer), everything(plain))
    assert optimizer.state[params(optimizer)[1]]["step"] == 1


# --- schedulers ------------------------------------------------------------------------------------------------------

SCHEDULES = [Cosine(0.1, 8, 0.01), MultiStep(0.1, [2, 4], 0.5), Cyclic(0.01, 0.1, 3, 2)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_a_schedule_goes_on_whether_it_is_set_before_loading_or_after(schedule, when):
    """A scheduler of torch's that is built after loading writes its first rate over the loaded one."""
    source = twins(1, lr=schedule)[0]
    for seed in range(3):
        step(source, seed=seed)
    other = twins(1, lr=schedule if when == "before" else 0.5)[0]
    told = pytest.warns(UserWarning, match="or assign one") if when == "after" else contextlib.nullcontext()
    with told:
        other.load_state_dict(source.state_dict())
    if when == "after":
        other.param_groups[0]["lr"] = schedule
    for p, q in zip(params(other), params(source), strict=True):
        p.data.copy_(q.data)
    for seed in range(3, 6):
        step(source, other, seed=seed)
        assert source.param_groups[0]["lr"] == other.param_groups[0]["lr"] == schedule(seed)
    assert_equal(everything(other), everything(source))


def test_an_optimizer_under_a_scheduler_is_copied_and_freed_without_the_garbage_collector():
    """The scheduler replaces the instance's step."""
    source = twins(1)[0]
    scheduler = lr_scheduler.StepLR(source, 2)
    step(source, seed=1)
    copies = [copy.deepcopy(source), pickle.loads(pickle.dumps(source))]
    step(source, *copies, seed=2)
    for other in copies:
        assert_equal(everything(other), everything(source))
    assert type(source).step(source) is None
    freed = weakref.ref(source)
    gc.disable()
    try:
        del source, scheduler
        assert freed() is None
    finally:
        gc.enable()


def test_a_learning_rate_that_is_a_tensor_is_changed_by_torchs_scheduler_alone():
    """Schedules give floats: none of their bounds or earlier values follows a tensor that is changed in place."""
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = twins(1, lr=rate)[0]
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen = []
    for seed in range(3):
        seen.append(scheduler.get_last_lr()[0])
        step(optimizer, seed=seed)
        scheduler.step()
    assert [float(value) for value in seen] == [0.1, 0.05, 0.025]
    schedule = Cosine(0.1, 8)
    optimizer.param_groups[0]["lr"] = schedule
    step(optimizer, seed=3)
    optimizer.param_groups[0]["lr"] *= 7
    assert type(schedule(0)) is float
    assert schedule == Cosine(0.1, 8)


# --- what torch does, and we with it ---------------------------------------------------------------------------------


def test_a_new_learning_rate_reaches_asgd_one_step_late_and_rprop_never():
    cases = {case.name: case for case in CASES}
    for name, steps_until_it_counts in (("ASGD", 2), ("Rprop", None), ("SGD", 1)):
        changed, plain = (Pair(cases[name]) for _ in range(2))
        for pair in (changed, plain):
            pair.step(2)
        for optimizer in changed:
            optimizer.param_groups[0]["lr"] *= 3
        for number in range(1, 4):
            for pair in (changed, plain):
                pair.step()
            for p, q in zip(params(changed.ours), params(changed.theirs), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-7)  # torch keeps ASGD's eta in float32
            differs = not torch.equal(params(changed.ours)[0], params(plain.ours)[0])
            assert differs == (steps_until_it_counts is not None and number >= steps_until_it_counts), (name, number)


def test_rmsprop_has_a_step_as_in_torch():
    pair = Pair(next(case for case in CASES if case.name == "RMSprop"))
    pair.step(2)
    pair.compare()
    assert pair.ours.state[params(pair.ours)[0]]["step"] == 2
