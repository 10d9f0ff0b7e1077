"""What the verbs of the command line share: arguments, structures in, predictions of many, tables out."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import ase.io
import torch
from ase import Atoms
from torch_geometric.data import Batch, Data
from tqdm import tqdm

from pyg_equivariant.calculators.ase import check_elements
from pyg_equivariant.data.atoms import to_ase
from pyg_equivariant.data.files import read_file
from pyg_equivariant.data.molecule import from_smiles
from pyg_equivariant.data.transforms import RadiusGraph
from pyg_equivariant.potential import Predictor
from pyg_equivariant.typing import Prediction

__all__ = [
    "add_model_arguments",
    "add_structures",
    "load_model",
    "parser",
    "predictions",
    "read_graphs",
    "read_smiles",
    "read_structures",
    "table",
]

Kind = TypeVar("Kind", bound=Predictor)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples, one a line."""
    return argparse.ArgumentParser(
        prog=f"pyg-equivariant {name}",
        description=description,
        epilog="example:\n" + "\n".join(f"  pyg-equivariant {name} {line}" for line in example.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_arguments(parser: argparse.ArgumentParser, *, dtype: str | None = None) -> None:
    """Add MODEL, ``--device`` and ``--dtype``."""
    parser.add_argument("model", metavar="MODEL", help="folder or .safetensors file of a trained model")
    parser.add_argument("--device", default="cpu", help="such as cpu, cuda or cuda:1 (default: cpu)")
    default = dtype or "that of the file"
    parser.add_argument("--dtype", choices=list(DTYPES), default=dtype, help=f"of the weights (default: {default})")


def add_structures(parser: argparse.ArgumentParser, *, index: str) -> None:
    """Add FILE|SMILES and ``--index``."""
    parser.add_argument("structures", metavar="FILE|SMILES", help="a file of structures, or a SMILES string")
    parser.add_argument("--index", default=index, help=f"frames of the file, as ASE writes it (default: {index!r})")


def load_model(kind: type[Kind], args: argparse.Namespace) -> Kind:
    """The model that the command line names.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it is of another kind, or there is no such device.
    """
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    return kind.load(args.model, device=device, dtype=DTYPES[args.dtype] if args.dtype else None)


def read_structures(source: str, index: str) -> list[Atoms]:
    """The frames of a file that ``ase.io`` reads, as they are, or one conformer of a SMILES string.

    Raises:
        FileNotFoundError: if ``source`` is neither.
        ValueError: if the file cannot be read, or holds no such frame.
    """
    path = Path(source)
    if not path.is_file():
        return [atoms for graph in read_smiles(source) if isinstance(atoms := to_ase(graph), Atoms)]
    try:
        frames = ase.io.read(path, index=index)
    except Exception as error:  # its parsers raise errors of all kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: ASE cannot read its frames {index!r}: {reason}") from error
    frames = [frames] if isinstance(frames, Atoms) else list(frames)
    if not frames:
        raise ValueError(f"{path} has no frames {index!r}")
    return frames


def read_graphs(source: str, index: str) -> list[Data]:
    """The bare structures of a file, the SMILES of a ``.smi`` file (first word of each line), or one SMILES.

    Raises:
        FileNotFoundError: if ``source`` is neither.
        ValueError: if the file cannot be read, or a SMILES is none.
    """
    path = Path(source)
    if not path.is_file():
        return read_smiles(source)
    if path.suffix not in (".smi", ".smiles"):
        return read_file(path, index=index, labels=())
    lines = [(number, line.split()[0]) for number, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]
    graphs, failures = from_smiles([smiles for _, smiles in lines], seed=1)
    if failures:
        line, smiles = lines[failures[0].index]
        raise ValueError(f"{path}, line {line}: no graph can be made of {smiles!r}: {failures[0].reason}")
    return graphs


def read_smiles(source: str) -> list[Data]:
    """One conformer of a SMILES string, relaxed with MMFF94 where that has parameters.

    Raises:
        FileNotFoundError: if ``source`` looks more like the name of a file.
        ValueError: if it is no SMILES.
    """
    try:
        graphs = from_smiles(source, seed=1)
    except ValueError as error:
        if Path(source).suffix or Path(source).is_dir() or "/" in source:
            raise FileNotFoundError(f"there is no file {source} (and as a SMILES it cannot be read)") from error
        raise
    try:
        return from_smiles(source, seed=1, optimize=True)
    except ValueError as error:
        print(f"note: the conformer is not relaxed: {error}", file=sys.stderr)
        return graphs


def predictions(
    model: Predictor, samples: Sequence[Data], *, source: str, max_atoms: int = 512
) -> Iterator[tuple[Batch, Prediction]]:
    """What a model predicts for many graphs, a batch at a time, with a progress bar.

    Args:
        model: In evaluation mode.
        samples: Graphs without edges.
        source: What to call them in an error.
        max_atoms: In a batch; a larger graph is a batch of its own.

    Raises:
        ValueError: if a graph holds an element the model was not trained on.
    """
    for frame, data in enumerate(samples):
        check_elements(model.metadata.elements, data.z.numpy(), f"{source}, frame {frame}")
    transform = RadiusGraph(model.cutoff)
    device = next(model.parameters()).device
    with tqdm(total=len(samples), desc="predicting", unit="structure", disable=not sys.stderr.isatty()) as bar:
        for chunk in _chunks(samples, max_atoms):
            batch = Batch.from_data_list(chunk)
            with torch.no_grad():
                yield batch, model(transform(batch.to(device)))
            bar.update(len(chunk))


def _chunks(samples: Sequence[Data], max_atoms: int) -> Iterator[list[Data]]:
    chunk: list[Data] = []
    size = 0
    for data in samples:
        if chunk and size + len(data.z) > max_atoms:
            yield chunk
            chunk, size = [], 0
        chunk.append(data)
        size += len(data.z)
    if chunk:
        yield chunk


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a header: text to the left, numbers to the right, in four digits.

    Example:
        >>> print(table(["", "MAE"], [["energy", 1.25], ["forces", 12.5]]))
                 MAE
        energy  1.25
        forces  12.5
    """
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [all(not isinstance(row[column], str) for row in rows) for column in range(len(header))]
    lines = []
    for row in cells:
        columns = zip(row, widths, right, strict=True)
        padded = [cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in columns]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
