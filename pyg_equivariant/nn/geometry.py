"""Lengths and directions whose derivatives exist everywhere, twice."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["safe_norm", "unit_vectors"]


def safe_norm(vec: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    """Length of vectors; all its derivatives are 0, not NaN, where the vector is 0."""
    square = vec.square().sum(-1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def unit_vectors(vec: Float[Tensor, "... 3"], length: Float[Tensor, "..."]) -> Float[Tensor, "... 3"]:
    """``vec / length``, and 0 where the length is 0.

    Args:
        vec: Vectors.
        length: ``safe_norm(vec)``, which the caller has at hand already.
    """
    return vec / torch.where(length == 0, 1.0, length).unsqueeze(-1)
