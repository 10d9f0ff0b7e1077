"""No peer: our PaiNN on both sides. What the harness makes of equals, which should be 1."""

from typing import Any

from benchmarks.cases import CUTOFF
from benchmarks.peers import Duel
from benchmarks.steps import Contestant

REQUIREMENTS: list[str] = []


def _ours(painn: Any) -> Any:
    return painn(32, 2, cutoff=CUTOFF)


def _theirs(forces: bool, mode: str) -> Contestant:
    from benchmarks.ours import Ours
    from pyg_equivariant.models import PaiNN

    return Ours(_ours(PaiNN), forces, mode)


MODELS = {"PaiNN": Duel(_theirs, "PaiNN", _ours, ("eager", "compiled"))}
