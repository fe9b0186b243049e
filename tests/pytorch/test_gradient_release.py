"""One optimizer a parameter, stepped by the parameter's own gradient: the same training, with no gradient kept."""

import pytest
import torch

import fusedopt.torch
from fusedopt.procedures import BASES


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


@pytest.mark.parametrize("name", sorted(set(fusedopt.torch.__all__) - {"Optimizer", *BASES}))
def test_released_gradients_train_as_kept_ones(name):
    cls = getattr(fusedopt.torch, name)
    kept, released = model(), model()
    optimizer = cls(kept.parameters(), lr=0.01)
    optimizers = {p: cls([p], lr=0.01) for p in released.parameters()}

    def release(p: torch.Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in released.parameters():
        p.register_post_accumulate_grad_hook(release)
    for _ in range(5):
        batch = torch.randn(4, 6)
        optimizer.zero_grad()
        kept(batch).square().mean().backward()
        optimizer.step()
        released(batch).square().mean().backward()
        assert all(p.grad is None for p in released.parameters())
    for p, q in zip(kept.parameters(), released.parameters(), strict=True):
        assert torch.equal(p, q)  # each parameter is updated after all that read it, so nothing differs
