"""Data modules for Lightning: what to read, how to split it, and how to batch it."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from pyg_equivariant.data.dataset import FlatDataset
from pyg_equivariant.data.files import FilesDataset
from pyg_equivariant.data.loader import BatchSampler, GraphLoader, graph_loader
from pyg_equivariant.data.md17 import MD17
from pyg_equivariant.data.qm9 import QM9, TARGETS, qm9_split
from pyg_equivariant.data.statistics import Statistics, compute_statistics, num_edges
from pyg_equivariant.data.transforms import RadiusGraph

__all__ = ["FilesDataModule", "MD17DataModule", "MolecularDataModule", "QM9DataModule", "Splits"]

logger = logging.getLogger(__name__)

UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "dipole": "e·Å", "charges": "e"}
_INPUTS = ("z", "pos", "cell", "pbc", "total_charge")


class Splits(NamedTuple):
    """Views of the data to train on, to choose by and to test on."""

    train: FlatDataset
    val: FlatDataset
    test: FlatDataset


class MolecularDataModule(pl.LightningDataModule, ABC):
    """Batches of geometric graphs with edges.

    A subclass says in :meth:`load` what the data are. Batches hold ``batch_size`` graphs, or as many as
    ``max_atoms`` or ``max_edges`` allow; the order of training batches follows from ``seed`` and the epoch, and
    a run that was interrupted goes on with the batch that comes next, on any number of processes.

    Args:
        cutoff: Radius in Å of the edges, that of the model; ``math.inf`` connects all atoms of a molecule.
        batch_size: Graphs in a batch.
        max_atoms: Atoms in a batch at most, instead of ``batch_size``.
        max_edges: Edges in a batch at most, instead of ``batch_size``.
        num_workers: Processes that make batches beside the main one.
        seed: Of the order of training batches, and of splits that are drawn.

    Attributes:
        train_set: Graphs to train on, with edges and labels.
        val_set: Graphs to choose the best model by.
        test_set: Graphs to test on.
        labels: Fields that a model can be trained on.
        units: Unit of each label.
        target: The label that ``statistics`` is about.
        kind: How it follows from the atoms, see :class:`~pyg_equivariant.data.qm9.Target`.
        statistics: Of the training set.
        digest: SHA-256 of the split and its labels.
    """

    target = "energy"
    kind: str = "extensive"
    references: Mapping[str, float] | None = None

    def __init__(
        self,
        *,
        cutoff: float = 5.0,
        batch_size: int = 32,
        max_atoms: int | None = None,
        max_edges: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if max_atoms is not None and max_edges is not None:
            raise ValueError("give max_atoms or max_edges, not both")
        for name, value in (("batch_size", batch_size), ("max_atoms", max_atoms), ("max_edges", max_edges)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.cutoff = float(cutoff)
        self.batch_size = batch_size
        self.max_atoms = max_atoms
        self.max_edges = max_edges
        self.num_workers = num_workers
        self.seed = seed
        self.labels: tuple[str, ...] = (self.target,)
        self.units: dict[str, str] = {}
        self._splits: Splits | None = None

    @abstractmethod
    def load(self) -> Splits:
        """Reads the data; called once per process."""

    def setup(self, stage: str | None = None) -> None:
        """Reads the data, checks every label and computes the statistics.

        Raises:
            ValueError: if a label is missing or NaN; the message names the sample.
        """
        if self._splits is not None:
            return
        splits = self.load()
        for name, part in zip(Splits._fields, splits, strict=True):
            part.require(*self.labels, name=f"{name} sample")
        if len(splits.train) == 0:
            raise ValueError("the training set is empty")
        transform = RadiusGraph(self.cutoff)
        train, val, test = (part.with_transform(transform) for part in splits)
        self.train_set, self.val_set, self.test_set = train, val, test
        self.statistics: Statistics = compute_statistics(
            train, self.target, self.cutoff, extensive=self.kind == "extensive", references=self.references
        )
        self.digest = _digest(splits, self.labels)
        self._splits = Splits(train, val, test)
        logger.info(
            "%s: %d graphs to train on, %d to validate, %d to test; digest %s",
            type(self).__name__, len(train), len(val), len(test), self.digest,
        )  # fmt: skip

    def train_dataloader(self) -> GraphLoader:
        """Shuffled batches of the training set."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> GraphLoader:
        """Batches of the validation set, in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> GraphLoader:
        """Batches of the test set, in order."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> GraphLoader:
        """Batches of the test set, in order."""
        return self._loader(self.test_set)

    def _loader(self, dataset: FlatDataset, *, shuffle: bool = False) -> GraphLoader:
        if self.max_atoms is not None:
            sizes, limit = dataset.num_atoms, self.max_atoms
        elif self.max_edges is not None:
            sizes, limit = num_edges(dataset, self.cutoff), self.max_edges
        else:
            sizes, limit = torch.ones(len(dataset), dtype=torch.int64), self.batch_size
        trainer = self.trainer
        sampler = BatchSampler(
            sizes,
            limit,
            shuffle=shuffle,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            num_replicas=trainer.world_size if trainer else 1,
        )
        pin_memory = torch.cuda.is_available()
        return graph_loader(dataset, sampler, num_workers=self.num_workers, pin_memory=pin_memory)


class QM9DataModule(MolecularDataModule):
    """One property of QM9.

    Args:
        target: One of :data:`~pyg_equivariant.data.qm9.TARGETS`.
        split: "standard" (110,000 / 10,000 / 10,831) or "cormorant" (100,000 / 17,748 / 13,083, as EGNN).
        root: Folder of the raw and processed files, see :class:`~pyg_equivariant.data.qm9.QM9`.
        **loading: Of :class:`MolecularDataModule`.

    Raises:
        ValueError: if there is no such target.
    """

    def __init__(
        self,
        target: str = "U0",
        *,
        split: Literal["standard", "cormorant"] = "standard",
        root: str | None = None,
        **loading: Any,
    ) -> None:
        if target not in TARGETS:
            raise ValueError(f"no target {target!r} in QM9: there are {', '.join(TARGETS)}")
        self.target, self.kind = target, TARGETS[target].kind
        super().__init__(**loading)
        self.units = {target: TARGETS[target].unit}
        self.split = split
        self.root = root

    def prepare_data(self) -> None:
        """Processes the raw data, once per machine."""
        QM9(self.root)

    def load(self) -> Splits:
        """See :meth:`MolecularDataModule.load`."""
        dataset = QM9(self.root).select("z", "pos", self.target)
        split = qm9_split(self.split)
        return Splits(*(dataset[split[part]] for part in Splits._fields))


class MD17DataModule(MolecularDataModule):
    """Energies and forces of a molecule of MD17, with its official split.

    Args:
        molecule: One of :data:`~pyg_equivariant.data.md17.MOLECULES`.
        split: Number of the split, 1 to 5.
        num_train: Frames to train on, of the split's 1000.
        num_val: Frames to validate on, of the rest of the 1000.
        revised: Whether to take the revised data or the original.
        root: Folder of the files, see :class:`~pyg_equivariant.data.md17.MD17`.
        **loading: Of :class:`MolecularDataModule`.

    Raises:
        ValueError: if more frames are asked for than the split has.
    """

    def __init__(
        self,
        molecule: str = "aspirin",
        *,
        split: int = 1,
        num_train: int = 950,
        num_val: int = 50,
        revised: bool = True,
        root: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.labels = ("energy", "forces")
        self.units = {name: UNITS[name] for name in self.labels}
        self.molecule = molecule
        self.split = split
        self.num_train = num_train
        self.num_val = num_val
        self.revised = revised
        self.root = root

    def prepare_data(self) -> None:
        """Downloads the data where they are missing, once per machine."""
        MD17(self.molecule, self.root, revised=self.revised)

    def load(self) -> Splits:
        """See :meth:`MolecularDataModule.load`."""
        dataset = MD17(self.molecule, self.root, revised=self.revised)
        train, test = dataset.split(self.split)
        if self.num_train + self.num_val > len(train):
            raise ValueError(
                f"{self.num_train} frames to train on and {self.num_val} to validate were asked for: "
                f"split {self.split} has {len(train)}"
            )
        train = train[_shuffled(len(train), self.split)]
        val = train[self.num_train : self.num_train + self.num_val]
        return Splits(dataset[train[: self.num_train]], dataset[val], dataset[test])


class FilesDataModule(MolecularDataModule):
    """The user's own files, as :class:`~pyg_equivariant.data.files.FilesDataset` reads them.

    Args:
        train: File or files to train on.
        val: File or files to validate on, or the fraction of ``train`` that is kept for it.
        test: File or files to test on, or a fraction of ``train``, or nothing.
        labels: What every frame must have. Energies and forces are to be learned; more if the model has heads.
        keys: Names of the labels in the files, such as ``{"energy": "REF_energy"}``.
        units: Units in the files, where they are not eV and Å.
        E0s: Energies of isolated atoms in eV by chemical symbol; fitted by least squares if not given.
        **loading: Of :class:`MolecularDataModule`.

    Raises:
        ValueError: if the fractions leave nothing to train on.
    """

    def __init__(
        self,
        train: str | list[str],
        val: float | str | list[str] = 0.1,
        test: float | str | list[str] | None = 0.1,
        *,
        labels: Sequence[str] = ("energy", "forces"),
        keys: dict[str, str] | None = None,
        units: dict[str, str] | None = None,
        E0s: dict[str, float] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.labels = tuple(labels)
        self.units = {name: UNITS[name] for name in self.labels if name in UNITS}
        self.references = E0s
        self.files = {"train": train, "val": val, "test": test}
        self.keys = keys
        self.file_units = units

    def load(self) -> Splits:
        """See :meth:`MolecularDataModule.load`."""
        parts: dict[str, FlatDataset] = {}
        for part, source in self.files.items():
            if isinstance(source, str | list):
                parts[part] = self._read(source)
        rest = _shuffled(len(parts["train"]), self.seed)
        everything = parts["train"]
        for part in ("val", "test"):
            source = self.files[part]
            if not isinstance(source, str | list):
                fraction = float(source or 0.0)
                if not 0 <= fraction < 1:
                    raise ValueError(f"{part} must be a file or a fraction below 1, got {source}")
                number = max(round(fraction * len(everything)), int(fraction > 0))
                parts[part], rest = everything[rest[:number]], rest[number:]
        if len(rest) == 0:
            raise ValueError(f"{len(everything)} frames are too few to keep some for validation and test")
        parts["train"] = everything[rest.sort().values]
        return Splits(parts["train"], parts["val"], parts["test"])

    def _read(self, paths: str | list[str]) -> FlatDataset:
        dataset = FilesDataset(paths, labels=self.labels, keys=self.keys, units=self.file_units)
        return dataset.select(*(name for name in (*_INPUTS, *self.labels) if name in dataset.fields))


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).permutation(count))


def _digest(splits: Splits, labels: Sequence[str]) -> str:
    """Of the atoms, positions and labels of each part in their order."""
    digest = hashlib.sha256()
    for part in splits:
        digest.update(np.int64(len(part)).tobytes())
        for name in ("z", "pos", *labels):
            digest.update(part.column(name).contiguous().numpy().tobytes())
    return digest.hexdigest()
