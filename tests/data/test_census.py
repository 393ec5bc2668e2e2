"""The two passes over a source: every text once for any number of tasks, and an error if the source changes."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdraft.config import SourcePart
from fastdraft.data.census import DUPLICATE, Census, count_portion, merge_portions, train_documents
from fastdraft.data.document import Portion, Rejected
from fastdraft.data.sources import documents
from fastdraft.data.split import split_of
from fastdraft.system.errors import CorpusError


def source(folder: Path, *files: list[str], **keys: object) -> SourcePart:
    """A source of one jsonl file for each list of texts."""
    for number, texts in enumerate(files):
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{number:02d}.jsonl").write_text("".join(lines))
    return SourcePart(source="jsonl", path=str(folder), **keys)


def counted(part: SourcePart, folder: Path, tasks: int) -> Census:
    folder.mkdir(exist_ok=True)
    for rank in range(tasks):
        assert list(count_portion(part, folder, None, rank, tasks)) == []
    return merge_portions(part, folder, tasks)


def trained(part: SourcePart, folder: Path, tasks: int) -> list[str]:
    return [d.text for rank in range(tasks) for d in train_documents(part, folder, Portion(rank, tasks))]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.lists(st.integers(0, 30), max_size=13), min_size=1, max_size=5),
    tasks=st.sampled_from([1, 2, 3, 7]),
)
def test_every_text_once_in_its_split_for_any_number_of_tasks(tmp_path_factory, files, tasks):
    folder = tmp_path_factory.mktemp("census")
    (folder / "source").mkdir()
    texts = [[f"tale {i}" for i in numbers] for numbers in files]
    part = source(folder / "source", *texts, held_out_fraction=0.3, sample_fraction=0.8)
    census = counted(part, folder / "work", tasks)
    once = list(documents(part, Rejected()))
    assert Counter(d.text for d in census.held_out) == Counter(
        d.text for d in once if split_of(part, d.key) == "held_out"
    )
    assert Counter(trained(part, folder / "work", tasks)) == Counter(
        d.text for d in once if split_of(part, d.key) == "train"
    )
    assert census.counts[DUPLICATE] == sum(map(len, texts)) - len(once)


def test_one_task_keeps_the_order_and_the_first_of_equal_documents(tmp_path):
    (tmp_path / "source").mkdir()
    part = source(tmp_path / "source", ["b", "a", "b"], ["c", "a", "d"], held_out_fraction=0)
    assert counted(part, tmp_path / "work", 1).counts[DUPLICATE] == 2
    assert trained(part, tmp_path / "work", 1) == ["b", "a", "c", "d"]
    assert [d.text for d in train_documents(part, tmp_path / "work", Portion())] == ["b", "a", "c", "d"]


def test_unusable_records_are_counted_over_all_tasks(tmp_path):
    (tmp_path / "source").mkdir()
    part = source(tmp_path / "source", [f"tale {i}" for i in range(97)], [f"story {i}" for i in range(3)])
    with (tmp_path / "source/01.jsonl").open("a") as file:
        file.write("{\n")
    assert counted(part, tmp_path / "work", 2).rejected.counts == {"rows that are not JSON": 1}
    with (tmp_path / "source/01.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(CorpusError, match=r"2\.0% of the 102 .* 2 rows that are not JSON \(first: .*01\.jsonl:4\)"):
        counted(part, tmp_path / "work", 2)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (["tale 0", "tale 1", "changed", "tale 3"], r"at .*00\.jsonl:3"),
        (["tale 0", "tale 1", "tale 2"], "at its end"),
        (["tale 0", "tale 1", "tale 2", "tale 3", "tale 4"], r"at .*00\.jsonl:5"),
    ],
)
def test_a_source_that_changes_between_the_passes(tmp_path, change, where):
    (tmp_path / "source").mkdir()
    part = source(tmp_path / "source", [f"tale {i}" for i in range(4)], held_out_fraction=0)
    counted(part, tmp_path / "work", 1)
    source(tmp_path / "source", change)
    with pytest.raises(CorpusError, match=rf"changed while it was read: {where} (.|\n)*  do: "):
        trained(part, tmp_path / "work", 1)


# Quality filters.

GOOD = "\n".join([f"This is line {i} of a long text, with words enough to make it a paragraph. " * 4 for i in range(3)])
PAGES = {
    GOOD: None,
    GOOD + "\nplease enable javascript to read on\nso short": None,
    GOOD + "\nif (x) { return y; }": "quality: c4, curly_bracket",
    "lorem ipsum dolor sit amet\n" + GOOD: "quality: c4, lorem_ipsum",
    "one line\nand two": "quality: c4, nothing left",
    "a line of four words\nanother line of four\nand a third one here": "quality: c4_paragraphs, < 3 paragraphs",
}


@pytest.mark.parametrize("tasks", [1, 2])
def test_filters_drop_and_rewrite_documents_and_are_counted(tmp_path, tasks):
    """Two pages are equal after lines have been removed: duplicates are found among the texts that are trained on."""
    (tmp_path / "source").mkdir()
    part = source(tmp_path / "source", list(PAGES), held_out_fraction=0, quality=["c4", "c4_paragraphs"])
    census = counted(part, tmp_path / "work", tasks)
    assert census.rejected.filtered == Counter(reason for reason in PAGES.values() if reason)
    assert census.rejected.counts == {}
    assert (census.counts[DUPLICATE], len(census.held_out)) == (1, 0)
    (text,) = trained(part, tmp_path / "work", tasks)
    assert text.splitlines() == [line.strip() for line in GOOD.splitlines()]


def test_filtered_documents_are_not_unusable_and_hide_no_duplicate(tmp_path):
    """The last page is rewritten to a line that was filtered as a page of its own."""
    (tmp_path / "source").mkdir()
    line = GOOD.splitlines()[0].strip()
    page = "\n".join([line, *(text + " javascript" for text in GOOD.splitlines()[1:])])
    part = source(tmp_path / "source", [line, line, page], held_out_fraction=0, quality=["c4_paragraphs", "c4"])
    census = counted(part, tmp_path / "work", 1)
    assert census.rejected.filtered == {"quality: c4_paragraphs, < 3 paragraphs": 2}
    assert (census.rejected.fraction, census.counts[DUPLICATE]) == (0, 0)
    assert trained(part, tmp_path / "work", 1) == [line]
