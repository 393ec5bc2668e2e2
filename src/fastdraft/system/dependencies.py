"""The installed packages, compared with the oldest that FastDraft works with, from their metadata alone."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution, requires

from fastdraft.system.errors import DependencyError


def check_dependencies() -> None:
    """DependencyError if a package that every command needs is missing or older than pyproject.toml allows.

    The lines are those of FastDraft's own metadata: `torch>=2.11`, `orjson`, and `gradio>=6.30; extra == "play"`.
    """
    # packaging.requirements would read them too, but importing it takes 32 ms of the 45, packaging.specifiers 6.
    from packaging.specifiers import SpecifierSet

    outdated = []
    for line in requires("fastdraft") or []:
        package, wanted, marker = re.fullmatch(r"([\w.-]+)([^;]*)(;.*)?", line).groups()  # type: ignore[union-attr]
        if marker:
            continue
        try:
            found = distribution(package)
        except PackageNotFoundError:
            outdated.append((line, f"{package} is not installed, wanted {line}"))
            continue
        if not SpecifierSet(wanted).contains(found.version, prereleases=True):
            outdated.append((line, f"found {package} {found.version} in {found.locate_file('')}, wanted {line}"))
    if outdated:
        found_and_wanted = "\n".join(text for _, text in outdated)
        packages = " ".join(f"'{line}'" for line, _ in outdated)
        raise DependencyError(f"{found_and_wanted}\n  do: pip install --upgrade {packages}")
