from pathlib import Path

import ase.io
import pytest
import torch

from pyg_equivariant.data import FilesDataModule, FlatDataset, MolecularDataModule, Splits, read_file, to_ase

ETHANOL = Path(__file__).parents[2] / "datasets" / "ethanol_gfn2.npz"


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 60 frames of ethanol with energies and forces."""
    path = tmp_path_factory.mktemp("frames") / "ethanol.extxyz"
    ase.io.write(path, [to_ase(data) for data in read_file(ETHANOL)[:60]])
    return str(path)


@pytest.fixture
def ethanol(frames: str) -> FilesDataModule:
    return FilesDataModule(frames, val=0.2, test=0.2, batch_size=6, cutoff=3.0)


class ToyProperty(MolecularDataModule):
    """Random clusters whose property follows from their composition."""

    def __init__(self, target: str = "toy", kind: str = "extensive", **loading: object) -> None:
        self.target, self.kind = target, kind
        super().__init__(**loading)
        self.units = {target: "eV"}

    def load(self) -> Splits:
        generator = torch.Generator().manual_seed(1)
        sizes = torch.randint(2, 6, (40,), generator=generator)
        total = int(sizes.sum())
        z = torch.tensor([1, 6, 8])[torch.randint(3, (total,), generator=generator)]
        ptr = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
        label = torch.stack([(100.0 * part).sum() + 0.1 * len(part) ** 2 for part in z.double().split(sizes.tolist())])
        fields = {
            "z": z,
            "pos": 3 * torch.rand(total, 3, generator=generator, dtype=torch.float64),
            "idx": torch.arange(40) + 1000,
            self.target: label,
        }
        data = FlatDataset(fields, ptr)
        return Splits(data[:24], data[24:32], data[32:])


@pytest.fixture(scope="session")
def toy_property() -> type[ToyProperty]:
    return ToyProperty
