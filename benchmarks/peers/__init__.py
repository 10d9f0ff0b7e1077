"""What users would pick instead: one file a peer.

Each file has ``REQUIREMENTS`` (what its environment needs beyond ours, see :mod:`benchmarks.environments`) and
``MODELS``, by name: how the peer's model is built, and ours of the same size. The peer's package is imported when its
model is built, in its own environment; ours likewise in ours.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from benchmarks.steps import Contestant
    from pyg_equivariant.models.base import Representation


class Duel(NamedTuple):
    """A peer's model and ours.

    Attributes:
        theirs: Builds the peer's; with forces or without, in one of its modes.
        ours: Name of the class in ``pyg_equivariant.models``.
        build: Builds ours from that class.
        modes: How the peer can run.
        cases: What the peer can do.
    """

    theirs: "Callable[[bool, str], Contestant]"
    ours: str
    build: "Callable[[type[Representation]], Representation]"
    modes: tuple[str, ...] = ("eager",)
    cases: tuple[str, ...] = ("ef", "md", "water", "qm9")


class Peer(Protocol):
    """A module of this package."""

    REQUIREMENTS: list[str]
    MODELS: dict[str, Duel]


def peer_names() -> list[str]:
    """All peers."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def peer(name: str) -> Peer:
    """One of them."""
    return cast(Peer, importlib.import_module(f"{__name__}.{name}"))
