"""The user's own networks: `package.module:Network`, imported from Python's path and the current folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import nn

from ..errors import UserError

__all__ = ["import_network"]


def import_network(name: str) -> nn.Module:
    """Build a network by calling `package.module:Network`, a class or function without required arguments.

    Importing runs the module's code: name only code that you trust.

    Raises:
        UserError: no such module or attribute, the import or the call fails, or the result is not an `nn.Module`.
    """
    module_name, _, attribute = name.partition(":")
    with _current_folder_importable():
        module = _import(module_name)
        factory = getattr(module, attribute, None)
        if factory is None:
            raise UserError(f"{module_name} has no {attribute}; {_offer(module)}")
        if not callable(factory):
            raise UserError(f"{name} is a {type(factory).__name__}, not a class or function; {_offer(module)}")
        try:
            network = factory()
        except Exception as error:
            raise UserError(
                f"{name}() failed ({type(error).__name__}: {error}); it must work without arguments: give each a "
                "default, or name a function that builds the network"
            ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{name}() returned a {type(network).__name__}, not a torch.nn.Module; {_offer(module)}")
    return network


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"there is no module {name}, neither in {Path.cwd()} nor among the installed packages; "
                "change to its folder, or install it"
            ) from error
        raise UserError(
            f"{name} cannot be imported ({type(error).__name__}: {error}); `python -c 'import {name}'` shows where"
        ) from error


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Put the current folder on the path, as `python -m` does; console scripts have their own folder there instead."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _offer(module: ModuleType) -> str:
    """The networks in `module`, for the error message."""
    classes = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
    return f"it has {', '.join(classes)}" if classes else "name a class or function that returns a torch.nn.Module"
