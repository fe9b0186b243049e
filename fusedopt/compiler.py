"""CUDA text to machine code: NVRTC compiles it once, and a folder on disk keeps it. Loading is the CUDA backend's part.

Neither a GPU nor a driver is needed, and CuPy is imported only when something is compiled or looked up.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.metadata
import json
import os
import re
import secrets
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What makes the GPU's arithmetic NumPy's is stated, not left to NVRTC's defaults. The last option keeps NVRTC from
# reading a header of the working directory, whose text the cache's key would not cover.
OPTIONS = ("-std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--no-source-include")
SOURCE_NAME = "fusedopt.cu"  # how NVRTC's messages call the source

_temporary: dict[str, Path] = {}  # by key: what this process had to keep outside the cache
_unusable: set[Path] = set()  # the folders that were warned of


class CompileError(RuntimeError):
    """NVRTC refused the text or the architecture; the message has its log and the lines around the errors."""


class CompilerMissingError(ImportError):
    """CuPy, or the NVRTC library that it loads, is not installed; the message has the pip line that installs it."""


def kernels_folder() -> Path:
    """The folder of the CUDA text: inside an installed package, or beside the package in a checkout.

    Raises FileNotFoundError where neither has any: a `kernels` beside an installed package may be somebody else's.
    """
    package = Path(__file__).resolve().parent
    folders = (package / "kernels", package.parent / "kernels")
    for folder in folders:
        if any(folder.glob("*.cu*")):
            return folder
    raise FileNotFoundError(
        f"fusedopt's CUDA text is missing: neither {folders[0]} nor {folders[1]} has a .cu or .cuh file; "
        "reinstall it: pip install --force-reinstall --no-deps fusedopt"
    )


def architecture_of(major: int, minor: int) -> str:
    """NVRTC's name of what to compile for a GPU of this compute capability: "sm_90" for (9, 0).

    For a GPU newer than the installed NVRTC: the newest older chip of the same major version, whose machine code it
    runs unchanged; where there is none, the newest "compute_", that is PTX, which the driver compiles as it loads it.
    Raises CompileError for a GPU older than all that NVRTC knows, CompilerMissingError without NVRTC.
    """
    supported = _nvrtc().getSupportedArchs()
    known = [code for code in supported if code <= 10 * major + minor]
    if not known:
        raise CompileError(
            f"the GPU's compute capability is {major}.{minor}, and the installed NVRTC compiles for "
            f"{min(supported) / 10} and newer; install an older one: pip install 'fusedopt[cuda12]'"
        )
    newest = max(known)
    return f"sm_{newest}" if newest // 10 == major else f"compute_{newest}"


def cache_folder() -> Path:
    """Where compiled kernels are kept: `FUSEDOPT_CACHE_DIR`, or the user's cache folder."""
    chosen = os.environ.get("FUSEDOPT_CACHE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs  # here, so that a machine without it can still say where the cache shall be

    return platformdirs.user_cache_path("fusedopt", appauthor=False)


def compiled(source: str, headers: Mapping[str, str], architecture: str) -> Path:
    """The file with the machine code ("sm_90") or PTX ("compute_90") of a CUDA text, from the cache or compiled now.

    `headers` maps each name that the text includes to its own text. The cache is the folder FUSEDOPT_CACHE_DIR, or the
    user's cache folder; an entry's name has a hash of all text, options, architecture and NVRTC's version, and a digest
    of its content. A damaged entry is replaced, with a RuntimeWarning. Where the folder cannot be written, the file is
    temporary and lives as long as the process, with one RuntimeWarning. An entry is trusted as far as its folder is:
    whoever can write there chooses the code that runs on the GPU, so share it with nobody whom you do not trust.
    Raises CompileError, and CompilerMissingError without NVRTC.
    """
    text = json.dumps([source, sorted(headers.items()), OPTIONS, architecture, _nvrtc().getVersion()])
    key = hashlib.sha256(text.encode()).hexdigest()
    if key in _temporary and _temporary[key].is_file():
        return _temporary[key]
    folder = cache_folder()
    folder = Path(os.path.expanduser(folder)).absolute()  # the path outlives a change of the working directory
    entry = _kept(folder, key)
    if entry is not None:
        return entry
    code = _compile(source, headers, architecture)
    try:
        return _keep(folder, key, code)
    except OSError as error:
        if folder not in _unusable:
            _unusable.add(folder)
            warnings.warn(
                f"compiled kernels cannot be kept in {folder} ({error.strerror or error}), so each process compiles "
                "them again; set FUSEDOPT_CACHE_DIR to a folder that can be written.",
                RuntimeWarning,
                stacklevel=2,
            )
        _temporary[key] = _temporary_file(code)
        return _temporary[key]


def _entry_name(key: str, code: bytes) -> str:
    # The digest covers the key too, so another entry's content under this name is seen. 64 bits are plenty for damage.
    return f"{key}-{hashlib.sha256(key.encode() + code).hexdigest()[:16]}.cubin"


def _kept(folder: Path, key: str) -> Path | None:
    """The whole entry of a key; where there are only damaged ones, they are reported."""
    try:
        paths = sorted(folder.glob(f"{key}-*"))
    except OSError:
        return None
    damaged = []
    for path in paths:
        try:
            if path.name == _entry_name(key, path.read_bytes()):
                return path
        except OSError:
            pass
        damaged.append(path)
    for path in damaged:
        warnings.warn(f"{path} is damaged; its kernel is compiled again.", RuntimeWarning, stacklevel=3)
    return None


def _keep(folder: Path, key: str, code: bytes) -> Path:
    """Writes an entry, which appears whole or not at all; raises OSError where it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _entry_name(key, code)
    unfinished = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        unfinished.write_bytes(code)  # no fsync: an entry that a crash cut short is seen when it is read
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _temporary_file(code: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="fusedopt-", suffix=".cubin")
    with open(descriptor, "wb") as file:
        file.write(code)
    owner = os.getpid()

    @atexit.register
    def remove() -> None:
        if os.getpid() == owner:  # a forked child leaves it to its parent
            Path(name).unlink(missing_ok=True)

    return Path(name)


def nvrtc_version() -> tuple[int, int]:
    """NVRTC's version.

    Raises:
        CompilerMissingError: CuPy or NVRTC cannot be loaded; the message has the line that installs it.
    """
    major, minor = _nvrtc().getVersion()
    return int(major), int(minor)


def _nvrtc() -> Any:
    """CuPy's binding of NVRTC, its library loaded."""
    try:
        from cupy_backends.cuda.libs import nvrtc
    except ImportError as error:
        raise CompilerMissingError(
            f"CUDA kernels are compiled through CuPy, which cannot be imported ({error}); install it: "
            "pip install 'fusedopt[cuda13]', or pip install 'fusedopt[cuda12]' for a driver older than 580"
        ) from error
    try:
        nvrtc.getVersion()  # the first call loads the library
    except (RuntimeError, OSError) as error:
        # The extra must be that of the CuPy there is: two CuPys break each other.
        extra = "cuda12" if any(importlib.metadata.distributions(name="cupy-cuda12x")) else "cuda13"
        raise CompilerMissingError(
            f"CuPy is installed, but NVRTC, the library that compiles CUDA, cannot be loaded ({error}); "
            f"install it: pip install 'fusedopt[{extra}]'"
        ) from error
    return nvrtc


def _compile(source: str, headers: Mapping[str, str], architecture: str) -> bytes:
    nvrtc = _nvrtc()
    texts, names = [text.encode() for text in headers.values()], [name.encode() for name in headers]
    program = nvrtc.createProgram(source, SOURCE_NAME, texts, names)
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}", *OPTIONS))
        if architecture.startswith("compute_"):
            return bytes(nvrtc.getPTX(program))
        # CuPy cuts the last byte off, as if it ended a string. It is the high byte of the last program header's
        # alignment, so zero. Should a later CuPy leave it, one byte is too many, which ELF, read by offsets, ignores.
        return bytes(nvrtc.getCUBIN(program)) + b"\0"
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip()
        around = _lines_around_errors(log, {SOURCE_NAME: source, **headers})
        raise CompileError(f"NVRTC cannot compile for {architecture}: {error}\n{log}\n{around}".rstrip()) from None
    finally:
        nvrtc.destroyProgram(program)


def _lines_around_errors(log: str, texts: Mapping[str, str]) -> str:
    """The source around the first three errors of a log, numbered."""
    shown = []
    for name, number in re.findall(r"^(\S+)\((\d+)\): (?:catastrophic )?error", log, re.MULTILINE)[:3]:
        at, first = int(number), max(int(number) - 3, 1)
        lines = texts.get(name, "").splitlines()[first - 1 : at + 3]
        numbered = (f"{'>' if i == at else ' '}{i:5d} | {line}" for i, line in enumerate(lines, first))
        shown += [f"\n{name}:", *numbered]
    return "\n".join(shown)
