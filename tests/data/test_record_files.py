"""The reader of rows: every file gives its rows, or an error that names it; no path is mistaken for a pattern."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastdraft.config import SourcePart
from fastdraft.data import record_files, sources
from fastdraft.data.document import Rejected
from fastdraft.data.record_files import JSONL_SUFFIXES, TOO_LONG_ROW, local_records
from fastdraft.data.split import allowed_keys
from fastdraft.system.errors import CorpusError

MARKERS = ("<start>", "<end>")
LINES = "".join(json.dumps({"prompt": f"p{i}", "answer": f"a{i}"}) + "\n" for i in range(97))


def parquet(file: Path, compression: str = "snappy", rows: int = 997) -> bytes:
    """A file of several row groups; returns its content."""
    table = pa.table({"prompt": [f"prompt {i * i}" for i in range(rows)], "answer": [f"{i}" for i in range(rows)]})
    pq.write_table(table, file, compression=compression, row_group_size=211, use_dictionary=False)
    return file.read_bytes()


def damaged_page(compression: str):
    """A parquet file whose second row group has a damaged page."""

    def make(file: Path) -> None:
        content = bytearray(parquet(file, compression))
        column = pq.ParquetFile(file).metadata.row_group(1).column(0)
        middle = column.data_page_offset + column.total_compressed_size // 2
        content[middle : middle + 64] = bytes(64)
        file.write_bytes(content)

    return make


def link_in_a_circle(file: Path) -> None:
    file.symlink_to(file)


def written(content: bytes):
    return lambda file: file.write_bytes(content)


UNREADABLE = {
    "gzip, cut off": ("a.jsonl.gz", written(gzip.compress(LINES.encode(), mtime=0)[:-9]), "damaged or cut short"),
    "gzip, damaged": ("a.jsonl.gz", written(b"\x1f\x8b\x08\0" + bytes(99)), "damaged or cut short"),
    "no gzip": ("a.jsonl.gz", written(LINES.encode()), "damaged or cut short"),
    "gzip without its suffix": ("a.jsonl", written(gzip.compress(LINES.encode())), "is gzip"),
    "zstd": ("a.jsonl", written(b"\x28\xb5\x2f\xfd" + bytes(9)), "is zstd"),
    "zip": ("a.jsonl", written(b"PK\x03\x04" + bytes(9)), "is a zip"),
    "parquet as jsonl": ("a.jsonl", parquet, "is parquet"),
    "UTF-16": ("a.jsonl", written(LINES.encode("utf-16")), "is UTF-16 text, "),
    "UTF-16, big endian": ("a.jsonl", written(b"\xfe\xff" + LINES.encode("utf-16-be")), "is UTF-16"),
    "UTF-16 without a mark": ("a.jsonl", written(LINES.encode("utf-16-le")), "is UTF-16 .*without"),
    "UTF-32": ("a.jsonl.gz", written(gzip.compress(LINES.encode("utf-32"))), "is UTF-32"),
    "UTF-16, marked text": ("a.txt", written("p<start>a<end>".encode("utf-16")), "is UTF-16"),
    "an empty parquet": ("a.parquet", written(b""), "damaged or cut short"),
    "a cut-off footer": ("a.parquet", lambda file: file.write_bytes(parquet(file)[:-7]), "damaged or cut short"),
    **{f"{name} pages": ("a.parquet", damaged_page(name), "row group 1, .*damaged") for name in ("zstd", "gzip")},
    "snappy pages": ("a.parquet", damaged_page("snappy"), "row group 1, .*damaged"),
    "a pipe": ("a.jsonl", os.mkfifo, "is a pipe"),
    "a link in a circle": ("a.jsonl", link_in_a_circle, "Too many levels"),
    "a link to nothing": ("a.jsonl", lambda file: file.symlink_to("nothing"), "No such file"),
    "a link to a device": ("a.jsonl", lambda file: file.symlink_to("/dev/zero"), "is a pipe, a socket or a device"),
    "no permission": ("a.jsonl", lambda file: file.touch(0), "Permission denied"),
    "a name that is not UTF-8": ("a\udcff.jsonl", written(LINES.encode()), "not UTF-8"),
}


@pytest.mark.parametrize("place", ["by name", "in a folder"])
@pytest.mark.parametrize(("name", "make", "match"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name, make, match, place):
    file = tmp_path / name
    make(file)
    if "Permission" in match and os.access(file, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(CorpusError, match=f"{name.partition('.')[0][0]}.*{match}[^\0]*\n  do: "):
        list(local_records(str(file if place == "by name" else tmp_path), MARKERS))


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("nowhere.jsonl", "no file at"),
        ("*.jsonl", "no file at"),
        ("x" * 5000, "no file at"),
        ("a\0b", "cannot be a path"),
        ("a\ud83d", "cannot be a path"),
        ("~nobody-has-this-name/a.jsonl", "cannot be a path"),
        ("empty", "has no file with a name that ends in"),
        ("other.dat", "other.dat does not have a name that ends in"),
    ],
)
def test_a_path_without_a_file_is_an_error(tmp_path, monkeypatch, path, match):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("other.dat").touch()
    with pytest.raises(CorpusError, match=f"{match}[^\0]*\n  do: "):
        list(local_records(path))


@pytest.mark.parametrize("name", ["[ab]", "a*", "a?", "**", "[!a]", "{a,b}", "a b", "狐", "-a", "a=b", "a,b"])
def test_an_existing_path_is_taken_literally(tmp_path, monkeypatch, name):
    """As a pattern, each name but the last ones would match other files, or none."""
    monkeypatch.chdir(tmp_path)
    for decoy in ("a", "b", "ab"):
        Path(f"{decoy}.jsonl").write_text('{"prompt": "decoy"}\n')
    file, folder = Path(f"{name}.jsonl"), Path(name)
    file.write_text('{"prompt": "file", "text": "file"}\n')
    folder.mkdir()
    (folder / "x.jsonl").write_text('{"prompt": "in a folder"}\n')
    assert [record.content["prompt"] for record in local_records(str(file))] == ["file"]
    assert [record.content["prompt"] for record in local_records(str(folder))] == ["in a folder"]
    part = SourcePart(source="jsonl", path=str(file))
    assert [document.text for document in sources.read(part, Rejected())] == ["file"]
    keys = Path(f"{name}.txt")
    keys.write_text("0123456789abcdef\n")
    assert allowed_keys(str(keys)) == {"0123456789abcdef"}


@pytest.mark.parametrize(
    "content",
    [b"0123", b"\xff\xfe0", gzip.compress(b"0123456789abcdef" * 99, mtime=0)[:-9], b"x" * 16],
    ids=["short", "utf-16", "gzip", "no digits"],
)
def test_an_allow_list_without_keys_is_an_error(tmp_path, content):
    (tmp_path / "keys").write_bytes(content)
    for path in (tmp_path / "keys", tmp_path / "nothing", "demo:nothing"):
        with pytest.raises(CorpusError, match=r"(keys|nothing)[^\0]*\n  do: "):
            allowed_keys(str(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet", ".txt"])
def test_rows_above_the_limit_are_left_out_wherever_they_are(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(record_files, "MAX_ROW_BYTES", 89)
    values = ["x" * n for n in (1, 500, 2, 3, 89, 178, 179, 4)]
    file = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"prompt": values}), file)
        limit = 89
    elif suffix == ".txt":
        file.write_text("".join(f"{value}<start><end>" for value in values))
        limit = 89 - len("<start>")
    else:
        content = "\n".join(json.dumps({"prompt": value}) for value in values).encode()
        file.write_bytes(gzip.compress(content) if suffix == ".jsonl.gz" else content)
        limit = 89 - len('{"prompt": ""}\n')
    records = list(local_records(str(file), MARKERS))
    expected = [value if len(value) <= limit else TOO_LONG_ROW for value in values]
    assert [record.fault or record.content["prompt"] for record in records] == expected
    assert len({record.place for record in records}) == len(values)


def test_a_text_above_the_limit_or_with_nul_bytes_is_unusable(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ROW_BYTES", 89)
    for name, content in {"a": "x" * 89, "b": "x" * 90, "c": "x\n" * 45, "d": "binary\0", "e": "last"}.items():
        (tmp_path / f"{name}.txt").write_text(content)
    rejected = Rejected()
    part = SourcePart(source="text", path=str(tmp_path))
    assert [document.text for document in sources.read(part, rejected)] == ["x" * 89, "last"]
    assert sum(rejected.counts.values()) == 3
    assert [reason for reason in rejected.counts if "separator" in reason or "NUL" in reason] == [*rejected.counts]


RUBBISH = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def read_or_refused(file: Path) -> None:
    """Read all records of a file: any exception but a CorpusError that names the file fails the test."""
    message = f"{file}\n  do: "
    try:
        records = list(local_records(str(file), MARKERS))
    except CorpusError as error:
        records, message = [], str(error)
    assert str(file) in message
    assert "\n  do: " in message
    assert all(str(file) in record.place for record in records)
    assert all(record.content == {} for record in records if record.fault)


@RUBBISH
@given(st.sampled_from([*JSONL_SUFFIXES, ".parquet", ".txt", ".txt.gz"]), st.binary(max_size=99), st.booleans())
@example(".jsonl", b"[" * 99_999, False)
@example(".jsonl", b'{"a":' * 9_999, False)
@example(".jsonl", b'{"prompt": 1e' + b"9" * 9_999 + b"}", False)
@example(".jsonl", b'{"prompt": "\0"}', False)
def test_any_bytes_give_records_or_an_error(tmp_path_factory, suffix, content, compressed):
    file = tmp_path_factory.getbasetemp() / f"rubbish{suffix}"
    file.write_bytes(gzip.compress(content) if compressed else content)
    read_or_refused(file)


@RUBBISH
@given(st.sampled_from(["snappy", "zstd", "none"]), st.integers(0, 10**9), st.binary(min_size=1, max_size=9))
def test_a_damaged_parquet_file_gives_records_or_an_error(tmp_path_factory, compression, place, content):
    file = tmp_path_factory.getbasetemp() / "rubbish.parquet"
    whole = parquet(file, compression, 23)
    place %= len(whole)
    file.write_bytes(whole[:place] + content + whole[place + len(content) :])
    read_or_refused(file)
