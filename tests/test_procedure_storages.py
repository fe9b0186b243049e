"""Muon and Adafactor over arrays that are kept in other ways than as float32: the bits of every rule's storages."""

import copy
import pickle

import numpy as np
import pytest

import fusedopt
from cases import assert_same_bits
from fusedopt import SparseGradient, rounding
from fusedopt.procedures import launches

SHAPES = ((6, 4), (70, 64), (3, 5))  # the second has 4,480 elements: enough for 8 bits
STORAGES = {
    "float32": {"master_weights": "float32"},
    "split": {"master_weights": "split", "state_dtype": "float32"},
    "split24, random": {"master_weights": "split24", "stochastic_rounding": True, "state_dtype": "float16"},
    "kahan": {"kahan": True},
    "random": {"stochastic_rounding": True, "seed": 5},
}
CASES = [(name, options) for name in ("Muon", "Adafactor") for options in STORAGES.values()]
CASES += [("Muon", {"state_dtype": "int8"})]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in CASES]


def started(name, array=np.array, dtype="bfloat16", shapes=SHAPES, **options):
    random = np.random.default_rng(0)
    starts = [random.standard_normal(shape).astype("bfloat16").astype(dtype) for shape in shapes]
    parameters = [fusedopt.Parameter(array(start), grad_dtype="float32") for start in starts]
    return getattr(fusedopt, name)(parameters, lr=0.01, weight_decay=0.1, **options)


def stepped(optimizer, steps=4, first=0, array=np.array):
    for step in range(first, first + steps):
        random = np.random.default_rng(step)
        for number, parameter in enumerate(optimizer.parameters()):
            gradient = random.standard_normal(parameter.shape).astype(np.float32)
            parameter.grad = None if (step + number) % 3 == 2 else array(gradient)
        optimizer.step()
    return optimizer


def everything(optimizer):
    """Parameters and state by name, on the host."""
    state = optimizer.state_dict()["state"]
    kept = {(number, key): np.asarray(value) for number, entry in state.items() for key, value in entry.items()}
    hosts = [arena.memory.host for arena in optimizer.arenas()]
    return kept | {(n, "data"): hosts[0](p.data) for n, p in enumerate(optimizer.parameters())}


def assert_alike(one, other):
    one, other = everything(one), everything(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert (value.dtype, value.shape) == (other[key].dtype, other[key].shape)
        assert_same_bits(value, other[key])


def values_of(optimizer, parameter):
    """The float32 values that a parameter has with what keeps it finer."""
    entry, to = optimizer.state[parameter], np.empty(parameter.shape, np.float32)
    if "master_param" in entry:
        return entry["master_param"]
    rounding.joined(parameter.data.reshape(-1), entry["remainder"].reshape(-1), to.reshape(-1))
    return to


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_every_device_has_the_bits_of_numpy(name, options, device):
    if device.name != "numpy":
        on_device = stepped(started(name, device.array, **options), array=device.array)
        assert_alike(on_device, stepped(started(name, **options)))


@pytest.mark.parametrize("master", ["split", "float32"])
def test_muons_masters_are_its_float32_parameters_to_the_bit(master):
    """Its update is of momentum and gradient alone."""
    halves = stepped(started("Muon", master_weights=master, state_dtype="float32"))
    whole = stepped(started("Muon", dtype="float32"))
    for half, parameter in zip(halves.parameters(), whole.parameters(), strict=True):
        assert_same_bits(values_of(halves, half), parameter.data)
        assert not np.array_equal(half.data.astype(np.float32), parameter.data)
        assert_same_bits(halves.state[half]["momentum_buffer"], whole.state[parameter]["momentum_buffer"])


def test_adafactors_split_is_its_float32_master():
    """Both read the visible parameter for its size, which a tie would round apart: none is here."""
    one, other = (stepped(started("Adafactor", master_weights=m, state_dtype="float32")) for m in ("split", "float32"))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert_same_bits(values_of(one, p), values_of(other, q))


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_a_resumed_copied_or_pickled_optimizer_goes_on_to_the_bit(name, options):
    optimizer, fresh = stepped(started(name, **options)), started(name, **options)
    for mine, theirs in zip(fresh.parameters(), optimizer.parameters(), strict=True):
        mine.data[...] = theirs.data
    fresh.load_state_dict(optimizer.state_dict())
    others = [fresh, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    stepped(optimizer, first=4)
    for other in others:
        assert_alike(stepped(other, first=4), optimizer)


KEYS = {
    "Muon": ({"momentum_buffer": "bfloat16"}, {"momentum_buffer": "uint8", "momentum_buffer_scale": "float32"}),
    "Adafactor": ({"row_var": "bfloat16", "col_var": "bfloat16"}, None),
}


@pytest.mark.parametrize("name", KEYS)
def test_state_dicts_have_what_is_kept_and_memory_counts_it(name):
    states, codes = KEYS[name]
    own = {} if name == "Muon" else {"step": "float64"}
    cases = [({"master_weights": "split24"}, own | states | {"remainder": "int8"})]
    cases += [({"kahan": True}, own | states | {"compensation": "bfloat16"})]
    cases += [({"state_dtype": "float16"}, own | dict.fromkeys(states, "float16"))]
    if codes:
        cases.append(({"state_dtype": "int8", "master_weights": "float32"}, None))
        cases[-1] = (cases[-1][0], {"step": "float64", "master_param": "float32"} | codes)
    for options, kinds in cases:
        optimizer = stepped(started(name, shapes=SHAPES[1:2], **options))
        entry = optimizer.state_dict()["state"][0]
        assert {key: value.dtype.name for key, value in entry.items()} == kinds
        assert entry.get("step", 3) == 3  # however many launches a step is
        arrays = sum(value.nbytes for key, value in entry.items() if key != "step")
        found = optimizer.memory()
        assert found.masters + found.states + found.scales == arrays


def test_states_of_another_storage_are_converted_only_where_that_is_asked_for():
    saved = stepped(started("Adafactor", state_dtype="float32")).state_dict()
    narrow = started("Adafactor", state_dtype="bfloat16")
    with pytest.raises(TypeError, match=r"state_dtype='float32'.*convert=True"):
        narrow.load_state_dict(saved)
    assert narrow.state == {}
    narrow.load_state_dict(saved, convert=True)
    assert_same_bits(
        narrow.state[next(narrow.parameters())]["row_var"], saved["state"][0]["row_var"].astype("bfloat16")
    )


def test_random_moments_are_right_on_average():
    """The first step's row means are g^2; of 4,096 draws the mean is within 4 of its standard deviations."""
    square = 1 + 0.3 * 2**-7  # bfloat16 has 1, and 1 + 2^-7
    parameter = fusedopt.Parameter(np.ones((4096, 1), "bfloat16"), grad_dtype="float32")
    parameter.grad = np.full((4096, 1), np.sqrt(square), np.float32)
    optimizer = fusedopt.Adafactor([parameter], stochastic_rounding=True).step()
    moment = optimizer.state[parameter]["row_var"].astype(np.float64)
    assert set(np.unique(moment)) == {1, 1 + 2**-7}
    assert abs(moment.mean() - square) < 4 * 2**-7 * np.sqrt(0.3 * 0.7 / 4096)
    # 0.99 is rounded up in 0.44 of all cases: with the same random numbers, wherever the moment is.
    assert len(np.unique(parameter.data[moment > 1])) == 2


def test_each_moment_has_random_numbers_of_its_own():
    parameters = [fusedopt.Parameter(np.ones((64, 64), "bfloat16"), grad_dtype="float32") for _ in range(2)]
    for parameter in parameters:
        parameter.grad = np.full((64, 64), np.sqrt(1 + 2**-8), np.float32)
    state = fusedopt.Adafactor(parameters, stochastic_rounding=True).step().state
    assert len({state[p][name].tobytes() for p in parameters for name in ("row_var", "col_var")}) == 4


def test_a_step_is_two_launches_of_matrices_in_any_batches(device, monkeypatch):
    optimizers = [stepped(started("Muon", device.array, master_weights="split"), array=device.array)]
    surface = getattr(device.backend, "surface", None)
    if device.name == "emulated":
        before = len(surface.launches)
        optimizers[0].step()
        assert len(surface.launches) == before + 2  # of one batch
        stepped(optimizers[0], first=4, array=device.array)
    monkeypatch.setattr(launches, "BATCH", 30)  # the second matrix is alone
    optimizers.append(stepped(started("Muon", device.array, master_weights="split"), array=device.array))
    if device.name == "emulated":
        optimizers[1].step()
        stepped(optimizers[1], first=4, array=device.array)
    assert_alike(*optimizers)


def test_groups_of_all_types_step_beside_one_another():
    parameters = [fusedopt.Parameter(np.ones((4, 4), dtype)) for dtype in ("bfloat16", "float64", "float32")]
    groups = [{"params": parameters[:1], "master_weights": "split"}, {"params": parameters[1:], "lr": 0.5}]
    together = fusedopt.Muon(groups, lr=0.1)
    apart = [fusedopt.Parameter(np.ones((4, 4), dtype)) for dtype in ("bfloat16", "float64", "float32")]
    alone = [fusedopt.Muon(apart[:1], lr=0.1, master_weights="split"), *(fusedopt.Muon([p], lr=0.5) for p in apart[1:])]
    for _ in range(3):
        for p in (*parameters, *apart):
            p.grad = np.eye(4, dtype=p.dtype)
        for optimizer in (together, *alone):
            optimizer.step()
    for p, q in zip(parameters, apart, strict=True):
        assert_same_bits(p.data, q.data)


@pytest.mark.parametrize("name", KEYS)
def test_masters_start_again_from_what_was_written_into_parameters(name):
    ends = []
    for reload in (True, False):
        optimizer = stepped(started(name, master_weights="float32"))
        for parameter in optimizer.parameters():
            parameter.data[...] = 8
        if reload:
            optimizer.reload_masters()
        stepped(optimizer, 3, first=4)
        ends.append([float(np.abs(p.data.astype(float) - 8).max()) for p in optimizer.parameters()])
    assert max(ends[0]) < 1 < min(ends[1])


WRONG = {
    "int8 moments": ("Adafactor", {"state_dtype": "int8"}, ValueError, "few already.*state_dtype='bfloat16'"),
    "int8 rows": ("Adafactor", {"state_dtype": {"row_var": "int8"}}, ValueError, "few already"),
    "an unknown state": ("Adafactor", {"state_dtype": {"exp_avg": None}}, ValueError, "variance, row_var, col_var"),
    "masters of LBFGS": ("LBFGS", {"master_weights": "split"}, TypeError, "not for LBFGS.*AdamW or Muon"),
    "rows": ("SparseAdam", {"kahan": True}, ValueError, "not for SparseAdam.*LazyAdam or Adam, with dense gradients"),
}


@pytest.mark.parametrize(("name", "options", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_kept_is_an_error_with_what_to_choose(name, options, error, message):
    parameter = fusedopt.Parameter(np.ones((2, 2), "bfloat16"))
    with pytest.raises(error, match=message):
        getattr(fusedopt, name)([parameter], **options)
    assert parameter.owner is None


def test_a_master_for_float32_is_refused():
    with pytest.raises(ValueError, match="convert the parameters to bfloat16"):
        fusedopt.Muon([fusedopt.Parameter(np.ones((2, 2), np.float32))], master_weights="split")


@pytest.mark.parametrize(
    "options", [{"master_weights": "split"}, {"stochastic_rounding": True}, {"kahan": True}], ids=str
)
def test_lazyadams_rows_refuse_storages_and_change_nothing(options):
    parameters = [fusedopt.Parameter(np.ones((3, 2), "bfloat16")) for _ in range(2)]
    optimizer = fusedopt.LazyAdam(parameters, lr=0.1, **options)
    parameters[0].grad = np.ones((3, 2), "bfloat16")
    optimizer.step()
    before = everything(optimizer)
    parameters[1].grad = SparseGradient(np.array([1]), np.ones((1, 2), "bfloat16"))
    with pytest.raises(RuntimeError, match=f"{next(iter(options))}=.* is not for a SparseGradient.*dense gradients"):
        optimizer.step()
    after = everything(optimizer)
    assert before.keys() == after.keys()
    assert all(np.array_equal(value, after[key]) for key, value in before.items())


def test_lazyadams_rows_take_narrow_states():
    parameter = fusedopt.Parameter(np.ones((3, 2), np.float32))
    optimizer = fusedopt.LazyAdam([parameter], lr=0.1, state_dtype="bfloat16")
    parameter.grad = SparseGradient(np.array([1]), np.ones((1, 2), np.float32))
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].dtype == "bfloat16"
    assert (parameter.data[[0, 2]] == 1).all()
    assert (parameter.data[1] < 1).all()
