"""What the verbs of the command line share: arguments, structures in, tables out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import ase.io
import torch
from ase import Atoms

from pyg_equivariant.data import from_smiles, to_ase
from pyg_equivariant.potential import Potential

__all__ = ["add_model_arguments", "add_structures", "device_of", "load_potential", "parser", "read_structures", "table"]

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help ends with an example."""
    return argparse.ArgumentParser(
        prog=f"pyg-equivariant {name}",
        description=description,
        epilog="example:\n" + "\n".join(f"  pyg-equivariant {name} {line}" for line in example.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_arguments(parser: argparse.ArgumentParser, *, dtype: str | None) -> None:
    """Add MODEL, ``--device`` and ``--dtype``."""
    parser.add_argument("model", metavar="MODEL", help="folder or .safetensors file of a trained model")
    parser.add_argument("--device", default="cpu", help="such as cpu, cuda or cuda:1 (default: cpu)")
    explained = f"default: {dtype}" if dtype else "default: that of the file"
    parser.add_argument("--dtype", choices=list(DTYPES), default=dtype, help=f"precision of the model ({explained})")


def add_structures(parser: argparse.ArgumentParser, *, index: str) -> None:
    """Add FILE|SMILES and ``--index``."""
    parser.add_argument("structures", metavar="FILE|SMILES", help="anything ase.io reads, or a SMILES string")
    parser.add_argument(
        "--index", default=index, help=f"which frames of the file, in ASE's notation (default: {index!r})"
    )


def read_structures(source: str, index: str = ":") -> list[Atoms]:
    """The frames of a file, or one conformer of a SMILES string.

    Raises:
        FileNotFoundError: if ``source`` looks like a path and there is no such file.
        ValueError: if the file cannot be read, holds no such frame, or the SMILES is not one.
    """
    path = Path(source)
    if path.is_file():
        try:
            frames = ase.io.read(path, index=index)
        except (ValueError, KeyError, IndexError, StopIteration, OSError, ase.io.formats.UnknownFileTypeError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ValueError(f"{path}: ASE cannot read frames {index!r} of it: {reason}") from error
        frames = [frames] if isinstance(frames, Atoms) else list(frames)
        if not frames:
            raise ValueError(f"{path}: no frames {index!r} in it")
        return frames
    try:
        return [to_ase(graph) for graph in from_smiles(source)]
    except ValueError as error:
        if path.suffix or path.is_dir():
            raise FileNotFoundError(f"{source}: no such file (and no SMILES)") from error
        raise


def device_of(name: str) -> torch.device:
    """The device called ``name``.

    Raises:
        ValueError: if there is no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a header, numbers to the right.

    Example:
        >>> print(table(["", "MAE"], [["energy", 1.25], ["forces", 12.5]]))
                 MAE
        energy  1.25
        forces  12.5
    """
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def load_potential(args: argparse.Namespace) -> Potential:
    """The potential that the command line names.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it is no potential, or there is no such device.
    """
    dtype = DTYPES[args.dtype] if args.dtype else None
    return Potential.load(args.model, device=device_of(args.device), dtype=dtype)
