"""Tensor Field Network: filters of radial functions and spherical harmonics, in all degrees."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import Activation, ShiftedSoftplus
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.cutoff import CosineCutoff, Cutoff
from pyg_equivariant.nn.dense import Dense
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.filter import RadialFilter
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.interpolation import Interpolation, RadialNodes, tabulate_filter
from pyg_equivariant.nn.loops import with_loops
from pyg_equivariant.nn.pairs import find_pairs
from pyg_equivariant.nn.radial import EnvelopedBasis, GaussianBasis, RadialBasis
from pyg_equivariant.nn.tensor_product import AllPaths, PathLinear, TensorProductConv
from pyg_equivariant.o3.layout import degree_slices, degrees

__all__ = ["NormActivation", "TensorFieldConv", "TensorFieldNetwork", "degree_norms"]


def degree_norms(x: Float[Tensor, "N 1 M C"], lmax: int) -> Float[Tensor, "N L C"]:
    """Length of each degree, ``lmax + 1`` a channel: ``√(Σ_m x_lm² + 10⁻³)``, smooth where features vanish."""
    squares = [x[:, 0, rows].square().sum(1) for rows in degree_slices(lmax)]
    return (torch.stack(squares, 1) + 1e-3).sqrt()


class NormActivation(nn.Module):
    r"""The nonlinearity of section 4.1.4: :math:`η(x^0 + b^0)` and :math:`η(‖x^l‖ + b^l) \, x^l / ‖x^l‖`.

    The division is that of the authors' code; without it (as in the text) lengths grow or vanish as squares, from layer
    to layer.

    Args:
        channels: C.
        lmax: Highest degree of the features.
        activation: η; the shifted softplus of the paper if not given.
    """

    def __init__(self, channels: int, *, lmax: int, activation: Activation | None = None) -> None:
        super().__init__()
        self.lmax = lmax
        self.degrees = degrees(lmax)[1:]
        self.activation = activation or ShiftedSoftplus()
        self.bias = nn.Parameter(torch.zeros(lmax + 1, channels))

    def forward(self, x: Float[Tensor, "N 1 M C"]) -> Float[Tensor, "N 1 M C"]:
        """Nonlinear features."""
        lengths = degree_norms(x, self.lmax)
        factors = self.activation(lengths + self.bias) / lengths
        scalars = self.activation(x[:, :, :1] + self.bias[:1])
        return torch.cat([scalars, x[:, :, 1:] * factors[:, self.degrees].unsqueeze(1)], 2)


class TensorFieldConv(TensorProductConv):
    r"""Point convolution, concatenation and self-interaction: ``x [N, 1, M, C] → [N, 1, M', D]``.

    .. math::
        y_i^{l_3} = W^{l_3} \bigoplus_{l_1 l_2} \frac{1}{\sqrt{\bar n}}
        \sum_j R^{l_1 l_2 l_3}(‖r_{ij}‖) \, \big(Y^{l_2}(\hat r_{ij}) \otimes x_j^{l_1}\big)^{l_3}

    with every l_1, l_2 that couple to l_3, whatever their parity (eqs. 2 and 3; :class:`AllPaths`). The radial
    functions R, one a path and a channel, are an MLP of the basis; W mixes the channels of all paths to a degree. The
    paper's sum includes i itself: edges from an atom to itself have the vector 0, whose harmonics are (1, 0, 0, ...).
    Reference: Thomas et al. 2018, arXiv:1802.08219, sections 4.1.2 and 4.1.3.

    Args:
        in_channels: C.
        out_channels: D.
        paths: Couplings of features and harmonics; they fix M and M'.
        num_basis: K.
        hidden: Channels of the MLP's hidden layers.
        avg_num_neighbors: Mean number of edges an atom receives, n̄; the paper has 1.

    Example:
        >>> conv = TensorFieldConv(4, 8, AllPaths(1, 2, 1), num_basis=5)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> edge_sh = spherical_harmonics(torch.ones(2, 3), 2)
        >>> conv(torch.ones(3, 1, 4, 4), edge_index, torch.ones(2, 5), edge_sh).shape
        torch.Size([3, 1, 4, 8])
    """

    avg_num_neighbors: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        paths: AllPaths,
        *,
        num_basis: int,
        hidden: Sequence[int] = (32,),
        avg_num_neighbors: float = 1.0,
    ) -> None:
        super().__init__(paths)
        self.filter = RadialFilter(num_basis, paths.num_paths, in_channels, hidden)
        self.self_interaction = PathLinear(paths, in_channels, out_channels)
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))

    def forward(
        self,
        x: Float[Tensor, "N 1 M C"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "R K"],
        edge_sh: Float[Tensor, "E M2"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> Float[Tensor, "N 1 M3 D"]:
        """New features.

        Args:
            x: Features of the atoms.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_rbf: Radial basis times envelope; of the edges, or of the nodes of ``table``.
            edge_sh: Harmonics of ``r_j − r_i``, component-normalised.
            pair: Which row of ``edge_rbf`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
            table: How the filters between nodes follow, see :mod:`~pyg_equivariant.nn.interpolation`.
        """
        weight = self.filter(edge_rbf)
        received = self.message_and_aggregate(edge_index, x.transpose(1, 2), edge_sh, weight, pair, table)
        y: Tensor = self.self_interaction(received * self.avg_num_neighbors.rsqrt())[0]
        return y


class TensorFieldNetwork(Representation):
    """Layers of :class:`TensorFieldConv` and :class:`NormActivation`, without residual connections, as in the paper.

    Reference: Thomas et al. 2018, arXiv:1802.08219. Degrees have no parity here, true and pseudotensors are one, so
    that the network tells mirror images apart. What differs: the radial MLP has SiLU instead of ReLU and no biases, and
    its Gaussians an envelope, for smooth forces and an end of the interaction; and since the paper has no energies,
    the scalars at the end are those of the last layer plus a mixture of its features' lengths.

    Args:
        channels: C.
        num_layers: Number of layers; three in the paper's tasks on points and molecules.
        lmax: Highest degree of features and harmonics; the paper uses 1 and 2.
        cutoff: Radius in Å.
        radial: Basis of edge lengths; 20 Gaussians if not given.
        envelope: Cosine if not given.
        avg_num_neighbors: Mean number of edges an atom receives.
    """

    paper = "Thomas et al. 2018, arXiv:1802.08219"
    group = "SE(3)"

    def __init__(
        self,
        channels: int = 32,
        num_layers: int = 3,
        *,
        lmax: int = 2,
        cutoff: float = 5.0,
        radial: RadialBasis | None = None,
        envelope: Cutoff | None = None,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        super().__init__(channels, cutoff, lmax=lmax)
        self.embedding = AtomEmbedding(channels)
        self.radial = EnvelopedBasis(radial or GaussianBasis(20, cutoff), envelope or CosineCutoff(cutoff))
        self.nodes = RadialNodes(cutoff, self.radial.num_basis)
        self.convs = nn.ModuleList(
            TensorFieldConv(
                channels,
                channels,
                AllPaths(lmax if index else 0, lmax, lmax),
                num_basis=self.radial.num_basis,
                avg_num_neighbors=avg_num_neighbors,
            )
            for index in range(num_layers)
        )
        self.activations = nn.ModuleList(NormActivation(channels, lmax=lmax) for _ in range(num_layers))
        self.lengths = Dense((lmax + 1) * channels, channels, bias=False)
        nn.init.normal_(self.lengths.weight, std=1 / math.sqrt(self.lengths.in_features))

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 M C"]:
        """Features of the atoms; the arguments are those of :class:`Representation`."""
        # the sum over neighbours includes the atom itself
        edge_index, edge_vec = with_loops(edge_index, edge_vec, z.shape[0])
        pairs = find_pairs(edge_index, edge_vec)
        nodes, table = self.nodes(safe_norm(edge_vec.index_select(0, pairs.first)), edge_index.shape[1])
        edge_rbf = stored(self.radial(nodes))
        edge_sh = spherical_harmonics(edge_vec, self.lmax)
        x: Tensor = self.embedding(z)[:, None, None]
        for conv, activation in zip(self.convs, self.activations, strict=True):
            x = activation(conv(x, edge_index, edge_rbf, edge_sh, pairs.of, table))
        lengths = self.lengths(degree_norms(x, self.lmax).flatten(1))[:, None, None]
        return torch.cat([x[:, :, :1] + lengths, x[:, :, 1:]], 2)

    def tabulate(self) -> None:
        """See :meth:`Representation.tabulate`."""
        nodes = self.nodes.fix(self.embedding.weight)
        if nodes is not None:
            for conv in self.convs:
                tabulate_filter(conv, self.radial(nodes))
