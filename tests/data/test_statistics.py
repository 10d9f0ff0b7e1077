import logging

import pytest
import torch
from torch_geometric.data import Data

from pyg_equivariant.data.dataset import FlatDataset
from pyg_equivariant.data.statistics import compute_statistics, fit_references, given_references, mean_degree

E0 = {"H": -13.6, "C": -1030.0, "O": -2041.5}
Z = {1: "H", 6: "C", 8: "O"}


def make(compositions, *, noise=0.0, forces=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for z in compositions:
        energy = sum(E0[Z[i]] for i in z) + noise * float(torch.randn((), generator=generator))
        data = Data(
            z=torch.tensor(z),
            pos=torch.rand(len(z), 3, dtype=torch.float64, generator=generator),
            energy=torch.tensor([energy], dtype=torch.float64),
        )
        if forces:
            data.forces = torch.randn(len(z), 3, dtype=torch.float64, generator=generator)
        graphs.append(data)
    return FlatDataset.from_data_list(graphs)


VARIED = [[8, 1, 1], [6, 1, 1, 1, 1], [6, 8, 8], [6, 8, 1, 1], [1, 1]]


def test_references_are_found_and_leave_nothing():
    values, determined = fit_references(make(VARIED * 20))
    assert determined
    for z, symbol in Z.items():
        assert float(values[z]) == pytest.approx(E0[symbol], abs=1e-9)
    assert values.shape == (119,)
    assert values.dtype == torch.float64
    assert values[[0, 2, 7]].tolist() == [0, 0, 0]


def test_one_molecule_has_no_unique_references(caplog):
    dataset = make([[8, 1, 1]] * 30, noise=0.1)
    with caplog.at_level(logging.WARNING):
        values, determined = fit_references(dataset)
    assert not determined
    assert "do not determine the references of H, O" in caplog.text
    total = float(values[8] + 2 * values[1])
    assert total == pytest.approx(float(dataset.column("energy").mean()), abs=1e-8)
    assert float(values[8]) == pytest.approx(total / 5, abs=1e-8)  # the smallest: along the composition (2, 1)
    assert compute_statistics(dataset, "energy", 5.0).determined is False


def test_given_references():
    dataset = make(VARIED)
    assert given_references(dataset, E0).values[8] == E0["O"]
    with pytest.raises(ValueError, match="isolated C, which the data contain"):
        given_references(dataset, {"H": -13.6, "O": -2041.5})
    with pytest.raises(ValueError, match="'Xx' is no chemical element"):
        given_references(dataset, {"Xx": 1.0})
    statistics = compute_statistics(dataset, "energy", 5.0, references={symbol: e + 1 for symbol, e in E0.items()})
    assert statistics.mean == pytest.approx(-1.0)


def test_scale_is_that_of_the_forces():
    dataset = make(VARIED * 50, forces=True)
    statistics = compute_statistics(dataset, "energy", 5.0)
    assert statistics.scale == pytest.approx(float(dataset.column("forces").square().mean().sqrt()))
    assert statistics.elements == [1, 6, 8]


def test_scale_without_forces_is_the_residual_per_atom():
    dataset = make(VARIED * 200, noise=1.0)
    expected = (dataset.num_atoms.double() ** -2).mean().sqrt()
    assert compute_statistics(dataset, "energy", 5.0).scale == pytest.approx(float(expected), rel=0.1)
    assert compute_statistics(make(VARIED[:1]), "energy", 5.0).scale == 1.0


def test_intensive_labels():
    dataset = make(VARIED * 10, noise=2.0)
    statistics = compute_statistics(dataset, "energy", 5.0, extensive=False)
    assert statistics.mean == pytest.approx(float(dataset.column("energy").mean()))
    assert statistics.scale == pytest.approx(float(dataset.column("energy").std(correction=0)))
    assert not statistics.references.any()


@pytest.mark.parametrize("cutoff", [10.0, torch.inf])
def test_mean_degree(cutoff):
    dataset = make(VARIED)
    sizes = dataset.num_atoms.double()
    assert mean_degree(dataset, cutoff) == pytest.approx(float((sizes * (sizes - 1)).sum() / sizes.sum()))


def test_mean_degree_is_estimated():
    dataset = make(VARIED * 100)
    exact = mean_degree(dataset, 0.7, num_graphs=500)
    assert mean_degree(dataset, 0.7, num_graphs=250) == pytest.approx(exact, rel=0.15)
