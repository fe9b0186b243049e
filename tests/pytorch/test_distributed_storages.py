"""Two real processes keep masters, remainders and 8-bit states as one does, and hand them over, to the bit."""

from collections.abc import Iterator

import pytest
import storage_workers as stored
import torch
from distributed_workers import Trained, World, resume, save, zero
from storage_workers import DRAWS, STORAGES, Stored

import fusedopt.torch as ours

each_storage = pytest.mark.parametrize("name", STORAGES)
STEPS = 4


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    made = {size: World(size, tmp_path_factory.mktemp(f"world{size}")) for size in (1, 2)}
    yield made
    for world in made.values():
        world.stop()


def training(name: str) -> Stored:
    return Stored(ours.AdamW, {"lr": 1e-2, "weight_decay": 0.1, **STORAGES[name]})


def alone(run: Stored, steps: int) -> Trained:
    return stored.steps_of(run, "plain", range(steps))


def assert_same_bits(got: Trained, expected: Trained, scales: bool = True) -> None:
    """The same parameters and states. (Scales of a sharded parameter are in rows.)"""
    for name, value in expected.parameters.items():
        assert torch.equal(got.parameters[name], value), name
    assert got.states.keys() == expected.states.keys()
    for name, state in expected.states.items():
        assert got.states[name].keys() == state.keys()
        for key, value in state.items():
            there = got.states[name][key].to(value.dtype) if key == "step" else got.states[name][key]
            assert there.dtype == value.dtype, f"{name}: {key}"
            assert torch.equal(there.reshape(value.shape), value), f"{name}: {key}"


@each_storage
def test_sharded_parameters_keep_their_arrays_as_one_process_does(worlds, name):
    run = training(name)
    results = worlds[2](stored.steps_of, run, "fsdp", range(STEPS))
    expected = alone(run, STEPS)
    for result in results:
        assert all(not wrong for _, wrong in result.notes)
        if name not in DRAWS:
            assert_same_bits(result, expected)
    if name == "split24, int8":
        in_codes = [dtypes["exp_avg"] == torch.uint8 for dtypes, _ in results[0].notes]
        assert in_codes == [True, False, True, False]  # of whole blocks in each row; or small
        assert results[0].states["all.0"]["exp_avg_scale"].shape == (65, 1)


@pytest.mark.parametrize("name", DRAWS)
def test_random_rounding_of_a_shard_is_that_of_a_parameter_of_its_own(worlds, name):
    run = training(name)
    result = worlds[2](stored.steps_of, run, "fsdp", range(STEPS))[0]
    keys = [key for key in result.states["all.0"] if key != "step"]
    for rank in (0, 1):
        alone = stored.parts_by_themselves(run, range(STEPS), rank)
        whole = [result.parameters["all.0"], *(result.states["all.0"][key] for key in keys)]
        for key, got, expected in zip(["parameter", *keys], whole, alone, strict=True):
            assert torch.equal(got.chunk(2)[rank].reshape(expected.shape), expected), key


@pytest.mark.parametrize("name", ["split", "split24, int8"])
def test_replicas_stay_equal(worlds, name):
    run = training(name)
    for result in worlds[2](stored.steps_of, run, "ddp", range(STEPS)):
        assert_same_bits(result, alone(run, STEPS))


@each_storage
@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (2, 1, "sharded"),
        (1, 2, "sharded"),
        (2, 2, "sharded"),
        (2, 2, "full"),
        (2, 2, "full, broadcast"),
    ],
)
def test_a_checkpoint_goes_on_in_another_world_to_the_bit(worlds, tmp_path, name, before, after, kind):
    run = training(name)
    worlds[before](save, run, "fsdp", range(2), str(tmp_path), kind)
    saved = worlds[before](stored.steps_of, run, "fsdp", range(2))[0]
    on = worlds[after](resume, run, "fsdp", range(2, STEPS), str(tmp_path), kind, taken=range(7, 8))
    for loaded, _ in on:
        assert_same_bits(loaded, saved)
    if name not in DRAWS or before == after == 2:
        expected = worlds[before](stored.steps_of, run, "fsdp", range(STEPS))[0]
        for _, final in on:
            assert_same_bits(final, expected)


@pytest.mark.parametrize("kind", ["sharded", "full"])
@pytest.mark.parametrize(("before", "after"), [("plain", "fsdp"), ("fsdp", "plain")])
def test_a_remainder_goes_from_plain_tensors_to_sharded_ones_and_back(worlds, tmp_path, before, after, kind):
    run = training("split")
    worlds[1 if before == "plain" else 2](save, run, before, range(2), str(tmp_path), kind)
    for _, final in worlds[1 if after == "plain" else 2](resume, run, after, range(2, STEPS), str(tmp_path), kind):
        assert_same_bits(final, alone(run, STEPS))


@pytest.mark.parametrize("name", ["split", "split24, int8"])
def test_zero_redundancy_resumes_to_the_bit(worlds, tmp_path, name):
    run = training(name)
    whole = worlds[2](zero, run, range(STEPS), str(tmp_path))
    worlds[2](zero, run, range(2), str(tmp_path), save=True)
    for result, expected in zip(worlds[2](zero, run, range(2, STEPS), str(tmp_path), load=True), whole, strict=True):
        assert_same_bits(result, expected)
