"""``pyg-equivariant md``: molecular dynamics with a trained potential, through ASE."""

import csv
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import Trajectory
from ase.md.md import MolecularDynamics
from tqdm import tqdm

from pyg_equivariant.calculators import PygEquivariantCalculator
from pyg_equivariant.potential import Potential
from pyg_equivariant.reference import thermalize
from pyg_equivariant.report import Dynamics, load_dynamics
from pyg_equivariant.verbs import common

__all__ = ["main", "simulate"]

COLUMNS = ("step", "time_ps", "energy_meV_per_atom", "temperature_K", "potential_eV", "kinetic_eV")
"""Of the table beside a trajectory, which :func:`~pyg_equivariant.report.load_dynamics` reads."""
EXAMPLE = """\
runs/ethanol/model CCO --ensemble nve --ps 10 --temperature 300 -o ethanol.extxyz
model.safetensors silicon.xyz --ensemble nvt --temperature 600 --steps 20000 -o silicon.traj
model.safetensors silicon.xyz --ensemble nvt --temperature 600 --steps 40000 -o silicon.traj --resume"""


def simulate(
    atoms: Atoms,
    dynamics: MolecularDynamics,
    steps: int,
    *,
    trajectory: Path,
    table: Path,
    interval: int = 10,
    start: int = 0,
    progress: bool = True,
) -> Dynamics:
    """Run ``dynamics`` and write every ``interval``-th frame at once, so that a kill loses only what came after it.

    Args:
        atoms: What ``dynamics`` moves.
        dynamics: Any of ASE's integrators.
        steps: How many to run.
        trajectory: File that frames are appended to (.extxyz, .xyz or .traj).
        table: CSV file that a row of ``COLUMNS`` is appended to for each of them.
        interval: Steps between two frames.
        start: Steps that earlier runs have done; the present frame is written only if there were none.
        progress: Show a progress bar.

    Returns:
        The whole table, that of earlier runs included. Its ``drift`` is the slope of a least-squares line through
        the total energy, which the oscillation of a Verlet trajectory's energy about its shadow does not disturb.

    Raises:
        ValueError: if an energy is not finite or the temperature beyond all bounds: the run has exploded.
    """
    limit = 10_000.0 + 20 * atoms.get_temperature()

    def note(step: int) -> float:
        potential, kelvin = atoms.get_potential_energy(), atoms.get_temperature()
        time = step * dynamics.dt / units.fs / 1000
        if not np.isfinite(potential) or not kelvin < limit:
            raise ValueError(
                f"the dynamics exploded before step {step} ({time:g} ps): {kelvin:.3g} K, {potential:.6g} eV; use a "
                "shorter timestep, or train the model on such structures"
            )
        _append(trajectory, table, atoms, step, time)
        return float(kelvin)

    if start == 0:
        note(0)
    with tqdm(total=steps, desc="dynamics", unit="step", disable=not progress, smoothing=0.05) as bar:
        for done in range(0, steps, interval):
            stretch = min(interval, steps - done)
            dynamics.run(stretch)
            bar.set_postfix_str(f"{note(start + done + stretch):.0f} K", refresh=False)
            bar.update(stretch)
    return load_dynamics(table, name=type(dynamics).__name__)


def _append(trajectory: Path, table: Path, atoms: Atoms, step: int, time: float) -> None:
    potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
    frame = atoms.copy()
    frame.set_constraint()  # not every format holds them
    frame.info |= {"step": step, "time_ps": round(time, 9)}
    frame.calc = SinglePointCalculator(frame, energy=potential, forces=atoms.get_forces(apply_constraint=False))
    if trajectory.suffix == ".traj":
        with Trajectory(trajectory, "a") as file:
            file.write(frame)
    else:
        ase.io.write(trajectory, frame, append=True)
    energy = 1000 * (potential + kinetic) / len(atoms)
    kelvin = f"{atoms.get_temperature():.6g}"
    row = (step, f"{time:.9g}", repr(float(energy)), kelvin, f"{potential:.9f}", f"{kinetic:.9f}")
    fresh = not table.exists()
    with table.open("a", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([COLUMNS, row] if fresh else [row])


def resume(trajectory: Path, table: Path) -> tuple[Atoms, int]:
    """The last whole frame of a trajectory, with its momenta, and its step; what a kill left half written is cut off.

    Raises:
        FileNotFoundError: if there is no trajectory to go on with.
        ValueError: if it holds no whole frame of ours.
    """
    if not trajectory.is_file():
        raise FileNotFoundError(f"{trajectory}: nothing to resume, leave --resume out")
    if trajectory.suffix != ".traj":
        _cut_torn_frame(trajectory)
    try:
        atoms = ase.io.read(trajectory, index=-1)
        step = int(atoms.info["step"])
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise ValueError(f"{trajectory}: no frame of `pyg-equivariant md` to resume from; use --overwrite") from error
    _cut_table(table, step)
    return atoms, step


def _cut_table(table: Path, last: int) -> None:
    """Keep the rows up to step ``last``."""
    lines = table.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines[1:] if line.count(",") == len(COLUMNS) - 1 and int(line.partition(",")[0]) <= last]
    table.write_text("\n".join([lines[0], *rows, ""]), encoding="utf-8")


def _cut_torn_frame(trajectory: Path) -> None:
    """Truncate an extxyz file after its last whole frame."""
    whole = 0
    with trajectory.open("rb+") as file:
        while (count := file.readline()).strip().isdigit():
            lines = list(itertools.islice(file, int(count) + 1))
            if len(lines) < int(count) + 1 or not lines[-1].endswith(b"\n"):
                break
            whole += len(count) + sum(map(len, lines))
        file.truncate(whole)


def integrator(
    ensemble: str, atoms: Atoms, *, timestep: float, temperature: float, pressure: float, friction: float, seed: int
) -> MolecularDynamics:
    """ASE's integrator of an ensemble.

    Args:
        ensemble: "nve" (velocity Verlet), "nvt" (Langevin), "nose-hoover" (a chain of three) or "npt" (isotropic
            Martyna-Tobias-Klein).
        atoms: With momenta and a calculator.
        timestep: In fs.
        temperature: In K.
        pressure: In GPa.
        friction: Of Langevin dynamics in 1/fs; 1/friction is the time constant of the others' thermostat.
        seed: Of the Langevin noise.
    """
    dt = timestep * units.fs
    if ensemble == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, dt)
    if ensemble == "nvt":
        from ase.md.langevin import Langevin

        options: dict[str, Any] = {"friction": friction / units.fs, "rng": np.random.default_rng(seed), "fixcm": False}
        return Langevin(atoms, dt, temperature_K=temperature, **options)
    try:
        from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT
    except ImportError as error:
        raise ImportError(f"--ensemble {ensemble} needs ASE 3.25 or newer: pip install -U ase") from error
    tdamp = units.fs / friction
    if ensemble == "nose-hoover":
        return NoseHooverChainNVT(atoms, dt, temperature_K=temperature, tdamp=tdamp)
    if not atoms.pbc.all():
        raise ValueError("--ensemble npt needs a structure that is periodic in three directions")
    return IsotropicMTKNPT(
        atoms, dt, temperature_K=temperature, pressure_au=pressure * units.GPa, tdamp=tdamp, pdamp=10 * tdamp
    )


def _parser() -> Any:
    parser = common.parser("md", (__doc__ or "").partition(": ")[2], EXAMPLE)
    common.add_model_arguments(parser, dtype="float64")
    common.add_structures(parser, index="-1")
    parser.add_argument("-o", "--output", type=Path, default=Path("trajectory.extxyz"), help=".extxyz, .xyz or .traj")
    parser.add_argument("--ensemble", choices=["nve", "nvt", "nose-hoover", "npt"], default="nvt")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="steps in all (default: 1000)")
    length.add_argument("--ps", type=float, help="picoseconds in all")
    parser.add_argument("--timestep", type=float, default=0.5, help="in fs (default: 0.5)")
    parser.add_argument("--temperature", type=float, help="in K; the start's momenta and the thermostat (default: 300; "
                        "with --ensemble nve, momenta in the file are kept unless it is given)")  # fmt: skip
    parser.add_argument("--pressure", type=float, default=1e-4, help="in GPa, for npt (default: 0.0001, 1 bar)")
    parser.add_argument("--friction", type=float, default=0.01, help="of the thermostat, in 1/fs (default: 0.01)")
    parser.add_argument("--interval", type=int, default=10, help="steps between two frames (default: 10)")
    parser.add_argument("--skin", type=float, default=0.5, help="of the neighbour list, in Å (default: 0.5)")
    parser.add_argument("--compile", action="store_true", help="compile the step: a minute, then faster")
    parser.add_argument("--seed", type=int, default=0, help="of momenta and thermostat (default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on where the trajectory ends, to --steps in all")
    parser.add_argument("--overwrite", action="store_true", help="replace the trajectory")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = _parser().parse_args(argv)
    if min(args.timestep, args.interval, args.friction) <= 0 or (args.temperature or 1) < 0:
        raise ValueError("--timestep, --interval and --friction must be positive, --temperature not negative")
    if args.output.suffix not in (".extxyz", ".xyz", ".traj"):
        raise ValueError(f"--output {args.output}: a trajectory ends in .extxyz, .xyz or .traj")
    steps = args.steps if args.steps is not None else round(args.ps * 1000 / args.timestep) if args.ps else 1000
    model = common.load_model(Potential, args)
    kelvin = 300.0 if args.temperature is None else args.temperature
    start, table = 0, args.output.with_suffix(".csv")
    if args.resume:
        atoms, start = resume(args.output, table)
    else:
        _make_way(args.output, table, args.overwrite)
        (atoms,) = common.read_structures(args.structures, args.index)[-1:]
        if not (args.ensemble == "nve" and args.temperature is None and atoms.has("momenta")):
            thermalize(atoms, kelvin, np.random.default_rng(args.seed))
    atoms.calc = PygEquivariantCalculator(model, skin=args.skin, compile=args.compile)
    dynamics = integrator(
        args.ensemble,
        atoms,
        timestep=args.timestep,
        temperature=kelvin,
        pressure=args.pressure,
        friction=args.friction,
        seed=args.seed + start,
    )
    print(f"{args.ensemble} dynamics of {atoms.symbols}: steps {start} to {steps}, {args.timestep:g} fs each")
    progress = sys.stderr.isatty()
    trace = simulate(
        atoms, dynamics, steps - start, trajectory=args.output, table=table, interval=args.interval, start=start,
        progress=progress,
    )  # fmt: skip
    _summarize(trace, args.ensemble)
    print(f"trajectory: {args.output}, table: {table}")
    return 0


def _make_way(output: Path, table: Path, overwrite: bool) -> None:
    for path in (output, table):
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists: go on with --resume, replace it with --overwrite, or choose another -o")
        path.unlink(missing_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)


def _summarize(trace: Dynamics, ensemble: str) -> None:
    assert trace.temperature is not None
    print(f"{len(trace.time)} frames, {trace.time[-1]:g} ps")
    print(f"temperature   {trace.temperature.mean():.1f} ± {trace.temperature.std():.1f} K")
    if ensemble == "nve":
        print(f"total energy  drift {trace.drift:.4f} meV/atom/ps, fluctuation {trace.fluctuation:.4f} meV/atom")
