"""Edges that share a length are found, and only those."""

import ase.build
import pytest
import torch

from pyg_equivariant.data import RadiusGraph, from_ase
from pyg_equivariant.models import SchNet
from pyg_equivariant.nn.pairs import _by_search, find_pairs, find_returns
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import example_molecule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["molecule", "silicon", "copper"])
def test_all_edges_of_a_graph_have_partners(name: str, dtype: torch.dtype) -> None:
    """One cell of a crystal is full of images: self-images, several edges of the same two atoms, equal lengths."""
    if name == "molecule":
        data = example_molecule(40, spread=2.5)
    else:
        data = from_ase(ase.build.bulk("Si") if name == "silicon" else ase.build.bulk("Cu", cubic=True) * (2, 1, 1))
    graph = Potential(SchNet()).to(dtype).graph(RadiusGraph(5.0)(data))
    pairs = find_pairs(graph.edge_index, graph.edge_vec)
    assert 2 * len(pairs.first) == len(pairs.of)
    assert torch.equal(pairs.of.bincount(), torch.full_like(pairs.first, 2))
    assert torch.equal(pairs.of[pairs.first], torch.arange(len(pairs.first)))
    first, vec = pairs.first[pairs.of], graph.edge_vec
    same = (vec == vec[first]).all(1) & (graph.edge_index == graph.edge_index[:, first]).all(0)
    opposite = (vec == -vec[first]).all(1) & (graph.edge_index == graph.edge_index[:, first].flip(0)).all(0)
    assert (same | opposite).all()


def test_what_is_no_pair() -> None:
    edge_index = torch.tensor([[0, 1, 1, 0, 2], [1, 0, 0, 2, 2]])
    edge_vec = torch.tensor([[1.0, 0, 0], [-1, 0, 1e-6], [1, 0, 0], [-1, 0, 0], [0, 0, 0]])
    pairs = find_pairs(edge_index, edge_vec)  # another vector, the wrong direction, other atoms, a loop
    assert pairs.of.tolist() == pairs.first.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_edges(count: int) -> None:
    edge_index, edge_vec = torch.tensor([[0, 1], [1, 0]])[:, :count], torch.tensor([[1.0, 0, 0], [-1, 0, 0]])[:count]
    assert find_pairs(edge_index, edge_vec).of.tolist() == list(range(count))  # the compiler wants no size of 1


def test_negative_zero_is_zero() -> None:
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    edge_vec = torch.tensor([[1.0, 0.0, 2], [-1, 0.0, -2], [0.0, -0.0, 1], [0.0, 0.0, -1]])
    assert find_pairs(edge_index, edge_vec).of.tolist() == [0, 0, 1, 1]


def test_the_way_back_of_every_edge() -> None:
    """By the kernel and by a search; in a crystal many edges join two atoms, and only one of them returns."""
    data = from_ase(ase.build.bulk("Cu", cubic=True) * (2, 1, 1))
    graph = Potential(SchNet()).double().graph(RadiusGraph(5.0)(data))
    edge_index, edge_vec = graph.edge_index, graph.edge_vec
    for back in (find_returns(edge_index, edge_vec, 8), _by_search(edge_index, edge_vec, 8, 0.01)):
        assert torch.equal(edge_index[:, back], edge_index.flip(0))
        assert (edge_vec[back] + edge_vec).abs().max() < 1e-6
    half = edge_vec[:, 0] > 0  # edges one way: none returns
    for back in (
        find_returns(edge_index[:, half], edge_vec[half], 8),
        _by_search(edge_index[:, half], edge_vec[half], 8, 0.01),
    ):
        assert half.any()
        assert (back == -1).all()


def test_an_edge_of_an_atom_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError, match="edge 1 has the atom 3 of 3"):
        find_returns(torch.tensor([[0, 3], [1, 0]]), torch.ones(2, 3), 3)
