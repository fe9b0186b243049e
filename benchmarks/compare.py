"""The CPU's speed table in one run: `python benchmarks/compare.py`. README.md says how each figure is measured."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from record import RESULTS, ROOT, circumstances, figure_table, write
from timing import Figure, figure, interleaved, seconds

SPEED_BARS = {"NumPy, whole arrays": 6, "NumPy, out=": 1.5, "torch, for-loop": 4, "torch, foreach": 3, "torch, fused": 0.6}
MEMORY_BAR, OVERHEAD_BAR, IMPORT_BAR = 32, 20, 0.2  # MiB, microseconds, seconds
TENSORS = (10, 100, 1_000, 10_000)
FLAT = 2  # times the time of 10 tensors that a flat step may take with 10,000


def speed(optimizer: str, size: int, rounds: int) -> Iterator[Figure]:
    """Times of all contestants, and how many times as fast as each peer fusedopt is."""
    import peers

    entries = dict(peers.ENTRIES[optimizer])
    p, g = peers.work(size)
    ours = entries.pop("fusedopt")(p, g)
    ours.step()
    ours_all: list[float] = []
    rest: list[Figure] = []
    for name, enter in entries.items():
        try:
            peer = enter(p, g)
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        peer.step()
        our_times, peer_times = interleaved(ours.step, peer.step, rounds)
        ours_all += our_times
        ratios = [theirs / own for theirs, own in zip(peer_times, our_times)]
        bar = SPEED_BARS[name] if optimizer == "Adam" else None
        rest += [
            figure(f"{optimizer}: {name}", "ms", [1e3 * t for t in peer_times]),
            figure(f"{optimizer}: fusedopt against {name}", "times as fast", ratios, at_least=bar),
        ]
        del peer  # its arrays make room for the next one's
    yield figure(f"{optimizer}: fusedopt", "ms", [1e3 * t for t in ours_all])
    yield from rest


def agreement(size: int = 100_003, steps: int = 3) -> Iterator[Figure]:
    """How far the contestants are from each other after some steps, in units of the learning rate."""
    import peers

    for optimizer, entries in peers.ENTRIES.items():
        ends = []
        for enter in entries.values():
            try:
                contestant = enter(*peers.work(size))
            except ImportError:
                continue
            for _ in range(steps):
                contestant.step()
            ends.append(np.array(contestant.values()))
        apart = max(float(np.abs(end - ends[0]).max()) for end in ends) / peers.LR
        yield figure(f"{optimizer}: largest difference of the results", "lr", [apart], at_most=1e-3)


def memory(size: int) -> Iterator[Figure]:
    """Memory that a step takes beside parameters, gradients and states, in a fresh process for each kind of work."""
    for title, tensors, dtype in (("one tensor", 1, "float32"), ("1,000 tensors", 1_000, "float32"),
                                  ("1,000 tensors", 1_000, "float16")):  # fmt: skip
        found = json.loads(_python(str(ROOT / "benchmarks" / "memory.py"), str(size), str(tensors), dtype))
        for what, mebibytes in found.items():
            name = f"extra memory of a step, {size:,} {dtype} in {title}: {what}"
            yield figure(name, "MiB", [mebibytes], at_most=MEMORY_BAR)


def overhead(rounds: int) -> Iterator[Figure]:
    """The Python time of a step, on both paths."""
    from overhead import Steps

    for path, idle_device in (("CPU", False), ("CUDA, launch left out", True)):
        for case in ("unchanged", "in_training"):
            medians = {}
            for tensors in TENSORS:
                step = getattr(Steps(tensors, idle_device), case)
                for _ in range(10):
                    step()
                repeats = max(10, rounds * 1000 // tensors) if case == "in_training" else 100 * rounds
                samples = [1e6 * step() for _ in range(min(repeats, 100 * rounds))]
                medians[tensors] = statistics.median(samples)
                name = f"Python time of a step, {case.replace('_', ' ')}, {path}: {tensors:,} tensors"
                yield figure(name, "us", samples, at_most=OVERHEAD_BAR if tensors == 1_000 else None)
            name = f"Python time of a step, {case.replace('_', ' ')}, {path}: 10,000 tensors against 10"
            yield figure(name, "times", [medians[10_000] / medians[10]], at_most=FLAT)


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
    sys.path.insert(0, str(ROOT))
    import peers

    peers.use_threads(arguments.threads)
    about = {**circumstances(), "size": arguments.size, "threads": arguments.threads, "rounds": arguments.rounds}
    figures: list[Figure] = []
    took = seconds(lambda: figures.extend(measured(arguments.size, arguments.rounds)))
    write(arguments.out, {"about": {**about, "seconds": round(took, 1)}, "figures": [f.record() for f in figures]})
    print(figure_table(figures))
    missed = [f for f in figures if f.met is False]
    print(f"\n{len(missed)} bars are missed." if missed else "\nAll bars are met.")
    return 1 if missed and arguments.check else 0


def measured(size: int, rounds: int) -> Iterator[Figure]:
    """All figures."""
    yield from speed("Adam", size, rounds)
    yield from speed("SGD", size, rounds)
    yield from agreement()
    yield from memory(size)
    yield from overhead(rounds)
    yield from imports(rounds)


if __name__ == "__main__":
    sys.exit(main())
