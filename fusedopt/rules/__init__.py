"""Update rules, one file each, and what a rule of one's own is made of."""

from fusedopt.rules.adam import Adam, AdamW
from fusedopt.rules.arithmetic import larger, power, sign, smaller
from fusedopt.rules.rule import Rule, State, Values, hyperparameter
from fusedopt.rules.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Rule", "State", "Values", "hyperparameter", "larger", "power", "sign", "smaller"]
