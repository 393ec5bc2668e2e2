"""Rename identifiers, recipe keys and options by words.md, after move.py: python rename.py CHECKOUT.

Four tables, from the safest to the most careful:
  UNIQUE   words that mean one thing everywhere: replaced in code, strings, comments, docs, recipes, templates
  NAMES    plain words: replaced as names in Python code (also within the braces of f-strings), nowhere else
  FILES    the same, in some files only (a glob of paths); it goes before NAMES, and `word: word` is an exception
  TEXT     regular expressions over all text: options, recipe keys in YAML, values
It may be run again: what it makes holds no old word.
"""

import fnmatch
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from wrap import wrap  # noqa: E402

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()

UNIQUE: dict[str, str] = {
    # classes
    "JudgeError": "VerificationError",
    "JudgeResult": "VerificationResult",
    "JudgeGamma": "VerifyGamma",
    "JudgePrompts": "VerifyPrompts",
    "Judgement": "RuleResult",
    "Journey": "RunContext",
    # functions and fields
    "finished_last": "atomic_write",
    "on_the_road": "run_recipe",
    "judge_prompts": "verify_prompts",
    "judge_gamma": "verify_gamma",
    "completion_tokens": "max_new_tokens",
    "COMPLETION_TOKENS": "MAX_NEW_TOKENS",
    "completion_tokens_at_least": "min_new_tokens",
    "batch_prompts": "batch_size",
    "answers_per_prompt": "samples_per_prompt",
    "documents_at_most": "max_documents",
    "sample_share": "sample_fraction",
    "held_out_share": "held_out_fraction",
    "law_share": "teacher_fraction",
    "decay_share": "decay_fraction",
    "looping_share": "looping_fraction",
    "LOOPING_SHARE": "LOOPING_FRACTION",
    "cut_share": "truncated_fraction",
    "empty_share": "empty_fraction",
    "equal_share": "equal_fraction",
    "trained_share": "trained_fraction",
    "bandwidth_share": "bandwidth_fraction",
    "expert_share": "expert_fraction",
    "_expert_share": "_expert_fraction",
    "LEAKED_SHARE": "LEAKED_FRACTION",
    "UNSOUND_SHARE": "UNSOUND_FRACTION",
    "UNUSED_SHARE": "UNUSED_FRACTION",
    "NEAR_SHARE": "NEAR_FRACTION",
    "NARROWEST_SHARE": "NARROWEST_FRACTION",
    "REACHED_SHARE": "REACHED_FRACTION",
    "measure_prompts": "validation_prompts",
    "longest_prompt_tokens": "max_instruction_tokens",
    "_longest_prompt": "_max_instruction_tokens",
    "batch_sequences": "batch_size",
    "micro_batch_sequences": "micro_batch_size",
    "requests_at_once": "concurrent_requests",
    "early_stop_measures": "early_stopping_patience",
    "target_law": "teacher_logits",
    "keeps_law": "keeps_distribution",
    "OF_THE_LAW": "DISTRIBUTION_OBJECTIVES",
    "OF_THE_SAMPLE": "SAMPLE_OBJECTIVES",
    "STARTS_FROM_MODEL": "INITS_FROM_MODEL",
    "start_model": "init_model",
    "_known_start": "_known_init",
    "_law_is_there": "_has_teacher_logits",
    "asks_target": "needs_teacher",
    "reads_records": "needs_recorded_data",
    "over_laws": "over_sampling",
    "laws_of": "sampling_of_options",
    "law_of": "sampling_of",
    "law_logp": "sampled_logp",
    "under_law": "as_processed",
    "raw_is_law": "raw_is_processed",
    "_judge_greedy": "_verify_greedy",
    "_judge_sampled": "_verify_sampled",
    "road_done": "finished_run",
    "_travel": "_run_stages",
    "_estranged": "_other_target_notes",
    "_fewer_said": "_report_missing",
    "_warnings_noted": "_warnings_in_manifest",
    "_end_noted": "_end_in_manifest",
    "sigterm_noted": "sigterm_recorded",
    "_say_top": "_report_top",
    "handed_over": "export_report",
    "_chat_around": "_chat_template_tokens",
    "PROMPT_LETTERS_AT_MOST": "MAX_PROMPT_LETTERS",
    "GAMMA_AT_MOST": "MAX_GAMMA",
    "TOKENS_AT_MOST": "MAX_TOKENS",
    "WAITING_AT_MOST": "MAX_WAITING",
    "KEPT_ROWS_AT_MOST": "MAX_STORED_SEQUENCES",
    "MAPS_AT_ONCE": "MAX_OPEN_MAPS",
    "_rows_at_most": "_max_records",
    "rows_at_most": "max_records",
    "norm_at_most": "max_norm",
    "graded_at_once": "loss_with_gradient",
    "unsaid": "suppressed_logs",
    "likeliest_of": "top_logprobs_of",
    "_wanted_tokens": "_expected_tokens",
    "hold_against": "check_pair",
    "as_built": "as_built",
    "_fault_of_top": "_top_fault",
    "in_words": "energy_text",
    "lack_of_memory_named": "out_of_memory_explained",
    "full_disk_named": "disk_full_explained",
    "short_writes_named": "short_writes_explained",
    "_said_of_each_place": "_at_each_place",
}

NAMES: dict[str, str] = {
    "Law": "SamplingParams",
    "law": "sampling",
    "laws": "sampling_settings",
    "LAW": "SAMPLING",
    "LAWS": "SAMPLING_SETTINGS",
    "Made": "StageResult",
    "led": "on_rank0",
    "travel": "run_stages",
    "road": "stages_of",
    "journey": "context",
    "_journey": "_context",
    "Judge": "Verifier",
    "judge": "verify",
    "judges": "verification",
    "judged": "verified",
    "judged_by": "verified_by",
    "_judged": "_verified",
    "judgement": "result",
    "wish": "options",
    "Share": "Fraction",
    "share": "fraction",
    "STARTS": "INITS",
    "Mend": "Repair",
    "mend": "repair",
    "mends": "repairs",
    "mending": "repair_plan",
    "say": "report",
    "told": "reported",
    "_told": "_reported",
    "said": "reported",
    "_said": "_described",
    "Beginning": "InitInputs",
    "beginning": "inputs",
    "coins": "uniforms",
    "_coins_RN": "_uniform_RN",
    "coins_RN": "uniform_RN",
    "coins_BN": "uniform_BN",
    "coin": "uniform",
    "ours": "draft_side",
    "theirs": "target_side",
}
# Filled below: renames that hold for some files.
FILES: list[tuple[str, dict[str, str]]] = []
TEXT: list[tuple[str, str, str]] = []  # (glob of paths, regular expression, replacement)
PROSE: list[tuple[str, str]] = []  # in comments, docstrings, help, Markdown
SKIP = (
    "src/fastdraft/demo/target/config",
    "src/fastdraft/demo/target/generation",
    "src/fastdraft/demo/target/tokenizer",
    "src/fastdraft/demo/draft/config",
    "src/fastdraft/demo/draft/generation",
    "src/fastdraft/demo/draft/tokenizer",
    "dev/LOG",
    "LICENSE",
    "tests/test_words.py",
    "constraints.txt",
)
SUFFIXES = {".py", ".yaml", ".yml", ".md", ".html", ".css", ".js", ".json", ".sh", ".toml", ".j2", ""}

exec((Path(__file__).with_name("rename_files.py")).read_text(encoding="utf-8"))

UNIQUE_PATTERN = re.compile(
    r"(?<![\w])(" + "|".join(sorted(map(re.escape, UNIQUE), key=len, reverse=True)) + r")(?!\w)"
)
TENSOR = re.compile(r"^law_([A-Z0-9]+)$")
WORD = re.compile(r"[A-Za-z_]\w*")
# Words within the names of tests.
TEST_WORDS = {
    "judge": "verification",
    "judges": "verifications",
    "law": "distribution",
    "laws": "distributions",
    "road": "pipeline",
    "said": "reported",
    "told": "reported",
    "says": "reports",
    "handed": "exported",
    "mend": "fix",
    "behind": "after",
    "share": "fraction",
    "shares": "fractions",
    "wish": "options",
    "journey": "context",
    "heeded": "used",
}


def table_for(name: str) -> dict[str, str]:
    table = dict(NAMES)
    for pattern, more in FILES:
        if fnmatch.fnmatch(name, pattern):
            table.update(more)
    return table


def renamed(word: str, table: dict[str, str]) -> str:
    if word in table:
        return table[word]
    if word in UNIQUE:
        return UNIQUE[word]
    if tensor := TENSOR.match(word):
        return f"probs_{tensor[1]}"
    if word.startswith("test_"):
        return "_".join(TEST_WORDS.get(each, each) for each in word.split("_"))
    return word


def fstring(text: str, table: dict[str, str]) -> str:
    """The code within the braces of an f-string; its text is left alone."""
    made, depth, i, quote = [], 0, 0, None
    while i < len(text):
        letter = text[i]
        if depth == 0:
            if letter == "{" and text[i : i + 2] == "{{":
                made.append("{{")
                i += 2
                continue
            depth = int(letter == "{")
            made.append(letter)
            i += 1
            continue
        if quote:
            made.append(letter)
            quote = None if letter == quote else quote
            i += 1
            continue
        if letter in "'\"":
            end = text.find(letter, i + 1)
            if text[i - 1] in "fF" and end > 0:  # an f-string within the braces of another
                made.append(fstring(text[i : end + 1], table))
                i = end + 1
                continue
            quote = letter
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
        elif (match := WORD.match(text, i)) and not (i and text[i - 1].isdigit()):
            before = text[i - 1]
            is_format = before == ":" and match[0] in ("g", "d", "e", "f", "r", "s")
            made.append(match[0] if is_format else renamed(match[0], table))
            i = match.end()
            continue
        made.append(letter)
        i += 1
    return "".join(made)


def python(text: str, name: str) -> str:
    table = table_for(name)
    edits = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            new = renamed(token.string, table)
        elif token.type == tokenize.STRING and re.match(r"[rRbB]*[fF]", token.string):
            new = fstring(token.string, table)
        elif token.type == tokenize.STRING and name.endswith("__init__.py") and token.string[1:-1] in table:
            new = f'"{table[token.string[1:-1]]}"'
        else:
            continue
        if new != token.string:
            edits.append((token.start, token.end, new))
    lines = text.splitlines(keepends=True)
    for (line, column), (end_line, end_column), new in sorted(edits, reverse=True):
        head, tail = lines[line - 1][:column], lines[end_line - 1][end_column:]
        lines[line - 1 : end_line] = [head + new + tail]
    return "".join(lines)


def parametrized(text: str, name: str) -> str:
    """The names of parameters that stand in strings: `parametrize("law", ...)`, `parametrize(("law", "end"), ...)`."""
    table = table_for(name)

    def new(match: re.Match[str]) -> str:
        return WORD.sub(lambda word: renamed(word[0], table), match[0].removeprefix("parametrize")).join(
            ["parametrize", ""]
        )

    return re.sub(r"parametrize\(\s*(?:\([^)]*\)|\"[^\"]*\")", new, text)


def example(code: str) -> str:
    first = re.match(r"# (src/\S+)", code)
    try:
        return python(code, first[1] if first else "docs/example.py")
    except (tokenize.TokenError, SyntaxError):
        return code


def collisions(text: str, name: str) -> list[str]:
    """New names that a file has already, or that two old ones would get."""
    table = table_for(name)
    words = {
        token.string
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.NAME and not token.line.lstrip().startswith("from fastdraft")
    }
    made: dict[str, list[str]] = {}
    for word in words:
        if (new := renamed(word, table)) != word:
            made.setdefault(new, []).append(word)
    return [f"{name}: {', '.join(old)} -> {new}" for new, old in made.items() if len(old) > 1 or new in words]


def unique(text: str, name: str) -> str:
    kept = {word for pattern, words in KEEP for word in words if fnmatch.fnmatch(name, pattern)}
    return UNIQUE_PATTERN.sub(lambda m: m[0] if m[0] in kept else UNIQUE[m[0]], text)


def text_rules(text: str, name: str) -> str:
    for pattern, old, new in TEXT:
        if fnmatch.fnmatch(name, pattern):
            text = re.sub(old, new, text, flags=re.MULTILINE)
    return text


def plain_words(text: str) -> str:
    for old, new in PROSE:
        text = re.sub(old, new, text)
    return text


def outside_braces(text: str) -> str:
    """The prose of an f-string, without the code in its braces."""
    made, depth, last = [], 0, 0
    for i, letter in enumerate(text):
        if letter == "{":
            if depth == 0:
                made.append(plain_words(text[last:i]))
                last = i
            depth += 1
        elif letter == "}":
            depth = max(0, depth - 1)
            if depth == 0:
                made.append(text[last : i + 1])
                last = i + 1
    return "".join([*made, plain_words(text[last:])])


def prose(text: str, name: str) -> str:
    """One-to-one words in comments and docstrings of Python, and in Markdown outside of code."""
    if name.endswith((".yaml", ".yml", ".sh")):
        return re.sub(r"#.*", lambda comment: plain_words(comment[0]), text)
    if not name.endswith(".py"):
        for old, new in PROSE if name.endswith(".md") else ():
            text = re.sub(old, new, text)
        return text
    edits = []
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            new = outside_braces(token.string) if re.match(r"[rRbB]*[fF]", token.string) else plain_words(token.string)
            if new != token.string:
                edits.append((token.start, token.end, new))
    for (line, column), (end_line, end_column), new in sorted(edits, reverse=True):
        head, tail = lines[line - 1][:column], lines[end_line - 1][end_column:]
        lines[line - 1 : end_line] = [head + new + tail]
    return "".join(lines)


def main() -> None:
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], check=True, capture_output=True, text=True
    ).stdout.split("\n")
    for name in names:
        path = ROOT / name
        if not name or name.startswith(SKIP) or path.suffix not in SUFFIXES or not path.is_file() or path.is_symlink():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        new = text_rules(text, name)
        if path.suffix == ".py" and name.startswith("tests/"):
            new = parametrized(new, name)
        if path.suffix == ".py":
            for line in collisions(new, name):
                print("look at", line)
            new = python(new, name)
        elif (
            path.suffix == ".md"
        ):  # the examples of docs/extend.md are run; a block names its own file in its first line
            new = re.sub(r"(?<=^```python\n).*?(?=^```)", lambda block: example(block[0]), new, flags=re.M | re.S)
        new = prose(unique(new, name), name)
        if new != text:
            path.write_text(new, encoding="utf-8")
    for old, new in MOVES:
        if (ROOT / old).exists():
            subprocess.run(["git", "-C", str(ROOT), "mv", old, new], check=True)
    left = [
        f"{name}: {wrong}"
        for name, wrong in (
            ("src/fastdraft/pipeline/stages.py", "CAME_LATER"),
            ("src/fastdraft/pipeline/stages.py", "TAKEN_FOR"),
            ("src/fastdraft/system/cards.py", "VERSION = 1\n"),
        )
        if wrong in (ROOT / name).read_text(encoding="utf-8")
    ]
    if left:
        sys.exit("did not go: " + "; ".join(left))
    ruff = str(ROOT / ".venv" / "bin" / "ruff")
    for arguments in (["check", "-q", "--select", "I,RUF022,F401", "--fix"], ["format", "-q"]):
        subprocess.run([ruff, *arguments, "src", "tests", "benchmarks", "dev"], cwd=ROOT, check=False)
    wrap(ROOT)
    subprocess.run([ruff, "format", "-q", "src", "tests", "benchmarks", "dev"], cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
