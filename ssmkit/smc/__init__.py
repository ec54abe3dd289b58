"""Sequential Monte Carlo: one Feynman–Kac loop, and the recipes that run in it."""

from ssmkit.smc.conditional import ConditionalRun as ConditionalRun
from ssmkit.smc.conditional import conditional_smc as conditional_smc
from ssmkit.smc.kernels import hamiltonian as hamiltonian
from ssmkit.smc.kernels import random_walk as random_walk
from ssmkit.smc.tempering import Tempered as Tempered
from ssmkit.smc.tempering import temper as temper
