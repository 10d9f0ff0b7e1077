"""Triplets against a loop over all pairs of edges."""

import math

import pytest
import torch
from scipy.special import eval_legendre
from torch_geometric.data import Batch, Data

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.nn.triplets import Triplets, find_triplets, legendre, sum_over_paths
from pyg_equivariant.testing import assert_close, example_molecule


def crystal(num_atoms: int, cutoff: float) -> Data:
    """Atoms in a small triclinic cell: many images of each pair, and of an atom and itself."""
    cell = torch.tensor([[[2.1, 0.0, 0.2], [0.4, 2.4, 0.0], [-0.3, 0.5, 2.3]]], dtype=torch.float64)
    data = example_molecule(num_atoms)
    data.update({"cell": cell, "pbc": torch.ones(1, 3, dtype=torch.bool)})
    return RadiusGraph(cutoff)(data)


def vectors(graph: Data) -> torch.Tensor:
    source, target = graph.edge_index
    edge_vec = graph.pos[source] - graph.pos[target]
    return edge_vec + graph.shift @ graph.cell[0] if "shift" in graph else edge_vec


def as_list(triplets: Triplets) -> list[tuple[int, int]]:
    """Edges k → j and j → i of each open place, sorted by the latter."""
    atom, row, column = triplets.open.nonzero().T
    width = triplets.open.shape[1]
    incoming = {place: edge for edge, place in enumerate(triplets.incoming.tolist())}
    outgoing = {place: edge for edge, place in enumerate(triplets.outgoing.tolist())}
    pairs = zip((atom * width + column).tolist(), (atom * width + row).tolist(), strict=True)
    return sorted([(incoming[k], outgoing[i]) for k, i in pairs], key=lambda pair: pair[::-1])


def by_loop(graph: Data) -> list[tuple[int, int]]:
    """A path returns if it ends in the atom and the cell where it began."""
    source, target = graph.edge_index.tolist()
    shift = graph.shift.tolist() if "shift" in graph else [[0.0] * 3] * len(source)
    return [
        (kj, ji)
        for ji in range(len(source))
        for kj in range(len(source))
        if target[kj] == source[ji]
        and not (source[kj] == target[ji] and all(a == -b for a, b in zip(shift[kj], shift[ji], strict=True)))
    ]


@pytest.mark.parametrize(
    "graph",
    [
        RadiusGraph(2.0)(example_molecule(8)),
        RadiusGraph(2.0)(Batch.from_data_list([example_molecule(n, seed=n) for n in (1, 4, 2, 6)])),
        crystal(1, 3.0),
        crystal(2, 2.7),
    ],
    ids=["molecule", "batch", "one atom a cell", "two atoms a cell"],
)
def test_all_paths_but_the_way_back(graph):
    found = find_triplets(graph.edge_index, vectors(graph), len(graph.z))
    assert as_list(found) == by_loop(graph)
    received = torch.bincount(graph.edge_index[1], minlength=len(graph.z))
    assert found.open.sum() == (received[graph.edge_index[0]] - 1).sum() > 0  # every edge has one way back
    assert found.open.shape[1] == received.max()


def test_sums_over_angles():
    """Against one triplet at a time, with Legendre polynomials of scipy."""
    graph = crystal(2, 2.7)
    edge_dir = torch.nn.functional.normalize(vectors(graph), dim=1)
    triplets = find_triplets(graph.edge_index, vectors(graph), 2)
    values = torch.randn(graph.num_edges, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.zeros(graph.num_edges, 3).double()
    for kj, ji in by_loop(graph):
        cosine = float(-edge_dir[kj] @ edge_dir[ji])
        for degree in range(4):
            norm = math.sqrt((2 * degree + 1) / (4 * math.pi))
            expected[ji] += norm * eval_legendre(degree, cosine) * values[kj, degree]
    assert_close(sum_over_paths(triplets, legendre(triplets, edge_dir, 4), values), expected, "sums", tolerance=1e-12)


def test_edges_may_point_one_way():
    """0 → 1 → 2, and 0 → 2: no edge comes back, and one atom sends what it does not receive."""
    edge_index, edge_vec = torch.tensor([[0, 1, 0], [1, 2, 2]]), torch.eye(3)
    found = find_triplets(edge_index, edge_vec, 4)
    assert as_list(found) == [(0, 1)]


def test_rounding_of_vectors_does_not_matter():
    graph = crystal(2, 2.7)
    noise = 1e-5 * torch.randn(graph.num_edges, 3, generator=torch.Generator().manual_seed(0)).double()
    exact = find_triplets(graph.edge_index, vectors(graph), 2)
    assert torch.equal(find_triplets(graph.edge_index, vectors(graph) + noise, 2).open, exact.open)


def test_edges_in_any_order():
    graph = crystal(2, 2.7)
    order = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(0))
    found = as_list(find_triplets(graph.edge_index[:, order], vectors(graph)[order], 2))
    assert {(int(order[kj]), int(order[ji])) for kj, ji in found} == {*by_loop(graph)}


@pytest.mark.parametrize("num_edges", [0, 1])
def test_too_few_edges(num_edges):
    edge_index = torch.tensor([[1], [0]])[:, :num_edges]
    found = find_triplets(edge_index, torch.ones(num_edges, 3), 3)
    assert not found.open.any()
    values = torch.ones(num_edges, 2, 5)
    assert torch.equal(
        sum_over_paths(found, legendre(found, torch.ones(num_edges, 3), 2), values), torch.zeros(num_edges, 5)
    )


def test_operator_is_well_formed():
    graph = RadiusGraph(2.0)(example_molecule(5))
    torch.library.opcheck(torch.ops.pyg_equivariant.triplets.default, (graph.edge_index, vectors(graph), 5))
