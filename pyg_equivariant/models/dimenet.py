"""DimeNet and DimeNet++: messages that know the angles between them."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import silu
from pyg_equivariant.nn.bessel import SphericalBesselBasis
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.conv import Conv, segment_sum
from pyg_equivariant.nn.cutoff import PolynomialCutoff
from pyg_equivariant.nn.dense import Dense
from pyg_equivariant.nn.dense_chain import DenseChain
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.orthogonal import orthogonal_dense
from pyg_equivariant.nn.paths import Paths, find_paths, sum_over_paths, sum_products_over_paths
from pyg_equivariant.nn.radial import TrainableBesselBasis

__all__ = ["DimeNet", "DimeNetConv", "DimeNetPlusPlus", "DimeNetPlusPlusConv"]


class DimeNetConv(Conv):
    r"""The directional message passing (arXiv:2003.03123, eq. 4 and figure 4), from edges k → j to edges j → i.

    .. math:: y_{ji} = Σ_{k ≠ i} \, (W s_{kj,ji})^\top \, \mathbf W \big( σ(W x_{kj}) ∘ W e_{kj} \big), \qquad
        s_{kj,ji} = s_{lk}(d_{kj}) \, Y_{l0}(α_{kji})

    with the bilinear :math:`\mathbf W`, ``[C, S, C]``. Only Y depends on both edges. All else is done once an edge, and
    so is the sum over the edges that meet in an atom, see :func:`~pyg_equivariant.nn.paths.sum_over_paths`.

    Args:
        channels: C.
        num_basis: K, radial functions of the edges, and of the angles a degree.
        num_degrees: L.
        bilinear: S.

    Example:
        >>> conv = DimeNetConv(8, num_basis=6, num_degrees=7)
        >>> edge_index = torch.tensor([[1, 0, 2, 1], [0, 1, 1, 2]])
        >>> edge_vec = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
        >>> paths = find_paths(edge_index, edge_vec, 3, num_degrees=7)
        >>> conv(torch.zeros(4, 8), torch.zeros(4, 6), torch.zeros(4, 7, 6), paths).shape
        torch.Size([4, 8])
    """

    def __init__(self, channels: int, num_basis: int, num_degrees: int, *, bilinear: int = 8) -> None:
        super().__init__()
        self.dense = DenseChain([orthogonal_dense(channels, channels)])
        self.radial = orthogonal_dense(num_basis, channels, bias=False)
        self.angular = orthogonal_dense(num_degrees * num_basis, bilinear, bias=False)
        self.weight = nn.Parameter(torch.randn(channels, bilinear, channels) * (2.0 / channels))

    def forward(
        self,
        x: Float[Tensor, "E C"],
        edge_rbf: Float[Tensor, "E K"],
        edge_sbf: Float[Tensor, "E L K"],
        paths: Paths,
    ) -> Float[Tensor, "E C"]:
        """The sum over the edges that meet each edge.

        Args:
            x: Messages of the edges.
            edge_rbf: Radial basis e, zero from the cutoff on.
            edge_sbf: Radial part of the spherical basis s, likewise.
            paths: Pairs of edges that meet, with their angles in L degrees.
        """
        x = self.dense(x) * self.radial(edge_rbf)
        mixed = (x @ self.weight.transpose(0, 1).flatten(0, 1).T).unflatten(1, (-1, x.shape[1]))
        return self.message_and_aggregate(paths, torch.bmm(_by_degree(edge_sbf, self.angular), mixed))

    def message_and_aggregate(self, paths: Paths, values: Float[Tensor, "E L C"]) -> Float[Tensor, "E C"]:
        """Each edge j → i receives the values of the edges k → j, weighted by the angles."""
        return sum_over_paths(paths, values)


class DimeNetPlusPlusConv(Conv):
    r"""The directional message passing of DimeNet++ (arXiv:2011.14115, figure 1), from edges k → j to edges j → i.

    .. math:: y_{ji} = σ W_↑ Σ_{k ≠ i} (W_2 W_1 s_{kj,ji}) ∘ σ W_↓ \big( σ(W x_{kj}) ∘ W_2' W_1' e_{kj} \big)

    A product channel by channel in half as many channels stands in for DimeNet's bilinear layer.

    Args:
        channels: C.
        num_basis: K, radial functions of the edges, and of the angles a degree.
        num_degrees: L.
        bottleneck: Channels between W_1 and W_2.

    Example:
        >>> conv = DimeNetPlusPlusConv(8, num_basis=6, num_degrees=7)
        >>> edge_index = torch.tensor([[1, 0, 2, 1], [0, 1, 1, 2]])
        >>> edge_vec = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
        >>> paths = find_paths(edge_index, edge_vec, 3, num_degrees=7)
        >>> conv(torch.zeros(4, 8), torch.zeros(4, 6), torch.zeros(4, 7, 6), paths).shape
        torch.Size([4, 8])
    """

    def __init__(self, channels: int, num_basis: int, num_degrees: int, *, bottleneck: int = 8) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.dense = DenseChain([orthogonal_dense(channels, channels)])
        self.radial = nn.Sequential(
            orthogonal_dense(num_basis, bottleneck, bias=False), orthogonal_dense(bottleneck, channels, bias=False)
        )
        self.angular = orthogonal_dense(num_degrees * num_basis, bottleneck, bias=False)
        self.spread = orthogonal_dense(bottleneck, inner, bias=False)
        self.down = DenseChain([orthogonal_dense(channels, inner, bias=False)])
        self.up = DenseChain([orthogonal_dense(inner, channels, bias=False)])

    def forward(
        self,
        x: Float[Tensor, "E C"],
        edge_rbf: Float[Tensor, "E K"],
        edge_sbf: Float[Tensor, "E L K"],
        paths: Paths,
    ) -> Float[Tensor, "E C"]:
        """The sum over the edges that meet each edge; the arguments are those of :class:`DimeNetConv`."""
        x = self.down(self.dense(x) * self.radial(edge_rbf))
        received = self.message_and_aggregate(paths, _by_degree(edge_sbf, self.angular), x)
        out: Tensor = self.up(received)
        return out

    def message_and_aggregate(
        self, paths: Paths, edge_sbf: Float[Tensor, "E L S"], x: Float[Tensor, "E D"]
    ) -> Float[Tensor, "E D"]:
        """Each edge j → i receives the products of the edges k → j, weighted by the angles."""
        return sum_products_over_paths(paths, edge_sbf, self.spread.weight.T, x)


def _by_degree(edge_sbf: Float[Tensor, "E L K"], linear: nn.Linear) -> Float[Tensor, "E L S"]:
    """The terms of ``linear`` of all degrees, before they are summed."""
    weight = linear.weight.unflatten(1, edge_sbf.shape[1:])  # [S, L, K]
    return torch.bmm(edge_sbf.transpose(0, 1), weight.permute(1, 2, 0)).transpose(0, 1)


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
        return silu(atoms + self.edge(silu(self.radial(edge_rbf))))


class _Interaction(nn.Module):
    """What surrounds the message passing (arXiv:2003.03123, figure 4): dense layers, residual layers, a skip."""

    def __init__(self, channels: int, conv: DimeNetConv | DimeNetPlusPlusConv) -> None:
        super().__init__()
        self.conv = conv
        self.own = DenseChain([orthogonal_dense(channels, channels)])
        self.before = DenseChain([orthogonal_dense(channels, channels) for _ in range(3)], skips=[1])
        self.after = DenseChain([orthogonal_dense(channels, channels) for _ in range(4)], skips=[1, 3])

    def forward(
        self, x: Float[Tensor, "E C"], edge_rbf: Tensor, edge_sbf: Tensor, paths: Paths
    ) -> Float[Tensor, "E C"]:
        y = self.before(self.own(x) + self.conv(x, edge_rbf, edge_sbf, paths))
        out: Tensor = self.after(x + y)
        return out


class _Output(nn.Module):
    """``W MLP(P Σ_j W' e_ji ∘ m_ji)``, three dense layers and a linear one; ``project`` is P.

    W is zero at the start, as in the authors' code: messages are thousands there.
    """

    def __init__(self, channels: int, num_basis: int, width: int, project: nn.Module) -> None:
        super().__init__()
        self.radial = orthogonal_dense(num_basis, channels, bias=False)
        self.project = project
        self.layers = DenseChain([orthogonal_dense(width, width) for _ in range(3)])
        self.final = Dense(width, channels, bias=False)
        nn.init.zeros_(self.final.weight)

    def forward(
        self, x: Float[Tensor, "E C"], edge_rbf: Float[Tensor, "E K"], target: Int[Tensor, " E"], num_atoms: int
    ) -> Float[Tensor, "N C"]:
        y = self.project(segment_sum(self.radial(edge_rbf) * x, target, num_atoms))
        out: Tensor = self.final(self.layers(y))
        return out


class DimeNet(Representation):
    r"""Directional message passing neural network, invariant.

    Reference: Gasteiger, Groß & Günnemann 2020, arXiv:2003.03123, section 5 and figure 4. Each edge j → i has an
    embedding that meets those of the edges k → j in layers of :class:`DimeNetConv`, given the length of k → j and the
    angle between the two in a basis of the ball (eqs. 6 and 7):

    .. math::
        e_{k}(d) = u(d) \, \tilde e_k(d), \qquad s_{lk}(d, α) = \frac{u(d)}{d} \, j_l(z_{lk} d) \, Y_{l0}(α)

    with lengths in units of the cutoff and the envelope u of eq. 8. An output block after the embedding and each layer
    sums the messages at their target; the paper's targets are the sum of all blocks. Here that sum has C components,
    for a head to read.

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
        return DimeNetConv(self.channels, self.num_basis, self.num_degrees)

    def _output(self) -> _Output:
        return _Output(self.channels, self.num_basis, self.channels, nn.Identity())

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 1 C"]:
        """Scalars of the atoms; the arguments are those of :class:`Representation`."""
        length = stored(safe_norm(edge_vec) / self.cutoff)
        envelope = stored(self.envelope(length))
        edge_rbf = stored(envelope.unsqueeze(-1) * self.radial(length))
        zero = length == 0
        inverse = stored(torch.where(zero, 0.0, envelope / torch.where(zero, 1.0, length)))
        edge_sbf = stored(inverse.view(-1, 1, 1) * self.spherical(length))
        paths = find_paths(edge_index, edge_vec, z.shape[0], self.num_degrees)
        target = edge_index[1]
        message = self.embedding(z, edge_index, edge_rbf)
        x: Tensor = self.outputs[0](message, edge_rbf, target, z.shape[0])
        for interaction, output in zip(self.interactions, self.outputs[1:], strict=True):
            message = interaction(message, edge_rbf, edge_sbf, paths)
            x = x + output(message, edge_rbf, target, z.shape[0])
        return x[:, None, None]


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
        return DimeNetPlusPlusConv(self.channels, self.num_basis, self.num_degrees)

    def _output(self) -> _Output:
        width = 2 * self.channels
        return _Output(self.channels, self.num_basis, width, orthogonal_dense(self.channels, width, bias=False))
