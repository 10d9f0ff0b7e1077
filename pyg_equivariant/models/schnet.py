"""SchNet: continuous-filter convolutions of scalars."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import ShiftedSoftplus
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.conv import EdgeSumConv
from pyg_equivariant.nn.cutoff import CosineCutoff
from pyg_equivariant.nn.edge_sum import CONSTANT, Term
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.filter import EnvelopedFilter
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.interpolation import Interpolation, RadialNodes, tabulate_filter
from pyg_equivariant.nn.mlp import MLP, dense
from pyg_equivariant.nn.pairs import find_pairs
from pyg_equivariant.nn.radial import GaussianBasis, RadialBasis

__all__ = ["SchNet", "SchNetBlock", "SchNetConv"]


class SchNetConv(EdgeSumConv):
    r"""The continuous-filter convolution (arXiv:1706.08566, eq. 1).

    .. math:: y_i = Σ_j (B x_j) ∘ W(r_{ij}) \, u(r_{ij})

    with a filter network W of two dense layers and the envelope u of the cutoff.

    Args:
        channels: C, of the input and of the filters.
        num_basis: K.

    Example:
        >>> import torch
        >>> conv = SchNetConv(8, num_basis=4)
        >>> conv(torch.zeros(3, 8), torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, 4), torch.ones(2)).shape
        torch.Size([3, 8])
    """

    def __init__(self, channels: int, num_basis: int) -> None:
        super().__init__([Term(0, 0, CONSTANT, 0, 1.0)], 1)
        self.dense = dense(channels, channels, bias=False)
        self.filter = EnvelopedFilter(*MLP([num_basis, channels, channels], ShiftedSoftplus()))

    def forward(
        self,
        x: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "R K"],
        edge_env: Float[Tensor, " R"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> Float[Tensor, "N C"]:
        """The convolution.

        Args:
            x: Scalars of the atoms.
            edge_index: Sources j and targets i.
            edge_rbf: Radial basis of the edge lengths, or of the nodes of ``table``.
            edge_env: Envelope there, zero from the cutoff on.
            pair: Which of the lengths an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
            table: How the filters between nodes follow, see :mod:`~pyg_equivariant.nn.interpolation`.
        """
        weight = self.filter(edge_rbf, edge_env).unsqueeze(1)
        sent = self.dense(x).unsqueeze(1)
        return self.message_and_aggregate(edge_index, sent, weight, pair=pair, table=table).squeeze(1)


class SchNetBlock(nn.Module):
    """The interaction block (arXiv:1706.08566, figure 2): convolution, dense, ssp, dense.

    Args:
        channels: C.
        num_basis: K.
    """

    def __init__(self, channels: int, num_basis: int) -> None:
        super().__init__()
        self.conv = SchNetConv(channels, num_basis)
        self.mlp = MLP([channels, channels, channels], ShiftedSoftplus())

    def forward(
        self,
        x: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "R K"],
        edge_env: Float[Tensor, " R"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> Float[Tensor, "N C"]:
        """The update of x; the arguments are those of :class:`SchNetConv`."""
        update: Tensor = self.mlp(self.conv(x, edge_index, edge_rbf, edge_env, pair, table))
        return update


class SchNet(Representation):
    """Continuous-filter convolutional network, invariant.

    Reference: Schütt et al. 2017, arXiv:1706.08566, figure 2; the cosine envelope is that of
    Schütt et al. 2018, doi:10.1063/1.5019779. Agrees with ``torch_geometric.nn.SchNet``.

    Args:
        channels: C, of the features and of the filters.
        num_layers: Number of interaction blocks.
        cutoff: Radius in Å.
        radial: Basis of the edge lengths; 50 Gaussians if not given.

    Returns scalars, ``[N, 1, 1, C]``.
    """

    paper = "Schütt et al. 2017, arXiv:1706.08566"

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 6,
        *,
        cutoff: float = 10.0,
        radial: RadialBasis | None = None,
    ) -> None:
        super().__init__(channels, cutoff)
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or GaussianBasis(50, cutoff)
        self.nodes = RadialNodes(cutoff, self.radial.num_basis)
        self.envelope = CosineCutoff(cutoff)
        self.blocks = nn.ModuleList(SchNetBlock(channels, self.radial.num_basis) for _ in range(num_layers))

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 1 C"]:
        """Scalars of the atoms; the arguments are those of :class:`Representation`."""
        pairs = find_pairs(edge_index, edge_vec)
        edge_len = safe_norm(edge_vec.index_select(0, pairs.first))
        nodes, table = self.nodes(edge_len, edge_index.shape[1])
        edge_rbf, edge_env = stored(self.radial(nodes)), stored(self.envelope(nodes))
        x: Tensor = self.embedding(z)
        for block in self.blocks:
            x = x + block(x, edge_index, edge_rbf, edge_env, pairs.of, table)
        return x[:, None, None]

    def tabulate(self) -> None:
        """See :meth:`Representation.tabulate`."""
        nodes = self.nodes.fix(self.embedding.weight)
        if nodes is not None:
            inputs = self.radial(nodes), self.envelope(nodes)
            for block in self.blocks:
                assert isinstance(block, SchNetBlock)
                tabulate_filter(block.conv, *inputs)
