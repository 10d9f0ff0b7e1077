"""The console command ``pyg-equivariant``: one line a verb here, the work elsewhere.

Nothing heavy is imported before a verb is known, so that ``--help`` answers at once.
"""

import difflib
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["main"]

RECIPES = Path(__file__).parent / "recipes"


class Verb(NamedTuple):
    """What a verb does, an example, and the module whose ``main(argv) -> int`` does it."""

    summary: str
    example: str
    module: str


_LIGHTNING = "pyg_equivariant.training.run"
VERBS = {
    "quickstart": Verb("from a SMILES to a force field and its dynamics", "quickstart", "pyg_equivariant.quickstart"),
    "fit": Verb("train, then test", "fit --config rmd17 --data.molecule aspirin", _LIGHTNING),
    "validate": Verb("errors on the validation set", "validate --config runs/rmd17/mine/config.yaml", _LIGHTNING),
    "test": Verb("errors on the test set", "test --config runs/rmd17/mine/config.yaml", _LIGHTNING),
    "predict": Verb("predict for a file or a SMILES", "predict MODEL molecules.sdf", "pyg_equivariant.verbs.predict"),
    "evaluate": Verb("errors on a labelled file", "evaluate MODEL labelled.xyz", "pyg_equivariant.verbs.evaluate"),
    "relax": Verb("the nearest minimum of the energy", "relax MODEL start.xyz", "pyg_equivariant.verbs.relax"),
    "md": Verb("molecular dynamics", "md MODEL start.xyz --temperature 300", "pyg_equivariant.verbs.md"),
    "models": Verb("table of the architectures", "models", "pyg_equivariant.verbs.models"),
    "report": Verb("report.html of a run", "report runs/rmd17/mine", "pyg_equivariant.verbs.report"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: Words after the name of the program; those of the process if not given.

    Returns:
        The exit status: 0, or 2 where the user's input was refused, or 130 where the user interrupted.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(importlib.import_module("pyg_equivariant").__version__)
        return 0
    verb, rest = argv[0], argv[1:]
    try:
        if verb not in VERBS:
            raise ValueError(f"no verb {verb!r}{_suggestion(verb, VERBS)}: pyg-equivariant --help lists them")
        module = _LIGHTNING if verb == "predict" and _names_a_config(rest) else VERBS[verb].module
        words = [verb, *_find_recipes(rest)] if module == _LIGHTNING else rest
        return int(importlib.import_module(module).main(words))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in ``pyg-equivariant models | head -1``
        sys.stdout = None
        return 141
    except (ValueError, LookupError, OSError, ImportError, RuntimeError) as error:
        if not _is_sentence(error):
            raise
        text = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
        print(f"pyg-equivariant {verb}: {text}", file=sys.stderr)
        return 2


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = []
    for name, verb in VERBS.items():
        lines += [f"  {name:{width}}  {verb.summary}", f"  {'':{width}}    pyg-equivariant {verb.example}"]
    return "\n".join(
        [
            "usage: pyg-equivariant VERB ...    (pyg-equivariant VERB --help for its options)",
            "",
            "Equivariant neural networks for molecules and materials: train, test, use.",
            "",
            *lines,
            "",
            f"Recipes for --config, by name or path: {', '.join(_recipes())}.",
        ]
    )


def _recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _suggestion(word: str, known: "Sequence[str] | dict[str, Verb]") -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _names_a_config(rest: Sequence[str]) -> bool:
    """Whether Lightning's ``predict --config ...`` is meant, not ``predict MODEL FILE``."""
    return any(word in ("-c", "--config") or word.startswith("--config=") for word in rest)


def _find_recipes(argv: Sequence[str]) -> list[str]:
    """Replaces the names of recipes after ``--config`` by their paths.

    Raises:
        FileNotFoundError: if there is neither a file nor a recipe of that name.
    """
    words = list(argv)
    for i, word in enumerate(words):
        if word in ("-c", "--config") and i + 1 < len(words):
            words[i + 1] = _find_recipe(words[i + 1])
        elif word.startswith("--config="):
            words[i] = f"--config={_find_recipe(word.removeprefix('--config='))}"
    return words


def _find_recipe(name: str) -> str:
    if Path(name).is_file():
        return name
    if name in _recipes():
        return str(RECIPES / f"{name}.yaml")
    raise FileNotFoundError(
        f"no file and no recipe is called {name!r}{_suggestion(name, _recipes())}: recipes are {', '.join(_recipes())}"
    )


def _is_sentence(error: BaseException) -> bool:
    """Whether an error was raised for the user to read: by this package itself, or by the operating system."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(__file__).parents[1]
    return bool(frames) and Path(frames[-1].filename).is_relative_to(own) and " " in str(error)


if __name__ == "__main__":
    sys.exit(main())
