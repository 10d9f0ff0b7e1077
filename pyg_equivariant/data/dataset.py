"""Many graphs as a few long tensors: opened in milliseconds, batched without a Python loop."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data
from torch_geometric.data.collate import collate

__all__ = ["FlatDataset", "GraphBatch"]

Indices = slice | Sequence[int] | range | np.ndarray | Tensor
_FORMAT = "pyg_equivariant.FlatDataset 1"


class GraphBatch(Batch):
    """A PyG ``Batch`` that iterates over its graphs.

    PyG's ``DataLoader`` expects what a dataset returns to be a sequence of samples; with this it accepts a
    finished batch too (and collates it anew, slowly: pass ``collate_fn=lambda batch: batch`` to torch's own).
    """

    def __iter__(self) -> Iterator[Data]:
        for i in range(self.num_graphs):
            yield self.get_example(i)

    def __reduce__(self) -> tuple[Any, ...]:
        """Packs all tensors into one array: sending a tensor costs a worker a file in shared memory and a handshake."""
        state = {"fields": self.to_dict()} | {
            name: getattr(self, name) for name in ("_num_graphs", "_slice_dict", "_inc_dict") if hasattr(self, name)
        }
        parts: list[Tensor] = []
        packed = _pack(state, parts, {})
        return _rebuild, (packed, torch.cat(parts).numpy())


class _Place(NamedTuple):
    """Where the bytes of a tensor lie."""

    start: int
    end: int
    dtype: torch.dtype
    shape: torch.Size


def _pack(value: Any, parts: list[Tensor], known: dict[int, _Place]) -> Any:
    """``value`` with a place for each tensor, whose bytes are added to ``parts``."""
    if isinstance(value, dict):
        return {key: _pack(item, parts, known) for key, item in value.items()}
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return value
    if id(value) not in known:  # fields of one level share their slices
        data = value.contiguous().reshape(-1).view(torch.uint8)
        start = known[-1].end if -1 in known else 0
        end = start + -(-len(data) // 8) * 8  # aligned for every dtype
        parts += [data, data.new_zeros(end - start - len(data))]
        known[id(value)] = known[-1] = _Place(start, end, value.dtype, value.shape)
    return known[id(value)]


def _unpack(value: Any, data: Tensor) -> Any:
    if isinstance(value, dict):
        return {key: _unpack(item, data) for key, item in value.items()}
    if not isinstance(value, _Place):
        return value
    size = value.shape.numel() * value.dtype.itemsize
    return data[value.start : value.start + size].view(value.dtype).view(value.shape)


def _rebuild(packed: dict[str, Any], data: np.ndarray) -> GraphBatch:
    state = _unpack(packed, torch.from_numpy(data))
    batch = GraphBatch(_base_cls=Data)
    for name, value in state.pop("fields").items():
        batch[name] = value
    for name, value in state.items():
        setattr(batch, name, value)
    return batch


class FlatDataset(Dataset[Data]):
    """Graphs held as concatenated tensors, one per field.

    ``dataset[3]`` is a ``Data``; ``dataset[10:20]`` (also a list, an index or a mask) is a view that shares
    the storage; ``dataset.__getitems__([3, 1, 4])``, which torch's ``DataLoader`` calls, is a ``Batch`` made
    by one gather per field. Such a batch equals ``Batch.from_data_list([dataset[i] for i in [3, 1, 4]])``,
    ``to_data_list()`` included.

    Args:
        fields: Name to values: a tensor with one row per atom ``[N, ...]`` or per graph ``[B, ...]``, or a
            list of B strings. Fields whose name contains "index" are ``[2, K]`` and count atoms from 0
            within each graph (PyG shifts them when batching).
        ptr: First atom of each graph, and N at the end.
        ptrs: The same for other levels, by name, such as ``{"bond": ...}``.
        level: Level of the other fields, such as ``{"bond_index": "bond"}``.
        transform: Applied to every ``Data`` and every ``Batch`` on its way out (in the loader's workers).

    Raises:
        ValueError: if the length of a field fits no level.

    Example:
        >>> data = [Data(z=torch.tensor([1] * n), energy=torch.tensor([float(n)])) for n in (1, 2, 3)]
        >>> dataset = FlatDataset.from_data_list(data)
        >>> dataset[1:][0].z
        tensor([1, 1])
        >>> dataset.__getitems__([2, 0]).energy
        tensor([3., 1.])
    """

    def __init__(
        self,
        fields: Mapping[str, Tensor | list[str]],
        ptr: Int[Tensor, " P"],
        *,
        ptrs: Mapping[str, Int[Tensor, " P"]] | None = None,
        level: Mapping[str, str] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.ptrs = {"graph": torch.arange(len(ptr)), "atom": ptr, **(ptrs or {})}
        self.fields = dict(fields)
        level = level or {}
        self.level = {key: level.get(key) or self._find_level(key, value) for key, value in fields.items()}
        self.transform = transform
        self.indices: Tensor | None = None

    def _find_level(self, key: str, value: Tensor | list[str]) -> str:
        size = len(value) if isinstance(value, list) else value.shape[_cat_dim(key)]
        for level in ("graph", "atom"):
            if size == int(self.ptrs[level][-1]):
                return level
        raise ValueError(
            f"field {key!r} has {size} rows, but the dataset has {int(self.ptrs['atom'][-1])} atoms "
            f"and {len(self.ptrs['graph']) - 1} graphs: pass its level and ptr"
        )

    @classmethod
    def from_data_list(cls, data_list: Sequence[Data], *, name: str = "sample") -> "FlatDataset":
        """Concatenates graphs, which must all have the same fields.

        Args:
            data_list: At least one graph.
            name: What to call a graph in error messages.

        Raises:
            ValueError: if there is no graph, a field is missing in some, or shapes do not fit together.
        """
        data_list = list(data_list)
        if not data_list:
            raise ValueError(f"no {name} given: a dataset needs at least one graph")
        keys = set(data_list[0].keys())
        for i, data in enumerate(data_list):
            if different := keys.symmetric_difference(data.keys()):
                field, here = min(different), min(different) in data
                raise ValueError(
                    f"{name} {i} {'has' if here else 'lacks'} the field {field!r}, which {name} 0 "
                    f"{'lacks' if here else 'has'}: give it to all or to none"
                )
        try:
            joined, slices, _ = collate(Data, data_list, increment=False, add_batch=False)
        except RuntimeError as error:
            raise ValueError(f"the fields of the {name}s have different shapes: {error}") from error
        ptr = torch.tensor([0, *(len(data.z) if "z" in data else data.num_nodes for data in data_list)]).cumsum(0)
        ptrs: dict[str, Tensor] = {"graph": torch.arange(len(ptr)), "atom": ptr}
        level = {}
        for key in keys - {"num_nodes", "ptr"}:
            value, bounds = joined[key], slices[key]
            if not isinstance(value, Tensor) and not (isinstance(value, list) and isinstance(value[0], str)):
                raise ValueError(
                    f"field {key!r} of {name} 0 is a {type(value).__name__}: only tensors, numbers and strings are kept"
                )
            level[key] = next((known for known, p in ptrs.items() if torch.equal(p, bounds)), key)
            ptrs.setdefault(level[key], bounds)
        return cls({key: joined[key] for key in sorted(level)}, ptr, ptrs=ptrs, level=level)

    def __len__(self) -> int:
        return len(self.ptrs["graph"]) - 1 if self.indices is None else len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Data: ...
    @overload
    def __getitem__(self, index: Indices) -> "FlatDataset": ...
    def __getitem__(self, index: Any) -> Any:
        """The graph at a position, or a view of the graphs at several."""
        if isinstance(index, int | np.integer) or (isinstance(index, Tensor) and index.dim() == 0):
            data = self._get(self._position(int(index)))
            return data if self.transform is None else self.transform(data)
        view = self._copy()
        view.indices = self._positions(index)
        return view

    def __iter__(self) -> Iterator[Data]:
        for i in range(len(self)):
            yield self[i]

    def __getitems__(self, indices: Sequence[int] | Int[Tensor, " B"]) -> Batch:
        """The batch of the graphs at ``indices``, in that order."""
        return self[indices].to_batch()

    def to_batch(self) -> Batch:
        """All graphs of the (view of the) dataset as one batch."""
        batch = self._batch(self._all())
        return batch if self.transform is None else self.transform(batch)

    def with_transform(self, transform: Callable[[Any], Any] | None) -> "FlatDataset":
        """A view whose graphs and batches pass through ``transform``, instead of the present one."""
        view = self._copy()
        view.transform = transform
        return view

    def select(self, *names: str) -> "FlatDataset":
        """A view with these fields only: what a training step does not read need not be batched.

        Raises:
            KeyError: if there is no such field.
        """
        view = self._copy()
        view.fields = {name: self._field(name) for name in names}
        return view

    def with_field(self, name: str, value: Tensor | list[str]) -> "FlatDataset":
        """A view with one more field, given for all graphs of the storage, per atom or per graph."""
        view = self._copy()
        view.fields = {**self.fields, name: value}
        view.level = {**self.level, name: self._find_level(name, value)}
        return view

    def column(self, name: str) -> Tensor:
        """The values of a field for the graphs of this view, concatenated: ``[B, ...]`` or ``[N, ...]``.

        Raises:
            KeyError: if there is no such field, or it holds strings.
        """
        value = self._field(name)
        if not isinstance(value, Tensor):
            raise KeyError(f"field {name!r} holds strings: read it with dataset[i].{name}")
        if self.indices is None:
            return value
        rows, _ = self._rows(self.level[name], self.indices)
        return value.index_select(_cat_dim(name), rows)

    @property
    def num_atoms(self) -> Int[Tensor, " B"]:
        """Atoms of each graph of this view."""
        counts = self.ptrs["atom"].diff()
        return counts if self.indices is None else counts[self.indices]

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, in ascending order."""
        return [int(z) for z in torch.unique(self.column("z"))]

    def require(self, *names: str, name: str = "sample") -> None:
        """Checks that every graph has these labels, and that they are finite.

        Raises:
            ValueError: if not; the message names the field and the first graph (position in this view).
        """
        for field in names:
            if field not in self.fields:
                known = ", ".join(sorted(self.fields))
                raise ValueError(f"no {name} has the field {field!r}, which was asked for: there are {known}")
            value = self.column(field)
            if not value.is_floating_point() or len(value) == 0:
                continue
            bad = ~value.reshape(len(value), -1).isfinite().all(1)
            if bad.any():
                row = int(bad.nonzero()[0])
                counts = self._rows(self.level[field], self._all())[1]
                graph = int(torch.searchsorted(counts, row, right=True)) - 1
                raise ValueError(
                    f"{field!r} of {name} {graph} is NaN or infinite ({int(bad.sum())} such rows in all): "
                    f"give the label, or leave the {name} out"
                )

    def save(self, path: str | Path) -> None:
        """Writes the (view of the) dataset as one safetensors file whose header describes the fields."""
        positions = self._all()
        tensors: dict[str, Tensor] = {}
        for level in {"atom", *self.level.values()} - {"graph"}:
            tensors[f"ptr/{level}"] = self._rows(level, positions)[1]
        for key, value in self.fields.items():
            if isinstance(value, Tensor):
                tensors[f"field/{key}"] = self.column(key).contiguous()
            else:
                encoded = [value[i].encode() for i in positions.tolist()]
                text = bytearray(b"".join(encoded)) or bytearray(1)  # an empty buffer is refused
                tensors[f"string/{key}"] = torch.frombuffer(text, dtype=torch.uint8)
                tensors[f"size/{key}"] = torch.tensor([len(word) for word in encoded], dtype=torch.int32)
        header = {"format": _FORMAT, "level": json.dumps(self.level), "fields": json.dumps(list(self.fields))}
        save_file(tensors, str(path), header)

    @classmethod
    def load(cls, path: str | Path) -> "FlatDataset":
        """Opens what :meth:`save` wrote; the file is mapped into memory, not read.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not such a file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no dataset at {path}")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
        if header.get("format") != _FORMAT:
            raise ValueError(f"{path} holds no {_FORMAT}: write it with FlatDataset.save")
        level = json.loads(header["level"])
        fields: dict[str, Tensor | list[str]] = {}
        for key in json.loads(header["fields"]):
            fields[key] = tensors[f"field/{key}"] if f"field/{key}" in tensors else _decode(tensors, key)
        ptrs = {name[4:]: value for name, value in tensors.items() if name.startswith("ptr/")}
        return cls(fields, ptrs["atom"], ptrs=ptrs, level=level)

    def __repr__(self) -> str:
        fields = ", ".join(self.fields)
        return f"{type(self).__name__}({len(self)} graphs, {int(self.num_atoms.sum())} atoms: {fields})"

    def _copy(self) -> "FlatDataset":
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        return view

    def _field(self, name: str) -> Tensor | list[str]:
        if name not in self.fields:
            raise KeyError(f"no field {name!r}: there are {', '.join(sorted(self.fields))}")
        return self.fields[name]

    def _all(self) -> Tensor:
        return torch.arange(len(self)) if self.indices is None else self.indices

    def _position(self, index: int) -> int:
        """Where the graph lies in the storage."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"no graph {index}: the dataset has {len(self)}")
        index %= len(self)
        return index if self.indices is None else int(self.indices[index])

    def _positions(self, index: Indices) -> Tensor:
        if isinstance(index, slice):
            index = range(*index.indices(len(self)))
        chosen = torch.as_tensor(index if isinstance(index, Tensor | np.ndarray) else list(index))
        if chosen.dtype == torch.bool:
            if len(chosen) != len(self):
                raise IndexError(f"a mask of length {len(chosen)} for a dataset of {len(self)} graphs")
            chosen = chosen.nonzero().flatten()
        chosen = chosen.to("cpu", torch.int64)
        if len(chosen) and not (-len(self) <= int(chosen.min()) and int(chosen.max()) < len(self)):
            span = f"{int(chosen.min())} to {int(chosen.max())}"
            raise IndexError(f"graphs {span} asked for: the dataset has {len(self)}")
        chosen = chosen % max(len(self), 1)
        return chosen if self.indices is None else self.indices[chosen]

    def _rows(self, level: str, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the storage that belong to these graphs, and the ptr of the rows so gathered."""
        if level == "graph":
            return positions, torch.arange(len(positions) + 1)
        start = self.ptrs[level][positions]
        count = self.ptrs[level][positions + 1] - start
        ptr = torch.zeros(len(positions) + 1, dtype=torch.int64)
        torch.cumsum(count, 0, out=ptr[1:])
        rows = torch.arange(int(ptr[-1])) + torch.repeat_interleave(start - ptr[:-1], count)
        return rows, ptr

    def _get(self, position: int) -> Data:
        data = Data()
        for key, value in self.fields.items():
            start, end = self.ptrs[self.level[key]][position : position + 2].tolist()
            if isinstance(value, list):
                data[key] = value[position]
            else:
                data[key] = value.narrow(_cat_dim(key), start, end - start)
        return data

    def _batch(self, positions: Tensor) -> Batch:
        batch = GraphBatch(_base_cls=Data)
        levels = {"atom", *(self.level[key] for key in self.fields)}
        rows = {level: self._rows(level, positions) for level in levels}
        ptr = rows["atom"][1]
        zero = torch.zeros_like(ptr[:-1])
        slices: dict[str, Tensor] = {}
        increments: dict[str, Tensor | None] = {}
        for key, value in self.fields.items():
            chosen, slices[key] = rows[self.level[key]]
            increments[key] = zero
            if isinstance(value, list):
                batch[key], increments[key] = [value[i] for i in positions.tolist()], None
            elif "index" in key:
                increments[key] = ptr[:-1]
                offset = torch.repeat_interleave(ptr[:-1], slices[key].diff())
                batch[key] = value.index_select(-1, chosen) + offset
            else:
                batch[key] = value.index_select(0, chosen)
        batch.batch = torch.repeat_interleave(ptr.diff())
        batch.ptr = ptr
        batch._num_graphs, batch._slice_dict, batch._inc_dict = len(positions), slices, increments
        return batch


def _cat_dim(key: str) -> int:
    return -1 if "index" in key else 0  # PyG's rule


def _decode(tensors: Mapping[str, Tensor], key: str) -> list[str]:
    text = tensors[f"string/{key}"].numpy().tobytes()
    ends = tensors[f"size/{key}"].cumsum(0).tolist()
    return [text[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
