"""Peers over torch tensors: fusedopt.torch, torch.optim's ways, and other libraries' fused and 8-bit optimizers."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import shutil
import sys
import types
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fusedopt.backends import cuda
from fusedopt.backends.threads import thread_count
from fusedopt.cli.bench.peers_way import OPTIMIZERS, Array, Peer, optimizer_named

# torch.compile unrolls the step: 300 tensors took 80 s on two cores, and ten thousand would take an hour.
MOST_COMPILED = 1_000


def torch_module() -> Any:
    """torch, with as many threads as fusedopt has."""
    import torch  # takes seconds

    torch.set_num_threads(thread_count())
    return torch


def plain_step(optimizer: Any) -> Callable[[], object]:
    step: Callable[[], object] = optimizer.step
    return step


def no_tools(device: str) -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class TorchOptimizers:
    """The optimizers of one library, by fusedopt's names: the class, and what it is told beside the hyperparameters.

    Attributes:
        module: Where the classes are.
        classes: What is not there, the library lacks.
        stepping: Makes a step of an optimizer.
        others: What the module's other optimizers are told, which have the names of fusedopt's; None: there are none.
        tools: Which tool or module it lacks on a device beyond torch and a GPU, in one line.
    """

    module: str
    classes: Mapping[str, tuple[str, Mapping[str, Any]]]
    stepping: Callable[[Any], Callable[[], object]] = plain_step
    tools: Callable[[str], str | None] = no_tools
    others: Mapping[str, Any] | None = None

    def lacks(self, optimizer: str, device: str) -> str | None:
        if optimizer not in self.classes and self._other(optimizer) is None:
            return f"{self.module} has no {optimizer_named(optimizer)[0].__name__} of this kind"
        if device == "cuda" and not torch_module().cuda.is_available():
            return "torch finds no GPU here: python -m fusedopt doctor says what is missing"
        return self.tools(device)

    def build(self, name: str, weights: list[Array], gradients: list[Array], device: str) -> Peer:
        torch = torch_module()
        parameters = [torch.nn.Parameter(torch.tensor(array, device=device)) for array in weights]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient, device=device)
        optimizer = self._made(name, parameters)
        return Peer(
            self.stepping(optimizer),
            parameters=lambda: [np.array(p.detach().cpu().numpy()) for p in parameters],
            kept=lambda: stored_bytes(parameters, [p.grad for p in parameters], dict(optimizer.state)),
            library="torch",
            scale_gradients=lambda factor: [p.grad.mul_(factor) for p in parameters],
        )

    def _made(self, name: str, parameters: list[Any]) -> Any:
        if name in self.classes:
            title, told = self.classes[name]
            return getattr(importlib.import_module(self.module), title)(parameters, **OPTIMIZERS[name][1], **told)
        make, told = self._other(name) or (None, {})
        assert make is not None, "`lacks` says so"
        return make(parameters, **told)

    def _other(self, name: str) -> tuple[Any, Mapping[str, Any]] | None:
        """The class of an optimizer beyond `classes`, and what it is told; None where the module has none such."""
        if self.others is None:
            return None
        cls, options = optimizer_named(name)
        rule = cls.rule
        module = importlib.import_module(self.module)
        make = getattr(module, rule.__name__, None)
        if module.__name__ == "fusedopt.torch" and (make is None or make.rule is not rule):
            return types.new_class(rule.__name__, (module.Optimizer,), {"rule": rule}), options
        known = {} if make is None else inspect.signature(make).parameters
        if make is None or any(value and key not in known for key, value in self.others.items()):
            return None
        # torch's default may be another.
        ours = {key: value for key, value in rule(**options).shown().items() if key in known}
        return make, ours | {key: value for key, value in self.others.items() if key in known}


def all_named(form: str = "{}", **told: Any) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """SGD, Adam and AdamW by these names, or by such as `Flash{}`."""
    return {name: (form.format(cls.__name__), told) for name, (cls, _) in OPTIMIZERS.items()}


def adam_by(title: str, flag: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """One class for Adam and AdamW, which a flag tells apart."""
    return {"adam": (title, {flag: False}), "adamw": (title, {flag: True})}


def compiled_step(optimizer: Any) -> Callable[[], object]:
    """The step under torch.compile.

    Source: torch's recipes "Compiling the optimizer with torch.compile" and "... with an LR scheduler".
    """
    torch = torch_module()
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if count > MOST_COMPILED:
        raise RuntimeError(
            f"torch.compile unrolls the step, which takes too long for {count:,} > {MOST_COMPILED:,} tensors"
        )
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])  # a number would be a constant, and each new one compiled anew
        if "capturable" in group and group["params"][0].is_cuda:
            group["capturable"] = True  # counters on the device too
    # Compiled code is kept by the text of the function: past 8 of them, torch would go on without compiling.
    torch.compiler.reset()

    @torch.compile(fullgraph=False)  # type: ignore[untyped-decorator]  # torch is Any here
    def step() -> None:
        optimizer.step()

    compiled: Callable[[], object] = step
    return compiled


def fusedopt_tools(device: str) -> str | None:
    return cuda.problem() if device == "cuda" else None


def cpp_compiler() -> str:
    """The command, as torch takes it."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def compiler_tools(device: str) -> str | None:
    """torch.compile writes C++ for the CPU, which it has compiled, and Triton for CUDA."""
    if device == "cuda":
        return None if find_spec("triton") else "triton is not installed: pip install triton"
    command = cpp_compiler()
    return None if shutil.which(command) else f"there is no C++ compiler {command!r}: install one, or set CXX"


def deepspeed_tools(device: str) -> str | None:
    """DeepSpeed compiles its optimizers at first use, unless it was installed with them."""
    name, compiler = ("fused_adam", "nvcc") if device == "cuda" else ("cpu_adam", cpp_compiler())
    spec = find_spec("deepspeed")
    for folder in (spec and spec.submodule_search_locations) or ():
        if any(Path(folder, "ops", "adam").glob(f"{name}_op*.so")):
            return None
    of_cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    for tool in (compiler, "ninja"):
        if not (shutil.which(tool) or shutil.which(tool, path=of_cuda)):
            return f"DeepSpeed compiles {name} at first use, and there is no {tool}: install it"
    return None


def stored_bytes(*things: Any) -> int:
    """Of all tensors in there, however they are nested; memory that several have in common counts once."""
    torch = torch_module()
    storages: dict[int, int] = {}
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if hasattr(thing, "__tensor_flatten__"):  # a tensor that is made of others, as torchao's states
            waiting += [getattr(thing, name) for name in thing.__tensor_flatten__()[0]]
        elif isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, Mapping):
            waiting += thing.values()
        elif isinstance(thing, (list, tuple)):
            waiting += thing
        elif hasattr(thing, "__dict__"):  # as FlashOptim's states
            waiting += vars(thing).values()
    return sum(storages.values())


OURS = TorchOptimizers("fusedopt.torch", all_named(), tools=fusedopt_tools, others={})
FOR_LOOP = TorchOptimizers(
    "torch.optim", all_named(foreach=False, fused=False), others={"foreach": False, "fused": False}
)
FOREACH = TorchOptimizers("torch.optim", all_named(foreach=True), others={"foreach": True})
FUSED = TorchOptimizers("torch.optim", all_named(fused=True), others={"fused": True})
COMPILED = TorchOptimizers("torch.optim", all_named(), compiled_step, compiler_tools, others={})
APEX = TorchOptimizers("apex.optimizers", {"sgd": ("FusedSGD", {}), **adam_by("FusedAdam", "adam_w_mode")})
BITSANDBYTES = TorchOptimizers("bitsandbytes.optim", all_named("{}8bit"))
TORCHAO_CLASSES = {name: it for name, it in all_named("{}8bit").items() if name != "sgd"}
TORCHAO = TorchOptimizers("torchao.optim", TORCHAO_CLASSES, tools=compiler_tools)
FLASHOPTIM = TorchOptimizers("flashoptim", all_named("Flash{}"))
DEEPSPEED = TorchOptimizers("deepspeed.ops.adam", adam_by("FusedAdam", "adam_w_mode"), tools=deepspeed_tools)
DEEPSPEED_CPU = TorchOptimizers("deepspeed.ops.adam", adam_by("DeepSpeedCPUAdam", "adamw_mode"), tools=deepspeed_tools)
