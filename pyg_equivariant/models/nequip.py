"""NequIP, Neural Equivariant Interatomic Potentials."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.cutoff import Cutoff, PolynomialCutoff
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.gate import SILU_SCALE, Gate
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.interpolation import Interpolation, RadialNodes, tabulate_filter
from pyg_equivariant.nn.linear import DegreeLinear, ElementLinear
from pyg_equivariant.nn.mlp import MLP
from pyg_equivariant.nn.pairs import find_pairs
from pyg_equivariant.nn.radial import RadialBasis, TrainableBesselBasis
from pyg_equivariant.nn.tensor_product import FullPaths, PathLinear, Paths, ProperPaths, TensorProductConv
from pyg_equivariant.o3.layout import num_components

__all__ = ["NequIP", "NequIPConv"]


class NequIPConv(TensorProductConv):
    r"""One interaction block of NequIP: ``x [N, P, M, C] → [N, P', M', C]``.

    .. math::
        m_i = \frac{1}{\sqrt{\bar n}} \sum_{j \in \mathcal N(i)} R(d_{ij}) \, (W_1 x_j) \otimes Y(\hat r_{ij}),
        \qquad x_i' = \mathrm{Gate}\big(W_2 m_i + W_{z_i} x_i\big)

    The filters R, one a path of the tensor product and a channel, are an MLP without biases of the enveloped
    radial basis: a neighbour at the cutoff sends nothing. W_2 mixes the channels of all paths to a degree.
    Reference: Batzner et al. 2022, arXiv:2101.03164, eqs. 5 to 9 and Fig. 1.

    Args:
        channels: C.
        paths: Couplings of features and harmonics; they fix P, M, P' and M'.
        num_basis: K.
        hidden: Channels of the MLP's hidden layers.
        elements: Atomic numbers that occur, for the self-connection's matrices; all if not given.
        avg_num_neighbors: Mean number of edges an atom receives, n̄.
    """

    avg_num_neighbors: Tensor

    def __init__(
        self,
        channels: int,
        paths: Paths,
        *,
        num_basis: int = 8,
        hidden: Sequence[int] = (64, 64),
        elements: Sequence[int] | None = None,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        super().__init__(paths)
        self.paths = paths
        self.lmax_kept = min(paths.lmax_in, paths.lmax_out)
        self.parity_kept = min(paths.parity_in, paths.parity_out)
        self.gate = Gate(paths.lmax_out, paths.parity_out)
        num_scalars = self.gate.num_gates * channels
        self.linear_in = DegreeLinear(channels, channels, lmax=paths.lmax_in, parity=paths.parity_in)
        self.filter = MLP([num_basis, *hidden, paths.num_paths * channels], bias=False)
        _preserve_variance(self.filter)
        self.linear_out = PathLinear(paths, channels, channels, num_scalars=num_scalars)
        self.self_connection = ElementLinear(
            channels, channels, lmax=self.lmax_kept, parity=self.parity_kept, elements=elements
        )
        self.self_gates = ElementLinear(channels, num_scalars, elements=elements) if num_scalars else None
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))

    def forward(
        self,
        x: Float[Tensor, "N P M C"],
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "R K"],
        edge_sh: Float[Tensor, "E M2"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> Float[Tensor, "N Q L C"]:
        """Updated features.

        Args:
            x: Features of the atoms; a slot that the paths do not take is left out.
            z: Atomic numbers.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_rbf: Radial basis times envelope.
            edge_sh: Harmonics of ``r_j − r_i``, component-normalised.
            pair: Which row of ``edge_rbf`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
            table: How the filters between nodes follow, see :mod:`~pyg_equivariant.nn.interpolation`.
        """
        x = x[:, : self.paths.parity_in]
        weight = self.filter(edge_rbf).unflatten(1, (self.paths.num_paths, -1))
        sent = self.linear_in(x).transpose(1, 2).contiguous()
        received = self.message_and_aggregate(edge_index, sent, edge_sh, weight, pair, table)
        y, gates = self.linear_out(received * self.avg_num_neighbors.rsqrt())
        kept = x[:, : self.parity_kept, : num_components(self.lmax_kept)]
        known = self.self_connection(kept, z)
        y = y + functional.pad(known, (0, 0, 0, y.shape[2] - known.shape[2], 0, y.shape[1] - known.shape[1]))
        if self.self_gates is not None:
            gates = gates + self.self_gates(x[:, :1, :1], z).flatten(1)
        updated: Tensor = self.gate(y, gates.view(y.shape[0], self.gate.num_gates, y.shape[3]))
        return updated


def _preserve_variance(mlp: MLP) -> None:
    """Draws weights for which each layer keeps the mean square of normal input."""
    layers = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    for index, layer in enumerate(layers):
        gain = SILU_SCALE if index else 1.0
        nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))


class NequIP(Representation):
    """Graph network whose messages are tensor products of features with spherical harmonics.

    Learned vectors of the elements pass through ``num_layers`` :class:`NequIPConv`.
    Reference: Batzner et al. 2022, arXiv:2101.03164. The defaults are those of its rMD17 models, but for lmax
    (3 there) and pseudotensors (kept there): both cost several times more than they gain on most data.

    Args:
        channels: C.
        num_layers: Interaction blocks.
        lmax: Highest degree of features and harmonics.
        parity: 1 keeps true tensors only, 2 pseudotensors too.
        lmax_out: Highest degree of the last block. With 0 it makes nothing but true scalars, as in the paper: enough
            for energies and a quarter to a half faster. All degrees if not given.
        cutoff: Radius in Å.
        radial: Basis of edge lengths; 8 Bessel functions with trainable frequencies if not given.
        envelope: Polynomial of p = 6 if not given.
        elements: Atomic numbers that occur; only these have self-connections (any other gives NaN), which saves memory
            and time. All if not given.
        avg_num_neighbors: Mean number of edges an atom receives.
    """

    paper = "Batzner et al. 2022, arXiv:2101.03164"

    def __init__(
        self,
        channels: int = 64,
        num_layers: int = 5,
        *,
        lmax: int = 2,
        parity: int = 1,
        lmax_out: int | None = None,
        cutoff: float = 5.0,
        radial: RadialBasis | None = None,
        envelope: Cutoff | None = None,
        elements: Sequence[int] | None = None,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        last = lmax if lmax_out is None else lmax_out
        if num_layers < 1 or lmax < 0 or parity not in (1, 2) or not 0 <= last <= lmax:
            raise ValueError(
                "NequIP needs num_layers ≥ 1, lmax ≥ 0, parity 1 or 2 and 0 ≤ lmax_out ≤ lmax, got "
                f"num_layers={num_layers}, lmax={lmax}, parity={parity}, lmax_out={lmax_out}"
            )
        super().__init__(channels, cutoff, lmax=last, parity=parity if last else 1)
        self.lmax_sh = lmax
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or TrainableBesselBasis(8, cutoff)
        self.nodes = RadialNodes(cutoff, self.radial.num_basis)
        self.envelope = envelope or PolynomialCutoff(cutoff)
        self.layers = nn.ModuleList()
        lmax_in, parity_in = 0, 1
        for index in range(num_layers):
            end = index == num_layers - 1
            paths: Paths
            if parity == 1 or (end and last == 0) or (lmax_in == 0 and not end):  # scalars make no pseudotensors
                paths = ProperPaths(lmax_in, lmax, last if end else lmax)
            else:
                paths = FullPaths(lmax_in, lmax, last if end else lmax, parity_in=parity_in)
            conv = NequIPConv(
                channels,
                paths,
                num_basis=self.radial.num_basis,
                elements=elements,
                avg_num_neighbors=avg_num_neighbors,
            )
            self.layers.append(conv)
            lmax_in, parity_in = paths.lmax_out, paths.parity_out

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
        for layer in self.layers:
            x = layer(x, z, edge_index, edge_rbf, edge_sh, pairs.of, table)
        return x

    def tabulate(self) -> None:
        """See :meth:`Representation.tabulate`."""
        nodes = self.nodes.fix(self.embedding.weight)
        if nodes is not None:
            edge_rbf = self._basis(nodes)
            for layer in self.layers:
                tabulate_filter(layer, edge_rbf)

    def _basis(self, length: Float[Tensor, " R"]) -> Float[Tensor, "R K"]:
        basis: Tensor = self.radial(length) * self.envelope(length).unsqueeze(-1)
        return basis
