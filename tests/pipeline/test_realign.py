"""`fastdraft align --draft`: align a finished draft on a user's own data and evaluate it before and after."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from fastdraft.config import TargetPart
from fastdraft.models.pretrained import open_tokenizer
from fastdraft.synthesize.user_logs import read_logs, split_held_out, write_logs
from fastdraft.system.errors import CorpusError

ANSWER = " river stone morning yellow"  # with a leading space, as the tiny tokenizer decodes it


@pytest.fixture
def tokenizer(tiny):
    return open_tokenizer(TargetPart(path=str(tiny / "target")))


def jsonl(path: Path, rows: list[object]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def prompts(count: int) -> list[dict[str, str]]:
    words = ["river", "stone", "wolf", "under", "seven", "house", "cloud"]
    return [{"prompt": f"{words[i % 7]} {words[i // 7 % 7]} {words[i % 5]} the {i}"} for i in range(count)]


# Reading the data.


def test_rows_with_and_without_answers_are_not_mixed(tiny, tokenizer):
    rows = [row | {"completion": ANSWER} for row in prompts(5)] + prompts(9)[5:]
    logs = read_logs(jsonl(tiny / "a.jsonl", [*rows, "{", {"other": 1}]), tokenizer, 97, 23)
    assert [row.answer for row in logs.rows] == [ANSWER] * 5
    assert logs.refused == Counter(
        {
            "rows without a `completion`, while others have one": 4,
            "rows that are not JSON": 1,
            "rows without `prompt` or `messages`": 1,
        }
    )


def test_a_row_leaves_room_for_its_answer_in_the_context(tiny, tokenizer):
    tokens = len(tokenizer(ANSWER).input_ids)
    path = jsonl(tiny / "a.jsonl", [{"prompt": ANSWER}])
    assert len(read_logs(path, tokenizer, tokens + 23, 23).rows) == 1
    with pytest.raises(CorpusError, match=r"1 rows that leave no 23 tokens for an answer[^\0]*\n  do: "):
        read_logs(path, tokenizer, tokens + 22, 23)
    with pytest.raises(CorpusError, match=r"1 rows longer than the target's context[^\0]*\n  do: "):
        read_logs(path, tokenizer, tokens, 1)


def test_messages_may_end_in_the_answer(tiny, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = [{"role": "user", "content": "river"}, {"role": "assistant", "content": ANSWER}]
    (row,) = read_logs(jsonl(tiny / "a.jsonl", [{"messages": chat}]), tokenizer, 97, 23).rows
    assert (row.prompt, row.answer) == (chat[:1], ANSWER)


def test_the_split_depends_on_the_prompts_alone_and_shares_none(tiny, tokenizer):
    rows = [row | {"completion": f"{ANSWER} {i}"} for i, row in enumerate(prompts(31) * 3)]
    logs = read_logs(jsonl(tiny / "a.jsonl", rows), tokenizer, 97, 23)
    train, held_out = split_held_out(logs, 0.2)
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    assert (len(train), len(held_out)) == (3 * 25, 6)
    again = read_logs(jsonl(tiny / "b.jsonl", rows[::-1]), tokenizer, 97, 23)
    assert {row.prompt for row in split_held_out(again, 0.2)[1]} == {row.prompt for row in held_out}


def test_one_prompt_cannot_be_split(tiny, tokenizer):
    logs = read_logs(jsonl(tiny / "a.jsonl", prompts(1) * 3), tokenizer, 97, 23)
    with pytest.raises(CorpusError, match=r"one distinct prompt[^\0]*\n  do: give "):
        split_held_out(logs, 0.1)


def test_written_logs_read_back(tiny, tokenizer):
    logs = read_logs(jsonl(tiny / "a.jsonl", [row | {"completion": ANSWER} for row in prompts(7)]), tokenizer, 97, 23)
    write_logs(logs.rows, tiny / "b.jsonl")
    assert read_logs(str(tiny / "b.jsonl"), tokenizer, 97, 23) == logs


# The command.


@pytest.mark.slow
@pytest.mark.parametrize("answered", [False, True])
def test_one_command_realigns_and_reports_before_and_after(finished_run, fastdraft, answered):
    rows = [row | ({"completion": ANSWER} if answered else {}) for row in prompts(40)]
    jsonl(finished_run / "logs.jsonl", rows)
    command = ["align", "--draft", "runs/tiny/align/model", "--target", "target", "--data", "logs.jsonl"]
    keys = ["threads=1", "align.precision=fp32", "align.train_tokens=2000"]
    ended = fastdraft(*command, "--max-new-tokens", "13", "--json", "--out", "out", *keys)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert {task["temperature"] for task in found["tasks"]} == {0.0, 0.6, 1.0}
    assert [result["stage"] for result in found["results"]] == ["out/align/model"] * 3 + ["runs/tiny/align/model"] * 3
    assert len(found["comparisons"]) == 3
    assert {result["prompts"] for result in found["results"]} == {4}
    again = fastdraft(*command, "--max-new-tokens", "13", "--json", "--out", "out", *keys)
    assert (again.code, json.loads(again.out)) == (0, found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draft", "d"], r"missing --target, --data[^\0]*\n  do: fastdraft align --draft"),
        ([], r"neither a recipe nor --draft[^\0]*\n  do: "),
        (["--draft", "d", "--target", "t", "--data", "x", "--held-out", "1"], r"--held-out: found 1, wanted"),
    ],
)
def test_what_is_missing_is_reported(fastdraft, arguments, message):
    ended = fastdraft("align", *arguments)
    assert ended.code == 2
    assert re.search(message, ended.err)


def test_unusable_data_leaves_no_folder(tiny, fastdraft):
    (tiny / "empty.jsonl").write_text("")
    ended = fastdraft("align", "--draft", "d", "--target", "target", "--data", "empty.jsonl", "--out", "out")
    assert ended.code == 2
    assert "empty.jsonl has no row to align on" in ended.err
    assert not (tiny / "out").exists()


def test_a_run_folder_that_is_a_file_is_refused(tiny, fastdraft):
    jsonl(tiny / "logs.jsonl", prompts(7))
    (tiny / "out").write_text("")
    arguments = ["--draft", "d", "--target", "target", "--data", "logs.jsonl", "--max-new-tokens", "13"]
    ended = fastdraft("align", *arguments, "--out", "out")
    assert ended.code == 2
    assert "out is not a writable folder: " in ended.err
    assert "do: choose another folder with --out" in ended.err
