"""Radial Field: atoms move along their edges, by an amount that only the distance decides."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import SiLU
from pyg_equivariant.nn.conv import Conv, segment_sum
from pyg_equivariant.nn.cutoff import CosineCutoff
from pyg_equivariant.nn.dense import Dense
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.mlp import MLP

__all__ = ["RadialField", "RadialFieldConv", "VelocityRadialFieldConv"]


def _length(vec: Float[Tensor, "N n"]) -> Float[Tensor, "N 1"]:
    """Length of vectors of any dimension; all its derivatives are 0, not NaN, where the vector is 0."""
    square = vec.square().sum(-1, keepdim=True)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


class RadialFieldConv(Conv):
    r"""One step along a radial field, for vectors of any dimension n.

    .. math:: Δr_i = C Σ_j (r_i - r_j) \, u_{ij} \, φ(‖r_{ij}‖, a_{ij})

    with an MLP φ of one hidden layer that ends in a tanh, for stability, features a of the edges, and the envelope u of
    the cutoff. Where :math:`a_{ij} = a_{ji}` the field is one of central forces: momentum is conserved.
    Reference: Köhler, Klein & Noé 2019, arXiv:1910.00753, eq. 8, with φ as in Satorras et al. 2021, arXiv:2102.09844,
    table 1 and section 5.1.

    Args:
        channels: Of the hidden layer.
        edge_channels: Of the edges' features a.
        avg_num_neighbors: 1/C; the published code takes the number of neighbours itself, which jumps at the cutoff.

    Example:
        >>> conv = RadialFieldConv(8, edge_channels=2)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> conv(edge_index, torch.ones(2, 5), torch.ones(2, 1), torch.ones(2, 2), num_nodes=3).shape
        torch.Size([3, 5])
    """

    avg_num_neighbors: Tensor

    def __init__(self, channels: int, *, edge_channels: int = 0, avg_num_neighbors: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))
        step = Dense(channels, 1, bias=False)
        # small, so that a deep stack does not fly apart at the start (as in EGNN's published code)
        nn.init.xavier_uniform_(step.weight, gain=0.001)
        self.field = nn.Sequential(MLP([1 + edge_channels, channels]), SiLU(), step, nn.Tanh())

    def forward(
        self,
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E n"],
        edge_env: Float[Tensor, "E 1"],
        edge_attr: Float[Tensor, "E A"],
        num_nodes: int,
    ) -> Float[Tensor, "N n"]:
        """The displacement of every node.

        Args:
            edge_index: Sources j and targets i.
            edge_vec: ``r_j − r_i``.
            edge_env: Envelope of each edge.
            edge_attr: Features of the edges that no reflection or rotation changes.
            num_nodes: N.
        """
        moved: Tensor = self.propagate(
            edge_index, size=(num_nodes, num_nodes), edge_vec=edge_vec, edge_env=edge_env, edge_attr=edge_attr
        )
        return moved / self.avg_num_neighbors

    def message(
        self, edge_vec: Float[Tensor, "E n"], edge_env: Float[Tensor, "E 1"], edge_attr: Float[Tensor, "E A"]
    ) -> Float[Tensor, "E n"]:
        """How far source j pushes target i."""
        push: Tensor = -edge_vec * (self.field(torch.cat([_length(edge_vec), edge_attr], -1)) * edge_env)
        return push


class VelocityRadialFieldConv(RadialFieldConv):
    r"""The same for particles that have a velocity v already: :math:`φ_v(‖v_i‖) \, v_i` is added to the displacement.

    Reference: Satorras, Hoogeboom & Welling 2021, arXiv:2102.09844, section 5.1.

    Args:
        channels: Of the hidden layers.
        edge_channels: Of the edges' features a.
        avg_num_neighbors: See :class:`RadialFieldConv`.

    Example:
        >>> conv = VelocityRadialFieldConv(8, edge_channels=2)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> conv(edge_index, torch.ones(2, 5), torch.ones(2, 1), torch.ones(2, 2), torch.ones(3, 5)).shape
        torch.Size([3, 5])
    """

    def __init__(self, channels: int, *, edge_channels: int = 0, avg_num_neighbors: float = 1.0) -> None:
        super().__init__(channels, edge_channels=edge_channels, avg_num_neighbors=avg_num_neighbors)
        self.velocity_mlp = MLP([1, channels, 1])

    def forward(  # type: ignore[override]
        self,
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E n"],
        edge_env: Float[Tensor, "E 1"],
        edge_attr: Float[Tensor, "E A"],
        vel: Float[Tensor, "N n"],
    ) -> Float[Tensor, "N n"]:
        """The displacement of every node.

        Args:
            edge_index: Sources j and targets i.
            edge_vec: ``r_j − r_i``.
            edge_env: Envelope of each edge.
            edge_attr: Features of the edges that no reflection or rotation changes.
            vel: Initial velocities.
        """
        pushed = super().forward(edge_index, edge_vec, edge_env, edge_attr, vel.shape[0])
        return pushed + self.velocity_mlp(_length(vel)) * vel


class RadialField(Representation):
    r"""Radial Field network of molecules.

    Reference: Köhler, Klein & Noé 2019, arXiv:1910.00753; 2020, arXiv:2006.02425; the layer as in the comparison of
    Satorras et al. 2021, arXiv:2102.09844. The papers move particles, all alike or with charges. Here the elements take
    the place of charges, :math:`a_{ij} = e(z_i) ∘ e(z_j)`. The field carries no scalars; a molecule's are read from the
    distances that the last move finds,

    .. math:: x_i = e(z_i) + C Σ_j u_{ij} \, ψ(‖r_{ij}‖, a_{ij})

    What is returned as l = 1, in every channel, is the accumulated displacement of the atoms.

    Args:
        channels: C.
        num_layers: Moves.
        cutoff: Radius in Å; ``math.inf`` is the papers' complete graph.
        avg_num_neighbors: Divides the sums over neighbours.

    Returns scalars and one vector, ``[N, 1, 4, C]``.
    """

    paper = "Köhler et al. 2019, arXiv:1910.00753"

    avg_num_neighbors: Tensor

    def __init__(
        self,
        channels: int = 64,
        num_layers: int = 4,
        *,
        cutoff: float = math.inf,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        super().__init__(channels, cutoff, lmax=1)
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))
        self.embedding = AtomEmbedding(channels)
        self.envelope = CosineCutoff(cutoff)
        self.convs = nn.ModuleList(
            RadialFieldConv(channels, edge_channels=channels, avg_num_neighbors=avg_num_neighbors)
            for _ in range(num_layers)
        )
        self.readout = MLP([1 + channels, channels, channels])

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 4 C"]:
        """Scalars and displacement of the atoms; the arguments are those of :class:`Representation`."""
        # of the atoms' own distances, not the moved ones: only these tell which edges the graph has
        edge_env = self.envelope(_length(edge_vec).squeeze(-1)).unsqueeze(-1)
        source, target = edge_index
        x: Tensor = self.embedding(z)
        edge_attr = x.index_select(0, source) * x.index_select(0, target)
        displacement = edge_vec.new_zeros(z.shape[0], 3)
        shift = displacement
        for conv in self.convs:
            edge_vec = edge_vec + shift[source] - shift[target]
            shift = conv(edge_index, edge_vec, edge_env, edge_attr, z.shape[0])
            displacement = displacement + shift
        near = self.readout(torch.cat([_length(edge_vec), edge_attr], -1)) * edge_env
        x = x + segment_sum(near, target, z.shape[0]) / self.avg_num_neighbors
        return torch.cat([x.unsqueeze(1), displacement.unsqueeze(-1).expand(-1, -1, self.channels)], 1).unsqueeze(1)
