"""Apply the layout of table.py to a checkout: python move.py CHECKOUT. The checkout must be clean; nothing is
committed.

It stops when a module of the table is missing, or one of the checkout is not in it; when a definition of a module that
is taken apart has no place; when a new name of a module is already taken in a file.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from table import DOCSTRINGS, MODULES, OPTIONAL, SPLIT, TEST_FOLDERS, TESTS  # noqa: E402
from wrap import wrap  # noqa: E402

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
SRC = ROOT / "src" / "fastdraft"
PROSE = {".md", ".yaml", ".yml", ".toml", ".sh", ".html", ".css", ".js", ".txt", ""}
problems: list[str] = []


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").rstrip(".")


def path_of(module: str, package: bool) -> Path:
    folder = SRC.joinpath(*module.split(".")) if module else SRC
    return folder / "__init__.py" if package else folder.with_suffix(".py")


def full(module: str) -> str:
    return f"fastdraft.{module}" if module else "fastdraft"


def place(old: str, name: str | None = None) -> str | None:
    """Where a module is now, or a definition of one that is taken apart; new modules stay what they are."""
    if old in SPLIT:
        rules = SPLIT[old]
        if name is None:
            return None
        return rules.get(name, rules["*"]) or None
    return MODULES.get(old, old)


def is_old(module: str) -> bool:
    return (module in MODULES or module in SPLIT) and module not in SHADOWED


def shadowed() -> set[str]:
    """Modules whose package imports a definition of the same name: `from package import name` is that definition."""
    hidden = set()
    for path in SRC.rglob("__init__.py"):
        package = module_of(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                hidden |= {
                    f"{package}.{each.name}" for each in node.names if node.module == f"{full(package)}.{each.name}"
                }
    return hidden


SHADOWED: set[str] = set()


# --- check ---------------------------------------------------------------------------------------------------------
if git("status", "--porcelain", "--untracked-files=no"):
    sys.exit(f"{ROOT} has changes that are not committed\n  do: commit them, or git stash")
found = {module_of(path): path for path in SRC.rglob("*.py")}
for name in OPTIONAL - found.keys():
    del MODULES[name]
known = set(MODULES) | set(SPLIT)
SHADOWED |= shadowed()
if missing := sorted(known - found.keys()):
    problems.append(f"in table.py, not in the checkout: {', '.join(missing)}")
if new := sorted(found.keys() - known):
    problems.append(f"in the checkout, not in table.py: {', '.join(new)}")
targets = [new for new in MODULES.values() if new is not None]
if twice := {new for new in targets if targets.count(new) > 1}:
    problems.append(f"two modules with one new name: {twice}")
test_files = [Path(name) for name in git("ls-files", "tests").split() if name.endswith((".py", ".json"))]


def new_test(path: Path) -> Path:
    """Where a test file goes: by TESTS, or as the module of its name goes within the folder that has its fixtures."""
    inner = path.relative_to("tests")
    if str(inner) in TESTS:
        return Path("tests", TESTS[str(inner)])
    if len(inner.parts) == 1:
        if inner.suffix == ".json":
            return path
        problems.append(f"{path} has no place in TESTS")
        return path
    folder = TEST_FOLDERS.get(inner.parts[0])
    if folder is None:
        problems.append(f"the folder {path.parent} has no place in TEST_FOLDERS")
        return path
    stem = inner.stem.removeprefix("test_")
    new = MODULES.get(f"{inner.parts[0]}.{stem}") if inner.stem.startswith("test_") else None
    name = f"test_{new.rpartition('.')[2]}.py" if new else inner.name
    return Path("tests", folder, name)


test_moves = {path: new_test(path) for path in test_files}
if len(set(test_moves.values())) != len(test_moves):
    seen: dict[Path, Path] = {}
    for old_test, where in test_moves.items():
        if where in seen:
            problems.append(f"{old_test} and {seen[where]} both go to {where}")
        seen[where] = old_test
if problems:
    sys.exit("\n".join(problems))

# --- take modules apart --------------------------------------------------------------------------------------------


def names_of(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def take_apart(old: str) -> dict[str, tuple[list[str], list[str]]]:
    """By new module: the lines of imports, and of definitions with the comments over them."""
    text = found[old].read_text(encoding="utf-8")
    lines, body = text.splitlines(keepends=True), ast.parse(text).body
    imports, pieces, owner, last = [], {}, {}, 0
    for statement in body:
        first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", []))]) - 1
        piece = "".join(lines[last:first]).strip("\n")
        code = "".join(lines[first : statement.end_lineno])
        last = statement.end_lineno
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and not imports:
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports.append(code)
            continue
        names = names_of(statement)
        if not names:
            sys.exit(f"{found[old]}:{statement.lineno}: not a definition, an assignment or an import")
        where = place(old, names[0])
        if where is None:
            sys.exit(f"{found[old]}: `{names[0]}` has no place in SPLIT[{old!r}]")
        for name in names:
            owner[name] = where
        pieces.setdefault(where, []).append((piece + "\n" if piece else "") + code)
    made = {}
    for where, codes in pieces.items():
        used = {node.id for code in codes for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
        others = [
            f"from {full(owner[name])} import {name}\n" for name in sorted(used & owner.keys()) if owner[name] != where
        ]
        made[where] = (imports + others, codes)
    return made


docstrings = {old: ast.get_docstring(ast.parse(found[old].read_text(encoding="utf-8"))) for old in SPLIT}
parts = {old: take_apart(old) for old in SPLIT}

# --- move ----------------------------------------------------------------------------------------------------------


def move(old: Path, new: Path) -> None:
    if old != new:
        new.parent.mkdir(parents=True, exist_ok=True)
        git("mv", str(old), str(new))


packages = {old for old, path in found.items() if path.name == "__init__.py"}
waiting = []
for old, new_name in MODULES.items():
    if new_name is None:
        git("rm", "-q", str(found[old]))
    elif found[old] != (new_path := path_of(new_name, old in packages)):
        # In two moves: the new name of one may be the old name of another.
        aside = found[old].with_name(found[old].name + ".moving")
        git("mv", str(found[old]), str(aside))
        waiting.append((aside, new_path))
for aside, new_path in waiting:
    move(aside, new_path)
for old in SPLIT:
    git("rm", "-q", str(found[old]))
for old in SPLIT:
    for where, (imports, codes) in parts[old].items():
        path = path_of(where, package=False)
        if path.exists():
            text = path.read_text(encoding="utf-8")
            body = ast.parse(text).body
            last_import = max(each.end_lineno for each in body if isinstance(each, ast.Import | ast.ImportFrom))
            lines = text.splitlines(keepends=True)
            fresh = [each for each in imports if "__future__" not in each]
            text = (
                "".join(lines[:last_import])
                + "".join(fresh)
                + "".join(lines[last_import:])
                + "\n\n"
                + "\n\n".join(codes)
            )
        else:
            if where not in DOCSTRINGS:
                sys.exit(f"no docstring for {where}")
            path.parent.mkdir(parents=True, exist_ok=True)
            text = f'"""{DOCSTRINGS[where]}"""\n\n' + "".join(imports) + "\n\n" + "\n\n".join(codes)
        path.write_text(text, encoding="utf-8")
        git("add", "-N", str(path))
for package in {new.rpartition(".")[0] for new in targets} | {w.rpartition(".")[0] for s in parts.values() for w in s}:
    init = path_of(package, package=True)
    if package and not init.exists():
        if package not in DOCSTRINGS:
            sys.exit(f"no docstring for the package {package}")
        init.parent.mkdir(parents=True, exist_ok=True)
        init.write_text(f'"""{DOCSTRINGS[package]}"""\n', encoding="utf-8")
for old_test, where in test_moves.items():
    if old_test != where:
        move(ROOT / old_test, ROOT / where)
for folder in sorted(SRC.rglob("*"), reverse=True):
    if folder.is_dir() and not [each for each in folder.iterdir() if each.name != "__pycache__"]:
        subprocess.run(["rm", "-r", str(folder)], check=True)

# --- rewrite -------------------------------------------------------------------------------------------------------

NAME = r"[A-Za-z_][A-Za-z0-9_]*"
DOTTED = re.compile(rf"\bfastdraft((?:\.{NAME})+)")
FROM = re.compile(rf"\bfrom (fastdraft(?:\.{NAME})*) import ({NAME}(?: as {NAME})?(?:, {NAME}(?: as {NAME})?)*)")


def dotted(text: str) -> str:
    """Dotted names of modules, and of what is defined in them, in strings and prose."""

    def new(match: re.Match[str]) -> str:
        names = match[1][1:].split(".")
        for length in range(len(names), 0, -1):
            old, rest = ".".join(names[:length]), names[length:]
            if old in MODULES or old in SPLIT:
                where = place(old, rest[0] if rest else None)
                return ".".join([full(where), *rest]) if where else match[0]
        return match[0]

    def new_from(match: re.Match[str]) -> str:
        base = match[1].removeprefix("fastdraft").lstrip(".")
        made: dict[str, list[str]] = {}
        for each in match[2].split(", "):
            name = each.partition(" as ")[0]
            inner = f"{base}.{name}".lstrip(".")
            if is_old(inner) and (where := place(inner)) is not None:
                head, _, last = where.rpartition(".")
                alias = each if " as " in each else last
                made.setdefault(full(head), []).append(
                    f"{last} as {each.partition(' as ')[2]}" if " as " in each else alias
                )
            else:
                made.setdefault(full(place(base, name) or base), []).append(each)
        return "; ".join(f"from {base} import {', '.join(names)}" for base, names in made.items())

    text = FROM.sub(lambda match: "\0" + new_from(match).replace("fastdraft", "\1") if True else "", text)
    return DOTTED.sub(new, text).replace("\0", "").replace("\1", "fastdraft")


# Paths of files in prose: `cost/probe.py`, src/fastdraft/target.py, tests/cost/test_devices.py.
PATHS: dict[str, str] = {}
for old, new_name in MODULES.items():
    if old and new_name:
        PATHS[f"{old.replace('.', '/')}.py"] = str(path_of(new_name, old in packages).relative_to(SRC))
for old in SPLIT:
    PATHS[f"{old.replace('.', '/')}.py"] = (
        f"{place(old, 'x').replace('.', '/')}.py" if place(old, "x") else "models/run_context.py"
    )
TEST_PATHS = {str(old): str(new) for old, new in test_moves.items() if old != new}
PATH = re.compile(r"(?<![\w/.-])((?:src/)?(?:fastdraft/)?)((?:\w+/)?\w+\.py)\b")
IN_TESTS = re.compile(r"(?<![\w/.-])tests/[\w/]+\.(?:py|json)\b")
NOT_OURS = re.compile(r"[`(]?(?:benchmarks|dev|modeling|generation|conversion|config|llama_cpp)/")


def paths(text: str) -> str:
    def new(match: re.Match[str]) -> str:
        return match[1] + PATHS.get(match[2], match[2])

    def new_in_src(match: re.Match[str]) -> str:
        # A bare file name is one of ours only where the text says so, or the folder is.
        if "/" not in match[2] and not match[1]:
            return match[0]
        return new(match)

    text = IN_TESTS.sub(lambda match: TEST_PATHS.get(match[0], match[0]), text)
    return PATH.sub(new_in_src, text)


class Rewriter:
    """One Python file: imports, uses of imported modules, strings and comments."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.tree = ast.parse(text)
        self.lines = text.splitlines(keepends=True)
        self.aliases: dict[str, str] = {}  # name in the file -> old module
        self.renamed: dict[tuple[str, str | None], str] = {}  # (old alias, new module) -> new alias
        self.edits: list[tuple[int, int, int, int, str]] = []

    def bound(self) -> set[str]:
        """Names that are something else than a module of ours."""
        names = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                base = getattr(node, "module", None) or ""
                for alias in node.names:
                    inner = f"{base}.{alias.name}".removeprefix("fastdraft").lstrip(".")
                    if not (base.startswith("fastdraft") and is_old(inner)):
                        names.add(alias.asname or alias.name.partition(".")[0])
        return names

    def run(self) -> str:
        taken = self.bound()
        imports = [node for node in ast.walk(self.tree) if isinstance(node, ast.ImportFrom | ast.Import)]
        for node in imports:
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "fastdraft":
                base = node.module.removeprefix("fastdraft").lstrip(".")
                for alias in node.names:
                    inner = f"{base}.{alias.name}".lstrip(".")
                    if is_old(inner):
                        self.aliases[alias.asname or alias.name] = inner
        kept_alias = {}
        for node in imports:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if alias.asname and alias.asname in self.aliases:
                        kept_alias[alias.asname] = alias.name
        used: dict[str, set[str]] = {alias: set() for alias in self.aliases}
        loads: list[tuple[ast.Name, str | None]] = []
        attributes = {id(node.value): node.attr for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and node.id in self.aliases:
                if isinstance(node.ctx, ast.Store):
                    continue
                loads.append((node, attributes.get(id(node))))

        def alias_for(alias: str, where: str) -> str:
            old = self.aliases[alias]
            if old not in SPLIT and alias in kept_alias:
                return alias
            last = where.rpartition(".")[2]
            if last == alias:
                return alias
            if last in taken or (last in self.aliases and last != alias):
                return f"{last}_module"
            return last

        for name, attribute in loads:
            old = self.aliases[name.id]
            shadowed = name.id in taken
            where = place(old, attribute)
            if where is None:
                problems.append(
                    f"{self.path}:{name.lineno}: {name.id} (fastdraft.{old}) is used as a whole, and taken apart"
                )
                continue
            used[name.id].add(where)
            if shadowed and alias_for(name.id, where) != name.id:
                problems.append(f"{self.path}:{name.lineno}: {name.id} is a module and something else")
            new = alias_for(name.id, where)
            if new != name.id:
                self.edit(name.lineno, name.col_offset, name.lineno, name.end_col_offset, new)
        for node in imports:
            if isinstance(node, ast.Import):
                made = []
                for alias in node.names:
                    old = alias.name.removeprefix("fastdraft").lstrip(".")
                    if alias.name.startswith("fastdraft.") and is_old(old):
                        made.append(
                            f"import {full(place(old) or '')}" + (f" as {alias.asname}" if alias.asname else "")
                        )
                    else:
                        made.append(f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
                if any(alias.name.startswith("fastdraft.") for alias in node.names):
                    self.replace(node, made)
                continue
            if node.level or (node.module or "").split(".")[0] != "fastdraft":
                continue
            base = node.module.removeprefix("fastdraft").lstrip(".")
            made_from: dict[str, list[str]] = {}
            for alias in node.names:
                inner, bound = f"{base}.{alias.name}".lstrip("."), alias.asname or alias.name
                if is_old(inner):
                    wheres = sorted(used[bound]) or ([place(inner)] if place(inner) else [])
                    for where in wheres:
                        head, _, last = where.rpartition(".")
                        new = alias_for(bound, where)
                        made_from.setdefault(full(head), []).append(last if new == last else f"{last} as {new}")
                else:
                    where = place(base, alias.name)
                    if where is None:
                        problems.append(f"{self.path}:{node.lineno}: {alias.name} of {base} has no place")
                        continue
                    made_from.setdefault(full(where), []).append(
                        f"{alias.name} as {alias.asname}" if alias.asname else alias.name
                    )
            self.replace(node, [f"from {base} import {', '.join(names)}" for base, names in made_from.items()])
        return self.finish()

    def edit(self, line: int, column: int, end_line: int, end_column: int, new: str) -> None:
        self.edits.append((line, column, end_line, end_column, new))

    def replace(self, node: ast.stmt, statements: list[str]) -> None:
        if (
            SRC in self.path.parents and self.path.name != "__init__.py"
        ):  # a definition may have come to the module that imports it
            own = full(module_of(self.path))
            statements = [each for each in statements if not each.startswith(f"from {own} import")]
        if [s.strip() for s in statements] == [ast.unparse(node)]:
            return
        joined = ("\n" + " " * node.col_offset).join(statements)
        self.edit(node.lineno, node.col_offset, node.end_lineno, node.end_col_offset, joined)

    def finish(self) -> str:
        encoded = [line.encode() for line in self.lines]
        for line, column, end_line, end_column, new in sorted(self.edits, reverse=True):
            head, tail = encoded[line - 1][:column], encoded[end_line - 1][end_column:]
            encoded[line - 1 : end_line] = [head + new.encode() + tail]
        return b"".join(encoded).decode()


def strings_and_comments(text: str) -> str:
    """Dotted names and paths in strings and comments; code is left alone."""
    import io
    import tokenize

    edits = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            new = paths(dotted(token.string))
            if new != token.string and token.type != getattr(tokenize, "FSTRING_MIDDLE", -1):
                edits.append((token.start, token.end, new))
    lines = text.splitlines(keepends=True)
    for (line, column), (end_line, end_column), new in sorted(edits, reverse=True):
        head, tail = lines[line - 1][:column], lines[end_line - 1][end_column:]
        lines[line - 1 : end_line] = [head + new + tail]
    return "".join(lines)


def deeper(path: Path, text: str) -> str:
    """`Path(__file__).parents[n]` counts one more where a test went one folder down."""
    old = next((old for old, new in test_moves.items() if ROOT / new == path), None)
    if old is None:
        return text
    more = len(test_moves[old].parts) - len(old.parts)
    for neighbour, moved in test_moves.items():
        if neighbour.parent == old.parent and neighbour.stem != moved.stem:
            text = re.sub(rf"^from \.{neighbour.stem} import", f"from .{moved.stem} import", text, flags=re.MULTILINE)
    return re.sub(r"(Path\(__file__\)\.parents)\[(\d)\]", lambda m: f"{m[1]}[{int(m[2]) + more}]", text)


python = [
    *SRC.rglob("*.py"),
    *(ROOT / "tests").rglob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
    *(ROOT / "dev").glob("*.py"),
]
for path in python:
    text = path.read_text(encoding="utf-8")
    new = deeper(path, strings_and_comments(Rewriter(path, text).run()))
    if new != text:
        path.write_text(new, encoding="utf-8")
for name in git("ls-files").split("\n"):
    path = ROOT / name
    if (
        not name
        or path.suffix not in PROSE
        or not path.is_file()
        or name.startswith(("src/fastdraft/demo/", "dev/LOG"))
    ):
        continue
    if name in ("LICENSE", "tests/golden.json"):
        continue
    text = path.read_text(encoding="utf-8")
    new = paths(dotted(text))
    if name == "pyproject.toml":
        new = text  # package data and the entry point have the names of packages that stay: demo, report, cli
    if new != text:
        path.write_text(new, encoding="utf-8")
readme = ROOT / "README.md"
text = readme.read_text(encoding="utf-8")
tree = Path(__file__).with_name("tree.txt").read_text(encoding="utf-8")
new = re.sub(r"^src/fastdraft/\n(?:  .*\n)+", lambda _: tree, text, count=1, flags=re.MULTILINE)
if new == text:
    print("README.md has no tree of src/fastdraft/: nothing was put there")
readme.write_text(new, encoding="utf-8")
layers = Path(__file__).with_name("test_layers.py")
if layers.exists():
    (ROOT / "tests" / "test_layers.py").write_text(layers.read_text(encoding="utf-8"), encoding="utf-8")
if problems:
    sys.exit("\n".join(problems) + "\nthe checkout is half done\n  do: git reset --hard && git clean -fd src tests")
ruff = ROOT / ".venv" / "bin" / "ruff"
for arguments in (["check", "-q", "--select", "I,F401", "--fix"], ["format", "-q"]):
    subprocess.run([str(ruff), *arguments, "src", "tests", "benchmarks", "dev"], cwd=ROOT, check=False)
wrap(ROOT)
left = subprocess.run(
    [
        "grep",
        "-rnE",
        r"fastdraft\.("
        + "|".join(old for old in [*MODULES, *SPLIT] if old and "." in old and MODULES.get(old) != old).replace(
            ".", r"\."
        )
        + r")\b",
        "src",
        "tests",
        "benchmarks",
        "docs",
        "README.md",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
).stdout
if left:
    print("still old names:\n" + left)
