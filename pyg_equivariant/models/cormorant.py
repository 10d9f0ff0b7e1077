"""Cormorant: atoms and edges that multiply each other, by Clebsch-Gordan products alone."""

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.configurable import Configurable
from pyg_equivariant.nn.conv import Conv
from pyg_equivariant.nn.cutoff import CosineCutoff, Cutoff
from pyg_equivariant.nn.dense import Dense
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.linear import DegreeLinear
from pyg_equivariant.nn.mlp import MLP
from pyg_equivariant.nn.tensor_product import AllPaths, PathLinear, TensorProductConv
from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.o3.layout import degree_slices, num_components
from pyg_equivariant.o3.symmetric import monomials, symmetric_coupling

__all__ = ["Cormorant", "CormorantConv", "CormorantInputConv", "SelfProduct", "TrigonometricBasis", "invariants"]


def invariants(x: Float[Tensor, "N 1 M C"], y: Float[Tensor, "N 1 M C"], lmax: int) -> Float[Tensor, "N L C"]:
    """Scalar products of each degree, ``Σ_m x_lm y_lm / √(2l + 1)``, ``lmax + 1`` a channel."""
    product = x[:, 0] * y[:, 0]
    parts = [product[:, rows].sum(1) / math.sqrt(rows.stop - rows.start) for rows in degree_slices(lmax)]
    return torch.stack(parts, 1)


class TrigonometricBasis(Configurable):
    r"""``edge_len [E] → edge_rbf [E, K]``, :math:`r^{-p} \sin(2πκ_k r + φ_k)` with learned κ and φ.

    Of each frequency κ, at the start 0, 1, ... up to ``num_frequencies`` in 1/Å, there is a sine and a cosine, all
    times each power p. For atoms that coincide :math:`r^{-p}` stands for :math:`(r^2 + (0.1\,Å)^2)^{-p/2}`.
    Reference: Anderson et al. 2019, arXiv:1906.04015, section 4.3 ("radial functions").

    Args:
        num_frequencies: Highest initial κ.
        num_powers: Highest p.
    """

    powers: Tensor

    def __init__(self, num_frequencies: int = 3, num_powers: int = 3) -> None:
        super().__init__()
        frequency = torch.arange(num_frequencies + 1.0)
        self.num_basis = 2 * (num_powers + 1) * (num_frequencies + 1)
        self.frequency = nn.Parameter(torch.cat([frequency, frequency]))
        self.phase = nn.Parameter(0.5 * math.pi * torch.cat([torch.zeros_like(frequency), torch.ones_like(frequency)]))
        self.register_buffer("powers", torch.arange(num_powers + 1.0), persistent=False)

    def forward(self, edge_len: Float[Tensor, " E"]) -> Float[Tensor, "E K"]:
        """The functions at these lengths in Å."""
        d = edge_len.unsqueeze(-1)
        wave = torch.sin(2 * math.pi * self.frequency * d + self.phase)
        power = (d.square() + 0.01) ** (-0.5 * self.powers)
        return (power.unsqueeze(-1) * wave.unsqueeze(-2)).flatten(1)


class SelfProduct(ExactConstants):
    r"""All couplings of an atom's features with themselves, :math:`(x^{l_1} \otimes x^{l_2})^{l_3}`, in each channel.

    Those that vanish or repeat each other, since the factors commute, are left out.

    Args:
        lmax_in: Highest degree of the features.
        lmax_out: Highest degree of the outcome.

    Attributes:
        counts: Number of couplings to each degree.
    """

    def __init__(self, lmax_in: int, lmax_out: int) -> None:
        super().__init__()
        size = num_components(lmax_in)
        pairs = list(itertools.combinations_with_replacement(range(size), 2))
        number: dict[tuple[int, ...], int] = {pair: index for index, pair in enumerate(pairs)}
        self.first, self.second = (list(side) for side in zip(*pairs, strict=True))
        self.counts = []
        for degree in range(lmax_out + 1):
            rows = [torch.zeros(2 * degree + 1, 0, len(number), dtype=torch.float64)]
            for pair in itertools.combinations_with_replacement(range(lmax_in + 1), 2):
                if abs(pair[0] - pair[1]) <= degree <= sum(pair):
                    entries = symmetric_coupling(pair, degree)
                    table = torch.zeros(*entries.shape[:2], len(number), dtype=torch.float64)
                    table[:, :, [number[product] for product in monomials(pair)]] = entries
                    rows.append(table.transpose(0, 1))
            whole = torch.cat(rows, 1)
            self.counts.append(whole.shape[1])
            self.register_constant(f"table_{degree}", whole.flatten(0, 1))

    def forward(self, x: Float[Tensor, "N 1 M C"]) -> list[Float[Tensor, "N _ _ C"]]:
        """The products, one tensor ``[N, 2 l3 + 1, couplings, C]`` a degree l3."""
        products = x[:, 0, self.first] * x[:, 0, self.second]
        return [
            (getattr(self, f"table_{degree}") @ products).unflatten(1, (2 * degree + 1, count))
            for degree, count in enumerate(self.counts)
        ]


class CormorantInputConv(Conv):
    r"""The first level, of scalars alone.

    .. math:: y_i = \mathrm{MLP} \big[x_i, \; \frac{1}{\sqrt{\bar n}} Σ_j u_{ij} \, W η(r_{ij}) ∘ x_j\big]

    Reference: Anderson et al. 2019, arXiv:1906.04015, section 4 (input featurization).

    Args:
        channels: C.
        num_basis: K.
        hidden: Of the MLP's hidden layer.
        avg_num_neighbors: Mean number of edges an atom receives, n̄.

    Example:
        >>> conv, edge_index = CormorantInputConv(4, num_basis=5), torch.tensor([[0, 1], [1, 2]])
        >>> conv(torch.ones(3, 4), edge_index, torch.ones(2, 5)).shape
        torch.Size([3, 4])
    """

    avg_num_neighbors: Tensor

    def __init__(self, channels: int, *, num_basis: int, hidden: int = 64, avg_num_neighbors: float = 1.0) -> None:
        super().__init__()
        self.filter = Dense(num_basis, channels, bias=False)
        self.mlp = MLP([2 * channels, hidden, channels])
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))

    def forward(
        self, x: Float[Tensor, "N C"], edge_index: Int[Tensor, "2 E"], edge_rbf: Float[Tensor, "E K"]
    ) -> Float[Tensor, "N C"]:
        """New scalars.

        Args:
            x: Scalars of the atoms.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_rbf: Radial basis times envelope.
        """
        received = self.propagate(edge_index, x=x, weight=self.filter(edge_rbf), size=(x.shape[0], x.shape[0]))
        y: Tensor = self.mlp(torch.cat([x, received * self.avg_num_neighbors.rsqrt()], 1))
        return y

    def message(self, x_j: Float[Tensor, "E C"], weight: Float[Tensor, "E C"]) -> Float[Tensor, "E C"]:
        """What source j sends to target i."""
        return x_j * weight


class CormorantConv(TensorProductConv):
    r"""One level: edges learn from their atoms, atoms from their edges: ``x [N, 1, M, C] → [N, 1, M', C]``.

    .. math::
        g^l_{ij} &= u_{ij} \, μ(r_{ij}) \, W_e^l \big[g'^l_{ij}, \; x_i · x_j, \; η(r_{ij})\big] \\
        y_i &= W \Big[x_i, \; x_i \otimes x_i, \; \frac{1}{\sqrt{\bar n}} Σ_j g_{ij} Y(\hat r_{ij}) \otimes x_j\Big]

    with Clebsch-Gordan products of equal channels, all that couple to a degree side by side, matrices W that mix their
    channels, the edges g' of the level before, the scalar products of all degrees, a radial basis η, and a learned
    mask :math:`μ(r) = σ((ρ - r)/w)`. There is no other nonlinearity. The envelope u ends the interaction. Channels are
    complex in the paper and real here, in the real basis of the harmonics; real and imaginary parts would be channels
    of their own.
    Reference: Anderson et al. 2019, arXiv:1906.04015, eqs. 6 to 8 (section 4).

    Args:
        channels: C.
        paths: Couplings of features and harmonics; they fix M and M'.
        num_basis: K.
        edge_channels: D of g'; 0 in the first level.
        avg_num_neighbors: Mean number of edges an atom receives, n̄; the paper has 1.

    Example:
        >>> conv = CormorantConv(4, AllPaths(1, 2, 1), num_basis=5)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> edge_sh, rbf, env = spherical_harmonics(torch.ones(2, 3), 2), torch.ones(2, 5), torch.ones(2)
        >>> x, g = conv(torch.ones(3, 1, 4, 4), edge_index, torch.ones(2), rbf, edge_sh, env, torch.ones(2, 3, 0))
        >>> x.shape, g.shape
        (torch.Size([3, 1, 4, 4]), torch.Size([2, 3, 4]))
    """

    avg_num_neighbors: Tensor

    def __init__(
        self,
        channels: int,
        paths: AllPaths,
        *,
        num_basis: int,
        edge_channels: int = 0,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        super().__init__(paths)
        self.paths = paths
        self.harmonic_of = [l2 for block in paths.blocks for _, l2 in block.pairs]
        fan_in = edge_channels + (paths.lmax_in + 1) * channels + num_basis
        # larger than usual at the start, as in the authors' code: the mask leaves only the nearest atoms. Features are
        # of about 0.2 in all levels then; with twice that their squares run away, to 10⁶ in the fourth
        self.edge_mix = nn.Parameter(torch.randn(paths.lmax_sh + 1, fan_in, channels) * (2 / math.sqrt(fan_in)))
        self.mask_radius = nn.Parameter(torch.tensor(1.73))  # the first values of the authors' code, in Å
        self.mask_width = nn.Parameter(torch.tensor(math.log(0.2)))
        self.linear_edges = PathLinear(paths, channels, channels)
        self.square = SelfProduct(paths.lmax_in, paths.lmax_out)
        self.linear_square = nn.ParameterList(
            torch.randn(count * channels, channels) / math.sqrt(max(count * channels, 1))
            for count in self.square.counts
        )
        self.lmax_kept = min(paths.lmax_in, paths.lmax_out)
        self.linear_self = DegreeLinear(channels, channels, lmax=self.lmax_kept)
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))

    def forward(
        self,
        x: Float[Tensor, "N 1 M C"],
        edge_index: Int[Tensor, "2 E"],
        edge_len: Float[Tensor, " E"],
        edge_rbf: Float[Tensor, "E K"],
        edge_sh: Float[Tensor, "E M2"],
        edge_env: Float[Tensor, " E"],
        edge_x: Float[Tensor, "E L D"],
    ) -> tuple[Float[Tensor, "N 1 M3 C"], Float[Tensor, "E L C"]]:
        """New features of the atoms and of the edges.

        Args:
            x: Features of the atoms.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_len: Lengths in Å.
            edge_rbf: Radial basis, without an envelope.
            edge_sh: Harmonics of ``r_j − r_i``, component-normalised.
            edge_env: Envelope of each edge.
            edge_x: Features of the edges, g'.
        """
        source, target = edge_index
        near = edge_env * torch.sigmoid((self.mask_radius - edge_len) * torch.exp(-self.mask_width))
        alike = invariants(x.index_select(0, target), x.index_select(0, source), self.paths.lmax_in)
        shared = torch.cat([alike.flatten(1), edge_rbf], 1).unsqueeze(1).expand(-1, self.paths.lmax_sh + 1, -1)
        known = torch.cat([edge_x, shared], 2) * near[:, None, None]
        edge_x = torch.bmm(known.transpose(0, 1), self.edge_mix).transpose(0, 1)

        weight = edge_x[:, self.harmonic_of]
        received = self.message_and_aggregate(edge_index, x.transpose(1, 2), edge_sh, weight)
        y: Tensor = self.linear_edges(received * self.avg_num_neighbors.rsqrt())[0]
        squares = [part.flatten(2) @ mix for part, mix in zip(self.square(x), self.linear_square, strict=True)]
        y = y + torch.cat(squares, 1).unsqueeze(1)
        kept = num_components(self.lmax_kept)
        own = y[:, :, :kept] + self.linear_self(x[:, :, :kept])
        return torch.cat([own, y[:, :, kept:]], 2) / math.sqrt(3), edge_x


class Cormorant(Representation):
    """Covariant molecular neural network: levels of :class:`CormorantConv`, read out through their invariants.

    A level of scalars, :class:`CormorantInputConv`, comes before.

    Reference: Anderson, Hy & Kondor 2019, arXiv:1906.04015; the sizes are those of its QM9 model. Degrees have no
    parity: mirror images are told apart. The scalars of an atom are an MLP of what does not turn, of all levels: the
    degree 0 and the squared length of every degree (section 4.4). Its other degrees are those of the last level. What
    differs: real channels, see :class:`CormorantConv`, and learned vectors of the elements in place of powers of z.

    Args:
        channels: C.
        num_layers: Number of levels, not counting that of scalars.
        lmax: Highest degree of the features.
        lmax_sh: Highest degree of the harmonics.
        cutoff: Radius in Å, beside the learned masks.
        radial: Basis of edge lengths; that of the paper if not given.
        envelope: Cosine if not given.
        avg_num_neighbors: Mean number of edges an atom receives.
    """

    paper = "Anderson et al. 2019, arXiv:1906.04015"
    group = "SE(3)"
    embedding_steps = 1

    def __init__(
        self,
        channels: int = 10,
        num_layers: int = 4,
        *,
        lmax: int = 3,
        lmax_sh: int = 3,
        cutoff: float = 5.0,
        radial: TrigonometricBasis | None = None,
        envelope: Cutoff | None = None,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        super().__init__(channels, cutoff, lmax=lmax)
        self.lmax_sh = lmax_sh
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or TrigonometricBasis()
        self.envelope = envelope or CosineCutoff(cutoff)
        self.first = CormorantInputConv(channels, num_basis=self.radial.num_basis, avg_num_neighbors=avg_num_neighbors)
        self.convs = nn.ModuleList(
            CormorantConv(
                channels,
                AllPaths(lmax if index else 0, lmax_sh, lmax),
                num_basis=self.radial.num_basis,
                edge_channels=channels if index else 0,
                avg_num_neighbors=avg_num_neighbors,
            )
            for index in range(num_layers)
        )
        # of the first level one number a channel, of every level its scalars and lmax + 1 lengths
        self.readout = MLP([(1 + (lmax + 2) * num_layers) * channels, 64, channels])

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 M C"]:
        """Features of the atoms; the arguments are those of :class:`Representation`."""
        edge_len = safe_norm(edge_vec)
        edge_rbf, edge_env = self.radial(edge_len), self.envelope(edge_len)
        edge_sh = spherical_harmonics(edge_vec, self.lmax_sh)
        edge_x = edge_vec.new_zeros(edge_vec.shape[0], self.lmax_sh + 1, 0)
        x = self.first(self.embedding(z), edge_index, edge_rbf * edge_env.unsqueeze(-1))[:, None, None]
        scalars = [x[:, 0, 0]]
        for conv in self.convs:
            x, edge_x = conv(x, edge_index, edge_len, edge_rbf, edge_sh, edge_env, edge_x)
            scalars += [x[:, 0, 0], invariants(x, x, self.lmax).flatten(1)]
        summary = self.readout(torch.cat(scalars, 1))[:, None, None]
        return torch.cat([summary, x[:, :, 1:]], 2)
