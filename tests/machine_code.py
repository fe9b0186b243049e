"""Reads a cubin with cuobjdump: the registers and the memory instructions of each kernel. It judges nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

# Every opcode that reads or writes memory, constants apart: global, generic (LD, ST, ATOM), local and shared.
MEMORY = "LDG|STG|LD|ST|LDL|STL|LDS|STS|LDSM|STSM|LDGSTS|ATOMG|ATOM|ATOMS|REDG|RED|REDAS|UBLKCP"
INSTRUCTION = re.compile(rf"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?((?:{MEMORY})(?:\.\w+)*)\s")
OPCODE = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)")
TURNS = ("BRA", "BAR", "EXIT", "CALL", "RET", "STG", "LDL", "STL")  # what ends a run of loads
USAGE = re.compile(r"^ Function (\S+):\n\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE)
LISTING = re.compile(r"^\s*Function : (\S+)\n(.*?)(?=^\s*Function : |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class MachineCode:
    """What one kernel takes, in bytes where no unit is said, and how it touches memory.

    `memory` counts instructions by opcode and bits a lane, the same on every architecture: "LDG.128", "STG.16",
    "LD.32" (generic), "STL.64" (local: a spill, or an array indexed at run time). `spelled` counts them as cuobjdump
    prints them ("LDG.E.128.CONSTANT"), which is where .STRONG, .CONSTANT and the like are to be seen. `runs` are the
    loads from global memory that nothing parts: neither a branch nor a barrier nor a store.
    """

    architecture: int
    registers: int
    stack: int
    local: int
    shared: int
    memory: Counter[str]
    spelled: Counter[str]
    runs: tuple[Counter[str], ...]

    def count(self, *opcodes: str) -> int:
        """How many instructions have one of these opcodes, at any width: `count("LD", "ST")` are the generic ones."""
        return sum(count for name, count in self.memory.items() if name.split(".")[0] in opcodes)


def read(cubin: Path | bytes) -> dict[str, MachineCode]:
    """The machine code of every kernel in a cubin, by name. Skips the test where cuobjdump is not installed."""
    tools = _tools()
    with tempfile.TemporaryDirectory() as folder:
        path = cubin
        if isinstance(path, bytes):
            path = Path(folder, "kernel.cubin")
            path.write_bytes(cubin)
        command = [str(tools / "cuobjdump"), "-sass", "--dump-resource-usage", str(path)]
        # cuobjdump looks for nvdisasm on the PATH, not beside itself.
        environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    usage = {name: tuple(map(int, numbers)) for name, *numbers in USAGE.findall(ran.stdout)}
    listings = dict(LISTING.findall(ran.stdout))
    if ran.returncode or not usage or usage.keys() != listings.keys():
        raise ValueError(f"cuobjdump cannot read {path}: {ran.stderr or ran.stdout or 'it has no kernel'}")
    architecture = int(re.search(r"code for sm_(\d+)", ran.stdout)[1])
    return {name: _machine_code(architecture, usage[name], listing) for name, listing in listings.items()}


def _machine_code(architecture: int, usage: tuple[int, ...], listing: str) -> MachineCode:
    registers, stack, shared, local = usage
    if architecture >= 90 and shared:
        shared -= 1024  # from sm_90 on the count has the kilobyte that the system keeps in every block
    spelled = Counter(INSTRUCTION.findall(listing))
    memory: Counter[str] = Counter()
    for name, count in spelled.items():
        memory[_opcode_and_bits(name)] += count
    return MachineCode(architecture, registers, stack, local, shared, memory, spelled, tuple(_runs(listing)))


def _runs(listing: str) -> Iterator[Counter[str]]:
    run: Counter[str] = Counter()
    for spelled in OPCODE.findall(listing):
        if spelled.split(".")[0] in TURNS and run:
            yield run
            run = Counter()
        elif spelled.startswith("LDG"):
            run[_opcode_and_bits(spelled)] += 1


def _opcode_and_bits(spelled: str) -> str:
    """ "LDG.E.128.CONSTANT.SYS" is "LDG.128": what is not said is 32 bits, and U8, S16 and F64 are 8, 16 and 64."""
    opcode, *suffixes = spelled.split(".")
    for suffix in suffixes:
        if match := re.fullmatch(r"[USF]?(8|16|64|128|256)", suffix):
            return f"{opcode}.{match[1]}"
    return f"{opcode}.32"


def _tools() -> Path:
    """The folder with cuobjdump and nvdisasm: of the nvidia wheels, or of a toolkit on the PATH."""
    nvidia = find_spec("nvidia")
    wheels = [Path(root) for root in nvidia.submodule_search_locations or ()] if nvidia else []
    found = [tool for root in wheels for tool in sorted(root.glob("*/bin/cuobjdump*"))]
    on_path = shutil.which("cuobjdump")
    for tool in [*found, *([Path(on_path)] if on_path else [])]:
        if shutil.which("nvdisasm", path=f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"):
            return tool.parent
    missing("cuobjdump and nvdisasm", "nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def missing(what: str, wheels: str) -> NoReturn:
    """Skips the test for want of a tool; fails it under CI, where every link of the proof has to be there."""
    reason = f"needs {what}: pip install {wheels}"
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (a failure, not a skip, since CI is set)")
    pytest.skip(reason)  # on a developer's machine alone: CI has failed above
