"""Every kind of source yields its documents, and counts and names the records that it cannot use."""

import gzip
import json
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdraft.config import SourcePart
from fastdraft.data import python_code
from fastdraft.data.document import WHOLE, Portion, Rejected, content_key
from fastdraft.data.python_code import _docstrings
from fastdraft.data.sources import SOURCES, documents, read, with_absolute_path
from fastdraft.data.split import split_of
from fastdraft.system.errors import CorpusError

TALES = ["Once upon a time\nthere was a fox.", "Ein Märchen: der Fuchs.", "狐は走る。", "one\n\ntwo"]


def texts(rejected: Rejected | None = None, **keys: object) -> list[str]:
    return [document.text for document in documents(SourcePart(**keys), rejected or Rejected())]


def packed(path, content: bytes):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def rows(field: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(TALES)).encode()


@pytest.mark.parametrize("name", ["tales.txt", "tales.txt.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
def test_text_is_split_at_separator_lines(tmp_path, name, end, mark):
    content = mark + f"{end}<|end|>{end}".join(text.replace("\n", end) for text in TALES).encode()
    path = packed(tmp_path / name, content)
    assert texts(source="text", path=path, separator="<|end|>") == TALES


def test_without_a_separator_a_text_file_is_a_document(tmp_path):
    for i, text in enumerate(TALES):
        (tmp_path / f"{i}.txt").write_text(text)
    (tmp_path / "other.dat").write_text("not a text file")
    assert texts(source="text", path=str(tmp_path)) == TALES
    assert texts(source="text", path=str(tmp_path / "[12].txt")) == TALES[1:3]


@pytest.mark.parametrize("name", ["tales.jsonl", "tales.jsonl.gz"])
def test_jsonl_yields_the_field_of_each_record(tmp_path, name):
    path = packed(tmp_path / name, rows("content") + b"\n  \n")
    rejected = Rejected()
    assert texts(rejected, source="jsonl", path=path, field="content") == TALES
    assert (rejected.records, rejected.counts) == (len(TALES), {})


def test_parquet_yields_the_field_of_each_row(tmp_path):
    many = [f"tale {i}" for i in range(2503)]
    pq.write_table(pa.table({"body": many}), tmp_path / "a.parquet")
    result = list(documents(SourcePart(source="parquet", path=str(tmp_path), field="body"), Rejected()))
    assert [document.text for document in result] == many
    assert len({document.origin for document in result}) == len(many)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_hub_reads_a_data_set_from_a_folder(tmp_path, kind):
    folder = tmp_path / "tales"
    folder.mkdir()
    if kind == "jsonl":
        (folder / "train.jsonl").write_bytes(rows("story"))
    else:
        pq.write_table(pa.table({"story": TALES}), folder / "train.parquet")
    assert texts(source="hub", path=str(folder), field="story") == TALES
    with pytest.raises(CorpusError, match=r"no column `text`, only (id, )?story\n  do: "):
        texts(source="hub", path=str(folder))


def test_hub_data_set_that_cannot_be_opened(tmp_path):
    with pytest.raises(CorpusError, match=r"nothing cannot be opened(.|\n)*  do: "):
        texts(source="hub", path=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", rows() + b'{"text": '),
        ("a.jsonl", rows().decode().encode("utf-16")),
        ("a.jsonl.gz", gzip.compress(rows() * 99, mtime=0)[:60]),
        ("a.parquet", b"PAR1 cut short"),
        ("a.txt", b"\xff\xfe"),
    ],
)
def test_a_damaged_hub_data_set_is_an_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=f"{tmp_path} cannot be [^\0]*\n  do: "):
        texts(source="hub", path=str(tmp_path))


def test_each_text_is_yielded_once_and_max_documents_stops_early(tmp_path):
    path = packed(tmp_path / "a.jsonl", rows() + rows())
    assert texts(source="jsonl", path=path) == TALES
    assert texts(source="jsonl", path=path, max_documents=2) == TALES[:2]


UNUSABLE = {
    b'{"text": "cut': "rows that are not JSON",
    b'{"text": "' + b"\xff\xfe" + b'"}': "rows that are not UTF-8",
    b'{"other": "x"}': "rows without a text in `text`",
    b'{"text": 3}': "rows without a text in `text`",
    b'["text"]': "rows that are not JSON objects",
    b'{"text": ' + b"7" * 5000 + b"}": "rows that are not JSON",
    b'{"text": "half \\ud83d"}': r"rows with half a character \(a lone surrogate\)",
}


@pytest.mark.parametrize(("line", "reason"), UNUSABLE.items(), ids=list(map(str, range(len(UNUSABLE)))))
def test_unusable_records_are_counted_and_an_error_above_one_percent(tmp_path, line, reason):
    sound = [json.dumps({"text": f"tale {i}"}).encode() for i in range(197)]
    rejected = Rejected()
    path = packed(tmp_path / "a.jsonl", b"\n".join([*sound, line]))
    assert len(texts(rejected, source="jsonl", path=path)) == 197
    assert (rejected.records, sum(rejected.counts.values())) == (198, 1)

    path = packed(tmp_path / "b.jsonl", b"\n".join([*sound[:3], line, line, line, *sound[3:]]))
    message = rf"1\.5% of the 200 .* {path} .*: 3 {reason} \(first: {path}:4\)\n  wanted.*\n  do: "
    with pytest.raises(CorpusError, match=message):
        texts(source="jsonl", path=path)


def test_a_text_file_that_is_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_text("sound")
    (tmp_path / "b.txt").write_bytes("Märchen".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"50\.0% of the 2 rows .*1 files that are not UTF-8.*b\.txt"):
        texts(source="text", path=str(tmp_path))


@pytest.mark.parametrize(
    ("source", "name", "content"),
    [
        ("text", "a.txt.gz", gzip.compress(b"tale " * 999, mtime=0)[:-9]),
        ("text", "a.txt.gz", b"no gzip at all"),
        ("jsonl", "a.jsonl.gz", gzip.compress(rows() * 99, mtime=0)[:60]),
        ("parquet", "a.parquet", b"PAR1 cut short"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path, source, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=f"{name} is damaged(.|\n)*  do: "):
        texts(source=source, path=str(tmp_path))


@pytest.mark.parametrize("source", ["text", "jsonl", "parquet"])
def test_no_file_at_the_path(tmp_path, source):
    with pytest.raises(CorpusError, match=f"no file at {tmp_path}/nowhere(.|\n)*  do: "):
        texts(source=source, path=str(tmp_path / "nowhere"))
    with pytest.raises(CorpusError, match=f"`{source}` source needs a path\n  do: "):
        texts(source=source)


def test_parquet_without_the_column(tmp_path):
    pq.write_table(pa.table({"body": TALES}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"no column `text`, only body\n  do: "):
        texts(source="parquet", path=str(tmp_path))


def test_every_source_of_the_recipe_is_in_the_table():
    assert set(SOURCES) == set(SourcePart.model_fields["source"].annotation.__args__)


def test_docstrings_are_those_of_modules_classes_and_functions():
    long = "x " * 80
    source = f'"""{long}module"""\nclass A:\n    """{long}class"""\n    def f(self):\n        """short"""\n'
    assert sorted(_docstrings(source)) == [f"{long}class", f"{long}module"]
    assert list(_docstrings("def broken(:")) == []


@pytest.fixture
def python_files(monkeypatch):
    """Every 37th Python file of this machine; reading and parsing all of them takes a minute and a half."""
    files = python_code._python_files()[::37]
    assert len(files) >= 100
    monkeypatch.setattr(python_code, "_python_files", lambda: files)
    python_code._wanted_code.cache_clear(), python_code._wanted_docstrings.cache_clear()
    yield
    python_code._wanted_code.cache_clear(), python_code._wanted_docstrings.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("python_files")
def test_code_and_docstrings_of_a_file_are_in_the_same_split():
    """The code of a file contains its docstrings, so held-out docstrings must not be in trained code."""
    code = SourcePart(source="python_code", max_documents=700, held_out_fraction=0.2)
    prose = SourcePart(source="python_docstrings", max_documents=200, held_out_fraction=0.2)
    splits = {document.origin: split_of(code, document.key) for document in documents(code, Rejected())}
    shared = [document for document in documents(prose, Rejected()) if document.origin in splits]
    counts = Counter(split_of(prose, document.key) for document in shared)
    assert min(counts["train"], counts["held_out"]) >= 5
    assert all(split_of(prose, document.key) == splits[document.origin] for document in shared)
    assert all(document.key != content_key(document.text) for document in shared)


# Portions of several tasks.


def portions(tasks: int, **keys: object) -> tuple[list[list[str]], list[Rejected]]:
    """The texts and the rejected records of each task."""
    rejected = [Rejected() for _ in range(tasks)]
    part = SourcePart(**keys)
    return [[d.text for d in read(part, rejected[i], Portion(i, tasks))] for i in range(tasks)], rejected


def five_files(folder, kind: str) -> str:
    """31 documents in five files of different sizes, and one broken record in jsonl; parquet row groups of 4."""
    texts = [f"tale {i}" for i in range(31)]
    for number, (low, high) in enumerate(pairwise([0, 2, 9, 16, 29, 31])):
        rows = texts[low:high]
        if kind == "text":
            (folder / f"{number}.txt").write_text("\n---\n".join(rows))
        elif kind == "parquet":
            pq.write_table(pa.table({"text": rows}), folder / f"{number}.parquet", row_group_size=4)
        else:
            lines = [json.dumps({"text": row}) for row in rows] + ["{"] * (number == 2)
            (folder / f"{number}.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 7, 11, 37])
@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "hub of parquet"])
def test_portions_are_disjoint_and_cover_the_source(tmp_path, kind, tasks):
    path = five_files(tmp_path, kind.split()[-1])
    keys = {"source": kind.split()[0], "path": path, "separator": "---"}
    whole, merged = Rejected(), Rejected()
    everything = [d.text for d in read(SourcePart(**keys), whole)]
    texts_of_tasks, rejected = portions(tasks, **keys)
    assert Counter(text for texts in texts_of_tasks for text in texts) == Counter(everything)
    assert len(everything) == 31
    for of_task in rejected:
        merged.merge(of_task)
    assert (merged.records, merged.counts) == (whole.records, whole.counts)
    assert sum(bool(texts) for texts in texts_of_tasks) > min(tasks, 5) // 2


@pytest.mark.parametrize("source", ["python_code", "python_docstrings"])
def test_portions_of_the_python_files_of_this_machine(monkeypatch, tmp_path, source):
    paths = []
    for i in range(13):
        (tmp_path / f"{i}.py").write_text(f'"""{f"module {i} " * 20}"""\n' + "x = 1\n" * 60)
        paths.append((tmp_path / f"{i}.py", f"p/{i}.py"))
    (tmp_path / "bad.py").write_bytes(b"# coding: nowhere\n")
    monkeypatch.setattr(python_code, "_python_files", lambda: (*paths, (tmp_path / "bad.py", "p/bad.py")))
    python_code._wanted_code.cache_clear(), python_code._wanted_docstrings.cache_clear()
    everything = [d.text for d in read(SourcePart(source=source), Rejected())]
    texts_of_tasks, rejected = portions(3, source=source)
    python_code._wanted_code.cache_clear(), python_code._wanted_docstrings.cache_clear()
    assert Counter(text for texts in texts_of_tasks for text in texts) == Counter(everything)
    assert len(everything) == 13
    assert [of_task.records for of_task in rejected] == [14, 0, 0]
    assert sum(sum(of_task.counts.values()) for of_task in rejected) == (source == "python_code")


@pytest.mark.parametrize("source", ["jsonl", "parquet", "hub"])
def test_a_task_reads_only_its_own_files(tmp_path, source):
    """The files of the other tasks are damaged, so opening one would fail."""
    kind = "jsonl" if source == "jsonl" else "parquet"
    path = five_files(tmp_path, kind)
    part = SourcePart(source=source, path=path)
    own = [d.text for d in read(part, Rejected(), Portion(0, 3))]
    for number in (1, 2, 4):
        (tmp_path / f"{number}.{kind}").write_bytes(b"damaged")
    rejected = Rejected()
    assert [d.text for d in read(part, rejected, Portion(0, 3))] == own
    assert (rejected.records, rejected.counts) == (len(own), {})


@pytest.mark.parametrize("source", ["parquet", "hub"])
def test_row_groups_of_a_file_are_divided_among_tasks(tmp_path, source):
    """The first of three tasks reads groups 0 and 3; the data pages of all other groups are damaged."""
    rows = [f"tale {i:05d} " * 40 for i in range(600)]
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"text": rows}), path, row_group_size=100, compression="none", use_dictionary=False)
    part = SourcePart(source=source, path=str(tmp_path))
    own = [d.text for d in read(part, Rejected(), Portion(0, 3))]
    assert own == rows[:100] + rows[300:400]
    content = bytearray(path.read_bytes())
    for group in (1, 2, 4, 5):
        column = pq.ParquetFile(path).metadata.row_group(group).column(0)
        content[column.data_page_offset : column.data_page_offset + 64] = b"x" * 64
    path.write_bytes(content)
    assert [d.text for d in read(part, Rejected(), Portion(0, 3))] == own
    with pytest.raises(CorpusError, match=r"row group 1, is damaged|cannot be read"):
        list(read(part, Rejected(), Portion(1, 3)))


def test_max_documents_is_divided_among_the_tasks(tmp_path):
    path = packed(tmp_path / "a.jsonl", "".join(json.dumps({"text": f"tale {i}"}) + "\n" for i in range(50)).encode())
    texts_of_tasks, _ = portions(3, source="jsonl", path=path, max_documents=7)
    assert sorted(int(text.split()[1]) for texts in texts_of_tasks for text in texts) == list(range(7))


def test_folder_and_split_of_a_hub_data_set(tmp_path):
    for folder, name in (("python", "train"), ("python", "test"), ("java", "train")):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        table = pa.table({"content": [f"{folder} {name}"]})
        pq.write_table(table, tmp_path / "data" / folder / f"{name}.parquet")
    keys = {"source": "hub", "path": str(tmp_path), "field": "content"}
    assert texts(folder="data/python", **keys) == ["python train"]
    assert texts(folder="data/python", split="test", **keys) == ["python test"]


def test_an_absolute_path_works_in_another_working_directory(tmp_path, monkeypatch):
    packed(tmp_path / "a.jsonl", rows())
    monkeypatch.chdir(tmp_path)
    part = with_absolute_path(SourcePart(source="jsonl", path="*.jsonl"))
    monkeypatch.chdir("/")
    assert [d.text for d in read(part, Rejected(), WHOLE)] == TALES
    assert with_absolute_path(SourcePart(source="hub", path="some/name")).path == "some/name"
