"""Cormorant: the paper's equations written out, products of features with themselves, the radial basis."""

import itertools
import math

import ase.build
import pytest
import torch

from pyg_equivariant.data import RadiusGraph, from_ase
from pyg_equivariant.models.cormorant import Cormorant, CormorantConv, SelfProduct, TrigonometricBasis
from pyg_equivariant.nn.tensor_product import AllPaths
from pyg_equivariant.o3 import coupling, degree_slices, num_components, random_rotation, rotate, spherical_harmonics
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import assert_close, fill_by_formula


def features(num_atoms: int, lmax: int, channels: int) -> torch.Tensor:
    shape = (num_atoms, 1, num_components(lmax), channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(lmax), dtype=torch.float64)


@pytest.mark.parametrize("lmax", [0, 1, 2])
def test_products_of_features_with_themselves(lmax):
    """The span of all Clebsch-Gordan products, without repetition: same rank, same space."""
    product, x = SelfProduct(lmax, lmax).double(), features(60, lmax, 1)
    rows = degree_slices(lmax)
    for degree, mine in enumerate(product(x)):
        pairs = itertools.product(range(lmax + 1), repeat=2)
        every = [
            torch.einsum("abm,na,nb->nm", coupling(l1, l2, degree), x[:, 0, rows[l1], 0], x[:, 0, rows[l2], 0])
            for l1, l2 in pairs
            if abs(l1 - l2) <= degree <= l1 + l2
        ]
        mine, every = mine[..., 0].flatten(0, 1), torch.stack(every, -1).flatten(0, 1)
        rank = torch.linalg.matrix_rank(every, rtol=1e-10)
        assert torch.linalg.matrix_rank(mine, rtol=1e-10) == mine.shape[1] == rank
        assert torch.linalg.matrix_rank(torch.cat([mine, every], 1), rtol=1e-10) == rank


def test_products_turn_with_their_features():
    product, x = SelfProduct(2, 2).double(), features(4, 2, 3)
    matrix = random_rotation(torch.Generator().manual_seed(0))
    for degree, (turned, before) in enumerate(zip(product(rotate(x, matrix)), product(x), strict=True)):
        assert before.shape == (4, 2 * degree + 1, product.counts[degree], 3)
        for index in range(before.shape[2]):
            padded = torch.zeros(4, 1, num_components(degree), 3, dtype=torch.float64)
            padded[:, 0, degree**2 :] = before[:, :, index]
            assert_close(turned[:, :, index], rotate(padded, matrix)[:, 0, degree**2 :], f"product of degree {degree}")


def test_level_written_out():
    """Edge network, mask, Clebsch-Gordan products and mixing, with loops over edges and couplings."""
    paths, channels = AllPaths(1, 1, 1), 2
    conv = CormorantConv(channels, paths, num_basis=3, edge_channels=2, avg_num_neighbors=3.0).double()
    fill_by_formula(conv)
    generator = torch.Generator().manual_seed(0)
    x, edge_index = features(3, 1, channels), torch.tensor([[1, 2, 0], [0, 0, 1]])
    edge_rbf = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    edge_x = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    edge_vec = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    edge_len, edge_sh = edge_vec.norm(dim=1), spherical_harmonics(edge_vec, 1)
    edge_env = torch.tensor([1.0, 0.4, 0.7], dtype=torch.float64)
    y, g = conv(x, edge_index, edge_len, edge_rbf, edge_sh, edge_env, edge_x)

    rows = degree_slices(1)
    received = [torch.zeros(3, 2 * b.l3 + 1, len(b.pairs) * channels, dtype=torch.float64) for b in paths.blocks]
    for e, (j, i) in enumerate(edge_index.T.tolist()):
        alike = torch.cat([(x[i, 0, r] * x[j, 0, r]).sum(0) / (r.stop - r.start) ** 0.5 for r in rows])
        mask = 1 / (1 + torch.exp((edge_len[e] - conv.mask_radius) / conv.mask_width.exp()))
        for degree in (0, 1):
            known = torch.cat([edge_x[e, degree], alike, edge_rbf[e]])
            assert_close(g[e, degree], edge_env[e] * mask * known @ conv.edge_mix[degree], "edge")
        for block, total in zip(paths.blocks, received, strict=True):
            for index, (l1, l2) in enumerate(block.pairs):
                c = coupling(l1, l2, block.l3)
                term = torch.einsum("abm,ac,b->mc", c, x[j, 0, rows[l1]], edge_sh[e, rows[l2]]) * g[e, l2]
                total[i, :, index * channels : (index + 1) * channels] += term / 3**0.5
    for degree, squares in enumerate(conv.square(x)):
        own = x[:, 0, rows[degree]] @ conv.linear_self.weight[0, degree]
        mixed = received[degree] @ conv.linear_edges.weights[degree]
        expected = own + mixed + squares.flatten(2) @ conv.linear_square[degree]
        assert_close(y[:, 0, rows[degree]], expected / 3**0.5, f"degree {degree} of the atoms")


def test_radial_basis_of_the_paper():
    basis = TrigonometricBasis(num_frequencies=1, num_powers=2).double()
    (values,) = basis(torch.tensor([1.3], dtype=torch.float64))
    soft = math.sqrt(1.3**2 + 0.01)
    expected = [f / soft**p for p in range(3) for f in (0.0, math.sin(2.6 * math.pi), 1.0, math.cos(2.6 * math.pi))]
    assert_close(values, torch.tensor(expected, dtype=torch.float64), "basis", tolerance=1e-6)
    assert torch.isfinite(TrigonometricBasis()(torch.zeros(1))).all()


def test_all_weights_matter():
    """Edges of one level reach the next; every level is read out."""
    model = Cormorant(3, 3, lmax=1, lmax_sh=1, cutoff=4.0)
    pos = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    edge_index = (1 - torch.eye(5)).nonzero().T.flip(0)
    x = model(torch.tensor([6, 1, 8, 7, 1]), edge_index, pos[edge_index[0]] - pos[edge_index[1]])
    x.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.numel() == 0 or parameter.grad.any(), f"{name} has no gradient"


@pytest.mark.parametrize("seed", range(3))
def test_features_keep_their_size_at_the_start(seed):
    """Levels square what they are given: a factor too much is ten thousand in the fourth."""
    torch.manual_seed(seed)
    model, sizes = Cormorant(), []
    for conv in model.convs:
        conv.register_forward_hook(
            lambda module, inputs, output: sizes.append(output[0].detach().square().mean().sqrt())
        )
    graph = Potential(model).graph(RadiusGraph(5.0)(from_ase(ase.build.molecule("CH3CH2OH"))))
    model(graph.z, graph.edge_index, graph.edge_vec)
    assert len(sizes) == 4
    assert all(0.03 < size < 3.0 for size in sizes), sizes
