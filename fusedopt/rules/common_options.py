"""The options that every rule has: how the gradient is prepared before `update` has it, and how arrays are kept."""

from __future__ import annotations

import dataclasses

from fusedopt.rules.hyperparameter import hyperparameter

STATE_DTYPES = (None, "float32", "bfloat16", "float16", "int8")


@dataclasses.dataclass(frozen=True)
class CommonOptions:
    """Hyperparameters of every rule, which param groups show where they were given."""

    loss_scale: float = hyperparameter(
        1.0, "(0, inf)", "the loss was multiplied by it: gradients are divided by it", kw_only=True, common=True
    )
    clip_value: float = hyperparameter(
        0.0,
        "[0, inf)",
        "gradients are cut to what is not larger; 0: not cut",
        switch=True,
        kw_only=True,
        common=True,
    )
    clip_norm: float = hyperparameter(
        0.0,
        "[0, inf)",
        "the gradients of the group are scaled down to this norm, all together; 0: they are not",
        switch=True,
        kw_only=True,
        common=True,
    )
    grad_centralization: bool = hyperparameter(
        False,
        doc="of gradients with two axes or more, subtract from each slice along the first axis its mean",
        kw_only=True,
        common=True,
    )
    master_weights: str | None = hyperparameter(
        None,
        doc="what keeps half-precision parameters finer: 'float32', a copy; 'split', the other 16 bits of a float32 "
        "beside bfloat16; 'split24', 8 more bits",
        choices=(None, "float32", "split", "split24"),
        kw_only=True,
        common=True,
        storage=True,
    )
    kahan: bool = hyperparameter(
        False,
        doc="keep what half-precision parameters lose when they are rounded, and add it at the next step",
        kw_only=True,
        common=True,
        storage=True,
    )
    stochastic_rounding: bool = hyperparameter(
        False,
        doc="round half-precision parameters and states up or down at random, so that they are right on average",
        kw_only=True,
        common=True,
        storage=True,
    )
    seed: int = hyperparameter(0, "[0, 9007199254740992)", "of random rounding", kw_only=True, common=True, whole=True)
    state_dtype: str | dict[str, str | None] | None = hyperparameter(  # noqa: RUF009  # as the others
        None,
        doc="how states are kept: 'float32', 'bfloat16', 'float16', 'int8', or a dict of these by the names of states; "
        "None: as the parameter",
        choices=STATE_DTYPES,
        by_state=True,
        kw_only=True,
        common=True,
        storage=True,
    )
