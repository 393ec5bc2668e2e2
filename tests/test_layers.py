"""Imports flow one way: a room imports only rooms that stand above it, and no module reaches itself."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
ROOMS = (
    *(
        "errors",
        "processes",
        "stopping",
        "recipe",
        "recipe_yaml",
        "schema",
        "resolve",
        "run",
        "manifest",
        "progress",
        "dependencies",
        "extras",
        "precision",
        "ray_cluster",
        "energy",
        "records",
        "maths",
    ),
    *(
        "hub",
        "decoder",
        "target",
        "shape",
        "draft",
        "compatibility",
        "cost",
        "plan",
        "corpus",
        "train",
        "start",
        "synthesize",
        "evaluate",
        "bench",
    ),
    *("export", "artefacts", "demo", "stages", "search", "view", "report", "play", "cli", "__main__"),
)
KNOW_TRANSFORMERS = {
    "decoder",
    "target",
    "shape",
    "draft",
    "compatibility",
    "train",
    "start",
    "synthesize",
    "evaluate",
    "bench",
    "play",
    "export",
    "demo",
    "artefacts",
}
MATHS_IMPORTS = {"torch", "numpy", *sys.stdlib_module_names}


def _modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {path: path.relative_to(SOURCES).with_suffix("").parts for path in (SOURCES / "fastdraft").rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in sorted(names.items())}


MODULES = _modules()


def _imports(module: str, source: str, package: str | None = None) -> Iterator[str]:
    """The modules that a module imports, wherever in it; relative names count from `package`, or the one it is in."""
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


def _room(module: str) -> str | None:
    """The room of one of our modules; None for the package itself and for what others wrote."""
    parts = module.split(".")
    return parts[1] if parts[0] == "fastdraft" and len(parts) > 1 else None


def _faults(module: str, imports: set[str]) -> list[str]:
    """What a module imports against the plan of the house."""
    home = _room(module)
    rooms = {room for name in imports if (room := _room(name))}
    if strangers := ({home} | rooms) - {None, *ROOMS}:
        return [f"{module}: {', '.join(sorted(map(str, strangers)))}: a room is missing from the list"]
    tops = {name.partition(".")[0] for name in imports}
    allowed = ROOMS[: ROOMS.index(home) + 1] if home else ()
    faults = [f"{module}: {room} does not stand above {home}" for room in sorted(rooms - set(allowed))]
    if "transformers" in tops and home not in KNOW_TRANSFORMERS:
        faults.append(f"{module}: {home} may not know transformers")
    if home == "maths" and (others := (tops - MATHS_IMPORTS - {"fastdraft"}) | (rooms - {"maths"})):
        faults.append(f"{module}: maths may not import {', '.join(sorted(others))}")
    return faults


def _graph() -> dict[str, set[str]]:
    packages = {name: name for name, path in MODULES.items() if path.name == "__init__.py"}
    return {name: set(_imports(name, path.read_text(), packages.get(name))) for name, path in MODULES.items()}


def test_a_room_imports_only_rooms_above_it() -> None:
    graph = _graph()
    assert len(graph) >= 15
    assert sum(_room(name) is not None for imports in graph.values() for name in imports) >= 15
    assert [fault for module, imports in graph.items() for fault in _faults(module, imports)] == []


def test_no_module_reaches_itself() -> None:
    assert len(tuple(TopologicalSorter(_graph()).static_order())) >= 15


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("errors", "import fastdraft.run", "run does not stand above errors"),
        ("errors", "from fastdraft import run", "run does not stand above errors"),
        ("recipe", "from fastdraft import __version__, run", "run does not stand above recipe"),
        ("corpus.shards", "def late():\n    from fastdraft.stages import road", "stages does not stand above corpus"),
        ("train.loop", "from ..cli import main", "cli does not stand above train"),
        ("corpus.shards", "import transformers.utils", "corpus may not know transformers"),
        ("cli", "from transformers import AutoModel", "cli may not know transformers"),
        ("maths.law", "import pydantic", "maths may not import pydantic"),
        ("maths.law", "from fastdraft.errors import UserError", "maths may not import errors"),
        ("attic", "", "attic: a room is missing from the list"),
        ("cli", "import fastdraft.attic", "attic: a room is missing from the list"),
    ],
)
def test_the_guard_sees_a_bad_import(module: str, source: str, fault: str) -> None:
    module = f"fastdraft.{module}"
    assert _faults(module, set(_imports(module, source))) == [f"{module}: {fault}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli", "import json\nfrom fastdraft import __version__, errors, stages"),
        ("train.loop", "from transformers import AutoModel\nfrom fastdraft.train import head\nfrom . import optim"),
        ("maths.law", "import math\nimport torch.nn\nfrom fastdraft.maths import verify"),
        ("demo.build", "from fastdraft.corpus.document import Document"),
    ],
)
def test_the_guard_lets_a_good_import_pass(module: str, source: str) -> None:
    module = f"fastdraft.{module}"
    assert _faults(module, set(_imports(module, source))) == []


def test_the_guard_sees_a_circle() -> None:
    graph = {**_graph(), "fastdraft.errors": set(_imports("fastdraft.errors", "from fastdraft import cli"))}
    with pytest.raises(CycleError, match="nodes are in a cycle"):
        TopologicalSorter(graph).prepare()
