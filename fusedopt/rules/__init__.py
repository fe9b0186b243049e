"""Update rules, one file each, and what a rule of one's own is made of."""

from fusedopt.rules.adam import Adam as Adam
from fusedopt.rules.adam import AdamW as AdamW
from fusedopt.rules.arithmetic import exp2 as exp2
from fusedopt.rules.arithmetic import larger as larger
from fusedopt.rules.arithmetic import log2 as log2
from fusedopt.rules.arithmetic import power as power
from fusedopt.rules.arithmetic import real_power as real_power
from fusedopt.rules.arithmetic import sign as sign
from fusedopt.rules.arithmetic import smaller as smaller
from fusedopt.rules.lamb import LAMB as LAMB
from fusedopt.rules.lars import LARS as LARS
from fusedopt.rules.lion import Lion as Lion
from fusedopt.rules.rule import Rule as Rule
from fusedopt.rules.rule import State as State
from fusedopt.rules.rule import Values as Values
from fusedopt.rules.rule import hyperparameter as hyperparameter
from fusedopt.rules.sgd import SGD as SGD
from fusedopt.rules.stages import Reduction as Reduction
