"""One side of a comparison, in a process of its own: obeys JSON lines on its input, answers on its output."""

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.peers import Duel, peer
from benchmarks.steps import Contestant, make_step, measure, peak_memory


class Worker:
    """The models of one side (``"ours"`` or the peer's), one with forces and one without, built when first needed."""

    def __init__(self, name: str, model: str, side: str, mode: str, folder: Path, device: str) -> None:
        self.peer, self.duel, self.side, self.mode = name, peer(name).MODELS[model], side, mode
        self.folder, self.device = folder, device
        self.contestants: dict[tuple[bool, bool], Contestant] = {}
        self.steps: dict[str, Callable[[], object]] = {}

    def prepare(self, case: str) -> dict[str, Any]:
        """Builds the step of a case; says what it cost and needs."""
        start = time.perf_counter()
        inputs = Case.load(self.folder / f"{case}.npz", self.device)
        kind = inputs.with_forces, inputs.train
        if kind not in self.contestants:
            torch.manual_seed(0)
            self.contestants[kind] = contestant_of(self.duel, self.side, *kind, self.mode, self.device)
        contestant = self.contestants[kind]
        step = self.steps[case] = make_step(contestant, inputs)
        energy, forces = step()
        first = time.perf_counter() - start
        if energy.shape != (inputs.num_graphs,) or (forces is None) == inputs.with_forces:
            raise ValueError(f"energies of shape {tuple(energy.shape)}, {'no' if forces is None else 'some'} forces")
        if not energy.isfinite().all() or (forces is not None and not forces.isfinite().all()):
            raise ValueError("the prediction is not finite")
        measure(step, 2, self.device)
        return {
            "first_call_s": round(first, 2),
            "parameters": contestant.parameters,
            "peak_mib": peak_memory(step, self.device),
        }

    def run(self, case: str, steps: int) -> dict[str, list[float]]:
        """Times so many steps."""
        return measure(self.steps[case], steps, self.device)._asdict()

    def versions(self) -> dict[str, str]:
        """Of all that is imported."""
        installed = packages_distributions()
        names = {name for module in sys.modules if "." not in module for name in installed.get(module, [])}
        return {"python": platform.python_version()} | {name: version(name) for name in sorted(names)}


def contestant_of(duel: Duel, side: str, forces: bool, train: bool, mode: str, device: str) -> Contestant:
    """One side's model."""
    if side != "ours":
        contestant = duel.theirs(forces, mode)
        contestant.model.to(device)
        return contestant
    from benchmarks.ours import Ours
    from pyg_equivariant import models

    if not hasattr(models, duel.ours):
        raise LookupError(f"there is no {duel.ours} in pyg_equivariant.models")
    return Ours(duel.build(getattr(models, duel.ours)), forces, mode, train=train, device=device)


def main() -> None:
    """Answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings.pop("threads"))
    worker = Worker(**settings | {"folder": Path(settings["folder"])})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
