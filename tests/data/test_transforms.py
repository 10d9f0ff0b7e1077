import copy
import math

import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_equivariant.data.dataset import FlatDataset
from pyg_equivariant.data.transforms import FullyConnected, RadiusGraph


def molecules(sizes=(4, 1, 6), **extra):
    generator = torch.Generator().manual_seed(0)
    return [
        Data(
            z=torch.ones(n, dtype=torch.int64),
            pos=2 * torch.rand(n, 3, dtype=torch.float64, generator=generator),
            energy=torch.tensor([float(n)]),
            **extra,
        )
        for n in sizes
    ]


def crystals():
    cells = [torch.eye(3)[None] * 2.0, torch.eye(3)[None] * 3.0]
    return [
        Data(z=torch.tensor([6]), pos=torch.zeros(1, 3), cell=c, pbc=torch.tensor([[True, True, True]])) for c in cells
    ]


@pytest.mark.parametrize("transform", [RadiusGraph(1.3), RadiusGraph(math.inf), FullyConnected()], ids=str)
def test_batch_equals_singles(transform):
    graphs = molecules()
    batch = transform(Batch.from_data_list(graphs))
    singles = Batch.from_data_list([transform(graph) for graph in graphs])
    assert torch.equal(batch.edge_index, singles.edge_index)
    assert "shift" not in batch


def test_periodic_batch_equals_singles():
    batch = RadiusGraph(2.5)(Batch.from_data_list(crystals()))
    singles = Batch.from_data_list([RadiusGraph(2.5)(graph) for graph in crystals()])
    assert torch.equal(batch.edge_index, singles.edge_index)
    assert torch.equal(batch.shift, singles.shift)
    assert batch.edge_index.shape[1] == 6


@pytest.mark.parametrize("graphs", [molecules(), crystals()], ids=["molecules", "crystals"])
@pytest.mark.parametrize("make", [Batch.from_data_list, lambda graphs: FlatDataset.from_data_list(graphs).to_batch()])
def test_batch_can_be_taken_apart(make, graphs):
    transform = RadiusGraph(2.1)
    for item, graph in zip(transform(make(graphs)).to_data_list(), graphs, strict=True):
        single = transform(graph)
        assert set(item.keys()) == set(single.keys())
        for key, value in single:
            assert torch.equal(item[key], value)


def test_transform_twice_replaces_the_edges():
    batch = Batch.from_data_list([RadiusGraph(9.0)(graph) for graph in molecules()])
    again = RadiusGraph(1.3)(batch)
    assert torch.equal(again.edge_index, RadiusGraph(1.3)(Batch.from_data_list(molecules())).edge_index)
    for item, graph in zip(again.to_data_list(), molecules(), strict=True):
        assert torch.equal(item.edge_index, RadiusGraph(1.3)(graph).edge_index)


def test_input_is_not_mutated():
    for graph in (molecules()[0], Batch.from_data_list(molecules())):
        before = copy.deepcopy(graph)
        RadiusGraph(1.0)(graph)
        assert set(graph.keys()) == set(before.keys())
        assert "edge_index" not in graph
    batch = Batch.from_data_list(molecules())
    RadiusGraph(1.0)(batch)
    assert "edge_index" not in batch._slice_dict


def test_graphs_of_pyg_qm9():
    """A molecule as torch_geometric.datasets.QM9 gives it: its edges are bonds, its labels are y."""
    graph = Data(
        x=torch.rand(3, 11),
        z=torch.tensor([8, 1, 1]),
        pos=torch.tensor([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]]),
        y=torch.rand(1, 19),
        edge_index=torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]]),
        edge_attr=torch.rand(4, 4),
        smiles="[H]O[H]",
        name="gdb_3",
        idx=2,
    )
    batch = RadiusGraph(5.0)(Batch.from_data_list([graph, graph]))
    assert batch.edge_index.shape[1] == 12
    assert "edge_attr" not in batch
    assert batch.y.shape == (2, 19)
    assert batch.to_data_list()[1].edge_index.max() == 2
    assert RadiusGraph(5.0)(FlatDataset.from_data_list([graph] * 3).to_batch()).num_edges == 18


def test_many_images_of_one_pair():
    graph = RadiusGraph(6.1)(crystals()[0])
    assert graph.edge_index.unique().tolist() == [0]
    lengths = (graph.shift @ graph.cell[0]).norm(dim=1)
    assert lengths.max() <= 6.1
    assert len(graph.shift.unique(dim=0)) == graph.num_edges == 122


def test_sentences():
    with pytest.raises(ValueError, match="finite cutoff"):
        FullyConnected()(crystals()[0])
    with pytest.raises(ValueError, match="no positions"):
        RadiusGraph(2.0)(Data(z=torch.tensor([1])))
    with pytest.raises(ValueError, match="positive length"):
        RadiusGraph(-1.0)


@pytest.mark.parametrize("transform", [RadiusGraph(2.0), FullyConnected()], ids=str)
def test_empty_and_single_atom(transform):
    for n in (0, 1):
        graph = transform(Data(z=torch.zeros(n, dtype=torch.int64), pos=torch.zeros(n, 3)))
        assert graph.edge_index.shape == (2, 0)
        assert graph.edge_index.dtype == torch.int64
