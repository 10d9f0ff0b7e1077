"""Exponential moving average of a model's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

__all__ = ["ExponentialMovingAverage"]

M = TypeVar("M", bound=nn.Module)


class ExponentialMovingAverage(nn.Module, Generic[M]):
    """A copy of a model whose weights follow the trained ones, ``w̄ ← d w̄ + (1 − d) w``; buffers are copied.

    ``d = min(decay, (1 + t)/(10 + t))`` after t steps, so that the first random weights are forgotten soon.
    Being a submodule of the task, the average is in every checkpoint.

    Args:
        model: What is trained.
        decay: d; 0 follows the model exactly.

    Raises:
        ValueError: if ``decay`` is not in [0, 1).
    """

    def __init__(self, model: M, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the weights' average must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.model: M = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def reset(self, model: M) -> None:
        """Start again from the model's present weights and buffers."""
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Follow the model after its optimizer step number ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1.0 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
