"""MD17 and its revision: molecular dynamics of ten small molecules with energies and forces.

Original: S. Chmiela et al., Sci. Adv. 3, e1603015 (2017). Revised: A. S. Christensen, O. A. von Lilienfeld, Mach.
Learn.: Sci. Technol. 1, 045018 (2020), doi:10.6084/m9.figshare.12672038.
"""

import hashlib
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_equivariant.data.cache import cache_folder, download, write_whole
from pyg_equivariant.data.dataset import FlatDataset
from pyg_equivariant.units import KCAL_MOL

__all__ = ["MD17", "MOLECULES"]

logger = logging.getLogger(__name__)

MOLECULES = (
    "aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde",
    "naphthalene", "paracetamol", "salicylic", "toluene", "uracil",
)  # fmt: skip

_REVISED_URL = "https://figshare.com/ndownloader/files/23950376"
_REVISED_SHA256 = "cddeea2ec2c4b22a9de16a9a65a3eeedac5b29da9c99c20bbff0153912bf922b"
_ORIGINAL_URL = "http://www.quantum-machine.org/gdml/data/npz"
_ORIGINAL_FILES = {  # where the file is not called md17_<molecule>.npz
    "benzene": "md17_benzene2017.npz",
    "azobenzene": "azobenzene_dft.npz",
    "paracetamol": "paracetamol_dft.npz",
}
_REVISED_KEYS = {"z": "nuclear_charges", "pos": "coords", "energy": "energies", "forces": "forces"}
_ORIGINAL_KEYS = {"z": "z", "pos": "R", "energy": "E", "forces": "F"}


class MD17(FlatDataset):
    """One molecule's trajectory: ``z``, ``pos`` (Å), ``energy`` ``[1]`` (eV) and ``forces`` (eV/Å), in float64.

    The file ``rmd17_<molecule>.npz`` (``md17_<molecule>.npz`` of the original) is looked for in ``root``, in
    ``$PYG_EQUIVARIANT_DATA`` and in the cache (``md17`` within $PYG_EQUIVARIANT_CACHE or
    ~/.cache/pyg_equivariant), each with the subfolders ``rmd17``, ``npz_data`` and ``rmd17/npz_data``; failing
    that it is downloaded into the cache. The revised data come as one archive of 1.07 GB for all molecules,
    checked by its SHA-256; a file of the original is checked by the fingerprint that it carries.

    Note that the revised data's authors ask not to train on more than 1000 frames: neighbours in time are
    nearly equal.

    Args:
        molecule: One of :data:`MOLECULES`.
        root: Folder of the files.
        revised: Whether to take the revised data (PBE/def2-SVP, tightly converged) or the original (PBE+TS).
        transform: See :class:`FlatDataset`.

    Raises:
        FileNotFoundError: if the file is nowhere and cannot be downloaded.
        ValueError: if the molecule is unknown or the file is damaged.
    """

    def __init__(
        self,
        molecule: str,
        root: str | Path | None = None,
        *,
        revised: bool = True,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if molecule not in MOLECULES:
            raise ValueError(f"no molecule {molecule!r} in MD17: there are {', '.join(MOLECULES)}")
        self.molecule = molecule
        self.revised = revised
        self.path = _find(molecule, root, revised)
        arrays = _load(self.path, _REVISED_KEYS if revised else _ORIGINAL_KEYS)
        frames, atoms = arrays["pos"].shape[:2]
        fields = {
            "z": torch.from_numpy(arrays["z"].astype(np.int64)).repeat(frames),
            "pos": torch.from_numpy(arrays["pos"].astype(np.float64)).reshape(-1, 3),
            "energy": torch.from_numpy(arrays["energy"].astype(np.float64)).reshape(-1) * KCAL_MOL,
            "forces": torch.from_numpy(arrays["forces"].astype(np.float64)).reshape(-1, 3) * KCAL_MOL,
        }
        level = {"z": "atom", "pos": "atom", "energy": "graph", "forces": "atom"}
        super().__init__(fields, atoms * torch.arange(frames + 1), level=level, transform=transform)

    def split(self, k: int = 1) -> tuple[Tensor, Tensor]:
        """Frames of the k-th split for training (1000) and testing.

        The revised data have five official splits, ``splits/index_train_01.csv`` and so on beside the file.
        The original has none: 1000 frames drawn with seed k, and the rest.

        Raises:
            FileNotFoundError: if the files of the split are missing.
            ValueError: if they name frames that the trajectory does not have.
        """
        if not self.revised:
            order = torch.from_numpy(np.random.RandomState(k).permutation(len(self)))
            return order[:1000], order[1000:]
        return self._read_split("train", k), self._read_split("test", k)

    def _read_split(self, part: str, k: int) -> Tensor:
        name = f"index_{part}_{k:02d}.csv"
        folders = [self.path.parent / "splits", self.path.parent.parent / "splits"]
        for folder in folders:
            if (folder / name).is_file():
                index = torch.from_numpy(np.loadtxt(folder / name, dtype=np.int64, ndmin=1))
                if len(index) == 0 or int(index.min()) < 0 or int(index.max()) >= len(self):
                    raise ValueError(
                        f"{folder / name} names frames that {self.path} with its {len(self)} does not have: "
                        "take both from the same archive"
                    )
                return index
        raise FileNotFoundError(f"{name} was not found: put it into {folders[0]}")


def _find(molecule: str, root: str | Path | None, revised: bool) -> Path:
    official = f"rmd17_{molecule}.npz" if revised else _ORIGINAL_FILES.get(molecule, f"md17_{molecule}.npz")
    names = [official] if revised else [f"md17_{molecule}.npz", official]
    cache = cache_folder("md17")
    bases = [Path(base).expanduser() for base in (root, os.environ.get("PYG_EQUIVARIANT_DATA"), cache) if base]
    for base in bases:
        for folder in (base, base / "rmd17", base / "npz_data", base / "rmd17" / "npz_data"):
            for name in names:
                if (folder / name).is_file():
                    return folder / name
    try:
        _download(official, cache, revised)
    except ConnectionError as error:
        searched = ", ".join(str(base) for base in bases)
        raise FileNotFoundError(f"{official} is not in {searched}, and {error}: put it into {bases[0]}") from error
    return cache / "rmd17" / "npz_data" / official if revised else cache / official


def _download(name: str, cache: Path, revised: bool) -> None:
    if not revised:
        logger.info("downloading %s", name)
        download(f"{_ORIGINAL_URL}/{name}", cache / name, check=_check_fingerprint)
        return
    archive = cache / "rmd17.tar.bz2"
    if not archive.is_file():
        logger.info("downloading the revised MD17, 1.07 GB, into %s", cache)
        download(_REVISED_URL, archive, sha256=_REVISED_SHA256)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = cache / "rmd17" / Path(member.name).parent.name / Path(member.name).name
            if path.suffix in (".npz", ".csv") and (source := tar.extractfile(member)) is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with write_whole(path) as temporary, temporary.open("wb") as target:
                    shutil.copyfileobj(source, target)
    archive.unlink()


def _check_fingerprint(path: Path) -> None:
    """The files of sGDML carry the MD5 of their arrays' MD5s; reading them also checks the CRC of each array."""
    with np.load(path) as file:
        fingerprint = hashlib.md5()
        for key in ("z", "R", "E", "F"):
            if key in file:
                fingerprint.update(hashlib.md5(file[key].ravel().tobytes()).digest())
        carried = file["md5"].item() if "md5" in file else fingerprint.hexdigest()
    expected = carried.decode() if isinstance(carried, bytes) else str(carried)
    if fingerprint.hexdigest() != expected:
        found = fingerprint.hexdigest()
        raise ValueError(f"the downloaded file has the fingerprint {found}, but says {expected}: it was not kept")


def _load(path: Path, keys: Mapping[str, str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys.values() if key not in file]
            arrays = {name: file[key] for name, key in keys.items() if key in file}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it anew") from error
    if missing:
        raise ValueError(f"{path} lacks the array {missing[0]!r}: it should have {', '.join(keys.values())}")
    frames, atoms = arrays["pos"].shape[:2]
    if arrays["forces"].shape != (frames, atoms, 3) or arrays["energy"].size != frames or arrays["z"].shape != (atoms,):
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        raise ValueError(f"the arrays of {path} do not fit together: {shapes}")
    return arrays
