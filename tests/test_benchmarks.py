import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.build
import jaxtyping
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import chart, learning, scaling
from benchmarks.__main__ import Process, compare, lines
from benchmarks.cases import CUTOFF, Case, case, water_box
from benchmarks.cost import cost
from benchmarks.environments import interpreter
from benchmarks.ours import Ours
from benchmarks.peers import peer, peer_names
from benchmarks.peers.pyg import triplets
from benchmarks.roofline import class_of, count_flops
from benchmarks.steps import make_step, measure, peak_memory
from pyg_equivariant import models
from pyg_equivariant.models import NequIP, PaiNN, SchNet
from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.edge_sum import CONSTANT, EdgeSum, Term
from pyg_equivariant.nn.interpolation import Interpolation, interpolate
from pyg_equivariant.training.cli import main

METHANOL, WATER = ase.build.molecule("CH3OH"), ase.build.molecule("H2O")


def tiny(name: str, *, train: bool = False, with_forces: bool = True) -> Case:
    return case(name, "two molecules", [METHANOL, WATER], train=train, with_forces=with_forces)


SMALL: dict[str, Representation] = {
    "PaiNN": PaiNN(8, 2, cutoff=CUTOFF),
    "SchNet": SchNet(8, 2, cutoff=CUTOFF),
    "NequIP": NequIP(8, 2, lmax=1, lmax_out=0, cutoff=CUTOFF),
}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the harness writes, here of our model against itself, in two processes."""
    folder = tmp_path_factory.mktemp("cases")
    tiny("ef", train=True).save(folder / "ef.npz")
    tiny("qm9", train=True, with_forces=False).save(folder / "qm9.npz")
    results, versions = compare("control", "PaiNN", ["ef", "qm9"], ["eager"], folder, 1, 3, "cpu")
    hardware = {"processor": "any", "machine": "any"}
    document = {"hardware": hardware, "threads": 1, "versions": versions, "results": results}
    copy: dict[str, Any] = json.loads(json.dumps(document))
    return copy


def test_equals_are_told_equal(document: dict[str, Any]) -> None:
    assert [result["case"] for result in document["results"]] == ["ef", "qm9"]
    for result in document["results"]:
        (ratio,) = result["ratios"]
        assert 0.5 < ratio["processor"] < 2.0
        assert ratio["wall_range"][0] <= ratio["wall"] <= ratio["wall_range"][1]
        theirs, ours = result["runs"]
        assert (theirs["side"], ours["side"]) == ("control", "ours")
        assert theirs["parameters"] == ours["parameters"]


def test_schema(document: dict[str, Any]) -> None:
    for result in document["results"]:
        assert result.keys() == {"peer", "model", "case", "runs", "ratios"}
        for run in result["runs"]:
            numbers = {"ms", "processor_ms", "steps", "peak_mib", "parameters", "first_call_s"}
            assert run.keys() == {"side", "mode", *numbers}
            assert run["ms"] > 0
            assert run["peak_mib"] is None or run["peak_mib"] >= 0
        for ratio in result["ratios"]:
            clocks = {"wall", "wall_range", "processor", "processor_range"}
            assert ratio.keys() == {"theirs", "ours", "memory", *clocks}
    for side in ("control", "ours"):
        assert {"python", "torch", "ase"} <= document["versions"][side].keys()


def test_table_and_chart(document: dict[str, Any], tmp_path: Path) -> None:
    table = "\n".join(lines(document["results"][0]))
    assert "control PaiNN, ef" in table
    assert f"{document['results'][0]['ratios'][0]['wall']:.2f}" in table
    chart.draw(document, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_chart_takes_the_fastest_mode_of_each_side() -> None:
    runs = [
        {"side": side, "mode": mode, "ms": ms, "processor_ms": ms}
        for side, mode, ms in (("p", "eager", 12.0), ("p", "compiled", 6.0), ("ours", "eager", 4.0), ("ours", "c", 2.0))
    ]
    pairs = [(theirs, ours) for theirs in runs[:2] for ours in runs[2:]]
    ratios = [{"theirs": a["mode"], "ours": b["mode"], "wall": float(a["ms"]) / float(b["ms"])} for a, b in pairs]
    assert chart.fastest({"runs": runs, "ratios": ratios}) == 3.0
    failed = [{"side": "p", "mode": "eager", "error": "does not run"}, runs[2]]
    assert chart.fastest({"runs": failed, "ratios": []}) is None


def test_failure_is_reported_not_hidden(tmp_path: Path) -> None:
    process = Process("control", "PaiNN", "ours", "eager", tmp_path, 1, "cpu")
    try:
        assert process.prepare("ef")["error"].startswith("FileNotFoundError")
        assert "python" in process.ask(do="versions"), "the process goes on"
    finally:
        process.end()
    row = lines({"peer": "a", "model": "B", "case": "ef", "runs": [{"side": "a", "mode": "eager", "error": "broken"}]})
    assert "broken" in row[-1]


@pytest.mark.parametrize("name", peer_names())
def test_every_peer_is_described(name: str) -> None:
    module = peer(name)
    assert module.MODELS or (Path(__file__).parent / "parity" / f"{name}.py").exists(), "it is needed for something"
    assert all(line.count("==") == 1 for line in module.REQUIREMENTS), "every version is pinned"
    for duel in module.MODELS.values():
        if hasattr(models, duel.ours):
            assert duel.build(getattr(models, duel.ours)).cutoff == CUTOFF
    if not module.REQUIREMENTS:
        assert interpreter(name) == Path(sys.executable)


def test_case_survives_its_file(tmp_path: Path) -> None:
    for frames in ([METHANOL, WATER], [water_box(8)]):
        written = case("md", "some", frames, train=False, with_forces=True)
        written.save(tmp_path / "case.npz")
        read = Case.load(tmp_path / "case.npz")
        assert vars(read).keys() == vars(written).keys()
        for name, value in vars(written).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(read, name))
            else:
                assert getattr(read, name) == value


def test_water_box_has_the_density_of_water() -> None:
    box = water_box(100)
    assert len(box) == 300
    assert 0.95 < box.get_masses().sum() / box.get_volume() * 1.66054 < 1.05
    assert set(box.get_all_distances(mic=True)[0].argsort()[1:3]) == {1, 2}, "the nearest two are of the same molecule"


def test_edge_vectors_of_a_box() -> None:
    box = case("water", "water", [water_box(8)], train=False, with_forces=True)
    source, target = box.edge_index
    lengths = (box.pos[source] - box.pos[target] + box.offset).norm(dim=1)
    assert box.shift is not None
    assert lengths.min() > 0.9
    assert lengths.max() < CUTOFF


def test_triplets_are_all_paths_of_two_edges() -> None:
    work = tiny("md")
    source, target = work.edge_index
    *_, idx_i, idx_j, idx_k, idx_kj, idx_ji = triplets(work.edge_index, len(work.z))
    expected = {
        (int(source[a]), int(source[b]), int(target[b]))
        for a in range(len(source))
        for b in range(len(source))
        if target[a] == source[b] and source[a] != target[b]
    }
    assert set(zip(idx_k.tolist(), idx_j.tolist(), idx_i.tolist(), strict=True)) == expected
    assert torch.equal(target[idx_kj], source[idx_ji])
    assert torch.equal(source[idx_kj], idx_k)


def test_training_trains_and_evaluation_does_not() -> None:
    ours = Ours(PaiNN(8, 1, cutoff=CUTOFF))
    before = [parameter.clone() for parameter in ours.model.parameters()]
    make_step(ours, tiny("md"))()
    assert all(torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))
    make_step(ours, tiny("ef", train=True))()
    assert any(not torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))


def test_ours_is_frozen_for_evaluation() -> None:
    trained, frozen = Ours(SchNet(8, 1, cutoff=CUTOFF)), Ours(SchNet(8, 1, cutoff=CUTOFF), train=False)
    assert not any(p.requires_grad for p in frozen.model.parameters())
    assert frozen.parameters == trained.parameters == sum(p.numel() for p in trained.model.parameters())


def test_measure_counts_time_and_memory() -> None:
    times = measure(lambda: torch.randn(200_000), 5)
    assert len(times.wall) == len(times.processor) == 5
    assert min(times.wall) > 0
    mebibytes = peak_memory(lambda: torch.ones(2**22).sum())
    assert mebibytes is None or 15 < mebibytes < 40


def test_exponent_is_that_of_the_larger_sizes() -> None:
    sizes = [1.0, 10.0, 100.0, 1000.0, 10_000.0]
    assert scaling.exponent(sizes, [3 * x**1.5 for x in sizes]) == pytest.approx(1.5)
    assert scaling.exponent(sizes, [max(50.0, x) for x in sizes]) == pytest.approx(1.0)
    assert scaling.exponent([2.0, 4.0], [5.0, 20.0]) == pytest.approx(2.0)


def test_scaling_measures_and_draws(tmp_path: Path) -> None:
    curves = [scaling.curve("atoms", (21, 63), "eager", 0.01)]
    assert [point["atoms"] for point in curves[0]["points"]] == [21, 63]
    scaling.draw({"curves": curves, "hardware": {"processor": "any"}, "threads": 1}, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_flops() -> None:
    def sums() -> None:
        total = EdgeSum([Term(0, 0, CONSTANT, 0, 1.0), *(Term(1 + k, 0, k, 1, 1.0) for k in range(3))], 4)
        x, weight = torch.ones(2, 1, 8), torch.ones(5, 2, 8)
        total(x, torch.ones(5, 3), weight, torch.zeros(2, 5, dtype=torch.long))
        interpolate(torch.ones(9, 6), Interpolation(torch.ones(7, 8), torch.zeros(7, dtype=torch.long)))

    product = count_flops(lambda: torch.mm(torch.ones(3, 5), torch.ones(5, 7)) + 1)
    assert (product.products, product.own) == (2 * 3 * 5 * 7, 0)
    kernels = count_flops(sums)
    assert (kernels.products, kernels.own) == (0, 5 * 8 * (2 + 2 * 4) + 2 * 8 * 7 * 6)
    ours = Ours(PaiNN(8, 1, cutoff=CUTOFF))
    alone, training = count_flops(make_step(ours, tiny("md"))), count_flops(make_step(ours, tiny("ef", train=True)))
    assert 2 * alone.products < training.products < 8 * alone.products, "the second derivatives too"
    assert 2 * alone.own < training.own < 8 * alone.own


def test_classes_of_kernels() -> None:
    assert class_of("aten::addmm") == "matrix products"
    assert class_of("aten::index_add_") == "gather and scatter"
    assert class_of("aten::mul") == "elementwise"
    assert class_of("pyg_equivariant::edge_sum_forward") == "sums over edges and interpolation"


def test_command_line_says_what_it_takes() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert "--peers" in answer.stdout


class NoSynchronisation(TorchDispatchMode):
    """Fails where a step must wait for a device: where Python, or a shape, depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "repeat_interleave", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"the step calls {name}"
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, "the step indexes by a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SMALL)
def test_no_host_synchronisation(name: str) -> None:
    ours = Ours(SMALL[name])
    graph = ours.model.graph(ours.inputs(tiny("ef")))
    graph = graph._replace(edge_vec=graph.edge_vec.requires_grad_())
    with NoSynchronisation():
        prediction = ours.model.derive(graph, create_graph=True)
        (prediction.quantity("energy").sum() + prediction.quantity("forces").square().sum()).backward()


def test_synchronisation_would_be_noticed() -> None:
    x = torch.ones(3)
    for guilty in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x[x > 0], lambda: x.nonzero()):
        with pytest.raises(AssertionError, match="the step"), NoSynchronisation():
            guilty()


@pytest.mark.parametrize("name", SMALL)
def test_step_is_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy and forces are traced whole, once for training, and not again for another shape."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    torch._dynamo.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    ours = Ours(SMALL[name])
    ours.model.compile(backend=count)
    ours.model.train()
    for frames in ([METHANOL, WATER], [METHANOL, METHANOL, WATER]):
        work = case("ef", "some", frames, train=True, with_forces=True)
        energy, forces = ours.predict(ours.inputs(work))
        assert energy.shape == (len(frames),)
        assert forces is not None
    assert len(graphs) == 1


def test_cost_of_an_architecture() -> None:
    values = cost(["DimeNet", "RadialField"], 1)
    assert 0 < values["RadialField"] < values["DimeNet"]  # by 37 times on an idle machine


def test_all_architectures_are_to_learn() -> None:
    assert set(learning.SETTINGS) == set(models.__all__)


LEARNT = [("ethanol", name) for name in learning.SETTINGS] + [("qm9", "NequIP"), ("qm9", "MACE")]  # other elements


@pytest.mark.parametrize(("data", "name"), LEARNT)
def test_settings_of_learning_fit_the_architecture(data: str, name: str) -> None:
    """The command names settings that exist, and its model predicts."""
    options = learning.arguments(learning.DATA[data], name)
    prefix = "--model.representation."
    pairs = zip(options[::2], options[1::2], strict=True)
    settings = {key.removeprefix(prefix): yaml.safe_load(value) for key, value in pairs if key.startswith(prefix)}
    model = Ours(getattr(models, name)(**settings), forces=True)
    energy, forces = model.predict(model.inputs(tiny("md")))
    assert energy.isfinite().all()
    assert forces is not None
    assert forces.isfinite().all()


@pytest.mark.parametrize("data", learning.DATA)
def test_options_of_learning_are_those_of_fit(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = learning.arguments(learning.DATA[data], "NequIP", compile=False)
    assert main(["fit", *words, "--trainer.val_check_interval", "00:00:00:48", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["lr"] == 4e-3, "that of the model goes before that of the data"
    assert not config["model"]["init_args"]["compile"]
    assert config["data"]["init_args"]["batch_size"] == int(learning.DATA[data].step.split()[0])


def learnt(data: learning.Data, name: str, place: int, points: int = 3) -> dict[str, Any]:
    """A file's contents, less what is not shown."""
    curve = [
        {"step": 100.0 * k, "seconds": 50.0 + k, **{f"val/{quantity}_mae": 90.0 / k for quantity in data.errors}}
        for k in range(1, points + 1)
    ]
    test = [{"quantity": quantity, "mae": 30.0 - place} for quantity in data.errors]
    command = " ".join(learning.arguments(data, name))
    row = {"name": name, "command": command, "parameters": 1000, "steps": 300, "test": test}
    return row | {"learning_curve": curve}


@pytest.mark.parametrize(
    ("data", "row"),
    [
        ("ethanol", "| `SchNet` | cutoff 5.0, compiled | 1,000 | 10 | 300 | 29.0 | 29.0 |"),
        ("qm9", "| `SchNet` | cutoff 5.0, compiled | 1,000 | 10 | 300 | 9,600 | 29.0 |"),
    ],
)
def test_table_and_figure_of_learning(data: str, row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = learning.DATA[data]
    for place, name in enumerate(("TensorNet", "SchNet")):
        (tmp_path / f"{name}.json").write_text(json.dumps(learnt(chosen, name, place)))
    (tmp_path / "EQGAT.json").write_text(json.dumps(learnt(chosen, "EQGAT", -1, points=1)))  # no two to take a time of
    learning.show(chosen, tmp_path)
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == row, "the best comes first"
    assert "`TensorNet` | channels 64, eager |" in rows[3]
    assert "| nan |" in rows[4]
    assert (tmp_path / "learning.png").stat().st_size > 10_000


def test_lr_of_all_models_is_not_shown() -> None:
    assert "lr 0.001" in learning.table(learning.DATA["ethanol"], [learnt(learning.DATA["ethanol"], "EQGAT", 0)])
    assert "| eager |" in learning.table(learning.DATA["qm9"], [learnt(learning.DATA["qm9"], "EQGAT", 0)])


def test_learning_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trained = []

    def train(data: learning.Data, name: str, words: list[str], *rest: Any) -> None:
        trained.append((name, "--model.compile true" in " ".join(words)))
        (tmp_path / f"{name}.json").write_text(json.dumps(learnt(data, name, 0)))

    monkeypatch.setattr(learning, "train", train)
    monkeypatch.setattr(learning, "_startup", lambda data, threads: 0.0)
    command = ["learning", "--data", "qm9", "--threads", str(torch.get_num_threads()), "--folder", str(tmp_path)]
    for more in (["--models", "PaiNN"], ["--models", "PaiNN", "SchNet", "--resume", "--no-compile"], ["--show"]):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        learning.main()
    assert trained == [("PaiNN", True), ("SchNet", False)]
    assert capsys.readouterr().out.count("`PaiNN`") == 3


def test_learning_refuses_a_budget_without_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_startup", lambda data, threads: 9.0)
    with pytest.raises(ValueError, match="needs 9 s before its first step"):
        learning.train(learning.DATA["qm9"], "PaiNN", [], 9.5, 1, "", tmp_path)
