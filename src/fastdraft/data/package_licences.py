"""The packages that this project needs, directly or not, and whether their licence lets a model learn from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PERMISSIVE = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Python-2\.0|Zlib|HPND|0BSD|Unlicense)\b", re.I
)
RESTRICTIVE = re.compile(r"GPL|MPL|Mozilla|EUPL|CDDL|Proprietary|NVIDIA|Other/Proprietary", re.I)


class Package(NamedTuple):
    """An installed package that declares a permissive licence."""

    name: str
    version: str
    licence: str

    def python_files(self) -> Iterator[tuple[Path, str]]:
        """(where it lies, its name within the package)"""
        for file in metadata.files(self.name) or ():
            if file.suffix == ".py" and ".." not in file.parts:
                yield Path(str(file.locate())), str(file)


@cache
def licensed_packages(root: str = "fastdraft") -> tuple[Package, ...]:
    """The permissively licensed packages among everything that `root` needs, in name order."""
    found = (_package(name) for name in sorted(_closure(root)) if name != root)
    return tuple(package for package in found if package is not None)


def _package(name: str) -> Package | None:
    licence = _licence(metadata.metadata(name))
    permissive = PERMISSIVE.search(licence) and not RESTRICTIVE.search(licence)
    return Package(name, metadata.version(name), licence) if permissive else None


def _licence(fields: metadata.PackageMetadata) -> str:
    """The licence that a package declares: the SPDX expression, else its classifiers, else the field's first line."""
    if expressions := fields.get_all("License-Expression"):
        return str(expressions[0])
    classifiers = [c.split(" :: ")[-1] for c in fields.get_all("Classifier") or () if c.startswith("License ::")]
    return "; ".join(classifiers) or (str((fields.get_all("License") or [""])[0]).strip().splitlines() or [""])[0]


def _closure(root: str) -> set[str]:
    """Everything installed that `root` requires without extras, and so on down."""
    found: set[str] = set()
    waiting = [canonicalize_name(root)]
    while waiting:
        name = waiting.pop()
        try:
            requirements = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        needed = (Requirement(line) for line in requirements)
        waiting += [canonicalize_name(r.name) for r in needed if _applies(r) and canonicalize_name(r.name) not in found]
    return found


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
