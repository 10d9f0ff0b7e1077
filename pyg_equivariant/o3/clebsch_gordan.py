"""Coupling coefficients of the real basis, from e3nn."""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["coupling", "coupling_entries"]


def coupling(l1: int, l2: int, l3: int, dtype: torch.dtype = torch.float64) -> Float[Tensor, "m1 m2 m3"]:
    """The tensor that couples degrees ``l1`` and ``l2`` to ``l3``, component-normalised.

    Inputs with independent components of variance one give outputs of variance one:
    ``coupling = sqrt(2 l3 + 1) · wigner_3j``.

    Raises:
        ValueError: if the degrees violate the triangle inequality.

    Example:
        >>> coupling(0, 1, 1)[0]
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """
    return _coupling(l1, l2, l3).to(dtype, copy=True)


@functools.cache
def coupling_entries(l1: int, l2: int, l3: int) -> tuple[tuple[int, int, int, float], ...]:
    """The non-zero ``(m1, m2, m3, value)`` of :func:`coupling`, sorted by m3, then m1.

    Example:
        >>> coupling_entries(0, 1, 1)
        ((0, 0, 0, 1.0), (0, 1, 1, 1.0), (0, 2, 2, 1.0))
    """
    tensor = _coupling(l1, l2, l3)
    entries = [(m1, m2, m3, float(tensor[m1, m2, m3])) for m1, m2, m3 in tensor.nonzero().tolist()]
    return tuple(sorted(entries, key=lambda entry: (entry[2], entry[0])))


@functools.cache
def _coupling(l1: int, l2: int, l3: int) -> Tensor:
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {l1} and {l2} do not couple to {l3}")
    from e3nn.o3 import wigner_3j  # e3nn takes long to import

    # Explicit device and dtype: the cache must not depend on a torch.device context or the default dtype.
    tensor: Tensor = math.sqrt(2 * l3 + 1) * wigner_3j(l1, l2, l3, dtype=torch.float64, device=torch.device("cpu"))
    rounded = tensor.where(tensor.abs() > 1e-12, 0.0)
    return rounded.where((rounded.abs() - 1).abs() > 1e-12, rounded.sign())
