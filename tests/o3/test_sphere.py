"""Grids on the sphere."""

import pytest
import torch

from pyg_equivariant.o3 import SphereGrid, num_components, random_rotation, rotate


@pytest.mark.parametrize(("lmax", "resolution"), [(0, None), (1, None), (4, None), (3, 9)])
def test_round_trip(lmax, resolution):
    grid = SphereGrid(lmax, resolution).double()
    x = torch.randn(2, 2, num_components(lmax), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(grid.from_grid(grid.to_grid(x)), x, atol=1e-12, rtol=0)


def test_square_of_a_signal_is_equivariant():
    """Its degree is 2 lmax, which a resolution of (3 lmax + 1) / 2 or more resolves."""
    grid = SphereGrid(2, 4).double()
    x = torch.randn(2, 1, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation = random_rotation(torch.Generator().manual_seed(1))
    squared = grid.from_grid(grid.to_grid(x).square())
    turned = grid.from_grid(grid.to_grid(rotate(x, rotation)).square())
    torch.testing.assert_close(turned, rotate(squared, rotation), atol=1e-12, rtol=0)


def test_values_have_the_variance_of_the_features():
    x = torch.randn(200, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    assert SphereGrid(2).to_grid(x).var().item() == pytest.approx(1.0, abs=0.05)


def test_points_are_on_the_sphere():
    points = SphereGrid(3).double().points
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(len(points), dtype=torch.float64), atol=1e-14, rtol=0)


def test_too_coarse():
    with pytest.raises(ValueError, match="lmax 3 needs a resolution of 4 or more, got 3"):
        SphereGrid(3, 3)
