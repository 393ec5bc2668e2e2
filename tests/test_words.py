"""Plain words: names and sentences are those of transformers, trl, vLLM and the papers; nothing private comes back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A regular expression that matches a whole word, and what to write instead, with the reason.
BANNED: dict[str, str] = {
    r"laws?": "distribution, or sampling parameters: 'law' is no term of this field",
    r"target_law|law_share|keeps_law": "teacher_logits, teacher_fraction, keeps_distribution: words of distillation",
    r"judges?|judged|judging|judge?ment": "verification, verify: 'judge' means LLM-as-a-judge to everybody",
    r"roads?": "pipeline, or the stages of a run",
    r"travel(?:s|led)?": "run, run_stages",
    r"[Ww]ish(?:es)?": "options: BenchOptions, ExportOptions",
    r"[Jj]ourneys?": "the context of a run: RunContext",
    r"Made(?! by)": "StageResult: a name says what a thing is",
    r"finished_last": "atomic_write",
    r"artefacts/": "pipeline/: what a stage makes; a use case stands in the package of its command",
    r"mend(?:s|ed|ing|able)?": "fix, repair",
    r"heed(?:s|ed|ing)?": "use; `ignored` for what is not used",
    r"unsaid": "suppressed",
    r"told": "reported, printed, given",
    r"likeliest": "most likely; top_logprobs for the tokens that an engine returns",
    r"completion_tokens": "max_new_tokens, as transformers, trl and vLLM call it",
    r"batch_prompts|batch_sequences|micro_batch_sequences": "batch_size, micro_batch_size",
    r"answers_per_prompt": "samples_per_prompt",
    r"documents_at_most|\w+_at_most": "max_...",
    r"requests_at_once|\w+_at_once": "concurrent_..., batch_size",
    r"measure_prompts": "validation_prompts",
    r"\w+_share": "..._fraction",
    r"draft\.start": "draft.init: `start` of weights is `init` everywhere else",
    r"coins?\.py|heap\.py|faults\.py|around\.py|ours\.py|other\.py|side\.py|shown\.py|drawn\.py": "a module's name is "
    "a promise: name it by what is in it",
    r"of which": "two sentences, or a relative clause that names its noun",
    r"nothing is after None": "None if either reading is missing",
    r"is not so": "say what is wrong",
    r"has it\b(?= that| so)": "say who says it",
}
# What a banned word may stand in: names of others, and words of the language that mean what everybody takes them for.
ALLOWED = (
    re.compile(r"usage\.completion_tokens|\"completion_tokens\""),  # a key of OpenAI's API
    re.compile(r"judge?ment_day"),
)
FILES = (
    *sorted((ROOT / "src" / "fastdraft").rglob("*.py")),
    *sorted((ROOT / "src" / "fastdraft" / "report" / "templates").glob("*")),
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "recipes").glob("*.yaml")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "mkdocs.yml",
)
PATTERNS = {word: re.compile(rf"(?<![A-Za-z0-9])(?:{word})(?![A-Za-z0-9])") for word in BANNED}


def faults(text: str) -> list[tuple[int, str, str]]:
    """(line, what was found, what to write instead) of each banned word."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line
        for allowed in ALLOWED:
            bare = allowed.sub("", bare)
        for word, pattern in PATTERNS.items():
            for match in pattern.finditer(bare):
                found.append((number, match[0], BANNED[word]))
    return found


def test_there_is_enough_to_look_at() -> None:
    assert len(FILES) >= 250


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_word(path: Path) -> None:
    if path == Path(__file__):
        return
    found = [
        f"{path.relative_to(ROOT)}:{line}: `{word}`; write: {instead}"
        for line, word, instead in faults(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "The law of the target is kept.",
        "if part.law.greedy:",
        "probs_law_V = 1",
        "fastdraft evaluate DRAFT --judge",
        "  completion_tokens: 128",
        "sample_share: 0.5",
        "a repair mends it",
        "down the road",
    ],
)
def test_the_guard_sees_a_banned_word(line: str) -> None:
    assert faults(line)


@pytest.mark.parametrize("line", ["a flaw", "roadmap", "max_new_tokens: 128", "recommended amendments", "shared"])
def test_the_guard_lets_plain_words_pass(line: str) -> None:
    assert faults(line) == []
