"""`python -m fusedopt demo`: train a small language model, resume it half-way, time the step beside a naive one."""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text as Verbatim

import fusedopt
from fusedopt.cli.character_model import CharacterModel, Text
from fusedopt.cli.loss_curve import save_picture, text_curve
from fusedopt.cli.side_by_side import compare_with_naive, on_host

LEARNING_RATES = {"adamw": 4e-3, "adam": 4e-3, "sgd": 0.2}
STEPS, QUICK_STEPS = 1500, 100
RESUMED_STEPS = 20  # that a run resumed half-way takes beside the first
PROMPT = "The function is "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--optimizer", choices=LEARNING_RATES, default="adamw", help="default: %(default)s")
    parser.add_argument("--steps", type=int, help=f"training steps (default: {STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to save the picture of the loss curve")
    parser.add_argument("--torch", action="store_true", help="a transformer, by torch.optim and by fusedopt.torch")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps and small arrays: a few seconds")


def run(arguments: argparse.Namespace) -> int:
    """0; 1 where the resumed run or the naive step disagrees."""
    _check(arguments)
    if arguments.torch:
        from fusedopt.cli import torch_demo  # torch takes seconds

        return torch_demo.run(arguments)
    console = Console(highlight=False)
    xp = fusedopt.array_module()
    text = Text()
    training = Training(
        text, arguments.optimizer, QUICK_STEPS if arguments.quick else arguments.steps or STEPS, arguments.seed
    )
    uniform = float(np.log(len(text.vocabulary)))
    console.print(
        f"[bold]{type(training.optimizer).__name__}[/bold] on {'NumPy' if xp is np else 'CuPy'} arrays:"
        f" {sum(parameter.size for parameter in training.model.parameters):,} parameters learn to guess the next"
        f" character of Python's own help pages. Losses are in nats a character, on text held out from training;"
        f" a uniform guess among the {len(text.vocabulary)} characters costs {uniform:.2f}.\n"
    )
    _print_sample(console, training, "before training")
    losses, unequal = train(training, console)
    curve = text_curve(list(losses), list(losses.values()), ascii_only=console.options.ascii_only)
    console.print(Verbatim(f"\n{curve}\n"))
    if find_spec("matplotlib"):
        picture = arguments.plot or Path(tempfile.mkstemp(prefix="fusedopt-demo-", suffix=".png")[1])
        save_picture(picture, list(losses), list(losses.values()), uniform)
        console.print(f"The curve as a picture: {picture}\n", markup=False)
    _print_sample(console, training, "after training")
    agree = compare_with_naive(console, 1 << 18 if arguments.quick else 1 << 23)
    return 0 if agree and not unequal else 1


def _check(arguments: argparse.Namespace) -> None:
    if arguments.torch and not find_spec("torch"):
        raise ImportError("--torch needs PyTorch: pip install torch, or 'fusedopt[torch]'")
    if arguments.torch and (arguments.plot or arguments.optimizer != "adamw"):
        raise ValueError("--torch trains with AdamW and draws no picture; leave --optimizer and --plot out.")
    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {arguments.steps}.")
    if arguments.plot and not arguments.plot.resolve().parent.is_dir():
        raise FileNotFoundError(f"--plot {arguments.plot}: its folder does not exist.")
    if arguments.plot and not find_spec("matplotlib"):
        raise ImportError("--plot needs matplotlib: pip install 'fusedopt[plot]'")


class Training:
    """A model, its optimizer, and the batches that they take."""

    def __init__(self, text: Text, optimizer: str, steps: int, seed: int) -> None:
        self.text, self.name, self.steps, self.seed = text, optimizer, steps, seed
        self.learning_rate = LEARNING_RATES[optimizer]
        self.model = CharacterModel(len(text.vocabulary), seed)
        self.optimizer: fusedopt.Optimizer
        if optimizer == "adamw":
            self.optimizer = fusedopt.AdamW(self.model.parameters, lr=self.learning_rate, weight_decay=0.01)
        elif optimizer == "adam":
            self.optimizer = fusedopt.Adam(self.model.parameters, lr=self.learning_rate)
        else:
            self.optimizer = fusedopt.SGD(self.model.parameters, lr=self.learning_rate, momentum=0.9)

    def take(self, step: int) -> None:
        """One training step. The batch depends on the seed and the step alone, so a resumed run gets the same."""
        contexts, targets = self.text.training_batch(self.seed, step)
        activations = self.model.forward(contexts)
        self.model.backward(activations, targets)  # sets each parameter's grad
        self.optimizer.param_groups[0]["lr"] = self.learning_rate * (1 - step / self.steps)
        self.optimizer.step().clear_grad()

    def state(self) -> dict[str, Any]:
        weights = {parameter.name: on_host(parameter.data) for parameter in self.model.parameters}
        return {"model": weights, "optimizer": self.optimizer.state_dict()}

    def resumed(self, path: Path) -> Training:
        """Another training, made anew, with its weights and its optimizer's state from the file."""
        saved = fusedopt.load(path)
        training = Training(self.text, self.name, self.steps, self.seed)
        for parameter in training.model.parameters:
            parameter.data[...] = fusedopt.array_module().asarray(saved["model"][parameter.name])
        training.optimizer.load_state_dict(saved["optimizer"])
        return training


def train(training: Training, console: Console) -> tuple[dict[int, float], list[str]]:
    """Train, and half-way resume a twin from a file; the losses by step, and the arrays that the twin had unequal."""
    steps, half = training.steps, training.steps // 2
    together = min(half + RESUMED_STEPS, steps)
    losses: dict[int, float] = {}
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=steps)

        def report(step: int) -> None:
            losses[step] = training.model.loss(*training.text.held_out_batch())
            progress.update(bar, completed=step, description=f"step {step}, held-out loss {losses[step]:.3f}")
            if step % max(steps // 10, 1) == 0:
                console.print(f"step {step:>5}   held-out loss {losses[step]:.3f}")

        def advance(trainings: list[Training], first: int, last: int) -> None:
            for step in range(first, last):
                if step % max(steps // 50, 1) == 0:
                    report(step)
                for each in trainings:
                    each.take(step)

        advance([training], 0, half)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "half-way"
            fusedopt.save(path, training.state())
            twin, size = training.resumed(path), path.stat().st_size
        advance([training, twin], half, together)
        unequal = differences(training.state(), twin.state())
        verdict = f"[red]differ: {', '.join(unequal)}[/red]" if unequal else "[green]are equal to the bit[/green]"
        console.print(f"  saved ({size / 1e6:.1f} MB); a second model and optimizer are resumed from the file")
        console.print(f"  {together - half} steps of both on the same batches: weights and states {verdict}")
        advance([training], together, steps)
        report(steps)
    return losses, unequal


def differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """Names of the leaves of two nests of dicts and lists that are not the same, arrays to the bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [found for key in ours for found in differences(ours[key], theirs[key], f"{name}.{key}".lstrip("."))]
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        return [found for i in range(len(ours)) for found in differences(ours[i], theirs[i], f"{name}[{i}]")]
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        same = (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    else:
        same = type(ours) is type(theirs) and ours == theirs
    return [] if same else [name]


def _print_sample(console: Console, training: Training, title: str) -> None:
    sample = training.model.sample(training.text, PROMPT, length=280, seed=training.seed)
    console.print(Panel(Verbatim(sample), title=title, title_align="left"))
