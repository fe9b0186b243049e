"""Rules whose update is drawn at random, as hypothesis strategies: programs that nobody would think of."""

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st

import fusedopt
from cases import extreme, ordinary
from fusedopt.rules import Rule, State, Values, hyperparameter

NUMBERS = ("p", "g", "left", "right", "one", "ratio", "first", 0.0, -0.0, 1.0, -2.5, 0.1)
LITERALS = range(7, len(NUMBERS))
BINARY = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}
UNARY = {"neg": np.negative, "sqrt": np.sqrt, "abs": np.absolute, "square": np.square}
COMPARISONS = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}


@dataclasses.dataclass(frozen=True)
class Body:
    """An `update` as data: operations on earlier numbers and truth values, and which numbers are the results.

    Operations are (name, operands...); a `where` has ("where", "truth" or "number", condition, then, otherwise).
    """

    operations: tuple[tuple[Any, ...], ...]
    results: tuple[int, int, int]

    def __call__(self, p, g, s, c):
        names = {"p": p, "g": g, **vars(s), **vars(c)}
        numbers = [names[number] if isinstance(number, str) else number for number in NUMBERS]
        truths = []
        for name, *operands in self.operations:
            if name == "where":
                kind, condition, then, otherwise = operands
                chosen = (truths if kind == "truth" else numbers)[condition]
                numbers.append(np.where(chosen, numbers[then], numbers[otherwise]))
            else:
                function = (BINARY | UNARY | COMPARISONS)[name]
                result = function(*(numbers[operand] for operand in operands))
                (truths if name in COMPARISONS else numbers).append(result)
        new_p, left, right = (numbers[result] for result in self.results)
        return new_p, Values(left=left, right=right, seen=g)  # a kernel that does not use g is refused as a slip


@st.composite
def bodies(draw):
    """Drawn evenly: hypothesis by itself prefers short bodies, in which little can go wrong."""
    random = draw(st.randoms(use_true_random=True))
    operations, numbers, truths = [], len(NUMBERS), 0
    for _ in range(random.randint(0, 25)):
        # Either operand is drawn from all numbers, the other not from the literals: two of them would be Python's
        # business, in float64.
        pair = [random.choice([n for n in range(numbers) if n not in LITERALS]), random.randrange(numbers)]
        random.shuffle(pair)
        kind = random.choice(["binary", "binary", "unary", "comparison", "where", "where"])
        if kind == "unary":
            operations.append((random.choice(sorted(UNARY)), max(pair, key=lambda n: n not in LITERALS)))
        elif kind == "where":
            on = "truth" if truths and random.random() < 0.7 else "number"
            condition = random.randrange(truths if on == "truth" else LITERALS[0])
            operations.append(("where", on, condition, *pair))
        else:
            operations.append((random.choice(sorted(BINARY if kind == "binary" else COMPARISONS)), *pair))
        if kind == "comparison":
            truths += 1
        else:
            numbers += 1
    computed = min(numbers - 1, len(NUMBERS))
    results = [random.randrange(0 if random.random() < 0.3 else computed, numbers) for _ in range(3)]
    return Body(tuple(operations), tuple(results))


def optimizer_of(some_bodies):
    """An optimizer with up to four bodies, chosen by its two flags."""

    @dataclasses.dataclass(frozen=True)
    class Random(Rule):
        one: float = hyperparameter(1.0, "(-inf, inf)")
        other: float = hyperparameter(1.0, "(-inf, inf)")
        odd: bool = hyperparameter(False)
        high: bool = hyperparameter(False)

        state = ("left", State("right"), "seen")

        def scalars(self, step, a):
            return Values(one=self.one, ratio=self.one / self.other, first=step == 1)

        def update(self, p, g, s, c):
            return some_bodies[self.odd + 2 * self.high](p, g, s, c)

    class Optimizer(fusedopt.Optimizer, rule=Random):
        pass

    return Optimizer


uniform = st.sampled_from([0.0, -0.0, 1.0, 0.3, -2.0, 1e-40, 1e30])
scales = st.sampled_from([None, 1.0, 3.0])


# Among extreme values every operation is tried, and NaN soon is all there is; among ordinary ones errors show.
some_values = st.sampled_from([extreme, ordinary])

# Results that stand in each other's place.
EXCHANGES = [
    Body((), (NUMBERS.index(p), NUMBERS.index(left), NUMBERS.index(right)))
    for p, left, right in [("left", "right", "p"), ("right", "p", "left"), ("p", "right", "left"), ("g", "p", "p")]
]
