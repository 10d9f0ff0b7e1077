"""DimeNet and DimeNet++: messages that know the angles between them."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.bessel import SphericalBesselBasis
from pyg_equivariant.nn.conv import Conv, segment_sum
from pyg_equivariant.nn.cutoff import PolynomialCutoff
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.geometry import safe_norm, unit_vectors
from pyg_equivariant.nn.orthogonal import orthogonal_dense
from pyg_equivariant.nn.radial import TrainableBesselBasis
from pyg_equivariant.nn.triplets import find_triplets

__all__ = ["DimeNet", "DimeNetConv", "DimeNetPlusPlus", "DimeNetPlusPlusConv"]


class DimeNetConv(Conv):
    r"""The directional message passing (arXiv:2003.03123, eq. 4 and figure 4), from edges k → j to edges j → i.

    .. math:: y_{ji} = Σ_{k ≠ i} \, (W s_{kj,ji})^\top \, \mathbf W \big( σ(W x_{kj}) ∘ W e_{kj} \big)

    with the bilinear :math:`\mathbf W`, ``[S', C, C]``. Its product with the messages is taken once an edge, so that a
    triplet costs S'·C.

    Args:
        channels: C.
        num_basis: K, columns of ``edge_rbf``.
        num_spherical: S, columns of ``triplet_sbf``.
        bilinear: S'.

    Example:
        >>> conv = DimeNetConv(8, num_basis=6, num_spherical=42)
        >>> triplet_index = torch.tensor([[2, 1], [0, 3]])
        >>> conv(torch.zeros(4, 8), triplet_index, torch.zeros(4, 6), torch.zeros(2, 42)).shape
        torch.Size([4, 8])
    """

    def __init__(self, channels: int, num_basis: int, num_spherical: int, *, bilinear: int = 8) -> None:
        super().__init__()
        self.dense = orthogonal_dense(channels, channels)
        self.radial = orthogonal_dense(num_basis, channels, bias=False)
        self.angular = orthogonal_dense(num_spherical, bilinear, bias=False)
        self.weight = nn.Parameter(torch.randn(channels, bilinear, channels) * (2.0 / channels))

    def forward(
        self,
        x: Float[Tensor, "E C"],
        triplet_index: Int[Tensor, "2 T"],
        edge_rbf: Float[Tensor, "E K"],
        triplet_sbf: Float[Tensor, "T S"],
    ) -> Float[Tensor, "E C"]:
        """The sum over the edges that meet each edge.

        Args:
            x: Messages of the edges.
            triplet_index: Row 0 the edge k → j, row 1 the edge j → i.
            edge_rbf: Radial basis, zero from the cutoff on.
            triplet_sbf: Spherical basis of the length of k → j and the angle.
        """
        x = functional.silu(self.dense(x)) * self.radial(edge_rbf)
        mixed = (x @ self.weight.flatten(0, 1).T).unflatten(1, self.weight.shape[:2])
        y: Tensor = self.propagate(triplet_index, size=(len(x), len(x)), x=mixed, sbf=self.angular(triplet_sbf))
        return y

    def message(self, x_j: Float[Tensor, "T C B"], sbf: Float[Tensor, "T B"]) -> Float[Tensor, "T C"]:
        """What the edge k → j sends to the edge j → i."""
        return torch.bmm(x_j, sbf.unsqueeze(-1)).squeeze(-1)


class DimeNetPlusPlusConv(Conv):
    r"""The directional message passing of DimeNet++ (arXiv:2011.14115, figure 1), from edges k → j to edges j → i.

    .. math:: y_{ji} = σ W_↑ Σ_{k ≠ i} (W_2 W_1 s_{kj,ji}) ∘ σ W_↓ \big( σ(W x_{kj}) ∘ W_2' W_1' e_{kj} \big)

    A product channel by channel in fewer channels stands in for DimeNet's bilinear layer.

    Args:
        channels: C.
        num_basis: K, columns of ``edge_rbf``.
        num_spherical: S, columns of ``triplet_sbf``.
        bottleneck: Channels between W_1 and W_2.

    Example:
        >>> conv = DimeNetPlusPlusConv(8, num_basis=6, num_spherical=42)
        >>> triplet_index = torch.tensor([[2, 1], [0, 3]])
        >>> conv(torch.zeros(4, 8), triplet_index, torch.zeros(4, 6), torch.zeros(2, 42)).shape
        torch.Size([4, 8])
    """

    def __init__(self, channels: int, num_basis: int, num_spherical: int, *, bottleneck: int = 8) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.dense = orthogonal_dense(channels, channels)
        self.radial = nn.Sequential(
            orthogonal_dense(num_basis, bottleneck, bias=False), orthogonal_dense(bottleneck, channels, bias=False)
        )
        self.angular = nn.Sequential(
            orthogonal_dense(num_spherical, bottleneck, bias=False), orthogonal_dense(bottleneck, inner, bias=False)
        )
        self.down = orthogonal_dense(channels, inner, bias=False)
        self.up = orthogonal_dense(inner, channels, bias=False)

    def forward(
        self,
        x: Float[Tensor, "E C"],
        triplet_index: Int[Tensor, "2 T"],
        edge_rbf: Float[Tensor, "E K"],
        triplet_sbf: Float[Tensor, "T S"],
    ) -> Float[Tensor, "E C"]:
        """The sum over the edges that meet each edge; the arguments are those of :class:`DimeNetConv`."""
        x = functional.silu(self.down(functional.silu(self.dense(x)) * self.radial(edge_rbf)))
        y: Tensor = self.propagate(triplet_index, size=(len(x), len(x)), x=x, sbf=self.angular(triplet_sbf))
        return functional.silu(self.up(y))

    def message(self, x_j: Float[Tensor, "T D"], sbf: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """What the edge k → j sends to the edge j → i."""
        return x_j * sbf


class _Residual(nn.Module):
    """``x + σ(W₂ σ(W₁ x))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = orthogonal_dense(channels, channels)
        self.outer = orthogonal_dense(channels, channels)

    def forward(self, x: Float[Tensor, "E C"]) -> Float[Tensor, "E C"]:
        return x + functional.silu(self.outer(functional.silu(self.inner(x))))


class _MessageEmbedding(nn.Module):
    """``m_ji = σ(W [z_i, z_j, σ(W' e_ji)])`` (arXiv:2003.03123, figure 4), the columns of W by what they read."""

    def __init__(self, channels: int, num_basis: int) -> None:
        super().__init__()
        self.atom = AtomEmbedding(channels)
        self.radial = orthogonal_dense(num_basis, channels)
        self.pair = orthogonal_dense(channels, 2 * channels, bias=False)
        self.edge = orthogonal_dense(channels, channels)

    def forward(
        self, z: Int[Tensor, " N"], edge_index: Int[Tensor, "2 E"], edge_rbf: Float[Tensor, "E K"]
    ) -> Float[Tensor, "E C"]:
        source, target = edge_index
        receiver, sender = self.pair(self.atom(z)).chunk(2, -1)
        atoms = receiver.index_select(0, target) + sender.index_select(0, source)
        return functional.silu(atoms + self.edge(functional.silu(self.radial(edge_rbf))))


class _Interaction(nn.Module):
    """What surrounds the message passing (arXiv:2003.03123, figure 4): dense layers, residual layers, a skip."""

    def __init__(self, channels: int, conv: DimeNetConv | DimeNetPlusPlusConv) -> None:
        super().__init__()
        self.conv = conv
        self.own = orthogonal_dense(channels, channels)
        self.before = _Residual(channels)
        self.dense = orthogonal_dense(channels, channels)
        self.after = nn.Sequential(_Residual(channels), _Residual(channels))

    def forward(
        self, x: Float[Tensor, "E C"], triplet_index: Tensor, edge_rbf: Tensor, triplet_sbf: Tensor
    ) -> Float[Tensor, "E C"]:
        y = functional.silu(self.own(x)) + self.conv(x, triplet_index, edge_rbf, triplet_sbf)
        y = functional.silu(self.dense(self.before(y)))
        out: Tensor = self.after(x + y)
        return out


class _Output(nn.Module):
    """``W MLP(P Σ_j W' e_ji ∘ m_ji)``, three dense layers and a linear one; ``project`` is P."""

    def __init__(self, channels: int, num_basis: int, width: int, project: nn.Module) -> None:
        super().__init__()
        self.radial = orthogonal_dense(num_basis, channels, bias=False)
        self.project = project
        self.layers = nn.ModuleList(orthogonal_dense(width, width) for _ in range(3))
        self.final = orthogonal_dense(width, channels, bias=False)

    def forward(
        self, x: Float[Tensor, "E C"], edge_rbf: Float[Tensor, "E K"], target: Int[Tensor, " E"], num_atoms: int
    ) -> Float[Tensor, "N C"]:
        y: Tensor = self.project(segment_sum(self.radial(edge_rbf) * x, target, num_atoms))
        for layer in self.layers:
            y = functional.silu(layer(y))
        out: Tensor = self.final(y)
        return out


def _legendre(x: Float[Tensor, " T"], num_degrees: int) -> Float[Tensor, "T L"]:
    """Y_l0 of a cosine: Legendre polynomials, whose squares have the integral 1 over the sphere."""
    values = [torch.ones_like(x), x]
    for degree in range(1, num_degrees - 1):
        values.append(((2 * degree + 1) * x * values[-1] - degree * values[-2]) / (degree + 1))
    norms = [math.sqrt((2 * degree + 1) / (4 * math.pi)) for degree in range(num_degrees)]
    return torch.stack([norm * value for norm, value in zip(norms, values, strict=False)], -1)


class DimeNet(Representation):
    r"""Directional message passing neural network, invariant.

    Reference: Gasteiger, Groß & Günnemann 2020, arXiv:2003.03123, section 5 and figure 4. Each edge j → i has an
    embedding that meets those of the edges k → j in layers of :class:`DimeNetConv`, given the length of k → j and the
    angle between the two in a basis of the ball (eqs. 6 and 7):

    .. math::
        e_{k}(d) = u(d) \, \tilde e_k(d), \qquad s_{lk}(d, α) = \frac{u(d)}{d} \, j_l(z_{lk} d) \, Y_{l0}(α)

    with lengths in units of the cutoff and the envelope u of eq. 8. The angle, at j, enters as its cosine: collinear
    atoms have all derivatives. An output block after the embedding and each layer sums the messages at their target;
    the paper's targets are the sum of all blocks. Here that sum has C components, for a head to read.

    As in the authors' code, which all published numbers come from, the envelope of s is divided by d. Not as in their
    code, but as in eq. 4, the angle of DimeNet is that between k → j and j → i.

    Args:
        channels: C.
        num_layers: Interaction blocks.
        cutoff: Radius in Å.
        num_basis: Radial functions, of the edges and a degree of the angles.
        num_degrees: Degrees l of the angles, from 0.

    Returns scalars, ``[N, 1, 1, C]``.
    """

    paper = "Gasteiger et al. 2020, arXiv:2003.03123"
    embedding_steps = 1

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 6,
        *,
        cutoff: float = 5.0,
        num_basis: int = 6,
        num_degrees: int = 7,
    ) -> None:
        super().__init__(channels, cutoff)
        if not math.isfinite(cutoff):
            raise ValueError(f"the bases of {type(self).__name__} fill a ball of finite radius in Å, got {cutoff}")
        self.num_basis = num_basis
        self.num_degrees = num_degrees
        self.envelope = PolynomialCutoff(1.0)
        self.radial = TrainableBesselBasis(num_basis, 1.0)
        self.spherical = SphericalBesselBasis(num_degrees, num_basis)
        self.embedding = _MessageEmbedding(channels, num_basis)
        self.interactions = nn.ModuleList(_Interaction(channels, self._conv()) for _ in range(num_layers))
        self.outputs = nn.ModuleList(self._output() for _ in range(num_layers + 1))

    def _conv(self) -> DimeNetConv | DimeNetPlusPlusConv:
        return DimeNetConv(self.channels, self.num_basis, self.num_degrees * self.num_basis)

    def _output(self) -> _Output:
        return _Output(self.channels, self.num_basis, self.channels, nn.Identity())

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 1 C"]:
        """Scalars of the atoms; the arguments are those of :class:`Representation`."""
        length = safe_norm(edge_vec) / self.cutoff
        envelope = self.envelope(length).unsqueeze(-1)
        edge_rbf = envelope * self.radial(length)
        triplet_index = find_triplets(edge_index, edge_vec, len(z))
        triplet_sbf = self._spherical_basis(edge_vec, length, envelope, triplet_index)
        target = edge_index[1]
        message = self.embedding(z, edge_index, edge_rbf)
        x: Tensor = self.outputs[0](message, edge_rbf, target, len(z))
        for interaction, output in zip(self.interactions, self.outputs[1:], strict=True):
            message = interaction(message, triplet_index, edge_rbf, triplet_sbf)
            x = x + output(message, edge_rbf, target, len(z))
        return x[:, None, None]

    def _spherical_basis(
        self,
        edge_vec: Float[Tensor, "E 3"],
        length: Float[Tensor, " E"],
        envelope: Float[Tensor, "E 1"],
        triplet_index: Int[Tensor, "2 T"],
    ) -> Float[Tensor, "T S"]:
        incoming, outgoing = triplet_index
        direction = unit_vectors(edge_vec, length * self.cutoff)
        cosine = -(direction.index_select(0, incoming) * direction.index_select(0, outgoing)).sum(-1)
        zero = (length == 0).unsqueeze(-1)
        factor = torch.where(zero, 0.0, envelope / torch.where(zero, 1.0, length.unsqueeze(-1)))
        radial = factor.unsqueeze(-1) * self.spherical(length)
        return (radial.index_select(0, incoming) * _legendre(cosine, self.num_degrees).unsqueeze(-1)).flatten(1)


class DimeNetPlusPlus(DimeNet):
    """DimeNet++, eight times faster than :class:`DimeNet` and more exact.

    Reference: Gasteiger et al. 2020, arXiv:2011.14115, section 3. :class:`DimeNetPlusPlusConv` takes the place of the
    bilinear layer, there are fewer blocks, and the output blocks have twice the channels. Agrees with
    ``torch_geometric.nn.DimeNetPlusPlus`` with as many outputs as channels.

    Args:
        channels: C.
        num_layers: Interaction blocks.
        cutoff: Radius in Å.
        num_basis: Radial functions, of the edges and a degree of the angles.
        num_degrees: Degrees l of the angles, from 0.

    Returns scalars, ``[N, 1, 1, C]``.
    """

    paper = "Gasteiger et al. 2020, arXiv:2011.14115"

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 4,
        *,
        cutoff: float = 5.0,
        num_basis: int = 6,
        num_degrees: int = 7,
    ) -> None:
        super().__init__(channels, num_layers, cutoff=cutoff, num_basis=num_basis, num_degrees=num_degrees)

    def _conv(self) -> DimeNetPlusPlusConv:
        return DimeNetPlusPlusConv(self.channels, self.num_basis, self.num_degrees * self.num_basis)

    def _output(self) -> _Output:
        width = 2 * self.channels
        return _Output(self.channels, self.num_basis, width, orthogonal_dense(self.channels, width, bias=False))
