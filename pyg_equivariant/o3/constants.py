"""Constants that keep their precision when a module changes its type."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ExactConstants"]


class ExactConstants(nn.Module):
    """A module with constant tensors that follow its device and dtype.

    Ordinary buffers made in float32 keep its rounding after ``.double()``; these are cast anew from float64. They are
    not part of the state.

    Example:
        >>> module = ExactConstants()
        >>> module.register_constant("third", torch.tensor(1 / 3, dtype=torch.float64))
        >>> module.third.dtype, float(module.double().third) == 1 / 3
        (torch.float32, True)
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, Tensor] = {}

    def register_constant(self, name: str, value: Tensor) -> None:
        """Makes ``value``, in float64, the attribute ``name`` in the default dtype."""
        self._exact[name] = value
        self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self._exact.items():
            buffer = self._buffers[name]
            assert buffer is not None
            self._buffers[name] = value.to(buffer.device, buffer.dtype)
        return self
