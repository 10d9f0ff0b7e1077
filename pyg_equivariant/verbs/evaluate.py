"""``pyg-equivariant evaluate``: errors of a model on a labelled file."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch_geometric.data import Data

from pyg_equivariant.data.files import read_file
from pyg_equivariant.potential import Potential, Predictor
from pyg_equivariant.report import Predictions, headlines, save_predictions
from pyg_equivariant.verbs import common

__all__ = ["compare", "main"]

EXAMPLE = """\
runs/ethanol/model test.xyz -o evaluation
model.safetensors test.npz --unit energy=kcal/mol --key energy=U0"""
HEADER = ("quantity", "unit", "MAE", "RMSE", "spread")


def compare(model: Predictor, samples: Sequence[Data], *, source: str) -> Predictions:
    """Predictions of a model beside the labels of ``samples``.

    Compared is what the model predicts and all samples have a label for.

    Args:
        model: In evaluation mode; forces and stress are switched on where there are labels.
        samples: Labelled graphs without edges.
        source: What to call them in an error.

    Raises:
        ValueError: if there is nothing to compare, or a label is NaN.
    """
    labelled = set(samples[0].keys()).intersection(*(data.keys() for data in samples))
    if isinstance(model, Potential):
        model.forces, model.stress = "forces" in labelled, "stress" in labelled
        known = [name for name in ("energy", "forces", "stress", *model.quantities) if name in labelled]
        names = list(dict.fromkeys(known))
    else:
        names = [name for name in model.quantities if name in labelled]
    if not names:
        found = ", ".join(sorted(labelled - {"z", "pos", "cell", "pbc", "smiles"})) or "none"
        raise ValueError(
            f"{source}: no label of what the model predicts ({', '.join(model.quantities)}) in every frame, only "
            f"{found}: name it with --key"
        )
    for name in names:
        bad = next((frame for frame, data in enumerate(samples) if not bool(data[name].isfinite().all())), None)
        if bad is not None:
            raise ValueError(f"{source}, frame {bad}: the label {name} is NaN or infinite")
    predicted: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for _, prediction in common.predictions(model, samples, source=source):
        for name in names:
            predicted[name].append(prediction.quantity(name).double().cpu().numpy())
    return Predictions(
        z=np.concatenate([data.z.numpy() for data in samples]),
        n_atoms=np.array([len(data.z) for data in samples]),
        reference={name: np.concatenate([data[name].double().numpy() for data in samples]) for name in names},
        predicted={name: np.concatenate(arrays) for name, arrays in predicted.items()},
        units={name: unit for name, unit in model.metadata.units.items() if name in names},
    )


def errors(predictions: Predictions) -> list[dict[str, str | float | None]]:
    """One row a quantity, by ``HEADER``: MAE and RMSE beside the standard deviation of the labels."""
    lines = headlines(predictions)
    rows = []
    for mae, rmse in zip(lines[: len(lines) // 2], lines[len(lines) // 2 :], strict=True):
        row: tuple[str | float | None, ...] = (mae.metric[:-4], mae.unit, mae.value, rmse.value, mae.spread)
        rows.append(dict(zip(HEADER, row, strict=True)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    parser = common.parser("evaluate", (__doc__ or "").partition(": ")[2], EXAMPLE)
    common.add_model_arguments(parser)
    parser.add_argument("file", metavar="FILE", help="structures with labels: extxyz, npz, db, sdf, ...")
    parser.add_argument("--index", default=":", help="which frames, as ASE writes it (default: ':')")
    parser.add_argument("--key", action="append", default=[], metavar="LABEL=NAME", help="name of a label in the file")
    parser.add_argument("--unit", action="append", default=[], metavar="QUANTITY=UNIT", help="unit in the file, such "
                        "as energy=kcal/mol, length=Bohr, stress=GPa")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, help="folder for errors.json, errors.csv and predictions.npz")
    args = parser.parse_args(argv)
    model = common.load_model(Predictor, args)
    keys, units = _pairs("--key", args.key), _pairs("--unit", args.unit)
    samples = read_file(args.file, index=args.index, keys=keys, units=units)
    predictions = compare(model, samples, source=args.file)
    rows = errors(predictions)
    print(f"{len(samples)} structures of {args.file}")
    print(common.table(HEADER, [list(row.values()) for row in rows]))
    print("spread: standard deviation of the labels, of energies after a fit by composition")
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        document = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
        (args.output / "errors.json").write_text(document, encoding="utf-8")
        with (args.output / "errors.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, HEADER)
            writer.writeheader()
            writer.writerows(rows)
        save_predictions(args.output / "predictions.npz", predictions)
        print(f"errors.json, errors.csv, predictions.npz: {args.output}")
    return 0


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    for word in words:
        if "=" not in word:
            raise ValueError(f"{option} {word}: write it as NAME=VALUE")
    return dict(word.split("=", 1) for word in words)
