"""Generated rows: prompt sets, recorded answers, user logs and evaluation tasks count them or refuse the file."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastdraft.config import PromptSetPart, RecordedPart
from fastdraft.evaluation.tasks import tasks_of
from fastdraft.synthesize.answer_parsing import parse_logp, parse_top_logprobs
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.engine_interface import UnusableAnswer
from fastdraft.synthesize.engine_recorded import RecordedEngine
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.prompt_sets import instruction_prompts
from fastdraft.synthesize.user_logs import read_logs, split_held_out, write_logs
from fastdraft.system.errors import UserError

# It refuses some chats with an error of its own, as many templates do, and others with an error of Python's.
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<user>{{ m.content + m.get('name', '') }}{% endfor %}<a>"
)
TEXT = st.text(max_size=9) | st.sampled_from(["\ud800", "\0", " ", "\u200b", "<s>", "x" * 99])
NUMBER = st.integers(-(10**30), 10**30) | st.floats() | st.booleans() | st.integers(0, 5)
VALUE = st.recursive(
    st.none() | NUMBER | TEXT,
    lambda value: st.lists(value, max_size=3) | st.dictionaries(TEXT, value, max_size=3),
    max_leaves=7,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]) | VALUE, "content": TEXT | VALUE},
    optional={"name": VALUE},
)
PROMPT = TEXT | st.lists(MESSAGE, max_size=3) | st.lists(NUMBER, max_size=5) | VALUE
ROW = VALUE | st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("prompt", "messages", "turns", "instruction", "article", "text"), PROMPT),
        **{name: TEXT | st.lists(NUMBER, max_size=5) | VALUE for name in ("answer", "completion", "context")},
        "lp": st.lists(NUMBER, max_size=5) | VALUE,
        "category": VALUE,
    },
)
RUBBISH = settings(max_examples=70, derandomize=True, deadline=None, database=None)


def every_reader(file: Path, tokenizer, decoding, folder: Path) -> None:
    """Reads a file in each way in which rows are read: only a UserError with a remedy may come out."""
    recorded = RecordedPart(path=str(file), logp_field="lp")
    prompt_set = PromptSetPart(source="jsonl", path=str(file), context_field="context")

    def recorded_rows():
        engine = RecordedEngine(recorded, decoding, tokenizer, SamplingParams(1.0), 97, 99)
        for shard in engine.shards([], KeySet()):
            for row in shard.rows:
                assert len(row.prompt) > 0
                assert len(row.tokens) > 0
                assert len(row.logp) in (0, len(row.tokens))
                assert np.isfinite(row.logp).all()

    def logs():
        train, held_out = split_held_out(read_logs(str(file), tokenizer, 97, 7), 0.5)
        write_logs([*train, *held_out], folder / "written.jsonl")

    readers = [
        recorded_rows,
        logs,
        lambda: list(instruction_prompts(prompt_set, tokenizer, 99, 50, Counter())),
        lambda: list(instruction_prompts(prompt_set.model_copy(update={"chat": True}), tokenizer, 99, 50, Counter())),
        *(
            lambda name=name: tasks_of([f"{name}={file}" if name else str(file)], tokenizer, 97, max_new_tokens=7)
            for name in ("", "dolly", "mt-bench", "spec-bench:qa", "tinystories", "cnn_dailymail")
        ),
    ]
    for read in readers:
        message = "\n  do: "
        try:
            read()
        except UserError as error:
            message = str(error)
        assert "\n  do: " in message


@pytest.mark.parametrize("template", ["byte", STRICT], ids=["any template", "strict template"])
@RUBBISH
@given(rows=st.lists(ROW, max_size=4))
@example(rows=[{"prompt": [{"role": "user", "content": "a", "name": {"b": 1}}], "answer": [1, 2**63], "lp": [10**400]}])
def test_any_rows_are_counted_or_refused(tmp_path_factory, byte_tokenizer, decoding, template, rows):
    tokenizer = byte_tokenizer() if template == "byte" else byte_tokenizer(STRICT)
    folder = tmp_path_factory.getbasetemp()
    file = folder / "rubbish.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    every_reader(file, tokenizer, decoding, folder)


@pytest.mark.parametrize(
    "prompts",
    [
        pa.array([1, None]),
        pa.array([b"\xff", b"a"]),
        pa.array([[{"role": "user", "content": "a", "at": pa.scalar(0, pa.timestamp("s")).as_py()}]]),
        pa.array([[{"role": "user", "content": "a", "raw": b"\xff"}], None]),
        pa.array([[("role", "user")]], pa.map_(pa.string(), pa.string())),
        pa.array([0], pa.timestamp("ns")),
        pa.array([2**62], pa.timestamp("us")),
        pa.array(["a", None]).dictionary_encode(),
    ],
    ids=lambda array: str(array.type)[:20],
)
@pytest.mark.filterwarnings("ignore:Discarding nonzero nanoseconds")
def test_any_column_of_parquet_is_counted_or_refused(tmp_path, byte_tokenizer, decoding, prompts):
    file = tmp_path / "rubbish.parquet"
    pq.write_table(pa.table({"prompt": prompts, "messages": prompts, "text": prompts}), file)
    every_reader(file, byte_tokenizer(), decoding, tmp_path)


@RUBBISH
@given(VALUE | st.lists(NUMBER | VALUE, max_size=4))
@example([-(10**400), -1e300, -5])
@example([10**400])
@example(["-1", "-2"])
def test_log_probabilities_are_finite_and_not_above_zero(values):
    tokens = len(values) if isinstance(values, list) else 3
    try:
        logp = parse_logp(values, tokens)
    except UnusableAnswer:
        return
    assert logp.shape == (tokens,)
    assert (np.isfinite(logp) & (logp <= 0)).all()
    assert all(type(value) in (int, float) for value in values)


@RUBBISH
@given(st.lists(st.dictionaries(st.integers(-9, 2**64), st.floats(), max_size=4), max_size=3))
def test_top_tokens_are_ids_with_probabilities(positions):
    try:
        top = parse_top_logprobs(positions, 2)
    except UnusableAnswer:
        return
    assert top is None or (top.ids.shape == top.logp.shape == (len(positions), 2) and (top.logp <= 0).all())
