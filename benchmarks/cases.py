"""The work that is timed: ``ef``, ``md``, ``water`` and ``qm9``, written once to a file that every process reads."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation
from torch import Tensor

CUTOFF = 5.0
ELEMENTS = [1, 6, 7, 8, 9]  # of all cases

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
SMALL = ["CCO", "c1ccccc1", "CC(=O)N", "C1CCOC1", "N#CCCO", "CC(C)(C)O", "c1ccncc1", "CC1CC1F"]


@dataclass
class Case:
    """One batch of graphs, with neighbours and labels, and what is done with it.

    ``edge_index`` holds the sources j and the targets i, sorted by target; the vector of an edge is
    ``pos[j] + shift @ cell − pos[i]``. Graphs that are not periodic have no cell and no shift. Floats are float32.
    """

    name: str
    description: str
    train: bool  # a step of training with its optimizer, else energies (and forces) alone
    with_forces: bool
    z: Tensor
    pos: Tensor
    batch: Tensor
    num_graphs: int
    edge_index: Tensor
    cell: Tensor | None
    shift: Tensor | None
    energy: Tensor
    forces: Tensor

    @property
    def offset(self) -> Tensor:
        """What an edge's vector has besides ``pos[j] − pos[i]``, in Å."""
        if self.cell is None or self.shift is None:
            return torch.zeros(self.edge_index.shape[1], 3, device=self.pos.device)
        return torch.einsum("ea,eab->eb", self.shift, self.cell[self.batch[self.edge_index[1]]])

    def save(self, file: Path) -> None:
        """Writes an npz."""
        np.savez(file, **{name: value for name, value in vars(self).items() if value is not None})

    @classmethod
    def load(cls, file: Path, device: str = "cpu") -> "Case":
        """Opens what :meth:`save` wrote."""
        values = dict.fromkeys(("cell", "shift")) | dict(np.load(file))
        return cls(
            **{
                name: value if value is None else torch.from_numpy(value).to(device) if value.ndim else value.item()
                for name, value in values.items()
            }
        )


def case(name: str, description: str, frames: Sequence[Atoms], *, train: bool, with_forces: bool) -> Case:
    """A case of these structures, with neighbours within :data:`CUTOFF` and random labels."""
    from pyg_equivariant.data import neighbor_list

    pos = torch.tensor(np.concatenate([atoms.positions for atoms in frames]), dtype=torch.float32)
    batch = torch.repeat_interleave(torch.tensor([len(atoms) for atoms in frames]))
    cell = pbc = None
    if frames[0].pbc.any():
        cell = torch.tensor(np.array([atoms.cell[:] for atoms in frames]), dtype=torch.float32)
        pbc = torch.tensor(np.array([atoms.pbc for atoms in frames]))
    edge_index, shift = neighbor_list(pos, CUTOFF, cell, pbc, batch)
    generator = torch.Generator().manual_seed(0)
    return Case(
        name=name,
        description=description,
        train=train,
        with_forces=with_forces,
        z=torch.tensor(np.concatenate([atoms.numbers for atoms in frames])),
        pos=pos,
        batch=batch,
        num_graphs=len(frames),
        edge_index=edge_index,
        cell=cell,
        shift=shift,
        energy=torch.randn(len(frames), generator=generator),
        forces=torch.randn(len(pos), 3, generator=generator),
    )


def ef() -> Case:
    """Training step with energies and forces of ten aspirins."""
    frames, source = aspirins(10)
    return case("ef", f"training step, energy and forces, 10 aspirins ({source})", frames, train=True, with_forces=True)


def md() -> Case:
    """Energy and forces of one aspirin."""
    frames, source = aspirins(1)
    return case("md", f"energy and forces, 1 aspirin ({source})", frames, train=False, with_forces=True)


def water() -> Case:
    """Energy and forces of 64 water molecules in a periodic box."""
    file = _data("water64_pbe0ts.xyz")
    box = ase.io.read(file, 0) if file else water_box(64)
    source = "first frame of water64_pbe0ts.xyz" if file else "turned at random on a grid by ASE"
    return case("water", f"energy and forces, 64 waters in a box ({source})", [box], train=False, with_forces=True)


def qm9() -> Case:
    """Training step with the energies of 64 molecules of QM9."""
    from pyg_equivariant.data.cache import cache_folder

    if (cache_folder("qm9") / "qm9.safetensors").exists() or find_spec("qm9pack"):
        from pyg_equivariant.data import QM9

        dataset = QM9()
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:64]
        graphs = [dataset[int(index)] for index in chosen]
        frames = [Atoms(graph.z.numpy(), graph.pos.numpy()) for graph in graphs]
        source = "drawn with seed 0"
    else:
        frames = [atoms for smiles in SMALL for atoms in conformers(smiles, 8)]
        source = "none at hand: 8 conformers each of 8 small molecules by RDKit"
    return case("qm9", f"training step, energy, 64 molecules of QM9 ({source})", frames, train=True, with_forces=False)


CASES = {"ef": ef, "md": md, "water": water, "qm9": qm9}


def aspirins(count: int) -> tuple[list[Atoms], str]:
    """So many geometries of aspirin, and where they are from."""
    file = _data("rmd17/rmd17_aspirin.npz", "rmd17_aspirin.npz")
    if file is None:
        return conformers(ASPIRIN, count), "no rMD17 at hand: conformers by RDKit"
    with np.load(file) as values:
        return [Atoms(values["nuclear_charges"], pos) for pos in values["coords"][:count]], "first frames of rMD17"


def conformers(smiles: str, count: int) -> list[Atoms]:
    """So many geometries of a molecule."""
    from pyg_equivariant.data import from_smiles

    graphs = from_smiles(smiles, num_conformers=count, progress=False)
    graphs = [graphs[index % len(graphs)] for index in range(count)]  # RDKit may leave some out
    return [Atoms(graph.z.numpy(), graph.pos.numpy()) for graph in graphs]


def water_box(count: int, seed: int = 0) -> Atoms:
    """A cubic periodic box of so many waters at the liquid's density, on a grid, each turned at random."""
    rng = np.random.default_rng(seed)
    length = (count / 0.0334) ** (1 / 3)  # molecules per Å³
    side = int(np.ceil(count ** (1 / 3) - 1e-9))
    places = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    places = rng.permutation(places)[:count] * length / side
    molecule = ase.build.molecule("H2O")
    turned = np.einsum("nij,aj->nai", Rotation.random(count, random_state=seed).as_matrix(), molecule.positions)
    pos = (turned + places[:, None]).reshape(-1, 3)
    return Atoms(np.tile(molecule.numbers, count), pos, cell=[length] * 3, pbc=True)


def _data(*names: str) -> Path | None:
    """The first of these files that lies in the folder of real data."""
    folder = os.environ.get("PYG_EQUIVARIANT_DATA")
    files = [Path(folder) / name for name in names] if folder else []
    return next((file for file in files if file.exists()), None)
