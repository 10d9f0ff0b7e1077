"""Ours against the peers, on the same inputs, in turns, in one run.

    make peers                                                    # builds the peers' environments
    python -m benchmarks --peers schnetpack nequip pyg --out benchmarks/speed.json
    python -m benchmarks.chart benchmarks/speed.json              # draws docs/benchmarks.png

Each model runs in a process of its own; while one works the others sleep. A round is a third of a second of steps
of each of them; the ratio is the median over the rounds of theirs / ours, so that a load that comes and goes meets
both. Besides the time on the clock the time of the processor is taken, which holds on a shared machine too.

Cases: ``ef``, a step of training with energies and forces of 10 aspirins; ``md``, energy and forces of one aspirin;
``water``, the same of 64 water molecules in a periodic box; ``qm9``, a step of training with energies of 64 molecules
of QM9. The neighbours (5 Å) are found beforehand and not timed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.cases import CASES, CUTOFF, Case
from benchmarks.environments import interpreter
from benchmarks.peers import peer, peer_names

ROOT = Path(__file__).parents[1]
MODES = ("eager", "compiled")
SECONDS = 0.33  # of a contestant's turn


class Process:
    """A :mod:`benchmarks.worker`, and what it measured."""

    def __init__(self, name: str, model: str, side: str, mode: str, folder: Path, threads: int, device: str) -> None:
        self.side, self.mode = side, mode
        python = sys.executable if side == "ours" else str(interpreter(name))
        settings = {
            "name": name, "model": model, "side": side, "mode": mode,
            "folder": str(folder), "threads": threads, "device": device,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL")},
        )
        self.rounds: list[dict[str, list[float]]] = []
        self.count = 1

    def ask(self, **order: Any) -> Any:
        """Sends an order, waits for the answer; a process that died answers so."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(order), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else {"error": f"the process ended with exit code {self.process.wait()}"}

    def prepare(self, case: str) -> dict[str, Any]:
        """Gets ready for a case."""
        self.rounds = []
        answer: dict[str, Any] = self.ask(do="prepare", case=case)
        if "error" not in answer:
            milliseconds = min(self.ask(do="run", case=case, steps=2)["wall"])
            self.count = max(1, min(100, round(1e3 * SECONDS / milliseconds)))
        return answer

    def turn(self, case: str) -> None:
        """Its part of a round."""
        answer = self.ask(do="run", case=case, steps=self.count)
        if "error" in answer:
            raise RuntimeError(f"{self.side} {self.mode}, {case}: {answer['error']}")
        self.rounds.append(answer)

    def medians(self, clock: str) -> list[float]:
        """Milliseconds per step of each round."""
        return [median(times[clock]) for times in self.rounds]

    def end(self) -> None:
        """Lets it go."""
        with self.process:  # closes the pipes and waits
            pass


def compare(
    name: str,
    model: str,
    cases: Sequence[str],
    modes: Sequence[str],
    folder: Path,
    threads: int,
    rounds: int,
    device: str,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """All cases of one of a peer's models, and the versions of both sides."""
    duel = peer(name).MODELS[model]
    theirs = [mode for mode in duel.modes if mode in modes] or list(duel.modes)
    sides = [(name, mode) for mode in theirs] + [("ours", mode) for mode in modes]
    processes = [Process(name, model, side, mode, folder, threads, device) for side, mode in sides]
    try:
        results = []
        for case in cases:
            if case in duel.cases:
                results.append({"peer": name, "model": model, "case": case, **_rounds(processes, case, rounds)})
                print(*lines(results[-1]), sep="\n", flush=True)
        versions = {process.side: process.ask(do="versions") for process in processes}
    finally:
        for process in processes:
            process.end()
    return results, versions


def _rounds(processes: list[Process], case: str, rounds: int) -> dict[str, Any]:
    answers = [process.prepare(case) for process in processes]
    ready = [process for process, answer in zip(processes, answers, strict=True) if "error" not in answer]
    for _ in range(rounds):
        for process in ready:
            process.turn(case)
    runs = []
    for process, answer in zip(processes, answers, strict=True):
        run = {"side": process.side, "mode": process.mode, **answer}
        if process in ready:
            run |= {
                "ms": round(median(process.medians("wall")), 3),
                "processor_ms": round(median(process.medians("processor")), 3),
                "steps": rounds * process.count,
            }
        runs.append(run)
    ratios = [
        {"theirs": theirs.mode, "ours": ours.mode, **_ratio(theirs, ours, runs)}
        for theirs in ready
        for ours in ready
        if ours.side == "ours" != theirs.side
    ]
    return {"runs": runs, "ratios": ratios}


def _ratio(theirs: Process, ours: Process, runs: list[dict[str, Any]]) -> dict[str, Any]:
    ratio: dict[str, Any] = {}
    for clock in ("wall", "processor"):
        pairs = zip(theirs.medians(clock), ours.medians(clock), strict=True)
        quotients = [a / b for a, b in pairs]
        ratio[clock] = round(median(quotients), 3)
        ratio[f"{clock}_range"] = [round(min(quotients), 3), round(max(quotients), 3)]
    a, b = (_run(runs, process.side, process.mode)["peak_mib"] for process in (theirs, ours))
    ratio["memory"] = round(a / b, 3) if a and b else None
    return ratio


def _run(runs: list[dict[str, Any]], side: str, mode: str) -> dict[str, Any]:
    return next(run for run in runs if (run["side"], run["mode"]) == (side, mode))


def lines(result: dict[str, Any]) -> list[str]:
    """The lines of the table of one case."""
    head = f"{result['peer']} {result['model']}, {result['case']}"
    rows = []
    for run in result["runs"]:
        name = f"  {run['side']} {run['mode']}"
        if "error" in run:
            rows.append(f"{name:24} {run['error']}")
            continue
        memory = "" if run["peak_mib"] is None else f"{run['peak_mib']:.0f}"
        row = f"{name:24}{run['ms']:10.2f}{run['processor_ms']:10.2f}{memory:>8}"
        row += f"{run['first_call_s']:8.1f}{run['parameters']:12,}"
        for ratio in result["ratios"]:
            if run["side"] == "ours" and ratio["ours"] == run["mode"]:
                row += f"   {ratio['wall']:.2f} ({ratio['processor']:.2f}) × {ratio['theirs']}"
        rows.append(row)
    columns = (
        f"{'ms':>{34 - len(head)}}{'cpu ms':>10}{'MiB':>8}{'1st s':>8}{'parameters':>12}   theirs / ours: clock (cpu)"
    )
    return [head + columns if len(head) < 30 else head + "\n" + " " * len(head) + columns, *rows]


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What it ran on."""
    information = Path("/proc/cpuinfo")
    names = (
        [line for line in information.read_text().splitlines() if "model name" in line] if information.exists() else []
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "machine": platform.machine(),
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", choices=peer_names(), default=peer_names(), metavar="PEER")
    parser.add_argument("--models", nargs="+", help="of the peers, by name; all if not given")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=list(MODES), help="of both sides, where a peer has them"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    args = parser.parse_args()
    document: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(args.device),
        "threads": args.threads,
        "rounds": args.rounds,
        "cutoff": CUTOFF,
        "cases": {},
        "versions": {},
        "results": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for name in args.cases:
            case = CASES[name]()
            case.save(folder / f"{name}.npz")
            document["cases"][name] = describe(case)
            print(f"{name}: {case.description}; {len(case.z)} atoms, {case.edge_index.shape[1]} edges")
        for name in args.peers:
            for model in peer(name).MODELS:
                if args.models and model not in args.models:
                    continue
                results, versions = compare(
                    name, model, args.cases, args.modes, folder, args.threads, args.rounds, args.device
                )
                document["results"] += results
                document["versions"] |= versions
                if args.out:  # each time: a run that is stopped keeps what it has
                    args.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def describe(case: Case) -> dict[str, Any]:
    """A case for the JSON."""
    edges = case.edge_index.shape[1]
    return {"description": case.description, "graphs": case.num_graphs, "atoms": len(case.z), "edges": edges}


if __name__ == "__main__":
    main()
