"""``pyg-equivariant models``: table of the architectures."""

import json
from collections.abc import Sequence

import pyg_equivariant.models
from pyg_equivariant.models.base import Representation
from pyg_equivariant.verbs import common

__all__ = ["architectures", "main"]

HEADER = ("name", "group", "lmax", "channels", "cutoff (Å)", "parameters", "paper")


def architectures() -> list[type[Representation]]:
    """All architectures, in the order of ``models.__all__``."""
    return [getattr(pyg_equivariant.models, name) for name in pyg_equivariant.models.__all__]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    parser = common.parser("models", (__doc__ or "").partition(": ")[2], "--json")
    parser.add_argument("--json", action="store_true", help="as JSON, for other programs")
    args = parser.parse_args(argv)
    rows = [_row(architecture) for architecture in architectures()]
    if args.json:
        print(json.dumps([dict(zip(HEADER, row, strict=True)) for row in rows], indent=2, ensure_ascii=False))
    else:
        print(common.table(HEADER, rows))
        print("\nAs built without arguments, the paper's usual settings. --model.representation NAME trains one.")
    return 0


def _row(architecture: type[Representation]) -> list[object]:
    model = architecture()  # type: ignore[call-arg]  # every architecture can be built without arguments
    count = sum(parameter.numel() for parameter in model.parameters())
    paper = str(getattr(architecture, "paper", ""))
    return [architecture.__name__, model.group, model.lmax, model.channels, model.cutoff, count, paper]
