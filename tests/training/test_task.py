import datetime
import json
from pathlib import Path
from typing import Any

import ase.io
import pytest
import pytorch_lightning as pl
import torch

from pyg_equivariant import __version__
from pyg_equivariant.data import FilesDataModule
from pyg_equivariant.heads import ChargesHead, ElectrostaticEnergyHead, IntensiveHead
from pyg_equivariant.models import NequIP, PaiNN, SchNet
from pyg_equivariant.nn.electrostatics import ShieldedCoulomb
from pyg_equivariant.potential import Potential, Predictor
from pyg_equivariant.training import (
    AbsoluteError,
    BestModel,
    Cosine,
    EnergyForceLoss,
    ForceFieldTask,
    History,
    Plateau,
    PropertyTask,
    Schedule,
    Task,
    Term,
    TestTable,
    WeightedLoss,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*treespec, LeafSpec",
    "ignore:You are trying to `self.log",
)


def trainer(folder: Path | None = None, **options: Any) -> pl.Trainer:
    callbacks = [History(folder), BestModel(folder), TestTable(folder)] if folder else []
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 3,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": callbacks,
            **options,
        }
    )


def small() -> PaiNN:
    torch.manual_seed(0)
    return PaiNN(4, 1, cutoff=3.0)


def test_a_force_field_learns(ethanol: FilesDataModule, tmp_path: Path) -> None:
    task = ForceFieldTask(small(), lr=0.02, ema_decay=0.8)
    run = trainer(tmp_path, max_epochs=8)
    run.fit(task, datamodule=ethanol)
    losses = [row["val/loss"] for row in run.callbacks[0].rows]
    assert losses[-1] < 0.5 * losses[0]
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("epoch,step,seconds,lr,train/loss,val/loss,val/energy_mae")


def test_the_model_knows_its_data(ethanol: FilesDataModule) -> None:
    task = ForceFieldTask(NequIP(4, 1, cutoff=3.0, lmax=1), EnergyForceLoss(0.5, 0.5))
    trainer(max_epochs=1).fit(task, datamodule=ethanol)
    statistics = ethanol.statistics
    for model in (task.model, task.averaged):
        assert isinstance(model, Potential)
        torch.testing.assert_close(model.head.references.values, statistics.references)
        assert float(model.head.scale) == pytest.approx(statistics.scale)
        degrees = [value for name, value in model.named_buffers() if name.endswith("avg_num_neighbors")]
        assert degrees
        assert all(float(degree) == pytest.approx(statistics.avg_num_neighbors) for degree in degrees)
        assert model.metadata.elements == [1, 6, 8]
        assert model.metadata.units == {"energy": "eV", "forces": "eV/Å"}
        assert model.metadata.digest == ethanol.digest
        assert model.metadata.version == __version__
    assert float(task.loss.terms["forces"].scale) == pytest.approx(statistics.scale)


def test_the_table_is_what_the_saved_model_does(ethanol: FilesDataModule, tmp_path: Path) -> None:
    task = ForceFieldTask(small(), ema_decay=0.9)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, datamodule=ethanol)
    run.test(task, datamodule=ethanol, verbose=False)
    model = Potential.load(tmp_path / "model")
    batch = ethanol.test_set.to_batch()
    prediction = model(batch)
    rows = {row["quantity"]: row for row in json.loads((tmp_path / "test.json").read_text())}
    energy = 1000 * (prediction.energy - batch.energy)
    forces = 1000 * (prediction.forces - batch.forces)
    assert rows["energy"]["mae"] == pytest.approx(float(energy.abs().mean()), rel=1e-4)
    assert rows["energy"]["rmse"] == pytest.approx(float(energy.square().mean().sqrt()), rel=1e-4)
    assert rows["energy_per_atom"]["mae"] == pytest.approx(float(energy.abs().mean()) / 9, rel=1e-4)
    assert rows["forces"]["mae"] == pytest.approx(float(forces.abs().mean()), rel=1e-4)
    assert rows["forces"]["spread"] == pytest.approx(float(1000 * batch.forces.std(correction=0)), rel=1e-4)
    assert rows["energy"]["spread"] == pytest.approx(float(1000 * batch.energy.std(correction=0)), rel=1e-4)
    assert [rows[name]["unit"] for name in rows] == ["meV", "meV/atom", "meV/Å"]
    assert [rows[name]["samples"] for name in rows] == [12, 12, 12 * 27]
    assert len((tmp_path / "test.csv").read_text().splitlines()) == 4


def test_evaluation_uses_the_average(ethanol: FilesDataModule) -> None:
    task = ForceFieldTask(small(), lr=0.01, ema_decay=0.9)
    trainer(max_epochs=1).fit(task, datamodule=ethanol)
    batch = next(iter(ethanol.val_dataloader()))
    difference = task.predict_step(batch, 0).energy - task.model.eval()(batch).energy
    assert difference.abs().max() > 0
    torch.testing.assert_close(task.predict_step(batch, 0).energy, task.averaged(batch).energy)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_predict_returns_forces(ethanol: FilesDataModule, inference_mode: bool) -> None:
    predictions = trainer(inference_mode=inference_mode).predict(ForceFieldTask(small()), datamodule=ethanol)
    assert predictions is not None
    assert [len(p.forces) for p in predictions] == [54, 54]
    assert not any(p.forces.requires_grad for p in predictions)


def test_further_heads_are_trained(ethanol: FilesDataModule) -> None:
    class WithCharges(FilesDataModule):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            for name in ("train_set", "val_set", "test_set"):
                view = getattr(self, name)
                charges = torch.zeros(len(view.fields["z"]))
                setattr(self, name, view.with_field("charges", charges))

    data = WithCharges(ethanol.files["train"], batch_size=10, cutoff=3.0)
    loss = WeightedLoss([Term("forces"), Term("charges", error=AbsoluteError())])
    task = ForceFieldTask(small(), loss, heads={"charges": ChargesHead(4)})
    before = task.model.heads["charges"].mlp
    weights = [parameter.detach().clone() for parameter in before.parameters()]
    trainer(max_epochs=1).fit(task, datamodule=data)
    assert any((new != old).any() for new, old in zip(before.parameters(), weights, strict=True))


def test_charges_learn_from_dipole_moments(frames: str, tmp_path: Path) -> None:
    """Of the charges nothing is told but their moment; they are learned with the energies that they are part of."""
    charge = {1: 0.2, 6: -0.1, 8: -1.0}  # e
    structures = ase.io.read(frames, ":")
    for atoms in structures:
        charges = [charge[int(z)] for z in atoms.numbers]
        atoms.calc.results["dipole"] = charges @ (atoms.positions - atoms.get_center_of_mass())
    ase.io.write(tmp_path / "dipoles.extxyz", structures)
    data = FilesDataModule(
        str(tmp_path / "dipoles.extxyz"),
        val=0.2,
        test=0.2,
        batch_size=6,
        cutoff=3.0,
        labels=("energy", "forces", "dipole"),
    )
    head = ElectrostaticEnergyHead(4, ShieldedCoulomb(3.0, shield=2.0))
    task = ForceFieldTask(small(), EnergyForceLoss(dipole=10.0), head=head, lr=0.02, ema_decay=0.8)
    fit = trainer(tmp_path / "run", max_epochs=8)
    fit.fit(task, datamodule=data)
    errors = [row["val/dipole_mae"] for row in next(c for c in fit.callbacks if isinstance(c, History)).rows]
    assert errors[-1] < 0.5 * errors[0]
    assert fit.test(task, datamodule=data, verbose=False)
    assert {row.quantity for row in task.table} == {"energy", "energy_per_atom", "forces", "dipole"}


@pytest.mark.parametrize(
    ("kind", "representation"),
    [
        ("extensive", SchNet),
        ("intensive", PaiNN),
        ("dipole_magnitude", PaiNN),
        ("isotropic_polarizability", PaiNN),
        ("spatial_extent", SchNet),
    ],
)
def test_every_kind_of_property_finds_its_head(
    kind: str, representation: Any, toy_property: Any, tmp_path: Path
) -> None:
    task = PropertyTask(representation(4, 1, cutoff=3.0), error=AbsoluteError())
    data = toy_property("toy", kind, cutoff=task.cutoff, batch_size=8)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, datamodule=data)
    run.test(task, datamodule=data, verbose=False)
    model = Predictor.load(tmp_path / "model")
    with torch.no_grad():
        error = model(data.test_set.to_batch()).properties["toy"].double() - data.test_set.column("toy")
    assert task.table[0].mae == pytest.approx(1000 * error.abs().mean().item(), rel=1e-4)
    assert task.table[0].unit == "meV"


def test_an_extensive_property_knows_its_references(toy_property: Any) -> None:
    data = toy_property(batch_size=8, cutoff=3.0)
    task = PropertyTask(small())
    run = trainer(max_epochs=1)
    run.fit(task, datamodule=data)
    run.test(task, datamodule=data, verbose=False)
    assert task.table[0].rmse < 0.05 * task.table[0].spread  # labels of hundreds of eV, after one epoch


def test_own_head_and_checkpoint_without_leftovers(toy_property: Any) -> None:
    head = IntensiveHead(4)
    task = PropertyTask(small(), head)
    trainer(max_epochs=1).fit(task, datamodule=toy_property(batch_size=8, cutoff=3.0))
    assert task.model.heads["toy"] is head
    assert {name.split(".")[0] for name in task.state_dict()} == {"model", "ema", "loss"}


def test_learning_rate_follows_the_schedule(ethanol: FilesDataModule, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=4)
    run.fit(ForceFieldTask(small(), lr=0.01, schedule=Cosine(warmup=2, floor=0.0)), datamodule=ethanol)
    rates = [row["lr"] for row in run.callbacks[0].rows]
    # 6 steps an epoch; the rate of step s is that of the share s/24
    expected = [0.01 * Cosine(floor=0.0).factor(9, (6 * epoch + 5) / 24) for epoch in range(4)]
    assert rates == pytest.approx(expected)


def test_plateau_hears_of_validations(ethanol: FilesDataModule) -> None:
    schedule = Plateau(patience=0)
    run = trainer(max_epochs=2)
    run.fit(ForceFieldTask(small(), schedule=schedule), datamodule=ethanol)
    assert schedule.best < 1e3
    assert schedule.best == pytest.approx(float(run.callback_metrics["val/loss"]), rel=0.5)


def test_cosine_follows_a_time_budget(ethanol: FilesDataModule, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=-1, max_time=datetime.timedelta(seconds=4))
    run.fit(ForceFieldTask(small(), lr=0.01, schedule=Cosine(floor=0.0)), datamodule=ethanol)
    rates = [row["lr"] for row in run.callbacks[0].rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.005
    assert rates[-1] < 0.001


def test_a_schedule_without_end_is_refused(ethanol: FilesDataModule) -> None:
    with pytest.raises(ValueError, match="Cosine must know when training ends: set max_epochs"):
        trainer(max_epochs=-1).fit(ForceFieldTask(small(), schedule=Cosine()), datamodule=ethanol)


def test_a_loss_that_is_not_finite_names_the_sample(toy_property: Any) -> None:
    class Poisoned(PropertyTask):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if 1003 in batch.idx.tolist():
                batch.toy = torch.where(batch.idx == 1003, torch.inf, batch.toy)
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match=r"stopped at step \d: the label of toy is not finite for sample 1003"):
        trainer().fit(Poisoned(small()), datamodule=toy_property(batch_size=8, cutoff=3.0))


def test_missing_labels_are_refused_before_the_first_step(ethanol: FilesDataModule) -> None:
    with pytest.raises(ValueError, match="stress"):
        trainer().fit(ForceFieldTask(small(), EnergyForceLoss(stress=1.0)), datamodule=ethanol)


def test_an_empty_validation_set_is_refused(frames: str) -> None:
    data = FilesDataModule(frames, val=0.0, test=0.2, cutoff=3.0)
    with pytest.raises(ValueError, match="the validation set is empty"):
        trainer().fit(ForceFieldTask(small()), datamodule=data)


def test_refusals(ethanol: FilesDataModule) -> None:
    with pytest.raises(ValueError, match="learning rate"):
        ForceFieldTask(small(), lr=0.0)
    ethanol.setup()
    with pytest.raises(ValueError, match="needs a MolecularDataModule"):
        trainer().fit(ForceFieldTask(small()), ethanol.train_dataloader(), ethanol.val_dataloader())
    assert issubclass(ForceFieldTask, Task)
    assert isinstance(ForceFieldTask(small()).schedule, Schedule)
