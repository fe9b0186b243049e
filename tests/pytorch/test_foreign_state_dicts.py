"""Coming from another library in the middle of a training: its state dict loads, and steps go on from what it holds.

bitsandbytes and torchao are asked themselves where they are installed; they need no GPU.
"""

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import fusedopt.torch as ours
from foreign_dicts import of_apex, of_bitsandbytes

SHAPES = [(64, 72), (5,)]  # in 8 bits, and too small for them

# Both packages warn of their own affairs. What is left out of a state dict is named, as for any.
pytestmark = [
    pytest.mark.filterwarnings("ignore", "error:::fusedopt"),
    pytest.mark.filterwarnings("ignore:param group . of the state dict lacks"),
]


def leaves(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]


def take_steps(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for seed in steps:
        generator = torch.Generator().manual_seed(seed)
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def copies(params: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.detach().clone().requires_grad_() for p in params]


def saved_and_loaded(state_dict: dict[str, Any]) -> Any:
    """What a file makes of it."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def assert_goes_on(theirs: torch.optim.Optimizer, kind: Any, decoded: Callable[[Any, str], torch.Tensor]) -> None:
    """After loading, states are the decoded ones to the bit, and steps those of ours from these in float32."""
    params = theirs.param_groups[0]["params"]
    first, second = copies(params), copies(params)
    optimizer, reference = kind(first), kind(second)
    optimizer.load_state_dict(saved_and_loaded(theirs.state_dict()))
    names = [state.name for state in kind.rule.all_states()]
    for p, q, own in zip(first, second, params, strict=True):
        loaded = optimizer.state[p]
        kept = [name for name in names if name in loaded]
        for name in kept:
            expected = decoded(theirs.state[own], name)
            if name == "exp_avg" and not torch.equal(expected, loaded[name]):  # in few bits, second moments become 0
                expected = torch.where(decoded(theirs.state[own], "exp_avg_sq") == 0, 0, expected)
            assert loaded[name].dtype == torch.float32
            assert torch.equal(loaded[name], expected)
        reference.state[q] = {key: value.clone() for key, value in loaded.items()}
    for group in reference.param_groups:
        group |= {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    take_steps(optimizer, range(3, 5))
    take_steps(reference, range(3, 5))
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)


# --- bitsandbytes


@pytest.fixture(scope="module")
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes")


BITSANDBYTES = {
    "AdamW8bit": (ours.AdamW, {"weight_decay": 0.1}),
    "PagedAdamW8bit": (ours.AdamW, {}),
    "AdamW": (ours.AdamW, {}),
    "LAMB8bit": (ours.LAMB, {}),
    "Lion8bit": (ours.Lion, {"betas": (0.8, 0.95)}),
    "SGD8bit": (ours.SGD, {"lr": 0.1, "momentum": 0.8}),
    "RMSprop8bit": (ours.RMSprop, {"alpha": 0.8}),
    "Adagrad8bit": (ours.Adagrad, {}),
}


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_a_training_goes_on_from_bitsandbytes(name, bitsandbytes):
    kind, options = BITSANDBYTES[name]
    theirs = getattr(bitsandbytes.optim, name)(leaves(), **options)
    take_steps(theirs, range(3))

    def decoded(entry: dict[str, Any], name: str) -> torch.Tensor:
        i = 2 if name == "exp_avg_sq" else 1
        kept, absmax, qmap = (entry.get(f"{what}{i}") for what in ("state", "absmax", "qmap"))
        if kept.dtype == torch.float32:
            return kept
        block = {"code": qmap, "blocksize": 256}
        return bitsandbytes.functional.dequantize_blockwise(kept, absmax=absmax, **block).to(torch.float32)

    assert_goes_on(theirs, kind, decoded)


def test_a_step_after_bitsandbytes_in_float32_is_its_own(bitsandbytes):
    """With states in float32 the two differ by rounding, and in when the decay comes: before the step, there after."""
    theirs = bitsandbytes.optim.AdamW32bit(leaves(), lr=1e-3, weight_decay=0.1)
    take_steps(theirs, range(3))
    mine = copies(theirs.param_groups[0]["params"])
    optimizer = ours.AdamW(mine)
    optimizer.load_state_dict(theirs.state_dict())
    take_steps(optimizer, range(3, 6))
    take_steps(theirs, range(3, 6))
    for p, q in zip(mine, theirs.param_groups[0]["params"], strict=True):
        # lr^2 weight_decay an element and step, 3e-7 in all, and two roundings of p a step
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


# --- torchao


@pytest.fixture
def torchao() -> Iterator[Any]:
    """Its optimizers, uncompiled: a compiler would take a minute."""
    optim = pytest.importorskip("torchao.optim")
    with mock.patch("torch.compile", lambda function, **_: function):
        yield optim


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_a_training_goes_on_from_torchao(name, torchao):
    theirs = getattr(torchao, name)(leaves(), lr=1e-3, weight_decay=0.1, block_size=128)
    take_steps(theirs, range(3))
    assert hasattr(theirs.state[theirs.param_groups[0]["params"][0]]["exp_avg"], "codes")

    def decoded(entry: dict[str, Any], name: str) -> torch.Tensor:
        return entry[name].dequantize() if hasattr(entry[name], "codes") else entry[name]

    assert_goes_on(theirs, ours.AdamW, decoded)


# --- by hand


def as_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_tensors(item) for key, item in value.items()}
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("block", [256, 2048, None])
def test_tensors_in_8_bits_are_decoded_on_the_host(block):
    saved, decoded = of_bitsandbytes(SHAPES, block=block)
    params = leaves(torch.bfloat16)
    optimizer = ours.AdamW(params, state_dtype="float32")
    optimizer.load_state_dict({**saved, "state": as_tensors(saved["state"])})
    for p, states in zip(params, decoded, strict=True):
        for name, expected in zip(("exp_avg", "exp_avg_sq"), states, strict=True):
            assert optimizer.state[p][name].dtype == torch.float32
            assert np.array_equal(optimizer.state[p][name].numpy(), expected)


def test_apex_and_deepspeed_dicts_of_tensors_load():
    """capturable=True: learning rate and step of the group are tensors of one element."""
    capturable = {"lr": torch.tensor(0.01), "step": torch.tensor([3], dtype=torch.int32)}
    for steps, options in (({}, capturable), ({0: 0, 1: 3}, {"step": 0})):
        saved = as_tensors(of_apex(SHAPES, **options))
        for i, step in steps.items():
            saved["state"][i]["step"] = step
        params = leaves()
        optimizer = ours.AdamW(params)
        optimizer.load_state_dict(saved)
        take_steps(optimizer, range(1))
        assert [float(optimizer.state[p]["step"]) for p in params] == [4.0, 4.0]


def test_a_foreign_state_dict_that_does_not_fit_changes_nothing():
    saved, _ = of_bitsandbytes(SHAPES)
    saved = {**saved, "state": as_tensors(saved["state"])}
    optimizer = ours.Lion(leaves())
    take_steps(optimizer, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="state1 and state2, and Lion keeps exp_avg"):
        optimizer.load_state_dict(saved)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_decoded_states_are_narrowed_only_where_that_is_asked_for(state_dtype):
    saved, decoded = of_bitsandbytes(SHAPES)
    saved = {**saved, "state": as_tensors(saved["state"])}
    params = leaves(torch.bfloat16)
    optimizer = ours.AdamW(params, state_dtype=state_dtype)
    with pytest.raises(TypeError, match=r"exp_avg has dtype float32 and this optimizer keeps .*convert=True"):
        optimizer.load_state_dict(saved)
    assert not optimizer.state
    optimizer.load_state_dict(saved, convert=True)
    entry = optimizer.state[params[0]]
    assert entry["exp_avg"].dtype == {"bfloat16": torch.bfloat16, "int8": torch.uint8}[state_dtype]
    if state_dtype == "bfloat16":
        assert torch.equal(entry["exp_avg"], torch.from_numpy(decoded[0][0]).to(torch.bfloat16))
    take_steps(optimizer, range(1))


@pytest.mark.parametrize("master_weights", ["split", "float32"])
def test_masters_of_transformer_engine_are_those_that_steps_go_on_from(master_weights):
    """Its remainder and ours make one float32 of a bfloat16, to the bit."""
    masters = leaves()
    words = [master.detach().view(torch.int32) for master in masters]
    low = [(word & 0xFFFF).to(torch.int16) for word in words]
    high = [((word >> 16) + (rest < 0)).to(torch.int16) for word, rest in zip(words, low, strict=True)]
    params = [bits.view(torch.bfloat16).clone().requires_grad_() for bits in high]
    saved = as_tensors(of_apex(SHAPES))
    optimizer = ours.AdamW(masters)
    optimizer.load_state_dict(saved)
    for i, master in enumerate(low if master_weights == "split" else masters):
        saved["state"][i]["master_param"] = master.detach().clone()
    split = ours.AdamW(params, master_weights=master_weights, state_dtype="float32")
    split.load_state_dict(saved)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        for p, master in zip(params, masters, strict=True):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            master.grad = p.grad.float()
        split.step()
        optimizer.step()
    for p, master in zip(params, masters, strict=True):
        if master_weights == "split":
            rest = split.state[p]["remainder"]
            whole = (p.detach().view(torch.int16).to(torch.int32) - (rest < 0).to(torch.int32) << 16) + (
                rest.to(torch.int32) & 0xFFFF
            )
            assert torch.equal(whole.view(torch.float32), master)
        else:
            assert torch.equal(split.state[p]["master_param"], master)
