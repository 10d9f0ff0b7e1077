"""``pyg-equivariant quickstart``: from a SMILES string to a force field that runs dynamics, in about five minutes.

Everything on the way is real: conformers by RDKit, reference dynamics and labels by GFN2-xTB through tblite, a PaiNN
trained through Lightning, relaxation and dynamics through ASE. What it makes is a run's folder like any other.
"""

import argparse
import contextlib
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from ase import Atoms
from ase.md.velocitydistribution import force_temperature
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from pytorch_lightning.callbacks import TQDMProgressBar

from pyg_equivariant.calculators import PygEquivariantCalculator
from pyg_equivariant.data import FilesDataModule, from_smiles, read_file, to_ase
from pyg_equivariant.models import PaiNN
from pyg_equivariant.nn.configurable import describe
from pyg_equivariant.potential import Potential
from pyg_equivariant.reference import XTB, sample_dynamics, thermalize
from pyg_equivariant.report import save_predictions, write_report
from pyg_equivariant.training import BestModel, Cosine, ForceFieldTask, History
from pyg_equivariant.verbs import common
from pyg_equivariant.verbs.evaluate import HEADER, compare, errors
from pyg_equivariant.verbs.md import simulate
from pyg_equivariant.verbs.relax import relax
from pyg_equivariant.verbs.report import report_of_run

__all__ = ["main"]

WALKERS = 6
TEMPERATURE = 500.0  # K, of the reference: above what the force field is used at, so that it need not extrapolate
FORCE_GOAL = 0.05  # of the labels' standard deviation
DRIFT_GOAL = 1.0  # meV/atom/ps
SPLITS = ("train", "val", "test")
FILES = ("history.csv", "predictions.npz", "relaxed.extxyz", "trajectory.extxyz", "dynamics.csv",
         "report.html", "config.yaml", *(f"{split}.extxyz" for split in SPLITS))  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart.

    Args:
        argv: Arguments after the verb.

    Returns:
        0, or 1 if the force field is not as good as it should be.

    Raises:
        ValueError: if tblite is missing, the SMILES is none, or an option is out of range.
    """
    args = _parser().parse_args(argv)
    if args.frames < 10 * WALKERS or args.epochs < 1 or args.ps <= 0:
        raise ValueError(f"--frames must be at least {10 * WALKERS}, --epochs at least 1, and --ps positive")
    started = time.monotonic()
    out: Path = args.output
    with _calm():
        _make_way(out)
        print(f"1/4 Reference: Langevin dynamics of {args.smiles} at {TEMPERATURE:g} K with GFN2-xTB", flush=True)
        start = _sample(args.smiles, args.frames, args.seed, out)
        print("\n2/4 Training: PaiNN on the energies and forces of the walkers' first four fifths", flush=True)
        _train(args.epochs, args.seed, out)
        print("\n3/4 Held-out frames: from the end of every walker", flush=True)
        misses = _evaluate(out)
        print(
            f"\n4/4 Relaxation, and {args.ps:g} ps of dynamics at constant energy, with the trained model", flush=True
        )
        misses += _simulate(start, args.ps, args.seed, out)
    write_report(out / "report.html", report_of_run(out, title=f"{args.smiles}: GFN2-xTB learned by PaiNN"))
    print(f"\nDone in {time.monotonic() - started:.0f} s; model, trajectory and report are in {out}.")
    print(NEXT.format(out=out))
    for miss in misses:
        print(f"pyg-equivariant quickstart: {miss}: try more --frames or --epochs", file=sys.stderr)
    return 1 if misses else 0


NEXT = """
Look at it:   {out}/report.html
Use it:       pyg-equivariant md {out}/model "{out}/relaxed.extxyz" --ensemble nvt --ps 10

Next, on the data of the literature:
  QM9:        pyg-equivariant fit --config qm9 --data.target U0
  rMD17:      pyg-equivariant fit --config rmd17 --data.molecule aspirin"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyg-equivariant quickstart",
        description="From a SMILES string to a force field that runs dynamics: conformers, GFN2-xTB labels, training, "
        "held-out errors, relaxation, dynamics, report.",
        epilog='example: pyg-equivariant quickstart "CC(=O)N" --output acetamide',
    )
    parser.add_argument(
        "smiles", nargs="?", default="CCO", metavar="SMILES", help="the molecule (default: CCO, ethanol)"
    )
    parser.add_argument("--output", type=Path, default=Path("quickstart"), help="folder (default: quickstart)")
    parser.add_argument("--frames", type=int, default=1200, help="reference frames in all (default: 1200)")
    parser.add_argument("--epochs", type=int, default=25, help="of training (default: 25)")
    parser.add_argument("--ps", type=float, default=2.0, help="picoseconds of dynamics (default: 2)")
    parser.add_argument("--seed", type=int, default=1, help="of everything (default: 1)")
    return parser


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """One thread, and none of what Lightning says to programmers.

    On a molecule of this size more threads mostly wait for each other: much worse than one where the machine is shared.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tblite reads it when it is loaded
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "pyg_equivariant")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for noise in (".*does not have many workers", "The number of training batches", ".*LeafSpec"):
                warnings.filterwarnings("ignore", noise)
            yield
    finally:
        torch.set_num_threads(threads)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _make_way(out: Path) -> None:
    """Remove what an earlier quickstart left in the folder, and nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    if (out / "model" / "config.json").is_file():
        shutil.rmtree(out / "model")


def _sample(smiles: str, num_frames: int, seed: int, out: Path) -> Atoms:
    """Write train, val and test.extxyz, and return the conformer to start dynamics from.

    Frames of one walker that follow each other are alike, so that the held-out frames are the walkers' last
    ones, not some from in between.
    """
    try:
        XTB()
    except ImportError as error:
        raise ValueError(f"the quickstart computes its labels: {error}") from error
    starts = [to_ase(graph) for graph in from_smiles(smiles, num_conformers=WALKERS, seed=seed)]
    frames, failures = sample_dynamics(
        starts, num_frames, temperatures=(TEMPERATURE,), interval=15.0, timestep=1.0, seed=seed
    )
    for failure in failures:
        print(f"note: {failure.reason}")
    parts: dict[str, list[Atoms]] = {split: [] for split in SPLITS}
    for walker in range(WALKERS):
        own = [frame for frame in frames if frame.info["walker"] == walker]
        val, test = (max(1, round(share * len(own))) for share in (0.05, 0.15))
        parts["test"] += own[-test:]
        parts["val"] += own[-test - val : -test]
        parts["train"] += own[: -test - val]
    if not all(parts.values()):
        raise ValueError(f"GFN2-xTB gave only {len(frames)} frames of {smiles}, see the notes above")
    for split, part in parts.items():
        ase.io.write(out / f"{split}.extxyz", part)
    print(", ".join(f"{len(part)} frames in {out / split}.extxyz" for split, part in parts.items()))
    return starts[0]


def _train(epochs: int, seed: int, out: Path) -> None:
    """Train the force field; leaves model/, history.csv and config.yaml."""
    pl.seed_everything(seed, verbose=False)
    files: dict[str, Any] = {split: str(out / f"{split}.extxyz") for split in SPLITS}
    representation = PaiNN(64, 3, cutoff=5.0)
    settings: dict[str, Any] = {"lr": 8e-3, "weight_decay": 0.0}
    task = ForceFieldTask(representation, schedule=Cosine(warmup=100), **settings)
    data = FilesDataModule(**files, cutoff=representation.cutoff, batch_size=10, seed=seed)
    limits: dict[str, Any] = {"max_epochs": epochs, "gradient_clip_val": 10.0}
    trainer = pl.Trainer(
        **limits,
        callbacks=[History(out), BestModel(out), TQDMProgressBar(refresh_rate=10)],
        check_val_every_n_epoch=max(1, epochs // 15),
        accelerator="cpu",  # a molecule of nine atoms keeps no GPU busy
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=out,
    )
    trainer.fit(task, data)
    configuration = {
        "model": {
            "class_path": "ForceFieldTask",
            "init_args": {"representation": describe(representation), **settings},
        },
        "data": {"class_path": "FilesDataModule", "init_args": {**files, "batch_size": 10}},
        "trainer": limits,
    }
    (out / "config.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")


def _evaluate(out: Path) -> list[str]:
    """Print the table of held-out errors, leave predictions.npz, and return what is not as it should be."""
    path = out / "test.extxyz"
    samples = read_file(path, labels=("energy", "forces"))
    predictions = compare(Potential.load(out / "model"), samples, source=str(path))
    save_predictions(out / "predictions.npz", predictions)
    rows = errors(predictions)
    print(common.table(HEADER, [list(row.values()) for row in rows]))
    print("spread: standard deviation of the labels")
    deviation = predictions.predicted["forces"] - predictions.reference["forces"]
    share = float(np.sqrt(np.square(deviation).mean()) / predictions.reference["forces"].std())
    print(f"force error (RMSE) / spread: {100 * share:.2f} % (goal: below {100 * FORCE_GOAL:g} %)")
    return [] if share < FORCE_GOAL else [f"the force error is {100 * share:.1f} % of the spread of the forces"]


def _simulate(start: Atoms, ps: float, seed: int, out: Path) -> list[str]:
    """Relax and run dynamics; leaves trajectory and tables, and returns what is not as it should be."""
    misses = []
    atoms = start.copy()
    atoms.calc = PygEquivariantCalculator(out / "model", dtype=torch.float64)
    converged, steps = relax(atoms, fmax=0.01)
    largest = np.linalg.norm(atoms.get_forces(), axis=1).max()
    print(f"relaxation: {steps} steps of BFGS, largest force left {largest:.4f} eV/Å")
    if not converged:
        misses.append(f"the relaxation did not converge in {steps} steps")
    ase.io.write(out / "relaxed.extxyz", atoms)

    thermalize(atoms, 600.0, np.random.default_rng(seed))
    force_temperature(atoms, 600.0)  # half of it becomes potential energy: about 300 K are left
    dynamics = VelocityVerlet(atoms, 0.5 * fs)
    trace = simulate(
        atoms, dynamics, round(1000 * ps / 0.5), trajectory=out / "trajectory.extxyz", table=out / "dynamics.csv"
    )
    assert trace.temperature is not None
    print(f"dynamics: {ps:g} ps at {trace.temperature.mean():.0f} K on average, steps of 0.5 fs")
    print(f"energy drift: {trace.drift:.4f} meV/atom/ps (goal: below {DRIFT_GOAL:g})")
    if not abs(trace.drift) < DRIFT_GOAL:
        misses.append(f"the energy drifts by {trace.drift:.3f} meV/atom/ps")
    return misses
