"""What a run leaves in its folder, besides Lightning's own checkpoints and TensorBoard logs."""

import csv
import json
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from pyg_equivariant.training.metrics import Row
from pyg_equivariant.training.task import Task

__all__ = ["BestModel", "History", "TestTable"]


class History(Callback):
    """``history.csv``: one row a validation, with the mean training loss since the last one.

    The rows are part of every checkpoint, so that a resumed run continues the file where the checkpoint was written.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "history.csv"
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._reset()

    def _reset(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.started = time.monotonic() - self.seconds

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remembers the loss."""
        self.losses.append(outputs["loss"].detach())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file anew."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        self.seconds = time.monotonic() - self.started
        row = {"epoch": float(trainer.current_epoch), "step": float(trainer.global_step), "seconds": round(self.seconds, 3)}
        row["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["train/loss"] = float(torch.stack(self.losses).mean()) if self.losses else math.nan
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.rows.append(row)
        self._reset()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows({name: f"{value:.8g}" for name, value in row.items()} for row in self.rows)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"rows": [dict(row) for row in self.rows], "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.rows, self.seconds = state_dict["rows"], state_dict["seconds"]


class BestModel(Callback):
    """``model/``: the averaged model of the best validation so far, saved whenever there is a better one.

    Args:
        folder: The run's folder.
        monitor: What decides, the lower the better.
    """

    def __init__(self, folder: Path, monitor: str = "val/loss") -> None:
        self.path = Path(folder) / "model"
        self.monitor = monitor
        self.best = math.inf

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the model, if it is the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.best:
            self.best = value
            if trainer.is_global_zero:
                assert isinstance(pl_module, Task)
                pl_module.averaged.save(self.path)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.best = state_dict["best"]


class TestTable(Callback):
    """``test.csv`` and ``test.json``: the errors on the test set, also printed.

    Args:
        folder: The run's folder.
    """

    __test__ = False  # no test case, whatever pytest thinks of the name

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes and prints the table."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Task)
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [row._asdict() for row in pl_module.table]
        (self.folder / "test.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with (self.folder / "test.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, Row._fields)
            writer.writeheader()
            writer.writerows(rows)
        print(format_table(pl_module.table))


def format_table(table: list[Row]) -> str:
    """The table as text, columns aligned.

    Example:
        >>> print(format_table([Row("forces", "meV/Å", 9.71, 14.3, 1230.0, 1000)]))
        quantity  unit     MAE   RMSE  spread  samples
        forces    meV/Å  9.710  14.30    1230     1000
    """
    lines = [["quantity", "unit", "MAE", "RMSE", "spread", "samples"]]
    lines += [[row.quantity, row.unit, *map(_digits, row[2:5]), str(row.samples)] for row in table]
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return "\n".join(
        "  ".join(text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


def _digits(value: float) -> str:
    """Four significant digits, without an exponent where possible."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}" if decimals <= 7 else f"{value:.3e}"
