"""Simulation engines that a trained potential drives."""

from pyg_equivariant.calculators.ase import PygEquivariantCalculator, VerletList

__all__ = ["PygEquivariantCalculator", "VerletList"]
