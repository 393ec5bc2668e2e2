"""Tokenising keeps the documents with any number of tasks, and writes the same bytes twice."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datatrove.pipeline.tokens import DocumentTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from fastdraft.config import SourcePart, TokenizePart
from fastdraft.data.document import Rejected
from fastdraft.data.shards import Shards, SourceCard
from fastdraft.data.sources import documents
from fastdraft.data.split import split_of
from fastdraft.data.tokenize import write_source, write_tokenizer
from fastdraft.system.errors import CardError, CorpusError, RunError

END = 256


def tokenised(
    part: SourcePart, tokenizer: Path, folder: Path, tasks: int = 1, workers: int = 1
) -> tuple[SourceCard, dict[str, Shards]]:
    card = write_source("tales", part, TokenizePart(tasks=tasks, workers=workers), tokenizer, folder, seed=7)
    return card, {name: Shards(folder / name / "shards", getattr(card, name)) for name in ("train", "held_out")}


def texts(shards: Shards, tokenizer: Path) -> list[str]:
    """The documents in the order of the shards, without their end-of-text tokens, which are checked."""
    starts, read_back = shards.document_starts(), Tokenizer.from_file(str(tokenizer))
    pieces = [shards[int(low) : int(high)] for low, high in pairwise(starts)]
    assert all(piece[-1] == END and END not in piece[:-1] for piece in pieces)
    return [
        read_back.decode(piece.tolist(), skip_special_tokens=True).removesuffix("<end of text>") for piece in pieces
    ]


def of_split(part: SourcePart, name: str) -> Counter[str]:
    return Counter(d.text for d in documents(part, Rejected()) if split_of(part, d.key) == name)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_both_splits_hold_their_documents_shuffled(tales, tokenizer, tmp_path):
    card, splits = tokenised(tales, tokenizer, tmp_path / "out")
    for name, shards in splits.items():
        written = texts(shards, tokenizer)
        assert Counter(written) == of_split(tales, name)
        assert written != list(of_split(tales, name))
        assert getattr(card, name).documents == shards.documents == len(written)
    assert splits["held_out"].documents > 10
    assert len(card.held_out_keys) == splits["held_out"].documents
    assert (card.rejected, card.near_duplicates_dropped) == ({}, 0)


def test_two_runs_write_the_same_bytes(tales, tokenizer, tmp_path):
    cards = [tokenised(tales, tokenizer, tmp_path / name)[0] for name in ("one", "two")]
    assert cards[0] == cards[1]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert {path.parts[-2] for path in (tmp_path / "one").rglob("*.ds")} == {"shards"}
    assert len(files(tmp_path / "one")) == 5, "two shards, their indexes and the source's card"
    assert not list(tmp_path.glob("*.attempts"))


@pytest.mark.slow
def test_tasks_and_workers_do_not_change_the_documents(tales, tokenizer, tmp_path):
    alone, _ = tokenised(tales, tokenizer, tmp_path / "alone")
    card, splits = tokenised(tales, tokenizer, tmp_path / "many", tasks=3, workers=2)
    assert Counter(texts(splits["train"], tokenizer)) == of_split(tales, "train")
    assert len(card.train.files) == 3
    assert (card.train.tokens, card.train.documents) == (alone.train.tokens, alone.train.documents)
    assert Counter(texts(splits["held_out"], tokenizer)) == of_split(tales, "held_out")
    assert (card.held_out.tokens, card.held_out_keys) == (alone.held_out.tokens, alone.held_out_keys)
    again, _ = tokenised(tales, tokenizer, tmp_path / "again", tasks=3, workers=2)
    assert again == card
    assert files(tmp_path / "again") == files(tmp_path / "many")


def test_more_tasks_than_documents(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    part = SourcePart(source="jsonl", path=str(tmp_path / "a.jsonl"), held_out_fraction=0.0)
    card, splits = tokenised(part, tokenizer, tmp_path / "out", tasks=5)
    assert sorted(texts(splits["train"], tokenizer)) == ["one", "two"]
    assert (len(card.train.files), card.held_out.files, splits["held_out"].tokens) == (2, (), 0)
    assert splits["held_out"].document_starts().tolist() == [0]


@pytest.mark.parametrize(("bos", "frame"), [(None, [END]), (257, [257, END])])
def test_a_document_gets_the_special_tokens_of_the_target(byte_tokenizer, tmp_path, bos, frame):
    # Spaces and colons have a meaning in a template: "<end of text>" and "bos:1" contain them.
    target = Tokenizer.from_str(byte_tokenizer.to_str())
    target.add_special_tokens(["bos:1"])
    target.enable_truncation(2)
    write_tokenizer(target, tmp_path / "frame.json", bos, END)
    ids = Tokenizer.from_file(str(tmp_path / "frame.json")).encode("a tale").ids
    assert [i for i in ids if i >= END] == frame
    assert ids[-1] == END
    assert len(ids) == 6 + len(frame)
    assert target.truncation is not None, "the target's own tokenizer is unchanged"


@pytest.mark.parametrize(("words", "width"), [(2**16, 2), (2**16 + 1, 4)])
def test_token_width_is_the_one_that_datatrove_used(tmp_path, words, width):
    vocabulary = {f"w{i}": i for i in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    write_tokenizer(tokenizer, tmp_path / "tokenizer.json", None, words - 1)
    (tmp_path / "a.txt").write_text(f"w1 w{words - 1} w2")
    part = SourcePart(source="text", path=str(tmp_path / "a.txt"), held_out_fraction=0.0)
    card, splits = tokenised(part, tmp_path / "tokenizer.json", tmp_path / "out")
    assert card.train.bytes_per_token == width
    assert DocumentTokenizer(str(tmp_path), str(tmp_path / "tokenizer.json")).token_size == width
    assert splits["train"][0:9].tolist() == [1, words - 1, 2, words - 1]


def test_near_duplicates_are_dropped_from_the_held_out_split(tokenizer, tmp_path):
    def story(i: int) -> str:
        return "\n".join(f"line {line} of story {i}" for line in range(12))

    stories = [story(i) for i in range(60)]
    edited = [text.replace("line 5", "the fifth line") for text in stories]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in stories + edited))
    part = SourcePart(source="jsonl", path=str(tmp_path / "a.jsonl"), held_out_fraction=0.2)
    card, splits = tokenised(part, tokenizer, tmp_path / "out")
    train, held_out = (texts(splits[name], tokenizer) for name in ("train", "held_out"))

    def names(stories: list[str]) -> set[str]:
        return {text.rsplit(" ", 1)[1] for text in stories}

    assert names(train).isdisjoint(names(held_out))
    assert card.near_duplicates_dropped == sum(of_split(part, "held_out").values()) - len(held_out) > 0
    assert len(held_out) > 0, "pairs with both stories held out are kept"


def test_held_out_documents_outside_an_allow_list_are_dropped(tales, tokenizer, tmp_path):
    whole, _ = tokenised(tales, tokenizer, tmp_path / "whole")
    (tmp_path / "list").write_text("\n".join(whole.held_out_keys[:3]))
    part = tales.model_copy(update={"held_out_list": str(tmp_path / "list")})
    card, splits = tokenised(part, tokenizer, tmp_path / "out")
    assert card.held_out_keys == whole.held_out_keys[:3]
    assert splits["held_out"].documents == 3
    assert card.train == whole.train


@pytest.mark.parametrize(
    ("texts", "change", "message"),
    [
        (
            [f"tale {i}" for i in range(7)],
            {"sample_fraction": 0.0},
            r"no document to train on; \d+ .*left out.*\n  do: raise `sample_fraction`",
        ),
        (["a"] * 7, {"held_out_fraction": 1.0}, r"train on; 7 rows.* 6 duplicates, 1 held out\n  do: give more"),
        (
            ["a"],
            {},
            r"no document to measure a draft on; 1 rows or files were read: 1 to train on\n  do: give more",
        ),
        (["a"] * 7, {}, r"no document to measure a draft on; 7 rows .*: 6 duplicates, 1 to train on\n  do: give"),
        ([""], {}, r"no document to train on; 1 rows or files were read: none has a text\n  do: correct `path`"),
        ([], {}, r"no document to train on; 0 rows .* none has a text\n  do: correct `path`"),
    ],
)
def test_an_empty_split_is_an_error(tokenizer, tmp_path, texts, change, message):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    part = SourcePart(source="jsonl", path=str(tmp_path / "a.jsonl"), **change)
    with pytest.raises(CorpusError, match=f"`tales` .*{message}"):
        tokenised(part, tokenizer, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 9_999, b"\xff", b'{"train": 3}', b"null"])
def test_a_damaged_card_of_a_source_is_an_error(tokenizer, tmp_path, content):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "source.json").write_bytes(content)
    with pytest.raises(CardError, match=r"source.json is not the card of a source:(.|\n)*  do: remove .*/out, then"):
        tokenised(SourcePart(source="jsonl", path="not read"), tokenizer, folder)


def test_datatrove_prints_nothing(tales, tokenizer, tmp_path, capfd):
    tokenised(tales, tokenizer, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_tokens_are_little_endian(tales, tokenizer, tmp_path):
    card, splits = tokenised(tales, tokenizer, tmp_path / "out")
    (file,) = card.train.files
    raw = np.fromfile(tmp_path / "out" / "train" / "shards" / file.name, "<u2")
    assert raw.tolist() == splits["train"][0 : splits["train"].tokens].tolist()


@pytest.mark.parametrize("below", ["../../victim", "link/victim"])
def test_a_source_removes_nothing_outside_its_stage(tales, tokenizer, tmp_path, below):
    """A recipe cannot name such a source. If it could, the folder that it leads to would still stay."""
    stage = tmp_path / "run" / "tokenize"
    stage.mkdir(parents=True)
    (stage / "link").symlink_to(tmp_path)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("mine")
    with pytest.raises(RunError, match=r"victim.* is not within .*tokenize"):
        write_source("tales", tales, TokenizePart(), tokenizer, stage / below, 7, inside=stage)
    assert (tmp_path / "victim" / "precious").read_text() == "mine"
