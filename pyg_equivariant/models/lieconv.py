"""LieConv, convolutions on Lie groups, and the residual network of them."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Group, Representation
from pyg_equivariant.nn.activation import silu
from pyg_equivariant.nn.conv import Conv, segment_sum
from pyg_equivariant.nn.cutoff import Cutoff, PolynomialCutoff
from pyg_equivariant.nn.embedding import MAX_Z, AtomEmbedding
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.lie_groups import LieGroup, Translations
from pyg_equivariant.nn.mlp import MLP, dense
from pyg_equivariant.nn.norm import DegreeNorm

__all__ = ["LieBlock", "LieConv", "LieResNet", "PreactivatedLinear", "sample_neighbors"]


def sample_neighbors(
    edge_index: Int[Tensor, "2 E"], count: int, num_nodes: int, generator: torch.Generator | None = None
) -> Int[Tensor, " S"]:
    """Which edges to keep so that each target has ``count`` neighbours at most, drawn uniformly.

    The mean of a :class:`LieConv` over them is an unbiased estimate of that over all neighbours (section 4.4).

    Args:
        edge_index: Row 0 the source j, row 1 the target i.
        count: Neighbours of a target.
        num_nodes: Number of targets.
        generator: Of the random numbers.
    """
    target = edge_index[1]
    order = torch.randperm(len(target), generator=generator, device=target.device)
    order = order[torch.argsort(target[order], stable=True)]
    degree = torch.bincount(target, minlength=num_nodes)
    rank = torch.arange(len(target), device=target.device) - (degree.cumsum(0) - degree)[target[order]]
    return order[rank < count].sort().values


class LieConv(Conv):
    r"""Convolution of functions on a Lie group, a mean over the neighbours of an element.

    .. math::
        h_i = \frac{\sum_j u_{ij} \, k\big(\log(v_j^{-1} u_i), q_i, q_j\big) f_j}{\sum_j u_{ij}}, \qquad
        k(a) = W \cdot \mathrm{MLP}(a)

    The matrices k have one factor from the MLP, of 16 numbers, that depends on the edge and one, W, that does not: the
    sum over neighbours is of the outer products of f and the MLP's numbers, and W comes last (the PointConv trick).
    The mean is the Monte-Carlo estimate of the integral over a ball of the group; u is one within the ball, or an
    envelope where the result shall be smooth. What both elements are multiplied with from the left does not matter: the
    layer is equivariant to any group with an exponential and a logarithm.
    Reference: Finzi et al. 2020, arXiv:2002.12880, sections 4.2 to 4.5; Wu et al. 2019, arXiv:1811.07246 (PointConv).

    Args:
        in_channels: C.
        out_channels: D.
        pair_dim: Columns of ``pair``: ``group.dim + 2 * group.orbit_dim``.
        hidden: Channels of the MLP's two hidden layers.
        rank: Numbers that the MLP returns.

    Example:
        >>> from pyg_equivariant.nn.lie_groups import SE2
        >>> group, pos = SE2(), torch.randn(5, 2)
        >>> u = group.lift(pos)[:, 0]
        >>> edge_index = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
        >>> pair = group.relative(u[edge_index[1]], u[edge_index[0]])
        >>> LieConv(8, 4, pair_dim=group.dim)(torch.zeros(5, 8), edge_index, pair).shape
        torch.Size([5, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, pair_dim: int, *, hidden: int = 32, rank: int = 16) -> None:
        super().__init__()
        self.kernel = MLP([pair_dim, hidden, hidden, rank])
        self.linear = dense(rank * in_channels, out_channels)

    def forward(
        self,
        x: Float[Tensor, "S C"],
        edge_index: Int[Tensor, "2 E"],
        pair: Float[Tensor, "E P"],
        weight: Float[Tensor, " E"] | None = None,
        *,
        num_targets: int | None = None,
    ) -> Float[Tensor, "T D"]:
        """Values at the targets.

        Args:
            x: Values f at the sources.
            edge_index: Row 0 the source j, row 1 the target i. An element usually is its own neighbour, too.
            pair: :math:`log(v_j^{-1} u_i)`, followed by the orbits of i and of j if there are several.
            weight: u, one if not given.
            num_targets: Number of targets, where they are not the sources.
        """
        size = (x.shape[0], x.shape[0] if num_targets is None else num_targets)
        kernel = self.kernel(pair)
        weight = torch.ones_like(kernel[:, 0]) if weight is None else weight
        received = self.propagate(edge_index, size=size, x=(x, None), kernel=kernel * weight.unsqueeze(1))
        total = segment_sum(weight, edge_index[1], size[1]).unsqueeze(1)
        values: Tensor = self.linear(received / torch.where(total == 0, 1.0, total))
        return values

    def message(self, x_j: Float[Tensor, "E C"], kernel: Float[Tensor, "E R"]) -> Float[Tensor, "E RC"]:
        """The outer product of source and kernel."""
        return (kernel.unsqueeze(2) * x_j.unsqueeze(1)).flatten(1)


class PreactivatedLinear(nn.Module):
    """Norm, SiLU, linear layer.

    Args:
        in_channels: C.
        out_channels: D.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = DegreeNorm(in_channels)
        self.linear = dense(in_channels, out_channels)

    def forward(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        """Mixed values."""
        values: Tensor = self.linear(silu(self.norm(x[:, None, None])[:, 0, 0]))
        return values


class LieBlock(nn.Module):
    """Bottleneck of norm, SiLU, linear; norm, SiLU, :class:`LieConv`; norm, SiLU, linear.

    Reference: Finzi et al. 2020, arXiv:2002.12880, Fig. 5.

    Args:
        channels: C; the convolution has C/4.
        pair_dim: Of the convolution.
    """

    def __init__(self, channels: int, pair_dim: int) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.first = PreactivatedLinear(channels, inner)
        self.norm = DegreeNorm(inner)
        self.conv = LieConv(inner, inner, pair_dim)
        self.last = PreactivatedLinear(inner, channels)

    def forward(
        self,
        x: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        pair: Float[Tensor, "E P"],
        weight: Float[Tensor, " E"],
    ) -> Float[Tensor, "N C"]:
        """The update of x; the arguments are those of :class:`LieConv`."""
        y = silu(self.norm(self.first(x)[:, None, None])[:, 0, 0])
        update: Tensor = self.last(self.conv(y, edge_index, pair, weight))
        return update


class LieResNet(Representation):
    """Residual network of convolutions on a Lie group: atoms are lifted to elements, the read-out is a mean over these.

    Each atom becomes ``lifts`` elements of the group, its position times random rotations. These are drawn once for
    each element of the periodic table and kept with the weights: predictions are reproducible and know neither an
    order of the atoms nor the rest of a batch. (The paper draws them anew in each pass: :meth:`resample`.) The layers
    couple all lifts of an atom with all of its neighbours' and its own. They see relative vectors, so the group must
    contain the translations of space; for others, such as SO(3) about a centre, :class:`LieConv` is used alone.

    What is promised is the group's. With T(3), that of the paper's table of QM9, nothing is equivariant to rotations:
    augment the data. With SE(3) it is in distribution: rotating the atoms does what rotating the lifts would do, which
    are as probable as before.

    Reference: Finzi et al. 2020, arXiv:2002.12880; the defaults are those of its QM9 models (4 lifts with SE(3)). What
    differs: a neighbour's share in the mean fades with the envelope, in place of the sharp edge of a ball in which 25
    or 100 samples are drawn; and values are normalised over the channels of an atom in place of the batch.

    Args:
        channels: C.
        num_layers: Number of blocks.
        cutoff: Radius in Å; all atoms of a molecule are neighbours by default, as in the paper.
        lie_group: The group; T(3) if not given.
        lifts: Elements an atom, for groups that have several to a point.
        envelope: Polynomial of p = 6 if not given.
        seed: Of the lifts.

    Raises:
        ValueError: if the group does not contain the translations of space.

    Returns scalars, ``[N, 1, 1, C]``.
    """

    paper = "Finzi et al. 2020, arXiv:2002.12880"
    group: Group = "T(3)"
    lifts: Tensor

    def __init__(
        self,
        channels: int = 1536,
        num_layers: int = 6,
        *,
        cutoff: float = math.inf,
        lie_group: LieGroup | None = None,
        lifts: int = 4,
        envelope: Cutoff | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(channels, cutoff)
        self.lie_group = lie_group or Translations(3)
        if self.lie_group.translates != 3:
            raise ValueError(
                f"LieResNet sees relative vectors only: its group must contain the translations of space, which "
                f"{type(self.lie_group).__name__} does not; use LieConv with the group's own lifts"
            )
        if self.lie_group.stabilizer_dim:
            self.group = "SE(3) in distribution"
        count = lifts if self.lie_group.stabilizer_dim else 1
        self.register_buffer("lifts", torch.zeros(MAX_Z + 1, count, self.lie_group.dim))
        self.resample(torch.Generator().manual_seed(seed))
        self.embedding = AtomEmbedding(channels)
        self.envelope = envelope or PolynomialCutoff(cutoff)
        self.blocks = nn.ModuleList(LieBlock(channels, self.lie_group.dim) for _ in range(num_layers))
        self.norm = DegreeNorm(channels)

    @torch.no_grad()
    def resample(self, generator: torch.Generator | None = None) -> None:
        """Draws other lifts, uniformly."""
        chosen = self.lie_group.stabilizer(self.lifts.shape[0] * self.lifts.shape[1], generator)
        self.lifts.copy_(self.lie_group.log(chosen).view(self.lifts.shape))

    @torch.no_grad()
    def turn(self, rotation: Float[Tensor, "3 3"]) -> None:
        """Rotates the lifts: the model then does with rotated molecules what it did with them as they were."""
        if not self.lie_group.stabilizer_dim:
            super().turn(rotation)
        elements = self.lie_group.exp(self.lifts)
        matrix = torch.eye(elements.shape[-1], dtype=elements.dtype, device=elements.device)
        matrix[:3, :3] = rotation
        self.lifts.copy_(self.lie_group.log(matrix @ elements))

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 1 C"]:
        """Scalars of the atoms; the arguments are those of :class:`Representation`."""
        count = self.lifts.shape[1]
        loops = torch.arange(z.shape[0], device=z.device)
        source, target = torch.cat([edge_index, loops.expand(2, -1)], dim=1)
        vec = torch.cat([edge_vec, edge_vec.new_zeros(z.shape[0], 3)])
        # with the target at the origin: translations from the left do not matter
        lifts = self.lie_group.exp(self.lifts)[z]
        v = self.lie_group.section(vec).unsqueeze(1) @ lifts[source]
        pair = self.lie_group.relative(lifts[target].unsqueeze(1), v.unsqueeze(2))  # [E, lifts of j, lifts of i, D]
        number = torch.arange(count, device=z.device)
        sources = (source * count)[:, None, None] + number[:, None].expand(count, count)
        targets = (target * count)[:, None, None] + number.expand(count, count)
        index = torch.stack([sources.flatten(), targets.flatten()])
        weight = self.envelope(safe_norm(vec)).repeat_interleave(count * count)
        pair = pair.flatten(0, 2)
        x = self.embedding(z).repeat_interleave(count, dim=0)
        for block in self.blocks:
            x = x + block(x, index, pair, weight)
        x = silu(self.norm(x[:, None, None])).view(z.shape[0], count, 1, self.channels)
        return x.mean(1, keepdim=True)
