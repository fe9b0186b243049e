"""Save a state to one file and load it, every bit the same; what the state means is not known here.

The file is an uncompressed ``.npz``: a zip of one ``.npy`` an array, which ``numpy.load`` shows to anybody, and last
``tree.json``, ``{"format": "fusedopt.checkpoint", "version": 1, "state": node}``. A node is null, true, false, a
string, a number, a list of nodes, or an object whose only key says what JSON cannot::

    {"dict": [[key, value], ...]}  {"tuple": [...]}  {"bytes": hex}  {"int": hex, from 2**53 on}
    {"float": hex of the big-endian bits, for inf and nan}  {"str_": text}  {"bytes_": hex}
    {"array": entry}  {"scalar": entry, of shape []}

An entry has the member's name, dtype, shape, order and SHA-256; a type of ml_dtypes is kept as unsigned integers of its
bits. Not kept: memory order that is neither C nor Fortran, the padding between a structured dtype's fields. The SHA-256
of ``tree.json`` is the zip's comment.
"""

import ast
import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import struct
import uuid
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

import ml_dtypes
import numpy as np

_FORMAT, _VERSION, _TREE = "fusedopt.checkpoint", 1, "tree.json"
_CURE = "load another copy of it, or save it again"
_CHUNK = 1 << 22  # bytes read and hashed at a time: small enough to stay in a core's cache, large enough to hide Python

# Leaves that JSON lacks: a node's key, the type, the way there and back. str_ and bytes_ are no scalars, since an array
# drops their trailing NULs.
_LEAVES: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "int": (int, hex, partial(int, base=16)),
    "float": (float, lambda x: struct.pack(">d", x).hex(), lambda text: struct.unpack(">d", bytes.fromhex(text))[0]),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "str_": (np.str_, "".join, np.str_),  # str() would drop them too
    "bytes_": (np.bytes_, bytes.hex, lambda text: np.bytes_(bytes.fromhex(text))),
}


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of a version known here."""


def save(path: str | os.PathLike[str], state: object) -> None:
    """Write `state` to `path`, whole or not at all: a file that was there stays as it was until the new one is on disk.

    path: any suffix; a symlink is followed; the file's mode is as after ``open(path, "w")``.
    state: a nest of dict (keys str or int), list, tuple, str, bytes, bool, None, int, float, NumPy scalars, and NumPy
        or CuPy arrays of any shape and any dtype but object. CuPy arrays are copied to the host one at a time.

    Raises TypeError for anything else, naming its place, before a file is touched; OSError where the disk fails.

    Source: numpy.savez and numpy.lib.format for the container.
    """
    arrays: list[tuple[dict[str, Any], Any]] = []
    node = _encode(state, "state", arrays)
    target = os.path.realpath(os.fsdecode(path))
    if os.path.exists(target) and not os.path.isfile(target):
        raise FileExistsError(f"{target} is not a regular file; give save the path of a file, or a new one.")
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".fusedopt-{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:  # not mkstemp, whose mode 0600 nobody else could read
            if os.path.exists(target):
                shutil.copymode(target, temporary)
            with zipfile.ZipFile(file, "w") as archive:
                for entry, array in arrays:
                    _write_array(archive, entry, array)
                _write_tree(archive, node)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):  # Windows opens no folder, and some network disks sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: str | os.PathLike[str]) -> Any:
    """Return the state that `save` wrote to `path`: the same types, dtypes, shapes, key order and bits.

    Arrays come back as NumPy arrays, whatever they were saved from.

    Raises CheckpointError (a ValueError) for a file that is damaged, cut short, something else, or of a later version;
    FileNotFoundError for none. Each array is checked against its SHA-256; nothing is unpickled.
    """
    name = os.fsdecode(path)
    with open(name, "rb") as file, _damage_reported(name, "the file"), zipfile.ZipFile(file) as archive:
        return _decode(_read_tree(archive, name), partial(_read_array, archive, name))


def _encode(value: Any, place: str, arrays: list[tuple[dict[str, Any], Any]]) -> Any:
    """The node of `value`. Adds each array to `arrays` with its entry, which is filled in when the array is written."""
    kind = type(value)  # exact, since a subclass (an enum, a namedtuple, an OrderedDict) would come back as its base
    if value is None or kind is bool or kind is str:
        return value
    if (kind is int and abs(value) < 2**53) or (kind is float and math.isfinite(value)):
        return value  # from 2**53 on, other readers of JSON round
    for tag, (leaf, to_text, _) in _LEAVES.items():
        if kind is leaf:
            return {tag: to_text(value)}
    if kind is list or kind is tuple:
        nodes = [_encode(item, f"{place}[{i}]", arrays) for i, item in enumerate(value)]
        return nodes if kind is list else {"tuple": nodes}
    if kind is dict:
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{place} has the key {key!r} of type {type(key).__name__}; a key must be str or int.")
        return {"dict": [[_encode(k, place, arrays), _encode(v, f"{place}[{k!r}]", arrays)] for k, v in value.items()]}
    if kind in (np.ndarray, np.memmap) or isinstance(value, np.generic) or _on_device(value):
        spelled = re.sub(r"[^A-Za-z0-9_]+", ".", place).strip(".")[:100]
        entry = {"member": f"{len(arrays)}.{spelled}.npy", "dtype": _dtype_text(value.dtype, place)}
        arrays.append((entry, value))
        return {"scalar" if isinstance(value, np.generic) else "array": entry}
    raise TypeError(
        f"{place} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold; make it a dict, list, "
        "tuple, str, bytes, bool, None, int, float, or a NumPy or CuPy array."
    )


def _decode(node: Any, read: Callable[[dict[str, Any]], np.ndarray]) -> Any:
    """The value of a node; `read` returns the array of an entry."""
    if isinstance(node, list):
        return [_decode(item, read) for item in node]
    if not isinstance(node, dict):
        return node
    ((tag, body),) = node.items()
    if tag == "dict":
        return {_decode(key, read): _decode(value, read) for key, value in body}
    if tag == "tuple":
        return tuple(_decode(body, read))
    if tag in ("array", "scalar"):
        array = read(body)
        return array[()] if tag == "scalar" else array
    return _LEAVES[tag][2](body)


def _on_device(value: Any) -> bool:
    """Whether `value` is an array as CuPy's, told by its methods: to import CuPy takes a second, where it is at all."""
    return hasattr(value, "__cuda_array_interface__") and hasattr(value, "get")


def _dtype_text(dtype: np.dtype[Any], place: str) -> str:
    """A dtype as .npy headers spell it, or by its name in ml_dtypes, whose types .npy would keep as nameless bytes."""
    if getattr(ml_dtypes, dtype.name, None) is dtype.type and dtype.isnative:
        return str(dtype.name)
    with contextlib.suppress(TypeError, ValueError):  # overlapping fields, or a dtype that .npy has no word for
        descr: Any = "" if dtype.hasobject else np.lib.format.dtype_to_descr(dtype)
        if np.lib.format.descr_to_dtype(descr) == dtype:
            return descr if isinstance(descr, str) else repr(descr)
    raise TypeError(f"{place} has dtype {dtype}, which a checkpoint cannot hold; make it one that .npy files have.")


def _dtype(text: str) -> np.dtype[Any]:
    """The dtype of `_dtype_text`."""
    scalar: type[Any] | None = getattr(ml_dtypes, text, None)
    descr: Any = ast.literal_eval(text) if text.startswith("[") else text
    return np.dtype(scalar) if scalar else np.lib.format.descr_to_dtype(descr)


class _HashingWriter:
    """A file's `write`, and the SHA-256 of all that went through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def _write_array(archive: zipfile.ZipFile, entry: dict[str, Any], value: Any) -> None:
    """Write the array and complete its entry. A function, so that a copy from a device is gone before the next."""
    array = np.asarray(value.get() if _on_device(value) else value)
    if hasattr(ml_dtypes, entry["dtype"]):
        array = array.view(f"u{array.itemsize}")
    with archive.open(entry["member"], "w", force_zip64=True) as member:  # its size may pass 2 GiB
        writer = _HashingWriter(member)
        np.lib.format.write_array(writer, array, allow_pickle=False)
    entry |= {"shape": array.shape, "fortran_order": array.flags.fnc, "sha256": writer.sha256.hexdigest()}


def _write_tree(archive: zipfile.ZipFile, state: Any) -> None:
    """Write the node of the whole state, whose entries are complete by now."""
    tree = {"format": _FORMAT, "version": _VERSION, "state": state}
    # surrogatepass: a str may hold half a surrogate pair; json.loads decodes in the same way.
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
    with archive.open(_TREE, "w", force_zip64=True) as member:
        member.write(text)
    archive.comment = hashlib.sha256(text).hexdigest().encode()


@contextlib.contextmanager
def _damage_reported(name: str, what: str) -> Iterator[None]:
    """Turn whatever `zipfile` raises over damaged bytes, a dozen types, into a CheckpointError."""
    try:
        yield
    except (CheckpointError, MemoryError, RecursionError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's own; EINVAL comes from seeking to an offset that is damaged
        raise CheckpointError(
            f"{name}: {what} is damaged, cut short, or no fusedopt checkpoint ({error}); {_CURE}."
        ) from error


def _read_tree(archive: zipfile.ZipFile, name: str) -> Any:
    """The node of the whole state, from a tree that is intact and of a known version."""
    if _TREE not in archive.namelist():
        raise CheckpointError(f"{name} is a zip file without {_TREE}, so no fusedopt checkpoint; {_CURE}.")
    text = archive.read(_TREE)
    if hashlib.sha256(text).hexdigest().encode() != archive.comment:
        raise CheckpointError(f"{name}: {_TREE} does not match its SHA-256 in the zip's comment; {_CURE}.")
    tree = json.loads(text)
    if tree["format"] != _FORMAT or tree["version"] != _VERSION:
        raise CheckpointError(
            f"{name} has format {tree['format']!r} version {tree['version']!r}, and this fusedopt reads {_FORMAT!r} "
            f"version {_VERSION}; load it with the fusedopt that wrote it, or a later one."
        )
    return tree["state"]


def _read_array(archive: zipfile.ZipFile, name: str, entry: dict[str, Any]) -> np.ndarray:
    """The array of an entry, read once: the entry says dtype and shape, so the .npy header is hashed, not parsed."""
    with _damage_reported(name, f"array {entry['member']}"), archive.open(entry["member"]) as member:
        dtype = _dtype(entry["dtype"])
        data = np.empty(math.prod(entry["shape"]) * dtype.itemsize, np.uint8)
        sha256 = hashlib.sha256(member.read(archive.getinfo(entry["member"]).file_size - data.size))
        for start in range(0, data.size, _CHUNK):
            chunk = member.read(_CHUNK)
            sha256.update(chunk)
            data[start : start + _CHUNK] = np.frombuffer(chunk, np.uint8)
        if sha256.hexdigest() != entry["sha256"]:
            raise ValueError("its bytes do not match its SHA-256")
        array: np.ndarray = np.ndarray(entry["shape"], dtype, data, order="F" if entry["fortran_order"] else "C")
        return array
