"""A table row from a run: ``python -m benchmarks.results RUN --name NAME --command "pyg-equivariant fit ..."``.

Writes the test errors, the cost, the versions and the command to a JSON in ``benchmarks/results/`` that is called after
the run's folder. Without a run, prints the README's table from all of these files.
"""

import argparse
import csv
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from pyg_equivariant.potential import Predictor

RESULTS = Path(__file__).parent / "results"


def record(run: Path, name: str, command: str, note: str, folder: Path = RESULTS) -> None:
    """Write one file."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    with (run / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    model = Predictor.load(run / "model")
    seconds, steps = float(history[-1]["seconds"]), int(history[-1]["step"])
    document = {
        "name": name,
        "command": command,
        "note": note,
        "model": type(model.representation).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "digest": model.metadata.digest,
        "test": json.loads((run / "test.json").read_text()),
        "seconds": round(seconds),
        "steps": steps,
        "samples_per_second": round(steps * config["data"]["init_args"]["batch_size"] / seconds, 1),
        "learning_curve": [
            {key: float(row[key]) for key in row if key in ("seconds", "step") or key.endswith("_mae")}
            for row in history
        ],
        "versions": {package: version(package) for package in ("pyg_equivariant", "torch", "torch_geometric")},
        "hardware": {"machine": platform.machine(), "torch_threads": torch.get_num_threads()},
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{run.resolve().name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def table() -> str:
    """The README's table."""
    rows = ["| run | test errors (MAE) | cost | command |", "|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        row = json.loads(path.read_text())
        errors = ", ".join(f"{q['quantity']} {q['mae']:.3g} {q['unit']}" for q in row["test"])
        cost = f"{row['seconds'] / 60:.0f} min, {row['steps']:,} steps, {row['samples_per_second']:g} graphs/s"
        cost = f"{cost}; {row['note']}" if row["note"] else cost
        rows.append(f"| {row['name']} | {errors} | {cost} | `{row['command']}` |")
    return "\n".join(rows)


def main() -> None:
    """Record a run, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run")
    parser.add_argument("--name", help="of the row")
    parser.add_argument("--command", default="", help="what made the run")
    parser.add_argument("--note", default="", help="on what")
    args = parser.parse_args()
    if args.run:
        record(args.run, args.name or args.run.name, args.command, args.note)
    else:
        print(table())


if __name__ == "__main__":
    main()
