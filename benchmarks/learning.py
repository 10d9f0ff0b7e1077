"""All architectures on the same data for the same time: ``python -m benchmarks.learning``.

Each is trained on revised MD17 ethanol (official split 1: 950 frames, 50 to validate, 1000 to test) from scratch, with
everything in the time that is given: imports, compiling, validation. Sizes are such that a step costs a fraction of a
second on a CPU; ``SETTINGS`` has what differs from the recipe ``rmd17``. One JSON a model goes to
``benchmarks/learning/``; ``--show`` prints the table of those and draws the figure.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.results import record
from pyg_equivariant import models

FOLDER = Path(__file__).parent / "learning"
FIGURE = Path(__file__).parents[1] / "docs" / "learning.png"
ELEMENTS = "[1, 6, 8]"  # some models have a matrix of each

SETTINGS: dict[str, dict[str, Any]] = {
    "RadialField": {"cutoff": 5.0, "compile": True},
    "PaiNN": {"compile": True},
    "SchNet": {"cutoff": 5.0, "compile": True},
    "PhysNet": {"cutoff": 5.0, "lr": 1e-3, "compile": True},
    "TensorFieldNetwork": {},
    "FrozenEGNN": {"num_layers": 4, "cutoff": 5.0, "lr": 1e-3, "compile": True},
    "Allegro": {},
    "EGNN": {"num_layers": 4, "cutoff": 5.0, "lr": 1e-3, "compile": True},
    "TensorNet": {"channels": 64},
    "EQGAT": {"lr": 1e-3},
    "NequIP": {
        "channels": 32,
        "num_layers": 3,
        "lmax": 2,
        "lmax_out": 0,
        "elements": ELEMENTS,
        "lr": 4e-3,
        "compile": True,
    },
    "EquivariantTransformer": {"channels": 64, "lr": 1e-3},
    "DimeNetPlusPlus": {"lr": 1e-3},
    "Cormorant": {},
    "DimeNet": {"lr": 1e-3},
    "LieResNet": {"channels": 256, "num_layers": 4, "cutoff": 5.0, "lr": 1e-3},
    "MACE": {"channels": 32, "lmax": 1, "lmax_out": 0, "elements": ELEMENTS, "lr": 5e-3},
    "ViSNet": {"channels": 64, "num_layers": 4, "lmax": 1, "lr": 1e-3},
    "SE3Transformer": {"channels": 16, "num_layers": 3, "lmax": 2, "lmax_out": 0, "num_heads": 4, "lr": 1e-3},
    "Equiformer": {"channels": 32, "num_layers": 3, "lmax": 2, "hidden": 32, "lr": 1e-3},
}
_OF_THE_TASK = {"lr", "compile"}


def arguments(name: str, settings: dict[str, Any]) -> list[str]:
    """What ``pyg-equivariant fit`` is told."""
    options = ["--config", "rmd17", "--data.molecule", "ethanol", "--model.representation", name]
    for key, value in settings.items():
        where = "model" if key in _OF_THE_TASK else "model.representation"
        options += [f"--{where}.{key}", json.dumps(value) if isinstance(value, bool) else str(value)]
    return options


def train(name: str, seconds: float, threads: int, note: str) -> None:
    """Trains one model and writes its file."""
    startup = _startup(threads)
    limit = time.strftime("00:%H:%M:%S", time.gmtime(seconds - startup))
    options = [*arguments(name, SETTINGS[name]), "--trainer.max_epochs", "-1", "--trainer.max_time", limit]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / name
        quiet = ["--trainer.enable_progress_bar", "false", "--run_dir", str(run)]
        command = [str(Path(sys.executable).with_name("pyg-equivariant")), "fit", *options, *quiet]
        subprocess.run(command, check=True, env=_environment(threads) | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"})
        quoted = " ".join(f'"{option}"' if " " in option else option for option in options)
        record(run, name, f"pyg-equivariant fit {quoted}", note, FOLDER)


def _environment(threads: int) -> dict[str, str]:
    return os.environ | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL")}


def _startup(threads: int) -> float:
    """Seconds that pass before a fit begins: they are part of the budget too."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import pyg_equivariant.training.run"], check=True, env=_environment(threads))
    return time.monotonic() - start


def _rows() -> list[dict[str, Any]]:
    rows = [json.loads(path.read_text()) for path in FOLDER.glob("*.json")]
    return sorted(rows, key=lambda row: _mae(row, "forces"))


def _mae(row: dict[str, Any], quantity: str) -> float:
    return float(next(entry["mae"] for entry in row["test"] if entry["quantity"] == quantity))


def _milliseconds(row: dict[str, Any]) -> float:
    """Between two steps, the first validation's time, and what came before, left out."""
    first, last = row["learning_curve"][0], row["learning_curve"][-1]
    steps = last["step"] - first["step"]
    return 1e3 * (last["seconds"] - first["seconds"]) / steps if steps else math.nan


def table() -> str:
    """The README's table, best forces first."""
    rows = ["| model | settings | weights | ms a step | steps | E, meV | F, meV/Å |", "|---|---|---|---|---|---|---|"]
    for row in _rows():
        known = SETTINGS[row["name"]]
        settings = "".join(f"{key} {value}, " for key, value in known.items() if key != "compile")
        mode = "compiled" if known.get("compile") else "eager"
        rows.append(
            f"| `{row['name']}` | {settings + mode} | {row['parameters']:,} | {_milliseconds(row):.0f} | "
            f"{row['steps']:,} | {_mae(row, 'energy'):.1f} | {_mae(row, 'forces'):.1f} |"
        )
    return "\n".join(rows)


def draw(file: Path) -> None:
    """Error on the validation set against time, and on the test set against the cost of a step."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, row in enumerate(_rows()):
        style = {"color": f"C{place % 10}", "linestyle": "-" if place < 10 else "--"}
        curve = row["learning_curve"]
        seconds, error = [point["seconds"] for point in curve], [point["val/forces_mae"] for point in curve]
        left.plot(seconds, error, linewidth=1, label=f"{row['name']}  {_mae(row, 'forces'):.1f}", **style)
        right.plot(_milliseconds(row), _mae(row, "forces"), "o", markersize=5, color=style["color"])
        point, offset = (_milliseconds(row), _mae(row, "forces")), (4, 2 if place % 2 else -7)
        right.annotate(row["name"], point, offset, textcoords="offset points", fontsize=7)
    left.set(xlabel="seconds of training", ylabel="MAE of the forces (validation), meV/Å", yscale="log", ylim=(5, 1000))
    right.set(xlabel="ms a step of 5 ethanols", ylabel="MAE of the forces (test), meV/Å", xscale="log", yscale="log")
    right.set_xticks([10, 20, 50, 100, 200, 500], ["10", "20", "50", "100", "200", "500"])
    right.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", fontsize=8, ncols=5, title="test MAE, meV/Å", title_fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=models.__all__, default=list(SETTINGS), metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=480.0, help="of each, everything included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="on what")
    parser.add_argument("--show", action="store_true", help="train nothing: print the table, draw the figure")
    args = parser.parse_args()
    for name in [] if args.show else args.models:
        train(name, args.seconds, args.threads, args.note)
    print(table())
    draw(FIGURE)


if __name__ == "__main__":
    main()
