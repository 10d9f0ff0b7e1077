"""Nonlinearities on the sphere: exactness, equivariance, agreement with SiLU."""

import pytest
import torch
from torch.nn import functional

from pyg_equivariant.nn.s2 import GridSiLU, QuadraticSiLU, SeparableS2Activation
from pyg_equivariant.o3 import SphereGrid, num_components, random_rotation, rotate
from pyg_equivariant.testing import assert_close, fill_by_formula


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def asymmetry(module: SeparableS2Activation, lmax: int) -> float:
    """How much it matters whether a rotation comes before or after."""
    x, scalars = normal(20, num_components(lmax), 4), normal(20, 4, seed=1)
    worst = 0.0
    for seed in range(3):
        rotation = random_rotation(torch.Generator().manual_seed(seed))
        after = rotate(module(x, scalars).unsqueeze(1), rotation)
        before = module(rotate(x.unsqueeze(1), rotation).squeeze(1), scalars).unsqueeze(1)
        worst = max(worst, (after - before).abs().max().item())
    return worst


@pytest.mark.parametrize("sizes", [(), (4, 4, 4), (4, 4, 4, 4)])
@pytest.mark.parametrize("lmax", [0, 1, 4])
def test_quadratic_is_exact(lmax, sizes):
    """Equivariant to rounding on its own grid, which a finer one does not improve on."""
    module = SeparableS2Activation(lmax, QuadraticSiLU(), sizes=sizes).double()
    fill_by_formula(module)
    assert asymmetry(module, lmax) < 1e-12

    class Finer(QuadraticSiLU):
        def resolution(self, lmax: int, depth: int) -> int:
            return super().resolution(lmax, depth) + 5

    finer = SeparableS2Activation(lmax, Finer(), sizes=sizes).double()
    fill_by_formula(finer)
    x, scalars = normal(5, num_components(lmax), 4), normal(5, 4, seed=1)
    assert_close(module(x, scalars), finer(x, scalars), "a finer grid", tolerance=1e-12)


def test_coarser_grid_is_not_exact():
    class Coarse(QuadraticSiLU):
        def resolution(self, lmax: int, depth: int) -> int:
            return super().resolution(lmax, depth) - 1

    assert asymmetry(SeparableS2Activation(4, Coarse()).double(), 4) > 1e-3


def test_grid_silu_becomes_equivariant():
    """The error falls with the resolution, as the docstring says (to 5e-7 at 30 points)."""
    errors = [asymmetry(SeparableS2Activation(4, GridSiLU(points)).double(), 4) for points in (9, 18, 30)]
    assert errors[0] > 1e-3 > errors[1] > 1e-6 > errors[2]


def test_quadratic_resembles_silu():
    """Same Taylor polynomial, and nearly the same features for normal ones."""
    share = torch.full((200,), 1 / 200, dtype=torch.float64)
    tiny = 1e-2 * normal(1, 200, 1)
    assert (QuadraticSiLU()(tiny, share) - functional.silu(tiny)).abs().max() < 1e-7
    x, scalars = normal(200, 25, 4), normal(200, 4, seed=1)
    quadratic, silu = (SeparableS2Activation(4, a).double()(x, scalars)[:, 1:] for a in (QuadraticSiLU(), GridSiLU(12)))
    assert (quadratic - silu).std() < 0.1 * silu.std()
    large = 100 * x
    assert SeparableS2Activation(4, QuadraticSiLU()).double()(large, scalars).std() < 200  # no square of it


def test_scalars_go_their_own_way():
    """The scalars out are SiLU of those given, yet the features' scalars shape the other degrees."""
    module = SeparableS2Activation(2, QuadraticSiLU()).double()
    x, scalars = normal(3, 9, 4), normal(3, 4, seed=1)
    y = module(x, scalars)
    assert_close(y[:, 0], functional.silu(scalars), "scalars")
    other = torch.cat([x[:, :1] + 1, x[:, 1:]], 1)
    assert (module(other, scalars)[:, 1:] - y[:, 1:]).abs().max() > 0.1


def test_rows_in_another_order():
    order = [0, 2, 6, 3, 7, 1, 5]  # orders 0 and ±1 of lmax 2
    usual, sorted_by_order = (SeparableS2Activation(2, QuadraticSiLU(), rows=rows).double() for rows in (None, order))
    x, scalars = normal(3, 9, 4), normal(3, 4, seed=1)
    x[:, [4, 8]] = 0
    assert_close(sorted_by_order(x[:, order], scalars), usual(x, scalars)[:, order], "rows")


def test_formula_by_hand():
    grid = SphereGrid(2, 9).double()
    x = normal(1, 9, 1)
    scale = torch.tensor([n**-0.5 for n in (1, 3, 5) for _ in range(n)], dtype=torch.float64).unsqueeze(1) * 3**0.5
    values = grid.to_grid((x * scale)[:, None])[:, 0]
    mean_square = (x * scale).square().mean()
    expected = grid.from_grid((values / 2 + values**2 / 4 / (1 + mean_square).sqrt())[:, None])[:, 0] / scale
    actual = SeparableS2Activation(2, QuadraticSiLU()).double()(x, torch.zeros(1, 1, dtype=torch.float64))
    assert_close(actual[:, 1:], expected[:, 1:], "formula")
