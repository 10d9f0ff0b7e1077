"""The N-body data: the simulation against one written out, conservation, the paper's conventions."""

import numpy as np
import pytest
import torch

from pyg_equivariant.data import nbody
from pyg_equivariant.data.nbody import NBody, NBodyDataModule, simulate


@pytest.fixture
def few(monkeypatch):
    """Some systems only; frames 1 to 3 instead of 30 to 40."""
    monkeypatch.setattr(nbody, "_DRAWN", {"train": 5, "val": 3, "test": 2})
    monkeypatch.setattr(nbody, "_USED", {"train": 4, "val": 2, "test": 2})
    monkeypatch.setattr(nbody, "FIRST_FRAME", 1)
    monkeypatch.setattr(nbody, "LAST_FRAME", 3)


def force(pos: np.ndarray, charges: np.ndarray) -> np.ndarray:
    total = np.zeros_like(pos)
    for i in range(5):
        for j in range(5):
            if i != j:
                apart = pos[i] - pos[j]
                total[i] += charges[i] * charges[j] * apart / np.linalg.norm(apart) ** 3
    return total.clip(-100.0, 100.0)


def test_systems_of_the_published_program(few, tmp_path):
    """Its order of random numbers, its velocities half a step behind, its numbering of frames."""
    dataset = NBody(tmp_path)
    train, val, test = dataset.split()
    assert [len(part) for part in (train, val, test)] == [4, 2, 2]
    np_random = np.random.RandomState(43)
    systems = []
    for _ in range(10):
        charges = np_random.choice([-1.0, 0.0, 1.0], size=(5, 1), p=[0.5, 0.0, 0.5])[:, 0]
        pos, vel = np_random.randn(3, 5).T, np_random.randn(3, 5).T
        np_random.randn(2, 49, 3, 5)
        systems.append((pos, 0.5 * vel / np.sqrt((vel**2).sum(1, keepdims=True)), charges))
    for graph, number in ((train[0], 0), (train[3], 3), (val[0], 5), (test[1], 9)):
        pos, vel, charges = systems[number]
        vel = vel + 0.001 * force(pos, charges)
        for step in range(1, 401):
            pos = pos + 0.001 * vel
            if step == 200:
                np.testing.assert_allclose(graph.pos.numpy(), pos, atol=1e-9)
                np.testing.assert_allclose(graph.vel.numpy(), vel, atol=1e-9)
            if step == 400:
                np.testing.assert_allclose((graph.pos + graph.displacement).numpy(), pos, atol=1e-9)
            vel = vel + 0.001 * force(pos, charges)
        assert graph.charges.tolist() == charges.tolist()


def test_kept_and_read_again(few, tmp_path, monkeypatch):
    first = NBody(tmp_path)
    monkeypatch.setattr(nbody, "_generate", lambda: pytest.fail("simulated twice"))
    assert torch.equal(NBody(tmp_path).column("pos"), first.column("pos"))


def test_close_charges_are_clipped():
    """Two charges 0.01 apart would feel 10⁴; 100 a component is what they get. The others are far away."""
    pos = np.zeros((1, 3, 3))
    pos[0, 1, 0], pos[0, 2, 2] = 0.01, 1e6
    (_, vel), *_ = simulate(pos, np.zeros((1, 3, 3)), np.ones((1, 3)), 1)
    np.testing.assert_allclose(vel[0, :2, 0], [-0.1, 0.1], atol=1e-12)


def test_energy_and_momentum_are_conserved():
    """With two charges that never come close, over 500 steps; the energy up to the integrator's order."""
    pos = np.array([[[0.0, 0, 0], [2.0, 0, 0]]])
    vel = np.array([[[0.0, 0.3, 0], [0.0, -0.2, 0.1]]])
    charges = np.array([[1.0, -1.0]])
    before = nbody._energy(pos, vel, charges)
    for x, v in simulate(pos, vel, charges, 500):
        after = x, v
    np.testing.assert_allclose(nbody._energy(*after, charges), before, atol=1e-3)
    np.testing.assert_allclose(after[1].sum(1), vel.sum(1), atol=1e-12)
    assert np.abs(after[0] - pos).max() > 0.05


def test_data_module(few, tmp_path):
    data = NBodyDataModule(root=str(tmp_path), batch_size=2, cutoff=float("inf"))
    data.prepare_data()
    data.setup()
    assert data.statistics.avg_num_neighbors == 4.0
    batch = next(iter(data.train_dataloader()))
    assert batch.displacement.shape == batch.vel.shape == (10, 3)
    assert batch.edge_index.shape == (2, 40)
