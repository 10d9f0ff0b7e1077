"""What a run leaves in its folder, besides Lightning's own checkpoints and TensorBoard logs."""

import csv
import json
import math
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from pyg_equivariant.training.metrics import Row
from pyg_equivariant.training.task import Task

__all__ = ["BestModel", "History", "SaveWhenStopped", "TestTable"]


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
        self.losses: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.started = time.monotonic() - self.seconds

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remembers the loss."""
        self.losses.append(outputs["loss"].detach())  # no .item(): a GPU would have to be waited for

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file anew."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        self.seconds = time.monotonic() - self.started
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": self.seconds,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/loss": float(torch.stack(self.losses).mean()) if self.losses else math.nan,
        }
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.rows.append(row)
        self.losses = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows({name: f"{value:.8g}" for name, value in row.items()} for row in self.rows)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        losses = torch.stack(self.losses).tolist() if self.losses else []
        return {"rows": [dict(row) for row in self.rows], "seconds": self.seconds, "losses": losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.rows, self.seconds = state_dict["rows"], state_dict["seconds"]
        self.losses = list(torch.tensor(state_dict["losses"]))


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


class SaveWhenStopped(Callback):
    """Writes ``checkpoints/last.ckpt`` when the user presses Ctrl-C, or a scheduler of jobs sends SIGTERM.

    The step is finished first, so that the checkpoint is whole; a second Ctrl-C stops at once, without one.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "checkpoints" / "last.ckpt"
        self.asked = False
        self.previous: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens, where one process can decide alone."""
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self._listen)

    def _listen(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step, with a checkpoint (Ctrl-C again: at once, without)", file=sys.stderr)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops, if asked to."""
        if self.asked:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise KeyboardInterrupt

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lightning raises between two steps what SIGTERM asked for."""
        if isinstance(exception, SIGTERMException):
            trainer.save_checkpoint(self.path, weights_only=False)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signal back."""
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
            self.previous = None


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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(aligned.format(*line) for line in lines)


def _digits(value: float) -> str:
    """Four significant digits, without an exponent where possible."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}" if decimals <= 7 else f"{value:.3e}"
