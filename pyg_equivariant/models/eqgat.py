"""EQGAT: attention over each scalar channel, with vectors and their cross products."""

from typing import Optional

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import silu
from pyg_equivariant.nn.attention import edge_softmax
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.conv import Conv
from pyg_equivariant.nn.cutoff import Cutoff, PolynomialCutoff
from pyg_equivariant.nn.dense import linear
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.geometry import safe_norm, unit_vectors
from pyg_equivariant.nn.mlp import MLP, dense
from pyg_equivariant.nn.radial import BesselBasis, RadialBasis

__all__ = ["EQGAT", "EQGATConv", "EQGATFirstConv", "EQGATUpdate"]


class _Attention(Conv):
    """What the message blocks share: an MLP of each edge that makes scores and gates."""

    def __init__(self, channels: int, vector_channels: int, num_basis: int, num_gates: int) -> None:
        super().__init__()
        self.sizes = [channels, num_gates * vector_channels]
        self.edge_in = dense(2 * channels + num_basis, channels)
        self.edge_out = dense(channels, sum(self.sizes))
        self.value = dense(channels, channels)

    def terms(self, scalar: Float[Tensor, "N C"], edge_rbf: Float[Tensor, "E K"]) -> dict[str, Tensor]:
        """The MLP's first layer, a map of [s_i, s_j, f], taken apart: its large blocks run over atoms, not edges."""
        channels = scalar.shape[1]
        target, source, edge = self.edge_in.weight.split([channels, channels, edge_rbf.shape[1]], 1)
        return {
            "target": linear(scalar, target, self.edge_in.bias),
            "source": linear(scalar, source),
            "edge": linear(edge_rbf, edge),
            "value": self.value(scalar),
        }

    def attend(
        self, hidden: Float[Tensor, "E C"], envelope: Float[Tensor, " E"], index: Tensor, size: int | None
    ) -> tuple[Float[Tensor, "E C"], Float[Tensor, "E G"]]:
        """The attention of the channels, and the gates times the weights of the mean."""
        size = int(index.max()) + 1 if size is None else size
        score, gate = self.edge_out(silu(hidden)).split(self.sizes, 1)
        mean = edge_softmax(torch.zeros_like(envelope), envelope, index, size)
        return edge_softmax(score, envelope, index, size), gate * mean.unsqueeze(-1)


class EQGATFirstConv(_Attention):
    r"""The message block of the first layer: scalars s attend to their neighbours, vectors v arise from directions.

    .. math::
        [a_{ij}, g_{ij}] = \mathrm{MLP}([s_i, s_j, f(d_{ij})]), \qquad
        Δs_i = \sum_j α_{ij} ∘ (W s_j + b), \qquad
        Δv_i = \sum_j n_{ij} \, g_{ij} \, \hat r_{ij}

    α is the softmax of a over the edges of atom i, one for each channel, and n their mean, the softmax of equal scores.
    Both hold the envelope as :func:`~pyg_equivariant.nn.attention.edge_softmax` says, so that atoms come and go
    smoothly at the cutoff, where those of the paper would jump.

    Args:
        channels: C.
        vector_channels: D.
        num_basis: Columns of ``edge_rbf``.

    Example:
        >>> conv = EQGATFirstConv(8, 2, num_basis=4)
        >>> edges = torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2)
        >>> ds, dv = conv(torch.zeros(3, 8), *edges)
        >>> ds.shape, dv.shape
        (torch.Size([3, 8]), torch.Size([3, 3, 2]))
    """

    def __init__(self, channels: int, vector_channels: int, num_basis: int) -> None:
        super().__init__(channels, vector_channels, num_basis, num_gates=1)

    def forward(
        self,
        scalar: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        edge_dir: Float[Tensor, "E 3"],
        edge_rbf: Float[Tensor, "E K"],
        envelope: Float[Tensor, " E"],
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N 3 D"]]:
        """The update of the scalars, and the first vectors.

        Args:
            scalar: Scalars of the atoms.
            edge_index: Sources j and targets i.
            edge_dir: Unit vectors from i to j.
            edge_rbf: Radial basis.
            envelope: Zero from the cutoff on.
        """
        terms = self.terms(scalar, edge_rbf)
        size = (scalar.shape[0], scalar.shape[0])
        ds, dv = self.propagate(edge_index, size=size, edge_dir=edge_dir, envelope=envelope, **terms)
        return ds, dv

    def message(
        self,
        target_i: Float[Tensor, "E C"],
        source_j: Float[Tensor, "E C"],
        edge: Float[Tensor, "E C"],
        value_j: Float[Tensor, "E C"],
        edge_dir: Float[Tensor, "E 3"],
        envelope: Float[Tensor, " E"],
        index: Tensor,
        size_i: Optional[int],  # noqa: UP045  (see Conv)
    ) -> tuple[Float[Tensor, "E C"], Float[Tensor, "E 3 D"]]:
        """What source j sends to target i: scalars and vectors."""
        attention, gate = self.attend(target_i + source_j + edge, envelope, index, size_i)
        return attention * value_j, gate.unsqueeze(1) * edge_dir.unsqueeze(-1)


class EQGATConv(_Attention):
    r"""The message block of the later layers: :class:`EQGATFirstConv` where vectors pass on, too.

    .. math::
        Δv_i = \sum_j n_{ij} \big(g^0_{ij} \, \hat r_{ij} + g^1_{ij} ∘ U v_j + g^2_{ij} ∘ (v_i × U v_j)\big)

    The cross product makes the group SE(3).

    Args:
        channels: C.
        vector_channels: D.
        num_basis: Columns of ``edge_rbf``.

    Example:
        >>> conv = EQGATConv(8, 2, num_basis=4)
        >>> edges = torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2)
        >>> ds, dv = conv(torch.zeros(3, 8), torch.zeros(3, 3, 2), *edges)
        >>> ds.shape, dv.shape
        (torch.Size([3, 8]), torch.Size([3, 3, 2]))
    """

    def __init__(self, channels: int, vector_channels: int, num_basis: int) -> None:
        super().__init__(channels, vector_channels, num_basis, num_gates=3)
        self.mix = dense(vector_channels, vector_channels, bias=False)

    def forward(
        self,
        scalar: Float[Tensor, "N C"],
        vector: Float[Tensor, "N 3 D"],
        edge_index: Int[Tensor, "2 E"],
        edge_dir: Float[Tensor, "E 3"],
        edge_rbf: Float[Tensor, "E K"],
        envelope: Float[Tensor, " E"],
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N 3 D"]]:
        """The updates of scalars and vectors.

        Args:
            scalar: Scalars of the atoms.
            vector: Vectors of the atoms.
            edge_index: Sources j and targets i.
            edge_dir: Unit vectors from i to j.
            edge_rbf: Radial basis.
            envelope: Zero from the cutoff on.
        """
        terms = {**self.terms(scalar, edge_rbf), "vector": self.mix(vector)}
        size = (scalar.shape[0], scalar.shape[0])
        ds, dv, axis = self.propagate(edge_index, size=size, edge_dir=edge_dir, envelope=envelope, **terms)
        return ds, dv + torch.linalg.cross(vector, axis, dim=1)  # v_i is a factor of the whole sum

    def message(
        self,
        target_i: Float[Tensor, "E C"],
        source_j: Float[Tensor, "E C"],
        edge: Float[Tensor, "E C"],
        value_j: Float[Tensor, "E C"],
        vector_j: Float[Tensor, "E 3 D"],
        edge_dir: Float[Tensor, "E 3"],
        envelope: Float[Tensor, " E"],
        index: Tensor,
        size_i: Optional[int],  # noqa: UP045  (see Conv)
    ) -> tuple[Float[Tensor, "E C"], Float[Tensor, "E 3 D"], Float[Tensor, "E 3 D"]]:
        """What source j sends to target i: scalars, vectors, and vectors to be crossed with the target's own."""
        attention, gate = self.attend(target_i + source_j + edge, envelope, index, size_i)
        along, pass_on, turn = gate.unsqueeze(1).chunk(3, -1)
        return attention * value_j, along * edge_dir.unsqueeze(-1) + pass_on * vector_j, turn * vector_j


class EQGATUpdate(nn.Module):
    r"""The update block, within each atom.

    .. math::
        [t_i, Δs_i] = \mathrm{MLP}([s_i, ‖V v_i‖]), \qquad Δv_i = W (t_i ∘ U v_i)

    Args:
        channels: C.
        vector_channels: D.
    """

    def __init__(self, channels: int, vector_channels: int) -> None:
        super().__init__()
        self.sizes = [vector_channels, channels]
        self.mix = dense(vector_channels, 2 * vector_channels, bias=False)
        self.context = MLP([channels + vector_channels, channels, channels + vector_channels])
        self.out = dense(vector_channels, vector_channels, bias=False)

    def forward(
        self, scalar: Float[Tensor, "N C"], vector: Float[Tensor, "N 3 D"]
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N 3 D"]]:
        """The updates of scalars and vectors."""
        left, right = self.mix(vector).chunk(2, -1)
        norm = (left.square().sum(1) + 1e-8).sqrt()  # smooth where the vectors vanish
        gate, ds = self.context(torch.cat([scalar, norm], -1)).split(self.sizes, 1)
        return ds, self.out(gate.unsqueeze(1) * right)


class EQGAT(Representation):
    """Equivariant graph attention network, with vectors in fewer channels than scalars.

    Reference: Le, Noé & Clevert 2022, arXiv:2202.09891, with the defaults of the authors' code. Each layer
    is a message block and an update block, both added to the features.

    Args:
        channels: C.
        num_layers: Number of layers.
        vector_channels: Channels of the vectors, D.
        cutoff: Radius in Å.
        radial: Basis of the edge lengths; 32 Bessel functions if not given.
        envelope: Polynomial of p = 6 if not given.

    Returns scalars and vectors, ``[N, 1, 4, C]``; the vectors are mixed to C channels at the end.
    """

    paper = "Le, Noé & Clevert 2022, arXiv:2202.09891"
    group = "SE(3)"

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 5,
        *,
        vector_channels: int = 32,
        cutoff: float = 5.0,
        radial: RadialBasis | None = None,
        envelope: Cutoff | None = None,
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"EQGAT needs at least one layer, got num_layers={num_layers}")
        super().__init__(channels, cutoff, lmax=1)
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or BesselBasis(32, cutoff)
        self.envelope = envelope or PolynomialCutoff(cutoff)
        sizes = channels, vector_channels, self.radial.num_basis
        self.first = EQGATFirstConv(*sizes)
        self.convs = nn.ModuleList(EQGATConv(*sizes) for _ in range(num_layers - 1))
        self.updates = nn.ModuleList(EQGATUpdate(channels, vector_channels) for _ in range(num_layers))
        self.vectors = dense(vector_channels, channels, bias=False)

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 4 C"]:
        """Scalars and vectors of the atoms; the arguments are those of :class:`Representation`."""
        edge_len = safe_norm(edge_vec)
        edge_dir, envelope = stored(unit_vectors(edge_vec, edge_len)), stored(self.envelope(edge_len))
        edges = edge_index, edge_dir, stored(self.radial(edge_len) * envelope.unsqueeze(-1)), envelope
        scalar = self.embedding(z)
        ds, vector = self.first(scalar, *edges)
        scalar = scalar + ds
        scalar, vector = _add(scalar, vector, self.updates[0](scalar, vector))
        for conv, update in zip(self.convs, self.updates[1:], strict=True):
            scalar, vector = _add(scalar, vector, conv(scalar, vector, *edges))
            scalar, vector = _add(scalar, vector, update(scalar, vector))
        return torch.cat([scalar.unsqueeze(1), self.vectors(vector)], 1).unsqueeze(1)


def _add(
    scalar: Float[Tensor, "N C"],
    vector: Float[Tensor, "N 3 D"],
    update: tuple[Float[Tensor, "N C"], Float[Tensor, "N 3 D"]],
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N 3 D"]]:
    return scalar + update[0], vector + update[1]
