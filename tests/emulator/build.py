"""Compiles kernel text for the CPU, loads it, and runs it; in a sanitizer's subprocess too."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import platformdirs
import pytest

HERE = Path(__file__).parent
FORWARD, BACKWARD = 0, 1  # orders of threads and blocks; any larger number shuffles them, and is the seed
FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-pthread"),
    *("-ffp-contract=off", "-fno-strict-aliasing"),  # as the kernels are compiled for a GPU
    # A rule need not use all that it is given.
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter"),
]
LINK_FLAGS = ["-shared", "-Wl,-Bsymbolic"]  # glibc exports names such as `step`, which would win over the kernel's
SANITIZERS = {
    None: ["-Werror"],  # a sanitizer's build warns of what it does not understand
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1"],
    "thread": ["-fsanitize=thread", "-DEMULATOR_THREADS", "-g1"],
}
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}


class Unavailable(Exception):
    """What is missing on this machine."""


def skip_or_fail(reason: object) -> NoReturn:
    """Skips the test; fails it in CI, where everything has to be there."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(str(reason))


_launching = threading.Lock()
_with_stacks: list[ctypes.CDLL] = []  # the library of the last launch, which keeps the stacks of its fibers


@cache
def compiler() -> str | None:
    """The path of a C++ compiler: $CXX, g++ or clang++; None if there is none."""
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def build(
    source: str, headers: Mapping[str, str], *, sanitize: str | None = None, defines: Sequence[str] = ()
) -> ctypes.CDLL:
    """The library with the kernels of `source`, a text that defines `Launch` and may include `headers` (name: text).

    `sanitize` is None, "address" (with "undefined") or "thread"; a library built for a sanitizer loads only in a
    process that `run_sanitized` started. EMULATOR_THREADS in `defines` makes threads of the fibers, and
    EMULATOR_UCONTEXT switches fibers as machines other than x86-64 do. Raises Unavailable without a compiler, and
    RuntimeError with the compiler's words when it refuses the text.
    """
    flags = [*FLAGS, *SANITIZERS[sanitize], *(f"-D{name}" for name in defines)]
    runner = "threads.cpp" if "-DEMULATOR_THREADS" in flags else "fibers.cpp"
    shim = {name: (HERE / name).read_text() for name in ("cuda_on_host.h", "blocks.h", runner)}
    runner_object = _compiled(shim, runner, ["-c", *flags], ".o")
    texts = {
        **headers,
        "kernel.cuh": source,
        **{name: (HERE / name).read_text() for name in ("cuda_on_host.h", "launcher.cpp")},
    }
    library = ctypes.CDLL(str(_compiled(texts, "launcher.cpp", [*flags, *LINK_FLAGS, str(runner_object)], ".so")))
    library.launch.argtypes = [ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint]
    library.launch.restype = ctypes.c_char_p
    return library


def launch(
    library: ctypes.CDLL, kernel: str, blocks: int, threads: int, arguments: object, order: int = FORWARD
) -> None:
    """Runs a kernel; `arguments` is the Launch struct as anything that bytes() takes.

    Raises RuntimeError when the threads of a block part at a barrier or a shuffle.
    """
    packed = bytes(arguments)
    size = ctypes.c_uint.in_dll(library, "launch_bytes").value
    if len(packed) != size:
        raise ValueError(f"{kernel}: Launch has {size} bytes in C++, got {len(packed)}.")
    with _launching:
        if _with_stacks and _with_stacks[0] is not library:
            _with_stacks.pop().release()
        _with_stacks[:] = [library]
        problem = library.launch(getattr(library, kernel), blocks, threads, packed, order)
    if problem:
        raise RuntimeError(f"{kernel}: {problem.decode()}")


def _compiled(texts: Mapping[str, str], main: str, flags: Sequence[str], suffix: str) -> Path:
    found = _compiler()
    key = hashlib.sha256(repr((found, _version(found), main, flags, sorted(texts.items()))).encode()).hexdigest()
    store = platformdirs.user_cache_path("fusedopt") / "emulator"
    result = store / (key[:32] + suffix)
    if result.exists():
        return result
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store) as folder:
        for name, text in texts.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        process = subprocess.run(
            [found, "-I.", main, *flags, "-o", "result"], cwd=folder, env=_plain(), capture_output=True, text=True
        )
        if process.returncode:
            raise RuntimeError(f"{found} refused the kernel:\n{process.stderr}")
        Path(folder, "result").replace(result)  # in one piece, whoever else is building the same
    return result


def _compiler() -> str:
    if (found := compiler()) is None:
        raise Unavailable("no C++ compiler: set CXX, or install g++.")
    return found


@cache
def _version(path: str) -> str:
    return subprocess.run([path, "--version"], env=_plain(), capture_output=True, text=True, check=True).stdout


def _plain() -> dict[str, str]:
    """The environment without a sanitizer, which a compiler started from a sanitized process does not want."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@cache
def _runtime(name: str) -> str:
    found = _compiler()
    command = [found, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(path):
        raise Unavailable(f"{found} comes without {name}.")
    return path


def sanitizer_environment(sanitize: str) -> dict[str, str]:
    """The environment in which Python can load a library built with `sanitize`; raises Unavailable if none can be.

    The sanitizer comes before Python's own libraries, and libstdc++ with it, whose `__cxa_throw` it wraps at start-up.
    """
    runtimes = [_runtime(RUNTIMES[sanitize]), _runtime("libstdc++.so.6")]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "PYTHONMALLOC": "malloc",  # each bytes object is an allocation that the sanitizer knows the end of
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }


def run_sanitized(sanitize: str, arguments: Sequence[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs Python under a sanitizer, which ends it with a report on stderr and a status that is not 0."""
    command = [sys.executable, *arguments]
    if sanitize == "thread" and (setarch := shutil.which("setarch")):  # its address map has no room for much randomness
        command = [setarch, "-R", *command]
    environment = sanitizer_environment(sanitize)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
