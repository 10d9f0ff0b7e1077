"""Errors in the units of the literature's tables."""

from typing import NamedTuple

import torch
import torchmetrics
from torch import Tensor

from pyg_equivariant.units import DEBYE

__all__ = ["Errors", "Row", "reported"]

_REPORTED = {"eV": ("meV", 1e3), "e·Å": ("D", 1 / DEBYE)}


class Row(NamedTuple):
    """One line of a table of errors: ``mae``, ``rmse`` and the labels' own ``spread`` are in ``unit``."""

    quantity: str
    unit: str
    mae: float
    rmse: float
    spread: float
    samples: int


class Errors(torchmetrics.Metric):
    """MAE and RMSE of one quantity, and the standard deviation of its labels, summed in float64.

    Args:
        factor: From the data's unit to the one to report.

    Example:
        >>> errors = Errors()
        >>> errors.update(torch.tensor([1.0, -3.0]), torch.tensor([4.0, 6.0]))
        >>> {name: round(float(value), 3) for name, value in errors.compute().items()}
        {'mae': 2.0, 'rmse': 2.236, 'spread': 1.0, 'samples': 2.0}
    """

    full_state_update = False
    count: Tensor
    absolute: Tensor
    squared: Tensor
    label: Tensor
    label_squared: Tensor

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        for name in ("count", "absolute", "squared", "label", "label_squared"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, residual: Tensor, label: Tensor) -> None:
        """Adds samples.

        Args:
            residual: Prediction minus label, of any shape; every component counts.
            label: The labels, less whatever part of them is known beforehand.
        """
        residual, label = residual.double() * self.factor, label.double() * self.factor
        self.count += residual.numel()
        self.absolute += residual.abs().sum()
        self.squared += residual.square().sum()
        self.label += label.sum()
        self.label_squared += label.square().sum()

    def compute(self) -> dict[str, Tensor]:
        """``mae``, ``rmse``, ``spread`` and ``samples`` of all processes together."""
        variance = self.label_squared / self.count - (self.label / self.count).square()
        return {
            "mae": self.absolute / self.count,
            "rmse": (self.squared / self.count).sqrt(),
            "spread": variance.clamp(min=0).sqrt(),
            "samples": self.count,
        }


def reported(unit: str) -> tuple[str, float]:
    """The unit in which tables give a quantity, and the factor to it.

    Example:
        >>> reported("eV/Å"), reported("a0^3")
        (('meV/Å', 1000.0), ('a0^3', 1.0))
    """
    head, slash, tail = unit.partition("/")
    name, factor = _REPORTED.get(head, (head, 1.0))
    return name + slash + tail, factor
