"""Other people's networks: `package.module:Network`, imported from where Python looks and from the current folder."""

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
    """Call `package.module:Network`, a class or function that needs no arguments, for a fresh network.

    Importing runs that module: name only code that you trust.

    Raises:
        UserError: no such module or attribute, an import or a call that fails, or a result that is no `nn.Module`.
    """
    module_name, _, attribute = name.partition(":")
    with _current_folder_importable():
        module = _import(module_name)
        factory = getattr(module, attribute, None)
        if factory is None:
            raise UserError(f"{module_name} has no {attribute}; {_offer(module)}")
        if not callable(factory):
            raise UserError(
                f"{name} is a {type(factory).__name__}, which nobody can call for a network; {_offer(module)}"
            )
        try:
            network = factory()
        except Exception as error:
            raise UserError(
                f"{name}() failed ({type(error).__name__}: {error}); it must work without arguments: give each a "
                "default, or name a function that builds the network"
            ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{name}() is a {type(network).__name__} and no torch.nn.Module; {_offer(module)}")
    return network


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"there is no module {name}, neither in {Path.cwd()} nor among the installed packages; "
                "go to the folder that it is in, or install it"
            ) from error
        raise UserError(
            f"{name} cannot be imported ({type(error).__name__}: {error}); `python -c 'import {name}'` shows where"
        ) from error


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """As for `python -m`; the path of a console script begins at the script's own folder instead."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _offer(module: ModuleType) -> str:
    """What else of `module` might have been meant."""
    classes = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
    return f"it has {', '.join(classes)}" if classes else "name a class or function of it that makes a torch.nn.Module"
