"""Which kernels were last proven on hardware: their hashes in `results/verified.json`, and what differs from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fusedopt import rules
from fusedopt.backends.device import kernel_texts
from fusedopt.cuda_text import Variant, rule_text
from fusedopt.storage import storage_of
from fusedopt.tracing import trace
from record import RESULTS, digest

VERIFIED = RESULTS / "verified.json"
GENERATED = "Adam, float32 (generated)"


def kernel_hashes() -> dict[str, str]:
    """A SHA-256 for each file in `kernels/`, and for the text that is generated for Adam with its defaults."""
    source, headers = kernel_texts()
    adam = rules.Adam()
    variant = Variant(trace(adam), storage_of(adam, "float32", "float32", 1))
    generated = rule_text([variant], adam.number_names(), len(adam.scalar_state), len(adam.all_states()))
    texts = {"fused_step.cu": source, **headers, GENERATED: generated}
    return {name: digest([(name, text)]) for name, text in sorted(texts.items())}


def changed_since(path: Path = VERIFIED) -> list[str]:
    """Names of the kernel texts that are not what was verified; all of them where nothing was."""
    try:
        verified: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        verified = {"kernels": {}}
    now = kernel_hashes()
    return sorted(name for name in now | verified["kernels"] if now.get(name) != verified["kernels"].get(name))
