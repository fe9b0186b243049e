"""Two real processes give what one gives with torch.optim: DDP, FSDP2, sharded checkpoints, ZeRO, tensor parallelism.

All on the CPU, over gloo. Each process trains on half of every batch and gradients are averaged, so one process with
whole batches is the oracle.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed_workers as workers
import pytest
import torch
from distributed_workers import Model, Trained, Training, World

import fusedopt.torch as ours
from cases import CASES
from cases import each_kind as each_case

# float64 throughout. A gradient that is summed in another order differs by some 1e-16; an Adam step makes that
# lr / eps = 10 times larger, eight steps make 1e-14 of it, and training may pass that on. 5e-16 was the most seen
# here. A parameter that was left out, or stepped with half of a gradient, is off by 1e-3.
TOLERANCE = 1e-13
STEPS = 6

# Distribution sees a rule's states and steps, not its equations: where much is combined, one rule of each kind will do.
each_kind = pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES if c.name in ("SGD", "AdamW")])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    """Worlds by the number of their processes; all tests here share them."""
    made = {size: World(size, tmp_path_factory.mktemp(f"world{size}")) for size in (1, 2)}
    yield made
    for world in made.values():
        world.stop()


@pytest.fixture
def two_processes(worlds: dict[int, World]) -> World:
    return worlds[2]


def training(case: Any, **settings: Any) -> Training:
    """A training run with our optimizer."""
    return Training(getattr(ours, case.name), case.main, **settings)


def with_torch(run: Training) -> Training:
    """The same run with torch's optimizer of that name."""
    return dataclasses.replace(run, optimizer=getattr(torch.optim, run.optimizer.__name__))


def in_one_process(run: Training, steps: int = STEPS) -> Trained:
    """The result with torch.optim, here."""
    model = Model()
    optimizer = with_torch(run).of(model.parameters())
    run.run(model, optimizer, range(steps))
    return workers.trained(model, optimizer)


def assert_same(got: Trained, expected: Trained, tolerance: float = TOLERANCE) -> None:
    """The same parameters and the same states, by the same names."""
    assert got.parameters.keys() == expected.parameters.keys()
    for name, value in expected.parameters.items():
        torch.testing.assert_close(
            got.parameters[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert {n: set(s) for n, s in got.states.items()} == {n: set(s) for n, s in expected.states.items()}
    for name, state in expected.states.items():
        for key, value in state.items():
            torch.testing.assert_close(
                got.states[name][key].double(),  # torch's steps are float32
                value.double(),
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, what=f"{name}, {key}": f"{what}: {text}",
            )


def assert_all_same(results: list[Trained], expected: Trained) -> None:
    """Every process has the same result as one alone."""
    for result in results:
        assert_same(result, expected)


@each_case
def test_every_optimizer_trains_in_two_processes_as_in_one(two_processes, case, tmp_path):
    run = training(case, branch="odd steps")
    expected = in_one_process(run)
    assert_all_same(two_processes(workers.ddp, run, range(STEPS), find_unused_parameters=True), expected)
    assert_all_same(two_processes(workers.fsdp, run, range(STEPS)), expected)


# --- DistributedDataParallel -----------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(
    ("branch", "options"),
    [
        ("always", {}),
        ("always", {"gradient_as_bucket_view": True}),
        ("always", {"static_graph": True}),
        ("never", {"find_unused_parameters": True}),
        ("never", {"static_graph": True, "gradient_as_bucket_view": True}),
        ("odd steps", {"find_unused_parameters": True}),
        ("odd steps", {"find_unused_parameters": True, "gradient_as_bucket_view": True}),
        ("first half", {"find_unused_parameters": True}),
    ],
)
def test_ddp_trains_as_one_process_does(two_processes, case, branch, options):
    run = training(case, branch=branch)
    results = two_processes(workers.ddp, run, range(STEPS), **options)
    assert_all_same(results, in_one_process(run))
    assert ("branch.weight" in results[0].states) == (branch != "never")
    for name, value in results[0].parameters.items():
        assert torch.equal(results[1].parameters[name], value), f"{name} differs between the processes"
    if options.get("gradient_as_bucket_view"):
        views, unaligned = results[0].notes
        assert views >= 6
        assert unaligned


@each_kind
def test_ddp_accumulates_gradients_over_two_batches(two_processes, case):
    run = training(case)
    assert_all_same(two_processes(workers.ddp_accumulating, run, range(STEPS)), in_one_process(run))


# --- ZeroRedundancyOptimizer -----------------------------------------------------------------------------------------


def with_names(state_dict: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """States by the parameters' names and groups with names, of a state dict with all parameters."""
    names = [name for name, _ in Model().named_parameters()]
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state_dict["param_groups"]]
    return {names[i]: entry for i, entry in state_dict["state"].items()}, groups


@each_case
@pytest.mark.parametrize("bucket_view", [False, True])
def test_zero_redundancy_trains_saves_and_resumes_as_one_process_does(two_processes, case, bucket_view, tmp_path):
    run = training(case)
    options = {"directory": str(tmp_path), "parameters_as_bucket_view": bucket_view}
    halfway = two_processes(workers.zero, run, range(4), save=True, **options)
    final = two_processes(workers.zero, run, range(4, 8), load=True, **options)
    for results, steps in ((halfway, 4), (final, 8)):
        expected = in_one_process(run, steps)
        own = [result.notes[1] for result in results]
        assert own[0].isdisjoint(own[1])
        assert own[0] | own[1] == expected.states.keys()
        assert all(own)
        for result in results:
            assert_same(Trained(result.parameters, {}), Trained(expected.parameters, {}))
        states, groups = with_names(results[0].notes[0])
        assert_same(Trained({}, states), Trained({}, expected.states))
        assert groups[0]["lr"] == run.options["lr"] * (1 - (steps - 1) / 20)


@each_kind
@pytest.mark.parametrize("bucket_view", [False, True])
def test_zero_redundancy_takes_another_group_later(two_processes, case, bucket_view, tmp_path):
    run = training(case)
    options = {"directory": str(tmp_path), "parameters_as_bucket_view": bucket_view, "two_groups": True}
    results = two_processes(workers.zero, run, range(STEPS), **options)
    model = Model()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2]},
        {"params": [p for p in model.parameters() if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = with_torch(run).of(groups)
    run.run(model, optimizer, range(STEPS))
    for result in results:
        assert_same(Trained(result.parameters, {}), Trained(workers.trained(model, optimizer).parameters, {}))


# --- FSDP2 -----------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("optimizer_first", [False, True], ids=["optimizer after", "optimizer before"])
@pytest.mark.parametrize(
    ("branch", "clip", "options"),
    [
        ("always", None, {}),
        ("always", 0.1, {"reshard_after_forward": False}),
        ("never", 0.1, {}),
        ("odd steps", None, {}),
    ],
)
def test_fsdp_trains_as_one_process_does(two_processes, case, branch, clip, options, optimizer_first):
    run = training(case, branch=branch, clip=clip)
    results = two_processes(workers.fsdp, run, range(STEPS), optimizer_first, **options)
    assert_all_same(results, in_one_process(run))
    for rank, result in enumerate(results):
        parts, collectives = result.notes
        assert parts["first.weight"][0] == (9, 6)[rank]  # uneven
        assert parts["last.weight"][0] == (5, 0)[rank]  # empty
        assert parts["last.bias"][0] == (1, 0)[rank]
        for name, (_, states, wrong) in parts.items():
            assert states == sorted(set(result.states.get(name, {})) - {"step"}), name
            assert not wrong, f"rank {rank}: {name}'s {wrong} are not sharded as it is"
        assert collectives == [0] * STEPS, "a step waits for other processes"


@each_kind
def test_one_optimizer_takes_sharded_and_plain_parameters(two_processes, case):
    run = training(case)
    assert_all_same(two_processes(workers.fsdp_beside_plain, run, range(STEPS)), in_one_process(run))


@each_kind
@pytest.mark.parametrize("unscale", [False, True])
def test_fsdp_skips_a_step_in_all_processes_where_one_has_an_overflow(two_processes, case, unscale):
    run = training(case)
    expected = workers.scaled(with_torch(run), "plain", range(STEPS), (0, 1), unscale)
    scales, gradients = expected.notes
    assert scales == [8.0, 4.0, 4.0, 8.0, 4.0, 4.0]
    for result in two_processes(workers.scaled_by_rank, run, range(STEPS), unscale):
        assert_same(result, expected)
        assert result.notes[0] == scales
        assert_same(Trained(result.notes[1], {}), Trained(gradients, {}))


# --- torch.distributed.checkpoint ------------------------------------------------------------------------------------

MOVES = (
    ("fsdp", 2, "fsdp", 1),
    ("fsdp", 1, "fsdp", 2),
    ("fsdp", 2, "fsdp", 2),
    ("fsdp", 2, "plain", 1),
    ("plain", 1, "fsdp", 2),
    ("fsdp", 2, "ddp", 2),
    ("ddp", 2, "fsdp", 2),
)
each_move = pytest.mark.parametrize(
    ("move", "kind"),
    [
        pytest.param(move, kind, id=f"{move[0]} {move[1]} to {move[2]} {move[3]}, {kind}")
        for move in MOVES
        for kind in ("sharded", "full", "full, broadcast")
    ],
)


def assert_resumes(
    worlds: dict[int, World],
    path: Path,
    saving: Training,
    resuming: Training,
    kind: str,
    move: tuple[str, int, str, int] = ("fsdp", 2, "fsdp", 2),
    **options: Any,
) -> None:
    """A run that is saved after four steps is at that point when loaded, and four steps later where it would be."""
    before, size_before, after, size_after = move
    worlds[size_before](workers.save, saving, before, range(4), str(path), kind)
    results = worlds[size_after](workers.resume, resuming, after, range(4, 8), str(path), kind, **options)
    assert_all_same([loaded for loaded, _ in results], in_one_process(saving, 4))
    assert_all_same([final for _, final in results], in_one_process(saving, 8))


@each_kind
@each_move
def test_a_checkpoint_goes_on_in_another_world(worlds, tmp_path, case, move, kind):
    run = training(case, clip=0.5)
    assert_resumes(worlds, tmp_path, run, run, kind, move)


@each_kind
@pytest.mark.parametrize("kind", ["sharded", "full", "full, broadcast"])
def test_a_checkpoint_replaces_the_state_of_an_optimizer_that_has_stepped(worlds, tmp_path, case, kind):
    run = training(case)
    assert_resumes(worlds, tmp_path, run, run, kind, taken=range(10, 13))


@each_kind
@pytest.mark.parametrize("saves", ["torch", "ours"])
@pytest.mark.parametrize("kind", ["sharded", "full"])
def test_a_checkpoint_goes_from_torch_to_here_and_back(worlds, tmp_path, case, saves, kind):
    here = training(case)
    saving, resuming = (with_torch(here), here) if saves == "torch" else (here, with_torch(here))
    assert_resumes(worlds, tmp_path, saving, resuming, kind)


# --- DTensors --------------------------------------------------------------------------------------------------------


def stepped_with_whole_tensors(run: Training) -> Trained:
    """What torch.optim makes of the parameters and gradients of `workers.distributed_tensors`."""
    params = torch.nn.ParameterList([workers.whole_gradient(i, -1) for i in range(len(workers.SHAPES))])
    optimizer = with_torch(run).of(params.parameters())
    for step in range(STEPS):
        for i, p in enumerate(params):
            p.grad = workers.whole_gradient(i, step)
        optimizer.step()
    return workers.trained(params, optimizer)


@each_kind
@pytest.mark.parametrize("placement", ["Shard(0)", "Shard(1)", "Replicate"])
@pytest.mark.parametrize(
    "gradients",
    [
        ["Shard(0)"],
        ["Shard(1)"],
        ["Replicate"],
        ["Partial"],
        ["Partial avg"],
        ["alike", "alike", "Partial"],
        ["alike", "Replicate", "Shard(0)", "Shard(1)"],
    ],
    ids=", ".join,
)
def test_a_gradient_may_be_placed_otherwise_than_its_parameter(two_processes, case, placement, gradients):
    run = training(case)
    results = two_processes(workers.distributed_tensors, run, range(STEPS), placement, gradients)
    assert_all_same(results, stepped_with_whole_tensors(run))
    assert not [wrong for result in results for *_, wrong in result.notes.values() if wrong]


@each_kind
def test_what_one_process_alone_must_read_anew_leaves_the_others_in_step_with_it(two_processes, case):
    run, gradients = training(case), ["alike", "alike", "Partial"]
    options = {"first_only": True, "replaced": (2, 4)}
    results = two_processes(workers.distributed_tensors, run, range(STEPS), "Replicate", gradients, **options)
    assert_all_same(results, stepped_with_whole_tensors(run))


@each_kind
@pytest.mark.parametrize("clip", [None, 0.1])
def test_tensor_parallel_layers_train_as_one_process_does(two_processes, case, clip):
    run = training(case, clip=clip)
    results = two_processes(workers.tensor_parallel, run, range(STEPS))
    assert_all_same(results, in_one_process(run))
    assert "norm.weight" in results[0].notes  # a sum over the processes that is still to be done


# --- a procedure -----------------------------------------------------------------------------------------------------

ADAFACTOR = Training(ours.Adafactor, {"lr": 0.05, "weight_decay": 0.1})


def test_adafactors_means_are_those_of_whole_tensors(two_processes):
    """torch's raises for a sharded matrix, and takes a sharded vector's part for all of it."""
    assert_all_same(two_processes(workers.fsdp, ADAFACTOR, range(STEPS)), in_one_process(ADAFACTOR))


@pytest.mark.parametrize("kind", ["sharded", "full", "full, broadcast"])
def test_adafactor_goes_on_from_a_checkpoint(worlds, tmp_path, kind):
    assert_resumes(worlds, tmp_path, ADAFACTOR, ADAFACTOR, kind)
