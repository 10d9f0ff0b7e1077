"""``fit``, ``validate``, ``test`` and Lightning's ``predict``: LightningCLI, and where a run keeps its files."""

import datetime
import inspect
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

import pyg_equivariant.heads
import pyg_equivariant.models  # noqa: F401  (its classes can be called by their short names)
from pyg_equivariant.data import MolecularDataModule
from pyg_equivariant.training.callbacks import BestModel, History, SaveWhenStopped, TestTable
from pyg_equivariant.training.refusal import Refused, innermost, sentence
from pyg_equivariant.training.task import Task

__all__ = ["main"]


_EVERY = datetime.timedelta(minutes=10)


class Parser(LightningArgumentParser):
    """A parser that raises where others print their usage and exit, and that does not guess abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the refusal."""
        raise Refused(message)


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder: all that was asked for, and every default."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes the file, when a fit begins."""
        if stage != "fit":
            return
        config = self.config.clone()
        config["ckpt_path"] = None
        path = Path(config["run_dir"]) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(config, str(path), skip_none=False, overwrite=True, multifile=False)


class CLI(LightningCLI):
    """LightningCLI with one folder a run.

    ``run_dir`` holds config.yaml, history.csv, tensorboard/, checkpoints/{last,best}.ckpt, model/ and the test table.
    """

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            Task,
            MolecularDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            parser_class=Parser,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's folder, and the link from the model's cutoff to the data's."""
        folder = "Folder of the run; runs/<recipe>/<time> if not given."
        parser.add_argument("--run_dir", type=str | None, default=None, help=folder)
        parser.link_arguments("model", "data.init_args.cutoff", compute_fn=_cutoff, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Settles the folder and the checkpoint.

        Raises:
            ValueError: if the options contradict each other.
        """
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        default = inspect.signature(MolecularDataModule).parameters["cutoff"].default
        if config["data"]["init_args"].get("cutoff", default) != default:  # it would be overridden without a word
            raise ValueError("data.cutoff is always that of the model: set --model.representation.cutoff instead")
        recipe = Path(str(config["config"][0])).stem if config.get("config") else "run"
        run_dir, ckpt_path = _locate(self.subcommand, recipe, config["run_dir"], config["ckpt_path"])
        self.run_dir = run_dir
        config["run_dir"], config["ckpt_path"] = str(run_dir), ckpt_path
        if "weights_only" in config:  # no pickled code is ever loaded
            config["weights_only"] = True

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds what fills the folder."""
        run = self.run_dir
        self.trainer_defaults["callbacks"] = [
            History(run),
            BestModel(run),
            TestTable(run),
            SaveWhenStopped(run),
            ModelCheckpoint(
                run / "checkpoints", "best", monitor="val/loss", save_last=True, enable_version_counter=False
            ),
            ModelCheckpoint(  # an epoch may take hours
                run / "checkpoints", "last", train_time_interval=_EVERY, enable_version_counter=False
            ),
        ]
        trainer = self._get(self.config_init, "trainer")
        if trainer["logger"] in (None, True):
            kwargs["logger"] = TensorBoardLogger(run, name="", version="tensorboard")
        return super().instantiate_trainer(default_root_dir=run, **kwargs)

    def after_fit(self) -> None:
        """Tests the best model.

        Raises:
            ValueError: if there is none.
        """
        if self.config["fit"]["trainer"]["fast_dev_run"] or len(self.datamodule.test_set) == 0:
            return
        best = self.run_dir / "checkpoints" / "best.ckpt"
        if not best.is_file():
            raise ValueError("training ended before its first validation, so no model is the best: train a whole epoch")
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=str(best), verbose=False)


def main(argv: Sequence[str]) -> int:
    """Runs one of Lightning's verbs.

    Args:
        argv: The verb and its options.

    Raises:
        ValueError: if an option is refused.
    """
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    logger.addFilter(_is_no_advertisement)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for noise in _NOISE:
            warnings.filterwarnings("ignore", noise)
        try:
            CLI(list(argv))
        except Refused as refusal:
            raise ValueError(sentence(str(refusal))) from None
        except ValueError as error:
            raise innermost(error) from None
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            return 143 if isinstance(end, SIGTERMException) else int(end.code or 0)
        finally:
            logger.removeFilter(_is_no_advertisement)
    return 0


# said by Lightning to programmers, of no use to someone at the command line
_NOISE = (
    "LightningCLI's args parameter",
    "The number of training batches .* is smaller than the logging interval",
    ".*does not have many workers which may be a bottleneck",
    r"`ModelCheckpoint\(monitor='val/loss'\)` could not find",  # CLI.after_fit says it better
    "Checkpoint directory .* exists and is not empty",
    "You're resuming from a checkpoint that ended before the epoch ended",  # the sampler of our data modules resumes
    r".*isinstance\(treespec, LeafSpec\)",
)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡", "TPU available"))


def _cutoff(task: Task) -> float:
    return task.cutoff


def _locate(verb: str, recipe: str, run_dir: str | None, ckpt_path: str | None) -> tuple[Path, str | None]:
    """Folder of the run and file of the checkpoint.

    Raises:
        FileNotFoundError: if a run or checkpoint that was asked for is not there.
        ValueError: if a new run would overwrite an old one.
    """
    wanted = ckpt_path or (None if verb == "fit" else "best")
    folder = Path(run_dir) if run_dir else None
    if wanted not in ("last", "best"):
        folder = folder or _new_folder(recipe)
        if verb == "fit" and wanted is None and (folder / "config.yaml").exists() and _is_first_process():
            raise ValueError(f"{folder} holds a run already: continue with --ckpt_path last, or use another --run_dir")
        return folder, wanted
    if folder is None:
        runs = sorted(Path("runs", recipe).glob(f"*/checkpoints/{wanted}.ckpt"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise FileNotFoundError(f"no run in runs/{recipe} has a {wanted}.ckpt: name the run with --run_dir")
        folder = runs[-1].parents[1]
    path = folder / "checkpoints" / f"{wanted}.ckpt"
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: was {folder} ever trained for a whole epoch?")
    return folder, str(path)


def _is_first_process() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _new_folder(recipe: str) -> Path:
    """``runs/<recipe>/<time>``, the same in all processes that Lightning starts."""
    if not _is_first_process() and (chosen := os.environ.get("PYG_EQUIVARIANT_RUN_DIR")):
        return Path(chosen)
    if "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError("several processes were started from outside: tell all of them one folder with --run_dir")
    folder = Path("runs", recipe, datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    os.environ["PYG_EQUIVARIANT_RUN_DIR"] = str(folder)
    return folder
