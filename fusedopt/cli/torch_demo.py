"""`python -m fusedopt demo --torch`: a small transformer, trained by torch's optimizer and by ours side by side."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text as Verbatim
from torch import nn

import fusedopt.torch
from fusedopt.backends.threads import thread_count
from fusedopt.cli.character_model import english_text
from fusedopt.cli.loss_curve import text_curve

CONTEXT, WIDTH, HEADS, LAYERS, BATCH = 48, 64, 4, 2, 32
STEPS, QUICK_STEPS = 400, 30
# The same program twice; what differs is the import.
OPTIMIZERS = {"torch.optim": torch.optim.AdamW, "fusedopt.torch": fusedopt.torch.AdamW}
# Roundings differ, and training amplifies them; a wrong term would be seen in the second digit of the loss.
ALLOWED_LOSS_DIFFERENCE = 0.02


class Transformer(nn.Module):
    """A causal language model over characters."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.output = nn.Linear(WIDTH, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (batch, CONTEXT, vocabulary) of each next character; `tokens` (batch, CONTEXT) are their numbers."""
        logits: torch.Tensor = self.output(self.layers(self.embedding(tokens) + self.positions, self.mask))
        return logits


class Training:
    """A model, an optimizer with a schedule, and what they took."""

    def __init__(self, cls: type[torch.optim.Optimizer], vocabulary: int, steps: int, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Transformer(vocabulary).to(device)
        self.optimizer = cls(self.model.parameters(), lr=3e-3, weight_decay=0.1)  # type: ignore[call-arg]
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=3e-3, total_steps=steps)
        self.seconds: list[float] = []

    def take(self, batch: torch.Tensor) -> float:
        """One training step; its loss in nats a character."""
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        _finished(batch)
        start = time.perf_counter()
        self.optimizer.step()
        _finished(batch)
        self.seconds.append(time.perf_counter() - start)
        self.scheduler.step()
        return loss.item()

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        logits = self.model(batch[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def _finished(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def run(arguments: argparse.Namespace) -> int:
    """0; 1 where the two trainings part."""
    console = Console(highlight=False)
    torch.set_num_threads(thread_count())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = english_text()
    vocabulary = "".join(sorted(set(text)))
    tokens = torch.tensor([vocabulary.index(character) for character in text])
    steps = QUICK_STEPS if arguments.quick else arguments.steps or STEPS
    trainings = {
        name: Training(cls, len(vocabulary), steps, device, arguments.seed) for name, cls in OPTIMIZERS.items()
    }
    parameters = [p.numel() for p in next(iter(trainings.values())).model.parameters()]
    console.print(
        f"A transformer of {sum(parameters):,} parameters in {len(parameters)} tensors on {device}, trained twice from"
        f" one start on the same batches of Python's own help pages: by [bold]torch.optim.AdamW[/bold] and by"
        f" [bold]fusedopt.torch.AdamW[/bold], with a OneCycleLR schedule and gradient clipping. Losses are in nats a"
        f" character.\n"
    )
    losses = {name: [] for name in trainings}  # type: dict[str, list[float]]
    console.print(f"{'':>11}" + "".join(f"{name:>17}" for name in trainings))
    for step, batch in enumerate(_batches(tokens.to(device), steps, arguments.seed)):
        for name, training in trainings.items():
            losses[name].append(training.take(batch))
        if step % max(1, steps // 8) == 0 or step == steps - 1:
            console.print(f"step {step:>5} " + "".join(f"{losses[name][-1]:>17.6f}" for name in trainings))
    ours = losses["fusedopt.torch"]
    smooth = np.convolve(ours, np.full(10, 0.1), "valid").tolist()
    console.print("\nThe mean of every ten steps' losses:")
    console.print(Verbatim(text_curve(list(range(len(smooth))), smooth, ascii_only=console.options.ascii_only)))
    apart = max(abs(a - b) for a, b in zip(*losses.values()))
    _print_times(console, trainings)
    agree = apart <= ALLOWED_LOSS_DIFFERENCE
    verdict = "[green]one training[/green]" if agree else "[red]two different trainings[/red]"
    console.print(
        f"The losses differ by {apart:.1e} at most over {steps} steps: {verdict} (allowed is {ALLOWED_LOSS_DIFFERENCE};"
        f" roundings differ, and training amplifies them)."
    )
    return 0 if agree else 1


def _batches(tokens: torch.Tensor, steps: int, seed: int) -> Iterator[torch.Tensor]:
    random = np.random.default_rng(seed)
    for _ in range(steps):
        starts = torch.as_tensor(random.integers(0, len(tokens) - CONTEXT - 1, BATCH), device=tokens.device)
        yield tokens[starts[:, None] + torch.arange(CONTEXT + 1, device=tokens.device)]


def _print_times(console: Console, trainings: dict[str, Training]) -> None:
    table = Table("optimizer.step()", box=SIMPLE)
    table.add_column("median", justify="right")
    for name, training in trainings.items():
        table.add_row(f"{name}.AdamW", f"{1e3 * float(np.median(training.seconds)):.2f} ms")
    console.print(table)
