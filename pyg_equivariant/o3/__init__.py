"""Irreducible representations of O(3) on dense tensors."""

from pyg_equivariant.o3.clebsch_gordan import coupling, coupling_entries
from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.o3.harmonics import spherical_harmonics
from pyg_equivariant.o3.layout import (
    degree_slices,
    degrees,
    from_irreps,
    irreps,
    lmax_of,
    num_components,
    to_irreps,
)
from pyg_equivariant.o3.sphere import SphereGrid
from pyg_equivariant.o3.wigner import random_rotation, rotate, wigner

__all__ = [
    "ExactConstants",
    "SphereGrid",
    "coupling",
    "coupling_entries",
    "degree_slices",
    "degrees",
    "from_irreps",
    "irreps",
    "lmax_of",
    "num_components",
    "random_rotation",
    "rotate",
    "spherical_harmonics",
    "to_irreps",
    "wigner",
]
