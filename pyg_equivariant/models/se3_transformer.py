"""SE(3)-Transformer: attention whose weights are invariant and whose values are equivariant."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import silu
from pyg_equivariant.nn.attention import edge_softmax
from pyg_equivariant.nn.conv import Conv
from pyg_equivariant.nn.cutoff import CosineCutoff, Cutoff
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.filter import RadialFilter
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.layer_norm import LayerNorm
from pyg_equivariant.nn.linear import DegreeLinear
from pyg_equivariant.nn.mlp import MLP
from pyg_equivariant.nn.radial import GaussianBasis, RadialBasis
from pyg_equivariant.nn.tensor_product import AllPaths, PathLinear, TensorProduct
from pyg_equivariant.o3.layout import degree_slices, degrees, num_components

__all__ = [
    "AttentiveSE3Transformer",
    "AttentiveSelfInteraction",
    "LinearSelfInteraction",
    "SE3Transformer",
    "SE3TransformerConv",
    "SelfInteraction",
]


class SelfInteraction(nn.Module):
    """``x [N, 1, M, C] → [N, 1, M', D]``: what an atom's features contribute to its own new ones, degree by degree.

    Args:
        in_channels: C.
        out_channels: D.
        lmax_in: Highest degree of the features.
        lmax_out: Highest degree of the outcome; those that the features lack are zero.
    """

    def __init__(self, in_channels: int, out_channels: int, lmax_in: int, lmax_out: int) -> None:
        super().__init__()
        self.lmax = min(lmax_in, lmax_out)
        self.components = num_components(self.lmax)
        self.missing = num_components(lmax_out) - self.components

    def forward(self, x: Float[Tensor, "N 1 M C"]) -> Float[Tensor, "N 1 M2 D"]:
        """The contribution."""
        return functional.pad(self.mix(x[:, :, : self.components]), (0, 0, 0, self.missing))

    def mix(self, x: Float[Tensor, "N 1 M C"]) -> Float[Tensor, "N 1 M D"]:
        """The mixed channels of the degrees that both sides have."""
        raise NotImplementedError


class LinearSelfInteraction(SelfInteraction):
    """One matrix a degree, the same for all atoms (section 3.2, eq. 8)."""

    def __init__(self, in_channels: int, out_channels: int, lmax_in: int, lmax_out: int) -> None:
        super().__init__(in_channels, out_channels, lmax_in, lmax_out)
        self.linear = DegreeLinear(in_channels, out_channels, lmax=self.lmax)

    def mix(self, x: Float[Tensor, "N 1 M C"]) -> Float[Tensor, "N 1 M D"]:
        """See :class:`SelfInteraction`."""
        mixed: Tensor = self.linear(x)
        return mixed


class AttentiveSelfInteraction(SelfInteraction):
    r"""One matrix a degree and atom, which follows from the scalar products of the atom's channels (section 3.3).

    .. math:: y^l_{ic'} = Σ_c w^l_{i,c'c} \, x^l_{ic}, \qquad w^l_i = \mathrm{MLP}\Big(⊕_{cc'} x^l_{ic} · x^l_{ic'}\Big)

    As in the authors' code the MLP normalises its input, of which the weights would else be a quadratic function.
    """

    def __init__(self, in_channels: int, out_channels: int, lmax_in: int, lmax_out: int) -> None:
        super().__init__(in_channels, out_channels, lmax_in, lmax_out)
        square = in_channels**2
        self.weights = nn.ModuleList(
            nn.Sequential(LayerNorm(square), MLP([square, in_channels, in_channels * out_channels]))
            for _ in range(self.lmax + 1)
        )

    def mix(self, x: Float[Tensor, "N 1 M C"]) -> Float[Tensor, "N 1 M D"]:
        """See :class:`SelfInteraction`."""
        mixed = []
        for rows, weight in zip(degree_slices(self.lmax), self.weights, strict=True):
            part = x[:, 0, rows]
            gram = part.transpose(1, 2) @ part / part.shape[1]
            matrix = weight(gram.flatten(1)).unflatten(1, (x.shape[3], -1))
            mixed.append(part @ matrix * x.shape[3] ** -0.5)
        return torch.cat(mixed, 1).unsqueeze(1)


class NormNonlinearity(nn.Module):
    r"""Acts on lengths and keeps directions: :math:`φ(\mathrm{LN}(‖x^l‖)) \, x^l / ‖x^l‖` for l > 0.

    LN normalises over the channels of a degree. With φ = ReLU and for l = 0 too, as in the paper, it would jump where a
    scalar changes its sign: here φ is SiLU, scalars become :math:`φ(\mathrm{LN}(x^0))`, and lengths are
    :math:`\sqrt{‖x^l‖^2 + ε}`.

    Args:
        channels: C.
        lmax: Highest degree of the features.
        eps: ε; its root is the length below which features are not blown up to one.
    """

    def __init__(self, channels: int, *, lmax: int, eps: float = 1e-2) -> None:
        super().__init__()
        self.lmax = lmax
        self.degrees = degrees(lmax)[1:]
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(lmax + 1, channels))
        self.bias = nn.Parameter(torch.zeros(lmax + 1, channels))

    def forward(self, x: Float[Tensor, "N 1 M C"]) -> Float[Tensor, "N 1 M C"]:
        """Nonlinear features."""
        scalars, *higher = (x[:, 0, rows] for rows in degree_slices(self.lmax))
        lengths = [(part.square().sum(1, keepdim=True) + self.eps).sqrt() for part in higher]
        y = torch.cat([scalars, *lengths], 1)
        y = silu(functional.layer_norm(y, y.shape[2:]) * self.weight + self.bias)
        if not lengths:
            return y.unsqueeze(1)
        factors = y[:, 1:] / torch.cat(lengths, 1)
        return torch.cat([y[:, :1], x[:, 0, 1:] * factors[:, [degree - 1 for degree in self.degrees]]], 1).unsqueeze(1)


class SE3TransformerConv(Conv):
    r"""Attention over the neighbours in all degrees: ``x [N, 1, M, C] → [N, 1, M', D]``.

    .. math::
        q_i &= ⊕_l W_Q^l x_i^l, \qquad
        k_{ij} = ⊕_l Σ_{k} W_K^{lk}(r_{ij}) \, x_j^k, \qquad
        α_{ij} = \mathrm{softmax}_j \big(q_i · k_{ij} / \sqrt n\big) \\
        y_i^l &= S^l(x_i^l) + W_O^l Σ_j α_{ij} ⊕_k W_V^{lk}(r_{ij}) \, x_j^k

    with the kernels of Tensor Field Networks, :math:`W^{lk}(r) = Σ_J φ_J^{lk}(‖r‖) \, Q_J^{lk} Y_J(\hat r)` for all J
    from \|l − k\| to l + k (eqs. 6 to 8), n numbers in a key, and the self-interaction S. Each head has its own
    channels of queries, keys and values. Here every channel has its own radial functions φ, between a matrix W that
    mixes the channels of the features and another (W_O) that mixes those of all kernels; the authors' code has one φ
    for each pair of channels, which takes C times the memory. The softmax is smooth at the cutoff, see
    :func:`~pyg_equivariant.nn.attention.edge_softmax`.
    Reference: Fuchs et al. 2020, arXiv:2006.10503, eqs. 6 to 10.

    Args:
        in_channels: C.
        out_channels: D, of the queries, keys and values too.
        paths: Couplings of features and harmonics; they fix M and M'.
        num_basis: K.
        num_heads: Heads; they divide D.
        hidden: Channels of the radial MLP's hidden layers.
        self_interaction: S; a linear one if not given.

    Example:
        >>> conv = SE3TransformerConv(4, 8, AllPaths(1, 2, 1), num_basis=5, num_heads=2)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> edge_sh = spherical_harmonics(torch.ones(2, 3), 2)
        >>> conv(torch.ones(3, 1, 4, 4), edge_index, torch.ones(2, 5), edge_sh, torch.ones(2)).shape
        torch.Size([3, 1, 4, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        paths: AllPaths,
        *,
        num_basis: int,
        num_heads: int = 1,
        hidden: Sequence[int] = (32,),
        self_interaction: SelfInteraction | None = None,
    ) -> None:
        super().__init__()
        if out_channels % num_heads:
            raise ValueError(f"num_heads must divide the channels, got {num_heads} heads for {out_channels} channels")
        lmax_in, lmax_out = paths.lmax_in, paths.lmax_out
        self.num_heads = num_heads
        self.lmax_key = min(lmax_in, lmax_out)
        self.components = num_components(self.lmax_key)
        self.scale = (self.components * out_channels / num_heads) ** -0.5
        self.query = DegreeLinear(in_channels, out_channels, lmax=self.lmax_key)
        self.key_value = DegreeLinear(in_channels, 2 * out_channels, lmax=lmax_in)
        self.filter = RadialFilter(num_basis, paths.num_paths, 2 * out_channels, hidden)
        self.product = TensorProduct(paths)
        self.linear_out = PathLinear(paths, out_channels, out_channels)
        self.self_interaction = self_interaction or LinearSelfInteraction(in_channels, out_channels, lmax_in, lmax_out)

    def forward(
        self,
        x: Float[Tensor, "N 1 M C"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "E K"],
        edge_sh: Float[Tensor, "E M2"],
        edge_env: Float[Tensor, " E"],
    ) -> Float[Tensor, "N 1 M3 D"]:
        """New features.

        Args:
            x: Features of the atoms.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_rbf: Radial basis, without an envelope.
            edge_sh: Harmonics of ``r_j − r_i``, component-normalised; those that the paths do not take are left out.
            edge_env: Envelope of each edge.
        """
        received = self.propagate(
            edge_index,
            x=self.key_value(x).transpose(1, 2),
            query=self.query(x[:, :, : self.components])[:, 0] * self.scale,
            edge_sh=edge_sh[:, : num_components(self.product.paths.lmax_sh)],
            weight=self.filter(edge_rbf),
            edge_env=edge_env,
            size=(x.shape[0], x.shape[0]),
        )
        y: Tensor = self.linear_out(received)[0] + self.self_interaction(x)
        return y

    def message(
        self,
        x_j: Float[Tensor, "E M 1 C"],
        query_i: Float[Tensor, "E Mq D"],
        edge_sh: Float[Tensor, "E M2"],
        weight: Float[Tensor, "E W C"],
        edge_env: Float[Tensor, " E"],
        index: Int[Tensor, " E"],
        size_i: int,
    ) -> Float[Tensor, "E T D"]:
        """The values of all kernels times the attention."""
        keys, values = self.product(x_j, edge_sh, weight).chunk(2, -1)
        key = torch.cat([part.sum((2, 3)) for part in self.product.paths.split(keys)[: self.lmax_key + 1]], 1)
        score = (key * query_i).sum(1).unflatten(1, (self.num_heads, -1)).sum(2)
        attention = edge_softmax(score, edge_env, index, size_i)
        return values * attention.repeat_interleave(values.shape[-1] // self.num_heads, 1).unsqueeze(1)


class SE3Transformer(Representation):
    """Layers of :class:`SE3TransformerConv`, each but the last followed by a nonlinearity of the features' lengths.

    Reference: Fuchs et al. 2020, arXiv:2006.10503, with the sizes of its QM9 model. Degrees have no parity here: mirror
    images are told apart. What differs: the paper's model ends in a layer without attention, this one in its last
    layer with; smooth functions replace ReLU, for forces (see :class:`NormNonlinearity`). Radial functions are MLPs
    of Gaussians.

    Args:
        channels: C.
        num_layers: Number of layers.
        lmax: Highest degree of the features; the kernels' harmonics go to twice that.
        lmax_out: Highest degree of the last layer; 0 is enough for energies, and a good deal faster. All if not given.
        num_heads: Heads of the attention; they divide the channels.
        cutoff: Radius in Å.
        radial: Basis of edge lengths; 20 Gaussians if not given.
        envelope: Cosine if not given.
    """

    paper = "Fuchs et al. 2020, arXiv:2006.10503"
    group = "SE(3)"
    self_interaction: type[SelfInteraction] = LinearSelfInteraction

    def __init__(
        self,
        channels: int = 32,
        num_layers: int = 7,
        *,
        lmax: int = 3,
        lmax_out: int | None = None,
        num_heads: int = 8,
        cutoff: float = 5.0,
        radial: RadialBasis | None = None,
        envelope: Cutoff | None = None,
    ) -> None:
        last = lmax if lmax_out is None else lmax_out
        if num_layers < 1 or not 0 <= last <= lmax:
            raise ValueError(
                f"{type(self).__name__} needs num_layers ≥ 1 and 0 ≤ lmax_out ≤ lmax, got "
                f"num_layers={num_layers}, lmax={lmax}, lmax_out={lmax_out}"
            )
        super().__init__(channels, cutoff, lmax=last)
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or GaussianBasis(20, cutoff)
        self.envelope = envelope or CosineCutoff(cutoff)
        ends = [0, *[lmax] * (num_layers - 1), last]
        self.lmax_sh = max(a + b for a, b in itertools.pairwise(ends))
        self.convs = nn.ModuleList(
            SE3TransformerConv(
                channels,
                channels,
                AllPaths(lmax_in, lmax_in + lmax_next, lmax_next),
                num_basis=self.radial.num_basis,
                num_heads=num_heads,
                self_interaction=self.self_interaction(channels, channels, lmax_in, lmax_next),
            )
            for lmax_in, lmax_next in itertools.pairwise(ends)
        )
        self.nonlinearities = nn.ModuleList(NormNonlinearity(channels, lmax=lmax) for _ in range(num_layers - 1))

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
        x: Tensor = self.embedding(z)[:, None, None]
        for index, conv in enumerate(self.convs):
            if index:
                x = self.nonlinearities[index - 1](x)
            x = conv(x, edge_index, edge_rbf, edge_sh, edge_env)
        return x


class AttentiveSE3Transformer(SE3Transformer):
    """The SE(3)-Transformer with :class:`AttentiveSelfInteraction` in every layer."""

    self_interaction = AttentiveSelfInteraction
