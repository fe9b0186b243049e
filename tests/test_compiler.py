"""The compiler and its cache on disk, and the reader of machine code that other tests judge kernels by."""

import errno
import hashlib
import os
import stat
import struct
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

import machine_code
from fusedopt import compiler

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")

SMALL = '#include "value.cuh"\nextern "C" __global__ void fill(float* x) { x[threadIdx.x] = VALUE; }\n'
SEVEN = {"value.cuh": "#define VALUE 7.f\n"}

# One saxpy as it should be, and the faults that the reader is there to see, each planted in a kernel of its own.
KERNELS = """
struct Span { float4* x; float4* y; };

template <class T> __device__ T* global(T* pointer) {
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

__device__ void saxpy_of(const float4* x, float4* y, float a, unsigned count) {
  #pragma unroll 1
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
    float4 u = x[i], v = y[i];
    v.x += a * u.x, v.y += a * u.y, v.z += a * u.z, v.w += a * u.w;
    y[i] = v;
  }
}

extern "C" __global__ void saxpy(Span* spans, float a, unsigned count) {
  spans[1].x = 0;  // a table that is written: what NVRTC reads from a constant one it takes for global by itself
  Span span = spans[0];
  saxpy_of(global(span.x), global(span.y), a, count);
}

extern "C" __global__ void generic(Span* spans, float a, unsigned count) {
  spans[1].x = 0;
  Span span = spans[0];
  saxpy_of(span.x, span.y, a, count);
}

extern "C" __global__ void local_array(float* x, int count, int at) {
  float kept[40];
  for (int i = 0; i < 40; i++) kept[i] = 0;
  for (int i = 0; i < count; i++) kept[(i * at) % 40] += x[i];
  x[0] = kept[at];
}

extern "C" __global__ void __launch_bounds__(1024) spills(float* x) {
  float kept[64];
  #pragma unroll
  for (int i = 0; i < 64; i++) kept[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 64; i++) x[i * 1024 + threadIdx.x] = kept[i] * kept[(i + 13) & 63] + kept[(i + 31) & 63];
}

extern "C" __global__ void widths(double* d, unsigned short* h, signed char* c, unsigned* t) {
  __shared__ double held[64];
  held[threadIdx.x] = d[threadIdx.x];
  __syncthreads();
  d[threadIdx.x] = held[63 - threadIdx.x];
  if (threadIdx.x < 8) {
    h[1] = h[0];
    c[1] = c[0];
  }
  if (atomicAdd(t, 1u) == 3) t[1] = 0;
}
"""


@pytest.fixture
def nvrtc():
    try:
        return compiler._nvrtc()
    except compiler.CompilerMissingError:
        machine_code.missing("NVRTC", "cupy-cuda13x nvidia-cuda-nvrtc")


@pytest.fixture
def cache(nvrtc, tmp_path, monkeypatch):
    """An empty cache folder, and a compiler that has warned of nothing yet."""
    monkeypatch.setenv("FUSEDOPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_temporary", {})
    monkeypatch.setattr(compiler, "_unusable", set())
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch):
    """A list that grows by one architecture with each compilation."""
    seen, compile_it = [], compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda *text: seen.append(text[2]) or compile_it(*text))
    return seen


@pytest.fixture(params=ARCHITECTURES)
def kernels(request, nvrtc):
    if request.param not in _read:
        _read[request.param] = machine_code.read(compiler._compile(KERNELS, {}, request.param))
    return _read[request.param]


_read = {}


def python(program, *arguments, **environment):
    """Starts a program in a Python of its own, where a warning is an error."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def output_of(*processes):
    """What they all said: one line, the same from each."""
    said = [process.communicate(timeout=60) for process in processes]  # each is waited for before any fails the test
    for process, (_, err) in zip(processes, said, strict=True):
        assert process.returncode == 0, err
    (line,) = {out.strip() for out, _ in said}
    return line


# Machine code


def test_a_clean_kernel_has_nothing_but_wide_global_accesses(kernels):
    saxpy = kernels["saxpy"]
    assert saxpy.memory == {"STG.64": 1, "LDG.64": 2, "LDG.128": 2, "STG.128": 1}
    assert saxpy.count("LDG", "STG") == 6
    assert (saxpy.stack, saxpy.local, saxpy.shared) == (0, 0, 0)
    assert 8 < saxpy.registers < 64


def test_generic_accesses_are_seen(kernels):
    generic = kernels["generic"]
    assert generic.memory == {"STG.64": 1, "LDG.64": 2, "LD.128": 2, "ST.128": 1}
    assert generic.count("LD", "ST") == 3


def test_a_local_array_is_seen(kernels):
    kernel = kernels["local_array"]
    assert kernel.stack >= 160  # 40 floats
    assert kernel.count("LDL") > 0
    assert kernel.count("STL") > 0


def test_spills_are_seen(kernels):
    kernel = kernels["spills"]
    assert kernel.registers <= 64  # 1,024 threads share 65,536
    assert kernel.stack > 0
    assert min(kernel.count("LDL"), kernel.count("STL")) > 0


def test_widths_and_shared_memory_read_the_same_on_every_architecture(kernels):
    kernel = kernels["widths"]
    assert kernel.shared == 512
    names = "LDG.64 STS.64 LDS.64 STG.64 LDG.16 STG.16 LDG.8 STG.8 ATOMG.32 STG.32"
    assert kernel.memory == dict.fromkeys(names.split(), 1)


@pytest.mark.parametrize(
    ("spelled", "normal"),
    [
        ("LDG.E.128.CONSTANT.SYS", "LDG.128"),
        ("LDG.E.ENL2.256", "LDG.256"),
        ("STG.E.EF.64", "STG.64"),
        ("LDG.E.U16", "LDG.16"),
        ("LDG.E.S8.STRONG.GPU", "LDG.8"),
        ("LDS.U.64", "LDS.64"),
        ("LD.E", "LD.32"),
        ("STL", "STL.32"),
        ("ATOMG.E.ADD.F32.FTZ.RN.STRONG.GPU", "ATOMG.32"),
        ("RED.E.ADD.F64.RN.STRONG.GPU", "RED.64"),
    ],
)
def test_each_chips_spelling_becomes_one(spelled, normal):
    assert machine_code._opcode_and_bits(spelled) == normal


def test_what_is_not_a_cubin_is_refused(nvrtc):
    with pytest.raises(ValueError, match="cuobjdump cannot read"):
        machine_code.read(b"not a cubin")


def test_a_missing_tool_skips_the_test_and_fails_it_in_ci(monkeypatch):
    outcomes = []
    for value in ("", "true"):
        monkeypatch.setenv("CI", value)
        with pytest.raises((pytest.skip.Exception, pytest.fail.Exception), match="pip install a-wheel") as caught:
            machine_code.missing("a tool", "a-wheel")
        outcomes.append(caught.type)
    assert outcomes == [pytest.skip.Exception, pytest.fail.Exception]


# Compilation


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cubin_holds_its_last_byte(cache, architecture):
    """CuPy cuts it off: then the program headers, which come last, end one byte past the file."""
    code = compiler.compiled(SMALL, SEVEN, architecture).read_bytes()
    first, sections = struct.unpack_from("<QQ", code, 32)
    size, count, section_size, section_count = struct.unpack_from("<4H", code, 54)
    assert code[:4] == b"\x7fELF"
    assert max(first + size * count, sections + section_size * section_count) <= len(code)


def test_the_arithmetic_is_numpys(cache):
    """PTX spells roundings out: each operation rounds to nearest once, and denormals stay."""
    source = 'extern "C" __global__ void f(float* x) { x[0] = x[1] * x[2] + sqrtf(x[3]) / x[4]; }'
    ptx = compiler.compiled(source, {}, "compute_90").read_text()
    assert "sqrt.rn.f32" in ptx
    assert "div.rn.f32" in ptx
    assert "fma" not in ptx
    assert "ftz" not in ptx


@pytest.mark.parametrize(
    ("capability", "name"),
    [((9, 0), "sm_90"), ((8, 6), "sm_80"), ((12, 1), "sm_120"), ((10, 0), "sm_100"), ((13, 0), "compute_120")],
)
def test_a_gpu_newer_than_nvrtc_gets_the_newest_code_that_it_can_run(capability, name, monkeypatch):
    put_nvrtc(monkeypatch, getSupportedArchs=lambda: (75, 80, 90, 100, 120), getVersion=lambda: (13, 0))
    assert compiler.architecture_of(*capability) == name


def test_a_gpu_older_than_nvrtc_is_refused(monkeypatch):
    put_nvrtc(monkeypatch, getSupportedArchs=lambda: (75, 80, 90), getVersion=lambda: (13, 0))
    with pytest.raises(compiler.CompileError, match=r"7\.0, and .* compiles for 7\.5 and newer.*cuda12"):
        compiler.architecture_of(7, 0)


def test_an_error_shows_nvrtcs_log_and_the_lines_around(cache):
    source = '#include "value.cuh"\n\n\n\nextern "C" __global__ void f(float* x) {\n  x[0] = VALU;\n}\n'
    with pytest.raises(compiler.CompileError) as caught:
        compiler.compiled(source, SEVEN, "sm_90")
    message = str(caught.value)
    assert 'fusedopt.cu(6): error: identifier "VALU" is undefined' in message
    assert '     5 | extern "C" __global__ void f(float* x) {\n>    6 |   x[0] = VALU;\n     7 | }' in message
    assert not cache.exists()


def test_an_error_in_a_header_shows_the_header(cache):
    with pytest.raises(compiler.CompileError, match=r"value\.cuh:\n     1 \| #define VALUE 7\.f\n>    2 \| #error no$"):
        compiler.compiled(SMALL, {"value.cuh": "#define VALUE 7.f\n#error no\n"}, "sm_90")


def test_an_unknown_architecture_is_refused(cache):
    with pytest.raises(compiler.CompileError, match=r"cannot compile for sm_11: .*\n.*invalid value"):
        compiler.compiled(SMALL, SEVEN, "sm_11")


def test_a_header_includes_another(cache):
    headers = {"value.cuh": '#include "folder/seven.cuh"\n', "folder/seven.cuh": SEVEN["value.cuh"]}
    assert compiler.compiled(SMALL, headers, "sm_90").is_file()


def test_a_header_of_the_working_directory_is_not_read(cache, tmp_path, monkeypatch):
    """Its text would not be in the key."""
    (tmp_path / "value.cuh").write_text(SEVEN["value.cuh"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(compiler.CompileError, match=r"could not open source file .value\.cuh"):
        compiler.compiled(SMALL, {}, "sm_90")


# What is missing


def put_nvrtc(monkeypatch, **functions):
    libraries = types.ModuleType("cupy_backends.cuda.libs")
    libraries.nvrtc = types.SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", libraries)


def test_without_cupy_the_error_has_the_pip_line():
    program = """
        import sys
        sys.modules.update(dict.fromkeys(["cupy", "cupy_backends"]))  # None: importing it fails
        from fusedopt import compiler
        try:
            compiler.compiled("", {}, "sm_90")
        except compiler.CompilerMissingError as error:
            print(error)
    """
    message = output_of(python(program))
    assert "CuPy, which cannot be imported" in message
    assert "pip install 'fusedopt[cuda13]'" in message


@pytest.mark.parametrize(("cupys", "extra"), [([], "cuda13"), (["cupy-cuda12x"], "cuda12")])
def test_without_nvrtc_the_error_has_the_pip_line_for_the_cupy_there_is(cupys, extra, monkeypatch):
    def get_version():
        raise RuntimeError("libnvrtc.so is not to be found")

    put_nvrtc(monkeypatch, getVersion=get_version)
    monkeypatch.setattr("importlib.metadata.distributions", lambda name: iter(set(cupys) & {name}))
    with pytest.raises(compiler.CompilerMissingError, match=rf"libnvrtc\.so.*pip install 'fusedopt\[{extra}\]'"):
        compiler.compiled("", {}, "sm_90")


def test_the_import_brings_in_neither_cupy_nor_torch():
    program = "import sys, fusedopt.compiler; print({'cupy', 'cupy_backends', 'torch', 'rich'} & set(sys.modules))"
    assert output_of(python(program)) == "set()"


def test_the_cuda_text_is_found_in_a_package_and_in_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "fusedopt"
    package.mkdir()
    monkeypatch.setattr(compiler, "__file__", str(package / "compiler.py"))
    beside, inside = tmp_path / "kernels", package / "kernels"
    beside.mkdir()
    (beside / "__init__.py").touch()  # another project's package of that name
    with pytest.raises(FileNotFoundError, match="pip install --force-reinstall"):
        compiler.kernels_folder()
    (beside / "step.cuh").touch()
    assert compiler.kernels_folder() == beside
    inside.mkdir()
    (inside / "step.cuh").touch()
    assert compiler.kernels_folder() == inside


# The cache


def test_the_second_call_does_not_compile(cache, compilations):
    path = compiler.compiled(SMALL, SEVEN, "sm_90")
    assert path.parent == cache
    assert compiler.compiled(SMALL, dict(SEVEN), "sm_90") == path
    assert compilations == ["sm_90"]


def test_whatever_changes_the_code_changes_the_entry(cache, compilations, monkeypatch):
    paths = [
        compiler.compiled(SMALL, SEVEN, "sm_90"),
        compiler.compiled(SMALL, SEVEN, "sm_80"),
        compiler.compiled(SMALL, SEVEN, "compute_90"),
        compiler.compiled(SMALL, {"value.cuh": "#define VALUE 8.f\n"}, "sm_90"),
        compiler.compiled(SMALL, {**SEVEN, "unused.cuh": ""}, "sm_90"),
        compiler.compiled(SMALL + "\n", SEVEN, "sm_90"),
    ]
    monkeypatch.setattr(compiler, "OPTIONS", (*compiler.OPTIONS, "--device-debug"))
    paths.append(compiler.compiled(SMALL, SEVEN, "sm_90"))
    monkeypatch.setattr(compiler._nvrtc(), "getVersion", lambda: (99, 0))
    paths.append(compiler.compiled(SMALL, SEVEN, "sm_90"))
    keys = {path.name.split("-")[0] for path in paths}
    assert len(keys) == len(compilations) == 8


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another's", "a folder"])
def test_a_damaged_entry_is_replaced(cache, compilations, damage):
    path = compiler.compiled(SMALL, SEVEN, "sm_90")
    whole = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
    elif damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "another's":  # whole, but another entry's content and digest under this one's key
        other = compiler.compiled(SMALL, SEVEN, "sm_80")
        path.unlink()
        other.rename(cache / f"{path.name.split('-')[0]}-{other.name.split('-')[1]}")
    elif damage == "a folder":
        path.rename(cache / "aside")
        (cache / path.name.replace(".cubin", "")).mkdir()
    del compilations[:]
    with pytest.warns(RuntimeWarning, match=f"{cache}.*{path.name[:64]}.* is damaged"):
        assert compiler.compiled(SMALL, SEVEN, "sm_90") == path
    assert path.read_bytes() == whole
    assert compiler.compiled(SMALL, SEVEN, "sm_90") == path
    assert compilations == ["sm_90"]


def a_file(cache, monkeypatch):
    cache.write_text("not a folder")


def below_a_file(cache, monkeypatch):
    cache.write_text("not a folder")
    monkeypatch.setenv("FUSEDOPT_CACHE_DIR", str(cache / "below"))


def read_only(cache, monkeypatch):  # root may write into a folder that is read-only by its mode, but not here
    monkeypatch.setenv("FUSEDOPT_CACHE_DIR", "/proc/fusedopt")


def full(cache, monkeypatch):
    def write_half(path, code):
        with open(path, "wb") as file:
            file.write(code[: len(code) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_half)


@pytest.mark.parametrize("fault", [a_file, below_a_file, read_only, full])
def test_an_unusable_folder_costs_a_warning_and_no_more(cache, compilations, monkeypatch, fault):
    fault(cache, monkeypatch)
    folder = os.environ["FUSEDOPT_CACHE_DIR"]
    with pytest.warns(RuntimeWarning, match="cannot be kept in .*; set FUSEDOPT_CACHE_DIR") as warned:
        path = compiler.compiled(SMALL, SEVEN, "sm_90")
    assert folder in str(warned[0].message)
    assert path.read_bytes() == compiler._compile(SMALL, SEVEN, "sm_90")
    del compilations[:]
    assert compiler.compiled(SMALL, SEVEN, "sm_90") == path
    assert compilations == []
    compiler.compiled(SMALL, SEVEN, "sm_80").unlink()  # the same folder again: no second warning
    path.unlink()
    assert compiler.compiled(SMALL, SEVEN, "sm_90").is_file()  # whoever sweeps temporary files costs a compilation
    assert not list(cache.glob("*"))


def test_a_full_cache_that_is_read_only_is_still_read(cache, compilations, monkeypatch):
    path = compiler.compiled(SMALL, SEVEN, "sm_90")
    monkeypatch.setattr(compiler, "_keep", None)
    assert compiler.compiled(SMALL, SEVEN, "sm_90") == path


COMPILE_AND_SAY_WHERE = f"""
    import sys, time, warnings
    from pathlib import Path
    from fusedopt import compiler

    def write_slowly(path, code):
        with open(path, "wb", buffering=0) as file:
            file.write(code[:100])
            time.sleep(0.3)
            file.write(code[100:])

    Path.write_bytes = write_slowly
    time.sleep(float(sys.argv[1]))
    if sys.argv[2:]:
        warnings.simplefilter("ignore")
    path = compiler.compiled({SMALL!r}, {SEVEN!r}, "sm_90")
    print(path, path.is_file(), flush=True)
"""


@pytest.mark.parametrize("found", ["nothing", "damaged"])
def test_processes_that_race_for_an_entry_all_get_it_whole(cache, found):
    """Each takes 0.3 s to write, and they start 0.1 s apart, so that some look while others are in the middle of it."""
    expected = compiler._compile(SMALL, SEVEN, "sm_90")
    if found == "damaged":
        compiler.compiled(SMALL, SEVEN, "sm_90").write_bytes(expected[:100])
    racing = [python(COMPILE_AND_SAY_WHERE, i / 10, *["quiet"] * (found == "damaged")) for i in range(4)]
    said = output_of(*racing)
    (entry,) = cache.iterdir()  # one entry, and nobody's half-written file
    assert said == f"{entry} True"
    assert entry.read_bytes() == expected


def test_a_temporary_file_lives_as_long_as_its_process(cache, tmp_path):
    cache.write_text("not a folder")
    child_and_look = """
    import os
    if os.fork() == 0:
        sys.exit()  # a child's end is not the process's
    os.wait()
    print(list(Path(sys.argv[3]).iterdir()) == [path])
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    said = output_of(python(COMPILE_AND_SAY_WHERE + child_and_look, 0, "quiet", temporary, TMPDIR=str(temporary)))
    assert said.split()[1:] == ["True", "True"]
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="umask is POSIX's")
def test_permissions_are_as_umask_says(cache):
    before = os.umask(0o027)
    try:
        path = compiler.compiled(SMALL, SEVEN, "sm_90")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(cache.stat().st_mode) == 0o750


def test_the_folder_may_be_relative_or_in_the_home_folder(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSEDOPT_CACHE_DIR", "near")
    assert compiler.compiled(SMALL, SEVEN, "sm_90").parent == tmp_path / "near"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FUSEDOPT_CACHE_DIR", "~/far")
    assert compiler.compiled(SMALL, SEVEN, "sm_90").parent == tmp_path / "far"


def test_nvrtc_gives_the_same_code_each_time(nvrtc):
    """What the entry's name rests on: processes that race write the same file."""
    codes = {hashlib.sha256(compiler._compile(SMALL, SEVEN, "sm_90")).digest() for _ in range(2)}
    assert len(codes) == 1
