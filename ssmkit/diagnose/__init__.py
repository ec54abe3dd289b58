"""Diagnosis of a posterior: how well each observation was predicted, and whether weights hold."""

from ssmkit.diagnose.record import Diagnosis as Diagnosis
from ssmkit.diagnose.verb import diagnose as diagnose
