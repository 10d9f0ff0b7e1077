"""Edge frames and SO(2) maps: rotations, the eSCN theorem, freedom of gauge, cost."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pyg_equivariant.nn.geometry import safe_norm, unit_vectors
from pyg_equivariant.nn.so2 import EdgeFrame, SO2Conv, SO2Linear, from_frame, to_frame
from pyg_equivariant.nn.tensor_product import AllPaths, TensorProduct
from pyg_equivariant.o3 import (
    coupling,
    degree_slices,
    num_components,
    random_rotation,
    rotate,
    spherical_harmonics,
    wigner,
)
from pyg_equivariant.testing import assert_close, fill_by_formula

AXES = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(count: int = 20) -> torch.Tensor:
    """Random ones, the axes, and some that all but are the −y axis."""
    tilted = torch.tensor([[1e-5, -1, 0], [1e-9, -1, -1e-9], [0, -1, 1e-12]], dtype=torch.float64)
    vec = torch.cat([normal(count, 3), torch.tensor(AXES, dtype=torch.float64), tilted])
    return vec / vec.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("lmax", [0, 1, 3, 6])
def test_frame_takes_the_edge_to_the_y_axis(lmax):
    """The harmonics of an edge become those of the y axis, and the matrices are Wigner's of a proper rotation."""
    edge_dir = directions()
    frame = EdgeFrame(lmax).double()(edge_dir)
    harmonics = spherical_harmonics(edge_dir, lmax)
    pole = spherical_harmonics(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), lmax)
    for matrix, rows in zip(frame, degree_slices(lmax), strict=True):
        turned = torch.einsum("emn,en->em", matrix, harmonics[:, rows])
        assert_close(turned, pole[rows].expand(len(edge_dir), -1), "harmonics in the frame", tolerance=1e-12)
    if lmax:
        assert_close(torch.linalg.det(frame[1]), torch.ones(len(edge_dir), dtype=torch.float64), "determinant")
        full = wigner(frame[1], lmax)  # degree 1 is the rotation itself
        for matrix, rows in zip(frame, degree_slices(lmax), strict=True):
            assert_close(matrix, full[:, rows, rows], "Wigner matrix", tolerance=1e-12)


@pytest.mark.parametrize("mmax", [0, 1, 2, 3])
def test_to_and_from_frame(mmax):
    """There and back is the identity, less the orders that were dropped; the order of components is as documented."""
    edge_dir, x = directions(), normal(29, 16, 5)
    whole, part = (EdgeFrame(3, m).double()(edge_dir) for m in (None, mmax))
    orders = to_frame(x, part)
    assert [tuple(o.shape) for o in orders] == [(29, 2 if m else 1, (4 - m) * 5) for m in range(mmax + 1)]
    turned = torch.cat([torch.bmm(d, x[:, rows]) for d, rows in zip(whole, degree_slices(3), strict=True)], 1)
    for m, order in enumerate(orders):
        for degree in range(m, 4):
            channels = slice((degree - m) * 5, (degree - m + 1) * 5)
            assert_close(order[:, 0, channels], turned[:, degree * (degree + 1) + m], "cosines")
            assert_close(order[:, -1, channels], turned[:, degree * (degree + 1) - m], "sines")
    dropped = [n * (n + 1) + m for n in range(4) for m in range(-n, n + 1) if abs(m) > mmax]
    turned[:, dropped] = 0
    back = torch.cat([torch.bmm(d.mT, turned[:, rows]) for d, rows in zip(whole, degree_slices(3), strict=True)], 1)
    assert_close(from_frame(orders, part), back, "from the frame")
    if mmax == 3:
        assert_close(back, x, "there and back")


def test_mmax_is_checked():
    with pytest.raises(ValueError, match="between 0 and lmax = 2, got 3"):
        EdgeFrame(2, 3)


def escn_weights(linear: SO2Linear, lmax: int, paths: dict[tuple[int, int, int], torch.Tensor]) -> None:
    """The SO(2) weights of a tensor product with matrices of channels ``paths[l1, l2, l3]``.

    In the frame of the edge Y_{l2 m} is √(2 l2 + 1) for m = 0 and zero else, and only couplings of ±m with ±m survive.
    """
    channels_in, channels_out = next(iter(paths.values())).shape
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.zero_()
        for (l1, l2, l3), matrix in paths.items():
            table = math.sqrt(2 * l2 + 1) * coupling(l1, l2, l3)[:, l2, :]
            for m in range(min(l1, l3) + 1):
                rows = slice((l1 - m) * channels_in, (l1 - m + 1) * channels_in)
                columns = slice((l3 - m) * channels_out, (l3 - m + 1) * channels_out)
                if m == 0:
                    linear.weight[rows, columns] += table[l1, l3] * matrix
                else:
                    linear.weights[m - 1][0, rows, columns] += table[l1 + m, l3 + m] * matrix
                    linear.weights[m - 1][1, rows, columns] += table[l1 + m, l3 - m] * matrix


@pytest.mark.parametrize("lmax", [1, 3])
def test_escn_theorem(lmax):
    """The convolution is the full SO(3) tensor product with harmonics up to 2 lmax, to machine precision."""
    atoms, c, d = 4, 3, 2
    edge_index = torch.tensor([[0, 1, 2, 3, 1, 0, 2], [1, 0, 1, 1, 2, 3, 3]])
    edge_dir = directions()[-len(edge_index[0]) :]  # the ± axes among them
    x = normal(atoms, 1, num_components(lmax), c, seed=1)
    conv = SO2Conv(c, d, lmax=lmax).double()
    paths = AllPaths(lmax, 2 * lmax, lmax)
    triples = [(l1, l2, block.l3) for block in paths.blocks for l1, l2 in block.pairs]
    matrices = {triple: normal(c, d, seed=10 + k) for k, triple in enumerate(triples)}
    escn_weights(conv.linear, lmax, matrices)
    ones = torch.ones(len(edge_dir), conv.num_scales, dtype=torch.float64)
    actual = conv(x, edge_index, EdgeFrame(lmax).double()(edge_dir), ones)

    weight = torch.ones(len(edge_dir), paths.num_paths, c, dtype=torch.float64)
    products = TensorProduct(paths).double()(
        x[edge_index[0]].transpose(1, 2), spherical_harmonics(edge_dir, 2 * lmax), weight
    )
    expected = torch.zeros(atoms, num_components(lmax), d, dtype=torch.float64)
    for block, product in zip(paths.blocks, paths.split(products), strict=True):
        mixing = torch.stack([matrices[l1, l2, block.l3] for l1, l2 in block.pairs])
        message = torch.einsum("empqc,pcd->emd", product, mixing)
        expected[:, degree_slices(lmax)[block.l3]].index_add_(0, edge_index[1], message)
    assert expected.abs().max() > 1
    assert_close(actual[:, 0], expected, "eSCN against the tensor product", tolerance=1e-12)


def test_every_so2_map_is_a_tensor_product():
    """The other way round: as many SO(2) weights as paths, and the map between them is invertible."""
    lmax = 3
    linear = SO2Linear(1, 1, lmax=lmax, bias=False).double()
    triples = [(l1, l2, l3) for l1 in range(4) for l3 in range(4) for l2 in range(abs(l1 - l3), l1 + l3 + 1)]
    columns = []
    for triple in triples:
        escn_weights(linear, lmax, {triple: torch.ones(1, 1, dtype=torch.float64)})
        columns.append(torch.cat([p.detach().flatten() for p in linear.parameters()]))
    assert len(triples) == sum(p.numel() for p in linear.parameters())
    assert torch.linalg.matrix_rank(torch.stack(columns)) == len(triples)


@pytest.mark.parametrize("mmax", [1, 3])
def test_gauge_does_not_matter(mmax):
    """A random turn of each frame about its edge changes nothing."""
    edge_dir, x = directions(), normal(29, 16, 4)
    linear = SO2Linear(4, 3, lmax=3, mmax=mmax).double()
    fill_by_formula(linear)
    whole = EdgeFrame(3).double()(edge_dir)
    angle = 6 * normal(len(edge_dir), seed=3)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [[angle.cos(), zero, angle.sin()], [zero, one, zero], [-angle.sin(), zero, angle.cos()]]
    turn = wigner(torch.stack([torch.stack(row, -1) for row in rows], -2), 3)
    turned = [torch.bmm(turn[:, rows, rows], matrix) for matrix, rows in zip(whole, degree_slices(3), strict=True)]

    def message(frame):
        kept = [d[:, max(0, n - mmax) : n + mmax + 1] for n, d in enumerate(frame)]
        orders, _ = linear(to_frame(x, kept))
        return from_frame(orders, kept)

    assert (turned[1] - whole[1]).abs().max() > 0.5
    assert_close(message(turned), message(whole), "another gauge", tolerance=1e-12)


def test_derivatives_do_not_see_the_gauge():
    """First and second derivatives are those of the tensor product, also where the frame jumps and along ±y."""
    lmax = 2
    linear = SO2Linear(1, 1, lmax=lmax, bias=False).double()
    paths = AllPaths(lmax, 2 * lmax, lmax)
    triples = [(l1, l2, block.l3) for block in paths.blocks for l1, l2 in block.pairs]
    escn_weights(linear, lmax, {triple: torch.ones(1, 1, dtype=torch.float64) for triple in triples})
    frame, product = EdgeFrame(lmax).double(), TensorProduct(paths).double()
    vec = torch.cat([torch.tensor(AXES, dtype=torch.float64), normal(4, 3)]) * 1.3
    x, weigh = normal(len(vec), 9, 1, seed=4), normal(9, seed=5)

    def by_frame(vec):
        matrices = frame(unit_vectors(vec, safe_norm(vec)))
        return from_frame(linear(to_frame(x, matrices))[0], matrices)

    def by_product(vec):
        weight = torch.ones(len(vec), paths.num_paths, 1, dtype=torch.float64)
        parts = product(x.unsqueeze(2), spherical_harmonics(vec, 2 * lmax), weight)
        return torch.cat([part.sum(2).squeeze(-1) for part in paths.split(parts)], 1)

    found = []
    for function in (by_frame, by_product):
        v = vec.clone().requires_grad_()
        (first,) = torch.autograd.grad((function(v).square().squeeze(-1) @ weigh).sum(), v, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), v)
        found.append((first.detach(), second))
    for actual, expected in zip(*found, strict=True):
        assert expected.abs().max() > 1e-2
        assert_close(actual, expected, "derivatives", tolerance=1e-11)


def test_convolution_is_equivariant_and_chiral():
    conv, frame = SO2Conv(4, 3, lmax=3, mmax=2).double(), EdgeFrame(3, 2).double()
    fill_by_formula(conv)
    x, edge_dir = normal(5, 1, 16, 4), directions()
    edge_index = torch.randint(5, (2, len(edge_dir)), generator=torch.Generator().manual_seed(0))
    scale = normal(len(edge_dir), conv.num_scales, seed=2)
    y = conv(x, edge_index, frame(edge_dir), scale)
    rotation = random_rotation(torch.Generator().manual_seed(1))
    turned = conv(rotate(x, rotation), edge_index, frame(edge_dir @ rotation.T), scale)
    assert_close(turned, rotate(y, rotation), "rotated convolution", tolerance=1e-12)
    mirrored = conv(rotate(x, -rotation), edge_index, frame(-edge_dir @ rotation.T), scale)
    assert (mirrored - rotate(y, -rotation)).abs().max() > 1e-2


def test_no_direction_sends_scalars_only():
    """Coincident atoms have no frame: what they send must not depend on the axes."""
    frame = EdgeFrame(2).double()(torch.zeros(1, 3, dtype=torch.float64))
    x = normal(1, 9, 2)
    back = from_frame(to_frame(x, frame), frame)
    assert_close(back[:, 0], x[:, 0], "scalars")
    assert back[:, 1:].abs().max() == 0


def test_variance_is_kept():
    """Normal features give features of variance one at the start."""
    torch.manual_seed(0)
    linear = SO2Linear(32, 16, lmax=3)
    orders, _ = linear([torch.randn(2000, 2 if m else 1, (4 - m) * 32) for m in range(4)])
    for order in orders:
        assert order.var().item() == pytest.approx(1, abs=0.15)


def test_cost_grows_with_the_third_power():
    """Twice lmax + 1 is 8 to 10 times the multiplications (a fourth power: 16), of the tensor product more than 32."""

    def count(run) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    edge_dir = directions(0)
    escn, full = [], []
    for lmax in (1, 3, 7):
        frame, linear = EdgeFrame(lmax).double()(edge_dir), SO2Linear(4, 4, lmax=lmax).double()
        x = normal(len(edge_dir), num_components(lmax), 4)
        escn.append(count(lambda frame=frame, linear=linear, x=x: from_frame(linear(to_frame(x, frame))[0], frame)))
    for lmax in (1, 3):
        paths = AllPaths(lmax, 2 * lmax, lmax)
        product = TensorProduct(paths).double()
        x = normal(len(edge_dir), num_components(lmax), 1, 4)
        weight = torch.ones(len(edge_dir), paths.num_paths, 4, dtype=torch.float64)
        sh = spherical_harmonics(edge_dir, 2 * lmax)
        full.append(count(lambda product=product, x=x, sh=sh, weight=weight: product(x, sh, weight)))
    assert escn[1] < 10 * escn[0]
    assert escn[2] < 10 * escn[1]
    assert full[1] > 32 * full[0]
