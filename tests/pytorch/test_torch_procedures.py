"""Adafactor, LBFGS, Muon, SparseAdam and LazyAdam for torch: torch's steps and state dicts, and what they lack."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import fusedopt
import fusedopt.torch as ours
from fusedopt.procedures import BASES

INFOS = [info for info in optim_db if info.name in BASES]
NAMES = [info.name for info in INFOS]
CONFIGURATIONS = [
    pytest.param(info, entry.kwargs, id=f"{info.name}-{entry.desc}")
    for info in INFOS
    for entry in info.optim_inputs_func("cpu")
]
SHAPES = ((6, 4), (3, 5), (1, 4))
DENSE = ("Adafactor", "Muon")  # the procedures whose gradients are dense, without a closure
# LBFGS's products are other calls. Adafactor's operations come in another order: 64 roundings in six steps, of p and of
# moments whose squares magnify them.
TOLERANCES = {
    ours.Adafactor: {torch.float64: 2**-46, torch.float32: 2**-17},
    ours.LBFGS: {torch.float64: 1e-10, torch.float32: 1e-5},
}
STEPS = 6


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """So many small steps: threads would wait for one another most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parameters(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for shape in SHAPES]


def sparse(gradient, step):
    """Two of its rows, one of them in two parts."""
    rows = torch.tensor([step % len(gradient), 0, step % len(gradient)])
    return torch.sparse_coo_tensor(rows[None], gradient[rows], gradient.shape, check_invariants=True)


def loss_of(params):
    return sum(((p - 0.5) ** 2).sum() + (p**4).sum() / 8 for p in params)


def closure_of(optimizer, step):
    """Computes the loss and its gradients: of some rows where the optimizer takes no others."""
    params = optimizer.param_groups[0]["params"]

    def closure():
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        for p in params:
            if isinstance(optimizer, (torch.optim.SparseAdam, ours.SparseAdam)):
                p.grad = sparse(p.grad, step)
        return loss

    return closure


def take(optimizer, first=0, steps=STEPS):
    for step in range(first, first + steps):
        optimizer.step(closure_of(optimizer, step))


def assert_alike(mine, theirs):
    """To the bit, or to the tolerance."""
    for p, q in zip(mine.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        tolerance = TOLERANCES[type(mine)][p.dtype] if type(mine) in TOLERANCES else 0.0
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
    a, b = mine.state_dict(), theirs.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, entry in b["state"].items():
        assert a["state"][key].keys() == entry.keys()
        for name, value in entry.items():
            if name in ("step", "func_evals", "n_iter"):
                assert (type(a["state"][key][name]), a["state"][key][name]) == (type(value), value)
            if isinstance(value, torch.Tensor) and not isinstance(mine, ours.LBFGS):
                torch.testing.assert_close(a["state"][key][name], value, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("info", "options"), CONFIGURATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_databases_configurations_step_as_torchs(info, options, dtype):
    if dtype == torch.float64:  # torch computes in the float32 of a learning rate that is a tensor
        options = {name: float(value) if name == "lr" else value for name, value in options.items()}
    mine = getattr(ours, info.name)(parameters(dtype), **options)
    theirs = info.optim_cls(parameters(dtype), **options)
    take(mine)
    take(theirs)
    assert_alike(mine, theirs)


@pytest.mark.parametrize("info", INFOS, ids=NAMES)
def test_signature_and_defaults_are_torchs(info):
    kind = getattr(ours, info.name)
    mine, theirs = (dict(inspect.signature(cls).parameters) for cls in (kind, info.optim_cls))
    assert [(name, p.default) for name, p in list(mine.items())[: len(theirs)]] == [
        (name, p.default) for name, p in theirs.items()
    ]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(mine.values())[len(theirs) :])
    assert kind(parameters()).defaults == info.optim_cls(parameters()).defaults
    assert all(f"    {name}: " in kind.__doc__ for name in mine)


@pytest.mark.parametrize("info", INFOS, ids=NAMES)
def test_what_torchs_database_says_is_an_error_is_one(info):
    for entry in info.optim_error_inputs_func("cpu", torch.float32):
        given = entry.optimizer_error_input
        params = given.params if given.params is not None else [torch.nn.Parameter(torch.ones(1, 1))]
        error = ValueError if entry.error_type is UserWarning else entry.error_type
        if entry.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error):
                getattr(ours, info.name)(params, **given.kwargs)
        else:
            optimizer = getattr(ours, info.name)(params, **given.kwargs)
            with pytest.raises(error):
                optimizer.step()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kinds", [(torch.optim, ours, torch.optim), (ours, torch.optim, ours)], ids=["theirs", "ours"])
def test_a_run_goes_on_through_the_others_state_dict(name, kinds):
    options = {"line_search_fn": "strong_wolfe", "max_iter": 2, "history_size": 3} if name == "LBFGS" else {}
    whole, part, before = getattr(torch.optim, name)(parameters(), **options), None, None
    for number, kind in enumerate(kinds):
        part = getattr(kind, name)(parameters(), **options)
        if before is not None:
            with torch.no_grad():
                for p, q in zip(part.param_groups[0]["params"], before.param_groups[0]["params"], strict=True):
                    p.copy_(q)
            buffer = io.BytesIO()
            torch.save(before.state_dict(), buffer)
            buffer.seek(0)
            part.load_state_dict(torch.load(buffer, weights_only=True))
        take(part, 2 * number, 2)
        take(whole, 2 * number, 2)
        before = part
    for p, q in zip(part.param_groups[0]["params"], whole.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_torchs_state_dicts_load_over_arrays(name):
    theirs = getattr(torch.optim, name)(parameters())
    take(theirs, 0, 2)
    before = [p.detach().numpy().copy() for p in theirs.param_groups[0]["params"]]
    arrays = [fusedopt.Parameter(array.copy()) for array in before]
    core = getattr(fusedopt, name)(arrays)
    core.load_state_dict(_as_arrays(theirs.state_dict()))
    closure = closure_of(theirs, 2)

    def ours_closure():
        for p, array in zip(theirs.param_groups[0]["params"], arrays, strict=True):
            with torch.no_grad():
                p.copy_(torch.from_numpy(array.data))
        loss = closure()
        for p, array in zip(theirs.param_groups[0]["params"], arrays, strict=True):
            if name == "SparseAdam":
                gradient = p.grad.coalesce()
                array.grad = fusedopt.SparseGradient(gradient.indices()[0].numpy(), gradient.values().numpy())
            else:
                array.grad = p.grad.numpy()
        return loss.item()

    core.step(ours_closure)
    with torch.no_grad():
        for p, array in zip(theirs.param_groups[0]["params"], before, strict=True):
            p.copy_(torch.from_numpy(array))
    theirs.step(closure)
    tolerance = 1e-4 if name == "Muon" else 1e-10  # lr of 1e-3 times torch's products in bfloat16
    for p, array in zip(theirs.param_groups[0]["params"], arrays, strict=True):
        np.testing.assert_allclose(array.data, p.detach().numpy(), rtol=0, atol=tolerance)


def _as_arrays(value):
    if isinstance(value, dict):
        return {key: _as_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_arrays(item) for item in value]
    return value.numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", BASES)
def test_copied_and_pickled_optimizers_go_on(name):
    params = parameters()
    optimizer = getattr(ours, name)(params, **({"max_iter": 3} if name == "LBFGS" else {}))
    take(optimizer, 0, 2)
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    take(optimizer, 2, 2)
    for other in copies:
        take(other, 2, 2)
        for p, q in zip(params, other.param_groups[0]["params"], strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("name", BASES)
def test_hooks_run_once_a_step_and_the_loss_is_returned(name):
    optimizer, seen = getattr(ours, name)(parameters()), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    closure = closure_of(optimizer, 0)
    expected = loss_of(optimizer.param_groups[0]["params"]).item()
    assert optimizer.step(closure).item() == expected
    assert seen == ["before", "after"]
    optimizer.zero_grad()
    assert all(p.grad is None for p in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize("name", [*DENSE, "SparseAdam", "LazyAdam"])
def test_a_parameter_without_gradient_is_left_alone(name):
    one, other = (torch.ones(3, 2, requires_grad=True) for _ in range(2))
    optimizer = getattr(ours, name)([one, other])
    one.grad = torch.ones(3, 2) if name in DENSE else sparse(torch.ones(3, 2), 1)
    assert optimizer.step() is None
    assert (other == 1).all()
    assert set(optimizer.state) == {one}
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", [*DENSE, "SparseAdam", "LazyAdam"])
def test_learning_rates_of_groups_and_schedulers_count_down_to_zero(name):
    one, other = (torch.zeros(3, 2, requires_grad=True) for _ in range(2))
    optimizer = getattr(ours, name)([{"params": [one]}, {"params": [other], "lr": 0.02}], lr=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=3)
    for step in range(4):
        before = one.detach().clone(), other.detach().clone()
        for p in (one, other):
            p.grad = torch.ones(3, 2) if name in DENSE else sparse(torch.ones(3, 2), 0)
        optimizer.step()
        scheduler.step()
        moves = one - before[0], other - before[1]
        torch.testing.assert_close(2 * moves[0], moves[1], rtol=1e-2, atol=0)  # Muon decays, too
        assert bool((moves[0] != 0).any()) == (step < 3)


# --- LBFGS


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_takes_missing_sparse_and_complex_gradients(search):
    values = torch.linspace(-1, 1, 6, dtype=torch.float64)
    pairs = []
    for kind in (ours, torch.optim):
        embedding = torch.nn.Embedding(4, 2, sparse=True, dtype=torch.float64)
        wave = torch.complex(values, values.flip(0)).requires_grad_()
        idle = torch.ones(2, dtype=torch.float64, requires_grad=True)
        with torch.no_grad():
            embedding.weight.copy_(values[:2] + torch.arange(4)[:, None])
        optimizer = kind.LBFGS([embedding.weight, wave, *([idle] if kind is ours else [])], line_search_fn=search)

        def closure(optimizer=optimizer, embedding=embedding, wave=wave):
            optimizer.zero_grad()
            loss = (embedding(torch.tensor([1, 2, 1])) ** 2).sum() + ((wave - 1).abs() ** 2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        pairs.append((embedding.weight.detach(), wave.detach()))
        assert (idle == 1).all()
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_lbfgs_has_one_group_a_closure_and_whole_numbers():
    x = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="doesn't support per-parameter options"):
        ours.LBFGS([{"params": [x]}, {"params": [torch.zeros(1, requires_grad=True)]}])
    optimizer = ours.LBFGS([x])
    with pytest.raises(ValueError, match="doesn't support per-parameter options"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    with pytest.raises(TypeError, match=r"^LBFGS.step takes a closure that computes loss and gradients, got None.$"):
        optimizer.step()
    with pytest.raises(TypeError, match=r"^LBFGS: the closure must return the loss, got None.$"):
        optimizer.step(lambda: None)
    assert not optimizer.state[x]
    with pytest.raises(ValueError, match="max_iter must be a whole number"):
        ours.LBFGS([x], max_iter=1.5)
    with pytest.raises(ValueError, match="line_search_fn must be one of"):
        ours.LBFGS([x], line_search_fn="armijo")  # torch says so at the first step
    assert ours.LBFGS([x], max_eval=None).defaults["max_eval"] == 25
    assert ours.LBFGS([x], max_iter=8).defaults["max_eval"] == 10


def test_a_wrong_lbfgs_state_dict_changes_nothing():
    optimizer = ours.LBFGS(parameters(), max_iter=3)
    take(optimizer, 0, 2)
    before = copy.deepcopy(optimizer.state_dict())
    for name, value in {"d": torch.zeros(3), "ro": [], "prev_loss": ..., "n_iter": 0.5, "other": 1}.items():
        saved = copy.deepcopy(before)
        saved["param_groups"][0]["lr"] = 0.5
        saved["state"][0][name] = value
        if value is ...:
            del saved["state"][0][name]
        with pytest.raises((KeyError, ValueError), match="the state of LBFGS"):
            optimizer.load_state_dict(saved)
        assert str(optimizer.state_dict()) == str(before)


def test_a_loss_that_is_not_finite_leaves_tensors_alone():
    x = torch.ones(3, requires_grad=True)
    optimizer = ours.LBFGS([x], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (x * float("nan")).sum()
        loss.backward()
        return loss

    assert torch.isnan(optimizer.step(closure))
    assert (x == 1).all()


# --- Muon


def test_muon_in_half_types_keeps_its_momentum():
    """torch's, without nesterov, divides the momentum by its norm: it orthogonalizes a bfloat16 buffer in place."""
    p = torch.ones(4, 3, dtype=torch.bfloat16, requires_grad=True)
    optimizer = ours.Muon([p], nesterov=False, momentum=0.5)
    p.grad = torch.full((4, 3), 8.0, dtype=torch.bfloat16)
    optimizer.step()
    assert (optimizer.state[p]["momentum_buffer"] == 4).all()


def test_muons_products_may_be_of_another_type():
    start = np.random.default_rng(0).standard_normal((5, 3))
    p, q = torch.from_numpy(start.copy()).requires_grad_(), fusedopt.Parameter(start.copy())
    optimizer, core = ours.Muon([p], lr=0.1, ns_dtype="float64"), fusedopt.Muon([q], lr=0.1)
    for seed in range(3):
        gradient = np.random.default_rng(seed + 1).standard_normal((5, 3))
        p.grad, q.grad = torch.from_numpy(gradient), gradient
        optimizer.step()
        core.step()
    np.testing.assert_allclose(p.detach().numpy(), q.data, rtol=1e-12)
    assert optimizer.param_groups[0]["ns_dtype"] == "float64"
    assert "ns_dtype" not in ours.Muon([p]).param_groups[0]  # torch's state dicts do not have it


def test_muon_refuses_what_is_no_matrix_and_changes_nothing():
    matrix, bias = torch.ones(2, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = ours.Muon([matrix])
    with pytest.raises(ValueError, match=r"only supports 2D parameters, parameter 'bias' \(shape \(2,\)\)"):
        optimizer.add_param_group({"params": [("bias", bias)]})
    assert len(optimizer.param_groups) == 1
    other = torch.ones(2, 2, requires_grad=True)
    optimizer.add_param_group({"params": [other]})
    matrix.grad, other.grad = torch.ones(2, 2), sparse(torch.ones(2, 2), 0)
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 1 .*sparse"):
        optimizer.step()
    assert (matrix == 1).all()
    assert not optimizer.state


@pytest.mark.parametrize("name", [*DENSE, "SparseAdam"])
def test_a_scaler_unscales_beforehand_and_skips_what_overflows(name):
    ends = []
    for scaled in (False, True):
        p = torch.ones(3, 2, requires_grad=True)
        optimizer = getattr(ours, name)([p], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scaled)
        scaler.scale(torch.ones(1))
        for step in range(4):
            gradient = torch.ones(3, 2) * (float("inf") if step == 2 else step + 1.0) * (8.0 if scaled else 1.0)
            p.grad = gradient if name in DENSE else sparse(gradient, step)
            if step != 2 or scaled:
                scaler.step(optimizer)
            if step == 2 and scaled:
                scaler.update(8.0)
            elif scaled:
                scaler.update()
        ends.append(p.detach())
    assert torch.equal(*ends)


# --- rows


@pytest.mark.parametrize("name", ["SparseAdam", "LazyAdam"])
def test_rows_of_a_view_are_written_inside_of_it(name):
    """torch's dense.add_(sparse) writes outside of a view that does not begin where its storage does."""
    whole = torch.zeros(10, 3)
    table = whole[4:8].requires_grad_()
    optimizer = getattr(ours, name)([table], lr=0.1)
    for step in range(2):
        table.grad = sparse(torch.ones(4, 3), step)
        optimizer.step()
    assert (whole[:4] == 0).all()
    assert (whole[8:] == 0).all()
    assert (table[:2] != 0).all()
    assert (table[2:] == 0).all()


@pytest.mark.parametrize("name", ["SparseAdam", "LazyAdam"])
def test_an_empty_gradient_is_a_step_and_steps_are_as_torch_keeps_them(name):
    p = torch.ones(3, 2, requires_grad=True)
    optimizer = getattr(ours, name)([p])
    p.grad = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 2), (3, 2), check_invariants=True
    )
    optimizer.step()
    assert (p == 1).all()
    assert optimizer.state[p]["step"] == 1
    optimizer.load_state_dict(optimizer.state_dict())
    assert isinstance(optimizer.state[p]["step"], int) == (name == "SparseAdam")


def test_elements_of_all_dimensions_may_be_sparse():
    ends = []
    for kind in (ours, torch.optim):
        p = torch.ones(3, 4, requires_grad=True)
        optimizer = kind.SparseAdam([p], lr=0.1)
        where = torch.tensor([[0, 2, 0], [1, 3, 1]])
        p.grad = torch.sparse_coo_tensor(where, torch.tensor([1.0, -2.0, 3.0]), (3, 4), check_invariants=True)
        optimizer.step()
        ends.append(p.detach())
    assert torch.equal(*ends)


def test_sparse_adam_refuses_dense_gradients_and_changes_nothing():
    one, other = (torch.ones(3, 2, requires_grad=True) for _ in range(2))
    optimizer = ours.SparseAdam([one, other])
    one.grad, other.grad = sparse(torch.ones(3, 2), 0), torch.ones(3, 2)
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0 .* does not support dense gradients"):
        optimizer.step()
    assert (one == 1).all()
    assert not optimizer.state


@pytest.mark.parametrize("options", [{}, {"nesterov": True, "weight_decay": 0.1, "maximize": True, "clip_value": 0.5}])
@pytest.mark.parametrize("name", ["SparseAdam", "LazyAdam"])
def test_rows_are_the_cores(name, options, torch_device):
    """Rows and dense gradients in turns, of two tables, beside the same over arrays."""
    options = {
        key: value for key, value in options.items() if name == "LazyAdam" or key not in ("nesterov", "weight_decay")
    }
    tables = [torch.ones(5, 2, dtype=torch.float64, device=torch_device.device).requires_grad_() for _ in range(2)]
    arrays = [fusedopt.Parameter(np.ones((5, 2))) for _ in range(2)]
    mine, core = getattr(ours, name)(tables, lr=0.1, **options), getattr(fusedopt, name)(arrays, lr=0.1, **options)
    for step in range(6):
        for i, (table, array) in enumerate(zip(tables, arrays, strict=True)):
            random = np.random.default_rng([step, i])
            if name == "LazyAdam" and (step + i) % 3 == 0:
                array.grad = random.standard_normal((5, 2))
                table.grad = torch.from_numpy(array.grad.copy()).to(torch_device.device)
                continue
            rows, values = random.integers(0, 5, 4), random.standard_normal((4, 2))
            array.grad = fusedopt.SparseGradient(rows, values)
            indices = torch.from_numpy(rows)[None].to(torch_device.device)
            values = torch.from_numpy(values).to(torch_device.device)
            table.grad = torch.sparse_coo_tensor(indices, values, (5, 2), check_invariants=True)
        mine.step()
        core.step()
        for table, array in zip(tables, arrays, strict=True):
            np.testing.assert_allclose(table.detach().cpu().numpy(), array.data, rtol=1e-12)
            assert mine.state[table]["step"] == core.state[array]["step"] == step + 1


def test_an_embedding_and_a_layer_train_together():
    torch.manual_seed(0)
    embedding, layer = torch.nn.Embedding(20, 4, sparse=True), torch.nn.Linear(4, 1)
    optimizer = ours.LazyAdam([*embedding.parameters(), *layer.parameters()], lr=0.05)
    tokens = torch.arange(10)
    first = last = None
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(embedding(tokens)) - tokens[:, None] / 10).square().mean()
        loss.backward()
        optimizer.step()
        last = loss.item()
        first = first or last
    assert last < 0.1 * first
    saved = optimizer.state_dict()
    assert saved["state"][0]["exp_avg"][10:].abs().max() == 0
    other = ours.LazyAdam([*embedding.parameters(), *layer.parameters()])
    other.load_state_dict(saved)
    assert float(other.state_dict()["state"][0]["step"]) == 30


# --- schedules


@pytest.mark.parametrize("name", BASES)
def test_a_schedule_is_the_numbers_written_by_hand(name):
    rates, ends = [0.1, 0.05, 0.02, 0.01], []
    for scheduled in (True, False):
        params = parameters()
        optimizer = getattr(ours, name)(params, lr=rates if scheduled else 1.0)
        for step, rate in enumerate(rates):
            if not scheduled:
                optimizer.param_groups[0]["lr"] = rate
            take(optimizer, step, 1)
            assert optimizer.param_groups[0]["lr"] == rate
        ends.append(params)
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("name", BASES)
def test_a_schedule_over_arrays_is_the_numbers_written_by_hand(name):
    rates, ends = [0.1, 0.05, 0.02, 0.01], []
    for scheduled in (True, False):
        x = fusedopt.Parameter(np.random.default_rng(0).standard_normal((3, 2)))
        optimizer = getattr(fusedopt, name)([x], lr=rates if scheduled else 1.0)

        def closure(x=x, name=name):
            dense = x.data - 0.5
            rows = fusedopt.SparseGradient(np.array([0, 2]), dense[[0, 2]])
            x.grad = rows if name in ("SparseAdam", "LazyAdam") else dense
            return 0.5 * (dense**2).sum()

        for rate in rates:
            if not scheduled:
                optimizer.param_groups[0]["lr"] = rate
            optimizer.step(closure)
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        ends.append(x.data.copy())
    assert np.array_equal(*ends)
