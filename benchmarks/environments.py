"""The peers' environments: ``python -m benchmarks.environments [PEER ...]`` (``make peers``) builds them.

Each peer lives in ``benchmarks/.envs/<peer>``, a virtual environment that holds the peer and what only it needs, and
takes everything else, torch above all, from the environment that runs this script: both sides run the same torch, byte
for byte, and nothing that a peer asks for can replace it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks.peers import Peer, peer, peer_names

ENVIRONMENTS = Path(__file__).parent / ".envs"


def interpreter(name: str) -> Path:
    """The Python of a peer's environment; ours, if it needs nothing of its own.

    Raises:
        FileNotFoundError: if it has not been built, or for other requirements than the peer has now.
    """
    if not peer(name).REQUIREMENTS:
        return Path(sys.executable)
    folder = ENVIRONMENTS / name
    if _built(folder) != _wanted(peer(name)):
        raise FileNotFoundError(
            f"the environment of {name} is not there, or not up to date: run `make peers PEERS={name}`"
        )
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def make(name: str) -> None:
    """Builds a peer's environment, unless it is there."""
    module, folder = peer(name), ENVIRONMENTS / name
    if not module.REQUIREMENTS:
        print(f"{name}: needs nothing beyond ours")
        return
    if _built(folder) == _wanted(module):
        print(f"{name}: up to date")
        return
    if folder.exists():
        shutil.rmtree(folder)
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = ["install", "--quiet", "--no-deps", "--ignore-requires-python", *module.REQUIREMENTS]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    ours = sysconfig.get_path("purelib")
    theirs = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # what a .pth adds comes after the folder that holds it: the peer's own packages win
    (Path(theirs) / "ours.pth").write_text(f"{ours}\n")
    (folder / "requirements.txt").write_text(_wanted(module))
    print(f"{name}: {folder}")


def _wanted(module: Peer) -> str:
    return "".join(f"{line}\n" for line in [f"# on top of {sys.prefix}", *module.REQUIREMENTS])


def _built(folder: Path) -> str:
    file = folder / "requirements.txt"
    return file.read_text() if file.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", help=f"of {', '.join(peer_names())}; all if not given")
    for name in parser.parse_args().peers or peer_names():
        make(name)


if __name__ == "__main__":
    main()
