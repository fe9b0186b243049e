"""How the arrays of a span are kept in memory: which types, what lies beside them, and how values are rounded.

A rule knows nothing of it: `backends.kept` reads and writes these arrays on the CPU, `kernels/kept.cuh` on a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from fusedopt.rules.declaration import State
from fusedopt.rules.rule import Rule

BLOCK = 128  # elements of 8-bit states that share a scale: the tile of a warp, whose lanes find their maximum together
SMALL = 4096  # of parameters with fewer elements, 8-bit states are kept in float32: most are biases and scales of norms
HALVES = ("float16", "bfloat16")
MASTER, SCALE = "master_param", "_scale"  # a state dict key, and the end of those of scales
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1, "uint8": 1}  # bytes
# What lies beside a parameter, by what makes it finer: its key in state dicts, and its dtype ("": the parameter's).
BESIDE_PARAMETER = {
    "float32": (MASTER, "float32"),
    "split": ("remainder", "int16"),
    "split24": ("remainder", "int8"),
    "kahan": ("compensation", ""),
}


@dataclasses.dataclass(frozen=True)
class Kept:
    """How the values of one array are kept.

    Attributes:
        dtype: Name of the elements' type; "uint8" are codes, which have a float32 scale for each block.
        finer: What keeps the rest of a parameter's value: "", or a key of `BESIDE_PARAMETER`.
        codes: Of 8-bit values: a key of `eight_bits.CODES`; else "".
        stochastic: Whether values are rounded up or down at random, right on average; else to the nearest.
    """

    dtype: str
    finer: str = ""
    codes: str = ""
    stochastic: bool = False

    @property
    def beside(self) -> str:
        """dtype name of the second array; "" where there is none."""
        if self.codes:
            return "float32"
        return BESIDE_PARAMETER[self.finer][1] or self.dtype if self.finer else ""

    @property
    def beside_key(self) -> str:
        """State dict key of what lies beside a parameter; "" where nothing does."""
        return BESIDE_PARAMETER[self.finer][0] if self.finer else ""

    @property
    def bytes(self) -> float:
        """Of an element: in the array, and its part of what lies beside."""
        return ITEMSIZE[self.dtype] + (ITEMSIZE[self.beside] / (BLOCK if self.codes else 1) if self.beside else 0)

    @property
    def bytes_read(self) -> float:
        """Of an element, by a step: where there is a master, it is all that is read."""
        return ITEMSIZE["float32"] if self.finer == "float32" else self.bytes

    def is_plain(self, real: str) -> bool:
        """Whether the array holds values of the arithmetic's type and nothing else."""
        return self.dtype == real and not self.finer

    @property
    def title(self) -> str:
        """As kernels and messages call it."""
        name = "int8" if self.codes else " + ".join(filter(None, (self.dtype, self.finer)))
        return f"{name}, stochastic" if self.stochastic and not self.codes else name


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """How a span's arrays are kept; made by `storage` alone, so that equal ones are the same object.

    The arrays of a span are the parameter, the gradient, the states in the rule's order, then those of `beside`.

    Attributes:
        parameter, gradient: How these are kept.
        states: How each of the rule's kept states is.
    """

    parameter: Kept
    gradient: Kept
    states: tuple[Kept, ...]

    @property
    def real(self) -> str:
        """dtype name of the arithmetic: float64 for float64 parameters, else float32."""
        return "float64" if self.parameter.dtype == "float64" else "float32"

    @functools.cached_property
    def streams(self) -> tuple[Kept, ...]:
        """Of the parameter, the gradient and each state."""
        return (self.parameter, self.gradient, *self.states)

    @functools.cached_property
    def beside(self) -> tuple[int, ...]:
        """The streams that have a second array, by their places in `streams`, in order."""
        return tuple(place for place, kept in enumerate(self.streams) if kept.beside)

    @functools.cached_property
    def units(self) -> tuple[int, ...]:
        """Of each of a span's arrays, in order, the elements that share one of it: 1, or those of a block."""
        scales = [BLOCK if self.streams[place].codes else 1 for place in self.beside]
        return (*(1 for _ in self.streams), *scales)

    @functools.cached_property
    def draws(self) -> bool:
        """Whether some values are rounded at random."""
        return any(kept.stochastic for kept in self.streams)

    @functools.cached_property
    def blocks(self) -> bool:
        """Whether some states are kept in blocks, which are counted from the start of a tensor."""
        return any(kept.codes for kept in self.states)

    @property
    def merges(self) -> bool:
        """Whether neighbouring tensors may be updated as if they were one."""
        return not self.draws and not self.blocks

    @property
    def title(self) -> str:
        names = [kept.title for kept in self.streams]
        return ", ".join(names if len(set(names)) > 1 else names[:1])


@functools.cache
def storage(parameter: Kept, gradient: Kept, states: tuple[Kept, ...]) -> Storage:
    """The storage of these."""
    return Storage(parameter, gradient, states)


@functools.cache
def plain(parameter: str, gradient: str, states: tuple[str, ...]) -> Storage:
    """Arrays of these dtypes, with nothing beside them, rounded to the nearest."""
    return storage(Kept(parameter), Kept(gradient), tuple(map(Kept, states)))


def blocks_of(size: int) -> int:
    """Scales of a tensor of so many elements."""
    return -(-size // BLOCK)


def storage_of(rule: Rule, parameter: str, gradient: str, size: int) -> Storage:
    """What a rule's options say for a parameter.

    Args:
        rule: With its options, which `check_storage` has found right.
        parameter, gradient: dtype names.
        size: Elements of the whole parameter.
    """
    return storage(kept_parameter(rule, parameter), Kept(gradient), kept_states(rule, parameter, size))


def kept_parameter(rule: Rule, dtype: str) -> Kept:
    """How a parameter of this dtype is kept."""
    finer = ("kahan" if rule.kahan else rule.master_weights or "") if dtype in HALVES else ""
    return Kept(dtype, finer, stochastic=rule.stochastic_rounding and dtype in HALVES and finer in ("", "split24"))


def kept_states(rule: Rule, parameter: str, size: int) -> tuple[Kept, ...]:
    """How each of the rule's kept states is, for a parameter of this dtype and so many elements."""
    return tuple(kept_state(rule, state, parameter, size) for state in rule.states())


def kept_state(rule: Rule, state: State, parameter: str, size: int) -> Kept:
    """How one state is."""
    dtype = rule.state_dtype_of(state.name) or parameter
    if dtype != "int8":
        return Kept(dtype, stochastic=rule.stochastic_rounding and dtype in HALVES)
    return Kept("float32") if size < SMALL else Kept("uint8", codes=state.codes or "", stochastic=True)


def keys_of(rule: Rule, storage: Storage) -> tuple[str, ...]:
    """State dict keys of all arrays that are kept beside a parameter and its gradient, in the order of a span's."""
    beside = [storage.parameter.beside_key] if storage.parameter.finer else []
    scales = (f"{name}{SCALE}" for name, kept in zip(rule.kept_states, storage.states) if kept.codes)
    return (*rule.kept_states, *beside, *scales)


def array_dtypes(storage: Storage) -> tuple[str, ...]:
    """dtype names of all arrays of a span, in order."""
    return (*(kept.dtype for kept in storage.streams), *(storage.streams[place].beside for place in storage.beside))


@dataclasses.dataclass(frozen=True)
class StoredGroup:
    """What is checked of a param group.

    Attributes:
        rule: With the group's options.
        dtypes: Names, of each parameter; "" where it is not known yet.
        described: What messages call each of them.
    """

    rule: Rule
    dtypes: Sequence[str]
    described: Sequence[str]

    def may_use(self, option: str) -> bool:
        """Whether there is something here, or may be, that an option of `FINER_OPTIONS` is for."""
        random = option == "stochastic_rounding"
        return not {"", *HALVES}.isdisjoint([*self.dtypes, *(self.rule.state_dtypes.values() if random else ())])


# Options for what half precision cannot hold: of no use where there is none.
FINER_OPTIONS = ("master_weights", "kahan", "stochastic_rounding")


def check_storage(group: StoredGroup, stated: Iterable[str] = FINER_OPTIONS) -> None:
    """Raise ValueError where the storage options of a param group do not go with its parameters.

    Args:
        stated: Those of `FINER_OPTIONS` that must be of use in this very group; others are in another group.
    """
    rule, name = group.rule, type(group.rule).__name__
    for option in stated:
        if getattr(rule, option) and group.dtypes and not group.may_use(option):
            raise ValueError(_of_no_use(group, option))
    for dtype, what in zip(group.dtypes, group.described):
        if rule.master_weights in ("split", "split24") and dtype == "float16":
            raise ValueError(
                f"{name}: master_weights={rule.master_weights!r} keeps a float32 as bfloat16 and a remainder, and "
                f"{what} has float16; choose master_weights='float32', or bfloat16 parameters."
            )
        kept = [rule.state_dtype_of(state.name) for state in rule.all_states()]  # flags may turn on the others
        if dtype == "float64" and not {None, "float32"}.issuperset(kept):
            raise ValueError(
                f"{name}: state_dtype={rule.state_dtype!r} does not go with {what}, which has float64; choose "
                f"state_dtype='float32' or None, or float32 parameters."
            )


def _of_no_use(group: StoredGroup, option: str) -> str:
    """The sentence for one of `FINER_OPTIONS` where nothing has a use for it."""
    rule, has = group.rule, f"{group.described[0]} has {group.dtypes[0]}"
    said = f"{type(rule).__name__}: {option}={getattr(rule, option)!r}"
    if option != "stochastic_rounding":
        return (
            f"{said} keeps what float16 and bfloat16 parameters cannot hold, and {has}, which holds it; leave it out, "
            f"or convert the parameters to bfloat16."
        )
    cure = "leave it out, or choose bfloat16 for the parameters or for state_dtype"
    if "int8" in rule.state_dtypes.values():
        cure = "8-bit states are rounded at random anyway; leave it out"
    return f"{said} is for float16 and bfloat16 parameters and states, and {has}; {cure}."


def memory_of(storage: Storage, size: int) -> dict[str, int]:
    """Bytes of a parameter of so many elements by kind: parameters, gradients, masters, states and their scales."""
    found = dict.fromkeys(("parameters", "gradients", "masters", "states", "scales"), 0)
    found["parameters"] = size * ITEMSIZE[storage.parameter.dtype]
    found["gradients"] = size * ITEMSIZE[storage.gradient.dtype]
    if storage.parameter.beside:
        found["masters"] = size * ITEMSIZE[storage.parameter.beside]
    for kept in storage.states:
        found["states"] += size * ITEMSIZE[kept.dtype]
        found["scales"] += 4 * blocks_of(size) if kept.codes else 0
    return found
