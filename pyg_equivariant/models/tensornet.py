"""TensorNet: 3 x 3 matrices as features, mixed by matrix products."""

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import SiLU, silu
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.conv import EdgeSumConv
from pyg_equivariant.nn.cutoff import CosineCutoff
from pyg_equivariant.nn.dense import Dense, linear
from pyg_equivariant.nn.edge_sum import CONSTANT, Term
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.expnormal import ExpNormalBasis
from pyg_equivariant.nn.filter import EnvelopedFilter
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.interpolation import Interpolation, RadialNodes, tabulate_filter
from pyg_equivariant.nn.layer_norm import LayerNorm
from pyg_equivariant.nn.linear import DegreeLinear
from pyg_equivariant.nn.loops import with_loops
from pyg_equivariant.nn.pairs import find_pairs
from pyg_equivariant.nn.radial import RadialBasis, enveloped
from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.o3.layout import degrees

__all__ = ["TensorNet", "TensorNetConv", "TensorNetEmbedding"]


LMAX, DEGREES = 2, degrees(2)


def matrix_basis() -> Float[Tensor, "9 3 3"]:
    r"""Orthonormal matrices :math:`B_m`, so that :math:`X = \sum_m x_m B_m` has the components x of degrees 0, 1 and 2.

    The first is the identity, three are antisymmetric (cross products with x, y and z) and five symmetric without a
    trace, in the order of the harmonics.
    """
    basis = torch.zeros(9, 3, 3, dtype=torch.float64)
    basis[0].fill_diagonal_(1 / math.sqrt(3))
    for k in range(3):
        a, b = (k + 1) % 3, (k + 2) % 3
        basis[1 + k, b, a], basis[1 + k, a, b] = math.sqrt(1 / 2), -math.sqrt(1 / 2)
    for m, (a, b) in ((4, (0, 2)), (5, (0, 1)), (7, (1, 2))):
        basis[m, a, b] = basis[m, b, a] = math.sqrt(1 / 2)
    for a, (six, two) in enumerate(((-1, -1), (2, 0), (-1, 1))):
        basis[6, a, a], basis[8, a, a] = six / math.sqrt(6), two / math.sqrt(2)
    return basis


class _Matrices(ExactConstants):
    """Matrices and their components."""

    basis: Tensor
    per_harmonic: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_constant("basis", matrix_basis().flatten(1))
        # The harmonics of a unit vector v, times these, are the components of 1 + [v]× + (v vᵀ − ⅓).
        per_degree = torch.tensor([3.0, 2 / 3, 2 / 15], dtype=torch.float64).sqrt()
        self.register_constant("per_harmonic", per_degree[DEGREES])

    def matrix(self, x: Float[Tensor, "N 9 C"]) -> Float[Tensor, "N 3 3 C"]:
        """The entries."""
        return (self.basis.T @ x).unflatten(1, (3, 3))

    def components(self, x: Float[Tensor, "N 3 3 C"]) -> Float[Tensor, "N 9 C"]:
        """The inverse of :meth:`matrix`."""
        return self.basis @ x.flatten(1, 2)


def _product(x: Float[Tensor, "N 3 3 C"], y: Float[Tensor, "N 3 3 C"]) -> Float[Tensor, "N 3 3 C"]:
    return (x.unsqueeze(3) * y.unsqueeze(1)).sum(2)


def _linear(channels: int) -> DegreeLinear:
    """One matrix a degree, with the initial weights of ``nn.Linear`` as in the authors' code."""
    layer = DegreeLinear(channels, channels, lmax=LMAX)
    nn.init.uniform_(layer.weight, -1 / math.sqrt(channels), 1 / math.sqrt(channels))
    return layer


def _mix(linear: DegreeLinear, x: Float[Tensor, "N 9 C"]) -> Float[Tensor, "N 9 C"]:
    mixed: Tensor = linear(x.unsqueeze(1)).squeeze(1)
    return mixed


def _by_degree(x: Float[Tensor, "N 9 C"]) -> tuple[Tensor, ...]:
    return x.split([1, 3, 5], dim=1)


class TensorNetEmbedding(EdgeSumConv):
    r"""The embedding: the first matrices of the atoms, from what surrounds them, ``x [N, 9, C]``.

    .. math::
        X_i &= \sum_j u_{ij} Z_{ij} ∘ \big(f^I_{ij} + f^A_{ij} [r]_× + f^S_{ij} (r r^T − ⅓)\big) \\
        Z_{ij} &= W [e_{z_i}, e_{z_j}] + b, \qquad r = \hat r_{ij}, \qquad f = \text{linear map of the radial basis}

    after which each degree is mixed by a matrix of its own and scaled by an MLP of LayerNorm(‖X_i‖²).

    Args:
        channels: C.
        num_basis: Columns of ``edge_rbf``.
    """

    def __init__(self, channels: int, num_basis: int) -> None:
        # of the source's channels and of ones, which the target's channels then multiply
        super().__init__([Term(9 * x + m, x, m, degree, 1.0) for x in (0, 1) for m, degree in enumerate(DEGREES)], 18)
        self.embedding = AtomEmbedding(channels)
        self.pair = Dense(2 * channels, channels)
        self.filter = Dense(num_basis, 3 * channels, bias=False)
        self.norm = LayerNorm(channels)
        self.scale = _silu_layers(channels, 2 * channels, 3 * channels)
        self.linear = _linear(channels)

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_sh: Float[Tensor, "E 9"],
        edge_rbf: Float[Tensor, "R K"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> Float[Tensor, "N 9 C"]:
        r"""The matrices of the atoms.

        Args:
            z: Atomic numbers.
            edge_index: Sources j and targets i.
            edge_sh: Components of :math:`1 + [\hat r_{ij}]_× + (\hat r_{ij} \hat r_{ij}^T − ⅓)`.
            edge_rbf: Radial basis under its envelope, and the envelope for a bias; of the edges, or of the nodes of
                ``table``.
            pair: Which row of ``edge_rbf`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
            table: How the filters between nodes follow, see :mod:`~pyg_equivariant.nn.interpolation`.
        """
        e = self.embedding(z)
        of_target, of_source = self.pair.weight.chunk(2, 1)
        source = linear(e, of_source)
        weight = self.filter(edge_rbf).unflatten(1, (3, -1))
        sent = torch.stack([source, torch.ones_like(source)], 1)
        of_sources, of_ones = self.message_and_aggregate(edge_index, sent, weight, edge_sh, pair, table).chunk(2, 1)
        x = of_sources + linear(e, of_target, self.pair.bias).unsqueeze(1) * of_ones
        scale = self.scale(self.norm(x.square().sum(1))).unflatten(1, (3, -1))
        return _mix(self.linear, x) * scale[:, DEGREES]


class TensorNetConv(EdgeSumConv):
    r"""An interaction layer, of matrices X in their components ``x [N, 9, C]``.

    .. math::
        Y_i &= \mathrm{Linear}\big(X_i / (‖X_i‖² + 1)\big), \qquad
        M_i = \sum_j u_{ij} \mathrm{MLP}(f_{ij}) ∘ Y_j \\
        ΔX_i &= \mathrm{Linear}\big(\{Y_i, M_i\} / (‖\{Y_i, M_i\}‖² + 1)\big), \qquad
        X_i' = X_i / (‖X_i‖² + 1) + ΔX_i + ΔX_i²

    All maps act on the degrees one by one. A reflection turns each matrix into its transpose (its antisymmetric part
    is made of vectors), and so the anticommutator :math:`\{Y, M\} = YM + MY` too, while YM would not be.

    Args:
        channels: C.
        num_basis: Columns of ``edge_rbf``.

    Example:
        >>> conv = TensorNetConv(8, num_basis=4)
        >>> x, edge_index = torch.zeros(3, 9, 8), torch.tensor([[0, 1], [1, 2]])
        >>> conv(x, edge_index, torch.zeros(2, 4), torch.ones(2)).shape
        torch.Size([3, 9, 8])
    """

    def __init__(self, channels: int, num_basis: int) -> None:
        super().__init__([Term(m, m, CONSTANT, degree, 1.0) for m, degree in enumerate(DEGREES)], len(DEGREES))
        self.filter = EnvelopedFilter(*_silu_layers(num_basis, channels, 2 * channels, 3 * channels))
        self.linear_in = _linear(channels)
        self.linear_out = _linear(channels)
        self.matrices = _Matrices()

    def forward(
        self,
        x: Float[Tensor, "N 9 C"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "R K"],
        edge_env: Float[Tensor, " R"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> Float[Tensor, "N 9 C"]:
        """The new matrices.

        Args:
            x: Matrices of the atoms.
            edge_index: Sources j and targets i.
            edge_rbf: Radial basis of the edges, or of the nodes of ``table``.
            edge_env: Envelope there, zero from the cutoff on.
            pair: Which of the lengths an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
            table: How the filters between nodes follow, see :mod:`~pyg_equivariant.nn.interpolation`.
        """
        weight = self.filter(edge_rbf, edge_env).unflatten(1, (3, -1))
        x = _bounded(x)
        y = _mix(self.linear_in, x)
        received = self.message_and_aggregate(edge_index, y, weight, pair=pair, table=table)
        left, right = self.matrices.matrix(y), self.matrices.matrix(received)
        anticommutator = self.matrices.components(_product(left, right) + _product(right, left))
        change = _mix(self.linear_out, _bounded(anticommutator))
        matrix = self.matrices.matrix(change)
        return x + change + self.matrices.components(_product(matrix, matrix))


def _bounded(x: Float[Tensor, "N 9 C"]) -> Float[Tensor, "N 9 C"]:
    """``X / (‖X‖² + 1)``, never longer than a half."""
    return x / (x.square().sum(1, keepdim=True) + 1.0)


def _silu_layers(*sizes: int) -> nn.Sequential:
    """Linear layers with the nonlinearity after each, the last too."""
    layers = [(Dense(fan_in, fan_out), SiLU()) for fan_in, fan_out in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain.from_iterable(layers))


class TensorNet(Representation):
    """Messages of 3 x 3 matrices, whose products couple the degrees 0, 1 and 2.

    Reference: Simeon & De Fabritiis 2023, arXiv:2306.06482, the O(3) variant for neutral molecules. The
    defaults are those of its rMD17 models; on QM9 it has 256 channels, 3 layers, 64 radial functions and a cutoff of
    5 Å. As in the authors' code every atom is one of its own neighbours. Matrices are kept as their nine components in
    an orthonormal basis: the identity, three antisymmetric matrices, and five symmetric without a trace. The
    antisymmetric ones are built from vectors and turn their sign under a reflection: all components are true tensors.

    Args:
        channels: C.
        num_layers: Number of interaction layers, which follow the embedding.
        cutoff: Radius in Å.
        radial: Basis of the edge lengths; 32 functions ``ExpNormalBasis(32, cutoff)`` if not given.

    Returns scalars, made of the squared norms of each degree, vectors and tensors of degree 2, ``[N, 1, 9, C]``.
    """

    paper = "Simeon & De Fabritiis 2023, arXiv:2306.06482"
    embedding_steps = 1

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 2,
        *,
        cutoff: float = 4.5,
        radial: RadialBasis | None = None,
    ) -> None:
        super().__init__(channels, cutoff, lmax=LMAX)
        self.radial = radial or ExpNormalBasis(32, cutoff)
        self.nodes = RadialNodes(cutoff, self.radial.num_basis)
        self.envelope = CosineCutoff(cutoff)
        num_basis = self.radial.num_basis
        self.embedding = TensorNetEmbedding(channels, num_basis + 1)
        self.convs = nn.ModuleList(TensorNetConv(channels, num_basis) for _ in range(num_layers))
        self.norm = LayerNorm(3 * channels)
        self.out = Dense(3 * channels, channels)
        self.matrices = _Matrices()

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 9 C"]:
        """Scalars, vectors and tensors of the atoms; the arguments are those of :class:`Representation`."""
        edge_index, edge_vec = with_loops(edge_index, edge_vec, z.shape[0])
        pairs = find_pairs(edge_index, edge_vec)
        length = safe_norm(edge_vec.index_select(0, pairs.first))
        nodes, table = self.nodes(length, edge_index.shape[1])
        edge_rbf, with_bias, edge_env = enveloped(self.radial, self.envelope, nodes)
        edge_sh = stored(spherical_harmonics(edge_vec, LMAX) * self.matrices.per_harmonic)
        x = self.embedding(z, edge_index, edge_sh, with_bias, pairs.of, table)
        for conv in self.convs:
            x = conv(x, edge_index, edge_rbf, edge_env, pairs.of, table)
        squares = torch.cat([part.square().sum(1) for part in _by_degree(x)], -1)
        scalar = silu(self.out(self.norm(squares))).unsqueeze(1)
        return torch.cat([scalar, x[:, 1:]], 1).unsqueeze(1)

    def tabulate(self) -> None:
        """See :meth:`Representation.tabulate`."""
        nodes = self.nodes.fix(self.out.weight)
        if nodes is not None:
            edge_rbf, with_bias, edge_env = enveloped(self.radial, self.envelope, nodes)
            tabulate_filter(self.embedding, with_bias)
            for conv in self.convs:
                tabulate_filter(conv, edge_rbf, edge_env)
