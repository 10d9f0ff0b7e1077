"""egnn-pytorch: EGNN by somebody else. Compared in ``tests/parity`` only: it has no models of molecules to be timed."""

from benchmarks.peers import Duel

REQUIREMENTS = ["egnn-pytorch==0.2.8", "einops==0.8.2"]

MODELS: dict[str, Duel] = {}
