"""A small writer of charts: numbers in, one inline SVG out.

The charts carry no colours of their own: every mark has a class (``c0``, ``c1``, ... for the series) and the
style sheet of the page decides, so that one chart serves light, dark and paper.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int, Num

__all__ = [
    "Series",
    "bar_chart",
    "format_count",
    "format_number",
    "line_chart",
    "linear_ticks",
    "log_ticks",
    "scatter_chart",
    "thin_cloud",
    "thin_curve",
]

COLORS = 8
"""How many series colours the style sheet knows."""
_CHARACTER = 6.3  # mean width of a character at the font size of the charts
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_THIN_SPACE = "\u2009"


@dataclass(frozen=True)
class Series:
    """A named curve, cloud or row of bars.

    Args:
        name: What the legend says; empty for none.
        x: Abscissae.
        y: Ordinates, as many.
        color: Which of the colours of the style sheet.
        dashed: Draw the curve dashed.
    """

    name: str
    x: Num[np.ndarray, " n"]
    y: Num[np.ndarray, " n"]
    color: int = 0
    dashed: bool = False


# --- numbers and ticks ---------------------------------------------------------------------------------------


def format_number(value: float, digits: int = 3) -> str:
    """``value`` for people: three digits, a true minus, thin spaces between the thousands.

    Example:
        >>> format_number(0.04567), format_number(-12.0), format_number(2.5e-7)
        ('0.0457', '−12.0', '2.50×10⁻⁷')
    """
    if not math.isfinite(value):
        return "∞" if value == math.inf else "−∞" if value == -math.inf else "not a number"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa}×10{_superscript(int(exponent))}"
    elif size >= 10**digits:
        text = f"{value:,.0f}".replace(",", _THIN_SPACE)
    else:
        text = f"{value:#.{digits}g}".rstrip(".")
    return text.replace("-", "−")


def format_count(count: int) -> str:
    """A whole number with thin spaces between the thousands.

    Example:
        >>> format_count(1234567).split()
        ['1', '234', '567']
    """
    return f"{count:,}".replace(",", _THIN_SPACE)


def _superscript(exponent: int) -> str:
    return str(exponent).translate(_SUPERSCRIPT)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``, steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> linear_ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    return [round(i * step, decimals) + 0.0 for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between ``low`` and ``high``, with their multiples by 2 and 5 where there are few.

    Example:
        >>> log_ticks(0.3, 40.0)
        [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
        >>> log_ticks(1e-3, 1e3)
        [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
    """
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    decades = math.log10(high / low)
    if decades < 0.5:
        return linear_ticks(low, high, 4)
    stride = math.ceil(decades / 7)
    mantissas = (1, 2, 5) if decades < 2.5 else (1,)
    ticks = [float(f"{m}e{e}") for e in range(first, last + 1, stride) for m in mantissas]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks, all with the decimals that the finest step needs."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    steps = [b - a for a, b in pairwise(ticks)]
    even = bool(steps) and max(steps) <= 1.01 * min(steps)
    if largest and (largest >= 1e7 or largest < 1e-3 or not even):
        return [_short(tick) for tick in ticks]
    decimals = max((len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in ticks), default=0)
    return [f"{tick:,.{decimals}f}".replace(",", _THIN_SPACE).replace("-", "−") for tick in ticks]


def _short(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.10g}".replace(",", _THIN_SPACE).replace("-", "−")
    mantissa, exponent = f"{value:.6e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    power = f"10{_superscript(int(exponent))}"
    return power if mantissa == "1" else f"{mantissa}×{power}"


# --- thinning: what is drawn, never what is measured ---------------------------------------------------------


def thin_curve(y: Num[np.ndarray, " n"], limit: int = 1000) -> Int[np.ndarray, " m"]:
    """Indices of at most ``limit`` points of a curve that keep the lowest and the highest of every stretch."""
    if len(y) <= limit:
        return np.arange(len(y))
    keep = [0, len(y) - 1]
    edges = np.linspace(0, len(y), (limit - 2) // 2 + 1).astype(int)
    for start, stop in pairwise(edges):
        keep += [start + int(np.argmin(y[start:stop])), start + int(np.argmax(y[start:stop]))]
    return np.unique(keep)


def thin_cloud(
    x: Num[np.ndarray, " n"], y: Num[np.ndarray, " n"], limit: int = 3000, bins: int = 64
) -> Int[np.ndarray, " m"]:
    """Indices of at most ``limit`` points of a cloud, the sparse regions whole and the crowded ones thinned.

    The plane of (``x``, ``y`` − ``x``) is cut into ``bins`` × ``bins`` boxes; each keeps a share that grows with
    the square root of how many points it holds, evenly spaced in their order. Nothing is drawn at random.
    """
    if len(x) <= limit:
        return np.arange(len(x))
    box = _boxes(x, bins) * bins + _boxes(y - x, bins)
    order = np.argsort(box, kind="stable")
    counts = np.unique(box, return_counts=True)[1]
    low, high = 0.0, float(limit)
    for _ in range(60):  # the largest factor that stays within the limit
        middle = (low + high) / 2
        low, high = (middle, high) if _shares(counts, middle).sum() <= limit else (low, middle)
    shares = _shares(counts, low)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    positions = [
        start + np.linspace(0, count - 1, share).round().astype(int)
        for start, count, share in zip(starts, counts, shares, strict=True)
    ]
    return np.sort(order[np.concatenate(positions)])[:limit]


def _boxes(values: Num[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    span = float(np.ptp(values)) or 1.0
    return np.asarray(np.minimum(((values - values.min()) / span * bins).astype(int), bins - 1))


def _shares(counts: Int[np.ndarray, " b"], factor: float) -> Int[np.ndarray, " b"]:
    return np.asarray(np.clip((factor * np.sqrt(counts)).astype(int), 1, counts))


# --- axes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """From values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, values: Num[np.ndarray, " n"] | Sequence[float] | float) -> Float[np.ndarray, " *n"]:
        array = np.asarray(values, dtype=float)
        low, high = self.low, self.high
        if self.log:
            array, low, high = np.log10(array), math.log10(low), math.log10(high)
        return np.asarray(self.start + (array - low) / (high - low) * (self.stop - self.start))

    def ticks(self, count: int = 5) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, count)


def _limits(values: Iterable[Num[np.ndarray, " _"]], *, log: bool = False, pad: float = 0.05) -> tuple[float, float]:
    """The range of the values, a little wider, and never empty."""
    joined = np.concatenate([np.asarray(value, dtype=float) for value in values])
    low, high = float(joined.min()), float(joined.max())
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        margin = 0.5 if log else (abs(low) * 0.1 or 1.0)
        low, high = low - margin, high + margin
    margin = pad * (high - low)
    low, high = low - margin, high + margin
    return (10**low, 10**high) if log else (low, high)


def _drawable(series: Series, *, log: bool) -> Bool[np.ndarray, " n"]:
    good = np.isfinite(series.x) & np.isfinite(series.y)
    return np.asarray(good & (series.y > 0)) if log else np.asarray(good)


# --- the parts of a chart ------------------------------------------------------------------------------------


def _p(value: float) -> str:
    """A pixel coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, anchor: str = "middle", css: str = "", more: str = "") -> str:
    css = f' class="{css}"' if css else ""
    return f'<text x="{_p(x)}" y="{_p(y)}" text-anchor="{anchor}"{css}{more}>{escape(text)}</text>'


def _grid_y(axis: _Axis, left: float, right: float, ticks: Sequence[float]) -> str:
    out = []
    for y, label in zip(axis(ticks), _tick_labels(ticks), strict=True):
        out.append(f'<line class="grid" x1="{_p(left)}" x2="{_p(right)}" y1="{_p(y)}" y2="{_p(y)}"/>')
        out.append(_text(left - 7, y + 4, label, "end", "tick"))
    return "".join(out)


def _ticks_x(axis: _Axis, base: float, ticks: Sequence[float], top: float | None = None) -> str:
    out = []
    for x, label in zip(axis(ticks), _tick_labels(ticks), strict=True):
        if top is not None:
            out.append(f'<line class="grid" x1="{_p(x)}" x2="{_p(x)}" y1="{_p(top)}" y2="{_p(base)}"/>')
        out.append(f'<line class="axis" x1="{_p(x)}" x2="{_p(x)}" y1="{_p(base)}" y2="{_p(base + 4)}"/>')
        out.append(_text(x, base + 18, label, css="tick"))
    return "".join(out)


def _legend(entries: Sequence[tuple[str, int, str]], left: float, right: float) -> tuple[str, float]:
    """Swatches in rows above the plot, and the height they take. An entry: name, colour, kind of swatch."""
    x, y, out = left, 12.0, []
    entries = [entry for entry in entries if entry[0]]
    for name, color, kind in entries:
        width = 28 + len(name) * _CHARACTER + 14
        if x > left and x + width > right:
            x, y = left, y + 18
        if kind == "line" or kind == "dashed":
            dashed = " dashed" if kind == "dashed" else ""
            out.append(f'<path class="line c{color % COLORS}{dashed}" d="M{_p(x)} {_p(y)}h20"/>')
        else:
            place = f'x="{_p(x + 4)}" y="{_p(y - 5)}" width="11" height="11" rx="2"'
            out.append(f'<rect class="fill c{color % COLORS}" {place}/>')
        out.append(_text(x + 26, y + 4, name, "start"))
        x += width
    return "".join(out), (y + 14 if entries else 6.0)


def _frame(width: float, height: float, label: str, body: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_p(width)} {_p(height)}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _left_margin(ticks: Sequence[float]) -> float:
    return 34 + _CHARACTER * max((len(label) for label in _tick_labels(ticks)), default=1)


# --- the charts ----------------------------------------------------------------------------------------------


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    width: float = 460.0,
    height: float = 300.0,
) -> str:
    """Curves over one abscissa; what is not finite (or, with ``log``, not positive) is left out.

    Args:
        series: The curves; each is thinned to 1000 points that keep its extremes.
        label: What a screen reader says.
        xlabel: Under the abscissa.
        ylabel: Beside the ordinate.
        log: Logarithmic ordinate.
        width: Units of the view box; the page decides the true size.
        height: Units of the view box.

    Raises:
        ValueError: if no curve has a point that can be drawn.
    """
    curves = []
    for one in series:
        good = _drawable(one, log=log)
        x, y = one.x[good].astype(float), one.y[good].astype(float)
        keep = thin_curve(y)
        curves.append(Series(one.name, x[keep], y[keep], one.color, one.dashed))
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        raise ValueError(f"the chart {label!r} has no point to draw: no value is finite (and positive, if log)")
    low, high = _limits((curve.y for curve in curves), log=log)
    ticks = _Axis(low, high, 0.0, 1.0, log).ticks()
    left, right, base = _left_margin(ticks), width - 14, height - 42
    entries = [(curve.name, curve.color, "dashed" if curve.dashed else "line") for curve in curves]
    legend, top = _legend(entries, left, right)
    across = _Axis(*_limits((curve.x for curve in curves), pad=0.01), left, right)
    up = _Axis(low, high, base, top, log)
    body = [legend, _grid_y(up, left, right, ticks), _ticks_x(across, base, across.ticks())]
    body.append(f'<line class="axis" x1="{_p(left)}" x2="{_p(right)}" y1="{_p(base)}" y2="{_p(base)}"/>')
    for curve in curves:
        points = list(zip(across(curve.x), up(curve.y), strict=True))
        color = f"c{curve.color % COLORS}"
        path = "L".join(f"{_p(x)} {_p(y)}" for x, y in points)
        css = f"{color}{' dashed' if curve.dashed else ''}{' fine' if len(points) > 300 else ''}"
        body.append(f'<path class="line {css}" d="M{path}"/>')
        if len(points) <= 30 and not curve.dashed:
            body.append(_dots(points, f"{color} big"))
    body.append(_text((left + right) / 2, height - 6, xlabel))
    body.append(_upright(12.0, (top + base) / 2, ylabel))
    return _frame(width, height, label, "".join(body))


def scatter_chart(
    clouds: Sequence[Series], *, label: str, xlabel: str, ylabel: str, note: Sequence[str] = (), size: float = 420.0
) -> str:
    """Predicted against reference: equal axes, the diagonal, and lines of text in the empty corner.

    Args:
        clouds: Points, one cloud a colour.
        label: What a screen reader says.
        xlabel: Under the abscissa.
        ylabel: Beside the ordinate.
        note: Lines printed in the upper left corner of the plot.
        size: Units of the view box.
    """
    low, high = _limits([array for cloud in clouds for array in (cloud.x, cloud.y)], pad=0.04)
    ticks = linear_ticks(low, high)
    left, right = _left_margin(ticks), size - 14
    legend, top = _legend([(c.name, c.color, "dot") for c in sorted(clouds, key=lambda c: c.color)], left, right)
    base = top + (right - left)
    across, up = _Axis(low, high, left, right), _Axis(low, high, base, top)
    body = [legend, _grid_y(up, left, right, ticks), _ticks_x(across, base, _thin_ticks(ticks, right - left), top)]
    body.append(f'<path class="frame" d="M{_p(left)} {_p(top)}V{_p(base)}H{_p(right)}"/>')
    body.append(f'<line class="diagonal" x1="{_p(left)}" y1="{_p(base)}" x2="{_p(right)}" y2="{_p(top)}"/>')
    crowded = sum(len(cloud.x) for cloud in clouds) > 1000
    for cloud in clouds:
        points = zip(across(cloud.x), up(cloud.y), strict=True)
        body.append(_dots(points, f"c{cloud.color % COLORS}{' small' if crowded else ''}"))
    for i, line in enumerate(note):
        body.append(_text(left + 12, top + 20 + 17 * i, line, "start", "note"))
    body.append(_text((left + right) / 2, base + 36, xlabel))
    body.append(_upright(12.0, (top + base) / 2, ylabel))
    return _frame(size, base + 44, label, "".join(body))


def bar_chart(
    groups: Sequence[str],
    series: Sequence[tuple[str, int, Sequence[float]]],
    *,
    label: str,
    ylabel: str,
    width: float = 460.0,
    height: float = 300.0,
) -> str:
    """Bars from zero, a group a name, side by side.

    Args:
        groups: Names under the groups.
        series: Of each: what the legend says, its colour, one non-negative value a group.
        label: What a screen reader says.
        ylabel: Beside the ordinate.
        width: Units of the view box.
        height: Units of the view box.
    """
    high = max((float(value) for _, _, values in series for value in values), default=0.0) * 1.08 or 1.0
    ticks = linear_ticks(0.0, high)
    left, right, base = _left_margin(ticks), width - 14, height - 28
    legend, top = _legend([(name, color, "bar") for name, color, _ in series], left, right)
    up = _Axis(0.0, high, base, top)
    slot = (right - left) / len(groups)
    bar = min(46.0, slot * 0.76 / len(series))
    body = [legend, _grid_y(up, left, right, ticks)]
    for g, group in enumerate(groups):
        center = left + slot * (g + 0.5)
        for s, (name, color, values) in enumerate(series):
            x, y = center + (s - len(series) / 2) * bar, float(up(float(values[g])))
            text = format_number(float(values[g]))
            body.append(
                f'<rect class="fill c{color % COLORS}" x="{_p(x + 1)}" y="{_p(y)}" width="{_p(bar - 2)}" '
                f'height="{_p(base - y)}"><title>{escape(f"{group}: {name} {text}")}</title></rect>'
            )
            if bar > len(text) * 5.6:
                body.append(_text(x + bar / 2, y - 5, text, css="value"))
        body.append(_text(center, base + 18, group))
    body.append(f'<line class="axis" x1="{_p(left)}" x2="{_p(right)}" y1="{_p(base)}" y2="{_p(base)}"/>')
    body.append(_upright(12.0, (top + base) / 2, ylabel))
    return _frame(width, height, label, "".join(body))


def _upright(x: float, y: float, text: str) -> str:
    return _text(x, y, text, more=f' transform="rotate(-90 {_p(x)} {_p(y)})"')


def _dots(points: Iterable[tuple[float, float]], css: str) -> str:
    """All points of a colour as one path of round caps: a tenth of the bytes of circles."""
    path = "".join(f"M{_p(x)} {_p(y)}h0" for x, y in points)
    return f'<path class="dots {css}" d="{path}"/>'


def _thin_ticks(ticks: Sequence[float], pixels: float) -> list[float]:
    """Every second tick (third, ...) where the labels would touch."""
    longest = max(len(label) for label in _tick_labels(ticks)) * _CHARACTER + 12
    stride = max(1, math.ceil(longest * len(ticks) / pixels))
    return list(ticks[::stride])
