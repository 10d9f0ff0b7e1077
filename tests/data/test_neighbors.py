import math
from collections import Counter

import ase
import ase.build
import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list as ase_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.data import neighbors
from pyg_equivariant.data.neighbors import neighbor_list

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def systems(draw):
    """Atoms in and around a cell that may be tiny and skewed."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(0, 6))
    pbc = [draw(st.booleans()) for _ in range(3)]
    cell = rng.uniform(0.8, 4.0) * (np.eye(3) + draw(st.floats(0, 0.8)) * rng.uniform(-1, 1, (3, 3)))
    if abs(np.linalg.det(cell)) < 0.3 * np.prod(np.linalg.norm(cell, axis=1)):
        cell = np.diag([1.3, 2.1, 0.9])
    pos = rng.uniform(-1.5, 2.5, (n, 3)) @ cell
    return ase.Atoms(numbers=np.ones(n, dtype=int), positions=pos, cell=cell, pbc=pbc)


def expected(atoms, cutoff):
    i, j, shift = ase_neighbor_list("ijS", atoms, cutoff)
    return Counter(zip(i.tolist(), j.tolist(), map(tuple, shift.tolist()), strict=True))


def found(edge_index, shift):
    shift = torch.zeros(edge_index.shape[1], 3) if shift is None else shift
    j, i = edge_index.tolist()
    assert i == sorted(i)
    return Counter(zip(i, j, (tuple(int(x) for x in row) for row in shift.tolist()), strict=True))


def tensors(atoms):
    return torch.tensor(atoms.positions), torch.tensor(atoms.cell[:]), torch.tensor(atoms.pbc)


@pytest.fixture(params=["table", "vesin"], scope="module", autouse=True)
def path(request):
    """Every test runs through both ways of finding pairs."""
    patch = pytest.MonkeyPatch()
    patch.setattr(neighbors, "_CPU_PAIRS_PER_GRAPH", 2**40 if request.param == "table" else -1)
    yield request.param
    patch.undo()


@SETTINGS
@given(atoms=systems(), cutoff=st.floats(0.7, 6.0))
def test_single_system_equals_ase(atoms, cutoff):
    pos, cell, pbc = tensors(atoms)
    if len(atoms) == 0:
        edge_index, shift = neighbor_list(pos, cutoff, cell, pbc)
        assert edge_index.shape == (2, 0)
        assert shift is None or shift.shape == (0, 3)
    else:
        assert found(*neighbor_list(pos, cutoff, cell, pbc)) == expected(atoms, cutoff)


@SETTINGS
@given(frames=st.lists(systems(), min_size=1, max_size=5), cutoff=st.floats(0.7, 4.0))
def test_batch_equals_ase(frames, cutoff):
    parts = [tensors(atoms) for atoms in frames]
    batch = torch.repeat_interleave(torch.tensor([len(atoms) for atoms in frames]))
    edge_index, shift = neighbor_list(
        torch.cat([p[0] for p in parts]),
        cutoff,
        torch.stack([p[1] for p in parts]),
        torch.stack([p[2] for p in parts]),
        batch,
    )
    total, start = Counter(), 0
    for atoms in frames:
        if len(atoms):
            pairs = expected(atoms, cutoff)
            total.update({(i + start, j + start, s): c for (i, j, s), c in pairs.items()})
        start += len(atoms)
    assert found(edge_index, shift) == total


@SETTINGS
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), cutoff=st.floats(0.5, 4.0), seed=st.integers(0, 99))
def test_molecules_equal_distances(sizes, cutoff, seed):
    pos = 3 * torch.rand(sum(sizes), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    batch = torch.repeat_interleave(torch.tensor(sizes))
    edge_index, shift = neighbor_list(pos, cutoff, batch=batch)
    assert shift is None
    near = (torch.cdist(pos, pos, compute_mode="donot_use_mm_for_euclid_dist") < cutoff) & (batch[:, None] == batch)
    near.fill_diagonal_(False)
    i, j = near.nonzero(as_tuple=True)
    assert set(zip(*edge_index.tolist(), strict=True)) == set(zip(j.tolist(), i.tolist(), strict=True))
    assert edge_index.shape[1] == len(i)


def test_edge_vectors_point_at_the_image():
    atoms = ase.build.bulk("Si") * (2, 1, 1)
    atoms.rattle(0.2, seed=1)
    atoms.positions += [7, -9, 30]
    pos, cell, pbc = tensors(atoms)
    edge_index, shift = neighbor_list(pos, 5.0, cell, pbc)
    vec = pos[edge_index[0]] + shift @ cell - pos[edge_index[1]]
    expected_length = np.sort(ase_neighbor_list("d", atoms, 5.0))
    np.testing.assert_allclose(np.sort(vec.norm(dim=1).numpy()), expected_length, atol=1e-9)


def test_slab_without_third_cell_vector():
    atoms = ase.build.fcc111("Al", (1, 2, 3))
    assert not atoms.cell[2].any()
    assert found(*neighbor_list(torch.tensor(atoms.positions), 4.5, *tensors(atoms)[1:])) == expected(atoms, 4.5)


def test_fully_connected():
    pos = torch.randn(7, 3)
    edge_index, shift = neighbor_list(pos, math.inf, batch=torch.tensor([0, 0, 0, 0, 2, 3, 3]))
    assert shift is None
    assert edge_index.shape[1] == 4 * 3 + 2
    assert (edge_index[0] != edge_index[1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_input_kept(dtype):
    pos = torch.rand(4, 3, dtype=dtype, requires_grad=True)
    before = pos.detach().clone()
    edge_index, shift = neighbor_list(pos, 2.0, torch.eye(3, dtype=dtype), torch.tensor([True] * 3))
    assert shift.dtype == dtype
    assert not shift.requires_grad
    assert edge_index.dtype == torch.int64
    assert torch.equal(pos.detach(), before)


def test_coincident_atoms_are_neighbours():
    edge_index, _ = neighbor_list(torch.zeros(2, 3), 1.0)
    assert edge_index.shape[1] == 2


def test_sentences(path):
    pos, cell, all_directions = torch.rand(3, 3), torch.eye(3), torch.tensor([True] * 3)
    bad = pos.clone()
    bad[1, 2] = torch.nan
    with pytest.raises(ValueError, match="position of atom 1 is NaN"):
        neighbor_list(bad, 2.0)
    with pytest.raises(ValueError, match="cutoff must be a positive length"):
        neighbor_list(pos, 0.0)
    with pytest.raises(ValueError, match="cutoff must be a positive length"):
        neighbor_list(pos, math.nan)
    with pytest.raises(ValueError, match="without pbc"):
        neighbor_list(pos, 2.0, cell)
    with pytest.raises(ValueError, match="without a cell"):
        neighbor_list(pos, 2.0, pbc=all_directions)
    with pytest.raises(ValueError, match="finite cutoff"):
        neighbor_list(pos, math.inf, cell, all_directions)
    with pytest.raises(ValueError, match="graph 0 is periodic along"):
        neighbor_list(pos, 2.0, torch.ones(3, 3), all_directions)
    with pytest.raises(ValueError, match="batch must be sorted"):
        neighbor_list(pos, 2.0, batch=torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="there are 1 cells"):
        neighbor_list(pos, 2.0, cell[None], all_directions[None], torch.tensor([0, 0, 1]))


def test_large_systems_switch_to_cell_lists(path, monkeypatch):
    if path == "vesin":
        pytest.skip("the switch is tested once")
    monkeypatch.undo()
    monkeypatch.setattr(neighbors, "_CPU_PAIRS_PER_GRAPH", 100_000)
    monkeypatch.setattr(neighbors, "_from_all_pairs", lambda *_: pytest.fail("a table of all pairs for 3000 atoms"))
    edge_index, _ = neighbor_list(torch.rand(3000, 3) * 30, 3.0)
    assert edge_index.shape[1] > 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    atoms = ase.build.bulk("Si") * (2, 2, 1)
    atoms.rattle(0.1, seed=3)
    arguments = tensors(atoms)
    on_gpu = neighbor_list(arguments[0].cuda(), 5.0, arguments[1].cuda(), arguments[2].cuda())
    assert found(*(t.cpu() for t in on_gpu)) == expected(atoms, 5.0)
