import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader as PyGLoader

from pyg_equivariant.data.dataset import FlatDataset


def make(sizes=(3, 1, 5, 2, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for n in sizes:
        bonds = n // 2
        graphs.append(
            Data(
                z=torch.randint(1, 9, (n,), generator=generator),
                pos=torch.randn(n, 3, dtype=torch.float64, generator=generator),
                energy=torch.randn(1, dtype=torch.float64, generator=generator),
                stress=torch.randn(1, 3, 3, generator=generator),
                bond_index=torch.randint(0, n, (2, bonds), generator=generator),
                bond_type=torch.randint(0, 3, (bonds,), generator=generator),
                edge_index=torch.randint(0, n, (2, 2 * n), generator=generator),
                smiles="C" * n + "é",
            )
        )
    return graphs


def assert_same(left, right):
    assert set(left.keys()) == set(right.keys())
    for key in set(left.keys()):
        if isinstance(left[key], torch.Tensor):
            assert left[key].dtype == right[key].dtype
            torch.testing.assert_close(left[key], right[key], rtol=0, atol=0)
        else:
            assert left[key] == right[key]


def test_items_are_the_graphs():
    graphs = make()
    dataset = FlatDataset.from_data_list(graphs)
    assert len(dataset) == 5
    for graph, item in zip(graphs, dataset, strict=True):
        assert_same(graph, item)
    assert_same(dataset[-1], graphs[-1])
    assert_same(dataset[torch.tensor(2)], graphs[2])
    assert_same(dataset[np.int64(2)], graphs[2])


@pytest.mark.parametrize("index", [[4, 0, 2], [1], [3, 3], [-1, 0]])
def test_batch_is_pyg_batch(index):
    graphs = make()
    dataset = FlatDataset.from_data_list(graphs)
    batch = dataset.__getitems__(index)
    expected = Batch.from_data_list([graphs[i] for i in index])
    assert_same(batch, expected)
    assert batch.num_graphs == len(index) == len(batch)
    for item, i in zip(batch.to_data_list(), index, strict=True):
        assert_same(item, graphs[i])


def test_views_share_the_storage():
    graphs = make()
    dataset = FlatDataset.from_data_list(graphs)
    view = dataset[1:][[2, 0]]
    assert_same(view[0], graphs[3])
    assert_same(view[1], graphs[1])
    assert view[0].pos.untyped_storage().data_ptr() == dataset[0].pos.untyped_storage().data_ptr()
    mask = torch.tensor([True, False, False, False, True])
    assert_same(dataset[mask].to_batch(), Batch.from_data_list([graphs[0], graphs[4]]))
    assert view.num_atoms.tolist() == [2, 1]
    torch.testing.assert_close(view.column("pos"), torch.cat([graphs[3].pos, graphs[1].pos]))
    torch.testing.assert_close(view.column("energy"), torch.cat([graphs[3].energy, graphs[1].energy]))


def test_save_and_load(tmp_path):
    graphs = make()
    dataset = FlatDataset.from_data_list(graphs)
    dataset.save(tmp_path / "all.safetensors")
    for graph, item in zip(graphs, FlatDataset.load(tmp_path / "all.safetensors"), strict=True):
        assert_same(graph, item)
    dataset[[3, 1]].save(tmp_path / "some.safetensors")
    some = FlatDataset.load(tmp_path / "some.safetensors")
    assert len(some) == 2
    assert_same(some.to_batch(), Batch.from_data_list([graphs[3], graphs[1]]))


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        FlatDataset.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a safetensors file"):
        FlatDataset.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("workers", [0, 2])
def test_both_loaders(workers):
    graphs = make()
    dataset = FlatDataset.from_data_list(graphs)
    ours = list(DataLoader(dataset, batch_size=2, collate_fn=lambda batch: batch, num_workers=workers))
    theirs = list(PyGLoader(dataset, batch_size=2, num_workers=workers))
    assert len(ours) == len(theirs) == 3
    for left, right in zip(ours, theirs, strict=True):
        assert_same(left, right)


def test_batch_survives_pickle():
    batch = FlatDataset.from_data_list(make()).__getitems__([0, 2])
    assert_same(pickle.loads(pickle.dumps(batch)), batch)


def test_transform_and_select():
    dataset = FlatDataset.from_data_list(make()).select("z", "energy")
    assert set(dataset[0].keys()) == {"z", "energy"}

    def double(data):
        data.energy = 2 * data.energy
        return data

    doubled = dataset.with_transform(double)
    torch.testing.assert_close(doubled[1:].to_batch().energy, 2 * dataset[1:].to_batch().energy)
    torch.testing.assert_close(doubled[0].energy, 2 * dataset[0].energy)
    with pytest.raises(KeyError, match="no field 'dipole'"):
        dataset.select("dipole")


def test_direct_construction():
    fields = {"z": torch.tensor([8, 1, 1, 6]), "energy": torch.tensor([1.0, 2.0])}
    dataset = FlatDataset(fields, torch.tensor([0, 3, 4]))
    assert dataset[0].z.tolist() == [8, 1, 1]
    assert dataset.elements == [1, 6, 8]
    assert dataset[1:].elements == [6]
    with pytest.raises(ValueError, match="field 'x' has 3 rows"):
        dataset.with_field("x", torch.zeros(3))


def test_require_names_the_sample():
    graphs = make()
    graphs[3].pos[1, 2] = torch.nan
    dataset = FlatDataset.from_data_list(graphs)
    dataset.require("energy", "z", "stress")
    with pytest.raises(ValueError, match="'pos' of frame 3 is NaN"):
        dataset.require("pos", name="frame")
    with pytest.raises(ValueError, match="'pos' of sample 1 is NaN"):
        dataset[2:].require("pos")
    with pytest.raises(ValueError, match="no sample has the field 'forces'"):
        dataset.require("forces")


def test_different_fields_are_refused():
    graphs = make()
    del graphs[2].energy
    with pytest.raises(ValueError, match="sample 2 lacks the field 'energy'"):
        FlatDataset.from_data_list(graphs)
    with pytest.raises(ValueError, match="at least one graph"):
        FlatDataset.from_data_list([])
    bad = make()
    bad[1].energy = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="different shapes"):
        FlatDataset.from_data_list(bad)


def test_index_errors():
    dataset = FlatDataset.from_data_list(make())
    with pytest.raises(IndexError, match="no graph 5"):
        dataset[5]
    with pytest.raises(IndexError, match="the dataset has 5"):
        dataset[[0, 7]]
    with pytest.raises(IndexError, match="mask of length 2"):
        dataset[torch.tensor([True, False])]
