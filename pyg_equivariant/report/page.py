"""From a :class:`Report` to one HTML file that needs no network."""

import base64
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
import yaml
from ase import Atoms
from ase.data import chemical_symbols

from pyg_equivariant.report.charts import (
    COLORS,
    Series,
    bar_chart,
    format_count,
    format_number,
    line_chart,
    scatter_chart,
    thin_cloud,
)
from pyg_equivariant.report.contents import Dynamics, Headline, LearningCurve, Parity, Provenance, Report, Trajectory

__all__ = ["render", "write_report"]

MAX_FRAMES = 200
MAX_POINTS = 3000
_MAX_ATOM_FRAMES = 40_000  # about 1 MB of coordinates
_MAX_BARS = 18
_SPREAD = "standard deviation of the labels"


def write_report(path: str | Path, report: Report) -> Path:
    """Write ``report`` as one self-contained HTML file: no network, no other file.

    Args:
        path: Of the file, usually ``report.html``; its folder is made if need be.
        report: What to show.

    Returns:
        The path of the file.

    Example:
        >>> import tempfile
        >>> from pyg_equivariant.report import Headline, Report
        >>> folder = tempfile.mkdtemp()
        >>> write_report(f"{folder}/report.html", Report("Ethanol", summary=[Headline("MAE", 12.0, "meV/Å")])).name
        'report.html'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(report), encoding="utf-8")
    return path


def render(report: Report) -> str:
    """The page as text."""
    colors = _element_colors(report.parity)
    sections = [
        ("results", "Results", _summary(report.summary)),
        ("learning", "Learning curves", _grid(_learning(one) for one in report.history)),
        ("parity", "Parity", _grid(_parity(one, colors) for one in report.parity)),
        ("elements", "Error by element", "".join(_elements(one) for one in report.parity if one.elements is not None)),
        ("energy", "Energy conservation", "".join(_dynamics(one) for one in report.dynamics)),
        ("structure", "Structure", _structure(report.trajectory) if report.trajectory else ""),
        ("configuration", "Configuration", _configuration(report)),
    ]
    sections = [section for section in sections if section[2]]
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>'
        for name, title, content in sections
    )
    scripts = [_read("errors.js"), _read("page.js")]
    viewer = [_read("3Dmol-min.js"), _read("viewer.js")] if report.trajectory else []
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts + viewer)
    return Template(_read("template.html")).substitute(
        title=escape(report.title),
        subtitle=f'<p class="subtitle">{escape(report.subtitle)}</p>' if report.subtitle else "",
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
        style=_read("style.css"),
        first_script=f"<script>{scripts[0]}</script>",
        navigation="".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections),
        body=body,
        version=escape(report.provenance.version),
        licence=f"<!--\n{_read('3Dmol-LICENSE.txt')}-->" if viewer else "",
        scripts="".join(f"<script>{script}</script>" for script in [*viewer, scripts[1]]),
    )


@functools.cache
def _read(name: str) -> str:
    return resources.files("pyg_equivariant.report").joinpath(name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _grid(figures: Iterable[str]) -> str:
    joined = "".join(figures)
    return f'<div class="grid-of-charts">{joined}</div>' if joined else ""


def _figure(title: str, chart: str, caption: str = "") -> str:
    caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="card"><h3>{escape(title)}</h3>{chart}{caption}</figure>'


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the row and whose other columns are numbers."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    caption = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


# --- headline numbers ----------------------------------------------------------------------------------------


def _summary(rows: Sequence[Headline]) -> str:
    if not rows:
        return ""
    tiles = "".join(_tile(row) for row in rows[:4])
    cells = [
        [
            row.metric,
            format_number(row.value),
            row.unit or "–",
            format_number(row.spread) if row.spread is not None else "–",
            _percent(row) or "–",
            row.note,
        ]
        for row in rows
    ]
    head = ["Metric", "Value", "Unit", "Labels’ spread", "Value / spread", "Note"]
    if not any(row.note for row in rows):
        head, cells = head[:-1], [cell[:-1] for cell in cells]
    table = _table(f"All numbers; spread = {_SPREAD}, in the same unit", head, cells)
    return f'<div class="tiles">{tiles}</div>{table}'


def _tile(row: Headline) -> str:
    share = _percent(row)
    beside = f"{share} of the labels’ spread" if share else row.note
    return (
        f'<div class="tile"><p class="metric">{escape(row.metric)}</p>'
        f'<p class="number">{format_number(row.value)} <span>{escape(row.unit)}</span></p>'
        f'<p class="beside">{escape(beside)}</p></div>'
    )


def _percent(row: Headline) -> str:
    return f"{format_number(100 * row.value / row.spread, 2)} %" if row.spread else ""


# --- learning curves -----------------------------------------------------------------------------------------


def _learning(chart: LearningCurve) -> str:
    series, notes = [], []
    for i, curve in enumerate(chart.curves):
        order = np.argsort(curve.x, kind="stable")
        x, y = curve.x[order].astype(float), curve.y[order].astype(float)
        name = curve.name if len(chart.curves) > 1 or curve.name.startswith(("train", "val")) else ""
        series.append(Series(name, x, y, i, dashed=curve.name.startswith("train") and len(chart.curves) > 1))
        finite = np.isfinite(y)
        if not finite.all():
            notes.append(f"{curve.name}: {_values(int((~finite).sum()))} not finite and not drawn")
        if chart.log and (y[finite] <= 0).any():
            notes.append(f"{curve.name}: {_values(int((y[finite] <= 0).sum()))} not positive and not drawn")
        if curve.name.startswith("val") and finite.any():
            best = int(np.nanargmin(np.where(finite, y, np.inf)))
            lowest, last = _with_unit(y[best], chart.unit), _with_unit(y[finite][-1], chart.unit)
            notes.append(f"{curve.name}: lowest {lowest} at {chart.axis} {_short(x[best])}, last {last}")
    if not any(np.isfinite(s.y).any() and (not chart.log or (s.y[np.isfinite(s.y)] > 0).any()) for s in series):
        return _figure(chart.title, "<p>No value can be drawn.</p>", _sentences(notes))
    drawing = line_chart(
        series,
        label=f"Learning curve of {chart.title} over {chart.axis}: {', '.join(curve.name for curve in chart.curves)}",
        xlabel=chart.axis.capitalize(),
        ylabel=f"{chart.title} ({chart.unit})" if chart.unit else chart.title,
        log=chart.log,
    )
    return _figure(chart.title, drawing, _sentences(notes))


def _values(count: int) -> str:
    return "1 value is" if count == 1 else f"{format_count(count)} values are"


def _short(x: float) -> str:
    return format_count(int(x)) if float(x).is_integer() else format_number(x)


def _sentences(notes: Sequence[str]) -> str:
    return " ".join(f"{note[:1].upper()}{note[1:]}." for note in notes)


def _with_unit(value: float, unit: str) -> str:
    return f"{format_number(float(value))} {unit}".rstrip()


# --- parity and error by element -----------------------------------------------------------------------------


def _element_colors(parities: Sequence[Parity]) -> dict[int, int]:
    """A colour for each element, the same in all plots; the rare ones share the last where colours run out."""
    count: Counter[int] = Counter()
    for parity in parities:
        if parity.elements is not None:
            count.update(parity.elements.tolist())
    own = sorted(number for number, _ in count.most_common(COLORS if len(count) <= COLORS else COLORS - 1))
    return {number: own.index(number) if number in own else COLORS - 1 for number in sorted(count)}


def _parity(parity: Parity, colors: dict[int, int]) -> str:
    reference, predicted = parity.reference.astype(float).ravel(), parity.predicted.astype(float).ravel()
    keep = thin_cloud(reference, predicted, MAX_POINTS)
    clouds = [Series("", reference[keep], predicted[keep])]
    if parity.elements is not None:
        components = parity.reference.size // len(parity.elements)
        numbers = np.repeat(parity.elements, components)[keep]
        members: dict[int, list[int]] = {}
        for number in np.unique(numbers).tolist():
            members.setdefault(colors[number], []).append(number)
        clouds = []
        for color, group in members.items():
            chosen = np.isin(numbers, group)
            name = chemical_symbols[group[0]] if len(group) == 1 else "others"
            clouds.append(Series(name, reference[keep][chosen], predicted[keep][chosen], color))
        clouds.sort(key=lambda cloud: -len(cloud.x))  # the rare ones on top
    errors = [f"MAE {_error(parity.mae, parity.unit)}", f"RMSE {_error(parity.rmse, parity.unit)}"]
    unit = f" ({parity.unit})" if parity.unit else ""
    drawing = scatter_chart(
        clouds,
        label=f"Parity plot of {parity.name}: {', '.join(errors)}",
        xlabel=f"Reference{unit}",
        ylabel=f"Predicted{unit}",
        note=errors,
    )
    size = len(reference)
    caption = f"{format_count(size)} values; their own spread ({_SPREAD}) is {_error(parity.spread, parity.unit)}."
    if len(keep) < size:
        caption += f" {format_count(len(keep))} are drawn, fewer where they crowd; the errors count all."
    caption = f"{caption} {parity.note}".strip()
    return _figure(parity.name, drawing, caption)


def _scale(value: float, unit: str) -> tuple[float, str]:
    """Small energies read better in milli."""
    return (1000.0, f"m{unit}") if unit.startswith("eV") and value < 0.1 else (1.0, unit)


def _error(value: float, unit: str) -> str:
    factor, unit = _scale(value, unit)
    return _with_unit(value * factor, unit)


def _elements(parity: Parity) -> str:
    assert parity.elements is not None
    parts = {number: parity.of_element(number) for number in np.unique(parity.elements).tolist()}
    factor, unit = _scale(parity.mae, parity.unit)
    shown = sorted(parts, key=lambda number: -parts[number].rmse)[:_MAX_BARS]
    shown.sort()
    drawing = bar_chart(
        [chemical_symbols[number] for number in shown],
        [
            ("MAE", 0, [factor * parts[number].mae for number in shown]),
            ("RMSE", 1, [factor * parts[number].rmse for number in shown]),
        ],
        label=f"MAE and RMSE of {parity.name} by element; the table beside it holds the numbers",
        ylabel=f"Error ({unit})",
    )
    rows = [
        (
            chemical_symbols[number],
            format_count(len(part.reference)),
            format_number(factor * part.mae),
            format_number(factor * part.rmse),
            format_number(factor * part.spread),
            f"{format_number(100 * part.rmse / part.spread, 2)} %" if part.spread else "–",
        )
        for number, part in parts.items()
    ]
    head = ["Element", "Atoms", "MAE", "RMSE", "Spread", "RMSE / spread"]
    table = _table(f"{parity.name} in {unit}; spread = {_SPREAD}", head, rows)
    caption = (
        f"The {len(shown)} elements with the largest RMSE; the table holds all." if len(parts) > len(shown) else ""
    )
    return f'<div class="grid-of-charts">{_figure(parity.name, drawing, caption)}<div class="card">{table}</div></div>'


# --- dynamics and structure ----------------------------------------------------------------------------------


def _dynamics(trace: Dynamics) -> str:
    time, energy = trace.time.astype(float), trace.energy.astype(float)
    fit = energy.mean() + trace.drift * (time[[0, -1]] - time.mean()) - energy[0]
    figures = [
        _figure(
            f"{trace.name}: total energy",
            line_chart(
                [
                    Series("total energy − its first value", time, energy - energy[0]),
                    Series("drift", time[[0, -1]], fit, 1, dashed=True),
                ],
                label=f"Total energy of {trace.name} over time, drift {format_number(trace.drift)} meV/atom/ps",
                xlabel="Time (ps)",
                ylabel="Energy (meV/atom)",
            ),
            f"Drift {format_number(trace.drift)} meV/atom/ps over {format_number(time[-1] - time[0])} ps; "
            f"fluctuation about it {format_number(trace.fluctuation)} meV/atom.",
        )
    ]
    if trace.temperature is not None:
        mean = float(trace.temperature.mean())
        figures.append(
            _figure(
                f"{trace.name}: temperature",
                line_chart(
                    [Series("", time, trace.temperature.astype(float), 2)],
                    label=f"Temperature of {trace.name} over time, mean {format_number(mean)} K",
                    xlabel="Time (ps)",
                    ylabel="Temperature (K)",
                ),
                f"Mean {format_number(mean)} K.",
            )
        )
    return _grid(figures)


def _structure(trajectory: Trajectory) -> str:
    frames = trajectory.frames
    chosen = _thin_frames(len(frames), len(frames[0]))
    clock = []
    for i in chosen:
        time = "" if trajectory.time is None else f"{trajectory.time[i]:.3f} ps, "
        clock.append(f"{time}frame {i + 1} of {len(frames)}")
    xyz = "".join(_xyz(frames[i]) for i in chosen)
    formula = frames[0].get_chemical_formula()
    caption = trajectory.caption
    if len(chosen) < len(frames):
        caption = f"{caption} {len(chosen)} of {len(frames)} frames are kept.".strip()
    stage = Template(_read("viewer.html")).substitute(
        label=escape(f"3D view of {formula}: arrow keys turn it, plus and minus zoom"),
        last=len(chosen) - 1,
        many="" if len(chosen) > 1 else "hidden",
        caption=f"<figcaption>{escape(caption)}</figcaption>" if caption else "",
        formula=escape(formula),
    )
    return (
        f'{stage}<script type="chemical/x-xyz" id="xyz">{xyz}</script>'
        f'<script type="application/json" id="clock">{json.dumps(clock)}</script>'
    )


def _thin_frames(frames: int, atoms: int) -> list[int]:
    """Which frames to keep: evenly spaced, with the first and the last."""
    limit = max(1, min(MAX_FRAMES, _MAX_ATOM_FRAMES // atoms))
    if limit == 1:
        return [0]
    return [int(i) for i in np.unique(np.linspace(0, frames - 1, min(frames, limit)).round())]


def _xyz(atoms: Atoms) -> str:
    lattice = ""
    if atoms.cell.rank == 3:
        lattice = 'Lattice="' + " ".join(f"{x:.4f}" for x in atoms.cell.array.ravel()) + '"'
    symbols = ["X" if number == 0 else chemical_symbols[number] for number in atoms.numbers]
    rows = (f"{symbol} {x:.3f} {y:.3f} {z:.3f}" for symbol, (x, y, z) in zip(symbols, atoms.positions, strict=True))
    return f"{len(atoms)}\n{lattice}\n" + "\n".join(rows) + "\n"


# --- configuration and provenance ----------------------------------------------------------------------------


def _configuration(report: Report) -> str:
    plain = json.loads(json.dumps(dict(report.configuration), default=str))
    single = {key: value for key, value in plain.items() if not isinstance(value, dict | list) or not value}
    blocks = {"general": single} if single else {}
    blocks.update({key: value for key, value in plain.items() if key not in single})
    details = "".join(
        f'<details><summary>{escape(key)}</summary><pre tabindex="0">{escape(_yaml(value))}</pre></details>'
        for key, value in blocks.items()
    )
    return _provenance(report.provenance) + details


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _provenance(provenance: Provenance) -> str:
    rows = {
        "Package": f"pyg_equivariant {provenance.version}",
        "Command": provenance.command,
        "Dataset": provenance.dataset,
        "Digest of split and labels": provenance.digest,
        "Wall time": _duration(provenance.seconds),
        **provenance.more,
    }
    cells = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows.items() if value)
    return f'<dl class="provenance">{cells}</dl>'


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{format_number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
