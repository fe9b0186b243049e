"""Mixed precision: under torch's own GradScaler our optimizers do what torch's do, and a skipped step does nothing."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch

import fusedopt.torch as ours

NO_DECAY = {"SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, "Adam": {"lr": 0.01}, "AdamW": {"lr": 0.01}}
CONFIGURATIONS = {
    "SGD": ("SGD", {"lr": 0.1}),
    "SGD-momentum": ("SGD", {"lr": 0.02, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    "SGD-nesterov": ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "Adam": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "Adam-amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    "AdamW": ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
}
each_configuration = pytest.mark.parametrize(("name", "options"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
each_optimizer = pytest.mark.parametrize("name", NO_DECAY)
SHAPES = ((3, 5), (4097,), ())

# float32: each side rounds its own way, 2.5e-7 a step where they differ by an ulp, 2e-6 after 40 of them; AdamW
# multiplies by 1 - lr * weight_decay where we subtract lr * weight_decay * p, which is one more ulp a step.
TOLERANCE = {"SGD": 2e-6, "Adam": 2e-6, "AdamW": 5.5e-6}


def random(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(device, dtype=torch.float32, shapes=SHAPES):
    made = [random(shape, seed, dtype).to(device).requires_grad_() for seed, shape in enumerate(shapes)]
    for p in made:
        p.grad_dtype = None  # a gradient of any type
    return made


def raw(tensor):
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def everything(optimizer):
    """The bits of all that a step may write."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [(key, raw(value)) for p in params for key, value in optimizer.state[p].items()]
    return [raw(p) for p in params], states, [None if p.grad is None else raw(p.grad) for p in params]


def assert_close(actual, expected, tolerance):
    for p, q in zip(actual, expected, strict=True):
        difference = (p.detach().double() - q.detach().double()).abs() / q.detach().double().abs().clamp(min=1)
        assert not difference.numel() or float(difference.max()) <= tolerance


class Sides:
    """Our optimizer and torch's on equal parameters, each under a scaler of its own.

    torch's is the fused one, but where it begins with an overflow: there its SGD goes on from memory that nobody wrote.
    """

    def __init__(self, device, name, options, *, fused=True, shapes=SHAPES, **scaling):
        self.device, self.mine, self.theirs = (
            device,
            parameters(device, shapes=shapes),
            parameters(device, shapes=shapes),
        )
        self.optimizers = [
            getattr(ours, name)(self.mine, **options),
            getattr(torch.optim, name)(self.theirs, **options, fused=fused),
        ]
        self.scalers = [torch.amp.GradScaler(device, **scaling) for _ in self.optimizers]
        for scaler in self.scalers:
            scaler.scale(torch.zeros((), device=device))  # which makes its tensors

    @property
    def scale(self):
        mine, theirs = (scaler.get_scale() for scaler in self.scalers)
        assert mine == theirs
        return mine

    def give(self, gradients):
        for p, q, gradient in zip(self.mine, self.theirs, gradients, strict=True):
            p.grad, q.grad = (gradient.detach().to(self.device, copy=True) for _ in range(2))

    def step(self):
        for scaler, optimizer in zip(self.scalers, self.optimizers):
            scaler.step(optimizer)
            scaler.update()

    def compare(self, tolerance):
        mine, theirs = self.optimizers
        assert_close(self.mine, self.theirs, tolerance)
        for p, q in zip(self.mine, self.theirs):
            expected = {key: value for key, value in theirs.state[q].items() if value is not None}
            assert mine.state[p].keys() >= expected.keys()
            assert_close([mine.state[p][key] for key in expected], expected.values(), tolerance)
            if "step" in expected:
                assert mine.state[p]["step"].item() == expected["step"].item()

    def compare_gradients(self):
        for p, q in zip(self.mine, self.theirs):
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0, equal_nan=True)


def half_gradients(step, scale):
    """Scaled gradients as a model in half precision leaves them: rounded, and infinite above 65504."""
    return [(random(shape, 100 * step + i) * scale).half().float() for i, shape in enumerate(SHAPES)]


# --- trajectories ----------------------------------------------------------------------------------------------------


@each_configuration
def test_a_trajectory_equals_torchs_while_the_scale_grows_and_backs_off(torch_device, name, options):
    sides = Sides(torch_device.device, name, options, init_scale=2.0**11, growth_interval=2)
    scales = [sides.scale]
    for step in range(40):
        sides.give(half_gradients(step, sides.scale))
        sides.step()
        sides.compare_gradients()  # unscaled after a step, and as they were after a skipped one
        scales.append(sides.scale)
    changes = [after / before for before, after in itertools.pairwise(scales)]
    assert changes.count(0.5) > 3  # steps were skipped
    assert changes.count(2.0) > 3
    sides.compare(TOLERANCE[name])


@each_optimizer
def test_a_model_under_autocast_trains_as_with_torch(torch_device, name):
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    shapes = [tuple(p.shape) for p in model.parameters()]
    sides = Sides(torch_device.device, name, NO_DECAY[name], shapes=shapes, init_scale=2.0**8, growth_interval=3)
    x = random((32, 6), 1).to(torch_device.device)
    skipped = 0
    for step in range(20):
        # One forward for both: bfloat16 would make 2^-9 of a weight's last bit.
        with torch.autocast(torch_device.device, dtype=torch.bfloat16):
            output = torch.func.functional_call(model, dict(zip(dict(model.named_parameters()), sides.theirs)), x)
            assert output.dtype == torch.bfloat16
            loss = (output.float() - x.sum(1, keepdim=True)).square().mean()
        if step % 6 == 4:
            loss = loss * math.inf
        gradients = torch.autograd.grad(sides.scalers[1].scale(loss), sides.theirs)
        sides.give(gradients)
        before = sides.scale
        sides.step()
        skipped += sides.scale < before
    assert skipped == 3
    sides.compare(TOLERANCE[name])


@each_optimizer
def test_a_whole_program_learns_and_skips_the_steps_that_torch_skips(torch_device, name):
    def train(optimizer_class, **options):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        model.to(torch_device.device)
        optimizer = optimizer_class(model.parameters(), **NO_DECAY[name], **options)
        scaler = torch.amp.GradScaler(torch_device.device, init_scale=2.0**10, growth_interval=3)
        x = random((64, 6), 1).to(torch_device.device)
        losses, scales = [], []
        for step in range(40):
            optimizer.zero_grad()
            with torch.autocast(torch_device.device, dtype=torch.bfloat16):
                loss = (model(x).float() - x.sum(1, keepdim=True)).square().mean()
            scaler.scale(loss * (math.inf if step % 7 == 3 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            scales.append(scaler.get_scale())
        return losses, scales

    losses, scales = train(getattr(ours, name))
    expected_losses, expected_scales = train(getattr(torch.optim, name), foreach=False)
    assert scales == expected_scales
    assert losses[-1] < losses[0] / 2
    assert losses[-1] == pytest.approx(expected_losses[-1], rel=0.05)  # weights an ulp apart, rounded to bfloat16


@each_optimizer
def test_a_scaler_that_is_switched_off_changes_nothing(torch_device, name):
    sides = Sides(torch_device.device, name, NO_DECAY[name])
    sides.scalers = [torch.amp.GradScaler(torch_device.device, enabled=False) for _ in range(2)]
    for step in range(3):
        sides.give(half_gradients(step, 1.0))
        sides.step()
        sides.compare_gradients()
    sides.compare(TOLERANCE[name])


# --- skipped steps ---------------------------------------------------------------------------------------------------


@each_configuration
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_skipped_step_changes_nothing_and_advances_nothing(torch_device, name, options, bad):
    params, twins = parameters(torch_device.device), parameters(torch_device.device)
    optimizer, twin = getattr(ours, name)(params, **options), getattr(ours, name)(twins, **options)
    scaler = torch.amp.GradScaler(torch_device.device, init_scale=8.0)
    for step in range(6):
        gradients = [random(shape, 10 * step + i).to(torch_device.device) for i, shape in enumerate(SHAPES)]
        scale = scaler.scale(torch.ones((), device=torch_device.device)).item()
        for p, gradient in zip(params, gradients):
            p.grad = gradient * scale
        if step in (2, 3):
            params[1].grad[4000] = bad
            before = everything(optimizer)
            scaler.step(optimizer)
            assert everything(optimizer) == before
        else:
            scaler.step(optimizer)
            for p, gradient in zip(twins, gradients):
                p.grad = gradient.clone()
            twin.step()
        scaler.update()
    assert everything(optimizer) == everything(twin)


FOUND = {
    "number": lambda value, device: value,
    "float32": lambda value, device: torch.tensor(value, device=device),
    "float64": lambda value, device: torch.tensor(value, dtype=torch.float64, device=device),
    "one element": lambda value, device: torch.tensor([value], device=device),
    "on the CPU": lambda value, device: torch.tensor(value),
}


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("found", [1.0, 2.0, 0.5, -1.0, math.inf, math.nan])  # 2: on two devices, as GradScaler adds
def test_any_found_inf_but_zero_skips_the_step(torch_device, kind, found):
    params = parameters(torch_device.device)
    optimizer = ours.AdamW(params)
    for step in range(2):
        for i, p in enumerate(params):
            p.grad = random(p.shape, 10 * step + i).to(torch_device.device)
        if step:
            optimizer.grad_scale = torch.tensor(2.0, device=torch_device.device)
            optimizer.found_inf = FOUND[kind](found, torch_device.device)
            before = everything(optimizer)
        optimizer.step()
    assert everything(optimizer) == before
    assert all(optimizer.state[p]["step"].item() == 1 for p in params)


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("found", [0.0, -0.0])
def test_a_found_inf_of_zero_does_not(torch_device, kind, found):
    params, twins = parameters(torch_device.device), parameters(torch_device.device)
    optimizer, twin = ours.AdamW(params), ours.AdamW(twins)
    optimizer.found_inf = FOUND[kind](found, torch_device.device)
    for p, q, i in zip(params, twins, range(3)):
        p.grad, q.grad = (random(p.shape, i).to(torch_device.device) for _ in range(2))
    optimizer.step()
    twin.step()
    assert everything(optimizer) == everything(twin)


def test_a_gradient_in_another_layout_is_written_back_after_a_step_and_left_after_a_skipped_one(torch_device):
    p = random((6, 7), 0).to(torch_device.device).requires_grad_()
    optimizer = ours.SGD([p], lr=1.0)
    for found in (1.0, 0.0):
        gradient = random((7, 6), 1).to(torch_device.device)
        p.grad, before = gradient.t(), p.detach().clone()
        optimizer.grad_scale, optimizer.found_inf = 4.0, torch.tensor(found, device=torch_device.device)
        optimizer.step()
        expected = random((7, 6), 1).to(torch_device.device).t()
        if not found:
            expected = expected / 4
        assert torch.equal(p.grad, expected)
        assert torch.equal(p, before if found else before - expected)


# --- an overflow at the very first step ------------------------------------------------------------------------------


def loaded(params, optimizer):
    fresh = type(optimizer)(params, lr=9.0)
    fresh.load_state_dict(optimizer.state_dict())
    return params, fresh


def loaded_in_place(params, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())
    return params, optimizer


BETWEEN = {
    "nothing": lambda params, optimizer: (params, optimizer),
    "deepcopy": lambda params, optimizer: copy.deepcopy((params, optimizer)),
    "pickle": lambda params, optimizer: pickle.loads(pickle.dumps((params, optimizer))),
    "load": loaded,
    "load in place": loaded_in_place,
}


@each_configuration
@pytest.mark.parametrize("between", BETWEEN)
def test_after_an_overflow_at_the_first_step_all_goes_as_if_it_had_not_been(torch_device, name, options, between):
    sides = Sides(torch_device.device, name, options, fused=False, init_scale=16.0)
    gradients = half_gradients(0, sides.scale)
    gradients[2].fill_(math.inf)
    sides.give(gradients)
    before = everything(sides.optimizers[0])[0]
    sides.step()
    assert everything(sides.optimizers[0])[0] == before
    for p in sides.mine:
        p.grad = None  # copies have none
    sides.mine, sides.optimizers[0] = BETWEEN[between](sides.mine, sides.optimizers[0])
    for step in range(1, 4):
        sides.give(half_gradients(step, sides.scale))
        sides.step()
        if (
            step == 1
            and "momentum_buffer" in sides.optimizers[0].state[sides.mine[0]]
            and "weight_decay" not in options
        ):
            for p in sides.mine:  # it starts from the gradient itself: no dampening, no momentum
                sign = -1 if options.get("maximize") else 1
                assert torch.equal(sides.optimizers[0].state[p]["momentum_buffer"], sign * p.grad)
    sides.compare(TOLERANCE[name])


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_dampening_begins_at_the_second_gradient_whatever_was_skipped(torch_device, between, steps):
    options = {"lr": 0.5, "momentum": 0.5, "dampening": 0.75}
    p = torch.zeros(5, device=torch_device.device, requires_grad=True)
    q = torch.zeros(5, device=torch_device.device, requires_grad=True)
    params, optimizer, twin = [p], ours.SGD([p], **options), torch.optim.SGD([q], **options)
    for number in range(3):
        if number == steps:
            params[0].grad = torch.full_like(p, math.inf)
            optimizer.found_inf = torch.ones((), device=torch_device.device)
            optimizer.step()
            del optimizer.found_inf
            params[0].grad = None
            params, optimizer = BETWEEN[between](params, optimizer)
        params[0].grad = torch.full_like(p, number + 1.0)
        q.grad = torch.full_like(q, number + 1.0)
        optimizer.step()
        twin.step()
    # Powers of two and small numbers: exact, in any order.
    assert torch.equal(params[0], q)
    assert torch.equal(optimizer.state[params[0]]["momentum_buffer"], twin.state[q]["momentum_buffer"])


def test_a_state_dict_says_nothing_of_a_momentum_that_no_gradient_has_reached(torch_device):
    p = torch.zeros(5, device=torch_device.device, requires_grad=True)
    optimizer, torchs = (kind([p], lr=1.0, momentum=0.5, dampening=0.5) for kind in (ours.SGD, torch.optim.SGD))
    p.grad = torch.full_like(p, math.inf)
    optimizer.found_inf = 1.0
    optimizer.step()
    assert not any(value is not None for entry in optimizer.state_dict()["state"].values() for value in entry.values())
    torchs.load_state_dict(optimizer.state_dict())  # and torch goes on from it as from nothing
    p.grad = torch.ones_like(p)
    torchs.step()
    assert torch.equal(p, -p.grad)


# --- unscaled by hand ------------------------------------------------------------------------------------------------


@each_configuration
def test_gradients_that_were_unscaled_and_clipped_are_not_unscaled_again(torch_device, name, options):
    sides = Sides(torch_device.device, name, options, fused=False, init_scale=2.0**11, growth_interval=2)
    scales = []
    for step in range(30):
        sides.give(half_gradients(step, sides.scale))
        norms = []
        for scaler, optimizer, params in zip(sides.scalers, sides.optimizers, (sides.mine, sides.theirs)):
            scaler.unscale_(optimizer)
            norms.append(torch.nn.utils.clip_grad_norm_(params, 1.0))
        torch.testing.assert_close(*norms, rtol=0, atol=0, equal_nan=True)
        clipped = [p.grad.clone() for p in sides.mine]
        scales.append(sides.scale)
        sides.step()
        for p, gradient in zip(sides.mine, clipped):
            torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0, equal_nan=True)  # the step left it alone
    assert any(after < before for before, after in itertools.pairwise(scales))
    sides.compare(TOLERANCE[name])


@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_grad_scale_of_the_user_is_multiplied_with_the_scalers(torch_device, as_tensor):
    sides = Sides(torch_device.device, "Adam", {"lr": 0.01}, init_scale=8.0)
    for step in range(4):
        sides.give([gradient * sides.scale * 0.5 for gradient in half_gradients(step, 1.0)])
        for optimizer in sides.optimizers:
            optimizer.grad_scale = torch.tensor(0.5, device=torch_device.device) if as_tensor else 0.5
        sides.step()
        sides.compare_gradients()
        for p, gradient in zip(sides.mine, half_gradients(step, 1.0)):
            assert torch.equal(p.grad.cpu(), gradient)
    sides.compare(TOLERANCE["Adam"])


def test_the_scaler_takes_its_attributes_away_again(torch_device):
    sides = Sides(torch_device.device, "SGD", {"lr": 0.1}, init_scale=8.0)
    seen = []
    hook = sides.optimizers[0].register_step_post_hook(
        lambda optimizer, *_: seen.append((float(optimizer.grad_scale), float(optimizer.found_inf)))
    )
    sides.give(half_gradients(0, sides.scale))
    sides.step()
    hook.remove()
    assert seen == [(8.0, 0.0)]
    assert not hasattr(sides.optimizers[0], "grad_scale")
    assert not hasattr(sides.optimizers[0], "found_inf")
    sides.give(half_gradients(1, 1.0))
    for optimizer in sides.optimizers:
        optimizer.step()  # without a scaler: nothing is left of it
    sides.compare_gradients()
    sides.compare(TOLERANCE["SGD"])


# --- gradients that are written back ---------------------------------------------------------------------------------

SCALES = [2.0**16, 2.0**-3, 3.0, 0.1, 49999.7]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_gradients_are_written_back_as_torchs_fused_step_writes_them(torch_device, dtype, scale):
    params, twins = parameters(torch_device.device, dtype), parameters(torch_device.device, dtype)
    optimizer, twin = ours.Adam(params), torch.optim.Adam(twins, fused=True)
    for step in range(2):
        for i, (p, q) in enumerate(zip(params, twins)):
            p.grad, q.grad = (random(p.shape, 10 * step + i, dtype).to(torch_device.device) for _ in range(2))
        for each in (optimizer, twin):
            each.grad_scale = torch.tensor(scale, device=torch_device.device)
            each.found_inf = torch.zeros((), device=torch_device.device)
            each.step()
        for p, q in zip(params, twins):
            assert torch.equal(p.grad, q.grad)


SMALL = [torch.float32, torch.float16, torch.bfloat16]
DTYPE_PAIRS = [(p, g) for p in SMALL for g in SMALL] + [(torch.float64, g) for g in (torch.float64, torch.float32)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("dtype", "gradient_dtype"), DTYPE_PAIRS)
def test_the_quotient_is_rounded_once_for_the_gradient_and_not_for_the_update(
    torch_device, dtype, gradient_dtype, scale
):
    real = torch.float64 if dtype == torch.float64 else torch.float32
    p = torch.zeros(1000, device=torch_device.device, dtype=dtype, requires_grad=True)
    p.grad_dtype = None
    p.grad = random((1000,), 1, gradient_dtype).to(torch_device.device)
    quotient = p.grad.to(real) / torch.tensor(scale, device=torch_device.device).to(real)
    optimizer = ours.SGD([p], lr=1.0)
    optimizer.grad_scale = torch.tensor(scale, device=torch_device.device)
    optimizer.step()
    assert torch.equal(p, -quotient.to(dtype))
    assert torch.equal(p.grad, quotient.to(gradient_dtype))


@each_configuration
def test_gradients_are_left_alone_where_the_user_asks_for_it(torch_device, name, options):
    runs = []
    for settings in ({"write_back_gradients": False}, {}):
        params = parameters(torch_device.device)
        optimizer = getattr(ours, name)(params, **options, **settings)
        for step in range(3):
            for i, p in enumerate(params):
                p.grad = random(p.shape, 10 * step + i).to(torch_device.device)
            optimizer.grad_scale = torch.tensor(3.0, device=torch_device.device)
            optimizer.step()
        runs.append(everything(optimizer))
    left, written = runs
    assert left[:2] == written[:2]
    assert left[2] == [raw(random(shape, 20 + i)) for i, shape in enumerate(SHAPES)]
    assert written[2] != left[2]


KINDS = {
    "number": lambda scale, device: scale,
    "integer": lambda scale, device: int(scale) or 1,
    "float32": lambda scale, device: torch.tensor(scale, device=device),
    "float64": lambda scale, device: torch.tensor(scale, dtype=torch.float64, device=device),
    "one element": lambda scale, device: torch.tensor([scale], device=device),
    "NumPy's": lambda scale, device: np.float64(scale),
    "on the CPU": lambda scale, device: torch.tensor(scale),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [4.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_of_any_kind_is_taken_as_one_float32(torch_device, kind, scale, dtype):
    given = KINDS[kind](scale, torch_device.device)
    p = torch.zeros(33, dtype=dtype, device=torch_device.device, requires_grad=True)
    p.grad = random((33,), 5, dtype).to(torch_device.device)
    quotient = p.grad / torch.tensor(float(given), device=torch_device.device).to(dtype)
    optimizer = ours.SGD([p], lr=1.0)
    optimizer.grad_scale = given
    optimizer.step()
    assert torch.equal(p, -quotient)
    assert torch.equal(p.grad, quotient)


# --- what the device sees --------------------------------------------------------------------------------------------


def test_scale_and_found_inf_go_into_the_launch_by_address(emulated_gpu):
    params = parameters("cpu")
    optimizer = ours.AdamW(params)
    for step in range(3):
        for i, p in enumerate(params):
            p.grad = random(p.shape, 10 * step + i)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0 + step), torch.zeros(1)
        optimizer.step()
        launch = emulated_gpu.surface.launches[-1]
        assert launch["grad_scale"] == optimizer.grad_scale.data_ptr()
        assert launch["found_inf"] == optimizer.found_inf.data_ptr()
        assert launch["write_back"] == 1
    del optimizer.grad_scale, optimizer.found_inf
    optimizer.step()
    launch = emulated_gpu.surface.launches[-1]
    assert (launch["grad_scale"], launch["found_inf"], launch["write_back"]) == (0, 0, 0)
    assert len(emulated_gpu.surface.launches) == 4


def test_a_scaled_step_never_waits_for_the_device(emulated_gpu, monkeypatch):
    def waits(*_, **__):
        raise AssertionError("the host waited for the device")

    sides = Sides("cpu", "AdamW", {}, init_scale=2.0)
    inside = pytest.MonkeyPatch()

    def begin(*_):
        for name in ("item", "tolist", "numpy", "cpu", "__float__", "__bool__", "__int__"):
            inside.setattr(torch.Tensor, name, waits)
        inside.setattr(emulated_gpu.surface, "host", waits)

    sides.optimizers[0].register_step_pre_hook(begin)
    sides.optimizers[0].register_step_post_hook(lambda *_: inside.undo())
    scales = []
    for step in range(4):
        gradients = half_gradients(step, sides.scale)
        if step == 2:
            gradients[0][0, 0] = math.inf
        sides.give(gradients)
        try:
            sides.step()
        finally:
            inside.undo()
        scales.append(sides.scale)
    assert scales == [2.0, 2.0, 1.0, 1.0]
    sides.compare(TOLERANCE["AdamW"])


def test_a_scale_that_is_a_number_is_sent_in_four_bytes_to_the_same_place(emulated_gpu, monkeypatch):
    surface, sent = emulated_gpu.surface, []
    copy_to = surface.copy
    monkeypatch.setattr(surface, "copy", lambda to, source: sent.append(source.nbytes) or copy_to(to, source))
    p = torch.zeros(5, requires_grad=True)
    p.grad = torch.full((5,), 8.0)
    optimizer = ours.SGD([p], lr=1.0, write_back_gradients=False)
    for scale in (2.0, 4.0, 8.0):
        optimizer.grad_scale = scale
        optimizer.step()
    assert torch.equal(p, torch.full((5,), -4.0 - 2.0 - 1.0))
    assert sent[-2:] == [4, 4]
    assert len({int(launch["grad_scale"][0]) for launch in surface.launches}) == 1
