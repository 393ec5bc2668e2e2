"""The split is a function of content alone, and what was trained on is not held out."""

import gzip
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdraft.config import SourcePart
from fastdraft.data.document import Document, content_key, uniform
from fastdraft.data.split import allowed_keys, leaked, shingles_of, side
from fastdraft.system.errors import CorpusError


def part(**keys: float) -> SourcePart:
    return SourcePart(source="text", path="x", **keys)


def file_of(seed: int, lines: int = 40) -> list[str]:
    """Lines as a program might have them; those of two seeds differ."""
    draw = random.Random(seed)
    return [f"    value_{draw.randrange(10**6)} = compute({draw.randrange(10**6)})" for _ in range(lines)]


def document(lines: list[str]) -> Document:
    return Document.of("\n".join(lines), "here")


def test_the_split_is_what_it_was():
    """Numbers, not ranges: a draft is judged on what the packaged target never saw, on every machine and for good."""
    assert content_key("Once upon a time") == "db6ad26f562987b0"
    assert uniform("db6ad26f562987b0", "split") == 0.43340621485722114
    keys = [content_key(f"tale {i}") for i in range(100)]
    assert [i for i, key in enumerate(keys) if side(part(held_out_fraction=0.05), key) == "held_out"] == [
        31,
        49,
        54,
        60,
        61,
        78,
        93,
    ]


def test_fractions_are_kept():
    keys = [content_key(f"tale {i}") for i in range(5003)]
    sides = [side(part(held_out_fraction=0.1, sample_fraction=0.5), key) for key in keys]
    assert sides.count("held_out") / len(keys) == pytest.approx(0.1, abs=0.02)
    assert sides.count("train") / len(keys) == pytest.approx(0.45, abs=0.03)


@given(st.text(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_sampling_never_moves_a_document_across_the_split(text, held_out, one, other):
    key = content_key(text)
    sides = {side(part(held_out_fraction=held_out, sample_fraction=fraction), key) for fraction in (one, other)}
    assert sides in ({"held_out"}, {"train"}, {None}, {"train", None})
    assert side(part(held_out_fraction=0.0), key) == "train"
    assert side(part(held_out_fraction=1.0), key) == "held_out"


def test_copies_with_small_edits_are_found_and_honest_files_stay():
    train = [file_of(seed) for seed in range(7)]
    edited = [line.replace("compute", "calculate") if i in (5, 23) else line for i, line in enumerate(train[2])]
    indented = ["    " + line for line in train[3]]
    shortened = train[4][7:]
    honest, with_one_borrowed_function = file_of(101), file_of(102)[:30] + train[5][:8]
    held_out = [document(lines) for lines in (edited, honest, indented, with_one_borrowed_function, shortened)]
    assert leaked(held_out, shingles_of(document(lines) for lines in train)) == {0, 2, 4}


def test_a_mosaic_of_several_training_files_is_found():
    train = [file_of(seed) for seed in range(5)]
    mosaic = [line for lines in train for line in lines[10:20]]
    assert leaked([document(mosaic), document(file_of(99))], shingles_of(map(document, train))) == {0}


def test_prose_without_line_breaks_is_compared_by_sentences():
    sentences = [f"The fox number {i} met hen number {i * 7}." for i in range(30)]
    copy = " ".join([*sentences[:14], "A sentence of its own.", *sentences[15:]])
    other = " ".join(f"The cat number {i} met mouse number {i * 3}." for i in range(30))
    train = shingles_of([Document.of(" ".join(sentences), "c")])
    assert leaked([Document.of(copy, "a"), Document.of(other, "b")], train) == {0}


@pytest.mark.parametrize("zipped", [False, True])
def test_an_allow_list_is_one_key_a_line(tmp_path, zipped):
    keys = {content_key(f"tale {i}") for i in range(11)}
    content = "\n".join(sorted(keys)).encode()
    (tmp_path / "list").write_bytes(gzip.compress(content) if zipped else content)
    assert allowed_keys(str(tmp_path / "list")) == keys


def test_an_allow_list_that_is_not_there(tmp_path):
    with pytest.raises(CorpusError, match=r"no allow-list at(.|\n)*do: correct `held_out_list`"):
        allowed_keys(str(tmp_path / "list"))
