"""Compare the installed packages with the lower bounds of FastDraft, from their metadata, without importing them."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution, requires

from fastdraft.system.errors import DependencyError


def check_dependencies() -> None:
    """DependencyError if a required package is missing, or older than pyproject.toml allows.

    FastDraft's metadata has lines such as `torch>=2.11`, `orjson`, and `gradio>=6.30; extra == "play"`.
    """
    # Not packaging.requirements: its import takes 32 ms, that of packaging.specifiers 6 ms.
    from packaging.specifiers import SpecifierSet

    outdated = []
    for line in requires("fastdraft") or []:
        package, wanted, marker = re.fullmatch(r"([\w.-]+)([^;]*)(;.*)?", line).groups()  # type: ignore[union-attr]
        if marker:
            continue
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            outdated.append((line, f"{package} is not installed, wanted {line}"))
            continue
        if not SpecifierSet(wanted).contains(installed.version, prereleases=True):
            found = f"found {package} {installed.version} in {installed.locate_file('')}"
            outdated.append((line, f"{found}, wanted {line}"))
    if outdated:
        problems = "\n".join(problem for _, problem in outdated)
        packages = " ".join(f"'{line}'" for line, _ in outdated)
        raise DependencyError(f"{problems}\n  do: pip install --upgrade {packages}")
