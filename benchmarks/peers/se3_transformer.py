"""se3-transformer-pytorch: SE(3)-Transformer by somebody else. Compared in ``tests/parity`` only."""

from benchmarks.peers import Duel

REQUIREMENTS = ["se3-transformer-pytorch==0.9.0", "einops==0.8.2"]

MODELS: dict[str, Duel] = {}
