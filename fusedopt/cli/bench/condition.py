"""What the system tells of its processors, memory and GPU. Everything here only reads; what is not told is left out."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

UNKNOWN_CACHE = 32 * 2**20  # bytes: of a common server's processor


def cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def cpu_cache_bytes(folder: Path = Path("/sys/devices/system/cpu")) -> int:
    """Of all caches from the second level on; one that several cores share counts once."""
    caches: dict[tuple[str, str], int] = {}
    for cache in folder.glob("cpu[0-9]*/cache/index*"):
        level, cores, size = (_text(cache / name).strip() for name in ("level", "shared_cpu_list", "size"))
        if level not in ("", "1") and (number := re.fullmatch(r"(\d+)K", size)):
            caches[level, cores] = 1024 * int(number[1])
    return sum(caches.values()) or UNKNOWN_CACHE


def of_cpu() -> str:
    """The load of the last minute, and clocks where the system tells them, in one line."""
    parts = [f"load {os.getloadavg()[0]:.2f}"] if hasattr(os, "getloadavg") else []
    clocks = [float(clock) for clock in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(Path("/proc/cpuinfo")), re.M)]
    if clocks:
        parts.append(f"{min(clocks):.0f} to {max(clocks):.0f} MHz")
    governor = _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")).strip()
    return ", ".join([*parts, *([governor] if governor else [])])


def free_host_bytes() -> int | None:
    """Memory that can still be had, by the system and by the control group; None where nothing tells."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    free = [1024 * int(found[1])] if found else []
    most, used = (_text(Path("/sys/fs/cgroup", name)).strip() for name in ("memory.max", "memory.current"))
    if most.isdigit() and used.isdigit():
        free.append(int(most) - int(used))
    return min(free, default=None)


def nvidia_smi(fields: str, device: str) -> str:
    """What nvidia-smi says of a GPU, given by its PCI bus id; or why it says nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "nvidia-smi is not here"
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader", f"--id={device}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    if done.returncode:
        return f"nvidia-smi ended with {done.returncode}: {' '.join((done.stdout + done.stderr).split())}"
    return done.stdout.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
