"""Import of optional packages, with an error that gives the pip command."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from fastdraft.system.errors import MissingExtra


def need(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package; MissingExtra with the pip command if it cannot be imported."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(f"{module} cannot be imported: {error}\n  do: pip install 'fastdraft[{extra}]'") from error
