"""Equiformer, an equivariant graph transformer, in its second version."""

import math
from typing import Optional

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import Activation, SiLU
from pyg_equivariant.nn.attention import edge_softmax
from pyg_equivariant.nn.conv import Conv
from pyg_equivariant.nn.cutoff import Cutoff, PolynomialCutoff
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.geometry import safe_norm, unit_vectors
from pyg_equivariant.nn.layer_norm import LayerNorm
from pyg_equivariant.nn.linear import DegreeLinear
from pyg_equivariant.nn.mlp import dense
from pyg_equivariant.nn.radial import GaussianBasis, RadialBasis
from pyg_equivariant.nn.s2 import QuadraticSiLU, SeparableS2Activation, SphereActivation
from pyg_equivariant.nn.so2 import EdgeFrame, SO2Linear, from_frame, order_rows, to_frame
from pyg_equivariant.o3.layout import degree_slices, degrees, num_components

__all__ = ["EdgeDegreeEmbedding", "Equiformer", "EquiformerConv", "FeedForward", "SeparableNorm", "SmoothLeakyReLU"]


class SmoothLeakyReLU(Activation):
    """``(1 + α)/2 x + (1 − α)/2 x (2σ(x) − 1)`` with α = 0.2 (Liao & Smidt 2022, arXiv:2206.11990, appendix)."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise, any shape."""
        return x * (0.2 + 0.8 * torch.sigmoid(x))


class SeparableNorm(nn.Module):
    r"""Layer normalisation of the scalars, and of all other degrees by one common root mean square.

    .. math::
        y_0 = γ_0 \frac{x_0 - μ}{σ_0} + β, \qquad y_{lmc} = γ_{lc} \frac{x_{lmc}}{σ}, \qquad
        σ^2 = \frac{1}{l_{max}} \sum_{l > 0} \frac{1}{(2l + 1) C} \sum_{mc} x_{lmc}^2 + ε

    so that the degrees keep their sizes relative to each other.
    Reference: Liao et al. 2023, arXiv:2306.12059, section 3.4.

    Args:
        channels: C.
        lmax: Highest degree.
        eps: ε, also added to :math:`σ_0^2`.
    """

    def __init__(self, channels: int, lmax: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.lmax = lmax
        self.degrees = [degree - 1 for degree in degrees(lmax)[1:]]
        self.scalar_norm = LayerNorm(channels, eps=eps)
        self.weight = nn.Parameter(torch.ones(lmax, channels))

    def forward(self, x: Float[Tensor, "N 1 M C"]) -> Float[Tensor, "N 1 M C"]:
        """Normalised features."""
        scalars, rest = x.split([1, x.shape[2] - 1], dim=2)
        scalars = self.scalar_norm(scalars)
        if not self.lmax:
            return scalars
        squares = [x[:, :, rows].square().mean((2, 3)) for rows in degree_slices(self.lmax)[1:]]
        inverse = (torch.stack(squares).mean(0) + self.eps).rsqrt()
        return torch.cat([scalars, rest * inverse[:, :, None, None] * self.weight[self.degrees]], dim=2)


class RadialFunction(nn.Module):
    """Filters from edge lengths and the elements at both ends: two hidden layers, with layer norm and SiLU.

    The first layer sees the radial basis and learned vectors of both elements; as it is linear, the vectors are
    learned as what they add to it.

    Args:
        num_basis: K.
        hidden: Channels of the hidden layers.
        out_channels: W.
    """

    def __init__(self, num_basis: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.source = AtomEmbedding(hidden)
        self.target = AtomEmbedding(hidden)
        self.linear_in = dense(num_basis, hidden)
        self.rest = nn.Sequential(
            LayerNorm(hidden),
            SiLU(),
            dense(hidden, hidden),
            LayerNorm(hidden),
            SiLU(),
            dense(hidden, out_channels),
        )

    def forward(
        self, z: Int[Tensor, " N"], edge_index: Int[Tensor, "2 E"], edge_rbf: Float[Tensor, "E K"]
    ) -> Float[Tensor, "E W"]:
        """The filters; not zero at the cutoff."""
        ends = self.source(z).index_select(0, edge_index[0]) + self.target(z).index_select(0, edge_index[1])
        filters: Tensor = self.rest(self.linear_in(edge_rbf) + ends)
        return filters


class EdgeDegreeEmbedding(Conv):
    r"""The directions of an atom's edges, weighted by learned filters, as its first features of degree l > 0.

    .. math:: y_{ilmc} = \frac{1}{\bar n} \sum_{j \in \mathcal N(i)} u_{ij} R_{lc}(d_{ij}, z_j, z_i) D_{ij, m0}^l

    Column 0 of the edge frame's matrix is the harmonic of the edge over √(2l + 1).
    Reference: Liao et al. 2023, arXiv:2306.12059, section 3.5 ('Embedding').

    Args:
        channels: C.
        num_basis: K.
        lmax: Highest degree.
        hidden: Channels of the radial function's hidden layers.
        avg_num_neighbors: Mean number of edges an atom receives, n̄.
    """

    avg_num_neighbors: Tensor

    def __init__(
        self, channels: int, *, num_basis: int, lmax: int, hidden: int = 64, avg_num_neighbors: float = 1.0
    ) -> None:
        super().__init__()
        self.channels = channels
        self.degrees = degrees(lmax)
        self.radial = RadialFunction(num_basis, hidden, (lmax + 1) * channels)
        self.register_buffer("avg_num_neighbors", torch.tensor(float(avg_num_neighbors)))

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "E K"],
        frame: list[Float[Tensor, "E _ _"]],
        envelope: Float[Tensor, " E"],
    ) -> Float[Tensor, "N 1 M C"]:
        """Features of the atoms; the arguments are those of :class:`EquiformerConv`."""
        edge_sh = torch.cat([matrix[:, matrix.shape[1] // 2] for matrix in frame], dim=1)
        weight = self.radial(z, edge_index, edge_rbf).unflatten(1, (len(frame), self.channels))
        size = (z.shape[0], z.shape[0])
        received: Tensor = self.propagate(edge_index, size=size, edge_sh=edge_sh * envelope.unsqueeze(1), weight=weight)
        return received.unsqueeze(1) / self.avg_num_neighbors

    def message(self, edge_sh: Float[Tensor, "E M"], weight: Float[Tensor, "E L C"]) -> Float[Tensor, "E M C"]:
        """What each edge adds to its target."""
        return edge_sh.unsqueeze(2) * weight[:, self.degrees]


class EquiformerConv(Conv):
    r"""Equivariant graph attention by two eSCN convolutions.

    In the frame of the edge, with the features :math:`x_{ij} = D_{ij} (x_j ⊕ x_i)` of both its ends,

    .. math::
        (f_{ij}, g_{ij}, s_{ij}) &= L_1(R_{ij} ∘ x_{ij}), \qquad v_{ij} = L_2(\mathrm{S2}(f_{ij}, s_{ij})) \\
        a_{ij} &= \mathrm{softmax}_j\big(w^\top \mathrm{LeakyReLU}(\mathrm{LN}(g_{ij}))\big), \qquad
        y_i = W \sum_j D_{ij}^\top a_{ij} v_{ij}

    with L the linear maps that commute with turns about the edge, R the radial function's filters, g and s invariant,
    S2 the separable activation on the sphere; scores g and weights a are one a head. With the envelope in the softmax
    (:func:`~pyg_equivariant.nn.attention.edge_softmax`), which the paper has not, a neighbour fades at the cutoff.
    Reference: Liao et al. 2023, arXiv:2306.12059, sections 3.1 to 3.3 and Fig. 1b; attention: Liao & Smidt 2022,
    arXiv:2206.11990, section 3.3.

    Args:
        channels: C, a multiple of ``num_heads``.
        num_basis: K.
        lmax: Highest degree.
        mmax: Highest order of what happens in the edge frames; all if not given.
        num_heads: Heads of the attention; each has ``channels / num_heads`` channels of the values v.
        hidden: Channels of scores g of a head, and of the radial function's hidden layers. f has C/2.
        activation: On the sphere; :class:`QuadraticSiLU` if not given.

    Raises:
        ValueError: if the heads cannot share the channels.

    Example:
        >>> conv, frame = EquiformerConv(8, num_basis=4, lmax=2), EdgeFrame(2)
        >>> x, edge_index = torch.zeros(3, 1, 9, 8), torch.tensor([[0, 1], [1, 2]])
        >>> edge_dir = torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8]])
        >>> z = torch.tensor([8, 1, 1])
        >>> conv(x, z, edge_index, torch.ones(2, 4), frame(edge_dir), torch.ones(2)).shape
        torch.Size([3, 1, 9, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        num_basis: int,
        lmax: int,
        mmax: int | None = None,
        num_heads: int = 4,
        hidden: int = 64,
        activation: SphereActivation | None = None,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{num_heads} heads cannot share {channels} channels: choose a multiple")
        self.num_heads = num_heads
        self.inner = max(1, channels // 2)
        self.scores = num_heads * hidden
        highest = lmax if mmax is None else mmax
        self.so2_in = SO2Linear(2 * channels, self.inner, lmax=lmax, mmax=highest, num_scalars=self.scores + self.inner)
        self.radial = RadialFunction(num_basis, hidden, self.so2_in.num_scales)
        self.activation = SeparableS2Activation(
            lmax, activation or QuadraticSiLU(), rows=[row for rows in order_rows(lmax, highest) for row in rows]
        )
        self.so2_out = SO2Linear(self.inner, channels, lmax=lmax, mmax=highest)
        self.score_norm = LayerNorm(hidden)
        self.score_activation = SmoothLeakyReLU()
        self.score = nn.Parameter(torch.empty(num_heads, hidden).uniform_(-1, 1) / math.sqrt(hidden))
        self.linear = DegreeLinear(channels, channels, lmax=lmax, bias=True)

    def forward(
        self,
        x: Float[Tensor, "N 1 M C"],
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "E K"],
        frame: list[Float[Tensor, "E _ _"]],
        envelope: Float[Tensor, " E"],
    ) -> Float[Tensor, "N 1 M C"]:
        """The update of x.

        Args:
            x: Features of the atoms.
            z: Atomic numbers.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_rbf: Radial basis, without envelope.
            frame: :class:`~pyg_equivariant.nn.so2.EdgeFrame` of the directions of ``r_j − r_i``.
            envelope: A factor of each edge, 0 from the cutoff on.
        """
        scale = self.radial(z, edge_index, edge_rbf)
        size = (z.shape[0], z.shape[0])
        received = self.propagate(edge_index, size=size, x=x[:, 0], scale=scale, frame=frame, envelope=envelope)
        update: Tensor = self.linear(received.unsqueeze(1))
        return update

    def message(
        self,
        x_i: Float[Tensor, "E M C"],
        x_j: Float[Tensor, "E M C"],
        scale: Float[Tensor, "E W"],
        frame: list[Float[Tensor, "E _ _"]],
        envelope: Float[Tensor, " E"],
        index: Int[Tensor, " E"],
        size_i: Optional[int],  # noqa: UP045  (see Conv)
    ) -> Float[Tensor, "E M C"]:
        """The value of each edge times its share in the target's attention."""
        assert size_i is not None
        orders, invariants = self.so2_in(to_frame(torch.cat([x_j, x_i], dim=2), frame), scale)
        keys, scalars = invariants.split([self.scores, self.inner], dim=1)
        keys = self.score_activation(self.score_norm(keys.unflatten(1, self.score.shape)))
        attention = edge_softmax((keys * self.score).sum(-1), envelope, index, size_i)
        values, _ = self.so2_out(self.activate(orders, scalars))
        weight = attention.repeat_interleave(values[0].shape[2] // (len(frame) * self.num_heads), dim=1)
        return from_frame(values, frame) * weight.unsqueeze(1)

    def activate(
        self, orders: list[Float[Tensor, "E _ _"]], scalars: Float[Tensor, "E D"]
    ) -> list[Float[Tensor, "E _ _"]]:
        """The activation on the sphere in the edge's frame."""
        counts = [order.shape[1] * order.shape[2] // self.inner for order in orders]
        x = torch.cat(
            [order.reshape(scalars.shape[0], n, self.inner) for order, n in zip(orders, counts, strict=True)], 1
        )
        parts = self.activation(x, scalars).split(counts, dim=1)
        return [part.reshape(order.shape) for part, order in zip(parts, orders, strict=True)]


class FeedForward(nn.Module):
    r"""Mixing of channels, an MLP of the channels at each point of the sphere, mixing of channels.

    .. math:: y = W_2 \, \mathrm{S2}_\mathrm{MLP}(W_1 x, W_0 x_0)

    Reference: Liao et al. 2023, arXiv:2306.12059, section 3.5 and Fig. 1d; F is an MLP with two hidden layers.

    Args:
        channels: C, of the hidden layers too.
        lmax: Highest degree.
        activation: On the sphere; :class:`QuadraticSiLU` if not given.
    """

    def __init__(self, channels: int, lmax: int, activation: SphereActivation | None = None) -> None:
        super().__init__()
        self.linear_in = DegreeLinear(channels, channels, lmax=lmax, bias=True)
        self.scalar = dense(channels, channels)
        self.activation = SeparableS2Activation(lmax, activation or QuadraticSiLU(), sizes=[channels] * 4)
        self.linear_out = DegreeLinear(channels, channels, lmax=lmax, bias=True)

    def forward(self, x: Float[Tensor, "N 1 M C"]) -> Float[Tensor, "N 1 M C"]:
        """The update of x."""
        y = self.activation(self.linear_in(x)[:, 0], self.scalar(x[:, 0, 0]))
        update: Tensor = self.linear_out(y.unsqueeze(1))
        return update


class Equiformer(Representation):
    r"""Graph transformer of features up to a high degree, with eSCN convolutions: EquiformerV2.

    .. math::
        x \leftarrow x + \mathrm{Attention}(\mathrm{Norm}(x)), \qquad x \leftarrow x + \mathrm{FFN}(\mathrm{Norm}(x))

    in each layer, from learned vectors of the elements and :class:`EdgeDegreeEmbedding`, and a last norm.
    Reference: Liao et al. 2023, arXiv:2306.12059; Equiformer: Liao & Smidt 2022, arXiv:2206.11990; SO(2) convolutions:
    Passaro & Zitnick 2023, arXiv:2302.03655. The defaults are those of its QM9 models (Table 13).

    What differs: the paper takes SiLU at 18 × 18 points of the sphere, which lets energies depend on the orientation,
    at the start by 10⁻³ of their spread. The default here is exact; ``activation=GridSiLU()`` is the paper's. Edges
    fade at the cutoff. There is no dropout of attention or of layers.

    Args:
        channels: C, a multiple of ``num_heads``.
        num_layers: Number of layers.
        lmax: Highest degree.
        mmax: Highest order m of what happens in the edge frames; all if not given. With 2 (the paper on OC20) it is
            about twice as fast.
        num_heads: Heads of the attention.
        hidden: Channels of radial functions and of attention scores.
        cutoff: Radius in Å.
        radial: Basis of edge lengths; 128 Gaussians if not given.
        envelope: Polynomial of p = 6 if not given.
        activation: On the sphere; :class:`~pyg_equivariant.nn.s2.QuadraticSiLU` if not given.
        avg_num_neighbors: Mean number of edges an atom receives.

    Returns features of all degrees, ``[N, 1, (lmax + 1)², C]``.
    """

    paper = "Liao et al. 2023, arXiv:2306.12059"
    group = "SE(3)"
    embedding_steps = 1

    def __init__(
        self,
        channels: int = 96,
        num_layers: int = 6,
        *,
        lmax: int = 4,
        mmax: int | None = None,
        num_heads: int = 4,
        hidden: int = 64,
        cutoff: float = 5.0,
        radial: RadialBasis | None = None,
        envelope: Cutoff | None = None,
        activation: SphereActivation | None = None,
        avg_num_neighbors: float = 1.0,
    ) -> None:
        super().__init__(channels, cutoff, lmax=lmax)
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or GaussianBasis(128, cutoff)
        self.envelope = envelope or PolynomialCutoff(cutoff)
        self.frame = EdgeFrame(lmax, mmax)
        num_basis = self.radial.num_basis
        self.edge_embedding = EdgeDegreeEmbedding(
            channels, num_basis=num_basis, lmax=lmax, hidden=hidden, avg_num_neighbors=avg_num_neighbors
        )
        self.convs = nn.ModuleList(
            EquiformerConv(
                channels,
                num_basis=num_basis,
                lmax=lmax,
                mmax=mmax,
                num_heads=num_heads,
                hidden=hidden,
                activation=activation,
            )
            for _ in range(num_layers)
        )
        self.feed_forwards = nn.ModuleList(FeedForward(channels, lmax, activation) for _ in range(num_layers))
        self.norms = nn.ModuleList(SeparableNorm(channels, lmax) for _ in range(2 * num_layers + 1))

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 M C"]:
        """See :meth:`Representation.forward`."""
        edge_len = safe_norm(edge_vec)
        frame = self.frame(unit_vectors(edge_vec, edge_len))
        edge_rbf, envelope = self.radial(edge_len), self.envelope(edge_len)
        x: Tensor = self.edge_embedding(z, edge_index, edge_rbf, frame, envelope)
        known = self.embedding(z)[:, None, None]
        x = x + functional.pad(known, (0, 0, 0, num_components(self.lmax) - 1))
        norms = iter(self.norms)
        for conv, feed_forward in zip(self.convs, self.feed_forwards, strict=True):
            x = x + conv(next(norms)(x), z, edge_index, edge_rbf, frame, envelope)
            x = x + feed_forward(next(norms)(x))
        x = next(norms)(x)
        return x
