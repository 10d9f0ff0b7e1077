"""Draws what ``python -m benchmarks --out FILE.json`` measured: ``python -m benchmarks.chart FILE.json [MORE.json]``.

A bar is theirs / ours, each side in its fastest mode; a diamond is eager against eager. More files are drawn as one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

LABELS = {
    "ef": "training, E + F, 10 aspirins",
    "md": "E + F, 1 aspirin",
    "water": "E + F, 64 waters",
    "qm9": "training, E, 64 of QM9",
}
COLORS = {"ef": "#1f5fa8", "md": "#6baed6", "water": "#2a9d8f", "qm9": "#e9a23b"}


def fastest(result: dict[str, Any], clock: str = "wall") -> float | None:
    """Theirs / ours, each side in its fastest mode; ``None`` where a side is missing."""
    modes = {}
    for side in ("theirs", "ours"):
        runs = [run for run in result["runs"] if (run["side"] == "ours") == (side == "ours") and "ms" in run]
        if not runs:
            return None
        modes[side] = min(runs, key=lambda run: float(run["ms" if clock == "wall" else "processor_ms"]))["mode"]
    return _ratio(result, modes["theirs"], modes["ours"], clock)


def _ratio(result: dict[str, Any], theirs: str, ours: str, clock: str) -> float | None:
    found = [ratio[clock] for ratio in result["ratios"] if (ratio["theirs"], ratio["ours"]) == (theirs, ours)]
    return found[0] if found else None


def draw(document: dict[str, Any], file: Path, clock: str = "wall") -> None:
    """One group of bars a model, one bar a case."""
    results = [result for result in document["results"] if fastest(result, clock) is not None]
    groups = list(dict.fromkeys((result["peer"], result["model"]) for result in results))
    cases = [case for case in LABELS if any(result["case"] == case for result in results)]
    height = 0.8 / max(len(cases), 1)
    wide = 0.04 * max((fastest(result, clock) or 0.0 for result in results), default=0.0)  # as a number that is written
    figure = Figure(figsize=(8, 1.2 + 0.75 * max(len(groups), 1)), layout="constrained")
    axis = figure.add_subplot()
    for place, group in enumerate(groups):
        for row, case in enumerate(cases):
            y = place + (row - (len(cases) - 1) / 2) * height
            for result in results:
                if (result["peer"], result["model"], result["case"]) == (*group, case):
                    value = fastest(result, clock)
                    assert value is not None
                    axis.barh(y, value, 0.9 * height, color=COLORS[case])
                    eager = _ratio(result, "eager", "eager", clock)
                    near = eager is not None and 0 < eager - value < wide  # there the diamond would cover the number
                    axis.text(eager if near else value, y, f"  {value:.1f}", va="center", fontsize=7)
                    if eager is not None:
                        axis.plot(eager, y, "D", color="black", markersize=3)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(groups)), [f"{model}\n{peer}" for peer, model in groups], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("times faster than the peer, on the same inputs in the same run")
    handles = [axis.barh([0], [0], color=COLORS[case], label=LABELS[case]) for case in cases]
    handles += axis.plot([], [], "D", color="black", markersize=3, label="eager against eager")
    axis.legend(handles=handles, fontsize=8, loc="best")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    note = f"{document['hardware']['processor']}, {document['threads']} thread(s), float32"
    axis.set_title(f"bars and numbers: each side in its fastest mode; {note}", fontsize=8)
    figure.savefig(file, dpi=150)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks.png")
    args = parser.parse_args()
    documents = [json.loads(file.read_text()) for file in args.files]
    processors = dict.fromkeys(each["hardware"]["processor"] or each["hardware"]["machine"] for each in documents)
    together = documents[0] | {"hardware": {"processor": " or ".join(processors)}}
    draw(together | {"results": [result for each in documents for result in each["results"]]}, args.out, args.clock)


if __name__ == "__main__":
    main()
