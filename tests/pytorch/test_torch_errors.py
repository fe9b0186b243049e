"""What torch refuses is refused with torch's exception, by the parameter's name, and nothing has changed then."""

import contextlib
import inspect
import re
import types
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import fusedopt.torch
from cases import CASES, ONE_OF_EACH_KIND, Case, each_of_torchs
from cases import each_kind as each_case
from fusedopt.procedures import BASES
from fusedopt.rules.hyperparameter import is_flag

INFOS = [info for info in optim_db if info.name in {case.name for case in CASES}]
KINDS = [getattr(fusedopt.torch, case.name) for case in CASES if case.name in fusedopt.torch.__all__]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
SHAPES = ((2, 3), (4,), (17,))


def leaf():
    return torch.ones(3, requires_grad=True)


def non_leaf():
    return leaf() * 2


# --- what is compared


def bits(value):
    """Something that is equal for equal types, dtypes, shapes, layouts and bits, all the way down."""
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [bits(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, repr(value)
    known = value.dtype, tuple(value.shape), value.layout, value.device
    if value.device.type == "meta":
        return known
    dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
    return known, dense.cpu().contiguous().reshape(-1).view(torch.uint8).tolist()


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def contents(optimizer):
    """All that a failed call must leave as it was: values, and which tensor is where."""
    params = params_of(optimizer)
    order = [(key, id(value)) for p in params for key, value in optimizer.state.get(p, {}).items()]
    state = [bits(dict(optimizer.state.get(p, {}))) for p in params]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    places = [(id(p), p.data_ptr(), id(p.grad)) for p in params if p.device.type != "meta"]
    values = [(bits(p), bits(p.grad)) for p in params]
    return len(optimizer.state), order, state, bits(groups), places, values, bits(optimizer.defaults)


@contextlib.contextmanager
def refused(optimizer, error, message):
    """The body raises this very type, with such a message, and the optimizer has changed in nothing."""
    before = contents(optimizer)
    with pytest.raises(error, match=message) as caught:
        yield
    assert caught.type is error
    assert contents(optimizer) == before


class Run:
    """An optimizer in training, with a parameter that is in order before the one that will not be; and torch's."""

    def __init__(self, case, device, names=None, more=(), steps=0):
        self.case, self.device = case, device
        self.params = self._tensors(device)
        self.theirs = case.reference(self._tensors("cpu"), **case.main, foreach=False)
        params = [*self.params, *more]
        named = params if names is None else list(zip(names, params, strict=True))
        self.ours = getattr(fusedopt.torch, case.name)([{"params": named[:1]}, {"params": named[1:]}], **case.main)
        self.taken = 0
        self.take(steps)

    def _tensors(self, device):
        random = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=random).to(device).requires_grad_() for shape in SHAPES]

    @property
    def victim(self):
        """The parameter that something will be wrong with, first of the second group."""
        return self.params[1]

    def give_gradients(self, params):
        random = torch.Generator().manual_seed(1000 + self.taken)
        for p in params:
            p.grad = (0.1 * torch.randn(p.shape, generator=random)).to(p.device)

    def take(self, steps):
        for _ in range(steps):
            self.give_gradients(params_of(self.theirs))
            self.theirs.step()
            self.give_gradients(self.params)
            self.ours.step()
            self.taken += 1

    def goes_on(self):
        """Two more steps, and all is equal to torch's."""
        self.take(2)
        for p, expected in zip(self.params, params_of(self.theirs), strict=True):
            # float32: 2.5e-7 of max(1, |p|) a step, as torch's loop rounds more often
            torch.testing.assert_close(p.detach().cpu(), expected.detach(), rtol=1e-6, atol=1e-6)
            entry, theirs = self.ours.state.get(p, {}), self.theirs.state.get(expected, {})
            assert list(entry) == list(theirs)
            assert "step" not in theirs or entry["step"].item() == theirs["step"].item()
            for key, value in theirs.items():
                torch.testing.assert_close(entry[key].cpu().to(value.dtype), value, rtol=1e-6, atol=1e-6)


# --- steps with something wrong
#
# Each of these does something wrong to a run, and undoes it.


def first_state(run):
    """The name of the victim's first state array."""
    return next(key for key in run.ours.state[run.victim] if key != "step")


@contextlib.contextmanager
def gradient(run, make):
    kept, run.victim.grad_dtype = run.victim.grad, None
    run.victim.grad = make(kept)
    yield
    run.victim.grad, run.victim.grad_dtype = kept, run.victim.dtype


@contextlib.contextmanager
def storage(run, make):
    kept = run.victim.data
    run.victim.data = make(kept)
    yield
    run.victim.data = kept


@contextlib.contextmanager
def state(run, make):
    entry, key = run.ours.state[run.victim], first_state(run)
    kept, entry[key] = entry[key], make(entry[key])
    yield
    entry[key] = kept


@contextlib.contextmanager
def step(run, make):
    entry = run.ours.state[run.victim]
    kept, entry["step"] = entry["step"], make(entry["step"])
    yield
    entry["step"] = kept


def elsewhere(tensor):
    return tensor.cpu() if tensor.device.type != "cpu" else tensor.to("meta")


# What is done, to which tensor, the error's type, and its message after the parameter's name.
GRADIENTS = {
    "sparse": (gradient, lambda g: g.to_sparse(), RuntimeError, "sparse gradients; give it to SparseAdam or LazyAdam"),
    "float64": (gradient, lambda g: g.double(), RuntimeError, "torch.float64, where it may have float32, float16 or"),
    "complex": (gradient, lambda g: g.to(torch.complex64), RuntimeError, "its gradient is complex"),
    "an integer": (gradient, lambda g: g.to(torch.int32), RuntimeError, "its gradient has torch.int32"),
    "fp8": (gradient, lambda g: g.to(torch.float8_e4m3fn), RuntimeError, "its gradient has torch.float8_e4m3fn"),
    "of another shape than swapped data": (
        storage,
        lambda p: torch.zeros(2, 5, device=p.device),
        RuntimeError,
        r"its gradient has shape \(4,\) and the parameter \(2, 5\)",
    ),
    "of another size than swapped data": (
        storage,
        lambda p: p[:3],
        RuntimeError,
        r"its gradient has shape \(4,\) and the parameter \(3,\)",
    ),
}
STATES = {
    "on another device": (state, elsewhere, RuntimeError, "its state '{state}'.*(device|on cpu)"),
    "of another shape": (state, lambda s: s.new_zeros(2, 2), RuntimeError, r"its state '{state}' has shape \(2, 2\)"),
    "of another size": (state, lambda s: s.new_zeros(3), RuntimeError, r"its state '{state}' has shape \(3,\)"),
    "0-d": (state, lambda s: s.new_zeros(()), RuntimeError, r"its state '{state}' has shape \(\)"),
    "a list": (state, lambda s: s.tolist(), TypeError, "its state '{state}' must be a tensor, got list"),
    "a NumPy array": (state, lambda s: s.cpu().numpy(), TypeError, "its state '{state}' must be a tensor, got ndarray"),
    "a number": (state, lambda s: 0.0, TypeError, "its state '{state}' must be a tensor, got float"),
    "float64": (state, lambda s: s.double(), RuntimeError, "float32 and its state '{state}' torch.float64"),
    "complex": (state, lambda s: s.to(torch.complex64), RuntimeError, "its state '{state}' is complex"),
    "sparse": (state, lambda s: s.to_sparse(), RuntimeError, "sparse"),
}
COUNTERS = {
    "negative": (step, lambda s: torch.tensor(-1.0), ValueError, "step must be a whole number from 0, got"),
    "a fraction": (step, lambda s: torch.tensor(1.5), ValueError, "step must be a whole number from 0, got"),
    "NaN": (step, lambda s: torch.tensor(float("nan")), ValueError, "step must be a whole number from 0, got"),
    "infinite": (step, lambda s: torch.tensor(float("inf")), ValueError, "step must be a whole number from 0, got"),
    "a negative number": (step, lambda s: -1, ValueError, "step must be a whole number from 0, got -1"),
    "text": (step, lambda s: "three", ValueError, "step must be a whole number from 0, got 'three'"),
    "two numbers": (step, lambda s: torch.tensor([1.0, 2.0]), ValueError, "step must be a whole number from 0, got"),
}


def check_fault(run, names, fault, index=1):
    """A step with the fault is refused, by the parameter's name; without it, the run goes on equal to torch's."""
    how, make, error, message = fault
    run.give_gradients(run.params)
    name = re.escape(repr(names[index])) if names else rf"{index - 1} of group 1"
    with how(run, make):
        if "{state}" in message:
            message = message.replace("{state}", first_state(run))
        for _ in range(2):  # it is no less wrong for having been refused
            with refused(run.ours, error, rf"^parameter {name} \(shape .*{message}"):
                run.ours.step()
    run.goes_on()


NAMES = ["first.weight", "second.bias", "third.weight"]
each_naming = pytest.mark.parametrize("names", [NAMES, None], ids=["named", "unnamed"])


@each_case
@each_naming
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("fault", GRADIENTS.values(), ids=GRADIENTS)
def test_a_wrong_gradient_is_an_error_that_changes_nothing(case, names, steps, fault, torch_device):
    check_fault(Run(case, torch_device.device, names, steps=steps), names, fault)


@each_case
@each_naming
@pytest.mark.parametrize("fault", STATES.values(), ids=STATES)
def test_a_wrong_state_is_an_error_that_changes_nothing(case, names, fault, torch_device):
    check_fault(Run(case, torch_device.device, names, steps=3), names, fault)


@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH_KIND if case.rule.step_key], ids=lambda case: case.name)
@each_naming
@pytest.mark.parametrize("fault", COUNTERS.values(), ids=COUNTERS)
def test_a_wrong_step_is_an_error_that_changes_nothing(case, names, fault, torch_device):
    check_fault(Run(case, torch_device.device, names, steps=3), names, fault)


# Parameters that have no place in an optimizer; they cannot be told from those that will never have a gradient.
STRANGERS = {
    "complex": (lambda d: torch.zeros(3, dtype=torch.complex64, device=d), "it is complex"),
    "meta": (lambda d: torch.zeros(3, device="meta"), "it is on the meta device"),
    "fp8": (lambda d: torch.zeros(3, device=d).to(torch.float8_e4m3fn), "it has torch.float8_e4m3fn"),
    "fp8 of the other kind": (lambda d: torch.zeros(3, device=d).to(torch.float8_e5m2), "it has torch.float8_e5m2"),
    "complex of double size": (lambda d: torch.zeros(3, dtype=torch.complex128, device=d), "it is complex"),
}


@each_case
@each_naming
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(("make", "message"), STRANGERS.values(), ids=STRANGERS)
def test_a_parameter_of_another_kind_is_an_error_once_it_has_a_gradient(
    case, names, steps, make, message, torch_device
):
    stranger = make(torch_device.device).requires_grad_()
    names = [*names, "stranger"] if names else None

    @contextlib.contextmanager
    def with_gradient(run, make):
        stranger.grad = torch.zeros_like(stranger)
        yield
        stranger.grad = None

    run = Run(case, torch_device.device, names, [stranger], steps)
    check_fault(run, names, (with_gradient, None, RuntimeError, message), index=3)


# --- hyperparameters


NAN = float("nan")


@dataclass(frozen=True)
class Wrong:
    """A value that an option must not have.

    Attributes:
        what: What is wrong with it.
        seen: Whether one sees it without waiting for the device that it may be on.
    """

    case: Case
    name: str
    value: Any
    error: type[Exception]
    what: str
    seen: bool = True


def _out_of_range(case, name, field):
    ranges = field.metadata["interval"]
    if not isinstance(field.default, tuple):
        for what, value, error in _outside(ranges):
            yield Wrong(case, name, value, error, what, not isinstance(value, torch.Tensor))
        return
    for i, interval in enumerate(ranges):
        for what, value, error in _outside(interval):
            is_tensor = isinstance(value, torch.Tensor)
            some = [torch.tensor(x) if is_tensor else x for x in field.default]
            some[i] = value
            yield Wrong(case, name, tuple(some), error, f"{i} {what}", not is_tensor)


def _outside(interval):
    """(what is wrong with it, a value that is not in the interval, the error)"""
    wrong = [("NaN", NAN, ValueError), ("text", "much", TypeError)]
    if interval.low > -float("inf"):
        wrong.append(("negative", interval.low - 1.0, ValueError))
    if interval.high < float("inf"):
        wrong.append(("too large", interval.high + 1.0, ValueError))
    return wrong + [(f"{what} tensor", torch.tensor(x), error) for what, x, error in wrong if isinstance(x, float)]


STORAGES = [
    ("master_weights", "half", ValueError, "half"),
    ("master_weights", torch.tensor(1.0), TypeError, "tensor"),
    ("kahan", 2, TypeError, "2"),
    ("stochastic_rounding", torch.tensor(True), TypeError, "tensor"),
    ("state_dtype", "int4", ValueError, "int4"),
    ("state_dtype", {"nothing": "int8"}, ValueError, "of a state that is not there"),
    ("seed", -1, ValueError, "negative"),
    ("seed", 0.5, ValueError, "a half"),
    ("seed", torch.tensor(1), TypeError, "tensor"),
]


def _wrong_values():
    one = torch.tensor(0.9)
    for case in ONE_OF_EACH_KIND:
        for name, field in case.rule.options().items():
            if field.init and not is_flag(field) and not field.metadata["whole"]:
                yield from _out_of_range(case, name, field)
        for name, value, error, what in STORAGES:
            yield Wrong(case, name, value, error, what)
        yield Wrong(case, "lr", torch.tensor([0.1, 0.2]), ValueError, "two elements")
        yield Wrong(case, "lr", torch.tensor([]), ValueError, "no element")
        yield Wrong(case, "lr", None, TypeError, "None")
        yield Wrong(case, "maximize", 2, TypeError, "2")
        if "betas" in case.rule.options():
            for betas in ((), (0.9,), (0.9, 0.9, 0.9), 0.9, (one,), (one, one, one), (one, 0.9), (0.9, one)):
                yield Wrong(case, "betas", betas, ValueError, str(betas).replace("tensor(0.9000)", "tensor"))
        if "dampening" in case.rule.options():
            yield Wrong(case, "nesterov", True, ValueError, "True beside the case's dampening")


def each_wrong_value(some=lambda wrong: True):
    values = [
        pytest.param(wrong, id=f"{wrong.case.name}-{wrong.name} {wrong.what}")
        for wrong in _wrong_values()
        if some(wrong)
    ]
    return pytest.mark.parametrize("wrong", values)


@each_wrong_value()
def test_a_wrong_hyperparameter_is_refused_at_construction(wrong):
    with pytest.raises(wrong.error, match=rf"{wrong.case.name}: {wrong.name}") as caught:
        getattr(fusedopt.torch, wrong.case.name)([leaf()], **{**wrong.case.main, wrong.name: wrong.value})
    assert caught.type is wrong.error


@each_wrong_value()
def test_a_wrong_hyperparameter_is_refused_in_a_group(wrong):
    groups = [{"params": [leaf()]}, {"params": [leaf()], wrong.name: wrong.value}]
    with pytest.raises(wrong.error, match=rf"^param group 1: {wrong.case.name}: {wrong.name}") as caught:
        getattr(fusedopt.torch, wrong.case.name)(groups, **wrong.case.main)
    assert caught.type is wrong.error
    assert list(groups[0]) == ["params"]
    run = Run(wrong.case, "cpu", steps=2)
    with refused(run.ours, wrong.error, rf"^param group 2: {wrong.case.name}: {wrong.name}"):
        run.ours.add_param_group(groups[1])
    run.goes_on()


def check_change(wrong, device, steps):
    """A step with the value in one group is refused; without it, the run goes on equal to torch's."""
    run = Run(wrong.case, device, steps=steps)
    run.give_gradients(run.params)
    group = run.ours.param_groups[1]
    kept, group[wrong.name] = getattr(run.ours.rule(**wrong.case.main), wrong.name), wrong.value
    for _ in range(2):  # it is no less wrong for having been refused
        with refused(run.ours, wrong.error, rf"^param group 1: {wrong.case.name}: {wrong.name}"):
            run.ours.step()
    group[wrong.name] = kept
    run.goes_on()


@each_wrong_value(lambda wrong: wrong.seen)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_hyperparameter_made_wrong_in_training_is_an_error_that_changes_nothing(wrong, steps, torch_device):
    check_change(wrong, torch_device.device, steps)


@each_wrong_value(lambda wrong: not wrong.seen)
def test_a_tensor_made_wrong_in_training_is_an_error_on_the_cpu(wrong):
    check_change(wrong, "cpu", steps=2)


@each_case
def test_a_hyperparameter_taken_out_of_its_group_is_torchs_key_error(case, torch_device):
    run = Run(case, torch_device.device, steps=2)
    run.give_gradients(run.params)
    kept = run.ours.param_groups[1].pop("lr")
    with refused(run.ours, KeyError, "lacks 'lr'"):
        run.ours.step()
    run.ours.param_groups[1]["lr"] = kept
    run.goes_on()


def test_nesterov_needs_momentum_without_dampening_in_every_group():
    parameter = torch.ones(3, requires_grad=True)
    for options in ({"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.5}):
        for kind in (torch.optim.SGD, fusedopt.torch.SGD):
            with pytest.raises(ValueError, match=r"(?i)nesterov"):
                kind([parameter], **options)
        with pytest.raises(ValueError, match="param group 0: SGD: nesterov=True needs momentum > 0"):
            fusedopt.torch.SGD([{"params": [parameter], **options}])


def test_betas_may_be_integers():
    assert fusedopt.torch.Adam([torch.ones(3)], betas=(0, 0.9)).param_groups[0]["betas"] == (0, 0.9)


# --- constructors


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_what_torchs_database_says_is_an_error_is_one(info):
    entries = info.optim_error_inputs_func("cpu", torch.float32)
    assert entries
    for entry in entries:
        assert entry.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
        given = entry.optimizer_error_input
        params = given.params if given.params is not None else [torch.nn.Parameter(torch.ones(1, 1))]
        # torch warns of a parameter that is twice in its group, and updates it twice.
        error = ValueError if entry.error_type is UserWarning else entry.error_type
        with pytest.raises(error) as caught:
            getattr(fusedopt.torch, info.name)(params, **given.kwargs)
        assert caught.type is error, given.desc
        with pytest.raises(entry.error_type):  # torch agrees; its warnings are errors here
            info.optim_cls(params, **given.kwargs)


# Each takes a tensor that is in order, and is torch's error too, if not of the same words.
PARAMS = {
    "a tensor": (lambda p: p, TypeError, "params argument given to the optimizer should be an iterable"),
    "an empty list": (lambda p: [], ValueError, "empty parameter list"),
    "an empty generator": (lambda p: (q for q in ()), ValueError, "empty parameter list"),
    "a number": (lambda p: 3, TypeError, "not iterable"),
    "a list of numbers": (lambda p: [p, 1.0], TypeError, "can only optimize Tensors, .*float"),
    "a list with None": (lambda p: [p, None], TypeError, "can only optimize Tensors, .*NoneType"),
    "a list of lists": (lambda p: [[p]], TypeError, "can only optimize Tensors, .*list"),
    "a non-leaf": (
        lambda p: [p, non_leaf()],
        ValueError,
        r"^parameter 1 of group 0 \(shape \(3,\)\): can't optimize a non-leaf",
    ),
    "a named non-leaf": (
        lambda p: [("a", p), ("b.weight", non_leaf())],
        ValueError,
        r"^parameter 'b.weight' \(shape \(3,\)\): can't optimize a non-leaf",
    ),
    "a group's non-leaf": (
        lambda p: [{"params": p}, {"params": non_leaf()}],
        ValueError,
        r"^parameter 0 of group 1 \(shape \(3,\)\): can't optimize a non-leaf",
    ),
    "a non-leaf in a view": (
        lambda p: [{"params": [p]}, {"params": {"a": leaf(), "b": non_leaf()}.values()}],
        ValueError,
        r"^parameter 1 of group 1 \(shape \(3,\)\): can't optimize a non-leaf",
    ),
    "a group that is no dict": (lambda p: [{"params": [p]}, leaf()], TypeError, "param_group must be a dict"),
    "a group's set": (lambda p: [{"params": {p}}], TypeError, "ordering of tensors in sets"),
    "a group without params": (lambda p: [{"params": [p]}, {"lr": 0.1}], KeyError, "params"),
    "twice in two groups": (lambda p: [{"params": [p]}, {"params": [leaf(), p]}], ValueError, "more than one"),
    "some named": (lambda p: [("a", p), leaf()], ValueError, "with/without names"),
    "some unnamed": (lambda p: [leaf(), ("a", p)], ValueError, "with/without names"),
    "some groups named": (
        lambda p: [{"params": [("a", p)]}, {"params": [leaf()]}],
        ValueError,
        "with/without names",
    ),
}


@each_case
@pytest.mark.parametrize(("params", "error", "message"), PARAMS.values(), ids=PARAMS)
def test_wrong_params_are_torchs_error(case, params, error, message):
    parameter = leaf()
    for kind, words in ((case.reference, None), (getattr(fusedopt.torch, case.name), message)):
        with pytest.raises(error, match=words) as caught:
            kind(params(parameter))
        assert caught.type is error
    getattr(fusedopt.torch, case.name)([parameter])


@each_kind
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_a_parameter_twice_in_its_group_is_an_error_that_names_it(kind, named):
    p, q = leaf(), leaf()
    params = [("p", p), ("q", q), ("again", p)] if named else [p, q, p]
    name = "'again'" if named else "2 of group 0"
    for given in (params, [{"params": params}]):
        with pytest.raises(ValueError, match=rf"^parameter {name} \(shape \(3,\)\) appears twice"):
            kind(given)


@each_kind
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_a_parameter_in_two_groups_is_an_error_that_names_it(kind, named):
    p, q = leaf(), leaf()
    groups = (
        [{"params": [("p", p)]}, {"params": [("q", q), ("again", p)]}]
        if named
        else [{"params": [p]}, {"params": [q, p]}]
    )
    name = "'again'" if named else "1 of group 1"
    with pytest.raises(ValueError, match=rf"^parameter {name} \(shape \(3,\)\).*more than one parameter group"):
        kind(groups)


@each_kind
def test_a_group_without_parameters_is_accepted_as_in_torch(kind):
    optimizer = kind([{"params": []}])
    optimizer.step()
    assert optimizer.state_dict()["state"] == {}


@each_kind
def test_a_non_leaf_that_retains_its_gradient_is_accepted_as_in_torch(kind):
    p = leaf()
    q = p * 2
    q.retain_grad()
    kind([q])


@each_kind
def test_an_unknown_option_is_an_error_that_says_what_was_meant(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__} has no option 'maximise'; did you mean 'maximize'\?"):
        kind([leaf()], maximise=True)
    with pytest.raises(TypeError, match="has no option 'colour'; it has lr, "):
        kind([leaf()], colour=1)


@each_of_torchs
def test_options_that_torchs_class_has_not_are_unknown(case):
    kind = getattr(fusedopt.torch, case.name)
    for name in {"capturable", "decoupled_weight_decay"} - set(inspect.signature(case.reference).parameters):
        for either in (kind, case.reference):
            with pytest.raises(TypeError, match=name):
                either([leaf()], **{name: True})


@each_of_torchs
def test_too_many_or_doubled_positional_arguments_are_an_error(case):
    kind = getattr(fusedopt.torch, case.name)
    parameters = inspect.signature(case.reference).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    values = [p.default for p in positional]
    for either in (kind, case.reference):
        either([leaf()], *values)
        with pytest.raises(TypeError, match="positional"):
            either([leaf()], *values, False)
        with pytest.raises(TypeError, match=rf"{positional[0].name}"):
            either([leaf()], *values, **{positional[0].name: values[0]})
        with pytest.raises(TypeError, match="params"):
            either()


@each_kind
def test_a_differentiable_step_is_refused_with_the_reason(kind):
    with pytest.raises(RuntimeError, match=r"differentiable=True is not supported: .*; use torch\.optim"):
        kind([leaf()], differentiable=True)
    if "fused" in inspect.signature(kind).parameters:
        with pytest.raises(RuntimeError, match="differentiable"):
            kind([leaf()], differentiable=True, fused=True)
    kind([leaf()], differentiable=False)


@each_case
def test_fused_and_foreach_together_are_torchs_error(case):
    for kind in (case.reference, getattr(fusedopt.torch, case.name)):
        with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
            kind([leaf()], fused=True, foreach=True)
        for flags in ({"fused": True, "foreach": False}, {"fused": False, "foreach": True}, {"fused": True}):
            kind([leaf()], **flags)


@each_case
@pytest.mark.parametrize(
    "flags",
    [{"fused": True}, {"fused": False}, {"foreach": True}, {"foreach": False}, {"capturable": True}],
    ids=lambda flags: "-".join(f"{name}={value}" for name, value in flags.items()),
)
def test_torchs_choices_of_an_algorithm_change_nothing(case, flags, torch_device):
    kind = getattr(fusedopt.torch, case.name)
    if not flags.keys() <= inspect.signature(kind).parameters.keys():
        flags = {}  # SGD has no capturable
    runs = [Run(case, torch_device.device) for _ in range(2)]
    runs[1].ours = kind(runs[1].params, **case.main, **flags)
    for run in runs:
        run.take(3)
    assert bits(runs[0].params) == bits(runs[1].params)
    assert flags.items() <= runs[1].ours.param_groups[0].items()


# --- loading


def _with(path, value):
    """A change of a state dict: what is at the end of the path."""

    def change(state_dict):
        at = state_dict
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value(at) if isinstance(value, types.FunctionType) else value

    return change


def _without_parameter(state_dict):
    state_dict["param_groups"][1]["params"].pop()


LOADED = {
    "fewer groups": (lambda d: d["param_groups"].pop(), ValueError, "1 param groups and the optimizer 2"),
    "more groups": (lambda d: d["param_groups"].append({"params": []}), ValueError, "3 param groups"),
    "a smaller group": (_without_parameter, ValueError, "param group 1 .* has 1 parameters and .*has 2"),
    "a state of another shape": (
        lambda d: d["state"][1].update({key: torch.zeros(7) for key in d["state"][1] if key != "step"}),
        ValueError,
        r"'?second.bias'?.* has shape \(7,\) and the parameter \(4,\)",
    ),
    "a negative lr": (_with(("param_groups", 1, "lr"), -1.0), ValueError, "param group 1 .*lr must be in"),
    "an lr of two elements": (_with(("param_groups", 1, "lr"), torch.ones(2)), ValueError, "param group 1 .*lr"),
}


@each_case
@pytest.mark.parametrize(("change", "error", "message"), LOADED.values(), ids=LOADED)
def test_a_state_dict_that_does_not_fit_is_an_error_that_changes_nothing(case, change, error, message, torch_device):
    run = Run(case, torch_device.device, NAMES, steps=2)
    saved = run.ours.state_dict()
    saved = {
        "state": {i: dict(entry) for i, entry in saved["state"].items()},
        "param_groups": [{**group, "params": list(group["params"])} for group in saved["param_groups"]],
    }
    change(saved)
    with refused(run.ours, error, message):
        run.ours.load_state_dict(saved)
    run.goes_on()


# --- signatures and documentation


@each_of_torchs
def test_the_signature_is_torchs(case):
    kind = getattr(fusedopt.torch, case.name)
    ours = dict(inspect.signature(kind).parameters)
    theirs = dict(inspect.signature(case.reference).parameters)
    for name, default in {"write_back_gradients": True, **case.rule.common_defaults()}.items():
        extra = ours.pop(name)
        assert (extra.kind, extra.default) == (extra.KEYWORD_ONLY, default)

    def positional(parameters):
        return [(p.name, p.default) for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    def by_name(parameters):
        return {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}

    assert positional(ours) == positional(theirs)
    assert by_name(ours) == by_name(theirs)
    assert len(ours) == len(positional(ours)) + len(by_name(ours))


@each_of_torchs
def test_the_constructor_takes_what_its_signature_says(case):
    kind = getattr(fusedopt.torch, case.name)
    common = case.rule.common_defaults()
    parameters = [p for p in inspect.signature(kind).parameters.values() if p.name not in ("params", *common)]
    values = {p.name: p.default for p in parameters}
    made = kind([leaf()], **values)
    assert made.defaults == kind([leaf()]).defaults
    assert kind([leaf()], **values, **common).defaults == made.defaults  # which shows what is not as it is by default
    assert made.defaults == case.reference([leaf()]).defaults
    positional = [p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert kind([leaf()], *positional).defaults == made.defaults


@each_kind
def test_the_classes_are_torchs_optimizers(kind):
    assert issubclass(kind, torch.optim.Optimizer)
    assert issubclass(kind, fusedopt.torch.Optimizer)
    assert isinstance(kind([leaf()]), torch.optim.Optimizer)


def test_every_class_for_torch_is_in_the_table():
    names = set(fusedopt.torch.__all__) - {"Optimizer", *BASES}  # of these, test_torch_procedures.py
    classes = {getattr(fusedopt.torch, name) for name in names}
    assert classes == set(KINDS)


@each_kind
def test_the_docstring_names_every_option_and_no_other(kind):
    document = inspect.getdoc(kind)
    assert document.splitlines()[0].endswith(".")
    arguments = document.partition("Args:\n")[2]
    listed = [re.split(r":", line.strip())[0] for line in arguments.splitlines() if re.match(r" {4}\S[^:]*:", line)]
    names = [name for entry in listed for name in entry.split(", ")]
    assert sorted(names) == sorted(inspect.signature(kind).parameters)
