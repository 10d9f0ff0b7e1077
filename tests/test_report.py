"""The report: its charts, its records, its files, and the page as a real browser sees it."""

import csv
import functools
import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from PIL import Image

from pyg_equivariant.report import (
    Curve,
    Dynamics,
    Headline,
    LearningCurve,
    Parity,
    Predictions,
    Provenance,
    Report,
    Trajectory,
    headlines,
    history_from_csv,
    load_dynamics,
    load_predictions,
    parities,
    render,
    save_dynamics,
    save_predictions,
    wall_time,
)
from pyg_equivariant.report.charts import (
    Series,
    bar_chart,
    format_number,
    line_chart,
    linear_ticks,
    log_ticks,
    scatter_chart,
    thin_cloud,
    thin_curve,
)
from pyg_equivariant.report.page import MAX_FRAMES, MAX_POINTS
from pyg_equivariant.verbs.report import main

NASTY = "<script>alert('x')</script> & \"quotes\" </style>"
SVG = "{http://www.w3.org/2000/svg}"


# --- synthetic content ---------------------------------------------------------------------------------------


def make_predictions(structures: int = 200) -> Predictions:
    rng = np.random.default_rng(0)
    ethanol = molecule("CH3CH2OH").numbers
    forces = rng.normal(size=(structures * 9, 3))
    energy = -4209.3 + rng.normal(size=structures)
    return Predictions(
        np.tile(ethanol, structures),
        np.full(structures, 9),
        {"energy": energy, "forces": forces},
        {"energy": energy + 0.004, "forces": forces + 0.02 * rng.normal(size=forces.shape)},
    )


def make_frames(count: int) -> list[Atoms]:
    ethanol = molecule("CH3CH2OH")
    frames = []
    for i in range(count):
        frame = ethanol.copy()
        frame.positions += 0.1 * np.sin(np.arange(27).reshape(9, 3) + 0.3 * i)
        frames.append(frame)
    return frames


def make_report(**changes: object) -> Report:
    epoch = np.arange(1.0, 41.0)
    time = np.linspace(0, 2, 3000)
    content = {
        "title": f"Ethanol {NASTY}",
        "subtitle": NASTY,
        "summary": [*headlines(make_predictions()), Headline(NASTY, 1.0, NASTY, note=NASTY)],
        "history": [
            LearningCurve("Loss", [Curve("train", epoch, 1 / epoch), Curve("validation", epoch, 1.2 / epoch)]),
            LearningCurve(NASTY, [Curve(NASTY, epoch, epoch - 20)], unit=NASTY, log=False),
        ],
        "parity": parities(make_predictions()),
        "dynamics": [Dynamics("NVE", time, 1e5 + 0.3 * time + 0.01 * np.sin(40 * time), 300 + 0 * time)],
        "trajectory": Trajectory(make_frames(300), np.linspace(0, 2, 300), NASTY),
        "configuration": {"seed": 1, "model": {"class_path": "PaiNN", "text": NASTY}},
        "provenance": Provenance("pyg-equivariant quickstart", "ab" * 32, "ethanol", 204.0, more={NASTY: NASTY}),
    }
    return Report(**(content | changes))


class Page(HTMLParser):
    """Tags with their attributes, and texts by the tag that holds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


# --- charts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.7, 12.0), (1e-9, 3e-9), (-5e6, 5e6), (-4209.31, -4209.28), (99.0, 101.0)]
)
def test_linear_ticks_are_round_even_and_inside(low: float, high: float) -> None:
    ticks = np.array(linear_ticks(low, high))
    steps = np.diff(ticks)
    assert 3 <= len(ticks) <= 9
    assert ticks.min() >= low - 1e-9 * (high - low)
    assert ticks.max() <= high + 1e-9 * (high - low)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.5), (0.02, 3.0), (1e-6, 1e4), (3e-12, 8e9), (5e-5, 2e-3)])
def test_log_ticks_are_inside_and_few(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 10
    assert low * 0.999 <= ticks[0] < ticks[-1] <= high * 1.001
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234.4, "1 234"),
        (1234567.0, "1 234 567"),
        (-0.5, "−0.500"),
        (3e-9, "3.00×10⁻⁹"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert format_number(value).replace("\u2009", " ") == text


def points_of(svg: str, css: str) -> list[list[tuple[float, float]]]:
    """Pixels of all paths whose class starts with ``css``."""
    paths = [
        p.get("d", "") for p in ElementTree.fromstring(svg).iter(f"{SVG}path") if p.get("class", "").startswith(css)
    ]
    number = r"(-?[\d.]+)"
    return [[(float(x), float(y)) for x, y in re.findall(rf"[ML]{number} {number}", path)] for path in paths]


def test_a_line_chart_puts_values_where_the_ticks_say() -> None:
    svg = line_chart(
        [Series("a", np.array([0.0, 1, 2]), np.array([1.0, 10, 100]))], label="l", xlabel="x", ylabel="y", log=True
    )
    (curve,) = [points for points in points_of(svg, "line") if len(points) == 3]
    ticks = {
        t.text: float(t.get("y", "nan")) - 4
        for t in ElementTree.fromstring(svg).iter(f"{SVG}text")
        if t.get("text-anchor") == "end"
    }
    for (_, y), label in zip(curve, ["1", "10", "100"], strict=True):
        assert y == pytest.approx(ticks[label], abs=0.11)
    assert curve[1][1] == pytest.approx((curve[0][1] + curve[2][1]) / 2, abs=0.11)


def test_what_cannot_be_drawn_is_left_out_of_a_line_chart() -> None:
    y = np.array([1.0, math.nan, 0.0, math.inf, 2.0])
    svg = line_chart([Series("", np.arange(5.0), y)], label="l", xlabel="x", ylabel="y", log=True)
    assert [len(points) for points in points_of(svg, "line")] == [2]
    with pytest.raises(ValueError, match="no point to draw"):
        line_chart([Series("", np.arange(2.0), np.array([math.nan, -1]))], label="l", xlabel="x", ylabel="y", log=True)


@pytest.mark.parametrize("y", [np.zeros(3), np.full(3, -4209.0), np.array([1e-300, 1e-300, 1e-300])])
def test_constant_curves_have_axes_too(y: np.ndarray) -> None:
    svg = line_chart([Series("", np.arange(3.0), y)], label="l", xlabel="x", ylabel="y")
    assert all(0 < pixel < 300 for points in points_of(svg, "line") for _, pixel in points)
    assert "nan" not in svg


def test_a_scatter_chart_has_equal_axes() -> None:
    values = np.array([-1.0, 0.0, 3.0])
    svg = scatter_chart([Series("", values, values)], label="l", xlabel="x", ylabel="y", note=["MAE 0"])
    (points,) = points_of(svg, "dots")
    (diagonal,) = [line for line in ElementTree.fromstring(svg).iter(f"{SVG}line") if line.get("class") == "diagonal"]
    x1, x2, y1, y2 = (float(diagonal.get(name, "nan")) for name in ("x1", "x2", "y1", "y2"))
    assert abs(x2 - x1) == pytest.approx(abs(y2 - y1))
    for x, y in points:
        assert (x - x1) / (x2 - x1) == pytest.approx((y - y1) / (y2 - y1), abs=1e-3)


def test_bars_are_as_high_as_their_values() -> None:
    svg = bar_chart(["H", "<C>"], [("MAE", 0, [1.0, 2.0]), ("RMSE", 1, [4.0, 0.0])], label="l", ylabel="y")
    bars = [float(bar.get("height", "nan")) for bar in ElementTree.fromstring(svg).iter(f"{SVG}rect") if len(bar)]
    np.testing.assert_allclose(np.array(bars) / bars[0], [1, 4, 2, 0], atol=0.01)


def test_thinning_keeps_the_extremes() -> None:
    y = np.sin(np.arange(10_000) / 7)
    y[[1234, 8765]] = 5.0, -7.0
    keep = thin_curve(y, 500)
    assert len(keep) <= 500
    assert {0, 1234, 8765, 9999} <= set(keep.tolist())


def test_thinning_a_cloud_keeps_outliers_and_is_the_same_each_time() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=50_000)
    y = x + 0.01 * rng.normal(size=50_000)
    outliers = [7, 40_000]
    y[outliers] += 5.0, -4.0
    keep = thin_cloud(x, y, 3000)
    assert 2500 < len(keep) <= 3000
    assert set(outliers) <= set(keep.tolist())
    assert len(np.unique(keep)) == len(keep)
    np.testing.assert_array_equal(keep, thin_cloud(x, y, 3000))
    crowd = np.abs(x) < 1
    assert crowd[keep].mean() < crowd.mean()  # the tails gain
    assert thin_cloud(x[:10], y[:10]).tolist() == list(range(10))


# --- records -------------------------------------------------------------------------------------------------


def test_errors_of_a_parity_by_hand() -> None:
    reference = np.array([[0.0, 0, 0], [1, 1, 1]])
    parity = Parity("Forces", "eV/Å", reference, reference + np.array([[3.0, 0, 0], [0, 0, 1]]), np.array([1, 8]))
    assert parity.mae == pytest.approx(4 / 6)
    assert parity.rmse == pytest.approx(math.sqrt(10 / 6))
    assert parity.of_element(1).mae == pytest.approx(1.0)
    assert parity.of_element(8).rmse == pytest.approx(math.sqrt(1 / 3))
    assert parity.spread == pytest.approx(0.5)


def test_drift_is_the_slope_of_the_energy() -> None:
    time = np.linspace(0, 5, 501)
    trace = Dynamics("NVE", time, 1e6 + 0.25 * time)
    assert trace.drift == pytest.approx(0.25, rel=1e-6)
    assert trace.fluctuation == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Parity("F", "", np.zeros(2), np.zeros(3)), "'F' needs two equal shapes"),
        (lambda: Parity("F", "", np.zeros(0), np.zeros(0)), "not empty"),
        (lambda: Parity("F", "", np.array([0, math.nan]), np.zeros(2)), "reference is not finite in row 1"),
        (
            lambda: Parity("F", "", np.zeros((2, 3)), np.zeros((2, 3)), np.ones(6, int)),
            r"one atomic number a row \(2\)",
        ),
        (lambda: Curve("c", np.zeros(2), np.zeros(3)), "'c' needs one-dimensional"),
        (lambda: Dynamics("d", np.zeros(1), np.zeros(1)), "at least two points"),
        (lambda: Dynamics("d", np.arange(2.0), np.array([0, math.inf])), "energy is not finite at point 1"),
        (lambda: Trajectory([]), "at least one frame"),
        (lambda: Trajectory([Atoms("H"), Atoms("He")]), "frame 1 .* other atoms"),
        (lambda: Trajectory([Atoms("H")], np.zeros(2)), "1 frames needs as many times"),
        (lambda: Predictions(np.ones(3, int), np.array([2]), {}, {}), "n_atoms sums to 2"),
    ],
)
def test_what_does_not_fit_is_refused(make: functools.partial[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- files of a run ------------------------------------------------------------------------------------------


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_history_of_lightnings_metrics(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "metrics.csv",
        [
            {"epoch": 0, "step": 9, "lr-Adam": 0.1},
            {"epoch": 0, "step": 10, "train_loss_epoch": 4.0},
            {"epoch": 0, "step": 10, "val/loss": 5.0, "val/forces_mae": 2.0, "val/forces_rmse": 3.0},
            {"epoch": 1, "step": 20, "train_loss_epoch": 1.0},
            {"epoch": 1, "step": 20, "val/loss": -1.0, "val/forces_mae": "nan"},
            {"epoch": 1, "step": 20, "test/forces_mae": 7.0},
        ],
    )
    loss, forces, rate = history_from_csv(path, axis="step", units={"forces": "meV/Å"})
    assert (loss.title, loss.axis, loss.log) == ("Loss", "step", False)
    assert [(c.name, c.x.tolist(), c.y.tolist()) for c in loss.curves] == [
        ("train", [10, 20], [4, 1]),
        ("validation", [10, 20], [5, -1]),
    ]
    assert (forces.title, forces.unit, forces.log) == ("Forces", "meV/Å", True)
    assert [curve.name for curve in forces.curves] == ["validation MAE", "validation RMSE"]
    assert math.isnan(forces.curves[0].y[1])
    assert rate.curves[0].y.tolist() == [0.1]
    page = render(Report("t", history=[loss, forces, rate]))
    assert "Validation MAE: 1 value is not finite and not drawn." in page


def test_history_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"history.csv"):
        history_from_csv(tmp_path / "history.csv")
    path = write_csv(tmp_path / "metrics.csv", [{"epoch": 0, "val/loss": "high"}])
    with pytest.raises(ValueError, match=r"no column 'seconds', only epoch, val/loss"):
        history_from_csv(path, axis="seconds")
    with pytest.raises(ValueError, match=r"line 2, column 'val/loss': 'high' is no number"):
        history_from_csv(path)


def test_predictions_survive_the_file(tmp_path: Path) -> None:
    mine = make_predictions(5)
    mine = Predictions(mine.z, mine.n_atoms, mine.reference, mine.predicted, {"energy": "eV"})
    read = load_predictions(save_predictions(tmp_path / "predictions.npz", mine))
    assert sorted(np.load(tmp_path / "predictions.npz").files) == sorted(
        ["z", "n_atoms", "units", "energy_reference", "energy_predicted", "forces_reference", "forces_predicted"]
    )
    assert read.units == {"energy": "eV"}
    for name in mine.reference:
        np.testing.assert_array_equal(read.reference[name], mine.reference[name])
        np.testing.assert_array_equal(read.predicted[name], mine.predicted[name])


def test_a_damaged_file_of_predictions_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    with pytest.raises(FileNotFoundError, match=r"predictions.npz"):
        load_predictions(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="no npz file"):
        load_predictions(path)
    np.savez(path, z=np.ones(2, int))
    with pytest.raises(ValueError, match="lacks n_atoms"):
        load_predictions(path)
    np.savez(path, z=np.ones(2, int), n_atoms=np.array([2]), energy_reference=np.ones(1))
    with pytest.raises(ValueError, match=r"predictions.npz: labels are of \['energy'\]"):
        load_predictions(path)


def test_composition_is_no_achievement() -> None:
    """The spread beside an energy error does not count what the formula alone explains."""
    z, n_atoms = np.array([1, 1, 1, 1, 8, 8, 1, 1, 8]), np.array([2, 3, 1, 3])
    share = np.array([-2.0, -1.0 * 2 - 10, -10.0, -12.0])
    wiggle = np.array([0.0, 0.5, 0.0, -0.5])
    energy = Parity("", "", share, share)
    predictions = Predictions(z, n_atoms, {"energy": share + wiggle}, {"energy": share + wiggle + 0.1})
    (parity,) = parities(predictions)
    assert parity.spread == pytest.approx(wiggle.std())
    assert parity.spread < 0.1 * energy.spread
    assert parity.mae == pytest.approx(0.1)
    table = {row.metric: row for row in headlines(predictions)}
    assert table["Energy MAE"].value == pytest.approx(100)
    assert table["Energy MAE"].unit == "meV"
    assert table["Energy MAE"].spread == pytest.approx(1000 * wiggle.std())
    assert table["Energy per atom MAE"].value == pytest.approx(100 * np.mean(1 / n_atoms))


def test_dynamics_survive_the_file(tmp_path: Path) -> None:
    trace = Dynamics("NVE", np.linspace(0, 1, 7), np.random.default_rng(0).normal(size=7), np.full(7, 300.0))
    read = load_dynamics(save_dynamics(tmp_path / "dynamics.csv", trace))
    np.testing.assert_array_equal(read.energy, trace.energy)
    np.testing.assert_array_equal(read.temperature, trace.temperature)
    bare = load_dynamics(save_dynamics(tmp_path / "dynamics.csv", Dynamics("NVE", trace.time, trace.energy)))
    assert bare.temperature is None
    write_csv(tmp_path / "dynamics.csv", [{"time_ps": 0}])
    with pytest.raises(ValueError, match="no column 'energy_meV_per_atom'"):
        load_dynamics(tmp_path / "dynamics.csv")


def make_run(folder: Path) -> Path:
    (folder / "model").mkdir(parents=True)
    write_csv(
        folder / "history.csv",
        [
            {"epoch": i, "step": 10 * i, "seconds": 2.5 * i, "train/loss": 1 / i, "val/forces_mae": 9 / i}
            for i in range(1, 4)
        ],
    )
    rows = [{"quantity": "forces", "unit": "meV/Å", "mae": 3.21, "rmse": 4.56, "spread": 1230.0, "samples": 200}]
    (folder / "test.json").write_text(json.dumps(rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"representation": {"class_path": "a.b.PaiNN"}}}))
    metadata = {"dataset": "rMD17 ethanol", "digest": "feed", "version": "0.1.0"}
    (folder / "model" / "config.json").write_text(json.dumps({"model": {}, "metadata": metadata}))
    save_predictions(folder / "predictions.npz", make_predictions(20))
    save_dynamics(folder / "dynamics.csv", Dynamics("NVE", np.linspace(0, 2, 50), np.linspace(0, 0.4, 50)))
    write(folder / "trajectory.extxyz", make_frames(5))
    return folder


def test_the_verb_writes_the_page_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "ethanol")
    assert wall_time(run / "history.csv") == 7.5
    assert main([str(run), "--axis", "seconds"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    ids = [attributes.get("id") for attributes in Page(text).named("section")]
    assert ids == ["results", "learning", "parity", "elements", "energy", "structure", "configuration"]
    for part in (
        "PaiNN trained on rMD17 ethanol",
        "3.21",
        "Forces MAE",
        "200 samples",
        "7.50 s",
        "feed",
        "Seconds",
        "0.200 meV/atom/ps",
    ):
        assert part in text, part
    assert main([str(run), "--output", str(tmp_path / "deep" / "page.html"), "--title", "Mine"]) == 0
    assert "<h1>Mine</h1>" in (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")


def test_the_verb_needs_no_more_than_one_file(tmp_path: Path) -> None:
    logger = tmp_path / "logs" / "version_0"
    logger.mkdir(parents=True)
    write_csv(logger / "metrics.csv", [{"epoch": 0, "val_loss": 2.0}, {"epoch": 1, "val_loss": 1.5}])
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [a.get("id") for a in Page(text).named("section")] == ["results", "learning", "configuration"]
    assert "lowest of the validation" in text
    assert "3Dmol" not in text


def test_the_verb_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(FileNotFoundError, match="holds nothing to report"):
        main([str(tmp_path)])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "metrics.csv", [{"epoch": 0, "val_loss": 2.0}])
    with pytest.raises(ValueError, match=r"holds several runs: name one of .*a, .*b"):
        main([str(tmp_path)])
    (tmp_path / "a" / "config.yaml").write_text("{")
    with pytest.raises(ValueError, match=r"config.yaml is no YAML"):
        main([str(tmp_path / "a")])
    (tmp_path / "b" / "test.json").write_text('[{"quantity": "forces"}]')
    with pytest.raises(ValueError, match=r"test.json is no table"):
        main([str(tmp_path / "b")])
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "example: pyg-equivariant report" in capsys.readouterr().out


# --- the page ------------------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_from_outside_and_escapes_everything() -> None:
    text = render(make_report())
    page = Page(text)
    assert len(text.encode()) < 2_000_000
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, name, value)
        assert tag not in ("iframe", "object", "embed", "base")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = page.named("meta")[1]["content"] or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert NASTY not in text
    assert html.escape(NASTY) in text
    assert "alert('x')" not in text.replace("3Dmol", "")
    assert text.count("<script") == text.count("</script>") == 6  # errors, xyz, clock, 3Dmol, viewer, page
    assert "Copyright (c) 2014, University of Pittsburgh" in text


def test_the_charts_of_the_page_are_well_formed() -> None:
    charts = re.findall(r"<svg.*?</svg>", render(make_report()), re.DOTALL)
    assert len(charts) == 7
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.get("aria-label")
        assert "nan" not in chart
    dots = [sum(len(points) for points in points_of(chart, "dots c")) for chart in charts]
    assert max(dots) <= MAX_POINTS


def test_missing_parts_have_no_section() -> None:
    text = render(Report("Nothing yet"))
    assert [a.get("id") for a in Page(text).named("section")] == ["configuration"]
    assert len(text) < 20_000


def test_long_trajectories_are_thinned() -> None:
    text = render(make_report())
    xyz = re.search(r'id="xyz">(.*?)</script>', text, re.DOTALL)
    assert xyz is not None
    assert len(re.findall(r"^9$", xyz[1], re.MULTILINE)) == MAX_FRAMES
    assert f"{MAX_FRAMES} of 300 frames are kept." in text
    crystal = bulk("Si", cubic=True) * (4, 4, 4)
    large = render(make_report(trajectory=Trajectory([crystal] * 150)))
    assert large.count('Lattice="21.7200 0.0000') == 40_000 // len(crystal)
    assert len(large.encode()) < 2_500_000


# --- the page in a browser -----------------------------------------------------------------------------------

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
    "--virtual-time-budget=6000", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
]  # fmt: skip
LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"

PRESS = """<script>
var seen = document.documentElement.dataset, get = document.getElementById.bind(document);
get("look").value = "space"; get("look").dispatchEvent(new Event("change"));
get("stage").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
get("play").click();
var waiting = setInterval(function () {
  if (Number(get("frame").value) < 3) { return; }
  clearInterval(waiting);
  get("play").click();
  seen.playing = get("frame").value;
  setTimeout(function () { seen.later = get("frame").value; seen.clock = get("time").textContent; }, 500);
}, 20);
</script></body>"""
EVIL = "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x.png'></body>"


class Visit(NamedTuple):
    """What a headless Chromium made of a page."""

    dom: str
    console: list[str]
    picture: np.ndarray

    @property
    def root(self) -> dict[str, str | None]:
        return Page(self.dom).named("html")[0]


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Visit]:
    """The page as it is, with keys pressed, with foreign content and without WebGL: four browsers at once."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next((path for name in names if (path := shutil.which(name))), None)
    if binary is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(names)} is on the path")
    page = render(make_report())
    view = render(Report("Ethanol", trajectory=Trajectory(make_frames(100), np.linspace(0, 1, 100))))
    pages = {
        "whole": (page, LIGHT),
        # Our policy forbids foreign scripts: the keys are pressed in a copy without it.
        "played": (re.sub(r"<meta http-equiv[^>]*>", "", view).replace("</body>", PRESS), DARK),
        "foreign": (render(make_report(trajectory=None)).replace("</body>", EVIL), LIGHT),
        "flat": (view, "--disable-3d-apis"),
    }
    running = {}
    for name, (text, flag) in pages.items():
        folder = tmp_path_factory.mktemp(name)
        file = folder / "page.html"
        file.write_text(text, encoding="utf-8")
        window = "--window-size=900,6000" if name == "whole" else "--window-size=900,760"
        command = [binary, *FLAGS, flag, window, f"--screenshot={folder}/page.png", f"--user-data-dir={folder}/profile"]
        process = subprocess.Popen([*command, file.as_uri()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running[name] = (process, folder)
    out = {}
    for name, (process, folder) in running.items():
        try:
            dom, messages = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, messages
        console = [line for line in messages.splitlines() if "CONSOLE" in line and "GL Driver Message" not in line]
        picture = np.asarray(Image.open(folder / "page.png").convert("RGB")).astype(int)
        out[name] = Visit(dom, console, picture)
    return out


def red_of_oxygen(picture: np.ndarray) -> int:
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    return int(((red > 100) & (green < 60) & (blue < 60)).sum())


def test_chromium_shows_the_report_without_an_error(visits: dict[str, Visit]) -> None:
    visit = visits["whole"]
    assert visit.console == []
    assert visit.root["data-errors"] == "0", visit.root.get("data-last-error")
    assert visit.root["data-view"] == "ready"
    assert visit.root["data-frames"] == str(MAX_FRAMES)
    page = Page(visit.dom)
    assert len([a for a in page.named("svg") if a.get("class") == "chart"]) == 7
    assert page.named("canvas")
    (still,) = [a for a in page.named("img") if a.get("id") == "still"]
    assert (still["src"] or "").startswith("data:image/png")


def test_the_molecule_can_be_seen_in_light_and_dark(visits: dict[str, Visit]) -> None:
    """The view is not blank: oxygen's red is there, and the greys of carbon and hydrogen."""
    for name in ("whole", "played"):
        assert red_of_oxygen(visits[name].picture) > 200, name
        assert visits[name].picture.reshape(-1, 3).std(axis=0).min() > 5, name
    assert visits["whole"].picture[-5, 5].mean() > 200 > 60 > visits["played"].picture[-5, 5].mean()
    assert red_of_oxygen(visits["flat"].picture) == 0


def test_the_trajectory_plays_and_pauses(visits: dict[str, Visit]) -> None:
    root = visits["played"].root
    assert root["data-errors"] == "0", root.get("data-last-error")
    assert int(root["data-playing"] or 0) >= 3
    assert root["data-later"] == root["data-playing"]
    assert re.fullmatch(r"\d\.\d{3} ps, frame \d+ of 100", root["data-clock"] or "")


def test_foreign_content_is_blocked(visits: dict[str, Visit]) -> None:
    visit = visits["foreign"]
    assert "<title>taken" not in visit.dom
    assert int(visit.root["data-errors"] or 0) >= 2  # the collector sees what the policy blocks
    assert any("script" in line and "Content Security Policy" in line for line in visit.console)


def test_without_webgl_the_page_says_so(visits: dict[str, Visit]) -> None:
    visit = visits["flat"]
    assert visit.console == []
    assert visit.root["data-errors"] == "0", visit.root.get("data-last-error")
    assert visit.root["data-view"] == "none"
    (message,) = [a for a in Page(visit.dom).named("p") if a.get("id") == "no-view"]
    assert "hidden" not in message
