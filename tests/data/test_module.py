import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch_geometric.data import Data

from pyg_equivariant.data.dataset import FlatDataset
from pyg_equivariant.data.loader import BatchSampler, graph_loader
from pyg_equivariant.data.module import (
    FilesDataModule,
    MD17DataModule,
    MolecularDataModule,
    QM9DataModule,
    Splits,
)
from pyg_equivariant.data.transforms import RadiusGraph


def graphs(count=23, seed=0):
    """Graphs whose energy is their number."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 7, (count,), generator=generator).tolist()
    data = [
        Data(
            z=torch.ones(n, dtype=torch.int64),
            pos=2 * torch.rand(n, 3, dtype=torch.float64, generator=generator),
            energy=torch.tensor([float(i)], dtype=torch.float64),
        )
        for i, n in enumerate(sizes)
    ]
    return FlatDataset.from_data_list(data)


class Numbers(MolecularDataModule):
    """Twenty-three graphs to train on, five to validate, three to test."""

    def __init__(self, dataset=None, **loading):
        super().__init__(**loading)
        self.units = {"energy": "eV"}
        self.dataset = dataset

    def load(self):
        dataset = graphs(31) if self.dataset is None else self.dataset
        return Splits(dataset[:23], dataset[23:28], dataset[28:])


class Recorder(pl.LightningModule):
    """Trains one number, and remembers which graphs it saw in which step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4, momentum=0.9)

    def training_step(self, batch, batch_idx):
        self.seen.append((self.global_step, [int(e) for e in batch.energy]))
        return (self.weight - batch.energy.float()).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append([int(e) for e in batch.energy])


def fit(folder, *, ckpt_path=None, epochs=4, steps=-1, every=None, workers=0, validate=True, **loading):
    module = Recorder()
    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=-1, every_n_train_steps=every)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, max_steps=steps, logger=False, callbacks=[checkpoint],
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0,
    )  # fmt: skip
    data = Numbers(cutoff=1.5, batch_size=4, num_workers=workers, seed=7, **loading)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*Checkpoint directory", "ignore:.*treespec, LeafSpec"
)


# ---------------------------------------------------------------------------------------------- batches


def test_batches_hold_what_was_asked_for():
    data = Numbers(batch_size=4)
    data.setup()
    assert [b.num_graphs for b in data.train_dataloader()] == [4, 4, 4, 4, 4, 3]
    assert [b.num_graphs for b in data.val_dataloader()] == [4, 1]
    assert torch.cat([b.energy for b in data.val_dataloader()]).tolist() == [23, 24, 25, 26, 27]
    assert sorted(torch.cat([b.energy for b in data.train_dataloader()]).tolist()) == list(range(23))


@pytest.mark.parametrize("limit", ["max_atoms", "max_edges"])
def test_batches_hold_no_more_than_fits(limit):
    data = Numbers(cutoff=torch.inf, **{limit: 40})
    data.setup()
    for epoch in range(3):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all((b.num_nodes if limit == "max_atoms" else b.num_edges) <= 40 for b in batches)
        assert max(b.num_graphs for b in batches) > 1
    seen = torch.cat([b.energy for b in data.val_dataloader()])
    assert seen.tolist() == [23, 24, 25, 26, 27]


def test_edges_are_those_of_the_cutoff():
    data = Numbers(cutoff=1.2, batch_size=30)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    expected = RadiusGraph(1.2)(data.train_set.with_transform(None)[batch.energy.long()].to_batch())
    assert torch.equal(batch.edge_index, expected.edge_index)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_batches(workers):
    alone, helped = Numbers(batch_size=4), Numbers(batch_size=4, num_workers=workers)
    for data in (alone, helped):
        data.setup()
    for left, right in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert set(left.keys()) == set(right.keys())
        for key in set(left.keys()):
            assert torch.equal(left[key], right[key])
        for a, b in zip(left.to_data_list(), right.to_data_list(), strict=True):
            assert torch.equal(a.edge_index, b.edge_index)


def test_order_changes_with_epoch_and_seed_only():
    sizes = torch.ones(50, dtype=torch.int64)

    def order(epoch, seed):
        sampler = BatchSampler(sizes, 8, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_the_batches(ranks):
    sizes = torch.randint(1, 9, (60,), generator=torch.Generator().manual_seed(1))
    for shuffle in (True, False):
        samplers = [BatchSampler(sizes, 30, shuffle=shuffle, rank=r, num_replicas=ranks) for r in range(ranks)]
        parts = [list(sampler) for sampler in samplers]
        assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
        seen = sorted(i for part in parts for batch in part for i in batch)
        if shuffle:
            assert len({len(part) for part in parts}) == 1  # or one rank would wait for ever
            assert set(seen) == set(range(60))
        else:
            assert seen == list(range(60))  # nothing is counted twice
    few = [BatchSampler(torch.ones(1, dtype=torch.int64), 4, rank=r, num_replicas=2) for r in range(2)]
    assert [list(sampler) for sampler in few] == [[[0]], [[0]]]


def test_sizes_beyond_the_limit_are_refused():
    with pytest.raises(ValueError, match="graph 1 has the size 9, but a batch may have 8 only"):
        BatchSampler(torch.tensor([1, 9]), 8)
    with pytest.raises(ValueError, match="not both"):
        Numbers(max_atoms=3, max_edges=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Numbers(batch_size=0)


def test_loader_goes_on_where_it_was():
    def make():
        return graph_loader(graphs(), BatchSampler(torch.ones(23, dtype=torch.int64), 4, shuffle=True, seed=3))

    unbroken = make()
    everything = [[int(e) for e in batch.energy] for _ in range(3) for batch in unbroken]
    broken = make()
    seen, state = [], None
    for batch in broken:
        seen.append([int(e) for e in batch.energy])
        if len(seen) == 2:
            state = broken.state_dict()
            break
    resumed = make()
    resumed.load_state_dict(state)
    assert len(resumed) == 6
    seen += [[int(e) for e in batch.energy] for batch in resumed]
    assert resumed.state_dict() == {"epoch": 1, "batch": 0}
    seen += [[int(e) for e in batch.energy] for _ in range(2) for batch in resumed]
    assert seen == everything


# ------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
def test_resumed_run_sees_what_an_unbroken_one_sees(tmp_path, workers, validate):
    """Six batches an epoch; checkpoints at an epoch's end, and within one."""
    options = {"workers": workers, "validate": validate}
    unbroken = fit(tmp_path / "unbroken", **options)
    assert [step for step, _ in unbroken.seen] == list(range(24))
    assert len({str(batch) for _, batch in unbroken.seen}) == 24  # every epoch has its own order

    fit(tmp_path / "epochs", epochs=2, **options)
    resumed = fit(tmp_path / "epochs", ckpt_path=tmp_path / "epochs" / "last.ckpt", **options)
    assert resumed.seen == unbroken.seen[12:]
    assert torch.equal(resumed.weight, unbroken.weight)

    fit(tmp_path / "steps", steps=8, every=4, **options)
    resumed = fit(tmp_path / "steps", ckpt_path=tmp_path / "steps" / "last.ckpt", every=4, **options)
    assert resumed.seen == unbroken.seen[8:]
    assert torch.equal(resumed.weight, unbroken.weight)
    if validate:
        assert resumed.validated[-2:] == [[23, 24, 25, 26], [27]]


# ------------------------------------------------------------------------------------------------- setup


def test_a_missing_label_stops_before_the_first_step():
    dataset = graphs(31)
    dataset.fields["energy"][4] = torch.nan
    with pytest.raises(ValueError, match="'energy' of train sample 4 is NaN"):
        Numbers(dataset).setup()
    dataset.fields["energy"][4], dataset.fields["energy"][25] = 1.0, torch.inf
    with pytest.raises(ValueError, match="'energy' of val sample 2 is NaN"):
        Numbers(dataset).setup()
    del dataset.fields["energy"]
    with pytest.raises(ValueError, match="no train sample has the field 'energy'"):
        Numbers(dataset).setup()
    with pytest.raises(ValueError, match="training set is empty"):
        Numbers(graphs(31)[:0]).setup()


def test_digest_tells_data_apart(caplog):
    digests = []
    for dataset in (graphs(31), graphs(31), graphs(31, seed=1), graphs(31)[list(range(30, -1, -1))]):
        data = Numbers(dataset)
        with caplog.at_level(logging.INFO):
            data.setup()
        assert data.digest in caplog.text
        digests.append(data.digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_setup_twice_is_setup_once():
    data = Numbers()
    data.setup("fit")
    before = data.train_set
    data.setup("test")
    assert data.train_set is before
    assert data.statistics.elements == [1]


# ------------------------------------------------------------------------------------------------- files


def write(path, count, seed=0, missing=None):
    import ase.io
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    rng = np.random.default_rng(seed)
    frames = []
    for i in range(count):
        atoms = Atoms("OH2", np.eye(3) + rng.normal(size=(3, 3), scale=0.1))
        results = {"energy": -2078.0 + rng.normal(), "forces": rng.normal(size=(3, 3))}
        if i == missing:
            del results["forces"]
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(path, frames)
    return str(path)


def test_files_are_split_by_fractions_or_given(tmp_path):
    train, other = write(tmp_path / "a.xyz", 20), write(tmp_path / "b.xyz", 4, seed=1)
    data = FilesDataModule(train, 0.1, 0.2, cutoff=3.0)
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [14, 2, 4]
    everything = torch.cat([part.column("energy") for part in (data.train_set, data.val_set, data.test_set)])
    assert len(everything.unique()) == 20
    data = FilesDataModule(train, other, None)
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [20, 4, 0]
    assert data.units == {"energy": "eV", "forces": "eV/Å"}
    assert next(iter(data.train_dataloader())).forces.shape == (60, 3)
    assert list(data.test_dataloader()) == []


def test_energies_of_isolated_atoms(tmp_path):
    data = FilesDataModule(write(tmp_path / "a.xyz", 20), E0s={"H": -13.6, "O": -2041.5})
    data.setup()
    assert float(data.statistics.references[8]) == -2041.5
    assert data.statistics.mean == pytest.approx((-2078 + 2 * 13.6 + 2041.5) / 3, abs=0.3)
    with pytest.raises(ValueError, match="isolated O"):
        FilesDataModule(str(tmp_path / "a.xyz"), E0s={"H": -13.6}).setup()


def test_sentences_of_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.xyz"):
        FilesDataModule(str(tmp_path / "none.xyz")).setup()
    with pytest.raises(ValueError, match=r"frame 2.*forces"):
        FilesDataModule(write(tmp_path / "bad.xyz", 5, missing=2)).setup()
    with pytest.raises(ValueError, match="fraction below 1"):
        FilesDataModule(write(tmp_path / "a.xyz", 5), val=1.5).setup()


# ------------------------------------------------------------------------------------------ QM9 and MD17


def test_md17(tmp_path, monkeypatch):
    monkeypatch.delenv("PYG_EQUIVARIANT_DATA", raising=False)
    monkeypatch.setenv("PYG_EQUIVARIANT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "rmd17_ethanol.npz",
        nuclear_charges=np.array([6, 6, 8]), coords=rng.normal(size=(40, 3, 3)),
        energies=rng.normal(size=40), forces=rng.normal(size=(40, 3, 3)), old_indices=np.arange(40),
    )  # fmt: skip
    (tmp_path / "splits").mkdir()
    np.savetxt(tmp_path / "splits" / "index_train_01.csv", np.arange(0, 20), fmt="%d")
    np.savetxt(tmp_path / "splits" / "index_test_01.csv", np.arange(20, 40), fmt="%d")
    data = MD17DataModule("ethanol", num_train=15, num_val=5, root=str(tmp_path))
    data.prepare_data()
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [15, 5, 20]
    energies = torch.cat([data.train_set.column("energy"), data.val_set.column("energy")])
    assert len(energies.unique()) == 20
    assert not torch.isin(energies, data.test_set.column("energy")).any()
    with pytest.raises(ValueError, match="split 1 has 20"):
        MD17DataModule("ethanol", num_train=18, num_val=5, root=str(tmp_path)).setup()


def test_unknown_target():
    with pytest.raises(ValueError, match="no target 'energy' in QM9: there are mu, alpha"):
        QM9DataModule("energy")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("qm9pack") is None, reason="needs pip install pyg_equivariant[qm9]")
def test_qm9():
    data = QM9DataModule("U0", split="cormorant", batch_size=64)
    data.prepare_data()
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [100_000, 17_748, 13_083]
    assert data.kind == "extensive"
    assert data.statistics.elements == [1, 6, 7, 8, 9]
    assert data.statistics.scale < 0.2  # eV per atom, of 11 keV
    batch = next(iter(data.train_dataloader()))
    assert batch.U0.shape == (64,)
    assert batch.U0.dtype == torch.float64
    mu = QM9DataModule("mu")
    mu.setup()
    assert mu.kind == "dipole_magnitude"
    assert mu.units == {"mu": "D"}
    assert mu.statistics.mean == pytest.approx(2.67, abs=0.05)
    assert not mu.statistics.references.any()


DATA = os.environ.get("PYG_EQUIVARIANT_DATA")


@pytest.mark.skipif(
    DATA is None or not (Path(DATA) / "water64_pbe0ts.xyz").is_file(),
    reason="needs water64_pbe0ts.xyz in PYG_EQUIVARIANT_DATA",
)
def test_periodic_water():
    data = FilesDataModule(str(Path(str(DATA)) / "water64_pbe0ts.xyz"), 0.1, 0.1, cutoff=4.0, batch_size=2)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch.shift.any()
    vec = batch.pos[batch.edge_index[0]] - batch.pos[batch.edge_index[1]]
    vec = vec + torch.einsum("ei,eij->ej", batch.shift, batch.cell[batch.batch[batch.edge_index[1]]])
    assert vec.norm(dim=1).max() < 4.0
    assert batch.num_edges / batch.num_nodes == pytest.approx(data.statistics.avg_num_neighbors, rel=0.1)


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec")
def test_lightning_predicts_in_order():
    class Echo(Recorder):
        def predict_step(self, batch, batch_idx):
            return batch.energy

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    predictions = trainer.predict(Echo(), datamodule=Numbers(batch_size=2))
    assert [part.tolist() for part in predictions] == [[28, 29], [30]]


def test_lightning_is_imported_only_when_needed():
    code = "import sys, pyg_equivariant.data as d; assert 'pytorch_lightning' not in sys.modules; d.QM9DataModule"
    subprocess.run([sys.executable, "-c", code], check=True)
