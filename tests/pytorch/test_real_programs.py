"""Programs of Hugging Face, accelerate and Lightning: with the import changed, each does what it did, and resumes.

Every model is made from a config and every example by a seed, so that nothing is downloaded.
"""

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import fusedopt.torch as ours

# The three packages warn about their own affairs, such as how few workers a loader has, and of what torch will drop.
# What stays an error concerns the optimizer: warnings out of fusedopt, and torch's about a scheduler that saw no step.
pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore", "error:::fusedopt", "error:Detected call of"),
]

VOCABULARY, LENGTH, EXAMPLES, BATCH, ACCUMULATED = 31, 12, 16, 2, 2
EPOCHS, TOTAL = 3, 12  # optimizer steps: 4 an epoch
WARMUP, CLIP = 3, 0.5  # shorter than any gradient of the language model
# An epsilon of this size bounds what a step passes on of a gradient's rounding error: lr / eps = 10 times.
OPTIONS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}

Parameters = dict[str, torch.Tensor]


def examples() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(VOCABULARY, (EXAMPLES, LENGTH), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def language_model(seed: int, width: int = 16) -> Any:
    """GPT-2 with two layers of this width; its output layer is its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    size = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": width, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**size, **dropout, bos_token_id=0, eos_token_id=0))


def parameters_of(model: torch.nn.Module) -> Parameters:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- the programs: each takes the module to import from, a folder, and whether to stop there or to resume from it


def hugging_face(optim: ModuleType, folder: Path, stop: bool, resume: bool, by_class: bool, bf16: bool) -> Parameters:
    """transformers.Trainer; it stops and resumes in the middle of an epoch."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, get_linear_schedule_with_warmup

    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = True

    model = language_model(seed=int(resume))
    if by_class:
        choice: dict[str, Any] = {"optimizer_cls_and_kwargs": (optim.AdamW, OPTIONS)}
    else:
        optimizer = optim.AdamW(model.named_parameters(), **OPTIONS)
        choice = {"optimizers": (optimizer, get_linear_schedule_with_warmup(optimizer, WARMUP, TOTAL))}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=TOTAL,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATED,
        max_grad_norm=CLIP,
        weight_decay=OPTIONS["weight_decay"],  # over that of the class's options, in the groups that the Trainer makes
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        save_steps=6,
        bf16=bf16,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    callbacks = [Stop()] if stop else []
    trainer = Trainer(model, arguments, train_dataset=examples(), callbacks=callbacks, **choice)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6") if resume else None)
    return parameters_of(trainer.model)


def accelerated(optim: ModuleType, folder: Path, stop: bool, resume: bool, precision: str) -> Parameters:
    """A loop of one's own around accelerate; it stops and resumes in the middle of an epoch."""
    from accelerate import Accelerator
    from transformers import get_cosine_schedule_with_warmup

    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=ACCUMULATED)
    model = language_model(seed=int(resume))
    optimizer = optim.AdamW(model.parameters(), **OPTIONS)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, TOTAL)
    loader = torch.utils.data.DataLoader(examples(), BATCH)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    done = 0
    if resume:
        accelerator.load_state(str(folder))
        done = 6 * ACCUMULATED
    while done < EPOCHS * len(loader):
        for batch in accelerator.skip_first_batches(loader, done % len(loader)):
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            done += 1
            if stop and done == 6 * ACCUMULATED:
                accelerator.save_state(str(folder))
                return {}
    return parameters_of(accelerator.unwrap_model(model))


def automatic(
    optim: ModuleType, folder: Path, stop: bool, resume: bool, precision: str, without_loss: tuple[int, ...] = ()
) -> Parameters:
    """Lightning that steps by itself, through closures; OneCycleLR moves betas too."""
    import lightning

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = language_model(seed=int(resume))

        def training_step(self, batch: Any, number: int) -> Any:
            return None if number in without_loss else self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            # Among torch's own, the fused one alone computes a step of bfloat16 parameters in float32, as ours does.
            optimizer = optim.AdamW(self.parameters(), **OPTIONS, fused=True if precision == "bf16-true" else None)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, OPTIONS["lr"], total_steps=TOTAL)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    settings = {"gradient_clip_val": CLIP, "accumulate_grad_batches": ACCUMULATED, "precision": precision}
    return fitted(Model(), examples(), folder, stop, resume, **settings)


def manual(optim: ModuleType, folder: Path, stop: bool, resume: bool) -> Parameters:
    """Lightning that leaves stepping to the module: a generator and its critic, with an optimizer each."""
    import lightning
    from torch.nn.functional import softplus

    class Adversaries(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            torch.manual_seed(int(resume))
            self.generator = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
            self.critic = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

        def training_step(self, batch: Any, number: int) -> None:
            real, noise = batch[:, :8], batch[:, 8:]
            losses = (
                lambda: softplus(-self.critic(self.generator(noise))).mean(),
                lambda: (softplus(-self.critic(real)) + softplus(self.critic(self.generator(noise)))).mean(),
            )
            for optimizer, schedule, loss in zip(self.optimizers(), self.lr_schedulers(), losses):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(loss())
                self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
                optimizer.step()
                schedule.step()
                self.untoggle_optimizer(optimizer)

        def configure_optimizers(self) -> Any:
            optimizers = [
                optim.AdamW(self.generator.parameters(), **OPTIONS),
                optim.SGD(self.critic.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
            ]
            return optimizers, [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=WARMUP) for o in optimizers]

    numbers = torch.randn(EXAMPLES, LENGTH, generator=torch.Generator().manual_seed(1))
    return fitted(Adversaries(), list(numbers), folder, stop, resume)


def fitted(module: Any, data: Any, folder: Path, stop: bool, resume: bool, **settings: Any) -> Parameters:
    """Lightning stops and resumes between epochs, since its loaders start each epoch anew."""
    import lightning

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2 if stop else EPOCHS,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, BATCH), ckpt_path=folder / "stopped.ckpt" if resume else None)
    if stop:
        trainer.save_checkpoint(folder / "stopped.ckpt")
    return parameters_of(module)


@dataclasses.dataclass(frozen=True)
class Program:
    """A row of the table.

    Attributes:
        run: The program.
        settings: What it is told further.
        tolerance: How far its parameters may end from those with torch.optim, relative to max(1, |p|).
        steps: How many steps each class takes.
    """

    run: Callable[..., Parameters]
    settings: dict[str, Any]
    tolerance: float
    steps: dict[str, int] = dataclasses.field(default_factory=lambda: {"AdamW": TOTAL})

    def __call__(self, optim: ModuleType, folder: Path, stop: bool = False, resume: bool = False) -> Parameters:
        return self.run(optim, folder, stop, resume, **self.settings)


# What two ways to round a step come to in 12 steps, their gradients' answer to it included, is 5e-7 here.
FLOAT32 = 2e-6
# A weight that float32 rounds elsewhere may lie on the edge between two bfloat16 values, which differ by 2^-8 of it, or
# 8e-5 at its usual 0.02: the gradients that autocast computes with it move by some 1e-5, of which lr / eps passes on 10
# times as much. It is 4e-5 here; to forget the weight decay would be 6e-3.
AUTOCAST = 2e-4
BFLOAT16 = 2**-7  # one step of bfloat16 at 1; where the processors that torch has code for agree, nothing differs
PROGRAMS = {
    "Trainer, an optimizer": Program(hugging_face, {"by_class": False, "bf16": False}, FLOAT32),
    "Trainer, a class": Program(hugging_face, {"by_class": True, "bf16": False}, FLOAT32),
    "Trainer, bf16": Program(hugging_face, {"by_class": False, "bf16": True}, AUTOCAST),
    "accelerate": Program(accelerated, {"precision": "no"}, FLOAT32),
    "accelerate, bf16": Program(accelerated, {"precision": "bf16"}, AUTOCAST),
    "Lightning": Program(automatic, {"precision": "32-true"}, FLOAT32),
    "Lightning, bf16-mixed": Program(automatic, {"precision": "bf16-mixed"}, AUTOCAST),
    "Lightning, bf16-true": Program(automatic, {"precision": "bf16-true"}, BFLOAT16),
    "Lightning, steps without loss": Program(automatic, {"precision": "32-true", "without_loss": (1, 4, 5)}, FLOAT32),
    "Lightning, manual": Program(manual, {}, FLOAT32, {"AdamW": 24, "SGD": 24}),
}
each_program = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own() -> Iterator[None]:
    """accelerate keeps the first Accelerator's settings for the process, and the Trainer writes to the environment.

    One thread, since a second one only waits in models of this size.
    """
    threads = torch.get_num_threads()
    with mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
        from accelerate.state import AcceleratorState, GradientState

        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture
def stepped() -> Iterator[Counter[type]]:
    """How often optimizers of each class have stepped, which shows that no program took one of its own."""
    steps: Counter[type] = Counter()
    hook = register_optimizer_step_post_hook(lambda o, *_: steps.update([type(o)]))
    yield steps
    hook.remove()


def steps_by_name(stepped: Counter[type], optim: ModuleType) -> dict[str, int]:
    assert all(kind is getattr(optim, kind.__name__) for kind in stepped), stepped
    return {kind.__name__: count for kind, count in stepped.items()}


def assert_within(found: Parameters, expected: Parameters, tolerance: float) -> None:
    """A tolerance of 0 is for equal bits."""
    assert found.keys() == expected.keys() != set()
    far = {n: ((p - expected[n]).abs() / expected[n].abs().clamp(min=1)).max().item() for n, p in found.items()}
    assert max(far.values()) <= tolerance, far


@each_program
def test_a_program_ends_as_with_torch_optim(program: Program, tmp_path: Path, stepped: Counter[type]) -> None:
    expected = program(torch.optim, tmp_path / "theirs")
    stepped.clear()
    found = program(ours, tmp_path / "ours")
    assert steps_by_name(stepped, ours) == program.steps
    assert_within(found, expected, program.tolerance)


@each_program
@pytest.mark.parametrize(
    ("before", "after"),
    [(ours, ours), (torch.optim, ours), (ours, torch.optim)],
    ids=["ours", "torch.optim, then ours", "ours, then torch.optim"],
)
def test_a_program_stopped_and_resumed_from_its_files_ends_as_if_it_had_run_on(
    program: Program, before: ModuleType, after: ModuleType, tmp_path: Path, stepped: Counter[type]
) -> None:
    uninterrupted = program(before, tmp_path / "uninterrupted")
    stepped.clear()
    program(before, tmp_path / "stopped", stop=True)
    first = steps_by_name(stepped, before)
    stepped.clear()
    resumed = program(after, tmp_path / "stopped", resume=True)
    second = steps_by_name(stepped, after)
    assert {name: first[name] + second[name] for name in program.steps} == program.steps
    assert_within(resumed, uninterrupted, 0 if before is after else program.tolerance)


@pytest.mark.parametrize("name", ["Trainer, an optimizer", "accelerate", "Lightning, bf16-true"])
@pytest.mark.parametrize(
    "storage",
    [{"master_weights": "split", "state_dtype": "int8"}, {"master_weights": "float32", "state_dtype": "float32"}],
    ids=["split, int8", "float32"],
)
def test_a_bfloat16_model_is_stopped_and_resumed_to_the_bit(
    name: str, storage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class AdamW(ours.AdamW):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, **storage)
            made.append(self)

    narrow, program, optim = language_model, PROGRAMS[name], SimpleNamespace(AdamW=AdamW)

    def wide(seed: int) -> Any:
        return narrow(seed, width=64).bfloat16()

    monkeypatch.setattr(sys.modules[__name__], "language_model", wide)
    uninterrupted = program(optim, tmp_path / "uninterrupted")
    program(optim, tmp_path / "stopped", stop=True)
    assert_within(program(optim, tmp_path / "stopped", resume=True), uninterrupted, 0)
    kinds = Counter((key, str(v.dtype)) for entry in made[-1].state.values() for key, v in entry.items())
    if storage["master_weights"] == "split":
        assert kinds["exp_avg", "torch.uint8"] == kinds["exp_avg_scale", "torch.float32"] > 0
        assert kinds["exp_avg", "torch.float32"] > 0  # small ones
        assert kinds["remainder", "torch.int16"] == len(uninterrupted)
    else:
        assert kinds["master_param", "torch.float32"] == len(uninterrupted)


def test_the_trainer_writes_an_optimizer_file_of_tensors_and_plain_containers(tmp_path: Path) -> None:
    PROGRAMS["Trainer, a class"](ours, tmp_path, stop=True)
    PROGRAMS["Trainer, a class"](torch.optim, tmp_path / "theirs", stop=True)
    found, expected = (
        torch.load(folder / "checkpoint-6" / "optimizer.pt", weights_only=True)
        for folder in (tmp_path, tmp_path / "theirs")
    )
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for number, entry in expected["state"].items():
        kinds = [{key: (value.dtype, value.shape) for key, value in e.items()} for e in (found["state"][number], entry)]
        assert kinds[0] == kinds[1]
        assert found["state"][number]["step"] == 6
