"""Allegro, strictly local equivariant potentials."""

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import SiLU
from pyg_equivariant.nn.conv import Conv, segment_sum
from pyg_equivariant.nn.cutoff import Cutoff, PolynomialCutoff
from pyg_equivariant.nn.dense import Dense
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.gate import SILU_SCALE
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.harmonic_sum import sum_to_atoms
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.radial import BesselBasis, RadialBasis
from pyg_equivariant.o3.clebsch_gordan import coupling
from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.o3.layout import degree_slices, degrees, num_components

__all__ = ["Allegro", "AllegroConv", "EnvironmentProduct"]


class EnvironmentProduct(ExactConstants):
    r"""What an atom's environment makes of its edges' tensors, channel by channel.

    .. math:: v'_{ij,q l_3 m_3 t} = \sum_{p, l_1 l_2} w_{p l_1 l_2 q l_3, t}
        \sum_{m_1 m_2} C_{m_1 m_2 m_3}\, v_{ij,p l_1 m_1 t}\, \Gamma_{i,l_2 m_2 t}

    over the paths that parity allows, q = p ⊕ (l_1 + l_2 + l_3 mod 2). Weights, couplings and the environment Γ, a true
    tensor, are contracted to one matrix an atom and channel before the many edges come.
    Reference: Musaelian et al. 2022, arXiv:2204.05249, eqs. 11 and 16.

    Args:
        channels: T.
        lmax_in: Highest l_1.
        lmax_sh: Highest l_2.
        lmax_out: Highest l_3.
        parity_in: Slots p.
        parity_out: Slots q.

    Attributes:
        paths: ``(p, l1, l2, q, l3)`` of each weight.

    Example:
        >>> EnvironmentProduct(8, 1, 1, 0).paths
        [(0, 0, 0, 0, 0), (0, 1, 1, 0, 0)]
    """

    table: Tensor

    def __init__(
        self, channels: int, lmax_in: int, lmax_sh: int, lmax_out: int, *, parity_in: int = 1, parity_out: int = 1
    ) -> None:
        super().__init__()
        self.shape = parity_out, num_components(lmax_out)
        self.paths = [
            (p, l1, l2, q, l3)
            for q in range(parity_out)
            for l3 in range(lmax_out + 1)
            for p in range(parity_in)
            for l1 in range(lmax_in + 1)
            for l2 in range(lmax_sh + 1)
            if abs(l1 - l2) <= l3 <= l1 + l2 and (p + q + l1 + l2 + l3) % 2 == 0
        ]
        slices = degree_slices(max(lmax_in, lmax_sh, lmax_out))
        size = num_components(lmax_sh), parity_in, num_components(lmax_in), *self.shape
        table = torch.zeros(*size, len(self.paths), dtype=torch.float64)
        fan_in = torch.zeros(len(self.paths))
        for index, (p, l1, l2, q, l3) in enumerate(self.paths):
            table[slices[l2], p, slices[l1], q, slices[l3], index] = coupling(l1, l2, l3).transpose(0, 1)
            fan_in[index] = sum(path[3:] == (q, l3) for path in self.paths)
        self.register_constant("table", table.flatten(1, 2).flatten(2, 3))
        self.weight = nn.Parameter(torch.randn(len(self.paths), channels) / fan_in.sqrt()[:, None])

    def forward(
        self,
        v: Float[Tensor, "E P M T"],
        environment: Float[Tensor, "N M2 T"],
        index: Int[Tensor, " E"],
    ) -> Float[Tensor, "E Q L T"]:
        """Products of the edges' tensors ``v`` with the environments of the atoms ``index`` that receive them."""
        weighted = self.table @ self.weight  # [M2, P M, Q L, T]
        num_sh, rows, columns, channels = weighted.shape
        by_channel = torch.bmm(environment.permute(2, 0, 1), weighted.view(num_sh, -1, channels).permute(2, 0, 1))
        matrix = by_channel.permute(1, 2, 0).reshape(-1, rows, columns, channels)
        product = (v.flatten(1, 2).unsqueeze(2) * matrix.index_select(0, index)).sum(1)
        return product.view(-1, *self.shape, channels)


class AllegroConv(Conv):
    r"""One layer of Allegro, a map of edges j → i: scalars x ``[E, F]`` and tensors v ``[E, P, M, T]``.

    .. math::
        \Gamma_i = \frac{1}{\sqrt{\bar n}} \sum_{k \in \mathcal N(i)} w_{ik} \, Y(\hat r_{ik}), \qquad
        v'_{ij} = v_{ij} \otimes \Gamma_i, \qquad x'_{ij} = \mathrm{MLP}\big(x_{ij} \,\|\, v'_{ij,l=0}\big)

    Only edges that arrive at the same atom meet. The MLP has no biases: an edge with nothing in x and v, as at the
    cutoff, stays without.
    Reference: Musaelian et al. 2022, arXiv:2204.05249, eqs. 11 to 16.

    Args:
        product: Of tensors with the environment.
        in_channels: F.
        hidden: Channels of the MLP's hidden layer.
        out_channels: G.
        avg_num_neighbors: Mean number of edges an atom receives, n̄.
    """

    avg_num_neighbors: Tensor

    def __init__(
        self,
        product: EnvironmentProduct,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        super().__init__()
        self.product = product
        self.latent = _mlp(in_channels + product.weight.shape[1], hidden, out_channels)
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))

    def forward(
        self,
        x: Float[Tensor, "E F"],
        v: Float[Tensor, "E P M T"],
        weight: Float[Tensor, "E L T"],
        edge_index: Int[Tensor, "2 E"],
        edge_sh: Float[Tensor, "E M2"],
        num_atoms: int,
    ) -> tuple[Float[Tensor, "E G"], Float[Tensor, "E Q M3 T"]]:
        """New scalars and tensors of the edges.

        Args:
            x: Scalars of the edges.
            v: Tensors of the edges.
            weight: What the edges add to the environments, one number a degree and channel.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_sh: Harmonics of ``r_j − r_i``, component-normalised.
            num_atoms: N.
        """
        environment = self.message_and_aggregate(edge_index, edge_sh, weight, num_atoms)
        v = self.product(v, environment * self.avg_num_neighbors.rsqrt(), edge_index[1])
        return self.latent(torch.cat([x, v[:, 0, 0]], dim=1)), v

    def message_and_aggregate(
        self,
        edge_index: Int[Tensor, "2 E"],
        edge_sh: Float[Tensor, "E M2"],
        weight: Float[Tensor, "E L T"],
        num_atoms: int,
    ) -> Float[Tensor, "N M2 T"]:
        """Harmonics with weights, summed over the edges that arrive."""
        first = [degree**2 for degree in range(weight.shape[1] + 1)]
        return sum_to_atoms(edge_sh, weight, edge_index[1], num_atoms, first)


class Allegro(Representation):
    r"""Energies of edges, each of which knows its target's other neighbours and nothing beyond them.

    No messages are passed on: the receptive field is one cutoff, whatever the number of layers, and space can be cut
    into pieces for simulations on many machines. With B the radial basis under its envelope and S = ``channels``

    .. math::
        b_{ij} = \mathrm{MLP}\big((u_{z_i} \| u'_{z_j}) \odot W B(d_{ij})\big), \qquad
        v^0_{ij} = (W_v b_{ij}) \, Y(\hat r_{ij}), \qquad (x^0 \| w^0)_{ij} = W_0 b_{ij}

        v^{k+1}_{ij} = v^k_{ij} \otimes
        \frac{1}{\sqrt{\bar n}} \sum_{l \in \mathcal N(i)} w^k_{il} \, Y(\hat r_{il}), \qquad
        (x^{k+1} \| w^{k+1})_{ij} = \mathrm{MLP}\big(x^0 \| \dots \| x^k \| v^{k+1}_{l=0}\big)_{ij}

        x_i = \frac{1}{\sqrt{2 \bar n}} \sum_{j \in \mathcal N(i)} \mathrm{SiLU}\big(W_1 (x^0 \| \dots \| x^T)_{ij}\big)

    The energy of an edge is linear in its last SiLU, so that its sum over the edges is linear in the returned
    x_i ``[N, 1, 1, S]``. A head with one hidden layer of SiLU units contains that exactly, as silu(a) − silu(−a) = a,
    and more.

    Reference: Musaelian et al. 2022, arXiv:2204.05249, eqs. 7 to 18, in the present form of its authors' code
    (nequip-allegro 0.8), which differs from the paper in five places: elements enter by a product with the radial
    functions, not as an input of the two-body MLP; each layer reads the scalars of all layers before, which replaces
    the residual update; the environment's weights come from the same MLP as the scalars; paths are summed with
    weights a channel, without mixing of channels; and nothing has a bias, so that all vanishes at the cutoff by itself,
    not by a factor u(d) after each MLP. The paper's rMD17 models have 3 layers, 128 channels, lmax 3 and 7 Å.

    Args:
        channels: S, also of all hidden layers.
        num_layers: T, number of tensor products: of order T + 2 in bodies before the nonlinearities.
        tensor_channels: Channels of the tensors.
        lmax: Highest degree of the tensors.
        parity: 2 keeps pseudotensors between layers too, 1 true tensors only. The last two layers have none either way:
            none would reach a scalar.
        cutoff: Radius in Å.
        radial: Basis of edge lengths; 8 Bessel functions if not given.
        envelope: Polynomial of p = 6 if not given.
        avg_num_neighbors: Mean number of edges an atom receives, n̄.
    """

    paper = "Musaelian et al. 2022, arXiv:2204.05249"
    avg_num_neighbors: Tensor

    def __init__(
        self,
        channels: int = 64,
        num_layers: int = 2,
        *,
        tensor_channels: int = 32,
        lmax: int = 2,
        parity: int = 2,
        cutoff: float = 5.0,
        radial: RadialBasis | None = None,
        envelope: Cutoff | None = None,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        if num_layers < 1 or lmax < 0 or parity not in (1, 2) or channels < 2 or tensor_channels < 1:
            raise ValueError(
                "Allegro needs channels ≥ 2, num_layers ≥ 1, tensor_channels ≥ 1, lmax ≥ 0 and parity 1 or 2, got "
                f"channels={channels}, num_layers={num_layers}, tensor_channels={tensor_channels}, lmax={lmax}, "
                f"parity={parity}"
            )
        super().__init__(channels, cutoff)
        self.lmax_sh = lmax
        self.weights = lmax + 1, tensor_channels
        num_weights = math.prod(self.weights)
        self.radial = radial or BesselBasis(8, cutoff)
        self.envelope = envelope or PolynomialCutoff(cutoff)
        self.target_embedding = AtomEmbedding(channels // 2)
        self.source_embedding = AtomEmbedding(channels - channels // 2)
        self.radial_linear = _mlp(self.radial.num_basis, channels)
        self.two_body = _mlp(channels, channels, channels)
        self.tensor_linear = _mlp(channels, num_weights)
        self.scalar_linear = _mlp(channels, channels + num_weights)
        self.layers = nn.ModuleList()
        parity_in = 1
        for index in range(num_layers):
            last = index == num_layers - 1
            parity_out = parity if index < num_layers - 2 else 1
            product = EnvironmentProduct(
                tensor_channels, lmax, lmax, 0 if last else lmax, parity_in=parity_in, parity_out=parity_out
            )
            conv = AllegroConv(
                product,
                (index + 1) * channels,
                channels,
                channels + (0 if last else num_weights),
                avg_num_neighbors=avg_num_neighbors,
            )
            self.layers.append(conv)
            parity_in = parity_out
        self.read_out = _mlp((num_layers + 1) * channels, channels)
        self.activation = SiLU()
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N P M C"]:
        """See :meth:`Representation.forward`."""
        source, target = edge_index
        edge_len = safe_norm(edge_vec)
        edge_rbf = self.radial(edge_len) * self.envelope(edge_len).unsqueeze(-1)
        edge_sh = spherical_harmonics(edge_vec, self.lmax_sh)
        elements = torch.cat(
            [self.target_embedding(z).index_select(0, target), self.source_embedding(z).index_select(0, source)], dim=1
        )
        pair = self.two_body(elements * self.radial_linear(edge_rbf))
        v = _weighted(edge_sh, self.tensor_linear(pair).unflatten(1, self.weights)).unsqueeze(1)
        latent = self.scalar_linear(pair)
        x = latent[:, : self.channels]
        for layer in self.layers:
            weight = latent[:, self.channels :].unflatten(1, self.weights)
            latent, v = layer(x, v, weight, edge_index, edge_sh, z.shape[0])
            x = torch.cat([x, latent[:, : self.channels]], dim=1)
        total = segment_sum(self.activation(self.read_out(x)), target, z.shape[0])
        return (total * (2.0 * self.avg_num_neighbors).rsqrt())[:, None, None]


def _weighted(edge_sh: Float[Tensor, "E M2"], weight: Float[Tensor, "E L T"]) -> Float[Tensor, "E M2 T"]:
    return edge_sh.unsqueeze(-1) * weight[:, degrees(weight.shape[1] - 1)]


def _mlp(*sizes: int) -> nn.Sequential:
    """Layers without biases that keep the mean square of normal input; SiLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        linear = Dense(fan_in, fan_out, bias=False)
        nn.init.normal_(linear.weight, std=(SILU_SCALE if layers else 1.0) / math.sqrt(fan_in))
        layers += [SiLU(), linear] if layers else [linear]
    return nn.Sequential(*layers)
