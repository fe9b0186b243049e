"""Update rules, one file each, and what a rule of one's own is made of."""

from fusedopt.rules.adadelta import Adadelta as Adadelta
from fusedopt.rules.adagrad import Adagrad as Adagrad
from fusedopt.rules.adam import Adam as Adam
from fusedopt.rules.adam import AdamW as AdamW
from fusedopt.rules.adamax import Adamax as Adamax
from fusedopt.rules.arithmetic import exp2 as exp2
from fusedopt.rules.arithmetic import larger as larger
from fusedopt.rules.arithmetic import log2 as log2
from fusedopt.rules.arithmetic import power as power
from fusedopt.rules.arithmetic import real_power as real_power
from fusedopt.rules.arithmetic import sign as sign
from fusedopt.rules.arithmetic import smaller as smaller
from fusedopt.rules.asgd import ASGD as ASGD
from fusedopt.rules.ftrl import FTRL as FTRL
from fusedopt.rules.lion import Lion as Lion
from fusedopt.rules.momentum import Momentum as Momentum
from fusedopt.rules.nadam import NAdam as NAdam
from fusedopt.rules.proximal_adagrad import ProximalAdagrad as ProximalAdagrad
from fusedopt.rules.radam import RAdam as RAdam
from fusedopt.rules.rmsprop import RMSprop as RMSprop
from fusedopt.rules.rprop import Rprop as Rprop
from fusedopt.rules.rule import Rule as Rule
from fusedopt.rules.rule import State as State
from fusedopt.rules.rule import Values as Values
from fusedopt.rules.rule import hyperparameter as hyperparameter
from fusedopt.rules.sgd import SGD as SGD
