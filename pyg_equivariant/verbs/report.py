"""``pyg-equivariant report RUN``: the page about a run."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pyg_equivariant.report import (
    Headline,
    LearningCurve,
    Provenance,
    Report,
    Trajectory,
    headlines,
    history_from_csv,
    load_dynamics,
    load_predictions,
    parities,
    wall_time,
    write_report,
)

__all__ = ["main", "report_of_run"]

AXES = ("epoch", "step", "seconds")
TRAJECTORIES = ("trajectory.traj", "trajectory.extxyz", "trajectory.xyz")


def main(argv: Sequence[str] | None = None) -> int:
    """Write ``report.html`` for the folder of a run.

    Args:
        argv: Arguments after the verb; those of the process if ``None``.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: if the folder, or all that a report could show, is missing.
        ValueError: if a file in it cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="pyg-equivariant report",
        description="Write one self-contained HTML page about a run: test errors, learning curves, parity plots, error "
        "by element, energy conservation, a 3D view and the configuration. What the folder does not hold is left out.",
        epilog="example: pyg-equivariant report runs/ethanol --title 'PaiNN on ethanol'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--output", type=Path, help="file to write (default: report.html in the folder)")
    parser.add_argument("--title", help="title of the page (default: name of the folder)")
    parser.add_argument("--axis", choices=AXES, default="epoch", help="abscissa of the learning curves")
    arguments = parser.parse_args(argv)
    report = report_of_run(arguments.run, title=arguments.title, axis=arguments.axis)
    print(write_report(arguments.output or arguments.run / "report.html", report))
    return 0


def report_of_run(run: str | Path, *, title: str | None = None, axis: Any = "epoch") -> Report:
    """Collect what the folder of a run holds.

    ``history.csv`` (or ``metrics.csv``, in the folder or in one logger's folder below it), ``test.json``,
    ``predictions.npz``, ``dynamics.csv``, ``trajectory.traj`` (or ``.extxyz``, ``.xyz``), ``config.yaml`` and
    ``model/``; each may be missing, not all.

    Args:
        run: The folder.
        title: Of the page; the folder's name if ``None``.
        axis: Abscissa of the learning curves: ``"epoch"``, ``"step"`` or ``"seconds"``.

    Raises:
        FileNotFoundError: if there is nothing to report.
        ValueError: if a file cannot be read, or the folder holds several runs.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"no folder {run}: name the folder of a run")
    metrics, table = _find_metrics(run), _test_table(run / "test.json")
    units = {str(row["quantity"]): str(row["unit"]) for row in table}
    history = history_from_csv(metrics, axis=axis, units=units) if metrics else []
    predictions = load_predictions(run / "predictions.npz") if (run / "predictions.npz").is_file() else None
    dynamics = [load_dynamics(run / "dynamics.csv")] if (run / "dynamics.csv").is_file() else []
    trajectory = _trajectory(run)
    if not (history or table or predictions or dynamics or trajectory):
        raise FileNotFoundError(
            f"the folder {run} holds nothing to report: no history.csv, metrics.csv, test.json, predictions.npz, "
            "dynamics.csv or trajectory.*"
        )
    errors = _errors(table) or (headlines(predictions) if predictions else _best(history))
    drifts = [
        Headline("Energy drift", abs(trace.drift), "meV/atom/ps", note=f"over {trace.time[-1] - trace.time[0]:.3g} ps")
        for trace in dynamics
    ]
    later = [row for row in errors if row.metric.endswith("RMSE")]  # the first four rows are shown large
    summary = [*(row for row in errors if row not in later), *drifts, *later]
    configuration = _configuration(run / "config.yaml")
    metadata = _metadata(run)
    model = _name_of_model(configuration)
    return Report(
        title=title or run.resolve().name,
        subtitle=f"{model} trained on {metadata['dataset']}" if model and metadata.get("dataset") else model,
        summary=summary,
        history=history,
        parity=parities(predictions) if predictions else [],
        dynamics=dynamics,
        trajectory=trajectory,
        configuration=configuration,
        provenance=Provenance(
            dataset=str(metadata.get("dataset", "")),
            digest=str(metadata.get("digest", "")),
            seconds=wall_time(metrics[-1]) if metrics else None,
            more={"Model written by": f"pyg_equivariant {metadata['version']}"} if metadata.get("version") else {},
        ),
    )


def _find_metrics(run: Path) -> list[Path]:
    """The file of the folder, or the files of one logger (``version_0``, ``version_1``, ... of a resumed run)."""
    for name in ("history.csv", "metrics.csv"):
        if (run / name).is_file():
            return [run / name]
    found = sorted(run.glob("**/metrics.csv"), key=lambda path: (path.stat().st_mtime, str(path)))
    loggers = {path.parent.parent if path.parent.name.startswith("version_") else path.parent for path in found}
    if len(loggers) > 1:
        raise ValueError(f"the folder {run} holds several runs: name one of {', '.join(sorted(map(str, loggers)))}")
    return found


def _test_table(path: Path) -> list[dict[str, Any]]:
    """The rows of ``test.json``: quantity, unit, mae, rmse, spread, samples."""
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [dict(row, mae=float(row["mae"]), rmse=float(row["rmse"]), unit=row["unit"]) for row in rows]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no table of test errors: {error!r}") from error


def _errors(table: Sequence[dict[str, Any]]) -> list[Headline]:
    rows = []
    for row in table:
        quantity = str(row["quantity"]).replace("_", " ")
        for measure in ("mae", "rmse"):
            metric = f"{quantity[:1].upper()}{quantity[1:]} {measure.upper()}"
            rows.append(
                Headline(metric, row[measure], row["unit"], row.get("spread"), f"{row.get('samples', '?')} samples")
            )
    return rows


def _best(history: Sequence[LearningCurve]) -> list[Headline]:
    """Lowest validation values: all there is to say before a test."""
    rows = []
    for chart in history:
        for curve in chart.curves:
            finite = curve.y[np.isfinite(curve.y)]
            if curve.name.startswith("validation") and len(finite):
                metric = f"{chart.title}{curve.name.removeprefix('validation')}"
                rows.append(Headline(metric, float(finite.min()), chart.unit, note="lowest of the validation"))
    return rows


def _trajectory(run: Path) -> Trajectory | None:
    from ase.io import read

    for name in TRAJECTORIES:
        if (run / name).is_file():
            try:
                return Trajectory(read(run / name, ":"), caption=name)
            except (ValueError, OSError, KeyError, IndexError) as error:
                raise ValueError(f"{run / name} cannot be read as a trajectory: {error}") from error
    return None


def _configuration(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a mapping, as LightningCLI writes it, got {type(document).__name__}")
    return {str(key): value for key, value in document.items()}


def _metadata(run: Path) -> dict[str, Any]:
    path = run / "model" / "config.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    metadata = document.get("metadata", {})
    return metadata if isinstance(metadata, dict) else {}


def _name_of_model(configuration: dict[str, Any]) -> str:
    """The representation's class, wherever the task keeps it."""
    model = configuration.get("model")
    for key in ("init_args", "representation"):
        if isinstance(model, dict) and isinstance(model.get(key), dict):
            model = model[key]
    path = model.get("class_path") if isinstance(model, dict) else None
    return str(path).rpartition(".")[2] if path else ""
