"""What is timed: one step of training, or one evaluation, the same code around everybody's model."""

import ctypes
import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cases import Case


class Contestant(ABC):
    """A model that can be timed.

    Attributes:
        model: Holds the parameters that are trained, and the switch between training and evaluation.
    """

    model: nn.Module

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(p.numel() for p in self.model.parameters())

    @abstractmethod
    def inputs(self, case: Case) -> Any:
        """A case in the form that the model reads; made once, not timed."""

    @abstractmethod
    def predict(self, inputs: Any) -> tuple[Tensor, Tensor | None]:
        """From positions to energies ``[B]`` and, if the model was built with forces, forces ``[N, 3]``."""


class Times(NamedTuple):
    """Of each step, in milliseconds."""

    wall: list[float]
    processor: list[float]


def make_step(contestant: Contestant, case: Case) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """The step of a case: training (loss, its gradient, Adam in one loop) or evaluation."""
    inputs = contestant.inputs(case)
    model = contestant.model
    if not case.train:

        def evaluate() -> tuple[Tensor, Tensor | None]:
            if model.training:
                model.eval()
            return contestant.predict(inputs)

        return evaluate

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def train() -> tuple[Tensor, Tensor | None]:
        model.train()
        optimizer.zero_grad()
        energy, forces = contestant.predict(inputs)
        loss = functional.mse_loss(energy, case.energy.to(energy.dtype))
        if forces is not None:
            loss = 0.01 * loss + 0.99 * functional.mse_loss(forces, case.forces)
        loss.backward()
        optimizer.step()
        return energy.detach(), None if forces is None else forces.detach()

    return train


def measure(step: Callable[[], object], count: int, device: str = "cpu") -> Times:
    """Runs so many steps."""
    times = Times([], [])
    for _ in range(count):
        wall, processor = time.perf_counter(), time.process_time()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        times.wall.append(1e3 * (time.perf_counter() - wall))
        times.processor.append(1e3 * (time.process_time() - processor))
    return times


def peak_memory(step: Callable[[], object], device: str = "cpu") -> float | None:
    """MiB that a step needs at its height, beyond what stays between two steps (weights, gradients, optimizer).

    On a CPU from Linux's high-water mark of the resident memory, after freed memory was given back; ``None`` elsewhere.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status, mark = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not mark.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    mark.write_text("5")  # the mark falls to what is resident now
    before = _resident(status, "VmRSS")
    step()
    return (_resident(status, "VmHWM") - before) / 1024


def _resident(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
