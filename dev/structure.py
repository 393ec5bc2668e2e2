"""How a source tree is cut: lines, characters of code, packages and their levels, functions and their lengths.

    python dev/structure.py                       # src/fastdraft
    python dev/structure.py PATH/TO/PACKAGE ...   # any other package, side by side

Characters of code are those of all tokens: comments, docstrings and the blanks between tokens are left out. Levels are
the packages and modules in the longest chain of imports. A function's length counts the lines from `def` to its last
one. A private function is used once where its own file names it once.
"""

from __future__ import annotations

import ast
import io
import os
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

SHORT_LINES = 4
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Structure:
    """What is counted of one package."""

    files: int = 0
    lines: int = 0
    code_characters: int = 0
    lengths: list[int] = field(default_factory=list)
    short_private: list[str] = field(default_factory=list)
    packages: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    imports: dict[str, set[str]] = field(default_factory=dict)


def measure(root: Path) -> Structure:
    """The structure of the package in a folder."""
    found = Structure()
    defined: dict[str, tuple[str, int]] = {}
    used: Counter[str] = Counter()
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        found.files += 1
        found.lines += len(text.splitlines())
        docstrings = set(_docstrings(tree))
        found.code_characters += sum(
            len(token.string)
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type not in SILENT and token.start not in docstrings
        )
        top = path.relative_to(root).parts[0].removesuffix(".py")
        if path.parent != root:
            found.packages.add(top)
        elif not top.startswith("__"):
            found.modules.add(top)
        found.imports.setdefault(top, set()).update(_imports(tree, root.name, path, root))
        for function in (node for node in ast.walk(tree) if isinstance(node, Function)):
            length = _length(function)
            found.lengths.append(length)
            if function.name.startswith("_") and not function.name.startswith("__"):
                defined[f"{path.relative_to(root)}:{function.name}"] = (function.name, length)
        used.update(f"{path.relative_to(root)}:{name}" for name in _uses(tree))
    found.short_private = [
        place for place, (_, length) in sorted(defined.items()) if length <= SHORT_LINES and used[place] == 1
    ]
    return found


def levels(imports: dict[str, set[str]]) -> int:
    """The number of packages and modules in the longest chain of imports; those in a cycle count as one."""
    depth: dict[str, int] = {}

    def of(name: str, above: tuple[str, ...]) -> int:
        if name not in depth:
            below = [each for each in imports.get(name, ()) if each != name and each not in above]
            depth[name] = 1 + max((of(each, (*above, name)) for each in below), default=0)
        return depth[name]

    return max((of(name, ()) for name in imports if not name.startswith("__")), default=0)


def _uses(tree: ast.Module) -> Iterator[str]:
    """Each name that is read, once for each time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """The places at which docstrings begin."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
            yield node.body[0].lineno, node.body[0].col_offset


def _length(function: Function) -> int:
    """Lines from `def` to the last one."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _imports(tree: ast.Module, package: str, path: Path, root: Path) -> Iterator[str]:
    """The packages and modules at the top of this package that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [package, *path.relative_to(root).parts[:-1]]
            base = ".".join([*above[: len(above) + 1 - node.level], node.module or ""]) if node.level else node.module
            names = [f"{(base or '').rstrip('.')}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == package and len(parts) > 1:
                inner = root / parts[1]
                if inner.is_dir() or inner.with_suffix(".py").is_file():
                    yield parts[1]


def table(found: dict[str, Structure]) -> str:
    """One column a package, in Markdown."""
    rows: dict[str, Callable[[Structure], str]] = {
        "files": lambda s: f"{s.files:,}",
        "lines": lambda s: f"{s.lines:,}",
        "characters of code": lambda s: f"{s.code_characters / 1000:,.0f}k",
        "packages + loose modules at the top": lambda s: f"{len(s.packages)} + {len(s.modules)}",
        "levels of imports": lambda s: str(levels(s.imports)),
        "functions, median lines": lambda s: f"{len(s.lengths):,}, {median(s.lengths or [0]):g}",
        f"private functions of at most {SHORT_LINES} lines used once": lambda s: str(len(s.short_private)),
    }
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row(each) for each in found.values()) + " |" for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    roots = [Path(given).resolve() for given in sys.argv[1:]] or [Path(__file__).parents[1] / "src" / "fastdraft"]
    print(table({os.path.relpath(root): measure(root) for root in roots}))
