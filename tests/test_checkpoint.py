"""What is loaded is what was saved, to the bit; a save happens whole or not at all; damage is told, never loaded."""

import collections
import enum
import errno
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedopt import checkpoint
from fusedopt.checkpoint import CheckpointError, load, save

posix = pytest.mark.skipif(os.name == "nt", reason="modes, links and limits as POSIX has them")


class FakeCuPy:
    """CuPy's array as far as a checkpoint sees one: NumPy must not convert it, only get() copies it to the host."""

    def __init__(self, host):
        self.host, self.copies = host, 0
        self.dtype, self.shape = host.dtype, host.shape
        self.__cuda_array_interface__ = {
            "shape": host.shape,
            "typestr": host.dtype.str,
            "data": (0, False),
            "version": 3,
        }

    def get(self):
        self.copies += 1
        return self.host.copy()

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")


def bits(value):
    """A form in which two values are equal if and only if type, dtype, shape, order of keys and every bit are."""
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype, value.shape, value.tobytes()
    if isinstance(value, float):
        return float, struct.pack(">d", value)
    if isinstance(value, dict):
        return dict, [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [bits(item) for item in value]
    return type(value), value


def adam_state(parameters=2):
    """A state dict as optimizers have them: small, and with every kind of node."""
    rng = np.random.default_rng(0)
    moments = {
        index: {
            "step": np.float64(3),
            "exp_avg": rng.standard_normal((3, 4)).astype(np.float32),
            "exp_avg_sq": rng.standard_normal((2, 5)).astype(ml_dtypes.bfloat16),
        }
        for index in range(parameters)
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "maximize": False, "foreach": None, "params": [0, 1], "end": math.inf}
    return {"state": moments, "param_groups": [group], "seed": 2**80, "rng": b"\0\xff", "name": np.str_("a\0")}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adam.ckpt"


# Round trips

DTYPES = [
    *(
        "?",
        "i1",
        "u2",
        "i4",
        "u8",
        "f2",
        "f4",
        "f8",
        "g",
        "c8",
        "c16",
        ">f4",
        ">i8",
        "U3",
        "S5",
        "V7",
        "M8[ns]",
        "m8[7s]",
    ),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4),
    [("a", "<f4"), ("b", "<i2", (2, 3))],
]


@st.composite
def arrays(draw):
    """An array of random bits: so NaN payloads, subnormals, negative zeros; contiguous, turned, reversed or strided."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    limit = 2 if dtype.kind == "b" else 256
    array = np.frombuffer(rng.integers(0, limit, math.prod(shape) * dtype.itemsize, np.uint8).tobytes(), dtype)
    array = array.reshape(shape)
    steps = tuple(slice(None, None, draw(st.sampled_from([1, 1, 2, -1]))) for _ in shape)
    return draw(st.sampled_from([np.ndarray.view, np.transpose]))(array)[(..., *steps)]


leaves = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.binary(), arrays()),
    *(st.text(max_size=3).map(np.str_), st.binary(max_size=3).map(np.bytes_)),
    st.integers(0, 20000).map(lambda power: -(3**power)),
    st.sampled_from([np.float32(-0.0), np.bool_(True), np.int8(-3), np.complex64(1j), ml_dtypes.bfloat16(1.5)]),
    st.sampled_from([np.datetime64("2026-01-01", "D"), np.void(b"ab"), np.float16("nan")]),
)
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(array=arrays())
@settings(deadline=None, max_examples=200)
def test_an_array_keeps_its_dtype_its_shape_and_its_bits(tmp_path_factory, array):
    path = tmp_path_factory.getbasetemp() / "array"
    save(path, array)
    assert bits(load(path)) == bits(array)


@pytest.mark.parametrize("pattern", [0x7FF8000000000000, 0xFFF8000000000ABC, 0x7FF0000000000000, 0xFFF0000000000000, 1])
def test_a_float_keeps_its_sign_and_its_payload(path, pattern):
    (value,) = struct.unpack(">d", pattern.to_bytes(8, "big"))
    save(path, value)
    assert struct.pack(">d", load(path)) == pattern.to_bytes(8, "big")


@given(state=states)
@settings(deadline=None, max_examples=150)
def test_what_is_loaded_equals_what_was_saved_to_the_bit(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "round-trip"
    save(path, state)
    assert bits(load(path)) == bits(state)


@pytest.mark.parametrize("text", ["", "a\0", "\ud83d\ude00", "😀", "\udcff", "\N{NARROW NO-BREAK SPACE}\r\n\x85"])
def test_text_keeps_every_code_point(path, text):
    save(path, {text: text})
    assert load(path) == {text: text}


def test_keys_keep_their_type_and_their_order(path):
    state = {"1": "a", 1: "b", -(2**64): "c", "0": "d", 0: "e"}
    save(path, state)
    assert bits(load(path)) == bits(state)


def test_a_long_double_keeps_its_digits(path):
    save(path, np.longdouble("0.1"))  # its padding bytes are anything, so that it is no case for bits()
    assert repr(load(path)) == repr(np.longdouble("0.1"))


def test_a_structured_array_keeps_its_offsets_and_every_field(path):
    array = np.zeros(3, np.dtype("i1,f8", align=True))  # the 7 bytes between are anything: numpy.copy drops them too
    array["f0"], array["f1"] = [1, 2, 3], [-0.0, np.nan, np.inf]
    save(path, array)
    assert load(path).dtype == array.dtype
    assert all(bits(load(path)[field].copy()) == bits(array[field].copy()) for field in ("f0", "f1"))


@pytest.mark.parametrize("dtype", ["V0", "f4"])
def test_an_array_of_no_bytes_keeps_its_shape(path, dtype):
    array = np.zeros((3, 0, 2), dtype)
    save(path, array)
    assert bits(load(path)) == bits(array)


def test_loaded_arrays_can_be_written(path):
    save(path, np.zeros(3, np.float32))
    array = load(path)
    array += 1
    assert array.tolist() == [1, 1, 1]


def test_an_array_on_a_device_is_copied_once_and_loaded_as_numpy(path):
    host = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    device = FakeCuPy(host)
    save(path, {"p": device})
    assert device.copies == 1
    assert bits(load(path)) == bits({"p": host})


def test_the_same_state_gives_the_same_bytes_at_any_time(path, monkeypatch):
    save(path, adam_state())
    first = path.read_bytes()
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time((2040, 1, 1, 0, 0, 0, 0, 1, 0)))
    save(path, adam_state())
    assert path.read_bytes() == first


@pytest.mark.parametrize("convert", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
def test_a_path_may_be_of_any_kind_and_suffix(tmp_path, convert):
    save(convert(tmp_path / "état.tar.pt"), [1])
    assert load(convert(tmp_path / "état.tar.pt")) == [1]


def test_numpy_alone_reads_the_arrays(path):
    state = adam_state()
    save(path, state)
    with np.load(path, allow_pickle=False) as arrays:
        assert bits(arrays["1.state.state.0.exp_avg"]) == bits(state["state"][0]["exp_avg"])
        assert bits(arrays["2.state.state.0.exp_avg_sq"]) == bits(state["state"][0]["exp_avg_sq"].view(np.uint16))
        tree = json.loads(arrays["tree.json"])
    assert (tree["format"], tree["version"]) == ("fusedopt.checkpoint", 1)


def test_no_second_copy_of_the_state_is_made(path):
    size = 16 << 20
    state = [FakeCuPy(np.ones((1024, size // 1024), np.int8)) for _ in range(4)] + [np.ones(8 * size, np.int8)[::2]]
    tracemalloc.start()
    try:
        save(path, state)
        saving = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        load(path)
        loading = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    # Saving: an array from the device, or NumPy's buffer of 16 MiB, and the chunk of 16 MiB that is written from it.
    # Loading: the state, which is eight sizes, and 4 MiB at a time, of which zipfile holds a copy.
    assert saving < 2.5 * size
    assert loading < 9 * size


# What cannot be saved


class Color(enum.IntEnum):
    RED = 1


class Point(collections.namedtuple("Point", "x y")):
    pass


UNSUPPORTED = {
    "set": ({"state": {0: {"exp_avg": {1}}}}, r"^state\['state'\]\[0\]\['exp_avg'\] is a builtins\.set"),
    "object": ([(np.array([None]),)], r"^state\[0\]\[0\] has dtype object"),
    "nested object": ([np.zeros(2, [("a", "O")])], r"^state\[0\] has dtype"),
    "string dtype": ([np.array(["a"], np.dtypes.StringDType())], r"^state\[0\] has dtype StringDType"),
    "overlapping fields": (
        [np.zeros(1, {"names": "ab", "formats": ["f4"] * 2, "offsets": [0, 0]})],
        r"^state\[0\] has",
    ),
    "bfloat16 field": ([np.zeros(1, [("a", ml_dtypes.bfloat16)])], r"^state\[0\] has dtype"),
    "swapped bfloat16": ([np.zeros(1, np.dtype(ml_dtypes.bfloat16).newbyteorder())], r"^state\[0\] has dtype"),
    "device object": ([FakeCuPy(np.array([None]))], r"^state\[0\] has dtype object"),
    "masked": ({"m": np.ma.masked_array([1.0], [True])}, r"^state\['m'\] is a numpy\.ma\.MaskedArray"),
    "class": ({"c": Path()}, r"^state\['c'\] is a pathlib\."),
    "complex": ([1j], r"^state\[0\] is a builtins\.complex"),
    "enum": ([Color.RED], r"^state\[0\] is a .*Color"),
    "namedtuple": ([Point(1, 2)], r"^state\[0\] is a .*Point"),
    "OrderedDict": ([collections.OrderedDict()], r"^state\[0\] is a collections\.OrderedDict"),
    "tuple key": ({"a": {(1, 2): 0}}, r"^state\['a'\] has the key \(1, 2\) of type tuple"),
    "bool key": ({"a": {True: 0}}, r"^state\['a'\] has the key True of type bool"),
}


@pytest.mark.parametrize(("state", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_saved_is_named_by_its_place_before_a_file_is_touched(path, monkeypatch, state, message):
    monkeypatch.setattr(checkpoint, "open", None, raising=False)
    with pytest.raises(TypeError, match=message):
        save(path, state)
    assert os.listdir(path.parent) == []


# Whole or not at all


class FullDisk(io.FileIO):
    """A file on a disk with room for `room` bytes."""

    room = 0

    def write(self, data):
        if self.tell() + memoryview(data).nbytes > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def fails(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.fixture
def old(path):
    """The path of a good checkpoint; afterwards it must be there as it was, and nothing beside it."""
    save(path, "old")
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("room", [0, 100, 1000, 5000, 20000])
def test_a_full_disk_leaves_the_old_file(old, monkeypatch, room):
    full = type("Full", (FullDisk,), {"room": room})
    monkeypatch.setattr(checkpoint, "open", lambda path, mode: io.BufferedWriter(full(path, mode)), raising=False)
    with pytest.raises(OSError, match="No space left"):
        save(old, [*(np.zeros(1000) for _ in range(3)), "x" * 30000])


@posix
def test_a_limit_that_the_system_sets_leaves_the_old_file(old):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            save(old, np.zeros(100000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_system_call_that_fails_leaves_the_old_file(old, monkeypatch, call):
    monkeypatch.setattr(os, call, fails(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        save(old, [np.zeros(3)])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_between_two_arrays_leaves_the_old_file(old, monkeypatch, error):
    device = FakeCuPy(np.zeros(3))
    monkeypatch.setattr(device, "get", fails(error))
    with pytest.raises(error):
        save(old, [np.zeros(3), device])


def test_the_file_is_on_disk_before_it_takes_the_name_and_the_folder_after(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.fstat(fd)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), replace(old, new)))
    save(path, adam_state())
    file, replaced, *folder = calls
    assert (file.st_ino, file.st_size, replaced) == (path.stat().st_ino, path.stat().st_size, "replace")
    if os.name != "nt":
        assert [found.st_ino for found in folder] == [path.parent.stat().st_ino]


@posix
def test_a_folder_that_cannot_be_synced_is_no_error(path, monkeypatch):
    monkeypatch.setattr(os, "open", fails(OSError(errno.EINVAL, "Invalid argument")))
    save(path, [1])
    assert load(path) == [1]


WRITER = """
import sys, numpy as np
from fusedopt.checkpoint import save
path, writer = sys.argv[1], int(sys.argv[2])
for turn in range(60):
    save(path, {"writer": writer, "turn": turn, "a": np.full(20000, writer), "b": np.full(10, turn)})
"""


def test_a_reader_sees_a_whole_file_while_two_processes_write(path):
    save(path, {"writer": 0, "turn": 0, "a": np.full(20000, 0), "b": np.full(10, 0)})
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)], env=env) for n in (1, 2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        state = load(path)
        assert np.array_equal(state["a"], np.full(20000, state["writer"]))
        assert np.array_equal(state["b"], np.full(10, state["turn"]))
        seen.add(state["writer"])
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen & {1, 2}
    assert os.listdir(path.parent) == [path.name]


@posix
@pytest.mark.parametrize("exists", [True, False])
def test_a_symlink_stays_and_what_it_points_to_is_replaced(tmp_path, exists):
    (tmp_path / "run").mkdir()
    target, link, chain = tmp_path / "run" / "step-7", tmp_path / "latest", tmp_path / "best"
    link.symlink_to(target)
    chain.symlink_to("latest")
    if exists:
        save(target, "old")
    save(chain, "new")
    assert load(target) == load(link) == "new"
    assert link.readlink() == target
    assert chain.readlink() == Path("latest")
    assert sorted(os.listdir(tmp_path)) == ["best", "latest", "run"]


@posix
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_mode_is_what_open_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "opened").write_text("")
        save(tmp_path / "saved", [1])
    finally:
        os.umask(before)
    assert (tmp_path / "saved").stat().st_mode == (tmp_path / "opened").stat().st_mode


@posix
def test_a_file_that_was_there_keeps_its_mode(path):
    save(path, [1])
    path.chmod(0o640)
    save(path, [2])
    assert path.stat().st_mode & 0o777 == 0o640


@posix
@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", None)], ids=["folder", "fifo"])
def test_only_a_regular_file_is_replaced(path, make):
    make(path)
    with pytest.raises(FileExistsError, match=r"adam\.ckpt is not a regular file; give save"):
        save(path, [1])
    assert os.listdir(path.parent) == [path.name]


# Damage


def test_a_missing_file_stays_file_not_found(path):
    with pytest.raises(FileNotFoundError, match=r"adam\.ckpt"):
        load(path)


def test_an_error_of_the_disk_is_not_called_damage(path, monkeypatch):
    save(path, np.zeros(3))
    monkeypatch.setattr(zipfile.ZipExtFile, "read", fails(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        load(path)


def test_a_file_cut_short_anywhere_is_told(path):
    save(path, adam_state())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"adam\.ckpt.* load another copy"):
            load(path)


def test_a_byte_changed_anywhere_is_told_or_does_not_matter(path):
    state = adam_state(parameters=1)
    save(path, state)
    whole = path.read_bytes()
    told = 0
    for position in range(len(whole)):
        for mask in (0x01, 0x08, 0x20, 0xFF):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
            try:
                assert bits(load(path)) == bits(state)
            except CheckpointError as error:
                assert "adam.ckpt" in str(error) and "load another copy" in str(error)  # noqa: PT017, PT018
                told += 1
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        contents = sum(info.file_size for info in archive.infolist())
    assert told >= 4 * contents


def test_a_byte_changed_in_an_array_names_the_array(path):
    state = adam_state()
    save(path, state)
    content = state["state"][1]["exp_avg"].tobytes()
    path.write_bytes(path.read_bytes().replace(content, content[:-1] + bytes([content[-1] ^ 1])))
    with pytest.raises(CheckpointError, match=r"adam\.ckpt: array 4\.state\.state\.1\.exp_avg\.npy is damaged"):
        load(path)


def rewritten(path, change):
    """Write the zip at `path` anew, with whole CRCs and the same comment, its members as `change` leaves them."""
    with zipfile.ZipFile(path) as archive:
        members, comment = {name: archive.read(name) for name in archive.namelist()}, archive.comment
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.comment = comment


def test_a_member_that_is_missing_is_named(path):
    save(path, adam_state())
    rewritten(path, lambda members: members.pop("5.state.state.1.exp_avg_sq.npy"))
    with pytest.raises(CheckpointError, match=r"array 5\.state\.state\.1\.exp_avg_sq\.npy is damaged, cut short"):
        load(path)


def test_arrays_that_changed_places_are_told_though_their_crcs_are_right(path):
    def swap(members):
        one, two = "0.state.0.npy", "1.state.1.npy"
        members[one], members[two] = members[two], members[one]

    save(path, [np.zeros(3), np.ones(3)])
    rewritten(path, swap)
    with pytest.raises(CheckpointError, match=r"array 0\.state\.0\.npy .* do not match its SHA-256"):
        load(path)


def test_a_tree_that_was_edited_is_told_though_its_crc_is_right(path):
    save(path, {"lr": 0.001})
    rewritten(path, lambda members: members.update({"tree.json": members["tree.json"].replace(b"0.001", b"0.002")}))
    with pytest.raises(CheckpointError, match=r"tree\.json does not match its SHA-256"):
        load(path)


def test_an_archive_packed_again_with_compression_still_loads(path):
    save(path, adam_state())
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
        packed.comment = archive.comment
    assert bits(load(path.with_suffix(".zip"))) == bits(adam_state())


@pytest.mark.parametrize(("constant", "value"), [("_VERSION", 2), ("_FORMAT", "somebody.else")])
def test_a_later_version_or_another_format_says_what_reads_it(path, constant, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, constant, value)
        save(path, [1])
    with pytest.raises(
        CheckpointError, match=rf"adam\.ckpt has format .*{value}.* load it with the fusedopt that wrote"
    ):
        load(path)


@pytest.mark.parametrize("content", [b"", b"hello\n" * 100, b"PK\5\6" + bytes(18), b"\x80\x04K\x01."])
def test_what_is_no_checkpoint_is_told(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"adam\.ckpt.* no fusedopt checkpoint.*; load another copy"):
        load(path)


def test_an_npz_of_numpy_is_told(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"zip file without tree\.json"):
        load(path)


def test_a_checkpoint_is_still_one_after_it_was_moved(path):
    save(path, [1])
    shutil.move(path, path.with_name("elsewhere"))
    assert load(path.with_name("elsewhere")) == [1]
