"""Five charged particles: where will they be? The N-body task of the EGNN paper, simulated here in seconds.

V. G. Satorras, E. Hoogeboom, M. Welling, arXiv:2102.09844, section 5.1; after T. Kipf et al., arXiv:1802.04687.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyg_equivariant.data.cache import cache_folder, write_whole
from pyg_equivariant.data.dataset import FlatDataset
from pyg_equivariant.data.module import MolecularDataModule, Splits

__all__ = ["NBody", "NBodyDataModule", "simulate"]

logger = logging.getLogger(__name__)

NUM_PARTICLES = 5
SPEED = 0.5
SEED = 43
TIME_STEP = 1e-3
MAX_FORCE = 100.0
STEPS_PER_FRAME = 100
FIRST_FRAME, LAST_FRAME = 30, 40

# How many the authors' program draws, one part after the other, and how many of them the paper uses.
_DRAWN = {"train": 10_000, "val": 2_000, "test": 2_000}
_USED = {"train": 3_000, "val": 2_000, "test": 2_000}
_FRAMES_DRAWN = 49
_CHUNK = 250


class NBody(FlatDataset):
    r"""7000 systems of five charged particles: 3000 to train on, 2000 to validate and 2000 to test.

    The particles start normally distributed, :math:`r \sim N(0, σ^2)` with :math:`σ = (n/5)^{1/3}`, at speed 0.5 and
    with charges ±1, and move under :math:`F_i = Σ_j q_i q_j r_{ij}/|r_{ij}|^3`, each component clipped at ±100, in
    steps of 0.001; a frame is every hundredth step. The random numbers are those of the authors' program with its
    seed, so that the systems are the paper's.

    Each graph has, at frame 30, ``pos``, ``vel`` and ``charges``, the ``displacement`` from there to frame 40 (its
    mean square is what a model must beat), the conserved ``energy``, and ``z`` = 0, as particles are no atoms. All are
    in float64 and without unit. The simulation takes seconds and is kept as one safetensors file.

    Args:
        root: Folder of the file; by default ``nbody`` within $PYG_EQUIVARIANT_CACHE or ~/.cache/pyg_equivariant.
        transform: See :class:`FlatDataset`.
    """

    def __init__(self, root: str | Path | None = None, *, transform: Callable[[Any], Any] | None = None) -> None:
        path = cache_folder("nbody", root) / "nbody.safetensors"
        if not path.is_file():
            with write_whole(path) as temporary:
                _generate().save(temporary)
            logger.info("N-body systems simulated: %s", path)
        data = FlatDataset.load(path)
        super().__init__(data.fields, data.ptrs["atom"], ptrs=data.ptrs, level=data.level, transform=transform)

    def split(self) -> Splits:
        """The systems to train on, to validate and to test."""
        train, val = _USED["train"], _USED["train"] + _USED["val"]
        return Splits(self[:train], self[train:val], self[val:])


class NBodyDataModule(MolecularDataModule):
    """The ``displacement`` of :class:`NBody`.

    Args:
        root: Folder of the file, see :class:`NBody`.
        **loading: Of :class:`MolecularDataModule`.
    """

    target, kind = "energy", "intensive"

    def __init__(self, *, root: str | None = None, **loading: Any) -> None:
        super().__init__(**loading)
        self.labels = ("displacement",)
        self.root = root

    def prepare_data(self) -> None:
        """Simulates, once per machine."""
        NBody(self.root)

    def load(self) -> Splits:
        """See :meth:`MolecularDataModule.load`."""
        return NBody(self.root).split()


def simulate(
    pos: Float[np.ndarray, "B n 3"],
    vel: Float[np.ndarray, "B n 3"],
    charges: Float[np.ndarray, "B n"],
    num_steps: int,
) -> Iterator[tuple[Float[np.ndarray, "B n 3"], Float[np.ndarray, "B n 3"]]]:
    """Positions and velocities after each of ``num_steps`` steps, of all systems at once.

    As in the authors' program, a step is one of symplectic Euler: the force changes the velocities, which move the
    positions. Each yields views of arrays that the next step overwrites.

    Args:
        pos: Positions of n particles in each of B systems.
        vel: Velocities.
        charges: Charges.
        num_steps: Number of steps.
    """
    first, second = np.triu_indices(pos.shape[1], k=1)
    # of each pair its difference, and of each particle the signed sum over its pairs: two small matrix products
    difference = np.zeros((len(first), pos.shape[1]))
    difference[range(len(first)), first] = 1.0
    difference[range(len(first)), second] = -1.0
    product = (charges[:, first] * charges[:, second]).T
    x, v = (array.transpose(1, 2, 0).copy().reshape(pos.shape[1], -1) for array in (pos, vel))
    shape = (-1, 3, len(pos))
    for _ in range(num_steps):
        apart = (difference @ x).reshape(shape)
        square = np.einsum("pdb,pdb->pb", apart, apart)
        apart *= (product / (square * np.sqrt(square)))[:, None]
        v += TIME_STEP * np.clip(difference.T @ apart.reshape(len(first), -1), -MAX_FORCE, MAX_FORCE)
        x += TIME_STEP * v
        yield x.reshape(shape).transpose(2, 0, 1), v.reshape(shape).transpose(2, 0, 1)


def _draw(part: str, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Initial positions, velocities and charges of a part, in the order in which the authors' program draws."""
    n = NUM_PARTICLES
    charges, normal = [], []
    for _ in range(_DRAWN[part]):
        charges.append(random.choice([-1.0, 0.0, 1.0], n, p=[0.5, 0.0, 0.5]))
        # of these the last are observation noise, whose variance is zero
        normal.append(random.standard_normal((2 + 2 * _FRAMES_DRAWN) * 3 * n)[: 6 * n].reshape(2, 3, n))
    used = _USED[part]
    pos, vel = np.stack(normal[:used]).transpose(1, 0, 3, 2)
    vel *= SPEED / np.linalg.norm(vel, axis=-1, keepdims=True)
    return pos * (n / 5) ** (1 / 3), vel, np.stack(charges[:used])


def _generate() -> FlatDataset:
    random = np.random.RandomState(SEED)  # the legacy generator: its stream is frozen
    pos, vel, charges = (np.concatenate(parts) for parts in zip(*(_draw(p, random) for p in _DRAWN), strict=True))
    # frame k is written after 100 (k + 1) steps
    start, end = (STEPS_PER_FRAME * (frame + 1) for frame in (FIRST_FRAME, LAST_FRAME))
    first, last = np.empty((2, *pos.shape)), np.empty(pos.shape)
    for begin in range(0, len(pos), _CHUNK):  # few enough to stay in the processor's cache
        rows = slice(begin, begin + _CHUNK)
        for step, (x, v) in enumerate(simulate(pos[rows], vel[rows], charges[rows], end), 1):
            if step == start:
                first[0, rows], first[1, rows] = x, v
        last[rows] = x
    fields = {
        "z": torch.zeros(charges.size, dtype=torch.int64),
        "pos": _rows(first[0]),
        "vel": _rows(first[1]),
        "charges": torch.from_numpy(charges.reshape(-1)),
        "displacement": _rows(last - first[0]),
        "energy": torch.from_numpy(_energy(first[0], first[1], charges)),
    }
    return FlatDataset(fields, NUM_PARTICLES * torch.arange(len(pos) + 1))


def _rows(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).reshape(-1, 3))


def _energy(pos: np.ndarray, vel: np.ndarray, charges: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(pos.shape[1], k=1)
    apart = np.linalg.norm(pos[:, first] - pos[:, second], axis=-1)
    kinetic: np.ndarray = 0.5 * np.square(vel).sum((1, 2))
    return kinetic + (charges[:, first] * charges[:, second] / apart).sum(1)
