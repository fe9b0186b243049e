"""Which code keeps a state in one byte an element: `python benchmarks/state_codes.py` (six minutes on one core).

Each candidate takes the steps of float32 Adam on the same gradients, made ones and those of the demo's character model,
and its updates are compared with Adam's; then it trains the model. docs/state_codes.md says what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import state_codes_picture
from fusedopt.cli.character_model import CharacterModel, Text
from record import RESULTS, ROOT, circumstances, table, write
from state_code_candidates import CHOSEN, Candidate, Floats, candidates

SIZE = 2048  # elements of one kind of gradient: 16 blocks of 128
EPS = np.float32(1e-8)
REPORTED = (10, 100, 1000, 3000)  # steps
RUNS = (((0.9, 0.999), 3000), ((0.9, 0.95), 1000), ((0.99, 0.999), 1000))  # betas, steps
MODEL_STEPS, WARM_UP, LEARNING_RATE, WEIGHT_DECAY = 1000, 50, 1e-2, 0.01
SEEDS = 3
EXACT = "float32"

Step = Callable[[Floats, Floats], tuple[Floats, Floats, Floats]]


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Gradients (0.3 a + b) s f: a normal number an element, noise of each step, a size an element, a course.

    Attributes:
        spread: Deviation of log s: 1 is what layers of real models have at most, 2 and 3 are not found.
        scale: Median of s.
        factor: f, of the share of the steps that are over.
        touched, row: Share of rows of so many elements whose gradient is not 0, drawn anew each step.
        outlier: By how much s is larger for one element in 64.
        heavy: Noise of Student's distribution with 2 degrees of freedom, not normal.
    """

    name: str
    spread: float = 1.0
    scale: float = 1e-3
    factor: Callable[[float], float] = lambda share: 1.0
    touched: float = 1.0
    row: int = 1
    outlier: float = 1.0
    heavy: bool = False

    def steps(self, seed: int, steps: int) -> Iterator[Floats]:
        rng = np.random.default_rng(seed)
        sizes = self.scale * np.exp(self.spread * rng.standard_normal(SIZE))
        sizes[7::64] *= self.outlier
        mean = 0.3 * rng.standard_normal(SIZE)
        for step in range(steps):
            noise = rng.standard_t(2, SIZE) if self.heavy else rng.standard_normal(SIZE)
            touched = np.repeat(rng.random(SIZE // self.row) < self.touched, self.row)
            yield (touched * sizes * (mean + noise) * self.factor(step / steps)).astype(np.float32)


MADE = (
    Gradients("spread 0", 0),
    Gradients("spread 1"),
    Gradients("spread 2", 2),
    Gradients("spread 3", 3),
    Gradients("of 1e-8", scale=1e-8),
    Gradients("of 1e3", scale=1e3),
    Gradients("shrink 1e4", factor=lambda share: 1e-4**share),
    Gradients("grow 1e4", factor=lambda share: 1e4**share),
    Gradients("5 % not 0", 0, touched=0.05),
    Gradients("rows of 2 %", touched=0.02, row=64),
    Gradients("outliers 1e4", 0, outlier=1e4),
    Gradients("heavy tails", 0, heavy=True),
    Gradients("1e3 once", factor=lambda share: 1e3 if 0 <= share - 1 / 6 < 1 / 3000 else 1.0),
)


class Adam:
    """Adam's states as a candidate keeps them, or in float32 where there is none."""

    def __init__(self, kept: Candidate | None, betas: tuple[float, float], size: int, seed: int) -> None:
        self.kept, self.betas, self.step = kept, betas, 0
        zeros = np.zeros(size, np.float32)
        self.m, self.v = self._encoded(zeros, zeros, np.zeros((2, size), np.float32))
        self.rng = np.random.default_rng((seed, size))

    def _encoded(self, m: Floats, v: Floats, noise: Floats) -> tuple[Any, Any]:
        return (self.kept.m.encode(m, noise[0]), self.kept.v.encode(v, noise[1])) if self.kept else (m, v)

    def update(self, g: Floats) -> Floats:
        """What is subtracted from the parameter, over the learning rate."""
        m, v = (self.kept.m.decode(*self.m), self.kept.v.decode(*self.v)) if self.kept else (self.m, self.v)
        self.step += 1
        beta1, beta2 = map(np.float32, self.betas)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g * g)
        self.m, self.v = self._encoded(m, v, self.rng.random((2, g.size), dtype=np.float32))
        first, second = (np.float32(1 - beta**self.step) for beta in self.betas)
        return m / first / (np.sqrt(v / second) + EPS)


def difference(found: Floats, exact: Floats) -> dict[str, Any]:
    """How far an update is from float32's; ratios are of elements whose update is not small."""
    a, b = exact.astype(np.float64), found.astype(np.float64)
    size = np.linalg.norm(a)
    shown = np.abs(a) > 0.1 * size / a.size**0.5
    values = {
        "error": np.linalg.norm(b - a) / size,
        "cosine": a @ b / size / np.linalg.norm(b),
        "slope": a @ b / size**2,
        **dict(zip(("ratio_1%", "ratio_50%", "ratio_99%"), np.quantile(b[shown] / a[shown], (0.01, 0.5, 0.99)))),
        "largest": np.abs(b).max() / np.abs(a).max(),
    }
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def errors_of_made(betas: tuple[float, float], steps: int, codes: Sequence[Candidate]) -> Iterator[dict[str, Any]]:
    """Of each code on each kind of gradient, at some of the steps; all kinds are one vector, whose blocks part them."""
    size = SIZE * len(MADE)
    exact, kept = Adam(None, betas, size, 0), [Adam(code, betas, size, 0) for code in codes]
    streams = zip(*(kind.steps(number, steps) for number, kind in enumerate(MADE)))
    for step, gradients in enumerate(streams, 1):
        g = np.concatenate(gradients)
        right, found = exact.update(g), [adam.update(g) for adam in kept]
        for code, update in zip(codes, found) if step in REPORTED else ():
            for number, kind in enumerate(MADE):
                part = slice(SIZE * number, SIZE * (number + 1))
                about = {"code": code.name, "betas": betas, "gradients": kind.name, "step": step}
                yield about | difference(update[part], right[part])


class Training:
    """The demo's character model with a third of its hidden units, its tensors padded to whole blocks."""

    def __init__(self, text: Text, seed: int) -> None:
        self.text, self.seed = text, seed
        self.model = CharacterModel(len(text.vocabulary), seed, hidden=128)
        starts = np.cumsum([0, *(-(-parameter.data.size // 256) * 256 for parameter in self.model.parameters)])
        self.places = [slice(at, at + p.data.size) for at, p in zip(starts, self.model.parameters)]
        self.size = int(starts[-1])

    def gradients(self, step: int) -> Floats:
        contexts, targets = self.text.training_batch(self.seed, step, 128)
        self.model.backward(self.model.forward(contexts), targets)
        g = np.zeros(self.size, np.float32)
        for place, parameter in zip(self.places, self.model.parameters):
            g[place] = parameter.grad.ravel()
        return g

    def move(self, update: Floats, step: int) -> None:
        """AdamW's step: a warm-up, then down to 0 in a line."""
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (1 - step / MODEL_STEPS)
        for place, parameter in zip(self.places, self.model.parameters):
            parameter.data -= rate * (update[place].reshape(parameter.data.shape) + WEIGHT_DECAY * parameter.data)


def errors_of_model(text: Text, codes: Sequence[Candidate]) -> Iterator[dict[str, Any]]:
    """The same on the gradients of a model that float32 Adam trains."""
    training, betas = Training(text, 0), RUNS[0][0]
    exact, kept = Adam(None, betas, training.size, 0), [Adam(code, betas, training.size, 0) for code in codes]
    for step in range(MODEL_STEPS):
        g = training.gradients(step)
        right, found = exact.update(g), [adam.update(g) for adam in kept]
        training.move(right, step)
        for code, update in zip(codes, found) if step + 1 in REPORTED else ():
            about = {"code": code.name, "betas": betas, "gradients": "model", "step": step + 1}
            yield about | difference(update, right)


def held_out_loss(text: Text, code: Candidate | None, seed: int) -> float:
    """Nats a character after a training."""
    training = Training(text, seed)
    adam = Adam(code, RUNS[0][0], training.size, seed)
    for step in range(MODEL_STEPS):
        training.move(adam.update(training.gradients(step)), step)
    return training.model.loss(*text.held_out_batch())


def measure(say: Callable[[str], object]) -> dict[str, Any]:
    """Everything: some minutes."""
    codes, text = candidates(), Text()
    rows: list[dict[str, Any]] = []
    for betas, steps in RUNS:
        rows += errors_of_made(betas, steps, codes)
        say(f"{steps} steps with betas {betas} are done")
    rows += errors_of_model(text, codes)
    losses = {}
    for code in (None, *codes):
        name = code.name if code else EXACT
        losses[name] = [held_out_loss(text, code, seed) for seed in range(SEEDS)]
        say(f"{name}: losses {' '.join(f'{loss:.4f}' for loss in losses[name])}")
    return {"circumstances": circumstances(), "chosen": CHOSEN, "errors": rows, "losses": losses}


COLUMNS = (
    *(("model", 1000), ("spread 0", 3000), ("spread 1", 3000), ("spread 2", 3000), ("spread 3", 3000)),
    *(("shrink 1e4", 3000), ("5 % not 0", 3000), ("rows of 2 %", 3000), ("outliers 1e4", 3000)),
    *(("heavy tails", 3000), ("1e3 once", 3000)),
)


def error_table(result: dict[str, Any]) -> str:
    """Errors of the updates at the last step, the largest update over float32's, and the losses' mean differences."""
    errors = {(r["code"], r["gradients"], r["step"]): r for r in result["errors"] if tuple(r["betas"]) == RUNS[0][0]}
    exact = result["losses"][EXACT]
    rows = []
    for code in (name for name in result["losses"] if name != EXACT):
        found = [errors[(code, *column)] for column in COLUMNS]
        loss = np.mean(np.subtract(result["losses"][code], exact))
        largest = max(row["largest"] for row in found)
        rows.append([code, *(f"{row['error']:.3f}" for row in found), f"{largest:.1f}", f"{loss:+.4f}"])
    return table(["", *(name for name, _ in COLUMNS), "largest", "loss"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu" / "state_codes.json", help="results, as JSON")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "state_codes.png")
    arguments = parser.parse_args()
    result = measure(functools.partial(print, flush=True))
    write(arguments.out, result)
    print(error_table(result))
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    state_codes_picture.draw(arguments.picture, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
