"""What training frameworks do to an optimizer, with the calls that they make, but without the frameworks."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim import lr_scheduler
from torch.testing._internal.distributed.fake_pg import FakeStore

import fusedopt.torch
from cases import CASES, ONE_OF_EACH_KIND, each_kind, each_lazy_kind

SGD, ADAM, ADAMW = CASES[:3]
SHAPES = ((3, 5), (), (4099,))


def random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ours_of(case):
    return getattr(fusedopt.torch, case.name)


def params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def leaves(device="cpu", dtype=torch.float64):
    return [random(shape, i).to(device, dtype).requires_grad_() for i, shape in enumerate(SHAPES)]


def give_gradients(optimizer, seed):
    for i, p in enumerate(params(optimizer)):
        p.grad = random(p.shape, 1000 * seed + i).to(p.device, p.dtype)


def both(case, device="cpu", **options):
    """Ours on a device, and torch's for-loop on the CPU."""
    options = {**case.main, **options}
    return ours_of(case)(leaves(device), **options), case.reference(leaves(), foreach=False, **options)


def take_steps(pair, seeds):
    for seed in seeds:
        for optimizer in pair:
            give_gradients(optimizer, seed)
            optimizer.step()


def compare(pair):
    """Parameters and state are torch's, in float64: 1e-13 leaves a dozen steps ten roundings each."""
    ours, theirs = pair
    for p, q in zip(params(ours), params(theirs), strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-13, atol=1e-13)
        found, expected = ours.state.get(p, {}), theirs.state.get(q, {})
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name].cpu().to(value.dtype), value, rtol=1e-13, atol=1e-13)


def everything(optimizer):
    """Copies of all that a step changes."""
    found = {f"parameter {i}": p.detach().clone() for i, p in enumerate(params(optimizer))}
    for i, p in enumerate(params(optimizer)):
        found |= {f"{name} of {i}": value.clone() for name, value in optimizer.state.get(p, {}).items()}
    return found


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        found, wanted = (tensor.contiguous().view(-1).view(torch.uint8).cpu() for tensor in (actual[name], value))
        assert torch.equal(found, wanted), name


# --- state dicts and groups ------------------------------------------------------------------------------------------


@each_lazy_kind
def test_an_empty_state_round_trips_before_any_step(case, torch_device):
    pair = both(case, torch_device.device)
    for optimizer in pair:
        for _ in range(2):
            state_dict = optimizer.state_dict()
            assert state_dict["state"] == {}
            optimizer.load_state_dict(state_dict)
        assert len(optimizer.state) == 0
    take_steps(pair, range(3))
    compare(pair)


@pytest.mark.parametrize("steps", [0, 2])
def test_parameters_replaced_inside_their_groups_are_those_that_step(steps, torch_device):
    pair = both(ADAMW, torch_device.device)
    take_steps(pair, range(steps))
    old = [params(optimizer) for optimizer in pair]
    for optimizer in pair:
        for group in optimizer.param_groups:
            for i, p in enumerate(group["params"]):
                group["params"][i] = torch.empty(1, dtype=p.dtype, device=p.device)  # a placeholder
        optimizer.step()  # they have no gradients
    before = [[p.detach().clone() for p in some] for some in old]
    for optimizer, some in zip(pair, old):
        for i, p in enumerate(some):
            new = torch.nn.Parameter(p.detach().clone())
            optimizer.param_groups[0]["params"][i] = new
            if p in optimizer.state:
                optimizer.state[new] = optimizer.state.pop(p)
    take_steps(pair, range(5, 8))
    compare(pair)
    assert len(pair[0].state) == len(SHAPES)
    for some, kept in zip(old, before):
        assert all(torch.equal(p, q) for p, q in zip(some, kept))


def test_step_may_be_patched_on_the_instance_and_attributes_added(torch_device):
    p = torch.ones(5, device=torch_device.device, requires_grad=True)
    optimizer = fusedopt.torch.AdamW([p], lr=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda number: 0.5**number)
    original = optimizer.step
    optimizer.step_was_called = False

    def patched(*args, **kwargs):
        optimizer.step_was_called = True
        return original(*args, **kwargs)

    scaler = torch.amp.GradScaler(torch_device.device, init_scale=4.0)
    for expected in (1, 2):
        optimizer.step = patched
        scaler.scale((p * p).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.step = original
        scheduler.step()
        assert optimizer.step_was_called
        assert optimizer.state[p]["step"] == expected
        optimizer.zero_grad()
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.25
    assert optimizer.step is original
    del optimizer.step
    assert optimizer.step.__func__ is type(optimizer).step


def test_a_step_fires_its_hooks_once_in_every_class():
    kinds = [ours_of(case) for case in CASES]

    class Derived(fusedopt.torch.AdamW):
        pass

    optimizers = [kind(leaves()) for kind in (*kinds, Derived, *kinds)]
    for optimizer in optimizers:
        calls = []
        for hook in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
            hook(lambda optimizer, args, kwargs, calls=calls: calls.append(type(optimizer)))
        give_gradients(optimizer, 1)
        optimizer.step()
        assert calls == [type(optimizer)] * 2


CHANGES = {
    "SGD": (
        {"lr": 0.02},
        {"momentum": 0.5},
        {"dampening": 0.1},
        {"weight_decay": 0.3},
        {"dampening": 0, "nesterov": True},
        {"maximize": True},
    ),
    "Adam": (
        {"lr": 0.02},
        {"betas": (0.5, 0.6)},
        {"betas": [0.5, 0.6]},
        {"eps": 0.1},
        {"weight_decay": 0.3},
        {"maximize": True},
        {"decoupled_weight_decay": True},
    ),
    "AdamW": ({"lr": 0.02}, {"betas": (0.5, 0.6)}, {"eps": 0.1}, {"weight_decay": 0.3}, {"maximize": True}),
    "Adagrad": ({"lr": 0.02}, {"lr_decay": 0.5}, {"eps": 0.1}, {"weight_decay": 0.3}, {"maximize": True}),
}


@pytest.mark.parametrize(
    ("case", "change"),
    [
        pytest.param(case, change, id=f"{case.name}-{change}")
        for case in ONE_OF_EACH_KIND
        for change in CHANGES[case.name]
    ],
)
def test_every_hyperparameter_is_read_at_every_step(case, change, torch_device):
    pair = both(case, torch_device.device)
    take_steps(pair, range(2))
    unchanged = copy.deepcopy(pair[0])
    for optimizer in pair:
        lr_scheduler.LambdaLR(optimizer, lambda number: 1.0)
        assert optimizer.param_groups[0]["initial_lr"] == case.main["lr"]
        optimizer.param_groups[0].update(change)
    take_steps(pair, range(2, 4))
    take_steps([unchanged], range(2, 4))
    compare(pair)
    assert not torch.equal(params(pair[0])[2], params(unchanged)[2])


# --- training loops --------------------------------------------------------------------------------------------------


def test_zero_grad_forward_backward_and_clipping_may_all_happen_in_the_closure(torch_device):
    pair = both(ADAMW, torch_device.device)
    for number in range(3):
        losses = []
        for optimizer in pair:

            def closure(optimizer=optimizer, target=0.1 * number):
                optimizer.zero_grad()
                some = params(optimizer)
                loss = sum(((p - target) ** 2).sum() for p in some)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(some, 0.5)
                return loss

            with torch.no_grad():
                losses.append(optimizer.step(closure=closure))
        torch.testing.assert_close(losses[0].cpu(), losses[1], rtol=1e-12, atol=0)  # a sum of 4,000 squares
    compare(pair)


def test_state_may_be_moved_to_other_tensors_between_steps(torch_device):
    pair = both(ADAMW, torch_device.device)
    take_steps(pair, range(2))
    for optimizer in pair:
        for p, entry in optimizer.state.items():
            optimizer.state[p] = {name: value.to("cpu", copy=True) for name, value in entry.items()}
        for p, entry in optimizer.state.items():
            optimizer.state[p] = {name: value.to(p.device) for name, value in entry.items()}
    take_steps(pair, range(2, 4))
    compare(pair)


def test_no_method_has_a_name_that_frameworks_give_a_meaning_to():
    optimizer = fusedopt.torch.AdamW(leaves())
    for name in ("consolidate_state_dict", "backward", "get_fp32_optimizer_state", "optimizer", "inner_optimizer"):
        assert not hasattr(optimizer, name)


def containers(value):
    """The types of everything in a state dict."""
    yield type(value)
    if isinstance(value, dict):
        for item in (*value, *value.values()):
            yield from containers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from containers(item)


@each_kind
def test_a_saved_state_dict_holds_tensors_and_plain_containers_alone(case, torch_device, tmp_path):
    optimizer = ours_of(case)(leaves(torch_device.device), **case.main)
    lr_scheduler.LambdaLR(optimizer, lambda number: 0.9)
    take_steps([optimizer], range(2))
    state_dict = optimizer.state_dict()
    assert {*containers(state_dict)} <= {dict, list, tuple, str, int, float, bool, type(None), torch.Tensor}
    torch.save(state_dict, tmp_path / "optimizer.pt")
    loaded = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    resumed = ours_of(case)([p.detach().clone().requires_grad_() for p in params(optimizer)])
    resumed.load_state_dict(loaded)
    take_steps([optimizer, resumed], range(2, 4))
    assert_same_bits(everything(resumed), everything(optimizer))


def test_there_are_no_modes_of_training_and_evaluation():
    optimizer = fusedopt.torch.AdamW(leaves())
    assert not hasattr(optimizer, "train")
    assert not hasattr(optimizer, "eval")


def test_zero_grad_has_set_to_none_and_either_value_works(torch_device):
    assert inspect.signature(fusedopt.torch.AdamW.zero_grad).parameters["set_to_none"].default is True
    pair = both(ADAMW, torch_device.device)
    take_steps(pair, range(2))
    for optimizer in pair:
        gradients = [p.grad for p in params(optimizer)]
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad is gradient for p, gradient in zip(params(optimizer), gradients))
        assert not any(gradient.any() for gradient in gradients)
        optimizer.step()  # with gradients of zero, in the tensors of the step before
        optimizer.zero_grad()
        assert all(p.grad is None for p in params(optimizer))
        optimizer.step()
    take_steps(pair, range(2, 4))
    compare(pair)
    assert pair[0].state[params(pair[0])[0]]["step"] == 5


def test_a_grad_scaler_calls_step_always_and_takes_its_attributes_away(torch_device):
    device = torch_device.device
    some = [p.detach().float().requires_grad_() for p in leaves()]
    ours = fusedopt.torch.AdamW([p.detach().to(device, copy=True).requires_grad_() for p in some], lr=0.1)
    theirs = torch.optim.AdamW(some, lr=0.1, fused=True)
    scalers = [torch.amp.GradScaler(where, init_scale=8.0, growth_interval=2) for where in (device, "cpu")]
    seen = []
    ours.register_step_pre_hook(lambda o, args, kwargs: seen.append((o.grad_scale.item(), o.found_inf.item())))
    for number, bad in enumerate((False, True, False, False, False)):
        for optimizer, scaler in zip((ours, theirs), scalers):
            give_gradients(optimizer, number)
            for p in params(optimizer):
                p.grad = scaler.scale(p.grad)
            if bad:
                params(optimizer)[2].grad[4000] = torch.inf
            before = everything(optimizer)
            scaler.step(optimizer)
            scaler.update()
            assert not hasattr(optimizer, "grad_scale")
            assert not hasattr(optimizer, "found_inf")
            if bad:
                assert_same_bits(everything(optimizer), before)
        assert scalers[0].get_scale() == scalers[1].get_scale()
    assert seen == [(8, 0), (8, 1), (4, 0), (4, 0), (8, 0)]
    for p, q in zip(params(ours), params(theirs), strict=True):
        assert ours.state[p]["step"] == 4
        # Powers of two scale without rounding; float32 then differs from torch's by 2.5e-7 a step and less over many.
        torch.testing.assert_close(p.cpu(), q, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(p.grad.cpu(), q.grad, rtol=0, atol=0)  # unscaled, as torch leaves them


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_gradients_that_move_into_a_bucket_after_the_first_step_are_found_there(extra, torch_device):
    pair = both(ADAMW, torch_device.device)
    buckets = {}
    for number in range(4):
        for optimizer in pair:
            give_gradients(optimizer, number)
            if number:
                used, start = params(optimizer)[:2], extra
                bucket = buckets.setdefault(optimizer, torch.zeros(64, dtype=torch.float64, device=used[0].device))
                for p in used:
                    view = bucket[start : start + p.numel()].view(p.shape).copy_(p.grad)
                    p.grad, start = view, start + p.numel()
            params(optimizer)[2].grad = None  # it is unused
            optimizer.step()
    compare(pair)
    unused = params(pair[0])[2]
    assert unused not in pair[0].state
    assert torch.equal(unused.cpu(), leaves()[2])


# --- sharded optimizers ----------------------------------------------------------------------------------------------


@each_kind
def test_parameters_rehomed_after_construction_are_updated_in_their_new_home(case, torch_device):
    pair = both(case, torch_device.device)
    flats = []
    for optimizer in pair:
        flat, start = torch.zeros(4200, dtype=torch.float64, device=params(optimizer)[0].device), 0
        for p in params(optimizer):
            view = flat[start : start + p.numel()].view(p.shape)
            view.copy_(p.detach())
            p.data, start = view, start + p.numel()
        flats.append(flat)
    take_steps(pair, range(3))
    compare(pair)
    torch.testing.assert_close(flats[0].cpu(), flats[1], rtol=1e-13, atol=1e-13)
    for p in params(pair[0]):
        assert p.untyped_storage().data_ptr() == flats[0].untyped_storage().data_ptr()


@pytest.mark.parametrize("steps", [0, 2])
def test_state_written_past_load_state_dict_is_the_truth(steps, torch_device):
    pair = both(ADAMW, torch_device.device)
    take_steps(pair, range(steps))
    for optimizer in pair:
        for i, p in enumerate(params(optimizer)):
            optimizer.state[p] = {
                "step": torch.tensor(7.0 + i, dtype=torch.float32),  # on the CPU, wherever the parameter is
                "exp_avg": random(p.shape, 100 + i).to(p),
                "exp_avg_sq": random(p.shape, 200 + i).abs().to(p),
            }
    take_steps(pair, range(5, 7))
    compare(pair)
    assert [pair[0].state[p]["step"].item() for p in params(pair[0])] == [9, 10, 11]


def test_group_values_copied_in_and_out_around_every_step_drive_it():
    pair = both(ADAMW)
    outer = [[{k: v for k, v in group.items() if k != "params"} for group in o.param_groups] for o in pair]

    def copy_values(sources, targets):
        for source, target in zip(sources, targets, strict=True):
            target.update({key: source[key] for key in source if key != "params"})

    for number in range(4):
        for optimizer, groups in zip(pair, outer):
            groups[0]["lr"] *= 0.5
            groups[0]["extra"] = number
            copy_values(groups, optimizer.param_groups)
            give_gradients(optimizer, number)
            optimizer.step()
            copy_values(optimizer.param_groups, groups)
    compare(pair)
    assert outer[0] == [{**group, "foreach": None} for group in outer[1]]


AWKWARD = (-0.0, 0.0, 1.0, -1e-45, 1e-40, 3e38, -1.5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # torch's own, of checkpoints without ranks
@each_kind
def test_a_checkpoint_of_a_fresh_optimizer_makes_its_state_and_leaves_every_bit_of_the_parameters(case, torch_device):
    def trained():
        model = torch.nn.Linear(len(AWKWARD), 2).to(torch_device.device)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([AWKWARD, AWKWARD[::-1]]))
            model.bias.fill_(-0.0)
        return model

    found = {}
    for kind in (ours_of(case), case.reference):
        model = trained()
        optimizer = kind(model.parameters(), **case.main)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found[kind] = checkpoint.get_optimizer_state_dict(model, optimizer)
        assert_same_bits(model.state_dict(), before)
        assert all(p.grad is None for p in model.parameters())
        assert optimizer.param_groups[0]["lr"] == case.main["lr"]
        if case is not SGD or kind is case.reference:
            assert len(optimizer.state) == 2
    ours, theirs = found.values()
    assert ours["state"].keys() == theirs["state"].keys() == {"weight", "bias"}
    for name, entry in theirs["state"].items():
        assert ours["state"][name].keys() == entry.keys()

    model = trained()
    optimizer = ours_of(case)(model.parameters(), **case.main)
    take_steps([optimizer], range(2))
    saved = copy.deepcopy(checkpoint.get_state_dict(model, optimizer))
    resumed_model = trained()
    resumed = ours_of(case)(resumed_model.parameters(), **case.main)
    checkpoint.set_state_dict(resumed_model, resumed, model_state_dict=saved[0], optim_state_dict=saved[1])
    take_steps([optimizer, resumed], range(2, 4))
    assert_same_bits(everything(resumed), everything(optimizer))


@pytest.fixture
def second_of_two_ranks():
    """A process group without other processes, in which this one is the last."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield DeviceMesh("cpu", [0, 1])
    dist.destroy_process_group()


@each_kind
def test_sharded_parameters_have_sharded_state_even_where_their_shard_is_empty(case, second_of_two_ranks):
    mesh = second_of_two_ranks
    shapes = ((3, 5), (1, 7), (8,))  # of which this rank has one row, none, and four elements

    def sharded(whole):
        local = whole.chunk(2)[1].clone() if len(whole) > 1 else whole[:0].clone()
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())

    some = [torch.nn.Parameter(sharded(random(shape, i))) for i, shape in enumerate(shapes)]
    plain = [p.to_local().detach().clone().requires_grad_() for p in some]
    ours, theirs = ours_of(case)(some, **case.main), case.reference(plain, foreach=False, **case.main)
    for number in range(3):
        for i, (p, q) in enumerate(zip(some, plain)):
            p.grad = sharded(random(shapes[i], 10 * number + i))
            q.grad = p.grad.to_local().clone()
        ours.step()
        theirs.step()
    assert [p.to_local().numel() for p in some] == [5, 0, 4]
    for p, q in zip(some, plain):
        torch.testing.assert_close(p.to_local(), q, rtol=3e-14, atol=3e-14)
        assert ours.state[p].keys() == theirs.state[q].keys()
        for name, value in theirs.state[q].items():
            state = ours.state[p][name]
            if name == "step":
                assert type(state) is torch.Tensor
                assert state == value == 3
            else:
                assert isinstance(state, DTensor)
                assert (state.shape, state.placements, state.device_mesh) == (p.shape, p.placements, p.device_mesh)
                torch.testing.assert_close(state.to_local(), value, rtol=3e-14, atol=3e-14)


# --- copies, memory, conversions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@each_kind
def test_a_copy_made_with_its_model_is_whole(case, copied, torch_device):
    model = torch.nn.Linear(5, 3).to(torch_device.device)
    optimizer = ours_of(case)(model.parameters(), **case.main)
    take_steps([optimizer], range(2))
    other_model, other = copied([model, optimizer])
    assert all(p is q for p, q in zip(params(other), other_model.parameters(), strict=True))
    take_steps([optimizer, other], range(2, 4))
    assert_same_bits(everything(other), everything(optimizer))
    assert_same_bits(other_model.state_dict(), model.state_dict())


@each_kind
def test_parameters_keep_storages_of_their_own_at_their_addresses(case, torch_device):
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3)).to(torch_device.device)
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    optimizer = ours_of(case)(model.parameters(), **case.main)
    for number in range(3):
        take_steps([optimizer], [number])
        found = model.state_dict()
        assert {name: value.data_ptr() for name, value in found.items()} == before
        assert len({value.untyped_storage().data_ptr() for value in found.values()}) == len(found)
        for value in found.values():
            assert value.storage_offset() == 0
            assert value.untyped_storage().nbytes() == value.nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_converted_and_its_state_cast_by_torchs_loader_train_on(dtype, torch_device):
    model = torch.nn.Linear(65, 64).to(torch_device.device)
    optimizer = fusedopt.torch.AdamW(model.parameters(), **ADAMW.main)
    take_steps([optimizer], range(2))
    model.to(dtype)
    torch.optim.Optimizer.load_state_dict(optimizer, optimizer.state_dict())  # which casts all but the step
    assert {v.dtype for e in optimizer.state.values() for k, v in e.items() if k != "step"} == {dtype}
    theirs = torch.optim.AdamW([p.detach().cpu().requires_grad_() for p in model.parameters()], fused=True)
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    theirs.param_groups[0]["fused"] = True
    take_steps([optimizer, theirs], range(2, 4))
    for p, q in zip(params(optimizer), params(theirs), strict=True):
        # Both round once a step from float32 values that differ by 2.5e-7, so now and then by a unit in the last place.
        tolerance = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=tolerance, atol=1e-6)
        assert optimizer.state[p]["step"] == theirs.state[q]["step"] == 4
    model.float()
    take_steps([optimizer], range(4, 6))
    assert all(p.isfinite().all() for p in model.parameters())


def test_autograd_notices_that_a_step_changed_a_saved_tensor(torch_device):
    p = torch.ones(3, device=torch_device.device, requires_grad=True)
    optimizer = fusedopt.torch.SGD([p], lr=0.1)
    for _ in range(2):
        loss = (p * p).sum()
        loss.backward(retain_graph=True)
        version = p._version
        optimizer.step()
        assert p._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize(("module", "expected"), [("torch.amp.grad_scaler", True), ("lightning.pytorch.amp", False)])
def test_who_clips_only_what_it_unscales_itself_is_told_that_a_step_does_not_unscale(module, expected):
    optimizer = fusedopt.torch.AdamW([torch.zeros(1, requires_grad=True)])
    asks = "answer = getattr(optimizer, '_step_supports_amp_scaling', False)"
    program = {"__name__": module, "optimizer": optimizer}
    exec(asks, program)
    assert program["answer"] is expected
