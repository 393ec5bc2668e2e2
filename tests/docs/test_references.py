"""What code, recipes and pages refer to exists: headings, error messages, arms of an experiment, families."""

import ast
import re
from pathlib import Path

import pytest

from fastdraft.exporters.gguf_families import FAMILIES as GGUF_FAMILIES
from fastdraft.models.shape.families import FAMILIES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = [
    *(ROOT / "src" / "fastdraft").rglob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
    *(ROOT / "recipes").glob("*.yaml"),
    *(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)),
]
# docs/shapes.md, or docs/maths.md, "Losses"; the words may be divided over two lines of a comment or a literal.
REFERENCE = re.compile(r"docs/([\w/-]+\.md)(?:,[\s#\"]*\"([^\"]+)\")?")


def references(text: str) -> set[tuple[str, str]]:
    """(page, heading or nothing) of each reference in a text."""
    return {(name, " ".join(heading.split())) for name, heading in REFERENCE.findall(text)}


def headings(text: str) -> set[str]:
    """Headings of a page, and the words in bold with which its paragraphs begin."""
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE) + re.findall(r"^\*\*(.+?)\.?\*\*", text, re.MULTILINE)
    return {heading.rstrip(".") for heading in found}


def test_references_to_the_docs_lead_somewhere():
    found = {
        (str(path.relative_to(ROOT)), name, heading)
        for path in SOURCES
        for name, heading in references(path.read_text(encoding="utf-8"))
    }
    assert len(found) >= 40
    absent = {each for each in found if not (DOCS / each[1]).is_file()}
    absent |= {
        (path, name, heading)
        for path, name, heading in found - absent
        if heading and heading not in headings((DOCS / name).read_text(encoding="utf-8"))
    }
    assert sorted(absent) == []


def test_references_are_found():
    text = 'see docs/maths.md, "All\n# gammas" and (docs/recipe.md)'
    assert references(text) == {("maths.md", "All # gammas"), ("recipe.md", "")}
    assert headings("# A b\n\n**C d.** e\n") == {"A b", "C d"}


def messages() -> str:
    """All text of string literals in the package, with a mark for each inserted value."""
    found = []
    for path in (ROOT / "src" / "fastdraft").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


TROUBLES = re.findall(r"^### (.+)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
QUOTED = [span for heading in TROUBLES for span in re.findall(r"`([^`]+)`", heading)]
MESSAGES = messages()


@pytest.mark.parametrize("message", QUOTED)
def test_every_message_of_the_troubleshooting_page_exists(message):
    """Each piece between `...` is in one literal, in this order."""
    pieces = [re.escape(piece.strip()) for piece in message.split("...") if piece.strip(" ,:;()")]
    assert pieces
    assert re.search(r"[^\n]*?".join(pieces), MESSAGES), "correct docs/troubleshooting.md"


def test_there_are_messages():
    assert len(QUOTED) >= 20


def test_the_arms_of_the_experiments_exist():
    benchmark = (ROOT / "benchmarks" / "alignment.py").read_text(encoding="utf-8")
    page = (DOCS / "experiments.md").read_text(encoding="utf-8")
    names = {"paper", "ce"} | set(re.findall(r'^    "([a-z_0-9]+)": \{', benchmark, re.MULTILINE))
    arms = set(re.findall(r"^\|[^|`]*\|? ?`([a-z_0-9]+)`", page.partition("## Which alignment")[2], re.MULTILINE))
    assert len(arms) >= 30
    assert sorted(arms - names) == []


def test_the_support_matrix_has_every_family():
    table = (DOCS / "support.md").read_text(encoding="utf-8").partition("## Formats")[2].partition("##")[0]
    in_gguf, others = (row.split("|")[1] for row in table.splitlines()[4:6])
    assert {name.strip() for name in in_gguf.split(",")} == set(GGUF_FAMILIES)
    assert {name.strip() for name in others.split(",")} == set(FAMILIES) - set(GGUF_FAMILIES)


# `train/malloc.py` in running text: a file of the package, of the tests or of the repository.
CODE_PATH = re.compile(
    r"`([\w./-]+/[\w.-]+\.(?:py|yaml|sh|cmake|md))`|(?<![\w/.])((?:init|tests|benchmarks|recipes|dev)/[\w./-]+\.(?:py|yaml|md))"
)
# Files of engines and of other projects, and examples of names.
OTHER_FILES = re.compile(r"generation/utils\.py|pipelines/base\.py|config/speculative\.py|vllm/|common/|dev/null")


def test_paths_of_code_in_the_docs_exist():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    named = {
        (page.name, path)
        for page in pages
        for pair in CODE_PATH.findall(page.read_text(encoding="utf-8"))
        for path in pair
        if path and not OTHER_FILES.match(path)
    }
    assert len(named) >= 40
    places = (ROOT, ROOT / "src", ROOT / "src" / "fastdraft", DOCS)
    assert sorted((page, path) for page, path in named if not any((place / path).exists() for place in places)) == []
