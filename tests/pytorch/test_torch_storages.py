"""Masters, remainders, 8-bit states and random rounding over tensors: the core's bits, whatever is done meanwhile."""

import copy
import io
import pickle

import ml_dtypes
import pytest
import torch
from storage_workers import STORAGES
from test_torch_device_path import Twins, captured, everything, makers, replay
from test_torch_device_path import surface as surface

import fusedopt
import fusedopt.torch as ours
from cases import CASES, assert_same_bits
from devices import NUMBA
from fusedopt.torch.storages import received
from fusedopt.torch.tensors import memory_order

SHAPES = ((65, 128), (7,), (4, 16, 8, 9), ())
OPTIONS = {"AdamW": {"lr": 1e-2, "weight_decay": 0.1}, "SGD": {"lr": 0.1, "momentum": 0.9}, "Lion": {"lr": 1e-3}}
each_storage = pytest.mark.parametrize("storage", STORAGES)
each_name = pytest.mark.parametrize("name", OPTIONS)


def filled(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def made(name, storage=None, shapes=SHAPES, **options):
    """An optimizer over equal parameters each time, one of which lies in memory in another order than it says."""
    ps = [torch.nn.Parameter(filled(shape, i)) for i, shape in enumerate(shapes)]
    for p in ps:
        if p.ndim == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
    return getattr(ours, name)(ps, **{**OPTIONS[name], **STORAGES.get(storage, {}), **options})


def params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def step(optimizer, numbers, without=()):
    for number in numbers:
        for i, p in enumerate(params(optimizer)):
            p.grad = None if i in without else filled(p.shape, 100 * (number + 1) + i)
        optimizer.step()


def flat(tensor):
    """A tensor's bits as they lie in memory."""
    line = tensor.detach().as_strided((tensor.numel(),), (1,))
    return (
        line.clone().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if line.dtype == torch.bfloat16
        else line.numpy()
    )


def contents(optimizer):
    """The bits of all parameters and states."""
    states = [optimizer.state.get(p, {}) for p in params(optimizer)]
    return [flat(p).tobytes() for p in params(optimizer)], [
        {k: float(v) if k == "step" else (v.dtype, flat(received(k, v)).tobytes()) for k, v in entry.items()}
        for entry in states
    ]


def reloaded(state_dict):
    """As another process reads it."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(optimizer, other, **options):
    """Another optimizer with the parameters and the state of one."""
    with torch.no_grad():
        for p, q in zip(params(other), params(optimizer), strict=True):
            p.copy_(q)
    other.load_state_dict(reloaded(optimizer.state_dict()), **options)
    return other


# --- steps


@pytest.mark.parametrize("backend", ["numpy", NUMBA])
@each_name
@each_storage
def test_steps_have_the_cores_bits(name, storage, backend):
    optimizer = made(name, storage)
    arrays = [fusedopt.Parameter(flat(p)) for p in params(optimizer)]
    core = getattr(fusedopt, name)(arrays, **{**OPTIONS[name], **STORAGES[storage]})
    for number in range(3):
        for i, (p, q) in enumerate(zip(params(optimizer), arrays, strict=True)):
            p.grad = filled(p.shape, 10 * number + i)
            q.grad = flat(
                p.grad.contiguous(memory_format=torch.channels_last if p.ndim == 4 else torch.preserve_format)
            )
        optimizer.step()
        core.step()
    for p, q in zip(params(optimizer), arrays, strict=True):
        assert_same_bits(flat(p), q.data, "parameter")
        entry, theirs = optimizer.state[p], core.state[q]
        assert entry.keys() == theirs.keys()
        for key in entry.keys() - {"step"}:
            assert_same_bits(flat(entry[key]), theirs[key].reshape(-1), key)


@each_storage
def test_the_device_has_the_bits_of_the_numpy_path(surface, storage):
    groups = (
        ({"lr": 0.1}, makers(3, 4099, dtype=torch.bfloat16)),
        (STORAGES[storage], makers(5, 4097, 300, dtype=torch.bfloat16)),
    )
    twins = Twins("AdamW", *groups, lr=0.01)
    for number in range(4):
        twins.give(number, offset=number % 3, dtype=torch.float32 if number == 3 else None)
        for optimizer in twins.optimizers:
            optimizer.grad_scale = 2.0 if number == 1 else None
            optimizer.found_inf = 1.0 if number == 2 else 0.0
        twins.step()
    twins.compare()
    assert len(surface.launches) == 4
    assert [float(twins.device.state[p]["step"]) for p in twins.params(twins.device)] == [3.0] * 5


@each_storage
def test_a_replay_is_a_step_and_goes_on_with_what_was_loaded(surface, storage):
    twins = Twins("AdamW", (STORAGES[storage], makers(5, 4097, dtype=torch.bfloat16)), lr=0.01)
    twins.give(0)
    twins.step()
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in twins.optimizers]
    twins.give(1)
    before = everything(twins.device)
    graph = captured(surface, twins.device.step)
    assert everything(twins.device)[:2] == before[:2]
    for number in range(4):
        if number == 2:
            twins.device.load_state_dict(saved[0])
            twins.host.load_state_dict(saved[1])
        twins.give(number, into_place=True)
        replay(graph)
        twins.host_step()
        twins.compare()
    assert [state[1] for state in everything(twins.device)[1]] == [state[1] for state in before[1]], "it moved"


@each_storage
def test_a_gradient_scaler_skips_and_unscales(storage):
    optimizer, other = made("AdamW", storage), made("AdamW", storage)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))  # which begins it
    for number in range(3):
        for i, (p, q) in enumerate(zip(params(optimizer), params(other), strict=True)):
            q.grad = filled(q.shape, 10 * number + i)
            p.grad = q.grad * scaler.get_scale()
        if number == 1:
            params(optimizer)[2].grad.view(-1)[5] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if number != 1:
            other.step()
    assert contents(optimizer) == contents(other)


def test_each_group_keeps_its_arrays_in_its_own_way():
    optimizer = made("AdamW", "split", shapes=SHAPES[:1])
    optimizer.add_param_group(
        {"params": [torch.nn.Parameter(filled((64, 64), 5))], "master_weights": None, "kahan": True}
    )
    optimizer.add_param_group({"params": [torch.nn.Parameter(filled((64, 64), 6))], "state_dtype": {"exp_avg": "int8"}})
    step(optimizer, range(2))
    keys = [set(optimizer.state[p]) - {"step", "exp_avg", "exp_avg_sq"} for p in params(optimizer)]
    assert keys == [{"remainder"}, {"compensation"}, {"remainder", "exp_avg_scale"}]
    dtypes = [optimizer.state[p]["exp_avg_sq"].dtype for p in params(optimizer)]
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16]


def test_a_parameter_draws_by_its_place_over_all_groups():
    def three(order):
        ps = [torch.nn.Parameter(filled((64, 64), i)) for i in range(3)]
        return ours.AdamW([{"params": ps[:1]}, {"params": [ps[i] for i in order]}], stochastic_rounding=True), ps

    optimizer, ps = three([1, 2])
    other, qs = three([2, 1])
    for number in range(2):
        for i, (p, q) in enumerate(zip(ps, qs, strict=True)):
            p.grad, q.grad = filled(p.shape, 10 * number + i), filled(p.shape, 10 * number + i)
        other.step()
        if number == 0:
            optimizer.step()
            assert torch.equal(ps[0], qs[0])
            assert not torch.equal(ps[1], qs[1])
            with torch.no_grad():
                for p, q in zip(ps, qs, strict=True):
                    p.copy_(q)
                    for key, value in other.state[q].items():
                        optimizer.state[p][key].copy_(value)
            optimizer.param_groups[1]["params"].reverse()
        else:
            optimizer.step()
    assert all(map(torch.equal, ps, qs))


# --- what happens between steps


def replaced(optimizer):
    for entry in optimizer.state.values():
        entry |= {key: value.clone() for key, value in entry.items() if key != "step"}


def moved(optimizer):
    for entry in optimizer.state.values():
        for key in entry.keys() - {"step"}:
            entry[key].data = entry[key].data.clone()


def copied(optimizer):
    return copy.deepcopy(optimizer)


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


def shared(optimizer):
    optimizer.share_memory()


BETWEEN = {f.__name__: f for f in (replaced, moved, copied, pickled, shared)}


@each_storage
@pytest.mark.parametrize("between", BETWEEN)
def test_steps_go_on_to_the_bit_after(between, storage):
    optimizer, other = made("AdamW", storage), made("AdamW", storage)
    step(optimizer, range(4))
    step(other, range(2))
    other = BETWEEN[between](other) or other
    step(other, range(2, 4))
    assert contents(other) == contents(optimizer)


@each_storage
@pytest.mark.parametrize("how", ["replaced", "moved"])
def test_each_array_is_read_where_it_is_now(how, storage):
    keys = made("AdamW", storage)
    step(keys, [0])
    for key in keys.state[params(keys)[0]].keys() - {"step"}:
        optimizer, other = made("AdamW", storage, shapes=SHAPES[:1]), made("AdamW", storage, shapes=SHAPES[:1])
        step(optimizer, range(3))
        step(other, range(2))
        entry = other.state[params(other)[0]]
        if how == "replaced":
            entry[key] = torch.zeros_like(entry[key])
        else:
            entry[key].data = torch.zeros_like(entry[key])
        now = entry[key]
        step(other, range(2, 3))
        assert entry[key] is now
        assert not torch.equal(now, torch.zeros_like(now)), f"{key} was not written"
        assert contents(other) != contents(optimizer), f"{key} was not read"


@each_name
@each_storage
def test_a_run_that_was_saved_goes_on_to_the_bit(name, storage):
    whole, first = made(name, storage), made(name, storage)
    step(whole, range(2))
    step(whole, range(2, 3), without=[0])  # counts that differ
    step(first, range(2))
    step(first, range(2, 3), without=[0])
    second = resumed(first, made(name, storage))
    assert contents(second) == contents(first)
    step(whole, range(3, 5))
    step(second, range(3, 5))
    assert contents(second) == contents(whole)


def test_8_bit_states_keep_the_order_of_their_blocks():
    """A parameter may be laid out anew between steps; blocks of its states are counted as they were."""
    optimizer, other = made("AdamW", "split24, int8"), made("AdamW", "split24, int8")
    step(optimizer, range(4))
    step(other, range(2))
    other.param_groups[0]["params"][2].data = other.param_groups[0]["params"][2].data.contiguous()
    step(other, range(2, 3))
    later = made("AdamW", "split24, int8")
    later.param_groups[0]["params"][2].data = later.param_groups[0]["params"][2].data.contiguous()
    later = resumed(other, later)
    step(later, range(3, 4))
    for p, q in zip(params(optimizer), params(later), strict=True):
        assert torch.equal(p, q)
    assert memory_order(later.state[params(later)[2]]["exp_avg"]) == memory_order(params(optimizer)[2])


@pytest.mark.parametrize(("option", "value"), [("master_weights", None), ("kahan", True), ("state_dtype", "int8")])
def test_a_storage_option_that_changes_in_training_is_an_error_that_changes_nothing(option, value):
    optimizer, other = (
        made("AdamW", shapes=SHAPES[:1], master_weights="split" if option == "master_weights" else None)
        for _ in range(2)
    )
    step(optimizer, range(2))
    step(other, range(3))
    group, before = optimizer.param_groups[0], contents(optimizer)
    kept, group[option] = group.get(option), value
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^param group 0: {option} says how .* set it back to .*convert=True"):
            optimizer.step()
        assert contents(optimizer) == before
    group[option] = optimizer.rule.common_defaults()[option] if kept is None else kept
    step(optimizer, range(2, 3))
    assert contents(optimizer) == contents(other)


def test_a_storage_option_may_change_before_there_is_state():
    optimizer = made("AdamW", shapes=SHAPES[:1])
    params(optimizer)[0].grad = None
    optimizer.step()
    optimizer.param_groups[0]["state_dtype"] = {"exp_avg": "int8"}
    other = made("AdamW", shapes=SHAPES[:1], state_dtype={"exp_avg": "int8"})
    step(optimizer, range(2))
    step(other, range(2))
    assert contents(optimizer) == contents(other)
    optimizer.param_groups[0]["state_dtype"]["exp_avg"] = "float32"
    with pytest.raises(ValueError, match=r"^param group 0: state_dtype says how"):
        optimizer.step()


@pytest.mark.parametrize("option", ["kahan", "stochastic_rounding"])
def test_a_storage_option_may_change_where_nothing_is_kept(option):
    plain = {"momentum": 0.0, "shapes": SHAPES[:2]}  # of which no step copies anything
    optimizer, other = made("SGD", **plain), made("SGD", **plain)
    step(optimizer, [0])
    step(other, [0])
    optimizer.param_groups[0][option] = True
    other = resumed(other, made("SGD", **plain, **{option: True}))
    step(optimizer, [1, 2])
    step(other, [1, 2])
    assert contents(optimizer) == contents(other)


def test_masters_start_again_from_the_parameters():
    for storage, key in (("master", "master_param"), ("split", "remainder"), ("kahan", "compensation")):
        optimizer = made("AdamW", storage)
        step(optimizer, range(2))
        with torch.no_grad():
            for p in params(optimizer):
                p.fill_(3.0)
        assert optimizer.reload_masters() is optimizer
        for p in params(optimizer):
            expected = torch.full_like(optimizer.state[p][key], 3.0 if key == "master_param" else 0)
            assert torch.equal(optimizer.state[p][key], expected)
        step(optimizer, [2])
        assert all((p - 3).abs().max() < 0.1 for p in params(optimizer))


def test_a_model_that_is_loaded_after_its_optimizer_was_made_is_what_masters_start_from():
    optimizer = ours.Adagrad(
        [torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))], master_weights="float32", lr=1e-3
    )
    (p,) = params(optimizer)
    with torch.no_grad():
        p.fill_(5.0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(optimizer.state[p]["master_param"], torch.full((3,), 5 - 1e-3))


@each_storage
def test_steps_of_an_optimizer_that_counts_them_for_random_rounding_are_synced(storage):
    optimizer = made("SGD", storage, lr=lambda step: 0.1 / (1 + step))
    step(optimizer, range(3))
    optimizer.param_groups[0]["schedule_step"] = 7
    if "step" in optimizer.state[params(optimizer)[0]]:
        assert optimizer.sync().param_groups[0]["schedule_step"] == 3
    else:
        with pytest.warns(UserWarning, match="counts no steps"):
            optimizer.sync()


# --- pieces that are missing, strange, or of another storage


def test_missing_pieces_are_made_one_by_one():
    for storage, key in (("master", "master_param"), ("split", "remainder"), ("kahan", "compensation")):
        optimizer = made("AdamW", storage)
        step(optimizer, range(2))
        before = [p.detach().clone() for p in params(optimizer)]
        for entry in optimizer.state.values():
            del entry[key]
        optimizer.param_groups[0]["lr"] = 0.0
        step(optimizer, [2])
        for p, was in zip(params(optimizer), before, strict=True):
            assert torch.equal(p, was)
            expected = p.to(torch.float32) if key == "master_param" else torch.zeros_like(optimizer.state[p][key])
            assert torch.equal(optimizer.state[p][key], expected)


def scale_gone(entry):
    del entry["exp_avg_scale"]


def codes_gone(entry):
    del entry["exp_avg"]


def of_another_storage(entry):
    entry["compensation"] = torch.zeros(65, 128, dtype=torch.bfloat16)


def of_float32(entry):
    entry["exp_avg"] = torch.zeros(65, 128)


def of_wrong_bits(entry):
    entry["remainder"] = torch.zeros(65, 128, dtype=torch.int16)


def too_short(entry):
    entry["exp_avg_scale"] = torch.zeros(64)


WRONG = {
    scale_gone: "mean nothing without 'exp_avg_scale'",
    codes_gone: "mean nothing without 'exp_avg_scale'",
    of_another_storage: "its state has 'compensation', for which the options of its group",
    of_float32: "'exp_avg' has torch.float32, and the options of its group keep it in torch.uint8; .*convert=True",
    of_wrong_bits: "'remainder' has torch.int16, and the options of its group keep it in torch.int8; .*convert=True",
    too_short: r"its state 'exp_avg_scale' has shape \(64,\) and its scales \(65,\)",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_state_that_the_options_do_not_keep_is_an_error_that_changes_nothing(wrong):
    optimizer = made("AdamW", "split24, int8")
    step(optimizer, range(2))
    wrong(optimizer.state[params(optimizer)[0]])
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=WRONG[wrong]):
        optimizer.step()
    assert contents(optimizer) == before


def test_states_of_one_parameter_may_have_several_dtypes():
    optimizer, other = (
        made("AdamW", shapes=SHAPES[:1]),
        made("AdamW", shapes=SHAPES[:1], state_dtype={"exp_avg_sq": "float32"}),
    )
    step(optimizer, range(1))
    for each in (optimizer, other):
        (p,) = params(each)
        each.state[p] = {
            "step": torch.tensor(1.0),
            "exp_avg": filled(p.shape, 1),
            "exp_avg_sq": filled(p.shape, 2).float().square(),
        }
    step(optimizer, range(1, 3))
    step(other, range(1, 3))
    assert optimizer.state[params(optimizer)[0]]["exp_avg_sq"].dtype == torch.float32
    states = [[each.state[params(each)[0]][key] for key in ("exp_avg", "exp_avg_sq")] for each in (optimizer, other)]
    assert all(map(torch.equal, *states))


BAD = [
    ({"master_weights": "split"}, torch.float32, "master_weights='split' keeps what float16 and bfloat16"),
    ({"kahan": True}, torch.float32, "kahan=True keeps what float16 and bfloat16"),
    ({"master_weights": "split"}, torch.float16, "a float32 as bfloat16 and a remainder, and parameter 0 of group"),
    ({"stochastic_rounding": True}, torch.float32, "for float16 and bfloat16 parameters and states, and parameter 0"),
    ({"state_dtype": "int8"}, torch.float64, r"does not go with parameter 0 of group . \(shape \(3,\)\), which has"),
    ({"kahan": True, "master_weights": "split"}, torch.bfloat16, "both keep what rounding loses"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "dtype", "message"), BAD)
def test_options_that_do_not_go_with_a_groups_parameters_are_refused(options, dtype, message):
    p = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
    with pytest.raises(ValueError, match=f"AdamW: .*{message}"):
        ours.AdamW([p], **options)
    optimizer = ours.AdamW([torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))])
    with pytest.raises(ValueError, match=f"^param group 1: AdamW: .*{message}"):
        optimizer.add_param_group({"params": [p], **options})
    assert len(optimizer.param_groups) == 1


def test_a_parameter_without_memory_is_looked_at_when_it_steps():
    layer = torch.nn.LazyLinear(3, dtype=torch.float32)
    optimizer = ours.AdamW(layer.parameters(), master_weights="split")
    layer(torch.zeros(1, 2)).sum().backward()
    with pytest.raises(ValueError, match=r"^param group 0: AdamW: master_weights='split' keeps what"):
        optimizer.step()
    assert not optimizer.state


# --- state dicts of others


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_torchs_own_state_dict_loads_beside_a_split_master(dtype):
    """State of its own dtype goes on as it is; remainders start at nothing."""
    case = next(case for case in CASES if case.name == "AdamW")
    theirs = case.reference([torch.nn.Parameter(filled(shape, i)) for i, shape in enumerate(SHAPES)], foreach=False)
    step(theirs, range(2))
    saved = theirs.state_dict()
    for entry in saved["state"].values():
        entry |= {key: value.to(dtype) for key, value in entry.items() if key != "step"}
    optimizer = made("AdamW", master_weights="split")
    optimizer.load_state_dict(reloaded(saved))
    for p, entry in zip(params(optimizer), saved["state"].values(), strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], entry["exp_avg"])
    step(optimizer, [2])
    for p in params(optimizer):
        assert optimizer.state[p]["exp_avg"].dtype == dtype
        assert optimizer.state[p]["remainder"].dtype == torch.int16
        assert float(optimizer.state[p]["step"]) == 3.0


def test_a_state_dict_without_a_remainder_starts_it_again_where_it_is():
    """For a captured graph, which knows its memory."""
    optimizer = made("AdamW", "split")
    step(optimizer, range(2))
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        del entry["remainder"]
    before = [optimizer.state[p]["remainder"] for p in params(optimizer)]
    assert any(remainder.any() for remainder in before)
    optimizer.load_state_dict(saved)
    for p, remainder in zip(params(optimizer), before, strict=True):
        assert optimizer.state[p]["remainder"] is remainder
        assert not remainder.any()


REFUSED = [
    (
        "split",
        "master",
        ValueError,
        "saved with master_weights='split' and this optimizer has master_weights='float32'",
    ),
    ("kahan", None, ValueError, "saved with kahan=True"),
    ("split24, int8", {"master_weights": "split24"}, TypeError, "exp_avg has dtype uint8 .*state_dtype='int8'"),
    (None, {"state_dtype": "int8"}, TypeError, "exp_avg has dtype bfloat16 and this optimizer keeps uint8"),
    (None, {"state_dtype": "float32"}, TypeError, "exp_avg has dtype bfloat16 and this optimizer keeps float32"),
]


@pytest.mark.parametrize(("saved", "here", "error", "message"), REFUSED)
def test_a_state_dict_of_another_storage_says_what_to_choose_and_is_converted_on_demand(saved, here, error, message):
    first = made("AdamW", saved)
    step(first, range(3))
    second = made("AdamW", **here) if isinstance(here, dict) else made("AdamW", here)
    step(second, range(1))
    before = contents(second)
    with pytest.raises(error, match=f"(?=.*convert=True).*{message}"):
        second.load_state_dict(first.state_dict())
    assert contents(second) == before
    resumed(first, second, convert=True)
    step(first, [3])
    step(second, [3])
    for p, q in zip(params(first), params(second), strict=True):
        # A step of 0.01 and the last place of a bfloat16 of 4, 0.016, where one is rounded up and one down.
        torch.testing.assert_close(p.float(), q.float(), rtol=0, atol=0.016)
    assert second.state[params(second)[1]].keys() == (made_keys := second.state[params(second)[1]]).keys()
    assert not {"exp_avg_scale", "compensation", "remainder", "master_param"} & made_keys.keys() - wanted(second)


def wanted(optimizer):
    rule = optimizer.rule(
        **{k: v for k, v in optimizer.param_groups[0].items() if k in optimizer.rule.storage_options()}
    )
    return {
        {"float32": "master_param", "split": "remainder", "split24": "remainder"}.get(rule.master_weights or "", "")
    }


@pytest.mark.parametrize(("before", "after"), [("split", "master"), ("master", "split")])
def test_masters_are_converted_without_loss(before, after):
    """float32 is float32, however it is kept."""
    first, second = made("AdamW", before, state_dtype="float32"), made("AdamW", after, state_dtype="float32")
    step(first, range(3))
    resumed(first, second, convert=True)
    step(first, range(3, 5))
    step(second, range(3, 5))
    for p, q in zip(params(first), params(second), strict=True):
        assert torch.equal(p, q)


def test_a_remainder_is_written_in_a_type_that_processes_send_and_read_in_both():
    optimizer = made("AdamW", "split")
    step(optimizer, range(2))
    saved = optimizer.state_dict()
    assert saved["state"][0]["remainder"].dtype == torch.bfloat16
    for entry in saved["state"].values():
        entry["remainder"] = entry["remainder"].view(torch.int16)
    other = resumed(optimizer, made("AdamW", "split"))
    other.load_state_dict(saved)
    assert contents(other) == contents(optimizer)


def test_positions_are_as_in_torch_and_seed_is_loaded():
    first, second = made("AdamW", "split24, int8"), made("AdamW", "split24, int8", seed=9)
    step(first, range(2))
    second.load_state_dict(first.state_dict(), False)
    assert second.param_groups[0]["seed"] == 3


def test_codes_are_not_loaded_without_their_scales():
    first = made("AdamW", "split24, int8")
    step(first, range(2))
    saved = first.state_dict()
    del saved["state"][0]["exp_avg_scale"]
    before = contents(first)
    with pytest.raises(KeyError, match="lacks 'exp_avg_scale'"):
        first.load_state_dict(saved)
    assert contents(first) == before


def test_memory_is_what_is_kept():
    dtypes = {"exp_avg": torch.uint8, "exp_avg_sq": torch.uint8, "remainder": torch.int16}
    optimizer = made("AdamW", shapes=((64, 128),), master_weights="split", state_dtype="int8")
    step(optimizer, [0])
    entry = optimizer.state[params(optimizer)[0]]
    assert {key: entry[key].dtype for key in dtypes} == dtypes
    beyond = sum(value.nbytes for key, value in entry.items() if key != "step")
    assert beyond / 8192 == 2 + 2 * (1 + 4 / 128)


def test_sparse_gradients_have_no_storages():
    table = torch.nn.Parameter(filled((8, 4), 0))
    optimizer = ours.LazyAdam([table], master_weights="split")
    table.grad = torch.sparse_coo_tensor([[1]], filled((1, 4), 1), (8, 4), check_invariants=True)
    with pytest.raises(ValueError, match="master_weights is not for sparse gradients"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("saved", [False, True])
def test_a_flag_that_is_turned_off_leaves_codes_and_scales_where_they_are(saved):
    first = made("AdamW", "split24, int8", amsgrad=True)
    step(first, range(2))
    second = copy.deepcopy(first)
    first.param_groups[0]["amsgrad"] = False
    step(first, range(2, 4))
    assert first.state[params(first)[0]]["max_exp_avg_sq"].dtype == torch.uint8
    if saved:
        first = resumed(first, made("AdamW", "split24, int8", amsgrad=False))
    first.param_groups[0]["amsgrad"] = True
    step(first, range(4, 5))
    step(second, range(2, 5))


@pytest.mark.parametrize("storage", [{"stochastic_rounding": True}, {"state_dtype": {"momentum_buffer": "int8"}}])
def test_a_rule_that_counts_steps_for_random_rounding_alone_begins_where_none_are_saved(storage):
    plain = torch.optim.SGD(params(made("SGD", None, ((7,), (3, 5)))), lr=0.1, momentum=0.9)
    for p in params(plain):
        p.data = p.data.float() if "state_dtype" in storage else p.data
        p.grad = torch.ones_like(p)
    plain.step()
    other = ours.SGD([torch.nn.Parameter(p.detach().clone()) for p in params(plain)], lr=0.1, momentum=0.9, **storage)
    other.load_state_dict(plain.state_dict())
    assert [int(other.state[p]["step"]) for p in params(other)] == [1, 1]
    for p, q in zip(params(plain), params(other), strict=True):
        assert torch.equal(other.state[q]["momentum_buffer"], plain.state[p]["momentum_buffer"])


def test_steps_that_were_counted_for_random_rounding_alone_are_left_where_none_are_drawn():
    first, second = (made("SGD", None, ((7,),), state_dtype=dtype) for dtype in ("int8", "float32"))
    step(first, range(2))
    resumed(first, second)
    assert set(second.state[params(second)[0]]) == {"momentum_buffer"}
    step(first, range(2, 4))
    step(second, range(2, 4))
    assert torch.equal(params(first)[0], params(second)[0])


def test_a_step_of_several_numbers_is_an_error_that_names_it():
    optimizer = made("AdamW", "split", ((7,),))
    step(optimizer, range(1))
    saved, before = copy.deepcopy(optimizer.state_dict()), contents(optimizer)
    saved["state"][0]["step"] = torch.zeros(3)
    with pytest.raises(
        TypeError, match=r"of parameter 0 of group 0 \(shape \(7,\)\): step must be a number, got tensor"
    ):
        optimizer.load_state_dict(saved)
    assert contents(optimizer) == before


def test_a_buffer_that_is_turned_on_later_starts_from_the_gradient():
    optimizer = made("SGD", shapes=((2,),), momentum=0.0, dampening=0.5, stochastic_rounding=True)
    step(optimizer, range(3))
    optimizer.param_groups[0]["momentum"] = 0.9
    step(optimizer, range(3, 4))
    (p,) = params(optimizer)
    assert torch.equal(optimizer.state[p]["momentum_buffer"], p.grad)


@pytest.mark.parametrize("storage", ["split", "master", "kahan"])
def test_a_float32_model_with_the_weights_of_a_checkpoint_takes_its_masters(storage):
    """As after model.float(), or in another process: nothing is lost."""
    first = made("AdamW", storage)
    step(first, range(3))
    second = ours.AdamW([torch.nn.Parameter(p.detach().float()) for p in params(first)])
    masters = [
        p.float() + entry["compensation"].float()
        if "compensation" in (entry := first.state[p])
        else entry.get("master_param", joined(p, entry.get("remainder")))
        for p in params(first)
    ]
    saved = reloaded(first.state_dict())
    second.load_state_dict(saved, convert=True)
    for p, master in zip(params(second), masters, strict=True):
        assert torch.equal(p, master)
        assert not {"master_param", "remainder", "compensation"} & second.state[p].keys()
    with torch.no_grad():
        params(second)[1].add_(2.0**-20)
    before = contents(second)
    with pytest.raises(ValueError, match="is not what this state's masters round to; load the weights"):
        second.load_state_dict(saved, convert=True)
    assert contents(second) == before


def joined(p, remainder):
    """The float32 that a bfloat16 and 16 bits are."""
    if remainder is None:
        return None
    upper = p.detach().contiguous().view(torch.int16).int() << 16
    return (upper + remainder.contiguous().int()).view(torch.float32)


@pytest.mark.parametrize("option", [{"master_weights": "split"}, {"kahan": True}, {"stochastic_rounding": True}])
def test_a_default_is_for_the_groups_that_have_a_use_for_it(option):
    body, norms = torch.nn.Parameter(filled((3, 2), 0)), torch.nn.Parameter(filled((3,), 1).float())
    plain, (name,) = ours.AdamW([norms]), option
    for groups in (
        [{"params": [norms]}, {"params": [body]}],
        [{"params": [norms]}, {"params": [torch.nn.Parameter(torch.empty(2, device="meta"))]}],
        [{"params": torch.nn.LazyLinear(3).parameters()}, {"params": [norms]}],
    ):
        ours.AdamW(groups, **option)
    optimizer = ours.AdamW([body], **option)
    optimizer.add_param_group({"params": [norms]})
    norms.grad = norms.detach().clone()
    optimizer.step()
    assert optimizer.state[norms].keys() == {"step", "exp_avg", "exp_avg_sq"}
    copy.deepcopy(optimizer)
    with pytest.raises(ValueError, match=f"^param group 0: AdamW: {name}=.* parameter 'scale' .* has float32"):
        ours.AdamW([("scale", norms)], **option)
    with pytest.raises(ValueError, match=f"^param group 1: AdamW: {name}=.* parameter 0 of group 1 .* has float32"):
        ours.AdamW([{"params": [body]}, {"params": [norms], **option}])
    with pytest.raises(ValueError, match=f"^param group 1: AdamW: {name}="):
        plain.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))], **option})
    assert len(plain.param_groups) == 1


def test_a_model_that_becomes_float32_goes_on_with_its_masters():
    model = torch.nn.Linear(3, 2).bfloat16()
    optimizer = ours.AdamW(model.parameters(), master_weights="split", state_dtype="float32")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    masters = [joined(p, optimizer.state[p]["remainder"]) for p in model.parameters()]
    model.float()
    with pytest.raises(RuntimeError, match=r"^parameter 0 of group 0 .* to a new optimizer by load_.*convert=True"):
        optimizer.step()
    new = ours.AdamW(model.parameters())
    new.load_state_dict(optimizer.state_dict(), convert=True)
    assert all(map(torch.equal, model.parameters(), masters))
    new.step()


@pytest.mark.parametrize("wrong", [[1, 2], lambda step: step])
def test_a_seed_is_a_whole_number_and_follows_no_schedule(wrong):
    options = {"stochastic_rounding": True, "seed": wrong}
    with pytest.raises(TypeError, match=r"AdamW: seed must be a whole number, got .*; it follows no schedule"):
        ours.AdamW([torch.nn.Parameter(filled((3,), 0))], **options)
    with pytest.raises(TypeError, match=r"^param group 0: AdamW: seed must be a whole number"):
        ours.AdamW([{"params": [torch.nn.Parameter(filled((3,), 0))], **options}])
    for given in ({"seed": 3.0}, {}):
        p = torch.nn.Parameter(filled((3,), 0))
        (group,) = ours.AdamW([{"params": [p], **given}], stochastic_rounding=True, seed=3.0).param_groups
        assert repr(group["seed"]) == "3"
