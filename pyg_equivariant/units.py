"""Conversion factors into the package's units: eV, Å, elementary charge, amu, fs.

``energy * factor("kcal/mol")`` is in eV. The constants are ASE's (CODATA 2014).
"""

from ase import units as _ase

EV = 1.0
MEV = 1e-3
HARTREE = float(_ase.Hartree)
KCAL_MOL = float(_ase.kcal / _ase.mol)
KJ_MOL = float(_ase.kJ / _ase.mol)
RYDBERG = float(_ase.Rydberg)
ANGSTROM = 1.0
BOHR = float(_ase.Bohr)
NANOMETER = 10.0
DEBYE = float(_ase.Debye)
"""1 D in e·Å (0.2081943...)."""
COULOMB = 14.399645351950548
"""Coulomb constant e²/(4πε₀) in eV·Å."""
GPA = float(_ase.GPa)
"""1 GPa in eV/Å³."""
FS = float(_ase.fs)
"""1 fs in ASE's own unit of time, Å·sqrt(amu/eV)."""

ENERGY = {
    "eV": EV,
    "meV": MEV,
    "Hartree": HARTREE,
    "Ha": HARTREE,
    "kcal/mol": KCAL_MOL,
    "kJ/mol": KJ_MOL,
    "Ry": RYDBERG,
}
LENGTH = {"Angstrom": ANGSTROM, "Å": ANGSTROM, "Ang": ANGSTROM, "Bohr": BOHR, "a0": BOHR, "nm": NANOMETER}


def energy_factor(unit: str) -> float:
    """Factor from ``unit`` to eV.

    Raises:
        ValueError: if the unit is unknown; the message lists the known ones.

    Example:
        >>> round(energy_factor("kcal/mol"), 6)
        0.043364
    """
    return _look_up(unit, ENERGY, "energy")


def length_factor(unit: str) -> float:
    """Factor from ``unit`` to Å.

    Raises:
        ValueError: if the unit is unknown; the message lists the known ones.

    Example:
        >>> round(length_factor("Bohr"), 6)
        0.529177
    """
    return _look_up(unit, LENGTH, "length")


def _look_up(unit: str, table: dict[str, float], quantity: str) -> float:
    if unit not in table:
        raise ValueError(f"unknown unit of {quantity} {unit!r}: use one of {', '.join(table)}")
    return table[unit]
