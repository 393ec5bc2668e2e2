"""Evaluation tasks: what a target is asked, from the hub, from local files in the task's own form, or from own prompts.

A table at the end, one entry each. `version` rises whenever an entry would ask something else of the same rows: results
of two versions are not compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from transformers import PreTrainedTokenizerFast

from fastdraft.data.record_files import ENDINGS, Row, hub_rows, local_rows, sound_text
from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import Keys
from fastdraft.synthesize.prompt_sets import chat_tokens, is_messages
from fastdraft.system.errors import TaskError

Content = Mapping[str, Any]
FILES = ENDINGS[:3]  # rows with fields; text files have none


class HubSet(NamedTuple):
    """A data set on the hub, or one in its form in a local folder."""

    path: str
    subset: str | None
    split: str


@dataclass(frozen=True)
class Task:
    """`text` reads what is asked out of a row, `fields` names where; `group`: which rows are of this task.

    A target with a chat template gets `asked` as a user's turn, unless the task is to go on with a text (`chat` False);
    one without gets `plain`. Both are formats of that text.
    """

    name: str
    version: int
    family: str
    hub: HubSet | None
    fields: str
    text: Callable[[Content], str | None]
    chat: bool
    asked: str = "{}"
    plain: str = "{}"
    prompts: int = 80
    max_new_tokens: int = 128
    group: Callable[[Content], bool] = lambda _: True


class LeftOut(NamedTuple):
    """Rows that gave no prompt for one reason, and where the first of them stands."""

    rows: int
    first: str


@dataclass(frozen=True, eq=False)
class TaskPrompts:
    """A task's prompts as token ids, each once, in the order of its rows; `left_out`: why other rows gave none."""

    name: str
    version: int
    source: str
    prompts: tuple[Tokens, ...]
    max_new_tokens: int
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def losses(self) -> Iterator[str]:
        """A line for each reason why rows gave no prompt."""
        return (f"{self.name}: {out.rows:,} {why}; left out, first {out.first}" for why, out in self.left_out.items())


def tasks_of(
    arguments: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    context_tokens: int,
    prompts: int | None = None,
    max_new_tokens: int | None = None,
) -> list[TaskPrompts]:
    """The tasks that arguments name: `NAME`, `NAME=FILE`, or a `FILE` of own prompts; commas may separate them.

    `prompts` and `max_new_tokens`: otherwise each task's own. A prompt that leaves no room for its completion in the
    target's context is left out and counted. TaskError where a name is unknown, given twice, or gives no prompt.
    """
    named = [pair for argument in arguments for each in argument.split(",") for pair in _named(each.strip())]
    twice = sorted({task.name for task, _ in named if sum(task.name == other.name for other, _ in named) > 1})
    if twice or not named:
        raise TaskError(
            f"tasks: {f'{twice[0]} is given twice' if twice else 'none is given'}\n  do: name each task once"
        )
    return [
        _read(task, place, tokenizer, context_tokens, prompts or task.prompts, max_new_tokens) for task, place in named
    ]


def _named(argument: str) -> list[tuple[Task, str | None]]:
    """The tasks of one argument, and the file that each is read from; None for the hub."""
    name, given, place = argument.partition("=")
    tasks = [task for task in TASKS if name in (task.name, task.name.partition(":")[0])]
    if tasks:
        return [(task, place if given else None) for task in tasks]
    if not given and (argument.endswith(FILES) or Path(argument).exists()):
        return [(_own(Path(argument)), argument)]
    known = [task.name for task in TASKS]
    near = get_close_matches(name, known, 1)
    raise TaskError(
        f"no task `{name}`" + (f"; did you mean `{near[0]}`?" if near else "") + "\n"
        f"  wanted: one of {', '.join(known)}, any of them with =FILE, or a file of prompts ({', '.join(FILES)})\n"
        f"  do: correct --tasks"
    )


def _own(file: Path) -> Task:
    """A user's prompts: texts go as they are, messages under the chat template."""
    return Task(file.name, 1, "own", None, "`prompt` or `messages`", _text_of("prompt"), chat=False)


def _read(
    task: Task,
    place: str | None,
    tokenizer: PreTrainedTokenizerFast,
    context_tokens: int,
    prompts: int,
    max_new_tokens: int | None,
) -> TaskPrompts:
    max_new_tokens = max_new_tokens or task.max_new_tokens
    longest_tokens = max(context_tokens - max_new_tokens, 0)
    found: list[Tokens] = []
    left_out: dict[str, LeftOut] = {}
    for row, prompt in _distinct(task, place, tokenizer, longest_tokens):
        if isinstance(prompt, str):
            rows, first = left_out.get(prompt, LeftOut(0, row.place))
            left_out[prompt] = LeftOut(rows + 1, first)
        else:
            found.append(prompt)
        if len(found) == prompts:
            break
    source = place or (task.hub.path if task.hub else "")
    if not found:
        told = "; ".join(f"{out.rows:,} {why}, first {out.first}" for why, out in left_out.items())
        raise TaskError(
            f"task {task.name}: no row of {source} gives a prompt: {told or 'it has no row of this task'}\n"
            f"  wanted: rows with {task.fields}, of at most {longest_tokens} tokens "
            f"(context {context_tokens}, completion {max_new_tokens})\n"
            f"  do: correct the file, name only tasks that fit, or lower --max-new-tokens (of `bench`: --tokens)"
        )
    return TaskPrompts(task.name, task.version, source, tuple(found), max_new_tokens, left_out)


def _distinct(
    task: Task, place: str | None, tokenizer: PreTrainedTokenizerFast, longest_tokens: int
) -> Iterator[tuple[Row, Tokens | str]]:
    """Each row of a task with its prompt, or with the reason why it gives none."""
    seen = Keys()
    for row in _rows(task, place):
        if not row.fault and not task.group(row.content):
            continue
        tokens = None if row.fault else _tokens(task, row.content, tokenizer)
        if tokens is None:
            yield row, row.fault or f"rows without {task.fields}"
        elif len(tokens) > longest_tokens:
            yield row, f"prompts of more than {longest_tokens} tokens"
        elif (key := xxhash.xxh3_64_hexdigest(tokens.tobytes())) in seen:
            yield row, "prompts that were there before"
        else:
            seen.add([key])
            yield row, tokens


def _rows(task: Task, place: str | None) -> Iterator[Row]:
    if place is not None:
        if not place.endswith(FILES) and not Path(place).exists():
            raise TaskError(f"task {task.name}: no file at {place}\n  do: correct the path")
        return local_rows(place)
    if task.hub is None:
        raise TaskError(
            f"task {task.name} is not on the hub\n"
            f"  do: fetch {SPEC_BENCH}, then --tasks {task.name.partition(':')[0]}=question.jsonl"
        )
    return hub_rows(*task.hub)


def _tokens(task: Task, content: Content, tokenizer: PreTrainedTokenizerFast) -> Tokens | None:
    """The prompt of a row; None where it holds none."""
    if task.family == "own" and "messages" in content:
        messages: Any = content["messages"]
        return chat_tokens(tokenizer, messages) if is_messages(messages) else None
    text = task.text(content)
    if text is None:
        return None
    if task.chat and tokenizer.chat_template is not None:
        return chat_tokens(tokenizer, [{"role": "user", "content": task.asked.format(text)}])
    return np.array(tokenizer(task.plain.format(text)).input_ids, np.int64)


# What a row asks.


def _text_of(*fields: str) -> Callable[[Content], str | None]:
    """The first of these fields that holds a text."""
    return lambda content: next((text for name in fields if (text := sound_text(content.get(name)))), None)


def _first_turn(content: Content) -> str | None:
    """The first of several turns; a second one would need the target's answer."""
    turns = content.get("turns", content.get("prompt"))
    return sound_text(turns[0]) if isinstance(turns, list) and turns else None


def _instruction(content: Content) -> str | None:
    """Dolly's instruction with its context behind it; also out of `### Human: .. ### Assistant: ..` texts."""
    if text := sound_text(content.get("instruction")):
        context = sound_text(content.get("context"))
        return f"{text}\n\n{context}" if context else text
    turn = re.match(r"### Human:\s*(.*?)\s*### Assistant:", str(content.get("text", "")), re.DOTALL)
    return sound_text(turn[1]) if turn else None


def _opening(words: int) -> Callable[[Content], str | None]:
    """The first so many words of a text that has more."""
    begins = re.compile(rf"\s*((?:\S+\s+){{{words - 1}}}\S+)\s+\S")

    def opening(content: Content) -> str | None:
        found = begins.match(sound_text(content.get("text")) or "")
        return found[1] if found else None

    return opening


def _in(*categories: str) -> Callable[[Content], bool]:
    return lambda content: content.get("category") in categories


MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SPEC_BENCH = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
# Spec-Bench's groups (Xia et al. 2024, arXiv:2401.07851) by the categories of its rows; its own words are in the rows.
GROUPS = {
    "mt-bench": MT_BENCH,
    "translation": ("translation",),
    "summarization": ("summarization",),
    "qa": ("qa",),
    "math_reasoning": ("math_reasoning",),
    "rag": ("rag",),
}

TASKS = (
    Task(
        *("cnn_dailymail", 1, "summarisation", HubSet("abisee/cnn_dailymail", "3.0.0", "test")),
        *("`article`", _text_of("article"), True),
        asked="Summarize: {}",
        plain="{}\n\nTL;DR:",
    ),
    Task(
        *("tinystories", 1, "text completion", HubSet("roneneldan/TinyStories", None, "validation")),
        *("`text` of more than 32 words", _opening(32), False),
    ),
    Task(
        *("dolly", 1, "instructions", HubSet("databricks/databricks-dolly-15k", None, "train")),
        *("`instruction`, or `text` with ### Human: and ### Assistant:", _instruction, True),
        plain="{}\n\n",
    ),
    Task(
        *("mt-bench", 1, "instructions", HubSet("HuggingFaceH4/mt_bench_prompts", None, "train")),
        *("`turns` or `prompt`, a list of texts", _first_turn, True),
        plain="{}\n\n",
    ),
    *(
        Task(
            *(f"spec-bench:{name}", 1, "instructions", None, "`turns`, a list of texts", _first_turn, True),
            plain="{}\n\n",
            group=_in(*categories),
        )
        for name, categories in GROUPS.items()
    ),
    Task(
        *("humaneval", 1, "code completion", HubSet("openai/openai_humaneval", None, "test")),
        *("`prompt`", _text_of("prompt"), False),
        prompts=164,
    ),
    Task(
        *("gsm8k", 1, "mathematics", HubSet("openai/gsm8k", "main", "test")),
        *("`question`", _text_of("question"), True),
        plain="Question: {}\nAnswer:",
    ),
)
# The paper's four families of tasks.
USUAL = ("cnn_dailymail", "tinystories", "dolly", "humaneval")
