"""The settings of the source's chaotic network."""

from __future__ import annotations

from typing import Any

from ssmkit.learned.regression import KernelRidge
from ssmkit.learned.starts import PredictedStart

PUBLISHED: dict[str, Any] = {
    "filter": "diagonal",
    "kernel": "network",
    "value": KernelRidge(num_points=100, ridge=0.1, degree=0, held_out=0.0),
    "start": PredictedStart(),
    "num_steps": 500,
    "num_samples": 10,
    "learning_rate": 1e-2,
    "final_rate": 1.0,
    "damping": 1e-8,
    "path_gradient": False,
    "antithetic": False,
    "width": 100,
}
