"""Reference labels and reference dynamics by extended tight binding (GFN2-xTB), computed with tblite.

C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019). A frame of ten atoms takes
about two milliseconds, so a force field can be made from nothing but a SMILES string. tblite is an
extra: ``pip install pyg_equivariant[xtb]``.

Example:
    >>> from ase.build import molecule
    >>> frames, failures = label([molecule("H2O")], progress=False)
    >>> round(float(frames[0].get_potential_energy()), 3), failures
    (-137.968, [])
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator, InputError, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from tqdm import tqdm

__all__ = ["XTB", "Failure", "label", "sample_dynamics", "thermalize"]

METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")

_ATTEMPTS: tuple[dict[str, Any], ...] = (
    {},
    {"max_iterations": 1000, "mixer_damping": 0.1},
    {"max_iterations": 2000, "mixer_damping": 0.02},
)
"""Tried in turn where the charges do not converge: the fixed point is the same, the way there slower."""


class Failure(NamedTuple):
    """Something that gave no label.

    Attributes:
        frame: Its place in the input (:func:`label`), or the number of the walker (:func:`sample_dynamics`).
        reason: One sentence.
    """

    frame: int
    reason: str


class XTB(Calculator):
    """tblite's ASE calculator, silent, and stubborn where the self-consistent charges do not converge.

    A failed cycle starts again from scratch with more iterations and a stronger damping. The total charge is
    ``atoms.info["total_charge"]`` or ``["charge"]``, or the sum of the initial charges. Energies are in eV,
    forces in eV/Å, dipoles in e·Å; absolute energies are those of GFN2-xTB (valence electrons only).

    Args:
        method: One of ``METHODS``.
        accuracy: tblite's numerical accuracy; 0.1 leaves an error of about 1e-5 eV/Å in the forces.

    Raises:
        ImportError: if tblite is not installed.
        ValueError: if the method is unknown.
    """

    implemented_properties = ("energy", "free_energy", "forces", "stress", "dipole", "charges")

    def __init__(self, method: str = "GFN2-xTB", *, accuracy: float = 0.1) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: use one of {', '.join(METHODS)}")
        try:
            from tblite.ase import TBLite
        except ImportError as error:
            raise ImportError(
                f"{method} labels need tblite: pip install 'pyg_equivariant[xtb]'", name="tblite"
            ) from error
        self.attempts = [TBLite(method=method, accuracy=accuracy, verbosity=0, **more) for more in _ATTEMPTS]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``, from the last geometry's charges where there are some.

        Raises:
            CalculationFailed: if no attempt converges, or the geometry is impossible.
        """
        super().calculate(atoms, properties, system_changes)
        charge = _total_charge(self.atoms)
        for number, attempt in enumerate(self.attempts):
            if number > 0:  # what it remembers may be of another molecule
                _forget(attempt)
            if charge != attempt.parameters.charge:
                attempt.set(charge=charge)
            try:
                attempt.calculate(self.atoms, properties, system_changes)
            except InputError as error:  # two atoms on one place, an element beyond the method
                raise CalculationFailed(str(error)) from error
            except CalculationFailed as error:
                _forget(attempt)
                reason = error
            else:
                known = [name for name in self.implemented_properties if name in attempt.results]
                self.results = {name: attempt.results[name] for name in known}
                return
        raise CalculationFailed(f"{reason} ({len(self.attempts)} attempts)") from reason

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; ASE does not look at a total charge in ``atoms.info``."""
        changes: list[str] = super().check_state(atoms, tol)
        if not changes and _total_charge(atoms) != _total_charge(self.atoms):
            changes.append("initial_charges")
        return changes

    def forget(self) -> None:
        """Drop the last charges, so that the next result does not depend on what came before."""
        self.reset()
        _forget(self.attempts[0])


def _forget(calculator: Calculator) -> None:
    calculator.set(cache_api=False)  # a changed parameter resets, without cache to nothing
    calculator.set(cache_api=True)


def _total_charge(atoms: Atoms) -> float:
    for key in ("total_charge", "charge"):
        if key in atoms.info:
            return float(atoms.info[key])
    return round(float(atoms.get_initial_charges().sum()), 6)


def label(
    frames: Iterable[Atoms], method: str = "GFN2-xTB", *, progress: bool = True
) -> tuple[list[Atoms], list[Failure]]:
    """Energy, forces, dipole, charges and, where periodic, stress of every frame.

    Each frame is computed from scratch, so that its label does not depend on its neighbours in the list.

    Args:
        frames: Structures, left as they are.
        method: One of ``METHODS``.
        progress: Show a progress bar.

    Returns:
        Copies of the frames with the labels in a ``SinglePointCalculator`` (eV, eV/Å, e·Å, e, eV/Å³), and
        what failed, with the reasons.

    Raises:
        ImportError: if tblite is not installed.
        ValueError: if the method is unknown.
    """
    calculator = XTB(method)
    labelled: list[Atoms] = []
    failures: list[Failure] = []
    for index, frame in enumerate(tqdm(frames, desc=f"{method} labels", unit="frame", disable=not progress)):
        atoms = frame.copy()
        calculator.forget()
        try:
            calculator.calculate(atoms, list(XTB.implemented_properties))
        except CalculationFailed as error:
            failures.append(Failure(index, f"frame {index} ({atoms.get_chemical_formula()}): {error}"))
            continue
        atoms.calc = SinglePointCalculator(atoms, **calculator.results)
        labelled.append(atoms)
    return labelled, failures


def thermalize(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Draw momenta from the Maxwell-Boltzmann distribution at ``temperature`` (K), centre of mass at rest.

    The centre of mass's share of the kinetic energy is taken out, not redistributed, so that
    ``(3N − 3) kT / 2`` is left on average.
    """
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())


def sample_dynamics(
    starts: Atoms | Sequence[Atoms],
    num_frames: int,
    *,
    temperatures: Sequence[float] = (500.0,),
    interval: float = 20.0,
    timestep: float = 0.5,
    equilibration: float = 200.0,
    method: str = "GFN2-xTB",
    seed: int = 0,
    progress: bool = True,
) -> tuple[list[Atoms], list[Failure]]:
    """Labelled frames of Langevin dynamics: one walker for every start and temperature.

    The friction is 0.02/fs: momenta are forgotten after 50 fs, so that frames ``interval`` apart are far from
    copies of each other, and walkers leave their conformer sooner than without. The frames of one walker
    follow each other; ``info`` of each says ``walker``, ``temperature`` (K) and ``time`` (fs).

    Args:
        starts: One structure or several, for example conformers of one molecule.
        num_frames: Frames in all, spread evenly over the walkers.
        temperatures: In K.
        interval: Time in fs between two frames of a walker.
        timestep: In fs.
        equilibration: Time in fs before a walker's first frame.
        method: One of ``METHODS``.
        seed: Of the momenta and the thermostat.
        progress: Show a progress bar.

    Returns:
        The frames, labelled as by :func:`label`, and the walkers that stopped early, with the reasons.

    Raises:
        ImportError: if tblite is not installed.
        ValueError: if there is nothing to sample, or a time or temperature is not positive.
    """
    starts = [starts] if isinstance(starts, Atoms) else list(starts)
    walkers = [(start, kelvin) for start in starts for kelvin in temperatures]
    if not walkers or num_frames < 1:
        raise ValueError("reference dynamics need at least one start, one temperature and one frame")
    if min(interval, timestep, *temperatures) <= 0:
        raise ValueError("interval, timestep and temperatures of reference dynamics must be positive")
    shares = [num_frames // len(walkers) + (i < num_frames % len(walkers)) for i in range(len(walkers))]
    steps = max(1, round(interval / timestep))
    frames: list[Atoms] = []
    failures: list[Failure] = []
    with tqdm(total=num_frames, desc=f"{method} dynamics", unit="frame", disable=not progress) as bar:
        for walker, ((start, kelvin), share) in enumerate(zip(walkers, shares, strict=True)):
            rng = np.random.default_rng([seed, walker])
            atoms = start.copy()
            atoms.calc = XTB(method, accuracy=1.0)  # the path needs no exact forces, the labels below do
            thermalize(atoms, kelvin, rng)
            bath = {"temperature_K": kelvin, "friction": 0.02 / units.fs, "fixcm": False, "rng": rng}
            dynamics = Langevin(atoms, timestep * units.fs, **bath)
            recorded: list[Atoms] = []
            try:
                dynamics.run(round(equilibration / timestep))
                while len(recorded) < share:
                    dynamics.run(steps)
                    recorded.append(_snapshot(atoms, walker, kelvin, dynamics.get_time() / units.fs))
                    bar.update()
            except CalculationFailed as error:
                reached = f"walker {walker} at {kelvin:g} K stopped after {len(recorded)} of {share} frames"
                failures.append(Failure(walker, f"{reached}: {error}"))
            labelled, unlabelled = label(recorded, method, progress=False)
            frames += labelled
            failures += [Failure(walker, f"walker {walker}, {failure.reason}") for failure in unlabelled]
    return frames, failures


def _snapshot(atoms: Atoms, walker: int, kelvin: float, time: float) -> Atoms:
    frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if not frame.pbc.any():
        frame.positions -= frame.get_center_of_mass()  # the walker diffuses
    frame.positions = frame.positions.round(6)  # what a text file holds is what is labelled
    if (charge := _total_charge(atoms)) != 0:
        frame.info["total_charge"] = charge
    frame.info |= {"walker": walker, "temperature": kelvin, "time": round(time, 3)}
    return frame
