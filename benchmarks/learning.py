"""All architectures on the same data for the same time: ``python -m benchmarks.learning [--data qm9]``.

Each is trained from scratch on a set of ``DATA``, with everything but the test in the time that is given: imports,
compiling, validation. Revised MD17 ethanol is official split 1: 950 frames, 50 to validate, 1000 to test. QM9 is U0 of
the standard split's 110,000 molecules; of those to validate and to test, which are in random order, the first 128 and
2,016. Sizes are such that a step costs a fraction of a second on a CPU; ``SETTINGS`` has what differs from the options
of ``DATA`` and their recipe. One JSON a model goes to the folder of the data; ``--show`` prints the tables of those and
draws the figures.
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
from typing import Any, NamedTuple, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from benchmarks.results import record
from pyg_equivariant import models

FOLDER = Path(__file__).parent / "learning"
DOCS = Path(__file__).parents[1] / "docs"


class Data(NamedTuple):
    """What models learn from, and how it is shown.

    Attributes:
        options: What ``pyg-equivariant fit`` is told of every model.
        startup: Python code of what a fit does before its clock starts.
        elements: Atomic numbers, for the models that have a matrix of each.
        errors: Headings of the test errors by quantity; the last one ranks the models.
        step: What it sees.
        folder: Of the JSON files.
        figure: File of the figure.
        validations: How many there are in the time that is given; one an epoch if 0.
    """

    options: dict[str, Any]
    startup: str
    elements: str
    errors: dict[str, str]
    step: str
    folder: Path
    figure: Path
    validations: int = 0


DATA = {
    "ethanol": Data(
        options={"config": "rmd17", "data.molecule": "ethanol"},
        startup="import pyg_equivariant.training.run",
        elements="[1, 6, 8]",
        errors={"energy": "E, meV", "forces": "F, meV/Å"},
        step="5 ethanols",
        folder=FOLDER,
        figure=DOCS / "learning.png",
    ),
    "qm9": Data(
        options={
            "config": "qm9",
            "data.target": "U0",
            "data.batch_size": 32,
            "model.error": "AbsoluteError",
            "model.lr": 1e-3,
            "trainer.limit_val_batches": 4,
            "trainer.limit_test_batches": 63,
        },
        startup="import pyg_equivariant.training.run, pyg_equivariant.data as data; data.QM9DataModule('U0').setup()",
        elements="[1, 6, 7, 8, 9]",
        errors={"U0": "U0, meV"},
        step="32 molecules",
        folder=FOLDER / "qm9",
        figure=DOCS / "learning-qm9.png",
        validations=10,  # of four batches each: as much as some ten steps
    ),
}

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
        "elements": "of the data",
        "lr": 4e-3,
        "compile": True,
    },
    "EquivariantTransformer": {"channels": 64, "lr": 1e-3},
    "DimeNetPlusPlus": {"lr": 1e-3},
    "Cormorant": {},
    "DimeNet": {"lr": 1e-3},
    "LieResNet": {"channels": 256, "num_layers": 4, "cutoff": 5.0, "lr": 1e-3},
    "MACE": {"channels": 32, "lmax": 1, "lmax_out": 0, "elements": "of the data", "lr": 5e-3},
    "ViSNet": {"channels": 64, "num_layers": 4, "lmax": 1, "lr": 1e-3},
    "SE3Transformer": {"channels": 16, "num_layers": 3, "lmax": 2, "lmax_out": 0, "num_heads": 4, "lr": 1e-3},
    "Equiformer": {"channels": 32, "num_layers": 3, "lmax": 2, "hidden": 32, "lr": 1e-3},
}
_OF_THE_TASK = {"lr", "compile"}


def settings(data: Data, name: str) -> dict[str, Any]:
    """Options of one model beside those of all."""
    own = {}
    for key, value in SETTINGS[name].items():
        where = "model" if key in _OF_THE_TASK else "model.representation"
        own[f"{where}.{key}"] = data.elements if key == "elements" else value
    return {option: value for option, value in own.items() if data.options.get(option) != value}


def arguments(data: Data, name: str, *, compile: bool | None = None) -> list[str]:
    """What ``pyg-equivariant fit`` is told; whether to compile is up to ``SETTINGS`` if not given."""
    options = data.options | {"model.representation": name} | settings(data, name)
    if compile is not None:
        options["model.compile"] = compile
    return _words(options)


def _words(options: dict[str, Any]) -> list[str]:
    texts = {option: json.dumps(value) if isinstance(value, bool) else str(value) for option, value in options.items()}
    return [word for option, text in texts.items() for word in (f"--{option}", text)]


def train(data: Data, name: str, words: list[str], seconds: float, threads: int, note: str, folder: Path) -> None:
    """Trains one model, as the words say, and writes its file.

    Raises:
        ValueError: if the time is over before the first step.
    """
    startup = _startup(data, threads)
    if seconds < startup + 1:
        raise ValueError(f"a fit needs {startup:.0f} s before its first step: give it more than {seconds:g}")
    limits = {"trainer.max_epochs": -1, "trainer.max_time": _clock(seconds - startup)}
    if data.validations:
        limits["trainer.val_check_interval"] = _clock(max(seconds / data.validations, 1))
    words = words + _words(limits)
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / name
        quiet = ["--trainer.enable_progress_bar", "false", "--run_dir", str(run)]
        command = [str(Path(sys.executable).with_name("pyg-equivariant")), "fit", *words, *quiet]
        cache = {"TORCHINDUCTOR_CACHE_DIR": f"{temporary}/cache"}
        subprocess.run(command, check=True, env=_environment(threads) | cache)
        quoted = " ".join(f'"{word}"' if " " in word else word for word in words)
        record(run, name, f"pyg-equivariant fit {quoted}", note, folder)


def _clock(seconds: float) -> str:
    return time.strftime("00:%H:%M:%S", time.gmtime(seconds))


def _environment(threads: int) -> dict[str, str]:
    return os.environ | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL")}


def _startup(data: Data, threads: int) -> float:
    """Seconds that pass before the clock of a fit starts: they are part of the budget too."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", data.startup], check=True, env=_environment(threads))
    return time.monotonic() - start


def results(data: Data, folder: Path) -> list[dict[str, Any]]:
    """What the files of a folder hold, the best model first."""
    rows = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(rows, key=lambda row: _mae(row, _ranked(data)))


def _ranked(data: Data) -> str:
    return list(data.errors)[-1]


def _mae(row: dict[str, Any], quantity: str) -> float:
    return float(next(entry["mae"] for entry in row["test"] if entry["quantity"] == quantity))


def _milliseconds(row: dict[str, Any]) -> float:
    """Between two steps, the first validation's time, and what came before, left out."""
    first, last = row["learning_curve"][0], row["learning_curve"][-1]
    steps = last["step"] - first["step"]
    return 1e3 * (last["seconds"] - first["seconds"]) / steps if steps else math.nan


def table(data: Data, rows: list[dict[str, Any]]) -> str:
    """The README's table, of :func:`results`."""
    cells = [_cells(data, row) for row in rows]
    lines = ["| " + " | ".join(cells[0]) + " |", "|" + "---|" * len(cells[0])]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in cells)])


def _cells(data: Data, row: dict[str, Any]) -> dict[str, str]:
    """A row of the table by heading."""
    own = {option: value for option, value in settings(data, row["name"]).items() if option != "model.compile"}
    mode = "compiled" if "--model.compile true" in row["command"] else "eager"
    cells = {
        "model": f"`{row['name']}`",
        "settings": ", ".join([*(f"{option.rpartition('.')[2]} {value}" for option, value in own.items()), mode]),
        "weights": f"{row['parameters']:,}",
        "ms a step": f"{_milliseconds(row):.0f}",
        "steps": f"{row['steps']:,}",
    }
    if batch_size := data.options.get("data.batch_size"):
        cells["molecules"] = f"{row['steps'] * batch_size:,}"
    return cells | {heading: f"{_mae(row, quantity):.1f}" for quantity, heading in data.errors.items()}


def draw(data: Data, rows: list[dict[str, Any]], file: Path) -> None:
    """Error on the validation set against time, and on the test set against the cost of a step."""
    quantity = _ranked(data)
    symbol, unit = data.errors[quantity].split(", ")
    figure = Figure(figsize=(11, 6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, row in enumerate(rows):
        style = {"color": f"C{place % 10}", "linestyle": "-" if place < 10 else "--"}
        curve, point = row["learning_curve"], (_milliseconds(row), _mae(row, quantity))
        seconds, error = [entry["seconds"] for entry in curve], [entry[f"val/{quantity}_mae"] for entry in curve]
        left.plot(seconds, error, linewidth=1, label=f"{row['name']}  {point[1]:.1f}", **style)
        right.plot(*point, "o", markersize=5, color=style["color"])
    left.set(xlabel="seconds of training", ylabel=f"MAE of {symbol} (validation), {unit}", yscale="log")
    left.set_ylim(top=5 * _mae(rows[-1], quantity))  # the first steps of some are far out
    right.set(xlabel=f"ms a step of {data.step}", ylabel=f"MAE of {symbol} (test), {unit}", xscale="log", yscale="log")
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", fontsize=8, ncols=5, title=f"test MAE, {unit}", title_fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    _name_points(right, {row["name"]: (_milliseconds(row), _mae(row, quantity)) for row in rows})
    figure.savefig(file)


def _name_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Writes each name beside its point, within the axes and where it covers no other one, if there is such a place."""
    cast("Figure", axes.figure).draw_without_rendering()
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(list(points.values()))]
    for name, point in points.items():
        for x, y in ((4, 2), (4, -7), (-4, 2), (-4, -7), (0, -10), (0, 5)):
            side = "left" if x > 0 else "right" if x < 0 else "center"
            label = axes.annotate(name, point, (x, y), textcoords="offset points", fontsize=7, ha=side)
            label.set_in_layout(False)
            box = label.get_window_extent()
            if box.count_overlaps(taken) == 0 and axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1:
                break
            label.remove()
        else:
            label = axes.annotate(name, point, (4, 2), textcoords="offset points", fontsize=7)
            box = label.get_window_extent()
        taken.append(box.padded(3))


def show(data: Data, folder: Path) -> None:
    """Prints the table of a folder and draws its figure, into that folder where it is not the one of the data."""
    if rows := results(data, folder):
        print(table(data, rows))
        draw(data, rows, data.figure if folder == data.folder else folder / "learning.png")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--data", choices=DATA, default="ethanol")
    parser.add_argument("--models", nargs="+", choices=models.__all__, default=list(SETTINGS), metavar="MODEL")
    parser.add_argument("--resume", action="store_true", help="leave out the models that have a file")
    parser.add_argument("--seconds", type=float, default=480.0, help="of each, everything but the test included")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="all models or none; if not given, as SETTINGS has it"
    )
    parser.add_argument("--note", default="", help="on what")
    parser.add_argument("--folder", type=Path, help="of the JSON files, if not that of the data; for the figure too")
    parser.add_argument("--show", action="store_true", help="train nothing: print the tables, draw the figures")
    args = parser.parse_args()
    chosen = DATA[args.data]
    folder = args.folder or chosen.folder
    if not args.show:
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(args.threads)  # what the files say
        _startup(chosen, args.threads)  # the first time, data are processed: that is no model's time
        for name in args.models:
            if not (args.resume and (folder / f"{name}.json").exists()):
                words = arguments(chosen, name, compile=args.compile)
                train(chosen, name, words, args.seconds, args.threads, args.note, folder)
    for data in DATA.values() if args.show and not args.folder else [chosen]:
        show(data, args.folder or data.folder)


if __name__ == "__main__":
    main()
