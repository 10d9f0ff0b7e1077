"""What one waits for: imports, the command line's help, compiling, data.

    python -m benchmarks.startup --out benchmarks/startup.json

Each is a fresh process. Compiling is the first step of training with energies and forces, in an empty cache of torch's
compiler, its compiled headers included, and then in the cache that this left behind. Data are QM9, from the package
qm9pack to graphs that can be trained on, in an empty cache of ours, and then an epoch of batches of 64 with their
edges, made by one worker.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

IMPORTS = {
    "import torch_geometric": "import torch_geometric",
    "import torch_geometric, pyg_equivariant": "import torch_geometric, pyg_equivariant",
    "and its models, data and potential": (
        "import torch_geometric, pyg_equivariant.models, pyg_equivariant.data, pyg_equivariant.potential"
    ),
}
MODELS = ["PaiNN", "SchNet", "NequIP", "TensorNet", "EquivariantTransformer", "DimeNetPlusPlus", "ViSNet"]
HELP = "from pyg_equivariant.training.cli import main; import sys; sys.argv = ['pyg-equivariant', '--help']; main()"
COMPILE = """
import time
import torch
import pyg_equivariant.models
from benchmarks.cases import CASES, CUTOFF
from benchmarks.ours import Ours
from benchmarks.steps import make_step

torch.set_num_threads(1)
step = make_step(Ours(pyg_equivariant.models.{model}(cutoff=CUTOFF), mode={mode!r}), CASES["ef"]())
start, processor = time.perf_counter(), time.process_time()
step()
print(time.perf_counter() - start)
"""

DATA = """
import time
from pyg_equivariant.data import QM9DataModule

start = time.perf_counter()
data = QM9DataModule(batch_size=64, num_workers=1)
data.prepare_data()
data.setup()
ready = time.perf_counter() - start
batches = iter(data.train_dataloader())
next(batches)
start = time.perf_counter()
count = sum(batch.num_graphs for batch in batches)
print(ready, count / (time.perf_counter() - start))
"""


def run(code: str, **environment: str) -> tuple[float, float, str]:
    """Seconds on the clock and of the processor (children included) that a program takes, and what it prints."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, processor, output


def imports(rounds: int) -> dict[str, dict[str, float]]:
    """Medians, the programs in turns."""
    programs = {**IMPORTS, "pyg-equivariant --help": HELP}
    times: dict[str, list[tuple[float, float, str]]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, code in programs.items():
            times[name].append(run(code))
    return {
        name: {
            "seconds": round(median(values[0] for values in measured[1:]), 3),  # the first one warmed the disk's cache
            "processor_seconds": round(median(values[1] for values in measured[1:]), 3),
        }
        for name, measured in times.items()
    }


def compiling(model: str) -> dict[str, dict[str, float]]:
    """First step of a model: eager, compiled, compiled again."""
    result = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, mode in (("eager", "eager"), ("compiled", "compiled"), ("compiled, from the cache", "compiled")):
            folders = {"TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache}
            _, processor, output = run(COMPILE.format(model=model, mode=mode), **folders)
            first = round(float(output.split()[-1]), 2)
            result[name] = {"first_step_seconds": first, "process_processor_seconds": round(processor, 2)}
    return result


def data() -> dict[str, float]:
    """QM9, from nothing, and the rate of its loader."""
    with tempfile.TemporaryDirectory() as cache:
        _, processor, output = run(DATA, PYG_EQUIVARIANT_CACHE=cache)
    ready, rate = (float(word) for word in output.split()[-2:])
    return {
        "ready_seconds": round(ready, 1),
        "molecules_per_second_and_worker": round(rate),
        "process_processor_seconds": round(processor, 1),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=MODELS, help="whose compiling is timed")
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    from benchmarks.__main__ import hardware

    document: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.startup", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("pyg_equivariant", "torch", "torch_geometric")},
        "imports": imports(args.rounds),
        "compiling": {},
    }
    for name, values in document["imports"].items():
        print(f"{name:42}{values['seconds']:8.2f} s{values['processor_seconds']:8.2f} s of the processor")
    for model in args.models:
        document["compiling"][model] = compiling(model)
        for name, values in document["compiling"][model].items():
            print(
                f"{model + ', first step, ' + name:42}{values['first_step_seconds']:8.2f} s"
                f"{values['process_processor_seconds']:8.2f} s of the processor, all of the process"
            )
    document["qm9"] = data()
    print(
        f"QM9 is ready after {document['qm9']['ready_seconds']} s; a worker feeds "
        f"{document['qm9']['molecules_per_second_and_worker']:,} molecules a second"
    )
    if args.out:
        args.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
