"""Rotation matrices of all degrees."""

import torch
from e3nn.o3 import Irreps
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.o3 import num_components, random_rotation, rotate, spherical_harmonics, wigner

SEEDS = st.integers(0, 2**16)


def orthogonal(seed: int, sign: int) -> torch.Tensor:
    return sign * random_rotation(torch.Generator().manual_seed(seed))


@settings(derandomize=True, deadline=None, max_examples=15)
@given(SEEDS, SEEDS, st.sampled_from([1, -1]), st.integers(0, 6))
def test_representation(seed, other, sign, lmax):
    """D(R) is orthogonal, D(RS) = D(R) D(S), and Y(Rv) = D(R) Y(v); for reflections as well."""
    first, second = orthogonal(seed, sign), orthogonal(other, -1)
    matrix = wigner(first, lmax)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(num_components(lmax), dtype=torch.float64))
    torch.testing.assert_close(wigner(first @ second, lmax), matrix @ wigner(second, lmax))
    vec = torch.randn(4, 3, generator=torch.Generator().manual_seed(other), dtype=torch.float64)
    turned = spherical_harmonics(vec @ first.T, lmax)
    torch.testing.assert_close(turned, spherical_harmonics(vec, lmax) @ matrix.T, atol=1e-12, rtol=0)


def test_equal_to_e3nn():
    rotation = -random_rotation(torch.Generator().manual_seed(0))
    expected = Irreps("0e+1o+2e+3o+4e").D_from_matrix(rotation).to(rotation.dtype)
    # e3nn's generators have the default dtype, float32
    torch.testing.assert_close(wigner(rotation, 4), expected, atol=1e-5, rtol=0)


def test_batch_of_rotations():
    rotations = torch.stack([orthogonal(seed, 1) for seed in range(3)])
    torch.testing.assert_close(wigner(rotations, 3)[2], wigner(rotations[2], 3))


def test_random_rotation_is_proper():
    rotation = orthogonal(5, 1)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0, dtype=torch.float64))


def test_cross_product_is_a_pseudovector():
    """The outcome of a × b lives in slot 1: a reflection turns it with an extra sign."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    for sign in (1, -1):
        rotation = orthogonal(1, sign)
        x = torch.zeros(5, 2, 4, 1, dtype=torch.float64)
        x[:, 0, 1:, 0], x[:, 1, 1:, 0] = a, torch.linalg.cross(a, b)
        turned = rotate(x, rotation)
        torch.testing.assert_close(turned[:, 0, 1:, 0], a @ rotation.T)
        torch.testing.assert_close(turned[:, 1, 1:, 0], torch.linalg.cross(a @ rotation.T, b @ rotation.T))
        x[:, 1, 0, 0] = (a * torch.linalg.cross(a, b).roll(1, 0)).sum(-1)  # a pseudoscalar
        torch.testing.assert_close(rotate(x, rotation)[:, 1, 0], sign * x[:, 1, 0])
