"""The documentation is correct: its commands parse, its links lead somewhere, its source tree is the source tree."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fastdraft.cli import app
from fastdraft.config.resolve import resolve
from fastdraft.config.schema import fields_of, type_at
from fastdraft.system.errors import RecipeError

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fastdraft"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = ROOT / "docs" / "commands.md"
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
OF_LANGUAGE = r"^```{}\n(.*?)^```"
PROGRAM: Any = typer.main.get_command(app)
# A command at the beginning of a line, or after a launcher that names it as a module.
COMMAND = re.compile(r"make |(?:.*\s)?(?:\.venv/bin/|-m )?fastdraft ")
# Code in running text that begins like a command. There required arguments may be missing.
SPAN = re.compile(r"(?<!`)`((?:\.venv/bin/)?fastdraft [^`]+)`(?!`)")
PATH = re.compile(r"[\w./-]+(/|\.\w+)")
# Not checked here: pages on the web and anchors on the same page.
EXTERNAL = re.compile(r"https?:|mailto:|#")


def fenced(text: str) -> list[str]:
    """The lines of a document's fenced blocks."""
    return [line for block in FENCED.findall(text) for line in block.splitlines()]


def commands(text: str) -> list[str]:
    """The commands of a document's fenced blocks; lines that a backslash continues are joined."""
    whole = re.sub(r"[ ]*\\\n\s*", " ", text)
    # `[--out FOLDER]` is kept without its brackets, `[KEY=VALUE ...]` is dropped.
    whole = re.sub(r" \[(--[^\]]+)\]", r" \1", whole)
    whole = re.sub(r" \[[^\]]*=[^\]]*\.\.\.\]", "", whole)
    return [line for line in fenced(whole) if COMMAND.match(line)]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(OF_LANGUAGE.format(language), text, re.MULTILINE | re.DOTALL)


def targets(makefile: str) -> set[str]:
    """The targets of a Makefile."""
    rules = re.findall(r"^([^\s:#=][^:#=\n]*):(?!=)", makefile, re.MULTILINE)
    return {name for rule in rules for name in rule.split()} - {".PHONY"}


def command_fault(line: str, whole: bool = True) -> str | None:
    """What is wrong with a command, or None. If it is not `whole`, required arguments may be missing."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        unknown = set(arguments) - targets((ROOT / "Makefile").read_text())
        return f"the Makefile has no {', '.join(sorted(unknown))}" if unknown else None
    arguments = arguments[arguments.index("fastdraft") + 1 :] if "fastdraft" in arguments else arguments
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    command = PROGRAM
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        if arguments[0] not in command.commands:
            return f"no command `{arguments[0]}`"
        command = command.commands[arguments.pop(0)]
    if hasattr(command, "commands") and arguments:  # --version and the like end the parsing
        unknown = set(arguments) - {name for parameter in command.params for name in parameter.opts} - {"--help"}
        return f"no {', '.join(sorted(unknown))} without a command" if unknown else None
    try:
        given = command.make_context(command.name, arguments).params
    except Exception as error:  # typer carries click inside, whose errors have no public name
        missing = type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError", "BadOptionUsage")
        return None if missing and not whole else f"{type(error).__name__}: {error}"
    named = given.get("arguments") or [given.get("recipe") or given.get("subject"), *(given.get("overrides") or [])]
    return recipe_fault(*named)


def recipe_fault(recipe: Any, *overrides: str) -> str | None:
    """What is wrong with a recipe under overrides, or None; of a placeholder recipe only the keys are checked."""
    named = str(recipe).endswith((".yaml", ".yml"))
    if named and str(recipe).startswith("recipes/"):
        try:
            resolve(ROOT / recipe, overrides)
        except RecipeError as error:
            return str(error)
    unknown = [key for key, equals, _ in (text.partition("=") for text in overrides) if not equals or not known(key)]
    return f"{', '.join(unknown)}: no such key" if unknown else None


def known(dotted: str) -> bool:
    """Whether a recipe can have this key; PHASE stands for any training phase."""
    return type_at(tuple(dotted.replace("PHASE", "pretrain").split("."))) is not None


def leaves(tree: Any, at: str = "") -> Iterator[str]:
    """The dotted keys of a part of a recipe."""
    for key, value in tree.items():
        inner = [f"{at}{key}.{name}" for name in value] if isinstance(value, dict) else []
        if any(map(known, inner)) or (inner and fields_of(type_at(tuple(f"{at}{key}".split("."))))):
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def links(text: str) -> Iterator[str]:
    """The targets of a document's links within the repository."""
    for place in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(FENCED, "", text)):
        if not EXTERNAL.match(place):
            yield place.partition("#")[0]


def tree(text: str) -> list[str]:
    """The paths in the source tree of a page: its block that begins with recipes/, indented by folders."""
    block = next(block for block in FENCED.findall(text) if block.startswith("recipes/"))
    found, inside = [], ""
    for line in block.splitlines():
        names = list(takewhile(PATH.fullmatch, re.split(r"\s{2,}", line.strip())[0].split()))
        folder = inside if line.startswith(" ") else ""
        found += [folder + name for name in names]
        inside = inside if line.startswith(" ") else names[0]
    return found


def packages(package: Path) -> set[str]:
    """The top level of the package: modules, and folders with a module in them."""
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    return modules | {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}


def test_every_command_parses():
    found = [(path.name, line) for path in DOCUMENTS for line in commands(path.read_text()) if path != COMMANDS]
    assert len(found) >= 40
    faults = [(name, line, fault) for name, line in found if (fault := command_fault(line))]
    assert faults == []


def test_every_command_in_running_text_exists():
    found = [(path.name, span) for path in DOCUMENTS for span in SPAN.findall(re.sub(FENCED, "", path.read_text()))]
    found = [(name, each) for name, span in found for each in alternatives(" ".join(span.split()))]
    assert len(found) >= 10
    faults = [(name, span, fault) for name, span in found if (fault := command_fault(span, whole=False))]
    assert faults == []


def alternatives(span: str) -> Iterator[str]:
    """`fastdraft a|b RECIPE` is two commands."""
    program, command, *rest = span.split(" ")
    for each in command.split("|"):
        yield " ".join([program, each, *rest])


def test_no_block_is_indented():
    """Neither these tests nor the site reads a block inside a list."""
    assert [path.name for path in DOCUMENTS if re.search(r"^ +```", path.read_text(), re.MULTILINE)] == []


def test_every_yaml_example_has_known_keys():
    found = [(path.name, block) for path in DOCUMENTS for block in blocks("yaml", path.read_text())]
    assert len(found) >= 2
    keys = [(name, key) for name, block in found for key in leaves(yaml.safe_load(block))]
    assert [(name, key) for name, key in keys if not known(key)] == []


def test_every_python_example_compiles():
    found = [(path.name, block) for path in DOCUMENTS for block in blocks("python", path.read_text())]
    assert len(found) >= 5
    for name, block in found:
        compile(block, name, "exec")


def test_the_commands_page_is_printed_from_the_commands():
    """By the pinned typer: each release prints it differently."""
    if f"typer=={version('typer')}\n" not in (ROOT / "constraints.txt").read_text():
        pytest.skip(f"typer {version('typer')} is not the one that prints the page")
    asked = [*("-m", "typer", "fastdraft.cli", "utils", "docs"), *("--name", "fastdraft", "--title", "Every command")]
    printed = subprocess.run([sys.executable, *asked], capture_output=True, text=True, check=True).stdout
    assert COMMANDS.read_text().strip() == printed.strip(), "do: make docs"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("make tea", "the Makefile has no tea"),
        ("make test tea   # with", "the Makefile has no tea"),
        ("fastdraft walk", "no command `walk`"),
        (".venv/bin/fastdraft recipe bake recipes/demo.yaml", "no command `bake`"),
        ("fastdraft run recipes/demo.yaml --untill align", "--untill"),
        ("fastdraft --versoin", "no --versoin without a command"),
        ("fastdraft run", "Missing parameter: recipe"),
        ("fastdraft run recipes/none.yaml", "no such file"),
        ("fastdraft run recipes/demo.yaml pretrain.tokens=5", "pretrain.tokens: no such key"),
        ("fastdraft run recipes/demo.yaml seed=many", "found many, wanted a whole number"),
        ("fastdraft run RECIPE draft.strat=random", "draft.strat: no such key"),
        ("fastdraft evaluate recipes/demo.yaml seed=many", "found many, wanted a whole number"),
        ("fastdraft align recipes/demo.yaml seed=many", "found many, wanted a whole number"),
        ("fastdraft plan TARGET --devise cpu   # where", "--devise"),
        ("torchrun --nproc-per-node 8 -m fastdraft run RECIPE --untill align", "--untill"),
        ("fastdraft run RECIPE [key=value ...] [--untill STAGE]", "--untill"),
        ("srun x \\\n  -m fastdraft walk RECIPE", "no command `walk`"),
    ],
)
def test_a_bad_command_is_found(line, fault):
    (found,) = commands(f"```\n{line}\n```\n")
    assert fault in (command_fault(found) or "")


@pytest.mark.parametrize(
    "line",
    [
        *("make demo   # why", "fastdraft align RECIPE", "fastdraft run recipes/demo.yaml seed=3 --until align"),
        *("fastdraft run RECIPE PHASE.precision=fp32", "fastdraft recipe schema --markdown > docs/recipe.md"),
        *("torchrun -m fastdraft run mine.yaml --folder runs/a", "fastdraft evaluate DRAFT --gammas 1-4"),
    ],
)
def test_a_good_command_is_accepted(line):
    assert command_fault(line) is None


def test_running_text_is_checked_less_strictly():
    assert SPAN.findall("say `fastdraft plan`, not ``fastdraft x`` nor `make`") == ["fastdraft plan"]
    assert command_fault("fastdraft plan", whole=False) is None
    assert command_fault("fastdraft evaluate --tasks", whole=False) is None
    assert command_fault("fastdraft --install-completion") is None
    assert "--untill" in (command_fault("fastdraft run --untill align", whole=False) or "")
    assert list(alternatives("fastdraft run|align RECIPE")) == ["fastdraft run RECIPE", "fastdraft align RECIPE"]


def test_unknown_keys_are_found():
    tree = {"corpus": {"mine": {"path": "x", "pfad": "y"}}, "synthesize": {"mix": {"a": 1}, "temperatures": {0.6: 1}}}
    tree |= {"align": {"objective": {"forward_kl": 1}}, "evaluate": {"task": ["a"]}, "tokenise": {"tasks": 1}}
    assert [key for key in leaves(tree) if not known(key)] == ["corpus.mine.pfad", "evaluate.task", "tokenise"]


def test_every_link_leads_to_a_file():
    found = [(path, place) for path in DOCUMENTS for place in links(path.read_text())]
    assert len(found) >= 3
    assert [(path.name, place) for path, place in found if not (path.parent / place).exists()] == []


def test_links_are_found():
    text = "[a](b.md) and [c](d.md#e), not [web](https://x.y) nor [here](#top)\n```\n[code](f.md)\n```\n"
    assert list(links(text)) == ["b.md", "d.md"]


def test_the_source_tree_in_the_docs_is_the_source_tree():
    paths = tree((ROOT / "docs" / "extend.md").read_text())
    assert len(paths) >= 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    named = {path.removeprefix("src/fastdraft/") for path in paths if path.startswith("src/fastdraft/")}
    assert len(packages(PACKAGE)) >= 15
    assert sorted(packages(PACKAGE) - named) == []


def test_trees_and_packages_are_read(tmp_path):
    text = "```\nmake\n```\n```\nrecipes/   what\nsrc/x/\n  a.py b.py both\n  c/   a package\ndocs/   d.md, e.md\n```\n"
    assert tree(text) == ["recipes/", "src/x/", "src/x/a.py", "src/x/b.py", "src/x/c/", "docs/"]
    (tmp_path / "attic").mkdir()
    for name in ("__init__.py", "late.py", "attic/__init__.py"):
        (tmp_path / name).touch()
    assert packages(tmp_path) == {"late.py", "attic/"}


def test_make_targets_are_read():
    assert targets("A := b\nC ?= d\n.PHONY: x\nx: y\n\tz: not\nu v: w\n") == {"x", "u", "v"}
