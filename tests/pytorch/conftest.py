"""The devices that one test body over torch tensors runs on: the CPU, the emulated GPU, and CUDA where there is one."""

import dataclasses
from typing import Any

import pytest
import torch

from devices import DEVICES, NUMBA
from fusedopt.torch import places


@dataclasses.dataclass(frozen=True)
class TorchDevice:
    """Where tensors are and what updates them.

    Attributes:
        name: numpy, numba, emulated or cuda.
        device: What tensors are made on; the emulated GPU's are the CPU's.
        surface: The device's surface; None for the CPU's.
    """

    name: str
    device: str
    surface: Any


def emulated_place(**settings: Any) -> places.Gpu:
    """A place that updates CPU tensors as a GPU would: through the whole of device.py, by the kernel built with g++."""
    from emulated import EmulatedArray, EmulatedSurface

    class TorchSurface(EmulatedSurface):
        def pointer(self, array: Any) -> int:
            if isinstance(array, int):
                return array
            return array.data_ptr() if isinstance(array, torch.Tensor) else super().pointer(array)

    surface = TorchSurface("cpu", EmulatedArray)
    for name, value in settings.items():
        setattr(surface, name, value)
    return places.Gpu(surface, torch.device("cpu"))


@pytest.fixture(params=[*DEVICES, NUMBA])
def torch_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TorchDevice:
    """Each device in turn."""
    if request.param in ("numpy", "numba"):
        return TorchDevice(request.param, "cpu", None)
    if request.param == "cuda":
        place = places.place_of(torch.device("cuda", torch.cuda.current_device()))
        return TorchDevice("cuda", "cuda", place.backend.surface)
    return emulated(monkeypatch)


def emulated(monkeypatch: pytest.MonkeyPatch) -> TorchDevice:
    """The emulated GPU alone, for what only its surface shows: launches, copies, graphs."""
    from emulator.build import compiler, skip_or_fail

    if compiler() is None:
        skip_or_fail("no C++ compiler: set CXX, or install g++.")
    place = emulated_place()
    monkeypatch.setattr(places, "place_of", lambda device: place)
    return TorchDevice("emulated", "cpu", place.backend.surface)


@pytest.fixture
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> TorchDevice:
    """The emulated GPU."""
    return emulated(monkeypatch)
