"""From the files of a run to the records of a report.

The formats are small and open to every tool:

``history.csv``, ``metrics.csv``
    One row a validation, or what Lightning's ``CSVLogger`` writes: one row a logging step, empty cells where nothing
    was logged. Columns ``epoch``, ``step`` or ``seconds``, and ``train/loss``, ``val/forces_mae`` and the like.
``predictions.npz``
    ``z`` [N], ``n_atoms`` [B], and for every quantity ``<name>_reference`` and ``<name>_predicted``, both [B]
    (one a structure), [N] or [N, k] (one an atom); ``units``, a JSON object. No pickle.
``dynamics.csv``
    Columns ``time_ps``, ``energy_meV_per_atom`` and, where known, ``temperature_K``.
"""

import csv
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num

from pyg_equivariant.report.contents import Curve, Dynamics, Headline, LearningCurve, Parity

__all__ = [
    "Predictions",
    "headlines",
    "history_from_csv",
    "load_dynamics",
    "load_predictions",
    "parities",
    "save_dynamics",
    "save_predictions",
    "wall_time",
]

UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "dipole": "e·Å", "charges": "e"}
"""Units of the package, for quantities whose unit is not given."""
_STAGE = re.compile(r"^(train|val|valid|validation|test)[_/](.+?)(?:_epoch)?$")
_MEASURE = re.compile(r"^(.+)_(mae|rmse)$")
_STAGE_NAMES = {"val": "validation", "valid": "validation"}
_NO_METRIC = {"epoch", "step", "seconds"}


# --- learning curves -----------------------------------------------------------------------------------------


def history_from_csv(
    paths: str | Path | Sequence[str | Path],
    *,
    axis: Literal["epoch", "step", "seconds"] = "epoch",
    units: Mapping[str, str] | None = None,
) -> list[LearningCurve]:
    """Learning curves of ``history.csv`` or ``metrics.csv``, train and validation of one quantity in one chart.

    ``train/x`` (or ``train_x``) and ``val/x`` share the chart of ``x``, and so do ``x_mae`` and ``x_rmse``; every
    other column gets its own. Of several values at one abscissa the last counts. Test values make no curve.

    Args:
        paths: One file, or those of a resumed run in their order.
        axis: Column of the abscissa.
        units: By the name of the quantity, such as ``{"energy": "meV"}``.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a file lacks the column ``axis``, or a cell is no number.
    """
    values: dict[str, dict[float, float]] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for column, points in _read_metrics(Path(path), axis).items():
            values.setdefault(column, {}).update(points)
    charts: dict[str, list[Curve]] = {}
    for column, points in values.items():
        stage, quantity, measure = _parse(column)
        if stage == "test" or not points:
            continue
        x = sorted(points)
        name = f"{stage} {measure.upper()}".strip() or quantity
        curve = Curve(name, np.array(x, dtype=np.float64), np.array([points[key] for key in x], dtype=np.float64))
        charts.setdefault(quantity, []).append(curve)

    def order(quantity: str) -> tuple[bool, bool, str]:
        validated = any(curve.name.startswith("validation") for curve in charts[quantity])
        return not validated, quantity != "loss", quantity

    return [
        LearningCurve(
            _title(quantity),
            sorted(charts[quantity], key=lambda curve: curve.name),
            unit=(units or {}).get(quantity, ""),
            axis=axis,
            log=all((curve.y[np.isfinite(curve.y)] > 0).all() for curve in charts[quantity]),
        )
        for quantity in sorted(charts, key=order)
    ]


def wall_time(path: str | Path) -> float | None:
    """Largest value of the column ``seconds``; ``None`` if the file has none."""
    with Path(path).open(newline="", encoding="utf-8") as stream:
        seconds = [float(row["seconds"]) for row in csv.DictReader(stream) if row.get("seconds")]
    return max(seconds, default=None)


def _parse(column: str) -> tuple[str, str, str]:
    """``val/forces_mae`` as ``("validation", "forces", "mae")``."""
    match = _STAGE.match(column)
    stage, quantity = (match[1], match[2]) if match else ("", column)
    measure = _MEASURE.match(quantity) if match else None
    quantity, measured = (measure[1], measure[2]) if measure else (quantity, "")
    return _STAGE_NAMES.get(stage, stage), quantity, measured


def _read_metrics(path: Path, axis: str) -> dict[str, dict[float, float]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: training writes history.csv, Lightning's CSVLogger metrics.csv")
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        columns = list(reader.fieldnames or [])
        if axis not in columns:
            raise ValueError(f"{path} has no column {axis!r}, only {', '.join(columns) or 'none'}: choose another axis")
        out: dict[str, dict[float, float]] = {name: {} for name in columns if name not in _NO_METRIC}
        for line, row in enumerate(reader, start=2):
            if not row[axis]:
                continue
            for name in out:
                if row[name]:
                    out[name][_number(path, line, axis, row[axis])] = _number(path, line, name, row[name])
    return out


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}, line {line}, column {column!r}: {text!r} is no number") from None


def _title(metric: str) -> str:
    words = metric.replace("_", " ").replace("/", " ").split()
    known = {"mae": "MAE", "rmse": "RMSE", "mse": "MSE", "lr": "Learning rate"}
    text = " ".join(known.get(word.lower(), word) for word in words)
    return text[:1].upper() + text[1:]


# --- predictions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for a test set, beside the labels.

    Args:
        z: Atomic numbers of all structures, ``[N]``.
        n_atoms: Atoms of each structure, ``[B]``; they sum to N.
        reference: Labels by the name of the quantity: ``[B]``, ``[N]`` or ``[N, k]``.
        predicted: The same names and shapes.
        units: By name; energy, forces, stress, dipole and charges are in the package's units if not given.

    Raises:
        ValueError: if the arrays do not fit each other.
    """

    z: Int[np.ndarray, "..."]
    n_atoms: Int[np.ndarray, "..."]
    reference: Mapping[str, Num[np.ndarray, "..."]]
    predicted: Mapping[str, Num[np.ndarray, "..."]]
    units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if int(self.n_atoms.sum()) != len(self.z):
            raise ValueError(f"n_atoms sums to {int(self.n_atoms.sum())}, but z holds {len(self.z)} atoms")
        if set(self.reference) != set(self.predicted):
            raise ValueError(f"labels are of {sorted(self.reference)}, predictions of {sorted(self.predicted)}")
        for name, labels in self.reference.items():
            shape = self.predicted[name].shape
            if labels.shape != shape or len(labels) not in (len(self.z), len(self.n_atoms)):
                raise ValueError(
                    f"{name}: labels {labels.shape} and predictions {shape} must be equal, with one row a structure "
                    f"({len(self.n_atoms)}) or an atom ({len(self.z)})"
                )

    def unit(self, name: str) -> str:
        """Unit of a quantity; empty if nobody gave one."""
        return self.units.get(name, UNITS.get(name, ""))

    def per_atom(self, name: str) -> bool:
        """Whether a quantity has one row an atom."""
        rows = len(self.reference[name])
        return rows == len(self.z) and (rows != len(self.n_atoms) or name in ("forces", "charges"))


def save_predictions(path: str | Path, predictions: Predictions) -> Path:
    """Write ``predictions.npz`` (see the top of this module)."""
    path = Path(path)
    arrays = {f"{name}_reference": array for name, array in predictions.reference.items()}
    arrays |= {f"{name}_predicted": array for name, array in predictions.predicted.items()}
    units = np.array(json.dumps(dict(predictions.units)))
    with path.open("wb") as stream:
        np.savez_compressed(stream, z=predictions.z, n_atoms=predictions.n_atoms, units=units, **arrays)  # type: ignore[arg-type]
    return path


def load_predictions(path: str | Path) -> Predictions:
    """Read ``predictions.npz`` (see the top of this module).

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: `pyg-equivariant evaluate` writes it")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ValueError(f"{path} is no npz file without pickles: {error}") from error
    missing = {"z", "n_atoms"} - set(arrays)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: predictions hold z, n_atoms and the quantities")
    units = json.loads(str(arrays.pop("units", "{}")))
    kinds = {
        kind: {name.removesuffix(kind): array for name, array in arrays.items() if name.endswith(kind)}
        for kind in ("_reference", "_predicted")
    }
    try:
        return Predictions(arrays["z"], arrays["n_atoms"], kinds["_reference"], kinds["_predicted"], units)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parities(predictions: Predictions) -> list[Parity]:
    """One parity plot a quantity.

    Total energies differ mostly by what the molecules are made of, which no model has to learn: from both arrays
    the least-squares share of each element in the labels is subtracted (of one composition, their mean). Errors
    do not change.
    """
    out = []
    for name, labels in predictions.reference.items():
        predicted, title = predictions.predicted[name], name[:1].upper() + name[1:]
        elements, note = predictions.z if predictions.per_atom(name) else None, ""
        if name == "energy":
            share = composition_energy(predictions)
            labels, predicted = labels - share, predicted - share
            note = "Both axes without what a sum over elements explains of the labels."
        if labels.ndim > 2:
            labels, predicted = labels.reshape(len(labels), -1), predicted.reshape(len(labels), -1)
        out.append(Parity(title, predictions.unit(name), labels, predicted, elements, note))
    return out


def composition_energy(predictions: Predictions) -> Float[np.ndarray, " B"]:
    """Least-squares fit of the energy labels by the number of atoms of each element."""
    elements, column = np.unique(predictions.z, return_inverse=True)
    counts = np.zeros((len(predictions.n_atoms), len(elements)))
    np.add.at(counts, (np.repeat(np.arange(len(counts)), predictions.n_atoms), column), 1)
    fit = np.linalg.lstsq(counts, predictions.reference["energy"].astype(np.float64), rcond=None)[0]
    return np.asarray(counts @ fit)


def headlines(predictions: Predictions) -> list[Headline]:
    """The table of test errors: MAE and RMSE of every quantity beside the spread of its labels.

    Energies are in meV and meV/atom (their spread is what the composition does not explain), forces in meV/Å,
    everything else in its own unit.
    """
    maes, rmses = [], []
    for name, labels in predictions.reference.items():
        labels = labels.astype(np.float64)
        if name == "energy":
            labels = labels - composition_energy(predictions)
        error = predictions.predicted[name].astype(np.float64) - predictions.reference[name].astype(np.float64)
        views = [(_title(name), predictions.unit(name), labels, error)]
        if name == "energy":
            size = predictions.n_atoms
            views.append(("Energy per atom", f"{predictions.unit(name)}/atom", labels / size, error / size))
        for title, unit, values, residual in views:
            factor, unit = (1e3, f"m{unit}") if unit.startswith("eV") else (1.0, unit)
            spread = factor * float(values.std()) or None
            maes.append(Headline(f"{title} MAE", factor * float(np.abs(residual).mean()), unit, spread))
            rmses.append(Headline(f"{title} RMSE", factor * float(np.sqrt(np.square(residual).mean())), unit, spread))
    return maes + rmses


# --- dynamics ------------------------------------------------------------------------------------------------


def save_dynamics(path: str | Path, trace: Dynamics) -> Path:
    """Write ``dynamics.csv`` (see the top of this module)."""
    path = Path(path)
    columns = {"time_ps": trace.time, "energy_meV_per_atom": trace.energy}
    if trace.temperature is not None:
        columns["temperature_K"] = trace.temperature
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows([repr(float(value)) for value in row] for row in zip(*columns.values(), strict=True))
    return path


def load_dynamics(path: str | Path, name: str = "NVE") -> Dynamics:
    """Read ``dynamics.csv`` (see the top of this module).

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if a column is missing or a cell is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: `pyg-equivariant md` writes it")
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        columns: dict[str, list[float]] = {column: [] for column in reader.fieldnames or []}
        for line, row in enumerate(reader, start=2):
            for column, values in columns.items():
                values.append(_number(path, line, column, row[column] or ""))
    for column in ("time_ps", "energy_meV_per_atom"):
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}, only {', '.join(columns) or 'none'}")
    temperature = np.array(columns["temperature_K"]) if "temperature_K" in columns else None
    return Dynamics(name, np.array(columns["time_ps"]), np.array(columns["energy_meV_per_atom"]), temperature)
