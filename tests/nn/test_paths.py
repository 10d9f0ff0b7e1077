"""Sums over paths against a loop over all pairs of edges."""

import math

import pytest
import torch
from scipy.special import eval_legendre
from torch_geometric.data import Batch, Data

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.nn.paths import find_paths, sum_over_paths
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


def by_loop(graph: Data) -> list[tuple[int, int]]:
    """Edges k → j and j → i; a path returns if it ends in the atom and the cell where it began."""
    source, target = graph.edge_index.tolist()
    shift = graph.shift.tolist() if "shift" in graph else [[0.0] * 3] * len(source)
    return [
        (kj, ji)
        for ji in range(len(source))
        for kj in range(len(source))
        if target[kj] == source[ji]
        and not (source[kj] == target[ji] and all(a == -b for a, b in zip(shift[kj], shift[ji], strict=True)))
    ]


def counted(graph: Data, edge_vec: torch.Tensor) -> list[int]:
    """How many paths go on over each edge: the angles' degree 0 is a constant."""
    paths = find_paths(graph.edge_index, edge_vec, len(graph.z), num_degrees=1)
    ones = torch.ones(graph.num_edges, 1, 1, dtype=edge_vec.dtype)
    return [round(float(number)) for number in sum_over_paths(paths, ones) * math.sqrt(4 * math.pi)]


GRAPHS = {
    "molecule": RadiusGraph(2.0)(example_molecule(8)),
    "batch": RadiusGraph(2.0)(Batch.from_data_list([example_molecule(n, seed=n) for n in (1, 4, 2, 6)])),
    "one atom a cell": crystal(1, 3.0),
    "two atoms a cell": crystal(2, 2.7),
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_sums_over_angles(graph: Data) -> None:
    """Against one path at a time, with Legendre polynomials of scipy."""
    edge_dir = torch.nn.functional.normalize(vectors(graph), dim=1)
    paths = find_paths(graph.edge_index, vectors(graph), len(graph.z), num_degrees=4)
    values = torch.randn(graph.num_edges, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.zeros(graph.num_edges, 3).double()
    for kj, ji in by_loop(graph):
        cosine = float(-edge_dir[kj] @ edge_dir[ji])
        for degree in range(4):
            norm = math.sqrt((2 * degree + 1) / (4 * math.pi))
            expected[ji] += norm * eval_legendre(degree, cosine) * values[kj, degree]
    assert len(by_loop(graph)) > graph.num_edges / 2
    assert_close(sum_over_paths(paths, values), expected, "sums", tolerance=1e-12)


def test_edges_may_point_one_way() -> None:
    """0 → 1 → 2, and 0 → 2: no edge comes back, and one atom sends what it does not receive."""
    graph = Data(z=torch.ones(4), edge_index=torch.tensor([[0, 1, 0], [1, 2, 2]]))
    assert counted(graph, torch.eye(3)) == [0, 1, 0]


def test_rounding_of_vectors_does_not_matter() -> None:
    graph = crystal(2, 2.7)
    noise = 1e-5 * torch.randn(graph.num_edges, 3, generator=torch.Generator().manual_seed(0)).double()
    paths = [ji for _, ji in by_loop(graph)]
    assert counted(graph, vectors(graph) + noise) == [paths.count(edge) for edge in range(graph.num_edges)]


def test_edges_in_any_order() -> None:
    graph = crystal(2, 2.7)
    order = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(0))
    values = torch.randn(graph.num_edges, 3, 2).double()
    paths = find_paths(graph.edge_index, vectors(graph), 2, num_degrees=3)
    shuffled = find_paths(graph.edge_index[:, order], vectors(graph)[order], 2, num_degrees=3)
    assert_close(sum_over_paths(shuffled, values[order]), sum_over_paths(paths, values)[order], "sums", tolerance=1e-12)


@pytest.mark.parametrize("num_edges", [0, 1])
def test_too_few_edges(num_edges: int) -> None:
    edge_index = torch.tensor([[1], [0]])[:, :num_edges]
    paths = find_paths(edge_index, torch.ones(num_edges, 3), 3, num_degrees=2)
    assert torch.equal(sum_over_paths(paths, torch.ones(num_edges, 2, 5)), torch.zeros(num_edges, 5))
