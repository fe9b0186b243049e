"""Muon and Adafactor over tensors that are kept in ways of their own: launches, beside torch's own steps."""

import copy
import io
import pickle

import pytest
import torch
from test_torch_device_path import numpy_path

import fusedopt.torch as ours
from fusedopt import rounding
from fusedopt.torch.procedures.launches import NotCaptured

SHAPES = ((6, 4), (70, 64), (3, 5))  # the second has 4,480 elements: enough for 8 bits
CASES = [
    ("Muon", {"master_weights": "float32"}),
    ("Muon", {"state_dtype": "int8", "master_weights": "split24", "stochastic_rounding": True}),
    ("Muon", {"kahan": True, "state_dtype": "float16"}),
    ("Adafactor", {"master_weights": "split", "state_dtype": "float32"}),
    ("Adafactor", {"stochastic_rounding": True, "seed": 5}),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in CASES]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parameters(dtype=torch.bfloat16, device="cpu"):
    random = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=random).bfloat16().to(device, dtype) for shape in SHAPES]
    return [p.requires_grad_() for p in made]


def started(name, dtype=torch.bfloat16, device="cpu", **options):
    return getattr(ours, name)(parameters(dtype, device), lr=0.01, weight_decay=0.1, **options)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def stepped(optimizer, steps=4, first=0):
    for step in range(first, first + steps):
        random = torch.Generator().manual_seed(step)
        for number, p in enumerate(params_of(optimizer)):
            gradient = torch.randn(p.shape, generator=random).bfloat16().to(p.device, p.dtype)
            p.grad = None if (step + number) % 3 == 2 else gradient
        optimizer.step()
    return optimizer


def assert_alike(one, other):
    for p, q in zip(params_of(one), params_of(other), strict=True):
        assert torch.equal(p, q)
        assert one.state[p].keys() == other.state[q].keys()
        for key, value in one.state[p].items():
            assert value.dtype == other.state[q][key].dtype
            assert torch.equal(value, other.state[q][key]), key


def values_of(p, entry):
    """The float32 values that a parameter has with what keeps it finer."""
    if "master_param" in entry:
        return entry["master_param"]
    to = torch.empty(p.shape)
    high, low = (t.detach().contiguous().view(torch.int16).numpy().reshape(-1) for t in (p, entry["remainder"]))
    rounding.joined(high.view("bfloat16"), low, to.numpy().reshape(-1))
    return to


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_the_emulated_gpu_has_the_bits_of_the_numpy_path(name, options, emulated_gpu):
    on_device, launches = stepped(started(name, **options)), emulated_gpu.surface.launches
    before = len(launches)
    stepped(on_device, 1, first=4)
    assert len(launches) == before + 2
    with numpy_path():
        assert_alike(on_device, stepped(started(name, **options), 5))


@pytest.mark.parametrize("master", ["split", "float32"])
def test_muons_masters_are_its_float32_parameters_to_the_bit(master):
    halves = stepped(started("Muon", master_weights=master, state_dtype="float32"))
    whole = stepped(started("Muon", torch.float32, state_dtype="float32"))
    for half, p in zip(params_of(halves), params_of(whole), strict=True):
        assert torch.equal(values_of(half, halves.state[half]), p)
        assert not torch.equal(half.float(), p)


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_groups_without_storages_step_as_torch_has_it(name):
    """And those with them as they do alone."""
    plain, launched = parameters(torch.float32), parameters()
    groups = [{"params": launched, "master_weights": "split"}, {"params": plain}]
    mixed = stepped(getattr(ours, name)(groups, lr=0.01, weight_decay=0.1))
    alone = getattr(ours, name)([{"params": parameters(), "master_weights": "split"}], lr=0.01, weight_decay=0.1)
    theirs = getattr(torch.optim, name)([*parameters(), *parameters(torch.float32)], lr=0.01, weight_decay=0.1)
    for p, q in zip(launched, params_of(stepped(alone)), strict=True):
        assert torch.equal(p, q)
    for p, q in zip(plain, params_of(stepped(theirs))[3:], strict=True):
        torch.testing.assert_close(p, q, rtol=0 if name == "Muon" else 2**-17, atol=0 if name == "Muon" else 2**-17)
    assert ("remainder" in mixed.state[launched[0]], "remainder" in mixed.state[plain[0]]) == (True, False)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_a_resumed_copied_or_pickled_optimizer_goes_on_to_the_bit(name, options):
    optimizer, fresh = stepped(started(name, **options)), started(name, **options)
    with torch.no_grad():
        for mine, theirs in zip(params_of(fresh), params_of(optimizer), strict=True):
            mine.copy_(theirs)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file))
    others = [fresh, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    stepped(optimizer, first=4)
    for other in others:
        assert_alike(stepped(other, first=4), optimizer)


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_tensors_may_lie_in_any_order(name):
    """Their elements are taken in their own order; the products see the same matrices, and round them otherwise."""
    ends = []
    for transposed in (False, True):
        random = torch.Generator().manual_seed(0)
        start, gradient = torch.randn(2, 6, 4, generator=random).bfloat16()
        p = torch.empty(4, 6, dtype=torch.bfloat16).t() if transposed else torch.empty(6, 4, dtype=torch.bfloat16)
        p = p.copy_(start).requires_grad_()
        options = {"ns_dtype": "float32"} if name == "Muon" else {}
        optimizer = getattr(ours, name)([p], lr=0.01, master_weights="split", **options)
        for _ in range(3):
            p.grad = gradient.clone()
            optimizer.step()
        assert optimizer.state[p]["remainder"].stride() == p.stride()
        ends.append(values_of(p, optimizer.state[p]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_torchs_own_states_go_on_where_they_are_converted(name):
    theirs = stepped(getattr(torch.optim, name)(parameters(), lr=0.01, weight_decay=0.1))
    mine = started(name, master_weights="split", state_dtype="float32")
    with pytest.raises(TypeError, match=r"convert=True"):
        mine.load_state_dict(theirs.state_dict())
    assert not mine.state
    mine.load_state_dict(theirs.state_dict(), convert=True)
    for p, q in zip(params_of(mine), params_of(theirs), strict=True):
        for key, value in theirs.state[q].items():
            assert torch.equal(mine.state[p][key].double(), value.double())
            assert key == "step" or mine.state[p][key].dtype == torch.float32
    stepped(mine, 1)
    assert mine.state[params_of(mine)[0]]["remainder"].dtype == torch.int16


def test_moments_that_somebody_puts_there_are_learned_on():
    one, other = (stepped(started("Adafactor", kahan=True)) for _ in range(2))
    p, q = params_of(one)[1], params_of(other)[1]
    one.state[p]["row_var"] = one.state[p]["row_var"] * 4
    other.state[q]["row_var"].mul_(4)
    assert_alike(stepped(one, first=4), stepped(other, first=4))


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_learning_rates_are_followed_as_numbers_tensors_and_schedules(name, emulated_gpu):
    """Where a launch would read a tensor of its device itself, a procedure cannot."""
    rates = [0.01, 0.02, 0.02, 0.05]
    numbers, tensors = (started(name, master_weights="split") for _ in range(2))
    scheduled = getattr(ours, name)(parameters(), lr=rates, weight_decay=0.1, master_weights="split")
    tensors.param_groups[0]["lr"] = rate = torch.tensor(0.0, dtype=torch.float64)
    for step, number in enumerate(rates):
        numbers.param_groups[0]["lr"] = number
        rate.fill_(number)
        for optimizer in (numbers, tensors, scheduled):
            stepped(optimizer, 1, first=step)
    assert_alike(numbers, tensors)
    assert_alike(numbers, scheduled)


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_memory_counts_what_is_kept(name):
    optimizer = stepped(started(name, master_weights="split", state_dtype="float16"))
    found, entries = optimizer.memory(), [optimizer.state[p].values() for p in params_of(optimizer)]
    tensors = [t for entry in entries for t in entry if t.ndim]
    assert found.masters + found.states == sum(t.numel() * t.element_size() for t in tensors)


def test_masters_start_again_from_what_was_written_into_parameters():
    optimizer = stepped(started("Muon", master_weights="float32"))
    with torch.no_grad():
        for p in params_of(optimizer):
            p.fill_(8)
    stepped(optimizer.reload_masters(), 3, first=4)
    assert max(float((p.detach() - 8).abs().max()) for p in params_of(optimizer)) < 1


def test_graphs_are_refused():
    with pytest.raises(RuntimeError, match="cannot be captured"):
        NotCaptured().captured()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("LBFGS", {"master_weights": "split"}, TypeError, "not for LBFGS.*AdamW or Muon"),
        ("SparseAdam", {"kahan": True}, ValueError, "not for SparseAdam.*LazyAdam or Adam, with dense gradients"),
        ("Adafactor", {"state_dtype": "int8"}, ValueError, "few already.*state_dtype='bfloat16'"),
        ("Muon", {"master_weights": "split24"}, ValueError, "convert the parameters to bfloat16"),
    ],
)
def test_what_cannot_be_kept_is_an_error_with_what_to_choose(name, options, error, message):
    with pytest.raises(error, match=message):
        getattr(ours, name)([torch.ones(2, 2, requires_grad=True)], **options)


def test_lazyadams_sparse_gradients_refuse_storages_and_change_nothing():
    params = [torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    optimizer = ours.LazyAdam(params, lr=0.1, master_weights="split")
    params[0].grad = torch.ones(3, 2, dtype=torch.bfloat16)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    row = torch.ones(1, 2, dtype=torch.bfloat16)
    params[1].grad = torch.sparse_coo_tensor([[1]], row, (3, 2), check_invariants=True)
    with pytest.raises(ValueError, match="master_weights is not for sparse gradients"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert optimizer.state[params[0]]["step"] == 1
