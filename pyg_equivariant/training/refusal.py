"""From jsonargparse's trees of failed alternatives to one sentence."""

import difflib
import inspect
import re

import pytorch_lightning as pl

from pyg_equivariant.data import MolecularDataModule
from pyg_equivariant.nn.configurable import Configurable
from pyg_equivariant.training.losses import Error, WeightedLoss
from pyg_equivariant.training.schedules import Schedule
from pyg_equivariant.training.task import Task

__all__ = ["Refused", "innermost", "sentence"]

_BORING = re.compile(
    "Parser key|Does not validate|Subtypes:|Errors:|Given value|Problem with given class_path"
    "|Expected a <class 'NoneType'>"
)
_WORD = re.compile(r"(?:[oO]ption|[kK]ey) '([\w.]+)'|[pP]ath string: (\w+)|arguments: --([\w.]+)")


class Refused(Exception):
    """What jsonargparse has to say about an option."""


def innermost(error: BaseException) -> BaseException:
    """What a constructor raised, from inside what jsonargparse made of it."""
    while str(error).startswith("Does not validate") and error.__cause__ is not None:
        error = error.__cause__
    return error


def sentence(refusal: str) -> str:
    r"""The one thing that matters in jsonargparse's tree of failed alternatives: which option, and why.

    Example:
        >>> print(sentence("Parser key \"model\":\n Errors:\n - Option 'lrr' is not accepted"))
        model: option 'lrr' is not accepted, did you mean 'lr'?
    """
    keys = re.findall(r'Parser key "([^"]+)"', refusal)
    nested = re.findall(r"NestedArg\(key='([^']+)'", refusal)
    path = f"{keys[0]}.{nested[-1]}" if keys and nested else ".".join(keys)
    lines = [line.strip(" -") for line in refusal.splitlines()]
    telling = [line for line in lines if line and not _BORING.match(line)] or lines[-1:]
    if "while parsing" in refusal:  # YAML's own words
        return " ".join(lines)
    reason = telling[-1][0].lower() + telling[-1][1:]
    for old, new in (("<class '", ""), ("'>", ""), (" a int", " an int")):
        reason = reason.replace(old, new)
    word = _WORD.search(reason)
    name = next((group for group in word.groups() if group), "").split(".")[-1] if word else ""
    if "path string" in reason:
        reason = f"there is no class {name}"
    close = [known for known in difflib.get_close_matches(name, _known_words(), n=1) if known != name]
    return f"{path}: {reason}"[2 * (not path) :] + (f", did you mean {close[0]!r}?" if close else "")


def _known_words() -> list[str]:
    """Names of our classes, and of the options of theirs and of Lightning's trainer."""
    words = {name for name in inspect.signature(pl.Trainer).parameters}
    classes: list[type] = [Task, MolecularDataModule, Configurable, Error, WeightedLoss, Schedule]
    for cls in classes:  # grows while it is read
        classes.extend(cls.__subclasses__())
        words |= {cls.__name__, *inspect.signature(cls).parameters}
    return sorted(words)
