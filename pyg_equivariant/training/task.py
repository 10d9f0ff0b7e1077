"""What is trained, on what, and how its errors are reported: the two LightningModules."""

from abc import ABC, abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torch_geometric.data import Data

import pyg_equivariant
from pyg_equivariant.heads import EnergyHead, Head, head_for
from pyg_equivariant.models.base import Representation
from pyg_equivariant.potential import Metadata, Potential, Predictor
from pyg_equivariant.priors import Prior
from pyg_equivariant.training.ema import ExponentialMovingAverage
from pyg_equivariant.training.losses import EnergyForceLoss, Error, Term, WeightedLoss
from pyg_equivariant.training.metrics import Errors, Row, reported
from pyg_equivariant.training.schedules import Schedule
from pyg_equivariant.typing import Prediction

__all__ = ["ForceFieldTask", "PropertyTask", "Task"]


class Task(pl.LightningModule, ABC):
    """Trains a model with AdamW, a schedule and an average of its weights, which is what is evaluated and saved.

    What the data tell (atomic references, the labels' spread, the mean number of neighbours, elements, units) is
    taken from the trainer's data module when a fit is set up, and is part of every checkpoint and saved model.

    Args:
        representation: The architecture.
        lr: Learning rate.
        weight_decay: Of AdamW, decoupled.
        schedule: Factor on the learning rate; constant if not given.
        ema_decay: Decay of the average of the weights, per step; 0 evaluates the weights as they are.
        compile: Whether to compile the whole step, which takes a minute or two and makes it about twice as fast.

    Attributes:
        model: What is trained; None until :meth:`setup`, where the head depends on the data.
        ema: Its average.
        loss: What is minimised.
        table: One row a quantity, after a test.
    """

    model: Predictor
    ema: ExponentialMovingAverage[Predictor]
    loss: WeightedLoss

    def __init__(
        self,
        representation: Representation,
        *,
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        schedule: Schedule | None = None,
        ema_decay: float = 0.999,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise ValueError(f"the learning rate lr must be positive, got {lr}")
        self.lr = lr
        self.weight_decay = weight_decay
        self.ema_decay = ema_decay
        self.compiles = compile
        self.schedule = Schedule() if schedule is None else schedule
        self.cutoff = representation.cutoff
        self.errors = nn.ModuleDict()
        self.table: list[Row] = []

    @abstractmethod
    def build(self, data: Any) -> None:
        """Sets ``model`` and ``loss``, if they are not yet, knowing the data module."""

    @abstractmethod
    def standardize(self, data: Any) -> None:
        """Tells heads and loss the scale of the training labels."""

    @property
    def averaged(self) -> Predictor:
        """The model with the average of the weights: what is validated, tested, saved and used."""
        return self.ema.model

    def setup(self, stage: str) -> None:
        """Builds what depends on the data; before a fit also standardizes and checks the labels.

        Raises:
            ValueError: if there is no data module, or a label that the loss asks for is missing or NaN.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError(f"{type(self).__name__} needs a MolecularDataModule: pass it as datamodule=")
        if not hasattr(self, "ema"):
            self.build(data)
            self.ema = ExponentialMovingAverage(self.model, self.ema_decay)
        self.units = {name: data.units.get(name, "") for name in self.loss.quantities}
        if stage == "fit":
            if len(data.val_set) == 0:
                raise ValueError("the validation set is empty, but it chooses the best model: keep some samples for it")
            for split in (data.train_set, data.val_set):
                split.require(*self.loss.quantities)
            self._learn_statistics(data)
        elif stage in ("validate", "test"):
            (data.test_set if stage == "test" else data.val_set).require(*self.loss.quantities)
        self.errors = nn.ModuleDict({name: Errors(factor) for name, (_, factor) in self._reported().items()})

    def _learn_statistics(self, data: Any) -> None:
        statistics = data.statistics
        self.standardize(data)
        for module in self.model.modules():
            if isinstance(buffer := getattr(module, "avg_num_neighbors", None), Tensor):
                buffer.fill_(statistics.avg_num_neighbors)
        metadata = Metadata(
            elements=[int(z) for z in statistics.elements],
            units=dict(self.units),
            dataset=type(data).__name__.removesuffix("DataModule"),
            digest=data.digest,
            version=pyg_equivariant.__version__,
        )
        self.ema.reset(self.model)
        self.model.metadata = self.averaged.metadata = metadata

    # -------------------------------------------------------------------------------------------- training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the model's parameters."""
        return torch.optim.AdamW(self.model.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)

    def on_fit_start(self) -> None:
        """Compiles, if asked to, and refuses a schedule that has no end to follow."""
        if self.compiles:
            self.model.compile()
            self.averaged.compile()
        endless = self.trainer.max_steps == -1 and self.trainer.max_epochs == -1 and self._timer() is None
        if self.schedule.needs_end and endless:
            raise ValueError(
                f"the schedule {type(self.schedule).__name__} must know when training ends: "
                "set max_epochs, max_steps or max_time of the trainer"
            )

    def on_train_batch_start(self, batch: Data, batch_idx: int) -> None:
        """Sets the learning rate of the coming step."""
        lr = self.lr * self.schedule.factor(self.trainer.global_step, self._fraction())
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:  # of other steps nothing is written
            self.log("lr", lr)

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """The loss of a batch.

        Raises:
            ValueError: if it is not finite; the message names the quantity and the sample.
        """
        prediction = self.model(batch)
        loss = torch.stack(list(self.loss(prediction, batch).values())).sum()
        if not loss.isfinite():
            blame = self.loss.blame(prediction, batch)
            raise ValueError(f"training stopped at step {self.trainer.global_step}: {blame}")
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=True, batch_size=batch.num_graphs)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's step, then that of the average."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.model, self.trainer.global_step + 1)

    def _timer(self) -> Timer | None:
        timers = (callback for callback in self.trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
        return next((timer for timer in timers if timer.time_remaining() is not None), None)

    def _fraction(self) -> float:
        """Share of the run that is done, by whichever limit is nearer."""
        if not self.schedule.needs_end:
            return 0.0
        fraction = self.trainer.global_step / max(self.trainer.estimated_stepping_batches, 1)
        if timer := self._timer():
            elapsed, remaining = timer.time_elapsed(), timer.time_remaining() or 0.0
            fraction = max(fraction, elapsed / max(elapsed + remaining, 1e-9))
            fraction = self.trainer.strategy.broadcast(fraction)  # clocks differ, learning rates must not
        return min(fraction, 1.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the schedule's state."""
        checkpoint["schedule"] = self.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the schedule's state."""
        self.schedule.load_state_dict(checkpoint["schedule"])

    # ------------------------------------------------------------------------------------------ evaluation

    def predict_step(self, batch: Data, batch_idx: int) -> Prediction:
        """What the averaged model predicts."""
        prediction: Prediction = self.averaged(batch)
        return prediction

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Errors and loss of the averaged model."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Data, batch_idx: int) -> None:
        """Errors and loss of the averaged model."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Data, split: str) -> None:
        prediction = self.averaged(batch)
        terms = self.loss(prediction, batch)
        self.log(f"{split}/loss", torch.stack(list(terms.values())).sum(), batch_size=batch.num_graphs, sync_dist=True)
        for name, (residual, label) in self.residuals(prediction, batch).items():
            self._metric(name).update(residual, label)

    def residuals(self, prediction: Prediction, batch: Data) -> dict[str, tuple[Tensor, Tensor]]:
        """Prediction minus label, and the label without its known part, of each reported quantity."""
        return {name: (prediction.quantity(name) - batch[name], batch[name]) for name in self.loss.quantities}

    def on_validation_epoch_end(self) -> None:
        """Logs the errors and tells the schedule the loss."""
        self._summarize("val")
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            self.schedule.observe(float(self.trainer.callback_metrics["val/loss"]))

    def on_test_epoch_end(self) -> None:
        """Logs the errors and fills ``table``."""
        self.table = self._summarize("test")

    def _reported(self) -> dict[str, tuple[str, float]]:
        """Unit and factor of each quantity in the table of errors."""
        return {name: reported(unit) for name, unit in self.units.items()}

    def _metric(self, name: str) -> Errors:
        metric = self.errors[name]
        assert isinstance(metric, Errors)
        return metric

    def _summarize(self, split: str) -> list[Row]:
        table = []
        for name, (unit, _) in self._reported().items():
            metric = self._metric(name)
            values = {key: float(value) for key, value in metric.compute().items()}
            metric.reset()
            table.append(Row(name, unit, values["mae"], values["rmse"], values["spread"], round(values["samples"])))
            self.log(f"{split}/{name}_mae", values["mae"], prog_bar=split == "val" and not name.endswith("_per_atom"))
            self.log(f"{split}/{name}_rmse", values["rmse"])
        return table


class PropertyTask(Task):
    """Trains one property of a molecule, such as a target of QM9.

    Args:
        representation: The architecture.
        head: What reads the property from the features; the one for the kind of the data's target if not given.
        error: Measure of the residuals; squared if not given.
        lr: Learning rate.
        weight_decay: Of AdamW, decoupled.
        schedule: Factor on the learning rate; constant if not given.
        ema_decay: Decay of the average of the weights, per step; 0 evaluates the weights as they are.
        compile: Whether to compile the whole step, which takes a minute or two and makes it about twice as fast.
    """

    def __init__(
        self,
        representation: Representation,
        head: Head | None = None,
        *,
        error: Error | None = None,
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        schedule: Schedule | None = None,
        ema_decay: float = 0.999,
        compile: bool = False,
    ) -> None:
        super().__init__(
            representation,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            ema_decay=ema_decay,
            compile=compile,
        )
        self.representation = representation
        self.head = head
        self.error = error

    def build(self, data: Any) -> None:
        """See :meth:`Task.build`."""
        representation, self.target = self.representation, data.target
        head = self.head or head_for(data.kind, representation.channels, representation.lmax)
        self.model = Predictor(representation, {self.target: head})
        self.loss = WeightedLoss([Term(self.target, error=self.error)])
        del self.representation, self.head  # they live in the model now, and must not be saved twice

    def standardize(self, data: Any) -> None:
        """See :meth:`Task.standardize`."""
        statistics = data.statistics
        head = self.model.heads[self.target]
        assert isinstance(head, Head)
        head.standardize(statistics.scale, statistics.mean, statistics.references)
        self.loss.standardize(statistics.scale)


class ForceFieldTask(Task):
    """Trains energies, forces and, where the loss asks for it, stress.

    Args:
        representation: The architecture.
        loss: Weights and measures; :class:`EnergyForceLoss` if not given.
        head: Head of the energy; :class:`~pyg_equivariant.heads.EnergyHead` if not given.
        heads: Further quantities to predict, such as charges, by the name of their label.
        priors: Energies that are added to what is learned.
        lr: Learning rate.
        weight_decay: Of AdamW, decoupled.
        schedule: Factor on the learning rate; constant if not given.
        ema_decay: Decay of the average of the weights, per step; 0 evaluates the weights as they are.
        compile: Whether to compile the whole step, which takes a minute or two and makes it about twice as fast.
    """

    def __init__(
        self,
        representation: Representation,
        loss: WeightedLoss | None = None,
        *,
        head: EnergyHead | None = None,
        heads: dict[str, Head] | None = None,
        priors: list[Prior] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        schedule: Schedule | None = None,
        ema_decay: float = 0.99,
        compile: bool = False,
    ) -> None:
        super().__init__(
            representation,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            ema_decay=ema_decay,
            compile=compile,
        )
        self.loss = EnergyForceLoss() if loss is None else loss
        asked = self.loss.quantities
        self.model = Potential(
            representation, head, heads=heads, priors=priors, forces="forces" in asked, stress="stress" in asked
        )
        self.ema = ExponentialMovingAverage(self.model, ema_decay)

    def build(self, data: Any) -> None:
        """Nothing: the constructor knows all."""

    def standardize(self, data: Any) -> None:
        """See :meth:`Task.standardize`."""
        statistics = data.statistics
        assert isinstance(self.model, Potential)
        self.model.head.standardize(statistics.scale, statistics.mean, statistics.references)
        self.loss.standardize(statistics.scale)

    def residuals(self, prediction: Prediction, batch: Data) -> dict[str, tuple[Tensor, Tensor]]:
        """See :meth:`Task.residuals`; energies also per atom."""
        residuals = super().residuals(prediction, batch)
        if "energy" in residuals:
            assert isinstance(self.averaged, Potential)
            graph = batch.batch
            references = self.averaged.head.references(batch.z).new_zeros(batch.num_graphs)
            references = references.index_add(0, graph, self.averaged.head.references(batch.z))
            num_atoms = torch.bincount(graph, minlength=batch.num_graphs)
            residual, label = residuals["energy"]
            residuals["energy"] = residual, label - references
            residuals["energy_per_atom"] = residual / num_atoms, (label - references) / num_atoms
        return residuals

    def _reported(self) -> dict[str, tuple[str, float]]:
        rows = super()._reported()
        if "energy" in rows:
            unit, factor = rows["energy"]
            rows = {"energy": rows["energy"], "energy_per_atom": (f"{unit}/atom", factor), **rows}
        return rows
