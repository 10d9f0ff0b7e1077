"""EGNN: messages from squared distances, coordinates that move along the edges."""

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
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.mlp import MLP, PairMLP

__all__ = ["EGNN", "EGNNConv", "FrozenEGNN", "FrozenEGNNConv", "VelocityEGNNConv"]


class FrozenEGNNConv(Conv):
    r"""The layer without its coordinate update (eqs. 3, 5, 6), for vectors of any dimension n.

    .. math::
        m_{ij} = e_{ij} \, u_{ij} \, φ_e(x_i, x_j, ‖r_{ij}‖^2), \qquad
        Δx_i = φ_h(x_i, Σ_j m_{ij})

    where :math:`e_{ij} = σ(φ_{inf}(m_{ij}))` infers the edge (section 3.3, eq. 8) and :math:`u_{ij}` is the
    envelope of the cutoff (1 in the paper, whose graphs are complete).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edge_mlp = PairMLP(channels, 1, [channels, channels])
        self.activation = SiLU()
        self.edge_gate = nn.Sequential(Dense(channels, 1), nn.Sigmoid())
        self.node_mlp = MLP([2 * channels, channels, channels])

    def forward(
        self,
        x: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E n"],
        edge_env: Float[Tensor, "E 1"],
    ) -> Float[Tensor, "N C"]:
        """The update of x.

        Args:
            x: Scalars of the nodes.
            edge_index: Sources j and targets i.
            edge_vec: ``r_j − r_i``.
            edge_env: Envelope of each edge.
        """
        return self.update_x(x, edge_index, self.messages(x, edge_index, edge_vec, edge_env))

    def messages(
        self,
        x: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E n"],
        edge_env: Float[Tensor, "E 1"],
    ) -> Float[Tensor, "E C"]:
        """Messages of all edges (eq. 3), gated and enveloped."""
        m = self.activation(self.edge_mlp.of_edges(x, edge_index, edge_vec.square().sum(-1, keepdim=True)))
        gated: Tensor = m * (self.edge_gate(m) * edge_env)
        return gated

    def update_x(
        self, x: Float[Tensor, "N C"], edge_index: Int[Tensor, "2 E"], m: Float[Tensor, "E C"]
    ) -> Float[Tensor, "N C"]:
        """The update of x from the messages (eqs. 5, 6)."""
        received: Tensor = self.propagate(edge_index, size=(x.shape[0], x.shape[0]), m=m)
        update: Tensor = self.node_mlp(torch.cat([x, received], -1))
        return update

    def message(self, m: Float[Tensor, "E C"]) -> Float[Tensor, "E C"]:
        """What source j sends to target i."""
        return m


class EGNNConv(FrozenEGNNConv):
    r"""The whole layer (eqs. 3 to 6), for vectors of any dimension n.

    .. math:: Δr_i = C Σ_j (r_i - r_j) \, u_{ij} \, φ_x(m_{ij})

    Args:
        channels: C.
        avg_num_neighbors: 1/C of the paper, which for M connected nodes takes M − 1. A constant, because the
            number of neighbours of an atom jumps at the cutoff.

    Example:
        >>> conv = EGNNConv(8)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> dx, shift = conv(torch.zeros(3, 8), edge_index, torch.ones(2, 5), torch.ones(2, 1))
        >>> dx.shape, shift.shape
        (torch.Size([3, 8]), torch.Size([3, 5]))
    """

    avg_num_neighbors: Tensor

    def __init__(self, channels: int, *, avg_num_neighbors: float = 1.0) -> None:
        super().__init__(channels)
        self.register_buffer("avg_num_neighbors", torch.tensor(avg_num_neighbors))
        step = Dense(channels, 1, bias=False)
        # small, so that a deep stack does not fly apart at the start (as in the authors' code)
        nn.init.xavier_uniform_(step.weight, gain=0.001)
        self.coordinate_mlp = nn.Sequential(MLP([channels, channels]), SiLU(), step)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E n"],
        edge_env: Float[Tensor, "E 1"],
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N n"]]:
        """The updates of x and of the positions; the arguments are those of :class:`FrozenEGNNConv`."""
        m = self.messages(x, edge_index, edge_vec, edge_env)
        moves = -edge_vec * (self.coordinate_mlp(m) * edge_env)
        return self.update_x(x, edge_index, m), segment_sum(moves, edge_index[1], x.shape[0]) / self.avg_num_neighbors


class VelocityEGNNConv(EGNNConv):
    r"""The layer for particles that have a velocity already (section 3.2, eq. 7), for vectors of any dimension n.

    .. math::
        m_{ij} = u_{ij} \, φ_e(x_i, x_j, ‖r_{ij}‖^2, a_{ij}), \qquad
        Δr_i = φ_v(x_i) \, v_i + C Σ_j (r_i - r_j) \, u_{ij} \, φ_x(m_{ij})

    with the initial velocities v in every layer, and features a of the edges. Edges are not inferred here.

    Args:
        channels: C.
        edge_channels: Of the edges' features a.
        avg_num_neighbors: See :class:`EGNNConv`.

    Example:
        >>> conv = VelocityEGNNConv(8, edge_channels=2)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> ones = torch.ones(2, 1)
        >>> dx, shift = conv(torch.zeros(3, 8), edge_index, torch.ones(2, 5), ones, torch.ones(2, 2), torch.ones(3, 5))
        >>> dx.shape, shift.shape
        (torch.Size([3, 8]), torch.Size([3, 5]))
    """

    def __init__(self, channels: int, *, edge_channels: int = 0, avg_num_neighbors: float = 1.0) -> None:
        super().__init__(channels, avg_num_neighbors=avg_num_neighbors)
        del self.edge_gate
        self.edge_mlp = PairMLP(channels, 1 + edge_channels, [channels, channels])
        self.velocity_mlp = MLP([channels, channels, 1])

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E n"],
        edge_env: Float[Tensor, "E 1"],
        edge_attr: Float[Tensor, "E A"],
        vel: Float[Tensor, "N n"],
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N n"]]:
        """The updates of x and of the positions.

        Args:
            x: Scalars of the nodes.
            edge_index: Sources j and targets i.
            edge_vec: ``r_j − r_i``.
            edge_env: Envelope of each edge.
            edge_attr: Features of the edges that no reflection or rotation changes.
            vel: Initial velocities.
        """
        edge = torch.cat([edge_vec.square().sum(-1, keepdim=True), edge_attr], -1)
        m = self.activation(self.edge_mlp.of_edges(x, edge_index, edge)) * edge_env
        moves = segment_sum(-edge_vec * (self.coordinate_mlp(m) * edge_env), edge_index[1], x.shape[0])
        return self.update_x(x, edge_index, m), self.velocity_mlp(x) * vel + moves / self.avg_num_neighbors


class EGNN(Representation):
    """E(n)-equivariant graph neural network.

    Reference: Satorras, Hoogeboom & Welling 2021, arXiv:2102.09844, eqs. 3 to 6 with the inferred edges of
    section 3.3. The relative vectors move; what is returned as l = 1, in every channel, is the accumulated
    displacement of the atoms.

    Args:
        channels: C.
        num_layers: Number of layers.
        cutoff: Radius in Å; ``math.inf`` is the paper's complete graph.
        avg_num_neighbors: Divides the moves of the coordinates.

    Returns scalars and one vector, ``[N, 1, 4, C]``.
    """

    paper = "Satorras et al. 2021, arXiv:2102.09844"

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 7,
        *,
        cutoff: float = math.inf,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        super().__init__(channels, cutoff, lmax=1)
        self.embedding = AtomEmbedding(channels)
        self.envelope = CosineCutoff(cutoff)
        self.convs = nn.ModuleList(EGNNConv(channels, avg_num_neighbors=avg_num_neighbors) for _ in range(num_layers))

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 4 C"]:
        """Scalars and displacement of the atoms; the arguments are those of :class:`Representation`."""
        # of the atoms' own distances, not the moved ones: only these tell which edges the graph has
        edge_env = self.envelope(safe_norm(edge_vec)).unsqueeze(-1)
        source, target = edge_index
        x: Tensor = self.embedding(z)
        displacement = edge_vec.new_zeros(z.shape[0], 3)
        for conv in self.convs:
            dx, shift = conv(x, edge_index, edge_vec, edge_env)
            x, displacement = x + dx, displacement + shift
            edge_vec = edge_vec + shift[source] - shift[target]
        return torch.cat([x.unsqueeze(1), displacement.unsqueeze(-1).expand(-1, -1, self.channels)], 1).unsqueeze(1)


class FrozenEGNN(Representation):
    """EGNN whose coordinates stay where they are: the paper's network for QM9 (section 5.3), invariant.

    Reference: Satorras, Hoogeboom & Welling 2021, arXiv:2102.09844.

    Args:
        channels: C.
        num_layers: Number of layers.
        cutoff: Radius in Å; ``math.inf`` is the paper's complete graph.

    Returns scalars, ``[N, 1, 1, C]``.
    """

    paper = "Satorras et al. 2021, arXiv:2102.09844"

    def __init__(self, channels: int = 128, num_layers: int = 7, *, cutoff: float = math.inf) -> None:
        super().__init__(channels, cutoff)
        self.embedding = AtomEmbedding(channels)
        self.envelope = CosineCutoff(cutoff)
        self.convs = nn.ModuleList(FrozenEGNNConv(channels) for _ in range(num_layers))

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 1 C"]:
        """Scalars of the atoms; the arguments are those of :class:`Representation`."""
        edge_env = self.envelope(safe_norm(edge_vec)).unsqueeze(-1)
        x: Tensor = self.embedding(z)
        for conv in self.convs:
            x = x + conv(x, edge_index, edge_vec, edge_env)
        return x[:, None, None]
