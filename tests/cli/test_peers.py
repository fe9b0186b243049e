"""The peers of the benchmark: they compute what fusedopt does, are told what they need, and say why they cannot run."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedopt.backends import cuda
from fusedopt.backends.cpu import CpuBackend
from fusedopt.cli.bench import peers_arrays, peers_jax, peers_torch
from fusedopt.cli.bench.peers import OPTIMIZERS, WAYS, Peer, Way

BY_TITLE = {way.title: way for way in WAYS}
ON_THE_CPU = [way.title for way in WAYS if "cpu" in way.device]
STEPS = 3
SHAPES = [(), (7,), (64, 64), (3, 5, 7), (5000,)]
COMPILERS_AT_WORK = {"torch compile", "torchao 8-bit", "DeepSpeed CPUAdam"}  # for tens of seconds


def values(seed: int, scale: float) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(np.float32(scale) * rng.standard_normal(shape, np.float32)) for shape in SHAPES]


def stepped(way: Way, name: str, device: str = "cpu") -> tuple[Peer, list[np.ndarray]]:
    """The way after three steps from the same values as all others, and its parameters."""
    peer = way.build(name, values(0, 0.02), values(1, 1.0), device)
    for _ in range(STEPS):
        peer.step()
    peer.finish()
    return peer, peer.parameters()


def assert_agrees(found: list[np.ndarray], name: str, slack: float = 0.0) -> None:
    """A unit in the last place of the largest weight for each step: room for steps that round differently."""
    _, expected = stepped(BY_TITLE["fusedopt"], name)
    largest = max(np.abs(p).max() for p in expected)
    allowed = STEPS * (float(np.spacing(largest)) + slack)
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs.dtype == np.float32
        assert theirs.shape == ours.shape
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=allowed)


def runnable(title: str, name: str) -> Way:
    """For the CPU."""
    way = BY_TITLE[title]
    if reason := way.missing(name, "cpu"):
        pytest.skip(f"{title}: {reason}")  # other libraries, too large for the test extra, are tried where they are
    return way


# --- what runs here


@pytest.mark.filterwarnings("ignore")  # other libraries' own
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "title", [pytest.param(t, marks=pytest.mark.slow if t in COMPILERS_AT_WORK else ()) for t in ON_THE_CPU]
)
def test_a_way_computes_what_fusedopt_does(title: str, name: str) -> None:
    way = runnable(title, name)
    _, parameters = stepped(way, name)
    if way.exact:
        assert_agrees(parameters, name, way.slack)
    for before, after in zip(values(0, 0.02), parameters, strict=True):
        assert np.isfinite(after).all()
        assert (after != before).any()


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 128 bytes: some libraries take such an array over as it is."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 128
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("title", ["fusedopt", "fusedopt.torch", "torch fused", "optax jit", "NumPy out="])
def test_a_way_has_copies_of_what_it_is_given(title: str) -> None:
    weights, gradients = ([aligned(array) for array in arrays] for arrays in (values(0, 0.02), values(1, 1.0)))
    peer = runnable(title, "adam").build("adam", weights, gradients, "cpu")
    peer.step()
    peer.finish()
    for given, fresh in zip([*weights, *gradients], [*values(0, 0.02), *values(1, 1.0)], strict=True):
        np.testing.assert_array_equal(given, fresh)
        given[...] = np.nan
    for _ in range(STEPS - 1):
        peer.step()
    peer.finish()
    assert_agrees(peer.parameters(), "adam", BY_TITLE[title].slack)


@pytest.mark.parametrize("title", ["fusedopt", "fusedopt.torch", "torch fused", "optax jit", "NumPy out="])
def test_parameters_are_those_of_now(title: str) -> None:
    peer, before = stepped(runnable(title, "sgd"), "sgd")
    copies = [p.copy() for p in before]
    peer.step()
    peer.finish()
    for then, copy, now in zip(before, copies, peer.parameters(), strict=True):
        np.testing.assert_array_equal(then, copy)
        assert (now != then).any()


@pytest.mark.parametrize("title", ["torch fused", "optax jit", "NumPy whole arrays", "the rule, unfused"])
def test_kept_counts_parameters_gradients_and_states(title: str) -> None:
    peer, parameters = stepped(runnable(title, "adam"), "adam")
    size = sum(p.size for p in parameters)
    assert 4 * 4 * size <= peer.kept() <= 4 * 4 * size + 8 * len(SHAPES)  # and counters


def test_kept_counts_a_scratch_array_and_padding() -> None:
    size, largest = sum(p.size for p in values(0, 1.0)), max(p.size for p in values(0, 1.0))
    assert stepped(BY_TITLE["NumPy out="], "adam")[0].kept() == 4 * (4 * size + largest)
    assert 4 * 4 * size <= stepped(BY_TITLE["fusedopt"], "adam")[0].kept() <= 4 * 4 * (size + 128 * len(SHAPES))


def test_bytes_of_tensors_count_common_memory_once_and_look_into_states() -> None:
    torch = pytest.importorskip("torch")

    class Quantized:
        def __init__(self) -> None:
            self.codes, self.scales, self.signed = torch.zeros(8, dtype=torch.int8), torch.zeros(2), True

    class Wrapper:
        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["codes"], None

        codes = torch.zeros(16, dtype=torch.uint8)

    whole = torch.zeros(10)
    assert (
        peers_torch.stored_bytes([whole, whole[:5]], {0: {"exp_avg": Quantized(), "step": 3}}, Wrapper())
        == 40 + 16 + 16
    )


@pytest.mark.parametrize(("title", "plan"), [("fusedopt, numba", "NumbaPlan"), ("fusedopt, NumPy", "NumpyPlan")])
def test_a_backend_is_asked_for_while_its_optimizer_is_built_alone(
    title: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDOPT_BACKEND", "auto")
    plans: list[Any] = []
    of_backend = CpuBackend.plan

    def recorded(backend: CpuBackend, spans: Any) -> Any:
        plans.append(of_backend(backend, spans))
        return plans[-1]

    monkeypatch.setattr(CpuBackend, "plan", recorded)
    way = runnable(title, "sgd")
    peer = way.build("sgd", values(0, 0.02), values(1, 1.0), "cpu")
    assert os.environ["FUSEDOPT_BACKEND"] == "auto"
    peer.step()
    assert [type(made).__name__ for made in plans] == [plan]


def test_fusedopts_own_come_first_and_titles_differ() -> None:
    assert [way.title for way in WAYS[:4]] == ["fusedopt", "fusedopt, numba", "fusedopt, NumPy", "fusedopt.torch"]
    assert len(BY_TITLE) == len(WAYS)


def test_torch_has_as_many_threads_as_fusedopt(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", "3")
    try:
        stepped(BY_TITLE["torch fused"], "sgd")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_compiled_step_takes_its_learning_rate_from_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    told: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", lambda **options: told.update(options) or (lambda function: function))
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=0.25)
    peers_torch.compiled_step(optimizer)()
    assert told == {"fullgraph": False}
    assert torch.is_tensor(optimizer.param_groups[0]["lr"])
    assert optimizer.param_groups[0]["capturable"] is False  # for CUDA


def test_too_many_tensors_are_not_compiled() -> None:
    pytest.importorskip("torch")
    many = [np.zeros(1, np.float32)] * (peers_torch.MOST_COMPILED + 1)
    with pytest.raises(RuntimeError, match=r"too long for 1,001 > 1,000 tensors"):
        BY_TITLE["torch compile"].build("sgd", many, many, "cpu")


def test_optax_writes_to_the_memory_of_the_last_step() -> None:
    pytest.importorskip("optax")
    it = peers_jax.OptaxStep("adamw", values(0, 0.02), values(1, 1.0), "cpu")
    before = it.p, it.state[0].mu
    it.step()
    it.finish()
    assert all(array.is_deleted() for arrays in before for array in arrays)
    assert not any(array.is_deleted() for array in it.g)


# --- what is for CUDA, without it


class ElementwiseKernel:
    """cupy's, for one-line statements that are Python as well as C; it wants the arguments that the text declares."""

    def __init__(self, in_params: str, out_params: str, operation: str, name: str) -> None:
        assert name.isidentifier()
        self.inputs, self.outputs = ([p.split()[1] for p in params.split(", ")] for params in (in_params, out_params))
        assert {p.split()[0] for params in (in_params, out_params) for p in params.split(", ")} == {"float32"}
        self.operation = operation

    def __call__(self, *arguments: Any) -> None:
        assert all(isinstance(a, (np.ndarray, float)) for a in arguments)
        names = dict(zip([*self.inputs, *self.outputs], arguments, strict=True))
        results = {name: np.float32(v) if isinstance(v, float) else v for name, v in names.items()}
        exec(self.operation, {"sqrt": np.sqrt}, results)
        for name in self.outputs:
            names[name][...] = results[name]


class Device(np.ndarray):
    """An array of the device, which NumPy's functions take; it comes to the host by `get`."""

    def get(self) -> np.ndarray:
        return np.array(self)


@pytest.fixture
def fake_cupy(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    def array(values: Any) -> Any:
        return np.array(values).view(Device)

    module = types.SimpleNamespace(array=array, asarray=array, ElementwiseKernel=ElementwiseKernel)
    monkeypatch.setattr(cuda, "module", lambda: module)
    monkeypatch.setattr(cuda, "problem", lambda: None)
    return module


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("title", [way.title for way in WAYS if "CuPy" in way.title or "the rule" in way.title])
def test_a_way_over_cupy_arrays_computes_what_fusedopt_does(title: str, name: str, fake_cupy: Any) -> None:
    peer, parameters = stepped(BY_TITLE[title], name, "cuda")
    assert peer.library == "cupy"
    assert all(type(p) is np.ndarray for p in parameters)
    assert_agrees(parameters, name)


def test_all_that_is_asked_of_cupy_exists(fake_cupy: Any) -> None:
    cupy = pytest.importorskip("cupy")
    for name in vars(fake_cupy):
        assert hasattr(cupy, name)


class Recorder:
    """A library's optimizer, with the signature that it has there, and torch's arithmetic."""

    def __init__(self, torch: Any, cls: str, options: dict[str, Any]) -> None:
        inner = getattr(torch.optim, cls)(**options)
        self.step, self.state = inner.step, inner.state


def module_of(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    return module


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """apex, DeepSpeed and FlashOptim with the signatures of their sources; and torch, whose GPU is the CPU."""
    torch = pytest.importorskip("torch")

    def adam(params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True, weight_decay=0.0, amsgrad=False, set_grad_none=True):  # fmt: skip  # noqa: E501
        assert adam_w_mode == (weight_decay > 0)  # without decay the two modes are the same
        options = {"params": params, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        return Recorder(torch, "AdamW" if adam_w_mode else "Adam", options)

    def sgd(params, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        return Recorder(torch, "SGD", {"params": params, "lr": lr, "momentum": momentum})

    def flash(cls: str, decay: float) -> Any:
        def make(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay, quantize=True):
            return Recorder(torch, cls, {"params": params, "lr": lr, "weight_decay": weight_decay})

        return make

    flashes = {"FlashSGD": sgd, "FlashAdam": flash("Adam", 0.0), "FlashAdamW": flash("AdamW", 1e-2)}
    for module in (
        module_of("apex.optimizers", FusedAdam=adam, FusedSGD=sgd),
        module_of("deepspeed.ops.adam", FusedAdam=adam),
        module_of("flashoptim", **flashes),
    ):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    on_cpu = types.SimpleNamespace(nn=torch.nn, Tensor=torch.Tensor, tensor=lambda array, device: torch.tensor(array))
    monkeypatch.setattr(peers_torch, "torch_module", lambda: on_cpu)
    # the parent of a module that is there already is not imported
    for parent in ("apex", "deepspeed", "deepspeed.ops"):
        monkeypatch.setitem(sys.modules, parent, module_of(parent, __path__=[]))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("title", ["apex fused", "DeepSpeed FusedAdam", "FlashOptim 8-bit"])
def test_another_librarys_optimizer_is_told_what_it_needs(title: str, name: str, libraries: None) -> None:
    if (title, name) == ("DeepSpeed FusedAdam", "sgd"):
        assert peers_torch.DEEPSPEED.lacks(name, "cpu") == "deepspeed.ops.adam has no SGD of this kind"
        return
    _, parameters = stepped(BY_TITLE[title], name, "cuda")
    assert_agrees(parameters, name)


# --- what is missing


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module beyond fusedopt's own dependencies can be found."""
    monkeypatch.setattr("fusedopt.cli.bench.peers_way.find_spec", lambda name: None)
    monkeypatch.setattr(peers_torch, "torch_module", lambda: pytest.fail("torch was loaded"))
    monkeypatch.setattr(peers_jax, "jax_module", lambda: pytest.fail("jax was loaded"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_not_installed_is_missing_in_one_line(
    device: str, nothing_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: "there is no CUDA device")
    reasons = {way.title: way.missing("adam", device) for way in WAYS}
    here = {"fusedopt", "fusedopt, NumPy", "NumPy whole arrays", "NumPy out=", "the rule, unfused"}
    assert {title for title, reason in reasons.items() if reason is None} == (here if device == "cpu" else set())
    assert all(reason and "\n" not in reason for title, reason in reasons.items() if title not in here)
    if device == "cpu":
        assert reasons["optax jit"] == "jax is not installed: pip install jax"
        assert reasons["torch fused"] == "torch is not installed: pip install 'fusedopt[torch]'"
        assert reasons["apex fused"] == "for CUDA alone"
    else:
        assert reasons["fusedopt"] == "there is no CUDA device"
        assert reasons["NumPy out="] == "for the CPU alone"
        assert reasons["CuPy whole arrays"] == "cupy is not installed: pip install 'fusedopt[cuda13]', or [cuda12]"


def test_apex_without_its_extensions_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusedopt.cli.bench.peers_way.find_spec", lambda name: None if name == "amp_C" else name)
    assert BY_TITLE["apex fused"].missing("adam", "cuda") == (
        "amp_C is not installed: build github.com/NVIDIA/apex with its CUDA extensions"
    )


@pytest.mark.parametrize("title", ["torch fused", "bitsandbytes 8-bit"])
def test_torch_without_a_gpu_is_missing_on_cuda(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusedopt.cli.bench.peers_way.find_spec", lambda name: name)
    without = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(peers_torch, "torch_module", lambda: without)
    assert str(BY_TITLE[title].missing("adam", "cuda")).startswith("torch finds no GPU here")


def test_jax_without_a_gpu_is_missing_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(kind: str) -> None:
        raise RuntimeError(f"Unknown backend {kind}\nand more")

    monkeypatch.setattr("fusedopt.cli.bench.peers_way.find_spec", lambda name: name)
    monkeypatch.setattr(peers_jax, "jax_module", lambda: types.SimpleNamespace(devices=devices))
    reason = BY_TITLE["optax jit"].missing("adam", "cuda")
    assert reason == "jax finds no GPU here (Unknown backend cuda): pip install 'jax[cuda13]', or [cuda12]"
    assert BY_TITLE["optax jit"].missing("adam", "cpu") is None


@pytest.mark.parametrize("title", ["torch compile", "torchao 8-bit"])
def test_compiling_for_the_cpu_needs_a_cpp_compiler(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusedopt.cli.bench.peers_way.find_spec", lambda name: name)
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = "there is no C++ compiler 'no-such-compiler': install one, or set CXX"
    assert BY_TITLE[title].missing("adam", "cpu") == reason


def test_deepspeed_needs_its_compilers_unless_it_brings_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(peers_torch, "find_spec", lambda name: spec)
    monkeypatch.setattr(peers_torch.shutil, "which", lambda name, path=None: None if name == "nvcc" else name)
    assert peers_torch.deepspeed_tools("cuda") == (
        "DeepSpeed compiles fused_adam at first use, and there is no nvcc: install it"
    )
    assert peers_torch.deepspeed_tools("cpu") is None
    (tmp_path / "ops" / "adam").mkdir(parents=True)
    (tmp_path / "ops" / "adam" / "fused_adam_op.cpython-311-x86_64-linux-gnu.so").touch()
    assert peers_torch.deepspeed_tools("cuda") is None


def test_versions_are_those_of_the_distributions() -> None:
    assert BY_TITLE["fusedopt"].versions() == {}
    if importlib.util.find_spec("torch"):
        assert BY_TITLE["torch fused"].versions().keys() == {"torch"}
    assert Way("none", ("no_such_module",), ("cpu",), peers_arrays.fused()).versions() == {}
