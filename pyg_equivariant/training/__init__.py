"""Training through PyTorch Lightning: tasks, losses, schedules and the command line.

Names are imported when they are first used, so that ``pyg-equivariant --help`` need not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyg_equivariant.training.callbacks import BestModel, History, SaveWhenStopped, TestTable
    from pyg_equivariant.training.ema import ExponentialMovingAverage
    from pyg_equivariant.training.losses import (
        AbsoluteError,
        EnergyForceLoss,
        HuberError,
        PerAtomTerm,
        SquaredError,
        Term,
        VectorError,
        WeightedLoss,
    )
    from pyg_equivariant.training.metrics import Errors, Row
    from pyg_equivariant.training.schedules import Cosine, Plateau, Schedule
    from pyg_equivariant.training.task import ForceFieldTask, PropertyTask, Task

_MODULES = {
    "callbacks": ("BestModel", "History", "SaveWhenStopped", "TestTable"),
    "ema": ("ExponentialMovingAverage",),
    "losses": (
        "AbsoluteError",
        "EnergyForceLoss",
        "HuberError",
        "PerAtomTerm",
        "SquaredError",
        "Term",
        "VectorError",
        "WeightedLoss",
    ),
    "metrics": ("Errors", "Row"),
    "schedules": ("Cosine", "Plateau", "Schedule"),
    "task": ("ForceFieldTask", "PropertyTask", "Task"),
}

__all__ = [
    "AbsoluteError",
    "BestModel",
    "Cosine",
    "EnergyForceLoss",
    "Errors",
    "ExponentialMovingAverage",
    "ForceFieldTask",
    "History",
    "HuberError",
    "PerAtomTerm",
    "Plateau",
    "PropertyTask",
    "Row",
    "SaveWhenStopped",
    "Schedule",
    "SquaredError",
    "Task",
    "Term",
    "TestTable",
    "VectorError",
    "WeightedLoss",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
