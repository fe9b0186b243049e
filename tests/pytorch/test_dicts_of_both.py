"""State dicts of narrow storages that go from tensors to arrays over NumPy and back."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from storage_workers import STORAGES
from test_torch_storages import OPTIONS, contents, made, params, resumed, step
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import fusedopt
import fusedopt.torch

ORDER = ((16, 32, 3, 3), (65, 128))


def in_numpy(value):
    """A tensor as NumPy has it, its elements lying as they do; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.bfloat16:
        return value.detach().view(torch.int16).numpy().view("bfloat16")
    return value.detach().numpy()


def in_torch(value):
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(value.copy())


def mapped(change, saved):
    """A state dict with its arrays changed."""
    state = {i: {key: change(value) for key, value in entry.items()} for i, entry in saved["state"].items()}
    return {"state": state, "param_groups": saved["param_groups"]}


def over_arrays(optimizer, name, **options):
    """The core's optimizer over the same values."""
    some = [fusedopt.Parameter(in_numpy(p).copy()) for p in params(optimizer)]
    return getattr(fusedopt, name)(some, **OPTIONS[name], **options)


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize("storage", ["split", "split24, int8"])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_state_dict_goes_from_torch_to_arrays_and_back_to_the_bit(name, storage, convert):
    shapes = ((65, 128), (7,), ())
    first = made(name, storage, shapes)
    step(first, range(2))
    core = over_arrays(first, name, **STORAGES[storage])
    core.load_state_dict(mapped(in_numpy, first.state_dict()), convert=convert)
    second = resumed(first, made(name, storage, shapes))
    second.load_state_dict(mapped(in_torch, core.state_dict()), convert=convert)
    assert contents(second) == contents(first)
    step(first, range(2, 4))
    step(second, range(2, 4))
    assert contents(second) == contents(first)


def test_codes_in_another_order_are_refused_over_arrays_and_read_in_it_where_they_are_converted():
    first = made("AdamW", "split24, int8", ((16, 32, 3, 3), (65, 128)))
    step(first, range(3))
    saved = mapped(in_numpy, first.state_dict())
    assert not saved["state"][0]["exp_avg"].flags.c_contiguous
    core = over_arrays(first, "AdamW", **STORAGES["split24, int8"])
    with pytest.raises(ValueError, match=r"exp_avg .* in another order.*convert=True"):
        core.load_state_dict(saved)
    assert not core.state_dict()["state"]
    wide = {"master_weights": "split24", "state_dtype": "float32"}
    core, other = over_arrays(first, "AdamW", **wide), made("AdamW", None, ((16, 32, 3, 3), (65, 128)), **wide)
    resumed(first, other, convert=True)
    core.load_state_dict(saved, convert=True)
    for ours, theirs in zip(core.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_array_equal(ours[key], theirs[key].numpy())
    core = over_arrays(first, "AdamW", **STORAGES["split24, int8"])
    core.load_state_dict(saved, convert=True)
    step_of = core.state_dict()["state"][0]["step"]
    assert step_of == 3


@pytest.fixture
def mesh():
    """Two processes, of which this is one."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield DeviceMesh("cpu", [0, 1])
    dist.destroy_process_group()


@pytest.mark.parametrize("convert", [False, True])
def test_codes_that_no_shard_can_read_say_how_they_are_brought_there(mesh, convert):
    first = made("AdamW", "split24, int8", ((40, 130),))
    step(first, range(2))
    shared = [torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in params(first)]
    sharded = fusedopt.torch.AdamW(shared, **STORAGES["split24, int8"])
    with pytest.raises(ValueError, match=r"'exp_avg' in 8 bits, .* over plain tensors first, .* state_dtype='float32'"):
        sharded.load_state_dict(first.state_dict(), convert=convert)
    assert not sharded.state
