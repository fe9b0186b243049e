"""State dicts of other libraries: read as what they hold, or refused before anything has changed."""

import copy
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cases import ordinary
from foreign_dicts import NESTED, of_apex, of_bitsandbytes
from fusedopt import LAMB, LARS, SGD, Adagrad, Adam, AdamW, Lion, NAdam, Optimizer, Parameter, RMSprop
from fusedopt.foreign_states import in_our_keys
from test_state_dict import bits, contents

SHAPES = [(70, 70), (5,)]  # in 8 bits, and too small for them


def optimizer_of(kind: type[Optimizer], **options: Any) -> Optimizer:
    arrays = [ordinary(int(np.prod(shape)), "float32", i).reshape(shape) for i, shape in enumerate(SHAPES)]
    return kind(list(map(Parameter, arrays)), **options)


def stepped(optimizer: Optimizer, gradients: str = "float32") -> Any:
    """All that the optimizer has after two more steps."""
    for seed in range(2):
        for p in optimizer.parameters():
            p.grad = ordinary(p.size, gradients, 10 + seed).reshape(p.shape).astype(p.dtype)
        optimizer.step()
    return bits([optimizer.state_dict(), [p.data for p in optimizer.parameters()]])


def states_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    saved: dict[str, Any] = optimizer.state_dict()
    return [saved["state"][i] for i in range(len(SHAPES))]


# --- bitsandbytes


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("block", [256, 2048, None])
def test_bitsandbytes_states_are_decoded_with_the_stored_map_and_scales(block, nested):
    saved, decoded = of_bitsandbytes(SHAPES, block=block, nested=nested)
    before = copy.deepcopy(saved)
    optimizer = optimizer_of(AdamW)
    optimizer.load_state_dict(saved)
    for entry, (exp_avg, exp_avg_sq) in zip(states_of(optimizer), decoded, strict=True):
        assert bits(entry) == bits({"step": np.array(3.0), "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})
    assert bits(saved) == bits(before)


def test_a_step_after_bitsandbytes_is_that_from_the_decoded_states():
    saved, decoded = of_bitsandbytes(SHAPES)
    (group,) = saved["param_groups"]
    ours = {"state": {}, "param_groups": [{"amsgrad": False, "maximize": False, **group}]}
    for i, (exp_avg, exp_avg_sq) in enumerate(decoded):
        ours["state"][i] = {"step": 3, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    one, other = optimizer_of(AdamW), optimizer_of(AdamW)
    one.load_state_dict(saved)
    other.load_state_dict(ours)
    assert stepped(one) == stepped(other)


def test_decoded_states_are_narrowed_only_where_that_is_asked_for():
    saved, decoded = of_bitsandbytes(SHAPES)
    optimizer = optimizer_of(AdamW, state_dtype="int8")
    with pytest.raises(TypeError, match=r"float32 and this optimizer keeps uint8; .*convert=True"):
        optimizer.load_state_dict(saved)
    optimizer.load_state_dict(saved, convert=True)
    large, small = states_of(optimizer)
    assert large["exp_avg"].dtype == large["exp_avg_sq"].dtype == np.uint8
    assert bits(small["exp_avg"]) == bits(decoded[1][0])


def test_what_bitsandbytes_second_moments_lost_moves_nothing():
    """A code for 0 where the first moment is 0.1: m / eps would be a step of 1e7 learning rates."""
    saved, _ = of_bitsandbytes(SHAPES)
    entry = saved["state"][0][NESTED]
    entry["state2"][...] = np.flatnonzero(entry["qmap2"] == 0)
    before = copy.deepcopy(saved)
    optimizer = optimizer_of(Adam)
    optimizer.load_state_dict(saved)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    p, _ = optimizer.parameters()
    start = p.data.copy()
    p.grad = np.zeros(p.shape, p.dtype)
    optimizer.step()
    assert bits(p.data) == bits(start)
    assert bits(saved) == bits(before)


NAMES = {SGD: "momentum_buffer", RMSprop: "square_avg", Adagrad: "sum", Lion: "exp_avg"}
FIRST_BETA = {SGD: {"momentum": 0.8}, RMSprop: {"alpha": 0.8}, Adagrad: {}, Lion: {"betas": (0.8, 0.95)}}


@pytest.mark.parametrize("kind", NAMES)
def test_bitsandbytes_first_state_and_beta_have_the_rules_own_names(kind):
    saved, decoded = of_bitsandbytes(SHAPES, count=1)
    optimizer = optimizer_of(kind)
    optimizer.load_state_dict(saved)
    for entry, (state,) in zip(states_of(optimizer), decoded, strict=True):
        assert bits(entry.pop("step", np.array(3.0))) == bits(np.array(3.0))
        assert bits(entry) == bits({NAMES[kind]: state})
    group = optimizer.param_groups[0]
    expected = {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-6, "t_alpha": None, **FIRST_BETA[kind]}
    assert {key: group[key] for key in expected} == expected
    assert ("betas" in group) == (kind is Lion)


def without(key: str) -> Any:
    def change(entry: dict[str, Any]) -> None:
        del entry[key]

    return change


MISTAKES: dict[str, tuple[type[Optimizer], Any, type[Exception], str]] = {
    "no map": (AdamW, without("qmap2"), KeyError, "the state of 0: state2 is kept in 8 bits and lacks 'qmap2'; it has"),
    "no scales": (AdamW, without("absmax1"), KeyError, "the state of 0: state1 is kept in 8 bits and lacks 'max1'"),
    "other blocks": (
        AdamW,
        lambda entry: entry.update(absmax1=np.ones(7, np.float32)),
        ValueError,
        r"codes of shape \(70, 70\) and scales of shape \(7,\); there is one for each 256 or 2048 codes",
    ),
    "other map": (
        AdamW,
        lambda entry: entry.update(qmap1=np.ones(16, np.float32)),
        ValueError,
        r"state1 has a map of float32 and shape \(16,\); it has 256 values of float32",
    ),
    "AdEMAMix": (
        AdamW,
        lambda entry: entry.update(state1=np.zeros((2, 70, 70), np.float32)),
        ValueError,
        "the state of 0 has two averages in state1, as AdEMAMix keeps them",
    ),
    "two states for one": (Lion, lambda entry: None, ValueError, "state1 and state2, and Lion keeps exp_avg; of"),
    "two states for another two": (RMSprop, lambda entry: None, ValueError, "state1 and state2, and RMSprop keeps"),
    "another optimizer": (LARS, without("state2"), ValueError, "state1, and LARS keeps momentum_buffer; of"),
}


@pytest.mark.parametrize(("kind", "change", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_wrong_with_bitsandbytes_states_is_said_before_anything_changes(kind, change, error, message):
    saved, _ = of_bitsandbytes(SHAPES, nested=False)
    change(saved["state"][0])
    optimizer = optimizer_of(kind)
    stepped(optimizer)
    before = contents(optimizer)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    assert contents(optimizer) == before


# --- apex


def test_apex_counts_steps_by_group():
    optimizer = optimizer_of(AdamW)
    optimizer.load_state_dict(of_apex(SHAPES))
    assert [float(entry["step"]) for entry in states_of(optimizer)] == [3.0, 3.0]


def test_moments_that_apex_left_uncorrected_stay_so_or_are_refused():
    saved = of_apex(SHAPES, bias_correction=False)
    optimizer = optimizer_of(Adam)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["bias_correction"] is False
    with pytest.raises(ValueError, match="group 0 of the state dict has bias_correction=False, which NAdam cannot do"):
        optimizer_of(NAdam).load_state_dict(saved)


def test_apex_lamb_clips_here_as_there():
    optimizer = optimizer_of(LAMB)
    optimizer.load_state_dict(of_apex(SHAPES, grad_averaging=True, max_grad_norm=0.5))
    group = optimizer.param_groups[0]
    assert group["clip_norm"] == 0.5
    assert group["grad_averaging"] is True
    assert "max_grad_norm" not in group
    with pytest.raises(ValueError, match="grad_averaging=False, which LAMB cannot do"):
        optimizer.load_state_dict(of_apex(SHAPES, grad_averaging=False, max_grad_norm=0.5))


def test_apex_lamb_with_several_groups_is_clipped_otherwise_and_says_so():
    saved = of_apex(SHAPES, grad_averaging=True, max_grad_norm=0.5)
    group = saved["param_groups"][0]
    saved["param_groups"] = [{**group, "params": [0]}, {**group, "params": [1]}]
    optimizer = LAMB([{"params": [Parameter(np.ones(shape, np.float32))]} for shape in SHAPES])
    with pytest.warns(UserWarning, match="max_grad_norm of apex's FusedLAMB bounds the norm of all groups together"):
        optimizer.load_state_dict(saved)


# --- TransformerEngine, DeepSpeed


def test_transformer_engines_remainders_are_ours():
    saved = of_apex(SHAPES)
    low = np.arange(-2450, 2450, dtype=np.int16).reshape(70, 70)
    saved["state"][0]["master_param"] = low
    saved["state"][1]["master_param"] = np.ones(5, np.float32)
    parameters = [Parameter(np.zeros(shape, ml_dtypes.bfloat16)) for shape in SHAPES]
    read = in_our_keys(saved, [AdamW.rule()], [{"params": parameters}])["state"]
    assert list(read[0]) == ["exp_avg", "exp_avg_sq", "remainder"]
    assert read[0]["remainder"] is low
    assert bits(read[1]) == bits(saved["state"][1])


@pytest.mark.parametrize("master_weights", ["split", "float32"])
def test_transformer_engines_masters_are_those_that_steps_go_on_from(master_weights):
    """Its remainder and ours make one float32 of a bfloat16, to the bit; so both ways lead to the same masters."""
    masters = [ordinary(int(np.prod(shape)), "float32", 5).reshape(shape) for shape in SHAPES]
    low = [master.view(np.uint32).astype(np.uint16).view(np.int16) for master in masters]
    high = [
        ((master.view(np.uint32) >> 16) + (rest < 0)).astype(np.uint16).view(ml_dtypes.bfloat16)
        for master, rest in zip(masters, low, strict=True)
    ]
    saved = of_apex(SHAPES)
    for i, master in enumerate(low if master_weights == "split" else masters):
        saved["state"][i]["master_param"] = master
    options = {"master_weights": master_weights, "state_dtype": "float32"}
    optimizer = AdamW(list(map(Parameter, copy.deepcopy(high))), **options)
    optimizer.load_state_dict(saved)
    reference = AdamW(list(map(Parameter, masters)))
    del saved["state"][0]["master_param"], saved["state"][1]["master_param"]
    reference.load_state_dict(saved)
    stepped(optimizer, gradients="bfloat16")
    stepped(reference, gradients="bfloat16")
    for p, expected in zip(optimizer.parameters(), reference.parameters(), strict=True):
        entry = optimizer.state[p]
        if master_weights == "float32":
            assert bits(entry["master_param"]) == bits(expected.data)
        else:
            rest = expected.data.view(np.uint32).astype(np.uint16).view(np.int16)
            assert bits(entry["remainder"]) == bits(rest)


def test_transformer_engines_masters_of_float32_parameters_are_left_out():
    """They are copies from before the first step, which it never updates."""
    saved = of_apex(SHAPES)
    for i, shape in enumerate(SHAPES):
        saved["state"][i]["master_param"] = np.ones(shape, np.float32)
    optimizer = optimizer_of(AdamW)
    with pytest.warns(UserWarning, match="master_param of 2 float32 parameters is left out"):
        optimizer.load_state_dict(saved)
    assert list(states_of(optimizer)[0]) == ["step", "exp_avg", "exp_avg_sq"]


def test_deepspeed_counts_steps_at_the_last_parameter_of_a_group_alone():
    saved = of_apex(SHAPES, step=0)
    for i, entry in saved["state"].items():
        entry["step"] = 7 * i
    optimizer = optimizer_of(AdamW)
    optimizer.load_state_dict(saved)
    assert [float(entry["step"]) for entry in states_of(optimizer)] == [7.0, 7.0]


# --- everybody's


@pytest.mark.parametrize("kind", [AdamW, SGD], ids=["AdamW", "SGD"])
def test_a_state_dict_of_ones_own_is_read_as_it_is(kind):
    optimizer = optimizer_of(kind, **({"momentum": 0.9} if kind is SGD else {}))
    stepped(optimizer)
    saved = optimizer.state_dict()
    group = optimizer.param_groups[0]
    read = in_our_keys(saved, [group.rule], [group])
    assert bits(read) == bits(saved)
    for i in range(len(SHAPES)):
        assert all(read["state"][i][key] is value for key, value in saved["state"][i].items())


@pytest.mark.parametrize("saved", [None, [], {}, {"state": {}}, {"state": [], "param_groups": []}], ids=repr)
def test_what_is_no_state_dict_is_left_to_the_checks(saved):
    assert in_our_keys(saved, [AdamW.rule()], [{"params": [Parameter(np.zeros(3, np.float32))]}]) is saved


def test_options_that_nobody_here_has_are_kept_and_written_back():
    optimizer = optimizer_of(AdamW)
    saved, _ = of_bitsandbytes(SHAPES)
    saved["param_groups"][0]["of the user"] = [1, 2]
    optimizer.load_state_dict(saved)
    written = optimizer.state_dict()["param_groups"][0]
    assert {key: written[key] for key in ("of the user", "alpha", "t_alpha")} == {
        "of the user": [1, 2],
        "alpha": 0.0,
        "t_alpha": None,
    }


def test_options_that_their_formats_never_have_stay_as_they_are():
    for saved in (of_bitsandbytes(SHAPES)[0], of_apex(SHAPES)):
        optimizer = optimizer_of(AdamW, amsgrad=True, maximize=True)
        optimizer.load_state_dict(saved)  # without a warning
        assert optimizer.param_groups[0]["amsgrad"]
        assert optimizer.param_groups[0]["maximize"]
