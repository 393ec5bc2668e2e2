"""The engine `recorded`: each valid record once, the others counted by reason. Sets of keys."""

import gzip
import json
import sys
import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastdraft.config import RecordedPart
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.engine_recorded import DUPLICATE, RecordedEngine
from fastdraft.synthesize.key_set import HashSet, KeySet
from fastdraft.system.errors import CorpusError

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte; it lowercases, so capitals do not survive."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: i + 1 for i, letter in enumerate(alphabet)} | {"<end>": 0}, []))
    raw.normalizer, raw.decoder = normalizers.Lowercase(), decoders.ByteLevel()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", chat_template=CHAT)


@pytest.fixture
def read(tokenizer, decoding, tmp_path):
    """The completions of files, and the number of refused records by reason."""

    def rows(name="*", max_records=99, context=97, stored=None, max_new_tokens=23, **part):
        recorded = RecordedPart(path=str(tmp_path / name), **part)
        params = decoding._replace(max_new_tokens=max_new_tokens)
        engine = RecordedEngine(recorded, params, tokenizer, SamplingParams(1.0), context, max_records)
        shards = list(engine.shards([], stored or KeySet()))
        return [row for shard in shards for row in shard.rows], sum((shard.refused for shard in shards), Counter())

    return rows


def text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


def jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_texts_become_ids_with_an_end_of_text_and_no_log_probabilities(read, tokenizer, tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"prompt": "what is it?", "answer": " a river."}])
    ((row,), refused) = read()
    assert (text(tokenizer, row.prompt), text(tokenizer, row.tokens)) == ("what is it?", " a river.")
    assert (row.tokens[-1], len(row.logp), row.sampling, refused) == (0, 0, SamplingParams(1.0), Counter())


def test_messages_go_through_the_chat_template_once(read, tokenizer, tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"prompt": [{"role": "user", "content": "hi"}], "answer": "ho"}])
    ((row,), _) = read()
    assert text(tokenizer, row.prompt) == "<user>hi<a>"


def test_ids_and_log_probabilities_are_kept(read, tmp_path):
    rows = [{"prompt": [3, 5], "answer": [7, 11, 0], "lp": [-1.0, -0.5, 0.0]}]
    jsonl(tmp_path / "a.jsonl", rows)
    ((row,), _) = read(logp_field="lp")
    assert (row.prompt.tolist(), row.tokens.tolist(), row.logp.tolist()) == ([3, 5], [7, 11, 0], [-1, -0.5, 0])


def test_text_with_markers_and_parquet_give_the_same_rows(read, tmp_path):
    pairs = [(f"question {i}", f"answer {i}\nof two lines") for i in range(7)]
    marked = "\n\n".join(f"{prompt}<start>{answer}<end>" for prompt, answer in pairs)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(marked.encode()))
    pq.write_table(pa.table({"prompt": [p for p, _ in pairs], "answer": [a for _, a in pairs]}), tmp_path / "b.parquet")
    (from_text, _), (from_parquet, _) = read("a.txt.gz"), read("b.parquet")
    assert [row.key for row in from_text] == [row.key for row in from_parquet]
    assert len(from_text) == 7


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "rows that are not JSON"),
        ("[1]", "rows that are not JSON objects"),
        ("[" * 99_999, "rows that are nested too deeply"),
        ({"answer": "a"}, "rows without a prompt in `prompt`"),
        ({"prompt": "p", "answer": ""}, "rows without an answer in `answer`"),
        ({"prompt": "p", "answer": 7}, "rows without an answer in `answer`"),
        ({"prompt": "p", "answer": "CAPITALS"}, "text that its tokens do not decode to"),
        ({"prompt": "p", "answer": "a\ud800"}, "rows without an answer in `answer`"),
        ({"prompt": "p", "answer": "long" * 30}, "prompt and answer longer than the target's context"),
        ({"prompt": "p", "answer": [5, 999]}, "token ids outside the target's vocabulary"),
        ({"prompt": "same", "answer": "row"}, DUPLICATE),
    ],
)
def test_unusable_records_are_counted(read, tmp_path, row, reason):
    jsonl(tmp_path / "a.jsonl", [{"prompt": "same", "answer": "row"}, row, {"prompt": "and", "answer": "another"}])
    rows, refused = read()
    assert (len(rows), refused) == (2, Counter({reason: 1}))


@pytest.mark.parametrize(
    ("logp", "reason"),
    [
        ([-1.0, 0.1], "log-probabilities above zero, infinite or NaN"),
        ([-1.0, float("nan")], "log-probabilities above zero, infinite or NaN"),
        ([-1.0], "log-probabilities that are not one per token"),
        (None, "log-probabilities that are not one per token"),
        (["a", "b"], "log-probabilities that are not numbers"),
    ],
)
def test_invalid_log_probabilities_are_counted(read, tmp_path, logp, reason):
    jsonl(tmp_path / "a.jsonl", [{"prompt": [1], "answer": [2, 3], "lp": logp}])
    assert read(logp_field="lp") == ([], Counter({reason: 1}))


def test_pieces_without_markers_are_counted(read, tmp_path):
    (tmp_path / "a.txt").write_text("one<start>two<end>three<end>four<start>five")
    rows, refused = read()
    assert len(rows) == 1
    assert refused == Counter({"pieces without <start>": 1, "pieces without <end>": 1})


@pytest.mark.parametrize("marker", ["start_marker", "end_marker"])
def test_an_empty_marker_is_refused(marker):
    with pytest.raises(ValueError, match=f"{marker}\n[^\0]*at least 1 character"):
        RecordedPart.model_validate({"path": "a.txt", marker: ""})


def test_an_answer_is_cut_to_max_new_tokens(read, tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "answer": "abcdefgh"}])
    ((row,), _) = read(max_new_tokens=5)
    assert len(row.tokens) == 5


def test_stored_rows_are_skipped_and_max_records_is_the_limit(read, tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "answer": "a"} for i in range(29)])
    rows, _ = read()
    assert len(rows) == 29
    stored = KeySet()
    stored.add(row.key for row in rows[:17])
    missing, _ = read(stored=stored)
    assert [row.key for row in missing] == [row.key for row in rows[17:]]
    assert len(read(max_records=5)[0]) == 5


def test_a_damaged_file_and_a_missing_file_are_errors(read, tmp_path):
    with pytest.raises(CorpusError, match=r"no file at [^\0]*\n  do: correct `path`"):
        read("none.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "p", "answer": "a"}\n' * 999)[:-9])
    with pytest.raises(CorpusError, match=r"damaged or cut short[^\0]*\n  do: fetch it again"):
        read()
    (tmp_path / "a.jsonl.gz").unlink()
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=r"damaged or cut short[^\0]*\n  do: fetch it again"):
        read()


def test_key_sets_work_at_any_size():
    rng = np.random.default_rng(3)
    keys = [f"{int(n):016x}" for n in rng.integers(0, 2**63, 3 * HashSet.NEWEST // 2)]
    stored = KeySet()
    stored.add(keys[:-7])
    stored.add(keys[:99])
    assert len(stored) == len(keys) - 7
    assert all(key in stored for key in keys[:-7])
    assert not any(key in stored for key in keys[-7:])


def test_a_key_is_found_while_others_are_added(monkeypatch):
    """In the engine `server` one thread looks keys up while another adds those of answers."""
    monkeypatch.setattr(HashSet, "NEWEST", 3)
    stored, keys = KeySet(), [f"{number:016x}" for number in range(1, 4001)]
    added = [keys[0]]
    stored.add(added)

    def add() -> None:
        for key in keys[1:]:
            stored.add([key])
            added.append(key)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    adding = threading.Thread(target=add)
    adding.start()
    missed = 0
    while adding.is_alive():
        missed += added[-1] not in stored
    adding.join()
    sys.setswitchinterval(interval)
    assert missed == 0
