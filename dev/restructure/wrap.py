"""Break comments and lines of docstrings that grew longer than 120 characters."""

import ast
import io
import json
import subprocess
import tokenize
from pathlib import Path


def _places(text: str) -> tuple[set[int], set[int]]:
    """Lines that are a comment alone; lines within a string of several lines that begins a statement."""
    comments, inside = set(), set()
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and lines[token.start[0] - 1].lstrip().startswith("#"):
            comments.add(token.start[0])
        elif token.type == tokenize.STRING and lines[token.start[0] - 1].lstrip().startswith('"""'):
            inside |= set(range(token.start[0], token.end[0] + 1))
    return comments, inside


def _split_string(lines: list[str], row: int) -> list[str]:
    """The longest string of a line as two, one below the other, where that is still Python."""
    text = "".join(lines)
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.STRING and token.start[0] == token.end[0] == row and '"""' not in token.string
    ]
    if not tokens:
        return lines
    token = max(tokens, key=lambda each: len(each.string))
    line, (_, first), (_, last) = lines[row - 1], token.start, token.end
    prefix = token.string[: token.string.index('"') + 1] if '"' in token.string else None
    if prefix is None or last <= 110:
        return lines
    cut = next(
        (
            place
            for place in range(min(last, 112), first + 10, -1)
            if line[place] == " " and line[first:place].count("{") == line[first:place].count("}")
        ),
        None,
    )
    if cut is None:
        return lines
    made = line[: cut + 1] + '"\n' + " " * first + prefix + line[cut + 1 :]
    new = [*lines[: row - 1], *made.splitlines(keepends=True), *lines[row:]]
    try:
        ast.parse("".join(new))
    except SyntaxError:
        return lines
    return new


def wrap(root: Path) -> None:
    ruff = root / ".venv" / "bin" / "ruff"
    for _ in range(6):
        found = json.loads(
            subprocess.run(
                [
                    str(ruff),
                    "check",
                    "--select",
                    "E501",
                    "--output-format",
                    "json",
                    "src",
                    "tests",
                    "benchmarks",
                    "dev",
                ],
                cwd=root,
                capture_output=True,
                text=True,
            ).stdout
        )
        by_file: dict[str, list[int]] = {}
        for each in found:
            by_file.setdefault(each["filename"], []).append(each["location"]["row"])
        changed = False
        for name, rows in by_file.items():
            path = Path(name)
            text = path.read_text(encoding="utf-8")
            comments, inside = _places(text)
            lines = text.splitlines(keepends=True)
            for row in sorted(rows, reverse=True):
                line = lines[row - 1].rstrip("\n")
                indent = line[: len(line) - len(line.lstrip())]
                if row in comments:
                    start, sign = len(indent), "# "
                elif row in inside:
                    start, sign = len(indent), ""
                else:
                    lines = _split_string(lines, row)
                    changed = changed or "".join(lines) != text
                    continue
                cut = line.rfind(" ", start + 10, 121)
                if cut < 0:
                    continue
                rest = line[cut + 1 :]
                if row in inside and line.rstrip().endswith('"""') and line.lstrip().startswith('"""'):
                    # A docstring of one line: its first line must be a whole one, so leave a short rest below.
                    rest = rest[: -len('"""')] + "\n" + indent + '"""'
                following = lines[row] if row < len(lines) else ""
                bare = following.strip()
                if row in comments and row + 1 in comments and following.startswith(indent + "# "):
                    joined = indent + "# " + rest + " " + following.lstrip()[2:].rstrip("\n")
                    lines[row - 1 : row + 1] = [line[:cut] + "\n", joined + "\n"]
                elif row in inside and row + 1 in inside and bare and not bare.startswith('"""') and bare[0].islower():
                    lines[row - 1 : row + 1] = [line[:cut] + "\n", indent + rest + " " + following.strip() + "\n"]
                else:
                    lines[row - 1 : row] = [line[:cut] + "\n", indent + sign + rest + "\n"]
                changed = True
            path.write_text("".join(lines), encoding="utf-8")
        if not changed:
            return
