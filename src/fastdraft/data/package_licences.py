"""The direct and indirect dependencies of this project whose licence permits training on their source code."""

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
        """(path on disk, name within the package)"""
        for file in metadata.files(self.name) or ():
            if file.suffix == ".py" and ".." not in file.parts:
                yield Path(str(file.locate())), str(file)


@cache
def licensed_packages(root: str = "fastdraft") -> tuple[Package, ...]:
    """The permissively licensed packages among all dependencies of `root`, in name order."""
    names = sorted(_dependencies(root) - {root})
    packages = (Package(name, metadata.version(name), _licence(metadata.metadata(name))) for name in names)
    return tuple(p for p in packages if PERMISSIVE.search(p.licence) and not RESTRICTIVE.search(p.licence))


def _licence(fields: metadata.PackageMetadata) -> str:
    """The declared licence: the SPDX expression, else the classifiers, else the first line of the `License` field."""
    if expressions := fields.get_all("License-Expression"):
        return str(expressions[0])
    classifiers = [c.split(" :: ")[-1] for c in fields.get_all("Classifier") or () if c.startswith("License ::")]
    return "; ".join(classifiers) or (str((fields.get_all("License") or [""])[0]).strip().splitlines() or [""])[0]


def _dependencies(root: str) -> set[str]:
    """`root` and all installed packages that it requires without extras, directly or not."""
    installed: set[str] = set()
    pending = [canonicalize_name(root)]
    while pending:
        name = pending.pop()
        try:
            requirements = [Requirement(line) for line in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        installed.add(name)
        required = {
            canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})
        }
        pending += required - installed
    return installed
