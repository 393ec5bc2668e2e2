"""The split depends only on content, and near-duplicates of training documents are not held out."""

import gzip
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdraft.config import SourcePart
from fastdraft.data.document import Document, content_key, uniform
from fastdraft.data.split import all_shingles, allowed_keys, near_duplicates, split_of
from fastdraft.system.errors import CorpusError


def part(**keys: float) -> SourcePart:
    return SourcePart(source="text", path="x", **keys)


def file_of(seed: int, lines: int = 40) -> list[str]:
    """Lines that look like code; those of two seeds differ."""
    draw = random.Random(seed)
    return [f"    value_{draw.randrange(10**6)} = compute({draw.randrange(10**6)})" for _ in range(lines)]


def document(lines: list[str]) -> Document:
    return Document.of("\n".join(lines), "here")


def test_the_split_never_changes():
    """Fixed numbers: drafts are measured on documents that the packaged target never saw, on every machine."""
    assert content_key("Once upon a time") == "db6ad26f562987b0"
    assert uniform("db6ad26f562987b0", "split") == 0.43340621485722114
    keys = [content_key(f"tale {i}") for i in range(100)]
    assert [i for i, key in enumerate(keys) if split_of(part(held_out_fraction=0.05), key) == "held_out"] == [
        31,
        49,
        54,
        60,
        61,
        78,
        93,
    ]


def test_fractions_of_the_splits():
    keys = [content_key(f"tale {i}") for i in range(5003)]
    splits = [split_of(part(held_out_fraction=0.1, sample_fraction=0.5), key) for key in keys]
    assert splits.count("held_out") / len(keys) == pytest.approx(0.1, abs=0.02)
    assert splits.count("train") / len(keys) == pytest.approx(0.45, abs=0.03)


@given(st.text(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_sampling_never_moves_a_document_to_the_other_split(text, held_out, one, other):
    key = content_key(text)
    splits = {split_of(part(held_out_fraction=held_out, sample_fraction=fraction), key) for fraction in (one, other)}
    assert splits in ({"held_out"}, {"train"}, {None}, {"train", None})
    assert split_of(part(held_out_fraction=0.0), key) == "train"
    assert split_of(part(held_out_fraction=1.0), key) == "held_out"


def test_edited_copies_are_near_duplicates_and_different_files_are_not():
    train = [file_of(seed) for seed in range(7)]
    edited = [line.replace("compute", "calculate") if i in (5, 23) else line for i, line in enumerate(train[2])]
    indented = ["    " + line for line in train[3]]
    shortened = train[4][7:]
    different, with_one_borrowed_function = file_of(101), file_of(102)[:30] + train[5][:8]
    held_out = [document(lines) for lines in (edited, different, indented, with_one_borrowed_function, shortened)]
    assert near_duplicates(held_out, all_shingles(document(lines) for lines in train)) == {0, 2, 4}


def test_a_mosaic_of_several_training_files_is_a_near_duplicate():
    train = [file_of(seed) for seed in range(5)]
    mosaic = [line for lines in train for line in lines[10:20]]
    assert near_duplicates([document(mosaic), document(file_of(99))], all_shingles(map(document, train))) == {0}


def test_prose_without_line_breaks_is_compared_by_sentences():
    sentences = [f"The fox number {i} met hen number {i * 7}." for i in range(30)]
    copy = " ".join([*sentences[:14], "A sentence of its own.", *sentences[15:]])
    different = " ".join(f"The cat number {i} met mouse number {i * 3}." for i in range(30))
    train = all_shingles([Document.of(" ".join(sentences), "c")])
    assert near_duplicates([Document.of(copy, "a"), Document.of(different, "b")], train) == {0}


@pytest.mark.parametrize("zipped", [False, True])
def test_an_allow_list_has_one_key_per_line(tmp_path, zipped):
    keys = {content_key(f"tale {i}") for i in range(11)}
    content = "\n".join(sorted(keys)).encode()
    (tmp_path / "list").write_bytes(gzip.compress(content) if zipped else content)
    assert allowed_keys(str(tmp_path / "list")) == keys


def test_a_missing_allow_list(tmp_path):
    with pytest.raises(CorpusError, match=f"no allow-list at {tmp_path}/list\n[^\0]*  do: .*`held_out_list`"):
        allowed_keys(str(tmp_path / "list"))
