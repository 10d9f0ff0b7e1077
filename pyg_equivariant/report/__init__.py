"""One self-contained HTML page about a training: numbers, curves, parity, dynamics, a 3D view.

Example:
    >>> from pyg_equivariant.report import Headline, Report, write_report
    >>> report = Report("Ethanol", summary=[Headline("Force MAE", 12.0, "meV/Å", spread=1100.0)])
    >>> write_report("report.html", report)  # doctest: +SKIP
"""

from pyg_equivariant.report.collect import (
    Predictions,
    headlines,
    history_from_csv,
    load_dynamics,
    load_predictions,
    parities,
    save_dynamics,
    save_predictions,
    wall_time,
)
from pyg_equivariant.report.contents import (
    Curve,
    Dynamics,
    Headline,
    LearningCurve,
    Parity,
    Provenance,
    Report,
    Trajectory,
)
from pyg_equivariant.report.page import render, write_report

__all__ = [
    "Curve",
    "Dynamics",
    "Headline",
    "LearningCurve",
    "Parity",
    "Predictions",
    "Provenance",
    "Report",
    "Trajectory",
    "headlines",
    "history_from_csv",
    "load_dynamics",
    "load_predictions",
    "parities",
    "render",
    "save_dynamics",
    "save_predictions",
    "wall_time",
    "write_report",
]
