"""Worker processes that make up a world of torch.distributed over gloo, and the small training runs they do."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import multiprocessing
import multiprocessing.connection
import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from fusedopt.torch.storages import sent

STARTING = 60.0  # seconds until all processes are there: imports take five on an idle machine of two cores
WAITING = 10.0  # seconds for one collective, after which it raises
TIMEOUT = 15.0  # seconds for one call, after which all processes are stopped; the longest takes one
LEFT_BEHIND = 3.0  # seconds that the other processes get after one has raised: they may wait for it in a collective


# --- processes -------------------------------------------------------------------------------------------------------


class World:
    """Processes that all run one function, and keep running for the next one.

    Args:
        size: How many.
        directory: Where they meet.
    """

    def __init__(self, size: int, directory: Path) -> None:
        self.size, self._directory, self._starts = size, directory, 0
        self._processes: list[tuple[Any, multiprocessing.connection.Connection]] = []

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """`function(*args, **options)` in every process; returns what each returned, by rank.

        Raises:
            RuntimeError: One raised, died or took too long; all are stopped then, and the next call starts others.
        """
        if not self._processes:
            self._start()
            self._answers("starting", STARTING)
        for _, connection in self._processes:
            connection.send_bytes(pickle.dumps((function, args, options)))
        return self._answers(function.__name__, TIMEOUT)

    def _answers(self, to: str, limit: float) -> list[Any]:
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        waiting = {connection: rank for rank, (_, connection) in enumerate(self._processes)}
        deadline = time.monotonic() + limit
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                failures |= dict.fromkeys(waiting.values(), f"did not come back from {to} in time.")
                break
            for connection in ready:
                rank = waiting.pop(connection)
                try:
                    succeeded, answer = pickle.loads(connection.recv_bytes())
                except EOFError:
                    succeeded, answer = False, "died."
                (answers if succeeded else failures)[rank] = answer
            if failures:
                deadline = min(deadline, time.monotonic() + LEFT_BEHIND)
        if failures:
            self.stop()
            raise RuntimeError("\n".join(f"rank {rank}: {text}" for rank, text in sorted(failures.items())))
        return [answers[rank] for rank in range(self.size)]

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._starts += 1
        meeting = self._directory / f"{self.size} processes, start {self._starts}"
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, meeting.as_posix(), theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append((process, ours))

    def stop(self) -> None:
        """End the processes, whatever they are doing."""
        for process, connection in self._processes:
            connection.close()
            process.kill()
            process.join()
            process.close()
        self._processes = []


def _serve(rank: int, size: int, meeting: str, calls: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(meeting, size)
    store.set(f"{rank} is here", "")
    store.wait([f"{other} is here" for other in range(size)], datetime.timedelta(seconds=STARTING))
    waiting = datetime.timedelta(seconds=WAITING)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=waiting)
    calls.send_bytes(pickle.dumps((True, None)))
    while True:
        try:
            function, args, options = pickle.loads(calls.recv_bytes())
        except EOFError:  # the tests are over
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                answer = True, function(*args, **options)
        except BaseException:
            answer = False, traceback.format_exc()
        calls.send_bytes(pickle.dumps(answer))


# --- a model and its training ----------------------------------------------------------------------------------------


class Model(nn.Module):
    """Two processes share 5 rows and 3 rows unevenly; of 1 row and of 1 element the second gets nothing."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.norm = nn.LayerNorm(3, dtype=torch.float64)
        self.first = nn.Linear(3, 5, dtype=torch.float64)
        self.branch = nn.Linear(5, 5, dtype=torch.float64)
        self.last = nn.Linear(5, 1, dtype=torch.float64)
        for p in self.parameters():
            nn.init.normal_(p, std=0.5, generator=generator)

    @property
    def units(self) -> tuple[nn.Module, ...]:
        """What is sharded by itself."""
        return self.first, self.branch, self.last

    def forward(self, inputs: torch.Tensor, branch: bool) -> torch.Tensor:
        hidden = torch.tanh(self.first(self.norm(inputs)))
        if branch:
            hidden = hidden + self.branch(hidden)
        return self.last(hidden)


BRANCHES: Mapping[str, Callable[[int, int], bool]] = {
    "always": lambda step, half: True,
    "never": lambda step, half: False,
    "odd steps": lambda step, half: step % 2 == 1,
    "first half": lambda step, half: half == 0,
}


@dataclasses.dataclass(frozen=True)
class Training:
    """What does not depend on how many processes take part.

    Attributes:
        optimizer, options: The optimizer's class and what it is made with.
        branch: For which steps and halves of a batch the model's branch is used.
        clip: The largest norm of all gradients, or None.
        model: Makes a model.
    """

    optimizer: type[torch.optim.Optimizer]
    options: Mapping[str, Any]
    branch: str = "always"
    clip: float | None = None
    model: Callable[[], nn.Module] = Model

    def of(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """An optimizer."""
        return self.optimizer(params, **self.options)

    def run(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: Iterable[int],
        halves: Sequence[int] = (0, 1),
        before_step: Callable[[], Any] = lambda: None,
        around_step: Callable[[], Any] = contextlib.nullcontext,
    ) -> None:
        """Train on these halves of each step's batch; the learning rate falls from step to step."""
        for step in steps:
            for group in optimizer.param_groups:
                group["lr"] = self.options["lr"] * (1 - step / 20)
            optimizer.zero_grad()
            for half in halves:
                inputs, targets = batch(step, half)
                outputs = model(inputs, BRANCHES[self.branch](step, half))
                ((outputs - targets).square().mean() / len(halves)).backward()
            before_step()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            with around_step():
                optimizer.step()


def batch(step: int, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of half of a step's batch."""
    generator = torch.Generator().manual_seed(2 * step + half)
    inputs = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    return inputs, torch.randn(4, 1, dtype=torch.float64, generator=generator)


@dataclasses.dataclass
class Trained:
    """Parameters and their states, whole, by the parameters' names; and what else a test wants to know."""

    parameters: dict[str, torch.Tensor]
    states: dict[str, dict[str, torch.Tensor]]
    notes: Any = None


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, notes: Any = None) -> Trained:
    """What a model and its optimizer have now."""
    names = {p: name.removeprefix("module.") for name, p in model.named_parameters()}
    return Trained(
        {name: whole(p) for p, name in names.items()},
        {names[p]: {k: whole(v) for k, v in entry.items()} for p, entry in optimizer.state.items() if entry},
        notes,
    )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, with the parts that other processes have."""
    if isinstance(tensor, DTensor) and tensor.dtype == torch.int16:  # which gloo does not send
        return whole(sent("remainder", tensor)).view(torch.int16)
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def halves() -> tuple[int, ...]:
    """Which halves of the batches this process trains on."""
    return (dist.get_rank(),) if dist.get_world_size() == 2 else (0, 1)


# --- DDP and ZeroRedundancyOptimizer ---------------------------------------------------------------------------------


def ddp(training: Training, steps: Iterable[int], **options: Any) -> Trained:
    """Train under DDP; notes how many gradients are parts of larger memory, and how many are not 16-byte-aligned."""
    model = DistributedDataParallel(Model(), bucket_cap_mb=1e-4, **options)
    optimizer = training.of(model.parameters())
    training.run(model, optimizer, steps, halves())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    views = sum(g.untyped_storage().nbytes() > g.nbytes for g in gradients)
    return trained(model, optimizer, (views, sum(g.data_ptr() % 16 != 0 for g in gradients)))


def ddp_accumulating(training: Training, steps: Iterable[int]) -> Trained:
    """Train under DDP where each process takes both halves, one after the other, and gradients move at the second."""
    model = DistributedDataParallel(Model(), gradient_as_bucket_view=True)
    optimizer = training.of(model.parameters())
    order = halves() + tuple(1 - half for half in halves())
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = training.options["lr"] * (1 - step / 20)
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        for i, half in enumerate(order):
            inputs, targets = batch(step, half)
            with model.no_sync() if i == 0 else contextlib.nullcontext():
                ((model(inputs, True) - targets).square().mean() / 2).backward()
        optimizer.step()
    return trained(model, optimizer)


def zero(
    training: Training,
    steps: Iterable[int],
    directory: str,
    load: bool = False,
    save: bool = False,
    two_groups: bool = False,
    **options: Any,
) -> Trained:
    """Train with ZeroRedundancyOptimizer; notes its consolidated state dict, and the names that are updated here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of its own torch.jit.script
        from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DistributedDataParallel(training.model(), bucket_cap_mb=1e-4)
    weights = [p for p in model.parameters() if p.ndim == 2]
    first = weights if two_groups else model.parameters()
    optimizer = ZeroRedundancyOptimizer(first, optimizer_class=training.optimizer, **options, **training.options)
    if two_groups:
        optimizer.add_param_group({"params": [p for p in model.parameters() if p.ndim != 2], "weight_decay": 0.0})
    if load:  # in the middle of another training, so that there is state already
        training.run(model, optimizer, range(10, 12), halves())
        saved = torch.load(f"{directory}/checkpoint.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    training.run(model, optimizer, steps, halves())
    optimizer.consolidate_state_dict(to=0)
    state_dict = optimizer.state_dict() if dist.get_rank() == 0 else None
    if save and dist.get_rank() == 0:
        torch.save({"model": model.state_dict(), "optimizer": state_dict}, f"{directory}/checkpoint.pt")
    dist.barrier()
    names = {p: name.removeprefix("module.") for name, p in model.named_parameters()}
    result = trained(model, optimizer.optim, (state_dict, {names[p] for p in optimizer.optim.state}))
    assert type(optimizer.optim) is training.optimizer
    return result


# --- FSDP2 -----------------------------------------------------------------------------------------------------------


def sharded(model: nn.Module, **options: Any) -> nn.Module:
    """The model under FSDP2, a unit for each layer and one for the rest."""
    for layer in model.units:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def local_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """For each parameter: how many elements are here, and where a state is not sharded as it, which one."""
    found = {}
    for name, p in model.named_parameters():
        states = {k: v for k, v in optimizer.state.get(p, {}).items() if v.ndim or v.numel() != 1 or p.ndim == 0}
        wrong = [
            key
            for key, state in states.items()
            if not isinstance(state, DTensor)
            or state.placements != p.placements
            or state.shape != p.shape
            or state.to_local().shape != p.to_local().shape
        ]
        found[name] = p.to_local().numel(), sorted(states), wrong
    return found


def fsdp(training: Training, steps: Iterable[int], optimizer_first: bool = False, **options: Any) -> Trained:
    """Train under FSDP2; notes `local_parts` and the collectives that the optimizer's steps called.

    Args:
        training, steps: As elsewhere.
        optimizer_first: Make the optimizer before the parameters are sharded, and put them in its groups afterwards,
            in place, as accelerate does: first by placeholders, so that the whole parameters are freed.
        **options: For `fully_shard`.
    """
    model = Model()
    if optimizer_first:
        optimizer = training.of([{"params": model.parameters()}])
        names = {p: name for name, p in model.named_parameters()}
        order = [names[p] for p in optimizer.param_groups[0]["params"]]
        for i in range(len(order)):
            optimizer.param_groups[0]["params"][i] = torch.empty(1)
        del names
        sharded(model, **options)
        new = dict(model.named_parameters())
        for i, name in enumerate(order):
            optimizer.param_groups[0]["params"][i] = new[name]
    else:
        optimizer = training.of(sharded(model, **options).parameters())
    communication = CommDebugMode()
    collectives: list[int] = []

    @contextlib.contextmanager
    def counted() -> Any:
        with communication:
            yield
        collectives.append(communication.get_total_counts())

    training.run(model, optimizer, steps, halves(), around_step=counted)
    return trained(model, optimizer, (local_parts(model, optimizer), collectives))


def fsdp_beside_plain(training: Training, steps: Iterable[int]) -> Trained:
    """Train a model of which one layer alone is sharded; the others' gradients are averaged by hand."""
    model = Model()
    fully_shard(model.branch)
    optimizer = training.of(model.parameters())
    plain = [p for p in model.parameters() if not isinstance(p, DTensor)]

    def average() -> None:
        for p in plain:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()

    training.run(model, optimizer, steps, halves(), before_step=average)
    return trained(model, optimizer)


def scaled(training: Training, wrapper: str, steps: Iterable[int], halves: Sequence[int], unscale: bool) -> Trained:
    """Train with a GradScaler, where one element of one gradient overflows now and then, which one process alone has.

    Notes the scales, and the gradients that the last step left.
    """
    model = WRAPPERS[wrapper](Model())
    optimizer, scaler = training.of(model.parameters()), torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    scales = []
    for step in steps:
        optimizer.zero_grad()
        for half in halves:
            inputs, targets = batch(step, half)
            scaler.scale((model(inputs, True) - targets).square().mean() / len(halves)).backward()
        if step in (1, 4):
            gradient = model.last.bias.grad
            (gradient.to_local() if isinstance(gradient, DTensor) else gradient).fill_(torch.inf)
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return trained(model, optimizer, (scales, {name: whole(p.grad) for name, p in model.named_parameters()}))


def scaled_by_rank(training: Training, steps: Iterable[int], unscale: bool) -> Trained:
    """`scaled` under FSDP2, where each process has its half of the batches."""
    return scaled(training, "fsdp", steps, halves(), unscale)


# --- torch.distributed.checkpoint ------------------------------------------------------------------------------------

WRAPPERS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "ddp": DistributedDataParallel,
    "fsdp": sharded,
}
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save(training: Training, wrapper: str, steps: Iterable[int], directory: str, kind: str) -> None:
    """Train and write a checkpoint: each process its part, or the first one all of it."""
    model = WRAPPERS[wrapper](training.model())
    optimizer = training.of(model.parameters())
    training.run(model, optimizer, steps, halves())
    if kind == "sharded":
        model_state, state = get_state_dict(model, optimizer)
        dcp.save({"model": model_state, "optimizer": state}, checkpoint_id=directory)
        return
    model_state, state = get_state_dict(model, optimizer, options=FULL)
    if dist.get_rank() == 0:
        torch.save({"model": model_state, "optimizer": state}, f"{directory}/checkpoint.pt")
    dist.barrier()


def resume(
    training: Training,
    wrapper: str,
    steps: Iterable[int],
    directory: str,
    kind: str,
    taken: Iterable[int] = (),
) -> tuple[Trained, Trained]:
    """Load a checkpoint after having taken other steps, or none, and train on; returns how it was then, and is now."""
    model = WRAPPERS[wrapper](training.model())
    optimizer = training.of(model.parameters())
    training.run(model, optimizer, taken, halves())
    before = trained(model, optimizer).parameters
    if kind == "sharded":
        model_state, state = get_state_dict(model, optimizer)
        for name, value in trained(model, optimizer).parameters.items():
            assert torch.equal(value, before[name]), f"get_state_dict changed {name}"
        dcp.load({"model": model_state, "optimizer": state}, checkpoint_id=directory)
        options = StateDictOptions()
    else:
        broadcast = kind == "full, broadcast"
        saved = {"model": {}, "optimizer": {}}
        if dist.get_rank() == 0 or not broadcast:
            saved = torch.load(f"{directory}/checkpoint.pt", weights_only=True)
        model_state, state = saved["model"], saved["optimizer"]
        options = StateDictOptions(full_state_dict=True, cpu_offload=not broadcast, broadcast_from_rank0=broadcast)
    if (
        kind == "full, broadcast"
    ):  # set_state_dict leaves the model out where its state dict is empty, as here after rank 0
        set_model_state_dict(model, model_state, options=options)
        set_optimizer_state_dict(model, optimizer, state, options=options)
    else:
        set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=state, options=options)
    loaded = trained(model, optimizer)
    training.run(model, optimizer, steps, halves())
    return loaded, trained(model, optimizer)


# --- DTensors --------------------------------------------------------------------------------------------------------

PLACEMENTS = {
    "Shard(0)": Shard(0),
    "Shard(1)": Shard(1),
    "Replicate": Replicate(),
    "Partial": Partial(),
    "Partial avg": Partial("avg"),
}
SHAPES = ((5, 3), (4, 2), (1, 3))  # unevenly shared in one dimension or both, evenly, and with nothing for the second


def whole_gradient(number: int, step: int) -> torch.Tensor:
    """The gradient of one of the parameters of `SHAPES`; that of step -1 is where the parameter starts."""
    generator = torch.Generator().manual_seed(100 * (step + 1) + number)
    return torch.randn(SHAPES[number], dtype=torch.float64, generator=generator)


def placed_gradient(number: int, step: int, mesh: Any, placement: str) -> DTensor:
    """The same as a DTensor; the parts of sums and means differ between the processes."""
    gradient = whole_gradient(number, step)
    if not placement.startswith("Partial"):
        return distribute_tensor(gradient, mesh, [PLACEMENTS[placement]])
    share = (0.25, 0.75)[mesh.get_local_rank()] * (2 if "avg" in placement else 1)
    return DTensor.from_local(gradient * share, mesh, [PLACEMENTS[placement]], run_check=False)


def distributed_tensors(
    training: Training,
    steps: Iterable[int],
    placement: str,
    gradients: Sequence[str],
    first_only: bool = False,
    replaced: Sequence[int] = (),
) -> Trained:
    """Step with parameters and gradients made by hand.

    Args:
        training, steps: As elsewhere.
        placement: Of the parameters.
        gradients: Placements that the gradients have in turn; "alike" is that of the parameters.
        first_only: Only the gradient of the first parameter does, and the others have that of the parameters.
        replaced: Steps before which the first process, alone, puts copies in place of its states.
    """
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    starts = [whole_gradient(number, -1) for number in range(len(SHAPES))]
    model = nn.ParameterList([distribute_tensor(start, mesh, [PLACEMENTS[placement]]) for start in starts])
    optimizer = training.of(model.parameters())
    for step in steps:
        for number, p in enumerate(model):
            turn = "alike" if first_only and number else gradients[step % len(gradients)]
            p.grad = placed_gradient(number, step, mesh, placement if turn == "alike" else turn)
        if step in replaced and dist.get_rank() == 0:
            for entry in optimizer.state.values():
                entry |= {key: state.clone() for key, state in entry.items() if state.ndim}
        optimizer.step()
    return trained(model, optimizer, local_parts(model, optimizer))


def tensor_parallel(training: Training, steps: Iterable[int]) -> Trained:
    """Train a model whose layers are shared by columns and rows; all processes take all data.

    Notes the names of the parameters whose gradients are placed otherwise than they.
    """
    model = Model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {
        "norm": SequenceParallel(sequence_dim=0),
        "first": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
        "branch": ColwiseParallel(output_layouts=Replicate()),
        "last": RowwiseParallel(input_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)
    own_rows = PrepareModuleInput(input_layouts=(Replicate(), None), desired_input_layouts=(Shard(0), None))
    parallelize_module(model, mesh, own_rows)
    optimizer = training.of(model.parameters())
    elsewhere: set[str] = set()

    def look() -> None:
        for name, p in model.named_parameters():
            if p.grad.placements != p.placements:
                elsewhere.add(name)

    training.run(model, optimizer, steps, before_step=look)
    return trained(model, optimizer, elsewhere)
