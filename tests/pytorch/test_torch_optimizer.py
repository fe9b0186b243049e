"""torch's own optimizers are the oracle: the same parameters after the same gradients, on every device."""

import pytest
import torch

import fusedopt.torch as ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gdtype", [None, torch.float32])
def test_smoke(torch_device, dtype, gdtype):
    torch.manual_seed(0)
    a = [torch.randn(3, 5).to(dtype).requires_grad_(), torch.randn(4097).to(dtype).requires_grad_()]
    b = [p.detach().clone().to(torch_device.device).requires_grad_() for p in a]
    x, y = torch.optim.AdamW(a, fused=True), ours.AdamW(b)
    for _ in range(5):
        for p, q in zip(a, b):
            p.grad = torch.randn(p.shape).to(dtype)
            if gdtype:
                q.grad_dtype = None
            q.grad = p.grad.to(torch_device.device, gdtype or dtype)
        x.step()
        y.step()
    for p, q in zip(a, b):
        torch.testing.assert_close(q.cpu(), p, rtol=1e-6, atol=1e-6)
