"""What the documents say can be done: commands parse, links lead somewhere, the tree in the README is the tree."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

from fastdraft.cli import app
from fastdraft.errors import RecipeError
from fastdraft.resolve import resolve

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fastdraft"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(make|\.venv/bin/fastdraft|fastdraft) ")
PATH = re.compile(r"[\w./-]+(/|\.\w+)")
# Not of ours to check: a page on the web, a place on the same page.
ELSEWHERE = re.compile(r"https?:|mailto:|#")


def fenced(text: str) -> list[str]:
    """The lines of a document's fenced blocks."""
    return [line for block in FENCED.findall(text) for line in block.splitlines()]


def commands(text: str) -> list[str]:
    return [line for line in fenced(text) if COMMAND.match(line)]


def targets(makefile: str) -> set[str]:
    """The names that make can be asked for."""
    rules = re.findall(r"^([^\s:#=][^:#=\n]*):(?!=)", makefile, re.MULTILINE)
    return {name for rule in rules for name in rule.split()} - {".PHONY"}


def command_fault(line: str) -> str | None:
    """What is wrong with a command, if anything is."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        unknown = set(arguments) - targets((ROOT / "Makefile").read_text())
        return f"the Makefile has no {', '.join(sorted(unknown))}" if unknown else None
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        if arguments[0] not in command.commands:
            return f"no command `{arguments[0]}`"
        command = command.commands[arguments.pop(0)]
    try:
        given = command.make_context(command.name, arguments).params
    except Exception as error:  # typer carries click inside, whose errors have no public name
        return f"{type(error).__name__}: {error}"
    recipe = given.get("recipe")
    if recipe is None or str(recipe) == "RECIPE":
        return None
    try:
        resolve(ROOT / recipe, given.get("overrides") or [])
    except RecipeError as error:
        return str(error)
    return None


def links(text: str) -> Iterator[str]:
    """Where a document's links lead, within the repository."""
    for place in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(FENCED, "", text)):
        if not ELSEWHERE.match(place):
            yield place.partition("#")[0]


def tree(text: str) -> list[str]:
    """The paths that the tree in the README names: a first block that begins with recipes/, indented by its folders."""
    block = next(block for block in FENCED.findall(text) if block.startswith("recipes/"))
    found, inside = [], ""
    for line in block.splitlines():
        names = list(takewhile(PATH.fullmatch, re.split(r"\s{2,}", line.strip())[0].split()))
        folder = inside if line.startswith(" ") else ""
        found += [folder + name for name in names]
        inside = inside if line.startswith(" ") else names[0]
    return found


def rooms(package: Path) -> set[str]:
    """The top-level rooms of the package: modules, and folders with a module in them."""
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    return modules | {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}


def test_every_command_can_be_given():
    found = [(path.name, line) for path in DOCUMENTS for line in commands(path.read_text())]
    assert len(found) >= 6
    faults = [(name, line, fault) for name, line in found if (fault := command_fault(line))]
    assert faults == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("make tea", "the Makefile has no tea"),
        ("make test tea   # with", "the Makefile has no tea"),
        ("fastdraft walk", "no command `walk`"),
        (".venv/bin/fastdraft recipe bake recipes/demo.yaml", "no command `bake`"),
        ("fastdraft run recipes/demo.yaml --untill align", "--untill"),
        ("fastdraft run", "Missing parameter: recipe"),
        ("fastdraft run recipes/none.yaml", "no such file"),
        ("fastdraft run recipes/demo.yaml pretrain.tokens=5", "pretrain.tokens: no such key"),
        ("fastdraft run recipes/demo.yaml seed=many", "found many, wanted a whole number"),
    ],
)
def test_the_guard_sees_a_bad_command(line, fault):
    assert commands(f"```\n{line}\n```\n") == [line]
    assert fault in (command_fault(line) or "")


@pytest.mark.parametrize(
    "line", ["make demo   # why", "fastdraft align RECIPE", "fastdraft run recipes/demo.yaml seed=3 --until align"]
)
def test_the_guard_lets_a_good_command_pass(line):
    assert command_fault(line) is None


def test_every_link_leads_to_a_file():
    found = [(path, place) for path in DOCUMENTS for place in links(path.read_text())]
    assert len(found) >= 3
    assert [(path.name, place) for path, place in found if not (path.parent / place).exists()] == []


def test_the_guard_sees_links():
    text = "[a](b.md) and [c](d.md#e), not [web](https://x.y) nor [here](#top)\n```\n[code](f.md)\n```\n"
    assert list(links(text)) == ["b.md", "d.md"]


def test_the_tree_of_the_readme_is_the_tree():
    paths = tree((ROOT / "README.md").read_text())
    assert len(paths) >= 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    named = {path.removeprefix("src/fastdraft/") for path in paths if path.startswith("src/fastdraft/")}
    assert len(rooms(PACKAGE)) >= 15
    assert sorted(rooms(PACKAGE) - named) == []


def test_the_guard_sees_names_and_rooms(tmp_path):
    text = "```\nmake\n```\n```\nrecipes/   what\nsrc/x/\n  a.py b.py both\n  c/   a room\ndocs/   d.md, e.md\n```\n"
    assert tree(text) == ["recipes/", "src/x/", "src/x/a.py", "src/x/b.py", "src/x/c/", "docs/"]
    (tmp_path / "attic").mkdir()
    for name in ("__init__.py", "late.py", "attic/__init__.py"):
        (tmp_path / name).touch()
    assert rooms(tmp_path) == {"late.py", "attic/"}


def test_the_guard_sees_rules():
    assert targets("A := b\nC ?= d\n.PHONY: x\nx: y\n\tz: not\nu v: w\n") == {"x", "u", "v"}
