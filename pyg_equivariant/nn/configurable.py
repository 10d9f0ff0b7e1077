"""Modules that remember how they were built, so that JSON can describe them."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["Configurable", "build", "describe"]


class Configurable(nn.Module):
    """An ``nn.Module`` that keeps its constructor's arguments in ``init_args``.

    Arguments may be numbers, strings, ``None``, lists, dictionaries and other ``Configurable`` modules.
    :func:`describe` writes such a module as ``{"class_path": ..., "init_args": {...}}`` (the schema of
    LightningCLI) and :func:`build` reads it back.

    Example:
        >>> class Scale(Configurable):
        ...     def __init__(self, factor: float, power: int = 1) -> None:
        ...         super().__init__()
        >>> Scale(2.0).init_args
        {'factor': 2.0, 'power': 1}
    """

    init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if "init_args" not in self.__dict__:  # the outermost constructor runs first
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            arguments: dict[str, Any] = {}
            for name, value in list(bound.arguments.items())[1:]:
                kind = signature.parameters[name].kind
                arguments.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
            self.__dict__["init_args"] = arguments
        init(self, *args, **kwargs)

    return wrapper


def describe(value: Any) -> Any:
    """``value`` as what JSON can hold; a ``Configurable`` becomes its class path and arguments.

    Raises:
        TypeError: if an argument can be neither.
    """
    if isinstance(value, Configurable):
        cls = type(value)
        return {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "init_args": {name: describe(item) for name, item in value.init_args.items()},
        }
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a constructor argument of type {type(value).__name__} cannot be saved: pass a Configurable module"
    )


def build(description: Any) -> Any:
    """The inverse of :func:`describe`.

    Only classes of this package, or of modules the program has imported already, are built: a file must
    not decide which code is loaded.

    Raises:
        ValueError: if a class is unknown, is no ``Configurable`` or does not take the arguments.
    """
    if isinstance(description, dict) and set(description) == {"class_path", "init_args"}:
        cls = _find_class(description["class_path"])
        arguments = {name: build(item) for name, item in description["init_args"].items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ValueError(
                f"{description['class_path']} cannot be built from the saved arguments: {error}"
            ) from error
    if isinstance(description, dict):
        return {key: build(item) for key, item in description.items()}
    if isinstance(description, list):
        return [build(item) for item in description]
    return description


def _find_class(path: str) -> type[Configurable]:
    module_name, _, name = path.rpartition(".")
    if module_name.split(".")[0] == "pyg_equivariant":
        try:
            importlib.import_module(module_name)
        except ImportError as error:
            raise ValueError(f"no module {module_name}: was the file saved by a newer pyg_equivariant?") from error
    cls = getattr(sys.modules.get(module_name), name, None)
    if not (isinstance(cls, type) and issubclass(cls, Configurable)):
        raise ValueError(
            f"{path} is not a Configurable module that is imported here: import the module that defines it first"
        )
    return cls
