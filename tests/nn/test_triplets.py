"""Triplets against a loop over all pairs of edges."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.nn.triplets import find_triplets
from pyg_equivariant.testing import example_molecule


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
    assert list(zip(*found.tolist(), strict=True)) == by_loop(graph)
    received = torch.bincount(graph.edge_index[1], minlength=len(graph.z))
    assert found.shape[1] == (received[graph.edge_index[0]] - 1).sum() > 0  # every edge has one way back


def test_rounding_of_vectors_does_not_matter():
    graph = crystal(2, 2.7)
    noise = 1e-5 * torch.randn(graph.num_edges, 3, generator=torch.Generator().manual_seed(0)).double()
    exact = find_triplets(graph.edge_index, vectors(graph), 2)
    assert torch.equal(find_triplets(graph.edge_index, vectors(graph) + noise, 2), exact)


def test_edges_in_any_order():
    graph = crystal(2, 2.7)
    order = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(0))
    found = find_triplets(graph.edge_index[:, order], vectors(graph)[order], 2)
    expected = find_triplets(graph.edge_index, vectors(graph), 2)
    assert {*map(tuple, order[found].T.tolist())} == {*map(tuple, expected.T.tolist())}


@pytest.mark.parametrize("num_edges", [0, 1])
def test_too_few_edges(num_edges):
    edge_index = torch.tensor([[1], [0]])[:, :num_edges]
    assert find_triplets(edge_index, torch.ones(num_edges, 3), 3).shape == (2, 0)


def test_operator_is_well_formed():
    graph = RadiusGraph(2.0)(example_molecule(5))
    torch.library.opcheck(torch.ops.pyg_equivariant.triplets.default, (graph.edge_index, vectors(graph), 5))
