"""Evaluation tasks: prompts from the hub, from local files in the same form, or from a user's own file.

The table is at the end of this file, one entry per task. Raise an entry's `version` when it would make other prompts
from the same rows: results of two versions are not compared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from transformers import PreTrainedTokenizerFast

from fastdraft.data.record_files import (
    RECORD_SUFFIXES,
    Record,
    UnusableRow,
    hub_records,
    local_records,
    sound_text,
)
from fastdraft.data.shards import Tokens
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.prompt_sets import chat_tokens, is_messages, text_tokens
from fastdraft.system.errors import TaskError

Content = Mapping[str, Any]


class HubSet(NamedTuple):
    """A data set on the hub, or a local folder in the same form."""

    path: str
    subset: str | None
    split: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """An evaluation task.

    `text` extracts the text of a record, and `fields` says in error messages which fields it reads. `group` selects
    the records of this task. With `chat`, a target that has a chat template gets `chat_format` as a user's turn. Every
    other target continues `plain_format`. Both formats contain the text.
    """

    name: str
    version: int = 1
    family: str
    hub: HubSet | None
    fields: str
    text: Callable[[Content], str | None]
    chat: bool
    chat_format: str = "{}"
    plain_format: str = "{}"
    prompts: int = 80
    max_new_tokens: int = 128
    group: Callable[[Content], bool] = lambda _: True


class LeftOut(NamedTuple):
    """The number of records that gave no prompt for one reason, and the place of the first of them."""

    rows: int
    first: str


@dataclass(frozen=True, eq=False)
class TaskPrompts:
    """A task's distinct prompts as token ids, in the order of the records; `left_out`: the other records, by reason."""

    name: str
    version: int
    source: str
    prompts: tuple[Tokens, ...]
    max_new_tokens: int
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def left_out_lines(self) -> Iterator[str]:
        """A line to print for each reason why records gave no prompt."""
        return (f"{self.name}: {out.rows:,} {why}; left out, first {out.first}" for why, out in self.left_out.items())


def tasks_of(
    arguments: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    context_tokens: int,
    prompts: int | None = None,
    max_new_tokens: int | None = None,
) -> list[TaskPrompts]:
    """The tasks of command-line arguments: `NAME`, `NAME=FILE`, or a `FILE` of own prompts, also separated by commas.

    An existing FILE is taken literally, whatever characters its name contains.
    `prompts` and `max_new_tokens` default to each task's own. A prompt that leaves no room for its completion in the
    target's context is left out and counted. TaskError if a name is unknown, given twice, or gives no prompt.
    """
    named = list[tuple[Task, str | None]]()
    for argument in arguments:
        is_one = os.path.exists(argument) or os.path.exists(argument.partition("=")[2])
        for each in [argument] if is_one else map(str.strip, argument.split(",")):
            named += _parse(each)
    names = [task.name for task, _ in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not named:
        raise TaskError(
            f"tasks: {f'{twice[0]} is given twice' if twice else 'none is given'}\n  do: name each task once"
        )
    return [
        _read(task, file, tokenizer, context_tokens, prompts or task.prompts, max_new_tokens or task.max_new_tokens)
        for task, file in named
    ]


def _parse(argument: str) -> list[tuple[Task, str | None]]:
    """The tasks of one argument with the file that each is read from; None for the hub."""
    name, equals, file = argument.partition("=")
    tasks = [task for task in TASKS if name in (task.name, task.name.partition(":")[0])]
    is_file = os.path.exists(argument) or (not equals and argument.endswith(RECORD_SUFFIXES))
    if tasks and not (equals and is_file):
        return [(task, file if equals else None) for task in tasks]
    if is_file:
        own = Task(
            name=Path(argument).name,
            family="own",
            hub=None,
            fields="`prompt` or `messages`",
            text=_text_of("prompt"),
            chat=False,
        )
        return [(own, argument)]
    known = [task.name for task in TASKS]
    near = get_close_matches(name, known, 1)
    raise TaskError(
        f"no task `{name}`" + (f"; did you mean `{near[0]}`?" if near else "") + "\n"
        f"  wanted: one of {', '.join(known)}, any of them with =FILE, or a file of prompts "
        f"({', '.join(RECORD_SUFFIXES)})\n"
        f"  do: correct --tasks"
    )


def _read(
    task: Task,
    file: str | None,
    tokenizer: PreTrainedTokenizerFast,
    context_tokens: int,
    prompts: int,
    max_new_tokens: int,
) -> TaskPrompts:
    longest_tokens = max(context_tokens - max_new_tokens, 0)
    found: list[Tokens] = []
    left_out: dict[str, LeftOut] = {}
    for record, prompt in _prompts(task, file, tokenizer, longest_tokens):
        if isinstance(prompt, str):
            rows, first = left_out.get(prompt, LeftOut(0, record.place))
            left_out[prompt] = LeftOut(rows + 1, first)
        else:
            found.append(prompt)
        if len(found) == prompts:
            break
    source = file or (task.hub.path if task.hub else "")
    if not found:
        reasons = "; ".join(f"{out.rows:,} {why}, first {out.first}" for why, out in left_out.items())
        raise TaskError(
            f"task {task.name}: no row of {source} gives a prompt: {reasons or 'it has no row of this task'}\n"
            f"  wanted: rows with {task.fields}, of at most {longest_tokens} tokens "
            f"(context {context_tokens}, completion {max_new_tokens})\n"
            f"  do: correct the file, name only tasks that fit, or lower --max-new-tokens (`bench`: --tokens)"
        )
    return TaskPrompts(task.name, task.version, source, tuple(found), max_new_tokens, left_out)


def _prompts(
    task: Task, file: str | None, tokenizer: PreTrainedTokenizerFast, longest_tokens: int
) -> Iterator[tuple[Record, Tokens | str]]:
    """Each record of a task with its prompt, or with the reason why it gives none."""
    seen = KeySet()
    for record in _records(task, file):
        if not record.fault and not task.group(record.content):
            continue
        try:
            tokens = _tokens(task, record, tokenizer)
        except UnusableRow as unusable:
            yield record, str(unusable)
            continue
        if len(tokens) > longest_tokens:
            yield record, f"prompts of more than {longest_tokens} tokens"
        elif (key := xxhash.xxh3_64_hexdigest(tokens.tobytes())) in seen:
            yield record, "repeated prompts"
        else:
            seen.add([key])
            yield record, tokens


def _records(task: Task, file: str | None) -> Iterator[Record]:
    if file is not None:
        if not file.endswith(RECORD_SUFFIXES) and not os.path.exists(file):
            raise TaskError(f"task {task.name}: no file at {file}\n  do: correct the path")
        return local_records(file)
    if task.hub is None:
        raise TaskError(
            f"task {task.name} is not on the hub\n"
            f"  do: fetch {SPEC_BENCH}, then --tasks {task.name.partition(':')[0]}=question.jsonl"
        )
    return hub_records(*task.hub)


def _tokens(task: Task, record: Record, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """The prompt of a record as token ids; UnusableRow if it has none."""
    if record.fault is not None:
        raise UnusableRow(record.fault)
    messages: Any = record.content.get("messages")
    if task.family == "own" and is_messages(messages):
        return chat_tokens(tokenizer, messages)
    text = task.text(record.content)
    if text is None:
        raise UnusableRow(f"rows without {task.fields}")
    if task.chat and tokenizer.chat_template is not None:
        return chat_tokens(tokenizer, [{"role": "user", "content": task.chat_format.format(text)}])
    return text_tokens(tokenizer, task.plain_format.format(text))


# The text of a record.


def _text_of(name: str) -> Callable[[Content], str | None]:
    """The text of one field."""
    return lambda content: sound_text(content.get(name))


def _first_turn(content: Content) -> str | None:
    """The first of several turns; the second would need the target's answer to the first."""
    turns = content.get("turns", content.get("prompt"))
    return sound_text(turns[0]) if isinstance(turns, list) and turns else None


def _instruction(content: Content) -> str | None:
    """Dolly's instruction followed by its context, or the first turn of a `### Human: .. ### Assistant: ..` text."""
    if text := sound_text(content.get("instruction")):
        context = sound_text(content.get("context"))
        return f"{text}\n\n{context}" if context else text
    human, found, _ = (sound_text(content.get("text")) or "").partition("### Assistant:")
    return sound_text(human.removeprefix("### Human:").strip()) if found and human.startswith("### Human:") else None


def _first_words(words: int) -> Callable[[Content], str | None]:
    """The first words of a text that has more than `words`."""
    pattern = re.compile(rf"\s*((?:\S+\s+){{{words - 1}}}\S+)\s+\S")

    def first_words(content: Content) -> str | None:
        match = pattern.match(sound_text(content.get("text")) or "")
        return match[1] if match else None

    return first_words


def _in_categories(*categories: str) -> Callable[[Content], bool]:
    return lambda content: content.get("category") in categories


SPEC_BENCH = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
# Spec-Bench's groups (Xia et al. 2024, arXiv:2401.07851) by the `category` of its rows. Its records contain complete
# prompts.
GROUPS = {
    "mt-bench": ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
    "translation": ("translation",),
    "summarization": ("summarization",),
    "qa": ("qa",),
    "math_reasoning": ("math_reasoning",),
    "rag": ("rag",),
}

TASKS = (
    Task(
        name="cnn_dailymail",
        family="summarisation",
        hub=HubSet("abisee/cnn_dailymail", "3.0.0", "test"),
        fields="`article`",
        text=_text_of("article"),
        chat=True,
        chat_format="Summarize: {}",
        plain_format="{}\n\nTL;DR:",
    ),
    Task(
        name="tinystories",
        family="text completion",
        hub=HubSet("roneneldan/TinyStories", None, "validation"),
        fields="`text` of more than 32 words",
        text=_first_words(32),
        chat=False,
    ),
    Task(
        name="dolly",
        family="instructions",
        hub=HubSet("databricks/databricks-dolly-15k", None, "train"),
        fields="`instruction`, or `text` with ### Human: and ### Assistant:",
        text=_instruction,
        chat=True,
        plain_format="{}\n\n",
    ),
    Task(
        name="mt-bench",
        family="instructions",
        hub=HubSet("HuggingFaceH4/mt_bench_prompts", None, "train"),
        fields="`turns` or `prompt`, a list of texts",
        text=_first_turn,
        chat=True,
        plain_format="{}\n\n",
    ),
    *(
        Task(
            name=f"spec-bench:{name}",
            family="instructions",
            hub=None,
            fields="`turns`, a list of texts",
            text=_first_turn,
            chat=True,
            plain_format="{}\n\n",
            group=_in_categories(*categories),
        )
        for name, categories in GROUPS.items()
    ),
    Task(
        name="humaneval",
        family="code completion",
        hub=HubSet("openai/openai_humaneval", None, "test"),
        fields="`prompt`",
        text=_text_of("prompt"),
        chat=False,
        prompts=164,
    ),
    Task(
        name="gsm8k",
        family="mathematics",
        hub=HubSet("openai/gsm8k", "main", "test"),
        fields="`question`",
        text=_text_of("question"),
        chat=True,
        plain_format="Question: {}\nAnswer:",
    ),
)
# The default tasks: the four of the paper.
DEFAULT_TASKS = ("cnn_dailymail", "tinystories", "dolly", "humaneval")
