"""The command line, in this process where possible: what users type, and what they find in their folder."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from pyg_equivariant.potential import Potential
from pyg_equivariant.training import run as lightning
from pyg_equivariant.training.cli import RECIPES, VERBS, main

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty working folder, one process, and Ctrl-C as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pyg-equivariant"])
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for s, handler in handlers.items():
        signal.signal(s, handler)


def fit(frames: str, *options: str, folder: str = "mine") -> int:
    """A run of seconds: 36 frames, 6 steps an epoch."""
    return main(
        [
            "fit",
            "--config=forcefield",
            f"--data.train={frames}",
            "--data.val=0.2",
            "--data.test=0.2",
            "--data.batch_size=6",
            "--model.representation.channels=4",
            "--model.representation.num_layers=1",
            "--model.representation.cutoff=3",
            "--model.schedule.warmup=2",
            "--trainer.max_epochs=3",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            f"--run_dir={folder}",
            *options,
        ]
    )


def weights(folder: str, name: str = "last") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(Path(folder, "checkpoints", f"{name}.ckpt"), weights_only=True)["state_dict"]
    return state


def assert_same_run(one: str, other: str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    histories = [list(csv.DictReader(Path(folder, "history.csv").read_text().splitlines())) for folder in (one, other)]
    for history in histories:
        for row in history:
            del row["seconds"]
    assert histories[0] == histories[1]
    assert Path(one, "test.json").read_text() == Path(other, "test.json").read_text()


# --------------------------------------------------------------------------------------------------- without training


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from pyg_equivariant.training.cli import main; code = main(['--help']); "
        "assert not {'torch', 'numpy', 'ase', 'pytorch_lightning'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    for name, verb in VERBS.items():
        assert f"  {name} " in done.stdout
        assert verb.summary in done.stdout
        assert f"pyg-equivariant {verb.example}" in done.stdout
    assert ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml"))) in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "no verb 'fitt', did you mean 'fit'?: pyg-equivariant --help lists them"),
        (["fit", "--config", "rmd18"], "no file and no recipe is called 'rmd18', did you mean 'rmd17'?: recipes are"),
        (["fit", "--config=rmd17", "--model.lrr=1"], "model.lrr: option 'lrr' is not accepted, did you mean 'lr'?"),
        (
            ["fit", "--config=rmd17", "--model.representation.chanels=8"],
            "model.representation.chanels: option 'chanels' is not accepted, did you mean 'channels'?",
        ),
        (["fit", "--config=rmd17", "--model.representation=PaiN"], "there is no class PaiN, did you mean 'PaiNN'?"),
        (["fit", "--config=rmd17", "--data.molecul=aspirin"], "data.molecul: option 'molecul' is not accepted, did"),
        (["fit", "--config=rmd17", "--trainer.max_epoch=3"], "--trainer.max_epoch=3, did you mean 'max_epochs'?"),
        (["fit", "--config=rmd17", "--model.loss.energy=much"], "model.loss.energy: expected a float. Got value: much"),
        (["fit", "--config=rmd17", "--data.batch_size=1.5"], "data.batch_size: expected an int. Got value: 1.5"),
        (["fit", "--config=rmd17", "--model.lr=-1"], "the learning rate lr must be positive, got -1.0"),
        (["fit", "--config=rmd17", "--data.cutoff=4"], "data.cutoff is always that of the model"),
        (["fit", "--config=rmd17", "--run_dir=gone", "--ckpt_path=last"], "no checkpoint gone/checkpoints/last.ckpt"),
        (["fit", "--config=rmd17", "--ckpt_path=last"], "no run in runs/rmd17 has a last.ckpt"),
        (["test", "--config=rmd17"], "no run in runs/rmd17 has a best.ckpt"),
        (["fit", "--config=qm9", "--data.target=U00"], "no target 'U00' in QM9: there are mu, alpha"),
    ],
)
def test_refusals_are_one_sentence(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert len(lines) == 1
    assert lines[0].startswith(f"pyg-equivariant {args[0]}: ")
    assert message in lines[0]
    assert not any(Path().iterdir())


def test_a_misspelt_key_of_a_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    text = (RECIPES / "rmd17.yaml").read_text()
    for old, new in (("lr: 2", "lrr: 2"), ("max_epochs", "max_epoch"), ("PaiNN", "PaiN"), ("warmup", "warmpu")):
        Path("bad.yaml").write_text(text.replace(old, new))
        assert main(["fit", "--config", "bad.yaml"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert new.split(":")[0] in lines[0]
        assert f"did you mean {old.split(':')[0]!r}?" in lines[0]


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> int:
        return int(torch.zeros(2).view(3).sum())

    def confused(argv: list[str]) -> int:
        return int("no number")

    for bug in (broken, confused):
        monkeypatch.setattr(lightning, "main", bug)
        with pytest.raises((RuntimeError, ValueError)):
            main(["fit"])


def test_words_that_ask_for_a_file_reach_the_verb_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyg_equivariant.verbs import predict

    calls: list[tuple[str, list[str]]] = []

    def record(name: str) -> Callable[[list[str]], int]:
        return lambda argv: calls.append((name, argv)) or 0  # type: ignore[func-returns-value]

    monkeypatch.setattr(predict, "main", record("file"))
    monkeypatch.setattr(lightning, "main", record("lightning"))
    main(["predict", "model", "CCO"])
    main(["predict", "--help"])
    main(["predict", "--config", "qm9", "--ckpt_path", "x"])
    assert calls[:2] == [("file", ["model", "CCO"]), ("file", ["--help"])]
    assert calls[2] == ("lightning", ["predict", "--config", str(RECIPES / "qm9.yaml"), "--ckpt_path", "x"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--config=qm9", "--data.target=mu", "--model.representation=EGNN"], ["EGNN", "QM9DataModule", "target: mu"]),
        (["--config=qm9", "--data.target=U0", "--model.representation=SchNet"], ["SchNet", "PropertyTask", "U0"]),
        (["--config=rmd17", "--data.molecule=aspirin"], ["PaiNN", "ForceFieldTask", "molecule: aspirin"]),
        (
            ["--config=rmd17", "--model.representation=NequIP", "--model.representation.lmax=1"],
            ["NequIP", "lmax: 1", "molecule:"],
        ),
        (["--config=forcefield", "--data.train=my.xyz"], ["FilesDataModule", "train: my.xyz", "EarlyStopping"]),
        (
            ["--config=rmd17", "--model.schedule=Plateau", "--model.schedule.patience=7", "--model.loss.forces=10"],
            ["Plateau", "patience: 7", "forces: 10"],
        ),
    ],
)
def test_recipes_and_short_names(options: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *options, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["seed_everything"] == 42
    for text in expected:
        assert text in printed


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_short_and_valid(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(recipe.read_text().splitlines()) <= 40
    assert main(["fit", "--config", recipe.stem, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed_everything"] > 0, "runs of a recipe must be repeatable"


# ------------------------------------------------------------------------------------------------------- with training


def test_a_run_leaves_everything_in_its_folder(frames: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(frames) == 0
    folder = Path("mine")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    logs = {file for file in files if file.startswith("tensorboard/events")}
    assert logs
    assert files - logs - {"tensorboard/hparams.yaml"} == {
        "config.yaml",
        "history.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "model/config.json",
        "model/model.safetensors",
        "test.csv",
        "test.json",
    }
    assert not Path("runs").exists()
    assert not Path("lightning_logs").exists()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["representation"]["init_args"]["radial"] is None  # defaults are written too
    assert config["run_dir"] == "mine"
    rows = json.loads((folder / "test.json").read_text())
    assert [row["quantity"] for row in rows] == ["energy", "energy_per_atom", "forces"]
    assert "forces" in capsys.readouterr().out
    # the artifact is the best validation's average, which is also what the best checkpoint holds
    model, state = Potential.load(folder / "model"), weights("mine", "best")
    assert all(torch.equal(value, state[f"ema.model.{name}"]) for name, value in model.state_dict().items())
    assert model.cutoff == 3.0

    capsys.readouterr()
    assert fit(frames) == 2  # nothing is overwritten by mistake
    assert "mine holds a run already: continue with --ckpt_path last" in capsys.readouterr().err

    os.rename("mine/test.json", "first.json")
    assert main(["test", "--config=mine/config.yaml"]) == 0
    assert json.loads(Path("mine/test.json").read_text()) == json.loads(Path("first.json").read_text())
    assert main(["validate", "--config=mine/config.yaml"]) == 0
    assert main(["predict", "--config=mine/config.yaml"]) == 0

    assert main(["fit", "--config=mine/config.yaml", "--run_dir=again"]) == 0
    assert_same_run("mine", "again")


class Signal(pl.Callback):
    """Sends this process a signal before the step of a certain number."""

    step: int | None = None
    signum = signal.SIGINT

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("schedule", ["Cosine", "Plateau"])
@pytest.mark.parametrize(("name", "code", "steps"), [("SIGINT", 130, 9), ("SIGTERM", 143, 9)])
def test_a_stopped_run_goes_on_as_if_unbroken(
    frames: str, name: str, code: int, steps: int, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [f"--model.schedule={schedule}", "--model.schedule.warmup=2"]
    assert fit(frames, *options, folder="unbroken") == 0
    make = lightning.CLI.instantiate_trainer

    def with_signal(self: lightning.CLI, **kwargs: Any) -> pl.Trainer:
        trainer = make(self, **kwargs)
        callback = Signal()
        callback.step, callback.signum = 8, getattr(signal, name)  # in the middle of the second epoch
        trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(lightning.CLI, "instantiate_trainer", with_signal)
        assert fit(frames, *options, folder="broken") == code
    checkpoint = torch.load("broken/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == steps
    assert fit(frames, *options, "--ckpt_path=last", folder="broken") == 0
    assert_same_run("unbroken", "broken")


KILLED = """
import os, signal, sys
import pytorch_lightning as pl
from pyg_equivariant.training import run, cli
class Kill(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 14:
            os.kill(os.getpid(), signal.SIGKILL)
make = run.CLI.instantiate_trainer
def with_kill(self, **kwargs):
    trainer = make(self, **kwargs)
    trainer.callbacks.append(Kill())
    return trainer
run.CLI.instantiate_trainer = with_kill
sys.exit(cli.main())
"""


def test_a_killed_run_goes_on_as_if_unbroken(frames: str) -> None:
    assert fit(frames, "--data.num_workers=1", folder="unbroken") == 0
    config = Path("unbroken/config.yaml")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "fit", "--config", str(config), "--run_dir=broken"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert torch.load("broken/checkpoints/last.ckpt", weights_only=True)["global_step"] == 12
    assert main(["fit", "--config=broken/config.yaml", "--ckpt_path=last"]) == 0
    assert_same_run("unbroken", "broken")


def test_a_default_folder_is_named_by_recipe_and_time(frames: str) -> None:
    assert fit(frames, "--run_dir=null", "--trainer.max_epochs=1") == 0
    (folder,) = Path("runs/forcefield").iterdir()
    assert fit(frames, "--run_dir=null", "--trainer.max_epochs=2", "--ckpt_path=last") == 0  # the newest run
    assert [path.name for path in Path("runs/forcefield").iterdir()] == [folder.name]
    assert len((folder / "history.csv").read_text().splitlines()) == 3


def test_a_run_without_validation_has_no_best_model(frames: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(frames, "--trainer.max_steps=2") == 2
    assert "training ended before its first validation" in capsys.readouterr().err


def test_stress_is_trained(tmp_path: Path) -> None:
    import ase.io
    from ase.build import bulk
    from ase.calculators.emt import EMT

    crystals = []
    for seed in range(10):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.set_cell(atoms.cell * (1 + 0.002 * seed), scale_atoms=True)
        atoms.calc = EMT()
        atoms.get_stress()
        crystals.append(atoms)
    ase.io.write("copper.xyz", crystals, format="extxyz")
    options = ["--data.labels=[energy, forces, stress]", "--model.loss.stress=1.0", "--trainer.max_epochs=1"]
    assert fit("copper.xyz", *options) == 0
    rows = {row["quantity"]: row["unit"] for row in json.loads(Path("mine/test.json").read_text())}
    assert rows["stress"] == "meV/Å³"
    assert Potential.load("mine/model").stress


@pytest.mark.slow
def test_two_processes_do_what_one_does(frames: str) -> None:
    """Each step's gradient is the mean over both halves of the batch."""
    assert fit(frames, "--trainer.max_epochs=2", folder="one") == 0
    options = ["--data.batch_size=3", "--trainer.devices=2", "--trainer.strategy=ddp", "--run_dir=two"]
    done = subprocess.run(
        [sys.executable, "-m", "pyg_equivariant.training.cli", "fit", "--config=one/config.yaml", *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = weights("one"), weights("two")
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-5)
    tables = [json.loads(Path(folder, "test.json").read_text()) for folder in ("one", "two")]
    for one, two in zip(*tables, strict=True):
        assert one["samples"] == two["samples"]
        assert one["mae"] == pytest.approx(two["mae"], rel=1e-3)
