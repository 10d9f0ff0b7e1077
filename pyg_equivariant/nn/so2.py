"""Convolutions in the frames of the edges, where rotations about the edge are all that is left of SO(3)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.nn.conv import Conv
from pyg_equivariant.o3.clebsch_gordan import coupling
from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.o3.layout import degree_slices, degrees, num_components
from pyg_equivariant.o3.sphere import SphereGrid
from pyg_equivariant.o3.wigner import wigner

__all__ = ["EdgeFrame", "SO2Conv", "SO2Linear", "from_frame", "order_rows", "to_frame"]


def order_rows(lmax: int, mmax: int) -> list[list[int]]:
    """The components of each order up to ``mmax``: cosines (+m) of degree m to lmax, then sines (−m).

    Example:
        >>> order_rows(2, 1)
        [[0, 2, 6], [3, 7, 1, 5]]
    """
    return [
        [n * (n + 1) + signed for signed in ((m, -m) if m else (0,)) for n in range(m, lmax + 1)]
        for m in range(mmax + 1)
    ]


class EdgeFrame(ExactConstants):
    r"""Wigner matrices that turn features into frames whose y axis is an edge.

    Let u be the edge's direction, s the sign of its y component and w the bisector of the y axis and s u. The
    half-turn about w takes y to s u; where s = −1, a half-turn about x comes before it. No angle occurs, and the sum
    of y and s u is never shorter than √2: values and all derivatives are finite for edges along every axis. Besides,
    the matrix of a half-turn is an even polynomial of its axis, so that all degrees are one linear map of harmonics:

    .. math:: D^l_{mn}(w) = \sum_{k = 0, 2, \ldots, 2l} \sum_q T^{lk}_{mnq} \, Y_{kq}(w)

    The frame's turn about the edge is arbitrary, and jumps where s does. What is done to features within the frame must
    commute with such turns, as :class:`SO2Linear` does; then neither values nor derivatives depend on it.

    Args:
        lmax: Highest degree of the features.
        mmax: Highest order that is kept; all if not given.

    Raises:
        ValueError: if mmax is not between 0 and lmax.
    """

    turn: Tensor
    square: Tensor
    flip: Tensor
    still: Tensor

    def __init__(self, lmax: int, mmax: int | None = None) -> None:
        super().__init__()
        mmax = lmax if mmax is None else mmax
        if not 0 <= mmax <= lmax:
            raise ValueError(f"mmax, the highest order, lies between 0 and lmax = {lmax}, got {mmax}")
        self.lmax = lmax
        orders = [range(-min(degree, mmax), min(degree, mmax) + 1) for degree in range(lmax + 1)]
        self.shapes = [(len(ms), 2 * degree + 1) for degree, ms in enumerate(orders)]
        grid = SphereGrid(2 * lmax).double()
        half_turns = 2 * grid.points.unsqueeze(2) * grid.points.unsqueeze(1) - torch.eye(3, dtype=torch.float64)
        matrices = wigner(half_turns, lmax)
        blocks = [
            matrices[:, rows.start + degree + ms.start : rows.start + degree + ms.stop, rows].flatten(1)
            for degree, (ms, rows) in enumerate(zip(orders, degree_slices(lmax), strict=True))
        ]
        signals = grid.from_grid(torch.cat(blocks, dim=1)[None, None])[0, 0] / math.sqrt(num_components(2 * lmax))
        even = [row for row, degree in enumerate(degrees(2 * lmax)) if degree % 2 == 0]
        self.register_constant("turn", signals[even].where(signals[even].abs() > 1e-12, 0.0))
        if lmax:
            self.register_constant("square", _product(1, 1) * 3)  # Y₁ is √3 times the vector
        for degree in range(2, 2 * lmax, 2):
            self.register_constant(f"product_{degree}", _product(degree, 2))
        flip = [(-1.0) ** (degree + (m < 0)) for degree, ms in enumerate(orders) for m in ms]
        still = [float(degree == 0) for degree, ms in enumerate(orders) for _ in ms]
        widths = torch.tensor([2 * degree + 1 for degree, ms in enumerate(orders) for _ in ms])
        for name, values in (("flip", flip), ("still", still)):  # a factor of each row
            self.register_constant(name, torch.tensor(values, dtype=torch.float64).repeat_interleave(widths))

    def forward(self, edge_dir: Float[Tensor, "E 3"]) -> list[Float[Tensor, "E _ _"]]:
        """For each degree l the rows of order |m| ≤ mmax, ``[E, min(2l, 2 mmax) + 1, 2l + 1]``.

        Args:
            edge_dir: Unit vectors. A zero vector has no frame: all its matrices but that of degree 0 are zero.
        """
        down = edge_dir[:, 1:2] < 0
        bisector = torch.where(down, -edge_dir, edge_dir) + edge_dir.new_tensor([0.0, 1.0, 0.0])
        entries = self.even_harmonics(bisector) @ self.turn
        entries = entries * torch.where(down, self.flip, 1.0)
        zero = (edge_dir == 0).all(dim=1, keepdim=True)
        entries = entries * torch.where(zero, self.still, 1.0)
        blocks = entries.split([rows * columns for rows, columns in self.shapes], dim=1)
        return [block.view(edge_dir.shape[0], *shape) for block, shape in zip(blocks, self.shapes, strict=True)]

    def even_harmonics(self, vec: Float[Tensor, "E 3"]) -> Float[Tensor, "E K"]:
        """Harmonics of degrees 0, 2, ..., 2 lmax of the directions of vectors that are not zero.

        Each degree is a product of the one before with degree 2: few operations on few numbers.
        """
        harmonics = [torch.ones_like(vec[:, :1])]
        if self.lmax:
            unit = vec * vec.square().sum(1, keepdim=True).rsqrt()
            harmonics.append((unit.unsqueeze(2) * unit.unsqueeze(1)).flatten(1) @ self.square)
        for degree in range(2, 2 * self.lmax, 2):
            outer = harmonics[-1].unsqueeze(2) * harmonics[1].unsqueeze(1)
            harmonics.append(outer.flatten(1) @ getattr(self, f"product_{degree}"))
        return torch.cat(harmonics, dim=1)


def _product(l1: int, l2: int) -> Float[Tensor, "pairs components"]:
    """Takes the outer product of the harmonics of two degrees to those of their sum."""
    table = coupling(l1, l2, l1 + l2)
    # on the y axis only component 0 of degree l is not zero, but √(2l + 1)
    scale = math.sqrt(2 * (l1 + l2) + 1) / (math.sqrt((2 * l1 + 1) * (2 * l2 + 1)) * table[l1, l2, l1 + l2])
    return table.flatten(0, 1) * scale


def to_frame(x: Float[Tensor, "E M C"], frame: list[Float[Tensor, "E _ _"]]) -> list[Float[Tensor, "E _ _"]]:
    """Features in the frames of edges, sorted by order; O(lmax³) products an edge and channel.

    Args:
        x: Features, one row an edge.
        frame: What :class:`EdgeFrame` returns.

    Returns:
        For each order m a tensor ``[E, 2, (lmax + 1 − m) C]`` of cosines and sines, degree by degree;
        ``[E, 1, (lmax + 1) C]`` for m = 0.
    """
    blocks = x.split([matrix.shape[2] for matrix in frame], dim=1)
    turned = [torch.bmm(matrix, block).unbind(1) for matrix, block in zip(frame, blocks, strict=True)]
    mmax = len(turned[-1]) // 2
    orders = []
    for m in range(mmax + 1):
        rows = [parts[len(parts) // 2 + order] for order in ((m, -m) if m else (0,)) for parts in turned[m:]]
        orders.append(torch.cat(rows, dim=1).view(x.shape[0], 2 if m else 1, (len(frame) - m) * x.shape[2]))
    return orders


def from_frame(orders: list[Float[Tensor, "E _ _"]], frame: list[Float[Tensor, "E _ _"]]) -> Float[Tensor, "E M C"]:
    """The inverse of :func:`to_frame`; orders that were not kept are zero."""
    channels = orders[0].shape[2] // len(frame)
    parts = [order.unflatten(2, (-1, channels)).unbind(2) for order in orders]  # of each order, degrees from m on
    blocks = []
    for degree, matrix in enumerate(frame):
        highest = matrix.shape[1] // 2
        sines = [parts[m][degree - m][:, 1] for m in range(highest, 0, -1)]
        cosines = [parts[m][degree - m][:, 0] for m in range(highest + 1)]
        blocks.append(torch.bmm(matrix.mT, torch.stack([*sines, *cosines], dim=1)))
    return torch.cat(blocks, dim=1)


class SO2Linear(nn.Module):
    r"""The linear maps that commute with turns about the edge: a complex matrix for each order m > 0.

    .. math::
        y_0 = W_0 x_0 + b, \qquad
        \begin{pmatrix} y_m \\ y_{-m} \end{pmatrix} =
        \begin{pmatrix} U_m & -V_m \\ V_m & U_m \end{pmatrix} \begin{pmatrix} x_m \\ x_{-m} \end{pmatrix}

    where :math:`x_m` holds all channels of all degrees from m on. With features in the frames of edges this is the
    SO(3)-equivariant convolution with harmonics of all degrees up to 2 lmax. Its weight of the path from l1 with l2
    to l3 enters U where l1 + l2 + l3 is even and V where it is odd; V therefore tells mirror images apart. In place of
    the O(lmax⁶) products of Clebsch–Gordan couplings there are O(lmax³).
    Reference: Passaro & Zitnick 2023, arXiv:2302.03655, section 3 and appendix A.

    Args:
        in_channels: C.
        out_channels: D.
        lmax: Highest degree.
        mmax: Highest order; all if not given.
        num_scalars: S, further invariants, returned apart.
        bias: Add a vector to order 0, whose components are invariant; zero at the start.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        lmax: int,
        mmax: int | None = None,
        num_scalars: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        mmax = lmax if mmax is None else mmax
        self.num_scalars = num_scalars
        self.fan_in = [(lmax + 1 - m) * in_channels for m in range(mmax + 1)]
        fan_out = [(lmax + 1 - m) * out_channels for m in range(mmax + 1)]
        self.weight = nn.Parameter(torch.randn(self.fan_in[0], fan_out[0] + num_scalars) / math.sqrt(self.fan_in[0]))
        self.register_parameter("bias", nn.Parameter(torch.zeros(fan_out[0] + num_scalars)) if bias else None)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(2, n, k) / math.sqrt(2 * n))
            for n, k in zip(self.fan_in[1:], fan_out[1:], strict=True)
        )

    @property
    def num_scales(self) -> int:
        """Numbers a row of ``scale`` has: one for each degree, channel and order |m|."""
        return sum(self.fan_in)

    def forward(
        self, x: list[Float[Tensor, "E _ _"]], scale: Float[Tensor, "E W"] | None = None
    ) -> tuple[list[Float[Tensor, "E _ _"]], Float[Tensor, "E S"]]:
        """Orders of the outcome, and the further invariants.

        Args:
            x: What :func:`to_frame` returns.
            scale: Factors of x, alike for m and −m: what a filter of the edge's length is in this basis.
        """
        if scale is not None:
            factors = scale.unsqueeze(1).split(self.fan_in, dim=2)
            x = [order * factor for order, factor in zip(x, factors, strict=True)]
        first = x[0] @ self.weight if self.bias is None else x[0] @ self.weight + self.bias
        first, scalars = first.split([first.shape[2] - self.num_scalars, self.num_scalars], dim=2)
        orders = [first]
        for order, weight in zip(x[1:], self.weights, strict=True):
            real, imaginary = weight.unbind(0)
            matrix = torch.cat([torch.cat([real, imaginary], 1), torch.cat([-imaginary, real], 1)], 0)
            orders.append((order.flatten(1) @ matrix).unflatten(1, (2, weight.shape[2])))
        return orders, scalars.squeeze(1)


class SO2Conv(Conv):
    r"""The eSCN convolution: features are turned into the edge's frame, mixed there, turned back and summed.

    .. math:: y_i = \sum_{j \in \mathcal N(i)} D_{ij}^\top \, L\big(w_{ij} ∘ D_{ij} x_j\big)

    with L an :class:`SO2Linear`. Equivariant to SE(3).
    Reference: Passaro & Zitnick 2023, arXiv:2302.03655, section 3.

    Args:
        in_channels: C.
        out_channels: D.
        lmax: Highest degree.
        mmax: Highest order; all if not given.

    Attributes:
        num_scales: W, columns of ``scale``.

    Example:
        >>> conv, frame = SO2Conv(8, 4, lmax=2), EdgeFrame(2)
        >>> x, edge_index = torch.zeros(3, 1, 9, 8), torch.tensor([[0, 1], [1, 2]])
        >>> edge_dir = torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8]])
        >>> conv(x, edge_index, frame(edge_dir), torch.zeros(2, conv.num_scales)).shape
        torch.Size([3, 1, 9, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, *, lmax: int, mmax: int | None = None) -> None:
        super().__init__()
        self.linear = SO2Linear(in_channels, out_channels, lmax=lmax, mmax=mmax, bias=False)
        self.num_scales = self.linear.num_scales

    def forward(
        self,
        x: Float[Tensor, "N 1 M C"],
        edge_index: Int[Tensor, "2 E"],
        frame: list[Float[Tensor, "E _ _"]],
        scale: Float[Tensor, "E W"],
    ) -> Float[Tensor, "N 1 M D"]:
        """Sums of the messages.

        Args:
            x: Features.
            edge_index: Row 0 the source j, row 1 the target i.
            frame: :class:`EdgeFrame` of the directions of ``r_j − r_i``.
            scale: Filters of the edges, zero from the cutoff on.
        """
        size = (x.shape[0], x.shape[0])
        received: Tensor = self.propagate(edge_index, size=size, x=x[:, 0], frame=frame, scale=scale)
        return received.unsqueeze(1)

    def message(
        self, x_j: Float[Tensor, "E M C"], frame: list[Float[Tensor, "E _ _"]], scale: Float[Tensor, "E W"]
    ) -> Float[Tensor, "E M D"]:
        """What source j sends to target i."""
        orders, _ = self.linear(to_frame(x_j, frame), scale)
        return from_frame(orders, frame)
