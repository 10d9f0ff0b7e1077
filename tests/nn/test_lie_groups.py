"""Lie groups: exponential and logarithm against matrix functions, lifts, derivatives, a group of one's own."""

import math

import pytest
import torch

from pyg_equivariant.nn.lie_groups import SE2, SE3, SO2, SO3, LieGroup, ScaledSO2, Translations, Trivial
from pyg_equivariant.testing import assert_close

# generators: the matrices whose combinations are exponentiated
TURN = [[0, -1], [1, 0]]
GENERATORS = {
    "SO2": [TURN],
    "ScaledSO2": [[[1, 0], [0, 1]], TURN],
    "SE2": [[[0, -1, 0], [1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0] * 3, [0] * 3], [[0] * 3, [0, 0, 1], [0] * 3]],
    "SO3": [
        [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
        [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 0]],
    ],
}
GENERATORS["SE3"] = [[[*row, 0] for row in generator] + [[0] * 4] for generator in GENERATORS["SO3"]] + [
    [[0, 0, 0, float(row == k)] for row in range(3)] + [[0] * 4] for k in range(3)
]
GENERATORS["Translations"] = GENERATORS["SE3"][3:]
CLASSES = {"SO2": SO2, "ScaledSO2": ScaledSO2, "SE2": SE2, "SO3": SO3, "SE3": SE3, "Translations": Translations}
SPACE = {"SO2": 2, "ScaledSO2": 2, "SE2": 2, "SO3": 3, "SE3": 3, "Translations": 3}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coordinates(name: str) -> torch.Tensor:
    """Of the algebra, with angles from tiny to almost π."""
    a = normal(60, CLASSES[name]().dim)
    if name != "Translations":
        turn = slice(0, {"SE2": 1, "ScaledSO2": 2}.get(name, 3)) if name != "ScaledSO2" else slice(1, 2)
        size = torch.cat(
            [torch.logspace(-12, 0, 30), torch.linspace(0.05, math.pi - 1e-3, 29), torch.zeros(1)]
        ).double()
        a[:, turn] = size[:, None] * a[:, turn] / a[:, turn].norm(dim=1, keepdim=True)
    return a


@pytest.mark.parametrize("name", CLASSES)
def test_exp_is_the_matrix_exponential(name):
    a = coordinates(name)
    generators = torch.tensor(GENERATORS[name], dtype=torch.float64)
    expected = torch.linalg.matrix_exp(torch.einsum("bk,kij->bij", a, generators))
    assert_close(CLASSES[name]().exp(a), expected, "exponential", tolerance=1e-13)


@pytest.mark.parametrize("name", CLASSES)
def test_log_inverts_exp(name):
    group, a = CLASSES[name](), coordinates(name)
    assert_close(group.log(group.exp(a)), a, "logarithm of the exponential", tolerance=1e-11)
    product = group.exp(a) @ group.exp(a.flip(0))
    assert_close(group.exp(group.log(product)), product, "exponential of the logarithm", tolerance=1e-12)
    identity = torch.eye(product.shape[-1], dtype=torch.float64).expand_as(product)
    assert_close(group.inverse(product) @ product, identity, "inverse", tolerance=1e-12)


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [-0.6, 0, 0.8]])
def test_log_of_half_turns(axis):
    """At an angle of exactly π either axis is right; nothing is lost close to it."""
    axis = torch.tensor(axis, dtype=torch.float64)
    half_turn = 2 * torch.outer(axis, axis) - torch.eye(3, dtype=torch.float64)
    a = SO3().log(half_turn)
    assert_close(a.norm(), torch.tensor(math.pi, dtype=torch.float64), "angle")
    assert_close(SO3().exp(a), half_turn, "half-turn", tolerance=1e-12)
    almost = (math.pi - 1e-9) * axis
    assert_close(SO3().log(SO3().exp(almost)), almost, "close to a half-turn", tolerance=1e-12)


@pytest.mark.parametrize("name", CLASSES)
def test_relative_ignores_the_left(name):
    group = CLASSES[name]()
    u, v, g = (group.exp(0.5 * normal(20, group.dim, seed=seed)) for seed in range(3))
    assert_close(group.relative(g @ u, g @ v), group.relative(u, v), "left multiplication", tolerance=1e-11)
    assert_close(group.relative(u, v), -group.relative(v, u), "antisymmetry", tolerance=1e-11)
    assert_close(group.distance(u, v), group.distance(v, u), "distance", tolerance=1e-11)
    assert group.distance(u, u).abs().max() < 1e-7


def act(u: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """Matrices on a point; those one larger than it are affine."""
    n = len(point)
    return u[..., :n, :n] @ point + (u[..., :n, n] if u.shape[-1] > n else 0)


@pytest.mark.parametrize("name", CLASSES)
def test_lifts_reach_the_points(name):
    """Lifted elements take the origin of the orbit to the point, whatever was drawn from the stabiliser."""
    group = CLASSES[name]()
    pos = normal(10, SPACE[name])
    pos[:3, -1] = 0  # on the equator, or an axis
    if name in ("SO2", "SO3"):
        pos[-1] = 0
    elements = group.lift(pos, 5, torch.Generator().manual_seed(0))
    assert_close(
        group.inverse(elements) @ elements, torch.eye(elements.shape[-1]).double().expand_as(elements), "inverse"
    )
    origins = {"SO2": [1.0, 0.0], "ScaledSO2": [1.0, 0.0], "SO3": [0.0, 0.0, 1.0]}
    origin = torch.tensor(origins.get(name, [0.0] * SPACE[name]), dtype=torch.float64)
    reached = act(elements, origin)
    if group.orbit_dim:
        reached = reached * group.orbit(pos).unsqueeze(1)
    assert_close(reached, pos.unsqueeze(1).expand_as(reached), "points")
    spread = (elements[:, :1] - elements).abs().max()
    assert (spread > 0.5) == bool(group.stabilizer_dim)


def test_stabilizer_is_uniform():
    """Of rotations drawn uniformly the mean is zero and entries have the variance 1/3, turned by anything."""
    turns = SE3().stabilizer(20000, torch.Generator().manual_seed(0))[:, :3, :3]
    assert turns.mean(0).abs().max() < 0.02
    assert (turns.square().mean(0) - 1 / 3).abs().max() < 0.01
    assert torch.linalg.det(turns).min() > 0.999
    angle = SO2().log(SE2().stabilizer(20000, torch.Generator().manual_seed(0))[:, :2, :2])
    histogram = torch.histc(angle, 4, -math.pi, math.pi)
    assert (histogram / 20000 - 0.25).abs().max() < 0.02


@pytest.mark.parametrize("name", CLASSES)
def test_derivatives_are_finite_and_right(name):
    """First derivatives by differences; second ones finite, at the identity too."""
    group, a = CLASSES[name](), coordinates(name)
    other = group.exp(0.3 * normal(60, group.dim, seed=5))

    def value(a):
        return group.relative(other @ group.exp(a), other).square().sum(-1) + group.relative(group.exp(a), other).sum(
            -1
        )

    a = a.requires_grad_()
    (first,) = torch.autograd.grad(value(a).sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), a)
    assert torch.isfinite(second).all()
    step = 1e-6 * normal(60, group.dim, seed=6)
    a = a.detach()
    differences = value(a + step) - value(a - step)
    jumps = differences.abs() > 1  # relative angles that wrap
    assert jumps.sum() < 3
    assert_close(
        (2 * first.detach() * step).sum(-1)[~jumps] * 1e6, differences[~jumps] * 1e6, "gradient", tolerance=1e-4
    )


def test_distance_has_no_nan_where_elements_coincide():
    pos = normal(3, 3).requires_grad_()
    group = Translations(3)
    u = group.section(pos)
    (gradient,) = torch.autograd.grad(group.distance(u, u.detach()).sum(), pos)
    assert gradient.abs().max() == 0


def test_trivial_sees_points_as_they_are():
    group, pos = Trivial(2), normal(4, 2)
    elements = group.lift(pos)
    assert elements.shape == (4, 1, 1, 1)
    assert group.relative(elements, elements).shape == (4, 1, 0)
    assert_close(group.orbit(pos), pos, "orbit")


def test_group_of_ones_own():
    """``exp`` and ``log`` suffice: the Heisenberg group, of upper triangular matrices."""

    class Heisenberg(LieGroup):
        dim = 3

        def exp(self, a):
            x, y, z = a.unbind(-1)
            one, zero = torch.ones_like(x), torch.zeros_like(x)
            rows = [[one, x, z + x * y / 2], [zero, one, y], [zero, zero, one]]
            return torch.stack([torch.stack(row, -1) for row in rows], -2)

        def log(self, u):
            x, y = u[..., 0, 1], u[..., 1, 2]
            return torch.stack([x, y, u[..., 0, 2] - x * y / 2], -1)

    group, a = Heisenberg(), normal(10, 3)
    u, g = group.lift(a)[:, 0], group.exp(normal(3, seed=1))
    assert_close(group.log(u), a, "logarithm")
    assert_close(group.relative(g @ u, g @ u.flip(0)), group.relative(u, u.flip(0)), "left multiplication")
