"""The README's table of speed, written from the committed results: `python benchmarks/tables.py` rewrites it."""

from __future__ import annotations

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
README, RESULTS = HERE.parent / "README.md", HERE / "results" / "cpu.json"
PEERS = {
    "NumPy whole arrays": "whole-array NumPy, as one writes it",
    "NumPy out=": "NumPy with every result in a preallocated `out=`",
    "torch for-loop": "`torch.optim`, for-loop",
    "torch foreach": "`torch.optim`, foreach",
    "torch fused": "`torch.optim`, fused (C++)",
}


def speed_table() -> str:
    """The section between the README's `speed` marks."""
    record = json.loads(RESULTS.read_text())
    about, figures = record["about"], {row["name"]: row for row in record["figures"]}
    million = about["size"] // 2**20
    versions = about["versions"]
    machine = f"{about['cpu']}, {about['cores']} cores, NumPy {versions['numpy']}, torch {versions['torch']}"
    lines = [
        f"On a CPU, {million} Mi float32 parameters, {about['threads']} threads, the contestants in turn with the same",
        f"gradients, median of {about['rounds']} pairs",
        f"({machine}, {about['date'][:10]}):",
        "",
        "| fusedopt's step against | SGD with momentum | Adam | AdamW |",
        "| --- | --- | --- | --- |",
    ]
    for peer, title in PEERS.items():
        ratios = [figures[f"{rule}: fusedopt against {peer}"]["value"] for rule in ("sgd", "adam", "adamw")]
        lines.append(f"| {title} | " + " | ".join(f"{ratio:.2g} x as fast" for ratio in ratios) + " |")
    extra = figures["extra memory, float32 in one tensor: resident set"]["value"]
    python = figures["Python time, CPU, unchanged: 1,000 tensors"]["value"]
    cuda = figures["Python time, CUDA but for the launch, unchanged: 1,000 tensors"]["value"]
    seconds = figures["import fusedopt beyond import numpy"]["value"]
    lines += [
        "",
        f"A step needs {extra:.1f} MiB beside the model, {python:.0f} µs of Python for 1,000 tensors",
        f"({cuda:.1f} µs on the path to a GPU, launch apart), and `import fusedopt` {1000 * seconds:.0f} ms beyond",
        "NumPy's.",
        *torch_lines(figures),
        "`benchmarks/README.md` says how all this is measured;",
        "`python benchmarks/compare.py` measures it on your machine.",
    ]
    return "\n".join(lines)


def torch_lines(figures: dict[str, dict[str, float]]) -> list[str]:
    """What steps over torch tensors take."""
    name = "torch tensors, 300 of 4,096: against {}"
    loop, foreach, fused = (figures[name.format(way)]["value"] for way in ("for-loop", "foreach", "fused"))
    host = "torch tensors, host time, {}: 300"
    still, moved = (figures[host.format(case)]["value"] for case in ("nothing moved", "gradients that move"))
    return [
        f"Over 300 torch tensors of 4,096 `fusedopt.torch.Adam` is {loop:.2g} x as fast as torch's for-loop,",
        f"{foreach:.2g} x as foreach and {fused:.2g} x as fused; on the path to a GPU, 300 tensors take the host",
        f"{moved:.0f} µs where gradients moved and {still:.0f} µs where they did not, launch apart.",
    ]


def readme_with_table() -> str:
    """The README with its table as the results have it."""
    return re.sub(
        r"(?<=<!-- speed -->\n).*?(?=<!-- /speed -->)",
        lambda _: speed_table() + "\n",
        README.read_text(),
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    README.write_text(readme_with_table())
