"""Evaluation tasks: the prompt of each, from local folders in the hub's form and from files."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fastdraft.evaluation import tasks
from fastdraft.evaluation.tasks import DEFAULT_TASKS, TASKS, HubSet, tasks_of
from fastdraft.system.errors import CorpusError, TargetError, TaskError

PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "prompts"
STORY = " ".join(f"word{i}" for i in range(40))
# A row of each task's data set, and its prompt for a target with and without a chat template.
ROWS = {
    "cnn_dailymail": ({"article": "News.", "highlights": "N"}, "<user>Summarize: News.<t>", "News.\n\nTL;DR:"),
    "tinystories": ({"text": STORY}, STORY[: STORY.index(" word32")], STORY[: STORY.index(" word32")]),
    "dolly": ({"instruction": "Why?", "context": "So.", "response": "A"}, "<user>Why?\n\nSo.<t>", "Why?\n\nSo.\n\n"),
    "mt-bench": ({"prompt": ["First?", "Second?"], "category": "math"}, "<user>First?<t>", "First?\n\n"),
    "humaneval": ({"prompt": "def f():\n", "task_id": "0"}, "def f():\n", "def f():\n"),
    "gsm8k": ({"question": "How many?", "answer": "2"}, "<user>How many?<t>", "Question: How many?\nAnswer:"),
}


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer) -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def lines(path: Path, rows: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def texts(task: tasks.TaskPrompts, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(prompt) for prompt in task.prompts]


def test_the_table_names_each_task_once():
    names = [task.name for task in TASKS]
    assert len(names) == len(set(names)) >= 10
    assert {*DEFAULT_TASKS} <= {*names}
    assert {*ROWS} == {name for name in names if not name.startswith("spec-bench:")}
    assert all("," not in name and "=" not in name for name in names), "arguments are split at these"


@pytest.mark.parametrize("name", ROWS)
def test_a_task_reads_its_hub_set(name, tmp_path, monkeypatch, tokenizer, byte_tokenizer):
    """The code that reads the hub reads a local folder with the same subset, split and columns."""
    row, chatted, plain = ROWS[name]
    task = next(task for task in TASKS if task.name == name)
    folder = tmp_path / "set"
    lines(folder / "rows.jsonl", [row])
    config = {
        "config_name": task.hub.subset or "default",
        "data_files": [{"split": task.hub.split, "path": "rows.jsonl"}],
    }
    (folder / "README.md").write_text(f"---\nconfigs:\n- {json.dumps(config)}\n---\n")
    local = tasks.Task(**{**vars(task), "hub": HubSet(str(folder), *task.hub[1:])})
    monkeypatch.setattr(tasks, "TASKS", (local,))
    (task,) = tasks_of([name], tokenizer, 1000)
    expected = f"<s>{chatted}<a>" if chatted.startswith("<user>") else chatted
    assert texts(task, tokenizer) == [expected]
    assert (task.name, task.version, task.source) == (name, 1, str(folder))
    assert texts(tasks_of([name], byte_tokenizer(None), 1000)[0], byte_tokenizer(None)) == [plain]


def test_local_files_are_read_like_the_hub(tmp_path, tokenizer):
    arguments = [f"{name}={lines(tmp_path / f'{name}.jsonl', [row])}" for name, (row, _, _) in ROWS.items()]
    prompts = tasks_of([",".join(arguments[:3]), *arguments[3:]], tokenizer, 1000)
    assert [task.name for task in prompts] == [*ROWS]
    assert [texts(task, tokenizer)[0].removeprefix("<s>").removesuffix("<a>") for task in prompts] == [
        chatted for _, chatted, _ in ROWS.values()
    ]


def test_groups_of_spec_bench_are_in_one_file(tmp_path, tokenizer):
    rows = [
        {"category": kind, "turns": [f"{kind}?", "more?"]} for kind in ("coding", "qa", "rag", "translation", "math")
    ]
    rows += [{"category": kind, "turns": ["x"]} for kind in ("summarization", "math_reasoning")]
    prompts = tasks_of([f"spec-bench={lines(tmp_path / 'q.jsonl', rows)}"], tokenizer, 1000)
    assert [task.name for task in prompts] == [f"spec-bench:{group}" for group in tasks.GROUPS]
    assert texts(prompts[0], tokenizer) == ["<s><user>coding?<t><a>", "<s><user>math?<t><a>"]
    assert [len(task.prompts) for task in prompts] == [2, 1, 1, 1, 1, 1]
    (qa,) = tasks_of([f"spec-bench:qa={tmp_path / 'q.jsonl'}"], tokenizer, 1000)
    assert (texts(qa, tokenizer), qa.left_out) == (["<s><user>qa?<t><a>"], {})


def test_own_prompts_are_plain_texts_or_messages(tmp_path, tokenizer, byte_tokenizer):
    chat = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    file = lines(tmp_path / "own.jsonl", [{"prompt": "go"}, {"messages": chat}, {"messages": chat[:1]}])
    (task,) = tasks_of([str(file)], tokenizer, 1000)
    assert (task.name, texts(task, tokenizer)) == ("own.jsonl", ["go", "<s><system>be<t><user>hi<t><a>"])
    assert task.left_out == {"rows without `prompt` or `messages`": (1, f"{file}:3")}
    with pytest.raises(TargetError, match=r"no chat template"):
        tasks_of([str(file)], byte_tokenizer(None), 1000)


def test_rows_without_a_prompt_are_counted_by_reason(tmp_path, tokenizer):
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
    (task,) = tasks_of([str(file)], tokenizer, 53, max_new_tokens=13)
    assert texts(task, tokenizer) == ["a", "b"]
    assert task.max_new_tokens == 13
    assert task.left_out == {
        "prompts of more than 40 tokens": (1, f"{file}:1"),
        "rows that are not JSON": (1, f"{file}:2"),
        "rows without `prompt` or `messages`": (2, f"{file}:3"),
        "repeated prompts": (1, f"{file}:5"),
    }
    (few,) = tasks_of([str(file)], tokenizer, 1000, prompts=1)
    assert (len(few.prompts), few.left_out) == (1, {}), "rows after the last prompt are not read"


def test_a_file_without_any_prompt_is_refused(tmp_path, tokenizer):
    file = lines(tmp_path / "h.jsonl", [{"prompt": "long" * 20}, "{"])
    with pytest.raises(TaskError, match=r"humaneval: no row[^\0]*1 prompts of more than 40 tokens, first "):
        tasks_of([f"humaneval={file}"], tokenizer, 53, max_new_tokens=13)
    with pytest.raises(TaskError, match=r"of at most 0 tokens \(context 53, completion 99\)"):
        tasks_of([f"humaneval={file}"], tokenizer, 53, max_new_tokens=99)
    file.write_text('{"category": "rag"}\n')
    with pytest.raises(TaskError, match=r"it has no row of this task"):
        tasks_of([f"spec-bench:qa={file}"], tokenizer, 53, max_new_tokens=13)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], r"none is given"),
        (["gsm8k", "gsm8k"], r"gsm8k is given twice"),
        (["humanevl"], r"no task `humanevl`; did you mean `humaneval`\?\n  wanted: one of cnn_dailymail"),
        (["mine=own.jsonl"], r"no task `mine`"),
        (["humaneval=nowhere.txt"], r"humaneval: no file at nowhere.txt"),
        (["spec-bench:qa"], r"spec-bench:qa is not on the hub\n  do: fetch https://[^\0]*--tasks spec-bench=question"),
    ],
)
def test_bad_arguments_are_refused(arguments, match, tokenizer):
    with pytest.raises(TaskError, match=match):
        tasks_of(arguments, tokenizer, 1000)


@pytest.mark.parametrize("name", ["[a]", "a*", "a,b", "a=b", "gsm8k=a", "gsm8k,dolly"])
def test_an_existing_file_is_taken_literally(name, tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    file = lines(Path(f"{name}.jsonl"), [{"prompt": "own", "question": "asked"}])
    for folder in ("", f"{tmp_path}/"):
        (own,) = tasks_of([f"{folder}{file}"], tokenizer, 1000)
        assert (own.name, texts(own, tokenizer)) == (file.name, ["own"])
        (task,) = tasks_of([f"gsm8k={folder}{file}"], tokenizer, 1000)
        assert (task.name, texts(task, tokenizer)) == ("gsm8k", ["<s><user>asked<t><a>"])


def test_a_missing_file_is_refused(tokenizer):
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
    (task,) = tasks_of([f"{name}={PROMPTS / file}"], tokenizer, 1 << 20)
    assert (len(task.prompts), task.left_out) == (prompts, {})
    assert all(isinstance(prompt, np.ndarray) and prompt.dtype == np.int64 for prompt in task.prompts)


def test_gzip_is_read(tmp_path, tokenizer):
    with gzip.open(tmp_path / "own.jsonl.gz", "wt") as file:
        file.write('{"prompt": "zip"}\n')
    assert texts(tasks_of([str(tmp_path / "own.jsonl.gz")], tokenizer, 1000)[0], tokenizer) == ["zip"]
