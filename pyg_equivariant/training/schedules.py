"""Learning-rate schedules: factors on the task's ``lr`` as a function of the step and of the share of the run done.

The share counts whichever limit the trainer reaches first, epochs, steps or wall-clock time (``max_time``), so that a
cosine ends at its floor in a run with a time budget as well.
"""

import math
from typing import Any

__all__ = ["Cosine", "Plateau", "Schedule"]


class Schedule:
    """Linear warm-up, then constant.

    Args:
        warmup: Optimizer steps over which the learning rate rises from zero.

    Raises:
        ValueError: if ``warmup`` is negative.

    Example:
        >>> Schedule(warmup=4).factor(step=1, fraction=0.0)
        0.5
    """

    needs_end = False

    def __init__(self, warmup: int = 0) -> None:
        if warmup < 0:
            raise ValueError(f"warmup must be a number of steps, got {warmup}")
        self.warmup = warmup

    def factor(self, step: int, fraction: float) -> float:
        """Factor on the learning rate.

        Args:
            step: Optimizer steps done.
            fraction: Share of the whole run done, 0 to 1.
        """
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    def observe(self, loss: float) -> None:
        """Hear of a validation's loss."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.__dict__.update(state)


class Cosine(Schedule):
    """Warm-up, then half a cosine from 1 down to ``floor`` at the end of the run.

    ``floor + ½ (1 − floor)(1 + cos(π fraction))``, see Loshchilov and Hutter, "SGDR" (2017), eq. 5 without restarts.

    Args:
        warmup: Optimizer steps over which the learning rate rises from zero.
        floor: The last factor.

    Example:
        >>> [round(Cosine().factor(step=0, fraction=f), 3) for f in (0.0, 0.5, 1.0)]
        [1.0, 0.505, 0.01]
    """

    needs_end = True

    def __init__(self, warmup: int = 0, floor: float = 0.01) -> None:
        super().__init__(warmup)
        self.floor = floor

    def factor(self, step: int, fraction: float) -> float:
        """Factor on the learning rate."""
        cosine = self.floor + 0.5 * (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, fraction)))
        return super().factor(step, fraction) * cosine


class Plateau(Schedule):
    """Warm-up, then a smaller rate whenever the validation loss has not improved for ``patience`` validations.

    Args:
        warmup: Optimizer steps over which the learning rate rises from zero.
        patience: Validations without improvement before a reduction.
        reduction: Factor of one reduction.
        floor: The smallest factor.

    Raises:
        ValueError: if ``reduction`` is not between 0 and 1.
    """

    def __init__(self, warmup: int = 0, patience: int = 20, reduction: float = 0.8, floor: float = 1e-3) -> None:
        super().__init__(warmup)
        if not 0 < reduction < 1:
            raise ValueError(f"reduction of Plateau must be between 0 and 1, got {reduction}")
        self.patience = patience
        self.reduction = reduction
        self.floor = floor
        self.level = 1.0
        self.best = math.inf
        self.waited = 0

    def factor(self, step: int, fraction: float) -> float:
        """Factor on the learning rate."""
        return super().factor(step, fraction) * self.level

    def observe(self, loss: float) -> None:
        """Hear of a validation's loss."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.level, self.waited = max(self.floor, self.level * self.reduction), 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"level": self.level, "best": self.best, "waited": self.waited}
