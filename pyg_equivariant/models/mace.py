"""MACE, higher-order equivariant message passing."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.cutoff import Cutoff, PolynomialCutoff
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.filter import RadialFilter
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.interpolation import Interpolation, RadialNodes, tabulate_filter
from pyg_equivariant.nn.linear import DegreeLinear, ElementLinear
from pyg_equivariant.nn.pairs import find_pairs
from pyg_equivariant.nn.radial import BesselBasis, RadialBasis
from pyg_equivariant.nn.symmetric_contraction import SymmetricContraction
from pyg_equivariant.nn.tensor_product import PathLinear, ProperPaths, TensorProductConv
from pyg_equivariant.o3.layout import num_components

__all__ = ["MACE", "FirstMACEConv", "MACEConv", "ResidualMACE"]


class MACEConv(TensorProductConv):
    r"""One layer of MACE: ``x [N, 1, M, C] → [N, 1, M', C]``, true tensors.

    .. math::
        A_i = \frac{1}{\bar n} W_2 \sum_{j \in \mathcal N(i)} R(d_{ij}) \, (W_1 x_j) \otimes Y(\hat r_{ij}), \qquad
        m_{i,LM} = \sum_\nu \sum_\eta W_{z_i,L\nu\eta} \, B_{\nu\eta LM}(A_i), \qquad
        x_i' = W_3 m_i + W_{z_i} x_i

    A is a sum over neighbours of tensor products whose filters R, one a path and a channel, are an MLP without
    biases of the enveloped radial basis; W_2 mixes the channels of all paths to a degree. B are all symmetric products
    of up to ``correlation`` A of the same atom and channel (:class:`~.SymmetricContraction`): messages of
    ``correlation + 1`` bodies at the cost of pairs.
    Reference: Batatia et al. 2022, arXiv:2206.07697, eqs. 8 and 10 to 12.

    Args:
        channels: C.
        lmax_in: Highest degree of the features.
        lmax_sh: Highest degree of harmonics and of A.
        lmax_out: Highest degree of the updated features.
        correlation: Highest order of the products.
        num_basis: K.
        hidden: Channels of the MLP's hidden layers.
        elements: Atomic numbers that occur (any other gives NaN); all if not given.
        avg_num_neighbors: Mean number of edges an atom receives, n̄.
    """

    avg_num_neighbors: Tensor

    def __init__(
        self,
        channels: int,
        lmax_in: int,
        lmax_sh: int,
        lmax_out: int,
        *,
        correlation: int = 3,
        num_basis: int = 8,
        hidden: Sequence[int] = (64, 64, 64),
        elements: Sequence[int] | None = None,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        paths = ProperPaths(lmax_in, lmax_sh, lmax_sh)
        super().__init__(paths)
        self.linear_in = DegreeLinear(channels, channels, lmax=lmax_in)
        self.filter = RadialFilter(num_basis, paths.num_paths, channels, hidden)
        self.linear_sum = PathLinear(paths, channels, channels)
        self.contraction = SymmetricContraction(channels, lmax_sh, lmax_out, correlation=correlation, elements=elements)
        self.linear_out = DegreeLinear(channels, channels, lmax=lmax_out)
        self.self_connection = self._self_connection(channels, lmax_in, lmax_sh, lmax_out, elements)
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))

    def _self_connection(
        self, channels: int, lmax_in: int, lmax_sh: int, lmax_out: int, elements: Sequence[int] | None
    ) -> ElementLinear:
        """The matrices that depend on the atom's own element."""
        return ElementLinear(channels, channels, lmax=min(lmax_in, lmax_out), elements=elements)

    def forward(
        self,
        x: Float[Tensor, "N 1 M C"],
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "R K"],
        edge_sh: Float[Tensor, "E M2"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> Float[Tensor, "N 1 L C"]:
        """Updated features.

        Args:
            x: Features of the atoms.
            z: Atomic numbers.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_rbf: Radial basis times envelope; of the edges, or of the nodes of ``table``.
            edge_sh: Harmonics of ``r_j − r_i``, component-normalised.
            pair: Which row of ``edge_rbf`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
            table: How the filters between nodes follow, see :mod:`~pyg_equivariant.nn.interpolation`.
        """
        sent = self.linear_in(x).transpose(1, 2).contiguous()
        received = self.message_and_aggregate(edge_index, sent, edge_sh, self.filter(edge_rbf), pair, table)
        density, _ = self.linear_sum(received / self.avg_num_neighbors)
        return self.update_features(x, density, z)

    def update_features(
        self, x: Float[Tensor, "N 1 M C"], density: Float[Tensor, "N 1 M2 C"], z: Int[Tensor, " N"]
    ) -> Float[Tensor, "N 1 L C"]:
        """Products of the neighbours' density A, and what the atom keeps of itself."""
        y = self.linear_out(self.contraction(density, z))
        known = self.self_connection(x[:, :, : num_components(self.self_connection.lmax)], z)
        return y + nn.functional.pad(known, (0, 0, 0, y.shape[2] - known.shape[2]))


class FirstMACEConv(MACEConv):
    r"""A layer that keeps nothing of the atom itself: an atom without neighbours gets zero.

    .. math:: m_{i,LM} = \sum_\nu \sum_\eta W_{z_i,L\nu\eta} \, B_{\nu\eta LM}(W_{z_i} A_i), \qquad x_i' = W_3 m_i

    The matrices of the element mix the channels of A instead. This is the first layer of the models of the paper
    (``RealAgnosticInteractionBlock`` of its code, where :class:`MACEConv` is ``RealAgnosticResidualInteractionBlock``).
    """

    def _self_connection(
        self, channels: int, lmax_in: int, lmax_sh: int, lmax_out: int, elements: Sequence[int] | None
    ) -> ElementLinear:
        return ElementLinear(channels, channels, lmax=lmax_sh, elements=elements)

    def update_features(
        self, x: Float[Tensor, "N 1 M C"], density: Float[Tensor, "N 1 M2 C"], z: Int[Tensor, " N"]
    ) -> Float[Tensor, "N 1 L C"]:
        """Products of the neighbours' density A."""
        y: Tensor = self.linear_out(self.contraction(self.self_connection(density, z), z))
        return y


class MACE(Representation):
    r"""Few layers with messages of many bodies.

    Learned vectors of the elements pass through a :class:`FirstMACEConv` and ``num_layers − 1`` :class:`MACEConv`.
    The features of *all* layers are returned, side by side: ``num_layers · channels`` channels. The paper's energy is

    .. math:: E_i = \sum_{t=1}^{T-1} w_t \cdot x_i^{(t)} + \mathrm{MLP}(x_i^{(T)})

    (eq. 13), and a head with one hidden layer of SiLU units of all these channels contains it exactly, because
    silu(a) − silu(−a) = a: two units carry all linear read-outs. It can do more (products of layers).

    Reference: Batatia et al. 2022, arXiv:2206.07697. Its rMD17 models have 256 channels and lmax 0, 1 or 2; the
    defaults are those of its code, "128x0e+128x1o".

    Args:
        channels: C of a layer.
        num_layers: T.
        lmax: Highest degree of the features between layers.
        lmax_sh: Highest degree of harmonics and products.
        lmax_out: Highest degree of the last layer and of what is returned. With 0 the last layer makes nothing but
            scalars, as in the paper: enough for energies, and faster. ``lmax`` if not given.
        correlation: Number of neighbours' densities in a product, ν: messages have ν + 1 bodies.
        cutoff: Radius in Å.
        radial: Basis of edge lengths; 8 Bessel functions if not given.
        envelope: Polynomial of p = 5 if not given.
        elements: Atomic numbers that occur (any other gives NaN), which saves memory and time; all if not given.
        avg_num_neighbors: Mean number of edges an atom receives.
    """

    paper = "Batatia et al. 2022, arXiv:2206.07697"
    first: type[MACEConv] = FirstMACEConv

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 2,
        *,
        lmax: int = 1,
        lmax_sh: int = 3,
        lmax_out: int | None = None,
        correlation: int = 3,
        cutoff: float = 5.0,
        radial: RadialBasis | None = None,
        envelope: Cutoff | None = None,
        elements: Sequence[int] | None = None,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        last = lmax if lmax_out is None else lmax_out
        if num_layers < 1 or not 0 <= last <= lmax <= lmax_sh or correlation < 1:
            raise ValueError(
                f"{type(self).__name__} needs num_layers ≥ 1, 0 ≤ lmax_out ≤ lmax ≤ lmax_sh and correlation ≥ 1, got "
                f"num_layers={num_layers}, lmax_out={lmax_out}, lmax={lmax}, lmax_sh={lmax_sh}, "
                f"correlation={correlation}"
            )
        super().__init__(num_layers * channels, cutoff, lmax=last)
        self.lmax_sh = lmax_sh
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or BesselBasis(8, cutoff)
        self.nodes = RadialNodes(cutoff, max(32, self.radial.num_basis))  # four layers make steep filters of few waves
        self.envelope = envelope or PolynomialCutoff(cutoff, p=5)
        self.layers = nn.ModuleList(
            (MACEConv if index else self.first)(
                channels,
                lmax if index else 0,
                lmax_sh,
                lmax if index < num_layers - 1 else last,
                correlation=correlation,
                num_basis=self.radial.num_basis,
                elements=elements,
                avg_num_neighbors=avg_num_neighbors,
            )
            for index in range(num_layers)
        )

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N P M C"]:
        """See :meth:`Representation.forward`."""
        pairs = find_pairs(edge_index, edge_vec)
        length = safe_norm(edge_vec.index_select(0, pairs.first))
        nodes, table = self.nodes(length, edge_index.shape[1])
        edge_rbf = stored(self._basis(nodes))
        edge_sh = spherical_harmonics(edge_vec, self.lmax_sh)
        x: Tensor = self.embedding(z)[:, None, None]
        outcome = []
        for layer in self.layers:
            x = layer(x, z, edge_index, edge_rbf, edge_sh, pairs.of, table)
            outcome.append(x[:, :, : num_components(self.lmax)])
        return torch.cat(outcome, dim=3)

    def tabulate(self) -> None:
        """See :meth:`Representation.tabulate`."""
        nodes = self.nodes.fix(self.embedding.weight)
        if nodes is not None:
            for layer in self.layers:
                tabulate_filter(layer, self._basis(nodes))

    def _basis(self, length: Float[Tensor, " R"]) -> Float[Tensor, "R K"]:
        basis: Tensor = self.radial(length) * self.envelope(length).unsqueeze(-1)
        return basis


class ResidualMACE(MACE):
    """MACE whose first layer keeps the atom's own features too (the ``ScaleShiftMACE`` of its code)."""

    first = MACEConv
