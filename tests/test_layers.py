"""Imports between packages go one way, and no modules import each other in a cycle."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
# In order: a package may import only packages before it.
PACKAGES = (
    *("system", "results", "config", "maths", "data", "models", "compatibility", "planning", "train", "init"),
    *("synthesize", "evaluation", "exporters", "benchmark", "pipeline", "report", "play", "demo", "cli", "__main__"),
)
MAY_IMPORT_TRANSFORMERS = {
    *("models", "compatibility", "train", "init", "synthesize", "evaluation", "exporters", "benchmark", "pipeline"),
    *("play", "demo"),
}
MATHS_IMPORTS = {"torch", "numpy", *sys.stdlib_module_names}


def _modules() -> dict[str, Path]:
    """The path of every module of fastdraft by its dotted name."""
    names = {path: path.relative_to(SOURCES).with_suffix("").parts for path in (SOURCES / "fastdraft").rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in sorted(names.items())}


MODULES = _modules()


def _imports(module: str, source: str, package: str | None = None) -> Iterator[str]:
    """The modules that a module imports, also within functions. Relative imports start from `package`, by default the
    module's own.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            origin = resolve_name(origin, package or module.rpartition(".")[0])
            inner = {f"{origin}.{alias.name}" for alias in node.names}
            yield from inner & MODULES.keys()
            if inner - MODULES.keys():
                yield origin


def _package(module: str) -> str | None:
    """The package of a module of fastdraft; None for `fastdraft` itself and for other distributions."""
    parts = module.split(".")
    return parts[1] if parts[0] == "fastdraft" and len(parts) > 1 else None


def _faults(module: str, imports: set[str]) -> list[str]:
    """The imports of a module that break the order."""
    home = _package(module)
    packages = {package for name in imports if (package := _package(name))}
    if unknown := ({home} | packages) - {None, *PACKAGES}:
        return [f"{module}: {', '.join(sorted(map(str, unknown)))}: a package is missing from the list"]
    tops = {name.partition(".")[0] for name in imports}
    # `fastdraft` itself is the Python API: it imports all packages but the command line, within its functions.
    allowed = PACKAGES[: PACKAGES.index(home) + 1 if home else PACKAGES.index("cli")]
    faults = [f"{module}: {package} does not stand before {home}" for package in sorted(packages - set(allowed))]
    if "transformers" in tops and home not in MAY_IMPORT_TRANSFORMERS:
        faults.append(f"{module}: {home} may not import transformers")
    if home == "maths" and (others := (tops - MATHS_IMPORTS - {"fastdraft"}) | (packages - {"maths"})):
        faults.append(f"{module}: maths may not import {', '.join(sorted(others))}")
    return faults


def _graph() -> dict[str, set[str]]:
    packages = {name: name for name, path in MODULES.items() if path.name == "__init__.py"}
    return {name: set(_imports(name, path.read_text(), packages.get(name))) for name, path in MODULES.items()}


def test_a_package_imports_only_packages_before_it() -> None:
    graph = _graph()
    assert len(graph) >= 15
    assert sum(_package(name) is not None for imports in graph.values() for name in imports) >= 15
    assert [fault for module, imports in graph.items() for fault in _faults(module, imports)] == []


def test_every_module_is_in_a_package() -> None:
    assert {path.name for path in (SOURCES / "fastdraft").glob("*.py")} == {"__init__.py", "__main__.py"}


def test_there_is_no_import_cycle() -> None:
    assert len(tuple(TopologicalSorter(_graph()).static_order())) >= 15


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("system.errors", "import fastdraft.config", "config does not stand before system"),
        ("system.errors", "from fastdraft import config", "config does not stand before system"),
        ("config.recipe", "from fastdraft import __version__, data", "data does not stand before config"),
        (
            "data.shards",
            "def late():\n    from fastdraft.pipeline.stages import STAGES",
            "pipeline does not stand before data",
        ),
        ("train.loop", "from ..cli import main", "cli does not stand before train"),
        ("data.shards", "import transformers.utils", "data may not import transformers"),
        ("cli", "from transformers import AutoModel", "cli may not import transformers"),
        ("maths.sampling", "import pydantic", "maths may not import pydantic"),
        ("maths.sampling", "from fastdraft.system.errors import UserError", "maths may not import system"),
        ("attic", "", "attic: a package is missing from the list"),
        ("cli", "import fastdraft.attic", "attic: a package is missing from the list"),
    ],
)
def test_the_guard_sees_a_bad_import(module: str, source: str, fault: str) -> None:
    module = f"fastdraft.{module}"
    assert _faults(module, set(_imports(module, source))) == [f"{module}: {fault}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli", "import json\nfrom fastdraft import __version__, pipeline, system"),
        (
            "train.loop",
            "from transformers import AutoModel\nfrom fastdraft.train import head\nfrom . import optimizers",
        ),
        ("maths.sampling", "import math\nimport torch.nn\nfrom fastdraft.maths import verification"),
        ("demo.build", "from fastdraft.data.document import Document"),
    ],
)
def test_the_guard_lets_a_good_import_pass(module: str, source: str) -> None:
    module = f"fastdraft.{module}"
    assert _faults(module, set(_imports(module, source))) == []


def test_the_guard_sees_a_cycle() -> None:
    graph = {
        **_graph(),
        "fastdraft.system.errors": set(_imports("fastdraft.system.errors", "from fastdraft import cli")),
    }
    with pytest.raises(CycleError, match="nodes are in a cycle"):
        TopologicalSorter(graph).prepare()
