"""The CPU's speed table in one run: `python benchmarks/compare.py`. README.md says how each figure is measured."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import overhead
import torch_steps
from fusedopt.cli.contestants import OPTIMIZERS, contestants
from fusedopt.cli.side_by_side import Contestant, warm_up
from record import RESULTS, ROOT, circumstances, figure_table, write
from timing import Figure, figure, interleaved, seconds

# How many times as fast as each of them Adam's step has to be.
SPEED_BARS = {
    "NumPy whole arrays": 6.0,
    "NumPy out=": 1.5,
    "torch for-loop": 4.0,
    "torch foreach": 3.0,
    "torch fused": 0.6,
}
MEMORY_BAR, PYTHON_BAR, IMPORT_BAR = 32, 20, 0.2  # MiB, microseconds, seconds
TENSORS = (10, 100, 1_000, 10_000)
FLAT = 2  # times the time of 10 tensors that a flat step may take with 10,000


def contestants_of(optimizer: str, size: int) -> dict[str, Contestant]:
    """Those of `python -m fusedopt bench`, on one tensor; ours is called fusedopt."""
    random = np.random.default_rng(0)
    weights, gradient = 0.02 * random.standard_normal(size, np.float32), random.standard_normal(size, np.float32)
    found = contestants(np, optimizer, [weights], [gradient])
    return {name.partition(".")[0]: contestant for name, contestant in found.items()}


def speed(optimizer: str, size: int, rounds: int) -> Iterator[Figure]:
    """Times of all contestants, and how many times as fast as each peer fusedopt is."""
    peers = contestants_of(optimizer, size)
    apart = max(warm_up(peers).values()) / float(OPTIMIZERS[optimizer][1]["lr"])
    ours = peers.pop("fusedopt")
    our_times: list[float] = []
    of_peers: list[Figure] = []
    for name, peer in peers.items():
        times = interleaved(ours.step, peer.step, rounds)
        our_times += times[0]
        ratios = [theirs / own for own, theirs in zip(*times)]
        bar = SPEED_BARS[name] if optimizer == "adam" else None
        of_peers += [
            figure(f"{optimizer}: {name}", "ms", [1e3 * t for t in times[1]]),
            figure(f"{optimizer}: fusedopt against {name}", "times as fast", ratios, at_least=bar),
        ]
    yield figure(f"{optimizer}: fusedopt", "ms", [1e3 * t for t in our_times])
    yield from of_peers
    yield figure(f"{optimizer}: largest difference of the results", "lr", [apart], at_most=1e-3)


def memory(size: int) -> Iterator[Figure]:
    """Memory that a step takes beside parameters, gradients and states, in a fresh process for each kind of work."""
    for title, tensors, dtype in (("one tensor", 1, "float32"), ("1,000 tensors", 1_000, "float32"),
                                  ("1,000 tensors", 1_000, "float16")):  # fmt: skip
        found = json.loads(_python(str(ROOT / "benchmarks" / "memory.py"), str(size), str(tensors), dtype))
        for what, mebibytes in found.items():
            name = f"extra memory, {dtype} in {title}: {what}"
            yield figure(name, "MiB", [mebibytes], at_most=MEMORY_BAR)


def python_time(rounds: int) -> Iterator[Figure]:
    """The Python time of a step by the number of tensors, on the CPU's and on CUDA's path."""
    for path in (overhead.CPU, overhead.TWO_THREADS, overhead.CUDA):
        for case in (overhead.unchanged, overhead.changed, overhead.changed_cold):
            has_bar = path != overhead.TWO_THREADS and case is not overhead.changed_cold
            title = f"Python time, {path}, {case.__name__.replace('_', ' ')}"
            found = []
            for tensors in TENSORS:
                samples = [1e6 * s for s in case(tensors, path, max(20, min(50 * rounds, 100_000 // tensors)))]
                bar = PYTHON_BAR if has_bar and tensors == 1_000 else None
                found.append(figure(f"{title}: {tensors:,} tensors", "us", samples, at_most=bar))
            yield from found
            growth = found[-1].value / found[0].value
            yield figure(f"{title}: 10,000 against 10", "times", [growth], at_most=FLAT if has_bar else None)


def imports(rounds: int) -> Iterator[Figure]:
    """What `import fusedopt` takes beyond `import numpy`, by pairs of fresh processes."""
    command = "import sys; import numpy, fusedopt; assert not {'cupy', 'torch'} & set(sys.modules)"
    fused, plain = interleaved(lambda: _python("-c", command), lambda: _python("-c", "import numpy"), rounds)
    beyond = [ours - numpy for ours, numpy in zip(fused, plain)]
    yield figure("import fusedopt beyond import numpy", "s", beyond, at_most=IMPORT_BAR)


def _python(*arguments: str) -> str:
    """The output of a fresh Python that finds this checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32 * 2**20, help="float32 parameters (default: 32 Mi)")
    parser.add_argument("--threads", type=int, default=2, help="of fusedopt and of torch (default: 2)")
    parser.add_argument("--rounds", type=int, default=9, help="pairs a comparison (default: 9)")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json", help="the result file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    arguments = parser.parse_args()
    os.environ["FUSEDOPT_NUM_THREADS"] = str(arguments.threads)  # torch is given as many
    about = {**circumstances(), "size": arguments.size, "threads": arguments.threads, "rounds": arguments.rounds}
    figures: list[Figure] = []
    took = seconds(lambda: figures.extend(measured(arguments.size, arguments.rounds)))
    about |= {"seconds": round(took, 1), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY")}
    write(arguments.out, {"about": about, "figures": [f.record() for f in figures]})
    print(figure_table(figures))
    missed = [f for f in figures if f.met is False]
    print(f"\n{len(missed)} bars are missed." if missed else "\nAll bars are met.")
    return 1 if missed and arguments.check else 0


def measured(size: int, rounds: int) -> Iterator[Figure]:
    """All figures."""
    for optimizer in OPTIMIZERS:
        yield from speed(optimizer, size, rounds)
    yield from torch_steps.speed(size, rounds)
    yield from torch_steps.host_time(20 * rounds)
    yield from memory(size)
    yield from python_time(rounds)
    yield from imports(rounds)


if __name__ == "__main__":
    sys.exit(main())
