"""Tasks: what each asks of its rows, on the hub's own form of them in local folders, and from files."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fastdraft.evaluate import tasks
from fastdraft.evaluate.tasks import TASKS, USUAL, HubSet, tasks_of
from fastdraft.system.errors import CorpusError, TargetError, TaskError

PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "prompts"
STORY = " ".join(f"word{i}" for i in range(40))
# A row of each task as its data set has it, and what a target with and without a chat template is asked.
ROWS = {
    "cnn_dailymail": ({"article": "News.", "highlights": "N"}, "<user>Summarize: News.<t>", "News.\n\nTL;DR:"),
    "tinystories": ({"text": STORY}, STORY[: STORY.index(" word32")], STORY[: STORY.index(" word32")]),
    "dolly": ({"instruction": "Why?", "context": "So.", "response": "A"}, "<user>Why?\n\nSo.<t>", "Why?\n\nSo.\n\n"),
    "mt-bench": ({"prompt": ["First?", "Second?"], "category": "math"}, "<user>First?<t>", "First?\n\n"),
    "humaneval": ({"prompt": "def f():\n", "task_id": "0"}, "def f():\n", "def f():\n"),
    "gsm8k": ({"question": "How many?", "answer": "2"}, "<user>How many?<t>", "Question: How many?\nAnswer:"),
}


@pytest.fixture(scope="module")
def tokenizer(speller) -> PreTrainedTokenizerFast:
    return speller()


def lines(path: Path, rows: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def texts(found: tasks.TaskPrompts, spell: PreTrainedTokenizerFast) -> list[str]:
    return [spell.decode(prompt) for prompt in found.prompts]


def test_the_table_names_each_task_once():
    names = [task.name for task in TASKS]
    assert len(names) == len(set(names)) >= 10
    assert {*USUAL} <= {*names}
    assert {*ROWS} == {name for name in names if not name.startswith("spec-bench:")}
    assert all("," not in name and "=" not in name for name in names), "arguments are taken apart at these"


@pytest.mark.parametrize("name", ROWS)
def test_a_task_reads_its_hub_set(name, tmp_path, monkeypatch, tokenizer, speller):
    """The code that opens the hub, on a local folder in the hub's form: the same subset, split and columns."""
    row, chatted, plain = ROWS[name]
    task = next(task for task in TASKS if task.name == name)
    folder = tmp_path / "set"
    lines(folder / "rows.jsonl", [row])
    config = {
        "config_name": task.hub.subset or "default",
        "data_files": [{"split": task.hub.split, "path": "rows.jsonl"}],
    }
    (folder / "README.md").write_text(f"---\nconfigs:\n- {json.dumps(config)}\n---\n")
    here = tasks.Task(**{**vars(task), "hub": HubSet(str(folder), *task.hub[1:])})
    monkeypatch.setattr(tasks, "TASKS", (here,))
    (found,) = tasks_of([name], tokenizer, 1000)
    wanted = f"<s>{chatted}<a>" if chatted.startswith("<user>") else chatted
    assert texts(found, tokenizer) == [wanted]
    assert (found.name, found.version, found.source) == (name, 1, str(folder))
    assert texts(tasks_of([name], speller(None), 1000)[0], speller(None)) == [plain]


def test_local_files_hold_what_the_hub_does(tmp_path, tokenizer):
    given = [f"{name}={lines(tmp_path / f'{name}.jsonl', [row])}" for name, (row, _, _) in ROWS.items()]
    found = tasks_of([",".join(given[:3]), *given[3:]], tokenizer, 1000)
    assert [task.name for task in found] == [*ROWS]
    assert [texts(task, tokenizer)[0].removeprefix("<s>").removesuffix("<a>") for task in found] == [
        chatted for _, chatted, _ in ROWS.values()
    ]


def test_groups_of_spec_bench_fraction_a_file(tmp_path, tokenizer):
    rows = [
        {"category": kind, "turns": [f"{kind}?", "more?"]} for kind in ("coding", "qa", "rag", "translation", "math")
    ]
    rows += [{"category": kind, "turns": ["x"]} for kind in ("summarization", "math_reasoning")]
    found = tasks_of([f"spec-bench={lines(tmp_path / 'q.jsonl', rows)}"], tokenizer, 1000)
    assert [task.name for task in found] == [f"spec-bench:{group}" for group in tasks.GROUPS]
    assert texts(found[0], tokenizer) == ["<s><user>coding?<t><a>", "<s><user>math?<t><a>"]
    assert [len(task.prompts) for task in found] == [2, 1, 1, 1, 1, 1]
    (qa,) = tasks_of([f"spec-bench:qa={tmp_path / 'q.jsonl'}"], tokenizer, 1000)
    assert (texts(qa, tokenizer), qa.left_out) == (["<s><user>qa?<t><a>"], {})


def test_own_prompts_are_texts_as_they_are_or_messages(tmp_path, tokenizer, speller):
    chat = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    file = lines(tmp_path / "own.jsonl", [{"prompt": "go"}, {"messages": chat}, {"messages": chat[:1]}])
    (found,) = tasks_of([str(file)], tokenizer, 1000)
    assert (found.name, texts(found, tokenizer)) == ("own.jsonl", ["go", "<s><system>be<t><user>hi<t><a>"])
    assert found.left_out == {"rows without `prompt` or `messages`": (1, f"{file}:3")}
    with pytest.raises(TargetError, match=r"no chat template"):
        tasks_of([str(file)], speller(None), 1000)


def test_what_gives_no_prompt_is_counted_and_named(tmp_path, tokenizer):
    rows = [
        {"prompt": "long" * 20},
        "{",
        {"prompt": " "},
        {"prompt": "a"},
        {"prompt": "a"},
        {"prompt": 7},
        {"prompt": "b"},
    ]
    file = lines(tmp_path / "own.jsonl", rows)
    (found,) = tasks_of([str(file)], tokenizer, 53, max_new_tokens=13)
    assert texts(found, tokenizer) == ["a", "b"]
    assert found.max_new_tokens == 13
    assert found.left_out == {
        "prompts of more than 40 tokens": (1, f"{file}:1"),
        "rows that are not JSON in UTF-8": (1, f"{file}:2"),
        "rows without `prompt` or `messages`": (2, f"{file}:3"),
        "prompts that were there before": (1, f"{file}:5"),
    }
    (few,) = tasks_of([str(file)], tokenizer, 1000, prompts=1)
    assert (len(few.prompts), few.left_out) == (1, {}), "what lies behind the last prompt is not looked at"


def test_no_prompt_at_all_stops(tmp_path, tokenizer):
    file = lines(tmp_path / "h.jsonl", [{"prompt": "long" * 20}, "{"])
    with pytest.raises(
        TaskError, match=r"humaneval: no row[^\0]*1 prompts of more than 40 tokens, first [^\0]*\n  do: "
    ):
        tasks_of([f"humaneval={file}"], tokenizer, 53, max_new_tokens=13)
    with pytest.raises(TaskError, match=r"of at most 0 tokens \(context 53, completion 99\)\n.*of `bench`: --tokens"):
        tasks_of([f"humaneval={file}"], tokenizer, 53, max_new_tokens=99)
    file.write_text('{"category": "rag"}\n')
    with pytest.raises(TaskError, match=r"it has no row of this task"):
        tasks_of([f"spec-bench:qa={file}"], tokenizer, 53, max_new_tokens=13)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], r"none is given"),
        (["gsm8k", "gsm8k"], r"gsm8k is given twice"),
        (["humanevl"], r"no task `humanevl`; did you mean `humaneval`\?\n  wanted: one of cnn_dailymail[^\0]*\n  do: "),
        (["mine=own.jsonl"], r"no task `mine`"),
        (["humaneval=nowhere.txt"], r"humaneval: no file at nowhere.txt\n  do: "),
        (["spec-bench:qa"], r"spec-bench:qa is not on the hub\n  do: fetch https://[^\0]*--tasks spec-bench=question"),
    ],
)
def test_a_task_that_cannot_be(arguments, said, tokenizer):
    with pytest.raises(TaskError, match=said):
        tasks_of(arguments, tokenizer, 1000)


def test_a_file_that_is_not_there(tokenizer):
    with pytest.raises(CorpusError, match=r"no file at nowhere.jsonl"):
        tasks_of(["nowhere.jsonl"], tokenizer, 1000)


@pytest.mark.skipif(
    not PROMPTS.is_dir(), reason="no published prompts at ../shared/data/prompts, beside the repository"
)
@pytest.mark.parametrize(
    ("argument", "prompts"),
    [
        ("humaneval=humaneval.jsonl.gz", 164),
        ("mt-bench=mt_bench_question.jsonl", 80),
        ("dolly=dolly_open_qa.jsonl.gz", 80),
        ("gsm8k=gsm8k_train.jsonl.gz", 80),
        ("spec-bench:rag=spec_bench.jsonl.gz", 80),
        ("spec-bench:mt-bench=spec_bench.jsonl.gz", 80),
    ],
)
def test_the_published_files(argument, prompts, tokenizer):
    name, _, file = argument.partition("=")
    (found,) = tasks_of([f"{name}={PROMPTS / file}"], tokenizer, 1 << 20)
    assert (len(found.prompts), found.left_out) == (prompts, {})
    assert all(isinstance(prompt, np.ndarray) and prompt.dtype == np.int64 for prompt in found.prompts)


def test_gzip_is_read(tmp_path, tokenizer):
    with gzip.open(tmp_path / "own.jsonl.gz", "wt") as file:
        file.write('{"prompt": "zip"}\n')
    assert texts(tasks_of([str(tmp_path / "own.jsonl.gz")], tokenizer, 1000)[0], tokenizer) == ["zip"]
