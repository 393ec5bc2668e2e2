"""Optional packages: imported here, or an error that says what to install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from fastdraft.system.errors import MissingExtra


def need(module: str, extra: str) -> ModuleType:
    """An optional package's module; MissingExtra, which names the pip line, where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(f"{module} cannot be imported: {error}\n  do: pip install 'fastdraft[{extra}]'") from error
