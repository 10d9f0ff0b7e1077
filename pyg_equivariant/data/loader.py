"""Batches of a fixed number of graphs, or of as many as fit: seeded by the epoch, dealt to ranks, resumable."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from torch_geometric.data import Batch

from pyg_equivariant.data.dataset import FlatDataset

__all__ = ["BatchSampler", "GraphLoader", "graph_loader"]


class BatchSampler(DistributedSampler[list[int]]):
    """Lists of graph indices, one per batch.

    The order of an epoch depends on ``seed`` and the epoch alone, so a resumed run sees the batches that an
    unbroken one sees. It is a ``DistributedSampler`` so that Lightning leaves it in place and tells it the
    epoch; every rank gets every ``num_replicas``-th batch, as many as the others when shuffling.

    Args:
        sizes: Size of each graph: 1, or its number of atoms or of edges.
        limit: Largest sum of sizes in a batch.
        shuffle: Whether to draw a new order every epoch.
        seed: Of the order.
        rank: Number of this process.
        num_replicas: Number of processes.

    Attributes:
        start: Batches of this epoch that are skipped, because an interrupted run has seen them.

    Raises:
        ValueError: if a graph is larger than the limit.
    """

    def __init__(
        self,
        sizes: Int[Tensor, " B"],
        limit: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        if limit < 1:
            raise ValueError(f"a batch must hold something: its limit is {limit}")
        if len(sizes) and int(sizes.max()) > limit:
            raise ValueError(
                f"graph {int(sizes.argmax())} has the size {int(sizes.max())}, but a batch may have {limit} only: "
                "raise max_atoms or max_edges"
            )
        super().__init__(range(len(sizes)), num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.sizes = sizes
        self.limit = limit
        self.start = 0
        self.count = len(self._batches(0))  # an epoch has the same number of batches as the first

    def _batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, of all ranks."""
        order = torch.arange(len(self.sizes))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.sizes), generator=generator)
        ends = self.sizes[order].cumsum(0)
        batches, start, filled = [], 0, 0
        while start < len(order):
            end = int(torch.searchsorted(ends, filled + self.limit, right=True))
            batches.append(order[start:end].tolist())
            start, filled = end, int(ends[end - 1])
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of this rank in this epoch."""
        batches = self._batches(self.epoch)
        if self.shuffle and batches:
            wanted = -(-self.count // self.num_replicas) * self.num_replicas
            batches = [batches[i % len(batches)] for i in range(wanted)]
        elif len(batches) < self.num_replicas:
            batches = [batches[i % len(batches)] for i in range(self.num_replicas)] if batches else []
        return iter(batches[self.rank :: self.num_replicas][self.start :])

    def __len__(self) -> int:
        """Batches of this rank in an epoch, those skipped included."""
        if self.shuffle or 0 < self.count < self.num_replicas:
            return -(-self.count // self.num_replicas)
        return len(range(self.rank, self.count, self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch, unless it is in it already."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0


class GraphLoader(DataLoader[Any]):
    """A loader that can say where it is, and go on from there: ``state_dict`` and ``load_state_dict``.

    The workers, if any, gather the graphs and find the edges (the dataset's transform); nothing of a batch is
    made before it is asked for the first time. Made by :func:`graph_loader`.
    """

    _position = (0, 0)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches from where the sampler is to the end of the epoch."""
        sampler = self.sampler
        assert isinstance(sampler, BatchSampler)
        epoch, done = sampler.epoch, sampler.start
        self._position = (epoch, done)
        for batch in super().__iter__():
            done += 1
            self._position = (epoch, done)
            yield batch
        sampler.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """The next batch: its epoch and its number in it."""
        epoch, done = self._position
        return {"epoch": epoch + 1, "batch": 0} if done >= len(self) else {"epoch": epoch, "batch": done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the batch that ``state`` describes."""
        assert isinstance(self.sampler, BatchSampler)
        self.sampler.epoch, self.sampler.start = state["epoch"], state["batch"]
        self._position = (state["epoch"], state["batch"])


def graph_loader(
    dataset: FlatDataset, sampler: BatchSampler, *, num_workers: int = 0, pin_memory: bool = False
) -> GraphLoader:
    """The loader of the batches that ``sampler`` names.

    Args:
        dataset: The graphs; its transform finds the edges.
        sampler: The batches.
        num_workers: Processes that make batches beside the main one.
        pin_memory: Whether to put batches where a GPU fetches them faster.
    """
    return GraphLoader(
        dataset,
        batch_size=None,  # the sampler's items are batches: dataset[list] is a view of their graphs
        sampler=sampler,
        collate_fn=_to_batch,  # type: ignore[arg-type]
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


def _to_batch(graphs: FlatDataset) -> Batch:
    return graphs.to_batch()
