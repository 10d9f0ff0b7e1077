"""Lie groups of matrices: their exponential and logarithm are all that a convolution needs."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from pyg_equivariant.nn.configurable import Configurable

__all__ = ["SE2", "SE3", "SO2", "SO3", "LieGroup", "ScaledSO2", "Translations", "Trivial"]


class LieGroup(Configurable, ABC):
    """A group of matrices with a surjective exponential; a subclass has to define ``exp`` and ``log`` only.

    With these a :class:`~pyg_equivariant.models.lieconv.LieConv` on data that are group elements is equivariant. Data
    that are points x of a space are lifted: the elements that take an origin to x are ``section(x) h``, with h in the
    stabiliser of the origin, which is sampled. Where the group does not reach all points from one origin, ``orbit``
    tells apart what it cannot reach. By default the points are coordinates of the algebra, lifted by ``exp``.
    Reference: Finzi et al. 2020, arXiv:2002.12880, section 4.

    Attributes:
        dim: D, coordinates of the algebra.
        orbit_dim: Q, numbers that tell orbits apart.
        stabilizer_dim: Dimension of the stabiliser of an origin; 0 if each point has one lift.
        translates: n if all translations of n-dimensional space are in the group and are its sections.

    Example:
        >>> class Scalings(LieGroup):
        ...     dim = 1
        ...     def exp(self, a):
        ...         return a.exp().unsqueeze(-1)
        ...     def log(self, u):
        ...         return u.log().squeeze(-1)
        >>> group = Scalings()
        >>> group.relative(group.exp(torch.tensor([3.0])), group.exp(torch.tensor([1.0])))
        tensor([2.])
    """

    dim: int
    orbit_dim: int = 0
    stabilizer_dim: int = 0
    translates: int = 0

    @abstractmethod
    def exp(self, a: Float[Tensor, "... D"]) -> Float[Tensor, "... n n"]:
        """Matrices of coordinates of the algebra."""

    @abstractmethod
    def log(self, u: Float[Tensor, "... n n"]) -> Float[Tensor, "... D"]:
        """Coordinates of the algebra; of several the ones closest to zero."""

    def inverse(self, u: Float[Tensor, "... n n"]) -> Float[Tensor, "... n n"]:
        """Inverse matrices."""
        return torch.linalg.inv(u)

    def relative(self, u: Float[Tensor, "... n n"], v: Float[Tensor, "... n n"]) -> Float[Tensor, "... D"]:
        """``log(v⁻¹ u)``, which no element multiplied from the left to both changes."""
        return self.log(self.inverse(v) @ u)

    def distance(self, u: Float[Tensor, "... n n"], v: Float[Tensor, "... n n"]) -> Float[Tensor, "..."]:
        """``‖log(v⁻¹ u)‖``; its derivatives are 0, not NaN, where the elements coincide."""
        return _safe_sqrt(self.relative(u, v).square().sum(-1))

    def section(self, pos: Float[Tensor, "... d"]) -> Float[Tensor, "... n n"]:
        """One element that takes the origin (of its orbit) to each point."""
        return self.exp(pos)

    def orbit(self, pos: Float[Tensor, "... d"]) -> Float[Tensor, "... Q"]:
        """Numbers that are the same for all points that the group can take to each other, and for no others."""
        return pos[..., :0]

    def stabilizer(
        self, count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "count n n"]:
        """Elements that leave the origin where it is, drawn uniformly."""
        return self.exp(torch.zeros(count, self.dim, dtype=dtype))

    def lift(
        self, pos: Float[Tensor, "N d"], count: int = 1, generator: torch.Generator | None = None
    ) -> Float[Tensor, "N count n n"]:
        """``count`` elements for each point that take the origin there, drawn uniformly from all that do.

        Args:
            pos: Points.
            count: Elements a point; more than one makes sense where ``stabilizer_dim`` is positive.
            generator: Of the random numbers.
        """
        chosen = self.stabilizer(len(pos) * count, generator, torch.float64).to(pos)
        return self.section(pos).unsqueeze(1) @ chosen.unflatten(0, (len(pos), count))


class Trivial(LieGroup):
    """The group of the identity alone: no symmetry, a convolution sees both points as they are.

    Args:
        ndim: Dimension of the space.
    """

    dim = 0

    def __init__(self, ndim: int = 3) -> None:
        super().__init__()
        self.orbit_dim = ndim

    def exp(self, a: Float[Tensor, "... 0"]) -> Float[Tensor, "... 1 1"]:
        """See :class:`LieGroup`."""
        return a.new_ones(*a.shape[:-1], 1, 1)

    def log(self, u: Float[Tensor, "... 1 1"]) -> Float[Tensor, "... 0"]:
        """See :class:`LieGroup`."""
        return u[..., 0, :0]

    def section(self, pos: Float[Tensor, "... d"]) -> Float[Tensor, "... 1 1"]:
        """The identity."""
        return self.exp(pos[..., :0])

    def orbit(self, pos: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The points themselves."""
        return pos


class Translations(LieGroup):
    """T(n), translations of n-dimensional space.

    Args:
        ndim: n.
    """

    def __init__(self, ndim: int = 3) -> None:
        super().__init__()
        self.dim = self.translates = ndim

    def exp(self, a: Float[Tensor, "... D"]) -> Float[Tensor, "... n n"]:
        """See :class:`LieGroup`."""
        return _rigid(torch.eye(self.dim, dtype=a.dtype, device=a.device), a)

    def log(self, u: Float[Tensor, "... n n"]) -> Float[Tensor, "... D"]:
        """See :class:`LieGroup`."""
        return u[..., :-1, -1]

    def inverse(self, u: Float[Tensor, "... n n"]) -> Float[Tensor, "... n n"]:
        """See :class:`LieGroup`."""
        return self.exp(-self.log(u))


class SO2(LieGroup):
    """Rotations of the plane about its origin; an orbit is a circle, told by its radius."""

    dim = 1
    orbit_dim = 1

    def exp(self, a: Float[Tensor, "... 1"]) -> Float[Tensor, "... 2 2"]:
        """See :class:`LieGroup`."""
        return _complex(a[..., 0].cos(), a[..., 0].sin())

    def log(self, u: Float[Tensor, "... 2 2"]) -> Float[Tensor, "... 1"]:
        """See :class:`LieGroup`."""
        return torch.atan2(u[..., 1, :1], u[..., 0, :1])

    def inverse(self, u: Float[Tensor, "... 2 2"]) -> Float[Tensor, "... 2 2"]:
        """See :class:`LieGroup`."""
        return u.mT

    def section(self, pos: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2 2"]:
        """From the x axis; the identity for the origin itself."""
        square = pos.square().sum(-1, keepdim=True)
        unit = pos * torch.where(square == 0, 1.0, square).rsqrt()
        unit = torch.where(square == 0, pos.new_tensor([1.0, 0.0]), unit)
        return _complex(unit[..., 0], unit[..., 1])

    def orbit(self, pos: Float[Tensor, "... 2"]) -> Float[Tensor, "... 1"]:
        """Distances from the origin."""
        return _safe_sqrt(pos.square().sum(-1, keepdim=True))


class ScaledSO2(LieGroup):
    """R* × SO(2), rotations of the plane and changes of scale; it reaches every point but the origin from (1, 0)."""

    dim = 2

    def exp(self, a: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2 2"]:
        """See :class:`LieGroup`; coordinates are the logarithm of the scale and the angle."""
        scale = a[..., 0].exp()
        return _complex(scale * a[..., 1].cos(), scale * a[..., 1].sin())

    def log(self, u: Float[Tensor, "... 2 2"]) -> Float[Tensor, "... 2"]:
        """See :class:`LieGroup`."""
        x, y = u[..., 0, 0], u[..., 1, 0]
        return torch.stack([0.5 * (x.square() + y.square()).log(), torch.atan2(y, x)], dim=-1)

    def section(self, pos: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2 2"]:
        """From (1, 0)."""
        return _complex(pos[..., 0], pos[..., 1])


class SE2(LieGroup):
    """Rotations and translations of the plane; coordinates are the angle, then the translation's."""

    dim = 3
    stabilizer_dim = 1
    translates = 2

    def exp(self, a: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
        """See :class:`LieGroup`."""
        angle, v = a[..., 0], a[..., 1:]
        square = angle.square()
        jacobian = _complex(_sine(square), angle * _versine(square))
        return _rigid(_complex(angle.cos(), angle.sin()), (jacobian @ v.unsqueeze(-1)).squeeze(-1))

    def log(self, u: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3"]:
        """See :class:`LieGroup`."""
        angle = torch.atan2(u[..., 1, 0], u[..., 0, 0])
        along = 1.0 - angle.square() * _bernoulli(angle.square())
        v = (_complex(along, -0.5 * angle) @ u[..., :2, 2:]).squeeze(-1)
        return torch.cat([angle.unsqueeze(-1), v], dim=-1)

    def inverse(self, u: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3 3"]:
        """See :class:`LieGroup`."""
        return _rigid_inverse(u)

    def section(self, pos: Float[Tensor, "... 2"]) -> Float[Tensor, "... 3 3"]:
        """Translations."""
        return _rigid(torch.eye(2, dtype=pos.dtype, device=pos.device), pos)

    def stabilizer(
        self, count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "count 3 3"]:
        """Rotations about the origin."""
        angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        return self.exp(torch.stack([angle, 0 * angle, 0 * angle], dim=-1)).to(dtype)


class SO3(LieGroup):
    """Rotations of space about its origin; an orbit is a sphere, told by its radius. Coordinates: axis times angle."""

    dim = 3
    orbit_dim = 1
    stabilizer_dim = 1

    def exp(self, a: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
        """See :class:`LieGroup`."""
        square, cross = a.square().sum(-1)[..., None, None], _cross(a)
        return _identity(cross) + _sine(square) * cross + _versine(square) * (cross @ cross)

    def log(self, u: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3"]:
        """See :class:`LieGroup`; accurate at all angles, π included."""
        quaternion = _quaternion(u)
        real, imaginary = quaternion[..., 0], quaternion[..., 1:]
        return 2.0 * _arcsine(imaginary.square().sum(-1), real).unsqueeze(-1) * imaginary

    def inverse(self, u: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3 3"]:
        """See :class:`LieGroup`."""
        return u.mT

    def section(self, pos: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
        """From the z axis: a half-turn about the bisector, after a half-turn about x where z is negative."""
        square = pos.square().sum(-1, keepdim=True)
        unit = pos * torch.where(square == 0, 1.0, square).rsqrt()
        z = pos.new_tensor([0.0, 0.0, 1.0])
        down = pos[..., 2:] < 0
        axis = torch.where(square == 0, z, torch.where(down, -unit, unit) + z)
        half_turn = 2 * axis.unsqueeze(-1) * axis.unsqueeze(-2) / axis.square().sum(-1)[..., None, None]
        half_turn = half_turn - _identity(half_turn)
        return half_turn * torch.where(down, pos.new_tensor([1.0, -1.0, -1.0]), 1.0).unsqueeze(-2)

    def orbit(self, pos: Float[Tensor, "... 3"]) -> Float[Tensor, "... 1"]:
        """Distances from the origin."""
        return _safe_sqrt(pos.square().sum(-1, keepdim=True))

    def stabilizer(
        self, count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "count 3 3"]:
        """Rotations about the z axis."""
        angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        return self.exp(torch.stack([0 * angle, 0 * angle, angle], dim=-1)).to(dtype)


class SE3(LieGroup):
    """Rotations and translations of space; coordinates are axis times angle, then the translation's."""

    dim = 6
    stabilizer_dim = 3
    translates = 3

    def __init__(self) -> None:
        super().__init__()
        self.rotations = SO3()

    def exp(self, a: Float[Tensor, "... 6"]) -> Float[Tensor, "... 4 4"]:
        """See :class:`LieGroup`."""
        turn, v = a.split(3, dim=-1)
        square, cross = turn.square().sum(-1)[..., None, None], _cross(turn)
        jacobian = _identity(cross) + _versine(square) * cross + _third(square) * (cross @ cross)
        return _rigid(self.rotations.exp(turn), (jacobian @ v.unsqueeze(-1)).squeeze(-1))

    def log(self, u: Float[Tensor, "... 4 4"]) -> Float[Tensor, "... 6"]:
        """See :class:`LieGroup`."""
        turn = self.rotations.log(u[..., :3, :3])
        square, cross = turn.square().sum(-1)[..., None, None], _cross(turn)
        inverse = _identity(cross) - 0.5 * cross + _bernoulli(square) * (cross @ cross)
        return torch.cat([turn, (inverse @ u[..., :3, 3:]).squeeze(-1)], dim=-1)

    def inverse(self, u: Float[Tensor, "... 4 4"]) -> Float[Tensor, "... 4 4"]:
        """See :class:`LieGroup`."""
        return _rigid_inverse(u)

    def section(self, pos: Float[Tensor, "... 3"]) -> Float[Tensor, "... 4 4"]:
        """Translations."""
        return _rigid(torch.eye(3, dtype=pos.dtype, device=pos.device), pos)

    def stabilizer(
        self, count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "count 4 4"]:
        """Rotations about the origin."""
        quaternion = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        quaternion = quaternion / quaternion.square().sum(-1, keepdim=True).sqrt()
        real, imaginary = quaternion[:, :1, None], quaternion[:, 1:]
        cross = _cross(imaginary)
        rotation = _identity(cross) + 2 * (real * cross + cross @ cross)
        return _rigid(rotation, rotation.new_zeros(count, 3)).to(dtype)


def _safe_sqrt(square: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _complex(x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> Float[Tensor, "... 2 2"]:
    return torch.stack([torch.stack([x, -y], -1), torch.stack([y, x], -1)], -2)


def _cross(a: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
    """The matrix that takes b to ``a × b``."""
    x, y, z = a.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def _identity(like: Float[Tensor, "... n n"]) -> Float[Tensor, "n n"]:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _rigid(turn: Float[Tensor, "... n n"], v: Float[Tensor, "... n"]) -> Float[Tensor, "... m m"]:
    turn = turn.expand(*v.shape[:-1], *turn.shape[-2:])
    top = torch.cat([turn, v.unsqueeze(-1)], dim=-1)
    bottom = torch.cat([torch.zeros_like(v), torch.ones_like(v[..., :1])], dim=-1)
    return torch.cat([top, bottom.unsqueeze(-2)], dim=-2)


def _rigid_inverse(u: Float[Tensor, "... n n"]) -> Float[Tensor, "... n n"]:
    back = u[..., :-1, :-1].mT
    return _rigid(back, -(back @ u[..., :-1, -1:]).squeeze(-1))


def _quaternion(u: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 4"]:
    """The unit quaternion with a real part that is not negative.

    Its products with each of its own components are linear in the matrix; the longest of the four, which is never
    short, is taken.
    """
    diagonal = torch.diagonal(u, dim1=-2, dim2=-1)
    trace = diagonal.sum(-1, keepdim=True)
    own = torch.cat([1 + trace, 1 + 2 * diagonal - trace], dim=-1)  # four times the squares
    odd = torch.stack([u[..., 2, 1] - u[..., 1, 2], u[..., 0, 2] - u[..., 2, 0], u[..., 1, 0] - u[..., 0, 1]], -1)
    even = torch.stack([u[..., 1, 0] + u[..., 0, 1], u[..., 0, 2] + u[..., 2, 0], u[..., 2, 1] + u[..., 1, 2]], -1)
    (a, b, c), (xy, xz, yz), (w, x, y, z) = odd.unbind(-1), even.unbind(-1), own.unbind(-1)
    products = torch.stack([w, a, b, c, a, x, xy, xz, b, xy, y, yz, c, xz, yz, z], dim=-1).unflatten(-1, (4, 4))
    best = own.detach().argmax(-1)[..., None, None].expand(*own.shape[:-1], 1, 4)
    chosen = products.gather(-2, best).squeeze(-2)
    chosen = chosen * chosen.square().sum(-1, keepdim=True).rsqrt()
    return torch.where(chosen[..., :1] < 0, -chosen, chosen)


def _series(s: Float[Tensor, "..."], limit: float, coefficients: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Whether s is small, the power series where it is, and s where it is not (1 elsewhere)."""
    small = s < limit
    value = torch.full_like(s, coefficients[-1])
    near = torch.where(small, s, 0.0)
    for coefficient in reversed(coefficients[:-1]):
        value = value * near + coefficient
    return small, value, torch.where(small, 1.0, s)


def _sine(s: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``sin θ / θ`` of s = θ²."""
    small, series, s = _series(s, 0.05, [(-1) ** k / math.factorial(2 * k + 1) for k in range(6)])
    return torch.where(small, series, s.sqrt().sin() / s.sqrt())


def _versine(s: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``(1 − cos θ) / θ²`` of s = θ²."""
    small, series, s = _series(s, 0.05, [(-1) ** k / math.factorial(2 * k + 2) for k in range(6)])
    return torch.where(small, series, (1 - s.sqrt().cos()) / s)


def _third(s: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``(θ − sin θ) / θ³`` of s = θ²."""
    small, series, s = _series(s, 0.05, [(-1) ** k / math.factorial(2 * k + 3) for k in range(6)])
    return torch.where(small, series, (s.sqrt() - s.sqrt().sin()) / (s * s.sqrt()))


def _bernoulli(s: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``(1 − (θ/2) cot(θ/2)) / θ²`` of s = θ² up to (2π)², exclusive."""
    coefficients = [1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000]
    small, series, s = _series(s, 0.05, coefficients)
    half = 0.5 * s.sqrt()
    return torch.where(small, series, (1 - half * half.cos() / half.sin()) / s)


def _arcsine(s: Float[Tensor, "..."], cosine: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``θ / sin θ`` of s = sin² θ and cos θ, for θ from 0 to π/2."""
    small, series, s = _series(s, 0.003, [1.0, 1 / 6, 3 / 40, 5 / 112, 35 / 1152, 63 / 2816, 231 / 13312])
    return torch.where(small, series, torch.atan2(s.sqrt(), torch.where(small, 1.0, cosine)) / s.sqrt())
